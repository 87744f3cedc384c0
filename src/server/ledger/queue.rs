//! What waits for the ledger, and how much of it makes a batch.
//!
//! ```text
//!   inbox ──> somebody waits for it ────────────────────────────> batch, at once
//!        └──> nobody does ([`Op::rides`]) ──> waits ──> batch, with the next word on its attempt, or after 5 ms
//! ```
//!
//! A short attempt is accepted, started and ended within milliseconds. So what nobody waits for waits a moment for what somebody
//! does: an end, with what it lets start, does not stand behind the commits of the first two, and the rows of an attempt and its
//! task are written once for all three.
//!
//! Only new tasks and words on other attempts overtake what waits. A person's word, a session's beginning or end, a sweep take
//! along all that came before them; and what goes together keeps its order.

use std::{collections::HashSet, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{Error, Op, Reply, Request};

/// Operations of one batch: enough to share a commit's cost, few enough not to hold up the first for the last.
pub(super) const BATCH: usize = 256;
/// How long what nobody waits for may wait for something that somebody does: less than a person or a watch would notice.
const RIDE: Duration = Duration::from_millis(5);

/// An operation, and who waits for its answer.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Result<Reply, Error>>,
}

/// What has come and is not done, at most a batch of it; the rest is in the channel, where submitters wait if that is full.
#[derive(Debug)]
pub(super) struct Queue {
    inbox: mpsc::Receiver<Envelope>,
    /// Oldest first, each with the time until which it may wait if it rides.
    waiting: Vec<(Instant, Envelope)>,
}

impl Queue {
    pub(super) fn new(inbox: mpsc::Receiver<Envelope>) -> Self {
        Self { inbox, waiting: Vec::new() }
    }

    /// What is to be done next: at once whatever somebody waits for, or nothing, if there is something to `look` for. `None` at
    /// the end.
    pub(super) async fn next(&mut self, look: bool) -> Option<Vec<Envelope>> {
        loop {
            let until = Instant::now() + RIDE;
            while self.waiting.len() < BATCH
                && let Ok(envelope) = self.inbox.try_recv()
            {
                self.waiting.push((until, envelope));
            }
            let batch = self.leaving(false);
            if look || !batch.is_empty() {
                return Some(batch);
            }
            let received = match self.waiting.first() {
                None => Ok(self.inbox.recv().await),
                Some((until, _)) => timeout_at(*until, self.inbox.recv()).await,
            };
            match received {
                Ok(Some(envelope)) => self.waiting.push((Instant::now() + RIDE, envelope)),
                Ok(None) if self.waiting.is_empty() => return None,
                Ok(None) => return Some(self.leaving(true)),
                Err(_) => {}
            }
        }
    }

    /// What need not wait any more.
    fn leaving(&mut self, all: bool) -> Vec<Envelope> {
        let (all, now) = (all || self.waiting.len() >= BATCH, Instant::now());
        let waiting = self.waiting.iter().map(|(until, envelope)| (&envelope.request.op, all || *until <= now));
        let mut leaves = leaving(waiting).into_iter();
        self.waiting.extract_if(.., |_| leaves.next().unwrap_or(true)).map(|(_, envelope)| envelope).collect()
    }
}

/// Whether each of the operations that wait goes now. With each comes whether it has waited long enough.
pub(super) fn leaving<'a>(waiting: impl Iterator<Item = (&'a Op, bool)> + Clone) -> Vec<bool> {
    // What came before this goes, and what is said of these attempts.
    let (mut before, mut attempts, mut somebody) = (0, HashSet::new(), false);
    for (place, (op, _)) in waiting.clone().enumerate().filter(|(_, (op, _))| !op.rides()) {
        somebody = true;
        attempts.extend(op.attempt());
        if !op.overtakes() {
            before = place;
        }
    }
    // A batch that is made for one of those that nobody waits for has all of them.
    let all = !somebody && waiting.clone().any(|(_, is_time)| is_time);
    let leaves = |(place, (op, is_time)): (usize, (&Op, bool))| {
        let goes_along = || op.attempt().map_or(somebody, |attempt| attempts.contains(&attempt));
        all || is_time || place < before || !op.rides() || goes_along()
    };
    waiting.enumerate().map(leaves).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{
        AttemptId, AttemptRef, DaemonId, Epoch, JournalId, OwnerId, TaskId, Timestamp,
        draft::NewTasks,
        order::{Answer, OrderKind},
        report::{Message, Report},
    };

    fn attempt(number: u32) -> AttemptRef {
        AttemptRef { task: TaskId(Uuid::nil()), number, id: AttemptId(Uuid::from_u128(number.into())) }
    }

    fn answered(number: u32, answer: Answer) -> Op {
        let daemon = DaemonId(Uuid::nil());
        Op::Answered { daemon, epoch: Epoch(1), attempt: attempt(number), of: OrderKind::Spawn, sequence: 1, answer }
    }

    fn says(number: u32, report: Report) -> Op {
        let journal = JournalId(Uuid::nil());
        let message = Message { sequence: 1, journal, attempt: attempt(number), at: Timestamp(0), report };
        Op::Message { daemon: DaemonId(Uuid::nil()), message }
    }

    fn started(number: u32) -> Op {
        let text = String::new;
        let (worktree, branch, base_commit, agent_version) = (text(), text(), text(), text());
        says(number, Report::Started { worktree, branch, base_commit, agent_version, restored: None })
    }

    fn asked_for(number: u32) -> Op {
        says(number, Report::CheckpointFailed { message: String::new() })
    }

    fn rejected() -> Answer {
        Answer::Rejected { reason: "full".to_owned(), retryable: true, counts: false }
    }

    fn seen() -> Op {
        Op::Seen(Vec::new())
    }

    /// The operations of each batch by the numbers of their attempts, none for those without, and when it was made.
    async fn queued(ops: Vec<(u64, Op)>) -> Vec<(Vec<u32>, u64)> {
        let (inbox, queue) = mpsc::channel(16);
        let begun = Instant::now();
        let send = async move {
            for (at, op) in ops {
                tokio::time::sleep_until(begun + Duration::from_millis(at)).await;
                inbox.send(envelope(op)).await.expect("somebody takes it");
            }
        };
        let take = async {
            let (mut queue, mut made) = (Queue::new(queue), Vec::new());
            while let Some(batch) = queue.next(false).await {
                let at = u64::try_from(begun.elapsed().as_millis()).expect("a short while");
                made.push((batch.iter().map(number).collect(), at));
            }
            made
        };
        tokio::join!(send, take).1
    }

    fn envelope(op: Op) -> Envelope {
        Envelope { request: Request { actor: "test".to_owned(), repeat: None, op }, reply: oneshot::channel().0 }
    }

    fn number(envelope: &Envelope) -> u32 {
        envelope.request.op.attempt().map_or(0, |id| u32::try_from(id.0.as_u128()).expect("a small number"))
    }

    /// What nobody waits for waits for what somebody does, in its place before that; nothing else waits.
    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_rides_along() {
        let short = vec![(0, answered(1, Answer::Persisted)), (1, started(1)), (3, asked_for(1)), (4, asked_for(1))];
        assert_eq!(queued(short).await, [(vec![1, 1, 1], 3), (vec![1], 4)]);
        let refused = vec![(0, answered(1, rejected())), (1, started(1))];
        assert_eq!(queued(refused).await, [(vec![1], 0), (vec![1], 1)]);
    }

    /// It waits for a word on its own attempt: what daemons say of others goes on.
    #[tokio::test(start_paused = true)]
    async fn others_go_on() {
        let two = vec![(0, started(1)), (1, started(2)), (1, seen()), (2, asked_for(2)), (3, asked_for(1))];
        assert_eq!(queued(two).await, [(vec![2, 0, 2], 2), (vec![1, 1], 3)]);
    }

    /// Nothing that it may have to do with is done before it.
    #[tokio::test(start_paused = true)]
    async fn nothing_changes_places() {
        let swept = vec![(0, started(1)), (1, started(2)), (2, Op::Sweep), (2, started(1)), (3, asked_for(1))];
        assert_eq!(queued(swept).await, [(vec![1, 2, 0], 2), (vec![1, 1], 3)]);
    }

    /// Nor does it wait for long, however much of it comes, and whatever else does.
    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_done_as_well() {
        let often = (0..9).map(|at| (at, started(1))).collect();
        let made = queued(often).await;
        assert_eq!(made.iter().map(|(batch, _)| batch.len()).sum::<usize>(), 9);
        assert_eq!((made[0].1, made.len()), (5, 2));
        let between = vec![(0, started(1)), (3, asked_for(2)), (6, asked_for(2)), (9, asked_for(2))];
        assert_eq!(queued(between).await, [(vec![2], 3), (vec![1], 5), (vec![2], 6), (vec![2], 9)]);
    }

    /// Who goes, as letters: `r` rides and has time, `R` has none left, `c` makes tasks, `e` says something of an attempt, `s` takes
    /// all along; the number is that of the attempt.
    fn going(waiting: &str) -> String {
        let ops: Vec<(&str, Op, bool)> = waiting
            .split(' ')
            .map(|word| {
                let number = word[1..].parse().unwrap_or(0);
                let op = match &word[..1] {
                    "r" | "R" => started(number),
                    "c" => Op::CreateTasks(NewTasks { owner: OwnerId(Uuid::nil()), contract: None, tasks: Vec::new() }),
                    "e" => asked_for(number),
                    _ => Op::Sweep,
                };
                (word, op, word.starts_with('R'))
            })
            .collect();
        let leaves = leaving(ops.iter().map(|(_, op, is_time)| (op, *is_time)));
        let going = ops.iter().zip(leaves).filter(|(_, leaves)| *leaves).map(|((word, ..), _)| *word);
        going.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn who_goes() {
        // Makes tasks, or says something of another attempt: alone.
        assert_eq!(going("r1 c r2"), "c");
        assert_eq!(going("r1 e2 r2 r1"), "e2 r2");
        // What came before the last of those that take all along.
        assert_eq!(going("r1 s r2 s r3"), "r1 s r2 s");
        // One that has waited long enough goes beside others, and takes along those like it where nobody else goes.
        assert_eq!(going("R1 c r2"), "R1 c");
        assert_eq!(going("R1 r2"), "R1 r2");
        assert_eq!(going("r1 r2"), "");
    }

    /// As much as makes a batch waits for nothing.
    #[tokio::test(start_paused = true)]
    async fn a_full_batch_goes() {
        let (inbox, queue) = mpsc::channel(BATCH + 1);
        let (mut queue, begun) = (Queue::new(queue), Instant::now());
        for _ in 0..=BATCH {
            inbox.send(envelope(started(1))).await.expect("there is room");
        }
        assert_eq!(queue.next(false).await.map(|batch| batch.len()), Some(BATCH));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    /// What nobody waits for waits no longer where there is always something to look for.
    #[tokio::test(start_paused = true)]
    async fn looking_holds_nothing_up() {
        let (inbox, queue) = mpsc::channel(1);
        let mut queue = Queue::new(queue);
        inbox.send(envelope(started(1))).await.expect("somebody takes it");
        assert_eq!(queue.next(true).await.map(|batch| batch.len()), Some(0));
        tokio::time::advance(RIDE).await;
        assert_eq!(queue.next(true).await.map(|batch| batch.len()), Some(1));
    }

    /// What there is to look for waits for nobody.
    #[tokio::test(start_paused = true)]
    async fn a_look_is_taken_at_once() {
        let (inbox, queue) = mpsc::channel(2);
        let (mut queue, begun) = (Queue::new(queue), Instant::now());
        assert_eq!(queue.next(true).await.map(|batch| batch.len()), Some(0));
        inbox.send(envelope(started(1))).await.expect("somebody takes it");
        inbox.send(envelope(asked_for(2))).await.expect("somebody takes it");
        assert_eq!(queue.next(true).await.map(|batch| batch.len()), Some(1));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}

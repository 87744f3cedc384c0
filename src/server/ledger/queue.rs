//! What waits for the ledger, and how much of it makes a batch.
//!
//! A lone operation is a batch at once. Only what nobody waits for ([`Op::rides`](super::Op)) waits a moment for something that
//! somebody does: a short attempt is accepted, started and ended within milliseconds, and its end, with what it lets start, would
//! else stand behind the commits of the first two.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{Error, Reply, Request};

/// Operations of one batch: enough to share a commit's cost, few enough not to hold up the first for the last.
const BATCH: usize = 256;
/// How long what nobody waits for may wait for something that somebody does: less than a person or a watch would notice.
const RIDE: Duration = Duration::from_millis(5);

/// An operation, and who waits for its answer.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Result<Reply, Error>>,
}

/// What is to be done next: at once whatever there is, if there is something to `look` for. Nothing at the end.
pub(super) async fn next(inbox: &mut mpsc::Receiver<Envelope>, look: bool) -> Option<Vec<Envelope>> {
    let mut batch = Vec::new();
    if !look {
        batch.push(inbox.recv().await?);
    }
    let (mut until, mut rides) = (None, 0);
    loop {
        while batch.len() < BATCH
            && let Ok(envelope) = inbox.try_recv()
        {
            batch.push(envelope);
        }
        rides += batch[rides..].iter().take_while(|envelope| envelope.request.op.rides()).count();
        if look || rides < batch.len() || batch.len() >= BATCH {
            return Some(batch);
        }
        let until = *until.get_or_insert_with(|| Instant::now() + RIDE);
        match timeout_at(until, inbox.recv()).await {
            Ok(Some(envelope)) => batch.push(envelope),
            Ok(None) | Err(_) => return Some(batch),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        domain::{
            AttemptId, AttemptRef, DaemonId, Epoch, JournalId, TaskId, Timestamp,
            order::{Answer, OrderKind},
            report::{Message, Report},
        },
        server::ledger::Op,
    };

    fn attempt() -> AttemptRef {
        AttemptRef { task: TaskId(Uuid::nil()), number: 1, id: AttemptId(Uuid::nil()) }
    }

    fn answered(answer: Answer) -> Op {
        let daemon = DaemonId(Uuid::nil());
        Op::Answered { daemon, epoch: Epoch(1), attempt: attempt(), of: OrderKind::Spawn, sequence: 1, answer }
    }

    fn says(report: Report) -> Op {
        let journal = JournalId(Uuid::nil());
        let message = Message { sequence: 1, journal, attempt: attempt(), at: Timestamp(0), report };
        Op::Message { daemon: DaemonId(Uuid::nil()), message }
    }

    fn started() -> Op {
        let text = String::new;
        says(Report::Started { worktree: text(), branch: text(), base_commit: text(), agent_version: text() })
    }

    fn rejected() -> Answer {
        Answer::Rejected { reason: "full".to_owned(), retryable: true, counts: false }
    }

    /// How many operations each batch has, and when it was made.
    async fn batches(inbox: &mut mpsc::Receiver<Envelope>, begun: Instant) -> Vec<(usize, Duration)> {
        let mut made = Vec::new();
        while let Some(batch) = next(inbox, false).await {
            made.push((batch.len(), begun.elapsed()));
        }
        made
    }

    async fn queued(ops: Vec<(u64, Op)>) -> Vec<(usize, Duration)> {
        let (queue, mut inbox) = mpsc::channel(16);
        let begun = Instant::now();
        let send = async move {
            for (at, op) in ops {
                tokio::time::sleep_until(begun + Duration::from_millis(at)).await;
                let request = Request { actor: "test".to_owned(), repeat: None, op };
                queue.send(Envelope { request, reply: oneshot::channel().0 }).await.expect("somebody takes it");
            }
        };
        tokio::join!(send, batches(&mut inbox, begun)).1
    }

    /// What nobody waits for waits for what somebody does, in its place before that; nothing else waits.
    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_rides_along() {
        let ms = Duration::from_millis;
        let short = vec![(0, answered(Answer::Persisted)), (1, started()), (3, Op::Sweep), (4, Op::Sweep)];
        assert_eq!(queued(short).await, [(3, ms(3)), (1, ms(4))]);
        assert_eq!(queued(vec![(0, answered(rejected())), (1, started())]).await, [(1, ms(0)), (1, ms(1))]);
    }

    /// Nor does it wait for long, however much of it comes.
    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_done_as_well() {
        let often = (0..9).map(|at| (at, started())).collect();
        let made = queued(often).await;
        assert_eq!(made.iter().map(|(count, _)| count).sum::<usize>(), 9);
        assert_eq!(made[0].1, RIDE);
    }

    /// What there is to look for waits for nobody.
    #[tokio::test(start_paused = true)]
    async fn a_look_is_taken_at_once() {
        let (queue, mut inbox) = mpsc::channel(1);
        let begun = Instant::now();
        assert_eq!(next(&mut inbox, true).await.map(|batch| batch.len()), Some(0));
        let request = Request { actor: "test".to_owned(), repeat: None, op: started() };
        queue.send(Envelope { request, reply: oneshot::channel().0 }).await.expect("somebody takes it");
        assert_eq!(next(&mut inbox, true).await.map(|batch| batch.len()), Some(1));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}

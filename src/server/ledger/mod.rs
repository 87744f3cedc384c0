//! The one writer of contract, task, attempt, daemon and command state.
//!
//! ```text
//!   submit ──> queue ──> batch: whatever arrived while the last commit was in flight
//!                          │ begin (one writer at a time, on both databases)
//!                          │ load   what the operations need             work, load
//!                          │ fold   them with the domain's functions     people, daemons
//!                          │ dispatch what became possible               dispatch
//!                          │ flush  one row a key, the event log         work
//!                          └ commit ──> then speak: commands to sessions, watchers, answers
//! ```
//!
//! A lone operation that somebody waits for is committed at once, and under load the batch grows to what one commit takes; what
//! nobody waits for waits a moment for the next word on its attempt (`queue`). What the domain refuses is an answer like any
//! other. A batch that the database refuses is replayed one by one, so that only the culprit fails. A COMMIT whose answer was lost
//! is looked up before anything is said.

mod beside;
mod contracts;
mod daemons;
mod dice;
mod dispatch;
mod fleet;
mod kept;
mod keys;
mod lanes;
mod load;
mod measure;
mod names;
pub mod op;
mod people;
mod queue;
mod rows;
#[cfg(test)]
mod simulation;
mod table;
mod tasks;
mod verbs;
mod work;

use std::sync::{Arc, RwLock, RwLockReadGuard};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

pub use self::{
    daemons::ANSWER_WITHIN,
    fleet::{Fleet, Member},
    op::{Error, Op, Push, Reply, Request},
};
use self::{
    dispatch::Classes,
    kept::Kept,
    queue::{Envelope, Queue},
    work::Work,
};
use super::{
    metrics::{self, BatchOutcome},
    reaper::KEEP_BATCHES,
    task_keys::TaskKeys,
};
pub(crate) use crate::domain::text::chain;
use crate::{
    domain::{BatchId, DaemonId, Timestamp},
    runtime::{activator::Activator, clock},
    store::{self, Store},
};

/// Operations that wait. Beyond this, submitters wait too: they are rpcs, which have deadlines of their own.
const QUEUE: usize = 4096;
/// How long the outcome of a COMMIT is looked for.
const IN_DOUBT: std::time::Duration = std::time::Duration::from_secs(30);

/// A handle to the ledger. Clones share it.
#[derive(Clone, Debug)]
pub struct Ledger {
    queue: mpsc::Sender<Envelope>,
    fleet: Arc<RwLock<Fleet>>,
    last: watch::Receiver<i64>,
    due: Arc<DueSoon>,
    metrics: metrics::Shared,
}

/// When the next thing is due, as far as this process has written it.
#[derive(Debug, Default)]
pub struct DueSoon {
    at: std::sync::Mutex<Option<Timestamp>>,
    changed: Activator,
}

impl DueSoon {
    /// Something is due then.
    pub fn earlier(&self, at: Timestamp) {
        let Ok(mut due) = self.at.lock() else { return };
        if due.is_none_or(|due| at < due) {
            *due = Some(at);
            self.changed.wake();
        }
    }

    /// Takes the time, leaving none.
    pub fn take(&self) -> Option<Timestamp> {
        self.at.lock().ok().and_then(|mut due| due.take())
    }

    /// The time.
    pub fn peek(&self) -> Option<Timestamp> {
        self.at.lock().ok().and_then(|due| *due)
    }

    /// Returns when the time has become earlier, or after `period`.
    pub async fn wait(&self, period: std::time::Duration) {
        self.changed.wait(period).await;
    }
}

impl Ledger {
    /// Starts the writer. It ends when all handles are gone.
    pub async fn start(store: Store, keys: TaskKeys) -> Result<(Self, impl Future<Output = ()> + Send), store::Error> {
        let mut tx = store.read().await?;
        let classes = Classes::new(tx.classes_list().await?);
        let last = tx.events_last().await?;
        let alive = tx.meta_fetch("last_alive").await?.and_then(|text| text.parse().ok()).map(Timestamp);
        let next_due = tx.next_due(Timestamp(0)).await?;
        tx.rollback().await?;
        // A server before this one may have had a clock that was ahead; what it wrote must still come to pass.
        clock::at_least(alive.unwrap_or_default());
        let (queue, inbox) = mpsc::channel(QUEUE);
        let (last_tx, last) = watch::channel(last);
        let fleet = Arc::new(RwLock::new(Fleet::default()));
        let due = Arc::new(DueSoon::default());
        due.earlier(next_due.unwrap_or_else(clock::now));
        let metrics = metrics::Shared::default();
        let writer = Writer {
            store,
            keys,
            queue: Queue::new(inbox),
            fleet: Arc::clone(&fleet),
            last: last_tx,
            due: Arc::clone(&due),
            metrics: Arc::clone(&metrics),
            classes,
            kept: Kept::default(),
            now: alive.unwrap_or_default(),
            look: true,
            mark: None,
            stale: false,
        };
        Ok((Self { queue, fleet, last, due, metrics }, writer.run()))
    }

    /// Does an operation. Answers once it is durable.
    pub async fn submit(&self, request: Request) -> Result<Reply, Error> {
        self.enqueue(request).await?.await.map_err(|_| Error::Stopping)?
    }

    /// Queues an operation; its answer comes once it is durable. Those on one attempt are done in the order in which they are queued.
    pub async fn enqueue(&self, request: Request) -> Result<oneshot::Receiver<Result<Reply, Error>>, Error> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Envelope { request, reply }).await.map_err(|_| Error::Stopping)?;
        Ok(answer)
    }

    /// Does an operation of the server's own.
    pub async fn server(&self, op: Op) -> Result<Reply, Error> {
        self.submit(Request { actor: "server".to_owned(), repeat: None, op }).await
    }

    /// The attached daemons, as of the last commit.
    pub fn fleet(&self) -> RwLockReadGuard<'_, Fleet> {
        self.fleet.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A session has ended.
    pub fn detach(&self, daemon: DaemonId, epoch: crate::domain::Epoch) {
        self.fleet.write().unwrap_or_else(std::sync::PoisonError::into_inner).detach(daemon, epoch);
    }

    /// The last sequence of the event log; changes with every commit that logged something.
    pub fn last(&self) -> watch::Receiver<i64> {
        self.last.clone()
    }

    /// When something is due.
    pub fn due(&self) -> &DueSoon {
        &self.due
    }

    /// What is counted here, and by everybody who speaks to the ledger.
    pub fn metrics(&self) -> &metrics::Metrics {
        &self.metrics
    }

    /// How many operations wait to be taken; the writer has a batch of them at most.
    pub fn queued(&self) -> usize {
        self.queue.max_capacity().saturating_sub(self.queue.capacity())
    }
}

struct Writer {
    store: Store,
    keys: TaskKeys,
    queue: Queue,
    fleet: Arc<RwLock<Fleet>>,
    last: watch::Sender<i64>,
    due: Arc<DueSoon>,
    metrics: metrics::Shared,
    classes: Classes,
    /// Empty while a batch is under way, and after one that failed.
    kept: Kept,
    /// Ledger time never goes backwards, whatever the clock does.
    now: Timestamp,
    /// There may be something to dispatch.
    look: bool,
    /// The last batch that was committed, and when, where batches have marks.
    mark: Option<(BatchId, Timestamp)>,
    /// The fleet may not be what the database says, after a batch whose outcome stayed unknown.
    stale: bool,
}

/// How a batch failed.
enum Failed {
    /// The database refuses what is to be written.
    Refused(store::Error),
    /// The database cannot be reached; nothing was done.
    Unavailable(store::Error),
    /// The database went away at the COMMIT and has not come back: nobody knows.
    Unknown(store::Error),
}

/// What a batch comes to, before it is committed.
struct Decided {
    /// What became of each operation.
    replies: Vec<Result<Reply, Error>>,
    /// There may be more to give away.
    more: bool,
    /// Something was written.
    writes: bool,
    /// The last sequence of the log, if it grew.
    last: Option<i64>,
}

impl From<store::Error> for Failed {
    fn from(error: store::Error) -> Self {
        match error {
            // Taken over: what is asked is the other server's to do, and this one is about to stop.
            store::Error::Unavailable { .. } | store::Error::InUse(_) => Self::Unavailable(error),
            other => Self::Refused(other),
        }
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Refused(error) => Self::Unstorable(chain(&error)),
            Failed::Unavailable(error) => Self::Unavailable(chain(&error)),
            Failed::Unknown(error) => {
                Self::Unavailable(format!("{}; whether this was done is not known", chain(&error)))
            }
        }
    }
}

impl Writer {
    async fn run(mut self) {
        while let Some(batch) = self.queue.next(self.look).await {
            self.batch(batch).await;
        }
    }

    #[tracing::instrument(level = "debug", name = "ledger", skip_all, fields(operations = batch.len()))]
    async fn batch(&mut self, batch: Vec<Envelope>) {
        if !batch.is_empty() {
            self.metrics.batch_size(batch.len());
        }
        let requests: Vec<&Request> = batch.iter().map(|envelope| &envelope.request).collect();
        let replies = match self.commit(&requests, true).await {
            Ok(replies) => replies,
            Err(Failed::Refused(error)) => {
                tracing::warn!(
                    error = chain(&error),
                    operations = requests.len(),
                    "the database refused a batch; one by one"
                );
                self.one_by_one(&requests).await
            }
            Err(failed) => {
                let error = Error::from(failed);
                tracing::warn!(%error, "cannot commit");
                // Whoever asked hears so and may ask again; what was to be dispatched is looked for with the next batch.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                requests.iter().map(|_| Err(error.clone())).collect()
            }
        };
        for (envelope, reply) in batch.into_iter().zip(replies) {
            // Whoever asked may have gone; what was done stays done.
            let _ = envelope.reply.send(reply);
        }
    }

    /// Commits each operation by itself, so that only the culprit fails.
    async fn one_by_one(&mut self, requests: &[&Request]) -> Vec<Result<Reply, Error>> {
        // What was to be dispatched is looked for afterwards, by itself, so that a task that cannot be given away does not
        // take somebody's report with it: refused then, it waits for something to change, because trying again at once
        // would only spin.
        let look = std::mem::take(&mut self.look) && !requests.is_empty();
        let mut replies = Vec::with_capacity(requests.len());
        for request in requests {
            let reply = match self.commit(&[request], false).await {
                Ok(mut replies) => replies.pop().unwrap_or(Ok(Reply::Done)),
                Err(failed) => Err(Error::from(failed)),
            };
            if let Err(error @ Error::Unstorable(_)) = &reply {
                tracing::error!(%error, actor = request.actor, "an operation cannot be stored");
            }
            replies.push(reply);
        }
        self.look |= look;
        replies
    }

    /// Folds and commits, with what it lets start unless that is for a later batch. Speaks to sessions and watchers; the
    /// answers are left to the caller.
    async fn commit(&mut self, requests: &[&Request], dispatch: bool) -> Result<Vec<Result<Reply, Error>>, Failed> {
        let begun = Instant::now();
        let done = self.transaction(requests, dispatch).await;
        let outcome = match &done {
            Ok((_, true)) => BatchOutcome::Committed,
            Ok((_, false)) => BatchOutcome::Empty,
            Err(Failed::Refused(_)) => BatchOutcome::Refused,
            Err(Failed::Unavailable(_)) => BatchOutcome::Unavailable,
            Err(Failed::Unknown(_)) => BatchOutcome::Unknown,
        };
        self.metrics.batch(outcome, begun.elapsed());
        done.map(|(replies, _)| replies)
    }

    /// One transaction. Answers what became of each operation, and whether anything was written.
    async fn transaction(
        &mut self,
        requests: &[&Request],
        dispatch: bool,
    ) -> Result<(Vec<Result<Reply, Error>>, bool), Failed> {
        self.now = clock::now().max(self.now);
        let mut tx = self.store.begin_ledger().await?;
        let mut kept = std::mem::take(&mut self.kept);
        if tx.is_first() || self.stale {
            kept = Kept::default();
            // Whatever is wrong, it is not with what was asked.
            self.refresh(&mut tx).await.map_err(Failed::Unavailable)?;
            self.look = true;
        }
        let mut work = Work::new(self.now, kept);
        work.look = self.look;
        let batch = self.store.commits_in_doubt().then(|| BatchId(uuid::Uuid::now_v7()));
        let decided = self.decide(&mut tx, &mut work, requests, dispatch, batch).await.map_err(Failed::from);
        if let Err(Failed::Refused(error)) = &decided
            && error.is_of_values()
        {
            // Dropped, it would take its connection along, and the next would be the first on another: all would be looked at again,
            // for no more reason than before. If this fails the connection is no good.
            let _ = tx.rollback().await;
            return decided.map(|_| (Vec::new(), false));
        }
        let Decided { replies, more, writes, last } = decided?;
        if writes {
            self.commit_tx(tx, batch).await?;
            let durable = clock::now();
            self.mark = batch.map(|batch| (batch, self.now));
            self.speak(&work, requests, &replies, more);
            if let Some(last) = last {
                self.last.send_replace(last);
            }
            work.measure(&self.metrics, durable);
        } else {
            tx.rollback().await?;
            self.speak(&work, requests, &replies, more);
        }
        self.classes.learn(&work);
        self.kept = work.keep();
        Ok((replies, writes))
    }

    /// Reads, folds, gives away what can start unless that is for a later batch, and writes.
    async fn decide(
        &self,
        tx: &mut store::Tx,
        work: &mut Work,
        requests: &[&Request],
        dispatch: bool,
        batch: Option<BatchId>,
    ) -> Result<Decided, store::Error> {
        work.load(tx, requests).await?;
        let replies: Vec<_> =
            requests.iter().map(|request| Self::fold(work, request, &self.fleet, &self.keys)).collect();
        let mut more = work.look;
        if work.look && dispatch {
            let room = work.room(&self.fleet.read().unwrap_or_else(std::sync::PoisonError::into_inner));
            more = work.dispatch(tx, room, &self.classes, &self.keys).await?;
        }
        let writes = !work.is_clean();
        let mut last = None;
        if writes {
            work.classes.retain(|id, _| !self.classes.knows(*id));
            last = work.flush(tx, batch).await?;
        }
        Ok(Decided { replies, more, writes, last })
    }

    fn fold(work: &mut Work, request: &Request, fleet: &RwLock<Fleet>, keys: &TaskKeys) -> Result<Reply, Error> {
        match &request.op {
            Op::Attach(_)
            | Op::Ready { .. }
            | Op::Accepting { .. }
            | Op::Seen(_)
            | Op::Answered { .. }
            | Op::Message { .. }
            | Op::CheckpointStored(_)
            | Op::ResultStored { .. }
            | Op::DaemonLost { .. }
            | Op::Sweep => {
                let fleet = fleet.read().unwrap_or_else(std::sync::PoisonError::into_inner);
                work.machine(&request.op, &|daemon| fleet.get(daemon).is_some(), keys)
            }
            _ => {
                let fleet = fleet.read().unwrap_or_else(std::sync::PoisonError::into_inner);
                work.person(request, &fleet)
            }
        }
    }

    /// Commits, and finds out whether it did.
    async fn commit_tx(&mut self, tx: store::Tx, batch: Option<BatchId>) -> Result<(), Failed> {
        let begun = Instant::now();
        let committed = tx.commit().await;
        self.metrics.committed(begun.elapsed());
        match (committed, batch) {
            (Err(error @ store::Error::Unavailable { .. }), Some(batch)) => self.find_out(batch, error).await,
            (committed, _) => Ok(committed?),
        }
    }

    /// Looks a batch up whose COMMIT was not answered. Under the ledger's lock, so that it is over one way or the other.
    async fn find_out(&mut self, batch: BatchId, error: store::Error) -> Result<(), Failed> {
        let deadline = Instant::now() + IN_DOUBT;
        loop {
            let looked = async {
                let mut tx = self.store.begin_ledger().await?;
                let exists = tx.batch_exists(batch).await?;
                tx.rollback().await?;
                Ok::<bool, store::Error>(exists)
            };
            match looked.await {
                Ok(true) => return Ok(()),
                // On the new connection it is not the next one that is the first (`Tx::is_first`).
                Ok(false) => {
                    self.stale = true;
                    return Err(Failed::Unavailable(error));
                }
                Err(_) if Instant::now() < deadline => {
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
                Err(_) => {
                    self.stale = true;
                    return Err(Failed::Unknown(error));
                }
            }
        }
    }

    /// What was committed takes effect in memory, and is said: orders first, which a daemon waits for with nothing to do.
    fn speak(&mut self, work: &Work, requests: &[&Request], replies: &[Result<Reply, Error>], more: bool) {
        let ready = {
            let fleet = &mut self.fleet.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            Self::take_effect(fleet, work, requests, replies)
        };
        self.look = more || ready;
        if let Some(due) = work.earliest_due() {
            self.due.earlier(due);
        }
        for (request, reply) in requests.iter().zip(replies) {
            if let (Op::DaemonLost { .. }, Ok(_)) = (&request.op, reply) {
                self.metrics.daemon_lost();
            }
        }
    }

    /// Brings the fleet up to what was committed, and tells the sessions. Answers whether a daemon can take work now that
    /// could not before.
    fn take_effect(fleet: &mut Fleet, work: &Work, requests: &[&Request], replies: &[Result<Reply, Error>]) -> bool {
        let mut look = false;
        for (request, reply) in requests.iter().zip(replies) {
            match (&request.op, reply) {
                (Op::Attach(attach), Ok(Reply::Attached { epoch, .. })) => {
                    let card = attach.hello.card.clone();
                    let member = Member::new(attach.owner, attach.key, *epoch, card, attach.outbox.clone());
                    fleet.attach(attach.hello.daemon, member);
                    if let Some(member) = fleet.get_mut(attach.hello.daemon) {
                        let row = work.daemons.get(attach.hello.daemon);
                        member.draining = row.is_some_and(|row| row.draining);
                        let live = work.attempts.values().filter(|a| a.daemon == attach.hello.daemon && a.is_live());
                        member.live = live.map(|attempt| (attempt.id, is_ending(attempt))).collect();
                    }
                }
                (Op::Ready { daemon, epoch }, Ok(_)) => {
                    if let Some(member) = fleet.get_mut(*daemon).filter(|member| member.epoch == *epoch) {
                        member.ready = true;
                        look = true;
                    }
                }
                (Op::RevokeKey { key }, Ok(_)) => fleet.revoked(*key),
                _ => {}
            }
        }
        for (_, daemon) in work.daemons.dirty_pairs() {
            if let Some(member) = fleet.get_mut(daemon.id).filter(|member| member.epoch == daemon.epoch) {
                member.draining = daemon.draining;
                member.card = daemon.card.clone();
            }
        }
        for (_, attempt) in work.attempts.dirty_pairs() {
            if let Some(member) = fleet.get_mut(attempt.daemon) {
                if attempt.is_live() {
                    member.live.insert(attempt.id, is_ending(attempt));
                } else {
                    member.live.remove(&attempt.id);
                }
            }
        }
        for (daemon, push) in &work.pushes {
            fleet.push(*daemon, push.clone());
        }
        look
    }

    /// Makes anew from the database what is kept in memory, after a batch that may have been committed and was not spoken of, and
    /// where it may be another database.
    async fn refresh(&mut self, tx: &mut store::Tx) -> Result<(), store::Error> {
        let members: Vec<DaemonId> = self.fleet_mut().iter().map(|(id, _)| id).collect();
        let live = tx.attempts_live(&members).await?;
        let rows = tx.daemons_fetch(&members).await?;
        self.classes = Classes::new(tx.classes_list().await?);
        let last = tx.events_last().await?;
        let next_due = tx.next_due(Timestamp(0)).await?;
        // What was said to a daemon since is not known there: only another attach, with all that the daemon has, sets that right.
        let is_older = match self.mark {
            // Marks are forgotten; no standby lags for so long.
            Some((batch, at)) if self.now.since(at) < KEEP_BATCHES / 2 => !tx.batch_exists(batch).await?,
            _ => false,
        };
        let mut fleet = self.fleet_mut();
        for id in members {
            let Some(member) = fleet.get_mut(id) else { continue };
            let row = rows.iter().find(|row| row.id == id && row.epoch == member.epoch);
            let Some(row) = row.filter(|_| !is_older) else {
                let epoch = member.epoch;
                tracing::warn!(daemon = %id, "the database does not know of what was said to a session; dropping it");
                fleet.detach(id, epoch);
                continue;
            };
            let live = live.iter().filter(|attempt| attempt.daemon == id);
            member.live = live.map(|attempt| (attempt.id, is_ending(attempt))).collect();
            member.draining = row.draining;
            member.card = row.card.clone();
        }
        drop(fleet);
        self.last.send_replace(last);
        if let Some(due) = next_due {
            self.due.earlier(due);
        }
        self.mark = None;
        self.stale = false;
        Ok(())
    }

    fn fleet_mut(&self) -> std::sync::RwLockWriteGuard<'_, Fleet> {
        self.fleet.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn is_ending(attempt: &crate::domain::attempt::Attempt) -> bool {
    attempt.fenced
}

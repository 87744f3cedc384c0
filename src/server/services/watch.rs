//! Watching: how things are, then every change, in commit order.
//!
//! ```text
//!   ledger ── last sequence ──> Feed ── reads which contracts changed ──> wakes their watchers only
//!   watcher: look (snapshot, or events after the token) ─> send ─> nothing new? ─> sleep until the Feed wakes it
//! ```
//!
//! Promises: what a watcher is told is in the database, and is told in commit order, once each; its resume token goes on
//! exactly there, with this server or another. A watcher that is behind reads from the log at its own pace and costs the
//! server nothing while its client does not read. The wake-up says *look*, the log says *what*, so a wake-up too many or
//! too early is harmless.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prost::Message as _;
use tokio::sync::watch;
use tracing::Instrument as _;

use super::{
    Answers, Api, End, Sink,
    contract::find_contract,
    explain::{self, Detail, Surroundings},
    find_task, store_error,
};
use crate::{
    domain::{
        ContractId, TaskId,
        contract::{Contract, ContractStatus},
        event::Change,
    },
    runtime::lifecycle::Shutdown,
    server::{auth::Reader, ledger::Ledger},
    store::{self, Store, TaskFilter, Tx},
    wire::{
        self, page,
        pb::{self, watch_contract_response::Kind, watch_task_response},
        status::{ApiError, ApiResult, Reason},
    },
};

/// Changes read at a time.
const PORTION: i64 = 500;
/// Tasks of a snapshot read at a time: each may have a plan of half a megabyte.
const SNAPSHOT_PORTION: i64 = 100;
/// Bytes of tasks in one piece of a snapshot.
const PIECE_BYTES: usize = 1024 * 1024;
/// Bytes of a snapshot that are read before any of it is sent: some 20,000 tasks. No transaction is kept open while a
/// client reads, so what is beyond comes as of later instants, and is heard of again if it changed meanwhile; versions tell.
const SNAPSHOT_BYTES: usize = 8 * 1024 * 1024;
/// Events that the feed reads at a time.
const FEED_PORTION: i64 = 1_000;
/// How long the feed waits after an error, and its watchers at most for a wake-up.
const FEED_AGAIN: Duration = Duration::from_secs(1);

// === the feed ===

/// Tells who waits for changes of which contract that there are some.
#[derive(Clone, Debug)]
pub struct Feed {
    store: Store,
    last: watch::Receiver<i64>,
    watched: Arc<Mutex<HashMap<ContractId, watch::Sender<i64>>>>,
}

/// Somebody who waits for changes of a contract.
#[derive(Debug)]
pub struct Subscription {
    contract: ContractId,
    changes: watch::Receiver<i64>,
    watched: Arc<Mutex<HashMap<ContractId, watch::Sender<i64>>>>,
}

impl Feed {
    /// A feed of this ledger's changes.
    pub fn new(store: Store, ledger: &Ledger) -> Self {
        Self { store, last: ledger.last(), watched: Arc::default() }
    }

    /// Waits for changes of this contract: all that are committed from now on.
    pub fn subscribe(&self, contract: ContractId) -> Subscription {
        let changes = lock(&self.watched).entry(contract).or_default().subscribe();
        Subscription { contract, changes, watched: Arc::clone(&self.watched) }
    }

    /// Reads which contracts changed and wakes who waits for them, until the shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let mut last = self.last.clone();
        let mut position = *last.borrow_and_update();
        let work = async {
            loop {
                if last.changed().await.is_err() {
                    // The ledger has ended, which only the end of the server makes it do.
                    shutdown.soft.cancelled().await;
                    return;
                }
                let newest = *last.borrow_and_update();
                // Nobody waits: nobody needs to know.
                if lock(&self.watched).is_empty() {
                    position = newest;
                    continue;
                }
                while position < newest {
                    match self.wake_after(position).await {
                        Ok(Some(seen)) => position = seen,
                        Ok(None) => position = newest,
                        Err(error) => {
                            tracing::warn!(error = wire::status::chain(&error), "the event log cannot be read; again");
                            tokio::time::sleep(FEED_AGAIN).await;
                        }
                    }
                }
            }
        };
        tokio::select! {
            () = work.instrument(tracing::info_span!("feed")) => {}
            () = shutdown.soft.cancelled() => {}
        }
    }

    /// Wakes who waits for what a portion of the log is about. Answers where the portion ends.
    async fn wake_after(&self, position: i64) -> Result<Option<i64>, store::Error> {
        let mut tx = self.store.read().await?;
        let events = tx.events_places(position, FEED_PORTION).await?;
        tx.rollback().await?;
        let watched = lock(&self.watched);
        for (sequence, contract) in &events {
            if let Some(sender) = watched.get(contract) {
                sender.send_replace(*sequence);
            }
        }
        Ok(events.last().map(|(sequence, _)| *sequence))
    }
}

impl Subscription {
    /// Returns when something may have changed since the last time.
    pub async fn changed(&mut self) {
        // The sender stays as long as somebody subscribes.
        let _ = self.changes.changed().await;
    }

    /// Whatever has changed until now is about to be looked at.
    pub fn mark(&mut self) {
        self.changes.mark_unchanged();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut watched = lock(&self.watched);
        // This one still counts; new ones come only through the map, which is locked.
        if watched.get(&self.contract).is_some_and(|sender| sender.receiver_count() <= 1) {
            watched.remove(&self.contract);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === watching ===

impl Api {
    /// Watches a contract.
    pub(super) async fn open_contract_watch(
        &self,
        reader: Reader,
        request: pb::WatchContractRequest,
    ) -> ApiResult<Answers<pb::WatchContractResponse>> {
        let mut tx = self.read().await?;
        let contract = find_contract(&mut tx, reader, &request.contract_id).await?.id;
        let after = resume(&mut tx, contract.0, &request.resume_token).await?;
        drop(tx);
        let changes = self.feed.subscribe(contract);
        let api = self.clone();
        let until_end = request.until_end;
        self.stream(move |sink| async move {
            let position = match after {
                Some(after) => after,
                None => api.snapshot(&sink, reader, contract).await?,
            };
            let watch = Watch { api, reader, contract, task: None, changes, until_end };
            watch.run(position, &sink).await
        })
    }

    /// Watches a task.
    pub(super) async fn open_task_watch(
        &self,
        reader: Reader,
        request: pb::WatchTaskRequest,
    ) -> ApiResult<Answers<pb::WatchTaskResponse>> {
        let mut tx = self.read().await?;
        let task = find_task(&mut tx, reader, "task_id", &request.task_id).await?;
        let (id, contract) = (task.id, task.contract);
        let after = resume(&mut tx, id.0, &request.resume_token).await?;
        drop(tx);
        let changes = self.feed.subscribe(contract);
        let api = self.clone();
        let until_end = request.until_end;
        self.stream(move |sink| async move {
            let position = match after {
                Some(after) => after,
                None => {
                    let mut tx = api.read().await?;
                    let position = tx.events_last().await?;
                    let task = find_task(&mut tx, reader, "task_id", &id.to_string()).await?;
                    let tasks = std::slice::from_ref(&task);
                    let around = Surroundings::load(&api, &mut tx, reader.owner, tasks, Detail::Full).await?;
                    drop(tx);
                    let kind = Some(watch_task_response::Kind::Task(around.view(&task)));
                    let resume_token = page::resume_token(id.0, position);
                    sink.send(pb::WatchTaskResponse { kind, resume_token }).await?;
                    position
                }
            };
            let watch = Watch { api, reader, contract, task: Some(id), changes, until_end };
            watch.run(position, &sink).await
        })
    }

    /// Reads tasks of a snapshot in pieces, until there are enough of them to send. Answers whether those were the last.
    async fn snapshot_part(
        &self,
        tx: &mut Tx,
        reader: Reader,
        filter: &mut TaskFilter,
        pieces: &mut Vec<Kind>,
    ) -> Result<bool, End> {
        let (mut tasks, mut bytes, mut total) = (Vec::new(), 0, 0);
        loop {
            let found = tx.tasks_list(filter, SNAPSHOT_PORTION).await?;
            let around = Surroundings::load(self, tx, reader.owner, &found, Detail::Brief).await?;
            for task in &found {
                let mut view = around.view(task);
                if let Some(spec) = &mut view.spec {
                    spec.plan.clear();
                    spec.description.clear();
                    spec.setup_command.clear();
                }
                bytes += view.encoded_len();
                tasks.push(view);
                if bytes > PIECE_BYTES {
                    total += std::mem::take(&mut bytes);
                    pieces.push(Kind::Tasks(pb::TaskList { tasks: std::mem::take(&mut tasks) }));
                }
            }
            if let Some(last) = found.last() {
                filter.after = Some(last.id);
            }
            let is_last = (found.len() as i64) < SNAPSHOT_PORTION;
            if is_last || total > SNAPSHOT_BYTES {
                if !tasks.is_empty() {
                    pieces.push(Kind::Tasks(pb::TaskList { tasks }));
                }
                return Ok(is_last);
            }
        }
    }

    /// Sends a contract and its tasks as they are. Answers the last change that is in it.
    ///
    /// Plans, descriptions and setup commands are left out: a watch is about what changes, and GetTask has them.
    async fn snapshot(
        &self,
        sink: &Sink<pb::WatchContractResponse>,
        reader: Reader,
        contract: ContractId,
    ) -> Result<i64, End> {
        let mut tx = self.read().await?;
        let position = tx.events_last().await?;
        let shown = find_contract(&mut tx, reader, &contract.to_string()).await?;
        let shown = explain::contract_view(&mut tx, &shown).await?;
        let mut pieces = vec![Kind::Contract(shown)];
        let mut filter =
            TaskFilter { owner: reader.owner, contract: Some(contract), statuses: None, after: None, hidden: true };
        loop {
            let is_last = self.snapshot_part(&mut tx, reader, &mut filter, &mut pieces).await?;
            drop(tx);
            for kind in pieces.drain(..) {
                sink.send(pb::WatchContractResponse { kind: Some(kind), resume_token: String::new() }).await?;
            }
            if is_last {
                break;
            }
            tx = self.read().await?;
        }
        let kind = Some(Kind::SnapshotComplete(pb::SnapshotComplete {}));
        let resume_token = page::resume_token(contract.0, position);
        sink.send(pb::WatchContractResponse { kind, resume_token }).await?;
        Ok(position)
    }
}

/// The answer of a watch that tells of a change.
trait FromChange: Send + 'static {
    fn from_change(change: pb::Change, resume_token: String) -> Self;
}

impl FromChange for pb::WatchContractResponse {
    fn from_change(change: pb::Change, resume_token: String) -> Self {
        Self { kind: Some(Kind::Change(change)), resume_token }
    }
}

impl FromChange for pb::WatchTaskResponse {
    fn from_change(change: pb::Change, resume_token: String) -> Self {
        Self { kind: Some(watch_task_response::Kind::Change(change)), resume_token }
    }
}

/// One watch, after its snapshot.
struct Watch {
    api: Api,
    reader: Reader,
    contract: ContractId,
    /// Only of this task.
    task: Option<TaskId>,
    changes: Subscription,
    until_end: bool,
}

impl Watch {
    /// Sends every change after `position`, and waits for more.
    async fn run<T: FromChange>(mut self, mut position: i64, sink: &Sink<T>) -> Result<(), End> {
        let watched = self.task.map_or(self.contract.0, |task| task.0);
        loop {
            self.changes.mark();
            let (found, is_over) = self.look(position).await?;
            for change in &found {
                position = change.sequence;
                let resume_token = page::resume_token(watched, position);
                sink.send(T::from_change(wire::event::change(change), resume_token)).await?;
            }
            if (found.len() as i64) < PORTION {
                if is_over {
                    return Ok(());
                }
                self.changes.changed().await;
            }
        }
    }

    /// Changes after `position`, and whether what is watched has ended, at the same instant.
    async fn look(&self, position: i64) -> ApiResult<(Vec<Change>, bool)> {
        let mut tx = self.api.read().await?;
        let found = match self.task {
            Some(task) => tx.events_of_task(task, position, PORTION).await,
            None => tx.events_of_contract(self.contract, position, PORTION).await,
        };
        let found = found.map_err(store_error)?;
        let is_over = self.until_end && self.is_over(&mut tx).await?;
        Ok((found, is_over))
    }

    async fn is_over(&self, tx: &mut Tx) -> ApiResult<bool> {
        if let Some(task) = self.task {
            let briefs = tx.briefs_fetch(&[task]).await.map_err(store_error)?;
            return Ok(briefs.first().is_none_or(|brief| brief.status.is_final()));
        }
        match tx.contract_fetch(self.reader.owner, self.contract).await.map_err(store_error)? {
            Some(contract) => has_ended(tx, &contract).await,
            // Forgotten, which only what has ended is.
            None => Ok(true),
        }
    }
}

/// Nothing of the contract changes any more by itself.
async fn has_ended(tx: &mut Tx, contract: &Contract) -> ApiResult<bool> {
    if contract.counts.unfinished() > 0 && contract.status() == ContractStatus::Cancelled {
        // Cancelled, and its tasks are following.
        return Ok(false);
    }
    let is_stuck = explain::stuck(tx, std::slice::from_ref(contract)).await?.contains(&contract.id);
    Ok(is_stuck || contract.status() != ContractStatus::Active)
}

/// Where a watch goes on; `None` to begin with a snapshot.
async fn resume(tx: &mut Tx, watched: uuid::Uuid, token: &str) -> ApiResult<Option<i64>> {
    let Some(after) = page::resume_after(watched, token)? else { return Ok(None) };
    let forgotten = tx.events_forgotten().await.map_err(store_error)?;
    let last = tx.events_last().await.map_err(store_error)?;
    if after < forgotten || after > last.max(forgotten) {
        return Err(ApiError::new(
            Reason::ResumeTokenExpired,
            "the changes after this resume_token are no longer kept; leave it out to begin with a snapshot",
        ));
    }
    Ok(Some(after))
}

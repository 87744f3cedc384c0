//! The rpcs. Thin: check, decide, record, wake.
//!
//! ```text
//!   contract, task, daemon_admin, key     who calls -> wire: form -> ledger (writes) or store (reads) -> wire -> answer
//!   explain                               what stands around tasks, to say why they stand where they stand
//!   checkpoint, verbs                     what there is of a task's work, and what people do about a task
//!   analyze                               what plans and paths suggest
//!   watch                                 snapshot, then changes, from the event log
//!   output                                chunks in from daemons (files go to `uploads`), bytes out to readers
//! ```
//!
//! Nothing here changes anything itself: writes are operations of the ledger, in which request ids and etags are looked at in
//! the transaction that acts on them. Reads come from one short transaction each. Streams run beside their handlers, in a
//! bounded number, each with a bounded channel, and end when the server drains: a client goes on from its resume token.

mod analyze;
mod checkpoint;
mod contract;
mod daemon_admin;
mod explain;
mod key;
mod output;
mod task;
mod verbs;
mod watch;

use std::{ops::Deref, sync::Arc};

use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use uuid::Uuid;

pub use self::watch::Feed;
use super::{
    api_error,
    auth::{Auth, Caller, Reader},
    blobs::Blobs,
    ledger::{Ledger, Op, Reply, Request, op::Repeat},
    output::OutputStore,
    session,
    uploads::Uploads,
};
use crate::{
    domain::{
        OwnerId, TaskId,
        draft::{NewContract, NewTask, NewTasks},
        task::Task,
    },
    runtime::lifecycle::Shutdown,
    store::{self, Store, Tx},
    wire::{
        check::fingerprint,
        common,
        status::{ApiError, ApiResult, Reason},
    },
};

/// Watches and followers at a time, and as many uploads apart from them, so that readers cannot keep daemons out. Each costs
/// a channel and a task. More are told to come back.
const MAX_STREAMS: usize = 4_096;
/// Answers of a stream that wait for its client. A client that does not read holds up its own stream only.
const STREAM_BUFFER: usize = 16;

/// All services; clones share it.
#[derive(Clone, Debug)]
pub struct Api(Arc<Shared>);

/// What the services stand on.
#[derive(Debug)]
pub struct Shared {
    /// Where everything is read.
    pub store: Store,
    /// Where everything is changed.
    pub ledger: Ledger,
    /// Who calls.
    pub auth: Auth,
    /// What agents wrote.
    pub output: OutputStore,
    /// Checkpoints and results on their way.
    pub files: Uploads,
    /// What is too big for a table.
    pub blobs: Blobs,
    /// What sessions of daemons need.
    pub host: session::Host,
    /// Who waits for changes of what.
    pub feed: Feed,
    /// The end of the server.
    pub shutdown: Shutdown,
    readers: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
}

impl Deref for Api {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Where the answers of a streaming rpc come from.
pub type Answers<T> = ReceiverStream<Result<T, Status>>;

/// Bytes of plans that are read at once, in less than a millisecond; with more a thread would be missed by others.
const PLANS_AT_ONCE: usize = 64 << 10;

/// Finds what the plans of new tasks touch. The ledger would, but everybody waits for that, and it takes longer than to make the tasks.
async fn with_plans_read(mut op: Op) -> ApiResult<Op> {
    let (Op::CreateContract(NewContract { tasks, .. }) | Op::CreateTasks(NewTasks { tasks, .. })) = &mut op else {
        return Ok(op);
    };
    if tasks.iter().map(|task| task.spec.plan.len()).sum::<usize>() <= PLANS_AT_ONCE {
        tasks.iter_mut().for_each(NewTask::read_plan);
        return Ok(op);
    }
    let mut unread = std::mem::take(tasks);
    let read = move || {
        unread.iter_mut().for_each(NewTask::read_plan);
        unread
    };
    *tasks = tokio::task::spawn_blocking(read).await.map_err(ApiError::internal)?;
    Ok(op)
}

impl Api {
    /// Services on these. `Feed::run` and `OutputStore::run` must be run beside them.
    pub fn new(
        store: Store,
        auth: Auth,
        output: OutputStore,
        files: Uploads,
        blobs: Blobs,
        host: session::Host,
    ) -> Self {
        let (ledger, shutdown) = (host.ledger.clone(), host.shutdown.clone());
        let feed = Feed::new(store.clone(), &ledger);
        let (readers, uploads) = (Arc::new(Semaphore::new(MAX_STREAMS)), Arc::new(Semaphore::new(MAX_STREAMS)));
        Self(Arc::new(Shared { store, ledger, auth, output, files, blobs, host, feed, shutdown, readers, uploads }))
    }

    /// A read transaction.
    async fn read(&self) -> ApiResult<Tx> {
        self.store.read().await.map_err(store_error)
    }

    /// Does an operation for a caller.
    async fn submit(&self, caller: &Caller, repeat: Option<Repeat>, op: Op) -> ApiResult<Reply> {
        let op = with_plans_read(op).await?;
        self.ledger.submit(Request { actor: caller.actor(), repeat, op }).await.map_err(api_error)
    }

    /// Opens a stream of answers to a reader.
    fn stream<T, W, F>(&self, work: W) -> ApiResult<Answers<T>>
    where
        T: Send + 'static,
        W: FnOnce(Sink<T>) -> F,
        F: Future<Output = Result<(), End>> + Send + 'static,
    {
        self.stream_among(&self.readers, work)
    }

    /// Opens a stream of answers: `work` runs until it returns, its client goes or the server drains.
    fn stream_among<T, W, F>(&self, among: &Arc<Semaphore>, work: W) -> ApiResult<Answers<T>>
    where
        T: Send + 'static,
        W: FnOnce(Sink<T>) -> F,
        F: Future<Output = Result<(), End>> + Send + 'static,
    {
        let permit = Arc::clone(among)
            .try_acquire_owned()
            .map_err(|_| ApiError::new(Reason::Overloaded, format!("{MAX_STREAMS} streams are open; try again")))?;
        let (out, answers) = mpsc::channel(STREAM_BUFFER);
        let sink = Sink { out: out.clone(), _permit: permit };
        let soft = self.shutdown.soft.clone();
        let work = work(sink);
        self.shutdown.spawn(async move {
            let end = tokio::select! {
                // A stream that is at its end says so, also while the server drains.
                biased;
                end = work => end,
                () = soft.cancelled() => Err(End::Failed(ApiError::shutting_down())),
                () = out.closed() => Err(End::Gone),
            };
            if let Err(End::Failed(error)) = end {
                // A client that does not read does not get to know; it will when it asks again.
                let _ = out.try_send(Err(error.into()));
            }
        });
        Ok(ReceiverStream::new(answers))
    }
}

/// Where a stream's answers go.
struct Sink<T> {
    out: mpsc::Sender<Result<T, Status>>,
    _permit: OwnedSemaphorePermit,
}

impl<T> Sink<T> {
    /// Waits until the client has room for it.
    async fn send(&self, answer: T) -> Result<(), End> {
        self.out.send(Ok(answer)).await.map_err(|_| End::Gone)
    }

    /// Ends the stream with an error, from beside it.
    async fn fail(&self, error: ApiError) -> Result<(), End> {
        self.out.send(Err(error.into())).await.map_err(|_| End::Gone)
    }
}

/// Why a stream ends before its work is done.
enum End {
    /// Its client has gone.
    Gone,
    /// Something failed.
    Failed(ApiError),
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

impl From<store::Error> for End {
    fn from(error: store::Error) -> Self {
        Self::Failed(store_error(error))
    }
}

/// What the store could not do, as a caller hears it.
fn store_error(error: store::Error) -> ApiError {
    match error {
        store::Error::Unavailable { .. } => ApiError::unavailable(error),
        other => ApiError::internal(other),
    }
}

/// What makes a write repeatable; `None` when the client did not ask for it.
fn repeat(owner: OwnerId, request_id: &str, method: &str, request: &impl Message) -> Option<Repeat> {
    (!request_id.is_empty()).then(|| Repeat { owner, id: request_id.to_owned(), hash: fingerprint(method, request) })
}

/// An answer of the ledger that does not belong to what was asked.
fn unexpected(reply: &Reply) -> ApiError {
    ApiError::internal(format!("the ledger answered something else: {reply:?}"))
}

/// Digits of a short id.
const SHORT_ID: usize = 12;

/// The task that somebody names by id or short id, if they may read it.
async fn find_task(tx: &mut Tx, reader: Reader, field: &str, text: &str) -> ApiResult<Task> {
    let missing = || {
        let shown = common::shown(text);
        ApiError::new(Reason::TaskNotFound, format!("there is no task `{shown}`")).with("task_id", shown)
    };
    let is_short = text.len() == SHORT_ID && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let task = if is_short {
        let mut found = tx.tasks_short(reader.owner, &text.to_ascii_lowercase()).await.map_err(store_error)?;
        if found.len() > 1 {
            return Err(ApiError::new(
                Reason::AmbiguousId,
                format!("`{text}` is the short id of several tasks; use the full one"),
            ));
        }
        found.pop()
    } else {
        let id: TaskId = common::id(field, text)?;
        tx.task_fetch(reader.owner, id).await.map_err(store_error)?
    };
    let task = task.ok_or_else(missing)?;
    reader.check(task.contract)?;
    Ok(task)
}

/// The id of a task that somebody wants to change, by id or short id. That it exists is the ledger's to find out.
async fn find_task_id(api: &Api, owner: OwnerId, text: &str) -> ApiResult<TaskId> {
    match Uuid::try_parse(text) {
        Ok(id) if text.len() > SHORT_ID => Ok(TaskId(id)),
        _ => {
            let mut tx = api.read().await?;
            Ok(find_task(&mut tx, Reader { owner, only: None }, "task_id", text).await?.id)
        }
    }
}

#[cfg(test)]
mod tests;

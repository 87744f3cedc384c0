//! What can be asked of the ledger: everything that changes a contract, task, attempt, daemon, command or key. Reading this
//! file explains the subsystem.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::domain::{
    AttemptId, AttemptRef, DaemonId, Epoch, KeyId, OwnerId, Timestamp,
    checkpoint::Checkpoint,
    contract::Contract,
    daemon::{Daemon, Hello},
    id::{ContractId, TaskId},
    key::{Key, KeyKind},
    order::{Answer, Command, OrderKind},
    reconcile::Verdict,
    report::{Message, MessageOutcome, Report},
    task::Task,
    transition::RetryFrom,
};

pub use crate::domain::draft::{ContractUpdate, Fork, NewContract, NewTask, NewTasks, TaskUpdate};

/// An operation by somebody.
#[derive(Debug)]
pub struct Request {
    /// Who: `key:<id>`, `task:<id>`, `daemon:<id>`, `server`.
    pub actor: String,
    /// Makes it repeatable.
    pub repeat: Option<Repeat>,
    /// What.
    pub op: Op,
}

/// A client-made id, kept 24 h with a hash of the body: the same id with the same body answers what was made first, with
/// another body it is refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repeat {
    /// Whose ids these are.
    pub owner: OwnerId,
    /// At most 128 bytes.
    pub id: String,
    /// SHA-256 of the method's name and the encoded request.
    pub hash: [u8; 32],
}

/// What is to be done. Answers are in [`Reply`].
#[derive(Debug)]
pub enum Op {
    /// [`Reply::Created`].
    CreateContract(NewContract),
    /// Adds tasks to a contract, or to a new anonymous one. [`Reply::Created`].
    CreateTasks(NewTasks),
    /// [`Reply::Contract`].
    UpdateContract(ContractUpdate),
    /// [`Reply::Contract`].
    HoldContract { owner: OwnerId, contract: ContractId, reason: String },
    /// [`Reply::Contract`].
    ReleaseContract { owner: OwnerId, contract: ContractId },
    /// [`Reply::Contract`].
    CancelContract { owner: OwnerId, contract: ContractId, reason: String },
    /// [`Reply::Task`].
    UpdateTask(Box<TaskUpdate>),
    /// `add` and `remove` hold ids or names of the task's contract. [`Reply::Task`].
    ChangeDependencies { owner: OwnerId, task: TaskId, add: Vec<String>, remove: Vec<String> },
    /// [`Reply::Task`].
    CancelTask { owner: OwnerId, task: TaskId, reason: String, cascade: bool },
    /// [`Reply::Task`].
    RetryTask { owner: OwnerId, task: TaskId, from: RetryFrom },
    /// Ends a live attempt and goes on with its work elsewhere, on that daemon if it is named. [`Reply::Task`].
    ReassignTask { owner: OwnerId, task: TaskId, to: Option<DaemonId> },
    /// Ends every live attempt without its daemon's word. [`Reply::Task`].
    ForceRelease { owner: OwnerId, task: TaskId, reason: String },
    /// [`Reply::Task`].
    TakeCheckpoint { owner: OwnerId, task: TaskId },
    /// [`Reply::Task`]: the new one.
    ForkTask(Box<Fork>),
    /// [`Reply::Task`].
    DismissTask { owner: OwnerId, task: TaskId },
    /// [`Reply::Daemon`].
    Drain { owner: OwnerId, daemon: DaemonId, draining: bool },
    /// Makes the owner if there is none of that name. [`Reply::Key`].
    CreateKey { kind: KeyKind, owner: Option<String>, label: String, hash: [u8; 32] },
    /// [`Reply::Key`].
    RevokeKey { key: KeyId },

    /// A daemon has come. [`Reply::Attached`].
    Attach(Box<Attach>),
    /// The daemon has executed the verdicts and sent what it owed: it may be given work. [`Reply::Done`].
    Ready { daemon: DaemonId, epoch: Epoch },
    /// What a heartbeat changed. [`Reply::Done`].
    Accepting { daemon: DaemonId, epoch: Epoch, not_accepting: String },
    /// Coarse times of last hearing. [`Reply::Done`].
    Seen(Vec<(DaemonId, Epoch, Timestamp)>),
    /// A daemon answered a command. [`Reply::Done`].
    Answered { daemon: DaemonId, epoch: Epoch, attempt: AttemptRef, of: OrderKind, sequence: i64, answer: Answer },
    /// A daemon reported. [`Reply::Message`].
    Message { daemon: DaemonId, message: Message },
    /// The server has a checkpoint, durably; its chain may hold only ids where it builds on others. [`Reply::Done`].
    CheckpointStored(Box<Checkpoint>),
    /// The server has the pack of an attempt's result, durably, as this blob. [`Reply::Done`].
    ResultStored { attempt: AttemptRef, blob: String },
    /// A daemon has been quiet for lost-after. [`Reply::Done`].
    DaemonLost { daemon: DaemonId, epoch: Epoch },
    /// Whatever a time has come for. [`Reply::Swept`].
    Sweep,
}

impl Op {
    /// Nobody waits to hear what becomes of it, and nothing is to be done about it. A checkpoint that failed is waited for: somebody
    /// has asked for it.
    pub(super) fn rides(&self) -> bool {
        match self {
            Self::Seen(_) | Self::Answered { answer: Answer::Persisted, .. } => true,
            Self::Message { message, .. } => {
                matches!(message.report, Report::Started { .. } | Report::Progress(_) | Report::Warning { .. })
            }
            _ => false,
        }
    }

    /// The attempt that a daemon has something to say of.
    pub(super) fn attempt(&self) -> Option<AttemptId> {
        match self {
            Self::Answered { attempt, .. } | Self::ResultStored { attempt, .. } => Some(attempt.id),
            Self::Message { message, .. } => Some(message.attempt.id),
            Self::CheckpointStored(checkpoint) => Some(checkpoint.attempt.id),
            _ => None,
        }
    }

    /// It makes no difference whether it is done before or after what rides, unless that is of the same attempt.
    pub(super) fn overtakes(&self) -> bool {
        matches!(self, Self::CreateContract(_) | Self::CreateTasks(_)) || self.attempt().is_some()
    }
}

/// A daemon that has come.
#[derive(Debug)]
pub struct Attach {
    /// Whose key it came with.
    pub owner: OwnerId,
    /// That key.
    pub key: KeyId,
    /// How it introduced itself.
    pub hello: Hello,
    /// Where its session listens; registered in the same step, so that no command is missed.
    pub outbox: mpsc::Sender<Push>,
}

/// What the ledger, or another session, tells a session.
#[derive(Clone, Debug)]
pub enum Push {
    /// Send this.
    Command(Arc<Command>),
    /// Another process with the same identity has attached.
    Superseded,
    /// The key was revoked.
    Unauthenticated,
}

/// What became of an operation.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A contract with the tasks made, in the order asked, and what each of them waits for: dependent and dependency. Without
    /// these if it was asked before, and the tasks are as they are now.
    Created { contract: Box<Contract>, tasks: Vec<Task>, edges: Option<Vec<(TaskId, TaskId)>> },
    /// The contract after the change.
    Contract(Box<Contract>),
    /// The task after the change.
    Task(Box<Task>),
    /// The daemon after the change.
    Daemon(Box<Daemon>),
    /// The key.
    Key(Box<Key>),
    /// The session is open.
    Attached { epoch: Epoch, verdicts: Vec<(AttemptRef, Verdict)>, unanswered: Vec<Command> },
    /// The report was judged.
    Message(MessageOutcome),
    /// What is due next, if anything is.
    Swept { next: Option<Timestamp>, more: bool },
    /// Nothing to say.
    Done,
}

/// Why an operation was not done. Nothing of it was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no such thing, or it is somebody else's.
    #[error("no {kind} `{id}`")]
    NotFound {
        /// What kind of thing.
        kind: &'static str,
        /// How it was named.
        id: String,
    },
    /// Fields are wrong; all of them are named.
    #[error("{}", .0.first().map_or("invalid", |(_, what)| what))]
    Invalid(Vec<(String, String)>),
    /// It makes no sense where the thing stands.
    #[error("{0}")]
    Precondition(String),
    /// The thing has changed since it was read.
    #[error("the {kind} has changed since etag {given} was read: it is at {current}")]
    Etag {
        /// What kind of thing.
        kind: &'static str,
        /// What was given.
        given: i64,
        /// What it is.
        current: i64,
    },
    /// The request id was used with another body.
    #[error("request id `{0}` was used before with another request")]
    RequestIdReused(String),
    /// A name that must be unique is taken.
    #[error("{0}")]
    Exists(String),
    /// The daemon named cannot take the task; everything it lacks is named.
    #[error("{0}")]
    Unfit(String),
    /// The daemon's key belongs to somebody else.
    #[error("{0}")]
    Forbidden(String),
    /// The session that says so is not the current one.
    #[error("session {0} is not the current one")]
    StaleSession(Epoch),
    /// This operation alone makes the transaction fail; it can never be stored.
    #[error("cannot be stored: {0}")]
    Unstorable(String),
    /// The database cannot be reached; the same again later may work.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
}

//! What the server tells a daemon to do with an attempt. Orders are in the server's database until answered, and rows in the
//! daemon's journal once accepted, so they are plain data with a stable JSON form.
//!
//! An order to start is most of what the database writes for a task that only waits to be answered, and nearly all of it is there
//! already, in the rows of its task, which nobody can change meanwhile, and of its attempt. So what is written is what those do
//! not say ([`OutstandingSpawn`], in the state of the attempt), and an order that is sent again is made from all of them: the same to
//! the letter, because the daemon may have the first one after all, and holds one against the other. Other orders are rows of
//! their own.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    analysis::Category,
    attempt::Attempt,
    checkpoint::Link,
    id::{AttemptRef, CheckpointId, CommandId, ContractId, DaemonId, Epoch, TaskId},
    is_default,
    task::{Task, TaskStatus},
};

/// From TERM to KILL, unless something says otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// What a setup command has.
pub const DEFAULT_SETUP_TIMEOUT: Duration = Duration::from_secs(600);

/// A durable instruction, numbered per daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Per daemon, from 1, only grows.
    pub sequence: i64,
    /// The same id always means the same content.
    pub id: CommandId,
    /// Session it is sent in; stamped when sent.
    pub epoch: Epoch,
    /// Attempt it concerns.
    pub attempt: AttemptRef,
    /// What to do.
    pub order: Order,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Order {
    /// Start the attempt.
    Spawn(Box<Spawn>),
    /// End the attempt: TERM, grace, KILL, sweep, report.
    Cancel {
        /// Why, for people.
        reason: String,
        /// From TERM to KILL.
        grace: Duration,
    },
    /// Take a checkpoint now, and bring it to the server.
    Checkpoint,
}

impl Order {
    /// Its kind.
    pub fn kind(&self) -> OrderKind {
        match self {
            Self::Spawn(_) => OrderKind::Spawn,
            Self::Cancel { .. } => OrderKind::Cancel,
            Self::Checkpoint => OrderKind::Checkpoint,
        }
    }
}

/// An order without what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrderKind {
    /// Start the attempt.
    Spawn,
    /// End the attempt.
    Cancel,
    /// Take a checkpoint.
    Checkpoint,
}

/// Everything a daemon needs to start an attempt, nothing it must look up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// Contract of the task.
    pub contract: ContractId,
    /// Its name.
    pub contract_name: String,
    /// Name of the task.
    pub name: String,
    /// What the agent is told.
    pub plan: String,
    /// Agent profile.
    pub agent: String,
    /// Model; `None`: the agent's default.
    pub model: Option<String>,
    /// URL or absolute path.
    pub repository: String,
    /// Branch, tag or commit; empty for HEAD.
    pub base_branch: String,
    /// Branch to make.
    pub branch: String,
    /// Ref to set to the result.
    pub result_ref: String,
    /// Every dependency.
    pub dependencies: Vec<DependencyResult>,
    /// Run by `sh -eu` before the agent; empty for none.
    pub setup_command: String,
    /// What it has.
    pub setup_timeout: Duration,
    /// Globs to copy from the repository's own checkout.
    pub copy_files: Vec<String>,
    /// What the attempt has, from the agent's start.
    pub wall_time: Option<Duration>,
    /// From TERM to KILL.
    pub grace: Duration,
    /// Parent task.
    pub parent: Option<TaskId>,
    /// Distance from a task without a parent.
    pub depth: u32,
    /// Key with which the agent may speak to the server about its own task.
    pub task_key: String,
    /// Other unfinished tasks of the contract, for the sanity check; at most 16.
    pub contract_tasks: Vec<ContractTask>,
    /// How often to checkpoint the work; zero: not while the agent runs.
    #[serde(default)]
    pub checkpoint_every: Duration,
    /// Checkpoint the work when the attempt ends without a result.
    #[serde(default)]
    pub final_checkpoint: bool,
    /// What to go on from; `None`: the base and the dependencies' results.
    #[serde(default)]
    pub resume: Option<Resume>,
}

/// What an order to start says beyond its task and its attempt, as it was when it was decided, until its daemon
/// has answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutstandingSpawn {
    /// Of the command.
    pub sequence: i64,
    /// [`Spawn::contract_name`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub contract_name: String,
    /// [`Spawn::dependencies`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub dependencies: Vec<DependencyResult>,
    /// [`Spawn::contract_tasks`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub contract_tasks: Vec<ContractTask>,
    /// [`Spawn::checkpoint_every`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub checkpoint_every: Duration,
    /// [`Spawn::final_checkpoint`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub final_checkpoint: bool,
    /// [`Spawn::resume`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub resume: Option<Resume>,
}

impl Command {
    /// The command to start an attempt that its daemon has not answered; `None` once it has, and where programs before this one have
    /// made it a row of its own. `task_key` is the attempt's, `epoch` of the session it is sent in.
    ///
    /// There is one for each attempt, so its id is the attempt's.
    pub fn spawn(attempt: &Attempt, task: &Task, task_key: String, epoch: Epoch) -> Option<Self> {
        let outstanding = attempt.outstanding()?;
        let spec = &task.spec;
        let spawn = Spawn {
            contract: attempt.contract,
            contract_name: outstanding.contract_name.clone(),
            name: spec.name.clone(),
            plan: spec.plan.clone(),
            agent: spec.agent.clone(),
            model: (!spec.model.is_empty()).then(|| spec.model.clone()),
            repository: spec.repository.clone(),
            base_branch: spec.base_branch.clone(),
            branch: attempt.branch.clone(),
            result_ref: result_ref(task.id, attempt.number),
            dependencies: outstanding.dependencies.clone(),
            setup_command: spec.setup_command.clone(),
            setup_timeout: DEFAULT_SETUP_TIMEOUT,
            copy_files: spec.copy_files.clone(),
            wall_time: attempt.wall_time,
            grace: DEFAULT_GRACE,
            parent: spec.parent,
            depth: task.depth,
            task_key,
            contract_tasks: outstanding.contract_tasks.clone(),
            checkpoint_every: outstanding.checkpoint_every,
            final_checkpoint: outstanding.final_checkpoint,
            resume: outstanding.resume.clone(),
        };
        let (id, attempt) = (CommandId(attempt.id.0), attempt.reference());
        Some(Self { sequence: outstanding.sequence, id, epoch, attempt, order: Order::Spawn(Box::new(spawn)) })
    }
}

/// The ref that holds what an attempt has made in its repository. Each attempt has its own: one that is cut off from us, but not
/// from its repository, may end well when another's result counts already, and must not take that one's place. The ref may be
/// all that keeps the commit there.
pub fn result_ref(task: TaskId, number: u32) -> String {
    format!("refs/makima/results/{task}-{number}")
}

/// Work that an attempt goes on from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// A worktree on this daemon; preferred to the checkpoint, and where it is gone the attempt ends as worktree lost.
    pub here: Option<EarlierWorktree>,
    /// Files of the checkpoint, the whole one first; empty where there is none.
    pub chain: Vec<Link>,
    /// Commit that the work had started from.
    pub base_commit: String,
    /// The agent's own session to go on with; empty for a new one, which is told what was done.
    pub session_id: String,
    /// That session goes on elsewhere as well: go on with a copy of it.
    pub fork_session: bool,
    /// Why the earlier attempt ended, for the agent.
    pub reason: String,
    /// The agent's last message there.
    pub last_message: String,
    /// What was done there.
    pub summary: String,
    /// Somebody chose the checkpoint, so none before it will do.
    #[serde(default)]
    pub chosen: bool,
}

impl Resume {
    /// The checkpoint to restore.
    pub fn checkpoint(&self) -> Option<CheckpointId> {
        self.chain.last().map(|link| link.id)
    }
}

/// A worktree in which an earlier attempt worked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierWorktree {
    /// That attempt.
    pub attempt: AttemptRef,
    /// Where it is.
    pub path: String,
}

/// One dependency, with what it made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DependencyResult {
    /// The task depended on.
    pub task: TaskId,
    /// Its name.
    pub name: String,
    /// Its status when the order was decided.
    pub status: TaskStatus,
    /// Its result commit; empty if it has none.
    pub commit: String,
    /// Ref that holds it.
    pub result_ref: String,
    /// Daemon that made it.
    pub daemon: Option<DaemonId>,
    /// Blob that holds it as a pack, for a repository that does not have it; empty for none.
    #[serde(default)]
    pub blob: String,
    /// SHA-256 of that blob, 64 hex digits.
    #[serde(default)]
    pub blob_sha256: String,
    /// How long it is.
    #[serde(default)]
    pub blob_bytes: i64,
}

/// Another task of the contract, as the sanity check sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContractTask {
    /// The task.
    pub task: TaskId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub status: TaskStatus,
    /// What it touches, lowest first.
    pub categories: Vec<Category>,
}

/// What a daemon answers to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// In the journal; it will be done whatever dies.
    Persisted,
    /// It will not be done.
    Rejected {
        /// Why, for people.
        reason: String,
        /// Another daemon, or this one later, may do better.
        retryable: bool,
        /// It counts against the task's retries.
        counts: bool,
    },
}

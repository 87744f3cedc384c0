//! What the server tells a daemon to do with an attempt. Orders are rows in the server's database until answered, and rows
//! in the daemon's journal once accepted, so they are plain data with a stable JSON form.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    analysis::Category,
    checkpoint::Link,
    id::{AttemptRef, CheckpointId, CommandId, ContractId, DaemonId, Epoch, TaskId},
    task::TaskStatus,
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
    /// Other unfinished tasks of the contract, for the sanity check; at most 100.
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

//! What a daemon tells the server about an attempt. Reports are rows in the daemon's journal until the server has answered,
//! so they are plain data with a stable JSON form.

use serde::{Deserialize, Serialize};

use super::{
    attempt::{Failure, TaskResult, Usage},
    id::{AttemptRef, JournalId},
    time::Timestamp,
};

/// A numbered report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Within the journal, from 1, without gaps.
    pub sequence: i64,
    /// The journal.
    pub journal: JournalId,
    /// Attempt it concerns.
    pub attempt: AttemptRef,
    /// When it was written, by the daemon's clock.
    pub at: Timestamp,
    /// What it says.
    pub report: Report,
}

/// What a report says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Report {
    /// The agent runs.
    Started {
        /// The worktree.
        worktree: String,
        /// The branch.
        branch: String,
        /// Commit it started from.
        base_commit: String,
        /// Version of the agent; empty if unknown.
        agent_version: String,
    },
    /// What the agent's events add up to so far.
    Progress(Progress),
    /// The attempt is over, no process of it is left, the worktree is at rest.
    Complete(Complete),
    /// After a restart: the agent is gone and left no exit record.
    RecoveryDetected {
        /// What the journal said.
        previous: InventoryState,
        /// The worktree is there, clean of damage.
        worktree_intact: bool,
        /// Where it is.
        worktree: String,
        /// A checkpoint is wanted.
        needs_patch: bool,
    },
    /// Something worth a look that stops nothing.
    Warning {
        /// For people.
        message: String,
    },
}

/// What the agent's events add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The agent's own session id; empty if unknown.
    pub agent_session_id: String,
    /// Used so far.
    pub usage: Usage,
    /// Its last message.
    pub last_message: String,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    /// With a result, or why not.
    pub outcome: Result<TaskResult, Failure>,
    /// What the agent said and used.
    pub progress: Progress,
    /// Bytes of output in all.
    pub output_bytes: i64,
    /// Exit code of the agent, if it exited by itself.
    pub exit_code: Option<i32>,
    /// Signal that ended it; 0 for none.
    pub signal: u32,
}

/// How far a daemon is with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InventoryState {
    /// In the journal, agent not started.
    Accepted,
    /// The agent runs, watched.
    Running,
    /// The agent has ended, the end is not reported yet.
    Ending,
    /// The terminal report is in the outbox.
    Reported,
    /// The agent is gone without an exit record.
    Interrupted,
}

/// One attempt a daemon knows of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryItem {
    /// The attempt.
    pub attempt: AttemptRef,
    /// How far it is.
    pub state: InventoryState,
    /// Its worktree; empty if there is none yet.
    pub worktree: String,
    /// The worktree is there and healthy.
    pub worktree_intact: bool,
}

/// What the server did with a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessageOutcome {
    /// It counts.
    Applied,
    /// It had counted before.
    AlreadyApplied,
    /// A newer attempt has its place.
    Fenced,
    /// It cannot be stored or understood.
    Invalid {
        /// Why, for people.
        detail: String,
    },
}

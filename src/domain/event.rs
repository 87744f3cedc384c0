//! The event log: what happened to contracts and tasks, in commit order. Watches are made of it.

use serde::{Deserialize, Serialize};

use super::{
    id::{ContractId, DaemonId, OwnerId, TaskId},
    is_default,
    task::TaskStatus,
    time::Timestamp,
};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Grows, with gaps; 0 until it is stored. Beside the document, where it is stored, as are the time, the contract and the
    /// task.
    #[serde(skip)]
    pub sequence: i64,
    /// When the server decided it.
    #[serde(skip)]
    pub at: Timestamp,
    /// Whose it is.
    pub owner: OwnerId,
    /// The contract.
    #[serde(skip, default = "super::id::beside")]
    pub contract: ContractId,
    /// The task; `None` for a change of the contract itself.
    #[serde(skip)]
    pub task: Option<TaskId>,
    /// What was seen.
    #[serde(flatten)]
    pub what: What,
}

/// What a change says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct What {
    /// A stable lowercase word: `task.created`, `task.assigned`, `task.started`, `task.done`, `contract.held`...
    pub event: String,
    /// The task's name.
    pub task_name: String,
    /// The version after the change, of the task, else of the contract.
    pub version: i64,
    /// The task's status after the change.
    #[serde(default, skip_serializing_if = "is_default")]
    pub status: Option<TaskStatus>,
    /// Attempt concerned; 0 for none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attempt: u32,
    /// Daemon concerned.
    #[serde(default, skip_serializing_if = "is_default")]
    pub daemon: Option<DaemonId>,
    /// That daemon's name; empty for none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub daemon_name: String,
    /// Fields that changed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fields: Vec<String>,
    /// By whom: `server`, `daemon:<id>`, `key:<id>`, `task:<id>`.
    pub actor: String,
    /// For people.
    #[serde(default, skip_serializing_if = "is_default")]
    pub detail: String,
}

//! Finding and ending what is left of an attempt.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::AttemptId;

/// Variable that marks every process of an attempt; its value is the attempt's id.
pub const MARKER: &str = "MAKIMA_ATTEMPT";

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose marker.
    pub attempt: AttemptId,
    /// The group the agent was started as, if it was.
    pub leader: Option<Leader>,
}

/// The first process of an agent's group, so that its number, used again by somebody else, is not taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Process and group id.
    pub pid: i32,
    /// Session.
    pub session: i32,
    /// Start time in clock ticks after boot.
    pub started: u64,
    /// The boot.
    pub boot: String,
}

/// Why a sweep did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Processes that do not die.
    #[error("processes {pids:?} do not die")]
    Unkillable {
        /// Which.
        pids: Vec<i32>,
    },
    /// The process table.
    #[error("read the process table")]
    Proc(#[source] std::io::Error),
}

/// Ends everything of the attempt: TERM, grace, KILL, until nothing is left. Answers how many processes there were.
pub async fn kill_all(target: &Target, grace: Duration) -> Result<usize, Error> {
    todo!("{target:?} {grace:?}")
}

/// Something of the attempt is alive.
pub async fn is_anything_alive(target: &Target) -> Result<bool, Error> {
    todo!("{target:?}")
}

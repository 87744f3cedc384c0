//! What daemon and shim say to each other: one JSON object a line. A daemon may be newer or older than a shim that lives, so
//! fields are only added, and each side says the version it speaks; version 1 is understood for as long as shims of it may live.

use serde::{Deserialize, Serialize};

use crate::daemon::attempt_dir::ExitRecord;

/// Version of this language.
pub const VERSION: u32 = 1;
/// Bytes of one line; input is cut into pieces below this.
pub const MAX_LINE: usize = 256 * 1024;
/// Bytes of agent input in one request: as JSON numbers they take up to four times the room.
pub const MAX_INPUT: usize = 32 * 1024;

/// `start.json`: the one start that is allowed in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Known to the daemon that asked and to the shim it asked.
    pub nonce: String,
    /// The shim has gone beyond the point of no return: the agent may have run.
    pub launched: bool,
}

/// The one line on the shim's standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// The agent runs, and the socket answers.
    Started,
    /// It does not, and nothing is left running.
    Failed {
        /// Why, for people.
        message: String,
    },
}

/// What the daemon says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// First of all.
    Hello {
        /// Version spoken.
        version: u32,
        /// As in `start.json`.
        nonce: String,
    },
    /// How is it?
    Status,
    /// End the agent.
    Terminate {
        /// From TERM to KILL.
        grace_ms: u64,
    },
    /// For the agent's standard input, where that is a pipe.
    Input {
        /// The bytes.
        bytes: Vec<u8>,
        /// Nothing follows.
        last: bool,
    },
}

/// What the shim says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reply {
    /// To `Hello`.
    Hello {
        /// Version spoken.
        version: u32,
        /// Its own.
        nonce: String,
        /// The agent is being ended.
        ending: bool,
    },
    /// To `Status`.
    Status {
        /// The agent is being ended.
        ending: bool,
        /// Processes of the agent that are alive.
        alive: usize,
    },
    /// Done, or taken in.
    Ok,
    /// Not done.
    Refused {
        /// Why, for people.
        message: String,
    },
    /// It is over; the last thing a shim says.
    Ended {
        /// As in `exit.json`.
        record: ExitRecord,
    },
}

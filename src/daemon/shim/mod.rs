//! The shim: a small single-threaded process between the daemon and an agent, so that the daemon can die, be upgraded and
//! come back while the agent works on and notices nothing.
//!
//! ```text
//!   daemon ── Handle ══ shim.sock ══ keeper ── own session, holds `lock`, adopts orphans
//!     │                               │ │
//!     │ start.json (nonce)            │ └── exec stage ── own group, worse oom_score, dies with the keeper ──> agent
//!     │ agent.json, exit.json <───────┘                                                                         │
//!     └ reads output.log <──────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Promises:
//! * An agent is started at most once in a directory: the start is noted in `start.json` under the lock before it happens,
//!   and a shim whose nonce is not the one noted there ends without doing anything.
//! * `exit.json` is written when nothing of the agent is alive, and its output is on the disk by then.
//! * A shim is alive if it holds the lock and answers its nonce; the daemon notices its death by the end of the connection.
//! * A shim that dies takes its agent with it (`PR_SET_PDEATHSIG`); what the agent had started is for [`super::sweep`].
//!
//! Deliberately absent: anything that may be decided elsewhere. The shim knows no server, no git and no task.
//!
//! `makima shim <dir>` is both the keeper and, with [`STAGE`] in its environment, the short life before the agent's program
//! takes over the process. The code behind this line is Linux only in three places: `keeper` (subreaper), `launch`
//! (death signal, oom score) and `socket` (`/proc/self/fd`).

use crate::domain::text::chain;

mod client;
mod handle;
mod keeper;
mod launch;
mod protocol;
mod record;
mod socket;

use std::{path::Path, process::ExitCode};

pub use handle::{Adopted, Error, Handle, ShimEnd, is_held};

/// Variable that makes `makima shim` the second stage.
const STAGE: &str = "MAKIMA_SHIM_STAGE";
/// Variable that carries the nonce of the start.
const NONCE: &str = "MAKIMA_SHIM_NONCE";

/// What `makima shim <dir>` does (a hidden subcommand; both stages come through it).
pub fn run(dir: &Path) -> ExitCode {
    if std::env::var_os(STAGE).is_some() {
        return launch::run(dir);
    }
    match keeper::run(dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            keeper::say(&protocol::Ready::Failed { message: chain(&error) });
            eprintln!("makima shim: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

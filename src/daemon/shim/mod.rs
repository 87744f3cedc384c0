//! The shim.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use super::attempt_dir::{self, AttemptDir, ExitRecord, Started};

/// What `makima shim <dir>` does (hidden subcommand; its own second stage comes through the same subcommand).
pub fn run(dir: &Path) -> ExitCode {
    todo!("{dir:?}")
}

/// A living shim, as the daemon holds it.
#[derive(Debug)]
pub struct Handle {
    dir: AttemptDir,
    started: Started,
}

/// What became of a shim that was there before this daemon.
#[derive(Debug)]
pub enum Adopted {
    /// It is alive.
    Alive(Handle),
    /// It has ended and left its record.
    Ended(ExitRecord),
    /// It is gone without a record. What it may have left is to be swept (`dir.target()`).
    Gone {
        /// It had started the agent.
        started: bool,
    },
}

/// How a shim ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShimEnd {
    /// The agent is dead with all it started, and this is how.
    Ended(ExitRecord),
    /// The shim died; its agent may be alive: sweep (`dir.target()`).
    ShimDied,
}

/// Why a shim cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("start the shim: {message}")]
    Start {
        /// Why, for people.
        message: String,
    },
    /// It holds its lock and does not answer.
    #[error("reach the shim (process {pid:?}), which holds its lock and does not answer")]
    Unresponsive {
        /// Its process.
        pid: Option<i32>,
    },
    /// Its directory.
    #[error(transparent)]
    Dir(#[from] attempt_dir::Error),
}

impl Handle {
    /// Starts the agent of this directory's manifest under a shim; answers when the agent runs, or has failed to start (then
    /// `wait` answers its record). `executable` is this program; `None`: the running one.
    pub async fn start(dir: &AttemptDir, executable: Option<PathBuf>) -> Result<Self, Error> {
        todo!("{dir:?} {executable:?}")
    }

    /// Takes over the shim of this directory, if it is alive. After `Gone` no shim can come to life in it by itself.
    pub async fn adopt(dir: &AttemptDir) -> Result<Adopted, Error> {
        todo!("{dir:?}")
    }

    /// The directory.
    pub fn dir(&self) -> &AttemptDir {
        &self.dir
    }

    /// When and as what the agent was started.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// Waits for the end. May be dropped and called again.
    pub async fn wait(&mut self) -> ShimEnd {
        todo!()
    }

    /// Asks the shim to end the agent: TERM to its group, grace, KILL. `wait` tells when it is over.
    pub async fn terminate(&mut self, grace: Duration) {
        todo!("{grace:?}")
    }

    /// Ends the agent, whatever the shim does: asks, waits for a little longer than the grace, then kills the shim as well.
    pub async fn end(&mut self, grace: Duration) -> ShimEnd {
        todo!("{grace:?}")
    }

    /// Sends bytes to an agent that reads a pipe.
    pub async fn input(&mut self, bytes: &[u8]) -> Result<(), Error> {
        todo!("{bytes:?}")
    }
}

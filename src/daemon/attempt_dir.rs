//! The directory of an attempt.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::domain::{AttemptRef, Timestamp, order::Spawn};

use super::{repository::RepoRef, sweep};

/// The directory of one attempt: `<state>/attempts/<task short id>-<number>-<attempt short id>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptDir {
    path: PathBuf,
}

/// What the attempt is; `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this form.
    pub version: u32,
    /// The attempt.
    pub attempt: AttemptRef,
    /// When the daemon took it.
    pub created: Timestamp,
    /// The order.
    pub spawn: Spawn,
    /// Where it works, once that is prepared.
    pub place: Option<Place>,
    /// What is run there, once that is known.
    pub agent: Option<AgentCommand>,
}

/// Where an attempt works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The repository that the worktree belongs to.
    pub repo: RepoRef,
    /// The worktree.
    pub worktree: PathBuf,
    /// Its branch.
    pub branch: String,
    /// Commit it started from.
    pub base_commit: String,
    /// Files that came from `copy_files`, relative to the worktree: they are not the agent's work.
    pub copied: Vec<PathBuf>,
    /// Variables the agent needs there (a git identity, where none is configured).
    pub env: BTreeMap<String, String>,
}

/// The agent's command. It runs in the worktree, its output goes to the attempt's `output.log`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentCommand {
    /// Program, looked for in PATH.
    pub program: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Variables set.
    pub env: BTreeMap<String, String>,
    /// Variables taken away.
    pub env_remove: Vec<String>,
    /// What it reads.
    pub stdin: Stdin,
}

/// What an agent reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    /// Nothing.
    #[default]
    None,
    /// The plan (the file `plan` of the attempt's directory), then the end.
    Plan,
    /// What the daemon sends with `Handle::input`.
    Pipe,
}

/// The agent has been started; `agent.json`, written by the shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Process id of the shim.
    pub shim_pid: i32,
    /// Process and group id of the agent.
    pub agent_pid: i32,
    /// When.
    pub at: Timestamp,
    /// Length of `output.log` before: where the agent's own output begins.
    pub output_start: u64,
    /// What a sweep needs to know the group again.
    pub leader: sweep::Leader,
}

/// How the agent ended; `exit.json`, written by the shim when nothing of the agent is alive and its output is on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The attempt.
    pub attempt: AttemptRef,
    /// Why it ended.
    pub reason: EndReason,
    /// Exit code, if it exited by itself.
    pub exit_code: Option<i32>,
    /// Signal that ended it; 0 for none.
    pub signal: u32,
    /// Final length of `output.log`.
    pub output_bytes: u64,
    /// Where in it the agent's own output begins.
    pub output_start: u64,
    /// When the agent was started.
    pub started: Timestamp,
    /// When nothing of it was left.
    pub ended: Timestamp,
}

/// Why an agent ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// By itself.
    Exited,
    /// The daemon asked for it.
    Terminated,
    /// Longer than its wall time.
    Timeout,
    /// It could not be started.
    StartFailed {
        /// Why, for people.
        message: String,
    },
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk.
    #[error("{what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file that does not say what it should.
    #[error("understand {path}")]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

/// One entry of `<state>/attempts`.
#[derive(Debug)]
pub struct Listed {
    /// The directory.
    pub dir: AttemptDir,
    /// Its manifest, or why it cannot be read: such a directory is salvage.
    pub manifest: Result<Manifest, Error>,
}

impl AttemptDir {
    /// Makes the directory with its manifest and plan, durably. Repeating it keeps the manifest that is there.
    pub fn create(state: &Path, manifest: &Manifest) -> Result<Self, Error> {
        todo!("{state:?} {manifest:?}")
    }

    /// The directory at this path.
    pub fn open(path: &Path) -> Result<Self, Error> {
        todo!("{path:?}")
    }

    /// The directory of this attempt, if there is one.
    pub fn find(state: &Path, attempt: AttemptRef) -> Option<Self> {
        todo!("{state:?} {attempt:?}")
    }

    /// Every directory there is; those that cannot be read too.
    pub fn list_all(state: &Path) -> Result<Vec<Listed>, Error> {
        todo!("{state:?}")
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The output of setup and agent.
    pub fn output(&self) -> PathBuf {
        self.path.join("output.log")
    }

    /// The plan as a file.
    pub fn plan(&self) -> PathBuf {
        self.path.join("plan")
    }

    /// What the attempt is.
    pub fn manifest(&self) -> Result<Manifest, Error> {
        todo!()
    }

    /// Replaces the manifest, durably.
    pub fn save(&self, manifest: &Manifest) -> Result<(), Error> {
        todo!("{manifest:?}")
    }

    /// The agent has been started.
    pub fn started(&self) -> Result<Option<Started>, Error> {
        todo!()
    }

    /// The agent has ended.
    pub fn exit(&self) -> Result<Option<ExitRecord>, Error> {
        todo!()
    }

    /// Opens the output to append to it.
    pub fn append_output(&self) -> Result<File, Error> {
        todo!()
    }

    /// What to look for to see whether anything of this attempt is alive.
    pub fn target(&self) -> Result<sweep::Target, Error> {
        todo!()
    }

    /// Removes the directory.
    pub fn remove(self) -> Result<(), Error> {
        todo!()
    }
}

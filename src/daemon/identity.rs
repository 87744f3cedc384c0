//! Who this daemon is, and where it keeps what it has: the state directory, held by one process at a time.
//!
//! ```text
//!   <state>/lock             flock, held while the process lives; the kernel lets go of it whatever happens
//!          /identity.json    the daemon's id, made once
//!          /journal.sqlite   see `journal`
//!          /attempts/        one directory an attempt, see `attempt_dir`
//!          /repositories/    bare clones
//!          /worktrees/       one an attempt
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::{AttemptRef, DaemonId};

/// How long the process before this one may take to be gone: one that dies while it starts another shares its lock with that
/// until the other one's program begins.
const LEAVING: Duration = Duration::from_secs(1);
/// Between looks at its lock.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const IDENTITY: &str = "identity.json";
const LOCK: &str = "lock";

/// The state directory, held.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    daemon: DaemonId,
    /// Closing it lets go of the directory.
    _lock: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("another makima daemon runs on {path}: stop it, or give this one another --name or --state-dir")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// The disk.
    #[error("{what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file that does not say who this is. It is not made anew: the server would take this daemon for another one.
    #[error("{path} does not say which daemon this is: put it back from a copy, or remove it to come as a new daemon")]
    Identity {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Identity {
    daemon_id: DaemonId,
}

impl StateDir {
    /// Makes the directory if need be, takes it for this process, and finds out who this is. Blocks.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { what, path, source }
        };
        // What is kept here has keys in it.
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("make the state directory", path))?;
        let path = &path.canonicalize().map_err(io("find the state directory", path))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io("open the lock", &lock_path))?;
        let deadline = Instant::now() + LEAVING;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOOK_AGAIN),
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::InUse { path: path.clone() }),
                Err(error) => return Err(io("take the lock", &lock_path)(error.into())),
            }
        }
        let daemon = identity(path)?;
        Ok(Self { path: path.clone(), daemon, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who this is.
    pub fn daemon(&self) -> DaemonId {
        self.daemon
    }

    /// Where clones are kept.
    pub fn repositories(&self) -> PathBuf {
        self.path.join("repositories")
    }

    /// Where the worktree of an attempt is made.
    pub fn worktree(&self, attempt: AttemptRef) -> PathBuf {
        self.path.join("worktrees").join(format!("{}-{}", attempt.task.short(), attempt.number))
    }
}

/// Reads who this is, or decides it: whole and durable, or not at all.
fn identity(state: &Path) -> Result<DaemonId, Error> {
    let path = state.join(IDENTITY);
    let io = |what| {
        let path = path.clone();
        move |source| Error::Io { what, path, source }
    };
    match fs::read(&path) {
        Ok(text) => {
            let identity: Identity =
                serde_json::from_slice(&text).map_err(|source| Error::Identity { path: path.clone(), source })?;
            Ok(identity.daemon_id)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let daemon_id = DaemonId(Uuid::now_v7());
            let draft = state.join(format!("{IDENTITY}.new"));
            let mut file = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .open(&draft)
                .map_err(io("make"))?;
            let text = serde_json::to_vec_pretty(&Identity { daemon_id })
                .map_err(|source| Error::Identity { path: path.clone(), source })?;
            file.write_all(&text).and_then(|()| file.sync_all()).map_err(io("write"))?;
            fs::rename(&draft, &path).map_err(io("write"))?;
            File::open(state).and_then(|directory| directory.sync_all()).map_err(io("write"))?;
            Ok(daemon_id)
        }
        Err(error) => Err(io("read")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_made_once_and_a_second_process_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("daemon/here");
        let first = StateDir::open(&path).unwrap();
        let id = first.daemon();
        let refused = StateDir::open(&path).unwrap_err();
        assert!(matches!(refused, Error::InUse { .. }));
        assert!(refused.to_string().starts_with("another makima daemon runs on "), "{refused}");
        drop(first);
        assert_eq!(StateDir::open(&path).unwrap().daemon(), id);
    }

    #[test]
    fn a_draft_left_by_a_crash_is_not_an_identity_and_a_damaged_identity_is_not_replaced() {
        let state = tempfile::tempdir().unwrap();
        fs::write(state.path().join("identity.json.new"), "{\"daem").unwrap();
        let id = StateDir::open(state.path()).unwrap().daemon();
        assert_eq!(StateDir::open(state.path()).unwrap().daemon(), id);
        fs::write(state.path().join(IDENTITY), "{\"daem").unwrap();
        assert!(matches!(StateDir::open(state.path()).unwrap_err(), Error::Identity { .. }));
    }
}

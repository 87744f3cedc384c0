//! The directory of an attempt. It describes itself, so that a lost journal can be rebuilt from what stands here, and it
//! outlives the acknowledgement of the attempt's end.
//!
//! ```text
//!   <state>/attempts/<task short id>-<number>-<attempt short id>/
//!     manifest.json   what the attempt is, where it works, what runs     written by the daemon
//!     plan            the plan as a file                                 daemon
//!     brief           what an agent that goes on is told instead         daemon
//!     start.json      the one start that is allowed, by nonce            daemon, then shim
//!     lock            held (flock) by the shim for as long as it lives   shim
//!     shim.sock       where the shim answers                             shim
//!     agent.json      the agent has been started, as this process        shim
//!     output.log      what setup and agent wrote, only appended to       setup, agent
//!     exit.json       nothing of the agent is alive; how it ended        shim
//!     rejected.json   the same of an agent whose session was refused     daemon
//!     shim.log        what the shim complained of                        shim
//!     checkpoints/    files of checkpoints, until the server has them    daemon
//!     checkpoints.json  which those are, and which one the server has    daemon
//!     result.pack     the result, until the server has it                daemon
//!     delivered       the server has the result                          daemon
//!     salvage.json    the server does not know this attempt              daemon
//! ```
//!
//! Every JSON file is replaced as a whole and is on the disk when the call that writes it returns (temporary file, fsync,
//! rename, fsync of the directory). The directories are for their user only: manifests hold task keys. All functions here
//! wait for the disk; none takes longer than a few small writes.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::domain::{AttemptRef, CheckpointId, Timestamp, order::Spawn};

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
    /// The attempt that has taken over the worktree: it is that one's now.
    #[serde(default)]
    pub superseded: Option<AttemptRef>,
    /// The checkpoint it went on from.
    #[serde(default)]
    pub restored: Option<CheckpointId>,
    /// It is an older one than there is.
    #[serde(default)]
    pub is_older: bool,
    /// The agent did not go on with its session, and begins a new one instead.
    #[serde(default)]
    pub rejected: bool,
    /// Where the worktree was made, once it has been moved: the paths that its agent knows lead there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<PathBuf>,
}

impl Manifest {
    /// Where it works, as it was made.
    pub fn made(&self) -> Option<Place> {
        let place = self.place.clone()?;
        Some(Place { worktree: self.moved_from.clone().unwrap_or(place.worktree), ..place })
    }
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
    /// Commit it started from: of the base branch, the result of a dependency, or a merge of results.
    pub base_commit: String,
    /// What the base branch had of that when the worktree was made: whoever else has the repository is taken to have it, too.
    /// What a task made only where somebody had merged it there. None where there is nothing, and where an older daemon made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<String>,
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
    /// It goes on with earlier work, and is told so by the file `brief` instead of the plan.
    #[serde(default)]
    pub brief: bool,
}

/// What an agent reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    /// Nothing.
    #[default]
    None,
    /// The plan (the file `plan` of the attempt's directory, or `brief`), then the end.
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

/// Version of the manifest's form.
pub const VERSION: u32 = 1;

impl AttemptDir {
    /// Makes the directory with its manifest and plan, durably. Repeating it keeps the manifest that is there.
    pub fn create(state: &Path, manifest: &Manifest) -> Result<Self, Error> {
        let all = state.join("attempts");
        let this = Self { path: all.join(name(manifest.attempt)) };
        if this.path.join("manifest.json").exists() {
            return Ok(this);
        }
        make_dir(&all)?;
        let new = Self { path: all.join(format!(".{}.new", name(manifest.attempt))) };
        remove_dir(&new.path)?;
        make_dir(&new.path)?;
        write_durably(&new.plan(), manifest.spawn.plan.as_bytes())?;
        new.save(manifest)?;
        // Only something that never was a whole directory can be in the way.
        remove_dir(&this.path)?;
        fs::rename(&new.path, &this.path).map_err(|source| io_error("rename", &new.path, source))?;
        sync_dir(&all)?;
        Ok(this)
    }

    /// The directory at this path.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let this = Self { path: path.to_owned() };
        let found = fs::metadata(path).map_err(|source| io_error("find", path, source))?;
        if !found.is_dir() {
            return Err(io_error("find", path, io::ErrorKind::NotADirectory.into()));
        }
        Ok(this)
    }

    /// The directory of this attempt, if there is one.
    pub fn find(state: &Path, attempt: AttemptRef) -> Option<Self> {
        Self::open(&state.join("attempts").join(name(attempt))).ok()
    }

    /// Every directory there is, in the order of their names; those that cannot be read too.
    pub fn list_all(state: &Path) -> Result<Vec<Listed>, Error> {
        let all = state.join("attempts");
        let entries = match fs::read_dir(&all) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io_error("list", &all, source)),
        };
        let mut listed = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| io_error("list", &all, source))?;
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if !hidden && entry.path().is_dir() {
                let dir = Self { path: entry.path() };
                let manifest = dir.manifest();
                listed.push(Listed { dir, manifest });
            }
        }
        listed.sort_by(|a, b| a.dir.path.cmp(&b.dir.path));
        Ok(listed)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The output of setup and agent.
    pub fn output(&self) -> PathBuf {
        self.path.join("output.log")
    }

    /// Bytes of output so far.
    pub fn output_bytes(&self) -> u64 {
        fs::metadata(self.output()).map_or(0, |file| file.len())
    }

    /// The plan as a file.
    pub fn plan(&self) -> PathBuf {
        self.path.join("plan")
    }

    /// What an agent that goes on with earlier work is told instead of the plan, as a file.
    pub fn brief(&self) -> PathBuf {
        self.path.join("brief")
    }

    /// Replaces that, durably.
    pub fn save_brief(&self, text: &str) -> Result<(), Error> {
        write_durably(&self.brief(), text.as_bytes())
    }

    /// The pack of the result, until the server has it.
    pub fn result_pack(&self) -> PathBuf {
        self.path.join("result.pack")
    }

    /// The server has the result.
    pub fn was_delivered(&self) -> bool {
        self.path.join("delivered").exists()
    }

    /// Notes that it has, and lets go of the pack.
    pub fn delivered(&self) -> Result<(), Error> {
        write_durably(&self.path.join("delivered"), b"")?;
        let pack = self.result_pack();
        match fs::remove_file(&pack) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &pack, source)),
            _ => Ok(()),
        }
    }

    /// What the attempt is.
    pub fn manifest(&self) -> Result<Manifest, Error> {
        let path = self.path.join("manifest.json");
        self.read("manifest.json")?.ok_or_else(|| io_error("read", &path, io::ErrorKind::NotFound.into()))
    }

    /// Replaces the manifest, durably.
    pub fn save(&self, manifest: &Manifest) -> Result<(), Error> {
        self.write("manifest.json", manifest)
    }

    /// The agent has been started.
    pub fn started(&self) -> Result<Option<Started>, Error> {
        self.read("agent.json")
    }

    /// The agent has ended.
    pub fn exit(&self) -> Result<Option<ExitRecord>, Error> {
        self.read("exit.json")
    }

    /// Lets the agent be started a second time. In this order, so that a crash on the way leaves either the record of the first
    /// one, or nothing that was started.
    pub fn start_over(&self) -> Result<(), Error> {
        for name in ["start.json", "agent.json"] {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &path, source));
                }
                _ => {}
            }
        }
        sync_dir(&self.path)?;
        let exit = self.path.join("exit.json");
        fs::rename(&exit, self.path.join("rejected.json")).map_err(|source| io_error("rename", &exit, source))?;
        sync_dir(&self.path)
    }

    /// It was.
    pub fn was_started_over(&self) -> bool {
        self.path.join("rejected.json").exists()
    }

    /// Opens the output to append to it.
    pub fn append_output(&self) -> Result<File, Error> {
        let path = self.output();
        open_private(OpenOptions::new().append(true).create(true), &path)
    }

    /// What to look for to see whether anything of this attempt is alive.
    pub fn target(&self) -> Result<sweep::Target, Error> {
        let leader = self.started()?.map(|started| started.leader);
        Ok(sweep::Target { attempt: self.manifest()?.attempt.id, leader, ancestor: None })
    }

    /// Removes the directory. Nothing of the attempt may be alive.
    pub fn remove(self) -> Result<(), Error> {
        remove_dir(&self.path)
    }

    /// One of the JSON files.
    pub(super) fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::Corrupt { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error("read", &path, source)),
        }
    }

    /// Replaces one of the JSON files, durably.
    pub(super) fn write(&self, name: &str, value: &impl Serialize) -> Result<(), Error> {
        let path = self.path.join(name);
        let mut bytes = match serde_json::to_vec_pretty(value) {
            Ok(bytes) => bytes,
            Err(source) => return Err(Error::Corrupt { path, source }),
        };
        bytes.push(b'\n');
        write_durably(&path, &bytes)
    }
}

fn name(attempt: AttemptRef) -> String {
    format!("{}-{}-{}", attempt.task.short(), attempt.number, attempt.id.short())
}

/// Replaces a file as a whole; on the disk when it returns.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{file_name}.tmp"));
    let mut file = open_private(OpenOptions::new().write(true).create(true).truncate(true), &temporary)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|source| io_error("write", &temporary, source))?;
    fs::rename(&temporary, path).map_err(|source| io_error("rename", &temporary, source))?;
    sync_dir(path.parent().unwrap_or(path))
}

/// Puts a directory's entries on the disk.
pub(super) fn sync_dir(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|source| io_error("sync", path, source))
}

/// Opens a file that only its user may read.
pub(super) fn open_private(options: &mut OpenOptions, path: &Path) -> Result<File, Error> {
    options.mode(0o600).open(path).map_err(|source| io_error("open", path, source))
}

pub(super) fn io_error(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { what, path: path.to_owned(), source }
}

fn make_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| io_error("create", path, source))
}

fn remove_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, source)),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::domain::{AttemptId, ContractId, TaskId};

    /// An order with nothing in it.
    pub fn spawn_order(plan: &str) -> Spawn {
        Spawn {
            contract: ContractId(Uuid::new_v4()),
            contract_name: "contract".into(),
            name: "task".into(),
            plan: plan.into(),
            agent: "shell".into(),
            model: None,
            repository: String::new(),
            base_branch: String::new(),
            branch: "makima/1-task/1".into(),
            result_ref: "refs/makima/results/1".into(),
            dependencies: Vec::new(),
            setup_command: String::new(),
            setup_timeout: Duration::from_secs(600),
            copy_files: Vec::new(),
            wall_time: None,
            grace: Duration::from_secs(10),
            parent: None,
            depth: 0,
            task_key: String::new(),
            contract_tasks: Vec::new(),
            checkpoint_every: Duration::ZERO,
            final_checkpoint: false,
            resume: None,
        }
    }

    /// A manifest of a new attempt.
    pub fn manifest(spawn: Spawn) -> Manifest {
        Manifest {
            version: VERSION,
            attempt: AttemptRef { task: TaskId(Uuid::new_v4()), number: 1, id: AttemptId(Uuid::new_v4()) },
            created: Timestamp(1),
            spawn,
            place: None,
            agent: None,
            superseded: None,
            restored: None,
            is_older: false,
            rejected: false,
            moved_from: None,
        }
    }

    /// What is written is read, by name and in the list; a half-made directory is made anew, a whole one is kept.
    #[test]
    fn a_directory_describes_itself() {
        let state = tempfile::tempdir().unwrap();
        assert!(AttemptDir::list_all(state.path()).unwrap().is_empty());
        let first = manifest(spawn_order("echo hello"));
        fs::create_dir_all(state.path().join("attempts").join(name(first.attempt))).unwrap();
        let dir = AttemptDir::create(state.path(), &first).unwrap();
        let changed = Manifest { agent: Some(AgentCommand::default()), ..first.clone() };
        dir.save(&changed).unwrap();
        assert_eq!(AttemptDir::create(state.path(), &first).unwrap(), dir);
        assert_eq!(dir.manifest().unwrap(), changed);
        assert_eq!(fs::read_to_string(dir.plan()).unwrap(), "echo hello");
        assert_eq!(AttemptDir::find(state.path(), first.attempt), Some(dir.clone()));
        fs::write(dir.path().join("manifest.json"), "{").unwrap();
        let listed = AttemptDir::list_all(state.path()).unwrap();
        assert_eq!(listed.len(), 1);
        assert!(matches!(listed[0].manifest, Err(Error::Corrupt { .. })));
        dir.remove().unwrap();
        assert!(AttemptDir::list_all(state.path()).unwrap().is_empty());
    }
}

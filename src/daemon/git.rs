//! Git, as a command and as a library: network and checkouts go through the command (SSH agents, credential helpers, parallel
//! checkout), looking goes through `git2`.
//!
//! Promises: no command waits for a person, runs a hook, signs, starts housekeeping in the background or takes for ever; and
//! neither a lock file nor a half made worktree that a dead git left behind stops a task ([`STALE_LOCK`]), while what somebody
//! uses stays.

use std::{
    fs::{self, File, OpenOptions},
    num::NonZero,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use tokio::time::{Instant, sleep};

use super::{
    process::{self, Output, Process, redact_url},
    sweep,
};
use crate::domain::attempt::{Failure, FailureClass};

/// What a local command has.
pub(super) const LOCAL_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// What a checkout, clone or fetch of something very large has.
pub(super) const LONG_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// A lock file of git as old as this belongs to nobody: git holds the ones that matter here for milliseconds.
const STALE_LOCK: Duration = Duration::from_secs(30);
/// How long a younger lock file is waited for.
const LOCK_FILE_PATIENCE: Duration = Duration::from_secs(45);
/// How long our own lock is waited for: somebody may be cloning under it.
const LOCK_PATIENCE: Duration = Duration::from_secs(40 * 60);

/// Why something about a repository or worktree failed: a class that decides about the retry, and a sentence for people.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Decides what follows.
    pub class: FailureClass,
    /// For people; says what to do where there is something to do.
    pub message: String,
}

impl Error {
    /// Of this class.
    pub fn new(class: FailureClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into() }
    }

    /// The repository is at fault, and will be next time.
    pub(super) fn repository(message: impl Into<String>) -> Self {
        Self::new(FailureClass::Repository, message)
    }

    /// This machine or the network is at fault; another daemon, or this one later, may do better.
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self::new(FailureClass::Refused, message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(error.class, error.message)
    }
}

/// A git command in this directory.
pub(super) fn git(dir: &Path) -> Process {
    Process::new("git")
        .args(["-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "core.hooksPath=/dev/null"])
        .args(["-c", "commit.gpgSign=false", "-c", "tag.gpgSign=false", "-c", "core.quotePath=false"])
        .args(["-c", "advice.detachedHead=false", "-c", "core.editor=true", "-c", "merge.renormalize=false"])
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_EDITOR", "true")
        .env("GCM_INTERACTIVE", "never")
        .env("LC_ALL", "C")
        .env_remove("LANGUAGE")
        .without_makima()
        .dir(dir)
}

/// Runs a command that must succeed.
pub(super) async fn succeed(
    what: &str,
    timeout: Duration,
    command: impl Fn() -> Process + Send + Sync,
) -> Result<Output, Error> {
    let output = attempt(what, timeout, command).await?;
    if output.success() {
        return Ok(output);
    }
    Err(Error::repository(format!("cannot {what}: {}", redact_url(&output.complaint()))))
}

/// Runs a command whose exit code says something. Lock files of dead gits are taken out of its way.
#[tracing::instrument(level = "debug", name = "git", skip_all, fields(what))]
pub(super) async fn attempt(
    what: &str,
    timeout: Duration,
    command: impl Fn() -> Process + Send + Sync,
) -> Result<Output, Error> {
    let deadline = Instant::now() + LOCK_FILE_PATIENCE;
    loop {
        let output = command().run(timeout).await.map_err(|error| explain(what, &error))?;
        if output.success() {
            return Ok(output);
        }
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        if complaint.contains("No space left on device") || complaint.contains("Disk quota exceeded") {
            return Err(Error::refused(format!("cannot {what}: the disk is full; free some space on the daemon")));
        }
        if let Some(file) = half_made(&complaint) {
            if make_whole(&command().directory().unwrap_or(Path::new("")).join(file)) {
                continue;
            }
            if Instant::now() >= deadline {
                return Err(Error::refused(format!("cannot {what}: {complaint}; a worktree there is half made")));
            }
            sleep(Duration::from_millis(50)).await;
            continue;
        }
        let Some(lock) = lock_in_the_way(&complaint) else { return Ok(output) };
        if remove_dead_lock(&lock).await {
            continue;
        } else if Instant::now() >= deadline {
            return Ok(output);
        } else {
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Removes a lock file that a dead git left. Answers whether there was one.
pub(super) async fn remove_dead_lock(lock: &Path) -> bool {
    if !is_stale(lock) || is_used(lock).await {
        return false;
    }
    tracing::warn!(lock = %lock.display(), "removing a lock file that a dead git left");
    fs::remove_file(lock).is_ok()
}

fn explain(what: &str, error: &process::Error) -> Error {
    match error {
        process::Error::Start { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Error::refused(format!("cannot {what}: `git` (or the directory it is to run in) is not there: {source}"))
        }
        process::Error::Start { source, .. } | process::Error::Talk { source, .. } => {
            Error::refused(format!("cannot {what}: {error}: {source}"))
        }
        process::Error::Timeout { .. } => Error::refused(format!("cannot {what}: {error}")),
    }
}

/// `fatal: Unable to create '/x/index.lock': File exists.`, and the other ways in which git says it.
fn lock_in_the_way(complaint: &str) -> Option<PathBuf> {
    complaint.lines().filter(|line| line.contains("File exists")).find_map(|line| {
        let path = line.split('\'').find(|part| part.ends_with(".lock") && part.starts_with('/'))?;
        Some(PathBuf::from(path))
    })
}

/// `fatal: failed to read worktrees/x/commondir: Success`: another git is adding a worktree, and has not written that file yet.
/// Answers the file, as git names it from where it runs.
fn half_made(complaint: &str) -> Option<PathBuf> {
    complaint.lines().find_map(|line| {
        let (file, _) = line.split_once("failed to read ")?.1.rsplit_once(": ")?;
        file.contains("worktrees/").then(|| PathBuf::from(file))
    })
}

/// Writes what a git that died while it added a worktree had not written yet: until then no git lists or adds a worktree in that
/// repository. It is the same for every worktree, and nothing is removed: whoever had work there still has it. Answers whether the
/// file was one that nobody will write any more.
fn make_whole(file: &Path) -> bool {
    let is_one = file.ends_with("commondir") && file.ancestors().nth(2).is_some_and(|dir| dir.ends_with("worktrees"));
    if !is_one || !is_stale(file) || fs::metadata(file).is_ok_and(|found| found.len() > 0) {
        return false;
    }
    tracing::warn!(file = %file.display(), "a git died while it added a worktree; writing what is missing");
    fs::write(file, "../..\n").is_ok()
}

/// A person may be writing a commit message under it.
async fn is_used(lock: &Path) -> bool {
    let lock = lock.canonicalize().unwrap_or_else(|_| lock.to_owned());
    blocking(move || Ok(sweep::is_file_used(&lock))).await.unwrap_or(true)
}

fn is_stale(lock: &Path) -> bool {
    // A clock that was set back makes it look young: it is waited for, then reported.
    fs::metadata(lock)
        .and_then(|found| found.modified())
        .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age >= STALE_LOCK))
}

/// Work for a thread that may wait.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => Err(Error::refused(format!("work on a repository ended: {error}"))),
    }
}

/// Held while a shared repository is changed: by attempts of this daemon, and of another one on this machine.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "closing it releases the lock")] File);

impl Lock {
    /// Waits for it.
    pub(super) async fn take(path: &Path) -> Result<Self, Error> {
        let fail = |error: std::io::Error| Error::refused(format!("cannot lock {}: {error}", path.display()));
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(fail)?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        let mut pause = Duration::from_millis(2);
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => sleep(pause).await,
                Err(error) => return Err(fail(error.into())),
            }
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}

/// A checkout's share of the processors, held until its files are there.
#[derive(Debug)]
pub(super) struct Share {
    workers: usize,
}

/// Checkouts of this process that are under way.
static CHECKOUTS: AtomicUsize = AtomicUsize::new(0);

impl Share {
    /// For a checkout that begins now.
    pub(super) fn take() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self { workers: workers(processors, CHECKOUTS.fetch_add(1, Relaxed) + 1) }
    }

    /// As a setting of git.
    pub(super) fn workers(&self) -> String {
        format!("checkout.workers={}", self.workers)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        CHECKOUTS.fetch_sub(1, Relaxed);
    }
}

/// Worker processes for one of so many checkouts. More than there are processors only get into each other's way: eight checkouts
/// at once on two processors take a quarter more of them with two workers each than with one (`benches/README.md`).
fn workers(processors: usize, checkouts: usize) -> usize {
    (processors / checkouts.max(1)).max(1)
}

/// Repositories for tests.
#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// Runs git and answers what it printed.
    pub async fn run(dir: &Path, args: &[&str]) -> String {
        let output = git(dir)
            .args(["-c", "user.name=Tester", "-c", "user.email=tester@example.com", "-c", "init.defaultBranch=main"])
            .args(args.iter().copied())
            .run(LOCAL_TIMEOUT)
            .await
            .unwrap();
        assert!(output.success(), "git {args:?}: {}", output.complaint());
        output.text()
    }

    /// Writes files and commits them; answers the commit.
    pub async fn commit(dir: &Path, files: &[(&str, &str)], message: &str) -> String {
        for (name, text) in files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        run(dir, &["add", "-A"]).await;
        run(dir, &["commit", "-q", "--allow-empty", "-m", message]).await;
        run(dir, &["rev-parse", "HEAD"]).await
    }

    /// A repository with one commit.
    pub async fn repository(dir: &Path) -> PathBuf {
        let path = dir.join("repository");
        fs::create_dir_all(&path).unwrap();
        run(&path, &["init", "-q"]).await;
        commit(&path, &[("README.md", "hello\n"), (".gitignore", "*.log\n")], "first").await;
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkouts_share_the_processors() {
        let shares = [(8, 1, 8), (8, 2, 4), (8, 3, 2), (8, 8, 1), (2, 9, 1), (1, 1, 1), (1, 0, 1)];
        for (processors, checkouts, expected) in shares {
            assert_eq!(workers(processors, checkouts), expected, "{checkouts} on {processors}");
        }
    }

    /// While another git adds a worktree, its files are empty for a moment: that is waited for.
    #[tokio::test]
    async fn a_worktree_that_is_half_made_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let repository = testing::repository(dir.path()).await;
        testing::run(&repository, &["worktree", "add", "-q", "--detach", "../other"]).await;
        let file = repository.join(".git/worktrees/other/commondir");
        let whole = fs::read(&file).unwrap();
        fs::write(&file, "").unwrap();
        let list = || git(&repository).args(["worktree", "list", "--porcelain"]);
        let refused = list().run(LOCAL_TIMEOUT).await.unwrap();
        assert!(half_made(&String::from_utf8_lossy(&refused.stderr)).is_some(), "{refused:?}");
        let (listed, ()) = tokio::join!(succeed("list worktrees", LOCAL_TIMEOUT, list), async {
            sleep(Duration::from_millis(100)).await;
            fs::write(&file, whole).unwrap();
        });
        assert!(String::from_utf8_lossy(&listed.unwrap().stdout).contains("other"));
    }

    /// One that nobody makes any more is made whole, with what was written there, and stops nobody.
    #[tokio::test]
    async fn a_worktree_that_stays_half_made_is_made_whole() {
        let dir = tempfile::tempdir().unwrap();
        let repository = testing::repository(dir.path()).await;
        testing::run(&repository, &["worktree", "add", "-q", "--detach", "../other"]).await;
        fs::write(dir.path().join("other/work"), "of an agent").unwrap();
        let file = repository.join(".git/worktrees/other/commondir");
        let whole = fs::read(&file).unwrap();
        let half = File::create(&file).unwrap();
        half.set_modified(half.metadata().unwrap().modified().unwrap() - 2 * STALE_LOCK).unwrap();
        let add = || git(&repository).args(["worktree", "add", "-q", "--detach", "../third"]);
        succeed("make a worktree", LOCAL_TIMEOUT, add).await.unwrap();
        assert_eq!(fs::read(&file).unwrap(), whole);
        let status = testing::run(&dir.path().join("other"), &["status", "--porcelain"]).await;
        assert_eq!(status, "?? work");
    }

    /// A lock file that nobody holds any more is removed, and the command works.
    #[tokio::test]
    async fn a_stale_lock_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let repository = testing::repository(dir.path()).await;
        let lock = repository.join(".git/index.lock");
        let file = File::create(&lock).unwrap();
        let old = std::fs::metadata(&lock).unwrap().modified().unwrap() - 2 * STALE_LOCK;
        file.set_modified(old).unwrap();
        fs::write(repository.join("new"), "new").unwrap();
        // Open in another process: somebody works there.
        let mut holder = Process::new("sh").args(["-c", "echo held; exec sleep 1000"]).into_std().unwrap();
        holder.stdin(file).stdout(std::process::Stdio::piped());
        let mut holder = holder.spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut line).unwrap();
        assert!(is_stale(&lock) && is_used(&lock).await);
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert!(!is_used(&lock).await);
        succeed("add a file", LOCAL_TIMEOUT, || git(&repository).args(["add", "new"])).await.unwrap();
        assert!(!lock.exists());
    }
}

//! Worktrees.

use std::path::{Path, PathBuf};

use crate::domain::{AttemptRef, attempt::TaskResult, order::Spawn};

pub use super::git::Error;
use super::{
    attempt_dir::{AttemptDir, Manifest, Place},
    repository::RepoRef,
};

/// A worktree ready for its agent.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Where it is; goes into the manifest.
    pub place: Place,
    /// Things worth a look.
    pub warnings: Vec<String>,
}

/// What an attempt made.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its result.
    pub result: TaskResult,
    /// Things worth a look.
    pub warnings: Vec<String>,
}

/// A worktree as `makima worktree list` shows it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Listed {
    /// The attempt.
    pub attempt: AttemptRef,
    /// Name of the task.
    pub name: String,
    /// The worktree.
    pub path: PathBuf,
    /// URL or path.
    pub repository: String,
    /// Its branch.
    pub branch: String,
    /// It is there.
    pub exists: bool,
    /// Its agent runs.
    pub busy: bool,
    /// It has changes that are in no commit.
    pub dirty: bool,
    /// Its commits are where others can reach them, or at least held by a ref of the path repository.
    pub published: bool,
}

/// Makes the worktree of an attempt at `path`. Repeating it after a crash repairs what is there.
pub async fn prepare(repo: &RepoRef, spawn: &Spawn, attempt: AttemptRef, path: &Path) -> Result<Prepared, Error> {
    todo!("{repo:?} {spawn:?} {attempt:?} {path:?}")
}

/// Runs the setup command, if there is one; its output goes to the attempt's `output.log`.
pub async fn setup(dir: &AttemptDir, manifest: &Manifest) -> Result<(), Error> {
    todo!("{dir:?} {manifest:?}")
}

/// Commits what is left on the branch and sets the result ref. No process of the attempt may be alive.
pub async fn finish(manifest: &Manifest) -> Result<Finished, Error> {
    todo!("{manifest:?}")
}

/// The worktree is there and belongs to its repository.
pub fn is_intact(place: &Place) -> bool {
    todo!("{place:?}")
}

/// Every worktree of this daemon's state directory.
pub async fn list(state: &Path) -> Result<Vec<Listed>, Error> {
    todo!("{state:?}")
}

/// Removes a worktree; refuses, saying why, where work would be lost, unless forced. Never one whose agent runs.
pub async fn remove(state: &Path, path: &Path, force: bool) -> Result<(), Error> {
    todo!("{state:?} {path:?} {force}")
}

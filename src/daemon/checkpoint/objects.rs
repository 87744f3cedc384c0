//! The objects of a checkpoint in a repository, and why they are not: whether it is the repository that lacks something, for which
//! an older checkpoint may make do, or anything else.

use std::path::Path;

use super::{
    Error,
    container::{self, damaged},
};
use crate::daemon::{
    git::{LONG_TIMEOUT, attempt, git},
    process::Output,
    repository::RepoRef,
};

/// Why a checkpoint is not in a repository.
pub(super) enum Hindrance {
    /// The repository lacks what it builds on.
    Lacks(Error),
    /// Anything else.
    Other(Error),
}

impl From<Error> for Hindrance {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<Hindrance> for Error {
    fn from(hindrance: Hindrance) -> Self {
        match hindrance {
            Hindrance::Lacks(error) | Hindrance::Other(error) => error,
        }
    }
}

/// Brings the pack of a file into a repository, synced.
pub(super) async fn unpack(repo: &RepoRef, path: &Path) -> Result<(), Hindrance> {
    let output = attempt("unpack a checkpoint", LONG_TIMEOUT, || {
        let process = git(&repo.git_dir).args(["-c", "core.fsync=all", "index-pack", "--stdin", "--fix-thin"]);
        match container::open(path) {
            Ok((_, file)) => process.stdin_from(file),
            Err(_) => process,
        }
    })
    .await?;
    if output.success() {
        return Ok(());
    }
    let complaint = told(&output)?;
    if complaint.contains("unresolved delta") || complaint.contains("missing") {
        return Err(lacking(repo, &complaint));
    }
    Err(damaged(path, &complaint).into())
}

/// Everything that the checkpoint builds on is there.
pub(super) async fn connected(repo: &RepoRef, commit: &str, path: &Path) -> Result<(), Hindrance> {
    /// How git says that an object is not there.
    const LACKS: [&str; 4] = ["Could not read", "unable to read tree", "bad tree object", "missing"];
    let output = attempt("look at a checkpoint", LONG_TIMEOUT, || {
        git(&repo.git_dir).args(["rev-list", "--quiet", "--objects", commit, "--not", "--all"])
    })
    .await?;
    if output.success() {
        return Ok(());
    }
    let complaint = told(&output)?;
    if complaint.contains(commit) {
        return Err(damaged(path, &complaint).into());
    }
    if LACKS.iter().any(|words| complaint.contains(words)) {
        return Err(lacking(repo, &complaint));
    }
    Err(Error::refused(format!("cannot look at a checkpoint: {complaint}")).into())
}

/// What git said of a checkpoint. One that was killed has said nothing, and one for which the machine had no room or no file says
/// nothing of the checkpoint.
fn told(output: &Output) -> Result<String, Error> {
    /// As the C library says it, and git.
    const MACHINE: [&str; 6] = [
        "Too many open files",
        "Cannot allocate memory",
        "Out of memory",
        "Input/output error",
        "unable to create thread",
        "Resource temporarily unavailable",
    ];
    let complaint = output.complaint();
    if output.code.is_none() || MACHINE.iter().any(|words| complaint.contains(words)) {
        return Err(Error::refused(format!("git could not look at a checkpoint: {complaint}")));
    }
    Ok(complaint)
}

fn lacking(repo: &RepoRef, complaint: &str) -> Hindrance {
    Hindrance::Lacks(Error::repository(format!(
        "{} lacks what the checkpoint builds on ({complaint}): fetch it, or take the repository where the attempt worked",
        repo.shown()
    )))
}

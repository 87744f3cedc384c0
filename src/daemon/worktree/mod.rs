//! Worktrees: where an attempt works, made from its base or from what its dependencies made, and turned into its result.
//!
//! ```text
//!   prepare   start commit: base | the one result | a merge of the results
//!      │      branch makima/… ── git worktree add ── checkout ── merges ── copy_files
//!   setup     sh -eu, output into output.log
//!   take_over the worktree of an earlier attempt, as it was left, on a branch of its own
//!   (agent)
//!   finish    what is left is committed ── result ref ── pushed to origin, where there is one
//!   list, remove                    for `makima worktree list|rm`
//! ```
//!
//! Promises: git housekeeping (a leftover directory, a stale registration or lock, a branch that is checked out elsewhere or
//! whose name is taken) never stops a task: what is in the way is repaired, or moved aside and named in a warning, never
//! deleted. Nobody's checkout, index or branch is touched but the attempt's own. Files that look like secrets are not
//! committed by us. What a result names is on the disk.

mod copy;
mod finish;
mod list;
mod look;
mod prepare;
mod resume;
mod setup;
mod status;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use super::git::Error;
pub use finish::finish;
pub(in crate::daemon) use list::is_dirty;
pub use list::{list, remove};
use look::admin_dir;
pub use look::{Look, look};
pub(in crate::daemon) use prepare::{choose_branch, clear_the_way, discard};
pub use prepare::{furnish, prepare};
pub use resume::{find, plan, take_over};
pub use setup::setup;

use super::{
    attempt_dir::Place,
    git::{LOCAL_TIMEOUT, attempt, git},
};
use crate::domain::{AttemptRef, attempt::TaskResult};

/// Name and address of commits where nobody has configured any.
const FALLBACK_IDENTITY: (&str, &str) = ("makima", "makima@localhost");
/// Things named in one message.
const MAX_NAMED: usize = 20;

/// A worktree ready for its agent.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Where it is; goes into the manifest.
    pub place: Place,
    /// Things worth a look.
    pub warnings: Vec<String>,
}

/// What an attempt made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its result.
    pub result: TaskResult,
    /// Things worth a look.
    pub warnings: Vec<String>,
}

/// A worktree as `makima worktree list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    /// Its commits are where others can reach them: at origin, or held by a ref of the path repository.
    pub published: bool,
}

/// The worktree is there and belongs to its repository.
pub fn is_intact(place: &Place) -> bool {
    matches!(look(place), Look::Intact { .. })
}

/// Variables that give commits an identity there; none where one is configured.
pub(in crate::daemon) async fn identity(dir: &Path) -> Result<Vec<(String, String)>, Error> {
    let ask = |which: &'static str| git(dir).args(["-c", "user.useConfigOnly=true", "var", which]);
    let author = attempt("find the git identity", LOCAL_TIMEOUT, || ask("GIT_AUTHOR_IDENT")).await?;
    let committer = attempt("find the git identity", LOCAL_TIMEOUT, || ask("GIT_COMMITTER_IDENT")).await?;
    if author.success() && committer.success() {
        return Ok(Vec::new());
    }
    let (name, email) = FALLBACK_IDENTITY;
    Ok([
        ("GIT_AUTHOR_NAME", name),
        ("GIT_AUTHOR_EMAIL", email),
        ("GIT_COMMITTER_NAME", name),
        ("GIT_COMMITTER_EMAIL", email),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec())
}

/// Names for a message: `a, b and 3 more`.
pub(in crate::daemon) fn named<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<&str> = names.iter().take(MAX_NAMED).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(MAX_NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// NUL-separated names, as git writes them with `-z`.
fn split_nul(bytes: &[u8]) -> Vec<String> {
    bytes.split(|b| *b == 0).filter(|n| !n.is_empty()).map(|n| String::from_utf8_lossy(n).into_owned()).collect()
}

#[cfg(test)]
mod tests;

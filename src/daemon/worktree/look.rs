//! Whether a worktree is still what it was made as, and in words what has become of it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::daemon::attempt_dir::Place;

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// It is there and belongs to its repository.
    Intact {
        /// Its entry in the repository.
        admin: PathBuf,
    },
    /// It is not.
    Broken {
        /// What is wrong, for people.
        what: String,
    },
    /// It could not be looked at (no permission, no more files may be open, a disk that fails): nothing is known to be wrong.
    Unknown {
        /// Why, for people.
        why: String,
    },
}

/// Looks at a worktree: a few small files, no git.
pub fn look(place: &Place) -> Look {
    see(place).unwrap_or_else(|look| look)
}

/// What its `.git` file points to.
pub(super) fn admin_dir(worktree: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(worktree.join(".git")).ok()?;
    Some(worktree.join(text.strip_prefix("gitdir:")?.trim()))
}

/// The story as it should go; what ends it early is in the error.
fn see(place: &Place) -> Result<Look, Look> {
    let worktree = &place.worktree;
    let shown = worktree.display();
    let found = fs::metadata(worktree).map_err(|error| missing(&error, &format!("the worktree {shown}")))?;
    if !found.is_dir() {
        return Err(broken(format!("the worktree {shown} is no directory any more")));
    }
    let file = worktree.join(".git");
    let found = fs::metadata(&file).map_err(|error| missing(&error, &format!("{}", file.display())))?;
    if found.is_dir() {
        return Err(broken(format!("{} is a repository of its own: a worktree has a file there", file.display())));
    }
    let text = fs::read(&file).map_err(|error| missing(&error, &format!("{}", file.display())))?;
    let text = String::from_utf8_lossy(&text);
    let Some(target) = text.strip_prefix("gitdir:").map(str::trim) else {
        return Err(broken(format!("{} does not say where its repository is", file.display())));
    };
    let admin = worktree.join(target);
    let entry = || format!("{}, which the worktree {shown} points to,", admin.display());
    let head = fs::metadata(admin.join("HEAD")).map_err(|error| missing(&error, &entry()))?;
    if !head.is_file() {
        return Err(broken(format!("{} is damaged", entry())));
    }
    let admin = admin.canonicalize().map_err(|error| missing(&error, &entry()))?;
    let repository = &place.repo.git_dir;
    let own = repository
        .canonicalize()
        .map_err(|error| missing(&error, &format!("the repository {}", repository.display())))?;
    if admin.parent().and_then(Path::parent) != Some(&own) {
        return Err(broken(format!(
            "the worktree {shown} belongs to another repository: it points to {}",
            admin.display()
        )));
    }
    Ok(Look::Intact { admin })
}

fn broken(what: String) -> Look {
    Look::Broken { what }
}

/// What is not there is gone; everything else that stops a look says nothing about the worktree.
fn missing(error: &io::Error, what: &str) -> Look {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => broken(format!("{what} is gone")),
        _ => Look::Unknown { why: format!("{what} cannot be looked at: {error}") },
    }
}

//! Where git keeps what belongs to a worktree.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

/// The git directories of a worktree.
#[derive(Clone, Debug)]
pub(super) struct GitDirs {
    /// HEAD, index and operation.
    pub(super) git_dir: PathBuf,
    /// Refs and objects; the same, unless it is a linked worktree.
    pub(super) common: PathBuf,
}

impl GitDirs {
    /// Of this worktree; `None` if it is none.
    pub(super) fn of(worktree: &Path) -> Option<Self> {
        let dot_git = worktree.join(".git");
        let git_dir = if fs::symlink_metadata(&dot_git).ok()?.is_file() {
            worktree.join(pointed_to(&dot_git, b"gitdir: ")?)
        } else {
            dot_git
        };
        let git_dir = git_dir.canonicalize().ok()?;
        let common = match pointed_to(&git_dir.join("commondir"), b"") {
            Some(common) => git_dir.join(common).canonicalize().ok()?,
            None => git_dir.clone(),
        };
        (git_dir.join("HEAD").symlink_metadata().is_ok() && common.join("objects").is_dir())
            .then_some(Self { git_dir, common })
    }

    /// It is one of several worktrees of a repository.
    pub(super) fn is_linked(&self) -> bool {
        self.git_dir != self.common
    }
}

fn pointed_to(file: &Path, prefix: &[u8]) -> Option<PathBuf> {
    let bytes = fs::read(file).ok()?;
    let path = bytes.strip_prefix(prefix)?.trim_ascii_end();
    Some(PathBuf::from(OsStr::from_bytes(path)))
}

/// A path of a worktree from the bytes that git has for it.
pub(super) fn join(worktree: &Path, path: &[u8]) -> PathBuf {
    worktree.join(OsStr::from_bytes(path))
}

/// The bytes of a path.
pub(super) fn bytes_of(path: PathBuf) -> Vec<u8> {
    path.into_os_string().into_vec()
}

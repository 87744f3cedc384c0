//! `copy_files`: what a repository's own checkout has and its commits do not (`.env`, local settings).

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use glob::{MatchOptions, Pattern, glob_with};

use super::{Error, named};
use crate::daemon::{git::blocking, repository::RepoRef};

/// Files copied into one worktree; more is a glob that meant something else (`**` with its dependencies).
const MAX_FILES: usize = 10_000;
/// Bytes copied into one worktree, for the same reason.
const MAX_BYTES: u64 = 1024 * 1024 * 1024;

/// Copies what the globs match; answers the files, relative to the worktree, and what is worth a look.
pub(super) async fn copy_files(
    repo: &RepoRef,
    globs: &[String],
    worktree: &Path,
) -> Result<(Vec<PathBuf>, Vec<String>), Error> {
    if globs.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let (repo, globs, worktree) = (repo.clone(), globs.to_vec(), worktree.to_owned());
    blocking(move || {
        if repo.cloned {
            let warning = "nothing to copy: copy_files needs a repository named by its path, this one is a URL";
            return Ok((Vec::new(), vec![warning.into()]));
        }
        let opened =
            git2::Repository::open(&repo.repository).map_err(|error| Error::repository(error.message().to_owned()))?;
        let Some(from) = opened.workdir() else {
            return Ok((Vec::new(), vec!["nothing to copy: the repository has no checkout".into()]));
        };
        let mut copy = Copy { from: from.to_owned(), to: worktree, files: Vec::new(), bytes: 0, warnings: Vec::new() };
        copy.all(&globs);
        Ok((copy.files, copy.warnings))
    })
    .await
}

struct Copy {
    from: PathBuf,
    to: PathBuf,
    files: Vec<PathBuf>,
    bytes: u64,
    warnings: Vec<String>,
}

impl Copy {
    fn all(&mut self, globs: &[String]) {
        let mut failed = Vec::new();
        for pattern in globs {
            let inside = Path::new(pattern).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
            if !inside {
                self.warnings.push(format!("copy_files: `{pattern}` is not inside the repository"));
                continue;
            }
            let whole = format!("{}/{pattern}", Pattern::escape(&self.from.to_string_lossy()));
            let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
            let matches = match glob_with(&whole, options) {
                Ok(matches) => matches,
                Err(error) => {
                    self.warnings.push(format!("copy_files: `{pattern}` is no glob: {error}"));
                    continue;
                }
            };
            let before = self.files.len();
            for path in matches.flatten() {
                if let Err(error) = self.one(&path) {
                    failed.push(format!("{}: {error}", path.display()));
                }
            }
            if self.files.len() == before && failed.is_empty() {
                self.warnings.push(format!("copy_files: nothing matches `{pattern}`"));
            }
        }
        if !failed.is_empty() {
            self.warnings.push(format!("copy_files: cannot copy {}", named(&failed)));
        }
    }

    /// A file, a link, or a directory with all that is in it; never anything of git.
    fn one(&mut self, path: &Path) -> io::Result<()> {
        let Ok(relative) = path.strip_prefix(&self.from) else { return Ok(()) };
        if relative.components().any(|part| part.as_os_str() == ".git") {
            return Ok(());
        }
        let found = fs::symlink_metadata(path)?;
        if found.is_dir() {
            for entry in fs::read_dir(path)? {
                self.one(&entry?.path())?;
            }
            return Ok(());
        }
        self.bytes += found.len();
        if self.files.len() == MAX_FILES || self.bytes > MAX_BYTES {
            return Err(io::Error::other(format!("more than {MAX_FILES} files or {MAX_BYTES} bytes")));
        }
        let to = self.to.join(relative);
        self.make_parents(relative)?;
        if fs::symlink_metadata(&to).is_ok() {
            fs::remove_file(&to)?;
        }
        if found.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(path)?, &to)?;
        } else if found.is_file() {
            fs::copy(path, &to)?;
        } else {
            return Ok(());
        }
        self.files.push(relative.to_owned());
        Ok(())
    }

    /// Directories on the way, none of which may be a link to somewhere else.
    fn make_parents(&self, relative: &Path) -> io::Result<()> {
        let mut dir = self.to.clone();
        for part in relative.parent().into_iter().flat_map(Path::components) {
            dir.push(part);
            match fs::symlink_metadata(&dir) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Err(io::Error::other(format!("{} is no directory", dir.display()))),
                Err(_) => fs::create_dir(&dir)?,
            }
        }
        Ok(())
    }
}

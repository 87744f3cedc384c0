//! Our own git directory beside the agent's: another index over the same files, and objects that borrow from the repository.
//!
//! ```text
//!   <git dir of the worktree>/makima-checkpoint/       removed with the worktree
//!     index              stats of the files as they were captured last
//!     objects/           what checkpoints add; info/alternates: the repository's, the nested ones'
//!     info/attributes    no filter, no line endings: bytes are bytes
//!     info/exclude       the repository's own
//!     refs/makima/<id>   the newest checkpoints, for deltas
//!     nested/<n>/        the same for a repository inside, with the objects above
//! ```

use std::{
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{Error, dirs::GitDirs};
use crate::{
    daemon::{git::git, process::Process},
    domain::text::hex,
};

/// Its name in the git directory of the worktree.
const NAME: &str = "makima-checkpoint";
/// Every file is bytes, whatever the repository and the person's configuration say.
const ATTRIBUTES: &str = "* -text !eol !crlf !filter !ident !working-tree-encoding\n";

/// Our git directory for one worktree.
#[derive(Clone, Debug)]
pub(super) struct Shadow {
    /// The directory.
    pub(super) git_dir: PathBuf,
    /// Where objects are written.
    pub(super) objects: PathBuf,
    /// The files.
    pub(super) worktree: PathBuf,
}

impl Shadow {
    /// For this worktree; made if it is not there.
    pub(super) fn open(dirs: &GitDirs, worktree: &Path) -> Result<Self, Error> {
        let git_dir = dirs.git_dir.join(NAME);
        let objects = git_dir.join("objects");
        let shadow = Self { git_dir, objects, worktree: worktree.to_owned() };
        shadow.furnish(dirs)?;
        let borrowed = dirs.common.join("objects");
        shadow.write("objects/info/alternates", &[borrowed.as_os_str().as_bytes(), b"\n"].concat())?;
        shadow.write("shallow", &fs::read(dirs.common.join("shallow")).unwrap_or_default())?;
        Ok(shadow)
    }

    /// For a repository inside, which lends its objects to the whole.
    pub(super) fn nested(&self, dirs: &GitDirs, worktree: &Path) -> Result<Self, Error> {
        let hash = hex(&Sha256::digest(worktree.as_os_str().as_bytes()));
        let git_dir = self.git_dir.join("nested").join(&hash[..16]);
        let shadow = Self { git_dir, objects: self.objects.clone(), worktree: worktree.to_owned() };
        shadow.furnish(dirs)?;
        self.add_line("objects/info/alternates", dirs.common.join("objects").as_os_str().as_bytes())?;
        for line in fs::read(dirs.common.join("shallow")).unwrap_or_default().split(|byte| *byte == b'\n') {
            self.add_line("shallow", line)?;
        }
        Ok(shadow)
    }

    /// Forgets everything; what is made next is whole.
    pub(super) fn wipe(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.git_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.fail(&error)),
            _ => Ok(()),
        }
    }

    /// Its index.
    pub(super) fn index(&self) -> PathBuf {
        self.git_dir.join("index")
    }

    /// A git command that sees the files through it.
    pub(super) fn git(&self) -> Process {
        git(&self.worktree)
            .env("GIT_DIR", &self.git_dir)
            .env("GIT_WORK_TREE", &self.worktree)
            .env("GIT_OBJECT_DIRECTORY", &self.objects)
            .env("GIT_LITERAL_PATHSPECS", "1")
            .args(["-c", "core.fsmonitor=false", "-c", "core.splitIndex=false", "-c", "core.sparseCheckout=false"])
            .args(["-c", "core.autocrlf=false", "-c", "core.safecrlf=false", "-c", "core.attributesFile=/dev/null"])
            .args(["-c", "core.protectNTFS=false", "-c", "core.protectHFS=false", "-c", "core.untrackedCache=false"])
            // Nothing here is precious: what counts is the checkpoint's file, which is synced.
            .args(["-c", "core.fsync=none", "-c", "feature.manyFiles=false", "-c", "index.version=2"])
    }

    /// Opened for objects.
    pub(super) fn repository(&self) -> Result<git2::Repository, Error> {
        git2::Repository::open(&self.git_dir).map_err(|error| Error::refused(format!("cannot open a shadow: {error}")))
    }

    /// Writes a file of it, if it is another than it was.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.git_dir.join(name);
        if fs::read(&path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        fs::write(&path, bytes).map_err(|error| self.fail(&error))
    }

    fn furnish(&self, dirs: &GitDirs) -> Result<(), Error> {
        for dir in ["refs", "info", "objects/info", "objects/pack"] {
            fs::create_dir_all(self.git_dir.join(dir)).map_err(|error| self.fail(&error))?;
        }
        // Nobody else takes it, and one capture runs at a time: whoever held it is dead.
        let _ = fs::remove_file(self.git_dir.join("index.lock"));
        self.write("HEAD", b"ref: refs/heads/none\n")?;
        self.write("config", b"[core]\n\trepositoryformatversion = 0\n\tbare = false\n\tfilemode = true\n")?;
        self.write("info/attributes", ATTRIBUTES.as_bytes())?;
        self.write("info/exclude", &fs::read(dirs.common.join("info/exclude")).unwrap_or_default())
    }

    fn add_line(&self, name: &str, line: &[u8]) -> Result<(), Error> {
        let mut text = fs::read(self.git_dir.join(name)).unwrap_or_default();
        // Git has no way to write such a path there.
        if line.is_empty() || line.contains(&b'\n') || text.split(|byte| *byte == b'\n').any(|known| known == line) {
            return Ok(());
        }
        text.extend(line);
        text.push(b'\n');
        self.write(name, &text)
    }

    fn fail(&self, error: &io::Error) -> Error {
        Error::refused(format!("cannot write {}: {error}", self.git_dir.display()))
    }
}

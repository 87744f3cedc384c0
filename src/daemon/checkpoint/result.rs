//! Results: a commit as a pack that needs nothing but what everybody has, and into a repository again.

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{Error, capture::resolve, container};
use crate::daemon::{
    attempt_dir::Place,
    git::{LOCAL_TIMEOUT, LONG_TIMEOUT, attempt, blocking, git, succeed},
    repository::{RepoRef, has_commit},
};

/// A result as a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedResult {
    /// The file, on the disk.
    pub file: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256 in hex.
    pub sha256: String,
}

/// Packs the commit and all that it reaches, without what these names (see [`super::Source::exclude`]) reach, into the file
/// `into`. Each object in it is whole, so it can be unpacked anywhere.
pub async fn pack_result(place: &Place, commit: &str, exclude: &[String], into: &Path) -> Result<PackedResult, Error> {
    let fail = |error: std::io::Error| Error::refused(format!("cannot write {}: {error}", into.display()));
    let revs = {
        let opened = place.repo.open()?;
        let Some(commit) = has_commit(&opened, commit) else {
            return Err(Error::repository(format!("the result {commit} is not in {}", place.repo.shown())));
        };
        let mut revs = format!("{commit}\n");
        for id in resolve(&opened, exclude).into_iter().filter(|id| opened.find_commit(*id).is_ok()) {
            revs.push_str(&format!("^{id}\n"));
        }
        revs
    };
    if let Some(parent) = into.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    let temporary = into.with_extension("new");
    let output = attempt("pack the result", LONG_TIMEOUT, || {
        let args = ["pack-objects", "--revs", "--stdout", "-q", "--delta-base-offset"];
        let process = git(&place.repo.git_dir).args(args).stdin(revs.as_str());
        match fs::File::create(&temporary) {
            Ok(file) => process.stdout_to(file),
            Err(_) => process,
        }
    })
    .await?;
    if !output.success() {
        let _ = fs::remove_file(&temporary);
        return Err(Error::refused(format!("cannot pack the result: {}", output.complaint())));
    }
    fs::File::open(&temporary).and_then(|file| file.sync_all()).map_err(fail)?;
    fs::rename(&temporary, into).map_err(fail)?;
    let path = into.to_owned();
    let (bytes, sha256) = blocking(move || container::seal(&path)).await?;
    Ok(PackedResult { file: into.to_owned(), bytes, sha256 })
}

/// Brings a result from its file into a repository: verified, on the disk, and held by the ref. Repeating it is harmless.
pub async fn import_result(
    repo: &RepoRef,
    file: &Path,
    sha256: &str,
    commit: &str,
    result_ref: &str,
) -> Result<(), Error> {
    let stored = container::ChainFile { path: file.to_owned(), sha256: sha256.to_owned() };
    blocking(move || container::verify(&stored)).await?;
    // Beside the repository until it is known to be whole: nobody may take it for what is here, or leave out what is in it.
    let apart = Apart::new(repo)?;
    let apart_git = || git(&repo.git_dir).env("GIT_OBJECT_DIRECTORY", &apart.0);
    let unpack = || {
        let process = apart_git().args(["-c", "core.fsync=all", "index-pack", "--stdin", "--fix-thin"]);
        match fs::File::open(file) {
            Ok(file) => process.stdin_from(file),
            Err(_) => process,
        }
    };
    succeed("unpack a result", LONG_TIMEOUT, unpack).await?;
    let missing = || apart_git().args(["rev-list", "--quiet", "--objects", commit, "--not", "--all"]);
    let output = attempt("look at a result", LONG_TIMEOUT, missing).await?;
    if !output.success() {
        return Err(Error::repository(format!(
            "{} lacks what the result {commit} builds on ({}): fetch it first",
            repo.shown(),
            output.complaint()
        )));
    }
    apart
        .join(repo)
        .map_err(|error| Error::refused(format!("cannot bring a result into {}: {error}", repo.shown())))?;
    let _lock = repo.lock().await?;
    let args = ["-c", "core.fsync=all", "update-ref", "-m", "makima: result", result_ref, commit];
    succeed("set the result", LOCAL_TIMEOUT, || git(&repo.git_dir).args(args)).await?;
    Ok(())
}

/// A directory for objects, from which those of the repository are seen and not the other way round: what git keeps a push in until
/// it takes it. It has the name that git gives those, so that git clears away what a crash has left.
struct Apart(PathBuf);

impl Apart {
    fn new(repo: &RepoRef) -> Result<Self, Error> {
        let fail = |error: std::io::Error| Error::refused(format!("cannot write to {}: {error}", repo.shown()));
        let objects = repo.git_dir.join("objects");
        let apart = Self(objects.join(format!("tmp_objdir-incoming-{}", Uuid::new_v4().simple())));
        fs::create_dir_all(apart.0.join("pack")).map_err(fail)?;
        fs::create_dir_all(apart.0.join("info")).map_err(fail)?;
        let mut line = fs::canonicalize(&objects).map_err(fail)?.into_os_string();
        line.push("\n");
        fs::write(apart.0.join("info/alternates"), line.as_bytes()).map_err(fail)?;
        Ok(apart)
    }

    /// Moves its packs into the repository, each with that by which it is found last.
    fn join(self, repo: &RepoRef) -> std::io::Result<()> {
        let to = repo.git_dir.join("objects/pack");
        fs::create_dir_all(&to)?;
        let mut files: Vec<_> = fs::read_dir(self.0.join("pack"))?.collect::<Result<_, _>>()?;
        files.sort_by_key(|file| file.path().extension().is_some_and(|extension| extension == "idx"));
        for file in files {
            fs::rename(file.path(), to.join(file.file_name()))?;
        }
        fs::File::open(&to)?.sync_all()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

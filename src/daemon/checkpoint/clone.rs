//! Work in a person's hands: a clone of the repository, made into what a checkpoint or a result has.
//!
//! Nothing is written to the repository itself, and no daemon is asked: all there is comes from the files and from the clone.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{ChainFile, Error, Restored, container::Header, diff, restore, result::import_result};
use crate::daemon::{
    attempt_dir::Place,
    git::{LOCAL_TIMEOUT, LONG_TIMEOUT, attempt, git, succeed},
    process::redact_url,
    repository::{RepoRef, has_commit},
};

/// Clones a repository (URL or path) into a directory, which must be empty or not there, and makes it that of a checkpoint:
/// for a person who wants the work in their hands. Without a branch name the one of the attempt is taken.
pub async fn restore_into(
    repository: &str,
    chain: &[ChainFile],
    dir: &Path,
    branch: Option<&str>,
    transcript: Option<&Path>,
) -> Result<Restored, Error> {
    let headers = restore::verify(chain).await?;
    let was_there = dir.exists();
    let full = clone_into(repository, dir).await?;
    let filled = fill_clone(repository, chain, headers, &full, branch, transcript).await;
    if filled.is_err() {
        take_away(&full, was_there);
    }
    filled
}

/// A clone that came to nothing. The directory was empty or not there, so nothing of anybody is in it.
fn take_away(clone: &Path, was_there: bool) {
    let _ = fs::remove_dir_all(clone);
    if was_there {
        let _ = fs::create_dir(clone);
    }
}

/// Clones a repository (URL or path) into a directory, which must be empty or not there; nothing is checked out. Answers where
/// that is.
async fn clone_into(repository: &str, dir: &Path) -> Result<PathBuf, Error> {
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) || dir.is_file() {
        return Err(Error::refused(format!("{} exists and is not empty: name another directory", dir.display())));
    }
    if repository.starts_with('-') {
        return Err(Error::repository(format!("`{repository}` is neither a URL nor a path")));
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent)
        .map_err(|error| Error::refused(format!("cannot create {}: {error}", parent.display())))?;
    let what = format!("clone {}", redact_url(repository));
    let full = std::path::absolute(dir).map_err(|error| Error::refused(error.to_string()))?;
    succeed(&what, LONG_TIMEOUT, || git(parent).args(["clone", "--quiet", "--no-checkout", repository]).arg(&full))
        .await
        .map_err(|error| Error::new(error.class, format!("{}; --repo names another repository", error.message)))?;
    Ok(full)
}

async fn fill_clone(
    repository: &str,
    chain: &[ChainFile],
    headers: Vec<Header>,
    dir: &Path,
    branch: Option<&str>,
    transcript: Option<&Path>,
) -> Result<Restored, Error> {
    let repo = RepoRef { repository: repository.to_owned(), git_dir: dir.join(".git"), cloned: false };
    let stored = restore::Stored::bring(&repo, chain, headers).await?;
    let branch = branch.unwrap_or(&stored.manifest.branch).to_owned();
    let mut warnings = Vec::new();
    if !stored.manifest.branch_commit.is_empty() {
        restore::set_ref(&repo, &format!("refs/heads/{branch}"), &stored.manifest.branch_commit).await?;
    }
    let base_commit = stored.manifest.base_commit.clone();
    let (worktree, shared) = (dir.to_owned(), stored.manifest.shared.clone());
    let place = Place { repo, worktree, branch, base_commit, shared, copied: Vec::new(), env: BTreeMap::new() };
    let transcript = stored.fill(&place, transcript, &mut warnings).await?;
    stored.restored(place, transcript, warnings).await
}

/// A result as somebody finds it who has nothing of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundResult {
    /// The commit.
    pub commit: String,
    /// The commit that the work began from; empty if that is not known.
    pub base_commit: String,
    /// The branch it was made on.
    pub branch: String,
    /// The ref that holds it.
    pub result_ref: String,
    /// Its pack, where the repository does not have it.
    pub pack: Option<ChainFile>,
}

/// Clones a repository (URL or path) into a directory, which must be empty or not there, and checks the result out there, on
/// its branch or that one: for a person who wants it in their hands. Answers the branch.
pub async fn result_into(
    repository: &str,
    result: &FoundResult,
    dir: &Path,
    branch: Option<&str>,
) -> Result<String, Error> {
    let was_there = dir.exists();
    let full = clone_into(repository, dir).await?;
    let branch = branch.unwrap_or(&result.branch).to_owned();
    let made = async {
        let repo = bring_result(repository, result, &full).await?;
        let head = format!("refs/heads/{branch}");
        let put = ["update-ref", "-m", "makima: restore", head.as_str(), result.commit.as_str()];
        succeed("make the branch", LOCAL_TIMEOUT, || git(&repo.git_dir).args(put)).await?;
        let go = ["checkout", "--quiet", "--force", branch.as_str(), "--"];
        succeed("check the result out", LONG_TIMEOUT, || git(&full).args(go)).await
    };
    match made.await {
        Ok(_) => Ok(branch),
        Err(error) => {
            take_away(&full, was_there);
            Err(error)
        }
    }
}

/// What a result changed, as [`diff()`](super::diff()) tells it. `clone` is a directory that is not there, for a clone of the
/// repository.
pub async fn diff_result(repository: &str, result: &FoundResult, clone: &Path, most: usize) -> Result<String, Error> {
    let full = clone_into(repository, clone).await?;
    let repo = bring_result(repository, result, &full).await?;
    diff::compare(&repo, &result.base_commit, &result.commit, most).await
}

/// Has the result in a clone of its repository: from its pack, or from where the clone is from.
async fn bring_result(repository: &str, result: &FoundResult, clone: &Path) -> Result<RepoRef, Error> {
    let repo = RepoRef { repository: repository.to_owned(), git_dir: clone.join(".git"), cloned: false };
    let FoundResult { commit, result_ref, .. } = result;
    if has_commit(&repo.open()?, commit).is_some() {
        return Ok(repo);
    }
    if let Some(pack) = &result.pack {
        import_result(&repo, &pack.path, &pack.sha256, commit, result_ref).await?;
        return Ok(repo);
    }
    let fetch = ["fetch", "--quiet", "--no-tags", "origin", result_ref.as_str()];
    let output = attempt("fetch the result", LONG_TIMEOUT, || git(&repo.git_dir).args(fetch)).await?;
    if has_commit(&repo.open()?, commit).is_none() {
        let why = if output.success() { format!("{result_ref} is another commit") } else { output.complaint() };
        let text = format!("the result {commit} is not in {} ({why}); --repo names another repository", repo.shown());
        return Err(Error::repository(text));
    }
    Ok(repo)
}

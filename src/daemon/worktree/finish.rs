//! Turning what an agent left into a result.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use git2::{Oid, RepositoryState};

use super::{
    Error, Finished, Look, admin_dir, identity, look, named,
    prepare::one_line,
    split_nul,
    status::{Change, Status, status},
};
use crate::{
    daemon::{
        attempt_dir::{Manifest, Place},
        git::{LOCAL_TIMEOUT, LONG_TIMEOUT, attempt, blocking, git, succeed},
        secrets::looks_secret,
    },
    domain::attempt::{FailureClass, TaskResult},
};

/// What a push of a result has: it is tried, not waited for.
const PUSH_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Objects put on the disk one by one; more are put there by syncing the whole file system.
const MAX_SYNCED_OBJECTS: usize = 20_000;
/// Bytes of the first line of a commit message.
const MAX_SUBJECT: usize = 100;

/// Commits what is left on the branch and sets the result ref. No process of the attempt may be alive. Repeating it, after a
/// crash in the middle, comes to the same result.
pub async fn finish(manifest: &Manifest) -> Result<Finished, Error> {
    let Some(place) = &manifest.place else {
        return Err(Error::new(FailureClass::WorktreeLost, "the attempt has no worktree"));
    };
    refuse_broken(place)?;
    let mut warnings = Vec::new();
    remove_dead_locks(&place.worktree);
    let found = status(&place.worktree).await?;
    refuse_unfinished(place, &found).await?;
    let attached = detach_from_foreign_branch(place, &found).await?;
    let commit = commit_rest(manifest, place, found, &mut warnings).await?;
    // A directory that was being deleted has been committed as one without files: that is nobody's result.
    refuse_broken(place)?;
    let branch = place_on_branch(place, &commit, attached, &mut warnings).await?;
    // What an attempt starts from is not its doing, and is on the disk before it begins.
    if commit != place.base_commit {
        look_for_committed_secrets(place, &commit, &mut warnings).await?;
        make_durable(place, &commit).await?;
    }
    let result_ref = manifest.spawn.result_ref.clone();
    set_ref(place, &result_ref, &commit).await?;
    let published = publish(place, &result_ref, &commit, &mut warnings).await?;
    Ok(Finished { result: TaskResult { commit, branch, result_ref, published, ..TaskResult::default() }, warnings })
}

fn refuse_broken(place: &Place) -> Result<(), Error> {
    match look(place) {
        Look::Intact { .. } => Ok(()),
        Look::Broken { what } => Err(Error::new(FailureClass::WorktreeLost, what)),
        Look::Unknown { why } => Err(Error::new(FailureClass::WorktreeLost, why)),
    }
}

/// Nobody is alive who could hold a lock of this worktree.
pub(super) fn remove_dead_locks(worktree: &Path) {
    let Some(admin) = admin_dir(worktree) else { return };
    for name in ["index.lock", "HEAD.lock"] {
        if fs::remove_file(admin.join(name)).is_ok() {
            tracing::info!(worktree = %worktree.display(), name, "removed a lock that the agent's git left");
        }
    }
}

/// An agent that left git in the middle of something has not finished, whatever it says.
async fn refuse_unfinished(place: &Place, found: &Status) -> Result<(), Error> {
    let worktree = place.worktree.clone();
    if !found.unmerged.is_empty() {
        let message = format!("the agent left conflicts unresolved in {}", named(&found.unmerged));
        return Err(Error::new(FailureClass::AgentError, message));
    }
    let state = blocking(move || {
        let opened = git2::Repository::open(&worktree).map_err(|error| git2_error(&error))?;
        Ok(opened.state())
    });
    let middle = match state.await? {
        RepositoryState::Rebase | RepositoryState::RebaseInteractive | RepositoryState::RebaseMerge => "a rebase",
        RepositoryState::ApplyMailbox | RepositoryState::ApplyMailboxOrRebase => "`git am`",
        RepositoryState::Bisect => "a bisection",
        // The commit below concludes these.
        RepositoryState::Clean
        | RepositoryState::Merge
        | RepositoryState::Revert
        | RepositoryState::RevertSequence
        | RepositoryState::CherryPick
        | RepositoryState::CherryPickSequence => return Ok(()),
    };
    Err(Error::new(FailureClass::AgentError, format!("the agent left {middle} unfinished")))
}

/// Where HEAD is on a branch that is not ours, the rest is committed beside it: that branch stays where the agent left it.
/// Answers whether HEAD is on our branch.
async fn detach_from_foreign_branch(place: &Place, found: &Status) -> Result<bool, Error> {
    let dir = &place.worktree;
    if found.branch.as_ref() == Some(&place.branch) {
        return Ok(true);
    }
    if let (Some(_), Some(id)) = (&found.branch, &found.commit) {
        succeed("detach HEAD", LOCAL_TIMEOUT, || git(dir).args(["update-ref", "--no-deref", "HEAD", id])).await?;
    }
    Ok(false)
}

// === the commit ===

/// Commits what was found, but for what nobody would want in a commit. Answers the commit that HEAD names then.
async fn commit_rest(
    manifest: &Manifest,
    place: &Place,
    found: Status,
    warnings: &mut Vec<String>,
) -> Result<String, Error> {
    let dir = &place.worktree;
    let is_staged = found.changes.iter().any(Change::is_staged);
    let copied: HashSet<&Path> = place.copied.iter().map(PathBuf::as_path).collect();
    let (mut add, mut unstage, mut secrets, mut nested) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for change in found.changes {
        let is_copy = copied.contains(Path::new(OsStr::from_bytes(&change.path)));
        if change.is_new() && (is_copy || looks_secret(&change.shown())) {
            if !is_copy {
                secrets.push(change.shown());
            }
            if change.index == b'A' {
                unstage.push(change.path);
            }
        } else if change.index == b'?' && change.path.ends_with(b"/") {
            nested.push(change.shown());
        } else if change.tree != b'.' {
            add.push(change.path);
        }
    }
    if !secrets.is_empty() {
        warnings.push(format!("left out of the commit, since they look like secrets: {}", named(&secrets)));
    }
    if !nested.is_empty() {
        warnings.push(format!("left out of the commit, since they are repositories of their own: {}", named(&nested)));
    }
    let is_touched = !unstage.is_empty() || !add.is_empty();
    if !unstage.is_empty() {
        let input = unstage.join(&0);
        succeed("leave files out", LOCAL_TIMEOUT, || {
            let reset = ["reset", "--quiet", "--pathspec-from-file=-", "--pathspec-file-nul"];
            git(dir).env("GIT_LITERAL_PATHSPECS", "1").args(reset).stdin(input.clone())
        })
        .await?;
    }
    if !add.is_empty() {
        stage(dir, &add.join(&0), warnings).await?;
    }
    let differs = if is_touched { differs_from_head(dir).await? } else { is_staged };
    let merging = admin_dir(dir).is_some_and(|admin| admin.join("MERGE_HEAD").exists());
    if let Some(commit) = found.commit.filter(|_| !differs && !merging) {
        return Ok(commit);
    }
    let (message, identity) = (message(manifest), identity(dir).await?);
    succeed("commit the agent's changes", LONG_TIMEOUT, || {
        git(dir)
            .envs(identity.iter().cloned())
            .args(["-c", "core.fsync=all"])
            .args(["commit", "--quiet", "--no-verify", "--allow-empty", "--cleanup=verbatim", "--file=-"])
            .stdin(message.clone())
    })
    .await?;
    let head = succeed("read HEAD", LOCAL_TIMEOUT, || git(dir).args(["rev-parse", "--verify", "HEAD"]));
    Ok(head.await?.text())
}

/// What was added may have come to the same as what was there.
async fn differs_from_head(dir: &Path) -> Result<bool, Error> {
    let look = || git(dir).args(["diff", "--cached", "--quiet", "--ignore-submodules=none"]);
    Ok(!attempt("look at the index", LOCAL_TIMEOUT, look).await?.success())
}

/// Stages these; what cannot be read is left out and named.
async fn stage(dir: &Path, names: &[u8], warnings: &mut Vec<String>) -> Result<(), Error> {
    let add = |rest: &'static [&'static str]| {
        git(dir)
            .env("GIT_LITERAL_PATHSPECS", "1")
            .args(["-c", "core.fsync=all", "-c", "core.safecrlf=false", "-c", "advice.addEmbeddedRepo=false"])
            .args(["add", "--all", "--pathspec-from-file=-", "--pathspec-file-nul"])
            .args(rest.iter().copied())
            .stdin(names)
    };
    let output = attempt("add the agent's changes", LONG_TIMEOUT, || add(&[])).await?;
    if !output.success() {
        let output = attempt("add the agent's changes", LONG_TIMEOUT, || add(&["--ignore-errors"])).await?;
        if output.code != Some(0) && output.code != Some(1) {
            let message = format!("cannot add the agent's changes: {}", output.complaint());
            return Err(Error::new(FailureClass::AgentError, message));
        }
        warnings.push(format!("not everything could be added to the commit: {}", output.complaint()));
    }
    Ok(())
}

fn message(manifest: &Manifest) -> String {
    let mut subject = one_line(&manifest.spawn.name);
    if subject.len() > MAX_SUBJECT {
        let end = (0..=MAX_SUBJECT).rev().find(|at| subject.is_char_boundary(*at)).unwrap_or_default();
        subject.truncate(end);
        subject.push('…');
    }
    if subject.is_empty() {
        subject = "Work of an agent".into();
    }
    format!("{subject}\n\nMakima-Task: {}\nMakima-Attempt: {}\n", manifest.attempt.task, manifest.attempt.number)
}

/// What an agent has committed itself is its own doing, and worth a look.
async fn look_for_committed_secrets(place: &Place, commit: &str, warnings: &mut Vec<String>) -> Result<(), Error> {
    if place.base_commit.is_empty() {
        return Ok(());
    }
    let output = attempt("compare with the start", LONG_TIMEOUT, || {
        let range = [place.base_commit.as_str(), commit, "--"];
        git(&place.worktree).args(["diff", "--name-only", "--diff-filter=A", "--no-renames", "-z"]).args(range)
    })
    .await?;
    let secrets: Vec<String> = split_nul(&output.stdout).into_iter().filter(|path| looks_secret(path)).collect();
    if !secrets.is_empty() {
        warnings.push(format!("the agent committed files that look like secrets: {}", named(&secrets)));
    }
    Ok(())
}

// === the branch ===

/// Sees to it that a branch holds the result: ours, if that is a step forward, else one beside it.
async fn place_on_branch(
    place: &Place,
    commit: &str,
    attached: bool,
    warnings: &mut Vec<String>,
) -> Result<String, Error> {
    if attached {
        return Ok(place.branch.clone());
    }
    let worktree = place.worktree.clone();
    let (ours, tip) = (place.branch.clone(), commit.to_owned());
    let forward = blocking(move || {
        let opened = git2::Repository::open(&worktree).map_err(|error| git2_error(&error))?;
        let tip = Oid::from_str(&tip).map_err(|error| git2_error(&error))?;
        let branch = opened.refname_to_id(&format!("refs/heads/{ours}"));
        Ok(branch.map_or(true, |at| at == tip || opened.graph_descendant_of(tip, at).unwrap_or(false)))
    })
    .await?;
    let branch = if forward { place.branch.clone() } else { format!("{}-result", place.branch) };
    set_ref(place, &format!("refs/heads/{branch}"), commit).await?;
    let dir = &place.worktree;
    let name = format!("refs/heads/{branch}");
    succeed("set HEAD", LOCAL_TIMEOUT, || git(dir).args(["symbolic-ref", "HEAD", &name])).await?;
    warnings.push(if forward {
        format!("the agent had left the branch `{branch}`; it now has what the agent made elsewhere")
    } else {
        format!("the agent had left the branch `{}` for other commits; they are on `{branch}`", place.branch)
    });
    Ok(branch)
}

// === the result ===

/// Loose objects are not synced by git unless it is told to, and it was the agent's own git that wrote most of them.
async fn make_durable(place: &Place, commit: &str) -> Result<(), Error> {
    let base = place.base_commit.clone();
    let listed = succeed("list the result's objects", LONG_TIMEOUT, || {
        let not_base = if base.is_empty() { Vec::new() } else { vec![format!("^{base}")] };
        git(&place.worktree).args(["rev-list", "--objects", "--no-object-names", commit]).args(not_base)
    })
    .await?;
    let objects = place.repo.git_dir.join("objects");
    blocking(move || {
        let text = String::from_utf8_lossy(&listed.stdout);
        let ids: Vec<&str> = text.lines().filter(|id| id.len() > 2).collect();
        let fail = |error: std::io::Error| Error::refused(format!("cannot put the result on the disk: {error}"));
        if ids.len() > MAX_SYNCED_OBJECTS || listed.truncated {
            let dir = File::open(&objects).map_err(fail)?;
            return rustix::fs::syncfs(&dir).map_err(|error| fail(error.into()));
        }
        let mut dirs = HashSet::new();
        for id in ids {
            let dir = objects.join(&id[..2]);
            match File::open(dir.join(&id[2..])) {
                Ok(file) => file.sync_all().map_err(fail)?,
                // In a pack, which git syncs, or in a repository this one borrows from.
                Err(_) => continue,
            }
            dirs.insert(dir);
        }
        for dir in dirs.iter().chain([&objects]) {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail)?;
        }
        Ok(())
    })
    .await
}

async fn set_ref(place: &Place, name: &str, commit: &str) -> Result<(), Error> {
    let _lock = place.repo.lock().await?;
    succeed("set the result", LOCAL_TIMEOUT, || {
        git(&place.repo.git_dir).args(["-c", "core.fsync=all"]).args([
            "update-ref",
            "-m",
            "makima: result",
            name,
            commit,
        ])
    })
    .await?;
    Ok(())
}

/// Pushes the result to origin. A path repository has it already.
async fn publish(place: &Place, name: &str, commit: &str, warnings: &mut Vec<String>) -> Result<bool, Error> {
    if !place.repo.cloned {
        return Ok(true);
    }
    let pushed = attempt("push the result", PUSH_TIMEOUT, || {
        git(&place.repo.git_dir).args(["push", "--quiet", "--no-verify", "origin"]).arg(format!("+{commit}:{name}"))
    })
    .await;
    let why = match pushed {
        Ok(output) if output.success() => return Ok(true),
        Ok(output) => output.complaint(),
        Err(error) => error.message,
    };
    warnings.push(format!("origin did not take the result, so only this machine has it: {why}"));
    Ok(false)
}

fn git2_error(error: &git2::Error) -> Error {
    Error::repository(format!("cannot look at the worktree: {}", error.message()))
}

//! Making a worktree.

use std::{
    fs,
    path::{Path, PathBuf},
};

use git2::Oid;

use super::{Error, Prepared, copy, identity, named, split_nul};
use crate::{
    daemon::{
        attempt_dir::Place,
        git::{LOCAL_TIMEOUT, LONG_TIMEOUT, Share, attempt, blocking, git, succeed},
        repository::{RepoRef, fetch_refs, free_name, has_commit},
    },
    domain::{
        AttemptRef,
        order::{DependencyResult, Spawn},
    },
};

/// The result of a dependency, found in the repository.
#[derive(Clone, Debug)]
struct Tip {
    name: String,
    commit: Oid,
}

/// Makes the worktree of an attempt at `path`. Repeating it after a crash repairs what is there.
pub async fn prepare(repo: &RepoRef, spawn: &Spawn, attempt: AttemptRef, path: &Path) -> Result<Prepared, Error> {
    let mut warnings = Vec::new();
    let results = dependencies(spawn);
    bring(repo, &results).await?;
    let lock = repo.lock().await?;
    let Start { commit: start, tips, shared } = start_point(repo, spawn, results).await?;
    clear_the_way(repo, path, &mut warnings).await?;
    let branch = choose_branch(repo, &spawn.branch, start, &mut warnings).await?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .map_err(|error| Error::refused(format!("cannot create {}: {error}", parent.display())))?;
    }
    succeed("make a worktree", LONG_TIMEOUT, || {
        git(&repo.git_dir)
            .args(["worktree", "add", "--quiet", "--no-checkout", "--force", "--force", "-B", &branch])
            .arg(path)
            .arg(start.to_string())
            .tidies_up()
    })
    .await?;
    drop(lock);
    let filled = fill(repo, spawn, attempt, path, start, &tips).await;
    let (base_commit, copied, env) = match filled {
        Ok((base_commit, copied, mut copy_warnings, env)) => {
            warnings.append(&mut copy_warnings);
            (base_commit, copied, env)
        }
        Err(error) => {
            discard(repo, path, &branch).await;
            return Err(error);
        }
    };
    let env = env.into_iter().collect();
    let place = Place { repo: repo.clone(), worktree: path.to_owned(), branch, base_commit, shared, copied, env };
    Ok(Prepared { place, warnings })
}

type Filled = (String, Vec<std::path::PathBuf>, Vec<String>, Vec<(String, String)>);

/// Checks out, merges, copies: what takes time and needs no lock.
async fn fill(
    repo: &RepoRef,
    spawn: &Spawn,
    attempt: AttemptRef,
    path: &Path,
    start: Oid,
    tips: &[Tip],
) -> Result<Filled, Error> {
    let check_out = async {
        let share = Share::take();
        succeed("check out the files", LONG_TIMEOUT, || {
            git(path).args(["-c", &share.workers(), "reset", "--quiet", "--hard"])
        })
        .await
    };
    // Who the agent is to git does not depend on the files, and takes two processes to find out.
    let (checked_out, env) = tokio::join!(check_out, identity(path));
    checked_out?;
    let env = env?;
    let base_commit = match tips.len() {
        0 | 1 => start.to_string(),
        _ => {
            merge(path, tips, &env, &spawn.name, attempt).await?;
            succeed("read HEAD", LOCAL_TIMEOUT, || git(path).args(["rev-parse", "HEAD"])).await?.text()
        }
    };
    let (copied, copy_warnings) = copy::copy_files(repo, &spawn.copy_files, path).await?;
    Ok((base_commit, copied, copy_warnings, env))
}

/// Brings what a checkpoint does not have to a worktree that was made from one: a git identity and `copy_files`. Answers the
/// place with them, and things worth a look.
pub async fn furnish(place: Place, spawn: &Spawn) -> Result<(Place, Vec<String>), Error> {
    let env = identity(&place.worktree).await?.into_iter().collect();
    let (copied, warnings) = copy::copy_files(&place.repo, &spawn.copy_files, &place.worktree).await?;
    Ok((Place { copied, env, ..place }, warnings))
}

/// Takes back a worktree in which nobody has worked.
pub(in crate::daemon) async fn discard(repo: &RepoRef, path: &Path, branch: &str) {
    let Ok(_lock) = repo.lock().await else { return };
    let remove = || git(&repo.git_dir).args(["worktree", "remove", "--force", "--force"]).arg(path);
    let _ = attempt("remove a worktree", LONG_TIMEOUT, remove).await;
    let delete = || git(&repo.git_dir).args(["branch", "--quiet", "-D", branch]);
    let _ = attempt("delete a branch", LOCAL_TIMEOUT, delete).await;
}

// === the start ===

/// Dependencies that made something, in an order that does not depend on who asked.
fn dependencies(spawn: &Spawn) -> Vec<DependencyResult> {
    let mut results: Vec<_> = spawn.dependencies.iter().filter(|d| !d.commit.is_empty()).cloned().collect();
    results.sort_by_key(|dependency| dependency.task);
    results
}

/// Fetches results that are not here and may be at origin.
async fn bring(repo: &RepoRef, results: &[DependencyResult]) -> Result<(), Error> {
    let refs: Vec<String> = {
        let opened = repo.open()?;
        let missing = results.iter().filter(|d| has_commit(&opened, &d.commit).is_none());
        missing.map(|dependency| dependency.result_ref.clone()).filter(|name| !name.is_empty()).collect()
    };
    if repo.cloned && !refs.is_empty() {
        let _lock = repo.lock().await?;
        fetch_refs(repo, &refs).await?;
    }
    Ok(())
}

/// What a worktree begins with.
struct Start {
    commit: Oid,
    /// Results, the first of which is that commit; the others are merged into it.
    tips: Vec<Tip>,
    /// See [`Place::shared`].
    shared: Option<String>,
}

async fn start_point(repo: &RepoRef, spawn: &Spawn, results: Vec<DependencyResult>) -> Result<Start, Error> {
    let (repo, base) = (repo.clone(), spawn.base_branch.clone());
    let base_name = base.clone();
    blocking(move || {
        let opened = repo.open()?;
        let mut tips: Vec<Tip> = Vec::new();
        for dependency in results {
            let Some(commit) = has_commit(&opened, &dependency.commit) else {
                return Err(Error::refused(format!(
                    "the result of `{}` ({}) is not in {} on this machine: its daemon could not publish it",
                    dependency.name,
                    dependency.commit,
                    repo.shown(),
                )));
            };
            let has = |a: Oid, b: Oid| a == b || opened.graph_descendant_of(a, b).unwrap_or(false);
            if tips.iter().any(|tip| has(tip.commit, commit)) {
                continue;
            }
            tips.retain(|tip| !has(commit, tip.commit));
            tips.push(Tip { name: dependency.name, commit });
        }
        let base = repo.base_commit(&opened, &base);
        // With results to begin with nothing else is needed of the base.
        let (commit, base) = match tips.first() {
            Some(tip) => (tip.commit, base.ok()),
            None => base.map(|base| (base, Some(base)))?,
        };
        // A commit of a URL may be on no branch that anybody else has.
        let base = base.filter(|_| !repo.cloned || repo.is_named(&opened, &base_name));
        let shared = repo.shared(&opened, base, commit);
        Ok(Start { commit, tips, shared })
    })
    .await
}

/// Merges what the first tip does not have yet, one after the other.
async fn merge(path: &Path, tips: &[Tip], env: &[(String, String)], name: &str, of: AttemptRef) -> Result<(), Error> {
    for (at, tip) in tips.iter().enumerate().skip(1) {
        let subject = format!("Merge the result of `{}` for `{}`", one_line(&tip.name), one_line(name));
        let message = format!("{subject}\n\nMakima-Task: {}\nMakima-Attempt: {}\n", of.task, of.number);
        let output = attempt("merge results", LONG_TIMEOUT, || {
            git(path)
                .envs(env.iter().cloned())
                .args(["-c", "rerere.enabled=false", "-c", "merge.verifySignatures=false", "-c", "core.fsync=all"])
                .args(["merge", "--quiet", "--no-ff", "--no-edit", "--no-log", "-m", &message])
                .arg(tip.commit.to_string())
        })
        .await?;
        if !output.success() {
            return Err(conflict(path, &tips[..at], tip, &output.complaint()).await?);
        }
    }
    Ok(())
}

/// Names the files, and the tasks that made the two sides of each.
async fn conflict(path: &Path, merged: &[Tip], tip: &Tip, complaint: &str) -> Result<Error, Error> {
    let unmerged = || git(path).args(["diff", "--name-only", "--diff-filter=U", "-z"]);
    let files = split_nul(&succeed("list conflicts", LOCAL_TIMEOUT, unmerged).await?.stdout);
    if files.is_empty() {
        return Ok(Error::repository(format!("cannot merge the result of `{}`: {complaint}", tip.name)));
    }
    let mut sides = Vec::new();
    for other in merged {
        let changed = attempt("compare results", LOCAL_TIMEOUT, || {
            git(path)
                .args(["diff", "--name-only", "-z", &format!("{}...{}", tip.commit, other.commit), "--"])
                .args(files.iter().map(|file| format!(":(literal,top){file}")).take(super::MAX_NAMED))
        })
        .await?;
        if changed.success() && !changed.stdout.is_empty() {
            sides.push(format!("`{}`", other.name));
        }
    }
    if sides.is_empty() {
        sides = merged.iter().map(|other| format!("`{}`", other.name)).collect();
    }
    Ok(Error::repository(format!(
        "the results of {} and `{}` conflict in {}; make one of them depend on the other, or merge them in a task of its own",
        named(&sides),
        tip.name,
        named(&files),
    )))
}

/// A name without line breaks and NUL.
pub(super) fn one_line(name: &str) -> String {
    name.split(|c: char| c.is_control()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

// === the way ===

/// A directory that is in the way is removed if it is a worktree in which nothing is to be lost, and else moved aside.
pub(in crate::daemon) async fn clear_the_way(
    repo: &RepoRef,
    path: &Path,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    if fs::remove_dir(path).is_ok() {
        // It was empty.
        return Ok(());
    }
    let clean = path.join(".git").is_file()
        && attempt("look at a leftover worktree", LOCAL_TIMEOUT, || {
            git(path).args(["status", "--porcelain", "--untracked-files=all", "--ignored"])
        })
        .await
        .is_ok_and(|output| output.success() && output.stdout.is_empty())
        && attempt("look at a leftover worktree", LOCAL_TIMEOUT, || git(path).args(["symbolic-ref", "-q", "HEAD"]))
            .await
            .is_ok_and(|output| output.success());
    if clean {
        // Its commits stay on its branch.
        let remove = || git(&repo.git_dir).args(["worktree", "remove", "--force", "--force"]).arg(path);
        if attempt("remove a worktree", LONG_TIMEOUT, remove).await?.success() && !path.exists() {
            return Ok(());
        }
    }
    let aside = free_name(path, "old");
    fs::rename(path, &aside)
        .map_err(|error| Error::refused(format!("cannot move {} aside: {error}", path.display())))?;
    let repair = || git(&repo.git_dir).args(["worktree", "repair"]).arg(&aside);
    // What is no worktree cannot be repaired, and need not be.
    let _ = attempt("repair a worktree", LOCAL_TIMEOUT, repair).await;
    warnings.push(format!("{} was in the way and is now {}", path.display(), aside.display()));
    Ok(())
}

/// A name that git takes: the one that was asked for, if nothing speaks against it.
pub(in crate::daemon) async fn choose_branch(
    repo: &RepoRef,
    asked: &str,
    start: Oid,
    warnings: &mut Vec<String>,
) -> Result<String, Error> {
    let (repo, asked) = (repo.clone(), asked.to_owned());
    let (branch, why) = blocking(move || {
        let opened = repo.open()?;
        let taken = checked_out(&opened);
        if !git2::Reference::is_valid_name(&format!("refs/heads/{asked}")) || asked.starts_with('-') {
            return Err(Error::repository(format!("`{asked}` is no name for a branch")));
        }
        let (mut branch, mut why) = (asked.clone(), None);
        if let Some(prefix) = prefixes(&asked).find(|prefix| has_branch(&opened, prefix)) {
            branch = format!("{}-{}", prefix.replace('/', "-"), &asked[prefix.len() + 1..]);
            why = Some(format!("a branch named `{prefix}` exists, beside which git takes no `{prefix}/…`"));
        }
        let is_free = |name: &str| {
            if taken.iter().any(|taken| taken == name) || prefixes(name).any(|prefix| has_branch(&opened, prefix)) {
                return false;
            }
            let below = opened.references_glob(&format!("refs/heads/{name}/*")).map_or(0, Iterator::count);
            // A branch of an earlier try holds no work that the start does not have, or is kept.
            below == 0
                && opened.find_branch(name, git2::BranchType::Local).map_or(true, |found| {
                    let tip = found.get().target();
                    tip.is_some_and(|tip| tip == start || opened.graph_descendant_of(start, tip).unwrap_or(false))
                })
        };
        if !is_free(&branch) {
            why.get_or_insert_with(|| format!("`{branch}` is in use"));
            branch = (2..).map(|n| format!("{branch}-{n}")).find(|name| is_free(name)).unwrap_or_default();
        }
        Ok((branch, why))
    })
    .await?;
    if let Some(why) = why {
        warnings.push(format!("the branch is `{branch}`: {why}"));
    }
    Ok(branch)
}

/// `a`, `a/b` of `a/b/c`.
fn prefixes(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('/').map(|(at, _)| &name[..at])
}

/// The branches that somebody works on: a checkout has the name of its branch in its HEAD (gitrepository-layout(5)). Read here
/// since git has no cheaper answer than a process that reads more of each.
fn checked_out(repository: &git2::Repository) -> Vec<String> {
    let common = repository.commondir();
    let linked = fs::read_dir(common.join("worktrees")).into_iter().flatten().flatten().map(|entry| entry.path());
    let own = (!repository.is_bare()).then(|| common.to_owned());
    let branch_of = |dir: PathBuf| {
        let head = dir.join("HEAD");
        // A link in old repositories, and where `core.preferSymlinkRefs` asks for it.
        let name = match fs::read_link(&head) {
            Ok(target) => target.to_str()?.to_owned(),
            Err(_) => fs::read_to_string(&head).ok()?.strip_prefix("ref:")?.trim().to_owned(),
        };
        Some(name.strip_prefix("refs/heads/")?.to_owned())
    };
    linked.chain(own).filter_map(branch_of).collect()
}

fn has_branch(repository: &git2::Repository, name: &str) -> bool {
    repository.find_reference(&format!("refs/heads/{name}")).is_ok()
}

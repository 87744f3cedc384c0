//! The worktrees of a state directory, for people who want their disk back.

use std::{fs, path::Path};

use super::{Error, Listed, is_intact};
use crate::{
    daemon::{
        attempt_dir::{AttemptDir, Manifest, Place},
        git::{LOCAL_TIMEOUT, LONG_TIMEOUT, attempt, git},
        shim, sweep,
    },
    domain::attempt::FailureClass,
};

/// Every worktree of this daemon's state directory.
pub async fn list(state: &Path) -> Result<Vec<Listed>, Error> {
    let mut all = Vec::new();
    for (dir, manifest) in manifests(state)? {
        if let Some(place) = &manifest.place {
            all.push(look(&dir, &manifest, place).await?);
        }
    }
    Ok(all)
}

/// Removes a worktree; refuses, saying why, where work would be lost, unless forced. Never one whose agent runs.
pub async fn remove(state: &Path, path: &Path, force: bool) -> Result<(), Error> {
    let refuse = |why: &str| Err(Error::new(FailureClass::Refused, format!("{} {why}", path.display())));
    let wanted = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let is_it = |place: &Place| place.worktree.canonicalize().unwrap_or_else(|_| place.worktree.clone()) == wanted;
    let found = manifests(state)?.into_iter().find_map(|(dir, manifest)| {
        let place = manifest.place.clone().filter(is_it)?;
        Some((dir, manifest, place))
    });
    let Some((dir, manifest, place)) = found else {
        return refuse("is no worktree of this daemon; see `makima worktree list`");
    };
    let listed = look(&dir, &manifest, &place).await?;
    if listed.busy {
        return refuse("is in use by a running agent; cancel its task first");
    }
    if listed.exists && !force {
        if !is_intact(&place) {
            return refuse("is damaged, so nobody can say what would be lost; --force removes it");
        }
        if listed.dirty {
            return refuse("has changes that are in no commit; --force removes it all the same");
        }
        if !listed.published {
            return refuse("has commits that are nowhere else; --force removes it all the same");
        }
    }
    let _lock = place.repo.lock().await?;
    let removed = attempt("remove a worktree", LONG_TIMEOUT, || {
        git(&place.repo.git_dir).args(["worktree", "remove", "--force", "--force"]).arg(&place.worktree)
    })
    .await;
    if !removed.is_ok_and(|output| output.success()) && place.worktree.exists() {
        fs::remove_dir_all(&place.worktree)
            .map_err(|error| Error::refused(format!("cannot remove {}: {error}", place.worktree.display())))?;
    }
    Ok(())
}

fn manifests(state: &Path) -> Result<Vec<(AttemptDir, Manifest)>, Error> {
    let listed = AttemptDir::list_all(state)
        .map_err(|error| Error::refused(format!("cannot list {}: {error}", state.display())))?;
    let known = listed.into_iter().filter_map(|listed| Some((listed.dir, listed.manifest.ok()?)));
    // A worktree that another attempt has taken over is listed as that one's.
    Ok(known.filter(|(_, manifest)| manifest.superseded.is_none()).collect())
}

async fn look(dir: &AttemptDir, manifest: &Manifest, place: &Place) -> Result<Listed, Error> {
    let exists = place.worktree.exists();
    let intact = exists && is_intact(place);
    // Before its shim lives an attempt works here too: with git, or with its setup command.
    let target = sweep::Target { attempt: manifest.attempt.id, leader: None, ancestor: None };
    let busy = shim::is_held(dir).unwrap_or(true) || sweep::is_anything_alive(&target).await.unwrap_or(true);
    Ok(Listed {
        attempt: manifest.attempt,
        name: manifest.spawn.name.clone(),
        path: place.worktree.clone(),
        repository: place.repo.shown(),
        branch: place.branch.clone(),
        exists,
        busy,
        dirty: exists && (!intact || is_dirty(&place.worktree).await?),
        published: intact && is_published(place, &manifest.spawn.result_ref).await?,
    })
}

/// It has changes that are in no commit.
pub(in crate::daemon) async fn is_dirty(worktree: &Path) -> Result<bool, Error> {
    let status = || git(worktree).args(["status", "--porcelain", "--untracked-files=normal"]);
    let output = attempt("look at a worktree", LOCAL_TIMEOUT, status).await?;
    Ok(!output.success() || !output.stdout.is_empty())
}

/// For a clone: origin has the commit, in a branch or as the result. For a path: a ref holds it.
async fn is_published(place: &Place, result_ref: &str) -> Result<bool, Error> {
    let refs = if place.repo.cloned { "refs/remotes/origin/" } else { "refs/" };
    let held = attempt("look for a commit", LOCAL_TIMEOUT, || {
        git(&place.worktree).args(["for-each-ref", "--count=1", "--contains=HEAD", "--format=%(refname)", refs])
    })
    .await?;
    if held.success() && !held.stdout.is_empty() {
        return Ok(true);
    }
    if !place.repo.cloned {
        return Ok(false);
    }
    let head = attempt("read HEAD", LOCAL_TIMEOUT, || git(&place.worktree).args(["rev-parse", "HEAD"])).await?;
    let origin = attempt("ask origin", LOCAL_TIMEOUT, || {
        git(&place.repo.git_dir).args(["ls-remote", "--quiet", "origin", result_ref])
    })
    .await;
    Ok(head.success() && origin.is_ok_and(|output| output.success() && output.text().starts_with(&head.text())))
}

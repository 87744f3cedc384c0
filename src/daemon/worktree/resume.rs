//! Going on in the worktree of an earlier attempt: the same directory, files, index and operation, on a branch of its own.
//!
//! ```text
//!   find       where it was made, or where git was told to move it      checked against its entry in the repository
//!   plan       a branch that is free; goes into the new manifest        nothing is changed yet
//!   take_over  locks of the dead removed ── branch at HEAD ── HEAD on it    again after a crash: what is missing of it
//! ```
//!
//! Index and files are not touched. A HEAD that is not on the earlier attempt's branch (detached, in the middle of a rebase,
//! on a branch that the agent made) stays where it is: `finish` brings the result to our branch in the end.

use std::{
    fs,
    path::{Path, PathBuf},
};

use git2::Oid;

use super::{Error, admin_dir, finish::remove_dead_locks, is_intact, prepare::choose_branch};
use crate::{
    daemon::{
        attempt_dir::Place,
        git::{LOCAL_TIMEOUT, attempt, git, succeed},
    },
    domain::TaskId,
};

/// The place as it is now: where it was made, or, if that is gone, where git was told to move it. `None`: the worktree is
/// gone or damaged, or what stands there is another one.
pub fn find(place: &Place, task: TaskId) -> Option<Place> {
    if is_intact(place) && is_registered_here(&place.worktree) {
        return Some(place.clone());
    }
    // Its entry keeps the name that it was made with, which has the short id of the task in it.
    let name = place.worktree.file_name()?.to_string_lossy().into_owned();
    let entries = fs::read_dir(place.repo.git_dir.join("worktrees")).ok()?;
    let is_ours = |entry: &str| entry == name && entry.starts_with(&task.short());
    entries
        .flatten()
        .filter(|entry| is_ours(&entry.file_name().to_string_lossy()))
        .filter_map(|entry| registered(&entry.path()))
        .map(|worktree| Place { worktree, ..place.clone() })
        .find(|place| is_intact(place) && is_registered_here(&place.worktree))
}

/// The place with a branch for the attempt that goes on there, and things worth a look. Changes nothing.
pub async fn plan(earlier: &Place, branch: &str) -> Result<(Place, Vec<String>), Error> {
    let mut warnings = Vec::new();
    let head = git_head(&earlier.worktree).await?;
    let start = head.commit.as_deref().and_then(|id| Oid::from_str(id).ok()).unwrap_or(Oid::ZERO_SHA1);
    let _lock = earlier.repo.lock().await?;
    let branch = choose_branch(&earlier.repo, branch, start, &mut warnings).await?;
    Ok((Place { branch, ..earlier.clone() }, warnings))
}

/// Makes the worktree of `earlier` that of `place`, which [`plan`] has made. No process of the earlier attempt may be alive.
/// Repeating it after a crash does what is missing.
pub async fn take_over(earlier: &Place, place: &Place) -> Result<(), Error> {
    let dir = &place.worktree;
    remove_dead_locks(dir);
    let name = |branch: &str| format!("refs/heads/{branch}");
    let lock = place.repo.git_dir.join(format!("{}.lock", name(&earlier.branch)));
    if fs::remove_file(&lock).is_ok() {
        tracing::info!(lock = %lock.display(), "removed a lock that the earlier agent's git left");
    }
    let head = git_head(dir).await?;
    let (Some(on), Some(commit)) = (&head.on, &head.commit) else { return Ok(()) };
    if *on != name(&earlier.branch) || earlier.branch == place.branch {
        return Ok(());
    }
    let _lock = place.repo.lock().await?;
    let ours = name(&place.branch);
    succeed("make a branch", LOCAL_TIMEOUT, || {
        let update = ["update-ref", "-m", "makima: goes on", &ours, commit];
        git(&place.repo.git_dir).args(["-c", "core.fsync=all"]).args(update)
    })
    .await?;
    succeed("set HEAD", LOCAL_TIMEOUT, || git(dir).args(["symbolic-ref", "-m", "makima: goes on", "HEAD", &ours]))
        .await?;
    Ok(())
}

/// Where HEAD is.
struct Head {
    /// The full ref; `None`: it is detached.
    on: Option<String>,
    /// The commit; `None`: there is none yet.
    commit: Option<String>,
}

async fn git_head(dir: &Path) -> Result<Head, Error> {
    let on = attempt("read HEAD", LOCAL_TIMEOUT, || git(dir).args(["symbolic-ref", "-q", "HEAD"])).await?;
    let commit = attempt("read HEAD", LOCAL_TIMEOUT, || git(dir).args(["rev-parse", "-q", "--verify", "HEAD"])).await?;
    let text = |output: crate::daemon::process::Output| output.success().then(|| output.text());
    Ok(Head { on: text(on), commit: text(commit) })
}

/// The worktree that an entry of the repository says it is for.
fn registered(admin: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(admin.join("gitdir")).ok()?;
    Some(admin.join(text.trim()).parent()?.to_owned())
}

/// The entry that a worktree points to says that it is for this one: a copy beside the original is not it.
fn is_registered_here(worktree: &Path) -> bool {
    let registered = admin_dir(worktree).and_then(|admin| registered(&admin)?.canonicalize().ok());
    registered.is_some() && registered == worktree.canonicalize().ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::daemon::{
        attempt_dir::{Manifest, tests as dirs},
        git::testing::{self, run},
        repository::Repositories,
        worktree::prepare,
    };

    struct Bench {
        dir: tempfile::TempDir,
        manifest: Manifest,
        place: Place,
    }

    impl Bench {
        /// A worktree in which an agent has left everything in the middle.
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let origin = testing::repository(dir.path()).await;
            let mut spawn = dirs::spawn_order("");
            spawn.repository = origin.display().to_string();
            let mut manifest = dirs::manifest(spawn);
            let short = manifest.attempt.task.short();
            manifest.spawn.branch = format!("makima/{short}-task/1");
            let repo = Repositories::new(dir.path()).ensure(&manifest.spawn.repository, "", &[]).await.unwrap();
            let path = dir.path().join("worktrees").join(format!("{short}-1"));
            let place = prepare(&repo, &manifest.spawn, manifest.attempt, &path).await.unwrap().place;
            testing::commit(&path, &[("own", "of the agent\n")], "the agent's").await;
            fs::write(path.join("staged"), "staged\n").unwrap();
            run(&path, &["add", "staged"]).await;
            fs::write(path.join("staged"), "changed since\n").unwrap();
            fs::write(path.join("untracked"), "new\n").unwrap();
            Self { dir, manifest, place }
        }

        async fn go_on(&self) -> Place {
            let branch = self.manifest.spawn.branch.replace("/1", "/2");
            let (place, warnings) = plan(&self.place, &branch).await.unwrap();
            assert_eq!(warnings, Vec::<String>::new());
            // As after a crash in the middle.
            take_over(&self.place, &place).await.unwrap();
            take_over(&self.place, &place).await.unwrap();
            place
        }
    }

    async fn seen(dir: &Path) -> (String, String) {
        (run(dir, &["status", "--porcelain"]).await, run(dir, &["ls-files", "-s", "-v"]).await)
    }

    async fn head(dir: &Path) -> (String, String) {
        (run(dir, &["rev-parse", "HEAD"]).await, run(dir, &["rev-parse", "--symbolic-full-name", "HEAD"]).await)
    }

    /// Index and files stay as they are, the branch is a new one at HEAD, a dead git's locks are no hindrance, and the earlier
    /// attempt's branch keeps what it had.
    #[tokio::test]
    async fn the_work_goes_on_as_it_was_left_on_a_branch_of_its_own() {
        let bench = Bench::new().await;
        let dir = bench.place.worktree.clone();
        let (before, (commit, _)) = (seen(&dir).await, head(&dir).await);
        let admin = admin_dir(&dir).unwrap();
        fs::write(admin.join("index.lock"), "").unwrap();
        fs::write(admin.join("HEAD.lock"), "").unwrap();
        let lock = bench.place.repo.git_dir.join(format!("refs/heads/{}.lock", bench.place.branch));
        fs::write(&lock, "").unwrap();
        let place = bench.go_on().await;
        assert!(!lock.exists());
        assert_eq!(place.worktree, dir);
        assert_ne!(place.branch, bench.place.branch);
        assert_eq!(head(&dir).await, (commit.clone(), format!("refs/heads/{}", place.branch)));
        assert_eq!(seen(&dir).await, before);
        assert_eq!(run(&dir, &["rev-parse", &bench.place.branch]).await, commit);
        testing::commit(&dir, &[("more", "")], "more").await;
        assert_eq!(run(&dir, &["rev-parse", &bench.place.branch]).await, commit);
    }

    /// A merge goes on as one; a HEAD that is detached, or on a branch of the agent's own, stays where it is.
    #[tokio::test]
    async fn what_git_is_in_the_middle_of_stays() {
        let bench = Bench::new().await;
        let dir = bench.place.worktree.clone();
        run(&dir, &["stash", "-u", "-q"]).await;
        run(&dir, &["branch", "other", "HEAD~1"]).await;
        run(&dir, &["checkout", "-q", "other"]).await;
        testing::commit(&dir, &[("beside", "")], "beside").await;
        bench.go_on().await;
        assert_eq!(head(&dir).await.1, "refs/heads/other");
        run(&dir, &["checkout", "-q", &bench.place.branch]).await;
        run(&dir, &["merge", "-q", "--no-commit", "--no-ff", "other"]).await;
        let admin = admin_dir(&dir).unwrap();
        let merging = fs::read(admin.join("MERGE_HEAD")).unwrap();
        let place = bench.go_on().await;
        assert_eq!(head(&dir).await.1, format!("refs/heads/{}", place.branch));
        assert_eq!(fs::read(admin.join("MERGE_HEAD")).unwrap(), merging);
        run(&dir, &["merge", "--abort"]).await;
        run(&dir, &["checkout", "-q", "--detach"]).await;
        let before = head(&dir).await;
        let again = Place { branch: "gone".into(), ..place.clone() };
        take_over(&again, &Place { branch: "new".into(), ..place }).await.unwrap();
        assert_eq!(head(&dir).await, before);
    }

    /// A worktree is found where git was told to move it; one that was damaged, copied or replaced is not taken for it.
    #[tokio::test]
    async fn a_moved_worktree_is_found_and_a_stranger_is_not() {
        let bench = Bench::new().await;
        let (place, task) = (&bench.place, bench.manifest.attempt.task);
        assert_eq!(find(place, task).as_ref(), Some(place));
        let moved = bench.dir.path().join("moved");
        let to = moved.display().to_string();
        run(&place.repo.git_dir, &["worktree", "move", place.worktree.to_str().unwrap(), &to]).await;
        assert_eq!(find(place, task).map(|place| place.worktree), Some(moved.canonicalize().unwrap()));
        assert_eq!(find(place, TaskId(uuid::Uuid::from_u128(7))), None, "it is another task's");
        // A copy of its `.git` beside it.
        fs::create_dir_all(&place.worktree).unwrap();
        fs::copy(moved.join(".git"), place.worktree.join(".git")).unwrap();
        assert_eq!(find(place, task).map(|place| place.worktree), Some(moved.canonicalize().unwrap()));
        fs::remove_file(moved.join(".git")).unwrap();
        assert_eq!(find(place, task), None);
        assert_eq!(find(place, TaskId(uuid::Uuid::from_u128(7))), None);
    }
}

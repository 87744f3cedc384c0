//! Operations that git goes on with: what of them no ref, no reflog and no index has.

use std::fs;

use super::{
    bench::{Bench, write},
    compare::{assert_same, picture},
};
use crate::daemon::git::{LOCAL_TIMEOUT, git, testing};

const ALL: &dyn Fn(&str) -> bool = &|_| false;

async fn is_stopped(dir: &std::path::Path, args: &[&str]) {
    let who = ["-c", "user.name=Tester", "-c", "user.email=tester@example.com"];
    let output = git(dir).args(who).args(args.iter().copied()).run(LOCAL_TIMEOUT).await.unwrap();
    assert!(!output.success(), "git {args:?} worked");
}

/// A bisection knows its good and bad commits, and where it has to go back to.
#[tokio::test]
async fn a_bisection_goes_on() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let dir = &place.worktree;
    for n in 0..6 {
        testing::commit(dir, &[("n", &n.to_string())], "a step").await;
    }
    testing::run(dir, &["bisect", "start", "HEAD", "HEAD~5"]).await;
    let marks = ["for-each-ref", "--format=%(refname) %(objectname)", "refs/bisect"];
    let was = testing::run(dir, &marks).await;
    assert_eq!(was.lines().count(), 2, "{was}");
    let captured = bench.capture(&place, None).await;
    fs::remove_dir_all(bench.machine("a")).unwrap();
    let restored = bench.restore("b", &[&captured], "makima/work/2").await.unwrap();
    let dir = &restored.place.worktree;
    assert_eq!(testing::run(dir, &marks).await, was);
    testing::run(dir, &["bisect", "good"]).await;
    testing::run(dir, &["bisect", "reset"]).await;
    assert_eq!(testing::run(dir, &["symbolic-ref", "HEAD"]).await, "refs/heads/makima/work/2");
}

/// Commits that are still to be picked are named nowhere but in the list, by a few digits of their ids.
#[tokio::test]
async fn a_sequence_of_picks_goes_on() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let dir = &place.worktree;
    // Made in another worktree, which is gone: no reflog here has them.
    let other = bench.dir.path().join("other");
    testing::run(dir, &["worktree", "add", "-q", "--detach", other.to_str().unwrap()]).await;
    let first = testing::commit(&other, &[("c", "theirs\n")], "first").await;
    let second = testing::commit(&other, &[("d", "d\n")], "second").await;
    testing::run(dir, &["worktree", "remove", "--force", other.to_str().unwrap()]).await;
    testing::commit(dir, &[("c", "ours\n")], "ours").await;
    is_stopped(dir, &["cherry-pick", &first, &second]).await;
    let captured = bench.capture(&place, None).await;
    fs::remove_dir_all(bench.machine("a")).unwrap();
    let restored = bench.restore("b", &[&captured], "makima/work/2").await.unwrap();
    let dir = &restored.place.worktree;
    write(dir, &[("c", "both\n")]);
    testing::run(dir, &["add", "c"]).await;
    testing::run(dir, &["-c", "core.editor=true", "cherry-pick", "--continue"]).await;
    assert_eq!(testing::run(dir, &["log", "-3", "--format=%s"]).await, "second\nfirst\nours");
}

/// Where another operation stands in the middle, it makes room for that of the checkpoint, or for none.
#[tokio::test]
async fn an_operation_that_is_in_the_way_goes() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    write(&place.worktree, &[("w", "w")]);
    let captured = bench.capture(&place, None).await;
    let was = picture(&place.worktree, &place.branch, ALL).await;
    let restored = bench.restore("b", &[&captured], "makima/work/2").await.unwrap();
    let dir = &restored.place.worktree;
    testing::run(dir, &["checkout", "-q", "-b", "side"]).await;
    testing::commit(dir, &[("c", "theirs\n")], "theirs").await;
    testing::run(dir, &["checkout", "-q", "makima/work/2"]).await;
    testing::commit(dir, &[("c", "ours\n")], "ours").await;
    is_stopped(dir, &["merge", "side"]).await;
    bench.restore("b", &[&captured], "makima/work/2").await.unwrap();
    assert_same(&was, &picture(dir, "makima/work/2", ALL).await);
}

/// Staged files whose content only the index has come along, however many they are.
#[tokio::test]
async fn many_staged_files_come_along() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let dir = &place.worktree;
    fs::create_dir(dir.join("staged")).unwrap();
    for n in 0..1_001 {
        fs::write(dir.join(format!("staged/{n}")), n.to_string()).unwrap();
    }
    testing::run(dir, &["add", "staged"]).await;
    fs::remove_dir_all(dir.join("staged")).unwrap();
    let captured = bench.capture(&place, None).await;
    fs::remove_dir_all(bench.machine("a")).unwrap();
    let restored = bench.restore("b", &[&captured], "makima/work/2").await.unwrap();
    assert_eq!(restored.warnings, Vec::<String>::new());
    let dir = &restored.place.worktree;
    testing::run(dir, &["checkout", "--", "staged"]).await;
    assert_eq!(fs::read_to_string(dir.join("staged/1000")).unwrap(), "1000");
}

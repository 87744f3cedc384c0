//! Results as packs, diffs, and work for a person's hands.

use std::fs;

use uuid::Uuid;

use super::{
    super::{
        ChainFile, FoundResult, diff, import_result, is_elsewhere, known_elsewhere, pack_result, restore, restore_into,
        result_into,
    },
    bench::{Bench, files_of, write},
    compare::{assert_same, picture},
};
use crate::{
    daemon::{
        attempt_dir::Place,
        git::testing,
        repository::{RepoRef, Repositories, has_commit},
        worktree::prepare,
    },
    domain::{TaskId, attempt::TaskResult, order::DependencyResult, task::TaskStatus},
};

/// A result goes to a machine that has only the origin, as often as one likes; a damaged one does not.
#[tokio::test]
async fn a_result_travels() {
    for url in [true, false] {
        let bench = Bench::new(url).await;
        let place = bench.place("a").await;
        testing::commit(&place.worktree, &[("one", "1")], "one").await;
        let commit = testing::commit(&place.worktree, &[("two", "2")], "two").await;
        let into = bench.files().join("result.pack");
        let packed = pack_result(&place, &commit, &known_elsewhere(&place), &into).await.unwrap();
        assert_eq!(packed, pack_result(&place, &commit, &known_elsewhere(&place), &into).await.unwrap());
        assert_eq!(packed.bytes, fs::metadata(&into).unwrap().len());
        let repo = if url {
            fs::remove_dir_all(bench.machine("a")).unwrap();
            bench.repo("b").await
        } else {
            another_clone(&bench, &bench.repository, "a").await
        };
        let result_ref = "refs/makima/results/t";
        for _ in 0..2 {
            import_result(&repo, &into, &packed.sha256, &commit, result_ref).await.unwrap();
        }
        assert_eq!(testing::run(&repo.git_dir, &["rev-parse", result_ref]).await, commit);
        assert_eq!(testing::run(&repo.git_dir, &["show", &format!("{commit}:one")]).await, "1");
        testing::run(&repo.git_dir, &["fsck", "--no-dangling"]).await;
        let mut bytes = fs::read(&into).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&into, bytes).unwrap();
        let error = import_result(&repo, &into, &packed.sha256, &commit, result_ref).await.unwrap_err();
        assert!(error.message.contains("SHA-256"), "{error}");
        let none = "1234567890123456789012345678901234567890";
        assert!(pack_result(&place, none, &[], &into).await.is_err());
    }
}

/// A person gets the work as a repository of its own, from the URL or the path, and only where nothing is.
#[tokio::test]
async fn work_is_put_into_a_persons_hands() {
    for url in [true, false] {
        let bench = Bench::new(url).await;
        let place = bench.place("a").await;
        let dir = &place.worktree;
        testing::commit(dir, &[("one", "1")], "one").await;
        write(dir, &[("one", "2"), ("untracked", "u")]);
        testing::run(dir, &["add", "one"]).await;
        let captured = bench.capture(&place, None).await;
        let was = picture(dir, &place.branch, &|_| false).await;
        let to = bench.machine("home/work");
        write(&bench.machine("home"), &[("full/file", "mine")]);
        let full = bench.machine("home/full");
        let error = restore_into(&bench.repository, &files_of(&[&captured]), &full, None, None).await.unwrap_err();
        assert!(error.message.contains("not empty"), "{error}");
        assert_eq!(fs::read_to_string(full.join("file")).unwrap(), "mine");
        let restored = restore_into(&bench.repository, &files_of(&[&captured]), &to, None, None).await.unwrap();
        assert_eq!(restored.place.branch, place.branch);
        let now = picture(&to, &place.branch, &|_| false).await;
        assert_same(&was, &super::compare::Picture { refs: String::new(), ..now });
    }
}

/// What a checkpoint changed is text, and bounded.
#[tokio::test]
async fn changes_are_shown() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    testing::commit(&place.worktree, &[("committed", "1\n")], "one").await;
    write(&place.worktree, &[("README.md", "hello\nagain\n"), ("untracked", "u\n")]);
    let captured = bench.capture(&place, None).await;
    assert!(
        captured.summary.contains("README.md | 1 +") && captured.summary.contains("3 files changed"),
        "{}",
        captured.summary
    );
    let repo = bench.repo("b").await;
    let text = diff(&repo, &files_of(&[&captured]), None, 10_000).await.unwrap();
    assert!(text.starts_with("M\tREADME.md\nA\tcommitted\nA\tuntracked\n"), "{text}");
    assert!(text.contains("\n+again\n"), "{text}");
    let short = diff(&repo, &files_of(&[&captured]), None, 50).await.unwrap();
    assert!(short.len() < 80 && short.ends_with("(and more)\n"), "{short}");
}

/// What everybody has is neither in a checkpoint nor in a result.
#[tokio::test]
async fn what_everybody_has_stays_out() {
    for url in [true, false] {
        let bench = Bench::new(url).await;
        let noise: String = (0..40_000_u32).map(|n| format!("{:x}\n", n.wrapping_mul(2_654_435_761))).collect();
        testing::commit(&bench.origin, &[("noise", &noise)], "noise").await;
        let place = bench.place("a").await;
        let commit = testing::commit(&place.worktree, &[("own", "1")], "own").await;
        let captured = bench.capture(&place, None).await;
        let into = bench.files().join("result.pack");
        let packed = pack_result(&place, &commit, &known_elsewhere(&place), &into).await.unwrap();
        assert!(captured.bytes < 10_000 && packed.bytes < 10_000, "{url}: {} {}", captured.bytes, packed.bytes);
    }
}

/// What an agent has pushed to a branch of its own is in its checkpoint all the same: somebody may merge it as a single commit and
/// delete the branch, and then origin does not have it any more.
#[tokio::test]
async fn what_was_pushed_is_not_left_to_origin() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let commit = testing::commit(&place.worktree, &[("own", "1")], "own").await;
    testing::run(&place.worktree, &["push", "-q", "origin", "HEAD:refs/heads/feature"]).await;
    assert_eq!(testing::run(&place.repo.git_dir, &["rev-parse", "refs/remotes/origin/feature"]).await, commit);
    let captured = bench.capture(&place, None).await;
    testing::run(&bench.origin, &["branch", "-q", "-D", "feature"]).await;
    let restored = bench.restore("b", &[&captured], "makima/again/1").await.unwrap().place;
    assert_eq!(testing::run(&restored.worktree, &["rev-parse", "HEAD"]).await, commit);
    assert_eq!(fs::read_to_string(restored.worktree.join("own")).unwrap(), "1");
    let about = TaskResult { commit, ..TaskResult::default() };
    assert!(!is_elsewhere(&place, &about));
}

/// Nor is a base that is only a commit, as of a proposal that was changed since.
#[tokio::test]
async fn a_commit_without_a_branch_is_not_left_to_origin() {
    let mut bench = Bench::new(true).await;
    let base = testing::commit(&bench.origin, &[("proposed", "1")], "proposed").await;
    testing::run(&bench.origin, &["reset", "-q", "--hard", "HEAD~1"]).await;
    bench.manifest.spawn.base_branch.clone_from(&base);
    let repositories = Repositories::new(bench.machine("a").join("repositories"));
    let repo = repositories.ensure(&bench.repository, &base, &[]).await.unwrap();
    let path = bench.machine("a").join("worktrees/work");
    let place = prepare(&repo, &bench.manifest.spawn, bench.manifest.attempt, &path).await.unwrap().place;
    assert_eq!(place.base_commit, base);
    write(&place.worktree, &[("own", "1")]);
    let captured = bench.capture(&place, None).await;
    let restored = bench.restore("b", &[&captured], "makima/again/1").await.unwrap().place;
    assert_eq!(testing::run(&restored.worktree, &["rev-parse", "HEAD"]).await, base);
    assert_eq!(fs::read_to_string(restored.worktree.join("own")).unwrap(), "1");
}

/// Who gets the last result of a chain has all of it: on a path, what tasks made on the way is on the machines that made it only,
/// and whoever depends on the last one is not given what came before. Also where a task added nothing to what it began with,
/// for the checkpoint of an attempt that began with results, and where the base branch has gone on meanwhile, on one machine.
#[tokio::test]
async fn the_last_result_of_a_chain_brings_all_of_it() {
    let mut bench = Bench::new(false).await;
    let common = [testing::run(&bench.origin, &["rev-parse", "HEAD"]).await];
    let there = another_clone(&bench, &bench.repository, "there").await.repository;
    let mut results: Vec<DependencyResult> = Vec::new();
    let chain = [("a", 0..0), ("b", 0..1), ("idle", 1..2), ("other", 0..0), ("merged", 2..4), ("still", 4..5)];
    for (name, dependencies) in chain {
        bench.manifest.spawn.branch = format!("makima/{name}/1");
        bench.manifest.spawn.dependencies = results[dependencies].to_vec();
        if name == "merged" {
            testing::commit(&bench.origin, &[("gone-on", "1")], "gone on").await;
        }
        let place = bench.place(name).await;
        let commit = match name {
            "idle" | "merged" | "still" => place.base_commit.clone(),
            name => testing::commit(&place.worktree, &[(name, name)], name).await,
        };
        assert_eq!(known_elsewhere(&place), common, "{name}");
        assert_eq!(known_elsewhere(&Place { shared: None, ..place.clone() }), common, "{name}");
        let about = TaskResult { commit: commit.clone(), published: true, ..TaskResult::default() };
        assert!(!is_elsewhere(&place, &about), "{name}");
        let into = bench.files().join(format!("{name}.pack"));
        let packed = pack_result(&place, &commit, &known_elsewhere(&place), &into).await.unwrap();
        let repo = another_clone(&bench, &there, name).await;
        let result_ref = format!("refs/makima/results/{name}");
        let brought = import_result(&repo, &into, &packed.sha256, &commit, &result_ref).await;
        assert!(brought.is_ok(), "{name}: {brought:?}");
        write(&place.worktree, &[("later", name)]);
        let captured = bench.capture(&place, None).await;
        let repo = another_clone(&bench, &there, &format!("{name}-again")).await;
        let to = bench.machine(&format!("again-{name}"));
        let restored = restore(&repo, &files_of(&[&captured]), &to, "again", None, false).await;
        let restored = restored.unwrap_or_else(|error| panic!("{name}: {error}")).place;
        assert_eq!(fs::read_to_string(to.join("later")).unwrap(), name);
        assert_eq!((restored.base_commit, restored.shared), (place.base_commit, Some(common[0].clone())), "{name}");
        results.push(DependencyResult {
            task: TaskId(Uuid::new_v4()),
            name: name.to_owned(),
            status: TaskStatus::Done,
            commit,
            result_ref,
            daemon: None,
            blob: String::new(),
            blob_sha256: String::new(),
            blob_bytes: 0,
        });
    }
}

/// A clone of a repository that is a path, on a machine that has nothing else of it.
async fn another_clone(bench: &Bench, of: &str, name: &str) -> RepoRef {
    let clone = bench.machine(&format!("clone-{name}")).display().to_string();
    // Not by sharing its files, which would bring all objects that are there.
    let url = format!("file://{of}");
    testing::run(bench.dir.path(), &["clone", "-q", "--single-branch", &url, &clone]).await;
    Repositories::new("/none").ensure(&clone, "", &[]).await.unwrap()
}

/// A repository that lacks what a result builds on does not get it, and it is said why; each object of a result is whole, so
/// that is all it can lack.
#[tokio::test]
async fn a_result_needs_what_it_builds_on() {
    let bench = Bench::new(true).await;
    let text: String = (0..2_000).map(|n| format!("line {n}\n")).collect();
    testing::commit(&bench.origin, &[("long", &text)], "only here").await;
    let place = bench.place("a").await;
    let commit = testing::commit(&place.worktree, &[("long", &format!("{text}more\n"))], "own").await;
    let into = bench.files().join("result.pack");
    let packed = pack_result(&place, &commit, &known_elsewhere(&place), &into).await.unwrap();
    let other = Bench::new(true).await;
    let repo = other.repo("b").await;
    let error = import_result(&repo, &into, &packed.sha256, &commit, "refs/makima/results/t").await.unwrap_err();
    assert!(error.message.contains("lacks what the result"), "{error}");
    assert_eq!(testing::run(&repo.git_dir, &["for-each-ref", "refs/makima/results"]).await, "");
    assert!(has_commit(&repo.open().unwrap(), &commit).is_none(), "whoever starts from it would take it for whole");
    let left: Vec<_> = fs::read_dir(repo.git_dir.join("objects")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("incoming")), "{left:?}");
}

/// Where work cannot be put into a person's hands, the directory is as it was.
#[tokio::test]
async fn hands_stay_empty_where_it_fails() {
    let bench = Bench::new(true).await;
    testing::commit(&bench.origin, &[("x", "x")], "only here").await;
    let place = bench.place("a").await;
    let commit = testing::commit(&place.worktree, &[("own", "own")], "own").await;
    let files: Vec<ChainFile> = files_of(&[&bench.capture(&place, None).await]);
    let other = Bench::new(true).await;
    let result = FoundResult {
        commit,
        base_commit: String::new(),
        branch: "b".into(),
        result_ref: "refs/makima/results/t".into(),
        pack: None,
    };
    for is_there in [false, true] {
        let dir = other.dir.path().join(format!("hands-{is_there}"));
        if is_there {
            fs::create_dir(&dir).unwrap();
        }
        let error = restore_into(&other.repository, &files, &dir, None, None).await.unwrap_err();
        assert!(error.message.contains("lacks what the checkpoint builds on"), "{error}");
        let error = result_into(&other.repository, &result, &dir, None).await.unwrap_err();
        assert!(error.message.contains("--repo names another repository"), "{error}");
        let left = fs::read_dir(&dir).map(|entries| entries.count());
        assert_eq!(left.ok(), is_there.then_some(0));
    }
    let error = restore_into("--upload-pack=x", &files, &other.dir.path().join("x"), None, None).await.unwrap_err();
    assert!(error.message.contains("neither a URL nor a path"), "{error}");
}

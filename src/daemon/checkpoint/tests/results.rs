//! Results as packs, diffs, and work for a person's hands.

use std::fs;

use super::{
    super::{diff, import_result, known_elsewhere, pack_result, restore_into},
    bench::{Bench, files_of, write},
    compare::{assert_same, picture},
};
use crate::daemon::git::testing;

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
            // Another clone of the same: it has the base.
            let clone = bench.machine("clone");
            testing::run(bench.dir.path(), &["clone", "-q", &bench.repository, &clone.display().to_string()]).await;
            super::super::super::repository::Repositories::new("/none")
                .ensure(&clone.display().to_string(), "", &[])
                .await
                .unwrap()
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

//! Chains of deltas, unchanged worktrees, and files that are damaged.

use std::fs;

use git2::Oid;

use super::{
    super::{Captured, MAX_CHAIN, Outcome, Source, capture, dirs::GitDirs, read_header, restore, shadow::Shadow},
    bench::{Bench, files_of, transcript, write},
    compare::{Picture, assert_same, picture},
};
use crate::daemon::git::testing;

const ALL: &dyn Fn(&str) -> bool = &|_| false;

/// The files that a checkpoint needs, oldest first.
fn chain_of<'a>(all: &'a [Captured], last: &'a Captured) -> Vec<&'a Captured> {
    let mut chain = vec![last];
    while let Some(base) = chain.last().and_then(|captured| captured.base) {
        chain.push(all.iter().find(|captured| captured.id == base).unwrap());
    }
    chain.reverse();
    chain
}

/// Every checkpoint of a long chain is restored as it was; after eight there is a whole one; deltas are small.
#[tokio::test]
async fn every_link_of_a_chain_is_restored() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let dir = &place.worktree;
    let noise: Vec<u8> = (0..200_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    fs::write(dir.join("noise"), noise).unwrap();
    let (mut all, mut pictures): (Vec<Captured>, Vec<Picture>) = (Vec::new(), Vec::new());
    for round in 0..10 {
        write(dir, &[("same.txt", &format!("round {round}\n")), (&format!("new/{round}"), "n")]);
        match round % 3 {
            0 => drop(testing::commit(dir, &[("committed", &round.to_string())], "a commit").await),
            1 => drop(testing::run(dir, &["add", "same.txt"]).await),
            _ => fs::remove_file(dir.join(format!("new/{}", round - 1))).unwrap(),
        }
        let mut source = bench.source(&place, all.last());
        source.transcript = transcript(&bench.dir.path().join("t"), &"{}\n".repeat(round + 1));
        all.push(bench.capture_from(&source).await);
        pictures.push(picture(dir, &place.branch, ALL).await);
    }
    let depths: Vec<u32> = all.iter().map(|captured| captured.depth).collect();
    assert_eq!(depths, [1, 2, 3, 4, 5, 6, 7, MAX_CHAIN, 1, 2]);
    assert!(all[0].bytes > 500_000 && all[1].bytes < 20_000 && all[8].bytes > 500_000, "{:?}", all[1].bytes);
    for (at, captured) in all.iter().enumerate() {
        let branch = format!("makima/work/{}", at + 2);
        let restored = bench.restore("b", &chain_of(&all, captured), &branch).await.unwrap();
        assert_same(&pictures[at], &picture(&restored.place.worktree, &branch, ALL).await);
        let lines = fs::read_to_string(restored.transcript.unwrap()).unwrap().lines().count();
        assert_eq!(lines, at + 1);
    }
}

/// A restored attempt goes on with deltas on what it was restored from, on another machine.
#[tokio::test]
async fn a_chain_goes_on_elsewhere() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let text = (0..50_000).map(|n| format!("{:x}\n", n * 7_919_u64 % 1_000_003)).collect::<String>();
    write(&place.worktree, &[("large", &text)]);
    let first = bench.capture(&place, None).await;
    let there = bench.restore("b", &[&first], "makima/work/2").await.unwrap();
    let mut source = bench.source(&there.place, None);
    source.previous = Some(there.previous);
    write(&there.place.worktree, &[("more", "more")]);
    let second = bench.capture_from(&source).await;
    assert_eq!((second.base, second.depth), (Some(first.id), 2));
    assert!(second.bytes < first.bytes / 10, "{} after {}", second.bytes, first.bytes);
    let was = picture(&there.place.worktree, "makima/work/2", ALL).await;
    let third = bench.restore("c", &[&first, &second], "makima/work/3").await.unwrap();
    assert_same(&was, &picture(&third.place.worktree, "makima/work/3", ALL).await);
}

/// Nothing new is nothing new, also when git has looked at the files meanwhile; anything else is.
#[tokio::test]
async fn unchanged_is_said() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let dir = &place.worktree;
    write(dir, &[("a", "a"), ("b", "b")]);
    testing::repository(&dir.join("inside")).await;
    let mut last = bench.capture(&place, None).await;
    let is_unchanged = async |last: &Captured| {
        matches!(capture(&bench.source(&place, Some(last)), &bench.files()).await.unwrap(), Outcome::Unchanged)
    };
    assert!(is_unchanged(&last).await);
    // Whoever wants one all the same gets it: a small one on the one before.
    let again = Source { even_unchanged: true, ..bench.source(&place, Some(&last)) };
    let again = bench.capture_from(&again).await;
    assert_eq!((again.base, again.depth), (Some(last.id), 2));
    assert!(again.bytes < last.bytes, "{} after {}", again.bytes, last.bytes);
    // The same content with other times, and an index written again.
    write(dir, &[("README.md", "hello\n"), ("a", "a")]);
    testing::run(dir, &["status"]).await;
    assert!(is_unchanged(&last).await);
    let inside = dir.join("inside/repository");
    let admin = GitDirs::of(dir).unwrap().git_dir;
    for change in 0..9 {
        match change {
            0 => write(dir, &[("a", "b")]),
            1 => drop(testing::run(dir, &["add", "a"]).await),
            2 => drop(testing::run(dir, &["commit", "-q", "-m", "a"]).await),
            3 => drop(testing::run(dir, &["add", "-N", "b"]).await),
            4 => write(&admin, &[("MERGE_MSG", "a message\n")]),
            5 => write(&inside, &[("x", "x")]),
            6 => drop(testing::run(&inside, &["branch", "other"]).await),
            7 => fs::create_dir(dir.join("empty")).unwrap(),
            _ => fs::set_permissions(dir.join("b"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap(),
        }
        assert!(!is_unchanged(&last).await, "change {change}");
        last = bench.capture(&place, Some(&last)).await;
        assert!(is_unchanged(&last).await, "after change {change}");
    }
    let mut source = bench.source(&place, Some(&last));
    source.transcript = transcript(&bench.dir.path().join("t"), "{}\n");
    assert_eq!(bench.capture_from(&source).await.session_id.as_deref(), Some("session"));
    // No conversation, no session that could be gone on with.
    fs::remove_file(bench.dir.path().join("t")).unwrap();
    source.even_unchanged = true;
    assert_eq!(bench.capture_from(&source).await.session_id, None);
}

/// Git compares times by whole seconds, and agents write a file more than once in one: that is no movement, and what was
/// written last counts.
#[tokio::test]
async fn a_file_may_be_written_twice_in_a_second() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let dir = &place.worktree;
    write(dir, &[("again", "same"), ("other", "0")]);
    let mut last = bench.capture(&place, None).await;
    for round in 1..6 {
        write(dir, &[("again", "same")]);
        let outcome = capture(&bench.source(&place, Some(&last)), &bench.files()).await.unwrap();
        assert!(matches!(outcome, Outcome::Unchanged), "round {round}: {outcome:?}");
        write(dir, &[("again", "same"), ("other", &round.to_string())]);
        last = bench.capture(&place, Some(&last)).await;
        assert!(!last.unsettled, "round {round}");
    }
}

/// A damaged, wrong or missing file is said, before anything is touched.
#[tokio::test]
async fn damage_is_detected() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    write(&place.worktree, &[("a", "a")]);
    let first = bench.capture(&place, None).await;
    write(&place.worktree, &[("a", "b")]);
    let second = bench.capture(&place, Some(&first)).await;
    let good = fs::read(&first.file).unwrap();
    for at in [0, 20, 24, 60, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&first.file, &bad).unwrap();
        let error = bench.restore("b", &[&first, &second], "makima/work/2").await.unwrap_err();
        assert!(error.message.contains("is damaged") && error.message.contains("SHA-256"), "{error}");
        // Also for whoever does not know what it should be.
        let mut unknown = first.clone();
        unknown.sha256 = super::super::container::digest(&fs::File::open(&first.file).unwrap()).unwrap().1;
        let error = bench.restore("b", &[&unknown], "makima/work/2").await.unwrap_err();
        assert!(error.message.contains("is damaged"), "{at}: {error}");
    }
    fs::write(&first.file, &good[..good.len() - 30]).unwrap();
    assert!(bench.restore("b", &[&first], "makima/work/2").await.unwrap_err().message.contains("damaged"));
    fs::write(&first.file, &good).unwrap();
    let error = bench.restore("b", &[&second], "makima/work/2").await.unwrap_err();
    assert!(error.message.contains("not in its place"), "{error}");
    let error = bench.restore("b", &[], "makima/work/2").await.unwrap_err();
    assert!(error.message.contains("no checkpoint"), "{error}");
    assert!(!bench.machine("b").join("worktrees").exists());
    bench.restore("b", &[&first, &second], "makima/work/2").await.unwrap();
}

/// What a newer makima has written, and a header that cannot be one, are said to be that.
#[tokio::test]
async fn a_header_of_another_form_is_said() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    write(&place.worktree, &[("a", "a")]);
    let captured = bench.capture(&place, None).await;
    let mut bytes = fs::read(&captured.file).unwrap();
    let length = u32::from_be_bytes(bytes[18..22].try_into().unwrap()) as usize;
    let at = bytes.windows(11).position(|part| part == b"\"version\":1").unwrap();
    bytes[at + 10] = b'2';
    let crc = crc32fast::hash(&bytes[26..26 + length]);
    bytes[22..26].copy_from_slice(&crc.to_be_bytes());
    fs::write(&captured.file, &bytes).unwrap();
    let error = read_header(&captured.file).unwrap_err();
    assert!(error.message.contains("version 2") && error.message.contains("use a newer one"), "{error}");
    bytes[18] = 1;
    fs::write(&captured.file, &bytes).unwrap();
    let error = read_header(&captured.file).unwrap_err();
    assert!(error.message.contains("its header is too long"), "{error}");
}

/// A restore that fails takes back what it has made, and nothing that was there before.
#[tokio::test]
async fn a_restore_that_fails_takes_back_only_what_it_made() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    write(&place.worktree, &[("a", "a")]);
    let mut source = bench.source(&place, None);
    source.transcript = transcript(&bench.dir.path().join("t"), "{}\n");
    let captured = bench.capture_from(&source).await;
    let (repo, files) = (bench.repo("b").await, files_of(&[&captured]));
    let path = bench.machine("b").join("w");
    // Nothing can be made below a file.
    let nowhere = bench.dir.path().join("t/below");
    restore(&repo, &files, &path, "makima/work/2", Some(&nowhere), false).await.unwrap_err();
    assert!(!path.exists());
    restore(&repo, &files, &path, "makima/work/2", None, false).await.unwrap();
    restore(&repo, &files, &path, "makima/work/2", Some(&nowhere), false).await.unwrap_err();
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "a");
}

/// What stands where the worktree is to be is moved aside, with all that is in it.
#[tokio::test]
async fn what_is_in_the_way_is_moved_aside() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    write(&place.worktree, &[("a", "a")]);
    let captured = bench.capture(&place, None).await;
    let path = bench.machine("b").join("w");
    write(&path, &[("a", "somebody's"), ("b", "somebody's")]);
    let repo = bench.repo("b").await;
    let restored = restore(&repo, &files_of(&[&captured]), &path, "makima/work/2", None, false).await.unwrap();
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "a");
    assert!(!path.join("b").exists());
    assert!(restored.warnings.iter().any(|warning| warning.contains("w.old-")), "{:?}", restored.warnings);
    let aside = fs::read_dir(bench.machine("b")).unwrap().map(|entry| entry.unwrap().path());
    let aside = aside.filter(|path| path.to_string_lossy().contains("w.old-")).collect::<Vec<_>>();
    assert_eq!(fs::read_to_string(aside[0].join("b")).unwrap(), "somebody's");
}

/// A repository without what the checkpoint builds on says so.
#[tokio::test]
async fn a_repository_that_lacks_the_base_is_said() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    testing::commit(&place.worktree, &[("own", "own")], "own").await;
    let captured = bench.capture(&place, None).await;
    let other = Bench::new(true).await;
    testing::commit(&other.origin, &[("x", "x")], "another history").await;
    let amend = ["commit", "-q", "--amend", "-m", "yet another"];
    testing::run(&other.origin, &amend).await;
    testing::run(&other.origin, &["checkout", "-q", "--orphan", "new"]).await;
    testing::run(&other.origin, &["commit", "-q", "-m", "alone"]).await;
    testing::run(&other.origin, &["branch", "-q", "-D", "main"]).await;
    let repo = other.repo("b").await;
    let path = other.machine("b").join("w");
    let error =
        super::super::restore(&repo, &files_of(&[&captured]), &path, "makima/work/2", None, false).await.unwrap_err();
    assert!(error.message.contains("lacks what the checkpoint builds on"), "{error}");
}

/// Whatever happens to the shadow, the next checkpoint is taken: whole, where no delta can be made.
#[tokio::test]
async fn a_damaged_shadow_costs_a_delta() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let dir = &place.worktree;
    write(dir, &[("a", "a"), ("b/c", "c")]);
    let first = bench.capture(&place, None).await;
    let dirs = GitDirs::of(dir).unwrap();
    let shadow = Shadow::open(&dirs, dir).unwrap();
    // An object that power took: its file is there, and empty.
    let objects = shadow.repository().unwrap();
    let commit = objects.find_commit(Oid::from_str(&first.commit).unwrap()).unwrap();
    let tree = commit.tree().unwrap().get_name("worktree").unwrap().id().to_string();
    let object = shadow.objects.join(&tree[..2]).join(&tree[2..]);
    fs::remove_file(&object).unwrap();
    fs::write(&object, "").unwrap();
    write(dir, &[("a", "b")]);
    let second = bench.capture(&place, Some(&first)).await;
    let was = picture(dir, &place.branch, ALL).await;
    let chain = if second.base.is_some() { vec![&first, &second] } else { vec![&second] };
    let restored = bench.restore("b", &chain, "makima/work/2").await.unwrap();
    assert_same(&was, &picture(&restored.place.worktree, "makima/work/2", ALL).await);
    // Its index is no index.
    fs::write(shadow.index(), "nonsense").unwrap();
    write(dir, &[("a", "c")]);
    let third = bench.capture(&place, None).await;
    let was = picture(dir, &place.branch, ALL).await;
    let restored = bench.restore("b", &[&third], "makima/work/3").await.unwrap();
    assert_same(&was, &picture(&restored.place.worktree, "makima/work/3", ALL).await);
    // It is gone.
    shadow.wipe().unwrap();
    write(dir, &[("a", "d")]);
    let fourth = bench.capture(&place, Some(&third)).await;
    assert_eq!(fourth.base, None);
}

/// Where what the newest builds on is gone, the work goes on from the one before it, and it is said why; the next checkpoint builds
/// on that one. Where nothing of the chain can be had, the newest's complaint is told.
#[tokio::test]
async fn an_older_one_is_restored_where_the_newest_cannot_be() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let dir = &place.worktree;
    write(dir, &[("a", "1")]);
    let first = bench.capture(&place, None).await;
    write(dir, &[("a", "2")]);
    let second = bench.capture(&place, Some(&first)).await;
    let was = picture(dir, &place.branch, ALL).await;
    // What everybody has, and then nobody any more.
    let gone = testing::commit(dir, &[("gone", "gone")], "gone").await;
    testing::commit(dir, &[("own", "own")], "own").await;
    let source = Source { exclude: vec![gone], ..bench.source(&place, Some(&second)) };
    let third = bench.capture_from(&source).await;
    write(dir, &[("a", "4")]);
    let fourth = bench.capture(&place, Some(&third)).await;
    let restored = bench.restore("b", &[&first, &second, &third, &fourth], "makima/work/2").await.unwrap();
    assert_same(&was, &picture(&restored.place.worktree, "makima/work/2", ALL).await);
    let why = restored.passed_over.unwrap();
    assert!(why.contains("lacks what the checkpoint builds on"), "{why}");
    assert_eq!(restored.previous.id, second.id);
    // Not where somebody chose it.
    let (repo, files) = (bench.repo("b").await, files_of(&[&first, &second, &third]));
    let error = restore(&repo, &files, &bench.machine("b").join("w"), "makima/work/9", None, true).await.unwrap_err();
    assert!(error.message.contains("lacks what the checkpoint builds on"), "{error}");
    let dir = &restored.place.worktree;
    write(dir, &[("a", "5")]);
    let source = Source { previous: Some(restored.previous), ..bench.source(&restored.place, None) };
    let fifth = bench.capture_from(&source).await;
    assert_eq!(fifth.base, Some(second.id));
    let was = picture(dir, "makima/work/2", ALL).await;
    let again = bench.restore("c", &[&first, &second, &fifth], "makima/work/2").await.unwrap();
    assert_same(&was, &picture(&again.place.worktree, "makima/work/2", ALL).await);
    assert_eq!(again.passed_over, None);
    let whole = Source { previous: None, ..source };
    let source = Source { exclude: vec![testing::commit(dir, &[("b", "b")], "b").await], ..whole };
    testing::commit(dir, &[("c", "c")], "c").await;
    let nowhere = bench.capture_from(&source).await;
    write(dir, &[("a", "6")]);
    let delta = bench.capture(&restored.place, Some(&nowhere)).await;
    let error = bench.restore("c", &[&nowhere, &delta], "makima/work/3").await.unwrap_err();
    assert!(error.message.contains("lacks what the checkpoint builds on"), "{error}");
}

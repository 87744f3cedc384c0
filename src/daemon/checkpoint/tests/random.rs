//! Worktrees that nobody would think of, and worktrees that do not stand still.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{
    super::Source,
    bench::{Bench, write},
    compare::{assert_same, assert_sound, picture},
};
use crate::daemon::git::{LOCAL_TIMEOUT, git, testing};

const ALL: &dyn Fn(&str) -> bool = &|_| false;
/// Histories tried; each is a dozen processes for each step.
const CASES: u32 = 12;

/// Something an agent does.
#[derive(Clone, Debug)]
enum Act {
    Write(String, Vec<u8>, bool),
    Link(String, String),
    Remove(String),
    Directory(String),
    Add(String),
    AddAll,
    Intend(String),
    Unstage(String),
    Commit,
    Detach,
    Branch(u8),
    Capture,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let path = || "[ab]{1}(/[ab]){0,2}";
    let act = prop_oneof![
        6 => (path(), prop::collection::vec(any::<u8>(), 0..40), any::<bool>()).prop_map(|(p, c, x)| Act::Write(p, c, x)),
        1 => (path(), path()).prop_map(|(p, t)| Act::Link(p, t)),
        2 => path().prop_map(Act::Remove),
        1 => path().prop_map(Act::Directory),
        3 => path().prop_map(Act::Add),
        1 => Just(Act::AddAll),
        1 => path().prop_map(Act::Intend),
        1 => path().prop_map(Act::Unstage),
        2 => Just(Act::Commit),
        1 => Just(Act::Detach),
        1 => any::<u8>().prop_map(Act::Branch),
        2 => Just(Act::Capture),
    ];
    prop::collection::vec(act, 1..25)
}

async fn act(dir: &Path, act: &Act) {
    // What cannot be done is not done: git says no, a file is in the way of a directory.
    let git = async |args: &[&str]| {
        let who = ["-c", "user.name=Tester", "-c", "user.email=tester@example.com"];
        git(dir).args(who).args(args.iter().copied()).run(LOCAL_TIMEOUT).await.unwrap();
    };
    match act {
        Act::Write(path, content, executable) => {
            let path = dir.join(path);
            let _ = fs::create_dir_all(path.parent().unwrap());
            if fs::write(&path, content).is_ok() {
                let mode = if *executable { 0o755 } else { 0o644 };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        Act::Link(path, target) => drop(symlink(target, dir.join(path))),
        Act::Remove(path) => {
            let path = dir.join(path);
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
        Act::Directory(path) => drop(fs::create_dir_all(dir.join(path))),
        Act::Add(path) => git(&["add", "--", path]).await,
        Act::AddAll => git(&["add", "-A"]).await,
        Act::Intend(path) => git(&["add", "-N", "--", path]).await,
        Act::Unstage(path) => git(&["rm", "-q", "-r", "--cached", "--", path]).await,
        Act::Commit => git(&["commit", "-q", "-m", "c"]).await,
        Act::Detach => git(&["checkout", "-q", "--detach"]).await,
        Act::Branch(n) => git(&["checkout", "-q", "-B", &format!("b{}", n % 3)]).await,
        Act::Capture => {}
    }
}

/// Whatever an agent does, the last checkpoint of its chain is what there was.
#[test]
fn any_worktree_is_restored() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: CASES, max_shrink_iters: 40, ..Config::default() });
    let tried = runner.run(&acts(), |acts| {
        runtime.block_on(async {
            let bench = Bench::new(true).await;
            let place = bench.place("a").await;
            let mut chain = Vec::new();
            for (at, one) in acts.iter().enumerate() {
                act(&place.worktree, one).await;
                if matches!(one, Act::Capture) || at + 1 == acts.len() {
                    let source = bench.source(&place, chain.last());
                    match super::super::capture(&source, &bench.files()).await.unwrap() {
                        super::super::Outcome::Taken(captured) => {
                            if captured.base.is_none() {
                                chain.clear();
                            }
                            chain.push(*captured);
                        }
                        super::super::Outcome::Unchanged => {}
                    }
                }
            }
            let was = picture(&place.worktree, &place.branch, ALL).await;
            fs::remove_dir_all(bench.machine("a")).unwrap();
            let chain: Vec<_> = chain.iter().collect();
            let restored = bench.restore("b", &chain, "makima/work/2").await.unwrap();
            assert_same(&was, &picture(&restored.place.worktree, "makima/work/2", ALL).await);
            assert_sound(&restored.place.worktree).await;
        });
        Ok(())
    });
    tried.unwrap();
}

/// While somebody writes all the time, a checkpoint is taken that can be restored, and each file in it was whole or partly written
/// by one of the writes, never something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_does_not_stop_a_checkpoint() {
    let bench = Bench::new(true).await;
    let place = bench.place("a").await;
    let dir = place.worktree.clone();
    write(&dir, &[("still", "still"), ("busy/0", "0")]);
    let over = std::sync::Arc::new(AtomicBool::new(false));
    let (stop, busy) = (std::sync::Arc::clone(&over), dir.clone());
    let writer = std::thread::spawn(move || {
        for round in 0_u64.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let digit = char::from(b'0' + u8::try_from(round % 10).unwrap());
            let text = digit.to_string().repeat(usize::try_from(round % 7).unwrap() * 20_000);
            let _ = fs::write(busy.join(format!("busy/{}", round % 20)), text);
            let _ = fs::remove_file(busy.join(format!("busy/{}", (round + 10) % 20)));
        }
    });
    let mut chain: Vec<super::super::Captured> = Vec::new();
    for _ in 0..4 {
        // What is written comes round again, so there may be nothing new.
        let source = Source { even_unchanged: true, ..bench.source(&place, chain.last()) };
        chain.push(bench.capture_from(&source).await);
    }
    over.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    assert!(chain.iter().any(|captured| captured.unsettled), "the writer was too slow to be noticed");
    let restored = bench.restore("b", &chain.iter().collect::<Vec<_>>(), "makima/work/2").await.unwrap();
    let now = restored.place.worktree;
    assert_eq!(fs::read_to_string(now.join("still")).unwrap(), "still");
    for entry in fs::read_dir(now.join("busy")).into_iter().flatten() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(text.bytes().all(|byte| byte.is_ascii_digit()), "a file that nobody wrote");
    }
    // Once it is still, so is the checkpoint.
    let source = Source { even_unchanged: true, ..bench.source(&place, chain.last()) };
    assert!(!bench.capture_from(&source).await.unsettled);
    testing::run(&dir, &["status"]).await;
}

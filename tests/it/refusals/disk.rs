//! A daemon without room takes no work, says so, and what it refuses is done by another.

use std::{fs, os::unix::fs::symlink, path::Path};

use makima::wire::pb::{AttemptStatus, FailureClass, PendingReason, TaskStatus};

use super::{explained, until};
use crate::harness::{
    DaemonOptions, Database, World,
    client::shell,
    eventually::{ensure, eventually},
};

/// Short of disk from its start: nothing is given to it, and `explain` says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_starts_on_a_full_disk() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon_with("full", with_floor(1 << 60)).await;
    let repo = world.repo("repo");
    let client = world.client();
    let task = client.create(&repo.url(), vec![shell("a", "echo a > a", &[])]).await.tasks[0].task_id.clone();
    short_of_disk(&world, &task, "full").await;
    let ok = world.start_daemon("ok").await;
    let done = until(&client, &task, TaskStatus::Done).await;
    assert_eq!((done.attempt, &done.daemon_id), (1, &ok.daemon_id));
}

/// The disk fills up between two heartbeats: the work that was on its way is refused, at no cost in retries, and done by
/// another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up() {
    let mut world = World::start(Database::Sqlite).await;
    // A disk of its own, where nobody else writes much: memory, if this machine offers it.
    let memory = Path::new("/dev/shm");
    let disk = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    fs::create_dir(world.dir.join("daemon")).unwrap();
    symlink(disk.path(), world.daemon_state("full")).unwrap();
    let stat = rustix::fs::statvfs(disk.path()).unwrap();
    let free = stat.f_bavail * stat.f_frsize;
    let margin = (free / 4).min(128 << 20);
    let full = world.start_daemon_with("full", with_floor(free - margin)).await;
    let repo = world.repo("repo");
    let client = world.client();

    // It takes work now; when this is done its last look at the disk, which holds for a tenth of a second, is old.
    let task = client.create(&repo.url(), vec![shell("first", "sleep 1.2", &[])]).await.tasks[0].task_id.clone();
    until(&client, &task, TaskStatus::Done).await;
    let ballast = disk.path().join("ballast");
    let file = fs::File::create(&ballast).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, margin + margin / 2).unwrap();
    let task = client.create(&repo.url(), vec![shell("a", "echo a > a", &[])]).await.tasks[0].task_id.clone();
    short_of_disk(&world, &task, "full").await;
    let refused = client.task(&task).await;
    assert_eq!(refused.attempts.len(), 1, "{refused:?}");
    let first = &refused.attempts[0];
    assert_eq!(
        (first.status(), first.failure_class(), &first.daemon_id),
        (AttemptStatus::Ended, FailureClass::Refused, &full.daemon_id),
        "{first:?}"
    );
    assert_eq!(refused.task.unwrap().retry_count, 0);

    let ok = world.start_daemon_with("ok", DaemonOptions { slots: 1, ..DaemonOptions::default() }).await;
    let done = until(&client, &task, TaskStatus::Done).await;
    assert_eq!(&done.daemon_id, &ok.daemon_id);
    assert_eq!(repo.file(&done.result_commit, "a").as_deref(), Some("a\n"));
}

fn with_floor(bytes: u64) -> DaemonOptions {
    let config = format!("[daemon.disk_floor]\nbytes = {bytes}\npercent = 0\n");
    DaemonOptions { config, ..DaemonOptions::default() }
}

/// Waits until a task is explained by a daemon without room, to programs and to people.
async fn short_of_disk(world: &World, task: &str, daemon: &str) {
    let client = world.client();
    eventually("the task waits for room", || async {
        let why = explained(&client, task).await;
        let waits = why.task.as_ref().is_some_and(|task| {
            task.status() == TaskStatus::Pending && task.pending_reason() == PendingReason::DaemonsNotAccepting
        });
        let names = why.summary.contains(&format!("{daemon} takes no new work: short of disk: "));
        ensure(waits && names, || format!("{why:#?}"))
    })
    .await;
    let output = world.cli(&["task", "explain", task]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("MiB wanted; remove worktrees with `makima worktree rm`"), "{text}");
}

//! How fast what is promised to be fast is. The figures are printed; what fails a test is that it does not happen at all, or
//! not to the right attempt: machines that test are busy.

use std::{fs, time::Instant};

use makima::wire::pb::{AttemptStatus, FailureClass, TaskStatus};

use super::stage::{LOST_AFTER, Stage, took};
use crate::harness::{
    client::shell,
    eventually::{ensure, eventually},
};

/// From the start of a daemon that was killed to the adoption of its agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_start_to_adoption() {
    let mut stage = Stage::new(&[1]).await;
    let dir = stage.world.dir.display().to_string();
    let waits = format!("echo $$ >> {dir}/starts; while [ ! -e {dir}/gate ]; do sleep 0.02; done; echo x > x");
    let task = stage.task(LOST_AFTER * 60, shell("t", &waits, &[])).await;
    stage.file("starts").await;
    stage.until(&task, TaskStatus::Running).await;
    let name = stage.machines[0].name.clone();
    stage.world.kill_daemon(&name);
    let begun = Instant::now();
    stage.restart(0).await;
    took("from a daemon's start to its session with its agent adopted", begun);
    let daemons = stage.client.daemon_list().await.unwrap();
    assert_eq!(daemons[0].live_attempts, 1);
    stage.touch("gate");
    let done = stage.until(&task, TaskStatus::Done).await;
    assert_eq!((done.attempt, stage.read("starts").lines().count()), (1, 1));
}

/// From the death of a machine, state directory and all, to the next attempt running elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_machines_death_to_the_next_attempt() {
    let mut stage = Stage::new(&[1, 1]).await;
    let dir = stage.world.dir.display().to_string();
    let waits = format!(
        "echo $MAKIMA_ATTEMPT_NUMBER >> {dir}/starts; while [ ! -e {dir}/gate ]; do sleep 0.02; done; echo x > x"
    );
    let task = stage.task(LOST_AFTER, shell("t", &waits, &[])).await;
    let first = stage.until(&task, TaskStatus::Running).await;
    stage.file("starts").await;
    let at = stage.machines.iter().position(|machine| machine.name == first.daemon_name).unwrap();
    let begun = Instant::now();
    stage.kill(at);
    fs::remove_dir_all(&stage.machines[at].state).unwrap();
    stage.attempt(&task, 2, AttemptStatus::Running).await;
    eventually("the second agent works", || async {
        ensure(stage.read("starts") == "1\n2\n", || stage.read("starts"))
    })
    .await;
    took("from a machine's death to the next attempt running (lost-after 1 s, rerun-after 1 s)", begun);
    stage.touch("gate");
    let done = stage.until(&task, TaskStatus::Done).await;
    let lost = stage.attempt(&task, 1, AttemptStatus::Ended).await;
    assert_eq!((done.attempt, lost.failure_class()), (2, FailureClass::DaemonLost));
}

/// From the deletion of a worktree to the report of it at the server; its agent would go on for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_deleted_worktree_to_its_report() {
    let stage = Stage::new(&[1]).await;
    let dir = stage.world.dir.display().to_string();
    let script = format!("[ $MAKIMA_ATTEMPT_NUMBER = 1 ] || exit 0; echo x >> {dir}/starts; exec sleep 1000");
    let task = stage.task(LOST_AFTER, shell("t", &script, &[])).await;
    stage.until(&task, TaskStatus::Running).await;
    stage.file("starts").await;
    let place = stage.client.task(&task).await.attempts[0].worktree_path.clone();
    let begun = Instant::now();
    fs::remove_dir_all(&place).unwrap();
    let lost = stage.attempt(&task, 1, AttemptStatus::Ended).await;
    took("from a deleted worktree to the end of its attempt at the server", begun);
    assert_eq!(lost.failure_class(), FailureClass::WorktreeLost, "{lost:?}");
    let done = stage.until(&task, TaskStatus::Done).await;
    assert_eq!(done.attempt, 2);
}

//! Cuts of the network, short and long, and a laptop that is closed. Agents work on; a result that is found after a cut
//! counts unless another attempt has its place, and whatever does not count is kept.

use std::{fs, time::Duration};

use makima::wire::pb::{self, AttemptStatus, DaemonStatus, FailureClass, TaskStatus};
use rustix::process::Signal;

use super::{
    machine::set_clock,
    stage::{LOST_AFTER, Stage},
};
use crate::harness::{
    client::shell,
    eventually::{ensure, eventually},
    proxy::Line,
};

/// Longer than any test here takes: nobody is tried elsewhere.
const NEVER: Duration = Duration::from_secs(3600);

/// A script that says that it has begun, waits for `gate`, and writes a line.
fn waits_for_gate(stage: &Stage) -> String {
    let dir = stage.world.dir.display();
    format!(
        "echo $MAKIMA_ATTEMPT_NUMBER >> {dir}/starts; while [ ! -e {dir}/gate ]; do sleep 0.02; done; echo made > made; \
         echo said; echo $MAKIMA_ATTEMPT_NUMBER >> {dir}/ends"
    )
}

/// The network is gone for longer than a daemon may be quiet, and comes back before the task is tried elsewhere: the agent
/// has worked on, its result counts, and nobody else was asked although somebody could have done it. Rows 14, 16, 22.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_is_waited_for() {
    let stage = Stage::new(&[1, 1]).await;
    let task = stage.task(NEVER, shell("t", &waits_for_gate(&stage), &[])).await;
    let first = stage.until(&task, TaskStatus::Running).await;
    stage.file("starts").await;
    let at = stage.machines.iter().position(|machine| machine.name == first.daemon_name).unwrap();
    stage.machines[at].wire.set(Line::Stalled);
    stage.attempt(&task, 1, AttemptStatus::Disconnected).await;
    // It ends while nobody can hear it.
    stage.touch("gate");
    stage.file("ends").await;
    stage.machines[at].wire.set(Line::Open);
    stage.machines[at].wire.cut();
    let done = stage.until(&task, TaskStatus::Done).await;
    assert_eq!((done.attempt, done.retry_count), (1, 0));
    assert_eq!((stage.read("starts"), stage.read("ends")), ("1\n".to_owned(), "1\n".to_owned()));
    assert_eq!(stage.repo.file(&done.result_commit, "made").as_deref(), Some("made\n"));
    assert!(stage.machines[at].wire.harmed() > 0);
}

/// The network is gone for long, the task would be tried elsewhere at once, and there is nobody: the agent's result counts
/// when the network is back, and it ran once. Rows 7, 14, 15.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_cut_with_nobody_else() {
    let stage = Stage::new(&[1]).await;
    let task = stage.task(Duration::ZERO, shell("t", &waits_for_gate(&stage), &[])).await;
    stage.until(&task, TaskStatus::Running).await;
    stage.file("starts").await;
    stage.machines[0].wire.set(Line::Refusing);
    assert!(stage.machines[0].wire.cut() > 0);
    // Given up: it waits for a daemon that could run it.
    let answer =
        stage.sees("the task waits", &task, |a| a.task.as_ref().unwrap().status() == TaskStatus::Pending).await;
    assert_eq!(answer.attempts[0].failure_class(), FailureClass::DaemonLost, "{answer:#?}");
    stage.touch("gate");
    stage.file("ends").await;
    stage.machines[0].wire.set(Line::Open);
    let done = stage.until(&task, TaskStatus::Done).await;
    assert_eq!((done.attempt, done.retry_count), (1, 0), "{done:#?}");
    assert_eq!(stage.read("starts"), "1\n");
    assert!(stage.machines[0].wire.harmed() > 0);
}

/// The network is gone for long, and the task is tried elsewhere: one result counts, and what the other agent did is kept in
/// its branch and its worktree. Rows 6, 7, 14.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_cut_with_the_task_tried_elsewhere() {
    let stage = Stage::new(&[1, 1]).await;
    let task = stage.task(Duration::ZERO, shell("t", &waits_for_gate(&stage), &[])).await;
    let first = stage.until(&task, TaskStatus::Running).await;
    stage.file("starts").await;
    let at = stage.machines.iter().position(|machine| machine.name == first.daemon_name).unwrap();
    stage.machines[at].wire.set(Line::Refusing);
    stage.machines[at].wire.cut();
    let second = stage.attempt(&task, 2, AttemptStatus::Running).await;
    assert_ne!(second.daemon_name, first.daemon_name);
    stage.touch("gate");
    let done = stage.until(&task, TaskStatus::Done).await;
    assert_eq!(done.attempt, 2);
    stage.machines[at].wire.set(Line::Open);
    stage
        .daemon(at, "back and idle", |daemon| daemon.status() == DaemonStatus::Attached && daemon.live_attempts == 0)
        .await;
    stage.nothing_runs().await;
    let answer = stage.client.task(&task).await;
    let after = answer.task.unwrap();
    assert_eq!((after.attempt, after.result_commit, after.version), (2, done.result_commit, done.version));
    assert_eq!(answer.attempts[0].result_commit, "", "{:#?}", answer.attempts);
    // What it did is there for whoever looks.
    let kept = fs::read_to_string(format!("{}/made", answer.attempts[0].worktree_path));
    assert_eq!(kept.unwrap(), "made\n");
}

/// The same, and the first agent is at work still when the network is back: it is ended, and what it did is with the server, as
/// a checkpoint that nobody goes on from and that a person can take. Rows 6, 7, 14.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_cut_that_the_first_agent_works_through() {
    let stage = Stage::new(&[1, 1]).await;
    let dir = stage.world.dir.display();
    let script = format!(
        "echo by $MAKIMA_ATTEMPT_NUMBER > made; echo $MAKIMA_ATTEMPT_NUMBER >> {dir}/starts
        [ $MAKIMA_ATTEMPT_NUMBER = 2 ] || exec sleep 1000"
    );
    let task = stage.task(Duration::ZERO, shell("t", &script, &[])).await;
    let first = stage.until(&task, TaskStatus::Running).await;
    stage.file("starts").await;
    let at = stage.machines.iter().position(|machine| machine.name == first.daemon_name).unwrap();
    stage.machines[at].wire.set(Line::Refusing);
    stage.machines[at].wire.cut();
    let done = stage.until(&task, TaskStatus::Done).await;
    assert_eq!(done.attempt, 2);
    stage.machines[at].wire.set(Line::Open);
    stage.nothing_runs().await;
    let orphan = eventually("what the first agent did is with the server", || async {
        let listed = stage.world.cli_json(&["task", "checkpoints", &task]).await;
        let is_it = |it: &&serde_json::Value| it["orphan"] == true && it["attempt"] == 1;
        listed.iter().find(is_it).cloned().ok_or_else(|| format!("{listed:#?}"))
    })
    .await;
    let after = stage.client.task(&task).await.task.unwrap();
    assert_eq!((after.status(), after.attempt, &after.result_commit), (TaskStatus::Done, 2, &done.result_commit));
    assert_eq!(stage.repo.file(&after.result_commit, "made").as_deref(), Some("by 2\n"));
    let into = stage.path("kept").display().to_string();
    let id = orphan["checkpoint_id"].as_str().unwrap();
    let restored = stage.world.cli(&["task", "restore", id, "--into", &into]).await;
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    assert_eq!(stage.read("kept/made"), "by 1\n");
}

/// The network to the server is gone for long, that to the repository is not: the task is done elsewhere, and then the first
/// agent ends well too, unheard. The result that counts stays where it is, and what the first one made is kept, once. Rows 6,
/// 7, 14.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_cut_in_which_the_first_agent_ends_last() {
    let mut stage = Stage::new(&[1, 1]).await;
    let dir = stage.world.dir.display();
    let script = format!(
        "echo by $MAKIMA_ATTEMPT_NUMBER > made; git add made; git commit -qm made; echo $MAKIMA_ATTEMPT_NUMBER >> {dir}/starts
        [ $MAKIMA_ATTEMPT_NUMBER = 2 ] || while [ ! -e {dir}/gate ]; do sleep 0.02; done; echo left > left"
    );
    let made = stage.contract_on(stage.repo.file_url(), Duration::ZERO, vec![shell("t", &script, &[])]).await;
    let task = made.1[0].task_id.clone();
    let first = stage.until(&task, TaskStatus::Running).await;
    stage.file("starts").await;
    let at = stage.machines.iter().position(|machine| machine.name == first.daemon_name).unwrap();
    stage.machines[at].wire.set(Line::Refusing);
    stage.machines[at].wire.cut();
    let done = stage.until(&task, TaskStatus::Done).await;
    assert_eq!(done.attempt, 2);
    stage.touch("gate");
    let log = stage.world.daemon(&first.daemon_name);
    eventually("its end is written down there", || async {
        ensure(log.output().contains("the attempt has ended with a result"), || log.output())
    })
    .await;
    stage.machines[at].wire.set(Line::Open);
    let orphans = || async {
        let listed = stage.world.cli_json(&["task", "checkpoints", &task]).await;
        listed.into_iter().filter(|it| it["orphan"] == true && it["attempt"] == 1).collect::<Vec<_>>()
    };
    eventually("what the first agent made is with the server", || async {
        ensure(!orphans().await.is_empty(), || "nothing is kept".to_owned())
    })
    .await;
    for (of, into, has) in [(task.as_str(), "result", "by 2\n"), ("", "kept", "by 1\n")] {
        let orphans = orphans().await;
        let of = if of.is_empty() { orphans[0]["checkpoint_id"].as_str().unwrap() } else { of };
        let path = stage.path(into).display().to_string();
        let restored = stage.world.cli(&["task", "restore", of, "--into", &path]).await;
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
        assert_eq!(
            (stage.read(&format!("{into}/made")), stage.read(&format!("{into}/left"))),
            (has.into(), "left\n".into())
        );
    }
    assert_eq!(orphans().await.len(), 1);
    let after = stage.client.task(&task).await.task.unwrap();
    assert_eq!((after.attempt, after.result_commit, after.version), (2, done.result_commit, done.version));
}

/// A cancellation that is asked for while the daemon cannot hear reaches its agent afterwards. Rows 17, 27.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_during_a_cut() {
    let stage = Stage::new(&[1]).await;
    let task = stage.task(NEVER, shell("t", &waits_for_gate(&stage), &[])).await;
    stage.until(&task, TaskStatus::Running).await;
    stage.file("starts").await;
    stage.machines[0].wire.set(Line::Mute);
    let cancel = pb::CancelTaskRequest { task_id: task.clone(), ..Default::default() };
    stage.client.tasks().cancel_task(cancel).await.unwrap();
    eventually("something was lost", || async { ensure(stage.machines[0].wire.harmed() > 0, || "no".to_owned()) })
        .await;
    assert_eq!(stage.machines[0].agents().len(), 1);
    stage.machines[0].wire.set(Line::Open);
    stage.until(&task, TaskStatus::Cancelled).await;
    stage.attempt(&task, 1, AttemptStatus::Ended).await;
    stage.nothing_runs().await;
    assert_eq!(stage.read("ends"), "");
}

/// A laptop is closed for an hour: everything on it stands still, and the clocks of all go on. It is given up, and when it
/// wakes up its agent goes on where it was and its result counts. Rows 6, 7, 14.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_laptop_asleep_for_an_hour() {
    const HOUR: Duration = Duration::from_secs(3600);
    let stage = Stage::new(&[1]).await;
    let task = stage.task(Duration::from_secs(2), shell("t", &waits_for_gate(&stage), &[])).await;
    stage.until(&task, TaskStatus::Running).await;
    stage.file("starts").await;
    assert!(stage.machines[0].signal(Signal::STOP) >= 3, "daemon, shim and agent sleep");
    stage.attempt(&task, 1, AttemptStatus::Disconnected).await;
    stage.server_clock(HOUR, false);
    stage.until(&task, TaskStatus::Pending).await;
    set_clock(&stage.machines[0].clock, Some(HOUR), false);
    stage.machines[0].signal(Signal::CONT);
    stage.touch("gate");
    let done = stage.until(&task, TaskStatus::Done).await;
    assert_eq!((done.attempt, stage.read("starts")), (1, "1\n".to_owned()));
    stage.nothing_runs().await;
}

/// The same while another machine is there: the task is tried on it, one result counts, and nothing of the sleeper lives on.
/// Rows 6, 7, 14.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_laptop_asleep_while_another_works() {
    let stage = Stage::new(&[1, 1]).await;
    let task = stage.task(Duration::ZERO, shell("t", &waits_for_gate(&stage), &[])).await;
    let first = stage.until(&task, TaskStatus::Running).await;
    stage.file("starts").await;
    let at = stage.machines.iter().position(|machine| machine.name == first.daemon_name).unwrap();
    stage.machines[at].signal(Signal::STOP);
    stage.attempt(&task, 2, AttemptStatus::Running).await;
    stage.machines[at].signal(Signal::CONT);
    stage.daemon(at, "back", |daemon| daemon.status() == DaemonStatus::Attached && daemon.session_epoch > 1).await;
    stage.touch("gate");
    let done = stage.until(&task, TaskStatus::Done).await;
    assert_eq!(done.attempt, 2);
    stage.nothing_runs().await;
    stage.daemon(at, "idle", |daemon| daemon.live_attempts == 0).await;
}

/// The server's clock jumps an hour ahead and is set right: what waits for a time waits for as long as it should, not for an
/// hour more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_right_stops_no_wait() {
    let mut stage = Stage::new(&[1, 1]).await;
    let task = stage.task(LOST_AFTER, shell("t", &waits_for_gate(&stage), &[])).await;
    let first = stage.until(&task, TaskStatus::Running).await;
    stage.file("starts").await;
    stage.server_clock(Duration::from_secs(3600), false);
    // Something is written by that clock.
    let other = stage.task(LOST_AFTER, shell("other", "true", &[])).await;
    stage.until(&other, TaskStatus::Done).await;
    stage.server_clock(Duration::ZERO, false);
    let at = stage.machines.iter().position(|machine| machine.name == first.daemon_name).unwrap();
    stage.kill(at);
    stage.touch("gate");
    let done = stage.until(&task, TaskStatus::Done).await;
    assert_eq!(done.attempt, 2);
}

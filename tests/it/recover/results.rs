//! Work that is done.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use makima::wire::pb::{AttemptStatus, FailureClass, TaskStatus};

use super::{checkpointed, create, lose_machine, no_agents, options, until, worktree, world};
use crate::harness::{
    DaemonOptions, Repo,
    client::shell,
    proxy::{Line, Proxy},
};

/// Results of this repository are with the server alone.
fn take_no_pushes(repo: &Repo) {
    let hook = repo.path.join(".git/hooks/pre-receive");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A task is done on a machine whose origin takes no pushes, and the machine is lost. What depends on it begins on another one
/// from the result, which the server has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_survives_its_machine() {
    let mut world = world().await;
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    take_no_pushes(&repo);
    let gate = world.dir.join("gate");
    let client = world.client();
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", gate.display());
    let mut tasks = vec![shell("first", "echo one > one", &[]), shell("between", &wait, &["first"])];
    tasks.push(shell("second", "cat one > two", &["between", "first"]));
    let tasks = create(&client, &repo.file_url(), Duration::ZERO, tasks).await;
    let id = |name: &str| tasks.iter().find(|task| task.spec.as_ref().unwrap().name == name).unwrap().task_id.clone();
    let first = until(&client, &id("first"), TaskStatus::Done).await;
    until(&client, &id("between"), TaskStatus::Running).await;

    lose_machine(&mut world, "a").await;
    fs::write(&gate, "").unwrap();
    world.start_daemon_with("b", options()).await;
    until(&client, &id("second"), TaskStatus::Done).await;
    let place = worktree(&client, &id("second")).await;
    assert!(place.starts_with(world.daemon_state("b")), "{}", place.display());
    assert_eq!(fs::read_to_string(place.join("two")).unwrap(), "one\n");
    let refs = repo.refs().join(" ");
    assert!(!refs.contains("makima"), "origin has taken {} after all: {refs}", first.result_commit);
}

/// A machine dies for ever while its result is on the way over a slow line. What has not arrived is no result: the task goes on
/// from its last checkpoint on another machine, and is done there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_has_not_arrived_is_made_again() {
    let mut world = world().await;
    let wire = Proxy::to(world.address()).await;
    let slow = DaemonOptions { server: Some(wire.url.clone()), ..options() };
    world.start_daemon_with("a", slow).await;
    let repo = world.repo("repo");
    take_no_pushes(&repo);
    let gate = world.dir.join("gate");
    let script = format!(
        "if [ \"$MAKIMA_RESUMED\" = 1 ]; then echo second >> work; exit 0; fi
        echo first > work; echo ready > ready; while [ ! -e {} ]; do sleep 0.05; done
        head -c 20000000 /dev/urandom > large",
        gate.display()
    );
    let client = world.client();
    let tasks = create(&client, &repo.file_url(), Duration::from_secs(1), vec![shell("t", &script, &[])]).await;
    let id = tasks[0].task_id.clone();
    until(&client, &id, TaskStatus::Running).await;
    world.file_appears(&worktree(&client, &id).await.join("ready")).await;
    checkpointed(&client, &id).await;
    // Half a minute and more for the result.
    wire.set(Line::Slow(Duration::from_millis(100)));
    fs::write(&gate, "").unwrap();
    until(&client, &id, TaskStatus::Finalizing).await;
    assert_eq!(client.task(&id).await.attempts[0].status(), AttemptStatus::Finalizing);

    lose_machine(&mut world, "a").await;
    world.start_daemon_with("b", options()).await;
    let done = until(&client, &id, TaskStatus::Done).await;
    let attempts = client.task(&id).await.attempts;
    assert_eq!((done.attempt, attempts[0].failure_class()), (2, FailureClass::DaemonLost), "{attempts:#?}");
    assert_ne!(attempts[0].result_commit, done.result_commit);
    let place = worktree(&client, &id).await;
    assert!(place.starts_with(world.daemon_state("b")), "{}", place.display());
    assert_eq!(fs::read_to_string(place.join("work")).unwrap(), "first\nsecond\n");
    no_agents(&world).await;
}

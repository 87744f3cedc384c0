//! Work that is done.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use makima::wire::pb::TaskStatus;

use super::{create, lose_machine, options, until, worktree, world};
use crate::harness::client::shell;

/// A task is done on a machine whose origin takes no pushes, and the machine is lost. What depends on it begins on another one
/// from the result, which the server has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_survives_its_machine() {
    let mut world = world().await;
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    let hook = repo.path.join(".git/hooks/pre-receive");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
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

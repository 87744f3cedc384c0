//! An agent that no daemon has: the task waits, says why, and starts as soon as somebody has it.

use makima::wire::pb::{PendingReason, TaskStatus};

use super::{explained, until, work_goes_on};
use crate::harness::{
    DaemonOptions, Database, World,
    client::shell,
    eventually::{ensure, eventually},
};

/// Neither a profile that nobody has heard of nor one whose program is not installed is tried in vain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_not_installed() {
    let mut world = World::start(Database::Sqlite).await;
    // It has the profile; the program is not there.
    let config = "[daemon.profiles.painter]\ncommand = \"no-such-painter\"\nargs = [\"{plan_file}\"]\n".to_owned();
    world.start_daemon_with("poor", DaemonOptions { config, ..DaemonOptions::default() }).await;
    let repo = world.repo("repo");
    let client = world.client();
    let mut paints = shell("paint", "echo blue > colour", &[]);
    paints.agent = "painter".to_owned();
    let task = client.create(&repo.url(), vec![paints]).await.tasks[0].task_id.clone();

    work_goes_on(&world, &repo).await;
    let why = explained(&client, &task).await;
    let waiting = why.task.clone().unwrap();
    assert_eq!((waiting.status(), waiting.attempt), (TaskStatus::Pending, 0));
    assert_eq!(waiting.pending_reason(), PendingReason::NoMatchingDaemon, "{why:?}");
    let output = world.cli(&["task", "explain", &task]).await;
    let short = &task.replace('-', "")[20..];
    let text = String::from_utf8(output.stdout).unwrap().replace(&repo.url(), "REPO").replace(short, "TASK");
    insta::assert_snapshot!(text, @r#"
    `paint` is PENDING: poor lacks agent profile `painter`

    daemons
      poor: lacks agent profile `painter`

    what you can do
      start a daemon that has agent profile `painter`, repository `REPO`
      or ask an agent that is there (shell): makima task update TASK --agent shell
    "#);

    let config = "[daemon.profiles.painter]\ncommand = \"/bin/sh\"\nargs = [\"-eu\", \"{plan_file}\"]\n".to_owned();
    let rich = world.start_daemon_with("rich", DaemonOptions { config, ..DaemonOptions::default() }).await;
    let done = until(&client, &task, TaskStatus::Done).await;
    assert_eq!((done.attempt, &done.daemon_id), (1, &rich.daemon_id));
    assert_eq!(repo.file(&done.result_commit, "colour").as_deref(), Some("blue\n"));
    eventually("it is explained no more", || async {
        let why = explained(&client, &task).await;
        ensure(why.task.as_ref().is_some_and(|task| task.pending_reason() == PendingReason::Unspecified), || {
            format!("{why:?}")
        })
    })
    .await;
}

//! A task that fails, is changed and tried again, as somebody sees it who follows its output all the while.

use std::process::Stdio;

use makima::wire::pb::TaskStatus;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::harness::{
    Database, World,
    client::shell,
    eventually::{ensure, eventually},
    proxy::{Line, Proxy},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_is_followed_through_all_attempts() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo").url();
    let client = world.client();
    let [told, go] = ["told", "go"].map(|name| world.dir.join(name));
    // The first attempt dies as a crashed agent does, and the second waits until somebody has seen that.
    let script = format!(
        "if test -e {0}; then echo two; exit 0; fi; touch {0}; echo one; until test -e {1}; do sleep 0.05; done; kill -9 $$",
        told.display(),
        go.display()
    );
    let id = client.create(&repo, vec![shell("t", &script, &[])]).await.tasks[0].task_id.clone();
    let following = world.cli(&["task", "logs", "t", "--follow"]);
    let named = async {
        world.file_appears(&told).await;
        let named = world.cli(&["task", "logs", "t", "--follow", "--attempt", "1"]);
        let dies = async { std::fs::write(&go, "").unwrap() };
        let (named, ()) = tokio::join!(named, dies);
        eventually("it waits for another try", || async {
            let task = client.task(&id).await.task.unwrap();
            ensure(task.status() == TaskStatus::Pending, || format!("{task:?}"))
        })
        .await;
        let retried = world.cli(&["task", "retry", "t"]).await;
        assert!(retried.status.success(), "{retried:?}");
        named
    };
    let (followed, named) = tokio::join!(following, named);
    let [out, err] = [&followed.stdout, &followed.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(followed.status.success(), "{err}");
    assert_eq!(out, "one\ntwo\n", "{err}");
    let said: Vec<&str> = err.lines().collect();
    assert!(
        said.iter().any(|line| line.starts_with("(attempt 1 has ended; the task is PENDING: tried again in ")),
        "{err}"
    );
    assert!(said.contains(&"(attempt 1 has ended; attempt 2 begins)"), "{err}");
    assert_eq!(said.last(), Some(&"(attempt 2 has ended; the task is DONE)"));
    assert_eq!(String::from_utf8_lossy(&named.stdout), "one\n", "one that is named is followed alone");
}

/// What happens while the connection is broken is shown when it is there again, attempt by attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_behind_a_break_are_shown_too() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo").url();
    let client = world.client();
    let [runs, go] = ["runs", "go"].map(|name| world.dir.join(name));
    let script = format!(
        "echo x >> {runs}; n=$(wc -l < {runs}); echo run $n; test $n != 3 || exit 0
        until test -e {go}; do sleep 0.05; done; kill -9 $$",
        runs = runs.display(),
        go = go.display()
    );
    let id = client.create(&repo, vec![shell("t", &script, &[])]).await.tasks[0].task_id.clone();
    world.file_appears(&runs).await;
    let proxy = Proxy::to(world.address()).await;
    let mut command = world.command();
    command.args(["task", "logs", "t", "--follow"]).env("MAKIMA_SERVER", &proxy.url);
    command.env("MAKIMA_KEY_FILE", world.key_file("owner")).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut following = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("run 1"));
    proxy.set(Line::Refusing);
    proxy.cut();
    std::fs::write(&go, "").unwrap();
    eventually("it is done", || async {
        let task = client.task(&id).await.task.unwrap();
        if task.status() == TaskStatus::Pending {
            let _ = world.cli(&["task", "retry", "t"]).await;
        }
        ensure(task.status() == TaskStatus::Done, || format!("{task:?}"))
    })
    .await;
    proxy.set(Line::Open);
    let mut shown = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        shown.push(line);
    }
    assert_eq!(shown, ["run 2", "run 3"]);
    assert!(following.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_failed_is_changed_and_tried_again() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo").url();
    let client = world.client();
    let mut first = shell("first", "exit 3", &[]);
    first.limits.get_or_insert_default().max_retries = Some(2);
    let tasks = vec![first, shell("other", "true", &[]), shell("last", "true", &["first"])];
    let made = client.create(&repo, tasks).await.tasks;
    let is = async |place: usize, status: TaskStatus| {
        eventually(status.as_str_name(), || async {
            let task = client.task(&made[place].task_id).await.task.unwrap();
            ensure(task.status() == status, || format!("{task:?}"))
        })
        .await;
    };
    is(0, TaskStatus::Failed).await;
    is(1, TaskStatus::Done).await;
    let said = async |args: &[&str]| {
        let output = world.cli(args).await;
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        let short = |text: String, id: &str| text.replace(&id.replace('-', "")[20..], "ID");
        (output.status.code(), made.iter().fold(text, |text, task| short(text, &task.task_id)).trim_end().to_owned())
    };

    // What hangs on it can be tried again, and would still not start.
    assert_eq!(said(&["task", "cancel", "last"]).await.0, Some(0));
    let blocked = "task last ID would be tried again, but it never starts by itself: it hangs on first (FAILED)";
    assert_eq!(said(&["task", "retry", "last"]).await, (Some(0), blocked.to_owned()));

    let followed = "(the task is PENDING: never starts by itself: it hangs on first (FAILED))";
    assert_eq!(said(&["task", "logs", "-f", "last"]).await, (Some(1), followed.to_owned()));

    assert_eq!(said(&["task", "update", "first"]).await.0, Some(2), "nothing is to be changed");
    let done = "makima: cannot change the task: the task is DONE; what is asked of it can be changed only while it is PENDING, \
                FAILED or CANCELLED (WRONG_STATE)";
    assert_eq!(said(&["task", "update", "other", "--plan", "false"]).await, (Some(1), done.to_owned()));
    let changed = "task first ID is changed; `makima task retry ID` has it tried again";
    assert_eq!(
        said(&["task", "update", "first", "--plan", "true", "--label", ""]).await,
        (Some(0), changed.to_owned())
    );
    for (args, expected) in
        [(["--wall-time", "1m"], (60, 2)), (["--max-retries", "1"], (60, 1)), (["--wall-time", "0s"], (0, 1))]
    {
        let (code, told) = said(&["task", "update", "first", args[0], args[1]]).await;
        assert_eq!(code, Some(0), "{told}");
        let limits = client.task(&made[0].task_id).await.task.unwrap().spec.unwrap().limits.unwrap();
        assert_eq!((limits.wall_time.map_or(0, |it| it.seconds), limits.max_retries()), expected);
    }
    let deps = said(&["task", "deps", "add", "first", "other"]).await;
    assert_eq!(deps.0, Some(0), "{}", deps.1);
    is(0, TaskStatus::Failed).await;
    assert_eq!(said(&["task", "retry", "first"]).await, (Some(0), "task first ID will be tried again".to_owned()));
    for place in 0..3 {
        is(place, TaskStatus::Done).await;
    }
    let first = client.task(&made[0].task_id).await;
    assert_eq!(first.dependencies.iter().map(|edge| &edge.task_id).collect::<Vec<_>>(), [&made[1].task_id]);
    let task = first.task.unwrap();
    assert_eq!((task.attempt, task.spec.unwrap().plan.as_str()), (2, "true"));

    // What is mistyped is told at once, and what is never tried again is not changed either.
    let (code, told) = said(&["run", "--repo", &repo, "--agent", "shel", "true"]).await;
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("true cannot start yet: d lacks agent profile `shel`"), "{told}");
    let held = client.create(&repo, vec![shell("alone", "true", &["gone"]), shell("gone", "exit 3", &[])]).await;
    let contract = held.contract.unwrap().contract_id;
    assert_eq!(said(&["contract", "cancel", &contract]).await.0, Some(0));
    for verb in ["hold", "release"] {
        let (code, told) = said(&["contract", verb, &contract]).await;
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains("the contract is cancelled; nothing of it starts any more"), "{told}");
    }
    let (code, told) = said(&["task", "update", &held.tasks[0].task_id, "--plan", "false"]).await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("the contract is cancelled; its tasks are not tried again"), "{told}");
}

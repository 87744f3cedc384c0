//! What dies and what goes on: real processes, killed with SIGKILL.

use std::{collections::BTreeMap, fs, time::Duration};

use makima::wire::pb::{self, AttemptStatus, FailureClass, TaskStatus};

use crate::{
    both_databases,
    harness::{
        DaemonOptions, Database, World,
        client::shell,
        eventually,
        eventually::{ensure, eventually_within},
    },
};

both_databases!(a_killed_server_loses_and_repeats_nothing);

/// A daemon is killed while a script runs. Started again it adopts the script: no gap, no repetition, the same attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_adopts_its_agent() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let gate = world.dir.join("gate");
    let script = format!(
        "i=0; while [ ! -e {gate} ]; do i=$((i+1)); echo line $i; sleep 0.01; done; echo last $i; echo $i > made",
        gate = gate.display()
    );
    let client = world.client();
    let contract = client.create(&repo.url(), vec![shell("long", &script, &[])]).await;
    let task = contract.tasks[0].task_id.clone();
    running(&client, &task).await;
    // RUNNING is said before there is anything of the agent to be seen.
    eventually("the agent says something", || async {
        let output = client.output(&task, 1).await.map_err(|status| status.to_string())?;
        ensure(!output.is_empty(), || "nothing yet".to_owned())
    })
    .await;
    // The script itself; it starts a `sleep` every now and then.
    let agents =
        |world: &World| world.processes().into_iter().filter(|found| found.arguments.starts_with("sh ")).count();
    assert_eq!(agents(&world), 1, "{:?}", world.processes());

    world.kill_daemon("d");
    world.restart_daemon("d").await;
    // It has gone on meanwhile, and goes on now.
    let seen = client.output(&task, 1).await.unwrap().len();
    eventually("the output grows after the adoption", || async {
        let now = client.output(&task, 1).await.map_err(|status| status.to_string())?.len();
        ensure(now > seen, || format!("{now} bytes, {seen} before"))
    })
    .await;
    assert_eq!(agents(&world), 1, "{:?}", world.processes());
    fs::write(&gate, "").unwrap();

    let done = until(&client, &task, TaskStatus::Done).await;
    assert_eq!(done.attempt, 1);
    let text = eventually("all output is there", || async {
        let output = client.output(&task, 1).await.map_err(|status| status.to_string())?;
        let text = String::from_utf8(output).unwrap();
        if text.contains("last ") { Ok(text) } else { Err(format!("{} bytes", text.len())) }
    })
    .await;
    let count: usize = repo.file(&done.result_commit, "made").unwrap().trim().parse().unwrap();
    let mut expected: String = (1..=count).map(|i| format!("line {i}\n")).collect();
    expected.push_str(&format!("last {count}\n"));
    assert_eq!(text, expected);
}

/// The shim is killed: its script is stopped, nothing of it is left, the task is tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_shim_takes_its_agent_with_it() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let tries = world.dir.join("tries");
    // The second try ends well; the first one, and a child in a session of its own, wait for ever.
    let script = format!(
        "echo try >> {tries}; if [ $(wc -l < {tries}) -gt 1 ]; then exit 0; fi; setsid sleep 1000 & sleep 1000",
        tries = tries.display()
    );
    let client = world.client();
    let contract = client.create(&repo.url(), vec![shell("stuck", &script, &[])]).await;
    let task = contract.tasks[0].task_id.clone();
    running(&client, &task).await;
    eventually("the script waits", || async { ensure(tries.exists(), || "not yet".to_owned()) }).await;
    let first: Vec<_> = world.processes().into_iter().collect();
    let shim = first.iter().find(|found| found.is_shim()).expect("a shim");
    let daemon = world.daemon("d").pid();
    let server = world.server.pid();
    shim.kill();

    eventually("nothing of the first try is left", || async {
        let alive: Vec<_> = first.iter().filter(|f| f.is_alive() && ![daemon, server].contains(&f.pid)).collect();
        ensure(alive.is_empty(), || format!("{alive:?}"))
    })
    .await;
    let waiting = eventually("the task is to be tried again", || async {
        let task = client.task(&task).await;
        let again = task.task.as_ref().is_some_and(|task| task.status() == TaskStatus::Pending);
        if again { Ok(task) } else { Err(format!("{task:?}")) }
    })
    .await;
    let first = &waiting.attempts[0];
    assert_eq!(
        (first.status(), first.failure_class()),
        (AttemptStatus::Ended, FailureClass::AgentCrashed),
        "{first:?}"
    );
    // A person need not wait for the backoff.
    let request = pb::RetryTaskRequest { task_id: task.clone(), ..Default::default() };
    client.tasks().retry_task(request).await.unwrap();
    let done = until(&client, &task, TaskStatus::Done).await;
    assert_eq!(done.attempt, 2);
}

/// The server is killed in the middle of fifty tasks: every one ends DONE, none ran twice.
async fn a_killed_server_loses_and_repeats_nothing(database: Database) {
    const TASKS: usize = 50;
    let mut world = World::start(database).await;
    for name in ["d1", "d2"] {
        world.start_daemon_with(name, DaemonOptions { slots: 4, ..DaemonOptions::default() }).await;
    }
    let repo = world.repo("repo");
    let runs = world.dir.join("runs");
    fs::create_dir(&runs).unwrap();
    let specs: Vec<_> = (0..TASKS)
        .map(|i| {
            let script = format!("echo $$ >> {}/t{i}; sleep 0.1; echo {i} > f{i}", runs.display());
            // Ten chains of five.
            let before = format!("t{}", i.saturating_sub(10));
            let depends_on: &[&str] = if i < 10 { &[] } else { &[&before] };
            shell(&format!("t{i}"), &script, depends_on)
        })
        .collect();
    let client = world.client();
    let contract = client.create(&repo.url(), specs).await.contract.unwrap().contract_id;
    for at_least in [5, 20] {
        eventually("some are done", || async {
            let done = done(&client, &contract).await?;
            ensure(done >= at_least, || format!("{done} done"))
        })
        .await;
        world.kill_server();
        world.start_server().await;
    }
    eventually_within(Duration::from_secs(120), "all are done", || async {
        let done = done(&client, &contract).await?;
        ensure(done == TASKS, || format!("{done} done"))
    })
    .await;
    let mut ran: BTreeMap<String, usize> = BTreeMap::new();
    for entry in fs::read_dir(&runs).unwrap() {
        let path = entry.unwrap().path();
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        ran.insert(path.file_name().unwrap().to_string_lossy().into_owned(), lines);
    }
    assert_eq!(ran.len(), TASKS);
    assert!(ran.values().all(|runs| *runs == 1), "{ran:?}");
    for task in client.tasks_of(&contract).await {
        assert_eq!(task.attempt, 1, "{task:?}");
    }
}

async fn done(client: &crate::harness::client::Client, contract: &str) -> Result<usize, String> {
    let request = pb::GetContractRequest { contract_id: contract.to_owned() };
    let answer = client.contracts().get_contract(request).await.map_err(|status| status.to_string())?.into_inner();
    let counts = answer.contract.and_then(|contract| contract.task_counts).unwrap_or_default();
    Ok(counts.done as usize)
}

async fn running(client: &crate::harness::client::Client, task: &str) {
    until(client, task, TaskStatus::Running).await;
}

async fn until(client: &crate::harness::client::Client, task: &str, status: TaskStatus) -> pb::Task {
    eventually(&format!("the task is {}", status.as_str_name()), || async {
        let answer = client.task(task).await;
        match answer.task.clone() {
            Some(task) if task.status() == status => Ok(task),
            _ => Err(format!("{answer:#?}")),
        }
    })
    .await
}

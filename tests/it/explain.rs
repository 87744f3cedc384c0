//! A fleet that looks stuck: every pending task says why it does not run, truly, to programs and to people; when the reason
//! goes away the task runs, without anybody's help.

use std::fs;

use makima::wire::pb::{self, PendingReason, TaskSpec, TaskStatus};

use crate::harness::{
    DaemonOptions, Database, World,
    client::{Client, shell},
    eventually::{ensure, eventually},
};

/// Between two heartbeats, and how long a daemon may be quiet: short, so that the test is.
const TIMES: [&str; 4] = ["--heartbeat-interval", "200ms", "--lost-after", "1s"];

fn on(label: &str, slots: u32) -> DaemonOptions {
    DaemonOptions { slots, labels: vec![label.to_owned()], ..DaemonOptions::default() }
}

/// A task for the daemons with this label.
fn at(label: &str, name: &str, script: &str) -> TaskSpec {
    TaskSpec { labels: vec![label.to_owned()], ..shell(name, script, &[]) }
}

async fn explained(client: &Client, task: &str) -> pb::ExplainTaskResponse {
    let request = pb::ExplainTaskRequest { task_id: task.to_owned() };
    client.tasks().explain_task(request).await.expect("explain").into_inner()
}

/// Waits until a task says so: the reason, and these words in its sentence.
async fn says(client: &Client, task: &str, reason: PendingReason, words: &[&str]) -> pb::ExplainTaskResponse {
    eventually(&format!("it is explained as {} {words:?}", reason.as_str_name()), || async {
        let why = explained(client, task).await;
        let is_so = why.task.as_ref().is_some_and(|task| task.pending_reason() == reason)
            && words.iter().all(|word| why.summary.contains(word));
        if is_so { Ok(why) } else { Err(format!("{why:#?}")) }
    })
    .await
}

async fn done(client: &Client, task: &str) -> pb::Task {
    eventually("it is done", || async {
        let answer = client.task(task).await;
        match answer.task.clone() {
            Some(task) if task.status() == TaskStatus::Done => Ok(task),
            _ => Err(format!("{answer:#?}")),
        }
    })
    .await
}

async fn runs(client: &Client, task: &str) {
    eventually("it runs", || async {
        let task = client.task(task).await.task.unwrap();
        ensure(task.status() == TaskStatus::Running, || format!("{task:#?}"))
    })
    .await;
}

async fn made(client: &Client, repo: &str, specs: Vec<TaskSpec>) -> (String, Vec<String>) {
    let made = client.create(repo, specs).await;
    let contract = made.contract.unwrap().contract_id;
    (contract, made.tasks.into_iter().map(|task| task.task_id).collect())
}

/// Reasons that lie with the fleet: nobody there, wrong labels, full, draining, short of disk, quiet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reasons_that_lie_with_the_fleet() {
    let mut world = World::new(Database::Sqlite).await;
    world.server_args = TIMES.map(str::to_owned).to_vec();
    world.start_server().await;
    let repo = world.repo("repo").url();
    let client = world.client();
    let go = world.dir.join("go");
    let until_go = format!("until test -e {}; do sleep 0.1; done", go.display());

    let (_, lonely) = made(&client, &repo, vec![at("plain", "lonely", "true")]).await;
    says(&client, &lonely[0], PendingReason::NoDaemon, &["no daemon has ever attached"]).await;
    world.start_daemon_with("plain", on("plain", 2)).await;
    done(&client, &lonely[0]).await;

    // Wrong labels: the nearest daemon first, with what each lacks.
    let mut exotic = at("plain", "exotic", "true");
    exotic.labels.push("gpu".to_owned());
    let (_, exotic) = made(&client, &repo, vec![exotic]).await;
    world.start_daemon_with("bare", DaemonOptions::default()).await;
    let words = ["plain lacks label `gpu`, bare lacks label `gpu`, label `plain`"];
    let why = says(&client, &exotic[0], PendingReason::NoMatchingDaemon, &words).await;
    assert!(why.actions[0].contains("label `gpu`"), "{why:#?}");
    let both = DaemonOptions { labels: vec!["gpu".to_owned(), "plain".to_owned()], ..DaemonOptions::default() };
    world.start_daemon_with("both", both).await;
    done(&client, &exotic[0]).await;

    // All slots taken.
    world.start_daemon_with("tiny", on("tiny", 1)).await;
    let (_, tiny) = made(&client, &repo, vec![at("tiny", "holder", &until_go), at("tiny", "queued", "true")]).await;
    runs(&client, &tiny[0]).await;
    says(&client, &tiny[1], PendingReason::NoFreeSlot, &["tiny (1 of 1)"]).await;

    // Draining.
    world.start_daemon_with("drained", on("drained", 1)).await;
    assert!(world.cli(&["daemon", "drain", "drained"]).await.status.success());
    let (_, drained) = made(&client, &repo, vec![at("drained", "drained", "true")]).await;
    let why =
        says(&client, &drained[0], PendingReason::DaemonsNotAccepting, &["drained takes no new work: draining"]).await;
    assert!(why.actions[0].contains("makima daemon undrain drained"), "{why:#?}");

    // Short of disk.
    let config = format!("[daemon.disk_floor]\nbytes = {}\npercent = 0\n", 1_u64 << 60);
    world.start_daemon_with("full", DaemonOptions { config, ..on("full", 1) }).await;
    let (_, full) = made(&client, &repo, vec![at("full", "full", "true")]).await;
    says(&client, &full[0], PendingReason::DaemonsNotAccepting, &["full takes no new work: ", "disk"]).await;

    // Quiet: since when, and until when that is borne.
    world.start_daemon_with("asleep", on("asleep", 1)).await;
    let (_, asleep) = made(&client, &repo, vec![at("asleep", "asleep", &until_go)]).await;
    runs(&client, &asleep[0]).await;
    world.kill_daemon("asleep");
    let quiet = eventually("it is said that its daemon is quiet", || async {
        let why = explained(&client, &asleep[0]).await;
        let words = ["its daemon asleep has been quiet for", "given up in"];
        if words.iter().all(|word| why.summary.contains(word)) { Ok(why) } else { Err(format!("{why:#?}")) }
    })
    .await;
    assert!(quiet.actions[0].contains("makima task reassign"), "{quiet:#?}");

    // Each reason goes, and nobody touches the tasks.
    fs::write(&go, "").unwrap();
    assert!(world.cli(&["daemon", "undrain", "drained"]).await.status.success());
    world.kill_daemon("full");
    world.start_daemon_with("full", on("full", 1)).await;
    world.restart_daemon("asleep").await;
    for task in [&tiny[0], &tiny[1], &drained[0], &full[0], &asleep[0]] {
        done(&client, task).await;
    }
    assert_eq!(done(&client, &asleep[0]).await.attempt, 1, "it was adopted");
}

/// Reasons that lie with the task and its contract: backoff on an avoided daemon, blocked for ever, places, holds, an attempt
/// that does not end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reasons_that_lie_with_the_work() {
    let mut world = World::start(Database::Sqlite).await;
    let repo = world.repo("repo").url();
    let client = world.client();
    world.start_daemon_with("box", DaemonOptions { slots: 16, ..DaemonOptions::default() }).await;
    let go = world.dir.join("go");
    let until_go = format!("until test -e {}; do sleep 0.1; done", go.display());
    let once = |name: &str, script: &str| {
        let mark = world.dir.join(name);
        format!("if ! test -e {mark}; then touch {mark}; {script}; fi", mark = mark.display())
    };

    // Backoff, on a daemon that is tried last from now on, and is all there is.
    let mut unlucky = shell("unlucky", "true", &[]);
    unlucky.setup_command = once("unlucky", "exit 3");
    let (_, unlucky) = made(&client, &repo, vec![unlucky]).await;
    let why = says(&client, &unlucky[0], PendingReason::Backoff, &["tried again in"]).await;
    assert!(why.task.as_ref().unwrap().not_before.is_some(), "{why:#?}");
    assert!(why.daemons[0].lacks.iter().any(|it| it.starts_with("tried last for another")), "{why:#?}");
    assert!(why.daemons[0].fits, "avoidance is soft: {why:#?}");

    // Blocked for ever, by whom.
    let (_, blocked) = made(&client, &repo, vec![shell("base", &until_go, &[]), shell("top", "true", &["base"])]).await;
    says(&client, &blocked[1], PendingReason::Dependencies, &["waits for base"]).await;
    assert!(world.cli(&["task", "cancel", &blocked[0], "--reason", "not now"]).await.status.success());
    let why = says(&client, &blocked[1], PendingReason::Blocked, &["base (CANCELLED)"]).await;
    assert!(why.actions.iter().any(|it| it.contains("makima task retry")), "{why:#?}");

    // No place in the contract, and who has them.
    let request = pb::CreateContractRequest {
        name: "narrow".to_owned(),
        repository: repo.clone(),
        limits: Some(pb::ContractLimits { concurrency: Some(1), ..Default::default() }),
        tasks: vec![shell("holder", &until_go, &[]), shell("waiter", "true", &[])],
        ..Default::default()
    };
    let narrow = client.contracts().create_contract(request).await.unwrap().into_inner().tasks;
    runs(&client, &narrow[0].task_id).await;
    let words = ["its contract runs 1 attempts and may run 1: holder"];
    says(&client, &narrow[1].task_id, PendingReason::ConcurrencyLimit, &words).await;

    // Held, by whom.
    let admin = world.key_file("admin").display().to_string();
    let create = ["key", "create", "--key-file", &admin, "--kind", "owner", "--owner", "default", "--label", "laptop"];
    let labelled = world.cli_json(&create).await;
    let secret = labelled[0]["secret"].as_str().unwrap().to_owned();
    let laptop = Client::new(&world.url).with_key(&secret);
    let request = pb::CreateContractRequest {
        name: "held".to_owned(),
        repository: repo.clone(),
        hold: true,
        tasks: vec![shell("held", "true", &[])],
        ..Default::default()
    };
    let held = laptop.contracts().create_contract(request).await.unwrap().into_inner();
    let held_task = held.tasks[0].task_id.clone();
    says(&client, &held_task, PendingReason::Held, &["its contract is held by the key `laptop` (key:"]).await;

    // An attempt that does not end: where, since when, and what helps.
    let (_, stubborn) = made(
        &client,
        &repo,
        vec![shell("stubborn", &once("stubborn", "trap '' TERM; while true; do sleep 0.2; done"), &[])],
    )
    .await;
    runs(&client, &stubborn[0]).await;
    eventually("it has begun", || async { ensure(world.dir.join("stubborn").exists(), || "no mark".to_owned()) }).await;
    assert!(world.cli(&["task", "reassign", &stubborn[0]]).await.status.success());
    let words = ["attempt 1 is still being ended on box, for"];
    let why = says(&client, &stubborn[0], PendingReason::PreviousAttempt, &words).await;
    assert!(why.actions[0].contains("makima task force-release"), "{why:#?}");
    let output = world.cli(&["task", "force-release", &stubborn[0], "--reason", "it does not listen"]).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(done(&client, &stubborn[0]).await.attempt, 2);

    // Each reason goes, and nobody touches the tasks that wait.
    fs::write(&go, "").unwrap();
    assert!(world.cli(&["task", "retry", &blocked[0], "--fresh"]).await.status.success());
    assert!(world.cli(&["contract", "release", &held.contract.unwrap().contract_id]).await.status.success());
    for task in [&unlucky[0], &blocked[1], &narrow[0].task_id, &narrow[1].task_id, &held_task] {
        done(&client, task).await;
    }
}

//! Connections that do not do what connections should: nobody reads, nobody answers, everybody leaves at once.

use std::time::{Duration, Instant};

use makima::wire::pb::{self, DaemonStatus, TaskStatus};

use super::stage::{Stage, took};
use crate::harness::{
    client::shell,
    eventually::{ensure, eventually, eventually_within},
    proxy::Line,
};

/// What a stop may take: the drain, and the machine being slow.
const STOP: Duration = Duration::from_secs(40);
/// Output that does not fit into any window on the way.
const MUCH: usize = 24 << 20;

/// A server is stopped while a daemon's line swallows everything, a watcher does not read, and an agent works: it ends, and
/// well, and the work goes on with the next one. Rows 2, 33.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_stops_although_nobody_listens() {
    let mut stage = Stage::new(&[1]).await;
    let dir = stage.world.dir.display().to_string();
    let waits = format!("while [ ! -e {dir}/gate ]; do sleep 0.02; done; echo x > x");
    let (contract, tasks) = stage.contract(Duration::from_secs(3600), vec![shell("t", &waits, &[])]).await;
    stage.until(&tasks[0].task_id, TaskStatus::Running).await;
    let watch = pb::WatchContractRequest { contract_id: contract.contract_id, ..Default::default() };
    let unread = stage.client.contracts().watch_contract(watch).await.unwrap();
    stage.machines[0].wire.set(Line::Mute);
    let begun = Instant::now();
    stage.world.server.signal(rustix::process::Signal::TERM);
    eventually_within(STOP, "the server has ended", || {
        let runs = stage.world.server.is_running();
        async move { ensure(!runs, || "it runs".to_owned()) }
    })
    .await;
    took("a server that nobody listens to has stopped", begun);
    let status = stage.world.server.exit().await;
    assert!(status.success(), "{status}");
    drop(unread);
    stage.machines[0].wire.set(Line::Open);
    stage.world.start_server().await;
    stage.touch("gate");
    let done = stage.until(&tasks[0].task_id, TaskStatus::Done).await;
    assert_eq!(done.attempt, 1);
}

/// A stream that nobody reads holds up nothing else on its connection. Row 34.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_starves_no_other() {
    let stage = Stage::new(&[1]).await;
    let script = format!("head -c {MUCH} /dev/zero | tr '\\0' 'x'");
    let task = stage.task(Duration::ZERO, shell("t", &script, &[])).await;
    stage.until(&task, TaskStatus::Done).await;
    eventually("all output is there", || async {
        let answer = stage.client.task(&task).await;
        let bytes = answer.attempts[0].output_bytes;
        ensure(bytes == i64::try_from(MUCH).unwrap(), || format!("{bytes} bytes"))
    })
    .await;
    let output = pb::StreamTaskOutputRequest { task_id: task.clone(), follow: true, ..Default::default() };
    let mut unread = stage.client.tasks().stream_task_output(output).await.unwrap().into_inner();
    assert!(unread.message().await.unwrap().is_some());
    // The same connection, many times over: more than its windows have room for.
    for _ in 0..50 {
        stage.client.task(&task).await;
    }
    let mut read = 0;
    let whole = stage.client.output(&task, 1).await.unwrap();
    read += whole.len();
    assert_eq!(read, MUCH);
    drop(unread);
}

/// A connection on which one side has gone deaf is left for another, by whichever side notices; nothing is lost of what
/// was on the way in it, messages and output. Rows 5, 28, 35.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_is_left() {
    for line in [Line::Deaf, Line::Mute] {
        let stage = Stage::new(&[1]).await;
        let dir = stage.world.dir.display().to_string();
        let waits = format!("echo begun; while [ ! -e {dir}/gate ]; do sleep 0.02; done; echo x > x; echo said");
        let task = stage.task(Duration::from_secs(3600), shell("t", &waits, &[])).await;
        stage.until(&task, TaskStatus::Running).await;
        // There is a connection for output too, and what is said next goes into it.
        output_is(&stage, &task, "begun\n").await;
        stage.machines[0].wire.set(line);
        eventually("something was lost", || async {
            ensure(stage.machines[0].wire.harmed() > 0, || "nothing yet".to_owned())
        })
        .await;
        // It stays open and swallows; only new connections are good.
        stage.machines[0].wire.set(Line::Open);
        let begun = Instant::now();
        stage.touch("gate");
        let done = stage.until(&task, TaskStatus::Done).await;
        took(&format!("{line:?}: the result has arrived"), begun);
        assert_eq!(done.attempt, 1);
        stage.daemon(0, "back", |daemon| daemon.session_epoch > 1).await;
        output_is(&stage, &task, "begun\nsaid\n").await;
    }
}

async fn output_is(stage: &Stage, task: &str, text: &str) {
    eventually("all output is there", || async {
        let output = stage.client.output(task, 1).await.map_err(|status| status.to_string())?;
        ensure(output == text.as_bytes(), || String::from_utf8_lossy(&output).into_owned())
    })
    .await;
}

/// Everybody is cut off at once, again and again: each comes back with its first try, and none starts anew. Rows 24, 25, 29.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_is_cut_off_at_once_comes_back() {
    const MACHINES: usize = 5;
    let mut stage = Stage::new(&[1; MACHINES]).await;
    for round in 1..=3 {
        for at in 0..MACHINES {
            // A session that has lasted: then the first try comes at once.
            let attached =
                |daemon: &pb::Daemon| daemon.status() == DaemonStatus::Attached && daemon.session_epoch >= round;
            stage.daemon(at, "attached", attached).await;
        }
        let work = stage.contract(Duration::ZERO, vec![shell("t", "sleep 1.5; echo x > x", &[])]).await.1;
        stage.until(&work[0].task_id, TaskStatus::Done).await;
        let cut: usize = stage.machines.iter().map(|machine| machine.wire.cut()).sum();
        assert!(cut >= MACHINES, "{cut}");
        for at in 0..MACHINES {
            stage.daemon(at, "back", |daemon| daemon.session_epoch > round).await;
        }
    }
    for at in 0..MACHINES {
        let name = stage.machines[at].name.clone();
        let log = stage.world.daemon(&name).output();
        assert!(stage.world.daemon(&name).is_running());
        assert_eq!(log.matches("==== ").count(), 1, "started once");
        assert!(!log.contains("cannot attach"), "{log}");
    }
}

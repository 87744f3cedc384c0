//! What agents write: any bytes, as many as they like, in lines or not.

use std::{
    fs,
    time::{Duration, Instant},
};

use makima::wire::pb::{FailureClass, TaskStatus};

use super::{until, work_goes_on};
use crate::harness::{
    Database, World,
    client::shell,
    eventually::{ensure, eventually, eventually_within},
};

/// What the test writes without a line end. By hand, with `MAKIMA_TEST_OUTPUT_MIB=1024`, it is the whole gibibyte.
const OUTPUT_MIB: u64 = 256;
/// What a process of ours may grow to, a debug build with all its threads included: far below what is written.
const MAX_RESIDENT_MIB: u64 = 160;

/// Bytes that are no text reach whoever reads the output as they are, and what is said of them is text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_is_no_text() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let client = world.client();
    let script = "printf 'caf\\351 nul:\\000 end\\n'";
    let tasks = vec![shell("good", script, &[]), shell("bad", &format!("{script}; exit 3"), &[])];
    let created = client.create(&repo.url(), tasks).await;
    let [good, bad] = [&created.tasks[0].task_id, &created.tasks[1].task_id];
    until(&client, good, TaskStatus::Done).await;
    let failed = until(&client, bad, TaskStatus::Failed).await;
    assert_eq!(failed.failure_class(), FailureClass::AgentError);
    assert_eq!(
        failed.error_message,
        "the agent ended with exit code 3; its output ends with:\ncaf\u{fffd} nul:\u{fffd} end"
    );
    for task in [good, bad] {
        eventually("the output is there as it was written", || async {
            let output = client.output(task, 1).await.map_err(|status| status.to_string())?;
            ensure(output == b"caf\xe9 nul:\0 end\n", || format!("{:?}", output.escape_ascii().to_string()))
        })
        .await;
        // To a pipe as it is.
        let output = world.cli(&["task", "logs", task]).await;
        assert_eq!(output.stdout.escape_ascii().to_string(), b"caf\xe9 nul:\0 end\n".escape_ascii().to_string());
    }
    work_goes_on(&world, &repo).await;
}

/// A great deal of output without one line end: the task is done, all of it is kept, and neither daemon nor server nor shim
/// holds more of it than a bounded piece.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_without_a_line_end() {
    let mib: u64 = std::env::var("MAKIMA_TEST_OUTPUT_MIB").map_or(OUTPUT_MIB, |text| text.parse().unwrap());
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let client = world.client();
    let start = Instant::now();
    let script = format!("head -c {mib}M /dev/zero | tr '\\0' x");
    let created = client.create(&repo.url(), vec![shell("long", &script, &[])]).await;
    let task = created.tasks[0].task_id.clone();
    eventually_within(Duration::from_secs(300), "it is done", || async {
        let task = client.task(&task).await.task.unwrap();
        ensure(task.status() == TaskStatus::Done, || format!("{task:?}"))
    })
    .await;
    let done = start.elapsed();
    // As a watcher would: in pieces.
    let bytes = mib << 20;
    eventually_within(Duration::from_secs(300), "all of it is kept", || async {
        let request = makima::wire::pb::StreamTaskOutputRequest {
            task_id: task.clone(),
            attempt: 1,
            offset: bytes as i64 - 1,
            follow: false,
        };
        let stream = client.tasks().stream_task_output(request).await;
        let mut stream = stream.map_err(|status| status.to_string())?.into_inner();
        let piece = stream.message().await.map_err(|status| status.to_string())?;
        let data = piece.map(|piece| piece.data).unwrap_or_default();
        ensure(data[..] == *b"x", || format!("{} bytes at the end", data.len()))
    })
    .await;
    let kept = start.elapsed();
    let daemon = world.daemon("d").pid();
    let peaks = [("server", peak_mib(world.server.pid())), ("daemon", peak_mib(daemon))];
    eprintln!("{mib} MiB: done after {done:?}, kept after {kept:?}, resident at most, in MiB: {peaks:?}");
    assert!(peaks.iter().all(|(_, peak)| *peak < MAX_RESIDENT_MIB), "{peaks:?}");
    work_goes_on(&world, &repo).await;
}

/// The most memory that a process has had at once.
fn peak_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

//! An agent that writes faster than anybody can read, and many who read what one writes.
//!
//! ```text
//!   writer ──100 MB/s──> file ──daemon──> server ──> blobs on the disk     until the server says that it has the last byte
//!                                           ^
//!   meanwhile: create ──> order durable in another daemon's journal;  cancel ──> ENDED, on the daemon that brings it
//!
//!   writer ──1 MB/s──> ... ──> 100 watchers, each of which must get every byte: how old is a line when it arrives
//! ```

use std::{
    io::Write as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use makima::wire::pb::{
    Attempt, AttemptStatus, CancelTaskRequest, ContractLimits, CreateContractRequest, GetTaskResponse,
    StreamTaskOutputRequest, Task, TaskSpec, TaskStatus,
};
use tokio::task::JoinSet;

use crate::{
    bed::{self, Bed},
    figures::{Figures, Goal, percentile},
    harness::{Client, Database, client::shell, eventually, world::DaemonOptions},
    hollow,
    options::Options,
    starts,
};

/// Bytes a second of the one that floods, and of the one that is watched.
const FLOOD: usize = 100_000_000;
const WATCHED: usize = 1_000_000;
/// Who watches.
const WATCHERS: usize = 100;
/// Tasks that wait to be cancelled, half of them before anything is written.
const CANCELLED: usize = 40;
/// Writes of a second.
const WRITES: usize = 100;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// Nothing here takes longer; what does has hung.
const PATIENCE: Duration = Duration::from_secs(120);
/// The daemon with real agents.
const DAEMON: &str = "writer";

/// One round on one database.
pub async fn measure(options: &Options, database: Database, figures: &mut Figures) {
    let mut bed = Bed::with_daemons(database, true).await;
    let slots = u32::try_from(CANCELLED + 2).expect("few");
    bed.world.start_daemon_with(DAEMON, DaemonOptions { slots, ..DaemonOptions::default() }).await;
    let writer = bed.world.daemon(DAEMON).pid();
    let repo = bed.world.repo("output").url();
    flooded(options, &bed, writer, &repo, figures).await;
    watched(options, &bed, &repo, figures).await;
}

async fn flooded(options: &Options, bed: &Bed, daemon: u32, repo: &str, figures: &mut Figures) {
    let (client, database) = (bed.world.client(), Some(bed.database));
    let waiting =
        tasks(&client, repo, (0..CANCELLED).map(|n| shell(&format!("wait-{n}"), "exec sleep 1000", &[]))).await;
    for task in &waiting {
        until(&client, task, TaskStatus::Running).await;
    }
    let (calm, busy) = waiting.split_at(CANCELLED / 2);
    let (contract, _) = bed::contract(&client, Vec::new(), false).await;
    let probes = options.size(200, 40);
    let quiet = starts::probe(bed, &client, &contract, "quiet", probes).await;
    figures.add("create to durable start, no output, p99", database, "ms", percentile(&quiet, 0.99), Goal::default());
    let cancels = cancel_all(&client, calm).await;
    figures.add("cancel to ENDED, no output, p50", database, "ms", percentile(&cancels, 0.5), Goal::default());

    let seconds = options.size(20, 8);
    let spent = || {
        let mut spent = bed.spent();
        spent.add("writer's daemon", daemon);
        spent
    };
    let before = spent();
    let task = writer(&client, repo, FLOOD, seconds).await;
    until(&client, &task, TaskStatus::Running).await;
    let begun = Instant::now();
    let meanwhile = async {
        // As many as fit into half of the time, at about 20 ms each and what one takes.
        let during = starts::probe(bed, &client, &contract, "during", seconds * 20).await;
        let cancels = cancel_all(&client, busy).await;
        assert_eq!(
            client.task(&task).await.task.expect("a task").status(),
            TaskStatus::Running,
            "output was over first"
        );
        (during, cancels)
    };
    let arrival = async {
        until(&client, &task, TaskStatus::Done).await;
        let all = i64::try_from(FLOOD * seconds).expect("a length");
        has_bytes(&client, &task, all).await;
        begun.elapsed()
    };
    let ((during, cancels), took) = tokio::join!(meanwhile, arrival);
    figures.note(format!("output at full speed: cores {}", spent().since(&before, took)));
    #[expect(clippy::cast_precision_loss, reason = "some gigabytes")]
    let rate = (FLOOD * seconds) as f64 / 1e6 / took.as_secs_f64();
    figures.add("output of one agent, all on the server's disk", database, "MB/s", rate, Goal::least(95.0));
    figures.add("create to durable start, in output, p50", database, "ms", percentile(&during, 0.5), Goal::default());
    figures.add("create to durable start, in output, p99", database, "ms", percentile(&during, 0.99), Goal::most(20.0));
    figures.add("cancel to ENDED, in output, p50", database, "ms", percentile(&cancels, 0.5), Goal::default());
}

async fn watched(options: &Options, bed: &Bed, repo: &str, figures: &mut Figures) {
    let (client, database) = (bed.world.client(), Some(bed.database));
    let seconds = options.size(10, 3);
    let task = writer(&client, repo, WATCHED, seconds).await;
    let watchers: JoinSet<_> = (0..WATCHERS).map(|_| watch(client.clone(), task.clone(), WATCHED * seconds)).collect();
    let ages: Vec<f64> = watchers.join_all().await.concat();
    figures.add("100 watchers, age of a line, p50", database, "ms", percentile(&ages, 0.5), Goal::default());
    figures.add("100 watchers, age of a line, p99", database, "ms", percentile(&ages, 0.99), Goal::default());
}

/// Follows to the end; answers how old each line that tells its time was. Every byte must come, once and in order.
async fn watch(client: Client, task: String, wanted: usize) -> Vec<f64> {
    let request = StreamTaskOutputRequest { task_id: task.clone(), follow: true, ..StreamTaskOutputRequest::default() };
    let mut stream = client.tasks().stream_task_output(request).await.expect("watch").into_inner();
    let (mut ages, mut next, mut line) = (Vec::new(), 0, Vec::new());
    while let Some(piece) = stream.message().await.expect("a piece") {
        let now = hollow::now();
        assert_eq!((piece.offset, piece.gap), (next, false), "bytes are missing");
        next += i64::try_from(piece.data.len()).expect("a length");
        for byte in piece.data {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            if let Some(at) = text.strip_prefix("at ").and_then(|at| at.trim().parse().ok()) {
                ages.push(starts::millis(at, now));
            }
            line.clear();
        }
    }
    assert_eq!(usize::try_from(next), Ok(wanted), "bytes of {task}");
    ages
}

/// Starts a task whose agent writes so much.
async fn writer(client: &Client, repo: &str, rate: usize, seconds: usize) -> String {
    let program = std::env::current_exe().expect("the way to this program");
    let script = format!("exec '{}' writer {rate} {seconds}", program.display());
    tasks(client, repo, [shell("writer", &script, &[])]).await.remove(0)
}

/// Makes the tasks of a contract without a last checkpoint.
async fn tasks(client: &Client, repo: &str, tasks: impl IntoIterator<Item = TaskSpec>) -> Vec<String> {
    let limits =
        ContractLimits { concurrency: Some(1_000), final_checkpoint: Some(false), ..ContractLimits::default() };
    let request = CreateContractRequest {
        name: "output".to_owned(),
        repository: repo.to_owned(),
        limits: Some(limits),
        tasks: tasks.into_iter().collect(),
        ..CreateContractRequest::default()
    };
    let made = client.contracts().create_contract(request).await.expect("create a contract").into_inner();
    made.tasks.into_iter().map(|task| task.task_id).collect()
}

/// Cancels one after the other; answers how long each took to be gone, in milliseconds.
async fn cancel_all(client: &Client, tasks: &[String]) -> Vec<f64> {
    let mut took = Vec::with_capacity(tasks.len());
    for task in tasks {
        let asked = Instant::now();
        let request = CancelTaskRequest { task_id: task.clone(), ..CancelTaskRequest::default() };
        client.tasks().cancel_task(request).await.expect("cancel a task");
        until_ended(client, task).await;
        took.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    took
}

async fn until(client: &Client, task: &str, wanted: TaskStatus) {
    until_so(client, task, &format!("{wanted:?}"), |found| found.task.as_ref().map(Task::status) == Some(wanted)).await;
}

/// Waits until nothing is left of a task's attempt, as its daemon has said.
async fn until_ended(client: &Client, task: &str) {
    let ended = |found: &GetTaskResponse| found.attempts.last().map(Attempt::status) == Some(AttemptStatus::Ended);
    until_so(client, task, "ended", ended).await;
}

async fn until_so(client: &Client, task: &str, what: &str, is_so: impl Fn(&GetTaskResponse) -> bool) {
    let looking = async {
        while !is_so(&client.task(task).await) {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(PATIENCE, looking).await.is_err() {
        panic!("{task} is not {what}: {:?}", client.task(task).await);
    }
}

/// Waits until the server has so many bytes of a task's output, and no more.
async fn has_bytes(client: &Client, task: &str, wanted: i64) {
    eventually("the server has all output", || async {
        let attempts = client.task(task).await.attempts;
        let held = attempts.last().map_or(0, |attempt| attempt.output_bytes);
        if held == wanted { Ok(()) } else { Err(format!("{held} of {wanted}")) }
    })
    .await;
}

/// `writer BYTES_PER_SECOND SECONDS`: an agent. Each write begins with a line that tells when it was made, on the clock that
/// all processes of a machine share.
pub fn main(arguments: &[String]) -> ExitCode {
    let numbers: Vec<usize> = arguments.iter().filter_map(|text| text.parse().ok()).collect();
    let [rate, seconds] = numbers[..] else {
        eprintln!("arguments of a writer: {arguments:?}");
        return ExitCode::FAILURE;
    };
    let mut piece: Vec<u8> = b"what an agent says while it works, and that nobody will read again\n".to_vec();
    piece = piece.into_iter().cycle().take(rate / WRITES).collect();
    let begun = Instant::now();
    for n in 0..WRITES * seconds {
        let due = Duration::from_millis((n * 1_000 / WRITES) as u64);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        let line = format!("at {:>30}\n", hollow::now());
        piece[..line.len()].copy_from_slice(line.as_bytes());
        let end = piece.len() - 1;
        piece[end] = b'\n';
        if let Err(error) = std::io::stdout().lock().write_all(&piece) {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

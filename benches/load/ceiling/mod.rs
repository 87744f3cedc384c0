//! The least that a control plane of this design can do: what the wire and the disk allow together on this machine, at this
//! moment. It decides nothing, knows no retries, leases, keys or reasons; but everything that our promises need is on its
//! way to the disk before it is said, and rows are of the size that ours have.
//!
//! ```text
//!   Create ──> store: task, event ──commit──> Created
//!                │    attempt, order (same commit where an agent has room)
//!                v
//!              agent: order in its journal ──commit──> accepted ──> store: attempt; the order goes
//!                     end in its journal ───commit──> complete ──> store: task, attempt, event ──commit──> its answer
//! ```
//!
//! Both sides have one thread that takes whatever has come since its last commit and commits it together. Server and agents
//! are processes of their own, as ours are, and the calls come from the same process as for ours.

mod agent;
mod server;
mod store;
mod wire;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

pub use store::in_batches;

use crate::{
    harness::{
        Database, postgres,
        process::{self, Program},
    },
    hollow, starts,
};
use wire::Job;

/// Two agents, as in what they are compared with.
const AGENTS: usize = 2;
/// Tasks an agent has at once.
const CREDIT: u64 = 256;
/// Before the clock starts.
const WARM_UP: usize = 500;
/// The spec and the rest of a task's row, of the length that ours have.
const SPEC_BYTES: usize = 640;
const DOC_BYTES: usize = 420;
/// An attempt's row.
const ATTEMPT_BYTES: usize = 560;
/// An order, with everything that a daemon needs.
const ORDER_BYTES: usize = 1_100;
/// A row of the event log.
const EVENT_BYTES: usize = 260;

/// `ceiling server PORT DATABASE` and `ceiling agent PORT FILE [tell]`, until they are killed.
pub fn main(arguments: &[String]) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    match arguments {
        [server, port, database] if server == "server" => runtime.block_on(server::run(port, database)),
        [agent, port, file, rest @ ..] if agent == "agent" => {
            runtime.block_on(agent::run(port, file, rest.iter().any(|word| word == "tell")));
        }
        _ => panic!("arguments of the bare model: {arguments:?}"),
    }
    ExitCode::SUCCESS
}

/// Lifecycles a second with so many calls in flight.
pub async fn lifecycles(database: Database, tasks: usize, in_flight: usize) -> f64 {
    let bare = Bare::start(database, false).await;
    bare.run(WARM_UP, in_flight, WARM_UP).await;
    let took = bare.run(tasks, in_flight, WARM_UP + tasks).await;
    crate::lifecycles::per_second(tasks, took)
}

/// One call now and then, after `before` of them with so many in flight: how long each took to the moment at which its order was
/// durable with an agent, in milliseconds.
pub async fn starts(database: Database, calls: usize, before: usize, in_flight: usize) -> Vec<f64> {
    let bare = Bare::start(database, true).await;
    bare.run(before, in_flight, before).await;
    let channel = bare.channel.clone();
    let create = move |_| {
        let channel = channel.clone();
        async move { wire::create(&channel, Job { id: 0, text: "x".repeat(SPEC_BYTES) }).await.to_string() }
    };
    starts::spans(calls, create, || hollow::began(&bare.agents)).await
}

/// Messages a second through one stream and back, so many on the way.
pub async fn echoes(messages: u64, on_the_way: u64) -> f64 {
    let bare = Bare::start(Database::Sqlite, false).await;
    let begun = Instant::now();
    wire::echo(&bare.channel, messages, on_the_way).await;
    crate::lifecycles::per_second(usize::try_from(messages).unwrap_or(usize::MAX), begun.elapsed())
}

/// The model, running.
struct Bare {
    channel: tonic::transport::Channel,
    agents: Vec<Program>,
    _server: Program,
    _folder: tempfile::TempDir,
}

impl Bare {
    async fn start(database: Database, tells: bool) -> Self {
        let folder = tempfile::Builder::new().prefix("bare").tempdir_in(process::base()).expect("make a temp dir");
        let port = process::free_port().to_string();
        let url = match database {
            Database::Sqlite => folder.path().join("server.sqlite").display().to_string(),
            Database::Postgres => postgres::database().await,
        };
        let start = |name: &str, arguments: &[&str]| {
            let program = std::env::current_exe().expect("the way to this program");
            let mut command = process::command(program.to_str().expect("a plain path"), folder.path());
            command.arg("ceiling").args(arguments);
            let mut program = Program::new(name, folder.path());
            program.start(command);
            program
        };
        let server = start("server", &["server", &port, &url]);
        let channel = wire::connect(&port).await;
        let agent = |n: usize| {
            let journal = folder.path().join(format!("agent-{n}.sqlite"));
            let arguments = ["agent", &port, journal.to_str().expect("a plain path"), "tell"];
            start(&format!("agent-{n}"), &arguments[..if tells { 4 } else { 3 }])
        };
        let agents = (0..AGENTS).map(agent).collect();
        Self { channel, agents, _server: server, _folder: folder }
    }

    /// Makes tasks and waits until so many are done in all.
    async fn run(&self, tasks: usize, in_flight: usize, done: usize) -> Duration {
        let begun = Instant::now();
        let made = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for _ in 0..in_flight {
            let (channel, made) = (self.channel.clone(), Arc::clone(&made));
            callers.spawn(async move {
                while made.fetch_add(1, Ordering::Relaxed) < tasks {
                    wire::create(&channel, Job { id: 0, text: "x".repeat(SPEC_BYTES) }).await;
                }
            });
        }
        while let Some(ended) = callers.join_next().await {
            ended.expect("a caller does not panic");
        }
        let done = u64::try_from(done).unwrap_or(u64::MAX);
        while wire::done(&self.channel).await < done {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        begun.elapsed()
    }
}

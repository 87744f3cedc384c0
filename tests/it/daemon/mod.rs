//! A whole daemon against a server made for the test: real sockets, real repositories, real shims and agents. "Killed" here
//! is the end of everything the daemon has in this process, at whatever it was doing; what a real `kill -9` leaves is the
//! same, and is tested with real processes elsewhere.

mod attempts;
mod fake;
mod keeping;
mod output;
mod repeats;
mod restarts;
mod sessions;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use makima::{
    daemon::{
        self, Config,
        config::{DiskFloor, Key, Server, Times},
    },
    domain::{
        AttemptId, AttemptRef, ContractId, TaskId,
        attempt::FailureClass,
        order::{Order, Spawn},
        report::{Complete, Report},
    },
    runtime::lifecycle::Shutdown,
};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::harness::{
    Repo,
    eventually::{ensure, eventually},
    process::{self, processes_of},
};
use fake::{Event, Fake};

/// A machine with a repository and room for a daemon, and a server.
struct Bench {
    place: tempfile::TempDir,
    repo: Repo,
    fake: Fake,
}

/// A daemon that runs.
struct Running {
    shutdown: Shutdown,
    run: JoinHandle<Result<(), daemon::Error>>,
}

impl Bench {
    async fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let repo = Repo::new(place.path().join("repo"));
        Self { repo, fake: Fake::start().await, place }
    }

    fn state(&self) -> PathBuf {
        self.place.path().join("state")
    }

    fn config(&self) -> Config {
        let key = Key::parse("mk_daemon_test").unwrap();
        Config {
            name: "here".to_owned(),
            executable: Some(process::makima().into()),
            disk_floor: DiskFloor { bytes: 0, percent: 0 },
            times: Times {
                reconnect_first: Duration::from_millis(20),
                reconnect_limit: Duration::from_millis(200),
                unauthenticated: Duration::from_millis(100),
                progress: Duration::from_millis(50),
                output: Duration::from_millis(10),
                ..Times::default()
            },
            ..Config::new(Server::parse(&self.fake.address).unwrap(), key, self.state())
        }
    }

    fn start(&self) -> Running {
        Running::start(self.config())
    }

    /// Waits until the daemon may be given work.
    async fn ready(&self, sessions: usize) {
        eventually("the daemon is ready", || async {
            let events = self.fake.state().events.clone();
            let hellos = events.iter().filter(|e| matches!(e, Event::Hello(_))).count();
            let heard = matches!(
                events.iter().rfind(|e| matches!(e, Event::Hello(_) | Event::Heartbeat(_))),
                Some(Event::Heartbeat(_))
            );
            ensure(hellos >= sessions && heard, || format!("{hellos} sessions, ready: {heard}"))
        })
        .await;
    }

    fn order(&self, plan: &str) -> Spawn {
        Spawn {
            contract: ContractId(Uuid::now_v7()),
            contract_name: "goal".to_owned(),
            name: "a task".to_owned(),
            plan: plan.to_owned(),
            agent: "shell".to_owned(),
            model: None,
            repository: self.repo.url(),
            base_branch: "main".to_owned(),
            branch: format!("makima/{}/1", Uuid::new_v4().simple()),
            result_ref: format!("refs/makima/results/{}", Uuid::new_v4()),
            dependencies: Vec::new(),
            setup_command: String::new(),
            setup_timeout: Duration::from_secs(60),
            copy_files: Vec::new(),
            wall_time: None,
            grace: Duration::from_secs(2),
            parent: None,
            depth: 0,
            task_key: "mk_task_0123456789abcdef".to_owned(),
            contract_tasks: Vec::new(),
            checkpoint_every: Duration::ZERO,
            final_checkpoint: false,
            resume: None,
        }
    }

    async fn spawn(&self, order: Spawn) -> AttemptRef {
        let attempt = an_attempt();
        self.fake.command(attempt, Order::Spawn(Box::new(order))).await;
        attempt
    }

    async fn says(&self, attempt: AttemptRef, what: &str, find: impl Fn(&Report) -> bool) -> Report {
        eventually(what, || async {
            let reports = self.fake.reports_of(attempt);
            reports.iter().find(|report| find(report)).cloned().ok_or_else(|| format!("{reports:?}"))
        })
        .await
    }

    async fn started(&self, attempt: AttemptRef) {
        self.says(attempt, "the agent starts", |r| matches!(r, Report::Started { .. })).await;
    }

    async fn complete(&self, attempt: AttemptRef) -> Complete {
        match self.says(attempt, "the attempt ends", |r| matches!(r, Report::Complete(_))).await {
            Report::Complete(complete) => complete,
            other => panic!("{other:?}"),
        }
    }

    async fn file(&self, name: &str) -> String {
        let path = self.place.path().join(name);
        eventually(&format!("{name} is written"), || async {
            fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n')).ok_or_else(|| "nothing yet".to_owned())
        })
        .await
    }

    fn path(&self, name: &str) -> String {
        self.place.path().join(name).display().to_string()
    }

    /// The server has every result, and the daemon has let go of it.
    async fn results_are_delivered(&self) {
        eventually("results are delivered", || async {
            let attempts = fs::read_dir(self.state().join("attempts")).unwrap();
            let left = attempts.filter(|dir| dir.as_ref().unwrap().path().join("result.pack").exists()).count();
            ensure(left == 0, || format!("{left} are not"))
        })
        .await;
    }

    async fn output_is(&self, attempt: AttemptRef, text: &str) {
        eventually("all output is there", || async {
            let complete = self.fake.has_all_output_of(attempt);
            let output = self.fake.output_of(attempt);
            ensure(complete && output == text, || format!("complete: {complete}, {output:?}"))
        })
        .await;
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let left = process::sweep(self.place.path());
        if !std::thread::panicking() {
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

impl Running {
    #[expect(clippy::disallowed_methods, reason = "the test owns the daemon")]
    fn start(config: Config) -> Self {
        makima::runtime::telemetry::start("makima=debug");
        let shutdown = Shutdown::new();
        let run = tokio::spawn(Box::pin(daemon::run(config, shutdown.clone())));
        Self { shutdown, run }
    }

    /// Asks it to stop, and waits.
    async fn stop(self) {
        self.shutdown.soft.cancel();
        self.run.await.unwrap().unwrap();
        assert!(self.shutdown.finish().await);
    }

    /// Ends it at whatever it does.
    async fn kill(self) {
        self.run.abort();
        let _ = self.run.await;
        self.shutdown.hard.cancel();
        self.shutdown.finish().await;
    }

    async fn ends(self) -> daemon::Error {
        let error = self.run.await.unwrap().unwrap_err();
        self.shutdown.finish().await;
        error
    }
}

fn an_attempt() -> AttemptRef {
    AttemptRef { task: TaskId(Uuid::now_v7()), number: 1, id: AttemptId(Uuid::new_v4()) }
}

fn class(complete: &Complete) -> Option<FailureClass> {
    complete.outcome.as_ref().err().map(|failure| failure.class)
}

/// The agents of this place; shims do not count.
fn agents(place: &Path) -> usize {
    processes_of(place).iter().filter(|found| !found.is_shim()).count()
}

async fn nothing_runs(place: &Path) {
    eventually("nothing runs", || async {
        let left = processes_of(place);
        ensure(left.is_empty(), || format!("{left:?}"))
    })
    .await;
}

fn kill_shims(place: &Path) {
    let shims: Vec<_> = processes_of(place).into_iter().filter(process::Found::is_shim).collect();
    assert!(!shims.is_empty());
    shims.iter().for_each(process::Found::kill);
}

//! A whole daemon against a server made for the test: real sockets, real repositories, real shims and agents. "Killed" here
//! is the end of everything the daemon has in this process, at whatever it was doing; what a real `kill -9` leaves is the
//! same, and is tested with real processes elsewhere.

mod fake;

use std::{
    collections::BTreeMap,
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
        order::{Answer, Order, Spawn},
        reconcile::Verdict,
        report::{Complete, InventoryState, Report},
    },
    runtime::lifecycle::Shutdown,
    wire::pb,
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

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_from_its_command_to_its_result() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let hello = bench.fake.hellos().remove(0);
    assert_eq!((hello.card.name.as_str(), hello.card.slots, hello.card.any_path), ("here", 4, true));
    assert!(hello.card.profiles.iter().any(|p| p.name == "shell"), "{:?}", hello.card.profiles);

    let mut order = bench.order("echo made > made.txt; echo hello $MAKIMA_TASK_KEY; echo mk_task_0123456789abcdef");
    order.setup_command = "echo preparing".to_owned();
    let result_ref = order.result_ref.clone();
    let attempt = an_attempt();
    let command = bench.fake.command(attempt, Order::Spawn(Box::new(order))).await;
    let complete = bench.complete(attempt).await;
    assert_eq!(bench.fake.answer_to(&command), Some(Answer::Persisted));
    let result = complete.outcome.clone().unwrap();
    assert_eq!(
        (complete.exit_code, result.result_ref.as_str(), result.published),
        (Some(0), result_ref.as_str(), true)
    );
    assert_eq!(bench.repo.file(&result_ref, "made.txt").as_deref(), Some("made\n"));
    assert_eq!(bench.repo.git(&["rev-parse", &result_ref]), result.commit);

    let masked = "*".repeat("mk_task_0123456789abcdef".len());
    eventually("all output is there", || async {
        ensure(bench.fake.has_all_output_of(attempt), || bench.fake.output_of(attempt))
    })
    .await;
    let output = bench.fake.output_of(attempt);
    assert!(output.starts_with("preparing\n") && output.ends_with(&format!("{masked}\n")), "{output}");
    assert!(!output.contains("mk_task"), "{output}");
    assert_eq!(complete.output_bytes, i64::try_from(output.len()).unwrap());

    let sequences: Vec<i64> = bench.fake.messages().iter().map(|m| m.sequence).collect();
    assert_eq!(sequences, (1..=i64::try_from(sequences.len()).unwrap()).collect::<Vec<_>>());
    nothing_runs(&bench.state()).await;
    daemon.stop().await;

    // It is over: the next session does not speak of it, and the same command again starts nothing.
    let daemon = bench.start();
    bench.ready(2).await;
    let hello = bench.fake.hellos().remove(1);
    assert_eq!((hello.inventory, hello.last_command, hello.unanswered), (Vec::new(), 1, (0, 0)));
    let before = bench.fake.messages().len();
    bench.fake.resend(&command).await;
    let other = bench.spawn(bench.order("true")).await;
    bench.complete(other).await;
    assert!(bench.fake.messages()[before..].iter().all(|m| m.attempt == other));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_is_sent_in_order_before_the_first_heartbeat() {
    let mut bench = Bench::new().await;
    bench.fake.state().answers = false;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("true")).await;
    bench.complete(attempt).await;
    let first: Vec<i64> = bench.fake.messages().iter().map(|m| m.sequence).collect();

    bench.fake.cut();
    bench.fake.state().events.clear();
    bench.fake.state().answers = true;
    bench.fake.serve();
    bench.ready(1).await;
    let events = bench.fake.state().events.clone();
    let Event::Hello(hello) = &events[0] else { panic!("{events:?}") };
    assert_eq!(hello.unanswered, (1, *first.last().unwrap()));
    assert_eq!(hello.inventory[0].state, InventoryState::Reported);
    let again: Vec<i64> = events[1..]
        .iter()
        .take_while(|e| !matches!(e, Event::Heartbeat(_)))
        .map(|e| if let Event::Message(m) = e { m.sequence } else { panic!("{events:?}") })
        .collect();
    assert_eq!(again, first);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_bounds_what_is_on_the_way() {
    let bench = Bench::new().await;
    bench.fake.state().answers = false;
    let daemon = bench.start();
    bench.ready(1).await;
    // Cancelled before they were ever here: each is answered with an end of its own.
    for _ in 0..200 {
        let cancel = Order::Cancel { reason: "enough".to_owned(), grace: Duration::from_secs(1) };
        bench.fake.command(an_attempt(), cancel).await;
    }
    eventually("a window of messages", || async {
        let seen = bench.fake.messages().len();
        ensure(seen == 128, || format!("{seen} messages"))
    })
    .await;
    let journal = bench.fake.messages()[0].journal;
    bench.fake.state().answers = true;
    for message in bench.fake.messages() {
        bench.fake.send(fake::answer_to(message.sequence, journal)).await;
    }
    eventually("all messages", || async {
        let sequences: Vec<i64> = bench.fake.messages().iter().map(|m| m.sequence).collect();
        ensure(sequences == (1..=200).collect::<Vec<_>>(), || format!("{} messages", sequences.len()))
    })
    .await;
    assert!(
        bench
            .fake
            .messages()
            .iter()
            .all(|m| matches!(&m.report, Report::Complete(c) if class(c) == Some(FailureClass::Cancelled)))
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_agent_ends_with_all_it_started() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("setsid sleep 1000 & sleep 1000")).await;
    bench.started(attempt).await;
    let cancel = Order::Cancel { reason: "changed my mind".to_owned(), grace: Duration::from_millis(200) };
    bench.fake.command(attempt, cancel).await;
    let complete = bench.complete(attempt).await;
    assert_eq!(agents(&bench.state()), 0, "from the word that it has ended, nothing is alive");
    assert_eq!(class(&complete), Some(FailureClass::Cancelled));
    assert!(complete.outcome.unwrap_err().message.contains("changed my mind"));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_cancel_heals_with_a_heartbeat() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("sleep 1000")).await;
    bench.started(attempt).await;
    eventually("the attempt is in a heartbeat", || async {
        let last = bench.fake.heartbeats().pop().unwrap();
        ensure(last.live == [attempt] && last.free_slots == 3, || format!("{last:?}"))
    })
    .await;
    bench.fake.state().cancel = vec![attempt];
    assert_eq!(class(&bench.complete(attempt).await), Some(FailureClass::Cancelled));
    bench.fake.state().cancel = Vec::new();
    eventually("the slot is free", || async {
        let last = bench.fake.heartbeats().pop().unwrap();
        ensure(last.live.is_empty() && last.free_slots == 4, || format!("{last:?}"))
    })
    .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_waits_for_a_slot_and_is_cancelled_while_it_waits() {
    let bench = Bench::new().await;
    let daemon = Running::start(Config { slots: 1, ..bench.config() });
    bench.ready(1).await;
    let gate = bench.path("gate");
    let first = bench.spawn(bench.order(&format!("while [ ! -e {gate} ]; do sleep 0.02; done"))).await;
    bench.started(first).await;
    let second = bench.spawn(bench.order("true")).await;
    let third = bench.spawn(bench.order("true")).await;
    let cancel = Order::Cancel { reason: "not needed".to_owned(), grace: Duration::from_secs(1) };
    bench.fake.command(second, cancel).await;
    assert_eq!(class(&bench.complete(second).await), Some(FailureClass::Cancelled));
    assert!(bench.fake.reports_of(third).is_empty());
    fs::write(&gate, "").unwrap();
    assert!(bench.complete(first).await.outcome.is_ok());
    assert!(bench.complete(third).await.outcome.is_ok());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_comes_back_and_takes_over_its_agent() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let gate = bench.path("gate");
    let plan = format!(
        "for i in 1 2 3; do echo line $i; done; while [ ! -e {gate} ]; do sleep 0.02; done; echo end; echo x > x"
    );
    let attempt = bench.spawn(bench.order(&plan)).await;
    eventually("some output", || async {
        let output = bench.fake.output_of(attempt);
        ensure(output.ends_with("line 3\n"), || output.clone())
    })
    .await;
    daemon.kill().await;
    assert!(agents(&bench.state()) > 0, "the agent lives on");

    let daemon = bench.start();
    bench.ready(2).await;
    assert_eq!(bench.fake.hellos()[1].inventory[0].state, InventoryState::Running);
    assert!(bench.fake.hellos()[1].inventory[0].worktree_intact);
    fs::write(&gate, "").unwrap();
    let complete = bench.complete(attempt).await;
    assert!(complete.outcome.is_ok(), "{complete:?}");
    bench.output_is(attempt, "line 1\nline 2\nline 3\nend\n").await;
    let starts = bench.fake.reports_of(attempt).iter().filter(|r| matches!(r, Report::Started { .. })).count();
    assert_eq!(starts, 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_while_the_daemon_is_away_is_reported_with_its_result() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let gate = bench.path("gate");
    let plan = format!("while [ ! -e {gate} ]; do sleep 0.02; done; echo late; echo x > x");
    let attempt = bench.spawn(bench.order(&plan)).await;
    bench.started(attempt).await;
    daemon.stop().await;
    fs::write(&gate, "").unwrap();
    nothing_runs(&bench.state()).await;
    let daemon = bench.start();
    assert!(bench.complete(attempt).await.outcome.is_ok());
    bench.output_is(attempt, "late\n").await;
    daemon.stop().await;
}

fn kill_shims(place: &Path) {
    let shims: Vec<_> = processes_of(place).into_iter().filter(process::Found::is_shim).collect();
    assert!(!shims.is_empty());
    shims.iter().for_each(process::Found::kill);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_takes_its_agent_with_it_and_the_attempt_has_crashed() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("setsid sleep 1000 & sleep 1000")).await;
    bench.started(attempt).await;
    kill_shims(&bench.state());
    let complete = bench.complete(attempt).await;
    assert_eq!(class(&complete), Some(FailureClass::AgentCrashed));
    assert_eq!(processes_of(&bench.state()), []);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_while_the_daemon_is_away_is_a_recovery() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("echo begun; setsid sleep 1000 & sleep 1000")).await;
    bench.started(attempt).await;
    daemon.kill().await;
    kill_shims(&bench.state());
    let daemon = bench.start();
    let report = bench.says(attempt, "recovery", |r| matches!(r, Report::RecoveryDetected { .. })).await;
    let Report::RecoveryDetected { previous, worktree_intact, worktree, needs_patch } = report else { unreachable!() };
    assert_eq!((previous, worktree_intact, needs_patch), (InventoryState::Running, true, false));
    assert!(Path::new(&worktree).join(".git").exists());
    nothing_runs(&bench.state()).await;
    bench.output_is(attempt, "begun\n").await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_while_it_prepares_prepares_again() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let gate = bench.path("gate");
    let mut order = bench.order("echo x > x");
    order.setup_command = format!("echo setup >> {}; while [ ! -e {gate} ]; do sleep 0.02; done", bench.path("setups"));
    let attempt = bench.spawn(order).await;
    bench.file("setups").await;
    daemon.kill().await;
    fs::write(&gate, "").unwrap();
    let daemon = bench.start();
    bench.ready(2).await;
    let complete = bench.complete(attempt).await;
    assert!(complete.outcome.is_ok(), "{complete:?}");
    assert_eq!(bench.file("setups").await, "setup\nsetup\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_is_rebuilt_from_the_attempts_directories() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let gate = bench.path("gate");
    let waiting = format!("while [ ! -e {gate} ]; do sleep 0.02; done; echo x > x");
    let (running, ended) = (bench.spawn(bench.order(&waiting)).await, bench.spawn(bench.order("echo y > y")).await);
    bench.started(running).await;
    bench.complete(ended).await;
    bench.output_is(ended, "").await;
    let foreign = bench.spawn(bench.order(&waiting)).await;
    bench.started(foreign).await;
    let journal = bench.fake.hellos()[0].journal;
    daemon.stop().await;
    // Its thread closes the file, and with it the log of what is not in it yet, which would repair what we break.
    eventually("the journal is closed", || async {
        ensure(!bench.state().join("journal.sqlite-wal").exists(), || "open".to_owned())
    })
    .await;
    fs::write(bench.state().join("journal.sqlite"), b"no journal at all, but long enough to look at").unwrap();

    bench.fake.state().verdicts = [(ended, Verdict::Forget), (foreign, Verdict::Salvage)].into();
    let daemon = bench.start();
    bench.ready(2).await;
    let hello = bench.fake.hellos().remove(1);
    assert_ne!(hello.journal, journal);
    let states: BTreeMap<AttemptRef, InventoryState> = hello.inventory.iter().map(|i| (i.attempt, i.state)).collect();
    let expected =
        [(running, InventoryState::Running), (ended, InventoryState::Ending), (foreign, InventoryState::Running)];
    assert_eq!(states, expected.into());
    assert!(bench.state().join("journal.corrupt-1").exists());

    fs::write(&gate, "").unwrap();
    let before = bench.fake.reports_of(ended).len();
    assert!(bench.complete(running).await.outcome.is_ok());
    nothing_runs(&bench.state()).await;
    assert_eq!(bench.fake.reports_of(ended).len(), before, "what was over is not reported again");
    assert!(!bench.fake.reports_of(foreign).iter().any(|r| matches!(r, Report::Complete(_))));
    daemon.stop().await;
    // And none of it is spoken of again.
    let daemon = bench.start();
    bench.ready(3).await;
    assert_eq!(bench.fake.hellos()[2].inventory, []);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_attempt_ends_and_says_so() {
    let mut bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("echo x > x; sleep 1000")).await;
    bench.started(attempt).await;
    bench.fake.cut();
    bench.fake.state().verdicts = [(attempt, Verdict::Fenced)].into();
    bench.fake.serve();
    let complete = bench.complete(attempt).await;
    assert_eq!(class(&complete), Some(FailureClass::Cancelled));
    assert_eq!(processes_of(&bench.state()), []);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_daemon_stops_and_leaves_its_agents() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("sleep 1000")).await;
    bench.started(attempt).await;
    bench.fake.close(pb::ClosingReason::Superseded).await;
    assert!(matches!(daemon.ends().await, daemon::Error::Superseded(_)));
    assert!(agents(&bench.state()) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_daemon_stops_with_its_agents() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("sleep 1000")).await;
    bench.started(attempt).await;
    bench.fake.close(pb::ClosingReason::Banned).await;
    assert!(matches!(daemon.ends().await, daemon::Error::Banned(_)));
    assert_eq!(processes_of(&bench.state()), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_whose_key_is_refused_works_on_and_comes_back() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let gate = bench.path("gate");
    let attempt = bench.spawn(bench.order(&format!("while [ ! -e {gate} ]; do sleep 0.02; done"))).await;
    bench.started(attempt).await;
    bench.fake.state().open = false;
    bench.fake.close(pb::ClosingReason::Unauthenticated).await;
    fs::write(&gate, "").unwrap();
    nothing_runs(&bench.state()).await;
    assert_eq!(bench.fake.hellos().len(), 1);
    bench.fake.state().open = true;
    bench.ready(2).await;
    assert!(bench.complete(attempt).await.outcome.is_ok());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_here_is_refused_with_the_reason() {
    let bench = Bench::new().await;
    let offered = bench.repo.url();
    let full = DiskFloor { bytes: u64::MAX / 2, percent: 0 };
    for (config, order, reason) in [
        (Config { disk_floor: full, ..bench.config() }, bench.order("true"), "short of disk"),
        (
            bench.config(),
            Spawn { agent: "nobody".to_owned(), ..bench.order("true") },
            "agent profile `nobody` is not installed here",
        ),
        (
            Config { any_path: Some(false), repositories: vec![offered], ..bench.config() },
            Spawn { repository: "/elsewhere".to_owned(), ..bench.order("true") },
            "repository `/elsewhere` is not offered here",
        ),
    ] {
        bench.fake.state().events.clear();
        let daemon = Running::start(config);
        bench.ready(1).await;
        let command = bench.fake.command(an_attempt(), Order::Spawn(Box::new(order))).await;
        let answer = eventually("an answer", || async { bench.fake.answer_to(&command).ok_or("none") }).await;
        let Answer::Rejected { reason: said, retryable: true, counts: false } = answer else { panic!("{answer:?}") };
        assert!(said.contains(reason), "{said}");
        daemon.stop().await;
    }
    // A path that is not there, where any path may be named, is the task's trouble.
    bench.fake.state().events.clear();
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(Spawn { repository: "/no/such/repository".to_owned(), ..bench.order("true") }).await;
    assert_eq!(class(&bench.complete(attempt).await), Some(FailureClass::Repository));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_where_it_was_cut() {
    let bench = Bench::new().await;
    bench.fake.state().cut_upload_after = Some(700_000);
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench
        .spawn(
            bench.order("i=0; while [ $i -lt 20 ]; do head -c 100000 /dev/zero | tr '\\0' x; echo; i=$((i+1)); done"),
        )
        .await;
    assert!(bench.complete(attempt).await.outcome.is_ok());
    let expected = format!("{}\n", "x".repeat(100_000)).repeat(20);
    bench.output_is(attempt, &expected).await;
    assert!(bench.fake.state().uploads >= 2);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_the_server_could_not_take_is_uploaded_after_a_restart() {
    let mut bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let gate = bench.path("gate");
    let attempt = bench.spawn(bench.order(&format!("while [ ! -e {gate} ]; do sleep 0.02; done; echo late"))).await;
    bench.started(attempt).await;
    bench.fake.cut();
    fs::write(&gate, "").unwrap();
    nothing_runs(&bench.state()).await;
    daemon.stop().await;
    bench.fake.serve();
    let daemon = bench.start();
    assert!(bench.complete(attempt).await.outcome.is_ok());
    bench.output_is(attempt, "late\n").await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_state_is_refused() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let error = Running::start(bench.config()).run.await.unwrap().unwrap_err();
    assert!(error.to_string().starts_with("another makima daemon runs on "), "{error}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wall_time_and_failing_scripts_have_their_classes() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let mut slow = bench.order("sleep 1000");
    slow.wall_time = Some(Duration::from_millis(300));
    let mut broken = bench.order("true");
    broken.setup_command = "exit 3".to_owned();
    let (slow, failing, broken) =
        (bench.spawn(slow).await, bench.spawn(bench.order("echo no; exit 7")).await, bench.spawn(broken).await);
    assert_eq!(class(&bench.complete(slow).await), Some(FailureClass::Timeout));
    let failed = bench.complete(failing).await;
    assert_eq!((class(&failed).is_some(), failed.exit_code), (true, Some(7)));
    assert_eq!(class(&bench.complete(broken).await), Some(FailureClass::SetupFailed));
    daemon.stop().await;
}

//! A COMMIT whose answer is lost, and a Postgres that goes away: whatever the ledger answers is true. What it reports done is
//! there exactly once, what it reports as unavailable is not there, and it goes on by itself when the database is back.
//!
//! ```text
//!   ledger ──> Wire (reads what goes by, and acts at COMMIT) ──> Postgres
//! ```

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use makima::{
    domain::{
        TaskId, Timestamp,
        contract::{Contract, ContractLimits},
        order::{Answer, Command},
        report::{Message, MessageOutcome, Report},
        task::TaskStatus,
    },
    runtime::clock,
    server::ledger::{Error, Op, Push, Reply},
    store::Url,
    wire::pb,
};
use sqlx::{Connection as _, PgConnection};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    bed::{Bed, Daemon, Place, complete, result, spawn, started, task},
    harness::{Database, World, eventually, postgres},
};

/// What happens to a COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The connection goes before it is sent: nothing was done.
    Before,
    /// It is sent, and the connection goes at once.
    During,
    /// It is carried out, and the connection goes before the answer arrives.
    After,
    /// The client's end goes; Postgres gets it a moment later, with the ledger already asking what became of it.
    Late,
}

const CUTS: [Cut; 4] = [Cut::Before, Cut::During, Cut::After, Cut::Late];

/// How much later.
const LATER: Duration = Duration::from_millis(500);

/// Between the ledger and Postgres.
struct Wire {
    url: String,
    /// For the next COMMIT.
    next: Arc<Mutex<Option<Cut>>>,
    /// Cut every so many COMMITs, in turn; 0 for never.
    every: Arc<AtomicUsize>,
    cuts: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Wire {
    /// In front of `url`, `postgres://postgres@HOST:PORT/NAME`.
    async fn to(url: &str) -> Self {
        let rest = url.strip_prefix("postgres://postgres@").expect("a URL of the harness");
        let (target, name) = rest.split_once('/').expect("a database");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a port");
        let url = format!("postgres://postgres@{}/{name}", listener.local_addr().expect("the port bound"));
        let (next, every) = (Arc::new(Mutex::new(None)), Arc::new(AtomicUsize::new(0)));
        let (cuts, commits) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        let (target, next_cut, period, count) =
            (target.to_owned(), Arc::clone(&next), Arc::clone(&every), Arc::clone(&cuts));
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&target).await.expect("connect to Postgres");
                let (next, every, cuts, commits) =
                    (Arc::clone(&next_cut), Arc::clone(&period), Arc::clone(&count), Arc::clone(&commits));
                let decide = move || {
                    let nth = commits.fetch_add(1, Ordering::Relaxed);
                    let every = every.load(Ordering::Relaxed);
                    let cut =
                        next.lock().unwrap().take().or_else(|| {
                            (every > 0 && nth.is_multiple_of(every)).then(|| CUTS[nth / every % CUTS.len()])
                        });
                    cuts.fetch_add(usize::from(cut.is_some()), Ordering::Relaxed);
                    cut
                };
                open.spawn(carry(client, server, decide));
            }
        });
        Self { url, next, every, cuts, _tasks: tasks }
    }

    fn cut_next(&self, cut: Cut) {
        *self.next.lock().unwrap() = Some(cut);
    }

    fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }
}

/// Carries bytes both ways until one end closes or a COMMIT is cut.
async fn carry(mut client: TcpStream, mut server: TcpStream, decide: impl Fn() -> Option<Cut>) {
    /// The simple query that a driver commits with: `Q`, its length, the text, NUL.
    const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(length @ 1..) = read else { return };
                let bytes = &up[..length];
                let commits = bytes.windows(COMMIT.len()).any(|window| window == COMMIT);
                match commits.then(&decide).flatten() {
                    None => if server.write_all(bytes).await.is_err() { return },
                    Some(Cut::Before) => return,
                    Some(Cut::During) => {
                        let _ = server.write_all(bytes).await;
                        return;
                    }
                    Some(Cut::After) => {
                        let _ = server.write_all(bytes).await;
                        let _ = server.read(&mut down).await;
                        return;
                    }
                    Some(Cut::Late) => {
                        drop(client);
                        tokio::time::sleep(LATER).await;
                        let _ = server.write_all(bytes).await;
                        let _ = server.read(&mut down).await;
                        return;
                    }
                }
            }
            read = server.read(&mut down) => {
                let Ok(length @ 1..) = read else { return };
                if client.write_all(&down[..length]).await.is_err() { return }
            }
        }
    }
}

/// Asks for a contract of this name with one task.
async fn create(bed: &Bed, name: &str) -> Result<Contract, Error> {
    let mut new = bed.new_contract(ContractLimits::default(), vec![task("t", &[])]);
    name.clone_into(&mut new.name);
    match bed.person(Op::CreateContract(new)).await {
        Ok(Reply::Created { contract, .. }) => Ok(*contract),
        Ok(other) => panic!("not created: {other:?}"),
        Err(error) => Err(error),
    }
}

/// How many contracts of this name there are, seen without the wire.
async fn count(direct: &mut PgConnection, name: &str) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM contracts WHERE doc ->> 'name' = $1")
        .bind(name)
        .fetch_one(direct)
        .await
        .expect("count contracts")
}

/// What was answered is so.
async fn assert_true(direct: &mut PgConnection, name: &str, answer: &Result<Contract, Error>) {
    let there = count(direct, name).await;
    match answer {
        Ok(_) => assert_eq!(there, 1, "{name}: reported done, and there {there} times"),
        Err(Error::Unavailable(_)) => assert_eq!(there, 0, "{name}: reported unavailable, and there"),
        Err(error) => panic!("{name}: {error:?}"),
    }
}

/// Each cut alone: where it is certain, the answer is too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_commit_is_found_out() {
    let url = postgres::database().await;
    let wire = Wire::to(&url).await;
    let bed = Bed::on(Place::at(&wire.url)).await;
    let mut direct = PgConnection::connect(&url).await.expect("connect");
    for round in 0..3 {
        for cut in CUTS {
            let name = format!("{cut:?} {round}");
            let cuts = wire.cuts();
            wire.cut_next(cut);
            let answer = create(&bed, &name).await;
            assert_eq!(wire.cuts(), cuts + 1, "{name}: the cut has not fired");
            assert_true(&mut direct, &name, &answer).await;
            match cut {
                Cut::Before => assert!(answer.is_err(), "{name}: done without a COMMIT"),
                Cut::After | Cut::Late => assert!(answer.is_ok(), "{name}: {answer:?}"),
                Cut::During => {}
            }
            let name = format!("after {name}");
            let answer = create(&bed, &name).await;
            assert!(answer.is_ok(), "{name}: {answer:?}");
            assert_true(&mut direct, &name, &answer).await;
        }
    }
}

/// Many at once, in batches, with every second COMMIT cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_in_doubt_are_answered_truly() {
    let url = postgres::database().await;
    let wire = Wire::to(&url).await;
    let bed = Arc::new(Bed::on(Place::at(&wire.url)).await);
    wire.every.store(2, Ordering::Relaxed);
    let mut people = JoinSet::new();
    for person in 0..8 {
        let bed = Arc::clone(&bed);
        people.spawn(async move {
            let mut answers = Vec::new();
            for n in 0..12 {
                let name = format!("{person}/{n}");
                answers.push((create(&bed, &name).await, name));
            }
            answers
        });
    }
    let mut direct = PgConnection::connect(&url).await.expect("connect");
    let (mut done, mut not) = (0, 0);
    while let Some(answers) = people.join_next().await {
        for (answer, name) in answers.expect("a person") {
            assert_true(&mut direct, &name, &answer).await;
            if answer.is_ok() { done += 1 } else { not += 1 }
        }
    }
    assert!(wire.cuts() > 4 && done > 0 && not > 0, "{} cuts, {done} done, {not} not", wire.cuts());
}

/// A daemon's work through all of it: every task is given out and done exactly once, no slot or place is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_goes_on_through_cuts() {
    const TASKS: usize = 24;
    let url = postgres::database().await;
    let wire = Wire::to(&url).await;
    let bed = Arc::new(Bed::on(Place::at(&wire.url)).await);
    let daemon = bed.daemon("d", 3).await;
    wire.every.store(3, Ordering::Relaxed);
    let starts = Arc::new(Mutex::new(Vec::new()));
    work(Arc::clone(&bed), daemon, Arc::clone(&starts));
    let names: Vec<_> = (0..TASKS).map(|n| format!("t{n}")).collect();
    let contract = eventually("the contract is made", || async {
        let tasks = (0..TASKS).map(|n| {
            let before = n.checked_sub(4).map(|n| names[n].as_str());
            task(&names[n], before.as_slice())
        });
        let limits = ContractLimits { concurrency: 2, ..ContractLimits::default() };
        bed.person(Op::CreateContract(bed.new_contract(limits, tasks.collect()))).await
    })
    .await;
    let Reply::Created { contract, tasks, .. } = contract else { panic!("not created") };
    for task in &tasks {
        bed.task_is(task.id, TaskStatus::Done).await;
    }
    let mut given: Vec<TaskId> = starts.lock().unwrap().clone();
    given.sort();
    let mut expected: Vec<_> = tasks.iter().map(|task| task.id).collect();
    expected.sort();
    assert_eq!(given, expected, "given out once each");
    for id in &expected {
        assert_eq!(bed.task(*id).await.attempt, 1);
    }
    assert_eq!(bed.contract_now(contract.id).await.live, 0);
    assert_eq!(bed.ledger.fleet().iter().map(|(_, member)| member.live.len()).sum::<usize>(), 0);
    assert!(wire.cuts() > 8, "only {} cuts", wire.cuts());
}

/// Does whatever it is given, and says each thing again until it has an answer.
fn work(bed: Arc<Bed>, mut daemon: Daemon, starts: Arc<Mutex<Vec<TaskId>>>) {
    spawn(async move {
        let mut sequence = 0;
        while let Some(Push::Command(command)) = daemon.pushes.recv().await {
            starts.lock().unwrap().push(command.attempt.task);
            answer(&bed, &daemon, &command).await;
            for report in [started(), Report::Complete(complete(Ok(result(command.attempt))))] {
                sequence += 1;
                say(&bed, &daemon, &command, sequence, &report).await;
            }
        }
    });
}

async fn answer(bed: &Bed, daemon: &Daemon, command: &Command) {
    eventually("the answer is taken", || {
        bed.ledger.server(Op::Answered {
            daemon: daemon.id,
            epoch: daemon.epoch,
            attempt: command.attempt,
            of: command.order.kind(),
            sequence: command.sequence,
            answer: Answer::Persisted,
        })
    })
    .await;
}

async fn say(bed: &Bed, daemon: &Daemon, command: &Command, sequence: i64, report: &Report) {
    let message = Message {
        sequence,
        journal: daemon.journal,
        attempt: command.attempt,
        at: Timestamp(0),
        report: report.clone(),
    };
    let reply = eventually("the report is taken", || {
        bed.ledger.server(Op::Message { daemon: daemon.id, message: message.clone() })
    })
    .await;
    assert!(
        matches!(reply, Reply::Message(MessageOutcome::Applied | MessageOutcome::AlreadyApplied)),
        "{report:?}: {reply:?}"
    );
}

/// Backends killed while the ledger works, as when Postgres restarts or an administrator steps in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_backends_are_survived() {
    let bed = Arc::new(Bed::on(Place::at(&postgres::database().await)).await);
    let mut direct = admin(&bed).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut people = JoinSet::new();
    for person in 0..3 {
        let (bed, stop) = (Arc::clone(&bed), Arc::clone(&stop));
        people.spawn(async move {
            let mut answers = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let name = format!("{person}/{}", answers.len());
                answers.push((create(&bed, &name).await, name));
            }
            answers
        });
    }
    let mut killed = 0;
    while killed < 40 {
        killed += terminate(&mut direct).await;
        // Let it come back: until something new is there, there is nothing to kill in the middle of.
        let before: i64 = contracts(&mut direct).await;
        let bed = Arc::clone(&bed);
        eventually("contracts are made again", || {
            let bed = Arc::clone(&bed);
            async move {
                let mut tx = bed.store.read().await.map_err(|error| error.to_string())?;
                let now =
                    tx.contracts_list(bed.owner, &[], true, None, 100_000).await.map_err(|e| e.to_string())?.len();
                if i64::try_from(now).unwrap() > before { Ok(()) } else { Err(format!("{now} as before")) }
            }
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(answers) = people.join_next().await {
        for (answer, name) in answers.expect("a person") {
            assert_true(&mut direct, &name, &answer).await;
        }
    }
    assert!(create(&bed, "after").await.is_ok());
}

/// A connection beside the store's.
async fn admin(bed: &Bed) -> PgConnection {
    let Url::Postgres(url) = bed.url() else { panic!("not on Postgres") };
    PgConnection::connect(url).await.expect("connect")
}

async fn contracts(direct: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM contracts").fetch_one(direct).await.expect("count contracts")
}

/// Ends all other connections to the database; answers how many.
async fn terminate(direct: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .fetch_one(direct)
    .await
    .expect("end backends")
}

/// Postgres takes nobody for a while, then does again: unavailable meanwhile, and soon; afterwards everything works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_said_and_survived() {
    let bed = Bed::on(Place::at(&postgres::database().await)).await;
    let mut direct = admin(&bed).await;
    let mut daemon = bed.daemon("d", 1).await;
    let answer = create(&bed, "before").await;
    assert_true(&mut direct, "before", &answer).await;
    let (command, _) = daemon.spawned().await;

    allow(&bed, false).await;
    terminate(&mut direct).await;
    for n in 0..3 {
        let name = format!("meanwhile {n}");
        let answer =
            tokio::time::timeout(Duration::from_secs(30), create(&bed, &name)).await.expect("an answer in time");
        assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
        assert_true(&mut direct, &name, &answer).await;
    }
    allow(&bed, true).await;
    let contract = eventually("the ledger works again", || create(&bed, "afterwards")).await;
    assert_eq!(count(&mut direct, "afterwards").await, 1);
    // The daemon never noticed: its slot frees and takes the next task.
    daemon.answer(&bed, &command, Answer::Persisted).await;
    daemon.started(&bed, command.attempt).await;
    daemon.done(&bed, command.attempt).await;
    let (next, _) = daemon.spawned().await;
    assert_eq!(bed.task(next.attempt.task).await.contract, contract.id);
}

/// Lets new connections in to the bed's database, or not.
async fn allow(bed: &Bed, allowed: bool) {
    let Url::Postgres(url) = bed.url() else { panic!("not on Postgres") };
    let (cluster, name) = url.rsplit_once('/').expect("a database");
    let mut other = PgConnection::connect(&format!("{cluster}/postgres")).await.expect("connect");
    let sql = format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {allowed}");
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut other).await.expect("change the database");
}

/// The session of a daemon that a Postgres does not know any more, whatever the daemon says next: it is told to attach again, not
/// that it has a successor, at which it would end for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_not_known_any_more_attaches_again() {
    let world = World::start(Database::Postgres).await;
    let place = Place::at(world.database_url().unwrap());
    let mut client = world.client_as("daemon").daemons();
    let (out, requests) = mpsc::channel(8);
    let say = async |kind| out.send(pb::AttachRequest { kind: Some(kind) }).await.unwrap();
    let hello = pb::Hello {
        protocol_min: 1,
        protocol_max: 1,
        daemon_id: uuid::Uuid::now_v7().to_string(),
        boot_id: uuid::Uuid::new_v4().to_string(),
        journal_id: uuid::Uuid::new_v4().to_string(),
        name: "played".to_owned(),
        slots: 1,
        clock: Some(makima::wire::common::timestamp(clock::now())),
        ..pb::Hello::default()
    };
    say(pb::attach_request::Kind::Hello(Box::new(hello))).await;
    let mut answers = client.attach(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let mut hear = async || answers.message().await.unwrap().unwrap().kind.unwrap();
    assert!(matches!(hear().await, pb::attach_response::Kind::Welcome(_)));
    place.beside("DELETE FROM daemons").await;
    place.end_connections().await;
    // What it says of itself is what is looked at first on the new connection.
    say(pb::attach_request::Kind::Heartbeat(pb::Heartbeat::default())).await;
    let closing = loop {
        if let pb::attach_response::Kind::Closing(closing) = hear().await {
            break closing;
        }
    };
    assert_eq!(closing.reason(), pb::ClosingReason::Resync, "{closing:?}");
}

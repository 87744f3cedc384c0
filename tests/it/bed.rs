//! A ledger on a real database, without processes: the test plays the daemons. Whatever it asks of the ledger goes the way
//! that sessions and services go.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use makima::{
    domain::{
        AttemptRef, BootId, ContractId, DaemonId, Epoch, JournalId, KeyId, OwnerId, TaskId, Timestamp,
        attempt::{Failure, FailureClass, TaskResult},
        contract::{Contract, ContractLimits},
        daemon::{Card, Hello, Profile},
        draft::{NewContract, NewTask, NewTasks},
        key::KeyKind,
        order::{Answer, Command, Order, Spawn},
        reconcile::Verdict,
        report::{Complete, InventoryItem, InventoryState, Message, MessageOutcome, Progress, Report},
        task::{Task, TaskSpec, TaskStatus},
    },
    server::{
        ledger::{Error, Ledger, Op, Push, Reply, Request, op::Attach},
        task_keys::TaskKeys,
    },
    store::{Claim, Store, Url},
};
use sqlx::Connection as _;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::harness::{eventually, postgres};

/// The databases there are.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Sqlite,
    Postgres,
}

/// Runs a test on both databases: `both!(name)` makes `name::sqlite` and `name::postgres` of `async fn name(kind: Kind)`.
#[macro_export]
macro_rules! both {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$name($crate::bed::Kind::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                super::$name($crate::bed::Kind::Postgres).await;
            }
        }
    )+};
}

/// The same for tests of the whole program, `async fn name(database: Database)`.
#[macro_export]
macro_rules! both_databases {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$name($crate::harness::Database::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                super::$name($crate::harness::Database::Postgres).await;
            }
        }
    )+};
}

/// Where a test's database is; it goes with the test.
pub struct Place {
    pub url: Url,
    _dir: tempfile::TempDir,
}

impl Place {
    pub async fn new(kind: Kind) -> Self {
        let dir = tempfile::tempdir().expect("make a directory");
        let url = match kind {
            Kind::Sqlite => Url::Sqlite(dir.path().join("makima.db")),
            Kind::Postgres => postgres::database().await.parse().expect("a database URL"),
        };
        Self { url, _dir: dir }
    }

    /// Ends all connections to it, which is on Postgres.
    pub async fn end_connections(&self) {
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                      WHERE datname = current_database() AND pid <> pg_backend_pid()";
        self.beside(others).await;
    }

    /// Has a database on Postgres changed behind the server's back.
    pub async fn beside(&self, sql: &'static str) {
        let Url::Postgres(url) = &self.url else { unreachable!("on Postgres") };
        let mut connection = sqlx::PgConnection::connect(url).await.expect("connect");
        sqlx::query(sql).execute(&mut connection).await.expect("run it");
    }

    /// Connections to a database on Postgres.
    pub async fn connections(&self) -> Vec<i32> {
        let Url::Postgres(url) = &self.url else { unreachable!("on Postgres") };
        let mut connection = sqlx::PgConnection::connect(url).await.expect("connect");
        let others = "SELECT pid FROM pg_stat_activity
                      WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
                      ORDER BY pid";
        sqlx::query_scalar(others).fetch_all(&mut connection).await.expect("ask")
    }

    /// A Postgres database behind this address.
    pub fn at(url: &str) -> Self {
        Self { url: url.parse().expect("a database URL"), _dir: tempfile::tempdir().expect("make a directory") }
    }
}

/// A ledger with one owner.
pub struct Bed {
    pub store: Store,
    pub ledger: Ledger,
    pub owner: OwnerId,
    pub key: KeyId,
    _claim: Claim,
    pub place: Place,
}

impl Bed {
    pub async fn new(kind: Kind) -> Self {
        Self::on(Place::new(kind).await).await
    }

    pub async fn on(place: Place) -> Self {
        let (store, claim) = Store::open(&place.url).await.expect("open the store");
        let ledger = ledger_on(&store).await;
        let op = Op::CreateKey {
            kind: KeyKind::Owner,
            owner: Some("alice".to_owned()),
            label: String::new(),
            hash: [1; 32],
        };
        let Ok(Reply::Key(key)) = ledger.server(op).await else { panic!("no key") };
        Self { store, ledger, owner: key.owner.expect("an owner"), key: key.id, _claim: claim, place }
    }

    /// Another ledger on the same database, which knows nothing but what is written there.
    pub async fn restart(&mut self) {
        self.ledger = ledger_on(&self.store).await;
    }

    /// Where its database is.
    pub fn url(&self) -> &Url {
        &self.place.url
    }

    /// Does something as a person.
    pub async fn person(&self, op: Op) -> Result<Reply, Error> {
        self.ledger.submit(Request { actor: "key:test".to_owned(), repeat: None, op }).await
    }

    pub async fn contract(&self, tasks: Vec<NewTask>) -> (Contract, Vec<Task>) {
        let limits = ContractLimits { concurrency: 1_000, ..ContractLimits::default() };
        self.created(Op::CreateContract(self.new_contract(limits, tasks))).await
    }

    pub fn new_contract(&self, limits: ContractLimits, tasks: Vec<NewTask>) -> NewContract {
        NewContract {
            owner: self.owner,
            name: "test".to_owned(),
            description: String::new(),
            repository: "https://example.com/r.git".to_owned(),
            base_branch: String::new(),
            limits,
            hold: false,
            tasks,
        }
    }

    pub async fn add(&self, contract: ContractId, tasks: Vec<NewTask>) -> Vec<Task> {
        self.created(Op::CreateTasks(NewTasks { owner: self.owner, contract: Some(contract), tasks })).await.1
    }

    async fn created(&self, op: Op) -> (Contract, Vec<Task>) {
        match self.person(op).await {
            Ok(Reply::Created { contract, tasks, .. }) => (*contract, tasks),
            other => panic!("not created: {other:?}"),
        }
    }

    pub async fn task(&self, id: TaskId) -> Task {
        let mut tx = self.store.read().await.expect("read");
        tx.task_fetch(self.owner, id).await.expect("fetch a task").expect("the task")
    }

    pub async fn contract_now(&self, id: ContractId) -> Contract {
        let mut tx = self.store.read().await.expect("read");
        tx.contract_fetch(self.owner, id).await.expect("fetch a contract").expect("the contract")
    }

    /// Waits until a task is where it should be.
    pub async fn task_is(&self, id: TaskId, status: TaskStatus) -> Task {
        eventually(&format!("task is {}", status.word()), || async {
            let task = self.task(id).await;
            if task.status() == status { Ok(task) } else { Err(format!("{:?}, unmet {}", task.state, task.unmet)) }
        })
        .await
    }

    /// Brings a daemon, ready for work.
    pub async fn daemon(&self, name: &str, slots: u32) -> Daemon {
        let daemon = Daemon::attach(self, DaemonId(Uuid::now_v7()), name, slots, Vec::new()).await;
        daemon.ready(self).await;
        daemon
    }
}

/// A ledger on a database.
async fn ledger_on(store: &Store) -> Ledger {
    let (ledger, writer) = Ledger::start(store.clone(), TaskKeys::new([7; 32])).await.expect("start the ledger");
    spawn(writer);
    ledger
}

/// An attempt whose agent runs, as a daemon lists it.
pub fn running(attempt: AttemptRef) -> InventoryItem {
    InventoryItem { attempt, state: InventoryState::Running, worktree: "/w".to_owned(), worktree_intact: true }
}

/// A task that any daemon can run.
pub fn task(name: &str, depends_on: &[&str]) -> NewTask {
    let spec =
        TaskSpec { name: name.to_owned(), plan: "true".to_owned(), agent: "shell".to_owned(), ..TaskSpec::default() };
    NewTask::new(spec, depends_on.iter().map(|name| (*name).to_owned()).collect())
}

/// The same with something else in what is asked.
pub fn task_with(name: &str, change: impl FnOnce(&mut TaskSpec)) -> NewTask {
    let mut spec = (*task(name, &[]).spec).clone();
    change(&mut spec);
    NewTask::new(spec, Vec::new())
}

#[expect(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]
pub fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}

/// A daemon as the ledger sees one.
pub struct Daemon {
    pub id: DaemonId,
    pub epoch: Epoch,
    pub journal: JournalId,
    pub verdicts: Vec<(AttemptRef, Verdict)>,
    pub unanswered: Vec<Command>,
    pub pushes: mpsc::Receiver<Push>,
    sequence: i64,
}

impl Daemon {
    pub async fn attach(bed: &Bed, id: DaemonId, name: &str, slots: u32, inventory: Vec<InventoryItem>) -> Self {
        Self::try_attach(bed, id, name, slots, inventory).await.expect("attach")
    }

    pub async fn try_attach(
        bed: &Bed,
        id: DaemonId,
        name: &str,
        slots: u32,
        inventory: Vec<InventoryItem>,
    ) -> Result<Self, Error> {
        let (outbox, pushes) = mpsc::channel(4096);
        let journal = JournalId(Uuid::new_v4());
        let hello = Hello {
            protocol: (1, 1),
            daemon: id,
            boot: BootId(Uuid::new_v4()),
            journal,
            card: Card {
                name: name.to_owned(),
                slots,
                profiles: vec![Profile { name: "shell".to_owned(), version: String::new() }],
                any_path: true,
                ..Card::default()
            },
            attach: 0,
            last_command: 0,
            unanswered: (0, 0),
            inventory,
            clock: Timestamp(0),
        };
        let attach = Attach { owner: bed.owner, key: bed.key, hello, outbox };
        match bed.ledger.server(Op::Attach(Box::new(attach))).await? {
            Reply::Attached { epoch, verdicts, unanswered } => {
                Ok(Self { id, epoch, journal, verdicts, unanswered, pushes, sequence: 0 })
            }
            other => panic!("not attached: {other:?}"),
        }
    }

    pub async fn ready(&self, bed: &Bed) {
        bed.ledger.server(Op::Ready { daemon: self.id, epoch: self.epoch }).await.expect("ready");
    }

    /// The next command.
    pub async fn command(&mut self) -> Command {
        let next = tokio::time::timeout(Duration::from_secs(20), self.pushes.recv()).await;
        match next.expect("a command in time") {
            Some(Push::Command(command)) => (*command).clone(),
            other => panic!("not a command: {other:?}"),
        }
    }

    /// The next order to start something.
    pub async fn spawned(&mut self) -> (Command, Spawn) {
        let command = self.command().await;
        match command.order.clone() {
            Order::Spawn(spawn) => (command, *spawn),
            other => panic!("not a spawn: {other:?}"),
        }
    }

    pub async fn answer(&self, bed: &Bed, command: &Command, answer: Answer) {
        let op = Op::Answered {
            daemon: self.id,
            epoch: self.epoch,
            attempt: command.attempt,
            of: command.order.kind(),
            sequence: command.sequence,
            answer,
        };
        bed.ledger.server(op).await.expect("answer");
    }

    pub async fn report(&mut self, bed: &Bed, attempt: AttemptRef, report: Report) -> MessageOutcome {
        self.sequence += 1;
        let message = Message { sequence: self.sequence, journal: self.journal, attempt, at: Timestamp(0), report };
        match bed.ledger.server(Op::Message { daemon: self.id, message }).await {
            Ok(Reply::Message(outcome)) => outcome,
            other => panic!("not judged: {other:?}"),
        }
    }

    pub async fn started(&mut self, bed: &Bed, attempt: AttemptRef) -> MessageOutcome {
        self.report(bed, attempt, started()).await
    }

    pub async fn done(&mut self, bed: &Bed, attempt: AttemptRef) -> MessageOutcome {
        self.report(bed, attempt, Report::Complete(complete(Ok(result(attempt))))).await
    }

    pub async fn failed(&mut self, bed: &Bed, attempt: AttemptRef, class: FailureClass) -> MessageOutcome {
        self.report(bed, attempt, Report::Complete(complete(Err(Failure::new(class, "it broke"))))).await
    }

    /// Takes the next spawn and brings it to RUNNING.
    pub async fn run_next(&mut self, bed: &Bed) -> (Command, Spawn) {
        let (command, spawn) = self.spawned().await;
        self.answer(bed, &command, Answer::Persisted).await;
        self.started(bed, command.attempt).await;
        (command, spawn)
    }
}

pub fn started() -> Report {
    Report::Started {
        worktree: "/w".to_owned(),
        branch: "b".to_owned(),
        base_commit: "c".to_owned(),
        agent_version: String::new(),
        restored: None,
    }
}

pub fn result(attempt: AttemptRef) -> TaskResult {
    TaskResult {
        commit: format!("{:040x}", attempt.number),
        branch: "b".to_owned(),
        result_ref: format!("refs/makima/results/{}", attempt.task),
        published: true,
        ..TaskResult::default()
    }
}

pub fn complete(outcome: Result<TaskResult, Failure>) -> Complete {
    Complete { outcome, progress: Progress::default(), output_bytes: 0, exit_code: Some(0), signal: 0 }
}

/// What a crew saw.
#[derive(Debug, Default)]
pub struct Log {
    /// How often each task was started.
    pub starts: HashMap<TaskId, u32>,
    /// Tasks that were started before a dependency was complete.
    pub early: Vec<String>,
}

/// A daemon that does whatever it is given, everything at once, and writes down what it was given.
pub async fn crew(bed: Arc<Bed>, name: &str, slots: u32) -> Arc<Mutex<Log>> {
    let log = Arc::new(Mutex::new(Log::default()));
    let mut daemon = bed.daemon(name, slots).await;
    let kept = Arc::clone(&log);
    spawn(async move {
        while let Some(push) = daemon.pushes.recv().await {
            let Push::Command(command) = push else { return };
            let bed = Arc::clone(&bed);
            let (id, epoch, journal) = (daemon.id, daemon.epoch, daemon.journal);
            let log = Arc::clone(&kept);
            spawn(async move {
                let (_, pushes) = mpsc::channel(1);
                let mut hand =
                    Daemon { id, epoch, journal, verdicts: Vec::new(), unanswered: Vec::new(), pushes, sequence: 0 };
                hand.answer(&bed, &command, Answer::Persisted).await;
                match &command.order {
                    Order::Spawn(spawn) => {
                        {
                            let mut log = log.lock().unwrap();
                            *log.starts.entry(command.attempt.task).or_default() += 1;
                            let early = spawn.dependencies.iter().filter(|d| !d.status.is_complete());
                            let early: Vec<_> = early.map(|d| format!("{} before {}", spawn.name, d.name)).collect();
                            log.early.extend(early);
                        }
                        hand.started(&bed, command.attempt).await;
                        hand.done(&bed, command.attempt).await;
                    }
                    Order::Cancel { .. } => {
                        hand.failed(&bed, command.attempt, FailureClass::Cancelled).await;
                    }
                    Order::Checkpoint => {}
                }
            });
        }
    });
    log
}

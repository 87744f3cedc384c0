//! What is measured: the released server in a process of its own, on SQLite or on a Postgres of this run, and daemons
//! without work, each in a process of its own too.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use makima::{
    daemon::hollow,
    wire::pb::{
        BatchCreateTasksRequest, ContractLimits, CreateContractRequest, CreateTaskRequest, DaemonStatus,
        GetContractRequest, TaskCounts, TaskSpec,
    },
};

use rustix::process::Signal;

use crate::{
    harness::{
        Client, Database, World,
        process::{self, Program},
    },
    proc::Spent,
};

/// Attempts that each daemon runs at once: enough that slots limit nothing else, but the widest part of the largest random graph.
pub const SLOTS: u32 = 256;
/// Attempts of a contract at once.
const CONCURRENCY: u32 = 100_000;
/// Nobody clones it.
const REPOSITORY: &str = "https://repository.invalid/load.git";
/// What an agent would be told: about as long as people write them. The analysis finds something to do with pages in it, in each
/// the same, so every order is checked against the tasks beside it and none is warned of.
const PLAN: &str = "Read the notes that were taken at the last meeting and sum them up in one page for those who could not be \
                    there. Keep the names of the people who promised something beside what they promised, and the day by which \
                    they want to have done it. Leave out what was only said in passing. Write plainly, in full sentences, and \
                    ask about whatever contradicts itself instead of guessing what may have been meant by it.";
/// Tasks of one call.
const MOST: usize = 1_000;
/// Between two looks at how far a contract is. Looking is a read of one row.
const LOOK: Duration = Duration::from_millis(5);
/// No part of a run takes longer than this; what does has hung.
const PATIENCE: Duration = Duration::from_secs(900);

/// Transactions of the server's ledger, in sums since it began.
#[derive(Clone, Copy, Debug)]
pub struct Batches {
    count: f64,
    operations: f64,
    seconds: f64,
    commit_seconds: f64,
}

impl Batches {
    /// What one was since `earlier`, on average.
    pub fn since(&self, earlier: &Self) -> String {
        let count = self.count - earlier.count;
        let mean = |now: f64, then: f64| (now - then) / count.max(1.0);
        format!(
            "{count:.0} batches of {:.1} operations, {:.2} ms each, of which COMMIT {:.2} ms",
            mean(self.operations, earlier.operations),
            mean(self.seconds, earlier.seconds) * 1e3,
            mean(self.commit_seconds, earlier.commit_seconds) * 1e3
        )
    }
}

/// A server with its daemons.
pub struct Bed {
    /// The server and the folder of it all.
    pub world: World,
    /// Which database it is on.
    pub database: Database,
    /// The daemons.
    pub daemons: Vec<Program>,
    /// Where the server shows what it counts.
    metrics: String,
}

impl Bed {
    /// A server that serves, and nothing else.
    pub async fn start(database: Database) -> Self {
        let mut world = World::new(database).await;
        world.server_env.push(("MAKIMA_LOG".to_owned(), "warn".to_owned()));
        let metrics = format!("127.0.0.1:{}", process::free_port());
        world.server_args.extend(["--metrics-listen".to_owned(), metrics.clone()]);
        world.start_server().await;
        Self { world, database, daemons: Vec::new(), metrics }
    }

    /// A server with two daemons, attached.
    pub async fn with_daemons(database: Database, tell: bool) -> Self {
        let mut bed = Self::start(database).await;
        bed.attach(2, SLOTS, tell).await;
        bed
    }

    /// Starts daemons and waits until the server says that they are attached.
    pub async fn attach(&mut self, count: usize, slots: u32, tell: bool) {
        for _ in 0..count {
            self.launch(slots, tell);
        }
        let wanted = self.daemons.len();
        let client = self.world.client();
        crate::harness::eventually("the daemons are attached", || async {
            let daemons = client.daemon_list().await.map_err(|status| status.to_string())?;
            let attached = daemons.iter().filter(|daemon| daemon.status() == DaemonStatus::Attached).count();
            if attached >= wanted { Ok(()) } else { Err(format!("{attached} of {wanted}")) }
        })
        .await;
    }

    /// Starts a daemon and waits for nothing.
    pub fn launch(&mut self, slots: u32, tell: bool) {
        let name = format!("load-{}", self.daemons.len());
        let program = std::env::current_exe().expect("the way to this program");
        let mut command = process::command(program.to_str().expect("a plain path"), &self.world.dir.join("home"));
        command
            .arg("daemon")
            .arg(&self.world.url)
            .arg(self.world.key_file("daemon"))
            .arg(self.world.daemon_state(&name));
        command.arg(&name).arg(slots.to_string()).env("MAKIMA_LOG", "warn");
        if tell {
            command.arg("tell");
        }
        let mut daemon = Program::new(&name, &self.world.dir.join("logs"));
        daemon.start(command);
        self.daemons.push(daemon);
    }

    /// What each process has used so far.
    pub fn spent(&self) -> Spent {
        let mut spent = Spent::default();
        spent.add("server", self.world.server.pid());
        self.daemons.iter().for_each(|daemon| spent.add("daemons", daemon.pid()));
        spent.add("load", std::process::id());
        if self.database == Database::Postgres {
            spent.add_postgres();
        }
        spent
    }

    /// Something that the server counts, by the name and labels with which it shows it.
    pub async fn metric(&self, name: &str) -> f64 {
        let address = self.metrics.clone();
        let shown = tokio::task::spawn_blocking(move || -> std::io::Result<String> {
            let mut connection = TcpStream::connect(address)?;
            connection.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
            let mut shown = String::new();
            connection.read_to_string(&mut shown).map(|_| shown)
        });
        let shown = shown.await.expect("asking does not panic").expect("the server shows what it counts");
        let value = shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in what the server shows:\n{shown}"))
    }

    /// What the ledger has done so far.
    pub async fn batches(&self) -> Batches {
        Batches {
            count: self.metric("makima_ledger_batch_seconds_count").await,
            operations: self.metric("makima_ledger_batch_size_sum").await,
            seconds: self.metric("makima_ledger_batch_seconds_sum").await,
            commit_seconds: self.metric("makima_ledger_commit_seconds_sum").await,
        }
    }

    /// Tasks that are done, since the server began.
    pub async fn ended(&self) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
        let ended = self.metric("makima_task_events_total{event=\"task.done\"}").await as u64;
        ended
    }

    /// When each task began, in nanoseconds, by what the daemons have told.
    pub fn began(&self) -> HashMap<String, u64> {
        crate::hollow::began(&self.daemons)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.daemons.iter().for_each(Program::print_log);
        } else if std::env::var_os("LLVM_PROFILE_FILE").is_some() {
            // What it has counted, a program writes when it ends by itself.
            for program in self.daemons.iter_mut().chain([&mut self.world.server]) {
                program.signal(Signal::TERM);
                let asked = Instant::now();
                while program.is_running() && asked.elapsed() < PATIENCE {
                    std::thread::sleep(LOOK);
                }
            }
        }
    }
}

/// A task of the load.
pub fn task(name: String) -> TaskSpec {
    TaskSpec { name, plan: PLAN.to_owned(), agent: hollow::PROFILE.to_owned(), ..TaskSpec::default() }
}

/// A contract with these tasks; answers its id and theirs. Held, if nothing is to start yet.
pub async fn contract(client: &Client, tasks: Vec<TaskSpec>, hold: bool) -> (String, Vec<String>) {
    let request = CreateContractRequest {
        name: "load".to_owned(),
        repository: REPOSITORY.to_owned(),
        limits: Some(ContractLimits { concurrency: Some(CONCURRENCY), ..ContractLimits::default() }),
        tasks,
        hold,
        ..CreateContractRequest::default()
    };
    let made = client.contracts().create_contract(request).await.expect("create a contract").into_inner();
    let id = made.contract.expect("a contract in the answer").contract_id;
    (id, made.tasks.into_iter().map(|task| task.task_id).collect())
}

/// One more task; answers its id.
pub async fn create(client: &Client, contract: &str, spec: TaskSpec) -> String {
    let request = CreateTaskRequest {
        contract_id: contract.to_owned(),
        spec: Some(Box::new(spec)),
        ..CreateTaskRequest::default()
    };
    let made = client.tasks().create_task(request).await.expect("create a task").into_inner();
    made.task.expect("a task in the answer").task_id
}

/// Many more tasks, as few calls as there may be.
pub async fn create_all(client: &Client, contract: &str, specs: Vec<TaskSpec>) {
    for some in specs.chunks(MOST) {
        let request = BatchCreateTasksRequest {
            contract_id: contract.to_owned(),
            tasks: some.to_vec(),
            ..BatchCreateTasksRequest::default()
        };
        client.tasks().batch_create_tasks(request).await.expect("create tasks");
    }
}

/// Waits until so many tasks of a contract are done.
pub async fn until_done(client: &Client, contract: &str, wanted: usize) {
    let wanted = u32::try_from(wanted).expect("a number of tasks");
    let looking = async {
        loop {
            let counts = counts(client, contract).await;
            assert_eq!((counts.failed, counts.cancelled), (0, 0), "tasks failed: {counts:?}");
            if counts.done >= wanted {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(PATIENCE, looking).await.is_err() {
        panic!("{wanted} tasks are not done after {PATIENCE:?}: {:?}", counts(client, contract).await);
    }
}

async fn counts(client: &Client, contract: &str) -> TaskCounts {
    let request = GetContractRequest { contract_id: contract.to_owned() };
    let answer = client.contracts().get_contract(request).await.expect("get the contract").into_inner();
    answer.contract.and_then(|contract| contract.task_counts).expect("counts in the answer")
}

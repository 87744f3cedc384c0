//! One run: a world is built from a plan, its faults are fired when their time has come and heal, and the contract has to
//! come to its end; then everything that was promised is looked at.
//!
//! ```text
//!   plan ─> world, machines, contract ─> loop: keep what should run running │ heal what is due │ fire what is next
//!                                          │                               │ look at tasks and daemons
//!                                          └─ contract DONE ─> invariants ─> what it cost
//! ```
//!
//! Whatever it waits for is an event of the contract, a look at the fleet, or a time that belongs to a fault.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use makima::{
    domain::Timestamp,
    runtime::clock,
    wire::pb::{
        self, Change, ContractLimits, ContractStatus, CreateContractRequest, DaemonStatus, PendingReason, Task,
        TaskStatus, WatchContractRequest, watch_contract_response,
    },
};

use super::{
    fault::{Kind, Planned},
    machine::{Machine, set_clock},
    plan::Plan,
    strike,
};
use crate::harness::{Client, Repo, World, client::name_of, postgres, process};

/// From the last heal to the end of the contract. Generous: it says that something is stuck, not that it is slow.
const PATIENCE: Duration = Duration::from_secs(90);
/// For a fault to find whom it can hit.
const TARGET_PATIENCE: Duration = Duration::from_secs(60);
/// Nothing happens for so long: the next fault does not wait for further events.
const QUIET: Duration = Duration::from_millis(1_200);
/// Between two turns of the loop.
const TURN: Duration = Duration::from_millis(20);
/// Between two looks at the fleet.
const LOOK: Duration = Duration::from_millis(100);
/// For the server to answer a look.
const ANSWER: Duration = Duration::from_secs(3);
/// How long ago the copy of a database was made that is put back.
const AGE_OF_COPY: Duration = Duration::from_millis(300);
/// Often enough that most tasks have one, and a fault can come in its way.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// No wait is longer: backoffs end after five minutes.
const LONGEST_WAIT: Duration = Duration::from_secs(360);
/// A wait that is over and still stands after this is a task that is stuck.
const OVERDUE: Duration = Duration::from_secs(5);

/// A run under way.
pub struct Run {
    pub plan: Plan,
    pub world: World,
    pub repo: Repo,
    pub machines: Vec<Machine>,
    pub client: Client,
    pub contract: String,
    /// Ids of tasks, in the order of the plan.
    pub ids: Vec<String>,
    pub story: Story,
    pub watch: Watch,
    pub fired: Vec<Fired>,
    /// A Postgres of its own, where a fault of it is planned.
    pub cluster: Option<postgres::Cluster>,
    server_up: bool,
    server_clock: PathBuf,
    heals: Vec<(Instant, usize)>,
    copy_of_database: PathBuf,
    next: usize,
    next_since: Instant,
    events_at_last: usize,
    looked: Instant,
    last_heal: Instant,
    pub tasks: Vec<Task>,
    pub daemons: Vec<pb::Daemon>,
}

/// A fault that has fired.
pub struct Fired {
    pub planned: Planned,
    pub at: Instant,
    /// The same by the wall clock.
    pub wall: Timestamp,
    pub healed: bool,
    /// The task's place in the plan, and how much its agents had said.
    affected: Vec<(usize, u64)>,
    /// Daemons it hit, with the session each had.
    hit: Vec<(String, i64)>,
    /// What it needs to know to heal.
    wounds: Vec<process::Found>,
    /// Harm that the wire had done before.
    harmed: usize,
    /// How long until all that it hit went on.
    pub recovery: Option<Duration>,
}

/// What happened, for whoever has to find out why a run failed.
#[derive(Clone)]
pub struct Story {
    began: Instant,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Story {
    pub fn new() -> Self {
        Self { began: Instant::now(), lines: Arc::default() }
    }

    pub fn tell(&self, what: impl std::fmt::Display) {
        let line = format!("{:8.3} {what}", self.began.elapsed().as_secs_f64());
        self.lines.lock().expect("plain lines").push(line);
    }

    pub fn text(&self) -> String {
        self.lines.lock().expect("plain lines").join("\n")
    }
}

/// The contract's event log, followed across every break.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    _task: tokio::task::JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    changes: Vec<Change>,
    last: Option<Instant>,
    ended: bool,
}

impl Watch {
    fn start(client: Client, contract: String) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut task = tokio::task::JoinSet::new();
        task.spawn(follow(client, contract, Arc::clone(&seen)));
        Self { seen, _task: task }
    }

    /// How many changes there were, and when the last of them came.
    fn count(&self) -> (usize, Option<Instant>) {
        let seen = self.seen.lock().expect("plain values");
        (seen.changes.len(), seen.last)
    }

    pub fn changes(&self) -> Vec<Change> {
        self.seen.lock().expect("plain values").changes.clone()
    }

    pub fn has_ended(&self) -> bool {
        self.seen.lock().expect("plain values").ended
    }
}

async fn follow(client: Client, contract: String, seen: Arc<Mutex<Seen>>) {
    let mut token = String::new();
    loop {
        let request =
            WatchContractRequest { contract_id: contract.clone(), resume_token: token.clone(), until_end: true };
        if let Ok(stream) = client.contracts().watch_contract(request).await {
            let mut stream = stream.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(step)) => {
                        if !step.resume_token.is_empty() {
                            token = step.resume_token;
                        }
                        if let Some(watch_contract_response::Kind::Change(change)) = step.kind {
                            let mut seen = seen.lock().expect("plain values");
                            seen.changes.push(change);
                            seen.last = Some(Instant::now());
                        }
                    }
                    Ok(None) => {
                        seen.lock().expect("plain values").ended = true;
                        return;
                    }
                    Err(_) => break,
                }
            }
        }
        tokio::time::sleep(TURN).await;
    }
}

impl Run {
    /// Builds the world of a plan, and sets its contract going.
    pub async fn start(plan: Plan, story: Story) -> Self {
        let cluster = (plan.has(Kind::KillPostgres) || plan.has(Kind::StopPostgres))
            .then(|| postgres::Cluster::start().unwrap_or_else(|error| panic!("no Postgres: {error}")));
        let url = match (&cluster, plan.postgres) {
            (Some(cluster), _) => Some(cluster.database("test").await),
            (None, true) => Some(postgres::database().await),
            (None, false) => None,
        };
        let mut world = World::on(url);
        let server_clock = world.dir.join("server.clock");
        world.server_args = ["--heartbeat-interval", "200ms", "--lost-after", "1s"].map(str::to_owned).to_vec();
        world.server_env = vec![("MAKIMA_TEST_CLOCK".to_owned(), server_clock.display().to_string())];
        fs::create_dir(world.dir.join("progress")).expect("make a folder");
        world.start_server().await;
        let repo = world.repo("repo");
        let mut machines = Vec::new();
        for (at, &slots) in plan.machines.iter().enumerate() {
            let machine = Machine::new(&world, &format!("m{at}"), slots).await;
            world.launch_daemon_with(&machine.name, machine.options());
            machines.push(machine);
        }
        for machine in &machines {
            world.attached(&machine.name).await;
        }
        let client = world.client();
        let request = CreateContractRequest {
            name: "faults".to_owned(),
            repository: if plan.clones { repo.file_url() } else { repo.url() },
            limits: Some(ContractLimits {
                max_retries: Some(15),
                rerun_after: prost_types::Duration::try_from(plan.rerun_after).ok(),
                checkpoint_every: prost_types::Duration::try_from(CHECKPOINT_EVERY).ok(),
                ..ContractLimits::default()
            }),
            tasks: plan.specs(&world.dir),
            hold: true,
            ..CreateContractRequest::default()
        };
        let created = client.contracts().create_contract(request).await.expect("create the contract").into_inner();
        let contract = created.contract.expect("a contract").contract_id;
        let copy_of_database = world.dir.join("copy.sqlite");
        let watch = Watch::start(client.clone(), contract.clone());
        let release = pb::ReleaseContractRequest { contract_id: contract.clone(), ..Default::default() };
        client.contracts().release_contract(release).await.expect("release the contract");
        story.tell("the contract begins");
        let now = Instant::now();
        Self {
            ids: created.tasks.iter().map(|task| task.task_id.clone()).collect(),
            server_up: true,
            heals: Vec::new(),
            next: 0,
            next_since: now,
            events_at_last: 0,
            looked: now,
            last_heal: now,
            tasks: created.tasks,
            daemons: Vec::new(),
            fired: Vec::new(),
            plan,
            world,
            repo,
            machines,
            client,
            contract,
            story,
            watch,
            cluster,
            server_clock,
            copy_of_database,
        }
    }

    /// Goes on until the contract is done and everything has healed.
    pub async fn go_on_to_the_end(&mut self) -> Result<(), String> {
        let mut done = false;
        loop {
            tokio::time::sleep(TURN).await;
            self.keep_running()?;
            self.heal_what_is_due().await?;
            self.fire_what_is_next().await?;
            let all_fired = self.next == self.plan.faults.len();
            let all_healed = self.fired.iter().all(|fired| fired.healed);
            if all_fired && (all_healed || !self.plan.gate_after_heal) {
                self.open_gate();
            }
            if self.looked.elapsed() >= LOOK {
                self.looked = Instant::now();
                done = self.look().await?;
            }
            let all_recovered = self.fired.iter().all(|fired| fired.recovery.is_some() || !fired.is_measured());
            if done && all_fired && all_healed && all_recovered {
                return Ok(());
            }
            if all_fired && all_healed && self.last_heal.elapsed() > PATIENCE {
                return Err(format!(
                    "not at its end {PATIENCE:?} after the last fault has healed:{}",
                    self.why().await
                ));
            }
        }
    }

    fn open_gate(&self) {
        let gate = self.world.dir.join("gate");
        if !gate.exists() {
            fs::write(gate, "").expect("open the gate");
            self.story.tell("the gate opens");
        }
    }

    /// What a service manager does: starts again what has ended and should not have.
    fn keep_running(&mut self) -> Result<(), String> {
        if self.server_up && !self.world.server.is_running() {
            self.story.tell("the server has ended by itself; started again");
            if self.plan.cluster_is_hit() {
                self.world.launch_server();
            } else {
                return Err(format!("the server has ended by itself:\n{}", self.world.server.tail()));
            }
        }
        for machine in self.machines.iter().filter(|machine| machine.up) {
            let daemon = self.world.daemon(&machine.name);
            if !daemon.is_running() {
                return Err(format!("daemon {} has ended by itself:\n{}", machine.name, daemon.tail()));
            }
        }
        Ok(())
    }

    // === looking ===

    /// Looks at tasks and daemons; done when the contract is. A server that does not answer is looked at again.
    async fn look(&mut self) -> Result<bool, String> {
        let begun = Instant::now();
        let client = self.client.clone();
        let contract = self.contract.clone();
        let look = async {
            let list = pb::ListTasksRequest { contract_id: contract.clone(), page_size: 100, ..Default::default() };
            let tasks = client.tasks().list_tasks(list).await.ok()?.into_inner().tasks;
            let daemons = client.daemon_list().await.ok()?;
            let get = pb::GetContractRequest { contract_id: contract };
            let contract = client.contracts().get_contract(get).await.ok()?.into_inner().contract?;
            Some((tasks, daemons, contract))
        };
        let Ok(Some((tasks, daemons, contract))) = tokio::time::timeout(ANSWER, look).await else { return Ok(false) };
        (self.tasks, self.daemons) = (tasks, daemons);
        self.measure(begun);
        if self.fired.iter().all(|fired| fired.healed) {
            self.refuse_what_is_stuck()?;
        }
        self.nudge().await;
        Ok(contract.status() == ContractStatus::Done)
    }

    /// Who has gone on since a fault has fired.
    fn measure(&mut self, looked: Instant) {
        let gone: Vec<&String> = self.machines.iter().filter(|machine| machine.gone).map(|m| &m.name).collect();
        let (tasks, daemons, dir, jobs) = (&self.tasks, &self.daemons, &self.world.dir, &self.plan.jobs);
        for fired in self.fired.iter_mut().filter(|fired| fired.recovery.is_none() && fired.is_measured()) {
            let goes_on = |&(job, said): &(usize, u64)| {
                let name = &jobs[job].name;
                let is_done = tasks.iter().any(|task| name_of(task) == *name && task.status() == TaskStatus::Done);
                is_done || said_by(dir, name) > said
            };
            let is_back = |(name, epoch): &(String, i64)| {
                let needed = if fired.planned.kind.ends_sessions() { *epoch + 1 } else { *epoch };
                let is = |daemon: &&pb::Daemon| daemon.name == *name && daemon.status() == DaemonStatus::Attached;
                // Nobody waits for a machine that another fault has taken away meanwhile.
                gone.contains(&name) || daemons.iter().find(is).is_some_and(|daemon| daemon.session_epoch >= needed)
            };
            let begun_after = looked > fired.at;
            if begun_after && fired.affected.iter().all(goes_on) && fired.hit.iter().all(is_back) {
                fired.recovery = Some(fired.at.elapsed());
            }
        }
    }

    /// A wait that is over, or a task that has failed, when nothing is wrong any more.
    fn refuse_what_is_stuck(&self) -> Result<(), String> {
        let now = clock::now();
        // The server counts on from the latest time that its clock has shown, and waits are made of what it counts.
        let ahead = self.fired.iter().find_map(|fired| strike::sets_server_ahead(&fired.planned));
        let server = now.after(ahead.unwrap_or_default());
        for task in &self.tasks {
            if matches!(task.status(), TaskStatus::Failed | TaskStatus::Cancelled) {
                return Err(format!("{} is {}: {}", name_of(task), task.status().as_str_name(), task.error_message));
            }
            let until = task.not_before.as_ref().map(|at| at.seconds * 1_000_000 + i64::from(at.nanos / 1_000));
            let late =
                Duration::from_micros(until.map_or(0, |until| now.0.saturating_sub(until).max(0)).unsigned_abs());
            let wait =
                Duration::from_micros(until.map_or(0, |until| until.saturating_sub(server.0).max(0)).unsigned_abs());
            if wait > LONGEST_WAIT {
                return Err(format!("{} is to wait for {wait:?}: {}", name_of(task), task.reason));
            }
            if task.status() == TaskStatus::Pending && late > OVERDUE && self.last_heal.elapsed() > OVERDUE {
                return Err(format!("{} still waits {late:?} after its wait was over: {}", name_of(task), task.reason));
            }
        }
        Ok(())
    }

    /// What a person does who does not want to wait for a backoff, and who is asked whether to go on with a task under which
    /// daemons have died.
    async fn nudge(&self) {
        let (_, last) = self.watch.count();
        if last.is_some_and(|last| last.elapsed() < QUIET / 2) {
            return;
        }
        for task in &self.tasks {
            let waits = task.pending_reason() == PendingReason::Backoff;
            let held = task.pending_reason() == PendingReason::Held && task.reason.contains("daemons died");
            if task.status() == TaskStatus::Pending && (waits || held) {
                self.story.tell(format!("a person retries {} ({})", name_of(task), task.reason));
                let request = pb::RetryTaskRequest { task_id: task.task_id.clone(), ..Default::default() };
                // A server that is down is asked again.
                let _ = tokio::time::timeout(ANSWER, self.client.tasks().retry_task(request)).await;
            }
        }
    }

    /// What every task that is not done says of itself.
    async fn why(&self) -> String {
        let mut text = String::new();
        for task in self.tasks.iter().filter(|task| task.status() != TaskStatus::Done) {
            let request = pb::ExplainTaskRequest { task_id: task.task_id.clone() };
            let explained = self.client.tasks().explain_task(request).await;
            let summary = explained.map_or_else(|status| status.to_string(), |answer| answer.into_inner().summary);
            text.push_str(&format!("\n  {} {}: {summary}", name_of(task), task.status().as_str_name()));
        }
        text
    }

    // === firing ===

    async fn fire_what_is_next(&mut self) -> Result<(), String> {
        let Some(&planned) = self.plan.faults.get(self.next) else { return Ok(()) };
        let (count, last) = self.watch.count();
        let last = last.unwrap_or(self.next_since).max(self.next_since);
        let enough = count >= self.events_at_last + planned.events;
        if !(enough && last.elapsed() >= planned.delay || last.elapsed() >= QUIET) {
            return Ok(());
        }
        match self.fire(planned).await {
            Ok(fired) => {
                self.story.tell(format!("{:?} fires at {:?}, for {:?}", planned.kind, fired.hit, planned.hold));
                self.heals.push((Instant::now() + planned.hold, self.fired.len()));
                self.fired.push(fired);
                self.next += 1;
                self.next_since = Instant::now();
                self.events_at_last = count;
                Ok(())
            }
            Err(Miss::NotNow) if self.next_since.elapsed() < TARGET_PATIENCE => Ok(()),
            Err(Miss::NotNow) => Err(format!("{:?} finds nobody to hit:{}", planned.kind, self.why().await)),
            Err(Miss::Broken(why)) => Err(format!("{:?}: {why}", planned.kind)),
        }
    }

    /// The machine a fault is for: its own if it is well, else the next one that is.
    fn target(&self, planned: &Planned) -> Option<usize> {
        let fits = |at: &usize| {
            let machine = &self.machines[*at];
            let is_hit = self.fired.iter().any(|fired| !fired.healed && fired.hits(&machine.name));
            machine.up && !machine.gone && !is_hit && (!planned.kind.needs_agent() || !machine.agents().is_empty())
        };
        let count = self.machines.len();
        (0..count).map(|at| (at + planned.machine) % count).find(fits)
    }

    async fn fire(&mut self, planned: Planned) -> Result<Fired, Miss> {
        let kind = planned.kind;
        // One thing at a time at the server and at its database: a fault there has to be able to see that it works.
        let server_is_hit = self.fired.iter().any(|fired| !fired.healed && fired.planned.kind.is_everywhere());
        if kind.is_everywhere() && (server_is_hit || !self.server_up) {
            return Err(Miss::NotNow);
        }
        if kind == Kind::Power && self.fired.iter().any(|fired| !fired.healed) {
            return Err(Miss::NotNow);
        }
        if kind == Kind::DatabaseOlder && !self.has_copy()? {
            return Err(Miss::NotNow);
        }
        let at = if kind.is_everywhere() { None } else { Some(self.target(&planned).ok_or(Miss::NotNow)?) };
        let hit: Vec<String> = match at {
            Some(at) => vec![self.machines[at].name.clone()],
            None => {
                self.machines.iter().filter(|machine| !machine.gone && machine.up).map(|m| m.name.clone()).collect()
            }
        };
        let affected = self.at_work(&hit);
        let epochs = hit.into_iter().map(|name| {
            let epoch = self.daemons.iter().find(|daemon| daemon.name == name).map_or(0, |daemon| daemon.session_epoch);
            (name, epoch)
        });
        let mut fired = Fired {
            planned,
            at: Instant::now(),
            wall: clock::now(),
            healed: false,
            affected,
            hit: epochs.collect(),
            wounds: Vec::new(),
            harmed: at.map_or(0, |at| harm(kind, &self.machines[at])),
            recovery: None,
        };
        self.strike(kind, at, &mut fired).await?;
        Ok(fired)
    }

    /// Tasks that run on these daemons, as of the last look, with how much their agents have said.
    fn at_work(&self, daemons: &[String]) -> Vec<(usize, u64)> {
        let jobs = self.plan.jobs.iter().enumerate();
        let at_work = jobs.filter(|(_, job)| {
            let is = |task: &&Task| name_of(task) == job.name && task.status() == TaskStatus::Running;
            self.tasks.iter().find(is).is_some_and(|task| daemons.contains(&task.daemon_name))
        });
        at_work.map(|(at, job)| (at, said_by(&self.world.dir, &job.name))).collect()
    }

    pub(super) fn set_server_up(&mut self, up: bool) {
        self.server_up = up;
    }

    pub(super) fn server_clock(&self) -> &PathBuf {
        &self.server_clock
    }

    pub(super) fn copy_of_database(&self) -> &PathBuf {
        &self.copy_of_database
    }

    /// A copy of the database for [`Kind::DatabaseOlder`], made when it is first asked for.
    fn has_copy(&self) -> Result<bool, Miss> {
        if self.copy_of_database.exists() {
            let age = fs::metadata(&self.copy_of_database)?.modified()?.elapsed().unwrap_or_default();
            return Ok(age >= AGE_OF_COPY);
        }
        let database = rusqlite::Connection::open(self.database())?;
        database.execute("VACUUM INTO ?1", [self.copy_of_database.display().to_string()])?;
        self.story.tell("the database is copied");
        Ok(false)
    }

    /// The server's SQLite file.
    pub fn database(&self) -> PathBuf {
        self.world.server_state().join("makima.sqlite")
    }

    /// Follows the event log anew, from where it stands.
    pub(super) fn watch_again(&mut self) {
        self.watch = Watch::start(self.client.clone(), self.contract.clone());
        self.events_at_last = 0;
        // Sessions are numbered from where they were then.
        self.fired.iter_mut().flat_map(|fired| &mut fired.hit).for_each(|(_, epoch)| *epoch = -1);
    }

    // === healing ===

    async fn heal_what_is_due(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.heals).into_iter().partition(|(at, _)| *at <= now);
        self.heals = later;
        for (_, index) in due {
            if !self.heal(index).await? {
                self.heals.push((now + TURN, index));
                continue;
            }
            self.fired[index].healed = true;
            self.last_heal = Instant::now();
            self.story.tell(format!("{:?} has healed", self.fired[index].planned.kind));
        }
        Ok(())
    }

    /// What the wire has done since a fault was fired.
    pub(super) fn harm_since(&self, index: usize) -> usize {
        let fired = &self.fired[index];
        let machine = self.machines.iter().find(|machine| fired.hits(&machine.name));
        machine.map_or(0, |machine| harm(fired.planned.kind, machine) - fired.harmed)
    }

    /// Sets all clocks right.
    pub(super) fn set_clocks_right(&self) {
        set_clock(&self.server_clock, None, false);
        self.machines.iter().for_each(|machine| set_clock(&machine.clock, None, false));
    }

    /// What server and daemons have logged.
    pub fn logs(&mut self) -> Vec<(String, String)> {
        let mut logs = vec![("server".to_owned(), self.world.server.output())];
        for machine in &self.machines {
            logs.push((machine.name.clone(), self.world.daemon(&machine.name).output()));
        }
        logs
    }

    /// Everything that has been said outside of worktrees, by task.
    pub fn said(&self) -> BTreeMap<String, String> {
        let read = |name: &String| fs::read_to_string(self.world.dir.join("progress").join(name)).unwrap_or_default();
        self.plan.jobs.iter().map(|job| (job.name.clone(), read(&job.name))).collect()
    }
}

impl Fired {
    /// It hit this daemon.
    pub fn hits(&self, daemon: &str) -> bool {
        self.hit.iter().any(|(name, _)| name == daemon)
    }

    pub(super) fn wound(&mut self, found: process::Found) {
        self.wounds.push(found);
    }

    pub(super) fn wounds(&self) -> &[process::Found] {
        &self.wounds
    }

    /// Somebody comes back from it: what a machine that is gone had is done elsewhere, and that it is done is seen at the end.
    pub fn is_measured(&self) -> bool {
        self.planned.kind != Kind::MachineGone
    }
}

impl Plan {
    /// The database itself is hit: a server that ends when it cannot reach it is started again.
    fn cluster_is_hit(&self) -> bool {
        self.has(Kind::KillPostgres) || self.has(Kind::StopPostgres)
    }
}

/// Why a fault did not fire.
pub enum Miss {
    /// There is nobody it could hit.
    NotNow,
    /// What should have happened did not.
    Broken(String),
}

impl From<rusqlite::Error> for Miss {
    fn from(error: rusqlite::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<std::io::Error> for Miss {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// What a machine's wire has done of what a fault is there for. One that ends sessions by swallowing has not hit anything before
/// it has swallowed something of a session's connection: bulk has one of its own, and gets over it by itself.
fn harm(kind: Kind, machine: &Machine) -> usize {
    match kind {
        Kind::Deaf | Kind::Mute => machine.wire.sessions_swallowed(),
        _ => machine.wire.harmed(),
    }
}

/// How much a task's agents have said outside of their worktrees.
fn said_by(dir: &std::path::Path, name: &str) -> u64 {
    fs::metadata(dir.join("progress").join(name)).map_or(0, |found| found.len())
}

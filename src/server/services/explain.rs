//! What stands around tasks: loaded once for a whole page, so that saying of a thousand tasks why they wait takes a constant
//! number of reads, and nothing at all where nothing waits.

use std::collections::{HashMap, HashSet};

use super::{Api, store_error};
use crate::{
    domain::{
        ClassId, ContractId, DaemonId, KeyId, OwnerId, TaskId, Timestamp,
        attempt::Attempt,
        contract::Contract,
        daemon::Requirements,
        explain::{self, Around, Dependency, Explained, Member},
        task::{Task, TaskState, TaskStatus},
    },
    runtime::clock,
    server::ledger,
    store::{Brief, Edge, TaskFilter, Tx},
    wire::{self, pb, status::ApiResult},
};

/// Daemons that are looked at to say why a task waits: what an owner may reasonably have.
const MAX_FLEET: i64 = 10_000;
/// Edges that are followed to find what blocks the tasks of an answer. Where there are more, a task may be said to wait
/// that is blocked.
const MAX_EDGES: i64 = 50_000;
/// Blockers that are looked for at a time.
const MAX_BLOCKERS: usize = 16;
/// Blockers that are named of a task.
const NAMED_BLOCKERS: usize = 4;

/// Keys whose labels are looked up for one answer; the others are called by their ids.
const MAX_ACTORS: usize = 16;
/// Tasks that are named for holding the places of a contract.
const NAMED_HOLDERS: i64 = 3;

/// How much is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// For lists: counts rather than names.
    Brief,
    /// Names of what is waited for.
    Full,
}

/// What stands around tasks at one instant.
#[derive(Debug)]
pub struct Surroundings {
    now: Timestamp,
    contracts: HashMap<ContractId, Contract>,
    depends_on: HashMap<TaskId, Vec<TaskId>>,
    unmet: HashMap<TaskId, Vec<Dependency>>,
    blockers: HashMap<TaskId, Vec<Dependency>>,
    fleet: Vec<Member>,
    names: HashMap<DaemonId, String>,
    /// Newest attempts that live.
    attempts: HashMap<TaskId, Attempt>,
    /// Names of tasks that hold the places of a contract that has none left.
    holders: HashMap<ContractId, Vec<String>>,
    /// What to call those who held or cancelled something.
    actors: HashMap<String, String>,
}

impl Surroundings {
    /// What stands around tasks that have just been made, where the ledger's answer and the attached daemons say all of it,
    /// which is nearly always: a task is then made without reading anything. `None`: [`Self::load`] it.
    pub fn of_new(api: &Api, contract: &Contract, tasks: &[Task], edges: &[(TaskId, TaskId)]) -> Option<Self> {
        let bears_names = contract.held.is_some() || contract.cancelled.is_some() || has_bad_ends(contract);
        if bears_names || tasks.iter().any(|task| task.attempt > 0 || task.status() != TaskStatus::Pending) {
            return None;
        }
        let mut around = Self { contracts: HashMap::from([(contract.id, contract.clone())]), ..Self::nothing() };
        for (dependent, dependency) in edges {
            around.depends_on.entry(*dependent).or_default().push(*dependency);
        }
        around.depends_on.values_mut().for_each(|dependencies| dependencies.sort_unstable());
        if contract.live < contract.limits.concurrency && tasks.iter().any(|task| task.unmet == 0) {
            let fleet = api.ledger.fleet();
            let own = || fleet.iter().filter(|(_, member)| member.owner == contract.owner);
            let needs =
                tasks.iter().filter(|task| task.unmet == 0).map(|task| (task.class, explain::requirements(task)));
            let needs: HashMap<ClassId, Requirements> = needs.collect();
            // One that has room for all of them is as good as a fleet of thousands.
            let has_room = |member: &ledger::Member| {
                member.takes_work()
                    && member.free() > 0
                    && needs.values().all(|needs| needs.lacks(&member.card).is_empty())
            };
            let roomy = own().find(|(_, member)| has_room(member));
            let members = roomy.into_iter().chain(own().filter(|_| roomy.is_none()));
            around.fleet = members.map(|(id, member)| attached_member(id, member, around.now)).collect();
            // Of those that are not attached the database knows.
            if around.fleet.is_empty() {
                return None;
            }
        }
        Some(around)
    }

    fn nothing() -> Self {
        Self {
            now: clock::now(),
            contracts: HashMap::new(),
            depends_on: HashMap::new(),
            unmet: HashMap::new(),
            blockers: HashMap::new(),
            fleet: Vec::new(),
            names: HashMap::new(),
            attempts: HashMap::new(),
            holders: HashMap::new(),
            actors: HashMap::new(),
        }
    }

    /// Loads what stands around these tasks of an owner.
    pub async fn load(api: &Api, tx: &mut Tx, owner: OwnerId, tasks: &[Task], detail: Detail) -> ApiResult<Self> {
        let mut around = Self::nothing();
        if tasks.is_empty() {
            return Ok(around);
        }
        let contracts: HashSet<ContractId> = tasks.iter().map(|task| task.contract).collect();
        let contracts: Vec<ContractId> = contracts.into_iter().collect();
        let contracts = tx.contracts_fetch(&contracts).await.map_err(store_error)?;
        around.contracts = contracts.into_iter().map(|contract| (contract.id, contract)).collect();

        let ids: Vec<TaskId> = tasks.iter().map(|task| task.id).collect();
        let edges = tx.edges_from(&ids).await.map_err(store_error)?;
        for edge in &edges {
            around.depends_on.entry(edge.dependent).or_default().push(edge.dependency);
        }
        for dependencies in around.depends_on.values_mut() {
            dependencies.sort();
        }
        let pending: Vec<&Task> = tasks.iter().filter(|task| task.status() == TaskStatus::Pending).collect();
        if detail == Detail::Full {
            around.load_unmet(tx, &edges).await?;
        }
        around.load_blockers(tx, &pending, detail).await?;
        around.load_attempts(tx, tasks).await?;
        around.load_actors(tx, tasks).await?;
        if detail == Detail::Full {
            around.load_holders(tx, owner, &pending).await?;
        }
        let asks_fleet = detail == Detail::Full || pending.iter().any(|task| task.unmet == 0);
        if asks_fleet {
            around.load_fleet(api, tx, owner, detail).await?;
        }
        let daemons: HashSet<DaemonId> = tasks.iter().filter_map(|task| task.daemon).collect();
        let daemons: Vec<DaemonId> = daemons.into_iter().collect();
        around.names = tx.daemon_names(&daemons).await.map_err(store_error)?.into_iter().collect();
        Ok(around)
    }

    async fn load_unmet(&mut self, tx: &mut Tx, edges: &[Edge]) -> ApiResult<()> {
        let wanted: Vec<TaskId> = edges.iter().filter(|edge| !edge.satisfied).map(|edge| edge.dependency).collect();
        let briefs = briefs(tx, &wanted).await?;
        for edge in edges.iter().filter(|edge| !edge.satisfied) {
            if let Some(brief) = briefs.get(&edge.dependency) {
                self.unmet.entry(edge.dependent).or_default().push(dependency(brief));
            }
        }
        Ok(())
    }

    /// Looks upstream, but only in contracts where something has ended badly.
    async fn load_blockers(&mut self, tx: &mut Tx, pending: &[&Task], detail: Detail) -> ApiResult<()> {
        let may_be_blocked = |task: &&&Task| {
            let contract = self.contracts.get(&task.contract);
            task.unmet > 0 && contract.is_some_and(has_bad_ends)
        };
        let suspects: Vec<TaskId> = pending.iter().filter(may_be_blocked).map(|task| task.id).collect();
        if suspects.is_empty() {
            return Ok(());
        }
        let edges = tx.edges_unmet(&suspects, MAX_EDGES).await.map_err(store_error)?;
        let upstream: HashSet<TaskId> = edges.iter().map(|edge| edge.dependency).collect();
        let upstream: Vec<TaskId> = upstream.into_iter().collect();
        let briefs = briefs(tx, &upstream).await?;
        let mut waiting: HashMap<TaskId, Vec<TaskId>> = HashMap::new();
        for edge in &edges {
            waiting.entry(edge.dependency).or_default().push(edge.dependent);
        }
        let mut bad: Vec<&Brief> = briefs
            .values()
            .filter(|brief| matches!(brief.status, TaskStatus::Failed | TaskStatus::Cancelled))
            .collect();
        bad.sort_by_key(|brief| brief.id);
        let named = if detail == Detail::Full { MAX_BLOCKERS } else { NAMED_BLOCKERS };
        let suspects: HashSet<TaskId> = suspects.into_iter().collect();
        // Each blocked task hears of some of its blockers; that it is blocked at all is found from any of them, so every
        // one is walked from until all suspects have one.
        for (index, blocker) in bad.into_iter().enumerate() {
            if index >= MAX_BLOCKERS && suspects.iter().all(|task| self.blockers.contains_key(task)) {
                break;
            }
            let mut seen = HashSet::from([blocker.id]);
            let mut next = vec![blocker.id];
            while let Some(task) = next.pop() {
                for dependent in waiting.get(&task).into_iter().flatten().filter(|task| seen.insert(**task)) {
                    if suspects.contains(dependent) {
                        let blockers = self.blockers.entry(*dependent).or_default();
                        if blockers.len() < named {
                            blockers.push(dependency(blocker));
                        }
                    }
                    next.push(*dependent);
                }
            }
        }
        Ok(())
    }

    /// The attempts that have tasks in their hands, or are still being ended.
    async fn load_attempts(&mut self, tx: &mut Tx, tasks: &[Task]) -> ApiResult<()> {
        let newest = |task: &Task| match (task.status(), task.ending) {
            (_, Some(ending)) => Some((task.id, ending)),
            (TaskStatus::Pending, None) => None,
            (status, None) => (!status.is_final()).then_some((task.id, task.attempt)),
        };
        let wanted: Vec<(TaskId, u32)> = tasks.iter().filter_map(newest).collect();
        let found = tx.attempts_numbered(&wanted).await.map_err(store_error)?;
        self.attempts = found.into_iter().filter(Attempt::is_live).map(|it| (it.task, it)).collect();
        Ok(())
    }

    /// Labels of the keys with which something was held or cancelled.
    async fn load_actors(&mut self, tx: &mut Tx, tasks: &[Task]) -> ApiResult<()> {
        let of_tasks = tasks.iter().filter_map(|task| match &task.state {
            TaskState::Pending { held: Some(held), .. } | TaskState::Paused { held } => Some(&held.by),
            TaskState::Cancelled { by, .. } => Some(by),
            _ => None,
        });
        let of_contracts = self.contracts.values().flat_map(|contract| {
            let held = contract.held.as_ref().map(|held| &held.by);
            held.into_iter().chain(contract.cancelled.as_ref().map(|cancelled| &cancelled.by))
        });
        let actors: HashSet<String> = of_tasks.chain(of_contracts).cloned().collect();
        let keys = actors.into_iter().filter_map(|actor| Some((actor.strip_prefix("key:")?.parse().ok()?, actor)));
        let keys: Vec<(KeyId, String)> = keys.take(MAX_ACTORS).collect();
        for (id, actor) in keys {
            let key = tx.key_fetch(id).await.map_err(store_error)?;
            if let Some(key) = key.filter(|key| !key.label.is_empty()) {
                let named = format!("the key `{}` ({actor})", key.label);
                self.actors.insert(actor, named);
            }
        }
        Ok(())
    }

    /// Who has the places of contracts in which a pending task finds none.
    async fn load_holders(&mut self, tx: &mut Tx, owner: OwnerId, pending: &[&Task]) -> ApiResult<()> {
        let full = |id: &ContractId| self.contracts.get(id).is_some_and(|it| it.live >= it.limits.concurrency);
        let contracts: HashSet<ContractId> = pending.iter().map(|task| task.contract).filter(full).collect();
        let live = TaskStatus::ALL.into_iter().filter(|it| !it.is_final() && *it != TaskStatus::Pending);
        let live: Vec<TaskStatus> = live.collect();
        for contract in contracts {
            let statuses = Some(live.clone());
            let filter = TaskFilter { owner, contract: Some(contract), statuses, after: None, hidden: true };
            let tasks = tx.tasks_list(&filter, NAMED_HOLDERS).await.map_err(store_error)?;
            self.holders.insert(contract, tasks.iter().map(|task| task.spec.name.clone()).collect());
        }
        Ok(())
    }

    async fn load_fleet(&mut self, api: &Api, tx: &mut Tx, owner: OwnerId, detail: Detail) -> ApiResult<()> {
        let daemons = tx.daemons_list(owner, None, MAX_FLEET).await.map_err(store_error)?;
        // What is not attached has no slots to give; what it still holds is only worth a read where it is shown.
        let mut counts: HashMap<DaemonId, u32> = HashMap::new();
        if detail == Detail::Full {
            let ids: Vec<DaemonId> = daemons.iter().map(|daemon| daemon.id).collect();
            counts = tx.attempts_live_counts(&ids).await.map_err(store_error)?.into_iter().collect();
        }
        let attached = api.ledger.fleet();
        self.fleet = daemons
            .into_iter()
            .map(|daemon| match attached.get(daemon.id) {
                Some(here) => attached_member(daemon.id, here, daemon.last_seen),
                None => Member {
                    live: counts.get(&daemon.id).copied().unwrap_or(0),
                    id: daemon.id,
                    card: daemon.card,
                    attached: false,
                    draining: daemon.draining,
                    last_seen: daemon.last_seen,
                    ready: false,
                },
            })
            .collect();
        Ok(())
    }

    /// Where a task stands and why.
    pub fn explain(&self, task: &Task) -> Explained {
        match self.around(task) {
            Some(around) => explain::explain(task, &around),
            None => Explained::default(),
        }
    }

    /// What somebody can do about it.
    pub fn actions(&self, task: &Task, explained: &Explained) -> Vec<String> {
        self.around(task).map(|around| explain::actions(task, explained, &around)).unwrap_or_default()
    }

    /// How the owner's daemons fit a task.
    pub fn fits(&self, task: &Task) -> Vec<pb::DaemonFit> {
        let fit = |member: &Member| {
            let fit = explain::fit(task, member, self.now);
            pb::DaemonFit {
                daemon_id: member.id.to_string(),
                name: member.card.name.clone(),
                fits: fit.fits,
                lacks: fit.lacks,
            }
        };
        self.fleet.iter().map(fit).collect()
    }

    /// Dependencies of a task that are not complete; with [`Detail::Full`] only.
    pub fn waiting_for(&self, task: &Task) -> Vec<pb::Dependency> {
        let unmet = self.unmet.get(&task.id).into_iter().flatten();
        unmet.map(|it| wire::task::dependency(it.task, &it.name, it.status, false)).collect()
    }

    /// A task as a caller sees it.
    pub fn view(&self, task: &Task) -> pb::Task {
        wire::task::task(wire::task::View {
            task,
            depends_on: self.depends_on(task.id),
            explained: &self.explain(task),
            daemon_name: task.daemon.map_or("", |id| self.daemon_name(id)),
        })
    }

    /// What a task waits for, by id.
    pub fn depends_on(&self, task: TaskId) -> &[TaskId] {
        self.depends_on.get(&task).map_or(&[], Vec::as_slice)
    }

    /// The name of a daemon of these tasks.
    pub fn daemon_name(&self, daemon: DaemonId) -> &str {
        self.names.get(&daemon).map_or("", String::as_str)
    }

    fn around(&self, task: &Task) -> Option<Around<'_>> {
        Some(Around {
            contract: self.contracts.get(&task.contract)?,
            unmet: self.unmet.get(&task.id).map_or(&[], Vec::as_slice),
            blockers: self.blockers.get(&task.id).map_or(&[], Vec::as_slice),
            fleet: &self.fleet,
            attempt: self.attempts.get(&task.id),
            holders: self.holders.get(&task.contract).map_or(&[], Vec::as_slice),
            actors: &self.actors,
            names: &self.names,
            now: self.now,
        })
    }
}

/// Of these contracts, those whose remaining tasks are all blocked for ever.
pub async fn stuck(tx: &mut Tx, contracts: &[Contract]) -> ApiResult<HashSet<ContractId>> {
    let suspects: Vec<ContractId> = contracts
        .iter()
        .filter(|contract| has_bad_ends(contract) && contract.counts.unfinished() > 0 && contract.live == 0)
        .map(|contract| contract.id)
        .collect();
    if suspects.is_empty() {
        return Ok(HashSet::new());
    }
    let moving: HashSet<ContractId> = tx.contracts_moving(&suspects).await.map_err(store_error)?.into_iter().collect();
    Ok(suspects.into_iter().filter(|contract| !moving.contains(contract)).collect())
}

/// One contract as a caller sees it.
pub async fn contract_view(tx: &mut Tx, contract: &Contract) -> ApiResult<pb::Contract> {
    let stuck = stuck(tx, std::slice::from_ref(contract)).await?;
    Ok(wire::contract::contract(contract, stuck.contains(&contract.id)))
}

fn attached_member(id: DaemonId, member: &ledger::Member, last_seen: Timestamp) -> Member {
    Member {
        id,
        card: member.card.clone(),
        attached: true,
        draining: member.draining,
        last_seen,
        ready: member.ready,
        live: u32::try_from(member.live.len()).unwrap_or(u32::MAX),
    }
}

fn has_bad_ends(contract: &Contract) -> bool {
    contract.counts.of(TaskStatus::Failed) + contract.counts.of(TaskStatus::Cancelled) > 0
}

async fn briefs(tx: &mut Tx, tasks: &[TaskId]) -> ApiResult<HashMap<TaskId, Brief>> {
    let briefs = tx.briefs_fetch(tasks).await.map_err(store_error)?;
    Ok(briefs.into_iter().map(|brief| (brief.id, brief)).collect())
}

fn dependency(brief: &Brief) -> Dependency {
    Dependency { task: brief.id, name: brief.name.clone(), status: brief.status }
}

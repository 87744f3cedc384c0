//! Filling the working set: what a batch of operations needs, read in a constant number of statements, after the lock.
//!
//! ```text
//!   operations ──> keys ──> daemons, attempts ──> tasks ──> edges ──> neighbours ──> contracts
//! ```
//!
//! Each step may add keys for the next (an attempt names its task, an edge its other end); none goes back.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::{
    op::{Op, Request},
    rows::Rows,
    verbs::fork_names,
    work::Work,
};
use crate::{
    domain::{
        AttemptId, CheckpointId, ContractId, DaemonId, KeyId, OwnerId, TaskId, attempt::AttemptStatus, key::KeyKind,
        report::Report, transition::RetryFrom,
    },
    store::{Due as _, Edge, Result},
};

/// Attempts, waits and cancellations that one sweep takes; the next takes the rest.
const SWEEP_PORTION: i64 = 500;

/// Good keys that are looked at for another admin key; the newest ones come first.
const ADMIN_KEYS: i64 = 1_000;

/// What operations need.
#[derive(Debug, Default)]
struct Keys {
    requests: HashSet<(OwnerId, String)>,
    owners: HashSet<String>,
    keys: HashSet<KeyId>,
    daemons: HashSet<DaemonId>,
    /// Daemons whose live attempts are needed.
    daemons_live: HashSet<DaemonId>,
    daemon_names: HashSet<(OwnerId, String)>,
    attempts: HashSet<AttemptId>,
    attempt_numbers: HashSet<(TaskId, u32)>,
    tasks: HashSet<TaskId>,
    /// Tasks whose status may change to or from complete: their dependents are needed.
    downstream: HashSet<TaskId>,
    /// Tasks whose own dependencies are needed.
    upstream: HashSet<TaskId>,
    /// Tasks whose newest attempt is needed.
    newest: HashSet<TaskId>,
    /// Attempts whose results' packs may be here.
    packs: HashSet<AttemptId>,
    checkpoints: HashSet<CheckpointId>,
    /// Checkpoints that a task is to begin from: the tasks they are of are needed too.
    origins: HashSet<CheckpointId>,
    /// Tasks whose own newest checkpoint is needed, and names for another of them.
    forks: HashSet<TaskId>,
    /// Tasks all of whose attempts are needed.
    all_attempts: HashSet<TaskId>,
    /// Tasks with everything that depends on them.
    closures: HashSet<TaskId>,
    /// Tasks whose whole ancestry is needed, to see a cycle.
    ancestry: HashSet<TaskId>,
    contracts: HashSet<ContractId>,
    names: HashSet<(ContractId, String)>,
    /// Names to look up in the contract of a task that is not loaded yet.
    names_beside: Vec<(TaskId, String)>,
    sweep: bool,
}

impl Keys {
    fn of(requests: &[&Request]) -> Self {
        let mut keys = Self::default();
        for request in requests {
            if let Some(repeat) = &request.repeat {
                keys.requests.insert((repeat.owner, repeat.id.clone()));
            }
            keys.add(&request.op);
        }
        keys
    }

    fn add(&mut self, op: &Op) {
        match op {
            Op::CreateContract(new) => {
                let origins = new.tasks.iter().filter_map(|task| task.spec.branched_from);
                self.origins.extend(origins.map(|from| from.checkpoint));
            }
            Op::CreateTasks(new) => {
                if let Some(contract) = new.contract {
                    self.contracts.insert(contract);
                    for task in &new.tasks {
                        self.names.insert((contract, task.spec.name.clone()));
                        for dependency in &task.depends_on {
                            self.names.insert((contract, dependency.clone()));
                        }
                    }
                }
                for task in &new.tasks {
                    let named = task.depends_on.iter().filter_map(|name| task_id(name));
                    self.tasks.extend(named.clone());
                    // Another call of the same batch may have one of them wait for the new one.
                    self.ancestry.extend(named);
                    self.tasks.extend(task.spec.parent);
                    self.origins.extend(task.spec.branched_from.map(|from| from.checkpoint));
                }
            }
            Op::UpdateContract(update) => {
                self.contracts.insert(update.contract);
            }
            Op::HoldContract { contract, .. }
            | Op::ReleaseContract { contract, .. }
            | Op::CancelContract { contract, .. } => {
                self.contracts.insert(*contract);
            }
            Op::UpdateTask(update) => {
                self.tasks.insert(update.task);
                self.newest.insert(update.task);
                self.names_beside.extend(update.name.iter().map(|name| (update.task, name.clone())));
            }
            Op::ChangeDependencies { task, add, remove, .. } => {
                self.tasks.insert(*task);
                self.newest.insert(*task);
                self.upstream.insert(*task);
                for name in add.iter().chain(remove) {
                    match task_id(name) {
                        Some(id) => {
                            self.tasks.insert(id);
                            self.ancestry.insert(id);
                        }
                        None => self.names_beside.push((*task, name.clone())),
                    }
                }
            }
            Op::CancelTask { task, cascade, .. } => {
                self.tasks.insert(*task);
                self.newest.insert(*task);
                self.downstream.insert(*task);
                if *cascade {
                    self.closures.insert(*task);
                }
            }
            Op::RetryTask { task, from, .. } => {
                if let RetryFrom::Checkpoint(checkpoint) = from {
                    self.origins.insert(*checkpoint);
                }
                self.tasks.insert(*task);
                self.newest.insert(*task);
                self.upstream.insert(*task);
                self.downstream.insert(*task);
            }
            Op::ReassignTask { task, to, .. } => {
                self.tasks.insert(*task);
                self.newest.insert(*task);
                self.daemons.extend(*to);
            }
            Op::TakeCheckpoint { task, .. } => {
                self.tasks.insert(*task);
                self.newest.insert(*task);
            }
            Op::ForceRelease { task, .. } => {
                self.tasks.insert(*task);
                self.all_attempts.insert(*task);
            }
            Op::ForkTask(fork) => {
                self.tasks.insert(fork.task);
                self.upstream.insert(fork.task);
                self.checkpoints.extend(fork.checkpoint);
                self.forks.insert(fork.task);
                self.ancestry.insert(fork.task);
                self.names_beside.extend(fork.name.iter().map(|name| (fork.task, name.clone())));
            }
            Op::DismissTask { task, .. } => {
                self.tasks.insert(*task);
            }
            Op::Drain { daemon, .. } | Op::Ready { daemon, .. } | Op::Accepting { daemon, .. } => {
                self.daemons.insert(*daemon);
            }
            Op::CreateKey { owner, .. } => self.owners.extend(owner.clone()),
            Op::RevokeKey { key } => {
                self.keys.insert(*key);
            }
            Op::Attach(attach) => {
                let hello = &attach.hello;
                self.daemons.insert(hello.daemon);
                self.daemons_live.insert(hello.daemon);
                self.daemon_names.insert((attach.owner, hello.card.name.clone()));
                self.attempt_numbers
                    .extend(hello.inventory.iter().map(|item| (item.attempt.task, item.attempt.number)));
            }
            Op::Seen(seen) => self.daemons.extend(seen.iter().map(|(daemon, ..)| *daemon)),
            Op::Answered { daemon, attempt, .. } => {
                self.daemons.insert(*daemon);
                self.attempts.insert(attempt.id);
            }
            Op::Message { daemon, message } => {
                self.daemons.insert(*daemon);
                self.attempts.insert(message.attempt.id);
                if let Report::Complete(complete) = &message.report
                    && let Ok(result) = &complete.outcome
                {
                    self.downstream.insert(message.attempt.task);
                    if result.is_awaited() {
                        self.packs.insert(message.attempt.id);
                    }
                }
            }
            Op::CheckpointStored(checkpoint) => {
                self.attempts.insert(checkpoint.attempt.id);
                self.checkpoints.insert(checkpoint.id);
                self.checkpoints.extend(checkpoint.about.base);
            }
            Op::ResultStored { attempt, .. } => {
                self.attempts.insert(attempt.id);
                self.downstream.insert(attempt.task);
            }
            Op::DaemonLost { daemon, .. } => {
                self.daemons.insert(*daemon);
                self.daemons_live.insert(*daemon);
            }
            Op::Sweep => self.sweep = true,
        }
    }
}

/// A task named by its id.
pub(super) fn task_id(text: &str) -> Option<TaskId> {
    Uuid::parse_str(text).ok().map(TaskId)
}

impl Work {
    /// Reads what these operations need.
    pub(super) async fn load(&mut self, tx: &mut impl Rows, requests: &[&Request]) -> Result<()> {
        let mut keys = Keys::of(requests);
        if keys.sweep {
            self.load_due(tx, &mut keys).await?;
        }
        self.load_people(tx, &keys).await?;
        self.load_blobs(tx, &mut keys).await?;
        self.load_daemons(tx, &mut keys).await?;
        self.load_tasks(tx, &mut keys).await?;
        self.load_graph(tx, &mut keys).await?;
        self.load_contracts(tx, &keys).await
    }

    async fn load_due(&mut self, tx: &mut impl Rows, keys: &mut Keys) -> Result<()> {
        self.due_attempts = tx.attempts_due(self.now, SWEEP_PORTION).await?;
        self.due_tasks = tx.tasks_wait_over(self.now, SWEEP_PORTION).await?;
        for contract in tx.contracts_cancelling(8).await? {
            let tasks = tx.tasks_unfinished(contract.id, None, SWEEP_PORTION).await?;
            let ids: Vec<TaskId> = tasks.iter().map(|task| task.id).collect();
            keys.tasks.extend(&ids);
            keys.newest.extend(&ids);
            self.cancelling.push((contract.id, ids));
            for task in tasks {
                self.task_loaded(task);
            }
            self.contracts.loaded(contract.id, contract);
        }
        let full = |len: usize| i64::try_from(len).unwrap_or(i64::MAX) >= SWEEP_PORTION;
        self.more = full(self.due_attempts.len())
            || full(self.due_tasks.len())
            || self.cancelling.iter().any(|(_, tasks)| full(tasks.len()));
        self.next_due = tx.next_due(self.now).await?;
        keys.attempts.extend(&self.due_attempts);
        keys.tasks.extend(&self.due_tasks);
        Ok(())
    }

    async fn load_blobs(&mut self, tx: &mut impl Rows, keys: &mut Keys) -> Result<()> {
        let packs: Vec<_> = keys.packs.iter().copied().collect();
        self.packs.extend(tx.blobs_of_results(&packs).await?);
        self.load_checkpoints(tx, keys.checkpoints.iter().chain(&keys.origins).copied()).await?;
        let origins = keys.origins.iter().filter_map(|id| self.checkpoints.get(id));
        keys.tasks.extend(origins.map(|checkpoint| checkpoint.attempt.task));
        Ok(())
    }

    /// Reads checkpoints that are not here yet.
    pub(super) async fn load_checkpoints(
        &mut self,
        tx: &mut impl Rows,
        ids: impl Iterator<Item = CheckpointId>,
    ) -> Result<()> {
        let missing: Vec<_> = ids.filter(|id| !self.checkpoints.contains_key(id)).collect();
        let found = tx.checkpoints_fetch(&missing).await?;
        self.checkpoints.extend(found.into_iter().map(|checkpoint| (checkpoint.id, checkpoint)));
        Ok(())
    }

    async fn load_people(&mut self, tx: &mut impl Rows, keys: &Keys) -> Result<()> {
        let wanted: Vec<_> = keys.requests.iter().cloned().collect();
        for remembered in tx.requests_fetch(&wanted).await? {
            self.remembered.insert((remembered.owner, remembered.id.clone()), remembered);
        }
        for name in &keys.owners {
            let owner = tx.owner_named(name).await?;
            self.owners.insert(name.clone(), owner);
        }
        if !keys.keys.is_empty() {
            let good = tx.keys_list(false, None, ADMIN_KEYS).await?;
            self.admins = good.iter().filter(|key| key.kind == KeyKind::Admin).map(|key| key.id).collect();
        }
        for id in &keys.keys {
            if let Some(key) = tx.key_fetch(*id).await? {
                self.keys.insert(*id, key);
            }
        }
        for (owner, name) in &keys.daemon_names {
            if let Some(daemon) = tx.daemon_named(*owner, name).await? {
                self.names_taken.insert((*owner, name.clone()), daemon.id);
                self.daemons.loaded(daemon.id, daemon);
            }
        }
        Ok(())
    }

    async fn load_daemons(&mut self, tx: &mut impl Rows, keys: &mut Keys) -> Result<()> {
        // What is remembered of a repeated request is answered from its things as they are now.
        for remembered in self.remembered.values() {
            keys.tasks.extend(&remembered.tasks);
            keys.contracts.extend(remembered.contract);
            keys.daemons.extend(remembered.daemon);
        }
        let daemons_live: Vec<_> = keys.daemons_live.iter().copied().collect();
        let (here, attempts): (Vec<_>, Vec<_>) = keys.attempts.iter().partition(|id| self.has_attempt(**id));
        for attempt in here.into_iter().filter_map(|id: AttemptId| self.attempts.get(id)) {
            keys.tasks.insert(attempt.task);
            keys.contracts.insert(attempt.contract);
            keys.daemons.insert(attempt.daemon);
        }
        let numbered: Vec<_> = keys.attempt_numbers.iter().copied().collect();
        let mut loaded = tx.attempts_live(&daemons_live).await?;
        loaded.extend(tx.attempts_fetch(&attempts).await?);
        loaded.extend(tx.attempts_numbered(&numbered).await?);
        for task in &keys.all_attempts {
            loaded.extend(tx.attempts_of_task(*task).await?);
        }
        for attempt in loaded {
            keys.tasks.insert(attempt.task);
            keys.contracts.insert(attempt.contract);
            keys.daemons.insert(attempt.daemon);
            self.attempt_loaded(attempt);
        }
        let attaching: Vec<_> = daemons_live;
        for command in tx.commands_of(&attaching).await? {
            if let Some(daemon) = self.attempts.get(command.attempt.id).map(|attempt| attempt.daemon) {
                self.unanswered.entry(daemon).or_default().push(command);
            } else if let [daemon] = attaching[..] {
                self.unanswered.entry(daemon).or_default().push(command);
            }
        }
        self.load_daemon_rows(tx, keys.daemons.iter().copied()).await
    }

    /// Reads daemons that are not here yet.
    pub(super) async fn load_daemon_rows(
        &mut self,
        tx: &mut impl Rows,
        ids: impl Iterator<Item = DaemonId>,
    ) -> Result<()> {
        let missing: Vec<_> = ids.filter(|id| !self.has_daemon(*id)).collect();
        for daemon in tx.daemons_fetch(&missing).await? {
            self.daemons.loaded(daemon.id, daemon);
        }
        Ok(())
    }

    async fn load_tasks(&mut self, tx: &mut impl Rows, keys: &mut Keys) -> Result<()> {
        for root in &keys.closures {
            let closure = tx.dependents_closure(&[*root]).await?;
            keys.tasks.extend(&closure);
            keys.newest.extend(&closure);
            self.closures.insert(*root, closure);
        }
        self.load_task_rows(tx, keys.tasks.iter().copied()).await?;
        for fork in keys.forks.iter().filter_map(|id| self.tasks.get(*id)) {
            keys.names_beside.extend(fork_names(&fork.spec.name).map(|name| (fork.id, name)));
        }
        let own: Vec<_> = keys.forks.iter().filter_map(|id| self.tasks.get(*id)?.checkpoint).collect();
        self.load_checkpoints(tx, own.into_iter()).await?;
        let names_beside = keys.names_beside.drain(..);
        let beside = names_beside.filter_map(|(task, name)| Some((self.tasks.get(task)?.contract, name)));
        let names = keys.names.drain().chain(beside);
        let names: Vec<_> = names.filter(|(contract, name)| !self.kept.names.is_free(*contract, name)).collect();
        for task in tx.tasks_named(&names).await? {
            keys.ancestry.insert(task.id);
            self.task_loaded(task);
        }
        let newest: Vec<_> = (keys.newest.iter())
            .filter_map(|id| Some((*id, self.tasks.get(*id)?.attempt)))
            .filter(|(id, number)| *number > 0 && !self.attempt_numbers.contains_key(&(*id, *number)))
            .collect();
        for attempt in tx.attempts_numbered(&newest).await? {
            keys.daemons.insert(attempt.daemon);
            self.attempt_loaded(attempt);
        }
        self.load_daemon_rows(tx, keys.daemons.iter().copied()).await
    }

    /// Reads tasks that are not here yet.
    pub(super) async fn load_task_rows(&mut self, tx: &mut impl Rows, ids: impl Iterator<Item = TaskId>) -> Result<()> {
        let missing: Vec<_> = ids.filter(|id| !self.has_task(*id)).collect();
        for task in tx.tasks_fetch(&missing).await? {
            self.task_loaded(task);
        }
        Ok(())
    }

    async fn load_graph(&mut self, tx: &mut impl Rows, keys: &mut Keys) -> Result<()> {
        let upstream: Vec<_> = keys.upstream.iter().copied().collect();
        let downstream: Vec<_> = keys.downstream.iter().copied().collect();
        let mut edges = tx.edges_from(&upstream).await?;
        // Only where edges are added can a cycle come about.
        if !upstream.is_empty() {
            let ancestry: Vec<_> = keys.ancestry.iter().copied().collect();
            edges.extend(tx.edges_upstream(&ancestry).await?);
        }
        let mut neighbours = HashSet::new();
        for edge in edges {
            neighbours.extend([edge.dependent, edge.dependency]);
            self.edge_loaded(edge);
        }
        self.load_task_rows(tx, neighbours.drain()).await?;
        let mut dependents: HashMap<TaskId, u32> = HashMap::new();
        let (mut edges, mut unknown) = (Vec::new(), Vec::new());
        for dependency in downstream {
            let Some((contract, of)) = self.kept.dependents(dependency) else {
                unknown.push(dependency);
                continue;
            };
            edges.extend(of.iter().map(|dependent| Edge {
                dependent: *dependent,
                dependency,
                contract,
                satisfied: false,
            }));
        }
        edges.extend(tx.edges_to(&unknown).await?);
        for edge in edges {
            neighbours.insert(edge.dependency);
            *dependents.entry(edge.dependent).or_default() += 1;
            self.edge_loaded(edge);
        }
        // Most of them wait for more than these, and are not needed for that.
        neighbours.extend(dependents.into_iter().filter(|(id, edges)| !self.has_count(*id, *edges)).map(|(id, _)| id));
        self.load_task_rows(tx, neighbours.into_iter()).await
    }

    async fn load_contracts(&mut self, tx: &mut impl Rows, keys: &Keys) -> Result<()> {
        let of_tasks = self.tasks.values().map(|task| task.contract);
        let of_attempts = self.attempts.values().map(|attempt| attempt.contract);
        let wanted: HashSet<ContractId> = keys.contracts.iter().copied().chain(of_tasks).chain(of_attempts).collect();
        self.load_contract_rows(tx, wanted.into_iter()).await
    }

    /// Reads contracts that are not here yet.
    pub(super) async fn load_contract_rows(
        &mut self,
        tx: &mut impl Rows,
        ids: impl Iterator<Item = ContractId>,
    ) -> Result<()> {
        let missing: Vec<_> = ids.filter(|id| !self.has_contract(*id)).collect();
        for contract in tx.contracts_fetch(&missing).await? {
            self.contracts.loaded(contract.id, contract);
        }
        Ok(())
    }

    /// The earliest time at which something this batch wrote is due.
    pub(super) fn earliest_due(&self) -> Option<crate::domain::Timestamp> {
        let attempts = self.attempts.dirty().into_iter().filter(|a| a.state.status() != AttemptStatus::Ended);
        let attempts = attempts.filter_map(|attempt| attempt.due());
        let waits = self.tasks.dirty().into_iter().filter_map(|task| task.wait().map(|wait| wait.until));
        let cancelling =
            self.contracts.dirty().into_iter().filter(|c| c.cancelled.is_some() && c.counts.unfinished() > 0);
        attempts.chain(waits).chain(cancelling.map(|_| self.now)).min()
    }
}

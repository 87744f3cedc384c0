//! The working set of one batch: everything its operations touch, as it was and as it will be, and what is to be said once
//! it is committed. Operations fold into it with the pure functions of the domain; `load` fills it and `flush` writes it in a
//! number of statements that does not grow with the batch.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use uuid::Uuid;

use super::{dice::Dice, kept::Kept, op::Error, op::Push, rows::Rows, table::Table};
use crate::{
    domain::{
        AttemptId, AttemptRef, BatchId, CheckpointId, ClassId, CommandId, ContractId, DaemonId, Epoch, KeyId, OwnerId,
        TaskId, Timestamp,
        analysis::Category,
        attempt::{Attempt, AttemptEvent, AttemptStep},
        checkpoint::Checkpoint,
        contract::{Contract, ContractStatus},
        daemon::{Daemon, Requirements},
        event::{Change, What},
        key::Key,
        order::{Command, Order},
        task::{Task, TaskStatus},
        transition::{Refused, Step, TaskEvent},
    },
    store::{Edge, Lane, Remembered, Result as StoreResult},
};

/// Everything a batch touches.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) now: Timestamp,
    /// What earlier batches have left.
    pub(super) kept: Kept,
    pub(super) dice: Dice,
    pub(super) contracts: Table<ContractId, Contract>,
    pub(super) tasks: Table<TaskId, Task>,
    /// Of tasks that are not here, since whatever this batch does they wait on, the number of dependencies that are not complete.
    pub(super) counted: HashMap<TaskId, u32>,
    pub(super) attempts: Table<AttemptId, Attempt>,
    pub(super) daemons: Table<DaemonId, Daemon>,
    pub(super) edges: Table<(TaskId, TaskId), Edge>,
    /// Edges taken away, whether or not the database has them.
    pub(super) edges_gone: HashMap<(TaskId, TaskId), Edge>,
    /// Who waits for a task, among loaded edges.
    pub(super) dependents: HashMap<TaskId, Vec<TaskId>>,
    /// What a task waits for, among loaded edges.
    pub(super) dependencies: HashMap<TaskId, Vec<TaskId>>,
    pub(super) names: HashMap<(ContractId, String), TaskId>,
    pub(super) attempt_numbers: HashMap<(TaskId, u32), AttemptId>,
    pub(super) respecs: HashSet<TaskId>,
    pub(super) classes: HashMap<ClassId, (OwnerId, Requirements)>,
    /// What plans were found to touch.
    pub(super) categories: HashMap<TaskId, Vec<Category>>,
    /// Loaded, or stored by this batch.
    pub(super) checkpoints: HashMap<CheckpointId, Checkpoint>,
    pub(super) checkpoints_new: Vec<CheckpointId>,
    /// Names of results' packs that the server has, of attempts that are loaded for their ends.
    pub(super) packs: HashSet<String>,
    pub(super) commands: Vec<(DaemonId, Arc<Command>)>,
    pub(super) commands_gone: HashSet<(DaemonId, i64)>,
    pub(super) unanswered: HashMap<DaemonId, Vec<Command>>,
    pub(super) changes: Vec<Change>,
    pub(super) remembered: HashMap<(OwnerId, String), Remembered>,
    pub(super) remember: Vec<Remembered>,
    pub(super) owners: HashMap<String, Option<OwnerId>>,
    pub(super) owners_new: Vec<(OwnerId, String)>,
    pub(super) keys: HashMap<KeyId, Key>,
    pub(super) keys_dirty: HashSet<KeyId>,
    /// Admin keys that are good, when one may be revoked.
    pub(super) admins: HashSet<KeyId>,
    pub(super) names_taken: HashMap<(OwnerId, String), DaemonId>,
    pub(super) due_attempts: Vec<AttemptId>,
    pub(super) due_tasks: Vec<TaskId>,
    pub(super) cancelling: Vec<(ContractId, Vec<TaskId>)>,
    pub(super) closures: HashMap<TaskId, Vec<TaskId>>,
    pub(super) next_due: Option<Timestamp>,
    pub(super) more: bool,
    /// Lanes that tasks were taken from.
    pub(super) served: HashSet<(ContractId, ClassId)>,
    pub(super) pushes: Vec<(DaemonId, Push)>,
    /// Something happened that may let a task start.
    pub(super) look: bool,
}

impl Work {
    pub(super) fn new(now: Timestamp, kept: Kept) -> Self {
        Self { now, kept, ..Self::default() }
    }

    /// What is left for the next batch, once this one is committed.
    pub(super) fn keep(&mut self) -> Kept {
        let mut kept = std::mem::take(&mut self.kept);
        kept.learn(self);
        kept
    }

    /// A new time-ordered id.
    pub(super) fn new_id(&mut self) -> Uuid {
        self.dice.ordered_id()
    }

    // === reading ===

    /// A contract of an owner.
    pub(super) fn contract_of(&self, owner: OwnerId, id: ContractId) -> Result<&Contract, Error> {
        let contract = self.contracts.get(id).filter(|contract| contract.owner == owner);
        contract.ok_or_else(|| Error::NotFound { kind: "contract", id: id.to_string() })
    }

    /// A task of an owner.
    pub(super) fn task_of(&self, owner: OwnerId, id: TaskId) -> Result<&Task, Error> {
        let task = self.tasks.get(id).filter(|task| task.owner == owner);
        task.ok_or_else(|| Error::NotFound { kind: "task", id: id.to_string() })
    }

    /// The attempt that a reference names, if there is exactly that one.
    pub(super) fn attempt_named(&self, reference: AttemptRef) -> Option<&Attempt> {
        self.attempts.get(reference.id).filter(|attempt| attempt.reference() == reference)
    }

    /// The newest attempt of a task, if it is loaded.
    pub(super) fn newest_attempt(&self, task: TaskId) -> Option<AttemptId> {
        let number = self.tasks.get(task)?.attempt;
        self.attempt_numbers.get(&(task, number)).copied()
    }

    pub(super) fn daemon_name(&self, daemon: DaemonId) -> String {
        self.daemons.get(daemon).map(|daemon| daemon.card.name.clone()).unwrap_or_default()
    }

    // === loading ===

    pub(super) fn edge_loaded(&mut self, edge: Edge) {
        let key = (edge.dependent, edge.dependency);
        if !self.edges.contains(key) {
            self.edges.loaded(key, edge);
            self.index_edge(edge);
        }
    }

    pub(super) fn index_edge(&mut self, edge: Edge) {
        self.dependents.entry(edge.dependency).or_default().push(edge.dependent);
        self.dependencies.entry(edge.dependent).or_default().push(edge.dependency);
    }

    pub(super) fn task_loaded(&mut self, task: Task) {
        self.task_here(Arc::new(task));
    }

    fn task_here(&mut self, mut task: Arc<Task>) {
        if let Some(unmet) = self.counted.remove(&task.id)
            && task.unmet != unmet
        {
            Arc::make_mut(&mut task).unmet = unmet;
        }
        self.names.entry((task.contract, task.spec.name.clone())).or_insert(task.id);
        self.tasks.loaded(task.id, task);
    }

    /// Whether the task is here by now.
    pub(super) fn has_task(&mut self, id: TaskId) -> bool {
        if self.tasks.contains(id) {
            return true;
        }
        self.kept.task(id).map(|task| self.task_here(task)).is_some()
    }

    /// Whether a task is here as far as it takes to count its dependencies: it is known to wait on when as many as these are
    /// complete, so no more than their number can change of it.
    pub(super) fn has_count(&mut self, id: TaskId, edges: u32) -> bool {
        if self.tasks.contains(id) {
            return true;
        }
        let kept = self.kept.unmet(id).filter(|unmet| *unmet > edges);
        kept.map(|unmet| self.counted.insert(id, unmet)).is_some()
    }

    /// Whether the contract is here by now.
    pub(super) fn has_contract(&mut self, id: ContractId) -> bool {
        if self.contracts.contains(id) {
            return true;
        }
        let kept = self.kept.contract(id).cloned();
        kept.map(|contract| self.contracts.loaded(id, contract)).is_some()
    }

    /// Whether the daemon is here by now.
    pub(super) fn has_daemon(&mut self, id: DaemonId) -> bool {
        if self.daemons.contains(id) {
            return true;
        }
        let kept = self.kept.daemon(id).cloned();
        kept.map(|daemon| self.daemons.loaded(id, daemon)).is_some()
    }

    /// Whether the attempt is here by now.
    pub(super) fn has_attempt(&mut self, id: AttemptId) -> bool {
        if self.attempts.contains(id) {
            return true;
        }
        let kept = self.kept.attempt(id).cloned();
        kept.map(|attempt| self.attempt_here(attempt)).is_some()
    }

    pub(super) fn attempt_loaded(&mut self, attempt: Attempt) {
        self.attempt_here(Arc::new(attempt));
    }

    fn attempt_here(&mut self, attempt: Arc<Attempt>) {
        self.attempt_numbers.insert((attempt.task, attempt.number), attempt.id);
        self.attempts.loaded(attempt.id, attempt);
    }

    // === changing ===

    /// Moves a task, with all that hangs on it: the contract's counts, the dependents' counters, the log. Answers whether it
    /// moved.
    pub(super) fn task_event(&mut self, id: TaskId, event: &TaskEvent, actor: &str) -> Result<bool, Refused> {
        self.task_event_because(id, event, actor, None)
    }

    /// The same, with what the log says for people instead of what the event itself says.
    pub(super) fn task_event_because(
        &mut self,
        id: TaskId,
        event: &TaskEvent,
        actor: &str,
        because: Option<&str>,
    ) -> Result<bool, Refused> {
        let Some(before) = self.tasks.share(id) else { return Ok(false) };
        match before.apply(event, self.now)? {
            Step::Already => Ok(false),
            Step::Moved(after) => {
                self.tasks.set(id, Arc::clone(&after));
                if after.is_ready() && !before.is_ready() {
                    self.look = true;
                }
                // First what happened to the task, then what that brings about.
                let detail = because.map_or_else(|| detail(event, &after), str::to_owned);
                self.log_task(&after, event_word(event, &after), fields(&before, &after), actor, detail);
                self.status_changed(&before, &after);
                if matches!(event, TaskEvent::Retry(_)) {
                    self.recount(id);
                }
                Ok(true)
            }
        }
    }

    /// Keeps contract counts and dependents in step with a task's status.
    fn status_changed(&mut self, before: &Task, after: &Task) {
        if before.status() != after.status() {
            self.count(after.contract, Some(before.status()), after.status());
        }
        if before.status().is_complete() != after.status().is_complete() {
            let complete = after.status().is_complete();
            for dependent in self.dependents.get(&after.id).cloned().unwrap_or_default() {
                self.satisfy(dependent, after.id, complete);
            }
        }
    }

    /// A task of a contract came to `to`.
    pub(super) fn count(&mut self, contract: ContractId, from: Option<TaskStatus>, to: TaskStatus) {
        let now = self.now;
        let Some(contract) = self.contracts.get_mut(contract) else { return };
        let before = contract.status();
        contract.counts.shift(from, to);
        contract.version += 1;
        contract.updated = now;
        let after = contract.status();
        contract.ended = (contract.counts.unfinished() == 0 && contract.counts.total() > 0).then_some(now);
        if before != after {
            let contract = contract.clone();
            let word = match after {
                ContractStatus::Active => "contract.active",
                ContractStatus::Done => "contract.done",
                ContractStatus::Failed => "contract.failed",
                ContractStatus::Cancelled => "contract.cancelled",
            };
            self.log_contract(&contract, word, &["status"], "server", String::new());
        }
    }

    /// A dependency has become complete, or is no longer: the edge and the dependent's counter follow, once. The dependent itself
    /// is written only if it is ready now, or no longer. One that has started goes on with what it started from; should it be
    /// tried again, it waits like any other.
    fn satisfy(&mut self, dependent: TaskId, dependency: TaskId, complete: bool) {
        let key = (dependent, dependency);
        let ready_before = self.tasks.get(dependent).is_some_and(Task::is_ready);
        if !self.tasks.contains(dependent) && !self.counted.contains_key(&dependent) {
            return;
        }
        let Some(edge) = self.edges.get(key).copied() else { return };
        if edge.satisfied == complete || self.edges_gone.contains_key(&key) {
            return;
        }
        self.edges.set(key, Edge { satisfied: complete, ..edge });
        let now = self.now;
        let counted = |unmet: u32| if complete { unmet.saturating_sub(1) } else { unmet + 1 };
        let Some(task) = self.tasks.get_counted(dependent) else {
            self.counted.entry(dependent).and_modify(|unmet| *unmet = counted(*unmet));
            return;
        };
        task.unmet = counted(task.unmet);
        if task.is_ready() != ready_before {
            let Some(task) = self.tasks.get_mut(dependent) else { return };
            task.version += 1;
            task.updated = now;
            let Some(task) = self.tasks.share(dependent) else { return };
            let word = if task.is_ready() { "task.ready" } else { "task.waiting" };
            self.look |= task.is_ready();
            let fields = vec!["unmet_dependencies", "pending_reason"];
            self.log_task(&task, word, fields, "server", String::new());
        }
    }

    /// Makes a task's edges and counter anew from its dependencies as they stand; all of them must be loaded. The task is to be
    /// written anyway.
    pub(super) fn recount(&mut self, id: TaskId) {
        let mut unmet = 0;
        for dependency in self.dependencies.get(&id).cloned().unwrap_or_default() {
            let key = (id, dependency);
            if self.edges_gone.contains_key(&key) {
                continue;
            }
            let complete = self.tasks.get(dependency).is_some_and(|task| task.status().is_complete());
            unmet += u32::from(!complete);
            if let Some(edge) = self.edges.get(key).copied()
                && edge.satisfied != complete
            {
                self.edges.set(key, Edge { satisfied: complete, ..edge });
            }
        }
        if let Some(task) = self.tasks.get(id)
            && task.unmet != unmet
            && let Some(task) = self.tasks.get_mut(id)
        {
            task.unmet = unmet;
            self.look |= task.is_ready();
        }
    }

    /// Moves an attempt, with what hangs on it: slots, concurrency, commands. Answers whether it moved.
    pub(super) fn attempt_event(&mut self, id: AttemptId, event: &AttemptEvent) -> AttemptStep {
        let Some(before) = self.attempts.share(id) else { return AttemptStep::Over };
        let step = before.apply(event, self.now);
        if let AttemptStep::Moved(after) = &step {
            self.attempts.set(id, Arc::clone(after));
            if !before.is_live()
                && after.is_live()
                && let Some(contract) = self.contracts.get_mut(after.contract)
            {
                contract.live += 1;
            }
            if before.is_live() && !after.is_live() {
                if let Some(contract) = self.contracts.get_mut(after.contract) {
                    contract.live = contract.live.saturating_sub(1);
                }
                for sequence in &after.commands {
                    self.commands_gone.insert((after.daemon, *sequence));
                }
                self.look = true;
            }
        }
        step
    }

    /// Ends an attempt's hold on its slot, and on its task if the task waits for that.
    pub(super) fn attempt_gone(&mut self, task: TaskId, number: u32, actor: &str) {
        // Refused only by statuses in which nobody waits for it.
        let _ = self.task_event(task, &TaskEvent::AttemptGone { attempt: number }, actor);
    }

    /// Wants an attempt ended: fences it and tells its daemon.
    pub(super) fn end_attempt(&mut self, id: AttemptId, reason: &str) {
        if let AttemptStep::Moved(attempt) = self.attempt_event(id, &AttemptEvent::End { reason: reason.to_owned() }) {
            if !attempt.is_live() {
                // Nothing of it was left to end.
                self.attempt_gone(attempt.task, attempt.number, "server");
                return;
            }
            let order = Order::Cancel { reason: reason.to_owned(), grace: crate::domain::order::DEFAULT_GRACE };
            self.command(attempt.daemon, attempt.reference(), order);
        }
    }

    /// The number of a daemon's next command, and its session; the daemon must be loaded.
    pub(super) fn next_command(&mut self, daemon: DaemonId) -> Option<(i64, Epoch)> {
        let to = self.daemons.get_mut(daemon)?;
        to.last_command += 1;
        Some((to.last_command, to.epoch))
    }

    /// Makes a durable command for a daemon, which must be loaded; not the one to start an attempt, which is made with that.
    pub(super) fn command(&mut self, daemon: DaemonId, attempt: AttemptRef, order: Order) {
        let id = CommandId(self.new_id());
        let Some((sequence, epoch)) = self.next_command(daemon) else { return };
        let command = Arc::new(Command { sequence, id, epoch, attempt, order });
        if let Some(attempt) = self.attempts.get_mut(attempt.id) {
            attempt.commands.push(command.sequence);
        }
        self.commands.push((daemon, Arc::clone(&command)));
        self.pushes.push((daemon, Push::Command(command)));
    }

    /// A new task: counted, logged, its class known.
    pub(super) fn task_new(&mut self, task: Task, actor: &str) {
        let requirements = Requirements::new(&task.spec.agent, &task.spec.labels, &task.spec.repository);
        self.classes.insert(task.class, (task.owner, requirements));
        self.count(task.contract, None, task.status());
        self.names.insert((task.contract, task.spec.name.clone()), task.id);
        self.look |= task.is_ready();
        self.log_task(&task, "task.created", Vec::new(), actor, String::new());
        self.tasks.insert(task.id, task);
    }

    pub(super) fn edge_new(&mut self, edge: Edge) {
        let key = (edge.dependent, edge.dependency);
        if self.edges_gone.remove(&key).is_some() && self.edges.contains(key) {
            self.edges.set(key, edge);
            return;
        }
        self.edges.insert(key, edge);
        self.index_edge(edge);
    }

    // === the log ===

    pub(super) fn log_task(
        &mut self,
        task: &Task,
        event: &'static str,
        fields: Vec<&'static str>,
        actor: &str,
        detail: String,
    ) {
        let daemon_name = task.daemon.map(|daemon| self.daemon_name(daemon)).unwrap_or_default();
        self.changes.push(Change {
            sequence: 0,
            at: self.now,
            contract: task.contract,
            task: Some(task.id),
            what: What {
                event: event.into(),
                task_name: task.spec.name.clone(),
                version: task.version,
                status: Some(task.status()),
                attempt: task.attempt,
                daemon: task.daemon,
                daemon_name,
                fields: fields.into_iter().map(Into::into).collect(),
                said_by: What::said_by(actor, task.daemon),
                detail,
            },
        });
    }

    pub(super) fn log_contract(
        &mut self,
        contract: &Contract,
        event: &'static str,
        fields: &[&'static str],
        actor: &str,
        detail: String,
    ) {
        self.changes.push(Change {
            sequence: 0,
            at: self.now,
            contract: contract.id,
            task: None,
            what: What {
                event: event.into(),
                task_name: String::new(),
                version: contract.version,
                status: None,
                attempt: 0,
                daemon: None,
                daemon_name: String::new(),
                fields: fields.iter().map(|field| (*field).into()).collect(),
                said_by: What::said_by(actor, None),
                detail,
            },
        });
    }

    // === writing ===

    /// Writes everything that has changed, and the mark by which the batch is found again, if it has one. Answers the last
    /// sequence of the log, if it grew.
    pub(super) async fn flush(&self, tx: &mut impl Rows, batch: Option<BatchId>) -> StoreResult<Option<i64>> {
        for (id, name) in &self.owners_new {
            tx.owner_insert(*id, name, self.now).await?;
        }
        let (first, then, same_name) = self.daemons_by_name();
        tx.daemons_put(&first).await?;
        // Everything between here and the log is of tables, or rows, of its own.
        tx.gather();
        let keys: Vec<Key> = self.keys_dirty.iter().filter_map(|id| self.keys.get(id).cloned()).collect();
        tx.keys_put(&keys).await?;
        tx.contracts_put(&self.contracts.dirty()).await?;
        let classes: Vec<_> = self.classes.iter().map(|(id, (owner, needs))| (*id, *owner, needs.clone())).collect();
        tx.classes_insert(&classes).await?;
        tx.tasks_insert(&self.tasks.new_rows()).await?;
        let changed: Vec<&Task> = self.tasks.changed_rows().map(|(_, now)| now).collect();
        tx.tasks_update(&changed).await?;
        let edges: Vec<Edge> = (self.edges.dirty().into_iter().copied())
            .filter(|edge| !self.edges_gone.contains_key(&(edge.dependent, edge.dependency)))
            .collect();
        tx.edges_put(&edges).await?;
        let gone: Vec<Edge> = self.edges_gone.values().copied().collect();
        tx.edges_delete(&gone).await?;
        let checkpoints: Vec<_> = self.checkpoints_new.iter().filter_map(|id| self.checkpoints.get(id)).collect();
        tx.checkpoints_insert(&checkpoints).await?;
        tx.attempts_insert(&self.attempts.new_rows()).await?;
        tx.attempts_update(&self.attempts.changed_rows().map(|(_, now)| now).collect::<Vec<_>>()).await?;
        tx.daemons_put(&then).await?;
        tx.daemons_update(&same_name).await?;
        let commands: Vec<_> = self
            .commands
            .iter()
            .filter(|(daemon, c)| !self.commands_gone.contains(&(*daemon, c.sequence)))
            .cloned()
            .collect();
        tx.commands_insert(&commands).await?;
        let commands_gone: Vec<_> = self.commands_gone.iter().copied().collect();
        tx.commands_delete(&commands_gone).await?;
        tx.requests_insert(&self.remember).await?;
        if let Some(batch) = batch {
            tx.batch_insert(batch, self.now).await?;
        }
        let last = tx.events_insert(&self.changes).await?;
        let respecs: Vec<&Task> = changed.iter().filter(|task| self.respecs.contains(&task.id)).copied().collect();
        tx.tasks_respec(&respecs).await?;
        tx.lanes_refresh(&self.lanes()).await?;
        let opened: Vec<_> = (self.contracts.changed_rows())
            .filter(|(was, now)| was.is_open() != now.is_open())
            .map(|(_, now)| (now.id, now.is_open()))
            .collect();
        tx.lanes_open(&opened).await?;
        Ok(last)
    }

    /// Daemons to write: those whose names others take in this batch, which are written before these; those that are new or have
    /// another name; and those whose names are what they were.
    fn daemons_by_name(&self) -> (Vec<&Daemon>, Vec<&Daemon>, Vec<&Daemon>) {
        let key = |daemon: &Daemon| (daemon.owner, daemon.card.name.clone());
        let mut taken = HashSet::new();
        let (mut renamed, mut same_name) = (Vec::new(), Vec::new());
        for (was, now) in self.daemons.dirty_pairs() {
            if was.is_some_and(|was| was.card.name == now.card.name) {
                same_name.push(now);
            } else {
                taken.insert(key(now));
                renamed.push((was, now));
            }
        }
        let (first, then): (Vec<_>, Vec<_>) =
            renamed.into_iter().partition(|(was, _)| was.is_some_and(|was| taken.contains(&key(was))));
        let now = |pairs: Vec<(Option<_>, _)>| pairs.into_iter().map(|(_, now)| now).collect();
        (now(first), now(then), same_name)
    }

    /// Lanes whose row may have to say something else: how urgent their most urgent ready task is.
    ///
    /// Where whatever becomes ready starts at once, as on any system that is not full, and where a backlog is of one priority, that
    /// is hardly any of those that tasks come to and go from.
    fn lanes(&self) -> Vec<Lane> {
        let mut ready: HashMap<(ContractId, ClassId), i32> = HashMap::new();
        for task in self.tasks.values().filter(|task| task.is_ready()) {
            let most = ready.entry((task.contract, task.class)).or_insert(task.spec.priority);
            *most = task.spec.priority.max(*most);
        }
        let mut lanes: BTreeMap<(ContractId, ClassId), OwnerId> = BTreeMap::new();
        for (was, task) in self.tasks.dirty_pairs() {
            if was.map(|was| (was.is_ready(), was.class)) != Some((task.is_ready(), task.class))
                || self.respecs.contains(&task.id)
            {
                lanes.insert((task.contract, task.class), task.owner);
                if let Some(was) = was {
                    lanes.insert((task.contract, was.class), task.owner);
                }
            }
        }
        let changed = lanes.into_iter().filter(|(lane, _)| !self.kept.lanes.stays(*lane, self, &ready));
        let lanes = changed.map(|((contract, class), owner)| Lane {
            contract,
            class,
            owner,
            is_open: self.contracts.get(contract).is_some_and(Contract::is_open),
            now: self.now,
            is_served: self.served.contains(&(contract, class)),
        });
        lanes.collect()
    }

    /// Nothing is to be written.
    pub(super) fn is_clean(&self) -> bool {
        self.changes.is_empty()
            && self.contracts.is_clean()
            && self.tasks.is_clean()
            && self.attempts.is_clean()
            && self.daemons.is_clean()
            && self.edges.is_clean()
            && self.edges_gone.is_empty()
            && self.checkpoints_new.is_empty()
            && self.commands.is_empty()
            && self.commands_gone.is_empty()
            && self.remember.is_empty()
            && self.keys_dirty.is_empty()
            && self.owners_new.is_empty()
    }
}

fn event_word(event: &TaskEvent, after: &Task) -> &'static str {
    match event {
        TaskEvent::Assigned { .. } => "task.assigned",
        TaskEvent::Started { .. } => "task.started",
        TaskEvent::Completed { .. } => "task.finalizing",
        TaskEvent::ResultStored { .. } => "task.done",
        TaskEvent::AttemptFailed { .. } if after.status() == TaskStatus::Failed => "task.failed",
        TaskEvent::AttemptFailed { .. } => "task.retrying",
        TaskEvent::Revived { .. } => "task.revived",
        TaskEvent::AttemptGone { .. } => "task.attempt_ended",
        TaskEvent::WaitOver => "task.wait_over",
        TaskEvent::Merged => "task.merged",
        TaskEvent::Cancel { .. } => "task.cancelled",
        TaskEvent::Retry(_) => "task.retried",
        TaskEvent::Checkpointed { .. } => "task.checkpointed",
        TaskEvent::Reassign { .. } => "task.reassigned",
        TaskEvent::ForceRelease => "task.force_released",
        TaskEvent::Hold(_) => "task.held",
        TaskEvent::Release => "task.released",
        TaskEvent::Paused(_) => "task.paused",
        TaskEvent::Resumed => "task.resumed",
        TaskEvent::AsksInput { .. } => "task.asks_input",
        TaskEvent::InputGiven => "task.input_given",
    }
}

fn detail(event: &TaskEvent, after: &Task) -> String {
    match event {
        TaskEvent::AttemptFailed { failure, .. } => failure.message.clone(),
        TaskEvent::Cancel { reason, .. } | TaskEvent::AsksInput { question: reason } => reason.clone(),
        TaskEvent::Hold(hold) | TaskEvent::Paused(hold) => hold.reason.clone(),
        TaskEvent::Assigned { .. } => after.branch.clone(),
        TaskEvent::ResultStored { .. } => after.result().map(|result| result.commit.clone()).unwrap_or_default(),
        TaskEvent::Checkpointed { checkpoint, .. } => checkpoint.to_string(),
        TaskEvent::Started { .. }
        | TaskEvent::Completed { .. }
        | TaskEvent::Revived { .. }
        | TaskEvent::AttemptGone { .. }
        | TaskEvent::WaitOver
        | TaskEvent::Merged
        | TaskEvent::Retry(_)
        | TaskEvent::Reassign { .. }
        | TaskEvent::ForceRelease
        | TaskEvent::Release
        | TaskEvent::Resumed
        | TaskEvent::InputGiven => String::new(),
    }
}

/// Names of the fields of the API's task that differ.
fn fields(before: &Task, after: &Task) -> Vec<&'static str> {
    let differs = [
        ("status", before.status() != after.status()),
        ("attempt", before.attempt != after.attempt),
        ("daemon_id", before.daemon != after.daemon),
        ("branch", before.branch != after.branch),
        ("retry_count", before.tries.counted != after.tries.counted),
        ("error_message", before.tries.last_failure != after.tries.last_failure),
        ("result_commit", before.result() != after.result()),
        ("usage", before.usage != after.usage),
        ("not_before", before.wait() != after.wait()),
        ("start_time", before.started != after.started),
        ("interrupt_time", before.interrupted != after.interrupted),
        ("checkpoint_id", before.checkpoint != after.checkpoint),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

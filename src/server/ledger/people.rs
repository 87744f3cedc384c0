//! What people and programs ask for: contracts, tasks, dependencies, keys. Each operation first checks everything, then
//! changes the working set, so that a refused one leaves nothing behind.

use std::sync::Arc;

use super::{
    op::{Error, Op, Reply, Request},
    work::Work,
};
use crate::domain::text::hex;
use crate::{
    domain::{
        ContractId, DaemonId, KeyId, OwnerId, TaskId,
        attempt::AttemptStatus,
        contract::{Cancelled, Contract, ContractLimits, Counts, Hold},
        daemon::Requirements,
        dependency::{self, Added, Known, Loaded},
        draft::{ContractUpdate, NewContract, NewTask, NewTasks, TaskUpdate},
        key::{Key, KeyKind},
        task::{MAX_TASKS, Task, TaskState, TaskStatus, Tries},
        transition::{RetryFrom, TaskEvent},
    },
    store::{Edge, Remembered},
};

impl Work {
    /// Does what a person or program asks.
    pub(super) fn person(&mut self, request: &Request) -> Result<Reply, Error> {
        if let Some(repeat) = &request.repeat
            && let Some(remembered) = self.remembered.get(&(repeat.owner, repeat.id.clone())).cloned()
        {
            if remembered.hash != hex(&repeat.hash) {
                return Err(Error::RequestIdReused(repeat.id.clone()));
            }
            return self.again(&request.op, &remembered);
        }
        let reply = self.fresh(request)?;
        if let Some(repeat) = &request.repeat {
            let remembered = Remembered {
                owner: repeat.owner,
                id: repeat.id.clone(),
                hash: hex(&repeat.hash),
                created: self.now,
                contract: match &reply {
                    Reply::Created { contract, .. } | Reply::Contract(contract) => Some(contract.id),
                    _ => None,
                },
                tasks: match &reply {
                    Reply::Created { tasks, .. } => tasks.iter().map(|task| task.id).collect(),
                    Reply::Task(task) => vec![task.id],
                    _ => Vec::new(),
                },
                daemon: match &reply {
                    Reply::Daemon(daemon) => Some(daemon.id),
                    _ => None,
                },
            };
            self.remembered.insert((repeat.owner, repeat.id.clone()), remembered.clone());
            self.remember.push(remembered);
        }
        Ok(reply)
    }

    /// The answer to a request that was done before: its things as they are now.
    fn again(&self, op: &Op, remembered: &Remembered) -> Result<Reply, Error> {
        let contract = || match remembered.contract.and_then(|id| self.contracts.get(id)) {
            Some(contract) => Ok(Box::new(contract.clone())),
            None => Err(Error::NotFound { kind: "contract", id: remembered.id.clone() }),
        };
        let tasks: Vec<Task> = remembered.tasks.iter().filter_map(|id| self.tasks.get(*id).cloned()).collect();
        match op {
            Op::CreateContract(_) | Op::CreateTasks(_) => Ok(Reply::Created { contract: contract()?, tasks }),
            Op::Drain { daemon, .. } => match self.daemons.get(*daemon) {
                Some(daemon) => Ok(Reply::Daemon(Box::new(daemon.clone()))),
                None => Err(Error::NotFound { kind: "daemon", id: daemon.to_string() }),
            },
            _ if remembered.contract.is_some() => Ok(Reply::Contract(contract()?)),
            _ => match tasks.into_iter().next() {
                Some(task) => Ok(Reply::Task(Box::new(task))),
                None => Err(Error::NotFound { kind: "task", id: remembered.id.clone() }),
            },
        }
    }

    fn fresh(&mut self, request: &Request) -> Result<Reply, Error> {
        let actor = &request.actor;
        match &request.op {
            Op::CreateContract(new) => self.create_contract(new, actor),
            Op::CreateTasks(new) => self.create_tasks(new, actor),
            Op::UpdateContract(update) => self.update_contract(update, actor),
            Op::HoldContract { owner, contract, reason } => {
                let hold = Hold { by: actor.clone(), reason: reason.clone(), since: self.now };
                self.change_contract(*owner, *contract, "contract.held", &["held_by"], reason, actor, |contract| {
                    contract.held.get_or_insert(hold);
                })
            }
            Op::ReleaseContract { owner, contract } => {
                self.look = true;
                self.change_contract(*owner, *contract, "contract.released", &["held_by"], "", actor, |contract| {
                    contract.held = None;
                })
            }
            Op::CancelContract { owner, contract, reason } => {
                let cancelled = Cancelled { by: actor.clone(), reason: reason.clone(), since: self.now };
                let status = self.contract_of(*owner, *contract)?.status();
                if self.contract_of(*owner, *contract)?.counts.unfinished() == 0 {
                    let word = format!("the contract has ended already ({status:?}); there is nothing to cancel");
                    return Err(Error::Precondition(word.to_lowercase()));
                }
                self.change_contract(*owner, *contract, "contract.cancelling", &["status"], reason, actor, |contract| {
                    contract.cancelled.get_or_insert(cancelled);
                })
            }
            Op::UpdateTask(update) => self.update_task(update, actor),
            Op::ChangeDependencies { owner, task, add, remove } => {
                self.change_dependencies(*owner, *task, add, remove, actor)
            }
            Op::CancelTask { owner, task, reason, cascade } => self.cancel_task(*owner, *task, reason, *cascade, actor),
            Op::RetryTask { owner, task } => self.retry_task(*owner, *task, actor),
            Op::DismissTask { owner, task } => {
                let found = self.task_of(*owner, *task)?;
                if !found.status().is_final() {
                    let word = found.status().word();
                    return Err(Error::Precondition(format!("the task is {word}; only a final task can be dismissed")));
                }
                self.respec(*task, "task.dismissed", actor, |spec| spec.hidden = true)
            }
            Op::Drain { owner, daemon, draining } => self.drain(*owner, *daemon, *draining),
            Op::CreateKey { kind, owner, label, hash } => self.create_key(*kind, owner.as_deref(), label, *hash),
            Op::RevokeKey { key } => self.revoke_key(*key),
            _ => Err(Error::Precondition("not for people".to_owned())),
        }
    }

    // === contracts ===

    fn create_contract(&mut self, new: &NewContract, actor: &str) -> Result<Reply, Error> {
        let contract = Contract {
            id: ContractId(self.new_id()),
            owner: new.owner,
            name: new.name.clone(),
            description: new.description.clone(),
            repository: new.repository.clone(),
            base_branch: new.base_branch.clone(),
            limits: new.limits.clone(),
            anonymous: false,
            held: new.hold.then(|| Hold {
                by: actor.to_owned(),
                reason: "held when it was made".to_owned(),
                since: self.now,
            }),
            cancelled: None,
            counts: Counts::default(),
            live: 0,
            version: 1,
            created: self.now,
            updated: self.now,
            ended: None,
        };
        self.create(contract, true, &new.tasks, actor)
    }

    fn create_tasks(&mut self, new: &NewTasks, actor: &str) -> Result<Reply, Error> {
        let Some(contract) = new.contract else {
            let first = new.tasks.first();
            let contract = Contract {
                id: ContractId(self.new_id()),
                owner: new.owner,
                name: first.map(|task| task.spec.name.clone()).unwrap_or_default(),
                description: String::new(),
                repository: first.map(|task| task.spec.repository.clone()).unwrap_or_default(),
                base_branch: first.map(|task| task.spec.base_branch.clone()).unwrap_or_default(),
                limits: ContractLimits::default(),
                anonymous: true,
                held: None,
                cancelled: None,
                counts: Counts::default(),
                live: 0,
                version: 1,
                created: self.now,
                updated: self.now,
                ended: None,
            };
            return self.create(contract, true, &new.tasks, actor);
        };
        let contract = self.contract_of(new.owner, contract)?.clone();
        if contract.cancelled.is_some() {
            return Err(Error::Precondition("the contract is cancelled; it takes no more tasks".to_owned()));
        }
        self.create(contract, false, &new.tasks, actor)
    }

    /// Checks all new tasks with all their dependencies, then makes them.
    fn create(&mut self, contract: Contract, is_new: bool, new: &[NewTask], actor: &str) -> Result<Reply, Error> {
        let total = u32::try_from(new.len()).unwrap_or(u32::MAX).saturating_add(contract.counts.total());
        if total > MAX_TASKS {
            let text = format!("the contract would have {total} tasks; at most {MAX_TASKS} are allowed");
            return Err(Error::Invalid(vec![("tasks".to_owned(), text)]));
        }
        let ids: Vec<TaskId> = new.iter().map(|_| TaskId(self.new_id())).collect();
        let wanted: Vec<_> = (new.iter().zip(&ids))
            .map(|(task, id)| dependency::NewTask { id: *id, name: &task.spec.name, depends_on: &task.depends_on })
            .collect();
        let loaded = self.loaded_for(contract.owner, contract.id);
        let mut violations = Vec::new();
        let edges = dependency::resolve_new(&wanted, &loaded).unwrap_or_else(|problems| {
            violations.extend(problems.iter().map(|problem| {
                let field = match problem.dependency {
                    Some(place) => format!("tasks[{}].depends_on[{place}]", problem.task),
                    None => format!("tasks[{}]", problem.task),
                };
                (field, problem.to_string())
            }));
            Vec::new()
        });
        for (index, task) in new.iter().enumerate() {
            if task.spec.repository.is_empty() && contract.repository.is_empty() {
                let text = "name a repository here or in the contract".to_owned();
                violations.push((format!("tasks[{index}].repository"), text));
            }
            if let Some(parent) = task.spec.parent
                && self.tasks.get(parent).is_none_or(|parent| parent.owner != contract.owner)
            {
                violations.push((format!("tasks[{index}].parent_task_id"), format!("there is no task `{parent}`")));
            }
        }
        if !violations.is_empty() {
            return Err(Error::Invalid(violations));
        }
        let (id, owner) = (contract.id, contract.owner);
        if is_new {
            self.log_contract(&contract, "contract.created", &[], actor, String::new());
            self.contracts.insert(id, contract.clone());
        }
        let mut unmet: std::collections::HashMap<TaskId, u32> = std::collections::HashMap::new();
        for edge in &edges {
            *unmet.entry(edge.dependent).or_default() += u32::from(!edge.satisfied);
        }
        for (task, task_id) in new.iter().zip(&ids) {
            let mut spec = task.spec.clone();
            if spec.repository.is_empty() {
                spec.repository.clone_from(&contract.repository);
                if spec.base_branch.is_empty() {
                    spec.base_branch.clone_from(&contract.base_branch);
                }
            }
            let class = Requirements::new(&spec.agent, &spec.labels, &spec.repository).class(owner);
            let depth = spec.parent.and_then(|parent| self.tasks.get(parent)).map_or(0, |parent| parent.depth + 1);
            let task = Task {
                id: *task_id,
                contract: id,
                owner,
                depth,
                spec: Arc::new(spec),
                class,
                state: TaskState::Pending { wait: None, held: None },
                unmet: unmet.get(task_id).copied().unwrap_or(0),
                attempt: 0,
                ending: None,
                daemon: None,
                tries: Tries::default(),
                branch: String::new(),
                usage: Default::default(),
                version: 1,
                created: self.now,
                updated: self.now,
                started: None,
                interrupted: None,
                checkpoint: None,
                here: None,
                prefer: None,
            };
            self.task_new(task, actor);
        }
        for edge in edges {
            self.edge_new(Edge {
                dependent: edge.dependent,
                dependency: edge.dependency,
                contract: id,
                satisfied: edge.satisfied,
            });
        }
        let tasks = ids.iter().filter_map(|id| self.tasks.get(*id).cloned()).collect();
        let contract = self.contracts.get(id).cloned().unwrap_or(contract);
        Ok(Reply::Created { contract: Box::new(contract), tasks })
    }

    fn loaded_for(&self, owner: OwnerId, contract: ContractId) -> Loaded {
        let mut loaded = Loaded::new(owner, contract);
        for task in self.tasks.values() {
            loaded.insert(Known {
                id: task.id,
                contract: task.contract,
                owner: task.owner,
                name: task.spec.name.clone(),
                status: task.status(),
            });
        }
        loaded
    }

    fn update_contract(&mut self, update: &ContractUpdate, actor: &str) -> Result<Reply, Error> {
        let contract = self.contract_of(update.owner, update.contract)?;
        check_etag("contract", update.etag, contract.version)?;
        self.look = true;
        self.change_contract(update.owner, update.contract, "contract.updated", &["limits"], "", actor, |contract| {
            if let Some(name) = &update.name {
                contract.name.clone_from(name);
            }
            if let Some(description) = &update.description {
                contract.description.clone_from(description);
            }
            let limits = &mut contract.limits;
            limits.concurrency = update.concurrency.unwrap_or(limits.concurrency);
            limits.max_retries = update.max_retries.unwrap_or(limits.max_retries);
            limits.wall_time = update.wall_time.unwrap_or(limits.wall_time);
            limits.rerun_after = update.rerun_after.unwrap_or(limits.rerun_after);
            limits.checkpoint_every = update.checkpoint_every.unwrap_or(limits.checkpoint_every);
            limits.final_checkpoint = update.final_checkpoint.unwrap_or(limits.final_checkpoint);
        })
    }

    #[expect(clippy::too_many_arguments, reason = "one place where a contract is changed by people")]
    fn change_contract(
        &mut self,
        owner: OwnerId,
        id: ContractId,
        event: &str,
        fields: &[&str],
        detail: &str,
        actor: &str,
        change: impl FnOnce(&mut Contract),
    ) -> Result<Reply, Error> {
        let mut contract = self.contract_of(owner, id)?.clone();
        let before = contract.clone();
        change(&mut contract);
        if contract != before {
            contract.version += 1;
            contract.updated = self.now;
            self.log_contract(&contract, event, fields, actor, detail.to_owned());
            self.contracts.set(id, contract.clone());
        }
        Ok(Reply::Contract(Box::new(contract)))
    }

    // === tasks ===

    fn update_task(&mut self, update: &TaskUpdate, actor: &str) -> Result<Reply, Error> {
        let task = self.task_of(update.owner, update.task)?;
        check_etag("task", update.etag, task.version)?;
        let only_hidden = update.hidden.is_some()
            && update.name.is_none()
            && update.plan.is_none()
            && update.priority.is_none()
            && update.agent.is_none();
        if task.status() != TaskStatus::Pending && !only_hidden {
            let word = task.status().word();
            return Err(Error::Precondition(format!(
                "the task is {word}; only a task that has not started can be changed"
            )));
        }
        if let Some(name) = &update.name
            && self.names.get(&(task.contract, name.clone())).is_some_and(|taken| *taken != task.id)
        {
            return Err(Error::Invalid(vec![(
                "spec.name".to_owned(),
                format!("the contract has a task named `{name}` already"),
            )]));
        }
        let update = update.clone();
        self.respec(update.task, "task.updated", actor, |spec| {
            set(&mut spec.name, update.name);
            set(&mut spec.description, update.description);
            set(&mut spec.plan, update.plan);
            set(&mut spec.priority, update.priority);
            set(&mut spec.agent, update.agent);
            set(&mut spec.model, update.model);
            set(&mut spec.labels, update.labels);
            set(&mut spec.copy_files, update.copy_files);
            set(&mut spec.setup_command, update.setup_command);
            set(&mut spec.limits, update.limits);
            set(&mut spec.base_branch, update.base_branch);
            set(&mut spec.hidden, update.hidden);
        })
    }

    /// Changes what a task is asked.
    fn respec(
        &mut self,
        id: TaskId,
        event: &str,
        actor: &str,
        change: impl FnOnce(&mut crate::domain::task::TaskSpec),
    ) -> Result<Reply, Error> {
        let Some(mut task) = self.tasks.get(id).cloned() else {
            return Err(Error::NotFound { kind: "task", id: id.to_string() });
        };
        let mut spec = (*task.spec).clone();
        change(&mut spec);
        if spec == *task.spec {
            return Ok(Reply::Task(Box::new(task)));
        }
        let requirements = Requirements::new(&spec.agent, &spec.labels, &spec.repository);
        task.class = requirements.class(task.owner);
        self.classes.insert(task.class, (task.owner, requirements));
        task.spec = Arc::new(spec);
        task.version += 1;
        task.updated = self.now;
        self.names.insert((task.contract, task.spec.name.clone()), id);
        self.respecs.insert(id);
        self.look = true;
        self.log_task(&task, event, vec!["spec".to_owned()], actor, String::new());
        self.tasks.set(id, task.clone());
        Ok(Reply::Task(Box::new(task)))
    }

    fn change_dependencies(
        &mut self,
        owner: OwnerId,
        id: TaskId,
        add: &[String],
        remove: &[String],
        actor: &str,
    ) -> Result<Reply, Error> {
        let task = self.task_of(owner, id)?.clone();
        if task.status() != TaskStatus::Pending {
            let word = task.status().word();
            let text = format!("the task is {word}; dependencies can be changed only before it starts");
            return Err(Error::Precondition(text));
        }
        let existing: Vec<TaskId> = (self.dependencies.get(&id).into_iter().flatten().copied())
            .filter(|dependency| !self.edges_gone.contains_key(&(id, *dependency)))
            .collect();
        let loaded = self.loaded_for(owner, task.contract);
        let mut violations = Vec::new();
        let edges = self.edges.values().map(|edge| (edge.dependent, edge.dependency));
        let edges = edges.filter(|pair| !self.edges_gone.contains_key(pair));
        let added = Added { task: id, existing: &existing, depends_on: add };
        let added = dependency::resolve_added(&added, &loaded, edges).unwrap_or_else(|problems| {
            violations.extend(problems.iter().map(|problem| {
                let field = problem.dependency.map_or("depends_on".to_owned(), |place| format!("depends_on[{place}]"));
                (field, problem.to_string())
            }));
            Vec::new()
        });
        let mut removed = Vec::new();
        for (place, word) in remove.iter().enumerate() {
            let named = super::load::task_id(word).or_else(|| self.names.get(&(task.contract, word.clone())).copied());
            match named.filter(|dependency| existing.contains(dependency)) {
                Some(dependency) => removed.push(dependency),
                None => {
                    let text = format!("the task does not depend on `{word}`");
                    violations.push((format!("depends_on[{place}]"), text));
                }
            }
        }
        if !violations.is_empty() {
            return Err(Error::Invalid(violations));
        }
        for edge in &added {
            let satisfied = self.tasks.get(edge.dependency).is_some_and(|task| task.status().is_complete());
            let edge = Edge { dependent: id, dependency: edge.dependency, contract: task.contract, satisfied };
            self.edge_new(edge);
        }
        for dependency in removed {
            if let Some(edge) = self.edges.get((id, dependency)).copied() {
                self.edges_gone.insert((id, dependency), edge);
            }
        }
        self.recount_after_change(id);
        if let Some(task) = self.tasks.get_mut(id) {
            task.version += 1;
            let task = task.clone();
            let fields = vec!["depends_on".to_owned(), "unmet_dependencies".to_owned()];
            self.log_task(&task, "task.dependencies_changed", fields, actor, String::new());
        }
        self.reply_task(id)
    }

    /// The counter from the edges' own flags: dependencies that were not touched need not be loaded for it.
    fn recount_after_change(&mut self, id: TaskId) {
        let mut dependencies = self.dependencies.get(&id).cloned().unwrap_or_default();
        dependencies.sort_unstable();
        dependencies.dedup();
        let unmet = dependencies
            .into_iter()
            .filter(|dependency| !self.edges_gone.contains_key(&(id, *dependency)))
            .filter(|dependency| self.edges.get((id, *dependency)).is_some_and(|edge| !edge.satisfied))
            .count();
        let now = self.now;
        if let Some(task) = self.tasks.get_mut(id) {
            task.unmet = u32::try_from(unmet).unwrap_or(u32::MAX);
            task.updated = now;
            self.look = true;
        }
    }

    fn cancel_task(
        &mut self,
        owner: OwnerId,
        id: TaskId,
        reason: &str,
        cascade: bool,
        actor: &str,
    ) -> Result<Reply, Error> {
        self.task_of(owner, id)?;
        let event = TaskEvent::Cancel { by: actor.to_owned(), reason: reason.to_owned() };
        // What hangs on it may be final already; the task itself must not be, unless it is what they hang on.
        let refused = self.cancel_one(id, &event, reason, actor).err();
        if let Some(refused) = refused
            && !cascade
        {
            return Err(Error::Precondition(refused.to_string()));
        }
        if cascade {
            for dependent in self.closures.get(&id).cloned().unwrap_or_default() {
                if dependent != id {
                    let _ = self.cancel_one(dependent, &event, reason, actor);
                }
            }
        }
        self.reply_task(id)
    }

    /// Cancels one task and ends its attempt.
    pub(super) fn cancel_one(
        &mut self,
        id: TaskId,
        event: &TaskEvent,
        reason: &str,
        actor: &str,
    ) -> Result<(), crate::domain::transition::Refused> {
        let newest = self.newest_attempt(id);
        if self.task_event(id, event, actor)?
            && let Some(attempt) = newest
        {
            let reason = if reason.is_empty() { "cancelled" } else { reason };
            self.end_attempt(attempt, reason);
            let lost = |status| status == AttemptStatus::Disconnected;
            if let Some(attempt) = self.attempts.get(attempt)
                && (!attempt.is_live() || lost(attempt.state.status()))
            {
                let (task, number) = (attempt.task, attempt.number);
                self.attempt_gone(task, number, "server");
            }
        }
        Ok(())
    }

    fn retry_task(&mut self, owner: OwnerId, id: TaskId, actor: &str) -> Result<Reply, Error> {
        let task = self.task_of(owner, id)?;
        let contract = task.contract;
        if self.contracts.get(contract).is_some_and(|contract| contract.cancelled.is_some()) {
            return Err(Error::Precondition("the contract is cancelled; its tasks cannot be retried".to_owned()));
        }
        self.task_event(id, &TaskEvent::Retry(RetryFrom::Work), actor)
            .map_err(|refused| Error::Precondition(refused.to_string()))?;
        self.reply_task(id)
    }

    fn reply_task(&self, id: TaskId) -> Result<Reply, Error> {
        let task = self.tasks.get(id).cloned();
        let task = task.ok_or_else(|| Error::NotFound { kind: "task", id: id.to_string() })?;
        Ok(Reply::Task(Box::new(task)))
    }

    // === daemons and keys ===

    fn drain(&mut self, owner: OwnerId, id: DaemonId, draining: bool) -> Result<Reply, Error> {
        let found = self.daemons.get(id).filter(|daemon| daemon.owner == owner).cloned();
        let mut daemon = found.ok_or_else(|| Error::NotFound { kind: "daemon", id: id.to_string() })?;
        if daemon.draining != draining {
            daemon.draining = draining;
            self.daemons.set(id, daemon.clone());
            self.look = true;
        }
        Ok(Reply::Daemon(Box::new(daemon)))
    }

    fn create_key(&mut self, kind: KeyKind, owner: Option<&str>, label: &str, hash: [u8; 32]) -> Result<Reply, Error> {
        let owner_id = match owner {
            None => None,
            Some(name) => Some(match self.owners.get(name).copied().flatten() {
                Some(id) => id,
                None => {
                    let id = OwnerId(self.new_id());
                    self.owners.insert(name.to_owned(), Some(id));
                    self.owners_new.push((id, name.to_owned()));
                    id
                }
            }),
        };
        let key = Key {
            id: KeyId(self.new_id()),
            kind,
            owner: owner_id,
            owner_name: owner.unwrap_or_default().to_owned(),
            label: label.to_owned(),
            hash,
            created: self.now,
            revoked: None,
        };
        self.keys.insert(key.id, key.clone());
        self.keys_dirty.insert(key.id);
        Ok(Reply::Key(Box::new(key)))
    }

    fn revoke_key(&mut self, id: KeyId) -> Result<Reply, Error> {
        let now = self.now;
        let key = self.keys.get_mut(&id).ok_or_else(|| Error::NotFound { kind: "key", id: id.to_string() })?;
        if key.revoked.is_none() {
            if key.kind == KeyKind::Admin && self.admins.iter().all(|admin| *admin == id) {
                let text = "it is the last admin key, and without one no keys can be made; make another first";
                return Err(Error::Precondition(text.to_owned()));
            }
            self.admins.remove(&id);
            key.revoked = Some(now);
            self.keys_dirty.insert(id);
        }
        Ok(Reply::Key(Box::new(key.clone())))
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn check_etag(kind: &'static str, given: Option<i64>, current: i64) -> Result<(), Error> {
    match given {
        Some(given) if given != current => Err(Error::Etag { kind, given, current }),
        _ => Ok(()),
    }
}

//! Contracts and their tasks, as people make and change them.

use std::{collections::HashMap, sync::Arc};

use super::{
    load::task_id,
    op::{Error, Reply},
    tasks::check_etag,
    work::Work,
};
use crate::{
    domain::{
        ContractId, OwnerId, TaskId,
        contract::{Contract, Hold},
        daemon::Requirements,
        dependency::{self, Known, Loaded},
        draft::{ContractUpdate, NewContract, NewTask, NewTasks},
        task::{MAX_TASKS, New, Task},
    },
    store::Edge,
};

impl Work {
    pub(super) fn create_contract(&mut self, new: &NewContract, actor: &str) -> Result<Reply, Error> {
        let contract = Contract {
            name: new.name.clone(),
            description: new.description.clone(),
            repository: new.repository.clone(),
            base_branch: new.base_branch.clone(),
            limits: new.limits.clone(),
            held: new.hold.then(|| Hold {
                by: actor.to_owned(),
                reason: "held when it was made".to_owned(),
                since: self.now,
            }),
            ..Contract::new(ContractId(self.new_id()), new.owner, self.now)
        };
        self.create(contract, true, &new.tasks, actor)
    }

    pub(super) fn create_tasks(&mut self, new: &NewTasks, actor: &str) -> Result<Reply, Error> {
        let Some(contract) = new.contract else {
            let first = new.tasks.first();
            let contract = Contract {
                name: first.map(|task| task.spec.name.clone()).unwrap_or_default(),
                repository: first.map(|task| task.spec.repository.clone()).unwrap_or_default(),
                base_branch: first.map(|task| task.spec.base_branch.clone()).unwrap_or_default(),
                anonymous: true,
                ..Contract::new(ContractId(self.new_id()), new.owner, self.now)
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
    pub(super) fn create(
        &mut self,
        contract: Contract,
        is_new: bool,
        new: &[NewTask],
        actor: &str,
    ) -> Result<Reply, Error> {
        let total = u32::try_from(new.len()).unwrap_or(u32::MAX).saturating_add(contract.counts.total());
        if total > MAX_TASKS {
            let text = format!("the contract would have {total} tasks; at most {MAX_TASKS} are allowed");
            return Err(Error::Invalid(vec![("tasks".to_owned(), text)]));
        }
        let ids: Vec<TaskId> = new.iter().map(|_| TaskId(self.new_id())).collect();
        let wanted: Vec<_> = (new.iter().zip(&ids))
            .map(|(task, id)| dependency::NewTask { id: *id, name: &task.spec.name, depends_on: &task.depends_on })
            .collect();
        let words = new.iter().flat_map(|task| task.depends_on.iter().chain([&task.spec.name]));
        let loaded = self.loaded_by(contract.owner, contract.id, words);
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
        let mut begin_from = vec![None; new.len()];
        for (index, task) in new.iter().enumerate() {
            if task.spec.repository.is_empty() && contract.repository.is_empty() {
                let text = "name a repository here or in the contract".to_owned();
                violations.push((format!("tasks[{index}].repository"), text));
            }
            if let Some(from) = task.spec.branched_from {
                let named = &task.spec.repository;
                let repository = if named.is_empty() { &contract.repository } else { named };
                match self.begin_from(contract.owner, from, repository) {
                    Ok(from) => begin_from[index] = Some(from),
                    Err(why) => violations.push((format!("tasks[{index}].checkpoint_id"), why)),
                }
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
        let mut unmet: HashMap<TaskId, u32> = HashMap::new();
        for edge in &edges {
            *unmet.entry(edge.dependent).or_default() += u32::from(!edge.satisfied);
        }
        for ((draft, task_id), begin_from) in new.iter().zip(&ids).zip(begin_from) {
            let mut spec = Arc::clone(&draft.spec);
            if spec.repository.is_empty() || spec.branched_from != begin_from {
                let own = Arc::make_mut(&mut spec);
                own.branched_from = begin_from;
                if own.repository.is_empty() {
                    own.repository.clone_from(&contract.repository);
                    if own.base_branch.is_empty() {
                        own.base_branch.clone_from(&contract.base_branch);
                    }
                }
            }
            let class = Requirements::new(&spec.agent, &spec.labels, &spec.repository).class(owner);
            let depth = spec.parent.and_then(|parent| self.tasks.get(parent)).map_or(0, |parent| parent.depth + 1);
            let task = New {
                id: *task_id,
                contract: id,
                owner,
                depth,
                spec,
                class,
                unmet: unmet.get(task_id).copied().unwrap_or(0),
                checkpoint: begin_from.map(|from| from.checkpoint),
                now: self.now,
            }
            .task();
            self.categories.extend(draft.touches.clone().map(|touches| (*task_id, touches)));
            self.task_new(task, actor);
        }
        let pairs = edges.iter().map(|edge| (edge.dependent, edge.dependency)).collect();
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
        Ok(Reply::Created { contract: Box::new(contract), tasks, edges: Some(pairs) })
    }

    /// All tasks that are loaded, as a contract sees them.
    pub(super) fn loaded_for(&self, owner: OwnerId, contract: ContractId) -> Loaded {
        let mut loaded = Loaded::new(owner, contract);
        self.tasks.values().for_each(|task| loaded.insert(known(task)));
        loaded
    }

    /// The tasks that a contract has for these words: names, or ids.
    fn loaded_by<'a>(&self, owner: OwnerId, contract: ContractId, words: impl Iterator<Item = &'a String>) -> Loaded {
        let mut loaded = Loaded::new(owner, contract);
        for word in words {
            let named = self.names.get(&(contract, word.clone())).and_then(|id| self.tasks.get(*id));
            let named = named.filter(|task| task.spec.name == *word);
            let by_id = task_id(word).and_then(|id| self.tasks.get(id));
            named.into_iter().chain(by_id).for_each(|task| loaded.insert(known(task)));
        }
        loaded
    }

    pub(super) fn update_contract(&mut self, update: &ContractUpdate, actor: &str) -> Result<Reply, Error> {
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
    pub(super) fn change_contract(
        &mut self,
        owner: OwnerId,
        id: ContractId,
        event: &'static str,
        fields: &[&'static str],
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
}

fn known(task: &Task) -> Known {
    Known {
        id: task.id,
        contract: task.contract,
        owner: task.owner,
        name: task.spec.name.clone(),
        status: task.status(),
    }
}

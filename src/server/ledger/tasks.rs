//! Single tasks, as people change them: what they ask for, what they wait for, and that they end.

use std::sync::Arc;

use super::{
    op::{Error, Reply},
    work::Work,
};
use crate::{
    domain::{
        OwnerId, TaskId,
        attempt::{Attempt, AttemptState, AttemptStatus, FailureClass},
        contract::Contract,
        daemon::Requirements,
        dependency::{self, Added},
        draft::TaskUpdate,
        task::{TaskSpec, TaskStatus},
        transition::{Refused, TaskEvent},
    },
    store::Edge,
};

/// A task that was told to somebody, or is done, stays as it was told; so does one that is never told again.
fn may_change(status: TaskStatus, contract: Option<&Contract>, what: &str) -> Result<(), Error> {
    if contract.is_some_and(|contract| contract.cancelled.is_some()) {
        let text = format!("the contract is cancelled; its tasks are not tried again, so {what} stays as it is");
        return Err(Error::Precondition(text));
    }
    if status.may_change() {
        return Ok(());
    }
    let word = status.word();
    let text = format!("the task is {word}; {what} can be changed only while it is PENDING, FAILED or CANCELLED");
    Err(Error::Precondition(text))
}

impl Work {
    pub(super) fn update_task(&mut self, update: &TaskUpdate, actor: &str) -> Result<Reply, Error> {
        let task = self.task_of(update.owner, update.task)?;
        check_etag("task", update.etag, task.version)?;
        // What is asked of one that has started stays as it is: its order is made from that when it is sent again.
        let nothing_else = TaskUpdate::nothing(update.owner, update.task, update.etag);
        let only_hidden = *update == TaskUpdate { hidden: update.hidden, ..nothing_else };
        if !only_hidden {
            may_change(task.status(), self.contracts.get(task.contract), "what is asked of it")?;
        }
        if let Some(name) = &update.name
            && self.names.get(&(task.contract, name.clone())).is_some_and(|taken| *taken != task.id)
        {
            return Err(Error::Invalid(vec![(
                "spec.name".to_owned(),
                format!("the contract has a task named `{name}` already"),
            )]));
        }
        let before = Arc::clone(&task.spec);
        let update = update.clone();
        let changed = self.respec(update.task, "task.updated", actor, |spec| {
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
        })?;
        if self.tasks.get(update.task).is_some_and(|task| task.spec.asks_else(&before)) {
            self.lost_is_outdated(update.task);
        }
        if self.tasks.get(update.task).is_some_and(|task| task.spec.agent != before.agent)
            && let Some(task) = self.tasks.get_mut(update.task)
        {
            task.handed_over = Some(task.attempt);
        }
        Ok(changed)
    }

    /// An attempt whose daemon was lost works on what was asked before, if it does: should the daemon come back, it is ended there
    /// and its work is kept, and its result is not the task's.
    fn lost_is_outdated(&mut self, id: TaskId) {
        let newest = self.tasks.get(id).map(|task| (id, task.attempt));
        let Some(newest) = newest.and_then(|key| self.attempt_numbers.get(&key).copied()) else { return };
        let is_lost = |attempt: &Attempt| match &attempt.state {
            AttemptState::Ended { outcome: Err(failure), .. } => failure.class == FailureClass::DaemonLost,
            _ => false,
        };
        if self.attempts.get(newest).is_some_and(is_lost)
            && let Some(attempt) = self.attempts.get_mut(newest)
        {
            attempt.fenced = true;
        }
    }

    /// Changes what a task is asked.
    pub(super) fn respec(
        &mut self,
        id: TaskId,
        event: &'static str,
        actor: &str,
        change: impl FnOnce(&mut TaskSpec),
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
        self.categories.remove(&id);
        self.look = true;
        self.log_task(&task, event, vec!["spec"], actor, String::new());
        self.tasks.set(id, task.clone());
        Ok(Reply::Task(Box::new(task)))
    }

    pub(super) fn change_dependencies(
        &mut self,
        owner: OwnerId,
        id: TaskId,
        add: &[String],
        remove: &[String],
        actor: &str,
    ) -> Result<Reply, Error> {
        let task = self.task_of(owner, id)?.clone();
        may_change(task.status(), self.contracts.get(task.contract), "what it depends on")?;
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
        // It has not waited for what the task waits for now.
        if !added.is_empty() {
            self.lost_is_outdated(id);
        }
        if let Some(task) = self.tasks.get_mut(id) {
            task.version += 1;
            let task = task.clone();
            let fields = vec!["depends_on", "unmet_dependencies"];
            self.log_task(&task, "task.dependencies_changed", fields, actor, String::new());
        }
        self.reply_task(id)
    }

    /// The counter from the edges' own flags: dependencies that were not touched need not be loaded for it.
    pub(super) fn recount_after_change(&mut self, id: TaskId) {
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

    pub(super) fn cancel_task(
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
    ) -> Result<(), Refused> {
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

    pub(super) fn reply_task(&self, id: TaskId) -> Result<Reply, Error> {
        let task = self.tasks.get(id).cloned();
        let task = task.ok_or_else(|| Error::NotFound { kind: "task", id: id.to_string() })?;
        Ok(Reply::Task(Box::new(task)))
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

pub(super) fn check_etag(kind: &'static str, given: Option<i64>, current: i64) -> Result<(), Error> {
    match given {
        Some(given) if given != current => Err(Error::Etag { kind, given, current }),
        _ => Ok(()),
    }
}

//! What people do about a task that does not go as they wish: try it again from another point, move it, make another of its
//! work, take a checkpoint of it now, or pull it loose from whatever it hangs on.
//!
//! ```text
//!   retry, resume   a task at rest ──> PENDING, with what it goes on from
//!   reassign        a live one ──> its attempt is ended and fenced ──> PENDING, for that daemon first
//!   fork, branch    checkpoint, or the result of one that is DONE ──> a new task beside it, with its dependencies
//!   force-release   every attempt that lives ──> ENDED without its daemon's word ──> PENDING
//! ```
//!
//! An attempt that is given up here may still run there. It is fenced: its daemon hears so with its next heartbeat or
//! attach, ends it and keeps its work.

use std::sync::Arc;

use super::{
    fleet::Fleet,
    op::{Error, Reply},
    work::Work,
};
use crate::{
    domain::{
        AttemptId, CheckpointId, DaemonId, OwnerId, TaskId,
        attempt::{AttemptEvent, AttemptState, AttemptStatus, AttemptStep, Failure, FailureClass},
        daemon::Requirements,
        draft::Fork,
        explain::{self, Member},
        order::Order,
        task::{BranchedFrom, MAX_NAME_BYTES, MAX_TASKS, New, Task, TaskSpec, TaskStatus},
        transition::{RetryFrom, TaskEvent},
    },
    store::Edge,
};

/// Names that are tried for a fork that has none: with more of one task, somebody has to think of a name.
pub(super) const FORK_NAMES: usize = 64;

/// Where a fork begins.
enum Origin {
    /// In this checkpoint.
    Checkpoint(CheckpointId),
    /// From what the task made, as its dependents do.
    Result,
}

impl Work {
    // === another try ===

    pub(super) fn retry_task(
        &mut self,
        owner: OwnerId,
        id: TaskId,
        from: RetryFrom,
        actor: &str,
    ) -> Result<Reply, Error> {
        let task = self.task_of(owner, id)?.clone();
        if self.contracts.get(task.contract).is_some_and(|contract| contract.cancelled.is_some()) {
            return Err(Error::Precondition("the contract is cancelled; its tasks cannot be retried".to_owned()));
        }
        if is_in_hand(task.status()) {
            let (status, id) = (task.status().word(), id.short());
            return Err(Error::Precondition(format!(
                "the task is {status}: move it with `makima task reassign {id}`, or end it with `makima task cancel {id}` first"
            )));
        }
        let foreign = match from {
            RetryFrom::Checkpoint(checkpoint) => self.usable_checkpoint(&task, checkpoint)?,
            RetryFrom::Work | RetryFrom::Base => None,
        };
        self.task_event(id, &TaskEvent::Retry(from), actor)
            .map_err(|refused| Error::Precondition(refused.to_string()))?;
        if foreign.is_some() {
            self.respec(id, "task.updated", actor, |spec| spec.branched_from = foreign)?;
        }
        self.reply_task(id)
    }

    /// Checks that a task may go on from a checkpoint. Answers where it comes from, if that is another task.
    fn usable_checkpoint(&self, task: &Task, id: CheckpointId) -> Result<Option<BranchedFrom>, Error> {
        let checkpoint = self.checkpoints.get(&id).filter(|checkpoint| checkpoint.owner == task.owner);
        let checkpoint = checkpoint.ok_or_else(|| Error::NotFound { kind: "checkpoint", id: id.to_string() })?;
        let source = checkpoint.attempt.task;
        if source == task.id {
            return Ok(None);
        }
        self.same_repository(source, &task.spec.repository).map_err(Error::Precondition)?;
        Ok(Some(BranchedFrom { task: source, checkpoint: id, conversation: true }))
    }

    /// The work of a task can be gone on with only in its repository; the reason if it is another.
    fn same_repository(&self, source: TaskId, repository: &str) -> Result<(), String> {
        let theirs = self.tasks.get(source).map(|source| source.spec.repository.as_str());
        match theirs {
            Some(theirs) if theirs == repository => Ok(()),
            Some(theirs) => {
                Err(format!("the checkpoint is of repository {theirs}, and this task works on {repository}"))
            }
            None => Err("the checkpoint's task is no longer kept".to_owned()),
        }
    }

    /// What a new task says it begins from, completed; the reason if it cannot.
    pub(super) fn begin_from(
        &self,
        owner: OwnerId,
        from: BranchedFrom,
        repository: &str,
    ) -> Result<BranchedFrom, String> {
        let checkpoint = self.checkpoints.get(&from.checkpoint).filter(|checkpoint| checkpoint.owner == owner);
        let checkpoint = checkpoint.ok_or_else(|| format!("there is no checkpoint `{}`", from.checkpoint))?;
        let source = checkpoint.attempt.task;
        if from.is_named() && from.task != source {
            return Err(format!("is a checkpoint of task {source}, not of {}", from.task));
        }
        self.same_repository(source, repository)?;
        Ok(BranchedFrom { task: source, ..from })
    }

    // === elsewhere ===

    pub(super) fn reassign_task(
        &mut self,
        owner: OwnerId,
        id: TaskId,
        to: Option<DaemonId>,
        fleet: &Fleet,
        actor: &str,
    ) -> Result<Reply, Error> {
        let task = self.task_of(owner, id)?.clone();
        if task.status().is_final() {
            let (status, id) = (task.status().word(), id.short());
            return Err(Error::Precondition(format!(
                "the task is {status}: try it again with `makima task retry {id}`"
            )));
        }
        if let Some(to) = to {
            self.takes(&task, to, fleet)?;
        }
        let newest = self.newest_attempt(id);
        let was_in_hand = is_in_hand(task.status());
        self.task_event(id, &TaskEvent::Reassign { to }, actor)
            .map_err(|refused| Error::Precondition(refused.to_string()))?;
        if was_in_hand && let Some(attempt) = newest {
            self.end_reassigned(attempt);
        }
        self.look = true;
        self.reply_task(id)
    }

    /// Ends an attempt whose task goes on elsewhere. A daemon that has gone quiet is not waited for.
    fn end_reassigned(&mut self, id: AttemptId) {
        let lost = self.attempts.get(id).is_some_and(|it| it.state.status() == AttemptStatus::Disconnected);
        if lost {
            self.give_up(id, FailureClass::DaemonLost, "its daemon had gone quiet, and its task was given to another");
        } else {
            self.end_attempt(id, "the task goes on elsewhere");
        }
    }

    /// Checks that a daemon could take a task now; everything it lacks is named.
    fn takes(&self, task: &Task, to: DaemonId, fleet: &Fleet) -> Result<(), Error> {
        let row = self.daemons.get(to).filter(|daemon| daemon.owner == task.owner);
        let row = row.ok_or_else(|| Error::NotFound { kind: "daemon", id: to.to_string() })?;
        let name = &row.card.name;
        if is_in_hand(task.status()) && task.daemon == Some(to) {
            return Err(Error::Precondition(format!("the task is on {name} already; name another daemon, or none")));
        }
        let here = fleet.get(to);
        let mut live = here.map_or(0, |here| i64::try_from(here.live.len()).unwrap_or(i64::MAX));
        for (was, attempt) in self.attempts.dirty_pairs().filter(|(_, attempt)| attempt.daemon == to) {
            live += i64::from(attempt.is_live()) - i64::from(was.is_some_and(|was| was.is_live()));
        }
        let member = Member {
            id: row.id,
            card: row.card.clone(),
            attached: here.is_some(),
            draining: row.draining,
            last_seen: row.last_seen,
            ready: here.is_some_and(|here| here.ready),
            live: u32::try_from(live.max(0)).unwrap_or(u32::MAX),
        };
        let lacks = explain::hindrances(task, &member, self.now);
        if lacks.is_empty() {
            Ok(())
        } else {
            Err(Error::Unfit(format!("{name} cannot take it: {}", lacks.join("; "))))
        }
    }

    /// Ends an attempt without its daemon's word. What of it still runs there is fenced.
    fn give_up(&mut self, id: AttemptId, class: FailureClass, why: &str) {
        let used = self.used_by(id);
        let ended = AttemptEvent::Ended { outcome: Err(Failure::new(class, why)) };
        if let AttemptStep::Moved(ended) = self.attempt_event(id, &ended) {
            self.count_usage(ended.task, &used);
            if let Some(attempt) = self.attempts.get_mut(id) {
                attempt.fenced = true;
            }
            self.attempt_gone(ended.task, ended.number, "server");
        }
    }

    // === loose ===

    pub(super) fn force_release(
        &mut self,
        owner: OwnerId,
        id: TaskId,
        reason: &str,
        actor: &str,
    ) -> Result<Reply, Error> {
        self.task_of(owner, id)?;
        let live: Vec<_> = (self.attempts.values())
            .filter(|attempt| attempt.task == id && attempt.is_live())
            .map(|attempt| (attempt.number, attempt.id, attempt.daemon))
            .collect();
        let given_up =
            live.iter().map(|(number, _, daemon)| format!("attempt {number} on {}", self.daemon_name(*daemon)));
        let given_up: Vec<_> = given_up.collect();
        let detail = match given_up.as_slice() {
            [] => reason.to_owned(),
            given_up => format!("{reason} (gave up {})", given_up.join(", ")),
        };
        let moved = self
            .task_event_because(id, &TaskEvent::ForceRelease, actor, Some(&detail))
            .map_err(|refused| Error::Precondition(refused.to_string()))?;
        for (_, attempt, _) in &live {
            self.give_up(*attempt, FailureClass::Cancelled, &format!("released by {actor}: {reason}"));
        }
        if !moved
            && !live.is_empty()
            && let Some(task) = self.tasks.get(id).cloned()
        {
            self.log_task(&task, "task.force_released", Vec::new(), actor, detail);
        }
        self.look = true;
        self.reply_task(id)
    }

    // === a checkpoint now ===

    pub(super) fn take_checkpoint(&mut self, owner: OwnerId, id: TaskId, actor: &str) -> Result<Reply, Error> {
        let task = self.task_of(owner, id)?.clone();
        let attempt = self.newest_attempt(id).and_then(|id| self.attempts.get(id)).cloned();
        let attempt = attempt.filter(|attempt| attempt.is_live() && !attempt.fenced);
        let Some(attempt) = attempt else {
            let status = task.status().word();
            return Err(Error::Precondition(format!("no agent works on the task: it is {status}")));
        };
        let daemon = self.daemon_name(attempt.daemon);
        let refused = match &attempt.state {
            AttemptState::Running { .. } => None,
            AttemptState::Assigned { .. } | AttemptState::Accepted { .. } => {
                Some(format!("its agent has not started yet on {daemon}; ask again when the task is RUNNING"))
            }
            AttemptState::Ending { .. } => Some(format!("its agent is being ended on {daemon}")),
            AttemptState::Finalizing { .. } => {
                Some(format!("its agent has ended well, and its result is on its way from {daemon}"))
            }
            AttemptState::Disconnected { .. } => {
                Some(format!("{daemon} has gone quiet; ask again when it is back (`makima daemon list`)"))
            }
            AttemptState::Ended { .. } => Some("its agent has ended".to_owned()),
        };
        if let Some(refused) = refused {
            return Err(Error::Precondition(refused));
        }
        self.command(attempt.daemon, attempt.reference(), Order::Checkpoint);
        self.log_task(&task, "task.checkpoint_asked", Vec::new(), actor, String::new());
        Ok(Reply::Task(Box::new(task)))
    }

    // === another of its work ===

    pub(super) fn fork_task(&mut self, fork: &Fork, actor: &str) -> Result<Reply, Error> {
        let source = self.task_of(fork.owner, fork.task)?.clone();
        let contract = self.contract_of(fork.owner, source.contract)?;
        if contract.cancelled.is_some() {
            return Err(Error::Precondition("the contract is cancelled; it takes no more tasks".to_owned()));
        }
        if contract.counts.total() >= MAX_TASKS {
            let text = format!("the contract has {MAX_TASKS} tasks already; no more are allowed");
            return Err(Error::Precondition(text));
        }
        let origin = self.fork_origin(fork, &source)?;
        let spec = self.fork_spec(fork, &source, &origin)?;
        let class = Requirements::new(&spec.agent, &spec.labels, &spec.repository).class(source.owner);
        let mut dependencies: Vec<TaskId> = (self.dependencies.get(&source.id).into_iter().flatten().copied())
            .filter(|dependency| !self.edges_gone.contains_key(&(source.id, *dependency)))
            .collect();
        // A dependency's result is what a task starts from: that is the simplest way to begin where it ended.
        dependencies.extend(matches!(origin, Origin::Result).then_some(source.id));
        dependencies.sort_unstable();
        dependencies.dedup();
        let id = TaskId(self.new_id());
        let complete = |id: &TaskId| self.tasks.get(*id).is_some_and(|task| task.status().is_complete());
        let edges: Vec<Edge> = dependencies
            .iter()
            .map(|dependency| Edge {
                dependent: id,
                dependency: *dependency,
                contract: source.contract,
                satisfied: complete(dependency),
            })
            .collect();
        let unmet = edges.iter().filter(|edge| !edge.satisfied).count();
        let task = New {
            id,
            contract: source.contract,
            owner: source.owner,
            depth: source.depth,
            checkpoint: spec.branched_from.map(|from| from.checkpoint),
            spec: Arc::new(spec),
            class,
            unmet: u32::try_from(unmet).unwrap_or(u32::MAX),
            now: self.now,
        }
        .task();
        self.task_new(task, actor);
        for edge in edges {
            self.edge_new(edge);
        }
        self.reply_task(id)
    }

    /// The checkpoint that is named, else the result, else the newest checkpoint.
    fn fork_origin(&self, fork: &Fork, source: &Task) -> Result<Origin, Error> {
        let kept = |id: CheckpointId| {
            let found = self.checkpoints.get(&id).filter(|it| it.owner == fork.owner && it.attempt.task == source.id);
            found.map(|it| it.id).ok_or_else(|| Error::NotFound { kind: "checkpoint", id: id.to_string() })
        };
        match (fork.checkpoint, source.checkpoint) {
            (Some(named), _) => Ok(Origin::Checkpoint(kept(named)?)),
            (None, _) if source.status().is_complete() => Ok(Origin::Result),
            (None, Some(newest)) => Ok(Origin::Checkpoint(kept(newest)?)),
            (None, None) if is_in_hand(source.status()) => Err(Error::Precondition(format!(
                "there is no checkpoint of its work yet: take one with `makima task checkpoint now {}`",
                source.id.short()
            ))),
            (None, None) => Err(Error::Precondition(format!(
                "the task is {} and has neither a checkpoint nor a result: there is no work to go on with",
                source.status().word()
            ))),
        }
    }

    fn fork_spec(&self, fork: &Fork, source: &Task, origin: &Origin) -> Result<TaskSpec, Error> {
        let mut spec = (*source.spec).clone();
        if fork.conversation && fork.agent.as_ref().is_some_and(|agent| *agent != spec.agent) {
            let text = format!("cannot go on with another agent: it is of `{}`; branch without it", spec.agent);
            return Err(Error::Invalid(vec![("conversation".to_owned(), text)]));
        }
        let taken = |name: &str| self.names.contains_key(&(source.contract, name.to_owned()));
        spec.name = match &fork.name {
            Some(name) if taken(name) => {
                let text = format!("the contract has a task named `{name}` already");
                return Err(Error::Invalid(vec![("name".to_owned(), text)]));
            }
            Some(name) => name.clone(),
            None => match fork_names(&spec.name).find(|name| !taken(name)) {
                Some(name) => name,
                None => {
                    let text = format!("is required: {FORK_NAMES} tasks are named after `{}` already", spec.name);
                    return Err(Error::Invalid(vec![("name".to_owned(), text)]));
                }
            },
        };
        set(&mut spec.plan, fork.plan.as_ref());
        set(&mut spec.agent, fork.agent.as_ref());
        set(&mut spec.model, fork.model.as_ref());
        spec.hidden = false;
        spec.branched_from = match origin {
            Origin::Checkpoint(checkpoint) => {
                Some(BranchedFrom { task: source.id, checkpoint: *checkpoint, conversation: fork.conversation })
            }
            Origin::Result => None,
        };
        Ok(spec)
    }
}

/// An attempt has the task in its hands.
fn is_in_hand(status: TaskStatus) -> bool {
    !status.is_final() && status != TaskStatus::Pending
}

/// Names for forks of a task: `<name>-fork`, `<name>-fork-2`, ...
pub(super) fn fork_names(name: &str) -> impl Iterator<Item = String> {
    /// Room for the longest ending.
    const ENDING: usize = "-fork-64".len();
    let mut end = name.len().min(MAX_NAME_BYTES - ENDING);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    let stem = name[..end].to_owned();
    (1..=FORK_NAMES).map(move |n| if n == 1 { format!("{stem}-fork") } else { format!("{stem}-fork-{n}") })
}

fn set(field: &mut String, value: Option<&String>) {
    if let Some(value) = value {
        field.clone_from(value);
    }
}

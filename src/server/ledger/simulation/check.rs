//! What must hold, whatever fails: after every commit what a glance shows, at the end everything.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::work::Work,
    machine::TOLD_APART,
    world::{MINUTE, World},
};
use crate::domain::{
    AttemptId, AttemptRef, CheckpointId, DaemonId, TaskId,
    attempt::{Attempt, AttemptState, Failure, FailureClass, TaskResult},
    contract::Counts,
    task::{Task, TaskState, TaskStatus},
};

/// What is known of the world beside what the server believes.
#[derive(Debug, Default)]
pub(super) struct Truth {
    /// Terminal reports that daemons have journalled, and that are not gone with a disk.
    reports: BTreeMap<AttemptRef, (DaemonId, Result<TaskResult, Failure>)>,
    /// Attempts that have come to a result, and said so, whatever became of the disk.
    made: BTreeSet<AttemptRef>,
    checkpoints: Vec<CheckpointId>,
    /// Versions last seen in the log.
    versions: BTreeMap<TaskId, i64>,
}

impl Truth {
    pub(super) fn reported(&mut self, daemon: DaemonId, attempt: AttemptRef, outcome: &Result<TaskResult, Failure>) {
        self.reports.insert(attempt, (daemon, outcome.clone()));
        if outcome.is_ok() {
            self.made.insert(attempt);
        }
    }

    pub(super) fn disk_lost(&mut self, lost: DaemonId) {
        self.reports.retain(|_, (daemon, _)| *daemon != lost);
    }

    /// Reports go with it; the directories remain, and say the same of what had a result.
    pub(super) fn journal_lost(&mut self, lost: DaemonId) {
        self.reports.retain(|_, (daemon, _)| *daemon != lost);
    }

    pub(super) fn checkpoint_acknowledged(&mut self, id: CheckpointId) {
        self.checkpoints.push(id);
    }
}

fn lost(attempt: &Attempt) -> bool {
    matches!(&attempt.state, AttemptState::Ended { outcome: Err(failure), .. } if failure.class == FailureClass::DaemonLost)
}

impl World {
    /// A batch was committed.
    pub(super) fn committed(&mut self, work: &Work) {
        let memory = &self.server.memory;
        let mut wrong: Vec<String> = Vec::new();
        let mut lines: Vec<String> = Vec::new();
        for change in &memory.changes {
            let what = &change.what;
            if let Some(task) = change.task {
                let version = self.truth.versions.entry(task).or_default();
                if what.version < *version {
                    wrong.push(format!("9, versions: {} of {} is older than {version}", what.version, what.task_name));
                }
                *version = what.version;
            }
            lines.push(format!(
                "server: {} {} {:?}/{} {}",
                what.event, what.task_name, what.status, what.attempt, what.detail
            ));
        }
        for (was, attempt) in work.attempts.dirty_pairs() {
            let reference = attempt.reference();
            let task = memory.tasks.get(&attempt.task);
            if was.is_none() {
                self.assigned_rightly(attempt, &mut wrong);
            }
            let ends = was.is_some_and(Attempt::is_live) && !attempt.is_live();
            if ends && !lost(attempt) && self.machines.iter().any(|machine| machine.agents.contains_key(&reference)) {
                wrong.push(format!("7: {reference} is said to have ended, and its agent lives"));
            }
            if let Some(task) = task {
                self.fenced_rightly(task, &mut wrong);
            }
        }
        for (_, task) in work.tasks.dirty_pairs() {
            self.task_is_sound(task.id, &mut wrong);
        }
        // What the next batch goes on from is what the database says.
        let counted = work.counted.iter().map(|(id, unmet)| (*id, *unmet));
        for (id, here) in work.tasks.values().map(|task| (task.id, task.unmet)).chain(counted) {
            if let Some(there) = memory.tasks.get(&id).map(|row| row.unmet).filter(|there| *there != here) {
                wrong.push(format!("edges: {} has {here} unmet dependencies, its edges {there}", id.short()));
            }
        }
        // An order has all that its task depends on.
        let new = work.attempts.new_rows();
        for (spawn, task) in new.iter().filter_map(|attempt| Some((attempt.outstanding()?, attempt.task))) {
            let there = memory.edges.values().filter(|edge| edge.dependent == task).map(|edge| edge.dependency);
            let told = spawn.dependencies.iter().map(|dependency| dependency.task);
            let (there, told): (BTreeSet<TaskId>, BTreeSet<TaskId>) = (there.collect(), told.collect());
            if there != told || spawn.dependencies.iter().any(|dependency| !dependency.status.is_complete()) {
                wrong.push(format!("4: the order for {} tells of {told:?}, not of {there:?}", task.short()));
            }
        }
        for line in lines {
            self.note(|| line);
        }
        if let Some(what) = wrong.into_iter().next() {
            self.breaks(|| what);
        }
    }

    /// What the next batch takes for edges without looking is what there is.
    pub(super) fn check_kept(&mut self) {
        let Some(life) = &self.server.life else { return };
        let edges = &self.server.memory.edges;
        let sorted = |ids: &mut dyn Iterator<Item = TaskId>| ids.collect::<BTreeSet<TaskId>>();
        let mut wrong = None;
        for id in life.kept.with_edges() {
            let from = sorted(&mut edges.values().filter(|e| e.dependent == id).map(|e| e.dependency));
            let to = sorted(&mut edges.values().filter(|e| e.dependency == id).map(|e| e.dependent));
            let kept = sorted(&mut life.kept.dependencies(id).into_iter().flatten().copied());
            let dependents = life.kept.dependents(id).map(|(_, of)| sorted(&mut of.iter().copied()));
            let satisfied = edges.values().any(|e| e.dependency == id && e.satisfied);
            if kept != from || dependents.is_some_and(|of| of != to || satisfied) {
                wrong = Some(format!("edges: those of {} are not what is kept of them", id.short()));
            }
        }
        let taken = |task: &&Task| life.kept.names.is_free(task.contract, &task.spec.name);
        if let Some(task) = self.server.memory.tasks.values().find(taken) {
            wrong = Some(format!("names: that of {} is taken for free", task.id.short()));
        }
        wrong = wrong.or_else(|| self.server.memory.lanes_are_not(&life.kept.lanes));
        if let Some(wrong) = wrong {
            self.breaks(|| wrong);
        }
    }

    fn assigned_rightly(&self, attempt: &Attempt, wrong: &mut Vec<String>) {
        let memory = &self.server.memory;
        for edge in memory.edges.values().filter(|edge| edge.dependent == attempt.task) {
            if !memory.tasks.get(&edge.dependency).is_some_and(|task| task.status().is_complete()) {
                wrong.push(format!(
                    "4: {} starts before its dependency {}",
                    attempt.reference(),
                    edge.dependency.short()
                ));
            }
        }
        let live = |of: &dyn Fn(&Attempt) -> bool| memory.attempts.values().filter(|a| a.is_live() && of(a)).count();
        let on_daemon = live(&|a| a.daemon == attempt.daemon);
        let slots = memory.daemons.get(&attempt.daemon).map_or(0, |daemon| daemon.card.slots);
        if on_daemon > usize::try_from(slots).unwrap_or(0) {
            wrong.push(format!("6: {on_daemon} attempts on {slots} slots with {}", attempt.reference()));
        }
        let in_contract = live(&|a| a.contract == attempt.contract);
        let limit = memory.contracts.get(&attempt.contract).map_or(0, |contract| contract.limits.concurrency);
        if in_contract > usize::try_from(limit).unwrap_or(0) {
            wrong.push(format!("6: {in_contract} attempts of a contract that may have {limit}"));
        }
    }

    /// At most one attempt can change the task, and that is its newest.
    fn fenced_rightly(&self, task: &Task, wrong: &mut Vec<String>) {
        for attempt in self.server.memory.attempts.values().filter(|attempt| attempt.task == task.id) {
            if attempt.number < task.attempt && !attempt.fenced && (attempt.is_live() || lost(attempt)) {
                wrong.push(format!(
                    "1: {} could change its task, which has attempt {}",
                    attempt.reference(),
                    task.attempt
                ));
            }
        }
    }

    fn task_is_sound(&self, id: TaskId, wrong: &mut Vec<String>) {
        let memory = &self.server.memory;
        let Some(task) = memory.tasks.get(&id) else { return };
        let newest = memory.attempts.values().find(|a| a.task == id && a.number == task.attempt);
        if let TaskState::Done { result, .. } | TaskState::Finalizing { result, .. } = &task.state {
            let made = newest.is_some_and(|newest| newest.id.0.simple().to_string() == result.commit);
            if !made || newest.is_some_and(|newest| newest.fenced) {
                wrong.push(format!("1: the result {} of {} is not of its newest attempt", result.commit, id.short()));
            }
        }
        if let TaskState::Done { result, .. } = &task.state
            && result.pack.is_some()
            && !memory.packs.contains(&result.blob)
        {
            wrong.push(format!("9: {} is DONE, and its result is not on the server", id.short()));
        }
        let holds = matches!(task.status(), TaskStatus::Starting | TaskStatus::Running | TaskStatus::Finalizing);
        if holds && !newest.is_some_and(|newest| newest.is_live() && !newest.fenced) {
            wrong.push(format!("5: {} is {:?} without an attempt", id.short(), task.status()));
        }
        if memory.ready.contains(&id) != task.is_ready() {
            wrong.push(format!("edges: {} is ready by its row, or by its edges, not by both", id.short()));
        }
        for edge in memory.edges.values().filter(|edge| edge.dependent == id) {
            let complete = memory.tasks.get(&edge.dependency).is_some_and(|task| task.status().is_complete());
            if complete != edge.satisfied {
                wrong.push(format!("edges: {} waits for {} wrongly", id.short(), edge.dependency.short()));
            }
        }
        let contract = memory.contracts.get(&task.contract);
        let mut counts = Counts::default();
        for task in memory.tasks.values().filter(|other| other.contract == task.contract) {
            counts.shift(None, task.status());
        }
        let live = memory.attempts.values().filter(|a| a.contract == task.contract && a.is_live()).count();
        if contract.is_none_or(|c| c.counts != counts || usize::try_from(c.live).unwrap_or(usize::MAX) != live) {
            wrong.push(format!("6: the counts of contract {} are not those of its tasks", task.contract.short()));
        }
    }

    /// What the server has in memory is what it has committed.
    pub(super) fn check_fleet(&mut self) {
        let Some(life) = &self.server.life else { return };
        let fleet = life.fleet.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut wrong = None;
        for (id, member) in fleet.iter() {
            let attempts = self.server.memory.attempts.values().filter(|a| a.daemon == id && a.is_live());
            let live: BTreeSet<AttemptId> = attempts.map(|attempt| attempt.id).collect();
            let known: BTreeSet<AttemptId> = member.live.keys().copied().collect();
            if live != known {
                wrong =
                    Some(format!("6: slots of {}: {} are taken, {} by attempts", id.short(), known.len(), live.len()));
            }
        }
        drop(fleet);
        if let Some(wrong) = wrong {
            self.breaks(|| wrong);
        }
    }

    /// Everything has come to an end, or waits for somebody and says for whom.
    pub(super) fn is_settled(&self) -> bool {
        let memory = &self.server.memory;
        let idle =
            |task: &Task| task.status().is_final() && task.ending.is_none() || self.waits_for_somebody(task.id, 0);
        self.is_healed
            && self.contracts.len() == memory.contracts.len()
            && memory.tasks.values().all(idle)
            && memory.attempts.values().all(|attempt| !attempt.is_live())
            && memory.commands.is_empty()
            && self.machines.iter().filter(|machine| !machine.is_gone).all(|machine| {
                let rows = machine.disk.journal.attempts.values();
                machine.agents.is_empty()
                    && machine.disk.journal.outbox.is_empty()
                    && rows.clone().all(|row| !row.state.is_live() && row.uploaded)
                    && machine.process.as_ref().is_some_and(|process| process.live.is_empty())
            })
    }

    /// A named reason why a task that is not final stays as it is.
    fn waits_for_somebody(&self, id: TaskId, depth: u32) -> bool {
        let memory = &self.server.memory;
        let Some(task) = memory.tasks.get(&id) else { return false };
        let TaskState::Pending { held, .. } = &task.state else { return false };
        let contract = memory.contracts.get(&task.contract);
        if task.ending.is_some() || contract.is_some_and(|contract| contract.cancelled.is_some()) {
            return false;
        }
        let draining = |machine: &super::machine::Machine| memory.daemons.get(&machine.id).is_some_and(|d| d.draining);
        held.is_some()
            || contract.is_some_and(|contract| contract.held.is_some())
            || self.machines.iter().filter(|machine| !machine.is_gone).all(draining)
            || depth < 20
                && memory.edges.values().filter(|edge| edge.dependent == id).any(|edge| {
                    let status = memory.tasks.get(&edge.dependency).map(Task::status);
                    matches!(status, Some(TaskStatus::Failed | TaskStatus::Cancelled))
                        || self.waits_for_somebody(edge.dependency, depth + 1)
                })
    }

    /// The end of a history: everything that was promised.
    pub(super) fn check_end(&mut self) {
        let mut wrong: Vec<String> = Vec::new();
        if !self.is_settled() {
            wrong.push(format!("5: {} min after everything was healed {}", self.now / MINUTE, self.unsettled()));
        }
        let memory = &self.server.memory;
        let ids: Vec<TaskId> = memory.tasks.keys().copied().collect();
        for id in ids {
            self.task_is_sound(id, &mut wrong);
            if let Some(task) = memory.tasks.get(&id) {
                self.fenced_rightly(task, &mut wrong);
                self.counted_once(task, &mut wrong);
            }
        }
        for (attempt, (_, outcome)) in &self.truth.reports {
            let Some(row) = memory.attempts.get(&attempt.id) else {
                wrong.push(format!("2: the server does not know {attempt}, which has reported"));
                continue;
            };
            let heard = match (&row.state, outcome) {
                (AttemptState::Ended { outcome: Ok(a), .. }, Ok(b)) => a.is_same(b),
                // That it was ended as asked is nothing that could be lost: not to another failure, nor to the result that
                // the daemon had sent before it lost its journal, and that was heard only after it had come back.
                (AttemptState::Ended { outcome: Ok(_), .. }, Err(b)) => {
                    b.class == FailureClass::Cancelled && self.truth.made.contains(attempt)
                }
                (AttemptState::Ended { outcome: Err(a), .. }, Err(b)) => a == b || b.class == FailureClass::Cancelled,
                _ => false,
            };
            let task = memory.tasks.get(&attempt.task);
            let moved_on = task
                .is_none_or(|task| task.attempt != attempt.number || matches!(task.status(), TaskStatus::Cancelled));
            if !heard && !row.fenced && !moved_on {
                wrong
                    .push(format!("2: the report of {attempt} ({outcome:?}) was lost: the server has {:?}", row.state));
            }
        }
        for id in &self.truth.checkpoints {
            let Some(checkpoint) = memory.checkpoints.get(id) else {
                wrong.push(format!("3: checkpoint {id} was acknowledged and is not there"));
                continue;
            };
            if checkpoint.chain.iter().any(|link| !memory.checkpoints.contains_key(&link.id)) {
                wrong.push(format!("3: checkpoint {id} builds on what is not there"));
            }
        }
        if let Some(what) = wrong.into_iter().next() {
            self.breaks(|| what);
        }
    }

    /// Each attempt's tokens were counted at most once for its task.
    fn counted_once(&self, task: &Task, wrong: &mut Vec<String>) {
        let mut left = task.usage.input_tokens;
        for number in 1..=task.attempt.min(TOLD_APART) {
            if left & 15 > 2 {
                wrong.push(format!("2: attempt {number} of {} was counted twice", task.id.short()));
            }
            left >>= 4;
        }
    }

    fn unsettled(&self) -> String {
        let memory = &self.server.memory;
        let mut words: Vec<String> = Vec::new();
        for task in
            memory.tasks.values().filter(|task| !task.status().is_final() && !self.waits_for_somebody(task.id, 0))
        {
            let place = (task.unmet, task.ending, task.attempt);
            words.push(format!("{} is {:?} (unmet, ending, attempt: {place:?})", task.spec.name, task.state));
        }
        for attempt in memory.attempts.values().filter(|attempt| attempt.is_live()) {
            words.push(format!("{} is {:?}, fenced {}", attempt.reference(), attempt.state, attempt.fenced));
        }
        for (m, machine) in self.machines.iter().enumerate().filter(|(_, machine)| !machine.is_gone) {
            let rows = machine.disk.journal.attempts.values().filter(|row| row.state.is_live());
            words.extend(rows.map(|row| format!("daemon {m} has {row:?}")));
            words.extend(machine.disk.journal.outbox.iter().map(|message| format!("daemon {m} owes {message:?}")));
            words.extend(machine.agents.keys().map(|attempt| format!("the agent of {attempt} lives on {m}")));
        }
        words.extend(memory.commands.values().map(|command| format!("command {} is unanswered", command.sequence)));
        words.extend((self.attached().is_empty()).then(|| "nobody is attached".to_owned()));
        words.join("; ")
    }
}

//! The database, in memory: what [`Rows`] promises, by maps. Results come in the order of keys, whatever the order of the
//! question, so that a history repeats.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::super::{lanes::Lanes, rows::Rows};
use crate::{
    domain::{
        AttemptId, BatchId, CheckpointId, ClassId, ContractId, DaemonId, KeyId, OwnerId, TaskId, Timestamp,
        attempt::Attempt,
        checkpoint::Checkpoint,
        contract::Contract,
        daemon::{Daemon, Requirements},
        event::Change,
        key::Key,
        order::Command,
        task::Task,
    },
    store::{Due as _, Edge, Lane, LaneHead, LaneTask, Remembered, Result},
};

/// Everything that outlives the server.
#[derive(Debug, Default)]
pub(in super::super) struct Memory {
    pub(in super::super) contracts: BTreeMap<ContractId, Contract>,
    pub(in super::super) tasks: BTreeMap<TaskId, Task>,
    /// Tasks that were ready when they were last written.
    pub(super) ready: BTreeSet<TaskId>,
    pub(super) attempts: BTreeMap<AttemptId, Attempt>,
    pub(super) daemons: BTreeMap<DaemonId, Daemon>,
    pub(super) edges: BTreeMap<(TaskId, TaskId), Edge>,
    pub(super) commands: BTreeMap<(DaemonId, i64), Command>,
    pub(super) classes: BTreeMap<ClassId, (OwnerId, Requirements)>,
    pub(super) checkpoints: BTreeMap<CheckpointId, Checkpoint>,
    /// Packs of results that have been stored, by name.
    pub(super) packs: BTreeSet<String>,
    /// What the last batch logged.
    pub(super) changes: Vec<Change>,
    /// When a server last said that it lives.
    pub(super) alive: Timestamp,
    lanes: BTreeMap<(ContractId, ClassId), LaneRow>,
    requests: BTreeMap<(OwnerId, String), Remembered>,
    events: i64,
}

#[derive(Clone, Debug)]
struct LaneRow {
    is_open: bool,
    head: Option<i32>,
    served: Timestamp,
}

fn most(limit: i64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

impl Memory {
    /// Ready tasks of a lane, the most urgent first.
    fn ready_of(&self, contract: ContractId, class: ClassId) -> Vec<&Task> {
        let in_lane = |t: &&Task| t.contract == contract && t.class == class && self.ready.contains(&t.id);
        let ready = self.tasks.values().filter(in_lane);
        let mut ready: Vec<_> = ready.collect();
        ready.sort_by_key(|task| (std::cmp::Reverse(task.spec.priority), task.id));
        ready
    }

    /// When a lane was served last.
    pub(in super::super) fn served(&self, lane: &(ContractId, ClassId)) -> Option<Timestamp> {
        self.lanes.get(lane).map(|row| row.served)
    }

    /// What is wrong with the rows of lanes, or with what is kept of them.
    pub(in super::super) fn lanes_are_not(&self, kept: &Lanes) -> Option<String> {
        let mut there: BTreeMap<(ContractId, ClassId), Option<i32>> =
            self.lanes.keys().map(|lane| (*lane, None)).collect();
        for task in self.tasks.values().filter(|task| self.ready.contains(&task.id)) {
            let head = there.entry((task.contract, task.class)).or_default();
            *head = Some(task.spec.priority).max(*head);
        }
        let is_open = |contract| self.contracts.get(&contract).is_some_and(Contract::is_open);
        for (lane, head) in &there {
            let row = self.lanes.get(lane).map(|row| (row.head, row.is_open));
            if row != Some((*head, is_open(lane.0))) {
                return Some(format!("lanes: the row of {lane:?} says {row:?} of one that has {head:?}"));
            }
        }
        for (class, lanes) in kept.known() {
            let kept: BTreeMap<ContractId, i32> = lanes.iter().map(|(id, lane)| (*id, lane.priority)).collect();
            let of = there.iter().filter(|((contract, of), _)| of == class && is_open(*contract));
            let there: BTreeMap<ContractId, i32> = of.filter_map(|((id, _), head)| Some((*id, (*head)?))).collect();
            if kept != there {
                return Some(format!("lanes: {kept:?} is kept of those of a class, which are {there:?}"));
            }
        }
        for ((contract, class), kept, all) in kept.known_tasks() {
            let there: Vec<TaskId> = self.ready_of(contract, class).iter().map(|task| task.id).collect();
            if !there.starts_with(&kept) || kept.is_empty() || all && kept != there {
                return Some(format!("lanes: {kept:?} is kept of the ready tasks of one, which are {there:?}"));
            }
        }
        None
    }

    /// Says of a task that is written whether it is ready.
    fn mark(&mut self, task: &Task) {
        match task.is_ready() {
            true => _ = self.ready.insert(task.id),
            false => _ = self.ready.remove(&task.id),
        }
    }

    /// Counts what is unmet of tasks whose edges have changed, as whoever reads a task does.
    fn count(&mut self, edges: &[Edge]) {
        for edge in edges {
            let unmet = self.edges.values().filter(|e| e.dependent == edge.dependent && !e.satisfied).count();
            if let Some(task) = self.tasks.get_mut(&edge.dependent) {
                task.unmet = u32::try_from(unmet).unwrap();
            }
        }
    }

    fn lane_head((contract, class): (ContractId, ClassId), row: &LaneRow) -> LaneHead {
        LaneHead { contract, class, priority: row.head.unwrap_or_default() }
    }

    /// Edges reached from tasks by following `next`.
    fn reached(&self, of: &[TaskId], next: impl Fn(&Edge) -> (TaskId, TaskId)) -> (BTreeSet<TaskId>, Vec<Edge>) {
        let mut seen: BTreeSet<TaskId> = of.iter().copied().collect();
        let mut left: Vec<TaskId> = seen.iter().copied().collect();
        let mut edges = Vec::new();
        while let Some(id) = left.pop() {
            for edge in self.edges.values() {
                let (from, to) = next(edge);
                if from == id {
                    edges.push(*edge);
                    if seen.insert(to) {
                        left.push(to);
                    }
                }
            }
        }
        (seen, edges)
    }
}

impl Rows for Memory {
    fn gather(&mut self) {}

    async fn attempts_due(&mut self, now: Timestamp, limit: i64) -> Result<Vec<AttemptId>> {
        let mut due: Vec<_> = self.attempts.values().filter_map(|a| Some((a.due()?, a.id))).collect();
        due.retain(|(at, _)| *at <= now);
        due.sort_unstable();
        Ok(due.into_iter().take(most(limit)).map(|(_, id)| id).collect())
    }

    async fn tasks_wait_over(&mut self, now: Timestamp, limit: i64) -> Result<Vec<TaskId>> {
        let mut due: Vec<_> = self.tasks.values().filter_map(|t| Some((t.wait()?.until, t.id))).collect();
        due.retain(|(at, _)| *at <= now);
        due.sort_unstable();
        Ok(due.into_iter().take(most(limit)).map(|(_, id)| id).collect())
    }

    async fn contracts_cancelling(&mut self, limit: i64) -> Result<Vec<Contract>> {
        let cancelling = self.contracts.values().filter(|c| c.cancelled.is_some() && c.counts.unfinished() > 0);
        Ok(cancelling.take(most(limit)).cloned().collect())
    }

    async fn tasks_unfinished(&mut self, contract: ContractId, after: Option<TaskId>, limit: i64) -> Result<Vec<Task>> {
        let tasks = self.tasks.values().filter(|t| t.contract == contract && !t.status().is_final());
        Ok(tasks.filter(|t| after.is_none_or(|after| t.id > after)).take(most(limit)).cloned().collect())
    }

    async fn next_due(&mut self, now: Timestamp) -> Result<Option<Timestamp>> {
        let attempts = self.attempts.values().filter_map(|attempt| attempt.due());
        let tasks = self.tasks.values().filter_map(|task| Some(task.wait()?.until));
        Ok(attempts.chain(tasks).filter(|at| *at > now).min())
    }

    async fn requests_fetch(&mut self, requests: &[(OwnerId, String)]) -> Result<Vec<Remembered>> {
        Ok(requests.iter().filter_map(|key| self.requests.get(key).cloned()).collect())
    }

    async fn owner_named(&mut self, _name: &str) -> Result<Option<OwnerId>> {
        Ok(None)
    }

    async fn keys_list(&mut self, _revoked: bool, _before: Option<KeyId>, _limit: i64) -> Result<Vec<Key>> {
        Ok(Vec::new())
    }

    async fn key_fetch(&mut self, _key: KeyId) -> Result<Option<Key>> {
        Ok(None)
    }

    async fn daemon_named(&mut self, owner: OwnerId, name: &str) -> Result<Option<Daemon>> {
        Ok(self.daemons.values().find(|d| d.owner == owner && d.card.name == name).cloned())
    }

    async fn daemons_fetch(&mut self, daemons: &[DaemonId]) -> Result<Vec<Daemon>> {
        Ok(self.daemons.values().filter(|d| daemons.contains(&d.id)).cloned().collect())
    }

    async fn attempts_live(&mut self, daemons: &[DaemonId]) -> Result<Vec<Attempt>> {
        Ok(self.attempts.values().filter(|a| a.is_live() && daemons.contains(&a.daemon)).cloned().collect())
    }

    async fn attempts_fetch(&mut self, attempts: &[AttemptId]) -> Result<Vec<Attempt>> {
        Ok(self.attempts.values().filter(|a| attempts.contains(&a.id)).cloned().collect())
    }

    async fn attempts_numbered(&mut self, attempts: &[(TaskId, u32)]) -> Result<Vec<Attempt>> {
        Ok(self.attempts.values().filter(|a| attempts.contains(&(a.task, a.number))).cloned().collect())
    }

    async fn attempts_of_task(&mut self, task: TaskId) -> Result<Vec<Attempt>> {
        Ok(self.attempts.values().filter(|a| a.task == task).cloned().collect())
    }

    async fn commands_of(&mut self, daemons: &[DaemonId]) -> Result<Vec<Command>> {
        let commands = self.commands.iter().filter(|((daemon, _), _)| daemons.contains(daemon));
        Ok(commands.map(|(_, command)| command.clone()).collect())
    }

    async fn dependents_closure(&mut self, of: &[TaskId]) -> Result<Vec<TaskId>> {
        Ok(self.reached(of, |edge| (edge.dependency, edge.dependent)).0.into_iter().collect())
    }

    async fn tasks_fetch(&mut self, tasks: &[TaskId]) -> Result<Vec<Task>> {
        Ok(self.tasks.values().filter(|t| tasks.contains(&t.id)).cloned().collect())
    }

    async fn tasks_named(&mut self, names: &[(ContractId, String)]) -> Result<Vec<Task>> {
        let named = |t: &&Task| names.iter().any(|(contract, name)| t.contract == *contract && t.spec.name == *name);
        Ok(self.tasks.values().filter(named).cloned().collect())
    }

    async fn edges_from(&mut self, dependents: &[TaskId]) -> Result<Vec<Edge>> {
        Ok(self.edges.values().filter(|e| dependents.contains(&e.dependent)).copied().collect())
    }

    async fn edges_to(&mut self, dependencies: &[TaskId]) -> Result<Vec<Edge>> {
        Ok(self.edges.values().filter(|e| dependencies.contains(&e.dependency)).copied().collect())
    }

    async fn edges_upstream(&mut self, of: &[TaskId]) -> Result<Vec<Edge>> {
        Ok(self.reached(of, |edge| (edge.dependent, edge.dependency)).1)
    }

    async fn contracts_fetch(&mut self, contracts: &[ContractId]) -> Result<Vec<Contract>> {
        Ok(self.contracts.values().filter(|c| contracts.contains(&c.id)).cloned().collect())
    }

    async fn checkpoints_fetch(&mut self, checkpoints: &[CheckpointId]) -> Result<Vec<Checkpoint>> {
        Ok(self.checkpoints.values().filter(|c| checkpoints.contains(&c.id)).cloned().collect())
    }

    async fn blobs_of_results(&mut self, _attempts: &[AttemptId]) -> Result<Vec<String>> {
        // Names hold the attempt, so more of them than asked for say no more.
        Ok(self.packs.iter().cloned().collect())
    }

    async fn lanes_walk(&mut self, classes: &[ClassId], limit: i64) -> Result<Vec<LaneHead>> {
        let open =
            self.lanes.iter().filter(|((_, class), row)| row.is_open && row.head.is_some() && classes.contains(class));
        let mut lanes: Vec<_> = open.map(|(key, row)| (std::cmp::Reverse(row.head), row.served, *key)).collect();
        lanes.sort_unstable();
        let mut taken: BTreeMap<ClassId, usize> = BTreeMap::new();
        lanes.retain(|(_, _, (_, class))| {
            let taken = taken.entry(*class).or_default();
            *taken += 1;
            *taken <= most(limit)
        });
        Ok(lanes.into_iter().map(|(_, _, key)| Self::lane_head(key, &self.lanes[&key])).collect())
    }

    async fn lanes_of(&mut self, contracts: &[ContractId]) -> Result<Vec<LaneHead>> {
        let lanes = self.lanes.iter().filter(|((contract, _), row)| row.head.is_some() && contracts.contains(contract));
        Ok(lanes.map(|(key, row)| Self::lane_head(*key, row)).collect())
    }

    async fn lanes_tasks(&mut self, lanes: &[LaneHead], limit: i64) -> Result<Vec<LaneTask>> {
        let tasks =
            lanes.iter().flat_map(|lane| self.ready_of(lane.contract, lane.class).into_iter().take(most(limit)));
        let place = |task: &Task| LaneTask {
            contract: task.contract,
            class: task.class,
            priority: task.spec.priority,
            id: task.id,
        };
        Ok(tasks.map(place).collect())
    }

    async fn owner_insert(&mut self, _owner: OwnerId, _name: &str, _created: Timestamp) -> Result<()> {
        Ok(())
    }

    async fn keys_put(&mut self, _keys: &[Key]) -> Result<()> {
        Ok(())
    }

    async fn contracts_put(&mut self, contracts: &[&Contract]) -> Result<()> {
        self.contracts.extend(contracts.iter().map(|contract| (contract.id, (*contract).clone())));
        Ok(())
    }

    async fn classes_insert(&mut self, classes: &[(ClassId, OwnerId, Requirements)]) -> Result<()> {
        self.classes.extend(classes.iter().map(|(id, owner, needs)| (*id, (*owner, needs.clone()))));
        Ok(())
    }

    async fn tasks_insert(&mut self, tasks: &[&Task]) -> Result<()> {
        self.tasks.extend(tasks.iter().map(|task| (task.id, (*task).clone())));
        tasks.iter().for_each(|task| self.mark(task));
        Ok(())
    }

    async fn tasks_update(&mut self, tasks: &[&Task]) -> Result<()> {
        for task in tasks {
            // What was asked, and what that needs, are columns of their own, which this does not write; what is unmet is counted.
            if let Some(row) = self.tasks.get_mut(&task.id) {
                *row = Task {
                    spec: std::sync::Arc::clone(&row.spec),
                    class: row.class,
                    unmet: row.unmet,
                    ..(*task).clone()
                };
                self.mark(task);
            }
        }
        Ok(())
    }

    async fn tasks_respec(&mut self, tasks: &[&Task]) -> Result<()> {
        for task in tasks {
            if let Some(row) = self.tasks.get_mut(&task.id) {
                row.spec = std::sync::Arc::clone(&task.spec);
                row.class = task.class;
            }
        }
        Ok(())
    }

    async fn edges_put(&mut self, edges: &[Edge]) -> Result<()> {
        self.edges.extend(edges.iter().map(|edge| ((edge.dependent, edge.dependency), *edge)));
        self.count(edges);
        Ok(())
    }

    async fn edges_delete(&mut self, edges: &[Edge]) -> Result<()> {
        self.edges.retain(|key, _| !edges.iter().any(|edge| *key == (edge.dependent, edge.dependency)));
        self.count(edges);
        Ok(())
    }

    async fn attempts_insert(&mut self, attempts: &[&Attempt]) -> Result<()> {
        for attempt in attempts {
            let before = self.attempts.insert(attempt.id, (*attempt).clone());
            assert!(before.is_none(), "an attempt that is there is written as a new one: {before:?}");
        }
        Ok(())
    }

    async fn attempts_update(&mut self, attempts: &[&Attempt]) -> Result<()> {
        for attempt in attempts {
            *self.attempts.get_mut(&attempt.id).expect("an attempt that changes is there") = (*attempt).clone();
        }
        Ok(())
    }

    async fn checkpoints_insert(&mut self, checkpoints: &[&Checkpoint]) -> Result<()> {
        self.checkpoints.extend(checkpoints.iter().map(|checkpoint| (checkpoint.id, (*checkpoint).clone())));
        Ok(())
    }

    async fn daemons_put(&mut self, daemons: &[&Daemon]) -> Result<()> {
        self.daemons.extend(daemons.iter().map(|daemon| (daemon.id, (*daemon).clone())));
        Ok(())
    }

    async fn daemons_update(&mut self, daemons: &[&Daemon]) -> Result<()> {
        for daemon in daemons {
            *self.daemons.get_mut(&daemon.id).expect("a daemon that changes is there") = (*daemon).clone();
        }
        Ok(())
    }

    async fn commands_insert(&mut self, commands: &[(DaemonId, Arc<Command>)]) -> Result<()> {
        self.commands
            .extend(commands.iter().map(|(daemon, command)| ((*daemon, command.sequence), (**command).clone())));
        Ok(())
    }

    async fn commands_delete(&mut self, commands: &[(DaemonId, i64)]) -> Result<()> {
        self.commands.retain(|key, _| !commands.contains(key));
        Ok(())
    }

    async fn requests_insert(&mut self, requests: &[Remembered]) -> Result<()> {
        self.requests.extend(requests.iter().map(|request| ((request.owner, request.id.clone()), request.clone())));
        Ok(())
    }

    async fn lanes_refresh(&mut self, lanes: &[Lane]) -> Result<()> {
        for lane in lanes {
            let head = self.ready_of(lane.contract, lane.class).first().map(|task| task.spec.priority);
            let key = (lane.contract, lane.class);
            let served = self.lanes.get(&key).filter(|_| !lane.is_served).map_or(lane.now, |known| known.served);
            self.lanes.insert(key, LaneRow { is_open: lane.is_open, head, served });
        }
        Ok(())
    }

    async fn lanes_open(&mut self, contracts: &[(ContractId, bool)]) -> Result<()> {
        for (contract, is_open) in contracts {
            for (_, row) in self.lanes.iter_mut().filter(|((of, _), _)| of == contract) {
                row.is_open = *is_open;
            }
        }
        Ok(())
    }

    async fn batch_insert(&mut self, _: BatchId, _: Timestamp) -> Result<()> {
        Ok(())
    }

    async fn events_insert(&mut self, events: &[Change]) -> Result<Option<i64>> {
        self.changes = events.to_vec();
        self.events += i64::try_from(events.len()).unwrap_or(i64::MAX);
        Ok((!events.is_empty()).then_some(self.events))
    }
}

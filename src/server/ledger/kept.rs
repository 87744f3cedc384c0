//! Rows as they were last committed, of what is under way: what one batch has written the next need not read again.
//!
//! The database stays the only truth. The ledger is the one writer of these rows, so what it committed last is what is there;
//! a batch takes what is kept with it and gives it back when it is committed, so after one that failed, whatever the reason,
//! nothing is kept and everything is read again. Retention, which deletes behind the ledger's back, touches nothing but
//! anonymous contracts that have ended: of those nothing is kept, and what is kept of their tasks is not given out. On Postgres another
//! server may take the database over; then no transaction of this one begins any more (`Store::begin`). And what a connection led to
//! may not be what the next one leads to: nothing is kept from one to the other (`Tx::is_first`).

use std::{collections::HashMap, hash::Hash, sync::Arc};

use super::{beside::Beside, lanes::Lanes, names::Names, work::Work};
use crate::domain::{
    AttemptId, ContractId, DaemonId, TaskId, attempt::Attempt, contract::Contract, daemon::Daemon, task::Task,
};

/// Bytes of one generation of a kind, roughly: several times what a few thousand attempts under way need.
const GENERATION_BYTES: usize = 8 << 20;
/// The same of tasks, which stand there from when the first of their dependencies is done until the last: in a graph without order
/// that is nearly all of it.
const TASK_GENERATION_BYTES: usize = 32 << 20;
/// What a row takes beside its long texts, roughly.
const ROW_BYTES: usize = 1 << 10;
/// What a dependency takes in an order, roughly.
const DEPENDENCY_BYTES: usize = 512;

/// Dependents that are kept of a task which others are added to: these are not weighed.
const MAX_DEPENDENTS: usize = 10_000;

/// What is kept.
#[derive(Debug)]
pub(super) struct Kept {
    contracts: Generations<ContractId, Arc<Contract>>,
    tasks: Generations<TaskId, KeptTask>,
    attempts: Generations<AttemptId, Arc<Attempt>>,
    daemons: Generations<DaemonId, Arc<Daemon>>,
    /// Unfinished tasks of contracts that start tasks.
    pub(super) beside: Beside,
    /// Names that tasks have.
    pub(super) names: Names,
    /// Where ready tasks wait.
    pub(super) lanes: Lanes,
}

/// A task, with what is asked of one that waits for others, once for each of its dependencies: in a graph of some size tasks are
/// spread over more memory than any cache has, and these few words are not.
#[derive(Debug)]
struct KeptTask {
    task: Arc<Task>,
    contract: ContractId,
    /// As it is now; in the task itself it may be as it was.
    unmet: u32,
    neighbours: Option<Box<Neighbours>>,
}

/// The edges of a task that has been here since it was made: they need not be looked for.
#[derive(Debug)]
struct Neighbours {
    /// What it waits for.
    dependencies: Vec<TaskId>,
    /// What waits for it, until it is complete for the first time: so long none of these edges is satisfied.
    dependents: Option<Vec<TaskId>>,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            contracts: Generations::new(GENERATION_BYTES),
            tasks: Generations::new(TASK_GENERATION_BYTES),
            attempts: Generations::new(GENERATION_BYTES),
            daemons: Generations::new(GENERATION_BYTES),
            beside: Beside::default(),
            names: Names::default(),
            lanes: Lanes::default(),
        }
    }
}

impl Kept {
    pub(super) fn contract(&self, id: ContractId) -> Option<&Arc<Contract>> {
        self.contracts.get(id)
    }

    pub(super) fn task(&self, id: TaskId) -> Option<Arc<Task>> {
        let kept = self.kept_task(id)?;
        let mut task = Arc::clone(&kept.task);
        if task.unmet != kept.unmet {
            Arc::make_mut(&mut task).unmet = kept.unmet;
        }
        Some(task)
    }

    /// How many dependencies of a task are not complete.
    pub(super) fn unmet(&self, id: TaskId) -> Option<u32> {
        self.kept_task(id).map(|kept| kept.unmet)
    }

    /// What a task waits for, if that is known.
    pub(super) fn dependencies(&self, id: TaskId) -> Option<&[TaskId]> {
        Some(&self.kept_task(id)?.neighbours.as_ref()?.dependencies)
    }

    /// What waits for a task, with its contract, if that is known; none of these edges is satisfied then.
    pub(super) fn dependents(&self, id: TaskId) -> Option<(ContractId, &[TaskId])> {
        let kept = self.kept_task(id)?;
        Some((kept.contract, kept.neighbours.as_ref()?.dependents.as_deref()?))
    }

    /// All of whose edges something is known, as far as it is given out.
    #[cfg(test)]
    pub(super) fn with_edges(&self) -> impl Iterator<Item = TaskId> {
        self.tasks.young.keys().chain(self.tasks.old.keys()).copied().filter(|id| self.dependencies(*id).is_some())
    }

    fn kept_task(&self, id: TaskId) -> Option<&KeptTask> {
        self.tasks.get(id).filter(|kept| self.contract(kept.contract).is_some())
    }

    pub(super) fn attempt(&self, id: AttemptId) -> Option<&Arc<Attempt>> {
        self.attempts.get(id).filter(|attempt| self.contract(attempt.contract).is_some())
    }

    pub(super) fn daemon(&self, id: DaemonId) -> Option<&Arc<Daemon>> {
        self.daemons.get(id)
    }

    /// Takes over what a batch has read and written, once it is committed.
    pub(super) fn learn(&mut self, work: &Work) {
        for (id, contract) in work.contracts.shared() {
            match contract.ended.filter(|_| contract.anonymous) {
                None => self.contracts.put(id, Arc::clone(contract), ROW_BYTES + contract.description.len()),
                Some(_) => self.contracts.remove(id),
            }
        }
        for (id, task) in work.tasks.shared() {
            // What is over is looked at again only for those that wait for it. Kept all the same, some ten thousand of them made
            // every new thing come from memory that no cache had.
            if task.status().is_final() && !work.dependents.contains_key(&id) {
                self.tasks.remove(id);
                continue;
            }
            let new = work.tasks.is_new(id).then(|| Box::new(Neighbours::of_new(id, work)));
            let is_complete = task.status().is_complete();
            self.tasks.replace(id, KeptTask::bytes, |was| {
                let mut neighbours = new.or_else(|| was?.neighbours);
                if let Some(neighbours) = neighbours.as_mut().filter(|_| is_complete) {
                    neighbours.dependents = None;
                }
                KeptTask { task: Arc::clone(task), contract: task.contract, unmet: task.unmet, neighbours }
            });
        }
        self.learn_edges(work);
        for (id, unmet) in &work.counted {
            self.tasks.renew(*id, |kept| kept.unmet = *unmet);
        }
        for (id, attempt) in work.attempts.shared() {
            match attempt.is_live() {
                true => {
                    let order = attempt.outstanding().map_or(0, |order| order.dependencies.len() * DEPENDENCY_BYTES);
                    self.attempts.put(id, Arc::clone(attempt), ROW_BYTES + order + attempt.last_message.len());
                }
                false => self.attempts.remove(id),
            }
        }
        for (id, daemon) in work.daemons.shared() {
            self.daemons.put(id, Arc::clone(daemon), ROW_BYTES);
        }
        self.beside.learn(work);
        self.lanes.learn(work);
        self.names.learn(work);
    }

    /// What was added to or taken from the edges of tasks that were there before.
    fn learn_edges(&mut self, work: &Work) {
        for edge in work.edges.new_rows() {
            if !work.tasks.is_new(edge.dependency)
                && let Some(kept) = self.tasks.get_mut(edge.dependency)
                && let Some(Neighbours { dependents: Some(dependents), .. }) = kept.neighbours.as_deref_mut()
            {
                dependents.push(edge.dependent);
                if dependents.len() > MAX_DEPENDENTS {
                    kept.neighbours = None;
                }
            }
            if !work.tasks.is_new(edge.dependent)
                && let Some(kept) = self.tasks.get_mut(edge.dependent)
                && let Some(neighbours) = kept.neighbours.as_deref_mut()
            {
                neighbours.dependencies.push(edge.dependency);
            }
        }
        // People take edges away, now and then: of those tasks nothing is known any more.
        for (dependent, dependency) in work.edges_gone.keys() {
            for id in [dependent, dependency] {
                if let Some(kept) = self.tasks.get_mut(*id) {
                    kept.neighbours = None;
                }
            }
        }
    }
}

impl KeptTask {
    fn bytes(&self) -> usize {
        let edges = self.neighbours.as_ref().map_or(0, |neighbours| neighbours.bytes());
        ROW_BYTES + self.task.spec.plan.len() + self.task.spec.description.len() + edges
    }
}

impl Neighbours {
    /// Of a task that this batch has made, all of whose edges were made with it.
    fn of_new(id: TaskId, work: &Work) -> Self {
        let of = |edges: &HashMap<TaskId, Vec<TaskId>>| edges.get(&id).cloned().unwrap_or_default();
        Self { dependencies: of(&work.dependencies), dependents: Some(of(&work.dependents)) }
    }

    fn bytes(&self) -> usize {
        let dependents = self.dependents.as_ref().map_or(0, Vec::len);
        (self.dependencies.len() + dependents) * size_of::<TaskId>()
    }
}

/// Values by key, the newest of them: what is put when the young generation is full makes it the old one, and the old one
/// goes.
#[derive(Debug)]
struct Generations<K, V> {
    young: HashMap<K, Weighed<V>>,
    old: HashMap<K, Weighed<V>>,
    /// Of the young ones.
    bytes: usize,
    /// With more the young ones are old.
    most: usize,
}

/// A value, and what it takes.
#[derive(Debug)]
struct Weighed<V> {
    value: V,
    bytes: usize,
}

impl<K: Eq + Hash + Copy, V> Generations<K, V> {
    fn new(most: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), bytes: 0, most }
    }

    fn get(&self, key: K) -> Option<&V> {
        self.young.get(&key).or_else(|| self.old.get(&key)).map(|it| &it.value)
    }

    /// The same, to change what does not make it a new one.
    fn get_mut(&mut self, key: K) -> Option<&mut V> {
        self.young.get_mut(&key).or_else(|| self.old.get_mut(&key)).map(|it| &mut it.value)
    }

    /// Puts a value in the place of the one that is there.
    fn replace(&mut self, key: K, weigh: impl FnOnce(&V) -> usize, value: impl FnOnce(Option<V>) -> V) {
        if let Some(it) = self.young.remove(&key) {
            self.young.insert(key, Weighed { value: value(Some(it.value)), bytes: it.bytes });
        } else {
            let was = self.old.remove(&key).map(|it| it.value);
            let value = value(was);
            let bytes = weigh(&value);
            self.put(key, value, bytes);
        }
    }

    fn put(&mut self, key: K, value: V, bytes: usize) {
        if self.young.insert(key, Weighed { value, bytes }).is_some() {
            return;
        }
        self.bytes += bytes;
        if self.bytes > self.most {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
    }

    /// Changes a value that is there, which is a new one then.
    fn renew(&mut self, key: K, change: impl FnOnce(&mut V)) {
        if let Some(it) = self.young.get_mut(&key) {
            change(&mut it.value);
        } else if let Some(mut it) = self.old.remove(&key) {
            change(&mut it.value);
            self.put(key, it.value, it.bytes);
        }
    }

    fn remove(&mut self, key: K) {
        self.young.remove(&key);
        self.old.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is newest is found, what is old goes, and what was put again is never found as it was before.
    #[test]
    fn generations_keep_the_newest() {
        let mut kept: Generations<u32, u32> = Generations::new(GENERATION_BYTES);
        let half = GENERATION_BYTES / 2;
        for (key, value) in [(1, 10), (2, 20), (1, 11)] {
            kept.put(key, value, half);
        }
        kept.put(3, 30, half);
        assert_eq!((kept.get(1), kept.get(3)), (Some(&11), Some(&30)));
        kept.put(1, 12, half);
        assert_eq!(kept.get(1), Some(&12));
        for key in 4..8 {
            kept.put(key, key, half);
        }
        assert_eq!(kept.get(2), None);
        kept.put(9, 9, half);
        kept.remove(9);
        assert_eq!(kept.get(9), None);
    }

    /// What is changed where it is stays as long as what is put.
    #[test]
    fn what_is_renewed_is_young() {
        let mut kept: Generations<u32, u32> = Generations::new(GENERATION_BYTES);
        let half = GENERATION_BYTES / 2;
        for key in 0..3 {
            kept.put(key, key, half);
        }
        // They are old now.
        kept.renew(1, |value| *value = 10);
        kept.renew(1, |value| *value += 1);
        kept.renew(7, |value| *value = 70);
        for key in 3..5 {
            kept.put(key, key, half);
        }
        assert_eq!((kept.get(0), kept.get(1), kept.get(7)), (None, Some(&11), None));
    }
}

//! Unfinished tasks of the contracts that start tasks: what goes along with an order, for the daemon's sanity check.
//!
//! Read once for a contract and then kept in step with what batches change, because nearly every order asks. Of a contract with
//! many unfinished tasks only the oldest are looked at: the check warns, it does not decide.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::work::Work;
use crate::domain::{ContractId, TaskId, analysis::Category, task::Task};

/// Unfinished tasks of a contract that are read.
pub(super) const READ: usize = 100;
/// Of a contract as many are kept.
const MOST: usize = 2 * READ;
/// With fewer than this it is read again, if there were more.
const FEW: usize = READ / 2;
/// Contracts that are kept. Beyond this all are read anew.
const CONTRACTS: usize = 256;
/// Bytes of plans that are kept, which may have half a megabyte each. Beyond this all are read anew.
const PLAN_BYTES: usize = 64 << 20;

/// Unfinished tasks, by contract.
#[derive(Debug, Default)]
pub(super) struct Beside {
    contracts: HashMap<ContractId, Others>,
    /// Of the plans that came since the last time that all were forgotten.
    bytes: usize,
}

/// Some or all unfinished tasks of a contract.
#[derive(Debug, Default)]
struct Others {
    tasks: BTreeMap<TaskId, Other>,
    /// There are more than these.
    more: bool,
}

/// An unfinished task.
#[derive(Debug)]
struct Other {
    task: Arc<Task>,
    /// What its plan touches, lowest first, once somebody has asked.
    touched: Option<Vec<Category>>,
}

impl Beside {
    /// Whether anything is known of a contract.
    pub(super) fn knows(&self, contract: ContractId) -> bool {
        self.contracts.contains_key(&contract)
    }

    /// What was read of a contract: its oldest unfinished tasks, [`READ`] at most.
    pub(super) fn read(&mut self, contract: ContractId, tasks: &[Task]) {
        if self.contracts.len() >= CONTRACTS {
            self.forget();
        }
        self.bytes += tasks.iter().map(|task| task.spec.plan.len()).sum::<usize>();
        let more = tasks.len() >= READ;
        let tasks = tasks.iter().map(|task| (task.id, Other { task: Arc::new(task.clone()), touched: None })).collect();
        self.contracts.insert(contract, Others { tasks, more });
    }

    /// The tasks of a contract with the lowest category that each touches.
    pub(super) fn lowest(&mut self, contract: ContractId) -> impl Iterator<Item = (TaskId, Option<Category>)> {
        let others = self.contracts.get_mut(&contract).into_iter().flat_map(|others| &mut others.tasks);
        others.map(|(id, other)| {
            let touched = other.touched.get_or_insert_with(|| super::dispatch::categories(&other.task));
            (*id, touched.first().copied())
        })
    }

    /// One of the tasks, with what its plan touches, as far as [`Self::lowest`] has asked.
    pub(super) fn task(&self, contract: ContractId, id: TaskId) -> Option<(&Task, &[Category])> {
        let other = self.contracts.get(&contract)?.tasks.get(&id)?;
        Some((&other.task, other.touched.as_deref().unwrap_or_default()))
    }

    fn forget(&mut self) {
        self.contracts.clear();
        self.bytes = 0;
    }

    /// Follows what a batch has changed.
    pub(super) fn learn(&mut self, work: &Work) {
        if self.contracts.is_empty() {
            return;
        }
        if self.bytes > PLAN_BYTES {
            self.forget();
        }
        for (id, task) in work.tasks.shared_dirty() {
            let Some(others) = self.contracts.get_mut(&task.contract) else { continue };
            if task.status().is_final() {
                others.tasks.remove(&id);
                if others.more && others.tasks.len() < FEW {
                    self.contracts.remove(&task.contract);
                }
            } else if let Some(known) = others.tasks.get_mut(&id) {
                if !Arc::ptr_eq(&known.task.spec, &task.spec) {
                    known.touched = None;
                }
                known.task = Arc::clone(task);
            } else if others.tasks.len() < MOST {
                self.bytes += task.spec.plan.len();
                let touched = work.categories.get(&id).cloned();
                others.tasks.insert(id, Other { task: Arc::clone(task), touched });
            } else {
                others.more = true;
            }
        }
    }
}

//! What people and programs ask for: contracts, tasks, dependencies, keys. Each operation first checks everything, then
//! changes the working set, so that a refused one leaves nothing behind.
//!
//! Here is what they all share: who asks what, and that asking twice is the same as asking once. The operations are in
//! `contracts`, `tasks`, `verbs` and `keys`.

use super::{
    fleet::Fleet,
    op::{Error, Op, Reply, Request},
    work::Work,
};
use crate::{
    domain::{
        ContractId, OwnerId,
        contract::{Cancelled, Hold},
        task::Task,
        text::hex,
    },
    store::Remembered,
};

impl Work {
    /// Does what a person or program asks.
    pub(super) fn person(&mut self, request: &Request, fleet: &Fleet) -> Result<Reply, Error> {
        if let Some(repeat) = &request.repeat
            && let Some(remembered) = self.remembered.get(&(repeat.owner, repeat.id.clone())).cloned()
        {
            if remembered.hash != hex(&repeat.hash) {
                return Err(Error::RequestIdReused(repeat.id.clone()));
            }
            return self.again(&request.op, &remembered);
        }
        let reply = self.fresh(request, fleet)?;
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
            Op::CreateContract(_) | Op::CreateTasks(_) => {
                Ok(Reply::Created { contract: contract()?, tasks, edges: None })
            }
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

    /// To hold a contract, or to let it go on, means something as long as it is not cancelled.
    fn may_start(&self, owner: OwnerId, contract: ContractId) -> Result<(), Error> {
        match &self.contract_of(owner, contract)?.cancelled {
            Some(_) => Err(Error::Precondition("the contract is cancelled; nothing of it starts any more".to_owned())),
            None => Ok(()),
        }
    }

    fn fresh(&mut self, request: &Request, fleet: &Fleet) -> Result<Reply, Error> {
        let actor = &request.actor;
        match &request.op {
            Op::CreateContract(new) => self.create_contract(new, actor),
            Op::CreateTasks(new) => self.create_tasks(new, actor),
            Op::UpdateContract(update) => self.update_contract(update, actor),
            Op::HoldContract { owner, contract, reason } => {
                self.may_start(*owner, *contract)?;
                let hold = Hold { by: actor.clone(), reason: reason.clone(), since: self.now };
                self.change_contract(*owner, *contract, "contract.held", &["held_by"], reason, actor, |contract| {
                    contract.held.get_or_insert(hold);
                })
            }
            Op::ReleaseContract { owner, contract } => {
                self.may_start(*owner, *contract)?;
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
            Op::RetryTask { owner, task, from } => self.retry_task(*owner, *task, *from, actor),
            Op::ReassignTask { owner, task, to } => self.reassign_task(*owner, *task, *to, fleet, actor),
            Op::ForceRelease { owner, task, reason } => self.force_release(*owner, *task, reason, actor),
            Op::TakeCheckpoint { owner, task } => self.take_checkpoint(*owner, *task, actor),
            Op::ForkTask(fork) => self.fork_task(fork, actor),
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
}

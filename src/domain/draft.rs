//! What somebody asks for before it exists or changes: checked in form by `wire`, in substance by the ledger.

use std::{sync::Arc, time::Duration};

use super::{
    analysis::{Category, categorize_plan},
    contract::ContractLimits,
    id::{CheckpointId, ContractId, OwnerId, TaskId},
    task::{TaskLimits, TaskSpec},
};

/// A contract to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewContract {
    /// Whose it will be.
    pub owner: OwnerId,
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// URL or absolute path; may be empty when every task has one.
    pub repository: String,
    /// May be empty.
    pub base_branch: String,
    /// With defaults filled in.
    pub limits: ContractLimits,
    /// Make it held.
    pub hold: bool,
    /// Its tasks.
    pub tasks: Vec<NewTask>,
}

/// Tasks to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTasks {
    /// Whose they will be.
    pub owner: OwnerId,
    /// `None`: an anonymous contract of its own, for exactly one task.
    pub contract: Option<ContractId>,
    /// The tasks.
    pub tasks: Vec<NewTask>,
}

/// A task to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTask {
    /// What to do; empty repository and base are filled in from the contract.
    pub spec: Arc<TaskSpec>,
    /// Names of the same call, or names or ids of the contract.
    pub depends_on: Vec<String>,
    /// What its plan touches, once that has been read.
    pub touches: Option<Vec<Category>>,
}

impl NewTask {
    /// Its plan is not read yet.
    pub fn new(spec: TaskSpec, depends_on: Vec<String>) -> Self {
        Self { spec: Arc::new(spec), depends_on, touches: None }
    }

    /// Finds what its plan touches: some microseconds for each kilobyte.
    pub fn read_plan(&mut self) {
        self.touches = Some(categorize_plan(&self.spec.name, &self.spec.plan));
    }
}

/// A task to make of the work of another, in the same contract and with the same dependencies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fork {
    /// Whose both are.
    pub owner: OwnerId,
    /// That other task.
    pub task: TaskId,
    /// One of its checkpoints; `None`: its result, else the newest.
    pub checkpoint: Option<CheckpointId>,
    /// `None`: made from the other's.
    pub name: Option<String>,
    /// `None`: the other's.
    pub plan: Option<String>,
    /// `None`: the other's.
    pub agent: Option<String>,
    /// `None`: the other's.
    pub model: Option<String>,
    /// The agent goes on with the conversation, as a fork of it.
    pub conversation: bool,
}

/// A change of a contract; `None` leaves a field as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContractUpdate {
    /// Whose it is.
    pub owner: OwnerId,
    /// Which.
    pub contract: ContractId,
    /// The version it must have.
    pub etag: Option<i64>,
    /// New name.
    pub name: Option<String>,
    /// New description.
    pub description: Option<String>,
    /// New concurrency.
    pub concurrency: Option<u32>,
    /// New retries.
    pub max_retries: Option<u32>,
    /// New wall time; `Some(None)` takes it away.
    pub wall_time: Option<Option<Duration>>,
    /// New wait for disconnected attempts.
    pub rerun_after: Option<Duration>,
    /// New time between checkpoints.
    pub checkpoint_every: Option<Duration>,
    /// Checkpoints at the end or none.
    pub final_checkpoint: Option<bool>,
}

/// A change of a task that is not under way and not done; `None` leaves a field as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskUpdate {
    /// Whose it is.
    pub owner: OwnerId,
    /// Which.
    pub task: TaskId,
    /// The version it must have.
    pub etag: Option<i64>,
    /// New name.
    pub name: Option<String>,
    /// New description.
    pub description: Option<String>,
    /// New plan.
    pub plan: Option<String>,
    /// New priority.
    pub priority: Option<i32>,
    /// New agent profile.
    pub agent: Option<String>,
    /// New model.
    pub model: Option<String>,
    /// New labels.
    pub labels: Option<Vec<String>>,
    /// New globs.
    pub copy_files: Option<Vec<String>>,
    /// New setup command.
    pub setup_command: Option<String>,
    /// New limits.
    pub limits: Option<TaskLimits>,
    /// New base.
    pub base_branch: Option<String>,
    /// Hidden or not.
    pub hidden: Option<bool>,
}

impl TaskUpdate {
    /// One that changes nothing yet.
    pub fn nothing(owner: OwnerId, task: TaskId, etag: Option<i64>) -> Self {
        Self {
            owner,
            task,
            etag,
            name: None,
            description: None,
            plan: None,
            priority: None,
            agent: None,
            model: None,
            labels: None,
            copy_files: None,
            setup_command: None,
            limits: None,
            base_branch: None,
            hidden: None,
        }
    }
}

//! A contract: a goal with its repository, limits and tasks. It is in charge of *whether* its tasks may start; each task of
//! itself knows only whether it is ready.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    id::{ContractId, OwnerId},
    task::TaskStatus,
    time::Timestamp,
};

/// Attempts of a contract that live at once, unless it says otherwise.
pub const DEFAULT_CONCURRENCY: u32 = 10;
/// Retries that count, unless it says otherwise: four counted attempts.
pub const DEFAULT_MAX_RETRIES: u32 = 3;
/// How long a disconnected attempt is waited for, unless it says otherwise.
pub const DEFAULT_RERUN_AFTER: Duration = Duration::from_secs(120);
/// How often the work of a running attempt is checkpointed, unless it says otherwise.
pub const DEFAULT_CHECKPOINT_EVERY: Duration = Duration::from_secs(300);

/// A goal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contract {
    /// Its id.
    pub id: ContractId,
    /// Whose it is.
    pub owner: OwnerId,
    /// For people.
    pub name: String,
    /// For people.
    pub description: String,
    /// URL or absolute path; empty when every task names its own.
    pub repository: String,
    /// Branch, tag or commit; empty for HEAD.
    pub base_branch: String,
    /// What bounds it.
    pub limits: ContractLimits,
    /// Made for a lone task.
    pub anonymous: bool,
    /// Who holds it, if anybody does. Stored intent: it survives everything until released.
    pub held: Option<Hold>,
    /// When it was cancelled, and why: intent first, its tasks follow in batches.
    pub cancelled: Option<Cancelled>,
    /// Tasks by status.
    pub counts: Counts,
    /// Tasks that are blocked for ever are not counted here: that is computed on reading.
    /// Attempts that are not ENDED.
    pub live: u32,
    /// Grows with every change.
    pub version: i64,
    /// When it was made.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
    /// When its last task became final.
    pub ended: Option<Timestamp>,
}

impl Contract {
    /// A new one that nothing has been asked of: open, without tasks.
    pub fn new(id: ContractId, owner: OwnerId, now: Timestamp) -> Self {
        Self {
            id,
            owner,
            name: String::new(),
            description: String::new(),
            repository: String::new(),
            base_branch: String::new(),
            limits: ContractLimits::default(),
            anonymous: false,
            held: None,
            cancelled: None,
            counts: Counts::default(),
            live: 0,
            version: 1,
            created: now,
            updated: now,
            ended: None,
        }
    }

    /// It may start a task now.
    pub fn is_open(&self) -> bool {
        self.held.is_none() && self.cancelled.is_none() && self.live < self.limits.concurrency
    }

    /// Where it stands, from its counts. A contract without tasks is active: it waits for them.
    pub fn status(&self) -> ContractStatus {
        let unfinished = self.counts.unfinished();
        if self.cancelled.is_some() {
            ContractStatus::Cancelled
        } else if unfinished > 0 || self.counts.total() == 0 {
            ContractStatus::Active
        } else if self.counts.of(TaskStatus::Failed) > 0 {
            ContractStatus::Failed
        } else if self.counts.of(TaskStatus::Cancelled) > 0 {
            ContractStatus::Cancelled
        } else {
            ContractStatus::Done
        }
    }
}

/// Where a contract stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContractStatus {
    /// Some task is not final.
    Active,
    /// All tasks are DONE or MERGED.
    Done,
    /// All are final, some failed.
    Failed,
    /// Somebody cancelled it, or all that was not done.
    Cancelled,
}

/// What bounds a contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContractLimits {
    /// Attempts that may live at once; at least 1.
    pub concurrency: u32,
    /// Retries that count before a task fails.
    pub max_retries: u32,
    /// Wall time of one attempt.
    pub wall_time: Option<Duration>,
    /// How long a disconnected attempt is waited for.
    pub rerun_after: Duration,
    /// How often the work of a running attempt is checkpointed; zero: not while it runs.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: Duration,
    /// The work of an attempt is checkpointed when it ends; without it a retry goes on from the last one before that.
    #[serde(default = "default_final_checkpoint")]
    pub final_checkpoint: bool,
}

fn default_checkpoint_every() -> Duration {
    DEFAULT_CHECKPOINT_EVERY
}

fn default_final_checkpoint() -> bool {
    true
}

impl Default for ContractLimits {
    fn default() -> Self {
        Self {
            concurrency: DEFAULT_CONCURRENCY,
            max_retries: DEFAULT_MAX_RETRIES,
            wall_time: None,
            rerun_after: DEFAULT_RERUN_AFTER,
            checkpoint_every: DEFAULT_CHECKPOINT_EVERY,
            final_checkpoint: true,
        }
    }
}

/// A wish that nothing starts, with its author.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Who wished it: `key:<id>`, `server`.
    pub by: String,
    /// Why, for people.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// A wish that everything ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// Who wished it.
    pub by: String,
    /// Why, for people.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// Tasks by status, kept in step by the ledger with every change of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counts([u32; TaskStatus::ALL.len()]);

impl Counts {
    /// Tasks with this status.
    pub fn of(&self, status: TaskStatus) -> u32 {
        self.0[status as usize]
    }

    /// All tasks.
    pub fn total(&self) -> u32 {
        self.0.iter().sum()
    }

    /// Tasks that are not final.
    pub fn unfinished(&self) -> u32 {
        TaskStatus::ALL.iter().filter(|s| !s.is_final()).map(|s| self.of(*s)).sum()
    }

    /// A task came to `to` from `from` (`None`: it is new).
    pub fn shift(&mut self, from: Option<TaskStatus>, to: TaskStatus) {
        if let Some(from) = from {
            self.0[from as usize] = self.0[from as usize].saturating_sub(1);
        }
        self.0[to as usize] += 1;
    }
}

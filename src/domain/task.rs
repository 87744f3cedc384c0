//! A task: one piece of work, durable, tried by attempts until it is DONE or there is a reason to stop.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    attempt::{Failure, TaskResult, Usage},
    checkpoint::Here,
    contract::Hold,
    id::{AttemptRef, CheckpointId, ClassId, ContractId, DaemonId, OwnerId, TaskId},
    is_default,
    time::Timestamp,
};

/// Bytes of a plan.
pub const MAX_PLAN_BYTES: usize = 512 * 1024;
/// Bytes of a name.
pub const MAX_NAME_BYTES: usize = 200;
/// Bytes of a description or setup command.
pub const MAX_TEXT_BYTES: usize = 64 * 1024;
/// Dependencies of one task.
pub const MAX_DEPENDENCIES: usize = 10_000;
/// Tasks of one contract.
pub const MAX_TASKS: u32 = 1_000_000;
/// Tasks created in one call.
pub const MAX_BATCH: usize = 1_000;

/// A piece of work. What it is found by is kept beside the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    #[serde(skip, default = "super::id::beside")]
    pub id: TaskId,
    /// The contract.
    #[serde(skip, default = "super::id::beside")]
    pub contract: ContractId,
    /// Whose it is.
    #[serde(skip, default = "super::id::beside")]
    pub owner: OwnerId,
    /// Distance from a task without a parent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub depth: u32,
    /// What was asked. Shared, because it may be large and seldom changes; stored apart from the rest for the same reason.
    #[serde(skip)]
    pub spec: Arc<TaskSpec>,
    /// What it needs of a daemon.
    #[serde(skip, default = "super::id::beside")]
    pub class: ClassId,
    /// Where it stands.
    pub state: TaskState,
    /// Dependencies that are not complete. The edges say so, and it is counted from them when the rest is read: to store it would
    /// mean to write a task anew whenever one of its dependencies ends, of a large graph each on a page of its own. The price is that
    /// reading a row costs its in-degree, which the ledger, who keeps what is under way, seldom does.
    #[serde(skip)]
    pub unmet: u32,
    /// Number of the newest attempt; 0 for none.
    pub attempt: u32,
    /// An attempt that is still being ended; the next one waits until it has.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ending: Option<u32>,
    /// Daemon of the newest attempt.
    #[serde(default, skip_serializing_if = "is_default")]
    pub daemon: Option<DaemonId>,
    /// What decides about the next try.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tries: Tries,
    /// Branch of the newest attempt.
    #[serde(default, skip_serializing_if = "is_default")]
    pub branch: String,
    /// What all attempts have used.
    #[serde(default, skip_serializing_if = "is_default")]
    pub usage: Usage,
    /// Grows with every change.
    pub version: i64,
    /// When it was made.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
    /// When its agent last started.
    #[serde(default, skip_serializing_if = "is_default")]
    pub started: Option<Timestamp>,
    /// When an attempt was last interrupted.
    #[serde(default, skip_serializing_if = "is_default")]
    pub interrupted: Option<Timestamp>,
    /// What the next attempt goes on from, wherever it runs: the newest checkpoint, or the one a person chose.
    #[serde(default, skip_serializing_if = "is_default")]
    pub checkpoint: Option<CheckpointId>,
    /// The worktree in which the next attempt may go on, on the daemon that has it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub here: Option<Here>,
    /// The newest attempt when a person said what the next one goes on from: its checkpoints that arrive later do not change
    /// that.
    #[serde(default, skip_serializing_if = "is_default")]
    pub chosen: Option<u32>,
    /// The newest attempt when it was given to another agent: the conversations until then are not that one's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub handed_over: Option<u32>,
    /// The daemon that a person chose for the next attempt; another one takes it where that one has no room.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prefer: Option<DaemonId>,
}

impl Task {
    /// The dispatcher may take it, as far as the task itself goes.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, TaskState::Pending { wait: None, held: None }) && self.unmet == 0 && self.ending.is_none()
    }

    /// The work of this attempt is what the next one goes on from.
    pub fn follows(&self, attempt: u32) -> bool {
        self.attempt == attempt && self.chosen != Some(attempt)
    }

    /// Whether somebody chose that it goes on from a checkpoint of this attempt; otherwise the newest one there is does.
    pub fn chose(&self, of: AttemptRef) -> bool {
        of.task != self.id || self.chosen.is_some_and(|since| of.number <= since)
    }

    /// Whether the conversation of this attempt, of it or of another task, is its agent's.
    pub fn may_converse(&self, of: AttemptRef) -> bool {
        self.handed_over.is_none_or(|until| of.task == self.id && of.number > until)
    }

    /// A time it waits for.
    pub fn wait(&self) -> Option<&Wait> {
        match &self.state {
            TaskState::Pending { wait, .. } => wait.as_ref(),
            _ => None,
        }
    }

    /// Where it stands, without what is known there.
    pub fn status(&self) -> TaskStatus {
        self.state.status()
    }

    /// What it made, if it made something.
    pub fn result(&self) -> Option<&TaskResult> {
        match &self.state {
            TaskState::Finalizing { result, .. }
            | TaskState::Done { result, .. }
            | TaskState::Merged { result, .. } => Some(result),
            _ => None,
        }
    }
}

/// What a task begins with; the rest of it is the same for all.
#[derive(Clone, Debug)]
pub struct New {
    /// Its id.
    pub id: TaskId,
    /// The contract.
    pub contract: ContractId,
    /// Whose it is.
    pub owner: OwnerId,
    /// Distance from a task without a parent.
    pub depth: u32,
    /// What was asked.
    pub spec: Arc<TaskSpec>,
    /// What it needs of a daemon.
    pub class: ClassId,
    /// Dependencies that are not complete.
    pub unmet: u32,
    /// What its first attempt goes on from.
    pub checkpoint: Option<CheckpointId>,
    /// When it is made.
    pub now: Timestamp,
}

impl New {
    /// The task, untried.
    pub fn task(self) -> Task {
        let Self { id, contract, owner, depth, spec, class, unmet, checkpoint, now } = self;
        Task {
            id,
            contract,
            owner,
            depth,
            spec,
            class,
            state: TaskState::Pending { wait: None, held: None },
            unmet,
            attempt: 0,
            ending: None,
            daemon: None,
            tries: Tries::default(),
            branch: String::new(),
            usage: Usage::default(),
            version: 1,
            created: now,
            updated: now,
            started: None,
            interrupted: None,
            checkpoint,
            here: None,
            chosen: None,
            handed_over: None,
            prefer: None,
        }
    }
}

/// What is remembered of earlier attempts, to decide about the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tries {
    /// Attempts since a person last asked for a retry.
    #[serde(default, skip_serializing_if = "is_default")]
    pub total: u32,
    /// Those that counted against `max_retries`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub counted: u32,
    /// Failures in a row that led to a backoff.
    #[serde(default, skip_serializing_if = "is_default")]
    pub backoffs: u32,
    /// Daemons that died under it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lost_daemons: Vec<DaemonId>,
    /// Daemons to try last, for a while.
    #[serde(default, skip_serializing_if = "is_default")]
    pub avoid: Vec<Avoid>,
    /// The last failure.
    #[serde(default, skip_serializing_if = "is_default")]
    pub last_failure: Option<Failure>,
}

/// A daemon to try last, for a while: it changes the order of candidates and never leaves a task without any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Avoid {
    /// The daemon.
    pub daemon: DaemonId,
    /// No longer than this.
    pub until: Timestamp,
}

/// What a task is asked to do. Fields that are not served yet stand only in the proto, where `wire` refuses them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Unique in its contract.
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "is_default")]
    pub description: String,
    /// What the agent is told.
    pub plan: String,
    /// Higher goes first.
    #[serde(default, skip_serializing_if = "is_default")]
    pub priority: i32,
    /// Agent profile.
    pub agent: String,
    /// Model; empty: the agent's default.
    #[serde(default, skip_serializing_if = "is_default")]
    pub model: String,
    /// Labels the daemon must have; sorted, without repetition.
    #[serde(default, skip_serializing_if = "is_default")]
    pub labels: Vec<String>,
    /// URL or absolute path; filled in from the contract.
    #[serde(default, skip_serializing_if = "is_default")]
    pub repository: String,
    /// Branch, tag or commit; filled in from the contract; empty: HEAD.
    #[serde(default, skip_serializing_if = "is_default")]
    pub base_branch: String,
    /// Globs to copy from the repository's own checkout.
    #[serde(default, skip_serializing_if = "is_default")]
    pub copy_files: Vec<String>,
    /// Run before the agent; empty for none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub setup_command: String,
    /// Limits of its own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: TaskLimits,
    /// Not shown in lists unless asked for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hidden: bool,
    /// The task that made this one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub parent: Option<TaskId>,
    /// The work that this one began from, instead of the base.
    #[serde(default, skip_serializing_if = "is_default")]
    pub branched_from: Option<BranchedFrom>,
}

impl TaskSpec {
    /// Whoever does it is asked something else than before, not only those who look at it or wait for it.
    pub fn asks_else(&self, before: &Self) -> bool {
        fn asked(spec: &TaskSpec) -> impl PartialEq + '_ {
            let TaskSpec { plan, agent, model, labels, base_branch, copy_files, setup_command, limits, .. } = spec;
            (plan, agent, model, labels, base_branch, copy_files, setup_command, limits)
        }
        asked(self) != asked(before)
    }
}

/// The work of another task that a task began from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchedFrom {
    /// That task.
    pub task: TaskId,
    /// Its checkpoint.
    pub checkpoint: CheckpointId,
    /// With the agent's conversation, which is forked.
    pub conversation: bool,
}

impl BranchedFrom {
    /// From this checkpoint of whichever task it is of: the ledger finds that out.
    pub fn unnamed(checkpoint: CheckpointId, conversation: bool) -> Self {
        Self { task: TaskId(uuid::Uuid::nil()), checkpoint, conversation }
    }

    /// It is known, or claimed, of which task the checkpoint is.
    pub fn is_named(&self) -> bool {
        !self.task.0.is_nil()
    }
}

/// What bounds one task beyond its contract.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLimits {
    /// Wall time of one attempt; `None`: the contract's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub wall_time: Option<Duration>,
    /// Retries that count; `None`: the contract's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub max_retries: Option<u32>,
}

/// Where a task stands, with what is known there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum TaskState {
    /// Waits.
    Pending {
        /// For a time, after a failure.
        wait: Option<Wait>,
        /// For somebody.
        held: Option<Hold>,
    },
    /// Given to a daemon, agent not started yet.
    Starting {
        /// Since when.
        since: Timestamp,
    },
    /// The agent runs.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// Stopped on request; goes on when resumed.
    Paused {
        /// Who asked.
        held: Hold,
    },
    /// The agent asks a person.
    AwaitingInput {
        /// What it asks.
        question: String,
        /// Since when.
        since: Timestamp,
    },
    /// The agent has ended well; its result is on the way.
    Finalizing {
        /// What it made.
        result: TaskResult,
        /// Since when.
        since: Timestamp,
    },
    /// The result is where all dependents can reach it.
    Done {
        /// What it made.
        result: TaskResult,
        /// When.
        at: Timestamp,
    },
    /// The result is on the target branch.
    Merged {
        /// What it made.
        result: TaskResult,
        /// When.
        at: Timestamp,
    },
    /// Not done, and not tried again by itself.
    Failed {
        /// Why.
        failure: Failure,
        /// When.
        at: Timestamp,
    },
    /// Cancelled.
    Cancelled {
        /// Why, for people.
        reason: String,
        /// Who wished it.
        by: String,
        /// When.
        at: Timestamp,
    },
}

/// A time to wait for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// Not before then.
    pub until: Timestamp,
    /// Why.
    pub why: WaitReason,
}

/// Why a time is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitReason {
    /// Backoff between attempts.
    Backoff,
    /// The agent's account is at its limit.
    UsageLimit,
}

/// [`TaskState`] without what is known in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    /// Waits.
    Pending,
    /// Given to a daemon.
    Starting,
    /// The agent runs.
    Running,
    /// Stopped on request.
    Paused,
    /// The agent asks a person.
    AwaitingInput,
    /// The result is on the way.
    Finalizing,
    /// Complete.
    Done,
    /// Complete, and merged.
    Merged,
    /// Failed.
    Failed,
    /// Cancelled.
    Cancelled,
}

impl TaskStatus {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 10] = [
        Self::Pending,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::AwaitingInput,
        Self::Finalizing,
        Self::Done,
        Self::Merged,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Nothing changes it but a person.
    pub fn is_final(self) -> bool {
        match self {
            Self::Done | Self::Merged | Self::Failed | Self::Cancelled => true,
            Self::Pending | Self::Starting | Self::Running | Self::Paused | Self::AwaitingInput | Self::Finalizing => {
                false
            }
        }
    }

    /// What is asked of it can be changed: it waits, or waits for a person to have it tried again.
    pub fn may_change(self) -> bool {
        matches!(self, Self::Pending | Self::Failed | Self::Cancelled)
    }

    /// Dependents may start.
    pub fn is_complete(self) -> bool {
        matches!(self, Self::Done | Self::Merged)
    }

    /// The word for it, as in the API: `PENDING`, `AWAITING_INPUT`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::AwaitingInput => "AWAITING_INPUT",
            Self::Finalizing => "FINALIZING",
            Self::Done => "DONE",
            Self::Merged => "MERGED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

impl TaskState {
    /// Its name.
    pub fn status(&self) -> TaskStatus {
        match self {
            Self::Pending { .. } => TaskStatus::Pending,
            Self::Starting { .. } => TaskStatus::Starting,
            Self::Running { .. } => TaskStatus::Running,
            Self::Paused { .. } => TaskStatus::Paused,
            Self::AwaitingInput { .. } => TaskStatus::AwaitingInput,
            Self::Finalizing { .. } => TaskStatus::Finalizing,
            Self::Done { .. } => TaskStatus::Done,
            Self::Merged { .. } => TaskStatus::Merged,
            Self::Failed { .. } => TaskStatus::Failed,
            Self::Cancelled { .. } => TaskStatus::Cancelled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::AttemptId;

    /// What somebody chose is a checkpoint of an attempt before the choice, or of another task; those that come after are only the
    /// newest there are.
    #[test]
    fn what_was_chosen_is_told_from_what_is_newest() {
        let id = |n| uuid::Uuid::from_u128(n);
        let new = New {
            id: TaskId(id(1)),
            contract: ContractId(id(2)),
            owner: OwnerId(id(3)),
            depth: 0,
            spec: Arc::default(),
            class: ClassId(id(4)),
            unmet: 0,
            checkpoint: None,
            now: Timestamp(0),
        };
        let mut task = new.task();
        let of = |task, number| AttemptRef { task, number, id: AttemptId(id(5)) };
        let other = TaskId(id(9));
        assert_eq!([of(task.id, 1), of(task.id, 2), of(other, 1)].map(|of| task.chose(of)), [false, false, true]);
        assert_eq!([of(task.id, 1), of(other, 1)].map(|of| task.may_converse(of)), [true, true]);
        task.handed_over = Some(1);
        assert_eq!(
            [of(task.id, 1), of(task.id, 2), of(other, 2)].map(|of| task.may_converse(of)),
            [false, true, false]
        );
        task.chosen = Some(2);
        assert_eq!([of(task.id, 1), of(task.id, 2), of(task.id, 3)].map(|of| task.chose(of)), [true, true, false]);
    }

    /// What is the same although it was said again is nothing else, nor is what only others look at.
    #[test]
    fn what_is_asked_is_told_from_how_it_is_shown_and_when() {
        let before = TaskSpec { plan: "p".into(), labels: vec!["l".into()], ..TaskSpec::default() };
        let shown = TaskSpec { name: "n".into(), description: "d".into(), priority: 7, hidden: true, ..before.clone() };
        assert!(!shown.asks_else(&before));
        let plan = TaskSpec { plan: "q".into(), ..before.clone() };
        let base = TaskSpec { base_branch: "b".into(), ..before.clone() };
        assert!(plan.asks_else(&before) && base.asks_else(&before));
    }

    /// As it was written before what is empty was left out.
    #[test]
    fn a_document_with_everything_in_it_is_read() {
        let text = r#"{"id":"01a2187a-a29b-7087-a04c-f29e8140ebd2","contract":"01a2187a-a169-70de-afd6-4c3606edd2fb",
            "owner":"01a2187a-a128-73c2-aa42-4aa76eebf890","depth":0,"class":"62e54780-3901-59a3-96a3-5ce56f95499c",
            "state":{"status":"done","result":{"commit":"1","branch":"b","result_ref":"r","published":true,"pack":null,"blob":""},
            "at":5},"unmet":7,"attempt":1,"ending":null,"daemon":"01a2187a-a135-70f1-b4f3-49fab717d890",
            "tries":{"total":0,"counted":0,"backoffs":0,"lost_daemons":[],"avoid":[],"last_failure":null},"branch":"b",
            "usage":{"input_tokens":7,"output_tokens":0,"cache_read_tokens":0,"cache_write_tokens":0,"cost_micro_usd":0,
            "turns":0},"version":5,"created":1,"updated":5,"started":4,"interrupted":null,"checkpoint":null,"here":null,
            "chosen":null,"prefer":null}"#;
        let task: Task = serde_json::from_str(text).unwrap();
        assert_eq!((task.version, task.usage.input_tokens, task.status()), (5, 7, TaskStatus::Done));
        assert_eq!(task.unmet, 0, "the edges say how many there are");
        let short = serde_json::to_string(&task).unwrap();
        assert!(short.contains(r#""usage":{"input_tokens":7}"#) && !short.contains("null"), "{short}");
        assert!(!short.contains("01a2187a-a29b") && !short.contains("contract"), "what is beside it: {short}");
        assert_eq!(serde_json::from_str::<Task>(&short).unwrap(), task);
        let spec = TaskSpec { name: "n".to_owned(), plan: "p".to_owned(), ..TaskSpec::default() };
        let short = serde_json::to_string(&spec).unwrap();
        assert_eq!(short, r#"{"name":"n","plan":"p","agent":""}"#);
        assert_eq!(serde_json::from_str::<TaskSpec>(&short).unwrap(), spec);
    }
}

//! An attempt: one try at a task on one daemon. It holds a slot of its daemon and a place in its contract's concurrency from
//! the moment it is decided until it is ENDED, which only two things can say: the daemon, that no process is left; or time,
//! that the daemon is not coming back.
//!
//! ```text
//!   ASSIGNED ──accepted──> ACCEPTED ──started──> RUNNING ──complete──> ENDED
//!      │  └──rejected──────────────────────────────────────────────────^
//!      └───── cancel / fence (any live state) ──> ENDING ──complete────^
//!      └───── daemon lost ──> DISCONNECTED ──revived──> what it was    │
//!                                   └──────rerun_after─────────────────┘
//!   RUNNING ──complete, result on its way──> FINALIZING ──stored──> ENDED
//! ```
//!
//! A FINALIZING attempt has no process left and keeps its slot until its result has arrived: so a daemon that dies with the
//! only copy of a result is a lost daemon like any other, and the task is tried again from its last checkpoint.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    checkpoint::Origin,
    id::{AttemptId, AttemptRef, CheckpointId, ContractId, DaemonId, OwnerId, TaskId},
    is_default,
    order::OutstandingSpawn,
    time::Timestamp,
};

/// One try. What it is found by is kept beside the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The task.
    #[serde(skip, default = "super::id::beside")]
    pub task: TaskId,
    /// From 1 within the task.
    #[serde(skip)]
    pub number: u32,
    /// With the number, the fence.
    #[serde(skip, default = "super::id::beside")]
    pub id: AttemptId,
    /// Contract of the task.
    #[serde(skip, default = "super::id::beside")]
    pub contract: ContractId,
    /// Whose it is.
    pub owner: OwnerId,
    /// Where it is.
    #[serde(skip, default = "super::id::beside")]
    pub daemon: DaemonId,
    /// How far it is.
    pub state: AttemptState,
    /// A newer attempt has its place, or its task is over: nothing it says changes the task any more.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fenced: bool,
    /// Branch it works on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub branch: String,
    /// Worktree on the daemon's machine; empty until known.
    #[serde(default, skip_serializing_if = "is_default")]
    pub worktree: String,
    /// Commit it started from; empty until known.
    #[serde(default, skip_serializing_if = "is_default")]
    pub base_commit: String,
    /// Version of the agent; empty until known.
    #[serde(default, skip_serializing_if = "is_default")]
    pub agent_version: String,
    /// The agent's own session id; empty until known.
    #[serde(default, skip_serializing_if = "is_default")]
    pub agent_session_id: String,
    /// The agent's last message.
    #[serde(default, skip_serializing_if = "is_default")]
    pub last_message: String,
    /// What it has used.
    #[serde(default, skip_serializing_if = "is_default")]
    pub usage: Usage,
    /// Things worth a look; at most [`MAX_WARNINGS`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub warnings: Vec<String>,
    /// Wall time it has from the agent's start.
    #[serde(default, skip_serializing_if = "is_default")]
    pub wall_time: Option<Duration>,
    /// When it was decided.
    pub assigned: Timestamp,
    /// When the agent was started.
    #[serde(default, skip_serializing_if = "is_default")]
    pub started: Option<Timestamp>,
    /// Bytes of output in all, once it has said so.
    #[serde(default, skip_serializing_if = "is_default")]
    pub output_bytes: i64,
    /// Sequences of the daemon's commands about it that may not be answered yet, but for the one to start it; forgotten with its
    /// end.
    #[serde(default, skip_serializing_if = "is_default")]
    pub commands: Vec<i64>,
    /// What it began from.
    #[serde(default, skip_serializing_if = "is_default")]
    pub origin: Origin,
    /// Its newest checkpoint on the server.
    #[serde(default, skip_serializing_if = "is_default")]
    pub checkpoint: Option<CheckpointId>,
    /// When the server had that.
    #[serde(default, skip_serializing_if = "is_default")]
    pub checkpointed: Option<Timestamp>,
    /// A checkpoint that somebody asked for and that is not to be had: when that was said, and why. Until one arrives.
    #[serde(default, skip_serializing_if = "is_default")]
    pub checkpoint_failed: Option<(Timestamp, String)>,
}

/// Warnings kept for an attempt; later ones are dropped.
pub const MAX_WARNINGS: usize = 20;

impl Attempt {
    /// Its name.
    pub fn reference(&self) -> AttemptRef {
        AttemptRef { task: self.task, number: self.number, id: self.id }
    }

    /// It holds a slot.
    pub fn is_live(&self) -> bool {
        !matches!(self.state, AttemptState::Ended { .. })
    }

    /// The order to start it, which its daemon has not answered.
    pub fn outstanding(&self) -> Option<&Arc<OutstandingSpawn>> {
        match &self.state {
            AttemptState::Assigned { spawn, .. } => spawn.as_ref(),
            _ => None,
        }
    }

    /// Where it is ASSIGNED, its daemon has until then to answer.
    pub fn answer_by(&mut self, time: Timestamp) {
        if let AttemptState::Assigned { answer_by, .. } = &mut self.state {
            *answer_by = time;
        }
    }

    /// The server has this checkpoint of it. `false`: it has a later one already. The order is that of the ids, which grow with
    /// the time they were taken at; small ones overtake large ones on their way.
    pub fn checkpointed(&mut self, checkpoint: CheckpointId, now: Timestamp) -> bool {
        self.checkpoint_failed = None;
        let is_newest = self.checkpoint.is_none_or(|newest| newest < checkpoint);
        if is_newest {
            self.checkpoint = Some(checkpoint);
            self.checkpointed = Some(now);
        }
        is_newest
    }

    /// What of a usage its task does not count yet: what it had used when it came to its result was counted with that,
    /// whatever becomes of the result on its way.
    pub fn uncounted(&self, usage: &Usage) -> Usage {
        let mut state = &self.state;
        while let AttemptState::Disconnected { was, .. } = state {
            state = was;
        }
        match state {
            AttemptState::Finalizing { .. } => usage.minus(&self.usage),
            _ => usage.clone(),
        }
    }
}

/// How far an attempt is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum AttemptState {
    /// Decided; the daemon has not answered.
    Assigned {
        /// Unanswered on a live session by then, it is fenced and the task dispatched again.
        answer_by: Timestamp,
        /// The order to start it; `None` where programs before this one have made that a command like others.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spawn: Option<Arc<OutstandingSpawn>>,
    },
    /// In the daemon's journal.
    Accepted {
        /// Since when.
        since: Timestamp,
    },
    /// The agent runs.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// Being ended.
    Ending {
        /// Since when.
        since: Timestamp,
        /// Why, for people.
        reason: String,
    },
    /// Its agent has ended well, and its result is on its way to the server.
    Finalizing {
        /// Since when.
        since: Timestamp,
        /// What it made.
        result: TaskResult,
    },
    /// Its daemon has gone quiet.
    Disconnected {
        /// Since when.
        since: Timestamp,
        /// Given up then.
        rerun_at: Timestamp,
        /// What it was, and is again if its daemon comes back in time.
        was: Box<AttemptState>,
    },
    /// Over.
    Ended {
        /// When.
        at: Timestamp,
        /// How.
        outcome: Result<TaskResult, Failure>,
    },
}

/// [`AttemptState`] without what is known in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptStatus {
    /// Decided.
    Assigned,
    /// In the daemon's journal.
    Accepted,
    /// The agent runs.
    Running,
    /// Being ended.
    Ending,
    /// Its result is on its way.
    Finalizing,
    /// Its daemon has gone quiet.
    Disconnected,
    /// Over.
    Ended,
}

impl AttemptState {
    /// Its name.
    pub fn status(&self) -> AttemptStatus {
        match self {
            Self::Assigned { .. } => AttemptStatus::Assigned,
            Self::Accepted { .. } => AttemptStatus::Accepted,
            Self::Running { .. } => AttemptStatus::Running,
            Self::Ending { .. } => AttemptStatus::Ending,
            Self::Finalizing { .. } => AttemptStatus::Finalizing,
            Self::Disconnected { .. } => AttemptStatus::Disconnected,
            Self::Ended { .. } => AttemptStatus::Ended,
        }
    }
}

/// A result: a commit that dependents build on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The commit, 40 hex digits.
    pub commit: String,
    /// The branch it stands on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub branch: String,
    /// The ref that holds it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub result_ref: String,
    /// The repository that dependents use has it; otherwise only the daemon's clone does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub published: bool,
    /// The pack that brings it to the server; `None` where all that could need it can reach it already.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pack: Option<Pack>,
    /// Name of the blob that holds the pack, once the server has it; empty before that.
    #[serde(default, skip_serializing_if = "is_default")]
    pub blob: String,
}

impl TaskResult {
    /// The same thing was made, whether or not the server has it by now.
    pub fn is_same(&self, other: &Self) -> bool {
        self.commit == other.commit && self.result_ref == other.result_ref
    }

    /// The server waits for its pack.
    pub fn is_awaited(&self) -> bool {
        self.pack.is_some() && self.blob.is_empty()
    }
}

/// A file as its maker has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// How long it is.
    pub bytes: i64,
    /// SHA-256 of it, 64 hex digits.
    pub sha256: String,
}

/// An end without a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Decides what follows.
    pub class: FailureClass,
    /// The same for people.
    pub message: String,
    /// For a usage limit: when it resets.
    pub reset: Option<Timestamp>,
}

impl Failure {
    /// A failure with nothing more to say than its class and message.
    pub fn new(class: FailureClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), reset: None }
    }
}

/// Why an attempt ended without a result; see `retry` for what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The daemon did not come back in time.
    DaemonLost,
    /// The daemon came back without the agent and without its worktree.
    WorktreeLost,
    /// The daemon came back without the agent, with the worktree intact.
    Recovered,
    /// The daemon would not take it, or did not answer.
    Refused,
    /// The agent died, or ended without saying how.
    AgentCrashed,
    /// The verify command failed.
    VerifyFailed,
    /// The setup command failed.
    SetupFailed,
    /// The agent's account was not accepted.
    Authentication,
    /// The agent's account is at its usage limit.
    UsageLimit,
    /// The agent said that it failed.
    AgentError,
    /// Longer than the wall time.
    Timeout,
    /// The repository, its base, or the merge of dependency results.
    Repository,
    /// Cancelled.
    Cancelled,
}

impl FailureClass {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::DaemonLost,
        Self::WorktreeLost,
        Self::Recovered,
        Self::Refused,
        Self::AgentCrashed,
        Self::VerifyFailed,
        Self::SetupFailed,
        Self::Authentication,
        Self::UsageLimit,
        Self::AgentError,
        Self::Timeout,
        Self::Repository,
        Self::Cancelled,
    ];
}

/// Tokens and money.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Sent to the model, not cached.
    #[serde(default, skip_serializing_if = "is_default")]
    pub input_tokens: i64,
    /// Made by the model.
    #[serde(default, skip_serializing_if = "is_default")]
    pub output_tokens: i64,
    /// Read from the provider's cache.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache_read_tokens: i64,
    /// Written to the provider's cache.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache_write_tokens: i64,
    /// What the agent says it cost.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cost_micro_usd: i64,
    /// Turns of the conversation.
    #[serde(default, skip_serializing_if = "is_default")]
    pub turns: u32,
}

impl Usage {
    /// The sum of two.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            cache_read_tokens: self.cache_read_tokens.saturating_add(other.cache_read_tokens),
            cache_write_tokens: self.cache_write_tokens.saturating_add(other.cache_write_tokens),
            cost_micro_usd: self.cost_micro_usd.saturating_add(other.cost_micro_usd),
            turns: self.turns.saturating_add(other.turns),
        }
    }

    /// The larger of two counts of the same thing, each by itself.
    pub fn max(&self, other: &Self) -> Self {
        Self {
            input_tokens: self.input_tokens.max(other.input_tokens),
            output_tokens: self.output_tokens.max(other.output_tokens),
            cache_read_tokens: self.cache_read_tokens.max(other.cache_read_tokens),
            cache_write_tokens: self.cache_write_tokens.max(other.cache_write_tokens),
            cost_micro_usd: self.cost_micro_usd.max(other.cost_micro_usd),
            turns: self.turns.max(other.turns),
        }
    }

    /// What is left when a part of it is taken back.
    pub fn minus(&self, other: &Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_sub(other.input_tokens),
            output_tokens: self.output_tokens.saturating_sub(other.output_tokens),
            cache_read_tokens: self.cache_read_tokens.saturating_sub(other.cache_read_tokens),
            cache_write_tokens: self.cache_write_tokens.saturating_sub(other.cache_write_tokens),
            cost_micro_usd: self.cost_micro_usd.saturating_sub(other.cost_micro_usd),
            turns: self.turns.saturating_sub(other.turns),
        }
    }
}

/// Something that happens to an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptEvent {
    /// It is in the daemon's journal.
    Accepted,
    /// The agent runs.
    Started,
    /// Somebody wants it ended, or a newer attempt has its place.
    End {
        /// Why, for people.
        reason: String,
    },
    /// Its daemon has gone quiet.
    Lost {
        /// Given up then.
        rerun_at: Timestamp,
    },
    /// Its daemon is back, and has it.
    Revived,
    /// No process of it is left, and its result is on its way.
    Finalizing {
        /// What it made.
        result: TaskResult,
    },
    /// No process of it is left, or its daemon is not coming back.
    Ended {
        /// How it ended.
        outcome: Result<TaskResult, Failure>,
    },
}

/// What an event did to an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptStep {
    /// This is the attempt now.
    Moved(Arc<Attempt>),
    /// It had happened before.
    Already,
    /// It is over; nothing happens to it any more.
    Over,
}

impl Attempt {
    /// Moves the attempt. `now` is when the server decided.
    pub fn apply(&self, event: &AttemptEvent, now: Timestamp) -> AttemptStep {
        use AttemptState as S;
        let moved = |change: &dyn Fn(&mut Self)| {
            let mut attempt = self.clone();
            change(&mut attempt);
            AttemptStep::Moved(Arc::new(attempt))
        };
        match (&self.state, event) {
            (S::Ended { outcome, .. }, AttemptEvent::Ended { outcome: again }) if outcome == again => {
                AttemptStep::Already
            }
            // Given up because its daemon was lost, and nothing has taken its place: the daemon is back, and has it.
            (S::Ended { outcome: Err(failure), .. }, AttemptEvent::Revived)
                if failure.class == FailureClass::DaemonLost && !self.fenced =>
            {
                let since = self.started.unwrap_or(now);
                let state = if self.started.is_some() { S::Running { since } } else { S::Accepted { since } };
                AttemptStep::Moved(Arc::new(Self { state, ..self.clone() }))
            }
            (S::Ended { .. }, _) => AttemptStep::Over,
            (_, AttemptEvent::Ended { outcome }) => {
                moved(&|attempt| attempt.state = S::Ended { at: now, outcome: outcome.clone() })
            }
            (S::Disconnected { was, .. }, AttemptEvent::Finalizing { .. }) => {
                let attempt = Self { state: (**was).clone(), ..self.clone() };
                match attempt.apply(event, now) {
                    AttemptStep::Already => AttemptStep::Moved(Arc::new(attempt)),
                    step => step,
                }
            }
            (S::Finalizing { result: awaited, .. }, AttemptEvent::Finalizing { result }) if awaited.is_same(result) => {
                AttemptStep::Already
            }
            (_, AttemptEvent::Finalizing { result }) => {
                moved(&|attempt| attempt.state = S::Finalizing { since: now, result: result.clone() })
            }
            (S::Assigned { .. }, AttemptEvent::Accepted) => {
                moved(&|attempt| attempt.state = S::Accepted { since: now })
            }
            (S::Disconnected { was, .. }, AttemptEvent::Revived | AttemptEvent::Accepted | AttemptEvent::Started) => {
                let mut attempt = Self { state: (**was).clone(), ..self.clone() };
                if let AttemptStep::Moved(further) = attempt.apply(event, now) {
                    attempt = Arc::unwrap_or_clone(further);
                }
                AttemptStep::Moved(Arc::new(attempt))
            }
            (_, AttemptEvent::Accepted | AttemptEvent::Revived) => AttemptStep::Already,
            (S::Assigned { .. } | S::Accepted { .. }, AttemptEvent::Started) => moved(&|attempt| {
                attempt.started = Some(now);
                attempt.state = S::Running { since: now };
            }),
            (S::Running { .. } | S::Ending { .. } | S::Finalizing { .. }, AttemptEvent::Started) => {
                AttemptStep::Already
            }
            // Nothing of it is alive that could be ended; its work stays where it is.
            (S::Finalizing { result, .. }, AttemptEvent::End { .. }) => moved(&|attempt| {
                attempt.fenced = true;
                attempt.state = S::Ended { at: now, outcome: Ok(result.clone()) };
            }),
            (S::Ending { .. }, AttemptEvent::End { .. }) => AttemptStep::Already,
            (S::Disconnected { since, rerun_at, was }, AttemptEvent::End { reason }) => {
                match &**was {
                    S::Ending { .. } => return AttemptStep::Already,
                    S::Finalizing { .. } => {
                        return Self { state: (**was).clone(), ..self.clone() }.apply(event, now);
                    }
                    _ => {}
                }
                moved(&|attempt| {
                    attempt.fenced = true;
                    let was = Box::new(S::Ending { since: now, reason: reason.clone() });
                    attempt.state = S::Disconnected { since: *since, rerun_at: *rerun_at, was };
                })
            }
            (_, AttemptEvent::End { reason }) => moved(&|attempt| {
                attempt.fenced = true;
                attempt.state = S::Ending { since: now, reason: reason.clone() };
            }),
            (S::Disconnected { .. }, AttemptEvent::Lost { .. }) => AttemptStep::Already,
            (was, AttemptEvent::Lost { rerun_at }) => moved(&|attempt| {
                attempt.state = S::Disconnected { since: now, rerun_at: *rerun_at, was: Box::new(was.clone()) };
            }),
        }
    }
}

//! The one function that moves a task, `Task::apply`: every status, every event, three answers.
//!
//! ```text
//!   PENDING ──assigned──> STARTING ──started──> RUNNING ──completed──> FINALIZING ──result stored──> DONE ──merged──> MERGED
//!      ^                     │                    │ ^ paused / asks a person
//!      └──── retried ────────┴── attempt failed ──┘                 FAILED, CANCELLED from any live one;
//!      └──── by a person, from FAILED, CANCELLED, DONE              a retry starts the count again
//! ```
//!
//! Reports may repeat, so `Already` is ordinary; `Refused` is an answer too, never a panic. What an attempt says is believed
//! only of the task's newest attempt, and only while the task is in its hands.

use std::sync::Arc;

use super::{
    attempt::{Failure, FailureClass, TaskResult, Usage},
    checkpoint::Here,
    contract::Hold,
    id::{CheckpointId, DaemonId},
    retry::{self, Next},
    task::{Avoid, Task, TaskState, TaskStatus, Tries, Wait, WaitReason},
    time::Timestamp,
};

/// Something that happens to a task.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskEvent {
    /// The dispatcher gave it to a daemon as this attempt.
    Assigned {
        /// Number of the attempt.
        attempt: u32,
        /// The daemon.
        daemon: DaemonId,
        /// The branch it will work on.
        branch: String,
    },
    /// The agent of this attempt runs.
    Started {
        /// Number of the attempt.
        attempt: u32,
    },
    /// The agent of this attempt has ended well.
    Completed {
        /// Number of the attempt.
        attempt: u32,
        /// What it made.
        result: TaskResult,
        /// What it used.
        usage: Usage,
    },
    /// The result is where all dependents can reach it.
    ResultStored {
        /// Number of the attempt.
        attempt: u32,
        /// Name of the blob that the server has of it; empty where none is needed.
        blob: String,
    },
    /// This attempt has ended without a result.
    AttemptFailed {
        /// Number of the attempt.
        attempt: u32,
        /// How.
        failure: Failure,
        /// Where.
        daemon: DaemonId,
        /// What it used.
        usage: Usage,
        /// Retries that may count.
        max_retries: u32,
        /// Dice for the delay, from 0 to 1.
        jitter: f64,
        /// No retry, whatever the class says: the daemon refused it for good.
        finally: bool,
        /// The worktree is intact there: the next attempt may go on in it.
        here: Option<Here>,
    },
    /// The server has a checkpoint of this attempt.
    Checkpointed {
        /// Number of the attempt.
        attempt: u32,
        /// The checkpoint.
        checkpoint: CheckpointId,
    },
    /// The daemon of this attempt was given up, is back, and has it: nothing has taken its place yet.
    Revived {
        /// Number of the attempt.
        attempt: u32,
        /// Its agent runs; otherwise it has not started yet.
        running: bool,
        /// What was counted as used when it was given up: it is counted again, with the rest, when it ends.
        usage: Usage,
    },
    /// No process of an attempt that was being ended is left, or its daemon is not coming back.
    AttemptGone {
        /// Number of the attempt.
        attempt: u32,
    },
    /// The time it waited for has come.
    WaitOver,
    /// The result is on the target branch.
    Merged,
    /// Somebody wants it stopped for good.
    Cancel {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// A person wants another try.
    Retry(RetryFrom),
    /// A person wants it tried elsewhere, now, with its work.
    Reassign {
        /// Where; `None`: wherever there is room.
        to: Option<DaemonId>,
    },
    /// An operator unsticks it: whatever it waits for is given up.
    ForceRelease,
    /// Somebody wants it not to start.
    Hold(Hold),
    /// The hold is over.
    Release,
    /// The agent was stopped on request.
    Paused(Hold),
    /// The agent goes on.
    Resumed,
    /// The agent asks a person.
    AsksInput {
        /// What it asks.
        question: String,
    },
    /// The person answered.
    InputGiven,
}

/// What another try goes on from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetryFrom {
    /// The work done so far, if it has not come to a result.
    #[default]
    Work,
    /// Nothing: the base, and what its dependencies have made.
    Base,
    /// A checkpoint.
    Checkpoint(CheckpointId),
}

/// What an event did.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// This is the task now.
    Moved(Arc<Task>),
    /// It had happened before.
    Already,
}

/// Why an event does not apply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Said by an attempt that is not the task's newest, or no longer has the task in its hands.
    #[error("attempt {said} is fenced: the task is {status} with attempt {newest}", status = .status.word())]
    Fenced {
        /// Who said it.
        said: u32,
        /// The task's newest attempt.
        newest: u32,
        /// Where the task stands.
        status: TaskStatus,
    },
    /// Makes no sense where the task stands.
    #[error("a task that is {status} cannot be {verb}", status = .status.word())]
    WrongStatus {
        /// Where the task stands.
        status: TaskStatus,
        /// What was asked, as a participle.
        verb: &'static str,
    },
}

impl Task {
    /// Moves the task. `now` is when the server decided.
    pub fn apply(&self, event: &TaskEvent, now: Timestamp) -> Result<Step, Refused> {
        let status = self.status();
        let wrong = |verb| Err(Refused::WrongStatus { status, verb });
        let fenced = |said| Err(Refused::Fenced { said, newest: self.attempt, status });
        match event {
            TaskEvent::Assigned { attempt, daemon, branch } => match status {
                TaskStatus::Pending if self.is_ready() && *attempt == self.attempt + 1 => Ok(self.moved(now, |task| {
                    task.attempt = *attempt;
                    task.daemon = Some(*daemon);
                    task.branch.clone_from(branch);
                    task.here = None;
                    task.prefer = None;
                    task.state = TaskState::Starting { since: now };
                })),
                TaskStatus::Starting if *attempt == self.attempt => Ok(Step::Already),
                _ => wrong("assigned"),
            },
            TaskEvent::Started { attempt } if *attempt != self.attempt => fenced(*attempt),
            TaskEvent::Started { attempt } => match status {
                TaskStatus::Starting => Ok(self.moved(now, |task| {
                    task.started = Some(now);
                    task.state = TaskState::Running { since: now };
                })),
                TaskStatus::Running | TaskStatus::Paused | TaskStatus::AwaitingInput => Ok(Step::Already),
                _ => fenced(*attempt),
            },
            TaskEvent::Completed { attempt, .. } if *attempt != self.attempt => fenced(*attempt),
            TaskEvent::Completed { attempt, result, usage } => match status {
                TaskStatus::Finalizing | TaskStatus::Done | TaskStatus::Merged
                    if self.result().is_some_and(|made| made.is_same(result)) =>
                {
                    Ok(Step::Already)
                }
                // From FINALIZING: a journal that fell back in time has come to another result.
                TaskStatus::Starting
                | TaskStatus::Running
                | TaskStatus::Paused
                | TaskStatus::AwaitingInput
                | TaskStatus::Finalizing => Ok(self.moved(now, |task| {
                    task.usage = task.usage.plus(usage);
                    task.state = TaskState::Finalizing { result: result.clone(), since: now };
                })),
                _ => fenced(*attempt),
            },
            TaskEvent::ResultStored { attempt, .. } if *attempt != self.attempt => fenced(*attempt),
            TaskEvent::ResultStored { attempt, blob } => match &self.state {
                TaskState::Finalizing { result, .. } => Ok(self.moved(now, |task| {
                    task.tries = Tries::default();
                    let result = TaskResult { blob: blob.clone(), ..result.clone() };
                    task.state = TaskState::Done { result, at: now };
                })),
                TaskState::Done { .. } | TaskState::Merged { .. } => Ok(Step::Already),
                _ => fenced(*attempt),
            },
            TaskEvent::AttemptFailed { attempt, .. } if *attempt != self.attempt => fenced(*attempt),
            TaskEvent::AttemptFailed { attempt, failure, daemon, usage, max_retries, jitter, finally, here } => {
                match status {
                    TaskStatus::Starting
                    | TaskStatus::Running
                    | TaskStatus::Paused
                    | TaskStatus::AwaitingInput
                    | TaskStatus::Finalizing => {
                        let ending =
                            retry::Ending { failure, daemon: *daemon, max_retries: *max_retries, jitter: *jitter };
                        let (tries, next) = retry::judge(&self.tries, &ending, now);
                        let next = if *finally { Next::Fail } else { next };
                        Ok(self.moved(now, |task| {
                            task.usage = task.usage.plus(usage);
                            task.interrupted = Some(now);
                            task.tries = tries;
                            task.here.clone_from(here);
                            task.state = match next {
                                Next::Retry(wait) => TaskState::Pending { wait, held: None },
                                Next::Hold(reason) => TaskState::Pending {
                                    wait: None,
                                    held: Some(Hold { by: "server".to_owned(), reason, since: now }),
                                },
                                Next::Fail => TaskState::Failed { failure: failure.clone(), at: now },
                            };
                        }))
                    }
                    TaskStatus::Pending | TaskStatus::Failed if self.tries.last_failure.as_ref() == Some(failure) => {
                        Ok(Step::Already)
                    }
                    _ => fenced(*attempt),
                }
            }
            TaskEvent::Checkpointed { attempt, .. } if !self.follows(*attempt) => fenced(*attempt),
            TaskEvent::Checkpointed { attempt, checkpoint } => match status {
                // What is done has more than a checkpoint.
                TaskStatus::Done | TaskStatus::Merged => fenced(*attempt),
                _ if self.checkpoint == Some(*checkpoint) => Ok(Step::Already),
                TaskStatus::Pending
                | TaskStatus::Starting
                | TaskStatus::Running
                | TaskStatus::Paused
                | TaskStatus::AwaitingInput
                | TaskStatus::Finalizing
                | TaskStatus::Failed
                | TaskStatus::Cancelled => Ok(self.moved(now, |task| task.checkpoint = Some(*checkpoint))),
            },
            TaskEvent::Revived { attempt, .. } if *attempt != self.attempt => fenced(*attempt),
            TaskEvent::Revived { attempt, running, usage } => {
                let lost = |failure: &Failure| failure.class == FailureClass::DaemonLost;
                match &self.state {
                    TaskState::Pending { .. } | TaskState::Failed { .. }
                        if self.tries.last_failure.as_ref().is_some_and(lost) =>
                    {
                        Ok(self.moved(now, |task| {
                            task.tries = retry::forgive(&task.tries, task.daemon);
                            task.usage = task.usage.minus(usage);
                            task.here = None;
                            task.state = match running {
                                true => TaskState::Running { since: now },
                                false => TaskState::Starting { since: now },
                            };
                        }))
                    }
                    TaskState::Starting { .. } | TaskState::Running { .. } => Ok(Step::Already),
                    _ => fenced(*attempt),
                }
            }
            TaskEvent::AttemptGone { attempt } => {
                if self.ending == Some(*attempt) {
                    Ok(self.moved(now, |task| task.ending = None))
                } else {
                    Ok(Step::Already)
                }
            }
            TaskEvent::WaitOver => match &self.state {
                TaskState::Pending { wait: Some(wait), held } if wait.until <= now => Ok(self.moved(now, |task| {
                    task.state = TaskState::Pending { wait: None, held: held.clone() };
                })),
                _ => Ok(Step::Already),
            },
            TaskEvent::Merged => match &self.state {
                TaskState::Done { result, .. } => Ok(self.moved(now, |task| {
                    task.state = TaskState::Merged { result: result.clone(), at: now };
                })),
                TaskState::Merged { .. } => Ok(Step::Already),
                _ => wrong("merged"),
            },
            TaskEvent::Cancel { by, reason } => match status {
                TaskStatus::Cancelled => Ok(Step::Already),
                TaskStatus::Done | TaskStatus::Merged | TaskStatus::Failed => wrong("cancelled"),
                TaskStatus::Pending
                | TaskStatus::Starting
                | TaskStatus::Running
                | TaskStatus::Paused
                | TaskStatus::AwaitingInput
                | TaskStatus::Finalizing => Ok(self.moved(now, |task| {
                    if status != TaskStatus::Pending {
                        task.ending = Some(task.attempt);
                    }
                    task.state = TaskState::Cancelled { reason: reason.clone(), by: by.clone(), at: now };
                })),
            },
            TaskEvent::Retry(from) => match &self.state {
                // A person who asks for a retry means: now, and whoever held it is overruled.
                TaskState::Failed { .. }
                | TaskState::Cancelled { .. }
                | TaskState::Done { .. }
                | TaskState::Pending { wait: Some(_), .. }
                | TaskState::Pending { held: Some(_), .. } => Ok(self.moved(now, |task| task.begin_again(*from))),
                TaskState::Pending { .. } if *from != RetryFrom::Work && !self.goes_on(*from) => {
                    Ok(self.moved(now, |task| task.begin_again(*from)))
                }
                TaskState::Pending { .. } => Ok(Step::Already),
                _ => wrong("retried"),
            },
            TaskEvent::Reassign { to } => match status {
                TaskStatus::Pending if to.is_none() || self.prefer == *to => Ok(Step::Already),
                TaskStatus::Pending => Ok(self.moved(now, |task| {
                    task.prefer = *to;
                    // Whoever says where means now. A usage limit is the account's, wherever the agent runs.
                    if let TaskState::Pending { wait, .. } = &mut task.state {
                        wait.take_if(|wait| wait.why == WaitReason::Backoff);
                    }
                })),
                TaskStatus::Starting
                | TaskStatus::Running
                | TaskStatus::Paused
                | TaskStatus::AwaitingInput
                | TaskStatus::Finalizing => Ok(self.moved(now, |task| {
                    task.ending = Some(task.attempt);
                    task.here = None;
                    task.prefer = *to;
                    if let Some(daemon) = task.daemon.filter(|daemon| Some(*daemon) != *to) {
                        task.tries.avoid.retain(|avoid| avoid.daemon != daemon);
                        task.tries.avoid.push(Avoid { daemon, until: now.after(retry::AVOID_FOR) });
                    }
                    task.interrupted = Some(now);
                    task.state = TaskState::Pending { wait: None, held: None };
                })),
                TaskStatus::Done | TaskStatus::Merged | TaskStatus::Failed | TaskStatus::Cancelled => {
                    wrong("moved to another daemon")
                }
            },
            TaskEvent::ForceRelease => match &self.state {
                TaskState::Pending { wait: None, held: None } if self.ending.is_none() => Ok(Step::Already),
                TaskState::Done { .. }
                | TaskState::Merged { .. }
                | TaskState::Failed { .. }
                | TaskState::Cancelled { .. } => match self.ending {
                    None => Ok(Step::Already),
                    Some(_) => Ok(self.moved(now, |task| task.ending = None)),
                },
                TaskState::Pending { .. }
                | TaskState::Starting { .. }
                | TaskState::Running { .. }
                | TaskState::Paused { .. }
                | TaskState::AwaitingInput { .. }
                | TaskState::Finalizing { .. } => Ok(self.moved(now, |task| {
                    task.ending = None;
                    task.here = None;
                    task.state = TaskState::Pending { wait: None, held: None };
                })),
            },
            TaskEvent::Hold(hold) => match &self.state {
                TaskState::Pending { held: Some(_), .. } => Ok(Step::Already),
                TaskState::Pending { wait, held: None } => Ok(self.moved(now, |task| {
                    task.state = TaskState::Pending { wait: wait.clone(), held: Some(hold.clone()) };
                })),
                _ => wrong("held"),
            },
            TaskEvent::Release => match &self.state {
                TaskState::Pending { wait, held: Some(_) } => Ok(self.moved(now, |task| {
                    task.state = TaskState::Pending { wait: wait.clone(), held: None };
                })),
                _ => Ok(Step::Already),
            },
            TaskEvent::Paused(hold) => match status {
                TaskStatus::Paused => Ok(Step::Already),
                TaskStatus::Running | TaskStatus::AwaitingInput => {
                    Ok(self.moved(now, |task| task.state = TaskState::Paused { held: hold.clone() }))
                }
                _ => wrong("paused"),
            },
            TaskEvent::Resumed => match status {
                TaskStatus::Running => Ok(Step::Already),
                TaskStatus::Paused => Ok(self.moved(now, |task| task.state = TaskState::Running { since: now })),
                _ => wrong("resumed"),
            },
            TaskEvent::AsksInput { question } => match &self.state {
                TaskState::AwaitingInput { question: asked, .. } if asked == question => Ok(Step::Already),
                TaskState::Running { .. } | TaskState::AwaitingInput { .. } => Ok(self.moved(now, |task| {
                    task.state = TaskState::AwaitingInput { question: question.clone(), since: now };
                })),
                _ => wrong("waiting for input"),
            },
            TaskEvent::InputGiven => match status {
                TaskStatus::Running => Ok(Step::Already),
                TaskStatus::AwaitingInput => Ok(self.moved(now, |task| task.state = TaskState::Running { since: now })),
                _ => wrong("answered"),
            },
        }
    }

    /// Back to the start, with what a person chose to go on from.
    fn begin_again(&mut self, from: RetryFrom) {
        let chosen = match from {
            RetryFrom::Work if self.status().is_complete() => Some(None),
            RetryFrom::Work => None,
            RetryFrom::Base => Some(None),
            RetryFrom::Checkpoint(id) => Some(Some(id)),
        };
        if let Some(checkpoint) = chosen {
            (self.checkpoint, self.here, self.chosen) = (checkpoint, None, Some(self.attempt));
        }
        self.tries = Tries::default();
        self.state = TaskState::Pending { wait: None, held: None };
    }

    /// The next attempt goes on from there as things stand.
    fn goes_on(&self, from: RetryFrom) -> bool {
        let chosen = match from {
            RetryFrom::Work => return true,
            RetryFrom::Base => None,
            RetryFrom::Checkpoint(id) => Some(id),
        };
        self.here.is_none() && self.checkpoint == chosen && (self.attempt == 0 || !self.follows(self.attempt))
    }

    fn moved(&self, now: Timestamp, change: impl FnOnce(&mut Self)) -> Step {
        let mut task = self.clone();
        change(&mut task);
        task.version += 1;
        task.updated = now;
        Step::Moved(Arc::new(task))
    }
}

impl Wait {
    /// The wait is still on.
    pub fn is_on(&self, now: Timestamp) -> bool {
        self.until > now
    }
}

#[cfg(test)]
mod tests;

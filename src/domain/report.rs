//! What a daemon tells the server about an attempt. Reports are rows in the daemon's journal until the server has answered,
//! so they are plain data with a stable JSON form.

use serde::{Deserialize, Serialize};

use super::{
    attempt::{Failure, TaskResult, Usage},
    id::{AttemptRef, CheckpointId, JournalId},
    time::Timestamp,
};

/// Bytes of an agent's last message, a warning, a path, a branch or any other line of a report.
pub const MAX_LINE_BYTES: usize = 4 * 1024;
/// Bytes of a failure's message.
pub const MAX_FAILURE_BYTES: usize = 64 * 1024;

/// A numbered report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Within the journal, from 1, without gaps.
    pub sequence: i64,
    /// The journal.
    pub journal: JournalId,
    /// Attempt it concerns.
    pub attempt: AttemptRef,
    /// When it was written, by the daemon's clock.
    pub at: Timestamp,
    /// What it says.
    pub report: Report,
}

/// What a report says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Report {
    /// The agent runs.
    Started {
        /// The worktree.
        worktree: String,
        /// The branch.
        branch: String,
        /// Commit it started from.
        base_commit: String,
        /// Version of the agent; empty if unknown.
        agent_version: String,
        /// The checkpoint that was restored, where one was.
        #[serde(default)]
        restored: Option<CheckpointId>,
    },
    /// What the agent's events add up to so far.
    Progress(Progress),
    /// The attempt is over, no process of it is left, the worktree is at rest.
    Complete(Complete),
    /// After a restart: the agent is gone and left no exit record.
    RecoveryDetected {
        /// What the journal said.
        previous: InventoryState,
        /// The worktree is there, clean of damage.
        worktree_intact: bool,
        /// Where it is.
        worktree: String,
        /// A checkpoint is wanted.
        needs_patch: bool,
    },
    /// Something worth a look that stops nothing.
    Warning {
        /// For people.
        message: String,
    },
    /// A checkpoint that somebody asked for is not to be had. Said each time, unlike a warning: somebody waits for it.
    CheckpointFailed {
        /// Why, for people.
        message: String,
    },
}

impl Report {
    /// The same with every text within its limit and fit to be stored: whatever an agent or git has written, a report can
    /// always be sent and kept, so none is retried for ever.
    #[must_use]
    pub fn bounded(self) -> Self {
        let line = |text: String| clean(text, MAX_LINE_BYTES);
        match self {
            Self::Started { worktree, branch, base_commit, agent_version, restored } => Self::Started {
                worktree: line(worktree),
                branch: line(branch),
                base_commit: line(base_commit),
                agent_version: line(agent_version),
                restored,
            },
            Self::Progress(progress) => Self::Progress(progress.bounded()),
            Self::Complete(complete) => Self::Complete(Complete {
                outcome: match complete.outcome {
                    Ok(TaskResult { commit, branch, result_ref, published, pack, blob }) => Ok(TaskResult {
                        commit: line(commit),
                        branch: line(branch),
                        result_ref: line(result_ref),
                        published,
                        pack,
                        blob,
                    }),
                    Err(Failure { class, message, reset }) => {
                        Err(Failure { class, message: clean(message, MAX_FAILURE_BYTES), reset })
                    }
                },
                progress: complete.progress.bounded(),
                ..complete
            }),
            Self::RecoveryDetected { previous, worktree_intact, worktree, needs_patch } => {
                Self::RecoveryDetected { previous, worktree_intact, worktree: line(worktree), needs_patch }
            }
            Self::Warning { message } => Self::Warning { message: line(message) },
            Self::CheckpointFailed { message } => Self::CheckpointFailed { message: line(message) },
        }
    }
}

impl Progress {
    fn bounded(self) -> Self {
        Self {
            agent_session_id: clean(self.agent_session_id, MAX_LINE_BYTES),
            usage: self.usage,
            last_message: clean(self.last_message, MAX_LINE_BYTES),
        }
    }
}

/// At most `limit` bytes of `text`, cut between characters, with NUL (which Postgres cannot store) shown as U+FFFD.
pub fn clean(text: String, limit: usize) -> String {
    let mut text = if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text };
    if text.len() > limit {
        const CUT: &str = "…";
        let mut end = limit.saturating_sub(CUT.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(CUT);
    }
    text
}

/// What the agent's events add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The agent's own session id; empty if unknown.
    pub agent_session_id: String,
    /// Used so far.
    pub usage: Usage,
    /// Its last message.
    pub last_message: String,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complete {
    /// With a result, or why not.
    pub outcome: Result<TaskResult, Failure>,
    /// What the agent said and used.
    pub progress: Progress,
    /// Bytes of output in all.
    pub output_bytes: i64,
    /// Exit code of the agent, if it exited by itself.
    pub exit_code: Option<i32>,
    /// Signal that ended it; 0 for none.
    pub signal: u32,
}

/// How far a daemon is with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InventoryState {
    /// In the journal, agent not started.
    Accepted,
    /// The agent runs, watched.
    Running,
    /// The agent has ended, the end is not reported yet.
    Ending,
    /// The terminal report is in the outbox.
    Reported,
    /// The agent is gone without an exit record.
    Interrupted,
}

/// One attempt a daemon knows of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryItem {
    /// The attempt.
    pub attempt: AttemptRef,
    /// How far it is.
    pub state: InventoryState,
    /// Its worktree; empty if there is none yet.
    pub worktree: String,
    /// The worktree is there and healthy.
    pub worktree_intact: bool,
}

/// What the server did with a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessageOutcome {
    /// It counts.
    Applied,
    /// It had counted before.
    AlreadyApplied,
    /// A newer attempt has its place.
    Fenced,
    /// It cannot be stored or understood.
    Invalid {
        /// Why, for people.
        detail: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters_and_loses_its_nuls() {
        assert_eq!(clean("a\0b".to_owned(), 10), "a\u{fffd}b");
        assert_eq!(clean("short".to_owned(), 5), "short");
        let cut = clean("ä".repeat(4_000), MAX_LINE_BYTES);
        assert!(cut.len() <= MAX_LINE_BYTES && cut.len() > MAX_LINE_BYTES - 4);
        assert!(cut.ends_with('…'));
        // NULs grow threefold when they are shown, so the limit is applied after that.
        assert!(clean("\0".repeat(4_000), MAX_LINE_BYTES).len() <= MAX_LINE_BYTES);
    }
}

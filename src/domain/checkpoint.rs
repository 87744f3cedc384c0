//! A checkpoint: a restorable copy of an attempt's work, on the server. It is made by the daemon while the agent works, and
//! counts once the server has all of it.
//!
//! ```text
//!   attempt 1 on A:  C1 (whole) <── C2 (delta) <── C3 (delta)        the task's checkpoint is C3
//!   attempt 2 on B:  restored from [C1, C2, C3] ──> C4 (delta on C3)   a chain is at most MAX_CHAIN long
//! ```
//!
//! A checkpoint says by itself what restoring it takes ([`Checkpoint::chain`]), so one row is enough to begin. What a chain
//! names is kept for as long as anything names it.

use serde::{Deserialize, Serialize};

use super::{
    id::{AttemptRef, CheckpointId, ContractId, DaemonId, OwnerId},
    time::Timestamp,
};

/// Links of a chain at most; then a whole one follows. Each link costs the restorer a download and an unpacking.
pub const MAX_CHAIN: usize = 8;
/// Names of omitted files kept in a row; the checkpoint itself has all.
pub const MAX_OMITTED: usize = 100;
/// Bytes of the summary kept in a row.
pub const MAX_SUMMARY_BYTES: usize = 4 * 1024;
/// Bytes of one checkpoint or result. What is larger is refused by the server and not made by a daemon.
pub const MAX_BYTES: i64 = 1024 * 1024 * 1024;
/// Checkpoints of an attempt that are kept, beside those that others build on.
pub const KEPT: usize = 5;

/// A restorable copy of an attempt's work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// UUIDv7, made by the daemon: repeating an upload is harmless.
    pub id: CheckpointId,
    /// Whose work it is.
    pub attempt: AttemptRef,
    /// Contract of the task.
    pub contract: ContractId,
    /// Whose it is.
    pub owner: OwnerId,
    /// Where it was taken.
    pub daemon: DaemonId,
    /// What restoring it takes, the whole one first, this one last.
    pub chain: Vec<Link>,
    /// What is known of it without opening it.
    pub about: About,
    /// A newer attempt had the place of this one when it arrived: it is kept for people, and nobody goes on from it by himself.
    pub orphan: bool,
    /// When the server had all of it.
    pub stored: Timestamp,
}

impl Checkpoint {
    /// The one it builds on.
    pub fn base(&self) -> Option<CheckpointId> {
        let at = self.chain.len().checked_sub(2)?;
        self.chain.get(at).map(|link| link.id)
    }

    /// Bytes of this one, without what it builds on.
    pub fn bytes(&self) -> i64 {
        self.chain.last().map_or(0, |link| link.bytes)
    }
}

/// One file of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The checkpoint.
    pub id: CheckpointId,
    /// Name of its blob.
    pub blob: String,
    /// How long it is.
    pub bytes: i64,
    /// SHA-256 of it, 64 hex digits.
    pub sha256: String,
}

/// What the daemon says of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The one it builds on; `None` for a whole one.
    pub base: Option<CheckpointId>,
    /// Why it was taken.
    pub reason: Reason,
    /// When, by the daemon's clock.
    pub taken: Timestamp,
    /// HEAD; empty where there was no commit yet.
    pub head: String,
    /// Branch that HEAD was on; empty for none.
    pub branch: String,
    /// Commit the attempt had started from.
    pub base_commit: String,
    /// The agent's own session whose transcript is in it; empty for none.
    pub session_id: String,
    /// What the work has changed so far, for people and for the agent that goes on; at most [`MAX_SUMMARY_BYTES`].
    pub summary: String,
    /// Files left out; at most [`MAX_OMITTED`].
    pub omitted: Vec<String>,
    /// Something kept moving while it was taken.
    pub unsettled: bool,
}

/// Why a checkpoint was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It was time.
    #[default]
    Periodic,
    /// Somebody asked for it.
    Asked,
    /// The attempt was about to be ended.
    Stopping,
    /// The attempt had ended.
    End,
}

impl Reason {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Periodic => "periodic",
            Self::Asked => "asked",
            Self::Stopping => "stopping",
            Self::End => "end",
        }
    }
}

/// A worktree on a daemon in which the next attempt may go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Here {
    /// The attempt that worked there.
    pub attempt: AttemptRef,
    /// Where it is.
    pub daemon: DaemonId,
    /// The worktree.
    pub worktree: String,
}

/// What an attempt began from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Origin {
    /// The base branch, or what its dependencies made.
    #[default]
    Base,
    /// The worktree of an earlier attempt.
    Worktree {
        /// Number of that attempt.
        attempt: u32,
    },
    /// A checkpoint.
    Checkpoint {
        /// Which.
        id: CheckpointId,
    },
}

/// Which checkpoints of an attempt need not be kept: all but the newest [`KEPT`], those that `needed` names (something restores
/// from them or builds on them), and whatever the kept ones build on. `all` are in the order they were taken.
pub fn expired(all: &[Checkpoint], needed: &dyn Fn(CheckpointId) -> bool) -> Vec<CheckpointId> {
    expired_but(all, KEPT, needed)
}

/// The same of a task that ended long ago: none is kept for being new.
pub fn expired_after_end(all: &[Checkpoint], needed: &dyn Fn(CheckpointId) -> bool) -> Vec<CheckpointId> {
    expired_but(all, 0, needed)
}

fn expired_but(all: &[Checkpoint], newest: usize, needed: &dyn Fn(CheckpointId) -> bool) -> Vec<CheckpointId> {
    let first_kept = all.len().saturating_sub(newest);
    let kept = |(at, checkpoint): &(usize, &Checkpoint)| *at >= first_kept || needed(checkpoint.id);
    let mut named: Vec<CheckpointId> = Vec::new();
    for (_, checkpoint) in all.iter().enumerate().filter(kept) {
        named.extend(checkpoint.chain.iter().map(|link| link.id));
    }
    let old = all.iter().map(|checkpoint| checkpoint.id);
    old.filter(|id| !named.contains(id)).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::id::{AttemptId, TaskId};

    fn id(n: u128) -> CheckpointId {
        CheckpointId(Uuid::from_u128(n))
    }

    /// A checkpoint of this number whose chain begins with `from`.
    fn checkpoint(n: u128, from: u128) -> Checkpoint {
        let link = |n| Link { id: id(n), blob: String::new(), bytes: 1, sha256: String::new() };
        Checkpoint {
            id: id(n),
            attempt: AttemptRef { task: TaskId(Uuid::nil()), number: 1, id: AttemptId(Uuid::nil()) },
            contract: ContractId(Uuid::nil()),
            owner: OwnerId(Uuid::nil()),
            daemon: DaemonId(Uuid::nil()),
            chain: (from..=n).map(link).collect(),
            about: About::default(),
            orphan: false,
            stored: Timestamp(0),
        }
    }

    /// The newest five stay, with everything they build on and whatever else is needed.
    #[test]
    fn what_something_needs_is_kept() {
        let all: Vec<_> = (1..=12).map(|n| checkpoint(n, if n < 9 { 1 } else { 9 })).collect();
        // 8 is among the newest five and builds on 1 to 7.
        assert_eq!(expired(&all, &|_| false), []);
        let all: Vec<_> = (1..=14).map(|n| checkpoint(n, if n < 9 { 1 } else { 9 })).collect();
        assert_eq!(expired(&all, &|_| false), (1..=8).map(id).collect::<Vec<_>>());
        assert_eq!(expired(&all, &|needed| needed == id(3)), (4..=8).map(id).collect::<Vec<_>>());
        assert_eq!(expired(&all[..5], &|_| false), []);
        assert_eq!(expired_after_end(&all, &|_| false), (1..=14).map(id).collect::<Vec<_>>());
        let but: Vec<_> = (3..=14).map(id).collect();
        assert_eq!(expired_after_end(&all, &|needed| needed == id(2)), but);
    }

    #[test]
    fn a_checkpoint_knows_what_it_builds_on() {
        assert_eq!(checkpoint(3, 1).base(), Some(id(2)));
        assert_eq!(checkpoint(3, 3).base(), None);
    }
}

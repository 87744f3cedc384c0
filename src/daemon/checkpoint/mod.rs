//! Checkpoints: all that an agent has made in a worktree, in one file, and the worktree again from such files, anywhere.
//!
//! ```text
//!   capture   transcript ── HEAD, index, operation ── files (a shadow index) ── nested repositories
//!                │                 looked at again: did anything move? then once more
//!             one commit ── pack of what is new ──> <id>.checkpoint     whole, or a delta on the one before
//!   restore   checkpoint files, oldest first ──> objects ── worktree ── files, modes ── index ── operation ── nested
//!   diff      what a checkpoint changed, as text
//!   results   a commit as a pack, and into a repository again
//!   clone     a checkpoint or a result in a person's hands
//! ```
//!
//! The commit of a checkpoint is not for people. Its tree holds `worktree/` (the files as they are, byte for byte: no
//! filter, no line ending is converted), `index` (the raw file), `objects/` (what the index or the operation names and no
//! other tree has), `state/` (the operation's files: `MERGE_HEAD`, `rebase-merge/`, ...), `transcript`, `nested/<n>/` (the
//! same again for each repository inside) and `manifest.json`, which says the rest. Its parents are HEAD and every commit
//! that the operation or the reflog of the worktree names, so an agent's commits keep their ids; a delta has the checkpoint
//! before it as its first parent.
//!
//! What is needed to make one is kept in a *shadow*, a git directory of ours inside the worktree's own, with an index of
//! its own (nobody else's index, HEAD or refs are ever written) and objects of its own, which borrow from the repository. It goes away
//! with the worktree. Nothing in it is precious: when it is lost or damaged, or the repository has lost what a delta builds on,
//! a whole checkpoint is made.
//!
//! Promises: never skipped because git is in the middle of something; the files of a checkpoint that [`capture`] has
//! answered are on the disk; what is left out is named ([`Omitted`]) and never deleted by a restore. Identical means: commit ids, `git
//! ls-files -s -v`, bytes, modes, links and empty directories; not times, owners, hard links, sockets, and what git ignores.
//!
//! Deliberately absent: the protocol, the journal, uploading, expiry, and when a checkpoint is taken.

mod capture;
mod clone;
mod container;
mod diff;
mod dirs;
mod index;
mod look;
mod manifest;
mod objects;
mod part;
mod restore;
mod result;
mod shadow;
mod state;

use std::path::PathBuf;

use serde::Serialize;

pub use super::git::Error;
pub use capture::{capture, is_elsewhere, known_elsewhere};
pub use clone::{FoundResult, diff_result, restore_into, result_into};
pub use container::{ChainFile, Header, read_header};
pub use diff::diff;
pub use restore::restore;
pub use result::{PackedResult, import_result, pack_result};

use super::attempt_dir::Place;
use crate::domain::{CheckpointId, checkpoint};

/// Files of one chain, as a depth.
const MAX_CHAIN: u32 = checkpoint::MAX_CHAIN as u32;
/// Bytes of one file in a checkpoint: more is a download or a build, not work, and would be uploaded again and again.
pub const MAX_FILE_BYTES: u64 = 100 * 1024 * 1024;
/// Bytes of a checkpoint, and of what is added for one.
pub const MAX_TOTAL_BYTES: u64 = checkpoint::MAX_BYTES.unsigned_abs();
/// Times a checkpoint is taken when something moves meanwhile; then what there is counts.
const MAX_TRIES: u32 = 3;
/// Nested repositories; more is a cache of clones.
const MAX_NESTED: usize = 200;

/// What a checkpoint is made of.
#[derive(Clone, Debug)]
pub struct Source {
    /// The worktree.
    pub place: Place,
    /// What everybody has who may restore it, and what therefore stays out: commits, refs, or globs of refs. See
    /// [`known_elsewhere`].
    pub exclude: Vec<String>,
    /// The agent's conversation.
    pub transcript: Option<Transcript>,
    /// The newest checkpoint of this attempt, or the one that it was restored from; only one that is where it is safe.
    pub previous: Option<Previous>,
    /// One is made also where nothing has changed since that one.
    pub even_unchanged: bool,
}

/// The conversation of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transcript {
    /// Its file, one record a line; not being there is no error.
    pub path: PathBuf,
    /// The agent's name for it.
    pub session_id: String,
}

/// A checkpoint that the next one may be a delta on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    /// Its id.
    pub id: CheckpointId,
    /// Its commit.
    pub commit: String,
    /// Files of its chain, itself included.
    pub depth: u32,
}

/// What came of a capture.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Nothing has changed since the previous one: that one holds everything.
    Unchanged,
    /// A new checkpoint.
    Taken(Box<Captured>),
}

/// A checkpoint that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The file that holds it, on the disk.
    pub file: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of the whole file, in hex.
    pub sha256: String,
    /// Its id.
    pub id: CheckpointId,
    /// The checkpoint it is a delta on; `None`: it is whole.
    pub base: Option<CheckpointId>,
    /// Files of its chain, itself included: 1 for a whole one, at most [`checkpoint::MAX_CHAIN`].
    pub depth: u32,
    /// Its commit.
    pub commit: String,
    /// The commit of HEAD; `None`: there is none yet.
    pub head: Option<String>,
    /// The branch that HEAD is on; `None`: it is on none.
    pub branch: Option<String>,
    /// The agent's session, if its transcript is in it.
    pub session_id: Option<String>,
    /// What has changed since the attempt's base, for people.
    pub summary: String,
    /// Files that were left out.
    pub omitted: Vec<Omitted>,
    /// Something moved all the time: its parts may be some milliseconds apart.
    pub unsettled: bool,
    /// Things worth a look.
    pub warnings: Vec<String>,
}

/// A file that a checkpoint leaves out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, serde::Deserialize)]
pub struct Omitted {
    /// Its path in the worktree; bytes that are no text as `%XX`.
    pub path: String,
    /// Why.
    pub reason: Reason,
}

/// Why a file is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It looks like a secret, and no commit has it.
    Secret,
    /// It has more than [`MAX_FILE_BYTES`].
    TooLarge,
    /// It cannot be read.
    Unreadable,
    /// Git takes no file of this name.
    Name,
    /// A nested repository that is too much, or that cannot be read.
    Repository,
}

/// A worktree made from a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Where it is. `copied` is empty, since copying is to be done again.
    pub place: Place,
    /// The agent's session that the checkpoint has a transcript of.
    pub session_id: Option<String>,
    /// Where the transcript is now.
    pub transcript: Option<PathBuf>,
    /// Id, commit and depth of what was restored: the next checkpoint may be a delta on it.
    pub previous: Previous,
    /// Files that the checkpoint had left out.
    pub omitted: Vec<Omitted>,
    /// Why the newest of the chain was not restored; `None` where it was.
    pub passed_over: Option<String>,
    /// Things worth a look.
    pub warnings: Vec<String>,
}

#[cfg(test)]
mod tests;

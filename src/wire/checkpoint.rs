//! Checkpoints and results on the wire: what an attempt goes on from, and files on their way to the server.
//!
//! ```text
//!   Spawn.resume ───> pb::Resume                        server to daemon, in the order
//!   FileChunk    ───> pb::UploadChunksRequest           daemon to server, beside output
//!                <─── pb::UploadChunksResponse: FileReceipt
//! ```

use bytes::Bytes;

use super::{
    common::{Invalid, attempt_ref, id, id_text, optional_id, required_timestamp, timestamp},
    daemon::MAX_CHUNK_BYTES,
    pb,
};
use crate::domain::{
    AttemptRef, CheckpointId,
    attempt::Pack,
    checkpoint::{About, Checkpoint, Link, MAX_BYTES, MAX_CHAIN, MAX_OMITTED, MAX_SUMMARY_BYTES, Reason},
    order::{EarlierWorktree, Resume},
    report::{MAX_LINE_BYTES, clean},
    text,
};

/// Bytes of a SHA-256.
const SHA256_BYTES: usize = 32;

// === what to go on from ===

impl From<&Resume> for pb::Resume {
    fn from(resume: &Resume) -> Self {
        Self {
            worktree_of: resume.here.as_ref().map(|here| here.attempt.into()),
            worktree_path: resume.here.as_ref().map(|here| here.path.clone()).unwrap_or_default(),
            chain: resume.chain.iter().map(pb::CheckpointLink::from).collect(),
            base_commit: resume.base_commit.clone(),
            session_id: resume.session_id.clone(),
            fork_session: resume.fork_session,
            chosen: resume.chosen,
            reason: resume.reason.clone(),
            last_message: resume.last_message.clone(),
            summary: resume.summary.clone(),
        }
    }
}

impl TryFrom<&pb::Resume> for Resume {
    type Error = Invalid;

    fn try_from(resume: &pb::Resume) -> Result<Self, Invalid> {
        if resume.chain.len() > MAX_CHAIN {
            return Err(Invalid::new("chain", format!("has {} links; at most {MAX_CHAIN}", resume.chain.len())));
        }
        let here = match &resume.worktree_of {
            Some(of) => Some(EarlierWorktree {
                attempt: attempt_ref("worktree_of", Some(of))?,
                path: resume.worktree_path.clone(),
            }),
            None => None,
        };
        Ok(Self {
            here,
            chain: resume.chain.iter().map(Link::try_from).collect::<Result<_, _>>()?,
            base_commit: resume.base_commit.clone(),
            session_id: resume.session_id.clone(),
            fork_session: resume.fork_session,
            chosen: resume.chosen,
            reason: resume.reason.clone(),
            last_message: resume.last_message.clone(),
            summary: resume.summary.clone(),
        })
    }
}

impl From<&Link> for pb::CheckpointLink {
    fn from(link: &Link) -> Self {
        Self {
            checkpoint_id: link.id.to_string(),
            blob_id: link.blob.clone(),
            bytes: link.bytes,
            sha256: sha256_bytes(&link.sha256),
        }
    }
}

impl TryFrom<&pb::CheckpointLink> for Link {
    type Error = Invalid;

    fn try_from(link: &pb::CheckpointLink) -> Result<Self, Invalid> {
        Ok(Self {
            id: id("chain.checkpoint_id", &link.checkpoint_id)?,
            blob: link.blob_id.clone(),
            bytes: length("chain.bytes", link.bytes)?,
            sha256: sha256("chain.sha256", &link.sha256)?,
        })
    }
}

/// The pack of a result, if there is one.
pub fn pack(bytes: i64, digest: &[u8]) -> Result<Option<Pack>, Invalid> {
    if bytes == 0 {
        return Ok(None);
    }
    Ok(Some(Pack { bytes: length("pack_bytes", bytes)?, sha256: sha256("pack_sha256", digest)? }))
}

/// A SHA-256 from its hex digits; empty for what is none.
pub fn sha256_bytes(hex: &str) -> Vec<u8> {
    text::unhex(hex).unwrap_or_default()
}

/// The hex digits of a SHA-256.
fn sha256(field: &str, digest: &[u8]) -> Result<String, Invalid> {
    match digest.len() {
        SHA256_BYTES => Ok(text::hex(digest)),
        length => Err(Invalid::new(field, format!("has {length} bytes; a SHA-256 has {SHA256_BYTES}"))),
    }
}

fn length(field: &str, bytes: i64) -> Result<i64, Invalid> {
    if (1..=MAX_BYTES).contains(&bytes) {
        return Ok(bytes);
    }
    Err(Invalid::new(field, format!("is {bytes}; must be from 1 to {MAX_BYTES}")))
}

// === what people see ===

/// A checkpoint as a caller sees it; its chain is left to those who want to restore it. `current`: its task goes on from it.
pub fn view(checkpoint: &Checkpoint, daemon_name: &str, current: bool) -> pb::Checkpoint {
    let about = &checkpoint.about;
    pb::Checkpoint {
        checkpoint_id: checkpoint.id.to_string(),
        task_id: checkpoint.attempt.task.to_string(),
        attempt: checkpoint.attempt.number,
        daemon_id: checkpoint.daemon.to_string(),
        daemon_name: daemon_name.to_owned(),
        reason: pb::CheckpointReason::from(about.reason).into(),
        take_time: Some(timestamp(about.taken)),
        store_time: Some(timestamp(checkpoint.stored)),
        base_checkpoint_id: id_text(checkpoint.base()),
        bytes: checkpoint.bytes(),
        chain_bytes: checkpoint.chain.iter().map(|link| link.bytes).sum(),
        head: about.head.clone(),
        branch: about.branch.clone(),
        base_commit: about.base_commit.clone(),
        session_id: about.session_id.clone(),
        summary: about.summary.clone(),
        omitted: about.omitted.clone(),
        orphan: checkpoint.orphan,
        unsettled: about.unsettled,
        chain: Vec::new(),
        current,
    }
}

// === files on their way ===

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// This checkpoint.
    Checkpoint(CheckpointId),
    /// The pack of the attempt's result.
    Result,
}

/// A piece of a checkpoint or result on its way to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChunk {
    /// Attempt it belongs to.
    pub attempt: AttemptRef,
    /// What it is.
    pub kind: FileKind,
    /// Offset of its first byte.
    pub offset: u64,
    /// At most [`MAX_CHUNK_BYTES`]; empty asks how far the server is.
    pub data: Bytes,
    /// How long the whole is, and its SHA-256.
    pub whole: Pack,
    /// Nothing follows; for a checkpoint, what it is.
    pub last: Option<Option<About>>,
}

impl From<FileChunk> for pb::UploadChunksRequest {
    fn from(chunk: FileChunk) -> Self {
        let (kind, checkpoint_id) = words(chunk.kind);
        Self {
            attempt: Some(chunk.attempt.into()),
            kind: kind.into(),
            offset: i64::try_from(chunk.offset).unwrap_or(i64::MAX),
            crc32: crc32fast::hash(&chunk.data),
            data: chunk.data,
            last: chunk.last.is_some(),
            gap: false,
            checkpoint_id,
            total_bytes: chunk.whole.bytes,
            sha256: sha256_bytes(&chunk.whole.sha256),
            checkpoint: chunk.last.flatten().as_ref().map(pb::CheckpointInfo::from),
        }
    }
}

impl TryFrom<pb::UploadChunksRequest> for FileChunk {
    type Error = Invalid;

    fn try_from(chunk: pb::UploadChunksRequest) -> Result<Self, Invalid> {
        let kind = file_kind(chunk.kind(), &chunk.checkpoint_id)?;
        if chunk.data.len() > MAX_CHUNK_BYTES {
            return Err(Invalid::new("data", format!("has {} bytes; at most {MAX_CHUNK_BYTES}", chunk.data.len())));
        }
        if crc32fast::hash(&chunk.data) != chunk.crc32 {
            return Err(Invalid::new("crc32", "does not match the data: it was damaged on the way"));
        }
        let about = chunk.checkpoint.as_ref().map(About::try_from).transpose().map_err(|e| e.within("checkpoint"))?;
        if chunk.last && about.is_none() && matches!(kind, FileKind::Checkpoint(_)) {
            return Err(Invalid::new("checkpoint", "is required with the last chunk of a checkpoint"));
        }
        Ok(Self {
            attempt: attempt_ref("attempt", chunk.attempt.as_ref())?,
            kind,
            offset: u64::try_from(chunk.offset).map_err(|_| Invalid::new("offset", "must not be negative"))?,
            data: chunk.data,
            whole: Pack { bytes: length("total_bytes", chunk.total_bytes)?, sha256: sha256("sha256", &chunk.sha256)? },
            last: chunk.last.then_some(about),
        })
    }
}

/// How far the server is with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileReceipt {
    /// The attempt.
    pub attempt: AttemptRef,
    /// What it is.
    pub kind: FileKind,
    /// Send from here.
    pub received: u64,
    /// The whole is durable, and counts.
    pub complete: bool,
    /// The server does not want it, and why.
    pub refused: Option<String>,
}

impl From<FileReceipt> for pb::UploadChunksResponse {
    fn from(receipt: FileReceipt) -> Self {
        let (kind, checkpoint_id) = words(receipt.kind);
        let received = i64::try_from(receipt.received).unwrap_or(i64::MAX);
        Self {
            attempt: Some(receipt.attempt.into()),
            kind: kind.into(),
            committed_offset: received,
            received_offset: received,
            complete: receipt.complete,
            refused: receipt.refused.is_some(),
            checkpoint_id,
            detail: clean(receipt.refused.unwrap_or_default(), MAX_LINE_BYTES),
        }
    }
}

impl TryFrom<&pb::UploadChunksResponse> for FileReceipt {
    type Error = Invalid;

    fn try_from(receipt: &pb::UploadChunksResponse) -> Result<Self, Invalid> {
        let received = receipt.received_offset;
        Ok(Self {
            attempt: attempt_ref("attempt", receipt.attempt.as_ref())?,
            kind: file_kind(receipt.kind(), &receipt.checkpoint_id)?,
            received: u64::try_from(received).map_err(|_| Invalid::new("received_offset", "must not be negative"))?,
            complete: receipt.complete,
            refused: receipt.refused.then(|| receipt.detail.clone()),
        })
    }
}

fn words(kind: FileKind) -> (pb::ChunkKind, String) {
    match kind {
        FileKind::Checkpoint(id) => (pb::ChunkKind::Checkpoint, id.to_string()),
        FileKind::Result => (pb::ChunkKind::Result, String::new()),
    }
}

fn file_kind(kind: pb::ChunkKind, checkpoint: &str) -> Result<FileKind, Invalid> {
    match kind {
        pb::ChunkKind::Checkpoint => Ok(FileKind::Checkpoint(id("checkpoint_id", checkpoint)?)),
        pb::ChunkKind::Result => Ok(FileKind::Result),
        pb::ChunkKind::Output | pb::ChunkKind::Unspecified => Err(Invalid::new("kind", "is not one of a file")),
    }
}

// === about a checkpoint ===

impl From<&About> for pb::CheckpointInfo {
    fn from(about: &About) -> Self {
        Self {
            base_checkpoint_id: id_text(about.base),
            reason: pb::CheckpointReason::from(about.reason).into(),
            take_time: Some(timestamp(about.taken)),
            head: about.head.clone(),
            branch: about.branch.clone(),
            base_commit: about.base_commit.clone(),
            session_id: about.session_id.clone(),
            summary: clean(about.summary.clone(), MAX_SUMMARY_BYTES),
            omitted: omitted(&about.omitted),
            unsettled: about.unsettled,
        }
    }
}

impl TryFrom<&pb::CheckpointInfo> for About {
    type Error = Invalid;

    fn try_from(info: &pb::CheckpointInfo) -> Result<Self, Invalid> {
        let line = |text: &str| clean(text.to_owned(), MAX_LINE_BYTES);
        Ok(Self {
            base: optional_id("base_checkpoint_id", &info.base_checkpoint_id)?,
            reason: reason(info.reason),
            taken: required_timestamp("take_time", info.take_time.as_ref())?,
            head: line(&info.head),
            branch: line(&info.branch),
            base_commit: line(&info.base_commit),
            session_id: line(&info.session_id),
            summary: clean(info.summary.clone(), MAX_SUMMARY_BYTES),
            omitted: omitted(&info.omitted),
            unsettled: info.unsettled,
        })
    }
}

fn omitted(names: &[String]) -> Vec<String> {
    names.iter().take(MAX_OMITTED).map(|name| clean(name.clone(), MAX_LINE_BYTES)).collect()
}

impl From<Reason> for pb::CheckpointReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Periodic => Self::Periodic,
            Reason::Asked => Self::Asked,
            Reason::Stopping => Self::Stopping,
            Reason::End => Self::End,
        }
    }
}

/// A reason that this version does not know is no reason to lose a checkpoint.
fn reason(number: i32) -> Reason {
    match pb::CheckpointReason::try_from(number) {
        Ok(pb::CheckpointReason::Asked) => Reason::Asked,
        Ok(pb::CheckpointReason::Stopping) => Reason::Stopping,
        Ok(pb::CheckpointReason::End) => Reason::End,
        Ok(pb::CheckpointReason::Periodic | pb::CheckpointReason::Unspecified) | Err(_) => Reason::Periodic,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{
        Timestamp,
        id::{AttemptId, TaskId},
    };

    fn attempt() -> AttemptRef {
        AttemptRef { task: TaskId(Uuid::from_u128(1)), number: 2, id: AttemptId(Uuid::from_u128(3)) }
    }

    fn about() -> About {
        About {
            base: Some(CheckpointId(Uuid::from_u128(4))),
            reason: Reason::Asked,
            taken: Timestamp(5),
            head: "c0ffee".into(),
            branch: "b".into(),
            base_commit: "ba5e".into(),
            session_id: "s".into(),
            summary: "1 file changed".into(),
            omitted: vec![".env".into()],
            unsettled: true,
        }
    }

    fn chunk() -> FileChunk {
        FileChunk {
            attempt: attempt(),
            kind: FileKind::Checkpoint(CheckpointId(Uuid::from_u128(6))),
            offset: 7,
            data: Bytes::from_static(b"work"),
            whole: Pack { bytes: 11, sha256: "ab".repeat(32) },
            last: Some(Some(about())),
        }
    }

    /// What is sent is what arrives.
    #[test]
    fn a_chunk_goes_over_whole() {
        let more = FileChunk { last: None, ..chunk() };
        let result = FileChunk { kind: FileKind::Result, last: Some(None), ..chunk() };
        for chunk in [chunk(), more, result] {
            assert_eq!(FileChunk::try_from(pb::UploadChunksRequest::from(chunk.clone())).unwrap(), chunk);
        }
        let receipt = FileReceipt {
            attempt: attempt(),
            kind: FileKind::Result,
            received: 11,
            complete: false,
            refused: Some("too big".into()),
        };
        assert_eq!(FileReceipt::try_from(&pb::UploadChunksResponse::from(receipt.clone())).unwrap(), receipt);
    }

    /// What cannot be right is refused, with the field that is wrong.
    #[test]
    fn a_wrong_chunk_is_refused() {
        let wire = || pb::UploadChunksRequest::from(chunk());
        let wrong = [
            (pb::UploadChunksRequest { crc32: 1, ..wire() }, "crc32"),
            (pb::UploadChunksRequest { checkpoint: None, ..wire() }, "checkpoint"),
            (pb::UploadChunksRequest { total_bytes: MAX_BYTES + 1, ..wire() }, "total_bytes"),
            (pb::UploadChunksRequest { sha256: vec![1; 3], ..wire() }, "sha256"),
            (pb::UploadChunksRequest { kind: pb::ChunkKind::Output.into(), ..wire() }, "kind"),
            (pb::UploadChunksRequest { checkpoint_id: "x".into(), ..wire() }, "checkpoint_id"),
        ];
        for (chunk, field) in wrong {
            assert_eq!(FileChunk::try_from(chunk).unwrap_err().field, field);
        }
    }

    #[test]
    fn what_to_go_on_from_goes_over_whole() {
        let resume = Resume {
            here: Some(EarlierWorktree { attempt: attempt(), path: "/w".into() }),
            chain: vec![Link {
                id: CheckpointId(Uuid::from_u128(4)),
                blob: "o/a/checkpoint/1".into(),
                bytes: 10,
                sha256: "cd".repeat(32),
            }],
            base_commit: "ba5e".into(),
            session_id: "s".into(),
            fork_session: true,
            chosen: true,
            reason: "its machine died".into(),
            last_message: "almost".into(),
            summary: "1 file".into(),
        };
        assert_eq!(Resume::try_from(&pb::Resume::from(&resume)).unwrap(), resume);
        assert_eq!(resume.checkpoint(), Some(CheckpointId(Uuid::from_u128(4))));
    }
}

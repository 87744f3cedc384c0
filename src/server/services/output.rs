//! Output on the wire: chunks in from daemons, bytes out to whoever reads them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tonic::{Status, Streaming};

use super::{Answers, Api, End, Sink, find_task, store_error, watch::Subscription};
use crate::{
    domain::{AttemptId, AttemptRef, OwnerId, attempt::Attempt, task::Task},
    server::{
        auth::Reader,
        output::{self, Chunk, Follower, MAX_CHUNK_BYTES, Progress},
        uploads::Taken,
    },
    wire::{
        checkpoint::{FileChunk, FileReceipt},
        common, pb,
        status::{ApiError, ApiResult, Reason},
    },
};

/// How long output is waited for whose attempt has ended: its daemon may have died before it had sent all.
const LATE_OUTPUT: Duration = Duration::from_secs(30);
/// How often a follower looks whether its attempt has ended, if nothing wakes it.
const LOOK_PERIOD: Duration = Duration::from_secs(30);
/// Attempts that one upload stream is known to be good for; more than a daemon has.
const MAX_KNOWN: usize = 10_000;

// === in ===

impl Api {
    /// Takes chunks from a daemon of this owner. Each is answered with how far the server is, in order; so a daemon that
    /// sends faster than chunks become durable has its answers, and then its window, run out.
    pub(super) fn upload(
        &self,
        owner: OwnerId,
        mut chunks: Streaming<pb::UploadChunksRequest>,
    ) -> ApiResult<Answers<pb::UploadChunksResponse>> {
        let api = self.clone();
        self.stream_among(&self.uploads, move |sink| async move {
            let sink = Arc::new(sink);
            let mut known = HashMap::new();
            // A stream that breaks off is a daemon that will come again.
            while let Ok(Some(request)) = chunks.message().await {
                let bytes = request.data.len();
                if request.kind() == pb::ChunkKind::Output {
                    let answer = api.take_chunk(owner, &mut known, request).await?;
                    api.ledger.metrics().chunk(bytes, answer.refused);
                    sink.send(answer).await?;
                } else {
                    api.take_file(owner, &mut known, request, &sink).await?;
                    api.ledger.metrics().chunk(bytes, false);
                }
            }
            Ok(())
        })
    }

    /// Takes a piece of a checkpoint or result. The last one is answered when the whole counts, which may take a while, and
    /// nothing else on the stream waits for it.
    async fn take_file(
        &self,
        owner: OwnerId,
        known: &mut HashMap<AttemptId, bool>,
        request: pb::UploadChunksRequest,
        sink: &Arc<Sink<pb::UploadChunksResponse>>,
    ) -> Result<(), End> {
        let damaged = crc32fast::hash(&request.data) != request.crc32;
        if damaged {
            return Err(damaged_chunk().into());
        }
        let chunk = FileChunk::try_from(request).map_err(ApiError::from)?;
        if !self.knows(owner, known, chunk.attempt).await? {
            let refused = Some("there is no such attempt".to_owned());
            let (attempt, kind) = (chunk.attempt, chunk.kind);
            return sink.send(FileReceipt { attempt, kind, received: 0, complete: false, refused }.into()).await;
        }
        match self.files.take(owner, chunk).await? {
            Taken::Receipt(receipt, committed) => {
                let committed_offset = i64::try_from(committed).unwrap_or(i64::MAX);
                sink.send(pb::UploadChunksResponse { committed_offset, ..receipt.into() }).await
            }
            Taken::Whole(whole) => {
                let (files, sink) = (self.files.clone(), Arc::clone(sink));
                // Also when the stream ends meanwhile: the daemon finds it complete when it asks again.
                self.shutdown.spawn(async move {
                    let answer = files.finish(whole).await;
                    // A client that has gone asks again.
                    let _ = match answer {
                        Ok(receipt) => sink.send(receipt.into()).await,
                        Err(error) => sink.fail(error).await,
                    };
                });
                Ok(())
            }
        }
    }

    async fn take_chunk(
        &self,
        owner: OwnerId,
        known: &mut HashMap<AttemptId, bool>,
        request: pb::UploadChunksRequest,
    ) -> ApiResult<pb::UploadChunksResponse> {
        let attempt = common::attempt_ref("attempt", request.attempt.as_ref())?;
        if request.offset < 0 {
            return Err(ApiError::invalid_field("offset", "must not be negative"));
        }
        if request.data.len() > MAX_CHUNK_BYTES {
            let text = format!("is {} bytes; a chunk has at most {MAX_CHUNK_BYTES}", request.data.len());
            return Err(ApiError::invalid_field("data", text));
        }
        if crc32fast::hash(&request.data) != request.crc32 {
            return Err(damaged_chunk());
        }
        let answer = |progress: Progress, refused| pb::UploadChunksResponse {
            attempt: request.attempt.clone(),
            kind: request.kind,
            committed_offset: progress.committed,
            received_offset: progress.received,
            complete: progress.complete,
            refused,
            ..Default::default()
        };
        if !self.knows(owner, known, attempt).await? {
            return Ok(answer(Progress::default(), true));
        }
        let chunk = Chunk { offset: request.offset, data: request.data.clone(), gap: request.gap, last: request.last };
        match self.output.append(owner, attempt.id, chunk).await {
            Ok(progress) => Ok(answer(progress, false)),
            Err(output::Error::TooMuch) => {
                let progress = self.output.progress(owner, attempt.id).await.map_err(output_error)?;
                Ok(answer(progress, true))
            }
            Err(error) => Err(output_error(error)),
        }
    }

    /// It is an attempt of this owner; whether it may still change its task does not matter to its output.
    async fn knows(
        &self,
        owner: OwnerId,
        known: &mut HashMap<AttemptId, bool>,
        attempt: AttemptRef,
    ) -> ApiResult<bool> {
        if let Some(is_known) = known.get(&attempt.id) {
            return Ok(*is_known);
        }
        let mut tx = self.read().await?;
        let found = tx.attempts_fetch(&[attempt.id]).await.map_err(store_error)?;
        let is_known = found.iter().any(|found| found.owner == owner && found.reference() == attempt);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(attempt.id, is_known);
        Ok(is_known)
    }
}

fn damaged_chunk() -> ApiError {
    ApiError::new(Reason::ChecksumMismatch, "the chunk is not what its checksum says; send it again")
}

// === out ===

impl Api {
    /// Sends the output of a task's attempt.
    pub(super) async fn stream_output(
        &self,
        reader: Reader,
        request: pb::StreamTaskOutputRequest,
    ) -> ApiResult<Answers<pb::StreamTaskOutputResponse>> {
        if request.offset < 0 {
            return Err(ApiError::invalid_field("offset", "must not be negative"));
        }
        let mut tx = self.read().await?;
        let task = find_task(&mut tx, reader, "task_id", &request.task_id).await?;
        drop(tx);
        let is_first_awaited = request.attempt == 0 && request.follow && task.attempt == 0 && !task.status().is_final();
        let number = if request.attempt == 0 { task.attempt } else { request.attempt };
        let attempt = if is_first_awaited { None } else { Some(self.attempt(&task, number).await?) };
        let changes = self.feed.subscribe(task.contract);
        let api = self.clone();
        self.stream(move |sink| async move {
            let mut changes = changes;
            let attempt = match attempt {
                Some(attempt) => attempt,
                None => match api.first_attempt(&task, &mut changes).await? {
                    Some(attempt) => attempt,
                    None => return Ok(()),
                },
            };
            let follower = api.output.follow(reader.owner, attempt.id).await.map_err(output_error)?;
            let reading = Reading { api, sink, follower, changes, attempt, at: request.offset };
            reading.run(request.follow).await
        })
    }

    async fn attempt(&self, task: &Task, number: u32) -> ApiResult<Attempt> {
        let mut tx = self.read().await?;
        let found = tx.attempts_numbered(&[(task.id, number)]).await.map_err(store_error)?;
        found.into_iter().next().ok_or_else(|| {
            let text = match number {
                0 => "the task has not been tried yet".to_owned(),
                _ => format!("the task has no attempt {number}; the newest is {}", task.attempt),
            };
            ApiError::new(Reason::AttemptNotFound, text)
        })
    }

    /// Waits until the task is tried; `None` if it ends untried.
    async fn first_attempt(&self, task: &Task, changes: &mut Subscription) -> Result<Option<Attempt>, End> {
        loop {
            changes.mark();
            let mut tx = self.read().await?;
            let Some(attempt) = tx.attempts_numbered(&[(task.id, 1)]).await?.pop() else {
                let now = tx.briefs_fetch(&[task.id]).await?;
                drop(tx);
                if now.first().is_none_or(|brief| brief.status.is_final()) {
                    return Ok(None);
                }
                changes.changed().await;
                continue;
            };
            return Ok(Some(attempt));
        }
    }
}

/// Somebody reads the output of an attempt.
struct Reading {
    api: Api,
    sink: Sink<pb::StreamTaskOutputResponse>,
    follower: Follower,
    changes: Subscription,
    attempt: Attempt,
    /// The next byte to send.
    at: i64,
}

impl Reading {
    async fn run(mut self, follow: bool) -> Result<(), End> {
        loop {
            // Looked at before reading, so that nothing can come between the last byte and the end.
            let progress = self.follower.progress();
            self.changes.mark();
            if let Some(piece) = self.follower.read(self.at).await.map_err(output_error)? {
                self.at = piece.offset + piece.data.len() as i64;
                let (offset, data, gap) = (piece.offset, piece.data, piece.gap);
                self.sink
                    .send(pb::StreamTaskOutputResponse { attempt: self.attempt.number, offset, data, gap })
                    .await?;
                continue;
            }
            if progress.complete || !follow {
                return Ok(());
            }
            self.look_again().await?;
            let patience = match self.attempt.is_live() {
                true => LOOK_PERIOD,
                // It said how much there is, and all of it has been sent.
                false if self.at >= self.attempt.output_bytes.max(progress.received) => return Ok(()),
                false => LATE_OUTPUT,
            };
            let is_woken = tokio::select! {
                () = self.follower.changed() => true,
                () = self.changes.changed() => true,
                () = tokio::time::sleep(patience) => false,
            };
            if !is_woken && !self.attempt.is_live() {
                // The rest is not coming; what there is has been sent.
                return Ok(());
            }
        }
    }

    /// Whether the attempt still lives.
    async fn look_again(&mut self) -> Result<(), End> {
        if !self.attempt.is_live() {
            return Ok(());
        }
        let mut tx = self.api.read().await?;
        if let Some(now) = tx.attempts_fetch(&[self.attempt.id]).await?.pop() {
            self.attempt = now;
        }
        Ok(())
    }
}

/// What the output store could not do, as a caller hears it.
fn output_error(error: output::Error) -> ApiError {
    match error {
        output::Error::Expired(_) => ApiError::new(Reason::BlobNotFound, error.to_string()),
        output::Error::TooMuch => ApiError::new(Reason::OffsetOutOfRange, error.to_string()),
        output::Error::Unavailable(_) => ApiError::unavailable(error),
    }
}

// === blobs ===

impl Api {
    /// Sends a blob of this owner.
    pub(super) async fn download(
        &self,
        owner: OwnerId,
        request: pb::DownloadChunksRequest,
    ) -> Result<Answers<pb::DownloadChunksResponse>, Status> {
        let mut tx = self.read().await?;
        let found = tx.blob_fetch(&request.blob_id).await.map_err(store_error)?;
        drop(tx);
        let Some(blob) = found.filter(|blob| blob.owner == owner) else {
            let text = format!("there is no blob `{}`", common::shown(&request.blob_id));
            return Err(ApiError::new(Reason::BlobNotFound, text).into());
        };
        if request.offset < 0 || request.offset > blob.length {
            let text = format!("the blob has {} bytes; offset {} is outside of it", blob.length, request.offset);
            return Err(ApiError::new(Reason::OffsetOutOfRange, text).into());
        }
        let blobs = self.blobs.clone();
        Ok(self.stream(move |sink| async move {
            let mut at = request.offset;
            while at < blob.length {
                let to = blob.length.min(at + MAX_CHUNK_BYTES as i64);
                let range = u64::try_from(at).unwrap_or(0)..u64::try_from(to).unwrap_or(0);
                let data = blobs.read(&blob.name, range).await.map_err(|error| match error.is_not_found() {
                    true => ApiError::new(Reason::BlobNotFound, "the blob is no longer kept"),
                    false => ApiError::unavailable(error),
                })?;
                let crc32 = crc32fast::hash(&data);
                sink.send(pb::DownloadChunksResponse { offset: at, data, crc32 }).await?;
                at = to;
            }
            Ok(())
        })?)
    }
}

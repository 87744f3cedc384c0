//! What agents write, on its way from daemons to whoever reads it.
//!
//! ```text
//!   daemon ──append──> tail (memory, <= 1 MiB) ──seal──> blob (durable) ──> row ──> committed
//!                        │ received                 1 MiB, or 2 s, or the end
//!                        └──── watch channel ────> followers: from any offset, from blobs and tail alike
//! ```
//!
//! Promises: an offset that was called committed survives power loss. Bytes are kept in order and once: what a daemon sends
//! twice is taken once, what it skips is refused unless it says that it has lost it, and then the gap is recorded. Memory is
//! bounded for each attempt and in all; a daemon that sends faster than blobs can be made waits for its answers.
//!
//! A slow writer would make thousands of tiny blobs; so the last blob, while it is below 64 KiB, is kept in memory as well and
//! replaced by a longer one.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tracing::Instrument as _;

use super::blobs::{self, Blobs};
use crate::{
    domain::{AttemptId, OwnerId},
    runtime::{activator::Activator, clock, lifecycle::Shutdown},
    store::{self, Blob, BlobKind, Store, Tx},
};

/// A chunk at most; what the protocol says.
pub const MAX_CHUNK_BYTES: usize = 512 * 1024;
/// Unsealed bytes of one attempt at which they are sealed. With one chunk on top it bounds the memory of an attempt.
pub const SEAL_BYTES: usize = 1024 * 1024;
/// How long a byte waits to be sealed: what a server's death makes a daemon send again.
pub const SEAL_AFTER: Duration = Duration::from_secs(2);
/// A last blob below this is replaced by a longer one rather than followed by another.
pub const SMALL_BLOB_BYTES: usize = 64 * 1024;
/// Bytes of all attempts in memory above which every append seals: a few hundred attempts that write at full speed.
pub const MEMORY_BYTES: usize = 64 * 1024 * 1024;
/// Output of one attempt at most; a daemon that has more is refused the rest.
pub const MAX_OUTPUT_BYTES: i64 = 16 * 1024 * 1024 * 1024;
/// How often unsealed bytes are looked at while there are any.
const SEAL_PERIOD: Duration = Duration::from_millis(500);
/// An attempt that nobody writes or reads for so long is dropped from memory; it comes back from its rows.
const IDLE: Duration = Duration::from_secs(30);
/// How often the loop looks when nothing wakes it.
const QUIET_PERIOD: Duration = Duration::from_secs(3600);
/// Attempts sealed at a time: enough to share one commit, few enough to leave the disk to others.
const SEALERS: usize = 16;

/// What can go wrong.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Blob or row cannot be written or read now; the same again later may work.
    #[error("keep output: {0}")]
    Unavailable(String),
    /// A piece of output is no longer kept.
    #[error("output at offset {0} is no longer kept")]
    Expired(i64),
    /// The attempt has written more than is kept of one.
    #[error("output is over {MAX_OUTPUT_BYTES} bytes")]
    TooMuch,
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Unavailable(crate::wire::status::chain(&error))
    }
}

impl From<blobs::Error> for Error {
    fn from(error: blobs::Error) -> Self {
        Self::Unavailable(crate::wire::status::chain(&error))
    }
}

/// How far the server is with an attempt's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// All before this is durable.
    pub committed: i64,
    /// All before this has come.
    pub received: i64,
    /// All there will ever be is durable.
    pub complete: bool,
}

/// A piece of output on its way in.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    /// Offset of its first byte.
    pub offset: i64,
    /// The bytes.
    pub data: Bytes,
    /// The daemon has lost what lies between what the server has and `offset`.
    pub gap: bool,
    /// Nothing follows.
    pub last: bool,
}

/// A piece of output on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset of its first byte.
    pub offset: i64,
    /// The bytes; never empty.
    pub data: Bytes,
    /// Bytes before it are missing.
    pub gap: bool,
}

/// The output of all attempts; clones share it.
#[derive(Clone, Debug)]
pub struct OutputStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    blobs: Blobs,
    streams: Mutex<HashMap<AttemptId, Arc<Stream>>>,
    /// Bytes in all tails.
    memory: AtomicUsize,
    /// Wakes the sealing loop from its quiet.
    sealer: Activator,
    /// Rows to write; whoever gets `commit` writes those of all.
    queue: Mutex<Vec<RowWrite>>,
    commit: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct RowWrite {
    put: Blob,
    delete: Option<String>,
    done: oneshot::Sender<Result<(), Error>>,
}

/// The output of one attempt.
#[derive(Debug)]
struct Stream {
    owner: OwnerId,
    attempt: AttemptId,
    /// One append or seal at a time.
    writer: tokio::sync::Mutex<()>,
    view: Mutex<View>,
    progress: watch::Sender<Progress>,
}

/// What is known of it.
#[derive(Debug)]
struct View {
    /// Blobs, in order, but for the one that the tail repeats.
    segments: Vec<Segment>,
    /// Offset of the first byte of `tail`.
    start: i64,
    /// Bytes before the tail are missing.
    gap: bool,
    /// What is in memory.
    tail: Vec<u8>,
    /// The blob that holds the beginning of the tail, if it was sealed already.
    sealed: Option<Segment>,
    /// When the first byte that is not sealed came.
    dirty: Option<Instant>,
    /// Nothing follows.
    ended: bool,
    /// ... and a row says so.
    complete: bool,
    /// When somebody last wrote.
    touched: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    name: String,
    /// Offset of its first byte.
    start: i64,
    /// Bytes.
    length: i64,
    /// Bytes of the blob before `start`, which an earlier one has.
    skip: i64,
    gap: bool,
}

impl Segment {
    fn end(&self) -> i64 {
        self.start + self.length
    }
}

impl View {
    fn received(&self) -> i64 {
        self.start + self.tail.len() as i64
    }

    fn progress(&self) -> Progress {
        let committed = self.sealed.as_ref().map_or(self.start, Segment::end);
        Progress { committed, received: self.received(), complete: self.complete }
    }

    fn is_dirty(&self) -> bool {
        self.progress().committed < self.received() || self.ended != self.complete
    }
}

/// Where a byte is.
enum Place {
    Memory(Piece),
    Blob { segment: Segment, at: i64, gap: bool },
    Nowhere,
}

impl OutputStore {
    /// Output in these blobs, with rows in this store.
    pub fn new(store: Store, blobs: Blobs) -> Self {
        Self(Arc::new(Inner {
            store,
            blobs,
            streams: Mutex::default(),
            memory: AtomicUsize::new(0),
            sealer: Activator::default(),
            queue: Mutex::default(),
            commit: tokio::sync::Mutex::default(),
        }))
    }

    /// Seals what has waited long enough until the shutdown, then all that is left.
    pub async fn run(self, shutdown: Shutdown) {
        let span = tracing::info_span!("output");
        async {
            loop {
                let period = if lock(&self.0.streams).is_empty() { QUIET_PERIOD } else { SEAL_PERIOD };
                tokio::select! {
                    () = self.0.sealer.wait(period) => {}
                    () = shutdown.soft.cancelled() => break,
                }
                self.seal_all(SEAL_AFTER).await;
                self.forget_idle();
            }
            self.seal_all(Duration::ZERO).await;
        }
        .instrument(span)
        .await;
    }

    /// How far the server is with this attempt.
    pub async fn progress(&self, owner: OwnerId, attempt: AttemptId) -> Result<Progress, Error> {
        Ok(*self.stream(owner, attempt).await?.progress.borrow())
    }

    /// Takes a chunk. Answers how far the server is then; what it could not take must be sent again from there.
    pub async fn append(&self, owner: OwnerId, attempt: AttemptId, chunk: Chunk) -> Result<Progress, Error> {
        let stream = self.stream(owner, attempt).await?;
        let _writer = stream.writer.lock().await;
        let end = chunk.offset.saturating_add(chunk.data.len() as i64);
        if end > MAX_OUTPUT_BYTES {
            return Err(Error::TooMuch);
        }
        let (received, is_full, ended) = {
            let view = lock(&stream.view);
            (view.received(), view.tail.len() >= SEAL_BYTES, view.ended)
        };
        if ended || (chunk.offset > received && !chunk.gap) {
            // Over already, or something before it is on its way again.
            self.seal(&stream, ended).await?;
            return Ok(*stream.progress.borrow());
        }
        let starts_anew = chunk.gap && chunk.offset >= received;
        // Only what was left by a seal that failed can be full; it goes first, so that memory stays bounded.
        if is_full || starts_anew {
            self.seal(&stream, true).await?;
        }
        let must_seal = {
            let mut view = lock(&stream.view);
            if starts_anew {
                self.cut_tail(&mut view);
                view.start = chunk.offset;
                view.gap = true;
            }
            let known = usize::try_from(view.received() - chunk.offset).unwrap_or(0).min(chunk.data.len());
            let new = &chunk.data[known..];
            view.tail.extend_from_slice(new);
            self.0.memory.fetch_add(new.len(), Ordering::Relaxed);
            let now = Instant::now();
            view.touched = now;
            if !new.is_empty() {
                view.dirty.get_or_insert(now);
            }
            if chunk.last && view.received() == end {
                view.ended = true;
            }
            stream.progress.send_replace(view.progress());
            let unsealed = view.received() - view.progress().committed;
            unsealed >= SEAL_BYTES as i64 || view.ended || self.is_over_memory()
        };
        if must_seal {
            self.seal(&stream, false).await?;
        }
        Ok(*stream.progress.borrow())
    }

    /// Follows the output of an attempt.
    pub async fn follow(&self, owner: OwnerId, attempt: AttemptId) -> Result<Follower, Error> {
        let stream = self.stream(owner, attempt).await?;
        let changes = stream.progress.subscribe();
        Ok(Follower { output: self.clone(), stream, changes })
    }

    /// How much of each of these attempts the server has; those without output are absent.
    pub async fn received(&self, tx: &mut Tx, attempts: &[AttemptId]) -> Result<HashMap<AttemptId, i64>, Error> {
        let mut received: HashMap<_, _> = tx.blobs_ends(attempts).await?.into_iter().collect();
        let streams = lock(&self.0.streams);
        for attempt in attempts {
            if let Some(stream) = streams.get(attempt) {
                received.insert(*attempt, stream.progress.borrow().received);
            }
        }
        Ok(received)
    }

    // === sealing ===

    /// Makes the tail durable. `cut`: no longer keep its blob in memory, however small it is.
    ///
    /// Needs the writer's lock of the stream.
    async fn seal(&self, stream: &Stream, cut: bool) -> Result<(), Error> {
        let (data, start, gap, old, ended) = {
            let mut view = lock(&stream.view);
            if !view.is_dirty() {
                if cut {
                    self.cut_tail(&mut view);
                }
                return Ok(());
            }
            // An end without new bytes is a mark on the last blob, which then must be looked at again.
            if view.tail.is_empty()
                && let Some(last) = view.segments.pop()
            {
                let last_blob = row(stream, &last, true);
                view.segments.push(last);
                (None, view.start, view.gap, Some(last_blob), true)
            } else {
                let data = Bytes::copy_from_slice(&view.tail);
                let old = view.sealed.as_ref().map(|sealed| row(stream, sealed, false));
                (Some(data), view.start, view.gap, old, view.ended)
            }
        };
        let Some(data) = data else {
            if let Some(last) = old {
                self.record(last, None).await?;
            }
            let mut view = lock(&stream.view);
            view.complete = true;
            view.dirty = None;
            stream.progress.send_replace(view.progress());
            return Ok(());
        };
        let length = data.len() as i64;
        let name = Blobs::name(stream.owner, stream.attempt, BlobKind::Output, start, data.len());
        let segment = Segment { name, start, length, skip: 0, gap };
        let is_new = old.as_ref().is_none_or(|old| old.name != segment.name);
        if is_new {
            self.0.blobs.put(&segment.name, data).await?;
        }
        let replaced = old.map(|old| old.name).filter(|_| is_new);
        self.record(row(stream, &segment, ended), replaced.clone()).await?;
        {
            let mut view = lock(&stream.view);
            let is_small = length < SMALL_BLOB_BYTES as i64;
            view.sealed = Some(segment);
            view.complete = ended;
            view.dirty = None;
            if cut || !is_small || ended || self.is_over_memory() {
                self.cut_tail(&mut view);
            }
            stream.progress.send_replace(view.progress());
        }
        if let Some(replaced) = replaced
            && let Err(error) = self.0.blobs.delete(&replaced).await
        {
            // No row names it any more: the sweep for strays will find it.
            tracing::warn!(error = crate::wire::status::chain(&error), "a replaced blob was not deleted");
        }
        Ok(())
    }

    /// The blob that the tail repeats stands alone from now on.
    fn cut_tail(&self, view: &mut View) {
        if let Some(sealed) = view.sealed.take() {
            let bytes = usize::try_from(sealed.length).unwrap_or(0).min(view.tail.len());
            view.tail.drain(..bytes);
            view.tail.shrink_to(SMALL_BLOB_BYTES);
            self.0.memory.fetch_sub(bytes, Ordering::Relaxed);
            view.start = sealed.end();
            view.gap = false;
            view.segments.push(sealed);
        }
    }

    /// Writes a row, together with the rows of whoever waits at the same time.
    async fn record(&self, put: Blob, delete: Option<String>) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        lock(&self.0.queue).push(RowWrite { put, delete, done });
        let _leader = self.0.commit.lock().await;
        let batch = std::mem::take(&mut *lock(&self.0.queue));
        if !batch.is_empty() {
            let result = self.record_batch(&batch).await;
            for write in batch {
                // Whoever no longer waits will look at the rows again.
                let _ = write.done.send(result.clone());
            }
        }
        answer.await.unwrap_or_else(|_| Err(Error::Unavailable("the write was given up".to_owned())))
    }

    async fn record_batch(&self, batch: &[RowWrite]) -> Result<(), Error> {
        let blobs: Vec<Blob> = batch.iter().map(|write| write.put.clone()).collect();
        let gone: Vec<String> = batch.iter().filter_map(|write| write.delete.clone()).collect();
        let mut tx = self.0.store.begin().await?;
        tx.blobs_put(&blobs).await?;
        tx.blobs_delete(&gone).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Seals every attempt whose first unsealed byte is that old.
    async fn seal_all(&self, age: Duration) {
        let due: Vec<Arc<Stream>> = lock(&self.0.streams)
            .values()
            .filter(|stream| {
                let view = lock(&stream.view);
                view.is_dirty() && view.dirty.is_none_or(|since| since.elapsed() >= age)
            })
            .cloned()
            .collect();
        for group in due.chunks(SEALERS) {
            let mut sealing = tokio::task::JoinSet::new();
            for stream in group.iter().cloned() {
                let output = self.clone();
                sealing.spawn(async move {
                    let _writer = stream.writer.lock().await;
                    if let Err(error) = output.seal(&stream, false).await {
                        tracing::warn!(attempt = %stream.attempt, %error, "output was not sealed; trying again");
                    }
                });
            }
            sealing.join_all().await;
        }
    }

    fn is_over_memory(&self) -> bool {
        self.0.memory.load(Ordering::Relaxed) > MEMORY_BYTES
    }

    /// Drops attempts from memory that nobody uses.
    fn forget_idle(&self) {
        let mut streams = lock(&self.0.streams);
        streams.retain(|_, stream| {
            // Others come by a clone only through the map, which is locked.
            let is_ours_alone = Arc::strong_count(stream) == 1;
            let view = lock(&stream.view);
            let keep = !is_ours_alone || view.is_dirty() || view.touched.elapsed() < IDLE;
            if !keep {
                self.0.memory.fetch_sub(view.tail.len(), Ordering::Relaxed);
            }
            keep
        });
    }

    // === loading ===

    async fn stream(&self, owner: OwnerId, attempt: AttemptId) -> Result<Arc<Stream>, Error> {
        if let Some(stream) = lock(&self.0.streams).get(&attempt) {
            return Ok(Arc::clone(stream));
        }
        let view = self.load(attempt).await?;
        let bytes = view.tail.len();
        let progress = watch::Sender::new(view.progress());
        let loaded = Arc::new(Stream {
            owner,
            attempt,
            writer: tokio::sync::Mutex::default(),
            view: Mutex::new(view),
            progress,
        });
        let stream = {
            let mut streams = lock(&self.0.streams);
            // Somebody else may have loaded it meanwhile, and written to it.
            Arc::clone(streams.entry(attempt).or_insert_with(|| {
                self.0.memory.fetch_add(bytes, Ordering::Relaxed);
                loaded
            }))
        };
        self.0.sealer.wake();
        Ok(stream)
    }

    async fn load(&self, attempt: AttemptId) -> Result<View, Error> {
        let mut tx = self.0.store.read().await?;
        let rows = tx.blobs_of_output(attempt).await?;
        tx.rollback().await?;
        let mut segments: Vec<Segment> = Vec::new();
        let mut complete = false;
        for blob in rows {
            complete |= blob.is_final;
            let have = segments.last().map_or(i64::MIN, Segment::end);
            if blob.end() < have || (blob.end() == have && blob.length > 0) {
                continue;
            }
            // A write whose outcome was unknown may have left a shorter blob beside the longer one.
            if segments.last().is_some_and(|last| last.start == blob.start) {
                segments.pop();
            }
            let have = segments.last().map_or(i64::MIN, Segment::end);
            let skip = have.saturating_sub(blob.start).max(0);
            segments.push(Segment {
                start: blob.start + skip,
                length: blob.length - skip,
                skip,
                gap: blob.gap && skip == 0,
                name: blob.name,
            });
        }
        let mut view = View {
            start: segments.last().map_or(0, Segment::end),
            segments,
            gap: false,
            tail: Vec::new(),
            sealed: None,
            dirty: None,
            ended: complete,
            complete,
            touched: Instant::now(),
        };
        let is_small = |last: &mut Segment| !complete && last.length < SMALL_BLOB_BYTES as i64 && last.skip == 0;
        if let Some(last) = view.segments.pop_if(is_small) {
            let length = u64::try_from(last.length).unwrap_or(0);
            view.tail = self.0.blobs.read(&last.name, 0..length).await?.to_vec();
            view.start = last.start;
            view.gap = last.gap;
            view.sealed = Some(last);
        }
        Ok(view)
    }
}

/// Somebody who reads the output of an attempt. As long as there is one, it stays in memory.
#[derive(Debug)]
pub struct Follower {
    output: OutputStore,
    stream: Arc<Stream>,
    changes: watch::Receiver<Progress>,
}

impl Follower {
    /// The next bytes at or after this offset; `None` when there are none yet.
    pub async fn read(&mut self, offset: i64) -> Result<Option<Piece>, Error> {
        // Whatever comes after this look is a change to wait for.
        self.changes.mark_unchanged();
        match self.place(offset) {
            Place::Nowhere => Ok(None),
            Place::Memory(piece) => Ok(Some(piece)),
            Place::Blob { segment, at, gap } => {
                let from = u64::try_from(segment.skip + at - segment.start).unwrap_or(0);
                let length = (segment.end() - at).min(MAX_CHUNK_BYTES as i64);
                let to = from + u64::try_from(length).unwrap_or(0);
                match self.output.0.blobs.read(&segment.name, from..to).await {
                    Ok(data) => Ok(Some(Piece { offset: at, data, gap })),
                    Err(error) if error.is_not_found() => Err(Error::Expired(at)),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// How far the server is.
    pub fn progress(&self) -> Progress {
        *self.changes.borrow()
    }

    /// Returns when something has come since the last read.
    pub async fn changed(&mut self) {
        // The sender lives as long as the stream that we hold.
        let _ = self.changes.changed().await;
    }

    fn place(&self, offset: i64) -> Place {
        let view = lock(&self.stream.view);
        let index = view.segments.partition_point(|segment| segment.end() <= offset);
        // An empty blob only marks the end of an empty output.
        if let Some(segment) = view.segments[index..].iter().find(|segment| segment.length > 0) {
            let at = offset.max(segment.start);
            let gap = at > offset || (segment.gap && at == segment.start);
            return Place::Blob { segment: segment.clone(), at, gap };
        }
        if offset >= view.received() || view.tail.is_empty() {
            return Place::Nowhere;
        }
        let at = offset.max(view.start);
        let gap = at > offset || (view.gap && at == view.start);
        let from = usize::try_from(at - view.start).unwrap_or(0);
        let to = (from + MAX_CHUNK_BYTES).min(view.tail.len());
        Place::Memory(Piece { offset: at, data: Bytes::copy_from_slice(&view.tail[from..to]), gap })
    }
}

fn row(stream: &Stream, segment: &Segment, is_final: bool) -> Blob {
    Blob {
        name: segment.name.clone(),
        owner: stream.owner,
        attempt: stream.attempt,
        kind: BlobKind::Output,
        start: segment.start - segment.skip,
        length: segment.length + segment.skip,
        gap: segment.gap,
        is_final,
        created: clock::now(),
    }
}

/// Whoever panicked while holding it left nothing half done: every change under these locks is complete in itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

//! Brings the attempts' output to the server while it is written.
//!
//! ```text
//!   runner ─ open, grown, finish ─> uploads ─ chunks, in turns ──> server
//!                                      ^────── how far it is ────────┘
//! ```
//!
//! The files are the truth: what is sent is read from them when there is room for it on the way ([`WINDOW`]), so a slow server
//! costs nothing here, and after any break an upload goes on from the offset that the server names. An upload is over when the
//! server has all of it durably, or does not want it; the journal remembers that. Nobody waits for an upload: an attempt's end
//! may be reported long before its last output has arrived.
//!
//! Small writes are collected for a moment (100 ms). The connection is opened when there is something to send and closed
//! when there has been nothing for a while ([`IDLE`]). Known secrets are masked at equal length ([`mask`]).

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{ASK_AGAIN, Backlog, Error, IDLE, QUEUE, SILENCE, WINDOW, WINDOW_EACH, mask::Mask, read_full};
use crate::{
    daemon::{Context, config::Config, runner::blocking, session::link},
    domain::AttemptRef,
    runtime::backoff::Backoff,
    wire::{
        daemon::{Chunk, MAX_CHUNK_BYTES, Receipt},
        pb,
    },
};

/// Uploads that may be announced before the loop takes them: more attempts than a daemon has slots.
const ANNOUNCED: usize = 4_096;
/// Where output is announced. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Announcer {
    announce: mpsc::Sender<Upload>,
    wake: Arc<Notify>,
    pub(super) backlog: Arc<Backlog>,
}

/// The output of one attempt, as its runner sees it. Dropping it leaves the upload as it is.
#[derive(Debug)]
pub struct Output {
    length: Arc<Length>,
    wake: Arc<Notify>,
}

/// How much there is, as far as is known.
#[derive(Debug, Default)]
struct Length {
    bytes: AtomicU64,
    finished: AtomicBool,
}

impl Announcer {
    /// The handle, and what its loop takes.
    pub(super) fn new() -> (Self, Inbox) {
        let (announce, announced) = mpsc::channel(ANNOUNCED);
        let (wake, backlog) = (Arc::new(Notify::new()), Arc::new(Backlog::default()));
        let announcer = Self { announce, wake: Arc::clone(&wake), backlog: Arc::clone(&backlog) };
        (announcer, Inbox { announced, wake, backlog, attached: Arc::default() })
    }

    /// Announces the output of an attempt.
    pub(super) fn open(&self, attempt: AttemptRef, path: PathBuf, secrets: &[&str]) -> Output {
        let length = Arc::new(Length::default());
        let upload = Upload::new(attempt, path, Mask::new(secrets), Arc::clone(&length));
        if self.announce.try_send(upload).is_err() {
            // It is found again by the journal at the next start.
            tracing::warn!(%attempt, "too many uploads at once; this one waits until the daemon starts again");
        }
        self.wake.notify_one();
        Output { length, wake: Arc::clone(&self.wake) }
    }
}

impl Output {
    /// There is this much now.
    pub fn grown(&self, bytes: u64) {
        self.length.bytes.fetch_max(bytes, Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// There is this much, and no more is coming.
    pub fn finish(&self, bytes: u64) {
        self.length.bytes.store(bytes, Ordering::Release);
        self.length.finished.store(true, Ordering::Release);
        self.wake.notify_one();
    }
}

/// What the loop listens to.
#[derive(Debug)]
pub(super) struct Inbox {
    announced: mpsc::Receiver<Upload>,
    wake: Arc<Notify>,
    backlog: Arc<Backlog>,
    /// A session stands.
    pub(super) attached: Arc<Notify>,
}

/// One upload. Offsets of the file and of the upload are the same.
#[derive(Debug)]
struct Upload {
    attempt: AttemptRef,
    path: PathBuf,
    mask: Mask,
    length: Arc<Length>,
    file: Option<Arc<File>>,
    /// The server has said how far it is, on this connection.
    known: bool,
    /// It has been asked.
    asked: bool,
    /// Sent up to here.
    sent: u64,
    /// The server has everything up to here.
    received: u64,
    /// The same over all connections, for whoever wants to know how much is left.
    confirmed: u64,
    /// When the last chunk was sent.
    sent_at: Option<Instant>,
    /// It has been asked again, because an answer is missing.
    doubted: bool,
    /// The end has been sent.
    ended: bool,
}

impl Upload {
    fn new(attempt: AttemptRef, path: PathBuf, mask: Mask, length: Arc<Length>) -> Self {
        Self {
            attempt,
            path,
            mask,
            length,
            file: None,
            known: false,
            asked: false,
            sent: 0,
            received: 0,
            confirmed: 0,
            sent_at: None,
            doubted: false,
            ended: false,
        }
    }

    /// A new connection: nothing is known of what was on the old one.
    fn begin_again(&mut self) {
        *self = Self {
            file: self.file.take(),
            confirmed: self.confirmed,
            ..Self::new(self.attempt, self.path.clone(), self.mask.clone(), Arc::clone(&self.length))
        };
    }

    fn is_finished(&self) -> bool {
        self.length.finished.load(Ordering::Acquire)
    }

    fn bytes(&self) -> u64 {
        self.length.bytes.load(Ordering::Acquire)
    }

    fn on_the_way(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// An answer is to come.
    fn is_waiting(&self) -> bool {
        self.asked && (!self.known || self.ended || self.on_the_way() > 0)
    }

    /// There is something to tell the server.
    fn has_work(&self) -> bool {
        !self.asked || self.sent < self.bytes() || (self.is_finished() && !self.ended)
    }

    /// When the next chunk may go: at once for a full one or the end, a moment after the last one otherwise. `None` while
    /// there is nothing to send, or an answer must come first.
    fn due(&self, collect: Duration, now: Instant) -> Option<Instant> {
        if !self.asked {
            return Some(now);
        }
        let again = self.sent_at.map(|at| at + ASK_AGAIN);
        if !self.known {
            return None;
        }
        if self.ended || (self.on_the_way() > 0 && again.is_some_and(|at| at <= now)) {
            return again;
        }
        if !self.has_work() || self.on_the_way() >= WINDOW_EACH {
            return if self.on_the_way() > 0 { again } else { None };
        }
        let full = self.bytes().saturating_sub(self.sent) >= MAX_CHUNK_BYTES as u64;
        let later = self.sent_at.map_or(now, |at| at + collect);
        Some(if full || self.is_finished() { now } else { later })
    }

    /// The next chunk, read from the file. `None`: nothing to send after all.
    async fn next_chunk(&mut self) -> io::Result<Option<Chunk>> {
        let overdue = self.on_the_way() > 0 && self.sent_at.is_some_and(|at| at.elapsed() >= ASK_AGAIN);
        if !self.known || self.ended || overdue {
            self.asked = true;
            self.doubted = overdue;
            // With `last`, so that the server can say that it has all.
            return Ok(Some(self.chunk(self.sent, Bytes::new(), self.ended)));
        }
        // Read before the length, so that what is called finished has its final length.
        let finished = self.is_finished();
        let end = self.bytes();
        let offset = self.sent;
        let wanted = usize::try_from(end.saturating_sub(offset)).unwrap_or(MAX_CHUNK_BYTES).min(MAX_CHUNK_BYTES);
        let data = if wanted == 0 { Bytes::new() } else { self.read(offset, wanted, end, finished).await? };
        let last = finished && offset + data.len() as u64 >= end;
        if data.is_empty() && !last {
            self.sent_at = Some(Instant::now());
            return Ok(None);
        }
        self.sent = offset + data.len() as u64;
        self.ended = last;
        Ok(Some(self.chunk(offset, data, last)))
    }

    fn chunk(&mut self, offset: u64, data: Bytes, last: bool) -> Chunk {
        self.sent_at = Some(Instant::now());
        Chunk { attempt: self.attempt, offset, data, last, gap: false }
    }

    async fn read(&mut self, offset: u64, wanted: usize, end: u64, finished: bool) -> io::Result<Bytes> {
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => {
                let path = self.path.clone();
                Arc::clone(self.file.insert(Arc::new(blocking(move || File::open(path)).await?)))
            }
        };
        let mask = self.mask.clone();
        blocking(move || {
            let around = mask.around(offset, wanted, end);
            let mut data = vec![0; around.length];
            let read = read_full(&file, &mut data, around.start)?;
            data.truncate(read);
            let complete = finished && around.start + read as u64 >= end;
            Ok(mask.apply(data, &around, complete))
        })
        .await
    }

    /// The server has said how far it is.
    fn answered(&mut self, receipt: &Receipt) {
        self.received = receipt.received;
        self.confirmed = self.confirmed.max(receipt.received);
        if !self.known {
            self.known = true;
            // It may have more than the file does, after the power went here: then there is only the end to say.
            self.sent = receipt.received;
        } else if self.doubted && self.received < self.sent {
            // Asked long after the last chunk, the server does not have it: it goes again.
            self.sent = self.received;
            self.ended = false;
        }
        self.doubted = false;
    }
}

/// Runs for ever.
pub(super) async fn run(context: Arc<Context>, inbox: Inbox) {
    Uploader { context, inbox, uploads: BTreeMap::new(), turn: None }.run().await;
}

struct Uploader {
    context: Arc<Context>,
    inbox: Inbox,
    uploads: BTreeMap<AttemptRef, Upload>,
    /// Who was last in turn.
    turn: Option<AttemptRef>,
}

impl Uploader {
    async fn run(mut self) {
        let times = self.context.config.times;
        let mut backoff = Backoff::new(times.reconnect_first, times.reconnect_limit);
        loop {
            self.until_work().await;
            self.uploads.values_mut().for_each(Upload::begin_again);
            let mut answered = false;
            match self.connection(&mut answered).await {
                Ok(()) => continue,
                Err(error) => tracing::info!(%error, "uploading output has been interrupted; it goes on where it was"),
            }
            // Now, so that there is work also where all had been sent: what was on the way may never have arrived.
            self.uploads.values_mut().for_each(Upload::begin_again);
            if answered {
                backoff.reset();
            }
            // A session that stands again is as good as the time.
            let _ = tokio::time::timeout(backoff.next_delay(), self.inbox.attached.notified()).await;
        }
    }

    async fn until_work(&mut self) {
        loop {
            self.take_announced();
            if self.uploads.values().any(Upload::has_work) {
                return;
            }
            self.inbox.wake.notified().await;
        }
    }

    fn take_announced(&mut self) {
        while let Ok(upload) = self.inbox.announced.try_recv() {
            self.uploads.insert(upload.attempt, upload);
        }
        let left = self.uploads.values().map(|upload| upload.bytes().saturating_sub(upload.confirmed)).sum();
        self.inbox.backlog.set(self.uploads.len(), left);
    }

    /// One connection, until there has been nothing to send for a while (`Ok`), or it breaks.
    async fn connection(&mut self, answered: &mut bool) -> Result<(), Error> {
        let (chunks, queued) = mpsc::channel::<pb::UploadChunksRequest>(QUEUE);
        let config: &Config = &self.context.config;
        let collect = config.times.output;
        let mut client = link::connect(config).await?;
        // The server may answer only when the first chunk has come.
        let request = link::authorized(config, ReceiverStream::new(queued));
        let response = client.upload_chunks(request);
        tokio::pin!(response);
        let mut receipts: Option<tonic::Streaming<pb::UploadChunksResponse>> = None;
        let mut quiet_since = Instant::now();
        loop {
            self.take_announced();
            let now = Instant::now();
            let next = self.next_turn(collect, now);
            let waiting = self.uploads.values().any(Upload::is_waiting);
            // One that is due already waits for room in the queue, not for a time.
            let due = next.map(|(_, due)| due).filter(|due| *due > now);
            let idle = if waiting { quiet_since + SILENCE } else { quiet_since + IDLE };
            tokio::select! {
                biased;
                started = &mut response, if receipts.is_none() => {
                    receipts = Some(started.map_err(Error::Status)?.into_inner());
                }
                receipt = async { match receipts.as_mut() {
                    Some(receipts) => receipts.message().await,
                    None => std::future::pending().await,
                } } => {
                    let receipt = receipt.map_err(Error::Status)?.ok_or(Error::Ended)?;
                    *answered = true;
                    quiet_since = Instant::now();
                    self.answered(&receipt).await?;
                }
                permit = chunks.reserve(), if next.is_some_and(|(_, due)| due <= now) => {
                    let permit = permit.map_err(|_| Error::Ended)?;
                    if let Some((attempt, _)) = next && let Some(chunk) = self.next_chunk(attempt).await {
                        quiet_since = if waiting { quiet_since } else { Instant::now() };
                        permit.send(chunk.into());
                    }
                }
                () = self.inbox.wake.notified() => {}
                () = tokio::time::sleep_until(due.map_or(idle, |due| due.min(idle))) => {
                    if Instant::now() >= idle {
                        return if waiting { Err(Error::Silent) } else { Ok(()) };
                    }
                }
            }
        }
    }

    /// Whose turn it is, and when: of those that are due, the one after the last one; else the one that is due first.
    fn next_turn(&self, collect: Duration, now: Instant) -> Option<(AttemptRef, Instant)> {
        let on_the_way: u64 = self.uploads.values().map(Upload::on_the_way).sum();
        if on_the_way >= WINDOW {
            return None;
        }
        let due = || self.uploads.values().filter_map(|u| u.due(collect, now).map(|due| (u.attempt, due)));
        let after = |last: AttemptRef| due().find(|(attempt, due)| *due <= now && *attempt > last);
        self.turn
            .and_then(after)
            .or_else(|| due().find(|(_, due)| *due <= now))
            .or_else(|| due().min_by_key(|(_, due)| *due))
    }

    async fn next_chunk(&mut self, attempt: AttemptRef) -> Option<Chunk> {
        self.turn = Some(attempt);
        let upload = self.uploads.get_mut(&attempt)?;
        match upload.next_chunk().await {
            Ok(chunk) => chunk,
            Err(error) => {
                tracing::error!(%attempt, path = %upload.path.display(), %error, "output cannot be read; it is given up");
                self.forget(attempt).await;
                None
            }
        }
    }

    async fn answered(&mut self, receipt: &pb::UploadChunksResponse) -> Result<(), Error> {
        let receipt = Receipt::try_from(receipt).map_err(|e| Error::Invalid(e.to_string()))?;
        let Some(upload) = self.uploads.get_mut(&receipt.attempt) else { return Ok(()) };
        upload.answered(&receipt);
        let over = if receipt.refused {
            tracing::info!(attempt = %receipt.attempt, "the server does not want this output");
            ControlFlow::Break(())
        } else if receipt.complete && upload.ended {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        };
        if over.is_break() {
            self.forget(receipt.attempt).await;
        }
        Ok(())
    }

    async fn forget(&mut self, attempt: AttemptRef) {
        self.uploads.remove(&attempt);
        if let Err(error) = self.context.journal.uploaded(attempt).await {
            // It is asked about again after the next start, and the server says that it has all.
            tracing::warn!(%attempt, %error, "the journal cannot be written");
        }
    }
}

#[cfg(test)]
mod tests;

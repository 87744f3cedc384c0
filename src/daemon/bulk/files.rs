//! Brings checkpoints and results to the server: files that do not change, and count when the server has them whole.
//!
//! ```text
//!   runner ─ file ─> journal ─> how far? ─> chunks ─> the last one, with what it is ─> stored ─> journal, runner
//!                                  ^── a new connection asks first ──┘
//! ```
//!
//! An upload is in the journal from before its first byte until the server has said that it counts, or that it is not
//! wanted; the next daemon goes on with it. The one with the least left to send goes first, so that a small checkpoint does
//! not wait for a large result. A file that can no longer be read, or is not what it was, is given up, and the journal
//! draws the consequences.

use std::{collections::BTreeMap, fs::File, io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Duration, Instant},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{ASK_AGAIN, Backlog, Error, IDLE, QUEUE, SILENCE, WINDOW, WINDOW_EACH, read_full};
use crate::{
    daemon::{
        Context,
        journal::{Settled, Upload},
        runner::{blocking, chain},
        session::link,
    },
    domain::{AttemptRef, attempt::Pack, checkpoint::About},
    runtime::{backoff::Backoff, clock},
    wire::{
        checkpoint::{FileChunk, FileKind, FileReceipt},
        daemon::MAX_CHUNK_BYTES,
        pb,
    },
};

/// Files that may be announced before the loop takes them: more attempts than a daemon has slots.
const ANNOUNCED: usize = 4_096;
/// How long to wait before asking whether a whole that has been sent counts by now, when nobody is going to say so.
const ASK_SOON: Duration = Duration::from_secs(1);

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The server has it, and it counts.
    Stored,
    /// The server does not want it, or it cannot be read any more: why.
    Refused(String),
    /// The daemon stops; the next one goes on with it.
    Left,
}

/// An upload that somebody may wait for. Dropping it leaves the upload as it is.
#[derive(Clone, Debug)]
pub struct Delivery(watch::Receiver<Option<Delivered>>);

impl Delivery {
    /// One whose outcome somebody else tells.
    pub fn pending() -> (watch::Sender<Option<Delivered>>, Self) {
        let (tell, outcome) = watch::channel(None);
        (tell, Self(outcome))
    }

    /// Waits for the outcome: for as long as the server is away.
    pub async fn outcome(&mut self) -> Delivered {
        match self.0.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Delivered::Left),
            Err(_) => Delivered::Left,
        }
    }
}

/// Which file: of one attempt each checkpoint, and one result.
type Key = (AttemptRef, FileKind);

/// Where files are announced. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Announcer {
    announce: mpsc::Sender<(Upload, watch::Sender<Option<Delivered>>)>,
    wake: Arc<Notify>,
    pub(super) backlog: Arc<Backlog>,
}

/// What the loop listens to.
#[derive(Debug)]
pub(super) struct Inbox {
    announced: mpsc::Receiver<(Upload, watch::Sender<Option<Delivered>>)>,
    wake: Arc<Notify>,
    backlog: Arc<Backlog>,
    /// A session stands.
    pub(super) attached: Arc<Notify>,
}

impl Announcer {
    pub(super) fn new() -> (Self, Inbox) {
        let (announce, announced) = mpsc::channel(ANNOUNCED);
        let (wake, backlog) = (Arc::new(Notify::new()), Arc::new(Backlog::default()));
        let announcer = Self { announce, wake: Arc::clone(&wake), backlog: Arc::clone(&backlog) };
        (announcer, Inbox { announced, wake, backlog, attached: Arc::default() })
    }

    pub(super) fn file(
        &self,
        attempt: AttemptRef,
        kind: FileKind,
        path: PathBuf,
        whole: Pack,
        about: Option<About>,
    ) -> Delivery {
        let checkpoint = match kind {
            FileKind::Checkpoint(id) => Some(id),
            FileKind::Result => None,
        };
        let (tell, outcome) = watch::channel(None);
        let upload = Upload { attempt, checkpoint, path, whole, about, created: clock::now() };
        if self.announce.try_send((upload, tell)).is_err() {
            tracing::warn!(%attempt, "too many uploads at once; this one waits until the daemon starts again");
        }
        self.wake.notify_one();
        Delivery(outcome)
    }
}

/// One upload.
#[derive(Debug)]
struct Sending {
    upload: Upload,
    /// Those who wait for its outcome.
    waiting: Vec<watch::Sender<Option<Delivered>>>,
    file: Option<Arc<File>>,
    /// The server has said how far it is, on this connection.
    known: bool,
    /// Chunks and questions on the way, each of which is answered once.
    unanswered: u32,
    /// Sent up to here.
    sent: u64,
    /// The server has everything up to here.
    received: u64,
    /// When something was last sent.
    sent_at: Option<Instant>,
    /// The end has been sent.
    ended: bool,
}

impl Sending {
    fn new(upload: Upload) -> Self {
        Self {
            upload,
            waiting: Vec::new(),
            file: None,
            known: false,
            unanswered: 0,
            sent: 0,
            received: 0,
            sent_at: None,
            ended: false,
        }
    }

    /// A new connection: nothing is known of what was on the old one.
    fn begin_again(&mut self) {
        (self.known, self.unanswered, self.ended) = (false, 0, false);
        (self.sent, self.received, self.sent_at) = (0, 0, None);
    }

    fn key(&self) -> Key {
        key(&self.upload)
    }

    fn bytes(&self) -> u64 {
        self.upload.whole.bytes.unsigned_abs()
    }

    fn on_the_way(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// When the next chunk or question may go; `None` while an answer must come first.
    fn due(&self, now: Instant) -> Option<Instant> {
        let Some(sent_at) = self.sent_at else { return Some(now) };
        let again = if self.unanswered > 0 { sent_at + ASK_AGAIN } else { sent_at + ASK_SOON };
        if !self.known {
            return None;
        }
        if self.ended || self.on_the_way() >= WINDOW_EACH {
            return Some(again);
        }
        Some(now)
    }

    /// The next chunk, read from the file, or a question.
    async fn next_chunk(&mut self, now: Instant) -> Result<FileChunk, String> {
        let is_question = !self.known || self.ended || self.on_the_way() >= WINDOW_EACH;
        let offset = self.sent;
        let data = if is_question { Bytes::new() } else { self.read(offset).await? };
        self.sent = offset + data.len() as u64;
        let is_last = self.known && self.sent == self.bytes();
        self.ended |= is_last;
        self.sent_at = Some(now);
        self.unanswered += 1;
        Ok(FileChunk {
            attempt: self.upload.attempt,
            kind: self.key().1,
            offset,
            data,
            whole: self.upload.whole.clone(),
            last: is_last.then(|| self.upload.about.clone()),
        })
    }

    /// A piece of the file; why not is for people.
    async fn read(&mut self, offset: u64) -> Result<Bytes, String> {
        let path = self.upload.path.clone();
        let failed = |error: io::Error| format!("{}: {error}", self.upload.path.display());
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => Arc::new(blocking(move || File::open(path)).await.map_err(failed)?),
        };
        self.file = Some(Arc::clone(&file));
        let left = usize::try_from(self.bytes() - offset).unwrap_or(usize::MAX);
        let mut data = vec![0; left.min(MAX_CHUNK_BYTES)];
        let read = blocking(move || read_full(&file, &mut data, offset).map(|read| (read, data))).await;
        let (read, data) = read.map_err(|error| format!("{}: {error}", self.upload.path.display()))?;
        if read < data.len() {
            return Err(format!("{} is shorter than it was", self.upload.path.display()));
        }
        Ok(data.into())
    }

    /// The server has said how far it is.
    fn answered(&mut self, receipt: &FileReceipt) {
        self.unanswered = self.unanswered.saturating_sub(1);
        self.received = receipt.received.min(self.bytes());
        let is_first = !self.known;
        self.known = true;
        // With nothing more on the way, what it does not have by now it has lost, or thrown away.
        if is_first || (self.unanswered == 0 && self.received < self.sent) {
            self.sent = self.received;
            self.ended = false;
        }
    }
}

fn key(upload: &Upload) -> Key {
    (upload.attempt, upload.checkpoint.map_or(FileKind::Result, FileKind::Checkpoint))
}

/// Runs for ever.
pub(super) async fn run(context: Arc<Context>, inbox: Inbox) {
    let mut uploader = Uploader { context, inbox, uploads: BTreeMap::new() };
    uploader.remember().await;
    uploader.run().await;
}

struct Uploader {
    context: Arc<Context>,
    inbox: Inbox,
    uploads: BTreeMap<Key, Sending>,
}

impl Uploader {
    /// Goes on with what the last daemon left.
    async fn remember(&mut self) {
        let mut backoff = self.backoff();
        loop {
            match self.context.journal.uploads_pending().await {
                Ok(pending) => {
                    self.uploads.extend(pending.into_iter().map(|upload| (key(&upload), Sending::new(upload))));
                    return;
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "the journal cannot be read; uploads wait");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    fn backoff(&self) -> Backoff {
        let times = self.context.config.times;
        Backoff::new(times.reconnect_first, times.reconnect_limit)
    }

    async fn run(mut self) {
        let mut backoff = self.backoff();
        loop {
            self.take_announced().await;
            if self.uploads.is_empty() {
                self.inbox.wake.notified().await;
                continue;
            }
            self.uploads.values_mut().for_each(Sending::begin_again);
            let mut answered = false;
            match self.connection(&mut answered).await {
                Ok(()) => continue,
                Err(error) => tracing::info!(%error, "uploading files has been interrupted; it goes on where it was"),
            }
            if answered {
                backoff.reset();
            }
            // A session that stands again is as good as the time.
            let _ = tokio::time::timeout(backoff.next_delay(), self.inbox.attached.notified()).await;
        }
    }

    /// Takes what was announced, into the journal first.
    async fn take_announced(&mut self) {
        while let Ok((upload, waiting)) = self.inbox.announced.try_recv() {
            let known = self.uploads.get(&key(&upload)).is_some_and(|sending| sending.upload.whole == upload.whole);
            if !known && let Err(error) = self.context.journal.upload_add(upload.clone()).await {
                // It is sent all the same: only a restart in between would forget it, and its maker knows that.
                tracing::error!(attempt = %upload.attempt, error = chain(&error), "the journal cannot be written");
            }
            let sending = self.uploads.entry(key(&upload)).or_insert_with(|| Sending::new(upload.clone()));
            if sending.upload.whole != upload.whole {
                let others = std::mem::take(&mut sending.waiting);
                *sending = Sending { waiting: others, ..Sending::new(upload) };
            }
            sending.waiting.push(waiting);
        }
        let left = self.uploads.values().map(|sending| sending.bytes().saturating_sub(sending.received)).sum();
        self.inbox.backlog.set(self.uploads.len(), left);
    }

    /// One connection, until there has been nothing to send for a while (`Ok`), or it breaks.
    async fn connection(&mut self, answered: &mut bool) -> Result<(), Error> {
        let (chunks, queued) = mpsc::channel::<pb::UploadChunksRequest>(QUEUE);
        let context = Arc::clone(&self.context);
        let mut client = link::connect(&context.config).await?;
        // The server may answer only when the first chunk has come.
        let response = client.upload_chunks(link::authorized(&context.config, ReceiverStream::new(queued)));
        tokio::pin!(response);
        let mut receipts: Option<tonic::Streaming<pb::UploadChunksResponse>> = None;
        let mut quiet_since = Instant::now();
        loop {
            self.take_announced().await;
            let now = Instant::now();
            let next = self.next_turn(now);
            let waiting = self.uploads.values().any(|sending| sending.unanswered > 0);
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
                    let receipt = FileReceipt::try_from(&receipt).map_err(|e| Error::Invalid(e.to_string()))?;
                    self.answered(&receipt).await;
                }
                permit = chunks.reserve(), if next.is_some_and(|(_, due)| due <= now) => {
                    let permit = permit.map_err(|_| Error::Ended)?;
                    if let Some((key, _)) = next && let Some(chunk) = self.next_chunk(key, now).await {
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

    /// Whose turn it is, and when: of those that are due, the one with the least left; else the one that is due first.
    fn next_turn(&self, now: Instant) -> Option<(Key, Instant)> {
        let on_the_way: u64 = self.uploads.values().map(Sending::on_the_way).sum();
        let due = || self.uploads.values().filter_map(|sending| Some((sending, sending.due(now)?)));
        let ready = due().filter(|(_, due)| *due <= now && on_the_way < WINDOW);
        let least = ready.min_by_key(|(sending, _)| sending.bytes() - sending.received);
        let next = least.or_else(|| due().filter(|(_, due)| *due > now).min_by_key(|(_, due)| *due));
        next.map(|(sending, due)| (sending.key(), due))
    }

    async fn next_chunk(&mut self, key: Key, now: Instant) -> Option<FileChunk> {
        let sending = self.uploads.get_mut(&key)?;
        match sending.next_chunk(now).await {
            Ok(chunk) => Some(chunk),
            Err(why) => {
                tracing::error!(attempt = %key.0, kind = ?key.1, why, "a file cannot be read; its upload is given up");
                self.settle(key, Delivered::Refused(why)).await;
                None
            }
        }
    }

    async fn answered(&mut self, receipt: &FileReceipt) {
        let key = (receipt.attempt, receipt.kind);
        let Some(sending) = self.uploads.get_mut(&key) else { return };
        if let Some(why) = &receipt.refused {
            tracing::warn!(attempt = %key.0, kind = ?key.1, why, "the server does not want a file");
            self.settle(key, Delivered::Refused(why.clone())).await;
        } else if receipt.complete {
            self.settle(key, Delivered::Stored).await;
        } else {
            sending.answered(receipt);
        }
    }

    async fn settle(&mut self, key: Key, how: Delivered) {
        let Some(sending) = self.uploads.remove(&key) else { return };
        let settled = match &how {
            Delivered::Refused(why) => Settled::GivenUp(why.clone()),
            Delivered::Stored | Delivered::Left => Settled::Stored,
        };
        let Upload { attempt, checkpoint, .. } = sending.upload;
        if let Err(error) = self.context.journal.upload_settled(attempt, checkpoint, settled, clock::now()).await {
            // It is asked about again after the next start, and the server says the same again.
            tracing::warn!(%attempt, error = chain(&error), "the journal cannot be written");
        }
        for waiting in sending.waiting {
            waiting.send_replace(Some(how.clone()));
        }
    }
}

#[cfg(test)]
mod tests;

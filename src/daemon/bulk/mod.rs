//! Brings what attempts make to the server, and what they go on from to them, on connections of their own, so that bulk
//! never delays control.
//!
//! ```text
//!   runner ─ open, grown, finish ─> output ─ chunks, in turns ───────────> server
//!          ─ file ────────────────> files ── chunks, the shortest first ─> server
//!                 <── stored, or refused ──┘       (the journal remembers them until then)
//!          ─ download ────────────────────────── from where it was <────── server
//! ```
//!
//! Output and files do not wait for each other: each has a connection with windows of its own, so a file of a gigabyte takes
//! at most the half of a line from the output that somebody reads while it is written.

mod download;
mod files;
mod mask;
mod output;

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Context, session::link};
use crate::domain::{AttemptRef, attempt::Pack, checkpoint::About};
pub use crate::wire::checkpoint::FileKind;
pub use download::{Error as DownloadError, download};
pub use files::{Delivered, Delivery};
pub use output::Output;

/// Bytes on the way of all uploads of one connection: enough to fill a fast line with a tenth of a second of delay.
const WINDOW: u64 = 4 * 1024 * 1024;
/// Bytes on the way of one upload, so that one that is far behind leaves room for the others.
const WINDOW_EACH: u64 = 2 * 1024 * 1024;
/// Chunks between us and the connection: what is in there is read from the disk already.
const QUEUE: usize = 4;
/// How long a connection with nothing to send is kept.
const IDLE: Duration = Duration::from_secs(60);
/// How long to wait for the word that the whole is durable before asking again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How long a server that says nothing while chunks are on the way is waited for.
const SILENCE: Duration = Duration::from_secs(45);

/// Where uploads are announced. Clones share it.
#[derive(Clone, Debug)]
pub struct Bulk {
    output: output::Announcer,
    files: files::Announcer,
}

/// What the server does not have yet, as a loop last saw it.
#[derive(Debug, Default)]
struct Backlog {
    uploads: AtomicU64,
    bytes: AtomicU64,
}

impl Backlog {
    fn set(&self, uploads: usize, bytes: u64) {
        self.uploads.store(uploads as u64, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64) {
        (self.uploads.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// What the loops listen to.
#[derive(Debug)]
pub struct Inbox {
    output: output::Inbox,
    files: files::Inbox,
}

impl Bulk {
    /// The handle, and what its loops take.
    pub fn new() -> (Self, Inbox) {
        let (output, output_inbox) = output::Announcer::new();
        let (files, files_inbox) = files::Announcer::new();
        (Self { output, files }, Inbox { output: output_inbox, files: files_inbox })
    }

    /// Uploads of output that are not over, and bytes of them that the server has not said to have.
    pub fn backlog(&self) -> (u64, u64) {
        let (output, files) = (self.output.backlog.get(), self.files.backlog.get());
        (output.0 + files.0, output.1 + files.1)
    }

    /// Announces the output of an attempt. What is secret in it is masked on the way.
    pub fn open(&self, attempt: AttemptRef, path: PathBuf, secrets: &[&str]) -> Output {
        self.output.open(attempt, path, secrets)
    }

    /// Brings a file to the server: a checkpoint, with what it is, or the pack of the attempt's result. It is in the journal
    /// before it is sent, and is brought there however often daemon and server start anew. The same file again is the same
    /// upload. The file stays where it is until its maker removes it, which is after [`Delivery`] has an answer.
    ///
    /// A result is announced to the journal in the transaction that reports it (`journal::Change::uploads`): between the two
    /// this process may die.
    pub fn file(
        &self,
        attempt: AttemptRef,
        kind: FileKind,
        path: PathBuf,
        whole: Pack,
        about: Option<About>,
    ) -> Delivery {
        self.files.file(attempt, kind, path, whole, about)
    }
}

/// Runs until the daemon stops.
pub(super) async fn run(context: Arc<Context>, inbox: Inbox) {
    let soft = context.shutdown.soft.clone();
    let (output, files) = (Arc::clone(&inbox.output.attached), Arc::clone(&inbox.files.attached));
    let attached = async {
        loop {
            context.attached.notified().await;
            output.notify_one();
            files.notify_one();
        }
    };
    tokio::select! {
        () = soft.cancelled() => {}
        () = output::run(Arc::clone(&context), inbox.output) => {}
        () = files::run(Arc::clone(&context), inbox.files) => {}
        () = attached => {}
    }
}

fn read_full(file: &File, data: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < data.len() {
        match file.read_at(&mut data[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// It could not be made.
    #[error(transparent)]
    Connect(#[from] link::Error),
    /// The server ended it.
    #[error("{}: {}", .0.code(), .0.message())]
    Status(tonic::Status),
    /// The server ended it without a word.
    #[error("the server ended the upload")]
    Ended,
    /// The server says nothing.
    #[error("the server has not answered for {} s", SILENCE.as_secs())]
    Silent,
    /// The server says what makes no sense.
    #[error("the server's answer makes no sense: {0}")]
    Invalid(String),
}

//! Checkpoints and results on their way from daemons: files that arrive in pieces and count when they are whole.
//!
//! ```text
//!   daemon ──take──> staged file (<state>/uploads) ──finish──> blob (durable, hashed on the way) ──> row ──> ledger ──> complete
//!               <─ how far                          wrong: thrown away, sent again, at most MAX_DAMAGED times
//! ```
//!
//! Promises: what was answered complete survives power loss and is known to the ledger. An upload that breaks off, here or
//! there, goes on where it was: what a server has staged is found by the next one. Nothing of a file is held in memory but
//! the piece at hand. What is staged is never more than [`STAGED_BYTES`], and goes after a day without a new piece.
//!
//! A file is named by its attempt, what it is, and its SHA-256: two files never mix, whoever sends them at the same time.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::{OwnedMutexGuard, Semaphore};

use super::{
    api_error,
    blobs::{self, Blobs, STRAY_AGE, blocking, modified},
    ledger::{self, Ledger, Op},
};
use crate::{
    domain::{
        AttemptRef, CheckpointId, ContractId, DaemonId, OwnerId, Timestamp,
        attempt::Pack,
        checkpoint::{About, Checkpoint, Link},
    },
    runtime::clock,
    store::{self, Blob, BlobKind, Store},
    wire::{
        checkpoint::{FileChunk, FileKind, FileReceipt},
        status::{ApiError, ApiResult, Reason},
    },
};

/// Bytes of a staged file after which it is synced: what losing power makes a daemon send again.
const SYNC_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes of all staged files together. A fleet's checkpoints are a few MiB each; this is for results that are not.
pub const STAGED_BYTES: u64 = 64 * 1024 * 1024 * 1024;
/// Times a file may arrive and not be what it should be, before it is refused: what is damaged on the way is not damaged
/// again and again, what is damaged at its source is.
const MAX_DAMAGED: u32 = 3;
/// Files that become blobs at the same time: each has a piece in memory, and they share one disk.
const FINISHERS: usize = 4;
/// Files that are remembered. Beyond it those that nobody sends just now are forgotten; the disk still knows them.
const MAX_REMEMBERED: usize = 10_000;

/// All files on their way; clones share it.
#[derive(Clone, Debug)]
pub struct Uploads(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    store: Store,
    blobs: Blobs,
    ledger: Ledger,
    files: Mutex<HashMap<Key, Arc<Entry>>>,
    /// Bytes in all staged files.
    staged: AtomicU64,
    finishers: Semaphore,
}

/// Which file: attempt, what it is, digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    attempt: AttemptRef,
    kind: FileKind,
    sha256: String,
}

impl Key {
    fn file(&self) -> String {
        let attempt = self.attempt.id.0.simple();
        match self.kind {
            FileKind::Checkpoint(id) => format!("{attempt}-{}-{}", id.0.simple(), self.sha256),
            FileKind::Result => format!("{attempt}-result-{}", self.sha256),
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// All of it is here, and it is becoming a blob.
    finishing: AtomicBool,
    staged: Arc<tokio::sync::Mutex<Staged>>,
}

/// A staged file.
#[derive(Debug)]
struct Staged {
    path: PathBuf,
    /// Its length is known.
    opened: bool,
    /// Bytes in it.
    length: u64,
    /// Bytes of it that survive losing power.
    synced: u64,
    /// Times it was not what it should be.
    damaged: u32,
    /// It is stored, and counts.
    done: bool,
}

/// What became of a piece.
#[derive(Debug)]
pub enum Taken {
    /// How far the server is, and how far durably.
    Receipt(FileReceipt, u64),
    /// All of it is here: [`Uploads::finish`] makes it count, beside whatever else arrives.
    Whole(Box<Whole>),
}

/// A file that is here whole.
#[derive(Debug)]
pub struct Whole {
    key: Key,
    owner: OwnerId,
    bytes: i64,
    about: Option<About>,
    entry: Arc<Entry>,
    staged: OwnedMutexGuard<Staged>,
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.entry.finishing.store(false, Ordering::Release);
    }
}

impl Uploads {
    /// Uploads staged in a directory, which is made if it is not there.
    pub fn open(directory: &Path, store: Store, blobs: Blobs, ledger: Ledger) -> Result<Self, blobs::Error> {
        let failed = |source| blobs::Error::Directory { path: directory.display().to_string(), source };
        fs::create_dir_all(directory).map_err(failed)?;
        let mut staged = 0;
        for entry in fs::read_dir(directory).map_err(failed)? {
            staged += entry.and_then(|entry| entry.metadata()).map_err(failed)?.len();
        }
        Ok(Self(Arc::new(Inner {
            directory: directory.to_owned(),
            store,
            blobs,
            ledger,
            files: Mutex::default(),
            staged: AtomicU64::new(staged),
            finishers: Semaphore::new(FINISHERS),
        })))
    }

    // === taking ===

    /// Takes a piece of a file of an attempt of this owner.
    pub async fn take(&self, owner: OwnerId, chunk: FileChunk) -> ApiResult<Taken> {
        let key = Key { attempt: chunk.attempt, kind: chunk.kind, sha256: chunk.whole.sha256.clone() };
        let total = chunk.whole.bytes.unsigned_abs();
        let entry = self.entry(&key);
        if entry.finishing.load(Ordering::Acquire) {
            // Asked while it becomes a blob, which may take a while.
            return Ok(receipt(&key, total, 0));
        }
        let mut staged = Arc::clone(&entry.staged).lock_owned().await;
        if staged.done {
            return Ok(complete(&key, total));
        }
        if !staged.opened {
            match self.known(owner, &key).await? {
                Known::Stored => {
                    self.forget(&key);
                    return Ok(complete(&key, total));
                }
                Known::Waits => {
                    self.forget(&key);
                    return Ok(receipt(&key, total, total));
                }
                Known::Elsewhere => return Ok(refused(&key, "another attempt has a checkpoint of this id")),
                Known::No => {}
            }
            self.look(&mut staged).await?;
        }
        let end = chunk.offset.saturating_add(chunk.data.len() as u64);
        if end > total || staged.length > total {
            self.discard(&mut staged).await;
            self.forget(&key);
            return Ok(refused(&key, &format!("it was said to have {total} bytes, and has more")));
        }
        if chunk.offset <= staged.length && end > staged.length {
            let known = usize::try_from(staged.length - chunk.offset).unwrap_or(usize::MAX);
            self.append(&mut staged, chunk.data.slice(known..)).await?;
        }
        if let Some(about) = chunk.last
            && staged.length == total
            && end == total
        {
            entry.finishing.store(true, Ordering::Release);
            let whole = Whole { key, owner, bytes: chunk.whole.bytes, about, entry, staged };
            return Ok(Taken::Whole(Box::new(whole)));
        }
        Ok(receipt(&key, staged.length, staged.synced))
    }

    fn entry(&self, key: &Key) -> Arc<Entry> {
        let mut files = lock(&self.0.files);
        if files.len() >= MAX_REMEMBERED {
            files.retain(|_, entry| Arc::strong_count(entry) > 1);
        }
        let made = || {
            let path = self.0.directory.join(key.file());
            let staged = Staged { path, opened: false, length: 0, synced: 0, damaged: 0, done: false };
            Arc::new(Entry { finishing: AtomicBool::new(false), staged: Arc::new(tokio::sync::Mutex::new(staged)) })
        };
        Arc::clone(files.entry(key.clone()).or_insert_with(made))
    }

    fn forget(&self, key: &Key) {
        lock(&self.0.files).remove(key);
    }

    /// Whether it was stored before.
    async fn known(&self, owner: OwnerId, key: &Key) -> ApiResult<Known> {
        let mut tx = self.0.store.read().await.map_err(store_error)?;
        match key.kind {
            FileKind::Checkpoint(id) => {
                let found = tx.checkpoints_fetch(&[id]).await.map_err(store_error)?;
                Ok(match found.first() {
                    Some(found) if found.owner == owner && found.attempt == key.attempt => Known::Stored,
                    Some(_) => Known::Elsewhere,
                    None => Known::No,
                })
            }
            FileKind::Result => {
                let name = Blobs::result_name(owner, key.attempt.id, &key.sha256);
                let found = tx.blob_fetch(&name).await.map_err(store_error)?;
                drop(tx);
                if found.is_none() {
                    return Ok(Known::No);
                }
                // Its writer may have died before it told the ledger; telling it twice is harmless.
                match self.tell(Op::ResultStored { attempt: key.attempt, blob: name }).await {
                    Ok(()) => Ok(Known::Stored),
                    Err(ledger::Error::Precondition(_)) => Ok(Known::Waits),
                    Err(error) => Err(api_error(error)),
                }
            }
        }
    }

    /// How much of it an earlier server, or this one, has staged.
    async fn look(&self, staged: &mut Staged) -> ApiResult<()> {
        let path = staged.path.clone();
        let length = blocking(move || match fs::metadata(&path) {
            Ok(meta) => {
                // It goes on from here, and will be told so: what the last one left in memory must survive as well.
                fs::File::open(&path)?.sync_all()?;
                Ok(meta.len())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        });
        let length = length.await.map_err(disk_error)?;
        (staged.opened, staged.length, staged.synced) = (true, length, length);
        Ok(())
    }

    async fn append(&self, staged: &mut Staged, data: Bytes) -> ApiResult<()> {
        let bytes = data.len() as u64;
        if self.0.staged.load(Ordering::Relaxed) + bytes > STAGED_BYTES {
            let text = format!("{} GiB are on their way here already; try again", STAGED_BYTES >> 30);
            return Err(ApiError::new(Reason::Overloaded, text));
        }
        let (path, at) = (staged.path.clone(), staged.length);
        let sync = at + bytes - staged.synced >= SYNC_BYTES;
        let written = blocking(move || {
            let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            let written = file.write_all_at(&data, at).and_then(|()| if sync { file.sync_data() } else { Ok(()) });
            if written.is_err() {
                // Half a piece is none; if this fails too the next one is written over it.
                let _ = file.set_len(at);
            }
            written
        });
        written.await.map_err(disk_error)?;
        staged.length += bytes;
        if sync {
            staged.synced = staged.length;
        }
        self.0.staged.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Removes the staged file.
    async fn discard(&self, staged: &mut Staged) {
        let path = staged.path.clone();
        if let Err(error) = blocking(move || remove(&path)).await {
            // It goes with what is stale, and whatever comes is written over it.
            tracing::warn!(%error, "a staged upload cannot be removed");
        }
        self.unstaged(staged.length);
        (staged.length, staged.synced) = (0, 0);
    }

    fn unstaged(&self, bytes: u64) {
        let less = |staged: u64| Some(staged.saturating_sub(bytes));
        // It always has an answer.
        let _ = self.0.staged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    // === finishing ===

    /// Checks a file that is here whole, makes it durable, and then tells the ledger. What fails leaves it staged: asked
    /// again with its last piece, it is tried again.
    pub async fn finish(&self, mut whole: Box<Whole>) -> ApiResult<FileReceipt> {
        let (key, owner) = (whole.key.clone(), whole.owner);
        let total = whole.bytes.unsigned_abs();
        // It is never closed.
        let _permit = self.0.finishers.acquire().await.map_err(ApiError::internal)?;
        let name = match key.kind {
            FileKind::Checkpoint(id) => Blobs::checkpoint_name(owner, key.attempt.id, id),
            FileKind::Result => Blobs::result_name(owner, key.attempt.id, &key.sha256),
        };
        let pack = Pack { bytes: whole.bytes, sha256: key.sha256.clone() };
        let path = whole.staged.path.clone();
        if !self.0.blobs.put_file(&name, &path, &pack).await.map_err(ApiError::unavailable)? {
            self.discard(&mut whole.staged).await;
            whole.staged.damaged += 1;
            let times = whole.staged.damaged;
            tracing::warn!(attempt = %key.attempt, times, "an upload is not what its SHA-256 says; it is thrown away");
            if times < MAX_DAMAGED {
                return Ok(receipt_of(&key, 0));
            }
            self.forget(&key);
            return Ok(refusal(&key, &format!("it came {times} times and was never what its SHA-256 says")));
        }
        self.write_row(&key, owner, &name, whole.bytes).await.map_err(store_error)?;
        let op = match key.kind {
            FileKind::Checkpoint(id) => {
                Op::CheckpointStored(Box::new(checkpoint(&key, owner, id, &name, &pack, whole.about.take())))
            }
            FileKind::Result => Op::ResultStored { attempt: key.attempt, blob: name.clone() },
        };
        match self.tell(op).await {
            Ok(()) => {}
            // Its daemon was given up while it came, and may have the task yet. It stays, and does not count before the
            // daemon has attached and said again what it made: refused, the result would be lost with the only copy.
            Err(ledger::Error::Precondition(_)) if key.kind == FileKind::Result => {
                self.discard(&mut whole.staged).await;
                whole.staged.opened = false;
                self.forget(&key);
                return Ok(receipt_of(&key, total));
            }
            Err(error @ (ledger::Error::NotFound { .. } | ledger::Error::Precondition(_))) => {
                self.take_back(&name).await;
                self.discard(&mut whole.staged).await;
                self.forget(&key);
                return Ok(refusal(&key, &error.to_string()));
            }
            Err(error) => return Err(api_error(error)),
        }
        self.discard(&mut whole.staged).await;
        whole.staged.done = true;
        self.forget(&key);
        Ok(FileReceipt { complete: true, ..receipt_of(&key, total) })
    }

    async fn write_row(&self, key: &Key, owner: OwnerId, name: &str, bytes: i64) -> Result<(), store::Error> {
        let kind = match key.kind {
            FileKind::Checkpoint(_) => BlobKind::Checkpoint,
            FileKind::Result => BlobKind::Result,
        };
        let blob = Blob {
            name: name.to_owned(),
            owner,
            attempt: key.attempt.id,
            kind,
            start: 0,
            length: bytes,
            gap: false,
            is_final: true,
            created: clock::now(),
        };
        let mut tx = self.0.store.begin().await?;
        tx.blobs_put(&[blob]).await?;
        tx.commit().await
    }

    async fn tell(&self, op: Op) -> Result<(), ledger::Error> {
        self.0.ledger.server(op).await.map(|_| ())
    }

    /// The ledger does not want it: row first, then blob.
    async fn take_back(&self, name: &str) {
        let forgotten = async {
            let mut tx = self.0.store.begin().await?;
            tx.blobs_delete(&[name.to_owned()]).await?;
            tx.commit().await?;
            self.0.blobs.delete(name).await
        };
        if let Err(error) = forgotten.await {
            // It goes with the task's other checkpoints.
            tracing::warn!(error = ledger::chain(&error), "a refused upload was not deleted");
        }
    }

    // === forgetting ===

    /// Removes staged files that have not grown for [`STRAY_AGE`]: their daemons are gone. Answers how many.
    pub async fn sweep_stale(&self, now: Timestamp) -> io::Result<usize> {
        let (directory, old) = (self.0.directory.clone(), now.before(STRAY_AGE).0);
        let stale = blocking(move || {
            let mut stale = Vec::new();
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                let meta = entry.metadata()?;
                if modified(&meta) < old {
                    stale.push((entry.path(), meta.len()));
                }
            }
            Ok(stale)
        });
        let mut swept = 0;
        for (path, bytes) in stale.await? {
            if self.is_in_hand(&path) {
                continue;
            }
            let removing = path.clone();
            blocking(move || remove(&removing)).await?;
            self.unstaged(bytes);
            swept += 1;
        }
        Ok(swept)
    }

    /// Somebody is at it just now; else it is forgotten, and looked at again when it comes again.
    fn is_in_hand(&self, path: &Path) -> bool {
        let mut files = lock(&self.0.files);
        let of_path = |key: &Key| path.file_name().is_some_and(|name| name.to_string_lossy() == key.file());
        let Some(key) = files.keys().find(|key| of_path(key)).cloned() else { return false };
        if files.get(&key).is_some_and(|entry| Arc::strong_count(entry) > 1) {
            return true;
        }
        files.remove(&key);
        false
    }
}

/// What is known of a file before its first piece.
enum Known {
    /// It is stored, and counts.
    Stored,
    /// It is stored, and counts once its daemon has attached: until then it asks again.
    Waits,
    /// Its id is another's.
    Elsewhere,
    /// Nothing.
    No,
}

fn checkpoint(
    key: &Key,
    owner: OwnerId,
    id: CheckpointId,
    name: &str,
    whole: &Pack,
    about: Option<About>,
) -> Checkpoint {
    Checkpoint {
        id,
        attempt: key.attempt,
        // Contract, daemon and the rest of the chain are the ledger's to fill in.
        contract: ContractId(uuid::Uuid::nil()),
        owner,
        daemon: DaemonId(uuid::Uuid::nil()),
        chain: vec![Link { id, blob: name.to_owned(), bytes: whole.bytes, sha256: whole.sha256.clone() }],
        about: about.unwrap_or_default(),
        orphan: false,
        stored: clock::now(),
    }
}

fn receipt_of(key: &Key, received: u64) -> FileReceipt {
    FileReceipt { attempt: key.attempt, kind: key.kind, received, complete: false, refused: None }
}

fn receipt(key: &Key, received: u64, synced: u64) -> Taken {
    Taken::Receipt(receipt_of(key, received), synced)
}

fn complete(key: &Key, total: u64) -> Taken {
    Taken::Receipt(FileReceipt { complete: true, ..receipt_of(key, total) }, total)
}

fn refusal(key: &Key, why: &str) -> FileReceipt {
    FileReceipt { refused: Some(why.to_owned()), ..receipt_of(key, 0) }
}

fn refused(key: &Key, why: &str) -> Taken {
    Taken::Receipt(refusal(key, why), 0)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn store_error(error: store::Error) -> ApiError {
    match error {
        store::Error::Unavailable { .. } => ApiError::unavailable(error),
        other => ApiError::internal(other),
    }
}

/// A full disk, mostly: nothing is lost, and room may come.
fn disk_error(error: io::Error) -> ApiError {
    ApiError::unavailable(error)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

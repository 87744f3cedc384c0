//! The object store: what is too big for a table. A directory below the server's state by default.
//!
//! Promises: when [`Blobs::put`] has answered, the blob survives power loss (file and directory are synced; the default of
//! `object_store` does not). A name is never shared by content, so deleting one blob never breaks another. The row that
//! names a blob is written after it is durable and deleted before it, so what no row names is a stray, and goes after a day.
//! The same goes for what a write that was cut off has left: it has no name yet that anybody could read it by.

use std::{
    fs, io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path as FilePath,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use object_store::{
    MultipartUpload as _, ObjectStore, ObjectStoreExt as _, PutPayload, local::LocalFileSystem, path::Path,
};
use sha2::{Digest as _, Sha256};
use tokio_stream::StreamExt as _;

use crate::{
    domain::{AttemptId, CheckpointId, OwnerId, Timestamp, attempt::Pack, text},
    store::{self, BlobKind, Store},
};

/// How old a blob without a row must be to be a stray rather than on its way to its row.
pub const STRAY_AGE: Duration = Duration::from_secs(24 * 3600);
/// Blobs looked up or forgotten in one transaction.
const PORTION: usize = 500;
/// Bytes of a file that are in memory while it becomes a blob. Object stores over the network want parts of 5 MiB at least.
const PART_BYTES: usize = 8 * 1024 * 1024;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be made.
    #[error("prepare the blob directory {path}")]
    Directory {
        /// Which.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The object store did not do it.
    #[error("{operation} blob {name}")]
    Operation {
        /// What was asked.
        operation: &'static str,
        /// Of which blob.
        name: String,
        /// Its word.
        source: object_store::Error,
    },
    /// A file that is to become a blob cannot be read.
    #[error("read a staged file for blob {name}")]
    Staged {
        /// Which blob.
        name: String,
        /// The system's word.
        source: io::Error,
    },
    /// The rows of blobs cannot be read or written.
    #[error("keep the rows of blobs")]
    Rows {
        /// The store's word.
        #[from]
        source: store::Error,
    },
}

impl Error {
    /// There is no such blob.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Operation { source: object_store::Error::NotFound { .. }, .. })
    }
}

/// A handle to the object store; clones share it.
#[derive(Clone, Debug)]
pub struct Blobs {
    objects: Arc<dyn ObjectStore>,
    directory: Arc<FilePath>,
}

impl Blobs {
    /// The blobs in a directory, which is made if it is not there.
    pub fn open(directory: &FilePath) -> Result<Self, Error> {
        let path = || directory.display().to_string();
        std::fs::create_dir_all(directory).map_err(|source| Error::Directory { path: path(), source })?;
        let store = LocalFileSystem::new_with_prefix(directory)
            .map_err(|source| Error::Operation { operation: "open", name: path(), source })?
            .with_fsync(true)
            // Attempts' directories go with their last blob.
            .with_automatic_cleanup(true);
        Ok(Self { objects: Arc::new(store), directory: directory.into() })
    }

    /// The name of a blob: by owner, attempt and kind, then by what it holds.
    pub fn name(owner: OwnerId, attempt: AttemptId, kind: BlobKind, start: i64, length: usize) -> String {
        format!("{}/{}/{}/{start:016}-{length}", owner.0.simple(), attempt.0.simple(), kind.word())
    }

    /// The name of a checkpoint's blob.
    pub fn checkpoint_name(owner: OwnerId, attempt: AttemptId, checkpoint: CheckpointId) -> String {
        format!("{}/{}/checkpoint/{}", owner.0.simple(), attempt.0.simple(), checkpoint.0.simple())
    }

    /// The name of the blob of a result's pack; the digest is in it, so that whether the server has *this* pack is a question
    /// of the name.
    pub fn result_name(owner: OwnerId, attempt: AttemptId, sha256: &str) -> String {
        format!("{}/{}/result/{sha256}", owner.0.simple(), attempt.0.simple())
    }

    /// Makes a blob durable; one of the same name is replaced whole.
    pub async fn put(&self, name: &str, data: Bytes) -> Result<(), Error> {
        let result = self.objects.put(&Path::from(name), PutPayload::from_bytes(data)).await;
        result.map(|_| ()).map_err(|source| Error::Operation { operation: "write", name: name.to_owned(), source })
    }

    /// Makes a file durable as a blob, a piece at a time, if it is what it should be. `false`: it is not, and there is no
    /// blob.
    pub async fn put_file(&self, name: &str, file: &FilePath, whole: &Pack) -> Result<bool, Error> {
        let failed = |source| Error::Operation { operation: "write", name: name.to_owned(), source };
        let unread = |source| Error::Staged { name: name.to_owned(), source };
        let path = file.to_owned();
        let file = Arc::new(blocking(move || fs::File::open(path)).await.map_err(unread)?);
        let mut upload = self.objects.put_multipart(&Path::from(name)).await.map_err(failed)?;
        let (mut hash, mut at) = (Sha256::new(), 0_u64);
        let written = loop {
            let (reading, so_far) = (Arc::clone(&file), hash.clone());
            let read = blocking(move || {
                let part = read_part(&reading, at)?;
                let mut hash = so_far;
                hash.update(&part);
                Ok((part, hash))
            });
            let part = match read.await {
                Ok((part, so_far)) => {
                    hash = so_far;
                    part
                }
                Err(source) => break Err(unread(source)),
            };
            if part.is_empty() {
                break Ok(());
            }
            at += part.len() as u64;
            if let Err(source) = upload.put_part(PutPayload::from_bytes(part)).await {
                break Err(failed(source));
            }
        };
        let is_right = i64::try_from(at) == Ok(whole.bytes) && text::hex(&hash.finalize()) == whole.sha256;
        if written.is_ok() && is_right {
            upload.complete().await.map_err(failed)?;
            return Ok(true);
        }
        // What it leaves if this fails goes with what writes leave that were cut off.
        let _ = upload.abort().await;
        written.map(|()| false)
    }

    /// Bytes of a blob.
    pub async fn read(&self, name: &str, range: Range<u64>) -> Result<Bytes, Error> {
        let result = self.objects.get_range(&Path::from(name), range).await;
        result.map_err(|source| Error::Operation { operation: "read", name: name.to_owned(), source })
    }

    /// Deletes a blob. That it is not there is what was wanted.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        match self.objects.delete(&Path::from(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(Error::Operation { operation: "delete", name: name.to_owned(), source }),
        }
    }

    /// Forgets and deletes blobs made before a time, a portion of them: rows first. Answers whether there are more.
    pub async fn expire(&self, store: &Store, before: Timestamp) -> Result<bool, Error> {
        let mut tx = store.read().await?;
        let expired = tx.blobs_expired(before, PORTION as i64).await?;
        tx.rollback().await?;
        let names: Vec<String> = expired.into_iter().map(|blob| blob.name).collect();
        if names.is_empty() {
            return Ok(false);
        }
        let mut tx = store.begin().await?;
        tx.blobs_delete(&names).await?;
        tx.commit().await?;
        for name in &names {
            self.delete(name).await?;
        }
        Ok(names.len() == PORTION)
    }

    /// Deletes blobs that no row names and that are older than [`STRAY_AGE`]: their writer died in between. Answers how many.
    pub async fn sweep_strays(&self, store: &Store, now: Timestamp) -> Result<usize, Error> {
        let old = now.before(STRAY_AGE).0;
        let directory = Arc::clone(&self.directory);
        blocking(move || {
            remove_unfinished(&directory, old);
            Ok(())
        })
        .await
        .ok();
        let mut listing = self.objects.list(None);
        let mut portion = Vec::new();
        let mut swept = 0;
        loop {
            let item = listing.next().await;
            let is_end = item.is_none();
            match item {
                Some(Ok(meta)) if meta.last_modified.timestamp_micros() < old => {
                    portion.push(meta.location.to_string());
                }
                Some(Err(source)) => {
                    return Err(Error::Operation { operation: "list", name: String::new(), source });
                }
                Some(Ok(_)) | None => {}
            }
            if portion.len() == PORTION || (is_end && !portion.is_empty()) {
                let mut tx = store.read().await?;
                let known = tx.blobs_known(&portion).await?;
                tx.rollback().await?;
                let known: std::collections::HashSet<_> = known.into_iter().collect();
                for name in portion.drain(..).filter(|name| !known.contains(name)) {
                    self.delete(&name).await?;
                    swept += 1;
                }
            }
            if is_end {
                return Ok(swept);
            }
        }
    }
}

/// The next piece of a file; empty at its end.
fn read_part(file: &fs::File, at: u64) -> io::Result<Bytes> {
    let mut part = vec![0; PART_BYTES];
    let mut read = 0;
    while read < part.len() {
        match file.read_at(&mut part[read..], at + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    part.truncate(read);
    Ok(part.into())
}

/// Removes what writes have left that were cut off before `old`: the store gives them names (`<name>#<n>`) that it does not
/// list. What cannot be removed now can be in an hour.
fn remove_unfinished(directory: &FilePath, old: i64) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            remove_unfinished(&path, old);
        } else if is_unfinished(&name.to_string_lossy())
            && modified(&meta) < old
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "what a write has left cannot be removed");
        }
    }
}

fn is_unfinished(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
}

/// When a file was last written, in microseconds since the epoch.
pub(super) fn modified(meta: &fs::Metadata) -> i64 {
    let since = meta.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Runs what waits for the disk away from the threads that must not wait.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // It fails only where the work panics or the runtime goes away.
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blob_comes_back_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&directory.path().join("blobs")).unwrap();
        blobs.put("o/a/output/0-5", Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(blobs.read("o/a/output/0-5", 1..4).await.unwrap(), "ell");
        blobs.put("o/a/output/0-5", Bytes::from_static(b"HELLO")).await.unwrap();
        assert_eq!(blobs.read("o/a/output/0-5", 0..5).await.unwrap(), "HELLO");
        blobs.delete("o/a/output/0-5").await.unwrap();
        blobs.delete("o/a/output/0-5").await.unwrap();
        assert!(blobs.read("o/a/output/0-5", 0..1).await.unwrap_err().is_not_found());
    }

    #[tokio::test]
    async fn strays_go_and_what_a_row_names_stays() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&directory.path().join("blobs")).unwrap();
        let (store, _claim) = Store::open(&store::Url::Sqlite(directory.path().join("db"))).await.unwrap();
        let now = crate::runtime::clock::now();
        let named = store::Blob {
            name: "o/a/output/named".to_owned(),
            owner: OwnerId(uuid::Uuid::now_v7()),
            attempt: AttemptId(uuid::Uuid::new_v4()),
            kind: BlobKind::Output,
            start: 0,
            length: 1,
            gap: false,
            is_final: false,
            created: now,
        };
        for name in [named.name.as_str(), "o/a/output/stray"] {
            blobs.put(name, Bytes::from_static(b"x")).await.unwrap();
        }
        let mut tx = store.begin().await.unwrap();
        tx.blobs_put(std::slice::from_ref(&named)).await.unwrap();
        tx.commit().await.unwrap();

        assert_eq!(blobs.sweep_strays(&store, now).await.unwrap(), 0, "a young one may be on its way to its row");
        let later = now.after(STRAY_AGE * 2);
        assert_eq!(blobs.sweep_strays(&store, later).await.unwrap(), 1);
        assert!(blobs.read(&named.name, 0..1).await.is_ok());
        assert!(blobs.read("o/a/output/stray", 0..1).await.is_err());

        assert!(!blobs.expire(&store, later).await.unwrap());
        assert!(blobs.read(&named.name, 0..1).await.is_err());
        let mut tx = store.read().await.unwrap();
        assert_eq!(tx.blob_fetch(&named.name).await.unwrap(), None);
    }
}

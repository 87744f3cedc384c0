//! Checkpoints and results on their way: cut, damaged, repeated, unwanted.

use sha2::{Digest as _, Sha256};

use super::*;
use crate::{
    domain::{AttemptRef, CheckpointId, attempt::Pack, checkpoint::About, text},
    wire::checkpoint::{FileChunk, FileKind},
};

const PIECE: usize = 256 * 1024;

/// A task that is being worked on, and a stream to bring files on.
struct Work {
    daemon: PlayedDaemon,
    attempt: AttemptRef,
}

struct Upload {
    chunks: mpsc::Sender<pb::UploadChunksRequest>,
    answers: Streaming<pb::UploadChunksResponse>,
}

impl Bed {
    async fn work(&self) -> Work {
        let request = pb::CreateTaskRequest {
            spec: Some(Box::new(pb::TaskSpec { repository: "/srv/repo".into(), ..spec("lone", &[]) })),
            ..Default::default()
        };
        self.tasks().create_task(request).await.unwrap();
        let mut daemon = self.daemon().await;
        let (attempt, _) = daemon.accept().await;
        daemon.start(&attempt).await;
        let attempt = common::attempt_ref("attempt", Some(&attempt)).unwrap();
        Work { daemon, attempt }
    }

    async fn upload(&self) -> Upload {
        let mut client = DaemonServiceClient::new(self.keyed("daemon.key"));
        let (chunks, requests) = mpsc::channel(64);
        let answers = client.upload_chunks(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Upload { chunks, answers }
    }

    /// Another server on the same database and directory.
    async fn restarted(self) -> Self {
        let Self { directory, store, shutdown, channel, _claim } = self;
        drop(channel);
        assert!(shutdown.finish().await);
        drop(_claim);
        store.close().await;
        bed_in(directory).await
    }

    async fn task(&self, work: &Work) -> pb::Task {
        let request = pb::GetTaskRequest { task_id: work.attempt.task.to_string() };
        self.tasks().get_task(request).await.unwrap().into_inner().task.unwrap()
    }

    async fn download(&self, key: WithKey, name: &str, offset: i64) -> Result<Vec<u8>, Status> {
        let mut client = DaemonServiceClient::new(InterceptedService::new(self.channel.clone(), key));
        let request = pb::DownloadChunksRequest { blob_id: name.to_owned(), offset };
        let mut pieces = client.download_chunks(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.message().await? {
            assert_eq!(piece.offset, offset + bytes.len() as i64);
            bytes.extend_from_slice(&piece.data);
        }
        Ok(bytes)
    }

    /// Files below a folder of the server's state.
    fn files(&self, folder: &str) -> Vec<std::path::PathBuf> {
        fn walk(folder: &std::path::Path, files: &mut Vec<std::path::PathBuf>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, files) } else { files.push(path) }
            }
        }
        let mut files = Vec::new();
        walk(&self.directory.path().join(folder), &mut files);
        files
    }
}

impl Upload {
    async fn say(&mut self, chunk: impl Into<pb::UploadChunksRequest>) -> Result<pb::UploadChunksResponse, Status> {
        self.chunks.send(chunk.into()).await.unwrap();
        tokio::time::timeout(SOON, self.answers.message()).await.unwrap().map(Option::unwrap)
    }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 % 251) as u8).collect()
}

fn pack(bytes: &[u8]) -> Pack {
    Pack { bytes: bytes.len() as i64, sha256: text::hex(&Sha256::digest(bytes)) }
}

/// The pieces of a file; an empty one asks.
fn chunk(work: &Work, kind: FileKind, whole: &[u8], from: usize, to: usize) -> FileChunk {
    let is_last = to == whole.len();
    FileChunk {
        attempt: work.attempt,
        kind,
        offset: from as u64,
        data: bytes::Bytes::copy_from_slice(&whole[from..to]),
        whole: pack(whole),
        last: is_last.then(|| matches!(kind, FileKind::Checkpoint(_)).then(About::default)),
    }
}

fn checkpoint() -> FileKind {
    FileKind::Checkpoint(CheckpointId(Uuid::now_v7()))
}

fn refused(answer: &pb::UploadChunksResponse) -> &str {
    assert!(answer.refused && !answer.complete, "{answer:?}");
    &answer.detail
}

/// An upload that breaks off goes on where it was, on another stream and on another server, and nothing is sent twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_after_a_cut_and_after_a_restart() {
    let bed = bed().await;
    let work = bed.work().await;
    let (kind, whole) = (checkpoint(), bytes(3 * PIECE + 5));
    let mut sent = 0;
    let mut send = |from: usize, to: usize| {
        sent += to - from;
        chunk(&work, kind, &whole, from, to)
    };
    let mut upload = bed.upload().await;
    let answer = upload.say(send(0, 0)).await.unwrap();
    assert_eq!((answer.received_offset, answer.complete, answer.refused), (0, false, false));
    assert_eq!(upload.say(send(0, PIECE)).await.unwrap().received_offset, PIECE as i64);
    drop(upload);
    let mut upload = bed.upload().await;
    assert_eq!(upload.say(send(0, 0)).await.unwrap().received_offset, PIECE as i64);
    let answer = upload.say(send(PIECE, 2 * PIECE)).await.unwrap();
    assert_eq!(answer.received_offset, 2 * PIECE as i64);
    assert_eq!(answer.committed_offset, 0, "not synced yet");
    drop(upload);

    let bed = bed.restarted().await;
    let mut upload = bed.upload().await;
    let answer = upload.say(send(0, 0)).await.unwrap();
    assert_eq!(answer.received_offset, 2 * PIECE as i64);
    assert_eq!(answer.committed_offset, answer.received_offset, "what a server finds it syncs");
    // What was skipped is asked for, what overlaps is taken once.
    let skipped = chunk(&work, kind, &whole, 2 * PIECE + 1, 2 * PIECE + 2);
    assert_eq!(upload.say(skipped).await.unwrap().received_offset, 2 * PIECE as i64);
    let overlap = chunk(&work, kind, &whole, PIECE, 2 * PIECE + 10);
    assert_eq!(upload.say(overlap).await.unwrap().received_offset, 2 * PIECE as i64 + 10);
    let answer = upload.say(send(2 * PIECE + 10, whole.len())).await.unwrap();
    assert_eq!((answer.complete, answer.committed_offset), (true, whole.len() as i64));
    assert_eq!(sent, whole.len() - 10, "each byte once");
    assert_eq!(bed.files("uploads"), [] as [std::path::PathBuf; 0]);
    // Asked again, also by a daemon that has forgotten: it is there.
    for mut upload in [upload, bed.upload().await] {
        assert!(upload.say(chunk(&work, kind, &whole, 0, 0)).await.unwrap().complete);
    }
    drop(work.daemon);
    ended(bed).await;
}

/// What was stored is read by daemons and people of its owner, from any offset, and by nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_their_owners_alone() {
    let bed = bed().await;
    let work = bed.work().await;
    let (kind, whole) = (checkpoint(), bytes(2 * PIECE));
    let FileKind::Checkpoint(id) = kind else { unreachable!() };
    let mut keys = KeyServiceClient::new(bed.keyed("admin.key"));
    let mut secret = async |kind: pb::KeyKind| {
        let request = pb::CreateKeyRequest { kind: kind.into(), owner: "other".into(), label: String::new() };
        WithKey(keys.create_key(request).await.unwrap().into_inner().secret, None)
    };
    let (foreign_daemon, foreign_owner) = (secret(pb::KeyKind::Daemon).await, secret(pb::KeyKind::Owner).await);
    let mut foreign = DaemonServiceClient::new(InterceptedService::new(bed.channel.clone(), foreign_daemon.clone()));
    let evil = pb::UploadChunksRequest::from(chunk(&work, kind, &whole, 0, whole.len()));
    let answers = foreign.upload_chunks(tokio_stream::once(evil)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.collect().await;
    assert_eq!(refused(answers[0].as_ref().unwrap()), "there is no such attempt");
    assert!(bed.files("uploads").is_empty() && bed.files("blobs").is_empty());

    let mut upload = bed.upload().await;
    upload.say(chunk(&work, kind, &whole, 0, PIECE)).await.unwrap();
    assert!(upload.say(chunk(&work, kind, &whole, PIECE, 2 * PIECE)).await.unwrap().complete);
    let stored = bed.store.read().await.unwrap().checkpoints_fetch(&[id]).await.unwrap().remove(0);
    assert_eq!((stored.attempt, stored.orphan, stored.chain.len()), (work.attempt, false, 1));
    let name = &stored.chain[0].blob;
    for (key, offset) in [("daemon.key", 0), ("owner.key", 300_000)] {
        let read = bed.download(WithKey(bed.key(key), None), name, offset).await.unwrap();
        assert_eq!(read, whole[offset as usize..]);
    }
    for key in [foreign_daemon, foreign_owner] {
        assert_eq!(reason(&bed.download(key, name, 0).await.unwrap_err()), "BLOB_NOT_FOUND");
    }
    drop((work.daemon, upload, foreign, keys));
    ended(bed).await;
}

/// Bytes that are not what they should be are thrown away and may come again, so many times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_sent_again_and_in_the_end_refused() {
    let bed = bed().await;
    let work = bed.work().await;
    let (kind, whole) = (checkpoint(), bytes(PIECE + 1));
    let mut damaged = chunk(&work, kind, &whole, 0, whole.len());
    damaged.data = bytes::Bytes::from(vec![0; whole.len()]);
    let mut upload = bed.upload().await;
    let answer = upload.say(damaged.clone()).await.unwrap();
    assert_eq!((answer.received_offset, answer.complete, answer.refused), (0, false, false));
    assert_eq!(bed.files("uploads"), [] as [std::path::PathBuf; 0]);
    assert_eq!(bed.files("blobs"), [] as [std::path::PathBuf; 0]);
    // Right this time.
    assert!(upload.say(chunk(&work, kind, &whole, 0, whole.len())).await.unwrap().complete);

    let other = checkpoint();
    damaged.kind = other;
    for _ in 0..2 {
        assert!(!upload.say(damaged.clone()).await.unwrap().refused);
    }
    let answer = upload.say(damaged.clone()).await.unwrap();
    assert_eq!(refused(&answer), "it came 3 times and was never what its SHA-256 says");
    // More than was announced is refused as well.
    let mut longer = chunk(&work, checkpoint(), &whole, 0, PIECE);
    longer.whole.bytes = PIECE as i64 - 1;
    longer.last = None;
    assert_eq!(refused(&upload.say(longer).await.unwrap()), "it was said to have 262143 bytes, and has more");
    drop((work.daemon, upload));
    ended(bed).await;
}

/// A checkpoint that builds on one that is not kept is refused, and nothing of it is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_on_a_lost_base_is_refused() {
    let bed = bed().await;
    let work = bed.work().await;
    let whole = bytes(1_000);
    let mut upload = bed.upload().await;
    let on = |base: CheckpointId, kind| {
        let about = About { base: Some(base), ..About::default() };
        FileChunk { last: Some(Some(about)), ..chunk(&work, kind, &whole, 0, whole.len()) }
    };
    let answer = upload.say(on(CheckpointId(Uuid::now_v7()), checkpoint())).await.unwrap();
    assert_eq!(refused(&answer), "it builds on a checkpoint that is not kept");
    for folder in ["uploads", "blobs"] {
        assert_eq!(bed.files(folder), [] as [std::path::PathBuf; 0], "{folder}");
    }
    // On one that is kept it is a link of its chain.
    let (first, second) = (checkpoint(), checkpoint());
    let (FileKind::Checkpoint(base), FileKind::Checkpoint(id)) = (first, second) else { unreachable!() };
    assert!(upload.say(chunk(&work, first, &whole, 0, whole.len())).await.unwrap().complete);
    assert!(upload.say(on(base, second)).await.unwrap().complete);
    let stored = bed.store.read().await.unwrap().checkpoints_fetch(&[id]).await.unwrap().remove(0);
    assert_eq!(stored.chain.iter().map(|link| link.id).collect::<Vec<_>>(), [base, id]);
    drop((work.daemon, upload));
    ended(bed).await;
}

/// A task is done when the pack of its result is here, and not before; an object store that cannot take it loses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_done_when_its_result_is_here() {
    let bed = bed().await;
    let mut work = bed.work().await;
    let whole = bytes(PIECE);
    let mut upload = bed.upload().await;
    assert_eq!(upload.say(chunk(&work, FileKind::Result, &whole, 0, 10)).await.unwrap().received_offset, 10);
    let success = pb::Success {
        commit: "0123456789abcdef0123456789abcdef01234567".into(),
        branch: "b".into(),
        result_ref: "refs/r".into(),
        pack_bytes: whole.len() as i64,
        pack_sha256: text::unhex(&pack(&whole).sha256).unwrap(),
        ..Default::default()
    };
    let complete =
        pb::TaskComplete { outcome: Some(pb::task_complete::Outcome::Success(success)), ..Default::default() };
    let attempt = pb::AttemptRef::from(work.attempt);
    work.daemon.report(&attempt, pb::daemon_message::Kind::TaskComplete(complete)).await;
    assert_eq!(bed.task(&work).await.status(), pb::TaskStatus::Finalizing);

    // Nothing can be made where a file is in the way, as on a disk that is full.
    let blobs = bed.directory.path().join("blobs");
    std::fs::remove_dir_all(&blobs).unwrap();
    std::fs::write(&blobs, "").unwrap();
    let error = upload.say(chunk(&work, FileKind::Result, &whole, 10, whole.len())).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()), "{error:?}");
    assert_eq!(bed.task(&work).await.status(), pb::TaskStatus::Finalizing);
    std::fs::remove_file(&blobs).unwrap();
    std::fs::create_dir(&blobs).unwrap();
    let mut upload = bed.upload().await;
    let question = FileChunk { last: None, ..chunk(&work, FileKind::Result, &whole, 0, 0) };
    assert_eq!(upload.say(question).await.unwrap().received_offset, whole.len() as i64);
    let end = chunk(&work, FileKind::Result, &whole, whole.len(), whole.len());
    assert!(upload.say(end).await.unwrap().complete);
    assert_eq!(bed.task(&work).await.status(), pb::TaskStatus::Done);
    drop((work.daemon, upload));
    ended(bed).await;
}

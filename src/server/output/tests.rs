//! Segments: offsets, gaps, and what follows a restart.

use uuid::Uuid;

use super::*;

struct Bed {
    directory: tempfile::TempDir,
    store: Store,
    output: OutputStore,
    _claim: store::Claim,
}

async fn bed() -> Bed {
    let directory = tempfile::tempdir().unwrap();
    let (store, claim) = Store::open(&store::Url::Sqlite(directory.path().join("db"))).await.unwrap();
    let blobs = Blobs::open(&directory.path().join("blobs")).unwrap();
    let output = OutputStore::new(store.clone(), blobs);
    Bed { directory, store, output, _claim: claim }
}

const OWNER: OwnerId = OwnerId(Uuid::from_u128(1));
const ATTEMPT: AttemptId = AttemptId(Uuid::from_u128(2));

impl Bed {
    async fn append(&self, offset: i64, data: &[u8]) -> Progress {
        let chunk = Chunk { offset, data: Bytes::copy_from_slice(data), ..Default::default() };
        self.output.append(OWNER, ATTEMPT, chunk).await.unwrap()
    }

    async fn append_last(&self, offset: i64, data: &[u8]) -> Progress {
        let chunk = Chunk { offset, data: Bytes::copy_from_slice(data), last: true, ..Default::default() };
        self.output.append(OWNER, ATTEMPT, chunk).await.unwrap()
    }

    /// The server dies and comes back: what was only in memory is gone.
    fn restart(&mut self) {
        let blobs = Blobs::open(&self.directory.path().join("blobs")).unwrap();
        self.output = OutputStore::new(self.store.clone(), blobs);
    }

    async fn rows(&self) -> Vec<Blob> {
        self.store.read().await.unwrap().blobs_of_output(ATTEMPT).await.unwrap()
    }

    /// All that can be read now from an offset, with the offsets at which gaps were said.
    async fn read(&self, from: i64) -> (Vec<u8>, Vec<i64>) {
        let mut follower = self.output.follow(OWNER, ATTEMPT).await.unwrap();
        let (mut bytes, mut gaps, mut at) = (Vec::new(), Vec::new(), from);
        while let Some(piece) = follower.read(at).await.unwrap() {
            assert!(!piece.data.is_empty());
            if piece.gap {
                gaps.push(piece.offset);
            } else {
                assert_eq!(piece.offset, at);
            }
            at = piece.offset + piece.data.len() as i64;
            bytes.extend_from_slice(&piece.data);
        }
        (bytes, gaps)
    }
}

fn progress(committed: i64, received: i64, complete: bool) -> Progress {
    Progress { committed, received, complete }
}

#[tokio::test]
async fn bytes_are_kept_once_and_in_order() {
    let bed = bed().await;
    assert_eq!(bed.append(0, b"hello ").await, progress(0, 6, false));
    assert_eq!(bed.append(0, b"hello ").await, progress(0, 6, false), "sent twice, taken once");
    assert_eq!(bed.append(3, b"lo world").await, progress(0, 11, false), "only what is new of an overlap");
    // What skips ahead is refused; it makes what is there durable, since the daemon will look where to go on.
    assert_eq!(bed.append(20, b"later").await, progress(11, 11, false));
    assert_eq!(bed.append_last(11, b"!").await, progress(12, 12, true));
    assert_eq!(bed.append(12, b"more").await, progress(12, 12, true), "nothing follows the end");
    assert_eq!(bed.read(0).await, (b"hello world!".to_vec(), vec![]));
    assert_eq!(bed.read(6).await.0, b"world!");
    assert_eq!(bed.read(12).await.0, b"");
    assert_eq!(bed.read(99).await.0, b"");
}

#[tokio::test]
async fn small_blobs_grow_into_one() {
    let bed = bed().await;
    for n in 0..20_i64 {
        bed.append(n * 100, &[b'x'; 100]).await;
        bed.output.seal_all(Duration::ZERO).await;
    }
    assert_eq!(bed.output.progress(OWNER, ATTEMPT).await.unwrap(), progress(2_000, 2_000, false));
    let rows = bed.rows().await;
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].start, rows[0].length), (0, 2_000));
    // Only one blob is left of the twenty.
    let folder = bed.directory.path().join("blobs");
    let files = walk(&folder);
    assert_eq!(files.len(), 1, "{files:?}");
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

#[tokio::test]
async fn much_output_becomes_blobs_of_a_mebibyte() {
    let bed = bed().await;
    let chunk = vec![b'y'; MAX_CHUNK_BYTES];
    for n in 0..9_i64 {
        let progress = bed.append(n * MAX_CHUNK_BYTES as i64, &chunk).await;
        assert!(progress.received - progress.committed < SEAL_BYTES as i64);
    }
    let rows = bed.rows().await;
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| row.length == SEAL_BYTES as i64));
    let (bytes, gaps) = bed.read(0).await;
    assert_eq!((bytes.len(), gaps), (9 * MAX_CHUNK_BYTES, vec![]));
    assert_eq!(bed.output.0.memory.load(Ordering::Relaxed), MAX_CHUNK_BYTES);
}

#[tokio::test]
async fn what_was_committed_survives_the_server_and_the_rest_is_sent_again() {
    let mut bed = bed().await;
    bed.append(0, b"durable").await;
    bed.output.seal_all(Duration::ZERO).await;
    assert_eq!(bed.append(7, b" lost").await, progress(7, 12, false));
    bed.restart();
    assert_eq!(bed.append(12, b"!").await, progress(7, 7, false), "the daemon must go back");
    assert_eq!(bed.append(7, b" lost").await, progress(7, 12, false));
    assert_eq!(bed.append_last(12, b"!").await, progress(13, 13, true));
    let rows = bed.rows().await;
    assert_eq!(rows.len(), 1, "the small blob was taken up again");
    assert!(rows[0].is_final);
    bed.restart();
    assert_eq!(bed.output.progress(OWNER, ATTEMPT).await.unwrap(), progress(13, 13, true));
    assert_eq!(bed.read(0).await.0, b"durable lost!");
}

#[tokio::test]
async fn gaps_are_recorded_and_said() {
    let mut bed = bed().await;
    bed.append(0, b"before").await;
    let gap = Chunk { offset: 100, data: Bytes::from_static(b"after"), gap: true, ..Default::default() };
    assert_eq!(bed.output.append(OWNER, ATTEMPT, gap.clone()).await.unwrap(), progress(100, 105, false));
    // The same again is a repetition, not another gap.
    assert_eq!(bed.output.append(OWNER, ATTEMPT, gap).await.unwrap(), progress(100, 105, false));
    assert_eq!(bed.read(0).await, (b"beforeafter".to_vec(), vec![100]));
    assert_eq!(bed.read(50).await, (b"after".to_vec(), vec![100]));
    // A loss whose size nobody knows leaves no hole in the offsets.
    let gap = Chunk { offset: 105, data: Bytes::from_static(b"anew"), gap: true, last: true };
    assert_eq!(bed.output.append(OWNER, ATTEMPT, gap).await.unwrap(), progress(109, 109, true));
    bed.restart();
    assert_eq!(bed.read(0).await, (b"beforeafteranew".to_vec(), vec![100, 105]));
}

#[tokio::test]
async fn the_end_is_remembered_however_it_came() {
    // Without any output.
    let mut bed = bed().await;
    assert_eq!(bed.append_last(0, b"").await, progress(0, 0, true));
    bed.restart();
    assert_eq!(bed.output.progress(OWNER, ATTEMPT).await.unwrap(), progress(0, 0, true));
    assert_eq!(bed.read(0).await.0, b"");
    // After everything was durable already, in a blob that memory no longer has.
    let other = AttemptId(Uuid::from_u128(3));
    let big = Chunk { data: Bytes::from(vec![b'z'; MAX_CHUNK_BYTES]), ..Default::default() };
    bed.output.append(OWNER, other, big).await.unwrap();
    bed.output.seal_all(Duration::ZERO).await;
    let end = Chunk { offset: MAX_CHUNK_BYTES as i64, last: true, ..Default::default() };
    let size = MAX_CHUNK_BYTES as i64;
    assert_eq!(bed.output.append(OWNER, other, end).await.unwrap(), progress(size, size, true));
    bed.restart();
    assert_eq!(bed.output.progress(OWNER, other).await.unwrap(), progress(size, size, true));
}

#[tokio::test]
async fn a_follower_is_woken_and_reads_across_blobs_and_memory() {
    let bed = bed().await;
    let mut follower = bed.output.follow(OWNER, ATTEMPT).await.unwrap();
    assert_eq!(follower.read(0).await.unwrap(), None);
    let writer = async {
        for n in 0..6_i64 {
            bed.append(n * 300_000, &vec![b'0' + n as u8; 300_000]).await;
            tokio::task::yield_now().await;
        }
        bed.append_last(1_800_000, b"end").await;
    };
    let reader = async {
        let (mut at, mut bytes) = (0, Vec::new());
        loop {
            let progress = follower.progress();
            match follower.read(at).await.unwrap() {
                Some(piece) => {
                    at = piece.offset + piece.data.len() as i64;
                    bytes.extend_from_slice(&piece.data);
                }
                None if progress.complete => return bytes,
                None => follower.changed().await,
            }
        }
    };
    let ((), bytes) = tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(writer, reader) })
        .await
        .expect("the follower ends with the output");
    assert_eq!(bytes.len(), 1_800_003);
    assert!(bytes.ends_with(b"55end"));
}

#[tokio::test]
async fn an_append_that_overlaps_an_orphan_row_reads_right() {
    let mut bed = bed().await;
    bed.append(0, b"abc").await;
    bed.output.seal_all(Duration::ZERO).await;
    let orphan = bed.rows().await.remove(0);
    bed.append_last(3, b"def").await;
    // A commit whose outcome was unknown left the shorter row, and its blob, beside the longer one.
    bed.output.0.blobs.put(&orphan.name, Bytes::from_static(b"abc")).await.unwrap();
    let mut tx = bed.store.begin().await.unwrap();
    tx.blobs_put(&[orphan]).await.unwrap();
    tx.commit().await.unwrap();
    bed.restart();
    assert_eq!(bed.read(0).await.0, b"abcdef");
}

#[tokio::test]
async fn the_sealing_loop_seals_in_time_and_at_the_end() {
    let bed = bed().await;
    let shutdown = Shutdown::new();
    shutdown.spawn_loop("output", bed.output.clone().run(shutdown.clone()));
    bed.append(0, b"soon").await;
    let mut follower = bed.output.follow(OWNER, ATTEMPT).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while follower.progress().committed < 4 {
        tokio::time::timeout_at(deadline, follower.changed()).await.expect("sealed in time");
    }
    bed.append(4, b" and at the end").await;
    assert!(shutdown.finish().await);
    assert_eq!(follower.progress().committed, 19);
}

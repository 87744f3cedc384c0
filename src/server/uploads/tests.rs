//! A result whose daemon is given up while it comes. Files that arrive in pieces, from real daemons, are in `tests/it`.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task::JoinSet};
use uuid::Uuid;

use super::*;
use crate::{
    domain::{
        BootId, Epoch, JournalId, KeyId,
        attempt::TaskResult,
        contract::ContractLimits,
        daemon::{Card, Hello, Profile},
        draft::{NewContract, NewTask},
        key::KeyKind,
        report::{Complete, InventoryItem, InventoryState, Message, Progress, Report},
        task::{TaskSpec, TaskStatus},
        text,
    },
    server::{
        ledger::{Push, Reply, op::Attach},
        task_keys::TaskKeys,
    },
};

const PACK: &[u8] = b"PACK";

/// A server's ledger and uploads, and a daemon that a test plays.
struct Bed {
    uploads: Uploads,
    store: Store,
    ledger: Ledger,
    owner: OwnerId,
    key: KeyId,
    daemon: DaemonId,
    /// The ledger's writer, for as long as the test.
    _writers: JoinSet<()>,
}

impl Bed {
    async fn attach(&self, has: Vec<InventoryItem>) -> (Epoch, mpsc::Receiver<Push>) {
        let hello = Hello {
            protocol: (1, 1),
            daemon: self.daemon,
            boot: BootId(Uuid::from_u128(1)),
            journal: JournalId(Uuid::from_u128(2)),
            card: Card {
                name: "d".to_owned(),
                slots: 1,
                profiles: vec![Profile { name: "shell".to_owned(), version: String::new() }],
                any_path: true,
                ..Card::default()
            },
            attach: 0,
            last_command: 0,
            unanswered: (0, 0),
            inventory: has,
            clock: Timestamp(0),
        };
        let (outbox, pushes) = mpsc::channel(64);
        let attach = Attach { owner: self.owner, key: self.key, hello, outbox };
        match self.ledger.server(Op::Attach(Box::new(attach))).await {
            Ok(Reply::Attached { epoch, .. }) => (epoch, pushes),
            other => panic!("not attached: {other:?}"),
        }
    }

    /// Asks whether the result counts by now, or brings it.
    async fn bring(&self, attempt: AttemptRef, whole: &Pack, offset: u64) -> FileReceipt {
        let data = Bytes::from_static(&PACK[usize::try_from(offset).unwrap()..]);
        let chunk = FileChunk { attempt, kind: FileKind::Result, offset, data, whole: whole.clone(), last: Some(None) };
        match self.uploads.take(self.owner, chunk).await.unwrap() {
            Taken::Receipt(receipt, _) => receipt,
            Taken::Whole(whole) => self.uploads.finish(whole).await.unwrap(),
        }
    }

    async fn status(&self, attempt: AttemptRef) -> TaskStatus {
        let mut tx = self.store.read().await.unwrap();
        tx.task_fetch(self.owner, attempt.task).await.unwrap().unwrap().status()
    }

    async fn says(&self, attempt: AttemptRef, sequence: i64, report: Report) {
        let message = Message { sequence, journal: JournalId(Uuid::from_u128(2)), attempt, at: Timestamp(0), report };
        self.ledger.server(Op::Message { daemon: self.daemon, message }).await.unwrap();
    }
}

/// A server with an attempt that was sent to its daemon, and what the server is made of.
async fn bed(directory: &Path) -> (Bed, AttemptRef, Epoch, Blobs) {
    let (store, _claim) = Store::open(&store::Url::Sqlite(directory.join("db"))).await.unwrap();
    let blobs = Blobs::open(&directory.join("blobs")).unwrap();
    let (ledger, writer) = Ledger::start(store.clone(), TaskKeys::new([7; 32])).await.unwrap();
    let mut writers = JoinSet::new();
    writers.spawn(writer);
    let uploads = Uploads::open(&directory.join("uploads"), store.clone(), blobs.clone(), ledger.clone());
    let op = Op::CreateKey { kind: KeyKind::Owner, owner: Some("o".to_owned()), label: String::new(), hash: [1; 32] };
    let Ok(Reply::Key(key)) = ledger.server(op).await else { panic!("no key") };
    let (owner, daemon) = (key.owner.unwrap(), DaemonId(Uuid::now_v7()));
    let bed = Bed { uploads: uploads.unwrap(), store, ledger, owner, key: key.id, daemon, _writers: writers };
    let (epoch, mut pushes) = bed.attach(Vec::new()).await;
    bed.ledger.server(Op::Ready { daemon, epoch }).await.unwrap();
    let contract = NewContract {
        owner,
        name: "contract".to_owned(),
        description: String::new(),
        repository: "/r".to_owned(),
        base_branch: String::new(),
        limits: ContractLimits { rerun_after: Duration::ZERO, ..ContractLimits::default() },
        hold: false,
        tasks: vec![NewTask::new(
            TaskSpec { name: "a".to_owned(), agent: "shell".to_owned(), ..TaskSpec::default() },
            Vec::new(),
        )],
    };
    bed.ledger.server(Op::CreateContract(contract)).await.unwrap();
    let Some(Push::Command(command)) = pushes.recv().await else { panic!("no command") };
    (bed, command.attempt, epoch, blobs)
}

fn pack() -> Pack {
    Pack { bytes: PACK.len() as i64, sha256: text::hex(&Sha256::digest(PACK)) }
}

/// A piece of [`PACK`] as a checkpoint; with what it is if it is the last.
fn piece(attempt: AttemptRef, id: CheckpointId, range: std::ops::Range<usize>, is_last: bool) -> FileChunk {
    let (kind, offset) = (FileKind::Checkpoint(id), range.start as u64);
    let last = is_last.then(|| Some(About::default()));
    FileChunk { attempt, kind, offset, data: Bytes::from_static(&PACK[range]), whole: pack(), last }
}

impl Bed {
    async fn take(&self, chunk: FileChunk) -> FileReceipt {
        match self.uploads.take(self.owner, chunk).await.unwrap() {
            Taken::Receipt(receipt, _) => receipt,
            Taken::Whole(whole) => self.uploads.finish(whole).await.unwrap(),
        }
    }

    fn staged(&self) -> u64 {
        self.uploads.0.staged.load(Ordering::Relaxed)
    }
}

/// An id that an attempt has a checkpoint of is no other attempt's; two files of one attempt never mix.
#[tokio::test]
async fn a_name_is_of_one_file() {
    let directory = tempfile::tempdir().unwrap();
    let (bed, attempt, ..) = bed(directory.path()).await;
    let id = CheckpointId(Uuid::now_v7());
    assert!(bed.take(piece(attempt, id, 0..4, true)).await.complete);
    let other = AttemptRef { id: Uuid::now_v7().into(), ..attempt };
    let refused = bed.take(piece(other, id, 0..4, true)).await.refused;
    assert_eq!(refused.as_deref(), Some("another attempt has a checkpoint of this id"));
    let result = |sha256: &str, to: usize| FileChunk {
        kind: FileKind::Result,
        whole: Pack { bytes: 4, sha256: sha256.repeat(64) },
        ..piece(attempt, id, 0..to, false)
    };
    assert_eq!(bed.take(result("a", 3)).await.received, 3);
    assert_eq!(bed.take(result("b", 0)).await.received, 0);
    // What ends where it should and does not begin where it should is not whole.
    let next = CheckpointId(Uuid::now_v7());
    let receipt = bed.take(piece(attempt, next, 2..4, true)).await;
    assert_eq!((receipt.received, receipt.complete, receipt.refused), (0, false, None));
}

/// What is on its way is counted, also when a server finds it; with too much of it a daemon is told to wait, and what has
/// arrived makes room.
#[tokio::test]
async fn what_is_staged_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let (bed, attempt, ..) = bed(directory.path()).await;
    let (id, full) = (CheckpointId(Uuid::now_v7()), STAGED_BYTES - 3);
    bed.uploads.0.staged.store(full, Ordering::Relaxed);
    bed.take(piece(attempt, id, 0..3, false)).await;
    let error = bed.uploads.take(bed.owner, piece(attempt, id, 3..4, true)).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Overloaded);
    bed.uploads.0.staged.store(3, Ordering::Relaxed);
    let found = Uploads::open(
        &directory.path().join("uploads"),
        bed.store.clone(),
        bed.uploads.0.blobs.clone(),
        bed.ledger.clone(),
    );
    assert_eq!(found.unwrap().0.staged.load(Ordering::Relaxed), 3);
    assert!(bed.take(piece(attempt, id, 3..4, true)).await.complete);
    assert_eq!(bed.staged(), 0);
}

/// A staged file goes after a day without a new piece, but not from under whoever is at it; what comes after that comes from
/// the beginning.
#[tokio::test]
async fn what_nobody_sends_any_more_goes() {
    let directory = tempfile::tempdir().unwrap();
    let (bed, attempt, ..) = bed(directory.path()).await;
    let id = CheckpointId(Uuid::now_v7());
    assert_eq!(bed.take(piece(attempt, id, 0..3, false)).await.received, 3);
    let later = clock::now().after(2 * STRAY_AGE);
    assert_eq!(bed.uploads.sweep_stale(clock::now()).await.unwrap(), 0);
    let key = Key { attempt, kind: FileKind::Checkpoint(id), sha256: pack().sha256 };
    let at_it = bed.uploads.entry(&key);
    assert_eq!(bed.uploads.sweep_stale(later).await.unwrap(), 0);
    drop(at_it);
    assert_eq!(bed.uploads.sweep_stale(later).await.unwrap(), 1);
    assert_eq!(bed.staged(), 0);
    assert_eq!(bed.take(piece(attempt, id, 0..0, false)).await.received, 0);
    assert!(bed.take(piece(attempt, id, 0..4, true)).await.complete);
}

/// Whoever asks while a file becomes a blob is answered at once.
#[tokio::test]
async fn a_question_does_not_wait_for_the_blob() {
    let directory = tempfile::tempdir().unwrap();
    let (bed, attempt, ..) = bed(directory.path()).await;
    let id = CheckpointId(Uuid::now_v7());
    let Taken::Whole(whole) = bed.uploads.take(bed.owner, piece(attempt, id, 0..4, true)).await.unwrap() else {
        panic!("not whole")
    };
    let asked = tokio::time::timeout(Duration::from_secs(20), bed.take(piece(attempt, id, 0..0, false)));
    let receipt = asked.await.expect("an answer");
    assert_eq!((receipt.received, receipt.complete), (4, false));
    assert!(bed.uploads.finish(whole).await.unwrap().complete);
}

/// It stays, and counts once the daemon has attached and said again what it made. Refused, it would be gone for good: the
/// daemon would report that it has no result after all.
#[tokio::test]
async fn a_result_of_a_given_up_attempt_stays_until_its_daemon_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let (bed, attempt, epoch, blobs) = bed(directory.path()).await;
    let (owner, daemon) = (bed.owner, bed.daemon);

    let whole = pack();
    let made = TaskResult { commit: "c".repeat(40), pack: Some(whole.clone()), ..TaskResult::default() };
    let complete =
        Complete { outcome: Ok(made), progress: Progress::default(), output_bytes: 0, exit_code: Some(0), signal: 0 };
    bed.says(attempt, 1, Report::Complete(complete.clone())).await;
    assert_eq!(bed.status(attempt).await, TaskStatus::Finalizing);
    bed.ledger.server(Op::DaemonLost { daemon, epoch }).await.unwrap();
    bed.ledger.detach(daemon, epoch);
    bed.ledger.server(Op::Sweep).await.unwrap();
    assert_eq!(bed.status(attempt).await, TaskStatus::Pending);

    let total = PACK.len() as u64;
    let waits = FileReceipt { attempt, kind: FileKind::Result, received: total, complete: false, refused: None };
    assert_eq!(bed.bring(attempt, &whole, 0).await, waits);
    assert_eq!(bed.bring(attempt, &whole, total).await, waits, "asked again");
    let listed =
        InventoryItem { attempt, state: InventoryState::Reported, worktree: String::new(), worktree_intact: true };
    let _session = bed.attach(vec![listed]).await;
    bed.says(attempt, 1, Report::Complete(complete)).await;
    assert_eq!(bed.status(attempt).await, TaskStatus::Done);
    assert_eq!(bed.bring(attempt, &whole, total).await, FileReceipt { complete: true, ..waits });
    let name = Blobs::result_name(owner, attempt.id, &whole.sha256);
    assert_eq!(blobs.read(&name, 0..total).await.unwrap(), PACK);
}

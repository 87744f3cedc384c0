//! A result whose daemon is given up while it comes. Files that arrive in pieces, from real daemons, are in `tests/it`.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
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

/// It stays, and counts once the daemon has attached and said again what it made. Refused, it would be gone for good: the
/// daemon would report that it has no result after all.
#[tokio::test]
async fn a_result_of_a_given_up_attempt_stays_until_its_daemon_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _claim) = Store::open(&store::Url::Sqlite(directory.path().join("db"))).await.unwrap();
    let blobs = Blobs::open(&directory.path().join("blobs")).unwrap();
    let (ledger, writer) = Ledger::start(store.clone(), TaskKeys::new([7; 32])).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    writers.spawn(writer);
    let uploads = Uploads::open(&directory.path().join("uploads"), store.clone(), blobs.clone(), ledger.clone());
    let op = Op::CreateKey { kind: KeyKind::Owner, owner: Some("o".to_owned()), label: String::new(), hash: [1; 32] };
    let Ok(Reply::Key(key)) = ledger.server(op).await else { panic!("no key") };
    let (owner, daemon) = (key.owner.unwrap(), DaemonId(Uuid::now_v7()));
    let bed = Bed { uploads: uploads.unwrap(), store, ledger, owner, key: key.id, daemon };
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
        tasks: vec![NewTask {
            spec: TaskSpec { name: "a".to_owned(), agent: "shell".to_owned(), ..TaskSpec::default() },
            depends_on: Vec::new(),
        }],
    };
    bed.ledger.server(Op::CreateContract(contract)).await.unwrap();
    let Some(Push::Command(command)) = pushes.recv().await else { panic!("no command") };
    let attempt = command.attempt;

    let whole = Pack { bytes: PACK.len() as i64, sha256: text::hex(&Sha256::digest(PACK)) };
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

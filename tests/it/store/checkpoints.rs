//! Checkpoints, and the packs of results.

use makima::{
    domain::{
        AttemptId, AttemptRef, CheckpointId, DaemonId, Timestamp,
        attempt::AttemptState,
        checkpoint::{Checkpoint, Link},
        task::{Task, TaskState},
    },
    server::{
        blobs::Blobs,
        expiry::{self, KEEP_ENDED},
    },
    store::{Blob, BlobKind},
};

use super::{
    Fresh,
    samples::{at, attempt, checkpoint, contract, id, owner, task},
};
use crate::{bed::Kind, both};

both!(checkpoints_come_back_whole, packs_of_results_are_known_by_name, checkpoints_expire_by_what_needs_them);

/// By id, by task with the newest first, by attempt in the order they were taken; one that is there stays as it was.
async fn checkpoints_come_back_whole(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let task = task(&contract(owner(), 1), 1, "t");
    let running = AttemptState::Running { since: at(7) };
    let attempts = [1, 2].map(|n| attempt(&task, 50 + u128::from(n), n, DaemonId(id(7)), running.clone()).reference());
    let written = [10, 11, 12].map(|n| checkpoint(&task, n, attempts[usize::from(n == 12)]));
    let mut tx = fresh.begin().await;
    tx.checkpoints_insert(&written.iter().rev().collect::<Vec<_>>()).await.unwrap();
    let again = makima::domain::checkpoint::Checkpoint { orphan: false, ..written[0].clone() };
    tx.checkpoints_insert(&[&again]).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = fresh.begin().await;
    let ids: Vec<_> = written.iter().map(|c| c.id).chain([CheckpointId(id(99))]).collect();
    let mut read = tx.checkpoints_fetch(&ids).await.unwrap();
    read.sort_by_key(|checkpoint| checkpoint.id);
    assert_eq!(read, written);
    let newest: Vec<_> = tx.checkpoints_of_task(task.id, 2).await.unwrap();
    assert_eq!(newest, [written[2].clone(), written[1].clone()]);
    let of_attempt = |n: usize| [attempts[n].id];
    assert_eq!(tx.checkpoints_of_attempts(&of_attempt(0)).await.unwrap(), written[..2]);
    tx.checkpoints_delete(&[written[0].id, CheckpointId(id(99))]).await.unwrap();
    assert_eq!(tx.checkpoints_of_attempts(&of_attempt(0)).await.unwrap(), written[1..2]);
    assert_eq!(tx.checkpoints_of_attempts(&of_attempt(1)).await.unwrap(), written[2..]);
}

/// Only results count, and only of the attempts that were asked for.
async fn packs_of_results_are_known_by_name(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let of = |n: u128| AttemptId(id(n));
    let blob = |name: &str, attempt: AttemptId, kind: BlobKind| Blob {
        name: name.to_owned(),
        owner: owner(),
        attempt,
        kind,
        start: 0,
        length: 5,
        gap: false,
        is_final: true,
        created: at(1),
    };
    let rows = [
        blob("a", of(1), BlobKind::Result),
        blob("b", of(1), BlobKind::Checkpoint),
        blob("c", of(1), BlobKind::Output),
        blob("d", of(2), BlobKind::Result),
    ];
    let mut tx = fresh.begin().await;
    tx.blobs_put(&rows).await.unwrap();
    assert_eq!(tx.blobs_of_results(&[of(1), of(3)]).await.unwrap(), ["a"]);
    assert_eq!(tx.blob_fetch("b").await.unwrap().unwrap(), rows[1]);
    let named = AttemptRef { task: makima::domain::TaskId(id(9)), number: 1, id: of(1) };
    assert_eq!(tx.blobs_of_output(named.id).await.unwrap(), [rows[2].clone()]);
}

/// One whole checkpoint with its blob's row, or one that builds on a chain.
fn stored(task: &Task, attempt: AttemptRef, n: u128, on: &[u128], when: i64) -> (Checkpoint, Blob) {
    let link = |n: u128| Link { id: CheckpointId(id(n)), blob: format!("c/{n}"), bytes: 1, sha256: "ab".repeat(32) };
    let chain = on.iter().copied().chain([n]).map(link).collect();
    let blob = Blob {
        name: format!("c/{n}"),
        owner: task.owner,
        attempt: attempt.id,
        kind: BlobKind::Checkpoint,
        start: 0,
        length: 1,
        gap: false,
        is_final: true,
        created: at(when),
    };
    (Checkpoint { chain, stored: at(when), ..checkpoint(task, n, attempt) }, blob)
}

/// The newest five of an attempt stay, with what anything builds on or goes on from; thirty days after a task's end only
/// the latter do, and they go with what needed them.
async fn checkpoints_expire_by_what_needs_them(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let directory = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(directory.path()).unwrap();
    let contract = contract(owner(), 1);
    let running =
        |task: &Task, n: u128| attempt(task, n, 1, DaemonId(id(7)), AttemptState::Running { since: at(7) }).reference();
    let mut first = Task { checkpoint: None, updated: at(100), ..task(&contract, 1, "first") };
    let mut branched =
        Task { checkpoint: Some(CheckpointId(id(12))), updated: at(100), ..task(&contract, 2, "second") };
    assert!(!first.status().is_final() && !branched.status().is_final());
    let (one, two) = (running(&first, 51), running(&branched, 52));
    // 10 to 19 are of the first: 11 builds on 10, the others are whole. The second goes on from 12, and has 30 on 13.
    let mut all: Vec<_> =
        (10..20).map(|n| stored(&first, one, n, if n == 11 { &[10] } else { &[] }, n as i64)).collect();
    all.push(stored(&branched, two, 30, &[13], 30));
    let mut tx = fresh.begin().await;
    tx.tasks_insert(&[&first, &branched]).await.unwrap();
    tx.checkpoints_insert(&all.iter().map(|(checkpoint, _)| checkpoint).collect::<Vec<_>>()).await.unwrap();
    tx.blobs_put(&all.iter().map(|(_, blob)| blob.clone()).collect::<Vec<_>>()).await.unwrap();
    tx.commit().await.unwrap();
    for (_, blob) in &all {
        blobs.put(&blob.name, vec![b'x'].into()).await.unwrap();
    }
    let left = async || {
        let mut tx = fresh.read().await;
        let mut left: Vec<u128> = Vec::new();
        for (checkpoint, blob) in &all {
            let is_there = !tx.checkpoints_fetch(&[checkpoint.id]).await.unwrap().is_empty();
            assert_eq!(tx.blob_fetch(&blob.name).await.unwrap().is_some(), is_there, "{}", blob.name);
            assert_eq!(blobs.read(&blob.name, 0..1).await.is_ok(), is_there, "{}", blob.name);
            left.extend(is_there.then_some(checkpoint.id.0.as_u128() - id(0).as_u128()));
        }
        left
    };
    assert_eq!(expiry::checkpoints(&fresh.store, &blobs, at(1_000)).await.unwrap(), 3);
    assert_eq!(left().await, [12, 13, 15, 16, 17, 18, 19, 30]);
    assert_eq!(expiry::checkpoints(&fresh.store, &blobs, at(1_000)).await.unwrap(), 0);

    // The first ends, and is kept for its thirty days.
    let change = async |tasks: &[&Task]| {
        let mut tx = fresh.begin().await;
        tx.tasks_update(tasks).await.unwrap();
        tx.commit().await.unwrap();
    };
    let final_at = |when: Timestamp| TaskState::Cancelled { by: "key:1".to_owned(), reason: String::new(), at: when };
    first = Task { state: final_at(at(2_000)), updated: at(2_000), ..first };
    change(&[&first]).await;
    let kept = at(2_000).after(KEEP_ENDED);
    assert_eq!(expiry::checkpoints(&fresh.store, &blobs, kept).await.unwrap(), 0);
    let later = Timestamp(kept.0 + 1);
    assert_eq!(expiry::checkpoints(&fresh.store, &blobs, later).await.unwrap(), 5);
    assert_eq!(left().await, [12, 13, 30]);
    // The second ends, and with it the need.
    branched = Task { state: final_at(later), updated: later, ..branched };
    change(&[&branched]).await;
    let last = Timestamp(later.after(KEEP_ENDED).0 + 1);
    expiry::checkpoints(&fresh.store, &blobs, last).await.unwrap();
    expiry::checkpoints(&fresh.store, &blobs, last).await.unwrap();
    assert_eq!(left().await, [] as [u128; 0]);
}

//! Checkpoints, and the packs of results.

use makima::{
    domain::{AttemptId, AttemptRef, CheckpointId, DaemonId, attempt::AttemptState},
    store::{Blob, BlobKind},
};

use super::{
    Fresh,
    samples::{at, attempt, checkpoint, contract, id, owner, task},
};
use crate::{bed::Kind, both};

both!(checkpoints_come_back_whole, packs_of_results_are_known_by_name);

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

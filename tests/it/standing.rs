//! What services read of the store, and the rows of blobs, on both databases.

use makima::{
    domain::{AttemptId, OwnerId, Timestamp, attempt::FailureClass, task::TaskStatus},
    store::{Blob, BlobKind, Brief},
};
use uuid::Uuid;

use crate::{
    bed::{Bed, Kind, task},
    both,
};

both!(light_rows_say_where_tasks_stand, blobs_have_rows_from_first_to_last);

/// Light rows, what is waited for, what hangs on it, and whether anything can still move.
async fn light_rows_say_where_tasks_stand(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("box", 4).await;
    let chain = vec![task("a", &[]), task("b", &["a"]), task("c", &["b"])];
    let (contract, tasks) = bed.contract(chain).await;
    let (other, _) = bed.contract(vec![task("x", &["y"]), task("y", &[])]).await;
    let [a, b, c] = [tasks[0].id, tasks[1].id, tasks[2].id];
    let (command, _) = daemon.run_next(&bed).await;
    assert_eq!(command.attempt.task, a);

    let mut tx = bed.store.read().await.expect("read");
    assert_eq!(
        tx.briefs_fetch(&[a]).await.expect("briefs"),
        [Brief { id: a, name: "a".to_owned(), status: TaskStatus::Running }]
    );
    assert_eq!(tx.briefs_fetch(&[]).await.expect("none"), []);
    let pending = Brief { id: b, name: "b".to_owned(), status: TaskStatus::Pending };
    assert_eq!(tx.briefs_of_dependents(a, 10).await.expect("dependents"), [(pending, false)]);
    let mut unmet: Vec<_> = tx.edges_unmet(&[c], 10).await.expect("unmet");
    unmet.sort_by_key(|edge| edge.dependent);
    assert_eq!(unmet.iter().map(|edge| (edge.dependent, edge.dependency)).collect::<Vec<_>>(), [(b, a), (c, b)]);
    assert_eq!(tx.edges_unmet(&[c], 1).await.expect("unmet").len(), 1);
    let mut moving = tx.contracts_moving(&[contract.id, other.id]).await.expect("moving");
    moving.sort();
    assert_eq!(moving, [contract.id, other.id]);
    let live = tx.attempts_live_counts(&[daemon.id]).await.expect("counts");
    assert!(matches!(live[..], [(id, 1..=2)] if id == daemon.id), "{live:?}");
    assert_eq!(tx.daemon_names(&[daemon.id]).await.expect("names"), [(daemon.id, "box".to_owned())]);
    let places = tx.events_places(0, 1_000).await.expect("places");
    assert!(places.is_sorted(), "{places:?}");
    assert!(places.iter().any(|(_, id)| *id == contract.id) && places.iter().any(|(_, id)| *id == other.id));
    let last = places.last().expect("a place").0;
    assert_eq!(tx.events_places(last, 10).await.expect("places"), []);
    tx.rollback().await.expect("rollback");

    daemon.failed(&bed, command.attempt, FailureClass::AgentError).await;
    bed.task_is(a, TaskStatus::Failed).await;
    let mut tx = bed.store.read().await.expect("read");
    let moving = tx.contracts_moving(&[contract.id, other.id]).await.expect("moving");
    assert_eq!(moving, [other.id], "what is left of the first hangs on what failed");
}

async fn blobs_have_rows_from_first_to_last(kind: Kind) {
    let bed = Bed::new(kind).await;
    let (attempt, other) = (AttemptId(Uuid::new_v4()), AttemptId(Uuid::new_v4()));
    let blob = |attempt: AttemptId, start: i64, length: i64| Blob {
        name: format!("{}/{start}-{length}", attempt.0),
        owner: OwnerId(Uuid::from_u128(1)),
        attempt,
        kind: BlobKind::Output,
        start,
        length,
        gap: start == 10,
        is_final: false,
        created: Timestamp(1_000_000 + start),
    };
    let mut blobs = vec![blob(attempt, 10, 5), blob(attempt, 0, 10), blob(other, 0, 1)];
    let mut tx = bed.store.begin().await.expect("begin");
    tx.blobs_put(&blobs).await.expect("put");
    blobs[0].is_final = true;
    tx.blobs_put(&blobs[..1]).await.expect("put again");
    tx.commit().await.expect("commit");

    let mut tx = bed.store.read().await.expect("read");
    assert_eq!(tx.blobs_of_output(attempt).await.expect("output"), [blobs[1].clone(), blobs[0].clone()]);
    let mut ends = tx.blobs_ends(&[attempt, other]).await.expect("ends");
    ends.sort_by_key(|(_, end)| *end);
    assert_eq!(ends, [(other, 1), (attempt, 15)]);
    assert_eq!(tx.blob_fetch(&blobs[0].name).await.expect("fetch"), Some(blobs[0].clone()));
    assert_eq!(tx.blob_fetch("nothing").await.expect("fetch"), None);
    let names = ["nothing".to_owned(), blobs[2].name.clone()];
    assert_eq!(tx.blobs_known(&names).await.expect("known"), [blobs[2].name.clone()]);
    let expired = tx.blobs_expired(Timestamp(1_000_010), 10).await.expect("expired");
    assert_eq!(expired.len(), 2);
    tx.rollback().await.expect("rollback");

    let mut tx = bed.store.begin().await.expect("begin");
    tx.blobs_delete(&[blobs[0].name.clone(), blobs[1].name.clone()]).await.expect("delete");
    tx.commit().await.expect("commit");
    let mut tx = bed.store.read().await.expect("read");
    assert_eq!(tx.blobs_of_output(attempt).await.expect("output"), []);
    assert_eq!(tx.blobs_ends(&[attempt]).await.expect("ends"), []);
}

//! The event log.

use makima::{
    domain::{ContractId, TaskId, event::Change},
    store::Tx,
};

use super::{
    Fresh,
    samples::{ODD, at, change, id},
};
use crate::{bed::Kind, both};

both!(changes_come_back_in_order, sequences_are_never_used_again);

/// Appends changes that only their words tell apart.
async fn append(tx: &mut Tx, places: &[(u128, Option<u128>)]) -> Option<i64> {
    let changes: Vec<_> = (0..)
        .zip(places)
        .map(|(n, (contract, task))| {
            let task = task.map(|task| TaskId(id(task)));
            change(ContractId(id(*contract)), task, at(n), &format!("task.{n}"))
        })
        .collect();
    tx.events_insert(&changes).await.unwrap()
}

fn words(changes: &[Change]) -> Vec<&str> {
    changes.iter().map(|change| change.what.event.as_ref()).collect()
}

/// Whole, with the sequence filled in, in the order they were given, by contract and by task.
async fn changes_come_back_in_order(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let mut tx = fresh.begin().await;
    assert_eq!(tx.events_last().await.unwrap(), 0);
    assert_eq!(tx.events_insert(&[]).await.unwrap(), None);
    let places = [(1, Some(10)), (1, None), (2, Some(20)), (1, Some(11)), (1, Some(10))];
    let last = append(&mut tx, &places).await.expect("a sequence");
    tx.commit().await.unwrap();

    let mut tx = fresh.begin().await;
    let one = tx.events_of_contract(ContractId(id(1)), 0, 100).await.unwrap();
    assert_eq!(words(&one), ["task.0", "task.1", "task.3", "task.4"]);
    assert!(one.is_sorted_by(|a, b| a.sequence < b.sequence));
    assert_eq!(one[3].sequence, last);
    assert_eq!(tx.events_last().await.unwrap(), last);
    let mut expected = change(ContractId(id(1)), Some(TaskId(id(10))), at(0), "task.0");
    expected.sequence = one[0].sequence;
    assert_eq!(one[0], expected);
    assert_eq!(one[0].what.detail, ODD);
    assert_eq!(one[1].task, None);

    let after = tx.events_of_contract(ContractId(id(1)), one[1].sequence, 1).await.unwrap();
    assert_eq!(after, one[2..3]);
    assert_eq!(words(&tx.events_of_task(TaskId(id(10)), 0, 100).await.unwrap()), ["task.0", "task.4"]);
    assert_eq!(words(&tx.events_of_task(TaskId(id(10)), one[0].sequence, 100).await.unwrap()), ["task.4"]);
    assert_eq!(tx.events_of_task(TaskId(id(10)), last, 100).await.unwrap(), []);
    let everywhere = tx.events_places(0, 100).await.unwrap();
    let contracts: Vec<_> = everywhere.iter().map(|(_, contract)| *contract).collect();
    assert_eq!(contracts, [1, 1, 2, 1, 1].map(|n| ContractId(id(n))));
    assert_eq!(tx.events_places(everywhere[2].0, 1).await.unwrap(), everywhere[3..4]);

    // Many at once keep their order.
    let many: Vec<_> = (0..2_000).map(|_| (3, None)).collect();
    let newest = append(&mut tx, &many).await;
    let read = tx.events_of_contract(ContractId(id(3)), last, 10_000).await.unwrap();
    assert_eq!(read.last().map(|change| change.sequence), newest);
    assert_eq!(words(&read), (0..2_000).map(|n| format!("task.{n}")).collect::<Vec<_>>());
}

/// Not after what had them was rolled back or forgotten: a resume token that was given out never comes to mean another change.
async fn sequences_are_never_used_again(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let mut tx = fresh.begin().await;
    let first = append(&mut tx, &[(1, None), (1, None)]).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = fresh.begin().await;
    assert_eq!(tx.events_forgotten().await.unwrap(), 0);
    assert_eq!(tx.events_forget(at(100), 100).await.unwrap(), 2);
    assert_eq!(tx.events_forgotten().await.unwrap(), first);
    tx.commit().await.unwrap();
    let mut tx = fresh.begin().await;
    let next = append(&mut tx, &[(1, None)]).await.unwrap();
    assert!(next > first, "{next} after {first}");
}

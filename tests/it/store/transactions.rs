//! One writer at a time, whole snapshots, and what an error means.

use std::{sync::Arc, time::Duration};

use makima::store::{Error, Store};
use tokio::{sync::Mutex, task::JoinSet};

use super::{
    Fresh,
    samples::{contract, owner, task},
};
use crate::{
    bed::{Kind, Place},
    both,
    harness::eventually,
};

both!(
    a_reader_sees_one_snapshot,
    a_writer_excludes_another,
    no_write_is_lost,
    a_dropped_transaction_is_forgotten,
    a_failed_statement_takes_its_transaction_along,
    a_closed_store_is_unavailable,
    what_was_committed_is_there_after_opening_again,
);

/// What a reader has seen stays as it was while a writer commits; it holds nobody up.
async fn a_reader_sees_one_snapshot(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let owner = owner();
    let (one, two) = (contract(owner, 1), contract(owner, 2));
    let mut tx = fresh.begin().await;
    tx.contracts_put(&[&one]).await.unwrap();
    tx.commit().await.unwrap();

    let mut reader = fresh.read().await;
    assert_eq!(reader.contracts_list(owner, &[], true, None, 10).await.unwrap(), std::slice::from_ref(&one));
    let mut writer = fresh.begin().await;
    writer.contracts_put(&[&two]).await.unwrap();
    writer.meta_put("k", "v").await.unwrap();
    // Not before the commit, nor after it for one that began before.
    let mut other = fresh.read().await;
    assert_eq!(other.contracts_list(owner, &[], true, None, 10).await.unwrap(), std::slice::from_ref(&one));
    writer.commit().await.unwrap();
    assert_eq!(reader.contracts_list(owner, &[], true, None, 10).await.unwrap(), std::slice::from_ref(&one));
    assert_eq!(reader.meta_fetch("k").await.unwrap(), None);
    assert_eq!(reader.events_last().await.unwrap(), 0);
    reader.rollback().await.unwrap();

    let mut reader = fresh.read().await;
    assert_eq!(reader.contracts_list(owner, &[], true, None, 10).await.unwrap(), [two, one]);
}

/// What was written before it is gone, nothing more is taken, and the next transaction finds the database as it was.
async fn a_failed_statement_takes_its_transaction_along(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let owner = owner();
    let contract = contract(owner, 1);
    let [one, twin, other] = [task(&contract, 1, "t"), task(&contract, 2, "t"), task(&contract, 3, "other")];
    let mut tx = fresh.begin().await;
    tx.meta_put("k", "v").await.unwrap();
    let refused = tx.tasks_insert(&[&other, &one, &twin]).await;
    assert!(matches!(refused, Err(Error::Statement { .. })), "{refused:?}");
    assert!(tx.meta_put("k", "again").await.is_err());
    // Postgres says nothing of it: what it ends then is a transaction that was undone.
    assert_eq!(tx.commit().await.is_err(), matches!(kind, Kind::Sqlite));

    let mut tx = fresh.begin().await;
    assert_eq!(tx.meta_fetch("k").await.unwrap(), None);
    assert_eq!(tx.tasks_fetch(&[one.id, twin.id, other.id]).await.unwrap(), []);
    tx.tasks_insert(&[&other, &one]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(fresh.read().await.tasks_fetch(&[other.id]).await.unwrap(), [other]);
}

/// A second one waits until the first is over, and giving up the wait costs nobody anything.
async fn a_writer_excludes_another(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let mut first = fresh.begin().await;
    first.meta_put("k", "first").await.unwrap();
    // Long enough for a statement that does not wait.
    let second = tokio::time::timeout(Duration::from_millis(300), fresh.store.begin()).await;
    assert!(second.is_err(), "a second writer came in");
    let store = fresh.store.clone();
    let mut waiting = JoinSet::new();
    waiting.spawn(async move {
        let mut tx = store.begin().await?;
        let seen = tx.meta_fetch("k").await?;
        tx.commit().await?;
        Ok::<_, Error>(seen)
    });
    first.commit().await.unwrap();
    // What waited sees all that was committed before it.
    let seen = waiting.join_next().await.expect("a task").expect("joined").expect("a second writer");
    assert_eq!(seen.as_deref(), Some("first"));
    let third = tokio::time::timeout(Duration::from_secs(9), fresh.begin()).await.expect("the lock is free");
    third.rollback().await.unwrap();
}

/// Many writers that read and then write: none reads what another is about to change.
async fn no_write_is_lost(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let mut writers = JoinSet::new();
    for writer in 0..6 {
        let store = fresh.store.clone();
        writers.spawn(async move {
            for round in 0..10 {
                // The ledger's own connection is one of them.
                let begun = if (writer + round) % 2 == 0 { store.begin().await } else { store.begin_ledger().await };
                let mut tx = begun.expect("begin");
                let count: u32 = tx.meta_fetch("n").await.unwrap().map_or(0, |text| text.parse().unwrap());
                tx.meta_put("n", &(count + 1).to_string()).await.unwrap();
                tx.commit().await.unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("a writer");
    }
    assert_eq!(fresh.read().await.meta_fetch("n").await.unwrap().as_deref(), Some("60"));
}

/// Dropped in the middle, nothing of it is there and the next writer comes in.
async fn a_dropped_transaction_is_forgotten(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    for round in 0..20 {
        let mut tx = if round % 2 == 0 { fresh.begin().await } else { fresh.store.begin_ledger().await.unwrap() };
        assert_eq!(tx.meta_fetch("k").await.unwrap(), None, "round {round}");
        tx.meta_put("k", "v").await.unwrap();
        drop(tx);
    }
}

/// No connection can be had: the same again later may work, so it is no fault of the statement.
async fn a_closed_store_is_unavailable(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    fresh.store.begin_ledger().await.expect("begin").commit().await.expect("commit");
    fresh.store.close().await;
    assert!(matches!(fresh.store.begin().await, Err(Error::Unavailable { .. })));
    assert!(matches!(fresh.store.begin_ledger().await, Err(Error::Unavailable { .. })));
    assert!(matches!(fresh.store.read().await, Err(Error::Unavailable { .. })));
}

/// Opening a database again finds its schema up to date and its rows there.
async fn what_was_committed_is_there_after_opening_again(kind: Kind) {
    let place = Place::new(kind).await;
    let owner = owner();
    let written = Arc::new(contract(owner, 1));
    let (store, claim) = Store::open(&place.url).await.expect("open the store");
    let mut tx = store.begin().await.unwrap();
    tx.contracts_put(&[&written]).await.unwrap();
    tx.commit().await.unwrap();
    store.close().await;
    drop((store, claim));
    // On Postgres the claim goes with its connection, which the server may notice a moment later.
    let (store, _claim) = eventually("the database can be opened again", || async {
        Store::open(&place.url).await.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(store.kind(), if matches!(kind, Kind::Sqlite) { "sqlite" } else { "postgres" });
    assert_eq!(store.commits_in_doubt(), matches!(kind, Kind::Postgres));
    let mut tx = store.read().await.unwrap();
    assert_eq!(tx.contract_fetch(owner, written.id).await.unwrap().as_ref(), Some(&*written));
}

/// A server whose claim has gone with its connection, and which has not noticed, writes nothing once another has the database.
#[tokio::test]
async fn who_has_lost_the_database_writes_no_more() {
    let place = Place::new(Kind::Postgres).await;
    let (first, claim) = Store::open(&place.url).await.expect("open the store");
    first.begin().await.expect("it has the database").rollback().await.expect("end it");
    first.begin_ledger().await.expect("it has the database").rollback().await.expect("end it");
    drop(claim);
    let (second, _claim) = eventually("the claim is free", || Store::open(&place.url)).await;
    assert!(matches!(first.begin().await, Err(Error::InUse(_))));
    assert!(matches!(first.begin_ledger().await, Err(Error::InUse(_))));
    second.begin().await.expect("it has the database").rollback().await.expect("end it");
}

/// A server that lost the database to another while it slept must stop, though the other has gone by the time it looks: what it
/// remembers is not what stands there.
#[tokio::test]
async fn who_had_lost_the_database_meanwhile_must_stop() {
    let place = Place::new(Kind::Postgres).await;
    let (first, claim) = Store::open(&place.url).await.expect("open the store");
    place.end_connections().await;
    let (second, other) = eventually("the claim is free", || Store::open(&place.url)).await;
    second.close().await;
    drop((second, other));
    let claim = Mutex::new(claim);
    eventually("it says that it must stop, once the other's claim has gone", || async {
        match claim.lock().await.check().await {
            Err(Error::InUse(message)) if message.contains("has taken this database") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(matches!(first.begin().await, Err(Error::InUse(_))));
}

/// The claim is taken anew where nobody else had it, and transactions go on, though all connections were ended.
#[tokio::test]
async fn connections_that_postgres_ends_are_made_again() {
    let place = Place::new(Kind::Postgres).await;
    let (store, mut claim) = Store::open(&place.url).await.expect("open the store");
    store.begin().await.expect("a connection").rollback().await.expect("end it");
    store.begin_ledger().await.expect("its own").commit().await.expect("end it");
    place.end_connections().await;
    store.begin().await.expect("another connection").rollback().await.expect("end it");
    store.begin_ledger().await.expect("another of its own").commit().await.expect("end it");
    claim.check().await.expect("it still has the database");
}

/// A copy from before this server began was put back under it, with its connections as they were.
#[tokio::test]
async fn who_stands_on_a_copy_must_stop() {
    let place = Place::new(Kind::Postgres).await;
    let (_store, mut claim) = Store::open(&place.url).await.expect("open the store");
    place.beside("UPDATE meta SET value = 'older' WHERE key = 'server_claim'").await;
    assert!(matches!(claim.check().await, Err(Error::InUse(_))));
}

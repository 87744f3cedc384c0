//! Owners, keys, request ids, batches, and facts.

use makima::{
    domain::{
        BatchId, ContractId, DaemonId, KeyId, OwnerId, TaskId,
        key::{Key, KeyKind},
    },
    store::{Error, Remembered},
};

use super::{
    Fresh,
    samples::{ODD, at, id, owner},
};
use crate::{bed::Kind, both};

both!(owners_and_keys, keys_in_pages, request_ids_are_remembered, batches_and_facts);

fn key(n: u128, kind: KeyKind, owner: Option<(OwnerId, &str)>) -> Key {
    let mut hash = [0xf0; 32];
    hash[31] = u8::try_from(n).unwrap();
    Key {
        id: KeyId(id(n)),
        kind,
        owner: owner.map(|(owner, _)| owner),
        owner_name: owner.map(|(_, name)| name.to_owned()).unwrap_or_default(),
        label: ODD.to_owned(),
        hash,
        created: at(1),
        revoked: None,
    }
}

/// Whole, by hash and id, with the owner's name; a revoked one is still there and says so.
async fn owners_and_keys(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let alice = owner();
    let mut tx = fresh.begin().await;
    tx.owner_insert(alice, "alice", at(1)).await.unwrap();
    assert_eq!(tx.owner_named("alice").await.unwrap(), Some(alice));
    assert_eq!(tx.owner_named("bob").await.unwrap(), None);
    assert_eq!(tx.owner_name(alice).await.unwrap().as_deref(), Some("alice"));
    assert_eq!(tx.owner_name(owner()).await.unwrap(), None);

    let keys = [
        key(1, KeyKind::Admin, None),
        key(2, KeyKind::Owner, Some((alice, "alice"))),
        key(3, KeyKind::Daemon, Some((alice, "alice"))),
    ];
    tx.keys_put(&keys).await.unwrap();
    tx.keys_put(&[]).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = fresh.begin().await;
    for key in &keys {
        assert_eq!(tx.key_by_hash(&key.hash).await.unwrap().as_ref(), Some(key));
        assert_eq!(tx.key_fetch(key.id).await.unwrap().as_ref(), Some(key));
    }
    assert_eq!(tx.key_by_hash(&[0; 32]).await.unwrap(), None);
    assert_eq!(tx.key_fetch(KeyId(id(9))).await.unwrap(), None);
    let revoked = Key { revoked: Some(at(9)), ..keys[1].clone() };
    tx.keys_put(std::slice::from_ref(&revoked)).await.unwrap();
    assert_eq!(tx.key_by_hash(&revoked.hash).await.unwrap(), Some(revoked));
    let again = tx.owner_insert(owner(), "alice", at(2)).await;
    assert!(matches!(again, Err(Error::Statement { .. })), "{again:?}");
    tx.rollback().await.unwrap();
}

/// Newest first, with or without the revoked ones.
async fn keys_in_pages(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let mut keys: Vec<_> = (1..=5).map(|n| key(n, KeyKind::Admin, None)).collect();
    keys[2].revoked = Some(at(3));
    let mut tx = fresh.begin().await;
    tx.keys_put(&keys).await.unwrap();
    keys.reverse();
    assert_eq!(tx.keys_list(true, None, 10).await.unwrap(), keys);
    assert_eq!(tx.keys_list(true, None, 3).await.unwrap(), keys[..3]);
    assert_eq!(tx.keys_list(true, Some(keys[2].id), 10).await.unwrap(), keys[3..]);
    let good: Vec<_> = keys.iter().filter(|key| key.revoked.is_none()).cloned().collect();
    assert_eq!(tx.keys_list(false, None, 10).await.unwrap(), good);
    assert_eq!(tx.keys_list(false, Some(keys[4].id), 10).await.unwrap(), []);
}

/// Whole, by owner and id; another owner's same id is another request.
async fn request_ids_are_remembered(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let (alice, bob) = (owner(), owner());
    let of = |owner, name: &str| Remembered {
        owner,
        id: name.to_owned(),
        hash: "ab".repeat(32),
        created: at(4),
        contract: Some(ContractId(id(1))),
        tasks: vec![TaskId(id(2)), TaskId(id(3))],
        daemon: Some(DaemonId(id(4))),
    };
    let written = [of(alice, ODD), of(alice, "2"), Remembered { contract: None, daemon: None, ..of(bob, "2") }];
    let mut tx = fresh.begin().await;
    tx.requests_insert(&written).await.unwrap();
    tx.requests_insert(&[]).await.unwrap();
    let wanted = [(alice, ODD.to_owned()), (bob, "2".to_owned()), (bob, ODD.to_owned())];
    let mut read = tx.requests_fetch(&wanted).await.unwrap();
    read.sort_by_key(|remembered| remembered.owner != alice);
    assert_eq!(read, [written[0].clone(), written[2].clone()]);
    assert_eq!(tx.requests_fetch(&[]).await.unwrap(), []);
    let again = tx.requests_insert(&written[..1]).await;
    assert!(matches!(again, Err(Error::Statement { .. })), "{again:?}");
    tx.rollback().await.unwrap();
}

/// A batch exists once it is committed, not if it was rolled back; a fact is the last that was said.
async fn batches_and_facts(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let (kept, lost) = (BatchId(id(1)), BatchId(id(2)));
    let mut tx = fresh.begin().await;
    tx.batch_insert(kept, at(1)).await.unwrap();
    assert_eq!(tx.meta_fetch("fact").await.unwrap(), None);
    tx.meta_put("fact", "old").await.unwrap();
    tx.meta_put("fact", ODD).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = fresh.begin().await;
    tx.batch_insert(lost, at(1)).await.unwrap();
    tx.meta_put("fact", "lost").await.unwrap();
    tx.rollback().await.unwrap();
    let mut tx = fresh.read().await;
    assert!(tx.batch_exists(kept).await.unwrap());
    assert!(!tx.batch_exists(lost).await.unwrap());
    assert_eq!(tx.meta_fetch("fact").await.unwrap().as_deref(), Some(ODD));
}

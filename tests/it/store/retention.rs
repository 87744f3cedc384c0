//! Blobs, and forgetting.

use makima::{
    domain::{AttemptId, BatchId, ContractId, DaemonId, TaskId, attempt::AttemptState, contract::Contract},
    store::{Blob, BlobKind, Edge, Lane, Remembered, TaskFilter},
};

use super::{
    Fresh,
    samples::{ODD, at, attempt, change, contract, id, owner, task},
};
use crate::{bed::Kind, both};

both!(
    blobs_come_back_whole,
    blobs_expire_in_portions,
    events_are_forgotten_in_portions,
    contracts_go_with_all_of_theirs
);

fn blob(attempt: u128, start: i64) -> Blob {
    Blob {
        name: format!("{ODD}/{attempt}/{start}"),
        owner: makima::domain::OwnerId(id(1)),
        attempt: AttemptId(id(attempt)),
        kind: BlobKind::Output,
        start,
        length: 100,
        gap: start == 500,
        is_final: false,
        created: at(start),
    }
}

/// Whole, in order of offset; written again they keep their place and take the new flags.
async fn blobs_come_back_whole(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let (a, b) = (AttemptId(id(10)), AttemptId(id(11)));
    let written = [blob(10, 0), blob(10, 100), blob(10, 500), blob(11, 1 << 40)];
    let mut tx = fresh.begin().await;
    tx.blobs_put(&[written[2].clone(), written[3].clone(), written[0].clone(), written[1].clone()]).await.unwrap();
    tx.blobs_put(&[]).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = fresh.begin().await;
    assert_eq!(tx.blobs_of_output(a).await.unwrap(), written[..3]);
    assert_eq!(tx.blobs_of_output(AttemptId(id(12))).await.unwrap(), []);
    assert_eq!(tx.blob_fetch(&written[3].name).await.unwrap().as_ref(), Some(&written[3]));
    assert_eq!(tx.blob_fetch("none").await.unwrap(), None);
    let mut ends = tx.blobs_ends(&[b, a, AttemptId(id(12))]).await.unwrap();
    ends.sort();
    assert_eq!(ends, [(a, 600), (b, (1 << 40) + 100)]);
    assert_eq!(tx.blobs_ends(&[]).await.unwrap(), []);
    let names = [written[1].name.clone(), "stray".to_owned()];
    assert_eq!(tx.blobs_known(&names).await.unwrap(), names[..1]);
    assert_eq!(tx.blobs_known(&[]).await.unwrap(), Vec::<String>::new());

    let last = Blob { is_final: true, gap: false, ..written[2].clone() };
    tx.blobs_put(std::slice::from_ref(&last)).await.unwrap();
    assert_eq!(tx.blobs_of_output(a).await.unwrap()[2], last);
    tx.blobs_delete(&names).await.unwrap();
    tx.blobs_delete(&[]).await.unwrap();
    assert_eq!(tx.blobs_of_output(a).await.unwrap(), [written[0].clone(), last]);
}

/// The oldest first, up to but not including the time.
async fn blobs_expire_in_portions(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let mut tx = fresh.begin().await;
    tx.blobs_put(&[blob(1, 200), blob(1, 0), blob(1, 100)]).await.unwrap();
    assert_eq!(tx.blobs_expired(at(0), 10).await.unwrap(), []);
    assert_eq!(tx.blobs_expired(at(200), 10).await.unwrap(), [blob(1, 0), blob(1, 100)]);
    assert_eq!(tx.blobs_expired(at(900), 1).await.unwrap(), [blob(1, 0)]);
}

/// The oldest first, so many at a time, and it is known how far; request ids and batches go by their time.
async fn events_are_forgotten_in_portions(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let (owner, contract) = (owner(), ContractId(id(1)));
    let mut tx = fresh.begin().await;
    let changes: Vec<_> = (0..10).map(|n| change(contract, None, at(n), &format!("{n}"))).collect();
    tx.events_insert(&changes).await.unwrap();
    let kept = tx.events_of_contract(contract, 0, 100).await.unwrap();
    assert_eq!(tx.events_forget(at(0), 100).await.unwrap(), 0);
    assert_eq!(tx.events_forgotten().await.unwrap(), 0);
    assert_eq!(tx.events_forget(at(6), 4).await.unwrap(), 4);
    assert_eq!(tx.events_forgotten().await.unwrap(), kept[3].sequence);
    assert_eq!(tx.events_of_contract(contract, 0, 100).await.unwrap(), kept[4..]);
    assert_eq!(tx.events_forget(at(6), 4).await.unwrap(), 2);
    assert_eq!(tx.events_forget(at(6), 4).await.unwrap(), 0);
    assert_eq!(tx.events_forgotten().await.unwrap(), kept[5].sequence);
    assert_eq!(tx.events_of_contract(contract, 0, 100).await.unwrap(), kept[6..]);

    let remembered = |n: i64| Remembered {
        owner,
        id: n.to_string(),
        hash: String::new(),
        created: at(n),
        contract: None,
        tasks: Vec::new(),
        daemon: None,
    };
    tx.requests_insert(&[remembered(1), remembered(2)]).await.unwrap();
    tx.batch_insert(BatchId(id(1)), at(1)).await.unwrap();
    tx.batch_insert(BatchId(id(2)), at(2)).await.unwrap();
    assert_eq!(tx.requests_forget(at(2)).await.unwrap(), 1);
    assert_eq!(tx.batches_forget(at(2), 10).await.unwrap(), 1);
    assert_eq!(tx.batches_forget(at(2), 10).await.unwrap(), 0);
    let both = [(owner, "1".to_owned()), (owner, "2".to_owned())];
    assert_eq!(tx.requests_fetch(&both).await.unwrap(), [remembered(2)]);
    assert!(!tx.batch_exists(BatchId(id(1))).await.unwrap());
    assert!(tx.batch_exists(BatchId(id(2))).await.unwrap());
}

/// Anonymous ones that ended before, the oldest first; nothing of theirs is left, and nothing of others is touched.
async fn contracts_go_with_all_of_theirs(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let owner = owner();
    let ended = |n, when| Contract { anonymous: true, ended: Some(at(when)), ..contract(owner, n) };
    let contracts = [
        ended(1, 20),
        ended(2, 10),
        ended(3, 30),
        Contract { anonymous: false, ..ended(4, 5) },
        Contract { ended: None, ..ended(5, 0) },
    ];
    let mut tx = fresh.begin().await;
    tx.contracts_put(&contracts.iter().collect::<Vec<_>>()).await.unwrap();
    let ids: Vec<_> = contracts.iter().map(|contract| contract.id).collect();
    assert_eq!(tx.contracts_expired(at(30), 10).await.unwrap(), [ids[1], ids[0]]);
    assert_eq!(tx.contracts_expired(at(31), 1).await.unwrap(), [ids[1]]);

    for (n, contract) in (0..).zip(&contracts[..2]) {
        let task = task(contract, 100 + n, "t");
        let lane =
            Lane { contract: contract.id, class: task.class, owner, is_open: true, now: at(1), is_served: false };
        let running = AttemptState::Running { since: at(1) };
        tx.tasks_insert(&[&task]).await.unwrap();
        tx.attempts_insert(&[&attempt(&task, 200 + n, 1, DaemonId(id(7)), running)]).await.unwrap();
        let edge = Edge { dependent: task.id, dependency: TaskId(id(9)), contract: contract.id, satisfied: false };
        tx.edges_put(&[edge]).await.unwrap();
        tx.lanes_refresh(&[lane]).await.unwrap();
        tx.events_insert(&[change(contract.id, Some(task.id), at(1), "e")]).await.unwrap();
    }
    tx.contracts_delete(&[]).await.unwrap();
    tx.contracts_delete(&[ids[1]]).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = fresh.read().await;
    let left = tx.contracts_fetch(&ids).await.unwrap();
    assert_eq!(left.len(), 4);
    let all = TaskFilter { owner, contract: None, statuses: None, after: None, hidden: true };
    let tasks = tx.tasks_list(&all, 10).await.unwrap();
    assert_eq!(tasks, [task(&contracts[0], 100, "t")]);
    assert_eq!(tx.attempts_live(&[DaemonId(id(7))]).await.unwrap().len(), 1);
    assert_eq!(tx.edges_to(&[TaskId(id(9))]).await.unwrap().len(), 1);
    assert_eq!(tx.lanes_walk(&[tasks[0].class], 10).await.unwrap().len(), 1);
    assert_eq!(tx.events_of_contract(ids[1], 0, 10).await.unwrap(), []);
    assert_eq!(tx.events_of_contract(ids[0], 0, 10).await.unwrap().len(), 1);
}

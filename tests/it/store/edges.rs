//! Edges, and what follows over them.

use std::collections::HashSet;

use makima::{
    domain::{
        ContractId, TaskId,
        task::{TaskState, TaskStatus},
    },
    store::{Brief, Edge},
};

use super::{
    Fresh,
    samples::{at, contract, failure, id, owner, result, task, with},
};
use crate::{bed::Kind, both};

both!(
    edges_come_back_whole,
    a_long_chain_is_followed,
    diamonds_are_followed_once,
    dependents_in_order,
    contracts_that_move
);

/// Tasks of a chain: longer than any recursion limit, nesting limit or parameter count.
const CHAIN: u128 = 5_000;

fn edge(dependent: u128, dependency: u128) -> Edge {
    Edge {
        dependent: TaskId(id(dependent)),
        dependency: TaskId(id(dependency)),
        contract: ContractId(id(1)),
        satisfied: false,
    }
}

fn sorted(mut edges: Vec<Edge>) -> Vec<Edge> {
    edges.sort_by_key(|edge| (edge.dependent, edge.dependency));
    edges
}

/// From either end; a change of the flag is kept, and what is taken away is gone.
async fn edges_come_back_whole(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let written = [edge(1, 2), Edge { satisfied: true, ..edge(1, 3) }, edge(2, 3)];
    let mut tx = fresh.begin().await;
    tx.edges_put(&written).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = fresh.begin().await;
    let t = |n| TaskId(id(n));
    assert_eq!(sorted(tx.edges_from(&[t(1), t(9)]).await.unwrap()), written[..2]);
    assert_eq!(sorted(tx.edges_to(&[t(3)]).await.unwrap()), written[1..]);
    let flipped = Edge { satisfied: true, ..written[0] };
    tx.edges_put(&[flipped, edge(3, 4)]).await.unwrap();
    assert_eq!(tx.edges_to(&[t(2)]).await.unwrap(), [flipped]);
    tx.edges_delete(&[written[1], edge(8, 9)]).await.unwrap();
    assert_eq!(tx.edges_from(&[t(1)]).await.unwrap(), [flipped]);

    tx.edges_put(&[]).await.unwrap();
    tx.edges_delete(&[]).await.unwrap();
    assert_eq!(tx.edges_from(&[]).await.unwrap(), []);
    assert_eq!(tx.edges_to(&[]).await.unwrap(), []);
    assert_eq!(tx.edges_upstream(&[]).await.unwrap(), []);
    assert_eq!(tx.edges_unmet(&[], 10).await.unwrap(), []);
    assert_eq!(tx.dependents_closure(&[]).await.unwrap(), []);
}

/// Both ways along thousands of tasks.
async fn a_long_chain_is_followed(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let edges: Vec<_> = (1..CHAIN).map(|n| edge(n, n - 1)).collect();
    let mut tx = fresh.begin().await;
    tx.edges_put(&edges).await.unwrap();
    let ends = [TaskId(id(CHAIN - 1))];
    assert_eq!(sorted(tx.edges_upstream(&ends).await.unwrap()), edges);
    assert_eq!(sorted(tx.edges_unmet(&ends, 1 << 20).await.unwrap()), edges);
    assert_eq!(tx.edges_unmet(&ends, 7).await.unwrap().len(), 7);
    let mut closure = tx.dependents_closure(&[TaskId(id(0))]).await.unwrap();
    closure.sort();
    assert_eq!(closure, (0..CHAIN).map(|n| TaskId(id(n))).collect::<Vec<_>>());
    // What is satisfied is not waited for, nor is what lies behind it.
    tx.edges_put(&[Edge { satisfied: true, ..edge(CHAIN - 3, CHAIN - 4) }]).await.unwrap();
    assert_eq!(sorted(tx.edges_unmet(&ends, 1 << 20).await.unwrap()), edges[edges.len() - 2..]);
}

/// Twenty diamonds in a row have a million paths; each edge and task is answered once.
async fn diamonds_are_followed_once(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let edges: Vec<_> = (0..20u128)
        .flat_map(|n| {
            let top = n * 3;
            [edge(top + 1, top), edge(top + 2, top), edge(top + 3, top + 1), edge(top + 3, top + 2)]
        })
        .collect();
    let mut tx = fresh.begin().await;
    tx.edges_put(&edges).await.unwrap();
    assert_eq!(sorted(tx.edges_upstream(&[TaskId(id(60))]).await.unwrap()), sorted(edges.clone()));
    assert_eq!(sorted(tx.edges_unmet(&[TaskId(id(60))], 1_000).await.unwrap()), sorted(edges));
    let closure = tx.dependents_closure(&[TaskId(id(0)), TaskId(id(1))]).await.unwrap();
    assert_eq!(closure.len(), 61);
    assert_eq!(closure.into_iter().collect::<HashSet<_>>().len(), 61);
}

/// Who waits for a task, by id, with what is known of them.
async fn dependents_in_order(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let contract = contract(owner(), 1);
    let failed = TaskState::Failed { failure: failure(), at: at(1) };
    let tasks = [
        task(&contract, 10, "root"),
        task(&contract, 13, "c"),
        with(&task(&contract, 11, "a"), failed),
        task(&contract, 12, "b"),
    ];
    let mut tx = fresh.begin().await;
    tx.tasks_insert(&tasks.iter().collect::<Vec<_>>()).await.unwrap();
    tx.edges_put(&[edge(12, 10), Edge { satisfied: true, ..edge(11, 10) }, edge(13, 10)]).await.unwrap();
    let brief = |n, name: &str, status| Brief { id: TaskId(id(n)), name: name.to_owned(), status };
    let expected = [
        (brief(11, "a", TaskStatus::Failed), true),
        (brief(12, "b", TaskStatus::Pending), false),
        (brief(13, "c", TaskStatus::Pending), false),
    ];
    assert_eq!(tx.briefs_of_dependents(tasks[0].id, 10).await.unwrap(), expected);
    assert_eq!(tx.briefs_of_dependents(tasks[0].id, 2).await.unwrap(), expected[..2]);
    assert_eq!(tx.briefs_of_dependents(tasks[1].id, 2).await.unwrap(), []);
}

/// A contract moves while some task of it waits for nobody.
async fn contracts_that_move(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let owner = owner();
    let (moves, blocked, over, empty) =
        (contract(owner, 1), contract(owner, 2), contract(owner, 3), contract(owner, 4));
    let failed = |t| with(&t, TaskState::Failed { failure: failure(), at: at(1) });
    let done = |t| with(&t, TaskState::Done { result: result(), at: at(1) });
    let tasks = [
        task(&moves, 10, "a"),
        task(&moves, 11, "b"),
        failed(task(&blocked, 20, "a")),
        task(&blocked, 21, "b"),
        done(task(&over, 30, "a")),
    ];
    let mut tx = fresh.begin().await;
    tx.tasks_insert(&tasks.iter().collect::<Vec<_>>()).await.unwrap();
    let waits = Edge { contract: blocked.id, ..edge(21, 20) };
    tx.edges_put(&[edge(11, 10), waits]).await.unwrap();
    let all = [moves.id, blocked.id, over.id, empty.id];
    assert_eq!(tx.contracts_moving(&all).await.unwrap(), [moves.id]);
    tx.edges_put(&[Edge { satisfied: true, ..waits }]).await.unwrap();
    assert_eq!(tx.contracts_moving(&[blocked.id]).await.unwrap(), [blocked.id]);
    assert_eq!(tx.contracts_moving(&[]).await.unwrap(), []);
}

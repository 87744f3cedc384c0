//! Classes, lanes and their heads: what the dispatcher reads.

use std::sync::Arc;

use makima::{
    domain::{
        ContractId, TaskId,
        contract::Contract,
        task::{Task, TaskSpec, TaskState},
    },
    store::{Lane, LaneHead, LaneTask, Tx},
};

use super::{
    Fresh,
    samples::{at, class, contract, id, owner, requirements, task, waiting, with},
};
use crate::{bed::Kind, both};

both!(classes_come_back_once, lanes_follow_their_tasks, lanes_are_walked_in_order, heads_are_the_most_urgent);

fn urgent(task: &Task, priority: i32) -> Task {
    Task { spec: Arc::new(TaskSpec { priority, ..(*task.spec).clone() }), ..task.clone() }
}

fn lane(contract: &Contract, agent: &str) -> Lane {
    Lane {
        contract: contract.id,
        class: class(contract.owner, agent),
        owner: contract.owner,
        is_open: true,
        now: at(1),
        is_served: false,
    }
}

fn served(lane: Lane, micros: i64) -> Lane {
    Lane { now: at(micros), is_served: true, ..lane }
}

fn head(lane: Lane, priority: i32) -> LaneHead {
    LaneHead { contract: lane.contract, class: lane.class, priority }
}

async fn insert(tx: &mut Tx, tasks: &[Task]) {
    tx.tasks_insert(&tasks.iter().collect::<Vec<_>>()).await.unwrap();
}

/// Whole, and once however often they are written.
async fn classes_come_back_once(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let (alice, bob) = (owner(), owner());
    let of = |owner, agent| (class(owner, agent), owner, requirements(agent));
    let written = [of(alice, "claude"), of(alice, "shell"), of(bob, "claude")];
    let mut tx = fresh.begin().await;
    tx.classes_insert(&written).await.unwrap();
    tx.classes_insert(&written[1..]).await.unwrap();
    tx.classes_insert(&[]).await.unwrap();
    let mut read = tx.classes_list().await.unwrap();
    read.sort();
    let mut expected = written.to_vec();
    expected.sort();
    assert_eq!(read, expected);
}

/// The head is the highest priority among the ready tasks of the lane, made anew from the tasks; closed lanes are not walked.
async fn lanes_follow_their_tasks(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let contract = contract(owner(), 1);
    let lane = lane(&contract, "claude");
    let low = urgent(&task(&contract, 10, "low"), -7);
    let high = urgent(&task(&contract, 11, "high"), 3);
    let mut tx = fresh.begin().await;
    insert(&mut tx, &[low.clone(), high.clone()]).await;
    tx.lanes_refresh(&[lane]).await.unwrap();
    assert_eq!(tx.lanes_walk(&[lane.class], 10).await.unwrap(), [head(lane, 3)]);

    for not_ready in [waiting(at(1)), TaskState::Running { since: at(1) }] {
        tx.tasks_update(&[&with(&high, not_ready)]).await.unwrap();
        tx.lanes_refresh(&[lane]).await.unwrap();
        assert_eq!(tx.lanes_walk(&[lane.class], 10).await.unwrap(), [head(lane, -7)]);
    }
    tx.tasks_update(&[&Task { unmet: 1, ..high.clone() }, &Task { ending: Some(1), ..low.clone() }]).await.unwrap();
    tx.lanes_refresh(&[lane]).await.unwrap();
    assert_eq!(tx.lanes_walk(&[lane.class], 10).await.unwrap(), []);
    assert_eq!(tx.lanes_of(&[contract.id]).await.unwrap(), []);

    tx.tasks_update(&[&high]).await.unwrap();
    tx.lanes_refresh(&[Lane { is_open: false, ..lane }]).await.unwrap();
    assert_eq!(tx.lanes_walk(&[lane.class], 10).await.unwrap(), []);
    assert_eq!(tx.lanes_of(&[contract.id, ContractId(id(9))]).await.unwrap(), [head(lane, 3)]);
    tx.lanes_open(&[(contract.id, true), (ContractId(id(9)), false)]).await.unwrap();
    assert_eq!(tx.lanes_walk(&[lane.class], 10).await.unwrap(), [head(lane, 3)]);
    tx.lanes_open(&[(contract.id, false)]).await.unwrap();
    assert_eq!(tx.lanes_walk(&[lane.class], 10).await.unwrap(), []);
    // A respec changes priority and class; the lane follows when it is made anew.
    tx.lanes_open(&[(contract.id, true)]).await.unwrap();
    tx.tasks_respec(&[&urgent(&high, 100)]).await.unwrap();
    tx.lanes_refresh(&[lane]).await.unwrap();
    assert_eq!(tx.lanes_walk(&[lane.class], 10).await.unwrap(), [head(lane, 100)]);

    tx.lanes_refresh(&[]).await.unwrap();
    tx.lanes_open(&[]).await.unwrap();
    assert_eq!(tx.lanes_walk(&[], 10).await.unwrap(), []);
    assert_eq!(tx.lanes_of(&[]).await.unwrap(), []);
}

/// Urgent first; among equals the one served longest ago, or made, if never; over several classes at once.
async fn lanes_are_walked_in_order(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let owner = owner();
    let contracts: Vec<_> = (1..=5).map(|n| contract(owner, n)).collect();
    let lanes: Vec<_> = contracts.iter().map(|contract| lane(contract, "claude")).collect();
    let shell = lane(&contracts[0], "shell");
    let other = lane(&contracts[1], "other");
    let mut tx = fresh.begin().await;
    for ((n, contract), priority) in (10..).zip(&contracts).zip([0, 0, 0, 5, -1]) {
        insert(&mut tx, &[urgent(&task(contract, n, "t"), priority)]).await;
    }
    let shells = urgent(&Task { class: shell.class, ..task(&contracts[0], 30, "shell") }, 2);
    let others = urgent(&Task { class: other.class, ..task(&contracts[1], 31, "other") }, 9);
    insert(&mut tx, &[shells, others]).await;
    tx.lanes_refresh(&lanes).await.unwrap();
    tx.lanes_refresh(&[shell, other]).await.unwrap();
    tx.lanes_refresh(&[served(lanes[0], 20), served(lanes[1], 10)]).await.unwrap();

    let walked = [head(lanes[3], 5), head(lanes[2], 0), head(lanes[1], 0), head(lanes[0], 0), head(lanes[4], -1)];
    assert_eq!(tx.lanes_walk(&[lanes[0].class], 10).await.unwrap(), walked);
    assert_eq!(tx.lanes_walk(&[lanes[0].class], 3).await.unwrap(), walked[..3]);
    // The limit is each class's own: many lanes of one do not hide another.
    let both = tx.lanes_walk(&[shell.class, lanes[0].class], 3).await.unwrap();
    assert_eq!(both, [walked[0], head(shell, 2), walked[1], walked[2]]);

    // One that is not served keeps its place, one that is goes behind the others, and a new one behind those that were served before.
    tx.lanes_refresh(&[Lane { now: at(40), ..lanes[2] }]).await.unwrap();
    assert_eq!(tx.lanes_walk(&[lanes[0].class], 10).await.unwrap(), walked);
    tx.lanes_refresh(&[served(lanes[1], 30)]).await.unwrap();
    let new = super::samples::contract(owner, 6);
    insert(&mut tx, &[urgent(&task(&new, 15, "t"), 0)]).await;
    let new = Lane { now: at(25), ..lane(&new, "claude") };
    tx.lanes_refresh(&[new]).await.unwrap();
    let walk = tx.lanes_walk(&[lanes[0].class], 10).await.unwrap();
    assert_eq!(walk[1..5], [walked[1], walked[3], head(new, 0), walked[2]]);
}

/// Of each lane its most urgent ready tasks, older ones first among equals, at most so many of each.
async fn heads_are_the_most_urgent(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let owner = owner();
    let (one, two) = (contract(owner, 1), contract(owner, 2));
    let mut written = Vec::new();
    for (n, priority) in (0..).zip([0, 5, 0, 5, 1, -3]) {
        written.push(urgent(&task(&one, 20 + n, &format!("t{n}")), priority));
    }
    let running = with(&urgent(&task(&one, 40, "running"), 99), TaskState::Running { since: at(0) });
    let shell = Task { class: class(owner, "shell"), ..task(&one, 41, "shell") };
    let mut tx = fresh.begin().await;
    insert(&mut tx, &written).await;
    insert(&mut tx, &[running, shell, task(&two, 50, "two")]).await;
    let lanes = [head(lane(&one, "claude"), 0), head(lane(&two, "claude"), 0)];
    async fn numbers(tx: &mut Tx, lanes: &[LaneHead], limit: i64) -> Vec<u128> {
        let mut heads = tx.lanes_tasks(lanes, limit).await.unwrap();
        heads.sort_by_key(|task| task.id);
        heads.iter().map(|task| task.id.0.as_u128() - id(0).as_u128()).collect()
    }
    assert_eq!(numbers(&mut tx, &lanes, 1).await, [21, 50]);
    assert_eq!(numbers(&mut tx, &lanes, 4).await, [20, 21, 23, 24, 50]);
    assert_eq!(numbers(&mut tx, &lanes, 100).await, [20, 21, 22, 23, 24, 25, 50]);
    assert_eq!(numbers(&mut tx, &lanes[1..], 100).await, [50]);
    assert_eq!(tx.lanes_tasks(&[], 1).await.unwrap(), []);
    let heads = tx.lanes_tasks(&lanes[..1], 1).await.unwrap();
    assert_eq!(heads, [LaneTask { contract: one.id, class: lanes[0].class, priority: 5, id: TaskId(id(21)) }]);
}

//! Contracts and tasks: round trips, pages, filters, names.

use std::sync::Arc;

use makima::{
    domain::{
        ContractId, TaskId, Timestamp,
        contract::{Contract, ContractStatus, Counts},
        task::{MAX_PLAN_BYTES, Task, TaskSpec, TaskStatus},
    },
    store::{Brief, Error, TaskFilter},
};

use super::{
    Fresh,
    samples::{ODD, at, cancelling, contract, id, owner, result, states, task, waiting, with},
};
use crate::{bed::Kind, both};

both!(
    contracts_come_back_whole,
    contracts_in_pages,
    tasks_come_back_whole,
    a_big_plan_comes_back,
    tasks_change_and_what_was_asked_stays,
    tasks_in_pages,
    tasks_by_name_and_short_id,
    tasks_whose_wait_is_over,
    names_are_unique_in_a_contract,
);

/// What was written is what is read, also after a change; another owner's is not there.
async fn contracts_come_back_whole(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let (alice, bob) = (owner(), owner());
    let mut ended = Contract { anonymous: true, held: None, ended: Some(at(9)), ..contract(alice, 2) };
    let written = [contract(alice, 1), ended.clone(), cancelling(bob, 3)];
    let mut tx = fresh.begin().await;
    tx.contracts_put(&written.iter().collect::<Vec<_>>()).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = fresh.begin().await;
    let wanted = [written[2].id, ContractId(id(77)), written[0].id, written[1].id, written[0].id];
    let mut read = tx.contracts_fetch(&wanted).await.unwrap();
    read.sort_by_key(|contract| contract.id);
    assert_eq!(read, written);
    assert_eq!(tx.contract_fetch(alice, written[0].id).await.unwrap().as_ref(), Some(&written[0]));
    assert_eq!(tx.contract_fetch(bob, written[0].id).await.unwrap(), None);
    assert_eq!(tx.contracts_cancelling(10).await.unwrap(), [written[2].clone()]);

    ended = Contract { name: "changed".to_owned(), ended: None, version: -1, ..ended };
    let settled = Contract { counts: Counts::default(), ..written[2].clone() };
    tx.contracts_put(&[&ended, &settled]).await.unwrap();
    assert_eq!(tx.contracts_fetch(&[ended.id]).await.unwrap(), [ended]);
    assert_eq!(tx.contracts_cancelling(10).await.unwrap(), []);

    tx.contracts_put(&[]).await.unwrap();
    assert_eq!(tx.contracts_fetch(&[]).await.unwrap(), []);
}

/// Newest first, a page begins after the last of the one before, and filters do not leak.
async fn contracts_in_pages(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let (alice, bob) = (owner(), owner());
    let mut written: Vec<_> = (0..10).map(|n| contract(alice, n)).collect();
    for (n, contract) in written.iter_mut().enumerate() {
        contract.anonymous = n % 5 == 0;
        if n % 2 == 0 {
            contract.counts = Counts::default();
            contract.counts.shift(None, TaskStatus::Done);
        }
    }
    written.push(contract(bob, 99));
    let mut tx = fresh.begin().await;
    tx.contracts_put(&written.iter().collect::<Vec<_>>()).await.unwrap();

    let numbers =
        |page: &[Contract]| -> Vec<u128> { page.iter().map(|c| c.id.0.as_u128() - id(0).as_u128()).collect() };
    let all = tx.contracts_list(alice, &[], true, None, 100).await.unwrap();
    assert_eq!(numbers(&all), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
    assert_eq!(numbers(&tx.contracts_list(alice, &[], false, None, 100).await.unwrap()), [9, 8, 7, 6, 4, 3, 2, 1]);
    let first = tx.contracts_list(alice, &[], true, None, 4).await.unwrap();
    assert_eq!(numbers(&first), [9, 8, 7, 6]);
    let second = tx.contracts_list(alice, &[], true, Some(first[3].id), 4).await.unwrap();
    assert_eq!(numbers(&second), [5, 4, 3, 2]);
    let third = tx.contracts_list(alice, &[], true, Some(second[3].id), 4).await.unwrap();
    assert_eq!(numbers(&third), [1, 0]);
    assert_eq!(tx.contracts_list(alice, &[], true, Some(third[1].id), 4).await.unwrap(), []);
    let done = tx.contracts_list(alice, &[ContractStatus::Done], true, None, 100).await.unwrap();
    assert_eq!(numbers(&done), [8, 6, 4, 2, 0]);
    let either = [ContractStatus::Done, ContractStatus::Active];
    assert_eq!(tx.contracts_list(alice, &either, true, None, 100).await.unwrap(), all);
    assert_eq!(tx.contracts_list(alice, &[ContractStatus::Failed], true, None, 100).await.unwrap(), []);
    assert_eq!(numbers(&tx.contracts_list(bob, &[], true, None, 100).await.unwrap()), [99]);
}

/// Every state, with all its fields, to the microsecond.
async fn tasks_come_back_whole(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let contract = contract(owner(), 1);
    let ready = task(&contract, 100, "ready");
    let mut written = vec![ready.clone()];
    for (n, state) in (101..).zip(states()) {
        written.push(with(&task(&contract, n, &format!("t{n}")), state));
    }
    let mut tx = fresh.begin().await;
    tx.tasks_insert(&written.iter().collect::<Vec<_>>()).await.unwrap();
    tx.tasks_insert(&[]).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = fresh.read().await;
    let ids: Vec<_> = written.iter().map(|task| task.id).collect();
    let mut read = tx.tasks_fetch(&ids).await.unwrap();
    read.sort_by_key(|task| task.id);
    assert_eq!(read, written);
    assert_eq!(tx.tasks_fetch(&[]).await.unwrap(), []);
    assert_eq!(tx.tasks_fetch(&[TaskId(id(1))]).await.unwrap(), []);
    assert_eq!(tx.task_fetch(contract.owner, ready.id).await.unwrap(), Some(ready.clone()));
    assert_eq!(tx.task_fetch(owner(), ready.id).await.unwrap(), None);

    let mut briefs = tx.briefs_fetch(&ids).await.unwrap();
    briefs.sort_by_key(|brief| brief.id);
    let expected: Vec<_> = (written.iter())
        .map(|task| Brief { id: task.id, name: task.spec.name.clone(), status: task.status() })
        .collect();
    assert_eq!(briefs, expected);
    assert_eq!(tx.briefs_fetch(&[]).await.unwrap(), []);
}

/// The largest plan there may be, made of what grows most when it is encoded.
async fn a_big_plan_comes_back(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let contract = contract(owner(), 1);
    let plans = ["x".repeat(MAX_PLAN_BYTES), "\u{1}".repeat(MAX_PLAN_BYTES), "🦀".repeat(MAX_PLAN_BYTES / 4)];
    let written: Vec<_> = (0..)
        .zip(plans)
        .map(|(n, plan)| {
            let plain = task(&contract, n, &format!("{n}"));
            Task { spec: Arc::new(TaskSpec { plan, ..(*plain.spec).clone() }), ..plain }
        })
        .collect();
    let mut tx = fresh.begin().await;
    tx.tasks_insert(&written.iter().collect::<Vec<_>>()).await.unwrap();
    for task in written {
        assert!(tx.task_fetch(contract.owner, task.id).await.unwrap() == Some(task), "a plan has changed");
    }
}

/// An update leaves what was asked alone, and a respec leaves the rest alone.
async fn tasks_change_and_what_was_asked_stays(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let contract = contract(owner(), 1);
    let (before, other) = (task(&contract, 1, "a"), task(&contract, 2, "b"));
    let mut tx = fresh.begin().await;
    tx.tasks_insert(&[&before, &other]).await.unwrap();

    let renamed = Arc::new(TaskSpec { name: ODD.to_owned(), hidden: true, priority: 9, ..(*before.spec).clone() });
    let both = Task { spec: renamed, version: 43, usage: Default::default(), ..with(&before, waiting(at(50))) };
    tx.tasks_update(&[&both]).await.unwrap();
    let updated = Task { spec: Arc::clone(&before.spec), ..both.clone() };
    assert_eq!(tx.tasks_fetch(&[before.id]).await.unwrap(), [updated]);
    assert_eq!(tx.tasks_wait_over(at(50), 10).await.unwrap(), [before.id]);

    tx.tasks_respec(&[&both]).await.unwrap();
    assert_eq!(tx.tasks_fetch(&[before.id]).await.unwrap(), std::slice::from_ref(&both));
    assert_eq!(tx.tasks_named(&[(contract.id, ODD.to_owned())]).await.unwrap(), [both]);
    assert_eq!(tx.tasks_named(&[(contract.id, "a".to_owned())]).await.unwrap(), []);
    assert_eq!(tx.tasks_fetch(&[other.id]).await.unwrap(), [other]);
    tx.tasks_update(&[]).await.unwrap();
    tx.tasks_respec(&[]).await.unwrap();
}

/// By id, of an owner or a contract, with filters, and nothing twice or left out between pages.
async fn tasks_in_pages(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let (alice, bob) = (owner(), owner());
    let (one, two, his) = (contract(alice, 1), contract(alice, 2), contract(bob, 3));
    let mut written = Vec::new();
    for n in 0..12 {
        let plain = task(if n % 3 == 0 { &two } else { &one }, 100 + n, &format!("t{n}"));
        let spec = Arc::new(TaskSpec { hidden: n == 5, ..(*plain.spec).clone() });
        let done = makima::domain::task::TaskState::Done { result: result(), at: at(1) };
        let state = if n % 2 == 0 { done } else { plain.state.clone() };
        written.push(Task { spec, state, ..plain });
    }
    written.push(task(&his, 200, "his"));
    let mut tx = fresh.begin().await;
    tx.tasks_insert(&written.iter().rev().collect::<Vec<_>>()).await.unwrap();

    let numbers = |page: &[Task]| -> Vec<u128> { page.iter().map(|t| t.id.0.as_u128() - id(100).as_u128()).collect() };
    let all = TaskFilter { owner: alice, contract: None, statuses: None, after: None, hidden: true };
    let of_one = TaskFilter { contract: Some(one.id), ..all.clone() };
    assert_eq!(numbers(&tx.tasks_list(&all, 100).await.unwrap()), (0..12).collect::<Vec<_>>());
    assert_eq!(numbers(&tx.tasks_list(&of_one, 100).await.unwrap()), [1, 2, 4, 5, 7, 8, 10, 11]);
    let shown = TaskFilter { hidden: false, ..of_one.clone() };
    assert_eq!(numbers(&tx.tasks_list(&shown, 100).await.unwrap()), [1, 2, 4, 7, 8, 10, 11]);
    let first = tx.tasks_list(&of_one, 3).await.unwrap();
    assert_eq!(numbers(&first), [1, 2, 4]);
    let next = TaskFilter { after: Some(first[2].id), ..of_one.clone() };
    assert_eq!(numbers(&tx.tasks_list(&next, 3).await.unwrap()), [5, 7, 8]);
    let last = TaskFilter { after: Some(TaskId(id(108))), ..of_one.clone() };
    assert_eq!(numbers(&tx.tasks_list(&last, 3).await.unwrap()), [10, 11]);
    let done = TaskFilter { statuses: Some(vec![TaskStatus::Done, TaskStatus::Failed]), ..all.clone() };
    assert_eq!(numbers(&tx.tasks_list(&done, 100).await.unwrap()), [0, 2, 4, 6, 8, 10]);
    let none = TaskFilter { statuses: Some(Vec::new()), ..all.clone() };
    assert_eq!(tx.tasks_list(&none, 100).await.unwrap(), []);
    // A contract of another owner shows nothing.
    let his = TaskFilter { contract: Some(his.id), ..all };
    assert_eq!(tx.tasks_list(&his, 100).await.unwrap(), []);

    assert_eq!(numbers(&tx.tasks_unfinished(one.id, None, 3).await.unwrap()), [1, 5, 7]);
    assert_eq!(numbers(&tx.tasks_unfinished(one.id, Some(TaskId(id(107))), 3).await.unwrap()), [11]);
    assert_eq!(tx.tasks_unfinished(ContractId(id(50)), None, 3).await.unwrap(), []);
}

/// Names belong to a contract; a short id that two tasks share answers both.
async fn tasks_by_name_and_short_id(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let (alice, bob) = (owner(), owner());
    let (one, two, his) = (contract(alice, 1), contract(alice, 2), contract(bob, 3));
    let short = 0xc0ff_ee12_3456;
    let (a, b) = (task(&one, short, "same"), task(&two, short + (1 << 60), "same"));
    let (c, d) = (task(&one, 5, ODD), task(&his, short + (1 << 61), "same"));
    let mut tx = fresh.begin().await;
    tx.tasks_insert(&[&a, &b, &c, &d]).await.unwrap();

    let names = [(one.id, "same".to_owned()), (one.id, ODD.to_owned()), (two.id, ODD.to_owned())];
    let mut named = tx.tasks_named(&names).await.unwrap();
    named.sort_by_key(|task| task.id);
    assert_eq!(named, [c.clone(), a.clone()]);
    assert_eq!(tx.tasks_named(&[]).await.unwrap(), []);

    let mut shared = tx.tasks_short(alice, &a.id.short()).await.unwrap();
    shared.sort_by_key(|task| task.id);
    assert_eq!(shared, [a, b]);
    assert_eq!(tx.tasks_short(bob, &d.id.short()).await.unwrap(), [d]);
    assert_eq!(tx.tasks_short(alice, &c.id.short()).await.unwrap(), [c]);
    assert_eq!(tx.tasks_short(alice, "000000000000").await.unwrap(), []);
}

/// At its very microsecond, the longest over first, no more than asked for.
async fn tasks_whose_wait_is_over(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let contract = contract(owner(), 1);
    let mut tx = fresh.begin().await;
    let written: Vec<_> = [30, 10, 20]
        .iter()
        .map(|after| with(&task(&contract, u128::from(*after as u32), &format!("{after}")), waiting(at(*after))))
        .collect();
    tx.tasks_insert(&written.iter().collect::<Vec<_>>()).await.unwrap();
    let over = |ids: &[TaskId]| -> Vec<u128> { ids.iter().map(|t| t.0.as_u128() - id(0).as_u128()).collect() };
    assert_eq!(over(&tx.tasks_wait_over(at(9), 10).await.unwrap()), Vec::<u128>::new());
    assert_eq!(over(&tx.tasks_wait_over(at(10), 10).await.unwrap()), [10]);
    assert_eq!(over(&tx.tasks_wait_over(at(29), 10).await.unwrap()), [10, 20]);
    assert_eq!(over(&tx.tasks_wait_over(at(99), 2).await.unwrap()), [10, 20]);
    assert_eq!(tx.next_due(Timestamp(0)).await.unwrap(), Some(at(10)));
    assert_eq!(over(&tx.tasks_wait_over(Timestamp(0), 2).await.unwrap()), Vec::<u128>::new());
}

/// The database refuses a second task of a name, and says that it is the statement's fault.
async fn names_are_unique_in_a_contract(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let (one, two) = (contract(owner(), 1), contract(owner(), 2));
    let mut tx = fresh.begin().await;
    tx.tasks_insert(&[&task(&one, 1, "same"), &task(&two, 2, "same")]).await.unwrap();
    let again = tx.tasks_insert(&[&task(&one, 3, "same")]).await;
    assert!(matches!(again, Err(Error::Statement { .. })), "{again:?}");
    tx.rollback().await.unwrap();
}

//! The ledger on both databases: what it decides, and that nothing is stranded or started early, whatever happens at once.

use std::{collections::HashMap, sync::Arc, time::Duration};

use makima::{
    domain::{
        DaemonId, TaskId,
        attempt::{Failure, FailureClass},
        contract::{ContractLimits, ContractStatus},
        key::KeyKind,
        order::{Answer, Command, Order, Spawn},
        reconcile::Verdict,
        report::{InventoryItem, InventoryState, MessageOutcome, Report},
        task::{Task, TaskStatus},
        transition::RetryFrom,
    },
    runtime::{clock, lifecycle::Shutdown},
    server::{
        ledger::{Error, Op, Reply, Request, op::Repeat},
        reaper,
        session::{Heard, Times},
    },
};
use tokio::task::JoinSet;

use crate::{
    bed::{Bed, Daemon, Kind, complete, crew, running, spawn, task, task_with},
    both,
    harness::{eventually, eventually::ensure},
};

both!(
    a_diamond_runs_in_order,
    refused_requests_name_every_reason,
    the_same_request_twice_is_one_contract,
    a_crash_is_retried_and_a_late_report_is_fenced,
    cancelling_holds_the_slot_until_nothing_is_left,
    a_rejected_spawn_goes_elsewhere_at_no_cost,
    silence_reruns_and_return_revives,
    an_unanswered_command_is_sent_again_as_it_was,
    an_unanswered_attempt_is_fenced_in_time,
    an_order_tells_what_should_be_there_first,
    a_blocked_contract_moves_when_its_parent_is_retried,
    what_is_unmet_outlives_the_server,
    holds_stop_and_releases_start,
    concurrency_is_kept,
    a_bad_operation_fails_alone,
    two_parents_end_at_once,
    an_edge_is_added_while_its_parent_ends,
    a_child_is_created_as_its_parents_end,
    a_parent_is_retried,
    a_name_goes_to_who_is_there,
);

/// Rounds of each race, and how many run at once.
const ROUNDS: usize = 1_000;
const AT_ONCE: usize = 50;

async fn a_diamond_runs_in_order(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 4).await;
    let (contract, tasks) =
        bed.contract(vec![task("a", &[]), task("b", &["a"]), task("c", &["a"]), task("d", &["b", "c"])]).await;
    let mut order = Vec::new();
    for _ in 0..4 {
        let (command, spawn) = daemon.run_next(&bed).await;
        assert!(spawn.dependencies.iter().all(|d| d.status == TaskStatus::Done && !d.commit.is_empty()));
        order.push((spawn.name.clone(), spawn.dependencies.len()));
        assert_eq!(daemon.done(&bed, command.attempt).await, MessageOutcome::Applied);
        assert_eq!(daemon.done(&bed, command.attempt).await, MessageOutcome::AlreadyApplied);
    }
    order[1..3].sort();
    let expected = [("a", 0), ("b", 1), ("c", 1), ("d", 2)].map(|(name, n)| (name.to_owned(), n));
    assert_eq!(order, expected);
    let contract = bed.contract_now(contract.id).await;
    assert_eq!((contract.status(), contract.live), (ContractStatus::Done, 0));
    assert!(contract.ended.is_some());
    assert_eq!(bed.task(tasks[3].id).await.attempt, 1);
}

async fn refused_requests_name_every_reason(kind: Kind) {
    let bed = Bed::new(kind).await;
    let new = bed.new_contract(
        ContractLimits::default(),
        vec![task("a", &["c"]), task("b", &["a"]), task("c", &["b"]), task("d", &["d"]), task("e", &["nobody"])],
    );
    let Err(Error::Invalid(violations)) = bed.person(Op::CreateContract(new)).await else { panic!("accepted") };
    let text: Vec<String> = violations.iter().map(|(field, what)| format!("{field}: {what}")).collect();
    assert_eq!(text.len(), 3, "{text:#?}");
    assert!(text.iter().any(|line| line.contains("cycle") && line.contains("a -> c -> b -> a")), "{text:#?}");
    let mut tx = bed.store.read().await.unwrap();
    assert!(tx.contracts_list(bed.owner, &[], true, None, 10).await.unwrap().is_empty(), "nothing is left of it");
    drop(tx);

    // An edge that would close a cycle is refused by name; the etag guards an update.
    let (_, tasks) = bed.contract(vec![task("x", &[]), task("y", &["x"])]).await;
    let add = |task: TaskId, word: &str| Op::ChangeDependencies {
        owner: bed.owner,
        task,
        add: vec![word.to_owned()],
        remove: Vec::new(),
    };
    let Err(Error::Invalid(violations)) = bed.person(add(tasks[0].id, "y")).await else { panic!("accepted") };
    assert!(violations[0].1.contains("x -> y -> x"), "{violations:?}");
}

async fn the_same_request_twice_is_one_contract(kind: Kind) {
    let bed = Bed::new(kind).await;
    let ask = |hash: u8| {
        let repeat = Repeat { owner: bed.owner, id: "once".to_owned(), hash: [hash; 32] };
        let op = Op::CreateContract(bed.new_contract(ContractLimits::default(), vec![task("a", &[])]));
        bed.ledger.submit(Request { actor: "key:test".to_owned(), repeat: Some(repeat), op })
    };
    // At once, so that both may be in one batch, and once more later.
    let (first, second) = tokio::join!(ask(1), ask(1));
    let third = ask(1).await;
    let ids: Vec<_> = [first, second, third]
        .into_iter()
        .map(|reply| match reply {
            Ok(Reply::Created { contract, tasks, .. }) => (contract.id, tasks[0].id),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert!(matches!(ask(2).await, Err(Error::RequestIdReused(_))));
}

async fn a_crash_is_retried_and_a_late_report_is_fenced(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 2).await;
    let (_, tasks) = bed.contract(vec![task("a", &[])]).await;
    let (first, _) = daemon.run_next(&bed).await;
    daemon.failed(&bed, first.attempt, FailureClass::AgentCrashed).await;
    let waiting = bed.task(tasks[0].id).await;
    assert!(waiting.wait().is_some(), "{:?}", waiting.state);
    // A person does not wait for the backoff.
    bed.person(Op::RetryTask { owner: bed.owner, task: tasks[0].id, from: RetryFrom::Work }).await.unwrap();
    let (second, _) = daemon.run_next(&bed).await;
    assert_eq!(second.attempt.number, 2);
    assert_eq!(daemon.done(&bed, first.attempt).await, MessageOutcome::Fenced);
    assert_eq!(bed.task(tasks[0].id).await.status(), TaskStatus::Running);
    assert_eq!(daemon.done(&bed, second.attempt).await, MessageOutcome::Applied);
    bed.task_is(tasks[0].id, TaskStatus::Done).await;
}

async fn cancelling_holds_the_slot_until_nothing_is_left(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 1).await;
    let (contract, tasks) = bed.contract(vec![task("a", &[]), task("b", &[])]).await;
    let (running, _) = daemon.run_next(&bed).await;
    let op = Op::CancelTask { owner: bed.owner, task: running.attempt.task, reason: "no".to_owned(), cascade: false };
    bed.person(op).await.unwrap();
    let cancel = daemon.command().await;
    assert!(matches!(cancel.order, Order::Cancel { .. }));
    daemon.answer(&bed, &cancel, Answer::Persisted).await;
    assert_eq!(bed.contract_now(contract.id).await.live, 1, "it holds its slot");
    assert!(daemon.pushes.try_recv().is_err(), "nothing else is started in its slot");
    daemon.failed(&bed, running.attempt, FailureClass::Cancelled).await;
    let (next, _) = daemon.run_next(&bed).await;
    assert_ne!(next.attempt.task, running.attempt.task);
    daemon.done(&bed, next.attempt).await;
    let statuses: Vec<_> = [bed.task(tasks[0].id).await, bed.task(tasks[1].id).await].map(|t| t.status()).to_vec();
    assert!(statuses.contains(&TaskStatus::Cancelled) && statuses.contains(&TaskStatus::Done), "{statuses:?}");
    assert_eq!(bed.contract_now(contract.id).await.live, 0);
}

async fn a_rejected_spawn_goes_elsewhere_at_no_cost(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut full = bed.daemon("full", 1).await;
    let (_, tasks) = bed.contract(vec![task("a", &[])]).await;
    let (command, _) = full.spawned().await;
    let mut other = bed.daemon("other", 1).await;
    full.answer(&bed, &command, Answer::Rejected { reason: "disk full".to_owned(), retryable: true, counts: false })
        .await;
    let (again, _) = other.run_next(&bed).await;
    assert_eq!((again.attempt.task, again.attempt.number), (tasks[0].id, 2));
    other.done(&bed, again.attempt).await;
    assert_eq!(bed.task_is(tasks[0].id, TaskStatus::Done).await.tries.counted, 0);
}

async fn silence_reruns_and_return_revives(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut lost = bed.daemon("lost", 1).await;
    let at_once = ContractLimits { rerun_after: Duration::ZERO, ..ContractLimits::default() };
    let op = Op::CreateContract(bed.new_contract(at_once, vec![task("a", &[])]));
    let Ok(Reply::Created { tasks, .. }) = bed.person(op).await else { panic!("not created") };
    let id = tasks[0].id;
    let (first, _) = lost.run_next(&bed).await;
    bed.ledger.server(Op::DaemonLost { daemon: lost.id, epoch: lost.epoch }).await.unwrap();
    bed.ledger.detach(lost.id, lost.epoch);
    bed.ledger.server(Op::Sweep).await.unwrap();
    assert_eq!(bed.task(id).await.status(), TaskStatus::Pending, "given up, and nobody else is there");

    // Back before anybody else had it: it goes on as the same attempt.
    let running = running(first.attempt);
    let mut back = Daemon::attach(&bed, lost.id, "lost", 1, vec![running.clone()]).await;
    assert_eq!(back.verdicts, [(first.attempt, Verdict::Keep)]);
    assert_eq!(bed.task(id).await.status(), TaskStatus::Running);
    back.ready(&bed).await;

    // Lost again, and this time somebody else takes it: the one that comes back is fenced.
    bed.ledger.server(Op::DaemonLost { daemon: back.id, epoch: back.epoch }).await.unwrap();
    bed.ledger.detach(back.id, back.epoch);
    let mut other = bed.daemon("other", 1).await;
    bed.ledger.server(Op::Sweep).await.unwrap();
    let (second, _) = other.run_next(&bed).await;
    assert_eq!(second.attempt.number, 2);
    let mut late = Daemon::attach(&bed, lost.id, "lost", 1, vec![running]).await;
    assert_eq!(late.verdicts, [(first.attempt, Verdict::Fenced)]);
    assert_eq!(late.done(&bed, first.attempt).await, MessageOutcome::Fenced);
    assert_eq!(back.done(&bed, first.attempt).await, MessageOutcome::Fenced);
    assert_eq!(other.done(&bed, second.attempt).await, MessageOutcome::Applied);
    let done = bed.task_is(id, TaskStatus::Done).await;
    assert_eq!(done.result().unwrap().commit, crate::bed::result(second.attempt).commit);
}

/// A command whose answer was lost is the same to the letter in the next session, and forgotten once answered.
async fn an_unanswered_command_is_sent_again_as_it_was(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 1).await;
    bed.contract(vec![task("a", &[])]).await;
    let (first, _) = daemon.spawned().await;
    let again = Daemon::attach(&bed, daemon.id, "d", 1, Vec::new()).await;
    assert_eq!(again.unanswered, [Command { epoch: again.epoch, ..first.clone() }]);
    again.answer(&bed, &first, Answer::Persisted).await;
    let listed = InventoryItem {
        attempt: first.attempt,
        state: InventoryState::Accepted,
        worktree: String::new(),
        worktree_intact: false,
    };
    let third = Daemon::attach(&bed, daemon.id, "d", 1, vec![listed]).await;
    assert_eq!((third.unanswered, third.verdicts), (Vec::new(), vec![(first.attempt, Verdict::Keep)]));
}

/// A daemon that is there and says nothing to a command: the attempt is fenced, the task goes on at no cost in retries, and
/// the slot is held until the daemon says that nothing is left.
async fn an_unanswered_attempt_is_fenced_in_time(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut deaf = bed.daemon("deaf", 1).await;
    let (contract, tasks) = bed.contract(vec![task("a", &[])]).await;
    let (first, _) = deaf.spawned().await;
    let mut other = bed.daemon("other", 1).await;
    eventually("the time to answer is over", || async {
        bed.ledger.server(Op::Sweep).await.unwrap();
        let attempt = bed.task(tasks[0].id).await.attempt;
        if attempt == 2 { Ok(()) } else { Err(format!("it is at attempt {attempt}")) }
    })
    .await;
    let (second, _) = other.run_next(&bed).await;
    assert_eq!(second.attempt.number, 2);
    assert!(matches!(deaf.command().await.order, Order::Cancel { .. }));
    assert_eq!(bed.contract_now(contract.id).await.live, 2, "both hold a slot");
    assert_eq!(bed.task(tasks[0].id).await.tries.counted, 0);
    deaf.failed(&bed, first.attempt, FailureClass::Cancelled).await;
    other.done(&bed, second.attempt).await;
    assert_eq!(bed.contract_now(contract.id).await.live, 0);
    bed.task_is(tasks[0].id, TaskStatus::Done).await;
}

/// An order takes along the unfinished tasks that its daemon could warn of, as they stand: those that touch what should be
/// there before what this one touches. What has ended is left out, what was added since is not forgotten.
async fn an_order_tells_what_should_be_there_first(kind: Kind) {
    let planned = |name: &str, plan: &str| task_with(name, |spec| plan.clone_into(&mut spec.plan));
    let schema = |name: &str| planned(name, "Add a migration in migrations/001_create_users.sql.");
    let page = |name: &str| planned(name, "Implement src/components/UserProfile.tsx.");
    let told = |spawn: &Spawn| spawn.contract_tasks.iter().map(|it| it.name.clone()).collect::<Vec<_>>();
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 8).await;
    let (contract, _) = bed.contract(vec![schema("tables"), page("profile"), planned("script", "true")]).await;
    let mut attempts = HashMap::new();
    for _ in 0..3 {
        let (command, spawn) = daemon.run_next(&bed).await;
        let expected: &[&str] = if spawn.name == "profile" { &["tables"] } else { &[] };
        assert_eq!(told(&spawn), expected, "with {}", spawn.name);
        attempts.insert(spawn.name, command.attempt);
    }
    bed.add(contract.id, vec![page("settings")]).await;
    let (_, settings) = daemon.run_next(&bed).await;
    assert_eq!(told(&settings), ["tables"]);
    assert_eq!(settings.contract_tasks[0].status, TaskStatus::Running);
    daemon.done(&bed, attempts["tables"]).await;
    bed.add(contract.id, vec![schema("indexes")]).await;
    daemon.run_next(&bed).await;
    bed.add(contract.id, vec![page("help")]).await;
    assert_eq!(told(&daemon.run_next(&bed).await.1), ["indexes"]);
}

async fn a_blocked_contract_moves_when_its_parent_is_retried(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 2).await;
    let (_, tasks) = bed.contract(vec![task("a", &[]), task("b", &["a"])]).await;
    let (first, _) = daemon.run_next(&bed).await;
    daemon.failed(&bed, first.attempt, FailureClass::AgentError).await;
    bed.task_is(tasks[0].id, TaskStatus::Failed).await;
    assert_eq!(bed.task(tasks[1].id).await.unmet, 1);
    bed.person(Op::RetryTask { owner: bed.owner, task: tasks[0].id, from: RetryFrom::Work }).await.unwrap();
    let (second, _) = daemon.run_next(&bed).await;
    daemon.done(&bed, second.attempt).await;
    let (child, _) = daemon.run_next(&bed).await;
    assert_eq!(child.attempt.task, tasks[1].id);
    daemon.done(&bed, child.attempt).await;
    bed.task_is(tasks[1].id, TaskStatus::Done).await;
}

/// A task is not written when one of several dependencies ends; a server that starts in between counts the others.
async fn what_is_unmet_outlives_the_server(kind: Kind) {
    let mut bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 1).await;
    let of = vec![task("a", &[]), task("b", &[]), task("c", &["a", "b"])];
    let (contract, tasks) = bed.contract(of).await;
    let before = bed.task(tasks[2].id).await;
    assert_eq!(before.unmet, 2);
    let (first, _) = daemon.run_next(&bed).await;
    daemon.done(&bed, first.attempt).await;
    let (second, _) = daemon.run_next(&bed).await;
    bed.restart().await;
    let after = bed.task(tasks[2].id).await;
    assert_eq!((after.unmet, after.version), (1, before.version));
    let mut daemon = Daemon::attach(&bed, daemon.id, "d", 1, vec![running(second.attempt)]).await;
    daemon.ready(&bed).await;
    daemon.done(&bed, second.attempt).await;
    let (third, _) = daemon.run_next(&bed).await;
    assert_eq!(third.attempt.task, tasks[2].id);
    assert_eq!(bed.task(tasks[2].id).await.unmet, 0);
    daemon.done(&bed, third.attempt).await;
    assert_eq!(bed.contract_now(contract.id).await.status(), ContractStatus::Done);
}

async fn holds_stop_and_releases_start(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 2).await;
    let mut new = bed.new_contract(ContractLimits::default(), vec![task("a", &[])]);
    new.hold = true;
    let Ok(Reply::Created { contract, .. }) = bed.person(Op::CreateContract(new)).await else { panic!("not created") };
    // Something else passes, so that the dispatcher has looked.
    let (_, _) = bed.contract(vec![task("other", &[])]).await;
    let (other, _) = daemon.run_next(&bed).await;
    daemon.done(&bed, other.attempt).await;
    assert!(daemon.pushes.try_recv().is_err(), "held");
    bed.person(Op::ReleaseContract { owner: bed.owner, contract: contract.id }).await.unwrap();
    let (released, _) = daemon.run_next(&bed).await;
    daemon.done(&bed, released.attempt).await;
    assert_eq!(bed.contract_now(contract.id).await.status(), ContractStatus::Done);
}

async fn concurrency_is_kept(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 10).await;
    let two = ContractLimits { concurrency: 2, ..ContractLimits::default() };
    let tasks = (0..5).map(|i| task(&format!("t{i}"), &[])).collect();
    let op = Op::CreateContract(bed.new_contract(two, tasks));
    let Ok(Reply::Created { contract, .. }) = bed.person(op).await else { panic!("not created") };
    let mut live = vec![daemon.run_next(&bed).await.0, daemon.run_next(&bed).await.0];
    for _ in 0..3 {
        assert!(daemon.pushes.try_recv().is_err());
        assert_eq!(bed.contract_now(contract.id).await.live, 2);
        let ended = live.remove(0);
        daemon.done(&bed, ended.attempt).await;
        live.push(daemon.run_next(&bed).await.0);
    }
    for attempt in live {
        daemon.done(&bed, attempt.attempt).await;
    }
    assert_eq!(bed.contract_now(contract.id).await.status(), ContractStatus::Done);
}

/// What the database refuses (here: a name that is taken, behind the checks' back) fails alone; its neighbours go through.
async fn a_bad_operation_fails_alone(kind: Kind) {
    let bed = Arc::new(Bed::new(kind).await);
    let mut asked = JoinSet::new();
    for i in 0..40 {
        let bed = Arc::clone(&bed);
        asked.spawn(async move {
            // Two keys with one hash violate a unique index.
            let hash = if i % 10 == 0 { [99; 32] } else { [i + 100; 32] };
            let op =
                Op::CreateKey { kind: makima::domain::key::KeyKind::Admin, owner: None, label: String::new(), hash };
            (i, bed.ledger.server(op).await)
        });
    }
    let mut refused = 0;
    while let Some(answer) = asked.join_next().await {
        let (i, answer) = answer.unwrap();
        match answer {
            Ok(_) => {}
            Err(Error::Unstorable(_)) if i % 10 == 0 => refused += 1,
            Err(other) => panic!("{i}: {other}"),
        }
    }
    assert_eq!(refused, 3, "one of the four that share a hash goes through");
}

// === races ===

/// Runs rounds of a race, many at once.
async fn rounds<F, R>(race: F)
where
    F: Fn(usize) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let race = Arc::new(race);
    let mut running = JoinSet::new();
    for round in 0..ROUNDS {
        if running.len() >= AT_ONCE {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn(race(round));
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

async fn all_done(bed: &Bed, tasks: &[TaskId]) {
    for task in tasks {
        bed.task_is(*task, TaskStatus::Done).await;
    }
}

fn nobody_was_early(logs: &[Arc<std::sync::Mutex<crate::bed::Log>>]) {
    for log in logs {
        let log = log.lock().unwrap();
        assert!(log.early.is_empty(), "{:?}", log.early);
    }
}

/// Two daemons end the two parents of a child in the same instant.
async fn two_parents_end_at_once(kind: Kind) {
    let bed = Arc::new(Bed::new(kind).await);
    let logs = [crew(Arc::clone(&bed), "d1", 100).await, crew(Arc::clone(&bed), "d2", 100).await];
    let b = Arc::clone(&bed);
    rounds(move |_| {
        let bed = Arc::clone(&b);
        async move {
            let (_, tasks) = bed.contract(vec![task("p1", &[]), task("p2", &[]), task("c", &["p1", "p2"])]).await;
            let ids: Vec<_> = tasks.iter().map(|task| task.id).collect();
            all_done(&bed, &ids).await;
        }
    })
    .await;
    nobody_was_early(&logs);
    for log in &logs {
        assert!(log.lock().unwrap().starts.values().all(|starts| *starts == 1));
    }
}

/// An edge is added while the parent ends. The child is held back by a gate that opens afterwards, so that it has not started.
async fn an_edge_is_added_while_its_parent_ends(kind: Kind) {
    let bed = Arc::new(Bed::new(kind).await);
    let logs = [crew(Arc::clone(&bed), "d1", 100).await];
    let b = Arc::clone(&bed);
    rounds(move |_| {
        let bed = Arc::clone(&b);
        async move {
            let (contract, first) = bed.contract(vec![task("gate", &[]), task("c", &["gate"])]).await;
            let parent = bed.add(contract.id, vec![task("p", &[])]);
            let added = Op::ChangeDependencies {
                owner: bed.owner,
                task: first[1].id,
                add: vec!["p".to_owned()],
                remove: Vec::new(),
            };
            let parent = parent.await;
            // It may have started already, which is an answer too; never an edge that nobody counts.
            match bed.person(added).await {
                Ok(_) | Err(Error::Precondition(_)) => {}
                Err(other) => panic!("{other}"),
            }
            all_done(&bed, &[first[0].id, first[1].id, parent[0].id]).await;
        }
    })
    .await;
    nobody_was_early(&logs);
}

/// A child is created just before, while, or just after its parents end.
async fn a_child_is_created_as_its_parents_end(kind: Kind) {
    let bed = Arc::new(Bed::new(kind).await);
    let logs = [crew(Arc::clone(&bed), "d1", 100).await];
    let b = Arc::clone(&bed);
    rounds(move |round| {
        let bed = Arc::clone(&b);
        async move {
            let (contract, parents) = bed.contract(vec![task("p1", &[]), task("p2", &[])]).await;
            if round % 2 == 0 {
                all_done(&bed, &[parents[0].id, parents[1].id]).await;
            }
            let child = bed.add(contract.id, vec![task("c", &["p1", "p2"])]).await;
            all_done(&bed, &[parents[0].id, parents[1].id, child[0].id]).await;
        }
    })
    .await;
    nobody_was_early(&logs);
}

/// A parent that is done is opened again while its child may be starting: the child runs once, after a parent that is done.
async fn a_parent_is_retried(kind: Kind) {
    let bed = Arc::new(Bed::new(kind).await);
    let logs = [crew(Arc::clone(&bed), "d1", 100).await];
    let b = Arc::clone(&bed);
    rounds(move |_| {
        let bed = Arc::clone(&b);
        async move {
            let (_, tasks) = bed.contract(vec![task("p", &[]), task("q", &[]), task("c", &["p", "q"])]).await;
            eventually("the parent can be retried", || async {
                match bed.person(Op::RetryTask { owner: bed.owner, task: tasks[0].id, from: RetryFrom::Work }).await {
                    Ok(Reply::Task(task)) if task.attempt > 0 => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
            let ids: Vec<_> = tasks.iter().map(|task| task.id).collect();
            all_done(&bed, &ids).await;
        }
    })
    .await;
    nobody_was_early(&logs);
}

/// A daemon that lost its directory comes as another under its name; when the old directory is put back while that one is away,
/// the name goes back, whichever of the two has the lower id.
async fn a_name_goes_to_who_is_there(kind: Kind) {
    let bed = Bed::new(kind).await;
    for (name, first, second) in [("up", 1, 2), ("down", 4, 3)] {
        let [first, second] = [first, second].map(|n| DaemonId(uuid::Uuid::from_u128(n)));
        for id in [first, second, first, second] {
            let here = Daemon::try_attach(&bed, id, name, 1, Vec::new()).await;
            let here = here.unwrap_or_else(|error| panic!("{name}: {id} cannot attach: {error}"));
            bed.ledger.server(Op::DaemonLost { daemon: id, epoch: here.epoch }).await.unwrap();
        }
    }
}

/// Two processes with one identity: the newer wins, the older is told.
#[tokio::test]
async fn a_newer_session_supersedes() {
    let bed = Bed::new(Kind::Sqlite).await;
    let mut older = bed.daemon("d", 1).await;
    let newer = Daemon::attach(&bed, older.id, "d", 1, Vec::new()).await;
    assert!(newer.epoch > older.epoch);
    assert!(matches!(older.pushes.recv().await, Some(makima::server::ledger::Push::Superseded)));
    let stale = bed.ledger.server(Op::DaemonLost { daemon: older.id, epoch: older.epoch }).await;
    assert!(matches!(stale, Err(Error::StaleSession(_))));
    let taken = Daemon::try_attach(&bed, DaemonId(uuid::Uuid::now_v7()), "d", 1, Vec::new()).await;
    assert!(matches!(taken, Err(Error::Exists(_))));
}

/// Several waits that end one after the other each end in time: the next one is known before this one is dealt with.
#[tokio::test]
async fn each_wait_is_known_before_the_last_one_ends() {
    let bed = Bed::new(Kind::Sqlite).await;
    let mut daemon = bed.daemon("d", 2).await;
    bed.contract(vec![task("a", &[]), task("b", &[])]).await;
    let (first, _) = daemon.run_next(&bed).await;
    let (second, _) = daemon.run_next(&bed).await;
    daemon.failed(&bed, first.attempt, FailureClass::AgentCrashed).await;
    let resets = clock::now().after(Duration::from_secs(7200));
    let limit = Failure { reset: Some(resets), ..Failure::new(FailureClass::UsageLimit, "it broke") };
    daemon.report(&bed, second.attempt, Report::Complete(complete(Err(limit)))).await;
    let until = |task: Task| task.wait().map(|wait| wait.until);
    let (sooner, later) = (until(bed.task(first.attempt.task).await), until(bed.task(second.attempt.task).await));
    assert!(sooner.is_some() && sooner < later, "{sooner:?} {later:?}");
    let next = eventually("the first wait is over", || async {
        let Ok(Reply::Swept { next, .. }) = bed.ledger.server(Op::Sweep).await else { panic!("not swept") };
        if next == sooner { Err("it is not") } else { Ok(next) }
    })
    .await;
    assert_eq!(next, later);
    assert_eq!(daemon.run_next(&bed).await.0.attempt.task, first.attempt.task);
}

/// Behind the address of a Postgres there may be another when connections are made again, which had not got everything: what the
/// ledger has kept is not taken for what is there.
#[tokio::test]
async fn another_connection_may_lead_elsewhere() {
    let bed = Bed::new(Kind::Postgres).await;
    let (contract, tasks) = bed.contract(vec![task("a", &[]), task("b", &[])]).await;
    bed.add(contract.id, vec![task("c", &["a"])]).await;
    bed.place.beside("DELETE FROM tasks WHERE name = 'b'").await;
    bed.place.end_connections().await;
    let cancel =
        |task: &Task| Op::CancelTask { owner: bed.owner, task: task.id, reason: String::new(), cascade: false };
    assert!(matches!(bed.person(cancel(&tasks[1])).await, Err(Error::NotFound { .. })));
    assert!(bed.person(cancel(&tasks[0])).await.is_ok());
}

/// Nor has it got what was said to a daemon: its session is no place for a task, and the daemon comes again with all that it has.
#[tokio::test]
async fn a_session_that_the_database_does_not_know_is_dropped() {
    let bed = Bed::new(Kind::Postgres).await;
    for forget in [
        "DELETE FROM daemons",
        "UPDATE daemons SET doc = jsonb_set(doc::jsonb, '{epoch}', '0')::json",
        "DELETE FROM batches",
    ] {
        // Something is said to it.
        let mut daemon = bed.daemon("d", 1).await;
        let (contract, _) = bed.contract(vec![task("before", &[])]).await;
        let (before, _) = daemon.run_next(&bed).await;
        daemon.done(&bed, before.attempt).await;
        assert_eq!(bed.contract_now(contract.id).await.status(), ContractStatus::Done);
        bed.place.beside(forget).await;
        bed.place.end_connections().await;
        bed.contract(vec![task("after", &[])]).await;
        let told = tokio::time::timeout(Duration::from_secs(20), daemon.pushes.recv()).await;
        assert!(told.expect("in time").is_none(), "{forget}");
        let mut again = Daemon::attach(&bed, daemon.id, "d", 1, Vec::new()).await;
        again.ready(&bed).await;
        let (after, _) = again.run_next(&bed).await;
        again.done(&bed, after.attempt).await;
        bed.ledger.server(Op::DaemonLost { daemon: again.id, epoch: again.epoch }).await.unwrap();
        bed.ledger.detach(again.id, again.epoch);
    }
}

/// A session that nobody here has heard of, since its attach was committed and not answered, is declared lost in its time all the same,
/// whether there was one before it or not.
#[tokio::test]
async fn a_session_that_nobody_has_heard_of_is_lost_in_its_time() {
    let bed = Bed::new(Kind::Sqlite).await;
    let first = bed.daemon("d", 1).await;
    let heard = Arc::new(Heard::default());
    heard.touch(first.id, first.epoch);
    let second = Daemon::attach(&bed, first.id, "d", 1, Vec::new()).await;
    bed.ledger.detach(second.id, second.epoch);
    let other = bed.daemon("e", 1).await;
    bed.ledger.detach(other.id, other.epoch);
    let times = Times { heartbeat: Duration::from_millis(50), lost_after: Duration::from_millis(200) };
    spawn(reaper::silence(bed.store.clone(), bed.ledger.clone(), heard, times, Shutdown::default()));
    eventually("it is lost", || async {
        let mut tx = bed.store.read().await.unwrap();
        let attached = tx.daemons_attached().await.unwrap();
        tx.rollback().await.unwrap();
        ensure(attached.is_empty(), || format!("{attached:?}"))
    })
    .await;
}

/// A daemon whose agents are gone comes back: what they did goes on in its worktrees, however many others have room.
#[tokio::test]
async fn work_goes_on_where_its_worktree_is() {
    let bed = Bed::new(Kind::Sqlite).await;
    let mut one = bed.daemon("one", 2).await;
    bed.contract(vec![task("a", &[]), task("b", &[])]).await;
    let attempts = [one.run_next(&bed).await.0.attempt, one.run_next(&bed).await.0.attempt];
    let mut other = bed.daemon("other", 10).await;
    let interrupted = |attempt| InventoryItem {
        attempt,
        state: InventoryState::Interrupted,
        worktree: "/w".to_owned(),
        worktree_intact: true,
    };
    bed.ledger.detach(one.id, one.epoch);
    let mut back = Daemon::attach(&bed, one.id, "one", 2, attempts.map(interrupted).to_vec()).await;
    // Also before it says that it takes work; other work waits for that.
    for _ in attempts {
        let (command, spawn) = back.run_next(&bed).await;
        assert_eq!(command.attempt.number, 2);
        assert!(spawn.resume.is_some_and(|resume| resume.here.is_some()));
    }
    bed.contract(vec![task("c", &[])]).await;
    let (new, _) = other.spawned().await;
    assert!(!attempts.iter().any(|attempt| attempt.task == new.attempt.task));
    assert!(other.pushes.try_recv().is_err() && back.pushes.try_recv().is_err());
}

/// What the database refuses costs no connection: on a new one all would be looked at again, for no more reason than before.
#[tokio::test]
async fn a_refusal_costs_no_connection() {
    let bed = Bed::new(Kind::Postgres).await;
    let key = || Op::CreateKey { kind: KeyKind::Admin, owner: None, label: String::new(), hash: [7; 32] };
    bed.ledger.server(key()).await.unwrap();
    let before = bed.place.connections().await;
    assert!(matches!(bed.ledger.server(key()).await, Err(Error::Unstorable(_))));
    bed.ledger.server(Op::Sweep).await.unwrap();
    assert_eq!(bed.place.connections().await, before);
}

/// The last admin key cannot be taken away: without one no keys can be made.
#[tokio::test]
async fn the_last_admin_key_stays() {
    let bed = Bed::new(Kind::Sqlite).await;
    let mut made = Vec::new();
    for hash in [7, 8] {
        let op = Op::CreateKey { kind: KeyKind::Admin, owner: None, label: String::new(), hash: [hash; 32] };
        let Ok(Reply::Key(key)) = bed.ledger.server(op).await else { panic!("no key") };
        made.push(key.id);
    }
    assert!(bed.ledger.server(Op::RevokeKey { key: made[0] }).await.is_ok());
    assert!(matches!(bed.ledger.server(Op::RevokeKey { key: made[1] }).await, Err(Error::Precondition(_))));
}

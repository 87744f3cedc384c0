//! What people do about a task that does not go as they wish, as the ledger decides it on both databases: another try from
//! another point, a move, a fork, a checkpoint now, a forced release; each also while a report comes in.

use std::sync::Arc;

use makima::{
    domain::{
        AttemptRef, CheckpointId, ContractId, DaemonId, TaskId, Timestamp,
        attempt::{AttemptStatus, FailureClass, Pack, TaskResult},
        checkpoint::{About, Checkpoint, Link, Origin, Reason},
        contract::ContractLimits,
        draft::Fork,
        order::{Answer, Order},
        reconcile::Verdict,
        report::{MessageOutcome, Report},
        task::{BranchedFrom, Task, TaskStatus},
        transition::RetryFrom,
    },
    server::ledger::{Error, Op, Reply},
    wire::pb::CreateContractRequest,
};
use tokio::task::JoinSet;

use crate::{
    bed::{Bed, Daemon, Kind, complete, crew, running, task, task_with},
    both,
    harness::{
        DaemonOptions, Database, World,
        client::shell,
        eventually::{ensure, eventually},
    },
};

both!(
    a_retry_begins_where_it_is_told,
    what_arrives_late_changes_no_choice,
    a_small_checkpoint_may_overtake_a_large_one,
    a_foreign_checkpoint_serves_only_its_repository,
    a_live_task_moves_with_its_work,
    a_move_names_what_the_daemon_lacks,
    a_quiet_daemon_is_not_waited_for,
    a_fork_has_the_work_and_the_dependencies,
    a_fork_of_what_is_done_begins_from_its_result,
    a_checkpoint_is_asked_of_the_agent_that_runs,
    a_forced_release_frees_the_task_and_fences_what_is_left,
    a_new_task_begins_from_a_checkpoint,
    verbs_race_with_reports,
);

/// Rounds of the race of each verb.
const ROUNDS: usize = 40;

// === hands ===

/// The server gets a checkpoint of this attempt.
async fn checkpointed(bed: &Bed, attempt: AttemptRef) -> CheckpointId {
    let id = CheckpointId(uuid::Uuid::now_v7());
    arrives(bed, attempt, id).await;
    id
}

async fn arrives(bed: &Bed, attempt: AttemptRef, id: CheckpointId) {
    let checkpoint = Checkpoint {
        id,
        attempt,
        contract: ContractId(uuid::Uuid::nil()),
        owner: bed.owner,
        daemon: DaemonId(uuid::Uuid::nil()),
        chain: vec![Link { id, blob: format!("checkpoints/{id}"), bytes: 7, sha256: "ab".repeat(32) }],
        about: About {
            reason: Reason::Asked,
            session_id: "session-1".to_owned(),
            summary: "A users.sql".to_owned(),
            base_commit: "c".repeat(40),
            ..About::default()
        },
        orphan: false,
        stored: Timestamp(0),
    };
    bed.ledger.server(Op::CheckpointStored(Box::new(checkpoint))).await.expect("store a checkpoint");
}

fn retry(bed: &Bed, task: TaskId, from: RetryFrom) -> Op {
    Op::RetryTask { owner: bed.owner, task, from }
}

fn reassign(bed: &Bed, task: TaskId, to: Option<DaemonId>) -> Op {
    Op::ReassignTask { owner: bed.owner, task, to }
}

fn release(bed: &Bed, task: TaskId) -> Op {
    Op::ForceRelease { owner: bed.owner, task, reason: "it hangs".to_owned() }
}

fn fork(bed: &Bed, task: TaskId) -> Fork {
    Fork {
        owner: bed.owner,
        task,
        checkpoint: None,
        name: None,
        plan: None,
        agent: None,
        model: None,
        conversation: true,
    }
}

async fn forked(bed: &Bed, fork: Fork) -> Task {
    match bed.person(Op::ForkTask(Box::new(fork))).await {
        Ok(Reply::Task(task)) => *task,
        other => panic!("not forked: {other:?}"),
    }
}

async fn refused(bed: &Bed, op: Op) -> String {
    match bed.person(op).await {
        Err(Error::Precondition(text) | Error::Unfit(text)) => text,
        Err(Error::Invalid(violations)) => format!("{violations:?}"),
        Err(error @ Error::NotFound { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

async fn lose(bed: &Bed, daemon: &Daemon) {
    bed.ledger.server(Op::DaemonLost { daemon: daemon.id, epoch: daemon.epoch }).await.expect("lose a daemon");
    bed.ledger.detach(daemon.id, daemon.epoch);
}

async fn live(bed: &Bed, contract: ContractId) -> u32 {
    bed.contract_now(contract).await.live
}

/// What the event log says of a task, as `event: detail (actor)`.
async fn log(bed: &Bed, contract: ContractId) -> Vec<String> {
    let mut tx = bed.store.read().await.expect("read");
    let changes = tx.events_of_contract(contract, 0, 1_000).await.expect("read the log");
    changes.iter().map(|it| format!("{}: {} ({})", it.what.event, it.what.detail, it.what.actor())).collect()
}

// === another try ===

/// From the work, from the base, from a checkpoint; one that was done from its base; one that runs is refused.
async fn a_retry_begins_where_it_is_told(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 2).await;
    let (_, tasks) = bed.contract(vec![task("a", &[])]).await;
    let id = tasks[0].id;
    let (first, _) = daemon.run_next(&bed).await;
    let old = checkpointed(&bed, first.attempt).await;
    let newest = checkpointed(&bed, first.attempt).await;
    let text = refused(&bed, retry(&bed, id, RetryFrom::Work)).await;
    assert!(text.contains("RUNNING") && text.contains("makima task reassign"), "{text}");
    daemon.failed(&bed, first.attempt, FailureClass::AgentError).await;

    for (from, expected) in [
        (RetryFrom::Work, Some(newest)),
        (RetryFrom::Checkpoint(old), Some(old)),
        (RetryFrom::Base, None),
        (RetryFrom::Checkpoint(newest), Some(newest)),
    ] {
        bed.person(retry(&bed, id, from)).await.expect("retry");
        let (command, spawn) = daemon.run_next(&bed).await;
        let resume = spawn.resume.as_ref().map(|resume| resume.chain[0].id);
        assert_eq!(resume, expected, "{from:?}");
        let mut tx = bed.store.read().await.unwrap();
        let attempt = tx.attempts_of_task(id).await.unwrap().pop().unwrap();
        assert_eq!(attempt.origin, expected.map_or(Origin::Base, |id| Origin::Checkpoint { id }));
        drop(tx);
        if from == RetryFrom::Checkpoint(newest) {
            daemon.done(&bed, command.attempt).await;
        } else {
            daemon.failed(&bed, command.attempt, FailureClass::AgentError).await;
        }
    }
    // Done: another try begins from the base, whatever checkpoints there are.
    bed.task_is(id, TaskStatus::Done).await;
    bed.person(retry(&bed, id, RetryFrom::Work)).await.expect("retry");
    let (_, spawn) = daemon.run_next(&bed).await;
    assert_eq!(spawn.resume, None);
    let unknown = CheckpointId(uuid::Uuid::now_v7());
    daemon.failed(&bed, spawn_attempt(&bed, id).await, FailureClass::AgentError).await;
    let text = refused(&bed, retry(&bed, id, RetryFrom::Checkpoint(unknown))).await;
    assert!(text.contains("no checkpoint"), "{text}");
    assert_eq!(bed.task(id).await.status(), TaskStatus::Failed, "nothing has changed");
}

/// An attempt that was cancelled brings its last checkpoint when a person has said already what the next one goes on from: it is
/// kept for people.
async fn what_arrives_late_changes_no_choice(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 2).await;
    let (_, tasks) = bed.contract(vec![task("a", &[])]).await;
    let id = tasks[0].id;
    let (mut command, _) = daemon.run_next(&bed).await;
    let old = checkpointed(&bed, command.attempt).await;
    for (from, expected) in [(RetryFrom::Base, None), (RetryFrom::Checkpoint(old), Some(old)), (RetryFrom::Work, None)]
    {
        let cancel = Op::CancelTask { owner: bed.owner, task: id, reason: "no".to_owned(), cascade: false };
        bed.person(cancel).await.expect("cancel");
        let order = daemon.command().await;
        daemon.answer(&bed, &order, Answer::Persisted).await;
        bed.person(retry(&bed, id, from)).await.expect("retry");
        let late = checkpointed(&bed, command.attempt).await;
        daemon.failed(&bed, command.attempt, FailureClass::Cancelled).await;
        let (next, spawn) = daemon.run_next(&bed).await;
        // Who goes on from the work wants the newest there is.
        let expected = if from == RetryFrom::Work { Some(late) } else { expected };
        assert_eq!(spawn.resume.as_ref().map(|resume| resume.chain[0].id), expected, "{from:?}");
        let mut tx = bed.store.read().await.unwrap();
        let kept = tx.checkpoints_of_task(id, 100).await.unwrap();
        let late = kept.iter().find(|checkpoint| checkpoint.id == late).unwrap();
        assert_eq!(late.orphan, from != RetryFrom::Work, "{from:?}");
        drop(tx);
        command = next;
    }
}

/// What is small arrives first: the one that was taken last counts, not the one that arrives last.
async fn a_small_checkpoint_may_overtake_a_large_one(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 2).await;
    let (_, tasks) = bed.contract(vec![task("a", &[])]).await;
    let id = tasks[0].id;
    let (command, _) = daemon.run_next(&bed).await;
    let large = CheckpointId(uuid::Uuid::now_v7());
    let small = checkpointed(&bed, command.attempt).await;
    arrives(&bed, command.attempt, large).await;
    daemon.failed(&bed, command.attempt, FailureClass::AgentError).await;
    bed.person(retry(&bed, id, RetryFrom::Work)).await.expect("retry");
    let (_, spawn) = daemon.run_next(&bed).await;
    assert_eq!(spawn.resume.unwrap().chain[0].id, small);
    let mut tx = bed.store.read().await.unwrap();
    let kept = tx.checkpoints_of_task(id, 100).await.unwrap();
    assert!(kept.iter().any(|checkpoint| checkpoint.id == large && !checkpoint.orphan), "it is kept all the same");
}

async fn spawn_attempt(bed: &Bed, task: TaskId) -> AttemptRef {
    let mut tx = bed.store.read().await.unwrap();
    tx.attempts_of_task(task).await.unwrap().pop().unwrap().reference()
}

/// Another task's checkpoint can be gone on from where the repository is the same, and its conversation is forked.
async fn a_foreign_checkpoint_serves_only_its_repository(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 4).await;
    let elsewhere = task_with("elsewhere", |spec| spec.repository = "https://example.com/other.git".to_owned());
    let (_, tasks) = bed.contract(vec![task("a", &[])]).await;
    let (first, _) = daemon.run_next(&bed).await;
    let checkpoint = checkpointed(&bed, first.attempt).await;
    let (_, others) = bed.contract(vec![task("b", &[]), elsewhere]).await;
    for _ in 0..2 {
        let (command, _) = daemon.run_next(&bed).await;
        daemon.failed(&bed, command.attempt, FailureClass::AgentError).await;
    }
    let text = refused(&bed, retry(&bed, others[1].id, RetryFrom::Checkpoint(checkpoint))).await;
    assert!(text.contains("https://example.com/r.git") && text.contains("other.git"), "{text}");
    bed.person(retry(&bed, others[0].id, RetryFrom::Checkpoint(checkpoint))).await.expect("resume");
    let (_, spawn) = daemon.run_next(&bed).await;
    let resume = spawn.resume.expect("something to go on from");
    assert_eq!((resume.chain[0].id, resume.fork_session, resume.session_id.as_str()), (checkpoint, true, "session-1"));
    assert!(resume.chosen, "a checkpoint before it will not do");
    let branched = BranchedFrom { task: tasks[0].id, checkpoint, conversation: true };
    assert_eq!(bed.task(others[0].id).await.spec.branched_from, Some(branched));
}

// === elsewhere ===

/// The attempt is ended and fenced, its final checkpoint still counts, and the next goes on from it on the daemon named.
async fn a_live_task_moves_with_its_work(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut a = bed.daemon("a", 1).await;
    let (contract, tasks) = bed.contract(vec![task("t", &[])]).await;
    let id = tasks[0].id;
    let (first, _) = a.run_next(&bed).await;
    let mut b = bed.daemon("b", 1).await;
    let mut c = bed.daemon("c", 4).await;
    bed.person(reassign(&bed, id, Some(b.id))).await.expect("reassign");
    let moved = bed.task(id).await;
    assert_eq!((moved.status(), moved.ending, moved.prefer), (TaskStatus::Pending, Some(1), Some(b.id)));
    assert!(matches!(a.command().await.order, Order::Cancel { .. }));
    assert!(b.pushes.try_recv().is_err(), "not before nothing of it is left");
    let last = checkpointed(&bed, first.attempt).await;
    assert_eq!(bed.task(id).await.checkpoint, Some(last), "what it did at the last is not lost");
    // Its result comes too late.
    assert_eq!(a.done(&bed, first.attempt).await, MessageOutcome::Fenced);
    let (second, spawn) = b.run_next(&bed).await;
    assert_eq!((second.attempt.number, spawn.resume.unwrap().chain[0].id), (2, last));
    assert_eq!(live(&bed, contract.id).await, 1);
    // To wherever there is room: not where it was.
    bed.person(reassign(&bed, id, None)).await.expect("reassign");
    b.failed(&bed, second.attempt, FailureClass::Cancelled).await;
    let (third, _) = c.run_next(&bed).await;
    assert_eq!(third.attempt.number, 3);
    c.done(&bed, third.attempt).await;
    bed.task_is(id, TaskStatus::Done).await;
    let text = refused(&bed, reassign(&bed, id, None)).await;
    assert!(text.contains("DONE") && text.contains("makima task retry"), "{text}");
}

async fn a_move_names_what_the_daemon_lacks(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut here = bed.daemon("here", 1).await;
    let (_, tasks) = bed.contract(vec![task("t", &[]), task("other", &["t"])]).await;
    let id = tasks[0].id;
    let (first, _) = here.run_next(&bed).await;
    let full = bed.daemon("full", 0).await;
    let drains = bed.daemon("drains", 1).await;
    bed.person(Op::Drain { owner: bed.owner, daemon: drains.id, draining: true }).await.unwrap();
    let sick = bed.daemon("sick", 1).await;
    let op = Op::Accepting { daemon: sick.id, epoch: sick.epoch, not_accepting: "disk: 1 GiB free".to_owned() };
    bed.ledger.server(op).await.unwrap();
    let gone = bed.daemon("gone", 1).await;
    lose(&bed, &gone).await;
    for (daemon, word) in [
        (full.id, "no free slot (0 of 0 taken)"),
        (drains.id, "draining"),
        (sick.id, "disk: 1 GiB free"),
        (gone.id, "not attached"),
        (here.id, "already"),
        (DaemonId(uuid::Uuid::now_v7()), "no daemon"),
    ] {
        let text = refused(&bed, reassign(&bed, id, Some(daemon))).await;
        assert!(text.contains(word), "{word}: {text}");
    }
    let (_, labelled) = bed
        .contract(vec![task_with("labelled", |spec| {
            spec.labels = vec!["gpu".to_owned()];
            spec.agent = "claude".to_owned();
        })])
        .await;
    let roomy = bed.daemon("roomy", 3).await;
    let text = refused(&bed, reassign(&bed, labelled[0].id, Some(roomy.id))).await;
    assert!(text.contains("gpu") && text.contains("claude"), "{text}");
    assert_eq!(bed.task(id).await.status(), TaskStatus::Running, "nothing has changed");
    assert_eq!(here.done(&bed, first.attempt).await, MessageOutcome::Applied);
}

/// The attempt of a daemon that has gone quiet is given up at once, with its slot and its place; if the daemon comes back
/// with it, it is fenced.
async fn a_quiet_daemon_is_not_waited_for(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut quiet = bed.daemon("quiet", 1).await;
    let one = ContractLimits { concurrency: 1, ..ContractLimits::default() };
    let new = bed.new_contract(one, vec![task("t", &[])]);
    let Ok(Reply::Created { contract, tasks, .. }) = bed.person(Op::CreateContract(new)).await else { panic!() };
    let (first, _) = quiet.run_next(&bed).await;
    lose(&bed, &quiet).await;
    let mut other = bed.daemon("other", 1).await;
    bed.person(reassign(&bed, tasks[0].id, Some(other.id))).await.expect("reassign");
    let (second, _) = other.run_next(&bed).await;
    assert_eq!((second.attempt.number, live(&bed, contract.id).await), (2, 1));
    let mut back = Daemon::attach(&bed, quiet.id, "quiet", 1, vec![running(first.attempt)]).await;
    assert_eq!(back.verdicts, [(first.attempt, Verdict::Fenced)]);
    assert_eq!(back.done(&bed, first.attempt).await, MessageOutcome::Fenced);
    other.done(&bed, second.attempt).await;
    bed.task_is(tasks[0].id, TaskStatus::Done).await;
    assert_eq!(live(&bed, contract.id).await, 0);
}

// === another of its work ===

async fn a_fork_has_the_work_and_the_dependencies(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 4).await;
    let (contract, tasks) = bed.contract(vec![task("a", &[]), task("b", &["a"])]).await;
    let (first, _) = daemon.run_next(&bed).await;
    daemon.done(&bed, first.attempt).await;
    let (second, _) = daemon.run_next(&bed).await;
    let text = refused(&bed, Op::ForkTask(Box::new(fork(&bed, tasks[1].id)))).await;
    assert!(text.contains("checkpoint now"), "{text}");
    let checkpoint = checkpointed(&bed, second.attempt).await;

    let made = forked(&bed, fork(&bed, tasks[1].id)).await;
    let from = BranchedFrom { task: tasks[1].id, checkpoint, conversation: true };
    assert_eq!((made.spec.name.as_str(), made.spec.branched_from), ("b-fork", Some(from)));
    assert_eq!((made.unmet, made.contract, made.checkpoint), (0, contract.id, Some(checkpoint)));
    let (_, spawn) = daemon.run_next(&bed).await;
    let names: Vec<_> = spawn.dependencies.iter().map(|it| it.name.as_str()).collect();
    assert_eq!((spawn.name.as_str(), names), ("b-fork", vec!["a"]));
    let resume = spawn.resume.expect("something to go on from");
    assert_eq!((resume.fork_session, resume.session_id.as_str()), (true, "session-1"));

    // Without the conversation, with another plan; the name is the next that is free.
    let branch = Fork { conversation: false, plan: Some("otherwise".to_owned()), ..fork(&bed, tasks[1].id) };
    let made = forked(&bed, branch).await;
    assert_eq!((made.spec.name.as_str(), made.spec.plan.as_str()), ("b-fork-2", "otherwise"));
    let (_, spawn) = daemon.run_next(&bed).await;
    let resume = spawn.resume.expect("something to go on from");
    assert_eq!((resume.fork_session, resume.session_id.as_str(), resume.chain[0].id), (false, "", checkpoint));

    // A dependency that is open again is waited for.
    bed.person(retry(&bed, tasks[0].id, RetryFrom::Work)).await.expect("retry");
    let waits = forked(&bed, fork(&bed, tasks[1].id)).await;
    assert_eq!((waits.unmet, waits.spec.name.as_str()), (1, "b-fork-3"));
    let (again, _) = daemon.run_next(&bed).await;
    assert_eq!(again.attempt.task, tasks[0].id);
    let taken = Fork { name: Some("a".to_owned()), ..fork(&bed, tasks[1].id) };
    assert!(refused(&bed, Op::ForkTask(Box::new(taken))).await.contains("already"));
    let stranger = Fork { agent: Some("codex".to_owned()), ..fork(&bed, tasks[1].id) };
    assert!(refused(&bed, Op::ForkTask(Box::new(stranger))).await.contains("conversation"));
}

async fn a_fork_of_what_is_done_begins_from_its_result(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 4).await;
    let (_, tasks) = bed.contract(vec![task("a", &[])]).await;
    let (first, _) = daemon.run_next(&bed).await;
    let stale = checkpointed(&bed, first.attempt).await;
    daemon.done(&bed, first.attempt).await;
    let made = forked(&bed, fork(&bed, tasks[0].id)).await;
    assert_eq!((made.spec.branched_from, made.checkpoint, made.unmet), (None, None, 0));
    let (_, spawn) = daemon.run_next(&bed).await;
    assert_eq!(spawn.resume, None);
    assert_eq!(spawn.dependencies[0].commit, crate::bed::result(first.attempt).commit);
    // A checkpoint that is named is taken all the same.
    let made = forked(&bed, Fork { checkpoint: Some(stale), ..fork(&bed, tasks[0].id) }).await;
    assert_eq!((made.checkpoint, made.spec.name.as_str()), (Some(stale), "a-fork-2"));
    let mut held = bed.new_contract(ContractLimits::default(), vec![task("never ran", &[])]);
    held.hold = true;
    let Ok(Reply::Created { tasks: held, .. }) = bed.person(Op::CreateContract(held)).await else { panic!() };
    let text = refused(&bed, Op::ForkTask(Box::new(fork(&bed, held[0].id)))).await;
    assert!(text.contains("no work to go on with"), "{text}");
}

async fn a_new_task_begins_from_a_checkpoint(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 4).await;
    let (contract, tasks) = bed.contract(vec![task("a", &[])]).await;
    let (first, _) = daemon.run_next(&bed).await;
    let checkpoint = checkpointed(&bed, first.attempt).await;
    let begin = |checkpoint| Some(BranchedFrom::unnamed(checkpoint, false));
    let made = bed.add(contract.id, vec![task_with("b", |spec| spec.branched_from = begin(checkpoint))]).await;
    let from = BranchedFrom { task: tasks[0].id, checkpoint, conversation: false };
    assert_eq!(made[0].spec.branched_from, Some(from));
    let (_, spawn) = daemon.run_next(&bed).await;
    assert_eq!(spawn.resume.unwrap().chain[0].id, checkpoint);
    let elsewhere = task_with("c", |spec| {
        spec.repository = "https://example.com/other.git".to_owned();
        spec.branched_from = begin(checkpoint);
    });
    let unknown = task_with("d", |spec| spec.branched_from = begin(CheckpointId(uuid::Uuid::now_v7())));
    let tasks = vec![elsewhere, unknown];
    let op = Op::CreateTasks(makima::domain::draft::NewTasks { owner: bed.owner, contract: Some(contract.id), tasks });
    let text = refused(&bed, op).await;
    assert!(text.contains("tasks[0].checkpoint_id") && text.contains("tasks[1].checkpoint_id"), "{text}");
}

// === a checkpoint now ===

async fn a_checkpoint_is_asked_of_the_agent_that_runs(kind: Kind) {
    let bed = Bed::new(kind).await;
    let (_, tasks) = bed.contract(vec![task("a", &[])]).await;
    let ask = || Op::TakeCheckpoint { owner: bed.owner, task: tasks[0].id };
    assert!(refused(&bed, ask()).await.contains("PENDING"));
    let mut daemon = bed.daemon("d", 1).await;
    let (command, _) = daemon.spawned().await;
    assert!(refused(&bed, ask()).await.contains("not started"));
    daemon.answer(&bed, &command, Answer::Persisted).await;
    daemon.started(&bed, command.attempt).await;
    bed.person(ask()).await.expect("ask for a checkpoint");
    let order = daemon.command().await;
    assert_eq!((order.attempt, order.order.clone()), (command.attempt, Order::Checkpoint));
    daemon.answer(&bed, &order, Answer::Persisted).await;
    assert_eq!(bed.task(tasks[0].id).await.status(), TaskStatus::Running);
    let pack = Pack { bytes: 9, sha256: "cd".repeat(32) };
    let awaited = TaskResult { pack: Some(pack), ..crate::bed::result(command.attempt) };
    daemon.report(&bed, command.attempt, Report::Complete(complete(Ok(awaited)))).await;
    assert!(refused(&bed, ask()).await.contains("on its way from d"));
    let again = Daemon::attach(&bed, daemon.id, "d", 1, Vec::new()).await;
    assert_eq!(again.unanswered, Vec::new(), "the order was answered, and is not said again");
}

// === loose ===

/// Everything that lives of it ends in the ledger, without the daemons' word; what still runs there is fenced, by the next
/// heartbeat or the next attach, and the log says who did it and why.
async fn a_forced_release_frees_the_task_and_fences_what_is_left(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut stuck = bed.daemon("stuck", 1).await;
    let one = ContractLimits { concurrency: 1, ..ContractLimits::default() };
    let new = bed.new_contract(one, vec![task("t", &[])]);
    let Ok(Reply::Created { contract, tasks, .. }) = bed.person(Op::CreateContract(new)).await else { panic!() };
    let id = tasks[0].id;
    let (first, _) = stuck.run_next(&bed).await;
    // Its end is asked for, and never comes.
    bed.person(reassign(&bed, id, None)).await.expect("reassign");
    let order = stuck.command().await;
    let mut other = bed.daemon("other", 1).await;
    assert_eq!((bed.task(id).await.ending, live(&bed, contract.id).await), (Some(1), 1));
    bed.person(release(&bed, id)).await.expect("release");
    let (second, _) = other.run_next(&bed).await;
    assert_eq!((second.attempt.number, live(&bed, contract.id).await), (2, 1));
    let said = log(&bed, contract.id).await;
    let expected = "task.force_released: it hangs (gave up attempt 1 on stuck) (key:test)";
    assert!(said.iter().any(|line| line == expected), "{said:#?}");

    // The next heartbeat of the old daemon is told so; its answer to the old order is nobody's concern any more.
    assert_eq!(bed.ledger.fleet().unwanted(stuck.id, &[first.attempt]), [first.attempt]);
    assert_eq!(bed.ledger.fleet().unwanted(other.id, &[second.attempt]), []);
    stuck.answer(&bed, &order, Answer::Persisted).await;
    let mut back = Daemon::attach(&bed, stuck.id, "stuck", 1, vec![running(first.attempt)]).await;
    assert_eq!((back.verdicts.clone(), back.unanswered.len()), (vec![(first.attempt, Verdict::Fenced)], 0));
    assert_eq!(back.done(&bed, first.attempt).await, MessageOutcome::Fenced);

    // A live one too, and a wait, and a hold; with nothing to release it is no failure.
    bed.person(release(&bed, id)).await.expect("release");
    let mut tx = bed.store.read().await.unwrap();
    let ended = tx.attempts_of_task(id).await.unwrap();
    assert!(ended.iter().take(2).all(|it| it.fenced && it.state.status() == AttemptStatus::Ended), "{ended:#?}");
    drop(tx);
    back.ready(&bed).await;
    let third = bed.task_is(id, TaskStatus::Starting).await;
    assert_eq!(third.attempt, 3);
    assert_eq!(other.done(&bed, second.attempt).await, MessageOutcome::Fenced);
    assert_eq!(live(&bed, contract.id).await, 1);
}

// === races ===

/// Every verb while the attempt's reports come in: whichever is first, the task comes to its end, every slot and place is
/// free afterwards, and a fork runs after what it builds on.
async fn verbs_race_with_reports(kind: Kind) {
    let bed = Arc::new(Bed::new(kind).await);
    let logs = [crew(Arc::clone(&bed), "d1", 100).await, crew(Arc::clone(&bed), "d2", 100).await];
    let mut racing = JoinSet::new();
    for verb in 0..5 {
        let bed = Arc::clone(&bed);
        racing.spawn(async move {
            let mut done = 0;
            for _ in 0..ROUNDS {
                let (contract, tasks) = bed.contract(vec![task("t", &[])]).await;
                let id = tasks[0].id;
                let op = match verb {
                    0 => reassign(&bed, id, None),
                    1 => release(&bed, id),
                    2 => Op::TakeCheckpoint { owner: bed.owner, task: id },
                    3 => Op::ForkTask(Box::new(fork(&bed, id))),
                    _ => retry(&bed, id, RetryFrom::Base),
                };
                match bed.person(op).await {
                    Ok(Reply::Task(task)) => {
                        done += 1;
                        bed.task_is(task.id, TaskStatus::Done).await;
                    }
                    Err(Error::Precondition(_)) => {}
                    other => panic!("verb {verb}: {other:?}"),
                }
                bed.task_is(id, TaskStatus::Done).await;
                eventually("every place is free", || async {
                    match live(&bed, contract.id).await {
                        0 => Ok(()),
                        live => Err(format!("verb {verb}: {live} attempts live")),
                    }
                })
                .await;
            }
            (verb, done)
        });
    }
    let mut done = [0; 5];
    while let Some(ended) = racing.join_next().await {
        let (verb, count) = ended.unwrap();
        done[verb] = count;
    }
    assert!(done[1] > 0, "the release is never refused: {done:?}");
    for log in &logs {
        let log = log.lock().unwrap();
        assert!(log.early.is_empty(), "{:?}", log.early);
    }
    // What was read is committed, and takes effect in memory a moment later.
    eventually("no daemon holds an attempt", || async {
        let fleet = bed.ledger.fleet();
        let held = fleet.iter().find(|(_, member)| !member.live.is_empty());
        held.map_or(Ok(()), |(daemon, member)| Err(format!("{daemon} still holds {:?}", member.live)))
    })
    .await;
}

// === the whole program ===

/// What a person types: refused in one line that says what to do, or done; and what a program reads of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_do_it_or_say_why_not() {
    let mut world = World::start(Database::Sqlite).await;
    let repo = world.repo("repo").url();
    let client = world.client();
    let go = world.dir.join("go");
    let script = format!("until test -e {}; do sleep 0.1; done", go.display());
    let id = client.create(&repo, vec![shell("t", &script, &[])]).await.tasks[0].task_id.clone();
    let said = async |args: &[&str]| {
        let output = world.cli(args).await;
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text.replace(&id[24..], "TASK").trim_end().to_owned())
    };
    let refused = |text: &str| (Some(1), format!("makima: cannot {text}"));
    assert_eq!(
        said(&["task", "checkpoint", "now", "t"]).await,
        refused("take a checkpoint: no agent works on the task: it is PENDING (WRONG_STATE)")
    );
    assert_eq!(
        said(&["task", "fork", "t"]).await,
        refused(
            "fork the task: the task is PENDING and has neither a checkpoint nor a result: there is no work to go on with \
             (WRONG_STATE)"
        )
    );
    assert_eq!(
        said(&["task", "reassign", "t", "--to", "nowhere"]).await,
        refused("reassign the task: there is no daemon `nowhere` (DAEMON_NOT_FOUND)")
    );
    assert_eq!(
        said(&["task", "resume", "t", "--from", "00c0ffee0000"]).await,
        refused(
            "retry the task: there is no checkpoint `00c0ffee0000`, or it is no longer kept (CHECKPOINT_NOT_FOUND)"
        )
    );
    assert_eq!(said(&["task", "branch", "t"]).await.0, Some(2));
    assert_eq!(said(&["task", "force-release", "t"]).await.0, Some(2));
    assert_eq!(said(&["task", "checkpoints", "t"]).await, (Some(0), "no checkpoints of it yet".to_owned()));

    world.start_daemon_with("a", DaemonOptions { slots: 1, ..DaemonOptions::default() }).await;
    eventually("it runs", || async {
        let task = client.task(&id).await.task.unwrap();
        ensure(task.daemon_name == "a" && task.start_time.is_some(), || format!("{task:#?}"))
    })
    .await;
    let output = world.cli(&["task", "retry", "t"]).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("makima task reassign"), "{output:?}");
    world.start_daemon_with("b", DaemonOptions { slots: 1, ..DaemonOptions::default() }).await;
    let moved = world.cli_json(&["task", "reassign", "t", "--to", "b"]).await;
    assert_eq!((moved[0]["status"].as_str(), moved[0]["attempt"].as_u64()), (Some("PENDING"), Some(1)));
    std::fs::write(&go, "").unwrap();
    let done = eventually("it is done elsewhere", || async {
        let answer = client.task(&id).await;
        let task = answer.task.clone().unwrap();
        if task.result_commit.is_empty() { Err(format!("{answer:#?}")) } else { Ok(task) }
    })
    .await;
    assert_eq!((done.daemon_name.as_str(), done.attempt), ("b", 2));
    let forked = world.cli_json(&["task", "fork", "t", "--plan", "true"]).await;
    assert_eq!(forked[0]["spec"]["name"], "t-fork");
    assert_eq!(forked[0]["spec"]["depends_on"][0].as_str(), Some(id.as_str()));
}

/// What a task waits for is named in its contract, or as CONTRACT/NAME; a name with a slash in it comes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_waited_for_is_named() {
    let world = World::start(Database::Sqlite).await;
    let repo = world.repo("repo").url();
    let client = world.client();
    let made = async |name: &str, tasks: &[&str]| {
        let tasks = tasks.iter().map(|task| shell(task, "true", &[])).collect();
        let (name, repository) = (name.to_owned(), repo.clone());
        let request = CreateContractRequest { name, repository, tasks, ..CreateContractRequest::default() };
        client.contracts().create_contract(request).await.unwrap().into_inner().tasks
    };
    made("api", &["types", "routes"]).await;
    let app = made("app", &["ui", "api/types", "db"]).await;
    let waits_for = async |change: &str, name: &str| {
        let output = world.cli(&["task", "deps", change, "app/ui", name]).await;
        assert!(output.status.success(), "{output:?}");
        let of = client.task(&app[0].task_id).await.dependencies;
        of.into_iter().map(|edge| edge.task_id).collect::<Vec<_>>()
    };
    assert_eq!(waits_for("add", "app/db").await, [app[2].task_id.clone()]);
    assert_eq!(waits_for("rm", "app/db").await, [""; 0]);
    assert_eq!(waits_for("add", "api/types").await, [app[1].task_id.clone()]);
    assert_eq!(waits_for("rm", "api/types").await, [""; 0]);
    for (name, why) in [("api/routes", "belongs to another contract"), ("api/nothing", "api/nothing")] {
        let output = world.cli(&["task", "deps", "add", "app/ui", name]).await;
        assert!(String::from_utf8_lossy(&output.stderr).contains(why), "{output:?}");
    }
}

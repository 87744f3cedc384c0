//! Promises are kept across every way of dying that a process has.

mod transactions;

use std::{fs, io::Write as _};

use rusqlite::params;

use super::{db::RECENT, *};
use crate::domain::{
    CommandId, ContractId, Epoch,
    attempt::{Failure, FailureClass, Usage},
    order::Order,
};

const NOW: Timestamp = Timestamp(1_785_000_000_000_000);

pub(crate) fn attempt(n: u128) -> AttemptRef {
    AttemptRef { task: Uuid::from_u128(n).into(), number: 1, id: Uuid::from_u128(n << 64 | n).into() }
}

pub(crate) fn spawn(name: &str) -> Spawn {
    Spawn {
        contract: ContractId(Uuid::from_u128(7)),
        contract_name: "goal".to_owned(),
        name: name.to_owned(),
        plan: "true".to_owned(),
        agent: "shell".to_owned(),
        model: None,
        repository: "/repo".to_owned(),
        base_branch: String::new(),
        branch: format!("makima/{name}/1"),
        result_ref: format!("refs/makima/results/{name}"),
        dependencies: Vec::new(),
        setup_command: String::new(),
        setup_timeout: Duration::from_secs(600),
        copy_files: Vec::new(),
        wall_time: None,
        grace: Duration::from_secs(10),
        parent: None,
        depth: 0,
        task_key: "mk_task_x".to_owned(),
        contract_tasks: Vec::new(),
        checkpoint_every: Duration::ZERO,
        final_checkpoint: false,
        resume: None,
    }
}

fn command(sequence: i64, order: Order) -> Command {
    let n = u128::try_from(sequence).unwrap();
    Command { sequence, id: CommandId(Uuid::from_u128(1_000 + n)), epoch: Epoch(1), attempt: attempt(n), order }
}

pub(crate) fn spawn_command(sequence: i64) -> Command {
    command(sequence, Order::Spawn(Box::new(spawn(&format!("task-{sequence}")))))
}

fn complete(class: FailureClass) -> Complete {
    Complete {
        outcome: Err(Failure::new(class, "because")),
        progress: Progress { agent_session_id: String::new(), usage: Usage::default(), last_message: String::new() },
        output_bytes: 3,
        exit_code: Some(1),
        signal: 0,
    }
}

fn warning(text: &str) -> Report {
    Report::Warning { message: text.to_owned() }
}

fn say(reports: Vec<Report>) -> Change {
    Change { reports, ..Change::default() }
}

fn open(state: &Path) -> Journal {
    Journal::open(state, NOW).unwrap().journal
}

async fn sequences(journal: &Journal) -> Vec<i64> {
    journal.outbox(0, 1_000).await.unwrap().into_iter().map(|m| m.sequence).collect()
}

#[tokio::test]
async fn what_was_promised_is_there_after_reopening() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    let id = journal.id();
    assert_eq!(journal.accept(vec![spawn_command(1)], NOW).await.unwrap(), [Accepted::New]);
    let started = Change {
        state: Some(State::Running),
        directory: Some("/state/attempts/a".into()),
        worktree: Some("/state/worktrees/a".to_owned()),
        reports: vec![warning("one"), warning("two")],
        ..Change::default()
    };
    journal.record(attempt(1), started, NOW).await.unwrap();
    drop(journal);

    let journal = open(state.path());
    assert_eq!(journal.id(), id);
    let row = journal.attempt(attempt(1)).await.unwrap().unwrap();
    assert_eq!((row.state, row.worktree.as_str()), (State::Running, "/state/worktrees/a"));
    assert_eq!(row.spawn, Some(spawn("task-1")));
    let messages = journal.outbox(0, 10).await.unwrap();
    assert_eq!(messages.iter().map(|m| m.sequence).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(messages[1].report, warning("two"));
    assert_eq!(*journal.newest().borrow(), 2);
    assert_eq!(
        journal.standing().await.unwrap(),
        Standing { last_command: 1, first_unanswered: 1, last_unanswered: 2 }
    );
}

/// The file as it is on the disk at this instant, as `kill -9` leaves it: no connection has closed it.
fn killed(state: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("{FILE}{suffix}");
        if state.join(&name).exists() {
            fs::copy(state.join(&name), copy.path().join(&name)).unwrap();
        }
    }
    copy
}

#[tokio::test]
async fn killed_after_an_answer_the_answer_still_holds() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    for n in 1..=20 {
        journal.accept(vec![spawn_command(n)], NOW).await.unwrap();
        journal.record(attempt(n as u128), say(vec![warning("w")]), NOW).await.unwrap();
        let after = killed(state.path());
        let reopened = open(after.path());
        assert_eq!(reopened.attempts().await.unwrap().len(), usize::try_from(n).unwrap());
        assert_eq!(sequences(&reopened).await, (1..=n).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn the_same_command_twice_is_a_no_op_and_other_content_a_conflict() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    assert_eq!(journal.accept(vec![spawn_command(1)], NOW).await.unwrap(), [Accepted::New]);
    // Sent again in a later session, so with another epoch.
    let again = Command { epoch: Epoch(9), ..spawn_command(1) };
    assert_eq!(journal.accept(vec![again], NOW).await.unwrap(), [Accepted::Known]);
    let other = Command { order: Order::Spawn(Box::new(spawn("other"))), ..spawn_command(1) };
    let mut elsewhere = spawn_command(1);
    elsewhere.attempt.number += 1;
    for other in [other, elsewhere] {
        assert_eq!(journal.accept(vec![other], NOW).await.unwrap(), [Accepted::Conflict]);
    }
    // Another command for the same attempt does not start it twice.
    let twin = Command { id: CommandId(Uuid::from_u128(5)), sequence: 2, ..spawn_command(1) };
    assert_eq!(journal.accept(vec![twin], NOW).await.unwrap(), [Accepted::Known]);
    assert_eq!(journal.attempts().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_cancel_is_remembered_and_stands_in_the_way_of_a_late_spawn() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    let cancel = |n| command(n, Order::Cancel { reason: "enough".to_owned(), grace: Duration::from_secs(1) });
    journal.accept(vec![spawn_command(1)], NOW).await.unwrap();
    let late = Command { sequence: 2, id: CommandId(Uuid::from_u128(77)), ..cancel(1) };
    assert_eq!(journal.accept(vec![late.clone()], NOW).await.unwrap(), [Accepted::New]);
    assert_eq!(journal.accept(vec![late], NOW).await.unwrap(), [Accepted::Known]);
    let stop = journal.attempt(attempt(1)).await.unwrap().unwrap().stop.unwrap();
    assert_eq!((stop.why, stop.reason.as_str()), (Why::Cancelled, "enough"));

    assert_eq!(journal.accept(vec![cancel(3)], NOW).await.unwrap(), [Accepted::New]);
    let spawn = Command { id: CommandId(Uuid::from_u128(78)), ..spawn_command(3) };
    assert_eq!(journal.accept(vec![spawn], NOW).await.unwrap(), [Accepted::Known]);
    assert_eq!(journal.attempt(attempt(3)).await.unwrap().unwrap().spawn, None);
}

#[tokio::test]
async fn an_answered_message_is_gone_and_what_it_ended_is_over() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    journal.accept(vec![spawn_command(1)], NOW).await.unwrap();
    let ended = Change {
        state: Some(State::Reported),
        reports: vec![warning("w"), Report::Complete(complete(FailureClass::AgentError))],
        ..Change::default()
    };
    journal.record(attempt(1), ended, NOW).await.unwrap();
    journal.answered(1, MessageOutcome::Applied, NOW).await.unwrap();
    assert_eq!(sequences(&journal).await, [2]);
    assert_eq!(journal.attempt(attempt(1)).await.unwrap().unwrap().state, State::Reported);
    // Asked for again while it waits: not written twice.
    assert!(journal.report_again(attempt(1), NOW).await.unwrap());
    assert_eq!(sequences(&journal).await, [2]);

    journal.answered(2, MessageOutcome::Fenced, NOW).await.unwrap();
    // The same answer again changes nothing.
    journal.answered(2, MessageOutcome::Fenced, NOW).await.unwrap();
    assert_eq!(journal.attempt(attempt(1)).await.unwrap().unwrap().state, State::Over);
    assert!(sequences(&journal).await.is_empty());

    // Asked for again after all: the same report, with the next number.
    assert!(journal.report_again(attempt(1), NOW).await.unwrap());
    let messages = journal.outbox(0, 10).await.unwrap();
    assert_eq!(messages[0].sequence, 3);
    assert_eq!(messages[0].report, Report::Complete(complete(FailureClass::AgentError)));
    assert_eq!(journal.attempt(attempt(1)).await.unwrap().unwrap().state, State::Reported);
}

/// A report of a result whose pack is on its way, and the upload of that pack.
fn result(n: u128) -> (Change, Upload) {
    let pack = Pack { bytes: 7, sha256: "ab".repeat(32) };
    let made = crate::domain::attempt::TaskResult {
        commit: "c".repeat(40),
        branch: "b".to_owned(),
        result_ref: "refs/r".to_owned(),
        published: false,
        pack: Some(pack.clone()),
        blob: String::new(),
    };
    let upload = Upload {
        attempt: attempt(n),
        checkpoint: None,
        path: "/a/result.pack".into(),
        whole: pack,
        about: None,
        created: NOW,
    };
    let report = Report::Complete(Complete { outcome: Ok(made), ..complete(FailureClass::AgentError) });
    let change = Change {
        state: Some(State::Reported),
        reports: vec![report],
        uploads: vec![upload.clone()],
        ..Change::default()
    };
    (change, upload)
}

async fn state_of(journal: &Journal, n: u128) -> State {
    journal.attempt(attempt(n)).await.unwrap().unwrap().state
}

/// Answered and delivered, in either order, across a restart: over is what is both.
#[tokio::test]
async fn an_attempt_is_over_when_its_report_is_answered_and_its_pack_delivered() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    journal.accept(vec![spawn_command(1), spawn_command(2), spawn_command(3)], NOW).await.unwrap();
    for n in 1..=3 {
        journal.record(attempt(n), result(n).0, NOW).await.unwrap();
    }
    let expected: Vec<_> = (1..=3).map(|n| result(n).1).collect();
    let mut pending = journal.uploads_pending().await.unwrap();
    pending.sort_by_key(|upload| upload.attempt);
    assert_eq!(pending, expected);

    journal.answered(1, MessageOutcome::Applied, NOW).await.unwrap();
    assert_eq!(state_of(&journal, 1).await, State::Reported, "its pack is still on its way");
    drop(journal);
    let journal = open(state.path());
    assert_eq!(state_of(&journal, 1).await, State::Reported);
    journal.upload_settled(attempt(1), None, Settled::Stored, NOW).await.unwrap();
    assert_eq!(state_of(&journal, 1).await, State::Over);

    journal.upload_settled(attempt(2), None, Settled::Stored, NOW).await.unwrap();
    assert_eq!(state_of(&journal, 2).await, State::Reported, "not answered yet");
    journal.answered(2, MessageOutcome::AlreadyApplied, NOW).await.unwrap();
    assert_eq!(state_of(&journal, 2).await, State::Over);

    // Nobody waits for what is fenced.
    journal.answered(3, MessageOutcome::Fenced, NOW).await.unwrap();
    assert_eq!(state_of(&journal, 3).await, State::Over);
    assert_eq!(journal.uploads_pending().await.unwrap(), expected[2..]);
    // ... but what is to be uploaded keeps its attempt.
    journal.prune((1..=3).map(attempt).collect()).await.unwrap();
    assert_eq!(journal.attempts().await.unwrap().len(), 1);
}

/// An attempt that is refused or cancelled before it has a directory has no output that could be waited for: it is forgotten like
/// all others.
#[tokio::test]
async fn what_ends_before_it_begins_waits_for_no_output() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    journal.accept(vec![spawn_command(1), spawn_command(2)], NOW).await.unwrap();
    let begun = Change { directory: Some("/d".into()), ..Change::default() };
    journal.record(attempt(2), begun, NOW).await.unwrap();
    for n in 1..=2 {
        let ended = Change {
            state: Some(State::Reported),
            reports: vec![Report::Complete(complete(FailureClass::Refused))],
            ..Change::default()
        };
        journal.record(attempt(n), ended, NOW).await.unwrap();
        journal.answered(i64::try_from(n).unwrap(), MessageOutcome::Applied, NOW).await.unwrap();
    }
    let forgettable = journal.not_needed(0, 0, None, 10).await.unwrap().rows;
    assert_eq!(forgettable.iter().map(|row| row.attempt).collect::<Vec<_>>(), [attempt(1)]);
}

/// A report that can no longer be read holds nothing up: what the server is to know of its pack it is told all the same.
#[tokio::test]
async fn a_report_that_cannot_be_read_is_not_waited_for() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    journal.accept(vec![spawn_command(1)], NOW).await.unwrap();
    journal.record(attempt(1), result(1).0, NOW).await.unwrap();
    let spoil = |db: &db::Db<'_>| Ok(db.execute(r#"UPDATE attempts SET complete = '{"outcome":'"#, []).map(|_| ())?);
    journal.worker.call(Kind::Durable, spoil).await.unwrap();
    journal.answered(1, MessageOutcome::Applied, NOW).await.unwrap();
    let beside = rusqlite::Connection::open(state.path().join(FILE)).unwrap();
    let word = || beside.query_row("SELECT state FROM attempts", [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(word(), "reported");
    journal.upload_settled(attempt(1), None, Settled::GivenUp("gone".to_owned()), NOW).await.unwrap();
    let messages = journal.outbox(0, 10).await.unwrap();
    let Report::Complete(last) = &messages[0].report else { panic!("{messages:?}") };
    assert_eq!(last.outcome.as_ref().unwrap_err().class, FailureClass::WorktreeLost);
    journal.answered(2, MessageOutcome::Applied, NOW).await.unwrap();
    assert_eq!(word(), "over");
    assert!(sequences(&journal).await.is_empty());
}

/// The server gave it up and asks for its report again: it waits for the answer again, and for the pack as before.
#[tokio::test]
async fn a_report_that_is_asked_for_again_waits_again() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    journal.accept(vec![spawn_command(1)], NOW).await.unwrap();
    journal.record(attempt(1), result(1).0, NOW).await.unwrap();
    journal.answered(1, MessageOutcome::Applied, NOW).await.unwrap();
    assert!(journal.report_again(attempt(1), NOW).await.unwrap());
    assert_eq!(sequences(&journal).await, [2]);
    journal.upload_settled(attempt(1), None, Settled::Stored, NOW).await.unwrap();
    assert_eq!(state_of(&journal, 1).await, State::Reported, "the second one is not answered");
    journal.answered(2, MessageOutcome::Applied, NOW).await.unwrap();
    assert_eq!(state_of(&journal, 1).await, State::Over);
}

/// A result that cannot be brought to the server is one that was not made, and that is said.
#[tokio::test]
async fn a_pack_that_is_given_up_is_reported() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    journal.accept(vec![spawn_command(1)], NOW).await.unwrap();
    journal.record(attempt(1), result(1).0, NOW).await.unwrap();
    let how = Settled::GivenUp("the disk is broken".to_owned());
    journal.upload_settled(attempt(1), None, how, NOW).await.unwrap();
    let messages = journal.outbox(0, 10).await.unwrap();
    let Report::Complete(last) = &messages[1].report else { panic!("{messages:?}") };
    let failure = last.outcome.as_ref().unwrap_err();
    assert_eq!(failure.class, FailureClass::WorktreeLost);
    assert_eq!(failure.message, "its result could not be brought to the server: the disk is broken");
    // The answer to the first report does not end it.
    journal.answered(1, MessageOutcome::Applied, NOW).await.unwrap();
    assert_eq!(state_of(&journal, 1).await, State::Reported);
    journal.answered(2, MessageOutcome::Applied, NOW).await.unwrap();
    assert_eq!(state_of(&journal, 1).await, State::Over);
    // What is said of one that the server needs nothing more of is too late.
    journal.accept(vec![spawn_command(2)], NOW).await.unwrap();
    journal.record(attempt(2), result(2).0, NOW).await.unwrap();
    let over = Change { state: Some(State::Over), ..Change::default() };
    journal.record(attempt(2), over, NOW).await.unwrap();
    let before = journal.outbox(0, 10).await.unwrap();
    journal.upload_settled(attempt(2), None, Settled::GivenUp("late".to_owned()), NOW).await.unwrap();
    assert_eq!(journal.outbox(0, 10).await.unwrap(), before);
}

/// A journal of the first version has everything after it was opened by this one.
#[tokio::test]
async fn an_older_journal_is_brought_to_this_version() {
    let state = tempfile::tempdir().unwrap();
    let id = Uuid::from_u128(9);
    let connection = rusqlite::Connection::open(state.path().join(FILE)).unwrap();
    connection.execute_batch(include_str!("../../../migrations/daemon/0001_journal.sql")).unwrap();
    connection.execute("INSERT INTO meta (id, journal_id, created) VALUES (1, ?1, 1)", [id.to_string()]).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    drop(connection);
    let journal = open(state.path());
    assert_eq!(journal.id().0, id);
    journal.accept(vec![spawn_command(1)], NOW).await.unwrap();
    journal.record(attempt(1), result(1).0, NOW).await.unwrap();
    assert_eq!(journal.uploads_pending().await.unwrap(), [result(1).1]);
}

/// Hellos are numbered, also over a restart.
#[tokio::test]
async fn no_two_hellos_have_one_number() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    assert_eq!((journal.attach().await.unwrap(), journal.attach().await.unwrap()), (1, 2));
    drop(journal);
    assert_eq!(open(state.path()).attach().await.unwrap(), 3);
}

#[tokio::test]
async fn progress_waits_until_the_last_word_is_answered() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    journal.accept(vec![spawn_command(1), spawn_command(2)], NOW).await.unwrap();
    assert!(journal.progress(attempt(1), Progress::default(), NOW).await.unwrap());
    assert!(!journal.progress(attempt(1), Progress::default(), NOW).await.unwrap());
    assert!(journal.progress(attempt(2), Progress::default(), NOW).await.unwrap());
    journal.answered(1, MessageOutcome::Applied, NOW).await.unwrap();
    assert!(journal.progress(attempt(1), Progress::default(), NOW).await.unwrap());
    assert_eq!(sequences(&journal).await, [2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn numbers_have_no_gaps_whoever_writes_at_once_and_whatever_fails_between() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    let mut writers = tokio::task::JoinSet::new();
    for n in 1..=8_i64 {
        let journal = journal.clone();
        writers.spawn(async move {
            journal.accept(vec![spawn_command(n)], NOW).await.unwrap();
            for _ in 0..50 {
                journal.record(attempt(n as u128), say(vec![warning("w")]), NOW).await.unwrap();
                // One that fails after it has taken a number: its savepoint gives the number back.
                let failed = journal.worker.call(Kind::Durable, move |db| {
                    sql::attempt_change(db, attempt(n as u128), &say(vec![warning("lost")]), NOW)?;
                    Err::<(), _>(Error::Closed)
                });
                assert!(failed.await.is_err());
            }
        });
    }
    writers.join_all().await;
    assert_eq!(sequences(&journal).await, (1..=400).collect::<Vec<_>>());
    assert_eq!(*journal.newest().borrow(), 400);
}

#[tokio::test]
async fn a_damaged_journal_is_moved_aside_and_replaced() {
    for damage in [&b"this is no database, and was never meant to be one"[..], &[0xff; 8192][..]] {
        let state = tempfile::tempdir().unwrap();
        let id = open(state.path()).id();
        // The thread closes the file after the handle is gone; damage must not race with that.
        let path = state.path().join(FILE);
        let copy = killed(state.path());
        fs::File::create(copy.path().join(FILE)).unwrap().write_all(damage).unwrap();
        fs::remove_file(copy.path().join(format!("{FILE}-wal"))).ok();
        let opened = Journal::open(copy.path(), NOW).unwrap();
        assert_ne!(opened.journal.id(), id);
        assert!(opened.fresh);
        let aside = opened.moved_aside.unwrap();
        assert_eq!(aside, copy.path().join("journal.corrupt-1"));
        assert_eq!(fs::read(aside).unwrap(), damage);
        assert!(path.exists());
    }
}

#[tokio::test]
async fn a_newer_journal_is_refused_and_left_alone() {
    let state = tempfile::tempdir().unwrap();
    drop(open(state.path()));
    let copy = killed(state.path());
    let connection = rusqlite::Connection::open(copy.path().join(FILE)).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Journal::open(copy.path(), NOW).unwrap_err();
    assert!(matches!(error, Error::Newer { found: 99, .. }), "{error}");
    assert!(!copy.path().join("journal.corrupt-1").exists());
}

#[tokio::test]
async fn attempts_found_by_their_directories_do_not_replace_what_is_known() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    journal.accept(vec![spawn_command(1)], NOW).await.unwrap();
    let found = |n: u128| Row {
        attempt: attempt(n),
        state: State::Ending,
        spawn: Some(spawn("found")),
        directory: "/d".into(),
        worktree: "/w".to_owned(),
        stop: None,
        complete: None,
        uploaded: false,
        created: NOW,
        updated: NOW,
    };
    journal.adopt(vec![found(1), found(2)]).await.unwrap();
    let rows = journal.attempts().await.unwrap();
    assert_eq!(rows.iter().map(|r| r.state).collect::<Vec<_>>(), [State::Accepted, State::Ending]);
    assert_eq!(journal.attempts_of(vec![attempt(2).task]).await.unwrap(), vec![found(2)]);

    // Only what is over can be forgotten.
    journal.prune(vec![attempt(1), attempt(2)]).await.unwrap();
    assert_eq!(journal.attempts().await.unwrap().len(), 2);
    let over = Change { state: Some(State::Over), ..Change::default() };
    journal.record(attempt(2), over, NOW).await.unwrap();
    journal.prune(vec![attempt(1), attempt(2)]).await.unwrap();
    assert_eq!(journal.attempts().await.unwrap().len(), 1);
}

/// Whoever has read all before gets what was written since, once, and nothing of what was undone.
#[tokio::test]
async fn what_was_just_written_need_not_be_looked_for() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    journal.accept(vec![spawn_command(1)], NOW).await.unwrap();
    let write = |text: &'static str| journal.record(attempt(1), say(vec![warning(text)]), NOW);
    let fails = || {
        journal.worker.call(Kind::Durable, |db| {
            sql::attempt_change(db, attempt(1), &say(vec![warning("undone")]), NOW)?;
            Err::<(), _>(Error::Closed)
        })
    };
    assert!(fails().await.is_err());
    let (one, failed, two) = tokio::join!(write("one"), fails(), write("two"));
    assert!(one.is_ok() && failed.is_err() && two.is_ok());
    write("three").await.unwrap();
    let there = journal.outbox(0, 10).await.unwrap();
    assert_eq!(there.len(), 3);
    assert_eq!(journal.recent(0, 2).unwrap(), there[..2]);
    assert_eq!(journal.recent(1, 2), None, "it was handed out");
    assert_eq!(journal.recent(2, 10).unwrap(), there[2..]);
    assert_eq!(journal.recent(3, 10), None);
    // What is not kept any more has to be looked for.
    journal.record(attempt(1), say(vec![warning("more"); RECENT]), NOW).await.unwrap();
    write("more").await.unwrap();
    assert_eq!(journal.recent(3, 10), None);
    assert_eq!(journal.recent(100, 1).unwrap()[0].sequence, 101);
    // Of a journal that is opened again everything has to be.
    drop(journal);
    assert_eq!(open(state.path()).recent(0, 10), None);
}

/// Orders that an older version kept in the rows of attempts are there afterwards.
#[tokio::test]
async fn orders_of_an_older_journal_are_kept() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join(FILE);
    let older = rusqlite::Connection::open(&path).unwrap();
    for migration in [
        include_str!("../../../migrations/daemon/0001_journal.sql"),
        include_str!("../../../migrations/daemon/0002_uploads.sql"),
        include_str!("../../../migrations/daemon/0003_attaches.sql"),
    ] {
        older.execute_batch(migration).unwrap();
    }
    older.pragma_update(None, "user_version", 3).unwrap();
    let id = Uuid::from_u128(9).to_string();
    older.execute("INSERT INTO meta (id, journal_id, created) VALUES (1, ?1, 0)", [&id]).unwrap();
    let order = serde_json::to_string(&spawn("old")).unwrap();
    let insert = "INSERT INTO attempts (attempt_id, task_id, number, state, spawn, created, updated)
                  VALUES (?1, ?2, 1, 'running', ?3, 0, 0)";
    older.execute(insert, [attempt(1).id.to_string(), attempt(1).task.to_string(), order]).unwrap();
    older
        .execute(
            insert.replace("?3", "nullif(?3, '')").as_str(),
            [attempt(2).id.to_string(), attempt(2).task.to_string(), String::new()],
        )
        .unwrap();
    // One that is gone leaves a gap: orders do not slip to the next attempt.
    older.execute("DELETE FROM attempts WHERE attempt_id = ?1", [attempt(1).id.to_string()]).unwrap();
    let order = serde_json::to_string(&spawn("older")).unwrap();
    older.execute(insert, [attempt(3).id.to_string(), attempt(3).task.to_string(), order]).unwrap();
    drop(older);
    let journal = open(state.path());
    assert_eq!(journal.attempt(attempt(1)).await.unwrap(), None);
    assert_eq!(journal.attempt(attempt(2)).await.unwrap().unwrap().spawn, None);
    assert_eq!(journal.attempt(attempt(3)).await.unwrap().unwrap().spawn, Some(spawn("older")));
}

/// Which attempts of an older journal wait for their packs is known afterwards, and commands that were taken are known again.
#[tokio::test]
async fn what_an_older_journal_owes_is_known() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join(FILE);
    let older = rusqlite::Connection::open(&path).unwrap();
    for migration in &sql::MIGRATIONS[..5] {
        older.execute_batch(migration).unwrap();
    }
    older.pragma_update(None, "user_version", 5).unwrap();
    let id = Uuid::from_u128(9).to_string();
    older.execute("INSERT INTO meta (id, journal_id, created, last_command) VALUES (1, ?1, 0, 1)", [&id]).unwrap();
    let Report::Complete(with_pack) = &result(1).0.reports[0] else { panic!("no terminal report") };
    let document = |complete: &Complete| serde_json::to_string(complete).unwrap();
    let (packed, failed) = (document(with_pack), document(&complete(FailureClass::AgentError)));
    let documents = [packed.clone(), failed, "{\"outcome\":".to_owned(), packed.clone(), packed];
    for (n, complete) in (1..).zip(documents) {
        let insert = "INSERT INTO attempts (attempt_id, task_id, number, state, complete, created, updated)
                      VALUES (?1, ?2, 1, 'reported', ?3, 0, 0)";
        older.execute(insert, [attempt(n).id.to_string(), attempt(n).task.to_string(), complete]).unwrap();
        let owed = "INSERT INTO outbox (sequence, attempt_id, task_id, number, at, kind, report)
                    VALUES (?1, ?2, ?3, 1, 0, 'complete', '')";
        let sequence = i64::try_from(n).unwrap();
        older.execute(owed, params![sequence, attempt(n).id.to_string(), attempt(n).task.to_string()]).unwrap();
    }
    let known = command(1, Order::Checkpoint);
    let taken = "INSERT INTO commands (command_id, sequence, attempt_id, content, received) VALUES (?1, ?2, ?3, ?4, 0)";
    let content = serde_json::to_string(&known.order).unwrap();
    older.execute(taken, params![known.id.to_string(), known.sequence, known.attempt.id.to_string(), content]).unwrap();
    // What is half paid.
    older.execute("UPDATE attempts SET answered = 1 WHERE attempt_id = ?1", [attempt(4).id.to_string()]).unwrap();
    older.execute("UPDATE attempts SET delivered = 1 WHERE attempt_id = ?1", [attempt(5).id.to_string()]).unwrap();
    drop(older);
    let journal = open(state.path());
    for n in [1, 2, 3, 5] {
        journal.answered(n, MessageOutcome::Applied, NOW).await.unwrap();
    }
    journal.upload_settled(attempt(4), None, Settled::Stored, NOW).await.unwrap();
    let beside = rusqlite::Connection::open(&path).unwrap();
    let mut states = beside.prepare("SELECT state FROM attempts ORDER BY place").unwrap();
    let states: Vec<String> = states.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(states, ["reported", "over", "over", "over", "over"]);
    let other = Command { sequence: 2, ..known.clone() };
    let taken = journal.accept(vec![other, known, spawn_command(2)], NOW).await.unwrap();
    assert_eq!(taken, [Accepted::Conflict, Accepted::Known, Accepted::Known]);
}

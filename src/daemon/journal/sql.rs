//! The statements of the journal. Each runs inside the worker's transaction.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, Row as SqlRow, params};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{
    Accepted, Change, Error, KEEP_COMMANDS, MAX_CORRUPT, Measured, Portion, Row, SCHEMA_VERSION, Standing, State, Stop,
    Why, db::Db, new_id, uploads,
};
use crate::domain::{
    AttemptRef, JournalId, TaskId, Timestamp,
    order::{Command, Order, Spawn},
    report::{Message, MessageOutcome, Report},
};

/// What each version adds to the one before; the number of the last is [`SCHEMA_VERSION`].
pub(super) const MIGRATIONS: [&str; SCHEMA_VERSION as usize] = [
    include_str!("../../../migrations/daemon/0001_journal.sql"),
    include_str!("../../../migrations/daemon/0002_uploads.sql"),
    include_str!("../../../migrations/daemon/0003_attaches.sql"),
    include_str!("../../../migrations/daemon/0004_orders.sql"),
    include_str!("../../../migrations/daemon/0005_documents.sql"),
    include_str!("../../../migrations/daemon/0006_places.sql"),
];
/// Pages of the write-ahead log before they go to the file: 16 MiB, which are read in a few milliseconds when it is opened.
const LOG_PAGES: i64 = 4_096;
/// Bytes of the log that stay when it begins again: more than those pages, with their headers and the last transaction.
const LOG_LIMIT: i64 = 24 * 1024 * 1024;
/// How long SQLite waits for a lock. Nobody else should have the file: this is for a person who looks into it.
const BUSY: Duration = Duration::from_secs(10);

// === opening ===

pub(super) enum OpenError {
    /// The file is damaged.
    Corrupt(String),
    /// Anything else.
    Other(Error),
}

impl OpenError {
    pub(super) fn into_error(self, path: &Path) -> Error {
        match self {
            Self::Corrupt(message) => Error::Open { path: path.to_owned(), message },
            Self::Other(error) => error,
        }
    }
}

/// Opens or makes the file, checks it, and brings it to this version.
pub(super) fn open(path: &Path, now: Timestamp) -> Result<(Connection, JournalId), OpenError> {
    let failed = |e: rusqlite::Error| match e.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => OpenError::Corrupt(e.to_string()),
        _ => OpenError::Other(Error::Open { path: path.to_owned(), message: e.to_string() }),
    };
    let io = |e: std::io::Error| OpenError::Other(Error::Open { path: path.to_owned(), message: e.to_string() });
    // Orders carry keys: nobody else reads them. SQLite gives its other files the mode of this one.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(io)?;
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    connection.pragma_update(None, "foreign_keys", "ON").map_err(failed)?;
    // What a statement needs to undo itself, in memory rather than in a file.
    connection.pragma_update(None, "temp_store", "MEMORY").map_err(failed)?;
    // The same few pages are written again and again: the log takes them once more rather than the file. It stays as large as it
    // was, since to grow it costs more than to write it.
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES).map_err(failed)?;
    connection.pragma_update(None, "journal_size_limit", LOG_LIMIT).map_err(failed)?;
    let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if check != "ok" {
        return Err(OpenError::Corrupt(check));
    }
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    if found > SCHEMA_VERSION {
        return Err(OpenError::Other(Error::Newer { path: path.to_owned(), found, known: SCHEMA_VERSION }));
    }
    if found < SCHEMA_VERSION {
        migrate(&mut connection, found, now).map_err(failed)?;
    }
    if found == 0 {
        // The file itself must survive the power going too, not only what is in it.
        if let Some(directory) = path.parent() {
            File::open(directory).and_then(|d| d.sync_all()).map_err(io)?;
        }
    }
    let id: String = connection.query_row("SELECT journal_id FROM meta WHERE id = 1", [], |row| row.get(0)).map_err(
        |e| match e {
            // A journal without its one row is no journal.
            rusqlite::Error::QueryReturnedNoRows => OpenError::Corrupt("the journal has no id".to_owned()),
            e => failed(e),
        },
    )?;
    let id = id.parse().map_err(|_| OpenError::Corrupt(format!("the journal's id is `{id}`")))?;
    Ok((connection, id))
}

fn migrate(connection: &mut Connection, found: i64, now: Timestamp) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(migration)?;
    }
    if found == 0 {
        transaction.execute(
            "INSERT INTO meta (id, journal_id, created) VALUES (1, ?1, ?2)",
            params![new_id().to_string(), now.0],
        )?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}

/// Moves a damaged journal out of the way; it is never deleted.
pub(super) fn move_aside(path: &Path) -> Result<PathBuf, Error> {
    let failed = |message: String| Error::Open { path: path.to_owned(), message };
    let aside = (1..=MAX_CORRUPT)
        .map(|n| path.with_file_name(format!("journal.corrupt-{n}")))
        .find(|aside| !aside.exists())
        .ok_or_else(|| failed(format!("{MAX_CORRUPT} damaged journals lie beside it; remove some")))?;
    fs::rename(path, &aside).map_err(|e| failed(format!("move it aside: {e}")))?;
    for suffix in ["-wal", "-shm"] {
        let beside = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        // Left where they are, they would be applied to the new file.
        if beside(path).exists() {
            fs::rename(beside(path), beside(&aside)).map_err(|e| failed(format!("move it aside: {e}")))?;
        }
    }
    Ok(aside)
}

// === commands ===

/// An order to start is in the rows of its attempt, and known by them, even where it comes as another command; others have a row
/// of their own.
pub(super) fn command_accept(db: &Db<'_>, command: &Command, now: Timestamp) -> Result<Accepted, Error> {
    let accepted = match &command.order {
        Order::Spawn(spawn) => spawn_accept(db, command.attempt, spawn, now)?,
        order @ (Order::Cancel { .. } | Order::Checkpoint) => {
            let (id, attempt, content) = (command.id.to_string(), command.attempt.id.to_string(), json(order)?);
            let inserted = db.run(
                "INSERT INTO commands (command_id, sequence, attempt_id, content, received) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO NOTHING",
                params![id, command.sequence, attempt, content, now.0],
            )?;
            match inserted {
                0 if is_same(db, command)? => Accepted::Known,
                0 => Accepted::Conflict,
                _ => Accepted::New,
            }
        }
    };
    if accepted != Accepted::Conflict {
        db.has_command(command.sequence);
    }
    if accepted == Accepted::New
        && let Order::Cancel { reason, grace } = &command.order
    {
        let stop = Stop { why: Why::Cancelled, reason: reason.clone(), grace: *grace };
        cancelled(db, command.attempt, stop, now)?;
    }
    // What is to be copied for a checkpoint is what there is when it is done: nothing of it is kept here.
    Ok(accepted)
}

/// An attempt that is known already, from its directory or because it was cancelled first, is not started again.
fn spawn_accept(db: &Db<'_>, attempt: AttemptRef, spawn: &Spawn, now: Timestamp) -> Result<Accepted, Error> {
    if attempt_insert(db, &Row::accepted(attempt, spawn.clone(), now))? {
        return Ok(Accepted::New);
    }
    // Cancelled before it came, it has no order to compare with.
    let is_other = |row: Row| row.attempt != attempt || row.spawn.is_some_and(|known| known != *spawn);
    Ok(if attempt_fetch(db, attempt)?.is_none_or(is_other) { Accepted::Conflict } else { Accepted::Known })
}

fn cancelled(db: &Db<'_>, attempt: AttemptRef, stop: Stop, now: Timestamp) -> Result<(), Error> {
    if attempt_fetch(db, attempt)?.is_some() {
        return attempt_change(db, attempt, &Change { stop: Some(stop), ..Change::default() }, now);
    }
    // Never started here, and from now on it never will be: the row stands in the way of a late spawn.
    let row = Row {
        attempt,
        state: State::Accepted,
        spawn: None,
        directory: PathBuf::new(),
        worktree: String::new(),
        stop: Some(stop),
        complete: None,
        uploaded: true,
        created: now,
        updated: now,
    };
    attempt_insert(db, &row).map(|_| ())
}

/// Whether the command of this id, which is none to start, is this one.
fn is_same(db: &Db<'_>, command: &Command) -> Result<bool, Error> {
    let text = "SELECT sequence, attempt_id, content FROM commands WHERE command_id = ?1";
    let read = |row: &SqlRow<'_>| -> Result<(i64, String, Option<String>), Error> {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    };
    let Some((sequence, attempt, Some(content))) = db.row(text, [command.id.to_string()], read)? else {
        return Ok(false);
    };
    Ok((sequence, attempt) == (command.sequence, command.attempt.id.to_string())
        && parse::<Order>("commands", &content)? == command.order)
}

// === attempts ===

/// A statement that reads attempts: some of them, in some order.
macro_rules! attempts {
    ($which:literal) => {
        concat!(
            "SELECT attempt_id, task_id, number, state,
                    (SELECT spawn FROM orders WHERE orders.attempt = attempts.place),
                    directory, worktree, stop, complete, uploaded, created, updated, place FROM attempts ",
            $which
        )
    };
}

/// Puts an attempt in, unless it is there; answers whether it was put in.
pub(super) fn attempt_insert(db: &Db<'_>, row: &Row) -> Result<bool, Error> {
    let inserted = db.run(
        "INSERT INTO attempts (attempt_id, task_id, number, state, directory, worktree, stop, complete, packed, uploaded, created,
                               updated)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) ON CONFLICT DO NOTHING",
        params![
            row.attempt.id.to_string(),
            row.attempt.task.to_string(),
            row.attempt.number,
            state_word(row.state),
            path_text(&row.directory),
            row.worktree,
            row.stop.as_ref().map(json).transpose()?,
            row.complete.as_ref().map(json).transpose()?,
            row.complete.as_ref().is_some_and(uploads::has_pack),
            row.uploaded,
            row.created.0,
            row.updated.0,
        ],
    )?;
    if let Some(spawn) = row.spawn.as_ref().filter(|_| inserted > 0) {
        let place = db.last_insert_rowid();
        db.run("INSERT INTO orders (attempt, spawn) VALUES (?1, ?2)", params![place, json(spawn)?])?;
    }
    Ok(inserted > 0)
}

pub(super) fn attempt_change(db: &Db<'_>, attempt: AttemptRef, change: &Change, now: Timestamp) -> Result<(), Error> {
    let complete = change.reports.iter().find_map(|report| match report {
        Report::Complete(complete) => Some(complete),
        Report::Started { .. }
        | Report::Progress(_)
        | Report::RecoveryDetected { .. }
        | Report::Warning { .. }
        | Report::CheckpointFailed { .. } => None,
    });
    db.run(
        "UPDATE attempts SET state = coalesce(?2, state), directory = coalesce(?3, directory),
                worktree = coalesce(?4, worktree), stop = coalesce(?5, stop), complete = coalesce(?6, complete),
                packed = coalesce(?7, packed), answered = CASE WHEN ?6 IS NULL THEN answered ELSE 0 END,
                -- One that ends before it has a directory has no output to bring.
                uploaded = CASE WHEN ?6 IS NOT NULL AND coalesce(?3, directory) = '' THEN 1 ELSE uploaded END, updated = ?8
         WHERE attempt_id = ?1",
        params![
            attempt.id.to_string(),
            change.state.map(state_word),
            change.directory.as_deref().map(path_text),
            change.worktree,
            change.stop.as_ref().map(json).transpose()?,
            complete.map(json).transpose()?,
            complete.map(uploads::has_pack),
            now.0,
        ],
    )?;
    change.uploads.iter().try_for_each(|upload| uploads::put(db, upload))?;
    change.reports.iter().try_for_each(|report| outbox_append(db, attempt, report, now))
}

pub(super) fn attempt_uploaded(db: &Db<'_>, attempt: AttemptRef) -> Result<(), Error> {
    db.run("UPDATE attempts SET uploaded = 1 WHERE attempt_id = ?1", [attempt.id.to_string()]).map(|_| ())
}

pub(super) fn attempt_fetch(db: &Db<'_>, attempt: AttemptRef) -> Result<Option<Row>, Error> {
    db.row(attempts!("WHERE attempt_id = ?1"), [attempt.id.to_string()], attempt_row)
}

pub(super) fn attempts_list(db: &Db<'_>) -> Result<Vec<Row>, Error> {
    db.readable(attempts!("ORDER BY created, attempt_id"), "an attempt", attempt_row)
}

pub(super) fn attempts_of(db: &Db<'_>, tasks: &[TaskId]) -> Result<Vec<Row>, Error> {
    let tasks: Vec<String> = tasks.iter().map(ToString::to_string).collect();
    let which = attempts!("WHERE task_id IN (SELECT value FROM json_each(?1)) ORDER BY task_id, number");
    db.rows(which, [json(&tasks)?], attempt_row)
}

fn attempt_row(row: &SqlRow<'_>) -> Result<Row, Error> {
    let optional = |index: usize| row.get::<_, Option<String>>(index);
    Ok(Row {
        attempt: attempt_ref("attempts", &row.get::<_, String>(1)?, row.get(2)?, &row.get::<_, String>(0)?)?,
        state: parse("attempts", &format!("\"{}\"", row.get::<_, String>(3)?))?,
        spawn: optional(4)?.map(|text| parse("attempts", &text)).transpose()?,
        directory: PathBuf::from(row.get::<_, String>(5)?),
        worktree: row.get(6)?,
        stop: optional(7)?.map(|text| parse("attempts", &text)).transpose()?,
        complete: optional(8)?.map(|text| parse("attempts", &text)).transpose()?,
        uploaded: row.get(9)?,
        created: Timestamp(row.get(10)?),
        updated: Timestamp(row.get(11)?),
    })
}

pub(super) fn prune(db: &Db<'_>, attempts: &[AttemptRef]) -> Result<(), Error> {
    for attempt in attempts {
        let place: Option<i64> = db.row(
            "DELETE FROM attempts WHERE attempt_id = ?1 AND state IN ('over', 'salvage')
                AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.attempt_id = attempts.attempt_id)
                AND NOT EXISTS (SELECT 1 FROM uploads WHERE uploads.attempt_id = attempts.attempt_id)
             RETURNING place",
            [attempt.id.to_string()],
            |row| Ok(row.get(0)?),
        )?;
        if let Some(place) = place {
            db.run("DELETE FROM orders WHERE attempt = ?1", [place])?;
        }
    }
    Ok(())
}

/// Attempts are numbered in the order in which they came, so those beyond the newest are found without counting. Where no time is
/// given, what came last is not looked at.
pub(super) fn not_needed(
    db: &Db<'_>,
    after: i64,
    newest: i64,
    before: Option<Timestamp>,
    limit: usize,
) -> Result<Portion, Error> {
    let which = attempts!(
        "WHERE place > ?1 AND place <= iif(?3 IS NULL, (SELECT max(place) - ?2 FROM attempts), 9223372036854775807)
            AND (?3 IS NULL OR updated < ?3 OR place <= (SELECT max(place) - ?2 FROM attempts))
            AND state = 'over' AND uploaded
            AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.attempt_id = attempts.attempt_id)
            AND NOT EXISTS (SELECT 1 FROM uploads WHERE uploads.attempt_id = attempts.attempt_id)
         ORDER BY place LIMIT ?4"
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut portion = Portion::default();
    db.rows(which, params![after, newest, before.map(|at| at.0), limit], |row| {
        portion.last = Some(row.get(12)?);
        match attempt_row(row) {
            Ok(row) => portion.rows.push(row),
            Err(error) => tracing::error!(%error, "an attempt in the journal cannot be read; left alone"),
        }
        Ok(())
    })?;
    Ok(portion)
}

pub(super) fn prune_commands(db: &Db<'_>) -> Result<(), Error> {
    db.run(
        "DELETE FROM commands WHERE sequence <= (SELECT last_command FROM meta) - ?1
            AND NOT EXISTS (SELECT 1 FROM attempts WHERE attempts.attempt_id = commands.attempt_id)",
        [KEEP_COMMANDS],
    )?;
    Ok(())
}

// === outbox ===

fn outbox_append(db: &Db<'_>, attempt: AttemptRef, report: &Report, now: Timestamp) -> Result<(), Error> {
    let (sequence, report) = (db.next_message(), report.clone().bounded());
    db.run(
        "INSERT INTO outbox (sequence, attempt_id, task_id, number, at, kind, report) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            sequence,
            attempt.id.to_string(),
            attempt.task.to_string(),
            attempt.number,
            now.0,
            report_word(&report),
            json(&report)?,
        ],
    )?;
    db.add_written(Message { sequence, journal: db.id(), attempt, at: now, report });
    Ok(())
}

pub(super) fn outbox_has(db: &Db<'_>, attempt: AttemptRef, kind: &str) -> Result<bool, Error> {
    outbox_has_text(db, &attempt.id.to_string(), kind)
}

fn outbox_has_text(db: &Db<'_>, attempt: &str, kind: &str) -> Result<bool, Error> {
    let text = "SELECT 1 FROM outbox WHERE attempt_id = ?1 AND kind = ?2";
    Ok(db.row(text, params![attempt, kind], |_| Ok(()))?.is_some())
}

pub(super) fn report_again(db: &Db<'_>, attempt: AttemptRef, now: Timestamp) -> Result<bool, Error> {
    let Some(row) = attempt_fetch(db, attempt)? else { return Ok(false) };
    if outbox_has(db, attempt, "complete")? || outbox_has(db, attempt, "recovery_detected")? {
        return Ok(true);
    }
    let Some(complete) = row.complete else { return Ok(false) };
    let change =
        Change { state: Some(State::Reported), reports: vec![Report::Complete(complete)], ..Change::default() };
    attempt_change(db, attempt, &change, now)?;
    Ok(true)
}

pub(super) fn outbox_list(db: &Db<'_>, after: i64, limit: usize) -> Result<Vec<Message>, Error> {
    let text = "SELECT sequence, task_id, number, attempt_id, at, report FROM outbox WHERE sequence > ?1 ORDER BY sequence LIMIT ?2";
    db.rows(text, params![after, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
        Ok(Message {
            sequence: row.get(0)?,
            journal: db.id(),
            attempt: attempt_ref("outbox", &row.get::<_, String>(1)?, row.get(2)?, &row.get::<_, String>(3)?)?,
            at: Timestamp(row.get(4)?),
            // One that cannot be read still has its number, and must not keep the later ones from being sent.
            report: parse("outbox", &row.get::<_, String>(5)?).unwrap_or_else(|error| Report::Warning {
                message: format!("a report in the daemon's journal could not be read: {error}"),
            }),
        })
    })
}

pub(super) fn message_answered(
    db: &Db<'_>,
    sequence: i64,
    outcome: &MessageOutcome,
    now: Timestamp,
) -> Result<(), Error> {
    // Read and then deleted: to give back what it deletes SQLite makes a table of its own, which takes longer.
    let read = |row: &SqlRow<'_>| -> Result<(String, String), Error> { Ok((row.get(0)?, row.get(1)?)) };
    let answered = db.row("SELECT attempt_id, kind FROM outbox WHERE sequence = ?1", [sequence], read)?;
    let Some((attempt, kind)) = answered else { return Ok(()) };
    db.run("DELETE FROM outbox WHERE sequence = ?1", [sequence])?;
    if kind != "complete" && kind != "recovery_detected" {
        return Ok(());
    }
    // Another terminal report of it has taken the place of this one, and has yet to be answered.
    if kind == "complete" && outbox_has_text(db, &attempt, "complete")? {
        return Ok(());
    }
    let nothing_waits = match outcome {
        MessageOutcome::Applied | MessageOutcome::AlreadyApplied => false,
        // Nobody waits for the pack of an attempt whose place is taken. Also a terminal report that cannot be stored ends
        // its task: the server says INVALID once it has.
        MessageOutcome::Fenced | MessageOutcome::Invalid { .. } => true,
    };
    uploads::settle(db, &attempt, uploads::Paid { answered: true, delivered: nothing_waits }, now)
}

pub(super) fn attach(db: &Db<'_>) -> Result<i64, Error> {
    Ok(db.query_row("UPDATE meta SET attaches = attaches + 1 RETURNING attaches", [], |row| row.get(0))?)
}

pub(super) fn standing(db: &Db<'_>) -> Result<Standing, Error> {
    Ok(db.query_row(
        "SELECT last_command, coalesce((SELECT min(sequence) FROM outbox), 0),
                coalesce((SELECT max(sequence) FROM outbox), 0) FROM meta",
        [],
        |row| Ok(Standing { last_command: row.get(0)?, first_unanswered: row.get(1)?, last_unanswered: row.get(2)? }),
    )?)
}

pub(super) fn measure(db: &Db<'_>) -> Result<Measured, Error> {
    let count = |count: i64| u64::try_from(count).unwrap_or_default();
    let read = |row: &SqlRow<'_>| Ok((count(row.get(0)?), row.get::<_, Option<i64>>(1)?.map(Timestamp)));
    let (outbox, oldest) = db.row("SELECT count(*), min(at) FROM outbox", [], read)?.unwrap_or_default();
    let text = "SELECT state, count(*) FROM attempts GROUP BY state";
    let attempts = db.rows(text, [], |row| Ok((row.get(0)?, count(row.get(1)?))))?;
    Ok(Measured { outbox, oldest, attempts })
}

// === words ===

fn state_word(state: State) -> &'static str {
    match state {
        State::Accepted => "accepted",
        State::Running => "running",
        State::Ending => "ending",
        State::Reported => "reported",
        State::Interrupted => "interrupted",
        State::Over => "over",
        State::Salvage => "salvage",
    }
}

fn report_word(report: &Report) -> &'static str {
    match report {
        Report::Started { .. } => "started",
        Report::Progress(_) => "progress",
        Report::Complete(_) => "complete",
        Report::RecoveryDetected { .. } => "recovery_detected",
        Report::Warning { .. } => "warning",
        Report::CheckpointFailed { .. } => "checkpoint_failed",
    }
}

pub(super) fn attempt_ref(table: &'static str, task: &str, number: u32, id: &str) -> Result<AttemptRef, Error> {
    let parse = |text: &str| Uuid::try_parse(text).map_err(|e| Error::Row { table, message: e.to_string() });
    Ok(AttemptRef { task: parse(task)?.into(), number, id: parse(id)?.into() })
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|e| Error::Row { table: "(to be written)", message: e.to_string() })
}

pub(super) fn parse<T: DeserializeOwned>(table: &'static str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|e| Error::Row { table, message: e.to_string() })
}

pub(super) fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

//! Files that are to reach the server, and the attempts that are not over before they have.

use std::path::PathBuf;

use rusqlite::{Row as SqlRow, params};
use uuid::Uuid;

use super::{
    Change, Error, Settled, Upload,
    db::Db,
    sql::{attempt_change, attempt_fetch, attempt_ref, json, parse, path_text},
};
use crate::domain::{
    AttemptRef, CheckpointId, Timestamp,
    attempt::{Failure, FailureClass, Pack},
    report::{Complete, Progress, Report},
};

const TABLE: &str = "uploads";

pub(super) fn put(db: &Db<'_>, upload: &Upload) -> Result<(), Error> {
    db.run(
        "INSERT INTO uploads (attempt_id, task_id, number, checkpoint_id, path, bytes, sha256, about, created)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT DO UPDATE SET path = excluded.path, bytes = excluded.bytes, sha256 = excluded.sha256,
             about = excluded.about",
        params![
            upload.attempt.id.to_string(),
            upload.attempt.task.to_string(),
            upload.attempt.number,
            checkpoint_text(upload.checkpoint),
            path_text(&upload.path),
            upload.whole.bytes,
            upload.whole.sha256,
            upload.about.as_ref().map(json).transpose()?,
            upload.created.0,
        ],
    )?;
    Ok(())
}

pub(super) fn list(db: &Db<'_>) -> Result<Vec<Upload>, Error> {
    db.readable(
        "SELECT attempt_id, task_id, number, checkpoint_id, path, bytes, sha256, about, created FROM uploads
         ORDER BY created, checkpoint_id",
        "an upload",
        upload,
    )
}

fn upload(row: &SqlRow<'_>) -> Result<Upload, Error> {
    let checkpoint: String = row.get(3)?;
    let id = |text: &str| Uuid::try_parse(text).map_err(|e| Error::Row { table: TABLE, message: e.to_string() });
    Ok(Upload {
        attempt: attempt_ref(TABLE, &row.get::<_, String>(1)?, row.get(2)?, &row.get::<_, String>(0)?)?,
        checkpoint: if checkpoint.is_empty() { None } else { Some(CheckpointId(id(&checkpoint)?)) },
        path: PathBuf::from(row.get::<_, String>(4)?),
        whole: Pack { bytes: row.get(5)?, sha256: row.get(6)? },
        about: row.get::<_, Option<String>>(7)?.map(|text| parse(TABLE, &text)).transpose()?,
        created: Timestamp(row.get(8)?),
    })
}

pub(super) fn settled(
    db: &Db<'_>,
    attempt: AttemptRef,
    checkpoint: Option<CheckpointId>,
    how: &Settled,
    now: Timestamp,
) -> Result<(), Error> {
    let id = attempt.id.to_string();
    let text = "DELETE FROM uploads WHERE attempt_id = ?1 AND checkpoint_id = ?2";
    db.run(text, params![id, checkpoint_text(checkpoint)])?;
    match (checkpoint, how) {
        (Some(_), _) => Ok(()),
        (None, Settled::Stored) => settle(db, &id, Paid { answered: false, delivered: true }, now),
        (None, Settled::GivenUp(why)) => undeliverable(db, attempt, why, now),
    }
}

/// The server waits for a result that will not come: the attempt ends without one after all.
fn undeliverable(db: &Db<'_>, attempt: AttemptRef, why: &str, now: Timestamp) -> Result<(), Error> {
    let waits = "SELECT 1 FROM attempts WHERE attempt_id = ?1 AND state = 'reported' AND packed";
    if db.row(waits, [attempt.id.to_string()], |_| Ok(()))?.is_none() {
        return Ok(());
    }
    let reported = match attempt_fetch(db, attempt) {
        Ok(row) => row.and_then(|row| row.complete),
        Err(error @ Error::Row { .. }) => {
            tracing::error!(%error, %attempt, "an attempt in the journal cannot be read; its end is reported without what it said");
            None
        }
        Err(error) => return Err(error),
    };
    let text = format!("its result could not be brought to the server: {why}");
    let outcome = Err(Failure::new(FailureClass::WorktreeLost, text));
    let failed = match reported {
        Some(complete) => Complete { outcome, ..complete },
        None => Complete { outcome, progress: Progress::default(), output_bytes: 0, exit_code: None, signal: 0 },
    };
    let change = Change { reports: vec![Report::Complete(failed)], ..Change::default() };
    attempt_change(db, attempt, &change, now)
}

/// What an attempt no longer owes the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paid {
    /// Its terminal report.
    pub answered: bool,
    /// The pack of its result.
    pub delivered: bool,
}

/// An attempt whose terminal report is answered is over, once the server has the pack that the report names.
pub(super) fn settle(db: &Db<'_>, attempt: &str, paid: Paid, now: Timestamp) -> Result<(), Error> {
    db.run(
        "UPDATE attempts SET answered = max(answered, ?2), delivered = max(delivered, ?3),
                state = iif(state IN ('reported', 'interrupted') AND max(answered, ?2) AND max(delivered, ?3, NOT packed),
                            'over', state),
                updated = iif(state IN ('reported', 'interrupted') AND max(answered, ?2) AND max(delivered, ?3, NOT packed),
                              ?4, updated)
         WHERE attempt_id = ?1",
        params![attempt, paid.answered, paid.delivered, now.0],
    )?;
    Ok(())
}

/// Whether a report names a pack that is to reach the server.
pub(super) fn has_pack(complete: &Complete) -> bool {
    complete.outcome.as_ref().is_ok_and(|result| result.pack.is_some())
}

fn checkpoint_text(checkpoint: Option<CheckpointId>) -> String {
    checkpoint.map(|id| id.to_string()).unwrap_or_default()
}

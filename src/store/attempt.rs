//! Attempts.

use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use uuid::Uuid;

use super::{
    Result, Tx,
    contract::{ID, ids},
    sql::{Kind, LazySql, Sql},
};
use crate::domain::{
    AttemptId, ContractId, DaemonId, TaskId, Timestamp,
    attempt::{Attempt, AttemptState},
};

#[derive(Serialize)]
struct AttemptRow<'a> {
    id: AttemptId,
    task: TaskId,
    number: u32,
    contract: ContractId,
    daemon: DaemonId,
    live: bool,
    due: Option<Timestamp>,
    doc: &'a Attempt,
}

/// What an attempt is read from.
const READ: &str = "SELECT a.id, a.task, a.number, a.contract, a.daemon, a.doc";

const COLUMNS: &[(&str, Kind)] = &[
    ("id", Kind::Uuid),
    ("task", Kind::Uuid),
    ("number", Kind::Int),
    ("contract", Kind::Uuid),
    ("daemon", Kind::Uuid),
    ("live", Kind::Bool),
    ("due", Kind::Time),
    ("doc", Kind::Json),
];

fn rows<'a>(attempts: &[&'a Attempt]) -> Vec<AttemptRow<'a>> {
    let row = |attempt: &&'a Attempt| AttemptRow {
        id: attempt.id,
        task: attempt.task,
        number: attempt.number,
        contract: attempt.contract,
        daemon: attempt.daemon,
        live: attempt.is_live(),
        due: attempt.due(),
        doc: attempt,
    };
    attempts.iter().map(row).collect()
}

#[derive(sqlx::FromRow, Deserialize)]
struct AttemptDoc {
    id: Uuid,
    task: Uuid,
    number: i32,
    contract: Uuid,
    daemon: Uuid,
    doc: Json<Attempt>,
}

fn attempts(rows: Vec<AttemptDoc>) -> Vec<Attempt> {
    let attempt = |row: AttemptDoc| Attempt {
        id: AttemptId(row.id),
        task: TaskId(row.task),
        number: row.number.unsigned_abs(),
        contract: ContractId(row.contract),
        daemon: DaemonId(row.daemon),
        ..row.doc.0
    };
    rows.into_iter().map(attempt).collect()
}

/// When something must have happened to an attempt.
pub trait Due {
    /// The time, if there is one.
    fn due(&self) -> Option<Timestamp>;
}

impl Due for Attempt {
    fn due(&self) -> Option<Timestamp> {
        match &self.state {
            AttemptState::Assigned { answer_by, .. } => Some(*answer_by),
            AttemptState::Disconnected { rerun_at, .. } => Some(*rerun_at),
            AttemptState::Accepted { .. }
            | AttemptState::Running { .. }
            | AttemptState::Ending { .. }
            | AttemptState::Finalizing { .. }
            | AttemptState::Ended { .. } => None,
        }
    }
}

#[derive(Serialize)]
pub(super) struct Now {
    pub(super) now: Timestamp,
}

pub(super) const NOW: &[(&str, Kind)] = &[("now", Kind::Time)];

#[derive(Serialize)]
struct TaskNumber {
    task: TaskId,
    number: u32,
}

impl Tx {
    /// Writes new attempts.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_insert(&mut self, attempts: &[&Attempt]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO attempts (id, task, number, contract, daemon, live, due, doc)
                 SELECT id, task, number, contract, daemon, live, due, doc FROM {rows} WHERE true",
                COLUMNS,
            )
        });
        self.put(&SQL, &rows(attempts)).await
    }

    /// Writes changed attempts.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_update(&mut self, attempts: &[&Attempt]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "UPDATE attempts SET live = rows.live, due = rows.due, doc = rows.doc FROM {rows} WHERE attempts.id = rows.id",
                COLUMNS,
            )
        });
        self.put(&SQL, &rows(attempts)).await
    }

    /// Attempts by their ids; those that do not exist are absent.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_fetch(&mut self, wanted: &[AttemptId]) -> Result<Vec<Attempt>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(&format!("{READ} FROM attempts a WHERE a.id IN (SELECT rows.id FROM {{rows}})"), ID)
        });
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        Ok(attempts(self.fetch(&SQL, &ids(wanted)).await?))
    }

    /// Attempts by task and number; those that do not exist are absent.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_numbered(&mut self, wanted: &[(TaskId, u32)]) -> Result<Vec<Attempt>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                &format!("{READ} FROM {{rows}} JOIN attempts a ON a.task = rows.task AND a.number = rows.number"),
                &[("task", Kind::Uuid), ("number", Kind::Int)],
            )
        });
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<_> = wanted.iter().map(|(task, number)| TaskNumber { task: *task, number: *number }).collect();
        Ok(attempts(self.fetch(&SQL, &rows).await?))
    }

    /// All attempts of a task, oldest first.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_of_task(&mut self, task: TaskId) -> Result<Vec<Attempt>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(&format!("{READ} FROM {{rows}} JOIN attempts a ON a.task = rows.id ORDER BY a.number"), ID)
        });
        Ok(attempts(self.fetch(&SQL, &ids(&[task])).await?))
    }

    /// The attempts of these daemons that have not ended.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_live(&mut self, daemons: &[DaemonId]) -> Result<Vec<Attempt>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(&format!("{READ} FROM {{rows}} JOIN attempts a ON a.daemon = rows.id WHERE a.live"), ID)
        });
        if daemons.is_empty() {
            return Ok(Vec::new());
        }
        Ok(attempts(self.fetch(&SQL, &ids(daemons)).await?))
    }

    /// Attempts whose time has come.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_due(&mut self, now: Timestamp, limit: i64) -> Result<Vec<AttemptId>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT a.id FROM attempts a WHERE a.due <= (SELECT rows.now FROM {rows}) ORDER BY a.due LIMIT $2",
                NOW,
            )
        });
        let rows: Vec<(Uuid,)> = self.fetch_some(&SQL, &[Now { now }], limit).await?;
        Ok(rows.into_iter().map(|(id,)| AttemptId(id)).collect())
    }

    /// The next time after `now` at which something is due: an attempt, or a task's wait. What is due by then is for the
    /// sweep that asks.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn next_due(&mut self, now: Timestamp) -> Result<Option<Timestamp>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT min(times.due) AS due FROM (
                     SELECT min(a.due) AS due FROM {rows} JOIN attempts a ON a.due > rows.now
                     UNION ALL
                     SELECT min(t.wait_until) FROM {rows} JOIN tasks t ON t.wait_until > rows.now) AS times",
                NOW,
            )
        });
        let rows: Vec<(Option<Timestamp>,)> = self.fetch(&SQL, &[Now { now }]).await?;
        Ok(rows.into_iter().next().and_then(|(due,)| due))
    }
}

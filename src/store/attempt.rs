//! Attempts.

use serde::Serialize;

use super::{
    Result, Tx,
    contract::{Doc, ID, ids},
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

/// When something must have happened to an attempt.
pub trait Due {
    /// The time, if there is one.
    fn due(&self) -> Option<Timestamp>;
}

impl Due for Attempt {
    fn due(&self) -> Option<Timestamp> {
        match &self.state {
            AttemptState::Assigned { answer_by } => Some(*answer_by),
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
    /// Writes attempts, new or changed.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_put(&mut self, attempts: &[&Attempt]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO attempts (id, task, number, contract, daemon, live, due, doc)
                 SELECT id, task, number, contract, daemon, live, due, doc FROM {rows} WHERE true
                 ON CONFLICT (id) DO UPDATE SET live = excluded.live, due = excluded.due, doc = excluded.doc",
                &[
                    ("id", Kind::Uuid),
                    ("task", Kind::Uuid),
                    ("number", Kind::Int),
                    ("contract", Kind::Uuid),
                    ("daemon", Kind::Uuid),
                    ("live", Kind::Bool),
                    ("due", Kind::Time),
                    ("doc", Kind::Json),
                ],
            )
        });
        let rows: Vec<_> = attempts
            .iter()
            .map(|attempt| AttemptRow {
                id: attempt.id,
                task: attempt.task,
                number: attempt.number,
                contract: attempt.contract,
                daemon: attempt.daemon,
                live: attempt.is_live(),
                due: attempt.due(),
                doc: attempt,
            })
            .collect();
        self.put(&SQL, &rows).await
    }

    /// Attempts by their random ids; those that do not exist are absent.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_fetch(&mut self, attempts: &[AttemptId]) -> Result<Vec<Attempt>> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new("SELECT doc FROM attempts WHERE id IN (SELECT rows.id FROM {rows})", ID));
        if attempts.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<Doc<Attempt>> = self.fetch(&SQL, &ids(attempts)).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// Attempts by task and number; those that do not exist are absent.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_numbered(&mut self, attempts: &[(TaskId, u32)]) -> Result<Vec<Attempt>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT a.doc FROM {rows} JOIN attempts a ON a.task = rows.task AND a.number = rows.number",
                &[("task", Kind::Uuid), ("number", Kind::Int)],
            )
        });
        if attempts.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<_> = attempts.iter().map(|(task, number)| TaskNumber { task: *task, number: *number }).collect();
        let rows: Vec<Doc<Attempt>> = self.fetch(&SQL, &rows).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// All attempts of a task, oldest first.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_of_task(&mut self, task: TaskId) -> Result<Vec<Attempt>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new("SELECT a.doc FROM {rows} JOIN attempts a ON a.task = rows.id ORDER BY a.number", ID)
        });
        let rows: Vec<Doc<Attempt>> = self.fetch(&SQL, &ids(&[task])).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// The attempts of these daemons that have not ended.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_live(&mut self, daemons: &[DaemonId]) -> Result<Vec<Attempt>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new("SELECT a.doc FROM {rows} JOIN attempts a ON a.daemon = rows.id WHERE a.live", ID)
        });
        if daemons.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<Doc<Attempt>> = self.fetch(&SQL, &ids(daemons)).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
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
        let rows: Vec<(uuid::Uuid,)> = self.fetch_some(&SQL, &[Now { now }], limit).await?;
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

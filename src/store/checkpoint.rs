//! Checkpoints. A row is written after its blob is durable, and deleted before it.

use serde::Serialize;
use uuid::Uuid;

use super::{
    Result, Tx,
    contract::{Doc, ID, ids},
    sql::{Kind, LazySql, Sql},
};
use crate::domain::{AttemptId, CheckpointId, OwnerId, TaskId, Timestamp, checkpoint::Checkpoint};

#[derive(Serialize)]
struct Row<'a> {
    id: CheckpointId,
    task: TaskId,
    attempt: AttemptId,
    owner: OwnerId,
    stored: Timestamp,
    base: Option<CheckpointId>,
    doc: &'a Checkpoint,
}

/// A place in the order in which checkpoints were stored.
#[derive(Serialize)]
struct Place {
    now: Timestamp,
    id: CheckpointId,
}

impl Tx {
    /// Writes checkpoints that the server has; one that is there stays as it is.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn checkpoints_insert(&mut self, checkpoints: &[&Checkpoint]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO checkpoints (id, task, attempt, owner, stored, base, doc)
                 SELECT id, task, attempt, owner, stored, base, doc FROM {rows} WHERE true
                 ON CONFLICT (id) DO NOTHING",
                &[
                    ("id", Kind::Uuid),
                    ("task", Kind::Uuid),
                    ("attempt", Kind::Uuid),
                    ("owner", Kind::Uuid),
                    ("stored", Kind::Time),
                    ("base", Kind::Uuid),
                    ("doc", Kind::Json),
                ],
            )
        });
        let rows: Vec<Row<'_>> = checkpoints
            .iter()
            .map(|checkpoint| Row {
                id: checkpoint.id,
                task: checkpoint.attempt.task,
                attempt: checkpoint.attempt.id,
                owner: checkpoint.owner,
                stored: checkpoint.stored,
                base: checkpoint.base(),
                doc: checkpoint,
            })
            .collect();
        self.put(&SQL, &rows).await
    }

    /// Checkpoints by their ids; those that do not exist are absent.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn checkpoints_fetch(&mut self, checkpoints: &[CheckpointId]) -> Result<Vec<Checkpoint>> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new("SELECT doc FROM checkpoints WHERE id IN (SELECT rows.id FROM {rows})", ID));
        if checkpoints.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<Doc<Checkpoint>> = self.fetch(&SQL, &ids(checkpoints)).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// The newest checkpoints of a task, newest first.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn checkpoints_of_task(&mut self, task: TaskId, limit: i64) -> Result<Vec<Checkpoint>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT c.doc FROM checkpoints c WHERE c.task = (SELECT rows.id FROM {rows}) ORDER BY c.id DESC LIMIT $2",
                ID,
            )
        });
        let rows: Vec<Doc<Checkpoint>> = self.fetch_some(&SQL, &ids(&[task]), limit).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// A page of a task's checkpoints, newest first.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn checkpoints_page(
        &mut self,
        task: TaskId,
        before: Option<CheckpointId>,
        limit: i64,
    ) -> Result<Vec<Checkpoint>> {
        #[derive(Serialize)]
        struct From {
            task: TaskId,
            before: Option<CheckpointId>,
        }
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT c.doc FROM {rows} JOIN checkpoints c ON c.task = rows.task
                 WHERE rows.before IS NULL OR c.id < rows.before ORDER BY c.id DESC LIMIT $2",
                &[("task", Kind::Uuid), ("before", Kind::Uuid)],
            )
        });
        let rows: Vec<Doc<Checkpoint>> = self.fetch_some(&SQL, &[From { task, before }], limit).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// Checkpoints of an owner whose ids end so: 12 hex digits, in lowercase. Two at most, since one is wanted.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn checkpoints_short(&mut self, owner: OwnerId, short: &str) -> Result<Vec<Checkpoint>> {
        #[derive(Serialize)]
        struct Short<'a> {
            owner: OwnerId,
            short: &'a str,
        }
        static SQL: LazySql = LazySql::new(|| {
            Sql::dialects(
                "SELECT c.doc FROM {rows} JOIN checkpoints c ON c.owner = rows.owner
                 WHERE right(c.id::text, 12) = rows.short LIMIT 2",
                "SELECT c.doc FROM {rows} JOIN checkpoints c ON c.owner = rows.owner
                 WHERE lower(hex(substr(c.id, 11))) = rows.short LIMIT 2",
                &[("owner", Kind::Uuid), ("short", Kind::Text)],
            )
        });
        let rows: Vec<Doc<Checkpoint>> = self.fetch(&SQL, &[Short { owner, short }]).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// All checkpoints of these attempts, in the order they were taken.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn checkpoints_of_attempts(&mut self, attempts: &[AttemptId]) -> Result<Vec<Checkpoint>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new("SELECT c.doc FROM {rows} JOIN checkpoints c ON c.attempt = rows.id ORDER BY c.id", ID)
        });
        if attempts.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<Doc<Checkpoint>> = self.fetch(&SQL, &ids(attempts)).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// All checkpoints of these tasks, in the order they were taken.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn checkpoints_of_tasks(&mut self, tasks: &[TaskId]) -> Result<Vec<Checkpoint>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new("SELECT c.doc FROM {rows} JOIN checkpoints c ON c.task = rows.id ORDER BY c.id", ID)
        });
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<Doc<Checkpoint>> = self.fetch(&SQL, &ids(tasks)).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// Tasks and times of checkpoints, in the order they were stored, after a place in that order.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn checkpoints_after(
        &mut self,
        after: (Timestamp, CheckpointId),
        limit: i64,
    ) -> Result<Vec<(TaskId, Timestamp, CheckpointId)>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT c.task, c.stored, c.id FROM checkpoints c
                 WHERE (c.stored, c.id) > (SELECT rows.now, rows.id FROM {rows}) ORDER BY c.stored, c.id LIMIT $2",
                &[("now", Kind::Time), ("id", Kind::Uuid)],
            )
        });
        let place = Place { now: after.0, id: after.1 };
        let rows: Vec<(Uuid, Timestamp, Uuid)> = self.fetch_some(&SQL, &[place], limit).await?;
        Ok(rows.into_iter().map(|(task, stored, id)| (TaskId(task), stored, CheckpointId(id))).collect())
    }

    /// Those of these checkpoints that a task which is not final goes on from.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn checkpoints_gone_on_from(&mut self, checkpoints: &[CheckpointId]) -> Result<Vec<CheckpointId>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new("SELECT t.checkpoint FROM {rows} JOIN tasks t ON t.checkpoint = rows.id WHERE NOT t.final", ID)
        });
        if checkpoints.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<(Uuid,)> = self.fetch(&SQL, &ids(checkpoints)).await?;
        Ok(rows.into_iter().map(|(id,)| CheckpointId(id)).collect())
    }

    /// Those of these checkpoints that others build on, each with the attempt of such another.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn checkpoints_built_on(
        &mut self,
        checkpoints: &[CheckpointId],
    ) -> Result<Vec<(CheckpointId, AttemptId)>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new("SELECT DISTINCT c.base, c.attempt FROM {rows} JOIN checkpoints c ON c.base = rows.id", ID)
        });
        if checkpoints.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<(Uuid, Uuid)> = self.fetch(&SQL, &ids(checkpoints)).await?;
        Ok(rows.into_iter().map(|(base, attempt)| (CheckpointId(base), AttemptId(attempt))).collect())
    }

    /// Forgets checkpoints. Their blobs are deleted after that.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn checkpoints_delete(&mut self, checkpoints: &[CheckpointId]) -> Result<()> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new("DELETE FROM checkpoints WHERE id IN (SELECT rows.id FROM {rows})", ID));
        self.execute(&SQL, &ids(checkpoints)).await?;
        Ok(())
    }
}

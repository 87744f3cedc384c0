//! The event log.

use serde::Serialize;
use sqlx::types::Json;
use uuid::Uuid;

use super::{
    Result, Tx,
    sql::{Kind, LazySql, Sql},
};
use crate::domain::{ContractId, TaskId, Timestamp, event::Change};

#[derive(Serialize)]
struct EventRow<'a> {
    at: Timestamp,
    contract: ContractId,
    task: Option<TaskId>,
    doc: &'a Change,
}

#[derive(sqlx::FromRow, serde::Deserialize)]
struct EventDoc {
    sequence: i64,
    at: Timestamp,
    contract: Uuid,
    task: Option<Uuid>,
    doc: Json<Change>,
}

/// Whose events, and from where.
#[derive(Serialize)]
struct After {
    id: Uuid,
    after: i64,
}

const AFTER: &[(&str, Kind)] = &[("id", Kind::Uuid), ("after", Kind::Big)];

fn changes(rows: Vec<EventDoc>) -> Vec<Change> {
    let change = |row: EventDoc| {
        let (contract, task) = (ContractId(row.contract), row.task.map(TaskId));
        Change { sequence: row.sequence, at: row.at, contract, task, ..row.doc.0 }
    };
    rows.into_iter().map(change).collect()
}

impl Tx {
    /// Appends to the log. Answers the last sequence, if anything was appended.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn events_insert(&mut self, events: &[Change]) -> Result<Option<i64>> {
        static SQL: LazySql = LazySql::new(|| {
            let text =
                "INSERT INTO events (at, contract, task, doc) SELECT at, contract, task, doc FROM {rows} WHERE true";
            Sql::dialects(
                &format!("{text} RETURNING sequence"),
                text,
                &[("at", Kind::Time), ("contract", Kind::Uuid), ("task", Kind::Uuid), ("doc", Kind::Json)],
            )
        });
        if events.is_empty() {
            return Ok(None);
        }
        let rows: Vec<_> = events
            .iter()
            .map(|change| EventRow { at: change.at, contract: change.contract, task: change.task, doc: change })
            .collect();
        self.append(&SQL, &rows).await
    }

    /// Changes of a contract and its tasks after a sequence, in commit order.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn events_of_contract(&mut self, contract: ContractId, after: i64, limit: i64) -> Result<Vec<Change>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT e.sequence, e.at, e.contract, e.task, e.doc FROM {rows}
                 JOIN events e ON e.contract = rows.id AND e.sequence > rows.after ORDER BY e.sequence LIMIT $2",
                AFTER,
            )
        });
        Ok(changes(self.fetch_some(&SQL, &[After { id: contract.0, after }], limit).await?))
    }

    /// Changes of a task after a sequence, in commit order.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn events_of_task(&mut self, task: TaskId, after: i64, limit: i64) -> Result<Vec<Change>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT e.sequence, e.at, e.contract, e.task, e.doc FROM {rows}
                 JOIN events e ON e.task = rows.id AND e.sequence > rows.after ORDER BY e.sequence LIMIT $2",
                AFTER,
            )
        });
        Ok(changes(self.fetch_some(&SQL, &[After { id: task.0, after }], limit).await?))
    }

    /// Where changes after a sequence happened, in commit order: sequence and contract.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn events_places(&mut self, after: i64, limit: i64) -> Result<Vec<(i64, ContractId)>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                // A scalar, not a join: SQLite would walk the log from its beginning.
                "SELECT e.sequence, e.contract FROM events e WHERE e.sequence > (SELECT rows.after FROM {rows})
                 ORDER BY e.sequence LIMIT $2",
                AFTER,
            )
        });
        let rows: Vec<(i64, Uuid)> = self.fetch_some(&SQL, &[After { id: Uuid::nil(), after }], limit).await?;
        Ok(rows.into_iter().map(|(sequence, contract)| (sequence, ContractId(contract))).collect())
    }

    /// The last sequence of the log; 0 when it is empty.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn events_last(&mut self) -> Result<i64> {
        static SQL: LazySql = LazySql::new(|| Sql::new("SELECT coalesce(max(sequence), 0) FROM events", &[]));
        let rows: Vec<(i64,)> = self.fetch_plain(&SQL).await?;
        Ok(rows.into_iter().next().map_or(0, |(last,)| last))
    }

    /// Events up to this sequence are no longer kept; 0 when all are.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn events_forgotten(&mut self) -> Result<i64> {
        Ok(self.meta_fetch("events_forgotten").await?.and_then(|text| text.parse().ok()).unwrap_or(0))
    }
}

//! What is read to say where a task stands: light rows, without plans, and the answers that only the graph has.

use sqlx::types::Json;
use uuid::Uuid;

use super::{
    Result, Tx,
    contract::{ID, ids},
    edge::Edge,
    sql::{Columns, LazySql, Sql},
};
use crate::domain::{ContractId, DaemonId, TaskId, task::TaskStatus};

/// A task's name and status, without what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brief {
    /// The task.
    pub id: TaskId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub status: TaskStatus,
}

#[derive(sqlx::FromRow, serde::Deserialize)]
struct BriefRow {
    id: Uuid,
    name: String,
    /// The status as JSON text, so that it is decoded as everywhere else.
    status: Json<TaskStatus>,
}

impl From<BriefRow> for Brief {
    fn from(row: BriefRow) -> Self {
        Self { id: TaskId(row.id), name: row.name, status: row.status.0 }
    }
}

#[derive(sqlx::FromRow, serde::Deserialize)]
struct EdgeRow {
    dependent: Uuid,
    dependency: Uuid,
    contract: Uuid,
    satisfied: bool,
}

const STATUS_POSTGRES: &str = "to_jsonb(t.status) AS status";
const STATUS_SQLITE: &str = "json_quote(t.status) AS status";

fn briefs(text: impl Fn(&str) -> String, columns: Columns) -> Sql {
    Sql::dialects(&text(STATUS_POSTGRES), &text(STATUS_SQLITE), columns)
}

impl Tx {
    /// Names and statuses of tasks; those that do not exist are absent.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn briefs_fetch(&mut self, tasks: &[TaskId]) -> Result<Vec<Brief>> {
        static SQL: LazySql = LazySql::new(|| {
            briefs(|status| format!("SELECT t.id, t.name, {status} FROM {{rows}} JOIN tasks t ON t.id = rows.id"), ID)
        });
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<BriefRow> = self.fetch(&SQL, &ids(tasks)).await?;
        Ok(rows.into_iter().map(Brief::from).collect())
    }

    /// Tasks that wait for this one, by id, at most `limit`.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn briefs_of_dependents(&mut self, task: TaskId, limit: i64) -> Result<Vec<(Brief, bool)>> {
        #[derive(sqlx::FromRow, serde::Deserialize)]
        struct DependentRow {
            id: Uuid,
            name: String,
            status: Json<TaskStatus>,
            satisfied: bool,
        }
        static SQL: LazySql = LazySql::new(|| {
            let text = |status: &str| {
                format!(
                    "SELECT t.id, t.name, {status}, e.satisfied FROM {{rows}}
                     JOIN edges e ON e.dependency = rows.id JOIN tasks t ON t.id = e.dependent
                     ORDER BY t.id LIMIT $2"
                )
            };
            briefs(text, ID)
        });
        let rows: Vec<DependentRow> = self.fetch_some(&SQL, &ids(&[task]), limit).await?;
        Ok(rows
            .into_iter()
            .map(|row| (BriefRow { id: row.id, name: row.name, status: row.status }.into(), row.satisfied))
            .collect())
    }

    /// The edges over which these tasks still wait, their own and those of what they wait for, at most `limit`.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn edges_unmet(&mut self, of: &[TaskId], limit: i64) -> Result<Vec<Edge>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "WITH RECURSIVE up(id) AS (
                     SELECT rows.id FROM {rows}
                     UNION SELECT e.dependency FROM up JOIN edges e ON e.dependent = up.id AND NOT e.satisfied)
                 SELECT e.dependent, e.dependency, e.contract, e.satisfied
                 FROM up CROSS JOIN edges e WHERE e.dependent = up.id AND NOT e.satisfied LIMIT $2",
                ID,
            )
        });
        if of.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<EdgeRow> = self.fetch_some(&SQL, &ids(of), limit).await?;
        Ok(rows
            .into_iter()
            .map(|row| Edge {
                dependent: TaskId(row.dependent),
                dependency: TaskId(row.dependency),
                contract: ContractId(row.contract),
                satisfied: row.satisfied,
            })
            .collect())
    }

    /// Of these contracts, those with a task that is not final and waits for no dependency. Where there is none and tasks
    /// are left, all of them are blocked for ever: the graph has no cycle, so whoever waits hangs on one that ended badly.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn contracts_moving(&mut self, contracts: &[ContractId]) -> Result<Vec<ContractId>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT rows.id FROM {rows} WHERE EXISTS (
                     SELECT 1 FROM tasks t WHERE t.contract = rows.id AND NOT t.final AND NOT EXISTS (
                         SELECT 1 FROM edges e WHERE e.dependent = t.id AND NOT e.satisfied))",
                ID,
            )
        });
        if contracts.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<(Uuid,)> = self.fetch(&SQL, &ids(contracts)).await?;
        Ok(rows.into_iter().map(|(id,)| ContractId(id)).collect())
    }

    /// How many attempts of each of these daemons have not ended; those without are absent.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_live_counts(&mut self, daemons: &[DaemonId]) -> Result<Vec<(DaemonId, u32)>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT a.daemon, count(*) FROM {rows} JOIN attempts a ON a.daemon = rows.id WHERE a.live GROUP BY a.daemon",
                ID,
            )
        });
        if daemons.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<(Uuid, i64)> = self.fetch(&SQL, &ids(daemons)).await?;
        Ok(rows.into_iter().map(|(id, count)| (DaemonId(id), u32::try_from(count).unwrap_or(u32::MAX))).collect())
    }

    /// Names of daemons of an owner; those that do not exist are absent.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn daemon_names(&mut self, daemons: &[DaemonId]) -> Result<Vec<(DaemonId, String)>> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new("SELECT d.id, d.name FROM {rows} JOIN daemons d ON d.id = rows.id", ID));
        if daemons.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<(Uuid, String)> = self.fetch(&SQL, &ids(daemons)).await?;
        Ok(rows.into_iter().map(|(id, name)| (DaemonId(id), name)).collect())
    }
}

//! Edges: which task waits for which.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Result, Tx,
    contract::{ID, ids},
    sql::{Kind, LazySql, Sql},
};
use crate::domain::{ContractId, TaskId};

/// One edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Edge {
    /// The task that waits.
    pub dependent: TaskId,
    /// The task it waits for.
    pub dependency: TaskId,
    /// Contract of both.
    pub contract: ContractId,
    /// The dependency is complete, and counted.
    pub satisfied: bool,
}

#[derive(sqlx::FromRow, serde::Deserialize)]
struct EdgeRow {
    dependent: Uuid,
    dependency: Uuid,
    contract: Uuid,
    satisfied: bool,
}

impl From<EdgeRow> for Edge {
    fn from(row: EdgeRow) -> Self {
        Self {
            dependent: TaskId(row.dependent),
            dependency: TaskId(row.dependency),
            contract: ContractId(row.contract),
            satisfied: row.satisfied,
        }
    }
}

const COLUMNS: &[(&str, Kind)] =
    &[("dependent", Kind::Uuid), ("dependency", Kind::Uuid), ("contract", Kind::Uuid), ("satisfied", Kind::Bool)];

impl Tx {
    /// Writes edges, new or changed.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn edges_put(&mut self, edges: &[Edge]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO edges (dependent, dependency, contract, satisfied)
                 SELECT dependent, dependency, contract, satisfied FROM {rows} WHERE true
                 ON CONFLICT (dependent, dependency) DO UPDATE SET satisfied = excluded.satisfied",
                COLUMNS,
            )
        });
        self.put(&SQL, edges).await
    }

    /// Removes edges.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn edges_delete(&mut self, edges: &[Edge]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "DELETE FROM edges WHERE (dependent, dependency) IN (SELECT rows.dependent, rows.dependency FROM {rows})",
                COLUMNS,
            )
        });
        self.put(&SQL, edges).await
    }

    /// What these tasks wait for.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn edges_from(&mut self, dependents: &[TaskId]) -> Result<Vec<Edge>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT e.dependent, e.dependency, e.contract, e.satisfied FROM {rows} JOIN edges e ON e.dependent = rows.id",
                ID,
            )
        });
        if dependents.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<EdgeRow> = self.fetch(&SQL, &ids(dependents)).await?;
        Ok(rows.into_iter().map(Edge::from).collect())
    }

    /// What waits for these tasks.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn edges_to(&mut self, dependencies: &[TaskId]) -> Result<Vec<Edge>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT e.dependent, e.dependency, e.contract, e.satisfied FROM {rows} JOIN edges e ON e.dependency = rows.id",
                ID,
            )
        });
        if dependencies.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<EdgeRow> = self.fetch(&SQL, &ids(dependencies)).await?;
        Ok(rows.into_iter().map(Edge::from).collect())
    }

    /// Everything that these tasks depend on, directly or not, as edges.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn edges_upstream(&mut self, of: &[TaskId]) -> Result<Vec<Edge>> {
        static SQL: LazySql = LazySql::new(|| {
            // CROSS, because SQLite would otherwise scan all edges and look them up in `up`.
            Sql::new(
                "WITH RECURSIVE up(id) AS (
                     SELECT rows.id FROM {rows}
                     UNION SELECT e.dependency FROM up JOIN edges e ON e.dependent = up.id)
                 SELECT e.dependent, e.dependency, e.contract, e.satisfied FROM up CROSS JOIN edges e WHERE e.dependent = up.id",
                ID,
            )
        });
        if of.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<EdgeRow> = self.fetch(&SQL, &ids(of)).await?;
        Ok(rows.into_iter().map(Edge::from).collect())
    }

    /// Everything that depends on these tasks, directly or not.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn dependents_closure(&mut self, of: &[TaskId]) -> Result<Vec<TaskId>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "WITH RECURSIVE down(id) AS (
                     SELECT rows.id FROM {rows}
                     UNION SELECT e.dependent FROM down JOIN edges e ON e.dependency = down.id)
                 SELECT id FROM down",
                ID,
            )
        });
        if of.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<(Uuid,)> = self.fetch(&SQL, &ids(of)).await?;
        Ok(rows.into_iter().map(|(id,)| TaskId(id)).collect())
    }
}

//! What the dispatcher reads: lanes and their heads, never the backlog.
//!
//! A lane is the tasks of one contract that need the same of a daemon. Its row says whether the contract may start a task now
//! and how urgent its most urgent ready task is; both are made anew from the tasks, in the same transaction, for every lane of which
//! a batch may have changed one of them, so there is no count to drift.

use serde::Serialize;
use sqlx::types::Json;
use uuid::Uuid;

use super::{
    Result, Tx,
    sql::{Kind, LazySql, Sql},
};
use crate::domain::{ClassId, ContractId, OwnerId, TaskId, Timestamp, daemon::Requirements};

/// A lane to refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Lane {
    /// The contract.
    pub contract: ContractId,
    /// The requirement class.
    pub class: ClassId,
    /// Whose it is.
    pub owner: OwnerId,
    /// The contract may start a task now.
    pub is_open: bool,
    /// The time.
    pub now: Timestamp,
    /// A task was taken from it now.
    pub is_served: bool,
}

/// A lane with ready work, as the walk sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneHead {
    /// The contract.
    pub contract: ContractId,
    /// The requirement class.
    pub class: ClassId,
    /// Highest priority among its ready tasks.
    pub priority: i32,
}

/// A ready task in its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneTask {
    /// The contract.
    pub contract: ContractId,
    /// The requirement class.
    pub class: ClassId,
    /// Higher goes first.
    pub priority: i32,
    /// Among equals the smallest, which is the oldest, goes first.
    pub id: TaskId,
}

#[derive(sqlx::FromRow, serde::Deserialize)]
struct LaneRow {
    contract: Uuid,
    class: Uuid,
    head: i32,
}

#[derive(sqlx::FromRow, serde::Deserialize)]
struct LaneTaskRow {
    contract: Uuid,
    class: Uuid,
    priority: i32,
    id: Uuid,
}

impl From<LaneRow> for LaneHead {
    fn from(row: LaneRow) -> Self {
        Self { contract: ContractId(row.contract), class: ClassId(row.class), priority: row.head }
    }
}

impl From<LaneTaskRow> for LaneTask {
    fn from(row: LaneTaskRow) -> Self {
        Self {
            contract: ContractId(row.contract),
            class: ClassId(row.class),
            priority: row.priority,
            id: TaskId(row.id),
        }
    }
}

const LANE: &[(&str, Kind)] = &[
    ("contract", Kind::Uuid),
    ("class", Kind::Uuid),
    ("owner", Kind::Uuid),
    ("is_open", Kind::Bool),
    ("now", Kind::Time),
    ("is_served", Kind::Bool),
];

#[derive(Serialize)]
struct LaneKey {
    contract: ContractId,
    class: ClassId,
}

const LANE_KEY: &[(&str, Kind)] = &[("contract", Kind::Uuid), ("class", Kind::Uuid)];

#[derive(Serialize)]
struct ClassRow<'a> {
    id: ClassId,
    owner: Option<OwnerId>,
    requirements: Option<&'a Requirements>,
}

const CLASS: &[(&str, Kind)] = &[("id", Kind::Uuid), ("owner", Kind::Uuid), ("requirements", Kind::Json)];

#[derive(Serialize)]
struct OpenRow {
    contract: ContractId,
    is_open: bool,
}

impl Tx {
    /// Writes classes that may be new.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn classes_insert(&mut self, classes: &[(ClassId, OwnerId, Requirements)]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO classes (id, owner, requirements) SELECT id, owner, requirements FROM {rows} WHERE true
                 ON CONFLICT (id) DO NOTHING",
                CLASS,
            )
        });
        let rows: Vec<_> = classes
            .iter()
            .map(|(id, owner, requirements)| ClassRow {
                id: *id,
                owner: Some(*owner),
                requirements: Some(requirements),
            })
            .collect();
        self.put(&SQL, &rows).await
    }

    /// All classes.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn classes_list(&mut self) -> Result<Vec<(ClassId, OwnerId, Requirements)>> {
        static SQL: LazySql = LazySql::new(|| Sql::new("SELECT id, owner, requirements FROM classes", &[]));
        let rows: Vec<(Uuid, Uuid, Json<Requirements>)> = self.fetch_plain(&SQL).await?;
        Ok(rows.into_iter().map(|(id, owner, r)| (ClassId(id), OwnerId(owner), r.0)).collect())
    }

    /// Makes lanes anew from their tasks, which must have been written before. One that is new takes its place behind those that have
    /// been served: before them, a stream of new contracts would keep an old one waiting for ever.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn lanes_refresh(&mut self, lanes: &[Lane]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO lanes (contract, class, owner, is_open, head, served)
                 SELECT contract, class, owner, is_open,
                     (SELECT t.priority FROM tasks t WHERE t.contract = rows.contract AND t.class = rows.class AND t.ready
                      ORDER BY t.priority DESC, t.id LIMIT 1),
                     coalesce(
                         (SELECT l.served FROM lanes l
                          WHERE NOT rows.is_served AND l.contract = rows.contract AND l.class = rows.class), now)
                 FROM {rows} WHERE true
                 ON CONFLICT (contract, class) DO UPDATE SET is_open = excluded.is_open, head = excluded.head,
                     served = excluded.served",
                LANE,
            )
        });
        self.execute(&SQL, lanes).await?;
        Ok(())
    }

    /// Opens or closes all lanes of contracts.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn lanes_open(&mut self, contracts: &[(ContractId, bool)]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new("UPDATE lanes SET is_open = rows.is_open FROM {rows} WHERE lanes.contract = rows.contract", LANE)
        });
        let rows: Vec<_> =
            contracts.iter().map(|(contract, is_open)| OpenRow { contract: *contract, is_open: *is_open }).collect();
        self.execute(&SQL, &rows).await?;
        Ok(())
    }

    /// Open lanes of these classes that have ready work: urgent ones first, then those that were served longest ago; at most
    /// `limit` of each class, so that one with many lanes neither hides another nor costs more than its room.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn lanes_walk(&mut self, classes: &[ClassId], limit: i64) -> Result<Vec<LaneHead>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::dialects(
                "SELECT l.contract, l.class, l.head FROM {rows} JOIN LATERAL (
                     SELECT x.contract, x.class, x.head, x.served FROM lanes x
                     WHERE x.class = rows.id AND x.is_open AND x.head IS NOT NULL
                     ORDER BY x.head DESC, x.served LIMIT $2) AS l ON true
                 ORDER BY l.head DESC, l.served",
                "SELECT l.contract, l.class, l.head FROM {rows} CROSS JOIN lanes l
                 WHERE l.class = rows.id AND l.contract IN (
                     SELECT x.contract FROM lanes x WHERE x.class = rows.id AND x.is_open AND x.head IS NOT NULL
                     ORDER BY x.head DESC, x.served LIMIT $2)
                 ORDER BY l.head DESC, l.served",
                CLASS,
            )
        });
        if classes.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<_> = classes.iter().map(|id| ClassRow { id: *id, owner: None, requirements: None }).collect();
        let rows: Vec<LaneRow> = self.fetch_some(&SQL, &rows, limit).await?;
        Ok(rows.into_iter().map(LaneHead::from).collect())
    }

    /// The lanes of these contracts that have ready work, open or not: for contracts that a batch is about to open.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn lanes_of(&mut self, contracts: &[ContractId]) -> Result<Vec<LaneHead>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT l.contract, l.class, l.head FROM {rows} JOIN lanes l ON l.contract = rows.id
                 WHERE l.head IS NOT NULL",
                super::contract::ID,
            )
        });
        if contracts.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<LaneRow> = self.fetch(&SQL, &super::contract::ids(contracts)).await?;
        Ok(rows.into_iter().map(LaneHead::from).collect())
    }

    /// The most urgent ready tasks of each lane, at most `limit` of each, in no order.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn lanes_tasks(&mut self, lanes: &[LaneHead], limit: i64) -> Result<Vec<LaneTask>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::dialects(
                "SELECT h.* FROM {rows} JOIN LATERAL (
                     SELECT t.contract, t.class, t.priority, t.id FROM tasks t
                     WHERE t.contract = rows.contract AND t.class = rows.class AND t.ready
                     ORDER BY t.priority DESC, t.id LIMIT $2) AS h ON true",
                // SQLite has no LATERAL; an IN that depends on the row before it is run once for each lane.
                "SELECT t.contract, t.class, t.priority, t.id FROM {rows} CROSS JOIN tasks t
                 WHERE t.id IN (
                     SELECT x.id FROM tasks x WHERE x.contract = rows.contract AND x.class = rows.class AND x.ready
                     ORDER BY x.priority DESC, x.id LIMIT $2)",
                LANE_KEY,
            )
        });
        if lanes.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<_> = lanes.iter().map(|lane| LaneKey { contract: lane.contract, class: lane.class }).collect();
        let rows: Vec<LaneTaskRow> = self.fetch_some(&SQL, &rows, limit).await?;
        Ok(rows.into_iter().map(LaneTask::from).collect())
    }
}

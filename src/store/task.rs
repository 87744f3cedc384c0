//! Tasks. What was asked (`spec`) may be large and seldom changes, so it is a column of its own that an update leaves alone.

use std::sync::Arc;

use serde::Serialize;
use sqlx::types::Json;
use uuid::Uuid;

use super::{
    Result, Tx,
    contract::{ID, ids},
    sql::{Kind, LazySql, Sql},
};
use crate::domain::{
    CheckpointId, ClassId, ContractId, OwnerId, TaskId, Timestamp,
    task::{Task, TaskSpec, TaskStatus},
};

#[derive(Serialize)]
struct TaskRow<'a> {
    id: TaskId,
    contract: ContractId,
    owner: OwnerId,
    name: &'a str,
    class: ClassId,
    status: TaskStatus,
    #[serde(rename = "final")]
    is_final: bool,
    ready: bool,
    priority: i32,
    wait_until: Option<Timestamp>,
    hidden: bool,
    checkpoint: Option<CheckpointId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<&'a TaskSpec>,
    doc: &'a Task,
}

impl<'a> TaskRow<'a> {
    fn new(task: &'a Task, with_spec: bool) -> Self {
        Self {
            id: task.id,
            contract: task.contract,
            owner: task.owner,
            name: &task.spec.name,
            class: task.class,
            status: task.status(),
            is_final: task.status().is_final(),
            ready: task.is_ready(),
            priority: task.spec.priority,
            wait_until: task.wait().map(|wait| wait.until),
            hidden: task.spec.hidden,
            checkpoint: task.checkpoint,
            spec: with_spec.then_some(&*task.spec),
            doc: task,
        }
    }
}

const COLUMNS: &[(&str, Kind)] = &[
    ("id", Kind::Uuid),
    ("contract", Kind::Uuid),
    ("owner", Kind::Uuid),
    ("name", Kind::Text),
    ("class", Kind::Uuid),
    ("status", Kind::Text),
    ("final", Kind::Bool),
    ("ready", Kind::Bool),
    ("priority", Kind::Int),
    ("wait_until", Kind::Time),
    ("hidden", Kind::Bool),
    ("checkpoint", Kind::Uuid),
    ("spec", Kind::Json),
    ("doc", Kind::Json),
];

/// What a task `t` is read from. Of one that is ready no dependency is unmet.
pub(super) const READ: &str = "SELECT t.id, t.contract, t.owner, t.class, t.spec, t.doc, CASE WHEN t.ready THEN 0 ELSE
     (SELECT count(*) FROM edges e WHERE e.dependent = t.id AND NOT e.satisfied) END AS unmet";

#[derive(sqlx::FromRow, serde::Deserialize)]
pub(super) struct TaskDoc {
    id: Uuid,
    contract: Uuid,
    owner: Uuid,
    class: Uuid,
    spec: Json<TaskSpec>,
    doc: Json<Task>,
    unmet: i64,
}

impl TaskDoc {
    pub(super) fn into_task(self) -> Task {
        Task {
            id: TaskId(self.id),
            contract: ContractId(self.contract),
            owner: OwnerId(self.owner),
            class: ClassId(self.class),
            spec: Arc::new(self.spec.0),
            unmet: u32::try_from(self.unmet).unwrap_or(u32::MAX),
            ..self.doc.0
        }
    }
}

fn tasks(rows: Vec<TaskDoc>) -> Vec<Task> {
    rows.into_iter().map(TaskDoc::into_task).collect()
}

/// Names a task within its contract.
#[derive(Serialize)]
struct Named<'a> {
    contract: ContractId,
    name: &'a str,
}

/// Which tasks belong to a page.
#[derive(Clone, Debug, Serialize)]
pub struct TaskFilter {
    /// Of this owner.
    pub owner: OwnerId,
    /// Of this contract.
    pub contract: Option<ContractId>,
    /// With one of these statuses.
    pub statuses: Option<Vec<TaskStatus>>,
    /// After this one.
    pub after: Option<TaskId>,
    /// Also the hidden ones.
    pub hidden: bool,
}

impl Tx {
    /// Writes new tasks.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn tasks_insert(&mut self, tasks: &[&Task]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO tasks (id, contract, owner, name, class, status, final, ready, priority, wait_until, hidden, checkpoint,
                     spec, doc)
                 SELECT id, contract, owner, name, class, status, final, ready, priority, wait_until, hidden, checkpoint,
                     spec, doc FROM {rows} WHERE true",
                COLUMNS,
            )
        });
        let rows: Vec<_> = tasks.iter().map(|task| TaskRow::new(task, true)).collect();
        self.put(&SQL, &rows).await
    }

    /// Writes changed tasks, all but what was asked.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn tasks_update(&mut self, tasks: &[&Task]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "UPDATE tasks SET status = rows.status, final = rows.final, ready = rows.ready,
                     wait_until = rows.wait_until, checkpoint = rows.checkpoint, doc = rows.doc
                 FROM {rows} WHERE tasks.id = rows.id",
                COLUMNS,
            )
        });
        let rows: Vec<_> = tasks.iter().map(|task| TaskRow::new(task, false)).collect();
        self.put(&SQL, &rows).await
    }

    /// Writes what was asked, where it has changed.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn tasks_respec(&mut self, tasks: &[&Task]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "UPDATE tasks SET name = rows.name, class = rows.class, priority = rows.priority, hidden = rows.hidden,
                     spec = rows.spec
                 FROM {rows} WHERE tasks.id = rows.id",
                COLUMNS,
            )
        });
        let rows: Vec<_> = tasks.iter().map(|task| TaskRow::new(task, true)).collect();
        self.execute(&SQL, &rows).await?;
        Ok(())
    }

    /// Tasks by id; those that do not exist are absent.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn tasks_fetch(&mut self, wanted: &[TaskId]) -> Result<Vec<Task>> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new(&format!("{READ} FROM tasks t WHERE t.id IN (SELECT rows.id FROM {{rows}})"), ID));
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        Ok(tasks(self.fetch(&SQL, &ids(wanted)).await?))
    }

    /// One task of an owner.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn task_fetch(&mut self, owner: OwnerId, task: TaskId) -> Result<Option<Task>> {
        Ok(self.tasks_fetch(&[task]).await?.pop().filter(|task| task.owner == owner))
    }

    /// Tasks by contract and name; those that do not exist are absent.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn tasks_named(&mut self, names: &[(ContractId, String)]) -> Result<Vec<Task>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                &format!("{READ} FROM {{rows}} JOIN tasks t ON t.contract = rows.contract AND t.name = rows.name"),
                &[("contract", Kind::Uuid), ("name", Kind::Text)],
            )
        });
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<_> = names.iter().map(|(contract, name)| Named { contract: *contract, name }).collect();
        Ok(tasks(self.fetch(&SQL, &rows).await?))
    }

    /// Tasks of an owner whose short id (last 12 hex digits) this is; at most two, so that the caller sees ambiguity.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn tasks_short(&mut self, owner: OwnerId, short: &str) -> Result<Vec<Task>> {
        #[derive(Serialize)]
        struct Short<'a> {
            owner: OwnerId,
            short: &'a str,
        }
        static SQL: LazySql = LazySql::new(|| {
            let text = |digits: &str| {
                format!("{READ} FROM {{rows}} JOIN tasks t ON t.owner = rows.owner WHERE {digits} = rows.short LIMIT 2")
            };
            Sql::dialects(
                &text("right(t.id::text, 12)"),
                &text("lower(hex(substr(t.id, 11)))"),
                &[("owner", Kind::Uuid), ("short", Kind::Text)],
            )
        });
        Ok(tasks(self.fetch(&SQL, &[Short { owner, short }]).await?))
    }

    /// A page of tasks, by id.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn tasks_list(&mut self, filter: &TaskFilter, limit: i64) -> Result<Vec<Task>> {
        // Two statements, because one with `contract IS NULL OR ..` uses neither index.
        const MEMBER_POSTGRES: &str = "SELECT jsonb_array_elements_text(rows.statuses)";
        const MEMBER_SQLITE: &str = "SELECT value FROM json_each(rows.statuses)";
        const FILTER: &[(&str, Kind)] = &[
            ("owner", Kind::Uuid),
            ("contract", Kind::Uuid),
            ("statuses", Kind::Json),
            ("after", Kind::Uuid),
            ("hidden", Kind::Bool),
        ];
        fn text(key: &str, member: &str) -> String {
            format!(
                "{READ} FROM {{rows}} JOIN tasks t ON t.{key} = rows.{key}
                 WHERE t.owner = rows.owner AND (rows.after IS NULL OR t.id > rows.after)
                   AND (rows.hidden OR NOT t.hidden)
                   AND (rows.statuses IS NULL OR t.status IN ({member}))
                 ORDER BY t.id LIMIT $2"
            )
        }
        static BY_OWNER: LazySql =
            LazySql::new(|| Sql::dialects(&text("owner", MEMBER_POSTGRES), &text("owner", MEMBER_SQLITE), FILTER));
        static BY_CONTRACT: LazySql = LazySql::new(|| {
            Sql::dialects(&text("contract", MEMBER_POSTGRES), &text("contract", MEMBER_SQLITE), FILTER)
        });
        let sql = if filter.contract.is_some() { &BY_CONTRACT } else { &BY_OWNER };
        Ok(tasks(self.fetch_some(sql, &[filter], limit).await?))
    }

    /// Tasks of a contract that are not final, by id, after `after`.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn tasks_unfinished(
        &mut self,
        contract: ContractId,
        after: Option<TaskId>,
        limit: i64,
    ) -> Result<Vec<Task>> {
        #[derive(Serialize)]
        struct From {
            contract: ContractId,
            after: TaskId,
        }
        let after = after.unwrap_or(TaskId(Uuid::nil()));
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                &format!(
                    "{READ} FROM tasks t
                     WHERE t.contract = (SELECT rows.contract FROM {{rows}}) AND NOT t.final
                       AND t.id > (SELECT rows.after FROM {{rows}}) ORDER BY t.id LIMIT $2"
                ),
                &[("contract", Kind::Uuid), ("after", Kind::Uuid)],
            )
        });
        Ok(tasks(self.fetch_some(&SQL, &[From { contract, after }], limit).await?))
    }

    /// Tasks whose wait is over.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn tasks_wait_over(&mut self, now: Timestamp, limit: i64) -> Result<Vec<TaskId>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT t.id FROM tasks t WHERE t.wait_until <= (SELECT rows.now FROM {rows})
                 ORDER BY t.wait_until LIMIT $2",
                super::attempt::NOW,
            )
        });
        let rows: Vec<(Uuid,)> = self.fetch_some(&SQL, &[super::attempt::Now { now }], limit).await?;
        Ok(rows.into_iter().map(|(id,)| TaskId(id)).collect())
    }
}

//! The bare model's store: one transaction a batch, one statement a table at most; on Postgres all of them in one round trip.

use std::time::{Duration, Instant};

use rusqlite::params;
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::runtime::Runtime;

use super::{ATTEMPT_BYTES, DOC_BYTES, EVENT_BYTES, ORDER_BYTES};
use crate::harness::{Database, postgres, process};

const TABLES: &str = "
    CREATE TABLE task (id bigint PRIMARY KEY, status integer NOT NULL, spec text NOT NULL, doc text NOT NULL);
    CREATE INDEX task_ready ON task (id) WHERE status = 0;
    CREATE TABLE attempt (id bigint PRIMARY KEY, status integer NOT NULL, doc text NOT NULL);
    CREATE TABLE command (id bigint PRIMARY KEY, doc text NOT NULL);";

/// What one commit makes durable.
#[derive(Debug, Default)]
pub struct Batch {
    /// New tasks: number, status, what was asked.
    new: (Vec<i64>, Vec<i32>, Vec<String>),
    /// Those given to an agent.
    assigned: Vec<i64>,
    accepted: Vec<i64>,
    /// Those that are done.
    pub ended: Vec<i64>,
    reports: Vec<String>,
}

impl Batch {
    pub(super) fn created(&mut self, id: u64, spec: String) {
        self.new.0.push(number(id));
        self.new.1.push(0);
        self.new.2.push(spec);
    }

    pub(super) fn assigned(&mut self, id: u64) {
        let id = number(id);
        // One that is new is written as it is now.
        if let Ok(place) = self.new.0.binary_search(&id) {
            self.new.1[place] = 1;
        }
        self.assigned.push(id);
    }

    pub(super) fn accepted(&mut self, id: u64) {
        self.accepted.push(number(id));
    }

    pub(super) fn ended(&mut self, id: u64, report: String) {
        self.ended.push(number(id));
        self.reports.push(report);
    }

    /// Given in this batch, and there since an earlier one.
    fn assigned_before(&self) -> Vec<i64> {
        self.assigned.iter().filter(|id| self.new.0.binary_search(id).is_err()).copied().collect()
    }

    /// Accepted, and not at their end in the same batch.
    fn only_accepted(&self) -> Vec<i64> {
        self.accepted.iter().filter(|id| !self.ended.contains(id)).copied().collect()
    }
}

/// A database.
pub enum Store {
    /// Synced at every commit.
    Sqlite(rusqlite::Connection),
    /// As it is installed.
    Postgres(Runtime, Box<PgConnection>),
}

impl Store {
    /// Makes the tables. Blocks; not within a runtime.
    pub fn open(url: &str) -> Self {
        if !url.starts_with("postgres://") {
            let database = rusqlite::Connection::open(url).expect("open a database");
            database
                .execute_batch(&format!(
                    "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; {TABLES}
                     CREATE TABLE event (id INTEGER PRIMARY KEY, task bigint NOT NULL, doc text NOT NULL);"
                ))
                .expect("make tables");
            return Self::Sqlite(database);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let connection = runtime.block_on(async {
            let mut connection = PgConnection::connect(url).await.expect("reach Postgres");
            let tables = format!(
                "{TABLES} CREATE TABLE event (id bigserial PRIMARY KEY, task bigint NOT NULL, doc text NOT NULL);"
            );
            connection.execute(sqlx::AssertSqlSafe(tables)).await.expect("make tables");
            connection
        });
        Self::Postgres(runtime, Box::new(connection))
    }

    /// Makes it durable.
    pub fn commit(&mut self, batch: &Batch) {
        match self {
            Self::Sqlite(database) => sqlite(database, batch).expect("commit"),
            Self::Postgres(runtime, connection) => runtime.block_on(postgres_batch(connection, batch)),
        }
    }
}

fn sqlite(database: &mut rusqlite::Connection, batch: &Batch) -> rusqlite::Result<()> {
    let (doc, attempt, order, event) = docs();
    let tx = database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    {
        let mut task = tx.prepare_cached("INSERT INTO task (id, status, spec, doc) VALUES (?1, ?2, ?3, ?4)")?;
        let mut moved = tx.prepare_cached("UPDATE task SET status = ?2, doc = ?3 WHERE id = ?1")?;
        let mut tried = tx.prepare_cached("INSERT INTO attempt (id, status, doc) VALUES (?1, 0, ?2)")?;
        let mut told = tx.prepare_cached("INSERT INTO command (id, doc) VALUES (?1, ?2)")?;
        let mut answered = tx.prepare_cached("DELETE FROM command WHERE id = ?1")?;
        let mut went = tx.prepare_cached("UPDATE attempt SET status = ?2, doc = ?3 WHERE id = ?1")?;
        let mut log = tx.prepare_cached("INSERT INTO event (task, doc) VALUES (?1, ?2)")?;
        for (id, (status, spec)) in batch.new.0.iter().zip(batch.new.1.iter().zip(&batch.new.2)) {
            task.execute(params![id, status, spec, doc])?;
            log.execute(params![id, event])?;
        }
        for id in batch.assigned_before() {
            moved.execute(params![id, 1, doc])?;
        }
        for id in &batch.assigned {
            tried.execute(params![id, attempt])?;
            told.execute(params![id, order])?;
        }
        for id in &batch.accepted {
            answered.execute([id])?;
        }
        for id in batch.only_accepted() {
            went.execute(params![id, 1, attempt])?;
        }
        for (id, report) in batch.ended.iter().zip(&batch.reports) {
            moved.execute(params![id, 2, doc])?;
            went.execute(params![id, 2, report])?;
            log.execute(params![id, event])?;
        }
    }
    tx.commit()
}

async fn postgres_batch(connection: &mut PgConnection, batch: &Batch) {
    const SQL: &str = "
        WITH created AS (INSERT INTO task (id, status, spec, doc)
                             SELECT id, status, spec, $4 FROM unnest($1::bigint[], $2::integer[], $3::text[]) AS r(id, status, spec)),
             tried AS (INSERT INTO attempt (id, status, doc) SELECT id, 0, $6 FROM unnest($5::bigint[]) AS r(id)),
             told AS (INSERT INTO command (id, doc) SELECT id, $7 FROM unnest($5::bigint[]) AS r(id)),
             answered AS (DELETE FROM command WHERE id = ANY($8::bigint[])),
             moved AS (UPDATE task SET status = r.status, doc = $4
                           FROM (SELECT unnest($9::bigint[]) AS id, 1 AS status
                                 UNION ALL SELECT unnest($10::bigint[]), 2) AS r WHERE task.id = r.id),
             went AS (UPDATE attempt SET status = r.status, doc = r.doc
                          FROM (SELECT unnest($11::bigint[]) AS id, 1 AS status, $6 AS doc
                                UNION ALL SELECT id, 2, doc FROM unnest($10::bigint[], $12::text[]) AS e(id, doc)) AS r
                          WHERE attempt.id = r.id)
        INSERT INTO event (task, doc) SELECT id, $13 FROM unnest($1::bigint[] || $10::bigint[]) AS r(id)";
    let (doc, attempt, order, event) = docs();
    sqlx::query(SQL)
        .bind(&batch.new.0)
        .bind(&batch.new.1)
        .bind(&batch.new.2)
        .bind(&doc)
        .bind(&batch.assigned)
        .bind(&attempt)
        .bind(&order)
        .bind(&batch.accepted)
        .bind(batch.assigned_before())
        .bind(&batch.ended)
        .bind(batch.only_accepted())
        .bind(&batch.reports)
        .bind(&event)
        .execute(connection)
        .await
        .expect("commit");
}

fn docs() -> (String, String, String, String) {
    let text = |bytes: usize| "x".repeat(bytes);
    (text(DOC_BYTES), text(ATTEMPT_BYTES), text(ORDER_BYTES), text(EVENT_BYTES))
}

/// As the databases have it.
pub fn number(id: u64) -> i64 {
    i64::try_from(id).expect("a number of a task")
}

/// Lifecycles a second that the store alone takes, so many at a time: each batch ends one lot, accepts the next, and makes
/// and gives away another.
pub async fn in_batches(database: Database, batch: u64, lasting: Duration) -> f64 {
    let folder = tempfile::Builder::new().prefix("store").tempdir_in(process::base()).expect("make a temp dir");
    let url = match database {
        Database::Sqlite => folder.path().join("store.sqlite").display().to_string(),
        Database::Postgres => postgres::database().await,
    };
    let worked = tokio::task::spawn_blocking(move || {
        let mut store = Store::open(&url);
        let begun = Instant::now();
        let mut lots = 0;
        while begun.elapsed() < lasting {
            let mut all = Batch::default();
            for id in lots * batch..(lots + 1) * batch {
                all.created(id, "x".repeat(super::SPEC_BYTES));
                all.assigned(id);
                if lots >= 1 {
                    all.accepted(id - batch);
                }
                if lots >= 2 {
                    all.ended(id - 2 * batch, "x".repeat(ATTEMPT_BYTES));
                }
            }
            store.commit(&all);
            lots += 1;
        }
        (usize::try_from(lots * batch).unwrap_or(usize::MAX), begun.elapsed())
    });
    let (count, took) = worked.await.expect("the store's thread ends well");
    drop(folder);
    crate::lifecycles::per_second(count, took)
}

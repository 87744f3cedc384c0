//! Forgetting, in portions, so that cleaning up never holds the writer for long.

use uuid::Uuid;

use super::{
    Result, Tx,
    attempt::{NOW, Now},
    contract::{ID, ids},
    sql::{LazySql, Sql},
};
use crate::domain::{ContractId, Timestamp};

impl Tx {
    /// Forgets events before a time, at most `limit` of them. Answers how many, and keeps the last one's sequence. Ledger time
    /// never goes backwards, so the oldest are the first.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn events_forget(&mut self, before: Timestamp, limit: i64) -> Result<usize> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "DELETE FROM events WHERE sequence IN (
                     SELECT e.sequence FROM (SELECT x.sequence, x.at FROM events x ORDER BY x.sequence LIMIT $2) AS e
                     WHERE e.at < (SELECT rows.now FROM {rows}))
                 RETURNING sequence",
                NOW,
            )
        });
        let gone: Vec<(i64,)> = self.fetch_some(&SQL, &[Now { now: before }], limit).await?;
        if let Some(last) = gone.iter().map(|(sequence,)| *sequence).max() {
            self.meta_put("events_forgotten", &last.to_string()).await?;
        }
        Ok(gone.len())
    }

    /// Forgets request ids before a time.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn requests_forget(&mut self, before: Timestamp) -> Result<u64> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new("DELETE FROM requests WHERE created < (SELECT rows.now FROM {rows})", NOW));
        self.execute(&SQL, &[Now { now: before }]).await
    }

    /// Forgets batches before a time, at most `limit` of them. Answers how many.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn batches_forget(&mut self, before: Timestamp, limit: i64) -> Result<usize> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "DELETE FROM batches WHERE id IN (
                     SELECT b.id FROM batches b WHERE b.at < (SELECT rows.now FROM {rows}) ORDER BY b.at LIMIT $2)
                 RETURNING id",
                NOW,
            )
        });
        let gone: Vec<(Uuid,)> = self.fetch_some(&SQL, &[Now { now: before }], limit).await?;
        Ok(gone.len())
    }

    /// Anonymous contracts that ended before a time.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn contracts_expired(&mut self, before: Timestamp, limit: i64) -> Result<Vec<ContractId>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT c.id FROM contracts c WHERE c.anonymous AND c.ended < (SELECT rows.now FROM {rows})
                 ORDER BY c.ended LIMIT $2",
                NOW,
            )
        });
        let rows: Vec<(Uuid,)> = self.fetch_some(&SQL, &[Now { now: before }], limit).await?;
        Ok(rows.into_iter().map(|(id,)| ContractId(id)).collect())
    }

    /// Forgets contracts with all that belongs to them but output, which expires by itself, and checkpoints that the task of
    /// another one builds on or goes on from. What no row names is then a stray.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn contracts_delete(&mut self, contracts: &[ContractId]) -> Result<()> {
        fn delete(from: &str, key: &str) -> Sql {
            Sql::new(&format!("DELETE FROM {from} WHERE {key} IN (SELECT rows.id FROM {{rows}})"), ID)
        }
        // Found through their tasks: an index by contract would cost every edge and attempt ever written.
        fn delete_by_task(from: &str, key: &str) -> Sql {
            let text = format!(
                "DELETE FROM {from} WHERE {key} IN (SELECT t.id FROM {{rows}} JOIN tasks t ON t.contract = rows.id)"
            );
            Sql::new(&text, ID)
        }
        const ATTEMPTS: &str =
            "SELECT a.id FROM {rows} JOIN tasks t ON t.contract = rows.id JOIN attempts a ON a.task = t.id";
        fn checkpoints() -> Sql {
            let text = "DELETE FROM checkpoints WHERE task IN (
                    SELECT t.id FROM {rows} JOIN tasks t ON t.contract = rows.id
                    WHERE NOT EXISTS (SELECT 1 FROM checkpoints c JOIN checkpoints d ON d.base = c.id
                                      WHERE c.task = t.id AND d.task <> t.id)
                      AND NOT EXISTS (SELECT 1 FROM checkpoints c JOIN tasks u ON u.checkpoint = c.id
                                      WHERE c.task = t.id AND u.id <> t.id AND NOT u.final))";
            Sql::new(text, ID)
        }
        fn blobs(which: &str) -> Sql {
            Sql::new(&format!("DELETE FROM blobs WHERE attempt IN ({ATTEMPTS}) AND {which}"), ID)
        }
        static TABLES: LazySqls = LazySqls::new(|| {
            [
                delete("events", "contract"),
                delete_by_task("edges", "dependent"),
                delete("lanes", "contract"),
                checkpoints(),
                blobs("kind = 'result'"),
                blobs(
                    "kind = 'checkpoint' AND NOT EXISTS (SELECT 1 FROM checkpoints c WHERE c.attempt = blobs.attempt)",
                ),
                delete_by_task("attempts", "task"),
                delete("tasks", "contract"),
                delete("contracts", "id"),
            ]
        });
        let rows = ids(contracts);
        for sql in TABLES.iter() {
            self.execute(sql, &rows).await?;
        }
        Ok(())
    }
}

type LazySqls = std::sync::LazyLock<[Sql; 9]>;

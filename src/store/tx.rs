//! Transactions: short reads from one snapshot, and the one writer's.

use super::{
    Db, Error, Result, Store,
    sql::{PgTx, SqliteTx, in_time},
};

/// The advisory lock that makes all ledger transactions of all replicas serial ("makima" in ASCII).
pub(super) const LEDGER_LOCK: i64 = 0x006d_616b_696d_6101;

/// A transaction on either database.
#[derive(Debug)]
pub struct Tx(pub(super) Inner);

#[derive(Debug)]
pub(super) enum Inner {
    Postgres(PgTx),
    Sqlite(SqliteTx),
}

impl Store {
    /// A write transaction: one at a time, whoever asks. On SQLite the database sees to that; a deferred begin would fail
    /// when it first writes under contention. On Postgres it takes the lock in a statement of its own and reads everything
    /// after it, at READ COMMITTED: an earlier snapshot would predate the lock.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn begin(&self) -> Result<Tx> {
        match &self.db {
            Db::Postgres(pool) => {
                let begun = async {
                    let mut tx = pool.begin().await?;
                    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LEDGER_LOCK).execute(&mut *tx).await?;
                    Ok(Tx(Inner::Postgres(tx)))
                };
                in_time(begun).await
            }
            Db::Sqlite { write, .. } => Ok(Tx(Inner::Sqlite(write.begin_with("BEGIN IMMEDIATE").await?))),
        }
    }

    /// A read transaction: everything it reads is of one instant.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn read(&self) -> Result<Tx> {
        match &self.db {
            Db::Postgres(pool) => {
                let begin = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";
                in_time(async { Ok(Tx(Inner::Postgres(pool.begin_with(begin).await?))) }).await
            }
            Db::Sqlite { read, .. } => Ok(Tx(Inner::Sqlite(read.begin().await?))),
        }
    }
}

impl Tx {
    /// Makes it all true, durably. An error that is [`Error::Unavailable`] leaves the outcome unknown.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn commit(self) -> Result<()> {
        match self.0 {
            Inner::Postgres(tx) => in_time(async { Ok(tx.commit().await?) }).await?,
            Inner::Sqlite(tx) => tx.commit().await?,
        }
        Ok(())
    }

    /// Forgets it all. Dropping a transaction does the same, later.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn rollback(self) -> Result<()> {
        match self.0 {
            Inner::Postgres(tx) => in_time(async { Ok(tx.rollback().await?) }).await?,
            Inner::Sqlite(tx) => tx.rollback().await?,
        }
        Ok(())
    }
}

impl From<sqlx::Error> for Error {
    fn from(source: sqlx::Error) -> Self {
        match &source {
            sqlx::Error::Database(error) => {
                // Classes that say nothing of the statement: connection, resources, operator intervention, system, and
                // rollbacks to try again (SQLSTATE appendix A of the Postgres manual); on SQLite busy (5) and full (13).
                let code = error.code().unwrap_or_default();
                let passing = match error.as_error().is::<sqlx::sqlite::SqliteError>() {
                    true => matches!(code.parse::<i32>().unwrap_or(0) & 0xff, 5 | 6 | 10 | 13 | 14),
                    false => ["08", "40", "53", "55", "57", "58", "25"].iter().any(|class| code.starts_with(class)),
                };
                if passing { Self::Unavailable { source } } else { Self::Statement { source } }
            }
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => Self::Corrupt { source },
            _ => Self::Unavailable { source },
        }
    }
}

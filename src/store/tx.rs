//! Transactions: short reads from one snapshot, and the one writer's.

use uuid::Uuid;

use super::{
    Db, Error, Result, Store,
    local::Local,
    open::taken,
    own::PgTx,
    sql::{Later, SqliteTx, in_time},
};

/// The advisory lock that makes all ledger transactions of all replicas serial ("makima" in ASCII).
pub(super) const LEDGER_LOCK: i64 = 0x006d_616b_696d_6101;

/// What a transaction that writes does first, in one round trip: the lock in a statement of its own, then whether this server
/// still has the database. Who has it is written down under the lock, so that one that has lost it, and does not know yet,
/// divides by zero here.
pub(super) fn lock_claimed(claim: Uuid) -> String {
    format!(
        "SELECT pg_advisory_xact_lock({LEDGER_LOCK}); \
         SELECT 1 / count(*) FROM meta WHERE key = '{CLAIM}' AND value = '{claim}'"
    )
}

/// Where it is written down which server has the database.
pub(super) const CLAIM: &str = "server_claim";
/// SQLSTATE of a division by zero.
const DIVISION_BY_ZERO: &str = "22012";
/// SQLSTATEs with which Postgres ends a connection: it is stopped by a person, it crashed, or the connection did nothing for too
/// long, in a transaction or outside of one.
const ENDED: [&str; 4] = ["57P01", "57P02", "25P03", "57P05"];
/// Connections that a restart of Postgres may have broken: each of the pool, and a fresh one.
const BEGIN_TRIES: u32 = WRITERS + 1;
/// Connections for writing, of all but the ledger. One writes at a time; the others are for those who wait for it.
pub(super) const WRITERS: u32 = 4;

/// A transaction on either database.
#[derive(Debug)]
pub struct Tx {
    pub(super) inner: Inner,
    /// On Postgres: written in one round trip with what follows, while a transaction gathers.
    pub(super) later: Option<Vec<Later>>,
}

impl From<Inner> for Tx {
    fn from(inner: Inner) -> Self {
        Self { inner, later: None }
    }
}

#[derive(Debug)]
pub(super) enum Inner {
    Postgres(PgTx),
    /// One that reads.
    Sqlite(SqliteTx),
    /// One that writes to SQLite.
    Local(Local),
}

impl Store {
    /// A write transaction: one at a time, whoever asks. On SQLite the database sees to that; a deferred begin would fail
    /// when it first writes under contention. On Postgres it takes the lock in a statement of its own and reads everything
    /// after it, at READ COMMITTED: an earlier snapshot would predate the lock.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn begin(&self) -> Result<Tx> {
        match &self.db {
            Db::Postgres { write, lock, .. } => {
                let mut tries = 0;
                loop {
                    // A transaction from the start: whoever asks may go away while it waits for the lock.
                    let begun = in_time(async {
                        let mut tx = write.begin().await?;
                        sqlx::raw_sql(sqlx::AssertSqlSafe(lock.clone())).execute(&mut *tx).await?;
                        Ok(Inner::Postgres(PgTx::Pooled(tx)).into())
                    });
                    let begun = begun.await;
                    tries += 1;
                    // Connections are not tried out before they are used, which would cost a round trip.
                    if !begun.as_ref().is_err_and(|error| is_broken(error) && tries < BEGIN_TRIES) {
                        return begun.map_err(not_taken);
                    }
                }
            }
            Db::Sqlite { write, .. } => Ok(Inner::Local(write.begin().await?).into()),
        }
    }

    /// The same for the ledger, which has a connection of its own (see `own`, and [`Tx::is_first`]).
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn begin_ledger(&self) -> Result<Tx> {
        let Db::Postgres { ledger, .. } = &self.db else { return self.begin().await };
        loop {
            match ledger.begin().await {
                Ok(tx) => return Ok(Inner::Postgres(PgTx::Own(tx)).into()),
                // One that was open may have been broken since; of one that is new there is nothing more to try.
                Err((error, true)) if is_broken(&error) => {}
                Err((error, _)) => return Err(not_taken(error)),
            }
        }
    }

    /// A read transaction: everything it reads is of one instant.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn read(&self) -> Result<Tx> {
        match &self.db {
            Db::Postgres { read, .. } => {
                let begin = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";
                in_time(async { Ok(Inner::Postgres(PgTx::Pooled(read.begin_with(begin).await?)).into()) }).await
            }
            Db::Sqlite { read, .. } => Ok(Inner::Sqlite(read.begin().await?).into()),
        }
    }
}

impl Tx {
    /// No transaction of the ledger was on this connection before. The one before this may have led to another Postgres: behind
    /// one address there may be a standby by now that had not got all that was committed, so nothing holds that was read or
    /// written before.
    pub fn is_first(&self) -> bool {
        matches!(&self.inner, Inner::Postgres(PgTx::Own(tx)) if tx.is_first)
    }

    /// Makes it all true, durably. An error that is [`Error::Unavailable`] leaves the outcome unknown.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn commit(mut self) -> Result<()> {
        self.settle().await?;
        match self.inner {
            Inner::Postgres(tx) => in_time(async { Ok(tx.commit().await?) }).await?,
            Inner::Sqlite(tx) => tx.commit().await?,
            Inner::Local(tx) => tx.commit()?,
        }
        Ok(())
    }

    /// Forgets it all. Dropping a transaction does the same, later.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn rollback(self) -> Result<()> {
        match self.inner {
            Inner::Postgres(tx) => in_time(async { Ok(tx.rollback().await?) }).await?,
            Inner::Sqlite(tx) => tx.rollback().await?,
            Inner::Local(tx) => drop(tx),
        }
        Ok(())
    }
}

/// The connection has ended, and another may do: this is how it shows that it was broken, and nothing has been done. One that does
/// not answer in time says nothing of that: the next would not either.
fn is_broken(error: &Error) -> bool {
    match error {
        Error::Unavailable { source: sqlx::Error::Io(error) } => error.kind() != std::io::ErrorKind::TimedOut,
        Error::Unavailable { source } => has_code(source, &ENDED),
        _ => false,
    }
}

/// What it means that a transaction could not begin.
fn not_taken(error: Error) -> Error {
    match &error {
        Error::Statement { source } if has_code(source, &[DIVISION_BY_ZERO]) => taken(),
        _ => error,
    }
}

/// The database says one of these SQLSTATEs.
pub(super) fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| codes.contains(&&*code))
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

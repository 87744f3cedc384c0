//! The ledger's own connection to Postgres.
//!
//! The ledger writes one transaction after the other, as fast as they go. A pool tries a connection out whenever it comes back,
//! hands out the one that has rested longest, with nothing of it in any cache, and begins a transaction by itself, so that its lock
//! takes another round trip. Here the same connection begins each transaction, with its lock, in one.
//!
//! A transaction takes the connection along and brings it back when it has ended as it should. Whatever else happens to it, the
//! connection is closed, which ends what it was in, and the next transaction opens another.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use sqlx::{
    Connection as _, PgConnection, PgPool, Postgres,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{Error, Result, open::PATIENCE, sql::in_time};

/// The connection, and what it takes to open it.
#[derive(Clone, Debug)]
pub(super) struct Own {
    /// Where it is while nobody uses it, once it is open.
    place: Arc<Mutex<Option<PgConnection>>>,
    /// Opens it, and then has it no more: a pool waits for a Postgres that has just restarted, and knows which errors pass. Closed, it
    /// opens none.
    opener: PgPool,
    /// What each transaction begins with.
    begin: Arc<str>,
}

impl Own {
    /// `lock` is what a transaction does first, in the round trip in which it begins.
    pub(super) fn new(options: PgConnectOptions, lock: &str) -> Self {
        let begin = format!("BEGIN; {lock}");
        let opener = PgPoolOptions::new().max_connections(1).acquire_timeout(PATIENCE).connect_lazy_with(options);
        Self { place: Arc::default(), opener, begin: begin.into() }
    }

    /// A transaction, once whoever has one now has ended it. An error comes with whether the connection had been open before.
    pub(super) async fn begin(&self) -> Result<OwnTx, (Error, bool)> {
        let waited = tokio::time::timeout(PATIENCE, Arc::clone(&self.place).lock_owned()).await;
        let mut place = waited.map_err(|_| (Error::Unavailable { source: sqlx::Error::PoolTimedOut }, false))?;
        let rested = place.take();
        let was_open = rested.is_some();
        let begun = in_time(async {
            let mut connection = match rested {
                Some(connection) => connection,
                None => self.opener.acquire().await?.detach(),
            };
            sqlx::raw_sql(sqlx::AssertSqlSafe(Arc::clone(&self.begin))).execute(&mut connection).await?;
            Ok(connection)
        });
        match begun.await {
            Ok(connection) => Ok(OwnTx { connection, is_first: !was_open, place }),
            Err(error) => Err((error, was_open)),
        }
    }

    /// Closes the connection, after what is under way.
    pub(super) async fn close(&self) {
        self.opener.close().await;
        if let Some(connection) = self.place.lock().await.take() {
            // The server at the other end sees it go either way.
            let _ = connection.close().await;
        }
    }
}

/// A transaction on the ledger's own connection; dropped, it closes the connection, and with it is rolled back.
#[derive(Debug)]
pub(super) struct OwnTx {
    connection: PgConnection,
    /// On this connection.
    pub(super) is_first: bool,
    place: OwnedMutexGuard<Option<PgConnection>>,
}

impl OwnTx {
    async fn end(mut self, how: &'static str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(how).execute(&mut self.connection).await?;
        *self.place = Some(self.connection);
        Ok(())
    }
}

/// A transaction on Postgres.
#[derive(Debug)]
pub(super) enum PgTx {
    /// On a connection of a pool.
    Pooled(sqlx::Transaction<'static, Postgres>),
    /// On the ledger's own.
    Own(OwnTx),
}

impl PgTx {
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Pooled(tx) => tx.commit().await,
            Self::Own(tx) => tx.end("COMMIT").await,
        }
    }

    pub(super) async fn rollback(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Pooled(tx) => tx.rollback().await,
            Self::Own(tx) => tx.end("ROLLBACK").await,
        }
    }
}

impl Deref for PgTx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self {
            Self::Pooled(tx) => tx,
            Self::Own(tx) => &tx.connection,
        }
    }
}

impl DerefMut for PgTx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self {
            Self::Pooled(tx) => tx,
            Self::Own(tx) => &mut tx.connection,
        }
    }
}

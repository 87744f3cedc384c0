//! The one writer's connection to SQLite, on the thread that uses it.
//!
//! The driver that reads hands each statement to a thread of its own and waits for it to answer: two changes of threads, some
//! 0.1 ms where the machine is idle, for a statement that takes 0.01 ms. A batch of the ledger has some fifteen of them. So what
//! writes runs its statements itself. The ledger, whose transactions are large, has a thread of its own for that; whoever else
//! writes says to the runtime that its thread is blocked where that can take long: at the begin, which waits for a lock that
//! somebody else may have on the file, and at the commit, which waits for the disk.

use std::{path::Path, sync::Arc, time::Duration};

use rusqlite::{Connection, ErrorCode};
use serde::de::DeserializeOwned;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{Mutex, OwnedMutexGuard},
};

use super::{
    Error, Result, cell,
    open::{PATIENCE, STATEMENTS},
    row::{Value, Values},
    wal::Mover,
};

/// The connection, for one at a time; nothing once it is closed.
#[derive(Clone, Debug)]
pub(super) struct Writer(Arc<Mutex<Option<Open>>>);

/// The connection, and what keeps its log short, which ends first.
#[derive(Debug)]
struct Open {
    mover: Mover,
    connection: Connection,
}

impl Writer {
    /// Opens a database that is there and up to date.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(PATIENCE)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A commit that was answered survives power loss.
        connection.pragma_update(None, "synchronous", "FULL")?;
        // Whenever pages of a tree were balanced, a commit walks all of the cache: to give the pages their order they get numbers
        // far beyond the end for a moment, which the commit takes for pages to drop. With 32 MiB that was 0.2 ms. What is not in
        // here is in the cache of the operating system.
        connection.pragma_update(None, "cache_size", -8_192)?;
        // What a statement with many rows needs to undo itself, and the rows that it gathers: else in files, made and removed with
        // each. Batches bound them.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        // What is in the log is moved by somebody else.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        let mover = Mover::start(path)?;
        Ok(Self(Arc::new(Mutex::new(Some(Open { mover, connection })))))
    }

    /// A transaction, once whoever has one now has ended it.
    pub(super) async fn begin(&self) -> Result<Local> {
        let unavailable = |source| Error::Unavailable { source };
        let waited: std::result::Result<_, _> =
            tokio::time::timeout(PATIENCE + Duration::from_secs(1), Arc::clone(&self.0).lock_owned()).await;
        let mut place = waited.map_err(|_| unavailable(sqlx::Error::PoolTimedOut))?;
        let Some(open) = place.as_mut() else { return Err(unavailable(sqlx::Error::PoolClosed)) };
        blocked(|| open.mover.look_at(&open.connection));
        let mut local = Local { open: place, is_open: false, is_spoiled: false };
        blocked(|| local.run("BEGIN IMMEDIATE"))?;
        local.is_open = true;
        Ok(local)
    }

    /// Closes the connection, after what is under way.
    pub(super) async fn close(&self) {
        self.0.lock().await.take();
    }
}

/// What a statement is asked with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked<'a> {
    Nothing,
    /// Rows as one document.
    Document(&'a str),
    /// Rows as values, and for how many values there are places; nothing is bound to those that are left.
    Values(&'a Values, usize),
}

/// A transaction; rolled back when it is dropped. A statement that fails ends it, as on Postgres: what it has written by then is
/// not undone by itself, which would mean to keep a copy of every page that each statement touches.
#[derive(Debug)]
pub(super) struct Local {
    open: OwnedMutexGuard<Option<Open>>,
    is_open: bool,
    /// A statement has failed.
    is_spoiled: bool,
}

impl Local {
    /// Rows that come of what is asked, and of a limit where the statement has one, in the place after that.
    pub(super) fn fetch<R: DeserializeOwned>(
        &mut self,
        text: &str,
        asked: Asked<'_>,
        limit: Option<i64>,
    ) -> Result<Vec<R>> {
        self.with(text, |statement| {
            let places = match asked {
                Asked::Nothing => 0,
                Asked::Document(doc) => {
                    statement.raw_bind_parameter(1, doc)?;
                    1
                }
                Asked::Values(values, places) => {
                    bind(statement, values, places)?;
                    places
                }
            };
            if let Some(limit) = limit {
                statement.raw_bind_parameter(places + 1, limit)?;
            }
            rows(statement)
        })
    }

    /// Changes made of values; nothing is bound to the places that are left. Answers how many there were.
    pub(super) fn execute(&mut self, text: &str, values: &Values, places: usize) -> Result<u64> {
        self.with(text, |statement| {
            bind(statement, values, places)?;
            Ok(u64::try_from(statement.raw_execute()?).unwrap_or(u64::MAX))
        })
    }

    /// The number that the last row got which was put into a table that numbers its rows.
    pub(super) fn last_number(&self) -> Result<i64> {
        Ok(self.connection()?.last_insert_rowid())
    }

    /// Makes it all true, durably.
    pub(super) fn commit(mut self) -> Result<()> {
        self.unspoiled()?;
        blocked(|| self.run("COMMIT"))?;
        self.is_open = false;
        Ok(())
    }

    /// Does something with a statement.
    fn with<T>(&mut self, text: &str, work: impl FnOnce(&mut rusqlite::Statement<'_>) -> Result<T>) -> Result<T> {
        self.unspoiled()?;
        let done = self.connection()?.prepare_cached(text).map_err(Error::from).and_then(|mut it| work(&mut it));
        self.is_spoiled = done.is_err();
        done
    }

    fn unspoiled(&self) -> Result<()> {
        match self.is_spoiled {
            true => {
                Err(Error::Statement { source: sqlx::Error::Protocol("a statement before this one failed".to_owned()) })
            }
            false => Ok(()),
        }
    }

    fn run(&self, text: &str) -> Result<()> {
        self.connection()?.prepare_cached(text)?.raw_execute()?;
        Ok(())
    }

    fn connection(&self) -> Result<&Connection> {
        let open = self.open.as_ref().ok_or(Error::Unavailable { source: sqlx::Error::PoolClosed })?;
        Ok(&open.connection)
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // A COMMIT that failed may have ended it already.
        if self.is_open && self.connection().is_ok_and(|connection| !connection.is_autocommit()) {
            let _ = self.run("ROLLBACK");
        }
    }
}

/// Others of the runtime's tasks go on meanwhile, where it has other threads for them.
fn blocked<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn bind(statement: &mut rusqlite::Statement<'_>, values: &Values, places: usize) -> Result<()> {
    let values = values.skip(0).chain(std::iter::repeat(Value::Null)).take(places);
    for (at, value) in values.enumerate() {
        let at = at + 1;
        match value {
            Value::Null => statement.raw_bind_parameter(at, rusqlite::types::Null)?,
            Value::Uuid(id) => statement.raw_bind_parameter(at, &id.as_bytes()[..])?,
            Value::Text(text) => statement.raw_bind_parameter(at, text)?,
            Value::Int(int) => statement.raw_bind_parameter(at, int)?,
            Value::Bool(bool) => statement.raw_bind_parameter(at, bool)?,
        }
    }
    Ok(())
}

fn rows<R: DeserializeOwned>(statement: &mut rusqlite::Statement<'_>) -> Result<Vec<R>> {
    let names: Vec<String> = statement.column_names().into_iter().map(str::to_owned).collect();
    let mut rows = statement.raw_query();
    let mut read = Vec::new();
    while let Some(row) = rows.next()? {
        let corrupt = |source: serde_json::Error| Error::Corrupt { source: sqlx::Error::Decode(source.into()) };
        read.push(cell::read(row, &names).map_err(corrupt)?);
    }
    Ok(read)
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        // Codes that say nothing of the statement.
        let passing = matches!(
            error.sqlite_error_code(),
            Some(
                ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::DiskFull
                    | ErrorCode::CannotOpen
            )
        );
        let source = sqlx::Error::AnyDriverError(Box::new(error));
        if passing { Self::Unavailable { source } } else { Self::Statement { source } }
    }
}

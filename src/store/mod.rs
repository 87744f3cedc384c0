//! What is remembered: the only module that knows SQL.
//!
//! One [`Store`] over two databases with one SQL text for both (see `sql`). A thing is a row with a column for whatever is
//! filtered on, and the JSON form of its domain type for the rest, so that a new field of the domain is not a migration.
//! Methods take batches and are named noun first: searching `tasks_` finds all that can be done with tasks.
//! The drivers are sqlx's, but for what writes to SQLite, which has a connection on its own thread (see `local`).
//!
//! ```text
//!   ledger ── begin() ──> Tx ── load, put ── commit()      one writer at a time
//!   services ─ read() ──> Tx ── list, get                   one snapshot
//! ```
//!
//! Deliberately absent: decisions. What a row means for another is decided in `domain` and carried out by the ledger.

mod attempt;
mod blob;
mod cell;
mod checkpoint;
mod contract;
mod daemon;
mod dispatch;
mod edge;
mod event;
mod key;
mod local;
mod measure;
mod native;
mod open;
mod own;
mod retention;
mod row;
mod sql;
mod standing;
mod task;
mod tx;
mod wal;

pub use attempt::Due;
pub use blob::{Blob, BlobKind};
pub use dispatch::{Lane, LaneHead, LaneTask};
pub use edge::Edge;
pub use key::Remembered;
pub use measure::{Busy, Unanswered};
pub use open::{Claim, Url};
pub use standing::Brief;
pub use task::TaskFilter;
pub use tx::Tx;

/// A database that holds everything the server must not forget.
#[derive(Clone, Debug)]
pub struct Store {
    db: Db,
}

#[derive(Clone, Debug)]
enum Db {
    /// `lock` is what a transaction that writes does first.
    Postgres {
        ledger: own::Own,
        write: sqlx::PgPool,
        read: sqlx::PgPool,
        lock: String,
    },
    Sqlite {
        write: local::Writer,
        read: sqlx::SqlitePool,
    },
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be reached, is full, or is busy. The same again later may work. During a commit it means that
    /// the outcome is unknown.
    #[error("reach the database")]
    Unavailable {
        /// The driver's word.
        source: sqlx::Error,
    },
    /// The database refused a statement: what was to be written cannot be.
    #[error("execute a statement")]
    Statement {
        /// The driver's word.
        source: sqlx::Error,
    },
    /// A row is not what this program writes.
    #[error("read a row")]
    Corrupt {
        /// The driver's word: names the column.
        source: sqlx::Error,
    },
    /// A value has no JSON form.
    #[error("encode a row")]
    Encode {
        /// The encoder's word.
        source: serde_json::Error,
    },
    /// The address is not one of a database.
    #[error("{0}")]
    Url(String),
    /// The schema cannot be brought up to date, or is newer than this program, or what is there is no database any more.
    #[error("{0}")]
    Schema(String),
    /// Another server has this database.
    #[error("{0}")]
    InUse(String),
    /// A file or directory cannot be made.
    #[error("prepare {path}")]
    File {
        /// Which.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
}

impl Error {
    /// It is what was to be written that is refused (SQLSTATE classes 22, data exceptions, and 23, integrity constraints): nothing is
    /// wrong with the connection.
    pub fn is_of_values(&self) -> bool {
        let code = match self {
            Self::Statement { source } => source.as_database_error().and_then(|error| error.code()),
            _ => None,
        };
        code.is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
    }
}

/// A result of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

//! One SQL text for two databases.
//!
//! Every statement takes one JSON document, an array of rows, so a batch is one statement whatever its size, and there is
//! one bind to get right. In the text, `{rows}` stands for those rows as a relation named `rows`; the columns are declared
//! beside the text. What this becomes:
//!
//! ```text
//!   Postgres   json_to_recordset($1::json) AS r(id uuid, at bigint, ..)   times made timestamptz
//!   SQLite     json_each($1)                                              ids made blobs
//! ```
//!
//! The design asks for arrays on Postgres; one document was chosen instead because it makes the two databases one text with
//! one bind. It costs about a microsecond a field to take apart.

use std::{fmt::Write as _, sync::LazyLock, time::Duration};

use serde::Serialize;
use sqlx::{FromRow, Postgres, Sqlite, postgres::PgRow, sqlite::SqliteRow};

use super::{Error, Result, Tx, tx::Inner};

/// Native type of a column of `{rows}`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Uuid,
    Text,
    Int,
    Big,
    Bool,
    Time,
    Json,
}

/// A statement in both dialects.
#[derive(Debug)]
pub(super) struct Sql {
    postgres: &'static str,
    sqlite: &'static str,
}

/// A statement that is rendered when it is first used.
pub(super) type LazySql = LazyLock<Sql>;

impl Sql {
    /// One text for both.
    pub(super) fn new(text: &str, columns: &[(&str, Kind)]) -> Self {
        Self::dialects(text, text, columns)
    }

    /// Where the dialects differ (LATERAL on one, correlated IN on the other).
    pub(super) fn dialects(postgres: &str, sqlite: &str, columns: &[(&str, Kind)]) -> Self {
        let postgres = postgres.replace("{rows}", &postgres_rows(columns));
        let sqlite = sqlite.replace("{rows}", &sqlite_rows(columns));
        // Leaked on purpose: there is a fixed number of statements, each rendered once, and the drivers cache prepared
        // statements by their text.
        Self { postgres: Box::leak(postgres.into_boxed_str()), sqlite: Box::leak(sqlite.into_boxed_str()) }
    }
}

fn postgres_rows(columns: &[(&str, Kind)]) -> String {
    let (mut select, mut types) = (String::new(), String::new());
    for (i, (name, kind)) in columns.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let (ty, expression) = match kind {
            Kind::Uuid => ("uuid", format!("r.{name}")),
            Kind::Text => ("text", format!("r.{name}")),
            Kind::Int => ("integer", format!("r.{name}")),
            Kind::Big => ("bigint", format!("r.{name}")),
            Kind::Bool => ("boolean", format!("r.{name}")),
            Kind::Time => ("bigint", format!("timestamptz 'epoch' + r.{name} * interval '1 microsecond'")),
            Kind::Json => ("jsonb", format!("r.{name}")),
        };
        let _ = write!(select, "{comma}{expression} AS {name}");
        let _ = write!(types, "{comma}{name} {ty}");
    }
    format!("(SELECT {select} FROM json_to_recordset($1::json) AS r({types})) AS rows")
}

fn sqlite_rows(columns: &[(&str, Kind)]) -> String {
    let mut select = String::new();
    for (i, (name, kind)) in columns.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let expression = match kind {
            Kind::Uuid => format!("unhex(replace(value ->> '$.{name}', '-', ''))"),
            Kind::Text | Kind::Int | Kind::Big | Kind::Bool | Kind::Time | Kind::Json => {
                format!("value ->> '$.{name}'")
            }
        };
        let _ = write!(select, "{comma}{expression} AS {name}");
    }
    format!("(SELECT {select} FROM json_each($1)) AS rows")
}

/// How long Postgres may take for a statement. A machine that vanishes closes no connection: without a bound the one writer
/// would wait for TCP to give up, a quarter of an hour, and with it everybody. Far longer than any statement here takes.
const ANSWER: Duration = Duration::from_secs(30);

/// What Postgres answers in time, else [`Error::Unavailable`].
pub(super) async fn in_time<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(answer) => answer,
        Err(elapsed) => {
            let source = sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, elapsed));
            Err(Error::Unavailable { source })
        }
    }
}

/// A row type that both drivers can read.
pub(super) trait Row:
    for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin + 'static
{
}

impl<T> Row for T where T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin + 'static {}

/// Expands a body for both databases, with `tx` bound to the native transaction.
macro_rules! on {
    ($self:expr, $sql:expr, |$tx:ident, $text:ident| $body:expr) => {
        match &mut $self.0 {
            Inner::Postgres($tx) => {
                let $text = $sql.postgres;
                in_time(async { Ok($body) }).await
            }
            Inner::Sqlite($tx) => {
                let $text = $sql.sqlite;
                Ok($body)
            }
        }
    };
}

impl Tx {
    /// Rows that come of rows.
    pub(super) async fn fetch<R: Row>(&mut self, sql: &Sql, rows: &impl Serialize) -> Result<Vec<R>> {
        let rows = encode(rows)?;
        on!(self, sql, |tx, text| sqlx::query_as(text).bind(rows).fetch_all(&mut **tx).await?)
    }

    /// Rows that come of rows, at most so many (`$2`).
    pub(super) async fn fetch_some<R: Row>(&mut self, sql: &Sql, rows: &impl Serialize, limit: i64) -> Result<Vec<R>> {
        let rows = encode(rows)?;
        on!(self, sql, |tx, text| sqlx::query_as(text).bind(rows).bind(limit).fetch_all(&mut **tx).await?)
    }

    /// Rows of a statement without arguments.
    pub(super) async fn fetch_plain<R: Row>(&mut self, sql: &Sql) -> Result<Vec<R>> {
        on!(self, sql, |tx, text| sqlx::query_as(text).fetch_all(&mut **tx).await?)
    }

    /// Changes made of rows. Answers how many there were; does nothing without rows.
    pub(super) async fn execute<T: Serialize>(&mut self, sql: &Sql, rows: &[T]) -> Result<u64> {
        if rows.is_empty() {
            return Ok(0);
        }
        let rows = encode(&rows)?;
        on!(self, sql, |tx, text| sqlx::query(text).bind(rows).execute(&mut **tx).await?.rows_affected())
    }
}

fn encode(rows: &impl Serialize) -> Result<String> {
    serde_json::to_string(rows).map_err(|source| Error::Encode { source })
}

// Named so that `sqlx::Transaction<'static, _>` in `tx` stays readable.
pub(super) type PgTx = sqlx::Transaction<'static, Postgres>;
pub(super) type SqliteTx = sqlx::Transaction<'static, Sqlite>;

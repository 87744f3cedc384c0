//! One SQL text for two databases.
//!
//! Every statement takes rows, so a batch is one statement whatever its size. In the text, `{rows}` stands for those rows as a
//! relation named `rows`; the columns are declared beside the text. What this becomes:
//!
//! ```text
//!               what is written                              what is asked for
//!   Postgres    unnest($1::uuid[], $2::bigint[], ..)         json_to_recordset($1::json) AS r(id uuid, at bigint, ..)
//!   SQLite      VALUES (?1, ?2, ..), (..), ..                the same for the one writer, json_each(?1) for whoever only reads
//! ```
//!
//! What is written has documents in it, which are bound as they are: taken apart as JSON by the database they cost it more than
//! everything else it did (SQLite, 64 tasks at a time: two thirds of its time). SQLite has one text for each number of rows that
//! is a power of two, and rows of nothing fill up what is missing, so few texts are prepared. What is asked for is a few ids, for
//! which one document is the simplest; only where the ledger asks on SQLite, in every batch, do they go as values too, unless there
//! are more than one text has places for.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{LazyLock, Mutex, OnceLock},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    FromRow, Postgres, Sqlite,
    postgres::{PgArguments, PgRow},
    query::Query,
    sqlite::SqliteRow,
};
use uuid::Uuid;

use super::{
    Error, Result, Tx,
    local::{Asked, Local},
    row::{Value, Values, values},
    tx::Inner,
};

/// Columns of `{rows}`, by name.
pub(super) type Columns = &'static [(&'static str, Kind)];

/// Rows of one statement on SQLite at most, as a power of two: 256 rows of 14 columns are a tenth of the values that it takes.
const MOST_ROWS_LOG: usize = 8;
const MOST_ROWS: usize = 1 << MOST_ROWS_LOG;

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
    columns: Columns,
    postgres: &'static str,
    /// With an array for each column.
    postgres_write: &'static str,
    sqlite: &'static str,
    /// With a list of values, by the logarithm of its length; made when first used.
    sqlite_values: [OnceLock<&'static str>; MOST_ROWS_LOG + 1],
    sqlite_text: String,
}

/// A statement that is rendered when it is first used.
pub(super) type LazySql = LazyLock<Sql>;

impl Sql {
    /// One text for both.
    pub(super) fn new(text: &str, columns: Columns) -> Self {
        Self::dialects(text, text, columns)
    }

    /// Where the dialects differ (LATERAL on one, correlated IN on the other).
    pub(super) fn dialects(postgres: &str, sqlite: &str, columns: Columns) -> Self {
        let sqlite = &rows_first(sqlite);
        Self {
            columns,
            postgres: leak(postgres.replace("{rows}", &postgres_rows(columns))),
            postgres_write: leak(postgres.replace("{rows}", &postgres_arrays(columns))),
            sqlite: leak(numbered(&sqlite.replace("{rows}", &sqlite_rows(columns)))),
            sqlite_values: Default::default(),
            sqlite_text: all_or_nothing(sqlite),
        }
    }

    /// The text for at least so many rows as values, and for how many values it has places. A limit has the place after these.
    fn sqlite_values(&self, rows: usize) -> (&'static str, usize) {
        let rows = rows.next_power_of_two().min(MOST_ROWS);
        let places = rows * self.columns.len();
        let text = self.sqlite_values[rows.trailing_zeros() as usize].get_or_init(|| {
            let text = self.sqlite_text.replace("$2", &format!("?{}", places + 1));
            leak(text.replace("{rows}", &sqlite_values(self.columns, rows)))
        });
        (text, places)
    }
}

/// A statement of many rows that fails takes its transaction along: to undo it alone SQLite would copy every page before it is
/// written, which was 5 % of what the ledger does under load. (What an upsert updates is undone alone all the same.)
fn all_or_nothing(text: &str) -> String {
    for verb in ["INSERT", "UPDATE"] {
        if let Some(rest) = text.strip_prefix(verb) {
            return format!("{verb} OR ROLLBACK{rest}");
        }
    }
    text.to_owned()
}

/// What is asked for comes first, and its index finds the rest of each: of several rows SQLite would read whole tables and look each
/// row up in what is asked for. Postgres is told not to (`Store::open`).
fn rows_first(text: &str) -> String {
    let joined = |part: &str| match part.trim_start().strip_prefix("JOIN") {
        Some(rest) => format!(" CROSS JOIN{rest}"),
        None => part.to_owned(),
    };
    text.split("{rows}").map(joined).collect::<Vec<_>>().join("{rows}")
}

/// SQLite numbers what is written `?1`; `$1` it would take for a name.
fn numbered(text: &str) -> String {
    text.replace("$1", "?1").replace("$2", "?2")
}

/// Leaks a text, on purpose: there is a fixed number of statements, each rendered once, and the drivers cache prepared
/// statements by their text.
fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn postgres_rows(columns: Columns) -> String {
    let (mut select, mut types) = (String::new(), String::new());
    for (i, (name, kind)) in columns.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let (ty, expression) = postgres_column(name, *kind);
        let _ = write!(select, "{comma}{expression} AS {name}");
        let _ = write!(types, "{comma}{name} {ty}");
    }
    format!("(SELECT {select} FROM json_to_recordset($1::json) AS r({types})) AS rows")
}

fn postgres_arrays(columns: Columns) -> String {
    let (mut select, mut arrays, mut names) = (String::new(), String::new(), String::new());
    for (i, (name, kind)) in columns.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let (ty, expression) = match kind {
            // A document is bound as its text.
            Kind::Json => ("text", format!("r.{name}::json")),
            kind => postgres_column(name, *kind),
        };
        let _ = write!(select, "{comma}{expression} AS {name}");
        let _ = write!(arrays, "{comma}${}::{ty}[]", i + 1);
        let _ = write!(names, "{comma}{name}");
    }
    format!("(SELECT {select} FROM unnest({arrays}) AS r({names})) AS rows")
}

/// The type that a column comes in, and what makes its value.
fn postgres_column(name: &str, kind: Kind) -> (&'static str, String) {
    match kind {
        Kind::Uuid => ("uuid", format!("r.{name}")),
        Kind::Text => ("text", format!("r.{name}")),
        Kind::Int => ("integer", format!("r.{name}")),
        Kind::Big => ("bigint", format!("r.{name}")),
        Kind::Bool => ("boolean", format!("r.{name}")),
        Kind::Time => ("bigint", format!("timestamptz 'epoch' + r.{name} * interval '1 microsecond'")),
        Kind::Json => ("jsonb", format!("r.{name}")),
    }
}

fn sqlite_rows(columns: Columns) -> String {
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

/// Rows whose first column is nothing are those that fill up: each of several rows has a key there, or a time. One alone may have
/// nothing there.
fn sqlite_values(columns: Columns, rows: usize) -> String {
    let mut select = String::new();
    for (i, (name, _)) in columns.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let _ = write!(select, "{comma}column{} AS {name}", i + 1);
    }
    let row = |row: usize| {
        let places = (1..=columns.len()).map(|column| format!("?{}", row * columns.len() + column));
        format!("({})", places.collect::<Vec<_>>().join(", "))
    };
    let values = (0..rows).map(row).collect::<Vec<_>>().join(", ");
    let filled = if rows == 1 { "" } else { " WHERE column1 IS NOT NULL" };
    format!("(SELECT {select} FROM (VALUES {values}){filled}) AS rows")
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

/// A row type that all drivers can read.
pub(super) trait Row:
    for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + DeserializeOwned + Send + Unpin + 'static
{
}

impl<T> Row for T where
    T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + DeserializeOwned + Send + Unpin + 'static
{
}

/// Expands a body for both of sqlx's drivers, with `tx` bound to the native transaction; what writes to SQLite reads by itself.
macro_rules! on {
    ($self:expr, $sql:expr, |$local:ident| $read:expr, |$tx:ident, $text:ident| $body:expr) => {{
        $self.settle().await?;
        match &mut $self.inner {
            Inner::Postgres($tx) => {
                let $text = $sql.postgres;
                in_time(async { Ok($body) }).await
            }
            Inner::Sqlite($tx) => {
                let $text = $sql.sqlite;
                Ok($body)
            }
            Inner::Local($local) => $read,
        }
    }};
}

/// What reads does not write: a mistake of whoever asks.
fn reads_only() -> Error {
    Error::Statement { source: sqlx::Error::Protocol("a statement went to the wrong connection".to_owned()) }
}

/// Rows that are written in one round trip with what follows.
#[derive(Debug)]
pub(super) struct Later {
    sql: &'static Sql,
    values: Values,
}

/// The texts of statements that were put together, by the texts of their parts. There are few: batches are of a few kinds.
static TOGETHER: Mutex<BTreeMap<Vec<usize>, &'static str>> = Mutex::new(BTreeMap::new());

impl Tx {
    /// Rows that come of rows.
    pub(super) async fn fetch<R: Row, T: Serialize>(&mut self, sql: &Sql, rows: &[T]) -> Result<Vec<R>> {
        on!(self, sql, |tx| local(tx, sql, rows, None), |tx, text| {
            sqlx::query_as(text).bind(encode(rows)?).fetch_all(&mut **tx).await?
        })
    }

    /// Rows that come of rows, at most so many (`$2`).
    pub(super) async fn fetch_some<R: Row, T: Serialize>(
        &mut self,
        sql: &Sql,
        rows: &[T],
        limit: i64,
    ) -> Result<Vec<R>> {
        on!(self, sql, |tx| local(tx, sql, rows, Some(limit)), |tx, text| {
            sqlx::query_as(text).bind(encode(rows)?).bind(limit).fetch_all(&mut **tx).await?
        })
    }

    /// Rows of a statement without arguments.
    pub(super) async fn fetch_plain<R: Row>(&mut self, sql: &Sql) -> Result<Vec<R>> {
        on!(self, sql, |tx| tx.fetch(sql.sqlite, Asked::Nothing, None), |tx, text| {
            sqlx::query_as(text).fetch_all(&mut **tx).await?
        })
    }

    /// From here on what is put by [`Self::put`] may be written together with what follows, on Postgres, where each statement
    /// costs a round trip. Nothing that is put so may depend on, or be the same row as, what was put before it.
    pub fn gather(&mut self) {
        if matches!(self.inner, Inner::Postgres(_)) {
            self.later.get_or_insert_default();
        }
    }

    /// Writes what has been gathered.
    pub(super) async fn settle(&mut self) -> Result<()> {
        let Some(later) = self.later.as_mut().map(std::mem::take).filter(|later| !later.is_empty()) else {
            return Ok(());
        };
        let (Inner::Postgres(tx), Some((last, before))) = (&mut self.inner, later.split_last()) else { return Ok(()) };
        let query = together(before, last.sql, &last.values);
        in_time(async { Ok(query.execute(&mut **tx).await?) }).await?;
        Ok(())
    }

    /// Writes rows, now or, while it gathers, together with what follows.
    pub(super) async fn put<T: Serialize>(&mut self, sql: &'static Sql, rows: &[T]) -> Result<()> {
        match &mut self.later {
            Some(_) if rows.is_empty() => {}
            Some(later) => {
                let values = values(rows, sql.columns).map_err(|source| Error::Encode { source })?;
                later.push(Later { sql, values });
            }
            None => _ = self.execute(sql, rows).await?,
        }
        Ok(())
    }

    /// Changes made of rows. Answers how many there were; does nothing without rows.
    pub(super) async fn execute<T: Serialize>(&mut self, sql: &Sql, rows: &[T]) -> Result<u64> {
        let mut changed = 0;
        self.settle().await?;
        for rows in rows.chunks(self.most_rows()) {
            let values = values(rows, sql.columns).map_err(|source| Error::Encode { source })?;
            changed += match &mut self.inner {
                Inner::Postgres(tx) => {
                    let query = bind_arrays(sqlx::query(sql.postgres_write), sql.columns, &values);
                    in_time(async { Ok(query.execute(&mut **tx).await?.rows_affected()) }).await?
                }
                Inner::Local(tx) => {
                    let (text, places) = sql.sqlite_values(rows.len());
                    tx.execute(text, &values, places)?
                }
                Inner::Sqlite(_) => return Err(reads_only()),
            };
        }
        Ok(changed)
    }

    /// Writes rows to a table that numbers them, together with what has been gathered. Answers the last number. On Postgres the
    /// statement gives the numbers back; on SQLite, where that would make another table of them, the connection knows the last.
    pub(super) async fn append<T: Serialize>(&mut self, sql: &'static Sql, rows: &[T]) -> Result<Option<i64>> {
        if rows.is_empty() {
            return Ok(None);
        }
        let mut last = None;
        let later = self.later.as_mut().map(std::mem::take).unwrap_or_default();
        for rows in rows.chunks(self.most_rows()) {
            let values = values(rows, sql.columns).map_err(|source| Error::Encode { source })?;
            match &mut self.inner {
                Inner::Postgres(tx) => {
                    let query = together(&later, sql, &values);
                    for row in in_time(async { Ok(query.fetch_all(&mut **tx).await?) }).await? {
                        last = last.max(Some(<(i64,)>::from_row(&row)?.0));
                    }
                }
                Inner::Local(tx) => {
                    let (text, places) = sql.sqlite_values(rows.len());
                    tx.execute(text, &values, places)?;
                    last = Some(tx.last_number()?);
                }
                Inner::Sqlite(_) => return Err(reads_only()),
            }
        }
        Ok(last)
    }

    /// Rows that one statement writes at most.
    fn most_rows(&self) -> usize {
        match &self.inner {
            Inner::Postgres(_) => usize::MAX,
            Inner::Sqlite(_) | Inner::Local(_) => MOST_ROWS,
        }
    }
}

/// Rows that come of rows, on the connection that writes: as values where there is a text for so many.
fn local<R: DeserializeOwned, T: Serialize>(
    tx: &mut Local,
    sql: &Sql,
    rows: &[T],
    limit: Option<i64>,
) -> Result<Vec<R>> {
    if !(1..=MOST_ROWS).contains(&rows.len()) {
        return tx.fetch(sql.sqlite, Asked::Document(&encode(rows)?), limit);
    }
    let values = values(rows, sql.columns).map_err(|source| Error::Encode { source })?;
    let (text, places) = sql.sqlite_values(rows.len());
    tx.fetch(text, Asked::Values(&values, places), limit)
}

/// One statement that writes all of these, and ends as the last of them does.
fn together<'q>(before: &'q [Later], last: &'static Sql, last_values: &'q Values) -> Query<'q, Postgres, PgArguments> {
    let parts = || before.iter().map(|later| later.sql).chain([last]);
    let text = match before {
        [] => last.postgres_write,
        _ => {
            // A statement's text is leaked once, so its place tells which it is.
            let key = parts().map(|sql| sql.postgres_write.as_ptr() as usize).collect();
            let mut known = TOGETHER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *known.entry(key).or_insert_with(|| leak(joined(parts())))
        }
    };
    let mut query = sqlx::query(text);
    for later in before {
        query = bind_arrays(query, later.sql.columns, &later.values);
    }
    bind_arrays(query, last.columns, last_values)
}

/// The parts but the last as common table expressions, their arguments numbered on.
fn joined(parts: impl Iterator<Item = &'static Sql>) -> String {
    let (mut texts, mut first) = (Vec::new(), 0);
    for part in parts {
        // From the highest down, so that none is renumbered twice.
        let renumber = |text: String, n: usize| text.replace(&format!("${n}::"), &format!("${}::", n + first));
        texts.push((1..=part.columns.len()).rev().fold(part.postgres_write.to_owned(), renumber));
        first += part.columns.len();
    }
    let last = texts.pop().unwrap_or_default();
    let with: Vec<_> = texts.iter().enumerate().map(|(n, text)| format!("w{n} AS ({text})")).collect();
    format!("WITH {} {last}", with.join(", "))
}

/// Binds an array for each column.
fn bind_arrays<'q>(
    mut query: Query<'q, Postgres, PgArguments>,
    columns: Columns,
    values: &Values,
) -> Query<'q, Postgres, PgArguments> {
    for (place, (_, kind)) in columns.iter().enumerate() {
        let column = values.skip(place).step_by(columns.len());
        query = match kind {
            Kind::Uuid => query.bind(column.map(Value::uuid).collect::<Vec<Option<Uuid>>>()),
            Kind::Text | Kind::Json => query.bind(column.map(Value::text).collect::<Vec<Option<&str>>>()),
            Kind::Int => {
                let column = column.map(|value| value.int().and_then(|int| i32::try_from(int).ok()));
                query.bind(column.collect::<Vec<Option<i32>>>())
            }
            Kind::Big | Kind::Time => query.bind(column.map(Value::int).collect::<Vec<Option<i64>>>()),
            Kind::Bool => query.bind(column.map(Value::bool).collect::<Vec<Option<bool>>>()),
        };
    }
    query
}

fn encode<T: Serialize>(rows: &[T]) -> Result<String> {
    serde_json::to_string(rows).map_err(|source| Error::Encode { source })
}

// Named so that the transaction in `tx` stays readable.
pub(super) type SqliteTx = sqlx::Transaction<'static, Sqlite>;

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, params_from_iter, types};

    use super::*;

    const PAIR: Columns = &[("id", Kind::Uuid), ("most", Kind::Int)];

    #[derive(Serialize)]
    struct Pair {
        id: Option<Uuid>,
        most: i64,
    }

    fn native(value: Value<&str>) -> types::Value {
        match value {
            Value::Uuid(id) => types::Value::Blob(id.as_bytes().to_vec()),
            value => value.int().map_or(types::Value::Null, types::Value::Integer),
        }
    }

    /// However many rows are asked for, none is lost and none is made up, and the table is not read from end to end.
    #[test]
    fn what_is_asked_for_comes_first() {
        let database = Connection::open_in_memory().unwrap();
        let text = "CREATE TABLE things (of blob, live integer); CREATE INDEX things_of ON things (of) WHERE live";
        database.execute_batch(text).unwrap();
        for id in 0..1_000 {
            let of = Uuid::from_u128(id);
            database.execute("INSERT INTO things VALUES (?1, true)", [&of.as_bytes()[..]]).unwrap();
        }
        let sql = Sql::new("SELECT t.of FROM {rows}\n    JOIN things t ON t.of = rows.id WHERE t.live LIMIT $2", PAIR);
        for count in [1, 2, 3, 5, 200] {
            let rows: Vec<Pair> = (0..count).map(|id| Pair { id: Some(Uuid::from_u128(id)), most: 5 }).collect();
            let (text, places) = sql.sqlite_values(rows.len());
            let values = values(&rows, PAIR).unwrap();
            let mut bound: Vec<types::Value> = values.skip(0).map(native).collect();
            bound.resize(places, types::Value::Null);
            bound.push(types::Value::Integer(500));
            let column = |text: &str, column: usize| -> Vec<types::Value> {
                let mut statement = database.prepare(text).unwrap();
                let rows = statement.query_map(params_from_iter(&bound), |row| row.get(column)).unwrap();
                rows.map(Result::unwrap).collect()
            };
            assert_eq!(column(text, 0).len(), rows.len());
            let plan = format!("{:?}", column(&format!("EXPLAIN QUERY PLAN {text}"), 3));
            assert!(plan.contains("SEARCH t USING INDEX things_of (of=?)"), "{count}: {plan}");
        }
    }

    /// One row may have nothing in its first column.
    #[test]
    fn one_row_may_have_no_key() {
        let database = Connection::open_in_memory().unwrap();
        let sql = Sql::new("SELECT rows.most FROM {rows} WHERE rows.id IS NULL", PAIR);
        let most: i64 = database.query_row(sql.sqlite_values(1).0, (None::<i64>, 7), |row| row.get(0)).unwrap();
        assert_eq!(most, 7);
    }
}

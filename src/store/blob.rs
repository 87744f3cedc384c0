//! Blobs: what stands in the object store. A row is written after its blob is durable and deleted before it, so a row never
//! names what is not there; what no row names is a stray.

use serde::Serialize;
use uuid::Uuid;

use super::{
    Result, Tx,
    attempt::{NOW, Now},
    contract::{ID, ids},
    sql::{Kind, LazySql, Sql},
};
use crate::domain::{AttemptId, OwnerId, Timestamp};

/// One blob: a piece of something that an attempt made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blob {
    /// Its name in the object store.
    pub name: String,
    /// Whose it is.
    pub owner: OwnerId,
    /// The attempt that made it.
    pub attempt: AttemptId,
    /// What it is a piece of.
    pub kind: BlobKind,
    /// Offset of its first byte.
    pub start: i64,
    /// Bytes.
    pub length: i64,
    /// Bytes before it are missing.
    pub gap: bool,
    /// Nothing follows.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// When it was made.
    pub created: Timestamp,
}

impl Blob {
    /// Offset after its last byte.
    pub fn end(&self) -> i64 {
        self.start + self.length
    }
}

/// What a blob is a piece of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobKind {
    /// The agent's output.
    Output,
    /// A checkpoint; the whole of it.
    Checkpoint,
    /// The pack of a result; the whole of it.
    Result,
}

impl BlobKind {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Checkpoint => "checkpoint",
            Self::Result => "result",
        }
    }

    /// The kind of that word; what this version does not write is nothing it reads.
    fn of(word: &str) -> Self {
        match word {
            "checkpoint" => Self::Checkpoint,
            "result" => Self::Result,
            _ => Self::Output,
        }
    }
}

#[derive(sqlx::FromRow, serde::Deserialize)]
struct BlobRow {
    name: String,
    owner: Uuid,
    attempt: Uuid,
    kind: String,
    start: i64,
    length: i64,
    gap: bool,
    #[sqlx(rename = "final")]
    #[serde(rename = "final")]
    is_final: bool,
    created: Timestamp,
}

impl From<BlobRow> for Blob {
    fn from(row: BlobRow) -> Self {
        Self {
            name: row.name,
            owner: OwnerId(row.owner),
            attempt: AttemptId(row.attempt),
            kind: BlobKind::of(&row.kind),
            start: row.start,
            length: row.length,
            gap: row.gap,
            is_final: row.is_final,
            created: row.created,
        }
    }
}

#[derive(Serialize)]
struct Name<'a> {
    name: &'a str,
}

const NAME: &[(&str, Kind)] = &[("name", Kind::Text)];

const BLOB: &str = "b.name, b.owner, b.attempt, b.kind, b.start, b.length, b.gap, b.final, b.created";

impl Tx {
    /// Writes rows of blobs that are durable. A name that has a row keeps its place.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn blobs_put(&mut self, blobs: &[Blob]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO blobs (name, owner, attempt, kind, start, length, gap, final, created)
                 SELECT name, owner, attempt, kind, start, length, gap, final, created FROM {rows} WHERE true
                 ON CONFLICT (name) DO UPDATE SET gap = excluded.gap, final = excluded.final",
                &[
                    ("name", Kind::Text),
                    ("owner", Kind::Uuid),
                    ("attempt", Kind::Uuid),
                    ("kind", Kind::Text),
                    ("start", Kind::Big),
                    ("length", Kind::Big),
                    ("gap", Kind::Bool),
                    ("final", Kind::Bool),
                    ("created", Kind::Time),
                ],
            )
        });
        self.execute(&SQL, blobs).await?;
        Ok(())
    }

    /// Forgets blobs, which may then be deleted.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn blobs_delete(&mut self, names: &[String]) -> Result<()> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new("DELETE FROM blobs WHERE name IN (SELECT rows.name FROM {rows})", NAME));
        let rows: Vec<_> = names.iter().map(|name| Name { name }).collect();
        self.execute(&SQL, &rows).await?;
        Ok(())
    }

    /// The output of an attempt, in order.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn blobs_of_output(&mut self, attempt: AttemptId) -> Result<Vec<Blob>> {
        static SQL: LazySql = LazySql::new(|| {
            let text = format!(
                "SELECT {BLOB} FROM {{rows}} JOIN blobs b ON b.attempt = rows.id
                 WHERE b.kind = 'output' ORDER BY b.start"
            );
            Sql::new(&text, ID)
        });
        let rows: Vec<BlobRow> = self.fetch(&SQL, &ids(&[attempt])).await?;
        Ok(rows.into_iter().map(Blob::from).collect())
    }

    /// The offset after the last byte of output that is kept of each of these attempts; those without are absent.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn blobs_ends(&mut self, attempts: &[AttemptId]) -> Result<Vec<(AttemptId, i64)>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT b.attempt, max(b.start + b.length) FROM {rows} JOIN blobs b ON b.attempt = rows.id
                 WHERE b.kind = 'output' GROUP BY b.attempt",
                ID,
            )
        });
        if attempts.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<(Uuid, i64)> = self.fetch(&SQL, &ids(attempts)).await?;
        Ok(rows.into_iter().map(|(attempt, end)| (AttemptId(attempt), end)).collect())
    }

    /// The blob of this name.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn blob_fetch(&mut self, name: &str) -> Result<Option<Blob>> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new(&format!("SELECT {BLOB} FROM {{rows}} JOIN blobs b ON b.name = rows.name"), NAME));
        let rows: Vec<BlobRow> = self.fetch(&SQL, &[Name { name }]).await?;
        Ok(rows.into_iter().next().map(Blob::from))
    }

    /// Names of the results' packs that are kept of these attempts.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn blobs_of_results(&mut self, attempts: &[AttemptId]) -> Result<Vec<String>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new("SELECT b.name FROM {rows} JOIN blobs b ON b.attempt = rows.id WHERE b.kind = 'result'", ID)
        });
        if attempts.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<(String,)> = self.fetch(&SQL, &ids(attempts)).await?;
        Ok(rows.into_iter().map(|(name,)| name).collect())
    }

    /// Of these names, those that a row has.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn blobs_known(&mut self, names: &[String]) -> Result<Vec<String>> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new("SELECT b.name FROM {rows} JOIN blobs b ON b.name = rows.name", NAME));
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<_> = names.iter().map(|name| Name { name }).collect();
        let rows: Vec<(String,)> = self.fetch(&SQL, &rows).await?;
        Ok(rows.into_iter().map(|(name,)| name).collect())
    }

    /// Output made before a time, oldest first.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn blobs_expired(&mut self, before: Timestamp, limit: i64) -> Result<Vec<Blob>> {
        static SQL: LazySql = LazySql::new(|| {
            let text = format!(
                "SELECT {BLOB} FROM blobs b WHERE b.kind = 'output' AND b.created < (SELECT rows.now FROM {{rows}}) ORDER BY b.created LIMIT $2"
            );
            Sql::new(&text, NOW)
        });
        let rows: Vec<BlobRow> = self.fetch_some(&SQL, &[Now { now: before }], limit).await?;
        Ok(rows.into_iter().map(Blob::from).collect())
    }
}

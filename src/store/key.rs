//! Owners, keys, request ids, batches, and the server's few facts about itself.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Error, Result, Tx,
    contract::{Doc, ID, ids},
    sql::{Kind, LazySql, Sql},
};
use crate::domain::{
    BatchId, ContractId, KeyId, OwnerId, TaskId, Timestamp,
    key::{Key, KeyKind},
    text::{hex, unhex},
};

#[derive(Serialize)]
struct KeyRow<'a> {
    id: KeyId,
    hash: String,
    kind: &'a str,
    owner: Option<OwnerId>,
    label: &'a str,
    created: Timestamp,
    revoked: Option<Timestamp>,
}

#[derive(sqlx::FromRow, serde::Deserialize)]
struct KeyDoc {
    id: Uuid,
    hash: String,
    kind: String,
    owner: Option<Uuid>,
    owner_name: Option<String>,
    label: String,
    created: Timestamp,
    revoked: Option<Timestamp>,
}

impl TryFrom<KeyDoc> for Key {
    type Error = Error;

    fn try_from(row: KeyDoc) -> Result<Self> {
        let corrupt =
            |what: &str| Error::Corrupt { source: sqlx::Error::Decode(format!("keys.{what} {}", row.id).into()) };
        let kind = match row.kind.as_str() {
            "admin" => KeyKind::Admin,
            "owner" => KeyKind::Owner,
            "daemon" => KeyKind::Daemon,
            _ => return Err(corrupt("kind")),
        };
        Ok(Self {
            id: KeyId(row.id),
            kind,
            owner: row.owner.map(OwnerId),
            hash: unhex(&row.hash).and_then(|hash| hash.try_into().ok()).ok_or_else(|| corrupt("hash"))?,
            owner_name: row.owner_name.unwrap_or_default(),
            label: row.label,
            created: row.created,
            revoked: row.revoked,
        })
    }
}

/// What is remembered of a request id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Whose it is.
    pub owner: OwnerId,
    /// The client's id.
    pub id: String,
    /// Hash of the body, in hex.
    pub hash: String,
    /// When it was first used.
    pub created: Timestamp,
    /// The contract it made or changed.
    pub contract: Option<ContractId>,
    /// The tasks it made or changed.
    pub tasks: Vec<TaskId>,
    /// A daemon it changed.
    pub daemon: Option<crate::domain::DaemonId>,
}

#[derive(Serialize)]
struct RequestRow<'a> {
    owner: OwnerId,
    id: &'a str,
    created: Timestamp,
    doc: Option<&'a Remembered>,
}

const REQUEST: &[(&str, Kind)] =
    &[("owner", Kind::Uuid), ("id", Kind::Text), ("created", Kind::Time), ("doc", Kind::Json)];

#[derive(Serialize)]
struct Pair<'a> {
    key: &'a str,
    value: &'a str,
}

const PAIR: &[(&str, Kind)] = &[("key", Kind::Text), ("value", Kind::Text)];

#[derive(Serialize)]
struct Owner<'a> {
    id: Option<OwnerId>,
    name: &'a str,
    created: Timestamp,
}

const OWNER: &[(&str, Kind)] = &[("id", Kind::Uuid), ("name", Kind::Text), ("created", Kind::Time)];

#[derive(Serialize)]
struct Batch {
    id: BatchId,
    at: Timestamp,
}

const KEY: &str = "SELECT k.id, k.hash, k.kind, k.owner, o.name AS owner_name, k.label, k.created, k.revoked";

impl Tx {
    /// Writes keys, new or revoked.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn keys_put(&mut self, keys: &[Key]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO keys (id, hash, kind, owner, label, created, revoked)
                 SELECT id, hash, kind, owner, label, created, revoked FROM {rows} WHERE true
                 ON CONFLICT (id) DO UPDATE SET revoked = excluded.revoked",
                &[
                    ("id", Kind::Uuid),
                    ("hash", Kind::Text),
                    ("kind", Kind::Text),
                    ("owner", Kind::Uuid),
                    ("label", Kind::Text),
                    ("created", Kind::Time),
                    ("revoked", Kind::Time),
                ],
            )
        });
        let rows: Vec<_> = keys
            .iter()
            .map(|key| KeyRow {
                id: key.id,
                hash: hex(&key.hash),
                kind: key.kind.word(),
                owner: key.owner,
                label: &key.label,
                created: key.created,
                revoked: key.revoked,
            })
            .collect();
        self.put(&SQL, &rows).await
    }

    /// The key with this SHA-256, revoked or not.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn key_by_hash(&mut self, hash: &[u8; 32]) -> Result<Option<Key>> {
        static SQL: LazySql = LazySql::new(|| {
            let text =
                format!("{KEY} FROM {{rows}} JOIN keys k ON k.hash = rows.name LEFT JOIN owners o ON o.id = k.owner");
            Sql::new(&text, OWNER)
        });
        let rows: Vec<KeyDoc> =
            self.fetch(&SQL, &[Owner { id: None, name: &hex(hash), created: Timestamp(0) }]).await?;
        rows.into_iter().next().map(Key::try_from).transpose()
    }

    /// The key with this id.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn key_fetch(&mut self, key: KeyId) -> Result<Option<Key>> {
        static SQL: LazySql = LazySql::new(|| {
            let text =
                format!("{KEY} FROM {{rows}} JOIN keys k ON k.id = rows.id LEFT JOIN owners o ON o.id = k.owner");
            Sql::new(&text, ID)
        });
        let rows: Vec<KeyDoc> = self.fetch(&SQL, &ids(&[key])).await?;
        rows.into_iter().next().map(Key::try_from).transpose()
    }

    /// A page of keys, newest first, before `before`.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn keys_list(&mut self, revoked: bool, before: Option<KeyId>, limit: i64) -> Result<Vec<Key>> {
        #[derive(Serialize)]
        struct Page {
            before: Option<KeyId>,
            revoked: bool,
        }
        static SQL: LazySql = LazySql::new(|| {
            let text = format!(
                "{KEY} FROM keys k LEFT JOIN owners o ON o.id = k.owner
                 WHERE ((SELECT rows.before FROM {{rows}}) IS NULL OR k.id < (SELECT rows.before FROM {{rows}}))
                     AND ((SELECT rows.revoked FROM {{rows}}) OR k.revoked IS NULL)
                 ORDER BY k.id DESC LIMIT $2"
            );
            Sql::new(&text, &[("before", Kind::Uuid), ("revoked", Kind::Bool)])
        });
        let rows: Vec<KeyDoc> = self.fetch_some(&SQL, &[Page { before, revoked }], limit).await?;
        rows.into_iter().map(Key::try_from).collect()
    }

    /// The owner of this name.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn owner_named(&mut self, name: &str) -> Result<Option<OwnerId>> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new("SELECT o.id FROM {rows} JOIN owners o ON o.name = rows.name", OWNER));
        let rows: Vec<(Uuid,)> = self.fetch(&SQL, &[Owner { id: None, name, created: Timestamp(0) }]).await?;
        Ok(rows.into_iter().next().map(|(id,)| OwnerId(id)))
    }

    /// The name of this owner.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn owner_name(&mut self, owner: OwnerId) -> Result<Option<String>> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new("SELECT o.name FROM {rows} JOIN owners o ON o.id = rows.id", ID));
        let rows: Vec<(String,)> = self.fetch(&SQL, &ids(&[owner])).await?;
        Ok(rows.into_iter().next().map(|(name,)| name))
    }

    /// Writes a new owner.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn owner_insert(&mut self, owner: OwnerId, name: &str, created: Timestamp) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new("INSERT INTO owners (id, name, created) SELECT id, name, created FROM {rows} WHERE true", OWNER)
        });
        self.execute(&SQL, &[Owner { id: Some(owner), name, created }]).await?;
        Ok(())
    }

    /// What is remembered of these request ids.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn requests_fetch(&mut self, requests: &[(OwnerId, String)]) -> Result<Vec<Remembered>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new("SELECT q.doc FROM {rows} JOIN requests q ON q.owner = rows.owner AND q.id = rows.id", REQUEST)
        });
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<_> = requests
            .iter()
            .map(|(owner, id)| RequestRow { owner: *owner, id, created: Timestamp(0), doc: None })
            .collect();
        let rows: Vec<Doc<Remembered>> = self.fetch(&SQL, &rows).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// Remembers request ids.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn requests_insert(&mut self, requests: &[Remembered]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO requests (owner, id, created, doc) SELECT owner, id, created, doc FROM {rows} WHERE true",
                REQUEST,
            )
        });
        let rows: Vec<_> = requests
            .iter()
            .map(|request| RequestRow {
                owner: request.owner,
                id: &request.id,
                created: request.created,
                doc: Some(request),
            })
            .collect();
        self.put(&SQL, &rows).await
    }

    /// Marks a batch, to be looked up if the answer to its COMMIT is lost.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn batch_insert(&mut self, id: BatchId, at: Timestamp) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO batches (id, at) SELECT id, at FROM {rows} WHERE true",
                &[("id", Kind::Uuid), ("at", Kind::Time)],
            )
        });
        self.put(&SQL, &[Batch { id, at }]).await
    }

    /// The batch was committed.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn batch_exists(&mut self, id: BatchId) -> Result<bool> {
        static SQL: LazySql = LazySql::new(|| Sql::new("SELECT b.id FROM {rows} JOIN batches b ON b.id = rows.id", ID));
        let rows: Vec<(Uuid,)> = self.fetch(&SQL, &ids(&[id])).await?;
        Ok(!rows.is_empty())
    }

    /// A fact the server keeps about itself.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn meta_fetch(&mut self, key: &str) -> Result<Option<String>> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new("SELECT m.value FROM {rows} JOIN meta m ON m.key = rows.key", PAIR));
        let rows: Vec<(String,)> = self.fetch(&SQL, &[Pair { key, value: "" }]).await?;
        Ok(rows.into_iter().next().map(|(value,)| value))
    }

    /// Keeps a fact.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn meta_put(&mut self, key: &str, value: &str) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO meta (key, value) SELECT key, value FROM {rows} WHERE true
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                PAIR,
            )
        });
        self.execute(&SQL, &[Pair { key, value }]).await?;
        Ok(())
    }
}

//! Contracts.

use serde::Serialize;
use sqlx::types::Json;

use super::{
    Result, Tx,
    sql::{Kind, LazySql, Sql},
};
use crate::domain::{
    ContractId, OwnerId, Timestamp,
    contract::{Contract, ContractStatus},
};

#[derive(Serialize)]
struct ContractRow<'a> {
    id: ContractId,
    owner: OwnerId,
    status: ContractStatus,
    anonymous: bool,
    cancelling: bool,
    ended: Option<Timestamp>,
    doc: &'a Contract,
}

#[derive(sqlx::FromRow, serde::Deserialize)]
#[serde(bound = "")]
pub(super) struct Doc<T>
where
    T: serde::de::DeserializeOwned + Send + 'static,
{
    doc: Json<T>,
}

impl<T: serde::de::DeserializeOwned + Send + 'static> Doc<T> {
    pub(super) fn into_inner(self) -> T {
        self.doc.0
    }
}

/// One id.
#[derive(Serialize)]
pub(super) struct Id<T> {
    pub(super) id: T,
}

pub(super) fn ids<T: Copy>(ids: &[T]) -> Vec<Id<T>> {
    ids.iter().map(|id| Id { id: *id }).collect()
}

pub(super) const ID: &[(&str, Kind)] = &[("id", Kind::Uuid)];

/// Where a page of a list begins, and what belongs to it.
#[derive(Serialize)]
struct Page<'a> {
    owner: OwnerId,
    before: Option<ContractId>,
    statuses: Option<&'a [ContractStatus]>,
    anonymous: bool,
}

impl Tx {
    /// Writes contracts, new or changed.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn contracts_put(&mut self, contracts: &[&Contract]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO contracts (id, owner, status, anonymous, cancelling, ended, doc)
                 SELECT id, owner, status, anonymous, cancelling, ended, doc FROM {rows} WHERE true
                 ON CONFLICT (id) DO UPDATE SET status = excluded.status, cancelling = excluded.cancelling,
                     ended = excluded.ended, doc = excluded.doc",
                &[
                    ("id", Kind::Uuid),
                    ("owner", Kind::Uuid),
                    ("status", Kind::Text),
                    ("anonymous", Kind::Bool),
                    ("cancelling", Kind::Bool),
                    ("ended", Kind::Time),
                    ("doc", Kind::Json),
                ],
            )
        });
        let rows: Vec<_> = contracts
            .iter()
            .map(|contract| ContractRow {
                id: contract.id,
                owner: contract.owner,
                status: contract.status(),
                anonymous: contract.anonymous,
                cancelling: contract.cancelled.is_some() && contract.counts.unfinished() > 0,
                ended: contract.ended,
                doc: contract,
            })
            .collect();
        self.put(&SQL, &rows).await
    }

    /// Contracts by id; those that do not exist are absent.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn contracts_fetch(&mut self, contracts: &[ContractId]) -> Result<Vec<Contract>> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new("SELECT doc FROM contracts WHERE id IN (SELECT rows.id FROM {rows})", ID));
        if contracts.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<Doc<Contract>> = self.fetch(&SQL, &ids(contracts)).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// One contract of an owner.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn contract_fetch(&mut self, owner: OwnerId, contract: ContractId) -> Result<Option<Contract>> {
        Ok(self.contracts_fetch(&[contract]).await?.pop().filter(|contract| contract.owner == owner))
    }

    /// A page of an owner's contracts, newest first, beginning after `before`. No `statuses` means all.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn contracts_list(
        &mut self,
        owner: OwnerId,
        statuses: &[ContractStatus],
        anonymous: bool,
        before: Option<ContractId>,
        limit: i64,
    ) -> Result<Vec<Contract>> {
        static SQL: LazySql = LazySql::new(|| {
            let text = |member: &str| {
                format!(
                    "SELECT c.doc FROM {{rows}} JOIN contracts c ON c.owner = rows.owner
                     WHERE (rows.before IS NULL OR c.id < rows.before)
                       AND (rows.anonymous OR NOT c.anonymous)
                       AND (rows.statuses IS NULL OR c.status IN ({member}))
                     ORDER BY c.id DESC LIMIT $2"
                )
            };
            Sql::dialects(
                &text("SELECT jsonb_array_elements_text(rows.statuses)"),
                &text("SELECT value FROM json_each(rows.statuses)"),
                &[("owner", Kind::Uuid), ("before", Kind::Uuid), ("statuses", Kind::Json), ("anonymous", Kind::Bool)],
            )
        });
        let statuses = (!statuses.is_empty()).then_some(statuses);
        let rows: Vec<Doc<Contract>> =
            self.fetch_some(&SQL, &[Page { owner, before, statuses, anonymous }], limit).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// Contracts that are cancelled and still have tasks that are not.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn contracts_cancelling(&mut self, limit: i64) -> Result<Vec<Contract>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT c.doc FROM contracts c WHERE c.cancelling AND (SELECT rows.id FROM {rows}) IS NULL
                 ORDER BY c.id LIMIT $2",
                ID,
            )
        });
        let rows: Vec<Doc<Contract>> = self.fetch_some(&SQL, &[Id::<Option<ContractId>> { id: None }], limit).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }
}

//! Daemons, and the commands they have not answered.

use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use super::{
    Result, Tx,
    contract::{Doc, ID, ids},
    sql::{Kind, LazySql, Sql},
};
use crate::domain::{DaemonId, Epoch, OwnerId, Timestamp, daemon::Daemon, order::Command};

#[derive(Serialize)]
struct DaemonRow<'a> {
    id: DaemonId,
    owner: OwnerId,
    name: &'a str,
    epoch: Epoch,
    attached: bool,
    seen: Timestamp,
    doc: &'a Daemon,
}

#[derive(Serialize)]
struct CommandRow<'a> {
    daemon: DaemonId,
    sequence: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    doc: Option<&'a Command>,
}

const COMMAND: &[(&str, Kind)] = &[("daemon", Kind::Uuid), ("sequence", Kind::Big), ("doc", Kind::Json)];

#[derive(Serialize)]
struct Named<'a> {
    owner: OwnerId,
    name: Option<&'a str>,
}

const NAMED: &[(&str, Kind)] = &[("owner", Kind::Uuid), ("name", Kind::Text)];

const DAEMON: &[(&str, Kind)] = &[
    ("id", Kind::Uuid),
    ("owner", Kind::Uuid),
    ("name", Kind::Text),
    ("epoch", Kind::Big),
    ("attached", Kind::Bool),
    ("seen", Kind::Time),
    ("doc", Kind::Json),
];

fn rows<'a>(daemons: &[&'a Daemon]) -> Vec<DaemonRow<'a>> {
    let row = |daemon: &&'a Daemon| DaemonRow {
        id: daemon.id,
        owner: daemon.owner,
        name: &daemon.card.name,
        epoch: daemon.epoch,
        attached: daemon.attached,
        seen: daemon.last_seen,
        doc: daemon,
    };
    daemons.iter().map(row).collect()
}

impl Tx {
    /// Writes daemons, new or changed.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn daemons_put(&mut self, daemons: &[&Daemon]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO daemons (id, owner, name, epoch, attached, seen, doc)
                 SELECT id, owner, name, epoch, attached, seen, doc FROM {rows} WHERE true
                 ON CONFLICT (id) DO UPDATE SET name = excluded.name, epoch = excluded.epoch,
                     attached = excluded.attached, seen = excluded.seen, doc = excluded.doc",
                DAEMON,
            )
        });
        self.put(&SQL, &rows(daemons)).await
    }

    /// Writes changed daemons whose names are what they were: that is in an index.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn daemons_update(&mut self, daemons: &[&Daemon]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "UPDATE daemons SET epoch = rows.epoch, attached = rows.attached, seen = rows.seen, doc = rows.doc
                 FROM {rows} WHERE daemons.id = rows.id",
                DAEMON,
            )
        });
        self.put(&SQL, &rows(daemons)).await
    }

    /// Daemons by id; those that do not exist are absent.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn daemons_fetch(&mut self, daemons: &[DaemonId]) -> Result<Vec<Daemon>> {
        static SQL: LazySql =
            LazySql::new(|| Sql::new("SELECT doc FROM daemons WHERE id IN (SELECT rows.id FROM {rows})", ID));
        if daemons.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<Doc<Daemon>> = self.fetch(&SQL, &ids(daemons)).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// The daemon of an owner that has this name.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn daemon_named(&mut self, owner: OwnerId, name: &str) -> Result<Option<Daemon>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new("SELECT d.doc FROM {rows} JOIN daemons d ON d.owner = rows.owner AND d.name = rows.name", NAMED)
        });
        let rows: Vec<Doc<Daemon>> = self.fetch(&SQL, &[Named { owner, name: Some(name) }]).await?;
        Ok(rows.into_iter().next().map(Doc::into_inner))
    }

    /// A page of an owner's daemons, by name, after `after`.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn daemons_list(&mut self, owner: OwnerId, after: Option<&str>, limit: i64) -> Result<Vec<Daemon>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT d.doc FROM {rows} JOIN daemons d ON d.owner = rows.owner
                 WHERE rows.name IS NULL OR d.name > rows.name ORDER BY d.name LIMIT $2",
                NAMED,
            )
        });
        let rows: Vec<Doc<Daemon>> = self.fetch_some(&SQL, &[Named { owner, name: after }], limit).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// All daemons that have not been declared lost since they last attached.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn daemons_attached(&mut self) -> Result<Vec<Daemon>> {
        static SQL: LazySql = LazySql::new(|| Sql::new("SELECT doc FROM daemons WHERE attached", &[]));
        let rows: Vec<Doc<Daemon>> = self.fetch_plain(&SQL).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }

    /// The current sessions of those: the little that is asked for again and again.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn daemons_sessions(&mut self) -> Result<Vec<(DaemonId, Epoch)>> {
        static SQL: LazySql = LazySql::new(|| Sql::new("SELECT id, epoch FROM daemons WHERE attached", &[]));
        let rows: Vec<(Uuid, i64)> = self.fetch_plain(&SQL).await?;
        Ok(rows.into_iter().map(|(id, epoch)| (DaemonId(id), Epoch(epoch))).collect())
    }

    /// Writes new commands.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn commands_insert(&mut self, commands: &[(DaemonId, Arc<Command>)]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "INSERT INTO commands (daemon, sequence, doc) SELECT daemon, sequence, doc FROM {rows} WHERE true",
                COMMAND,
            )
        });
        let rows: Vec<_> = commands
            .iter()
            .map(|(daemon, command)| CommandRow { daemon: *daemon, sequence: command.sequence, doc: Some(command) })
            .collect();
        self.put(&SQL, &rows).await
    }

    /// Forgets commands that were answered or are no longer wanted.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn commands_delete(&mut self, commands: &[(DaemonId, i64)]) -> Result<()> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "DELETE FROM commands WHERE (daemon, sequence) IN (SELECT rows.daemon, rows.sequence FROM {rows})",
                COMMAND,
            )
        });
        let rows: Vec<_> = commands
            .iter()
            .map(|(daemon, sequence)| CommandRow { daemon: *daemon, sequence: *sequence, doc: None })
            .collect();
        self.put(&SQL, &rows).await
    }

    /// The commands these daemons have not answered, in order.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn commands_of(&mut self, daemons: &[DaemonId]) -> Result<Vec<Command>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new("SELECT c.doc FROM {rows} JOIN commands c ON c.daemon = rows.id ORDER BY c.daemon, c.sequence", ID)
        });
        if daemons.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<Doc<Command>> = self.fetch(&SQL, &ids(daemons)).await?;
        Ok(rows.into_iter().map(Doc::into_inner).collect())
    }
}

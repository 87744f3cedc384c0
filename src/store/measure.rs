//! What is asked to show how the server stands: counts, and the oldest of what waits.
//!
//! What these read is bounded by what is alive (live attempts, unanswered commands, daemons), but for the counts of unfinished
//! tasks, which walk the indexes of those: some hundred milliseconds for a million. Whoever asks keeps the answer for a while.

use std::time::Duration;

use sqlx::types::Json;
use uuid::Uuid;

use super::{
    Result, Tx,
    sql::{LazySql, Sql},
};
use crate::domain::{DaemonId, OwnerId, Timestamp, task::TaskStatus};

/// Commands that no daemon has answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unanswered {
    /// How many.
    pub count: u64,
    /// When the oldest was made.
    pub oldest: Option<Timestamp>,
}

/// A daemon with attempts that have not ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Busy {
    /// The daemon.
    pub daemon: DaemonId,
    /// Whose it is.
    pub owner: OwnerId,
    /// Its name.
    pub name: String,
    /// Its attempts that are not ENDED.
    pub live: u64,
}

fn count(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}

impl Tx {
    /// The commands that no daemon has answered: the rows of their own, of which a daemon's first is its oldest, so that one a daemon
    /// is read; and those to start attempts, which are in these.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn commands_unanswered(&mut self) -> Result<Unanswered> {
        static COUNT: LazySql = LazySql::new(|| Sql::new("SELECT count(*) FROM commands", &[]));
        static OLDEST: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT min(c.doc ->> 'id') AS id
                 FROM (SELECT daemon, min(sequence) AS sequence FROM commands GROUP BY daemon) AS first
                 JOIN commands c ON c.daemon = first.daemon AND c.sequence = first.sequence",
                &[],
            )
        });
        static SPAWNS: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT count(*), min(CAST(doc ->> 'assigned' AS bigint)) FROM attempts
                 WHERE due IS NOT NULL AND coalesce(doc -> 'state' -> 'spawn', doc -> 'state' -> 'was' -> 'spawn') IS NOT NULL",
                &[],
            )
        });
        let counted: Vec<(i64,)> = self.fetch_plain(&COUNT).await?;
        let oldest: Vec<(Option<String>,)> = self.fetch_plain(&OLDEST).await?;
        let spawns: Vec<(i64, Option<i64>)> = self.fetch_plain(&SPAWNS).await?;
        let all = counted.iter().map(|(count,)| count).chain(spawns.iter().map(|(count, _)| count));
        let rows = oldest.into_iter().filter_map(|(id,)| made_at(&id?));
        let since = rows.chain(spawns.iter().filter_map(|(_, since)| since.map(Timestamp)));
        Ok(Unanswered { count: all.map(|counted| count(*counted)).sum(), oldest: since.min() })
    }

    /// Attempts that have not ended, by the word for their state.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_live_states(&mut self) -> Result<Vec<(String, u64)>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT doc -> 'state' ->> 'status' AS status, count(*) FROM attempts WHERE live
                 GROUP BY doc -> 'state' ->> 'status'",
                &[],
            )
        });
        let rows: Vec<(String, i64)> = self.fetch_plain(&SQL).await?;
        Ok(rows.into_iter().map(|(status, counted)| (status, count(counted))).collect())
    }

    /// Since when the work of the running attempt that is worst off is on its daemon's machine only: its last checkpoint, or
    /// its start.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn attempts_unsafe_since(&mut self) -> Result<Option<Timestamp>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT min(CAST(coalesce(doc ->> 'checkpointed', doc ->> 'started') AS bigint)) AS since FROM attempts
                 WHERE live AND doc -> 'state' ->> 'status' = 'running'",
                &[],
            )
        });
        let rows: Vec<(Option<i64>,)> = self.fetch_plain(&SQL).await?;
        Ok(rows.into_iter().next().and_then(|(since,)| since).map(Timestamp))
    }

    /// Daemons that have attempts which have not ended.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn daemons_busy(&mut self) -> Result<Vec<Busy>> {
        static SQL: LazySql = LazySql::new(|| {
            Sql::new(
                "SELECT d.id, d.owner, d.name, count(*) FROM attempts a JOIN daemons d ON d.id = a.daemon WHERE a.live
                 GROUP BY d.id, d.owner, d.name",
                &[],
            )
        });
        let rows: Vec<(Uuid, Uuid, String, i64)> = self.fetch_plain(&SQL).await?;
        let busy =
            |(id, owner, name, live)| Busy { daemon: DaemonId(id), owner: OwnerId(owner), name, live: count(live) };
        Ok(rows.into_iter().map(busy).collect())
    }

    /// How many daemons are known that are not attached.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn daemons_away(&mut self) -> Result<u64> {
        static SQL: LazySql = LazySql::new(|| Sql::new("SELECT count(*) FROM daemons WHERE NOT attached", &[]));
        let rows: Vec<(i64,)> = self.fetch_plain(&SQL).await?;
        Ok(rows.first().map_or(0, |(away,)| count(*away)))
    }

    /// Tasks that are not final, by status, and how many of them the dispatcher may take.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn tasks_unfinished_counts(&mut self) -> Result<(Vec<(TaskStatus, u64)>, u64)> {
        static BY_STATUS: LazySql = LazySql::new(|| {
            Sql::dialects(
                "SELECT to_jsonb(t.status) AS status, count(*) FROM tasks t WHERE NOT t.final GROUP BY t.status",
                "SELECT json_quote(t.status) AS status, count(*) FROM tasks t WHERE NOT t.final GROUP BY t.status",
                &[],
            )
        });
        static READY: LazySql = LazySql::new(|| Sql::new("SELECT count(*) FROM tasks WHERE ready", &[]));
        let rows: Vec<(Json<TaskStatus>, i64)> = self.fetch_plain(&BY_STATUS).await?;
        let ready: Vec<(i64,)> = self.fetch_plain(&READY).await?;
        let by_status = rows.into_iter().map(|(status, counted)| (status.0, count(counted))).collect();
        Ok((by_status, ready.first().map_or(0, |(ready,)| count(*ready))))
    }

    /// All owners, with their names.
    #[tracing::instrument(level = "debug", skip_all)]
    pub async fn owners_list(&mut self) -> Result<Vec<(OwnerId, String)>> {
        static SQL: LazySql = LazySql::new(|| Sql::new("SELECT id, name FROM owners", &[]));
        let rows: Vec<(Uuid, String)> = self.fetch_plain(&SQL).await?;
        Ok(rows.into_iter().map(|(id, name)| (OwnerId(id), name)).collect())
    }
}

/// When a time-ordered id was made, to the millisecond.
fn made_at(id: &str) -> Option<Timestamp> {
    let (seconds, nanos) = Uuid::try_parse(id).ok()?.get_timestamp()?.to_unix();
    Some(Timestamp(0).after(Duration::new(seconds, nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_when_it_was_made() {
        let at = uuid::Timestamp::from_unix(uuid::NoContext, 1_764_000_000, 123_000_000);
        assert_eq!(made_at(&Uuid::new_v7(at).to_string()), Some(Timestamp(1_764_000_000_123_000)));
        assert_eq!(made_at(&Uuid::new_v4().to_string()), None);
        assert_eq!(made_at("no id"), None);
    }
}

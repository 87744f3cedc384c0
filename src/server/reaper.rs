//! What time brings about: silence, deadlines, forgetting.
//!
//! ```text
//!   Heard ──(silent for lost-after)──> ledger: DaemonLost
//!   ledger's next due time ──> ledger: Sweep (waits over, unanswered commands, attempts given up, cancellations)
//!   every hour ──> store: forget what is old enough
//! ```
//!
//! Time in which this server could not hear anybody does not count: not while it was down (the clock of a silence goes on
//! from what it had used up when the last server fell silent), not while its machine slept.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    blobs::Blobs,
    ledger::{Ledger, Op, Reply},
    session::{Heard, Last, Times},
    uploads::Uploads,
};
use crate::{
    domain::Timestamp,
    runtime::{clock, lifecycle::Shutdown},
    store::{self, Store},
};

/// The floor under the event-driven sweep.
const SWEEP_FLOOR: Duration = Duration::from_secs(30);
/// How long a failed sweep waits before the next.
const SWEEP_AGAIN: Duration = Duration::from_millis(500);
/// Events and ended anonymous contracts are kept this long.
const KEEP_EVENTS: Duration = Duration::from_secs(30 * 24 * 3600);
/// Ended anonymous contracts.
const KEEP_ANONYMOUS: Duration = Duration::from_secs(7 * 24 * 3600);
/// Request ids.
const KEEP_REQUESTS: Duration = Duration::from_secs(24 * 3600);
/// Marks of batches. Far longer than the ledger looks for one, far shorter than makes a table of every commit of a day.
pub(super) const KEEP_BATCHES: Duration = Duration::from_secs(3600);
/// Between two rounds of forgetting.
const FORGET_EVERY: Duration = Duration::from_secs(3600);
/// Rows that are forgotten in one transaction.
const FORGET_PORTION: i64 = 1_000;

/// Learns from the database whom to wait for, before anybody is let in: daemons that were attached when the last server fell
/// silent, each with the silence it had used up.
pub async fn remember(store: &Store, heard: &Heard, times: Times) -> Result<(), store::Error> {
    let mut tx = store.read().await?;
    let alive = tx.meta_fetch("last_alive").await?.and_then(|text| text.parse().ok()).map_or(Timestamp(0), Timestamp);
    let daemons = tx.daemons_attached().await?;
    tx.rollback().await?;
    for daemon in daemons {
        let used = alive.since(daemon.last_seen).min(times.lost_after);
        let at = Instant::now().checked_sub(used).unwrap_or_else(Instant::now);
        heard.set(daemon.id, Last { epoch: daemon.epoch, at, wall: daemon.last_seen });
    }
    Ok(())
}

/// Looks for silence, and writes down from time to time who was heard.
pub async fn silence(store: Store, ledger: Ledger, heard: Arc<Heard>, times: Times, shutdown: Shutdown) {
    let tick = (times.lost_after / 20).clamp(Duration::from_millis(20), Duration::from_secs(1));
    let mut before = Instant::now();
    let mut noted = Instant::now();
    let mut noted_wall = clock::now();
    loop {
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            () = tokio::time::sleep(tick) => {}
        }
        let now = Instant::now();
        let gap = now.duration_since(before).saturating_sub(tick);
        if gap > tick * 2 {
            // This process did not run: whoever was silent meanwhile may have been talking.
            heard.excuse(gap);
        }
        before = now;
        for (daemon, last) in heard.all() {
            if now.duration_since(last.at.min(now)) < times.lost_after {
                continue;
            }
            match ledger.server(Op::DaemonLost { daemon, epoch: last.epoch }).await {
                Ok(_) => {
                    tracing::warn!(%daemon, epoch = %last.epoch, "daemon lost");
                    heard.forget(daemon, last.epoch);
                    ledger.detach(daemon, last.epoch);
                }
                Err(super::ledger::Error::StaleSession(_)) => {
                    heard.forget(daemon, last.epoch);
                    ledger.detach(daemon, last.epoch);
                }
                Err(error) => tracing::warn!(%daemon, %error, "cannot declare a daemon lost; trying again"),
            }
        }
        if now.duration_since(noted) >= times.lost_after / 3 {
            noted = now;
            let seen = heard.all().into_iter().filter(|(_, last)| last.wall > noted_wall);
            let seen: Vec<_> = seen.map(|(daemon, last)| (daemon, last.epoch, last.wall)).collect();
            noted_wall = clock::now();
            if !seen.is_empty()
                && let Err(error) = ledger.server(Op::Seen(seen)).await
            {
                tracing::warn!(%error, "cannot note who was heard");
            }
            if let Err(error) = expect(&store, &heard).await {
                let error = super::ledger::chain(&error);
                tracing::warn!(error, "cannot ask which daemons are attached; trying again");
            }
            if let Err(error) = note_alive(&store).await {
                tracing::warn!(error = super::ledger::chain(&error), "cannot note that this server lives");
            }
        }
    }
}

/// Waits also for sessions that nobody here has heard of: the COMMIT of their attach was not answered, or the database is one that does
/// not know that they were declared lost.
async fn expect(store: &Store, heard: &Heard) -> Result<(), store::Error> {
    let mut tx = store.read().await?;
    let sessions = tx.daemons_sessions().await?;
    tx.rollback().await?;
    for (daemon, epoch) in sessions {
        heard.expect(daemon, epoch);
    }
    Ok(())
}

async fn note_alive(store: &Store) -> Result<(), store::Error> {
    let mut tx = store.begin().await?;
    tx.meta_put("last_alive", &clock::now().0.to_string()).await?;
    tx.commit().await
}

/// Does what is due when it is due.
pub async fn sweep(ledger: Ledger, shutdown: Shutdown) {
    loop {
        let due = ledger.due();
        let wait = due.peek().map_or(SWEEP_FLOOR, |at| at.since(clock::now())).min(SWEEP_FLOOR);
        if !wait.is_zero() {
            tokio::select! {
                () = shutdown.soft.cancelled() => return,
                () = due.wait(wait) => {}
            }
            // Woken because something is due earlier: look at the new time first.
            if due.peek().is_some_and(|at| at > clock::now()) {
                continue;
            }
        }
        due.take();
        match ledger.server(Op::Sweep).await {
            Ok(Reply::Swept { more: true, .. }) => due.earlier(clock::now()),
            Ok(Reply::Swept { next, .. }) => {
                if let Some(next) = next.filter(|next| *next > clock::now()) {
                    due.earlier(next);
                }
            }
            Ok(_) => {}
            Err(super::ledger::Error::Stopping) => return,
            Err(error) => {
                tracing::warn!(%error, "a sweep failed; trying again");
                due.earlier(clock::now().after(SWEEP_AGAIN));
            }
        }
    }
}

/// Forgets what is old enough.
pub async fn forget(store: Store, blobs: Blobs, files: Uploads, shutdown: Shutdown) {
    loop {
        if let Err(error) = files.sweep_stale(clock::now()).await {
            tracing::warn!(%error, "cannot remove uploads that nobody goes on with; trying again later");
        }
        if let Err(error) = forget_blobs(&store, &blobs, clock::now()).await {
            tracing::warn!(
                error = super::ledger::chain(&error),
                "cannot forget old output and checkpoints; trying again later"
            );
        }
        if let Err(error) = forget_once(&store, clock::now()).await {
            tracing::warn!(error = super::ledger::chain(&error), "cannot forget what is old; trying again later");
        }
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            () = tokio::time::sleep(FORGET_EVERY) => {}
        }
    }
}

async fn forget_blobs(store: &Store, blobs: &Blobs, now: Timestamp) -> Result<(), super::blobs::Error> {
    while blobs.expire(store, now.before(KEEP_EVENTS)).await? {}
    let gone = super::expiry::checkpoints(store, blobs, now).await?;
    if gone > 0 {
        tracing::info!(gone, "forgot checkpoints that nothing needs");
    }
    blobs.sweep_strays(store, now).await?;
    Ok(())
}

/// One round of forgetting, in portions.
pub async fn forget_once(store: &Store, now: Timestamp) -> Result<(), store::Error> {
    let portion = usize::try_from(FORGET_PORTION).unwrap_or(usize::MAX);
    loop {
        let mut tx = store.begin().await?;
        let gone = tx.events_forget(now.before(KEEP_EVENTS), FORGET_PORTION).await?;
        tx.commit().await?;
        if gone < portion {
            break;
        }
    }
    loop {
        let mut tx = store.begin().await?;
        let expired = tx.contracts_expired(now.before(KEEP_ANONYMOUS), FORGET_PORTION).await?;
        tx.contracts_delete(&expired).await?;
        tx.commit().await?;
        if expired.len() < portion {
            break;
        }
    }
    loop {
        let mut tx = store.begin().await?;
        let gone = tx.batches_forget(now.before(KEEP_BATCHES), FORGET_PORTION).await?;
        tx.commit().await?;
        if gone < portion {
            break;
        }
    }
    let mut tx = store.begin().await?;
    tx.requests_forget(now.before(KEEP_REQUESTS)).await?;
    tx.commit().await
}

//! The disk guard: when the disk is short, worktrees that nobody needs any more make room, oldest first.
//!
//! ```text
//!   below the floor? ─> attempts that are over, oldest first ─> is all of it with the server? ─> removed, logged, reported
//!                                                                └ a result that was delivered, and nothing beside it
//!                                                                └ or a checkpoint that nothing has changed since
//! ```
//!
//! Never one in use, never one that another attempt is to go on in, never work that is only here.

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    Context,
    attempt_dir::{AttemptDir, Place},
    git::{LOCAL_TIMEOUT, attempt, git},
    journal::{Change, Row, State},
    runner::{chain, saving::Saving},
    worktree,
};
use crate::{
    domain::{attempt::TaskResult, report::Report},
    runtime::clock,
};

/// Between looks at the disk.
const LOOK: Duration = Duration::from_secs(30);
/// How long room that was made takes to be seen ([`super::health`] looks once a second).
const SEEN: Duration = Duration::from_millis(1_100);

/// Runs until the daemon stops.
pub(super) async fn run(context: Arc<Context>) {
    let soft = context.shutdown.soft.clone();
    let work = async {
        loop {
            tokio::time::sleep(LOOK).await;
            if is_short(&context) {
                make_room(&context).await;
            }
        }
    };
    tokio::select! {
        () = soft.cancelled() => {}
        () = work => {}
    }
}

fn is_short(context: &Context) -> bool {
    let vitals = context.health.vitals();
    vitals.known && !vitals.not_accepting.is_empty()
}

/// Removes worktrees until there is room, or none is left that may go.
async fn make_room(context: &Arc<Context>) {
    let mut rows = match context.journal.attempts().await {
        Ok(rows) => rows,
        Err(error) => return tracing::warn!(error = chain(&error), "the journal cannot be read"),
    };
    rows.retain(is_over);
    rows.sort_by_key(|row| row.updated);
    for row in rows {
        if !is_short(context) {
            return;
        }
        if let Some(place) = removable(context, &row).await {
            remove(context, &row, &place).await;
            tokio::time::sleep(SEEN).await;
        }
    }
}

/// It has ended, the server has heard how, and nothing of it is on its way. One whose agent had vanished has no such end: the
/// next attempt may be about to go on in its worktree.
fn is_over(row: &Row) -> bool {
    row.state == State::Over && row.complete.is_some() && row.uploaded && Path::new(&row.worktree).exists()
}

/// Its place, if all that is there is with the server.
async fn removable(context: &Arc<Context>, row: &Row) -> Option<Place> {
    let dir = AttemptDir::open(&row.directory).ok()?;
    let place = dir.manifest().ok().filter(|manifest| manifest.superseded.is_none())?.place?;
    if !worktree::is_intact(&place) {
        return None;
    }
    let result = row.complete.as_ref().and_then(|complete| complete.outcome.as_ref().ok());
    let delivered = match result {
        Some(result) if dir.was_delivered() || (place.repo.cloned && result.published) => is_only(&place, result).await,
        _ => false,
    };
    if delivered {
        return Some(place);
    }
    let saving = Saving::open(context, &dir).await?;
    let session = row.complete.as_ref().map(|complete| complete.progress.agent_session_id.clone());
    saving.is_all_stored(session.unwrap_or_default()).await.then_some(place)
}

/// The worktree holds this result and nothing else.
async fn is_only(place: &Place, result: &TaskResult) -> bool {
    let dir = &place.worktree;
    let head = attempt("read HEAD", LOCAL_TIMEOUT, || git(dir).args(["rev-parse", "HEAD"])).await;
    let head = head.is_ok_and(|head| head.success() && head.text() == result.commit);
    head && !worktree::is_dirty(dir).await.unwrap_or(true)
}

async fn remove(context: &Arc<Context>, row: &Row, place: &Place) {
    let path = place.worktree.display();
    if let Err(error) = worktree::remove(context.state.path(), &place.worktree, true).await {
        return tracing::warn!(worktree = %path, %error, "the disk is short, but a worktree cannot be removed");
    }
    let message = format!("the disk was short, so the worktree {path} was removed; the server has all that was in it");
    tracing::warn!(attempt = %row.attempt, message, "disk guard");
    let change = Change { reports: vec![Report::Warning { message }], ..Change::default() };
    if let Err(error) = context.journal.record(row.attempt, change, clock::now()).await {
        tracing::warn!(error = chain(&error), "the journal cannot be written");
    }
}

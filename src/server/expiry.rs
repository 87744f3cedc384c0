//! Forgets checkpoints that nothing needs any more.
//!
//! ```text
//!   stored since the last round ──┐                  ┌─> rows, in the transaction that looked
//!   stored long ago ──────────────┴─> their tasks ──>┴─> then blobs
//! ```
//!
//! The rule is `domain::checkpoint`: of each attempt the newest few, of a task that ended long ago none, and always what
//! something builds on or goes on from. A task is looked at when it has a new checkpoint, and again when one is old: those
//! in between have not changed. Portions are small, since each holds the one writer.

use std::collections::{BTreeMap, HashMap, HashSet};

use std::time::Duration;

use uuid::Uuid;

use super::blobs::{self, Blobs};
use crate::{
    domain::{
        AttemptId, CheckpointId, TaskId, Timestamp,
        checkpoint::{Checkpoint, expired, expired_after_end},
    },
    store::{self, Store, Tx},
};

/// How long the checkpoints of a task are kept after its end.
pub const KEEP_ENDED: Duration = Duration::from_secs(30 * 24 * 3600);
/// Checkpoints whose tasks are looked at in one transaction.
const PORTION: i64 = 100;
/// Up to when checkpoints have been looked at.
const LOOKED: &str = "checkpoints_looked_at";

/// One round. Answers how many are gone.
pub async fn checkpoints(store: &Store, blobs: &Blobs, now: Timestamp) -> Result<usize, blobs::Error> {
    let mut tx = store.read().await?;
    let looked = tx.meta_fetch(LOOKED).await?.and_then(|text| text.parse().ok()).map_or(Timestamp(0), Timestamp);
    tx.rollback().await?;
    let (new, last) = walk(store, blobs, (looked, now.after(Duration::from_secs(1))), now).await?;
    let (old, _) = walk(store, blobs, (Timestamp(0), now.before(KEEP_ENDED)), now).await?;
    if last > looked {
        let mut tx = store.begin().await?;
        tx.meta_put(LOOKED, &last.0.to_string()).await?;
        tx.commit().await?;
    }
    Ok(new + old)
}

/// Looks at the tasks of all checkpoints that were stored in a span. Answers how many are gone, and when the last was stored.
async fn walk(
    store: &Store,
    blobs: &Blobs,
    (from, to): (Timestamp, Timestamp),
    now: Timestamp,
) -> Result<(usize, Timestamp), blobs::Error> {
    let (mut at, mut gone) = ((from, CheckpointId(Uuid::nil())), 0);
    loop {
        let mut tx = store.begin().await?;
        let found = tx.checkpoints_after(at, PORTION).await?;
        let is_end = found.len() < usize::try_from(PORTION).unwrap_or(usize::MAX);
        let within: Vec<_> = found.iter().filter(|(_, stored, _)| *stored < to).collect();
        let tasks: HashSet<TaskId> = within.iter().map(|(task, ..)| *task).collect();
        let names = expire(&mut tx, &tasks.into_iter().collect::<Vec<_>>(), now).await?;
        tx.commit().await?;
        for name in &names {
            blobs.delete(name).await?;
        }
        gone += names.len();
        if let Some((_, stored, id)) = within.last() {
            at = (*stored, *id);
        }
        if is_end || within.len() < found.len() {
            return Ok((gone, at.0));
        }
    }
}

/// Forgets what these tasks need no longer. Answers the names of the blobs.
async fn expire(tx: &mut Tx, tasks: &[TaskId], now: Timestamp) -> Result<Vec<String>, store::Error> {
    let all = tx.checkpoints_of_tasks(tasks).await?;
    let ids: Vec<_> = all.iter().map(|checkpoint| checkpoint.id).collect();
    let gone_on_from: HashSet<_> = tx.checkpoints_gone_on_from(&ids).await?.into_iter().collect();
    let built_on = tx.checkpoints_built_on(&ids).await?;
    // A task without a row has been forgotten itself.
    let ended_before = now.before(KEEP_ENDED);
    let found = tx.tasks_fetch(tasks).await?;
    let kept: HashMap<TaskId, bool> =
        found.into_iter().map(|task| (task.id, !(task.status().is_final() && task.updated < ended_before))).collect();
    let mut attempts: BTreeMap<AttemptId, Vec<Checkpoint>> = BTreeMap::new();
    for checkpoint in all {
        attempts.entry(checkpoint.attempt.id).or_default().push(checkpoint);
    }
    let mut gone: HashSet<CheckpointId> = HashSet::new();
    let mut names = Vec::new();
    for (attempt, all) in &attempts {
        let elsewhere = |id| built_on.iter().any(|(base, by)| *base == id && by != attempt);
        let needed = |id| gone_on_from.contains(&id) || elsewhere(id);
        let is_kept = all.first().and_then(|first| kept.get(&first.attempt.task)).copied().unwrap_or(false);
        gone.extend(if is_kept { expired(all, &needed) } else { expired_after_end(all, &needed) });
        let of_gone = all.iter().filter(|checkpoint| gone.contains(&checkpoint.id));
        names.extend(of_gone.filter_map(|checkpoint| checkpoint.chain.last().map(|link| link.blob.clone())));
    }
    tx.checkpoints_delete(&gone.into_iter().collect::<Vec<_>>()).await?;
    tx.blobs_delete(&names).await?;
    Ok(names)
}

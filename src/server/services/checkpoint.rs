//! Checkpoints for people: which there are, and what restoring one takes.

use std::collections::{HashMap, HashSet};

use super::{Api, SHORT_ID, find_task, store_error};
use crate::{
    domain::{CheckpointId, DaemonId, TaskId, checkpoint::Checkpoint},
    server::auth::Reader,
    store::Tx,
    wire::{
        self, common,
        page::{self, List},
        pb,
        status::{ApiError, ApiResult, Reason},
    },
};

impl Api {
    /// A page of a task's checkpoints.
    pub(super) async fn checkpoints_page(
        &self,
        reader: Reader,
        request: pb::ListCheckpointsRequest,
    ) -> ApiResult<pb::ListCheckpointsResponse> {
        let size = page::size(request.page_size)?;
        let mut tx = self.read().await?;
        let task = find_task(&mut tx, reader, "task_id", &request.task_id).await?;
        let list = List::new("checkpoints", &(reader, task.id));
        let before: Option<CheckpointId> = list.after_id(&request.page_token)?;
        // One more than wanted tells whether anything follows.
        let mut found = tx.checkpoints_page(task.id, before, size as i64 + 1).await.map_err(store_error)?;
        let is_last = found.len() <= size;
        found.truncate(size);
        let next = found.last().filter(|_| !is_last).map(|last| last.id.to_string());
        let daemons: HashSet<DaemonId> = found.iter().map(|checkpoint| checkpoint.daemon).collect();
        let daemons: Vec<DaemonId> = daemons.into_iter().collect();
        let names: HashMap<_, _> = tx.daemon_names(&daemons).await.map_err(store_error)?.into_iter().collect();
        let view = |checkpoint: &Checkpoint| {
            let name = names.get(&checkpoint.daemon).map_or("", String::as_str);
            wire::checkpoint::view(checkpoint, name, task.checkpoint == Some(checkpoint.id))
        };
        let checkpoints = found.iter().map(view).collect();
        Ok(pb::ListCheckpointsResponse { checkpoints, next_page_token: list.token(next.as_deref()) })
    }

    /// One checkpoint with its chain.
    pub(super) async fn checkpoint(&self, reader: Reader, text: &str) -> ApiResult<pb::GetCheckpointResponse> {
        let mut tx = self.read().await?;
        let found = find_checkpoint(&mut tx, reader, text).await?;
        let task: TaskId = found.attempt.task;
        let task = tx.task_fetch(reader.owner, task).await.map_err(store_error)?;
        let names = tx.daemon_names(&[found.daemon]).await.map_err(store_error)?;
        let name = names.first().map_or("", |(_, name)| name.as_str());
        let current = task.as_ref().is_some_and(|task| task.checkpoint == Some(found.id));
        let checkpoint = pb::Checkpoint {
            chain: found.chain.iter().map(pb::CheckpointLink::from).collect(),
            ..wire::checkpoint::view(&found, name, current)
        };
        let repository = task.map(|task| task.spec.repository.clone()).unwrap_or_default();
        Ok(pb::GetCheckpointResponse { checkpoint: Some(checkpoint), repository })
    }
}

/// The checkpoint that somebody names by id or short id, if they may read it.
pub(super) async fn find_checkpoint(tx: &mut Tx, reader: Reader, text: &str) -> ApiResult<Checkpoint> {
    let is_short = text.len() == SHORT_ID && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut found = if is_short {
        tx.checkpoints_short(reader.owner, &text.to_ascii_lowercase()).await.map_err(store_error)?
    } else {
        let id: CheckpointId = common::id("checkpoint_id", text)?;
        tx.checkpoints_fetch(&[id]).await.map_err(store_error)?
    };
    if found.len() > 1 {
        let text = format!("`{text}` is the short id of several checkpoints; use the full one");
        return Err(ApiError::new(Reason::AmbiguousId, text));
    }
    let found = found.pop().filter(|checkpoint| checkpoint.owner == reader.owner).ok_or_else(|| {
        let shown = common::shown(text);
        ApiError::new(Reason::CheckpointNotFound, format!("there is no checkpoint `{shown}`, or it is no longer kept"))
            .with("checkpoint_id", shown)
    })?;
    reader.check(found.contract)?;
    Ok(found)
}

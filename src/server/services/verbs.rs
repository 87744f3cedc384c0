//! What people do about a task that does not go as they wish: the requests, brought into the ledger's form.

use super::{
    Api, checkpoint::find_checkpoint, daemon_admin::find_daemon, find_task_id, repeat, task::check_request_id,
    unexpected,
};
use crate::{
    domain::transition::RetryFrom,
    server::{
        auth::{Caller, Reader},
        ledger::{Op, Reply},
    },
    wire::{
        self, pb,
        status::{ApiError, ApiResult},
    },
};

impl Api {
    pub(super) async fn retry(&self, caller: &Caller, request: pb::RetryTaskRequest) -> ApiResult<pb::Task> {
        let owner = caller.owner()?;
        let repeat = repeat(owner, &request.request_id, "RetryTask", &request);
        wire::verbs::retry(&request)?;
        let task = find_task_id(self, owner, &request.task_id).await?;
        let from = match (request.fresh, request.checkpoint_id.as_str()) {
            (true, _) => RetryFrom::Base,
            (false, "") => RetryFrom::Work,
            (false, text) => {
                let mut tx = self.read().await?;
                RetryFrom::Checkpoint(find_checkpoint(&mut tx, Reader { owner, only: None }, text).await?.id)
            }
        };
        let reply = self.submit(caller, repeat, Op::RetryTask { owner, task, from }).await?;
        self.changed_task(owner, reply).await
    }

    pub(super) async fn reassign(&self, caller: &Caller, request: pb::ReassignTaskRequest) -> ApiResult<pb::Task> {
        let owner = caller.owner()?;
        let repeat = repeat(owner, &request.request_id, "ReassignTask", &request);
        let task = find_task_id(self, owner, &request.task_id).await?;
        check_request_id(request.request_id)?;
        let to = match request.daemon.as_str() {
            "" => None,
            named => {
                let mut tx = self.read().await?;
                Some(find_daemon(&mut tx, owner, named).await?.id)
            }
        };
        let reply = self.submit(caller, repeat, Op::ReassignTask { owner, task, to }).await?;
        self.changed_task(owner, reply).await
    }

    pub(super) async fn fork(&self, caller: &Caller, request: pb::ForkTaskRequest) -> ApiResult<pb::ForkTaskResponse> {
        let owner = caller.owner()?;
        let repeat = repeat(owner, &request.request_id, "ForkTask", &request);
        let (task, checkpoint) = match (request.checkpoint_id.as_str(), request.task_id.as_str()) {
            ("", "") => return Err(ApiError::invalid_field("task_id", "is required where no checkpoint_id is given")),
            ("", text) => (find_task_id(self, owner, text).await?, None),
            (text, of) => {
                let found = {
                    let mut tx = self.read().await?;
                    find_checkpoint(&mut tx, Reader { owner, only: None }, text).await?
                };
                if !of.is_empty() && find_task_id(self, owner, of).await? != found.attempt.task {
                    return Err(ApiError::invalid_field("checkpoint_id", "is a checkpoint of another task"));
                }
                (found.attempt.task, Some(found.id))
            }
        };
        let fork = wire::verbs::fork(owner, task, checkpoint, request)?;
        let reply = self.submit(caller, repeat, Op::ForkTask(Box::new(fork))).await?;
        let Reply::Task(made) = &reply else { return Err(unexpected(&reply)) };
        let from_result = made.spec.branched_from.is_none();
        Ok(pb::ForkTaskResponse { task: Some(self.changed_task(owner, reply).await?), from_result })
    }

    pub(super) async fn force_release(
        &self,
        caller: &Caller,
        request: pb::ForceReleaseTaskRequest,
    ) -> ApiResult<pb::Task> {
        let owner = caller.owner()?;
        let repeat = repeat(owner, &request.request_id, "ForceReleaseTask", &request);
        let task = find_task_id(self, owner, &request.task_id).await?;
        let reason = wire::verbs::force_release(request)?;
        let reply = self.submit(caller, repeat, Op::ForceRelease { owner, task, reason }).await?;
        self.changed_task(owner, reply).await
    }

    pub(super) async fn ask_checkpoint(
        &self,
        caller: &Caller,
        request: pb::TakeCheckpointRequest,
    ) -> ApiResult<pb::Task> {
        let owner = caller.owner()?;
        let repeat = repeat(owner, &request.request_id, "TakeCheckpoint", &request);
        let task = find_task_id(self, owner, &request.task_id).await?;
        check_request_id(request.request_id)?;
        let reply = self.submit(caller, repeat, Op::TakeCheckpoint { owner, task }).await?;
        self.changed_task(owner, reply).await
    }
}

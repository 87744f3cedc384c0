//! `TaskService`.

use std::collections::{HashMap, HashSet};

use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{
    Answers, Api,
    contract::find_contract,
    explain::{Detail, Surroundings},
    find_task, find_task_id, repeat, store_error, unexpected,
};
use crate::{
    domain::{OwnerId, TaskId, attempt::Attempt, explain::PendingReason, task::Task},
    server::{
        auth::{Caller, Reader},
        ledger::{Op, Reply},
    },
    store::{TaskFilter, Tx},
    wire::{
        self,
        check::Check,
        page::{self, List},
        pb::{self, task_service_server::TaskService},
        status::{ApiError, ApiResult},
        task::MAX_ANSWER_BYTES,
    },
};

/// Tasks read at a time: each may have a plan of half a megabyte.
const PORTION: usize = 50;
/// Dependents that an answer names.
const MAX_DEPENDENTS: i64 = 1_000;

#[tonic::async_trait]
impl TaskService for Api {
    async fn create_task(
        &self,
        request: Request<pb::CreateTaskRequest>,
    ) -> Result<Response<pb::CreateTaskResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "CreateTask", &request);
        let draft = wire::task::create(owner, request)?;
        let reply = self.submit(&caller, repeat, Op::CreateTasks(draft)).await?;
        let made = self.created_tasks(owner, reply).await?;
        Ok(Response::new(pb::CreateTaskResponse { task: made.into_iter().next().map(Box::new) }))
    }

    async fn batch_create_tasks(
        &self,
        request: Request<pb::BatchCreateTasksRequest>,
    ) -> Result<Response<pb::BatchCreateTasksResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "BatchCreateTasks", &request);
        let draft = wire::task::batch_create(owner, request)?;
        let reply = self.submit(&caller, repeat, Op::CreateTasks(draft)).await?;
        let tasks = self.created_tasks(owner, reply).await?;
        Ok(Response::new(pb::BatchCreateTasksResponse { tasks }))
    }

    async fn get_task(&self, request: Request<pb::GetTaskRequest>) -> Result<Response<pb::GetTaskResponse>, Status> {
        let reader = Caller::of(&request)?.reader()?;
        Ok(Response::new(self.task_with_surroundings(reader, &request.get_ref().task_id).await?))
    }

    async fn list_tasks(
        &self,
        request: Request<pb::ListTasksRequest>,
    ) -> Result<Response<pb::ListTasksResponse>, Status> {
        let reader = Caller::of(&request)?.reader()?;
        Ok(Response::new(self.tasks_page(reader, request.into_inner()).await?))
    }

    type WatchTaskStream = Answers<pb::WatchTaskResponse>;

    async fn watch_task(
        &self,
        request: Request<pb::WatchTaskRequest>,
    ) -> Result<Response<Self::WatchTaskStream>, Status> {
        let reader = Caller::of(&request)?.reader()?;
        Ok(Response::new(self.open_task_watch(reader, request.into_inner()).await?))
    }

    async fn update_task(
        &self,
        request: Request<pb::UpdateTaskRequest>,
    ) -> Result<Response<pb::UpdateTaskResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let mut request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "UpdateTask", &request);
        request.task_id = find_task_id(self, owner, &request.task_id).await?.to_string();
        let update = wire::task::update(owner, request)?;
        let reply = self.submit(&caller, repeat, Op::UpdateTask(Box::new(update))).await?;
        Ok(Response::new(pb::UpdateTaskResponse { task: Some(self.changed_task(owner, reply).await?) }))
    }

    async fn add_dependencies(
        &self,
        request: Request<pb::AddDependenciesRequest>,
    ) -> Result<Response<pb::AddDependenciesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "AddDependencies", &request);
        let task = find_task_id(self, owner, &request.task_id).await?;
        let add = edges(request.request_id, request.depends_on)?;
        let op = Op::ChangeDependencies { owner, task, add, remove: Vec::new() };
        let reply = self.submit(&caller, repeat, op).await?;
        Ok(Response::new(pb::AddDependenciesResponse { task: Some(self.changed_task(owner, reply).await?) }))
    }

    async fn remove_dependencies(
        &self,
        request: Request<pb::RemoveDependenciesRequest>,
    ) -> Result<Response<pb::RemoveDependenciesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "RemoveDependencies", &request);
        let task = find_task_id(self, owner, &request.task_id).await?;
        let remove = edges(request.request_id, request.depends_on)?;
        let op = Op::ChangeDependencies { owner, task, add: Vec::new(), remove };
        let reply = self.submit(&caller, repeat, op).await?;
        Ok(Response::new(pb::RemoveDependenciesResponse { task: Some(self.changed_task(owner, reply).await?) }))
    }

    async fn cancel_task(
        &self,
        request: Request<pb::CancelTaskRequest>,
    ) -> Result<Response<pb::CancelTaskResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "CancelTask", &request);
        let task = find_task_id(self, owner, &request.task_id).await?;
        let mut check = Check::new();
        check.request_id(request.request_id);
        let reason = check.reason(request.reason);
        check.finish()?;
        let op = Op::CancelTask { owner, task, reason, cascade: request.cascade };
        let reply = self.submit(&caller, repeat, op).await?;
        Ok(Response::new(pb::CancelTaskResponse { task: Some(self.changed_task(owner, reply).await?) }))
    }

    async fn retry_task(
        &self,
        request: Request<pb::RetryTaskRequest>,
    ) -> Result<Response<pb::RetryTaskResponse>, Status> {
        let task = self.retry(&Caller::of(&request)?, request.into_inner()).await?;
        Ok(Response::new(pb::RetryTaskResponse { task: Some(task) }))
    }

    async fn reassign_task(
        &self,
        request: Request<pb::ReassignTaskRequest>,
    ) -> Result<Response<pb::ReassignTaskResponse>, Status> {
        let task = self.reassign(&Caller::of(&request)?, request.into_inner()).await?;
        Ok(Response::new(pb::ReassignTaskResponse { task: Some(task) }))
    }

    async fn fork_task(&self, request: Request<pb::ForkTaskRequest>) -> Result<Response<pb::ForkTaskResponse>, Status> {
        Ok(Response::new(self.fork(&Caller::of(&request)?, request.into_inner()).await?))
    }

    async fn force_release_task(
        &self,
        request: Request<pb::ForceReleaseTaskRequest>,
    ) -> Result<Response<pb::ForceReleaseTaskResponse>, Status> {
        let task = self.force_release(&Caller::of(&request)?, request.into_inner()).await?;
        Ok(Response::new(pb::ForceReleaseTaskResponse { task: Some(task) }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<pb::ListCheckpointsRequest>,
    ) -> Result<Response<pb::ListCheckpointsResponse>, Status> {
        let reader = Caller::of(&request)?.reader()?;
        Ok(Response::new(self.checkpoints_page(reader, request.into_inner()).await?))
    }

    async fn get_checkpoint(
        &self,
        request: Request<pb::GetCheckpointRequest>,
    ) -> Result<Response<pb::GetCheckpointResponse>, Status> {
        let reader = Caller::of(&request)?.reader()?;
        Ok(Response::new(self.checkpoint(reader, &request.get_ref().checkpoint_id).await?))
    }

    async fn take_checkpoint(
        &self,
        request: Request<pb::TakeCheckpointRequest>,
    ) -> Result<Response<pb::TakeCheckpointResponse>, Status> {
        let task = self.ask_checkpoint(&Caller::of(&request)?, request.into_inner()).await?;
        Ok(Response::new(pb::TakeCheckpointResponse { task: Some(task) }))
    }

    async fn dismiss_task(
        &self,
        request: Request<pb::DismissTaskRequest>,
    ) -> Result<Response<pb::DismissTaskResponse>, Status> {
        let caller = Caller::of(&request)?;
        let owner = caller.owner()?;
        let request = request.into_inner();
        let repeat = repeat(owner, &request.request_id, "DismissTask", &request);
        let task = find_task_id(self, owner, &request.task_id).await?;
        check_request_id(request.request_id)?;
        let reply = self.submit(&caller, repeat, Op::DismissTask { owner, task }).await?;
        Ok(Response::new(pb::DismissTaskResponse { task: Some(self.changed_task(owner, reply).await?) }))
    }

    async fn explain_task(
        &self,
        request: Request<pb::ExplainTaskRequest>,
    ) -> Result<Response<pb::ExplainTaskResponse>, Status> {
        let reader = Caller::of(&request)?.reader()?;
        let mut tx = self.read().await?;
        let task = find_task(&mut tx, reader, "task_id", &request.get_ref().task_id).await?;
        let tasks = std::slice::from_ref(&task);
        let around = Surroundings::load(self, &mut tx, reader.owner, tasks, Detail::Full).await?;
        let explained = around.explain(&task);
        // A task that has started or ended has a daemon, or needs none.
        let asks_daemons = explained.pending.is_some_and(|reason| reason != PendingReason::Blocked);
        Ok(Response::new(pb::ExplainTaskResponse {
            summary: summary(&task, &explained.text),
            actions: around.actions(&task, &explained),
            waiting_for: around.waiting_for(&task),
            daemons: if asks_daemons { around.fits(&task) } else { Vec::new() },
            task: Some(around.view(&task)),
        }))
    }

    type StreamTaskOutputStream = Answers<pb::StreamTaskOutputResponse>;

    async fn stream_task_output(
        &self,
        request: Request<pb::StreamTaskOutputRequest>,
    ) -> Result<Response<Self::StreamTaskOutputStream>, Status> {
        let reader = Caller::of(&request)?.reader()?;
        Ok(Response::new(self.stream_output(reader, request.into_inner()).await?))
    }

    async fn analyze_dependencies(
        &self,
        request: Request<pb::AnalyzeDependenciesRequest>,
    ) -> Result<Response<pb::AnalyzeDependenciesResponse>, Status> {
        let reader = Caller::of(&request)?.reader()?;
        Ok(Response::new(self.analyze(reader, request.into_inner()).await?))
    }
}

impl Api {
    async fn task_with_surroundings(&self, reader: Reader, text: &str) -> ApiResult<pb::GetTaskResponse> {
        let mut tx = self.read().await?;
        let task = find_task(&mut tx, reader, "task_id", text).await?;
        let tasks = std::slice::from_ref(&task);
        let around = Surroundings::load(self, &mut tx, reader.owner, tasks, Detail::Full).await?;

        let edges = tx.edges_from(&[task.id]).await.map_err(store_error)?;
        let ids: Vec<TaskId> = edges.iter().map(|edge| edge.dependency).collect();
        let mut briefs = tx.briefs_fetch(&ids).await.map_err(store_error)?;
        briefs.sort_by_key(|brief| brief.id);
        let satisfied: HashSet<TaskId> =
            edges.iter().filter(|edge| edge.satisfied).map(|edge| edge.dependency).collect();
        let dependencies = briefs
            .iter()
            .map(|it| wire::task::dependency(it.id, &it.name, it.status, satisfied.contains(&it.id)))
            .collect();
        let dependents = tx.briefs_of_dependents(task.id, MAX_DEPENDENTS).await.map_err(store_error)?;
        let dependents = dependents
            .iter()
            .map(|(it, satisfied)| wire::task::dependency(it.id, &it.name, it.status, *satisfied))
            .collect();
        let attempts = tx.attempts_of_task(task.id).await.map_err(store_error)?;
        // The newest made it: none comes after a result.
        let result = wire::task::result(&task, attempts.last());
        let attempts = self.attempts(&mut tx, &attempts).await?;
        Ok(pb::GetTaskResponse { task: Some(around.view(&task)), dependencies, dependents, attempts, result })
    }

    /// Attempts as a caller sees them.
    pub(super) async fn attempts(&self, tx: &mut Tx, attempts: &[Attempt]) -> ApiResult<Vec<pb::Attempt>> {
        let ids: Vec<_> = attempts.iter().map(|attempt| attempt.id).collect();
        let daemons: Vec<_> = attempts.iter().map(|attempt| attempt.daemon).collect();
        let received = self.output.received(tx, &ids).await.map_err(ApiError::unavailable)?;
        let names: HashMap<_, _> = tx.daemon_names(&daemons).await.map_err(store_error)?.into_iter().collect();
        Ok(attempts
            .iter()
            .map(|attempt| {
                let name = names.get(&attempt.daemon).map_or("", String::as_str);
                wire::task::attempt(attempt, name, received.get(&attempt.id).copied().unwrap_or(0))
            })
            .collect())
    }

    /// A task that was changed, as a caller sees it.
    pub(super) async fn changed_task(&self, owner: OwnerId, reply: Reply) -> ApiResult<pb::Task> {
        let Reply::Task(task) = reply else { return Err(unexpected(&reply)) };
        let mut tx = self.read().await?;
        let around = Surroundings::load(self, &mut tx, owner, std::slice::from_ref(&*task), Detail::Full).await?;
        Ok(around.view(&task))
    }

    async fn tasks_page(&self, reader: Reader, request: pb::ListTasksRequest) -> ApiResult<pb::ListTasksResponse> {
        let mut check = Check::new();
        let statuses = wire::task::statuses(&mut check, &request.statuses);
        check.finish()?;
        let size = page::size(request.page_size)?;
        let list = List::new("tasks", &(reader, &request.contract_id, &request.statuses, request.include_hidden));
        let mut tx = self.read().await?;
        // A task key reads its own contract, also when it names none.
        let contract = match (request.contract_id.as_str(), reader.only) {
            ("", only) => only,
            (text, _) => Some(find_contract(&mut tx, reader, text).await?.id),
        };
        let mut filter = TaskFilter {
            owner: reader.owner,
            contract,
            statuses: (!statuses.is_empty()).then_some(statuses),
            after: list.after_id(&request.page_token)?,
            hidden: request.include_hidden,
        };
        let resume_token = match contract {
            Some(contract) => page::resume_token(contract.0, tx.events_last().await.map_err(store_error)?),
            None => String::new(),
        };
        let (mut tasks, mut bytes, mut is_last) = (Vec::new(), 0, false);
        'page: while !is_last && tasks.len() < size {
            // One more than wanted tells whether anything follows.
            let wanted = (size - tasks.len()).min(PORTION);
            let mut found = tx.tasks_list(&filter, wanted as i64 + 1).await.map_err(store_error)?;
            is_last = found.len() <= wanted;
            found.truncate(wanted);
            let around = Surroundings::load(self, &mut tx, reader.owner, &found, Detail::Brief).await?;
            for task in &found {
                let view = around.view(task);
                bytes += view.encoded_len();
                if bytes > MAX_ANSWER_BYTES && !tasks.is_empty() {
                    is_last = false;
                    break 'page;
                }
                filter.after = Some(task.id);
                tasks.push(view);
            }
        }
        let next = filter.after.filter(|_| !is_last).map(|id| id.to_string());
        Ok(pb::ListTasksResponse { tasks, next_page_token: list.token(next.as_deref()), resume_token })
    }
}

/// One sentence: where the task stands and why.
fn summary(task: &Task, why: &str) -> String {
    let (name, status) = (&task.spec.name, task.status().word());
    if why.is_empty() { format!("`{name}` is {status}") } else { format!("`{name}` is {status}: {why}") }
}

fn edges(request_id: String, names: Vec<String>) -> ApiResult<Vec<String>> {
    let mut check = Check::new();
    check.request_id(request_id);
    if names.is_empty() {
        check.violation("depends_on", "names no task");
    }
    let names = wire::task::dependencies(&mut check, "depends_on", names);
    check.finish()?;
    Ok(names)
}

pub(super) fn check_request_id(request_id: String) -> ApiResult<()> {
    let mut check = Check::new();
    check.request_id(request_id);
    check.finish()
}

//! Tasks and attempts on the wire.

use std::collections::HashMap;

use super::{
    check::{Check, etag},
    checkpoint::sha256_bytes,
    common, contract, pb,
    status::ApiResult,
};
use crate::domain::{
    CheckpointId, ContractId, OwnerId, TaskId,
    attempt::{Attempt, AttemptState, AttemptStatus},
    checkpoint::Origin,
    contract::Hold,
    draft::{NewTask, NewTasks, TaskUpdate},
    explain::{Explained, PendingReason},
    task::{
        BranchedFrom, MAX_BATCH, MAX_DEPENDENCIES, MAX_NAME_BYTES, MAX_PLAN_BYTES, MAX_TEXT_BYTES, Task, TaskLimits,
        TaskSpec, TaskState, TaskStatus,
    },
};

/// The agent profile of a task that names none.
pub const DEFAULT_AGENT: &str = "claude";
/// Priorities go from its negative to it.
pub const MAX_PRIORITY: i32 = 1_000_000;
/// Labels a task may require.
pub const MAX_LABELS: usize = 64;
/// Bytes of a label and of a profile's name.
pub const MAX_WORD_BYTES: usize = 63;
/// Globs of files to copy; with their length bounded so that the command which carries them stays below 1 MiB.
pub const MAX_COPY_FILES: usize = 100;
/// Bytes of one glob.
pub const MAX_GLOB_BYTES: usize = 1_024;
/// Bytes of tasks in one answer. Clients refuse messages over 4 MiB unless told otherwise.
pub const MAX_ANSWER_BYTES: usize = 3 * 1024 * 1024;

// === in ===

/// Checks the form of one task.
pub fn create(owner: OwnerId, request: pb::CreateTaskRequest) -> ApiResult<NewTasks> {
    let mut check = Check::new();
    check.request_id(request.request_id);
    let contract: Option<ContractId> = check.optional_id("contract_id", &request.contract_id);
    let Some(mut given) = request.spec else {
        check.violation("spec", "is required");
        check.finish()?;
        return Ok(NewTasks { owner, contract, tasks: Vec::new() });
    };
    if given.name.is_empty() {
        given.name = name_from_plan(&given.plan);
    }
    let task = draft(&mut check, "spec.", *given);
    if contract.is_none() {
        if task.spec.repository.is_empty() {
            check.violation("spec.repository", "is required for a task without a contract");
        }
        if !task.depends_on.is_empty() {
            check.violation("spec.depends_on", "needs a contract_id: a lone task has nothing to depend on");
        }
    }
    check.finish()?;
    Ok(NewTasks { owner, contract, tasks: vec![task] })
}

/// Checks the form of several tasks.
pub fn batch_create(owner: OwnerId, request: pb::BatchCreateTasksRequest) -> ApiResult<NewTasks> {
    let mut check = Check::new();
    check.request_id(request.request_id);
    let contract: ContractId = check.id("contract_id", &request.contract_id);
    match request.tasks.len() {
        0 => check.violation("tasks", "is empty"),
        count if count > MAX_BATCH => {
            check.violation("tasks", format!("holds {count} tasks; one call takes at most {MAX_BATCH}"));
        }
        _ => {}
    }
    let tasks = drafts(&mut check, request.tasks.into_iter().take(MAX_BATCH).collect());
    check.finish()?;
    Ok(NewTasks { owner, contract: Some(contract), tasks })
}

/// Checks the form of tasks that come together, whose names must differ.
pub fn drafts(check: &mut Check, specs: Vec<pb::TaskSpec>) -> Vec<NewTask> {
    let tasks: Vec<NewTask> = specs
        .into_iter()
        .enumerate()
        .map(|(index, spec)| {
            let prefix = format!("tasks[{index}].");
            check.required(&format!("{prefix}name"), &spec.name);
            draft(check, &prefix, spec)
        })
        .collect();
    let mut first: HashMap<&str, usize> = HashMap::new();
    for (index, task) in tasks.iter().enumerate().filter(|(_, task)| !task.spec.name.is_empty()) {
        if let Some(earlier) = first.insert(&task.spec.name, index) {
            check.violation(format!("tasks[{index}].name"), format!("repeats the name of tasks[{earlier}]"));
        }
    }
    tasks
}

/// Checks the form of one task; `prefix` says where it stands in the request. Faults of its name other than its absence
/// are found here, its absence by those who require one.
fn draft(check: &mut Check, prefix: &str, given: pb::TaskSpec) -> NewTask {
    let at = |field: &str| format!("{prefix}{field}");
    let branched_from = branched_from(check, prefix, &given);
    let name = check.line(&at("name"), given.name, MAX_NAME_BYTES);
    if uuid::Uuid::try_parse(&name).is_ok() {
        check.violation(at("name"), "looks like an id; dependencies could not tell it from one");
    }
    let description = check.text(&at("description"), given.description, MAX_TEXT_BYTES);
    check.required(&at("plan"), &given.plan);
    let plan = check.text(&at("plan"), given.plan, MAX_PLAN_BYTES);
    let priority = check.range(&at("priority"), given.priority, -MAX_PRIORITY..=MAX_PRIORITY);
    let agent = agent(check, &at("agent"), given.agent);
    let model = model(check, &at("model"), given.model);
    let labels = labels(check, &at("labels"), given.labels);
    let repository = check.repository(&at("repository"), given.repository);
    let base_branch = check.revision(&at("base_branch"), given.base_branch);
    let depends_on = dependencies(check, &at("depends_on"), given.depends_on);
    let copy_files = copy_files(check, &at("copy_files"), given.copy_files);
    let setup_command = check.text(&at("setup_command"), given.setup_command, MAX_TEXT_BYTES);
    let limits = limits(check, prefix, given.limits.as_ref());
    let parent: Option<TaskId> = check.optional_id(&at("parent_task_id"), &given.parent_task_id);
    for (field, is_set) in [
        ("verify_command", !given.verify_command.is_empty()),
        ("target_branch", !given.target_branch.is_empty()),
        ("merge_mode", !given.merge_mode.is_empty()),
        ("completion_action", !given.completion_action.is_empty()),
        ("target_repo_path", !given.target_repo_path.is_empty()),
        ("continue_from_task_id", !given.continue_from_task_id.is_empty()),
        ("conversation_history", !given.conversation_history.is_empty()),
        ("is_supervisor", given.is_supervisor),
        ("autonomous_loop", given.autonomous_loop),
    ] {
        check.unserved(at(field), is_set);
    }
    let spec = TaskSpec {
        name,
        description,
        plan,
        priority,
        agent,
        model,
        labels,
        repository,
        base_branch,
        copy_files,
        setup_command,
        limits,
        hidden: given.hidden,
        parent,
        branched_from,
    };
    NewTask::new(spec, depends_on)
}

/// The work that a task is to begin from. Of which task it is, the ledger finds out.
fn branched_from(check: &mut Check, prefix: &str, given: &pb::TaskSpec) -> Option<BranchedFrom> {
    let at = |field: &str| format!("{prefix}{field}");
    let task: Option<TaskId> = check.optional_id(&at("branched_from_task_id"), &given.branched_from_task_id);
    let checkpoint: Option<CheckpointId> = check.optional_id(&at("checkpoint_id"), &given.checkpoint_id);
    for (field, is_set) in [("branched_from_task_id", task.is_some()), ("with_conversation", given.with_conversation)] {
        if is_set && given.checkpoint_id.is_empty() {
            check.violation(at(field), "needs a checkpoint_id to begin from");
        }
    }
    let unnamed = BranchedFrom::unnamed(checkpoint?, given.with_conversation);
    Some(BranchedFrom { task: task.unwrap_or(unnamed.task), ..unnamed })
}

/// Checks the form of a change.
pub fn update(owner: OwnerId, request: pb::UpdateTaskRequest) -> ApiResult<TaskUpdate> {
    let mut check = Check::new();
    check.request_id(request.request_id);
    let task: TaskId = check.id("task_id", &request.task_id);
    let etag = check.etag(&request.etag);
    let new = request.spec.unwrap_or_default();
    let mut update = TaskUpdate::nothing(owner, task, etag);
    let paths = request.update_mask.unwrap_or_default().paths;
    if paths.is_empty() {
        check.violation("update_mask", "names no field to change");
    }
    for (index, path) in paths.iter().enumerate() {
        let field = format!("spec.{path}");
        match path.as_str() {
            "name" => {
                check.required(&field, &new.name);
                update.name = Some(check.line(&field, new.name.clone(), MAX_NAME_BYTES));
            }
            "description" => update.description = Some(check.text(&field, new.description.clone(), MAX_TEXT_BYTES)),
            "plan" => {
                check.required(&field, &new.plan);
                update.plan = Some(check.text(&field, new.plan.clone(), MAX_PLAN_BYTES));
            }
            "priority" => update.priority = Some(check.range(&field, new.priority, -MAX_PRIORITY..=MAX_PRIORITY)),
            "agent" => update.agent = Some(agent(&mut check, &field, new.agent.clone())),
            "model" => update.model = Some(model(&mut check, &field, new.model.clone())),
            "labels" => update.labels = Some(labels(&mut check, &field, new.labels.clone())),
            "copy_files" => update.copy_files = Some(copy_files(&mut check, &field, new.copy_files.clone())),
            "setup_command" => {
                update.setup_command = Some(check.text(&field, new.setup_command.clone(), MAX_TEXT_BYTES));
            }
            "limits" => update.limits = Some(limits(&mut check, "spec.", new.limits.as_ref())),
            "base_branch" => update.base_branch = Some(check.revision(&field, new.base_branch.clone())),
            "hidden" => update.hidden = Some(new.hidden),
            other => check.violation(
                format!("update_mask.paths[{index}]"),
                format!("`{}` is not a field that can be changed", common::shown(other)),
            ),
        }
    }
    check.finish()?;
    Ok(update)
}

/// Names or ids of tasks that are depended on.
pub fn dependencies(check: &mut Check, field: &str, names: Vec<String>) -> Vec<String> {
    if names.len() > MAX_DEPENDENCIES {
        check.violation(field, format!("names {} dependencies; at most {MAX_DEPENDENCIES} are taken", names.len()));
    }
    names
        .into_iter()
        .take(MAX_DEPENDENCIES)
        .enumerate()
        .map(|(index, name)| {
            if name.is_empty() {
                check.violation(format!("{field}[{index}]"), "is empty");
            }
            check.line(&format!("{field}[{index}]"), name, MAX_NAME_BYTES)
        })
        .collect()
}

/// A filter by status; empty takes all.
pub fn statuses(check: &mut Check, numbers: &[i32]) -> Vec<TaskStatus> {
    let mut statuses = Vec::new();
    for (index, number) in numbers.iter().enumerate() {
        match common::task_status(&format!("statuses[{index}]"), *number) {
            Ok(status) => statuses.push(status),
            Err(invalid) => check.violation(invalid.field, invalid.problem),
        }
    }
    statuses
}

pub(super) fn agent(check: &mut Check, field: &str, agent: String) -> String {
    if agent.is_empty() {
        return DEFAULT_AGENT.to_owned();
    }
    check.word(field, &agent, MAX_WORD_BYTES);
    agent
}

pub(super) fn model(check: &mut Check, field: &str, model: String) -> String {
    if !model.is_empty() {
        check.word(field, &model, MAX_NAME_BYTES);
    }
    model
}

fn labels(check: &mut Check, field: &str, mut labels: Vec<String>) -> Vec<String> {
    if labels.len() > MAX_LABELS {
        check.violation(field, format!("holds {} labels; at most {MAX_LABELS} are taken", labels.len()));
        labels.truncate(MAX_LABELS);
    }
    for (index, label) in labels.iter().enumerate() {
        check.word(&format!("{field}[{index}]"), label, MAX_WORD_BYTES);
    }
    labels.sort();
    labels.dedup();
    labels
}

fn copy_files(check: &mut Check, field: &str, mut globs: Vec<String>) -> Vec<String> {
    if globs.len() > MAX_COPY_FILES {
        check.violation(field, format!("holds {} globs; at most {MAX_COPY_FILES} are taken", globs.len()));
        globs.truncate(MAX_COPY_FILES);
    }
    for (index, glob) in globs.iter_mut().enumerate() {
        let field = format!("{field}[{index}]");
        if glob.is_empty() {
            check.violation(&field, "is empty");
        } else if glob.starts_with('/') || glob.split('/').any(|part| part == "..") {
            check.violation(&field, "must stay inside the repository: no leading `/`, no `..`");
        }
        *glob = check.line(&field, std::mem::take(glob), MAX_GLOB_BYTES);
    }
    globs
}

fn limits(check: &mut Check, prefix: &str, limits: Option<&pb::TaskLimits>) -> TaskLimits {
    let Some(limits) = limits else { return TaskLimits::default() };
    check.unserved(format!("{prefix}limits.cost_micro_usd"), limits.cost_micro_usd.is_some());
    check.unserved(format!("{prefix}limits.iterations"), limits.iterations.is_some());
    TaskLimits {
        wall_time: contract::wall_time(check, &format!("{prefix}limits.wall_time"), limits.wall_time.as_ref()),
        max_retries: limits
            .max_retries
            .map(|retries| check.range(&format!("{prefix}limits.max_retries"), retries, 0..=contract::MAX_RETRIES)),
    }
}

/// Characters of a plan's first line that become the name of a lone task.
const NAME_FROM_PLAN: usize = 60;

/// A name for a lone task that has none: how its plan begins.
fn name_from_plan(plan: &str) -> String {
    let line = plan.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("task");
    let name: String = line.chars().filter(|c| !c.is_control()).take(NAME_FROM_PLAN).collect();
    let mut end = name.len().min(MAX_NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].trim_end().to_owned()
}

// === out ===

/// A task with what stands beside it in the store.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The task.
    pub task: &'a Task,
    /// What it depends on.
    pub depends_on: &'a [TaskId],
    /// Where it stands and why.
    pub explained: &'a Explained,
    /// Name of its daemon; empty for none.
    pub daemon_name: &'a str,
}

/// A task as a caller sees it.
pub fn task(view: View<'_>) -> pb::Task {
    let View { task, depends_on, explained, daemon_name } = view;
    let failure = match &task.state {
        TaskState::Failed { failure, .. } => Some(failure),
        _ => task.tries.last_failure.as_ref(),
    };
    let (not_before, ended) = match &task.state {
        TaskState::Pending { wait, .. } => (wait.as_ref().map(|wait| wait.until), None),
        TaskState::Done { at, .. }
        | TaskState::Merged { at, .. }
        | TaskState::Failed { at, .. }
        | TaskState::Cancelled { at, .. } => (None, Some(*at)),
        TaskState::Starting { .. }
        | TaskState::Running { .. }
        | TaskState::Paused { .. }
        | TaskState::AwaitingInput { .. }
        | TaskState::Finalizing { .. } => (None, None),
    };
    let result_commit = match &task.state {
        TaskState::Done { result, .. } | TaskState::Merged { result, .. } => result.commit.clone(),
        _ => String::new(),
    };
    pb::Task {
        task_id: task.id.to_string(),
        contract_id: task.contract.to_string(),
        owner_id: task.owner.to_string(),
        spec: Some(spec(&task.spec, depends_on)),
        depth: task.depth,
        status: pb::TaskStatus::from(task.status()).into(),
        pending_reason: explained.pending.map_or(pb::PendingReason::Unspecified, pb::PendingReason::from).into(),
        reason: explained.text.clone(),
        not_before: not_before.map(common::timestamp),
        unmet_dependencies: task.unmet,
        attempt: task.attempt,
        daemon_id: common::id_text(task.daemon),
        daemon_name: daemon_name.to_owned(),
        retry_count: task.tries.counted,
        failure_class: failure.map_or(pb::FailureClass::Unspecified, |failure| failure.class.into()).into(),
        error_message: failure.map(|failure| failure.message.clone()).unwrap_or_default(),
        result_commit,
        branch: task.branch.clone(),
        interrupt_time: task.interrupted.map(common::timestamp),
        create_time: Some(common::timestamp(task.created)),
        update_time: Some(common::timestamp(task.updated)),
        start_time: task.started.map(common::timestamp),
        end_time: ended.map(common::timestamp),
        version: task.version,
        etag: etag(task.version),
        usage: Some((&task.usage).into()),
        checkpoint_id: common::id_text(task.checkpoint),
    }
}

fn spec(spec: &TaskSpec, depends_on: &[TaskId]) -> pb::TaskSpec {
    pb::TaskSpec {
        name: spec.name.clone(),
        description: spec.description.clone(),
        plan: spec.plan.clone(),
        priority: spec.priority,
        agent: spec.agent.clone(),
        model: spec.model.clone(),
        labels: spec.labels.clone(),
        repository: spec.repository.clone(),
        base_branch: spec.base_branch.clone(),
        depends_on: depends_on.iter().map(ToString::to_string).collect(),
        copy_files: spec.copy_files.clone(),
        setup_command: spec.setup_command.clone(),
        limits: Some(pb::TaskLimits {
            wall_time: spec.limits.wall_time.map(common::duration),
            max_retries: spec.limits.max_retries,
            cost_micro_usd: None,
            iterations: None,
        }),
        hidden: spec.hidden,
        parent_task_id: common::id_text(spec.parent),
        branched_from_task_id: common::id_text(spec.branched_from.map(|from| from.task)),
        checkpoint_id: common::id_text(spec.branched_from.map(|from| from.checkpoint)),
        with_conversation: spec.branched_from.is_some_and(|from| from.conversation),
        ..Default::default()
    }
}

/// An attempt as a caller sees it. `output_bytes`: what the server holds of its output.
pub fn attempt(attempt: &Attempt, daemon_name: &str, output_bytes: i64) -> pb::Attempt {
    let (ended, outcome) = match &attempt.state {
        AttemptState::Ended { at, outcome } => (Some(*at), Some(outcome)),
        _ => (None, None),
    };
    let failure = outcome.and_then(|outcome| outcome.as_ref().err());
    let result = outcome.and_then(|outcome| outcome.as_ref().ok());
    let (restored, resumed_attempt) = match attempt.origin {
        Origin::Base => (String::new(), 0),
        Origin::Worktree { attempt } => (String::new(), attempt),
        Origin::Checkpoint { id } => (id.to_string(), 0),
    };
    pb::Attempt {
        task_id: attempt.task.to_string(),
        number: attempt.number,
        attempt_id: attempt.id.to_string(),
        daemon_id: attempt.daemon.to_string(),
        daemon_name: daemon_name.to_owned(),
        status: pb::AttemptStatus::from(attempt.state.status()).into(),
        failure_class: failure.map_or(pb::FailureClass::Unspecified, |failure| failure.class.into()).into(),
        error_message: failure.map(|failure| failure.message.clone()).unwrap_or_default(),
        branch: attempt.branch.clone(),
        worktree_path: attempt.worktree.clone(),
        agent_session_id: attempt.agent_session_id.clone(),
        agent_version: attempt.agent_version.clone(),
        usage: Some((&attempt.usage).into()),
        result_commit: result.map(|result| result.commit.clone()).unwrap_or_default(),
        assign_time: Some(common::timestamp(attempt.assigned)),
        start_time: attempt.started.map(common::timestamp),
        end_time: ended.map(common::timestamp),
        output_bytes,
        warnings: attempt.warnings.clone(),
        last_message: attempt.last_message.clone(),
        checkpoint_id: common::id_text(attempt.checkpoint),
        checkpoint_time: attempt.checkpointed.map(common::timestamp),
        checkpoint_error: attempt.checkpoint_failed.as_ref().map(|(_, why)| why.clone()).unwrap_or_default(),
        checkpoint_error_time: attempt.checkpoint_failed.as_ref().map(|(at, _)| common::timestamp(*at)),
        restored_checkpoint_id: restored,
        resumed_attempt,
    }
}

/// What a task has made, if it has; `attempt` is the one that made it.
pub fn result(task: &Task, attempt: Option<&Attempt>) -> Option<pb::TaskResult> {
    let (TaskState::Done { result, .. } | TaskState::Merged { result, .. }) = &task.state else { return None };
    let pack = result.pack.as_ref().filter(|_| !result.blob.is_empty());
    Some(pb::TaskResult {
        commit: result.commit.clone(),
        base_commit: attempt.map(|attempt| attempt.base_commit.clone()).unwrap_or_default(),
        branch: result.branch.clone(),
        result_ref: result.result_ref.clone(),
        blob_id: result.blob.clone(),
        bytes: pack.map_or(0, |pack| pack.bytes),
        sha256: pack.map(|pack| sha256_bytes(&pack.sha256)).unwrap_or_default(),
    })
}

/// One edge, seen from either end.
pub fn dependency(id: TaskId, name: &str, status: TaskStatus, satisfied: bool) -> pb::Dependency {
    pb::Dependency {
        task_id: id.to_string(),
        name: name.to_owned(),
        status: pb::TaskStatus::from(status).into(),
        satisfied,
    }
}

/// Tasks made together, in one answer that clients accept: where their plans are too big for it, they are left out of the
/// answer, which only repeats them.
pub fn fit_answer(tasks: &mut [pb::Task]) {
    let size: usize = tasks.iter().map(prost::Message::encoded_len).sum();
    if size > MAX_ANSWER_BYTES {
        for spec in tasks.iter_mut().filter_map(|task| task.spec.as_mut()) {
            spec.plan.clear();
            spec.description.clear();
            spec.setup_command.clear();
            spec.copy_files.clear();
            spec.depends_on.clear();
        }
    }
}

/// Who holds something, and why.
pub fn hold(hold: &Hold) -> String {
    if hold.reason.is_empty() { hold.by.clone() } else { format!("{}: {}", hold.by, hold.reason) }
}

impl From<AttemptStatus> for pb::AttemptStatus {
    fn from(status: AttemptStatus) -> Self {
        match status {
            AttemptStatus::Assigned => Self::Assigned,
            AttemptStatus::Accepted => Self::Accepted,
            AttemptStatus::Running => Self::Running,
            AttemptStatus::Ending => Self::Ending,
            AttemptStatus::Finalizing => Self::Finalizing,
            AttemptStatus::Disconnected => Self::Disconnected,
            AttemptStatus::Ended => Self::Ended,
        }
    }
}

impl From<PendingReason> for pb::PendingReason {
    fn from(reason: PendingReason) -> Self {
        match reason {
            PendingReason::Ready => Self::Ready,
            PendingReason::Dependencies => Self::Dependencies,
            PendingReason::Blocked => Self::Blocked,
            PendingReason::NoMatchingDaemon => Self::NoMatchingDaemon,
            PendingReason::NoFreeSlot => Self::NoFreeSlot,
            PendingReason::ConcurrencyLimit => Self::ConcurrencyLimit,
            PendingReason::Backoff => Self::Backoff,
            PendingReason::UsageLimit => Self::UsageLimit,
            PendingReason::Held => Self::Held,
            PendingReason::NoDaemon => Self::NoDaemon,
            PendingReason::DaemonsNotAccepting => Self::DaemonsNotAccepting,
            PendingReason::PreviousAttempt => Self::PreviousAttempt,
        }
    }
}

#[cfg(test)]
mod tests;

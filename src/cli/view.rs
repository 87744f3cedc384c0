//! What programs read with `--json`: the protocol's messages with its field names, times in RFC 3339, enum words without
//! their prefix (`DONE`), durations in seconds. Fields are added, never renamed.

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use crate::{daemon::worktree::Listed, domain::Timestamp, wire::pb};

/// The point in time of a protobuf timestamp.
pub fn time(time: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    time.map(|time| {
        let micros = time.seconds.saturating_mul(1_000_000).saturating_add(i64::from(time.nanos) / 1_000);
        Timestamp(micros)
    })
}

/// A time as RFC 3339 text.
pub fn rfc3339(time: Timestamp) -> String {
    let since = Duration::from_micros(time.0.max(0).unsigned_abs());
    humantime::format_rfc3339_micros(UNIX_EPOCH + since).to_string()
}

fn stamp(value: Option<&prost_types::Timestamp>) -> Option<String> {
    time(value).map(rfc3339)
}

fn seconds(duration: Option<&prost_types::Duration>) -> Option<f64> {
    duration.map(|d| {
        let nanos = f64::from(d.nanos) / 1e9;
        #[expect(clippy::cast_precision_loss, reason = "durations a person sets are far below 2^52 seconds")]
        let secs = d.seconds as f64;
        secs + nanos
    })
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident: $kind:ty, $prefix:literal;)+) => {$(
        $(#[$doc])*
        pub fn $name(value: $kind) -> &'static str {
            let word = value.as_str_name();
            word.strip_prefix($prefix).unwrap_or(word)
        }
    )+};
}

words! {
    /// `DONE`.
    task_status: pb::TaskStatus, "TASK_STATUS_";
    /// `BACKOFF`.
    pending_reason: pb::PendingReason, "PENDING_REASON_";
    /// `ENDED`.
    attempt_status: pb::AttemptStatus, "ATTEMPT_STATUS_";
    /// `AGENT_CRASHED`.
    failure_class: pb::FailureClass, "FAILURE_CLASS_";
    /// `ACTIVE`.
    contract_status: pb::ContractStatus, "CONTRACT_STATUS_";
    /// `ATTACHED`.
    daemon_status: pb::DaemonStatus, "DAEMON_STATUS_";
    /// `OWNER`.
    key_kind: pb::KeyKind, "KEY_KIND_";
}

/// The word, or nothing where it is unset.
fn set(word: &'static str) -> Option<&'static str> {
    (word != "UNSPECIFIED").then_some(word)
}

/// A contract.
#[derive(Serialize)]
pub struct Contract<'a> {
    contract_id: &'a str,
    owner_id: &'a str,
    name: &'a str,
    description: &'a str,
    repository: &'a str,
    base_branch: &'a str,
    limits: Limits,
    status: &'static str,
    held_by: &'a str,
    task_counts: Counts,
    anonymous: bool,
    live_attempts: u32,
    create_time: Option<String>,
    update_time: Option<String>,
    end_time: Option<String>,
    etag: &'a str,
}

#[derive(Serialize)]
struct Limits {
    concurrency: Option<u32>,
    max_retries: Option<u32>,
    wall_time: Option<f64>,
    rerun_after: Option<f64>,
    checkpoint_every: Option<f64>,
    final_checkpoint: Option<bool>,
}

#[derive(Serialize)]
struct Counts {
    pending: u32,
    starting: u32,
    running: u32,
    finalizing: u32,
    done: u32,
    merged: u32,
    failed: u32,
    cancelled: u32,
}

impl<'a> From<&'a pb::Contract> for Contract<'a> {
    fn from(contract: &'a pb::Contract) -> Self {
        let limits = contract.limits.unwrap_or_default();
        let counts = contract.task_counts.unwrap_or_default();
        Self {
            contract_id: &contract.contract_id,
            owner_id: &contract.owner_id,
            name: &contract.name,
            description: &contract.description,
            repository: &contract.repository,
            base_branch: &contract.base_branch,
            limits: Limits {
                concurrency: limits.concurrency,
                max_retries: limits.max_retries,
                wall_time: seconds(limits.wall_time.as_ref()),
                rerun_after: seconds(limits.rerun_after.as_ref()),
                checkpoint_every: seconds(limits.checkpoint_every.as_ref()),
                final_checkpoint: limits.final_checkpoint,
            },
            status: contract_status(contract.status()),
            held_by: &contract.held_by,
            task_counts: Counts {
                pending: counts.pending,
                starting: counts.starting,
                running: counts.running,
                finalizing: counts.finalizing,
                done: counts.done,
                merged: counts.merged,
                failed: counts.failed,
                cancelled: counts.cancelled,
            },
            anonymous: contract.anonymous,
            live_attempts: contract.live_attempts,
            create_time: stamp(contract.create_time.as_ref()),
            update_time: stamp(contract.update_time.as_ref()),
            end_time: stamp(contract.end_time.as_ref()),
            etag: &contract.etag,
        }
    }
}

/// A task.
#[derive(Serialize)]
pub struct Task<'a> {
    task_id: &'a str,
    contract_id: &'a str,
    owner_id: &'a str,
    spec: Option<Spec<'a>>,
    depth: u32,
    status: &'static str,
    pending_reason: Option<&'static str>,
    reason: &'a str,
    not_before: Option<String>,
    unmet_dependencies: u32,
    attempt: u32,
    daemon_id: &'a str,
    daemon_name: &'a str,
    retry_count: u32,
    failure_class: Option<&'static str>,
    error_message: &'a str,
    result_commit: &'a str,
    branch: &'a str,
    interrupt_time: Option<String>,
    create_time: Option<String>,
    update_time: Option<String>,
    start_time: Option<String>,
    end_time: Option<String>,
    version: i64,
    etag: &'a str,
    usage: Option<Usage>,
    checkpoint_id: &'a str,
}

#[derive(Serialize)]
struct Spec<'a> {
    name: &'a str,
    description: &'a str,
    plan: &'a str,
    priority: i32,
    agent: &'a str,
    model: &'a str,
    labels: &'a [String],
    repository: &'a str,
    base_branch: &'a str,
    depends_on: &'a [String],
    copy_files: &'a [String],
    setup_command: &'a str,
    hidden: bool,
    parent_task_id: &'a str,
    branched_from_task_id: &'a str,
    checkpoint_id: &'a str,
    with_conversation: bool,
    limits: TaskLimits,
}

#[derive(Serialize)]
struct TaskLimits {
    wall_time: Option<f64>,
    max_retries: Option<u32>,
}

impl<'a> From<&'a pb::TaskSpec> for Spec<'a> {
    fn from(spec: &'a pb::TaskSpec) -> Self {
        Self {
            name: &spec.name,
            description: &spec.description,
            plan: &spec.plan,
            priority: spec.priority,
            agent: &spec.agent,
            model: &spec.model,
            labels: &spec.labels,
            repository: &spec.repository,
            base_branch: &spec.base_branch,
            depends_on: &spec.depends_on,
            copy_files: &spec.copy_files,
            setup_command: &spec.setup_command,
            hidden: spec.hidden,
            parent_task_id: &spec.parent_task_id,
            branched_from_task_id: &spec.branched_from_task_id,
            checkpoint_id: &spec.checkpoint_id,
            with_conversation: spec.with_conversation,
            limits: TaskLimits {
                wall_time: spec.limits.as_ref().and_then(|limits| seconds(limits.wall_time.as_ref())),
                max_retries: spec.limits.as_ref().and_then(|limits| limits.max_retries),
            },
        }
    }
}

#[derive(Serialize)]
struct Usage {
    input_tokens: i64,
    output_tokens: i64,
    cache_read_tokens: i64,
    cache_write_tokens: i64,
    cost_micro_usd: i64,
    turns: u32,
}

impl From<&pb::Usage> for Usage {
    fn from(usage: &pb::Usage) -> Self {
        Self {
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cache_read_tokens: usage.cache_read_tokens,
            cache_write_tokens: usage.cache_write_tokens,
            cost_micro_usd: usage.cost_micro_usd,
            turns: usage.turns,
        }
    }
}

impl<'a> From<&'a pb::Task> for Task<'a> {
    fn from(task: &'a pb::Task) -> Self {
        Self {
            task_id: &task.task_id,
            contract_id: &task.contract_id,
            owner_id: &task.owner_id,
            spec: task.spec.as_ref().map(Spec::from),
            depth: task.depth,
            status: task_status(task.status()),
            pending_reason: set(pending_reason(task.pending_reason())),
            reason: &task.reason,
            not_before: stamp(task.not_before.as_ref()),
            unmet_dependencies: task.unmet_dependencies,
            attempt: task.attempt,
            daemon_id: &task.daemon_id,
            daemon_name: &task.daemon_name,
            retry_count: task.retry_count,
            failure_class: set(failure_class(task.failure_class())),
            error_message: &task.error_message,
            result_commit: &task.result_commit,
            branch: &task.branch,
            interrupt_time: stamp(task.interrupt_time.as_ref()),
            create_time: stamp(task.create_time.as_ref()),
            update_time: stamp(task.update_time.as_ref()),
            start_time: stamp(task.start_time.as_ref()),
            end_time: stamp(task.end_time.as_ref()),
            version: task.version,
            etag: &task.etag,
            usage: task.usage.as_ref().map(Usage::from),
            checkpoint_id: &task.checkpoint_id,
        }
    }
}

/// An attempt.
#[derive(Serialize)]
pub struct Attempt<'a> {
    task_id: &'a str,
    number: u32,
    attempt_id: &'a str,
    daemon_id: &'a str,
    daemon_name: &'a str,
    status: &'static str,
    failure_class: Option<&'static str>,
    error_message: &'a str,
    branch: &'a str,
    worktree_path: &'a str,
    agent_session_id: &'a str,
    agent_version: &'a str,
    usage: Option<Usage>,
    result_commit: &'a str,
    assign_time: Option<String>,
    start_time: Option<String>,
    end_time: Option<String>,
    output_bytes: i64,
    warnings: &'a [String],
    last_message: &'a str,
    checkpoint_id: &'a str,
    checkpoint_time: Option<String>,
    restored_checkpoint_id: &'a str,
    resumed_attempt: u32,
}

impl<'a> From<&'a pb::Attempt> for Attempt<'a> {
    fn from(attempt: &'a pb::Attempt) -> Self {
        Self {
            task_id: &attempt.task_id,
            number: attempt.number,
            attempt_id: &attempt.attempt_id,
            daemon_id: &attempt.daemon_id,
            daemon_name: &attempt.daemon_name,
            status: attempt_status(attempt.status()),
            failure_class: set(failure_class(attempt.failure_class())),
            error_message: &attempt.error_message,
            branch: &attempt.branch,
            worktree_path: &attempt.worktree_path,
            agent_session_id: &attempt.agent_session_id,
            agent_version: &attempt.agent_version,
            usage: attempt.usage.as_ref().map(Usage::from),
            result_commit: &attempt.result_commit,
            assign_time: stamp(attempt.assign_time.as_ref()),
            start_time: stamp(attempt.start_time.as_ref()),
            end_time: stamp(attempt.end_time.as_ref()),
            output_bytes: attempt.output_bytes,
            warnings: &attempt.warnings,
            last_message: &attempt.last_message,
            checkpoint_id: &attempt.checkpoint_id,
            checkpoint_time: stamp(attempt.checkpoint_time.as_ref()),
            restored_checkpoint_id: &attempt.restored_checkpoint_id,
            resumed_attempt: attempt.resumed_attempt,
        }
    }
}

/// One edge.
#[derive(Serialize)]
pub struct Dependency<'a> {
    task_id: &'a str,
    name: &'a str,
    status: &'static str,
    satisfied: bool,
}

impl<'a> From<&'a pb::Dependency> for Dependency<'a> {
    fn from(edge: &'a pb::Dependency) -> Self {
        Self { task_id: &edge.task_id, name: &edge.name, status: task_status(edge.status()), satisfied: edge.satisfied }
    }
}

/// A task with its surroundings.
#[derive(Serialize)]
pub struct TaskDetails<'a> {
    task: Option<Task<'a>>,
    dependencies: Vec<Dependency<'a>>,
    dependents: Vec<Dependency<'a>>,
    attempts: Vec<Attempt<'a>>,
}

impl<'a> From<&'a pb::GetTaskResponse> for TaskDetails<'a> {
    fn from(details: &'a pb::GetTaskResponse) -> Self {
        Self {
            task: details.task.as_ref().map(Task::from),
            dependencies: details.dependencies.iter().map(Dependency::from).collect(),
            dependents: details.dependents.iter().map(Dependency::from).collect(),
            attempts: details.attempts.iter().map(Attempt::from).collect(),
        }
    }
}

/// Why a task is not running.
#[derive(Serialize)]
pub struct Explanation<'a> {
    task: Option<Task<'a>>,
    summary: &'a str,
    actions: &'a [String],
    waiting_for: Vec<Dependency<'a>>,
    daemons: Vec<Fit<'a>>,
}

#[derive(Serialize)]
struct Fit<'a> {
    daemon_id: &'a str,
    name: &'a str,
    fits: bool,
    lacks: &'a [String],
}

impl<'a> From<&'a pb::ExplainTaskResponse> for Explanation<'a> {
    fn from(explanation: &'a pb::ExplainTaskResponse) -> Self {
        Self {
            task: explanation.task.as_ref().map(Task::from),
            summary: &explanation.summary,
            actions: &explanation.actions,
            waiting_for: explanation.waiting_for.iter().map(Dependency::from).collect(),
            daemons: explanation
                .daemons
                .iter()
                .map(|fit| Fit { daemon_id: &fit.daemon_id, name: &fit.name, fits: fit.fits, lacks: &fit.lacks })
                .collect(),
        }
    }
}

/// A change of a contract or task.
#[derive(Serialize)]
pub struct Change<'a> {
    sequence: i64,
    time: Option<String>,
    event: &'a str,
    contract_id: &'a str,
    task_id: &'a str,
    task_name: &'a str,
    version: i64,
    status: Option<&'static str>,
    attempt: u32,
    daemon_id: &'a str,
    daemon_name: &'a str,
    fields: &'a [String],
    actor: &'a str,
    detail: &'a str,
}

impl<'a> From<&'a pb::Change> for Change<'a> {
    fn from(change: &'a pb::Change) -> Self {
        Self {
            sequence: change.sequence,
            time: stamp(change.time.as_ref()),
            event: &change.event,
            contract_id: &change.contract_id,
            task_id: &change.task_id,
            task_name: &change.task_name,
            version: change.version,
            status: set(task_status(change.status())),
            attempt: change.attempt,
            daemon_id: &change.daemon_id,
            daemon_name: &change.daemon_name,
            fields: &change.fields,
            actor: &change.actor,
            detail: &change.detail,
        }
    }
}

/// A dependency that analysis would add, or a violation it found.
#[derive(Serialize)]
pub struct Suggestion<'a> {
    kind: &'static str,
    task: &'a str,
    depends_on: &'a str,
    reason: &'a str,
}

impl<'a> From<&'a pb::SuggestedDependency> for Suggestion<'a> {
    fn from(suggestion: &'a pb::SuggestedDependency) -> Self {
        Self {
            kind: "suggestion",
            task: &suggestion.task,
            depends_on: &suggestion.depends_on,
            reason: &suggestion.reason,
        }
    }
}

impl<'a> From<&'a pb::DependencyViolation> for Suggestion<'a> {
    fn from(violation: &'a pb::DependencyViolation) -> Self {
        Self { kind: "violation", task: &violation.task, depends_on: &violation.on, reason: &violation.reason }
    }
}

/// A daemon.
#[derive(Serialize)]
pub struct Daemon<'a> {
    daemon_id: &'a str,
    owner_id: &'a str,
    name: &'a str,
    status: &'static str,
    slots: u32,
    live_attempts: u32,
    labels: &'a [String],
    profiles: Vec<Profile<'a>>,
    repositories: &'a [String],
    any_path: bool,
    draining: bool,
    not_accepting: &'a str,
    version: &'a str,
    hostname: &'a str,
    session_epoch: i64,
    create_time: Option<String>,
    last_seen_time: Option<String>,
}

#[derive(Serialize)]
struct Profile<'a> {
    name: &'a str,
    version: &'a str,
}

impl<'a> From<&'a pb::Daemon> for Daemon<'a> {
    fn from(daemon: &'a pb::Daemon) -> Self {
        Self {
            daemon_id: &daemon.daemon_id,
            owner_id: &daemon.owner_id,
            name: &daemon.name,
            status: daemon_status(daemon.status()),
            slots: daemon.slots,
            live_attempts: daemon.live_attempts,
            labels: &daemon.labels,
            profiles: daemon
                .profiles
                .iter()
                .map(|profile| Profile { name: &profile.name, version: &profile.version })
                .collect(),
            repositories: &daemon.repositories,
            any_path: daemon.any_path,
            draining: daemon.draining,
            not_accepting: &daemon.not_accepting,
            version: &daemon.version,
            hostname: &daemon.hostname,
            session_epoch: daemon.session_epoch,
            create_time: stamp(daemon.create_time.as_ref()),
            last_seen_time: stamp(daemon.last_seen_time.as_ref()),
        }
    }
}

/// A daemon with its live attempts.
#[derive(Serialize)]
pub struct DaemonDetails<'a> {
    daemon: Option<Daemon<'a>>,
    attempts: Vec<Attempt<'a>>,
}

impl<'a> From<&'a pb::GetDaemonResponse> for DaemonDetails<'a> {
    fn from(details: &'a pb::GetDaemonResponse) -> Self {
        Self {
            daemon: details.daemon.as_ref().map(Daemon::from),
            attempts: details.attempts.iter().map(Attempt::from).collect(),
        }
    }
}

/// A key, with its secret only when it was just made.
#[derive(Serialize)]
pub struct Key<'a> {
    key_id: &'a str,
    kind: &'static str,
    owner_id: &'a str,
    owner_name: &'a str,
    label: &'a str,
    create_time: Option<String>,
    revoke_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
}

impl<'a> Key<'a> {
    /// With the secret.
    pub fn with_secret(mut self, secret: &'a str) -> Self {
        self.secret = Some(secret);
        self
    }
}

impl<'a> From<&'a pb::Key> for Key<'a> {
    fn from(key: &'a pb::Key) -> Self {
        Self {
            key_id: &key.key_id,
            kind: key_kind(key.kind()),
            owner_id: &key.owner_id,
            owner_name: &key.owner_name,
            label: &key.label,
            create_time: stamp(key.create_time.as_ref()),
            revoke_time: stamp(key.revoke_time.as_ref()),
            secret: None,
        }
    }
}

/// A worktree on this machine.
#[derive(Serialize)]
pub struct Worktree<'a> {
    task_id: String,
    attempt: u32,
    attempt_id: String,
    name: &'a str,
    path: &'a std::path::Path,
    repository: &'a str,
    branch: &'a str,
    exists: bool,
    busy: bool,
    dirty: bool,
    published: bool,
}

impl<'a> From<&'a Listed> for Worktree<'a> {
    fn from(listed: &'a Listed) -> Self {
        Self {
            task_id: listed.attempt.task.to_string(),
            attempt: listed.attempt.number,
            attempt_id: listed.attempt.id.to_string(),
            name: &listed.name,
            path: &listed.path,
            repository: &listed.repository,
            branch: &listed.branch,
            exists: listed.exists,
            busy: listed.busy,
            dirty: listed.dirty,
            published: listed.published,
        }
    }
}

/// The last 12 hex digits of an id: what people copy.
pub fn short(id: &str) -> String {
    let hex: String = id.chars().filter(|c| *c != '-').collect();
    let start = hex.len().saturating_sub(12);
    hex.get(start..).unwrap_or(&hex).to_owned()
}

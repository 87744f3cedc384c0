//! The words between server and daemon, in both directions: each side speaks with the half that the other one reads.
//!
//! ```text
//!   daemon                                            server
//!     Hello, Heartbeat, CommandAnswer, Message  ───>    domain values, or which field is wrong
//!     domain values, or which field is wrong    <───  Welcome, HeartbeatAnswer, Command, MessageAnswer, Closing
//!     Chunk ───> Receipt                              (UploadChunks, a connection of its own)
//! ```
//!
//! Ids, numbers and enum words are refused where they are wrong. Free text in reports is not: it is cut and cleaned
//! ([`Report::bounded`]), because a report that can never be taken would be sent for ever.

use std::time::Duration;

use bytes::Bytes;

use super::{
    checkpoint::{pack, sha256_bytes},
    common::{
        Invalid, attempt_ref, duration, duration_from, failure_class, id, id_text, optional_id, required_timestamp,
        shown, task_status, timestamp, timestamp_from,
    },
    pb,
};
use crate::domain::{
    AttemptRef, CommandId, Epoch, JournalId, Timestamp,
    analysis::Category,
    attempt::{Failure, TaskResult, Usage},
    daemon::{Card, Hello, Profile},
    order::{Answer, Command, ContractTask, DependencyResult, Order, Resume, Spawn},
    reconcile::Verdict,
    report::{Complete, InventoryItem, InventoryState, Message, MessageOutcome, Progress, Report},
};

/// The protocol versions this binary speaks.
pub const PROTOCOL: (u32, u32) = (1, 1);
/// Bytes of one message of the session.
pub const MAX_CONTROL_BYTES: usize = 1024 * 1024;
/// Bytes of one chunk.
pub const MAX_CHUNK_BYTES: usize = 512 * 1024;
/// Bytes of a daemon's name, a label, a profile or any other word of its card.
const MAX_WORD_BYTES: usize = 200;
/// Bytes of a repository's URL or path, and of a reason for taking no work.
const MAX_TEXT_BYTES: usize = 4 * 1024;
/// Labels, profiles or repositories of one daemon: more are a mistake.
const MAX_LIST: usize = 1_000;

// === Hello ===

impl From<&Hello> for pb::Hello {
    fn from(hello: &Hello) -> Self {
        let card = &hello.card;
        Self {
            protocol_min: hello.protocol.0,
            protocol_max: hello.protocol.1,
            version: card.version.clone(),
            daemon_id: hello.daemon.to_string(),
            boot_id: hello.boot.to_string(),
            journal_id: hello.journal.to_string(),
            name: card.name.clone(),
            slots: card.slots,
            labels: card.labels.clone(),
            profiles: card
                .profiles
                .iter()
                .map(|p| pb::AgentProfile { name: p.name.clone(), version: p.version.clone() })
                .collect(),
            repositories: card.repositories.clone(),
            any_path: card.any_path,
            attach: hello.attach,
            last_command_sequence: hello.last_command,
            first_unanswered_message: hello.unanswered.0,
            last_unanswered_message: hello.unanswered.1,
            inventory: hello.inventory.iter().map(pb::InventoryItem::from).collect(),
            not_accepting: card.not_accepting.clone(),
            clock: Some(timestamp(hello.clock)),
            hostname: card.hostname.clone(),
        }
    }
}

impl TryFrom<&pb::Hello> for Hello {
    type Error = Invalid;

    fn try_from(hello: &pb::Hello) -> Result<Self, Invalid> {
        if hello.name.is_empty() {
            return Err(Invalid::new("name", "is required"));
        }
        Ok(Self {
            protocol: (hello.protocol_min, hello.protocol_max),
            daemon: id("daemon_id", &hello.daemon_id)?,
            boot: id("boot_id", &hello.boot_id)?,
            journal: id("journal_id", &hello.journal_id)?,
            card: Card {
                name: word("name", &hello.name)?,
                slots: hello.slots,
                labels: words("labels", &hello.labels, MAX_WORD_BYTES)?,
                profiles: profiles(&hello.profiles)?,
                repositories: words("repositories", &hello.repositories, MAX_TEXT_BYTES)?,
                any_path: hello.any_path,
                not_accepting: text("not_accepting", &hello.not_accepting, MAX_TEXT_BYTES)?,
                version: word("version", &hello.version)?,
                hostname: word("hostname", &hello.hostname)?,
            },
            attach: hello.attach.max(0),
            last_command: hello.last_command_sequence.max(0),
            unanswered: (hello.first_unanswered_message.max(0), hello.last_unanswered_message.max(0)),
            inventory: hello.inventory.iter().map(InventoryItem::try_from).collect::<Result<_, _>>()?,
            clock: required_timestamp("clock", hello.clock.as_ref())?,
        })
    }
}

fn profiles(profiles: &[pb::AgentProfile]) -> Result<Vec<Profile>, Invalid> {
    at_most("profiles", profiles.len())?;
    let one = |p: &pb::AgentProfile| {
        Ok(Profile { name: word("profiles.name", &p.name)?, version: word("profiles.version", &p.version)? })
    };
    profiles.iter().map(one).collect()
}

fn words(field: &str, words: &[String], limit: usize) -> Result<Vec<String>, Invalid> {
    at_most(field, words.len())?;
    words.iter().map(|w| text(field, w, limit)).collect()
}

fn word(field: &str, value: &str) -> Result<String, Invalid> {
    text(field, value, MAX_WORD_BYTES)
}

fn text(field: &str, value: &str, limit: usize) -> Result<String, Invalid> {
    if value.len() > limit {
        return Err(Invalid::new(field, format!("has {} bytes; at most {limit}", value.len())));
    }
    if value.contains('\0') {
        return Err(Invalid::new(field, format!("must not contain NUL: `{}`", shown(value))));
    }
    Ok(value.to_owned())
}

fn at_most(field: &str, count: usize) -> Result<(), Invalid> {
    if count > MAX_LIST {
        return Err(Invalid::new(field, format!("has {count} entries; at most {MAX_LIST}")));
    }
    Ok(())
}

impl From<&InventoryItem> for pb::InventoryItem {
    fn from(item: &InventoryItem) -> Self {
        Self {
            attempt: Some(item.attempt.into()),
            state: pb::InventoryState::from(item.state).into(),
            worktree_path: item.worktree.clone(),
            worktree_intact: item.worktree_intact,
        }
    }
}

impl TryFrom<&pb::InventoryItem> for InventoryItem {
    type Error = Invalid;

    fn try_from(item: &pb::InventoryItem) -> Result<Self, Invalid> {
        Ok(Self {
            attempt: attempt_ref("inventory.attempt", item.attempt.as_ref())?,
            state: inventory_state("inventory.state", item.state)?,
            worktree: text("inventory.worktree_path", &item.worktree_path, MAX_TEXT_BYTES)?,
            worktree_intact: item.worktree_intact,
        })
    }
}

impl From<InventoryState> for pb::InventoryState {
    fn from(state: InventoryState) -> Self {
        match state {
            InventoryState::Accepted => Self::Accepted,
            InventoryState::Running => Self::Running,
            InventoryState::Ending => Self::Ending,
            InventoryState::Reported => Self::Reported,
            InventoryState::Interrupted => Self::Interrupted,
        }
    }
}

fn inventory_state(field: &str, number: i32) -> Result<InventoryState, Invalid> {
    let unknown = || Invalid::new(field, format!("is not an inventory state: {number}"));
    Ok(match pb::InventoryState::try_from(number).map_err(|_| unknown())? {
        pb::InventoryState::Unspecified => return Err(unknown()),
        pb::InventoryState::Accepted => InventoryState::Accepted,
        pb::InventoryState::Running => InventoryState::Running,
        pb::InventoryState::Ending => InventoryState::Ending,
        pb::InventoryState::Reported => InventoryState::Reported,
        pb::InventoryState::Interrupted => InventoryState::Interrupted,
    })
}

// === Welcome ===

/// How a server answers [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Protocol chosen.
    pub protocol: u32,
    /// Number of the session.
    pub epoch: Epoch,
    /// How often to send heartbeats.
    pub heartbeat_interval: Duration,
    /// After how long a silence the daemon counts as lost.
    pub lost_after: Duration,
    /// One for each attempt of the inventory.
    pub verdicts: Vec<(AttemptRef, Verdict)>,
    /// Version of the server.
    pub server_version: String,
    /// Its clock.
    pub clock: Timestamp,
}

impl From<&Welcome> for pb::Welcome {
    fn from(welcome: &Welcome) -> Self {
        let verdict = |(attempt, verdict): &(AttemptRef, Verdict)| pb::AttemptVerdict {
            attempt: Some((*attempt).into()),
            verdict: pb::Verdict::from(*verdict).into(),
        };
        Self {
            protocol: welcome.protocol,
            session_epoch: welcome.epoch.0,
            heartbeat_interval: Some(duration(welcome.heartbeat_interval)),
            lost_after: Some(duration(welcome.lost_after)),
            verdicts: welcome.verdicts.iter().map(verdict).collect(),
            server_version: welcome.server_version.clone(),
            clock: Some(timestamp(welcome.clock)),
        }
    }
}

impl TryFrom<&pb::Welcome> for Welcome {
    type Error = Invalid;

    fn try_from(welcome: &pb::Welcome) -> Result<Self, Invalid> {
        let span = |field: &str, span: Option<&prost_types::Duration>| {
            duration_from(field, span.ok_or_else(|| Invalid::new(field, "is required"))?)
        };
        let one = |v: &pb::AttemptVerdict| {
            Ok((attempt_ref("verdicts.attempt", v.attempt.as_ref())?, verdict("verdicts.verdict", v.verdict)?))
        };
        Ok(Self {
            protocol: welcome.protocol,
            epoch: Epoch(welcome.session_epoch),
            heartbeat_interval: span("heartbeat_interval", welcome.heartbeat_interval.as_ref())?,
            lost_after: span("lost_after", welcome.lost_after.as_ref())?,
            verdicts: welcome.verdicts.iter().map(one).collect::<Result<_, _>>()?,
            server_version: welcome.server_version.clone(),
            clock: required_timestamp("clock", welcome.clock.as_ref())?,
        })
    }
}

impl From<Verdict> for pb::Verdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Keep => Self::Keep,
            Verdict::Cancel => Self::Cancel,
            Verdict::ResumeHere => Self::ResumeHere,
            Verdict::Restore => Self::Restore,
            Verdict::ReportAgain => Self::ReportAgain,
            Verdict::Fenced => Self::Fenced,
            Verdict::Salvage => Self::Salvage,
            Verdict::Forget => Self::Forget,
        }
    }
}

fn verdict(field: &str, number: i32) -> Result<Verdict, Invalid> {
    let unknown = || Invalid::new(field, format!("is not a verdict: {number}"));
    Ok(match pb::Verdict::try_from(number).map_err(|_| unknown())? {
        pb::Verdict::Unspecified => return Err(unknown()),
        pb::Verdict::Keep => Verdict::Keep,
        pb::Verdict::Cancel => Verdict::Cancel,
        pb::Verdict::ResumeHere => Verdict::ResumeHere,
        pb::Verdict::Restore => Verdict::Restore,
        pb::Verdict::ReportAgain => Verdict::ReportAgain,
        pb::Verdict::Fenced => Verdict::Fenced,
        pb::Verdict::Salvage => Verdict::Salvage,
        pb::Verdict::Forget => Verdict::Forget,
    })
}

// === Heartbeat ===

/// Says that a daemon lives, and how it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Attempts that live.
    pub live: Vec<AttemptRef>,
    /// Slots without an attempt.
    pub free_slots: u32,
    /// Load average over a minute, times 100.
    pub load_percent: u32,
    /// Free bytes where worktrees are made.
    pub disk_free_bytes: i64,
    /// Why it takes no new work; empty when it does.
    pub not_accepting: String,
}

impl From<&Heartbeat> for pb::Heartbeat {
    fn from(heartbeat: &Heartbeat) -> Self {
        Self {
            live: heartbeat.live.iter().map(|a| (*a).into()).collect(),
            free_slots: heartbeat.free_slots,
            load_percent: heartbeat.load_percent,
            disk_free_bytes: heartbeat.disk_free_bytes,
            not_accepting: heartbeat.not_accepting.clone(),
        }
    }
}

impl TryFrom<&pb::Heartbeat> for Heartbeat {
    type Error = Invalid;

    fn try_from(heartbeat: &pb::Heartbeat) -> Result<Self, Invalid> {
        Ok(Self {
            live: attempts("live", &heartbeat.live)?,
            free_slots: heartbeat.free_slots,
            load_percent: heartbeat.load_percent,
            disk_free_bytes: heartbeat.disk_free_bytes.max(0),
            not_accepting: text("not_accepting", &heartbeat.not_accepting, MAX_TEXT_BYTES)?,
        })
    }
}

/// The attempts to end that a heartbeat's answer names.
pub fn cancelled_by(answer: &pb::HeartbeatAnswer) -> Result<Vec<AttemptRef>, Invalid> {
    attempts("cancel", &answer.cancel)
}

/// A heartbeat's answer that asks for the end of these attempts.
pub fn heartbeat_answer(cancel: &[AttemptRef]) -> pb::HeartbeatAnswer {
    pb::HeartbeatAnswer { cancel: cancel.iter().map(|a| (*a).into()).collect() }
}

fn attempts(field: &str, attempts: &[pb::AttemptRef]) -> Result<Vec<AttemptRef>, Invalid> {
    attempts.iter().map(|a| AttemptRef::try_from(a).map_err(|e| e.within(field))).collect()
}

// === Command ===

impl From<&Command> for pb::DaemonCommand {
    fn from(command: &Command) -> Self {
        let kind = match &command.order {
            Order::Spawn(spawn) => pb::daemon_command::Kind::SpawnTask(Box::new(spawn.as_ref().into())),
            Order::Cancel { reason, grace } => pb::daemon_command::Kind::CancelTask(pb::CancelTask {
                reason: reason.clone(),
                grace: Some(duration(*grace)),
            }),
            Order::Checkpoint => pb::daemon_command::Kind::TakeCheckpoint(pb::TakeCheckpoint {}),
        };
        Self {
            sequence: command.sequence,
            command_id: command.id.to_string(),
            session_epoch: command.epoch.0,
            attempt: Some(command.attempt.into()),
            kind: Some(kind),
        }
    }
}

impl TryFrom<&pb::DaemonCommand> for Command {
    type Error = Invalid;

    fn try_from(command: &pb::DaemonCommand) -> Result<Self, Invalid> {
        let order = match command.kind.as_ref().ok_or_else(|| Invalid::new("kind", "is required"))? {
            pb::daemon_command::Kind::SpawnTask(spawn) => {
                Order::Spawn(Box::new(Spawn::try_from(spawn.as_ref()).map_err(|e| e.within("spawn_task"))?))
            }
            pb::daemon_command::Kind::CancelTask(cancel) => Order::Cancel {
                reason: cancel.reason.clone(),
                grace: span_or("cancel_task.grace", cancel.grace.as_ref(), crate::domain::order::DEFAULT_GRACE)?,
            },
            pb::daemon_command::Kind::TakeCheckpoint(_) => Order::Checkpoint,
        };
        Ok(Self {
            sequence: command.sequence,
            id: id("command_id", &command.command_id)?,
            epoch: Epoch(command.session_epoch),
            attempt: attempt_ref("attempt", command.attempt.as_ref())?,
            order,
        })
    }
}

fn span_or(field: &str, span: Option<&prost_types::Duration>, default: Duration) -> Result<Duration, Invalid> {
    span.map_or(Ok(default), |span| duration_from(field, span))
}

impl From<&Spawn> for pb::SpawnTask {
    fn from(spawn: &Spawn) -> Self {
        Self {
            contract_id: spawn.contract.to_string(),
            contract_name: spawn.contract_name.clone(),
            name: spawn.name.clone(),
            plan: spawn.plan.clone(),
            agent: spawn.agent.clone(),
            model: spawn.model.clone().unwrap_or_default(),
            repository: spawn.repository.clone(),
            base_branch: spawn.base_branch.clone(),
            branch: spawn.branch.clone(),
            result_ref: spawn.result_ref.clone(),
            dependencies: spawn.dependencies.iter().map(pb::DependencyResult::from).collect(),
            setup_command: spawn.setup_command.clone(),
            setup_timeout: Some(duration(spawn.setup_timeout)),
            copy_files: spawn.copy_files.clone(),
            wall_time: spawn.wall_time.map(duration),
            grace: Some(duration(spawn.grace)),
            parent_task_id: id_text(spawn.parent),
            depth: spawn.depth,
            task_key: spawn.task_key.clone(),
            contract_tasks: spawn.contract_tasks.iter().map(pb::ContractTask::from).collect(),
            checkpoint_id: id_text(spawn.resume.as_ref().and_then(Resume::checkpoint)),
            resume_session: spawn.resume.as_ref().is_some_and(|resume| !resume.session_id.is_empty()),
            checkpoint_every: Some(duration(spawn.checkpoint_every)),
            final_checkpoint: spawn.final_checkpoint,
            resume: spawn.resume.as_ref().map(pb::Resume::from),
            conversation_blob: String::new(),
            is_supervisor: false,
            autonomous_loop: false,
            target_repo_path: String::new(),
            completion_action: String::new(),
        }
    }
}

impl TryFrom<&pb::SpawnTask> for Spawn {
    type Error = Invalid;

    fn try_from(spawn: &pb::SpawnTask) -> Result<Self, Invalid> {
        // What this version does not serve is refused, never ignored: another daemon may do better.
        let unserved = [
            // They only repeat what `resume` says.
            ("checkpoint_id", !spawn.checkpoint_id.is_empty() && spawn.resume.is_none()),
            ("resume_session", spawn.resume_session && spawn.resume.is_none()),
            ("conversation_blob", !spawn.conversation_blob.is_empty()),
            ("is_supervisor", spawn.is_supervisor),
            ("autonomous_loop", spawn.autonomous_loop),
            ("target_repo_path", !spawn.target_repo_path.is_empty()),
            ("completion_action", !spawn.completion_action.is_empty()),
        ];
        if let Some((field, _)) = unserved.iter().find(|(_, set)| *set) {
            return Err(Invalid::new(*field, "is not served by this version"));
        }
        Ok(Self {
            contract: id("contract_id", &spawn.contract_id)?,
            contract_name: spawn.contract_name.clone(),
            name: spawn.name.clone(),
            plan: spawn.plan.clone(),
            agent: spawn.agent.clone(),
            model: (!spawn.model.is_empty()).then(|| spawn.model.clone()),
            repository: spawn.repository.clone(),
            base_branch: spawn.base_branch.clone(),
            branch: spawn.branch.clone(),
            result_ref: spawn.result_ref.clone(),
            dependencies: spawn.dependencies.iter().map(DependencyResult::try_from).collect::<Result<_, _>>()?,
            setup_command: spawn.setup_command.clone(),
            setup_timeout: span_or(
                "setup_timeout",
                spawn.setup_timeout.as_ref(),
                crate::domain::order::DEFAULT_SETUP_TIMEOUT,
            )?,
            copy_files: spawn.copy_files.clone(),
            wall_time: spawn.wall_time.as_ref().map(|w| duration_from("wall_time", w)).transpose()?,
            grace: span_or("grace", spawn.grace.as_ref(), crate::domain::order::DEFAULT_GRACE)?,
            parent: optional_id("parent_task_id", &spawn.parent_task_id)?,
            depth: spawn.depth,
            task_key: spawn.task_key.clone(),
            contract_tasks: spawn.contract_tasks.iter().map(ContractTask::try_from).collect::<Result<_, _>>()?,
            checkpoint_every: span_or("checkpoint_every", spawn.checkpoint_every.as_ref(), Duration::ZERO)?,
            final_checkpoint: spawn.final_checkpoint,
            resume: (spawn.resume.as_ref().map(Resume::try_from).transpose()).map_err(|e| e.within("resume"))?,
        })
    }
}

impl From<&DependencyResult> for pb::DependencyResult {
    fn from(dependency: &DependencyResult) -> Self {
        Self {
            task_id: dependency.task.to_string(),
            name: dependency.name.clone(),
            status: pb::TaskStatus::from(dependency.status).into(),
            result_commit: dependency.commit.clone(),
            result_ref: dependency.result_ref.clone(),
            daemon_id: id_text(dependency.daemon),
            result_blob: dependency.blob.clone(),
            result_sha256: sha256_bytes(&dependency.blob_sha256),
            result_bytes: dependency.blob_bytes,
        }
    }
}

impl TryFrom<&pb::DependencyResult> for DependencyResult {
    type Error = Invalid;

    fn try_from(dependency: &pb::DependencyResult) -> Result<Self, Invalid> {
        Ok(Self {
            task: id("dependencies.task_id", &dependency.task_id)?,
            name: dependency.name.clone(),
            status: task_status("dependencies.status", dependency.status)?,
            commit: dependency.result_commit.clone(),
            result_ref: dependency.result_ref.clone(),
            daemon: optional_id("dependencies.daemon_id", &dependency.daemon_id)?,
            blob: dependency.result_blob.clone(),
            blob_sha256: crate::domain::text::hex(&dependency.result_sha256),
            blob_bytes: dependency.result_bytes,
        })
    }
}

impl From<&ContractTask> for pb::ContractTask {
    fn from(task: &ContractTask) -> Self {
        Self {
            task_id: task.task.to_string(),
            name: task.name.clone(),
            status: pb::TaskStatus::from(task.status).into(),
            categories: task.categories.iter().map(|c| category_number(*c)).collect(),
        }
    }
}

impl TryFrom<&pb::ContractTask> for ContractTask {
    type Error = Invalid;

    fn try_from(task: &pb::ContractTask) -> Result<Self, Invalid> {
        Ok(Self {
            task: id("contract_tasks.task_id", &task.task_id)?,
            name: task.name.clone(),
            status: task_status("contract_tasks.status", task.status)?,
            // A category that this version does not know cannot be compared; it says nothing here.
            categories: task.categories.iter().filter_map(|c| category(*c)).collect(),
        })
    }
}

fn category_number(category: Category) -> u32 {
    match category {
        Category::Schema => 0,
        Category::Types => 1,
        Category::Backend => 2,
        Category::Ui => 3,
    }
}

fn category(number: u32) -> Option<Category> {
    [Category::Schema, Category::Types, Category::Backend, Category::Ui]
        .into_iter()
        .find(|c| category_number(*c) == number)
}

// === CommandAnswer ===

/// What a daemon answers to the command of this number and id.
pub fn command_answer(sequence: i64, command: CommandId, answer: &Answer) -> pb::CommandAnswer {
    let outcome = match answer {
        Answer::Persisted => pb::command_answer::Outcome::Persisted(pb::Persisted {}),
        Answer::Rejected { reason, retryable, counts } => pb::command_answer::Outcome::Rejected(pb::Rejected {
            reason: crate::domain::report::clean(reason.clone(), MAX_TEXT_BYTES),
            retryable: *retryable,
            counts: *counts,
        }),
    };
    pb::CommandAnswer { sequence, command_id: command.to_string(), outcome: Some(outcome) }
}

/// Which command a daemon answered, and what.
pub fn command_answered(answer: &pb::CommandAnswer) -> Result<(i64, CommandId, Answer), Invalid> {
    let outcome = match answer.outcome.as_ref().ok_or_else(|| Invalid::new("outcome", "is required"))? {
        pb::command_answer::Outcome::Persisted(_) => Answer::Persisted,
        pb::command_answer::Outcome::Rejected(rejected) => Answer::Rejected {
            reason: crate::domain::report::clean(rejected.reason.clone(), MAX_TEXT_BYTES),
            retryable: rejected.retryable,
            counts: rejected.counts,
        },
    };
    Ok((answer.sequence, id("command_id", &answer.command_id)?, outcome))
}

// === Message ===

impl From<&Message> for pb::DaemonMessage {
    fn from(message: &Message) -> Self {
        Self {
            sequence: message.sequence,
            journal_id: message.journal.to_string(),
            attempt: Some(message.attempt.into()),
            time: Some(timestamp(message.at)),
            kind: Some(message.report.clone().bounded().into()),
        }
    }
}

impl TryFrom<&pb::DaemonMessage> for Message {
    type Error = Invalid;

    fn try_from(message: &pb::DaemonMessage) -> Result<Self, Invalid> {
        let report = message.kind.as_ref().ok_or_else(|| Invalid::new("kind", "is required"))?;
        Ok(Self {
            sequence: message.sequence,
            journal: id("journal_id", &message.journal_id)?,
            attempt: attempt_ref("attempt", message.attempt.as_ref())?,
            at: required_timestamp("time", message.time.as_ref())?,
            report: Report::try_from(report)?.bounded(),
        })
    }
}

impl From<Report> for pb::daemon_message::Kind {
    fn from(report: Report) -> Self {
        match report {
            Report::Started { worktree, branch, base_commit, agent_version, restored } => {
                Self::TaskStarted(pb::TaskStarted {
                    worktree_path: worktree,
                    branch,
                    base_commit,
                    agent_version,
                    restored_checkpoint_id: id_text(restored),
                })
            }
            Report::Progress(progress) => Self::TaskProgress(pb::TaskProgress {
                usage: Some((&progress.usage).into()),
                agent_session_id: progress.agent_session_id,
                last_message: progress.last_message,
            }),
            Report::Complete(complete) => Self::TaskComplete(complete.into()),
            Report::RecoveryDetected { previous, worktree_intact, worktree, needs_patch } => {
                Self::TaskRecoveryDetected(pb::TaskRecoveryDetected {
                    previous_state: pb::InventoryState::from(previous).into(),
                    worktree_intact,
                    worktree_path: worktree,
                    needs_patch,
                })
            }
            Report::Warning { message } => Self::TaskWarning(pb::TaskWarning { message }),
            Report::CheckpointFailed { message } => Self::TaskCheckpointFailed(pb::TaskCheckpointFailed { message }),
        }
    }
}

impl From<Complete> for pb::TaskComplete {
    fn from(complete: Complete) -> Self {
        let outcome = match complete.outcome {
            Ok(TaskResult { commit, branch, result_ref, published, pack, blob: _ }) => {
                let (pack_bytes, pack_sha256) =
                    pack.map_or_else(Default::default, |p| (p.bytes, sha256_bytes(&p.sha256)));
                pb::task_complete::Outcome::Success(pb::Success {
                    commit,
                    branch,
                    result_ref,
                    published,
                    pack_bytes,
                    pack_sha256,
                })
            }
            Err(Failure { class, message, reset }) => pb::task_complete::Outcome::Failure(pb::Failure {
                failure_class: pb::FailureClass::from(class).into(),
                message,
                reset_time: reset.map(timestamp),
            }),
        };
        Self {
            outcome: Some(outcome),
            usage: Some((&complete.progress.usage).into()),
            agent_session_id: complete.progress.agent_session_id,
            last_message: complete.progress.last_message,
            output_bytes: complete.output_bytes,
            exit_code: complete.exit_code,
            signal: complete.signal,
        }
    }
}

impl TryFrom<&pb::daemon_message::Kind> for Report {
    type Error = Invalid;

    fn try_from(kind: &pb::daemon_message::Kind) -> Result<Self, Invalid> {
        Ok(match kind {
            pb::daemon_message::Kind::TaskStarted(started) => Self::Started {
                worktree: started.worktree_path.clone(),
                branch: started.branch.clone(),
                base_commit: started.base_commit.clone(),
                agent_version: started.agent_version.clone(),
                restored: optional_id("restored_checkpoint_id", &started.restored_checkpoint_id)?,
            },
            pb::daemon_message::Kind::TaskProgress(progress) => Self::Progress(Progress {
                agent_session_id: progress.agent_session_id.clone(),
                usage: usage(progress.usage.as_ref()),
                last_message: progress.last_message.clone(),
            }),
            pb::daemon_message::Kind::TaskComplete(complete) => {
                Self::Complete(Complete::try_from(complete).map_err(|e| e.within("task_complete"))?)
            }
            pb::daemon_message::Kind::TaskRecoveryDetected(detected) => Self::RecoveryDetected {
                previous: inventory_state("task_recovery_detected.previous_state", detected.previous_state)?,
                worktree_intact: detected.worktree_intact,
                worktree: detected.worktree_path.clone(),
                needs_patch: detected.needs_patch,
            },
            pb::daemon_message::Kind::TaskWarning(warning) => Self::Warning { message: warning.message.clone() },
            pb::daemon_message::Kind::TaskCheckpointFailed(failed) => {
                Self::CheckpointFailed { message: failed.message.clone() }
            }
        })
    }
}

impl TryFrom<&pb::TaskComplete> for Complete {
    type Error = Invalid;

    fn try_from(complete: &pb::TaskComplete) -> Result<Self, Invalid> {
        let outcome = match complete.outcome.as_ref().ok_or_else(|| Invalid::new("outcome", "is required"))? {
            pb::task_complete::Outcome::Success(success) => Ok(TaskResult {
                commit: success.commit.clone(),
                branch: success.branch.clone(),
                result_ref: success.result_ref.clone(),
                published: success.published,
                pack: pack(success.pack_bytes, &success.pack_sha256).map_err(|e| e.within("success"))?,
                blob: String::new(),
            }),
            pb::task_complete::Outcome::Failure(failure) => Err(Failure {
                class: failure_class("failure.failure_class", failure.failure_class)?,
                message: failure.message.clone(),
                reset: failure.reset_time.as_ref().map(|t| timestamp_from("failure.reset_time", t)).transpose()?,
            }),
        };
        Ok(Self {
            outcome,
            progress: Progress {
                agent_session_id: complete.agent_session_id.clone(),
                usage: usage(complete.usage.as_ref()),
                last_message: complete.last_message.clone(),
            },
            output_bytes: complete.output_bytes.max(0),
            exit_code: complete.exit_code,
            signal: complete.signal,
        })
    }
}

fn usage(usage: Option<&pb::Usage>) -> Usage {
    usage.map(Usage::from).unwrap_or_default()
}

// === MessageAnswer ===

/// What a server answers to the message of this number.
pub fn message_answer(sequence: i64, journal: JournalId, outcome: &MessageOutcome) -> pb::MessageAnswer {
    let (outcome, detail) = match outcome {
        MessageOutcome::Applied => (pb::MessageOutcome::Applied, String::new()),
        MessageOutcome::AlreadyApplied => (pb::MessageOutcome::AlreadyApplied, String::new()),
        MessageOutcome::Fenced => (pb::MessageOutcome::Fenced, String::new()),
        MessageOutcome::Invalid { detail } => {
            (pb::MessageOutcome::Invalid, crate::domain::report::clean(detail.clone(), MAX_TEXT_BYTES))
        }
    };
    pb::MessageAnswer { sequence, journal_id: journal.to_string(), outcome: outcome.into(), detail }
}

/// Which message a server answered, and what.
pub fn message_answered(answer: &pb::MessageAnswer) -> Result<(i64, JournalId, MessageOutcome), Invalid> {
    let unknown = || Invalid::new("outcome", format!("is not an outcome: {}", answer.outcome));
    let outcome = match pb::MessageOutcome::try_from(answer.outcome).map_err(|_| unknown())? {
        pb::MessageOutcome::Unspecified => return Err(unknown()),
        pb::MessageOutcome::Applied => MessageOutcome::Applied,
        pb::MessageOutcome::AlreadyApplied => MessageOutcome::AlreadyApplied,
        pb::MessageOutcome::Fenced => MessageOutcome::Fenced,
        pb::MessageOutcome::Invalid => MessageOutcome::Invalid { detail: answer.detail.clone() },
    };
    Ok((answer.sequence, id("journal_id", &answer.journal_id)?, outcome))
}

// === chunks ===

/// A piece of an attempt's output on its way to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Attempt it belongs to.
    pub attempt: AttemptRef,
    /// Offset of its first byte.
    pub offset: u64,
    /// At most [`MAX_CHUNK_BYTES`]; empty asks how far the server is.
    pub data: Bytes,
    /// Nothing follows.
    pub last: bool,
    /// What lies between the server's offset and this one is lost.
    pub gap: bool,
}

impl From<Chunk> for pb::UploadChunksRequest {
    fn from(chunk: Chunk) -> Self {
        Self {
            attempt: Some(chunk.attempt.into()),
            kind: pb::ChunkKind::Output.into(),
            offset: i64::try_from(chunk.offset).unwrap_or(i64::MAX),
            crc32: crc32fast::hash(&chunk.data),
            data: chunk.data,
            last: chunk.last,
            gap: chunk.gap,
            ..Self::default()
        }
    }
}

impl TryFrom<pb::UploadChunksRequest> for Chunk {
    type Error = Invalid;

    fn try_from(chunk: pb::UploadChunksRequest) -> Result<Self, Invalid> {
        if chunk.kind != i32::from(pb::ChunkKind::Output) {
            return Err(Invalid::new("kind", format!("is not served: {}", chunk.kind)));
        }
        if chunk.data.len() > MAX_CHUNK_BYTES {
            return Err(Invalid::new("data", format!("has {} bytes; at most {MAX_CHUNK_BYTES}", chunk.data.len())));
        }
        if crc32fast::hash(&chunk.data) != chunk.crc32 {
            return Err(Invalid::new("crc32", "does not match the data: it was damaged on the way"));
        }
        Ok(Self {
            attempt: attempt_ref("attempt", chunk.attempt.as_ref())?,
            offset: u64::try_from(chunk.offset).map_err(|_| Invalid::new("offset", "must not be negative"))?,
            data: chunk.data,
            last: chunk.last,
            gap: chunk.gap,
        })
    }
}

/// How far the server is with an attempt's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The attempt.
    pub attempt: AttemptRef,
    /// Everything up to here is durable.
    pub committed: u64,
    /// Everything up to here has arrived: send from here.
    pub received: u64,
    /// The whole is durable.
    pub complete: bool,
    /// The server does not want it.
    pub refused: bool,
}

impl From<Receipt> for pb::UploadChunksResponse {
    fn from(receipt: Receipt) -> Self {
        Self {
            attempt: Some(receipt.attempt.into()),
            kind: pb::ChunkKind::Output.into(),
            committed_offset: i64::try_from(receipt.committed).unwrap_or(i64::MAX),
            received_offset: i64::try_from(receipt.received).unwrap_or(i64::MAX),
            complete: receipt.complete,
            refused: receipt.refused,
            ..Self::default()
        }
    }
}

impl TryFrom<&pb::UploadChunksResponse> for Receipt {
    type Error = Invalid;

    fn try_from(receipt: &pb::UploadChunksResponse) -> Result<Self, Invalid> {
        let offset =
            |field: &str, offset: i64| u64::try_from(offset).map_err(|_| Invalid::new(field, "must not be negative"));
        Ok(Self {
            attempt: attempt_ref("attempt", receipt.attempt.as_ref())?,
            committed: offset("committed_offset", receipt.committed_offset)?,
            received: offset("received_offset", receipt.received_offset)?,
            complete: receipt.complete,
            refused: receipt.refused,
        })
    }
}

#[cfg(test)]
mod tests;

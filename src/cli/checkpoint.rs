//! `makima task checkpoints, checkpoint`: what the server keeps of a task's work.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Session,
    client::{Client, PATIENCE, request_id, timed},
    error::{Error, Result},
    output::{Table, ago, clean, fields, size},
    resolve,
    task::{TaskArg, id, said},
    view,
};
use crate::{
    domain::Timestamp,
    runtime::clock,
    wire::pb::{self, CheckpointReason, TaskStatus},
};

/// Read at once.
const PAGE: u32 = 1_000;
/// How often it is looked whether a checkpoint has arrived: taking one and bringing it takes about a second.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Checkpoints that are looked at for a new one: only the newest can be.
const NEWEST: u32 = 10;

/// `task checkpoints`.
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    task: TaskArg,
    /// At most so many
    #[arg(long, default_value_t = 1_000)]
    limit: usize,
}

/// What to do with checkpoints.
#[derive(Debug, Subcommand)]
pub enum CheckpointCommand {
    /// Have one taken of a running task
    Now(NowArgs),
    /// Show one
    Get(GetArgs),
}

/// `task checkpoint now`.
#[derive(Args, Debug)]
pub struct NowArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Wait until the server has it; exit 1 if the attempt ends first
    #[arg(long)]
    wait: bool,
}

/// `task checkpoint get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// Id or short id
    checkpoint: String,
}

/// A point in the work of tasks.
pub enum Point {
    /// Wherever this task is; its id.
    Task(String),
    /// This checkpoint.
    Checkpoint(Box<pb::GetCheckpointResponse>),
}

/// The task or checkpoint that a person names. What could be either is a task.
pub async fn point(client: &Client, text: &str, within: Option<&str>) -> Result<Point> {
    let is_id = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if within.is_none() && (is_id || uuid::Uuid::try_parse(text).is_ok()) {
        let request = timed(pb::GetTaskRequest { task_id: text.to_ascii_lowercase() });
        if let Ok(response) = client.tasks().get_task(request).await
            && let Some(task) = response.into_inner().task
        {
            return Ok(Point::Task(task.task_id));
        }
        let request = timed(pb::GetCheckpointRequest { checkpoint_id: text.to_ascii_lowercase() });
        match client.tasks().get_checkpoint(request).await {
            Ok(found) => return Ok(Point::Checkpoint(Box::new(found.into_inner()))),
            Err(status) if status.code() == tonic::Code::NotFound => {
                return Err(Error::failed(format!("there is neither a task nor a checkpoint {text}")));
            }
            Err(status) => return Err(client.refused("read the checkpoint")(status)),
        }
    }
    Ok(Point::Task(resolve::task(client, text, within).await?))
}

/// Lists a task's checkpoints.
pub async fn list(session: &mut Session, client: &Client, args: &ListArgs) -> Result<()> {
    let task_id = id(client, &args.task).await?;
    let found = newest(client, &task_id, args.limit).await?;
    if session.out.json {
        return found.iter().try_for_each(|checkpoint| session.out.object(&View::from(checkpoint)));
    }
    session.out.table(&table(&found, clock::now()), "no checkpoints of it yet")
}

/// Does something with checkpoints.
pub async fn run(session: &mut Session, client: &Client, command: CheckpointCommand) -> Result<()> {
    match command {
        CheckpointCommand::Now(args) => now(session, client, &args).await,
        CheckpointCommand::Get(args) => {
            let request = timed(pb::GetCheckpointRequest { checkpoint_id: args.checkpoint });
            let found = client.tasks().get_checkpoint(request).await.map_err(client.refused("read the checkpoint"))?;
            show(session, &found.into_inner().checkpoint.unwrap_or_default())
        }
    }
}

async fn newest(client: &Client, task_id: &str, most: usize) -> Result<Vec<pb::Checkpoint>> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    while found.len() < most {
        let page_size = u32::try_from(most - found.len()).unwrap_or(PAGE).min(PAGE);
        let request = timed(pb::ListCheckpointsRequest { task_id: task_id.to_owned(), page_size, page_token });
        let page = client.tasks().list_checkpoints(request).await.map_err(client.refused("list checkpoints"))?;
        let page = page.into_inner();
        found.extend(page.checkpoints);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(found)
}

// === now ===

async fn now(session: &mut Session, client: &Client, args: &NowArgs) -> Result<()> {
    let task_id = id(client, &args.task).await?;
    let before = Before::look(client, &task_id).await?;
    let request = pb::TakeCheckpointRequest { request_id: request_id(), task_id: task_id.clone() };
    let answer = client.tasks().take_checkpoint(timed(request)).await;
    let task = answer.map_err(client.refused("take a checkpoint"))?.into_inner().task;
    if !args.wait {
        return said(session, task, "is being checkpointed; `makima task checkpoints` lists it once the server has it");
    }
    let attempt = task.map(|task| task.attempt).unwrap_or_default();
    let taken = tokio::time::timeout(PATIENCE, arrival(client, &task_id, attempt, &before)).await;
    let taken = taken.map_err(|_| {
        Error::failed(format!("no checkpoint has arrived in {} min; the task goes on", PATIENCE.as_secs() / 60))
    })??;
    show(session, &taken)
}

/// How the task stood before the request.
struct Before {
    checkpoints: Vec<pb::Checkpoint>,
    attempts: Vec<pb::Attempt>,
}

impl Before {
    async fn look(client: &Client, task_id: &str) -> Result<Self> {
        let attempts = details(client, task_id).await?.attempts;
        Ok(Self { checkpoints: newest(client, task_id, NEWEST as usize).await?, attempts })
    }

    /// Why no checkpoint will come of the request, if its daemon has said so since.
    fn failed<'a>(&self, attempt: u32, attempts: &'a [pb::Attempt]) -> Option<&'a str> {
        let said = |attempts: &'a [pb::Attempt]| attempts.iter().find(|it| it.number == attempt);
        let before = self.attempts.iter().find(|it| it.number == attempt).and_then(|it| it.checkpoint_error_time);
        let now = said(attempts).filter(|it| it.checkpoint_error_time.is_some_and(|at| Some(at) != before));
        now.map(|it| it.checkpoint_error.as_str())
    }
}

async fn details(client: &Client, task_id: &str) -> Result<pb::GetTaskResponse> {
    let request = timed(pb::GetTaskRequest { task_id: task_id.to_owned() });
    Ok(client.tasks().get_task(request).await.map_err(client.refused("read the task"))?.into_inner())
}

/// The first checkpoint that was taken because of the request; an error if the attempt ends without one, or its daemon says that
/// none can be taken.
async fn arrival(client: &Client, task_id: &str, attempt: u32, before: &Before) -> Result<pb::Checkpoint> {
    loop {
        // First where the attempt stands, then what has arrived: what came with its end is seen.
        let details = details(client, task_id).await?;
        let found = newest(client, task_id, NEWEST as usize).await?;
        if let Some(taken) = arrived(&found, &before.checkpoints) {
            return Ok(taken.clone());
        }
        if let Some(why) = before.failed(attempt, &details.attempts) {
            return Err(Error::failed(format!("no checkpoint was taken, the task goes on: {}", clean(why))));
        }
        let ended = (details.attempts.iter())
            .find(|it| it.number == attempt)
            .filter(|it| matches!(it.status(), pb::AttemptStatus::Ended | pb::AttemptStatus::Finalizing));
        if let Some(ended) = ended {
            let why = match (details.task.as_ref().map(pb::Task::status), ended.error_message.as_str()) {
                (_, why) if !why.is_empty() => clean(why),
                (Some(status @ (TaskStatus::Done | TaskStatus::Finalizing | TaskStatus::Merged)), _) => {
                    format!("the task is {}", view::task_status(status))
                }
                _ => "it was ended".to_owned(),
            };
            return Err(Error::failed(format!("attempt {attempt} has ended before a checkpoint was taken: {why}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What is new, and was taken for a request or at an end: a periodic one may have been under way before it was asked for. The
/// second new one of those was not.
fn arrived<'a>(found: &'a [pb::Checkpoint], before: &[pb::Checkpoint]) -> Option<&'a pb::Checkpoint> {
    let known = |it: &&pb::Checkpoint| !before.iter().any(|old| old.checkpoint_id == it.checkpoint_id);
    let new: Vec<_> = found.iter().filter(known).collect();
    let asked = new.iter().find(|it| it.reason() != CheckpointReason::Periodic);
    asked.or(new.first().filter(|_| new.len() > 1)).copied()
}

// === shown ===

fn show(session: &mut Session, checkpoint: &pb::Checkpoint) -> Result<()> {
    if session.out.json {
        return session.out.object(&View::from(checkpoint));
    }
    session.out.bytes(described(checkpoint, clock::now()).as_bytes())
}

fn table(checkpoints: &[pb::Checkpoint], now: Timestamp) -> Table {
    let mut table = Table::new(&["ID", "ATTEMPT", "DAEMON", "TAKEN", "WHY", "SIZE", "TO RESTORE", "HEAD", ""]);
    for it in checkpoints {
        table.row(&[
            view::short(&it.checkpoint_id),
            it.attempt.to_string(),
            it.daemon_name.clone(),
            ago(now, view::time(it.take_time.as_ref())),
            reason(it).to_lowercase(),
            size(it.bytes),
            size(it.chain_bytes),
            it.head.chars().take(10).collect(),
            marks(it).join(", "),
        ]);
    }
    table
}

/// What is worth knowing of it at a glance.
fn marks(checkpoint: &pb::Checkpoint) -> Vec<String> {
    let mut marks = Vec::new();
    marks.extend(checkpoint.current.then(|| "goes on from here".to_owned()));
    marks.extend(checkpoint.orphan.then(|| "orphan".to_owned()));
    marks.extend(checkpoint.unsettled.then(|| "unsettled".to_owned()));
    match checkpoint.omitted.len() {
        0 => {}
        1 => marks.push("1 file left out".to_owned()),
        files => marks.push(format!("{files} files left out")),
    }
    marks
}

fn described(it: &pb::Checkpoint, now: Timestamp) -> String {
    let bytes = match it.base_checkpoint_id.as_str() {
        "" => format!("{}, whole", size(it.bytes)),
        base => format!("{}, on {}; {} to restore", size(it.bytes), view::short(base), size(it.chain_bytes)),
    };
    fields(&[
        ("checkpoint", it.checkpoint_id.clone()),
        ("task", it.task_id.clone()),
        ("attempt", it.attempt.to_string()),
        ("daemon", it.daemon_name.clone()),
        ("taken", format!("{}, {}", ago(now, view::time(it.take_time.as_ref())), reason(it).to_lowercase())),
        ("size", bytes),
        ("head", it.head.clone()),
        ("branch", it.branch.clone()),
        ("base", it.base_commit.clone()),
        ("session", it.session_id.clone()),
        ("marks", marks(it).join(", ")),
        ("left out", it.omitted.join("\n")),
        ("changes", it.summary.trim_end().to_owned()),
    ])
}

fn reason(checkpoint: &pb::Checkpoint) -> &'static str {
    let word = checkpoint.reason().as_str_name();
    word.strip_prefix("CHECKPOINT_REASON_").unwrap_or(word)
}

/// A checkpoint for programs.
#[derive(Serialize)]
struct View<'a> {
    checkpoint_id: &'a str,
    task_id: &'a str,
    attempt: u32,
    daemon_id: &'a str,
    daemon_name: &'a str,
    reason: &'static str,
    take_time: Option<String>,
    store_time: Option<String>,
    base_checkpoint_id: &'a str,
    bytes: i64,
    chain_bytes: i64,
    head: &'a str,
    branch: &'a str,
    base_commit: &'a str,
    session_id: &'a str,
    summary: &'a str,
    omitted: &'a [String],
    orphan: bool,
    unsettled: bool,
    current: bool,
    chain: Vec<Link<'a>>,
}

#[derive(Serialize)]
struct Link<'a> {
    checkpoint_id: &'a str,
    blob_id: &'a str,
    bytes: i64,
    sha256: String,
}

impl<'a> From<&'a pb::Checkpoint> for View<'a> {
    fn from(it: &'a pb::Checkpoint) -> Self {
        let stamp = |time: Option<&prost_types::Timestamp>| view::time(time).map(view::rfc3339);
        Self {
            checkpoint_id: &it.checkpoint_id,
            task_id: &it.task_id,
            attempt: it.attempt,
            daemon_id: &it.daemon_id,
            daemon_name: &it.daemon_name,
            reason: reason(it),
            take_time: stamp(it.take_time.as_ref()),
            store_time: stamp(it.store_time.as_ref()),
            base_checkpoint_id: &it.base_checkpoint_id,
            bytes: it.bytes,
            chain_bytes: it.chain_bytes,
            head: &it.head,
            branch: &it.branch,
            base_commit: &it.base_commit,
            session_id: &it.session_id,
            summary: &it.summary,
            omitted: &it.omitted,
            orphan: it.orphan,
            unsettled: it.unsettled,
            current: it.current,
            chain: it.chain.iter().map(Link::from).collect(),
        }
    }
}

impl<'a> From<&'a pb::CheckpointLink> for Link<'a> {
    fn from(link: &'a pb::CheckpointLink) -> Self {
        Self {
            checkpoint_id: &link.checkpoint_id,
            blob_id: &link.blob_id,
            bytes: link.bytes,
            sha256: crate::domain::text::hex(&link.sha256),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(last: u8, reason: CheckpointReason) -> pb::Checkpoint {
        pb::Checkpoint {
            checkpoint_id: format!("01938f3e-0000-7000-8000-0000000000{last:02x}"),
            attempt: 2,
            daemon_name: "box".to_owned(),
            reason: reason.into(),
            take_time: Some(prost_types::Timestamp { seconds: 1_000, nanos: 0 }),
            bytes: 2_048,
            chain_bytes: 3_000_000,
            head: "c0ffee00c0ffee00".to_owned(),
            ..Default::default()
        }
    }

    /// One that was under way before it was asked for is not the answer.
    #[test]
    fn what_was_asked_for_is_told_from_what_came_anyway() {
        let old = [checkpoint(1, CheckpointReason::Asked)];
        let periodic = checkpoint(2, CheckpointReason::Periodic);
        assert_eq!(arrived(&old, &old), None);
        assert_eq!(arrived(&[periodic.clone(), old[0].clone()], &old), None);
        let asked = checkpoint(3, CheckpointReason::Asked);
        assert_eq!(arrived(&[asked.clone(), periodic.clone(), old[0].clone()], &old), Some(&asked));
        let later = checkpoint(4, CheckpointReason::Periodic);
        assert_eq!(arrived(&[later.clone(), periodic, old[0].clone()], &old), Some(&later));
    }

    #[test]
    fn checkpoints_read_as_a_table() {
        let newest =
            pb::Checkpoint { current: true, omitted: vec![".env".to_owned()], ..checkpoint(9, CheckpointReason::End) };
        let orphan = pb::Checkpoint { orphan: true, ..checkpoint(8, CheckpointReason::Stopping) };
        insta::assert_snapshot!(table(&[newest, orphan], Timestamp::from_secs(1_012)).render(), @r"
        ID            ATTEMPT  DAEMON  TAKEN    WHY       SIZE     TO RESTORE  HEAD
        000000000009  2        box     12s ago  end       2.0 KiB  2.8 MiB     c0ffee00c0  goes on from here, 1 file left out
        000000000008  2        box     12s ago  stopping  2.0 KiB  2.8 MiB     c0ffee00c0  orphan
        ");
    }
}

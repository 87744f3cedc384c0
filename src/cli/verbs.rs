//! `makima task update, retry, resume, reassign, fork, branch, force-release`: what to do about a task that does not go as it should.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;

use super::{
    Session, board,
    checkpoint::{self, Point},
    client::{Client, request_id, timed},
    contract,
    contract_file::duration,
    error::{Error, Result},
    follow::Source,
    output::note,
    task::{TaskArg, id, said},
    view,
};
use crate::wire::pb;

/// `task update`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct UpdateArgs {
    #[command(flatten)]
    task: TaskArg,
    /// New name
    #[arg(long, group = "change")]
    name: Option<String>,
    /// What people read
    #[arg(long, group = "change")]
    description: Option<String>,
    /// What the agent is told
    #[arg(long, conflicts_with = "plan_file", group = "change")]
    plan: Option<String>,
    /// The same from a file; `-` reads standard input
    #[arg(long, value_name = "FILE", group = "change")]
    plan_file: Option<PathBuf>,
    /// Agent profile
    #[arg(long, group = "change")]
    agent: Option<String>,
    /// Model; empty for the agent's own
    #[arg(long, group = "change")]
    model: Option<String>,
    /// Higher starts earlier, within its contract
    #[arg(long, allow_negative_numbers = true, group = "change")]
    priority: Option<i32>,
    /// A label that its daemon must have, instead of those so far; given again for each, and empty for none
    #[arg(long = "label", value_name = "LABEL", group = "change")]
    labels: Vec<String>,
    /// Run in the worktree before the agent; empty for nothing
    #[arg(long, value_name = "COMMAND", group = "change")]
    setup_command: Option<String>,
    /// Branch, tag or commit it begins from
    #[arg(long, value_name = "REVISION", group = "change")]
    base_branch: Option<String>,
    /// Wall time of one attempt, such as 30m; 0s for that of the contract
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, group = "change")]
    wall_time: Option<Duration>,
    /// Retries that count before it fails
    #[arg(long, value_name = "N", group = "change")]
    max_retries: Option<u32>,
}

/// `task retry`.
#[derive(Args, Debug)]
pub struct RetryArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Begin from nothing, instead of from the work done so far
    #[arg(long)]
    fresh: bool,
    /// Follow it to its end
    #[arg(long)]
    wait: bool,
}

/// `task resume`.
#[derive(Args, Debug)]
pub struct ResumeArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Id or short id of a checkpoint: of this task, or of another on the same repository
    #[arg(long, value_name = "CHECKPOINT")]
    from: String,
    /// Follow it to its end
    #[arg(long)]
    wait: bool,
}

/// `task reassign`.
#[derive(Args, Debug)]
pub struct ReassignArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Id or name of the daemon; whichever has room if not given, the one it is on last
    #[arg(long, value_name = "DAEMON")]
    to: Option<String>,
    /// Follow it to its end
    #[arg(long)]
    wait: bool,
}

/// `task fork`.
#[derive(Args, Debug)]
pub struct ForkArgs {
    /// Task (id, short id, CONTRACT/NAME, or a name that is one task's only), or id or short id of a checkpoint
    #[arg(value_name = "TASK|CHECKPOINT")]
    of: String,
    /// Contract that names are looked up in
    #[arg(long, short, value_name = "CONTRACT")]
    contract: Option<String>,
    /// Name of the new task; made from the other's if not given
    #[arg(long)]
    name: Option<String>,
    /// What the agent is told; what the other was told if not given
    #[arg(long, conflicts_with = "plan_file")]
    plan: Option<String>,
    /// The same from a file; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    plan_file: Option<PathBuf>,
    /// Model; the other's if not given
    #[arg(long)]
    model: Option<String>,
    /// Follow it to its end
    #[arg(long)]
    wait: bool,
}

/// `task branch`.
#[derive(Args, Debug)]
pub struct BranchArgs {
    #[command(flatten)]
    fork: ForkArgs,
    /// Agent profile; the other's if not given
    #[arg(long)]
    agent: Option<String>,
}

/// `task force-release`.
#[derive(Args, Debug)]
pub struct ReleaseArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Why, for the event log
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// Something else is asked of it.
pub async fn update(session: &mut Session, client: &Client, args: UpdateArgs) -> Result<()> {
    let plan = match &args.plan_file {
        Some(file) => Some(read(file)?),
        None => args.plan,
    };
    let task_id = id(client, &args.task).await?;
    let mut paths = Vec::new();
    let limits = match (args.wall_time, args.max_retries) {
        (None, None) => None,
        // Those that are not named stay.
        (wall_time, max_retries) => {
            let request = timed(pb::GetTaskRequest { task_id: task_id.clone() });
            let task = client.tasks().get_task(request).await.map_err(client.refused("read the task"))?.into_inner();
            let mut limits = task.task.and_then(|task| task.spec?.limits).unwrap_or_default();
            if let Some(wall_time) = wall_time {
                limits.wall_time = (!wall_time.is_zero()).then(|| duration(wall_time));
            }
            limits.max_retries = max_retries.or(limits.max_retries);
            Some(limits)
        }
    };
    let spec = pb::TaskSpec {
        limits: Some(named(&mut paths, "limits", limits)),
        name: named(&mut paths, "name", args.name),
        description: named(&mut paths, "description", args.description),
        plan: named(&mut paths, "plan", plan),
        agent: named(&mut paths, "agent", args.agent),
        model: named(&mut paths, "model", args.model),
        priority: named(&mut paths, "priority", args.priority),
        labels: named(&mut paths, "labels", (!args.labels.is_empty()).then_some(args.labels)),
        setup_command: named(&mut paths, "setup_command", args.setup_command),
        base_branch: named(&mut paths, "base_branch", args.base_branch),
        ..pb::TaskSpec::default()
    };
    let spec = pb::TaskSpec { labels: spec.labels.iter().filter(|label| !label.is_empty()).cloned().collect(), ..spec };
    let request = pb::UpdateTaskRequest {
        request_id: request_id(),
        task_id,
        etag: String::new(),
        update_mask: Some(prost_types::FieldMask { paths }),
        spec: Some(spec),
    };
    let answer = client.tasks().update_task(timed(request)).await;
    let task = answer.map_err(client.refused("change the task"))?.into_inner().task;
    let what = match task.as_ref().filter(|task| board::is_final(task.status())) {
        Some(task) => format!("is changed; `makima task retry {}` has it tried again", view::short(&task.task_id)),
        None => "is changed".to_owned(),
    };
    let nowhere = contract::nowhere(&task);
    said(session, task, &what)?;
    nowhere.iter().for_each(|text| note(text));
    Ok(())
}

/// The value of a field that is to be changed; its name goes with the others.
fn named<T: Default>(paths: &mut Vec<String>, name: &str, value: Option<T>) -> T {
    if value.is_some() {
        paths.push(name.to_owned());
    }
    value.unwrap_or_default()
}

/// Another try, from the work or from nothing.
pub async fn retry(session: &mut Session, client: &Client, args: &RetryArgs) -> Result<()> {
    let request = pb::RetryTaskRequest { fresh: args.fresh, ..Default::default() };
    try_again(session, client, &args.task, request, args.wait, "will be tried again").await
}

/// Another try, from a checkpoint.
pub async fn resume(session: &mut Session, client: &Client, args: &ResumeArgs) -> Result<()> {
    let request = pb::RetryTaskRequest { checkpoint_id: args.from.clone(), ..Default::default() };
    try_again(session, client, &args.task, request, args.wait, "goes on from the checkpoint").await
}

async fn try_again(
    session: &mut Session,
    client: &Client,
    task: &TaskArg,
    request: pb::RetryTaskRequest,
    wait: bool,
    what: &str,
) -> Result<()> {
    let task_id = id(client, task).await?;
    let request = pb::RetryTaskRequest { request_id: request_id(), task_id, ..request };
    let answer = client.tasks().retry_task(timed(request)).await;
    let answer = answer.map_err(client.refused("retry the task"))?.into_inner();
    let waits = answer.task.as_ref().filter(|task| task.pending_reason() == pb::PendingReason::Blocked);
    let what = match waits {
        Some(task) => format!("would be tried again, but it {}", task.reason),
        None => what.to_owned(),
    };
    told(session, client, answer.task, &what, wait).await
}

/// Elsewhere, now.
pub async fn reassign(session: &mut Session, client: &Client, args: &ReassignArgs) -> Result<()> {
    let task_id = id(client, &args.task).await?;
    let daemon = args.to.clone().unwrap_or_default();
    let what = match &args.to {
        Some(daemon) => format!("goes on at {daemon} first"),
        None => "goes on wherever there is room".to_owned(),
    };
    let request = pb::ReassignTaskRequest { request_id: request_id(), task_id, daemon };
    let answer = client.tasks().reassign_task(timed(request)).await;
    let answer = answer.map_err(client.refused("reassign the task"))?.into_inner();
    told(session, client, answer.task, &what, args.wait).await
}

/// A new task of this one's work, with its conversation.
pub async fn fork(session: &mut Session, client: &Client, args: ForkArgs) -> Result<()> {
    make(session, client, args, None, true).await
}

/// A new task of this one's work, without its conversation.
pub async fn branch(session: &mut Session, client: &Client, args: BranchArgs) -> Result<()> {
    if args.fork.plan.is_none() && args.fork.plan_file.is_none() {
        return Err(Error::usage(
            "a branch begins a new conversation: say what it is to do with --plan or --plan-file",
        ));
    }
    make(session, client, args.fork, args.agent, false).await
}

async fn make(
    session: &mut Session,
    client: &Client,
    args: ForkArgs,
    agent: Option<String>,
    conversation: bool,
) -> Result<()> {
    let plan = match (&args.plan, &args.plan_file) {
        (Some(plan), _) => plan.clone(),
        (None, Some(file)) => read(file)?,
        (None, None) => String::new(),
    };
    let (task_id, checkpoint_id) = match checkpoint::point(client, &args.of, args.contract.as_deref()).await? {
        Point::Task(task) => (task, String::new()),
        Point::Checkpoint(found) => (String::new(), found.checkpoint.unwrap_or_default().checkpoint_id),
    };
    let request = pb::ForkTaskRequest {
        request_id: request_id(),
        task_id,
        checkpoint_id,
        name: args.name.unwrap_or_default(),
        plan,
        agent: agent.unwrap_or_default(),
        model: args.model.unwrap_or_default(),
        conversation,
    };
    let answer = client.tasks().fork_task(timed(request)).await;
    let answer = answer.map_err(client.refused("fork the task"))?.into_inner();
    let spec = answer.task.as_ref().and_then(|task| task.spec.as_ref());
    let what = match spec {
        Some(spec) if !answer.from_result => format!("begins from checkpoint {}", view::short(&spec.checkpoint_id)),
        _ => "begins from the result, as a task that depends on it".to_owned(),
    };
    if answer.from_result && conversation {
        note("the task is done, so its fork begins from its result and with a new conversation");
    }
    told(session, client, answer.task, &what, args.wait).await
}

/// Loose from whatever it hangs on.
pub async fn force_release(session: &mut Session, client: &Client, args: ReleaseArgs) -> Result<()> {
    let task_id = id(client, &args.task).await?;
    let request = pb::ForceReleaseTaskRequest { request_id: request_id(), task_id, reason: args.reason };
    let answer = client.tasks().force_release_task(timed(request)).await;
    let answer = answer.map_err(client.refused("release the task"))?.into_inner();
    let status = answer.task.as_ref().map(pb::Task::status).unwrap_or_default();
    let what = if board::is_final(status) {
        format!("stays {}; what was left of it anywhere is fenced, and its work is kept", view::task_status(status))
    } else {
        "is released; what is left of it anywhere is fenced, and its work is kept".to_owned()
    };
    said(session, answer.task, &what)
}

async fn told(session: &mut Session, client: &Client, task: Option<pb::Task>, what: &str, wait: bool) -> Result<()> {
    if wait {
        let task_id = task.unwrap_or_default().task_id;
        return contract::wait(client, &mut session.out, Source::Task(task_id)).await;
    }
    said(session, task, what)
}

fn read(file: &Path) -> Result<String> {
    if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(Error::io("read the plan from standard input"))?;
        return Ok(text);
    }
    std::fs::read_to_string(file).map_err(Error::io(format!("read {}", file.display())))
}

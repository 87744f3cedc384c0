//! `makima task`: look at tasks, their output and the reason why one does not run; cancel, change what they wait for. What else
//! can be done about one is in `verbs`, what is kept of its work in `checkpoint`.

use clap::{Args, Subcommand};

use super::{
    Session, checkpoint,
    client::{Client, request_id, timed},
    config::KeyUse,
    contract,
    error::{Error, Result},
    follow::Source,
    logs,
    output::{Table, ago, clean, fields, note, span},
    resolve, restore, verbs, view,
};
use crate::{
    domain::Timestamp,
    runtime::clock,
    wire::pb::{self, TaskStatus},
};

/// Read at once.
const PAGE: u32 = 1_000;
/// Characters of a reason in a list.
const REASON_WIDTH: usize = 60;

/// What to do with tasks.
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// List tasks, oldest first
    List(ListArgs),
    /// Show one task with its dependencies and attempts
    Get(TaskArg),
    /// Follow a task to its end; exit 0 when it is done
    Watch(TaskArg),
    /// Show what the agent wrote
    Logs(LogsArgs),
    /// Cancel a task; its work so far stays
    Cancel(CancelArgs),
    /// Change what is asked of a task that waits, has failed or was cancelled; `retry` then has it tried again
    Update(verbs::UpdateArgs),
    /// Try a task again that has ended, counting retries from zero: a failed or cancelled one from the work done so far, one that is done from its base
    Retry(verbs::RetryArgs),
    /// Try a task again from a checkpoint
    Resume(verbs::ResumeArgs),
    /// Go on with a task on another daemon, now, with its work
    Reassign(verbs::ReassignArgs),
    /// Make a new task of another's work, with its conversation
    Fork(verbs::ForkArgs),
    /// Make a new task of another's work, with a plan and a conversation of its own
    Branch(verbs::BranchArgs),
    /// Pull a task loose from whatever it hangs on: ends its attempts without their daemons' word
    ForceRelease(verbs::ReleaseArgs),
    /// List what the server keeps of a task's work, newest first
    Checkpoints(checkpoint::ListArgs),
    /// Bring a task's result, or the work of a checkpoint, into a directory, without the daemon that has it
    Restore(restore::RestoreArgs),
    /// Show what a task's result, or a checkpoint, changed
    Diff(restore::DiffArgs),
    /// Take a checkpoint now, or show one
    #[command(subcommand)]
    Checkpoint(checkpoint::CheckpointCommand),
    /// Say why a task is not running, and what would change that
    Explain(TaskArg),
    /// Show or change what a task waits for
    Deps(DepsArgs),
    /// Hide a final task from lists
    Dismiss(TaskArg),
}

/// A task.
#[derive(Args, Debug)]
pub struct TaskArg {
    /// Id, short id, CONTRACT/NAME, or a name that is one task's only
    pub task: String,
    /// Contract that names are looked up in
    #[arg(long, short, value_name = "CONTRACT")]
    pub contract: Option<String>,
}

/// `task list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only of this contract
    #[arg(long, short, value_name = "CONTRACT")]
    pub contract: Option<String>,
    /// Only those that stand so: pending, running, done, failed, ...
    #[arg(long, value_name = "STATUS", value_parser = task_status)]
    pub status: Vec<TaskStatus>,
    /// Also those that were dismissed
    #[arg(long)]
    pub all: bool,
    /// At most so many
    #[arg(long, default_value_t = 1_000)]
    pub limit: usize,
}

/// `task logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Attempt; the newest if not given
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    attempt: u32,
    /// Go on while the task lives, through all its attempts; with --attempt while that attempt lives
    #[arg(long, short)]
    follow: bool,
    /// Byte to begin at
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = clap::value_parser!(i64).range(0..))]
    offset: i64,
    /// Exactly the agent's bytes: JSON lines are not turned into text
    #[arg(long)]
    raw: bool,
}

/// `task cancel`.
#[derive(Args, Debug)]
pub struct CancelArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Kept with the task
    #[arg(long, default_value = "")]
    reason: String,
    /// Cancel also all that depends on it, directly or not
    #[arg(long)]
    cascade: bool,
}

/// `task deps TASK` shows them; its subcommands change them.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct DepsArgs {
    #[command(flatten)]
    task: Option<TaskArg>,
    #[command(subcommand)]
    command: Option<DepsCommand>,
}

/// What to do with dependencies.
#[derive(Debug, Subcommand)]
pub enum DepsCommand {
    /// Show what a task waits for, and what waits for it
    List(TaskArg),
    /// Make a task that waits, or has failed, wait for others of its contract
    Add(EdgesArgs),
    /// Make a task that waits, or has failed, wait for less
    Rm(EdgesArgs),
}

/// `task deps add|rm`.
#[derive(Args, Debug)]
pub struct EdgesArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Tasks of the same contract: id, name, or CONTRACT/NAME
    #[arg(required = true, value_name = "DEPENDENCY")]
    depends_on: Vec<String>,
}

/// Does it.
pub async fn run(session: &mut Session, command: TaskCommand) -> Result<()> {
    let client = session.client(KeyUse::Owner).await?;
    match command {
        TaskCommand::List(args) => list(session, &client, &args).await,
        TaskCommand::Get(arg) => get(session, &client, &arg).await,
        TaskCommand::Watch(arg) => {
            let id = id(&client, &arg).await?;
            contract::wait(&client, &mut session.out, Source::Task(id)).await
        }
        TaskCommand::Logs(args) => {
            let wanted = logs::Wanted {
                task_id: id(&client, &args.task).await?,
                attempt: args.attempt,
                offset: args.offset,
                follow: args.follow,
                raw: args.raw,
            };
            logs::show(&client, &mut session.out, wanted).await
        }
        TaskCommand::Cancel(args) => {
            let task_id = id(&client, &args.task).await?;
            let request =
                pb::CancelTaskRequest { request_id: request_id(), task_id, reason: args.reason, cascade: args.cascade };
            let answer = client.tasks().cancel_task(timed(request)).await;
            let answer = answer.map_err(client.refused("cancel the task"))?.into_inner();
            said(session, answer.task, "is cancelled")
        }
        TaskCommand::Update(args) => verbs::update(session, &client, args).await,
        TaskCommand::Retry(args) => verbs::retry(session, &client, &args).await,
        TaskCommand::Resume(args) => verbs::resume(session, &client, &args).await,
        TaskCommand::Reassign(args) => verbs::reassign(session, &client, &args).await,
        TaskCommand::Fork(args) => verbs::fork(session, &client, args).await,
        TaskCommand::Branch(args) => verbs::branch(session, &client, args).await,
        TaskCommand::ForceRelease(args) => verbs::force_release(session, &client, args).await,
        TaskCommand::Checkpoints(args) => checkpoint::list(session, &client, &args).await,
        TaskCommand::Checkpoint(command) => checkpoint::run(session, &client, command).await,
        TaskCommand::Restore(args) => restore::restore(session, &client, &args).await,
        TaskCommand::Diff(args) => restore::diff(session, &client, &args).await,
        TaskCommand::Explain(arg) => explain(session, &client, &arg).await,
        TaskCommand::Deps(args) => match (args.command, args.task) {
            (Some(command), _) => deps(session, &client, command).await,
            (None, Some(task)) => deps(session, &client, DepsCommand::List(task)).await,
            (None, None) => Err(Error::usage("whose dependencies? name a task")),
        },
        TaskCommand::Dismiss(arg) => {
            let task_id = id(&client, &arg).await?;
            let request = pb::DismissTaskRequest { request_id: request_id(), task_id };
            let answer = client.tasks().dismiss_task(timed(request)).await;
            let answer = answer.map_err(client.refused("dismiss the task"))?.into_inner();
            said(session, answer.task, "is hidden from lists")
        }
    }
}

/// The id of the task that a person names.
pub async fn id(client: &Client, arg: &TaskArg) -> Result<String> {
    resolve::task(client, &arg.task, arg.contract.as_deref()).await
}

async fn details(client: &Client, arg: &TaskArg) -> Result<pb::GetTaskResponse> {
    let request = timed(pb::GetTaskRequest { task_id: id(client, arg).await? });
    Ok(client.tasks().get_task(request).await.map_err(client.refused("read the task"))?.into_inner())
}

async fn list(session: &mut Session, client: &Client, args: &ListArgs) -> Result<()> {
    let contract_id = match &args.contract {
        Some(contract) => resolve::contract(client, contract).await?,
        None => String::new(),
    };
    let mut tasks = Vec::new();
    let mut page_token = String::new();
    while tasks.len() < args.limit {
        let request = timed(pb::ListTasksRequest {
            contract_id: contract_id.clone(),
            statuses: args.status.iter().map(|status| i32::from(*status)).collect(),
            page_size: u32::try_from(args.limit - tasks.len()).unwrap_or(PAGE).min(PAGE),
            page_token,
            include_hidden: args.all,
        });
        let page = client.tasks().list_tasks(request).await.map_err(client.refused("list tasks"))?.into_inner();
        tasks.extend(page.tasks);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if session.out.json {
        return tasks.iter().try_for_each(|task| session.out.object(&view::Task::from(task)));
    }
    session.out.table(&table(&tasks, clock::now()), "no tasks here")?;
    if !page_token.is_empty() {
        note(&format!("there are more: --limit {} shows twice as many", args.limit.saturating_mul(2)));
    }
    Ok(())
}

fn table(tasks: &[pb::Task], now: Timestamp) -> Table {
    let mut table = Table::new(&["ID", "NAME", "STATUS", "ATTEMPT", "DAEMON", "TIME", "REASON"]);
    for task in tasks {
        let spec = task.spec.as_ref();
        table.row(&[
            view::short(&task.task_id),
            spec.map(|spec| spec.name.clone()).unwrap_or_default(),
            view::task_status(task.status()).to_owned(),
            if task.attempt == 0 { String::new() } else { task.attempt.to_string() },
            task.daemon_name.clone(),
            took(task, now),
            super::output::cut(&reason(task), REASON_WIDTH),
        ]);
    }
    table
}

/// How long its agent has run, or ran.
fn took(task: &pb::Task, now: Timestamp) -> String {
    let start = view::time(task.start_time.as_ref());
    let end = view::time(task.end_time.as_ref());
    match (start, end) {
        (Some(start), Some(end)) => span(end.since(start)),
        (Some(start), None) if task.status() != TaskStatus::Pending => span(now.since(start)),
        _ => String::new(),
    }
}

fn reason(task: &pb::Task) -> String {
    match task.status() {
        TaskStatus::Failed if !task.error_message.is_empty() => task.error_message.clone(),
        TaskStatus::Done | TaskStatus::Merged => String::new(),
        _ if !task.reason.is_empty() => task.reason.clone(),
        TaskStatus::Pending => view::pending_reason(task.pending_reason()).to_lowercase().replace('_', " "),
        _ => String::new(),
    }
}

async fn get(session: &mut Session, client: &Client, arg: &TaskArg) -> Result<()> {
    let details = details(client, arg).await?;
    if session.out.json {
        return session.out.object(&view::TaskDetails::from(&details));
    }
    session.out.bytes(described(&details, clock::now()).as_bytes())
}

fn described(details: &pb::GetTaskResponse, now: Timestamp) -> String {
    let Some(task) = &details.task else { return String::new() };
    let spec = task.spec.clone().unwrap_or_default();
    let class = match task.failure_class() {
        pb::FailureClass::Unspecified => String::new(),
        class => view::failure_class(class).to_owned(),
    };
    let agent = if spec.model.is_empty() { spec.agent.clone() } else { format!("{} ({})", spec.agent, spec.model) };
    let usage = task.usage.as_ref().map(used).unwrap_or_default();
    let edges = |edges: &[pb::Dependency]| {
        let names = edges.iter().map(|edge| format!("{} {}", edge.name, view::task_status(edge.status())));
        names.collect::<Vec<_>>().join(", ")
    };
    let error = if task.status() == TaskStatus::Failed { task.error_message.clone() } else { String::new() };
    let lines = [
        ("task", task.task_id.clone()),
        ("name", spec.name.clone()),
        ("description", spec.description.clone()),
        ("contract", task.contract_id.clone()),
        ("status", view::task_status(task.status()).to_owned()),
        ("reason", if error.is_empty() { reason(task) } else { String::new() }),
        ("failure", class),
        ("error", error),
        ("agent", agent),
        ("daemon", task.daemon_name.clone()),
        ("repository", spec.repository.clone()),
        ("base", spec.base_branch.clone()),
        ("branch", task.branch.clone()),
        ("begins from", begins_from(&spec)),
        ("checkpoint", task.checkpoint_id.clone()),
        ("result", task.result_commit.clone()),
        ("labels", spec.labels.join(", ")),
        ("time", took(task, now)),
        ("used", usage),
        ("created", ago(now, view::time(task.create_time.as_ref()))),
        ("depends on", edges(&details.dependencies)),
        ("dependents", edges(&details.dependents)),
        ("plan", spec.plan.trim_end().to_owned()),
    ];
    let mut text = fields(&lines);
    for attempt in &details.attempts {
        text.push('\n');
        text.push_str(&described_attempt(attempt, now));
    }
    text
}

/// The work of another task that this one begins from.
fn begins_from(spec: &pb::TaskSpec) -> String {
    if spec.checkpoint_id.is_empty() {
        return String::new();
    }
    let conversation = if spec.with_conversation { "with" } else { "without" };
    let (checkpoint, task) = (view::short(&spec.checkpoint_id), view::short(&spec.branched_from_task_id));
    format!("checkpoint {checkpoint} of task {task}, {conversation} its conversation")
}

/// An attempt as a person reads it.
pub fn described_attempt(attempt: &pb::Attempt, now: Timestamp) -> String {
    let class = match attempt.failure_class() {
        pb::FailureClass::Unspecified => String::new(),
        class => view::failure_class(class).to_owned(),
    };
    let start = view::time(attempt.start_time.as_ref());
    let time = start.map(|start| span(view::time(attempt.end_time.as_ref()).unwrap_or(now).since(start)));
    let began = match (attempt.resumed_attempt, attempt.restored_checkpoint_id.as_str()) {
        (0, "") => String::new(),
        (0, checkpoint) => format!("checkpoint {}", view::short(checkpoint)),
        (earlier, _) => format!("the worktree of attempt {earlier}"),
    };
    let checkpoint = match attempt.checkpoint_id.as_str() {
        "" => String::new(),
        id => format!("{}, {}", view::short(id), ago(now, view::time(attempt.checkpoint_time.as_ref()))),
    };
    let lines = [
        ("attempt", attempt.number.to_string()),
        ("began from", began),
        ("status", view::attempt_status(attempt.status()).to_owned()),
        ("failure", class),
        ("error", attempt.error_message.clone()),
        ("daemon", attempt.daemon_name.clone()),
        ("branch", attempt.branch.clone()),
        ("worktree", attempt.worktree_path.clone()),
        ("checkpoint", checkpoint),
        ("result", attempt.result_commit.clone()),
        ("session", attempt.agent_session_id.clone()),
        ("version", attempt.agent_version.clone()),
        ("time", time.unwrap_or_default()),
        ("output", format!("{} bytes", attempt.output_bytes)),
        ("used", attempt.usage.as_ref().map(used).unwrap_or_default()),
        ("warnings", attempt.warnings.join("\n")),
        ("last message", attempt.last_message.clone()),
    ];
    fields(&lines)
}

/// `$0.0123, 3 turns, 1200 tokens in, 340 out`; nothing where nothing was used.
fn used(usage: &pb::Usage) -> String {
    if *usage == pb::Usage::default() {
        return String::new();
    }
    let cost = usage.cost_micro_usd;
    let tokens_in = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens;
    format!(
        "${}.{:04}, {} turns, {tokens_in} tokens in, {} out",
        cost / 1_000_000,
        cost % 1_000_000 / 100,
        usage.turns,
        usage.output_tokens
    )
}

async fn explain(session: &mut Session, client: &Client, arg: &TaskArg) -> Result<()> {
    let request = timed(pb::ExplainTaskRequest { task_id: id(client, arg).await? });
    let answer = client.tasks().explain_task(request).await.map_err(client.refused("explain the task"))?.into_inner();
    if session.out.json {
        return session.out.object(&view::Explanation::from(&answer));
    }
    session.out.bytes(explained(&answer).as_bytes())
}

fn explained(answer: &pb::ExplainTaskResponse) -> String {
    let mut text = format!("{}\n", clean(&answer.summary));
    if !answer.waiting_for.is_empty() {
        text.push_str("\nwaits for\n");
        for edge in &answer.waiting_for {
            let (id, status) = (view::short(&edge.task_id), view::task_status(edge.status()));
            text.push_str(&format!("  {id}  {status}  {}\n", clean(&edge.name)));
        }
    }
    if !answer.daemons.is_empty() {
        text.push_str("\ndaemons\n");
        for fit in &answer.daemons {
            let lacks = if fit.fits { "could take it now".to_owned() } else { fit.lacks.join("; ") };
            text.push_str(&format!("  {}: {}\n", clean(&fit.name), clean(&lacks)));
        }
    }
    if !answer.actions.is_empty() {
        text.push_str("\nwhat you can do\n");
        for action in &answer.actions {
            text.push_str(&format!("  {}\n", clean(action)));
        }
    }
    text
}

async fn deps(session: &mut Session, client: &Client, command: DepsCommand) -> Result<()> {
    match command {
        DepsCommand::List(arg) => {
            let details = details(client, &arg).await?;
            if session.out.json {
                return details
                    .dependencies
                    .iter()
                    .try_for_each(|edge| session.out.object(&view::Dependency::from(edge)));
            }
            let mut table = Table::new(&["", "ID", "STATUS", "NAME"]);
            for (way, edges) in [("waits for", &details.dependencies), ("is waited for by", &details.dependents)] {
                for edge in edges {
                    let status = view::task_status(edge.status()).to_owned();
                    table.row(&[way.to_owned(), view::short(&edge.task_id), status, edge.name.clone()]);
                }
            }
            session.out.table(&table, "it waits for nothing, and nothing waits for it")
        }
        DepsCommand::Add(args) => {
            let task_id = id(client, &args.task).await?;
            let depends_on = named(client, &task_id, args.depends_on).await?;
            let request = pb::AddDependenciesRequest { request_id: request_id(), task_id, depends_on };
            let answer = client.tasks().add_dependencies(timed(request)).await;
            let answer = answer.map_err(client.refused("add the dependencies"))?.into_inner();
            waits(session, answer.task)
        }
        DepsCommand::Rm(args) => {
            let task_id = id(client, &args.task).await?;
            let depends_on = named(client, &task_id, args.depends_on).await?;
            let request = pb::RemoveDependenciesRequest { request_id: request_id(), task_id, depends_on };
            let answer = client.tasks().remove_dependencies(timed(request)).await;
            let answer = answer.map_err(client.refused("remove the dependencies"))?.into_inner();
            waits(session, answer.task)
        }
    }
}

/// Ids and names as they are: the server looks those up in the task's contract. By its id what is said as CONTRACT/NAME, unless that
/// is a name in the task's own contract: a name may have a slash in it.
async fn named(client: &Client, task_id: &str, mut given: Vec<String>) -> Result<Vec<String>> {
    if !given.iter().any(|text| text.contains('/')) {
        return Ok(given);
    }
    let request = timed(pb::GetTaskRequest { task_id: task_id.to_owned() });
    let answer = client.tasks().get_task(request).await.map_err(client.refused("read the task"))?.into_inner();
    let own = answer.task.unwrap_or_default().contract_id;
    for text in given.iter_mut().filter(|text| text.contains('/')) {
        if resolve::task(client, text, Some(&own)).await.is_err()
            && let Ok(id) = resolve::task(client, text, None).await
        {
            *text = id;
        }
    }
    Ok(given)
}

fn waits(session: &mut Session, task: Option<pb::Task>) -> Result<()> {
    let unmet = task.as_ref().map(|task| task.unmet_dependencies).unwrap_or_default();
    said(session, task, &format!("waits for {unmet} more"))
}

/// Says what became of a task.
pub fn said(session: &mut Session, task: Option<pb::Task>, what: &str) -> Result<()> {
    let task = task.unwrap_or_default();
    if session.out.json {
        return session.out.object(&view::Task::from(&task));
    }
    let name = task.spec.as_ref().map(|spec| clean(&spec.name)).unwrap_or_default();
    session.out.line(&format!("task {name} {} {what}", view::short(&task.task_id)))
}

fn task_status(text: &str) -> std::result::Result<TaskStatus, String> {
    let word = text.to_ascii_uppercase().replace('-', "_");
    TaskStatus::from_str_name(&format!("TASK_STATUS_{word}"))
        .filter(|status| *status != TaskStatus::Unspecified)
        .ok_or_else(|| {
            "write pending, starting, running, paused, awaiting-input, finalizing, done, merged, failed or cancelled"
                .to_owned()
        })
}

#[cfg(test)]
mod tests;

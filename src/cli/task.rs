//! `makima task`: look at tasks, their output and the reason why one does not run; cancel, retry, change what they wait for.

use clap::{Args, Subcommand};

use super::{
    Session,
    client::{Client, request_id, timed},
    config::KeyUse,
    contract,
    error::{Error, Result},
    follow::Source,
    logs,
    output::{Table, ago, clean, fields, note, span},
    resolve, view,
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
    /// Try a failed or cancelled task again, counting retries from zero
    Retry(RetryArgs),
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
    /// Go on while the attempt lives
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

/// `task retry`.
#[derive(Args, Debug)]
pub struct RetryArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Follow it to its end
    #[arg(long)]
    wait: bool,
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
    /// Make a task that has not started wait for others of its contract
    Add(EdgesArgs),
    /// Make a task that has not started wait for less
    Rm(EdgesArgs),
}

/// `task deps add|rm`.
#[derive(Args, Debug)]
pub struct EdgesArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Ids or names of tasks of the same contract
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
        TaskCommand::Retry(args) => {
            let task_id = id(&client, &args.task).await?;
            let request = pb::RetryTaskRequest { request_id: request_id(), task_id: task_id.clone() };
            let answer = client.tasks().retry_task(timed(request)).await;
            let answer = answer.map_err(client.refused("retry the task"))?.into_inner();
            if args.wait {
                return contract::wait(&client, &mut session.out, Source::Task(task_id)).await;
            }
            said(session, answer.task, "will be tried again")
        }
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

async fn id(client: &Client, arg: &TaskArg) -> Result<String> {
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

/// An attempt as a person reads it.
pub fn described_attempt(attempt: &pb::Attempt, now: Timestamp) -> String {
    let class = match attempt.failure_class() {
        pb::FailureClass::Unspecified => String::new(),
        class => view::failure_class(class).to_owned(),
    };
    let start = view::time(attempt.start_time.as_ref());
    let time = start.map(|start| span(view::time(attempt.end_time.as_ref()).unwrap_or(now).since(start)));
    let lines = [
        ("attempt", attempt.number.to_string()),
        ("status", view::attempt_status(attempt.status()).to_owned()),
        ("failure", class),
        ("error", attempt.error_message.clone()),
        ("daemon", attempt.daemon_name.clone()),
        ("branch", attempt.branch.clone()),
        ("worktree", attempt.worktree_path.clone()),
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
            let request = pb::AddDependenciesRequest { request_id: request_id(), task_id, depends_on: args.depends_on };
            let answer = client.tasks().add_dependencies(timed(request)).await;
            let answer = answer.map_err(client.refused("add the dependencies"))?.into_inner();
            waits(session, answer.task)
        }
        DepsCommand::Rm(args) => {
            let task_id = id(client, &args.task).await?;
            let request =
                pb::RemoveDependenciesRequest { request_id: request_id(), task_id, depends_on: args.depends_on };
            let answer = client.tasks().remove_dependencies(timed(request)).await;
            let answer = answer.map_err(client.refused("remove the dependencies"))?.into_inner();
            waits(session, answer.task)
        }
    }
}

fn waits(session: &mut Session, task: Option<pb::Task>) -> Result<()> {
    let unmet = task.as_ref().map(|task| task.unmet_dependencies).unwrap_or_default();
    said(session, task, &format!("waits for {unmet} more"))
}

fn said(session: &mut Session, task: Option<pb::Task>, what: &str) -> Result<()> {
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
mod tests {
    use super::*;

    fn stamp(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    fn details() -> pb::GetTaskResponse {
        pb::GetTaskResponse {
            task: Some(pb::Task {
                task_id: "01938f3e-0000-7000-8000-00c0ffee1234".to_owned(),
                contract_id: "01938f3e-0000-7000-8000-0000000c0de0".to_owned(),
                spec: Some(pb::TaskSpec {
                    name: "types".to_owned(),
                    plan: "Write the types.\nThen stop.\n".to_owned(),
                    agent: "claude".to_owned(),
                    model: "m-1".to_owned(),
                    repository: "/srv/shop".to_owned(),
                    ..pb::TaskSpec::default()
                }),
                status: TaskStatus::Failed.into(),
                failure_class: pb::FailureClass::AgentError.into(),
                error_message: "the agent gave up".to_owned(),
                attempt: 1,
                daemon_name: "d1".to_owned(),
                create_time: stamp(1_000),
                start_time: stamp(1_010),
                end_time: stamp(1_100),
                usage: Some(pb::Usage {
                    input_tokens: 1_200,
                    output_tokens: 340,
                    cost_micro_usd: 1_012_345,
                    turns: 3,
                    ..pb::Usage::default()
                }),
                ..pb::Task::default()
            }),
            dependencies: vec![pb::Dependency {
                task_id: "x".to_owned(),
                name: "schema".to_owned(),
                status: TaskStatus::Done.into(),
                satisfied: true,
            }],
            dependents: Vec::new(),
            attempts: vec![pb::Attempt {
                number: 1,
                status: pb::AttemptStatus::Ended.into(),
                failure_class: pb::FailureClass::AgentError.into(),
                error_message: "the agent gave up".to_owned(),
                daemon_name: "d1".to_owned(),
                branch: "makima/00c0ffee1234-types/1".to_owned(),
                start_time: stamp(1_010),
                end_time: stamp(1_100),
                output_bytes: 2_048,
                warnings: vec!["types before schema".to_owned(), "clock is off".to_owned()],
                ..pb::Attempt::default()
            }],
        }
    }

    #[test]
    fn a_task_reads_as_a_list_of_fields() {
        insta::assert_snapshot!(described(&details(), Timestamp::from_secs(1_160)), @r"
        task         01938f3e-0000-7000-8000-00c0ffee1234
        name         types
        contract     01938f3e-0000-7000-8000-0000000c0de0
        status       FAILED
        failure      AGENT_ERROR
        error        the agent gave up
        agent        claude (m-1)
        daemon       d1
        repository   /srv/shop
        time         1m30s
        used         $1.0123, 3 turns, 1200 tokens in, 340 out
        created      2m40s ago
        depends on   schema DONE
        plan         Write the types.
                     Then stop.

        attempt       1
        status        ENDED
        failure       AGENT_ERROR
        error         the agent gave up
        daemon        d1
        branch        makima/00c0ffee1234-types/1
        time          1m30s
        output        2048 bytes
        warnings      types before schema
                      clock is off
        ");
    }

    #[test]
    fn programs_get_the_protocols_names() {
        let details = details();
        insta::assert_snapshot!(serde_json::to_string_pretty(&view::TaskDetails::from(&details)).unwrap(), @r#"
        {
          "task": {
            "task_id": "01938f3e-0000-7000-8000-00c0ffee1234",
            "contract_id": "01938f3e-0000-7000-8000-0000000c0de0",
            "owner_id": "",
            "spec": {
              "name": "types",
              "description": "",
              "plan": "Write the types.\nThen stop.\n",
              "priority": 0,
              "agent": "claude",
              "model": "m-1",
              "labels": [],
              "repository": "/srv/shop",
              "base_branch": "",
              "depends_on": [],
              "copy_files": [],
              "setup_command": "",
              "hidden": false,
              "parent_task_id": "",
              "limits": {
                "wall_time": null,
                "max_retries": null
              }
            },
            "depth": 0,
            "status": "FAILED",
            "pending_reason": null,
            "reason": "",
            "not_before": null,
            "unmet_dependencies": 0,
            "attempt": 1,
            "daemon_id": "",
            "daemon_name": "d1",
            "retry_count": 0,
            "failure_class": "AGENT_ERROR",
            "error_message": "the agent gave up",
            "result_commit": "",
            "branch": "",
            "interrupt_time": null,
            "create_time": "1970-01-01T00:16:40.000000Z",
            "update_time": null,
            "start_time": "1970-01-01T00:16:50.000000Z",
            "end_time": "1970-01-01T00:18:20.000000Z",
            "version": 0,
            "etag": "",
            "usage": {
              "input_tokens": 1200,
              "output_tokens": 340,
              "cache_read_tokens": 0,
              "cache_write_tokens": 0,
              "cost_micro_usd": 1012345,
              "turns": 3
            }
          },
          "dependencies": [
            {
              "task_id": "x",
              "name": "schema",
              "status": "DONE",
              "satisfied": true
            }
          ],
          "dependents": [],
          "attempts": [
            {
              "task_id": "",
              "number": 1,
              "attempt_id": "",
              "daemon_id": "",
              "daemon_name": "d1",
              "status": "ENDED",
              "failure_class": "AGENT_ERROR",
              "error_message": "the agent gave up",
              "branch": "makima/00c0ffee1234-types/1",
              "worktree_path": "",
              "agent_session_id": "",
              "agent_version": "",
              "usage": null,
              "result_commit": "",
              "assign_time": null,
              "start_time": "1970-01-01T00:16:50.000000Z",
              "end_time": "1970-01-01T00:18:20.000000Z",
              "output_bytes": 2048,
              "warnings": [
                "types before schema",
                "clock is off"
              ],
              "last_message": ""
            }
          ]
        }
        "#);
    }

    #[test]
    fn an_explanation_ends_with_what_can_be_done() {
        let answer = pb::ExplainTaskResponse {
            task: None,
            summary: "types waits: no daemon has the label gpu".to_owned(),
            actions: vec!["start a daemon with --label gpu".to_owned()],
            waiting_for: details().dependencies,
            daemons: vec![
                pb::DaemonFit { name: "d1".to_owned(), lacks: vec!["label gpu".to_owned()], ..Default::default() },
                pb::DaemonFit { name: "d2".to_owned(), fits: true, ..Default::default() },
            ],
        };
        insta::assert_snapshot!(explained(&answer), @r"
        types waits: no daemon has the label gpu

        waits for
          x  DONE  schema

        daemons
          d1: label gpu
          d2: could take it now

        what you can do
          start a daemon with --label gpu
        ");
    }

    #[test]
    fn status_words_are_taken_in_any_case() {
        assert_eq!(task_status("awaiting-input"), Ok(TaskStatus::AwaitingInput));
        assert_eq!(task_status("DONE"), Ok(TaskStatus::Done));
        assert!(task_status("unspecified").is_err());
    }
}

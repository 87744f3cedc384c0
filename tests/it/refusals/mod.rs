//! What is refused, or handled with a clear message, and that nothing is lost by it: a person reads one line that says what
//! is wrong and what to do, a program reads a code, a reason and every field at fault, and all else goes on.

mod asked;
mod database;
mod disk;
mod identity;
mod keys;
mod lacking;
mod output;

use std::process::Output;

use makima::wire::pb::{self, TaskStatus};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::{World, client::Client, client::shell, eventually, repo::Repo};

/// What a program learns from a refusal: code, reason, and each field with what is wrong with it.
fn told(status: &Status) -> (Code, String, Vec<(String, String)>) {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
    let fields = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    let fields = fields.into_iter().map(|field| (field.field, field.description)).collect();
    (status.code(), reason, fields)
}

/// The same, as it is written in a test.
fn refusal(code: Code, reason: &str, fields: &[(&str, &str)]) -> (Code, String, Vec<(String, String)>) {
    let fields = fields.iter().map(|&(field, text)| (field.to_owned(), text.to_owned())).collect();
    (code, reason.to_owned(), fields)
}

/// What a person reads of a command that was refused: its exit code, and the line that says why. A line for each field at
/// fault may follow; before it there may be the log of a process that serves.
fn said(output: &Output) -> (Option<i32>, String) {
    assert!(!output.status.success(), "it was not refused: {}", String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut lines = text.lines().filter(|line| line.starts_with("makima: "));
    let line = lines.next().unwrap_or_else(|| panic!("nothing was said: {text}")).to_owned();
    assert_eq!(lines.next(), None, "more than one line: {text}");
    (output.status.code(), line)
}

/// Everything the owner has, to be compared before and after.
async fn standing(client: &Client) -> (Vec<pb::Contract>, Vec<pb::Task>) {
    let contracts = client.contracts().list_contracts(pb::ListContractsRequest::default()).await.expect("list");
    let tasks = pb::ListTasksRequest { include_hidden: true, ..Default::default() };
    let tasks = client.tasks().list_tasks(tasks).await.expect("list").into_inner().tasks;
    (contracts.into_inner().contracts, tasks)
}

/// Other work goes on: a task is created, and done.
async fn work_goes_on(world: &World, repo: &Repo) {
    let client = world.client();
    let created = client.create(&repo.url(), vec![shell("other", "echo done > other", &[])]).await;
    let done = until(&client, &created.tasks[0].task_id, TaskStatus::Done).await;
    assert_eq!(repo.file(&done.result_commit, "other").as_deref(), Some("done\n"));
}

/// Waits until a task is where it should get.
async fn until(client: &Client, task: &str, status: TaskStatus) -> pb::Task {
    eventually::eventually(&format!("the task is {}", status.as_str_name()), || async {
        let answer = client.task(task).await;
        match answer.task.clone() {
            Some(task) if task.status() == status => Ok(task),
            _ => Err(format!("{answer:#?}")),
        }
    })
    .await
}

/// Why a task is not running.
async fn explained(client: &Client, task: &str) -> pb::ExplainTaskResponse {
    let request = pb::ExplainTaskRequest { task_id: task.to_owned() };
    client.tasks().explain_task(request).await.expect("explain").into_inner()
}

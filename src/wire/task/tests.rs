//! What goes in and out of a task on the wire.

use std::sync::Arc;

use super::*;
use crate::domain::{
    Timestamp,
    attempt::{Failure, FailureClass, TaskResult},
    id::{AttemptId, DaemonId},
    task::{Tries, Wait, WaitReason},
};

fn id<T: std::str::FromStr>(last: u8) -> T
where
    T::Err: std::fmt::Debug,
{
    format!("01938f3e-0000-7000-8000-0000000000{last:02x}").parse().unwrap()
}

fn example() -> Task {
    Task {
        id: id(1),
        contract: id(2),
        owner: id(3),
        depth: 0,
        spec: Arc::new(TaskSpec {
            name: "schema".into(),
            plan: "make it".into(),
            agent: "shell".into(),
            ..Default::default()
        }),
        class: id(4),
        state: TaskState::Pending { wait: None, held: None },
        unmet: 0,
        attempt: 0,
        ending: None,
        daemon: None,
        tries: Tries::default(),
        branch: String::new(),
        usage: Default::default(),
        version: 4,
        created: Timestamp::from_secs(1_000),
        updated: Timestamp::from_secs(1_001),
        started: None,
        interrupted: None,
        checkpoint: None,
        here: None,
        chosen: None,
        handed_over: None,
        prefer: None,
    }
}

fn result() -> TaskResult {
    TaskResult {
        commit: "c0ffee".into(),
        branch: "b".into(),
        result_ref: "r".into(),
        published: true,
        ..Default::default()
    }
}

#[test]
fn a_waiting_task_says_why_and_until_when() {
    let mut waiting = example();
    let until = Timestamp::from_secs(1_060);
    waiting.state = TaskState::Pending { wait: Some(Wait { until, why: WaitReason::Backoff }), held: None };
    waiting.tries.counted = 1;
    waiting.tries.last_failure = Some(Failure::new(FailureClass::AgentCrashed, "exit code 3"));
    let explained = Explained { pending: Some(PendingReason::Backoff), text: "tried again in 1 min".into() };
    let shown = task(View { task: &waiting, depends_on: &[id(9)], explained: &explained, daemon_name: "box" });
    assert_eq!(shown.status(), pb::TaskStatus::Pending);
    assert_eq!(shown.pending_reason(), pb::PendingReason::Backoff);
    assert_eq!(shown.not_before, Some(common::timestamp(until)));
    assert_eq!(shown.failure_class(), pb::FailureClass::AgentCrashed);
    assert_eq!((shown.error_message.as_str(), shown.retry_count), ("exit code 3", 1));
    assert_eq!(shown.spec.unwrap().depends_on, [id::<TaskId>(9).to_string()]);
    assert_eq!((shown.etag.as_str(), shown.version), ("v4", 4));
    assert_eq!(shown.end_time, None);
}

#[test]
fn a_result_shows_once_the_task_is_done() {
    let mut ended = example();
    let explained = Explained::default();
    ended.state = TaskState::Finalizing { result: result(), since: Timestamp(5) };
    let shown = task(View { task: &ended, depends_on: &[], explained: &explained, daemon_name: "" });
    assert_eq!(shown.result_commit, "");
    ended.state = TaskState::Done { result: result(), at: Timestamp(5) };
    let shown = task(View { task: &ended, depends_on: &[], explained: &explained, daemon_name: "" });
    assert_eq!((shown.result_commit.as_str(), shown.end_time), ("c0ffee", Some(common::timestamp(Timestamp(5)))));
    assert_eq!(shown.pending_reason(), pb::PendingReason::Unspecified);
}

#[test]
fn an_attempt_that_failed_says_how() {
    let failed = Attempt {
        task: id(1),
        number: 2,
        id: id::<AttemptId>(7),
        contract: id(2),
        owner: id(3),
        daemon: id::<DaemonId>(8),
        state: AttemptState::Ended {
            at: Timestamp(9),
            outcome: Err(Failure::new(FailureClass::Timeout, "over 10 min")),
        },
        fenced: false,
        branch: "b".into(),
        worktree: "/w".into(),
        base_commit: String::new(),
        agent_version: String::new(),
        agent_session_id: String::new(),
        last_message: String::new(),
        usage: Default::default(),
        warnings: vec!["look".into()],
        wall_time: None,
        assigned: Timestamp(1),
        started: Some(Timestamp(2)),
        output_bytes: 70,
        commands: Vec::new(),
        origin: Default::default(),
        checkpoint: None,
        checkpointed: None,
        checkpoint_failed: None,
    };
    let shown = attempt(&failed, "box", 64);
    assert_eq!((shown.status(), shown.failure_class()), (pb::AttemptStatus::Ended, pb::FailureClass::Timeout));
    assert_eq!((shown.error_message.as_str(), shown.output_bytes), ("over 10 min", 64));
}

#[test]
fn a_lone_task_is_named_by_its_plan() {
    let request = pb::CreateTaskRequest {
        spec: Some(Box::new(pb::TaskSpec {
            plan: "\n  Fix the flaky test\nin users".into(),
            repository: "/srv/r".into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let draft = create(id(3), request).unwrap();
    assert_eq!((draft.tasks[0].spec.name.as_str(), draft.contract), ("Fix the flaky test", None));
    assert!(name_from_plan(&"é".repeat(500)).len() <= MAX_NAME_BYTES);
    let error = create(id(3), pb::CreateTaskRequest::default()).unwrap_err();
    assert_eq!(error.message(), "spec is required");
}

#[test]
fn an_update_changes_what_its_mask_names() {
    let request = pb::UpdateTaskRequest {
        task_id: id::<TaskId>(1).to_string(),
        update_mask: Some(prost_types::FieldMask { paths: vec!["priority".into(), "plan".into(), "owner".into()] }),
        spec: Some(pb::TaskSpec { priority: 7, ..Default::default() }),
        ..Default::default()
    };
    let error = update(id(3), request).unwrap_err();
    assert_eq!(
        error.message(),
        "spec.plan is required; update_mask.paths[2] `owner` is not a field that can be changed"
    );
}

#[test]
fn an_answer_that_clients_would_refuse_leaves_plans_out() {
    let big = pb::TaskSpec { name: "n".into(), plan: "p".repeat(512 * 1024), ..Default::default() };
    let mut tasks = vec![pb::Task { spec: Some(big), ..Default::default() }; 2];
    fit_answer(&mut tasks);
    assert!(!tasks[0].spec.as_ref().unwrap().plan.is_empty());
    let mut tasks = vec![tasks[0].clone(); 20];
    fit_answer(&mut tasks);
    assert!(tasks.iter().map(prost::Message::encoded_len).sum::<usize>() < 1024);
}

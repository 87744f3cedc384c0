//! How tasks and explanations are shown.

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
        result: None,
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
          "branched_from_task_id": "",
          "checkpoint_id": "",
          "with_conversation": false,
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
        },
        "checkpoint_id": ""
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
          "last_message": "",
          "checkpoint_id": "",
          "checkpoint_time": null,
          "restored_checkpoint_id": "",
          "resumed_attempt": 0
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

//! The whole matrix, and histories at random.

use std::{fmt::Write as _, sync::Arc};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::{
    attempt::FailureClass,
    id::{AttemptRef, ClassId, ContractId, OwnerId, TaskId},
    task::{TaskSpec, WaitReason},
};

const NOW: Timestamp = Timestamp::from_secs(1_000);

fn daemon() -> DaemonId {
    DaemonId(Uuid::from_u128(9))
}

fn hold() -> Hold {
    Hold { by: "key:1".to_owned(), reason: "lunch".to_owned(), since: NOW }
}

fn result() -> TaskResult {
    TaskResult {
        commit: "c0ffee".to_owned(),
        branch: "b".to_owned(),
        result_ref: "r".to_owned(),
        published: true,
        ..TaskResult::default()
    }
}

fn failure(class: FailureClass) -> Failure {
    Failure::new(class, "it broke")
}

fn task(state: TaskState) -> Task {
    let attempt = u32::from(!matches!(state, TaskState::Pending { wait: None, held: None }));
    Task {
        id: TaskId(Uuid::from_u128(1)),
        contract: ContractId(Uuid::from_u128(2)),
        owner: OwnerId(Uuid::from_u128(3)),
        depth: 0,
        spec: Arc::new(TaskSpec::default()),
        class: ClassId(Uuid::from_u128(4)),
        state,
        unmet: 0,
        attempt,
        ending: None,
        daemon: None,
        tries: Tries::default(),
        branch: String::new(),
        usage: Usage::default(),
        version: 1,
        created: NOW,
        updated: NOW,
        started: None,
        interrupted: None,
        checkpoint: None,
        here: None,
        chosen: None,
        handed_over: None,
        prefer: None,
    }
}

fn states() -> Vec<(&'static str, TaskState)> {
    let wait = Wait { until: NOW, why: WaitReason::Backoff };
    vec![
        ("pending", TaskState::Pending { wait: None, held: None }),
        ("pending, waits", TaskState::Pending { wait: Some(wait), held: None }),
        ("pending, held", TaskState::Pending { wait: None, held: Some(hold()) }),
        ("starting", TaskState::Starting { since: NOW }),
        ("running", TaskState::Running { since: NOW }),
        ("paused", TaskState::Paused { held: hold() }),
        ("awaiting input", TaskState::AwaitingInput { question: "which?".to_owned(), since: NOW }),
        ("finalizing", TaskState::Finalizing { result: result(), since: NOW }),
        ("done", TaskState::Done { result: result(), at: NOW }),
        ("merged", TaskState::Merged { result: result(), at: NOW }),
        ("failed", TaskState::Failed { failure: failure(FailureClass::AgentError), at: NOW }),
        ("cancelled", TaskState::Cancelled { reason: "no".to_owned(), by: "key:1".to_owned(), at: NOW }),
    ]
}

fn failed(attempt: u32, class: FailureClass) -> TaskEvent {
    TaskEvent::AttemptFailed {
        attempt,
        failure: failure(class),
        daemon: daemon(),
        usage: Usage::default(),
        max_retries: 3,
        jitter: 0.0,
        finally: false,
        here: None,
    }
}

fn events(newest: u32) -> Vec<(&'static str, TaskEvent)> {
    vec![
        ("assigned", TaskEvent::Assigned { attempt: newest + 1, daemon: daemon(), branch: "b".to_owned() }),
        ("started", TaskEvent::Started { attempt: newest }),
        ("started, by an older attempt", TaskEvent::Started { attempt: newest.wrapping_sub(1) }),
        ("completed", TaskEvent::Completed { attempt: newest, result: result(), usage: Usage::default() }),
        (
            "completed, by an older attempt",
            TaskEvent::Completed { attempt: newest.wrapping_sub(1), result: result(), usage: Usage::default() },
        ),
        ("result stored", TaskEvent::ResultStored { attempt: newest, blob: "blob".to_owned() }),
        ("attempt crashed", failed(newest, FailureClass::AgentCrashed)),
        ("attempt failed for good", failed(newest, FailureClass::Repository)),
        ("attempt failed, an older one", failed(newest.wrapping_sub(1), FailureClass::AgentCrashed)),
        ("revived", TaskEvent::Revived { attempt: newest, running: true, usage: Usage::default() }),
        ("attempt gone", TaskEvent::AttemptGone { attempt: newest }),
        ("wait over", TaskEvent::WaitOver),
        ("merged", TaskEvent::Merged),
        ("cancel", TaskEvent::Cancel { by: "key:1".to_owned(), reason: "no".to_owned() }),
        ("retry", TaskEvent::Retry(RetryFrom::Work)),
        ("hold", TaskEvent::Hold(hold())),
        ("release", TaskEvent::Release),
        ("paused", TaskEvent::Paused(hold())),
        ("resumed", TaskEvent::Resumed),
        ("asks input", TaskEvent::AsksInput { question: "why?".to_owned() }),
        ("input given", TaskEvent::InputGiven),
        ("checkpointed", TaskEvent::Checkpointed { attempt: newest, checkpoint: CheckpointId(Uuid::from_u128(8)) }),
        (
            "checkpointed, an older one",
            TaskEvent::Checkpointed { attempt: newest.wrapping_sub(1), checkpoint: CheckpointId(Uuid::from_u128(8)) },
        ),
        ("retry from the base", TaskEvent::Retry(RetryFrom::Base)),
        ("retry from a checkpoint", TaskEvent::Retry(RetryFrom::Checkpoint(CheckpointId(Uuid::from_u128(7))))),
        ("reassign", TaskEvent::Reassign { to: None }),
        ("reassign to a daemon", TaskEvent::Reassign { to: Some(daemon()) }),
        ("force release", TaskEvent::ForceRelease),
    ]
}

fn describe(task: &Task) -> String {
    let ending = if task.ending.is_some() { ", attempt ending" } else { "" };
    match &task.state {
        TaskState::Pending { wait, held } => {
            let wait = if wait.is_some() { ", waits" } else { "" };
            let held = if held.is_some() { ", held" } else { "" };
            format!("PENDING{wait}{held}{ending}")
        }
        state => format!("{}{ending}", state.status().word()),
    }
}

/// Reviewing a change of behaviour is reviewing the difference in this snapshot.
#[test]
fn the_whole_matrix() {
    let mut text = String::new();
    for (name, state) in states() {
        let before = task(state);
        writeln!(text, "{name}").unwrap();
        for (event_name, event) in events(before.attempt) {
            let answer = match before.apply(&event, NOW) {
                Ok(Step::Moved(after)) => format!("-> {}", describe(&after)),
                Ok(Step::Already) => "already".to_owned(),
                Err(refused) => format!("refused: {refused}"),
            };
            writeln!(text, "  {event_name:<32}{answer}").unwrap();
        }
    }
    insta::assert_snapshot!(text);
}

/// A worktree to go on in is what the last end of an attempt says: whatever follows leaves no older one there. A result takes
/// away what failures had counted.
#[test]
fn nothing_is_left_of_what_was_before() {
    let moved = |task: &Task, event: &TaskEvent| match task.apply(event, NOW) {
        Ok(Step::Moved(after)) => Arc::unwrap_or_clone(after),
        other => panic!("{event:?}: {other:?}"),
    };
    let mut running = task(TaskState::Running { since: NOW });
    let newest = running.attempt;
    let attempt = AttemptRef { task: running.id, number: newest, id: Uuid::from_u128(9).into() };
    let here = Here { attempt, daemon: daemon(), worktree: "/w".to_owned() };
    let end = |of: Option<&Here>| {
        let mut event = failed(newest, FailureClass::AgentCrashed);
        if let TaskEvent::AttemptFailed { here, .. } = &mut event {
            *here = of.cloned();
        }
        event
    };
    let recovered = moved(&running, &end(Some(&here)));
    assert_eq!(recovered.here.as_ref(), Some(&here));
    assert!(matches!(recovered.state, TaskState::Pending { wait: Some(_), .. }));
    assert_eq!(moved(&recovered, &TaskEvent::ForceRelease).here, None);
    let mut ready = recovered;
    ready.state = TaskState::Pending { wait: None, held: None };
    let assigned = TaskEvent::Assigned { attempt: newest + 1, daemon: daemon(), branch: "b".to_owned() };
    assert_eq!(moved(&ready, &assigned).here, None);
    running.here = Some(here);
    assert_eq!(moved(&running, &end(None)).here, None);

    running.tries.counted = 2;
    let completed = TaskEvent::Completed { attempt: newest, result: result(), usage: Usage::default() };
    let stored = TaskEvent::ResultStored { attempt: newest, blob: "blob".to_owned() };
    assert_eq!(moved(&moved(&running, &completed), &stored).tries, Tries::default());
}

proptest! {
    /// Whatever happens in whatever order: versions grow with each move, an older attempt changes nothing, what is complete
    /// stays complete until a person reopens it, and the same event twice is never two moves where it is a report.
    #[test]
    fn histories_keep_the_rules(picks in prop::collection::vec((0_usize..28, 0_u64..400), 0..60)) {
        let mut current = task(TaskState::Pending { wait: None, held: None });
        let mut now = NOW;
        for (pick, secs) in picks {
            now = now.after(std::time::Duration::from_secs(secs));
            let (_, event) = events(current.attempt).swap_remove(pick);
            let stale = matches!(
                &event,
                TaskEvent::Started { attempt } | TaskEvent::Completed { attempt, .. }
                | TaskEvent::AttemptFailed { attempt, .. } | TaskEvent::Checkpointed { attempt, .. } if *attempt != current.attempt
            );
            match current.apply(&event, now) {
                Ok(Step::Moved(after)) => {
                    prop_assert!(!stale);
                    prop_assert_eq!(after.version, current.version + 1);
                    prop_assert!(after.attempt == current.attempt || after.attempt == current.attempt + 1);
                    if current.status().is_complete() {
                        prop_assert!(after.status().is_complete() || matches!(event, TaskEvent::Retry(_)));
                    }
                    if matches!(event, TaskEvent::Started { .. } | TaskEvent::Completed { .. }
                        | TaskEvent::ResultStored { .. } | TaskEvent::AttemptFailed { .. } | TaskEvent::AttemptGone { .. }) {
                        prop_assert!(!matches!(after.apply(&event, now), Ok(Step::Moved(_))), "moved twice by {event:?}");
                    }
                    current = Arc::unwrap_or_clone(after);
                }
                Ok(Step::Already) | Err(_) => {}
            }
        }
    }
}

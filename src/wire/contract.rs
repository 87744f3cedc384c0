//! Contracts on the wire.

use std::time::Duration;

use uuid::Uuid;

use super::{
    check::{Check, etag},
    common, pb,
    status::ApiResult,
    task,
};
use crate::domain::{
    OwnerId,
    contract::{Contract, ContractLimits, ContractStatus},
    dependency::{self, Loaded},
    draft::{ContractUpdate, NewContract, NewTask},
    task::{MAX_BATCH, MAX_NAME_BYTES, MAX_TEXT_BYTES, TaskStatus},
};

/// Attempts of a contract that may live at once, at most.
pub const MAX_CONCURRENCY: u32 = 100_000;
/// Retries that may count, at most. (There is a limit on attempts in all as well.)
pub const MAX_RETRIES: u32 = 100;
/// The shortest wall time: anything below is a mistake in the unit.
pub const MIN_WALL_TIME: Duration = Duration::from_secs(1);
/// The shortest time between checkpoints: below it a daemon would do nothing else.
const MIN_CHECKPOINT_EVERY: Duration = Duration::from_secs(1);

// === in ===

/// Checks the form of a contract with its tasks.
pub fn create(owner: OwnerId, request: pb::CreateContractRequest) -> ApiResult<NewContract> {
    let mut check = Check::new();
    check.request_id(request.request_id);
    check.required("name", &request.name);
    let name = check.line("name", request.name, MAX_NAME_BYTES);
    let description = check.text("description", request.description, MAX_TEXT_BYTES);
    let repository = check.repository("repository", request.repository);
    let base_branch = check.revision("base_branch", request.base_branch);
    let limits = limits(&mut check, request.limits.as_ref());
    if request.tasks.len() > MAX_BATCH {
        let count = request.tasks.len();
        check.violation(
            "tasks",
            format!("holds {count} tasks; one call takes at most {MAX_BATCH}, add the rest with BatchCreateTasks"),
        );
    }
    let tasks = task::drafts(&mut check, request.tasks.into_iter().take(MAX_BATCH).collect());
    if repository.is_empty() {
        for (index, _) in tasks.iter().enumerate().filter(|(_, task)| task.spec.repository.is_empty()) {
            check.violation(
                format!("tasks[{index}].repository"),
                "is required: neither the task nor the contract names a repository",
            );
        }
    }
    if check.is_faulty() {
        edges(&mut check, owner, &tasks);
    }
    check.finish()?;
    Ok(NewContract { owner, name, description, repository, base_branch, limits, hold: request.hold, tasks })
}

/// Checks the dependencies of a request that is refused anyway. Otherwise the ledger checks them; but it does not get to see
/// this one, and its caller is to learn of everything that is wrong with it at once.
fn edges(check: &mut Check, owner: OwnerId, tasks: &[NewTask]) {
    let wanted: Vec<_> = (1..)
        .zip(tasks)
        .map(|(number, task)| dependency::NewTask {
            id: Uuid::from_u128(number).into(),
            name: &task.spec.name,
            depends_on: &task.depends_on,
        })
        .collect();
    // A contract that is to be made has no tasks yet.
    let nothing = Loaded::new(owner, Uuid::nil().into());
    for problem in dependency::resolve_new(&wanted, &nothing).err().unwrap_or_default() {
        // What is wrong with a task's name or with a word's form is known already.
        let Some(place) = problem.dependency else { continue };
        let field = format!("tasks[{}].depends_on[{place}]", problem.task);
        if !check.is_violated(&field) {
            check.violation(field, problem.to_string());
        }
    }
}

/// Checks the form of a change.
pub fn update(owner: OwnerId, request: pb::UpdateContractRequest) -> ApiResult<ContractUpdate> {
    let mut check = Check::new();
    check.request_id(request.request_id);
    let contract = check.id("contract_id", &request.contract_id);
    let etag = check.etag(&request.etag);
    let mut update = ContractUpdate {
        owner,
        contract,
        etag,
        name: None,
        description: None,
        concurrency: None,
        max_retries: None,
        wall_time: None,
        rerun_after: None,
        checkpoint_every: None,
        final_checkpoint: None,
    };
    let new = limits(&mut check, request.limits.as_ref());
    let paths = request.update_mask.unwrap_or_default().paths;
    if paths.is_empty() {
        check.violation("update_mask", "names no field to change");
    }
    for (index, path) in paths.iter().enumerate() {
        match path.as_str() {
            "name" => {
                check.required("name", &request.name);
                update.name = Some(check.line("name", request.name.clone(), MAX_NAME_BYTES));
            }
            "description" => {
                update.description = Some(check.text("description", request.description.clone(), MAX_TEXT_BYTES));
            }
            "limits" => {
                update.concurrency = Some(new.concurrency);
                update.max_retries = Some(new.max_retries);
                update.wall_time = Some(new.wall_time);
                update.rerun_after = Some(new.rerun_after);
                update.checkpoint_every = Some(new.checkpoint_every);
                update.final_checkpoint = Some(new.final_checkpoint);
            }
            "limits.concurrency" => update.concurrency = Some(new.concurrency),
            "limits.max_retries" => update.max_retries = Some(new.max_retries),
            "limits.wall_time" => update.wall_time = Some(new.wall_time),
            "limits.rerun_after" => update.rerun_after = Some(new.rerun_after),
            "limits.checkpoint_every" => update.checkpoint_every = Some(new.checkpoint_every),
            "limits.final_checkpoint" => update.final_checkpoint = Some(new.final_checkpoint),
            other => check.violation(
                format!("update_mask.paths[{index}]"),
                format!("`{}` is not a field that can be changed", common::shown(other)),
            ),
        }
    }
    check.finish()?;
    Ok(update)
}

/// Limits, with defaults where the request says nothing.
fn limits(check: &mut Check, limits: Option<&pb::ContractLimits>) -> ContractLimits {
    let mut known = ContractLimits::default();
    let Some(limits) = limits else { return known };
    if let Some(concurrency) = limits.concurrency {
        known.concurrency = check.range("limits.concurrency", concurrency, 1..=MAX_CONCURRENCY);
    }
    if let Some(max_retries) = limits.max_retries {
        known.max_retries = check.range("limits.max_retries", max_retries, 0..=MAX_RETRIES);
    }
    known.wall_time = wall_time(check, "limits.wall_time", limits.wall_time.as_ref());
    if let Some(rerun_after) = &limits.rerun_after {
        known.rerun_after = check.take(common::duration_from("limits.rerun_after", rerun_after));
    }
    if let Some(every) = &limits.checkpoint_every {
        known.checkpoint_every = check.take(common::duration_from("limits.checkpoint_every", every));
        if !known.checkpoint_every.is_zero() && known.checkpoint_every < MIN_CHECKPOINT_EVERY {
            check.violation("limits.checkpoint_every", "must be at least 1 s, or 0 for none while an agent runs");
        }
    }
    known.final_checkpoint = limits.final_checkpoint.unwrap_or(known.final_checkpoint);
    check.unserved("limits.cost_micro_usd", limits.cost_micro_usd.is_some());
    check.unserved("limits.iterations", limits.iterations.is_some());
    known
}

pub(super) fn wall_time(check: &mut Check, field: &str, time: Option<&prost_types::Duration>) -> Option<Duration> {
    let time = time?;
    match common::duration_from(field, time) {
        Ok(time) => {
            if time < MIN_WALL_TIME {
                check.violation(field, "must be at least 1 s; leave it out for none");
            }
            Some(time)
        }
        Err(invalid) => {
            check.violation(invalid.field, invalid.problem);
            None
        }
    }
}

/// A filter by status; empty takes all.
pub fn statuses(check: &mut Check, numbers: &[i32]) -> Vec<ContractStatus> {
    let mut statuses = Vec::new();
    for (index, number) in numbers.iter().enumerate() {
        match pb::ContractStatus::try_from(*number) {
            Ok(pb::ContractStatus::Active) => statuses.push(ContractStatus::Active),
            Ok(pb::ContractStatus::Done) => statuses.push(ContractStatus::Done),
            Ok(pb::ContractStatus::Failed) => statuses.push(ContractStatus::Failed),
            Ok(pb::ContractStatus::Cancelled) => statuses.push(ContractStatus::Cancelled),
            Ok(pb::ContractStatus::Unspecified) | Err(_) => {
                check.violation(format!("statuses[{index}]"), format!("is not a status: {number}"));
            }
        }
    }
    statuses
}

// === out ===

/// A contract as a caller sees it. `stuck`: it is not over by its counts, but all that is left is blocked for ever.
pub fn contract(contract: &Contract, stuck: bool) -> pb::Contract {
    let count = |status| contract.counts.of(status);
    let status = match contract.status() {
        ContractStatus::Active if stuck => ContractStatus::Failed,
        status => status,
    };
    pb::Contract {
        contract_id: contract.id.to_string(),
        owner_id: contract.owner.to_string(),
        name: contract.name.clone(),
        description: contract.description.clone(),
        repository: contract.repository.clone(),
        base_branch: contract.base_branch.clone(),
        limits: Some(pb::ContractLimits {
            concurrency: Some(contract.limits.concurrency),
            max_retries: Some(contract.limits.max_retries),
            wall_time: contract.limits.wall_time.map(common::duration),
            rerun_after: Some(common::duration(contract.limits.rerun_after)),
            cost_micro_usd: None,
            iterations: None,
            checkpoint_every: Some(common::duration(contract.limits.checkpoint_every)),
            final_checkpoint: Some(contract.limits.final_checkpoint),
        }),
        status: pb::ContractStatus::from(status).into(),
        held_by: contract.held.as_ref().map(task::hold).unwrap_or_default(),
        task_counts: Some(pb::TaskCounts {
            pending: count(TaskStatus::Pending),
            starting: count(TaskStatus::Starting),
            running: count(TaskStatus::Running) + count(TaskStatus::Paused) + count(TaskStatus::AwaitingInput),
            finalizing: count(TaskStatus::Finalizing),
            done: count(TaskStatus::Done),
            merged: count(TaskStatus::Merged),
            failed: count(TaskStatus::Failed),
            cancelled: count(TaskStatus::Cancelled),
        }),
        anonymous: contract.anonymous,
        create_time: Some(common::timestamp(contract.created)),
        update_time: Some(common::timestamp(contract.updated)),
        end_time: contract.ended.map(common::timestamp),
        etag: etag(contract.version),
        live_attempts: contract.live,
    }
}

impl From<ContractStatus> for pb::ContractStatus {
    fn from(status: ContractStatus) -> Self {
        match status {
            ContractStatus::Active => Self::Active,
            ContractStatus::Done => Self::Done,
            ContractStatus::Failed => Self::Failed,
            ContractStatus::Cancelled => Self::Cancelled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::status::Reason;

    fn owner() -> OwnerId {
        "01938f3e-0000-7000-8000-00c0ffee1234".parse().unwrap()
    }

    fn minimal() -> pb::CreateContractRequest {
        pb::CreateContractRequest {
            name: "users".into(),
            repository: "/srv/repo".into(),
            tasks: vec![
                pb::TaskSpec { name: "schema".into(), plan: "make it".into(), ..Default::default() },
                pb::TaskSpec {
                    name: "types".into(),
                    plan: "type it".into(),
                    depends_on: vec!["schema".into()],
                    labels: vec!["gpu".into(), "big".into(), "gpu".into()],
                    ..Default::default()
                },
            ],
            ..Default::default()
        }
    }

    #[test]
    fn a_good_contract_gets_its_defaults() {
        let draft = create(owner(), minimal()).unwrap();
        assert_eq!(draft.limits, ContractLimits::default());
        assert_eq!(draft.tasks[0].spec.agent, "claude");
        assert_eq!(draft.tasks[1].spec.labels, ["big", "gpu"]);
        assert_eq!(draft.tasks[1].depends_on, ["schema"]);
    }

    #[test]
    fn every_fault_of_a_contract_is_named_at_once() {
        let request = pb::CreateContractRequest {
            request_id: "x".repeat(129),
            name: String::new(),
            description: "d".repeat(64 * 1024 + 1),
            repository: String::new(),
            base_branch: "a..b".into(),
            limits: Some(pb::ContractLimits {
                concurrency: Some(0),
                max_retries: Some(1_000),
                wall_time: Some(prost_types::Duration { seconds: 0, nanos: 1 }),
                rerun_after: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
                ..Default::default()
            }),
            tasks: vec![
                pb::TaskSpec {
                    name: "a".into(),
                    plan: "p".repeat(512 * 1024 + 1),
                    priority: 2_000_000,
                    agent: "no such agent!".into(),
                    model: "-rf".into(),
                    labels: vec!["a b".into()],
                    repository: "relative".into(),
                    ..Default::default()
                },
                pb::TaskSpec {
                    name: "a".into(),
                    plan: "nul\0".into(),
                    setup_command: "s".repeat(64 * 1024 + 1),
                    copy_files: vec!["../etc/passwd".into(), "/etc/passwd".into()],
                    depends_on: vec![String::new()],
                    parent_task_id: "nobody".into(),
                    limits: Some(pb::TaskLimits { max_retries: Some(101), ..Default::default() }),
                    ..Default::default()
                },
                pb::TaskSpec { name: "01938f3e-0000-7000-8000-00c0ffee1234".into(), ..Default::default() },
            ],
            hold: false,
        };
        let error = create(owner(), request).unwrap_err();
        assert_eq!(error.reason(), Reason::InvalidFields);
        let lines: Vec<String> = error.violations().iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn faults_of_the_graph_are_named_with_those_of_the_fields() {
        let task = |name: &str, plan: &str, depends_on: &[&str]| pb::TaskSpec {
            name: name.into(),
            plan: plan.into(),
            depends_on: depends_on.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let mut request = minimal();
        request.tasks = vec![
            task("a", "do it", &["b"]),
            task("b", "do it", &["a", "nobody", ""]),
            task("c", "do it", &["c"]),
            task("d", "", &[]),
        ];
        let error = create(owner(), request).unwrap_err();
        let lines: Vec<String> = error.violations().iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        tasks[1].depends_on[2] is empty
        tasks[3].plan is required
        tasks[0].depends_on[0] dependencies form a cycle: a -> b -> a
        tasks[1].depends_on[1] there is no task `nobody`: name a task of this call or contract, or give its id
        tasks[2].depends_on[0] a task cannot depend on itself
        ");
    }

    #[test]
    fn what_is_not_served_yet_is_named_and_not_ignored() {
        let mut request = minimal();
        request.limits =
            Some(pb::ContractLimits { cost_micro_usd: Some(1), iterations: Some(1), ..Default::default() });
        request.tasks[0] = pb::TaskSpec {
            name: "a".into(),
            plan: "b".into(),
            verify_command: "v".into(),
            target_branch: "v".into(),
            merge_mode: "v".into(),
            completion_action: "v".into(),
            target_repo_path: "v".into(),
            continue_from_task_id: "v".into(),
            conversation_history: "v".into(),
            is_supervisor: true,
            autonomous_loop: true,
            limits: Some(pb::TaskLimits { cost_micro_usd: Some(1), iterations: Some(1), ..Default::default() }),
            ..Default::default()
        };
        let error = create(owner(), request).unwrap_err();
        assert_eq!(error.reason(), Reason::NotServedYet);
        let fields: Vec<_> = error.violations().iter().map(|v| v.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "limits.cost_micro_usd",
                "limits.iterations",
                "tasks[0].limits.cost_micro_usd",
                "tasks[0].limits.iterations",
                "tasks[0].verify_command",
                "tasks[0].target_branch",
                "tasks[0].merge_mode",
                "tasks[0].completion_action",
                "tasks[0].target_repo_path",
                "tasks[0].continue_from_task_id",
                "tasks[0].conversation_history",
                "tasks[0].is_supervisor",
                "tasks[0].autonomous_loop",
            ]
        );
    }

    #[test]
    fn a_call_takes_a_thousand_tasks() {
        let mut request = minimal();
        request.tasks = (0..1_001)
            .map(|i| pb::TaskSpec { name: format!("t{i}"), plan: "p".into(), ..Default::default() })
            .collect();
        let error = create(owner(), request).unwrap_err();
        assert_eq!(error.violations().len(), 1);
        assert_eq!(error.violations()[0].field, "tasks");
    }

    #[test]
    fn an_update_changes_what_its_mask_names() {
        let request = pb::UpdateContractRequest {
            contract_id: owner().to_string(),
            etag: "v3".into(),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["name".into(), "limits.concurrency".into(), "limits.wall_time".into()],
            }),
            name: "new".into(),
            description: "ignored".into(),
            limits: Some(pb::ContractLimits { concurrency: Some(3), max_retries: Some(9), ..Default::default() }),
            ..Default::default()
        };
        let update = update(owner(), request.clone()).unwrap();
        assert_eq!(update.etag, Some(3));
        assert_eq!(update.name.as_deref(), Some("new"));
        assert_eq!((update.concurrency, update.max_retries, update.wall_time), (Some(3), None, Some(None)));
        assert_eq!(update.description, None);

        let bad = pb::UpdateContractRequest {
            update_mask: Some(prost_types::FieldMask { paths: vec!["owner_id".into()] }),
            ..request
        };
        let error = super::update(owner(), bad).unwrap_err();
        assert_eq!(error.message(), "update_mask.paths[0] `owner_id` is not a field that can be changed");
    }
}

//! What people ask to be done about a task, on the wire: another try, a move, a fork.

use super::{
    check::Check,
    pb,
    status::ApiResult,
    task::{agent, model},
};
use crate::domain::{
    CheckpointId, OwnerId, TaskId,
    draft::Fork,
    task::{MAX_NAME_BYTES, MAX_PLAN_BYTES},
};

/// Checks the form of another try. Whether a checkpoint was named that way is for the caller to find out.
pub fn retry(request: &pb::RetryTaskRequest) -> ApiResult<()> {
    let mut check = Check::new();
    check.request_id(request.request_id.clone());
    if request.fresh && !request.checkpoint_id.is_empty() {
        check.violation("fresh", "begins from nothing, and checkpoint_id from a checkpoint; choose one");
    }
    check.finish()
}

/// Checks the form of a forced release. Answers why it is done.
pub fn force_release(request: pb::ForceReleaseTaskRequest) -> ApiResult<String> {
    let mut check = Check::new();
    check.request_id(request.request_id);
    check.required("reason", &request.reason);
    let reason = check.reason(request.reason);
    check.finish()?;
    Ok(reason)
}

/// Checks the form of a fork of this task, from this checkpoint if one was named.
pub fn fork(
    owner: OwnerId,
    task: TaskId,
    checkpoint: Option<CheckpointId>,
    request: pb::ForkTaskRequest,
) -> ApiResult<Fork> {
    let mut check = Check::new();
    check.request_id(request.request_id);
    let name = check.line("name", request.name, MAX_NAME_BYTES);
    if uuid::Uuid::try_parse(&name).is_ok() {
        check.violation("name", "looks like an id; dependencies could not tell it from one");
    }
    let plan = check.text("plan", request.plan, MAX_PLAN_BYTES);
    if !plan.is_empty() {
        check.required("plan", &plan);
    }
    let given = |text: String| (!text.is_empty()).then_some(text);
    let agent = given(request.agent).map(|text| agent(&mut check, "agent", text));
    let model = given(request.model).map(|text| model(&mut check, "model", text));
    check.finish()?;
    let conversation = request.conversation;
    Ok(Fork { owner, task, checkpoint, name: given(name), plan: given(plan), agent, model, conversation })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn fields(error: &super::super::status::ApiError) -> Vec<&str> {
        error.violations().iter().map(|violation| violation.field.as_str()).collect()
    }

    /// What is left out is the other task's, and everything wrong is named at once.
    #[test]
    fn a_fork_takes_what_is_given_and_leaves_the_rest() {
        let (owner, task) = (OwnerId(Uuid::from_u128(1)), TaskId(Uuid::from_u128(2)));
        let request = pb::ForkTaskRequest { plan: "do it otherwise".into(), conversation: true, ..Default::default() };
        let expected = Fork {
            owner,
            task,
            checkpoint: None,
            name: None,
            plan: Some("do it otherwise".to_owned()),
            agent: None,
            model: None,
            conversation: true,
        };
        assert_eq!(fork(owner, task, None, request).unwrap(), expected);
        let request = pb::ForkTaskRequest {
            name: Uuid::from_u128(3).to_string(),
            plan: " \n".into(),
            agent: "-x".into(),
            ..Default::default()
        };
        assert_eq!(fields(&fork(owner, task, None, request).unwrap_err()), ["name", "plan", "agent"]);
    }

    #[test]
    fn a_retry_begins_in_one_place_and_a_release_says_why() {
        let both = pb::RetryTaskRequest { fresh: true, checkpoint_id: "c".into(), ..Default::default() };
        assert_eq!(fields(&retry(&both).unwrap_err()), ["fresh"]);
        assert_eq!(fields(&force_release(pb::ForceReleaseTaskRequest::default()).unwrap_err()), ["reason"]);
    }
}

//! What an ended attempt means for its task: the table of section 4 of the design, as code.
//!
//! | class | retried | counts | avoids the daemon |
//! |---|---|---|---|
//! | daemon lost, worktree lost | yes | yes | yes |
//! | recovered with its worktree intact | yes, at once | no | no |
//! | refused by the daemon | yes | no | yes |
//! | agent crashed, verify failed | yes | yes | no |
//! | setup failed, authentication | yes | yes | yes |
//! | usage limit | at the reset | no | no |
//! | agent error, timeout, repository, cancelled | no | - | - |
//!
//! The delay doubles from 10 s to 5 min and is jittered by the caller's dice. What is not the task's fault (its daemon went
//! away or would not have it) is tried again at once the first time: another daemon is likely to do better, and the wait for
//! the daemon to return has already been paid.

use std::time::Duration;

use super::{
    attempt::{Failure, FailureClass},
    id::DaemonId,
    task::{Avoid, Tries, Wait, WaitReason},
    time::Timestamp,
};

/// The first delay.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// The longest delay.
pub const BACKOFF_LIMIT: Duration = Duration::from_secs(300);
/// How long a daemon is tried last.
pub const AVOID_FOR: Duration = Duration::from_secs(30 * 60);
/// Attempts in all, whatever their classes, until a person asks for a retry. Usage limits are not attempts at the work.
pub const MAX_ATTEMPTS: u32 = 20;
/// Daemons that may die under a task before it is held: it may be what kills them.
pub const MAX_LOST_DAEMONS: usize = 3;
/// Added to a reset time: clocks differ, and limits have been seen to lift late.
pub const RESET_MARGIN: Duration = Duration::from_secs(60);
/// The wait for a usage limit that does not say when it resets.
pub const RESET_UNKNOWN: Duration = Duration::from_secs(300);
/// No reset is believed that is further away.
pub const RESET_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// What a class means, apart from numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The task is tried again.
    pub retried: bool,
    /// It counts against `max_retries`.
    pub counts: bool,
    /// The daemon is tried last for a while.
    pub avoids: bool,
    /// The first time in a row it is tried again without a delay.
    pub at_once: bool,
}

/// The row of the table for a class.
pub fn rule(class: FailureClass) -> Rule {
    let (retried, counts, avoids, at_once) = match class {
        FailureClass::DaemonLost | FailureClass::WorktreeLost => (true, true, true, true),
        FailureClass::Recovered => (true, false, false, true),
        FailureClass::Refused => (true, false, true, true),
        FailureClass::AgentCrashed | FailureClass::VerifyFailed => (true, true, false, false),
        FailureClass::SetupFailed | FailureClass::Authentication => (true, true, true, false),
        FailureClass::UsageLimit => (true, false, false, false),
        FailureClass::AgentError | FailureClass::Timeout | FailureClass::Repository | FailureClass::Cancelled => {
            (false, false, false, false)
        }
    };
    Rule { retried, counts, avoids, at_once }
}

/// What follows for the task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another attempt, after the wait if there is one.
    Retry(Option<Wait>),
    /// It has failed; a person may ask for a retry.
    Fail,
    /// It waits for a person, for this reason.
    Hold(String),
}

/// An end to judge.
#[derive(Clone, Debug)]
pub struct Ending<'a> {
    /// How the attempt ended.
    pub failure: &'a Failure,
    /// Where.
    pub daemon: DaemonId,
    /// Retries that may count.
    pub max_retries: u32,
    /// From 0 to 1: where in the upper half of the delay this one falls.
    pub jitter: f64,
}

/// Judges an end: the tries including this one, and what follows.
pub fn judge(tries: &Tries, ending: &Ending<'_>, now: Timestamp) -> (Tries, Next) {
    let rule = rule(ending.failure.class);
    let mut tries = tries.clone();
    tries.last_failure = Some(ending.failure.clone());
    tries.avoid.retain(|avoid| avoid.until > now && avoid.daemon != ending.daemon);
    if rule.avoids {
        tries.avoid.push(Avoid { daemon: ending.daemon, until: now.after(AVOID_FOR) });
    }
    if ending.failure.class == FailureClass::DaemonLost && !tries.lost_daemons.contains(&ending.daemon) {
        tries.lost_daemons.push(ending.daemon);
    }
    if ending.failure.class == FailureClass::UsageLimit {
        let reset = ending.failure.reset.map_or(now.after(RESET_UNKNOWN), |reset| reset.after(RESET_MARGIN));
        let until = reset.min(now.after(RESET_LIMIT)).max(now.after(RESET_MARGIN));
        return (tries, Next::Retry(Some(Wait { until, why: WaitReason::UsageLimit })));
    }
    tries.total += 1;
    tries.counted += u32::from(rule.counts);
    if !rule.retried || tries.counted > ending.max_retries || tries.total >= MAX_ATTEMPTS {
        return (tries, Next::Fail);
    }
    if tries.lost_daemons.len() >= MAX_LOST_DAEMONS {
        let reason = format!("{MAX_LOST_DAEMONS} daemons died while running it; retry it when they are well");
        return (tries, Next::Hold(reason));
    }
    let wait = if rule.at_once && tries.backoffs == 0 {
        None
    } else {
        let step = tries.backoffs.saturating_sub(u32::from(rule.at_once));
        let full = BACKOFF_FIRST.saturating_mul(1 << step.min(10)).min(BACKOFF_LIMIT);
        let delay = full.mul_f64(ending.jitter.clamp(0.0, 1.0).mul_add(0.5, 0.5));
        Some(Wait { until: now.after(delay), why: WaitReason::Backoff })
    };
    tries.backoffs += 1;
    (tries, Next::Retry(wait))
}

/// Takes back the loss of a daemon that has come back with its attempt: it was no failure after all.
pub fn forgive(tries: &Tries, daemon: Option<DaemonId>) -> Tries {
    let mut tries = tries.clone();
    tries.total = tries.total.saturating_sub(1);
    tries.counted = tries.counted.saturating_sub(1);
    tries.backoffs = tries.backoffs.saturating_sub(1);
    tries.last_failure = None;
    tries.lost_daemons.retain(|lost| Some(*lost) != daemon);
    tries.avoid.retain(|avoid| Some(avoid.daemon) != daemon);
    tries
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000);

    fn daemon(n: u128) -> DaemonId {
        DaemonId(Uuid::from_u128(n))
    }

    fn end(tries: &Tries, class: FailureClass, on: u128) -> (Tries, Next) {
        let failure = Failure::new(class, "it broke");
        judge(tries, &Ending { failure: &failure, daemon: daemon(on), max_retries: 3, jitter: 1.0 }, NOW)
    }

    fn wait_secs(next: &Next) -> Option<u64> {
        match next {
            Next::Retry(wait) => wait.as_ref().map(|wait| wait.until.since(NOW).as_secs()),
            Next::Fail | Next::Hold(_) => panic!("not retried: {next:?}"),
        }
    }

    /// Four counted attempts, with growing delays between them.
    #[test]
    fn a_crashing_agent_is_tried_four_times() {
        let (mut tries, mut next) = end(&Tries::default(), FailureClass::AgentCrashed, 1);
        let mut delays = Vec::new();
        while next != Next::Fail {
            delays.push(wait_secs(&next));
            (tries, next) = end(&tries, FailureClass::AgentCrashed, 1);
        }
        assert_eq!(delays, [Some(10), Some(20), Some(40)]);
        assert_eq!(tries.counted, 4);
    }

    /// A daemon that refuses costs no retries, is avoided, and a fleet that always refuses ends.
    #[test]
    fn refusals_do_not_count_and_still_end() {
        let (mut tries, mut next) = end(&Tries::default(), FailureClass::Refused, 1);
        assert_eq!(wait_secs(&next), None);
        assert_eq!(tries.avoid, [Avoid { daemon: daemon(1), until: NOW.after(AVOID_FOR) }]);
        let mut attempts = 1;
        while next != Next::Fail {
            (tries, next) = end(&tries, FailureClass::Refused, 1);
            attempts += 1;
        }
        assert_eq!((attempts, tries.counted, tries.avoid.len()), (MAX_ATTEMPTS, 0, 1));
    }

    /// A usage limit waits for its reset, and a hundred of them do not use the task up.
    #[test]
    fn usage_limits_wait_and_cost_nothing() {
        let failure = Failure {
            reset: Some(NOW.after(Duration::from_secs(3_600))),
            ..Failure::new(FailureClass::UsageLimit, "")
        };
        let ending = Ending { failure: &failure, daemon: daemon(1), max_retries: 0, jitter: 0.0 };
        let mut tries = Tries::default();
        for _ in 0..100 {
            let (after, next) = judge(&tries, &ending, NOW);
            assert_eq!(wait_secs(&next), Some(3_660));
            tries = after;
        }
        assert_eq!((tries.total, tries.counted), (0, 0));
    }

    /// A task under which three daemons die is held: it may be what kills them.
    #[test]
    fn three_dead_daemons_hold_the_task() {
        let (tries, next) = end(&Tries::default(), FailureClass::DaemonLost, 1);
        assert_eq!(wait_secs(&next), None);
        let (tries, _) = end(&tries, FailureClass::DaemonLost, 2);
        let (_, next) = end(&tries, FailureClass::DaemonLost, 3);
        assert!(matches!(next, Next::Hold(_)), "{next:?}");
    }

    /// A daemon that was given up and comes back in time costs nothing.
    #[test]
    fn a_loss_that_was_none_is_taken_back() {
        let (tries, _) = end(&Tries::default(), FailureClass::DaemonLost, 1);
        assert_eq!(forgive(&tries, Some(daemon(1))), Tries::default());
    }

    #[test]
    fn what_the_agent_says_is_final_is_final() {
        for class in
            [FailureClass::AgentError, FailureClass::Timeout, FailureClass::Repository, FailureClass::Cancelled]
        {
            assert_eq!(end(&Tries::default(), class, 1).1, Next::Fail, "{class:?}");
        }
    }
}

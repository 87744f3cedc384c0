//! Bugs put in on purpose, to see that the checks find them. They wrap what the ledger has done, or are habits of the model's
//! own daemon and server; the ledger itself knows nothing of them.

use super::super::{Fleet, Op, Request, kept::Kept, work::Work};
use crate::domain::{
    report::{Message, Report},
    task::{Task, TaskState},
};

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Planted {
    /// A late success counts, whoever has the task by then.
    FenceIgnored,
    /// What ends well counts twice for who waits for it.
    SatisfiedTwice,
    /// The slot of an attempt that is being ended is given away before its end is confirmed.
    SlotFreedEarly,
    /// What a daemon owed before it attached again is not said again.
    OutboxNotResent,
    /// A daemon says that an attempt has ended while its agent still lives.
    EndSaidBeforeDeath,
    /// Silence is not noticed.
    LossIgnored,
    /// A class that had nothing to start is not looked at again.
    DryForEver,
}

impl Planted {
    /// All of them.
    pub(super) const ALL: [Self; 7] = [
        Self::FenceIgnored,
        Self::SatisfiedTwice,
        Self::SlotFreedEarly,
        Self::OutboxNotResent,
        Self::EndSaidBeforeDeath,
        Self::LossIgnored,
        Self::DryForEver,
    ];
}

/// What is kept of a batch that was committed.
pub(super) fn kept(planted: Option<Planted>, work: &mut Work) -> Kept {
    let dry = work.kept.lanes.dry();
    let mut kept = work.keep();
    if planted == Some(Planted::DryForEver) {
        kept.lanes.walked(&dry, &[]);
    }
    kept
}

/// After an operation was folded.
pub(super) fn after_fold(planted: Option<Planted>, work: &mut Work, request: &Request) {
    let Op::Message { message: Message { attempt, report: Report::Complete(complete), .. }, .. } = &request.op else {
        return;
    };
    let Ok(result) = &complete.outcome else { return };
    let now = work.now;
    match planted {
        Some(Planted::FenceIgnored) => {
            let replaced = |task: &&Task| task.attempt != attempt.number && !task.status().is_final();
            let Some(task) = work.tasks.get(attempt.task).filter(replaced).cloned() else { return };
            work.count(task.contract, Some(task.status()), crate::domain::task::TaskStatus::Done);
            let state = TaskState::Done { result: result.clone(), at: now };
            work.tasks.set(task.id, Task { state, version: task.version + 1, ..task });
        }
        Some(Planted::SatisfiedTwice) => {
            let done = work.tasks.get(attempt.task).is_some_and(|task| task.status().is_complete());
            for dependent in work.dependents.get(&attempt.task).cloned().unwrap_or_default() {
                if let Some(task) = work.tasks.get_mut(dependent).filter(|_| done) {
                    task.unmet = task.unmet.saturating_sub(1);
                }
                if let Some(unmet) = work.counted.get_mut(&dependent).filter(|_| done) {
                    *unmet = unmet.saturating_sub(1);
                }
            }
        }
        _ => {}
    }
}

/// After a batch has taken effect.
pub(super) fn after_effect(planted: Option<Planted>, fleet: &mut Fleet) {
    if planted == Some(Planted::SlotFreedEarly) {
        let members: Vec<_> = fleet.iter().map(|(id, _)| id).collect();
        for id in members {
            if let Some(member) = fleet.get_mut(id) {
                member.live.retain(|_, is_ending| !*is_ending);
            }
        }
    }
}

//! What a batch adds to the metrics, once it is committed: a batch that fails is not counted.

use super::work::Work;
use crate::{
    domain::{Timestamp, attempt::AttemptState},
    server::metrics::Metrics,
};

impl Work {
    /// Counts what this batch has done. `now` is when it was durable.
    pub(super) fn measure(&self, metrics: &Metrics, now: Timestamp) {
        for (was, task) in self.tasks.dirty_pairs() {
            if task.attempt > was.map_or(0, |was| was.attempt) {
                // A task that could start before this batch could since it last changed; any other could with the batch.
                let ready = was.filter(|was| was.is_ready()).map_or(self.now, |was| was.updated);
                metrics.dispatched(now.since(ready));
            }
        }
        for (was, attempt) in self.attempts.dirty_pairs() {
            if let AttemptState::Ended { outcome, .. } = &attempt.state
                && was.is_none_or(|was| was.is_live())
            {
                metrics.attempt_ended(outcome, attempt.fenced);
            }
        }
        for change in &self.changes {
            let Some(task) = change.task else { continue };
            metrics.event(&change.what.event);
            if change.what.event == "task.retrying"
                && let Some(failure) = self.tasks.get(task).and_then(|task| task.tries.last_failure.as_ref())
            {
                metrics.retried(failure.class);
            }
        }
    }
}

//! Waking a loop that looks for work: the wake-up says *look*, the store says *what*. Wake-ups that come while the loop is
//! busy become one.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

/// A handle to wake a loop, and for the loop to wait on.
#[derive(Clone, Debug, Default)]
pub struct Activator(Arc<Notify>);

impl Activator {
    /// Makes the loop look again, now or as soon as it waits.
    pub fn wake(&self) {
        self.0.notify_one();
    }

    /// Returns when somebody woke it, or after `period` in any case.
    pub async fn wait(&self, period: Duration) {
        let _ = tokio::time::timeout(period, self.0.notified()).await;
    }
}

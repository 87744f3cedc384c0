//! Waiting longer after each failure, never in step with others: full delays double up to a limit, and each is drawn from
//! its upper half ("equal jitter", as AWS's architecture notes call it), so that a fleet does not return as one.

use std::time::Duration;

use rand::RngExt as _;

/// The state of one backing-off loop.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    failures: u32,
}

impl Backoff {
    /// Delays from `first`, doubling, to `limit`.
    pub fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, failures: 0 }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        let full = self.first.saturating_mul(1 << self.failures.min(20)).min(self.limit);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// It worked: the next delay is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_limit_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        assert!(backoff.next_delay() <= Duration::from_millis(500));
        for _ in 0..40 {
            assert!(backoff.next_delay() <= Duration::from_secs(30));
        }
        assert!(backoff.next_delay() >= Duration::from_secs(15));
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(500));
    }
}

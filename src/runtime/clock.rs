//! The only place that reads the wall clock. Everything that decides takes `now` as an argument.
//!
//! Waits are made of these times, so they go on whatever is done to the machine's clock: one that is set back, or set right
//! after it was ahead, would otherwise stop everything that waits for as long as it was off.
//!
//! ```text
//!   wall clock   ──────┐ an hour ahead ┌─┐ set right       the later of the two counts
//!   own counting ──────┴───────────────┴─┴──────────────>
//! ```

use std::{
    sync::{Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use super::hooks;
use crate::domain::Timestamp;

static STEADY: Mutex<Steady> = Mutex::new(Steady { last: None });

/// The wall clock, cut to microseconds; never earlier than it was, and never slower than time.
pub fn now() -> Timestamp {
    // Read while nobody else reads, so that what is told later is later.
    let mut steady = STEADY.lock().unwrap_or_else(PoisonError::into_inner);
    steady.tell(wall(), Instant::now())
}

/// From now on it is at least this late: another process has written that it was.
pub fn at_least(time: Timestamp) {
    let mut steady = STEADY.lock().unwrap_or_else(PoisonError::into_inner);
    steady.tell(time, Instant::now());
}

#[expect(clippy::disallowed_methods, reason = "this is the place the lint sends everybody to")]
fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
    Timestamp(micros.saturating_add(hooks::clock_offset()))
}

/// What was told last, and when.
#[derive(Debug)]
struct Steady {
    last: Option<(Timestamp, Instant)>,
}

impl Steady {
    fn tell(&mut self, wall: Timestamp, at: Instant) -> Timestamp {
        let counted = self.last.map(|(told, then)| told.after(at.saturating_duration_since(then)));
        let now = counted.map_or(wall, |counted| counted.max(wall));
        self.last = Some((now, at));
        now
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_goes_on_whatever_the_clock_does() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut steady = Steady { last: None };
        assert_eq!(steady.tell(Timestamp::from_secs(100), begin), Timestamp::from_secs(100));
        assert_eq!(steady.tell(Timestamp::from_secs(101), begin + second), Timestamp::from_secs(101));
        assert_eq!(steady.tell(Timestamp::from_secs(4_000), begin + 2 * second), Timestamp::from_secs(4_000));
        // Set right: it counts on by itself.
        assert_eq!(steady.tell(Timestamp::from_secs(103), begin + 3 * second), Timestamp::from_secs(4_001));
        assert_eq!(steady.tell(Timestamp::from_secs(113), begin + 13 * second), Timestamp::from_secs(4_011));
        assert_eq!(steady.tell(Timestamp::from_secs(5_000), begin + 14 * second), Timestamp::from_secs(5_000));
    }
}

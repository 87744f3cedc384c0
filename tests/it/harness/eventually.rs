//! Waiting for a condition: looked at again and again until it holds or the deadline passes, and then the test fails with
//! what was seen last. There is no other waiting in the tests.

use std::{
    fmt::Display,
    future::Future,
    time::{Duration, Instant},
};

/// Enough for anything that is going to happen at all, on two busy cores.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks, at first; it doubles to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(200);

/// Looks until the answer is `Ok`. Panics after [`DEADLINE`] with the last `Err`.
pub async fn eventually<T, E, F>(what: &str, look: impl FnMut() -> F) -> T
where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    eventually_within(DEADLINE, what, look).await
}

/// [`eventually`] with a deadline of its own.
pub async fn eventually_within<T, E, F>(deadline: Duration, what: &str, mut look: impl FnMut() -> F) -> T
where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut last = String::from("nothing: no look has returned");
    while start.elapsed() < deadline {
        // A look that hangs is a condition that does not hold.
        match tokio::time::timeout(deadline.saturating_sub(start.elapsed()), look()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(seen)) => last = seen.to_string(),
            Err(_) => break,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
    panic!("{what}: not within {deadline:?}; last seen: {last}");
}

/// `Ok` if it holds, else what was seen instead.
pub fn ensure(holds: bool, seen: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(seen()) }
}

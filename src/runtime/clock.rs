//! The only place that reads the wall clock. Everything that decides takes `now` as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use super::hooks;
use crate::domain::Timestamp;

/// The wall clock, cut to microseconds.
#[expect(clippy::disallowed_methods, reason = "this is the place the lint sends everybody to")]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
    Timestamp(micros.saturating_add(hooks::clock_offset()))
}

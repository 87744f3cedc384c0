//! What tests change about a process from outside: its clock, the boot it believes to be in, how long it waits. In builds
//! without debug assertions all of it is constant and nothing is read.
//!
//! ```text
//!   MAKIMA_TEST_CLOCK=FILE       microseconds in FILE are added to the wall clock, as they are at the moment of asking
//!   MAKIMA_TEST_BOOT=TEXT        this is the boot of the machine
//!   MAKIMA_TEST_<NAME>_MS=N      the time of that name
//! ```
//!
//! Absent on purpose: anything that changes what is decided. A test that needs another decision is a test of other code.

use std::time::Duration;

/// What is added to the wall clock, in microseconds.
#[cfg(debug_assertions)]
pub(super) fn clock_offset() -> i64 {
    use std::{ffi::OsString, sync::OnceLock};
    static FILE: OnceLock<Option<OsString>> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os("MAKIMA_TEST_CLOCK")).as_ref();
    let text = file.and_then(|file| std::fs::read_to_string(file).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// What is added to the wall clock: nothing.
#[cfg(not(debug_assertions))]
pub(super) const fn clock_offset() -> i64 {
    0
}

/// The boot of this machine, where a test says that it is another one.
pub fn boot() -> Option<String> {
    if cfg!(debug_assertions) { std::env::var("MAKIMA_TEST_BOOT").ok() } else { None }
}

/// A time, where a test shortens it: `name` is in capitals, as in `MAKIMA_TEST_PING_MS`.
pub fn duration(name: &str, usual: Duration) -> Duration {
    if !cfg!(debug_assertions) {
        return usual;
    }
    let told = std::env::var(format!("MAKIMA_TEST_{name}_MS")).ok();
    told.and_then(|text| text.parse().ok()).map_or(usual, Duration::from_millis)
}

//! What server, daemon and command line all use to run: the clock, backing off, waking up, starting and stopping, logs,
//! and showing what is measured.

pub mod activator;
pub mod backoff;
pub mod clock;
pub mod hooks;
pub mod lifecycle;
pub mod metrics;
pub mod telemetry;

//! Logs: constant text with fields, on standard error, in colour on a terminal. `MAKIMA_LOG` filters them in the syntax of
//! `tracing_subscriber::EnvFilter`; `MAKIMA_LOG_FORMAT=json` writes one JSON object a line.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts logging for this process. `default` filters where `MAKIMA_LOG` says nothing. Repeating it does nothing.
pub fn start(default: &str) {
    let filter = EnvFilter::try_from_env("MAKIMA_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let json = std::env::var("MAKIMA_LOG_FORMAT").is_ok_and(|format| format == "json");
    // A second start, as in tests, keeps the first subscriber.
    let _ = if json { builder.json().try_init() } else { builder.try_init() };
}

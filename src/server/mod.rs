//! Who decides when.
//!
//! ```text
//!   client ──> services: check ──> ledger: fold, dispatch, commit ──> answer, sessions, watchers
//!   daemon ──> session: hello, reports, heartbeats ──> ledger         <── commands
//!   time ────> reaper: silence, due times, forgetting ──> ledger
//! ```
//!
//! `ledger` is the one writer; everything else asks it or reads the store. `auth` says who calls, `output`, `uploads` and `blobs`
//! keep what is too big for a table, `listen` puts it all on a socket (`trace` gives every call its span), `metrics` shows how it
//! goes, `run` starts and ends it.

pub mod auth;
pub mod blobs;
pub mod expiry;
pub mod ledger;
pub mod listen;
pub mod metrics;
pub mod output;
pub mod reaper;
mod run;
pub mod services;
pub mod session;
pub mod task_keys;
mod trace;
pub mod uploads;

pub use run::{Config, Error, run};

use crate::wire::status::{ApiError, Reason};

/// What the ledger refuses, as a caller hears it.
pub fn api_error(error: ledger::Error) -> ApiError {
    use ledger::Error;
    let text = error.to_string();
    match error {
        Error::NotFound { kind: "contract", .. } => ApiError::new(Reason::ContractNotFound, text),
        Error::NotFound { kind: "daemon", .. } => ApiError::new(Reason::DaemonNotFound, text),
        Error::NotFound { kind: "checkpoint", .. } => ApiError::new(Reason::CheckpointNotFound, text),
        Error::NotFound { kind: "key", .. } => ApiError::new(Reason::KeyNotFound, text),
        Error::NotFound { .. } => ApiError::new(Reason::TaskNotFound, text),
        Error::Invalid(violations) => {
            let dependency = |(field, _): &(String, String)| field.contains("depends_on");
            let reason = match violations.iter().any(dependency) {
                true => Reason::InvalidDependencies,
                false => Reason::InvalidFields,
            };
            let violations =
                violations.into_iter().map(|(field, what)| crate::wire::status::Violation::new(field, what));
            ApiError::violating(reason, violations.collect())
        }
        Error::Precondition(_) => ApiError::new(Reason::WrongState, text),
        Error::Etag { .. } => ApiError::new(Reason::EtagMismatch, text),
        Error::RequestIdReused(_) => ApiError::new(Reason::RequestIdReused, text),
        Error::Exists(_) => ApiError::new(Reason::NameTaken, text),
        Error::Unfit(_) => ApiError::new(Reason::DaemonUnfit, text),
        Error::Forbidden(_) => ApiError::new(Reason::ForeignDaemon, text),
        Error::StaleSession(_) => ApiError::new(Reason::WrongState, text),
        // What the database says of itself is for the log.
        error @ Error::Unstorable(_) => ApiError::internal(error),
        error @ Error::Unavailable(_) => ApiError::unavailable(error),
        Error::Stopping => ApiError::shutting_down(),
    }
}

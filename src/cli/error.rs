//! Why a command did not do what was asked, in one line that says what to do, and the exit code that goes with it.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed, or what was waited for did not end well |
//! | 2 | asked wrongly: flags, files, configuration |
//! | 75 | a daemon whose identity another process has taken: starting it again would take it back |
//! | 130 | interrupted by the person |

use std::{fmt::Write as _, io};

use tonic::Code;
use tonic_types::StatusExt as _;

use super::output::clean;

/// What every command answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command ends without having done what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Asked wrongly: nothing was tried.
    #[error("{0}")]
    Usage(String),
    /// Tried, and failed.
    #[error("{0}")]
    Failed(String),
    /// Another process has this daemon's identity. Not to be started again by itself.
    #[error("{0}")]
    Superseded(String),
    /// The server said no.
    #[error("{}", describe(.0))]
    Call(Box<Refusal>),
    /// A file or a stream of the machine failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried: `read contract.yaml`.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The person pressed Ctrl-C; the text says what goes on without them.
    #[error("{0}")]
    Interrupted(String),
    /// Whoever read our output had enough of it. Nothing is said about it.
    #[error("nobody reads the output any more")]
    ReaderGone,
    /// It did not end well, and that has been said already.
    #[error("it did not end well")]
    Said,
}

/// A call that the server refused, with what the person needs to set it right.
#[derive(Debug)]
pub struct Refusal {
    /// What was tried: `create the contract`.
    pub what: &'static str,
    /// What the server said.
    pub status: tonic::Status,
    /// Where it was asked.
    pub server: String,
    /// Where the key came from; empty when there was none.
    pub key_origin: String,
}

impl Error {
    /// A failure with a text.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    /// A usage error with a text.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// A system failure, for `map_err`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ReaderGone => 0,
            Self::Failed(_) | Self::Call(_) | Self::Io { .. } | Self::Said => 1,
            Self::Usage(_) => 2,
            Self::Superseded(_) => 75,
            Self::Interrupted(_) => 130,
        }
    }

    /// What to say on standard error; nothing where it has been said, or where nobody listens.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::ReaderGone | Self::Said => None,
            Self::Interrupted(text) if text.is_empty() => None,
            Self::Usage(_)
            | Self::Superseded(_)
            | Self::Failed(_)
            | Self::Call(_)
            | Self::Io { .. }
            | Self::Interrupted(_) => Some(self.to_string()),
        }
    }
}

/// The connection broke or the server is restarting: the same call may work in a moment.
pub fn is_transient(status: &tonic::Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => true,
        // A connection that breaks inside a stream arrives as one of these, with the transport's error as its source.
        Code::Unknown | Code::Internal => std::error::Error::source(status).is_some(),
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

/// The refusal as a person reads it: what failed, why, the reason's word, every field at fault on a line of its own.
fn describe(refusal: &Refusal) -> String {
    let Refusal { what, status, server, key_origin } = refusal;
    let details = status.get_error_details();
    let mut text = format!("cannot {what}: ");
    match (status.code(), status.message()) {
        (Code::Unavailable, message) => {
            let _ = write!(text, "the server at {server} does not answer ({})", clean(message));
            text.push_str(": is it running? `makima doctor` looks");
        }
        // Something answered, and not in our language, or no longer.
        (Code::Unknown | Code::Internal, message @ ("transport error" | "h2 protocol error: http2 error")) => {
            let _ = write!(
                text,
                "what answers at {server} does not speak as a makima server does ({message}): is the address \
                                  right, and does it still run? `makima doctor` looks"
            );
        }
        (code, "") => text.push_str(code.description()),
        (_, message) => text.push_str(&clean(message)),
    }
    let reason = details.error_info().map(|info| info.reason.as_str()).unwrap_or_default();
    if !reason.is_empty() {
        let _ = write!(text, " ({})", clean(reason));
    }
    if reason == "OWNER_NOT_NAMED" {
        text.push_str("; pass --owner NAME");
    }
    match status.code() {
        Code::Unauthenticated if key_origin.is_empty() => {
            text.push_str("; no key was found: pass --key-file, or set MAKIMA_KEY");
        }
        Code::Unauthenticated | Code::PermissionDenied if !key_origin.is_empty() => {
            let _ = write!(text, "; the key came from {key_origin}");
        }
        _ => {}
    }
    if let Some(retry) = details.retry_info().and_then(|info| info.retry_delay) {
        let _ = write!(text, "; try again in {}", super::output::span(retry));
    }
    if let Some(bad) = details.bad_request() {
        // A single one is usually what the message says already.
        let said = |field: &str| bad.field_violations.len() == 1 && status.message().contains(field);
        for violation in bad.field_violations.iter().filter(|violation| !said(&violation.field)) {
            let _ = write!(text, "\n  {}: {}", clean(&violation.field), clean(&violation.description));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn refusal(status: tonic::Status) -> Error {
        Error::Call(Box::new(Refusal {
            what: "create the contract",
            status,
            server: "http://127.0.0.1:7420".to_owned(),
            key_origin: "/state/owner.key".to_owned(),
        }))
    }

    #[test]
    fn a_refusal_names_every_field_and_the_reason() {
        let mut details = ErrorDetails::new();
        details.set_error_info("DEPENDENCY_CYCLE", "makima", std::collections::HashMap::new());
        details.add_bad_request_violation("tasks[1].depends_on", "cycle: types -> ui -> types");
        details.add_bad_request_violation("tasks[2].plan", "is empty");
        let status = tonic::Status::with_error_details(Code::InvalidArgument, "2 fields are wrong", details);
        insta::assert_snapshot!(refusal(status), @r"
        cannot create the contract: 2 fields are wrong (DEPENDENCY_CYCLE)
          tasks[1].depends_on: cycle: types -> ui -> types
          tasks[2].plan: is empty
        ");
    }

    #[test]
    fn a_wrong_key_says_where_it_came_from_and_a_silent_server_what_to_do() {
        insta::assert_snapshot!(
            refusal(tonic::Status::unauthenticated("the key is not known")),
            @"cannot create the contract: the key is not known; the key came from /state/owner.key"
        );
        insta::assert_snapshot!(
            refusal(tonic::Status::unavailable("tcp connect error")),
            @"cannot create the contract: the server at http://127.0.0.1:7420 does not answer (tcp connect error): is it running? `makima doctor` looks"
        );
        insta::assert_snapshot!(
            refusal(tonic::Status::internal("h2 protocol error: http2 error")),
            @"cannot create the contract: what answers at http://127.0.0.1:7420 does not speak as a makima server does (h2 protocol error: http2 error): is the address right, and does it still run? `makima doctor` looks"
        );
    }

    #[test]
    fn exit_codes_are_the_promised_ones() {
        assert_eq!(Error::usage("x").exit_code(), 2);
        assert_eq!(Error::failed("x").exit_code(), 1);
        assert_eq!(Error::Said.exit_code(), 1);
        assert_eq!(Error::Interrupted(String::new()).exit_code(), 130);
        assert_eq!(Error::ReaderGone.exit_code(), 0);
    }
}

//! The one table from what went wrong to what a caller gets: a gRPC code, a stable reason, every field at fault at once,
//! and when to come back.
//!
//! ```text
//!   Reason ──code()──> tonic::Code          the table
//!     │
//!   ApiError { reason, message, violations, metadata, retry_after, cause }
//!     │  message, violations, metadata, retry_after ──> the caller: grpc-message, BadRequest, ErrorInfo, RetryInfo
//!     └  cause ──────────────────────────────────────> the log, and nobody else
//! ```
//!
//! Promises: a reason, once released, keeps its word and its code. A caller never reads the text of an internal error.
//! Details stay small enough for the metadata limits of every client ([`MAX_DETAIL_BYTES`]).

use std::{collections::HashMap, error::Error, fmt, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use super::common::Invalid;
pub use crate::domain::text::chain;

/// The domain of every reason.
pub const DOMAIN: &str = "makima";

/// Bytes of names and descriptions of violations that one status carries. Details travel in a trailer, in base64, and
/// clients cap their metadata (the Python and C++ ones at 8 KiB): a status over it would reach them as RESOURCE_EXHAUSTED
/// without a word. What does not fit is counted.
pub const MAX_DETAIL_BYTES: usize = 3 * 1024;

/// Bytes of the message of a status, which travels in the same trailer, percent-encoded.
pub const MAX_MESSAGE_BYTES: usize = 1024;

/// When to come back after [`Reason::Unavailable`] and its like: about as long as a failover or a restart takes.
pub const RETRY_SOON: Duration = Duration::from_secs(1);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal => $code:ident),+ $(,)?) => {
        /// Why a call failed: `google.rpc.ErrorInfo.reason`, with the gRPC code it goes with.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name),+
        }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The stable word.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }

            /// The gRPC code it goes with.
            pub fn code(self) -> Code {
                match self { $(Self::$name => Code::$code),+ }
            }
        }
    };
}

reasons! {
    /// Fields of the request cannot be accepted; `BadRequest` names each.
    InvalidFields = "INVALID_FIELDS" => InvalidArgument,
    /// Dependencies cannot be accepted: cycles, unknown, foreign, repeated; `BadRequest` names each.
    InvalidDependencies = "INVALID_DEPENDENCIES" => InvalidArgument,
    /// A page token is not one of ours, or belongs to another list.
    InvalidPageToken = "INVALID_PAGE_TOKEN" => InvalidArgument,
    /// A resume token is not one of ours, or belongs to another watch.
    InvalidResumeToken = "INVALID_RESUME_TOKEN" => InvalidArgument,
    /// A short id fits more than one thing; give the full one.
    AmbiguousId = "AMBIGUOUS_ID" => InvalidArgument,
    /// A field or call that exists in the protocol and is not served yet.
    NotServedYet = "NOT_SERVED_YET" => Unimplemented,

    /// No `authorization: Bearer mk_...` came with the call.
    KeyMissing = "KEY_MISSING" => Unauthenticated,
    /// The key is not one of ours.
    KeyUnknown = "KEY_UNKNOWN" => Unauthenticated,
    /// The key was revoked.
    KeyRevoked = "KEY_REVOKED" => Unauthenticated,
    /// The task key's attempt is over.
    KeyExpired = "KEY_EXPIRED" => Unauthenticated,
    /// The call needs an admin key, or names another owner than its key belongs to.
    AdminKeyNeeded = "ADMIN_KEY_NEEDED" => PermissionDenied,
    /// The call needs an owner key, or an admin key that names an owner.
    OwnerKeyNeeded = "OWNER_KEY_NEEDED" => PermissionDenied,
    /// The call needs a daemon key.
    DaemonKeyNeeded = "DAEMON_KEY_NEEDED" => PermissionDenied,
    /// An admin key reaches an owner's data only with `makima-owner: <name or id>`.
    OwnerNotNamed = "OWNER_NOT_NAMED" => PermissionDenied,
    /// A task key reads its own task and contract, and nothing else.
    OutsideTaskKey = "OUTSIDE_TASK_KEY" => PermissionDenied,
    /// The identity that a daemon comes with belongs to another owner.
    ForeignDaemon = "FOREIGN_DAEMON" => PermissionDenied,

    /// There is no such contract, or it is somebody else's.
    ContractNotFound = "CONTRACT_NOT_FOUND" => NotFound,
    /// There is no such task, or it is somebody else's.
    TaskNotFound = "TASK_NOT_FOUND" => NotFound,
    /// There is no such attempt.
    AttemptNotFound = "ATTEMPT_NOT_FOUND" => NotFound,
    /// There is no such checkpoint, or it is no longer kept, or it is somebody else's.
    CheckpointNotFound = "CHECKPOINT_NOT_FOUND" => NotFound,
    /// There is no such daemon, or it is somebody else's.
    DaemonNotFound = "DAEMON_NOT_FOUND" => NotFound,
    /// There is no such key.
    KeyNotFound = "KEY_NOT_FOUND" => NotFound,
    /// There is no such owner.
    OwnerNotFound = "OWNER_NOT_FOUND" => NotFound,
    /// There is no such blob, or it is no longer kept.
    BlobNotFound = "BLOB_NOT_FOUND" => NotFound,

    /// The request id was used before, with another body.
    RequestIdReused = "REQUEST_ID_REUSED" => AlreadyExists,
    /// The contract has a task of that name.
    NameTaken = "NAME_TAKEN" => AlreadyExists,
    /// What was read is no longer what is: read again, decide again.
    EtagMismatch = "ETAG_MISMATCH" => Aborted,
    /// The thing is not in a state that allows this.
    WrongState = "WRONG_STATE" => FailedPrecondition,
    /// The daemon named cannot take the task now; the message says what it lacks.
    DaemonUnfit = "DAEMON_UNFIT" => FailedPrecondition,
    /// Daemon and server have no version of the protocol in common.
    ProtocolUnsupported = "PROTOCOL_UNSUPPORTED" => FailedPrecondition,
    /// The server has more to do than it takes on; come back.
    Overloaded = "OVERLOADED" => ResourceExhausted,
    /// The changes behind the resume token are no longer kept: watch again from a snapshot.
    ResumeTokenExpired = "RESUME_TOKEN_EXPIRED" => OutOfRange,
    /// The offset is outside of what there is.
    OffsetOutOfRange = "OFFSET_OUT_OF_RANGE" => OutOfRange,
    /// The bytes are not those that were sent.
    ChecksumMismatch = "CHECKSUM_MISMATCH" => DataLoss,

    /// The server is stopping; another life of it will answer.
    ShuttingDown = "SHUTTING_DOWN" => Unavailable,
    /// The database or the blob directory cannot be reached now.
    Unavailable = "UNAVAILABLE" => Unavailable,
    /// Our fault; the server's log has the rest.
    Internal = "INTERNAL" => Internal,
}

impl Reason {
    /// Waiting may help, and this long.
    fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Overloaded | Self::ShuttingDown | Self::Unavailable => Some(RETRY_SOON),
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One field at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where, as in the proto: `tasks[3].plan`.
    pub field: String,
    /// What is wrong with it; reads on from the field's name.
    pub description: String,
}

impl Violation {
    /// One with this description.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

impl From<Invalid> for Violation {
    fn from(invalid: Invalid) -> Self {
        Self { field: invalid.field, description: invalid.problem }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.description)
        } else {
            write!(f, "{} {}", self.field, self.description)
        }
    }
}

/// A call that failed: what the caller reads, and apart from it what the log keeps.
#[derive(Debug)]
pub struct ApiError {
    reason: Reason,
    message: String,
    violations: Vec<Violation>,
    metadata: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

/// What a handler answers.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// One with this reason and this line for the caller: what is wrong, and what to do.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            violations: Vec::new(),
            metadata: Vec::new(),
            retry_after: reason.retry_after(),
            cause: None,
        }
    }

    /// Fields at fault, all of them.
    pub fn invalid(violations: Vec<Violation>) -> Self {
        Self::violating(Reason::InvalidFields, violations)
    }

    /// Fields at fault, for this reason.
    pub fn violating(reason: Reason, violations: Vec<Violation>) -> Self {
        let message = headline(&violations);
        Self { violations, ..Self::new(reason, message) }
    }

    /// One field at fault.
    pub fn invalid_field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::invalid(vec![Violation::new(field, description)])
    }

    /// Our fault: the cause goes to the log, the caller learns only that it is there.
    pub fn internal(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Reason::Internal, "internal error; the server's log has the cause").caused_by(cause)
    }

    /// Something the server needs cannot be reached now: the cause goes to the log.
    pub fn unavailable(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Reason::Unavailable, "the server's storage does not answer now; try again").caused_by(cause)
    }

    /// The server is stopping.
    pub fn shutting_down() -> Self {
        Self::new(Reason::ShuttingDown, "the server is shutting down; try again")
    }

    /// The same with a cause for the log.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The same with a word for programs, in `ErrorInfo.metadata`.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    /// The same, with when to come back.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The line for the caller.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Fields at fault.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ApiError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| cause.as_ref() as &(dyn Error + 'static))
    }
}

impl From<Invalid> for ApiError {
    fn from(invalid: Invalid) -> Self {
        Self::invalid(vec![invalid.into()])
    }
}

impl From<ApiError> for Status {
    /// Where an error is handled, and so where its cause is logged.
    fn from(error: ApiError) -> Self {
        if let Some(cause) = &error.cause {
            let cause = chain(cause.as_ref());
            // An outage fails every call; what is broken fails this one.
            if error.reason == Reason::Internal {
                tracing::error!(cause, "a call failed, and it is our fault");
            } else {
                tracing::warn!(reason = %error.reason, cause, "a call failed");
            }
        }
        let mut details = ErrorDetails::new();
        let metadata: HashMap<String, String> =
            error.metadata.iter().map(|(key, value)| ((*key).to_owned(), cut(value, MAX_NAMED_BYTES))).collect();
        details.set_error_info(error.reason.word(), DOMAIN, metadata);
        if !error.violations.is_empty() {
            details.set_bad_request(shown_violations(&error.violations));
        }
        if let Some(after) = error.retry_after {
            details.set_retry_info(Some(after));
        }
        Self::with_error_details(error.reason.code(), cut(&error.message, MAX_MESSAGE_BYTES), details)
    }
}

/// Bytes of one value of the metadata, and of one field or description: enough to recognise it.
const MAX_NAMED_BYTES: usize = 512;

/// The violations that fit, and how many did not.
fn shown_violations(violations: &[Violation]) -> Vec<FieldViolation> {
    let mut room = MAX_DETAIL_BYTES;
    let mut shown = Vec::new();
    for violation in violations {
        let field = cut(&violation.field, MAX_NAMED_BYTES);
        let description = cut(&violation.description, MAX_NAMED_BYTES);
        let size = field.len() + description.len() + 8;
        if size > room {
            let rest = violations.len() - shown.len();
            shown.push(FieldViolation::new("", format!("and {rest} more")));
            break;
        }
        room -= size;
        shown.push(FieldViolation::new(field, description));
    }
    shown
}

/// Violations in a message before it only counts them: a person reads a line, a program reads `BadRequest`.
const HEADLINE_VIOLATIONS: usize = 3;

fn headline(violations: &[Violation]) -> String {
    let mut line: String =
        violations.iter().take(HEADLINE_VIOLATIONS).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if violations.len() > HEADLINE_VIOLATIONS {
        line = cut(&line, MAX_MESSAGE_BYTES - 64);
        line.push_str(&format!("; and {} more", violations.len() - HEADLINE_VIOLATIONS));
    }
    line
}

/// The text, at most this long, ending at a character.
fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let mut end = bytes.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// The table itself: changing a line of it is changing the API.
    #[test]
    fn every_reason_has_its_code() {
        let table: Vec<String> =
            Reason::ALL.iter().map(|reason| format!("{:<24}{:?}", reason.word(), reason.code())).collect();
        insta::assert_snapshot!(table.join("\n"));
    }

    #[test]
    fn reasons_are_valid_and_unique() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.word()).collect();
        for word in &words {
            assert!(word.len() <= 63 && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{word}");
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn a_caller_gets_code_reason_and_every_violation() {
        let status = Status::from(ApiError::invalid(vec![
            Violation::new("name", "is required"),
            Violation::new("tasks[1].plan", "is required"),
        ]));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "name is required; tasks[1].plan is required");
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("INVALID_FIELDS", "makima"));
        let fields: Vec<_> = details.bad_request().unwrap().field_violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["name", "tasks[1].plan"]);
        assert!(details.retry_info().is_none());
    }

    #[test]
    fn thousands_of_violations_stay_within_the_limits_of_clients() {
        let many = (0..5_000).map(|i| Violation::new(format!("tasks[{i}].plan"), "é".repeat(700))).collect();
        let status = Status::from(ApiError::invalid(many));
        assert!(status.message().len() <= MAX_MESSAGE_BYTES);
        assert!(status.message().ends_with("; and 4997 more"));
        assert!(status.details().len() < 4 * 1024, "{}", status.details().len());
        assert!(tonic_types::pb::Status::decode(status.details()).is_ok());
        let shown = status.get_details_bad_request().unwrap().field_violations;
        let last = shown.last().unwrap();
        assert_eq!(last.description, format!("and {} more", 5_000 - (shown.len() - 1)));
    }

    #[test]
    fn what_is_internal_stays_inside_and_what_passes_says_when() {
        let status = Status::from(ApiError::internal("password=hunter2"));
        assert_eq!(status.code(), Code::Internal);
        assert!(!format!("{status:?}").contains("hunter2"));
        let status = Status::from(ApiError::shutting_down());
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(RETRY_SOON));
    }
}

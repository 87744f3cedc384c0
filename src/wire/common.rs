//! The parts that every message shares: ids, times, words and counts. Outward conversions cannot fail; inward ones say
//! which field is wrong and what would be right. Nothing here decides.

use std::time::Duration;

use uuid::Uuid;

use super::pb;
use crate::domain::{
    AttemptRef, Timestamp,
    attempt::{FailureClass, Usage},
    task::TaskStatus,
};

/// The longest span a field may name: ten years. Longer ones are mistakes, and would overflow sums of times.
pub const MAX_DURATION: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// A field that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}` {problem}")]
pub struct Invalid {
    /// Which, as in the proto: `attempt.task_id`.
    pub field: String,
    /// What is wrong with it; reads on from the field's name.
    pub problem: String,
}

impl Invalid {
    /// One with this problem.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// The same, inside another message.
    #[must_use]
    pub fn within(self, parent: &str) -> Self {
        Self { field: format!("{parent}.{}", self.field), problem: self.problem }
    }
}

// === ids ===

/// An id that must be there.
pub fn id<T: From<Uuid>>(field: &str, text: &str) -> Result<T, Invalid> {
    if text.is_empty() {
        return Err(Invalid::new(field, "is required"));
    }
    Uuid::try_parse(text).map(T::from).map_err(|_| Invalid::new(field, format!("is not an id: `{}`", shown(text))))
}

/// An id that may be absent.
pub fn optional_id<T: From<Uuid>>(field: &str, text: &str) -> Result<Option<T>, Invalid> {
    if text.is_empty() { Ok(None) } else { id(field, text).map(Some) }
}

/// An optional id as text.
pub fn id_text<T: ToString>(id: Option<T>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}

/// What an error repeats of somebody's text: the first characters of one line, so that no message grows without end.
pub fn shown(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl From<AttemptRef> for pb::AttemptRef {
    fn from(attempt: AttemptRef) -> Self {
        Self { task_id: attempt.task.to_string(), number: attempt.number, attempt_id: attempt.id.to_string() }
    }
}

impl TryFrom<&pb::AttemptRef> for AttemptRef {
    type Error = Invalid;

    fn try_from(attempt: &pb::AttemptRef) -> Result<Self, Invalid> {
        if attempt.number == 0 {
            return Err(Invalid::new("number", "counts from 1"));
        }
        // No database has a place for more.
        if i32::try_from(attempt.number).is_err() {
            return Err(Invalid::new("number", "is larger than any attempt's"));
        }
        Ok(Self {
            task: id("task_id", &attempt.task_id)?,
            number: attempt.number,
            id: id("attempt_id", &attempt.attempt_id)?,
        })
    }
}

/// An attempt that must be there.
pub fn attempt_ref(field: &str, attempt: Option<&pb::AttemptRef>) -> Result<AttemptRef, Invalid> {
    let attempt = attempt.ok_or_else(|| Invalid::new(field, "is required"))?;
    AttemptRef::try_from(attempt).map_err(|e| e.within(field))
}

// === times ===

/// A time.
pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(at.0.rem_euclid(1_000_000) * 1_000).unwrap_or(0);
    prost_types::Timestamp { seconds: at.0.div_euclid(1_000_000), nanos }
}

/// A time, cut to microseconds.
pub fn timestamp_from(field: &str, at: &prost_types::Timestamp) -> Result<Timestamp, Invalid> {
    if !(0..1_000_000_000).contains(&at.nanos) {
        return Err(Invalid::new(field, "is not a time: nanos are 0 to 999999999"));
    }
    at.seconds
        .checked_mul(1_000_000)
        .and_then(|micros| micros.checked_add(i64::from(at.nanos / 1_000)))
        .map(Timestamp)
        .ok_or_else(|| Invalid::new(field, "is not a time: out of range"))
}

/// A time that must be there.
pub fn required_timestamp(field: &str, at: Option<&prost_types::Timestamp>) -> Result<Timestamp, Invalid> {
    timestamp_from(field, at.ok_or_else(|| Invalid::new(field, "is required"))?)
}

/// A span of time.
pub fn duration(span: Duration) -> prost_types::Duration {
    let span = span.min(MAX_DURATION);
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or(0),
    }
}

/// A span of time, not negative and not absurd, cut to microseconds.
pub fn duration_from(field: &str, span: &prost_types::Duration) -> Result<Duration, Invalid> {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(span.seconds), u32::try_from(span.nanos)) else {
        return Err(Invalid::new(field, "must not be negative"));
    };
    if nanos > 999_999_999 {
        return Err(Invalid::new(field, "is not a duration: nanos are 0 to 999999999"));
    }
    let span = Duration::new(seconds, nanos / 1_000 * 1_000);
    if span > MAX_DURATION {
        return Err(Invalid::new(field, "must be at most ten years"));
    }
    Ok(span)
}

// === words ===

impl From<TaskStatus> for pb::TaskStatus {
    fn from(status: TaskStatus) -> Self {
        match status {
            TaskStatus::Pending => Self::Pending,
            TaskStatus::Starting => Self::Starting,
            TaskStatus::Running => Self::Running,
            TaskStatus::Paused => Self::Paused,
            TaskStatus::AwaitingInput => Self::AwaitingInput,
            TaskStatus::Finalizing => Self::Finalizing,
            TaskStatus::Done => Self::Done,
            TaskStatus::Merged => Self::Merged,
            TaskStatus::Failed => Self::Failed,
            TaskStatus::Cancelled => Self::Cancelled,
        }
    }
}

/// A status that must be one that we know.
pub fn task_status(field: &str, number: i32) -> Result<TaskStatus, Invalid> {
    let unknown = || Invalid::new(field, format!("is not a status: {number}"));
    Ok(match pb::TaskStatus::try_from(number).map_err(|_| unknown())? {
        pb::TaskStatus::Unspecified => return Err(unknown()),
        pb::TaskStatus::Pending => TaskStatus::Pending,
        pb::TaskStatus::Starting => TaskStatus::Starting,
        pb::TaskStatus::Running => TaskStatus::Running,
        pb::TaskStatus::Paused => TaskStatus::Paused,
        pb::TaskStatus::AwaitingInput => TaskStatus::AwaitingInput,
        pb::TaskStatus::Finalizing => TaskStatus::Finalizing,
        pb::TaskStatus::Done => TaskStatus::Done,
        pb::TaskStatus::Merged => TaskStatus::Merged,
        pb::TaskStatus::Failed => TaskStatus::Failed,
        pb::TaskStatus::Cancelled => TaskStatus::Cancelled,
    })
}

impl From<FailureClass> for pb::FailureClass {
    fn from(class: FailureClass) -> Self {
        match class {
            FailureClass::DaemonLost => Self::DaemonLost,
            FailureClass::WorktreeLost => Self::WorktreeLost,
            FailureClass::Recovered => Self::Recovered,
            FailureClass::Refused => Self::Refused,
            FailureClass::AgentCrashed => Self::AgentCrashed,
            FailureClass::VerifyFailed => Self::VerifyFailed,
            FailureClass::SetupFailed => Self::SetupFailed,
            FailureClass::Authentication => Self::Authentication,
            FailureClass::UsageLimit => Self::UsageLimit,
            FailureClass::AgentError => Self::AgentError,
            FailureClass::Timeout => Self::Timeout,
            FailureClass::Repository => Self::Repository,
            FailureClass::Cancelled => Self::Cancelled,
        }
    }
}

/// A failure class that must be one that we know.
pub fn failure_class(field: &str, number: i32) -> Result<FailureClass, Invalid> {
    let unknown = || Invalid::new(field, format!("is not a failure class: {number}"));
    Ok(match pb::FailureClass::try_from(number).map_err(|_| unknown())? {
        pb::FailureClass::Unspecified => return Err(unknown()),
        pb::FailureClass::DaemonLost => FailureClass::DaemonLost,
        pb::FailureClass::WorktreeLost => FailureClass::WorktreeLost,
        pb::FailureClass::Recovered => FailureClass::Recovered,
        pb::FailureClass::Refused => FailureClass::Refused,
        pb::FailureClass::AgentCrashed => FailureClass::AgentCrashed,
        pb::FailureClass::VerifyFailed => FailureClass::VerifyFailed,
        pb::FailureClass::SetupFailed => FailureClass::SetupFailed,
        pb::FailureClass::Authentication => FailureClass::Authentication,
        pb::FailureClass::UsageLimit => FailureClass::UsageLimit,
        pb::FailureClass::AgentError => FailureClass::AgentError,
        pb::FailureClass::Timeout => FailureClass::Timeout,
        pb::FailureClass::Repository => FailureClass::Repository,
        pb::FailureClass::Cancelled => FailureClass::Cancelled,
    })
}

// === counts ===

impl From<&Usage> for pb::Usage {
    fn from(usage: &Usage) -> Self {
        Self {
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cache_read_tokens: usage.cache_read_tokens,
            cache_write_tokens: usage.cache_write_tokens,
            cost_micro_usd: usage.cost_micro_usd,
            turns: usage.turns,
        }
    }
}

impl From<&pb::Usage> for Usage {
    /// What an agent says it used is its own word: negative numbers become zero.
    fn from(usage: &pb::Usage) -> Self {
        Self {
            input_tokens: usage.input_tokens.max(0),
            output_tokens: usage.output_tokens.max(0),
            cache_read_tokens: usage.cache_read_tokens.max(0),
            cache_write_tokens: usage.cache_write_tokens.max(0),
            cost_micro_usd: usage.cost_micro_usd.max(0),
            turns: usage.turns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::TaskId;

    #[test]
    fn times_and_spans_survive_the_way() {
        for micros in [0, 1, -1, 999_999, 1_000_000, -1_000_001, 1_785_000_000_123_456] {
            assert_eq!(timestamp_from("t", &timestamp(Timestamp(micros))).unwrap(), Timestamp(micros));
        }
        for span in [Duration::ZERO, Duration::from_micros(1), Duration::from_millis(1_500), MAX_DURATION] {
            assert_eq!(duration_from("d", &duration(span)).unwrap(), span);
        }
        assert!(duration_from("d", &prost_types::Duration { seconds: -1, nanos: 0 }).is_err());
        assert!(duration_from("d", &prost_types::Duration { seconds: i64::MAX, nanos: 0 }).is_err());
        assert!(timestamp_from("t", &prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }).is_err());
    }

    #[test]
    fn words_survive_the_way() {
        for status in TaskStatus::ALL {
            assert_eq!(task_status("s", pb::TaskStatus::from(status).into()).unwrap(), status);
        }
        for class in FailureClass::ALL {
            assert_eq!(failure_class("c", pb::FailureClass::from(class).into()).unwrap(), class);
        }
        assert!(task_status("s", 0).is_err());
        assert!(task_status("s", 4_711).is_err());
        assert!(failure_class("c", 0).is_err());
    }

    #[test]
    fn a_bad_id_says_which_field_and_repeats_little_of_it() {
        let error = id::<TaskId>("task_id", &"x\n".repeat(1_000)).unwrap_err().within("attempt");
        assert!(error.to_string().starts_with("field `attempt.task_id` is not an id: `x"));
        assert!(error.to_string().len() < 300);
        assert_eq!(id::<TaskId>("task_id", "").unwrap_err().to_string(), "field `task_id` is required");
        assert_eq!(optional_id::<TaskId>("parent", "").unwrap(), None);
    }
}

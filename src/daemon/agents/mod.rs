//! Agents: how to run one, and how to understand what it says.
//!
//! ```text
//!   [profiles.<name>] ── Profiles ── detect ──> which are really installed, with version (Hello)
//!                          │ command(order) ──> AgentCommand, into the manifest, run by the shim
//!                          │ conversation(session) ──> its files, for a checkpoint; where to put them, for a resumed session
//!                          └ parser(name) ────> Parser: output bytes ── progress() ── finish(exit) ──> success, or why not
//! ```
//!
//! A profile is data, so that another agent needs no code where a parser for its output exists. Built in are `shell` (the plan
//! is a script for `sh -eu`) and `claude` (Claude Code, headless).
//!
//! Promises: a plan of any size that the server takes reaches its agent unchanged, through a file, never through a shell's
//! quoting; an agent gets the key of its own task and nothing of the daemon's; output of any kind, without line breaks, with
//! NUL or bad UTF-8, costs bounded memory and breaks nothing; success needs a positive sign.

mod claude;
mod conversation;
mod lines;
mod profile;
mod raw;
pub mod transcript;

pub use conversation::Conversation;
pub use profile::{BadProfile, Context, Error, ParserKind, Profile, Profiles, Resume};

use super::attempt_dir::{EndReason, ExitRecord};
use crate::domain::{
    attempt::{Failure, FailureClass},
    report::Progress,
};

/// Bytes of the agent's last message.
pub const MAX_MESSAGE: usize = 4 * 1024;

/// How a run of an agent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With success.
    Done,
    /// Without.
    Failed(Failure),
    /// The session that it should go on with was not accepted, and nothing has been done. Whoever asked for one starts the
    /// agent again, once, in the same attempt with a new session ([`Resume::session`] is `None`) and the brief for one; for
    /// everybody else it is this failure.
    ResumeRejected(Failure),
}

/// Understands an agent's output as it comes.
#[derive(Debug)]
pub struct Parser(Kind);

#[derive(Debug)]
enum Kind {
    Raw(raw::Raw),
    Claude(Box<claude::Claude>),
}

impl Parser {
    /// For this kind of output.
    pub fn new(kind: ParserKind) -> Self {
        Self(match kind {
            ParserKind::Raw => Kind::Raw(raw::Raw::default()),
            ParserKind::ClaudeStreamJson => Kind::Claude(Box::default()),
        })
    }

    /// More output, from where the agent's own begins (`Started::output_start`).
    pub fn feed(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Kind::Raw(raw) => raw.feed(bytes),
            Kind::Claude(claude) => claude.feed(bytes),
        }
    }

    /// What it adds up to so far.
    pub fn progress(&self) -> Progress {
        match &self.0 {
            Kind::Raw(raw) => raw.progress(),
            Kind::Claude(claude) => claude.progress().clone(),
        }
    }

    /// What the agent does right now, for people: the tool it called last.
    pub fn activity(&self) -> &str {
        match &self.0 {
            Kind::Raw(_) => "",
            Kind::Claude(claude) => claude.activity(),
        }
    }

    /// The agent has ended and all its output was fed: how. A `Terminated` end is `Cancelled` here; the caller knows better.
    /// An agent that said that it was done before its time was up is done.
    pub fn end(&mut self, exit: &ExitRecord) -> End {
        let outcome = match &mut self.0 {
            Kind::Raw(raw) => raw.finish(exit),
            Kind::Claude(claude) => claude.finish(exit),
        };
        let rejected = match &self.0 {
            Kind::Raw(_) => false,
            Kind::Claude(claude) => claude.session_rejected(),
        };
        let Err(failure) = outcome else {
            return match &exit.reason {
                EndReason::StartFailed { message } => End::Failed(refused(message)),
                EndReason::Terminated => End::Failed(by_request()),
                EndReason::Timeout | EndReason::Exited => End::Done,
            };
        };
        match &exit.reason {
            EndReason::StartFailed { message } => End::Failed(refused(message)),
            EndReason::Terminated => End::Failed(by_request()),
            EndReason::Timeout => {
                End::Failed(Failure::new(FailureClass::Timeout, "the agent took longer than its wall time"))
            }
            EndReason::Exited if rejected => End::ResumeRejected(failure),
            EndReason::Exited => End::Failed(failure),
        }
    }

    /// The same for an agent that was given no session to go on with: with success, or why not.
    pub fn finish(&mut self, exit: &ExitRecord) -> Result<(), Failure> {
        match self.end(exit) {
            End::Done => Ok(()),
            End::Failed(failure) | End::ResumeRejected(failure) => Err(failure),
        }
    }
}

fn refused(message: &str) -> Failure {
    Failure::new(FailureClass::Refused, clean(message, MAX_MESSAGE))
}

fn by_request() -> Failure {
    Failure::new(FailureClass::Cancelled, "ended by request")
}

/// A text as reports may carry it: without NUL, at most so many bytes, cut between characters.
fn clean(text: &str, most: usize) -> String {
    let end = if text.len() <= most {
        text.len()
    } else {
        (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default()
    };
    text[..end].replace('\0', "\u{fffd}")
}

/// How a process ended, for people.
fn how_it_ended(exit: &ExitRecord) -> String {
    match (exit.exit_code, exit.signal) {
        (Some(code), _) => format!("the agent ended with exit code {code}"),
        (None, 9) => "the agent was killed (signal 9): the machine may have run out of memory".into(),
        (None, signal) => format!("the agent was ended by signal {signal}"),
    }
}

/// The same, with the end of its output.
fn with_output(what: &str, tail: &str) -> String {
    let tail = clean(super::process::last_bytes(tail.trim(), MAX_MESSAGE / 2), MAX_MESSAGE / 2);
    if tail.is_empty() { what.to_owned() } else { format!("{what}; its output ends with:\n{tail}") }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{AttemptId, AttemptRef, TaskId, Timestamp};

    /// An end of this kind.
    pub fn exit(reason: EndReason, code: Option<i32>, signal: u32) -> ExitRecord {
        ExitRecord {
            attempt: AttemptRef { task: TaskId(Uuid::nil()), number: 1, id: AttemptId(Uuid::nil()) },
            reason,
            exit_code: code,
            signal,
            output_bytes: 0,
            output_start: 0,
            started: Timestamp(0),
            ended: Timestamp(0),
        }
    }

    /// An exit by itself.
    pub fn exited(code: i32) -> ExitRecord {
        exit(EndReason::Exited, Some(code), 0)
    }

    /// Reasons that are not the agent's decide, whatever its output says; but one that was done is done.
    #[test]
    fn the_end_has_the_last_word() {
        for kind in [ParserKind::Raw, ParserKind::ClaudeStreamJson] {
            let finish =
                |reason, code, signal| Parser::new(kind).finish(&exit(reason, code, signal)).unwrap_err().class;
            let failed = EndReason::StartFailed { message: "no such file".into() };
            assert_eq!(finish(failed, Some(127), 0), FailureClass::Refused);
            assert_eq!(finish(EndReason::Terminated, Some(0), 0), FailureClass::Cancelled);
            assert_eq!(finish(EndReason::Timeout, None, 15), FailureClass::Timeout);
            assert_eq!(finish(EndReason::Exited, None, 9), FailureClass::AgentCrashed);
        }
        let mut done = Parser::new(ParserKind::ClaudeStreamJson);
        done.feed(b"{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":false}\n");
        assert_eq!(done.finish(&exit(EndReason::Timeout, None, 9)), Ok(()));
    }

    /// A session that was not accepted is told apart, but only where the agent ended over it by itself.
    #[test]
    fn a_rejected_session_is_an_end_of_its_own() {
        let end = |reason, code, signal| {
            let mut parser = Parser::new(ParserKind::ClaudeStreamJson);
            parser.feed(b"No conversation found with session ID: 3f2c4a56-8a3e-4a5b-9d0f-0123456789ab\n");
            parser.end(&exit(reason, code, signal))
        };
        assert!(
            matches!(end(EndReason::Exited, Some(1), 0), End::ResumeRejected(failure) if failure.message.contains("No conversation"))
        );
        assert!(matches!(end(EndReason::Terminated, None, 15), End::Failed(f) if f.class == FailureClass::Cancelled));
        assert!(matches!(end(EndReason::Timeout, None, 15), End::Failed(f) if f.class == FailureClass::Timeout));
        let mut raw = Parser::new(ParserKind::Raw);
        raw.feed(b"No conversation found\n");
        assert!(matches!(raw.end(&exited(1)), End::Failed(_)));
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(clean("aé\0b", 2), "a");
        assert_eq!(clean("aé\0b", 10), "aé\u{fffd}b");
    }
}

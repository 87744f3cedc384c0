//! Streams between daemons and the server. In each direction what is said keeps its order; everything else may happen: delay,
//! a cut that loses the rest, an end that one side never hears of, words of an old stream that arrive after a newer one began.

use std::collections::VecDeque;

use crate::domain::{
    AttemptRef, JournalId,
    daemon::Hello,
    order::{Answer, Command},
    reconcile::Verdict,
    report::{Message, MessageOutcome},
};

/// Names a stream.
pub(super) type LinkId = u64;

/// A stream.
#[derive(Debug)]
pub(super) struct Link {
    /// Which machine opened it.
    pub(super) machine: usize,
    /// Which process of that machine.
    pub(super) life: u64,
    pub(super) up: Pipe<Up>,
    pub(super) down: Pipe<Down>,
    /// Nothing more goes in.
    pub(super) is_cut: bool,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Pipe<T> {
    /// With the time at which each arrives, which only grows.
    pub(super) words: VecDeque<(i64, T)>,
    pub(super) last: i64,
}

impl<T> Default for Pipe<T> {
    fn default() -> Self {
        Self { words: VecDeque::new(), last: 0 }
    }
}

impl<T> Pipe<T> {
    /// Puts a word in. Answers when it arrives.
    pub(super) fn put(&mut self, word: T, at: i64) -> i64 {
        self.last = self.last.max(at);
        self.words.push_back((self.last, word));
        self.last
    }

    /// The next word, if it has arrived.
    pub(super) fn take(&mut self, now: i64) -> Option<T> {
        if self.words.front().is_some_and(|(at, _)| *at <= now) { self.words.pop_front().map(|(_, w)| w) } else { None }
    }

    /// Loses all but the first `kept` words, and delays those.
    pub(super) fn cut(&mut self, kept: usize, delay: i64) {
        self.words.truncate(kept);
        for (at, _) in &mut self.words {
            *at += delay;
        }
        self.last += delay;
    }
}

/// What a daemon says.
#[derive(Clone, Debug)]
pub(super) enum Up {
    Hello(Box<Hello>),
    Heartbeat { live: Vec<AttemptRef>, not_accepting: String },
    Answer { sequence: i64, answer: Answer },
    Message(Box<Message>),
}

/// What the server says.
#[derive(Clone, Debug)]
pub(super) enum Down {
    Welcome { verdicts: Vec<(AttemptRef, Verdict)> },
    Command(Box<Command>),
    MessageAnswer { sequence: i64, journal: JournalId, outcome: MessageOutcome },
    HeartbeatAnswer { cancel: Vec<AttemptRef> },
    Closing(Closing),
}

/// Why the server ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    Superseded,
    Resync,
    Refused,
}

/// An answer to a command, on its way from the journal to the session.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub(super) sequence: i64,
    pub(super) answer: Answer,
}

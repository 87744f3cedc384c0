//! Follows an attempt's `output.log`: the parser reads the agent's part of it from the start, the uploader learns how long
//! it is, and what the agent's events add up to is reported now and then.
//!
//! Growth is seen by looking at the file's length, soon after it grew and ever more seldom while it does not: a looking costs
//! a microsecond, so a quiet agent costs four of them a second, and no watches are used up.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::blocking;
use crate::{
    daemon::{
        agents::{End, Parser},
        attempt_dir::ExitRecord,
        bulk::Output,
        journal::Journal,
    },
    domain::{AttemptRef, report::Progress},
    runtime::clock,
};

/// The shortest wait before looking again.
const SOON: Duration = Duration::from_millis(20);
/// The longest.
const SELDOM: Duration = Duration::from_millis(250);
/// Bytes read at once: enough to be quick with an agent that writes a gigabyte, few enough to stay responsive.
const PIECE: usize = 256 * 1024;

/// Follows one file.
pub(super) struct Tail {
    attempt: AttemptRef,
    path: PathBuf,
    file: Option<Arc<File>>,
    length: u64,
    /// How far the parser is; `None` while nothing in the file is the agent's.
    understood: Option<u64>,
    parser: Parser,
    output: Output,
    pause: Duration,
    every: Duration,
    said: Progress,
    said_at: Option<Instant>,
    /// Something has been understood since.
    news: bool,
}

impl Tail {
    pub(super) fn new(attempt: AttemptRef, path: PathBuf, parser: Parser, output: Output, every: Duration) -> Self {
        Self {
            attempt,
            path,
            file: None,
            length: 0,
            understood: None,
            parser,
            output,
            pause: SOON,
            every,
            said: Progress::default(),
            said_at: None,
            news: false,
        }
    }

    /// What begins here is the agent's.
    pub(super) fn understand_from(&mut self, offset: u64) {
        self.understood = Some(offset);
        self.pause = SOON;
    }

    /// How long to wait before looking again.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// Looks whether there is more, takes one piece of it, and says what it adds up to if it is time.
    pub(super) async fn look(&mut self, journal: &Journal) {
        let grown = self.measure();
        let taken = self.take_piece(self.length).await;
        self.pause = if taken == PIECE {
            Duration::ZERO
        } else if grown || taken > 0 {
            SOON
        } else {
            (self.pause.max(SOON) * 2).min(SELDOM)
        };
        self.speak(journal).await;
    }

    /// Takes everything up to `end`, or as much of it as there is.
    pub(super) async fn read_to(&mut self, end: u64) {
        self.measure();
        while self.take_piece(end.min(self.length)).await > 0 {}
    }

    /// Takes everything.
    pub(super) async fn read_all(&mut self) {
        self.read_to(u64::MAX).await;
    }

    /// What the agent's events add up to so far.
    pub(super) fn progress(&self) -> Progress {
        self.parser.progress()
    }

    /// The agent has ended, and how.
    pub(super) fn end(&mut self, record: &ExitRecord) -> End {
        self.parser.end(record)
    }

    /// Another agent is about to be started in place of the one that has ended: what was understood is that one's.
    pub(super) fn begin_again(&mut self, parser: Parser) {
        (self.parser, self.understood, self.pause) = (parser, None, SOON);
    }

    /// Nothing more is coming: the uploader learns so, and may take its time. Answers how much there is.
    pub(super) async fn close(&mut self) -> u64 {
        self.measure();
        self.output.finish(self.length);
        self.length
    }

    /// Whether the file has grown.
    fn measure(&mut self) -> bool {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok().map(Arc::new);
        }
        let Some(length) = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|m| m.len()) else {
            return false;
        };
        let grown = length > self.length;
        if grown {
            self.length = length;
            self.output.grown(length);
        }
        grown
    }

    /// Gives the parser the next piece before `end`; answers how long that was.
    async fn take_piece(&mut self, end: u64) -> usize {
        let (Some(file), Some(offset)) = (self.file.clone(), self.understood) else { return 0 };
        let wanted = usize::try_from(end.saturating_sub(offset)).unwrap_or(PIECE).min(PIECE);
        if wanted == 0 {
            return 0;
        }
        let read = blocking(move || {
            let mut piece = vec![0; wanted];
            file.read_at(&mut piece, offset).map(|n| {
                piece.truncate(n);
                piece
            })
        });
        match read.await {
            Ok(piece) => {
                self.parser.feed(&piece);
                self.understood = Some(offset + piece.len() as u64);
                self.news |= !piece.is_empty();
                piece.len()
            }
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "the agent's output cannot be read");
                0
            }
        }
    }

    /// Reports what has changed, not too often; all of it is in the terminal report anyway.
    async fn speak(&mut self, journal: &Journal) {
        if !self.news || self.said_at.is_some_and(|at| at.elapsed() < self.every) {
            return;
        }
        self.news = false;
        let progress = self.parser.progress();
        if progress == self.said {
            return;
        }
        self.said_at = Some(Instant::now());
        match journal.progress(self.attempt, progress.clone(), clock::now()).await {
            Ok(true) => self.said = progress,
            // The last word has not been answered: the next one says it all.
            Ok(false) => self.news = true,
            Err(error) => {
                self.news = true;
                tracing::warn!(%error, "progress cannot be written");
            }
        }
    }
}

//! What this daemon has promised and what it owes: one SQLite file, written before anything is done and before anything is
//! said. `kill -9` at any line loses nothing, and neither does losing power.
//!
//! ```text
//!   session ──accept──┐                          ┌─> commands   (same id twice: a no-op; one to start is its attempt)
//!   runner ──record───┼─> one thread, one commit ┼─> attempts   (how far each is)
//!   session ─answered─┤   for all that waits     ├─> outbox     (numbered without gaps, until answered)
//!   bulk ───settled───┘                          └─> uploads    (files, until the server has them)
//! ```
//!
//! What changes an attempt and what is said about it share a transaction. Whatever arrived while the last commit was in
//! flight shares the next one. Commits are synced (WAL, `synchronous = FULL`) when they hold anything that was promised or
//! will be said; deletions for which nobody waits ride on the next one: a message that comes back after a power loss is
//! answered ALREADY_APPLIED, but a number that came back with other content would be a report lost.
//!
//! An attempt whose report names a pack is over when the report is answered *and* the server has the pack: until then the
//! server is told of it at every attach, and takes its result for being on its way.
//!
//! A file that SQLite finds damaged is moved aside (`journal.corrupt-<n>`), and a new journal, with a new id, is filled from
//! the attempts' own directories by `recovery`. A file from a newer version is refused.

mod db;
mod sql;
mod uploads;
mod worker;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    domain::{
        AttemptRef, CheckpointId, JournalId, TaskId, Timestamp,
        attempt::Pack,
        checkpoint::About,
        order::{Command, Spawn},
        report::{Complete, InventoryState, Message, MessageOutcome, Progress, Report},
    },
    runtime::metrics::{Seconds, Sizes},
};
use worker::{Kind, Worker};

/// Name of the file in the state directory.
pub const FILE: &str = "journal.sqlite";
/// The form of the tables that this version writes.
const SCHEMA_VERSION: i64 = 6;
/// Damaged journals kept aside before opening gives up: a disk that breaks every new file needs a person.
const MAX_CORRUPT: u32 = 1_000;
/// Commands kept after their attempts are gone, so that one sent again is known again.
const KEEP_COMMANDS: i64 = 10_000;

/// The journal. Clones share it.
#[derive(Clone, Debug)]
pub struct Journal {
    id: JournalId,
    worker: Arc<Worker>,
}

/// What opening found.
#[derive(Debug)]
pub struct Opened {
    /// The journal.
    pub journal: Journal,
    /// A damaged one was moved here.
    pub moved_aside: Option<PathBuf>,
    /// It was made now.
    pub fresh: bool,
}

/// How far this daemon is with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Promised; the agent has not started.
    Accepted,
    /// The agent runs.
    Running,
    /// The agent has ended; its end is not reported.
    Ending,
    /// The terminal report is written.
    Reported,
    /// The agent is gone without a record; that is reported.
    Interrupted,
    /// The server needs nothing more of it.
    Over,
    /// The server does not know it; its work is kept for a person.
    Salvage,
}

impl State {
    /// As the server sees it; nothing for what no longer concerns it.
    pub fn inventory(self) -> Option<InventoryState> {
        match self {
            Self::Accepted => Some(InventoryState::Accepted),
            Self::Running => Some(InventoryState::Running),
            Self::Ending => Some(InventoryState::Ending),
            Self::Reported => Some(InventoryState::Reported),
            Self::Interrupted => Some(InventoryState::Interrupted),
            Self::Over | Self::Salvage => None,
        }
    }

    /// Something of it may be alive, or has to be brought to its end.
    pub fn is_live(self) -> bool {
        match self {
            Self::Accepted | Self::Running | Self::Ending => true,
            Self::Reported | Self::Interrupted | Self::Over | Self::Salvage => false,
        }
    }
}

/// The wish that an attempt ends; kept, so that it is carried out whatever dies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// What is to follow.
    pub why: Why,
    /// For people.
    pub reason: String,
    /// From TERM to KILL.
    pub grace: Duration,
}

/// Why an attempt is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Somebody wants it to.
    Cancelled,
    /// A newer attempt has its place.
    Fenced,
    /// The server does not know it.
    Salvage,
    /// The server knows that it is over.
    Forgotten,
}

/// An attempt as the journal has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The attempt.
    pub attempt: AttemptRef,
    /// How far it is.
    pub state: State,
    /// The order; `None` for one that was only ever cancelled here.
    pub spawn: Option<Spawn>,
    /// Its directory; empty until made.
    pub directory: PathBuf,
    /// Its worktree; empty until prepared.
    pub worktree: String,
    /// The wish that it ends.
    pub stop: Option<Stop>,
    /// Its terminal report.
    pub complete: Option<Complete>,
    /// The server has its output.
    pub uploaded: bool,
    /// When it was accepted.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
}

impl Row {
    /// An attempt that is accepted since then.
    pub fn accepted(attempt: AttemptRef, spawn: Spawn, since: Timestamp) -> Self {
        Self {
            attempt,
            state: State::Accepted,
            spawn: Some(spawn),
            directory: PathBuf::new(),
            worktree: String::new(),
            stop: None,
            complete: None,
            uploaded: false,
            created: since,
            updated: since,
        }
    }
}

/// Some of many attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Portion {
    /// Those that can be read.
    pub rows: Vec<Row>,
    /// The place of the last one, after which the next portion begins; nothing if there was none.
    pub last: Option<i64>,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is in the journal now, and is to be done.
    New,
    /// It was there before.
    Known,
    /// Another command with this id was there before.
    Conflict,
}

/// A change of one attempt and what is said about it, in one transaction.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// How far it is now.
    pub state: Option<State>,
    /// Where its directory is.
    pub directory: Option<PathBuf>,
    /// Where its worktree is.
    pub worktree: Option<String>,
    /// The wish that it ends.
    pub stop: Option<Stop>,
    /// What is said, in this order. A [`Report::Complete`] is also kept in the attempt's row.
    pub reports: Vec<Report>,
    /// Files that are to reach the server.
    pub uploads: Vec<Upload>,
}

/// A file that is to reach the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Whose it is.
    pub attempt: AttemptRef,
    /// The checkpoint that it is; `None` for the pack of the attempt's result.
    pub checkpoint: Option<CheckpointId>,
    /// Where it is.
    pub path: PathBuf,
    /// Its length and digest.
    pub whole: Pack,
    /// What the checkpoint is.
    pub about: Option<About>,
    /// When it was made.
    pub created: Timestamp,
}

/// How an upload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The server has it, and it counts.
    Stored,
    /// The server does not want it, or it cannot be read: why.
    GivenUp(String),
}

/// Where the journal stands, for Hello.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Highest sequence of a command; 0 for none.
    pub last_command: i64,
    /// First message not answered; 0 for none.
    pub first_unanswered: i64,
    /// Last message not answered; 0 for none.
    pub last_unanswered: i64,
}

/// What is in it, to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Messages not answered.
    pub outbox: u64,
    /// When the oldest of them was written.
    pub oldest: Option<Timestamp>,
    /// Attempts, by the word for their state.
    pub attempts: Vec<(String, u64)>,
}

/// Why the journal cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened or made.
    #[error("open the journal {path}: {message}")]
    Open {
        /// Where.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// A newer version of this program wrote it.
    #[error(
        "the journal {path} is of version {found}, this program knows version {known}: use the newer makima, or another \
         --state-dir"
    )]
    Newer {
        /// Where.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A statement failed: the disk is full, or broken.
    #[error("write the journal")]
    Sql(#[source] Arc<rusqlite::Error>),
    /// A row that does not say what it should.
    #[error("understand a row of the journal's table `{table}`: {message}")]
    Row {
        /// Which table.
        table: &'static str,
        /// What is wrong.
        message: String,
    },
    /// Its thread has ended.
    #[error("reach the journal: its thread has ended")]
    Closed,
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(Arc::new(error))
    }
}

impl Journal {
    /// Opens the journal of this state directory, makes it, or moves a damaged one aside and makes a new one. Blocks.
    pub fn open(state: &Path, now: Timestamp) -> Result<Opened, Error> {
        let path = state.join(FILE);
        let existed = path.exists();
        match sql::open(&path, now) {
            Ok((connection, id)) => {
                let journal = Self { id, worker: Arc::new(Worker::start(connection, id)?) };
                Ok(Opened { journal, moved_aside: None, fresh: !existed })
            }
            Err(sql::OpenError::Corrupt(message)) => {
                let aside = sql::move_aside(&path)?;
                tracing::error!(
                    journal = %path.display(),
                    moved_to = %aside.display(),
                    damage = message,
                    "the journal is damaged; it has been moved aside and is being rebuilt from the attempts' directories"
                );
                let (connection, id) = sql::open(&path, now).map_err(|e| e.into_error(&path))?;
                let journal = Self { id, worker: Arc::new(Worker::start(connection, id)?) };
                Ok(Opened { journal, moved_aside: Some(aside), fresh: true })
            }
            Err(error) => Err(error.into_error(&path)),
        }
    }

    /// Its id; messages are numbered within it.
    pub fn id(&self) -> JournalId {
        self.id
    }

    /// The sequence of the newest message that may be sent; wakes whoever sends.
    pub fn newest(&self) -> watch::Receiver<i64> {
        self.worker.newest()
    }

    /// How many jobs shared a commit, and how long the commit took.
    pub fn commits(&self) -> (&Sizes, &Seconds) {
        self.worker.commits()
    }

    /// How it stands, to be shown.
    pub async fn measure(&self) -> Result<Measured, Error> {
        self.worker.call(Kind::Read, sql::measure).await
    }

    /// Takes commands into the journal, all in one transaction, and says of each what became of it.
    pub async fn accept(&self, commands: Vec<Command>, now: Timestamp) -> Result<Vec<Accepted>, Error> {
        self.worker
            .call(Kind::Durable, move |db| commands.iter().map(|c| sql::command_accept(db, c, now)).collect())
            .await
    }

    /// Puts attempts into the journal that were found by their directories. Those it knows stay as they are.
    pub async fn adopt(&self, rows: Vec<Row>) -> Result<(), Error> {
        self.worker
            .call(Kind::Durable, move |db| rows.iter().try_for_each(|row| sql::attempt_insert(db, row).map(|_| ())))
            .await
    }

    /// Changes an attempt and writes what is said about it.
    pub async fn record(&self, attempt: AttemptRef, change: Change, now: Timestamp) -> Result<(), Error> {
        self.worker.call(Kind::Durable, move |db| sql::attempt_change(db, attempt, &change, now)).await
    }

    /// Writes what an agent's events add up to, unless the last word about that has not been answered yet: then `false`,
    /// and the caller comes back with a newer one.
    pub async fn progress(&self, attempt: AttemptRef, progress: Progress, now: Timestamp) -> Result<bool, Error> {
        self.worker
            .call(Kind::Durable, move |db| {
                if sql::outbox_has(db, attempt, "progress")? {
                    return Ok(false);
                }
                let change = Change { reports: vec![Report::Progress(progress.clone())], ..Change::default() };
                sql::attempt_change(db, attempt, &change, now).map(|()| true)
            })
            .await
    }

    /// Writes the terminal report of an attempt again, unless it waits to be answered; `false` if there never was one.
    pub async fn report_again(&self, attempt: AttemptRef, now: Timestamp) -> Result<bool, Error> {
        self.worker.call(Kind::Durable, move |db| sql::report_again(db, attempt, now)).await
    }

    /// The server has answered a message: it is deleted, and what it ended is over, unless the pack of its result is still on
    /// its way.
    pub async fn answered(&self, sequence: i64, outcome: MessageOutcome, now: Timestamp) -> Result<(), Error> {
        self.worker.call(Kind::Lazy, move |db| sql::message_answered(db, sequence, &outcome, now)).await
    }

    /// [`Self::answered`], in the next transaction, without waiting for it: what fails is said in the log, and the server is
    /// told again.
    pub async fn answered_soon(&self, sequence: i64, outcome: MessageOutcome, now: Timestamp) -> Result<(), Error> {
        self.worker.post(move |db| sql::message_answered(db, sequence, &outcome, now)).await
    }

    /// The server has the output of this attempt, or does not want it.
    pub async fn uploaded(&self, attempt: AttemptRef) -> Result<(), Error> {
        self.worker.call(Kind::Lazy, move |db| sql::attempt_uploaded(db, attempt)).await
    }

    /// Remembers a file that is to reach the server; one of the same name takes the place of the earlier one.
    pub async fn upload_add(&self, upload: Upload) -> Result<(), Error> {
        self.worker.call(Kind::Durable, move |db| uploads::put(db, &upload)).await
    }

    /// Files that are to reach the server, in the order they were made.
    pub async fn uploads_pending(&self) -> Result<Vec<Upload>, Error> {
        self.worker.call(Kind::Read, uploads::list).await
    }

    /// An upload has ended. The attempt whose last debt that was is over; one whose result cannot be brought to the server
    /// says so, as its new terminal report.
    pub async fn upload_settled(
        &self,
        attempt: AttemptRef,
        checkpoint: Option<CheckpointId>,
        how: Settled,
        now: Timestamp,
    ) -> Result<(), Error> {
        let kind = match &how {
            // Asked about again after the power went, the server says that it has it.
            Settled::Stored => Kind::Lazy,
            Settled::GivenUp(_) => Kind::Durable,
        };
        self.worker.call(kind, move |db| uploads::settled(db, attempt, checkpoint, &how, now)).await
    }

    /// Messages after this sequence that wait for an answer, oldest first.
    pub async fn outbox(&self, after: i64, limit: usize) -> Result<Vec<Message>, Error> {
        self.worker.call(Kind::Read, move |db| sql::outbox_list(db, after, limit)).await
    }

    /// The messages that come next after this one, if they were written so lately that nobody has to look for them. Each is
    /// handed out once, to whoever has read all before it from [`Self::outbox`] or from here: then none of them was answered.
    pub fn recent(&self, after: i64, limit: usize) -> Option<Vec<Message>> {
        self.worker.recent().take(after, limit)
    }

    /// The number of the hello that is about to be said: higher than that of any before it.
    pub async fn attach(&self) -> Result<i64, Error> {
        self.worker.call(Kind::Durable, sql::attach).await
    }

    /// Where it stands.
    pub async fn standing(&self) -> Result<Standing, Error> {
        self.worker.call(Kind::Read, sql::standing).await
    }

    /// Every attempt.
    pub async fn attempts(&self) -> Result<Vec<Row>, Error> {
        self.worker.call(Kind::Read, sql::attempts_list).await
    }

    /// One attempt.
    pub async fn attempt(&self, attempt: AttemptRef) -> Result<Option<Row>, Error> {
        self.worker.call(Kind::Read, move |db| sql::attempt_fetch(db, attempt)).await
    }

    /// The attempts of these tasks.
    pub async fn attempts_of(&self, tasks: Vec<TaskId>) -> Result<Vec<Row>, Error> {
        self.worker.call(Kind::Read, move |db| sql::attempts_of(db, &tasks)).await
    }

    /// Attempts that are over and have nothing on its way to the server, in the order in which they came, after this place:
    /// those that are not among so many that came last, and, if a time is given, those that have not changed since.
    pub async fn not_needed(
        &self,
        after: i64,
        newest: i64,
        before: Option<Timestamp>,
        limit: usize,
    ) -> Result<Portion, Error> {
        self.worker.call(Kind::Read, move |db| sql::not_needed(db, after, newest, before, limit)).await
    }

    /// Forgets these attempts, as far as they are over.
    pub async fn prune(&self, attempts: Vec<AttemptRef>) -> Result<(), Error> {
        self.worker.call(Kind::Lazy, move |db| sql::prune(db, &attempts)).await
    }

    /// Forgets commands whose attempts are forgotten, and that are so old that nobody sends them again.
    pub async fn prune_commands(&self) -> Result<(), Error> {
        self.worker.call(Kind::Lazy, sql::prune_commands).await
    }
}

fn new_id() -> JournalId {
    JournalId(Uuid::new_v4())
}

#[cfg(test)]
pub(crate) mod tests;

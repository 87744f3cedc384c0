//! Moves what is in SQLite's log into the database's file, beside the one that writes.
//!
//! ```text
//!   a transaction ... the log is long ──> a thread moves all that is in it; meanwhile: transactions
//!   before the next one           <── done;  moves what has come since, which is little: the log begins anew with it
//! ```
//!
//! SQLite itself does all of it in the commit with which the log got long: some 15 ms for 32 MiB, in which whoever calls waits,
//! twice a second where much is written. What moves it and what writes do not wait for each other; the file is synced by whichever of
//! them has moved the last of it, the writer where it is busy.
//! (Two connections that did so at one time could damage a database before SQLite 3.51.3, by what its authors call the WAL-reset
//! bug; the one that is built in has it mended.)
//!
//! Nothing depends on it: what is in the log is durable. What fails is tried again before a later transaction, and the log grows until
//! then, as it does while a reader holds on to what it has.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use rusqlite::Connection;

use super::{Error, Result};

/// Pages from which the log is moved: the same pages are written again and again, and the log takes them once more rather than the
/// file. It is read when the database is opened, 32 MiB in some 50 ms.
const LONG: i64 = 8_192;
/// Pages by which it has grown when it is tried again, because somebody has read in it.
const AGAIN: i64 = 512;

/// The thread, and how far it is.
#[derive(Debug)]
pub(super) struct Mover {
    /// Asks the thread to move what is there. Nothing once it is to end.
    ask: Option<mpsc::SyncSender<()>>,
    /// The thread has done what it was asked.
    is_done: Arc<AtomicBool>,
    stage: Stage,
    /// How long the log was when it was last tried; 0 since it began anew.
    tried: i64,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing to move.
    Short,
    /// The thread was asked.
    Moving,
}

/// Pages in the log, and how many of them are in the file, too.
#[derive(Clone, Copy, Debug)]
struct Log {
    pages: i64,
    moved: i64,
}

impl Mover {
    /// For a database that is there.
    pub(super) fn start(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let is_done = Arc::new(AtomicBool::new(false));
        let (ask, asked) = mpsc::sync_channel(1);
        let done = Arc::clone(&is_done);
        let work = move || {
            while asked.recv().is_ok() {
                move_all(&connection);
                done.store(true, Ordering::Release);
            }
        };
        let thread = thread::Builder::new().name("log-mover".to_owned()).spawn(work);
        let thread = thread.map_err(|error| Error::Unavailable { source: sqlx::Error::Io(error) })?;
        Ok(Self { ask: Some(ask), is_done, stage: Stage::Short, tried: 0, thread: Some(thread) })
    }

    /// Between two transactions of the one that writes.
    pub(super) fn look_at(&mut self, writer: &Connection) {
        match self.stage {
            Stage::Moving if self.is_done.swap(false, Ordering::Acquire) || self.is_gone() => {
                self.stage = Stage::Short;
                self.move_here(writer);
            }
            Stage::Moving => {}
            Stage::Short => {
                let Ok(log) = look(writer, "PRAGMA wal_checkpoint(NOOP)") else { return };
                if log.pages < self.tried {
                    self.tried = 0;
                }
                if log.pages < LONG.max(self.tried + AGAIN) {
                    return;
                }
                match self.ask.as_ref().is_some_and(|ask| ask.try_send(()).is_ok()) {
                    true => self.stage = Stage::Moving,
                    false => self.move_here(writer),
                }
            }
        }
    }

    fn move_here(&mut self, writer: &Connection) {
        self.tried = move_all(writer).map_or(self.tried, |log| log.pages);
    }

    /// The thread has ended before its time.
    fn is_gone(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.ask.take();
        if let Some(thread) = self.thread.take() {
            // It says so itself where it cannot go on.
            let _ = thread.join();
        }
    }
}

/// Moves all that nobody reads in its older form any more, without waiting for anybody.
fn move_all(connection: &Connection) -> Option<Log> {
    match look(connection, "PRAGMA wal_checkpoint(PASSIVE)") {
        Ok(log) => {
            tracing::trace!(pages = log.pages, moved = log.moved, "the log was moved into the database's file");
            Some(log)
        }
        Err(error) => {
            tracing::warn!(%error, "the log cannot be moved into the database's file; it grows until that is possible again");
            None
        }
    }
}

fn look(connection: &Connection, pragma: &str) -> rusqlite::Result<Log> {
    let mut statement = connection.prepare_cached(pragma)?;
    statement.query_row([], |row| Ok(Log { pages: row.get(1)?, moved: row.get(2)? }))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Bytes of a page, and of so many that the log is long.
    const PAGE: i64 = 4_096;
    const MANY: i64 = (LONG + AGAIN) * PAGE;

    struct Bed {
        folder: tempfile::TempDir,
        writer: Connection,
        mover: Mover,
    }

    impl Bed {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("it.db");
            let writer = Connection::open(&path).unwrap();
            writer
                .execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE it (a)")
                .unwrap();
            let mover = Mover::start(&path).unwrap();
            Self { folder, writer, mover }
        }

        fn write(&self, bytes: i64) {
            self.writer.execute("INSERT INTO it VALUES (zeroblob(?))", [bytes]).unwrap();
        }

        fn log(&self) -> Log {
            look(&self.writer, "PRAGMA wal_checkpoint(NOOP)").unwrap()
        }

        /// Waits until the thread has done what it was asked.
        fn moved(&self) {
            let begun = Instant::now();
            while !self.mover.is_done.load(Ordering::Acquire) {
                assert!(begun.elapsed() < Duration::from_secs(60), "it does not move the log");
                thread::yield_now();
            }
        }

        fn look_at(&mut self) -> Stage {
            self.mover.look_at(&self.writer);
            self.mover.stage
        }
    }

    #[test]
    fn a_long_log_is_moved_beside_the_writer_and_begins_anew() {
        let mut bed = Bed::new();
        assert_eq!(bed.look_at(), Stage::Short, "it is not long");
        bed.write(MANY);
        assert_eq!(bed.log().moved, 0, "the commit has not moved it");
        assert_eq!(bed.look_at(), Stage::Moving);
        bed.moved();
        assert!(bed.log().moved >= LONG);
        // What came meanwhile is moved by the writer.
        bed.write(2 * PAGE);
        assert!(bed.log().moved < bed.log().pages);
        assert_eq!(bed.look_at(), Stage::Short);
        assert_eq!(bed.log().moved, bed.log().pages);
        bed.write(2 * PAGE);
        assert!(bed.log().pages < 10, "it has begun anew");
        // And again.
        assert_eq!(bed.look_at(), Stage::Short);
        bed.write(MANY);
        assert_eq!(bed.look_at(), Stage::Moving);
    }

    #[test]
    fn what_somebody_reads_is_moved_once_they_have_gone() {
        let mut bed = Bed::new();
        let reader = Connection::open(bed.folder.path().join("it.db")).unwrap();
        let count =
            |reader: &Connection| reader.query_row("SELECT count(*) FROM it", [], |row| row.get::<_, i64>(0)).unwrap();
        reader.execute_batch("BEGIN").unwrap();
        assert_eq!(count(&reader), 0);
        bed.write(MANY);
        assert_eq!(bed.look_at(), Stage::Moving);
        bed.moved();
        assert_eq!(bed.look_at(), Stage::Short);
        let log = bed.log();
        assert!(log.moved < log.pages, "it is read as it was");
        assert_eq!(bed.look_at(), Stage::Short, "it is not tried again and again");
        assert_eq!(count(&reader), 0);
        reader.execute_batch("COMMIT").unwrap();
        assert_eq!(count(&reader), 1);
        bed.write(2 * AGAIN * PAGE);
        assert_eq!(bed.look_at(), Stage::Moving, "it has grown");
        bed.moved();
        assert_eq!(bed.look_at(), Stage::Short);
        assert_eq!(bed.log().moved, bed.log().pages);
        bed.write(PAGE);
        assert!(bed.log().pages < 10, "it has begun anew");
        assert_eq!((bed.look_at(), bed.mover.tried), (Stage::Short, 0), "and is long when any other would be");
    }

    #[test]
    fn where_the_thread_is_gone_the_writer_moves_it_all() {
        let mut bed = Bed::new();
        bed.mover.ask.take();
        bed.mover.thread.take().unwrap().join().unwrap();
        bed.write(MANY);
        assert_eq!(bed.look_at(), Stage::Short);
        assert_eq!(bed.log().moved, bed.log().pages);
        bed.mover.stage = Stage::Moving;
        bed.write(MANY);
        assert_eq!(bed.look_at(), Stage::Short);
        assert_eq!(bed.log().moved, bed.log().pages);
    }

    #[test]
    fn the_thread_ends_with_its_handle() {
        let bed = Bed::new();
        let done = Arc::downgrade(&bed.mover.is_done);
        drop(bed.mover);
        assert!(done.upgrade().is_none(), "the thread has its part of it no more");
    }
}

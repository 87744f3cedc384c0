//! The one thread that has the connection: it takes all that waits, answers what is only asked, runs the rest in one
//! transaction, commits, then answers that.
//!
//! What is asked sees what has been committed: whoever wants to read what it wrote waits for that first. So nobody waits for
//! somebody else's sync only to look.

use std::{thread, time::Instant};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use super::Error;
use crate::runtime::metrics::{Seconds, Sizes};

/// Jobs waiting for the thread before callers wait too: some seconds of the fastest reporting there is.
const QUEUE: usize = 1_024;
/// Jobs of one transaction: as many as keep a commit short of what anybody would notice.
const BATCH: usize = 256;

/// What a job needs of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Nothing.
    Read,
    /// To be written; what is lost with the power does not matter.
    Lazy,
    /// To be on the disk before the answer.
    Durable,
}

/// Answers the caller, once it is known whether the commit worked.
type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Given the connection inside a transaction, or why there is none.
type Work = Box<dyn FnOnce(Result<&mut Connection, Error>) -> Answer + Send>;

struct Job {
    kind: Kind,
    run: Work,
}

/// The handle on the thread; the thread ends when the last one is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    jobs: mpsc::Sender<Job>,
    newest: watch::Receiver<i64>,
    sizes: Sizes,
    seconds: Seconds,
}

impl Worker {
    pub(super) fn start(connection: Connection) -> Result<Self, Error> {
        let (jobs, inbox) = mpsc::channel(QUEUE);
        let (publish, newest) = watch::channel(last_message(&connection)?);
        let (sizes, seconds) = (Sizes::new(9), Seconds::of_work());
        let measured = (sizes.clone(), seconds.clone());
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || work(connection, inbox, &publish, &measured))
            .map_err(|e| Error::Open { path: super::FILE.into(), message: e.to_string() })?;
        Ok(Self { jobs, newest, sizes, seconds })
    }

    pub(super) fn newest(&self) -> watch::Receiver<i64> {
        self.newest.clone()
    }

    pub(super) fn commits(&self) -> (&Sizes, &Seconds) {
        (&self.sizes, &self.seconds)
    }

    /// Runs `work` in the next transaction and answers when that is committed. What `work` did is undone if it fails, and
    /// nothing else is. A caller that goes away does not undo what it asked for.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        kind: Kind,
        work: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let run = move |connection: Result<&mut Connection, Error>| -> Answer {
            let result = connection.and_then(|connection| in_savepoint(connection, kind, work));
            Box::new(move |committed| {
                // The caller may have gone away.
                let _ = answer.send(committed.and(result));
            })
        };
        self.jobs.send(Job { kind, run: Box::new(run) }).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }

    /// Runs `work` in the next transaction, and waits only for its place in the queue. A failure is said in the log.
    pub(super) async fn post(
        &self,
        kind: Kind,
        work: impl FnOnce(&Connection) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let run = move |connection: Result<&mut Connection, Error>| -> Answer {
            let result = connection.and_then(|connection| in_savepoint(connection, kind, work));
            Box::new(move |committed| {
                if let Err(error) = committed.and(result) {
                    tracing::warn!(%error, "the journal cannot be written");
                }
            })
        };
        self.jobs.send(Job { kind, run: Box::new(run) }).await.map_err(|_| Error::Closed)
    }
}

fn in_savepoint<T>(
    connection: &mut Connection,
    kind: Kind,
    work: impl FnOnce(&Connection) -> Result<T, Error>,
) -> Result<T, Error> {
    if kind == Kind::Read {
        return work(connection);
    }
    let savepoint = connection.savepoint()?;
    let done = work(&savepoint)?;
    savepoint.commit()?;
    Ok(done)
}

fn work(
    mut connection: Connection,
    mut inbox: mpsc::Receiver<Job>,
    newest: &watch::Sender<i64>,
    (sizes, seconds): &(Sizes, Seconds),
) {
    let mut synced = true;
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(job) = inbox.blocking_recv() {
        batch.push(job);
        while batch.len() < BATCH
            && let Ok(job) = inbox.try_recv()
        {
            batch.push(job);
        }
        for job in batch.extract_if(.., |job| job.kind == Kind::Read) {
            (job.run)(Ok(&mut connection))(Ok(()));
        }
        let Some(kind) = batch.iter().map(|job| job.kind).max() else { continue };
        let mut answers = Vec::with_capacity(batch.len());
        let begun = Instant::now();
        sizes.observe(batch.len());
        let committed = commit(&mut connection, kind, &mut synced, batch.drain(..), &mut answers);
        seconds.observe(begun.elapsed());
        if kind == Kind::Durable
            && committed.is_ok()
            && let Ok(last) = last_message(&connection)
        {
            newest.send_if_modified(|n| std::mem::replace(n, last) != last);
        }
        for answer in answers {
            answer(committed.clone());
        }
    }
}

/// One transaction around the whole batch. On failure nothing of it is in the file, and every caller is told.
fn commit(
    connection: &mut Connection,
    kind: Kind,
    synced: &mut bool,
    jobs: impl Iterator<Item = Job>,
    answers: &mut Vec<Answer>,
) -> Result<(), Error> {
    if let Err(error) = begin(connection, kind, synced) {
        answers.extend(jobs.map(|job| (job.run)(Err(error.clone()))));
        return Err(error);
    }
    answers.extend(jobs.map(|job| (job.run)(Ok(connection))));
    let ended = connection.execute_batch("COMMIT").map_err(Error::from);
    if ended.is_err() && !connection.is_autocommit() {
        // Nothing to do if this fails too: the connection is then outside of a transaction anyway.
        let _ = connection.execute_batch("ROLLBACK");
    }
    ended
}

fn begin(connection: &mut Connection, kind: Kind, synced: &mut bool) -> Result<(), Error> {
    let sync = kind == Kind::Durable;
    if sync != *synced {
        connection.execute_batch(if sync { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" })?;
        *synced = sync;
    }
    connection.execute_batch("BEGIN IMMEDIATE")?;
    Ok(())
}

fn last_message(connection: &Connection) -> Result<i64, Error> {
    Ok(connection.query_row("SELECT last_message FROM meta", [], |row| row.get(0))?)
}

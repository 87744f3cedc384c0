//! The one thread that has the connection: it takes all that waits, answers what is only asked, runs the rest in one
//! transaction, commits, then answers that.
//!
//! What is asked sees what has been committed: whoever wants to read what it wrote waits for that first. So nobody waits for
//! somebody else's sync only to look.

use std::{
    sync::Arc,
    task::{Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use super::Error;
use crate::runtime::metrics::{Seconds, Sizes};

/// Jobs waiting for the thread before callers wait too: some seconds of the fastest reporting there is.
const QUEUE: usize = 1_024;
/// Jobs of one transaction: as many as keep a commit short of what anybody would notice.
const BATCH: usize = 256;
/// How long what nobody waits for may wait for something that somebody does.
const RIDE: Duration = Duration::from_millis(100);

/// What a job needs of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Nothing.
    Read,
    /// To be written, sooner or later; nobody waits for it, and what is lost with the power does not matter.
    Riding,
    /// To be written; what is lost with the power does not matter.
    Lazy,
    /// To be on the disk before the answer.
    Durable,
}

/// Answers the caller, once it is known whether the commit worked.
type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Given the connection inside a transaction, or why there is none. Says how it went, and answers the caller.
type Work = Box<dyn FnOnce(Result<Place<'_>, Error>) -> (Result<(), Error>, Answer) + Send>;

/// Where a job runs.
struct Place<'a> {
    connection: &'a Connection,
    /// The transaction is for this job alone, and is rolled back if it fails; else the job needs a savepoint of its own, for
    /// which SQLite copies every page that it changes.
    alone: bool,
}

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
            .spawn(move || work(&connection, inbox, &publish, &measured))
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
        let run = move |place: Result<Place<'_>, Error>| -> (Result<(), Error>, Answer) {
            let result = place.and_then(|place| run_in(&place, kind, work));
            let worked = result.as_ref().map(|_| ()).map_err(Clone::clone);
            let answer = move |committed: Result<(), Error>| {
                // The caller may have gone away.
                let _ = answer.send(committed.and(result));
            };
            (worked, Box::new(answer))
        };
        self.jobs.send(Job { kind, run: Box::new(run) }).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }

    /// Runs `work` in a transaction that is made for something else, or after a while, and waits only for its place in the queue.
    /// A failure is said in the log.
    pub(super) async fn post(
        &self,
        work: impl FnOnce(&Connection) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let kind = Kind::Riding;
        let run = move |place: Result<Place<'_>, Error>| -> (Result<(), Error>, Answer) {
            let result = place.and_then(|place| run_in(&place, kind, work));
            let worked = result.as_ref().map(|_| ()).map_err(Clone::clone);
            let answer = move |committed: Result<(), Error>| {
                if let Err(error) = committed.and(result) {
                    tracing::warn!(%error, "the journal cannot be written");
                }
            };
            (worked, Box::new(answer))
        };
        self.jobs.send(Job { kind, run: Box::new(run) }).await.map_err(|_| Error::Closed)
    }
}

fn run_in<T>(
    Place { connection, alone }: &Place<'_>,
    kind: Kind,
    work: impl FnOnce(&Connection) -> Result<T, Error>,
) -> Result<T, Error> {
    if kind == Kind::Read || *alone {
        return work(connection);
    }
    // As statements that stay prepared: as text they cost as much as what is between them.
    let run = |connection: &Connection, text: &str| connection.prepare_cached(text)?.execute([]).map(|_| ());
    run(connection, "SAVEPOINT job")?;
    let done = work(connection).and_then(|done| Ok(run(connection, "RELEASE job").map(|()| done)?));
    // What failed may have taken the transaction with it: then there is nothing to undo.
    if done.is_err() && !connection.is_autocommit() {
        let undone = run(connection, "ROLLBACK TO job").and_then(|()| run(connection, "RELEASE job"));
        if undone.is_err() {
            end(connection);
        }
    }
    done
}

/// Ends the transaction, if there is one, with nothing of it in the file.
fn end(connection: &Connection) {
    if !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        tracing::error!(%error, "the journal's transaction cannot be ended; trying again with the next");
    }
}

fn work(
    connection: &Connection,
    mut inbox: mpsc::Receiver<Job>,
    newest: &watch::Sender<i64>,
    (sizes, seconds): &(Sizes, Seconds),
) {
    let mut synced = true;
    let mut batch: Vec<Job> = Vec::with_capacity(BATCH);
    let mut open = true;
    while open || !batch.is_empty() {
        open = wait(&mut inbox, &mut batch);
        for job in batch.extract_if(.., |job| job.kind == Kind::Read) {
            (job.run)(Ok(Place { connection, alone: true })).1(Ok(()));
        }
        let Some(kind) = batch.iter().map(|job| job.kind).max() else { continue };
        let mut answers = Vec::with_capacity(batch.len());
        let begun = Instant::now();
        sizes.observe(batch.len());
        let committed = commit(connection, kind, &mut synced, batch.drain(..), &mut answers);
        seconds.observe(begun.elapsed());
        if kind == Kind::Durable
            && committed.is_ok()
            && let Ok(last) = last_message(connection)
        {
            newest.send_if_modified(|n| std::mem::replace(n, last) != last);
        }
        for answer in answers {
            answer(committed.clone());
        }
    }
}

/// Waits until something is to be done: for somebody who waits, or because what rides has waited long enough. False at the
/// end, when there will be nothing more.
fn wait(inbox: &mut mpsc::Receiver<Job>, batch: &mut Vec<Job>) -> bool {
    let mut until = None;
    loop {
        if batch.iter().any(|job| job.kind != Kind::Riding) || batch.len() >= BATCH {
            return true;
        }
        let received = match until {
            None if batch.is_empty() => inbox.blocking_recv(),
            _ => {
                let until = *until.get_or_insert_with(|| Instant::now() + RIDE);
                match recv_until(inbox, until) {
                    Ok(job) => job,
                    Err(_) => return true,
                }
            }
        };
        match received {
            Some(job) => batch.push(job),
            None => return false,
        }
        take(inbox, batch);
    }
}

/// The next job, nothing if there will be none, or an error when it is time.
fn recv_until(inbox: &mut mpsc::Receiver<Job>, until: Instant) -> Result<Option<Job>, ()> {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(job) = inbox.poll_recv(&mut std::task::Context::from_waker(&waker)) {
            return Ok(job);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(());
        }
        thread::park_timeout(left);
    }
}

/// Takes what is there.
fn take(inbox: &mut mpsc::Receiver<Job>, batch: &mut Vec<Job>) {
    while batch.len() < BATCH
        && let Ok(job) = inbox.try_recv()
    {
        batch.push(job);
    }
}

/// One transaction around the whole batch. On failure nothing of it is in the file, and every caller is told.
fn commit(
    connection: &Connection,
    kind: Kind,
    synced: &mut bool,
    jobs: impl ExactSizeIterator<Item = Job>,
    answers: &mut Vec<Answer>,
) -> Result<(), Error> {
    if let Err(error) = begin(connection, kind, synced) {
        answers.extend(jobs.map(|job| (job.run)(Err(error.clone())).1));
        return Err(error);
    }
    let alone = jobs.len() == 1;
    let mut lost = None;
    for job in jobs {
        let place = lost.clone().map_or(Ok(Place { connection, alone }), Err);
        let (done, answer) = (job.run)(place);
        answers.push(answer);
        if lost.is_none()
            && let Err(error) = done
        {
            if alone {
                end(connection);
            }
            // A full disk takes the whole transaction: those before are told as well, and those after do not begin another.
            lost = connection.is_autocommit().then_some(error);
        }
    }
    if let Some(error) = lost {
        return Err(error);
    }
    let ended = connection.prepare_cached("COMMIT").and_then(|mut it| it.execute([])).map(|_| ()).map_err(Error::from);
    if ended.is_err() {
        end(connection);
    }
    ended
}

fn begin(connection: &Connection, kind: Kind, synced: &mut bool) -> Result<(), Error> {
    // One that could not be ended before.
    end(connection);
    let sync = kind == Kind::Durable;
    if sync != *synced {
        connection.execute_batch(if sync { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" })?;
        *synced = sync;
    }
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    Ok(())
}

fn last_message(connection: &Connection) -> Result<i64, Error> {
    Ok(connection.query_row("SELECT last_message FROM meta", [], |row| row.get(0))?)
}

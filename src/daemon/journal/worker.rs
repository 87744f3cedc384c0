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

use super::{
    Error,
    db::{Db, Numbers, Recent},
};
use crate::{
    domain::JournalId,
    runtime::metrics::{Seconds, Sizes},
};

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

/// One job: run in a transaction, and run again in another one if a job beside it failed; answered once it is known whether the
/// last of them worked.
trait Run: Send {
    /// Does it. What it found is kept for the answer.
    fn run(&mut self, db: &Db<'_>) -> Result<(), Error>;
    /// Tells whoever asked.
    fn answer(self: Box<Self>, committed: Result<(), Error>);
}

struct Job {
    kind: Kind,
    run: Box<dyn Run>,
}

/// What is done, what it found, and who is told.
struct Asked<T, W, A> {
    work: W,
    found: Option<Result<T, Error>>,
    answer: A,
}

impl<T, W, A> Run for Asked<T, W, A>
where
    T: Send,
    W: Fn(&Db<'_>) -> Result<T, Error> + Send,
    A: FnOnce(Result<T, Error>) + Send,
{
    fn run(&mut self, db: &Db<'_>) -> Result<(), Error> {
        let found = self.found.insert((self.work)(db));
        found.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    fn answer(self: Box<Self>, committed: Result<(), Error>) {
        let Self { found, answer, .. } = *self;
        answer(committed.and_then(|()| found.unwrap_or(Err(Error::Closed))));
    }
}

/// The handle on the thread; the thread ends when the last one is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    jobs: mpsc::Sender<Job>,
    newest: watch::Receiver<i64>,
    recent: Arc<Recent>,
    sizes: Sizes,
    seconds: Seconds,
}

impl Worker {
    pub(super) fn start(connection: Connection, id: JournalId) -> Result<Self, Error> {
        let numbers = Numbers::read(&connection)?;
        let (jobs, inbox) = mpsc::channel(QUEUE);
        let (publish, newest) = watch::channel(numbers.message);
        let (sizes, seconds) = (Sizes::new(9), Seconds::of_work());
        let (measured, recent) = ((sizes.clone(), seconds.clone()), Arc::<Recent>::default());
        let published = Arc::clone(&recent);
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || work(&Db::new(&connection, id, numbers), inbox, &publish, &published, &measured))
            .map_err(|e| Error::Open { path: super::FILE.into(), message: e.to_string() })?;
        Ok(Self { jobs, newest, recent, sizes, seconds })
    }

    pub(super) fn newest(&self) -> watch::Receiver<i64> {
        self.newest.clone()
    }

    /// The newest messages.
    pub(super) fn recent(&self) -> &Recent {
        &self.recent
    }

    pub(super) fn commits(&self) -> (&Sizes, &Seconds) {
        (&self.sizes, &self.seconds)
    }

    /// Runs `work` in the next transaction and answers when that is committed. What `work` did is undone if it fails, and
    /// nothing else is. A caller that goes away does not undo what it asked for.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        kind: Kind,
        work: impl Fn(&Db<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (tell, answered) = oneshot::channel();
        // The caller may have gone away.
        self.send(kind, work, move |found| _ = tell.send(found)).await?;
        answered.await.map_err(|_| Error::Closed)?
    }

    /// Runs `work` in a transaction that is made for something else, or after a while, and waits only for its place in the queue.
    /// A failure is said in the log.
    pub(super) async fn post(&self, work: impl Fn(&Db<'_>) -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
        let answer = |done: Result<(), Error>| {
            if let Err(error) = done {
                tracing::warn!(%error, "the journal cannot be written");
            }
        };
        self.send(Kind::Riding, work, answer).await
    }

    async fn send<T: Send + 'static>(
        &self,
        kind: Kind,
        work: impl Fn(&Db<'_>) -> Result<T, Error> + Send + 'static,
        answer: impl FnOnce(Result<T, Error>) + Send + 'static,
    ) -> Result<(), Error> {
        let run = Box::new(Asked { work, found: None, answer });
        self.jobs.send(Job { kind, run }).await.map_err(|_| Error::Closed)
    }
}

fn work(
    db: &Db<'_>,
    mut inbox: mpsc::Receiver<Job>,
    newest: &watch::Sender<i64>,
    recent: &Recent,
    (sizes, seconds): &(Sizes, Seconds),
) {
    let mut synced = true;
    let mut batch: Vec<Job> = Vec::with_capacity(BATCH);
    let mut open = true;
    while open || !batch.is_empty() {
        open = gather(db, &mut inbox, &mut batch);
        let Some(kind) = batch.iter().map(|job| job.kind).max() else { continue };
        let begun = Instant::now();
        sizes.observe(batch.len());
        let committed = transaction(db, kind, &mut synced, &mut batch);
        seconds.observe(begun.elapsed());
        if kind == Kind::Durable && committed.is_ok() {
            recent.add(db.take_written());
            newest.send_if_modified(|n| std::mem::replace(n, db.last_message()) != db.last_message());
        }
        for job in batch.drain(..) {
            job.run.answer(committed.clone());
        }
    }
}

/// Gathers what is to be written until that is due, and answers meanwhile what is only asked. False at the end, when there will be
/// nothing more.
fn gather(db: &Db<'_>, inbox: &mut mpsc::Receiver<Job>, batch: &mut Vec<Job>) -> bool {
    let mut until = None;
    loop {
        let received = match until {
            Some(until) => match recv_until(inbox, until) {
                Ok(job) => job,
                Err(_) => return true,
            },
            None => inbox.blocking_recv(),
        };
        match received {
            Some(job) => batch.push(job),
            None => return false,
        }
        take(inbox, batch);
        for mut job in batch.extract_if(.., |job| job.kind == Kind::Read) {
            let found = job.run.run(db);
            job.run.answer(found);
        }
        if is_due(batch, &mut until) {
            return true;
        }
    }
}

/// What is there is to be written: somebody waits for some of it, it is as much as a transaction has, or it is time. One who
/// only looks does not end the waiting of what rides.
fn is_due(batch: &[Job], until: &mut Option<Instant>) -> bool {
    batch.iter().any(|job| job.kind > Kind::Riding)
        || batch.len() >= BATCH
        || (!batch.is_empty() && Instant::now() >= *until.get_or_insert_with(|| Instant::now() + RIDE))
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
///
/// Jobs hardly ever fail. So at first nothing is kept to undo one of them: a savepoint costs two statements, and a copy of every
/// page that a job changes. If one has failed, all is undone and done again, each behind a savepoint of its own.
fn transaction(db: &Db<'_>, kind: Kind, synced: &mut bool, jobs: &mut [Job]) -> Result<(), Error> {
    begin(db, kind, synced)?;
    let done = jobs.iter_mut().try_for_each(|job| job.run.run(db));
    if let Err(error) = done {
        db.end();
        if jobs.len() == 1 {
            return Err(error);
        }
        begin(db, kind, synced)?;
        let done = jobs.iter_mut().try_for_each(|job| apart(db, job.run.as_mut()));
        if done.is_err() {
            db.end();
            return done;
        }
    }
    db.commit()
}

/// Runs a job that takes nobody along if it fails. Fails itself where the whole transaction is lost: those before it are told as
/// well, and those after it do not begin another.
fn apart(db: &Db<'_>, job: &mut dyn Run) -> Result<(), Error> {
    let mark = db.mark();
    db.run("SAVEPOINT job", [])?;
    if let Err(error) = job.run(db) {
        // A full disk has taken the transaction already.
        if db.is_autocommit() {
            return Err(error);
        }
        db.run("ROLLBACK TO job", [])?;
        db.back_to(mark);
    }
    db.run("RELEASE job", []).map(|_| ())
}

fn begin(db: &Db<'_>, kind: Kind, synced: &mut bool) -> Result<(), Error> {
    // One that could not be ended before.
    db.end();
    let sync = kind == Kind::Durable;
    if sync != *synced {
        db.execute_batch(if sync { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" })?;
        *synced = sync;
    }
    db.run("BEGIN IMMEDIATE", []).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Run for Nothing {
        fn run(&mut self, _: &Db<'_>) -> Result<(), Error> {
            Ok(())
        }

        fn answer(self: Box<Self>, _: Result<(), Error>) {}
    }

    fn jobs(count: usize, kind: Kind) -> Vec<Job> {
        (0..count).map(|_| Job { kind, run: Box::new(Nothing) }).collect()
    }

    /// What rides waits for its time, for somebody who waits, or for as many as a transaction has; to look is neither.
    #[test]
    fn what_rides_waits() {
        let mut until = None;
        assert!(!is_due(&[], &mut until) && until.is_none());
        assert!(!is_due(&jobs(1, Kind::Riding), &mut until));
        assert!(until.is_some());
        let far = Instant::now() + Duration::from_secs(3_600);
        until = Some(far);
        assert!(!is_due(&jobs(BATCH - 1, Kind::Riding), &mut until));
        assert_eq!(until, Some(far), "what came first decides");
        assert!(is_due(&jobs(BATCH, Kind::Riding), &mut until));
        assert!(is_due(&jobs(1, Kind::Lazy), &mut until) && is_due(&jobs(1, Kind::Durable), &mut until));
        until = Some(Instant::now());
        assert!(is_due(&jobs(1, Kind::Riding), &mut until) && !is_due(&[], &mut until));
    }
}

//! One attempt, from its promise to its report.
//!
//! ```text
//!   accepted ─> slot ─> sanity ─> repository ─> worktree ─> setup ─> shim ──Started──┐
//!      │                                                                             v
//!      │ found after a restart:  shim alive ───────────────────────────────> the agent runs, its output is followed
//!      │                         exit record ──────────────┐                         │
//!      │                         neither ─> sweep ─> checkpoint ─> RecoveryDetected  v
//!      └───────── a wish that it ends, at any point ───────┴──> nothing is alive ─┬─> commit ─> pack ─> Complete
//!                                                                                  └─> checkpoint ───> Complete
//! ```
//!
//! Everything before the shim can be done again from the start, and is, when the daemon died during it. From the shim on the
//! attempt lives without us: whoever finds its directory goes on from there. What is said (`Started`, `Complete`) is written
//! in the transaction that changes the attempt's state, and `Complete` only after nothing of the attempt is alive.
//!
//! A runner that is asked to stop with the process ([`Shutdown::soft`](crate::runtime::lifecycle::Shutdown)) puts down what
//! it does and returns; agents go on.

mod begin;
mod end;
mod hollow;
pub(super) mod saving;
mod tail;

use std::{future::Future, path::Path, pin::pin, sync::Arc, time::Duration};

use rand::RngExt as _;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, watch},
    time::Instant,
};

use super::{
    Context,
    attempt_dir::{AttemptDir, ExitRecord, Manifest},
    journal::{Change, Row, State, Stop},
    shim::{self, Adopted, Handle, ShimEnd},
    sweep,
};
pub(super) use crate::domain::text::chain;
use crate::{
    domain::{
        AttemptRef,
        attempt::{Failure, FailureClass},
        checkpoint::Reason,
        order::Spawn,
        report::Progress,
    },
    runtime::{backoff::Backoff, clock},
};
use end::Next;
use saving::Saving;
use tail::Tail;

/// From TERM to KILL for what a dead shim or a dead daemon has left.
const LEFTOVER_GRACE: Duration = Duration::from_secs(10);
/// From TERM to KILL for an agent whose work has no place any more: there is nothing it could still put in order, and a
/// second after its place was lost that is to be known.
const LOST_GRACE: Duration = Duration::from_millis(200);
/// Between attempts at something that must work in the end: writing the journal, killing what does not die.
const PERSIST_FIRST: Duration = Duration::from_millis(500);
/// The longest of these waits.
const PERSIST_LIMIT: Duration = Duration::from_secs(30);
/// Times a shim that holds its lock is asked before its agent is ended.
const MAX_UNRESPONSIVE: u32 = 10;

/// How a runner came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finished {
    /// The attempt has ended, and that is in the journal.
    Ended,
    /// The daemon stops; the attempt goes on without it.
    Left,
}

/// Why the story does not go on as it should.
enum Halt {
    /// The daemon stops.
    Shutdown,
    /// Somebody wants the attempt to end.
    Stopped(Stop),
    /// It cannot go on.
    Failed(Failure),
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What is there when a runner begins.
enum Found {
    /// Nothing that has started.
    Nothing,
    /// A living shim.
    Alive(Handle),
    /// An agent that has ended.
    Ended(ExitRecord),
    /// An agent that has gone without a record.
    Gone,
}

/// What a runner goes on with.
enum Now {
    Runs(Handle),
    Ended(ExitRecord),
}

/// What happens while an agent runs.
enum Event {
    Ended(ShimEnd),
    Lost(Failure),
    Save(Reason),
}

/// Brings one attempt to its end. `slot` is given to one that may be running already.
pub(super) async fn run(
    context: Arc<Context>,
    row: Row,
    stop: watch::Receiver<Option<Stop>>,
    asked: Arc<Notify>,
    slot: Option<OwnedSemaphorePermit>,
) -> Finished {
    let mut runner = Runner { attempt: row.attempt, context, row, stop, asked, dir: None, tail: None, saving: None };
    match Box::pin(runner.story(slot)).await {
        Ok(()) => Finished::Ended,
        Err(Left) => Finished::Left,
    }
}

/// The daemon stops.
struct Left;

struct Runner {
    context: Arc<Context>,
    attempt: AttemptRef,
    row: Row,
    stop: watch::Receiver<Option<Stop>>,
    dir: Option<AttemptDir>,
    tail: Option<Tail>,
    /// Somebody wants a checkpoint.
    asked: Arc<Notify>,
    saving: Option<Arc<Saving>>,
}

impl Runner {
    async fn story(&mut self, slot: Option<OwnedSemaphorePermit>) -> Result<(), Left> {
        let Some(spawn) = self.row.spawn.clone() else {
            // Only ever cancelled here: there is nothing to end, but somebody waits to hear so.
            let failure = Failure::new(FailureClass::Cancelled, "cancelled before this daemon had it");
            return self.report(Err(failure), Progress::default(), None).await;
        };
        if self.context.hollow.is_some() {
            return self.hollow(&spawn, slot).await;
        }
        let found = match self.look().await {
            Ok(found) => found,
            Err(halt) => return self.halted(halt, &spawn).await,
        };
        // Held until the report is written: a slot is free when nothing of its attempt is left.
        let _slot = match (slot, &found) {
            (Some(slot), _) => Some(slot),
            (None, Found::Nothing) => match self.slot().await {
                Ok(slot) => slot,
                Err(halt) => return self.halted(halt, &spawn).await,
            },
            // It is here already, whatever the number of slots says.
            (None, _) => None,
        };
        let mut end = match found {
            Found::Nothing => Box::pin(self.begin(&spawn)).await.map(Now::Runs),
            Found::Alive(handle) => self.adopt(&spawn, &handle).await.map(|()| Now::Runs(handle)),
            Found::Ended(record) => self.catch_up(&spawn, record.output_start).await.map(|()| Now::Ended(record)),
            Found::Gone => return self.interrupted(&spawn).await,
        };
        loop {
            let record = match end {
                Ok(Now::Ended(record)) => record,
                Ok(Now::Runs(handle)) => match self.watch(&spawn, handle).await {
                    Ok(ShimEnd::Ended(record)) => record,
                    Ok(ShimEnd::ShimDied) => return self.shim_died().await,
                    Err(halt) => return self.halted(halt, &spawn).await,
                },
                Err(halt) => return self.halted(halt, &spawn).await,
            };
            match self.ended(&spawn, record).await? {
                Next::Over => return Ok(()),
                Next::Again(handle) => end = Ok(Now::Runs(*handle)),
            }
        }
    }

    // === beginning ===

    /// What is there of this attempt: nothing for a new one, anything after a restart.
    async fn look(&mut self) -> Result<Found, Halt> {
        let dir = if self.row.directory.as_os_str().is_empty() {
            AttemptDir::find(self.context.state.path(), self.attempt)
        } else {
            AttemptDir::open(&self.row.directory).ok()
        };
        let Some(dir) = dir else {
            return Ok(match self.row.state {
                State::Accepted => Found::Nothing,
                // Somebody has removed it; what it had started may be alive all the same.
                State::Running
                | State::Ending
                | State::Reported
                | State::Interrupted
                | State::Over
                | State::Salvage => Found::Gone,
            });
        };
        self.dir = Some(dir.clone());
        let mut backoff = Backoff::new(PERSIST_FIRST, PERSIST_LIMIT);
        let mut tries = 0;
        loop {
            tries += 1;
            match Handle::adopt(&dir).await {
                Ok(Adopted::Alive(handle)) => return Ok(Found::Alive(handle)),
                Ok(Adopted::Ended(record)) => return Ok(Found::Ended(record)),
                Ok(Adopted::Gone { started: true }) => return Ok(Found::Gone),
                Ok(Adopted::Gone { started: false }) => {
                    // An earlier process may have died over a setup command.
                    self.sweep(LEFTOVER_GRACE).await.map_err(|Left| Halt::Shutdown)?;
                    return Ok(Found::Nothing);
                }
                Err(error @ shim::Error::Unresponsive { .. }) => {
                    tracing::warn!(%error, tries, "a shim does not answer");
                    if tries >= MAX_UNRESPONSIVE {
                        // Its agent cannot be watched through it, so it is ended; the shim ends with it.
                        self.sweep(LEFTOVER_GRACE).await.map_err(|Left| Halt::Shutdown)?;
                    }
                    self.patience(tokio::time::sleep(backoff.next_delay())).await?;
                }
                Err(error) => {
                    return Err(Halt::Failed(Failure::new(
                        FailureClass::WorktreeLost,
                        format!("the directory of the attempt cannot be read: {}", chain(&error)),
                    )));
                }
            }
        }
    }

    async fn slot(&mut self) -> Result<Option<OwnedSemaphorePermit>, Halt> {
        let slots = Arc::clone(&self.context.slots);
        // The semaphore is never closed.
        self.attend(slots.acquire_owned()).await.map(Result::ok)
    }

    /// Takes over an agent that an earlier process of this daemon started.
    async fn adopt(&mut self, spawn: &Spawn, handle: &Handle) -> Result<(), Halt> {
        tracing::info!(agent = handle.started().agent_pid, "took over a running agent");
        self.catch_up(spawn, handle.started().output_start).await
    }

    /// Understands from its beginning what an agent has written so far, and says that it was started if nobody has: the
    /// process may have died between starting it and writing so.
    async fn catch_up(&mut self, spawn: &Spawn, output_start: u64) -> Result<(), Halt> {
        self.open_tail(spawn, Some(output_start));
        match self.row.state {
            State::Accepted => {
                let manifest = self.manifest()?;
                self.started(&manifest, output_start, Vec::new()).await
            }
            State::Running | State::Ending | State::Reported | State::Interrupted | State::Over | State::Salvage => {
                Ok(())
            }
        }
    }

    // === running ===

    /// Follows the agent to its end, for as long as it has a place to work in, wherever that is moved to.
    async fn watch(&mut self, spawn: &Spawn, mut handle: Handle) -> Result<ShimEnd, Halt> {
        self.context.metrics.agent_runs(self.attempt);
        let mut next = Instant::now() + jittered(spawn.checkpoint_every);
        loop {
            if let Some(end) = self.watch_here(spawn, &mut handle, &mut next).await? {
                return Ok(end);
            }
        }
    }

    /// The same in one place; nothing where it is another one from now on. Takes the checkpoints, the next one at that time.
    async fn watch_here(
        &mut self,
        spawn: &Spawn,
        handle: &mut Handle,
        next: &mut Instant,
    ) -> Result<Option<ShimEnd>, Halt> {
        let place = self.manifest().ok().and_then(|manifest| manifest.place);
        let watched = place.map(|place| self.context.watch.add(self.attempt, &place));
        let saving = self.saving().await;
        let (context, asked) = (Arc::clone(&self.context), Arc::clone(&self.asked));
        let mut lost = pin!(async {
            let broken = async {
                match &watched {
                    Some(watched) => watched.broken().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                broken = broken => Failure::new(FailureClass::WorktreeLost, broken.what),
                full = context.health.until_full() => Failure::new(FailureClass::Refused, full),
            }
        });
        loop {
            let at = *next;
            let it_is_time = async {
                match &saving {
                    Some(_) if !spawn.checkpoint_every.is_zero() => tokio::time::sleep_until(at).await,
                    _ => std::future::pending().await,
                }
            };
            let running = async {
                tokio::select! {
                    biased;
                    end = handle.wait() => Event::Ended(end),
                    failure = &mut lost => Event::Lost(failure),
                    () = asked.notified() => Event::Save(Reason::Asked),
                    () = it_is_time => Event::Save(Reason::Periodic),
                }
            };
            match self.attend(running).await {
                Ok(Event::Ended(end)) => return Ok(Some(end)),
                Ok(Event::Save(reason)) => {
                    *next = Instant::now() + jittered(spawn.checkpoint_every);
                    if let Some(saving) = &saving {
                        saving.start(reason, self.session(spawn));
                    }
                }
                Ok(Event::Lost(failure)) if failure.class == FailureClass::WorktreeLost && self.follow_move().await => {
                    return Ok(None);
                }
                Ok(Event::Lost(failure)) => {
                    tracing::warn!(why = failure.message, "the agent has no place to work in any more; ending it");
                    self.context.metrics.worktree_failed();
                    self.patience(handle.end(LOST_GRACE)).await?;
                    return Err(failure.into());
                }
                Err(Halt::Stopped(stop)) => {
                    tracing::info!(reason = stop.reason, "ending the agent");
                    return self.patience(handle.end(stop.grace)).await.map(Some);
                }
                Err(halt) => return Err(halt),
            }
        }
    }

    /// What takes the checkpoints, once there is something to take them of.
    async fn saving(&mut self) -> Option<Arc<Saving>> {
        if self.saving.is_none()
            && let Some(dir) = &self.dir
        {
            self.saving = Saving::open(&self.context, dir).await;
        }
        self.saving.clone()
    }

    /// The session that the agent works in: what it says itself, or else what it was told.
    fn session(&self, spawn: &Spawn) -> String {
        let said = self.tail.as_ref().map(|tail| tail.progress().agent_session_id).unwrap_or_default();
        if !said.is_empty() {
            return said;
        }
        let rejected = self.manifest().is_ok_and(|manifest| manifest.rejected);
        match &spawn.resume {
            Some(resume) if !resume.session_id.is_empty() && !resume.fork_session && !rejected => {
                resume.session_id.clone()
            }
            _ => self.attempt.id.to_string(),
        }
    }

    /// Waits for `work` while the output is followed, until the daemon stops or somebody wants the attempt to end.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Halt> {
        let mut stop = self.stop.clone();
        let wished = async move {
            match stop.wait_for(Option::is_some).await {
                Ok(stop) => stop.clone(),
                // The supervisor has gone: only the shutdown says more.
                Err(_) => None,
            }
        };
        let mut wished = pin!(wished);
        let mut work = pin!(self.patience(work));
        tokio::select! {
            biased;
            Some(stop) = &mut wished => Err(Halt::Stopped(stop)),
            done = &mut work => done,
        }
    }

    /// Waits for `work` while the output is followed, until the daemon stops.
    async fn patience<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Halt> {
        let soft = self.context.shutdown.soft.clone();
        let mut work = pin!(work);
        loop {
            let pause = async {
                match &self.tail {
                    Some(tail) => tokio::time::sleep(tail.pause()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = soft.cancelled() => return Err(Halt::Shutdown),
                done = &mut work => return Ok(done),
                () = pause => if let Some(tail) = &mut self.tail {
                    tail.look(&self.context.journal).await;
                }
            }
        }
    }

    fn open_tail(&mut self, spawn: &Spawn, understand_from: Option<u64>) {
        let Some(dir) = &self.dir else { return };
        let output = self.context.bulk.open(self.attempt, dir.output(), &[spawn.task_key.as_str()]);
        let parser = self.context.profiles.parser(&spawn.agent);
        let mut tail = Tail::new(self.attempt, dir.output(), parser, output, self.context.config.times.progress);
        if let Some(start) = understand_from {
            tail.understand_from(start);
        }
        self.tail = Some(tail);
    }

    fn manifest(&self) -> Result<Manifest, Failure> {
        let lost = |message: String| Failure::new(FailureClass::WorktreeLost, message);
        let dir = self.dir.as_ref().ok_or_else(|| lost("the attempt has no directory".to_owned()))?;
        dir.manifest().map_err(|error| lost(chain(&error)))
    }

    /// Ends everything that is left of the attempt. Answers when nothing of it is alive, and how much there was.
    async fn sweep(&mut self, grace: Duration) -> Result<usize, Left> {
        let target = match self.dir.as_ref().map(AttemptDir::target) {
            // Without a directory nothing has been started, unless somebody removed it.
            None if self.row.state == State::Accepted => return Ok(0),
            Some(Ok(target)) => target,
            // The marker alone finds them.
            None | Some(Err(_)) => sweep::Target { attempt: self.attempt.id, leader: None, ancestor: None },
        };
        let mut backoff = Backoff::new(PERSIST_FIRST, PERSIST_LIMIT);
        loop {
            match self.patience(sweep::kill_all(&target, grace)).await.map_err(|_| Left)? {
                Ok(ended) => return Ok(ended),
                // Saying that it has ended while it has not would let two work at once: the slot stays taken instead.
                Err(error) => {
                    tracing::error!(error = chain(&error), "processes of an attempt cannot be ended; trying again");
                }
            }
            self.patience(tokio::time::sleep(backoff.next_delay())).await.map_err(|_| Left)?;
        }
    }

    /// Writes to the journal, however long that takes: what is not in it must not be acted upon.
    async fn record(&self, change: Change) -> Result<(), Left> {
        self.record_of(self.attempt, change).await
    }

    async fn record_of(&self, attempt: AttemptRef, change: Change) -> Result<(), Left> {
        let mut backoff = Backoff::new(PERSIST_FIRST, PERSIST_LIMIT);
        loop {
            match self.context.journal.record(attempt, change.clone(), clock::now()).await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::error!(error = chain(&error), "the journal cannot be written; trying again"),
            }
            tokio::select! {
                () = self.context.shutdown.soft.cancelled() => return Err(Left),
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    /// The wish that it ends, if there is one.
    fn wish(&self) -> Option<Stop> {
        self.stop.borrow().clone()
    }
}

/// A little more or less, so that attempts that began together are not checkpointed together.
fn jittered(every: Duration) -> Duration {
    every.mul_f64(rand::rng().random_range(0.9..=1.1))
}

/// Runs what waits for the disk away from the threads that must not wait.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away; nobody waits for the answer any more.
            Err(_) => std::future::pending().await,
        },
    }
}

/// A worktree that looks like one, without asking git: for the inventory, which must not wait.
pub(super) fn looks_intact(worktree: &str) -> bool {
    !worktree.is_empty() && Path::new(worktree).join(".git").exists()
}

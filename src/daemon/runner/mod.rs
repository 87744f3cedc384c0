//! One attempt, from its promise to its report.
//!
//! ```text
//!   accepted ─> slot ─> sanity ─> repository ─> worktree ─> setup ─> shim ──Started──┐
//!      │                                                                             v
//!      │ found after a restart:  shim alive ───────────────────────────────> the agent runs, its output is followed
//!      │                         exit record ──────────────┐                         │
//!      │                         neither ─> sweep ─> RecoveryDetected                v
//!      └───────── a wish that it ends, at any point ───────┴──> nothing is alive ─> commit ─> Complete
//! ```
//!
//! Everything before the shim can be done again from the start, and is, when the daemon died during it. From the shim on the
//! attempt lives without us: whoever finds its directory goes on from there. What is said (`Started`, `Complete`) is written
//! in the transaction that changes the attempt's state, and `Complete` only after nothing of the attempt is alive.
//!
//! A runner that is asked to stop with the process ([`Shutdown::soft`](crate::runtime::lifecycle::Shutdown)) puts down what
//! it does and returns; agents go on.

mod tail;

use std::{future::Future, path::Path, pin::pin, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{
    Context,
    agents::{self, Context as AgentContext},
    attempt_dir::{self, AttemptDir, EndReason, ExitRecord, Manifest},
    journal::{Change, Row, State, Stop, Why},
    sanity,
    shim::{self, Adopted, Handle, ShimEnd},
    sweep, worktree,
};
pub(super) use crate::domain::text::chain;
use crate::{
    domain::{
        AttemptRef,
        attempt::{Failure, FailureClass, TaskResult},
        order::Spawn,
        report::{Complete, InventoryState, Progress, Report},
    },
    runtime::{backoff::Backoff, clock},
};
use tail::Tail;

/// From TERM to KILL for what a dead shim or a dead daemon has left.
const LEFTOVER_GRACE: Duration = Duration::from_secs(10);
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

/// Brings one attempt to its end. `slot` is given to one that may be running already.
pub(super) async fn run(
    context: Arc<Context>,
    row: Row,
    stop: watch::Receiver<Option<Stop>>,
    slot: Option<OwnedSemaphorePermit>,
) -> Finished {
    let runner = Runner { attempt: row.attempt, context, row, stop, dir: None, tail: None };
    match runner.story(slot).await {
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
}

impl Runner {
    async fn story(mut self, slot: Option<OwnedSemaphorePermit>) -> Result<(), Left> {
        let Some(spawn) = self.row.spawn.clone() else {
            // Only ever cancelled here: there is nothing to end, but somebody waits to hear so.
            let failure = Failure::new(FailureClass::Cancelled, "cancelled before this daemon had it");
            return self.report(Err(failure), Progress::default(), None).await;
        };
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
        let end = match found {
            Found::Nothing => match self.begin(&spawn).await {
                Ok(handle) => self.watch(handle).await,
                Err(halt) => Err(halt),
            },
            Found::Alive(handle) => match self.adopt(&spawn, &handle).await {
                Ok(()) => self.watch(handle).await,
                Err(halt) => Err(halt),
            },
            Found::Ended(record) => match self.catch_up(&spawn, record.output_start).await {
                Ok(()) => Ok(ShimEnd::Ended(record)),
                Err(halt) => Err(halt),
            },
            Found::Gone => return self.interrupted(&spawn).await,
        };
        match end {
            Ok(ShimEnd::Ended(record)) => self.ended(&spawn, record).await,
            Ok(ShimEnd::ShimDied) => self.shim_died().await,
            Err(halt) => self.halted(halt, &spawn).await,
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

    /// Everything up to the running agent.
    async fn begin(&mut self, spawn: &Spawn) -> Result<Handle, Halt> {
        let context = Arc::clone(&self.context);
        let mut warnings = self.sanity(spawn).await;

        let mut manifest = Manifest {
            version: attempt_dir::VERSION,
            attempt: self.attempt,
            created: self.row.created,
            spawn: spawn.clone(),
            place: None,
            agent: None,
        };
        let state = context.state.path().to_owned();
        let dir = {
            let manifest = manifest.clone();
            blocking(move || AttemptDir::create(&state, &manifest)).await.map_err(|e| disk_failure(&e))?
        };
        self.dir = Some(dir.clone());
        self.open_tail(spawn, None);

        let wanted: Vec<String> =
            spawn.dependencies.iter().map(|d| d.result_ref.clone()).filter(|r| !r.is_empty()).collect();
        let repo = self
            .attend(context.repositories.ensure(&spawn.repository, &spawn.base_branch, &wanted))
            .await?
            .map_err(Failure::from)?;
        let path = context.state.worktree(self.attempt);
        let prepared =
            self.attend(worktree::prepare(&repo, spawn, self.attempt, &path)).await?.map_err(Failure::from)?;
        warnings.extend(prepared.warnings);
        let place = prepared.place;
        manifest.place = Some(place.clone());
        self.save(&dir, &manifest).await?;
        self.attend(worktree::setup(&dir, &manifest)).await?.map_err(Failure::from)?;

        let agent = AgentContext {
            attempt: self.attempt,
            plan_file: dir.plan(),
            worktree: place.worktree.clone(),
            server: context.config.server.to_string(),
            resume: None,
            env: place.env.clone(),
        };
        let agent = context.profiles.command(spawn, &agent).map_err(|error| {
            let class = match error {
                // Another daemon may have it.
                agents::Error::Unknown { .. } => FailureClass::Refused,
                agents::Error::PlanTooLong { .. } => FailureClass::AgentError,
            };
            Failure::new(class, error.to_string())
        })?;
        manifest.agent = Some(agent);
        self.save(&dir, &manifest).await?;

        // From here on it lives without us, so this is not given up half way.
        let handle = Handle::start(&dir, context.config.executable.clone())
            .await
            // It is this machine that cannot: another one may do better.
            .map_err(|error| Failure::new(FailureClass::Refused, chain(&error)))?;
        self.started(&manifest, handle.started().output_start, warnings).await?;
        Ok(handle)
    }

    async fn sanity(&self, spawn: &Spawn) -> Vec<String> {
        let settings = self.context.config.dependency_ordering;
        let tasks = spawn.dependencies.iter().map(|d| d.task).collect();
        let known = self.context.journal.attempts_of(tasks).await.unwrap_or_default();
        let warnings = sanity::check(settings, spawn, &known, &sanity::touched(spawn));
        for warning in &warnings {
            tracing::warn!(warning, "sanity check");
        }
        self.context.metrics.sanity_warnings(warnings.len());
        if settings.warn_on_violation { warnings } else { Vec::new() }
    }

    async fn save(&self, dir: &AttemptDir, manifest: &Manifest) -> Result<(), Halt> {
        let (dir, manifest) = (dir.clone(), manifest.clone());
        Ok(blocking(move || dir.save(&manifest)).await.map_err(|e| disk_failure(&e))?)
    }

    /// The agent runs: that is written down, and said.
    async fn started(&mut self, manifest: &Manifest, output_start: u64, warnings: Vec<String>) -> Result<(), Halt> {
        let place = manifest.place.as_ref();
        let worktree = place.map(|p| p.worktree.display().to_string()).unwrap_or_default();
        let started = Report::Started {
            worktree: worktree.clone(),
            branch: place.map(|p| p.branch.clone()).unwrap_or_default(),
            base_commit: place.map(|p| p.base_commit.clone()).unwrap_or_default(),
            agent_version: self.context.installed_version(&manifest.spawn.agent),
        };
        let reports =
            std::iter::once(started).chain(warnings.into_iter().map(|message| Report::Warning { message })).collect();
        let change = Change {
            state: Some(State::Running),
            directory: self.dir.as_ref().map(|dir| dir.path().to_owned()),
            worktree: Some(worktree),
            reports,
            ..Change::default()
        };
        self.record(change).await.map_err(|Left| Halt::Shutdown)?;
        self.row.state = State::Running;
        if let Some(tail) = &mut self.tail {
            tail.understand_from(output_start);
        }
        Ok(())
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

    /// Follows the agent to its end.
    async fn watch(&mut self, mut handle: Handle) -> Result<ShimEnd, Halt> {
        self.context.metrics.agent_runs(self.attempt);
        match self.attend(handle.wait()).await {
            Ok(end) => Ok(end),
            Err(Halt::Stopped(stop)) => {
                tracing::info!(reason = stop.reason, "ending the agent");
                self.patience(handle.end(stop.grace)).await
            }
            Err(halt) => Err(halt),
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

    // === ending ===

    /// The agent has ended and left its record.
    async fn ended(mut self, spawn: &Spawn, record: ExitRecord) -> Result<(), Left> {
        let left = self.sweep(Duration::ZERO).await?;
        if left > 0 {
            tracing::warn!(left, "processes of the attempt had outlived its shim; they are ended");
        }
        let (progress, verdict) = match &mut self.tail {
            Some(tail) => {
                tail.read_to(record.output_bytes).await;
                (tail.progress(), tail.finish(&record))
            }
            None => (Progress::default(), Ok(())),
        };
        let outcome = match (self.wish(), &record.reason, verdict) {
            (Some(stop), _, _) => Err(stopped(&stop)),
            (None, EndReason::Timeout, _) => Err(timeout(spawn)),
            (None, EndReason::Exited | EndReason::Terminated | EndReason::StartFailed { .. }, Err(failure)) => {
                Err(failure)
            }
            (None, EndReason::Exited | EndReason::Terminated | EndReason::StartFailed { .. }, Ok(())) => {
                match self.finish().await {
                    Ok(result) => Ok(result),
                    Err(Halt::Shutdown) => return Err(Left),
                    Err(Halt::Stopped(stop)) => Err(stopped(&stop)),
                    Err(Halt::Failed(failure)) => Err(failure),
                }
            }
        };
        self.report(outcome, progress, Some(&record)).await
    }

    /// Commits what is left and sets the result ref. What git has begun it finishes: only the end of the daemon stops this,
    /// and then it is done again.
    async fn finish(&mut self) -> Result<TaskResult, Halt> {
        let manifest = self.manifest()?;
        let finished = self.patience(worktree::finish(&manifest)).await?.map_err(Failure::from)?;
        let reports: Vec<Report> = finished.warnings.into_iter().map(|message| Report::Warning { message }).collect();
        if !reports.is_empty() {
            self.record(Change { reports, ..Change::default() }).await.map_err(|Left| Halt::Shutdown)?;
        }
        Ok(finished.result)
    }

    /// The shim has died under us; its agent may be alive.
    async fn shim_died(mut self) -> Result<(), Left> {
        let left = self.sweep(LEFTOVER_GRACE).await?;
        tracing::warn!(left, "the shim died; what it had started has been ended");
        let failure = match self.wish() {
            Some(stop) => stopped(&stop),
            None => Failure::new(
                FailureClass::AgentCrashed,
                "the process that watched the agent died (killed, or out of memory); the agent was ended",
            ),
        };
        let progress = match &mut self.tail {
            Some(tail) => {
                tail.read_all().await;
                tail.progress()
            }
            None => Progress::default(),
        };
        self.report(Err(failure), progress, None).await
    }

    /// After a restart: the agent has gone and left no record.
    async fn interrupted(mut self, spawn: &Spawn) -> Result<(), Left> {
        let left = self.sweep(LEFTOVER_GRACE).await?;
        self.open_tail(spawn, None);
        if self.wish().is_some() {
            return self.shim_died().await;
        }
        let place = self.manifest().ok().and_then(|manifest| manifest.place);
        let (worktree, worktree_intact) = match place {
            Some(place) => {
                let path = place.worktree.display().to_string();
                (path, blocking(move || worktree::is_intact(&place)).await)
            }
            None => (self.row.worktree.clone(), false),
        };
        tracing::warn!(left, worktree_intact, worktree, "the agent has gone without a record");
        let detected = Report::RecoveryDetected {
            previous: self.row.state.inventory().unwrap_or(InventoryState::Running),
            worktree_intact,
            worktree: worktree.clone(),
            needs_patch: !worktree_intact,
        };
        let change = Change {
            state: Some(State::Interrupted),
            directory: self.dir.as_ref().map(|dir| dir.path().to_owned()),
            worktree: Some(worktree),
            reports: vec![detected],
            ..Change::default()
        };
        self.record(change).await?;
        if let Some(tail) = &mut self.tail {
            tail.close().await;
        }
        Ok(())
    }

    /// The story did not go on.
    async fn halted(mut self, halt: Halt, spawn: &Spawn) -> Result<(), Left> {
        let failure = match halt {
            Halt::Shutdown => return Err(Left),
            Halt::Stopped(stop) => stopped(&stop),
            Halt::Failed(failure) => failure,
        };
        // A setup command, or a git that was given up, may be alive.
        self.sweep(spawn.grace).await?;
        self.report(Err(failure), Progress::default(), None).await
    }

    /// The end: what became of the attempt, with its state, in one transaction.
    async fn report(
        mut self,
        outcome: Result<TaskResult, Failure>,
        progress: Progress,
        record: Option<&ExitRecord>,
    ) -> Result<(), Left> {
        let output = match &mut self.tail {
            Some(tail) => tail.close().await,
            None => 0,
        };
        let class = outcome.as_ref().err().map(|failure| failure.class);
        let message = outcome.as_ref().err().map(|failure| failure.message.clone()).unwrap_or_default();
        let complete = Complete {
            outcome,
            progress,
            output_bytes: i64::try_from(output).unwrap_or(i64::MAX),
            exit_code: record.and_then(|record| record.exit_code),
            signal: record.map_or(0, |record| record.signal),
        };
        let (state, reports) = match self.wish().map(|stop| stop.why) {
            None | Some(Why::Cancelled | Why::Fenced) => (State::Reported, vec![Report::Complete(complete)]),
            // Nobody there would know what is meant.
            Some(Why::Salvage) => (State::Salvage, Vec::new()),
            Some(Why::Forgotten) => (State::Over, Vec::new()),
        };
        let change = Change {
            state: Some(state),
            directory: self.dir.as_ref().map(|dir| dir.path().to_owned()),
            reports,
            ..Change::default()
        };
        self.record(change).await?;
        match class {
            None => tracing::info!("the attempt has ended with a result"),
            Some(class) => tracing::info!(?class, message, "the attempt has ended without a result"),
        }
        Ok(())
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
        let mut backoff = Backoff::new(PERSIST_FIRST, PERSIST_LIMIT);
        loop {
            match self.context.journal.record(self.attempt, change.clone(), clock::now()).await {
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

fn stopped(stop: &Stop) -> Failure {
    let message = match stop.why {
        Why::Cancelled => format!("cancelled: {}", stop.reason),
        Why::Fenced => "a newer attempt has its place; its work is kept".to_owned(),
        Why::Salvage => "the server does not know it; its work is kept".to_owned(),
        Why::Forgotten => "the server needs nothing more of it".to_owned(),
    };
    Failure::new(FailureClass::Cancelled, message)
}

fn timeout(spawn: &Spawn) -> Failure {
    let limit = spawn.wall_time.map(humantime::format_duration);
    let limit = limit.map_or_else(String::new, |limit| format!(" of {limit}"));
    Failure::new(FailureClass::Timeout, format!("the agent took longer than its wall time{limit}"))
}

/// The state directory cannot be written: another daemon may do better.
fn disk_failure(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(FailureClass::Refused, format!("the daemon cannot write its state directory: {}", chain(error)))
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

//! Who has the attempts: one loop that owns the map of those that live, starts a runner for each, passes on the wishes that
//! they end, and executes the server's verdicts.
//!
//! ```text
//!   intake ── accepted ──┐                       ┌─> runner ─┐
//!   session ─ verdicts ──┼─> map of live ones ───┼─> runner ─┼─> ended: the slot is free
//!           ─ cancel ────┘   (watch: Live)       └─> runner ─┘
//! ```
//!
//! An accepted attempt waits for a slot here rather than being refused. Attempts found by their directories only, after a
//! journal was lost, wait for the server's verdict: a finished one is not finished a second time on a guess.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot, watch};
use tracing::Instrument as _;

use super::{
    Context,
    attempt_dir::AttemptDir,
    journal::{self, Change, Row, State, Stop, Why},
    recovery,
    runner::{self, Finished, chain, looks_intact, saving::Saving},
    salvage,
};
use crate::{
    domain::{
        AttemptRef, Timestamp,
        attempt::{Failure, FailureClass},
        checkpoint::Reason,
        order::{Command, DEFAULT_GRACE, Order},
        reconcile::Verdict,
        report::{Complete, InventoryItem, Progress, Report},
    },
    runtime::clock,
};

/// What waits for the loop before callers wait too. Each is a batch.
const QUEUE: usize = 256;
/// How often a runner that broke is started again soon: what has not passed by then needs a person, or time.
const QUICK_RESTARTS: u32 = 3;
/// The wait before each of those.
const RESTART_DELAY: Duration = Duration::from_secs(5);
/// The wait before every further one. An attempt is never given up: its agent may live, and nobody else would say its end.
const SLOW_RESTART_DELAY: Duration = Duration::from_secs(300);

/// Where the supervisor is reached. Clones share it.
#[derive(Clone, Debug)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
    live: watch::Receiver<Live>,
}

/// What lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Attempts that are not at their end.
    pub attempts: Vec<AttemptRef>,
    /// Slots without one.
    pub free_slots: u32,
}

/// What can be asked of the supervisor.
#[derive(Debug)]
pub(super) enum Ask {
    /// These are in the journal and new, since then.
    Accepted(Vec<Command>, Timestamp),
    /// The server orders to start these, which the journal has already.
    Known(Vec<AttemptRef>),
    /// The server has judged what was listed.
    Verdicts(Vec<(AttemptRef, Verdict)>, oneshot::Sender<()>),
    /// The server wants these to end.
    Cancel(Vec<AttemptRef>),
    /// A newer attempt has the place of this one.
    Fenced(AttemptRef),
    /// What is there, for Hello.
    Inventory(oneshot::Sender<Result<Vec<InventoryItem>, journal::Error>>),
    /// Everything is to end; answered when nothing lives.
    StopAll(String, oneshot::Sender<()>),
}

impl Handle {
    /// Starts and ends what the journal has accepted.
    pub async fn accepted(&self, commands: Vec<Command>, since: Timestamp) {
        self.ask(Ask::Accepted(commands, since)).await;
    }

    /// Says again how those have ended that have: the server does not know it.
    pub async fn known(&self, attempts: Vec<AttemptRef>) {
        if !attempts.is_empty() {
            self.ask(Ask::Known(attempts)).await;
        }
    }

    /// Executes the server's verdicts: returns when each is on its way, not when everything has died.
    pub async fn verdicts(&self, verdicts: Vec<(AttemptRef, Verdict)>) {
        let (done, executed) = oneshot::channel();
        self.ask(Ask::Verdicts(verdicts, done)).await;
        let _ = executed.await;
    }

    /// Ends these, if they are not at their end already.
    pub async fn cancel(&self, attempts: Vec<AttemptRef>) {
        if !attempts.is_empty() {
            self.ask(Ask::Cancel(attempts)).await;
        }
    }

    /// Ends this one: a newer attempt has its place.
    pub async fn fenced(&self, attempt: AttemptRef) {
        self.ask(Ask::Fenced(attempt)).await;
    }

    /// Every attempt that concerns the server. Never less than that: the server takes what is not listed for gone.
    pub async fn inventory(&self) -> Result<Vec<InventoryItem>, journal::Error> {
        let (answer, answered) = oneshot::channel();
        self.ask(Ask::Inventory(answer)).await;
        match answered.await {
            Ok(inventory) => inventory,
            // The loop has gone, and the daemon goes.
            Err(_) => Err(journal::Error::Closed),
        }
    }

    /// Ends everything, and returns when nothing lives.
    pub async fn stop_all(&self, reason: &str) {
        let (done, stopped) = oneshot::channel();
        self.ask(Ask::StopAll(reason.to_owned(), done)).await;
        let _ = stopped.await;
    }

    /// What lives now.
    pub fn live(&self) -> Live {
        self.live.borrow().clone()
    }

    async fn ask(&self, ask: Ask) {
        // The loop ends only with the daemon.
        let _ = self.asks.send(ask).await;
    }
}

/// The loop.
pub struct Supervisor {
    context: Arc<Context>,
    asks: mpsc::Receiver<Ask>,
    live: HashMap<AttemptRef, Entry>,
    /// Found by their directories, not in the journal: they wait for a verdict.
    found: HashMap<AttemptRef, Row>,
    /// Ended, and fenced since: what they made is being kept, or is. A verdict and the answer to a report both say so.
    kept: HashSet<AttemptRef>,
    /// In the journal, and started for another reason before it was heard that they are to begin: it may be over with them by
    /// then.
    begun_early: HashSet<AttemptRef>,
    publish: watch::Sender<Live>,
    /// Runners say here that they have ended, also by breaking. At most one for each live attempt.
    ended: (mpsc::UnboundedSender<Ended>, mpsc::UnboundedReceiver<Ended>),
    stopped: Vec<oneshot::Sender<()>>,
}

struct Entry {
    stop: watch::Sender<Option<Stop>>,
    /// Somebody wants a checkpoint.
    asked: Arc<Notify>,
    restarts: u32,
}

struct Ended {
    attempt: AttemptRef,
    /// `None`: it broke.
    how: Option<Finished>,
}

impl Supervisor {
    /// The handle and the loop.
    pub fn new(context: Arc<Context>) -> (Handle, Self) {
        let (asks, inbox) = mpsc::channel(QUEUE);
        let (publish, live) = watch::channel(Live { attempts: Vec::new(), free_slots: context.config.slots });
        let supervisor = Self {
            context,
            asks: inbox,
            live: HashMap::new(),
            found: HashMap::new(),
            kept: HashSet::new(),
            begun_early: HashSet::new(),
            publish,
            ended: mpsc::unbounded_channel(),
            stopped: Vec::new(),
        };
        (Handle { asks, live }, supervisor)
    }

    /// Takes over what recovery has found: `rows` are live in the journal, `found` are only on the disk.
    pub fn resume(&mut self, rows: Vec<Row>, found: Vec<Row>) {
        // Those that may be running have their slots before those that wait for one.
        let (running, waiting): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.state != State::Accepted);
        for row in running {
            let slot = Arc::clone(&self.context.slots).try_acquire_owned().ok();
            self.start(row, slot);
        }
        for row in waiting {
            self.start(row, None);
        }
        self.found = found.into_iter().map(|row| (row.attempt, row)).collect();
    }

    /// Runs until the daemon stops.
    pub async fn run(mut self) {
        let soft = self.context.shutdown.soft.clone();
        loop {
            tokio::select! {
                biased;
                () = soft.cancelled() => return,
                Some(ended) = self.ended.1.recv() => self.runner_ended(ended),
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.answer(ask).await,
                    // Nobody is left to ask: the daemon is about to stop.
                    None => return soft.cancelled().await,
                },
            }
            self.publish();
        }
    }

    async fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Accepted(commands, since) => self.accepted(commands, since).await,
            Ask::Known(attempts) => {
                for attempt in attempts {
                    if !self.live.contains_key(&attempt) {
                        self.report_again(attempt).await;
                    }
                }
            }
            Ask::Verdicts(verdicts, done) => {
                for (attempt, verdict) in verdicts {
                    self.verdict(attempt, verdict).await;
                }
                let _ = done.send(());
            }
            Ask::Cancel(attempts) => {
                for attempt in attempts {
                    self.stop(attempt, stop(Why::Cancelled, "the server wants it to end")).await;
                }
            }
            Ask::Fenced(attempt) => self.stop(attempt, stop(Why::Fenced, "a newer attempt has its place")).await,
            Ask::Inventory(answer) => {
                // The session that asked may have ended.
                let _ = answer.send(self.inventory().await);
            }
            Ask::StopAll(reason, done) => {
                for attempt in self.live.keys().copied().collect::<Vec<_>>() {
                    self.stop(attempt, stop(Why::Cancelled, &reason)).await;
                }
                self.stopped.push(done);
            }
        }
    }

    // === starting ===

    /// Does what commands ask for that are in the journal since then. What is to begin and to end at once begins with the wish
    /// that it ends.
    async fn accepted(&mut self, commands: Vec<Command>, since: Timestamp) {
        let cancels = commands.iter().filter_map(|command| match &command.order {
            Order::Cancel { reason, grace } => {
                Some((command.attempt, Stop { why: Why::Cancelled, reason: reason.clone(), grace: *grace }))
            }
            Order::Spawn(_) | Order::Checkpoint => None,
        });
        let mut stops: HashMap<AttemptRef, Stop> = cancels.collect();
        for command in commands {
            let stop = stops.remove(&command.attempt).filter(|_| matches!(command.order, Order::Spawn(_)));
            self.command(command, stop, since).await;
        }
    }

    async fn command(&mut self, command: Command, stop: Option<Stop>, since: Timestamp) {
        match command.order {
            Order::Spawn(spawn) => {
                self.found.remove(&command.attempt);
                self.begin(Row { stop, ..Row::accepted(command.attempt, *spawn, since) }).await;
            }
            Order::Cancel { reason, grace } => {
                self.stop(command.attempt, Stop { why: Why::Cancelled, reason, grace }).await;
            }
            Order::Checkpoint => match self.live.get(&command.attempt) {
                Some(entry) => entry.asked.notify_one(),
                None => {
                    tracing::info!(attempt = %command.attempt, "asked for a checkpoint of what does not run any more");
                }
            },
        }
    }

    /// Begins what was accepted. What the journal has of it need not be read, unless somebody was faster.
    async fn begin(&mut self, row: Row) {
        if !self.begun_early.remove(&row.attempt) {
            return self.start(row, None);
        }
        match self.context.journal.attempt(row.attempt).await {
            Ok(Some(row)) if row.state.is_live() => self.start(row, None),
            Ok(_) => {}
            // It is in the journal: the next start of the daemon finds it.
            Err(error) => tracing::error!(error = chain(&error), "the journal cannot be read"),
        }
    }

    fn start(&mut self, row: Row, slot: Option<OwnedSemaphorePermit>) {
        let attempt = row.attempt;
        if self.live.contains_key(&attempt) {
            return;
        }
        let (stop, wishes) = watch::channel(row.stop.clone());
        let asked = Arc::new(Notify::new());
        self.live.insert(attempt, Entry { stop, asked: Arc::clone(&asked), restarts: 0 });
        let context = Arc::clone(&self.context);
        self.spawn(attempt, async move { Some(Box::pin(runner::run(context, row, wishes, asked, slot)).await) });
    }

    /// Starts a broken runner again, from what the journal says then: that is how it would go on after a restart of the
    /// daemon as well. A new wish that the attempt ends is not kept waiting.
    fn restart(&mut self, attempt: AttemptRef, Entry { stop, asked, restarts }: Entry) {
        let restarts = restarts.saturating_add(1);
        self.context.metrics.runner_broke();
        let delay = restart_delay(restarts);
        tracing::error!(%attempt, restarts, delay_s = delay.as_secs(), "the runner of an attempt broke; starting it again");
        let tell = (restarts == QUICK_RESTARTS + 1).then(|| {
            let message = format!(
                "the daemon's own part for this attempt has broken {restarts} times; its log says why. It goes on trying, but \
                 somebody should look"
            );
            Change { reports: vec![Report::Warning { message }], ..Change::default() }
        });
        let mut wishes = stop.subscribe();
        self.live.insert(attempt, Entry { stop, asked: Arc::clone(&asked), restarts });
        let slot = Arc::clone(&self.context.slots).try_acquire_owned().ok();
        let context = Arc::clone(&self.context);
        self.spawn(attempt, async move {
            if let Some(tell) = tell
                && let Err(error) = context.journal.record(attempt, tell, clock::now()).await
            {
                tracing::error!(error = chain(&error), "the journal cannot be written");
            }
            tokio::select! {
                biased;
                () = context.shutdown.soft.cancelled() => return Some(Finished::Left),
                _ = wishes.changed() => {}
                () = tokio::time::sleep(delay) => {}
            }
            match context.journal.attempt(attempt).await {
                Ok(Some(row)) if row.state.is_live() => {
                    Some(Box::pin(runner::run(context, row, wishes, asked, slot)).await)
                }
                Ok(_) => Some(Finished::Ended),
                Err(error) => {
                    tracing::error!(error = chain(&error), "the journal cannot be read");
                    None
                }
            }
        });
    }

    fn spawn(&self, attempt: AttemptRef, work: impl Future<Output = Option<Finished>> + Send + 'static) {
        let guard = Guard { attempt, ended: self.ended.0.clone(), how: None };
        let span = tracing::info_span!("attempt", task = %attempt.task, number = attempt.number);
        self.context.shutdown.spawn(
            async move {
                // The whole of it moves in here, and is dropped when the work breaks.
                let mut guard = guard;
                guard.how = work.await;
            }
            .instrument(span),
        );
    }

    fn runner_ended(&mut self, Ended { attempt, how }: Ended) {
        self.context.metrics.agent_ended(attempt);
        let Some(entry) = self.live.remove(&attempt) else { return };
        if how.is_none() && !self.context.shutdown.soft.is_cancelled() {
            self.restart(attempt, entry);
        }
    }

    // === ending ===

    async fn verdict(&mut self, attempt: AttemptRef, verdict: Verdict) {
        if self.found.contains_key(&attempt) {
            return self.verdict_on_found(attempt, verdict).await;
        }
        match verdict {
            Verdict::Keep => self.output_again(attempt).await,
            Verdict::Cancel => self.stop(attempt, stop(Why::Cancelled, "the server wants it to end")).await,
            Verdict::Fenced => self.stop(attempt, stop(Why::Fenced, "a newer attempt has its place")).await,
            Verdict::Salvage => {
                tracing::warn!(%attempt, "the server does not know this attempt; its work is kept for a person");
                self.stop(attempt, stop(Why::Salvage, "the server does not know it")).await;
            }
            Verdict::Forget => self.stop(attempt, stop(Why::Forgotten, "the server needs nothing more of it")).await,
            Verdict::ReportAgain => self.report_again(attempt).await,
            // Its work stays where it is, for the attempt that follows.
            Verdict::ResumeHere | Verdict::Restore => {
                tracing::info!(%attempt, ?verdict, "another attempt goes on with this one's work");
                self.stop(attempt, stop(Why::Forgotten, "another attempt follows")).await;
            }
        }
    }

    /// The journal did not have it. Now that the server has spoken, it does.
    async fn verdict_on_found(&mut self, attempt: AttemptRef, verdict: Verdict) {
        let Some(row) = self.found.remove(&attempt) else { return };
        let wish = match verdict {
            Verdict::Keep | Verdict::ReportAgain => None,
            Verdict::Cancel => Some(stop(Why::Cancelled, "the server wants it to end")),
            Verdict::Fenced => Some(stop(Why::Fenced, "a newer attempt has its place")),
            Verdict::Salvage => Some(stop(Why::Salvage, "the server does not know it")),
            Verdict::Forget | Verdict::ResumeHere | Verdict::Restore => {
                Some(stop(Why::Forgotten, "the server needs nothing more of it"))
            }
        };
        tracing::info!(%attempt, ?verdict, "an attempt found by its directory is taken into the journal");
        let row = Row { stop: wish, ..row };
        if let Err(error) = self.context.journal.adopt(vec![row.clone()]).await {
            tracing::error!(%attempt, error = chain(&error), "the journal cannot be written");
            self.found.insert(attempt, row);
            return;
        }
        if row.state == State::Accepted {
            self.begun_early.insert(attempt);
        }
        let slot = Arc::clone(&self.context.slots).try_acquire_owned().ok();
        self.start(row, slot);
    }

    /// Ends an attempt, or what is still said about it.
    async fn stop(&mut self, attempt: AttemptRef, stop: Stop) {
        if let Some(entry) = self.live.get(&attempt) {
            // The first wish says why. It is said again with every heartbeat until the end.
            if entry.stop.borrow().is_none() {
                self.record(attempt, Change { stop: Some(stop.clone()), ..Change::default() }).await;
                entry.stop.send_replace(Some(stop));
            }
            return;
        }
        if self.found.contains_key(&attempt) {
            let verdict = match stop.why {
                Why::Cancelled => Verdict::Cancel,
                Why::Fenced => Verdict::Fenced,
                Why::Salvage => Verdict::Salvage,
                Why::Forgotten => Verdict::Forget,
            };
            return self.verdict_on_found(attempt, verdict).await;
        }
        let row = match self.context.journal.attempt(attempt).await {
            Ok(Some(row)) => row,
            Ok(None) => return,
            Err(error) => return tracing::error!(%attempt, error = chain(&error), "the journal cannot be read"),
        };
        let over = |state| Change { state: Some(state), ..Change::default() };
        match (stop.why, row.state) {
            (_, State::Accepted | State::Running | State::Ending) => {
                // One without an order was never to begin here.
                if row.state == State::Accepted && row.spawn.is_some() {
                    self.begun_early.insert(attempt);
                }
                self.start(Row { stop: Some(stop), ..row }, None);
            }
            (Why::Salvage, _) => {
                if let Ok(dir) = AttemptDir::open(&row.directory)
                    && let Err(error) = salvage::mark(&dir, "the server does not know it").await
                {
                    tracing::warn!(%attempt, error = chain(&error), "it cannot be noted that an attempt is salvage");
                }
                self.record(attempt, over(State::Salvage)).await;
            }
            (Why::Forgotten, _) => self.record(attempt, over(State::Over)).await,
            // Its end is in the outbox.
            (Why::Cancelled, State::Reported | State::Interrupted) => {}
            // The server has not taken its end for one, and waits for it.
            (Why::Cancelled, State::Over | State::Salvage) => self.report_again(attempt).await,
            (Why::Fenced, State::Reported | State::Interrupted | State::Over) => self.keep(row),
            (Why::Fenced, State::Salvage) => {}
        }
    }

    /// The place of an attempt that has ended is taken, and its result with it: what it made is kept as a checkpoint, for people.
    fn keep(&mut self, row: Row) {
        if !self.kept.insert(row.attempt) {
            return;
        }
        let context = Arc::clone(&self.context);
        self.context.shutdown.spawn(async move {
            let Ok(dir) = AttemptDir::open(&row.directory) else { return };
            let session = row.complete.map(|complete| complete.progress.agent_session_id).unwrap_or_default();
            if let Some(saving) = Saving::open(&context, &dir).await {
                saving.take_last(Reason::End, session).await;
            }
        });
    }

    async fn report_again(&mut self, attempt: AttemptRef) {
        match self.context.journal.report_again(attempt, clock::now()).await {
            Ok(true) => {}
            Ok(false) if self.live.contains_key(&attempt) => {}
            Ok(false) => {
                // It ended without ever saying how.
                let failure = Failure::new(FailureClass::Cancelled, "it ended here without a report");
                let complete = Complete {
                    outcome: Err(failure),
                    progress: Progress::default(),
                    output_bytes: 0,
                    exit_code: None,
                    signal: 0,
                };
                let reports = vec![Report::Complete(complete)];
                self.record(attempt, Change { state: Some(State::Reported), reports, ..Change::default() }).await;
            }
            Err(error) => tracing::error!(%attempt, error = chain(&error), "the journal cannot be written"),
        }
        self.output_again(attempt).await;
    }

    /// The server goes on with an attempt that is over here. Its database may have been put back from a copy that is older than
    /// the output it had: it is asked how much it has. One that has everything says so, and that is all.
    async fn output_again(&self, attempt: AttemptRef) {
        if self.live.contains_key(&attempt) {
            return;
        }
        match self.context.journal.attempt(attempt).await {
            Ok(Some(row)) if row.uploaded => _ = recovery::announce_output(&self.context, &row),
            // What has not arrived is on its way.
            Ok(_) => {}
            Err(error) => tracing::error!(%attempt, error = chain(&error), "the journal cannot be read"),
        }
    }

    /// Writes once: what the server wants is said again with the next heartbeat or session.
    async fn record(&self, attempt: AttemptRef, change: Change) {
        if let Err(error) = self.context.journal.record(attempt, change, clock::now()).await {
            tracing::error!(%attempt, error = chain(&error), "the journal cannot be written");
        }
    }

    // === looking ===

    /// From the journal and a look at the disk; nothing here waits for an agent or for git.
    async fn inventory(&self) -> Result<Vec<InventoryItem>, journal::Error> {
        let rows = self.context.journal.attempts().await?;
        let known: HashSet<AttemptRef> = rows.iter().map(|row| row.attempt).collect();
        let items = rows
            .iter()
            .chain(self.found.values().filter(|row| !known.contains(&row.attempt)))
            .filter_map(|row| {
                Some(InventoryItem {
                    attempt: row.attempt,
                    state: row.state.inventory()?,
                    worktree: row.worktree.clone(),
                    worktree_intact: looks_intact(&row.worktree),
                })
            })
            .collect();
        Ok(items)
    }

    fn publish(&mut self) {
        let mut attempts: Vec<AttemptRef> = self.live.keys().copied().collect();
        attempts.sort_unstable();
        let taken = u32::try_from(attempts.len()).unwrap_or(u32::MAX);
        let live = Live { attempts, free_slots: self.context.config.slots.saturating_sub(taken) };
        self.publish.send_if_modified(|old| {
            let changed = *old != live;
            *old = live;
            changed
        });
        if self.live.is_empty() {
            for stopped in self.stopped.drain(..) {
                let _ = stopped.send(());
            }
        }
    }
}

fn restart_delay(restarts: u32) -> Duration {
    if restarts <= QUICK_RESTARTS { RESTART_DELAY } else { SLOW_RESTART_DELAY }
}

fn stop(why: Why, reason: &str) -> Stop {
    Stop { why, reason: reason.to_owned(), grace: DEFAULT_GRACE }
}

/// Says that a runner has ended, however it did.
struct Guard {
    attempt: AttemptRef,
    ended: mpsc::UnboundedSender<Ended>,
    how: Option<Finished>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The supervisor may have gone, with the daemon.
        let _ = self.ended.send(Ended { attempt: self.attempt, how: self.how });
    }
}

#[cfg(test)]
pub(super) mod tests;

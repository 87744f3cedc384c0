//! Waiting for a contract or a task to end, through breaks of the connection and restarts of the server.
//!
//! ```text
//!   watch ──steps──> Board ──> Screen
//!     ^   └─token─┐
//!     └── again, from the token; from a snapshot when the token is too old
//! ```
//!
//! A break is told once, and once when it is over. While nothing runs, the reasons of what is pending are read every few
//! seconds and shown, so that a person who waits knows for what.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Code, Status, Streaming};

use super::{
    board::{Board, Outcome},
    client::{Client, PATIENCE, timed},
    error::{Error, Result, is_transient},
    output::clean,
    screen::Screen,
    view,
};
use crate::{
    runtime::{backoff::Backoff, clock},
    wire::pb::{self, PendingReason, TaskStatus},
};

/// How often the list is repainted.
const REPAINT: Duration = Duration::from_millis(200);
/// How often the reasons of pending tasks are read while nothing runs.
const LOOK_FOR_REASONS: Duration = Duration::from_secs(3);
/// Pending tasks read for that; the first reason that a person can act on is enough.
const REASONS_READ: u32 = 100;
/// New or changed tasks read one by one between two repaints; more are read with a new snapshot.
const READ_SINGLY: usize = 50;

/// What is waited for.
#[derive(Clone, Debug)]
pub enum Source {
    /// A contract, by id.
    Contract(String),
    /// A task, by id.
    Task(String),
}

/// Follows to the end, and says how that was.
pub async fn follow(client: &Client, source: &Source, screen: &mut Screen<'_>) -> Result<Outcome> {
    let mut following = Following {
        client,
        source,
        board: Board::default(),
        token: String::new(),
        begun: Instant::now(),
        in_snapshot: false,
        last_step: Instant::now(),
        last_hint: String::new(),
        read_singly: 0,
    };
    tokio::select! {
        biased;
        outcome = following.run(screen) => outcome,
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted(source.goes_on())),
    }
}

impl Source {
    /// What a person who stops waiting should know.
    fn goes_on(&self) -> String {
        let (noun, id) = match self {
            Self::Contract(id) => ("contract", view::short(id)),
            Self::Task(id) => ("task", view::short(id)),
        };
        format!(
            "interrupted; the {noun} goes on: `makima {noun} watch {id}` follows it, `makima {noun} cancel {id}` ends it"
        )
    }

    async fn open(&self, client: &Client, token: &str) -> std::result::Result<Steps, Status> {
        match self {
            Self::Contract(id) => {
                let request = pb::WatchContractRequest {
                    contract_id: id.clone(),
                    resume_token: token.to_owned(),
                    until_end: true,
                };
                Ok(Steps::Contract(client.contracts().watch_contract(request).await?.into_inner()))
            }
            Self::Task(id) => {
                let request =
                    pb::WatchTaskRequest { task_id: id.clone(), resume_token: token.to_owned(), until_end: true };
                Ok(Steps::Task(client.tasks().watch_task(request).await?.into_inner()))
            }
        }
    }
}

enum Steps {
    Contract(Streaming<pb::WatchContractResponse>),
    Task(Streaming<pb::WatchTaskResponse>),
}

enum Step {
    Contract(Box<pb::Contract>),
    Tasks(Vec<pb::Task>),
    SnapshotComplete,
    Change(Box<pb::Change>),
    Nothing,
}

impl Steps {
    /// The next step with its token; `None` when the server has no more.
    async fn next(&mut self) -> std::result::Result<Option<(Step, String)>, Status> {
        match self {
            Self::Contract(stream) => {
                use pb::watch_contract_response::Kind;
                Ok(stream.message().await?.map(|message| {
                    let step = match message.kind {
                        Some(Kind::Contract(contract)) => Step::Contract(Box::new(contract)),
                        Some(Kind::Tasks(tasks)) => Step::Tasks(tasks.tasks),
                        Some(Kind::SnapshotComplete(_)) => Step::SnapshotComplete,
                        Some(Kind::Change(change)) => Step::Change(Box::new(change)),
                        None => Step::Nothing,
                    };
                    (step, message.resume_token)
                }))
            }
            Self::Task(stream) => {
                use pb::watch_task_response::Kind;
                Ok(stream.message().await?.map(|message| {
                    let step = match message.kind {
                        Some(Kind::Task(task)) => Step::Tasks(vec![task]),
                        Some(Kind::Change(change)) => Step::Change(Box::new(change)),
                        None => Step::Nothing,
                    };
                    (step, message.resume_token)
                }))
            }
        }
    }
}

struct Following<'a> {
    client: &'a Client,
    source: &'a Source,
    board: Board,
    token: String,
    begun: Instant,
    in_snapshot: bool,
    last_step: Instant,
    last_hint: String,
    read_singly: usize,
}

/// Why a stream is opened again.
enum Break {
    /// The connection or the server went away.
    Lost(Status),
    /// The server ended the stream, but there is more to wait for.
    Ended,
}

impl Following<'_> {
    async fn run(&mut self, screen: &mut Screen<'_>) -> Result<Outcome> {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
        let mut broken_since: Option<Instant> = None;
        let mut said = false;
        loop {
            let broken = match self.source.open(self.client, &self.token).await {
                Ok(mut steps) => {
                    let before = self.last_step;
                    let broken = match self.take_steps(&mut steps, screen, &mut said).await? {
                        Ok(outcome) => return Ok(outcome),
                        Err(broken) => broken,
                    };
                    if self.last_step > before {
                        backoff.reset();
                        broken_since = None;
                    }
                    broken
                }
                Err(status) if status.code() == Code::OutOfRange && !self.token.is_empty() => {
                    self.token.clear();
                    continue;
                }
                Err(status) if is_transient(&status) => Break::Lost(status),
                Err(status) => return Err(self.client.refused("follow it")(status)),
            };
            let since = *broken_since.get_or_insert_with(Instant::now);
            if let Break::Lost(status) = broken {
                if since.elapsed() > PATIENCE {
                    return Err(self.client.refused("follow it any longer")(status));
                }
                if !said {
                    screen.say(&format!("the connection to {} was lost; trying again", self.client.server));
                    said = true;
                }
            }
            self.pause(backoff.next_delay(), screen).await;
        }
    }

    /// Waits, repainting meanwhile.
    async fn pause(&self, delay: Duration, screen: &mut Screen<'_>) {
        let until = Instant::now() + delay;
        while Instant::now() < until {
            screen.tick(&self.board, clock::now(), self.begun.elapsed());
            tokio::time::sleep(REPAINT.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }

    async fn take_steps(
        &mut self,
        steps: &mut Steps,
        screen: &mut Screen<'_>,
        said: &mut bool,
    ) -> Result<std::result::Result<Outcome, Break>> {
        let mut repaint = tokio::time::interval(REPAINT);
        repaint.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut reasons = tokio::time::interval_at(Instant::now() + LOOK_FOR_REASONS, LOOK_FOR_REASONS);
        reasons.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                step = steps.next() => match step {
                    Ok(Some((step, token))) => {
                        if std::mem::take(said) {
                            screen.say("connected again");
                        }
                        self.last_step = Instant::now();
                        let whole = self.take(step, screen).await?;
                        if whole {
                            if !token.is_empty() {
                                self.token = token;
                            }
                        } else {
                            // Something could not be read singly: a snapshot has it all.
                            self.token.clear();
                            return Ok(Err(Break::Ended));
                        }
                    }
                    Ok(None) => return Ok(Err(Break::Ended)),
                    Err(status) if status.code() == Code::OutOfRange && !self.token.is_empty() => {
                        self.token.clear();
                        return Ok(Err(Break::Ended));
                    }
                    Err(status) if is_transient(&status) => return Ok(Err(Break::Lost(status))),
                    Err(status) => return Err(self.client.refused("follow it")(status)),
                },
                _ = repaint.tick() => {
                    self.read_singly = 0;
                    screen.tick(&self.board, clock::now(), self.begun.elapsed());
                }
                _ = reasons.tick() => self.look_for_reasons(screen).await?,
            }
            if !self.in_snapshot
                && let Some(outcome) = self.board.outcome()
            {
                screen.end(&self.board, &outcome, clock::now(), self.begun.elapsed())?;
                return Ok(Ok(outcome));
            }
        }
    }

    /// Takes one step; `false` when the board cannot be trusted without a new snapshot.
    async fn take(&mut self, step: Step, screen: &mut Screen<'_>) -> Result<bool> {
        match step {
            Step::Contract(contract) => {
                self.in_snapshot = true;
                screen.contract(&contract)?;
            }
            Step::Tasks(tasks) => {
                for task in &tasks {
                    self.read(task, screen)?;
                }
            }
            Step::SnapshotComplete => self.in_snapshot = false,
            Step::Change(change) => {
                screen.change(&change)?;
                let applied = self.board.change(&change);
                if let Some(happening) = applied.happening {
                    screen.happening(&happening)?;
                }
                if applied.read_again && matches!(self.source, Source::Contract(_)) {
                    return self.read_again(&change.task_id, screen).await;
                }
            }
            Step::Nothing => {}
        }
        Ok(true)
    }

    fn read(&mut self, task: &pb::Task, screen: &mut Screen<'_>) -> Result<()> {
        screen.task(task)?;
        if let Some(happening) = self.board.take(task) {
            screen.happening(&happening)?;
        }
        Ok(())
    }

    async fn read_again(&mut self, task_id: &str, screen: &mut Screen<'_>) -> Result<bool> {
        self.read_singly += 1;
        if self.read_singly > READ_SINGLY {
            return Ok(false);
        }
        let request = timed(pb::GetTaskRequest { task_id: task_id.to_owned() });
        match self.client.tasks().get_task(request).await {
            Ok(response) => {
                if let Some(task) = response.into_inner().task {
                    self.read(&task, screen)?;
                }
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    /// While nothing runs, says what the first pending task waits for, when that is something a person can act on.
    async fn look_for_reasons(&mut self, screen: &mut Screen<'_>) -> Result<()> {
        if self.in_snapshot || self.board.live() > 0 || self.board.count(TaskStatus::Pending) == 0 {
            return Ok(());
        }
        // An answer that does not come is no harm: the next look is in a few seconds.
        let Ok(Ok(tasks)) = tokio::time::timeout(LOOK_FOR_REASONS, self.pending()).await else { return Ok(()) };
        let mut hint = String::new();
        for task in &tasks {
            let told = match task.pending_reason() {
                PendingReason::Unspecified
                | PendingReason::Ready
                | PendingReason::Dependencies
                | PendingReason::Blocked => false,
                PendingReason::NoMatchingDaemon
                | PendingReason::NoFreeSlot
                | PendingReason::ConcurrencyLimit
                | PendingReason::Backoff
                | PendingReason::UsageLimit
                | PendingReason::Held
                | PendingReason::NoDaemon
                | PendingReason::DaemonsNotAccepting
                | PendingReason::PreviousAttempt => true,
            };
            if told && hint.is_empty() {
                let name = task.spec.as_ref().map(|spec| clean(&spec.name)).unwrap_or_default();
                let reason = if task.reason.is_empty() {
                    view::pending_reason(task.pending_reason()).to_lowercase().replace('_', " ")
                } else {
                    clean(&task.reason)
                };
                hint = format!("{name} waits: {reason}");
            }
            if let Some(happening) = self.board.take(task) {
                screen.happening(&happening)?;
            }
        }
        if !hint.is_empty() && hint != self.last_hint {
            screen.say(&hint);
            self.last_hint = hint;
        }
        Ok(())
    }

    async fn pending(&self) -> std::result::Result<Vec<pb::Task>, Status> {
        match self.source {
            Source::Contract(id) => {
                let request = timed(pb::ListTasksRequest {
                    contract_id: id.clone(),
                    statuses: vec![TaskStatus::Pending.into()],
                    page_size: REASONS_READ,
                    include_hidden: true,
                    ..pb::ListTasksRequest::default()
                });
                Ok(self.client.tasks().list_tasks(request).await?.into_inner().tasks)
            }
            Source::Task(id) => {
                let request = timed(pb::GetTaskRequest { task_id: id.clone() });
                Ok(self.client.tasks().get_task(request).await?.into_inner().task.into_iter().collect())
            }
        }
    }
}

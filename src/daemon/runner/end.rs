//! From the end of the agent to the report of it. Whatever has ended it: first nothing of the attempt is alive, then what is
//! left is made a result or kept, then it is said; each can be done again after a crash.

use std::{pin::pin, sync::Arc, time::Duration};

use super::{
    Halt, LEFTOVER_GRACE, Left, Runner, blocking, chain,
    saving::{FINAL_WAIT, Saving},
};
use crate::{
    daemon::{
        agents::End,
        attempt_dir::{EndReason, ExitRecord, Manifest},
        bulk::{Delivered, FileKind},
        checkpoint,
        git::{LOCAL_TIMEOUT, attempt, git},
        journal::{Change, State, Stop, Upload, Why},
        salvage,
        shim::Handle,
        worktree::{self, Look},
    },
    domain::{
        attempt::{Failure, FailureClass, Pack, TaskResult},
        checkpoint::{MAX_BYTES, Reason},
        order::Spawn,
        report::{Complete, InventoryState, Progress, Report},
    },
    runtime::clock,
};

/// From a first look at the worktree of an agent that failed to a second: a directory that is being deleted loses its files one
/// by one, and the agent may miss one before those go that make it a worktree. A checkpoint of the rest would hide what is lost.
const GOING: Duration = Duration::from_millis(100);
/// Looks, as far apart, at a worktree that is not where it was: git may be moving it.
const MOVING_LOOKS: u32 = 3;

/// What follows the end of an agent.
pub(super) enum Next {
    /// The attempt is over, and that is in the journal.
    Over,
    /// The agent was started once more.
    Again(Box<Handle>),
}

impl Runner {
    /// The agent has ended and left its record.
    pub(super) async fn ended(&mut self, spawn: &Spawn, record: ExitRecord) -> Result<Next, Left> {
        let left = self.sweep(Duration::ZERO).await?;
        self.follow_move().await;
        if left > 0 {
            tracing::warn!(left, "processes of the attempt had outlived its shim; they are ended");
        }
        let (progress, end) = match &mut self.tail {
            Some(tail) => {
                tail.read_to(record.output_bytes).await;
                (tail.progress(), tail.end(&record))
            }
            None => (Progress::default(), End::Done),
        };
        let outcome = match (self.wish(), &record.reason, end) {
            (Some(stop), _, _) => Err(stopped(&stop)),
            (None, EndReason::Timeout, _) => Err(timeout(spawn)),
            // Nobody wished it, so it was ended for what had become of its place, before that could be said.
            (None, EndReason::Terminated, _) => Err(self.interruption().await),
            (None, EndReason::Exited | EndReason::StartFailed { .. }, End::Failed(failure)) => {
                Err(self.judged(failure))
            }
            (None, EndReason::Exited | EndReason::StartFailed { .. }, End::ResumeRejected(failure)) => {
                if self.was_rejected() {
                    Err(failure)
                } else {
                    match self.begin_again(spawn, &failure).await {
                        Ok(handle) => return Ok(Next::Again(Box::new(handle))),
                        Err(halt) => return self.halted(halt, spawn).await.map(|()| Next::Over),
                    }
                }
            }
            (None, EndReason::Exited | EndReason::StartFailed { .. }, End::Done) => match self.finish(spawn).await {
                Ok(result) => Ok(result),
                Err(Halt::Shutdown) => return Err(Left),
                Err(Halt::Stopped(stop)) => Err(stopped(&stop)),
                Err(Halt::Failed(failure)) => Err(failure),
            },
        };
        self.report(outcome, progress, Some(&record)).await.map(|()| Next::Over)
    }

    /// Its session was rejected before, and the agent was started again since.
    fn was_rejected(&self) -> bool {
        let again = self.dir.as_ref().is_some_and(|dir| dir.was_started_over());
        again && self.manifest().is_ok_and(|manifest| manifest.rejected)
    }

    /// An agent that meets a full disk says all sorts of things.
    fn judged(&self, failure: Failure) -> Failure {
        match (failure.class, self.context.health.full()) {
            (FailureClass::AgentCrashed | FailureClass::AgentError, Some(full)) => {
                Failure::new(FailureClass::Refused, format!("{full}; the agent ended with: {}", failure.message))
            }
            _ => failure,
        }
    }

    /// Why an agent was ended that nobody wanted to end.
    async fn interruption(&self) -> Failure {
        let place = self.manifest().ok().and_then(|manifest| manifest.place);
        let look = match place {
            Some(place) => blocking(move || worktree::look(&place)).await,
            None => Look::Unknown { why: String::new() },
        };
        match look {
            Look::Broken { what } => Failure::new(FailureClass::WorktreeLost, what),
            Look::Intact { .. } | Look::Unknown { .. } => {
                let full = self.context.health.full();
                let why = full.unwrap_or_else(|| "the daemon interrupted it".to_owned());
                Failure::new(FailureClass::Refused, why)
            }
        }
    }

    /// An end without a result is first a question of the place: an agent whose worktree went from under it may notice that
    /// before the watch does, and says all sorts of things. An end that was wished stays that.
    async fn placed(&self, failure: Failure) -> Failure {
        let place = match self.manifest() {
            Ok(manifest) if self.wish().is_none() && failure.class != FailureClass::WorktreeLost => manifest.place,
            _ => None,
        };
        let Some(place) = place else { return failure };
        let may_be_going = matches!(failure.class, FailureClass::AgentCrashed | FailureClass::AgentError);
        let look = || {
            let place = place.clone();
            blocking(move || worktree::look(&place))
        };
        let mut seen = look().await;
        if may_be_going && matches!(seen, Look::Intact { .. }) {
            tokio::time::sleep(GOING).await;
            seen = look().await;
        }
        let Look::Broken { what } = seen else { return failure };
        tracing::warn!(what, said = failure.message, "the worktree was lost before its agent ended");
        self.context.metrics.worktree_failed();
        Failure::new(FailureClass::WorktreeLost, format!("{what}; the attempt ended with: {}", failure.message))
    }

    /// Where its worktree is lost, what it had committed may still be in the repository, and nobody would look there.
    async fn with_commits(&self, failure: Failure) -> Failure {
        let place = self.manifest().ok().and_then(|manifest| manifest.place);
        let Some(place) = place.filter(|_| failure.class == FailureClass::WorktreeLost) else { return failure };
        let name = format!("refs/heads/{}", place.branch);
        let tip = attempt("read the branch", LOCAL_TIMEOUT, || {
            git(&place.repo.git_dir).args(["rev-parse", "--quiet", "--verify", &name])
        });
        match tip.await {
            Ok(tip) if tip.success() && tip.text() != place.base_commit => {
                let message = format!("{}; what it had committed is on branch {}", failure.message, place.branch);
                Failure { message, ..failure }
            }
            _ => failure,
        }
    }

    /// Commits what is left, sets the result ref, and packs the result where not everybody can reach it. What git has begun it
    /// finishes: only the end of the daemon stops this, and then it is done again.
    async fn finish(&mut self, spawn: &Spawn) -> Result<TaskResult, Halt> {
        let manifest = self.manifest()?;
        let finished = self.patience(worktree::finish(&manifest)).await?.map_err(Failure::from)?;
        let mut warnings = finished.warnings;
        let mut result = finished.result;
        if let (Some(place), Some(dir)) = (&manifest.place, self.dir.clone())
            && !checkpoint::is_elsewhere(place, &result)
        {
            let (file, exclude) = (dir.result_pack(), checkpoint::known_elsewhere(place));
            let packed = checkpoint::pack_result(place, &result.commit, &exclude, &file);
            let packed = self.patience(packed).await?.map_err(Failure::from)?;
            let bytes = i64::try_from(packed.bytes).unwrap_or(i64::MAX);
            if bytes <= MAX_BYTES {
                result.pack = Some(Pack { bytes, sha256: packed.sha256 });
            } else {
                warnings
                    .push(format!("the result has {bytes} bytes, more than a server takes: only this machine has it"));
            }
        }
        let reports: Vec<Report> = warnings.into_iter().map(|message| Report::Warning { message }).collect();
        if !reports.is_empty() {
            self.record(Change { reports, ..Change::default() }).await.map_err(|Left| Halt::Shutdown)?;
        }
        let session = self.session(spawn);
        if self.context.profiles.get(&spawn.agent).is_some_and(|profile| !profile.transcript.is_empty())
            && let Some(saving) = self.saving().await
        {
            // A result has no conversation, and somebody may want to go on with that. It follows the report.
            self.patience(saving.take_last(Reason::End, session)).await?;
        }
        Ok(result)
    }

    /// Keeps what an attempt without a result has made, before its end is reported: whoever tries next finds it.
    async fn keep(&mut self, spawn: &Spawn) -> Result<(), Left> {
        if let Some((saving, reason, session)) = self.work_to_keep(spawn).await {
            self.patience(saving.finally(reason, session)).await.map_err(|_| Left)?;
        }
        Ok(())
    }

    /// What keeps it, why, and with which session; nothing where there is nothing to keep, or nobody to keep it for.
    async fn work_to_keep(&mut self, spawn: &Spawn) -> Option<(Arc<Saving>, Reason, String)> {
        let reason = match self.wish().map(|stop| stop.why) {
            None => Reason::End,
            Some(Why::Cancelled | Why::Fenced) => Reason::Stopping,
            // The server does not know it, or needs nothing of it.
            Some(Why::Salvage | Why::Forgotten) => return None,
        };
        let is_fenced = self.wish().is_some_and(|stop| stop.why == Why::Fenced);
        let worked =
            self.dir.as_ref().is_some_and(|dir| dir.started().is_ok_and(|it| it.is_some())) || spawn.resume.is_some();
        if !worked || !(spawn.final_checkpoint || is_fenced) {
            return None;
        }
        let session = self.session(spawn);
        self.saving().await.map(|saving| (saving, reason, session))
    }

    /// The shim has died under us; its agent may be alive.
    pub(super) async fn shim_died(&mut self) -> Result<(), Left> {
        let left = self.sweep(LEFTOVER_GRACE).await?;
        tracing::warn!(left, "the shim died; what it had started has been ended");
        let failure = match self.wish() {
            Some(stop) => stopped(&stop),
            None => Failure::new(
                FailureClass::AgentCrashed,
                "the process that watched the agent died (killed, or out of memory); the agent was ended",
            ),
        };
        let progress = self.last_progress().await;
        self.report(Err(failure), progress, None).await
    }

    /// After a restart: the agent has gone and left no record.
    pub(super) async fn interrupted(&mut self, spawn: &Spawn) -> Result<(), Left> {
        let left = self.sweep(LEFTOVER_GRACE).await?;
        // What it has said is all that there is to know of it: its session, what it has used.
        let started = self.dir.as_ref().and_then(|dir| dir.started().ok().flatten());
        self.open_tail(spawn, started.map(|started| started.output_start));
        if self.wish().is_some() {
            return self.shim_died().await;
        }
        self.follow_move().await;
        let (place, made) = match self.manifest() {
            Ok(manifest) => (manifest.place.clone(), manifest.made()),
            Err(_) => (None, None),
        };
        let task = self.attempt.task;
        let found = match made {
            Some(made) => blocking(move || worktree::find(&made, task)).await,
            None => None,
        };
        let worktree_intact = found.is_some();
        // Where it was moved to, or else where it was.
        let worktree = found.or(place).map(|place| place.worktree.display().to_string());
        let worktree = worktree.unwrap_or_else(|| self.row.worktree.clone());
        tracing::warn!(left, worktree_intact, worktree, "the agent has gone without a record");
        // The next attempt goes on here, unless this machine goes again before that, or is to take no more work.
        let progress = self.last_progress().await;
        if worktree_intact && let Some((saving, reason, session)) = self.work_to_keep(spawn).await {
            // The next attempt begins after it: one that came later would no longer be what that goes on from. Whoever wants this one to
            // end is heard meanwhile, and whoever looks is told why it takes so long.
            let mut kept = pin!(saving.finally(reason, session));
            let mut done = self.attend(tokio::time::timeout(FINAL_WAIT, kept.as_mut())).await;
            if let Ok(Err(_)) = done {
                let message = "its agent is gone; its work is still on its way to the server".to_owned();
                let reports = vec![Report::Warning { message }];
                self.record(Change { reports, ..Change::default() }).await?;
                done = self.attend(kept).await.map(Ok);
            }
            match done {
                Ok(_) => {}
                Err(Halt::Shutdown | Halt::Failed(_)) => return Err(Left),
                Err(Halt::Stopped(_)) => return self.shim_died().await,
            }
        }
        let detected = Report::RecoveryDetected {
            previous: self.row.state.inventory().unwrap_or(InventoryState::Running),
            worktree_intact,
            worktree: worktree.clone(),
            needs_patch: !worktree_intact,
        };
        let reports = match progress == Progress::default() {
            true => vec![detected],
            false => vec![Report::Progress(progress), detected],
        };
        let change = Change {
            state: Some(State::Interrupted),
            directory: self.dir.as_ref().map(|dir| dir.path().to_owned()),
            worktree: Some(worktree),
            reports,
            ..Change::default()
        };
        self.record(change).await?;
        if let Some(tail) = &mut self.tail {
            tail.close().await;
        }
        Ok(())
    }

    /// A worktree that is not where it was, because git was told to move it, is followed: its agent stands in it wherever it is.
    /// Answers whether it was.
    pub(super) async fn follow_move(&mut self) -> bool {
        let (Some(dir), Ok(manifest)) = (self.dir.clone(), self.manifest()) else { return false };
        let (Some(place), Some(made)) = (manifest.place.clone(), manifest.made()) else { return false };
        let task = self.attempt.task;
        let mut looks = 0;
        let found = loop {
            let (place, made) = (place.clone(), made.clone());
            let found = blocking(move || match worktree::is_intact(&place) {
                true => Some(place),
                false => worktree::find(&made, task),
            });
            match found.await {
                Some(found) => break found,
                // git moves the directory first, and says so then.
                None if looks < MOVING_LOOKS => tokio::time::sleep(GOING).await,
                None => return false,
            }
            looks += 1;
        };
        if found.worktree == place.worktree {
            return false;
        }
        let worktree = found.worktree.display().to_string();
        tracing::warn!(worktree, "the worktree was moved; it is followed there");
        let message = format!("the worktree was moved to {worktree}");
        let moved = Manifest { place: Some(found.clone()), moved_from: Some(made.worktree), ..manifest };
        let saved = moved.clone();
        if let Err(error) = blocking(move || dir.save(&saved)).await {
            tracing::warn!(error = chain(&error), "it cannot be noted where a worktree was moved to");
            return false;
        }
        if let Some(saving) = &self.saving {
            saving.moved(found);
        }
        let reports = self.started_in(&moved).into_iter().chain([Report::Warning { message }]).collect();
        let change = Change { worktree: Some(worktree), reports, ..Change::default() };
        self.record(change).await.is_ok()
    }

    /// The story did not go on.
    pub(super) async fn halted(&mut self, halt: Halt, spawn: &Spawn) -> Result<(), Left> {
        let failure = match halt {
            Halt::Shutdown => return Err(Left),
            Halt::Stopped(stop) => stopped(&stop),
            Halt::Failed(failure) => failure,
        };
        // A setup command, or a git that was given up, may be alive.
        self.sweep(spawn.grace).await?;
        let progress = self.last_progress().await;
        self.report(Err(failure), progress, None).await
    }

    /// Everything that the agent has said.
    async fn last_progress(&mut self) -> Progress {
        match &mut self.tail {
            Some(tail) => {
                tail.read_all().await;
                tail.progress()
            }
            None => Progress::default(),
        }
    }

    /// The end: what became of the attempt, with its state, in one transaction.
    pub(super) async fn report(
        &mut self,
        outcome: Result<TaskResult, Failure>,
        progress: Progress,
        record: Option<&ExitRecord>,
    ) -> Result<(), Left> {
        self.report_with(Vec::new(), outcome, progress, record).await
    }

    /// The end, and before it in the same transaction what has not been said yet; neither where nobody would know what is meant.
    pub(super) async fn report_with(
        &mut self,
        unsaid: Vec<Report>,
        outcome: Result<TaskResult, Failure>,
        progress: Progress,
        record: Option<&ExitRecord>,
    ) -> Result<(), Left> {
        let outcome = match outcome {
            Ok(result) => Ok(result),
            Err(failure) => Err(self.with_commits(self.placed(failure).await).await),
        };
        if outcome.is_err()
            && let Some(spawn) = self.row.spawn.clone()
        {
            self.keep(&spawn).await?;
        }
        let output = match &mut self.tail {
            Some(tail) => tail.close().await,
            None => 0,
        };
        let pack = outcome.as_ref().ok().and_then(|result| result.pack.clone());
        let class = outcome.as_ref().err().map(|failure| failure.class);
        let message = outcome.as_ref().err().map(|failure| failure.message.clone()).unwrap_or_default();
        let complete = Complete {
            outcome,
            progress,
            output_bytes: i64::try_from(output).unwrap_or(i64::MAX),
            exit_code: record.and_then(|record| record.exit_code),
            signal: record.map_or(0, |record| record.signal),
        };
        if let (Some(Why::Salvage), Some(dir)) = (self.wish().map(|stop| stop.why), &self.dir)
            && let Err(error) = salvage::mark(dir, "the server does not know it").await
        {
            tracing::warn!(error = chain(&error), "it cannot be noted that an attempt is salvage");
        }
        let (state, reports) = match self.wish().map(|stop| stop.why) {
            None | Some(Why::Cancelled | Why::Fenced) => {
                (State::Reported, unsaid.into_iter().chain([Report::Complete(complete)]).collect())
            }
            // Nobody there would know what is meant.
            Some(Why::Salvage) => (State::Salvage, Vec::new()),
            Some(Why::Forgotten) => (State::Over, Vec::new()),
        };
        let pack = pack.zip(self.dir.as_ref()).filter(|_| state == State::Reported);
        let upload = pack.map(|(whole, dir)| Upload {
            attempt: self.attempt,
            checkpoint: None,
            path: dir.result_pack(),
            whole,
            about: None,
            created: clock::now(),
        });
        let change = Change {
            state: Some(state),
            directory: self.dir.as_ref().map(|dir| dir.path().to_owned()),
            reports,
            uploads: upload.clone().into_iter().collect(),
            ..Change::default()
        };
        self.record(change).await?;
        if let Some(upload) = upload {
            self.bring(upload);
        }
        match class {
            None => tracing::info!("the attempt has ended with a result"),
            Some(class) => tracing::info!(?class, message, "the attempt has ended without a result"),
        }
        Ok(())
    }
}

impl Runner {
    /// Brings the pack of the result to the server; it stays until it is there.
    fn bring(&self, upload: Upload) {
        let Upload { attempt, path, whole, .. } = upload;
        let mut delivery = self.context.bulk.file(attempt, FileKind::Result, path, whole, None);
        let dir = self.dir.clone();
        let soft = self.context.shutdown.soft.clone();
        self.context.shutdown.spawn(async move {
            tokio::select! {
                () = soft.cancelled() => {}
                outcome = delivery.outcome() => if let (Delivered::Stored, Some(dir)) = (outcome, dir)
                    && let Err(error) = blocking(move || dir.delivered()).await
                {
                    tracing::warn!(error = chain(&error), "it cannot be noted that a result was delivered");
                }
            }
        });
    }
}

pub(super) fn stopped(stop: &Stop) -> Failure {
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

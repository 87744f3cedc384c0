//! What daemons say, and what time says about them: attaching, answering, reporting, going quiet.

use std::time::Duration;

use super::{
    op::{Attach, Error, Op, Reply},
    work::Work,
};
use crate::{
    domain::{
        AttemptId, AttemptRef, DaemonId, Epoch, OwnerId, TaskId,
        attempt::{
            Attempt, AttemptEvent, AttemptState, AttemptStatus, AttemptStep, Failure, FailureClass, MAX_WARNINGS,
            TaskResult, Usage,
        },
        checkpoint::{Checkpoint, Here, MAX_CHAIN, Origin},
        daemon::Daemon,
        order::{Answer, Command, OrderKind},
        reconcile::reconcile,
        report::{Complete, Message, MessageOutcome, Progress, Report},
        task::{Task, TaskStatus},
        transition::{Refused, TaskEvent},
    },
    server::{blobs::Blobs, task_keys::TaskKeys},
};

/// On a live session, a command has this long to be answered.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);

impl Work {
    /// Does what a daemon, or time, asks. `attached` tells which sessions are open here.
    pub(super) fn machine(
        &mut self,
        op: &Op,
        attached: &dyn Fn(DaemonId) -> bool,
        keys: &TaskKeys,
    ) -> Result<Reply, Error> {
        match op {
            Op::Attach(attach) => self.attach(attach, keys),
            Op::Ready { daemon, epoch } => {
                self.current(*daemon, *epoch)?;
                self.look = true;
                Ok(Reply::Done)
            }
            Op::Accepting { daemon, epoch, not_accepting } => {
                let mut found = self.current(*daemon, *epoch)?.clone();
                if found.card.not_accepting != *not_accepting {
                    found.card.not_accepting.clone_from(not_accepting);
                    self.daemons.set(*daemon, found);
                    self.look = true;
                }
                Ok(Reply::Done)
            }
            Op::Seen(seen) => {
                for (daemon, epoch, at) in seen {
                    if let Ok(found) = self.current(*daemon, *epoch) {
                        let found = Daemon { last_seen: found.last_seen.max(*at), attached: true, ..found.clone() };
                        self.daemons.set(*daemon, found);
                    }
                }
                Ok(Reply::Done)
            }
            Op::Answered { daemon, epoch, attempt, of, sequence, answer } => {
                self.current(*daemon, *epoch)?;
                self.answered(*daemon, *attempt, *of, *sequence, answer);
                Ok(Reply::Done)
            }
            Op::Message { daemon, message } => Ok(Reply::Message(self.message(*daemon, message))),
            Op::CheckpointStored(checkpoint) => self.checkpoint_stored(checkpoint),
            Op::ResultStored { attempt, blob } => self.result_stored(*attempt, blob),
            Op::DaemonLost { daemon, epoch } => {
                self.daemon_lost(*daemon, *epoch)?;
                Ok(Reply::Done)
            }
            Op::Sweep => {
                self.sweep(attached);
                Ok(Reply::Swept { next: self.next_due, more: self.more })
            }
            _ => Err(Error::Precondition("not for daemons".to_owned())),
        }
    }

    /// The daemon, if this is its current session.
    fn current(&self, daemon: DaemonId, epoch: Epoch) -> Result<&Daemon, Error> {
        self.daemons.get(daemon).filter(|daemon| daemon.epoch == epoch).ok_or(Error::StaleSession(epoch))
    }

    // === attaching ===

    fn attach(&mut self, attach: &Attach, keys: &TaskKeys) -> Result<Reply, Error> {
        let hello = &attach.hello;
        let id = hello.daemon;
        let known = self.daemons.get(id).cloned();
        if known.as_ref().is_some_and(|known| known.owner != attach.owner) {
            return Err(Error::Forbidden(format!(
                "daemon {id} belongs to another owner; give this one its own state directory"
            )));
        }
        // Where nothing is live nothing can be harmed, and a journal that was put back from a copy is taken as it is. An open
        // session can: it would be superseded, and its daemon told to stop, by a word of the daemon's own past.
        if let Some(known) = &known {
            let overtaken = known.is_overtaken(hello);
            let live = || self.attempts.values().any(|attempt| attempt.daemon == id && attempt.is_live());
            if (overtaken && known.attached) || ((overtaken || known.is_older(hello)) && live()) {
                return Err(Error::StaleSession(known.epoch));
            }
        }
        self.claim_name(attach.owner, id, &hello.card.name)?;
        let daemon = Daemon {
            id,
            owner: attach.owner,
            key: attach.key,
            card: hello.card.clone(),
            epoch: Epoch(known.as_ref().map_or(0, |known| known.epoch.0) + 1),
            attached: true,
            draining: known.as_ref().is_some_and(|known| known.draining),
            last_command: known.as_ref().map_or(0, |known| known.last_command).max(hello.last_command),
            journal: Some(hello.journal),
            persisted: hello.last_command,
            attach: hello.attach,
            created: known.as_ref().map_or(self.now, |known| known.created),
            last_seen: self.now,
        };
        let epoch = daemon.epoch;
        match known {
            Some(_) => self.daemons.set(id, daemon),
            None => self.daemons.insert(id, daemon),
        }
        self.fence_replaced(id);
        let expected: Vec<_> = self.attempts.values().filter(|attempt| attempt.daemon == id).cloned().collect();
        let reconciled = reconcile(id, attach.owner, &expected, &hello.inventory);
        for reference in &reconciled.revived {
            self.revive(*reference);
        }
        for reference in &reconciled.accepted {
            self.attempt_event(reference.id, &AttemptEvent::Accepted);
        }
        for reference in &reconciled.interrupted {
            let failure =
                Failure::new(FailureClass::WorktreeLost, "the daemon came back without knowing of this attempt");
            let usage = self.used_by(reference.id);
            self.attempt_failed(*reference, failure, &usage, false, None);
        }
        for (reference, intact, worktree) in &reconciled.recovered {
            self.recovered(*reference, *intact, worktree);
        }
        for reference in &reconciled.gone {
            self.attempt_cancelled(*reference);
        }
        let unanswered = self.unanswered_by(id, epoch, keys);
        self.look = true;
        Ok(Reply::Attached { epoch, verdicts: reconciled.verdicts, unanswered })
    }

    /// What a daemon that has attached is told again, in order.
    fn unanswered_by(&self, daemon: DaemonId, epoch: Epoch, keys: &TaskKeys) -> Vec<Command> {
        let rows = self.unanswered.get(&daemon).into_iter().flatten();
        let rows = rows.filter(|command| !self.commands_gone.contains(&(daemon, command.sequence))).cloned();
        let attempts = self.attempts.values().filter(|attempt| attempt.daemon == daemon);
        let spawns = attempts.filter_map(|attempt| self.spawn(attempt, epoch, keys));
        let mut unanswered: Vec<_> = rows.chain(spawns).collect();
        unanswered.sort_by_key(|command| command.sequence);
        unanswered
    }

    /// One name, one daemon. A daemon that lost its state directory comes back under its old name with a new id: the old one
    /// steps aside, unless it is here.
    fn claim_name(&mut self, owner: OwnerId, id: DaemonId, name: &str) -> Result<(), Error> {
        let key = (owner, name.to_owned());
        let holder = self.names_taken.get(&key).copied().filter(|holder| *holder != id);
        let holder = holder.and_then(|holder| self.daemons.get(holder).cloned());
        if let Some(mut holder) = holder.filter(|holder| holder.card.name == name) {
            if holder.attached {
                let text =
                    format!("daemon name `{name}` is taken by a daemon that is attached; choose another with --name");
                return Err(Error::Exists(text));
            }
            holder.card.name = format!("{name}~{}", holder.id.short());
            self.daemons.set(holder.id, holder);
        }
        self.names_taken.insert(key, id);
        Ok(())
    }

    /// Attempts that were given up can be revived only while their task still waits for its next attempt.
    fn fence_replaced(&mut self, daemon: DaemonId) {
        let given_up = self.attempts.values().filter(|a| a.daemon == daemon && !a.is_live() && !a.fenced);
        let replaced: Vec<_> = given_up.filter(|attempt| !self.waits_for(attempt)).map(|attempt| attempt.id).collect();
        for id in replaced {
            if let Some(attempt) = self.attempts.get_mut(id) {
                attempt.fenced = matches!(&attempt.state, AttemptState::Ended { outcome: Err(failure), .. }
                    if failure.class == FailureClass::DaemonLost);
            }
        }
    }

    /// The attempt was given up because its daemon was lost, and nothing has followed for its task.
    fn waits_for(&self, attempt: &Attempt) -> bool {
        self.tasks.get(attempt.task).is_some_and(|task| {
            task.attempt == attempt.number
                && matches!(task.status(), TaskStatus::Pending | TaskStatus::Failed)
                && task.tries.last_failure.as_ref().is_some_and(|failure| failure.class == FailureClass::DaemonLost)
        })
    }

    /// The daemon of a disconnected attempt is back, and has it.
    fn revive(&mut self, reference: AttemptRef) {
        let now = self.now;
        if let AttemptStep::Moved(attempt) = self.attempt_event(reference.id, &AttemptEvent::Revived) {
            if attempt.state.status() == AttemptStatus::Assigned
                && let Some(attempt) = self.attempts.get_mut(reference.id)
            {
                attempt.answer_by(now.after(ANSWER_WITHIN));
            }
            let running = attempt.state.status() == AttemptStatus::Running;
            if !attempt.fenced {
                // Refused only where a newer attempt has its place, and then it is fenced.
                let _ = self.task_event(
                    reference.task,
                    &TaskEvent::Revived { attempt: reference.number, running, usage: attempt.usage.clone() },
                    &format!("daemon:{}", attempt.daemon),
                );
            }
        }
    }

    // === answers ===

    fn answered(&mut self, daemon: DaemonId, reference: AttemptRef, of: OrderKind, sequence: i64, answer: &Answer) {
        // An order to start is no row, but for those that programs before 0010 have made.
        let is_row = |attempt: &Attempt| attempt.commands.contains(&sequence);
        if of != OrderKind::Spawn || self.attempts.get(reference.id).is_some_and(is_row) {
            self.commands_gone.insert((daemon, sequence));
        }
        if let Some(daemon) = self.daemons.get_mut(daemon)
            && *answer == Answer::Persisted
        {
            daemon.persisted = daemon.persisted.max(sequence);
        }
        if let Some(attempt) = self.attempts.get_mut(reference.id) {
            attempt.commands.retain(|command| *command != sequence);
        }
        let Some(attempt) = self.attempt_named(reference).filter(|attempt| attempt.daemon == daemon) else { return };
        match (of, answer) {
            (OrderKind::Spawn, Answer::Persisted) => {
                self.attempt_event(reference.id, &AttemptEvent::Accepted);
            }
            (OrderKind::Cancel | OrderKind::Checkpoint, Answer::Persisted)
            | (OrderKind::Checkpoint, Answer::Rejected { .. }) => {}
            // It does not know the attempt that was to be ended: then nothing of it is left there.
            (OrderKind::Cancel, Answer::Rejected { .. }) => self.attempt_cancelled(reference),
            (OrderKind::Spawn, Answer::Rejected { .. }) if attempt.fenced => self.attempt_cancelled(reference),
            (OrderKind::Spawn, Answer::Rejected { reason, retryable, counts }) => {
                let class = if *counts { FailureClass::SetupFailed } else { FailureClass::Refused };
                let failure = Failure::new(class, reason.clone());
                self.attempt_failed(reference, failure, &Usage::default(), !retryable, None);
            }
        }
    }

    // === reports ===

    fn message(&mut self, daemon: DaemonId, message: &Message) -> MessageOutcome {
        let reference = message.attempt;
        let named = self.attempt_named(reference).filter(|attempt| attempt.daemon == daemon);
        let Some(attempt) = named.and_then(|attempt| self.attempts.share(attempt.id)) else {
            return MessageOutcome::Fenced;
        };
        let actor = format!("daemon:{daemon}");
        match &message.report {
            Report::Started { worktree, branch, base_commit, agent_version, restored } => {
                match self.attempt_event(reference.id, &AttemptEvent::Started) {
                    AttemptStep::Over => return MessageOutcome::Fenced,
                    AttemptStep::Moved(_) | AttemptStep::Already => {}
                }
                if let Some(attempt) = self.attempts.get_mut(reference.id) {
                    attempt.worktree.clone_from(worktree);
                    attempt.branch.clone_from(branch);
                    attempt.base_commit.clone_from(base_commit);
                    attempt.agent_version.clone_from(agent_version);
                    // Not what it was told to go on from, if that could not be had.
                    if let Some(id) = *restored {
                        attempt.origin = Origin::Checkpoint { id };
                    }
                }
                if attempt.fenced {
                    return MessageOutcome::Fenced;
                }
                let other = |task: &Task| task.attempt == reference.number && task.branch != *branch;
                if self.tasks.get(reference.task).is_some_and(other)
                    && let Some(task) = self.tasks.get_mut(reference.task)
                {
                    task.branch.clone_from(branch);
                }
                let moved = self.task_event(reference.task, &TaskEvent::Started { attempt: reference.number }, &actor);
                judged(&moved)
            }
            // What was said of its end counts; where others ended it, what it had used by its last word, which may be late.
            Report::Progress(progress) if !attempt.is_live() => {
                if is_ended_by_others(&attempt) {
                    let all = attempt.usage.max(&progress.usage);
                    self.count_usage(reference.task, &all.minus(&attempt.usage));
                    self.progressed(reference, progress);
                }
                MessageOutcome::AlreadyApplied
            }
            Report::Progress(progress) => {
                self.progressed(reference, progress);
                MessageOutcome::Applied
            }
            Report::Warning { message } => {
                let Some(attempt) = self.attempts.get_mut(reference.id) else { return MessageOutcome::Fenced };
                if attempt.warnings.contains(message) {
                    return MessageOutcome::AlreadyApplied;
                }
                if attempt.warnings.len() < MAX_WARNINGS {
                    attempt.warnings.push(message.clone());
                }
                if let Some(task) = self.tasks.share(reference.task) {
                    self.log_task(&task, "task.warning", vec!["warnings"], &actor, message.clone());
                }
                MessageOutcome::Applied
            }
            Report::CheckpointFailed { message } => {
                let now = self.now;
                let Some(attempt) = self.attempts.get_mut(reference.id) else { return MessageOutcome::Fenced };
                attempt.checkpoint_failed = Some((now, message.clone()));
                if let Some(task) = self.tasks.share(reference.task) {
                    let changed = vec!["checkpoint_error"];
                    self.log_task(&task, "task.checkpoint_failed", changed, &actor, message.clone());
                }
                MessageOutcome::Applied
            }
            Report::Complete(complete) => self.complete(reference, complete, &actor),
            Report::RecoveryDetected { worktree_intact, worktree, .. } => {
                if !attempt.is_live() && *worktree_intact && !attempt.fenced && self.waits_for(&attempt) {
                    // Given up, not replaced, and its work is there.
                    self.revive(reference);
                } else if !attempt.is_live() {
                    return MessageOutcome::AlreadyApplied;
                }
                if attempt.fenced {
                    self.attempt_cancelled(reference);
                    return MessageOutcome::Fenced;
                }
                self.recovered(reference, *worktree_intact, worktree);
                MessageOutcome::Applied
            }
        }
    }

    fn complete(&mut self, reference: AttemptRef, complete: &Complete, actor: &str) -> MessageOutcome {
        let Some(before) = self.attempts.share(reference.id) else { return MessageOutcome::Fenced };
        if let AttemptState::Ended { outcome: Err(failure), .. } = &before.state
            && failure.class == FailureClass::DaemonLost
            && !before.fenced
            && self.waits_for(&before)
        {
            // Given up, not replaced, and here is its result: it counts.
            self.revive(reference);
        }
        if let (AttemptState::Ended { outcome: Ok(made), .. }, Ok(again)) = (&before.state, &complete.outcome)
            && made.is_same(again)
        {
            return MessageOutcome::AlreadyApplied;
        }
        let outcome = &self.with_pack(&before, &complete.outcome);
        let event = match outcome {
            Ok(result) if result.is_awaited() && !before.fenced => AttemptEvent::Finalizing { result: result.clone() },
            _ => AttemptEvent::Ended { outcome: outcome.clone() },
        };
        match self.attempt_event(reference.id, &event) {
            AttemptStep::Already => return MessageOutcome::AlreadyApplied,
            AttemptStep::Over => return MessageOutcome::Fenced,
            AttemptStep::Moved(_) => {}
        }
        if let Some(attempt) = self.attempts.get_mut(reference.id) {
            attempt.usage = complete.progress.usage.clone();
            attempt.output_bytes = complete.output_bytes;
            if !complete.progress.agent_session_id.is_empty() {
                attempt.agent_session_id.clone_from(&complete.progress.agent_session_id);
            }
            if !complete.progress.last_message.is_empty() {
                attempt.last_message.clone_from(&complete.progress.last_message);
            }
        }
        if before.fenced {
            self.count_usage(reference.task, &before.uncounted(&complete.progress.usage));
            self.attempt_gone(reference.task, reference.number, actor);
            return if outcome.is_ok() { MessageOutcome::Fenced } else { MessageOutcome::Applied };
        }
        let usage = before.uncounted(&complete.progress.usage);
        let attempt = reference.number;
        match outcome {
            Ok(result) => {
                let completed = TaskEvent::Completed { attempt, result: result.clone(), usage: usage.clone() };
                let moved = self.end_event(reference.task, &completed, actor, &usage);
                if moved.is_ok() && !result.is_awaited() {
                    let stored = TaskEvent::ResultStored { attempt, blob: result.blob.clone() };
                    // Not refused: the task has just become FINALIZING.
                    let _ = self.task_event(reference.task, &stored, "server");
                }
                judged(&moved)
            }
            Err(failure) => {
                let event = self.failed_event(reference, &before.daemon, failure.clone(), usage.clone(), false, None);
                judged(&self.end_event(reference.task, &event, actor, &usage))
            }
        }
    }

    /// The outcome with the blob of its pack, if the server has that already: an upload may be faster than a report.
    fn with_pack(&self, attempt: &Attempt, outcome: &Result<TaskResult, Failure>) -> Result<TaskResult, Failure> {
        let mut outcome = outcome.clone();
        if let Ok(result) = &mut outcome
            && let Some(pack) = &result.pack
        {
            let name = Blobs::result_name(attempt.owner, attempt.id, &pack.sha256);
            if self.packs.contains(&name) {
                result.blob = name;
            }
        }
        outcome
    }

    // === work that has arrived ===

    /// The pack of a result is here. Whoever does not wait for it by now finds it when the report comes.
    fn result_stored(&mut self, reference: AttemptRef, blob: &str) -> Result<Reply, Error> {
        let Some(attempt) = self.attempt_named(reference) else { return Ok(Reply::Done) };
        let mut state = &attempt.state;
        while let AttemptState::Disconnected { was, .. } = state {
            state = was;
        }
        let AttemptState::Finalizing { result, .. } = state else {
            // Given up while the result was on its way, and not replaced: the daemon must not forget it before it has
            // attached and said again what it made.
            if !attempt.is_live() && !attempt.fenced && self.waits_for(attempt) {
                let text = "its daemon was lost meanwhile; attach, report it again, and repeat this";
                return Err(Error::Precondition(text.to_owned()));
            }
            return Ok(Reply::Done);
        };
        let expected = result.pack.as_ref().map(|pack| Blobs::result_name(attempt.owner, attempt.id, &pack.sha256));
        if expected.as_deref() != Some(blob) {
            return Ok(Reply::Done);
        }
        let result = TaskResult { blob: blob.to_owned(), ..result.clone() };
        let fenced = attempt.fenced;
        self.attempt_event(reference.id, &AttemptEvent::Ended { outcome: Ok(result) });
        if fenced {
            self.attempt_gone(reference.task, reference.number, "server");
            return Ok(Reply::Done);
        }
        let stored = TaskEvent::ResultStored { attempt: reference.number, blob: blob.to_owned() };
        // Refused only if the task is no longer in this attempt's hands.
        let _ = self.task_event(reference.task, &stored, "server");
        Ok(Reply::Done)
    }

    /// A checkpoint is here.
    fn checkpoint_stored(&mut self, checkpoint: &Checkpoint) -> Result<Reply, Error> {
        let reference = checkpoint.attempt;
        if self.checkpoints.contains_key(&checkpoint.id) {
            return Ok(Reply::Done);
        }
        let Some(attempt) = self.attempt_named(reference).filter(|attempt| attempt.owner == checkpoint.owner) else {
            return Err(Error::NotFound { kind: "attempt", id: reference.id.to_string() });
        };
        let (contract, daemon) = (attempt.contract, attempt.daemon);
        let mut chain = match checkpoint.about.base {
            None => Vec::new(),
            Some(base) => match self.checkpoints.get(&base).filter(|base| base.owner == checkpoint.owner) {
                Some(base) if base.chain.len() < MAX_CHAIN => base.chain.clone(),
                Some(_) => return Err(Error::Precondition(format!("a chain has at most {MAX_CHAIN} links"))),
                None => return Err(Error::Precondition("it builds on a checkpoint that is not kept".to_owned())),
            },
        };
        chain.extend(checkpoint.chain.last().cloned());
        let now = self.now;
        let newest =
            self.attempts.get_mut(reference.id).is_some_and(|attempt| attempt.checkpointed(checkpoint.id, now));
        if newest {
            let event = TaskEvent::Checkpointed { attempt: reference.number, checkpoint: checkpoint.id };
            // Refused also where the task is done: then it is kept beside the result.
            let _ = self.task_event(reference.task, &event, &format!("daemon:{daemon}"));
        }
        let orphan = self.tasks.get(reference.task).is_none_or(|task| !task.follows(reference.number));
        if orphan && let Some(task) = self.tasks.share(reference.task) {
            let why = match task.attempt == reference.number {
                true => "from which the next one does not go on",
                false => "whose place is taken",
            };
            let detail = format!("kept of attempt {}, {why}: {}", reference.number, checkpoint.id);
            self.log_task(&task, "task.orphan_kept", Vec::new(), &format!("daemon:{daemon}"), detail);
        }
        let stored = Checkpoint { contract, daemon, chain, orphan, stored: now, ..checkpoint.clone() };
        self.checkpoints_new.push(stored.id);
        self.checkpoints.insert(stored.id, stored);
        Ok(Reply::Done)
    }

    /// The daemon is back, and the agent is gone. Where its worktree is intact the next attempt goes on in it.
    fn recovered(&mut self, reference: AttemptRef, intact: bool, worktree: &str) {
        let Some(daemon) = self.attempts.get(reference.id).map(|attempt| attempt.daemon) else { return };
        let (class, state) = match intact {
            true => (FailureClass::Recovered, "intact"),
            false => (FailureClass::WorktreeLost, "gone or damaged"),
        };
        let text = format!("the agent was gone when its daemon came back; its worktree {worktree} is {state}");
        let here = intact.then(|| Here { attempt: reference, daemon, worktree: worktree.to_owned() });
        let usage = self.used_by(reference.id);
        self.attempt_failed(reference, Failure::new(class, text), &usage, false, here);
    }

    /// What an attempt that says no more had used by its last word, as far as its task does not count it yet.
    pub(super) fn used_by(&self, id: AttemptId) -> Usage {
        self.attempts.get(id).map(|attempt| attempt.uncounted(&attempt.usage)).unwrap_or_default()
    }

    /// The end of an attempt: what it has used counts, also where its task does not move with it.
    fn end_event(&mut self, task: TaskId, event: &TaskEvent, actor: &str, usage: &Usage) -> Result<bool, Refused> {
        let moved = self.task_event(task, event, actor);
        if !matches!(moved, Ok(true)) {
            self.count_usage(task, usage);
        }
        moved
    }

    /// Counts for a task what an attempt has used with whose end it does not move.
    pub(super) fn count_usage(&mut self, task: TaskId, usage: &Usage) {
        if *usage != Usage::default()
            && let Some(task) = self.tasks.get_mut(task)
        {
            task.usage = task.usage.plus(usage);
            task.version += 1;
            task.updated = self.now;
        }
    }

    /// What an agent has said last. What it uses only grows: an output that has lost its end says less than was heard.
    fn progressed(&mut self, reference: AttemptRef, progress: &Progress) {
        let Some(attempt) = self.attempts.get_mut(reference.id) else { return };
        if !progress.agent_session_id.is_empty() {
            attempt.agent_session_id.clone_from(&progress.agent_session_id);
        }
        attempt.usage = attempt.usage.max(&progress.usage);
        attempt.last_message.clone_from(&progress.last_message);
    }

    // === ends ===

    fn failed_event(
        &mut self,
        reference: AttemptRef,
        daemon: &DaemonId,
        failure: Failure,
        usage: Usage,
        finally: bool,
        here: Option<Here>,
    ) -> TaskEvent {
        let task = self.tasks.get(reference.task);
        let contract = task.and_then(|task| self.contracts.get(task.contract));
        let own = task.and_then(|task| task.spec.limits.max_retries);
        let max_retries = own.or(contract.map(|contract| contract.limits.max_retries)).unwrap_or(0);
        let jitter = self.dice.fraction();
        TaskEvent::AttemptFailed {
            attempt: reference.number,
            failure,
            daemon: *daemon,
            usage,
            max_retries,
            jitter,
            finally,
            here,
        }
    }

    /// Ends an attempt without a result, and judges what follows for its task.
    fn attempt_failed(
        &mut self,
        reference: AttemptRef,
        failure: Failure,
        usage: &Usage,
        finally: bool,
        here: Option<Here>,
    ) {
        let Some(attempt) = self.attempts.share(reference.id) else { return };
        let ended = AttemptEvent::Ended { outcome: Err(failure.clone()) };
        if let AttemptStep::Moved(_) = self.attempt_event(reference.id, &ended) {
            if attempt.fenced {
                self.count_usage(reference.task, usage);
                self.attempt_gone(reference.task, reference.number, "server");
                return;
            }
            let event = self.failed_event(reference, &attempt.daemon, failure, usage.clone(), finally, here);
            let actor = format!("daemon:{}", attempt.daemon);
            // Refused only if the task is no longer in this attempt's hands; then nothing follows.
            let _ = self.end_event(reference.task, &event, &actor, usage);
        }
    }

    /// An attempt that was to end has: nothing follows for its task but that it may go on.
    fn attempt_cancelled(&mut self, reference: AttemptRef) {
        let failure = Failure::new(FailureClass::Cancelled, "ended as asked");
        let usage = self.used_by(reference.id);
        if let AttemptStep::Moved(_) = self.attempt_event(reference.id, &AttemptEvent::Ended { outcome: Err(failure) })
        {
            self.count_usage(reference.task, &usage);
        }
        self.attempt_gone(reference.task, reference.number, "server");
    }

    // === time ===

    fn daemon_lost(&mut self, id: DaemonId, epoch: Epoch) -> Result<(), Error> {
        let daemon = Daemon { attached: false, ..self.current(id, epoch)?.clone() };
        let name = daemon.card.name.clone();
        self.daemons.set(id, daemon);
        let live: Vec<_> = self.attempts.values().filter(|a| a.daemon == id && a.is_live()).cloned().collect();
        for attempt in live {
            let rerun_after = self.contracts.get(attempt.contract).map(|contract| contract.limits.rerun_after);
            let rerun_at = self.now.after(rerun_after.unwrap_or_default());
            self.attempt_event(attempt.id, &AttemptEvent::Lost { rerun_at });
            if attempt.fenced {
                self.attempt_gone(attempt.task, attempt.number, "server");
            } else if let Some(task) = self.tasks.share(attempt.task) {
                let detail =
                    format!("daemon {name} has gone quiet; the task is tried elsewhere if it does not come back");
                self.log_task(&task, "task.disconnected", vec!["attempt"], "server", detail);
            }
        }
        Ok(())
    }

    fn sweep(&mut self, attached: &dyn Fn(DaemonId) -> bool) {
        for id in std::mem::take(&mut self.due_tasks) {
            // `Already` where something else has moved it meanwhile.
            let _ = self.task_event(id, &TaskEvent::WaitOver, "server");
        }
        for id in std::mem::take(&mut self.due_attempts) {
            let Some(attempt) = self.attempts.share(id) else { continue };
            match &attempt.state {
                AttemptState::Assigned { answer_by, .. } if *answer_by <= self.now => {
                    if attached(attempt.daemon) {
                        self.not_answered(attempt.reference());
                    } else if let Some(attempt) = self.attempts.get_mut(id) {
                        // No session, no answer: whether the daemon is lost is decided by its silence.
                        attempt.answer_by(self.now.after(ANSWER_WITHIN));
                    }
                }
                AttemptState::Disconnected { rerun_at, .. } if *rerun_at <= self.now => {
                    let text = format!("daemon {} did not come back in time", self.daemon_name(attempt.daemon));
                    let failure = Failure::new(FailureClass::DaemonLost, text);
                    let usage = self.used_by(id);
                    self.attempt_failed(attempt.reference(), failure, &usage, false, None);
                }
                _ => {}
            }
        }
        for (contract, tasks) in std::mem::take(&mut self.cancelling) {
            let Some(cancelled) = self.contracts.get(contract).and_then(|c| c.cancelled.clone()) else { continue };
            let event = TaskEvent::Cancel { by: cancelled.by.clone(), reason: cancelled.reason.clone() };
            for task in tasks {
                if self.tasks.get(task).is_some_and(|task| !task.status().is_final()) {
                    // Not refused: the task is not final.
                    let _ = self.cancel_one(task, &event, &cancelled.reason, &cancelled.by);
                }
            }
        }
    }

    /// The daemon said nothing to a command in time. It may still have started: the attempt is fenced, and its slot is held
    /// until the daemon says that nothing of it is left.
    fn not_answered(&mut self, reference: AttemptRef) {
        let Some(attempt) = self.attempts.share(reference.id) else { return };
        let failure = Failure::new(FailureClass::Refused, "the daemon did not answer in time");
        let event = self.failed_event(reference, &attempt.daemon, failure, Usage::default(), false, None);
        let _ = self.task_event(reference.task, &event, "server");
        self.end_attempt(reference.id, "not answered in time");
    }
}

/// Its daemon has not said how it ended, and may not have said all of it.
fn is_ended_by_others(attempt: &Attempt) -> bool {
    use FailureClass::{DaemonLost, Recovered, WorktreeLost};
    let AttemptState::Ended { outcome: Err(failure), .. } = &attempt.state else { return false };
    matches!(failure.class, DaemonLost | WorktreeLost | Recovered)
}

fn judged(moved: &Result<bool, Refused>) -> MessageOutcome {
    match moved {
        Ok(true) => MessageOutcome::Applied,
        Ok(false) => MessageOutcome::AlreadyApplied,
        Err(_) => MessageOutcome::Fenced,
    }
}

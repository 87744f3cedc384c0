//! Takes commands in: checks, writes them to the journal, answers, and only then lets them be done.
//!
//! It outlives the session that a command came with: what the journal has accepted is started, whether the server has heard
//! so or not. Whatever came while the last commit was in flight shares the next one.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Context, journal::Accepted, runner::chain, supervisor};
use crate::{
    domain::{
        CommandId, daemon,
        order::{Answer, Command, Order, Spawn},
    },
    runtime::clock,
};

/// Commands waiting to be written: more than a server sends before it is answered.
const QUEUE: usize = 1_024;
/// Commands of one commit.
const BATCH: usize = 256;

/// Which command was answered, and how.
pub type Answered = (i64, CommandId, Answer);

/// Where commands go. Clones share it.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Taken>);

/// A command, and where its answer goes.
#[derive(Debug)]
pub struct Taken {
    command: Command,
    answers: mpsc::UnboundedSender<Answered>,
}

/// The handle, and what the loop listens to.
pub fn new() -> (Handle, mpsc::Receiver<Taken>) {
    let (commands, inbox) = mpsc::channel(QUEUE);
    (Handle(commands), inbox)
}

impl Handle {
    /// Takes a command; its answer comes when it is in the journal, or refused.
    pub async fn take(&self, command: Command, answers: mpsc::UnboundedSender<Answered>) {
        // The loop ends only with the daemon.
        let _ = self.0.send(Taken { command, answers }).await;
    }
}

/// Runs until the daemon stops.
pub(super) async fn run(context: Arc<Context>, supervisor: supervisor::Handle, mut inbox: mpsc::Receiver<Taken>) {
    let soft = context.shutdown.soft.clone();
    let mut batch = Vec::new();
    loop {
        let taken = tokio::select! {
            biased;
            () = soft.cancelled() => return,
            taken = inbox.recv_many(&mut batch, BATCH) => taken,
        };
        if taken == 0 {
            // There will be no further session; the daemon is about to stop.
            soft.cancelled().await;
            return;
        }
        take(&context, &supervisor, std::mem::take(&mut batch)).await;
    }
}

async fn take(context: &Context, supervisor: &supervisor::Handle, batch: Vec<Taken>) {
    let mut accepted = Vec::with_capacity(batch.len());
    for taken in batch {
        match refusal(context, &taken.command).await {
            Some(reason) => {
                tracing::warn!(attempt = %taken.command.attempt, reason, "refused a command");
                answer(context, &taken, Answer::Rejected { reason, retryable: true, counts: false });
            }
            None => accepted.push(taken),
        }
    }
    if accepted.is_empty() {
        return;
    }
    let commands: Vec<Command> = accepted.iter().map(|taken| taken.command.clone()).collect();
    let now = clock::now();
    let outcomes = match context.journal.accept(commands, now).await {
        Ok(outcomes) => outcomes,
        Err(error) => {
            tracing::error!(error = chain(&error), "the journal cannot be written; no commands are taken");
            let reason = format!("the daemon cannot write its journal: {}", chain(&error));
            for taken in &accepted {
                answer(context, taken, Answer::Rejected { reason: reason.clone(), retryable: true, counts: false });
            }
            return;
        }
    };
    let (mut new, mut known) = (Vec::with_capacity(accepted.len()), Vec::new());
    for (taken, outcome) in accepted.into_iter().zip(outcomes) {
        match outcome {
            Accepted::New => {
                if let Some(hollow) = context.hollow.as_ref().filter(|_| matches!(taken.command.order, Order::Spawn(_)))
                {
                    hollow.begun(taken.command.attempt);
                }
                answer(context, &taken, Answer::Persisted);
                new.push(taken.command);
            }
            Accepted::Known => {
                answer(context, &taken, Answer::Persisted);
                // A server whose database was put back from a copy orders what may be over here.
                if matches!(taken.command.order, Order::Spawn(_)) {
                    known.push(taken.command.attempt);
                }
            }
            Accepted::Conflict => {
                let reason = format!("command {} was here before with other content", taken.command.id);
                tracing::error!(attempt = %taken.command.attempt, reason, "refused a command");
                answer(context, &taken, Answer::Rejected { reason, retryable: false, counts: true });
            }
        }
    }
    supervisor.accepted(new, now).await;
    supervisor.known(known).await;
}

fn answer(context: &Context, taken: &Taken, answer: Answer) {
    if matches!(answer, Answer::Rejected { .. }) {
        context.metrics.command_refused();
    }
    // The server asks again in the next session, if this one has ended in the meantime.
    let _ = taken.answers.send((taken.command.sequence, taken.command.id, answer));
}

/// Why a command is not taken: another daemon, or this one later, may do better. One that was taken before is not refused.
async fn refusal(context: &Context, command: &Command) -> Option<String> {
    let Order::Spawn(spawn) = &command.order else { return None };
    let reason = lacking(context, spawn)?;
    let known = context.journal.attempt(command.attempt).await.ok().flatten();
    known.is_none().then_some(reason)
}

fn lacking(context: &Context, spawn: &Spawn) -> Option<String> {
    let not_accepting = context.health.vitals().not_accepting;
    if !not_accepting.is_empty() {
        return Some(not_accepting);
    }
    if !context.is_installed(&spawn.agent) {
        return Some(format!("agent profile `{}` is not installed here", spawn.agent));
    }
    let config = &context.config;
    let at_hand =
        !daemon::is_path(&spawn.repository) || config.any_path() || config.repositories.contains(&spawn.repository);
    (!at_hand).then(|| format!("repository `{}` is not offered here", spawn.repository))
}

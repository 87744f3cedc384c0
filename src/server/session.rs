//! The server's end of a daemon's stream.
//!
//! ```text
//!            ┌ hello ──────────> ledger: epoch, inventory, verdicts (one transaction) ──> welcome, unanswered commands
//!   daemon ──┼ message ────────> ledger ──(in order, pipelined)──> message_answer
//!            ├ command_answer ─> ledger
//!            └ heartbeat ──────> Heard, fleet ──> heartbeat_answer
//!   ledger ── commands, superseded ──> push ──> daemon
//! ```
//!
//! Promises: what is acknowledged has been committed; answers to messages keep their order; the first heartbeat, which the
//! daemon sends when it has executed the verdicts and sent what it owed, opens it for new work; a daemon that does not read
//! costs a bounded amount of memory and then its session, never its agents.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_stream::{StreamExt as _, adapters::Map, wrappers::ReceiverStream};
use tonic::{Status, Streaming};

use super::ledger::{Error, Ledger, Op, Push, Reply, Request};
use crate::{
    domain::{
        AttemptRef, DaemonId, Epoch, JournalId, KeyId, OwnerId, Timestamp,
        attempt::{Failure, FailureClass},
        daemon::Hello,
        order::{Command, OrderKind},
        report::{Complete, Message, MessageOutcome, Progress, Report},
    },
    runtime::{clock, lifecycle::Shutdown},
    wire::{
        common::Invalid,
        daemon::{self as wire, Heartbeat, Welcome},
        pb,
        status::{ApiError, Reason},
    },
};

/// The protocol version this server speaks.
pub const PROTOCOL: u32 = 1;
/// Messages of one daemon that wait for their commit; beyond this its stream is not read. Twice as many as a daemon sends without an
/// answer, so that its heartbeats, which come behind them, are heard however long a commit takes.
const PIPELINE: usize = 512;
/// Answers that wait to be sent.
const OUTBOX: usize = 64;
/// Pushes that wait for the session; a fleet's commands to one daemon are bounded by its slots, and this is many times that.
const PUSHES: usize = 1024;
/// How long a daemon may take to say hello, or to read.
const PATIENCE: Duration = Duration::from_secs(10);

/// The times of a session.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// After this silence a daemon is lost.
    pub lost_after: Duration,
}

/// When each daemon was last heard. Shared by the sessions and the loop that looks for silence.
#[derive(Debug, Default)]
pub struct Heard(Mutex<HashMap<DaemonId, Last>>);

/// When a daemon was last heard.
#[derive(Clone, Copy, Debug)]
pub struct Last {
    /// In this session.
    pub epoch: Epoch,
    /// By the monotonic clock, which deadlines go by.
    pub at: Instant,
    /// By the wall clock, for people and for the next server.
    pub wall: Timestamp,
}

impl Heard {
    /// It was heard now, unless a newer session has been.
    pub fn touch(&self, daemon: DaemonId, epoch: Epoch) {
        self.set(daemon, Last { epoch, at: Instant::now(), wall: clock::now() });
    }

    /// It was last heard then, unless a newer session has been.
    pub fn set(&self, daemon: DaemonId, last: Last) {
        let mut heard = self.lock();
        if heard.get(&daemon).is_none_or(|known| known.epoch <= last.epoch) {
            heard.insert(daemon, last);
        }
    }

    /// It has this session, the database says: it is waited for from now on, unless it is already, or a newer one is.
    pub fn expect(&self, daemon: DaemonId, epoch: Epoch) {
        let mut heard = self.lock();
        if heard.get(&daemon).is_none_or(|known| known.epoch < epoch) {
            heard.insert(daemon, Last { epoch, at: Instant::now(), wall: Timestamp(0) });
        }
    }

    /// It has been declared lost; a newer session stays.
    pub fn forget(&self, daemon: DaemonId, epoch: Epoch) {
        let mut heard = self.lock();
        if heard.get(&daemon).is_some_and(|known| known.epoch == epoch) {
            heard.remove(&daemon);
        }
    }

    /// All of them.
    pub fn all(&self) -> Vec<(DaemonId, Last)> {
        self.lock().iter().map(|(daemon, last)| (*daemon, *last)).collect()
    }

    /// Time has passed in which nobody could be heard.
    pub fn excuse(&self, gap: Duration) {
        for last in self.lock().values_mut() {
            last.at += gap;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<DaemonId, Last>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What a session needs of the server.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where everything is decided.
    pub ledger: Ledger,
    /// Who was heard when.
    pub heard: Arc<Heard>,
    /// Heartbeats.
    pub times: Times,
    /// The end of the server.
    pub shutdown: Shutdown,
}

/// The stream of answers to a daemon. They wait in boxes: a channel has room for many at once, and one is as large as the largest
/// order may be, for each of ten thousand daemons that are told nothing but that they were heard.
pub type Answers = Map<ReceiverStream<Box<pb::AttachResponse>>, fn(Box<pb::AttachResponse>) -> Answer>;

/// One of them.
type Answer = Result<pb::AttachResponse, Status>;

/// Opens a session for a daemon that came with this owner's key.
pub async fn open(
    host: Host,
    owner: OwnerId,
    key: KeyId,
    mut requests: Streaming<pb::AttachRequest>,
) -> Result<Answers, Status> {
    let first = tokio::time::timeout(PATIENCE, requests.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no hello came; send it first"))??;
    let Some(pb::attach_request::Kind::Hello(hello)) = first.and_then(|first| first.kind) else {
        return Err(ApiError::invalid_field("hello", "the first message of a session must be `hello`").into());
    };
    if hello.protocol_min > PROTOCOL || hello.protocol_max < PROTOCOL {
        let text = format!(
            "this server speaks protocol {PROTOCOL}, the daemon speaks {} to {}; bring the {} up to date",
            hello.protocol_min,
            hello.protocol_max,
            if hello.protocol_min > PROTOCOL { "server" } else { "daemon" }
        );
        return Err(ApiError::new(Reason::ProtocolUnsupported, text).into());
    }
    let hello = Box::new(Hello::try_from(&*hello).map_err(ApiError::from)?);
    // In a task of its own: a caller that hangs up meanwhile must not leave an attached daemon that nobody watches. What is done
    // now and then is in boxes, here and in the session: a task is as large as the largest thing that it may ever wait for, and
    // most daemons say nothing but that they are there.
    let (opened, answers) = oneshot::channel();
    let shutdown = host.shutdown.clone();
    shutdown.spawn(async move {
        match Box::pin(attach(host, owner, key, hello)).await {
            Ok((session, welcome, unanswered, answers)) => {
                let _ = opened.send(Ok(answers));
                session.run(requests, welcome, unanswered).await;
            }
            Err(status) => {
                let _ = opened.send(Err(status));
            }
        }
    });
    answers.await.unwrap_or_else(|_| Err(ApiError::shutting_down().into()))
}

async fn attach(
    host: Host,
    owner: OwnerId,
    key: KeyId,
    hello: Box<Hello>,
) -> Result<(Session, Box<Welcome>, Vec<Command>, Answers), Status> {
    let (daemon, journal) = (hello.daemon, hello.journal);
    let (push, pushes) = mpsc::channel(PUSHES);
    let attach = super::ledger::op::Attach { owner, key, hello: *hello, outbox: push };
    let actor = format!("daemon:{daemon}");
    let request = Request { actor: actor.clone(), repeat: None, op: Op::Attach(Box::new(attach)) };
    let reply = host.ledger.submit(request).await.map_err(|error| Status::from(super::api_error(error)))?;
    let Reply::Attached { epoch, verdicts, unanswered } = reply else {
        return Err(Status::internal("unexpected answer"));
    };
    host.heard.touch(daemon, epoch);
    host.ledger.metrics().session();
    tracing::info!(%daemon, %epoch, attempts = verdicts.len(), "daemon attached");
    let welcome = Box::new(Welcome {
        protocol: PROTOCOL,
        epoch,
        heartbeat_interval: host.times.heartbeat,
        lost_after: host.times.lost_after,
        verdicts,
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        clock: clock::now(),
    });
    let (out, answers) = mpsc::channel(OUTBOX);
    let session = Session {
        host,
        daemon,
        journal,
        epoch,
        actor,
        out,
        pushes,
        outstanding: HashMap::new(),
        pending: VecDeque::new(),
        ready: false,
        not_accepting: None,
    };
    let unbox: fn(Box<pb::AttachResponse>) -> Answer = |answer| Ok(*answer);
    Ok((session, welcome, unanswered, ReceiverStream::new(answers).map(unbox)))
}

struct Session {
    host: Host,
    daemon: DaemonId,
    journal: JournalId,
    epoch: Epoch,
    actor: String,
    out: mpsc::Sender<Box<pb::AttachResponse>>,
    pushes: mpsc::Receiver<Push>,
    /// Commands sent and not answered: which attempt, what of it, and when it was sent.
    outstanding: HashMap<i64, (AttemptRef, OrderKind, Instant)>,
    /// Messages and answers whose commits are under way, in order.
    pending: VecDeque<Pending>,
    /// The first heartbeat has come.
    ready: bool,
    /// What the daemon last said, to tell the ledger only of changes.
    not_accepting: Option<String>,
}

struct Pending {
    what: Waiting,
    reply: oneshot::Receiver<Result<Reply, Error>>,
}

/// What a commit under way is of.
enum Waiting {
    /// A message, which is answered.
    Message { sequence: i64, journal: JournalId, attempt: AttemptRef, is_final: bool },
    /// The answer to a command: nobody waits to hear that it was taken.
    Answer,
}

/// Why a session ends.
enum End {
    /// The daemon has gone, or its stream broke.
    Gone,
    /// The server says so.
    Closing(pb::ClosingReason, String),
}

impl Session {
    #[tracing::instrument(name = "session", skip_all, fields(daemon = %self.daemon, epoch = %self.epoch))]
    async fn run(mut self, requests: Streaming<pb::AttachRequest>, welcome: Box<Welcome>, unanswered: Vec<Command>) {
        let end = match Box::pin(self.begin(&welcome, unanswered)).await {
            Ok(()) => self.serve(requests).await,
            Err(end) => end,
        };
        self.host.ledger.detach(self.daemon, self.epoch);
        match end {
            End::Gone => tracing::info!("session ended"),
            End::Closing(reason, message) => {
                tracing::info!(reason = reason.as_str_name(), message, "session closed");
                let closing = pb::Closing { reason: reason.into(), message };
                let _ = self.send(pb::attach_response::Kind::Closing(closing)).await;
            }
        }
    }

    async fn begin(&mut self, welcome: &Welcome, unanswered: Vec<Command>) -> Result<(), End> {
        self.send(pb::attach_response::Kind::Welcome(welcome.into())).await?;
        for command in unanswered {
            self.command(&command).await?;
        }
        Ok(())
    }

    async fn serve(&mut self, mut requests: Streaming<pb::AttachRequest>) -> End {
        let mut silence = Instant::now() + self.host.times.lost_after;
        loop {
            let reading = self.pending.len() < PIPELINE;
            let step = tokio::select! {
                biased;
                // Watches and sessions would otherwise hold the server's end up for as long as their clients like.
                () = self.host.shutdown.soft.cancelled() => {
                    Err(End::Closing(pb::ClosingReason::ShuttingDown, "the server is stopping".to_owned()))
                }
                push = self.pushes.recv() => Box::pin(self.pushed(push)).await,
                reply = answered(&mut self.pending) => Box::pin(self.committed(reply)).await,
                request = next(&mut requests), if reading => match request {
                    Ok(Some(request)) => {
                        silence = Instant::now() + self.host.times.lost_after;
                        self.host.heard.touch(self.daemon, self.epoch);
                        Box::pin(self.request(request)).await
                    }
                    Ok(None) => Err(End::Gone),
                    Err(status) => {
                        tracing::info!(%status, "the stream broke");
                        Err(End::Gone)
                    }
                },
                () = tokio::time::sleep_until(silence) => {
                    tracing::info!("nothing heard for too long");
                    Err(End::Gone)
                }
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    // === what the daemon says ===

    async fn request(&mut self, request: Box<pb::AttachRequest>) -> Result<(), End> {
        let resync = |text: String| End::Closing(pb::ClosingReason::Resync, text);
        match request.kind {
            Some(pb::attach_request::Kind::Heartbeat(heartbeat)) => {
                let heartbeat = Heartbeat::try_from(&heartbeat).map_err(|error| resync(error.to_string()))?;
                self.heartbeat(heartbeat).await
            }
            Some(pb::attach_request::Kind::CommandAnswer(answer)) => {
                let answer = wire::command_answered(&answer).map_err(|error| resync(error.to_string()))?;
                let (sequence, _, answer) = answer;
                // An answer that was heard before, or to a command that is no longer wanted, says nothing new.
                let Some((attempt, of, sent)) = self.outstanding.remove(&sequence) else { return Ok(()) };
                self.host.ledger.metrics().command_answered(&answer, sent.elapsed());
                let (daemon, epoch) = (self.daemon, self.epoch);
                let reply = self.enqueue(Op::Answered { daemon, epoch, attempt, of, sequence, answer }).await?;
                self.pending.push_back(Pending { what: Waiting::Answer, reply });
                Ok(())
            }
            Some(pb::attach_request::Kind::Message(message)) => self.message(&message).await,
            Some(pb::attach_request::Kind::Hello(_)) => Err(resync("hello comes once".to_owned())),
            None => Err(resync("an empty message, or one of a newer protocol".to_owned())),
        }
    }

    async fn heartbeat(&mut self, heartbeat: Heartbeat) -> Result<(), End> {
        let (daemon, epoch) = (self.daemon, self.epoch);
        if self.not_accepting.as_ref() != Some(&heartbeat.not_accepting) {
            self.not_accepting = Some(heartbeat.not_accepting.clone());
            self.tell(Op::Accepting { daemon, epoch, not_accepting: heartbeat.not_accepting }).await?;
        }
        if !self.ready {
            self.ready = true;
            self.tell(Op::Ready { daemon, epoch }).await?;
        }
        let cancel = self.host.ledger.fleet().unwanted(daemon, &heartbeat.live);
        self.send(pb::attach_response::Kind::HeartbeatAnswer(wire::heartbeat_answer(&cancel))).await
    }

    async fn message(&mut self, message: &pb::DaemonMessage) -> Result<(), End> {
        let parsed = match Message::try_from(message) {
            Ok(parsed) => parsed,
            Err(invalid) => match self.salvage(message, &invalid) {
                Some(parsed) => parsed,
                None => {
                    tracing::warn!(%invalid, sequence = message.sequence, "a message makes no sense");
                    let outcome = MessageOutcome::Invalid { detail: invalid.to_string() };
                    return self.answer(message.sequence, self.journal, &outcome).await;
                }
            },
        };
        let what = Waiting::Message {
            sequence: parsed.sequence,
            journal: parsed.journal,
            attempt: parsed.attempt,
            is_final: matches!(parsed.report, Report::Complete(_)),
        };
        let reply = self.enqueue(Op::Message { daemon: self.daemon, message: parsed }).await?;
        self.pending.push_back(Pending { what, reply });
        Ok(())
    }

    /// A terminal report that cannot be understood still ends its task, as failed with that reason: nothing is retried for
    /// ever.
    fn salvage(&self, message: &pb::DaemonMessage, invalid: &Invalid) -> Option<Message> {
        let attempt = AttemptRef::try_from(message.attempt.as_ref()?).ok()?;
        match message.kind {
            Some(pb::daemon_message::Kind::TaskComplete(_)) => {
                Some(self.unreadable(message.sequence, attempt, &invalid.to_string()))
            }
            _ => None,
        }
    }

    fn unreadable(&self, sequence: i64, attempt: AttemptRef, why: &str) -> Message {
        let text = format!("the attempt's final report could not be stored: {why}");
        let failure = Failure::new(FailureClass::AgentError, crate::domain::report::clean(text, 1024));
        let complete = Complete {
            outcome: Err(failure),
            progress: Progress::default(),
            output_bytes: 0,
            exit_code: None,
            signal: 0,
        };
        Message { sequence, journal: self.journal, attempt, at: clock::now(), report: Report::Complete(complete) }
    }

    async fn committed(&mut self, reply: Result<Reply, Error>) -> Result<(), End> {
        let Some(pending) = self.pending.pop_front() else { return Ok(()) };
        let Waiting::Message { sequence, journal, attempt, is_final } = pending.what else { return self.told(reply) };
        let outcome = match reply {
            Ok(Reply::Message(outcome)) => outcome,
            Ok(_) => MessageOutcome::Applied,
            Err(Error::Unstorable(why)) => {
                if is_final {
                    let instead = self.unreadable(sequence, attempt, &why);
                    self.tell(Op::Message { daemon: self.daemon, message: instead }).await?;
                }
                MessageOutcome::Invalid { detail: why }
            }
            Err(error) => return Err(End::Closing(pb::ClosingReason::Resync, error.to_string())),
        };
        self.answer(sequence, journal, &outcome).await
    }

    // === what the server says ===

    async fn pushed(&mut self, push: Option<Push>) -> Result<(), End> {
        match push {
            Some(Push::Command(command)) => self.command(&command).await,
            Some(Push::Superseded) => Err(superseded()),
            Some(Push::Unauthenticated) => Err(unauthenticated()),
            None => Err(dropped()),
        }
    }

    async fn command(&mut self, command: &Command) -> Result<(), End> {
        self.outstanding.insert(command.sequence, (command.attempt, command.order.kind(), Instant::now()));
        let command = pb::DaemonCommand { session_epoch: self.epoch.0, ..command.into() };
        self.send(pb::attach_response::Kind::Command(command)).await
    }

    async fn answer(&mut self, sequence: i64, journal: JournalId, outcome: &MessageOutcome) -> Result<(), End> {
        self.host.ledger.metrics().message(outcome);
        self.send(pb::attach_response::Kind::MessageAnswer(wire::message_answer(sequence, journal, outcome))).await
    }

    async fn send(&self, kind: pb::attach_response::Kind) -> Result<(), End> {
        let response = pb::AttachResponse { kind: Some(kind) };
        match self.out.send_timeout(Box::new(response), PATIENCE).await {
            Ok(()) => Ok(()),
            Err(_) => Err(End::Gone),
        }
    }

    // === the ledger ===

    async fn enqueue(&self, op: Op) -> Result<oneshot::Receiver<Result<Reply, Error>>, End> {
        let request = Request { actor: self.actor.clone(), repeat: None, op };
        let stopping = |_| End::Closing(pb::ClosingReason::ShuttingDown, "the server is stopping".to_owned());
        self.host.ledger.enqueue(request).await.map_err(stopping)
    }

    /// Does something whose answer the daemon does not wait for.
    async fn tell(&mut self, op: Op) -> Result<(), End> {
        let reply = self.enqueue(op).await?;
        let reply = reply.await;
        self.told(reply.unwrap_or(Err(Error::Stopping)))
    }

    /// What became of something whose answer the daemon does not wait for.
    fn told(&mut self, reply: Result<Reply, Error>) -> Result<(), End> {
        match reply {
            Ok(_) => Ok(()),
            Err(Error::StaleSession(_)) => Err(self.stale()),
            Err(Error::Stopping) => {
                Err(End::Closing(pb::ClosingReason::ShuttingDown, "the server is stopping".to_owned()))
            }
            Err(error) => Err(End::Closing(pb::ClosingReason::Resync, error.to_string())),
        }
    }

    /// Why the session is not the daemon's current one any more. A newer one has said so to this one before anybody was answered; told
    /// of one the daemon ends for good, so that is not guessed: the database may have fallen behind.
    fn stale(&mut self) -> End {
        loop {
            match self.pushes.try_recv() {
                Ok(Push::Command(_)) => {}
                Ok(Push::Superseded) => return superseded(),
                Ok(Push::Unauthenticated) => return unauthenticated(),
                Err(_) => return dropped(),
            }
        }
    }
}

fn superseded() -> End {
    let text = "another process with this daemon's identity has attached".to_owned();
    End::Closing(pb::ClosingReason::Superseded, text)
}

fn unauthenticated() -> End {
    End::Closing(pb::ClosingReason::Unauthenticated, "the key was revoked; give the daemon another".to_owned())
}

/// The fleet has dropped the session.
fn dropped() -> End {
    End::Closing(pb::ClosingReason::Resync, "the session fell behind, or the database did".to_owned())
}

/// What the daemon says next.
async fn next(requests: &mut Streaming<pb::AttachRequest>) -> Result<Option<Box<pb::AttachRequest>>, Status> {
    Ok(requests.message().await?.map(Box::new))
}

/// What became of the oldest thing under way; never, if there is none.
async fn answered(pending: &mut VecDeque<Pending>) -> Result<Reply, Error> {
    match pending.front_mut() {
        Some(front) => (&mut front.reply).await.unwrap_or(Err(Error::Stopping)),
        None => std::future::pending().await,
    }
}

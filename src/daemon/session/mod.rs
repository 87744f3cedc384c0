//! The daemon's side of a session: control only, over one stream, for as long as it lasts; then the next one.
//!
//! ```text
//!   connect ─> Hello ─> Welcome ─> verdicts to the supervisor ─> what is owed, in journal order ─> the first Heartbeat
//!                                                                                                        │
//!        commands ─> intake ─> journal ─> Persisted          messages <─ outbox, a window of them        v
//!        HeartbeatAnswer.cancel ─> supervisor                MessageAnswer ─> deleted          only now new work comes
//! ```
//!
//! One loop reads, sends and keeps time, and never waits for the connection with anything else left undone: what is to be
//! sent waits in a queue of its own, so a server that does not read cannot keep us from reading. Nothing is lost with a
//! session: commands are resent by the server, messages are rows in the journal.
//!
//! A stream that is silent for longer than the server itself would wait (`lost_after`) is given up, whatever TCP says. The
//! first attempt to attach again comes at once, further ones after 0.5 to 30 s.

pub mod link;
mod outbox;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use self::outbox::Outbox;
use super::{Context, intake, runner::chain, supervisor};
use crate::{
    domain::{
        AttemptRef, CommandId, JournalId,
        daemon::Hello,
        order::{Answer, Command},
        report::{Message, MessageOutcome},
    },
    runtime::{backoff::Backoff, clock},
    wire::{
        daemon::{Heartbeat, MAX_CONTROL_BYTES, PROTOCOL, Welcome, cancelled_by, command_answer, message_answered},
        pb::{self, attach_request, attach_response},
    },
};

/// Messages on the way without an answer: half of what a server reads ahead of its commits. With half of them a daemon that has
/// much to say waits for each commit. A megabyte or two where people write long; 64 KiB each in the worst case.
const OUTBOX_WINDOW: usize = 256;
/// Requests between us and the connection.
const QUEUE: usize = 16;
/// What waits to be sent before nothing more is read: a server that sends and does not read is not read from for ever.
const WAITING: usize = 4_096;
/// A session that lasted this long was a good one: what ended it is new, and the next try comes at once.
const GOOD: Duration = Duration::from_secs(1);
/// The shortest interval of heartbeats that is taken from a server.
const MIN_HEARTBEAT: Duration = Duration::from_millis(10);

/// Why there will be no further session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// The daemon stops.
    Shutdown,
    /// Another process with this identity has attached.
    Superseded(String),
    /// The server does not want this daemon.
    Banned(String),
}

/// How one session ended, when there will be another one.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] link::Error),
    /// The server ended the call.
    #[error("{}: {}", .0.code(), .0.message())]
    Status(Status),
    /// The server ended the stream without a word.
    #[error("the server ended the session")]
    Ended,
    /// It does not say Welcome, or nothing at all any more.
    #[error("the server has said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    /// What it says makes no sense.
    #[error("the server says what makes no sense: {0}")]
    Nonsense(String),
    /// It stops.
    #[error("the server is shutting down: {0}")]
    ShuttingDown(String),
    /// What Hello said of this daemon is no longer true.
    #[error("this daemon has something new to say of itself")]
    NewCard,
    /// It wants us to attach again.
    #[error("the server asks to attach again: {0}")]
    Resync(String),
    /// It does not know our key any more.
    #[error("the key is not accepted: {0}")]
    Unauthenticated(String),
    /// Our own journal.
    #[error("read the journal")]
    Journal(#[from] super::journal::Error),
}

/// What a stream ends with.
enum End {
    Again(Error),
    Over(Over),
}

impl<E: Into<Error>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Again(error.into())
    }
}

/// One session after another, until there is a reason to stop.
pub(super) async fn run(context: Arc<Context>, supervisor: supervisor::Handle, intake: intake::Handle) -> Over {
    let soft = context.shutdown.soft.clone();
    let times = context.config.times;
    let mut backoff = Backoff::new(times.reconnect_first, times.reconnect_limit);
    loop {
        let mut session = Session::new(Arc::clone(&context), supervisor.clone(), intake.clone());
        let end = tokio::select! {
            biased;
            () = soft.cancelled() => return Over::Shutdown,
            end = session.run() => end,
        };
        context.metrics.detached();
        let error = match end {
            End::Over(over) => return over,
            End::Again(error) => error,
        };
        let delay = match &error {
            Error::Unauthenticated(_) => {
                tracing::error!(
                    server = %context.config.server,
                    reason = %error,
                    "the server does not accept this daemon's key; agents go on, and their results wait here. Give it a key \
                     made with `makima key create --kind daemon --owner <name>`"
                );
                times.unauthenticated
            }
            Error::NewCard => Duration::ZERO,
            // It lasted: the first try comes at once. A fleet whose server stops does not come back in one instant.
            error if session.lasted && session.begun.elapsed() >= GOOD => {
                backoff.reset();
                tracing::info!(reason = chain(error), "the session has ended; attaching again");
                if matches!(error, Error::ShuttingDown(_)) { backoff.next_delay() } else { Duration::ZERO }
            }
            error => {
                let delay = backoff.next_delay();
                tracing::warn!(
                    server = %context.config.server,
                    reason = chain(error),
                    next_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                    "cannot attach; agents go on"
                );
                delay
            }
        };
        tokio::select! {
            () = soft.cancelled() => return Over::Shutdown,
            () = tokio::time::sleep(delay) => {}
        }
    }
}

struct Session {
    context: Arc<Context>,
    supervisor: supervisor::Handle,
    intake: intake::Handle,
    /// To be sent, oldest first.
    queue: VecDeque<pb::AttachRequest>,
    /// The outbox as this session goes through it.
    outbox: Outbox,
    /// Messages sent and not answered.
    in_flight: HashMap<i64, AttemptRef>,
    /// Messages up to here were there when the session began: they are owed before there is new work.
    owed: i64,
    /// A heartbeat of this session has been answered.
    lasted: bool,
    begun: Instant,
    heard: Instant,
}

impl Session {
    fn new(context: Arc<Context>, supervisor: supervisor::Handle, intake: intake::Handle) -> Self {
        Self {
            context,
            supervisor,
            intake,
            queue: VecDeque::new(),
            outbox: Outbox::default(),
            in_flight: HashMap::new(),
            owed: 0,
            lasted: false,
            begun: Instant::now(),
            heard: Instant::now(),
        }
    }

    #[tracing::instrument(name = "session", skip_all, fields(epoch = tracing::field::Empty))]
    async fn run(&mut self) -> End {
        match self.attach().await {
            Ok((welcome, requests, responses)) => match self.attached(welcome, requests, responses).await {
                Ok(never) => match never {},
                Err(end) => end,
            },
            Err(end) => end,
        }
    }

    // === attaching ===

    async fn attach(
        &mut self,
    ) -> Result<(Welcome, mpsc::Sender<pb::AttachRequest>, Streaming<pb::AttachResponse>), End> {
        let patience = self.context.config.times.connect;
        let mut client = link::connect(&self.context.config).await?;
        let hello = self.hello().await?;
        self.owed = hello.unanswered.1;
        let (requests, queued) = mpsc::channel(QUEUE);
        let request = link::authorized(&self.context.config, ReceiverStream::new(queued));
        // There is room: the queue is new.
        let _ = requests.try_send(request_of(attach_request::Kind::Hello(Box::new((&hello).into()))));
        let opening = async {
            let mut responses = client.attach(request).await.map_err(refused)?.into_inner();
            let first = responses.message().await.map_err(refused)?.and_then(|response| response.kind);
            Ok::<_, End>((responses, first))
        };
        let (responses, first) =
            tokio::time::timeout(patience, opening).await.map_err(|_| Error::Silent(patience))??;
        let welcome = match first {
            Some(attach_response::Kind::Welcome(welcome)) => Welcome::try_from(&welcome).map_err(nonsense)?,
            Some(attach_response::Kind::Closing(closing)) => return Err(closed(closing)),
            Some(_) => return Err(Error::Nonsense("its first word is not Welcome".to_owned()).into()),
            None => return Err(Error::Ended.into()),
        };
        if !(PROTOCOL.0..=PROTOCOL.1).contains(&welcome.protocol) {
            let problem =
                format!("it chose protocol {}, this daemon speaks {} to {}", welcome.protocol, PROTOCOL.0, PROTOCOL.1);
            return Err(Error::Nonsense(problem).into());
        }
        Ok((welcome, requests, responses))
    }

    async fn hello(&self) -> Result<Hello, Error> {
        let context = &self.context;
        // Its number before what it says: of two, the one with the higher number knows more.
        let attach = context.journal.attach().await?;
        let standing = context.journal.standing().await?;
        Ok(Hello {
            protocol: PROTOCOL,
            daemon: context.state.daemon(),
            boot: context.boot,
            journal: context.journal.id(),
            card: context.card(),
            attach,
            last_command: standing.last_command,
            unanswered: (standing.first_unanswered, standing.last_unanswered),
            inventory: self.supervisor.inventory().await?,
            clock: clock::now(),
        })
    }

    // === attached ===

    async fn attached(
        &mut self,
        welcome: Welcome,
        requests: mpsc::Sender<pb::AttachRequest>,
        mut responses: Streaming<pb::AttachResponse>,
    ) -> Result<std::convert::Infallible, End> {
        tracing::info!(
            server = %self.context.config.server,
            version = welcome.server_version,
            epoch = %welcome.epoch,
            verdicts = welcome.verdicts.len(),
            owed = self.owed,
            "attached"
        );
        self.context.metrics.attached(welcome.epoch);
        tracing::Span::current().record("epoch", tracing::field::display(welcome.epoch));
        self.supervisor.verdicts(welcome.verdicts).await;
        self.context.attached.notify_one();
        // One for each command, of which the server sends no more than it may; the intake must never wait for a session.
        let (answers, mut answered) = mpsc::unbounded_channel();
        let context = Arc::clone(&self.context);
        let mut newest = self.context.journal.newest();
        let period = welcome.heartbeat_interval.max(MIN_HEARTBEAT);
        let lost_after = welcome.lost_after.max(period * 2);
        let mut heartbeat = interval_at(Instant::now() + period, period);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ready = false;
        self.heard = Instant::now();
        loop {
            self.refill(&mut newest).await?;
            if !ready && self.outbox.has_given(self.owed) && !self.queue.iter().any(is_message) {
                // What was owed has gone out before it on the same stream: now there may be new work.
                ready = true;
                self.heartbeat();
            }
            tokio::select! {
                biased;
                response = responses.message(), if self.queue.len() < WAITING => {
                    self.heard = Instant::now();
                    let kind = response.map_err(refused)?.ok_or(Error::Ended)?.kind;
                    self.hear(kind, &answers).await?;
                }
                permit = requests.reserve(), if !self.queue.is_empty() => {
                    let permit = permit.map_err(|_| Error::Ended)?;
                    if let Some(request) = self.queue.pop_front() {
                        permit.send(request);
                    }
                }
                Some((sequence, command, answer)) = answered.recv() => {
                    self.answer(sequence, command, &answer, ready);
                }
                changed = newest.changed(), if self.in_flight.len() < OUTBOX_WINDOW => {
                    changed.map_err(|_| super::journal::Error::Closed)?;
                }
                () = context.card_changed.notified() => return Err(Error::NewCard.into()),
                _ = heartbeat.tick(), if ready => {
                    if self.heard.elapsed() >= lost_after {
                        return Err(Error::Silent(lost_after).into());
                    }
                    self.heartbeat();
                }
            }
        }
    }

    /// Sends messages from the outbox while there is room for them on the way.
    async fn refill(&mut self, newest: &mut watch::Receiver<i64>) -> Result<(), Error> {
        while self.in_flight.len() < OUTBOX_WINDOW {
            let Some(message) = self.outbox.next(&self.context.journal, newest).await? else { break };
            self.say(&message);
        }
        Ok(())
    }

    fn say(&mut self, message: &Message) {
        let sent = pb::DaemonMessage::from(message);
        if prost::Message::encoded_len(&sent) > MAX_CONTROL_BYTES {
            // Every text in it has a limit that keeps it far below this.
            tracing::error!(sequence = message.sequence, attempt = %message.attempt, "a message is too big to be sent");
        }
        self.in_flight.insert(message.sequence, message.attempt);
        self.queue.push_back(request_of(attach_request::Kind::Message(Box::new(sent))));
    }

    fn answer(&mut self, sequence: i64, command: CommandId, answer: &Answer, ready: bool) {
        if ready && matches!(answer, Answer::Rejected { .. }) {
            // With the reason why, and first: as soon as it is refused the server looks for a daemon, and should not find us.
            self.heartbeat();
        }
        self.queue
            .push_back(request_of(attach_request::Kind::CommandAnswer(command_answer(sequence, command, answer))));
    }

    fn heartbeat(&mut self) {
        let vitals = self.context.health.vitals();
        let live = self.supervisor.live();
        let heartbeat = Heartbeat {
            live: live.attempts,
            free_slots: live.free_slots,
            load_percent: vitals.load_percent,
            disk_free_bytes: i64::try_from(vitals.disk_free_bytes).unwrap_or(i64::MAX),
            not_accepting: vitals.not_accepting,
        };
        self.queue.push_back(request_of(attach_request::Kind::Heartbeat((&heartbeat).into())));
    }

    // === hearing ===

    async fn hear(
        &mut self,
        kind: Option<attach_response::Kind>,
        answers: &mpsc::UnboundedSender<intake::Answered>,
    ) -> Result<(), End> {
        match kind {
            Some(attach_response::Kind::Command(command)) => {
                match Command::try_from(&command) {
                    Ok(command) => self.intake.take(command, answers.clone()).await,
                    Err(error) => self.not_understood(&command, &error.to_string()),
                }
                Ok(())
            }
            Some(attach_response::Kind::MessageAnswer(answer)) => {
                let (sequence, journal, outcome) = message_answered(&answer).map_err(nonsense)?;
                self.message_answered(sequence, journal, outcome).await;
                Ok(())
            }
            Some(attach_response::Kind::HeartbeatAnswer(answer)) => {
                self.lasted = true;
                self.supervisor.cancel(cancelled_by(&answer).map_err(nonsense)?).await;
                Ok(())
            }
            Some(attach_response::Kind::Closing(closing)) => Err(closed(closing)),
            Some(attach_response::Kind::Welcome(_)) => {
                Err(Error::Nonsense("it says Welcome a second time".to_owned()).into())
            }
            // A newer server may say what we do not know; what matters is a command, and that has a name.
            None => Ok(()),
        }
    }

    async fn message_answered(&mut self, sequence: i64, journal: JournalId, outcome: MessageOutcome) {
        if journal != self.context.journal.id() {
            return;
        }
        self.context.metrics.message(&outcome);
        let attempt = self.in_flight.remove(&sequence);
        if let MessageOutcome::Invalid { detail } = &outcome {
            tracing::error!(sequence, detail, "the server cannot take a message");
        }
        let fenced = matches!(outcome, MessageOutcome::Fenced);
        // Not waited for: the stream would stand still for a commit with every answer. What is lost of it stays, is sent again
        // in the next session, and is answered again.
        if let Err(error) = self.context.journal.answered_soon(sequence, outcome, clock::now()).await {
            tracing::warn!(%error, sequence, "the journal cannot be written");
        }
        if let Some(attempt) = attempt.filter(|_| fenced) {
            // Whatever runs there runs for nobody, and what has ended there is kept.
            self.supervisor.fenced(attempt).await;
        }
    }

    fn not_understood(&mut self, command: &pb::DaemonCommand, problem: &str) {
        tracing::error!(
            command = command.command_id,
            problem,
            "a command is not understood; another daemon may do better"
        );
        let reason = format!("not understood: {problem}");
        let answer = Answer::Rejected { reason, retryable: true, counts: false };
        // With its id as it came: we cannot even be sure that it is one.
        let mut answer = command_answer(command.sequence, CommandId(uuid::Uuid::nil()), &answer);
        answer.command_id.clone_from(&command.command_id);
        self.queue.push_back(request_of(attach_request::Kind::CommandAnswer(answer)));
    }
}

fn request_of(kind: attach_request::Kind) -> pb::AttachRequest {
    pb::AttachRequest { kind: Some(kind) }
}

fn is_message(request: &pb::AttachRequest) -> bool {
    matches!(request.kind, Some(attach_request::Kind::Message(_)))
}

fn refused(status: Status) -> Error {
    match status.code() {
        // A key of another kind or of another owner than the identity's is as wrong as one that is not known.
        Code::Unauthenticated | Code::PermissionDenied => Error::Unauthenticated(status.message().to_owned()),
        _ => Error::Status(status),
    }
}

fn nonsense(error: impl std::fmt::Display) -> Error {
    Error::Nonsense(error.to_string())
}

fn closed(closing: pb::Closing) -> End {
    let message = closing.message;
    match pb::ClosingReason::try_from(closing.reason) {
        Ok(pb::ClosingReason::Superseded) => End::Over(Over::Superseded(message)),
        Ok(pb::ClosingReason::Banned) => End::Over(Over::Banned(message)),
        Ok(pb::ClosingReason::Unauthenticated) => End::Again(Error::Unauthenticated(message)),
        Ok(pb::ClosingReason::ShuttingDown) => End::Again(Error::ShuttingDown(message)),
        Ok(pb::ClosingReason::Resync | pb::ClosingReason::Unspecified) | Err(_) => End::Again(Error::Resync(message)),
    }
}

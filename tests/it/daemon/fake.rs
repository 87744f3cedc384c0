//! A server made for one test: it speaks the daemon's protocol over a real socket, notes everything in the order in which
//! it came, and does what the test tells it.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use makima::{
    domain::{
        AttemptRef, CommandId, Epoch, JournalId, Timestamp,
        daemon::Hello,
        order::{Answer, Command, Order},
        reconcile::Verdict,
        report::{Message, MessageOutcome, Report},
    },
    wire::{
        checkpoint::{FileChunk, FileKind, FileReceipt},
        daemon::{Chunk, Heartbeat, Receipt, Welcome, command_answered, heartbeat_answer, message_answer},
        pb::{
            self, attach_request, attach_response,
            daemon_service_server::{DaemonService, DaemonServiceServer},
        },
    },
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming};

/// What came, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Hello(Box<Hello>),
    Heartbeat(Heartbeat),
    Answer(i64, CommandId, Answer),
    Message(Box<Message>),
}

/// The server. Dropping it cuts every connection.
pub struct Fake {
    pub address: String,
    shared: Arc<Shared>,
    /// All of it, connections too, so that it can die like a process.
    running: Option<tokio::runtime::Runtime>,
    listener: Option<std::net::TcpListener>,
}

#[derive(Default)]
pub struct State {
    pub events: Vec<Event>,
    /// Messages are answered.
    pub answers: bool,
    /// Keys are taken.
    pub open: bool,
    /// How it judges; KEEP where nothing is said.
    pub verdicts: HashMap<AttemptRef, Verdict>,
    /// Named in every answer to a heartbeat.
    pub cancel: Vec<AttemptRef>,
    /// Output as it came, and whether all of it is here.
    pub output: BTreeMap<AttemptRef, (Vec<u8>, bool)>,
    /// Checkpoints and results as they came.
    pub files: BTreeMap<(AttemptRef, FileKind), Vec<u8>>,
    /// After this many bytes of output the upload is cut, once.
    pub cut_upload_after: Option<usize>,
    /// Uploads begun.
    pub uploads: usize,
    session: Option<mpsc::Sender<Result<pb::AttachResponse, Status>>>,
    sequence: i64,
}

struct Shared {
    state: Mutex<State>,
}

impl Fake {
    /// One that listens, takes every key and answers everything.
    pub async fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = State { answers: true, open: true, ..State::default() };
        let mut fake = Self {
            address,
            shared: Arc::new(Shared { state: Mutex::new(state) }),
            running: None,
            listener: Some(listener),
        };
        fake.serve();
        fake
    }

    /// Goes on after [`Fake::cut`].
    pub fn serve(&mut self) {
        let listener = self.listener.as_ref().unwrap().try_clone().unwrap();
        let service = DaemonServiceServer::new(Service(Arc::clone(&self.shared)));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            let _ = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await;
        });
        self.running = Some(runtime);
    }

    /// Cuts every connection, as a server that dies does, and notes nothing any more that comes by them. New connections wait
    /// until it serves again.
    pub fn cut(&mut self) {
        if let Some(running) = self.running.take() {
            // Not on a thread of the test's runtime, which may not wait.
            let ended = std::thread::spawn(move || running.shutdown_timeout(Duration::from_secs(60)));
            ended.join().unwrap();
        }
        self.state().session = None;
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends something to the daemon that is attached.
    pub async fn send(&self, kind: attach_response::Kind) {
        let session = self.state().session.clone().expect("a daemon is attached");
        session.send(Ok(pb::AttachResponse { kind: Some(kind) })).await.expect("the daemon reads");
    }

    /// Sends a command with the next sequence, and answers it as it was sent.
    pub async fn command(&self, attempt: AttemptRef, order: Order) -> Command {
        let sequence = {
            let mut state = self.state();
            state.sequence += 1;
            state.sequence
        };
        let command = Command { sequence, id: CommandId(uuid::Uuid::now_v7()), epoch: Epoch(1), attempt, order };
        self.resend(&command).await;
        command
    }

    /// Sends a command again.
    pub async fn resend(&self, command: &Command) {
        self.send(attach_response::Kind::Command(command.into())).await;
    }

    pub async fn close(&self, reason: pb::ClosingReason) {
        let closing = pb::Closing { reason: reason.into(), message: "as the test wishes".to_owned() };
        self.send(attach_response::Kind::Closing(closing)).await;
    }

    // === looking back ===

    pub fn hellos(&self) -> Vec<Hello> {
        self.pick(|event| match event {
            Event::Hello(hello) => Some((**hello).clone()),
            _ => None,
        })
    }

    pub fn heartbeats(&self) -> Vec<Heartbeat> {
        self.pick(|event| match event {
            Event::Heartbeat(heartbeat) => Some(heartbeat.clone()),
            _ => None,
        })
    }

    pub fn messages(&self) -> Vec<Message> {
        self.pick(|event| match event {
            Event::Message(message) => Some((**message).clone()),
            _ => None,
        })
    }

    pub fn answer_to(&self, command: &Command) -> Option<Answer> {
        self.pick(|event| match event {
            Event::Answer(sequence, id, answer) if (*sequence, *id) == (command.sequence, command.id) => {
                Some(answer.clone())
            }
            _ => None,
        })
        .pop()
    }

    pub fn reports_of(&self, attempt: AttemptRef) -> Vec<Report> {
        self.messages().into_iter().filter(|m| m.attempt == attempt).map(|m| m.report).collect()
    }

    pub fn output_of(&self, attempt: AttemptRef) -> String {
        let state = self.state();
        String::from_utf8_lossy(state.output.get(&attempt).map(|(bytes, _)| bytes.as_slice()).unwrap_or_default())
            .into_owned()
    }

    pub fn has_all_output_of(&self, attempt: AttemptRef) -> bool {
        self.state().output.get(&attempt).is_some_and(|(_, complete)| *complete)
    }

    fn pick<T>(&self, pick: impl FnMut(&Event) -> Option<T>) -> Vec<T> {
        self.state().events.iter().filter_map(pick).collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.cut();
    }
}

struct Service(Arc<Shared>);

impl Service {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let key = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        if !self.state().open || key != Some("Bearer mk_daemon_test") {
            return Err(Status::unauthenticated("no such key"));
        }
        Ok(())
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl DaemonService for Service {
    type AttachStream = Answers<pb::AttachResponse>;
    type UploadChunksStream = Answers<pb::UploadChunksResponse>;
    type DownloadChunksStream = Answers<pb::DownloadChunksResponse>;

    async fn attach(
        &self,
        request: Request<Streaming<pb::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        self.check(&request)?;
        let mut requests = request.into_inner();
        let (answers, stream) = mpsc::channel(1_024);
        let shared = Arc::clone(&self.0);
        spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let Some(kind) = request.kind else { continue };
                for answer in shared.hear(kind, &answers) {
                    if answers.send(Ok(pb::AttachResponse { kind: Some(answer) })).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn upload_chunks(
        &self,
        request: Request<Streaming<pb::UploadChunksRequest>>,
    ) -> Result<Response<Self::UploadChunksStream>, Status> {
        self.check(&request)?;
        self.state().uploads += 1;
        let shared = Arc::clone(&self.0);
        let receipts = request.into_inner().map(move |chunk| {
            let chunk = chunk?;
            match chunk.kind() {
                pb::ChunkKind::Checkpoint | pb::ChunkKind::Result => {
                    Ok(shared.take_file(&FileChunk::try_from(chunk).unwrap()))
                }
                _ => shared.take(&Chunk::try_from(chunk).unwrap()),
            }
        });
        Ok(Response::new(Box::pin(receipts)))
    }

    async fn download_chunks(
        &self,
        _: Request<pb::DownloadChunksRequest>,
    ) -> Result<Response<Self::DownloadChunksStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn list_daemons(
        &self,
        _: Request<pb::ListDaemonsRequest>,
    ) -> Result<Response<pb::ListDaemonsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_daemon(&self, _: Request<pb::GetDaemonRequest>) -> Result<Response<pb::GetDaemonResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn drain_daemon(
        &self,
        _: Request<pb::DrainDaemonRequest>,
    ) -> Result<Response<pb::DrainDaemonResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn undrain_daemon(
        &self,
        _: Request<pb::UndrainDaemonRequest>,
    ) -> Result<Response<pb::UndrainDaemonResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

impl Shared {
    /// Notes what came, and says what is answered.
    fn hear(
        &self,
        kind: attach_request::Kind,
        session: &mpsc::Sender<Result<pb::AttachResponse, Status>>,
    ) -> Vec<attach_response::Kind> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match kind {
            attach_request::Kind::Hello(hello) => {
                let hello = Hello::try_from(&*hello).unwrap();
                let verdict = |attempt| (attempt, *state.verdicts.get(&attempt).unwrap_or(&Verdict::Keep));
                let welcome = Welcome {
                    protocol: 1,
                    epoch: Epoch(1),
                    heartbeat_interval: Duration::from_millis(100),
                    lost_after: Duration::from_secs(5),
                    verdicts: hello.inventory.iter().map(|item| verdict(item.attempt)).collect(),
                    server_version: "test".to_owned(),
                    clock: Timestamp(1),
                };
                state.events.push(Event::Hello(Box::new(hello)));
                state.session = Some(session.clone());
                vec![attach_response::Kind::Welcome((&welcome).into())]
            }
            attach_request::Kind::Heartbeat(heartbeat) => {
                state.events.push(Event::Heartbeat(Heartbeat::try_from(&heartbeat).unwrap()));
                vec![attach_response::Kind::HeartbeatAnswer(heartbeat_answer(&state.cancel))]
            }
            attach_request::Kind::CommandAnswer(answer) => {
                let (sequence, command, answer) = command_answered(&answer).unwrap();
                state.events.push(Event::Answer(sequence, command, answer));
                Vec::new()
            }
            attach_request::Kind::Message(message) => {
                let message = Message::try_from(&*message).unwrap();
                let answer = state.answers.then(|| answer_to(message.sequence, message.journal));
                state.events.push(Event::Message(Box::new(message)));
                answer.into_iter().collect()
            }
        }
    }

    /// Takes a piece of a checkpoint or result; one that is whole counts.
    fn take_file(&self, chunk: &FileChunk) -> pb::UploadChunksResponse {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let file = state.files.entry((chunk.attempt, chunk.kind)).or_default();
        if chunk.offset == file.len() as u64 {
            file.extend_from_slice(&chunk.data);
        }
        let received = file.len() as u64;
        let complete = received == chunk.whole.bytes.unsigned_abs();
        FileReceipt { attempt: chunk.attempt, kind: chunk.kind, received, complete, refused: None }.into()
    }

    fn take(&self, chunk: &Chunk) -> Result<pb::UploadChunksResponse, Status> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, complete) = state.output.entry(chunk.attempt).or_default();
        let received = bytes.len() as u64;
        if chunk.offset == received {
            bytes.extend_from_slice(&chunk.data);
            *complete |= chunk.last;
        }
        let (received, complete) = (bytes.len(), *complete);
        if state.cut_upload_after.is_some_and(|limit| received > limit) {
            state.cut_upload_after = None;
            return Err(Status::unavailable("cut"));
        }
        let received = received as u64;
        Ok(Receipt { attempt: chunk.attempt, committed: received, received, complete, refused: false }.into())
    }
}

pub fn answer_to(sequence: i64, journal: JournalId) -> attach_response::Kind {
    attach_response::Kind::MessageAnswer(message_answer(sequence, journal, &MessageOutcome::Applied))
}

#[expect(clippy::disallowed_methods, reason = "the test ends with everything in it")]
fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}

//! Waiting for a contract or a task to end, through breaks of the connection and restarts of the server.
//!
//! ```text
//!   watch ──steps──> Board ──> Screen
//!     ^   └─token─┐
//!     └── again, from the token; from a snapshot when the token is too old
//! ```
//!
//! A break is told once, and once when it is over. While nothing runs, the reasons of what is pending are read every few
//! seconds and shown, each once, so that a person who waits knows for what.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Code, Status, Streaming};

use super::{
    board::{Board, Outcome},
    client::{Client, PATIENCE, timed},
    error::{Error, Result, is_transient},
    output::{clean, clock_time},
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
pub(super) const LOOK_FOR_REASONS: Duration = Duration::from_secs(3);
/// A watch that has not broken for so long stands, although nothing has changed yet.
pub(super) const STANDS: Duration = Duration::from_secs(1);
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
        last_hint: None,
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
    last_hint: Option<Topic>,
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
        let opened = Instant::now();
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
                    if *said && opened.elapsed() > STANDS {
                        *said = false;
                        screen.say("connected again");
                    }
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
        let mut first = None;
        for task in &tasks {
            first = first.or_else(|| hint(task));
            if let Some(happening) = self.board.take(task) {
                screen.happening(&happening)?;
            }
        }
        if let Some((topic, text)) = first
            && self.last_hint.as_ref() != Some(&topic)
        {
            screen.say(&text);
            self.last_hint = Some(topic);
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

/// What a hint is about: the same topic is not told twice in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Topic {
    /// A task waits until a time; the server's words count down to it, so they are not compared.
    Until(String, PendingReason, prost_types::Timestamp),
    /// Something else, in these words.
    Words(String),
}

/// What a pending task waits for, when that is something a person can act on or wait out.
fn hint(task: &pb::Task) -> Option<(Topic, String)> {
    let why = task.pending_reason();
    let until = match why {
        PendingReason::Unspecified | PendingReason::Ready | PendingReason::Dependencies | PendingReason::Blocked => {
            return None;
        }
        PendingReason::Backoff | PendingReason::UsageLimit => task.not_before,
        PendingReason::NoMatchingDaemon
        | PendingReason::NoFreeSlot
        | PendingReason::ConcurrencyLimit
        | PendingReason::Held
        | PendingReason::NoDaemon
        | PendingReason::DaemonsNotAccepting
        | PendingReason::PreviousAttempt => None,
    };
    let name = task.spec.as_ref().map(|spec| clean(&spec.name)).unwrap_or_default();
    let reason = if task.reason.is_empty() {
        view::pending_reason(why).to_lowercase().replace('_', " ")
    } else {
        clean(&task.reason)
    };
    if let (Some(until), Some(at)) = (until, view::time(until.as_ref())) {
        let text = format!("{name} waits until {}: {reason}", clock_time(at));
        return Some((Topic::Until(task.task_id.clone(), why, until), text));
    }
    let text = format!("{name} waits: {reason}");
    Some((Topic::Words(text.clone()), text))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        io,
        sync::{Arc, Mutex},
    };

    use tokio_stream::{Stream, wrappers::ReceiverStream};
    use tonic::{Request, Response};
    use tonic_types::StatusExt as _;

    use super::{
        super::{board::tests::*, output::Out},
        *,
    };
    use crate::{
        runtime::lifecycle::Shutdown,
        wire::pb::{
            WatchContractRequest, WatchContractResponse,
            contract_service_server::{ContractService, ContractServiceServer},
            watch_contract_response::Kind,
        },
    };

    /// One watch: the token it must be asked with, what it answers, and how it ends.
    struct Watch {
        token: &'static str,
        steps: Vec<WatchContractResponse>,
        end: Result<(), Status>,
    }

    /// Answers watches from a list, and nothing else.
    struct Server(Mutex<VecDeque<Watch>>);

    #[tonic::async_trait]
    impl ContractService for Server {
        type WatchContractStream =
            std::pin::Pin<Box<dyn Stream<Item = Result<WatchContractResponse, Status>> + Send + 'static>>;

        async fn watch_contract(
            &self,
            request: Request<WatchContractRequest>,
        ) -> Result<Response<Self::WatchContractStream>, Status> {
            let watch = self.0.lock().unwrap().pop_front().ok_or_else(|| Status::aborted("asked too often"))?;
            if request.get_ref().resume_token != watch.token {
                return Err(Status::aborted(format!("asked with {:?}", request.get_ref().resume_token)));
            }
            let (send, steps) = tokio::sync::mpsc::channel(100);
            for step in watch.steps {
                send.try_send(Ok(step)).unwrap();
            }
            if let Err(status) = watch.end {
                send.try_send(Err(status)).unwrap();
            }
            Ok(Response::new(Box::pin(ReceiverStream::new(steps))))
        }

        async fn create_contract(
            &self,
            _: Request<pb::CreateContractRequest>,
        ) -> Result<Response<pb::CreateContractResponse>, Status> {
            Err(unused())
        }

        async fn get_contract(
            &self,
            _: Request<pb::GetContractRequest>,
        ) -> Result<Response<pb::GetContractResponse>, Status> {
            Err(unused())
        }

        async fn list_contracts(
            &self,
            _: Request<pb::ListContractsRequest>,
        ) -> Result<Response<pb::ListContractsResponse>, Status> {
            Err(unused())
        }

        async fn update_contract(
            &self,
            _: Request<pb::UpdateContractRequest>,
        ) -> Result<Response<pb::UpdateContractResponse>, Status> {
            Err(unused())
        }

        async fn hold_contract(
            &self,
            _: Request<pb::HoldContractRequest>,
        ) -> Result<Response<pb::HoldContractResponse>, Status> {
            Err(unused())
        }

        async fn release_contract(
            &self,
            _: Request<pb::ReleaseContractRequest>,
        ) -> Result<Response<pb::ReleaseContractResponse>, Status> {
            Err(unused())
        }

        async fn cancel_contract(
            &self,
            _: Request<pb::CancelContractRequest>,
        ) -> Result<Response<pb::CancelContractResponse>, Status> {
            Err(unused())
        }
    }

    fn unused() -> Status {
        Status::unimplemented("not in this test")
    }

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Follows a contract of a server that answers these watches.
    async fn followed(watches: Vec<Watch>, json: bool) -> (super::super::error::Result<Outcome>, String) {
        let shutdown = Shutdown::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = ContractServiceServer::new(Server(Mutex::new(watches.into())));
        let serving = tonic::transport::Server::builder().add_service(server).serve_with_incoming(incoming);
        shutdown.spawn(async move { serving.await.unwrap() });
        let client = Client::open(&url, None, None).await.unwrap();
        let buffer = Buffer::default();
        let mut out = Out::to(buffer.clone(), json);
        let outcome = {
            let mut screen = Screen::plain(&mut out);
            let source = Source::Contract("c".to_owned());
            let follow = follow(&client, &source, &mut screen);
            tokio::time::timeout(Duration::from_secs(20), follow).await.expect("waiting ends")
        };
        shutdown.hard.cancel();
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        (outcome, text)
    }

    fn step(kind: Kind, token: &str) -> WatchContractResponse {
        WatchContractResponse { kind: Some(kind), resume_token: token.to_owned() }
    }

    fn snapshot(tasks: Vec<pb::Task>, token: &str) -> Vec<WatchContractResponse> {
        let contract = pb::Contract { contract_id: "c".to_owned(), name: "shop".to_owned(), ..Default::default() };
        vec![
            step(Kind::Contract(contract), ""),
            step(Kind::Tasks(pb::TaskList { tasks }), ""),
            step(Kind::SnapshotComplete(pb::SnapshotComplete {}), token),
        ]
    }

    fn changed(change: pb::Change, token: &str) -> WatchContractResponse {
        step(Kind::Change(change), token)
    }

    /// The server goes away twice: once as it does when it drains, once with a token that is too old by then.
    #[tokio::test]
    async fn waiting_survives_the_server() {
        let begin = [task("a", &[], TaskStatus::Pending, 1), task("b", &["a"], TaskStatus::Pending, 1)];
        let later = [task("a", &[], TaskStatus::Done, 4), task("b", &["a"], TaskStatus::Running, 3)];
        let mut first = snapshot(begin.to_vec(), "t0");
        first.push(changed(change(1, "a", TaskStatus::Running, 2, 1), "t1"));
        let mut last = snapshot(later.to_vec(), "t8");
        last.push(changed(change(9, "b", TaskStatus::Done, 5, 1), "t9"));
        let too_old = Status::with_error_details(Code::OutOfRange, "too old", tonic_types::ErrorDetails::new());
        let watches = vec![
            Watch { token: "", steps: first, end: Err(Status::unavailable("the server is stopping")) },
            Watch { token: "t1", steps: Vec::new(), end: Err(too_old) },
            Watch { token: "", steps: last, end: Ok(()) },
        ];
        let (outcome, text) = followed(watches, false).await;
        assert_eq!(outcome.unwrap(), Outcome::Done);
        let (lines, summary) = text.trim_end().rsplit_once('\n').unwrap();
        assert!(summary.starts_with("2 tasks done"), "{summary}");
        insta::assert_snapshot!(lines, @r"
        00:00:01Z a started on d1 (attempt 1)
        a done
        b started (attempt 0)
        00:00:09Z b done
        ");
    }

    #[tokio::test]
    async fn a_new_task_is_found_by_a_new_snapshot_where_it_cannot_be_read() {
        let mut first = snapshot(vec![task("a", &[], TaskStatus::Running, 1)], "t0");
        first.push(changed(change(1, "b", TaskStatus::Pending, 1, 0), "t1"));
        let tasks = vec![task("a", &[], TaskStatus::Failed, 2), task("b", &["a"], TaskStatus::Pending, 1)];
        let watches = vec![
            Watch { token: "", steps: first, end: Ok(()) },
            Watch { token: "", steps: snapshot(tasks, "t2"), end: Ok(()) },
        ];
        let (outcome, text) = followed(watches, true).await;
        assert_eq!(outcome.unwrap(), Outcome::Stuck { failed: vec![0], cancelled: vec![], blocked: vec![1] });
        let kinds: Vec<String> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(kinds, ["contract", "task", "change", "contract", "task", "task", "outcome"]);
    }

    /// The server counts down in its words; a wait is one thing to say, another attempt's wait is another.
    #[test]
    fn a_wait_is_said_once_though_its_words_count_down() {
        let waiting = |why: PendingReason, until: i64, reason: &str| {
            let mut task = task("crash", &[], TaskStatus::Pending, 1);
            task.set_pending_reason(why);
            task.not_before = Some(prost_types::Timestamp { seconds: until, nanos: 0 });
            task.reason = reason.to_owned();
            hint(&task)
        };
        let (first, text) = waiting(PendingReason::Backoff, 43_233, "tried again in 33 s").unwrap();
        assert_eq!(text, "crash waits until 12:00:33Z: tried again in 33 s");
        assert_eq!(waiting(PendingReason::Backoff, 43_233, "tried again in 30 s").unwrap().0, first);
        assert_ne!(waiting(PendingReason::Backoff, 43_300, "tried again in 33 s").unwrap().0, first);
        let (held, text) = waiting(PendingReason::Held, 43_233, "held by me").unwrap();
        assert_eq!(text, "crash waits: held by me");
        assert_ne!(waiting(PendingReason::Held, 43_233, "held by you").unwrap().0, held);
        assert_eq!(waiting(PendingReason::Dependencies, 43_233, "waits for a"), None);
    }

    #[tokio::test]
    async fn a_refusal_is_not_waited_for() {
        let watches = vec![Watch { token: "", steps: Vec::new(), end: Err(Status::not_found("no such contract")) }];
        let error = followed(watches, false).await.0.unwrap_err();
        assert!(error.to_string().contains("no such contract"), "{error}");
        assert_eq!(error.exit_code(), 1);
    }
}

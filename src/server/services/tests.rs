//! The services as a client meets them: over the network, with a daemon that a script plays.

mod files;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Code, Request, Status, Streaming,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use super::*;
use crate::{
    runtime::clock,
    server::{auth, listen, session},
    store::{Claim, Url},
    wire::pb::{
        self, contract_service_client::ContractServiceClient, daemon_service_client::DaemonServiceClient,
        key_service_client::KeyServiceClient, task_service_client::TaskServiceClient, watch_contract_response,
    },
};

const SOON: Duration = Duration::from_secs(20);

struct Bed {
    directory: tempfile::TempDir,
    store: Store,
    shutdown: Shutdown,
    channel: Channel,
    _claim: Claim,
}

#[derive(Clone)]
struct WithKey(String, Option<&'static str>);

impl Interceptor for WithKey {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if !self.0.is_empty() {
            request.metadata_mut().insert("authorization", format!("Bearer {}", self.0).parse().unwrap());
        }
        if let Some(owner) = self.1 {
            request.metadata_mut().insert(auth::OWNER_METADATA, owner.parse().unwrap());
        }
        Ok(request)
    }
}

type Keyed = InterceptedService<Channel, WithKey>;

async fn bed() -> Bed {
    bed_in(tempfile::tempdir().unwrap()).await
}

/// A server on what is there.
async fn bed_in(directory: tempfile::TempDir) -> Bed {
    let (store, claim) = Store::open(&Url::Sqlite(directory.path().join("db"))).await.unwrap();
    let keys = auth::bootstrap(&store, directory.path(), clock::now()).await.unwrap();
    let shutdown = Shutdown::new();
    let (ledger, writer) = Ledger::start(store.clone(), keys.clone()).await.unwrap();
    shutdown.spawn(writer);
    let times = session::Times { heartbeat: Duration::from_millis(200), lost_after: Duration::from_secs(45) };
    let host = session::Host { ledger, heard: Arc::default(), times, shutdown: shutdown.clone() };
    let blobs = Blobs::open(&directory.path().join("blobs")).unwrap();
    let output = OutputStore::new(store.clone(), blobs.clone());
    let auth = Auth::new(store.clone(), keys);
    let uploads = directory.path().join("uploads");
    let files = Uploads::open(&uploads, store.clone(), blobs.clone(), host.ledger.clone()).unwrap();
    let api = Api::new(store.clone(), auth.clone(), output.clone(), files, blobs, host);
    shutdown.spawn_loop("output", output.run(shutdown.clone()));
    shutdown.spawn_loop("feed", api.feed.clone().run(shutdown.clone()));
    let listener = listen::bind("127.0.0.1:0".parse().unwrap(), false).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = listen::serve(listener, api, auth, shutdown.clone());
    shutdown.spawn(async move { serving.await.unwrap() });
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    Bed { directory, store, shutdown, channel, _claim: claim }
}

impl Bed {
    fn key(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(name)).unwrap().trim().to_owned()
    }

    fn keyed(&self, name: &str) -> Keyed {
        InterceptedService::new(self.channel.clone(), WithKey(self.key(name), None))
    }

    fn contracts(&self) -> ContractServiceClient<Keyed> {
        ContractServiceClient::new(self.keyed("owner.key"))
    }

    fn tasks(&self) -> TaskServiceClient<Keyed> {
        TaskServiceClient::new(self.keyed("owner.key"))
    }

    async fn daemon(&self) -> PlayedDaemon {
        let mut client = DaemonServiceClient::new(self.keyed("daemon.key"));
        let (out, requests) = mpsc::channel(64);
        let hello = pb::Hello {
            protocol_min: 1,
            protocol_max: 1,
            daemon_id: Uuid::now_v7().to_string(),
            boot_id: Uuid::new_v4().to_string(),
            journal_id: Uuid::new_v4().to_string(),
            name: "box".into(),
            slots: 2,
            profiles: vec![pb::AgentProfile { name: "shell".into(), version: String::new() }],
            any_path: true,
            clock: Some(common::timestamp(clock::now())),
            ..Default::default()
        };
        let journal = hello.journal_id.clone();
        let mut daemon = PlayedDaemon { out, answers: None, journal, sequence: 0, commands: VecDeque::new() };
        daemon.say(pb::attach_request::Kind::Hello(Box::new(hello))).await;
        daemon.answers = Some(client.attach(ReceiverStream::new(requests)).await.unwrap().into_inner());
        let pb::attach_response::Kind::Welcome(_) = daemon.hear().await else { panic!("no welcome") };
        daemon.heartbeat().await;
        daemon
    }
}

struct PlayedDaemon {
    out: mpsc::Sender<pb::AttachRequest>,
    answers: Option<Streaming<pb::AttachResponse>>,
    journal: String,
    sequence: i64,
    commands: VecDeque<pb::DaemonCommand>,
}

impl PlayedDaemon {
    async fn say(&self, kind: pb::attach_request::Kind) {
        self.out.send(pb::AttachRequest { kind: Some(kind) }).await.unwrap();
    }

    async fn hear(&mut self) -> pb::attach_response::Kind {
        let answers = self.answers.as_mut().unwrap();
        tokio::time::timeout(SOON, answers.message()).await.unwrap().unwrap().unwrap().kind.unwrap()
    }

    async fn heartbeat(&self) {
        self.say(pb::attach_request::Kind::Heartbeat(pb::Heartbeat { free_slots: 2, ..Default::default() })).await;
    }

    /// Takes the next task it is given.
    async fn accept(&mut self) -> (pb::AttemptRef, pb::SpawnTask) {
        loop {
            let command = match self.commands.pop_front() {
                Some(command) => command,
                None => match self.hear().await {
                    pb::attach_response::Kind::Command(command) => command,
                    _ => continue,
                },
            };
            self.say(pb::attach_request::Kind::CommandAnswer(pb::CommandAnswer {
                sequence: command.sequence,
                command_id: command.command_id.clone(),
                outcome: Some(pb::command_answer::Outcome::Persisted(pb::Persisted {})),
            }))
            .await;
            if let Some(pb::daemon_command::Kind::SpawnTask(spawn)) = command.kind {
                return (command.attempt.unwrap(), *spawn);
            }
        }
    }

    async fn report(&mut self, attempt: &pb::AttemptRef, kind: pb::daemon_message::Kind) {
        self.sequence += 1;
        self.say(pb::attach_request::Kind::Message(Box::new(pb::DaemonMessage {
            sequence: self.sequence,
            journal_id: self.journal.clone(),
            attempt: Some(attempt.clone()),
            time: Some(common::timestamp(clock::now())),
            kind: Some(kind),
        })))
        .await;
        loop {
            match self.hear().await {
                pb::attach_response::Kind::MessageAnswer(answer) => {
                    assert_eq!(answer.outcome(), pb::MessageOutcome::Applied, "{answer:?}");
                    return;
                }
                // What the report made possible may come before its answer.
                pb::attach_response::Kind::Command(command) => self.commands.push_back(command),
                _ => {}
            }
        }
    }

    async fn start(&mut self, attempt: &pb::AttemptRef) {
        self.report(attempt, pb::daemon_message::Kind::TaskStarted(pb::TaskStarted::default())).await;
    }

    async fn succeed(&mut self, attempt: &pb::AttemptRef, output_bytes: i64) {
        let success = pb::Success {
            commit: "0123456789abcdef0123456789abcdef01234567".into(),
            branch: "b".into(),
            result_ref: "refs/r".into(),
            published: true,
            ..Default::default()
        };
        let complete = pb::TaskComplete {
            outcome: Some(pb::task_complete::Outcome::Success(success)),
            output_bytes,
            ..Default::default()
        };
        self.report(attempt, pb::daemon_message::Kind::TaskComplete(complete)).await;
    }

    async fn fail(&mut self, attempt: &pb::AttemptRef) {
        let failure = pb::Failure {
            failure_class: pb::FailureClass::AgentError.into(),
            message: "it said no".into(),
            reset_time: None,
        };
        let complete =
            pb::TaskComplete { outcome: Some(pb::task_complete::Outcome::Failure(failure)), ..Default::default() };
        self.report(attempt, pb::daemon_message::Kind::TaskComplete(complete)).await;
    }
}

fn spec(name: &str, depends_on: &[&str]) -> pb::TaskSpec {
    pb::TaskSpec {
        name: name.into(),
        plan: format!("echo {name}"),
        agent: "shell".into(),
        depends_on: depends_on.iter().map(|it| (*it).to_owned()).collect(),
        ..Default::default()
    }
}

fn contract(tasks: Vec<pb::TaskSpec>) -> pb::CreateContractRequest {
    pb::CreateContractRequest { name: "users".into(), repository: "/srv/repo".into(), tasks, ..Default::default() }
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

async fn ended(bed: Bed) {
    drop(bed.channel);
    assert!(bed.shutdown.finish().await, "a loop ended that should not have");
}

/// The way of a contract: made, explained, run by a daemon, watched to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contract_from_its_making_to_its_end() {
    let bed = bed().await;
    let mut contracts = bed.contracts();
    let mut tasks = bed.tasks();
    let request = pb::CreateContractRequest {
        request_id: "once".into(),
        ..contract(vec![spec("schema", &[]), spec("api", &["schema"])])
    };
    let made = contracts.create_contract(request.clone()).await.unwrap().into_inner();
    let id = made.contract.clone().unwrap().contract_id;
    assert_eq!(made.tasks.len(), 2);
    assert_eq!(made.tasks[1].spec.as_ref().unwrap().depends_on, [made.tasks[0].task_id.clone()]);
    assert_eq!(made.tasks[0].pending_reason(), pb::PendingReason::NoDaemon);
    assert_eq!(made.tasks[1].pending_reason(), pb::PendingReason::Dependencies);
    let again = contracts.create_contract(request.clone()).await.unwrap().into_inner();
    assert_eq!(again.contract.unwrap().contract_id, id, "the same request made one contract");
    let other = pb::CreateContractRequest { name: "other".into(), ..request };
    let error = contracts.create_contract(other).await.unwrap_err();
    assert_eq!((error.code(), reason(&error).as_str()), (Code::AlreadyExists, "REQUEST_ID_REUSED"));

    let watch = pb::WatchContractRequest { contract_id: id.clone(), until_end: true, ..Default::default() };
    let mut watch = contracts.watch_contract(watch).await.unwrap().into_inner();

    let explain = pb::ExplainTaskRequest { task_id: made.tasks[1].task_id[24..].to_owned() };
    let explained = tasks.explain_task(explain).await.unwrap().into_inner();
    assert_eq!(explained.summary, "`api` is PENDING: waits for schema (PENDING)");
    assert_eq!(explained.waiting_for[0].name, "schema");

    let mut daemon = bed.daemon().await;
    for name in ["schema", "api"] {
        let (attempt, spawn) = daemon.accept().await;
        assert_eq!(spawn.name, name);
        daemon.start(&attempt).await;
        daemon.succeed(&attempt, 0).await;
    }

    let (mut snapshot, mut events, mut token) = (Vec::new(), Vec::new(), String::new());
    while let Some(step) = tokio::time::timeout(SOON, watch.next()).await.expect("the watch ends with the contract") {
        let step = step.unwrap();
        match step.kind.unwrap() {
            watch_contract_response::Kind::Contract(contract) => assert_eq!(contract.contract_id, id),
            watch_contract_response::Kind::Tasks(list) => snapshot.extend(list.tasks),
            watch_contract_response::Kind::SnapshotComplete(_) => token = step.resume_token,
            watch_contract_response::Kind::Change(change) => {
                events.push(format!("{} {}", change.task_name, change.event));
            }
        }
    }
    assert_eq!(snapshot.len(), 2);
    assert!(snapshot.iter().all(|task| task.spec.as_ref().unwrap().plan.is_empty()));
    let of = |name: &str| events.iter().filter(|it| it.starts_with(name)).cloned().collect::<Vec<_>>();
    assert_eq!(of("api").last().unwrap(), "api task.done", "{events:?}");
    let place = |event: &str| events.iter().position(|it| it == event).unwrap_or_else(|| panic!("{event}: {events:?}"));
    assert!(place("schema task.done") < place("api task.started"));

    // A second watch from the token hears the same changes, and ends at once.
    let again = pb::WatchContractRequest { contract_id: id.clone(), resume_token: token, until_end: true };
    let again: Vec<_> = contracts.watch_contract(again).await.unwrap().into_inner().collect().await;
    assert_eq!(again.len(), events.len());
    let foreign = pb::WatchContractRequest { contract_id: id.clone(), resume_token: "abc".into(), until_end: true };
    assert_eq!(reason(&contracts.watch_contract(foreign).await.unwrap_err()), "INVALID_RESUME_TOKEN");

    let got = contracts.get_contract(pb::GetContractRequest { contract_id: id }).await.unwrap().into_inner();
    assert_eq!(got.contract.unwrap().status(), pb::ContractStatus::Done);
    drop((daemon, tasks, contracts, watch));
    ended(bed).await;
}

/// Output is followed from the first byte to the last, by its owner and by the task's own key, and by nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_is_followed_while_it_comes() {
    let bed = bed().await;
    let mut tasks = bed.tasks();
    let request = pb::CreateTaskRequest {
        spec: Some(Box::new(pb::TaskSpec { repository: "/srv/repo".into(), ..spec("lone", &[]) })),
        ..Default::default()
    };
    let task = tasks.create_task(request).await.unwrap().into_inner().task.unwrap();
    let follow = pb::StreamTaskOutputRequest { task_id: task.task_id.clone(), follow: true, ..Default::default() };
    // Asked for before there is an attempt.
    let mut following = tasks.stream_task_output(follow.clone()).await.unwrap().into_inner();

    let mut daemon = bed.daemon().await;
    let (attempt, spawn) = daemon.accept().await;
    daemon.start(&attempt).await;
    let mut own =
        TaskServiceClient::new(InterceptedService::new(bed.channel.clone(), WithKey(spawn.task_key.clone(), None)));
    let got = own.get_task(pb::GetTaskRequest { task_id: task.task_id.clone() }).await.unwrap().into_inner();
    assert_eq!(got.task.unwrap().status(), pb::TaskStatus::Running);
    assert_eq!(got.attempts[0].daemon_name, "box");
    let error = own.retry_task(pb::RetryTaskRequest { task_id: task.task_id.clone(), ..Default::default() }).await;
    assert_eq!(reason(&error.unwrap_err()), "OWNER_KEY_NEEDED");

    // A task key ends at its contract.
    let held = pb::CreateContractRequest { hold: true, ..contract(vec![spec("elsewhere", &[])]) };
    let held = bed.contracts().create_contract(held).await.unwrap().into_inner();
    let (other, other_contract) = (held.tasks[0].task_id.clone(), held.contract.unwrap().contract_id);
    let get = pb::GetTaskRequest { task_id: other.clone() };
    assert_eq!(reason(&own.get_task(get).await.unwrap_err()), "OUTSIDE_TASK_KEY");
    let read = pb::StreamTaskOutputRequest { task_id: other, ..Default::default() };
    assert_eq!(reason(&own.stream_task_output(read).await.unwrap_err()), "OUTSIDE_TASK_KEY");
    let list = pb::ListTasksRequest { contract_id: other_contract.clone(), ..Default::default() };
    assert_eq!(reason(&own.list_tasks(list).await.unwrap_err()), "OUTSIDE_TASK_KEY");
    let list = own.list_tasks(pb::ListTasksRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.tasks.iter().map(|it| it.task_id.as_str()).collect::<Vec<_>>(), [task.task_id.as_str()]);
    let mut own_contracts =
        ContractServiceClient::new(InterceptedService::new(bed.channel.clone(), WithKey(spawn.task_key.clone(), None)));
    let watch = pb::WatchContractRequest { contract_id: other_contract, ..Default::default() };
    assert_eq!(reason(&own_contracts.watch_contract(watch).await.unwrap_err()), "OUTSIDE_TASK_KEY");
    drop(own_contracts);

    let mut bulk = DaemonServiceClient::new(bed.keyed("daemon.key"));
    let (chunks, requests) = mpsc::channel(16);
    let mut answers = bulk.upload_chunks(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let chunk = |offset: i64, data: &'static [u8], last| pb::UploadChunksRequest {
        attempt: Some(attempt.clone()),
        kind: pb::ChunkKind::Output.into(),
        offset,
        data: bytes::Bytes::from_static(data),
        crc32: crc32fast::hash(data),
        last,
        gap: false,
        ..Default::default()
    };
    chunks.send(chunk(0, b"hello ", false)).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!((answer.received_offset, answer.complete, answer.refused), (6, false, false));
    let piece = tokio::time::timeout(SOON, following.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((piece.attempt, piece.offset, &*piece.data), (1, 0, &b"hello "[..]), "before it is durable");
    daemon.succeed(&attempt, 11).await;
    chunks.send(chunk(6, b"world", true)).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!((answer.committed_offset, answer.complete), (11, true));
    let piece = tokio::time::timeout(SOON, following.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((piece.offset, &*piece.data), (6, &b"world"[..]));
    assert!(tokio::time::timeout(SOON, following.message()).await.unwrap().unwrap().is_none());

    let rest = pb::StreamTaskOutputRequest { offset: 9, ..follow };
    let rest: Vec<_> = tasks.stream_task_output(rest).await.unwrap().into_inner().collect().await;
    assert_eq!(&*rest[0].as_ref().unwrap().data, b"ld");
    assert_eq!(rest.len(), 1);

    // Another owner's daemon adds nothing to it, and its people see nothing of it.
    let mut keys = KeyServiceClient::new(bed.keyed("admin.key"));
    let mut secret = async |kind: pb::KeyKind| {
        let request = pb::CreateKeyRequest { kind: kind.into(), owner: "other".into(), label: String::new() };
        keys.create_key(request).await.unwrap().into_inner().secret
    };
    let key = WithKey(secret(pb::KeyKind::Daemon).await, None);
    let mut foreign = DaemonServiceClient::new(InterceptedService::new(bed.channel.clone(), key));
    let foreign = foreign.upload_chunks(tokio_stream::once(chunk(0, b"evil", false))).await.unwrap().into_inner();
    let foreign: Vec<_> = foreign.collect().await;
    assert!(foreign[0].as_ref().unwrap().refused);
    let key = WithKey(secret(pb::KeyKind::Owner).await, None);
    let mut foreign = TaskServiceClient::new(InterceptedService::new(bed.channel.clone(), key));
    let read = pb::StreamTaskOutputRequest { task_id: task.task_id.clone(), ..Default::default() };
    assert_eq!(reason(&foreign.stream_task_output(read).await.unwrap_err()), "TASK_NOT_FOUND");
    drop((foreign, keys));

    // Unknown attempts are refused, damaged chunks end the stream.
    let mut stranger = chunk(0, b"x", false);
    stranger.attempt.as_mut().unwrap().number = 2;
    stranger.attempt.as_mut().unwrap().attempt_id = Uuid::new_v4().to_string();
    chunks.send(stranger).await.unwrap();
    assert!(answers.message().await.unwrap().unwrap().refused);
    chunks.send(pb::UploadChunksRequest { crc32: 1, ..chunk(0, b"x", false) }).await.unwrap();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::DataLoss);

    let error = own.get_task(pb::GetTaskRequest { task_id: task.task_id }).await.unwrap_err();
    assert_eq!(reason(&error), "KEY_EXPIRED");
    drop((daemon, tasks, own, bulk, answers, following));
    ended(bed).await;
}

/// A contract in which nothing can move any more is failed, says why, and ends its watches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_blocked_for_ever_says_so() {
    let bed = bed().await;
    let mut contracts = bed.contracts();
    let mut tasks = bed.tasks();
    let made = contracts
        .create_contract(contract(vec![spec("a", &[]), spec("b", &["a"]), spec("c", &["b"])]))
        .await
        .unwrap()
        .into_inner();
    let id = made.contract.unwrap().contract_id;
    let mut daemon = bed.daemon().await;
    let (attempt, _) = daemon.accept().await;
    daemon.start(&attempt).await;
    daemon.fail(&attempt).await;

    let watch = pb::WatchContractRequest { contract_id: id.clone(), until_end: true, ..Default::default() };
    let watch = contracts.watch_contract(watch).await.unwrap().into_inner().collect::<Vec<_>>();
    tokio::time::timeout(SOON, watch).await.expect("the watch ends");
    let got = contracts.get_contract(pb::GetContractRequest { contract_id: id.clone() }).await.unwrap().into_inner();
    assert_eq!(got.contract.unwrap().status(), pb::ContractStatus::Failed);
    for (status, count) in [(pb::ContractStatus::Failed, 1), (pb::ContractStatus::Active, 0)] {
        let list = pb::ListContractsRequest { statuses: vec![status.into()], ..Default::default() };
        assert_eq!(contracts.list_contracts(list).await.unwrap().into_inner().contracts.len(), count);
    }
    let explain = pb::ExplainTaskRequest { task_id: made.tasks[2].task_id.clone() };
    let explained = tasks.explain_task(explain).await.unwrap().into_inner();
    assert_eq!(explained.summary, "`c` is PENDING: never starts by itself: it hangs on a (FAILED)");
    assert_eq!(explained.task.unwrap().pending_reason(), pb::PendingReason::Blocked);

    // Tried again, it moves again.
    let retry = pb::RetryTaskRequest { task_id: made.tasks[0].task_id.clone(), ..Default::default() };
    tasks.retry_task(retry).await.unwrap();
    let got = contracts.get_contract(pb::GetContractRequest { contract_id: id.clone() }).await.unwrap().into_inner();
    assert_eq!(got.contract.unwrap().status(), pb::ContractStatus::Active);
    let list = pb::ListTasksRequest { contract_id: id, page_size: 2, ..Default::default() };
    let page = tasks.list_tasks(list.clone()).await.unwrap().into_inner();
    assert_eq!(page.tasks.len(), 2);
    assert_eq!(page.tasks[1].pending_reason(), pb::PendingReason::Dependencies);
    let next = pb::ListTasksRequest { page_token: page.next_page_token.clone(), ..list.clone() };
    let last = tasks.list_tasks(next).await.unwrap().into_inner();
    assert_eq!((last.tasks.len(), last.next_page_token.as_str()), (1, ""));
    let other = pb::ListTasksRequest { page_token: page.next_page_token, include_hidden: true, ..list };
    assert_eq!(reason(&tasks.list_tasks(other).await.unwrap_err()), "INVALID_PAGE_TOKEN");
    drop((daemon, tasks, contracts));
    ended(bed).await;
}

/// What is refused is refused with the right code, its reason, and every fault at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_what_is_wrong() {
    let bed = bed().await;
    let mut contracts = bed.contracts();
    let cycle = contract(vec![spec("a", &["b"]), spec("b", &["a"]), spec("c", &["nobody"])]);
    let error = contracts.create_contract(cycle).await.unwrap_err();
    assert_eq!((error.code(), reason(&error).as_str()), (Code::InvalidArgument, "INVALID_DEPENDENCIES"));
    let violations = error.get_details_bad_request().unwrap().field_violations;
    assert!(violations.len() >= 2, "{violations:?}");
    let bad = pb::CreateContractRequest { name: String::new(), ..contract(vec![pb::TaskSpec::default()]) };
    let error = contracts.create_contract(bad).await.unwrap_err();
    let fields: Vec<_> =
        error.get_details_bad_request().unwrap().field_violations.into_iter().map(|it| it.field).collect();
    assert_eq!(fields, ["name", "tasks[0].name", "tasks[0].plan"]);
    let mut unserved = contract(vec![spec("a", &[])]);
    unserved.tasks[0].merge_mode = "squash".into();
    let error = contracts.create_contract(unserved).await.unwrap_err();
    assert_eq!((error.code(), reason(&error).as_str()), (Code::Unimplemented, "NOT_SERVED_YET"));

    let made = contracts.create_contract(contract(vec![spec("a", &[])])).await.unwrap().into_inner();
    let id = made.contract.clone().unwrap().contract_id;
    let update = pb::UpdateContractRequest {
        contract_id: id.clone(),
        etag: "v999".into(),
        update_mask: Some(prost_types::FieldMask { paths: vec!["name".into()] }),
        name: "new".into(),
        ..Default::default()
    };
    let error = contracts.update_contract(update.clone()).await.unwrap_err();
    assert_eq!((error.code(), reason(&error).as_str()), (Code::Aborted, "ETAG_MISMATCH"));
    let good = pb::UpdateContractRequest { etag: made.contract.unwrap().etag, ..update };
    assert_eq!(contracts.update_contract(good).await.unwrap().into_inner().contract.unwrap().name, "new");
    let hold = pb::HoldContractRequest { contract_id: id.clone(), reason: "wait".into(), ..Default::default() };
    let held = contracts.hold_contract(hold).await.unwrap().into_inner().contract.unwrap();
    assert!(held.held_by.ends_with(": wait"), "{}", held.held_by);

    // Another owner sees nothing of it.
    let mut keys = KeyServiceClient::new(bed.keyed("admin.key"));
    let request = pb::CreateKeyRequest { kind: pb::KeyKind::Owner.into(), owner: "other".into(), label: "l".into() };
    let key = keys.create_key(request.clone()).await.unwrap().into_inner();
    let mut others =
        ContractServiceClient::new(InterceptedService::new(bed.channel.clone(), WithKey(key.secret.clone(), None)));
    let get = pb::GetContractRequest { contract_id: id.clone() };
    assert_eq!(reason(&others.get_contract(get.clone()).await.unwrap_err()), "CONTRACT_NOT_FOUND");
    let cancel = pb::CancelContractRequest { contract_id: id.clone(), ..Default::default() };
    assert_eq!(reason(&others.cancel_contract(cancel).await.unwrap_err()), "CONTRACT_NOT_FOUND");
    assert!(
        others.list_contracts(pb::ListContractsRequest::default()).await.unwrap().into_inner().contracts.is_empty()
    );
    let create = KeyServiceClient::new(bed.keyed("owner.key")).create_key(request).await;
    assert_eq!(reason(&create.unwrap_err()), "ADMIN_KEY_NEEDED");
    keys.revoke_key(pb::RevokeKeyRequest { key_id: key.key.unwrap().key_id }).await.unwrap();
    assert_eq!(reason(&others.get_contract(get.clone()).await.unwrap_err()), "KEY_REVOKED");
    let list = keys.list_keys(pb::ListKeysRequest { include_revoked: true, ..Default::default() }).await.unwrap();
    assert_eq!(list.into_inner().keys.len(), 4);

    // An admin key names whose data it wants.
    let admin = |owner| {
        let key = WithKey(bed.key("admin.key"), owner);
        ContractServiceClient::new(InterceptedService::new(bed.channel.clone(), key))
    };
    assert_eq!(reason(&admin(None).get_contract(get.clone()).await.unwrap_err()), "OWNER_NOT_NAMED");
    admin(Some("default")).get_contract(get.clone()).await.unwrap();
    let mut nobody =
        ContractServiceClient::new(InterceptedService::new(bed.channel.clone(), WithKey(String::new(), None)));
    let error = nobody.get_contract(get).await.unwrap_err();
    assert_eq!((error.code(), reason(&error).as_str()), (Code::Unauthenticated, "KEY_MISSING"));
    let attach = DaemonServiceClient::new(bed.keyed("owner.key")).attach(tokio_stream::empty()).await;
    assert_eq!(reason(&attach.unwrap_err()), "DAEMON_KEY_NEEDED");
    drop((contracts, keys, others, nobody));
    ended(bed).await;
}

/// Health and reflection need no key; a drain turns health, ends watches, and is over in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_everything_in_time() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };

    let bed = bed().await;
    let mut health = HealthClient::new(bed.channel.clone());
    let check = HealthCheckRequest { service: String::new() };
    let mut serving = health.watch(check.clone()).await.unwrap().into_inner();
    assert_eq!(serving.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

    let ask = |what: MessageRequest| ServerReflectionRequest { host: String::new(), message_request: Some(what) };
    let requests = tokio_stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("google.rpc.BadRequest".into())),
        ask(MessageRequest::FileContainingSymbol("grpc.health.v1.Health".into())),
        ask(MessageRequest::FileContainingSymbol("makima.v1.TaskService".into())),
    ]);
    let mut reflection = ServerReflectionClient::new(bed.channel.clone());
    let answers = reflection.server_reflection_info(requests).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap().message_response.unwrap()).collect().await;
    let MessageResponse::ListServicesResponse(services) = &answers[0] else { panic!("{answers:?}") };
    let names: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["makima.v1.ContractService", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for answer in &answers[1..] {
        assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{answer:?}");
    }

    let mut contracts = bed.contracts();
    let made = contracts.create_contract(contract(vec![spec("a", &[])])).await.unwrap().into_inner();
    let watch = pb::WatchContractRequest { contract_id: made.contract.unwrap().contract_id, ..Default::default() };
    let mut watch = contracts.watch_contract(watch).await.unwrap().into_inner();
    bed.shutdown.soft.cancel();
    assert_eq!(serving.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let end = loop {
        match tokio::time::timeout(SOON, watch.message()).await.unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a watch that is cut off says so"),
            Err(status) => break status,
        }
    };
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    drop((contracts, health, reflection, serving, watch));
    let started = tokio::time::Instant::now();
    ended(bed).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

/// A token whose changes are no longer kept is refused; so is one of another database's future.
#[tokio::test]
async fn a_token_expires_with_a_clear_error() {
    let bed = bed().await;
    let mut contracts = bed.contracts();
    let made = contracts.create_contract(contract(vec![spec("a", &[])])).await.unwrap().into_inner();
    let id = made.contract.unwrap().contract_id;
    let token = crate::wire::page::resume_token(id.parse().unwrap(), 4_711);
    let watch = pb::WatchContractRequest { contract_id: id, resume_token: token, until_end: false };
    let error = contracts.watch_contract(watch).await.unwrap_err();
    assert_eq!((error.code(), reason(&error).as_str()), (Code::OutOfRange, "RESUME_TOKEN_EXPIRED"));
    drop(contracts);
    ended(bed).await;
}

//! Requests that cannot be right: refused whole, naming every field, and nothing of them is kept.

use std::fs;

use makima::wire::pb::{self, FailureClass, KeyKind, TaskStatus};
use tonic::Code;

use super::{refusal, said, standing, told, until, work_goes_on};
use crate::harness::{
    Database, World,
    client::{Client, shell},
};

/// The largest plan that is taken.
const MAX_PLAN: usize = 512 * 1024;

/// A contract with a cycle, a task that depends on itself, on one that is not there, on one twice: all is named at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependencies_that_cannot_be() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let client = world.client();
    let before = standing(&client).await;

    let tasks = vec![
        shell("schema", "true", &["ui"]),
        shell("types", "true", &["schema"]),
        shell("ui", "true", &["types"]),
        shell("self", "true", &["self"]),
        shell("lost", "true", &["nobody"]),
        shell("twice", "true", &["types", "types"]),
    ];
    let refused = client.try_create(&repo.url(), tasks).await.unwrap_err();
    let (code, reason, mut fields) = told(&refused);
    fields.sort();
    assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_DEPENDENCIES"));
    insta::assert_debug_snapshot!(fields, @r#"
    [
        (
            "tasks[0].depends_on[0]",
            "dependencies form a cycle: schema -> ui -> types -> schema",
        ),
        (
            "tasks[3].depends_on[0]",
            "a task cannot depend on itself",
        ),
        (
            "tasks[4].depends_on[0]",
            "there is no task `nobody`: name a task of this call or contract, or give its id",
        ),
        (
            "tasks[5].depends_on[1]",
            "`types` is named twice among the dependencies",
        ),
    ]
    "#);

    // As a person meets it.
    let file = "name: round\nagent: shell\ntasks:\n  a: { plan: 'true', depends_on: [b] }\n  b: { plan: 'true', depends_on: [a] }\n";
    fs::write(world.dir.join("round.yaml"), file).unwrap();
    let output = world.cli(&["contract", "apply", "round.yaml", "--repo", &repo.url()]).await;
    insta::assert_debug_snapshot!(said(&output), @r#"
    (
        Some(
            1,
        ),
        "makima: cannot create the contract: tasks[0].depends_on[0] dependencies form a cycle: a -> b -> a (INVALID_DEPENDENCIES)",
    )
    "#);

    // An edge that would close a circle later is refused as well.
    let created = client.create(&repo.url(), vec![shell("a", "true", &[]), shell("b", "true", &["a"])]).await;
    let [a, b] = [&created.tasks[0].task_id, &created.tasks[1].task_id];
    let other = client.create(&repo.url(), vec![shell("c", "true", &[])]).await.tasks[0].task_id.clone();
    until(&client, b, TaskStatus::Done).await;
    let held = pb::CreateContractRequest {
        name: "held".to_owned(),
        repository: repo.url(),
        tasks: vec![shell("a", "true", &[]), shell("b", "true", &["a"])],
        hold: true,
        ..Default::default()
    };
    let held = client.contracts().create_contract(held).await.unwrap().into_inner();
    let [first, second] = [&held.tasks[0].task_id, &held.tasks[1].task_id];
    let stood = standing(&client).await.1.len();
    let request = pb::AddDependenciesRequest {
        task_id: first.clone(),
        depends_on: vec![second.clone(), a.clone(), other],
        ..Default::default()
    };
    let refused = client.tasks().add_dependencies(request).await.unwrap_err();
    let (code, reason, fields) = told(&refused);
    assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_DEPENDENCIES"));
    let fields: Vec<&str> = fields.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["depends_on[0]", "depends_on[1]", "depends_on[2]"], "{refused:?}");
    assert_eq!(client.task(first).await.task.unwrap().unmet_dependencies, 0);

    assert_eq!(before, (Vec::new(), Vec::new()));
    assert_eq!(standing(&client).await.1.len(), stood);
    work_goes_on(&world, &repo).await;
}

/// Another owner's task is no task at all: not to depend on, not to look at, not to move.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_another_owner() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let request =
        pb::CreateKeyRequest { kind: KeyKind::Owner.into(), owner: "stranger".to_owned(), ..Default::default() };
    let key = world.client_as("admin").keys().create_key(request).await.unwrap().into_inner().secret;
    let stranger = Client::new(&world.url).with_key(&key);

    let ours = world.client();
    let created = ours.create(&repo.url(), vec![shell("ours", "true", &[])]).await;
    let task = created.tasks[0].task_id.clone();
    let before = until(&ours, &task, TaskStatus::Done).await;

    let refused = stranger.try_create(&repo.url(), vec![shell("theirs", "true", &[&task])]).await.unwrap_err();
    let nobody = format!("there is no task `{task}`: name a task of this call or contract, or give its id");
    let expected = refusal(Code::InvalidArgument, "INVALID_DEPENDENCIES", &[("tasks[0].depends_on[0]", &nobody)]);
    assert_eq!(told(&refused), expected);
    let not_found = refusal(Code::NotFound, "TASK_NOT_FOUND", &[]);
    let get = stranger.tasks().get_task(pb::GetTaskRequest { task_id: task.clone() }).await.unwrap_err();
    assert_eq!(told(&get), not_found);
    let cancel = pb::CancelTaskRequest { task_id: task.clone(), ..Default::default() };
    assert_eq!(told(&stranger.tasks().cancel_task(cancel).await.unwrap_err()), not_found);
    let retry = pb::RetryTaskRequest { task_id: task.clone(), ..Default::default() };
    assert_eq!(told(&stranger.tasks().retry_task(retry).await.unwrap_err()), not_found);
    let output = stranger.output(&task, 1).await.unwrap_err();
    assert_eq!(told(&output), not_found);
    let contract = pb::GetContractRequest { contract_id: before.contract_id.clone() };
    let contract = stranger.contracts().get_contract(contract).await.unwrap_err();
    assert_eq!(told(&contract), refusal(Code::NotFound, "CONTRACT_NOT_FOUND", &[]));
    assert_eq!(standing(&stranger).await, (Vec::new(), Vec::new()));

    let output = world
        .cli_with(&["task", "cancel", &task], |command| {
            command.env_remove("MAKIMA_KEY_FILE").env("MAKIMA_KEY", &key);
        })
        .await;
    insta::assert_debug_snapshot!((said(&output).0, said(&output).1.replace(&task, "ID")), @r#"
    (
        Some(
            1,
        ),
        "makima: cannot cancel the task: no task `ID` (TASK_NOT_FOUND)",
    )
    "#);
    assert_eq!(ours.task(&task).await.task.unwrap(), before);
}

/// A repository or base that is not there: `apply` says so where it can look, else the daemon does, and does not try again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_or_base_that_is_not_there() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let client = world.client();
    fs::write(world.dir.join("c.yaml"), "agent: shell\ntasks: { a: { plan: 'true' } }\n").unwrap();
    fs::create_dir(world.dir.join("plain")).unwrap();
    let dir = world.dir.display().to_string();
    let mut lines = Vec::new();
    for more in [&["--repo", "nowhere"][..], &["--repo", "plain"], &["--repo", "repo", "--base", "nope"]] {
        let output = world.cli(&[&["contract", "apply", "c.yaml"], more].concat()).await;
        let (code, line) = said(&output);
        lines.push((code, line.replace(&dir, "DIR")));
    }
    insta::assert_debug_snapshot!(lines, @r#"
    [
        (
            Some(
                2,
            ),
            "makima: there is no repository at DIR/nowhere: the path does not exist",
        ),
        (
            Some(
                2,
            ),
            "makima: DIR/plain is not a git repository: name another, or run `git init` and commit there",
        ),
        (
            Some(
                2,
            ),
            "makima: nope is no branch, tag or commit of DIR/repo; branches there: main",
        ),
    ]
    "#);
    assert_eq!(standing(&client).await, (Vec::new(), Vec::new()));

    // Nobody looks before the daemon does.
    let missing = world.dir.join("nowhere");
    let cases = [
        (missing.display().to_string(), String::new()),
        (format!("file://{}", missing.display()), String::new()),
        (repo.url(), "nope".to_owned()),
        (repo.file_url(), "nope".to_owned()),
    ];
    let mut messages = Vec::new();
    for (repository, base_branch) in cases {
        let request = pb::CreateContractRequest {
            name: "wrong".to_owned(),
            repository,
            base_branch,
            tasks: vec![shell("a", "true", &[])],
            ..Default::default()
        };
        let created = client.contracts().create_contract(request).await.unwrap().into_inner();
        let failed = until(&client, &created.tasks[0].task_id, TaskStatus::Failed).await;
        assert_eq!((failed.attempt, failed.failure_class()), (1, FailureClass::Repository), "{failed:?}");
        messages.push(failed.error_message.replace(&dir, "DIR"));
    }
    insta::assert_debug_snapshot!(messages, @r#"
    [
        "DIR/nowhere does not exist on this machine",
        "cannot fetch file://DIR/nowhere: fatal: 'DIR/nowhere' does not appear to be a git repository\nfatal: Could not read from remote repository.\n\nPlease make sure you have the correct access rights\nand the repository exists.",
        "`nope` is no branch, tag or commit of DIR/repo; branches there: main",
        "`nope` is no branch, tag or commit of file://DIR/repo; branches there: main",
    ]
    "#);
    work_goes_on(&world, &repo).await;
}

/// A plan of 512 KiB is done, one byte more is refused, from a file too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_is_too_long() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let client = world.client();
    let plan = |bytes: usize| {
        let script = "echo long > long\n";
        format!("{script}{}", "#".repeat(bytes - script.len()))
    };
    let refused = client.try_create(&repo.url(), vec![shell("long", &plan(MAX_PLAN + 1), &[])]).await.unwrap_err();
    let text = "is 524289 bytes long; at most 524288 are taken";
    assert_eq!(told(&refused), refusal(Code::InvalidArgument, "INVALID_FIELDS", &[("tasks[0].plan", text)]));

    fs::write(world.dir.join("plan.sh"), plan(MAX_PLAN + 1)).unwrap();
    fs::write(world.dir.join("long.yaml"), "agent: shell\ntasks: { long: { plan_file: plan.sh } }\n").unwrap();
    let apply = ["contract", "apply", "long.yaml", "--repo", "repo", "--wait"];
    insta::assert_debug_snapshot!(said(&world.cli(&apply).await), @r#"
    (
        Some(
            2,
        ),
        "makima: long.yaml: tasks.long: its plan has 524289 bytes; at most 524288 are taken",
    )
    "#);
    assert_eq!(standing(&client).await, (Vec::new(), Vec::new()));

    fs::write(world.dir.join("plan.sh"), plan(MAX_PLAN)).unwrap();
    let output = world.cli(&apply).await;
    assert!(output.status.success(), "{output:?}");
    let (_, tasks) = standing(&client).await;
    assert_eq!(repo.file(&tasks[0].result_commit, "long").as_deref(), Some("long\n"));
}

/// A request with text that is not UTF-8, as no generated client would send it.
#[derive(Clone, PartialEq, prost::Message)]
struct RawContract {
    #[prost(bytes = "vec", tag = "2")]
    name: Vec<u8>,
}

/// NUL and bytes that are not UTF-8: the fields are named; a file that holds them is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_that_is_no_text() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let client = world.client();
    let mut task = shell("nul", "echo a\0b", &[]);
    task.description = "\0".to_owned();
    task.setup_command = "a\0".to_owned();
    let refused = client.try_create(&repo.url(), vec![task, shell("na\0me", "true", &[])]).await.unwrap_err();
    let (code, reason, mut fields) = told(&refused);
    fields.sort();
    assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_FIELDS"));
    insta::assert_debug_snapshot!(fields, @r#"
    [
        (
            "tasks[0].description",
            "holds a NUL character",
        ),
        (
            "tasks[0].plan",
            "holds a NUL character",
        ),
        (
            "tasks[0].setup_command",
            "holds a NUL character",
        ),
        (
            "tasks[1].name",
            "holds a NUL character",
        ),
    ]
    "#);

    let channel = tonic::transport::Endpoint::from_shared(world.url.clone()).unwrap().connect().await.unwrap();
    let mut raw = tonic::client::Grpc::new(channel);
    raw.ready().await.unwrap();
    let key = fs::read_to_string(world.key_file("owner")).unwrap();
    let mut request = tonic::Request::new(RawContract { name: b"caf\xe9".to_vec() });
    request.metadata_mut().insert("authorization", format!("Bearer {}", key.trim()).parse().unwrap());
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/makima.v1.ContractService/CreateContract");
    let codec = tonic_prost::ProstCodec::<RawContract, pb::CreateContractResponse>::default();
    let refused = raw.unary(request, path, codec).await.unwrap_err();
    let text = "cannot be read: invalid string value: data is not UTF-8 encoded";
    assert_eq!(told(&refused), refusal(Code::InvalidArgument, "INVALID_FIELDS", &[("name", text)]));

    fs::write(world.dir.join("latin.yaml"), b"name: caf\xe9\ntasks: {}\n").unwrap();
    fs::write(world.dir.join("plan.sh"), b"echo caf\xe9\n").unwrap();
    fs::write(world.dir.join("plan.yaml"), "agent: shell\ntasks: { a: { plan_file: plan.sh } }\n").unwrap();
    fs::write(world.dir.join("nul.yaml"), "agent: shell\ntasks: { a: { plan: \"echo a\\0b\" } }\n").unwrap();
    let mut lines = Vec::new();
    for file in ["latin.yaml", "plan.yaml", "nul.yaml"] {
        let (code, line) = said(&world.cli(&["contract", "apply", file, "--repo", "repo"]).await);
        lines.push((code, line.replace(&world.dir.display().to_string(), "DIR")));
    }
    insta::assert_debug_snapshot!(lines, @r#"
    [
        (
            Some(
                2,
            ),
            "makima: latin.yaml is not UTF-8: invalid utf-8 sequence of 1 bytes from index 9",
        ),
        (
            Some(
                2,
            ),
            "makima: plan.yaml: tasks.a: plan_file DIR/plan.sh is not UTF-8: invalid utf-8 sequence of 1 bytes from index 8",
        ),
        (
            Some(
                1,
            ),
            "makima: cannot create the contract: tasks[0].plan holds a NUL character (INVALID_FIELDS)",
        ),
    ]
    "#);
    assert_eq!(standing(&client).await, (Vec::new(), Vec::new()));
    work_goes_on(&world, &repo).await;
}

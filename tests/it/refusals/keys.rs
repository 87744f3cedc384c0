//! Keys that do not fit, and protocols that do not: refused before anything is done.

use std::fs;

use makima::wire::pb::{self, KeyKind, TaskStatus};
use tonic::{Code, Status};

use super::{refusal, said, standing, told, until, work_goes_on};
use crate::harness::{
    Database, World,
    client::{Client, shell},
    eventually::{ensure, eventually},
};

/// No key, one that is not ours, one that was revoked, one of another kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let admin = world.client_as("admin");
    let request =
        pb::CreateKeyRequest { kind: KeyKind::Owner.into(), owner: "another".to_owned(), ..Default::default() };
    let revoked = admin.keys().create_key(request).await.unwrap().into_inner();
    let request = pb::RevokeKeyRequest { key_id: revoked.key.unwrap().key_id };
    admin.keys().revoke_key(request).await.unwrap();

    let bare = Client::new(&world.url);
    let cases = [
        (bare.clone(), Code::Unauthenticated, "KEY_MISSING"),
        (
            bare.clone().with_key("mk_owner_0000000000000000000000000000000000000000"),
            Code::Unauthenticated,
            "KEY_UNKNOWN",
        ),
        (bare.clone().with_key("nonsense"), Code::Unauthenticated, "KEY_UNKNOWN"),
        (bare.clone().with_key(&revoked.secret), Code::Unauthenticated, "KEY_REVOKED"),
        (world.client_as("daemon"), Code::PermissionDenied, "OWNER_KEY_NEEDED"),
        (world.client_as("admin"), Code::PermissionDenied, "OWNER_NOT_NAMED"),
    ];
    for (client, code, reason) in cases {
        let refused = client.try_create(&repo.url(), vec![shell("a", "true", &[])]).await.unwrap_err();
        assert_eq!(told(&refused), refusal(code, reason, &[]), "{refused:?}");
    }
    let request = pb::CreateKeyRequest { kind: KeyKind::Owner.into(), owner: "mine".to_owned(), ..Default::default() };
    let refused = world.client().keys().create_key(request).await.unwrap_err();
    assert_eq!(told(&refused), refusal(Code::PermissionDenied, "ADMIN_KEY_NEEDED", &[]));
    let refused = attach(&world.client(), &hello(1, 1)).await.unwrap_err();
    assert_eq!(told(&refused), refusal(Code::PermissionDenied, "DAEMON_KEY_NEEDED", &[]));

    // As a person meets it.
    let mut lines = Vec::new();
    let daemon_key = world.key_file("daemon");
    let none = world.dir.join("none.key");
    for (key, file) in [(Some("mk_owner_wrong"), None), (None, Some(&daemon_key)), (None, Some(&none))] {
        let output = world
            .cli_with(&["run", "true", "--agent", "shell", "--repo", "repo"], |command| {
                command.env_remove("MAKIMA_KEY_FILE");
                if let Some(key) = key {
                    command.env("MAKIMA_KEY", key);
                }
                if let Some(file) = file {
                    command.arg("--key-file").arg(file);
                }
            })
            .await;
        let (code, line) = said(&output);
        lines.push((code, line.replace(&world.dir.display().to_string(), "DIR")));
    }
    insta::assert_debug_snapshot!(lines, @r#"
    [
        (
            Some(
                1,
            ),
            "makima: cannot create the task: this key is not one of this server; see `makima doctor` (KEY_UNKNOWN); the key came from MAKIMA_KEY",
        ),
        (
            Some(
                1,
            ),
            "makima: cannot create the task: this call needs an owner key; this is a daemon key (OWNER_KEY_NEEDED); the key came from DIR/server/daemon.key",
        ),
        (
            Some(
                2,
            ),
            "makima: the key file DIR/none.key does not exist",
        ),
    ]
    "#);
    assert_eq!(standing(&world.client()).await, (Vec::new(), Vec::new()));
    work_goes_on(&world, &repo).await;
}

/// A daemon whose key is refused says what it needs and keeps its agents; with the right key their work counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_with_a_wrong_key() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let gate = world.dir.join("gate");
    let client = world.client();
    let script = format!("while [ ! -e {} ]; do sleep 0.05; done; echo kept > kept", gate.display());
    let task = client.create(&repo.url(), vec![shell("long", &script, &[])]).await.tasks[0].task_id.clone();
    until(&client, &task, TaskStatus::Running).await;

    let right = fs::read(world.key_file("daemon")).unwrap();
    world.kill_daemon("d");
    let cases = [
        (b"mk_daemon_0000000000000000000000000000000000000000".to_vec(), "this key is not one of this server"),
        (fs::read(world.key_file("owner")).unwrap(), "this call needs a daemon key"),
    ];
    for (key, says) in cases {
        fs::write(world.key_file("daemon"), key).unwrap();
        world.launch_daemon_with("d", Default::default());
        let daemon = world.daemon("d");
        eventually("it says which key it needs", || async {
            // Since it was started last.
            let log = daemon.output();
            let log = log.rsplit("==== d starts").next().unwrap_or_default();
            let said = log.lines().any(|line| {
                line.contains("does not accept this daemon's key")
                    && line.contains("makima key create --kind daemon")
                    && line.contains(says)
            });
            ensure(said, || log.to_owned())
        })
        .await;
        // It may be about to become the agent still, when the server has heard that it runs.
        eventually("its agent goes on", || async { ensure(!world.agents().is_empty(), || "no agent".to_owned()) })
            .await;
        world.kill_daemon("d");
    }
    fs::write(world.key_file("daemon"), right).unwrap();
    world.restart_daemon("d").await;
    fs::write(&gate, "").unwrap();
    let done = until(&client, &task, TaskStatus::Done).await;
    assert_eq!(done.attempt, 1);
    assert_eq!(repo.file(&done.result_commit, "kept").as_deref(), Some("kept\n"));
}

/// A daemon that speaks only what is not known yet is told which of the two is to be brought up to date, and is not listed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_protocol_from_the_future() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let client = world.client_as("daemon");
    let refused = attach(&client, &hello(98, 99)).await.unwrap_err();
    assert_eq!(told(&refused), refusal(Code::FailedPrecondition, "PROTOCOL_UNSUPPORTED", &[]));
    assert_eq!(
        refused.message(),
        "this server speaks protocol 1, the daemon speaks 98 to 99; bring the server up to date"
    );
    // One that speaks today's protocol too is welcome, and both speak that.
    assert_eq!(attach(&client, &hello(1, 99)).await.unwrap(), 1);
    let names = || async {
        let daemons = world.client().daemon_list().await.unwrap();
        daemons.into_iter().map(|daemon| daemon.name).collect::<Vec<_>>()
    };
    eventually("only those who were welcome are listed", || async {
        let mut names = names().await;
        names.sort();
        ensure(names == ["d", "speaks-1-to-99"], || format!("{names:?}"))
    })
    .await;
    work_goes_on(&world, &repo).await;
}

/// What a daemon that speaks these protocols says first.
fn hello(protocol_min: u32, protocol_max: u32) -> pb::Hello {
    pb::Hello {
        protocol_min,
        protocol_max,
        version: "9.9.9".to_owned(),
        daemon_id: uuid::Uuid::now_v7().to_string(),
        boot_id: uuid::Uuid::new_v4().to_string(),
        journal_id: uuid::Uuid::new_v4().to_string(),
        name: format!("speaks-{protocol_min}-to-{protocol_max}"),
        slots: 1,
        clock: Some(makima::wire::common::timestamp(makima::runtime::clock::now())),
        ..Default::default()
    }
}

/// Attaches; answers the protocol chosen.
async fn attach(client: &Client, hello: &pb::Hello) -> Result<u32, Status> {
    let hello = pb::AttachRequest { kind: Some(pb::attach_request::Kind::Hello(Box::new(hello.clone()))) };
    let mut answers = client.daemons().attach(tokio_stream::once(hello)).await?.into_inner();
    match answers.message().await?.and_then(|answer| answer.kind) {
        Some(pb::attach_response::Kind::Welcome(welcome)) => Ok(welcome.protocol),
        other => panic!("neither welcome nor refused: {other:?}"),
    }
}

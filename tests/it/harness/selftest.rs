//! The harness keeps its own promises: nothing is left of a test, and a database is real and its own.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use sqlx::{Connection as _, Row as _};

use makima::wire::pb::{AttemptStatus, TaskStatus};

use super::{
    client::shell,
    eventually::{ensure, eventually},
    postgres, process,
    proxy::{Line, Proxy},
    repo::Repo,
    world::{Database, World},
};

/// Each test has a database of its own, on a server whose commits are durable.
#[tokio::test]
async fn databases_are_fresh_and_durable() {
    let (one, two) = tokio::join!(postgres::database(), postgres::database());
    assert_ne!(one, two);
    let mut one = sqlx::PgConnection::connect(&one).await.expect("connect");
    let mut two = sqlx::PgConnection::connect(&two).await.expect("connect");
    sqlx::query("CREATE TABLE only_here (id int)").execute(&mut one).await.expect("create a table");
    sqlx::query("SELECT * FROM only_here").execute(&mut two).await.expect_err("a table of another test");
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("SHOW {setting}"))).fetch_one(&mut one).await.expect("ask");
        assert_eq!(row.get::<String, _>(0), "on", "{setting}");
    }
}

/// The cluster goes when the process that asked for it is killed: its server is stopped, its directory removed.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the tests start their own processes")]
async fn a_cluster_dies_with_whoever_asked_for_it() {
    let temp = tempfile::tempdir().expect("make a temp dir");
    // An unprivileged Postgres has to get through it.
    fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open the temp dir");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/harness/postgres.sh");
    // A stand-in for a test process: it holds the pipe, and is killed. Should this process be killed itself, it ends.
    let mut holder = Command::new("/bin/sh")
        .args(["-c", "cat | \"$0\"", script])
        .env("TMPDIR", temp.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("start a shell");
    let mut line = String::new();
    BufReader::new(holder.stdout.take().expect("a pipe")).read_line(&mut line).expect("read a line");
    assert!(line.starts_with("ready postgres://"), "{line}");
    let running = process::processes_of(temp.path());
    assert!(running.iter().any(|found| found.arguments.contains("/postgres -D")), "{running:?}");
    // The guardian has a `cat` of its own, in the cluster's directory.
    let ours = |found: &&process::Found| {
        found.arguments == "cat"
            && !fs::read_link(format!("/proc/{}/cwd", found.pid)).is_ok_and(|cwd| cwd.starts_with(temp.path()))
    };
    running.iter().find(ours).expect("the holder of the pipe").kill();
    eventually("nothing is left of the cluster", || async {
        let left: Vec<PathBuf> = fs::read_dir(temp.path()).expect("list").flatten().map(|entry| entry.path()).collect();
        let processes = process::processes_of(temp.path());
        ensure(left.is_empty() && processes.is_empty(), || format!("{left:?} {processes:?}"))
    })
    .await;
    holder.wait().expect("the shell has ended");
}

/// A sweep finds what has left its parent, session and process group, and whatever it hides its place with.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the tests start their own processes")]
async fn a_sweep_finds_what_ran_away() {
    let temp = tempfile::tempdir().expect("make a temp dir");
    let started = Command::new("/bin/sh")
        .args(["-c", "setsid sh -c 'cd /; exec sleep 1000' & env -i setsid sleep 1000 & exit 0"])
        .env("MARK", temp.path())
        .current_dir(temp.path())
        .status()
        .expect("start a shell");
    assert!(started.success());
    eventually("both have started", || async {
        let found = process::processes_of(temp.path());
        ensure(found.iter().filter(|found| found.arguments == "sleep 1000").count() == 2, || format!("{found:?}"))
    })
    .await;
    assert_eq!(process::sweep(temp.path()), []);
    assert_eq!(process::processes_of(temp.path()), []);
}

/// A world is the real thing, on either database: a contract runs on two daemons, and what is killed comes back.
#[tokio::test]
async fn a_world_runs_contracts() {
    for database in [Database::Sqlite, Database::Postgres] {
        let mut world = World::start(database).await;
        let first = world.start_daemon("one").await;
        world.start_daemon("two").await;
        let repo = world.repo("repo");
        let tasks = vec![shell("a", "echo a > a.txt", &[]), shell("b", "cat a.txt > b.txt; echo said", &["a"])];
        let contract = world.client().create(&repo.url(), tasks).await.contract.expect("a contract").contract_id;
        world.client().watch_to_end(&contract).await.expect("watch");
        let statuses = world.client().statuses(&contract).await;
        assert!(statuses.len() == 2 && statuses.values().all(|&status| status == TaskStatus::Done), "{statuses:?}");

        world.kill_server();
        world.start_server().await;
        world.kill_daemon("one");
        let again = world.restart_daemon("one").await;
        assert!(again.daemon_id == first.daemon_id && again.session_epoch > first.session_epoch, "{again:?}");
        let lines = world.cli_json(&["contract", "get", &contract]).await;
        assert_eq!(lines[0]["status"], "DONE");

        let b = world.client().tasks_of(&contract).await.swap_remove(1);
        assert_eq!(repo.file(&b.result_commit, "b.txt").as_deref(), Some("a\n"));
        eventually("its output has arrived", || async {
            let output = world.client().output(&b.task_id, 1).await.map_err(|status| status.to_string())?;
            ensure(output == b"said\n", || String::from_utf8_lossy(&output).into_owned())
        })
        .await;
        let dir = world.dir.clone();
        drop(world);
        assert!(!dir.exists());
        assert_eq!(process::processes_of(&dir), []);
    }
}

/// What outlives its parents on purpose, shim and agent, goes with the world.
#[tokio::test]
async fn a_world_takes_its_agents_along() {
    let mut world = World::start(Database::Sqlite).await;
    world.start_daemon("one").await;
    let repo = world.repo("repo");
    let created = world.client().create(&repo.url(), vec![shell("long", "sleep 1000", &[])]).await;
    let task = created.tasks[0].task_id.clone();
    eventually("the agent runs", || async {
        let attempts = world.client().task(&task).await.attempts;
        let running = attempts.first().is_some_and(|attempt| attempt.status() == AttemptStatus::Running);
        ensure(running && !world.agents().is_empty(), || format!("{attempts:?} {:?}", world.processes()))
    })
    .await;
    world.kill_daemon("one");
    assert_eq!(world.shims().len(), 1, "{:?}", world.processes());
    assert!(world.agents().iter().any(|agent| agent.arguments == "sleep 1000"), "{:?}", world.processes());
    let dir = world.dir.clone();
    drop(world);
    assert_eq!(process::processes_of(&dir), []);
}

/// When the test process is gone, whatever its worlds have started is killed and their folder removed.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the tests start their own processes")]
async fn a_guardian_ends_what_the_tests_leave() {
    let folder = tempfile::tempdir().expect("make a temp dir").keep();
    let lifeline = process::guard(&folder);
    let mut left = Command::new("sleep").arg("1000").env("MARK", &folder).spawn().expect("start a process");
    eventually("it has started", || async {
        let found = process::processes_of(&folder);
        ensure(found.len() == 1, || format!("{found:?}"))
    })
    .await;
    // As the end of this process would.
    drop(lifeline);
    eventually("nothing is left", || async {
        let processes = process::processes_of(&folder);
        ensure(!folder.exists() && processes.is_empty(), || format!("{processes:?}"))
    })
    .await;
    assert!(!left.wait().expect("wait for a child").success());
}

/// A repository is a real one, whatever git configuration this machine has.
#[test]
fn repositories_are_real() {
    let temp = tempfile::tempdir().expect("make a temp dir");
    let repo = Repo::new(temp.path().join("repo"));
    let commit = repo.commit(&[("src/types/user.ts", "export type User = {};\n")], "types");
    assert_eq!(repo.files("main"), ["README.md", "src/types/user.ts"]);
    assert_eq!(repo.file("main", "src/types/user.ts").as_deref(), Some("export type User = {};\n"));
    assert_eq!(repo.file("main", "absent"), None);
    assert_eq!(repo.branches(), ["main"]);
    assert!(repo.is_ancestor("main~1", &commit) && !repo.is_ancestor(&commit, "main~1"));
}

/// A wire lets bytes through, holds them, and is cut, when told to.
#[tokio::test]
async fn a_wire_is_stalled_and_cut() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = echo.local_addr().expect("bound").to_string();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut socket, _)) = echo.accept().await {
            let (mut read, mut write) = socket.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    let proxy = Proxy::to(&address).await;
    let mut wire = tokio::net::TcpStream::connect(proxy.url.trim_start_matches("http://")).await.expect("connect");
    let mut byte = [0];
    wire.write_all(b"a").await.expect("write");
    wire.read_exact(&mut byte).await.expect("read");
    proxy.set(Line::Stalled);
    wire.write_all(b"b").await.expect("write");
    tokio::select! {
        biased;
        read = wire.read_exact(&mut byte) => panic!("read through a stalled wire: {read:?}"),
        // As many turns as an open wire would need and more; nothing is waited for that could come late.
        () = async { for _ in 0..1000 { tokio::task::yield_now().await } } => {}
    }
    proxy.set(Line::Open);
    wire.read_exact(&mut byte).await.expect("read what had waited");
    assert_eq!(&byte, b"b");
    proxy.cut();
    assert!(matches!(wire.read(&mut byte).await, Ok(0) | Err(_)), "a cut wire");
    assert_eq!(proxy.connections(), 1);
}

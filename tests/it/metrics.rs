//! What is measured tells what happens: a real server and a real daemon, looked at over plain HTTP while they work.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Output},
};

use makima::wire::pb::TaskStatus;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    both_databases,
    harness::{
        DaemonOptions, Database, World,
        client::shell,
        eventually,
        eventually::ensure,
        process::{Program, free_port},
    },
};

both_databases!(figures_follow_what_happens);

/// What an HTTP server said.
struct Answer {
    status: String,
    kind: String,
    body: String,
}

/// One request over a connection of its own.
async fn get(address: &str, path: &str, headers: &str) -> Result<Answer, String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.map_err(|error| error.to_string())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no end of headers")?;
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
    let status = head.lines().next().unwrap_or_default().to_owned();
    Ok(Answer { status, kind: kind.to_owned(), body: body.to_owned() })
}

/// Every sample of a scrape by its name with labels. Fails the test where the text is not what Prometheus reads.
async fn scrape(address: &str) -> Result<BTreeMap<String, f64>, String> {
    let answer = get(address, "/metrics", "").await?;
    ensure(answer.status.contains("200"), || format!("{}: {}", answer.status, answer.body))?;
    assert_eq!(answer.kind, "text/plain; version=0.0.4; charset=utf-8");
    let mut samples = BTreeMap::new();
    let mut typed = Vec::new();
    for line in answer.body.lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            typed.push(described.split(' ').next().unwrap().to_owned());
        }
        if line.starts_with('#') {
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        let bare = name.split('{').next().unwrap();
        let of = |family: &String| {
            bare.strip_prefix(family.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        };
        assert!(typed.iter().any(of), "without a type: {line}");
        let value = value.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(samples.insert(name.to_owned(), value).is_none(), "twice: {line}");
    }
    Ok(samples)
}

/// Waits until these samples have these values.
async fn shows(address: &str, expected: &[(&str, f64)]) -> BTreeMap<String, f64> {
    eventually(&format!("{address} shows {expected:?}"), || async {
        let samples = scrape(address).await?;
        for (name, value) in expected {
            let found = samples.get(*name);
            ensure(found == Some(value), || format!("{name} is {found:?}, not {value}"))?;
        }
        Ok::<_, String>(samples)
    })
    .await
}

fn local() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// A task that holds a slot until a file is there, then one after it.
async fn figures_follow_what_happens(database: Database) {
    let mut world = World::new(database).await;
    let (server, daemon) = (local(), local());
    world.server_args = vec!["--metrics-listen".to_owned(), server.clone()];
    world.start_server().await;
    shows(&server, &[("makima_database_up", 1.0), ("makima_daemons{status=\"attached\"}", 0.0)]).await;
    let env = vec![("MAKIMA_METRICS_LISTEN".to_owned(), daemon.clone())];
    world.start_daemon_with("d", DaemonOptions { slots: 2, env, ..DaemonOptions::default() }).await;
    let repo = world.repo("repo");
    let gate = world.dir.join("gate");
    let script = format!("echo working | tee made; while [ ! -e {} ]; do sleep 0.01; done", gate.display());
    let client = world.client();
    let contract = client.create(&repo.url(), vec![shell("one", &script, &[]), shell("two", "true", &["one"])]).await;

    // While the first one runs.
    let of_d = "{owner=\"default\",daemon=\"d\"}";
    let samples = shows(
        &server,
        &[
            ("makima_attempts{state=\"running\"}", 1.0),
            ("makima_tasks{status=\"running\"}", 1.0),
            ("makima_tasks{status=\"pending\"}", 1.0),
            ("makima_tasks_ready", 0.0),
            ("makima_commands_unanswered", 0.0),
            ("makima_commands_unanswered_oldest_seconds", 0.0),
            ("makima_daemons{status=\"attached\"}", 1.0),
            (&format!("makima_slots{of_d}"), 2.0),
            (&format!("makima_slots_free{of_d}"), 1.0),
            (&format!("makima_slots_taken{of_d}"), 1.0),
            (&format!("makima_attempts_live{of_d}"), 1.0),
            ("makima_messages_total{outcome=\"fenced\"}", 0.0),
        ],
    )
    .await;
    assert!(samples["makima_messages_total{outcome=\"applied\"}"] >= 1.0, "{samples:#?}");
    assert_eq!(samples["makima_command_answers_total{answer=\"persisted\"}"], 1.0);
    assert_eq!(samples["makima_dispatch_latency_seconds_count"], 1.0);
    let running = shows(
        &daemon,
        &[
            ("makima_daemon_attempts{state=\"running\"}", 1.0),
            ("makima_daemon_slots", 2.0),
            ("makima_daemon_slots_free", 1.0),
            ("makima_daemon_session_attached", 1.0),
            ("makima_daemon_session_epoch", 1.0),
            ("makima_daemon_sessions_total", 1.0),
            ("makima_daemon_outbox_messages", 0.0),
            ("makima_daemon_outbox_oldest_seconds", 0.0),
            ("makima_daemon_accepting", 1.0),
            ("makima_daemon_journal_up", 1.0),
        ],
    )
    .await;
    assert!(running["makima_daemon_disk_free_bytes"] > 0.0);
    assert!(running["makima_daemon_checkpoint_age_seconds"] > 0.0, "an agent runs");
    assert!(running["makima_daemon_journal_commit_seconds_count"] >= 1.0);

    // And when both are done.
    fs::write(&gate, "").unwrap();
    let samples = shows(
        &server,
        &[
            ("makima_task_events_total{event=\"task.done\"}", 2.0),
            ("makima_attempts_ended_total{outcome=\"success\"}", 2.0),
            ("makima_attempts{state=\"running\"}", 0.0),
            ("makima_tasks{status=\"running\"}", 0.0),
            (&format!("makima_slots_free{of_d}"), 2.0),
            (&format!("makima_slots_taken{of_d}"), 0.0),
            (&format!("makima_attempts_live{of_d}"), 0.0),
            ("makima_ledger_queue_depth", 0.0),
            ("makima_dispatch_latency_seconds_count", 2.0),
            ("makima_command_answer_seconds_count", 2.0),
        ],
    )
    .await;
    for (_, status) in client.statuses(&contract.contract.unwrap().contract_id).await {
        assert_eq!(status, TaskStatus::Done);
    }
    assert!(samples["makima_dispatch_latency_seconds_sum"] < 60.0);
    let committed = samples["makima_ledger_batches_total{outcome=\"committed\"}"];
    assert!(committed >= 6.0, "{committed}");
    assert!(samples["makima_ledger_commit_seconds_count"] >= committed);
    assert!(samples["makima_ledger_batch_size_sum"] >= samples["makima_ledger_batch_size_count"]);
    assert!(samples["makima_event_log_last_sequence"] >= 6.0);
    let after = shows(&daemon, &[("makima_daemon_upload_backlog_bytes", 0.0), ("makima_daemon_uploads", 0.0)]).await;
    assert!(after["makima_daemon_messages_total{outcome=\"applied\"}"] >= 4.0, "{after:#?}");
    let sent = scrape(&server).await.unwrap()["makima_upload_bytes_total"];
    assert!(sent > "working\n".len() as f64, "output, and the results' packs: {sent}");

    nothing_is_given_away(&world, &[&server, &daemon]).await;
}

/// No key, path, plan or output in what anybody may read.
async fn nothing_is_given_away(world: &World, addresses: &[&str]) {
    let keys = ["admin", "owner", "daemon"].map(|kind| fs::read_to_string(world.key_file(kind)).unwrap());
    let mut secrets: Vec<&str> = keys.iter().map(|key| key.trim()).collect();
    let dir = world.dir.display().to_string();
    secrets.extend(["mk_", "working", "sleep 0.01", &dir]);
    for address in addresses {
        for accept in ["", "accept: application/openmetrics-text; version=1.0.0\r\n"] {
            let text = get(address, "/metrics", accept).await.unwrap().body;
            assert!(text.contains("_build_info{version="), "{text}");
            assert_eq!(text.ends_with("# EOF\n"), !accept.is_empty());
            for secret in &secrets {
                assert!(!text.contains(secret), "{secret:?} is in it");
            }
        }
        let elsewhere = get(address, "/", "").await.unwrap();
        assert!(elsewhere.status.contains("404"), "{}", elsewhere.status);
        assert!(elsewhere.body.contains("/metrics"), "{}", elsewhere.body);
    }
}

/// A daemon whose server is gone says so, keeps what it owes, and how old that is; a server whose daemon is gone says that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_away_is_seen() {
    let mut world = World::new(Database::Sqlite).await;
    let (server, daemon) = (local(), local());
    world.server_args = ["--metrics-listen", &server, "--heartbeat-interval", "200ms", "--lost-after", "1s"]
        .map(str::to_owned)
        .to_vec();
    world.start_server().await;
    let env = vec![("MAKIMA_METRICS_LISTEN".to_owned(), daemon.clone())];
    world.start_daemon_with("d", DaemonOptions { env, ..DaemonOptions::default() }).await;
    let repo = world.repo("repo");
    let gate = world.dir.join("gate");
    let script = format!("while [ ! -e {} ]; do sleep 0.01; done", gate.display());
    world.client().create(&repo.url(), vec![shell("one", &script, &[])]).await;
    shows(&server, &[("makima_attempts{state=\"running\"}", 1.0)]).await;

    world.kill_server();
    fs::write(&gate, "").unwrap();
    eventually("the daemon owes something, and for a while", || async {
        let samples = scrape(&daemon).await?;
        let is = |name: &str| samples[&format!("makima_daemon_{name}")];
        let owes = is("session_attached") == 0.0 && is("outbox_messages") > 0.0 && is("outbox_oldest_seconds") > 0.5;
        ensure(owes && is("attach_failures_total") > 0.0, || format!("{samples:#?}"))
    })
    .await;

    world.start_server().await;
    let expected = [
        ("makima_daemon_outbox_messages", 0.0),
        ("makima_daemon_session_attached", 1.0),
        ("makima_daemon_session_epoch", 2.0),
        ("makima_daemon_sessions_total", 2.0),
    ];
    shows(&daemon, &expected).await;

    world.kill_daemon("d");
    let expected = [
        ("makima_daemons{status=\"lost\"}", 1.0),
        ("makima_daemons{status=\"attached\"}", 0.0),
        ("makima_sessions_total", 1.0),
    ];
    let samples = shows(&server, &expected).await;
    // Twice where it has taken longer than lost-after to find the server again.
    assert!(samples["makima_daemons_lost_total"] >= 1.0, "{samples:#?}");
    assert!(!samples.contains_key("makima_slots{owner=\"default\",daemon=\"d\"}"), "{samples:#?}");
}

fn run(mut command: Command) -> Output {
    command.output().expect("start makima")
}

/// An address that is taken is said before anything else happens, with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_address_is_said() {
    let mut world = World::new(Database::Sqlite).await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taken.local_addr().map(|address| (taken, address.to_string())).unwrap();
    world.start_server().await;
    let refused = |output: Output| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(&format!("{} is taken", taken.1)), "{text}");
        assert!(text.contains("pass --metrics-listen HOST:PORT"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    };
    let mut server = world.command();
    server.args(["server", "--listen", "127.0.0.1:0", "--metrics-listen", &taken.1]);
    server.arg("--state-dir").arg(world.dir.join("another"));
    refused(run(server));
    assert!(!world.dir.join("another").exists(), "nothing was made for it");
    let mut daemon = world.command();
    daemon.args(["daemon", "run", "--name", "d", "--server", &world.url, "--metrics-listen", &taken.1]);
    daemon.arg("--key-file").arg(world.key_file("daemon")).arg("--state-dir").arg(world.daemon_state("d"));
    refused(run(daemon));
    let mut wrong = world.command();
    wrong.args(["server", "--listen", "127.0.0.1:0", "--metrics-listen", "nowhere"]);
    let output = run(wrong);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("write HOST:PORT"));
}

/// `up` shows its server and its daemon in one text; nothing is shown where nobody asked for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_shows_both_in_one_text() {
    let world = World::new(Database::Sqlite).await;
    let (listen, metrics) = (local(), local());
    let mut up = Program::new("up", &world.dir.join("logs"));
    let mut command = world.command();
    command.args(["up", "--listen", &listen, "--name", "d", "--metrics-listen", &metrics]);
    command.arg("--state-dir").arg(world.dir.join("up"));
    up.start(command);
    let expected = [("makima_daemons{status=\"attached\"}", 1.0), ("makima_daemon_session_attached", 1.0)];
    shows(&metrics, &expected).await;
    assert!(up.output().contains(&format!("metrics are at http://{metrics}/metrics")), "{}", up.output());
    assert!(up.stop().await.success(), "{}", up.output());
    assert!(get(&metrics, "/metrics", "").await.is_err(), "it has ended");
}

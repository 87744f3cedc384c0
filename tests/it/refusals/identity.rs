//! Two daemons that are one, and a daemon whose memory is damaged.

use std::fs;

use makima::wire::pb::TaskStatus;

use super::{said, until, work_goes_on};
use crate::harness::{
    Database, World,
    client::shell,
    eventually::{ensure, eventually},
};

/// A second process on the same state directory ends before it does anything; the first does not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_a_state_directory() {
    let mut world = World::start(Database::Sqlite).await;
    let before = world.start_daemon("d").await;
    let repo = world.repo("repo");
    let gate = world.dir.join("gate");
    let client = world.client();
    let script = format!("while [ ! -e {} ]; do sleep 0.05; done", gate.display());
    let task = client.create(&repo.url(), vec![shell("long", &script, &[])]).await.tasks[0].task_id.clone();
    until(&client, &task, TaskStatus::Running).await;

    let state = world.daemon_state("d").display().to_string();
    let key = world.key_file("daemon").display().to_string();
    let args = ["daemon", "run", "--name", "other", "--state-dir", &state, "--key-file", &key];
    let (code, line) = said(&world.cli(&args).await);
    let expected = format!(
        "makima: another makima daemon runs on {state}: stop it, or give this one another --name or --state-dir"
    );
    assert_eq!((code, line), (Some(1), expected));

    let daemons = client.daemon_list().await.unwrap();
    assert_eq!(daemons.len(), 1);
    assert_eq!((&daemons[0].name, daemons[0].session_epoch), (&before.name, before.session_epoch));
    fs::write(&gate, "").unwrap();
    assert_eq!(until(&client, &task, TaskStatus::Done).await.attempt, 1);
}

/// A copied identity: the newer session wins, the older process says why and ends, and what it ran is done by the newer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_identity() {
    let mut world = World::start(Database::Sqlite).await;
    let older = world.start_daemon("older").await;
    let repo = world.repo("repo");
    let gate = world.dir.join("gate");
    let client = world.client();
    let script = format!("while [ ! -e {} ]; do sleep 0.05; done; echo made > made", gate.display());
    let task = client.create(&repo.url(), vec![shell("long", &script, &[])]).await.tasks[0].task_id.clone();
    until(&client, &task, TaskStatus::Running).await;

    fs::create_dir_all(world.daemon_state("newer")).unwrap();
    let identity = "identity.json";
    fs::copy(world.daemon_state("older").join(identity), world.daemon_state("newer").join(identity)).unwrap();
    let newer = world.start_daemon("newer").await;
    assert_eq!(newer.daemon_id, older.daemon_id);
    assert!(newer.session_epoch > older.session_epoch);

    let exit = world.daemon("older").exit().await;
    assert_eq!(exit.code(), Some(75), "its keeper must not start it again");
    let log = world.daemon("older").output();
    let last = log.lines().rev().find(|line| line.starts_with("makima: ")).unwrap_or_default();
    assert_eq!(
        last,
        "makima: another daemon with this identity has attached, and this one has stopped: another process with this \
         daemon's identity has attached. A copied state directory must not be used twice; remove its identity.json and \
         journal.sqlite to come as a new daemon"
    );

    // It does not come back and forth.
    fs::write(&gate, "").unwrap();
    let done = until(&client, &task, TaskStatus::Done).await;
    assert_eq!(repo.file(&done.result_commit, "made").as_deref(), Some("made\n"));
    let daemons = client.daemon_list().await.unwrap();
    assert_eq!(daemons.len(), 1);
    assert_eq!(daemons[0].session_epoch, newer.session_epoch);
    work_goes_on(&world, &repo).await;
}

/// A damaged journal is moved aside, its daemon starts as the one it was, and its agents are adopted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_journal() {
    let mut world = World::start(Database::Sqlite).await;
    let before = world.start_daemon("d").await;
    let repo = world.repo("repo");
    let gate = world.dir.join("gate");
    let runs = world.dir.join("runs");
    let script = format!(
        "echo $$ >> {}; i=0; while [ ! -e {} ]; do i=$((i+1)); echo line $i; sleep 0.02; done; echo last $i; echo $i > made",
        runs.display(),
        gate.display()
    );
    let client = world.client();
    let task = client.create(&repo.url(), vec![shell("long", &script, &[])]).await.tasks[0].task_id.clone();
    until(&client, &task, TaskStatus::Running).await;

    world.kill_daemon("d");
    let state = world.daemon_state("d");
    let garbage = b"this is no database, whatever its name says\n".repeat(1000);
    fs::write(state.join("journal.sqlite"), &garbage).unwrap();
    // What is whole in here would be enough to mend the rest.
    fs::remove_file(state.join("journal.sqlite-wal")).unwrap();
    let after = world.restart_daemon("d").await;
    assert_eq!(after.daemon_id, before.daemon_id);
    world.daemon("d").says("the journal is damaged; it has been moved aside").await;
    let aside: Vec<_> = fs::read_dir(&state)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("journal.corrupt-"))
        .filter(|path| fs::read(path).is_ok_and(|bytes| bytes == garbage))
        .collect();
    assert_eq!(aside.len(), 1, "what was there is kept");

    fs::write(&gate, "").unwrap();
    let done = until(&client, &task, TaskStatus::Done).await;
    assert_eq!(done.attempt, 1);
    assert_eq!(fs::read_to_string(&runs).unwrap().lines().count(), 1, "adopted, not started again");
    let count: usize = repo.file(&done.result_commit, "made").unwrap().trim().parse().unwrap();
    let mut expected: String = (1..=count).map(|i| format!("line {i}\n")).collect();
    expected.push_str(&format!("last {count}\n"));
    eventually("all output is there, once", || async {
        let output = client.output(&task, 1).await.map_err(|status| status.to_string())?;
        ensure(output == expected.as_bytes(), || format!("{} of {} bytes", output.len(), expected.len()))
    })
    .await;
    work_goes_on(&world, &repo).await;
}

/// A name becomes a directory: one that would lead out of the state directory is refused before anything is made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_not_a_directory_of_its_own() {
    let world = World::start(Database::Sqlite).await;
    let state = world.dir.join("apart");
    let (state, key) = (state.display().to_string(), world.key_file("daemon").display().to_string());
    for name in ["bad name/..", "../out", ".hidden", ""] {
        let expected = format!(
            "makima: the daemon cannot be called `{name}`: pass a --name of 1 to 200 bytes without `/` and control \
             characters that does not start with a dot"
        );
        let run = ["daemon", "run", "--name", name, "--key-file", &key];
        let up = ["up", "--name", name, "--listen", "127.0.0.1:0", "--state-dir", &state];
        for args in [&run[..], &up[..]] {
            assert_eq!(said(&world.cli(args).await), (Some(2), expected.clone()), "{args:?}");
        }
        assert!(!fs::exists(&state).unwrap(), "{name}");
    }
}

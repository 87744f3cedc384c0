//! Starting, ending and starting again, over a journal on disk.

use std::{path::Path, sync::RwLock};

use tokio::{sync::Semaphore, time::Instant};
use uuid::Uuid;

use super::*;
use crate::{
    daemon::{
        agents::Profiles,
        bulk::Bulk,
        config::{Config, DiskFloor, Key, Server},
        health::Health,
        identity::StateDir,
        journal::{
            FILE, Journal,
            tests::{attempt, spawn},
        },
        metrics::Metrics,
        repository::Repositories,
        watch::Watch,
    },
    domain::{BootId, CommandId, Epoch},
    runtime::lifecycle::Shutdown,
};

/// To begin an attempt.
fn order() -> Command {
    Command {
        sequence: 1,
        id: CommandId(Uuid::from_u128(1)),
        epoch: Epoch(1),
        attempt: attempt(1),
        order: Order::Spawn(Box::new(spawn("one"))),
    }
}

/// A daemon's parts around a journal with one accepted attempt.
pub async fn context(state: &Path, disk_floor: DiskFloor) -> Arc<Context> {
    let (server, key) = (Server::parse("127.0.0.1:1").unwrap(), Key::parse("mk_daemon_x").unwrap());
    let config = Config { disk_floor, ..Config::new(server, key, state) };
    let state = StateDir::open(state).unwrap();
    let journal = Journal::open(state.path(), clock::now()).unwrap().journal;
    journal.accept(vec![order()], clock::now()).await.unwrap();
    let (bulk, _) = Bulk::new();
    Arc::new(Context {
        repositories: Repositories::new(state.repositories()),
        profiles: Profiles::load(config.profiles.clone()),
        installed: RwLock::default(),
        hollow: None,
        health: Health::new(state.path(), config.disk_floor),
        watch: Watch::new(&Shutdown::new()).0,
        slots: Arc::new(Semaphore::new(1)),
        captures: Semaphore::new(1),
        metrics: Metrics::new(&journal, &config.name),
        journal,
        boot: BootId(Uuid::from_u128(2)),
        attached: Notify::new(),
        card_changed: Notify::new(),
        shutdown: Shutdown::new(),
        bulk,
        state,
        config,
    })
}

fn sql(state: &Path, statement: &str) {
    rusqlite::Connection::open(state.join(FILE)).unwrap().execute_batch(statement).unwrap();
}

const BREAK: &str = "ALTER TABLE attempts RENAME TO away";

#[tokio::test]
async fn an_inventory_that_cannot_be_read_is_not_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, supervisor) = Supervisor::new(context(dir.path(), DiskFloor::default()).await);
    let context = Arc::clone(&supervisor.context);
    context.shutdown.spawn_loop("supervisor", supervisor.run());
    assert_eq!(handle.inventory().await.unwrap().len(), 1);
    sql(dir.path(), BREAK);
    handle.inventory().await.unwrap_err();
    sql(dir.path(), "ALTER TABLE away RENAME TO attempts");
    assert_eq!(handle.inventory().await.unwrap().len(), 1);
    context.shutdown.soft.cancel();
}

/// A wish that an attempt ends may be heard before it is heard that it begins: it does not begin once more afterwards.
#[tokio::test]
async fn what_has_begun_early_does_not_begin_again() {
    let dir = tempfile::tempdir().unwrap();
    let (_handle, mut supervisor) = Supervisor::new(context(dir.path(), DiskFloor::default()).await);
    supervisor.answer(Ask::Cancel(vec![attempt(1)])).await;
    let ended = supervisor.ended.1.recv().await.unwrap();
    assert_eq!(ended.how, Some(Finished::Ended));
    supervisor.runner_ended(ended);
    supervisor.answer(Ask::Accepted(vec![order()], clock::now())).await;
    assert!(supervisor.live.is_empty());
}

/// However often its runner breaks, an attempt stays live; a wish that it ends is not kept waiting.
#[tokio::test(start_paused = true)]
async fn an_attempt_whose_runner_breaks_is_never_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (_handle, mut supervisor) = Supervisor::new(context(dir.path(), DiskFloor::default()).await);
    sql(dir.path(), BREAK);
    let attempt = attempt(1);
    supervisor.live.insert(attempt, Entry { stop: watch::channel(None).0, asked: Arc::default(), restarts: 0 });
    supervisor.runner_ended(Ended { attempt, how: None });
    for restarts in 1..=QUICK_RESTARTS + 3 {
        let begun = Instant::now();
        let ended = supervisor.ended.1.recv().await.unwrap();
        assert_eq!(ended.how, None);
        let slow = begun.elapsed() >= SLOW_RESTART_DELAY;
        assert_eq!(slow, restarts > QUICK_RESTARTS, "{restarts}: {:?}", begun.elapsed());
        supervisor.runner_ended(ended);
        assert!(supervisor.live.contains_key(&attempt));
    }
    let begun = Instant::now();
    supervisor.live[&attempt].stop.send_replace(Some(stop(Why::Cancelled, "the server wants it to end")));
    supervisor.ended.1.recv().await.unwrap();
    assert!(begun.elapsed() < RESTART_DELAY, "{:?}", begun.elapsed());
}

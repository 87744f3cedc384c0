//! A database that another server has, or that a newer one has left: the server says so and ends, and touches nothing.

use std::time::Duration;

use makima::wire::pb::TaskStatus;
use sqlx::{Connection as _, Executor as _};

use super::{said, standing, until, work_goes_on};
use crate::{
    both_databases,
    harness::{Database, World, client::shell},
};

both_databases!(a_second_server_on_the_database, a_database_newer_than_the_binary);

/// A second server ends with what to do; the first one, with a task running, does not notice.
async fn a_second_server_on_the_database(database: Database) {
    let mut world = World::start(database).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let gate = world.dir.join("gate");
    let client = world.client();
    let script = format!("while [ ! -e {} ]; do sleep 0.05; done", gate.display());
    let task = client.create(&repo.url(), vec![shell("long", &script, &[])]).await.tasks[0].task_id.clone();
    let before = until(&client, &task, TaskStatus::Running).await;

    let state = world.server_state().display().to_string();
    let other = world.dir.join("other").display().to_string();
    let file = format!("{state}/makima.sqlite");
    let url = world.database_url().unwrap_or(&file).to_owned();
    let expected = match database {
        Database::Sqlite => {
            format!("makima: another makima server has {file}; stop it, or give this one its own with --state-dir")
        }
        Database::Postgres => {
            "makima: another makima server has this database; stop it, or give this one its own with \
                               --database-url"
                .to_owned()
        }
    };
    // From another state directory, and from the same.
    for state in [&other, &state] {
        let args = ["server", "--listen", "127.0.0.1:0", "--state-dir", state, "--database-url", &url];
        assert_eq!(said(&world.cli(&args).await), (Some(1), expected.clone()));
    }
    assert!(world.server.is_running());
    assert_eq!(client.task(&task).await.task.unwrap(), before);
    std::fs::write(&gate, "").unwrap();
    assert_eq!(until(&client, &task, TaskStatus::Done).await.attempt, 1);
}

/// A schema from the future is refused, saying its version; where it is known, everything is there again.
async fn a_database_newer_than_the_binary(database: Database) {
    let mut world = World::start(database).await;
    world.start_daemon("d").await;
    let repo = world.repo("repo");
    let client = world.client();
    let task = client.create(&repo.url(), vec![shell("a", "true", &[])]).await.tasks[0].task_id.clone();
    until(&client, &task, TaskStatus::Done).await;
    let before = standing(&client).await;
    world.server.stop().await;

    let future = match database {
        Database::Sqlite => {
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (90000101000000, 'from the future', true, x'00', 0)"
        }
        Database::Postgres => {
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (90000101000000, 'from the future', true, '\\x00', 0)"
        }
    };
    change(&world, future).await;
    world.launch_server();
    let exit = tokio::time::timeout(Duration::from_secs(60), world.server.exit()).await.unwrap();
    assert_eq!(exit.code(), Some(1));
    let log = world.server.output();
    let last = log.lines().rev().find(|line| line.starts_with("makima: ")).unwrap_or_default();
    assert_eq!(
        last,
        "makima: the database has schema version 90000101000000, which is newer than this makima; use a newer makima"
    );

    change(&world, "DELETE FROM _sqlx_migrations WHERE version = 90000101000000").await;
    world.start_server().await;
    assert_eq!(standing(&world.client()).await, before);
    world.attached("d").await;
    work_goes_on(&world, &repo).await;
}

/// Changes the database while no server has it.
async fn change(world: &World, statement: &'static str) {
    match world.database_url() {
        Some(url) => {
            let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
            connection.execute(statement).await.unwrap();
            connection.close().await.unwrap();
        }
        None => {
            let connection = rusqlite::Connection::open(world.server_state().join("makima.sqlite")).unwrap();
            connection.execute(statement, []).unwrap();
        }
    }
}

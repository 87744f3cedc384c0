//! What becomes of an agent's work when its process, its worktree, its daemon or its machine is lost: real processes, real
//! repositories, `kill -9`.

mod hands;
mod results;
mod work;

use std::{fs, path::Path, time::Duration};

use makima::wire::pb::{self, Task, TaskSpec, TaskStatus};

use crate::harness::{DaemonOptions, Database, World, client::Client, eventually, eventually::ensure};

/// A world whose server gives up on a daemon soon.
async fn world() -> World {
    let mut world = World::new(Database::Sqlite).await;
    let times = ["--heartbeat-interval", "200ms", "--lost-after", "1500ms"];
    world.server_args = times.map(str::to_owned).to_vec();
    world.start_server().await;
    world
}

/// A contract whose work is checkpointed that often, and that does not wait for lost daemons.
async fn create(client: &Client, repository: &str, every: Duration, tasks: Vec<TaskSpec>) -> Vec<Task> {
    let limits = pb::ContractLimits {
        rerun_after: Some(prost_types::Duration::default()),
        checkpoint_every: Some(every.try_into().unwrap()),
        ..pb::ContractLimits::default()
    };
    let request = pb::CreateContractRequest {
        name: "test".to_owned(),
        repository: repository.to_owned(),
        limits: Some(limits),
        tasks,
        ..pb::CreateContractRequest::default()
    };
    client.contracts().create_contract(request).await.unwrap().into_inner().tasks
}

async fn until(client: &Client, task: &str, status: TaskStatus) -> Task {
    eventually(&format!("the task is {}", status.as_str_name()), || async {
        let answer = client.task(task).await;
        match answer.task.clone() {
            Some(task) if task.status() == status => Ok(task),
            _ => Err(format!("{answer:#?}")),
        }
    })
    .await
}

/// Waits until the server has a checkpoint that was taken of this attempt after now.
async fn checkpointed(client: &Client, task: &str) {
    let stored = |task: Option<Task>| task.map(|task| task.checkpoint_id).unwrap_or_default();
    let before = stored(client.task(task).await.task);
    eventually("a newer checkpoint is stored", || async {
        let now = stored(client.task(task).await.task);
        ensure(!now.is_empty() && now != before, || format!("{now:?}, {before:?} before"))
    })
    .await;
}

/// Where the newest attempt of a task works.
async fn worktree(client: &Client, task: &str) -> std::path::PathBuf {
    let answer = client.task(task).await;
    let newest = answer.attempts.iter().max_by_key(|attempt| attempt.number);
    Path::new(&newest.unwrap().worktree_path).to_owned()
}

/// Nothing of any agent is alive.
async fn no_agents(world: &World) {
    eventually("no agent runs", || async {
        let left = (world.agents(), world.shims());
        ensure(left.0.is_empty() && left.1.is_empty(), || format!("{left:?}"))
    })
    .await;
}

/// The machine is gone for ever: daemon, shims, agents, state.
async fn lose_machine(world: &mut World, name: &str) {
    world.kill_daemon(name);
    let state = world.daemon_state(name);
    eventually("the machine is dead", || async {
        let left: Vec<_> = world.processes().into_iter().filter(|found| found.is_shim()).collect();
        left.iter().for_each(crate::harness::process::Found::kill);
        let agents = world.agents();
        agents.iter().for_each(crate::harness::process::Found::kill);
        ensure(left.is_empty() && agents.is_empty(), || format!("{left:?} {agents:?}"))
    })
    .await;
    fs::remove_dir_all(state).unwrap();
}

/// A daemon that clones what tasks name.
fn options() -> DaemonOptions {
    DaemonOptions { config: "disk_floor = { bytes = 0, percent = 0 }".to_owned(), ..DaemonOptions::default() }
}

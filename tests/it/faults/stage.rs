//! A small fleet with short times, for tests of single stories.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use makima::wire::pb::{
    self, AttemptStatus, Contract, ContractLimits, CreateContractRequest, GetTaskResponse, Task, TaskSpec, TaskStatus,
};

use super::machine::{Machine, set_clock};
use crate::harness::{
    Client, Database, Repo, World,
    eventually::{ensure, eventually},
};

/// How long a daemon may be quiet here.
pub const LOST_AFTER: Duration = Duration::from_secs(1);

/// A server, machines with wires of their own, and a repository.
pub struct Stage {
    pub world: World,
    pub machines: Vec<Machine>,
    pub client: Client,
    pub repo: Repo,
    server_clock: PathBuf,
}

impl Stage {
    /// With machines of so many slots.
    pub async fn new(slots: &[u32]) -> Self {
        let mut world = World::new(Database::Sqlite).await;
        world.server_args = ["--heartbeat-interval", "200ms", "--lost-after", "1s"].map(str::to_owned).to_vec();
        let server_clock = world.dir.join("server.clock");
        world.server_env = vec![("MAKIMA_TEST_CLOCK".to_owned(), server_clock.display().to_string())];
        world.start_server().await;
        let (client, repo) = (world.client(), world.repo("repo"));
        let mut stage = Self { world, machines: Vec::new(), client, repo, server_clock };
        for &slots in slots {
            stage.add(slots).await;
        }
        stage
    }

    /// Another machine. Answers its place.
    pub async fn add(&mut self, slots: u32) -> usize {
        let at = self.machines.len();
        let machine = Machine::new(&self.world, &format!("m{at}"), slots).await;
        self.world.start_daemon_with(&machine.name, machine.options()).await;
        self.machines.push(machine);
        at
    }

    /// Starts a machine's daemon again, and waits until it is attached anew.
    pub async fn restart(&mut self, at: usize) {
        let name = self.machines[at].name.clone();
        self.world.restart_daemon(&name).await;
    }

    /// `kill -9` of everything on a machine.
    pub fn kill(&mut self, at: usize) {
        self.world.kill_daemon(&self.machines[at].name);
        self.machines[at].kill_all();
    }

    /// Makes a contract.
    pub async fn contract(&self, rerun_after: Duration, tasks: Vec<TaskSpec>) -> (Contract, Vec<Task>) {
        self.contract_on(self.repo.url(), rerun_after, tasks).await
    }

    /// Makes a contract on a repository as it is named.
    pub async fn contract_on(
        &self,
        repository: String,
        rerun_after: Duration,
        tasks: Vec<TaskSpec>,
    ) -> (Contract, Vec<Task>) {
        let request = CreateContractRequest {
            name: "test".to_owned(),
            repository,
            limits: Some(ContractLimits {
                rerun_after: prost_types::Duration::try_from(rerun_after).ok(),
                ..ContractLimits::default()
            }),
            tasks,
            ..CreateContractRequest::default()
        };
        let made = self.client.contracts().create_contract(request).await.expect("create a contract").into_inner();
        (made.contract.expect("a contract"), made.tasks)
    }

    /// Makes a contract of one task.
    pub async fn task(&self, rerun_after: Duration, task: TaskSpec) -> String {
        self.contract(rerun_after, vec![task]).await.1[0].task_id.clone()
    }

    /// A file of the world for scripts.
    pub fn path(&self, name: &str) -> PathBuf {
        self.world.dir.join(name)
    }

    /// What scripts have written into a file of the world.
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Lets scripts go on that wait for this file.
    pub fn touch(&self, name: &str) {
        std::fs::write(self.path(name), "").expect("write a file");
    }

    /// Waits until a file of the world is there.
    pub async fn file(&self, name: &str) {
        self.world.file_appears(&self.path(name)).await;
    }

    /// Waits until a task is where it should get.
    pub async fn until(&self, task: &str, status: TaskStatus) -> Task {
        let what = format!("the task is {}", status.as_str_name());
        self.sees(&what, task, |answer| answer.task.as_ref().is_some_and(|task| task.status() == status))
            .await
            .task
            .unwrap()
    }

    /// Waits until an attempt of a task stands so.
    pub async fn attempt(&self, task: &str, number: u32, status: AttemptStatus) -> pb::Attempt {
        let is = |attempt: &&pb::Attempt| attempt.number == number && attempt.status() == status;
        let what = format!("attempt {number} is {}", status.as_str_name());
        let answer = self.sees(&what, task, |answer| answer.attempts.iter().any(|attempt| is(&attempt))).await;
        answer.attempts.into_iter().find(|attempt| is(&attempt)).expect("as seen")
    }

    /// Waits until a task looks so.
    pub async fn sees(&self, what: &str, task: &str, holds: impl Fn(&GetTaskResponse) -> bool) -> GetTaskResponse {
        eventually(what, || async {
            let request = pb::GetTaskRequest { task_id: task.to_owned() };
            let answer = self.client.tasks().get_task(request).await.map_err(|status| status.to_string())?.into_inner();
            if holds(&answer) { Ok(answer) } else { Err(format!("{answer:#?}")) }
        })
        .await
    }

    /// Waits until the server thinks so of a machine's daemon.
    pub async fn daemon(&self, at: usize, what: &str, holds: impl Fn(&pb::Daemon) -> bool) {
        let name = &self.machines[at].name;
        eventually(&format!("{name} is {what}"), || async {
            let daemons = self.client.daemon_list().await.map_err(|status| status.to_string())?;
            ensure(daemons.iter().any(|daemon| daemon.name == *name && holds(daemon)), || format!("{daemons:?}"))
        })
        .await;
    }

    /// Sets the server's clock this much off.
    pub fn server_clock(&self, offset: Duration, backwards: bool) {
        set_clock(&self.server_clock, Some(offset), backwards);
    }

    /// No process of any attempt is alive.
    pub async fn nothing_runs(&self) {
        eventually("nothing of an attempt is alive", || async {
            let alive = self.world.processes();
            let alive: Vec<_> = alive.iter().filter(|found| found.variable(super::machine::MARKER).is_some()).collect();
            ensure(alive.is_empty(), || format!("{alive:?}"))
        })
        .await;
    }
}

/// Prints how long something took, for the record: what counts is that it happens at all.
pub fn took(what: &str, since: Instant) {
    eprintln!("{what}: {} ms", since.elapsed().as_millis());
}

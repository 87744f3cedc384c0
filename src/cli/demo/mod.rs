//! `makima demo`: the whole product in half a minute, in a directory of its own, on this machine, without an LLM.
//!
//! ```text
//!   makima demo ── spawns ──> makima server (SQLite, free port)
//!        │                    makima daemon run d1, d2
//!        ├── makes a git repository, creates the contract below, follows it
//!        └── prints the event log and the graph, checks the last tree, stops everything, removes everything
//!
//!   schema ──> types ──> api ────┐
//!                 └────> audit ──┴──> ui
//! ```
//!
//! With `--chaos` a daemon, a worktree and the server are lost on the way; see `chaos`. Each script builds on files of the earlier ones and fails if they are not there. The processes stop when their standard
//! input closes, so that none outlives this one, however it ends.

mod chaos;
mod processes;
mod shop;

use std::{collections::HashMap, fs, future::Future, os::unix::fs::DirBuilderExt as _, path::Path, time::Duration};

use clap::Args;
use rand::RngExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    Session,
    board::Outcome,
    client::{Client, request_id, timed},
    config,
    error::{Error, Result},
    fleet,
    follow::{self, Source},
    output::{Out, clean, clock_time, note},
    screen::Screen,
    view,
};
use crate::wire::pb::{self, DaemonStatus};
use chaos::Chaos;
use processes::{LOOK, Processes, START_DEADLINE, STOP_DEADLINE};
use shop::{STEPS, graph, in_tree, make_repository};

/// The five tasks take a few seconds.
const RUN_DEADLINE: Duration = Duration::from_secs(180);
/// The daemons.
const DAEMONS: [&str; 2] = ["d1", "d2"];
/// Variables that would lead the demo's processes to somebody else's server.
const CLEARED: [&str; 9] = [
    "MAKIMA_SERVER",
    "MAKIMA_KEY",
    "MAKIMA_KEY_FILE",
    "MAKIMA_OWNER",
    "MAKIMA_CONFIG",
    "MAKIMA_SERVER_STATE_DIR",
    "MAKIMA_DAEMON_STATE_DIR",
    "MAKIMA_DATABASE_URL",
    "MAKIMA_LISTEN",
];

/// `demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Leave the directory with the repository, the worktrees and the logs
    #[arg(long)]
    keep: bool,
    /// Kill a daemon, delete a worktree and kill the server in the middle, and show what was recovered
    #[arg(long)]
    chaos: bool,
}

/// Shows it.
pub async fn run(session: &mut Session, args: DemoArgs) -> Result<()> {
    let mut demo = Demo::new(args.chaos)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::io("listen for signals"))?;
    let shown = tokio::select! {
        biased;
        shown = demo.show(&mut session.out) => shown,
        _ = tokio::signal::ctrl_c() => Err(interrupted()),
        _ = terminate.recv() => Err(interrupted()),
    };
    demo.stop().await;
    let failed = matches!(&shown, Err(error) if !matches!(error, Error::Interrupted(_)));
    if failed {
        demo.processes.print_logs();
    }
    if args.keep || failed {
        note(&format!("kept: {}", demo.processes.dir.display()));
    } else {
        let dir = &demo.processes.dir;
        fs::remove_dir_all(dir).map_err(Error::io(format!("remove {}", dir.display())))?;
    }
    shown
}

fn interrupted() -> Error {
    Error::Interrupted("interrupted; everything it started is stopped".to_owned())
}

struct Demo {
    processes: Processes,
    /// The disturbances, if there are to be any.
    chaos: Option<Chaos>,
    client: Option<Client>,
    contract_id: String,
}

impl Demo {
    fn new(chaos: bool) -> Result<Self> {
        // Short: sockets live below it.
        let name = format!("makima-demo-{:08x}", rand::rng().random_range(0..=u32::MAX));
        let dir = std::env::temp_dir().join(name);
        let made = fs::DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(Error::io(format!("make the directory {}", dir.display())))?;
        let dir = dir.canonicalize().map_err(Error::io("find the demo's directory"))?;
        let chaos = chaos.then(|| Chaos::new(&dir));
        Ok(Self { processes: Processes::new(dir), chaos, client: None, contract_id: String::new() })
    }

    async fn show(&mut self, out: &mut Out) -> Result<()> {
        let dir = self.processes.dir.clone();
        out.line(&format!("1. a git repository, in {}", dir.display()))?;
        let repository = dir.join("shop");
        make_repository(&repository)
            .map_err(|error| Error::failed(format!("cannot make a git repository: {}", error.message())))?;
        fs::write(dir.join("config.toml"), "").map_err(Error::io("write the demo's configuration"))?;

        let server = self.processes.start_server("127.0.0.1:0").await?;
        let key = dir.join("server/owner.key");
        let client = self.processes.wait_for("the server", || served(&server, &key)).await?;
        out.line(&format!("2. a server on {server}, with embedded SQLite"))?;
        for name in DAEMONS {
            self.processes.start_daemon(name, &server)?;
        }
        self.processes.wait_for("the daemons", || attached(&client)).await?;
        self.client = Some(client.clone());
        out.line("3. two daemons, d1 and d2, as processes of their own")?;

        out.line("4. a contract of five tasks: schema -> types -> api, audit (side by side) -> ui\n")?;
        let token = self.create(&client, &repository).await?;
        let source = Source::Contract(self.contract_id.clone());
        let mut screen = Screen::plain(out);
        let followed = to_the_end(follow::follow(&client, &source, &mut screen));
        let report = match &self.chaos {
            None => followed.await.map(|()| Vec::new())?,
            Some(chaos) => {
                let scene =
                    chaos::Scene { client: &client, contract_id: &self.contract_id, server: &server, key: &key };
                let wreak = chaos.wreak(&mut self.processes, scene);
                tokio::try_join!(followed, wreak)?.1
            }
        };

        out.line("\n5. the order of starts and ends, from the event log\n")?;
        print_events(&client, &self.contract_id, &token, out).await?;
        out.line("\n6. the repository: every task a branch, each on top of what it depends on\n")?;
        out.bytes(graph(&repository)?.as_bytes())?;
        let files = self.check_last_tree(&client, &repository).await?;
        out.line("\n7. the last task's tree holds what all the others made\n")?;
        for file in files {
            out.line(&format!("   {file}"))?;
        }
        if let Some(chaos) = &self.chaos {
            out.line("\n8. what was broken, and what became of it\n")?;
            let results = self.results(&client).await?;
            for line in chaos.account(&repository, &results, &report)? {
                out.line(&line)?;
            }
        }
        out.line("\nThat was it. `makima up` starts a server and a daemon to stay; then `makima run \"...\"`.")
    }

    /// Stops everything in order: tasks first, since agents outlive their daemons by design.
    async fn stop(&mut self) {
        if let Some(client) = self.client.take()
            && !self.contract_id.is_empty()
        {
            let _ = tokio::time::timeout(STOP_DEADLINE, self.end_tasks(&client)).await;
        }
        self.processes.stop().await;
    }

    async fn end_tasks(&self, client: &Client) {
        let contract_id = self.contract_id.clone();
        let request = pb::CancelContractRequest {
            request_id: request_id(),
            contract_id: contract_id.clone(),
            reason: "the demo is over".to_owned(),
        };
        // A contract that is done cannot be cancelled, and needs not be.
        let _ = client.contracts().cancel_contract(timed(request)).await;
        loop {
            let request = timed(pb::GetContractRequest { contract_id: contract_id.clone() });
            match client.contracts().get_contract(request).await {
                Ok(answer) if answer.get_ref().contract.as_ref().is_some_and(|contract| contract.live_attempts > 0) => {
                    tokio::time::sleep(LOOK).await;
                }
                _ => return,
            }
        }
    }

    // === what is shown ===

    /// Creates the contract held, takes a place in the event log, and releases it: nothing of it is missed.
    async fn create(&mut self, client: &Client, repository: &Path) -> Result<String> {
        let tasks = STEPS.iter().map(|step| pb::TaskSpec {
            name: step.name.to_owned(),
            plan: self.chaos.as_ref().map_or_else(|| step.script.to_owned(), |chaos| chaos.script(step)),
            agent: "shell".to_owned(),
            depends_on: step.depends_on.iter().map(|name| (*name).to_owned()).collect(),
            ..pb::TaskSpec::default()
        });
        let request = pb::CreateContractRequest {
            request_id: request_id(),
            name: "shop".to_owned(),
            repository: repository.display().to_string(),
            base_branch: "main".to_owned(),
            tasks: tasks.collect(),
            hold: true,
            limits: self.chaos.as_ref().map(|_| chaos::limits()),
            ..pb::CreateContractRequest::default()
        };
        let created = client.contracts().create_contract(timed(request)).await;
        let created = created.map_err(client.refused("create the contract"))?.into_inner();
        self.contract_id = created.contract.unwrap_or_default().contract_id;
        let contract_id = self.contract_id.clone();
        let request = timed(pb::ListTasksRequest { contract_id: contract_id.clone(), ..Default::default() });
        let listed = client.tasks().list_tasks(request).await.map_err(client.refused("list the tasks"))?;
        let request = timed(pb::ReleaseContractRequest { request_id: request_id(), contract_id });
        client.contracts().release_contract(request).await.map_err(client.refused("release the contract"))?;
        Ok(listed.into_inner().resume_token)
    }

    /// The files in the last task's result, if all that were made are among them.
    async fn check_last_tree(&self, client: &Client, repository: &Path) -> Result<Vec<&'static str>> {
        let result = self.results(client).await?.remove("ui").unwrap_or_default();
        let files: Vec<&str> = STEPS.iter().flat_map(|step| step.files).copied().collect();
        for file in &files {
            in_tree(repository, &result, file).map_err(|error| {
                Error::failed(format!("{file} is not in the result {result} of ui: {}", error.message()))
            })?;
        }
        Ok(files)
    }

    /// The commit that each task has made.
    async fn results(&self, client: &Client) -> Result<HashMap<String, String>> {
        let request = timed(pb::ListTasksRequest { contract_id: self.contract_id.clone(), ..Default::default() });
        let tasks = client.tasks().list_tasks(request).await.map_err(client.refused("list the tasks"))?.into_inner();
        let named = |task: pb::Task| (task.spec.unwrap_or_default().name, task.result_commit);
        Ok(tasks.tasks.into_iter().map(named).collect())
    }
}

/// The contract ends well, in time.
async fn to_the_end(following: impl Future<Output = Result<Outcome>>) -> Result<()> {
    match tokio::time::timeout(RUN_DEADLINE, following).await {
        Ok(Ok(Outcome::Done)) => Ok(()),
        Ok(Ok(Outcome::Stuck { .. })) => Err(Error::failed("the demo's tasks did not all get done")),
        Ok(Err(Error::Interrupted(_))) => Err(interrupted()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::failed("the demo's tasks took too long")),
    }
}

/// A client of a server that serves.
async fn served(server: &str, key: &Path) -> Result<Client> {
    let key = config::read_key(key)?.ok_or_else(|| Error::failed("there are no keys yet"))?;
    let client = Client::open(server, Some(&key), None).await?;
    let health = HealthClient::new(client.channel()).check(timed(HealthCheckRequest::default())).await;
    let health = health.map_err(client.refused("ask for its health"))?.into_inner().status();
    if health == ServingStatus::Serving { Ok(client) } else { Err(Error::failed("it does not serve yet")) }
}

async fn attached(client: &Client) -> Result<()> {
    let daemons = fleet::all(client).await?;
    let attached = daemons.iter().filter(|daemon| daemon.status() == DaemonStatus::Attached).count();
    if attached == DAEMONS.len() { Ok(()) } else { Err(Error::failed(format!("{attached} are attached"))) }
}

/// Reads the event log again, from before the first start.
async fn print_events(client: &Client, contract_id: &str, token: &str, out: &mut Out) -> Result<()> {
    let request = pb::WatchContractRequest {
        contract_id: contract_id.to_owned(),
        resume_token: token.to_owned(),
        until_end: true,
    };
    let refused = client.refused("read the event log");
    let mut standing = HashMap::new();
    let reading = async {
        let mut steps = client.contracts().watch_contract(request).await.map_err(&refused)?.into_inner();
        while let Some(step) = steps.message().await.map_err(&refused)? {
            if let Some(pb::watch_contract_response::Kind::Change(change)) = step.kind
                && standing.insert(change.task_id.clone(), change.status()) != Some(change.status())
                && let Some(line) = event_line(&change)
            {
                out.line(&line)?;
            }
        }
        Ok(())
    };
    let read = tokio::time::timeout(START_DEADLINE, reading).await;
    read.unwrap_or_else(|_| Err(Error::failed("the event log does not end")))
}

/// Starts and ends only.
fn event_line(change: &pb::Change) -> Option<String> {
    let what = match change.status() {
        pb::TaskStatus::Running => format!("started on {}", clean(&change.daemon_name)),
        pb::TaskStatus::Done => "ended, done".to_owned(),
        pb::TaskStatus::Failed => "ended, failed".to_owned(),
        pb::TaskStatus::Cancelled => "ended, cancelled".to_owned(),
        _ => return None,
    };
    let time = view::time(change.time.as_ref()).map(clock_time).unwrap_or_default();
    Some(format!("   {:>4}  {time}  {:<7} {what}", change.sequence, clean(&change.task_name)))
}

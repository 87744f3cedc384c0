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
//! Each script builds on files of the earlier ones and fails if they are not there. The processes stop when their standard
//! input closes, so that none outlives this one, however it ends.

use std::{
    collections::HashMap,
    fs,
    future::Future,
    io::{BufRead as _, BufReader},
    os::unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use clap::Args;
use rand::RngExt as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};
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
    serve::LISTENING,
    view,
};
use crate::{
    runtime::clock,
    wire::pb::{self, DaemonStatus},
};

/// Longer than any machine needs to start a process; waiting ends with a message.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// The five tasks take a few seconds.
const RUN_DEADLINE: Duration = Duration::from_secs(180);
/// A process that has been asked to stop is killed after this.
const STOP_DEADLINE: Duration = Duration::from_secs(12);
/// Lines of each log that are printed when it went wrong.
const LOG_LINES: usize = 20;
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
}

struct Step {
    name: &'static str,
    depends_on: &'static [&'static str],
    script: &'static str,
    /// What it makes.
    files: &'static [&'static str],
}

const STEPS: [Step; 5] = [
    Step {
        name: "schema",
        depends_on: &[],
        script: "mkdir -p migrations
printf 'CREATE TABLE users (\\n  id INTEGER PRIMARY KEY,\\n  email TEXT NOT NULL\\n);\\n' > migrations/001_create_users.sql
echo 'schema: table users with id, email'
",
        files: &["migrations/001_create_users.sql"],
    },
    Step {
        name: "types",
        depends_on: &["schema"],
        script: "test -f migrations/001_create_users.sql
mkdir -p src/types
{ echo 'export interface User {'
  sed -n 's/^  \\([a-z]*\\) INTEGER.*/  \\1: number;/p; s/^  \\([a-z]*\\) TEXT.*/  \\1: string;/p' migrations/001_create_users.sql
  echo '}'; } > src/types/user.ts
grep -q 'email: string' src/types/user.ts
echo 'types: User, from the schema'
",
        files: &["src/types/user.ts"],
    },
    Step {
        name: "api",
        depends_on: &["types"],
        script: "test -f src/types/user.ts
mkdir -p src/api
sleep 1
{ echo \"import { User } from '../types/user';\"
  echo 'export const users: User[] = [];'; } > src/api/users.ts
echo 'api: users'
",
        files: &["src/api/users.ts"],
    },
    Step {
        name: "audit",
        depends_on: &["types"],
        script: "test -f src/types/user.ts
test ! -e src/api/users.ts
mkdir -p src/audit
sleep 1
{ echo \"import { User } from '../types/user';\"
  echo 'export const seen = (user: User) => console.log(user.email);'; } > src/audit/log.ts
echo 'audit: log'
",
        files: &["src/audit/log.ts"],
    },
    Step {
        name: "ui",
        depends_on: &["api", "audit"],
        script: "test -f src/api/users.ts
test -f src/audit/log.ts
mkdir -p src/components
{ echo \"import { users } from '../api/users';\"
  echo \"import { seen } from '../audit/log';\"
  echo 'export const UserList = () => users.map((user) => (seen(user), user.email));'; } > src/components/UserList.tsx
echo 'ui: UserList, on top of both'
",
        files: &["src/components/UserList.tsx"],
    },
];

/// Shows it.
pub async fn run(session: &mut Session, args: DemoArgs) -> Result<()> {
    let mut demo = Demo::new()?;
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
        demo.print_logs();
    }
    if args.keep || failed {
        note(&format!("kept: {}", demo.dir.display()));
    } else {
        fs::remove_dir_all(&demo.dir).map_err(Error::io(format!("remove {}", demo.dir.display())))?;
    }
    shown
}

fn interrupted() -> Error {
    Error::Interrupted("interrupted; everything it started is stopped".to_owned())
}

struct Demo {
    dir: PathBuf,
    processes: Vec<Process>,
    client: Option<Client>,
    contract_id: String,
}

/// One of our own, with its log.
struct Process {
    name: String,
    child: Child,
    // Dropping it asks the process to stop.
    stdin: Option<ChildStdin>,
}

impl Demo {
    fn new() -> Result<Self> {
        // Short: sockets live below it.
        let name = format!("makima-demo-{:08x}", rand::rng().random_range(0..=u32::MAX));
        let dir = std::env::temp_dir().join(name);
        let made = fs::DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(Error::io(format!("make the directory {}", dir.display())))?;
        let dir = dir.canonicalize().map_err(Error::io("find the demo's directory"))?;
        Ok(Self { dir, processes: Vec::new(), client: None, contract_id: String::new() })
    }

    async fn show(&mut self, out: &mut Out) -> Result<()> {
        out.line(&format!("1. a git repository, in {}", self.dir.display()))?;
        let repository = self.dir.join("shop");
        make_repository(&repository)
            .map_err(|error| Error::failed(format!("cannot make a git repository: {}", error.message())))?;
        fs::write(self.dir.join("config.toml"), "").map_err(Error::io("write the demo's configuration"))?;

        let server = self.start_server().await?;
        let key = self.dir.join("server/owner.key");
        let client = self.wait_for("the server", || served(&server, &key)).await?;
        out.line(&format!("2. a server on {server}, with embedded SQLite"))?;
        for name in DAEMONS {
            self.start_daemon(name, &server)?;
        }
        self.wait_for("the daemons", || attached(&client)).await?;
        self.client = Some(client.clone());
        out.line("3. two daemons, d1 and d2, as processes of their own")?;

        out.line("4. a contract of five tasks: schema -> types -> api, audit (side by side) -> ui\n")?;
        let token = self.create(&client, &repository).await?;
        let source = Source::Contract(self.contract_id.clone());
        let mut screen = Screen::plain(out);
        let followed = tokio::time::timeout(RUN_DEADLINE, follow::follow(&client, &source, &mut screen)).await;
        match followed {
            Ok(Ok(Outcome::Done)) => {}
            Ok(Ok(Outcome::Stuck { .. })) => return Err(Error::failed("the demo's tasks did not all get done")),
            Ok(Err(Error::Interrupted(_))) => return Err(interrupted()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(Error::failed("the demo's tasks took too long")),
        }

        out.line("\n5. the order of starts and ends, from the event log\n")?;
        print_events(&client, &self.contract_id, &token, out).await?;
        out.line("\n6. the repository: every task a branch, each on top of what it depends on\n")?;
        out.bytes(graph(&repository)?.as_bytes())?;
        let files = self.check_last_tree(&client, &repository).await?;
        out.line("\n7. the last task's tree holds what all the others made\n")?;
        for file in files {
            out.line(&format!("   {file}"))?;
        }
        out.line("\nThat was it. `makima up` starts a server and a daemon to stay; then `makima run \"...\"`.")
    }

    // === processes ===

    async fn start_server(&mut self) -> Result<String> {
        let mut command = self.command(&["server"])?;
        command.args(["--listen", "127.0.0.1:0", "--state-dir"]).arg(self.dir.join("server")).stdout(Stdio::piped());
        let process = self.spawn("server", command)?;
        let Some(stdout) = process.child.stdout.take() else {
            return Err(Error::failed("the server has no output"));
        };
        // Its first line says where it listens. Reading blocks, so it is done beside.
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(START_DEADLINE, line).await;
        let line = line.ok().and_then(std::result::Result::ok).and_then(std::result::Result::ok).unwrap_or_default();
        line.strip_prefix(LISTENING)
            .map(|url| url.trim().to_owned())
            .ok_or_else(|| Error::failed("the server did not start"))
    }

    fn start_daemon(&mut self, name: &str, server: &str) -> Result<()> {
        let mut command = self.command(&["daemon", "run"])?;
        command
            .args(["--name", name, "--slots", "2", "--server", server, "--key-file"])
            .arg(self.dir.join("server/daemon.key"))
            .arg("--state-dir")
            .arg(self.dir.join(name))
            .stdout(Stdio::null());
        self.spawn(name, command)?;
        Ok(())
    }

    /// This program again, told nothing by the person's configuration and environment.
    #[expect(
        clippy::disallowed_methods,
        reason = "not an agent: our own processes, which must not inherit their setup"
    )]
    fn command(&self, subcommand: &[&str]) -> Result<Command> {
        let program = std::env::current_exe().map_err(Error::io("find this program"))?;
        let mut command = Command::new(program);
        command.args(subcommand).arg("--stop-on-eof").arg("--config").arg(self.dir.join("config.toml"));
        for name in CLEARED {
            command.env_remove(name);
        }
        // Ctrl-C is for this process, which then stops the others in order.
        command.current_dir(&self.dir).stdin(Stdio::piped()).process_group(0);
        Ok(command)
    }

    fn spawn(&mut self, name: &str, mut command: Command) -> Result<&mut Process> {
        let log = fs::File::create(self.log(name)).map_err(Error::io("make a log"))?;
        let mut child = command.stderr(log).spawn().map_err(Error::io(format!("start {name}")))?;
        let stdin = child.stdin.take();
        self.processes.push(Process { name: name.to_owned(), child, stdin });
        let last = self.processes.len() - 1;
        Ok(&mut self.processes[last])
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// Looks until it is there.
    async fn wait_for<T, F: Future<Output = Result<T>>>(&mut self, what: &str, look: impl Fn() -> F) -> Result<T> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let why = match look().await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            self.all_alive()?;
            if Instant::now() > deadline {
                let secs = START_DEADLINE.as_secs();
                return Err(Error::failed(format!("{what} did not come up within {secs} s: {why}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn all_alive(&mut self) -> Result<()> {
        for process in &mut self.processes {
            if let Ok(Some(status)) = process.child.try_wait() {
                return Err(Error::failed(format!("{} has ended ({status})", process.name)));
            }
        }
        Ok(())
    }

    /// Stops everything in order: tasks first, since agents outlive their daemons by design; then daemons, then the server.
    async fn stop(&mut self) {
        if let Some(client) = self.client.take()
            && !self.contract_id.is_empty()
        {
            let _ = tokio::time::timeout(STOP_DEADLINE, self.end_tasks(&client)).await;
        }
        while let Some(mut process) = self.processes.pop() {
            drop(process.stdin.take());
            let deadline = Instant::now() + STOP_DEADLINE;
            while Instant::now() < deadline && matches!(process.child.try_wait(), Ok(None)) {
                tokio::time::sleep(LOOK).await;
            }
            if matches!(process.child.try_wait(), Ok(None)) {
                note(&format!("{} does not stop; killing it", process.name));
                let _ = process.child.kill();
            }
            let _ = process.child.wait();
        }
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

    fn print_logs(&self) {
        for name in ["server"].iter().chain(&DAEMONS) {
            let Ok(log) = fs::read_to_string(self.log(name)) else { continue };
            let lines: Vec<&str> = log.lines().collect();
            note(&format!("--- the end of {name}'s log"));
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                note(&clean(line));
            }
        }
    }

    // === what is shown ===

    /// Creates the contract held, takes a place in the event log, and releases it: nothing of it is missed.
    async fn create(&mut self, client: &Client, repository: &Path) -> Result<String> {
        let tasks = STEPS.iter().map(|step| pb::TaskSpec {
            name: step.name.to_owned(),
            plan: step.script.to_owned(),
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
        let request = timed(pb::ListTasksRequest { contract_id: self.contract_id.clone(), ..Default::default() });
        let tasks = client.tasks().list_tasks(request).await.map_err(client.refused("list the tasks"))?.into_inner();
        let named = |task: &&pb::Task| task.spec.as_ref().is_some_and(|spec| spec.name == "ui");
        let result = tasks.tasks.iter().find(named).map(|task| task.result_commit.clone()).unwrap_or_default();
        let files: Vec<&str> = STEPS.iter().flat_map(|step| step.files).copied().collect();
        for file in &files {
            in_tree(repository, &result, file).map_err(|error| {
                Error::failed(format!("{file} is not in the result {result} of ui: {}", error.message()))
            })?;
        }
        Ok(files)
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

fn make_repository(path: &Path) -> std::result::Result<(), git2::Error> {
    let repository = git2::Repository::init_opts(path, git2::RepositoryInitOptions::new().initial_head("main"))?;
    let time = git2::Time::new(clock::now().0.div_euclid(1_000_000), 0);
    let author = git2::Signature::new("makima demo", "makima@localhost", &time)?;
    let readme = repository.blob(b"# shop\n\nMade by `makima demo`.\n")?;
    let mut builder = repository.treebuilder(None)?;
    builder.insert("README.md", readme, 0o100_644)?;
    let tree = repository.find_tree(builder.write()?)?;
    repository.commit(Some("HEAD"), &author, &author, "Begin the shop", &tree, &[])?;
    repository.checkout_head(Some(git2::build::CheckoutBuilder::new().force()))
}

fn in_tree(repository: &Path, commit: &str, file: &str) -> std::result::Result<(), git2::Error> {
    let repository = git2::Repository::open(repository)?;
    let commit = repository.find_commit(git2::Oid::from_str(commit)?)?;
    commit.tree()?.get_path(Path::new(file)).map(|_| ())
}

/// What `git log --graph` draws.
#[expect(clippy::disallowed_methods, reason = "not an agent: the picture a person would ask git for")]
fn graph(repository: &Path) -> Result<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(repository).args(["--no-pager", "log", "--graph", "--oneline", "--decorate", "--all"]);
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(name);
    }
    let output = command.stdin(Stdio::null()).output().map_err(Error::io("run git"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::failed(format!("git log failed: {said}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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

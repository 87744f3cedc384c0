//! The world of one test: a directory with a server, its daemons and repositories in it, all of them processes of the real
//! binary. When it is dropped nothing of it is left, and if the test has failed its logs have been printed. With
//! `MAKIMA_TEST_KEEP=1` the directory stays.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use makima::wire::pb::{Daemon, DaemonStatus};
use tonic_health::pb::health_check_response::ServingStatus;

use super::{
    client::Client,
    eventually::{ensure, eventually},
    postgres,
    process::{self, Found, Program},
    repo::Repo,
};

/// The longest a command of the command line may take.
const CLI_DEADLINE: Duration = Duration::from_secs(120);

/// Which database the server is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// The default: a file in the state directory.
    Sqlite,
    /// A fresh database of the tests' own cluster.
    Postgres,
}

/// What a daemon is told beyond its name.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// Attempts at once.
    pub slots: u32,
    /// Labels.
    pub labels: Vec<String>,
    /// More of its configuration file, after `[daemon]`'s own keys.
    pub config: String,
    /// Where it looks for the server; the server itself if `None`.
    pub server: Option<String>,
    /// More environment.
    pub env: Vec<(String, String)>,
}

impl Default for DaemonOptions {
    fn default() -> Self {
        Self { slots: 4, labels: Vec::new(), config: String::new(), server: None, env: Vec::new() }
    }
}

/// A server, its daemons and what they work on.
pub struct World {
    /// Everything is in here.
    pub dir: PathBuf,
    /// `http://127.0.0.1:PORT`, the same over all lives of the server.
    pub url: String,
    /// The server.
    pub server: Program,
    /// Arguments for the server beyond those the harness gives.
    pub server_args: Vec<String>,
    /// More environment for the server.
    pub server_env: Vec<(String, String)>,
    address: String,
    database_url: Option<String>,
    daemons: Vec<(Program, DaemonOptions)>,
    // The last field, so that it goes last.
    _temp: Option<tempfile::TempDir>,
}

impl World {
    /// A world with a server that serves.
    pub async fn start(database: Database) -> Self {
        let mut world = Self::new(database).await;
        world.start_server().await;
        world
    }

    /// A world in which nothing runs yet.
    pub async fn new(database: Database) -> Self {
        Self::on(match database {
            Database::Sqlite => None,
            Database::Postgres => Some(postgres::database().await),
        })
    }

    /// A world in which nothing runs yet, on the database at that URL; on a file in the state directory if there is none.
    pub fn on(database_url: Option<String>) -> Self {
        let temp = tempfile::Builder::new().prefix("").tempdir_in(process::base()).expect("make a temp dir");
        let dir = temp.path().to_owned();
        let temp = if process::keeps() {
            eprintln!("kept: {}", temp.keep().display());
            None
        } else {
            Some(temp)
        };
        fs::create_dir(dir.join("home")).expect("make a home");
        let address = format!("127.0.0.1:{}", process::free_port());
        Self {
            url: format!("http://{address}"),
            server: Program::new("server", &dir.join("logs")),
            server_args: Vec::new(),
            server_env: Vec::new(),
            address,
            database_url,
            daemons: Vec::new(),
            _temp: temp,
            dir,
        }
    }

    /// `host:port` of the server.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The database's URL, where it is not the file in the server's state directory.
    pub fn database_url(&self) -> Option<&str> {
        self.database_url.as_deref()
    }

    /// The server's state directory.
    pub fn server_state(&self) -> PathBuf {
        self.dir.join("server")
    }

    /// A daemon's state directory.
    pub fn daemon_state(&self, name: &str) -> PathBuf {
        self.dir.join("daemon").join(name)
    }

    /// A key that the server wrote into its state directory: `admin`, `owner` or `daemon`.
    pub fn key_file(&self, kind: &str) -> PathBuf {
        self.server_state().join(format!("{kind}.key"))
    }

    /// The owner's clients.
    pub fn client(&self) -> Client {
        self.client_as("owner")
    }

    /// Clients with the key of that kind.
    pub fn client_as(&self, kind: &str) -> Client {
        let path = self.key_file(kind);
        let key = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Client::new(&self.url).with_key(&key)
    }

    /// Makes a repository.
    pub fn repo(&self, name: &str) -> Repo {
        Repo::new(self.dir.join(name))
    }

    /// A command of the real binary in this world.
    pub fn command(&self) -> std::process::Command {
        process::command(process::makima(), &self.dir.join("home"))
    }

    // === server ===

    /// Starts the server, for the first time or again, and waits until it serves.
    pub async fn start_server(&mut self) {
        self.launch_server();
        let name = "the server serves";
        let client = Client::new(&self.url);
        let keys = ["admin", "owner", "daemon"].map(|kind| self.key_file(kind));
        let server = &mut self.server;
        eventually(name, || {
            assert!(server.is_running(), "the server has ended:\n{}", server.output());
            let (client, keys) = (client.clone(), keys.clone());
            async move {
                let health = client.health().await.map_err(|status| status.to_string())?;
                ensure(health == ServingStatus::Serving, || format!("{health:?}"))?;
                ensure(keys.iter().all(|key| key.exists()), || "no key files".to_owned())
            }
        })
        .await;
    }

    /// Starts the server and waits for nothing.
    pub fn launch_server(&mut self) {
        let mut command = self.command();
        command.arg("server").args(["--listen", &self.address]).arg("--state-dir").arg(self.server_state());
        if let Some(url) = &self.database_url {
            command.args(["--database-url", url]);
        }
        command.args(&self.server_args).envs(self.server_env.iter().map(|(name, value)| (name, value)));
        self.server.start(command);
    }

    /// `kill -9` of the server.
    pub fn kill_server(&mut self) {
        self.server.kill();
    }

    // === daemons ===

    /// Starts a daemon as the harness has it by default, and waits until it is attached.
    pub async fn start_daemon(&mut self, name: &str) -> Daemon {
        self.start_daemon_with(name, DaemonOptions::default()).await
    }

    /// Starts a daemon and waits until it is attached.
    pub async fn start_daemon_with(&mut self, name: &str, options: DaemonOptions) -> Daemon {
        self.launch_daemon_with(name, options);
        self.attached(name).await
    }

    /// Starts a daemon that was killed or stopped again, as it was, and waits until it is attached anew.
    pub async fn restart_daemon(&mut self, name: &str) -> Daemon {
        let before = self.find_daemon(name).await.map(|daemon| daemon.session_epoch).unwrap_or_default();
        let options = self.options_of(name);
        self.launch_daemon_with(name, options);
        self.attached_after(name, before).await
    }

    /// Starts a daemon and waits for nothing.
    pub fn launch_daemon_with(&mut self, name: &str, options: DaemonOptions) {
        let config = self.dir.join(format!("{name}.toml"));
        let labels: Vec<String> = options.labels.iter().map(|label| format!("{label:?}")).collect();
        let text =
            format!("[daemon]\nslots = {}\nlabels = [{}]\n{}\n", options.slots, labels.join(", "), options.config);
        fs::write(&config, text).expect("write the daemon's configuration");
        let mut command = self.command();
        command
            .args(["daemon", "run", "--name", name])
            .args(["--server", options.server.as_deref().unwrap_or(&self.url)])
            .arg("--state-dir")
            .arg(self.daemon_state(name))
            .arg("--key-file")
            .arg(self.key_file("daemon"))
            .arg("--config")
            .arg(config)
            .envs(options.env.iter().map(|(name, value)| (name, value)));
        let position = self.daemons.iter().position(|(program, _)| program.name == name);
        let position = position.unwrap_or_else(|| {
            self.daemons.push((Program::new(name, &self.dir.join("logs")), DaemonOptions::default()));
            self.daemons.len() - 1
        });
        self.daemons[position].1 = options;
        self.daemons[position].0.start(command);
    }

    /// A daemon's process.
    pub fn daemon(&mut self, name: &str) -> &mut Program {
        let found = self.daemons.iter_mut().find(|(program, _)| program.name == name);
        &mut found.unwrap_or_else(|| panic!("no daemon {name} was started")).0
    }

    /// `kill -9` of a daemon; its shims and agents live on.
    pub fn kill_daemon(&mut self, name: &str) {
        self.daemon(name).kill();
    }

    /// Waits until the server says that a daemon is attached.
    pub async fn attached(&mut self, name: &str) -> Daemon {
        self.attached_after(name, 0).await
    }

    /// Waits until a daemon is attached in a session newer than that epoch.
    pub async fn attached_after(&mut self, name: &str, epoch: i64) -> Daemon {
        let client = self.client();
        let daemon = self.daemon(name);
        eventually(&format!("daemon {name} is attached"), || {
            assert!(daemon.is_running(), "daemon {name} has ended:\n{}", daemon.output());
            let client = client.clone();
            async move {
                let daemons = client.daemon_list().await.map_err(|status| status.to_string())?;
                daemons
                    .iter()
                    .find(|daemon| {
                        daemon.name == name && daemon.status() == DaemonStatus::Attached && daemon.session_epoch > epoch
                    })
                    .cloned()
                    .ok_or_else(|| format!("{daemons:?}"))
            }
        })
        .await
    }

    async fn find_daemon(&self, name: &str) -> Option<Daemon> {
        self.client().daemon_list().await.ok()?.into_iter().find(|daemon| daemon.name == name)
    }

    /// What a daemon was told when it was last started.
    pub fn options_of(&self, name: &str) -> DaemonOptions {
        let found = self.daemons.iter().find(|(program, _)| program.name == name);
        found.unwrap_or_else(|| panic!("no daemon {name} was started")).1.clone()
    }

    // === command line ===

    /// Runs `makima ARGS` against this world's server with the owner's key, to its end.
    pub async fn cli(&self, args: &[&str]) -> Output {
        self.cli_with(args, |_| {}).await
    }

    /// [`Self::cli`] with something changed about the command.
    pub async fn cli_with(&self, args: &[&str], change: impl FnOnce(&mut std::process::Command)) -> Output {
        let mut command = self.command();
        command
            .args(args)
            .current_dir(&self.dir)
            .env("MAKIMA_SERVER", &self.url)
            .env("MAKIMA_KEY_FILE", self.key_file("owner"))
            .stdin(Stdio::null());
        change(&mut command);
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        tokio::time::timeout(CLI_DEADLINE, command.output())
            .await
            .unwrap_or_else(|_| panic!("makima {args:?} did not end within {CLI_DEADLINE:?}"))
            .expect("start makima")
    }

    /// Runs `makima ARGS --json` and answers the objects it writes, one a line; fails the test if the command fails.
    pub async fn cli_json(&self, args: &[&str]) -> Vec<serde_json::Value> {
        let mut with_json = args.to_vec();
        with_json.push("--json");
        let output = self.cli(&with_json).await;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "makima {args:?}: {}\n{stdout}{stderr}", output.status);
        let object =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("makima {args:?}: {error}: {line}"));
        stdout.lines().map(object).collect()
    }

    // === processes ===

    /// Every live process of this world: server, daemons, shims, agents.
    pub fn processes(&self) -> Vec<Found> {
        process::processes_of(&self.dir)
    }

    /// Its shims.
    pub fn shims(&self) -> Vec<Found> {
        self.processes().into_iter().filter(Found::is_shim).collect()
    }

    /// Live processes that are neither the server nor a daemon nor a shim: agents and what they started.
    pub fn agents(&self) -> Vec<Found> {
        let mut ours: Vec<u32> = Vec::new();
        ours.extend(self.server.try_pid());
        ours.extend(self.daemons.iter().filter_map(|(program, _)| program.try_pid()));
        self.processes().into_iter().filter(|found| !found.is_shim() && !ours.contains(&found.pid)).collect()
    }

    /// Waits until a file is there.
    pub async fn file_appears(&self, path: &Path) {
        eventually(&format!("{} is there", path.display()), || async {
            ensure(path.exists(), || "it is not".to_owned())
        })
        .await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        for (daemon, _) in &mut self.daemons {
            daemon.kill();
        }
        self.server.kill();
        let left = process::sweep(&self.dir);
        if failed {
            self.server.print_log();
            self.daemons.iter().for_each(|(daemon, _)| daemon.print_log());
        } else {
            assert!(left.is_empty(), "processes that would not die: {left:?}");
        }
    }
}

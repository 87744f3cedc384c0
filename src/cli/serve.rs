//! The processes that stay: `server`, `daemon run`, and `up`, which is both in one.
//!
//! Flags, environment and `config.toml` become the configuration of a component here, and nowhere else. A process says
//! where it listens on standard output, logs on standard error, drains at the first signal and ends at the second.

use std::{
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use tokio::net::TcpListener;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    Session,
    client::{Client, chain, timed},
    config::{KeyText, KeyUse, Settings, read_key},
    error::{Error, Result},
    output::note,
    repository,
};
use crate::{
    daemon::{self, agents::Profiles},
    runtime::{
        hooks,
        lifecycle::Shutdown,
        metrics::{self, Exporter},
    },
    server,
    store::Url,
};

/// The embedded database in a server's state directory.
const DATABASE: &str = "makima.sqlite";
/// Between two looks at our own server.
const LOOK: Duration = Duration::from_millis(20);
/// Where a server listens when nothing says otherwise.
const DEFAULT_LISTEN: &str = "127.0.0.1:7420";
/// What a server's first line begins with; the URL follows.
pub const LISTENING: &str = "listening on ";
/// `up` waits this long for its own server.
const UP_DEADLINE: Duration = Duration::from_secs(30);

/// `server`.
#[derive(Args, Clone, Debug, Default)]
pub struct ServerArgs {
    /// Address to listen on; port 0 takes a free one [env: MAKIMA_LISTEN] [default: 127.0.0.1:7420]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// SQLite file, or postgres:// URL [env: MAKIMA_DATABASE_URL] [default: makima.sqlite in the state directory]
    #[arg(long, value_name = "PATH|URL")]
    pub database_url: Option<String>,
    /// State directory: keys, blobs, the embedded database [env: MAKIMA_SERVER_STATE_DIR] [default: $XDG_STATE_HOME/makima/server]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Listen beyond loopback although nothing is encrypted yet
    #[arg(long)]
    pub insecure: bool,
    /// Address to show metrics on, at /metrics, to whoever asks [env: MAKIMA_METRICS_LISTEN] [default: not shown]
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics_listen: Option<String>,
    /// Between two heartbeats of a daemon
    #[arg(long, hide = true, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub heartbeat_interval: Option<Duration>,
    /// A daemon that is quiet for longer is lost
    #[arg(long, hide = true, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub lost_after: Option<Duration>,
    /// Stop when standard input closes, for whoever starts it as a child
    #[arg(long, hide = true)]
    pub stop_on_eof: bool,
}

/// `daemon run`.
#[derive(Args, Clone, Debug, Default)]
pub struct DaemonArgs {
    /// Name, unique among the owner's daemons [env: MAKIMA_DAEMON_NAME] [default: the hostname]
    #[arg(long)]
    pub name: Option<String>,
    /// Attempts at once [default: 4]
    #[arg(long, value_name = "N")]
    pub slots: Option<u32>,
    /// Label that tasks can require; may be repeated
    #[arg(long, value_name = "LABEL")]
    pub label: Vec<String>,
    /// Repository to have at hand: cloned at the start; may be repeated
    #[arg(long, value_name = "URL|PATH")]
    pub repo: Vec<String>,
    /// State directory: journal, attempts, worktrees [env: MAKIMA_DAEMON_STATE_DIR] [default: $XDG_STATE_HOME/makima/daemon/NAME]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Address to show metrics on, at /metrics, to whoever asks [env: MAKIMA_METRICS_LISTEN] [default: not shown]
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics_listen: Option<String>,
    /// Stop when standard input closes, for whoever starts it as a child
    #[arg(long, hide = true)]
    pub stop_on_eof: bool,
}

/// `up`.
#[derive(Args, Clone, Debug, Default)]
pub struct UpArgs {
    /// Address to listen on; port 0 takes a free one [env: MAKIMA_LISTEN] [default: 127.0.0.1:7420]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// State directory of both; `server` and `daemon/NAME` are made in it [default: $XDG_STATE_HOME/makima]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Name of the daemon [default: the hostname]
    #[arg(long)]
    pub name: Option<String>,
    /// Attempts at once [default: 4]
    #[arg(long, value_name = "N")]
    pub slots: Option<u32>,
    /// Address to show metrics on, at /metrics, to whoever asks [env: MAKIMA_METRICS_LISTEN] [default: not shown]
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics_listen: Option<String>,
}

/// `makima server`.
pub async fn server(session: &mut Session, args: ServerArgs) -> Result<()> {
    let shutdown = on_signals(args.stop_on_eof)?;
    let mut config = server_config(&session.settings, &args)?;
    let state_dir = config.state_dir.clone();
    let (listener, address) = listen(&session.settings, args.listen.as_deref(), args.insecure).await?;
    let section = &session.settings.file.server_process.metrics_listen;
    config.metrics =
        show_metrics(&session.settings, args.metrics_listen.as_deref(), section.as_deref(), &shutdown).await?;
    let url = format!("http://{address}");
    let server = async {
        let served = serve(config, listener, shutdown.clone()).await;
        shutdown.soft.cancel();
        served
    };
    // The line is the promise that keys are there and calls are answered: whoever starts a server waits for it.
    let ready = async {
        if serves(&url, &shutdown).await? {
            session.out.line(&format!("{LISTENING}{url}"))?;
            note(&match state_dir.join("owner.key").exists() {
                true => format!("keys are in {}", state_dir.display()),
                false => format!(
                    "the keys of this database are not in {}, but where its first server had its state, with its checkpoints \
                     and results: give that as --state-dir, or move it here",
                    state_dir.display()
                ),
            });
        }
        Ok(())
    };
    let (served, ready) = tokio::join!(server, ready);
    finish(&shutdown, served.and(ready)).await
}

/// `makima daemon run`.
pub async fn daemon(session: &mut Session, args: DaemonArgs) -> Result<()> {
    let shutdown = on_signals(args.stop_on_eof)?;
    let key = session.settings.key(KeyUse::Daemon)?;
    let mut config = daemon_config(&session.settings, &args, &session.settings.server, &key)?;
    let section = &session.settings.file.daemon.metrics_listen;
    config.metrics =
        show_metrics(&session.settings, args.metrics_listen.as_deref(), section.as_deref(), &shutdown).await?;
    session.out.line(&format!("daemon {} attaches to {}", config.name, config.server))?;
    let attached = attach(config, shutdown.clone()).await;
    finish(&shutdown, attached).await
}

/// `makima up`.
pub async fn up(session: &mut Session, args: UpArgs) -> Result<()> {
    let shutdown = on_signals(false)?;
    let settings = &session.settings;
    let name = daemon_name(settings, args.name.as_deref())?;
    let (server_dir, daemon_dir) = match &args.state_dir {
        Some(dir) => (dir.join("server"), dir.join("daemon").join(&name)),
        None => (settings.server_state_dir()?, settings.daemon_state_dir(&name)?),
    };
    let server_args = ServerArgs { state_dir: Some(server_dir.clone()), ..ServerArgs::default() };
    let mut config = server_config(settings, &server_args)?;
    let (listener, address) = listen(settings, args.listen.as_deref(), false).await?;
    // One text for both.
    let section = &settings.file.server_process.metrics_listen;
    let metrics = show_metrics(settings, args.metrics_listen.as_deref(), section.as_deref(), &shutdown).await?;
    config.metrics = metrics.clone();
    let url = format!("http://{address}");
    session.out.line(&format!("{LISTENING}{url}"))?;

    let daemon_args =
        DaemonArgs { name: Some(name), slots: args.slots, state_dir: Some(daemon_dir), ..DaemonArgs::default() };
    let server = async {
        let served = serve(config, listener, shutdown.clone()).await;
        // One without the other is not what was asked for.
        shutdown.soft.cancel();
        served
    };
    let daemon = async {
        let attached = async {
            let Some(key) = serving(&url, &server_dir, &shutdown).await? else { return Ok(()) };
            hints(session, &url, &server_dir)?;
            let config = daemon_config(&session.settings, &daemon_args, &url, &key)?;
            let config = daemon::Config { metrics, ..config };
            attach(config, shutdown.clone()).await
        };
        let attached = attached.await;
        shutdown.soft.cancel();
        attached
    };
    let (served, attached) = tokio::join!(server, daemon);
    finish(&shutdown, served.and(attached)).await
}

/// Agents installed here, with versions.
pub async fn agents_here(settings: &Settings) -> Vec<(String, String)> {
    let found = Profiles::load(settings.file.daemon.profiles.clone()).detect().await;
    found.into_iter().map(|profile| (profile.name, profile.version)).collect()
}

// === the components ===

async fn serve(config: server::Config, listener: TcpListener, shutdown: Shutdown) -> Result<()> {
    server::run(config, listener, shutdown).await.map_err(|error| Error::failed(chain(&error)))
}

async fn attach(config: daemon::Config, shutdown: Shutdown) -> Result<()> {
    daemon::run(config, shutdown).await.map_err(|error| match error {
        daemon::Error::Superseded(_) => Error::Superseded(chain(&error)),
        error => Error::failed(chain(&error)),
    })
}

fn server_config(settings: &Settings, args: &ServerArgs) -> Result<server::Config> {
    let section = &settings.file.server_process;
    let state_dir = match &args.state_dir {
        Some(dir) => dir.clone(),
        None => settings.server_state_dir()?,
    };
    let database = args
        .database_url
        .clone()
        .or_else(|| settings.environment.get("MAKIMA_DATABASE_URL"))
        .or_else(|| section.database_url.clone())
        .unwrap_or_else(|| state_dir.join(DATABASE).display().to_string());
    let database: Url = database.parse().map_err(|error: crate::store::Error| Error::usage(chain(&error)))?;
    let mut config = server::Config::new(database, state_dir);
    if let Some(interval) = args.heartbeat_interval {
        config.times.heartbeat = interval;
    }
    if let Some(lost_after) = args.lost_after {
        config.times.lost_after = lost_after;
    }
    Ok(config)
}

fn daemon_config(settings: &Settings, args: &DaemonArgs, server: &str, key: &KeyText) -> Result<daemon::Config> {
    let section = &settings.file.daemon;
    let name = daemon_name(settings, args.name.as_deref())?;
    let state_dir = match &args.state_dir {
        Some(dir) => dir.clone(),
        None => settings.daemon_state_dir(&name)?,
    };
    let wrong = |error: daemon::config::Error| Error::usage(error.to_string());
    let server = daemon::config::Server::parse(server).map_err(wrong)?;
    let key = daemon::config::Key::parse(&key.secret).map_err(wrong)?;
    let mut config = daemon::Config::new(server, key, state_dir);
    config.name = name;
    if let Some(slots) = args.slots.or(section.slots) {
        config.slots = slots;
    }
    // Flags add to the file: a label given by hand does not take away those of the machine.
    config.labels = [section.labels.clone(), args.label.clone()].concat();
    config.labels.sort();
    config.labels.dedup();
    for repository in section.repositories.iter().chain(&args.repo) {
        let repository = local_repository(repository)?;
        if !config.repositories.contains(&repository) {
            config.repositories.push(repository);
        }
    }
    config.profiles.clone_from(&section.profiles);
    config.any_path = section.any_path;
    if let Some(floor) = section.disk_floor {
        config.disk_floor = floor;
    }
    if let Some(ordering) = section.dependency_ordering {
        config.dependency_ordering = ordering;
    }
    config.times.connect = hooks::duration("CONNECT", config.times.connect);
    config.times.reconnect_limit = hooks::duration("RECONNECT_LIMIT", config.times.reconnect_limit);
    config.check().map_err(wrong)?;
    Ok(config)
}

/// A name that can be joined to a path.
fn daemon_name(settings: &Settings, flag: Option<&str>) -> Result<String> {
    let name = flag
        .map(str::to_owned)
        .or_else(|| settings.environment.get("MAKIMA_DAEMON_NAME"))
        .or_else(|| settings.file.daemon.name.clone())
        .unwrap_or_else(daemon::config::hostname);
    daemon::config::check_name(&name).map_err(|error| Error::usage(error.to_string()))?;
    Ok(name)
}

/// A path as tasks name it: absolute, links resolved.
fn local_repository(text: &str) -> Result<String> {
    if repository::is_url(text) {
        return Ok(text.to_owned());
    }
    let path = std::fs::canonicalize(text)
        .map_err(|error| Error::usage(format!("the repository {text} cannot be offered to tasks: {error}")))?;
    path.to_str().map(str::to_owned).ok_or_else(|| Error::usage(format!("the path {text} is not UTF-8")))
}

/// Waits until our own server serves, and answers the key for our daemon; `None` when it is over before.
async fn serving(url: &str, server_dir: &Path, shutdown: &Shutdown) -> Result<Option<KeyText>> {
    if !serves(url, shutdown).await? {
        return Ok(None);
    }
    let path = server_dir.join("daemon.key");
    let key = read_key(&path)?.ok_or_else(|| {
        Error::failed(format!(
            "{} is not there, and the database is not new: make a key with `makima key create --kind daemon` and run \
             `makima server` and `makima daemon run --key-file` by themselves",
            path.display()
        ))
    })?;
    Ok(Some(key))
}

/// Waits until our own server serves; false when it is over before.
async fn serves(url: &str, shutdown: &Shutdown) -> Result<bool> {
    let wait = async {
        loop {
            if let Ok(client) = Client::open(url, None, None).await {
                let health = HealthClient::new(client.channel()).check(timed(HealthCheckRequest::default())).await;
                if health.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving) {
                    return;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = wait => {}
        () = shutdown.soft.cancelled() => return Ok(false),
        () = tokio::time::sleep(UP_DEADLINE) => {
            return Err(Error::failed(format!("the server does not serve after {} s", UP_DEADLINE.as_secs())));
        }
    }
    Ok(true)
}

fn hints(session: &Session, url: &str, server_dir: &Path) -> Result<()> {
    let found =
        session.settings.server == url && session.settings.server_state_dir().is_ok_and(|dir| dir == server_dir);
    let mut flags = String::new();
    if !found {
        flags = format!(" --server {url} --key-file {}", server_dir.join("owner.key").display());
    }
    note(&format!("keys are in {}", server_dir.display()));
    note(&format!("try, in a git repository:  makima run --wait --agent shell 'echo hello > hello.txt'{flags}"));
    note("Ctrl-C stops it; agents that run go on, and are found again by the next start");
    Ok(())
}

fn on_signals(eof: bool) -> Result<Shutdown> {
    let shutdown = Shutdown::new();
    shutdown.on_signals().map_err(Error::io("listen for signals"))?;
    if eof {
        stop_on_eof(&shutdown);
    }
    Ok(shutdown)
}

/// Waits for what still runs. A loop that died is a failure, so that a keeper starts the process again.
async fn finish(shutdown: &Shutdown, ended: Result<()>) -> Result<()> {
    let well = shutdown.finish().await;
    ended?;
    if well { Ok(()) } else { Err(Error::failed("a part of it ended that should not have; its log says why")) }
}

/// What a program says when asked with one argument; `None` where it is not there.
#[expect(clippy::disallowed_methods, reason = "not an agent: the doctor looks at what is installed")]
pub async fn program_says(program: &str, argument: &str) -> Option<String> {
    let mut command = tokio::process::Command::new(program);
    command.arg(argument).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(10), command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn listen(settings: &Settings, flag: Option<&str>, insecure: bool) -> Result<(TcpListener, SocketAddr)> {
    let text = flag
        .map(str::to_owned)
        .or_else(|| settings.environment.get("MAKIMA_LISTEN"))
        .or_else(|| settings.file.server_process.listen.clone())
        .unwrap_or_else(|| DEFAULT_LISTEN.to_owned());
    let addresses = addresses(&text).await?;
    let insecure = insecure || settings.file.server_process.insecure.unwrap_or_default();
    for address in &addresses {
        server::listen::check_address(*address, insecure).map_err(|error| Error::usage(error.to_string()))?;
    }
    bind(&text, &addresses, "another server may run already; pass --listen HOST:PORT").await
}

/// Shows metrics for as long as the process runs, if an address was given. Numbers, states and the names of daemons and owners
/// are no secrets, so any address will do that a person has chosen.
async fn show_metrics(
    settings: &Settings,
    flag: Option<&str>,
    section: Option<&str>,
    shutdown: &Shutdown,
) -> Result<Exporter> {
    let exporter = Exporter::default();
    let environment = settings.environment.get("MAKIMA_METRICS_LISTEN");
    let Some(text) = flag.or(environment.as_deref()).or(section) else { return Ok(exporter) };
    let addresses = addresses(text).await?;
    let taken = "each process shows its own metrics; pass --metrics-listen HOST:PORT, or port 0 for a free one";
    let (listener, address) = bind(text, &addresses, taken).await?;
    note(&format!("metrics are at http://{address}{}", metrics::PATH));
    shutdown.spawn_loop("metrics", exporter.clone().serve(listener, shutdown.clone()));
    Ok(exporter)
}

async fn addresses(text: &str) -> Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host(text).await;
    let found =
        found.map_err(|error| Error::usage(format!("{text} is no address to listen on ({error}); write HOST:PORT")))?;
    Ok(found.collect())
}

async fn bind(text: &str, addresses: &[SocketAddr], taken: &str) -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(addresses).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Error::failed(format!("{text} is taken: {taken}")),
        _ => Error::Io { what: format!("listen on {text}"), source: error },
    })?;
    let address = listener.local_addr().map_err(Error::io("find the address listened on"))?;
    Ok((listener, address))
}

/// Asks for the end when standard input closes. A thread of its own, because reading standard input cannot be given up.
fn stop_on_eof(shutdown: &Shutdown) {
    let soft = shutdown.soft.clone();
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin();
        let mut buffer = [0; 256];
        while !matches!(stdin.read(&mut buffer), Ok(0) | Err(_)) {}
        soft.cancel();
    });
}

//! The processes that stay: `server`, `daemon run`, and `up`, which is both in one.
//!
//! Flags, environment and `config.toml` become the configuration of a component here, and nowhere else. A process says
//! where it listens on standard output, logs on standard error, drains at the first signal and ends at the second.

use std::{io::Read as _, net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use tokio::net::TcpListener;

use super::{
    Session,
    config::{KeyText, KeyUse, Settings, read_key},
    error::{Error, Result},
    output::note,
};
use crate::runtime::lifecycle::Shutdown;

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
    /// SQLite file, or postgres:// URL [env: MAKIMA_DATABASE_URL] [default: makima.db in the state directory]
    #[arg(long, value_name = "PATH|URL")]
    pub database_url: Option<String>,
    /// State directory: keys, blobs, the embedded database [env: MAKIMA_SERVER_STATE_DIR] [default: $XDG_STATE_HOME/makima/server]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Listen beyond loopback although nothing is encrypted yet
    #[arg(long)]
    pub insecure: bool,
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
}

/// `makima server`.
pub async fn server(session: &mut Session, args: ServerArgs) -> Result<()> {
    let shutdown = Shutdown::new();
    shutdown.on_signals().map_err(Error::io("listen for signals"))?;
    if args.stop_on_eof {
        stop_on_eof(&shutdown);
    }
    let (listener, address) = listen(&session.settings, args.listen.as_deref(), args.insecure).await?;
    session.out.line(&format!("{LISTENING}http://{address}"))?;
    Err(Error::failed("the server is not part of this build yet"))
}

/// `makima daemon run`.
pub async fn daemon(session: &mut Session, args: DaemonArgs) -> Result<()> {
    Err(Error::failed("the daemon is not part of this build yet"))
}

/// `makima up`.
pub async fn up(session: &mut Session, args: UpArgs) -> Result<()> {
    Err(Error::failed("not part of this build yet"))
}

/// Agents installed here, with versions.
pub async fn agents_here(settings: &Settings) -> Result<Vec<(String, String)>> {
    Ok(Vec::new())
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
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(&text)
        .await
        .map_err(|error| Error::usage(format!("{text} is no address to listen on ({error}); write HOST:PORT")))?
        .collect();
    let insecure = insecure || settings.file.server_process.insecure.unwrap_or_default();
    if !insecure && let Some(open) = addresses.iter().find(|address| !address.ip().is_loopback()) {
        return Err(Error::usage(format!(
            "{open} is reachable from other machines and nothing is encrypted yet: listen on 127.0.0.1, or accept that with --insecure"
        )));
    }
    let listener = TcpListener::bind(addresses.as_slice()).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            Error::failed(format!("{text} is taken: another server may run already; pass --listen HOST:PORT"))
        }
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

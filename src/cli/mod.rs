//! What a person types: parse, do, say how it went, exit code.
//!
//! ```text
//!   flags, MAKIMA_*, config.toml ──> Settings ──> Client (generated, with a key) ──> server
//!                                                   │
//!   output (lines, tables, JSON) <── view, screen <─┘
//! ```
//!
//! The command line knows of the server what the protocol says and nothing else; only `server`, `daemon run`, `up`, `demo`
//! and the worktree and salvage commands reach into the other modules. Reading, deciding what to show, and showing are apart
//! ([`board`], [`screen`], [`contract_file`] are pure), so that what a person reads is tested as text.

mod board;
mod checkpoint;
mod client;
mod config;
mod contract;
mod contract_file;
mod demo;
mod doctor;
mod error;
mod fleet;
mod follow;
mod key;
mod logs;
mod output;
mod repository;
mod resolve;
mod restore;
mod run;
mod salvage;
mod screen;
mod serve;
mod task;
mod verbs;
mod view;
mod worktree;

use std::{future::Future, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use self::{
    client::Client,
    config::{Environment, GlobalArgs, KeyUse, Settings},
    error::{Error, Result},
    output::Out,
};
use crate::runtime::telemetry;

/// What commands log that only ask; what they do they say themselves.
const QUIET: &str = "warn";
/// What processes log that serve.
const SERVING: &str = "info,h2=warn,hyper=warn,tower=warn,sqlx=warn";

/// Runs fleets of AI coding agents: contracts of dependent tasks, on many machines, with nothing lost.
#[derive(Debug, Parser)]
#[command(name = "makima", version, propagate_version = true, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Server and one daemon in one process, with an embedded database: the quickest start
    Up(serve::UpArgs),
    /// Run the server
    Server(serve::ServerArgs),
    /// Run a daemon on this machine, or look after daemons
    #[command(subcommand)]
    Daemon(DaemonCommand),
    /// Give one task to an agent
    Run(run::RunArgs),
    /// Contracts: goals broken into tasks that depend on each other
    #[command(subcommand)]
    Contract(contract::ContractCommand),
    /// Tasks: pieces of work, their attempts and output
    #[command(subcommand)]
    Task(task::TaskCommand),

    /// Worktrees that attempts on this machine worked in
    #[command(subcommand)]
    Worktree(worktree::WorktreeCommand),
    /// What lies on this machine and belongs to nobody: look at it, take it, throw it away
    #[command(subcommand)]
    Salvage(salvage::SalvageCommand),
    /// Keys: who may do what (needs an admin key)
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Check this machine and its server, and say what to do
    Doctor,
    /// Show it all on a small repository: a server, two daemons, five tasks; leaves nothing behind
    Demo(demo::DemoArgs),
    /// Stands over one agent; started by the daemon
    #[command(hide = true)]
    Shim {
        /// Directory of the attempt
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum DaemonCommand {
    /// Run a daemon on this machine
    Run(serve::DaemonArgs),
    /// List daemons
    List(fleet::ListArgs),
    /// Show one daemon with its live attempts
    Get(DaemonArg),
    /// Give a daemon no new work; what runs there goes on
    Drain(DaemonArg),
    /// End a drain
    Undrain(DaemonArg),
}

#[derive(Args, Debug)]
struct DaemonArg {
    /// Id or name
    daemon: String,
}

/// One call of the program.
pub(crate) struct Session {
    settings: Settings,
    out: Out,
}

impl Session {
    async fn client(&self, usage: KeyUse) -> Result<Client> {
        Client::connect(&self.settings, usage).await
    }

    fn current_dir(&self) -> Result<PathBuf> {
        std::env::current_dir().map_err(Error::io("find the current directory"))
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` is one of these, and goes to a pipe that may be closed.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    if let Command::Shim { dir } = &cli.command {
        // Small and single-threaded: no runtime, no configuration, no log.
        return crate::daemon::shim::run(dir);
    }
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(message) = error.message() {
                output::note(&format!("makima: {message}"));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(cli: Cli) -> Result<()> {
    let settings = Settings::load(&cli.global, Environment::of_process())?;
    let out = Out::stdout(settings.json);
    let mut session = Session { settings, out };
    let serving = matches!(cli.command, Command::Up(_) | Command::Server(_) | Command::Daemon(DaemonCommand::Run(_)));
    telemetry::start(if serving { SERVING } else { QUIET });
    let mut builder = if serving {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder.enable_all().build().map_err(Error::io("start the runtime"))?;
    runtime.block_on(async {
        match cli.command {
            // These see to their signals themselves.
            Command::Up(args) => Box::pin(serve::up(&mut session, args)).await,
            Command::Server(args) => Box::pin(serve::server(&mut session, args)).await,
            Command::Daemon(DaemonCommand::Run(args)) => Box::pin(serve::daemon(&mut session, args)).await,
            Command::Demo(args) => Box::pin(demo::run(&mut session, args)).await,
            command => interruptible(Box::pin(ask(&mut session, command))).await,
        }
    })
}

async fn ask(session: &mut Session, command: Command) -> Result<()> {
    match command {
        Command::Daemon(DaemonCommand::List(args)) => fleet::list(session, &args).await,
        Command::Daemon(DaemonCommand::Get(arg)) => fleet::get(session, arg.daemon).await,
        Command::Daemon(DaemonCommand::Drain(arg)) => fleet::drain(session, arg.daemon).await,
        Command::Daemon(DaemonCommand::Undrain(arg)) => fleet::undrain(session, arg.daemon).await,
        Command::Run(args) => run::run(session, args).await,
        Command::Contract(command) => contract::run(session, command).await,
        Command::Task(command) => task::run(session, command).await,

        Command::Worktree(command) => worktree::run(session, command).await,
        Command::Salvage(command) => salvage::run(session, command).await,
        Command::Key(command) => key::run(session, command).await,
        Command::Doctor => doctor::run(session).await,
        Command::Up(_)
        | Command::Server(_)
        | Command::Daemon(DaemonCommand::Run(_))
        | Command::Demo(_)
        | Command::Shim { .. } => Ok(()),
    }
}

/// Ends at Ctrl-C. What waits says more about it itself, and is asked first.
async fn interruptible(command: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::select! {
        biased;
        result = command => result,
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted("interrupted".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_lists_every_command_but_the_hidden() {
        insta::assert_snapshot!(Cli::command().term_width(100).render_help().to_string(), @r"
        Runs fleets of AI coding agents: contracts of dependent tasks, on many machines, with nothing lost

        Usage: makima [OPTIONS] <COMMAND>

        Commands:
          up        Server and one daemon in one process, with an embedded database: the quickest start
          server    Run the server
          daemon    Run a daemon on this machine, or look after daemons
          run       Give one task to an agent
          contract  Contracts: goals broken into tasks that depend on each other
          task      Tasks: pieces of work, their attempts and output
          worktree  Worktrees that attempts on this machine worked in
          salvage   What lies on this machine and belongs to nobody: look at it, take it, throw it away
          key       Keys: who may do what (needs an admin key)
          doctor    Check this machine and its server, and say what to do
          demo      Show it all on a small repository: a server, two daemons, five tasks; leaves nothing
                    behind
          help      Print this message or the help of the given subcommand(s)

        Options:
          -h, --help     Print help
          -V, --version  Print version

        Global options:
              --server <URL>     Server to talk to [env: MAKIMA_SERVER] [default: http://127.0.0.1:7420]
              --key-file <FILE>  File with the key [env: MAKIMA_KEY_FILE, or the key itself in MAKIMA_KEY]
                                 [default: the key that a server on this machine wrote]
              --owner <NAME>     Owner to act for, with an admin key [env: MAKIMA_OWNER]
              --config <FILE>    Configuration file [env: MAKIMA_CONFIG] [default:
                                 $XDG_CONFIG_HOME/makima/config.toml]
              --json             Write one JSON object a line, for programs
        ");
    }

    #[test]
    fn dependencies_are_shown_without_a_subcommand_too() {
        for args in [vec!["deps", "x"], vec!["deps", "list", "x"], vec!["deps", "add", "x", "y"]] {
            Cli::try_parse_from([vec!["makima", "task"], args].concat()).unwrap();
        }
    }

    #[test]
    fn an_owner_named_for_a_key_is_the_one_of_all_commands() {
        let cli = Cli::try_parse_from(["makima", "key", "create", "--kind", "owner", "--owner", "alice"]).unwrap();
        assert_eq!(cli.global.owner.as_deref(), Some("alice"));
    }
}

//! Who does: one process on a machine that runs agents for a server.
//!
//! ```text
//!            ┌───────────────────────────── the daemon ─────────────────────────────┐
//!   server <─┤ session ─ commands ─> intake ─> journal ─> supervisor ─> runner ──┐   │
//!            │    ^                              │ outbox                        │   │
//!            │    └───────── messages ───────────┘ <──── reports ───────────────┤   │
//!   server <─┤ bulk <─────────── output.log, as it grows ───────────────────────┤   │
//!            └───────────────────────────────────────────────────────────────────┼───┘
//!                         repository ─> worktree ─> setup ─> shim ─> agent <──────┘
//! ```
//!
//! What it promises: journal before acting, journal before reporting; `kill -9` of it at any line loses nothing, since agents
//! run under shims of their own, each attempt's directory describes itself, and whatever was accepted or owed is in the
//! journal. It never decides what runs when: the server does. Only `session` and `bulk` know the protocol.

pub mod agents;
pub mod attempt_dir;
pub mod brief;
pub mod bulk;
pub mod checkpoint;
pub mod config;
pub mod git;
mod guard;
pub mod health;
pub mod hollow;
pub mod identity;
mod intake;
pub mod journal;
pub mod metrics;
pub mod process;
mod recovery;
pub mod repository;
mod retention;
mod runner;
pub mod salvage;
pub mod sanity;
mod secrets;
pub mod session;
pub mod shim;
mod supervisor;
pub mod sweep;
pub mod watch;
pub mod worktree;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::{Notify, Semaphore};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::{
    domain::{BootId, daemon},
    runtime::{backoff::Backoff, clock, lifecycle::Shutdown},
};
use agents::Profiles;
use bulk::Bulk;
pub use config::Config;
use health::Health;
use hollow::Hollow;
use identity::StateDir;
use journal::Journal;
use metrics::{Measured, Metrics};
use repository::Repositories;
use runner::{blocking, chain};
use session::Over;
use supervisor::Supervisor;
use watch::Watch;

/// Times a repository of the configuration is tried to be cloned: later a task that needs it clones it anyway.
const CLONE_TRIES: u32 = 5;
/// The first wait between those; it doubles.
const CLONE_FIRST: Duration = Duration::from_secs(5);
/// The longest.
const CLONE_LIMIT: Duration = Duration::from_secs(300);

/// Why the daemon does not run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The state directory.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// Another process with this identity has attached.
    #[error(
        "another daemon with this identity has attached, and this one has stopped: {0}. A copied state directory must not be \
         used twice; remove its identity.json and journal.sqlite to come as a new daemon"
    )]
    Superseded(String),
    /// The server does not want this daemon.
    #[error("the server does not want this daemon, and its agents have been stopped: {0}")]
    Banned(String),
}

/// What all parts of the daemon share.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) state: StateDir,
    pub(crate) journal: Journal,
    pub(crate) repositories: Repositories,
    pub(crate) profiles: Profiles,
    /// Profiles really installed.
    installed: RwLock<Vec<daemon::Profile>>,
    /// Attempts have no work here; never so in the program.
    pub(crate) hollow: Option<Hollow>,
    pub(crate) health: Health,
    /// Looks after the worktrees of running attempts.
    pub(crate) watch: Watch,
    pub(crate) bulk: Bulk,
    pub(crate) metrics: Metrics,
    pub(crate) slots: Arc<Semaphore>,
    /// Held by the one checkpoint that may be taken at a time while agents work.
    pub(crate) captures: Semaphore,
    pub(crate) shutdown: Shutdown,
    pub(crate) boot: BootId,
    /// A session stands: what failed for want of a server may be tried again.
    pub(crate) attached: Notify,
    /// The card is another one than it was: the server hears so by a new Hello.
    pub(crate) card_changed: Notify,
}

impl Context {
    /// What this daemon says of itself.
    pub(crate) fn card(&self) -> daemon::Card {
        let config = &self.config;
        let mut repositories = config.repositories.clone();
        repositories.extend(self.repositories.at_hand());
        repositories.sort();
        repositories.dedup();
        // A path that is not there is not at hand, whatever the configuration says.
        repositories.retain(|r| !daemon::is_path(r) || std::path::Path::new(r).exists());
        daemon::Card {
            name: config.name.clone(),
            slots: config.slots,
            labels: config.labels.clone(),
            profiles: self.installed(),
            repositories,
            any_path: config.any_path(),
            not_accepting: self.health.vitals().not_accepting,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: config::hostname(),
        }
    }

    fn installed(&self) -> Vec<daemon::Profile> {
        self.installed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn is_installed(&self, agent: &str) -> bool {
        self.installed().iter().any(|profile| profile.name == agent)
    }

    pub(crate) fn installed_version(&self, agent: &str) -> String {
        self.installed().into_iter().find(|profile| profile.name == agent).map(|p| p.version).unwrap_or_default()
    }
}

/// Runs a daemon until the shutdown, or until the server says that there is no point in going on; then it starts the
/// shutdown itself. Agents outlive it.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), Error> {
    run_as(config, shutdown, None).await
}

/// Runs a daemon that does no work, to measure everything else: see [`hollow`]. No flag, variable or file of the program
/// leads here.
pub async fn run_hollow(config: Config, shutdown: Shutdown, hollow: Hollow) -> Result<(), Error> {
    run_as(config, shutdown, Some(hollow)).await
}

async fn run_as(config: Config, shutdown: Shutdown, hollow: Option<Hollow>) -> Result<(), Error> {
    config.check()?;
    let path = config.state_dir.clone();
    let state = blocking(move || StateDir::open(&path)).await?;
    let path = state.path().to_owned();
    let opened = blocking(move || Journal::open(&path, clock::now())).await?;
    let (bulk, uploads) = Bulk::new();
    let (watch, watching) = Watch::new(&shutdown);
    let context = Arc::new(Context {
        repositories: Repositories::new(state.repositories()),
        profiles: Profiles::load(config.profiles.clone()),
        installed: RwLock::default(),
        hollow,
        health: Health::new(state.path(), config.disk_floor),
        watch,
        slots: Arc::new(Semaphore::new(usize::try_from(config.slots).unwrap_or(usize::MAX))),
        captures: Semaphore::new(1),
        metrics: Metrics::new(&opened.journal, &config.name),
        journal: opened.journal,
        boot: BootId(Uuid::new_v4()),
        attached: Notify::new(),
        card_changed: Notify::new(),
        shutdown: shutdown.clone(),
        bulk,
        state,
        config,
    });
    tracing::info!(
        name = context.config.name,
        id = %context.state.daemon(),
        server = %context.config.server,
        state = %context.state.path().display(),
        slots = context.config.slots,
        "daemon starts"
    );
    let (found, ()) = tokio::join!(recovery::look(&context), detect(&context));
    let found = found?;
    let (handle, mut supervisor) = Supervisor::new(Arc::clone(&context));
    supervisor.resume(found.live, found.only_on_disk);
    let measured = Arc::new(Measured::new(Arc::clone(&context), handle.clone()));
    context.config.metrics.add(&measured);
    let (intake, commands) = intake::new();
    shutdown.spawn_loop("supervisor", supervisor.run());
    shutdown.spawn_loop("intake", intake::run(Arc::clone(&context), handle.clone(), commands));
    shutdown.spawn_loop("watch", watching);
    shutdown.spawn_loop("disk guard", guard::run(Arc::clone(&context)));
    shutdown.spawn_loop("retention", retention::run(Arc::clone(&context)));
    shutdown.spawn_loop("bulk", bulk::run(Arc::clone(&context), uploads));
    shutdown.spawn(clone_repositories(Arc::clone(&context)).instrument(tracing::info_span!("clone")));

    // In a task like the others, which the thread that hears the server runs itself: whoever waits for this daemon has a thread
    // of his own, and each word of the server would wake that first.
    let (ended, over) = tokio::sync::oneshot::channel();
    let (sessions, soft) = (session::run(Arc::clone(&context), handle.clone(), intake), shutdown.soft.clone());
    shutdown.spawn_loop("session", async move {
        let _ = ended.send(sessions.await);
        soft.cancelled().await;
    });
    let Ok(over) = over.await else {
        // It has panicked: the process ends as failed, which is said by what asks for the shutdown.
        tokio::select! {
            () = shutdown.soft.cancelled() => {}
            () = shutdown.hard.cancelled() => {}
        }
        return Ok(());
    };
    match over {
        Over::Shutdown => Ok(()),
        Over::Superseded(message) => {
            shutdown.soft.cancel();
            Err(Error::Superseded(message))
        }
        Over::Banned(message) => {
            tracing::error!(reason = message, "the server does not want this daemon; its agents are being stopped");
            tokio::select! {
                () = handle.stop_all("the server does not want this daemon") => {}
                () = shutdown.soft.cancelled() => {}
            }
            shutdown.soft.cancel();
            Err(Error::Banned(message))
        }
    }
}

/// Finds out which agents are installed. One that takes long to say its version does not delay attaching.
async fn detect(context: &Arc<Context>) {
    if context.hollow.is_some() {
        // Nothing else is offered: an order for a real agent is refused, so that nobody's task is done by nothing.
        *context.installed.write().unwrap_or_else(PoisonError::into_inner) = vec![hollow::profile()];
        return;
    }
    let found = Arc::clone(context);
    let (done, detected) = tokio::sync::oneshot::channel();
    let detect = async move {
        let profiles = found.profiles.detect().await;
        *found.installed.write().unwrap_or_else(PoisonError::into_inner) = profiles;
        if done.send(()).is_err() {
            // It took too long to be waited for.
            found.card_changed.notify_one();
        }
    };
    context.shutdown.spawn(detect.instrument(tracing::info_span!("detect")));
    if tokio::time::timeout(context.config.times.detect, detected).await.is_err() {
        tracing::warn!("agents take long to say their versions; attaching without them for now");
    }
}

/// Clones what the configuration names, beside everything else.
async fn clone_repositories(context: Arc<Context>) {
    let urls = context.config.repositories.iter().filter(|r| !daemon::is_path(r));
    for url in urls {
        let mut backoff = Backoff::new(CLONE_FIRST, CLONE_LIMIT);
        for tried in 1..=CLONE_TRIES {
            let cloned = tokio::select! {
                () = context.shutdown.soft.cancelled() => return,
                cloned = context.repositories.ensure(url, "", &[]) => cloned,
            };
            match cloned {
                Ok(_) => {
                    tracing::info!(url, "repository at hand");
                    break;
                }
                Err(error) => tracing::warn!(url, tried, error = chain(&error), "a repository cannot be cloned"),
            }
            tokio::select! {
                () = context.shutdown.soft.cancelled() => return,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }
}

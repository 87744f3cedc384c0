//! A whole server: opens the database, starts the ledger and what time brings about, serves until it is asked to stop.
//!
//! ```text
//!   open store (claimed, migrated) -> keys -> who was attached -> ledger -> loops -> serve
//!   stop: health NOT_SERVING, sessions and streams told, loops return, ledger writes what it has, store closes
//! ```

use std::{
    fs::{DirBuilder, Permissions},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::net::TcpListener;

use super::{
    auth::{self, Auth},
    blobs::Blobs,
    ledger::Ledger,
    listen,
    metrics::Measured,
    output::OutputStore,
    reaper,
    services::Api,
    session::{Heard, Host, Times},
    uploads::Uploads,
};
use crate::{
    runtime::{clock, lifecycle::Shutdown, metrics::Exporter},
    store::{self, Claim, Store, Url},
};

/// How often the claim on the database is looked at.
const CLAIM_EVERY: Duration = Duration::from_secs(5);

/// What a server is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where keys, blobs and the embedded database are; made if it is not there.
    pub state_dir: PathBuf,
    /// The database.
    pub database: Url,
    /// Heartbeats.
    pub times: Times,
    /// Where what is measured is shown, if anybody serves it.
    pub metrics: Exporter,
}

impl Config {
    /// A server with the default times.
    pub fn new(database: Url, state_dir: PathBuf) -> Self {
        let times = Times { heartbeat: Duration::from_secs(15), lost_after: Duration::from_secs(45) };
        Self { state_dir, database, times, metrics: Exporter::default() }
    }
}

/// Why a server did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state directory cannot be made.
    #[error("prepare the state directory {path}")]
    State {
        /// Which.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The keys of a new database.
    #[error("prepare the keys")]
    Keys(#[source] auth::Error),
    /// The blobs.
    #[error("prepare the blobs")]
    Blobs(#[source] super::blobs::Error),
    /// The network.
    #[error(transparent)]
    Serve(#[from] listen::Error),
    /// A loop ended that should not have; the log says which.
    #[error("a part of the server failed; see the log")]
    Failed,
}

/// Runs a server on a listener until the shutdown asks for its end. Returns when everything is written and closed.
pub async fn run(config: Config, listener: TcpListener, shutdown: Shutdown) -> Result<(), Error> {
    let state_error = |source| Error::State { path: config.state_dir.display().to_string(), source };
    // Plans and what agents print are in it: it is its user's alone, also where it was made by somebody else.
    DirBuilder::new().recursive(true).mode(0o700).create(&config.state_dir).map_err(state_error)?;
    std::fs::set_permissions(&config.state_dir, Permissions::from_mode(0o700)).map_err(state_error)?;
    let (store, claim) = Store::open(&config.database).await?;
    let served = serve(&config, store.clone(), claim, listener, shutdown.clone()).await;
    store.close().await;
    served?;
    if shutdown.has_failed() { Err(Error::Failed) } else { Ok(()) }
}

async fn serve(
    config: &Config,
    store: Store,
    claim: Claim,
    listener: TcpListener,
    shutdown: Shutdown,
) -> Result<(), Error> {
    let task_keys = auth::bootstrap(&store, &config.state_dir, clock::now()).await.map_err(Error::Keys)?;
    let blobs = Blobs::open(&config.state_dir.join("blobs")).map_err(Error::Blobs)?;
    let heard = Arc::new(Heard::default());
    reaper::remember(&store, &heard, config.times).await?;
    let (ledger, writer) = Ledger::start(store.clone(), task_keys.clone()).await?;
    // The ledger ends after everybody who speaks to it, so it has an end of its own.
    let last = Shutdown::new();
    match store.writes_block() {
        true => last.spawn_loop_apart("ledger", writer),
        false => last.spawn_loop("ledger", writer),
    }
    let measured = Arc::new(Measured::new(store.clone(), ledger.clone()));
    config.metrics.add(&measured);

    let output = OutputStore::new(store.clone(), blobs.clone());
    let staging = config.state_dir.join("uploads");
    let files = Uploads::open(&staging, store.clone(), blobs.clone(), ledger.clone()).map_err(Error::Blobs)?;
    let auth = Auth::new(store.clone(), task_keys);
    let host =
        Host { ledger: ledger.clone(), heard: Arc::clone(&heard), times: config.times, shutdown: shutdown.clone() };
    let api = Api::new(store.clone(), auth.clone(), output.clone(), files.clone(), blobs.clone(), host);

    let silence = reaper::silence(store.clone(), ledger.clone(), heard, config.times, shutdown.clone());
    shutdown.spawn_loop("silence", silence);
    shutdown.spawn_loop("sweep", reaper::sweep(ledger.clone(), shutdown.clone()));
    shutdown.spawn_loop("forget", reaper::forget(store.clone(), blobs, files, shutdown.clone()));
    shutdown.spawn_loop("output", output.run(shutdown.clone()));
    shutdown.spawn_loop("feed", api.feed.clone().run(shutdown.clone()));
    shutdown.spawn_loop("claim", watch_claim(claim, shutdown.clone()));
    let ended = last.soft.clone();
    let soft = shutdown.soft.clone();
    shutdown.spawn_loop("ledger watch", async move {
        tokio::select! {
            () = ended.cancelled() => {}
            () = soft.cancelled() => {}
        }
    });

    let served = listen::serve(listener, api, auth, shutdown.clone()).await;
    shutdown.finish().await;
    last.soft.cancel();
    // The ledger ends when nobody can speak to it any more.
    drop(measured);
    drop(ledger);
    last.finish().await;
    Ok(served?)
}

/// Ends when another server has taken the database, which takes this one down. While the database cannot be reached nobody
/// has it: the server waits for it to come back, and answers UNAVAILABLE meanwhile.
async fn watch_claim(mut claim: Claim, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            () = tokio::time::sleep(CLAIM_EVERY) => {}
        }
        match claim.check().await {
            Ok(()) => {}
            Err(error @ store::Error::InUse(_)) => {
                tracing::error!(error = super::ledger::chain(&error), "the database is taken");
                return;
            }
            Err(error) => tracing::warn!(error = super::ledger::chain(&error), "the database cannot be reached"),
        }
    }
}

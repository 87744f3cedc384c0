//! Starting and stopping. The first signal asks everything to finish (`soft`), the second, or the deadline, ends it
//! (`hard`). A loop that returns or panics before it was asked to takes the process down with a failure, so that its keeper
//! restarts it: nothing runs on half alive.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

/// What is between the soft and the hard end.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// The shutdown of one process, or in tests of one component. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Finish what you do and return.
    pub soft: CancellationToken,
    /// Return now.
    pub hard: CancellationToken,
    tasks: TaskTracker,
    failed: Arc<AtomicBool>,
}

impl Shutdown {
    /// One that nothing has asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a loop that must not end before the shutdown does.
    #[expect(clippy::disallowed_methods, reason = "this is the place the lint sends everybody to")]
    pub fn spawn_loop(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.tasks.track_future(self.guarded(name, work)));
    }

    /// The same, on a thread of its own: for a loop that keeps its thread for longer than others can wait.
    #[expect(clippy::disallowed_methods, reason = "this is the place the lint sends everybody to")]
    pub fn spawn_loop_apart(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let (work, runtime) = (self.guarded(name, work), tokio::runtime::Handle::current());
        let thread = tokio::task::spawn_blocking(move || runtime.block_on(work));
        tokio::spawn(self.tasks.track_future(async move {
            // Whatever it ended with, its guard has seen to it.
            let _ = thread.await;
        }));
    }

    fn guarded(
        &self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let shutdown = self.clone();
        let guard = LoopGuard { shutdown: shutdown.clone(), name };
        let work = async move {
            let _guard = guard;
            tokio::select! {
                () = work => {}
                () = shutdown.hard.cancelled() => {}
            }
        };
        work.instrument(tracing::info_span!("loop", name))
    }

    /// Runs something that may end whenever it likes, and is waited for at the end.
    #[expect(clippy::disallowed_methods, reason = "this is the place the lint sends everybody to")]
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let hard = self.hard.clone();
        let work = async move {
            tokio::select! {
                () = work => {}
                () = hard.cancelled() => {}
            }
        };
        tokio::spawn(self.tasks.track_future(work.in_current_span()));
    }

    /// Asks for the end at the first SIGINT or SIGTERM, and insists at the second.
    #[expect(clippy::disallowed_methods, reason = "not to be waited for: it waits for a second signal itself")]
    pub fn on_signals(&self) -> std::io::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = shutdown.soft.cancelled() => {}
            }
            shutdown.soft.cancel();
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = tokio::time::sleep(DRAIN_DEADLINE) => {}
            }
            shutdown.hard.cancel();
        });
        Ok(())
    }

    /// Asks for the end and waits for everything to return, `DRAIN_DEADLINE` at most. Answers whether no loop failed.
    pub async fn finish(&self) -> bool {
        self.soft.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN_DEADLINE, self.tasks.wait()).await.is_err() {
            tracing::warn!("shutdown deadline passed; ending what is left");
            self.hard.cancel();
            self.tasks.wait().await;
        }
        !self.has_failed()
    }

    /// A loop ended that should not have.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

struct LoopGuard {
    shutdown: Shutdown,
    name: &'static str,
}

impl Drop for LoopGuard {
    fn drop(&mut self) {
        if !self.shutdown.soft.is_cancelled() && !self.shutdown.hard.is_cancelled() {
            tracing::error!(name = self.name, "a loop ended that should not have; stopping the process");
            self.shutdown.failed.store(true, Ordering::Release);
            self.shutdown.soft.cancel();
        }
    }
}

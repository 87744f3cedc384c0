//! What tells, in production, that a daemon keeps its promise: what it owes is on its way, what it was given is looked after.
//!
//! ```text
//!   session, runners, checkpoints ── count in memory ──┐
//!   journal, supervisor, uploads, disk ── asked ───────┴─> Measured ──> runtime::metrics ──> GET /metrics
//! ```
//!
//! What to alert on:
//!
//! | alert | means |
//! |---|---|
//! | `makima_daemon_outbox_oldest_seconds > 60` while `makima_daemon_session_attached == 1` | the server does not answer what this daemon owes it: see the server's ledger |
//! | `makima_daemon_session_attached == 0` for 2 min | it cannot reach the server; agents go on, and results wait here |
//! | `rate(makima_daemon_attach_failures_total[5m])` rises | the same, while it tries; its log says why (a refused key needs a person) |
//! | `makima_daemon_accepting == 0` | the disk is nearly full; `makima worktree rm` makes room |
//! | `makima_daemon_journal_up == 0` | the journal cannot be read: no command is taken |
//! | `histogram_quantile(0.99, rate(makima_daemon_journal_commit_seconds_bucket[5m])) > 0.5` | the disk of the state directory is slow: commands are answered late, beyond 10 s not in time |
//! | `makima_daemon_upload_backlog_bytes` grows for 10 min | output and checkpoints are made faster than they get away |
//! | `makima_daemon_checkpoint_age_seconds` above three times the interval | an attempt's work is on this machine only |
//! | `rate(makima_daemon_worktree_failures_total[1h]) > 0` | something deletes or damages worktrees, or the disk is full |
//! | `makima_daemon_attempts{state="salvage"} > 0` | work that belongs to nobody waits for a person: `makima salvage list` |
//!
//! All names begin with `makima_daemon_`, because `makima up` shows the server's and the daemon's in one text. A counter
//! belongs to this process and starts at 0 with it; what is asked is asked when somebody looks, once a second at most.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, info::Info},
    registry::Registry,
};
use tokio::time::Instant;

use super::{Context, journal, runner::chain, supervisor};
use crate::{
    domain::{AttemptRef, Epoch, report::MessageOutcome},
    runtime::{
        clock,
        metrics::{Asked, Figures, Seconds, Source, Text, counter, counters, encode, gauge},
    },
};

/// What all names begin with.
const PREFIX: &str = "makima_daemon";

const MESSAGES: [&str; 4] = ["applied", "already_applied", "fenced", "invalid"];
/// States of attempts in the journal; shown also when there is none. What is over is not: it only waits to be forgotten.
const STATES: [&str; 6] = ["accepted", "running", "ending", "reported", "interrupted", "salvage"];
/// The journal's word for an attempt that the server needs nothing more of.
const OVER: &str = "over";

/// What a daemon counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    attached: Gauge,
    epoch: Gauge,
    sessions: Counter,
    attach_failures: Counter,
    messages: [Counter; MESSAGES.len()],
    commands_refused: Counter,
    sanity_warnings: Counter,
    worktree_failures: Counter,
    runners_broken: Counter,
    checkpoint_seconds: Seconds,
    checkpoint_bytes: Counter,
    checkpoint_failures: Counter,
    /// When the work of each running attempt was last safe: at its start, then at each checkpoint.
    safe: Mutex<HashMap<AttemptRef, Instant>>,
}

impl Metrics {
    /// Nothing has happened. The journal's own figures are shown with the rest.
    pub fn new(journal: &journal::Journal, name: &str) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let r = &mut registry;
        let labels = vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("name", name.to_owned())];
        r.register("build", "What runs here", Info::new(labels));
        let (sizes, seconds) = journal.commits();
        sizes.register(r, "journal_batch_size", "Changes that shared a commit of the journal");
        seconds.register(
            r,
            "journal_commit",
            "Time of a commit of the journal; worry above 0.5 s: commands are answered after it",
        );
        // A checkpoint of a small repository takes tens of milliseconds, one of a large one a minute.
        let checkpoint_seconds = Seconds::new(0.01, 2.0, 14);
        checkpoint_seconds.register(r, "checkpoint", "Time a checkpoint took to be made");
        Self {
            attached: gauge(
                r,
                "session_attached",
                "1 while a session with the server stands; worry when it is 0 for minutes",
            ),
            epoch: gauge(
                r,
                "session_epoch",
                "Number of the last session; worry when it rises by itself: sessions do not last",
            ),
            sessions: counter(r, "sessions", "Sessions opened, the first one and every reconnect"),
            attach_failures: counter(r, "attach_failures", "Attempts to attach that failed; worry while it rises"),
            messages: counters(
                r,
                "messages",
                "Messages by what the server did with them: `fenced` ones were about attempts that others have replaced, `invalid` ones \
                 are in the log",
                "outcome",
                MESSAGES,
            ),
            commands_refused: counter(
                r,
                "commands_refused",
                "Commands not taken; the log says why: a full disk, a missing profile or repository",
            ),
            sanity_warnings: counter(
                r,
                "sanity_warnings",
                "Things found odd about the order in which tasks are started; the tasks' warnings say what",
            ),
            worktree_failures: counter(
                r,
                "worktree_failures",
                "Attempts interrupted because their worktree was gone or damaged; worry when it rises",
            ),
            runners_broken: counter(
                r,
                "runners_broken",
                "Runners of attempts that broke and were started again: a bug, or a full disk",
            ),
            checkpoint_bytes: counter(r, "checkpoint_bytes", "Bytes of the checkpoints made"),
            checkpoint_failures: counter(
                r,
                "checkpoint_failures",
                "Checkpoints that could not be made; worry when it rises: work is on this machine only",
            ),
            safe: Mutex::default(),
            registry,
            checkpoint_seconds,
        }
    }

    /// A session stands.
    pub fn attached(&self, epoch: Epoch) {
        self.attached.set(1);
        self.epoch.set(epoch.0);
        self.sessions.inc();
    }

    /// A session has ended, or none came about.
    pub fn detached(&self) {
        if self.attached.set(0) == 0 {
            self.attach_failures.inc();
        }
    }

    /// The server has said what became of a message.
    pub fn message(&self, outcome: &MessageOutcome) {
        let index = match outcome {
            MessageOutcome::Applied => 0,
            MessageOutcome::AlreadyApplied => 1,
            MessageOutcome::Fenced => 2,
            MessageOutcome::Invalid { .. } => 3,
        };
        self.messages[index].inc();
    }

    /// A command was not taken.
    pub fn command_refused(&self) {
        self.commands_refused.inc();
    }

    /// The sanity check found so many things odd.
    pub fn sanity_warnings(&self, warnings: usize) {
        self.sanity_warnings.inc_by(warnings as u64);
    }

    /// An attempt was interrupted because of its worktree.
    pub fn worktree_failed(&self) {
        self.worktree_failures.inc();
    }

    /// A runner broke.
    pub fn runner_broke(&self) {
        self.runners_broken.inc();
    }

    /// An agent runs: from now on there is work that a checkpoint should keep.
    pub fn agent_runs(&self, attempt: AttemptRef) {
        self.safe().entry(attempt).or_insert_with(Instant::now);
    }

    /// A checkpoint of an attempt was made; it took so long and has so many bytes.
    pub fn checkpoint_taken(&self, attempt: AttemptRef, took: Duration, bytes: u64) {
        self.checkpoint_seconds.observe(took);
        self.checkpoint_bytes.inc_by(bytes);
        // Only of one that runs: the last checkpoint of an attempt comes when its agent has ended.
        if let Some(at) = self.safe().get_mut(&attempt) {
            *at = Instant::now();
        }
    }

    /// A checkpoint could not be made.
    pub fn checkpoint_failed(&self) {
        self.checkpoint_failures.inc();
    }

    /// An agent has ended.
    pub fn agent_ended(&self, attempt: AttemptRef) {
        self.safe().remove(&attempt);
    }

    /// How long ago the oldest last checkpoint of a running attempt was made, or its agent started.
    fn checkpoint_age(&self) -> Duration {
        self.safe().values().min().map_or(Duration::ZERO, Instant::elapsed)
    }

    fn safe(&self) -> MutexGuard<'_, HashMap<AttemptRef, Instant>> {
        self.safe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A whole daemon, as it is shown.
pub(super) struct Measured {
    context: Arc<Context>,
    supervisor: supervisor::Handle,
    asked: Asked<journal::Measured>,
}

impl Measured {
    pub(super) fn new(context: Arc<Context>, supervisor: supervisor::Handle) -> Self {
        Self { context, supervisor, asked: Asked::default() }
    }
}

impl Source for Measured {
    fn text(&self) -> Text<'_> {
        Box::pin(async {
            let context = &self.context;
            let ask = async { context.journal.measure().await.map_err(|error| chain(&error)) };
            let journal = self.asked.get(ask).await;
            let mut figures = Figures::new(PREFIX);
            let up = u64::from(journal.is_some());
            figures.number("journal_up", "1 if the journal can be read; worry when it is 0", up);
            if let Some(journal) = journal {
                show_journal(&journal, &mut figures);
            }
            self.show(context, &mut figures);
            encode(&context.metrics.registry) + &figures.text()
        })
    }
}

impl Measured {
    fn show(&self, context: &Context, figures: &mut Figures) {
        let live = self.supervisor.live();
        let vitals = context.health.vitals();
        let (uploads, backlog) = context.bulk.backlog();
        figures.number("slots", "Attempts at once", u64::from(context.config.slots));
        figures.number("slots_free", "Slots without an attempt", u64::from(live.free_slots));
        figures.number("attempts_live", "Attempts that are looked after", live.attempts.len() as u64);
        figures.bytes(
            "disk_free",
            "Free where worktrees are made; worry before it reaches the floor (2 GiB or 5 %), where no work is taken",
            vitals.disk_free_bytes,
        );
        let accepting = u64::from(vitals.not_accepting.is_empty());
        figures.number("accepting", "1 if new work is taken; worry when it is 0: the disk is nearly full", accepting);
        figures.number("uploads", "Uploads that are not over", uploads);
        figures.bytes("upload_backlog", "What the server does not have yet of them; worry when it only grows", backlog);
        figures.seconds(
            "checkpoint_age",
            "Time since the last checkpoint of the running attempt whose last one is oldest, 0 for none; worry above three intervals",
            context.metrics.checkpoint_age(),
        );
    }
}

fn show_journal(journal: &journal::Measured, figures: &mut Figures) {
    figures.number("outbox_messages", "Messages that the server has not answered", journal.outbox);
    figures.seconds(
        "outbox_oldest",
        "Age of the oldest of them, 0 for none; worry above 60 while attached",
        journal.oldest.map_or(Duration::ZERO, |oldest| clock::now().since(oldest)),
    );
    let mut states: BTreeMap<&str, u64> = STATES.iter().map(|state| (*state, 0)).collect();
    let known = journal.attempts.iter().filter(|(state, _)| state != OVER);
    states.extend(known.map(|(state, count)| (state.as_str(), *count)));
    figures.numbers(
        "attempts",
        "Attempts that are not over, by the journal's word for their state; worry when `salvage` is not 0",
        states.into_iter().map(|(state, count)| (vec![("state", state.to_owned())], count)),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        daemon::journal::{Journal, tests::attempt},
        domain::Timestamp,
    };

    fn metrics(dir: &tempfile::TempDir) -> Metrics {
        Metrics::new(&Journal::open(dir.path(), Timestamp(1)).unwrap().journal, "box \"1\"")
    }

    #[tokio::test]
    async fn a_session_that_ends_is_no_failure_to_attach() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = metrics(&dir);
        metrics.attached(Epoch(7));
        let text = encode(&metrics.registry);
        assert!(text.contains("\nmakima_daemon_session_attached 1\n"), "{text}");
        assert!(text.contains("\nmakima_daemon_session_epoch 7\n"), "{text}");
        assert!(text.contains("name=\"box \\\"1\\\"\""), "{text}");
        metrics.detached();
        metrics.detached();
        let text = encode(&metrics.registry);
        assert!(text.contains("\nmakima_daemon_session_attached 0\n"), "{text}");
        assert!(text.contains("\nmakima_daemon_sessions_total 1\n"), "{text}");
        assert!(text.contains("\nmakima_daemon_attach_failures_total 1\n"), "{text}");
    }

    /// The age is that of the running attempt that is worst off, from its start on; an attempt that has ended has none.
    #[tokio::test(start_paused = true)]
    async fn the_age_of_checkpoints_is_the_worst_of_those_that_run() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = metrics(&dir);
        assert_eq!(metrics.checkpoint_age(), Duration::ZERO);
        metrics.agent_runs(attempt(1));
        tokio::time::advance(Duration::from_secs(10)).await;
        metrics.agent_runs(attempt(2));
        metrics.agent_runs(attempt(1));
        assert_eq!(metrics.checkpoint_age(), Duration::from_secs(10));
        metrics.checkpoint_taken(attempt(1), Duration::from_secs(1), 100);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(metrics.checkpoint_age(), Duration::from_secs(5));
        metrics.agent_ended(attempt(1));
        metrics.agent_ended(attempt(2));
        metrics.checkpoint_taken(attempt(2), Duration::from_secs(1), 100);
        assert_eq!(metrics.checkpoint_age(), Duration::ZERO);
        let text = encode(&metrics.registry);
        assert!(text.contains("\nmakima_daemon_checkpoint_bytes_total 200\n"), "{text}");
        assert!(text.contains("\nmakima_daemon_checkpoint_seconds_count 2\n"), "{text}");
    }

    #[test]
    fn what_the_journal_owes_is_shown() {
        let measured = journal::Measured {
            outbox: 3,
            oldest: Some(clock::now().before(Duration::from_secs(90))),
            attempts: vec![("running".to_owned(), 2), (OVER.to_owned(), 9)],
        };
        let mut figures = Figures::new(PREFIX);
        show_journal(&measured, &mut figures);
        let text = figures.text();
        assert!(text.contains("\nmakima_daemon_outbox_messages 3\n"), "{text}");
        assert!(text.contains("\nmakima_daemon_attempts{state=\"running\"} 2\n"), "{text}");
        assert!(text.contains("\nmakima_daemon_attempts{state=\"salvage\"} 0\n"), "{text}");
        assert!(!text.contains("over\"}"), "{text}");
        let age = text.lines().find_map(|line| line.strip_prefix("makima_daemon_outbox_oldest_seconds ")).unwrap();
        assert!((90.0..100.0).contains(&age.parse::<f64>().unwrap()), "{age}");
    }
}

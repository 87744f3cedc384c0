//! What tells, in production, that the server keeps its promise: nothing is lost, and nothing is silently stuck.
//!
//! ```text
//!   ledger, sessions, uploads ── count in memory ──┐
//!   database, fleet ── asked when somebody looks ──┴─> Measured ──> runtime::metrics ──> GET /metrics
//! ```
//!
//! What to alert on, first what must never be, then what needs a person, then what tells why:
//!
//! | alert | means |
//! |---|---|
//! | `makima_slots_taken != on(owner,daemon) makima_attempts_live` for 2 min | a slot leaks: what the dispatcher believes of a daemon is not what the database says |
//! | `makima_database_up == 0` for 1 min | the database does not answer: nothing can be decided, agents go on |
//! | `makima_commands_unanswered_oldest_seconds > 60` and `makima_daemons{status="attached"} > 0` | a daemon does not take what it is told (one that is away takes it when it comes back) |
//! | `makima_tasks_ready > 0 and sum(makima_slots_free) > 0` for 5 min | work and room do not meet: labels, profiles or repositories are missing; `makima task explain` says which |
//! | `makima_checkpoint_age_seconds > 900` (three intervals) | the work of some running attempt is on its machine only: checkpoints fail or do not get away |
//! | `rate(makima_messages_total{outcome="invalid"}[5m]) > 0` | a daemon says what cannot be stored; its log says what |
//! | `rate(makima_messages_total{outcome="fenced"}[5m])` rises | daemons come back late: their attempts were given to others. No harm, but work done twice |
//! | `rate(makima_retries_total[15m])` by class | what attempts die of: `daemon_lost` machines, `usage_limit` accounts, `setup_failed` repositories |
//! | `makima_daemons{status="lost"}` rises, `makima_attempts{state="disconnected"} > 0` | machines are away; their tasks are tried elsewhere after `rerun_after` |
//! | `makima_daemons{status="refusing"} > 0` | a disk is nearly full; `makima daemon list` says which |
//! | `histogram_quantile(0.99, rate(makima_dispatch_latency_seconds_bucket[5m]))` high while slots are free | the ledger is slow: see the next two |
//! | `histogram_quantile(0.99, rate(makima_ledger_commit_seconds_bucket[5m])) > 0.5` | the database's disk is slow |
//! | `makima_ledger_queue_depth > 1000` for 1 min | more is asked than is committed; batches of 256 that take long say why |
//! | `rate(makima_ledger_batches_total{outcome=~"refused\|unavailable\|unknown"}[5m]) > 0` | the database refuses, or goes away |
//!
//! A counter belongs to this process and starts at 0 with it. What is asked comes from one short read transaction, is kept for
//! a second, and longer where asking took long ([`Asked`]); when the database cannot be asked it is absent, never stale.
//! Series by daemon stop at [`MAX_DAEMONS`]; `makima_daemons_unlisted` says how many are not shown.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use prometheus_client::{metrics::counter::Counter, metrics::info::Info, registry::Registry};

use super::ledger::Ledger;
use crate::{
    domain::{
        DaemonId, OwnerId, Timestamp,
        attempt::{Failure, FailureClass, TaskResult},
        order::Answer,
        report::MessageOutcome,
        task::TaskStatus,
    },
    runtime::{
        clock,
        metrics::{Asked, Figures, Labels, Seconds, Sizes, Source, Text, counter, counters, encode},
    },
    store::{self, Busy, Store, Unanswered},
};

/// What all names begin with.
const PREFIX: &str = "makima";
/// Daemons that have series of their own. Each has four; a Prometheus server takes many times that.
pub const MAX_DAEMONS: usize = 1_000;

/// What can become of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchOutcome {
    /// It is durable.
    Committed,
    /// There was nothing to write.
    Empty,
    /// The database refused it; it went one by one.
    Refused,
    /// The database could not be reached; nothing was done.
    Unavailable,
    /// The database went away at the COMMIT.
    Unknown,
}

const BATCHES: [&str; 5] = ["committed", "empty", "refused", "unavailable", "unknown"];
const MESSAGES: [&str; 4] = ["applied", "already_applied", "fenced", "invalid"];
const ANSWERS: [&str; 3] = ["persisted", "rejected", "rejected_for_good"];
/// How attempts end: well, or by class, in the order of [`FailureClass::ALL`], or for nobody.
const ENDS: [&str; FailureClass::ALL.len() + 2] = [
    "success",
    "daemon_lost",
    "worktree_lost",
    "recovered",
    "refused",
    "agent_crashed",
    "verify_failed",
    "setup_failed",
    "authentication",
    "usage_limit",
    "agent_error",
    "timeout",
    "repository",
    "cancelled",
    "fenced",
];
/// Words of the event log that are counted; others count as the last.
const EVENTS: [&str; 18] = [
    "task.created",
    "task.assigned",
    "task.started",
    "task.asks_input",
    "task.checkpointed",
    "task.finalizing",
    "task.done",
    "task.merged",
    "task.failed",
    "task.cancelled",
    "task.retrying",
    "task.retried",
    "task.revived",
    "task.disconnected",
    "task.held",
    "task.orphan_kept",
    "task.warning",
    "other",
];
/// States in which an attempt holds a slot; shown also when there is none.
const LIVE: [&str; 6] = ["assigned", "accepted", "running", "ending", "finalizing", "disconnected"];

/// What the server counts. Everything here is an atomic or a lock held for a few additions.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    messages: [Counter; MESSAGES.len()],
    answers: [Counter; ANSWERS.len()],
    answer_seconds: Seconds,
    dispatch_seconds: Seconds,
    batch_size: Sizes,
    batch_seconds: Seconds,
    commit_seconds: Seconds,
    batches: [Counter; BATCHES.len()],
    attempts_ended: [Counter; ENDS.len()],
    retries: [Counter; ENDS.len()],
    events: [Counter; EVENTS.len()],
    daemons_lost: Counter,
    sessions: Counter,
    upload_bytes: Counter,
    uploads_refused: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let r = &mut registry;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        r.register("build", "What runs here", Info::new(version));
        let dispatch_seconds = Seconds::new(0.001, 4.0, 12);
        let (answer_seconds, batch_seconds, commit_seconds) =
            (Seconds::of_work(), Seconds::of_work(), Seconds::of_work());
        let batch_size = Sizes::new(9);
        dispatch_seconds.register(
            r,
            "dispatch_latency",
            "From when a task could start to when its order was committed, the wait for a free slot included; worry when it grows \
             while slots are free",
        );
        answer_seconds.register(
            r,
            "command_answer",
            "From when a command was sent to the daemon's answer; worry above 5 s: at 10 s the attempt is fenced and given away again",
        );
        batch_size.register(r, "ledger_batch_size", "Operations of a batch; worry when most are at 256, its limit");
        batch_seconds.register(
            r,
            "ledger_batch",
            "Time of a ledger transaction from its begin to its end, with all reads and writes",
        );
        commit_seconds.register(
            r,
            "ledger_commit",
            "Time of the COMMIT alone, which is the database's disk; worry above 0.5 s",
        );
        Self {
            messages: counters(
                r,
                "messages",
                "Messages of daemons by what became of them: `fenced` ones came from attempts that others have replaced and changed \
                 nothing, `invalid` ones need a look at the daemon's log",
                "outcome",
                MESSAGES,
            ),
            answers: counters(
                r,
                "command_answers",
                "Answers of daemons to commands; worry when `rejected` rises: a full disk, a missing profile or repository",
                "answer",
                ANSWERS,
            ),
            batches: counters(
                r,
                "ledger_batches",
                "Ledger transactions by how they ended; worry when any but `committed` and `empty` rises",
                "outcome",
                BATCHES,
            ),
            attempts_ended: counters(
                r,
                "attempts_ended",
                "Attempts that have ended, by how; worry about a class that rises against `success`",
                "outcome",
                ENDS,
            ),
            retries: counters(
                r,
                "retries",
                "Tasks that will be tried again, by what their attempt died of",
                "class",
                ENDS,
            ),
            events: counters(r, "task_events", "What happened to tasks, by the word of the event log", "event", EVENTS),
            daemons_lost: counter(
                r,
                "daemons_lost",
                "Times a daemon was quiet for lost-after; worry when it rises for long",
            ),
            sessions: counter(
                r,
                "sessions",
                "Sessions opened; worry when it rises though no daemon is started: they do not last",
            ),
            upload_bytes: counter(r, "upload_bytes", "Bytes that daemons have uploaded"),
            uploads_refused: counter(
                r,
                "uploads_refused",
                "Chunks not taken: of attempts not known here, or of more than is kept",
            ),
            registry,
            answer_seconds,
            dispatch_seconds,
            batch_size,
            batch_seconds,
            commit_seconds,
        }
    }
}

impl Metrics {
    /// A daemon was told what became of its message.
    pub fn message(&self, outcome: &MessageOutcome) {
        let index = match outcome {
            MessageOutcome::Applied => 0,
            MessageOutcome::AlreadyApplied => 1,
            MessageOutcome::Fenced => 2,
            MessageOutcome::Invalid { .. } => 3,
        };
        self.messages[index].inc();
    }

    /// A daemon has answered a command that was sent so long ago.
    pub fn command_answered(&self, answer: &Answer, took: Duration) {
        let index = match answer {
            Answer::Persisted => 0,
            Answer::Rejected { retryable: true, .. } => 1,
            Answer::Rejected { retryable: false, .. } => 2,
        };
        self.answers[index].inc();
        self.answer_seconds.observe(took);
    }

    /// An attempt's order is durable, so long after its task could start.
    pub fn dispatched(&self, waited: Duration) {
        self.dispatch_seconds.observe(waited);
    }

    /// An attempt has ended. However a fenced one ended, it changed nothing.
    pub fn attempt_ended(&self, outcome: &Result<TaskResult, Failure>, fenced: bool) {
        let class = outcome.as_ref().err().map(|failure| failure.class);
        let index = if fenced { ENDS.len() - 1 } else { end(class) };
        if let Some(counter) = self.attempts_ended.get(index) {
            counter.inc();
        }
    }

    /// A task will be tried again after this.
    pub fn retried(&self, class: FailureClass) {
        if let Some(counter) = self.retries.get(end(Some(class))) {
            counter.inc();
        }
    }

    /// The event log says this of a task.
    pub fn event(&self, word: &str) {
        let index = EVENTS.iter().position(|known| *known == word).unwrap_or(EVENTS.len() - 1);
        self.events[index].inc();
    }

    /// A ledger transaction has ended.
    pub fn batch(&self, outcome: BatchOutcome, took: Duration) {
        self.batches[outcome as usize].inc();
        self.batch_seconds.observe(took);
    }

    /// So many operations came together.
    pub fn batch_size(&self, operations: usize) {
        self.batch_size.observe(operations);
    }

    /// A COMMIT took so long.
    pub fn committed(&self, took: Duration) {
        self.commit_seconds.observe(took);
    }

    /// A daemon was declared lost.
    pub fn daemon_lost(&self) {
        self.daemons_lost.inc();
    }

    /// A daemon has attached.
    pub fn session(&self) {
        self.sessions.inc();
    }

    /// A chunk of an upload was taken, or not.
    pub fn chunk(&self, bytes: usize, refused: bool) {
        if refused {
            self.uploads_refused.inc();
        } else {
            self.upload_bytes.inc_by(bytes as u64);
        }
    }
}

/// Where an end is in [`ENDS`].
fn end(class: Option<FailureClass>) -> usize {
    class.map_or(0, |class| class as usize + 1)
}

/// A whole server, as it is shown.
#[derive(Debug)]
pub struct Measured {
    store: Store,
    ledger: Ledger,
    asked: Asked<Standing>,
}

/// What the database says, and what the dispatcher believes at the same time.
#[derive(Debug)]
struct Standing {
    unanswered: Unanswered,
    attempts: Vec<(String, u64)>,
    unsafe_since: Option<Timestamp>,
    tasks: Vec<(TaskStatus, u64)>,
    ready: u64,
    daemons: Vec<Line>,
    away: u64,
    now: Timestamp,
}

/// A daemon that is attached, or has attempts that have not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Line {
    owner: String,
    name: String,
    attached: bool,
    draining: bool,
    refusing: bool,
    slots: u64,
    /// Its attempts, by the database.
    live: u64,
    /// Its attempts, by the dispatcher; `None` while it is not attached.
    taken: Option<u64>,
}

impl Line {
    fn free(&self) -> u64 {
        if self.attached && !self.draining && !self.refusing { self.slots.saturating_sub(self.live) } else { 0 }
    }

    fn labels(&self) -> Labels {
        vec![("owner", self.owner.clone()), ("daemon", self.name.clone())]
    }
}

impl Measured {
    /// What is to be asked for.
    pub fn new(store: Store, ledger: Ledger) -> Self {
        Self { store, ledger, asked: Asked::default() }
    }

    async fn ask(&self) -> Result<Standing, store::Error> {
        let mut tx = self.store.read().await?;
        let unanswered = tx.commands_unanswered().await?;
        let attempts = tx.attempts_live_states().await?;
        let unsafe_since = tx.attempts_unsafe_since().await?;
        let (tasks, ready) = tx.tasks_unfinished_counts().await?;
        let owners = tx.owners_list().await?;
        let attached = tx.daemons_attached().await?;
        let busy = tx.daemons_busy().await?;
        let away = tx.daemons_away().await?;
        tx.rollback().await?;
        let mut lines: BTreeMap<DaemonId, (OwnerId, Line)> = BTreeMap::new();
        for daemon in attached {
            let line = Line {
                name: daemon.card.name,
                attached: true,
                draining: daemon.draining,
                refusing: !daemon.card.not_accepting.is_empty(),
                slots: u64::from(daemon.card.slots),
                ..Line::default()
            };
            lines.insert(daemon.id, (daemon.owner, line));
        }
        for Busy { daemon, owner, name, live } in busy {
            lines.entry(daemon).or_insert_with(|| (owner, Line { name, ..Line::default() })).1.live = live;
        }
        {
            let fleet = self.ledger.fleet();
            for (daemon, (_, line)) in &mut lines {
                line.taken = fleet.get(*daemon).map(|member| member.live.len() as u64);
            }
        }
        let names: HashMap<OwnerId, String> = owners.into_iter().collect();
        let named = |(owner, line): (OwnerId, Line)| Line {
            owner: names.get(&owner).cloned().unwrap_or_else(|| owner.to_string()),
            ..line
        };
        let daemons = lines.into_values().map(named).collect();
        Ok(Standing { unanswered, attempts, unsafe_since, tasks, ready, daemons, away, now: clock::now() })
    }

    /// What can be said without the database, and what it has said.
    fn figures(&self, standing: Option<&Standing>) -> String {
        let mut figures = Figures::new(PREFIX);
        figures.number(
            "database_up",
            "1 if the database could be asked for what is shown here; worry when it is 0",
            u64::from(standing.is_some()),
        );
        figures.number(
            "ledger_queue_depth",
            "Operations that wait for the next batch; worry when it stays above 1000",
            self.ledger.queued() as u64,
        );
        figures.number(
            "event_log_last_sequence",
            "The last sequence of the event log; worry when it stands still while tasks run",
            u64::try_from(*self.ledger.last().borrow()).unwrap_or_default(),
        );
        if let Some(standing) = standing {
            standing.show(&mut figures);
        }
        figures.text()
    }
}

impl Source for Measured {
    fn text(&self) -> Text<'_> {
        Box::pin(async {
            let ask = async { self.ask().await.map_err(|error| super::ledger::chain(&error)) };
            let standing = self.asked.get(ask).await;
            let mut text = encode(&self.ledger.metrics().registry);
            text.push_str(&self.figures(standing.as_deref()));
            text
        })
    }
}

impl Standing {
    fn show(&self, figures: &mut Figures) {
        let oldest = self.unanswered.oldest.map_or(Duration::ZERO, |oldest| self.now.since(oldest));
        figures.number(
            "commands_unanswered",
            "Commands that no daemon has answered, those of daemons that are away included",
            self.unanswered.count,
        );
        figures.seconds(
            "commands_unanswered_oldest",
            "Age of the oldest of them, 0 for none; worry above 60 while its daemon is attached",
            oldest,
        );
        let mut states: BTreeMap<&str, u64> = LIVE.iter().map(|state| (*state, 0)).collect();
        states.extend(self.attempts.iter().map(|(state, count)| (state.as_str(), *count)));
        figures.numbers(
            "attempts",
            "Attempts that hold a slot, by state; worry when `assigned` or `ending` stay, or `disconnected` are many, or `finalizing` ones wait long for their results to arrive",
            states.into_iter().map(|(state, count)| (vec![("state", state.to_owned())], count)),
        );
        figures.seconds(
            "checkpoint_age",
            "Time since the last checkpoint of the running attempt whose last one is oldest, or since its start, 0 for none; worry above \
             three intervals (15 min): that work is on one machine only",
            self.unsafe_since.map_or(Duration::ZERO, |since| self.now.since(since)),
        );
        let unfinished = TaskStatus::ALL.into_iter().filter(|status| !status.is_final());
        let mut tasks: BTreeMap<String, u64> = unfinished.map(|status| (word(status), 0)).collect();
        tasks.extend(self.tasks.iter().map(|(status, count)| (word(*status), *count)));
        figures.numbers(
            "tasks",
            "Tasks that are not final, by status",
            tasks.into_iter().map(|(status, count)| (vec![("status", status)], count)),
        );
        figures.number(
            "tasks_ready",
            "Tasks that wait for nothing but a daemon with room; worry when they stay while slots are free",
            self.ready,
        );
        self.show_daemons(figures);
    }

    fn show_daemons(&self, figures: &mut Figures) {
        let attached = || self.daemons.iter().filter(|line| line.attached);
        let working = attached().filter(|line| !line.draining && !line.refusing).count() as u64;
        let draining = attached().filter(|line| line.draining).count() as u64;
        let refusing = attached().filter(|line| !line.draining && line.refusing).count() as u64;
        let by_status = [("attached", working), ("draining", draining), ("refusing", refusing), ("lost", self.away)];
        figures.numbers(
            "daemons",
            "Daemons by status; worry when `lost` rises, or any are `refusing`: their disks are nearly full",
            by_status.map(|(status, count)| (vec![("status", status.to_owned())], count)),
        );
        let mut shown: Vec<&Line> = self.daemons.iter().collect();
        shown.sort_by(|a, b| (&a.owner, &a.name).cmp(&(&b.owner, &b.name)));
        let unlisted = shown.len().saturating_sub(MAX_DAEMONS) as u64;
        shown.truncate(MAX_DAEMONS);
        figures.number(
            "daemons_unlisted",
            "Daemons that have no series of their own, for there are too many",
            unlisted,
        );
        let each = |value: fn(&Line) -> Option<u64>| {
            shown.iter().filter_map(move |line| Some((line.labels(), value(line)?))).collect::<Vec<_>>()
        };
        figures.numbers(
            "slots",
            "Attempts that an attached daemon runs at once",
            each(|line| line.attached.then_some(line.slots)),
        );
        figures.numbers(
            "slots_free",
            "Slots that may be given work now: not those of daemons that drain or refuse",
            each(|line| line.attached.then(|| line.free())),
        );
        figures.numbers(
            "slots_taken",
            "Slots that the dispatcher takes for taken; worry when it is not makima_attempts_live for two minutes: a slot leaks",
            each(|line| line.taken),
        );
        figures.numbers(
            "attempts_live",
            "Attempts of a daemon that have not ended, by the database",
            each(|line| Some(line.live)),
        );
    }
}

fn word(status: TaskStatus) -> String {
    status.word().to_lowercase()
}

/// Shared by everybody who counts.
pub type Shared = Arc<Metrics>;

#[cfg(test)]
mod tests {
    use super::*;

    /// Each class is counted under its own name.
    #[test]
    fn ends_have_the_names_of_their_classes() {
        assert_eq!(ENDS[end(None)], "success");
        for class in FailureClass::ALL {
            assert_eq!(serde_json::to_value(class).unwrap(), ENDS[end(Some(class))]);
        }
        let metrics = Metrics::default();
        metrics.attempt_ended(&Err(Failure::new(FailureClass::Timeout, "late")), false);
        metrics.attempt_ended(&Err(Failure::new(FailureClass::Cancelled, "ended as asked")), true);
        metrics.retried(FailureClass::DaemonLost);
        let text = encode(&metrics.registry);
        assert!(text.contains("makima_attempts_ended_total{outcome=\"timeout\"} 1\n"), "{text}");
        assert!(text.contains("makima_retries_total{class=\"daemon_lost\"} 1\n"), "{text}");
        assert!(text.contains("makima_attempts_ended_total{outcome=\"success\"} 0\n"), "{text}");
        assert!(text.contains("makima_attempts_ended_total{outcome=\"fenced\"} 1\n"), "{text}");
        assert!(text.contains("makima_attempts_ended_total{outcome=\"cancelled\"} 0\n"), "{text}");
    }

    #[test]
    fn what_is_counted_is_shown_by_its_outcome() {
        let metrics = Metrics::default();
        metrics.message(&MessageOutcome::Fenced);
        metrics.message(&MessageOutcome::Invalid { detail: String::new() });
        metrics.batch(BatchOutcome::Unknown, Duration::from_millis(3));
        metrics.event("task.done");
        metrics.event("task.anything");
        let rejected = Answer::Rejected { reason: String::new(), retryable: true, counts: false };
        metrics.command_answered(&rejected, Duration::from_secs(3));
        let text = encode(&metrics.registry);
        for line in [
            "makima_messages_total{outcome=\"fenced\"} 1",
            "makima_messages_total{outcome=\"invalid\"} 1",
            "makima_messages_total{outcome=\"applied\"} 0",
            "makima_ledger_batches_total{outcome=\"unknown\"} 1",
            "makima_task_events_total{event=\"task.done\"} 1",
            "makima_task_events_total{event=\"other\"} 1",
            "makima_command_answers_total{answer=\"rejected\"} 1",
            "makima_command_answer_seconds_bucket{le=\"2.048\"} 0",
            "makima_command_answer_seconds_bucket{le=\"4.096\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    fn shown(standing: &Standing) -> String {
        let mut figures = Figures::new(PREFIX);
        standing.show(&mut figures);
        figures.text()
    }

    fn standing(daemons: Vec<Line>) -> Standing {
        Standing {
            unanswered: Unanswered { count: 2, oldest: Some(Timestamp(1_000_000)) },
            attempts: vec![("running".to_owned(), 3)],
            unsafe_since: Some(Timestamp(500_000)),
            tasks: vec![(TaskStatus::AwaitingInput, 4)],
            ready: 5,
            daemons,
            away: 6,
            now: Timestamp(3_500_000),
        }
    }

    /// A state without attempts is 0, a daemon that is away has no slots, and a name cannot break out of its quotes.
    #[test]
    fn what_is_asked_is_shown() {
        let box_1 = Line {
            owner: "acme".to_owned(),
            name: "box \"1\"\n".to_owned(),
            attached: true,
            slots: 4,
            live: 3,
            taken: Some(2),
            ..Line::default()
        };
        let full = Line { name: "full".to_owned(), refusing: true, ..box_1.clone() };
        let away = Line { name: "away".to_owned(), attached: false, taken: None, live: 1, ..box_1.clone() };
        let text = shown(&standing(vec![box_1, full, away]));
        for line in [
            "makima_commands_unanswered 2",
            "makima_commands_unanswered_oldest_seconds 2.5",
            "makima_attempts{state=\"running\"} 3",
            "makima_checkpoint_age_seconds 3.0",
            "makima_attempts{state=\"disconnected\"} 0",
            "makima_tasks{status=\"awaiting_input\"} 4",
            "makima_tasks{status=\"pending\"} 0",
            "makima_tasks_ready 5",
            "makima_daemons{status=\"attached\"} 1",
            "makima_daemons{status=\"refusing\"} 1",
            "makima_daemons{status=\"lost\"} 6",
            "makima_slots{owner=\"acme\",daemon=\"box \\\"1\\\"\\n\"} 4",
            "makima_slots_free{owner=\"acme\",daemon=\"box \\\"1\\\"\\n\"} 1",
            "makima_slots_taken{owner=\"acme\",daemon=\"box \\\"1\\\"\\n\"} 2",
            "makima_slots_free{owner=\"acme\",daemon=\"full\"} 0",
            "makima_attempts_live{owner=\"acme\",daemon=\"away\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("makima_slots{owner=\"acme\",daemon=\"away\"}"), "{text}");
        assert!(!text.contains("makima_slots_taken{owner=\"acme\",daemon=\"away\"}"), "{text}");
    }

    #[test]
    fn series_by_daemon_are_bounded() {
        let line = |n: usize| Line { name: format!("d{n:05}"), attached: true, slots: 1, ..Line::default() };
        let text = shown(&standing((0..MAX_DAEMONS + 7).map(line).collect()));
        assert_eq!(text.lines().filter(|line| line.starts_with("makima_slots{")).count(), MAX_DAEMONS);
        assert!(text.contains("\nmakima_daemons_unlisted 7\n"));
        assert!(text.contains(&format!("\nmakima_daemons{{status=\"attached\"}} {}\n", MAX_DAEMONS + 7)));
    }
}

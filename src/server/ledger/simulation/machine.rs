//! A machine as it is without its daemon: a disk with a journal and the attempts' directories, and the agents that live under
//! their shims whether the daemon does or not. What the daemon's `journal`, `attempt_dir` and `shim` promise, without files.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::daemon::Process;
use crate::domain::{
    AttemptRef, CommandId, DaemonId, JournalId,
    attempt::{Failure, Pack, TaskResult, Usage},
    order::{Command, Order},
    report::{Complete, InventoryState, Progress, Report},
};

/// One machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) id: DaemonId,
    pub(super) name: String,
    pub(super) slots: u32,
    /// It has power, and is awake.
    pub(super) is_up: bool,
    /// It never comes back.
    pub(super) is_gone: bool,
    /// Its network works.
    pub(super) is_reachable: bool,
    /// It has room on its disk.
    pub(super) accepts: bool,
    pub(super) disk: Disk,
    /// The daemon, if it runs.
    pub(super) process: Option<Process>,
    /// Processes it has had: what was meant for an earlier one is nothing to the next.
    pub(super) lives: u64,
    /// Processes of attempts that are alive.
    pub(super) agents: BTreeMap<AttemptRef, Agent>,
}

/// A living agent, with its shim.
#[derive(Debug)]
pub(super) struct Agent {
    /// How it will end by itself.
    pub(super) fate: Result<(), Failure>,
}

/// What a machine keeps.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) journal: Journal,
    /// The journal as it was when it was last synced, if something unsynced has followed.
    pub(super) synced: Option<Journal>,
    pub(super) dirs: BTreeMap<AttemptRef, Dir>,
}

/// An attempt's directory and worktree.
#[derive(Clone, Debug, Default)]
pub(super) struct Dir {
    /// A shim was started.
    pub(super) started: bool,
    /// The exit record.
    pub(super) exit: Option<Result<(), Failure>>,
    /// The worktree is there and healthy.
    pub(super) intact: bool,
}

/// How far a daemon is with an attempt, by its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Accepted,
    Running,
    Ending,
    Reported,
    Interrupted,
    Over,
    Salvage,
}

impl State {
    /// As the server sees it; nothing for what no longer concerns it.
    pub(super) fn inventory(self) -> Option<InventoryState> {
        match self {
            Self::Accepted => Some(InventoryState::Accepted),
            Self::Running => Some(InventoryState::Running),
            Self::Ending => Some(InventoryState::Ending),
            Self::Reported => Some(InventoryState::Reported),
            Self::Interrupted => Some(InventoryState::Interrupted),
            Self::Over | Self::Salvage => None,
        }
    }

    pub(super) fn is_live(self) -> bool {
        matches!(self, Self::Accepted | Self::Running | Self::Ending)
    }
}

/// Why an attempt is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Cancelled,
    Fenced,
    Salvage,
    Forgotten,
}

/// An attempt in the journal.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) attempt: AttemptRef,
    pub(super) state: State,
    /// It has an order; otherwise it was only ever cancelled here.
    pub(super) spawn: bool,
    /// The directory in which it goes on, if that of an earlier attempt.
    pub(super) here: Option<AttemptRef>,
    /// The server has the pack of its result, or there is none.
    pub(super) uploaded: bool,
    pub(super) stop: Option<Why>,
    pub(super) complete: Option<Complete>,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    New,
    Known,
    Conflict,
}

/// The journal.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    pub(super) id: JournalId,
    pub(super) last_command: i64,
    attaches: i64,
    pub(super) attempts: BTreeMap<AttemptRef, Row>,
    /// Reports that wait for an answer.
    pub(super) outbox: BTreeMap<i64, (AttemptRef, Report)>,
    commands: BTreeMap<CommandId, Command>,
    last_message: i64,
}

impl Journal {
    pub(super) fn new(id: Uuid) -> Self {
        Self {
            id: JournalId(id),
            last_command: 0,
            attaches: 0,
            attempts: BTreeMap::new(),
            outbox: BTreeMap::new(),
            commands: BTreeMap::new(),
            last_message: 0,
        }
    }

    fn accept(&mut self, command: &Command) -> Taken {
        if let Some(known) = self.commands.get(&command.id) {
            let known = Command { epoch: command.epoch, ..known.clone() };
            return if known == *command { Taken::Known } else { Taken::Conflict };
        }
        self.commands.insert(command.id, command.clone());
        self.last_command = self.last_command.max(command.sequence);
        let attempt = command.attempt;
        match (&command.order, self.attempts.get_mut(&attempt)) {
            (Order::Spawn(_), Some(_)) => Taken::Known,
            (Order::Spawn(spawn), None) => {
                let here = spawn.resume.as_ref().and_then(|resume| Some(resume.here.as_ref()?.attempt));
                self.attempts.insert(attempt, Row { here, ..Row::new(attempt, true, None) });
                Taken::New
            }
            (_, Some(row)) => {
                row.stop = Some(Why::Cancelled);
                Taken::New
            }
            (_, None) => {
                self.attempts.insert(attempt, Row::new(attempt, false, Some(Why::Cancelled)));
                Taken::New
            }
        }
    }

    fn say(&mut self, attempt: AttemptRef, report: Report) {
        if let (Report::Complete(complete), Some(row)) = (&report, self.attempts.get_mut(&attempt)) {
            if row.complete.is_none() {
                row.uploaded = !complete.outcome.as_ref().is_ok_and(TaskResult::is_awaited);
            }
            row.complete = Some(complete.clone());
        }
        self.last_message += 1;
        self.outbox.insert(self.last_message, (attempt, report));
    }

    fn owes_end(&self, attempt: AttemptRef) -> bool {
        let is_end = |report: &Report| matches!(report, Report::Complete(_) | Report::RecoveryDetected { .. });
        self.outbox.values().any(|(of, report)| *of == attempt && is_end(report))
    }

    pub(super) fn owes_progress(&self, attempt: AttemptRef) -> bool {
        self.outbox.values().any(|(of, report)| *of == attempt && matches!(report, Report::Progress(_)))
    }

    /// The newest message.
    pub(super) fn newest(&self) -> i64 {
        self.last_message
    }
}

impl Row {
    /// As the server is told: what waits for its pack to arrive is listed until it has.
    pub(super) fn inventory(&self) -> Option<InventoryState> {
        match self.state {
            State::Over if !self.uploaded => Some(InventoryState::Reported),
            state => state.inventory(),
        }
    }

    pub(super) fn new(attempt: AttemptRef, spawn: bool, stop: Option<Why>) -> Self {
        Self { attempt, state: State::Accepted, spawn, here: None, uploaded: true, stop, complete: None }
    }
}

impl Disk {
    pub(super) fn new(journal: Uuid) -> Self {
        Self { journal: Journal::new(journal), synced: None, dirs: BTreeMap::new() }
    }

    /// Commits durably: with it, everything before.
    fn durably(&mut self) -> &mut Journal {
        self.synced = None;
        &mut self.journal
    }

    /// Commits what may be forgotten when the power goes.
    fn lazily(&mut self) -> &mut Journal {
        if self.synced.is_none() {
            self.synced = Some(self.journal.clone());
        }
        &mut self.journal
    }

    pub(super) fn accept(&mut self, command: &Command) -> Taken {
        self.durably().accept(command)
    }

    /// The number of the hello that is about to be said.
    pub(super) fn attach(&mut self) -> i64 {
        let journal = self.durably();
        journal.attaches += 1;
        journal.attaches
    }

    pub(super) fn adopt(&mut self, row: Row) {
        self.durably().attempts.entry(row.attempt).or_insert(row);
    }

    /// Changes an attempt and says something about it, in one commit.
    pub(super) fn record(&mut self, attempt: AttemptRef, state: Option<State>, reports: Vec<Report>) {
        let journal = self.durably();
        if let (Some(state), Some(row)) = (state, journal.attempts.get_mut(&attempt)) {
            row.state = state;
        }
        for report in reports {
            journal.say(attempt, report);
        }
    }

    pub(super) fn wish(&mut self, attempt: AttemptRef, why: Why) {
        if let Some(row) = self.durably().attempts.get_mut(&attempt) {
            row.stop = Some(why);
        }
    }

    pub(super) fn report_again(&mut self, attempt: AttemptRef) -> bool {
        let journal = self.durably();
        let Some(row) = journal.attempts.get_mut(&attempt) else { return false };
        let Some(complete) = row.complete.clone() else { return journal.owes_end(attempt) };
        if !journal.owes_end(attempt) {
            if let Some(row) = journal.attempts.get_mut(&attempt) {
                row.state = State::Reported;
            }
            journal.say(attempt, Report::Complete(complete));
        }
        true
    }

    pub(super) fn uploaded(&mut self, attempt: AttemptRef) {
        if let Some(row) = self.lazily().attempts.get_mut(&attempt) {
            row.uploaded = true;
        }
    }

    pub(super) fn answered(&mut self, sequence: i64) {
        let journal = self.lazily();
        let Some((attempt, report)) = journal.outbox.remove(&sequence) else { return };
        if matches!(report, Report::Complete(_) | Report::RecoveryDetected { .. })
            && let Some(row) = journal.attempts.get_mut(&attempt)
            && matches!(row.state, State::Reported | State::Interrupted)
        {
            row.state = State::Over;
        }
    }
}

impl Machine {
    /// Ends what lives of an attempt, as an exit by the given fate. Answers whether something lived.
    pub(super) fn agent_exits(&mut self, attempt: AttemptRef) -> bool {
        let Some(agent) = self.agents.remove(&attempt) else { return false };
        if let Some(dir) = self.disk.dirs.get_mut(&attempt) {
            dir.exit = Some(agent.fate);
        }
        true
    }
}

/// Attempts of a task whose tokens are told apart.
pub(super) const TOLD_APART: u32 = 15;

/// Tokens of an attempt, so that a sum shows which attempt was counted how often: a hexadecimal digit for each number, so
/// that what was counted twice does not look like another attempt's.
pub(super) fn usage(attempt: AttemptRef, parts: i64) -> Usage {
    let told = (1..=TOLD_APART).contains(&attempt.number);
    Usage { input_tokens: if told { parts << (4 * (attempt.number - 1)) } else { 0 }, ..Usage::default() }
}

/// The result of an attempt: its commit names it. Some are in a repository that all can reach, the others travel.
pub(super) fn result(attempt: AttemptRef) -> TaskResult {
    let travels = !attempt.id.0.as_u128().is_multiple_of(4);
    let sha256 = attempt.id.0.simple().to_string();
    let pack = travels.then_some(Pack { bytes: 1, sha256 });
    TaskResult { commit: attempt.id.0.simple().to_string(), published: !travels, pack, ..TaskResult::default() }
}

/// The terminal report of an attempt.
pub(super) fn complete(attempt: AttemptRef, outcome: Result<TaskResult, Failure>) -> Complete {
    let progress = Progress { usage: usage(attempt, 2), ..Progress::default() };
    Complete { outcome, progress, output_bytes: 0, exit_code: None, signal: 0 }
}

//! A daemon's process, by the rules of `daemon::session`, `intake`, `supervisor`, `runner` and `recovery`: journal before
//! acting, journal before reporting, adopt what lives, say what has gone. Each event is one commit of the journal and what may
//! follow it at once, so killing the process between two events is killing it between two commits.

use std::collections::{BTreeMap, VecDeque};

use super::{
    machine::{Agent, Dir, Row, State, Why, complete, result, usage},
    network::LinkId,
    planted::Planted,
    world::{Event, MINUTE, SECOND, World},
};
use crate::domain::{
    AttemptRef,
    attempt::{Failure, FailureClass, TaskResult},
    reconcile::Verdict,
    report::{InventoryState, Progress, Report},
};

/// A daemon's process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) session: Session,
    pub(super) live: BTreeMap<AttemptRef, Runner>,
    /// Found by their directories only.
    pub(super) found: BTreeMap<AttemptRef, Row>,
    free: u32,
    waiting: VecDeque<AttemptRef>,
    pub(super) failures: u32,
}

/// Its stream.
#[derive(Debug)]
pub(super) enum Session {
    Away,
    Opening { link: LinkId, owed: i64 },
    Attached(Attached),
}

/// A stream that stands.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) link: LinkId,
    pub(super) cursor: i64,
    pub(super) owed: i64,
    pub(super) in_flight: BTreeMap<i64, (AttemptRef, bool)>,
    pub(super) ready: bool,
    pub(super) heard: i64,
}

impl Session {
    pub(super) fn link(&self) -> Option<LinkId> {
        match self {
            Self::Away => None,
            Self::Opening { link, .. } => Some(*link),
            Self::Attached(attached) => Some(attached.link),
        }
    }
}

/// Who looks after an attempt.
#[derive(Debug)]
pub(super) struct Runner {
    stage: Stage,
    stop: Option<Why>,
    slot: bool,
    /// Only the newest appointment counts.
    turn: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Look,
    Wait,
    Prepare,
    Start,
    Watch,
    End,
    Finish,
}

impl World {
    pub(super) fn process(&mut self, m: usize) -> Option<&mut Process> {
        self.machines[m].process.as_mut()
    }

    // === starting ===

    /// The daemon's process starts, and looks at what it finds.
    pub(super) fn daemon_starts(&mut self, m: usize) {
        let machine = &mut self.machines[m];
        if machine.process.is_some() || !machine.is_up || machine.is_gone {
            return;
        }
        machine.lives += 1;
        let journal = &machine.disk.journal;
        let rows: Vec<Row> = journal.attempts.values().filter(|row| row.state.is_live()).cloned().collect();
        let unknown = machine.disk.dirs.iter().filter(|(attempt, _)| !journal.attempts.contains_key(attempt));
        let found =
            unknown.map(|(attempt, dir)| (*attempt, Row { state: state_of(dir), ..Row::new(*attempt, true, None) }));
        let found: BTreeMap<_, _> = found.collect();
        let free = machine.slots;
        machine.process = Some(Process {
            session: Session::Away,
            live: BTreeMap::new(),
            found,
            free,
            waiting: VecDeque::new(),
            failures: 0,
        });
        self.note(|| format!("daemon {m} starts, {} attempts in its journal", rows.len()));
        let (running, waiting): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.state != State::Accepted);
        for row in running {
            self.runner_starts(m, &row, true);
        }
        for row in waiting {
            self.runner_starts(m, &row, false);
        }
        self.uploads_results(m);
        let life = self.machines[m].lives;
        let delay = self.between(1_000, 300_000);
        self.at(delay, Event::Attach(m, life));
    }

    pub(super) fn runner_starts(&mut self, m: usize, row: &Row, with_slot: bool) {
        let Some(process) = self.process(m) else { return };
        if process.live.contains_key(&row.attempt) {
            return;
        }
        let slot = with_slot && process.free > 0;
        process.free -= u32::from(slot);
        process.live.insert(row.attempt, Runner { stage: Stage::Look, stop: row.stop, slot, turn: 0 });
        let delay = self.between(100, 50_000);
        self.appoint(m, row.attempt, Stage::Look, delay);
    }

    /// The runner goes on with `stage` after a while.
    fn appoint(&mut self, m: usize, attempt: AttemptRef, stage: Stage, delay: i64) {
        let life = self.machines[m].lives;
        let Some(runner) = self.process(m).and_then(|process| process.live.get_mut(&attempt)) else { return };
        runner.stage = stage;
        runner.turn += 1;
        let turn = runner.turn;
        self.at(delay, Event::Run(m, life, attempt, turn));
    }

    // === one attempt ===

    /// The next step of an attempt.
    pub(super) fn runs(&mut self, m: usize, attempt: AttemptRef, turn: u32) {
        let Some(runner) = self.process(m).and_then(|process| process.live.get(&attempt)) else { return };
        if runner.turn != turn {
            return;
        }
        let (stage, stop) = (runner.stage, runner.stop);
        match stage {
            Stage::Look => self.looks(m, attempt, stop),
            Stage::Wait | Stage::Watch => {}
            Stage::Prepare => self.prepared(m, attempt),
            Stage::Start => {
                self.said_started(m, attempt);
                self.watches(m, attempt);
            }
            Stage::End => {
                self.machines[m].agent_exits(attempt);
                self.reports(m, attempt, Err(Failure::new(FailureClass::Cancelled, "cancelled")));
            }
            Stage::Finish => {
                let dir = self.machines[m].disk.dirs.get(&attempt).cloned().unwrap_or_default();
                let outcome = match (stop, dir.exit) {
                    (Some(_), _) => Err(Failure::new(FailureClass::Cancelled, "cancelled")),
                    (None, Some(Err(failure))) => Err(failure),
                    (None, Some(Ok(()))) if dir.intact => Ok(result(attempt)),
                    (None, Some(Ok(()))) => {
                        Err(Failure::new(FailureClass::WorktreeLost, format!("{attempt} has no worktree")))
                    }
                    (None, None) => Err(Failure::new(FailureClass::AgentCrashed, format!("{attempt} lost its shim"))),
                };
                self.reports(m, attempt, outcome);
            }
        }
    }

    fn looks(&mut self, m: usize, attempt: AttemptRef, stop: Option<Why>) {
        let machine = &self.machines[m];
        let row = machine.disk.journal.attempts.get(&attempt);
        let Some((state, spawn)) = row.map(|row| (row.state, row.spawn)) else { return };
        let dir = machine.disk.dirs.get(&attempt).cloned();
        let alive = machine.agents.contains_key(&attempt);
        let cancelled = || Err(Failure::new(FailureClass::Cancelled, "cancelled"));
        let started = dir.as_ref().is_some_and(|dir| dir.started);
        if !spawn {
            self.reports(m, attempt, cancelled());
        } else if alive {
            self.covered("adopted a living agent");
            if state == State::Accepted {
                self.said_started(m, attempt);
            }
            self.watches(m, attempt);
        } else if dir.as_ref().is_some_and(|dir| dir.exit.is_some()) {
            self.covered("found an exit record");
            if state == State::Accepted {
                self.said_started(m, attempt);
            }
            self.watches(m, attempt);
        } else if !started && state == State::Accepted {
            if stop.is_some() {
                return self.reports(m, attempt, cancelled());
            }
            self.wants_slot(m, attempt);
        } else if stop.is_some() {
            self.reports(m, attempt, cancelled());
        } else {
            self.covered("found an agent gone");
            let intact = dir.is_some_and(|dir| dir.intact);
            let detected = Report::RecoveryDetected {
                previous: state.inventory().unwrap_or(InventoryState::Running),
                worktree_intact: intact,
                worktree: "w".to_owned(),
                needs_patch: !intact,
            };
            self.records(m, attempt, Some(State::Interrupted), vec![detected]);
            self.runner_ends(m, attempt);
        }
    }

    fn wants_slot(&mut self, m: usize, attempt: AttemptRef) {
        let Some(process) = self.process(m) else { return };
        let Some(runner) = process.live.get_mut(&attempt) else { return };
        if !runner.slot {
            if process.free == 0 {
                runner.stage = Stage::Wait;
                process.waiting.push_back(attempt);
                return;
            }
            process.free -= 1;
            runner.slot = true;
        }
        let here = self.machines[m].disk.journal.attempts.get(&attempt).and_then(|row| row.here);
        if let Some(here) = here {
            self.covered("went on in an earlier worktree");
            if !self.machines[m].disk.dirs.get(&here).is_some_and(|dir| dir.intact) {
                let failure = Failure::new(FailureClass::WorktreeLost, format!("{attempt} finds no worktree"));
                return self.reports(m, attempt, Err(failure));
            }
        }
        self.machines[m].disk.dirs.entry(attempt).or_insert(Dir { intact: true, ..Dir::default() });
        let delay = if self.one_in(8) { self.between(SECOND, 20 * SECOND) } else { self.between(50_000, SECOND) };
        self.appoint(m, attempt, Stage::Prepare, delay);
    }

    /// The worktree is there: the agent starts, or does not.
    fn prepared(&mut self, m: usize, attempt: AttemptRef) {
        let broken = !self.is_healed && self.one_in(25);
        if broken {
            let classes = [FailureClass::Refused, FailureClass::SetupFailed, FailureClass::Repository];
            let class = classes[self.below(3)];
            return self.reports(m, attempt, Err(Failure::new(class, format!("{attempt} cannot begin"))));
        }
        let fate = self.fate(attempt);
        let most = if self.one_in(6) { 20 * MINUTE } else { 2 * MINUTE };
        let runs = if self.is_healed { self.between(SECOND, 20 * SECOND) } else { self.between(100_000, most) };
        if let Some(dir) = self.machines[m].disk.dirs.get_mut(&attempt) {
            dir.started = true;
        }
        self.machines[m].agents.insert(attempt, Agent { fate });
        self.note(|| format!("daemon {m}: the agent of {attempt} starts"));
        self.at(runs, Event::Exit(m, attempt));
        let delay = self.between(500, 30_000);
        self.appoint(m, attempt, Stage::Start, delay);
    }

    fn fate(&mut self, attempt: AttemptRef) -> Result<(), Failure> {
        if self.is_healed {
            return Ok(());
        }
        let class = match self.below(24) {
            0 | 1 => FailureClass::AgentCrashed,
            2 => FailureClass::UsageLimit,
            3 => FailureClass::AgentError,
            _ => return Ok(()),
        };
        Err(Failure::new(class, format!("{attempt} failed")))
    }

    fn said_started(&mut self, m: usize, attempt: AttemptRef) {
        let started = Report::Started {
            worktree: "w".to_owned(),
            branch: "b".to_owned(),
            base_commit: String::new(),
            agent_version: String::new(),
            restored: None,
        };
        self.records(m, attempt, Some(State::Running), vec![started]);
    }

    /// Follows the agent; whatever has happened meanwhile happens now.
    fn watches(&mut self, m: usize, attempt: AttemptRef) {
        let alive = self.machines[m].agents.contains_key(&attempt);
        if alive && self.one_in(2) && !self.machines[m].disk.journal.owes_progress(attempt) {
            let progress = Progress { usage: usage(attempt, 1), ..Progress::default() };
            self.records(m, attempt, None, vec![Report::Progress(progress)]);
        }
        if alive && self.one_in(2) {
            self.checkpoints(m, attempt);
        }
        let Some(runner) = self.process(m).and_then(|process| process.live.get_mut(&attempt)) else { return };
        runner.stage = Stage::Watch;
        let stop = runner.stop.is_some();
        if !alive {
            let delay = self.between(10_000, 2 * SECOND);
            self.appoint(m, attempt, Stage::Finish, delay);
        } else if stop {
            self.ends_agent(m, attempt);
        }
    }

    fn ends_agent(&mut self, m: usize, attempt: AttemptRef) {
        if self.planted == Some(Planted::EndSaidBeforeDeath) {
            return self.reports(m, attempt, Err(Failure::new(FailureClass::Cancelled, "cancelled")));
        }
        let grace = if self.one_in(3) { self.between(SECOND, 10 * SECOND) } else { self.between(1_000, 500_000) };
        self.appoint(m, attempt, Stage::End, grace);
    }

    /// An agent ends by itself, whether or not a daemon is there to see it.
    pub(super) fn agent_exits(&mut self, m: usize, attempt: AttemptRef) {
        if !self.machines[m].agent_exits(attempt) {
            return;
        }
        self.note(|| format!("machine {m}: the agent of {attempt} has ended"));
        self.agent_gone(m, attempt);
    }

    /// The daemon, if it watches, sees that an agent is there no more.
    pub(super) fn agent_gone(&mut self, m: usize, attempt: AttemptRef) {
        let stage = self.process(m).and_then(|process| process.live.get(&attempt)).map(|runner| runner.stage);
        if stage == Some(Stage::Watch) {
            let delay = self.between(10_000, 2 * SECOND);
            self.appoint(m, attempt, Stage::Finish, delay);
        }
    }

    fn reports(&mut self, m: usize, attempt: AttemptRef, outcome: Result<TaskResult, Failure>) {
        let Some(runner) = self.process(m).and_then(|process| process.live.get(&attempt)) else { return };
        let (state, reports) = match runner.stop {
            None | Some(Why::Cancelled | Why::Fenced) => {
                let complete = complete(attempt, outcome);
                let daemon = self.machines[m].id;
                self.truth.reported(daemon, attempt, &complete.outcome);
                (State::Reported, vec![Report::Complete(complete)])
            }
            Some(Why::Salvage) => (State::Salvage, Vec::new()),
            Some(Why::Forgotten) => (State::Over, Vec::new()),
        };
        self.records(m, attempt, Some(state), reports);
        if self.machines[m].disk.journal.attempts.get(&attempt).is_some_and(|row| !row.uploaded) {
            let life = self.machines[m].lives;
            let delay = self.between(1_000, 3 * SECOND);
            self.at(delay, Event::Upload(m, life, attempt, None));
        }
        self.runner_ends(m, attempt);
    }

    fn runner_ends(&mut self, m: usize, attempt: AttemptRef) {
        let Some(process) = self.process(m) else { return };
        process.waiting.retain(|waiting| *waiting != attempt);
        if process.live.remove(&attempt).is_some_and(|runner| runner.slot) {
            process.free += 1;
            if let Some(next) = process.waiting.pop_front() {
                self.wants_slot(m, next);
            }
        }
    }

    /// Writes to the journal, and sends what may be sent.
    pub(super) fn records(&mut self, m: usize, attempt: AttemptRef, state: Option<State>, reports: Vec<Report>) {
        self.note(|| format!("daemon {m} writes of {attempt}: {state:?} {reports:?}"));
        self.machines[m].disk.record(attempt, state, reports);
        self.sends_owed(m);
    }

    // === ending ===

    pub(super) fn verdict(&mut self, m: usize, attempt: AttemptRef, verdict: Verdict) {
        let why = match verdict {
            Verdict::Keep | Verdict::ReportAgain => None,
            Verdict::Cancel => Some(Why::Cancelled),
            Verdict::Fenced => Some(Why::Fenced),
            Verdict::Salvage => Some(Why::Salvage),
            Verdict::Forget | Verdict::ResumeHere | Verdict::Restore => Some(Why::Forgotten),
        };
        if let Some(row) = self.process(m).and_then(|process| process.found.remove(&attempt)) {
            self.covered("took in an attempt found on the disk only");
            let row = Row { stop: why, ..row };
            self.machines[m].disk.adopt(row.clone());
            return self.runner_starts(m, &row, true);
        }
        match (why, verdict) {
            (Some(why), _) => self.stops(m, attempt, why),
            (None, Verdict::ReportAgain) => self.reports_again(m, attempt),
            (None, _) => {}
        }
    }

    pub(super) fn stops(&mut self, m: usize, attempt: AttemptRef, why: Why) {
        let Some(process) = self.process(m) else { return };
        if let Some(runner) = process.live.get_mut(&attempt) {
            if runner.stop.is_some() {
                return;
            }
            runner.stop = Some(why);
            let stage = runner.stage;
            self.machines[m].disk.wish(attempt, why);
            match stage {
                Stage::Look | Stage::Start | Stage::End | Stage::Finish => {}
                Stage::Wait | Stage::Prepare => {
                    let delay = self.between(1_000, SECOND);
                    self.appoint(m, attempt, Stage::End, delay);
                }
                Stage::Watch => self.ends_agent(m, attempt),
            }
            return;
        }
        if process.found.contains_key(&attempt) {
            return self.verdict(m, attempt, Verdict::Cancel);
        }
        let Some(row) = self.machines[m].disk.journal.attempts.get(&attempt).cloned() else { return };
        match (why, row.state) {
            (_, State::Accepted | State::Running | State::Ending) => {
                self.runner_starts(m, &Row { stop: Some(why), ..row }, false);
            }
            (Why::Salvage, _) => self.records(m, attempt, Some(State::Salvage), Vec::new()),
            (Why::Forgotten, _) => self.records(m, attempt, Some(State::Over), Vec::new()),
            (Why::Cancelled, State::Over | State::Salvage) => self.reports_again(m, attempt),
            (Why::Cancelled | Why::Fenced, _) => {}
        }
    }

    pub(super) fn reports_again(&mut self, m: usize, attempt: AttemptRef) {
        if !self.machines[m].disk.report_again(attempt)
            && self.process(m).is_some_and(|p| !p.live.contains_key(&attempt))
        {
            let complete =
                complete(attempt, Err(Failure::new(FailureClass::Cancelled, "it ended here without a report")));
            self.records(m, attempt, Some(State::Reported), vec![Report::Complete(complete)]);
        }
        self.sends_owed(m);
    }
}

fn state_of(dir: &Dir) -> State {
    match (&dir.exit, dir.started) {
        (Some(_), _) => State::Ending,
        (None, true) => State::Running,
        (None, false) => State::Accepted,
    }
}

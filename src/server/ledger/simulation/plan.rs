//! What people wish and what fails in a history, drawn before it begins.

use std::time::Duration;

use super::{
    super::{Error, Op, Reply, op::Repeat},
    machine::Disk,
    server::Mishap,
    world::{Event, MINUTE, SECOND, World},
};
use crate::domain::{
    DaemonId,
    contract::ContractLimits,
    draft::{ContractUpdate, NewContract, NewTask},
    task::TaskSpec,
    transition::RetryFrom,
};

/// What somebody asks for. Numbers choose among what there is by then.
#[derive(Clone, Debug)]
pub(super) enum Wish {
    Contract(Box<NewContract>),
    Cancel { task: usize, cascade: bool },
    CancelContract(usize),
    Retry(usize),
    Reassign(usize),
    Hold(usize),
    Release(usize),
    Concurrency(usize, u32),
    Drain(usize, bool),
    AddEdge(usize, usize),
    RemoveEdge(usize, usize),
}

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    ServerDies,
    Commit(Mishap),
    ServerFreezes,
    ClockSteps,
    StreamBreaks(usize),
    Unreachable(usize),
    DaemonDies(usize),
    Sleep(usize),
    PowerGoes(usize),
    DiskLost(usize),
    GoneForEver(usize),
    JournalLost(usize),
    AgentKilled(usize),
    ShimKilled(usize),
    WorktreeDeleted(usize),
    DiskFull(usize),
}

impl Fault {
    /// Its name, for the count.
    fn word(self) -> &'static str {
        match self {
            Self::ServerDies => "fault: server killed",
            Self::Commit(_) => "fault: mishap at a commit",
            Self::ServerFreezes => "fault: server frozen",
            Self::ClockSteps => "fault: clock stepped",
            Self::StreamBreaks(_) => "fault: stream broken",
            Self::Unreachable(_) => "fault: machine unreachable",
            Self::DaemonDies(_) => "fault: daemon killed",
            Self::Sleep(_) => "fault: machine asleep",
            Self::PowerGoes(_) => "fault: power lost",
            Self::DiskLost(_) => "fault: disk lost",
            Self::GoneForEver(_) => "fault: machine gone for ever",
            Self::JournalLost(_) => "fault: journal lost",
            Self::AgentKilled(_) => "fault: agent killed",
            Self::ShimKilled(_) => "fault: shim killed",
            Self::WorktreeDeleted(_) => "fault: worktree deleted",
            Self::DiskFull(_) => "fault: disk full",
        }
    }
}

/// Names of all faults, and of what must have happened over a run beside them; one that never does is a false green.
pub(super) const MUST_OCCUR: [&str; 38] = [
    "fault: server killed",
    "fault: mishap at a commit",
    "fault: server frozen",
    "fault: clock stepped",
    "fault: stream broken",
    "fault: machine unreachable",
    "fault: daemon killed",
    "fault: machine asleep",
    "fault: power lost",
    "fault: disk lost",
    "fault: machine gone for ever",
    "fault: journal lost",
    "fault: agent killed",
    "fault: shim killed",
    "fault: worktree deleted",
    "fault: disk full",
    "the database was away",
    "the server died before a commit",
    "the server died between a commit and its word",
    "a daemon was declared lost",
    "a daemon could not attach",
    "a daemon gave a silent server up",
    "a session ended for silence",
    "a stream was half open",
    "words of an old stream came late",
    "unsynced deletions came back",
    "a command was sent again",
    "a message was fenced",
    "adopted a living agent",
    "found an exit record",
    "found an agent gone",
    "took in an attempt found on the disk only",
    "went on in an earlier worktree",
    "verdict KEEP",
    "verdict REPORT_AGAIN",
    "verdict FENCED",
    "verdict FORGET",
    "verdict RESUME_HERE",
];

impl World {
    /// Draws a history, and lets it begin.
    pub(super) fn plans(&mut self) {
        self.at(0, Event::ServerStart);
        for m in 0..self.machines.len() {
            let delay = self.between(0, 5 * SECOND);
            self.at(delay, Event::Start(m));
        }
        let span = [MINUTE, 5 * MINUTE, 20 * MINUTE, 90 * MINUTE][self.below(4)];
        for _ in 0..=self.below(2) {
            let contract = self.contract();
            let delay = self.between(0, 20 * SECOND);
            self.wish(delay, Wish::Contract(Box::new(contract)));
        }
        for _ in 0..self.below(6) {
            let (a, b) = (self.below(8), self.below(8));
            let delay = self.between(SECOND, span);
            let wish = match self.below(9) {
                0 => Wish::Cancel { task: a, cascade: self.one_in(2) },
                1 => Wish::CancelContract(a),
                2 => Wish::Retry(a),
                3 => Wish::Reassign(a),
                4 => {
                    let until = delay + self.between(SECOND, 5 * MINUTE);
                    self.wish(until, Wish::Release(a));
                    Wish::Hold(a)
                }
                5 => Wish::Concurrency(a, 1 + u32::try_from(b).unwrap_or(0) % 4),
                6 => {
                    let until = delay + self.between(SECOND, 5 * MINUTE);
                    self.wish(until, Wish::Drain(a, false));
                    Wish::Drain(a, true)
                }
                7 => Wish::AddEdge(a, b),
                _ => Wish::RemoveEdge(a, b),
            };
            self.wish(delay, wish);
        }
        for _ in 0..self.below(9) {
            let delay = self.between(SECOND / 2, span);
            let fault = self.fault();
            self.faults.push(fault);
            self.at(delay, Event::Fault(self.faults.len() - 1));
        }
        self.at(span + SECOND, Event::Heal);
    }

    fn contract(&mut self) -> NewContract {
        let count = 1 + self.below(6);
        let tasks = (0..count).map(|task| {
            let depends_on = (0..task).filter(|_| self.one_in(3)).map(|earlier| format!("task-{earlier}")).collect();
            let spec = TaskSpec {
                name: format!("task-{task}"),
                agent: "shell".to_owned(),
                priority: i32::try_from(self.below(3)).unwrap_or(0),
                ..TaskSpec::default()
            };
            NewTask::new(spec, depends_on)
        });
        let tasks = tasks.collect();
        let limits = ContractLimits {
            concurrency: [1, 2, 10][self.below(3)],
            max_retries: [0, 1, 3][self.below(3)],
            rerun_after: Duration::from_secs([0, 30, 120][self.below(3)]),
            ..ContractLimits::default()
        };
        NewContract {
            owner: self.owner,
            name: "contract".to_owned(),
            description: String::new(),
            repository: ["https://example.org/r.git", "/r"][self.below(2)].to_owned(),
            base_branch: String::new(),
            limits,
            hold: false,
            tasks,
        }
    }

    fn fault(&mut self) -> Fault {
        let m = self.below(self.machines.len());
        match self.below(20) {
            0 => Fault::ServerDies,
            1 => Fault::Commit(Mishap::DiesBefore),
            2 => Fault::Commit(Mishap::DiesAfter),
            3 => Fault::Commit(Mishap::Unavailable),
            4 => Fault::ServerFreezes,
            5 => Fault::ClockSteps,
            6 | 7 => Fault::StreamBreaks(m),
            8 => Fault::Unreachable(m),
            9 | 10 => Fault::DaemonDies(m),
            11 => Fault::Sleep(m),
            12 => Fault::PowerGoes(m),
            13 => Fault::DiskLost(m),
            14 => Fault::GoneForEver(m),
            15 => Fault::JournalLost(m),
            16 => Fault::AgentKilled(m),
            17 => Fault::ShimKilled(m),
            18 => Fault::WorktreeDeleted(m),
            _ => Fault::DiskFull(m),
        }
    }

    // === wishes ===

    fn wish(&mut self, delay: i64, wish: Wish) {
        self.wishes.push(wish);
        self.at(delay, Event::Wish(self.wishes.len() - 1));
    }

    /// Somebody asks for something, the same again until there is an answer.
    pub(super) fn wishes(&mut self, at: usize) {
        let owner = self.owner;
        let pick = |of: &[crate::domain::TaskId], n: usize| of.get(n % of.len().max(1)).copied();
        let contract = |world: &Self, n: usize| world.contracts.get(n % world.contracts.len().max(1)).copied();
        let reason = String::new();
        let op = match self.wishes[at].clone() {
            Wish::Contract(new) => Some(Op::CreateContract(*new)),
            Wish::Cancel { task, cascade } => {
                pick(&self.tasks, task).map(|task| Op::CancelTask { owner, task, reason, cascade })
            }
            Wish::CancelContract(n) => contract(self, n).map(|contract| Op::CancelContract { owner, contract, reason }),
            Wish::Retry(task) => {
                pick(&self.tasks, task).map(|task| Op::RetryTask { owner, task, from: RetryFrom::Work })
            }
            Wish::Reassign(task) => pick(&self.tasks, task).map(|task| Op::ReassignTask { owner, task, to: None }),
            Wish::Hold(n) => contract(self, n).map(|contract| Op::HoldContract { owner, contract, reason }),
            Wish::Release(n) => contract(self, n).map(|contract| Op::ReleaseContract { owner, contract }),
            Wish::Concurrency(n, concurrency) => contract(self, n).map(|contract| {
                Op::UpdateContract(ContractUpdate {
                    owner,
                    contract,
                    etag: None,
                    name: None,
                    description: None,
                    concurrency: Some(concurrency),
                    max_retries: None,
                    wall_time: None,
                    rerun_after: None,
                    checkpoint_every: None,
                    final_checkpoint: None,
                })
            }),
            Wish::Drain(n, draining) => {
                let daemon = self.machines[n % self.machines.len()].id;
                Some(Op::Drain { owner, daemon, draining })
            }
            Wish::AddEdge(task, on) | Wish::RemoveEdge(task, on) => {
                let adds = matches!(self.wishes[at], Wish::AddEdge(..));
                let word = pick(&self.tasks, on).map(|id| id.to_string());
                pick(&self.tasks, task).map(|task| {
                    let words: Vec<String> = word.into_iter().collect();
                    let (add, remove) = if adds { (words, Vec::new()) } else { (Vec::new(), words) };
                    Op::ChangeDependencies { owner, task, add, remove }
                })
            }
        };
        let Some(op) = op else { return };
        self.note(|| format!("somebody asks: {op:?}"));
        let hash = [u8::try_from(at % 256).unwrap_or(0); 32];
        let repeat = Some(Repeat { owner, id: at.to_string(), hash });
        self.submit("key:person".to_owned(), repeat, op, super::server::To::Person(at));
    }

    /// The answer to a wish.
    pub(super) fn wish_answered(&mut self, at: usize, reply: Result<Reply, Error>) {
        match reply {
            Ok(Reply::Created { contract, tasks, .. }) => {
                if !self.contracts.contains(&contract.id) {
                    self.contracts.push(contract.id);
                    self.tasks.extend(tasks.iter().map(|task| task.id));
                }
            }
            Ok(_) => self.covered("a wish was granted"),
            Err(Error::Unavailable(_) | Error::Stopping) => self.at(5 * SECOND, Event::Wish(at)),
            Err(_) => self.covered("a wish was refused"),
        }
    }

    // === faults ===

    /// Something fails.
    pub(super) fn fails(&mut self, at: usize) {
        let fault = self.faults[at];
        if self.is_healed || !self.befalls(fault) {
            return;
        }
        self.covered(fault.word());
        self.note(|| format!("fault: {fault:?}"));
    }

    /// Answers whether there was something to fail.
    fn befalls(&mut self, fault: Fault) -> bool {
        match fault {
            Fault::ServerDies => {
                if !self.server.is_up() {
                    return false;
                }
                self.server_dies();
                let span =
                    if self.one_in(3) { self.between(MINUTE, 30 * MINUTE) } else { self.between(SECOND, 40 * SECOND) };
                self.at(span, Event::ServerStart);
            }
            Fault::Commit(mishap) => self.server.mishap = Some(mishap),
            Fault::ServerFreezes => {
                let span = self.between(SECOND, 3 * MINUTE);
                self.frozen_until = self.now + span;
            }
            Fault::ClockSteps => {
                let span = self.between(SECOND, 60 * MINUTE);
                self.step += if self.one_in(2) { span } else { -span };
            }
            Fault::StreamBreaks(m) => {
                let Some(link) = self.machines[m].process.as_ref().and_then(|p| p.session.link()) else { return false };
                self.link_breaks(link);
            }
            Fault::Unreachable(m) => {
                if let Some(link) = self.machines[m].process.as_ref().and_then(|p| p.session.link()) {
                    self.link_breaks(link);
                }
                self.machines[m].is_reachable = false;
                let span =
                    if self.one_in(2) { self.between(SECOND, MINUTE) } else { self.between(MINUTE, 30 * MINUTE) };
                self.at(span, Event::Reach(m));
            }
            Fault::DaemonDies(m) => {
                if self.machines[m].process.is_none() {
                    return false;
                }
                self.process_dies(m);
                let span =
                    if self.one_in(3) { self.between(MINUTE, 10 * MINUTE) } else { self.between(100_000, 10 * SECOND) };
                self.at(span, Event::Start(m));
            }
            Fault::Sleep(m) => {
                let span = if self.one_in(2) { 60 * MINUTE } else { self.between(10 * SECOND, 5 * MINUTE) };
                self.sleeps(m, span);
            }
            Fault::PowerGoes(m) => {
                self.power_goes(m);
                let span = self.between(10 * SECOND, 15 * MINUTE);
                self.at(span, Event::Power(m));
            }
            Fault::DiskLost(m) => {
                self.power_goes(m);
                let (id, journal) = (DaemonId(self.uuid()), self.uuid());
                self.truth.disk_lost(self.machines[m].id);
                self.machines[m].id = id;
                self.machines[m].disk = Disk::new(journal);
                let span = self.between(10 * SECOND, 5 * MINUTE);
                self.at(span, Event::Power(m));
            }
            Fault::GoneForEver(m) => {
                // Somebody must be left to do the work.
                if self.machines.iter().filter(|machine| !machine.is_gone).count() < 2 {
                    return false;
                }
                self.power_goes(m);
                self.truth.disk_lost(self.machines[m].id);
                self.machines[m].is_gone = true;
            }
            Fault::JournalLost(m) => {
                self.process_dies(m);
                let journal = self.uuid();
                let machine = &mut self.machines[m];
                let dirs = std::mem::take(&mut machine.disk.dirs);
                machine.disk = Disk { dirs, ..Disk::new(journal) };
                self.truth.journal_lost(self.machines[m].id);
                self.at(5 * SECOND, Event::Start(m));
            }
            Fault::AgentKilled(m) | Fault::ShimKilled(m) => {
                let Some(attempt) = self.machines[m].agents.keys().next().copied() else { return false };
                if matches!(fault, Fault::AgentKilled(_)) {
                    let failure = crate::domain::attempt::FailureClass::AgentCrashed;
                    if let Some(agent) = self.machines[m].agents.get_mut(&attempt) {
                        agent.fate =
                            Err(crate::domain::attempt::Failure::new(failure, format!("{attempt} was killed")));
                    }
                    self.agent_exits(m, attempt);
                } else {
                    // The daemon sees it and ends what the shim has left; without a daemon it dies with its shim.
                    self.machines[m].agents.remove(&attempt);
                    self.agent_gone(m, attempt);
                }
            }
            Fault::WorktreeDeleted(m) => {
                let dirs = self.machines[m].disk.dirs.values_mut().filter(|dir| dir.started && dir.intact);
                let Some(dir) = dirs.last() else { return false };
                dir.intact = false;
            }
            Fault::DiskFull(m) => {
                self.machines[m].accepts = false;
                let span = self.between(10 * SECOND, 10 * MINUTE);
                self.at(span, Event::Room(m));
            }
        }
        true
    }
}

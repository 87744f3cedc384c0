//! Time, chance, and what happens in which order: everything that is to happen is an event with its time; events of one time
//! come in a random order. The seed decides all of it.

use std::collections::BTreeMap;

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use uuid::Uuid;

use super::{
    super::dice::Dice,
    check::Truth,
    daemon::Process,
    machine::{Disk, Machine},
    network::{Answered, Down, Link, LinkId, Pipe, Up},
    plan::{Fault, Wish},
    planted::Planted,
    server::Server,
};
use crate::domain::{
    AttemptRef, CheckpointId, ContractId, DaemonId, KeyId, OwnerId, TaskId, Timestamp, order::Command,
};

/// A second, in the microseconds that all times are in.
pub(super) const SECOND: i64 = 1_000_000;
/// A minute.
pub(super) const MINUTE: i64 = 60 * SECOND;
/// The silence after which a daemon is lost.
pub(super) const LOST_AFTER: i64 = 45 * SECOND;
/// When histories begin, by the wall clock.
const EPOCH: i64 = 1_700_000_000 * SECOND;
/// Lines of a trace that are kept: the end is what matters.
const TRACE: usize = 100_000;

/// Something that will happen. Numbers are machines; a life is one process of a machine or of the server.
#[derive(Debug)]
pub(super) enum Event {
    Up(LinkId),
    Down(LinkId),
    ServerSees(LinkId),
    DaemonSees(LinkId),
    ServerStart,
    Batch(u64),
    Tick(u64),
    Sweep(u64),
    Silence(LinkId),
    Start(usize),
    Attach(usize, u64),
    Patience(usize, u64, LinkId),
    Beat(usize, u64, LinkId),
    Run(usize, u64, AttemptRef, u32),
    Exit(usize, AttemptRef),
    Take(usize, u64, LinkId, Box<Command>),
    Took(usize, u64, LinkId, Box<(Answered, Option<Box<Command>>)>),
    Upload(usize, u64, AttemptRef, Option<CheckpointId>),
    Uploaded(usize, u64, AttemptRef, Option<CheckpointId>, bool),
    Wish(usize),
    Fault(usize),
    Power(usize),
    Reach(usize),
    Room(usize),
    Heal,
}

/// Everything there is.
#[derive(Debug)]
pub(super) struct World {
    /// Time since the beginning; never goes back.
    pub(super) now: i64,
    /// What the server's wall clock is off by.
    pub(super) step: i64,
    pub(super) server: Server,
    pub(super) machines: Vec<Machine>,
    pub(super) links: BTreeMap<LinkId, Link>,
    pub(super) truth: Truth,
    pub(super) planted: Option<Planted>,
    /// Nothing fails any more.
    pub(super) is_healed: bool,
    pub(super) owner: OwnerId,
    pub(super) key: KeyId,
    pub(super) contracts: Vec<ContractId>,
    pub(super) tasks: Vec<TaskId>,
    pub(super) wishes: Vec<Wish>,
    pub(super) faults: Vec<Fault>,
    pub(super) coverage: BTreeMap<&'static str, u64>,
    /// The first promise that was broken.
    pub(super) broken: Option<String>,
    /// The server does not run, and will from then on.
    pub(super) frozen_until: i64,
    asleep_until: Vec<i64>,
    rng: SmallRng,
    queue: BTreeMap<(i64, u32, u64), Event>,
    events: u64,
    newest_link: LinkId,
    trace: Option<Vec<String>>,
}

impl World {
    /// A world with its machines, before anything has happened.
    pub(super) fn new(seed: u64, planted: Option<Planted>, traced: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let dice = Dice::Seeded { rng: SmallRng::seed_from_u64(rng.random()), ordered: 1 };
        let mut world = Self {
            now: 0,
            step: 0,
            server: Server::new(dice),
            machines: Vec::new(),
            links: BTreeMap::new(),
            truth: Truth::default(),
            planted,
            is_healed: false,
            owner: OwnerId(Uuid::from_u128(1)),
            key: KeyId(Uuid::from_u128(2)),
            contracts: Vec::new(),
            tasks: Vec::new(),
            wishes: Vec::new(),
            faults: Vec::new(),
            coverage: BTreeMap::new(),
            broken: None,
            frozen_until: 0,
            asleep_until: Vec::new(),
            rng,
            queue: BTreeMap::new(),
            events: 0,
            newest_link: 0,
            trace: traced.then(Vec::new),
        };
        world.server.memory.alive = world.wall();
        let machines = 1 + world.below(3);
        for m in 0..machines {
            let (id, journal) = (DaemonId(world.uuid()), world.uuid());
            let slots = 1 + u32::try_from(world.below(3)).unwrap_or(0);
            world.asleep_until.push(0);
            world.machines.push(Machine {
                id,
                name: format!("machine-{m}"),
                slots,
                is_up: true,
                is_gone: false,
                is_reachable: true,
                accepts: true,
                disk: Disk::new(journal),
                process: None,
                lives: 0,
                agents: BTreeMap::new(),
            });
        }
        world
    }

    // === chance ===

    /// From 0 up to `limit`, which is not among them.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.rng.random_range(0..limit.max(1))
    }

    /// From `low` up to `high`.
    pub(super) fn between(&mut self, low: i64, high: i64) -> i64 {
        self.rng.random_range(low..=high.max(low))
    }

    /// Once in so many times.
    pub(super) fn one_in(&mut self, times: u32) -> bool {
        self.rng.random_range(0..times) == 0
    }

    /// A new id.
    pub(super) fn uuid(&mut self) -> Uuid {
        uuid::Builder::from_random_bytes(self.rng.random()).into_uuid()
    }

    // === time ===

    /// The server's clock, which people may set.
    pub(super) fn wall(&self) -> Timestamp {
        Timestamp(EPOCH + self.now + self.step)
    }

    /// Lets something happen after a while.
    pub(super) fn at(&mut self, delay: i64, event: Event) {
        self.events += 1;
        let tie = self.rng.random();
        self.queue.insert((self.now + delay.max(0), tie, self.events), event);
    }

    /// The next event happens. Answers whether there was one.
    pub(super) fn step(&mut self) -> bool {
        let Some(((at, ..), event)) = self.queue.pop_first() else { return false };
        self.now = self.now.max(at);
        if let Some(until) = self.sleeper(&event) {
            let delay = until - self.now;
            self.at(delay, event);
            return true;
        }
        self.happens(event);
        true
    }

    /// When whom the event is for is awake again, if it sleeps.
    fn sleeper(&self, event: &Event) -> Option<i64> {
        let until = match event {
            Event::Batch(_)
            | Event::Tick(_)
            | Event::Sweep(_)
            | Event::Silence(_)
            | Event::Up(_)
            | Event::ServerSees(_) => self.frozen_until,
            Event::Attach(m, ..)
            | Event::Patience(m, ..)
            | Event::Beat(m, ..)
            | Event::Run(m, ..)
            | Event::Exit(m, _)
            | Event::Take(m, ..)
            | Event::Took(m, ..)
            | Event::Upload(m, ..)
            | Event::Uploaded(m, ..)
            | Event::Start(m) => self.asleep_until[*m],
            Event::Down(link) | Event::DaemonSees(link) => {
                self.links.get(link).map_or(0, |link| self.asleep_until[link.machine])
            }
            _ => 0,
        };
        (until > self.now).then_some(until)
    }

    /// A machine sleeps, and knows nothing of it.
    pub(super) fn sleeps(&mut self, m: usize, span: i64) {
        self.asleep_until[m] = self.now + span;
    }

    fn lives(&self, m: usize, life: u64) -> bool {
        self.machines[m].lives == life && self.machines[m].process.is_some()
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Up(link) => {
                let now = self.now;
                if let Some(word) = self.links.get_mut(&link).and_then(|link| link.up.take(now)) {
                    self.server_hears(link, word);
                }
            }
            Event::Down(link) => {
                let now = self.now;
                let Some(found) = self.links.get_mut(&link) else { return };
                let (m, life) = (found.machine, found.life);
                if let Some(word) = found.down.take(now)
                    && self.lives(m, life)
                {
                    self.hears(m, link, word);
                }
            }
            Event::ServerSees(link) => self.session_ends(link, None),
            Event::DaemonSees(link) => {
                if let Some((m, life)) = self.links.get(&link).map(|link| (link.machine, link.life))
                    && self.lives(m, life)
                {
                    self.daemon_sees_end(m, link);
                }
            }
            Event::ServerStart => self.server_starts(),
            Event::Batch(life) if life == self.server.lives => self.batch(),
            Event::Tick(life) if life == self.server.lives => self.ticks(),
            Event::Sweep(life) if life == self.server.lives => self.sweep_time(),
            Event::Silence(link) => self.silence(link),
            Event::Start(m) => self.daemon_starts(m),
            Event::Attach(m, life) if self.lives(m, life) => self.attaches(m),
            Event::Patience(m, life, link) if self.lives(m, life) => self.patience_ends(m, link),
            Event::Beat(m, life, link) if self.lives(m, life) => self.beats(m, link),
            Event::Run(m, life, attempt, turn) if self.lives(m, life) => self.runs(m, attempt, turn),
            Event::Exit(m, attempt) => self.agent_exits(m, attempt),
            Event::Take(m, life, link, command) if self.lives(m, life) => self.takes(m, link, &command),
            Event::Took(m, life, link, took) if self.lives(m, life) => {
                let (answered, new) = *took;
                self.took(m, link, answered, new);
            }
            Event::Upload(m, life, attempt, id) if self.lives(m, life) => self.uploads(m, attempt, id),
            Event::Uploaded(m, life, attempt, id, stored) if self.lives(m, life) => {
                self.uploaded(m, attempt, id, stored);
            }
            Event::Wish(wish) => self.wishes(wish),
            Event::Fault(fault) => self.fails(fault),
            Event::Power(m) => self.powers_on(m),
            Event::Reach(m) => self.machines[m].is_reachable = true,
            Event::Room(m) => self.machines[m].accepts = true,
            Event::Heal => self.heals(),
            // For a process that is no more.
            _ => {}
        }
    }

    // === the network ===

    /// A daemon opens a stream.
    pub(super) fn link_opens(&mut self, machine: usize, life: u64) -> LinkId {
        self.newest_link += 1;
        let link = Link { machine, life, up: Pipe::default(), down: Pipe::default(), is_cut: false };
        self.links.insert(self.newest_link, link);
        self.newest_link
    }

    fn latency(&mut self) -> i64 {
        if !self.is_healed && self.one_in(200) { self.between(SECOND, 20 * SECOND) } else { self.between(200, 5_000) }
    }

    /// Says something to the server.
    pub(super) fn send_up(&mut self, link: LinkId, word: Up) {
        let at = self.now + self.latency();
        let Some(found) = self.links.get_mut(&link).filter(|link| !link.is_cut) else { return };
        let arrives = found.up.put(word, at);
        self.at(arrives - self.now, Event::Up(link));
    }

    /// Says something to a daemon.
    pub(super) fn send_down(&mut self, link: LinkId, word: Down) {
        let at = self.now + self.latency();
        let Some(found) = self.links.get_mut(&link).filter(|link| !link.is_cut) else { return };
        let arrives = found.down.put(word, at);
        self.at(arrives - self.now, Event::Down(link));
    }

    /// A stream breaks. Of what is on its way some arrives, perhaps late; each side may or may not hear that it is over.
    pub(super) fn link_breaks(&mut self, link: LinkId) {
        let Some((ups, downs)) = self.links.get(&link).map(|l| (l.up.words.len(), l.down.words.len())) else { return };
        let (ups, downs) = (self.below(ups + 1), self.below(downs + 1));
        let late = if self.one_in(3) { self.between(SECOND, 60 * SECOND) } else { 0 };
        let half_open = self.one_in(3);
        let Some(found) = self.links.get_mut(&link).filter(|link| !link.is_cut) else { return };
        found.is_cut = true;
        found.up.cut(ups, late);
        found.down.cut(downs, 0);
        let (up_left, down_left) = ((found.up.last - self.now).max(0), (found.down.last - self.now).max(0));
        for _ in 0..ups {
            self.at(up_left, Event::Up(link));
        }
        if late > 0 && ups > 0 {
            self.covered("words of an old stream came late");
        }
        if half_open {
            self.covered("a stream was half open");
        } else {
            self.at(up_left + 1_000, Event::ServerSees(link));
        }
        let delay = down_left + self.between(1_000, SECOND);
        if !self.one_in(4) {
            self.at(delay, Event::DaemonSees(link));
        }
    }

    /// The daemon closes a stream; what it has said arrives.
    pub(super) fn daemon_hangs_up(&mut self, link: LinkId) {
        let Some(found) = self.links.get_mut(&link).filter(|link| !link.is_cut) else { return };
        found.is_cut = true;
        let left = (found.up.last - self.now).max(0) + 2_000;
        self.at(left, Event::ServerSees(link));
    }

    /// The server closes a stream; what it has said arrives.
    pub(super) fn server_hangs_up(&mut self, link: LinkId) {
        let Some(found) = self.links.get_mut(&link).filter(|link| !link.is_cut) else { return };
        found.is_cut = true;
        found.up.words.clear();
        let left = (found.down.last - self.now).max(0) + 2_000;
        self.at(left, Event::DaemonSees(link));
    }

    // === machines ===

    /// The daemon's process dies; agents live on.
    pub(super) fn process_dies(&mut self, m: usize) {
        let Some(Process { session, .. }) = self.machines[m].process.take() else { return };
        self.machines[m].lives += 1;
        self.note(|| format!("daemon {m} dies"));
        if let Some(link) = session.link() {
            self.daemon_hangs_up(link);
        }
    }

    /// A machine loses its power: nobody closes anything, and what was not synced may be gone.
    pub(super) fn power_goes(&mut self, m: usize) {
        let Some(process) = self.machines[m].process.take() else { return self.machines[m].agents.clear() };
        self.note(|| format!("machine {m} loses power"));
        let kept = self.one_in(2);
        let machine = &mut self.machines[m];
        machine.lives += 1;
        machine.is_up = false;
        machine.agents.clear();
        if let Some(synced) = machine.disk.synced.take().filter(|_| !kept) {
            machine.disk.journal = synced;
            self.covered("unsynced deletions came back");
        }
        if let Some(link) = process.session.link()
            && let Some(up) = self.links.get(&link).map(|link| link.up.words.len())
        {
            let kept = self.below(up + 1);
            if let Some(found) = self.links.get_mut(&link) {
                found.is_cut = true;
                found.up.cut(kept, 0);
            }
        }
    }

    fn powers_on(&mut self, m: usize) {
        if !self.machines[m].is_gone {
            self.machines[m].is_up = true;
            self.at(SECOND, Event::Start(m));
        }
    }

    /// Faults are over: everything that can come back does.
    fn heals(&mut self) {
        self.is_healed = true;
        self.note(|| "everything is healed".to_owned());
        self.frozen_until = self.now;
        self.server.mishap = None;
        self.at(0, Event::ServerStart);
        for m in 0..self.machines.len() {
            self.asleep_until[m] = self.now;
            self.machines[m].is_reachable = true;
            self.machines[m].accepts = true;
            if !self.machines[m].is_gone {
                self.machines[m].is_up = true;
                self.at(SECOND, Event::Start(m));
            }
        }
    }

    // === telling ===

    /// Something worth counting has happened.
    pub(super) fn covered(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    /// A line of the history, if somebody wants to read it.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = self.trace.as_mut().filter(|trace| trace.len() < TRACE) {
            trace.push(format!("{:>12.6}  {}", now as f64 / SECOND as f64, line()));
        }
    }

    /// A promise is broken.
    pub(super) fn breaks(&mut self, what: impl FnOnce() -> String) {
        if self.broken.is_none() {
            let what = what();
            self.note(|| format!("BROKEN: {what}"));
            self.broken = Some(what);
        }
    }

    /// The history so far.
    pub(super) fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }
}

//! The server: the ledger's own code over tables in memory, and around it what a process does: sessions, silence, sweeps, dying
//! at the worst moment. Time goes by the rules of `server::reaper`.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::pin,
    sync::RwLock,
    task::{Context, Poll, Waker},
};

use tokio::sync::mpsc;

use super::{
    super::{
        DueSoon, Error, Fleet, Op, Push, Reply, Request, Writer, dice::Dice, dispatch::Classes, kept::Kept, op::Repeat,
        queue, rows::Rows as _, work::Work,
    },
    memory::Memory,
    network::LinkId,
    planted,
    session::ServerSession,
    world::{Event, LOST_AFTER, SECOND, World},
};
use crate::{
    domain::{AttemptRef, CheckpointId, DaemonId, Epoch, Timestamp},
    server::task_keys::TaskKeys,
};

/// The floor under the sweep.
const SWEEP_FLOOR: i64 = 30 * SECOND;
/// How often the silence is looked at.
const TICK: i64 = SECOND;

/// What outlives a process, and the process.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) memory: Memory,
    pub(super) life: Option<Life>,
    pub(super) lives: u64,
    keys: TaskKeys,
    dice: Dice,
    /// The next batch meets this.
    pub(super) mishap: Option<Mishap>,
}

/// What happens to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mishap {
    /// The process dies before the commit.
    DiesBefore,
    /// The process dies after the commit, before it has said so.
    DiesAfter,
    /// The database is away.
    Unavailable,
}

/// One process.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) fleet: RwLock<Fleet>,
    pub(super) sessions: BTreeMap<LinkId, ServerSession>,
    classes: Classes,
    pub(super) kept: Kept,
    now: Timestamp,
    look: bool,
    due: DueSoon,
    sweep_at: i64,
    pub(super) heard: BTreeMap<DaemonId, Last>,
    inbox: VecDeque<(Request, To)>,
    is_writing: bool,
    ticked: i64,
    noted: i64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Last {
    pub(super) epoch: Epoch,
    pub(super) at: i64,
    pub(super) wall: Timestamp,
}

/// Where an answer goes.
#[derive(Debug)]
pub(super) enum To {
    Nobody,
    Attach(LinkId, Box<Opening>),
    Tell(LinkId),
    /// What is pending in a session, under this number.
    Pending(LinkId, u64),
    Lost(DaemonId, Epoch),
    Swept,
    Upload(usize, u64, AttemptRef, Option<CheckpointId>),
    Person(usize),
}

/// What a session needs when it is open.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) daemon: DaemonId,
    pub(super) pushes: mpsc::Receiver<Push>,
}

impl Server {
    pub(super) fn new(dice: Dice) -> Self {
        let keys = TaskKeys::new([7; 32]);
        Self { memory: Memory::default(), life: None, lives: 0, keys, dice, mishap: None }
    }

    pub(super) fn is_up(&self) -> bool {
        self.life.is_some()
    }
}

/// Runs what waits for nothing: rows in memory are there at once.
pub(in super::super) fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("rows in memory wait for nothing"),
    }
}

impl World {
    // === the process ===

    /// The server starts, with what the database knows.
    pub(super) fn server_starts(&mut self) {
        if self.server.is_up() {
            return;
        }
        let (now, wall) = (self.now, self.wall());
        let memory = &mut self.server.memory;
        let alive = memory.alive;
        let attached = memory.daemons.values().filter(|daemon| daemon.attached);
        let heard = attached.map(|daemon| {
            let used = i64::try_from(alive.since(daemon.last_seen).as_micros()).unwrap_or(i64::MAX).min(LOST_AFTER);
            (daemon.id, Last { epoch: daemon.epoch, at: now - used, wall: daemon.last_seen })
        });
        let heard = heard.collect();
        let classes = memory.classes.iter().map(|(id, (owner, needs))| (*id, *owner, needs.clone())).collect();
        let due = DueSoon::default();
        due.earlier(at_once(memory.next_due(Timestamp(0))).ok().flatten().unwrap_or(wall));
        self.server.lives += 1;
        self.server.life = Some(Life {
            fleet: RwLock::default(),
            sessions: BTreeMap::new(),
            classes: Classes::new(classes),
            kept: Kept::default(),
            now: alive,
            look: true,
            due,
            sweep_at: i64::MAX,
            heard,
            inbox: VecDeque::new(),
            is_writing: false,
            ticked: now,
            noted: now,
        });
        self.note(|| "the server starts".to_owned());
        self.at(TICK, Event::Tick(self.server.lives));
        self.writes_soon();
        self.sweeps_when_due();
    }

    /// The process ends, with everything it had in memory.
    pub(super) fn server_dies(&mut self) {
        let Some(life) = self.server.life.take() else { return };
        self.note(|| "the server dies".to_owned());
        for (_, to) in life.inbox {
            self.never_answered(&to);
        }
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            self.server_hangs_up(link);
        }
    }

    fn never_answered(&mut self, to: &To) {
        match to {
            To::Upload(m, life, attempt, checkpoint) => {
                self.at(SECOND, Event::Uploaded(*m, *life, *attempt, *checkpoint, false));
            }
            To::Person(wish) => self.at(5 * SECOND, Event::Wish(*wish)),
            _ => {}
        }
    }

    /// Asks the ledger.
    pub(super) fn submit(&mut self, actor: String, repeat: Option<Repeat>, op: Op, to: To) {
        let Some(life) = &mut self.server.life else { return self.never_answered(&to) };
        life.inbox.push_back((Request { actor, repeat, op }, to));
        self.writes_soon();
    }

    fn writes_soon(&mut self) {
        let lives = self.server.lives;
        let Some(life) = self.server.life.as_mut().filter(|life| !life.is_writing) else { return };
        life.is_writing = true;
        let delay = if self.one_in(100) && !self.is_healed {
            self.between(SECOND, 20 * SECOND)
        } else {
            self.between(200, 10_000)
        };
        self.at(delay, Event::Batch(lives));
    }

    /// One batch, as `Writer::commit` does it.
    pub(super) fn batch(&mut self) {
        let (wall, planted) = (self.wall(), self.planted);
        let count = self.server.life.as_ref().map_or(0, |life| life.inbox.len());
        // The oldest of those that wait have waited long enough, as many as chance has it.
        let some = i64::try_from(count).unwrap_or(i64::MAX);
        let waited = if count < queue::BATCH { self.between(0, some) } else { some };
        let Some(life) = &mut self.server.life else { return };
        life.is_writing = false;
        let ops = life.inbox.iter().map(|(request, _)| &request.op);
        let waiting = ops.zip(0..).map(|(op, place)| (op, place < waited)).take(queue::BATCH);
        let mut leaves = queue::leaving(waiting).into_iter();
        let (batch, rest): (Vec<_>, Vec<_>) = life.inbox.drain(..).partition(|_| leaves.next().unwrap_or(false));
        life.inbox.extend(rest);
        let (requests, tos): (Vec<Request>, Vec<To>) = batch.into_iter().unzip();
        let mishap = if requests.is_empty() { None } else { self.server.mishap.take() };
        if mishap == Some(Mishap::Unavailable) {
            self.covered("the database was away");
            let replies = requests.iter().map(|_| Err(Error::Unavailable("away".to_owned()))).collect();
            self.answers(tos, replies);
            return self.writes_what_waits();
        }
        let memory = &mut self.server.memory;
        life.now = wall.max(life.now);
        let mut work = Work::new(life.now, std::mem::take(&mut life.kept));
        work.look = life.look;
        work.dice = std::mem::take(&mut self.server.dice);
        let references: Vec<&Request> = requests.iter().collect();
        if let Err(error) = at_once(work.load(memory, &references)) {
            unreachable!("rows in memory can be read: {error}");
        }
        let replies: Vec<_> = references
            .iter()
            .map(|request| {
                let reply = Writer::fold(&mut work, request, &life.fleet, &self.server.keys);
                planted::after_fold(planted, &mut work, request);
                reply
            })
            .collect();
        let mut more = work.look;
        if work.look {
            let fleet = life.fleet.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            let room = work.room(&fleet);
            match at_once(work.dispatch(memory, room, &life.classes, &self.server.keys)) {
                Ok(left) => more = left,
                Err(error) => unreachable!("rows in memory can be read: {error}"),
            }
        }
        self.server.dice = std::mem::take(&mut work.dice);
        if mishap == Some(Mishap::DiesBefore) {
            self.covered("the server died before a commit");
            tos.iter().for_each(|to| self.never_answered(to));
            return self.server_restarts();
        }
        memory.changes.clear();
        if !work.is_clean() {
            if let Err(error) = at_once(work.flush(memory, None)) {
                unreachable!("rows in memory can be written: {error}");
            }
            self.committed(&work);
        }
        if mishap == Some(Mishap::DiesAfter) {
            self.covered("the server died between a commit and its word");
            tos.iter().for_each(|to| self.never_answered(to));
            return self.server_restarts();
        }
        let Some(life) = &mut self.server.life else { return };
        life.classes.learn(&work);
        life.kept = planted::kept(planted, &mut work);
        life.look = more;
        if let Some(due) = work.earliest_due() {
            life.due.earlier(due);
        }
        {
            let mut fleet = life.fleet.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            life.look |= Writer::take_effect(&mut fleet, &work, &references, &replies);
            planted::after_effect(planted, &mut fleet);
        }
        self.answers(tos, replies);
        self.check_kept();
        self.check_fleet();
        self.writes_what_waits();
        self.sweeps_when_due();
    }

    /// Another batch follows where something waits, or is to be looked for.
    fn writes_what_waits(&mut self) {
        if self.server.life.as_ref().is_some_and(|life| life.look || !life.inbox.is_empty()) {
            self.writes_soon();
        }
    }

    fn server_restarts(&mut self) {
        self.server_dies();
        let delay = self.between(SECOND, 20 * SECOND);
        self.at(delay, Event::ServerStart);
    }

    fn answers(&mut self, tos: Vec<To>, replies: Vec<Result<Reply, Error>>) {
        for (to, reply) in tos.into_iter().zip(replies) {
            match to {
                To::Nobody => {}
                To::Attach(link, opening) => self.attach_answered(link, *opening, reply),
                To::Tell(link) => self.waited(link, &reply),
                To::Pending(link, number) => {
                    if let Some(pending) = self.open(link).and_then(|open| open.pending_of(number)) {
                        pending.reply = Some(reply);
                    }
                }
                To::Lost(daemon, epoch) => {
                    if matches!(reply, Ok(_) | Err(Error::StaleSession(_))) {
                        let Some(life) = &mut self.server.life else { continue };
                        if life.heard.get(&daemon).is_some_and(|last| last.epoch == epoch) {
                            life.heard.remove(&daemon);
                        }
                        life.fleet.write().unwrap_or_else(std::sync::PoisonError::into_inner).detach(daemon, epoch);
                        self.covered("a daemon was declared lost");
                    }
                }
                To::Swept => {
                    let wall = self.wall();
                    let Some(life) = &mut self.server.life else { continue };
                    match reply {
                        Ok(Reply::Swept { more: true, .. }) => life.due.earlier(wall),
                        Ok(Reply::Swept { next: Some(next), .. }) if next > wall => life.due.earlier(next),
                        Ok(_) => {}
                        Err(_) => life.due.earlier(Timestamp(wall.0 + SECOND / 2)),
                    }
                    self.sweeps_when_due();
                }
                To::Upload(m, life, attempt, checkpoint) => {
                    let stored = match &reply {
                        Ok(_) => true,
                        // What nobody knows, and what builds on nothing, is not asked again; a result is.
                        Err(Error::NotFound { .. } | Error::Precondition(_)) if checkpoint.is_some() => continue,
                        Err(_) => false,
                    };
                    let delay = self.between(500, 50_000);
                    self.at(delay, Event::Uploaded(m, life, attempt, checkpoint, stored));
                }
                To::Person(wish) => self.wish_answered(wish, reply),
            }
        }
        self.pump_all();
    }

    // === time ===

    /// Looks for silence.
    pub(super) fn ticks(&mut self) {
        let (now, wall) = (self.now, self.wall());
        let planted = self.planted;
        let lives = self.server.lives;
        let Some(life) = &mut self.server.life else { return };
        let gap = now - life.ticked - TICK;
        if gap > TICK * 2 {
            for last in life.heard.values_mut() {
                last.at += gap;
            }
        }
        life.ticked = now;
        let silent: Vec<_> =
            life.heard.iter().filter(|(_, last)| now - last.at >= LOST_AFTER).map(|(d, l)| (*d, l.epoch)).collect();
        let mut seen = Vec::new();
        if now - life.noted >= LOST_AFTER / 3 {
            life.noted = now;
            let noted = self.server.memory.alive;
            // Who is about to be declared lost is not among those who were heard.
            let heard = life.heard.iter().filter(|(_, l)| l.wall > noted && now - l.at < LOST_AFTER);
            seen = heard.map(|(d, l)| (*d, l.epoch, l.wall)).collect();
            self.server.memory.alive = wall.max(noted);
            for daemon in self.server.memory.daemons.values().filter(|daemon| daemon.attached) {
                if life.heard.get(&daemon.id).is_none_or(|known| known.epoch < daemon.epoch) {
                    life.heard.insert(daemon.id, Last { epoch: daemon.epoch, at: now, wall: Timestamp(0) });
                }
            }
        }
        for (daemon, epoch) in silent {
            if planted != Some(planted::Planted::LossIgnored) {
                self.submit("server".to_owned(), None, Op::DaemonLost { daemon, epoch }, To::Lost(daemon, epoch));
            }
        }
        if !seen.is_empty() {
            self.submit("server".to_owned(), None, Op::Seen(seen), To::Nobody);
        }
        self.at(TICK, Event::Tick(lives));
    }

    fn sweeps_when_due(&mut self) {
        let (now, wall, lives) = (self.now, self.wall(), self.server.lives);
        let Some(life) = &mut self.server.life else { return };
        let wait = life.due.peek().map_or(SWEEP_FLOOR, |at| (at.0 - wall.0).clamp(0, SWEEP_FLOOR));
        if now + wait < life.sweep_at {
            life.sweep_at = now + wait;
            self.at(wait, Event::Sweep(lives));
        }
    }

    /// Sweeps if something is due, or if nothing has been for long.
    pub(super) fn sweep_time(&mut self) {
        let (now, wall) = (self.now, self.wall());
        let Some(life) = self.server.life.as_mut().filter(|life| life.sweep_at <= now) else { return };
        life.sweep_at = i64::MAX;
        if life.due.peek().is_some_and(|at| at > wall) {
            return self.sweeps_when_due();
        }
        life.due.take();
        self.submit("server".to_owned(), None, Op::Sweep, To::Swept);
        self.sweeps_when_due();
    }
}

/// Notes that a daemon was heard, unless a newer session of it has been.
pub(super) fn touch(heard: &mut BTreeMap<DaemonId, Last>, daemon: DaemonId, last: Last) {
    if heard.get(&daemon).is_none_or(|known| known.epoch <= last.epoch) {
        heard.insert(daemon, last);
    }
}

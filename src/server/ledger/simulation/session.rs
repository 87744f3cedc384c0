//! The server's end of streams, by the rules of `server::session`: what is acknowledged has been committed, answers keep their
//! order, and a session that waits for the ledger does nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::sync::mpsc;

use super::{
    super::{Error, Op, Push, Reply, op::Attach},
    network::{Closing, Down, LinkId, Up},
    server::{Last, Opening, To, touch},
    world::{Event, LOST_AFTER, World},
};
use crate::{
    domain::{
        AttemptRef, CheckpointId, DaemonId, Epoch, Timestamp,
        checkpoint::{About, Checkpoint, Link, MAX_CHAIN},
        order::{Command, OrderKind},
        report::{Message, MessageOutcome},
    },
    server::blobs::Blobs,
};

/// The server's end of a stream.
#[derive(Debug)]
pub(super) struct ServerSession {
    incoming: VecDeque<Up>,
    state: Standing,
    silence_at: i64,
}

#[derive(Debug)]
enum Standing {
    New,
    Asking,
    Open(Box<Open>),
}

#[derive(Debug)]
pub(super) struct Open {
    daemon: DaemonId,
    epoch: Epoch,
    pushes: mpsc::Receiver<Push>,
    outstanding: BTreeMap<i64, (AttemptRef, OrderKind)>,
    /// Messages and answers whose commits are under way, in order.
    pending: VecDeque<Pending>,
    /// The number of the last of them.
    numbered: u64,
    ready: bool,
    not_accepting: Option<String>,
    /// What it is about to do, in order.
    todo: VecDeque<Todo>,
    /// It waits for the ledger, and does nothing else.
    waits: bool,
}

/// What a commit under way is of, and what came of it.
#[derive(Debug)]
pub(super) struct Pending {
    number: u64,
    /// A message, which is answered; nobody waits to hear that the answer to a command was taken.
    message: Option<Box<Message>>,
    pub(super) reply: Option<Result<Reply, Error>>,
}

#[derive(Debug)]
enum Todo {
    Tell(Box<Op>),
    AnswerHeartbeat(Vec<AttemptRef>),
}

impl Open {
    pub(super) fn pending_of(&mut self, number: u64) -> Option<&mut Pending> {
        self.pending.iter_mut().find(|pending| pending.number == number)
    }
}

impl World {
    pub(super) fn open(&mut self, link: LinkId) -> Option<&mut Open> {
        match &mut self.server.life.as_mut()?.sessions.get_mut(&link)?.state {
            Standing::Open(open) => Some(open),
            Standing::New | Standing::Asking => None,
        }
    }

    /// A word has arrived from a daemon.
    pub(super) fn server_hears(&mut self, link: LinkId, word: Up) {
        let (now, wall) = (self.now, self.wall());
        let Some(life) = &mut self.server.life else { return };
        let session = life.sessions.entry(link).or_insert_with(|| ServerSession {
            incoming: VecDeque::new(),
            state: Standing::New,
            silence_at: i64::MAX,
        });
        session.incoming.push_back(word);
        session.silence_at = now + LOST_AFTER;
        if let Standing::Open(open) = &session.state {
            touch(&mut life.heard, open.daemon, Last { epoch: open.epoch, at: now, wall });
        }
        self.pump(link);
    }

    /// Nothing has been heard of a session for long.
    pub(super) fn silence(&mut self, link: LinkId) {
        let now = self.now;
        let Some(session) = self.server.life.as_ref().and_then(|life| life.sessions.get(&link)) else { return };
        if session.silence_at <= now {
            self.covered("a session ended for silence");
            self.session_ends(link, None);
        } else {
            let wait = session.silence_at - now;
            self.at(wait.min(LOST_AFTER), Event::Silence(link));
        }
    }

    /// The server's end of a stream is over.
    pub(super) fn session_ends(&mut self, link: LinkId, closing: Option<Closing>) {
        let Some(session) = self.server.life.as_mut().and_then(|life| life.sessions.remove(&link)) else { return };
        if let (Standing::Open(open), Some(life)) = (session.state, &self.server.life) {
            life.fleet.write().unwrap_or_else(std::sync::PoisonError::into_inner).detach(open.daemon, open.epoch);
        }
        if let Some(closing) = closing {
            self.send_down(link, Down::Closing(closing));
        }
        self.server_hangs_up(link);
    }

    pub(super) fn pump_all(&mut self) {
        let links: Vec<LinkId> = self.server.life.iter().flat_map(|life| life.sessions.keys().copied()).collect();
        for link in links {
            self.pump(link);
        }
    }

    /// Lets a session do what it can do now.
    fn pump(&mut self, link: LinkId) {
        loop {
            let Some(session) = self.server.life.as_mut().and_then(|life| life.sessions.get_mut(&link)) else { return };
            match &mut session.state {
                Standing::Asking => return,
                Standing::New => match session.incoming.pop_front() {
                    Some(Up::Hello(hello)) => {
                        session.state = Standing::Asking;
                        let (outbox, pushes) = mpsc::channel(64);
                        let daemon = hello.daemon;
                        let attach = Attach { owner: self.owner, key: self.key, hello: *hello, outbox };
                        let opening = Box::new(Opening { daemon, pushes });
                        let actor = format!("daemon:{daemon}");
                        self.submit(actor, None, Op::Attach(Box::new(attach)), To::Attach(link, opening));
                    }
                    Some(_) => return self.session_ends(link, Some(Closing::Resync)),
                    None => return,
                },
                Standing::Open(open) if open.waits => return,
                Standing::Open(open) => {
                    if let Some(todo) = open.todo.pop_front() {
                        match todo {
                            Todo::Tell(op) => {
                                open.waits = true;
                                let actor = format!("daemon:{}", open.daemon);
                                self.submit(actor, None, *op, To::Tell(link));
                            }
                            Todo::AnswerHeartbeat(live) => {
                                let daemon = open.daemon;
                                let Some(life) = &self.server.life else { return };
                                let fleet = life.fleet.read().unwrap_or_else(std::sync::PoisonError::into_inner);
                                let cancel = fleet.unwanted(daemon, &live);
                                drop(fleet);
                                self.send_down(link, Down::HeartbeatAnswer { cancel });
                            }
                        }
                        continue;
                    }
                    match open.pushes.try_recv() {
                        Ok(Push::Command(command)) => {
                            self.commands(link, (*command).clone());
                            continue;
                        }
                        Ok(Push::Superseded) => return self.session_ends(link, Some(Closing::Superseded)),
                        Ok(Push::Unauthenticated) | Err(mpsc::error::TryRecvError::Disconnected) => {
                            return self.session_ends(link, Some(Closing::Resync));
                        }
                        Err(mpsc::error::TryRecvError::Empty) => {}
                    }
                    if open.pending.front().is_some_and(|pending| pending.reply.is_some()) {
                        if !self.settles(link) {
                            return;
                        }
                        continue;
                    }
                    match session.incoming.pop_front() {
                        Some(word) => self.requested(link, word),
                        None => return,
                    }
                }
            }
        }
    }

    /// The oldest of what is pending is durable. Answers whether the session goes on.
    fn settles(&mut self, link: LinkId) -> bool {
        let oldest = self.open(link).and_then(|open| open.pending.pop_front());
        let Some(Pending { message, reply: Some(reply), .. }) = oldest else { return true };
        let Some(message) = message else { return self.told(link, &reply) };
        let outcome = match reply {
            Ok(Reply::Message(outcome)) => outcome,
            Ok(_) => MessageOutcome::Applied,
            Err(_) => {
                self.session_ends(link, Some(Closing::Resync));
                return false;
            }
        };
        if outcome == MessageOutcome::Fenced {
            self.covered("a message was fenced");
        }
        self.note(|| format!("server: {} of {} is {outcome:?}", message.sequence, message.attempt));
        self.send_down(link, Down::MessageAnswer { sequence: message.sequence, journal: message.journal, outcome });
        true
    }

    fn requested(&mut self, link: LinkId, word: Up) {
        let Some(open) = self.open(link) else { return };
        let (daemon, epoch) = (open.daemon, open.epoch);
        match word {
            Up::Heartbeat { live, not_accepting } => {
                if open.not_accepting.as_ref() != Some(&not_accepting) {
                    open.not_accepting = Some(not_accepting.clone());
                    open.todo.push_back(Todo::Tell(Box::new(Op::Accepting { daemon, epoch, not_accepting })));
                }
                if !open.ready {
                    open.ready = true;
                    open.todo.push_back(Todo::Tell(Box::new(Op::Ready { daemon, epoch })));
                }
                open.todo.push_back(Todo::AnswerHeartbeat(live));
            }
            Up::Answer { sequence, answer } => {
                let Some((attempt, of)) = open.outstanding.remove(&sequence) else { return };
                self.enqueue(link, None, Op::Answered { daemon, epoch, attempt, of, sequence, answer });
            }
            Up::Message(message) => {
                self.enqueue(link, Some(message.clone()), Op::Message { daemon, message: *message });
            }
            Up::Hello(_) => self.session_ends(link, Some(Closing::Resync)),
        }
    }

    /// Asks the ledger, and goes on meanwhile.
    fn enqueue(&mut self, link: LinkId, message: Option<Box<Message>>, op: Op) {
        let Some(open) = self.open(link) else { return };
        open.numbered += 1;
        let (number, actor) = (open.numbered, format!("daemon:{}", open.daemon));
        open.pending.push_back(Pending { number, message, reply: None });
        self.submit(actor, None, op, To::Pending(link, number));
    }

    /// What the session has waited for is durable.
    pub(super) fn waited(&mut self, link: LinkId, reply: &Result<Reply, Error>) {
        if let Some(open) = self.open(link) {
            open.waits = false;
            self.told(link, reply);
        }
    }

    /// Something whose answer the daemon does not wait for has been done. Answers whether the session goes on.
    fn told(&mut self, link: LinkId, reply: &Result<Reply, Error>) -> bool {
        match reply {
            Ok(_) => return true,
            Err(Error::StaleSession(_)) => {
                self.covered("an old session spoke");
                self.session_ends(link, Some(Closing::Superseded));
            }
            Err(_) => self.session_ends(link, Some(Closing::Resync)),
        }
        false
    }

    pub(super) fn attach_answered(&mut self, link: LinkId, opening: Opening, reply: Result<Reply, Error>) {
        let (now, wall) = (self.now, self.wall());
        let Some(life) = &mut self.server.life else { return };
        let (epoch, verdicts, unanswered) = match reply {
            Ok(Reply::Attached { epoch, verdicts, unanswered }) => (epoch, verdicts, unanswered),
            _ => return self.session_ends(link, Some(Closing::Refused)),
        };
        touch(&mut life.heard, opening.daemon, Last { epoch, at: now, wall });
        self.note(|| format!("server: {} is attached with epoch {epoch}: {verdicts:?}", opening.daemon.short()));
        let Some(session) = self.server.life.as_mut().and_then(|life| life.sessions.get_mut(&link)) else {
            // The daemon has hung up meanwhile; in a real server the session finds that out at once.
            if let Some(life) = &self.server.life {
                life.fleet.write().unwrap_or_else(std::sync::PoisonError::into_inner).detach(opening.daemon, epoch);
            }
            return;
        };
        session.state = Standing::Open(Box::new(Open {
            daemon: opening.daemon,
            epoch,
            pushes: opening.pushes,
            outstanding: BTreeMap::new(),
            pending: VecDeque::new(),
            numbered: 0,
            ready: false,
            not_accepting: None,
            todo: VecDeque::new(),
            waits: false,
        }));
        session.silence_at = now + LOST_AFTER;
        self.at(LOST_AFTER, Event::Silence(link));
        self.send_down(link, Down::Welcome { verdicts });
        for command in unanswered {
            self.covered("a command was sent again");
            self.commands(link, command);
        }
    }

    fn commands(&mut self, link: LinkId, mut command: Command) {
        let Some(open) = self.open(link) else { return };
        command.epoch = open.epoch;
        open.outstanding.insert(command.sequence, (command.attempt, command.order.kind()));
        self.send_down(link, Down::Command(Box::new(command)));
    }

    // === bulk ===

    /// A file is here, durably; its row follows.
    pub(super) fn bulk_arrives(&mut self, m: usize, life: u64, attempt: AttemptRef, checkpoint: Option<CheckpointId>) {
        let (owner, daemon) = (self.owner, self.machines[m].id);
        let sha256 = attempt.id.0.simple().to_string();
        let op = match checkpoint {
            None => {
                let blob = Blobs::result_name(owner, attempt.id, &sha256);
                self.server.memory.packs.insert(blob.clone());
                Op::ResultStored { attempt, blob }
            }
            Some(id) => {
                let newest = self.server.memory.attempts.get(&attempt.id).and_then(|attempt| attempt.checkpoint);
                let chain = |id| self.server.memory.checkpoints.get(&id).map_or(0, |c: &Checkpoint| c.chain.len());
                let base = newest.filter(|base| *base != id && chain(*base) < MAX_CHAIN);
                let link = Link { id, blob: id.to_string(), bytes: 1, sha256 };
                let Some(contract) = self.server.memory.attempts.get(&attempt.id).map(|a| a.contract) else { return };
                Op::CheckpointStored(Box::new(Checkpoint {
                    id,
                    attempt,
                    contract,
                    owner,
                    daemon,
                    chain: vec![link],
                    about: About { base, ..About::default() },
                    orphan: false,
                    stored: Timestamp::default(),
                }))
            }
        };
        self.submit(format!("daemon:{daemon}"), None, op, To::Upload(m, life, attempt, checkpoint));
    }

    /// Daemons whose sessions the server holds open.
    pub(super) fn attached(&self) -> BTreeSet<DaemonId> {
        let life = self.server.life.iter();
        life.flat_map(|life| {
            let fleet = life.fleet.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            fleet.iter().filter(|(_, member)| member.takes_work()).map(|(id, _)| id).collect::<Vec<_>>()
        })
        .collect()
    }
}

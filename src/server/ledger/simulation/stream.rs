//! A daemon's end of its stream: attaching, saying what is owed, hearing, taking commands in, and bringing what is large. By the
//! rules of `daemon::session`, `intake` and `bulk`.

use std::collections::BTreeMap;

use super::{
    daemon::{Attached, Session},
    machine::{Taken, Why},
    network::{Answered, Closing, Down, LinkId, Up},
    planted::Planted,
    world::{Event, LOST_AFTER, SECOND, World},
};
use crate::domain::{
    AttemptRef, BootId, CheckpointId,
    daemon::{Card, Hello, Profile},
    order::{Answer, Command, Order},
    reconcile::Verdict,
    report::{InventoryItem, Message, MessageOutcome, Report},
};

/// How long a daemon waits for Welcome.
const PATIENCE: i64 = 10 * SECOND;
/// Between two heartbeats.
const HEARTBEAT: i64 = 15 * SECOND;

impl World {
    /// Opens a stream.
    pub(super) fn attaches(&mut self, m: usize) {
        if !self.process(m).is_some_and(|process| matches!(process.session, Session::Away)) {
            return;
        }
        if !self.machines[m].is_reachable || !self.server.is_up() {
            self.covered("a daemon could not attach");
            return self.attaches_later(m);
        }
        let boot = BootId(self.uuid());
        let attach = self.machines[m].disk.attach();
        let machine = &self.machines[m];
        let journal = &machine.disk.journal;
        let intact = |attempt: &AttemptRef| machine.disk.dirs.get(attempt).is_some_and(|dir| dir.intact);
        let found = machine.process.iter().flat_map(|process| process.found.values());
        let listed = journal.attempts.values().chain(found).filter_map(|row| {
            Some(InventoryItem {
                attempt: row.attempt,
                state: row.inventory()?,
                worktree: "w".to_owned(),
                worktree_intact: intact(&row.attempt),
            })
        });
        let first_last = (journal.outbox.keys().next().copied(), journal.outbox.keys().next_back().copied());
        let hello = Hello {
            protocol: (1, 1),
            daemon: machine.id,
            boot,
            journal: journal.id,
            card: Card {
                name: machine.name.clone(),
                slots: machine.slots,
                profiles: vec![Profile { name: "shell".to_owned(), version: String::new() }],
                not_accepting: not_accepting(machine.accepts),
                any_path: true,
                ..Card::default()
            },
            attach,
            last_command: journal.last_command,
            unanswered: (first_last.0.unwrap_or(0), first_last.1.unwrap_or(0)),
            inventory: listed.collect(),
            clock: Default::default(),
        };
        let owed = hello.unanswered.1;
        let life = machine.lives;
        let link = self.link_opens(m, life);
        self.note(|| format!("daemon {m} attaches by {link}: {:?}", hello.inventory));
        if let Some(process) = self.process(m) {
            process.session = Session::Opening { link, owed };
        }
        self.send_up(link, Up::Hello(Box::new(hello)));
        self.at(PATIENCE, Event::Patience(m, life, link));
    }

    fn attaches_later(&mut self, m: usize) {
        let life = self.machines[m].lives;
        let Some(process) = self.process(m) else { return };
        process.session = Session::Away;
        process.failures = (process.failures + 1).min(7);
        let most = ((SECOND / 2) << process.failures).min(30 * SECOND);
        let delay = self.between(most / 2, most);
        self.at(delay, Event::Attach(m, life));
    }

    /// No Welcome has come in time.
    pub(super) fn patience_ends(&mut self, m: usize, link: LinkId) {
        if self.process(m).is_some_and(|p| matches!(p.session, Session::Opening { link: of, .. } if of == link)) {
            self.covered("no Welcome in time");
            self.daemon_hangs_up(link);
            self.attaches_later(m);
        }
    }

    /// The stream is over, as far as the daemon sees.
    pub(super) fn daemon_sees_end(&mut self, m: usize, link: LinkId) {
        let Some(process) = self.process(m) else { return };
        if process.session.link() != Some(link) {
            return;
        }
        let good = matches!(process.session, Session::Attached(_));
        process.session = Session::Away;
        if good {
            process.failures = 0;
            let life = self.machines[m].lives;
            self.at(1_000, Event::Attach(m, life));
        } else {
            self.attaches_later(m);
        }
    }

    /// A heartbeat is due.
    pub(super) fn beats(&mut self, m: usize, link: LinkId) {
        let (now, life) = (self.now, self.machines[m].lives);
        let Some(Session::Attached(attached)) = self.process(m).map(|process| &process.session) else { return };
        if attached.link != link {
            return;
        }
        if now - attached.heard >= LOST_AFTER {
            self.covered("a daemon gave a silent server up");
            self.daemon_hangs_up(link);
            return self.daemon_sees_end(m, link);
        }
        self.heartbeat(m, link);
        self.at(HEARTBEAT, Event::Beat(m, life, link));
    }

    fn heartbeat(&mut self, m: usize, link: LinkId) {
        let machine = &self.machines[m];
        let Some(process) = &machine.process else { return };
        let live = process.live.keys().copied().collect();
        let not_accepting = not_accepting(machine.accepts);
        self.send_up(link, Up::Heartbeat { live, not_accepting });
    }

    /// Sends what is owed, and says when the owed is out.
    pub(super) fn sends_owed(&mut self, m: usize) {
        let machine = &mut self.machines[m];
        let journal = &machine.disk.journal;
        let Some(Session::Attached(attached)) = machine.process.as_mut().map(|p| &mut p.session) else { return };
        let link = attached.link;
        let mut messages = Vec::new();
        for (sequence, (attempt, report)) in journal.outbox.range(attached.cursor + 1..) {
            let terminal = matches!(report, Report::Complete(_) | Report::RecoveryDetected { .. });
            attached.in_flight.insert(*sequence, (*attempt, terminal));
            let at = Default::default();
            let report = report.clone();
            messages.push(Message { sequence: *sequence, journal: journal.id, attempt: *attempt, at, report });
        }
        attached.cursor = attached.cursor.max(journal.newest());
        let becomes_ready = !attached.ready && attached.cursor >= attached.owed;
        attached.ready |= becomes_ready;
        for message in messages {
            self.send_up(link, Up::Message(Box::new(message)));
        }
        if becomes_ready {
            self.heartbeat(m, link);
        }
    }

    /// The server says something.
    pub(super) fn hears(&mut self, m: usize, link: LinkId, word: Down) {
        let (now, life) = (self.now, self.machines[m].lives);
        let Some(process) = self.process(m) else { return };
        if process.session.link() != Some(link) {
            return;
        }
        if let Session::Attached(attached) = &mut process.session {
            attached.heard = now;
        }
        match word {
            Down::Welcome { verdicts } => {
                let Session::Opening { owed, .. } = process.session else { return };
                process.failures = 0;
                let cursor = if self.planted == Some(Planted::OutboxNotResent) { owed } else { 0 };
                let Some(process) = self.process(m) else { return };
                process.session = Session::Attached(Attached {
                    link,
                    cursor,
                    owed,
                    in_flight: BTreeMap::new(),
                    ready: false,
                    heard: now,
                });
                for (attempt, verdict) in verdicts {
                    self.covered(word_of(verdict));
                    self.verdict(m, attempt, verdict);
                }
                self.sends_owed(m);
                self.at(HEARTBEAT, Event::Beat(m, life, link));
            }
            Down::Command(command) => {
                let delay = self.between(500, 20_000);
                self.at(delay, Event::Take(m, life, link, command));
            }
            Down::MessageAnswer { sequence, journal, outcome } => {
                if journal != self.machines[m].disk.journal.id {
                    return;
                }
                self.machines[m].disk.answered(sequence);
                let Some(Session::Attached(attached)) = self.process(m).map(|p| &mut p.session) else { return };
                if let Some((attempt, false)) = attached.in_flight.remove(&sequence)
                    && outcome == MessageOutcome::Fenced
                {
                    self.stops(m, attempt, Why::Fenced);
                }
            }
            Down::HeartbeatAnswer { cancel } => {
                for attempt in cancel {
                    self.stops(m, attempt, Why::Cancelled);
                }
            }
            Down::Closing(closing) => {
                self.daemon_hangs_up(link);
                match closing {
                    Closing::Superseded => {
                        // The process stops and says so; whoever runs it starts it again.

                        self.covered("a daemon was told that it is superseded");
                        self.process_dies(m);
                        self.at(5 * SECOND, Event::Start(m));
                    }
                    Closing::Resync => self.daemon_sees_end(m, link),
                    Closing::Refused => self.attaches_later(m),
                }
            }
        }
    }

    // === intake ===

    /// A command is written to the journal, or refused.
    pub(super) fn takes(&mut self, m: usize, link: LinkId, command: &Command) {
        let machine = &mut self.machines[m];
        let known = machine.disk.journal.attempts.contains_key(&command.attempt);
        let refused = matches!(command.order, Order::Spawn(_)) && !machine.accepts && !known;
        let (answer, new) = if refused {
            (Answer::Rejected { reason: "disk full".to_owned(), retryable: true, counts: false }, None)
        } else {
            match machine.disk.accept(command) {
                Taken::New => (Answer::Persisted, Some(Box::new(command.clone()))),
                Taken::Known => (Answer::Persisted, None),
                Taken::Conflict => {
                    (Answer::Rejected { reason: "conflict".to_owned(), retryable: false, counts: true }, None)
                }
            }
        };
        let life = machine.lives;
        let answered = Answered { sequence: command.sequence, answer };
        self.note(|| format!("daemon {m} takes {} of {}: {:?}", command.sequence, command.attempt, answered.answer));
        let delay = self.between(100, 5_000);
        self.at(delay, Event::Took(m, life, link, Box::new((answered, new))));
    }

    /// What was written is answered, and done.
    pub(super) fn took(&mut self, m: usize, link: LinkId, answered: Answered, new: Option<Box<Command>>) {
        let attached = match self.process(m).map(|process| &process.session) {
            Some(Session::Attached(attached)) if attached.link == link => Some(attached.ready),
            _ => None,
        };
        if let Some(ready) = attached {
            if ready && matches!(answered.answer, Answer::Rejected { .. }) {
                self.heartbeat(m, link);
            }
            self.send_up(link, Up::Answer { sequence: answered.sequence, answer: answered.answer });
        }
        let Some(command) = new else { return };
        match command.order {
            Order::Spawn(_) => {
                if let Some(process) = self.process(m) {
                    process.found.remove(&command.attempt);
                }
                let row = self.machines[m].disk.journal.attempts.get(&command.attempt).cloned();
                if let Some(row) = row.filter(|row| row.state.is_live()) {
                    self.runner_starts(m, &row, false);
                }
            }
            Order::Cancel { .. } => self.stops(m, command.attempt, Why::Cancelled),
            Order::Checkpoint => self.checkpoints(m, command.attempt),
        }
    }

    // === bulk ===

    /// Takes a checkpoint, which begins its way to the server.
    pub(super) fn checkpoints(&mut self, m: usize, attempt: AttemptRef) {
        let (id, life) = (CheckpointId(self.uuid()), self.machines[m].lives);
        let delay = self.between(10_000, 5 * SECOND);
        self.at(delay, Event::Upload(m, life, attempt, Some(id)));
    }

    /// Something large is on its way: a checkpoint, or the pack of a result.
    pub(super) fn uploads(&mut self, m: usize, attempt: AttemptRef, checkpoint: Option<CheckpointId>) {
        let life = self.machines[m].lives;
        let wanted = checkpoint.is_some()
            || self.machines[m].disk.journal.attempts.get(&attempt).is_some_and(|row| !row.uploaded);
        if !wanted {
            return;
        }
        if !self.machines[m].is_reachable || !self.server.is_up() {
            let delay = self.between(SECOND, 30 * SECOND);
            return self.at(delay, Event::Upload(m, life, attempt, checkpoint));
        }
        self.bulk_arrives(m, life, attempt, checkpoint);
    }

    /// What became of it. Nothing, if the server died meanwhile: then it is asked again.
    pub(super) fn uploaded(&mut self, m: usize, attempt: AttemptRef, checkpoint: Option<CheckpointId>, stored: bool) {
        let life = self.machines[m].lives;
        self.note(|| format!("daemon {m} hears of what it has uploaded of {attempt}: stored {stored}"));
        match (stored, checkpoint) {
            (true, Some(id)) => self.truth.checkpoint_acknowledged(id),
            (true, None) => self.machines[m].disk.uploaded(attempt),
            (false, _) => {
                let delay = self.between(SECOND, 5 * SECOND);
                self.at(delay, Event::Upload(m, life, attempt, checkpoint));
            }
        }
    }

    /// A result whose pack the server does not have is on its way, from the report on and after every start.
    pub(super) fn uploads_results(&mut self, m: usize) {
        let life = self.machines[m].lives;
        let rows = self.machines[m].disk.journal.attempts.values().filter(|row| !row.uploaded);
        let attempts: Vec<_> = rows.map(|row| row.attempt).collect();
        for attempt in attempts {
            let delay = self.between(5_000, 5 * SECOND);
            self.at(delay, Event::Upload(m, life, attempt, None));
        }
    }
}

fn not_accepting(accepts: bool) -> String {
    if accepts { String::new() } else { "disk full".to_owned() }
}

fn word_of(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Keep => "verdict KEEP",
        Verdict::Cancel => "verdict CANCEL",
        Verdict::ResumeHere => "verdict RESUME_HERE",
        Verdict::Restore => "verdict RESTORE",
        Verdict::ReportAgain => "verdict REPORT_AGAIN",
        Verdict::Fenced => "verdict FENCED",
        Verdict::Salvage => "verdict SALVAGE",
        Verdict::Forget => "verdict FORGET",
    }
}

//! The daemons that are attached to this server, as the dispatcher needs them: what they offer, what they have, and where
//! their sessions listen. Made from what was committed, after it was committed; lost with the process and made again as the
//! daemons return.

use std::collections::{HashMap, HashSet};

use tokio::sync::mpsc;

use super::op::Push;
use crate::domain::{AttemptId, AttemptRef, DaemonId, Epoch, KeyId, OwnerId, daemon::Card};

/// The attached daemons.
#[derive(Debug, Default)]
pub struct Fleet {
    members: HashMap<DaemonId, Member>,
}

/// One attached daemon.
#[derive(Debug)]
pub struct Member {
    /// Whose it is.
    pub owner: OwnerId,
    /// Key it came with.
    pub key: KeyId,
    /// Its session.
    pub epoch: Epoch,
    /// What it offers.
    pub card: Card,
    /// It has executed the verdicts and sent what it owed.
    pub ready: bool,
    /// Gets no new work, by a person's wish.
    pub draining: bool,
    /// Its attempts that are not ENDED, and whether they are to end.
    pub live: HashMap<AttemptId, bool>,
    outbox: mpsc::Sender<Push>,
}

impl Member {
    pub(super) fn new(owner: OwnerId, key: KeyId, epoch: Epoch, card: Card, outbox: mpsc::Sender<Push>) -> Self {
        Self { owner, key, epoch, card, ready: false, draining: false, live: HashMap::new(), outbox }
    }

    /// Slots without an attempt.
    pub fn free(&self) -> u32 {
        self.card.slots.saturating_sub(u32::try_from(self.live.len()).unwrap_or(u32::MAX))
    }

    /// It may be given work.
    pub fn takes_work(&self) -> bool {
        self.ready && self.accepts_work()
    }

    /// It may be given work as soon as it is ready.
    pub(super) fn accepts_work(&self) -> bool {
        !self.draining && self.card.not_accepting.is_empty()
    }
}

impl Fleet {
    /// A daemon, if it is attached.
    pub fn get(&self, daemon: DaemonId) -> Option<&Member> {
        self.members.get(&daemon)
    }

    pub(super) fn get_mut(&mut self, daemon: DaemonId) -> Option<&mut Member> {
        self.members.get_mut(&daemon)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (DaemonId, &Member)> {
        self.members.iter().map(|(id, member)| (*id, member))
    }

    pub(super) fn attach(&mut self, daemon: DaemonId, member: Member) {
        if let Some(older) = self.members.insert(daemon, member) {
            let _ = older.outbox.try_send(Push::Superseded);
        }
    }

    /// A session of this daemon has ended; a newer one stays.
    pub fn detach(&mut self, daemon: DaemonId, epoch: Epoch) {
        if self.members.get(&daemon).is_some_and(|member| member.epoch == epoch) {
            self.members.remove(&daemon);
        }
    }

    /// Tells a daemon's session something. A session that does not keep up is dropped: its daemon attaches again and is
    /// brought up to date from the database.
    pub(super) fn push(&mut self, daemon: DaemonId, push: Push) {
        let Some(member) = self.members.get(&daemon) else { return };
        if member.outbox.try_send(push).is_err() {
            tracing::warn!(%daemon, "a session does not keep up; dropping it");
            self.members.remove(&daemon);
        }
    }

    /// Sessions opened with a key are told that it is no longer good.
    pub(super) fn revoked(&mut self, key: KeyId) {
        let daemons: Vec<_> = self.members.iter().filter(|(_, m)| m.key == key).map(|(id, _)| *id).collect();
        for daemon in daemons {
            self.push(daemon, Push::Unauthenticated);
            self.members.remove(&daemon);
        }
    }

    /// Of the attempts that a daemon says it has, those that are to end: asked for, or not known as live (any more).
    pub fn unwanted(&self, daemon: DaemonId, live: &[AttemptRef]) -> Vec<AttemptRef> {
        let Some(member) = self.members.get(&daemon) else { return Vec::new() };
        let unwanted = |attempt: &&AttemptRef| member.live.get(&attempt.id).copied().unwrap_or(true);
        live.iter().filter(unwanted).copied().collect()
    }

    /// Keys of the sessions, for checking that they are still good.
    pub fn keys(&self) -> HashSet<KeyId> {
        self.members.values().map(|member| member.key).collect()
    }
}

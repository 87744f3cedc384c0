//! What can go wrong, and to whom it happens.
//!
//! A fault is fired once, holds for a while, and heals by itself: a process is started again, a line opens, a clock is set
//! right. What never heals (a machine that is gone) is replaced. Firing answers whether it did happen; a run that ends with
//! a fault that never did has failed.

use std::time::Duration;

use serde::Serialize;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// `kill -9`, and started again.
    KillServer,
    /// Stopped and continued.
    StopServer,
    /// `kill -9`, and started again.
    KillDaemon,
    /// Stopped and continued.
    StopDaemon,
    /// `kill -9`.
    KillShim,
    /// Stopped and continued.
    StopShim,
    /// `kill -9` of the process that is the agent.
    KillAgent,
    /// Its whole group is stopped and continued.
    StopAgent,
    /// Server, daemons, shims and agents die in one instant.
    Power,
    /// Every process of a machine dies, and it comes back with another boot id.
    Reboot,
    /// Every process of a machine dies, its disk is gone; another machine comes in its place.
    MachineGone,
    /// A laptop is closed: everything on it stands still while the time goes on.
    Asleep,
    /// Every connection is reset.
    Cut,
    /// Connections are reset, and new ones refused.
    Refuse,
    /// Nothing gets through, and nobody is told.
    Stall,
    /// Everything comes late.
    Slow,
    /// Half of what is said arrives, then the connection is gone.
    Halve,
    /// The server hears nothing any more on connections that stay open.
    Deaf,
    /// The daemon hears nothing any more on connections that stay open.
    Mute,
    /// The answer to something is lost, so that it is said again.
    LoseAnswer,
    /// The daemon's journal is cut to a part of its length while it is down.
    JournalTruncated,
    /// The daemon's journal is overwritten while it is down.
    JournalGarbage,
    /// The daemon's journal is removed while it is down.
    JournalDeleted,
    /// The server's database is overwritten while it is down: it must refuse to start, and go on once a copy is put back.
    DatabaseSpoiled,
    /// The server's database is put back as it was some time ago.
    DatabaseOlder,
    /// `kill -9` of the database server.
    KillPostgres,
    /// Stopped and continued.
    StopPostgres,
    /// The daemon has no room for work.
    DiskFull,
    /// A worktree that is worked in is removed.
    WorktreeDeleted,
    /// The file is removed that makes it a worktree.
    GitFileDeleted,
    /// The server's clock jumps, and is set right later.
    ServerClock,
    /// A daemon's clock jumps, and is set right later.
    DaemonClock,
}

use Kind::{
    Asleep, Cut, DaemonClock, DatabaseOlder, DatabaseSpoiled, Deaf, DiskFull, GitFileDeleted, Halve, JournalDeleted,
    JournalGarbage, JournalTruncated, KillAgent, KillDaemon, KillPostgres, KillServer, KillShim, LoseAnswer,
    MachineGone, Mute, Power, Reboot, Refuse, ServerClock, Slow, Stall, StopAgent, StopDaemon, StopPostgres,
    StopServer, StopShim, WorktreeDeleted,
};

/// All of them.
const ALL: [Kind; 32] = [
    KillServer,
    KillDaemon,
    Cut,
    KillShim,
    LoseAnswer,
    KillAgent,
    StopDaemon,
    Reboot,
    KillPostgres,
    Deaf,
    JournalGarbage,
    MachineGone,
    StopServer,
    Refuse,
    DatabaseOlder,
    Mute,
    StopShim,
    ServerClock,
    Halve,
    Power,
    DiskFull,
    StopAgent,
    JournalDeleted,
    Stall,
    Asleep,
    DatabaseSpoiled,
    Slow,
    JournalTruncated,
    DaemonClock,
    StopPostgres,
    WorktreeDeleted,
    GitFileDeleted,
];

/// The faults that a run on this database may meet.
pub fn available(postgres: bool) -> Vec<Kind> {
    let is_possible = |kind: &Kind| match kind {
        DatabaseSpoiled | DatabaseOlder => !postgres,
        KillPostgres | StopPostgres => postgres,
        _ => true,
    };
    ALL.into_iter().filter(is_possible).collect()
}

impl Kind {
    /// Hits everybody rather than one machine.
    pub fn is_everywhere(self) -> bool {
        matches!(
            self,
            KillServer
                | StopServer
                | Power
                | DatabaseSpoiled
                | DatabaseOlder
                | KillPostgres
                | StopPostgres
                | ServerClock
        )
    }

    /// The session of whom it hits does not outlive it.
    pub fn ends_sessions(self) -> bool {
        matches!(
            self,
            KillServer
                | KillDaemon
                | Power
                | Reboot
                | Cut
                | Refuse
                | Deaf
                | Mute
                | JournalTruncated
                | JournalGarbage
                | JournalDeleted
                | DatabaseSpoiled
                | DatabaseOlder
                | DiskFull
        )
    }

    /// It needs an agent that runs on the machine it hits.
    pub fn needs_agent(self) -> bool {
        matches!(self, KillShim | StopShim | KillAgent | StopAgent | WorktreeDeleted | GitFileDeleted | Asleep)
    }
}

/// A fault of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// What.
    pub kind: Kind,
    /// Which machine, of those there are at that time.
    pub machine: usize,
    /// After so many further events of the contract.
    pub events: usize,
    /// And so long after the last of them.
    pub delay: Duration,
    /// How long it holds.
    pub hold: Duration,
    /// A number for what else has to be chosen.
    pub dice: u64,
}

//! How each fault is done, how it is seen to have happened, and how it heals.

use std::{
    fs,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    fault::{Kind, Planned},
    machine::{Machine, set_clock},
    run::{Fired, Miss, Run},
};
use crate::harness::proxy::{Line, Once};

/// How far clocks jump.
const JUMP: Duration = Duration::from_secs(3600);
/// An answer that nobody asks for is lost when the daemon attaches again, which it is made to.
const MADE_TO_SPEAK: Duration = Duration::from_secs(1);

/// How far a fault sets the server's clock ahead.
pub(super) fn sets_server_ahead(planned: &Planned) -> Option<Duration> {
    (planned.kind == Kind::ServerClock && !is_backwards(planned.dice)).then_some(JUMP)
}

fn is_backwards(dice: u64) -> bool {
    dice.is_multiple_of(2)
}

impl Run {
    /// Does it. `at` is the machine, where it is one.
    pub(super) async fn strike(&mut self, kind: Kind, at: Option<usize>, fired: &mut Fired) -> Result<(), Miss> {
        let dice = fired.planned.dice;
        match (kind, at) {
            (Kind::KillServer, _) => self.kill_server(),
            (Kind::StopServer, _) => self.world.server.signal(Signal::STOP),
            (Kind::Power, _) => {
                self.kill_server();
                for at in 0..self.machines.len() {
                    if !self.machines[at].gone {
                        self.kill_machine(at);
                    }
                }
            }
            (Kind::DatabaseSpoiled, _) => self.spoil_database().await?,
            (Kind::DatabaseOlder, _) => {
                self.kill_server();
                let database = self.database();
                without_log(&database);
                fs::copy(self.copy_of_database(), &database)?;
            }
            (Kind::KillPostgres | Kind::StopPostgres, _) => {
                let signal = if kind == Kind::KillPostgres { Signal::KILL } else { Signal::STOP };
                let hit = self.cluster.as_ref().map_or(0, |cluster| cluster.signal(signal));
                ensure(hit > 1, || "no Postgres was hit".to_owned())?;
            }
            (Kind::ServerClock, _) => set_clock(self.server_clock(), Some(JUMP), is_backwards(dice)),
            (_, Some(at)) => self.strike_machine(kind, at, fired)?,
            (_, None) => return Err(Miss::Broken("nobody to hit".to_owned())),
        }
        Ok(())
    }

    fn strike_machine(&mut self, kind: Kind, at: usize, fired: &mut Fired) -> Result<(), Miss> {
        let dice = fired.planned.dice;
        let machine = &self.machines[at];
        match kind {
            Kind::KillDaemon => self.kill_daemon(at),
            Kind::StopDaemon => self.world.daemon(&machine.name).signal(Signal::STOP),
            Kind::KillShim | Kind::StopShim | Kind::KillAgent | Kind::StopAgent => strike_process(machine, fired)?,
            Kind::Reboot => self.kill_machine(at),
            Kind::MachineGone => {
                self.kill_machine(at);
                let machine = &mut self.machines[at];
                machine.gone = true;
                fs::remove_dir_all(&machine.state)?;
            }
            Kind::Asleep => {
                // Only the daemon: its agents have ended since this machine was chosen.
                if machine.signal(Signal::STOP) <= 1 {
                    machine.signal(Signal::CONT);
                    return Err(Miss::NotNow);
                }
            }
            Kind::Cut => {
                if machine.wire.cut() == 0 {
                    return Err(Miss::NotNow);
                }
            }
            Kind::Refuse => {
                machine.wire.set(Line::Refusing);
                machine.wire.cut();
            }
            Kind::Stall => machine.wire.set(Line::Stalled),
            Kind::Slow => machine.wire.set(Line::Slow(Duration::from_millis(10 + dice % 90))),
            Kind::Deaf => machine.wire.set(Line::Deaf),
            Kind::Mute => machine.wire.set(Line::Mute),
            Kind::Halve => machine.wire.once(Once::Halve),
            Kind::LoseAnswer => machine.wire.once(Once::LoseAnswer),
            // A daemon that has just been started has none yet.
            Kind::JournalTruncated | Kind::JournalGarbage | Kind::JournalDeleted if !machine.journal().exists() => {
                return Err(Miss::NotNow);
            }
            Kind::JournalTruncated | Kind::JournalGarbage | Kind::JournalDeleted => {
                self.kill_daemon(at);
                let machine = &mut self.machines[at];
                machine.lost_something = true;
                damage(&machine.journal(), kind, dice)?;
            }
            Kind::DiskFull => {
                self.kill_daemon(at);
                self.machines[at].full = true;
                self.start_daemon(at);
            }
            Kind::WorktreeDeleted | Kind::GitFileDeleted => {
                let agents = machine.agents();
                let agent = pick(&agents, dice).ok_or(Miss::NotNow)?;
                let worktree = fs::read_link(format!("/proc/{}/cwd", agent.pid)).map_err(|_| Miss::NotNow)?;
                if kind == Kind::WorktreeDeleted {
                    fs::remove_dir_all(worktree)?;
                } else {
                    fs::remove_file(worktree.join(".git"))?;
                }
            }
            Kind::DaemonClock => set_clock(&machine.clock, Some(JUMP), is_backwards(dice)),
            Kind::KillServer
            | Kind::StopServer
            | Kind::Power
            | Kind::DatabaseSpoiled
            | Kind::DatabaseOlder
            | Kind::KillPostgres
            | Kind::StopPostgres
            | Kind::ServerClock => return Err(Miss::Broken("it is not for one machine".to_owned())),
        }
        Ok(())
    }

    /// Ends it; false where it has not been seen to do anything yet, and has to go on.
    pub(super) async fn heal(&mut self, index: usize) -> Result<bool, String> {
        let planned = self.fired[index].planned;
        let at = self.machines.iter().position(|machine| self.fired[index].hits(&machine.name));
        match planned.kind {
            Kind::KillServer | Kind::DatabaseOlder => self.start_server(planned.kind == Kind::DatabaseOlder),
            Kind::DatabaseSpoiled => {
                let database = self.database();
                for suffix in ["", "-wal"] {
                    let kept = with_suffix(self.copy_of_database(), &format!(".kept{suffix}"));
                    if kept.exists() {
                        fs::rename(kept, with_suffix(&database, suffix)).map_err(|error| error.to_string())?;
                    }
                }
                self.start_server(false);
            }
            Kind::StopServer => self.world.server.signal(Signal::CONT),
            Kind::Power => {
                self.start_server(false);
                for at in 0..self.machines.len() {
                    if self.fired[index].hits(&self.machines[at].name) {
                        self.boot(at);
                    }
                }
            }
            Kind::KillPostgres => {
                let cluster = self.cluster.as_mut().ok_or("no Postgres of its own")?;
                tokio::task::block_in_place(|| cluster.restart())?;
            }
            Kind::StopPostgres => {
                self.cluster.as_ref().ok_or("no Postgres of its own")?.signal(Signal::CONT);
            }
            Kind::ServerClock | Kind::DaemonClock => self.set_clocks_right(),
            Kind::MachineGone => {
                let name = format!("m{}", self.machines.len());
                let slots = at.map_or(2, |at| self.machines[at].slots);
                let machine = Machine::new(&self.world, &name, slots).await;
                self.machines.push(machine);
                self.start_daemon(self.machines.len() - 1);
            }
            _ => {
                let Some(at) = at else { return Err("the machine it hit is not known".to_owned()) };
                return self.heal_machine(index, at);
            }
        }
        Ok(true)
    }

    fn heal_machine(&mut self, index: usize, at: usize) -> Result<bool, String> {
        let planned = self.fired[index].planned;
        let since = self.fired[index].at.elapsed();
        let harm = self.harm_since(index);
        let machine = &self.machines[at];
        match planned.kind {
            Kind::KillDaemon | Kind::JournalTruncated | Kind::JournalGarbage | Kind::JournalDeleted => {
                self.start_daemon(at);
            }
            Kind::Reboot => self.boot(at),
            Kind::StopDaemon => self.world.daemon(&machine.name).signal(Signal::CONT),
            Kind::StopShim => self.fired[index].wounds().iter().for_each(|found| found.signal(Signal::CONT)),
            Kind::StopAgent => self.fired[index].wounds().iter().for_each(|found| group(found.pid, Signal::CONT)),
            Kind::Asleep => {
                machine.signal(Signal::CONT);
            }
            Kind::Cut | Kind::KillShim | Kind::KillAgent | Kind::WorktreeDeleted | Kind::GitFileDeleted => {}
            Kind::Refuse | Kind::Stall | Kind::Slow | Kind::Deaf | Kind::Mute => {
                if harm == 0 {
                    return Ok(false);
                }
                machine.wire.set(Line::Open);
            }
            Kind::Halve | Kind::LoseAnswer => {
                if harm == 0 {
                    if since > planned.hold + MADE_TO_SPEAK {
                        machine.wire.cut();
                    }
                    return Ok(false);
                }
            }
            Kind::DiskFull => {
                let says = |daemon: &makima::wire::pb::Daemon| {
                    daemon.name == machine.name && daemon.not_accepting.starts_with("short of disk")
                };
                if !self.daemons.iter().any(says) {
                    return Ok(false);
                }
                self.kill_daemon(at);
                self.machines[at].full = false;
                self.start_daemon(at);
            }
            kind => return Err(format!("{kind:?} is not of one machine")),
        }
        Ok(true)
    }

    // === what faults are made of ===

    fn kill_server(&mut self) {
        self.set_server_up(false);
        self.world.kill_server();
    }

    fn start_server(&mut self, anew: bool) {
        self.world.launch_server();
        self.set_server_up(true);
        if anew {
            self.watch_again();
        }
    }

    fn kill_daemon(&mut self, at: usize) {
        self.machines[at].up = false;
        self.world.kill_daemon(&self.machines[at].name);
    }

    fn start_daemon(&mut self, at: usize) {
        self.world.launch_daemon_with(&self.machines[at].name, self.machines[at].options());
        self.machines[at].up = true;
    }

    fn kill_machine(&mut self, at: usize) {
        self.machines[at].up = false;
        // The daemon first, so that it does not report what dies next.
        self.world.kill_daemon(&self.machines[at].name);
        self.machines[at].kill_all();
    }

    fn boot(&mut self, at: usize) {
        self.machines[at].boots += 1;
        self.start_daemon(at);
    }

    /// A database that is not one any more is refused with a clear word, and is not touched.
    async fn spoil_database(&mut self) -> Result<(), Miss> {
        self.kill_server();
        let database = self.database();
        for suffix in ["", "-wal"] {
            let file = with_suffix(&database, suffix);
            if file.exists() {
                fs::copy(&file, with_suffix(self.copy_of_database(), &format!(".kept{suffix}")))?;
            }
        }
        without_log(&database);
        let spoiled = vec![0xa5; 64 << 10];
        fs::write(&database, &spoiled)?;
        self.world.launch_server();
        let status = self.world.server.exit().await;
        let said = self.world.server.tail();
        ensure(!status.success() && said.contains("makima.sqlite"), || {
            format!("a server on a spoiled database ended with {status} and said:\n{said}")
        })?;
        ensure(fs::read(&database)? == spoiled, || "a spoiled database was written to".to_owned())
    }
}

fn strike_process(machine: &Machine, fired: &mut Fired) -> Result<(), Miss> {
    let kind = fired.planned.kind;
    let all = if matches!(kind, Kind::KillShim | Kind::StopShim) { machine.shims() } else { machine.agents() };
    let found = pick(&all, fired.planned.dice).ok_or(Miss::NotNow)?.clone();
    match kind {
        Kind::KillShim | Kind::KillAgent => {
            found.kill();
            let begun = Instant::now();
            while found.is_alive() {
                ensure(begun.elapsed() < Duration::from_secs(5), || format!("{found:?} does not die"))?;
                std::thread::yield_now();
            }
        }
        Kind::StopShim => found.signal(Signal::STOP),
        _ => group(found.pid, Signal::STOP),
    }
    fired.wound(found);
    Ok(())
}

fn damage(journal: &Path, kind: Kind, dice: u64) -> Result<(), Miss> {
    let length = fs::metadata(journal)?.len();
    match kind {
        Kind::JournalTruncated => {
            fs::OpenOptions::new().write(true).open(journal)?.set_len(length * (dice % 100) / 100)?;
            if dice.is_multiple_of(2) {
                without_log(journal);
            }
        }
        Kind::JournalGarbage => {
            without_log(journal);
            let garbage: Vec<u8> = (0..length).map(|at| (at.wrapping_mul(dice | 1) >> 7).to_le_bytes()[0]).collect();
            fs::File::create(journal)?.write_all(&garbage)?;
        }
        _ => {
            without_log(journal);
            fs::remove_file(journal)?;
        }
    }
    Ok(())
}

/// Removes the write-ahead log of a SQLite database.
fn without_log(database: &Path) {
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(with_suffix(database, suffix));
    }
}

fn with_suffix(path: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn group(leader: u32, signal: Signal) {
    let pid = i32::try_from(leader).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
    let _ = rustix::process::kill_process_group(pid, signal);
}

fn pick<T>(all: &[T], dice: u64) -> Option<&T> {
    let at = usize::try_from(dice % u64::try_from(all.len().max(1)).expect("few")).expect("few");
    all.get(at)
}

fn ensure(holds: bool, seen: impl FnOnce() -> String) -> Result<(), Miss> {
    if holds { Ok(()) } else { Err(Miss::Broken(seen())) }
}

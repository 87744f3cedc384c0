//! The first stage: the process that starts the agent, waits for it, and sees everything of it dead. One thread, one `poll`.
//!
//! ```text
//!   Running ──terminate, wall time──> Ending: TERM to the group ── grace ──> KILL
//!      └──────agent exits───────────> Ending: TERM to what is left ── grace ──> KILL ── nothing left ──> exit.json
//! ```

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{net::UnixListener, process::CommandExt as _},
    },
    path::Path,
    process::{ChildStdin, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, flock},
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process_group, pidfd_open, set_child_subreaper, setsid, wait,
    },
};

use super::{
    NONCE, STAGE,
    client::Client,
    launch,
    protocol::{Ready, Reply, Request, Start, VERSION},
    record::Room,
    socket,
};
use crate::{
    daemon::{
        attempt_dir::{self, AttemptDir, EndReason, ExitRecord, Manifest, Started, Stdin, open_private},
        process::{self, Process},
        sweep::{self, Leader, Target},
    },
    runtime::clock,
};

/// Connections at once: the daemon, and a new daemon while the old one's connection is being torn down.
const MAX_CLIENTS: usize = 8;
/// Bytes of input that wait for an agent that does not read; more is refused.
const MAX_PENDING_INPUT: usize = 4 * 1024 * 1024;
/// How often orphans are reaped while nothing happens.
const IDLE_TICK: Duration = Duration::from_secs(5);
/// How often the dying are looked at: short at first, for most die at once.
const ENDING_TICKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// How long somebody else may hold the lock; longer than a look takes.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Why a shim does not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Dir(#[from] attempt_dir::Error),
    #[error("take the lock: another shim holds it")]
    Locked,
    #[error("take the lock")]
    Lock(#[source] io::Error),
    #[error("start: the daemon does not want this start any more")]
    Stale,
    #[error("start: the agent of this directory was started before")]
    Repeated,
    #[error("listen at {}", socket::NAME)]
    Socket(#[source] io::Error),
    #[error("start the agent's process")]
    Spawn(#[source] io::Error),
    #[error("run `makima shim`")]
    Process(#[from] process::Error),
    #[error("wait for events")]
    Poll(#[source] io::Error),
}

/// The whole life of a shim.
pub fn run(dir: &Path) -> Result<(), Error> {
    let dir = AttemptDir::open(dir)?;
    let lock = open_private(OpenOptions::new().write(true).create(true), &dir.path().join("lock"))?;
    take(&lock)?;
    let nonce = std::env::var(NONCE).unwrap_or_default();
    let start: Option<Start> = dir.read("start.json")?;
    let Some(start) = start.filter(|start| !nonce.is_empty() && start.nonce == nonce) else {
        return Err(Error::Stale);
    };
    if start.launched || dir.started()?.is_some() || dir.exit()?.is_some() {
        return Err(Error::Repeated);
    }
    // A group leader has a session already; then it shares that of whoever started it.
    let _ = setsid();
    // Without it orphans of the agent go to init, where the marker still finds them.
    let _ = set_child_subreaper(Some(getpid()));
    let listener = socket::bind(dir.path()).map_err(Error::Socket)?;
    listener.set_nonblocking(true).map_err(Error::Socket)?;
    let manifest = dir.manifest()?;
    let room = Room::keep(&dir)?;
    let mut keeper = Keeper::start(dir, &manifest, nonce, listener)?;
    say(&Ready::Started);
    let record = keeper.keep(room)?;
    keeper.farewell(&record);
    drop(lock);
    Ok(())
}

/// Takes the lock. Somebody who only looks whether it is held can be in the way for a moment.
fn take(lock: &File) -> Result<(), Error> {
    let begun = Instant::now();
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Locked),
            Err(error) => return Err(Error::Lock(error.into())),
        }
    }
}

/// Tells the daemon that started this shim, and waits on the other end of standard output, how it went.
pub fn say(ready: &Ready) {
    let mut line = serde_json::to_string(ready).unwrap_or_default();
    line.push('\n');
    // Nobody may be listening any more.
    let _ = io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush());
}

/// The agent and everybody who wants something of it.
struct Keeper {
    dir: AttemptDir,
    nonce: String,
    listener: UnixListener,
    clients: Vec<Client>,
    agent: Agent,
    target: Target,
    phase: Phase,
    deadline: Option<Instant>,
    grace: Duration,
    output: File,
    start: Started,
    manifest: Manifest,
}

/// The agent's process.
struct Agent {
    pid: Pid,
    fd: Option<OwnedFd>,
    stdin: Option<ChildStdin>,
    pending: VecDeque<u8>,
    no_more_input: bool,
    end: Option<(Option<i32>, u32)>,
}

enum Phase {
    Running,
    Ending { reason: EndReason, kill_at: Instant, tick: Duration, told: Vec<(i32, u64)> },
}

impl Keeper {
    fn start(dir: AttemptDir, manifest: &Manifest, nonce: String, listener: UnixListener) -> Result<Self, Error> {
        let output = dir.append_output()?;
        let output_start = output.metadata().map_or(0, |file| file.len());
        let shim_pid = getpid().as_raw_pid();
        dir.write("start.json", &Start { nonce: nonce.clone(), launched: true })?;
        let process = Process::new("/proc/self/exe")
            .arg("shim")
            .arg(dir.path())
            .env(STAGE, shim_pid.to_string())
            .env(sweep::MARKER, manifest.attempt.id.to_string())
            .output_to(output.try_clone().map_err(Error::Spawn)?);
        let mut command = process.into_std().map_err(Error::Spawn)?;
        let pipe = manifest.agent.as_ref().is_some_and(|agent| agent.stdin == Stdin::Pipe);
        command.stdin(if pipe { Stdio::piped() } else { Stdio::null() }).process_group(0);
        let mut child = command.spawn().map_err(Error::Spawn)?;
        let pid = Pid::from_child(&child);
        let stdin = child.stdin.take();
        if let Some(stdin) = &stdin {
            let _ = rustix::fs::fcntl_setfl(stdin, rustix::fs::OFlags::NONBLOCK);
        }
        let agent = Agent {
            pid,
            fd: pidfd_open(pid, PidfdFlags::empty()).ok(),
            stdin,
            pending: VecDeque::new(),
            no_more_input: false,
            end: None,
        };
        // It can have become a zombie, which has no entry, but it cannot have been reaped: its number is its own.
        let found = sweep::find(pid.as_raw_pid());
        let leader = Leader {
            pid: pid.as_raw_pid(),
            session: found.map_or(shim_pid, |found| found.session),
            started: found.map_or(0, |found| found.started),
            boot: sweep::boot_id().unwrap_or_default(),
        };
        let start =
            Started { shim_pid, agent_pid: pid.as_raw_pid(), at: clock::now(), output_start, leader: leader.clone() };
        if let Err(error) = dir.write("agent.json", &start) {
            let _ = kill_process_group(pid, Signal::KILL);
            return Err(error.into());
        }
        let target = Target { attempt: manifest.attempt.id, leader: Some(leader), ancestor: Some(shim_pid) };
        let deadline = manifest.spawn.wall_time.and_then(|wall| Instant::now().checked_add(wall));
        Ok(Self {
            dir,
            nonce,
            listener,
            clients: Vec::new(),
            agent,
            target,
            phase: Phase::Running,
            deadline,
            grace: manifest.spawn.grace,
            output,
            start,
            manifest: manifest.clone(),
        })
    }

    /// Until nothing of the agent is left and that is on the disk.
    fn keep(&mut self, room: Room) -> Result<ExitRecord, Error> {
        loop {
            self.wait_for_events()?;
            self.accept();
            self.serve();
            self.feed_agent();
            self.reap();
            if self.advance() {
                return self.conclude(room);
            }
        }
    }

    fn wait_for_events(&self) -> Result<(), Error> {
        let wait = match &self.phase {
            Phase::Ending { tick, .. } => *tick,
            // Without a descriptor that tells of the agent's end it has to be asked.
            Phase::Running if self.agent.fd.is_none() => ENDING_TICKS.1,
            Phase::Running => {
                let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                left.map_or(IDLE_TICK, |left| left.min(IDLE_TICK))
            }
        };
        let timeout = Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        if let Some(fd) = self.agent.fd.as_ref().filter(|_| self.agent.end.is_none()) {
            fds.push(PollFd::new(fd, PollFlags::IN));
        }
        for client in &self.clients {
            let out = if client.out.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::new(&client.stream, PollFlags::IN | out));
        }
        if let Some(stdin) = self.agent.stdin.as_ref().filter(|_| !self.agent.pending.is_empty()) {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::OUT));
        }
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(Error::Poll(error.into())),
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.clients.len() == MAX_CLIENTS {
                self.clients.remove(0);
            }
            self.clients.push(Client::new(stream));
        }
    }

    fn serve(&mut self) {
        let mut clients = std::mem::take(&mut self.clients);
        for client in &mut clients {
            for line in client.read_lines() {
                let reply = match serde_json::from_slice(&line) {
                    Ok(request) => self.answer(client.known, request),
                    Err(error) => Reply::Refused { message: format!("not a request: {error}") },
                };
                client.known |= matches!(reply, Reply::Hello { .. });
                client.send(&reply);
            }
            client.flush();
        }
        clients.retain(|client| !client.closed);
        self.clients = clients;
    }

    fn answer(&mut self, known: bool, request: Request) -> Reply {
        let ending = matches!(self.phase, Phase::Ending { .. });
        match request {
            Request::Hello { nonce, .. } if nonce == self.nonce => {
                Reply::Hello { version: VERSION, nonce: self.nonce.clone(), ending }
            }
            Request::Hello { .. } => Reply::Refused { message: "another nonce".into() },
            _ if !known => Reply::Refused { message: "say hello first".into() },
            Request::Status => {
                let alive = sweep::survivors(&self.target).map_or(0, |found| found.len());
                Reply::Status { ending, alive }
            }
            Request::Terminate { grace_ms } => {
                self.end(EndReason::Terminated, Duration::from_millis(grace_ms));
                Reply::Ok
            }
            Request::Input { bytes, last } => {
                if self.agent.stdin.is_none() || self.agent.no_more_input {
                    Reply::Refused { message: "the agent reads nothing".into() }
                } else if self.agent.pending.len() + bytes.len() > MAX_PENDING_INPUT {
                    Reply::Refused { message: "the agent does not read what was sent before".into() }
                } else {
                    self.agent.pending.extend(bytes);
                    self.agent.no_more_input = last;
                    Reply::Ok
                }
            }
        }
    }

    fn feed_agent(&mut self) {
        let Some(stdin) = &mut self.agent.stdin else { return };
        while !self.agent.pending.is_empty() {
            match stdin.write(self.agent.pending.as_slices().0) {
                Ok(written) => drop(self.agent.pending.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.agent.pending.clear();
                    self.agent.stdin = None;
                    return;
                }
            }
        }
        if self.agent.no_more_input {
            self.agent.stdin = None;
        }
    }

    /// Takes in the agent's end, and orphans that came here when their parents died.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == self.agent.pid {
                let signal = status.terminating_signal().map_or(0, i32::unsigned_abs);
                self.agent.end = Some((status.exit_status(), signal));
            }
        }
    }

    /// Begins the end: TERM to the agent's group now, and at the latest after `grace` KILL to everything. The first reason
    /// stays; a later wish can only shorten the grace.
    fn end(&mut self, reason: EndReason, grace: Duration) {
        let now = Instant::now();
        let new_kill_at = now.checked_add(grace).unwrap_or(now);
        match &mut self.phase {
            Phase::Ending { kill_at, .. } => *kill_at = new_kill_at.min(*kill_at),
            Phase::Running => {
                if self.agent.end.is_none() {
                    let _ = kill_process_group(self.agent.pid, Signal::TERM);
                    let _ = kill_process_group(self.agent.pid, Signal::CONT);
                }
                self.phase = Phase::Ending { reason, kill_at: new_kill_at, tick: ENDING_TICKS.0, told: Vec::new() };
            }
        }
    }

    /// Moves the end on; answers whether everything is over.
    fn advance(&mut self) -> bool {
        let now = Instant::now();
        if matches!(self.phase, Phase::Running) {
            if self.agent.end.is_some() {
                let reason = self.start_error().unwrap_or(EndReason::Exited);
                self.end(reason, self.grace);
            } else if self.deadline.is_some_and(|deadline| now >= deadline) {
                self.end(EndReason::Timeout, self.grace);
            }
        }
        let Phase::Ending { kill_at, tick, told, .. } = &mut self.phase else { return false };
        // Not being able to look is not the same as seeing nothing: it is tried again.
        let Ok(alive) = sweep::survivors(&self.target) else { return false };
        if alive.is_empty() && self.agent.end.is_some() {
            // Once more: one that forks may hide between two entries of the process table.
            return sweep::survivors(&self.target).is_ok_and(|alive| alive.is_empty());
        }
        for process in &alive {
            if now >= *kill_at {
                sweep::signal(process, Signal::KILL);
            } else if self.agent.end.is_some() && !told.contains(&(process.pid, process.started)) {
                // The agent itself was asked through its group; its helpers are its own until it is gone.
                told.push((process.pid, process.started));
                sweep::signal(process, Signal::TERM);
                sweep::signal(process, Signal::CONT);
            }
        }
        *tick = (*tick * 2).min(ENDING_TICKS.1);
        false
    }

    fn start_error(&self) -> Option<EndReason> {
        let message = std::fs::read_to_string(self.dir.path().join(launch::ERROR_FILE)).ok()?;
        Some(EndReason::StartFailed { message })
    }

    /// Output, then record, then directory.
    fn conclude(&mut self, room: Room) -> Result<ExitRecord, Error> {
        let reason = match &self.phase {
            Phase::Ending { reason, .. } => reason.clone(),
            Phase::Running => EndReason::Exited,
        };
        let (exit_code, signal) = self.agent.end.unwrap_or_default();
        // A failing disk loses output, which is bad; not to tell the end would be worse.
        if let Err(error) = self.output.sync_all() {
            eprintln!("makima shim: sync the output: {error}");
        }
        let record = ExitRecord {
            attempt: self.manifest.attempt,
            reason,
            exit_code,
            signal,
            output_bytes: self.output.metadata().map_or(0, |file| file.len()),
            output_start: self.start.output_start,
            started: self.start.at,
            ended: clock::now(),
        };
        room.fill(&record)?;
        Ok(record)
    }

    /// Tells everybody who is connected; the end of the connection says the same.
    fn farewell(&mut self, record: &ExitRecord) {
        for client in &mut self.clients {
            if client.known {
                client.send(&Reply::Ended { record: record.clone() });
                client.flush();
            }
        }
        let _ = std::fs::remove_file(self.dir.path().join(socket::NAME));
    }
}

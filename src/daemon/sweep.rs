//! Finding and ending what is left of an attempt: once a sweep has answered, no process of the attempt is alive.
//!
//! A process belongs to an attempt when any of these holds, and then its children do too:
//!
//! ```text
//!   marker       its environment says MAKIMA_ATTEMPT=<id>       survives setsid, double forks, the shim's death
//!   group        it is in the agent's process group             survives a cleared environment
//!   descendant   it descends from the living shim, which        survives both (used by the shim itself)
//!                adopts orphans (PR_SET_CHILD_SUBREAPER)
//! ```
//!
//! Numbers are used again by the kernel, so a group counts only with the session, boot and start time it was made with, and
//! a signal goes to a process through a file descriptor that was compared with what was found. Zombies are dead.
//! Linux only: this module is the one that reads `/proc`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _},
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::{domain::AttemptId, runtime::hooks};

/// Variable that marks every process of an attempt; its value is the attempt's id.
pub const MARKER: &str = "MAKIMA_ATTEMPT";
/// How long processes are killed again and again before they are reported as undying (stuck in the kernel).
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of an environment that are looked at; the kernel allows a few MiB at most.
const MAX_ENVIRONMENT: u64 = 8 * 1024 * 1024;

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose marker.
    pub attempt: AttemptId,
    /// The group the agent was started as, if it was.
    pub leader: Option<Leader>,
    /// A living process whose descendants count too; it does not count itself.
    pub ancestor: Option<i32>,
}

/// The first process of an agent's group, so that its number, used again by somebody else, is not taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Process and group id.
    pub pid: i32,
    /// Session.
    pub session: i32,
    /// Start time in clock ticks after boot.
    pub started: u64,
    /// The boot, and the process namespace: a container that is started again counts its processes from 1 again.
    pub boot: String,
}

/// A living process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// Start time in clock ticks after boot.
    pub started: u64,
}

/// Why a sweep did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Processes that do not die.
    #[error("processes {pids:?} do not die")]
    Unkillable {
        /// Which.
        pids: Vec<i32>,
    },
    /// The process table.
    #[error("read the process table")]
    Proc(#[source] io::Error),
}

/// Ends everything of the attempt: TERM, grace, KILL, until nothing is left. Answers how many processes there were.
pub async fn kill_all(target: &Target, grace: Duration) -> Result<usize, Error> {
    let target = target.clone();
    blocking(move || kill_all_blocking(&target, grace)).await
}

/// Something of the attempt is alive.
pub async fn is_anything_alive(target: &Target) -> Result<bool, Error> {
    let target = target.clone();
    blocking(move || Ok(!survivors(&target)?.is_empty())).await
}

/// [`kill_all`] for a thread that may wait.
pub fn kill_all_blocking(target: &Target, grace: Duration) -> Result<usize, Error> {
    let begun = Instant::now();
    let mut seen = BTreeSet::new();
    let mut pause = Duration::from_millis(5);
    let mut empty_scans = 0;
    loop {
        let alive = survivors(target)?;
        // One empty look is not enough: a process that forks may hide between two entries of the process table.
        empty_scans = if alive.is_empty() { empty_scans + 1 } else { 0 };
        if empty_scans == 2 {
            return Ok(seen.len());
        }
        let waited = begun.elapsed();
        for process in &alive {
            let is_new = seen.insert((process.pid, process.started));
            if waited >= grace {
                signal(process, Signal::KILL);
            } else if is_new {
                signal(process, Signal::TERM);
                // A stopped process does not hear TERM before it goes on.
                signal(process, Signal::CONT);
            }
        }
        if waited >= grace + KILL_PATIENCE && !alive.is_empty() {
            return Err(Error::Unkillable { pids: alive.iter().map(|process| process.pid).collect() });
        }
        if !alive.is_empty() {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}

/// Everything of the attempt that is alive, except the caller.
pub fn survivors(target: &Target) -> Result<Vec<Found>, Error> {
    let all = processes().map_err(Error::Proc)?;
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let ours = target.attempt.to_string();
    let leader = target.leader.as_ref().filter(|leader| leader.is_known(&all));
    let mut belong: BTreeSet<i32> = all
        .iter()
        .filter(|process| process.pid != own && Some(process.pid) != target.ancestor)
        .filter(|process| match marker(process.pid) {
            Some(marker) => marker == ours.as_bytes(),
            None => leader.is_some_and(|leader| leader.leads(process)),
        })
        .map(|process| process.pid)
        .collect();
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for process in &all {
        children.entry(process.parent).or_default().push(process.pid);
    }
    let mut parents: Vec<i32> = belong.iter().copied().chain(target.ancestor).collect();
    while let Some(parent) = parents.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            if *child != own && Some(*child) != target.ancestor && belong.insert(*child) {
                parents.push(*child);
            }
        }
    }
    Ok(all.into_iter().filter(|process| belong.contains(&process.pid)).collect())
}

/// Sends a signal to a process, if it is still the one that was found.
pub fn signal(process: &Found, signal: Signal) {
    let Some(pid) = Pid::from_raw(process.pid) else { return };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => {
            if find(process.pid).is_some_and(|found| found.started == process.started) {
                let _ = pidfd_send_signal(fd, signal);
            }
        }
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            if find(process.pid).is_some_and(|found| found.started == process.started) {
                let _ = kill_process(pid, signal);
            }
        }
        // It is gone.
        Err(_) => {}
    }
}

/// The living process with this id.
pub fn find(pid: i32) -> Option<Found> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Some process may be using this file of a git directory: it has it open, or is a git that works there. A git that waits for
/// its editor has written its lock file and closed it.
pub fn is_file_used(path: &Path) -> bool {
    let root = path.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == ".git")).and_then(Path::parent);
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let is_user = |process: &Found| {
        let at = Path::new("/proc").join(process.pid.to_string());
        let works_there = || {
            let name = fs::read_to_string(at.join("comm")).unwrap_or_default();
            let cwd = fs::read_link(at.join("cwd")).ok();
            name.starts_with("git") && root.zip(cwd).is_some_and(|(root, cwd)| cwd.starts_with(root))
        };
        let fds = || fs::read_dir(at.join("fd")).into_iter().flatten().flatten();
        works_there() || fds().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path))
    };
    // What cannot be seen may be.
    processes().map_or(true, |all| all.iter().any(|process| process.pid != own && is_user(process)))
}

/// This boot of the machine, and this namespace of process numbers.
pub fn boot_id() -> io::Result<String> {
    let boot = match hooks::boot() {
        Some(boot) => boot,
        None => fs::read_to_string("/proc/sys/kernel/random/boot_id")?,
    };
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    Ok(format!("{} {}", boot.trim(), namespace.display()))
}

// === impl Leader ===

impl Leader {
    /// The leader of a group that was just made.
    pub fn of(process: &Found) -> io::Result<Self> {
        Ok(Self { pid: process.pid, session: process.session, started: process.started, boot: boot_id()? })
    }

    /// Its number has not gone to somebody else, as far as one can tell.
    fn is_known(&self, all: &[Found]) -> bool {
        boot_id().is_ok_and(|boot| boot == self.boot)
            && all.iter().find(|process| process.pid == self.pid).is_none_or(|it| it.started == self.started)
    }

    fn leads(&self, process: &Found) -> bool {
        process.group == self.pid && process.session == self.session && process.started >= self.started
    }
}

/// Every living process. One that cannot be read has ended meanwhile.
fn processes() -> io::Result<Vec<Found>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if let Some(found) = name.to_str().and_then(|name| name.parse().ok()).and_then(find) {
            all.push(found);
        }
    }
    Ok(all)
}

/// `pid (name) state parent group session ...`; the name may hold anything, the last parenthesis ends it.
fn parse_stat(stat: &str) -> Option<Found> {
    let pid = stat.split(' ').next()?.parse().ok()?;
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X" | "x") {
        return None;
    }
    Some(Found {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// The attempt a process says it belongs to. One whose environment may not be read belongs to another user.
fn marker(pid: i32) -> Option<Vec<u8>> {
    let mut environment = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(MAX_ENVIRONMENT).read_to_end(&mut environment).ok()?;
    environment.split(|byte| *byte == 0).find_map(|variable| {
        let value = variable.strip_prefix(MARKER.as_bytes())?.strip_prefix(b"=")?;
        Some(value.to_owned())
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => Err(Error::Proc(io::Error::other(error))),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Stdio};

    use uuid::Uuid;

    use super::*;
    use crate::daemon::process::Process;

    fn start(attempt: AttemptId, script: &str) -> Child {
        let mut command = Process::new("sh").args(["-c", script]).env(MARKER, attempt.to_string()).into_std().unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn target(attempt: AttemptId) -> Target {
        Target { attempt, leader: None, ancestor: None }
    }

    fn first_line(child: &mut Child) -> String {
        use std::io::BufRead as _;
        let mut line = String::new();
        io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// A process that left its session and group, one that ignores TERM and one that is stopped all end; another attempt's
    /// process does not notice.
    #[tokio::test]
    async fn everything_marked_ends_and_nothing_else() {
        let (ours, theirs) = (AttemptId(Uuid::new_v4()), AttemptId(Uuid::new_v4()));
        let mut one =
            start(ours, "trap '' TERM; setsid sleep 1000 & (sleep 1000; :) & echo up; while :; do wait; sleep 1; done");
        let mut two = start(ours, "echo up; kill -STOP $$; sleep 1000");
        let mut other = start(theirs, "echo up; exec sleep 1000");
        for child in [&mut one, &mut two, &mut other] {
            assert_eq!(first_line(child), "up");
        }
        assert!(is_anything_alive(&target(ours)).await.unwrap());
        let killed = kill_all(&target(ours), Duration::from_millis(300)).await.unwrap();
        assert!(killed >= 4, "{killed}");
        assert!(!is_anything_alive(&target(ours)).await.unwrap());
        assert!(is_anything_alive(&target(theirs)).await.unwrap());
        assert_eq!(kill_all(&target(theirs), Duration::ZERO).await.unwrap(), 1);
        for mut child in [one, two, other] {
            child.wait().unwrap();
        }
    }

    /// A group is found without its marker; a leader of another boot, or that started later, is somebody else.
    #[test]
    fn a_group_is_known_by_more_than_its_number() {
        use std::os::unix::process::CommandExt as _;
        let attempt = AttemptId(Uuid::new_v4());
        let mut command = Process::new("sleep").arg("1000").env_remove(MARKER).into_std().unwrap();
        let mut child = command.process_group(0).spawn().unwrap();
        let leader = Leader::of(&find(i32::try_from(child.id()).unwrap()).unwrap()).unwrap();
        let with = |leader: Leader| Target { leader: Some(leader), ..target(attempt) };
        assert_eq!(survivors(&with(leader.clone())).unwrap().len(), 1);
        for stranger in [
            Leader { boot: "another".into(), ..leader.clone() },
            Leader { started: leader.started + 1, ..leader.clone() },
            Leader { session: 1, ..leader.clone() },
        ] {
            assert_eq!(survivors(&with(stranger)).unwrap(), Vec::new());
        }
        assert_eq!(kill_all_blocking(&with(leader), Duration::from_secs(10)).unwrap(), 1);
        child.wait().unwrap();
    }

    #[test]
    fn names_do_not_confuse_the_reader() {
        let stat = "17 (a) b (c) S 1 16 15 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        let found = Found { pid: 17, parent: 1, group: 16, session: 15, started: 4242 };
        assert_eq!(parse_stat(stat), Some(found));
        assert_eq!(parse_stat(&stat.replace(") S", ") Z")), None);
    }
}

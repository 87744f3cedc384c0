//! How the machine is: whether there is room for new work, and how busy it is. Looked at when somebody asks, at most once a
//! tenth of a second; nothing here runs by itself.
//!
//! The disk guard has two edges: work is refused below the floor, and taken again a tenth above it, so that a disk at the
//! floor does not accept and fail in turns.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::config::DiskFloor;

/// How old an answer may be: looking is one system call, and work must not be taken on what was true a moment ago.
const FRESH: Duration = Duration::from_millis(100);
/// How often a running agent's disk is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bytes free below which nothing can be written for long: an agent that goes on only loses what it does.
const FULL: u64 = 1024 * 1024;

/// How the machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    /// Load average over a minute, times 100.
    pub load_percent: u32,
    /// Free bytes where worktrees are made.
    pub disk_free_bytes: u64,
    /// They could be counted.
    pub known: bool,
    /// Why no new work is taken, for people; empty when it is.
    pub not_accepting: String,
}

/// Looks after the machine.
#[derive(Debug)]
pub struct Health {
    path: PathBuf,
    floor: DiskFloor,
    last: Mutex<Option<(Instant, Vitals)>>,
}

impl Health {
    /// Looks at the disk of this directory.
    pub fn new(path: impl Into<PathBuf>, floor: DiskFloor) -> Self {
        Self { path: path.into(), floor, last: Mutex::new(None) }
    }

    /// How it is now.
    pub fn vitals(&self) -> Vitals {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, vitals)) = &*last
            && at.elapsed() < FRESH
        {
            return vitals.clone();
        }
        let was_short = last.as_ref().is_some_and(|(_, vitals)| !vitals.not_accepting.is_empty());
        let (disk_free_bytes, known, not_accepting) = match space(&self.path) {
            Ok((free, total)) => (free, true, short(free, total, self.floor, was_short)),
            Err(error) => (0, false, format!("the disk of {} cannot be looked at: {error}", self.path.display())),
        };
        if was_short == not_accepting.is_empty() {
            tracing::warn!(disk_free_bytes, reason = not_accepting, "whether new work is taken has changed");
        }
        let vitals = Vitals { load_percent: load_percent(), disk_free_bytes, known, not_accepting };
        *last = Some((Instant::now(), vitals.clone()));
        vitals
    }
}

impl Health {
    /// The disk is full, in words.
    pub fn full(&self) -> Option<String> {
        self.vitals();
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last.as_ref().and_then(|(_, vitals)| vitals.known.then_some(vitals.disk_free_bytes));
        known.filter(|free| *free < FULL).map(|_| format!("the disk of {} is full", self.path.display()))
    }

    /// Answers when the disk is full, and was a moment ago: what was only on its way is not the end of anybody.
    pub async fn until_full(&self) -> String {
        let mut before = false;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.full() {
                Some(full) if before => return full,
                now => before = now.is_some(),
            }
        }
    }
}

/// Why there is not enough room; empty when there is.
fn short(free: u64, total: u64, floor: DiskFloor, was_short: bool) -> String {
    let wanted = floor.bytes.max(total / 100 * u64::from(floor.percent));
    let wanted = if was_short { wanted.saturating_add(wanted / 10) } else { wanted };
    if free >= wanted {
        return String::new();
    }
    let mib = |bytes: u64| bytes / (1024 * 1024);
    format!(
        "short of disk: {} MiB free, {} MiB wanted; remove worktrees with `makima worktree rm`",
        mib(free),
        mib(wanted)
    )
}

fn space(path: &Path) -> rustix::io::Result<(u64, u64)> {
    let disk = rustix::fs::statvfs(path)?;
    Ok((disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize)))
}

/// Load over a minute, times 100. The kernel gives it in units of 1/65536.
fn load_percent() -> u32 {
    let load = rustix::system::sysinfo().loads[0];
    u32::try_from(load.saturating_mul(100) / 65_536).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1024 * 1024 * 1024;

    #[test]
    fn work_is_refused_below_the_floor_and_taken_again_a_little_above_it() {
        let floor = DiskFloor::default();
        assert_eq!(short(3 * GIB, 20 * GIB, floor, false), "");
        assert!(short(GIB, 20 * GIB, floor, false).starts_with("short of disk: 1024 MiB free, 2048 MiB wanted"));
        // A little above the floor: enough to go on, not enough to begin again.
        assert_eq!(short(2 * GIB + 1, 20 * GIB, floor, false), "");
        assert!(!short(2 * GIB + 1, 20 * GIB, floor, true).is_empty());
        assert_eq!(short(3 * GIB, 20 * GIB, floor, true), "");
        // On a large disk five percent are more than 2 GiB.
        assert!(!short(4 * GIB, 100 * GIB, floor, false).is_empty());
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let health = Health::new(std::env::temp_dir(), DiskFloor { bytes: 0, percent: 0 });
        let vitals = health.vitals();
        assert_eq!(vitals.not_accepting, "");
        assert!(vitals.disk_free_bytes > 0);
        let gone = Health::new("/no/such/place", DiskFloor::default());
        assert!(gone.vitals().not_accepting.contains("cannot be looked at"));
    }
}

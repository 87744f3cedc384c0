//! What processes have used, as the kernel counts it.

use std::{collections::BTreeMap, fs, time::Duration};

use crate::harness::process;

/// Ticks of a second in what the kernel tells programs: the same on every Linux machine.
const TICKS: u64 = 100;

/// Processor time by kind of process, since each began.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spent(BTreeMap<&'static str, f64>);

impl Spent {
    /// Adds the processor time of a process to its kind.
    pub fn add(&mut self, kind: &'static str, pid: u32) {
        *self.0.entry(kind).or_default() += cpu(pid).as_secs_f64();
    }

    /// The private Postgres with all its backends, which descend from this process.
    pub fn add_postgres(&mut self) {
        for guardian in process::children_of(std::process::id()) {
            for postmaster in process::children_of(guardian.pid).iter().filter(|it| name(it.pid) == "postgres") {
                self.add("postgres", postmaster.pid);
                process::children_of(postmaster.pid).iter().for_each(|backend| self.add("postgres", backend.pid));
            }
        }
    }

    /// What was spent since `earlier`, as cores over that time: `server 0.81, daemons 0.44`.
    pub fn since(&self, earlier: &Self, took: Duration) -> String {
        let used = self.0.iter().map(|(kind, now)| (kind, now - earlier.0.get(kind).copied().unwrap_or_default()));
        let used = used.map(|(kind, seconds)| format!("{kind} {:.2}", seconds / took.as_secs_f64()));
        used.collect::<Vec<_>>().join(", ")
    }
}

/// User and system time of a process and its threads; nothing for one that is gone.
pub fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything; the first field after it is the third.
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() * 1024
}

/// How many processes wanted a processor over the last minute: above the number of processors, figures are of a busy machine.
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default()
}

fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

//! What faults cost: how long until everything they hit went on, and what an agent had done that its next attempt did not
//! find.
//!
//! * **Recovery** goes from the firing of a fault to the first look at which every task it hit has made progress (its agent
//!   has said something, or it is done) and every daemon it hit is attached, in a newer session where the fault ends
//!   sessions. How long the fault holds is part of it: a server that is started again after a second is not back before. What
//!   a machine had that is gone for ever is not measured so: nobody comes back.
//! * **Bytes lost** are lines that an earlier attempt had written into its worktree and that were not there when the next one
//!   began. They are put down to the fault that fired last before.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::{fault::Kind, run::Run};

/// What one run has to say.
#[derive(Default)]
pub struct Costs {
    /// Kind, milliseconds until everything went on (where that can be said), bytes lost.
    pub faults: Vec<(Kind, Option<u64>, u64)>,
}

/// One line of the table.
#[derive(Debug, Default, Serialize)]
struct Line {
    fired: usize,
    recovery_ms_p50: Option<u64>,
    recovery_ms_p99: Option<u64>,
    bytes_lost_p50: u64,
    bytes_lost_max: u64,
}

/// The table of many runs.
#[derive(Debug, Serialize)]
pub struct Table {
    database: &'static str,
    runs: usize,
    faults: BTreeMap<String, Line>,
}

impl Costs {
    /// Of a run that is over.
    pub fn of(run: &Run) -> Self {
        let mut lost = vec![0; run.fired.len()];
        for (name, said) in run.said() {
            let Some(job) = run.plan.jobs.iter().find(|job| job.name == name) else { continue };
            let mut written = 0;
            for line in said.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    ["L", _, n] => written = written.max(n.parse().unwrap_or(0)),
                    ["S", _, n, at] => {
                        let (found, nanos): (u32, i64) = (n.parse().unwrap_or(0), at.parse().unwrap_or(0));
                        let bytes: usize = (found + 1..=written).map(|n| job.line(n).len()).sum();
                        let by = run.fired.iter().rposition(|fired| fired.wall.0 < nanos / 1_000);
                        if let Some(by) = by {
                            lost[by] += u64::try_from(bytes).unwrap_or_default();
                        }
                        written = found;
                    }
                    _ => {}
                }
            }
        }
        let fired = run.fired.iter().zip(lost);
        let faults = fired.map(|(fired, lost)| {
            let millis = fired.recovery.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            (fired.planned.kind, millis, lost)
        });
        Self { faults: faults.collect() }
    }
}

impl Table {
    /// Of all runs.
    pub fn of(database: &'static str, all: &[Costs]) -> Self {
        let mut times: BTreeMap<Kind, Vec<u64>> = BTreeMap::new();
        let mut bytes: BTreeMap<Kind, Vec<u64>> = BTreeMap::new();
        for (kind, time, lost) in all.iter().flat_map(|costs| &costs.faults) {
            times.entry(*kind).or_default().extend(time);
            bytes.entry(*kind).or_default().push(*lost);
        }
        let line = |(kind, mut lost): (Kind, Vec<u64>)| {
            let mut times = times.remove(&kind).unwrap_or_default();
            times.sort_unstable();
            lost.sort_unstable();
            let line = Line {
                fired: lost.len(),
                recovery_ms_p50: percentile(&times, 50),
                recovery_ms_p99: percentile(&times, 99),
                bytes_lost_p50: percentile(&lost, 50).unwrap_or_default(),
                bytes_lost_max: lost.last().copied().unwrap_or_default(),
            };
            (format!("{kind:?}"), line)
        };
        Self { database, runs: all.len(), faults: bytes.into_iter().map(line).collect() }
    }

    /// As a person reads it.
    pub fn markdown(&self) -> String {
        let mut text = format!("{} runs on {}\n\n", self.runs, self.database);
        text.push_str(
            "| fault | fired | recovery p50, ms | recovery p99, ms | bytes lost p50 | bytes lost at most |\n",
        );
        text.push_str("|---|---|---|---|---|---|\n");
        for (kind, line) in &self.faults {
            let shown = |time: Option<u64>| time.map_or("-".to_owned(), |time| time.to_string());
            let (p50, p99) = (shown(line.recovery_ms_p50), shown(line.recovery_ms_p99));
            let Line { fired, bytes_lost_p50, bytes_lost_max, .. } = line;
            writeln!(text, "| {kind} | {fired} | {p50} | {p99} | {bytes_lost_p50} | {bytes_lost_max} |")
                .expect("write");
        }
        text
    }

    /// As a program reads it, into the file that `MAKIMA_FAULT_REPORT` names, with the database in its name.
    pub fn write(&self) {
        let Some(path) = std::env::var_os("MAKIMA_FAULT_REPORT") else { return };
        let path = std::path::PathBuf::from(path);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let path = path.with_file_name(format!("{stem}-{}.json", self.database));
        let text = serde_json::to_string_pretty(self).expect("plain values");
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// Of sorted values, the one that so many percent do not exceed.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied()
}

#[test]
fn percentiles_are_values_that_were_seen() {
    assert_eq!(percentile(&[], 50), None);
    assert_eq!(percentile(&[7], 99), Some(7));
    assert_eq!((percentile(&[1, 2, 3, 4], 50), percentile(&[1, 2, 3, 4], 99)), (Some(2), Some(4)));
}

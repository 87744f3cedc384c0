//! A whole fleet in memory, from a seed: the ledger's own code, daemons that keep the real daemon's rules, a network between
//! them, people who ask for things, and everything that can fail. Time is virtual, so a history of an hour takes a
//! millisecond, and every order of events is as likely as another.
//!
//! ```text
//!   seed ──> plan: contracts, wishes, faults ──> world: time, chance, what comes next
//!                                                  │
//!        server: load, fold, dispatch, flush <─────┼─────> daemon: journal, runners, session
//!        (the code that production runs)           │       machine: disk, directories, agents
//!              memory: rows of the database     network: streams that break
//!                                                  │
//!                       check: after every commit, and when all faults are over
//! ```
//!
//! At the end of a history faults stop, what can come back does, and everything must come to its end by itself. A history that
//! breaks a promise is told again from its seed with every line.
//!
//! ```text
//!   make simulate RUNS=100000 SEED=1      (or MAKIMA_SIMULATE_RUNS, MAKIMA_SIMULATE_SEED and `cargo test simulation`)
//! ```
//!
//! Deliberately absent: git, files and processes (the fault suite has real ones), and SQL (the store's own tests).

mod check;
mod daemon;
mod found;
mod machine;
mod memory;
mod network;
mod plan;
mod planted;
mod server;
mod session;
mod stream;
mod world;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

pub(super) use memory::Memory;
use planted::Planted;
pub(super) use server::at_once;
use world::{MINUTE, World};

/// Histories of a plain test run, and the first: few enough for a build that is not optimised, and all faults are in them.
const RUNS: u64 = 500;
const FIRST: u64 = 1_001;
/// Among so many histories from anywhere all faults are expected.
const ENOUGH: u64 = 2_000;
/// What a history has, after everything is healed, to come to its end.
const PATIENCE: i64 = 4 * 60 * MINUTE;
/// Lines of a broken history that are shown.
const SHOWN: usize = 150;
/// Histories within which a planted bug must be found: far fewer than a minute's.
const FOUND_WITHIN: u64 = 3_000;

/// One history. What was broken, and what occurred.
fn history(seed: u64, planted: Option<Planted>, traced: bool) -> World {
    let mut world = World::new(seed, planted, traced);
    world.plans();
    let mut patience = i64::MAX;
    while world.broken.is_none() && world.now < patience && !world.is_settled() && world.step() {
        if world.is_healed && patience == i64::MAX {
            patience = world.now + PATIENCE;
        }
    }
    if world.broken.is_none() {
        world.check_end();
    }
    world
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs histories on all cores until one is broken. Answers the smallest broken seed that was met, and what occurred.
fn run(first: u64, runs: u64, planted: Option<Planted>) -> (Option<u64>, BTreeMap<&'static str, u64>) {
    let next = AtomicU64::new(first);
    let broken = AtomicU64::new(u64::MAX);
    let coverage: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let mut occurred: BTreeMap<&'static str, u64> = BTreeMap::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + runs || broken.load(Ordering::Relaxed) < seed {
                        break;
                    }
                    let world = history(seed, planted, false);
                    for (what, times) in world.coverage {
                        *occurred.entry(what).or_default() += times;
                    }
                    if world.broken.is_some() {
                        broken.fetch_min(seed, Ordering::Relaxed);
                    }
                }
                let mut coverage = coverage.lock().unwrap();
                for (what, times) in occurred {
                    *coverage.entry(what).or_default() += times;
                }
            });
        }
    });
    let broken = broken.into_inner();
    ((broken != u64::MAX).then_some(broken), coverage.into_inner().unwrap())
}

/// The end of a broken history, and how to see it again.
fn told(seed: u64, planted: Option<Planted>) -> String {
    let world = history(seed, planted, true);
    let trace = world.trace();
    let shown = &trace[trace.len().saturating_sub(SHOWN)..];
    let whole = std::env::temp_dir().join(format!("makima-history-{seed}.txt"));
    let written = std::fs::write(&whole, trace.join("\n"));
    let place = written.map_or_else(|error| format!("not written: {error}"), |()| whole.display().to_string());
    format!(
        "{}\n\nhistory {seed}, its last {} of {} lines (all: {place}):\n{}\n\nagain: make simulate RUNS=1 SEED={seed}\n",
        world.broken.as_deref().unwrap_or("nothing is broken this time: the history does not repeat"),
        shown.len(),
        trace.len(),
        shown.join("\n"),
    )
}

/// The fleet keeps its promises in every history.
#[test]
fn no_history_breaks_a_promise() {
    let (runs, first) =
        (from_environment("MAKIMA_SIMULATE_RUNS", RUNS), from_environment("MAKIMA_SIMULATE_SEED", FIRST));
    let begun = Instant::now();
    let (broken, coverage) = run(first, runs, None);
    if let Some(seed) = broken {
        panic!("{}", told(seed, None));
    }
    let took = begun.elapsed().as_secs_f64();
    println!("{runs} histories from {first} in {took:.1} s: {:.0} a minute", runs as f64 / took * 60.0);
    for (what, times) in &coverage {
        println!("{times:>12}  {what}");
    }
    // A fault that never fires proves nothing.
    let missing: Vec<_> = plan::MUST_OCCUR.iter().filter(|what| !coverage.contains_key(*what)).collect();
    let is_expected = runs >= ENOUGH || (first, runs) == (FIRST, RUNS);
    assert!(!is_expected || missing.is_empty(), "never occurred: {missing:?}");
}

/// A broken history can be told again: the same seed is the same history, to the line.
#[test]
fn a_history_repeats() {
    for seed in 1..=20 {
        let (one, two) = (history(seed, None, true), history(seed, None, true));
        assert_eq!(one.trace(), two.trace(), "history {seed}");
        assert!(one.trace().len() > 10);
    }
}

/// The checks see what they are for.
#[test]
fn planted_bugs_are_found() {
    for planted in Planted::ALL {
        let (found, _) = run(1, FOUND_WITHIN, Some(planted));
        let found = found.unwrap_or_else(|| panic!("{planted:?} was not found in {FOUND_WITHIN} histories"));
        let what = history(found, Some(planted), false).broken.unwrap_or_default();
        println!("{planted:?} took {found} histories to be found: {what}");
    }
}

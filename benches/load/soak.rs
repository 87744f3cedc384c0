//! Half of what the system can do, for twenty minutes: does memory grow, do the journals, does an answer come later at the end?
//!
//! ```text
//!   full rate, shortly ──> half of it, by the clock ──> each tenth: memory, files, how long a call takes,
//!                                                        │          and after it how soon the bare model starts something
//!                                                        └─ the last three tenths beside the second to fourth
//! ```
//!
//! What wakes threads and syncs files changes its speed within twenty minutes on a machine that is shared. The bare model shows by
//! how much: its database is new each time, so it does not know how long all this has been going on.
//!
//! The database grows with its tasks, which it keeps; how much each takes is told.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::MissedTickBehavior};

use crate::{
    bed::{self, Bed},
    ceiling,
    figures::{Figures, Goal, median, percentile, word},
    harness::{Client, Database},
    lifecycles::{Made, per_second},
    options::Options,
    proc, proof,
};

/// Tasks before the clock starts, from which the full rate is taken.
const WARM_UP: usize = 20_000;
/// Between two portions of calls.
const TICK: Duration = Duration::from_millis(10);
/// Parts of the time that are looked at by themselves. The first is left out: caches fill.
const PARTS: u32 = 10;
/// Tasks of one contract.
const CONTRACT: usize = 10_000;
/// Calls of the bare model after each part, and how many of them come before those that count.
const BARE: (usize, usize) = (180, 30);

/// How it was in one part of the time.
#[derive(Debug, Default)]
struct Part {
    server: f64,
    daemons: f64,
    journals: f64,
    median: f64,
    worst: f64,
    /// The bare model's create to durable start, p50.
    bare: f64,
}

/// One round on one database.
pub async fn measure(options: &Options, database: Database, figures: &mut Figures) {
    let bed = Bed::with_daemons(database, false).await;
    let mut made = Made::start(&bed).await;
    let warm = options.size(WARM_UP, 2_000);
    let half = per_second(warm, made.run(warm, 64).await) / 2.0;
    figures.add("soak: half the rate", Some(database), "per s", half, Goal::default());
    let lasting = Duration::from_secs(if options.quick { 60 } else { 1_200 }) / PARTS;
    let client = bed.world.client();
    let (before, mut tasks) = (database_bytes(&bed).await, 0);
    let mut parts = Vec::new();
    for n in 1..=PARTS {
        let took = load(&client, half, lasting, &mut tasks).await;
        let part = Part {
            server: mib(proc::resident(bed.world.server.pid())),
            daemons: mib(bed.daemons.iter().map(|daemon| proc::resident(daemon.pid())).sum()),
            journals: mib((0..2).map(|n| journal_bytes(&bed.world.daemon_state(&format!("load-{n}")))).sum()),
            median: percentile(&took, 0.5),
            worst: percentile(&took, 0.99),
            bare: percentile(&ceiling::starts(database, BARE.0, 0, 1).await.split_off(BARE.1), 0.5),
        };
        figures.note(format!("soak [{}], part {n} of {PARTS}: {part:.2?}", word(Some(database))));
        parts.push(part);
    }
    let among =
        |from: usize, what: fn(&Part) -> f64| median(&parts[from..from + 3].iter().map(what).collect::<Vec<_>>());
    let grown = |what: fn(&Part) -> f64| among(parts.len() - 3, what) / among(1, what);
    figures.add("soak: server's memory, end to begin", Some(database), "", grown(|it| it.server), Goal::most(1.1));
    figures.add("soak: daemons' memory, end to begin", Some(database), "", grown(|it| it.daemons), Goal::most(1.1));
    figures.add("soak: journals, end to begin", Some(database), "", grown(|it| it.journals), Goal::most(1.1));
    let (call, bare) = (grown(|it| it.median), grown(|it| it.bare));
    figures.add("soak: call p50, end to begin", Some(database), "", call, Goal::default());
    figures.add("soak: start of the bare model p50, end to begin", Some(database), "", bare, Goal::default());
    figures.add(
        "soak: call p50, end to begin, beside the bare model's",
        Some(database),
        "",
        call / bare,
        Goal::most(1.1),
    );
    figures.add("soak: call p99, end to begin", Some(database), "", grown(|it| it.worst), Goal::most(1.2));
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let each = database_bytes(&bed).await.saturating_sub(before) as f64 / tasks as f64 / 1024.0;
    figures.add("soak: database, each task", Some(database), "KiB", each, Goal::default());
    proof::of_done(&bed, warm + tasks).await;
}

/// Calls by the clock, whatever the answers take, and in the end until all tasks are done. Answers how long each call took, in
/// milliseconds.
async fn load(client: &Client, rate: f64, lasting: Duration, tasks: &mut usize) -> Vec<f64> {
    let (begun, before) = (Instant::now(), *tasks);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut calls = JoinSet::new();
    let mut took = Vec::new();
    let mut contracts: Vec<(String, usize)> = Vec::new();
    while begun.elapsed() < lasting {
        ticks.tick().await;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of tasks")]
        let due = before + (begun.elapsed().as_secs_f64() * rate) as usize;
        while *tasks < due {
            if contracts.last().is_none_or(|(_, made)| *made >= CONTRACT) {
                contracts.push((bed::contract(client, Vec::new(), false).await.0, 0));
            }
            let Some((contract, made)) = contracts.last_mut() else { continue };
            let (client, contract, name) = (client.clone(), contract.clone(), format!("task-{made}"));
            calls.spawn(async move {
                let asked = Instant::now();
                bed::create(&client, &contract, bed::task(name)).await;
                asked.elapsed().as_secs_f64() * 1e3
            });
            *made += 1;
            *tasks += 1;
        }
        while let Some(call) = calls.try_join_next() {
            took.push(call.expect("a call does not panic"));
        }
    }
    took.extend(calls.join_all().await);
    for (contract, made) in contracts {
        bed::until_done(client, &contract, made).await;
    }
    took
}

fn journal_bytes(state: &Path) -> u64 {
    let files = std::fs::read_dir(state).expect("the daemon's directory").flatten();
    let journals = files.filter(|file| file.file_name().to_string_lossy().starts_with("journal"));
    journals.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

async fn database_bytes(bed: &Bed) -> u64 {
    let sql = match bed.database {
        Database::Sqlite => "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
        Database::Postgres => "SELECT pg_database_size(current_database())",
    };
    proof::count(bed, sql).await.try_into().expect("a size")
}

#[expect(clippy::cast_precision_loss, reason = "a size of memory")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}

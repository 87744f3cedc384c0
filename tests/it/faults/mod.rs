//! Fault injection: real servers and daemons, real git, and everything that can happen to them.
//!
//! ```text
//!   seed ─> plan (fleet, work, faults) ─> run ─> invariants ─> what it cost
//!            └ plan.rs, fault.rs           └ run.rs, strike.rs   └ invariants.rs, report.rs
//! ```
//!
//! A run follows from its seed as far as real processes let it: the same fleet, the same work, the same faults after the same
//! events. Several run side by side, each with a directory, ports and processes of its own. One that fails prints its seed,
//! what was fired when, the event log and the ends of the logs, and how to repeat it.
//!
//! ```text
//!   make faults RUNS=1000 SEED=1      many, on both databases
//!   MAKIMA_FAULT_RUNS                 how many on each database
//!   MAKIMA_FAULT_SEED                 the first seed; the others follow it
//!   MAKIMA_FAULT_PARALLEL             at once on each database
//!   MAKIMA_FAULT_REPORT               a file for the table of costs, as JSON
//! ```
//!
//! Beside the drawn ones there are tests of single stories, and [`rows`] says which test is for which failure that others
//! have had.

mod fault;
mod fleet;
mod invariants;
mod latency;
mod lines;
mod machine;
mod network;
mod plan;
mod report;
mod rows;
mod run;
mod stage;
mod strike;
mod twice;

use std::{collections::HashMap, time::Instant};

use plan::Plan;
use report::{Costs, Table};
use run::{Run, Story};

/// Runs on each database, unless told otherwise: every kind of fault has its turn, and both databases together took 340 s on
/// two cores with ten other busy processes on them.
const RUNS: u64 = 32;
/// At once on each database. They wait more than they work.
const PARALLEL: usize = 2;
/// Runs that fail before no more are begun.
const ENOUGH: usize = 3;
/// Lines of logs and of the event log that a failure prints.
const LINES: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_on_sqlite() {
    suite(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_on_postgres() {
    suite(true).await;
}

async fn suite(postgres: bool) {
    let database = if postgres { "postgres" } else { "sqlite" };
    let (runs, first) = (told("MAKIMA_FAULT_RUNS").unwrap_or(RUNS), told("MAKIMA_FAULT_SEED").unwrap_or(1));
    let parallel = told("MAKIMA_FAULT_PARALLEL").map_or(PARALLEL, |n| usize::try_from(n).unwrap_or(PARALLEL)).max(1);
    let begun = Instant::now();
    let mut seeds = first..first.saturating_add(runs);
    let mut under_way = tokio::task::JoinSet::new();
    let mut stories = HashMap::new();
    let (mut costs, mut failed) = (Vec::new(), Vec::new());
    loop {
        while under_way.len() < parallel
            && failed.len() < ENOUGH
            && let Some(seed) = seeds.next()
        {
            let story = Story::new();
            let plan = Plan::new(seed, postgres);
            let id = under_way.spawn(Box::pin(one(plan, story.clone()))).id();
            stories.insert(id, (seed, story));
        }
        let Some(ended) = under_way.join_next_with_id().await else { break };
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, outcome),
            Err(error) => (error.id(), Err(format!("it panicked: {error}"))),
        };
        let (seed, story) = stories.remove(&id).expect("a run that was begun");
        match outcome {
            Ok(cost) => costs.push(cost),
            Err(why) => {
                tell(seed, database, &story, &why);
                failed.push(seed);
            }
        }
    }
    let table = Table::of(database, &costs);
    eprintln!("{}\n{:.0} s in all", table.markdown(), begun.elapsed().as_secs_f64());
    table.write();
    assert!(failed.is_empty(), "{} of {} runs on {database} have failed: seeds {failed:?}", failed.len(), costs.len());
    assert_eq!(u64::try_from(costs.len()).expect("some"), runs, "every run was made");
}

/// One run from its plan to its costs. What it prints when it fails is all that is left of it.
async fn one(plan: Plan, story: Story) -> Result<Costs, String> {
    story.tell(format!("{plan:?}"));
    let mut run = Run::start(plan, story).await;
    let outcome = match run.to_the_end().await {
        Ok(()) => invariants::check(&run).await,
        Err(why) => Err(why),
    };
    match outcome {
        Ok(()) => Ok(Costs::of(&run)),
        Err(why) => Err(format!("{why}\n{}", traces(&mut run))),
    }
}

/// The event log and the ends of the logs.
fn traces(run: &mut Run) -> String {
    let mut text = String::from("---- event log\n");
    for change in run.watch.changes() {
        text.push_str(&format!(
            "{} {} {} v{} attempt {} {} {} {}\n",
            change.sequence,
            change.event,
            change.task_name,
            change.version,
            change.attempt,
            change.daemon_name,
            change.actor.split(':').next().unwrap_or_default(),
            change.detail
        ));
    }
    for (name, log) in run.logs() {
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(LINES)..].join("\n");
        text.push_str(&format!("---- log of {name}\n{end}\n"));
    }
    text
}

fn tell(seed: u64, database: &str, story: &Story, why: &str) {
    eprintln!(
        "==== seed {seed} on {database} has failed\n{why}\n---- what happened\n{}\n---- again with\nMAKIMA_FAULT_RUNS=1 \
         MAKIMA_FAULT_SEED={seed} cargo test --test it faults_on_{database} -- --nocapture\n====",
        story.text()
    );
}

fn told(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, and was {text:?}")))
}

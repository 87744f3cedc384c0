//! Graphs: what one ending unblocks, what many endings unblock, and whether twice the edges cost twice the time.
//!
//! The clock of a graph starts when its contract, which was held while it was made, is released.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use makima::wire::pb::{ReleaseContractRequest, TaskSpec};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    bed::{self, Bed},
    figures::{Figures, Goal, word},
    harness::{Client, Database},
    options::Options,
    proof,
};

/// A label that no daemon has: what becomes ready stays where it can be counted.
const NOWHERE: &str = "nowhere";
/// Edges into each task of a random graph.
const IN_DEGREE: usize = 5;
/// Between two counts of what is ready.
const LOOK: Duration = Duration::from_millis(2);
/// Graphs that double, the last of them the one that is asked for.
const DOUBLINGS: usize = 2;

/// One round on one database.
pub async fn measure(options: &Options, database: Database, figures: &mut Figures) {
    let width = options.size(10_000, 1_000);
    fan_out(database, width, figures).await;
    fan_in(database, width, figures).await;
    random(database, options.size(100_000, 5_000), figures).await;
}

async fn fan_out(database: Database, width: usize, figures: &mut Figures) {
    let bed = Bed::with_daemons(database, false).await;
    let client = bed.world.client();
    let (contract, _) = bed::contract(&client, vec![bed::task("root".to_owned())], true).await;
    let leaf = |n: usize| {
        let task = bed::task(format!("leaf-{n}"));
        TaskSpec { depends_on: vec!["root".to_owned()], labels: vec![NOWHERE.to_owned()], ..task }
    };
    bed::create_all(&client, &contract, (0..width).map(leaf).collect()).await;
    let begun = release(&client, &contract).await;
    while proof::count(&bed, "SELECT count(*) FROM tasks WHERE ready").await < i64::try_from(width).unwrap_or(i64::MAX)
    {
        tokio::time::sleep(LOOK).await;
    }
    let took = begun.elapsed().as_secs_f64() * 1e3;
    figures.add("fan-out: one task's release to all dependents ready", Some(database), "ms", took, Goal::most(1_000.0));
    proof::of_done(&bed, 1).await;
}

async fn fan_in(database: Database, width: usize, figures: &mut Figures) {
    let bed = Bed::with_daemons(database, false).await;
    let client = bed.world.client();
    let (contract, _) = bed::contract(&client, Vec::new(), true).await;
    let names: Vec<String> = (0..width).map(|n| format!("leaf-{n}")).collect();
    bed::create_all(&client, &contract, names.iter().cloned().map(bed::task).collect()).await;
    let last = TaskSpec { depends_on: names, ..bed::task("last".to_owned()) };
    bed::create_all(&client, &contract, vec![last]).await;
    release(&client, &contract).await;
    bed::until_done(&client, &contract, width).await;
    let begun = Instant::now();
    bed::until_done(&client, &contract, width + 1).await;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    figures.add("fan-in: last dependency done to dependent done", Some(database), "ms", took, Goal::most(1_000.0));
    proof::of_done(&bed, width + 1).await;
}

async fn random(database: Database, edges: usize, figures: &mut Figures) {
    let mut before: Option<f64> = None;
    for half in (0..=DOUBLINGS).rev() {
        let edges = edges >> half;
        let (took, how) = drained(database, edges).await;
        figures.note(format!("random graph of {edges} edges [{}]: {how}", word(Some(database))));
        let mut name = format!("random graph of {edges} edges drained");
        figures.add(&name, Some(database), "s", took, Goal::default());
        if let Some(before) = before {
            let _ = write!(name, ": times that of half");
            figures.add(&name, Some(database), "x", took / before, Goal::most(2.2));
        }
        before = Some(took);
    }
}

/// Seconds, and what the server and the ledger did meanwhile, for people.
async fn drained(database: Database, edges: usize) -> (f64, String) {
    let bed = Bed::with_daemons(database, false).await;
    let client = bed.world.client();
    let (contract, _) = bed::contract(&client, Vec::new(), true).await;
    let tasks = edges / IN_DEGREE;
    let mut dice = StdRng::seed_from_u64(7);
    let node = |n: usize| {
        let mut task = bed::task(format!("node-{n}"));
        if n > 0 {
            let mut on: Vec<usize> = (0..IN_DEGREE).map(|_| dice.random_range(0..n)).collect();
            on.sort_unstable();
            on.dedup();
            task.depends_on = on.into_iter().map(|n| format!("node-{n}")).collect();
        }
        task
    };
    bed::create_all(&client, &contract, (0..tasks).map(node).collect()).await;
    let (before, batches) = (bed.spent(), bed.batches().await);
    let begun = release(&client, &contract).await;
    bed::until_done(&client, &contract, tasks).await;
    let took = begun.elapsed();
    let how = format!("cores: {}; {}", bed.spent().since(&before, took), bed.batches().await.since(&batches));
    proof::of_done(&bed, tasks).await;
    (took.as_secs_f64(), how)
}

async fn release(client: &Client, contract: &str) -> Instant {
    let request = ReleaseContractRequest { contract_id: contract.to_owned(), ..ReleaseContractRequest::default() };
    let begun = Instant::now();
    client.contracts().release_contract(request).await.expect("release the contract");
    begun
}

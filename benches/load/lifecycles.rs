//! Whole lives of tasks, from the call that creates one to DONE on the server, each durable at every step on both sides.
//!
//! ```text
//!   64 or 10 calls in flight ──> server, ledger ──> journal of one of two daemons ──> Started, Complete ──> ledger ──> DONE
//!        the clock starts with the first call                                     and stops when the last one is DONE
//! ```
//!
//! The backlog is made while no daemon is there; its clock starts with the daemons.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::{
    bed::{self, Bed, SLOTS},
    ceiling,
    figures::{Figures, Goal, word},
    harness::{Client, Database},
    options::Options,
    proof,
};

/// Tasks before the clock starts: connections, statements and caches are warm then.
const WARM_UP: usize = 500;

/// One round on one database.
pub async fn measure(options: &Options, database: Database, figures: &mut Figures) {
    // Beside ours in every round, so that both see the same machine.
    for (in_flight, name) in [(64, "ceiling, 64 in flight"), (10, "ceiling, 10 in flight")] {
        let rate = ceiling::lifecycles(database, options.size(20_000, 3_000), in_flight).await;
        figures.add(name, Some(database), "per s", rate, Goal::default());
    }
    let bed = Bed::with_daemons(database, false).await;
    let mut made = Made::start(&bed).await;
    made.run(WARM_UP, 64).await;
    let goal_64 = match database {
        Database::Postgres => 10_000.0,
        Database::Sqlite => 12_000.0,
    };
    let sizes = [
        (
            64,
            options.size(20_000, 2_000),
            "lifecycles, 64 in flight",
            Goal::least(goal_64).against("ceiling, 64 in flight"),
        ),
        (
            10,
            options.size(10_000, 1_000),
            "lifecycles, 10 in flight",
            Goal::least(5_000.0).against("ceiling, 10 in flight"),
        ),
    ];
    for (in_flight, tasks, name, goal) in sizes {
        let (before, batches) = (bed.spent(), bed.batches().await);
        let took = made.run(tasks, in_flight).await;
        figures.add(name, Some(database), "per s", per_second(tasks, took), goal);
        let spent = bed.spent().since(&before, took);
        let batches = bed.batches().await.since(&batches);
        figures.note(format!("{name} [{}]: cores: {spent}; {batches}", word(Some(database))));
    }
    proof::of_done(&bed, made.done).await;
    drop(bed);
    backlog(options, database, figures).await;
}

async fn backlog(options: &Options, database: Database, figures: &mut Figures) {
    let tasks = options.size(20_000, 2_000);
    let mut bed = Bed::start(database).await;
    let client = bed.world.client();
    let (contract, _) = bed::contract(&client, Vec::new(), false).await;
    bed::create_all(&client, &contract, (0..tasks).map(|n| bed::task(format!("task-{n}"))).collect()).await;
    let (before, batches) = (bed.spent(), bed.batches().await);
    let begun = Instant::now();
    bed.launch(SLOTS, false);
    bed.launch(SLOTS, false);
    bed::until_done(&client, &contract, tasks).await;
    let took = begun.elapsed();
    let (spent, batches) = (bed.spent().since(&before, took), bed.batches().await.since(&batches));
    figures.note(format!("backlog [{}]: cores: {spent}; {batches}", word(Some(database))));
    let rate = per_second(tasks, took);
    figures.add(
        "backlog drained",
        Some(database),
        "per s",
        rate,
        Goal::least(12_000.0).against("ceiling, 64 in flight"),
    );
    proof::of_done(&bed, tasks).await;
}

/// A contract that tasks are made in.
pub struct Made {
    client: Client,
    contract: String,
    done: usize,
}

impl Made {
    /// None are made yet.
    pub async fn start(bed: &Bed) -> Self {
        let client = bed.world.client();
        let (contract, _) = bed::contract(&client, Vec::new(), false).await;
        Self { client, contract, done: 0 }
    }

    /// Makes tasks, so many calls at a time, and waits until they are done.
    pub async fn run(&mut self, tasks: usize, in_flight: usize) -> Duration {
        let next = Arc::new(AtomicUsize::new(self.done));
        let end = self.done + tasks;
        let begun = Instant::now();
        let mut callers = JoinSet::new();
        for _ in 0..in_flight {
            let (client, contract, next) = (self.client.clone(), self.contract.clone(), Arc::clone(&next));
            callers.spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= end {
                        return;
                    }
                    bed::create(&client, &contract, bed::task(format!("task-{n}"))).await;
                }
            });
        }
        while let Some(ended) = callers.join_next().await {
            ended.expect("a caller does not panic");
        }
        bed::until_done(&self.client, &self.contract, end).await;
        self.done = end;
        begun.elapsed()
    }
}

/// How many a second.
pub fn per_second(count: usize, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let count = count as f64;
    count / took.as_secs_f64()
}

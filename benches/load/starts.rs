//! How soon a task starts on an idle system, and its dependent after it: from the call to the moment at which the order is
//! durable in the daemon's journal, which is when a daemon would begin to work on it.

use std::time::Duration;

use rand::RngExt as _;
use tokio::task::JoinSet;

use crate::{
    bed::{self, Bed},
    ceiling,
    figures::{Figures, Goal, percentile},
    harness::{Client, Database, eventually},
    hollow,
    options::Options,
    proof,
};

/// Between two calls on the idle system: longer than all that one causes.
const REST: std::ops::Range<u64> = 15..25;
const BARE_P50: &str = "ceiling, create to durable start, p50";
const BARE_P99: &str = "ceiling, create to durable start, p99";
/// Calls before those that count.
const WARM_UP: usize = 30;

/// One round on one database.
pub async fn measure(options: &Options, database: Database, figures: &mut Figures) {
    let calls = options.size(500, 100) + WARM_UP;
    // What wire, disk and the threads in between take by themselves, at this moment.
    let bare = ceiling::starts(database, calls).await.split_off(WARM_UP);
    figures.add(BARE_P50, Some(database), "ms", percentile(&bare, 0.5), Goal::default());
    figures.add(BARE_P99, Some(database), "ms", percentile(&bare, 0.99), Goal::default());
    let bed = Bed::with_daemons(database, true).await;
    let client = bed.world.client();
    let (contract, _) = bed::contract(&client, Vec::new(), false).await;
    let spans = probe(&bed, &client, &contract, "task", calls).await.split_off(WARM_UP);
    figures.add(
        "create to durable start, p50",
        Some(database),
        "ms",
        percentile(&spans, 0.5),
        Goal::most(1.3).against(BARE_P50),
    );
    figures.add(
        "create to durable start, p99",
        Some(database),
        "ms",
        percentile(&spans, 0.99),
        Goal::most(4.0).against(BARE_P99),
    );
    let length = options.size(200, 50);
    chain(&bed, calls, length, figures).await;
    proof::of_done(&bed, calls + length).await;
}

/// So many tasks of a contract, one now and then: how long each took from the call to its durable start, in milliseconds.
pub async fn probe(bed: &Bed, client: &Client, contract: &str, name: &str, calls: usize) -> Vec<f64> {
    let (client, contract, name) = (client.clone(), contract.to_owned(), name.to_owned());
    let asked = apart(async move {
        let mut asked = Vec::with_capacity(calls);
        for n in 0..calls {
            rest().await;
            let at = hollow::now();
            asked.push((bed::create(&client, &contract, bed::task(format!("{name}-{n}"))).await, at));
        }
        asked
    })
    .await;
    eventually("the daemons have told of all that were asked for", || async {
        let began = bed.began();
        let spans: Vec<f64> = asked.iter().filter_map(|(task, at)| Some(millis(*at, *began.get(task)?))).collect();
        if spans.len() == calls { Ok(spans) } else { Err(format!("{} of {calls}", spans.len())) }
    })
    .await
}

/// Calls on a thread of the runtime, as a program that makes tasks does; what waits for all of it has a thread of its own, and each
/// answer would wake that first.
pub async fn apart<T: Send + 'static>(calls: impl Future<Output = T> + Send + 'static) -> T {
    let mut calling = JoinSet::new();
    calling.spawn(calls);
    calling.join_next().await.expect("a task").expect("the calls are answered")
}

/// Until the next call on an idle system.
pub async fn rest() {
    let rest = rand::rng().random_range(REST);
    tokio::time::sleep(Duration::from_millis(rest)).await;
}

/// Each task depends on the one before.
async fn chain(bed: &Bed, before: usize, length: usize, figures: &mut Figures) {
    let link = |n: usize| {
        let mut task = bed::task(format!("link-{n}"));
        task.depends_on.extend(n.checked_sub(1).map(|n| format!("link-{n}")));
        task
    };
    let client = bed.world.client();
    let (contract, tasks) = bed::contract(&client, (0..length).map(link).collect(), false).await;
    bed::until_done(&client, &contract, length).await;
    let began = all_began(bed, before + length).await;
    let hops: Vec<f64> = tasks.windows(2).map(|pair| millis(began[&pair[0]], began[&pair[1]])).collect();
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let mean = hops.iter().sum::<f64>() / hops.len() as f64;
    figures.add("hop of a chain, mean", Some(bed.database), "ms", mean, Goal::most(1.2));
    figures.add("hop of a chain, p99", Some(bed.database), "ms", percentile(&hops, 0.99), Goal::default());
}

/// When each began, once the daemons have told of so many.
async fn all_began(bed: &Bed, wanted: usize) -> std::collections::HashMap<String, u64> {
    eventually("the daemons have told of all that began", || async {
        let began = bed.began();
        if began.len() >= wanted { Ok(began) } else { Err(format!("{} of {wanted}", began.len())) }
    })
    .await
}

/// A span of the clock of [`hollow::now`].
pub fn millis(from: u64, to: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "spans of seconds")]
    let nanos = to.saturating_sub(from) as f64;
    nanos / 1e6
}

//! How soon a task starts on an idle system, and its dependent after it: from the call to the moment at which the daemon knows
//! that the order is durable in its journal, which is when it begins to work on it.

use std::{collections::HashMap, time::Duration};

use rand::RngExt as _;
use tokio::task::JoinSet;

use crate::{
    bed::{self, Bed},
    ceiling,
    figures::{Figures, Goal, percentile},
    harness::{Client, Database, eventually},
    hollow,
    lifecycles::Made,
    options::Options,
    proof,
};

/// Between two calls on the idle system: longer than all that one causes.
const REST: std::ops::Range<u64> = 15..25;
/// What is told of the spans: its name, that of the same of the bare model, which part of them does not take longer, and what is
/// wanted of it.
const PARTS: [(&str, &str, f64, f64); 2] = [
    ("create to durable start, p50", "ceiling, create to durable start, p50", 0.5, 1.3),
    ("create to durable start, p99", "ceiling, create to durable start, p99", 0.99, 4.0),
];
/// Calls before those that count.
const WARM_UP: usize = 30;
/// Tasks before these, as fast as they go: a system that has run for a while has written its logs to their lengths and begins them
/// again, and a log that grows takes a sync longer.
const BEFORE: usize = 6_000;
/// Of these at once.
const IN_FLIGHT: usize = 64;

/// One round on one database.
pub async fn measure(options: &Options, database: Database, figures: &mut Figures) {
    let calls = options.size(500, 100) + WARM_UP;
    // What wire, disk and the threads in between take by themselves, at this moment.
    let before = options.size(BEFORE, 500);
    let bare = ceiling::starts(database, calls, before, IN_FLIGHT).await.split_off(WARM_UP);
    for (_, name, part, _) in PARTS {
        figures.add(name, Some(database), "ms", percentile(&bare, part), Goal::default());
    }
    let bed = Bed::with_daemons(database, true).await;
    Made::start(&bed).await.run(before, IN_FLIGHT).await;
    let client = bed.world.client();
    let (contract, _) = bed::contract(&client, Vec::new(), false).await;
    let spans = probe(&bed, &client, &contract, "task", calls).await.split_off(WARM_UP);
    for (name, bare, part, most) in PARTS {
        figures.add(name, Some(database), "ms", percentile(&spans, part), Goal::most(most).against(bare));
    }
    let length = options.size(200, 50);
    chain(&bed, before + calls, length, figures).await;
    proof::of_done(&bed, before + calls + length).await;
}

/// So many tasks of a contract, one now and then: how long each took from the call to its durable start, in milliseconds.
pub async fn probe(bed: &Bed, client: &Client, contract: &str, name: &str, calls: usize) -> Vec<f64> {
    let (client, contract, name) = (client.clone(), contract.to_owned(), name.to_owned());
    let create = move |n| {
        let (client, contract, task) = (client.clone(), contract.clone(), bed::task(format!("{name}-{n}")));
        async move { bed::create(&client, &contract, task).await }
    };
    spans(calls, create, || bed.began()).await
}

/// Calls one now and then, which answer what each has made: how long each took until that began, in milliseconds.
///
/// They come from a thread of the runtime, as those of a program that makes tasks do; what waits for all of them has a thread of its
/// own, and each answer would wake that first.
pub async fn spans<C, F>(calls: usize, call: C, began: impl Fn() -> HashMap<String, u64>) -> Vec<f64>
where
    C: Fn(usize) -> F + Send + 'static,
    F: Future<Output = String> + Send,
{
    let mut calling = JoinSet::new();
    calling.spawn(async move {
        let mut asked = Vec::with_capacity(calls);
        for n in 0..calls {
            let rest = rand::rng().random_range(REST);
            tokio::time::sleep(Duration::from_millis(rest)).await;
            let at = hollow::now();
            asked.push((call(n).await, at));
        }
        asked
    });
    let asked = calling.join_next().await.expect("a task").expect("the calls are answered");
    eventually("what was asked for has begun", || async {
        let began = began();
        let spans: Vec<f64> = asked.iter().filter_map(|(task, at)| Some(millis(*at, *began.get(task)?))).collect();
        if spans.len() == calls { Ok(spans) } else { Err(format!("{} of {calls}", spans.len())) }
    })
    .await
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
async fn all_began(bed: &Bed, wanted: usize) -> HashMap<String, u64> {
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

//! What a long backlog costs: many contracts, of which one has half of all tasks. What waits is of two kinds in turn: tasks
//! that no daemon can take, while others come and go beside them; and tasks that can start, of which as many are taken as there
//! is room for.

use std::time::{Duration, Instant};

use makima::wire::pb::TaskSpec;

use crate::{
    bed::{self, Bed, SLOTS},
    figures::{Figures, Goal, word},
    harness::Database,
    lifecycles::{Made, per_second},
    options::Options,
};

/// A label that no daemon has.
const NOWHERE: &str = "nowhere";
/// Calls in flight while the backlog is made.
const IN_FLIGHT: usize = 8;

/// One round on one database.
pub async fn measure(options: &Options, database: Database, figures: &mut Figures) {
    let tasks = options.size(10_000, 2_000);
    for (pending, contracts, name, goal) in [
        (1_000, 10, "lifecycles, 64 in flight, beside 1,000 pending", Goal::default()),
        (
            options.size(1_000_000, 20_000),
            options.size(10_000, 200),
            "lifecycles, 64 in flight, beside a long backlog",
            Goal::default().against("lifecycles, 64 in flight, beside 1,000 pending"),
        ),
    ] {
        let mut bed = Bed::with_daemons(database, false).await;
        fill(&bed, pending, contracts, &[NOWHERE.to_owned()], figures).await;
        let mut made = Made::start(&bed).await;
        made.run(500, 64).await;
        let took = made.run(tasks, 64).await;
        figures.add(name, Some(database), "per s", per_second(tasks, took), goal);
        if pending > 1_000 {
            restart(&mut bed, figures).await;
        }
    }
    let mut bed = Bed::start(database).await;
    fill(&bed, options.size(200_000, 20_000), options.size(2_000, 200), &[], figures).await;
    bed.attach(2, SLOTS, false).await;
    let lasting = Duration::from_secs(if options.quick { 3 } else { 10 });
    let (before, begun) = (bed.ended().await, Instant::now());
    tokio::time::sleep(lasting).await;
    let rate = per_second(usize::try_from(bed.ended().await - before).unwrap_or_default(), begun.elapsed());
    figures.add("long backlog of ready tasks: drained", Some(database), "per s", rate, Goal::default());
}

/// How long the server takes from its start until it serves.
async fn restart(bed: &mut Bed, figures: &mut Figures) {
    bed.world.kill_server();
    let begun = Instant::now();
    bed.world.start_server().await;
    let took = begun.elapsed().as_secs_f64();
    figures.add("start-up with a long backlog", Some(bed.database), "s", took, Goal::most(2.0));
}

/// Makes the backlog: half of it in one contract.
async fn fill(bed: &Bed, tasks: usize, contracts: usize, labels: &[String], figures: &mut Figures) {
    let begun = Instant::now();
    let mut makers = tokio::task::JoinSet::new();
    for maker in 0..IN_FLIGHT {
        let (client, labels) = (bed.world.client(), labels.to_vec());
        let mine: Vec<usize> = (maker..contracts).step_by(IN_FLIGHT).collect();
        makers.spawn(async move {
            for n in mine {
                let size = if n == 0 { tasks / 2 } else { (tasks / 2 / (contracts - 1)).max(1) };
                let (contract, _) = bed::contract(&client, Vec::new(), false).await;
                let task = |k: usize| TaskSpec { labels: labels.clone(), ..bed::task(format!("waits-{k}")) };
                bed::create_all(&client, &contract, (0..size).map(task).collect()).await;
            }
        });
    }
    while let Some(ended) = makers.join_next().await {
        ended.expect("a maker does not panic");
    }
    let rate = per_second(tasks, begun.elapsed());
    figures
        .note(format!("{tasks} tasks made in {contracts} contracts [{}], {rate:.0} per s", word(Some(bed.database))));
}

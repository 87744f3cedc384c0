//! What a daemon brings to the server beside output: results, and work whose place is taken.

use std::fs;

use makima::{
    domain::{order::Order, reconcile::Verdict, report::Report},
    wire::{checkpoint::FileKind, pb},
};

use super::{Bench, class, nothing_runs};
use crate::harness::eventually::{ensure, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_result_travels_as_the_pack_that_its_report_names() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("echo x > x")).await;
    let complete = bench.complete(attempt).await;
    let pack = complete.outcome.unwrap().pack.unwrap();
    eventually("the pack is there", || async {
        let bytes = bench.fake.state().files.get(&(attempt, FileKind::Result)).map_or(0, Vec::len);
        ensure(bytes as i64 == pack.bytes, || format!("{bytes} of {}", pack.bytes))
    })
    .await;
    bench.results_are_delivered().await;
    daemon.stop().await;
}

/// Nothing is sent of a result that is what its attempt started from: there would be nothing in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_without_changes_is_no_pack() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("true")).await;
    let result = bench.complete(attempt).await.outcome.unwrap();
    assert!(result.published && !result.commit.is_empty(), "{result:?}");
    assert_eq!(result.pack, None);
    daemon.stop().await;
}

/// The work of a fenced attempt is with the server before its end is said; so is what is asked for while an agent works.
#[tokio::test(flavor = "multi_thread")]
async fn the_work_of_a_fenced_attempt_is_kept() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let plan = format!("echo work > work; echo ready > {}; sleep 1000", bench.path("ready"));
    let attempt = bench.spawn(bench.order(&plan)).await;
    bench.file("ready").await;
    let checkpoints = || bench.fake.state().files.keys().filter(|(of, _)| *of == attempt).count();
    bench.fake.command(attempt, Order::Checkpoint).await;
    eventually("the checkpoint that was asked for", || async {
        ensure(checkpoints() == 1, || checkpoints().to_string())
    })
    .await;
    fs::write(worktree(&bench, attempt).join("later"), "later\n").unwrap();
    bench.fake.state().verdicts = [(attempt, Verdict::Fenced)].into();
    bench.fake.close(pb::ClosingReason::Resync).await;
    let complete = bench.complete(attempt).await;
    assert!(class(&complete).is_some());
    assert_eq!(checkpoints(), 2, "what came after the last checkpoint is in another one");
    nothing_runs(&bench.state()).await;
    daemon.stop().await;
}

fn worktree(bench: &Bench, attempt: makima::domain::AttemptRef) -> std::path::PathBuf {
    let reports = bench.fake.reports_of(attempt);
    let started = reports.into_iter().find_map(|report| match report {
        Report::Started { worktree, .. } => Some(worktree),
        _ => None,
    });
    started.unwrap().into()
}

//! Output reaches the server whole, whatever breaks on the way.

use std::fs;

use super::{Bench, nothing_runs};

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_where_it_was_cut() {
    let bench = Bench::new().await;
    bench.fake.state().cut_upload_after = Some(700_000);
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench
        .spawn(
            bench.order("i=0; while [ $i -lt 20 ]; do head -c 100000 /dev/zero | tr '\\0' x; echo; i=$((i+1)); done"),
        )
        .await;
    assert!(bench.complete(attempt).await.outcome.is_ok());
    let expected = format!("{}\n", "x".repeat(100_000)).repeat(20);
    bench.output_is(attempt, &expected).await;
    assert!(bench.fake.state().uploads >= 2);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_the_server_could_not_take_is_uploaded_after_a_restart() {
    let mut bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let gate = bench.path("gate");
    let attempt = bench.spawn(bench.order(&format!("while [ ! -e {gate} ]; do sleep 0.02; done; echo late"))).await;
    bench.started(attempt).await;
    bench.fake.cut();
    fs::write(&gate, "").unwrap();
    nothing_runs(&bench.state()).await;
    daemon.stop().await;
    bench.fake.serve();
    let daemon = bench.start();
    assert!(bench.complete(attempt).await.outcome.is_ok());
    bench.output_is(attempt, "late\n").await;
    daemon.stop().await;
}

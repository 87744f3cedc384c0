//! What a daemon finds when it comes back.

use std::{collections::BTreeMap, fs, path::Path};

use makima::{
    domain::{
        AttemptRef,
        reconcile::Verdict,
        report::{InventoryState, Report},
    },
    wire::pb,
};

use super::{Bench, Running, agents, kill_shims, nothing_runs};
use crate::harness::eventually::{ensure, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_comes_back_and_takes_over_its_agent() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let gate = bench.path("gate");
    let plan = format!(
        "for i in 1 2 3; do echo line $i; done; while [ ! -e {gate} ]; do sleep 0.02; done; echo end; echo x > x"
    );
    let attempt = bench.spawn(bench.order(&plan)).await;
    eventually("some output", || async {
        let output = bench.fake.output_of(attempt);
        ensure(output.ends_with("line 3\n"), || output.clone())
    })
    .await;
    daemon.kill().await;
    assert!(agents(&bench.state()) > 0, "the agent lives on");

    let daemon = bench.start();
    bench.ready(2).await;
    assert_eq!(bench.fake.hellos()[1].inventory[0].state, InventoryState::Running);
    assert!(bench.fake.hellos()[1].inventory[0].worktree_intact);
    fs::write(&gate, "").unwrap();
    let complete = bench.complete(attempt).await;
    assert!(complete.outcome.is_ok(), "{complete:?}");
    bench.output_is(attempt, "line 1\nline 2\nline 3\nend\n").await;
    let starts = bench.fake.reports_of(attempt).iter().filter(|r| matches!(r, Report::Started { .. })).count();
    assert_eq!(starts, 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_while_the_daemon_is_away_is_reported_with_its_result() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let gate = bench.path("gate");
    let plan = format!("while [ ! -e {gate} ]; do sleep 0.02; done; echo late; echo x > x");
    let attempt = bench.spawn(bench.order(&plan)).await;
    bench.started(attempt).await;
    daemon.stop().await;
    fs::write(&gate, "").unwrap();
    nothing_runs(&bench.state()).await;
    let daemon = bench.start();
    assert!(bench.complete(attempt).await.outcome.is_ok());
    bench.output_is(attempt, "late\n").await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_killed_while_the_daemon_is_away_is_a_recovery() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let plan = format!("echo begun; echo begun > {}; setsid sleep 1000 & sleep 1000", bench.path("begun"));
    let attempt = bench.spawn(bench.order(&plan)).await;
    bench.started(attempt).await;
    bench.file("begun").await;
    daemon.kill().await;
    kill_shims(&bench.state());
    let daemon = bench.start();
    let report = bench.says(attempt, "recovery", |r| matches!(r, Report::RecoveryDetected { .. })).await;
    let Report::RecoveryDetected { previous, worktree_intact, worktree, needs_patch } = report else { unreachable!() };
    assert_eq!((previous, worktree_intact, needs_patch), (InventoryState::Running, true, false));
    assert!(Path::new(&worktree).join(".git").exists());
    nothing_runs(&bench.state()).await;
    bench.output_is(attempt, "begun\n").await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_while_it_prepares_prepares_again() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let gate = bench.path("gate");
    let mut order = bench.order("echo x > x");
    order.setup_command = format!("echo setup >> {}; while [ ! -e {gate} ]; do sleep 0.02; done", bench.path("setups"));
    let attempt = bench.spawn(order).await;
    bench.file("setups").await;
    daemon.kill().await;
    fs::write(&gate, "").unwrap();
    let daemon = bench.start();
    bench.ready(2).await;
    let complete = bench.complete(attempt).await;
    assert!(complete.outcome.is_ok(), "{complete:?}");
    assert_eq!(bench.file("setups").await, "setup\nsetup\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_is_rebuilt_from_the_attempts_directories() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let gate = bench.path("gate");
    let waiting = format!("while [ ! -e {gate} ]; do sleep 0.02; done; echo x > x");
    let (running, ended) = (bench.spawn(bench.order(&waiting)).await, bench.spawn(bench.order("echo y > y")).await);
    bench.started(running).await;
    bench.complete(ended).await;
    bench.output_is(ended, "").await;
    let foreign = bench.spawn(bench.order(&waiting)).await;
    bench.started(foreign).await;
    let journal = bench.fake.hellos()[0].journal;
    daemon.stop().await;
    // Its thread closes the file, and with it the log of what is not in it yet, which would repair what we break.
    eventually("the journal is closed", || async {
        ensure(!bench.state().join("journal.sqlite-wal").exists(), || "open".to_owned())
    })
    .await;
    fs::write(bench.state().join("journal.sqlite"), b"no journal at all, but long enough to look at").unwrap();

    bench.fake.state().verdicts = [(ended, Verdict::Forget), (foreign, Verdict::Salvage)].into();
    let daemon = bench.start();
    bench.ready(2).await;
    let hello = bench.fake.hellos().remove(1);
    assert_ne!(hello.journal, journal);
    let states: BTreeMap<AttemptRef, InventoryState> = hello.inventory.iter().map(|i| (i.attempt, i.state)).collect();
    let expected =
        [(running, InventoryState::Running), (ended, InventoryState::Ending), (foreign, InventoryState::Running)];
    assert_eq!(states, expected.into());
    assert!(bench.state().join("journal.corrupt-1").exists());

    fs::write(&gate, "").unwrap();
    let before = bench.fake.reports_of(ended).len();
    assert!(bench.complete(running).await.outcome.is_ok());
    nothing_runs(&bench.state()).await;
    assert_eq!(bench.fake.reports_of(ended).len(), before, "what was over is not reported again");
    assert!(!bench.fake.reports_of(foreign).iter().any(|r| matches!(r, Report::Complete(_))));
    // Once results and reports have arrived none of it is spoken of again, nor after a restart.
    eventually("nothing is spoken of", || async {
        let sessions = bench.fake.hellos().len();
        bench.fake.close(pb::ClosingReason::Resync).await;
        bench.ready(sessions + 1).await;
        let inventory = bench.fake.hellos().pop().unwrap().inventory;
        ensure(inventory.is_empty(), || format!("{inventory:?}"))
    })
    .await;
    daemon.stop().await;
    let sessions = bench.fake.hellos().len();
    let daemon = bench.start();
    bench.ready(sessions + 1).await;
    assert_eq!(bench.fake.hellos()[sessions].inventory, []);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_state_is_refused() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let error = Running::start(bench.config()).run.await.unwrap().unwrap_err();
    assert!(error.to_string().starts_with("another makima daemon runs on "), "{error}");
    daemon.stop().await;
}

/// A server whose database is put back from a copy: what the daemon has delivered and not yet forgotten comes again, the
/// output too, although all of it had arrived once.
#[tokio::test(flavor = "multi_thread")]
async fn output_comes_again_when_the_server_has_lost_it() {
    for verdict in [Verdict::ReportAgain, Verdict::Keep] {
        let bench = Bench::new().await;
        bench.fake.state().answers = false;
        let daemon = bench.start();
        bench.ready(1).await;
        let attempt = bench.spawn(bench.order("echo said")).await;
        bench.complete(attempt).await;
        bench.output_is(attempt, "said\n").await;
        bench.fake.state().output.clear();
        bench.fake.state().verdicts = [(attempt, verdict)].into();
        bench.fake.close(pb::ClosingReason::Resync).await;
        bench.ready(2).await;
        bench.output_is(attempt, "said\n").await;
        daemon.stop().await;
    }
}

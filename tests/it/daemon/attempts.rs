//! Attempts from their command to their report, on a daemon that lives.

use std::{fs, time::Duration};

use makima::{
    daemon::Config,
    domain::{
        attempt::FailureClass,
        order::{Answer, Order},
        report::Report,
    },
};

use super::{Bench, Running, agents, an_attempt, class, kill_shims, nothing_runs};
use crate::harness::eventually::{ensure, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_from_its_command_to_its_result() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let hello = bench.fake.hellos().remove(0);
    assert_eq!((hello.card.name.as_str(), hello.card.slots, hello.card.any_path), ("here", 4, true));
    assert!(hello.card.profiles.iter().any(|p| p.name == "shell"), "{:?}", hello.card.profiles);

    let mut order = bench.order("echo made > made.txt; echo hello $MAKIMA_TASK_KEY; echo mk_task_0123456789abcdef");
    order.setup_command = "echo preparing".to_owned();
    let result_ref = order.result_ref.clone();
    let attempt = an_attempt();
    let command = bench.fake.command(attempt, Order::Spawn(Box::new(order))).await;
    let complete = bench.complete(attempt).await;
    assert_eq!(bench.fake.answer_to(&command), Some(Answer::Persisted));
    let result = complete.outcome.clone().unwrap();
    assert_eq!(
        (complete.exit_code, result.result_ref.as_str(), result.published),
        (Some(0), result_ref.as_str(), true)
    );
    assert_eq!(bench.repo.file(&result_ref, "made.txt").as_deref(), Some("made\n"));
    assert_eq!(bench.repo.git(&["rev-parse", &result_ref]), result.commit);

    let masked = "*".repeat("mk_task_0123456789abcdef".len());
    eventually("all output is there", || async {
        ensure(bench.fake.has_all_output_of(attempt), || bench.fake.output_of(attempt))
    })
    .await;
    let output = bench.fake.output_of(attempt);
    assert!(output.starts_with("preparing\n") && output.ends_with(&format!("{masked}\n")), "{output}");
    assert!(!output.contains("mk_task"), "{output}");
    assert_eq!(complete.output_bytes, i64::try_from(output.len()).unwrap());

    let sequences: Vec<i64> = bench.fake.messages().iter().map(|m| m.sequence).collect();
    assert_eq!(sequences, (1..=i64::try_from(sequences.len()).unwrap()).collect::<Vec<_>>());
    nothing_runs(&bench.state()).await;
    bench.results_are_delivered().await;
    daemon.stop().await;

    // It is over: the next session does not speak of it, and the same command again starts nothing. A server whose database was put
    // back from a copy, from before it had heard of the end, is told that again, once.
    let daemon = bench.start();
    bench.ready(2).await;
    let hello = bench.fake.hellos().remove(1);
    assert_eq!((hello.inventory, hello.last_command, hello.unanswered), (Vec::new(), 1, (0, 0)));
    let before = bench.fake.messages().len();
    bench.fake.resend(&command).await;
    let other = bench.spawn(bench.order("true")).await;
    bench.complete(other).await;
    let again = || {
        let mut said = bench.fake.messages().split_off(before);
        said.retain(|message| message.attempt == attempt);
        said.into_iter().map(|message| message.report).collect::<Vec<_>>()
    };
    eventually("its end is said again", || async { ensure(!again().is_empty(), String::new) }).await;
    assert_eq!(again(), [Report::Complete(complete)]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_agent_ends_with_all_it_started() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("setsid sleep 1000 & sleep 1000")).await;
    bench.started(attempt).await;
    let cancel = Order::Cancel { reason: "changed my mind".to_owned(), grace: Duration::from_millis(200) };
    bench.fake.command(attempt, cancel).await;
    let complete = bench.complete(attempt).await;
    assert_eq!(agents(&bench.state()), 0, "from the word that it has ended, nothing is alive");
    assert_eq!(class(&complete), Some(FailureClass::Cancelled));
    assert!(complete.outcome.unwrap_err().message.contains("changed my mind"));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_waits_for_a_slot_and_is_cancelled_while_it_waits() {
    let bench = Bench::new().await;
    let daemon = Running::start(Config { slots: 1, ..bench.config() });
    bench.ready(1).await;
    let gate = bench.path("gate");
    let first = bench.spawn(bench.order(&format!("while [ ! -e {gate} ]; do sleep 0.02; done"))).await;
    bench.started(first).await;
    let second = bench.spawn(bench.order("true")).await;
    let third = bench.spawn(bench.order("true")).await;
    let cancel = Order::Cancel { reason: "not needed".to_owned(), grace: Duration::from_secs(1) };
    bench.fake.command(second, cancel).await;
    assert_eq!(class(&bench.complete(second).await), Some(FailureClass::Cancelled));
    assert!(bench.fake.reports_of(third).is_empty());
    fs::write(&gate, "").unwrap();
    assert!(bench.complete(first).await.outcome.is_ok());
    assert!(bench.complete(third).await.outcome.is_ok());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wall_time_and_failing_scripts_have_their_classes() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let mut slow = bench.order("sleep 1000");
    slow.wall_time = Some(Duration::from_millis(300));
    let mut broken = bench.order("true");
    broken.setup_command = "exit 3".to_owned();
    let (slow, failing, broken) =
        (bench.spawn(slow).await, bench.spawn(bench.order("echo no; exit 7")).await, bench.spawn(broken).await);
    assert_eq!(class(&bench.complete(slow).await), Some(FailureClass::Timeout));
    let failed = bench.complete(failing).await;
    assert_eq!((class(&failed).is_some(), failed.exit_code), (true, Some(7)));
    assert_eq!(class(&bench.complete(broken).await), Some(FailureClass::SetupFailed));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_takes_its_agent_with_it_and_the_attempt_has_crashed() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("setsid sleep 1000 & sleep 1000")).await;
    bench.started(attempt).await;
    kill_shims(&bench.state());
    let complete = bench.complete(attempt).await;
    assert_eq!(class(&complete), Some(FailureClass::AgentCrashed));
    assert_eq!(agents(&bench.state()), 0);
    nothing_runs(&bench.state()).await;
    daemon.stop().await;
}

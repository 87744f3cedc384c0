//! The session: what is said when, what is refused, and what ends it.

use std::{fs, time::Duration};

use makima::{
    daemon::{self, Config, agents::Profile, config::DiskFloor},
    domain::{
        attempt::FailureClass,
        order::{Answer, Order, Spawn},
        reconcile::Verdict,
        report::{InventoryState, Report},
    },
    wire::pb,
};

use super::{
    Bench, Running, agents, an_attempt, class,
    fake::{self, Event},
    nothing_runs,
};
use crate::harness::eventually::{ensure, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_is_sent_in_order_before_the_first_heartbeat() {
    let mut bench = Bench::new().await;
    bench.fake.state().answers = false;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("true")).await;
    bench.complete(attempt).await;
    let first: Vec<i64> = bench.fake.messages().iter().map(|m| m.sequence).collect();

    bench.fake.cut();
    bench.fake.state().events.clear();
    bench.fake.state().answers = true;
    bench.fake.serve();
    bench.ready(1).await;
    let events = bench.fake.state().events.clone();
    let Event::Hello(hello) = &events[0] else { panic!("{events:?}") };
    assert_eq!(hello.unanswered, (1, *first.last().unwrap()));
    assert_eq!(hello.inventory[0].state, InventoryState::Reported);
    let again: Vec<i64> = events[1..]
        .iter()
        .take_while(|e| !matches!(e, Event::Heartbeat(_)))
        .map(|e| if let Event::Message(m) = e { m.sequence } else { panic!("{events:?}") })
        .collect();
    assert_eq!(again, first);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_bounds_what_is_on_the_way() {
    let bench = Bench::new().await;
    bench.fake.state().answers = false;
    let daemon = bench.start();
    bench.ready(1).await;
    // Cancelled before they were ever here: each is answered with an end of its own.
    for _ in 0..400 {
        let cancel = Order::Cancel { reason: "enough".to_owned(), grace: Duration::from_secs(1) };
        bench.fake.command(an_attempt(), cancel).await;
    }
    eventually("a window of messages", || async {
        let seen = bench.fake.messages().len();
        ensure(seen == 256, || format!("{seen} messages"))
    })
    .await;
    let journal = bench.fake.messages()[0].journal;
    bench.fake.state().answers = true;
    for message in bench.fake.messages() {
        bench.fake.send(fake::answer_to(message.sequence, journal)).await;
    }
    eventually("all messages", || async {
        let sequences: Vec<i64> = bench.fake.messages().iter().map(|m| m.sequence).collect();
        ensure(sequences == (1..=400).collect::<Vec<_>>(), || format!("{} messages", sequences.len()))
    })
    .await;
    assert!(
        bench
            .fake
            .messages()
            .iter()
            .all(|m| matches!(&m.report, Report::Complete(c) if class(c) == Some(FailureClass::Cancelled)))
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_cancel_heals_with_a_heartbeat() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("sleep 1000")).await;
    bench.started(attempt).await;
    eventually("the attempt is in a heartbeat", || async {
        let last = bench.fake.heartbeats().pop().unwrap();
        ensure(last.live == [attempt] && last.free_slots == 3, || format!("{last:?}"))
    })
    .await;
    bench.fake.state().cancel = vec![attempt];
    assert_eq!(class(&bench.complete(attempt).await), Some(FailureClass::Cancelled));
    bench.fake.state().cancel = Vec::new();
    eventually("the slot is free", || async {
        let last = bench.fake.heartbeats().pop().unwrap();
        ensure(last.live.is_empty() && last.free_slots == 4, || format!("{last:?}"))
    })
    .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_attempt_ends_and_says_so() {
    let mut bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("echo x > x; sleep 1000")).await;
    bench.started(attempt).await;
    bench.fake.cut();
    bench.fake.state().verdicts = [(attempt, Verdict::Fenced)].into();
    bench.fake.serve();
    let complete = bench.complete(attempt).await;
    assert_eq!(class(&complete), Some(FailureClass::Cancelled));
    assert_eq!(agents(&bench.state()), 0);
    nothing_runs(&bench.state()).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_daemon_stops_and_leaves_its_agents() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("sleep 1000")).await;
    bench.started(attempt).await;
    bench.fake.close(pb::ClosingReason::Superseded).await;
    assert!(matches!(daemon.ends().await, daemon::Error::Superseded(_)));
    assert!(agents(&bench.state()) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_daemon_stops_with_its_agents() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(bench.order("sleep 1000")).await;
    bench.started(attempt).await;
    bench.fake.close(pb::ClosingReason::Banned).await;
    assert!(matches!(daemon.ends().await, daemon::Error::Banned(_)));
    assert_eq!(agents(&bench.state()), 0);
    nothing_runs(&bench.state()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_whose_key_is_refused_works_on_and_comes_back() {
    let bench = Bench::new().await;
    let daemon = bench.start();
    bench.ready(1).await;
    let gate = bench.path("gate");
    let attempt = bench.spawn(bench.order(&format!("while [ ! -e {gate} ]; do sleep 0.02; done"))).await;
    bench.started(attempt).await;
    bench.fake.state().open = false;
    bench.fake.close(pb::ClosingReason::Unauthenticated).await;
    fs::write(&gate, "").unwrap();
    nothing_runs(&bench.state()).await;
    assert_eq!(bench.fake.hellos().len(), 1);
    bench.fake.state().open = true;
    bench.ready(2).await;
    assert!(bench.complete(attempt).await.outcome.is_ok());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_here_is_refused_with_the_reason() {
    let bench = Bench::new().await;
    let offered = bench.repo.url();
    let full = DiskFloor { bytes: u64::MAX / 2, percent: 0 };
    for (config, order, reason) in [
        (Config { disk_floor: full, ..bench.config() }, bench.order("true"), "short of disk"),
        (
            bench.config(),
            Spawn { agent: "nobody".to_owned(), ..bench.order("true") },
            "agent profile `nobody` is not installed here",
        ),
        (
            Config { any_path: Some(false), repositories: vec![offered], ..bench.config() },
            Spawn { repository: "/elsewhere".to_owned(), ..bench.order("true") },
            "repository `/elsewhere` is not offered here",
        ),
    ] {
        bench.fake.state().events.clear();
        let daemon = Running::start(config);
        bench.ready(1).await;
        let command = bench.fake.command(an_attempt(), Order::Spawn(Box::new(order))).await;
        let answer = eventually("an answer", || async { bench.fake.answer_to(&command).ok_or("none") }).await;
        let Answer::Rejected { reason: said, retryable: true, counts: false } = answer else { panic!("{answer:?}") };
        assert!(said.contains(reason), "{said}");
        daemon.stop().await;
    }
    // A path that is not there, where any path may be named, is the task's trouble.
    bench.fake.state().events.clear();
    let daemon = bench.start();
    bench.ready(1).await;
    let attempt = bench.spawn(Spawn { repository: "/no/such/repository".to_owned(), ..bench.order("true") }).await;
    assert_eq!(class(&bench.complete(attempt).await), Some(FailureClass::Repository));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_slow_to_say_its_version_delays_nothing_and_is_offered_later() {
    let bench = Bench::new().await;
    let mut config = bench.config();
    config.times.detect = Duration::from_millis(50);
    let gate = bench.path("gate");
    let asked = format!("while [ ! -e {gate} ]; do sleep 0.02; done; echo 1.2.3");
    let slow = toml_profile(&format!("command = 'sh'\nversion_args = ['-c', '{asked}']"));
    config.profiles.insert("slow".to_owned(), slow);
    let daemon = Running::start(config);
    bench.ready(1).await;
    assert_eq!(bench.fake.hellos()[0].card.profiles, []);
    fs::write(&gate, "").unwrap();
    bench.ready(2).await;
    let profiles = bench.fake.hellos().remove(1).card.profiles;
    assert!(profiles.iter().any(|p| p.name == "slow" && p.version == "1.2.3"), "{profiles:?}");
    daemon.stop().await;
}

fn toml_profile(text: &str) -> Profile {
    toml::from_str(text).unwrap()
}

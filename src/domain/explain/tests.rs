//! Which reason is shown when several hold, and what a fit names.

use std::sync::{Arc, LazyLock};

use super::*;
use crate::domain::{
    attempt::FailureClass,
    contract::Cancelled,
    daemon::{Card, Profile},
    task::{Avoid, TaskSpec, Tries, Wait},
};

const NOW: Timestamp = Timestamp::from_secs(10_000);

fn id<T: std::str::FromStr>(last: u8) -> T
where
    T::Err: std::fmt::Debug,
{
    format!("01938f3e-0000-7000-8000-0000000000{last:02x}").parse().unwrap()
}

fn task() -> Task {
    Task {
        id: id(1),
        contract: id(2),
        owner: id(3),
        depth: 0,
        spec: Arc::new(TaskSpec {
            name: "ui".into(),
            agent: "shell".into(),
            labels: vec!["gpu".into()],
            repository: "/srv/repo".into(),
            ..Default::default()
        }),
        class: id(4),
        state: TaskState::Pending { wait: None, held: None },
        unmet: 0,
        attempt: 0,
        ending: None,
        daemon: None,
        tries: Tries::default(),
        branch: String::new(),
        usage: Default::default(),
        version: 1,
        created: NOW,
        updated: NOW,
        started: None,
        interrupted: None,
        checkpoint: None,
        here: None,
        chosen: None,
        handed_over: None,
        prefer: None,
    }
}

fn contract() -> Contract {
    Contract { name: "c".into(), repository: "/srv/repo".into(), ..Contract::new(id(2), id(3), NOW) }
}

fn member(name: &str, last: u8) -> Member {
    Member {
        id: id(last),
        card: Card {
            name: name.into(),
            slots: 4,
            labels: vec!["gpu".into()],
            profiles: vec![Profile { name: "shell".into(), version: String::new() }],
            repositories: vec!["/srv/repo".into()],
            ..Default::default()
        },
        attached: true,
        draining: false,
        last_seen: NOW.before(Duration::from_secs(90)),
        ready: true,
        live: 0,
    }
}

fn dependency(name: &str, last: u8, status: TaskStatus) -> Dependency {
    Dependency { task: id(last), name: name.into(), status }
}

fn hold() -> Hold {
    Hold { by: "key:k".into(), reason: "look first".into(), since: NOW }
}

static NO_NAMES: LazyLock<HashMap<DaemonId, String>> = LazyLock::new(HashMap::new);

fn nothing<'a>(contract: &'a Contract, actors: &'a HashMap<String, String>) -> Around<'a> {
    let names = &NO_NAMES;
    Around { contract, unmet: &[], blockers: &[], fleet: &[], attempt: None, holders: &[], actors, names, now: NOW }
}

fn attempt(state: AttemptState) -> Attempt {
    Attempt {
        task: id(1),
        number: 1,
        id: id(30),
        contract: id(2),
        owner: id(3),
        daemon: id(20),
        state,
        fenced: false,
        branch: String::new(),
        worktree: String::new(),
        base_commit: String::new(),
        agent_version: String::new(),
        agent_session_id: String::new(),
        last_message: String::new(),
        usage: Default::default(),
        warnings: Vec::new(),
        wall_time: None,
        assigned: NOW,
        started: None,
        output_bytes: 0,
        commands: Vec::new(),
        origin: Origin::Checkpoint { id: id(40) },
        checkpoint: None,
        checkpointed: None,
        checkpoint_failed: None,
    }
}

/// What an attempt that lives, the next one, and those who hold things are called by.
#[test]
fn what_bears_on_a_task_is_named() {
    let mut task = task();
    let mut contract = contract();
    task.daemon = Some(id(20));
    task.attempt = 1;
    let fleet = [member("one", 20), member("two", 21)];
    let actors = HashMap::from([("key:k".to_owned(), "the key `laptop` (key:k)".to_owned())]);
    let mut lines = Vec::new();
    let mut say = |task: &Task, contract: &Contract, attempt: Option<&Attempt>, holders: &[String]| {
        let around = Around { fleet: &fleet, attempt, holders, ..nothing(contract, &actors) };
        let explained = explain(task, &around);
        lines.push(explained.text.clone());
        lines.extend(actions(task, &explained, &around).into_iter().map(|action| format!("  - {action}")));
    };
    let since = NOW.before(Duration::from_secs(30));
    let running = AttemptState::Running { since };
    task.state = TaskState::Running { since };
    say(&task, &contract, Some(&attempt(running.clone())), &[]);
    let rerun_at = NOW.after(Duration::from_secs(90));
    let quiet = AttemptState::Disconnected { since, rerun_at, was: Box::new(running) };
    say(&task, &contract, Some(&attempt(quiet)), &[]);
    let pack = Some(crate::domain::attempt::Pack { bytes: 4_096, sha256: String::new() });
    let result = crate::domain::attempt::TaskResult { pack, ..Default::default() };
    task.state = TaskState::Finalizing { result: result.clone(), since };
    let finalizing = AttemptState::Finalizing { since, result };
    say(&task, &contract, Some(&attempt(finalizing.clone())), &[]);
    let quiet = AttemptState::Disconnected { since, rerun_at, was: Box::new(finalizing) };
    task.checkpoint = Some(id(40));
    say(&task, &contract, Some(&attempt(quiet)), &[]);
    task.checkpoint = None;

    task.state = TaskState::Pending { wait: None, held: None };
    task.ending = Some(1);
    let ending = AttemptState::Ending { since, reason: String::new() };
    say(&task, &contract, Some(&attempt(ending)), &[]);
    task.ending = None;
    task.checkpoint = Some(id(40));
    task.prefer = Some(id(21));
    say(&task, &contract, None, &[]);
    task.prefer = None;
    let earlier = attempt(AttemptState::Running { since }).reference();
    task.here = Some(crate::domain::checkpoint::Here { attempt: earlier, daemon: id(20), worktree: String::new() });
    contract.live = 10;
    say(&task, &contract, None, &["api".to_owned(), "types".to_owned()]);
    contract.held = Some(hold());
    say(&task, &contract, None, &[]);
    insta::assert_snapshot!(lines.join("\n"), @r"
    its agent has been running on one for 30 s, from checkpoint 000000000028
    its daemon one has been quiet for 30 s; it is given up in 90 s if it does not come back
      - begin anew elsewhere at once (the server has no checkpoint of it yet): makima task reassign 000000000001
    its agent has ended well; its result (4096 bytes) has been on the way from one for 30 s
    its daemon one, with the only copy of its result, has been quiet for 30 s; it is given up in 90 s if it does not come back
      - go on elsewhere at once, from its last checkpoint: makima task reassign 000000000001
    attempt 1 is still being ended on one, for 30 s
      - do not wait for that daemon: makima task force-release 000000000001 --reason TEXT
    about to be given to a daemon; it goes on from checkpoint 000000000028; on two first
    its contract runs 10 attempts and may run 10: api, types and 8 more; it goes on in its worktree on one
    its contract is held by the key `laptop` (key:k): look first; it goes on in its worktree on one
      - release the contract: makima contract release 01938f3e-0000-7000-8000-000000000002
    ");
}

/// Every reason, its sentence and what to do about it, from the one that goes away last to the one that goes away first.
#[test]
fn each_reason_shows_when_all_before_it_are_gone() {
    let mut lines = Vec::new();
    let mut task = task();
    let mut contract = contract();
    task.unmet = 2;
    task.ending = Some(1);
    task.daemon = Some(id(20));
    let until = NOW.after(Duration::from_secs(300));
    task.state = TaskState::Pending { wait: Some(Wait { until, why: WaitReason::UsageLimit }), held: Some(hold()) };
    task.tries.last_failure = Some(Failure::new(FailureClass::UsageLimit, "429"));
    contract.held = Some(hold());
    contract.live = 10;
    let mut fleet: Vec<Member> = Vec::new();
    let mut unmet = vec![dependency("api", 11, TaskStatus::Failed), dependency("types", 12, TaskStatus::Running)];
    let mut blockers = vec![dependency("api", 11, TaskStatus::Failed)];

    let actors = HashMap::new();
    let mut say =
        |task: &Task, contract: &Contract, unmet: &[Dependency], blockers: &[Dependency], fleet: &[Member]| {
            let around = Around { contract, unmet, blockers, fleet, ..nothing(contract, &actors) };
            let explained = explain(task, &around);
            lines.push(format!("{:?}: {}", explained.pending.unwrap(), explained.text));
            lines.extend(actions(task, &explained, &around).into_iter().map(|action| format!("  - {action}")));
        };

    say(&task, &contract, &unmet, &blockers, &fleet);
    blockers.clear();
    unmet.remove(0);
    task.unmet = 1;
    contract.cancelled = Some(Cancelled { by: "key:k".into(), reason: String::new(), since: NOW });
    say(&task, &contract, &unmet, &blockers, &fleet);
    contract.cancelled = None;
    say(&task, &contract, &unmet, &blockers, &fleet);
    task.state = TaskState::Pending { wait: Some(Wait { until, why: WaitReason::UsageLimit }), held: None };
    say(&task, &contract, &unmet, &blockers, &fleet);
    contract.held = None;
    say(&task, &contract, &unmet, &blockers, &fleet);
    say(&task, &contract, &[], &blockers, &fleet);
    task.unmet = 0;
    say(&task, &contract, &[], &blockers, &fleet);
    task.ending = None;
    say(&task, &contract, &[], &blockers, &fleet);
    task.state = TaskState::Pending { wait: Some(Wait { until, why: WaitReason::Backoff }), held: None };
    say(&task, &contract, &[], &blockers, &fleet);
    // A wait that is over is no reason, even before the ledger has noticed.
    task.state = TaskState::Pending { wait: Some(Wait { until: NOW, why: WaitReason::Backoff }), held: None };
    say(&task, &contract, &[], &blockers, &fleet);
    contract.live = 9;
    say(&task, &contract, &[], &blockers, &fleet);
    fleet.push(member("one", 20));
    fleet[0].attached = false;
    say(&task, &contract, &[], &blockers, &fleet);
    fleet[0].attached = true;
    fleet[0].card.labels.clear();
    fleet.push(member("two", 21));
    fleet[1].card.profiles.clear();
    fleet[1].card.repositories.clear();
    say(&task, &contract, &[], &blockers, &fleet);
    fleet[0].card.labels.push("gpu".into());
    fleet[0].draining = true;
    fleet[1] = member("two", 21);
    fleet[1].card.not_accepting = "the disk is full".into();
    say(&task, &contract, &[], &blockers, &fleet);
    fleet[1].card.not_accepting.clear();
    fleet[1].live = 4;
    say(&task, &contract, &[], &blockers, &fleet);
    fleet[1].live = 3;
    say(&task, &contract, &[], &blockers, &fleet);
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_fit_names_all_that_is_missing() {
    let mut task = task();
    let mut one = member("one", 20);
    assert_eq!(fit(&task, &one, NOW), Fit { fits: true, lacks: vec![] });
    task.tries.avoid.push(Avoid { daemon: id(20), until: NOW.after(Duration::from_secs(600)) });
    let avoided = fit(&task, &one, NOW);
    assert!(avoided.fits, "avoidance is soft");
    assert_eq!(avoided.lacks, ["tried last for another 10 min, after a failure there"]);
    one.attached = false;
    one.draining = true;
    one.card.labels.clear();
    one.live = 4;
    assert_eq!(
        fit(&task, &one, NOW).lacks,
        [
            "not attached, last heard 90 s ago",
            "draining",
            "lacks label `gpu`",
            "no free slot (4 of 4 taken)",
            "tried last for another 10 min, after a failure there",
        ]
    );
}

#[test]
fn a_task_that_has_started_or_ended_says_where_it_stands() {
    let mut task = task();
    let contract = contract();
    task.daemon = Some(id(20));
    let fleet = [member("one", 20)];
    let actors = HashMap::new();
    let around = Around { fleet: &fleet, ..nothing(&contract, &actors) };
    task.state = TaskState::Running { since: NOW.before(Duration::from_secs(7_300)) };
    assert_eq!(explain(&task, &around), Explained::standing("its agent has been running on one for 2 h"));
    // From when nothing is heard of its daemon on, and not only from when that is taken for its loss.
    let mut gone = fleet.clone();
    gone[0].attached = false;
    let without = Around { fleet: &gone, ..around };
    assert_eq!(
        explain(&task, &without).text,
        "its agent has been running on one for 2 h; that daemon is not attached, and was last heard 90 s ago"
    );
    let not_attached = "; its daemon one is not attached, and was last heard 90 s ago";
    let asks = TaskState::AwaitingInput { question: "which one?".to_owned(), since: NOW };
    let paused = TaskState::Paused { held: hold() };
    for (state, told) in [(asks, "its agent asks: which one?"), (paused, "paused by key:k: look first")] {
        let task = Task { state, ..task.clone() };
        assert_eq!(explain(&task, &around).text, told);
        assert_eq!(explain(&task, &without).text, format!("{told}{not_attached}"));
    }
    let since = NOW.before(Duration::from_secs(45));
    let running = AttemptState::Running { since: NOW.before(Duration::from_secs(7_300)) };
    let rerun_at = NOW.after(Duration::from_secs(120));
    let quiet = attempt(AttemptState::Disconnected { since, rerun_at, was: Box::new(running) });
    let told = "its daemon one has been quiet for 90 s; it is given up in 2 min if it does not come back";
    assert_eq!(explain(&task, &Around { attempt: Some(&quiet), ..without }).text, told);
    // A list has no fleet at hand, and the names.
    let names = HashMap::from([(id(20), "one".to_owned())]);
    let told = told.replace("90 s", "45 s");
    assert_eq!(explain(&task, &Around { attempt: Some(&quiet), fleet: &[], names: &names, ..around }).text, told);
    task.state = TaskState::Failed { failure: Failure::new(FailureClass::Timeout, "over its wall time"), at: NOW };
    let explained = explain(&task, &around);
    assert_eq!(explained, Explained::standing("over its wall time"));
    let ways = [
        "try it again: makima task retry 000000000001",
        "where that would fail as before, ask something else of it first: makima task update 000000000001",
    ];
    assert_eq!(actions(&task, &explained, &around), ways);
    task.checkpoint = Some(id(40));
    assert_eq!(
        actions(&task, &explained, &around)[2..],
        [
            "from an earlier checkpoint: makima task checkpoints 000000000001, then makima task resume 000000000001 --from \
             CHECKPOINT",
            "have its work in a directory: makima task restore 000000000001 --into DIR",
        ]
    );
    let mut over = around.contract.clone();
    over.cancelled = Some(Cancelled { by: "key:k".into(), reason: String::new(), since: NOW });
    let ways = ["have its work in a directory: makima task restore 000000000001 --into DIR"];
    assert_eq!(actions(&task, &explained, &Around { contract: &over, ..around }), ways);
}

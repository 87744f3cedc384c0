//! Attempts, daemons and their commands.

use std::sync::Arc;

use makima::domain::{
    AttemptId, AttemptRef, CommandId, DaemonId, Epoch,
    attempt::{Attempt, AttemptState},
    daemon::Daemon,
    order::{Command, Order},
};

use super::{
    Fresh,
    samples::{ODD, assigned, at, attempt, contract, daemon, failure, id, owner, result, spawn, task, waiting, with},
};
use crate::{bed::Kind, both};

both!(
    attempts_come_back_whole,
    attempts_that_are_live,
    attempts_that_are_due,
    daemons_come_back_whole,
    commands_in_order
);

fn disconnected(rerun_at: i64) -> AttemptState {
    let was = Box::new(AttemptState::Ending { since: at(1), reason: ODD.to_owned() });
    AttemptState::Disconnected { since: at(2), rerun_at: at(rerun_at), was }
}

/// Every state with its fields, by id, by number and by task.
async fn attempts_come_back_whole(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let task = task(&contract(owner(), 1), 1, "t");
    let other = super::samples::task(&contract(owner(), 2), 2, "t");
    let states = [
        AttemptState::Assigned { answer_by: at(5), spawn: None },
        assigned(6),
        AttemptState::Accepted { since: at(6) },
        AttemptState::Running { since: at(7) },
        AttemptState::Ending { since: at(8), reason: ODD.to_owned() },
        disconnected(9),
        AttemptState::Finalizing { since: at(9), result: result() },
        AttemptState::Ended { at: at(10), outcome: Ok(result()) },
        AttemptState::Ended { at: at(11), outcome: Err(failure()) },
    ];
    // Ids in another order than numbers.
    let written: Vec<_> = (1..)
        .zip(states)
        .map(|(number, state)| attempt(&task, 100 - u128::from(number), number, DaemonId(id(7)), state))
        .collect();
    let elsewhere = attempt(&other, 50, 1, DaemonId(id(7)), AttemptState::Accepted { since: at(6) });
    let mut tx = fresh.begin().await;
    let rows: Vec<_> = written.iter().rev().chain([&elsewhere]).collect();
    tx.attempts_insert(&rows).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = fresh.begin().await;
    assert_eq!(tx.attempts_of_task(task.id).await.unwrap(), written);
    let mut read = tx.attempts_fetch(&written.iter().map(|a| a.id).collect::<Vec<_>>()).await.unwrap();
    read.sort_by_key(|attempt| attempt.number);
    assert_eq!(read, written);
    let wanted = [(task.id, 3), (task.id, 99), (other.id, 1), (other.id, 3)];
    let mut numbered = tx.attempts_numbered(&wanted).await.unwrap();
    numbered.sort_by_key(|attempt| attempt.number);
    assert_eq!(numbered, [elsewhere, written[2].clone()]);
    assert_eq!(tx.attempts_fetch(&[AttemptId(id(1))]).await.unwrap(), []);

    let changed = Attempt { state: AttemptState::Ended { at: at(12), outcome: Ok(result()) }, ..written[0].clone() };
    tx.attempts_update(&[&changed]).await.unwrap();
    assert_eq!(tx.attempts_fetch(&[changed.id]).await.unwrap(), [changed]);

    tx.attempts_insert(&[]).await.unwrap();
    tx.attempts_update(&[]).await.unwrap();
    assert_eq!(tx.attempts_fetch(&[]).await.unwrap(), []);
    assert_eq!(tx.attempts_numbered(&[]).await.unwrap(), []);
    assert_eq!(tx.attempts_live(&[]).await.unwrap(), []);
    assert_eq!(tx.attempts_live_counts(&[]).await.unwrap(), []);
}

/// What holds a slot, by daemon.
async fn attempts_that_are_live(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let task = task(&contract(owner(), 1), 1, "t");
    let (d1, d2, d3) = (DaemonId(id(1)), DaemonId(id(2)), DaemonId(id(3)));
    let running = AttemptState::Running { since: at(0) };
    let ended = AttemptState::Ended { at: at(1), outcome: Err(failure()) };
    let live = [
        attempt(&task, 11, 1, d1, running.clone()),
        attempt(&task, 12, 2, d1, disconnected(3)),
        attempt(&task, 13, 3, d2, running.clone()),
        attempt(&task, 14, 4, d3, running),
    ];
    let over = [attempt(&task, 21, 5, d1, ended.clone()), attempt(&task, 22, 6, d2, ended.clone())];
    let mut tx = fresh.begin().await;
    tx.attempts_insert(&live.iter().chain(&over).collect::<Vec<_>>()).await.unwrap();

    let mut read = tx.attempts_live(&[d1, d2, DaemonId(id(9))]).await.unwrap();
    read.sort_by_key(|attempt| attempt.number);
    assert_eq!(read, live[..3]);
    let mut counts = tx.attempts_live_counts(&[d2, d1, DaemonId(id(9))]).await.unwrap();
    counts.sort_unstable();
    assert_eq!(counts, [(d1, 2), (d2, 1)]);

    tx.attempts_update(&[&Attempt { state: ended, ..live[2].clone() }]).await.unwrap();
    assert_eq!(tx.attempts_live(&[d2]).await.unwrap(), []);
}

/// At its very microsecond, the oldest first; what has ended or runs is not due.
async fn attempts_that_are_due(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let contract = contract(owner(), 1);
    let task = task(&contract, 1, "t");
    let d = DaemonId(id(7));
    let mut tx = fresh.begin().await;
    assert_eq!(tx.next_due(at(0)).await.unwrap(), None);
    let written = [
        attempt(&task, 13, 1, d, disconnected(30)),
        attempt(&task, 11, 2, d, assigned(10)),
        attempt(&task, 12, 3, d, assigned(20)),
        attempt(&task, 14, 4, d, AttemptState::Running { since: at(0) }),
    ];
    tx.attempts_insert(&written.iter().collect::<Vec<_>>()).await.unwrap();
    assert_eq!(tx.next_due(at(0)).await.unwrap(), Some(at(10)));
    assert_eq!(tx.attempts_due(at(9), 10).await.unwrap(), []);
    assert_eq!(tx.attempts_due(at(10), 10).await.unwrap(), [written[1].id]);
    let all = [written[1].id, written[2].id, written[0].id];
    assert_eq!(tx.attempts_due(at(30), 10).await.unwrap(), all);
    assert_eq!(tx.attempts_due(at(30), 2).await.unwrap(), all[..2]);

    let accepted = Attempt { state: AttemptState::Accepted { since: at(1) }, ..written[1].clone() };
    tx.attempts_update(&[&accepted]).await.unwrap();
    assert_eq!(tx.next_due(at(0)).await.unwrap(), Some(at(20)));
    tx.tasks_insert(&[&with(&task, waiting(at(15)))]).await.unwrap();
    assert_eq!(tx.next_due(at(0)).await.unwrap(), Some(at(15)));
    // What is due by then is for whoever asks then.
    assert_eq!(tx.next_due(at(15)).await.unwrap(), Some(at(20)));
}

/// Whole, by id, by name, in pages by name, and those that are attached.
async fn daemons_come_back_whole(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let (alice, bob) = (owner(), owner());
    let mut written: Vec<_> = ["c", "a", "b"].iter().zip(1..).map(|(name, n)| daemon(alice, n, name)).collect();
    written.push(Daemon { attached: false, ..daemon(bob, 4, ODD) });
    let mut tx = fresh.begin().await;
    tx.daemons_put(&written.iter().collect::<Vec<_>>()).await.unwrap();
    tx.daemons_put(&[]).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = fresh.begin().await;
    let mut read = tx.daemons_fetch(&written.iter().map(|d| d.id).collect::<Vec<_>>()).await.unwrap();
    read.sort_by_key(|daemon| daemon.id);
    assert_eq!(read, written);
    assert_eq!(tx.daemons_fetch(&[]).await.unwrap(), []);
    assert_eq!(tx.daemon_named(alice, "a").await.unwrap().as_ref(), Some(&written[1]));
    assert_eq!(tx.daemon_named(bob, ODD).await.unwrap().as_ref(), Some(&written[3]));
    assert_eq!(tx.daemon_named(bob, "a").await.unwrap(), None);
    let names = |page: &[Daemon]| -> String { page.iter().map(|d| d.card.name.as_str()).collect() };
    assert_eq!(names(&tx.daemons_list(alice, None, 10).await.unwrap()), "abc");
    assert_eq!(names(&tx.daemons_list(alice, None, 2).await.unwrap()), "ab");
    assert_eq!(names(&tx.daemons_list(alice, Some("b"), 2).await.unwrap()), "c");
    assert_eq!(tx.daemons_list(alice, Some("c"), 2).await.unwrap(), []);
    let mut attached = tx.daemons_attached().await.unwrap();
    attached.sort_by_key(|daemon| daemon.id);
    assert_eq!(attached, written[..3]);
    let mut names = tx.daemon_names(&[written[3].id, DaemonId(id(99)), written[0].id]).await.unwrap();
    names.sort();
    assert_eq!(names, [(written[0].id, "c".to_owned()), (written[3].id, ODD.to_owned())]);
    assert_eq!(tx.daemon_names(&[]).await.unwrap(), []);

    let mut changed = Daemon { attached: false, epoch: Epoch(5), ..written[0].clone() };
    changed.card.name = "z".to_owned();
    tx.daemons_put(&[&changed]).await.unwrap();
    assert_eq!(tx.daemon_named(alice, "c").await.unwrap(), None);
    assert_eq!(tx.daemon_named(alice, "z").await.unwrap().as_ref(), Some(&changed));
    assert_eq!(tx.daemons_attached().await.unwrap().len(), 2);
    let later = Daemon { attached: true, epoch: Epoch(6), last_seen: at(9), ..changed };
    tx.daemons_update(&[&later]).await.unwrap();
    assert_eq!(tx.daemons_fetch(&[later.id]).await.unwrap(), [later]);
    assert_eq!(tx.daemons_attached().await.unwrap().len(), 3);
}

/// Whole, in order of sequence for each daemon, and gone once answered.
async fn commands_in_order(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let task = task(&contract(owner(), 1), 1, "t");
    let (d1, d2) = (DaemonId(id(1)), DaemonId(id(2)));
    let cancel = |sequence| Command {
        sequence,
        id: CommandId(id(60)),
        epoch: Epoch(1),
        attempt: AttemptRef { task: task.id, number: 2, id: AttemptId(id(61)) },
        order: Order::Cancel { reason: ODD.to_owned(), grace: std::time::Duration::from_millis(10_500) },
    };
    let (spawn, last) = (spawn(&task, 9, 50), cancel(i64::MAX));
    let mut tx = fresh.begin().await;
    let written = [(d1, cancel(10)), (d2, last.clone()), (d1, spawn.clone()), (d2, cancel(9))];
    tx.commands_insert(&written.map(|(daemon, command)| (daemon, Arc::new(command)))).await.unwrap();
    tx.commands_insert(&[]).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = fresh.begin().await;
    assert_eq!(tx.commands_of(&[d2, d1]).await.unwrap(), [spawn.clone(), cancel(10), cancel(9), last.clone()]);
    assert_eq!(tx.commands_of(&[]).await.unwrap(), []);
    tx.commands_delete(&[(d1, 10), (d2, 9), (d2, 77)]).await.unwrap();
    tx.commands_delete(&[]).await.unwrap();
    assert_eq!(tx.commands_of(&[d1, d2]).await.unwrap(), [spawn, last]);
}

//! What is asked to show how the server stands.

use std::sync::Arc;

use makima::{
    domain::{
        CommandId, DaemonId, Timestamp,
        attempt::{Attempt, AttemptState},
        daemon::Daemon,
        order::Command,
        task::{TaskState, TaskStatus},
    },
    store::{Busy, Unanswered},
};
use uuid::{NoContext, Uuid};

use super::{
    Fresh,
    samples::{ODD, assigned, at, attempt, contract, daemon, id, owner, result, spawn, states, task, waiting, with},
};
use crate::{bed::Kind, both};

both!(
    commands_that_wait_have_an_age,
    orders_to_start_have_an_age,
    live_attempts_are_counted,
    unfinished_tasks_are_counted
);

/// A command with an id that was made then.
fn command(template: &Command, sequence: i64, seconds: u64) -> Arc<Command> {
    let made = Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, seconds, 0));
    Arc::new(Command { sequence, id: CommandId(made), ..template.clone() })
}

/// The oldest is the first of some daemon, whichever daemon that is, and whatever its number.
async fn commands_that_wait_have_an_age(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let mut tx = fresh.begin().await;
    assert_eq!(tx.commands_unanswered().await.unwrap(), Unanswered::default());
    let order = spawn(&task(&contract(owner(), 1), 1, "t"), 1, 1);
    let (one, other) = (DaemonId(id(1)), DaemonId(id(2)));
    let commands = [
        (one, command(&order, 1, 1_700_000_050)),
        (one, command(&order, 2, 1_700_000_060)),
        (other, command(&order, 9, 1_700_000_040)),
        (other, command(&order, 10, 1_700_000_070)),
    ];
    tx.commands_insert(&commands).await.unwrap();
    let oldest = |seconds| Some(Timestamp::from_secs(seconds));
    let expected = Unanswered { count: 4, oldest: oldest(1_700_000_040) };
    assert_eq!(tx.commands_unanswered().await.unwrap(), expected);
    tx.commands_delete(&[(other, 9)]).await.unwrap();
    let expected = Unanswered { count: 3, oldest: oldest(1_700_000_050) };
    assert_eq!(tx.commands_unanswered().await.unwrap(), expected);
}

/// An order to start an attempt is as old as that, until it is answered, also while its daemon is away.
async fn orders_to_start_have_an_age(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let mut tx = fresh.begin().await;
    let (task, daemon) = (task(&contract(owner(), 1), 1, "t"), DaemonId(id(1)));
    let away = |was| AttemptState::Disconnected { since: at(2), rerun_at: at(3), was: Box::new(was) };
    let states = [
        (70, assigned(1)),
        (50, away(assigned(1))),
        (40, away(AttemptState::Running { since: at(1) })),
        (30, AttemptState::Assigned { answer_by: at(1), spawn: None }),
        (20, AttemptState::Accepted { since: at(1) }),
    ];
    let mut attempts: Vec<Attempt> = (1..)
        .zip(states)
        .map(|(number, (since, state))| Attempt {
            assigned: at(since),
            ..attempt(&task, u128::from(number), number, daemon, state)
        })
        .collect();
    tx.attempts_insert(&attempts.iter().collect::<Vec<_>>()).await.unwrap();
    assert_eq!(tx.commands_unanswered().await.unwrap(), Unanswered { count: 2, oldest: Some(at(50)) });
    attempts[1].state = AttemptState::Accepted { since: at(4) };
    tx.attempts_update(&[&attempts[1]]).await.unwrap();
    assert_eq!(tx.commands_unanswered().await.unwrap(), Unanswered { count: 1, oldest: Some(at(70)) });
}

/// By state and by daemon; one that has ended counts nowhere, and a daemon that is away counts its attempts all the same.
async fn live_attempts_are_counted(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let alice = owner();
    let task = task(&contract(alice, 1), 1, "t");
    let (here, gone, idle) = (daemon(alice, 1, ODD), daemon(alice, 2, "gone"), daemon(alice, 3, "idle"));
    let gone = Daemon { attached: false, ..gone };
    let running = || AttemptState::Running { since: at(1) };
    let was = Box::new(running());
    let attempts = [
        attempt(&task, 11, 1, here.id, assigned(1)),
        checkpointed(attempt(&task, 12, 2, here.id, running()), 50),
        Attempt { checkpointed: None, ..attempt(&task, 13, 3, here.id, running()) },
        attempt(&task, 14, 4, here.id, AttemptState::Ended { at: at(1), outcome: Ok(result()) }),
        attempt(&task, 15, 5, gone.id, AttemptState::Disconnected { since: at(1), rerun_at: at(2), was }),
    ];
    let mut tx = fresh.begin().await;
    tx.owner_insert(alice, "alice", at(1)).await.unwrap();
    tx.daemons_put(&[&here, &gone, &idle]).await.unwrap();
    tx.attempts_insert(&attempts.iter().collect::<Vec<_>>()).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = fresh.read().await;
    let mut states = tx.attempts_live_states().await.unwrap();
    states.sort();
    let named = |state: &str, count| (state.to_owned(), count);
    assert_eq!(states, [named("assigned", 1), named("disconnected", 1), named("running", 2)]);
    assert_eq!(tx.attempts_unsafe_since().await.unwrap(), Some(at(31)), "the one without a checkpoint, from its start");
    let mut busy = tx.daemons_busy().await.unwrap();
    busy.sort();
    let line = |daemon: &Daemon, live| Busy { daemon: daemon.id, owner: alice, name: daemon.card.name.clone(), live };
    assert_eq!(busy, [line(&here, 3), line(&gone, 1)]);
    assert_eq!(tx.daemons_away().await.unwrap(), 1);
    assert_eq!(tx.owners_list().await.unwrap(), [(alice, "alice".to_owned())]);
    drop(tx);

    let mut tx = fresh.begin().await;
    tx.attempts_update(&[&checkpointed(attempts[2].clone(), 60)]).await.unwrap();
    assert_eq!(tx.attempts_unsafe_since().await.unwrap(), Some(at(50)), "the older of two checkpoints");
    let over = AttemptState::Ended { at: at(1), outcome: Ok(result()) };
    let ended = attempts[1..3].iter().map(|attempt| Attempt { state: over.clone(), ..attempt.clone() });
    tx.attempts_update(&ended.collect::<Vec<_>>().iter().collect::<Vec<_>>()).await.unwrap();
    assert_eq!(tx.attempts_unsafe_since().await.unwrap(), None, "nothing runs");
}

fn checkpointed(attempt: Attempt, when: i64) -> Attempt {
    Attempt { checkpointed: Some(at(when)), ..attempt }
}

/// One in every state: those that are final do not count, and only what waits for nothing is ready.
async fn unfinished_tasks_are_counted(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let contract = contract(owner(), 1);
    let named = |n: u128, state: TaskState| with(&task(&contract, n, &format!("t{n}")), state);
    let mut tasks: Vec<_> = (1..).zip(states()).map(|(n, state)| named(n, state)).collect();
    tasks.push(named(90, TaskState::Pending { wait: None, held: None }));
    tasks.push(named(91, TaskState::Pending { wait: None, held: None }));
    tasks.push(named(92, waiting(at(1))));
    let mut tx = fresh.begin().await;
    assert_eq!(tx.tasks_unfinished_counts().await.unwrap(), (Vec::new(), 0));
    tx.tasks_insert(&tasks.iter().collect::<Vec<_>>()).await.unwrap();
    let (mut counts, ready) = tx.tasks_unfinished_counts().await.unwrap();
    counts.sort_by_key(|(status, _)| *status as u8);
    let expected = [
        (TaskStatus::Pending, 4),
        (TaskStatus::Starting, 1),
        (TaskStatus::Running, 1),
        (TaskStatus::Paused, 1),
        (TaskStatus::AwaitingInput, 1),
        (TaskStatus::Finalizing, 1),
    ];
    assert_eq!(counts, expected);
    assert_eq!(ready, 2);
}

//! A server that repeats itself and does not keep the order: commands and answers as a bad network and a bad memory could
//! deliver them.

use std::fs;

use makima::{
    domain::{
        CommandId, Epoch,
        order::{Command, Order},
    },
    wire::pb,
};
use uuid::Uuid;

use super::{Bench, an_attempt, fake, nothing_runs};
use crate::harness::eventually::{ensure, eventually};

/// Commands come three times, the later ones first; answers to messages come twice, the last one first. Each agent runs
/// once, and in the end nothing is owed.
#[tokio::test(flavor = "multi_thread")]
async fn commands_and_answers_are_repeated_and_out_of_order() {
    let bench = Bench::new().await;
    bench.fake.state().answers = false;
    let daemon = bench.start();
    bench.ready(1).await;
    let command = |sequence: i64| {
        let plan = format!("echo ran >> {}", bench.path(&format!("runs-{sequence}")));
        let order = Order::Spawn(Box::new(bench.order(&plan)));
        Command { sequence, id: CommandId(Uuid::now_v7()), epoch: Epoch(1), attempt: an_attempt(), order }
    };
    let commands: Vec<Command> = (1..=4).map(command).collect();
    for at in [2, 0, 3, 1, 3, 2, 1, 0, 0, 1, 2, 3] {
        bench.fake.resend(&commands[at]).await;
    }
    for command in &commands {
        assert!(bench.complete(command.attempt).await.outcome.is_ok());
    }
    let messages = bench.fake.messages();
    for message in messages.iter().rev() {
        for _ in 0..2 {
            bench.fake.send(fake::answer_to(message.sequence, message.journal)).await;
        }
    }
    bench.fake.state().answers = true;
    nothing_runs(&bench.state()).await;
    for sequence in 1..=4 {
        assert_eq!(fs::read_to_string(bench.path(&format!("runs-{sequence}"))).unwrap(), "ran\n");
    }
    // What it says of itself when it comes again.
    eventually("nothing is owed", || async {
        let sessions = bench.fake.hellos().len();
        bench.fake.close(pb::ClosingReason::Resync).await;
        bench.ready(sessions + 1).await;
        let hello = bench.fake.hellos().pop().unwrap();
        ensure(hello.unanswered.0 == 0 || hello.unanswered.0 > hello.unanswered.1, || format!("{:?}", hello.unanswered))
    })
    .await;
    daemon.stop().await;
}

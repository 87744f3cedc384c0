//! Everything said twice and in any order: a daemon played against the ledger, whose answers and reports arrive as a bad
//! network and a bad memory could deliver them. Rows 1, 6, 9.

use makima::{
    domain::{
        AttemptRef, Timestamp,
        order::{Answer, Command},
        report::{Message, Report},
        task::TaskStatus,
    },
    server::ledger::{Op, Reply},
};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use crate::{
    bed::{Bed, Daemon, Kind, complete, result, started, task},
    both,
};

both!(everything_is_said_twice_and_out_of_order);

/// Histories, each with an order of its own.
const SEEDS: u64 = 12;

#[derive(Clone, Copy, Debug)]
enum Word {
    Accepted,
    Started,
    Done,
}

/// Every task ends once, with its first attempt, and nothing of it holds a slot.
async fn everything_is_said_twice_and_out_of_order(kind: Kind) {
    let bed = Bed::new(kind).await;
    let mut daemon = bed.daemon("d", 2).await;
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let chain = [task("a", &[]), task("b", &["a"]), task("c", &["a"]), task("d", &["b", "c"])];
        let (contract, tasks) = bed.contract(chain.to_vec()).await;
        for _ in 0..tasks.len() {
            let (command, _) = daemon.spawned().await;
            let mut words = [Word::Accepted, Word::Started, Word::Done, Word::Accepted, Word::Started, Word::Done];
            words.shuffle(&mut rng);
            for word in words {
                say(&bed, &daemon, &command, word).await;
            }
        }
        for task in &tasks {
            let done = bed.task_is(task.id, TaskStatus::Done).await;
            assert_eq!(done.attempt, 1, "seed {seed}: {done:?}");
        }
        let mut tx = bed.store.read().await.expect("read");
        let live = tx.attempts_live_counts(&[daemon.id]).await.expect("counts");
        assert!(live.iter().all(|(_, count)| *count == 0), "seed {seed}: {live:?}");
        assert_eq!(tx.contracts_moving(&[contract.id]).await.expect("moving"), []);
        tx.rollback().await.expect("rollback");
    }
}

async fn say(bed: &Bed, daemon: &Daemon, command: &Command, word: Word) {
    match word {
        Word::Accepted => daemon.answer(bed, command, Answer::Persisted).await,
        Word::Started => tell(bed, daemon, command.attempt, 1, started()).await,
        Word::Done => {
            tell(bed, daemon, command.attempt, 2, Report::Complete(complete(Ok(result(command.attempt))))).await
        }
    }
}

async fn tell(bed: &Bed, daemon: &Daemon, attempt: AttemptRef, sequence: i64, report: Report) {
    let message = Message { sequence, journal: daemon.journal, attempt, at: Timestamp(0), report };
    let reply = bed.ledger.server(Op::Message { daemon: daemon.id, message }).await;
    assert!(matches!(reply, Ok(Reply::Message(_))), "{reply:?}");
}

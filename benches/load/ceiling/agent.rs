//! The bare model's agent: a journal on the disk, synced before anything is said.

use std::sync::mpsc;

use rusqlite::{Connection, params};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{
    ATTEMPT_BYTES, CREDIT,
    store::number,
    wire::{self, ACCEPTED, COMPLETE, HELLO, Job, Said},
};
use crate::hollow;

/// Operations of one commit.
const MOST: usize = 1_000;

enum Op {
    /// An order has come.
    Order(Job),
    /// What it asks for has been done.
    End(u64),
    /// The server has the end.
    Answered(u64),
}

/// Runs until it is killed, or the server is gone. With `tells` it writes `began ID NANOSECONDS` for each order that is durable.
pub async fn run(port: &str, file: &str, tells: bool) {
    let channel = wire::connect(port).await;
    let (say, said) = tokio::sync::mpsc::unbounded_channel();
    say.send(Said { what: HELLO, id: CREDIT, text: String::new() }).expect("a stream");
    let mut orders = wire::attach(&channel, UnboundedReceiverStream::new(said)).await;
    let (ops, inbox) = mpsc::channel();
    let (again, file) = (ops.clone(), file.to_owned());
    std::thread::spawn(move || journal(&file, &inbox, &again, &say, tells));
    while let Ok(Some(told)) = orders.message().await {
        let op = told.order.map_or(Op::Answered(told.answered), Op::Order);
        if ops.send(op).is_err() {
            return;
        }
    }
}

/// Commits whatever has come, then says what is durable now. An order that was accepted ends with the next commit.
fn journal(
    file: &str,
    inbox: &mpsc::Receiver<Op>,
    again: &mpsc::Sender<Op>,
    say: &tokio::sync::mpsc::UnboundedSender<Said>,
    tells: bool,
) {
    let mut database = Connection::open(file).expect("open a journal");
    database
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE attempt (id INTEGER PRIMARY KEY, state integer NOT NULL, spawn text NOT NULL, complete text);
             CREATE TABLE outbox (id INTEGER PRIMARY KEY, report text NOT NULL);",
        )
        .expect("make tables");
    let report = "x".repeat(ATTEMPT_BYTES);
    while let Ok(first) = inbox.recv() {
        let ops: Vec<Op> = std::iter::once(first).chain(inbox.try_iter().take(MOST)).collect();
        write(&mut database, &ops, &report).expect("write the journal");
        for op in ops {
            match op {
                Op::Order(job) => {
                    if tells {
                        hollow::told(job.id);
                    }
                    let _ = say.send(Said { what: ACCEPTED, id: job.id, text: String::new() });
                    let _ = again.send(Op::End(job.id));
                }
                Op::End(id) => _ = say.send(Said { what: COMPLETE, id, text: report.clone() }),
                Op::Answered(_) => {}
            }
        }
    }
}

fn write(database: &mut Connection, ops: &[Op], report: &str) -> rusqlite::Result<()> {
    let tx = database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    {
        let mut order = tx.prepare_cached("INSERT INTO attempt (id, state, spawn) VALUES (?1, 0, ?2)")?;
        let mut end = tx.prepare_cached("UPDATE attempt SET state = 1, complete = ?2 WHERE id = ?1")?;
        let mut owe = tx.prepare_cached("INSERT INTO outbox (id, report) VALUES (?1, ?2)")?;
        let mut answered = tx.prepare_cached("DELETE FROM outbox WHERE id = ?1")?;
        for op in ops {
            match op {
                Op::Order(job) => order.execute(params![number(job.id), job.text])?,
                Op::End(id) => {
                    end.execute(params![number(*id), report])?;
                    owe.execute(params![number(*id), report])?
                }
                Op::Answered(id) => answered.execute([number(*id)])?,
            };
        }
    }
    tx.commit()
}

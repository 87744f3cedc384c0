//! What jobs of the journal share: a transaction, or the wait for one.

use super::*;

/// What nobody waits for is written all the same when nothing else comes.
#[tokio::test]
async fn what_rides_is_written_after_a_while() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    journal.accept(vec![spawn_command(1)], NOW).await.unwrap();
    journal.record(attempt(1), say(vec![warning("odd")]), NOW).await.unwrap();
    journal.answered_soon(1, MessageOutcome::Applied, NOW).await.unwrap();
    // Looked at from beside it: the journal is left alone.
    let beside = rusqlite::Connection::open(state.path().join(FILE)).unwrap();
    let outbox = || beside.query_row("SELECT count(*) FROM outbox", [], |row| row.get::<_, i64>(0)).unwrap();
    let begun = std::time::Instant::now();
    while outbox() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "it still waits for a ride");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whoever only looks does not have what rides written: with a look after each, it is still one transaction in a while.
#[tokio::test]
async fn a_look_leaves_alone_what_rides() {
    const COUNT: i64 = 50;
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    journal.accept(vec![spawn_command(1)], NOW).await.unwrap();
    journal.record(attempt(1), say(vec![warning("odd"); COUNT as usize]), NOW).await.unwrap();
    let beside = rusqlite::Connection::open(state.path().join(FILE)).unwrap();
    // SQLite changes it with each commit of somebody else.
    let version = || beside.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0)).unwrap();
    let (mut seen, mut commits) = (version(), 0);
    let begun = std::time::Instant::now();
    for n in 1..=COUNT {
        journal.answered_soon(n, MessageOutcome::Applied, NOW).await.unwrap();
        journal.outbox(n, 1).await.unwrap();
        commits += u128::from(std::mem::replace(&mut seen, version()) != seen);
    }
    assert!(commits <= begun.elapsed().as_millis() / 100, "{commits} transactions in {:?}", begun.elapsed());
}

/// A job that fails leaves nothing behind, whether it had a transaction to itself or shared one, and takes nobody along.
#[tokio::test]
async fn a_job_that_fails_leaves_nothing() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    let fails = || {
        journal.worker.call(Kind::Durable, |db| {
            db.execute("UPDATE meta SET last_command = 77", [])?;
            Err::<(), _>(Error::Closed)
        })
    };
    assert!(matches!(fails().await, Err(Error::Closed)));
    assert_eq!(journal.standing().await.unwrap().last_command, 0);
    let (one, failed, two) = tokio::join!(
        journal.accept(vec![spawn_command(1)], NOW),
        fails(),
        journal.record(attempt(1), say(vec![warning("odd")]), NOW)
    );
    assert!(one.is_ok() && failed.is_err() && two.is_ok());
    let standing = journal.standing().await.unwrap();
    assert_eq!((standing.last_command, standing.last_unanswered), (1, 1));
}

/// A full disk takes the whole transaction: all who shared it are told why, nothing of any of them is there, and what comes when
/// there is room again is written.
#[tokio::test]
async fn a_transaction_that_is_lost_is_lost_for_all() {
    let state = tempfile::tempdir().unwrap();
    let journal = open(state.path());
    let call = |work: fn(&db::Db<'_>) -> Result<(), Error>| journal.worker.call(Kind::Durable, work);
    let full = || {
        call(|db| {
            let pages: i64 = db.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            db.query_row(&format!("PRAGMA max_page_count = {}", pages + 4), [], |_| Ok(()))?;
            db.execute("INSERT INTO orders (spawn) VALUES (hex(zeroblob(100000)))", [])?;
            Ok(())
        })
    };
    let is_full =
        |error: &Error| matches!(error, Error::Sql(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull));
    // By itself.
    assert!(is_full(&full().await.unwrap_err()));
    // With others: the thread is kept busy until all wait for it.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let busy = journal.worker.call(Kind::Read, move |_| {
        let _ = wait.recv();
        Ok(())
    });
    let free = async { go.send(()).unwrap() };
    let mut later = spawn_command(2);
    later.sequence = 2;
    let (_, first, lost, last, ()) = tokio::join!(
        busy,
        journal.accept(vec![spawn_command(1)], NOW),
        full(),
        journal.accept(vec![later.clone()], NOW),
        free
    );
    for error in [first.unwrap_err(), lost.unwrap_err(), last.unwrap_err()] {
        assert!(is_full(&error), "{error}");
    }
    assert_eq!(journal.attempts().await.unwrap(), []);
    call(|db| Ok(db.query_row("PRAGMA max_page_count = 1000000", [], |_| Ok(()))?)).await.unwrap();
    assert_eq!(journal.accept(vec![later], NOW).await.unwrap(), [Accepted::New]);
    assert_eq!(journal.standing().await.unwrap().last_command, 2);
}

//! That what was counted has happened: after each measurement the rows themselves are counted, on the server and in every
//! daemon's journal, behind the back of the programs that wrote them.

use rusqlite::{Connection, OpenFlags};
use sqlx::Connection as _;

use crate::{bed::Bed, harness::Database};

/// Fails the run unless so many tasks are done on the server, each by one attempt that has ended, and so many terminal reports
/// are in the daemons' journals.
pub async fn of_done(bed: &Bed, wanted: usize) {
    let wanted = i64::try_from(wanted).expect("a number of tasks");
    let done = count(bed, "SELECT count(*) FROM tasks WHERE status = 'done'").await;
    let ended = count(bed, "SELECT count(*) FROM attempts WHERE NOT live").await;
    let tried = count(bed, "SELECT count(DISTINCT task) FROM attempts").await;
    let made = count(bed, "SELECT count(*) FROM attempts").await;
    let journalled: i64 = bed.daemons.iter().map(|daemon| journalled(bed, &daemon.name)).sum();
    // More attempts than tasks would mean that some were lost on the way and tried again.
    let found = [done, ended, tried, made, journalled];
    assert_eq!(found, [wanted; 5], "done, ended, tried, attempts and journalled; {wanted} were counted");
}

/// One number from the server's database.
pub async fn count(bed: &Bed, sql: &'static str) -> i64 {
    match bed.database {
        Database::Sqlite => {
            let file = bed.world.server_state().join("makima.sqlite");
            let database =
                Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("open the database");
            database.query_row(sql, [], |row| row.get(0)).expect("count rows")
        }
        Database::Postgres => {
            let url = bed.world.database_url().expect("the URL of the database");
            let mut database = sqlx::PgConnection::connect(url).await.expect("reach Postgres");
            let (number,) = sqlx::query_as::<_, (i64,)>(sql).fetch_one(&mut database).await.expect("count rows");
            database.close().await.expect("close the connection");
            number
        }
    }
}

/// Attempts with a terminal report in the journal of a daemon, counting those that it has forgotten since: it forgets none that
/// has not ended, and numbers its rows.
fn journalled(bed: &Bed, daemon: &str) -> i64 {
    let file = bed.world.daemon_state(daemon).join(makima::daemon::journal::FILE);
    let journal = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("open the journal");
    let sql =
        "SELECT coalesce(max(rowid), 0) - count(*) FILTER (WHERE complete IS NULL OR state NOT IN ('reported', 'over'))
               FROM attempts";
    journal.query_row(sql, [], |row| row.get(0)).expect("count rows")
}

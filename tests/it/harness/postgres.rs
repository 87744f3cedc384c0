//! One private Postgres cluster a test process, started by the first test that asks, and a fresh database for each.
//!
//! The cluster belongs to `postgres.sh`, which lives as long as the pipe that this process holds: it goes with us however we
//! end. Where Postgres is not installed the tests fail and say what to install; they never pass by skipping.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::CommandExt as _,
    process::{ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use sqlx::{Connection as _, Executor as _};

const SCRIPT: &str = include_str!("postgres.sh");

static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// The running cluster.
struct Cluster {
    /// `postgres://postgres@127.0.0.1:PORT`.
    url: String,
    /// While this is open the cluster lives.
    _lifeline: ChildStdin,
}

impl Cluster {
    #[expect(clippy::disallowed_methods, reason = "the tests start their own processes")]
    fn start() -> Result<Self, String> {
        let mut guardian = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "postgres.sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // What is sent to the tests' process group, such as ^C or a runner's kill, leaves it time to clean up.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("/bin/sh: {error}"))?;
        let (Some(lifeline), Some(stdout), Some(mut stderr)) =
            (guardian.stdin.take(), guardian.stdout.take(), guardian.stderr.take())
        else {
            return Err("the guardian has no pipes".to_owned());
        };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map_err(|error| error.to_string())?;
        match line.trim().strip_prefix("ready ") {
            Some(url) => Ok(Self { url: url.to_owned(), _lifeline: lifeline }),
            None => {
                let mut said = String::new();
                let _ = stderr.read_to_string(&mut said);
                Err(said.trim().to_owned())
            }
        }
    }
}

/// A fresh, empty database: `postgres://postgres@127.0.0.1:PORT/NAME`.
pub async fn database() -> String {
    let cluster = match CLUSTER.get_or_init(Cluster::start) {
        Ok(cluster) => cluster,
        Err(message) => panic!("no Postgres: {message}"),
    };
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    let mut admin =
        sqlx::PgConnection::connect(&format!("{}/postgres", cluster.url)).await.expect("connect to Postgres");
    // template0 because nothing ever connects to it, so that databases can be made side by side.
    admin
        .execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0")))
        .await
        .expect("create a database");
    admin.close().await.expect("close the connection");
    format!("{}/{name}", cluster.url)
}

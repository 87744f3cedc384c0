//! One private Postgres cluster a test process, started by the first test that asks, and a fresh database for each.
//!
//! The cluster belongs to `postgres.sh`, which lives as long as the pipe that this process holds: it goes with us however we
//! end. Where Postgres is not installed the tests fail and say what to install; they never pass by skipping.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::process::Signal;
use sqlx::{Connection as _, Executor as _};

use super::process;

const SCRIPT: &str = include_str!("postgres.sh");

static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// `postgres://postgres@127.0.0.1:PORT`.
    url: String,
    /// The process all others of it descend from.
    postmaster: u32,
    /// While this is open the cluster lives.
    lifeline: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Cluster {
    /// Starts one; it takes a second or two.
    #[expect(clippy::disallowed_methods, reason = "the tests start their own processes")]
    pub fn start() -> Result<Self, String> {
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
        let mut cluster = Self { url: String::new(), postmaster: 0, lifeline, answers: BufReader::new(stdout) };
        cluster.ready().map_err(|error| {
            let mut said = String::new();
            let _ = stderr.read_to_string(&mut said);
            if said.is_empty() { error } else { said.trim().to_owned() }
        })?;
        Ok(cluster)
    }

    /// A fresh, empty database.
    pub async fn database(&self, name: &str) -> String {
        let mut admin =
            sqlx::PgConnection::connect(&format!("{}/postgres", self.url)).await.expect("connect to Postgres");
        // template0 because nothing ever connects to it, so that databases can be made side by side.
        admin
            .execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0")))
            .await
            .expect("create a database");
        admin.close().await.expect("close the connection");
        format!("{}/{name}", self.url)
    }

    /// A signal to everything of it. Answers how many processes there were.
    pub fn signal(&self, signal: Signal) -> usize {
        let children = process::children_of(self.postmaster);
        let all = std::iter::once(process::Found { pid: self.postmaster, arguments: String::new() }).chain(children);
        all.inspect(|process| process.signal(signal)).count()
    }

    /// Starts it again after it was killed, and waits until it is back. Blocks.
    pub fn restart(&mut self) -> Result<(), String> {
        writeln!(self.lifeline, "restart").map_err(|error| error.to_string())?;
        self.ready()
    }

    fn ready(&mut self) -> Result<(), String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|error| error.to_string())?;
        let said = line.trim().strip_prefix("ready ").and_then(|said| said.split_once(' '));
        let (url, postmaster) = said.ok_or_else(|| format!("Postgres is not ready: {line:?}"))?;
        url.clone_into(&mut self.url);
        self.postmaster = postmaster.parse().map_err(|_| format!("no postmaster: {line:?}"))?;
        Ok(())
    }
}

/// A fresh, empty database: `postgres://postgres@127.0.0.1:PORT/NAME`.
pub async fn database() -> String {
    let cluster = match CLUSTER.get_or_init(Cluster::start) {
        Ok(cluster) => cluster,
        Err(message) => panic!("no Postgres: {message}"),
    };
    cluster.database(&format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed))).await
}

//! Opening a database: address, settings, migrations, and the claim that keeps a second server out.

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    str::FromStr as _,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use uuid::Uuid;

use super::{
    Db, Error, Result, Store,
    local::Writer,
    own::Own,
    sql::in_time,
    tx::{CLAIM, LEDGER_LOCK, WRITERS, has_code, lock_claimed},
};

static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");
static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");

/// The lock that a server holds on its database for as long as it lives.
const SERVER_LOCK: i64 = 0x006d_616b_696d_6102;
/// Readers at a time. Reads are short; more would only wait for the two cores a small server has.
const READERS: u32 = 8;
/// Prepared statements that a connection that writes keeps: on SQLite they have a text for each power of two of rows, on
/// Postgres one for each set of them that is written at once.
pub(super) const STATEMENTS: usize = 512;
/// How long a connection or a lock is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The address of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    /// `postgres://...`.
    Postgres(String),
    /// `sqlite:PATH`, or a path.
    Sqlite(PathBuf),
}

impl std::str::FromStr for Url {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            PgConnectOptions::from_str(text).map_err(|error| Error::Url(format!("bad database URL: {error}")))?;
            return Ok(Self::Postgres(text.to_owned()));
        }
        let path = text.strip_prefix("sqlite://").or_else(|| text.strip_prefix("sqlite:")).unwrap_or(text);
        if path.is_empty() || path.contains("://") {
            let scheme = text.split(':').next().unwrap_or_default();
            return Err(Error::Url(format!(
                "`{scheme}` is not a database makima knows; use postgres://USER@HOST/DB or sqlite:PATH"
            )));
        }
        Ok(Self::Sqlite(PathBuf::from(path)))
    }
}

/// Keeps a second server away from the database; let go when dropped.
#[derive(Debug)]
pub struct Claim(Held);

#[derive(Debug)]
enum Held {
    Postgres {
        connection: Box<PgConnection>,
        options: Box<PgConnectOptions>,
        /// What this server has written down.
        id: Uuid,
    },
    Sqlite(#[expect(dead_code, reason = "the lock lives as long as the file is open")] File),
}

impl Claim {
    /// Looks at the claim, and takes it anew if the connection that held it is gone. [`Error::InUse`]: another server has the
    /// database by now, or had it meanwhile, or it is a copy from before this server had it: what this one knows is not what
    /// stands there, and it can write no more. [`Error::Unavailable`]: it cannot be reached; nobody else can write to it either.
    pub async fn check(&mut self) -> Result<()> {
        let Held::Postgres { connection, options, id } = &mut self.0 else { return Ok(()) };
        match in_time(is_written(connection, *id)).await {
            Ok(true) => return Ok(()),
            Ok(false) => return Err(taken()),
            // The connection is gone, or there is nothing to be read: the same again tells which.
            Err(_) => {}
        }
        let fresh = async {
            let mut fresh = PgConnection::connect_with(options).await?;
            claim(&mut fresh).await?;
            let written = is_written(&mut fresh, *id).await?;
            Ok((fresh, written))
        };
        let (fresh, written) = in_time(fresh).await?;
        if !written {
            return Err(taken());
        }
        **connection = fresh;
        tracing::info!("the claim on the database was lost with its connection and is taken anew");
        Ok(())
    }
}

/// What stands in the database says that this server has it.
async fn is_written(connection: &mut PgConnection, id: Uuid) -> Result<bool> {
    let query = sqlx::query_as("SELECT value FROM meta WHERE key = $1").bind(CLAIM);
    let written: Option<(String,)> = query.fetch_optional(connection).await?;
    Ok(written.is_some_and(|(value,)| value == id.to_string()))
}

/// Another server writes, or has written, to the database that this one had.
pub(super) fn taken() -> Error {
    let text = "another makima server has taken this database, or a copy of it was put back; this server must stop, and may be \
                started again if no other is to have it";
    Error::InUse(text.to_owned())
}

async fn claim(connection: &mut PgConnection) -> Result<()> {
    let (claimed,): (bool,) =
        sqlx::query_as("SELECT pg_try_advisory_lock($1)").bind(SERVER_LOCK).fetch_one(connection).await?;
    if claimed {
        return Ok(());
    }
    let text = "another makima server has this database; stop it, or give this one its own with --database-url";
    Err(Error::InUse(text.to_owned()))
}

/// Writes down that this server has the database, under the lock of those who write.
async fn write_claim(pool: &PgPool, id: Uuid) -> Result<()> {
    let mut tx = pool.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LEDGER_LOCK).execute(&mut *tx).await?;
    sqlx::query("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
        .bind(CLAIM)
        .bind(id.to_string())
        .execute(&mut *tx)
        .await?;
    Ok(tx.commit().await?)
}

impl Store {
    /// Opens the database for a server: claims it, then brings its schema up to date.
    pub async fn open(url: &Url) -> Result<(Self, Claim)> {
        match url {
            Url::Postgres(url) => Self::open_postgres(url).await,
            Url::Sqlite(path) => Self::open_sqlite(path).await,
        }
    }

    async fn open_postgres(url: &str) -> Result<(Self, Claim)> {
        let options = PgConnectOptions::from_str(url)?
            .application_name("makima")
            // What a stalled replica can do to the others is bounded.
            .options([("lock_timeout", "10s"), ("idle_in_transaction_session_timeout", "10s")])
            // Every statement finds its rows through an index, from the few that it is given. How few, the planner cannot know:
            // it guessed a hundred, and read whole tables to join them.
            .options([("enable_hashjoin", "off"), ("enable_mergejoin", "off"), ("enable_seqscan", "off")])
            // What it thinks of plans that it was told not to like would have them compiled.
            .options([("jit", "off")])
            .statement_cache_capacity(STATEMENTS)
            .disable_statement_logging();
        let mut connection = PgConnection::connect_with(&options)
            .await
            .map_err(|error| not_there(&options, &error).unwrap_or(error.into()))?;
        claim(&mut connection).await?;
        // To look at the values that a statement is given, whenever it is run, costs more than it brings: the plan is the same.
        let prepared = options.clone().options([("plan_cache_mode", "force_generic_plan")]);
        let pool = || PgPoolOptions::new().min_connections(1).acquire_timeout(PATIENCE);
        let read = pool().max_connections(READERS).connect_with(options.clone()).await?;
        let write = pool()
            .max_connections(WRITERS)
            // A restart of Postgres shows when a transaction begins; see there.
            .test_before_acquire(false)
            .connect_with(prepared.clone())
            .await?;
        POSTGRES.run(&write).await.map_err(schema_error)?;
        let id = Uuid::new_v4();
        write_claim(&write, id).await?;
        let lock = lock_claimed(id);
        let ledger = Own::new(prepared, &lock);
        Ok((
            Self { db: Db::Postgres { ledger, write, read, lock } },
            Claim(Held::Postgres { connection: Box::new(connection), options: Box::new(options), id }),
        ))
    }

    async fn open_sqlite(path: &Path) -> Result<(Self, Claim)> {
        let file_error = |source| Error::File { path: path.display().to_string(), source };
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(file_error)?;
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(file_error)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::InUse(format!(
                "another makima server has {}; stop it, or give this one its own with --state-dir",
                path.display()
            )));
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A commit that was answered survives power loss.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(PATIENCE)
            .disable_statement_logging();
        let migrate = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(PATIENCE)
            .connect_with(options.clone())
            .await
            .map_err(|error| spoiled(path, &error).unwrap_or_else(|| error.into()))?;
        SQLITE.run(&migrate).await.map_err(|error| match &error {
            MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) => {
                spoiled(path, cause).unwrap_or_else(|| schema_error(error))
            }
            _ => schema_error(error),
        })?;
        let write = Writer::open(path)?;
        migrate.close().await;
        let read = SqlitePoolOptions::new()
            .max_connections(READERS)
            .min_connections(1)
            .acquire_timeout(PATIENCE)
            .connect_with(options.pragma("cache_size", "-4096").read_only(true))
            .await?;
        Ok((Self { db: Db::Sqlite { write, read } }, Claim(Held::Sqlite(lock))))
    }

    /// Closes all connections, after what is under way.
    pub async fn close(&self) {
        match &self.db {
            Db::Postgres { ledger, write, read, .. } => {
                read.close().await;
                ledger.close().await;
                write.close().await;
            }
            Db::Sqlite { write, read } => {
                read.close().await;
                write.close().await;
            }
        }
    }

    /// The answer to a COMMIT can be lost: the database is another process.
    pub fn commits_in_doubt(&self) -> bool {
        matches!(self.db, Db::Postgres { .. })
    }

    /// What writes keeps its thread until it is done: give it one of its own.
    pub fn writes_block(&self) -> bool {
        matches!(self.db, Db::Sqlite { .. })
    }

    /// The word for the database, for people.
    pub fn kind(&self) -> &'static str {
        match &self.db {
            Db::Postgres { .. } => "postgres",
            Db::Sqlite { .. } => "sqlite",
        }
    }
}

/// What to say where there is no Postgres, or no such database in it.
fn not_there(options: &PgConnectOptions, error: &sqlx::Error) -> Option<Error> {
    /// SQLSTATE of a database that does not exist.
    const NO_DATABASE: &str = "3D000";
    let at = format!("{}:{}", options.get_host(), options.get_port());
    let text = match error {
        sqlx::Error::Io(error) => {
            format!("no Postgres answers at {at} ({error}): start it, or name another with --database-url")
        }
        error if has_code(error, &[NO_DATABASE]) => {
            let name = options.get_database().unwrap_or(options.get_username());
            format!(
                "Postgres at {at} has no database `{name}`: make it (createdb {name}), or name another with --database-url"
            )
        }
        _ => return None,
    };
    Some(Error::Url(text))
}

/// What to say of a file that is no database any more. SQLite has not written to it.
fn spoiled(path: &Path, error: &sqlx::Error) -> Option<Error> {
    /// `SQLITE_CORRUPT` and `SQLITE_NOTADB`.
    const CODES: [u32; 2] = [11, 26];
    let code: u32 = error.as_database_error()?.code()?.parse().ok()?;
    // The low byte is the primary code.
    CODES.contains(&(code & 0xff)).then(|| {
        Error::Schema(format!(
            "{} is damaged ({error}), and has been left as it is: put a copy of it back, together with its -wal file if the \
             copy has one, or move it away to begin with an empty database",
            path.display()
        ))
    })
}

fn schema_error(error: MigrateError) -> Error {
    match error {
        MigrateError::VersionMissing(version) => Error::Schema(format!(
            "the database has schema version {version}, which is newer than this makima; use a newer makima"
        )),
        MigrateError::VersionMismatch(version) => Error::Schema(format!(
            "migration {version} of this database is not the one this makima knows; it was made by another build"
        )),
        other => Error::Schema(format!("cannot bring the database schema up to date: {other}")),
    }
}

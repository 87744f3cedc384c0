//! The daemon's end: starting, adopting and watching shims.

use std::{
    fs::{File, OpenOptions},
    path::PathBuf,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

use super::{
    NONCE,
    protocol::{MAX_INPUT, MAX_LINE, Ready, Reply, Request, Start, VERSION},
    socket,
};
use crate::daemon::{
    attempt_dir::{self, AttemptDir, ExitRecord, Started, open_private},
    process::{self, Process},
    sweep,
};

/// What a shim has to start its agent; long, because a machine can be very busy.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// What a living shim has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// What a shim has beyond the grace it was given, before it is ended itself.
const END_MARGIN: Duration = Duration::from_secs(20);
/// Between looks at a shim that holds its lock but not our connection.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A living shim, as the daemon holds it.
#[derive(Debug)]
pub struct Handle {
    dir: AttemptDir,
    started: Started,
    nonce: String,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    /// What has been read of a line; kept here so that a wait may be dropped in the middle of one.
    line: Vec<u8>,
}

/// What became of a shim that was there before this daemon.
#[derive(Debug)]
pub enum Adopted {
    /// It is alive.
    Alive(Handle),
    /// It has ended and left its record.
    Ended(ExitRecord),
    /// It is gone without a record. What it may have left is to be swept (`dir.target()`).
    Gone {
        /// It had started the agent. Otherwise `Handle::start` may be tried again in this directory.
        started: bool,
    },
}

/// How a shim ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShimEnd {
    /// The agent is dead with all it started, and this is how.
    Ended(ExitRecord),
    /// The shim died; its agent may be alive: sweep (`dir.target()`).
    ShimDied,
}

/// Why a shim cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("start the shim: {message}")]
    Start {
        /// Why, for people.
        message: String,
    },
    /// Its process could not be started.
    #[error("start the shim")]
    Process(#[from] process::Error),
    /// It holds its lock and does not answer.
    #[error("reach the shim (process {pid:?}), which holds its lock and does not answer")]
    Unresponsive {
        /// Its process.
        pid: Option<i32>,
    },
    /// It does not take input.
    #[error("send input to the agent: {message}")]
    Input {
        /// Why, for people.
        message: String,
    },
    /// Its directory.
    #[error(transparent)]
    Dir(#[from] attempt_dir::Error),
}

impl Handle {
    /// Starts the agent of this directory's manifest under a shim; answers when the agent runs, or has failed to start (then
    /// `wait` answers its record). `executable` is this program; `None`: the running one.
    #[tracing::instrument(level = "debug", name = "shim_start", skip_all, fields(dir = %dir.path().display()))]
    pub async fn start(dir: &AttemptDir, executable: Option<PathBuf>) -> Result<Self, Error> {
        let nonce = Uuid::new_v4().to_string();
        allow(dir, &nonce)?;
        let log = open_private(OpenOptions::new().append(true).create(true), &dir.path().join("shim.log"))?;
        // The running program is this one also when its file has been replaced by a newer one.
        let program = executable.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        let process = Process::new(program).arg("shim").arg(dir.path()).dir("/").env(NONCE, &nonce);
        let mut child = process.spawn(log)?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = BufReader::new(stdout.take(MAX_LINE as u64));
            // Nothing read is a shim that died; the files say how far it came.
            let _ = timeout(START_TIMEOUT, stdout.read_line(&mut line)).await;
        }
        match serde_json::from_str(&line) {
            Ok(Ready::Started) => {}
            Ok(Ready::Failed { message }) => return Err(Error::Start { message }),
            Err(_) => {
                let _ = child.start_kill();
                let message = format!("it ended or did not answer; see {}/shim.log", dir.path().display());
                return Err(Error::Start { message });
            }
        }
        let Some(started) = dir.started()? else {
            return Err(Error::Start { message: "it left no note of the agent's start".into() });
        };
        let mut handle = Self { dir: dir.clone(), started, nonce, connection: None };
        // A script can be over before this; `wait` finds its record then.
        handle.connection = handle.connect().await;
        Ok(handle)
    }

    /// Takes over the shim of this directory, if it is alive. After `Gone` no shim can come to life in it by itself.
    #[tracing::instrument(level = "debug", name = "shim_adopt", skip_all, fields(dir = %dir.path().display()))]
    pub async fn adopt(dir: &AttemptDir) -> Result<Adopted, Error> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if let Some(record) = dir.exit()? {
                return Ok(Adopted::Ended(record));
            }
            if let Some(lock) = try_lock(dir)? {
                // Nobody writes here now. It may have ended since the first look.
                if let Some(record) = dir.exit()? {
                    return Ok(Adopted::Ended(record));
                }
                let start: Option<Start> = dir.read("start.json")?;
                let started = start.is_some_and(|start| start.launched);
                if !started {
                    // A shim that was asked for and has not come yet finds that it is not wanted.
                    dir.write("start.json", &Start { nonce: Uuid::new_v4().to_string(), launched: false })?;
                }
                drop(lock);
                return Ok(Adopted::Gone { started });
            }
            let start: Option<Start> = dir.read("start.json")?;
            if let (Some(start), Some(started)) = (start, dir.started()?) {
                let mut handle = Self { dir: dir.clone(), started, nonce: start.nonce, connection: None };
                handle.connection = handle.connect().await;
                if handle.connection.is_some() {
                    return Ok(Adopted::Alive(handle));
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::Unresponsive { pid: dir.started()?.map(|started| started.shim_pid) });
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// The directory.
    pub fn dir(&self) -> &AttemptDir {
        &self.dir
    }

    /// When and as what the agent was started.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// Waits for the end. May be dropped and called again.
    pub async fn wait(&mut self) -> ShimEnd {
        loop {
            while let Some(connection) = &mut self.connection {
                match connection.reply().await {
                    Some(Reply::Ended { record }) => return ShimEnd::Ended(record),
                    Some(_) => {}
                    None => self.connection = None,
                }
            }
            match self.look() {
                Ok(Some(end)) => return end,
                Ok(None) => sleep(LOOK_AGAIN).await,
                Err(error) => {
                    let dir = self.dir.path().display();
                    tracing::error!(%dir, error = %super::chain(&error), "cannot see what became of a shim; trying again");
                    sleep(ANSWER_TIMEOUT).await;
                }
            }
            self.connection = self.connect().await;
        }
    }

    /// Asks the shim to end the agent: TERM to its group, grace, KILL. `wait` tells when it is over.
    #[tracing::instrument(level = "debug", name = "shim_terminate", skip_all)]
    pub async fn terminate(&mut self, grace: Duration) {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        if self.connection.is_none() {
            self.connection = self.connect().await;
        }
        if let Some(connection) = &mut self.connection
            && !connection.send(&Request::Terminate { grace_ms }).await
        {
            // `wait` finds out what became of it.
            self.connection = None;
        }
    }

    /// Ends the agent, whatever the shim does: asks, waits for a little longer than the grace, then kills the shim as well
    /// (and the agent with it; `ShimDied` asks for a sweep as ever).
    #[tracing::instrument(level = "debug", name = "shim_end", skip_all)]
    pub async fn end(&mut self, grace: Duration) -> ShimEnd {
        self.terminate(grace).await;
        if let Ok(end) = timeout(grace + END_MARGIN, self.wait()).await {
            return end;
        }
        tracing::warn!(dir = %self.dir.path().display(), "a shim did not end its agent in time; killing it");
        self.kill_shim();
        self.wait().await
    }

    /// Sends bytes to an agent that reads a pipe; `last` closes it.
    #[tracing::instrument(level = "debug", name = "shim_input", skip_all)]
    pub async fn input(&mut self, bytes: &[u8], last: bool) -> Result<(), Error> {
        let refused = |message: &str| Error::Input { message: message.into() };
        let mut pieces = bytes.chunks(MAX_INPUT).peekable();
        loop {
            let piece = pieces.next().unwrap_or_default();
            let is_last = pieces.peek().is_none();
            let Some(connection) = &mut self.connection else { return Err(refused("the shim is gone")) };
            let request = Request::Input { bytes: piece.to_vec(), last: last && is_last };
            if !connection.send(&request).await {
                return Err(refused("the shim is gone"));
            }
            match timeout(ANSWER_TIMEOUT, connection.reply()).await {
                Ok(Some(Reply::Ok)) if is_last => return Ok(()),
                Ok(Some(Reply::Ok)) => {}
                Ok(Some(Reply::Refused { message })) => return Err(Error::Input { message }),
                // `wait` finds the end in the exit record.
                Ok(_) => return Err(refused("the agent has ended")),
                Err(_) => return Err(refused("the shim does not answer")),
            }
        }
    }

    /// A connection to the shim that answers our nonce.
    async fn connect(&self) -> Option<Connection> {
        let stream = socket::connect(self.dir.path()).ok()?;
        stream.set_nonblocking(true).ok()?;
        let (read, write) = UnixStream::from_std(stream).ok()?.into_split();
        let mut connection = Connection { read: BufReader::new(read), write, line: Vec::new() };
        let hello = Request::Hello { version: VERSION, nonce: self.nonce.clone() };
        if !connection.send(&hello).await {
            return None;
        }
        match timeout(ANSWER_TIMEOUT, connection.reply()).await {
            Ok(Some(Reply::Hello { nonce, .. })) if nonce == self.nonce => Some(connection),
            _ => None,
        }
    }

    /// What the files say: the end, or nothing while the lock is held. A record that cannot be understood is none, and where
    /// the directory is gone so is the shim.
    fn look(&self) -> Result<Option<ShimEnd>, Error> {
        if let Ok(Some(record)) = self.dir.exit() {
            return Ok(Some(ShimEnd::Ended(record)));
        }
        if !self.dir.path().exists() {
            return Ok(Some(ShimEnd::ShimDied));
        }
        let Some(_lock) = try_lock(&self.dir)? else { return Ok(None) };
        match self.dir.exit() {
            Ok(Some(record)) => Ok(Some(ShimEnd::Ended(record))),
            Ok(None) | Err(attempt_dir::Error::Corrupt { .. }) => Ok(Some(ShimEnd::ShimDied)),
            Err(error) => Err(error.into()),
        }
    }

    /// Kills the shim's process, if it still is the shim: it holds the lock, and leads the agent's session.
    fn kill_shim(&self) {
        let holds_lock = matches!(try_lock(&self.dir), Ok(None));
        let shim = sweep::find(self.started.shim_pid).filter(|shim| shim.session == self.started.leader.session);
        if let Some(shim) = shim.filter(|_| holds_lock) {
            sweep::signal(&shim, Signal::KILL);
        }
    }
}

impl Connection {
    /// Sends a request; answers whether that worked.
    async fn send(&mut self, request: &Request) -> bool {
        let mut line = serde_json::to_vec(request).unwrap_or_default();
        line.push(b'\n');
        matches!(timeout(ANSWER_TIMEOUT, self.write.write_all(&line)).await, Ok(Ok(())))
    }

    /// The next reply; `None` when there will be no more.
    async fn reply(&mut self) -> Option<Reply> {
        loop {
            let buffer = self.read.fill_buf().await.ok()?;
            if buffer.is_empty() {
                return None;
            }
            let (taken, whole) = match buffer.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (buffer.len(), false),
            };
            self.line.extend_from_slice(&buffer[..taken]);
            self.read.consume(taken);
            if whole {
                let line = std::mem::take(&mut self.line);
                // What a newer shim says beyond this is not for us.
                if let Ok(reply) = serde_json::from_slice(&line) {
                    return Some(reply);
                }
            } else if self.line.len() > MAX_LINE {
                return None;
            }
        }
    }
}

/// Notes the one start that is allowed in this directory, where there was none.
fn allow(dir: &AttemptDir, nonce: &str) -> Result<(), Error> {
    let Some(_lock) = try_lock(dir)? else { return Err(Error::Start { message: "another shim lives there".into() }) };
    let start: Option<Start> = dir.read("start.json")?;
    if start.is_some_and(|start| start.launched) || dir.started()?.is_some() || dir.exit()?.is_some() {
        return Err(Error::Start { message: "the agent of this attempt was started before".into() });
    }
    Ok(dir.write("start.json", &Start { nonce: nonce.to_owned(), launched: false })?)
}

/// A shim lives in this directory.
pub fn is_held(dir: &AttemptDir) -> Result<bool, Error> {
    Ok(dir.path().join("lock").exists() && try_lock(dir)?.is_none())
}

/// The shim's lock, if nobody holds it.
fn try_lock(dir: &AttemptDir) -> Result<Option<File>, Error> {
    let path = dir.path().join("lock");
    let file = open_private(OpenOptions::new().write(true).create(true), &path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(attempt_dir::io_error("lock", &path, error.into()).into()),
    }
}

//! Takes a checkpoint from the server.
//!
//! ```text
//!   <into>.<digest>.part ── from its length on ──> verified ──> synced ──> <into>
//! ```
//!
//! What has come stays when the connection breaks, and the next try goes on from there; only a file that is what it should
//! be gets its name.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tonic::{Code, Status};

use crate::{
    daemon::{config::Config, runner::blocking, session::link},
    domain::{attempt::Pack, text},
    wire::pb,
};

/// How long a server that has begun to send may be silent.
const SILENCE: Duration = Duration::from_secs(45);
/// Digits of the digest in the name of a part: parts of different files must not meet.
const DIGITS: usize = 16;
/// Bytes that are hashed at a time.
const PIECE: usize = 256 * 1024;

/// Why a file is not here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server does not have it, or not for us: trying again does not help.
    #[error("the server does not have `{blob}`: {message}")]
    NotThere {
        /// What was asked for.
        blob: String,
        /// Its word.
        message: String,
    },
    /// What came is not what it should be. It is thrown away, and may come right the next time.
    #[error("`{blob}` came damaged: {problem}")]
    Damaged {
        /// What was asked for.
        blob: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No connection; the next try goes on from what is here.
    #[error(transparent)]
    Connect(#[from] link::Error),
    /// The connection broke; the next try goes on from what is here.
    #[error("take `{blob}` from the server: {problem}")]
    Broken {
        /// What was asked for.
        blob: String,
        /// What happened.
        problem: String,
    },
    /// Our own disk.
    #[error("write {path}")]
    Disk {
        /// Which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

impl Error {
    /// The same again later may work.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NotThere { .. } => false,
            Self::Damaged { .. } | Self::Connect(_) | Self::Broken { .. } | Self::Disk { .. } => true,
        }
    }
}

/// Takes a blob from the server, once: verified, durable, and under its name only then. One that is there already, and is
/// what it should be, is not taken again.
pub async fn download(config: &Config, blob: &str, into: &Path, expect: &Pack) -> Result<(), Error> {
    let disk = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Disk { path, source }
    };
    let (there, wanted) = (into.to_owned(), expect.clone());
    if blocking(move || is_right(&there, &wanted)).await.unwrap_or(false) {
        return Ok(());
    }
    let part = part_of(into, expect);
    let mut taking = Taking { blob, part: part.clone(), at: 0, expect };
    taking.at = match fs::metadata(&part) {
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    let total = expect.bytes.unsigned_abs();
    if taking.at < total {
        taking.run(config).await?;
    }
    let (path, wanted) = (part.clone(), expect.clone());
    if taking.at != total || !blocking(move || is_right(&path, &wanted)).await.map_err(disk(&part))? {
        fs::remove_file(&part).map_err(disk(&part))?;
        let problem = "it is not what its SHA-256 says".to_owned();
        return Err(Error::Damaged { blob: blob.to_owned(), problem });
    }
    let (path, to) = (part.clone(), into.to_owned());
    blocking(move || put_in_place(&path, &to)).await.map_err(disk(into))
}

struct Taking<'a> {
    blob: &'a str,
    part: PathBuf,
    at: u64,
    expect: &'a Pack,
}

impl Taking<'_> {
    async fn run(&mut self, config: &Config) -> Result<(), Error> {
        let mut client = link::connect(config).await?;
        let offset = i64::try_from(self.at).unwrap_or(i64::MAX);
        let request = pb::DownloadChunksRequest { blob_id: self.blob.to_owned(), offset };
        let answer = client.download_chunks(link::authorized(config, request)).await;
        let mut chunks = match answer {
            Ok(chunks) => chunks.into_inner(),
            Err(status) => return Err(self.refused(&status)),
        };
        let part = self.part.clone();
        let opened = blocking(move || OpenOptions::new().create(true).append(true).open(part)).await;
        let mut file = opened.map_err(|source| self.disk(source))?;
        while self.at < self.expect.bytes.unsigned_abs() {
            let next = tokio::time::timeout(SILENCE, chunks.message()).await;
            let next = next.map_err(|_| self.broken(format!("nothing for {} s", SILENCE.as_secs())))?;
            let Some(chunk) = next.map_err(|status| self.refused(&status))? else {
                return Err(self.broken("it ended early".to_owned()));
            };
            if u64::try_from(chunk.offset) != Ok(self.at) || crc32fast::hash(&chunk.data) != chunk.crc32 {
                return Err(self.broken("a piece came damaged".to_owned()));
            }
            self.at += chunk.data.len() as u64;
            let written = blocking(move || file.write_all(&chunk.data).map(|()| file)).await;
            file = written.map_err(|source| self.disk(source))?;
        }
        Ok(())
    }

    fn refused(&self, status: &Status) -> Error {
        let (blob, message) = (self.blob.to_owned(), status.message().to_owned());
        match status.code() {
            Code::NotFound | Code::OutOfRange | Code::InvalidArgument | Code::Unimplemented => {
                Error::NotThere { blob, message }
            }
            code => Error::Broken { blob, problem: format!("{code}: {message}") },
        }
    }

    fn broken(&self, problem: String) -> Error {
        Error::Broken { blob: self.blob.to_owned(), problem }
    }

    fn disk(&self, source: io::Error) -> Error {
        Error::Disk { path: self.part.clone(), source }
    }
}

/// Where a file is while it comes.
fn part_of(into: &Path, expect: &Pack) -> PathBuf {
    let mut name = into.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", expect.sha256.get(..DIGITS).unwrap_or("none")));
    into.with_file_name(name)
}

fn is_right(path: &Path, expect: &Pack) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != expect.bytes.unsigned_abs() {
        return Ok(false);
    }
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => hash.update(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(text::hex(&hash.finalize()) == expect.sha256)
}

fn put_in_place(part: &Path, into: &Path) -> io::Result<()> {
    File::open(part)?.sync_all()?;
    fs::rename(part, into)?;
    match into.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

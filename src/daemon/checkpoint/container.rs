//! The file of a checkpoint: a header that anybody can read, then a git pack.
//!
//! ```text
//!   "makima checkpoint\n"  length of header  CRC-32 of header  header (JSON, then spaces)   pack ...
//!    18 bytes              4 bytes           4 bytes           length                       to the end
//! ```
//!
//! The header is found damaged by its CRC, the pack by its own checksum when it is unpacked, and the file as a whole by its SHA-256, which
//! whoever stores it keeps beside it.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Error;
use crate::domain::{CheckpointId, text::hex};

const MAGIC: &[u8; 18] = b"makima checkpoint\n";
/// Version of the form that is written.
const VERSION: u32 = 1;
/// Where the header begins.
const HEADER: u64 = 26;
/// Bytes of a header; names of branches are what makes it long.
const MAX_HEADER: u32 = 64 * 1024;

/// What a checkpoint's file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of this form.
    pub version: u32,
    /// The checkpoint.
    pub id: CheckpointId,
    /// The one it is a delta on.
    pub base: Option<CheckpointId>,
    /// Files of the chain, itself included.
    pub depth: u32,
    /// Its commit.
    pub commit: String,
    /// The commit of HEAD.
    pub head: Option<String>,
    /// The branch of the attempt.
    pub branch: String,
    /// The agent's session, if its transcript is in it.
    pub session_id: Option<String>,
}

/// A file of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its SHA-256 in hex, as whoever stored it knows it.
    pub sha256: String,
}

impl Header {
    /// Of this form.
    pub(super) fn new(id: CheckpointId, commit: String) -> Self {
        Self { version: VERSION, id, base: None, depth: 1, commit, head: None, branch: String::new(), session_id: None }
    }
}

/// Begins a file: answers it, standing where the pack belongs.
pub(super) fn create(path: &Path, header: &Header) -> Result<File, Error> {
    let fail = |error: std::io::Error| Error::refused(format!("cannot write {}: {error}", path.display()));
    let json = serde_json::to_vec(header).map_err(|error| fail(error.into()))?;
    let length = u32::try_from(json.len()).ok().filter(|length| *length <= MAX_HEADER);
    let length = length.ok_or_else(|| fail(std::io::Error::other("the names in it are too long")))?;
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(path).map_err(fail)?;
    let bytes = [MAGIC.as_slice(), &length.to_be_bytes(), &crc32fast::hash(&json).to_be_bytes(), &json].concat();
    file.write_all(&bytes).map_err(fail)?;
    Ok(file)
}

/// Puts a file that is complete on the disk; answers its length and SHA-256.
pub(super) fn seal(path: &Path) -> Result<(u64, String), Error> {
    let fail = |error: std::io::Error| Error::refused(format!("cannot put {} on the disk: {error}", path.display()));
    let file = File::open(path).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    if let Some(dir) = path.parent() {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail)?;
    }
    digest(&file).map_err(fail)
}

/// Reads the header of a checkpoint's file; an error says what is wrong with it.
pub fn read_header(path: &Path) -> Result<Header, Error> {
    open(path).map(|(header, _)| header)
}

/// The header, and the file standing at its pack.
pub(super) fn open(path: &Path) -> Result<(Header, File), Error> {
    let fail = |error: std::io::Error| Error::refused(format!("cannot read {}: {error}", path.display()));
    let mut file = File::open(path).map_err(fail)?;
    let mut start = [0; HEADER as usize];
    if file.read_exact_at(&mut start, 0).is_err() || !start.starts_with(MAGIC) {
        return Err(damaged(path, "it is no checkpoint"));
    }
    let number = |at: usize| u32::from_be_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
    let (length, crc) = (number(18), number(22));
    if length > MAX_HEADER {
        return Err(damaged(path, "its header is too long"));
    }
    let mut json = vec![0; length as usize];
    if file.read_exact_at(&mut json, HEADER).is_err() || crc32fast::hash(&json) != crc {
        return Err(damaged(path, "its header is not what was written"));
    }
    let header: Header = serde_json::from_slice(&json).map_err(|error| damaged(path, &error.to_string()))?;
    if header.version != VERSION {
        return Err(Error::refused(format!(
            "{} is a checkpoint of version {}, which this makima does not know: use a newer one",
            path.display(),
            header.version
        )));
    }
    file.seek(SeekFrom::Start(HEADER + u64::from(length))).map_err(fail)?;
    Ok((header, file))
}

/// Checks the whole file against what was stored.
pub(super) fn verify(file: &ChainFile) -> Result<(), Error> {
    let path = &file.path;
    let fail = |error: std::io::Error| Error::refused(format!("cannot read {}: {error}", path.display()));
    let (_, sha256) = File::open(path).and_then(|file| digest(&file)).map_err(fail)?;
    if !sha256.eq_ignore_ascii_case(&file.sha256) {
        return Err(damaged(path, &format!("its SHA-256 is {sha256} and was {}", file.sha256)));
    }
    Ok(())
}

/// Length and SHA-256.
pub(super) fn digest(mut file: &File) -> std::io::Result<(u64, String)> {
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 256 * 1024];
    file.seek(SeekFrom::Start(0))?;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, hex(&digest.finalize())));
        }
        digest.update(&buffer[..read]);
        bytes += read as u64;
    }
}

/// A file that is not what it should be.
pub(super) fn damaged(path: &Path, why: &str) -> Error {
    Error::repository(format!(
        "the checkpoint {} is damaged ({why}): fetch it again, or take an earlier one",
        path.display()
    ))
}

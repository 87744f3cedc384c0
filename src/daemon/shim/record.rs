//! The exit record, in room that was kept for it from the beginning, so that a disk that has filled up cannot swallow it.

use std::{
    fs::{File, OpenOptions},
    io::{Seek as _, Write as _},
    time::{Duration, Instant},
};

use crate::daemon::attempt_dir::{AttemptDir, Error, ExitRecord, io_error, open_private, sync_dir};

/// Where the room is.
const NAME: &str = ".exit.json.reserve";
/// Room for a record.
const BYTES: usize = 8 * 1024;
/// How long a record is tried to be written, on a disk that does not take it all the same.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file full of spaces, which the record is written over: JSON may end in spaces.
pub struct Room {
    dir: AttemptDir,
    file: File,
}

impl Room {
    /// Kept in this directory.
    pub fn keep(dir: &AttemptDir) -> Result<Self, Error> {
        let path = dir.path().join(NAME);
        let mut file = open_private(OpenOptions::new().write(true).create(true).truncate(true), &path)?;
        let written = file.write_all(&[b' '; BYTES]).and_then(|()| file.sync_all());
        written.map_err(|source| io_error("write", &path, source))?;
        Ok(Self { dir: dir.clone(), file })
    }

    /// Writes the record; it is on the disk when this returns.
    pub fn fill(mut self, record: &ExitRecord) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            match self.write(record) {
                Ok(()) => return Ok(()),
                Err(error) if begun.elapsed() > PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    fn write(&mut self, record: &ExitRecord) -> Result<(), Error> {
        let (path, room) = (self.dir.path().join("exit.json"), self.dir.path().join(NAME));
        let mut bytes =
            serde_json::to_vec_pretty(record).map_err(|source| Error::Corrupt { path: path.clone(), source })?;
        bytes.push(b'\n');
        let written = self.file.rewind().and_then(|()| self.file.write_all(&bytes)).and_then(|()| self.file.sync_all());
        written.map_err(|source| io_error("write", &room, source))?;
        std::fs::rename(&room, &path).map_err(|source| io_error("rename", &room, source))?;
        sync_dir(self.dir.path())
    }
}

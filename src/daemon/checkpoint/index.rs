//! Git's index file, read without git: what is in it, and what a stat said when it was written.
//!
//! Read here, since `git2` does not know nanoseconds, and since a process for each look would cost more than the look. Versions 2 to 4. An index that needs
//! others to be read (split, sparse) is not plain; the caller has git rewrite a copy of it.

use std::{collections::HashSet, fs::Metadata, os::unix::fs::MetadataExt as _};

use sha2::{Digest as _, Sha256};

use crate::domain::text::hex;

const STAT: usize = 40;
/// ctime and mtime, at its beginning.
const TIMES: usize = 16;
const ID: usize = 20;
const EXTENDED: u16 = 0x4000;
const ASSUME_UNCHANGED: u16 = 0x8000;
const NAME_MASK: u16 = 0x0fff;
const SKIP_WORKTREE: u16 = 0x4000;
const INTENT_TO_ADD: u16 = 0x2000;

/// A plain file.
pub(super) const MODE_FILE: u32 = 0o100_644;
/// A file that runs.
pub(super) const MODE_EXECUTABLE: u32 = 0o100_755;
/// A symbolic link.
pub(super) const MODE_LINK: u32 = 0o120_000;
/// A commit of another repository.
pub(super) const MODE_GITLINK: u32 = 0o160_000;

/// Why an index was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It needs other files, or is of a form not known here; git can rewrite it.
    NotPlain,
    /// It is no index.
    Damaged,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// ctime, mtime (seconds, nanoseconds), dev, ino, mode, uid, gid, size: as they stand in the file.
    stat: [u8; STAT],
    /// The object.
    pub(super) id: [u8; ID],
    flags: u16,
    extended: u16,
    /// The path.
    pub(super) path: Vec<u8>,
}

/// What an index says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// In the order of the file.
    pub(super) entries: Vec<Entry>,
    /// Objects that resolved conflicts could be undone with.
    pub(super) undo: Vec<[u8; ID]>,
}

impl Index {
    /// Reads the bytes of an index file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Unread> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let mut at = Reader { bytes, at: 0 };
        if at.take(4).ok_or(Unread::Damaged)? != b"DIRC" {
            return Err(Unread::Damaged);
        }
        let version = at.number().ok_or(Unread::Damaged)?;
        if !(2..=4).contains(&version) {
            return Err(Unread::NotPlain);
        }
        let count = at.number().ok_or(Unread::Damaged)?;
        let mut entries: Vec<Entry> = Vec::with_capacity((count as usize).min(bytes.len() / (STAT + ID)));
        for _ in 0..count {
            let before = entries.last().map(|entry| entry.path.as_slice()).unwrap_or_default();
            let entry = at.entry(version, before).ok_or(Unread::Damaged)?;
            entries.push(entry);
        }
        let mut undo = Vec::new();
        while at.bytes.len() - at.at > ID {
            let name = at.take(4).ok_or(Unread::Damaged)?;
            let length = at.number().ok_or(Unread::Damaged)? as usize;
            let body = at.take(length).ok_or(Unread::Damaged)?;
            match name {
                b"REUC" => undo = resolve_undo(body),
                [first, ..] if !first.is_ascii_uppercase() => return Err(Unread::NotPlain),
                _ => {}
            }
        }
        Ok(Self { entries, undo })
    }

    /// The bytes of an index file with these entries, without a checksum (as git writes it with `index.skipHash`).
    pub(super) fn write(&self) -> Vec<u8> {
        let mut bytes = b"DIRC\0\0\0\x02".to_vec();
        bytes.extend(u32::try_from(self.entries.len()).unwrap_or_default().to_be_bytes());
        for entry in &self.entries {
            let start = bytes.len();
            bytes.extend(entry.stat);
            bytes.extend(entry.id);
            bytes.extend(u16::try_from(entry.path.len()).unwrap_or(u16::MAX).min(NAME_MASK).to_be_bytes());
            bytes.extend(&entry.path);
            let length = bytes.len() - start;
            bytes.resize(start + (length / 8 + 1) * 8, 0);
        }
        bytes.extend([0; ID]);
        bytes
    }

    /// The bytes of an index file (version 2) in which what a stat said of these paths is forgotten, so that git reads them
    /// again; all else stays as it was.
    pub(super) fn doubted(mut bytes: Vec<u8>, paths: &HashSet<&[u8]>) -> Option<Vec<u8>> {
        let mut at = Reader { bytes: &bytes, at: 0 };
        at.take(4).filter(|magic| *magic == b"DIRC")?;
        at.number().filter(|version| *version == 2)?;
        let count = at.number()?;
        let mut starts = Vec::with_capacity(paths.len());
        for _ in 0..count {
            let start = at.at;
            if paths.contains(at.entry(2, &[])?.path.as_slice()) {
                starts.push(start);
            }
        }
        for start in starts {
            bytes.get_mut(start..start + TIMES)?.fill(0);
        }
        // No checksum, as git writes it with `index.skipHash`.
        let end = bytes.len().checked_sub(ID)?;
        bytes.get_mut(end..)?.fill(0);
        Some(bytes)
    }

    /// The same for the same `git ls-files -s -v` and `add -N`, whatever the stats say.
    pub(super) fn digest(&self) -> String {
        let mut digest = Sha256::new();
        for entry in &self.entries {
            digest.update(entry.mode().to_be_bytes());
            digest.update(entry.id);
            digest.update((entry.flags & !NAME_MASK & !EXTENDED).to_be_bytes());
            digest.update(entry.extended.to_be_bytes());
            digest.update(&entry.path);
            digest.update([0]);
        }
        hex(&digest.finalize())
    }
}

impl Entry {
    fn field(&self, at: usize) -> u32 {
        let bytes = self.stat.get(at * 4..at * 4 + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_be_bytes(bytes.unwrap_or_default())
    }

    /// As git writes modes.
    pub(super) fn mode(&self) -> u32 {
        self.field(6)
    }

    /// Length of the file when it was looked at, cut to 32 bits.
    pub(super) fn size(&self) -> u32 {
        self.field(9)
    }

    /// The time of the file's change that was seen: seconds, nanoseconds.
    pub(super) fn modified(&self) -> (u32, u32) {
        (self.field(2), self.field(3))
    }

    /// 0, or the side of a conflict.
    pub(super) fn stage(&self) -> u16 {
        (self.flags >> 12) & 3
    }

    /// An ordinary entry: of no conflict, not promised to be unchanged or absent, not just intended.
    pub(super) fn is_plain(&self) -> bool {
        self.stage() == 0
            && self.flags & ASSUME_UNCHANGED == 0
            && self.extended & (SKIP_WORKTREE | INTENT_TO_ADD) == 0
            && matches!(self.mode(), MODE_FILE | MODE_EXECUTABLE | MODE_LINK)
    }

    /// The file is as it was, so far as a stat tells.
    pub(super) fn is_as(&self, found: &Metadata) -> bool {
        // What does not fit is cut, as git does.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "git cuts to 32 bits")]
        let seen = [
            found.ctime() as u32,
            found.ctime_nsec() as u32,
            found.mtime() as u32,
            found.mtime_nsec() as u32,
            found.ino() as u32,
            found.size() as u32,
        ];
        let known = [0, 1, 2, 3, 5, 9].map(|at| self.field(at));
        mode_of(found) == Some(self.mode()) && seen == known
    }
}

/// The mode that git has for such a file; none for what it does not keep.
pub(super) fn mode_of(found: &Metadata) -> Option<u32> {
    let kind = found.file_type();
    if kind.is_symlink() {
        return Some(MODE_LINK);
    }
    kind.is_file().then(|| if found.mode() & 0o100 == 0 { MODE_FILE } else { MODE_EXECUTABLE })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn short(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn entry(&mut self, version: u32, before: &[u8]) -> Option<Entry> {
        let start = self.at;
        let stat = self.take(STAT)?.try_into().ok()?;
        let id = self.take(ID)?.try_into().ok()?;
        let flags = self.short()?;
        let extended = if flags & EXTENDED == 0 { 0 } else { self.short()? };
        let mut path = Vec::new();
        if version == 4 {
            let cut = self.offset()?;
            path.extend(before.get(..before.len().checked_sub(cut)?)?);
        }
        let rest = self.bytes.get(self.at..)?;
        let length = rest.iter().position(|byte| *byte == 0)?;
        path.extend(self.take(length)?);
        if version == 4 {
            self.at += 1;
        } else {
            self.at = start + ((self.at - start) / 8 + 1) * 8;
        }
        Some(Entry { stat, id, flags, extended, path })
    }

    /// A number as version 4 and packs write them.
    fn offset(&mut self) -> Option<usize> {
        let mut byte = *self.take(1)?.first()?;
        let mut value = usize::from(byte & 127);
        while byte & 128 != 0 {
            byte = *self.take(1)?.first()?;
            value = (value.checked_add(1)?.checked_mul(128)?) + usize::from(byte & 127);
        }
        Some(value)
    }
}

/// `path NUL mode NUL mode NUL mode NUL`, then an id for each mode that is not 0.
fn resolve_undo(mut body: &[u8]) -> Vec<[u8; ID]> {
    let mut ids = Vec::new();
    while !body.is_empty() {
        let mut parts = body.splitn(5, |byte| *byte == 0);
        let _path = parts.next();
        let modes: Vec<&[u8]> = parts.by_ref().take(3).collect();
        let Some(mut rest) = parts.next() else { break };
        for mode in modes {
            if mode != b"0"
                && let Some((id, after)) = rest.split_first_chunk::<ID>()
            {
                ids.push(*id);
                rest = after;
            }
        }
        body = rest;
    }
    ids
}

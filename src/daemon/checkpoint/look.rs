//! Looking at files by their stats: which are other than the shadow's index has them, and, after they were taken, whether
//! something moved meanwhile. The same walk collects what git does not keep: modes and empty directories.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, Metadata},
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::Path,
};

use super::{
    dirs::{GitDirs, join},
    index::{Index, MODE_EXECUTABLE, mode_of},
    manifest::{Modes, Name},
};

/// Permissions as they are kept.
const PERMISSIONS: u32 = 0o777;

/// A moment of the file system: seconds, nanoseconds.
pub(super) type Moment = (i64, i64);

/// When a file was written.
pub(super) fn moment(path: &Path) -> Option<Moment> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.mtime(), found.mtime_nsec()))
}

/// Files of the index that are gone or may be other than the index says, which was itself written then.
pub(super) fn changed(worktree: &Path, index: &Index, written: Option<Moment>) -> Vec<Vec<u8>> {
    let is_racy =
        |modified: (u32, u32)| written.is_none_or(|written| (i64::from(modified.0), i64::from(modified.1)) >= written);
    let is_same = |entry: &&super::index::Entry| {
        !is_racy(entry.modified())
            && fs::symlink_metadata(join(worktree, &entry.path)).is_ok_and(|found| entry.is_as(&found))
    };
    index.entries.iter().filter(|entry| !is_same(entry)).map(|entry| entry.path.clone()).collect()
}

/// What a walk over a captured worktree found.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Files that are gone or other than they were captured.
    pub(super) moved: bool,
    /// What is not captured and came or changed since the capture began: news, unless git ignores it.
    pub(super) young: Vec<Vec<u8>>,
    /// Directories with no captured file below them.
    pub(super) empty: Vec<Vec<u8>>,
    /// Directories that have a `.git`.
    pub(super) repositories: Vec<Vec<u8>>,
    /// All modes of what is captured.
    modes: Vec<(Vec<u8>, Kind, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Executable,
    Directory,
}

/// Walks through the directories of what the index has. `apart` are paths that are captured otherwise or left out.
pub(super) fn survey(worktree: &Path, index: &Index, apart: &HashSet<Vec<u8>>, since: Moment) -> Survey {
    let files: HashMap<&[u8], &super::index::Entry> = index.entries.iter().map(|e| (e.path.as_slice(), e)).collect();
    let (mut dirs, mut bare) = (HashSet::new(), HashSet::new());
    files.keys().for_each(|path| parents(path, &mut dirs));
    apart.iter().for_each(|path| parents(path, &mut bare));
    let mut walk = Walk { worktree, files, dirs, bare, apart, since, seen: 0, survey: Survey::default() };
    walk.directory(&[]);
    walk.survey.moved |= walk.seen != index.entries.len();
    walk.survey.empty.sort();
    walk.survey
}

/// Adds the directories that lead to a path.
pub(super) fn parents<'a>(mut path: &'a [u8], dirs: &mut HashSet<&'a [u8]>) {
    while let Some(at) = path.iter().rposition(|byte| *byte == b'/') {
        path = &path[..at];
        if !dirs.insert(path) {
            break;
        }
    }
}

struct Walk<'a> {
    worktree: &'a Path,
    files: HashMap<&'a [u8], &'a super::index::Entry>,
    /// Directories with files of the index below them.
    dirs: HashSet<&'a [u8]>,
    /// Directories with something below them that is captured otherwise or left out.
    bare: HashSet<&'a [u8]>,
    apart: &'a HashSet<Vec<u8>>,
    since: Moment,
    seen: usize,
    survey: Survey,
}

impl Walk<'_> {
    fn directory(&mut self, dir: &[u8]) {
        for entry in fs::read_dir(join(self.worktree, dir)).into_iter().flatten().flatten() {
            let name = entry.file_name().into_vec();
            if name == b".git" {
                if !dir.is_empty() && GitDirs::of(&join(self.worktree, dir)).is_some() {
                    self.survey.repositories.push(dir.to_vec());
                }
                continue;
            }
            let path = if dir.is_empty() { name } else { [dir, b"/", &name].concat() };
            let Ok(found) = entry.metadata() else { continue };
            if self.apart.contains(&path) {
                continue;
            }
            if let Some(known) = self.files.get(path.as_slice()) {
                self.seen += 1;
                self.survey.moved |= !known.is_as(&found);
                if let Some(mode) = mode_of(&found).filter(|_| !found.is_symlink()) {
                    let kind = if mode == MODE_EXECUTABLE { Kind::Executable } else { Kind::File };
                    self.survey.modes.push((path, kind, found.mode() & PERMISSIONS));
                }
            } else if found.is_dir() && self.dirs.contains(path.as_slice()) {
                self.directory(&path);
                self.survey.modes.push((path, Kind::Directory, found.mode() & PERMISSIONS));
            } else if found.is_dir() && self.bare.contains(path.as_slice()) {
                self.directory(&path);
                self.survey.modes.push((path.clone(), Kind::Directory, found.mode() & PERMISSIONS));
                self.survey.empty.push(path);
            } else if found.is_dir() && has_no_file(&join(self.worktree, &path)) {
                self.empty(path, &found);
            } else if (found.ctime(), found.ctime_nsec()) >= self.since {
                self.survey.young.push(path);
            }
        }
    }

    fn empty(&mut self, path: Vec<u8>, found: &Metadata) {
        for entry in fs::read_dir(join(self.worktree, &path)).into_iter().flatten().flatten() {
            if let Ok(found) = entry.metadata() {
                self.empty([&path, &b"/"[..], &entry.file_name().into_vec()].concat(), &found);
            }
        }
        self.survey.modes.push((path.clone(), Kind::Directory, found.mode() & PERMISSIONS));
        self.survey.empty.push(path);
    }
}

fn has_no_file(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return false };
    entries.flatten().all(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && has_no_file(&entry.path()))
}

impl Survey {
    /// The modes, without those of directories that are not kept.
    pub(super) fn modes(&self, ignored: &HashSet<Vec<u8>>) -> Modes {
        let usual = |kind: Kind| {
            let mut counts: HashMap<u32, usize> = HashMap::new();
            for (_, _, mode) in self.modes.iter().filter(|(_, of, _)| *of == kind) {
                *counts.entry(*mode).or_default() += 1;
            }
            counts.into_iter().max_by_key(|(mode, count)| (*count, *mode)).map(|(mode, _)| mode)
        };
        let file = usual(Kind::File).unwrap_or(0o644);
        let executable = usual(Kind::Executable).unwrap_or(0o755);
        let directory = usual(Kind::Directory).unwrap_or(0o755);
        let expected = |kind| match kind {
            Kind::File => file,
            Kind::Executable => executable,
            Kind::Directory => directory,
        };
        let others = self.modes.iter().filter(|(path, kind, mode)| *mode != expected(*kind) && !ignored.contains(path));
        let mut others: Vec<_> = others.map(|(path, _, mode)| (Name(path.clone()), *mode)).collect();
        others.sort();
        Modes { file, executable, directory, others }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::git::testing;

    /// A file that is as young as the index may have been written once more since, in the same tick: it is looked at.
    #[tokio::test]
    async fn what_is_as_young_as_the_index_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let repository = testing::repository(dir.path()).await;
        let index = Index::parse(&fs::read(repository.join(".git/index")).unwrap()).unwrap();
        let entry = &index.entries[1];
        let (seconds, nanoseconds) = entry.modified();
        let written = (i64::from(seconds), i64::from(nanoseconds));
        let is_changed = |written| changed(&repository, &index, written).contains(&entry.path);
        assert!(!is_changed(Some((written.0 + 1, 0))));
        assert!(is_changed(Some(written)));
        assert!(is_changed(None));
    }
}

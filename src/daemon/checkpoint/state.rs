//! What git keeps beside HEAD and index: the operation it is in the middle of, and the reflog of HEAD.

use std::{
    fs,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::Path,
};

use git2::{ObjectType, Oid, Repository};

use super::dirs::{GitDirs, join};

/// Bytes of one file; a rebase writes patches there.
const MAX_FILE: u64 = 32 * 1024 * 1024;
/// Bytes of a reflog that are kept, from its end.
const MAX_LOG: usize = 256 * 1024;
/// Directories of operations, and refs that belong to one worktree.
const DIRS: &[&str] = &[
    "rebase-merge",
    "rebase-apply",
    "sequencer",
    "refs/bisect",
    "refs/rewritten",
    "refs/worktree",
    "NOTES_MERGE_WORKTREE",
];
/// Files that belong to one worktree and are written in small letters.
const FILES: &[&str] = &["info/sparse-checkout", "logs/HEAD"];
/// Files that only a repository of its own has: of a linked worktree these belong to the repository.
const OWN_FILES: &[&str] = &["config", "description", "info/exclude", "info/attributes", "shallow", "logs/refs/stash"];
/// Not of an operation, and stored otherwise, or of no use elsewhere.
const NOT: &[&[u8]] = &[b"HEAD", b"FETCH_HEAD"];

/// A file of the git directory: its name there, and its bytes.
pub(super) type StateFile = (Vec<u8>, Vec<u8>);

/// The files of a git directory that say what git is in the middle of, in the order of their names.
pub(super) fn gather(dirs: &GitDirs, own: bool) -> Vec<StateFile> {
    let mut files = Vec::new();
    for entry in fs::read_dir(&dirs.git_dir).into_iter().flatten().flatten() {
        let name = entry.file_name().into_vec();
        let is_state = name.first().is_some_and(u8::is_ascii_uppercase)
            && name.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'_' || byte.is_ascii_digit());
        if is_state && !NOT.contains(&name.as_slice()) {
            take(&dirs.git_dir, name, &mut files);
        }
    }
    for dir in DIRS {
        below(&dirs.git_dir, dir.as_bytes(), &mut files);
    }
    for file in FILES.iter().chain(if own { OWN_FILES } else { &[] }) {
        take(&dirs.git_dir, file.as_bytes().to_vec(), &mut files);
    }
    files.sort();
    files
}

fn take(git_dir: &Path, name: Vec<u8>, files: &mut Vec<StateFile>) {
    let path = join(git_dir, &name);
    let Ok(found) = fs::symlink_metadata(&path) else { return };
    if !found.is_file() || found.len() > MAX_FILE {
        return;
    }
    let Ok(mut bytes) = fs::read(&path) else { return };
    if name.starts_with(b"logs/") && bytes.len() > MAX_LOG {
        let cut = bytes.len() - MAX_LOG;
        let line = bytes[cut..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| cut + at + 1);
        bytes.drain(..line);
    }
    files.push((name, bytes));
}

fn below(git_dir: &Path, dir: &[u8], files: &mut Vec<StateFile>) {
    for entry in fs::read_dir(join(git_dir, dir)).into_iter().flatten().flatten() {
        let name = [dir, &b"/"[..], entry.file_name().as_bytes()].concat();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(git_dir, &name, files);
        } else {
            take(git_dir, name, files);
        }
    }
}

/// Objects that these files name: commits, and others (`AUTO_MERGE` is a tree).
pub(super) fn named_objects(repository: &Repository, files: &[StateFile]) -> (Vec<Oid>, Vec<(Oid, ObjectType)>) {
    let (mut commits, mut others) = (Vec::new(), Vec::new());
    for (name, bytes) in files {
        if name == b"config" || name.starts_with(b"info/") {
            continue;
        }
        // Lists of what is still to be done name commits by as few digits as will do.
        let is_list = name.ends_with(b"todo") || name.ends_with(b"todo.backup") || name.ends_with(b"/done");
        for word in bytes.split(|byte| !byte.is_ascii_alphanumeric()) {
            let is_id = word.len() == 40 || (is_list && (4..40).contains(&word.len()));
            if !is_id || !word.iter().all(u8::is_ascii_hexdigit) {
                continue;
            }
            let Ok(text) = std::str::from_utf8(word) else { continue };
            if word.len() < 40 {
                commits.extend(repository.find_commit_by_prefix(text).map(|commit| commit.id()));
                continue;
            }
            let Ok(id) = Oid::from_str(text) else { continue };
            if id.is_zero() {
                continue;
            }
            match repository.find_object(id, None).ok().and_then(|object| object.kind()) {
                Some(ObjectType::Commit) => commits.push(id),
                Some(kind @ (ObjectType::Tree | ObjectType::Blob)) => others.push((id, kind)),
                _ => {}
            }
        }
    }
    commits.sort();
    commits.dedup();
    others.sort_by_key(|(id, _)| *id);
    others.dedup();
    (commits, others)
}

/// A file as it has to be where the branch has another name.
pub(super) fn renamed(name: &[u8], bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    const OF_REFS: &[&[u8]] = &[b"rebase-merge/head-name", b"rebase-apply/head-name", b"rebase-merge/update-refs"];
    let (from, to) = match name {
        name if OF_REFS.contains(&name) => (format!("refs/heads/{from}"), format!("refs/heads/{to}")),
        b"BISECT_START" => (from.to_owned(), to.to_owned()),
        _ => return bytes,
    };
    let lines = bytes.split(|byte| *byte == b'\n');
    let lines: Vec<&[u8]> = lines.map(|line| if line == from.as_bytes() { to.as_bytes() } else { line }).collect();
    lines.join(&b'\n')
}

/// A configuration without `core.worktree`: that of a submodule says where its files were.
pub(super) fn at_home(config: &[u8]) -> Vec<u8> {
    let mut in_core = false;
    let is_kept = |line: &&[u8]| {
        let text = line.trim_ascii();
        if text.starts_with(b"[") {
            in_core = text.eq_ignore_ascii_case(b"[core]");
        }
        let key = text.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        !(in_core && key.eq_ignore_ascii_case(b"worktree"))
    };
    config.split_inclusive(|byte| *byte == b'\n').filter(is_kept).flatten().copied().collect()
}

//! Everything that two worktrees must have in common.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{ffi::OsStringExt as _, fs::PermissionsExt as _},
    path::Path,
};

use super::super::dirs::{GitDirs, join};
use crate::daemon::git::{LOCAL_TIMEOUT, git, testing};

/// A worktree as it is seen from outside, with what git says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Every file, link and directory: mode and content.
    pub files: BTreeMap<String, String>,
    /// `ls-files -s -v`, with intent to add.
    pub index: String,
    /// Commit of HEAD.
    pub head: String,
    /// `status`.
    pub status: String,
    /// The operation's files.
    pub operation: BTreeMap<String, String>,
    /// Refs, of a repository of its own.
    pub refs: String,
    /// The same of repositories inside.
    pub nested: BTreeMap<String, Picture>,
}

/// Files that checkpoints leave out are not there afterwards.
const NOT: &[&str] = &["--", ".", ":(exclude).env", ":(exclude,glob)**/key.pem"];

/// Looks at a worktree. `branch` stands as `BRANCH` in what is answered; paths for which `without` holds are not looked at.
pub async fn picture(worktree: &Path, branch: &str, without: &dyn Fn(&str) -> bool) -> Picture {
    let (mut files, mut inside) = (BTreeMap::new(), Vec::new());
    walk(worktree, &[], without, &mut files, &mut inside);
    let rename = |text: String| text.replace(branch, "BRANCH");
    let dirs = GitDirs::of(worktree).unwrap();
    let mut operation = BTreeMap::new();
    for (name, bytes) in super::super::state::gather(&dirs, false) {
        let name = String::from_utf8_lossy(&name).into_owned();
        if !name.starts_with("logs/") {
            operation.insert(name, rename(String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    let ask = async |args: &[&str]| {
        let output = git(worktree).args(args.iter().copied()).run(LOCAL_TIMEOUT).await.unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let listed = ask(&["ls-files", "-s", "-v", "-z", "--resolve-undo"]).await;
    let intended = ask(&["diff", "--cached", "--raw", "--no-renames"]).await;
    let short = ["status", "--porcelain=v2", "--branch", "--untracked-files=all", "-z"];
    let short = ask(&[&short[..], NOT].concat()).await;
    let long = ask(&[&["status", "--long"], NOT].concat()).await;
    let mut nested = BTreeMap::new();
    for path in inside {
        let picture = Box::pin(picture(&join(worktree, &path), "no branch", without)).await;
        nested.insert(String::from_utf8_lossy(&path).into_owned(), picture);
    }
    Picture {
        files,
        index: listed + &intended,
        head: ask(&["rev-parse", "-q", "--verify", "HEAD"]).await,
        status: rename(short + &long),
        operation,
        refs: if dirs.is_linked() { String::new() } else { ask(&["for-each-ref"]).await },
        nested,
    }
}

fn walk(
    worktree: &Path,
    dir: &[u8],
    without: &dyn Fn(&str) -> bool,
    files: &mut BTreeMap<String, String>,
    inside: &mut Vec<Vec<u8>>,
) {
    for entry in fs::read_dir(join(worktree, dir)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_vec();
        if name == b".git" {
            continue;
        }
        let path = if dir.is_empty() { name } else { [dir, b"/", &name].concat() };
        let shown = super::super::manifest::Name(path.clone()).to_string();
        if without(&shown) {
            continue;
        }
        let found = entry.metadata().unwrap();
        let mode = found.permissions().mode();
        let content = if found.is_symlink() {
            format!("link to {:?}", fs::read_link(entry.path()).unwrap())
        } else if found.is_dir() {
            format!("directory {mode:o}")
        } else {
            format!("file {mode:o} {:?}", String::from_utf8_lossy(&fs::read(entry.path()).unwrap()))
        };
        files.insert(shown, content);
        if found.is_dir() {
            if entry.path().join(".git").exists() {
                inside.push(path);
            } else {
                walk(worktree, &path, without, files, inside);
            }
        }
    }
}

/// Says what differs, path by path, and fails if anything does.
pub fn assert_same(one: &Picture, other: &Picture) {
    let paths = one.files.keys().chain(other.files.keys());
    let different: Vec<_> = paths.filter(|path| one.files.get(*path) != other.files.get(*path)).collect();
    let shown: Vec<_> = different.iter().map(|path| (path, one.files.get(*path), other.files.get(*path))).collect();
    assert!(shown.is_empty(), "files differ: {shown:#?}");
    assert_eq!(one.operation, other.operation);
    assert_eq!(one.index, other.index);
    assert_eq!(one.nested.keys().collect::<Vec<_>>(), other.nested.keys().collect::<Vec<_>>());
    for (path, nested) in &one.nested {
        println!("in {path}");
        assert_same(nested, &other.nested[path]);
    }
    assert_eq!(one.head, other.head);
    assert_eq!(one.status, other.status);
    assert_eq!(one.refs, other.refs);
}

/// No ref, object or file of git in the worktree's own directories is broken.
pub async fn assert_sound(worktree: &Path) {
    testing::run(worktree, &["fsck", "--no-dangling", "--no-reflogs"]).await;
}

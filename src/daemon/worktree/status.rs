//! What one `git status` says of a worktree: where HEAD is, and every file that is not as it was committed. One process, where
//! asking for each of these took five.

use std::path::Path;

use super::Error;
use crate::{
    daemon::git::{LONG_TIMEOUT, git, succeed},
    domain::attempt::FailureClass,
};

/// What was seen.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// The commit that HEAD names; none before the first one.
    pub(super) commit: Option<String>,
    /// The branch that HEAD names, without `refs/heads/`; none where it is detached.
    pub(super) branch: Option<String>,
    /// What is not as committed, in git's order, without what is in conflict.
    pub(super) changes: Vec<Change>,
    /// Files in conflict.
    pub(super) unmerged: Vec<String>,
}

/// A file that is not as it was committed. Names are bytes: git takes any, and so do agents.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// How the index differs from HEAD: a letter of `git status`, `.` where it does not, `?` where git does not know the file.
    pub(super) index: u8,
    /// How the file differs from the index.
    pub(super) tree: u8,
    /// Relative to the worktree; ends with `/` for a repository inside.
    pub(super) path: Vec<u8>,
}

impl Change {
    /// For people.
    pub(super) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }

    /// Git did not have it.
    pub(super) fn is_new(&self) -> bool {
        matches!(self.index, b'A' | b'?')
    }

    /// The index has what HEAD does not.
    pub(super) fn is_staged(&self) -> bool {
        !matches!(self.index, b'.' | b'?')
    }
}

/// Looks.
pub(super) async fn status(worktree: &Path) -> Result<Status, Error> {
    let output = succeed("look for changes", LONG_TIMEOUT, || {
        // What an agent has made its branch's upstream may have a history that is not all here.
        git(worktree)
            .args(["status", "--porcelain=v2", "--branch", "--no-ahead-behind", "-z"])
            .args(["--untracked-files=all", "--no-renames"])
    })
    .await?;
    if output.truncated {
        return Err(Error::new(FailureClass::AgentError, "the agent changed more files than can be listed"));
    }
    parse(&output.stdout).ok_or_else(|| Error::repository("`git status` says what is not understood here"))
}

/// Reads the second porcelain format (git-status(1), "Porcelain Format Version 2"). Nothing where an entry is not understood: to
/// leave it out would be to leave work out.
fn parse(bytes: &[u8]) -> Option<Status> {
    let (mut status, mut has_head) = (Status::default(), false);
    for entry in bytes.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()) {
        let (kind, rest) = split(entry)?;
        match kind {
            b"#" => has_head |= header(&mut status, &String::from_utf8_lossy(rest)),
            b"?" => status.changes.push(Change { index: b'?', tree: b'?', path: rest.to_owned() }),
            b"1" => {
                // XY sub mH mI mW hH hI path
                let (&[index, tree], path) = (rest.get(..2)?, after(rest, 7)?) else { return None };
                status.changes.push(Change { index, tree, path: path.to_owned() });
            }
            // XY sub m1 m2 m3 mW h1 h2 h3 path
            b"u" => status.unmerged.push(String::from_utf8_lossy(after(rest, 9)?).into_owned()),
            _ => return None,
        }
    }
    has_head.then_some(status)
}

/// Answers whether it says where HEAD is. Other headers may come, and are passed over.
fn header(status: &mut Status, text: &str) -> bool {
    match text.split_once(' ') {
        Some(("branch.oid", id)) => {
            status.commit = Some(id.to_owned()).filter(|id| id != "(initial)");
            return true;
        }
        Some(("branch.head", name)) => status.branch = Some(name.to_owned()).filter(|name| name != "(detached)"),
        _ => {}
    }
    false
}

/// What stands before the first space, and after it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == b' ')?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// What follows so many fields.
fn after(mut rest: &[u8], fields: usize) -> Option<&[u8]> {
    for _ in 0..fields {
        rest = split(rest)?.1;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::daemon::git::{LOCAL_TIMEOUT, attempt, testing};

    fn change(status: &Status, path: &str) -> Option<(char, char)> {
        let found = status.changes.iter().find(|change| change.path == path.as_bytes())?;
        Some((char::from(found.index), char::from(found.tree)))
    }

    /// Against what git really prints: each kind of entry, names with spaces and line breaks.
    #[tokio::test]
    async fn a_worktree_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let repository = testing::repository(dir.path()).await;
        let files = [("kept", "1\n"), ("changed", "1\n"), ("staged", "1\n"), ("gone", "1\n"), ("moved", "1 2 3\n")];
        let commit = testing::commit(&repository, &files, "files").await;
        let clean = status(&repository).await.unwrap();
        let expected = Status { commit: Some(commit.clone()), branch: Some("main".to_owned()), ..Status::default() };
        assert_eq!(clean, expected);

        fs::write(repository.join("changed"), "2\n").unwrap();
        fs::write(repository.join("staged"), "2\n").unwrap();
        fs::write(repository.join("a new\nfile "), "").unwrap();
        fs::write(repository.join("added"), "").unwrap();
        fs::remove_file(repository.join("gone")).unwrap();
        testing::run(&repository, &["mv", "moved", "moved too"]).await;
        testing::run(&repository, &["add", "staged", "added"]).await;
        fs::create_dir(repository.join("inner")).unwrap();
        testing::run(&repository.join("inner"), &["init", "-q"]).await;
        testing::run(&repository, &["switch", "-q", "--detach"]).await;
        let seen = status(&repository).await.unwrap();
        assert_eq!((seen.commit.as_ref(), seen.branch.as_ref()), (Some(&commit), None));
        let expected = [
            ("changed", ('.', 'M')),
            ("staged", ('M', '.')),
            ("gone", ('.', 'D')),
            ("added", ('A', '.')),
            ("moved", ('D', '.')),
            ("moved too", ('A', '.')),
            ("a new\nfile ", ('?', '?')),
            ("inner/", ('?', '?')),
        ];
        for (path, letters) in expected {
            assert_eq!(change(&seen, path), Some(letters), "{path}: {seen:?}");
        }
        assert_eq!((seen.changes.len(), seen.unmerged.len()), (expected.len(), 0), "{seen:?}");
        let staged = seen.changes.iter().filter(|change| change.is_staged());
        assert_eq!(staged.count(), 4);
    }

    #[test]
    fn what_is_not_understood_is_not_left_out() {
        let head = "# branch.oid (initial)\0# branch.head main\0# later.header 1\0";
        assert!(parse(head.as_bytes()).is_some());
        let odd = ["2 R. N... 100644 100644 100644 1 2 R100 new\0old\0", "1 M. N... 100644\0", "1 M\0", "x\0", "x y\0"];
        for entry in odd {
            assert_eq!(parse(format!("{head}{entry}").as_bytes()), None, "{entry}");
        }
        assert_eq!(parse(b"# branch.head main\0"), None);
    }

    /// An agent may have fetched a branch without all of its history, and made it the upstream of its own.
    #[tokio::test]
    async fn an_upstream_with_a_hole_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let repository = testing::repository(dir.path()).await;
        testing::run(&repository, &["branch", "theirs"]).await;
        testing::run(&repository, &["switch", "-q", "theirs"]).await;
        let lost = testing::commit(&repository, &[("a", "a")], "lost").await;
        testing::commit(&repository, &[("b", "b")], "theirs").await;
        testing::run(&repository, &["switch", "-q", "main"]).await;
        testing::commit(&repository, &[("c", "c")], "ours").await;
        testing::run(&repository, &["branch", "-q", "--set-upstream-to=theirs"]).await;
        fs::remove_file(repository.join(".git/objects").join(&lost[..2]).join(&lost[2..])).unwrap();
        assert_eq!(status(&repository).await.unwrap().branch.as_deref(), Some("main"));
    }

    #[tokio::test]
    async fn conflicts_and_a_first_commit_that_is_missing_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let repository = testing::repository(dir.path()).await;
        testing::run(&repository, &["switch", "-q", "-c", "side"]).await;
        testing::commit(&repository, &[("a file", "side\n")], "side").await;
        testing::run(&repository, &["switch", "-q", "main"]).await;
        testing::commit(&repository, &[("a file", "main\n")], "main").await;
        let merge = || git(&repository).args(["-c", "user.name=a", "-c", "user.email=a@b", "merge", "-q", "side"]);
        assert!(!attempt("merge", LOCAL_TIMEOUT, merge).await.unwrap().success());
        let seen = status(&repository).await.unwrap();
        assert_eq!((seen.unmerged, seen.changes), (vec!["a file".to_owned()], Vec::new()));

        testing::run(&repository, &["reset", "-q", "--hard"]).await;
        testing::run(&repository, &["switch", "-q", "--orphan", "empty"]).await;
        let seen = status(&repository).await.unwrap();
        assert_eq!((seen.commit, seen.branch.as_deref()), (None, Some("empty")));
    }
}

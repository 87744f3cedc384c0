//! Real git repositories, made by the real git, with no identity and no configuration but their own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A repository with a checkout.
#[derive(Clone, Debug)]
pub struct Repo {
    /// Its checkout.
    pub path: PathBuf,
}

impl Repo {
    /// Makes one with branch `main` and a commit that holds `README.md`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let repo = Self { path: path.into() };
        fs::create_dir_all(&repo.path).expect("make the repository's folder");
        repo.git(&["init", "--quiet", "--initial-branch=main"]);
        repo.commit(&[("README.md", "# A repository for a test\n")], "first");
        repo
    }

    /// Where it is, as a task says it.
    pub fn url(&self) -> String {
        self.path.display().to_string()
    }

    /// The same repository as a URL, which daemons clone rather than use in place.
    pub fn file_url(&self) -> String {
        format!("file://{}", self.path.display())
    }

    /// Writes files and commits them on the branch checked out. Answers the commit.
    pub fn commit(&self, files: &[(&str, &str)], message: &str) -> String {
        for (name, text) in files {
            let path = self.path.join(name);
            fs::create_dir_all(path.parent().expect("a file has a folder")).expect("make a folder");
            fs::write(path, text).expect("write a file");
            self.git(&["add", "--", name]);
        }
        self.git(&["commit", "--quiet", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Runs git in it; panics with what git said if that fails. Answers standard output without its last line end.
    pub fn git(&self, args: &[&str]) -> String {
        let output = self.try_git(args);
        assert!(
            output.status.success(),
            "git {args:?} in {}: {}",
            self.path.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned()
    }

    /// Runs git in it, whatever comes of it.
    pub fn try_git(&self, args: &[&str]) -> Output {
        git(&self.path).args(args).output().expect("git is installed")
    }

    /// A file as it is at a revision.
    pub fn file(&self, revision: &str, name: &str) -> Option<String> {
        let output = self.try_git(&["show", &format!("{revision}:{name}")]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Names of all files at a revision.
    pub fn files(&self, revision: &str) -> Vec<String> {
        lines(&self.git(&["ls-tree", "-r", "--name-only", revision]))
    }

    /// Names of its branches.
    pub fn branches(&self) -> Vec<String> {
        lines(&self.git(&["for-each-ref", "--format=%(refname:short)", "refs/heads"]))
    }

    /// Names of all its refs.
    pub fn refs(&self) -> Vec<String> {
        lines(&self.git(&["for-each-ref", "--format=%(refname)"]))
    }

    /// The first commit is an ancestor of the second.
    pub fn is_ancestor(&self, ancestor: &str, descendant: &str) -> bool {
        self.try_git(&["merge-base", "--is-ancestor", ancestor, descendant]).status.success()
    }
}

/// git in a folder, with an identity of its own and nothing of this machine's configuration.
#[expect(clippy::disallowed_methods, reason = "the tests start their own processes")]
fn git(folder: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "Test")
        .env("GIT_AUTHOR_EMAIL", "test@localhost")
        .env("GIT_COMMITTER_NAME", "Test")
        .env("GIT_COMMITTER_EMAIL", "test@localhost");
    for inherited in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        git.env_remove(inherited);
    }
    git
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

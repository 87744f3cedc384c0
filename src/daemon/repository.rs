//! Repositories on this machine: a URL is kept as a bare clone, fetched once per attempt; a path is used in place.
//!
//! ```text
//!   https://… ── clone, fetch ──> <cache>/<name>-<hash>.git    refs/remotes/origin/*  what origin has
//!                                        │                     refs/heads/makima/*    branches of attempts
//!                                        └ <name>-<hash>.lock  refs/makima/results/*  results
//!   /path ──────────────────────> the repository itself
//! ```
//!
//! Promises: a clone that was interrupted is never taken for one; objects are never collected (`gc.auto=0`), since worktrees
//! share them; a change to a shared repository takes its lock. A network that fails is `Refused` (tried again, elsewhere); a
//! repository or base that does not exist is `Repository` (it will not exist next time either).

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use git2::ErrorCode;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use super::git::Error;
use super::{
    git::{LOCAL_TIMEOUT, LONG_TIMEOUT, Lock, attempt, blocking, git, remove_dead_lock, succeed},
    process::{Output, redact_url},
};
use crate::domain::daemon::is_path;

/// Times the network is tried before the attempt is given back.
const NETWORK_TRIES: u32 = 3;
/// Between them, times the number of tries.
const NETWORK_PAUSE: Duration = Duration::from_secs(2);
/// Branches named in a message.
const MAX_NAMED: usize = 10;

/// The repositories of one owner on this machine.
#[derive(Clone, Debug)]
pub struct Repositories {
    cache: PathBuf,
}

/// A repository that is at hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoRef {
    /// As the task names it: URL or absolute path.
    pub repository: String,
    /// The directory with its refs and objects.
    pub git_dir: PathBuf,
    /// A URL, of which `git_dir` is our bare clone; otherwise a path, used in place.
    pub cloned: bool,
}

impl Repositories {
    /// Kept in this directory.
    pub fn new(cache: impl AsRef<Path>) -> Self {
        Self { cache: cache.as_ref().to_owned() }
    }

    /// Makes the repository usable: clones or fetches a URL, checks a path. `base` and `wanted_refs` (those that origin has)
    /// are fetched too.
    pub async fn ensure(&self, repository: &str, base: &str, wanted_refs: &[String]) -> Result<RepoRef, Error> {
        if is_path(repository) {
            return in_place(repository).await;
        }
        if repository.starts_with('-') || repository.is_empty() {
            return Err(Error::repository(format!("`{repository}` is neither a URL nor an absolute path")));
        }
        fs::create_dir_all(&self.cache)
            .map_err(|error| Error::refused(format!("cannot create {}: {error}", self.cache.display())))?;
        let repo = RepoRef {
            repository: repository.to_owned(),
            git_dir: self.cache.join(format!("{}.git", slug(repository))),
            cloned: true,
        };
        let _lock = repo.lock().await?;
        if git2::Repository::open_bare(&repo.git_dir).is_err() {
            self.make_clone(&repo).await?;
        }
        fetch(&repo, base, wanted_refs).await?;
        Ok(repo)
    }

    /// URLs that have a clone here.
    pub fn at_hand(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.cache) else { return Vec::new() };
        let mut urls: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "git"))
            .filter_map(|entry| {
                let repository = git2::Repository::open_bare(entry.path()).ok()?;
                repository.find_remote("origin").ok()?.url().ok().map(str::to_owned)
            })
            .collect();
        urls.sort();
        urls
    }

    /// An empty clone, made beside its place and moved there whole.
    async fn make_clone(&self, repo: &RepoRef) -> Result<(), Error> {
        let disk = |error: std::io::Error| Error::refused(format!("cannot make a clone of {}: {error}", repo.shown()));
        if repo.git_dir.exists() {
            let aside = free_name(&repo.git_dir, "damaged");
            tracing::warn!(clone = %repo.git_dir.display(), to = %aside.display(), "moving a damaged clone aside");
            fs::rename(&repo.git_dir, aside).map_err(disk)?;
        }
        let new = repo.git_dir.with_extension("new");
        if new.exists() {
            fs::remove_dir_all(&new).map_err(disk)?;
        }
        let options = || git(&self.cache).args(["init", "--quiet", "--bare", "--template="]).arg(&new);
        succeed("make a clone", LOCAL_TIMEOUT, options).await?;
        for (key, value) in [
            ("remote.origin.url", repo.repository.as_str()),
            ("remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"),
            ("remote.origin.tagOpt", "--tags"),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
            ("core.logAllRefUpdates", "true"),
        ] {
            succeed("configure a clone", LOCAL_TIMEOUT, || git(&new).args(["config", key, value])).await?;
        }
        fs::rename(&new, &repo.git_dir).map_err(disk)
    }
}

// === impl RepoRef ===

impl RepoRef {
    /// Held while its refs, worktrees or configuration change.
    pub(super) async fn lock(&self) -> Result<Lock, Error> {
        let path = if self.cloned { self.git_dir.with_extension("lock") } else { self.git_dir.join("makima.lock") };
        let lock = Lock::take(&path).await?;
        // Each commit of an agent takes this one for a moment. Left by a machine that died it makes the next ones wait, and complain.
        remove_dead_lock(&self.git_dir.join("packed-refs.lock")).await;
        Ok(lock)
    }

    /// Opened to look.
    pub(super) fn open(&self) -> Result<git2::Repository, Error> {
        git2::Repository::open(&self.git_dir).map_err(|error| cannot_open(&self.repository, &error))
    }

    /// Its name without a password.
    pub(super) fn shown(&self) -> String {
        redact_url(&self.repository)
    }

    /// The commit that `base` names: a branch, a tag, a commit, a full ref; HEAD when empty.
    pub(super) fn base_commit(&self, repository: &git2::Repository, base: &str) -> Result<git2::Oid, Error> {
        let names = self.names_of(base);
        let found = names.iter().find_map(|name| {
            let object = match repository.find_reference(name) {
                Ok(reference) => reference.peel(git2::ObjectType::Commit).ok()?,
                Err(_) if is_commit_id(name) => {
                    repository.revparse_single(name).and_then(|o| o.peel(git2::ObjectType::Commit)).ok()?
                }
                Err(_) => return None,
            };
            Some(object.id())
        });
        found.ok_or_else(|| self.no_base(repository, base))
    }

    /// Where a base is looked for, in this order.
    fn names_of(&self, base: &str) -> Vec<String> {
        match (base, self.cloned) {
            ("" | "HEAD", true) => vec!["refs/remotes/origin/HEAD".into()],
            ("" | "HEAD", false) => vec!["HEAD".into()],
            (base, true) => vec![format!("refs/remotes/origin/{base}"), format!("refs/tags/{base}"), base.into()],
            (base, false) => {
                let prefixes = ["refs/heads/", "refs/tags/", "refs/remotes/origin/", "refs/remotes/", ""];
                prefixes.iter().map(|prefix| format!("{prefix}{base}")).collect()
            }
        }
    }

    /// A base is a branch or tag that origin has, not only a commit.
    pub(super) fn is_named(&self, repository: &git2::Repository, base: &str) -> bool {
        let is_of_origin =
            |name: &&String| ["refs/remotes/origin/", "refs/tags/"].iter().any(|of| name.starts_with(of));
        self.names_of(base).iter().filter(is_of_origin).any(|name| repository.find_reference(name).is_ok())
    }

    /// What a commit has in common with that of its base branch, or where that is gone, with what is checked out.
    pub(super) fn shared(
        &self,
        repository: &git2::Repository,
        base: Option<git2::Oid>,
        commit: git2::Oid,
    ) -> Option<String> {
        let base = base.or_else(|| self.base_commit(repository, "").ok())?;
        repository.merge_base(base, commit).ok().map(|common| common.to_string())
    }

    fn no_base(&self, repository: &git2::Repository, base: &str) -> Error {
        let prefix = if self.cloned { "refs/remotes/origin/" } else { "refs/heads/" };
        let mut branches: Vec<String> = repository
            .references_glob(&format!("{prefix}*"))
            .map(|refs| refs.flatten().filter_map(|r| Some(r.name().ok()?.strip_prefix(prefix)?.to_owned())).collect())
            .unwrap_or_default();
        branches.retain(|branch| branch != "HEAD");
        let shown = self.shown();
        if branches.is_empty() && base.is_empty() {
            return Error::repository(format!("{shown} has no commit yet: make a first one"));
        }
        let more = branches.len().saturating_sub(MAX_NAMED);
        branches.truncate(MAX_NAMED);
        let there = branches.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() };
        if base.is_empty() {
            return Error::repository(format!("{shown} has no HEAD branch; name a base branch, there are: {there}"));
        }
        Error::repository(format!("`{base}` is no branch, tag or commit of {shown}; branches there: {there}"))
    }
}

/// At least as many hex digits as git takes for an abbreviated commit.
fn is_commit_id(name: &str) -> bool {
    (7..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether an object is there.
pub(super) fn has_commit(repository: &git2::Repository, commit: &str) -> Option<git2::Oid> {
    let id = git2::Oid::from_str(commit).ok()?;
    repository.find_commit(id).ok().map(|commit| commit.id())
}

async fn in_place(path: &str) -> Result<RepoRef, Error> {
    let repository = path.to_owned();
    blocking(move || {
        let opened = git2::Repository::open(&repository).map_err(|error| cannot_open(&repository, &error))?;
        let git_dir = fs::canonicalize(opened.commondir())
            .map_err(|error| Error::repository(format!("cannot find the git directory of {repository}: {error}")))?;
        Ok(RepoRef { repository, git_dir, cloned: false })
    })
    .await
}

fn cannot_open(repository: &str, error: &git2::Error) -> Error {
    let shown = redact_url(repository);
    if error.code() == ErrorCode::Owner {
        return Error::repository(format!(
            "{shown} belongs to another user; to trust it: git config --global --add safe.directory {shown}"
        ));
    }
    if !Path::new(repository).exists() {
        return Error::repository(format!("{shown} does not exist on this machine"));
    }
    match git2::Repository::discover(repository) {
        Ok(outer) => {
            let top = outer.workdir().unwrap_or(outer.path()).display().to_string();
            Error::repository(format!("{shown} is a directory inside the repository {top}: name that one"))
        }
        Err(_) => Error::repository(format!("{shown} is not a git repository: {}", error.message())),
    }
}

// === the network ===

/// Brings branches and tags, HEAD where it matters, a base that is only a commit, and wanted refs that origin has.
async fn fetch(repo: &RepoRef, base: &str, wanted_refs: &[String]) -> Result<(), Error> {
    let what = format!("fetch {}", repo.shown());
    let dir = repo.git_dir.as_path();
    network(&what, || git(dir).args(["fetch", "--quiet", "--prune", "--force", "--no-auto-gc", "origin"])).await?;
    // Older gits do not bring it with what they fetch.
    let has_head = repo.open()?.refname_to_id("refs/remotes/origin/HEAD").is_ok();
    if base.is_empty() || base == "HEAD" || !has_head {
        // An origin without commits has none; the caller says so.
        let _ = attempt(&what, LONG_TIMEOUT, || git(dir).args(["remote", "set-head", "origin", "--auto"])).await?;
    }
    let missing_base = {
        let opened = repo.open()?;
        base.len() == 40 && is_commit_id(base) && has_commit(&opened, base).is_none()
    };
    if missing_base {
        // Some servers give a commit that no branch has; if not, the caller says that it is not there.
        let _ = attempt(&what, LONG_TIMEOUT, || git(dir).args(["fetch", "--quiet", "origin", base])).await?;
    }
    fetch_refs(repo, wanted_refs).await
}

/// Brings the objects of those of these refs that origin has. The refs themselves stay as they are here.
pub(super) async fn fetch_refs(repo: &RepoRef, refs: &[String]) -> Result<(), Error> {
    let mut prefixes: Vec<String> = refs.iter().filter_map(|r| Some(format!("{}/*", r.rsplit_once('/')?.0))).collect();
    prefixes.sort();
    prefixes.dedup();
    if prefixes.is_empty() {
        return Ok(());
    }
    let what = format!("fetch results from {}", repo.shown());
    let dir = repo.git_dir.as_path();
    let listed =
        network(&what, || git(dir).args(["ls-remote", "--quiet", "origin"]).args(prefixes.iter().cloned())).await?;
    let wanted = {
        let opened = repo.open()?;
        let text = listed.text();
        let there = text.lines().filter_map(|line| line.split_once('\t'));
        let wanted: Vec<String> = there
            .filter(|(id, name)| refs.iter().any(|wanted| wanted == name) && has_commit(&opened, id).is_none())
            .map(|(_, name)| name.to_owned())
            .collect();
        wanted
    };
    if !wanted.is_empty() {
        let input = wanted.join("\n") + "\n";
        network(&what, || git(dir).args(["fetch", "--quiet", "--no-tags", "--stdin", "origin"]).stdin(input.clone()))
            .await?;
    }
    Ok(())
}

async fn network(what: &str, command: impl Fn() -> super::process::Process + Send + Sync) -> Result<Output, Error> {
    let mut tries = 0;
    loop {
        tries += 1;
        let output = attempt(what, LONG_TIMEOUT, &command).await?;
        if output.success() {
            return Ok(output);
        }
        let complaint = redact_url(&output.complaint());
        let message = format!("cannot {what}: {complaint}");
        if !is_transient(&complaint) {
            return Err(Error::repository(message));
        }
        if tries == NETWORK_TRIES {
            return Err(Error::refused(message));
        }
        tokio::time::sleep(NETWORK_PAUSE * tries).await;
    }
}

/// Git has no codes for this, only words.
fn is_transient(complaint: &str) -> bool {
    const WORDS: &[&str] = &[
        "could not resolve host",
        "couldn't resolve host",
        "temporary failure in name resolution",
        "connection refused",
        "connection reset",
        "connection timed out",
        "connection closed",
        "operation timed out",
        "network is unreachable",
        "no route to host",
        "failed to connect",
        "early eof",
        "the remote end hung up unexpectedly",
        "rpc failed",
        "error: 5",
        "returned error: 429",
        "ssl_error",
        "tls",
    ];
    let complaint = complaint.to_lowercase();
    // Over SSH a hang-up is how a refusal ends, too.
    let permanent = ["permission denied", "not found", "does not exist", "does not appear to be a git repository"];
    !permanent.iter().any(|words| complaint.contains(words)) && WORDS.iter().any(|words| complaint.contains(words))
}

/// A directory name people recognise and no two URLs share.
fn slug(repository: &str) -> String {
    let last = repository.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or_default();
    let name: String = last
        .trim_end_matches(".git")
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' })
        .take(40)
        .collect();
    let hash = Sha256::digest(repository.as_bytes());
    let hex: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{name}-{hex}")
}

/// A path beside this one that nobody has: `<path>.<word>-1`, ...
pub(super) fn free_name(path: &Path, word: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    (1..).map(|n| path.with_file_name(format!("{name}.{word}-{n}"))).find(|path| !path.exists()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{daemon::git::testing, domain::attempt::FailureClass};

    fn url(path: &Path) -> String {
        format!("file://{}", path.display())
    }

    async fn base(repositories: &Repositories, repository: &str, base: &str) -> Result<String, Error> {
        let repo = repositories.ensure(repository, base, &[]).await?;
        let opened = repo.open()?;
        repo.base_commit(&opened, base).map(|id| id.to_string())
    }

    /// A clone is made once, follows its origin, and knows branches, tags, HEAD and commits.
    #[tokio::test]
    async fn a_url_is_cloned_and_followed() {
        let dir = tempfile::tempdir().unwrap();
        let origin = testing::repository(dir.path()).await;
        let repositories = Repositories::new(dir.path().join("cache"));
        let url = url(&origin);
        let first = testing::run(&origin, &["rev-parse", "HEAD"]).await;
        assert_eq!(base(&repositories, &url, "").await.unwrap(), first);
        testing::run(&origin, &["tag", "-m", "v1", "v1"]).await;
        testing::run(&origin, &["update-ref", "refs/makima/results/t", "HEAD"]).await;
        let second = testing::commit(&origin, &[("a", "a")], "second").await;
        for (name, commit) in [("main", &second), ("", &second), ("v1", &first), (&first[..10], &first)] {
            assert_eq!(base(&repositories, &url, name).await.unwrap(), *commit, "{name}");
        }
        assert_eq!(repositories.at_hand(), std::slice::from_ref(&url));
        // A clone that was broken is made again.
        let repo = repositories.ensure(&url, "", &[]).await.unwrap();
        fs::remove_file(repo.git_dir.join("HEAD")).unwrap();
        assert_eq!(base(&repositories, &url, "main").await.unwrap(), second);
    }

    /// Results at origin come when they are wanted; those that are not there stop nothing.
    #[tokio::test]
    async fn wanted_refs_come_along() {
        let dir = tempfile::tempdir().unwrap();
        let origin = testing::repository(dir.path()).await;
        let repositories = Repositories::new(dir.path().join("cache"));
        testing::run(&origin, &["checkout", "-q", "-b", "side"]).await;
        let result = testing::commit(&origin, &[("a", "a")], "result").await;
        testing::run(&origin, &["update-ref", "refs/makima/results/t", "HEAD"]).await;
        testing::run(&origin, &["checkout", "-q", "main"]).await;
        testing::run(&origin, &["branch", "-q", "-D", "side"]).await;
        let refs = ["refs/makima/results/t".to_owned(), "refs/makima/results/none".to_owned()];
        let repo = repositories.ensure(&url(&origin), "main", &refs).await.unwrap();
        assert!(has_commit(&repo.open().unwrap(), &result).is_some());
    }

    /// What does not exist is the repository's fault, and the message says what there is.
    #[tokio::test]
    async fn what_is_missing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let origin = testing::repository(dir.path()).await;
        let path = origin.display().to_string();
        let empty = dir.path().join("empty");
        fs::create_dir_all(origin.join("sub")).unwrap();
        fs::create_dir(&empty).unwrap();
        testing::run(&empty, &["init", "-q"]).await;
        let plain = dir.path().join("plain");
        fs::create_dir(&plain).unwrap();
        let repositories = Repositories::new(dir.path().join("cache"));
        for (repository, name, words) in [
            (path.clone(), "nope", "branches there: main"),
            (url(&origin), "nope", "branches there: main"),
            (url(&dir.path().join("none")), "", "cannot fetch"),
            (dir.path().join("none").display().to_string(), "", "does not exist"),
            (empty.display().to_string(), "", "no commit yet"),
            (url(&empty), "", "no commit yet"),
            (plain.display().to_string(), "", "not a git repository"),
            (format!("{path}/sub"), "", "name that one"),
            ("--upload-pack=x".to_owned(), "", "neither a URL nor an absolute path"),
        ] {
            let error = base(&repositories, &repository, name).await.unwrap_err();
            assert_eq!(error.class, FailureClass::Repository, "{error}");
            assert!(error.message.contains(words), "{error}");
        }
    }

    /// A network that fails is not the repository's fault.
    #[test]
    fn transient_words() {
        assert!(is_transient("fatal: unable to access 'https://x/': Could not resolve host: x"));
        assert!(is_transient("fatal: unable to access 'https://x/': The requested URL returned error: 503"));
        assert!(!is_transient("remote: Repository not found.\nfatal: repository 'https://x/' not found"));
        assert!(!is_transient("git@x: Permission denied (publickey).\nthe remote end hung up unexpectedly"));
    }
}

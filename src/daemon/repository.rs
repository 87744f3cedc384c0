//! Repositories.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use super::git::Error;

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

    /// Makes the repository usable: clones or fetches a URL, checks a path. `base` and `wanted_refs` are fetched too.
    pub async fn ensure(&self, repository: &str, base: &str, wanted_refs: &[String]) -> Result<RepoRef, Error> {
        todo!("{repository} {base} {wanted_refs:?} {}", self.cache.display())
    }

    /// URLs that have a clone here.
    pub fn at_hand(&self) -> Vec<String> {
        todo!()
    }
}

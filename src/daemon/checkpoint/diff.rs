//! What a checkpoint changed, as text for people.

use super::{ChainFile, Error, restore};
use crate::daemon::{
    git::{LONG_TIMEOUT, git, succeed},
    repository::RepoRef,
};

/// What a checkpoint changed against the commit that its attempt started from (or against `base`): names with how they
/// changed, then patches, cut at `most` bytes. The repository is as for [`super::restore()`]; nothing in it is checked out.
pub async fn diff(repo: &RepoRef, chain: &[ChainFile], base: Option<&str>, most: usize) -> Result<String, Error> {
    let headers = restore::verify(chain).await?;
    let stored = restore::Stored::bring(repo, chain, headers).await?;
    let base = base.unwrap_or(&stored.manifest.base_commit);
    compare(repo, base, &format!("{}:worktree", stored.header.commit), most).await
}

/// What stands between two trees, as [`diff`] tells it; all of the second where the first is empty.
pub(super) async fn compare(repo: &RepoRef, base: &str, tree: &str, most: usize) -> Result<String, Error> {
    // The empty tree, which git knows without having it.
    let base = if base.is_empty() { "4b825dc642cb6eb9a060e54bf8d69288fbee4904" } else { base };
    let run = |args: &'static [&'static str]| {
        let common = ["diff", "--no-color", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all"];
        git(&repo.git_dir).args(common).args(args.iter().copied()).args(["--ignore-cr-at-eol", base, tree, "--"])
    };
    let names = succeed("compare the work", LONG_TIMEOUT, || run(&["--name-status"])).await?.text();
    let patch = succeed("compare the work", LONG_TIMEOUT, || run(&["--patch"])).await?.text();
    let mut text = if names.is_empty() { String::new() } else { format!("{names}\n\n{patch}\n") };
    if text.len() > most {
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
        text.push_str("\n(and more)\n");
    }
    Ok(text)
}

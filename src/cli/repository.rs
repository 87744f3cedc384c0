//! The repository a person names: a URL is taken as it is; a path is made absolute and, where it can be seen from here,
//! looked at, so that a wrong branch is found before any daemon starts on it.

use std::path::{Component, Path, PathBuf};

use git2::{BranchType, ErrorCode, Repository};

use super::error::{Error, Result};

/// Branches named in a message about one that is not there.
const BRANCHES_SHOWN: usize = 8;

/// A repository and base as the server is to have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// URL, or absolute path.
    pub repository: String,
    /// Branch, tag or commit; empty where only the daemon can know.
    pub base: String,
}

/// What decides how a repository is read.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Relative paths are relative to this.
    pub folder: &'a Path,
    /// What `~` stands for.
    pub home: Option<&'a Path>,
    /// A path that is not here cannot be right, because the daemons are on this machine too.
    pub must_be_here: bool,
}

/// The repository that a person named, checked where it can be.
pub fn named(text: &str, base: &str, reading: Reading<'_>) -> Result<Place> {
    if is_url(text) {
        return Ok(Place { repository: text.to_owned(), base: base.to_owned() });
    }
    let path = absolute(text, reading)?;
    if !path.exists() && !reading.must_be_here {
        return Ok(Place { repository: utf8(&path)?, base: base.to_owned() });
    }
    if !path.exists() {
        return Err(Error::usage(format!("there is no repository at {}: the path does not exist", path.display())));
    }
    let repository = Repository::open(&path).map_err(|error| match error.code() {
        ErrorCode::NotFound => match Repository::discover(&path) {
            Ok(outer) => Error::usage(format!(
                "{} is not a git repository but a folder in one: name {}",
                path.display(),
                root(&outer).display()
            )),
            Err(_) => Error::usage(format!(
                "{} is not a git repository: name another, or run `git init` and commit there",
                path.display()
            )),
        },
        _ => Error::usage(format!("cannot open the repository {}: {}", path.display(), error.message())),
    })?;
    checked(&repository, base)
}

/// The repository that a folder is in.
pub fn around(folder: &Path, base: &str) -> Result<Place> {
    let repository = Repository::discover(folder).map_err(|error| match error.code() {
        ErrorCode::NotFound => {
            Error::usage(format!("{} is not in a git repository: go to one, or name one with --repo", folder.display()))
        }
        _ => Error::usage(format!("cannot open the repository around {}: {}", folder.display(), error.message())),
    })?;
    checked(&repository, base)
}

/// It is fetched by `git`, not read in place.
pub fn is_url(text: &str) -> bool {
    if text.contains("://") {
        return true;
    }
    // git's own rule for `host:path`: a colon before the first slash.
    let before = text.split_once(':').map(|(before, _)| before);
    before.is_some_and(|before| !before.is_empty() && !before.contains('/') && !Path::new(text).exists())
}

fn absolute(text: &str, reading: Reading<'_>) -> Result<PathBuf> {
    let path = match (text.strip_prefix('~'), reading.home) {
        (Some(""), Some(home)) => home.to_owned(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        (Some(rest), None) if rest.is_empty() || rest.starts_with('/') => {
            return Err(Error::usage(format!("{text}: HOME is not set, so write the whole path")));
        }
        _ => reading.folder.join(text),
    };
    // Resolving links would name the repository otherwise than the daemon knows it only if the path exists here.
    Ok(path.canonicalize().unwrap_or_else(|_| tidy(&path)))
}

/// Without `.` and `..`, for a path that is not on this machine.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                tidy.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => tidy.push(component),
        }
    }
    tidy
}

fn root(repository: &Repository) -> PathBuf {
    let root = repository.workdir().unwrap_or_else(|| repository.path());
    root.canonicalize().unwrap_or_else(|_| root.to_owned())
}

fn checked(repository: &Repository, base: &str) -> Result<Place> {
    let root = root(repository);
    let base = if base.is_empty() {
        head(repository, &root)?
    } else {
        let found = repository.revparse_single(base).and_then(|object| object.peel_to_commit());
        found.map_err(|_| no_such_base(repository, &root, base))?;
        base.to_owned()
    };
    Ok(Place { repository: utf8(&root)?, base })
}

/// The branch that HEAD is on, so that what HEAD points to later does not matter to this contract.
fn head(repository: &Repository, root: &Path) -> Result<String> {
    match repository.head() {
        Ok(head) if head.is_branch() => head
            .shorthand()
            .map(str::to_owned)
            .map_err(|_| Error::usage(format!("the branch of {} is not UTF-8: name it with --base", root.display()))),
        Ok(head) => head
            .peel_to_commit()
            .map(|commit| commit.id().to_string())
            .map_err(|error| Error::usage(format!("{}: HEAD is no commit: {}", root.display(), error.message()))),
        Err(error) if matches!(error.code(), ErrorCode::UnbornBranch | ErrorCode::NotFound) => {
            Err(Error::usage(format!("the repository {} has no commits yet: make one first", root.display())))
        }
        Err(error) => Err(Error::usage(format!("cannot read HEAD of {}: {}", root.display(), error.message()))),
    }
}

fn no_such_base(repository: &Repository, root: &Path, base: &str) -> Error {
    let mut names: Vec<String> = Vec::new();
    if let Ok(branches) = repository.branches(Some(BranchType::Local)) {
        for (branch, _) in branches.flatten() {
            // Those of earlier tasks are many, and not what was meant.
            if let Ok(Some(name)) = branch.name()
                && !name.starts_with("makima/")
            {
                names.push(name.to_owned());
            }
        }
    }
    let there = match names.len() {
        0 => "it has no commits yet: make one first".to_owned(),
        1..=BRANCHES_SHOWN => format!("branches there: {}", names.join(", ")),
        many => format!("branches there: {} and {} more", names[..BRANCHES_SHOWN].join(", "), many - BRANCHES_SHOWN),
    };
    Error::usage(format!("{base} is no branch, tag or commit of {}; {there}", root.display()))
}

fn utf8(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::usage(format!("the path {} is not UTF-8: rename it, or use a URL", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(dir: &Path) -> Repository {
        let repository = Repository::init_opts(dir, git2::RepositoryInitOptions::new().initial_head("main")).unwrap();
        {
            let author = git2::Signature::now("t", "t@localhost").unwrap();
            let tree = repository.treebuilder(None).unwrap().write().unwrap();
            let tree = repository.find_tree(tree).unwrap();
            repository.commit(Some("HEAD"), &author, &author, "first", &tree, &[]).unwrap();
        }
        repository
    }

    fn reading(folder: &Path) -> Reading<'_> {
        Reading { folder, home: None, must_be_here: true }
    }

    #[test]
    fn a_relative_path_becomes_absolute_and_head_its_branch() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        repository(&root.join("shop"));
        std::fs::create_dir(root.join("plans")).unwrap();
        let place = named("../shop", "", reading(&root.join("plans"))).unwrap();
        let expected = Place { repository: root.join("shop").to_str().unwrap().to_owned(), base: "main".to_owned() };
        assert_eq!(place, expected);
        std::fs::create_dir(root.join("shop/src")).unwrap();
        assert_eq!(around(&root.join("shop/src"), "").unwrap(), expected);
        let home = Reading { home: Some(&root), ..reading(Path::new("/")) };
        assert_eq!(named("~/shop", "main", home).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        repository(&root.join("shop"));
        std::fs::create_dir_all(root.join("shop/src")).unwrap();
        Repository::init(root.join("empty")).unwrap();
        std::fs::create_dir(root.join("plain")).unwrap();
        let said = |path: &str, base: &str| {
            let error = named(path, base, reading(&root)).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string().replace(root.to_str().unwrap(), "ROOT")
        };
        insta::assert_snapshot!(said("shop", "develop"), @"develop is no branch, tag or commit of ROOT/shop; branches there: main");
        insta::assert_snapshot!(said("shop/src", ""), @"ROOT/shop/src is not a git repository but a folder in one: name ROOT/shop");
        insta::assert_snapshot!(said("empty", ""), @"the repository ROOT/empty has no commits yet: make one first");
        insta::assert_snapshot!(said("plain", ""), @"ROOT/plain is not a git repository: name another, or run `git init` and commit there");
        insta::assert_snapshot!(said("nowhere", ""), @"there is no repository at ROOT/nowhere: the path does not exist");
    }

    #[test]
    fn a_path_on_another_machine_is_left_to_its_daemon() {
        let elsewhere = Reading { must_be_here: false, ..reading(Path::new("/a/b")) };
        let place = named("../srv/shop", "main", elsewhere).unwrap();
        assert_eq!(place.repository, "/a/srv/shop");
    }

    #[test]
    fn urls_are_told_from_paths() {
        for url in ["https://example.org/a.git", "git@example.org:a/b.git", "host:repo", "file:///srv/a"] {
            assert!(is_url(url), "{url}");
        }
        for path in [".", "/srv/a", "../a:b", "~/a", "a"] {
            assert!(!is_url(path), "{path}");
        }
    }
}

//! A worktree again, from the files of a chain.
//!
//! ```text
//!   verify every file ──> objects into the repository ──> worktree on its branch ──> files, modes, empty directories
//!                                                             operation, index  <──  (as captured, byte for byte)
//!                                                             nested repositories ──> transcript
//! ```

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, Permissions},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use git2::{ObjectType, Oid, Repository};

use super::{
    ChainFile, Error, Previous, Restored,
    capture::pack,
    container::{self, Header, damaged},
    dirs::{GitDirs, join},
    index::{Index, MODE_EXECUTABLE, MODE_GITLINK, MODE_LINK, mode_of},
    look,
    manifest::{Head, Manifest, Modes, Name, Nested, Part},
    objects::{Hindrance, connected, unpack},
    part::{self, Subject},
    shadow::Shadow,
    state,
};
use crate::daemon::{
    attempt_dir::Place,
    git::{LOCAL_TIMEOUT, LONG_TIMEOUT, Share, attempt, blocking, git, succeed},
    repository::RepoRef,
    worktree,
};

/// Makes the worktree of a checkpoint at `path`, on the branch `branch` (or one beside it, if that is taken). The
/// repository has what the checkpoint left out ([`super::Source::exclude`]); `chain` are its files, the whole one first.
///
/// A worktree of this repository that is already at `path` becomes that of the checkpoint: files that the checkpoint does
/// not have are removed, but not what git ignores and what a checkpoint leaves out. Anything else at `path` is moved aside.
///
/// Where the repository lacks what the newest builds on, and nothing is to be had of it, the one before it is taken, and so on
/// ([`Restored::passed_over`]): an attempt that goes on from an older one repeats some work, and one that never begins does none.
/// Not where it is to be `exactly` this one, nor for any other trouble, which may pass or be this machine's alone.
pub async fn restore(
    repo: &RepoRef,
    chain: &[ChainFile],
    path: &Path,
    branch: &str,
    transcript: Option<&Path>,
    exactly: bool,
) -> Result<Restored, Error> {
    let headers = verify(chain).await?;
    let (stored, passed_over) = Stored::bring_newest(repo, chain, headers, exactly).await?;
    let mut warnings = Vec::new();
    let place = Place {
        repo: repo.clone(),
        worktree: path.to_owned(),
        branch: branch.to_owned(),
        base_commit: stored.manifest.base_commit.clone(),
        shared: stored.manifest.shared.clone(),
        copied: Vec::new(),
        env: BTreeMap::new(),
    };
    let made = !worktree::is_intact(&place);
    let branch = stored.place(&place, made, &mut warnings).await?;
    let place = Place { branch, ..place };
    match stored.fill(&place, transcript, &mut warnings).await {
        Ok(transcript) => Ok(Restored { passed_over, ..stored.restored(place, transcript, warnings).await? }),
        Err(error) => {
            if made {
                worktree::discard(repo, path, &place.branch).await;
            }
            Err(error)
        }
    }
}

pub(super) async fn set_ref(repo: &RepoRef, name: &str, commit: &str) -> Result<(), Error> {
    let args = ["-c", "core.fsync=all", "update-ref", "-m", "makima: restore", name, commit];
    succeed("set a ref", LOCAL_TIMEOUT, || git(&repo.git_dir).args(args)).await?;
    Ok(())
}

/// Checks every file of a chain, and that it is one.
pub(super) async fn verify(chain: &[ChainFile]) -> Result<Vec<Header>, Error> {
    let chain = chain.to_vec();
    blocking(move || {
        let mut headers: Vec<Header> = Vec::new();
        for file in &chain {
            container::verify(file)?;
            let (header, _) = container::open(&file.path)?;
            if header.base != headers.last().map(|before| before.id) {
                let why = match header.base {
                    Some(base) => format!("it builds on the checkpoint {base}, which is not the one given before it"),
                    None => "it is whole, and not the first of its chain".to_owned(),
                };
                return Err(Error::repository(format!("{} is not in its place: {why}", file.path.display())));
            }
            headers.push(header);
        }
        if headers.is_empty() {
            return Err(Error::repository("there is no checkpoint to restore"));
        }
        Ok(headers)
    })
    .await
}

/// A checkpoint whose objects are in a repository.
pub(super) struct Stored {
    pub(super) repo: RepoRef,
    pub(super) header: Header,
    pub(super) manifest: Manifest,
    pub(super) tree: Oid,
}

impl Stored {
    /// Brings the objects of a verified chain into the repository.
    pub(super) async fn bring(repo: &RepoRef, chain: &[ChainFile], headers: Vec<Header>) -> Result<Self, Hindrance> {
        for file in chain {
            unpack(repo, &file.path).await?;
        }
        let Some(header) = headers.into_iter().next_back() else {
            return Err(Error::repository("there is no checkpoint to restore").into());
        };
        let path = chain.last().map(|file| file.path.clone()).unwrap_or_default();
        connected(repo, &header.commit, &path).await?;
        let repo = repo.clone();
        let stored = blocking(move || {
            let bad = |why: &str| damaged(&path, why);
            let opened = repo.open()?;
            let commit = Oid::from_str(&header.commit).and_then(|id| opened.find_commit(id));
            let tree = commit.and_then(|commit| commit.tree()).map_err(|_| bad("its commit is not in it"))?;
            let json = blob(&opened, &tree, "manifest.json").ok_or_else(|| bad("it has no manifest"))?;
            let manifest: Manifest = serde_json::from_slice(&json).map_err(|error| bad(&error.to_string()))?;
            let tree = tree.id();
            Ok(Self { repo, header, manifest, tree })
        });
        Ok(stored.await?)
    }

    /// The same of the newest that can be brought, and why those after it cannot. The error is that of the newest.
    async fn bring_newest(
        repo: &RepoRef,
        chain: &[ChainFile],
        headers: Vec<Header>,
        exactly: bool,
    ) -> Result<(Self, Option<String>), Error> {
        let lacks = match Self::bring(repo, chain, headers.clone()).await {
            Ok(stored) => return Ok((stored, None)),
            Err(Hindrance::Lacks(error)) if !exactly => error,
            Err(hindrance) => return Err(hindrance.into()),
        };
        for links in (1..chain.len()).rev() {
            match Self::bring(repo, &chain[..links], headers[..links].to_vec()).await {
                Ok(stored) => return Ok((stored, Some(lacks.message))),
                Err(Hindrance::Lacks(_)) => {}
                Err(hindrance) => return Err(hindrance.into()),
            }
        }
        Err(lacks)
    }

    /// Makes the worktree, with HEAD where it belongs and no files. Answers the branch.
    async fn place(&self, place: &Place, made: bool, warnings: &mut Vec<String>) -> Result<String, Error> {
        let _lock = self.repo.lock().await?;
        let (asked, path) = (place.branch.as_str(), &place.worktree);
        let start = self.manifest.branch_commit.as_str();
        let start = if start.is_empty() { self.manifest.top.head.commit().unwrap_or_default() } else { start };
        if !made {
            let current =
                attempt("read HEAD", LOCAL_TIMEOUT, || git(path).args(["symbolic-ref", "-q", "HEAD"])).await?;
            if current.text() != format!("refs/heads/{asked}") {
                // It is checked out nowhere, or here: what it had is in the reflog.
                let detach = || git(path).args(["checkout", "--quiet", "--detach", "--no-guess"]);
                let _ = attempt("leave a branch", LOCAL_TIMEOUT, detach).await;
            }
        }
        if made {
            worktree::clear_the_way(&self.repo, path, warnings).await?;
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)
                    .map_err(|error| Error::refused(format!("cannot create {}: {error}", parent.display())))?;
            }
        }
        let id = Oid::from_str(start).unwrap_or(Oid::ZERO_SHA1);
        let branch = match made {
            true => worktree::choose_branch(&self.repo, asked, id, warnings).await?,
            false => asked.to_owned(),
        };
        if made {
            succeed("make a worktree", LONG_TIMEOUT, || {
                let add = git(&self.repo.git_dir).args(["worktree", "add", "--quiet", "--force", "--force"]);
                match start {
                    "" => add.args(["--orphan", "-b", &branch]).arg(path),
                    start => add.args(["--no-checkout", "-B", &branch]).arg(path).arg(start),
                }
            })
            .await?;
        } else if !start.is_empty() {
            set_ref(&self.repo, &format!("refs/heads/{branch}"), start).await?;
        }
        Ok(branch)
    }

    /// Fills the worktree. Answers where the transcript is.
    pub(super) async fn fill(
        &self,
        place: &Place,
        transcript: Option<&Path>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<PathBuf>, Error> {
        let part = &self.manifest.top;
        let dirs = git_dirs(&place.worktree)?;
        let shadow = Shadow::open(&dirs, &place.worktree)?;
        let files = Files { subject: subject(&shadow, &shadow, &dirs, &[]), tree: self.tree };
        files.check_out(part).await?;
        self.set_head(place, &dirs, warnings).await?;
        files.put_state(part, false, (&self.manifest.branch, &place.branch)).await?;
        files.put_index(part, &place.worktree, warnings).await?;
        for (at, nested) in self.manifest.nested.iter().enumerate() {
            self.nested(&shadow, &place.worktree, at, nested, warnings).await?;
        }
        let (worktree, modes) = (place.worktree.clone(), part.modes.clone());
        let index = shadow.index();
        blocking(move || {
            set_modes(&worktree, &index, &modes);
            Ok(())
        })
        .await?;
        self.put_transcript(transcript).await
    }

    /// HEAD as it was; on the attempt's new branch where it was on the old one.
    async fn set_head(&self, place: &Place, dirs: &GitDirs, warnings: &mut Vec<String>) -> Result<(), Error> {
        let ours = format!("refs/heads/{}", self.manifest.branch);
        let new = format!("refs/heads/{}", place.branch);
        let text = match &self.manifest.top.head {
            Head::At(commit) => format!("{commit}\n"),
            Head::On { name, .. } if *name == ours => format!("ref: {new}\n"),
            Head::On { name, commit } => {
                let name = self.other_branch(name, commit.as_deref(), &new, warnings).await?;
                format!("ref: {name}\n")
            }
        };
        // As git does it where HEAD moves without a checkout: the reflog comes from the checkpoint.
        fs::write(dirs.git_dir.join("HEAD"), text)
            .map_err(|error| Error::refused(format!("cannot write HEAD: {error}")))
    }

    /// The agent was on a branch of its own: the same here, if nobody has another one of that name.
    async fn other_branch(
        &self,
        name: &str,
        commit: Option<&str>,
        new: &str,
        warnings: &mut Vec<String>,
    ) -> Result<String, Error> {
        let listed = succeed("list worktrees", LOCAL_TIMEOUT, || {
            git(&self.repo.git_dir).args(["worktree", "list", "--porcelain", "-z"])
        })
        .await?;
        let line = format!("branch {name}");
        let is_taken = listed.stdout.split(|byte| *byte == 0).any(|found| found == line.as_bytes());
        let there = {
            let opened = self.repo.open()?;
            opened.refname_to_id(name).ok().map(|id| id.to_string())
        };
        if !is_taken && (there.is_none() || there.as_deref() == commit) {
            if let (Some(commit), None) = (commit, there) {
                set_ref(&self.repo, name, commit).await?;
            }
            return Ok(name.to_owned());
        }
        let short = name.strip_prefix("refs/heads/").unwrap_or(name).replace('/', "-");
        let beside = (1..).map(|n| format!("{new}-{short}-{n}"));
        let opened = self.repo.open()?;
        let free = beside.into_iter().find(|name| opened.refname_to_id(name).is_err()).unwrap_or_default();
        drop(opened);
        if let Some(commit) = commit {
            set_ref(&self.repo, &free, commit).await?;
        }
        warnings.push(format!("the agent was on `{name}`, which is in use here: it is on `{free}` now"));
        Ok(free)
    }

    // === nested repositories ===

    async fn nested(
        &self,
        main: &Shadow,
        worktree: &Path,
        at: usize,
        nested: &Nested,
        warnings: &mut Vec<String>,
    ) -> Result<(), Error> {
        let path = join(worktree, &nested.path.0);
        let fail = |error: std::io::Error| Error::refused(format!("cannot make {}: {error}", path.display()));
        fs::create_dir_all(&path).map_err(fail)?;
        let tree = {
            let opened = self.repo.open()?;
            let found = opened
                .find_tree(self.tree)
                .and_then(|tree| tree.get_path(Path::new(&format!("nested/{at}"))).map(|e| e.id()));
            found.map_err(|error| Error::repository(error.message().to_owned()))?
        };
        if GitDirs::of(&path).is_none() {
            succeed("make a nested repository", LOCAL_TIMEOUT, || git(&path).args(["init", "--quiet", "--template="]))
                .await?;
        }
        let dirs = git_dirs(&path)?;
        let shadow = main.nested(&dirs, &path)?;
        let files = Files { subject: subject(&shadow, main, &dirs, &nested.path.0), tree };
        // Its own objects: the outer repository may forget what no ref of it holds.
        files.hand_over(nested).await?;
        put_refs(&dirs, nested, warnings).await?;
        // After the refs: setting those wrote to their logs, the stash's among them.
        files.put_state(&nested.part, true, ("", "")).await?;
        files.check_out(&nested.part).await?;
        files.put_index(&nested.part, &path, warnings).await?;
        let (index, modes) = (shadow.index(), nested.part.modes.clone());
        blocking(move || {
            set_modes(&path, &index, &modes);
            Ok(())
        })
        .await
    }

    async fn put_transcript(&self, to: Option<&Path>) -> Result<Option<PathBuf>, Error> {
        let Some(to) = to.map(Path::to_owned) else { return Ok(None) };
        let (repo, tree) = (self.repo.clone(), self.tree);
        blocking(move || {
            let opened = repo.open()?;
            let bytes = opened.find_tree(tree).ok().and_then(|tree| blob(&opened, &tree, "transcript"));
            let Some(bytes) = bytes else { return Ok(None) };
            let written = to.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&to, bytes));
            let written = written.and_then(|()| fs::File::open(&to)?.sync_all());
            written.map_err(|error| Error::refused(format!("cannot write {}: {error}", to.display())))?;
            Ok(Some(to))
        })
        .await
    }

    pub(super) async fn restored(
        self,
        place: Place,
        transcript: Option<PathBuf>,
        warnings: Vec<String>,
    ) -> Result<Restored, Error> {
        let env = worktree::identity(&place.worktree).await?.into_iter().collect();
        let Header { id, commit, depth, .. } = self.header;
        Ok(Restored {
            place: Place { env, ..place },
            session_id: self.manifest.session_id,
            transcript,
            previous: Previous { id, commit, depth },
            omitted: self.manifest.omitted,
            passed_over: None,
            warnings,
        })
    }
}

fn git_dirs(worktree: &Path) -> Result<GitDirs, Error> {
    GitDirs::of(worktree).ok_or_else(|| Error::refused(format!("{} is no worktree", worktree.display())))
}

fn subject(shadow: &Shadow, main: &Shadow, dirs: &GitDirs, path: &[u8]) -> Subject {
    Subject {
        shadow: shadow.clone(),
        main: main.clone(),
        dirs: dirs.clone(),
        inside: !path.is_empty(),
        shared: false,
        path: path.to_vec(),
        copied: std::sync::Arc::new(HashSet::new()),
    }
}

// === objects ===

fn blob(repository: &Repository, tree: &git2::Tree<'_>, name: &str) -> Option<Vec<u8>> {
    let id = tree.get_path(Path::new(name)).ok()?.id();
    repository.find_blob(id).ok().map(|blob| blob.content().to_vec())
}

// === files ===

/// The files of one repository of a checkpoint.
struct Files {
    subject: Subject,
    /// The tree with `worktree`, `index`, `objects`, `state`.
    tree: Oid,
}

impl Files {
    fn entry(&self, name: &str) -> Result<Option<Oid>, Error> {
        let objects = self.subject.main.repository()?;
        let tree = objects.find_tree(self.tree).map_err(|error| part::git2_error(&error))?;
        Ok(tree.get_name(name).map(|entry| entry.id()))
    }

    /// The files, and nothing else but what a checkpoint leaves out.
    async fn check_out(&self, part: &Part) -> Result<(), Error> {
        let Some(tree) = self.entry("worktree")? else { return Err(Error::repository("the checkpoint has no files")) };
        let shadow = &self.subject.shadow;
        let is_fresh =
            fs::read_dir(&shadow.worktree).is_ok_and(|entries| entries.flatten().all(|e| e.file_name() == ".git"));
        if is_fresh {
            let _ = fs::remove_file(shadow.index());
        } else {
            // What is there becomes known, so that what does not belong there goes.
            let mut budget = u64::MAX;
            part::take(&self.subject, &mut budget, true).await?;
        }
        let share = Share::take();
        succeed("check out the files", LONG_TIMEOUT, || {
            shadow.git().args(["-c", &share.workers(), "read-tree", "--reset", "-u"]).arg(tree.to_string())
        })
        .await?;
        for Name(path) in &part.empty {
            let dir = join(&shadow.worktree, path);
            fs::create_dir_all(&dir)
                .map_err(|error| Error::refused(format!("cannot make {}: {error}", dir.display())))?;
        }
        Ok(())
    }

    /// The operation's files.
    async fn put_state(&self, part: &Part, own: bool, branch: (&str, &str)) -> Result<(), Error> {
        let Some(tree) = self.entry("state")? else { return Ok(()) };
        let (dirs, names) = (self.subject.dirs.clone(), part.state.clone());
        let main = self.subject.main.clone();
        let (from, to) = (branch.0.to_owned(), branch.1.to_owned());
        blocking(move || {
            let fail =
                |name: &Name, error: &dyn std::fmt::Display| Error::refused(format!("cannot write {name}: {error}"));
            let objects = main.repository()?;
            let tree = objects.find_tree(tree).map_err(|error| part::git2_error(&error))?;
            for (old, _) in state::gather(&dirs, own) {
                if !old.starts_with(b"logs/") && old != b"config" {
                    let _ = fs::remove_file(join(&dirs.git_dir, &old));
                }
            }
            for (at, name) in names.iter().enumerate() {
                if !is_inside(&name.0) {
                    return Err(fail(name, &"it is outside of the git directory"));
                }
                let bytes = blob(&objects, &tree, &at.to_string()).unwrap_or_default();
                let bytes = state::renamed(&name.0, bytes, &from, &to);
                let bytes = if own && name.0 == b"config" { state::at_home(&bytes) } else { bytes };
                let path = join(&dirs.git_dir, &name.0);
                let made = path.parent().map_or(Ok(()), fs::create_dir_all);
                made.and_then(|()| fs::write(&path, bytes)).map_err(|error| fail(name, &error))?;
            }
            Ok(())
        })
        .await
    }

    /// The raw index, with the stats of the files that are there now.
    async fn put_index(&self, part: &Part, worktree: &Path, warnings: &mut Vec<String>) -> Result<(), Error> {
        let path = self.subject.dirs.git_dir.join("index");
        let fail = |error: std::io::Error| Error::refused(format!("cannot write the index: {error}"));
        let Some(id) = self.entry("index")? else {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(fail(error)),
                _ => Ok(()),
            };
        };
        let bytes = {
            let objects = self.subject.main.repository()?;
            objects.find_blob(id).map(|blob| blob.content().to_vec()).map_err(|error| part::git2_error(&error))?
        };
        fs::write(&path, &bytes).map_err(fail)?;
        if part.index.is_none() {
            return Ok(());
        }
        let missing = self.missing(&bytes)?;
        if !missing.is_empty() {
            let names: Vec<String> = missing.iter().map(|path| Name(path.clone()).to_string()).collect();
            warnings.push(format!("staged, but left out of the checkpoint: {}", worktree::named(&names)));
            let zero: Vec<u8> = missing
                .iter()
                .flat_map(|path| [b"0 0000000000000000000000000000000000000000\t", path.as_slice(), b"\0"].concat())
                .collect();
            succeed("leave files out of the index", LOCAL_TIMEOUT, || {
                git(worktree).args(["update-index", "-z", "--index-info"]).stdin(zero.clone())
            })
            .await?;
        }
        // Its code says whether something needs an update: that is for the agent to know.
        let refresh = || git(worktree).args(["update-index", "-q", "--refresh"]);
        attempt("refresh the index", LONG_TIMEOUT, refresh).await?;
        Ok(())
    }

    /// Entries whose objects are nowhere: secrets that were staged.
    fn missing(&self, index: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let objects = self.subject.main.repository()?;
        let odb = objects.odb().map_err(|error| part::git2_error(&error))?;
        let Ok(index) = Index::parse(index) else { return Ok(Vec::new()) };
        let is_missing = |entry: &&super::index::Entry| {
            entry.mode() != MODE_GITLINK && Oid::from_bytes(&entry.id).is_ok_and(|id| !odb.exists(id))
        };
        Ok(index.entries.iter().filter(is_missing).map(|entry| entry.path.clone()).collect())
    }

    /// Gives a nested repository the objects that are its own.
    async fn hand_over(&self, nested: &Nested) -> Result<(), Error> {
        let revs = self.own_objects(nested)?;
        let path = self.subject.shadow.git_dir.join("hand-over.pack");
        let fail = |error: std::io::Error| Error::refused(format!("cannot write {}: {error}", path.display()));
        let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).map_err(fail)?;
        pack(&self.subject.shadow, &revs, &[], file, 0).await?;
        let git_dir = &self.subject.dirs.git_dir;
        let unpack = || {
            let process = git(git_dir).args(["-c", "core.fsync=all", "index-pack", "--stdin"]);
            match fs::File::open(&path) {
                Ok(file) => process.stdin_from(file),
                Err(_) => process,
            }
        };
        succeed("fill a nested repository", LONG_TIMEOUT, unpack).await?;
        fs::remove_file(&path).map_err(fail)
    }

    /// What it needs, one a line.
    fn own_objects(&self, nested: &Nested) -> Result<String, Error> {
        let mut revs = String::new();
        let objects = self.subject.main.repository()?;
        let tree = objects.find_tree(self.tree).map_err(|error| part::git2_error(&error))?;
        for name in ["worktree", "objects"] {
            tree.get_name(name).into_iter().for_each(|entry| revs.push_str(&format!("{}\n", entry.id())));
        }
        let mut state = Vec::new();
        if let Some(files) = tree.get_name("state").and_then(|entry| objects.find_tree(entry.id()).ok()) {
            for (at, name) in nested.part.state.iter().enumerate() {
                state.push((name.0.clone(), blob(&objects, &files, &at.to_string()).unwrap_or_default()));
            }
        }
        let (commits, _) = state::named_objects(&objects, &state);
        let refs = nested.refs.iter().map(|(_, target)| target.as_str()).chain(nested.part.head.commit());
        let refs = refs.filter_map(|target| Oid::from_str(target).ok());
        let there =
            |id: &Oid| objects.find_object(*id, None).is_ok_and(|object| object.kind() != Some(ObjectType::Any));
        refs.chain(commits).filter(there).for_each(|id| revs.push_str(&format!("{id}\n")));
        Ok(revs)
    }
}

/// A name in a git directory that leads nowhere else.
fn is_inside(name: &[u8]) -> bool {
    let path = Path::new(std::ffi::OsStr::from_bytes(name));
    !name.is_empty() && path.components().all(|part| matches!(part, std::path::Component::Normal(_)))
}

/// HEAD and refs of a nested repository.
async fn put_refs(dirs: &GitDirs, nested: &Nested, warnings: &mut Vec<String>) -> Result<(), Error> {
    let fail = |error: std::io::Error| Error::refused(format!("cannot write refs: {error}"));
    let head = match &nested.part.head {
        Head::On { name, .. } => format!("ref: {name}\n"),
        Head::At(commit) => format!("{commit}\n"),
    };
    fs::write(dirs.git_dir.join("HEAD"), head).map_err(fail)?;
    let (dirs, refs) = (dirs.clone(), nested.refs.clone());
    let failed = blocking(move || {
        let opened = Repository::open(&dirs.git_dir).map_err(|error| part::git2_error(&error))?;
        let mut failed = Vec::new();
        for (name, target) in &refs {
            let set = match target.strip_prefix("ref: ") {
                Some(target) => opened.reference_symbolic(name, target, true, "").map(drop),
                None => Oid::from_str(target).and_then(|id| opened.reference(name, id, true, "")).map(drop),
            };
            if let Err(error) = set {
                failed.push(format!("{name} ({})", error.message()));
            }
        }
        Ok(failed)
    })
    .await?;
    if !failed.is_empty() {
        warnings.push(format!("refs of {} that could not be set: {}", nested.path, worktree::named(&failed)));
    }
    Ok(())
}

/// Gives files and directories the modes that they had, where these are others than git's.
fn set_modes(worktree: &Path, index: &Path, modes: &Modes) {
    let index = fs::read(index).ok().and_then(|bytes| Index::parse(&bytes).ok()).unwrap_or_default();
    let others: BTreeMap<&[u8], u32> = modes.others.iter().map(|(name, mode)| (name.0.as_slice(), *mode)).collect();
    let mut dirs: HashSet<&[u8]> = HashSet::new();
    for entry in &index.entries {
        look::parents(&entry.path, &mut dirs);
        if entry.mode() != MODE_LINK && !others.contains_key(entry.path.as_slice()) {
            let mode = if entry.mode() == MODE_EXECUTABLE { modes.executable } else { modes.file };
            set_mode(&join(worktree, &entry.path), mode);
        }
    }
    for dir in dirs.iter().filter(|dir| !others.contains_key(*dir)) {
        set_mode(&join(worktree, dir), modes.directory);
    }
    // From the inside out: a directory may be closed to what is done in it.
    for (path, mode) in others.iter().rev() {
        set_mode(&join(worktree, path), *mode);
    }
}

fn set_mode(path: &Path, mode: u32) {
    let Ok(found) = fs::symlink_metadata(path) else { return };
    let is_kept = mode_of(&found).is_some() || found.is_dir();
    if found.is_symlink() || !is_kept || found.permissions().mode() & 0o777 == mode & 0o777 {
        return;
    }
    if let Err(error) = fs::set_permissions(path, Permissions::from_mode(mode & 0o777)) {
        tracing::debug!(path = %path.display(), %error, "cannot set a mode");
    }
}

//! Capturing one repository: the worktree of an attempt, or a repository inside it.
//!
//! ```text
//!   Seen: HEAD, index, operation, refs ─┐                                                    ┌─ Seen again: the same?
//!   stats against the shadow's index ───┼─> sort out ──> update-index ──> write-tree ──> survey: nothing moved?
//!   ls-files --others ──────────────────┘   secrets, huge, nested apart                      └─> trees of the part
//! ```

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use git2::{ObjectType, Oid, Repository};
use rustix::fs::{Access, access};

use super::{
    Error, MAX_FILE_BYTES, MAX_TOTAL_BYTES, Omitted, Reason,
    dirs::{GitDirs, bytes_of, join},
    index::{Index, MODE_EXECUTABLE, MODE_FILE, MODE_GITLINK, MODE_LINK, Unread, mode_of},
    look::{self, Moment, Survey},
    manifest::{Head, Name, Part},
    shadow::Shadow,
    state::{self, StateFile},
};
use crate::daemon::{
    git::{LONG_TIMEOUT, attempt, blocking, git, succeed},
    process::Process,
    secrets::looks_secret,
};

const TREE: i32 = 0o040_000;
const BLOB: i32 = 0o100_644;
/// Objects that only the index has, up to which it is not asked whether HEAD has them too: the same pack comes of it, and
/// asking costs a walk through HEAD's trees.
const MANY_STAGED: usize = 1_000;
/// Files named when there is too much.
const MAX_NAMED: usize = 5;

/// A repository to be captured.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// Our git directory for it.
    pub(super) shadow: Shadow,
    /// The shadow of the whole, which all objects go to.
    pub(super) main: Shadow,
    /// Its own git directories.
    pub(super) dirs: GitDirs,
    /// It is a repository inside the worktree: its configuration and refs are its own.
    pub(super) inside: bool,
    /// It is another worktree of the repository that it is inside of: the refs are not its own.
    pub(super) shared: bool,
    /// Where it is in the worktree, for names; empty for the worktree itself.
    pub(super) path: Vec<u8>,
    /// Files that were copied there.
    pub(super) copied: Arc<HashSet<Vec<u8>>>,
}

/// A repository that was captured.
#[derive(Debug)]
pub(super) struct Taken {
    /// For the manifest.
    pub(super) part: Part,
    /// Its refs.
    pub(super) refs: Vec<(String, String)>,
    /// `worktree`, `index`, `objects`, `state`.
    pub(super) tree: Oid,
    /// The tree of the files.
    pub(super) worktree: Oid,
    /// Commits that it must not lose.
    pub(super) commits: Vec<Oid>,
    /// Annotated tags of it.
    pub(super) tags: Vec<Oid>,
    /// What was left out.
    pub(super) omitted: Vec<Omitted>,
    /// Repositories in it, relative to it.
    pub(super) nested: Vec<Vec<u8>>,
    /// Something moved while it was captured.
    pub(super) moved: bool,
    /// Things worth a look.
    pub(super) warnings: Vec<String>,
}

/// What git knows of a repository at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    head: Head,
    refs: Vec<(String, String)>,
    index: Option<Vec<u8>>,
    state: Vec<StateFile>,
}

/// What is to be done with the files.
#[derive(Debug, Default)]
struct Plan {
    add: Vec<Vec<u8>>,
    remove: Vec<Vec<u8>>,
    omitted: Vec<Omitted>,
    nested: Vec<Vec<u8>>,
    /// Paths that are not in the tree of the files.
    apart: HashSet<Vec<u8>>,
    bytes: u64,
}

/// Captures a repository; `budget` is what may still be added for the whole. On the last try what there is counts, whatever moves.
pub(super) async fn take(subject: &Subject, budget: &mut u64, last: bool) -> Result<Taken, Error> {
    let this = subject.clone();
    let (since, seen) = blocking(move || Ok((this.mark()?, this.see()?))).await?;
    let plain = subject.flatten(&seen).await?;
    let (this, index) = (subject.clone(), plain.clone());
    let candidates = blocking(move || {
        let tracked = index.as_ref().and_then(|bytes| Index::parse(bytes).ok()).unwrap_or_default();
        let known = this.known(&tracked)?;
        let mut candidates = look::changed(&this.shadow.worktree, &known, look::moment(&this.shadow.index()));
        this.doubt(&candidates)?;
        // What is tracked and ignored is not among the others.
        let known: HashSet<&[u8]> = known.entries.iter().map(|entry| entry.path.as_slice()).collect();
        let missing = tracked.entries.into_iter().filter(|entry| entry.mode() != MODE_GITLINK);
        candidates.extend(missing.map(|entry| entry.path).filter(|path| !known.contains(path.as_slice())));
        Ok(candidates)
    })
    .await?;
    let others = succeed("list the files", LONG_TIMEOUT, || {
        subject.shadow.git().args(["ls-files", "--others", "--exclude-standard", "-z"])
    })
    .await?;
    if others.truncated {
        return Err(Error::refused("the worktree has more untracked files than can be listed; have git ignore some"));
    }
    let (this, head) = (subject.clone(), seen.head.clone());
    let mut plan = blocking(move || this.sort_out(&head, candidates, &others.stdout)).await?;
    subject.drop_ignored(&mut plan, plain.as_deref()).await?;
    *budget = budget.checked_sub(plan.bytes).ok_or_else(|| subject.too_much(&plan))?;
    let mut unreadable = subject.store(&plan, last).await?;
    let tree = succeed("write a tree", LONG_TIMEOUT, || subject.shadow.git().args(["write-tree"])).await?.text();
    let (this, apart) = (subject.clone(), plan.apart.clone());
    let (survey, index) = blocking(move || {
        let index = this.shadow_index();
        Ok((look::survey(&this.shadow.worktree, &index, &apart, since), index))
    })
    .await?;
    let hidden = subject.uncover(&survey, &plan, last).await?;
    let ignored = subject.ignored(survey.young.iter().chain(&survey.empty)).await?;
    let mut moved = survey.moved || hidden || survey.young.iter().any(|path| !ignored.contains(path));
    let this = subject.clone();
    let (mut omitted, nested) = (plan.omitted, plan.nested);
    omitted.append(&mut unreadable);
    blocking(move || {
        moved |= this.see()? != seen;
        let mut taken = this.build(&Seen { index: plain, ..seen }, &index, &survey, &ignored, &tree)?;
        taken.omitted.extend(omitted);
        Ok(Taken { nested, moved, ..taken })
    })
    .await
}

// === impl Subject ===

impl Subject {
    /// The file system's own time now: what changes from here on is not older.
    fn mark(&self) -> Result<Moment, Error> {
        let path = self.shadow.git_dir.join("mark");
        fs::write(&path, "")
            .ok()
            .and_then(|()| look::moment(&path))
            .ok_or_else(|| Error::refused(format!("cannot write {}: is the disk full?", path.display())))
    }

    fn see(&self) -> Result<Seen, Error> {
        let fail = |error: git2::Error| {
            Error::repository(format!("cannot look at {}: {}", self.shadow.worktree.display(), error.message()))
        };
        let opened = Repository::open(&self.shadow.worktree).map_err(fail)?;
        let head = opened.find_reference("HEAD").map_err(fail)?;
        let head = match head.symbolic_target_bytes().map(String::from_utf8_lossy) {
            Some(name) => {
                let commit = opened.refname_to_id(&name).ok().map(|id| id.to_string());
                Head::On { name: name.into_owned(), commit }
            }
            None => Head::At(head.target().map(|id| id.to_string()).unwrap_or_default()),
        };
        let mut refs = Vec::new();
        if self.inside && !self.shared {
            for reference in opened.references().map_err(fail)?.flatten() {
                let name = String::from_utf8_lossy(reference.name_bytes()).into_owned();
                let target = match reference.symbolic_target_bytes() {
                    Some(target) => format!("ref: {}", String::from_utf8_lossy(target)),
                    None => reference.target().map(|id| id.to_string()).unwrap_or_default(),
                };
                refs.push((name, target));
            }
            refs.sort();
        } else if let (true, Head::On { name, commit: Some(commit) }) = (self.inside, &head) {
            refs.push((name.clone(), commit.clone()));
        }
        let index = fs::read(self.dirs.git_dir.join("index")).ok();
        Ok(Seen { head, refs, index, state: state::gather(&self.dirs, self.inside) })
    }

    fn shadow_index(&self) -> Index {
        fs::read(self.shadow.index()).ok().and_then(|bytes| Index::parse(&bytes).ok()).unwrap_or_default()
    }

    /// What the shadow knows of the files; the first time, what the agent's index knows and can be trusted in.
    fn known(&self, tracked: &Index) -> Result<Index, Error> {
        if self.shadow.index().exists() {
            return Ok(self.shadow_index());
        }
        let written = look::moment(&self.dirs.git_dir.join("index"));
        let objects = self.main.repository()?;
        let odb = objects.odb().map_err(|error| git2_error(&error))?;
        let filtered = self.is_filtered();
        let mut seed = Index::default();
        for entry in &tracked.entries {
            let is_older =
                written.is_some_and(|written| (i64::from(entry.modified().0), i64::from(entry.modified().1)) < written);
            // What a checkout converted has another length than its object, nearly always.
            let is_exact = || {
                Oid::from_bytes(&entry.id).and_then(|id| odb.read_header(id)).is_ok_and(|(size, kind)| {
                    kind == ObjectType::Blob && u32::try_from(size).is_ok_and(|size| size == entry.size())
                })
            };
            if entry.is_plain() && is_older && !filtered && is_exact() && !self.is_to_leave(&entry.path) {
                seed.entries.push(entry.clone());
            }
        }
        fs::write(self.shadow.index(), seed.write())
            .map_err(|error| Error::refused(format!("cannot write {}: {error}", self.shadow.index().display())))?;
        // Every entry was older than the agent's index, so none can be mistaken for this one's age.
        Ok(seed)
    }

    /// Has git read these again, whatever it thinks of them. It compares whole seconds: a file that was written twice in one
    /// keeps the stat of the first time in its index, and would look to us as if it moved all the time.
    fn doubt(&self, paths: &[Vec<u8>]) -> Result<(), Error> {
        if paths.is_empty() {
            return Ok(());
        }
        let index = self.shadow.index();
        let paths: HashSet<&[u8]> = paths.iter().map(Vec::as_slice).collect();
        let Some(bytes) = fs::read(&index).ok().and_then(|bytes| Index::doubted(bytes, &paths)) else { return Ok(()) };
        // What dies in between leaves an index that git takes for damaged, and the next capture begins without it.
        fs::write(&index, bytes).map_err(|error| Error::refused(format!("cannot write {}: {error}", index.display())))
    }

    /// Files may go through a program on their way to the disk, which may keep their length.
    fn is_filtered(&self) -> bool {
        let config = Repository::open(&self.shadow.worktree).and_then(|opened| opened.config());
        let Ok(config) = config else { return true };
        let Ok(mut entries) = config.entries(Some("filter\\..*")) else { return true };
        // Git LFS is configured for a user on many machines; a pointer has another length than what it points to.
        let mut other = false;
        while let Some(Ok(entry)) = entries.next() {
            other |= entry.name().is_ok_and(|name| !name.starts_with("filter.lfs."));
        }
        other
    }

    /// New files that stay out, whatever is in them.
    fn is_to_leave(&self, path: &[u8]) -> bool {
        self.copied.contains(path) || looks_secret(&String::from_utf8_lossy(path))
    }

    fn name(&self, path: &[u8]) -> String {
        let full = if self.path.is_empty() { path.to_vec() } else { [&self.path, &b"/"[..], path].concat() };
        Name(full).to_string()
    }

    fn sort_out(&self, head: &Head, changed: Vec<Vec<u8>>, others: &[u8]) -> Result<Plan, Error> {
        let objects = self.main.repository()?;
        let head = head_tree(&objects, head);
        let in_head = |path: &[u8]| head.as_ref().is_some_and(|tree| tree.get_path(&join("".as_ref(), path)).is_ok());
        let mut plan = Plan::default();
        let known: HashSet<Vec<u8>> = changed.iter().cloned().collect();
        let others = others.split(|byte| *byte == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec);
        for mut path in changed.into_iter().chain(others) {
            let found = fs::symlink_metadata(join(&self.shadow.worktree, &path));
            let is_dir = path.ends_with(b"/");
            if is_dir {
                path.pop();
                plan.apart.insert(path.clone());
                plan.nested.push(path);
                continue;
            }
            let Some(found) = found.ok().filter(|found| mode_of(found).is_some()) else {
                if known.contains(&path) {
                    plan.remove.push(path);
                }
                continue;
            };
            let is_name = |part: &[u8]| part.eq_ignore_ascii_case(b".git");
            let reason = if path.split(|byte| *byte == b'/').any(is_name) {
                Some(Some(Reason::Name))
            } else if self.is_to_leave(&path) && !in_head(&path) {
                Some((!self.copied.contains(&path)).then_some(Reason::Secret))
            } else if found.len() > MAX_FILE_BYTES {
                Some(Some(Reason::TooLarge))
            } else if found.is_file() && access(join(&self.shadow.worktree, &path), Access::READ_OK).is_err() {
                Some(Some(Reason::Unreadable))
            } else {
                None
            };
            let Some(reason) = reason else {
                plan.bytes += found.len();
                plan.add.push(path);
                continue;
            };
            if let Some(reason) = reason {
                plan.omitted.push(Omitted { path: self.name(&path), reason });
            }
            plan.apart.insert(path.clone());
            if known.contains(&path) {
                plan.remove.push(path);
            }
        }
        Ok(plan)
    }

    fn too_much(&self, plan: &Plan) -> Error {
        let size =
            |path: &Vec<u8>| fs::symlink_metadata(join(&self.shadow.worktree, path)).map_or(0, |found| found.len());
        let mut largest: Vec<(u64, &Vec<u8>)> = plan.add.iter().map(|path| (size(path), path)).collect();
        largest.sort_by(|a, b| b.cmp(a));
        let named: Vec<String> = largest
            .iter()
            .take(MAX_NAMED)
            .map(|(bytes, path)| format!("{} ({} MiB)", self.name(path), bytes / 1024 / 1024))
            .collect();
        Error::refused(format!(
            "a checkpoint would hold more than {} MiB of new files, among them {}: have git ignore what is no work",
            MAX_TOTAL_BYTES / 1024 / 1024,
            named.join(", "),
        ))
    }

    /// Brings the shadow's index up to date. Answers what turned out to be unreadable.
    async fn store(&self, plan: &Plan, last: bool) -> Result<Vec<Omitted>, Error> {
        let mut info = Vec::new();
        for path in &plan.remove {
            info.extend([b"0 0000000000000000000000000000000000000000\t", path.as_slice(), b"\0"].concat());
        }
        let mut unreadable = Vec::new();
        if !plan.add.is_empty() {
            let input = [plan.add.join(&0), vec![0]].concat();
            let add = || {
                let update = ["update-index", "--add", "--remove", "--replace", "-z", "--stdin"];
                self.shadow.git().args(update).stdin(input.clone())
            };
            let output = attempt("capture the files", LONG_TIMEOUT, add).await?;
            if !output.success() {
                // A file that is cut short while git reads it stops git. We read it as it comes.
                tracing::debug!(complaint = output.complaint(), "files move under a checkpoint");
                let this = self.clone();
                let add = plan.add.clone();
                let (lines, mut omitted) = blocking(move || this.read_all(&add, last)).await?;
                info.extend(lines);
                unreadable.append(&mut omitted);
            }
        }
        if !info.is_empty() {
            let update =
                || self.shadow.git().args(["update-index", "--replace", "-z", "--index-info"]).stdin(info.clone());
            succeed("capture the files", LONG_TIMEOUT, update).await?;
        }
        Ok(unreadable)
    }

    /// Reads files as they are at this moment; answers lines for `update-index --index-info`.
    fn read_all(&self, paths: &[Vec<u8>], last: bool) -> Result<(Vec<u8>, Vec<Omitted>), Error> {
        let objects = self.main.repository()?;
        let (mut lines, mut omitted) = (Vec::new(), Vec::new());
        for path in paths {
            let full = join(&self.shadow.worktree, path);
            let bytes = fs::symlink_metadata(&full).ok().and_then(|found| {
                let mode = mode_of(&found)?;
                let bytes = match mode {
                    MODE_LINK => bytes_of(fs::read_link(&full).ok()?),
                    _ => read_once(&full, found.len().min(MAX_FILE_BYTES)).ok()?,
                };
                Some((mode, bytes))
            });
            let (mode, id) = match bytes {
                Some((mode, bytes)) => (mode, objects.blob(&bytes).map_err(|error| git2_error(&error))?),
                None => (0, Oid::ZERO_SHA1),
            };
            if mode == 0 && last && full.symlink_metadata().is_ok() {
                omitted.push(Omitted { path: self.name(path), reason: Reason::Unreadable });
            }
            debug_assert!([0, MODE_FILE, MODE_EXECUTABLE, MODE_LINK].contains(&mode), "{mode:o}");
            lines.extend(format!("{mode:o} {id}\t").into_bytes());
            lines.extend([path.as_slice(), b"\0"].concat());
        }
        Ok((lines, omitted))
    }

    /// A directory whose files are known here and that has become a repository of its own is forgotten, so that the next
    /// look finds the repository. Answers whether there is one.
    async fn uncover(&self, survey: &Survey, plan: &Plan, last: bool) -> Result<bool, Error> {
        let hidden: Vec<&Vec<u8>> = survey.repositories.iter().filter(|path| !plan.apart.contains(*path)).collect();
        if hidden.is_empty() || last {
            return Ok(false);
        }
        let index = self.shadow_index();
        let mut info = Vec::new();
        for entry in index.entries {
            let is_below = |dir: &&&Vec<u8>| entry.path.starts_with(dir) && entry.path.get(dir.len()) == Some(&b'/');
            if hidden.iter().any(|dir| is_below(&dir)) {
                info.extend([b"0 0000000000000000000000000000000000000000\t", entry.path.as_slice(), b"\0"].concat());
            }
        }
        if info.is_empty() {
            return Ok(false);
        }
        let update = || self.shadow.git().args(["update-index", "-z", "--index-info"]).stdin(info.clone());
        succeed("find a nested repository", LONG_TIMEOUT, update).await?;
        Ok(true)
    }

    /// Those of these paths that git ignores.
    async fn ignored(&self, paths: impl Iterator<Item = &Vec<u8>>) -> Result<HashSet<Vec<u8>>, Error> {
        let input: Vec<u8> = paths.flat_map(|path| [b"./", path.as_slice(), b"\0"].concat()).collect();
        if input.is_empty() {
            return Ok(HashSet::new());
        }
        let check = || -> Process {
            let git = self.shadow.git().env_remove("GIT_LITERAL_PATHSPECS");
            git.args(["check-ignore", "-z", "--stdin"]).stdin(input.clone())
        };
        let output = attempt("ask what is ignored", LONG_TIMEOUT, check).await?;
        let lines = output.stdout.split(|byte| *byte == 0);
        Ok(lines.filter_map(|path| Some(path.strip_prefix(b"./")?.to_vec())).collect())
    }

    /// The bytes of the index; one that needs other files is rewritten, in a copy, as one that does not.
    async fn flatten(&self, seen: &Seen) -> Result<Option<Vec<u8>>, Error> {
        let Some(bytes) = &seen.index else { return Ok(None) };
        if Index::parse(bytes) != Err(Unread::NotPlain) {
            return Ok(Some(bytes.clone()));
        }
        let copy = self.shadow.git_dir.join("index.copy");
        let fail = |error: std::io::Error| Error::refused(format!("cannot copy the index: {error}"));
        fs::write(&copy, bytes).map_err(fail)?;
        let worktree = &self.shadow.worktree;
        succeed("read the index", LONG_TIMEOUT, || {
            git(worktree)
                .env("GIT_INDEX_FILE", &copy)
                .args(["-c", "core.splitIndex=false", "-c", "index.sparse=false", "-c", "core.fsmonitor=false"])
                .args(["update-index", "--no-split-index", "--force-write-index"])
        })
        .await?;
        fs::read(&copy).map(Some).map_err(fail)
    }

    /// Where ignore files have changed, files that were captured may be ignored now.
    async fn drop_ignored(&self, plan: &mut Plan, index: Option<&[u8]>) -> Result<(), Error> {
        let is_rule = |path: &&Vec<u8>| path.rsplit(|byte| *byte == b'/').next() == Some(b".gitignore");
        if !plan.add.iter().chain(&plan.remove).any(|path| is_rule(&path)) {
            return Ok(());
        }
        let list = ["ls-files", "--cached", "--ignored", "--exclude-standard", "-z"];
        let output = succeed("list what is ignored", LONG_TIMEOUT, || self.shadow.git().args(list)).await?;
        let tracked = index.and_then(|bytes| Index::parse(bytes).ok()).unwrap_or_default();
        let tracked: HashSet<&[u8]> = tracked.entries.iter().map(|entry| entry.path.as_slice()).collect();
        let ignored = output.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty() && !tracked.contains(path));
        let ignored: HashSet<Vec<u8>> = ignored.map(<[u8]>::to_vec).collect();
        plan.add.retain(|path| !ignored.contains(path));
        plan.remove.extend(ignored);
        Ok(())
    }

    fn build(
        &self,
        seen: &Seen,
        files: &Index,
        survey: &Survey,
        ignored: &HashSet<Vec<u8>>,
        worktree: &str,
    ) -> Result<Taken, Error> {
        let fail = |error: git2::Error| git2_error(&error);
        let objects = self.main.repository()?;
        let (mut omitted, mut warnings) = (Vec::new(), Vec::new());
        let worktree = Oid::from_str(worktree).map_err(fail)?;
        let mut tree = objects.treebuilder(None).map_err(fail)?;
        tree.insert("worktree", worktree, TREE).map_err(fail)?;
        let (mut commits, mut others) = state::named_objects(&objects, &seen.state);
        let mut index_digest = None;
        if let Some(bytes) = &seen.index {
            tree.insert("index", objects.blob(bytes).map_err(fail)?, BLOB).map_err(fail)?;
            match Index::parse(bytes) {
                Ok(index) => {
                    let staged = self.staged(&objects, &seen.head, &index, files, &mut omitted)?;
                    others.extend(staged.into_iter().map(|id| (id, ObjectType::Blob)));
                    index_digest = Some(index.digest());
                }
                Err(_) => warnings.push("the index cannot be read; it is kept as it is".to_owned()),
            }
        }
        if !others.is_empty() {
            let mut kept = objects.treebuilder(None).map_err(fail)?;
            for (id, kind) in others {
                let mode = if kind == ObjectType::Tree { TREE } else { BLOB };
                kept.insert(id.to_string(), id, mode).map_err(fail)?;
            }
            tree.insert("objects", kept.write().map_err(fail)?, TREE).map_err(fail)?;
        }
        if !seen.state.is_empty() {
            let mut files = objects.treebuilder(None).map_err(fail)?;
            for (at, (_, bytes)) in seen.state.iter().enumerate() {
                files.insert(at.to_string(), objects.blob(bytes).map_err(fail)?, BLOB).map_err(fail)?;
            }
            tree.insert("state", files.write().map_err(fail)?, TREE).map_err(fail)?;
        }
        let mut tags = Vec::new();
        let pointed = seen.refs.iter().map(|(_, target)| target.as_str()).chain(seen.head.commit());
        for id in pointed.filter_map(|target| Oid::from_str(target).ok()) {
            match objects.find_object(id, None).ok().and_then(|object| object.kind()) {
                Some(ObjectType::Commit) => commits.push(id),
                Some(_) => tags.push(id),
                None => warnings.push(format!("the object {id}, which a ref names, is not there")),
            }
        }
        let empty = survey.empty.iter().filter(|path| !ignored.contains(*path)).cloned().map(Name).collect();
        let part = Part {
            head: seen.head.clone(),
            index: index_digest,
            state: seen.state.iter().map(|(name, _)| Name(name.clone())).collect(),
            modes: survey.modes(ignored),
            empty,
        };
        let tree = tree.write().map_err(fail)?;
        let refs = seen.refs.clone();
        let (nested, moved) = (Vec::new(), false);
        Ok(Taken { part, refs, tree, worktree, commits, tags, omitted, nested, moved, warnings })
    }

    /// Objects that the index names and the tree of the files has not.
    fn staged(
        &self,
        objects: &Repository,
        head: &Head,
        index: &Index,
        files: &Index,
        omitted: &mut Vec<Omitted>,
    ) -> Result<BTreeSet<Oid>, Error> {
        let fail = |error: git2::Error| git2_error(&error);
        let in_files: HashSet<&[u8; 20]> = files.entries.iter().map(|entry| &entry.id).collect();
        let head = head_tree(objects, head);
        let odb = objects.odb().map_err(fail)?;
        let mut staged = BTreeSet::new();
        for entry in &index.entries {
            if in_files.contains(&entry.id) || entry.mode() == MODE_GITLINK {
                continue;
            }
            let is_new = || head.as_ref().is_none_or(|tree| tree.get_path(&join("".as_ref(), &entry.path)).is_err());
            if self.is_to_leave(&entry.path) && is_new() {
                if !self.copied.contains(&entry.path) {
                    omitted.push(Omitted { path: self.name(&entry.path), reason: Reason::Secret });
                }
                continue;
            }
            staged.insert(Oid::from_bytes(&entry.id).map_err(fail)?);
        }
        for id in &index.undo {
            staged.insert(Oid::from_bytes(id).map_err(fail)?);
        }
        if staged.len() > MANY_STAGED
            && let Some(tree) = &head
        {
            let walked = tree.walk(git2::TreeWalkMode::PreOrder, |_, entry| {
                staged.remove(&entry.id());
                git2::TreeWalkResult::Ok
            });
            walked.map_err(fail)?;
        }
        // Git knows the empty blob without having it (`add -N`); whoever packs it must have it.
        let empty = objects.blob(b"").map_err(fail)?;
        staged.retain(|id| *id == empty || odb.exists(*id));
        Ok(staged)
    }
}

fn head_tree<'a>(objects: &'a Repository, head: &Head) -> Option<git2::Tree<'a>> {
    let id = Oid::from_str(head.commit()?).ok()?;
    objects.find_commit(id).and_then(|commit| commit.tree()).ok()
}

/// At most so many bytes of a file, however it grows.
fn read_once(path: &std::path::Path, length: u64) -> std::io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    let mut at = 0;
    while at < bytes.len() {
        match file.read_at(&mut bytes[at..], at as u64)? {
            0 => break,
            read => at += read,
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}

pub(super) fn git2_error(error: &git2::Error) -> Error {
    Error::refused(format!("cannot make a checkpoint: {}", error.message()))
}

//! Taking a checkpoint: every repository of a worktree, one commit, one pack, one file.

use std::{collections::HashSet, fs, path::Path, sync::Arc};

use git2::{Oid, Repository, Signature};
use uuid::Uuid;

use super::{
    Captured, Error, MAX_CHAIN, MAX_FILE_BYTES, MAX_NESTED, MAX_TOTAL_BYTES, MAX_TRIES, Omitted, Outcome, Previous,
    Reason, Source,
    container::{self, Header},
    dirs::{GitDirs, bytes_of, join},
    manifest::{Head, Manifest, Name, Nested, VERSION},
    part::{self, Subject, Taken, git2_error},
    shadow::Shadow,
};
use crate::{
    daemon::{
        attempt_dir::Place,
        git::{LONG_TIMEOUT, attempt, blocking},
    },
    domain::{
        CheckpointId,
        attempt::{FailureClass, TaskResult},
        checkpoint::MAX_SUMMARY_BYTES,
    },
};

/// Newest checkpoints whose commits are held, so that a delta on any of a chain can be made.
const HELD: usize = 2 * MAX_CHAIN as usize;
/// Where they are held.
const REFS: &str = "refs/makima/";
/// Lines of the summary's list of files.
const SUMMARY_FILES: &str = "--stat-count=40";

/// What everybody has who can reach the repository: what its base branch had, and of a URL what its main branch has by now.
///
/// Not what the attempt started from: that may be the result of a dependency or a merge of some, which only this machine has, and
/// who gets the result of this one need not have got those. Nor the other branches of origin: an agent may have pushed one of its
/// own, and nobody has that any more once it was merged as a single commit and deleted.
pub fn known_elsewhere(place: &Place) -> Vec<String> {
    let from_what_is_checked_out = || {
        let opened = place.repo.open().ok()?;
        place.repo.shared(&opened, None, Oid::from_str(&place.base_commit).ok()?)
    };
    let main_branch = place.repo.cloned.then(|| "refs/remotes/origin/HEAD".to_owned());
    place.shared.clone().or_else(from_what_is_checked_out).into_iter().chain(main_branch).collect()
}

/// A result need not be brought to the server: it was published at origin, or is one of those that everybody has.
pub fn is_elsewhere(place: &Place, result: &TaskResult) -> bool {
    let is_known = |id: &Oid| id.to_string() == result.commit;
    (place.repo.cloned && result.published)
        || place.repo.open().is_ok_and(|opened| resolve(&opened, &known_elsewhere(place)).iter().any(is_known))
}

/// Takes a checkpoint of a worktree, while its agent may be running, and writes it to a file of its own in the directory
/// `into`. Nothing that the agent can see changes. One capture of a worktree at a time.
pub async fn capture(source: &Source, into: &Path) -> Result<Outcome, Error> {
    let worktree = &source.place.worktree;
    let Some(dirs) = GitDirs::of(worktree) else {
        let gone = format!("the worktree {} is gone or damaged", worktree.display());
        return Err(Error::new(FailureClass::WorktreeLost, gone));
    };
    let shadow = Shadow::open(&dirs, worktree)?;
    let capture = Capture { source, dirs, shadow, into };
    match capture.run().await {
        Err(error) if capture.may_be_damaged() => {
            tracing::warn!(%error, "the shadow of a worktree is of no use; starting again without it");
            capture.shadow.wipe()?;
            Shadow::open(&capture.dirs, worktree)?;
            capture.run().await
        }
        outcome => outcome,
    }
}

struct Capture<'a> {
    source: &'a Source,
    dirs: GitDirs,
    shadow: Shadow,
    into: &'a Path,
}

/// All repositories of a worktree, captured.
struct Whole {
    manifest: Manifest,
    tree: Oid,
    worktree: Oid,
    parents: Vec<Oid>,
    tags: Vec<Oid>,
    warnings: Vec<String>,
}

impl Capture<'_> {
    /// There was something before this capture that it may have failed for.
    fn may_be_damaged(&self) -> bool {
        // Written at the end of a capture that succeeded.
        self.shadow.git_dir.join(REFS).exists()
    }

    async fn run(&self) -> Result<Outcome, Error> {
        // First: the conversation must never claim what the files lack.
        let (transcript, too_long) = self.transcript()?;
        let mut tries = 1;
        let (top, nested, unsettled) = loop {
            let (top, nested, moved) = self.take_all(tries == MAX_TRIES).await?;
            if !moved || tries == MAX_TRIES {
                break (top, nested, moved);
            }
            tracing::debug!(tries, "something moved under a checkpoint; taking it again");
            tries += 1;
        };
        let mut whole = self.assemble(transcript, top, nested, unsettled).await?;
        whole.warnings.extend(too_long);
        let previous = self.previous(&whole).await?;
        if let Some((_, true)) = previous
            && !self.source.even_unchanged
        {
            return Ok(Outcome::Unchanged);
        }
        let base = previous.map(|(previous, _)| previous).filter(|previous| previous.depth < MAX_CHAIN);
        if let Some(base) = base {
            match self.write(&whole, Some(base)).await {
                Ok(captured) => return Ok(Outcome::Taken(Box::new(captured))),
                // The repository may have lost what the delta builds on.
                Err(error) => tracing::warn!(%error, "no delta can be made; making a whole checkpoint"),
            }
        }
        Ok(Outcome::Taken(Box::new(self.write(&whole, None).await?)))
    }

    /// The transcript up to its last full line; or why it is left out.
    fn transcript(&self) -> Result<(Option<Vec<u8>>, Option<String>), Error> {
        let Some(transcript) = &self.source.transcript else { return Ok((None, None)) };
        let fail = |error: std::io::Error| {
            Error::refused(format!("cannot read the transcript {}: {error}", transcript.path.display()))
        };
        match fs::metadata(&transcript.path) {
            Ok(found) if found.len() > MAX_FILE_BYTES => {
                let bytes = found.len();
                return Ok((None, Some(format!("the transcript is too long for a checkpoint: {bytes} bytes"))));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((None, None)),
            Err(error) => return Err(fail(error)),
            Ok(_) => {}
        }
        let mut bytes = fs::read(&transcript.path).map_err(fail)?;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        bytes.truncate(end);
        Ok((Some(bytes), None))
    }

    // === the repositories ===

    async fn take_all(&self, last: bool) -> Result<(Taken, Vec<(Vec<u8>, Taken)>, bool), Error> {
        let mut budget = MAX_TOTAL_BYTES;
        let copied = self.source.place.copied.iter().map(|path| bytes_of(path.to_owned())).collect();
        let subject = Subject {
            shadow: self.shadow.clone(),
            main: self.shadow.clone(),
            dirs: self.dirs.clone(),
            inside: false,
            shared: false,
            path: Vec::new(),
            copied: Arc::new(copied),
        };
        let mut top = part::take(&subject, &mut budget, last).await?;
        let mut moved = top.moved;
        let mut left: Vec<Vec<u8>> = top.nested.clone();
        left.reverse();
        let mut nested: Vec<(Vec<u8>, Taken)> = Vec::new();
        while let Some(path) = left.pop() {
            let taken = if nested.len() < MAX_NESTED {
                self.take_nested(&path, &mut budget, last).await
            } else {
                Err(Error::refused("there are too many nested repositories"))
            };
            match taken {
                Ok(taken) => {
                    moved |= taken.moved;
                    let below = taken.nested.iter().rev().map(|inner| [&path, &b"/"[..], inner].concat());
                    left.extend(below);
                    nested.push((path, taken));
                }
                Err(error) => {
                    let name = Name(path).to_string();
                    top.warnings.push(format!("the repository {name} is not in the checkpoint: {error}"));
                    top.omitted.push(Omitted { path: name, reason: Reason::Repository });
                }
            }
        }
        Ok((top, nested, moved))
    }

    async fn take_nested(&self, path: &[u8], budget: &mut u64, last: bool) -> Result<Taken, Error> {
        let worktree = join(&self.shadow.worktree, path);
        let dirs = GitDirs::of(&worktree).ok_or_else(|| Error::repository("git cannot read it"))?;
        let subject = Subject {
            shadow: self.shadow.nested(&dirs, &worktree)?,
            main: self.shadow.clone(),
            shared: dirs.is_linked() && dirs.common == self.dirs.common,
            dirs,
            inside: true,
            path: path.to_vec(),
            copied: Arc::new(HashSet::new()),
        };
        let mut left = *budget;
        let taken = part::take(&subject, &mut left, last).await?;
        *budget = left;
        Ok(taken)
    }

    // === the commit ===

    async fn assemble(
        &self,
        transcript: Option<Vec<u8>>,
        top: Taken,
        nested: Vec<(Vec<u8>, Taken)>,
        unsettled: bool,
    ) -> Result<Whole, Error> {
        let (shadow, place) = (self.shadow.clone(), self.source.place.clone());
        let session_id = self.source.transcript.as_ref().filter(|_| transcript.is_some()).map(|t| t.session_id.clone());
        blocking(move || {
            let fail = |error: git2::Error| git2_error(&error);
            let objects = shadow.repository()?;
            let parts = objects.find_tree(top.tree).map_err(fail)?;
            let mut tree = objects.treebuilder(Some(&parts)).map_err(fail)?;
            let (mut parents, mut tags) = (top.commits, top.tags);
            let (mut omitted, mut warnings) = (top.omitted, top.warnings);
            let mut manifest = Manifest {
                version: VERSION,
                base_commit: place.base_commit.clone(),
                branch_commit: branch_commit(&place),
                shared: place.shared,
                branch: place.branch,
                session_id,
                omitted: Vec::new(),
                unsettled,
                top: top.part,
                nested: Vec::new(),
            };
            let mut inside = objects.treebuilder(None).map_err(fail)?;
            for (at, (path, taken)) in nested.into_iter().enumerate() {
                inside.insert(at.to_string(), taken.tree, 0o040_000).map_err(fail)?;
                parents.extend(taken.commits);
                tags.extend(taken.tags);
                omitted.extend(taken.omitted);
                warnings.extend(taken.warnings);
                manifest.nested.push(Nested { path: Name(path), part: taken.part, refs: taken.refs });
            }
            if !manifest.nested.is_empty() {
                tree.insert("nested", inside.write().map_err(fail)?, 0o040_000).map_err(fail)?;
            }
            if let Some(bytes) = transcript {
                tree.insert("transcript", objects.blob(&bytes).map_err(fail)?, 0o100_644).map_err(fail)?;
            }
            parents.extend(Oid::from_str(&manifest.branch_commit).ok().filter(|id| objects.find_commit(*id).is_ok()));
            omitted.sort();
            omitted.dedup();
            manifest.omitted = omitted;
            let json = serde_json::to_vec(&manifest).map_err(|error| Error::refused(error.to_string()))?;
            tree.insert("manifest.json", objects.blob(&json).map_err(fail)?, 0o100_644).map_err(fail)?;
            let mut seen = HashSet::new();
            parents.retain(|id| seen.insert(*id));
            let tree = tree.write().map_err(fail)?;
            Ok(Whole { manifest, tree, worktree: top.worktree, parents, tags, warnings })
        })
        .await
    }

    /// The checkpoint before this one, if it is still known here, and whether it says the same.
    async fn previous(&self, whole: &Whole) -> Result<Option<(&Previous, bool)>, Error> {
        let Some(previous) = &self.source.previous else { return Ok(None) };
        let (shadow, commit, tree) = (self.shadow.clone(), previous.commit.clone(), whole.tree);
        let found = blocking(move || {
            let objects = shadow.repository()?;
            let found = Oid::from_str(&commit).and_then(|id| objects.find_commit(id)).and_then(|commit| commit.tree());
            let Ok(before) = found else { return Ok(None) };
            let now = objects.find_tree(tree).map_err(|error| git2_error(&error))?;
            Ok(Some(is_same(&objects, &before, &now)))
        })
        .await?;
        Ok(found.map(|same| (previous, same)))
    }

    async fn write(&self, whole: &Whole, base: Option<&Previous>) -> Result<Captured, Error> {
        let id = CheckpointId(Uuid::now_v7());
        let (shadow, tree, mut parents) = (self.shadow.clone(), whole.tree, whole.parents.clone());
        let (before, depth) = (base.map(|base| base.commit.clone()), base.map_or(0, |base| base.depth) + 1);
        let (repo, exclude) = (self.source.place.repo.clone(), self.source.exclude.clone());
        let tags = whole.tags.clone();
        let (commit, revs) = blocking(move || {
            let fail = |error: git2::Error| git2_error(&error);
            let objects = shadow.repository()?;
            if let Some(before) = &before {
                parents.insert(0, Oid::from_str(before).map_err(fail)?);
            }
            let commit = write_commit(&objects, tree, &parents, id).map_err(fail)?;
            hold(&objects, id, commit).map_err(fail)?;
            let mut revs = format!("{commit}\n");
            tags.iter().for_each(|tag| revs.push_str(&format!("{tag}\n")));
            before.iter().for_each(|before| revs.push_str(&format!("^{before}\n")));
            let there = |id: &Oid| objects.find_commit(*id).is_ok();
            for id in resolve(&repo.open()?, &exclude).into_iter().filter(there) {
                revs.push_str(&format!("^{id}\n"));
            }
            Ok((commit.to_string(), revs))
        })
        .await?;
        let (head, branch) = match &whole.manifest.top.head {
            Head::On { name, commit } => (commit.clone(), Some(name.strip_prefix("refs/heads/").unwrap_or(name))),
            Head::At(commit) => (Some(commit.clone()), None),
        };
        let header = Header {
            base: base.map(|base| base.id),
            depth,
            head: head.clone(),
            branch: whole.manifest.branch.clone(),
            session_id: whole.manifest.session_id.clone(),
            ..Header::new(id, commit.clone())
        };
        let file = self.into.join(format!("{id}.checkpoint"));
        let (packed, summary) = tokio::join!(self.pack(&file, &header, &revs), self.summary(whole));
        let (bytes, sha256) = match packed {
            Ok(packed) => packed,
            Err(error) => {
                let _ = fs::remove_file(&file);
                return Err(error);
            }
        };
        Ok(Captured {
            file,
            bytes,
            sha256,
            id,
            base: header.base,
            depth,
            commit,
            head,
            branch: branch.map(str::to_owned),
            session_id: header.session_id,
            summary,
            omitted: whole.manifest.omitted.clone(),
            unsettled: whole.manifest.unsettled,
            warnings: whole.warnings.clone(),
        })
    }

    async fn pack(&self, path: &Path, header: &Header, revs: &str) -> Result<(u64, String), Error> {
        fs::create_dir_all(self.into)
            .map_err(|error| Error::refused(format!("cannot create {}: {error}", self.into.display())))?;
        let file = container::create(path, header)?;
        let start = file.metadata().map_or(0, |found| found.len());
        pack(&self.shadow, revs, &["--thin"], file, start).await?;
        let path = path.to_owned();
        let (bytes, sha256) = blocking(move || container::seal(&path)).await?;
        if bytes > MAX_TOTAL_BYTES {
            return Err(Error::refused(format!(
                "the checkpoint has {} MiB, more than the {} MiB it may have: have git ignore what is no work",
                bytes / 1024 / 1024,
                MAX_TOTAL_BYTES / 1024 / 1024
            )));
        }
        Ok((bytes, sha256))
    }

    /// What has changed since the base, as far as it fits.
    async fn summary(&self, whole: &Whole) -> String {
        let base = &self.source.place.base_commit;
        if base.is_empty() {
            return String::new();
        }
        let tree = whole.worktree.to_string();
        let diff = attempt("sum up the changes", LONG_TIMEOUT, || {
            self.shadow
                .git()
                .args(["diff", "--stat=100", SUMMARY_FILES, "--no-renames", "--no-color", "--no-ext-diff"])
                .args(["--no-textconv", "--ignore-submodules=all", "--ignore-cr-at-eol", base, &tree, "--"])
        });
        let mut text = diff.await.map(|output| output.text()).unwrap_or_default();
        if text.len() > MAX_SUMMARY_BYTES {
            let end = (0..=MAX_SUMMARY_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
            text.truncate(end);
        }
        text
    }
}

/// Packs what these revisions reach into a file, from where that stands.
pub(super) async fn pack(shadow: &Shadow, revs: &str, args: &[&str], file: fs::File, start: u64) -> Result<(), Error> {
    use std::io::{Seek as _, SeekFrom};
    let fail = |error: std::io::Error| Error::refused(format!("cannot write a pack: {error}"));
    // A lock file in the way can make it run again, from the same place.
    let output = attempt("pack the objects", LONG_TIMEOUT, || {
        let process = shadow.git().args(["pack-objects", "--revs", "--stdout", "-q", "--delta-base-offset"]);
        let process = process.args(args.iter().copied()).stdin(revs);
        match (&file).seek(SeekFrom::Start(start)).and_then(|_| file.try_clone()) {
            Ok(file) => process.stdout_to(file),
            Err(_) => process,
        }
    })
    .await?;
    if !output.success() {
        return Err(Error::refused(format!("cannot pack the objects: {}", output.complaint())));
    }
    if file.metadata().map_err(fail)?.len() == start {
        return Err(Error::refused("cannot pack the objects: git wrote nothing"));
    }
    Ok(())
}

/// Commits that these names stand for; names of nothing stand for nothing.
pub(super) fn resolve(repository: &Repository, names: &[String]) -> Vec<Oid> {
    let mut ids = Vec::new();
    for name in names {
        if name.contains(['*', '?', '[']) {
            let found = repository.references_glob(name).into_iter().flatten().flatten();
            ids.extend(found.filter_map(|found| found.peel_to_commit().ok()).map(|commit| commit.id()));
        } else if let Ok(id) = Oid::from_str(name) {
            ids.push(id);
        } else if let Ok(commit) = repository.find_reference(name).and_then(|found| found.peel_to_commit()) {
            ids.push(commit.id());
        }
    }
    ids.sort();
    ids.dedup();
    ids
}

fn branch_commit(place: &Place) -> String {
    let opened = Repository::open(&place.worktree);
    let found = opened.and_then(|opened| opened.refname_to_id(&format!("refs/heads/{}", place.branch)));
    found.map(|id| id.to_string()).unwrap_or_default()
}

fn write_commit(objects: &Repository, tree: Oid, parents: &[Oid], id: CheckpointId) -> Result<Oid, git2::Error> {
    let tree = objects.find_tree(tree)?;
    let parents = parents.iter().map(|id| objects.find_commit(*id)).collect::<Result<Vec<_>, _>>()?;
    let parents: Vec<&git2::Commit<'_>> = parents.iter().collect();
    let by = Signature::now("makima", "makima@localhost")?;
    objects.commit(None, &by, &by, &format!("checkpoint {id}\n"), &tree, &parents)
}

/// Holds the commit, and lets go of those that no delta will be made on any more.
fn hold(objects: &Repository, id: CheckpointId, commit: Oid) -> Result<(), git2::Error> {
    objects.reference(&format!("{REFS}{id}"), commit, true, "")?;
    let names = objects.references_glob(&format!("{REFS}*"))?.names().flatten().map(str::to_owned).collect::<Vec<_>>();
    let mut names = names;
    names.sort();
    for name in names.iter().rev().skip(HELD) {
        objects.find_reference(name)?.delete()?;
    }
    Ok(())
}

/// The same work: all but the raw index files, which also say when git last looked.
fn is_same(objects: &Repository, one: &git2::Tree<'_>, other: &git2::Tree<'_>) -> bool {
    let ids = |tree: &git2::Tree<'_>| -> Vec<(Vec<u8>, Oid)> {
        let entries = tree.iter().filter(|entry| entry.name_bytes() != b"index" && entry.name_bytes() != b"nested");
        entries.map(|entry| (entry.name_bytes().to_vec(), entry.id())).collect()
    };
    let nested = |tree: &git2::Tree<'_>| -> Vec<Oid> {
        let nested = tree.get_name("nested").and_then(|entry| objects.find_tree(entry.id()).ok());
        nested.map(|nested| nested.iter().map(|entry| entry.id()).collect()).unwrap_or_default()
    };
    let (a, b) = (nested(one), nested(other));
    ids(one) == ids(other)
        && a.len() == b.len()
        && a.iter().zip(&b).all(|(a, b)| match (objects.find_tree(*a), objects.find_tree(*b)) {
            (Ok(a), Ok(b)) => is_same(objects, &a, &b),
            _ => false,
        })
}

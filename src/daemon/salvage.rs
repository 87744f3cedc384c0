//! What lies in a state directory and belongs to nobody: work that the server does not know, things that were moved aside, and
//! files that nobody took. It is never deleted by itself; a person looks at it, takes it, or throws it away.
//!
//! ```text
//!   attempts/<name>/salvage.json         the server does not know this attempt        ─┐
//!   attempts/<name>/manifest.json  ✗     a directory that cannot be understood         │
//!   attempts/<name>/checkpoints/<id>     a checkpoint that the server never took       ├─> list ─> get ─> restore, rm
//!   worktrees/<name>.old-<n>, or of no attempt                                         │
//!   repositories/<name>.damaged-<n>      a clone that was damaged                      │
//!   journal.corrupt-<n>                  a journal that was damaged                   ─┘
//! ```
//!
//! It works on the files alone, beside a running daemon or without one.

use std::{
    collections::HashSet,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    attempt_dir::{self, AttemptDir, Listed, Manifest},
    checkpoint::{self, ChainFile, Outcome, Source},
    git::{Error, LONG_TIMEOUT},
    process::Process,
    runner::{
        blocking,
        saving::{is_owed, never_uploaded},
    },
    shim, sweep, worktree,
};
use crate::{
    domain::{AttemptRef, Timestamp, text},
    runtime::clock,
};

/// Name of the note in the directory of an attempt that the server does not know.
const NOTE: &str = "salvage.json";
/// Bytes read at once.
const DIGEST_PIECE: usize = 256 * 1024;
/// Entries of a tree that are counted for its size; what is larger is said to be at least that.
const MAX_COUNTED: usize = 200_000;

/// Why something is salvage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An attempt that the server does not know.
    Attempt,
    /// The directory of an attempt that cannot be understood.
    Directory,
    /// A worktree that was moved aside, or that belongs to no attempt.
    Worktree,
    /// A checkpoint that the server never took.
    Checkpoint,
    /// A clone that was damaged.
    Clone,
    /// A journal that was damaged.
    Journal,
}

impl Kind {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Attempt => "attempt",
            Self::Directory => "directory",
            Self::Worktree => "worktree",
            Self::Checkpoint => "checkpoint",
            Self::Clone => "clone",
            Self::Journal => "journal",
        }
    }
}

/// One thing that belongs to nobody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Its name: a part of its path that no other item has.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub path: PathBuf,
    /// The attempt, where one is known.
    pub attempt: Option<AttemptRef>,
    /// Name of its task; empty if unknown.
    pub name: String,
    /// URL or path of its repository; empty if unknown.
    pub repository: String,
    /// Its worktree, where that is another path.
    pub worktree: Option<PathBuf>,
    /// Why it is here, for people.
    pub why: String,
    /// When it last changed.
    pub changed: Timestamp,
}

/// What a restore has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// Where it is now.
    pub path: PathBuf,
    /// A checkout with the work as it was; otherwise a plain copy.
    pub checkout: bool,
    /// Things worth a look.
    pub warnings: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    why: String,
}

/// Notes that nobody wants this attempt: its work is for a person.
pub(super) async fn mark(dir: &AttemptDir, why: &str) -> Result<(), attempt_dir::Error> {
    let (dir, note) = (dir.clone(), Note { why: why.to_owned() });
    blocking(move || dir.write(NOTE, &note)).await
}

/// Everything there is, by kind and age.
pub async fn list(state: &Path) -> Result<Vec<Item>, Error> {
    let state = state.to_owned();
    blocking(move || {
        let listed = AttemptDir::list_all(&state)
            .map_err(|error| Error::refused(format!("cannot list {}: {error}", state.display())))?;
        let mut items = Vec::new();
        let mut owned = HashSet::new();
        for Listed { dir, manifest } in listed {
            match manifest {
                Ok(manifest) => {
                    owned.extend(manifest.place.iter().map(|place| place.worktree.clone()));
                    // Where it would be made, or is being made.
                    let short = format!("{}-{}", manifest.attempt.task.short(), manifest.attempt.number);
                    owned.insert(state.join("worktrees").join(short));
                    items.extend(of_attempt(&dir, &manifest));
                }
                Err(error) => {
                    items.push(item(Kind::Directory, dir.path(), format!("it cannot be understood: {error}")));
                }
            }
        }
        let aside = |dir: &str, word: &str| -> Vec<PathBuf> {
            let entries = fs::read_dir(state.join(dir)).into_iter().flatten().flatten();
            let named = |path: &PathBuf| path.to_string_lossy().contains(word);
            entries.map(|entry| entry.path()).filter(named).collect()
        };
        for path in aside("worktrees", "").into_iter().filter(|path| path.is_dir() && !owned.contains(path)) {
            let moved = path.to_string_lossy().contains(".old-");
            let why =
                if moved { "it was in the way of another worktree" } else { "no attempt is known that it belongs to" };
            items.push(item(Kind::Worktree, &path, why.to_owned()));
        }
        for path in aside("repositories", ".damaged-") {
            items.push(item(Kind::Clone, &path, "it was damaged, and another one was made".to_owned()));
        }
        for path in aside("", "journal.corrupt-") {
            // Its log goes with it.
            if !path.to_string_lossy().ends_with("-wal") && !path.to_string_lossy().ends_with("-shm") {
                items.push(item(Kind::Journal, &path, "it was damaged, and another one was made".to_owned()));
            }
        }
        items.sort_by(|a, b| (a.kind, a.changed, &a.path).cmp(&(b.kind, b.changed, &b.path)));
        Ok(items)
    })
    .await
}

fn of_attempt(dir: &AttemptDir, manifest: &Manifest) -> Vec<Item> {
    let about = |item: Item| Item {
        attempt: Some(manifest.attempt),
        name: manifest.spawn.name.clone(),
        repository: super::process::redact_url(&manifest.spawn.repository),
        ..item
    };
    let mut items = Vec::new();
    if let Ok(Some(note)) = dir.read::<Note>(NOTE) {
        let worktree = manifest.place.as_ref().map(|place| place.worktree.clone());
        items.push(Item { worktree, ..about(item(Kind::Attempt, dir.path(), note.why)) });
    }
    // Of one that lives files may be in the making, or on their way.
    if !is_owed(dir) && !shim::is_held(dir).unwrap_or(true) {
        for path in never_uploaded(dir) {
            items.push(about(item(Kind::Checkpoint, &path, "the server never took it".to_owned())));
        }
    }
    items
}

fn item(kind: Kind, path: &Path, why: String) -> Item {
    let modified = fs::symlink_metadata(path).and_then(|meta| meta.modified()).unwrap_or(UNIX_EPOCH);
    let micros = modified.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_micros();
    Item {
        id: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        kind,
        path: path.to_owned(),
        attempt: None,
        name: String::new(),
        repository: String::new(),
        worktree: None,
        why,
        changed: Timestamp(i64::try_from(micros).unwrap_or(i64::MAX)),
    }
}

/// Bytes of it, with its worktree; what changes meanwhile does not matter.
pub async fn size(item: &Item) -> u64 {
    let roots: Vec<PathBuf> = std::iter::once(item.path.clone()).chain(item.worktree.clone()).collect();
    blocking(move || {
        let (mut left, mut bytes) = (roots, 0);
        for _ in 0..MAX_COUNTED {
            let Some(path) = left.pop() else { break };
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            if found.is_dir() {
                left.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            } else {
                bytes += found.len();
            }
        }
        bytes
    })
    .await
}

/// Brings the work into a person's hands: a checkout with commits, index and files as they were where that can be made, else a
/// plain copy. What it is taken from stays.
pub async fn restore(item: &Item, into: &Path) -> Result<Taken, Error> {
    if fs::read_dir(into).is_ok_and(|mut entries| entries.next().is_some()) || into.is_file() {
        return Err(Error::refused(format!("{} exists and is not empty: name another directory", into.display())));
    }
    let made = match item.kind {
        Kind::Attempt => checkout_of_attempt(item, into).await,
        Kind::Checkpoint => checkout_of_checkpoint(item, into).await,
        Kind::Directory | Kind::Worktree | Kind::Clone | Kind::Journal => Err(None),
    };
    let mut warnings = match made {
        Ok(warnings) => return Ok(Taken { path: into.to_owned(), checkout: true, warnings }),
        Err(Some(error)) => vec![format!("no checkout could be made of it, so this is a plain copy: {error}")],
        Err(None) => Vec::new(),
    };
    let all: Vec<&PathBuf> = match (&item.worktree, item.kind) {
        (Some(worktree), Kind::Attempt) if worktree.exists() => vec![worktree],
        _ => vec![&item.path],
    };
    for from in all {
        copy(from, into).await?;
    }
    if item.kind == Kind::Checkpoint && warnings.is_empty() {
        warnings.push("it builds on others, without which it cannot be restored".to_owned());
    }
    Ok(Taken { path: into.to_owned(), checkout: false, warnings })
}

type Checkout = Result<Vec<String>, Option<Error>>;

async fn checkout_of_attempt(item: &Item, into: &Path) -> Checkout {
    let manifest = AttemptDir::open(&item.path).and_then(|dir| dir.manifest()).map_err(|_| None)?;
    let place = manifest.place.and_then(|place| worktree::find(&place, manifest.attempt.task)).ok_or(None)?;
    let scratch = into.with_file_name(format!(".{}.taking", into.file_name().unwrap_or_default().to_string_lossy()));
    let source = Source {
        exclude: checkpoint::known_elsewhere(&place),
        place,
        transcript: None,
        previous: None,
        even_unchanged: false,
    };
    let made = async {
        let Outcome::Taken(captured) = checkpoint::capture(&source, &scratch).await? else {
            return Err(Error::refused("nothing was captured"));
        };
        let file = ChainFile { path: captured.file, sha256: captured.sha256 };
        let restored = checkpoint::restore_into(&manifest.spawn.repository, &[file], into, None, None).await?;
        Ok([captured.warnings, restored.warnings].concat())
    };
    let made = made.await;
    let _ = fs::remove_dir_all(&scratch);
    if made.is_err() {
        // It was empty or not there before.
        let _ = fs::remove_dir_all(into);
    }
    made.map_err(Some)
}

async fn checkout_of_checkpoint(item: &Item, into: &Path) -> Checkout {
    let header = checkpoint::read_header(&item.path).map_err(Some)?;
    let dir = item.path.parent().and_then(Path::parent).ok_or(None)?;
    let manifest = AttemptDir::open(dir).and_then(|dir| dir.manifest()).map_err(|_| None)?;
    if header.base.is_some() {
        return Err(None);
    }
    let file = ChainFile { path: item.path.clone(), sha256: digest(&item.path).await.map_err(Some)? };
    let restored = checkpoint::restore_into(&manifest.spawn.repository, &[file], into, None, None).await;
    restored.map(|restored| restored.warnings).map_err(Some)
}

async fn digest(path: &Path) -> Result<String, Error> {
    let path = path.to_owned();
    let digest = blocking(move || {
        let (mut digest, mut file) = (Sha256::new(), fs::File::open(&path)?);
        let mut buffer = vec![0; DIGEST_PIECE];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(digest.finalize()),
                read => digest.update(&buffer[..read]),
            }
        }
    });
    let digest =
        digest.await.map_err(|error: std::io::Error| Error::refused(format!("cannot read the checkpoint: {error}")))?;
    Ok(text::hex(&digest))
}

/// A copy with modes, times and links as they are.
async fn copy(from: &Path, into: &Path) -> Result<(), Error> {
    let fail = |why: String| Error::refused(format!("cannot copy {} to {}: {why}", from.display(), into.display()));
    fs::create_dir_all(into).map_err(|error| fail(error.to_string()))?;
    // Of a directory what is in it.
    let source = if from.is_dir() { from.join(".") } else { from.to_owned() };
    let copied = Process::new("cp").arg("-a").arg("--").arg(source).arg(into).dir("/").run(LONG_TIMEOUT).await;
    match copied {
        Ok(output) if output.success() => Ok(()),
        Ok(output) => Err(fail(output.complaint())),
        Err(error) => Err(fail(error.to_string())),
    }
}

/// Throws it away, for ever. Refused while anything of it runs.
pub async fn remove(state: &Path, item: &Item) -> Result<(), Error> {
    let fail =
        |path: &Path, error: std::io::Error| Error::refused(format!("cannot remove {}: {error}", path.display()));
    if let Some(attempt) = item.attempt {
        let target = sweep::Target { attempt: attempt.id, leader: None, ancestor: None };
        if sweep::is_anything_alive(&target).await.unwrap_or(true) {
            return Err(Error::refused(format!("{} is in use by a running agent", item.path.display())));
        }
    }
    if let Some(worktree) = item.worktree.as_ref().filter(|worktree| worktree.exists()) {
        worktree::remove(state, worktree, true).await?;
    }
    let beside = ["-wal", "-shm"].map(|suffix| {
        let mut name = item.path.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    });
    let journals = (item.kind == Kind::Journal).then_some(beside).into_iter().flatten();
    for path in std::iter::once(item.path.clone()).chain(journals) {
        let removed = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(_) => Ok(()),
        };
        removed.map_err(|error| fail(&path, error))?;
    }
    Ok(())
}

/// How long ago something changed.
pub fn age(item: &Item) -> Duration {
    let micros = clock::now().0.saturating_sub(item.changed.0).max(0);
    Duration::from_micros(micros.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::{attempt_dir::tests as dirs, git::testing, repository::Repositories};

    /// Everything that belongs to nobody is listed, nothing that belongs to somebody is; what a person takes is the work as it
    /// was, and what they throw away is gone.
    #[tokio::test]
    async fn what_belongs_to_nobody_is_listed_taken_and_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().canonicalize().unwrap().join("state");
        let origin = testing::repository(dir.path()).await;
        let made = |name: &'static str| {
            let mut spawn = dirs::spawn_order("");
            (spawn.repository, spawn.name) = (origin.display().to_string(), name.to_owned());
            spawn.branch = format!("makima/{name}/1");
            dirs::manifest(spawn)
        };
        let (mut known, mut lost) = (made("known"), made("lost"));
        for manifest in [&mut known, &mut lost] {
            let repo = Repositories::new(&state).ensure(&manifest.spawn.repository, "", &[]).await.unwrap();
            let path = state.join("worktrees").join(format!("{}-1", manifest.attempt.task.short()));
            let place = worktree::prepare(&repo, &manifest.spawn, manifest.attempt, &path).await.unwrap().place;
            manifest.place = Some(place);
            let dir = AttemptDir::create(&state, manifest).unwrap();
            dir.save(manifest).unwrap();
        }
        assert_eq!(list(&state).await.unwrap(), []);
        let work = lost.place.as_ref().unwrap().worktree.clone();
        testing::commit(&work, &[("own", "of the agent\n")], "own").await;
        fs::write(work.join("untracked"), "new\n").unwrap();
        mark(&AttemptDir::find(&state, lost.attempt).unwrap(), "the server does not know it").await.unwrap();
        fs::create_dir_all(state.join("worktrees/x.old-1")).unwrap();
        fs::write(state.join("worktrees/x.old-1/file"), "kept\n").unwrap();
        fs::create_dir_all(state.join("attempts/broken")).unwrap();
        fs::write(state.join("journal.corrupt-1"), "").unwrap();
        fs::write(state.join("journal.corrupt-1-wal"), "").unwrap();
        let items = list(&state).await.unwrap();
        let kinds: Vec<Kind> = items.iter().map(|item| item.kind).collect();
        assert_eq!(kinds, [Kind::Attempt, Kind::Directory, Kind::Worktree, Kind::Journal]);
        assert_eq!(items[0].attempt, Some(lost.attempt));
        assert!(size(&items[0]).await > 0);

        let taken = restore(&items[0], &dir.path().join("taken")).await.unwrap();
        assert!(taken.checkout, "{taken:?}");
        let log = testing::run(&taken.path, &["log", "--format=%s"]).await;
        assert_eq!(log, testing::run(&work, &["log", "--format=%s"]).await);
        assert_eq!(fs::read_to_string(taken.path.join("untracked")).unwrap(), "new\n");
        let copied = restore(&items[2], &dir.path().join("copied")).await.unwrap();
        assert!(!copied.checkout);
        assert_eq!(fs::read_to_string(copied.path.join("file")).unwrap(), "kept\n");
        assert!(restore(&items[2], &copied.path).await.unwrap_err().message.contains("not empty"));

        assert_eq!(list(&state).await.unwrap(), items, "taking leaves it");
        for item in &items {
            remove(&state, item).await.unwrap();
        }
        assert_eq!(list(&state).await.unwrap(), []);
        assert!(!work.exists() && !state.join("journal.corrupt-1-wal").exists());
        assert!(known.place.unwrap().worktree.exists());
    }

    /// A checkpoint that the server never took is salvage once its attempt is over and nobody brings it there any more; a
    /// delta is of use only with what it builds on, and is handed over as the file that it is.
    #[tokio::test]
    async fn what_lives_or_is_on_its_way_is_nobodys_salvage() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().canonicalize().unwrap().join("state");
        let origin = testing::repository(dir.path()).await;
        let mut spawn = dirs::spawn_order("");
        (spawn.repository, spawn.branch) = (origin.display().to_string(), "makima/t/1".into());
        let mut manifest = dirs::manifest(spawn);
        let attempt = manifest.attempt;
        // Where its worktree is being made.
        let path = state.join("worktrees").join(format!("{}-1", attempt.task.short()));
        fs::create_dir_all(&path).unwrap();
        let made = AttemptDir::create(&state, &manifest).unwrap();
        assert_eq!(list(&state).await.unwrap(), []);
        fs::remove_dir(&path).unwrap();
        let repo = Repositories::new(&state).ensure(&manifest.spawn.repository, "", &[]).await.unwrap();
        let place = worktree::prepare(&repo, &manifest.spawn, attempt, &path).await.unwrap().place;
        manifest.place = Some(place.clone());
        made.save(&manifest).unwrap();
        let exclude = checkpoint::known_elsewhere(&place);
        let mut source = Source { place, exclude, transcript: None, previous: None, even_unchanged: false };
        let mut captured = Vec::new();
        for text in ["first", "second"] {
            fs::write(path.join("work"), text).unwrap();
            let taken = checkpoint::capture(&source, &made.path().join("checkpoints")).await.unwrap();
            let Outcome::Taken(taken) = taken else { panic!("unchanged") };
            let (id, commit, depth) = (taken.id, taken.commit.clone(), taken.depth);
            source.previous = Some(checkpoint::Previous { id, commit, depth });
            captured.push(taken);
        }
        let mark = serde_json::json!({ "id": captured[0].id, "commit": captured[0].commit, "depth": 1 });
        let whole = serde_json::json!({ "bytes": 1, "sha256": "" });
        let about = crate::domain::checkpoint::About::default();
        let waiting = serde_json::json!([{ "mark": mark, "file": "x", "whole": whole, "about": about }]);
        made.write("checkpoints.json", &serde_json::json!({ "stored": null, "waiting": waiting })).unwrap();
        assert_eq!(list(&state).await.unwrap(), [], "on its way");
        made.write("checkpoints.json", &serde_json::json!({ "stored": null, "waiting": [] })).unwrap();
        let lock = fs::File::create(made.path().join("lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(list(&state).await.unwrap(), [], "it lives");
        // A process that is just being started may have the file open, too.
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
        fs::create_dir_all(state.join("repositories/r.damaged-1")).unwrap();
        let items = list(&state).await.unwrap();
        let kinds: Vec<Kind> = items.iter().map(|item| item.kind).collect();
        assert_eq!(kinds, [Kind::Checkpoint, Kind::Checkpoint, Kind::Clone]);

        let (whole, delta) = (&items[0], &items[1]);
        assert_eq!(whole.path, captured[0].file);
        let taken = restore(whole, &dir.path().join("whole")).await.unwrap();
        assert!(taken.checkout, "{taken:?}");
        assert_eq!(fs::read_to_string(taken.path.join("work")).unwrap(), "first");
        let taken = restore(delta, &dir.path().join("delta")).await.unwrap();
        assert!(!taken.checkout && taken.warnings[0].contains("it builds on others"), "{taken:?}");
        assert!(taken.path.join(captured[1].file.file_name().unwrap()).exists());

        // Where no checkout can be made of a whole attempt, what is in its worktree is copied.
        mark_and_lose(&made, &origin).await;
        let lost = list(&state).await.unwrap().into_iter().find(|item| item.kind == Kind::Attempt).unwrap();
        let taken = restore(&lost, &dir.path().join("lost")).await.unwrap();
        assert!(!taken.checkout, "{taken:?}");
        assert_eq!(fs::read_to_string(taken.path.join("work")).unwrap(), "second");
    }

    /// The server does not know it, and its repository has gone.
    async fn mark_and_lose(dir: &AttemptDir, origin: &Path) {
        mark(dir, "the server does not know it").await.unwrap();
        fs::rename(origin, origin.with_extension("gone")).unwrap();
    }
}

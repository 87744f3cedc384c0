//! The checkpoints of one attempt: taken while its agent works and at its end, brought to the server in the background.
//!
//! ```text
//!   time, order, end ─> take ── nothing new ─> nothing
//!                         │        └─ <attempt>/checkpoints/<id>.checkpoint ─> book ─> upload ─> stored: the next one's base
//!                         └ one at a time an attempt, one at a time a daemon while agents work
//! ```
//!
//! `checkpoints.json`, the book, says which are on their way, and which one the server has; what stands in it is brought there
//! whatever dies. The next delta builds on the newest one that the server *has*, so that no chain ever hangs on a file that was
//! lost here. A checkpoint that fails is a warning, once for each cause, and never the agent's problem.

use std::{
    collections::HashSet,
    fs,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::Instrument as _;

use super::{blocking, chain};
use crate::{
    daemon::{
        Context,
        attempt_dir::{self, AttemptDir, Manifest, Place},
        bulk::{Delivered, Delivery, FileKind},
        checkpoint::{self, Captured, Outcome, Previous, Source, Transcript},
        git::{LOCAL_TIMEOUT, attempt, git},
        journal::Change,
        worktree,
    },
    domain::{
        AttemptRef, CheckpointId,
        attempt::{FailureClass, Pack},
        checkpoint::{About, MAX_BYTES, MAX_OMITTED, Reason},
        report::Report,
    },
    runtime::clock,
};

/// Name of the book in the attempt's directory.
const BOOK: &str = "checkpoints.json";
/// The directory of the files.
const FILES: &str = "checkpoints";
/// What a last checkpoint has to reach the server before the end is reported without it: as long as a daemon may be silent
/// before it is taken for lost, and a little for the server.
pub(super) const FINAL_WAIT: Duration = Duration::from_secs(60);
/// Bytes a second that a line should make at least; what takes longer than that follows the report.
const SLOW_LINE: u64 = 512 * 1024;
/// Causes of warnings that are remembered, so that each is said once.
const MAX_CAUSES: usize = 100;

/// Held while a book is changed. A change is a small file.
static BOOKS: Mutex<()> = Mutex::new(());

/// What is known of an attempt's checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Book {
    /// The newest that the server has, or that the attempt was restored from.
    stored: Option<Mark>,
    /// On their way, oldest first.
    waiting: Vec<Taken>,
}

/// A checkpoint that the next one may build on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    id: CheckpointId,
    commit: String,
    depth: u32,
    /// Nothing was left out.
    #[serde(default)]
    complete: bool,
}

/// A checkpoint that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Taken {
    mark: Mark,
    file: PathBuf,
    whole: Pack,
    about: About,
}

impl Taken {
    /// It holds the work as the attempt left it.
    fn is_final(&self) -> bool {
        matches!(self.about.reason, Reason::Stopping | Reason::End)
    }
}

/// What comes of a look at the work.
enum Came {
    /// The server has all of it.
    Unchanged,
    /// A checkpoint.
    Taken(Box<Taken>, Delivery),
    /// It could not be taken.
    Nothing,
}

/// Takes the checkpoints of one attempt.
pub(in crate::daemon) struct Saving {
    context: Arc<Context>,
    attempt: AttemptRef,
    manifest: Manifest,
    place: Mutex<Place>,
    dir: AttemptDir,
    /// Held while one is taken.
    turn: tokio::sync::Mutex<()>,
    book: Mutex<Book>,
    causes: Mutex<HashSet<String>>,
}

impl Saving {
    /// Of the attempt of this directory; what was on its way goes on. `None`: it has no worktree, or not any more.
    pub(in crate::daemon) async fn open(context: &Arc<Context>, dir: &AttemptDir) -> Option<Arc<Self>> {
        let manifest = dir.manifest().ok().filter(|manifest| manifest.superseded.is_none())?;
        let place = manifest.place.clone()?;
        let book_dir = dir.clone();
        let book = blocking(move || read_book(&book_dir)).await;
        let this = Arc::new(Self {
            context: Arc::clone(context),
            attempt: manifest.attempt,
            manifest,
            place: Mutex::new(place),
            dir: dir.clone(),
            turn: tokio::sync::Mutex::new(()),
            book: Mutex::new(book.clone()),
            causes: Mutex::default(),
        });
        for taken in &book.waiting {
            this.deliver(taken);
        }
        Some(this)
    }

    /// The worktree is there now.
    pub(super) fn moved(&self, place: Place) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    fn place(&self) -> Place {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The attempt was restored from this one: the next one may build on it.
    pub(super) async fn begin_from(dir: &AttemptDir, previous: &Previous) -> Result<(), attempt_dir::Error> {
        let (dir, mark) = (dir.clone(), mark_of(previous));
        blocking(move || {
            let book = Book { stored: Some(mark), ..read_book(&dir) };
            dir.write(BOOK, &book)
        })
        .await
    }

    /// Takes one in the background. Those that it is time for are left out while an earlier one is being taken, or is on its
    /// way: on a slow line they would only pile up.
    pub(super) fn start(self: &Arc<Self>, reason: Reason, session: String) {
        let this = Arc::clone(self);
        let work = async move {
            let is_busy = || this.turn.try_lock().is_err() || !this.book().waiting.is_empty();
            if reason == Reason::Periodic && is_busy() {
                return;
            }
            // Agents need the machine more than their checkpoints do. The semaphore is never closed.
            let _one = this.context.captures.acquire().await;
            this.take(reason, session).await;
        };
        self.context.shutdown.spawn(work.in_current_span());
    }

    /// Takes one of what an attempt has left, and brings it to the server: returns when it is there, or when the report of the
    /// end must not wait for it any longer. Repeating it after a crash goes on with the one that was taken.
    pub(in crate::daemon) async fn finally(self: &Arc<Self>, reason: Reason, session: String) {
        let before = self.book().waiting.iter().rfind(|taken| taken.is_final()).cloned();
        let (taken, mut delivery) = match before {
            Some(taken) => {
                let delivery = self.deliver(&taken);
                (taken, delivery)
            }
            None => match self.last(reason, session).await {
                Some(taken) => taken,
                None => return,
            },
        };
        let bytes = taken.whole.bytes.unsigned_abs();
        let patience = FINAL_WAIT + Duration::from_secs(bytes / SLOW_LINE);
        if tokio::time::timeout(patience, delivery.outcome()).await.is_err() {
            tracing::warn!(checkpoint = %taken.mark.id, "the last checkpoint takes long to reach the server; it follows the report");
        }
    }

    /// Takes one of what an attempt has left, without waiting for it to reach the server.
    pub(in crate::daemon) async fn take_last(self: &Arc<Self>, reason: Reason, session: String) {
        self.last(reason, session).await;
    }

    async fn last(self: &Arc<Self>, reason: Reason, session: String) -> Option<(Taken, Delivery)> {
        if !self.has_work(&session).await {
            return None;
        }
        let (done, taken) = oneshot::channel();
        let this = Arc::clone(self);
        // Whoever waits may be told to stop; what git has begun is brought to its end.
        self.context.shutdown.spawn(async move {
            let _ = done.send(this.take(reason, session).await);
        });
        taken.await.ok().flatten()
    }

    /// There is something that the base does not have.
    async fn has_work(&self, session: &str) -> bool {
        let Place { worktree, base_commit, .. } = self.place();
        let (place, worktree) = (self.place(), &worktree);
        if !blocking(move || worktree::is_intact(&place)).await {
            return false;
        }
        if self.book().stored.is_some() || self.transcript(session).is_some_and(|it| it.path.exists()) {
            return true;
        }
        let head = attempt("read HEAD", LOCAL_TIMEOUT, || git(worktree).args(["rev-parse", "HEAD"])).await;
        let status = attempt("look for changes", LOCAL_TIMEOUT, || {
            git(worktree).args(["--no-optional-locks", "status", "--porcelain", "--untracked-files=normal"])
        })
        .await;
        let at_base = head.is_ok_and(|head| head.success() && head.text() == base_commit);
        !at_base || !status.is_ok_and(|status| status.success() && status.stdout.is_empty())
    }

    /// Where the agent keeps its conversation.
    fn transcript(&self, session: &str) -> Option<Transcript> {
        let agent = self.manifest.agent.as_ref()?;
        let profiles = &self.context.profiles;
        let found = profiles.conversation(&self.manifest.spawn.agent, &self.place().worktree, session, &agent.env)?;
        Some(Transcript { path: found.find().unwrap_or(found.transcript), session_id: session.to_owned() })
    }

    /// All that is in the worktree is in a checkpoint that the server has; otherwise one is taken, and may be there when this is
    /// asked again.
    pub(in crate::daemon) async fn is_all_stored(self: &Arc<Self>, session: String) -> bool {
        let is_complete =
            |book: &Book| book.waiting.is_empty() && book.stored.as_ref().is_some_and(|mark| mark.complete);
        if !self.book().waiting.is_empty() {
            return false;
        }
        matches!(self.look(Reason::End, session).await, Came::Unchanged) && is_complete(&self.book())
    }

    async fn take(self: &Arc<Self>, reason: Reason, session: String) -> Option<(Taken, Delivery)> {
        match self.look(reason, session).await {
            Came::Taken(taken, delivery) => Some((*taken, delivery)),
            Came::Unchanged | Came::Nothing => None,
        }
    }

    async fn look(self: &Arc<Self>, reason: Reason, session: String) -> Came {
        let _turn = self.turn.lock().await;
        let place = self.place();
        let source = Source {
            exclude: checkpoint::known_elsewhere(&place),
            place,
            transcript: self.transcript(&session),
            previous: self.book().stored.as_ref().map(previous_of),
            // Who asks for one may wait for it.
            even_unchanged: reason == Reason::Asked,
        };
        let begun = std::time::Instant::now();
        let captured = match checkpoint::capture(&source, &self.dir.path().join(FILES)).await {
            Ok(Outcome::Taken(captured)) => *captured,
            Ok(Outcome::Unchanged) => return Came::Unchanged,
            // The attempt ends with that.
            Err(error) if error.class == FailureClass::WorktreeLost => return Came::Nothing,
            Err(error) => {
                self.context.metrics.checkpoint_failed();
                self.failed(reason, format!("the work cannot be checkpointed: {error}")).await;
                return Came::Nothing;
            }
        };
        for warning in &captured.warnings {
            self.warn(format!("checkpoint: {warning}")).await;
        }
        let taken = self.taken(captured, reason);
        if taken.whole.bytes > MAX_BYTES {
            self.failed(reason, format!("a checkpoint has {} bytes, more than a server takes", taken.whole.bytes))
                .await;
            let _ = fs::remove_file(&taken.file);
            return Came::Nothing;
        }
        self.context.metrics.checkpoint_taken(self.attempt, begun.elapsed(), taken.whole.bytes.unsigned_abs());
        let millis = begun.elapsed().as_millis();
        tracing::info!(checkpoint = %taken.mark.id, bytes = taken.whole.bytes, reason = reason.word(), millis, "checkpoint taken");
        let noted = taken.clone();
        self.change_book(move |book| book.waiting.push(noted)).await;
        let delivery = self.deliver(&taken);
        Came::Taken(Box::new(taken), delivery)
    }

    fn taken(&self, captured: Captured, reason: Reason) -> Taken {
        Taken {
            mark: Mark {
                id: captured.id,
                commit: captured.commit,
                depth: captured.depth,
                complete: captured.omitted.is_empty(),
            },
            file: captured.file,
            whole: Pack { bytes: i64::try_from(captured.bytes).unwrap_or(i64::MAX), sha256: captured.sha256 },
            about: About {
                base: captured.base,
                reason,
                taken: clock::now(),
                head: captured.head.unwrap_or_default(),
                branch: captured.branch.unwrap_or_default(),
                base_commit: self.place().base_commit,
                session_id: captured.session_id.unwrap_or_default(),
                summary: captured.summary,
                omitted: captured.omitted.into_iter().take(MAX_OMITTED).map(|omitted| omitted.path).collect(),
                unsettled: captured.unsettled,
            },
        }
    }

    /// Announces an upload, and sees to what comes of it. Whoever waits for it waits for the one that takes its place, too.
    fn deliver(self: &Arc<Self>, taken: &Taken) -> Delivery {
        let kind = FileKind::Checkpoint(taken.mark.id);
        let (file, whole, about) = (taken.file.clone(), taken.whole.clone(), taken.about.clone());
        let mut upload = self.context.bulk.file(self.attempt, kind, file, whole, Some(about));
        let (tell, delivery) = Delivery::pending();
        let (this, taken) = (Arc::clone(self), taken.clone());
        self.context.shutdown.spawn(async move {
            let soft = this.context.shutdown.soft.clone();
            let outcome = tokio::select! {
                () = soft.cancelled() => return,
                outcome = upload.outcome() => outcome,
            };
            let instead = match (&outcome, taken.about.base) {
                (Delivered::Refused(why), Some(base)) => this.take_whole(&taken, base, why).await,
                _ => None,
            };
            this.delivered(&taken, &outcome, instead.is_some()).await;
            let outcome = match instead {
                Some(mut whole) => tokio::select! {
                    () = soft.cancelled() => return,
                    outcome = whole.outcome() => outcome,
                },
                None => outcome,
            };
            tell.send_replace(Some(outcome));
        });
        delivery
    }

    /// The server does not take a delta: it may have lost what that builds on, as one does whose database was put back from a
    /// copy. All that follow would be refused as well; so there is a whole one, now.
    ///
    /// Boxed, because what is taken here is delivered as everything is.
    fn take_whole<'a>(
        self: &'a Arc<Self>,
        refused: &'a Taken,
        base: CheckpointId,
        why: &'a str,
    ) -> Pin<Box<dyn Future<Output = Option<Delivery>> + Send + 'a>> {
        Box::pin(async move {
            tracing::warn!(checkpoint = %refused.mark.id, why, "the server did not take a delta; taking a whole checkpoint");
            self.change_book(move |book| _ = book.stored.take_if(|stored| stored.id == base)).await;
            let session = refused.about.session_id.clone();
            self.take(refused.about.reason, session).await.map(|(_, delivery)| delivery)
        })
    }

    /// Notes what came of an upload. `replaced`: another one has all that is in it.
    async fn delivered(&self, taken: &Taken, outcome: &Delivered, replaced: bool) {
        let is_stored = match outcome {
            Delivered::Left => return,
            Delivered::Stored => true,
            Delivered::Refused(_) if replaced => false,
            Delivered::Refused(why) => {
                self.failed(taken.about.reason, format!("the server did not take a checkpoint: {why}")).await;
                false
            }
        };
        let mark = taken.mark.clone();
        self.change_book(move |book| {
            book.waiting.retain(|waiting| waiting.mark.id != mark.id);
            if is_stored && book.stored.as_ref().is_none_or(|stored| stored.id < mark.id) {
                book.stored = Some(mark);
            }
        })
        .await;
        // What the server did not take of the end is for a person (`makima salvage`); of what came before that there is newer.
        if is_stored || replaced || !taken.is_final() {
            let file = taken.file.clone();
            let _ = blocking(move || fs::remove_file(file)).await;
        }
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From what the file says: what is left of an attempt that has ended may have been opened more than once.
    async fn change_book(&self, change: impl FnOnce(&mut Book) + Send + 'static) {
        let dir = self.dir.clone();
        let changed = blocking(move || {
            let _one = BOOKS.lock().unwrap_or_else(PoisonError::into_inner);
            let mut book = read_book(&dir);
            change(&mut book);
            let written = dir.write(BOOK, &book);
            (book, written)
        });
        let (book, written) = changed.await;
        *self.book() = book;
        if let Err(error) = written {
            tracing::warn!(error = chain(&error), "the book of checkpoints cannot be written");
        }
    }

    /// There will be no checkpoint: a warning, and a word to whoever asked for it and waits.
    async fn failed(&self, reason: Reason, message: String) {
        if reason == Reason::Asked {
            let reports = vec![Report::CheckpointFailed { message: message.clone() }];
            let change = Change { reports, ..Change::default() };
            if let Err(error) = self.context.journal.record(self.attempt, change, clock::now()).await {
                tracing::warn!(error = chain(&error), "the journal cannot be written");
            }
        }
        self.warn(message).await;
    }

    /// Once for each cause.
    async fn warn(&self, message: String) {
        {
            let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
            if causes.len() >= MAX_CAUSES || !causes.insert(message.clone()) {
                return;
            }
        }
        tracing::warn!(attempt = %self.attempt, message, "checkpoint");
        let change = Change { reports: vec![Report::Warning { message }], ..Change::default() };
        if let Err(error) = self.context.journal.record(self.attempt, change, clock::now()).await {
            tracing::warn!(error = chain(&error), "the journal cannot be written");
        }
    }
}

/// Files of checkpoints that nobody brings to the server any more, for people.
pub(in crate::daemon) fn never_uploaded(dir: &AttemptDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.path().join(FILES)).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "checkpoint"))
        .collect();
    files.sort();
    files
}

/// Something of this attempt is to be brought to the server still.
pub(in crate::daemon) fn is_owed(dir: &AttemptDir) -> bool {
    !read_book(dir).waiting.is_empty()
}

/// A book that cannot be read is an empty one: the next checkpoint is a whole one.
fn read_book(dir: &AttemptDir) -> Book {
    let read = dir.read::<Book>(BOOK);
    let read = read.inspect_err(|error| tracing::warn!(error = chain(error), "the book of checkpoints cannot be read"));
    read.ok().flatten().unwrap_or_default()
}

fn mark_of(previous: &Previous) -> Mark {
    Mark { id: previous.id, commit: previous.commit.clone(), depth: previous.depth, complete: false }
}

fn previous_of(mark: &Mark) -> Previous {
    Previous { id: mark.id, commit: mark.commit.clone(), depth: mark.depth }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::daemon::{
        attempt_dir::tests as dirs, config::DiskFloor, repository::RepoRef, supervisor::tests::context,
    };

    fn id(n: u128) -> CheckpointId {
        CheckpointId(Uuid::from_u128(n))
    }

    /// One that stands in a file.
    fn taken(dir: &AttemptDir, n: u128, reason: Reason) -> Taken {
        let file = dir.path().join(FILES).join(format!("{n}.checkpoint"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "whole").unwrap();
        let mark = Mark { id: id(n), commit: n.to_string(), depth: 1, complete: true };
        Taken {
            mark,
            file,
            whole: Pack { bytes: 5, sha256: String::new() },
            about: About { reason, ..About::default() },
        }
    }

    /// What the server has is no longer kept here, and the newest of it is what the next one builds on, in whatever order the
    /// answers come. What it refuses goes, except for the last of an attempt, which may be the only copy there is.
    #[tokio::test]
    async fn the_book_follows_what_becomes_of_checkpoints() {
        let state = tempfile::tempdir().unwrap();
        let context = context(state.path(), DiskFloor::default()).await;
        let mut manifest = dirs::manifest(dirs::spawn_order("true"));
        let nowhere = state.path().join("nowhere");
        let repo = RepoRef { repository: "/none".into(), git_dir: nowhere.clone(), cloned: false };
        let (branch, base_commit) = ("b".to_owned(), "c".repeat(40));
        let (shared, copied, env) = (None, Vec::new(), std::collections::BTreeMap::new());
        manifest.place = Some(Place { repo, worktree: nowhere, branch, base_commit, shared, copied, env });
        let dir = AttemptDir::create(state.path(), &manifest).unwrap();
        dir.save(&manifest).unwrap();
        let all: Vec<_> = (1..=3).map(|n| taken(&dir, n, Reason::Periodic)).collect();
        let last = [taken(&dir, 4, Reason::End), taken(&dir, 5, Reason::Stopping)];
        let waiting = all.iter().chain(&last).cloned().collect();
        dir.write(BOOK, &Book { stored: None, waiting }).unwrap();
        let saving = Saving::open(&context, &dir).await.unwrap();
        saving.delivered(&all[1], &Delivered::Stored, false).await;
        saving.delivered(&all[0], &Delivered::Stored, false).await;
        saving.delivered(&all[2], &Delivered::Refused("too late".into()), false).await;
        for last in &last {
            assert!(is_owed(&dir));
            saving.delivered(last, &Delivered::Refused("too late".into()), false).await;
        }
        assert!(!is_owed(&dir));
        assert_eq!(read_book(&dir).stored, Some(all[1].mark.clone()));
        assert_eq!(never_uploaded(&dir), last.map(|taken| taken.file));
    }
}

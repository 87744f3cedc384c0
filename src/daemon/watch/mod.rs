//! Whether the worktrees of running attempts are still there: a deleted or moved worktree, a missing or foreign `.git`, a
//! repository that has gone. One inotify watcher for the whole daemon, and a sweep for what it cannot see.
//!
//! ```text
//!   add(attempt, place) ──> arm: the worktree, its `.git`, its entry in the repository, all directories above them
//!                             │
//!   notice (inotify) ─────────┤
//!   sweep, every minute ──────┼──> look ── intact ──> arm again, wait
//!   poll, where inotify fails ┘      └── broken ──> a moment ──> look again ── still ──> broken().await answers
//! ```
//!
//! Promises: what breaks a worktree is noticed within a second, also while its agent stands in it; what agents do *in* a
//! worktree is not even heard of, since no directory's contents are watched; what is only on its way (git replacing a file, a move that is taken back) raises no alarm; what cannot be looked at is not called
//! broken. Memory is bounded by the number of running attempts: notices are not kept, they only say *look*.
//!
//! Not here: the files in a worktree, which are its agent's affair, and the disk. [`Health`](super::health::Health) knows how
//! full that is: below its floor no new work is taken. An agent that meets a full disk meets an error of its own, and whoever
//! runs the attempt asks `Health` what was behind it.

mod notices;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    attempt_dir::Place,
    blocking,
    worktree::{self, Look},
};
use crate::{domain::AttemptRef, runtime::lifecycle::Shutdown};
use notices::{Notices, What};

/// From a notice to the look: what belongs together comes together, and an agent that touches `.git` in a loop costs twenty
/// looks a second and no more.
const SETTLE: Duration = Duration::from_millis(50);
/// From the first bad look to the second, which counts. git replaces a file in less.
const RECHECK: Duration = Duration::from_millis(100);
/// Between looks where the kernel tells nothing, or a look was not possible.
const POLL: Duration = Duration::from_secs(1);
/// Between looks at everything: for what no notice tells, as on a disk that others write too.
const SWEEP: Duration = Duration::from_secs(60);

/// A worktree that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// What has become of it, for people.
    pub what: String,
}

/// Where worktrees are given to be watched.
#[derive(Clone, Debug)]
pub struct Watch(Arc<Shared>);

/// A worktree that is watched for as long as this is kept.
#[derive(Debug)]
pub struct Watched {
    id: u64,
    shared: Arc<Shared>,
    told: watch::Receiver<Option<Broken>>,
}

#[derive(Debug, Default)]
struct Shared {
    entries: Mutex<Entries>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    all: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    attempt: AttemptRef,
    place: Arc<Place>,
    tell: watch::Sender<Option<Broken>>,
}

impl Watch {
    /// The watch, and the loop that does the watching until the shutdown (`Shutdown::spawn_loop`).
    pub fn new(shutdown: &Shutdown) -> (Self, impl Future<Output = ()> + Send + 'static + use<>) {
        Self::with(shutdown, Notices::new)
    }

    fn with<N: FnOnce() -> io::Result<Notices> + Send + 'static>(
        shutdown: &Shutdown,
        notices: N,
    ) -> (Self, impl Future<Output = ()> + Send + 'static + use<N>) {
        let shared = Arc::<Shared>::default();
        let (watch, soft) = (Self(Arc::clone(&shared)), shutdown.soft.clone());
        let work = async move {
            let notices = notices().inspect_err(
                |error| tracing::warn!(%error, "no inotify; worktrees are looked at every second instead"),
            );
            let watcher = Watcher { shared, notices: notices.ok(), seen: BTreeMap::new(), users: HashMap::new() };
            tokio::select! {
                () = watcher.run() => {}
                () = soft.cancelled() => {}
            }
        };
        (watch, work)
    }

    /// Watches the worktree of an attempt.
    pub fn add(&self, attempt: AttemptRef, place: &Place) -> Watched {
        let (tell, told) = watch::channel(None);
        let mut entries = self.0.entries();
        let id = entries.next;
        entries.next += 1;
        entries.all.insert(id, Entry { attempt, place: Arc::new(place.clone()), tell });
        drop(entries);
        self.0.changed.notify_one();
        Watched { id, shared: Arc::clone(&self.0), told }
    }
}

impl Watched {
    /// Answers when the worktree is broken, also if it was before somebody asked; never otherwise.
    pub async fn broken(&self) -> Broken {
        let mut told = self.told.clone();
        match told.wait_for(Option::is_some).await.ok().and_then(|broken| broken.clone()) {
            Some(broken) => broken,
            // The watching has ended with the daemon.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.shared.entries().all.remove(&self.id);
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === the loop ===

struct Watcher {
    shared: Arc<Shared>,
    /// `None`: the kernel tells nothing here.
    notices: Option<Notices>,
    seen: BTreeMap<u64, Seen>,
    /// Who is concerned by a notice.
    users: HashMap<i32, BTreeSet<u64>>,
}

/// What is known of one worktree.
struct Seen {
    attempt: AttemptRef,
    place: Arc<Place>,
    /// Its entry in the repository, from the first look on: another one is another worktree's.
    admin: Option<PathBuf>,
    notices: BTreeSet<i32>,
    /// The kernel does not tell all of it, so it is looked at every second.
    polled: bool,
    look_at: Option<Instant>,
    /// The last look was a bad one.
    doubted: bool,
}

impl Watcher {
    async fn run(mut self) {
        let mut sweep = interval(SWEEP);
        let mut poll = interval(POLL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.seen.values().filter_map(|seen| seen.look_at).min();
            tokio::select! {
                () = self.shared.changed.notified() => self.take_changes(),
                heard = hear(self.notices.as_ref()) => self.heard(heard),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.look().await,
                _ = sweep.tick() => self.suspect(|_| true),
                _ = poll.tick() => self.suspect(|seen| seen.polled),
            }
        }
    }

    fn take_changes(&mut self) {
        let mut new = Vec::new();
        let shared = Arc::clone(&self.shared);
        let entries = shared.entries();
        for (id, entry) in &entries.all {
            if !self.seen.contains_key(id) && entry.tell.borrow().is_none() {
                new.push((*id, entry.attempt, Arc::clone(&entry.place)));
            }
        }
        let over: Vec<u64> = self.seen.keys().filter(|id| !entries.all.contains_key(id)).copied().collect();
        drop(entries);
        for id in over {
            self.forget(id);
        }
        for (id, attempt, place) in new {
            let (admin, notices, look_at) = (None, BTreeSet::new(), Some(Instant::now()));
            let seen = Seen { attempt, place, admin, notices, polled: false, look_at, doubted: false };
            self.seen.insert(id, seen);
        }
    }

    fn heard(&mut self, heard: io::Result<notices::Heard>) {
        match heard {
            Ok(heard) if heard.lost => {
                tracing::debug!("more notices than the kernel keeps; looking at every worktree");
                self.suspect(|_| true);
            }
            Ok(heard) => self.suspect(|seen| !seen.notices.is_disjoint(&heard.at)),
            Err(error) => {
                tracing::warn!(%error, "inotify has failed; worktrees are looked at every second instead");
                self.notices = None;
                self.users.clear();
                for seen in self.seen.values_mut() {
                    seen.notices.clear();
                    seen.polled = true;
                }
            }
        }
    }

    /// Those are to be looked at soon, if they are not already.
    fn suspect(&mut self, which: impl Fn(&Seen) -> bool) {
        let soon = Instant::now() + SETTLE;
        for seen in self.seen.values_mut().filter(|seen| which(seen)) {
            seen.look_at.get_or_insert(soon);
        }
    }

    /// Looks at what is due. What changes after the arming is heard of, so nothing is missed between the two.
    async fn look(&mut self) {
        let now = Instant::now();
        let is_due = |seen: &Seen| seen.look_at.is_some_and(|at| at <= now);
        let due: Vec<u64> = self.seen.iter().filter(|(_, seen)| is_due(seen)).map(|(id, _)| *id).collect();
        for id in &due {
            self.arm(*id);
        }
        let places: Vec<_> = due.iter().filter_map(|id| Some((*id, Arc::clone(&self.seen.get(id)?.place)))).collect();
        let looks =
            blocking(move || places.into_iter().map(|(id, place)| (id, worktree::look(&place))).collect::<Vec<_>>());
        for (id, look) in looks.await {
            self.judge(id, look);
        }
    }

    fn judge(&mut self, id: u64, look: Look) {
        let Some(seen) = self.seen.get_mut(&id) else { return };
        let what = match look {
            Look::Intact { admin } if seen.admin.as_ref().is_none_or(|own| *own == admin) => {
                seen.doubted = false;
                // A new one is armed first, and looked at once more.
                seen.look_at = seen.admin.is_none().then(Instant::now);
                seen.admin = Some(admin);
                return;
            }
            Look::Intact { admin } => {
                let worktree = seen.place.worktree.display();
                format!("the worktree {worktree} points to another one's entry, {}", admin.display())
            }
            Look::Unknown { why } => {
                tracing::warn!(attempt = %seen.attempt.id, why, "a worktree cannot be looked at; trying again");
                seen.look_at = Some(Instant::now() + POLL);
                return;
            }
            Look::Broken { what } => what,
        };
        if !std::mem::replace(&mut seen.doubted, true) {
            seen.look_at = Some(Instant::now() + RECHECK);
            return;
        }
        tracing::warn!(attempt = %seen.attempt.id, what, "a worktree is broken");
        if let Some(entry) = self.shared.entries().all.get(&id) {
            entry.tell.send_replace(Some(Broken { what }));
        }
        self.forget(id);
    }

    // === what is listened to ===

    /// Listens at all that matters to a worktree, also where something has taken the place of what was there before.
    fn arm(&mut self, id: u64) {
        let (Some(notices), Some(seen)) = (&self.notices, self.seen.get_mut(&id)) else {
            if let Some(seen) = self.seen.get_mut(&id) {
                seen.polled = true;
            }
            return;
        };
        let mut heard = BTreeSet::new();
        let mut failed = None;
        for (path, what) in wanted(&seen.place.worktree, seen.admin.as_deref()) {
            match notices.listen(&path, what) {
                Ok(at) => drop(heard.insert(at)),
                // The look will see that.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                // Not ours to look into; whoever moves it is rare, and the sweep sees it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = &failed
            && !seen.polled
        {
            let attempt = seen.attempt.id;
            tracing::warn!(%attempt, %error, "a worktree cannot be watched; it is looked at every second instead");
        }
        seen.polled = failed.is_some();
        for at in &heard {
            self.users.entry(*at).or_default().insert(id);
        }
        let before = std::mem::replace(&mut seen.notices, heard);
        let over: Vec<i32> = before.difference(&seen.notices).copied().collect();
        self.release(id, &over);
    }

    fn forget(&mut self, id: u64) {
        if let Some(seen) = self.seen.remove(&id) {
            let over: Vec<i32> = seen.notices.into_iter().collect();
            self.release(id, &over);
        }
    }

    /// Stops listening where nobody listens any more.
    fn release(&mut self, id: u64, over: &[i32]) {
        for at in over {
            let Some(users) = self.users.get_mut(at) else { continue };
            users.remove(&id);
            if users.is_empty() {
                self.users.remove(at);
                if let Some(notices) = &self.notices {
                    notices.leave(*at);
                }
            }
        }
    }
}

/// Waits for notices; for ever where there are none.
async fn hear(notices: Option<&Notices>) -> io::Result<notices::Heard> {
    match notices {
        Some(notices) => notices.hear().await,
        None => std::future::pending().await,
    }
}

/// What is listened at for one worktree. A directory in which a process stands tells late that it is deleted, but its `.git`
/// goes before it. The directories above are shared by all, and quiet.
fn wanted(worktree: &Path, admin: Option<&Path>) -> Vec<(PathBuf, What)> {
    let real = worktree.canonicalize().unwrap_or_else(|_| worktree.to_owned());
    let mut all = vec![(real.join(".git"), What::File)];
    all.extend(
        real.ancestors().chain(admin.into_iter().flat_map(Path::ancestors)).map(|dir| (dir.to_owned(), What::Itself)),
    );
    all
}

#[cfg(test)]
mod tests;

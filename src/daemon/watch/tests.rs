//! Real directories, real git, real notices. Deadlines are generous, for a busy machine; that it takes less than a second is
//! printed, and measured elsewhere.

use std::{fs, os::unix::fs::symlink};

use uuid::Uuid;

use super::*;
use crate::{
    daemon::{git::testing, repository::RepoRef},
    domain::{AttemptId, TaskId},
};

/// Far below [`SWEEP`], so that only notices can meet it.
const SOON: Duration = Duration::from_secs(20);
/// What an alarm that should not come is waited for: the notice, both looks and the poll, several times.
const QUIET: Duration = Duration::from_secs(2);

struct Bench {
    dir: tempfile::TempDir,
    origin: PathBuf,
    shutdown: Shutdown,
    watch: Watch,
}

impl Bench {
    async fn new() -> Self {
        Self::with(Notices::new).await
    }

    async fn with(notices: impl FnOnce() -> io::Result<Notices> + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let origin = testing::repository(dir.path()).await;
        let shutdown = Shutdown::new();
        let (watch, work) = Watch::with(&shutdown, notices);
        shutdown.spawn_loop("watch", work);
        Self { dir, origin, shutdown, watch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A worktree of the repository, at this path in the directory.
    async fn worktree(&self, name: &str) -> Place {
        let worktree = self.path(name);
        testing::run(&self.origin, &["worktree", "add", "-q", "--detach", worktree.to_str().unwrap()]).await;
        let repository = self.origin.display().to_string();
        Place {
            repo: RepoRef { repository, git_dir: self.origin.join(".git"), cloned: false },
            worktree,
            branch: String::new(),
            base_commit: String::new(),
            shared: None,
            copied: Vec::new(),
            env: BTreeMap::new(),
        }
    }

    /// A worktree that is watched already, in whole: how that is heard of is what is tried.
    async fn watched(&self, name: &str) -> (Place, Watched) {
        let place = self.worktree(name).await;
        let watched = self.watch.add(attempt(), &place);
        quiet(&watched, 4 * SETTLE).await;
        (place, watched)
    }

    async fn end(self) {
        assert!(self.shutdown.finish().await);
    }
}

fn attempt() -> AttemptRef {
    AttemptRef { task: TaskId(Uuid::new_v4()), number: 1, id: AttemptId(Uuid::new_v4()) }
}

async fn quiet(watched: &Watched, time: Duration) {
    if let Ok(broken) = tokio::time::timeout(time, watched.broken()).await {
        panic!("a false alarm: {}", broken.what);
    }
}

async fn alarm(watched: &Watched) -> String {
    let start = std::time::Instant::now();
    let broken = tokio::time::timeout(SOON, watched.broken()).await.expect("it was not noticed");
    println!("after {:?}: {}", start.elapsed(), broken.what);
    broken.what
}

/// Everything that can become of a worktree is heard of, and told in words that fit; the neighbour hears nothing.
#[tokio::test]
async fn what_breaks_a_worktree_is_noticed() {
    let bench = Bench::new().await;
    fs::create_dir(bench.path("trees")).unwrap();
    let (_, neighbour) = bench.watched("trees/neighbour").await;
    let other = bench.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let other = testing::repository(&other).await;
    type Break = Box<dyn Fn(&Place)>;
    let entries = bench.origin.join(".git/worktrees");
    let admin = move |place: &Place| entries.join(place.worktree.file_name().unwrap());
    let foreign = format!("gitdir: {}\n", other.join(".git").display());
    let cases: Vec<(&str, &str, Break)> = vec![
        ("deleted", "is gone", Box::new(|place| fs::remove_dir_all(&place.worktree).unwrap())),
        (
            "renamed",
            "is gone",
            Box::new(|place| fs::rename(&place.worktree, place.worktree.with_extension("x")).unwrap()),
        ),
        ("no-git", ".git is gone", Box::new(|place| fs::remove_file(place.worktree.join(".git")).unwrap())),
        ("own-git", "a repository of its own", {
            Box::new(|place| {
                fs::remove_file(place.worktree.join(".git")).unwrap();
                git2::Repository::init(&place.worktree).unwrap();
            })
        }),
        (
            "foreign",
            "another repository",
            Box::new(move |place| fs::write(place.worktree.join(".git"), &foreign).unwrap()),
        ),
        ("entry", "points to, is gone", Box::new(move |place| fs::remove_dir_all(admin(place)).unwrap())),
        ("neighbours", "another one's entry", {
            Box::new(|place| {
                let other = fs::read(place.worktree.with_file_name("neighbour").join(".git")).unwrap();
                let new = place.worktree.join(".git-new");
                fs::write(&new, other).unwrap();
                fs::rename(new, place.worktree.join(".git")).unwrap();
            })
        }),
    ];
    for (name, words, break_it) in cases {
        let (place, watched) = bench.watched(&format!("trees/{name}")).await;
        break_it(&place);
        let what = alarm(&watched).await;
        assert!(what.contains(words), "{name}: {what}");
        // Who asks later is told too.
        assert_eq!(watched.broken().await.what, what);
    }
    quiet(&neighbour, QUIET).await;
    bench.end().await;
}

/// Directories above count too, and so does a deleted one in which the agent still stands.
#[tokio::test]
async fn what_happens_above_or_under_an_agent_is_noticed() {
    let bench = Bench::new().await;
    fs::create_dir_all(bench.path("a/b/c")).unwrap();
    let (_place, watched) = bench.watched("a/b/c/tree").await;
    fs::rename(bench.path("a/b"), bench.path("a/moved")).unwrap();
    assert!(alarm(&watched).await.contains("is gone"));
    let (place, watched) = bench.watched("occupied").await;
    let mut agent = crate::daemon::process::Process::new("sleep").arg("1000").dir(&place.worktree).into_std().unwrap();
    let mut agent = agent.spawn().unwrap();
    fs::remove_dir_all(&place.worktree).unwrap();
    assert!(alarm(&watched).await.contains("is gone"));
    agent.kill().unwrap();
    agent.wait().unwrap();
    let (_place, watched) = bench.watched("orphan").await;
    fs::rename(&bench.origin, bench.path("elsewhere")).unwrap();
    assert!(alarm(&watched).await.contains("is gone"));
    bench.end().await;
}

/// An agent may do what it likes in its worktree, and git may replace its files: no alarm. What breaks after that is noticed
/// all the same.
#[tokio::test]
async fn work_raises_no_alarm() {
    let bench = Bench::new().await;
    let (place, watched) = bench.watched("tree").await;
    let tree = &place.worktree;
    for n in 0..1_000 {
        fs::write(tree.join(format!("file-{n}")), "text").unwrap();
    }
    testing::commit(tree, &[("a/b/c", "text"), ("README.md", "changed\n")], "more").await;
    fs::remove_dir_all(tree.join("a")).unwrap();
    testing::run(tree, &["stash", "-q"]).await;
    testing::run(tree, &["checkout", "-q", "-b", "other", "HEAD~1"]).await;
    testing::run(tree, &["stash", "pop", "-q"]).await;
    testing::run(tree, &["reset", "-q", "--hard"]).await;
    testing::run(tree, &["gc", "-q"]).await;
    testing::run(tree, &["worktree", "repair"]).await;
    testing::run(tree, &["worktree", "add", "-q", "--detach", bench.path("second").to_str().unwrap()]).await;
    testing::run(tree, &["worktree", "remove", bench.path("second").to_str().unwrap()]).await;
    let file = tree.join(".git");
    let text = fs::read(&file).unwrap();
    // Replaced as a whole, taken away and put back, written in place, again and again.
    for _ in 0..50 {
        fs::write(tree.join(".git-new"), &text).unwrap();
        fs::rename(tree.join(".git-new"), &file).unwrap();
        fs::rename(&file, tree.join(".git-away")).unwrap();
        fs::rename(tree.join(".git-away"), &file).unwrap();
        fs::write(&file, &text).unwrap();
    }
    fs::rename(tree, bench.path("away")).unwrap();
    fs::rename(bench.path("away"), tree).unwrap();
    quiet(&watched, QUIET).await;
    fs::remove_file(&file).unwrap();
    assert!(alarm(&watched).await.contains(".git is gone"));
    bench.end().await;
}

/// More notices than the kernel keeps hide what breaks; it is found by looking everywhere.
#[tokio::test]
async fn lost_notices_are_made_up_for() {
    let bench = Bench::new().await;
    let (place, watched) = bench.watched("tree").await;
    let (loud, first) = bench.watched("loud").await;
    let (louder, second) = bench.watched("louder").await;
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let most: usize = most.trim().parse().unwrap();
    // Nothing here waits, so nothing is taken out of the queue. Two files in turn: the same notice twice is one.
    let open = |place: &Place| fs::File::options().write(true).open(place.worktree.join(".git")).unwrap();
    let (loud, louder) = (open(&loud), open(&louder));
    let then = std::time::UNIX_EPOCH + SWEEP;
    for _ in 0..most / 2 + 10 {
        loud.set_modified(then).unwrap();
        louder.set_modified(then).unwrap();
    }
    fs::remove_file(place.worktree.join(".git")).unwrap();
    assert!(alarm(&watched).await.contains(".git is gone"));
    quiet(&first, SETTLE).await;
    quiet(&second, SETTLE).await;
    bench.end().await;
}

/// Without inotify it takes a second or two.
#[tokio::test]
async fn without_notices_it_is_looked_at() {
    let bench = Bench::with(|| Err(io::ErrorKind::Unsupported.into())).await;
    let (place, watched) = bench.watched("tree").await;
    let (_, neighbour) = bench.watched("neighbour").await;
    fs::remove_dir_all(&place.worktree).unwrap();
    assert!(alarm(&watched).await.contains("is gone"));
    quiet(&neighbour, QUIET).await;
    bench.end().await;
}

/// What was broken before is told; what nobody wants watched is not listened to, and one more watched does not end the others.
#[tokio::test]
async fn watches_end_with_their_attempts() {
    let bench = Bench::new().await;
    let place = bench.worktree("gone").await;
    fs::remove_dir_all(&place.worktree).unwrap();
    assert!(alarm(&bench.watch.add(attempt(), &place)).await.contains("is gone"));

    let (mut watcher, watch) = watcher();
    let (one, two) = (bench.worktree("one").await, bench.worktree("two").await);
    let (first, second) = (watch.add(attempt(), &one), watch.add(attempt(), &two));
    watcher.take_changes();
    watcher.look().await;
    watcher.look().await;
    let listened = watcher.users.len();
    assert!(listened > 10 && watcher.seen.values().all(|seen| !seen.polled && seen.look_at.is_none()));
    drop(first);
    watcher.take_changes();
    let own = listened - watcher.users.len();
    // The worktree, its `.git` and its entry; what is above them is shared.
    assert_eq!((watcher.seen.len(), own), (1, 3));
    drop(second);
    watcher.take_changes();
    assert!(watcher.users.is_empty() && watcher.seen.is_empty());
    bench.end().await;
}

/// A watcher whose looks are called for here.
fn watcher() -> (Watcher, Watch) {
    let shared = Arc::new(Shared::default());
    let notices = Some(Notices::new().unwrap());
    let watcher = Watcher { shared: Arc::clone(&shared), notices, seen: BTreeMap::new(), users: HashMap::new() };
    (watcher, Watch(shared))
}

/// One bad look is a doubt, and what was only on its way is forgotten; the second in a row is the alarm.
#[tokio::test]
async fn a_doubt_is_no_alarm() {
    async fn look(watcher: &mut Watcher) {
        watcher.seen.values_mut().for_each(|seen| seen.look_at = Some(Instant::now()));
        watcher.look().await;
    }
    let bench = Bench::new().await;
    let place = bench.worktree("tree").await;
    let (mut watcher, watch) = watcher();
    let watched = watch.add(attempt(), &place);
    watcher.take_changes();
    let (file, away) = (place.worktree.join(".git"), place.worktree.join("away"));
    for _ in 0..2 {
        look(&mut watcher).await;
        fs::rename(&file, &away).unwrap();
        look(&mut watcher).await;
        let doubt = watcher.seen.values().next().expect("it is watched on");
        assert!(doubt.doubted && doubt.look_at.unwrap() > Instant::now() && watched.told.borrow().is_none());
        fs::rename(&away, &file).unwrap();
    }
    look(&mut watcher).await;
    fs::remove_file(&file).unwrap();
    look(&mut watcher).await;
    assert_eq!(*watched.told.borrow(), None);
    look(&mut watcher).await;
    assert!(
        watched.broken().await.what.contains(".git is gone") && watcher.seen.is_empty() && watcher.users.is_empty()
    );
    bench.end().await;
}

/// A worktree behind a link is watched where it really is.
#[tokio::test]
async fn links_are_followed() {
    let bench = Bench::new().await;
    fs::create_dir_all(bench.path("real/deep")).unwrap();
    symlink(bench.path("real/deep"), bench.path("link")).unwrap();
    let (_place, watched) = bench.watched("link/tree").await;
    fs::rename(bench.path("real"), bench.path("moved")).unwrap();
    assert!(alarm(&watched).await.contains("is gone"));
    bench.end().await;
}

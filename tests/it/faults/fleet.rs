//! One bad task, one bad disk, one bad repository: the fleet goes on.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use makima::wire::pb::{self, AttemptStatus, DaemonStatus, FailureClass, PendingReason, TaskStatus};

use super::stage::Stage;
use crate::harness::{
    DaemonOptions, Database, World,
    client::shell,
    eventually::{ensure, eventually},
    process,
};

/// A task kills every machine it is given to. After the third it is held, says so, and whatever else there is to do is done
/// by the machine that is left. Rows 21, 23, 27.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_kills_its_daemons_is_held_and_the_fleet_goes_on() {
    let mut stage = Stage::new(&[1]).await;
    let dir = stage.world.dir.display().to_string();
    // Daemon, shim and itself: the machine is gone.
    let kills =
        format!("m=${{PWD#*/daemon/}}; m=${{m%%/*}}; echo $m >> {dir}/killed; kill -9 $(cat {dir}/$m.pid) $PPID $$");
    let note = |stage: &mut Stage, at: usize| {
        let name = stage.machines[at].name.clone();
        let pid = stage.world.daemon(&name).pid();
        fs::write(stage.path(&format!("{name}.pid")), pid.to_string()).unwrap();
    };
    note(&mut stage, 0);
    let poison = shell("poison", &kills, &[]);
    let poison = stage.task(Duration::ZERO, pb::TaskSpec { priority: 10, ..poison }).await;
    for killed in 1..=3 {
        let is_killed = |stage: &Stage| stage.read("killed").lines().count() == killed;
        eventually("a machine is killed", || async { ensure(is_killed(&stage), || stage.read("killed")) }).await;
        // Nobody starts it again. The next one comes.
        let at = killed - 1;
        eventually("it is dead", || async {
            let left = stage.machines[at].processes();
            let left: Vec<_> = left.iter().filter(|found| found.is_alive()).collect();
            ensure(left.is_empty(), || format!("{left:?}"))
        })
        .await;
        let name = stage.machines[at].name.clone();
        stage.world.kill_daemon(&name);
        stage.daemon(at, "lost", |daemon| daemon.status() != DaemonStatus::Attached).await;
        // A machine that is there to be killed: its pid is known before it can be given anything.
        let next = super::machine::Machine::new(&stage.world, &format!("m{killed}"), 1).await;
        stage.world.launch_daemon_with(&next.name, next.options());
        stage.machines.push(next);
        note(&mut stage, killed);
    }
    let held = stage
        .sees("the task is held", &poison, |answer| {
            let task = answer.task.as_ref().unwrap();
            task.status() == TaskStatus::Pending && task.pending_reason() == PendingReason::Held
        })
        .await;
    let lost = held.attempts.iter().filter(|attempt| attempt.failure_class() == FailureClass::DaemonLost).count();
    assert_eq!((lost, held.attempts.len()), (3, 3), "{held:#?}");
    let explain = pb::ExplainTaskRequest { task_id: poison.clone() };
    let why = stage.client.tasks().explain_task(explain).await.unwrap().into_inner();
    assert!(why.summary.contains("3 daemons died"), "{why:#?}");
    let (_, others) =
        stage.contract(Duration::ZERO, vec![shell("a", "echo a > a", &[]), shell("b", "echo b > b", &["a"])]).await;
    let done = stage.until(&others[1].task_id, TaskStatus::Done).await;
    assert_eq!(done.daemon_name, "m3");
    assert_eq!(stage.read("killed").lines().count(), 3);
}

/// A disk of its own that can be filled: a small file system, where that may be mounted, else the machine's memory.
struct Disk {
    path: PathBuf,
    mounted: bool,
    _folder: tempfile::TempDir,
}

/// Bytes of the small one.
const DISK: u64 = 64 << 20;

impl Disk {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let options = format!("size={DISK}");
        if Self::run(&["mount", "-t", "tmpfs", "-o", &options, "makima-test", path.to_str().unwrap()]) {
            return Self { path, mounted: true, _folder: folder };
        }
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { folder };
        Self { path: folder.path().to_owned(), mounted: false, _folder: folder }
    }

    #[expect(clippy::disallowed_methods, reason = "the tests start their own processes")]
    fn run(words: &[&str]) -> bool {
        let mut command = std::process::Command::new(words[0]);
        command.args(&words[1..]).stderr(std::process::Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Leaves nothing of a disk that is ours alone. The machine's memory is not: it is left as it is.
    fn fill(&self, ballast: &Path) {
        let mut file = fs::File::create(ballast).unwrap();
        if !self.mounted {
            return;
        }
        let block = vec![0; 64 << 10];
        while io::Write::write_all(&mut file, &block).is_ok() {}
        while io::Write::write_all(&mut file, &block[..1]).is_ok() {}
        let stat = rustix::fs::statvfs(&self.path).unwrap();
        assert_eq!(stat.f_bavail, 0, "the disk is full");
    }

    /// Bytes free below which a daemon on it takes no work, and bytes that, written to it, leave less.
    fn floor_and_ballast(&self) -> (u64, u64) {
        let stat = rustix::fs::statvfs(&self.path).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        let margin = (free / 4).min(128 << 20);
        (free - margin, margin + margin / 2)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            Self::run(&["umount", "-l", self.path.to_str().unwrap()]);
        }
    }
}

/// A daemon whose disk is full says so and gets no work; when there is room again it does what had waited, without anybody's
/// help. Row 31.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_takes_work_again_when_it_has_room() {
    let disk = Disk::new();
    let mut world = World::start(Database::Sqlite).await;
    fs::create_dir(world.dir.join("daemon")).unwrap();
    symlink(&disk.path, world.daemon_state("d")).unwrap();
    let (floor, ballast) = disk.floor_and_ballast();
    let config = format!("[daemon.disk_floor]\nbytes = {floor}\npercent = 0\n");
    let file = fs::File::create(disk.path.join("ballast")).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, ballast).unwrap();
    world.server_args = ["--heartbeat-interval", "200ms", "--lost-after", "5s"].map(str::to_owned).to_vec();
    world.kill_server();
    world.start_server().await;
    world.start_daemon_with("d", DaemonOptions { config, ..DaemonOptions::default() }).await;
    let repo = world.repo("repo");
    let client = world.client();
    let task = client.create(&repo.url(), vec![shell("a", "echo a > a", &[])]).await.tasks[0].task_id.clone();
    eventually("it waits for room", || async {
        let task = client.task(&task).await.task.unwrap();
        ensure(task.pending_reason() == PendingReason::DaemonsNotAccepting, || format!("{task:#?}"))
    })
    .await;
    assert_eq!(client.task(&task).await.attempts, []);
    fs::remove_file(disk.path.join("ballast")).unwrap();
    drop(file);
    eventually("it is done", || async {
        let answer = client.task(&task).await;
        let task = answer.task.clone().unwrap();
        ensure((task.status(), task.attempt) == (TaskStatus::Done, 1), || format!("{answer:#?}"))
    })
    .await;
    world.kill_daemon("d");
    drop(process::sweep(&world.dir.join("daemon")));
}

/// An agent ends while there is not a byte left where its shim and its daemon write: its end is written down when there is
/// room again, and counts. Rows 13, 31.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_without_a_byte_loses_no_end() {
    let disk = Disk::new();
    let mut world = World::start(Database::Sqlite).await;
    fs::create_dir(world.dir.join("daemon")).unwrap();
    symlink(&disk.path, world.daemon_state("d")).unwrap();
    // What agents write is elsewhere: a disk that is full for them is for them to say.
    fs::create_dir(world.dir.join("worktrees")).unwrap();
    symlink(world.dir.join("worktrees"), disk.path.join("worktrees")).unwrap();
    let config = "[daemon.disk_floor]\nbytes = 0\npercent = 0\n".to_owned();
    world.start_daemon_with("d", DaemonOptions { config, ..DaemonOptions::default() }).await;
    let repo = world.repo("repo");
    let client = world.client();
    let dir = world.dir.display();
    let script = format!("echo x >> {dir}/starts; while [ ! -e {dir}/gate ]; do sleep 0.02; done; echo a > a");
    let task = client.create(&repo.url(), vec![shell("a", &script, &[])]).await.tasks[0].task_id.clone();
    world.file_appears(&world.dir.join("starts")).await;
    let ballast = disk.path.join("ballast");
    disk.fill(&ballast);
    fs::write(world.dir.join("gate"), "").unwrap();
    eventually("the agent has ended", || async {
        let left = world.agents();
        ensure(left.is_empty(), || format!("{left:?}"))
    })
    .await;
    assert!(world.daemon("d").is_running());
    fs::remove_file(ballast).unwrap();
    eventually("it is done", || async {
        let answer = client.task(&task).await;
        let task = answer.task.clone().unwrap();
        ensure((task.status(), task.attempt) == (TaskStatus::Done, 1), || format!("{answer:#?}"))
    })
    .await;
    assert_eq!(fs::read_to_string(world.dir.join("starts")).unwrap(), "x\n");
    world.kill_daemon("d");
    drop(process::sweep(&world.dir));
}

/// A repository that a daemon is to have at hand and that never answers delays neither its attaching nor its heartbeats nor
/// other work. Row 3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_never_answers_delays_nothing() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/repository.git", silent.local_addr().unwrap());
    let mut world = World::new(Database::Sqlite).await;
    world.server_args = ["--heartbeat-interval", "200ms", "--lost-after", "1s"].map(str::to_owned).to_vec();
    world.start_server().await;
    let config = format!("repositories = [{url:?}]\n");
    let attached = world.start_daemon_with("d", DaemonOptions { config, ..DaemonOptions::default() }).await;
    // git is there, and waits.
    let (_asks, _) = silent.accept().await.unwrap();
    let repo = world.repo("repo");
    let client = world.client();
    let specs = vec![shell("a", "sleep 1; echo a > a", &[]), shell("b", "sleep 1; echo b > b", &["a"])];
    let tasks = client.create(&repo.url(), specs).await.tasks;
    eventually("other work is done", || async {
        let task = client.task(&tasks[1].task_id).await.task.unwrap();
        ensure(task.status() == TaskStatus::Done, || format!("{task:#?}"))
    })
    .await;
    let daemons = client.daemon_list().await.unwrap();
    assert_eq!((daemons[0].session_epoch, daemons[0].status()), (attached.session_epoch, DaemonStatus::Attached));
}

/// A task that was cancelled while it waited for its next attempt has none, also when its time comes. Row 38.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_cancelled_in_its_backoff_does_not_run_again() {
    let stage = Stage::new(&[2]).await;
    let dir = stage.world.dir.display().to_string();
    let crashes = format!("echo x >> {dir}/runs; kill -9 $$");
    let task = stage.task(Duration::ZERO, shell("t", &crashes, &[])).await;
    stage
        .sees("it waits for its next attempt", &task, |answer| {
            answer.task.as_ref().unwrap().pending_reason() == PendingReason::Backoff
        })
        .await;
    let cancel = pb::CancelTaskRequest { task_id: task.clone(), ..Default::default() };
    stage.client.tasks().cancel_task(cancel).await.unwrap();
    stage.until(&task, TaskStatus::Cancelled).await;
    // Its time has come, and that of what comes after it.
    stage.server_clock(Duration::from_secs(600), false);
    let crashes = format!("echo y >> {dir}/other; [ $(wc -l < {dir}/other) -gt 1 ] || kill -9 $$");
    let other = stage.task(Duration::ZERO, shell("other", &crashes, &[])).await;
    stage.attempt(&other, 1, AttemptStatus::Ended).await;
    stage.server_clock(Duration::from_secs(1_200), false);
    let retry = pb::RetryTaskRequest { task_id: other.clone(), ..Default::default() };
    stage.client.tasks().retry_task(retry).await.unwrap();
    stage.until(&other, TaskStatus::Done).await;
    assert_eq!(stage.read("runs"), "x\n");
    assert_eq!(stage.client.task(&task).await.attempts.len(), 1);
}

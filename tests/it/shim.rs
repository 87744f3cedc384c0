//! The shim with real processes: what lives on, what dies, and what is written down.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use makima::{
    daemon::{
        attempt_dir::{AgentCommand, AttemptDir, EndReason, ExitRecord, Manifest, Place, Stdin, VERSION},
        repository::RepoRef,
        shim::{Adopted, Handle, ShimEnd},
        sweep,
    },
    domain::{AttemptId, AttemptRef, ContractId, TaskId, Timestamp, order::Spawn},
};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(60);

/// An attempt whose agent is a shell script.
struct Bench {
    state: tempfile::TempDir,
    dir: AttemptDir,
}

impl Bench {
    fn new(script: &str) -> Self {
        Self::with(script, |_| {})
    }

    fn with(script: &str, change: impl FnOnce(&mut Manifest)) -> Self {
        let state = tempfile::tempdir().unwrap();
        let worktree = state.path().join("worktree");
        fs::create_dir(&worktree).unwrap();
        let spawn = Spawn {
            contract: ContractId(Uuid::new_v4()),
            contract_name: "contract".into(),
            name: "task".into(),
            plan: script.into(),
            agent: "shell".into(),
            model: None,
            repository: String::new(),
            base_branch: String::new(),
            branch: "makima/1-task/1".into(),
            result_ref: "refs/makima/results/1".into(),
            dependencies: Vec::new(),
            setup_command: String::new(),
            setup_timeout: LONG,
            copy_files: Vec::new(),
            wall_time: None,
            grace: Duration::from_secs(5),
            parent: None,
            depth: 0,
            task_key: String::new(),
            contract_tasks: Vec::new(),
            checkpoint_every: Duration::ZERO,
            final_checkpoint: false,
            resume: None,
        };
        let attempt = AttemptRef { task: TaskId(Uuid::new_v4()), number: 1, id: AttemptId(Uuid::new_v4()) };
        let mut manifest = Manifest {
            version: VERSION,
            attempt,
            created: Timestamp(1),
            spawn,
            place: Some(Place {
                repo: RepoRef { repository: String::new(), git_dir: PathBuf::new(), cloned: false },
                worktree,
                branch: "makima/1-task/1".into(),
                base_commit: String::new(),
                shared: None,
                copied: Vec::new(),
                env: BTreeMap::new(),
            }),
            agent: Some(AgentCommand { program: "sh".into(), args: vec!["-eu".into()], ..AgentCommand::default() }),
            superseded: None,
            restored: None,
            is_older: false,
            rejected: false,
            moved_from: None,
        };
        let agent = manifest.agent.as_mut().unwrap();
        agent.stdin = Stdin::Plan;
        change(&mut manifest);
        let dir = AttemptDir::create(state.path(), &manifest).unwrap();
        Self { state, dir }
    }

    async fn start(&self) -> Handle {
        Handle::start(&self.dir, executable()).await.unwrap()
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.output()).unwrap_or_default()).into_owned()
    }

    /// Waits until the output has this.
    async fn see(&self, text: &str) {
        eventually(text, || self.output().contains(text)).await;
    }

    async fn nothing_is_left(&self) {
        assert!(!sweep::is_anything_alive(&self.dir.target().unwrap()).await.unwrap(), "something is alive");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Ok(target) = self.dir.target() {
            let _ = sweep::kill_all_blocking(&target, Duration::ZERO);
        }
    }
}

fn executable() -> Option<PathBuf> {
    Some(Path::new(env!("CARGO_BIN_EXE_makima")).to_owned())
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn ended(handle: &mut Handle) -> ExitRecord {
    match tokio::time::timeout(LONG, handle.wait()).await.expect("the end") {
        ShimEnd::Ended(record) => record,
        ShimEnd::ShimDied => panic!("the shim died"),
    }
}

fn kill_9(pid: i32) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}

/// An agent that goes on with earlier work reads its brief, and not the plan.
#[tokio::test]
async fn an_agent_reads_its_brief() {
    let bench = Bench::with("echo the plan", |manifest| manifest.agent.as_mut().unwrap().brief = true);
    bench.dir.save_brief("echo the brief").unwrap();
    let mut handle = bench.start().await;
    assert_eq!(ended(&mut handle).await.exit_code, Some(0));
    assert_eq!(bench.output(), "the brief\n");
}

/// A script runs to its end: its output, its exit code and its length are on record, and what it left in sessions of its own,
/// even without the marker in its environment, is gone.
#[tokio::test]
async fn a_script_ends_with_all_it_started() {
    let bench = Bench::new(
        "echo attempt $MAKIMA_ATTEMPT; pwd; setsid sleep 1000 &
         env -i setsid sh -c 'echo $$ > pid.new; mv pid.new pid; sleep 1000; :' &
         until [ -e pid ]; do sleep 0.01; done; echo oops >&2; exit 7",
    );
    let mut handle = bench.start().await;
    let record = ended(&mut handle).await;
    assert_eq!((record.exit_code, record.signal, record.reason), (Some(7), 0, EndReason::Exited));
    let attempt = bench.dir.manifest().unwrap().attempt;
    let worktree = bench.state.path().join("worktree");
    assert_eq!(bench.output(), format!("attempt {}\n{}\noops\n", attempt.id, worktree.display()));
    assert_eq!(record.output_bytes, bench.output().len() as u64);
    assert_eq!(bench.dir.exit().unwrap().unwrap().attempt, attempt);
    bench.nothing_is_left().await;
    let hidden = fs::read_to_string(worktree.join("pid")).unwrap().trim().parse().unwrap();
    assert_eq!(sweep::find(hidden), None, "a process without the marker is alive");
    assert!(matches!(Handle::adopt(&bench.dir).await.unwrap(), Adopted::Ended(_)));
}

/// The daemon goes and comes back: the shim is adopted, the agent has not noticed, the output has neither gap nor repetition.
#[tokio::test]
async fn a_living_shim_is_adopted() {
    let bench = Bench::new("i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; sleep 0.01; done");
    let handle = bench.start().await;
    bench.see("line 5\n").await;
    let agent = handle.started().agent_pid;
    drop(handle);
    let Adopted::Alive(mut handle) = Handle::adopt(&bench.dir).await.unwrap() else { panic!("not alive") };
    assert_eq!(handle.started().agent_pid, agent);
    // A wait that is dropped is taken up again.
    assert!(tokio::time::timeout(Duration::from_millis(50), handle.wait()).await.is_err());
    let record = ended(&mut handle).await;
    assert_eq!(record.exit_code, Some(0));
    assert_eq!(bench.output(), (1..=300).map(|i| format!("line {i}\n")).collect::<String>());
}

/// kill -9 of the shim: the agent dies with it, the daemon notices at once, and a sweep ends what the agent had started.
#[tokio::test]
async fn a_dead_shim_takes_its_agent_along() {
    let bench = Bench::new("setsid sleep 1000 & sleep 1000 & echo up; wait");
    let mut handle = bench.start().await;
    bench.see("up\n").await;
    kill_9(handle.started().shim_pid);
    assert_eq!(tokio::time::timeout(LONG, handle.wait()).await.expect("the end"), ShimEnd::ShimDied);
    let agent = handle.started().agent_pid;
    eventually("the agent's death", || sweep::find(agent).is_none()).await;
    assert!(matches!(Handle::adopt(&bench.dir).await.unwrap(), Adopted::Gone { started: true }));
    let target = bench.dir.target().unwrap();
    assert!(sweep::is_anything_alive(&target).await.unwrap());
    assert!(sweep::kill_all(&target, Duration::from_secs(5)).await.unwrap() >= 2);
    bench.nothing_is_left().await;
    assert!(Handle::start(&bench.dir, executable()).await.is_err(), "an agent is started once");
}

/// A wall time that has passed ends the agent, and is the reason on record.
#[tokio::test]
async fn wall_time_ends_an_agent() {
    let bench = Bench::with("echo up; sleep 1000", |manifest| {
        manifest.spawn.wall_time = Some(Duration::from_millis(300));
    });
    let mut handle = bench.start().await;
    let record = ended(&mut handle).await;
    assert_eq!((record.reason, record.signal), (EndReason::Timeout, 15));
    bench.nothing_is_left().await;
}

/// An agent that does not hear TERM is killed after the grace; one that does may end in its own way.
#[tokio::test]
async fn terminate_is_asked_for_then_insisted_on() {
    let deaf = Bench::new("trap '' TERM; echo up; while :; do sleep 0.05; done");
    let polite = Bench::new("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done");
    for (bench, expected) in [(&deaf, (None, 9)), (&polite, (Some(3), 0))] {
        let mut handle = bench.start().await;
        bench.see("up\n").await;
        handle.terminate(Duration::from_millis(if expected.1 == 9 { 300 } else { 30_000 })).await;
        let record = ended(&mut handle).await;
        assert_eq!((record.exit_code, record.signal), expected);
        assert_eq!(record.reason, EndReason::Terminated);
        bench.nothing_is_left().await;
    }
    assert!(polite.output().ends_with("bye\n"));
}

/// A stopped shim cannot end its agent when asked: `end` does it all the same.
#[tokio::test]
async fn a_shim_that_does_not_react_is_killed() {
    let bench = Bench::new("echo up; sleep 1000");
    let mut handle = bench.start().await;
    bench.see("up\n").await;
    let shim = rustix::process::Pid::from_raw(handle.started().shim_pid).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::STOP).unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(handle.end(Duration::ZERO).await, ShimEnd::ShimDied);
    assert!(begun.elapsed() < LONG);
    sweep::kill_all(&bench.dir.target().unwrap(), Duration::ZERO).await.unwrap();
    bench.nothing_is_left().await;
}

/// A program that is not there is an end with a reason, not a crash.
#[tokio::test]
async fn an_agent_that_is_not_installed_says_so() {
    let bench = Bench::with("", |manifest| {
        manifest.agent.as_mut().unwrap().program = "no-such-agent".into();
    });
    let mut handle = bench.start().await;
    let EndReason::StartFailed { message } = ended(&mut handle).await.reason else { panic!("started") };
    assert!(message.contains("no-such-agent"), "{message}");
}

/// Where no shim came to life one may be started; where one did, never again; a shim nobody asked for does nothing.
#[tokio::test]
async fn an_agent_is_started_once() {
    let bench = Bench::new("echo once");
    assert!(matches!(Handle::adopt(&bench.dir).await.unwrap(), Adopted::Gone { started: false }));
    let stray = tokio::task::spawn_blocking({
        let dir = bench.dir.path().to_owned();
        #[expect(clippy::disallowed_methods, reason = "the test plays a shim that comes too late")]
        move || std::process::Command::new(env!("CARGO_BIN_EXE_makima")).arg("shim").arg(dir).output().unwrap()
    });
    let stray = stray.await.unwrap();
    assert!(!stray.status.success());
    assert_eq!(ended(&mut bench.start().await).await.exit_code, Some(0));
    assert!(Handle::start(&bench.dir, executable()).await.is_err());
    assert_eq!(bench.output(), "once\n");
}

/// An agent with a pipe reads what is sent to it, across a change of daemons, and the end when it is sent.
#[tokio::test]
async fn input_reaches_the_agent() {
    let bench = Bench::with("", |manifest| {
        let agent = manifest.agent.as_mut().unwrap();
        (agent.program, agent.args, agent.stdin) = ("cat".into(), Vec::new(), Stdin::Pipe);
    });
    let mut handle = bench.start().await;
    handle.input(b"one\n", false).await.unwrap();
    bench.see("one\n").await;
    drop(handle);
    let Adopted::Alive(mut handle) = Handle::adopt(&bench.dir).await.unwrap() else { panic!("not alive") };
    let long = "x".repeat(200_000);
    handle.input(long.as_bytes(), true).await.unwrap();
    assert_eq!(ended(&mut handle).await.exit_code, Some(0));
    assert_eq!(bench.output(), format!("one\n{long}"));
}

/// The daemon's own secrets and git's repository variables do not reach an agent, which is a worse oom candidate.
#[tokio::test]
async fn the_agents_environment_is_clean() {
    let bench = Bench::with("env; cat /proc/self/oom_score_adj", |manifest| {
        manifest.agent.as_mut().unwrap().env.insert("MAKIMA_TASK_KEY".into(), "mk_task".into());
    });
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    ended(&mut bench.start().await).await;
    let output = bench.output();
    let ours: Vec<_> = output.lines().filter(|line| line.starts_with("MAKIMA_")).map(|l| l.split('=').next()).collect();
    assert_eq!(ours.len(), 2, "{ours:?}");
    let score: i32 = output.lines().last().unwrap().parse().unwrap();
    assert_eq!(score, (own + 500).min(1000));
}

//! Processes of a test: the real binary with its output in a file, killed and started again at will; and everything that
//! descends from it, found by the world's directory, which each of them carries in its environment, arguments or working
//! directory. Shims and agents leave their parents on purpose, so nothing else finds them all.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use rand::RngExt as _;
use rustix::process::{Pid, Signal};

use super::eventually::{DEADLINE, eventually};

/// Lines of a log that are printed when a test fails.
const LOG_LINES: usize = 200;
/// How long processes may take to die of SIGKILL.
const SWEEP_DEADLINE: Duration = Duration::from_secs(10);
/// Ports for servers: below what port 0 draws from, so that nobody takes one between two lives of a server, and beside
/// those of `postgres.sh`.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// The binary under test.
pub fn makima() -> &'static str {
    env!("CARGO_BIN_EXE_makima")
}

/// A port that is free now and that no other test of this process will be given.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut given = GIVEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for _ in 0..10_000 {
        let port = rand::rng().random_range(PORTS);
        if !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            given.push(port);
            return port;
        }
    }
    panic!("no free port in {PORTS:?}");
}

/// A command with an empty environment but for what every process of a test gets: a home of its own inside the world, no
/// git identity, and the PATH.
#[expect(clippy::disallowed_methods, reason = "the tests start their own processes")]
pub fn command(program: &str, home: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()))
        .env("HOME", home)
        .env("LANG", "C.UTF-8")
        .env("RUST_BACKTRACE", "1")
        .env(
            "MAKIMA_LOG",
            std::env::var("MAKIMA_LOG").unwrap_or_else(|_| "info,makima=debug,makima::daemon::process=info".to_owned()),
        );
    // Where coverage or a loader needs them.
    for kept in ["LLVM_PROFILE_FILE", "LD_LIBRARY_PATH", "TMPDIR"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command
}

/// A program that is started, killed and started again, with one log for all its lives.
#[derive(Debug)]
pub struct Program {
    /// For messages, and the name of the log.
    pub name: String,
    /// Where its output goes.
    pub log: PathBuf,
    child: Option<Child>,
}

impl Program {
    /// One that does not run yet.
    pub fn new(name: &str, logs: &Path) -> Self {
        fs::create_dir_all(logs).expect("make the folder for logs");
        Self { name: name.to_owned(), log: logs.join(format!("{name}.log")), child: None }
    }

    /// Starts it.
    pub fn start(&mut self, mut command: Command) {
        assert!(!self.is_running(), "{} runs already", self.name);
        let mut log = fs::OpenOptions::new().create(true).append(true).open(&self.log).expect("open the log");
        writeln!(log, "==== {} starts: {command:?}", self.name).expect("write the log");
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.name));
        self.child = Some(child);
    }

    /// It runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)).id()
    }

    /// Its process id, if it was started and not seen to end.
    pub fn try_pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A program that has ended already is as dead.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process(pid(self.pid()), signal);
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        tail(&self.output())
    }

    /// Asks it to stop with SIGTERM and waits until it has.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.exit().await
    }

    /// Waits until it has ended.
    pub async fn exit(&mut self) -> ExitStatus {
        let what = format!("{} has ended", self.name);
        let mut child = self.child.take().unwrap_or_else(|| panic!("{} does not run", self.name));
        let start = Instant::now();
        loop {
            match child.try_wait().expect("wait for a child") {
                Some(status) => return status,
                None if start.elapsed() > DEADLINE => {
                    let _ = child.kill();
                    panic!("{what}: not within {DEADLINE:?}");
                }
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Everything it has written, over all its lives.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until its output holds `text`, and fails at once when it has ended without.
    pub async fn says(&mut self, text: &str) {
        let what = format!("{} says {text:?}", self.name);
        eventually(&what, || {
            let said = self.output();
            let running = self.is_running();
            async move {
                if said.contains(text) {
                    return Ok(());
                }
                assert!(running, "it has ended without saying {text:?}:\n{}", tail(&said));
                Err(tail(&said))
            }
        })
        .await;
    }

    /// The end of its log, for a person whose test has failed.
    pub fn print_log(&self) {
        eprintln!("---- log of {} ({})\n{}", self.name, self.log.display(), tail(&self.output()));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a log.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// A process of this machine that belongs to a world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub pid: u32,
    /// Its arguments, joined with spaces.
    pub arguments: String,
}

impl Found {
    /// It is a shim.
    pub fn is_shim(&self) -> bool {
        self.arguments.split(' ').nth(1) == Some("shim")
    }

    /// `kill -9`.
    pub fn kill(&self) {
        let _ = rustix::process::kill_process(pid(self.pid), Signal::KILL);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process(pid(self.pid), signal);
    }

    /// It is there and not a zombie.
    pub fn is_alive(&self) -> bool {
        is_alive(self.pid)
    }

    /// A variable of its environment.
    pub fn variable(&self, name: &str) -> Option<String> {
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        let variable = environment
            .split(|byte| *byte == 0)
            .find_map(|variable| variable.strip_prefix(name.as_bytes()).and_then(|value| value.strip_prefix(b"=")))?;
        Some(String::from_utf8_lossy(variable).into_owned())
    }
}

/// The children of a process.
pub fn children_of(parent: u32) -> Vec<Found> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let ours = pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name may hold anything; after it come state and parent.
        let fields = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
        fields.split(' ').nth(1).and_then(|field| field.parse().ok()) == Some(parent)
    });
    ours.map(|pid| Found { pid, arguments: String::new() }).collect()
}

/// Every live process that carries the folder in its arguments, environment or working directory.
pub fn processes_of(folder: &Path) -> Vec<Found> {
    let mark = folder.to_str().expect("temp dirs have plain names").as_bytes();
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&pid| pid != own && is_alive(pid))
        .filter_map(|pid| {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            let arguments = fs::read(proc.join("cmdline")).unwrap_or_default();
            let environment = fs::read(proc.join("environ")).unwrap_or_default();
            let cwd = fs::read_link(proc.join("cwd")).unwrap_or_default();
            let found = contains(&arguments, mark) || contains(&environment, mark) || cwd.starts_with(folder);
            let arguments = String::from_utf8_lossy(&arguments).trim_end_matches('\0').replace('\0', " ");
            found.then_some(Found { pid, arguments })
        })
        .collect()
}

/// Kills them all, until a look finds none. Answers those that would not die.
pub fn sweep(folder: &Path) -> Vec<Found> {
    let start = Instant::now();
    loop {
        let left = processes_of(folder);
        if left.is_empty() || start.elapsed() > SWEEP_DEADLINE {
            return left;
        }
        left.iter().for_each(Found::kill);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The folder in which all worlds of this test process live. A guardian, which holds nothing but the other end of a pipe,
/// kills what carries it and removes it when this process is gone, should that be by kill -9.
pub fn base() -> &'static Path {
    static BASE: OnceLock<(PathBuf, ChildStdin)> = OnceLock::new();
    let (path, _) = BASE.get_or_init(|| {
        // Short, because sockets live in it.
        let temp = tempfile::Builder::new().prefix("mk-").tempdir().expect("make a temp dir");
        let path = temp.path().canonicalize().expect("the temp dir is there");
        let lifeline = guard(&path);
        // From here on it is the guardian's.
        let _ = temp.keep();
        (path, lifeline)
    });
    path
}

/// What the guardian does: waits for the end of its input, then kills until a look finds none, and removes the folder unless
/// a world in it was to be kept. It reads what to look for instead of having it as an argument, where it would find itself.
const GUARD: &str = r#"
trap '' INT TERM HUP PIPE
cd /
read -r folder
read -r keep
cat >/dev/null
try=0
while [ $try -lt 100 ]; do
    try=$((try + 1))
    found=
    for proc in /proc/[0-9]*; do
        grep -qsF "$folder" "$proc/cmdline" "$proc/environ" && found="$found ${proc#/proc/}"
    done
    [ -n "$found" ] || break
    kill -KILL $found 2>/dev/null
    sleep 0.1
done
[ "$keep" = yes ] || rm -rf "$folder"
"#;

#[expect(clippy::disallowed_methods, reason = "the tests start their own processes")]
#[expect(clippy::zombie_processes, reason = "it ends after us")]
pub(super) fn guard(folder: &Path) -> ChildStdin {
    let mut guardian = Command::new("/bin/sh")
        .args(["-c", GUARD])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("start the guardian");
    let mut lifeline = guardian.stdin.take().expect("a pipe");
    let keep = if keeps() { "yes" } else { "no" };
    writeln!(lifeline, "{}\n{keep}", folder.display()).expect("tell the guardian what to do");
    lifeline
}

/// `MAKIMA_TEST_KEEP` is set: the folders of worlds stay.
pub fn keeps() -> bool {
    std::env::var_os("MAKIMA_TEST_KEEP").is_some()
}

/// It is there and not a zombie.
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        // The name before it may hold anything, a closing bracket too.
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

fn pid(number: u32) -> Pid {
    i32::try_from(number).ok().and_then(Pid::from_raw).expect("a process id")
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

//! The demo's processes: a server and daemons, each with its log, all of which stop when this process does.

use std::{
    fs,
    future::Future,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    super::{
        error::{Error, Result},
        output::{clean, note},
        serve::LISTENING,
    },
    CLEARED, DAEMONS,
};

/// Longer than any machine needs to start a process; waiting ends with a message.
pub const START_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks.
pub const LOOK: Duration = Duration::from_millis(20);
/// A process that has been asked to stop is killed after this.
pub const STOP_DEADLINE: Duration = Duration::from_secs(12);
/// Lines of each log that are printed when it went wrong.
const LOG_LINES: usize = 20;

/// All of them, below one directory.
pub struct Processes {
    /// The demo's directory.
    pub dir: PathBuf,
    running: Vec<Process>,
}

/// One of our own, with its log.
struct Process {
    name: String,
    child: Child,
    // Dropping it asks the process to stop.
    stdin: Option<ChildStdin>,
}

impl Processes {
    /// None yet.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, running: Vec::new() }
    }

    /// Starts the server at an address, or on a free port, and answers where it listens.
    pub async fn start_server(&mut self, listen: &str) -> Result<String> {
        let mut command = self.command(&["server"])?;
        command.args(["--listen", listen, "--state-dir"]).arg(self.dir.join("server")).stdout(Stdio::piped());
        let process = self.spawn("server", command)?;
        let Some(stdout) = process.child.stdout.take() else {
            return Err(Error::failed("the server has no output"));
        };
        // Its first line says where it listens. Reading blocks, so it is done beside.
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(START_DEADLINE, line).await;
        let line = line.ok().and_then(std::result::Result::ok).and_then(std::result::Result::ok).unwrap_or_default();
        line.strip_prefix(LISTENING)
            .map(|url| url.trim().to_owned())
            .ok_or_else(|| Error::failed("the server did not start"))
    }

    /// Starts a daemon.
    pub fn start_daemon(&mut self, name: &str, server: &str) -> Result<()> {
        let mut command = self.command(&["daemon", "run"])?;
        command
            .args(["--name", name, "--slots", "2", "--server", server, "--key-file"])
            .arg(self.dir.join("server/daemon.key"))
            .arg("--state-dir")
            .arg(self.dir.join(name))
            .stdout(Stdio::null());
        self.spawn(name, command)?;
        Ok(())
    }

    /// This program again, told nothing by the person's configuration and environment.
    #[expect(
        clippy::disallowed_methods,
        reason = "not an agent: our own processes, which must not inherit their setup"
    )]
    fn command(&self, subcommand: &[&str]) -> Result<Command> {
        let program = std::env::current_exe().map_err(Error::io("find this program"))?;
        let mut command = Command::new(program);
        command.args(subcommand).arg("--stop-on-eof").arg("--config").arg(self.dir.join("config.toml"));
        for name in CLEARED {
            command.env_remove(name);
        }
        // Ctrl-C is for this process, which then stops the others in order.
        command.current_dir(&self.dir).stdin(Stdio::piped()).process_group(0);
        Ok(command)
    }

    fn spawn(&mut self, name: &str, mut command: Command) -> Result<&mut Process> {
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.log(name)).map_err(Error::io("make a log"))?;
        let mut child = command.stderr(log).spawn().map_err(Error::io(format!("start {name}")))?;
        let stdin = child.stdin.take();
        self.running.push(Process { name: name.to_owned(), child, stdin });
        let last = self.running.len() - 1;
        Ok(&mut self.running[last])
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// Looks until it is there.
    pub async fn wait_for<T, F: Future<Output = Result<T>>>(&mut self, what: &str, look: impl Fn() -> F) -> Result<T> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let why = match look().await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            self.all_alive()?;
            if Instant::now() > deadline {
                let secs = START_DEADLINE.as_secs();
                return Err(Error::failed(format!("{what} did not come up within {secs} s: {why}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// None has ended by itself.
    pub fn all_alive(&mut self) -> Result<()> {
        for process in &mut self.running {
            if let Ok(Some(status)) = process.child.try_wait() {
                return Err(Error::failed(format!("{} has ended ({status})", process.name)));
            }
        }
        Ok(())
    }

    /// Kills one (SIGKILL), and answers when it is dead.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.running.iter().position(|process| process.name == name);
        let Some(mut process) = at.map(|at| self.running.remove(at)) else {
            return Err(Error::failed(format!("{name} does not run")));
        };
        process.child.kill().and_then(|()| process.child.wait()).map_err(Error::io(format!("kill {name}")))?;
        Ok(())
    }

    /// Stops them in order: daemons, then the server.
    pub async fn stop(&mut self) {
        while let Some(mut process) = self.running.pop() {
            drop(process.stdin.take());
            let deadline = Instant::now() + STOP_DEADLINE;
            while Instant::now() < deadline && matches!(process.child.try_wait(), Ok(None)) {
                tokio::time::sleep(LOOK).await;
            }
            if matches!(process.child.try_wait(), Ok(None)) {
                note(&format!("{} does not stop; killing it", process.name));
                let _ = process.child.kill();
            }
            let _ = process.child.wait();
        }
    }

    /// The ends of their logs, for whoever asks why it went wrong.
    pub fn print_logs(&self) {
        for name in ["server"].iter().chain(&DAEMONS) {
            let Ok(log) = fs::read_to_string(self.log(name)) else { continue };
            let lines: Vec<&str> = log.lines().collect();
            note(&format!("--- the end of {name}'s log"));
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                note(&clean(line));
            }
        }
    }
}

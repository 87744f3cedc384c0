//! The one place that starts processes, so that logging, environment and limits are in one place too.
//!
//! ```text
//!   Process::new("git").arg(..).dir(..) ── run(timeout) ──> Output        a group of its own, killed on timeout and on drop
//!                                       ├─ spawn() ───────> Child         lives on by itself (the shim)
//!                                       └─ into_std() ────> Command       for the shim, which has no tokio
//! ```
//!
//! Promises: no process started by [`Process::run`] outlives it (unless [`Process::keep_background`] says so), none takes
//! more memory here than [`MAX_STDOUT`] and [`MAX_STDERR`], and none inherits what would make git look at another repository
//! or Claude Code think that it runs inside itself. What identifies a person to git and to its transports is inherited.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tracing::Instrument as _;

/// Bytes of standard output kept, from its beginning: the list of all files of a very large repository fits.
pub const MAX_STDOUT: usize = 64 * 1024 * 1024;
/// Bytes of standard error kept, from its end, where the reason is.
pub const MAX_STDERR: usize = 64 * 1024;
/// How long output is still read after the process has ended, in case something it started holds the pipe open.
const DRAIN: Duration = Duration::from_secs(1);
/// Bytes of a message that quotes output.
const MAX_QUOTE: usize = 2_000;

/// Variables of git that are about the person and the network, not about a repository.
const GIT_KEPT: &[&str] = &[
    "GIT_ALLOW_PROTOCOL",
    "GIT_ASKPASS",
    "GIT_AUTHOR_EMAIL",
    "GIT_AUTHOR_NAME",
    "GIT_COMMITTER_EMAIL",
    "GIT_COMMITTER_NAME",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_CONFIG_SYSTEM",
    "GIT_EXEC_PATH",
    "GIT_HTTP_LOW_SPEED_LIMIT",
    "GIT_HTTP_LOW_SPEED_TIME",
    "GIT_HTTP_PROXY_AUTHMETHOD",
    "GIT_HTTP_USER_AGENT",
    "GIT_PROXY_COMMAND",
    "GIT_PROXY_SSL_CAINFO",
    "GIT_PROXY_SSL_CERT",
    "GIT_PROXY_SSL_KEY",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_SSH_VARIANT",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
    "GIT_SSL_CERT",
    "GIT_SSL_KEY",
    "GIT_SSL_NO_VERIFY",
    "GIT_TEMPLATE_DIR",
];

/// What Claude Code tells its children: with it, another one believes that it runs inside a session.
const CLAUDE_REMOVED: &[&str] =
    &["CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_EXECPATH", "CLAUDE_CODE_SESSION_ID", "CLAUDE_CODE_SSE_PORT"];

/// A process to be started: what, where, with which environment, and what bounds it.
#[derive(Debug)]
pub struct Process {
    program: PathBuf,
    args: Vec<OsString>,
    dir: Option<PathBuf>,
    env: Vec<(OsString, Option<OsString>)>,
    stdin: Vec<u8>,
    stdin_file: Option<File>,
    stdout_file: Option<File>,
    output: Option<File>,
    keep_background: bool,
    tidies_up: bool,
}

/// What a process left.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// Exit code, if it exited by itself.
    pub code: Option<i32>,
    /// Signal that ended it; 0 for none.
    pub signal: u32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// There was more of it than [`MAX_STDOUT`].
    pub truncated: bool,
    /// The end of its standard error.
    pub stderr: Vec<u8>,
}

/// Why a process gave no output.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Talking with it failed.
    #[error("talk to `{program}`")]
    Talk {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long; its group has been killed.
    #[error("`{program}` took longer than {}", humantime::format_duration(*after))]
    Timeout {
        /// The program.
        program: String,
        /// What it had.
        after: Duration,
    },
}

impl Process {
    /// Of this program, looked for in PATH.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            dir: None,
            env: Vec::new(),
            stdin: Vec::new(),
            stdin_file: None,
            stdout_file: None,
            output: None,
            keep_background: false,
            tidies_up: false,
        }
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// With more arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// In this directory.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().to_owned());
        self
    }

    /// With this variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), Some(value.into())));
        self
    }

    /// With these variables.
    #[must_use]
    pub fn envs<N: Into<OsString>, V: Into<OsString>>(mut self, all: impl IntoIterator<Item = (N, V)>) -> Self {
        self.env.extend(all.into_iter().map(|(name, value)| (name.into(), Some(value.into()))));
        self
    }

    /// Without this variable.
    #[must_use]
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.env.push((name.into(), None));
        self
    }

    /// Without the variables that tell a makima process who it is and which key it has: what runs for a task gets its own.
    #[must_use]
    pub fn without_makima(mut self) -> Self {
        let ours = std::env::vars_os().map(|(name, _)| name).filter(|name| starts_with(name, "MAKIMA_"));
        self.env.extend(ours.map(|name| (name, None)));
        self
    }

    /// With this on its standard input; otherwise that is empty.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// With this file, from where it stands, on its standard input: more than fits into memory.
    #[must_use]
    pub fn stdin_from(mut self, file: File) -> Self {
        self.stdin_file = Some(file);
        self
    }

    /// Writes standard output straight to this file, from where it stands; standard error is captured as ever.
    #[must_use]
    pub fn stdout_to(mut self, file: File) -> Self {
        self.stdout_file = Some(file);
        self
    }

    /// Writes standard output and standard error straight to this file; nothing is captured.
    #[must_use]
    pub fn output_to(mut self, file: File) -> Self {
        self.output = Some(file);
        self
    }

    /// Leaves what it started in the background alive, once it has ended by itself.
    #[must_use]
    pub fn keep_background(mut self) -> Self {
        self.keep_background = true;
        self
    }

    /// It takes back what it has half made when it is asked to end (TERM), which is what it is when nobody waits for it any more.
    #[must_use]
    pub(super) fn tidies_up(mut self) -> Self {
        self.tidies_up = true;
        self
    }

    /// The directory that it is to run in, if that was said.
    pub(super) fn directory(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// Runs it in a process group of its own and answers its output. The group is killed when `timeout` has passed, when
    /// the future is dropped (see [`Self::tidies_up`]), and when the process has ended and left something behind.
    pub async fn run(self, timeout: Duration) -> Result<Output, Error> {
        let program = self.program.display().to_string();
        let span = tracing::debug_span!("process", program);
        async {
            let begun = Instant::now();
            // Apart, because whoever runs a process would otherwise hold all of this twice over.
            let output = Box::pin(self.run_to_end(program, timeout)).await;
            let code = output.as_ref().ok().and_then(|output| output.code);
            let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::debug!(code, took_ms, "a process has ended");
            output
        }
        .instrument(span)
        .await
    }

    async fn run_to_end(mut self, program: String, timeout: Duration) -> Result<Output, Error> {
        let talk = |source| Error::Talk { program: program.clone(), source };
        let stdin = std::mem::take(&mut self.stdin);
        let (stdin_file, stdout_file) = (self.stdin_file.take(), self.stdout_file.take());
        let captured = self.output.is_none();
        let keep_background = self.keep_background;
        let on_drop = if self.tidies_up { Signal::TERM } else { Signal::KILL };
        let mut command = self.into_tokio().map_err(talk)?;
        command.process_group(0).kill_on_drop(on_drop == Signal::KILL);
        command.stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
        if captured {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        if let Some(file) = stdin_file {
            command.stdin(file);
        }
        if let Some(file) = stdout_file {
            command.stdout(file);
        }
        let mut child = command.spawn().map_err(|source| Error::Start { program: program.clone(), source })?;
        let mut group = Group::of(&child, on_drop);
        let (mut input, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (mut out, mut err) = (Capture::head(MAX_STDOUT), Capture::tail(MAX_STDERR));
        let ended = {
            let write = async {
                if let Some(mut pipe) = input.take() {
                    // A process that does not read its input is no failure of ours: its exit code tells.
                    let _ = pipe.write_all(&stdin).await;
                }
            };
            let talking = async { tokio::join!(write, out.read(stdout), err.read(stderr)) };
            let mut talking = std::pin::pin!(talking);
            let work = async {
                let mut done = false;
                loop {
                    tokio::select! {
                        _ = &mut talking, if !done => done = true,
                        status = child.wait() => {
                            if !done {
                                let _ = tokio::time::timeout(DRAIN, &mut talking).await;
                            }
                            return status;
                        }
                    }
                }
            };
            tokio::time::timeout(timeout, work).await
        };
        group.signal = Signal::KILL;
        let Ok(status) = ended else {
            drop(group);
            return Err(Error::Timeout { program, after: timeout });
        };
        if keep_background {
            group.spare();
        }
        let status: ExitStatus = status.map_err(talk)?;
        Ok(Output {
            code: status.code(),
            signal: status.signal().map_or(0, i32::unsigned_abs),
            truncated: out.lost,
            stdout: out.bytes,
            stderr: err.bytes,
        })
    }

    /// Starts it with its output in a pipe and lets it go: it is reaped when it ends, and lives on when this process ends.
    pub(super) fn spawn(self, stderr: File) -> Result<tokio::process::Child, Error> {
        let program = self.program.display().to_string();
        let start = |source| Error::Start { program: program.clone(), source };
        let mut command = self.into_tokio().map_err(start)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        command.spawn().map_err(|source| Error::Start { program: program.clone(), source })
    }

    /// The same as a plain command, for the shim, which has no runtime to wait in.
    #[expect(clippy::disallowed_methods, reason = "this is the place the lint sends everybody to")]
    pub(super) fn into_std(self) -> io::Result<std::process::Command> {
        tracing::debug!(program = %self.program.display(), args = ?redacted(&self.args), dir = ?self.dir, "starting a process");
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        for (name, _) in std::env::vars_os() {
            if starts_with(&name, "GIT_") && !GIT_KEPT.iter().any(|kept| name == *kept) {
                command.env_remove(name);
            }
        }
        for name in CLAUDE_REMOVED {
            command.env_remove(name);
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(file) = self.output {
            command.stdout(file.try_clone()?).stderr(file);
        }
        Ok(command)
    }

    fn into_tokio(self) -> io::Result<tokio::process::Command> {
        Ok(self.into_std()?.into())
    }
}

impl Output {
    /// It exited with 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Standard output as text, without the last line break.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// What it complained of, short enough for a message: standard error, or else the end of standard output.
    pub fn complaint(&self) -> String {
        let err = String::from_utf8_lossy(&self.stderr);
        let text = if err.trim().is_empty() { String::from_utf8_lossy(&self.stdout) } else { err };
        let text = last_bytes(text.trim(), MAX_QUOTE);
        match (text.is_empty(), self.code) {
            (false, _) => text.to_owned(),
            (true, Some(code)) => format!("exit code {code}"),
            (true, None) => format!("ended by signal {}", self.signal),
        }
    }
}

/// The end of a text, at most so many bytes, cut between characters.
pub(super) fn last_bytes(text: &str, most: usize) -> &str {
    let from = text.len().saturating_sub(most);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    &text[from..]
}

/// Whether a program is there: a path, or a name found in PATH.
pub fn is_installed(program: &str) -> bool {
    find_program(program).is_some()
}

/// Where a program is: a path, or a name found in PATH.
pub fn find_program(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let runs = |path: &Path| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| runs(path));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| runs(path))
}

/// Arguments for the log: without the passwords that people put into URLs.
fn redacted(args: &[OsString]) -> Vec<String> {
    args.iter().map(|arg| redact_url(&arg.to_string_lossy())).collect()
}

/// A text without the user information of its first URL.
pub(super) fn redact_url(text: &str) -> String {
    if let Some((scheme, rest)) = text.split_once("://") {
        let end = rest.find(['/', ' ', '\'']).unwrap_or(rest.len());
        if let Some(at) = rest[..end].rfind('@') {
            return format!("{scheme}://…{}", &rest[at..]);
        }
    }
    text.to_owned()
}

fn starts_with(name: &OsStr, prefix: &str) -> bool {
    name.as_encoded_bytes().starts_with(prefix.as_bytes())
}

// === impl Group ===

/// Sends a signal to a process group when dropped.
struct Group {
    pid: Option<Pid>,
    signal: Signal,
}

impl Group {
    fn of(child: &tokio::process::Child, signal: Signal) -> Self {
        Self { pid: child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw), signal }
    }

    fn spare(mut self) {
        self.pid = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.pid {
            // Usually there is nobody left.
            let _ = kill_process_group(group, self.signal);
        }
    }
}

// === impl Capture ===

/// A bounded piece of a stream: its beginning, or its end.
struct Capture {
    bytes: Vec<u8>,
    most: usize,
    keep_tail: bool,
    lost: bool,
}

impl Capture {
    fn head(most: usize) -> Self {
        Self { bytes: Vec::new(), most, keep_tail: false, lost: false }
    }

    fn tail(most: usize) -> Self {
        Self { keep_tail: true, ..Self::head(most) }
    }

    async fn read(&mut self, stream: Option<impl AsyncRead + Unpin>) {
        let Some(mut stream) = stream else { return };
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => self.take(&buffer[..n]),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.keep_tail {
            self.bytes.extend_from_slice(bytes);
            if self.bytes.len() > 2 * self.most {
                self.bytes.drain(..self.bytes.len() - self.most);
                self.lost = true;
            }
        } else {
            let room = self.most - self.bytes.len();
            self.lost |= bytes.len() > room;
            self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// Input goes in, both outputs come out, the exit code is told.
    #[tokio::test]
    async fn a_process_is_run() {
        let output =
            Process::new("sh").args(["-c", "cat; echo err >&2; exit 3"]).stdin("hello").run(LONG).await.unwrap();
        assert_eq!((output.code, output.text().as_str(), output.complaint().as_str()), (Some(3), "hello", "err"));
    }

    /// A process that is too slow is ended with its children.
    #[tokio::test]
    async fn a_timeout_kills_the_group() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let error = Process::new("sh").args(["-c", &script]).run(Duration::from_millis(500)).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        let pid: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        await_gone(pid).await;
    }

    /// What tidies up may do so when nobody waits for it any more.
    #[tokio::test]
    async fn what_tidies_up_is_asked_to_end() {
        let dir = tempfile::tempdir().unwrap();
        let (begun, tidy) = (dir.path().join("begun"), dir.path().join("tidy"));
        let script = format!(
            "exec 2>/dev/null; trap 'touch {}; exit' TERM; touch {}; while true; do sleep 0.01; done",
            tidy.display(),
            begun.display()
        );
        let process = Process::new("sh").args(["-c", &script]).tidies_up();
        let there = async |path: &Path| {
            let deadline = tokio::time::Instant::now() + LONG;
            while !path.exists() {
                assert!(tokio::time::Instant::now() < deadline, "{} is not there", path.display());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            ended = process.run(LONG) => panic!("it ended: {ended:?}"),
            () = there(&begun) => {}
        }
        there(&tidy).await;
    }

    /// What is left in the background holds nobody up, and is ended.
    #[tokio::test]
    async fn a_background_process_does_not_hold_the_pipe() {
        let output = Process::new("sh").args(["-c", "sleep 1000 & echo $!"]).run(LONG).await.unwrap();
        await_gone(output.text().parse().unwrap()).await;
    }

    /// Git variables that point to a repository are not inherited by anybody, so a test may look at a clean one only.
    #[test]
    fn urls_are_redacted() {
        assert_eq!(redact_url("https://me:secret@example.com/a@b"), "https://…@example.com/a@b");
        assert_eq!(redact_url("https://example.com/a@b"), "https://example.com/a@b");
    }

    async fn await_gone(pid: i32) {
        let deadline = tokio::time::Instant::now() + LONG;
        let stat = format!("/proc/{pid}/stat");
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z")) {
            assert!(tokio::time::Instant::now() < deadline, "process {pid} is alive");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

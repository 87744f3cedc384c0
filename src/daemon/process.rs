//! The one place that starts processes.

use std::{
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

/// A process to be started: what, where, with which environment, and what bounds it.
#[derive(Debug)]
pub struct Process {
    program: PathBuf,
    args: Vec<OsString>,
    dir: Option<PathBuf>,
    env: Vec<(OsString, Option<OsString>)>,
    stdin: Vec<u8>,
    tee: Option<File>,
}

/// What a process left.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// Exit code, if it exited by itself.
    pub code: Option<i32>,
    /// Signal that ended it; 0 for none.
    pub signal: u32,
    /// Its standard output, the last bytes of it if there was more than fits.
    pub stdout: Vec<u8>,
    /// Its standard error, likewise.
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
        source: std::io::Error,
    },
    /// Talking with it failed.
    #[error("talk to `{program}`")]
    Talk {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It took too long; its group has been killed.
    #[error("`{program}` took longer than {}", humantime::format_duration(*after))]
    Timeout {
        /// The program.
        program: String,
        /// What it had.
        after: Duration,
        /// The end of what it had written.
        tail: String,
    },
}

impl Process {
    /// Of this program, looked for in PATH.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new(), dir: None, env: Vec::new(), stdin: Vec::new(), tee: None }
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

    /// Without this variable.
    #[must_use]
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.env.push((name.into(), None));
        self
    }

    /// With this on its standard input; otherwise that is empty.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Writes all its output to this file too.
    #[must_use]
    pub fn tee(mut self, file: File) -> Self {
        self.tee = Some(file);
        self
    }

    /// Runs it in a process group of its own and answers its output. The group is killed when `timeout` has passed, and
    /// when the future is dropped.
    pub async fn run(self, timeout: Duration) -> Result<Output, Error> {
        todo!("{timeout:?}")
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
}

//! The second stage: the process that becomes the agent. What must be set in the child itself is set here, in safe code,
//! before the agent's program takes its place.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{ExitCode, Stdio},
};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use super::{NONCE, STAGE, chain};
use crate::daemon::{
    attempt_dir::{self, AttemptDir, Stdin},
    process::Process,
    sweep,
};

/// Where this stage leaves its reason when there is no agent to be had.
pub const ERROR_FILE: &str = "start-error";
/// What an agent gets on top of the shim's oom score: the kernel takes the agent first when memory runs out.
const OOM_EXTRA: i32 = 500;

/// Why the agent's program did not start.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("read what to start")]
    Dir(#[from] attempt_dir::Error),
    #[error("read what to start: the manifest names no agent command and place")]
    Nothing,
    #[error("enter the worktree {0}")]
    Worktree(String, #[source] std::io::Error),
    #[error("give the agent its standard input")]
    Stdin(#[source] std::io::Error),
    #[error("start the agent `{0}`")]
    Program(String, #[source] std::io::Error),
    #[error("die with the shim")]
    Bound(#[source] std::io::Error),
}

/// Becomes the agent, or says why not.
pub fn run(dir: &Path) -> ExitCode {
    let Err(error) = become_agent(dir);
    let message = chain(&error);
    eprintln!("makima: cannot {message}");
    let _ = fs::write(dir.join(ERROR_FILE), message);
    ExitCode::from(127)
}

fn become_agent(dir: &Path) -> Result<std::convert::Infallible, Error> {
    let shim = std::env::var(STAGE).ok().and_then(|pid| pid.parse::<i32>().ok());
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| Error::Bound(error.into()))?;
    if getppid().map(rustix::process::Pid::as_raw_pid) != shim {
        // The shim died before it could be watched.
        return Err(Error::Bound(std::io::ErrorKind::NotFound.into()));
    }
    raise_oom_score();
    let dir = AttemptDir::open(dir)?;
    let manifest = dir.manifest()?;
    let (Some(agent), Some(place)) = (manifest.agent, manifest.place) else { return Err(Error::Nothing) };
    fs::metadata(&place.worktree).map_err(|error| Error::Worktree(place.worktree.display().to_string(), error))?;
    let mut process = Process::new(&agent.program).args(&agent.args).dir(&place.worktree).without_makima();
    for name in &agent.env_remove {
        process = process.env_remove(name);
    }
    process = process.envs(&place.env).envs(&agent.env).env_remove(STAGE).env_remove(NONCE);
    process = process.env("PWD", &place.worktree).env(sweep::MARKER, manifest.attempt.id.to_string());
    let mut command = process.into_std().map_err(|error| Error::Program(agent.program.clone(), error))?;
    match agent.stdin {
        Stdin::None => command.stdin(Stdio::null()),
        Stdin::Plan => {
            let file = if agent.brief { dir.brief() } else { dir.plan() };
            command.stdin(File::open(file).map_err(Error::Stdin)?)
        }
        Stdin::Pipe => command.stdin(Stdio::inherit()),
    };
    Err(Error::Program(agent.program, command.exec()))
}

/// Best effort: systems without it, or with a reason to refuse, go on without.
fn raise_oom_score() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let current = fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok()).unwrap_or_default();
    let _ = fs::write(FILE, (current + OOM_EXTRA).min(1_000).to_string());
}

//! The setup command: what a worktree needs before an agent can work in it.

use std::{
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use super::Error;
use crate::{
    daemon::{
        attempt_dir::{AttemptDir, Manifest},
        process::{self, Process, last_bytes},
        sweep,
    },
    domain::attempt::FailureClass,
};

/// Bytes of output that a failure quotes.
const MAX_TAIL: u64 = 2_000;

/// Runs the setup command, if there is one, by `sh -eu` in the worktree; its output goes to the attempt's `output.log`. What it
/// leaves in the background (a database, say) is there for the agent, and ends with the attempt; after a failure nothing is.
pub async fn setup(dir: &AttemptDir, manifest: &Manifest) -> Result<(), Error> {
    let spawn = &manifest.spawn;
    let Some(place) = manifest.place.as_ref().filter(|_| !spawn.setup_command.trim().is_empty()) else {
        return Ok(());
    };
    let io = |error: &dyn std::error::Error| Error::refused(format!("cannot write the attempt's output: {error}"));
    let output = dir.append_output().map_err(|error| io(&error))?;
    let from = dir.output_bytes();
    let ran = Process::new("sh")
        .args(["-eu", "-c", &spawn.setup_command])
        .dir(&place.worktree)
        .without_makima()
        .envs(&place.env)
        .env(sweep::MARKER, manifest.attempt.id.to_string())
        .output_to(output)
        .keep_background()
        .run(spawn.setup_timeout)
        .await;
    let problem = match ran {
        Ok(output) if output.success() => return Ok(()),
        Ok(output) => match output.code {
            Some(code) => format!("exit code {code}"),
            None => format!("ended by signal {}", output.signal),
        },
        Err(error @ process::Error::Timeout { .. }) => {
            let _ = error;
            format!("it took longer than {}", humantime::format_duration(spawn.setup_timeout))
        }
        Err(error) => return Err(io(&error)),
    };
    let target = sweep::Target { attempt: manifest.attempt.id, leader: None, ancestor: None };
    if let Err(error) = sweep::kill_all(&target, spawn.grace).await {
        tracing::warn!(attempt = %manifest.attempt, %error, "a failed setup left processes");
    }
    let tail = tail(&dir.output(), from).unwrap_or_default();
    let text = String::from_utf8_lossy(&tail).replace('\0', "\u{fffd}");
    let quoted = last_bytes(text.trim(), usize::try_from(MAX_TAIL).unwrap_or(usize::MAX));
    let message = match quoted {
        "" => format!("the setup command failed: {problem}"),
        quoted => format!("the setup command failed: {problem}; its output ends with:\n{quoted}"),
    };
    Err(Error::new(FailureClass::SetupFailed, message))
}

fn tail(path: &Path, from: u64) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(MAX_TAIL))))?;
    let mut bytes = Vec::new();
    file.take(MAX_TAIL).read_to_end(&mut bytes)?;
    Ok(bytes)
}

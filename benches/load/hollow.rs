//! A daemon of the load: the real one with its session, journal and reports, in a process of its own, without the work.
//! With `tell` it writes `began TASK NANOSECONDS` for each attempt, on the clock that all processes of a machine share.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use makima::{
    daemon::{Config, config::DiskFloor, config::Key, config::Server, hollow::Hollow, run_hollow},
    runtime::{lifecycle::Shutdown, telemetry},
};

use crate::harness::process::Program;

/// `daemon SERVER KEY_FILE STATE_DIR NAME SLOTS [tell]`, until SIGTERM.
pub fn main(arguments: &[String]) -> ExitCode {
    telemetry::start("warn");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(run(arguments))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[String]) -> Result<(), String> {
    let [server, key_file, state_dir, name, slots, rest @ ..] = arguments else {
        return Err(format!("arguments of a daemon: {arguments:?}"));
    };
    let key = std::fs::read_to_string(Path::new(key_file)).map_err(|error| format!("{key_file}: {error}"))?;
    let key = Key::parse(&key).map_err(|error| error.to_string())?;
    let server = Server::parse(server).map_err(|error| error.to_string())?;
    let mut config = Config::new(server, key, state_dir);
    config.name.clone_from(name);
    config.slots = slots.parse().map_err(|_| format!("slots: {slots}"))?;
    // A disk that is short does not change what is measured.
    config.disk_floor = DiskFloor { bytes: 0, percent: 0 };
    let shutdown = Shutdown::new();
    shutdown.on_signals().map_err(|error| error.to_string())?;
    let hollow =
        if rest.iter().any(|word| word == "tell") { Hollow::telling(|it| told(it.task)) } else { Hollow::new() };
    let ran = run_hollow(config, shutdown.clone(), hollow).await.map_err(|error| error.to_string());
    match shutdown.finish().await {
        true => ran,
        false => ran.and(Err("a loop has failed".to_owned())),
    }
}

/// One write, so that lines of several threads stay whole. If nobody reads it any more, nobody measures.
pub fn told(task: impl std::fmt::Display) {
    let line = format!("began {task} {}\n", now());
    let _ = io::stdout().lock().write_all(line.as_bytes());
}

/// When each task began, by what these programs have told.
pub fn began(programs: &[Program]) -> HashMap<String, u64> {
    let said = programs.iter().map(Program::output).collect::<String>();
    let lines = said.lines().filter_map(|line| line.strip_prefix("began ")?.split_once(' '));
    lines.filter_map(|(task, at)| Some((task.to_owned(), at.parse().ok()?))).collect()
}

/// Nanoseconds of the clock that never jumps, the same for every process.
pub fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default()
}

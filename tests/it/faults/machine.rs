//! The machines of a run: each a daemon with a wire of its own to the server, a clock and a boot that can be changed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;

use crate::harness::{
    DaemonOptions, World,
    process::{self, Found},
    proxy::Proxy,
};

/// One machine.
pub struct Machine {
    /// The daemon's name.
    pub name: String,
    /// Between it and the server.
    pub wire: Proxy,
    /// Attempts at once.
    pub slots: u32,
    /// Its daemon is to run.
    pub up: bool,
    /// It is gone for ever.
    pub gone: bool,
    /// It has no room for work.
    pub full: bool,
    /// It has come back from a reboot or lost its disk: what was not sent by then is not expected.
    pub lost_something: bool,
    /// How often it has booted.
    pub boots: u32,
    /// What is added to its clock.
    pub clock: PathBuf,
    /// Its state directory.
    pub state: PathBuf,
}

/// What a daemon's environment makes faster: what takes tens of seconds where networks are slow.
const TIMES: [(&str, &str); 4] = [
    ("MAKIMA_TEST_CONNECT_MS", "1500"),
    ("MAKIMA_TEST_RECONNECT_LIMIT_MS", "1000"),
    ("MAKIMA_TEST_PING_MS", "1000"),
    ("MAKIMA_TEST_PING_TIMEOUT_MS", "1000"),
];

impl Machine {
    /// One whose daemon does not run yet.
    pub async fn new(world: &World, name: &str, slots: u32) -> Self {
        Self {
            name: name.to_owned(),
            wire: Proxy::to(world.address()).await,
            slots,
            up: true,
            gone: false,
            full: false,
            lost_something: false,
            boots: 1,
            clock: world.dir.join(format!("{name}.clock")),
            state: world.daemon_state(name),
        }
    }

    /// What its daemon is told.
    pub fn options(&self) -> DaemonOptions {
        let mut env: Vec<(String, String)> =
            TIMES.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        env.push(("MAKIMA_TEST_CLOCK".to_owned(), self.clock.display().to_string()));
        env.push(("MAKIMA_TEST_BOOT".to_owned(), format!("boot {} of {}", self.boots, self.name)));
        let floor = if self.full { 1_u64 << 60 } else { 0 };
        let config = format!("any_path = true\n[daemon.disk_floor]\nbytes = {floor}\npercent = 0\n");
        DaemonOptions {
            slots: self.slots,
            server: Some(self.wire.url.clone()),
            config,
            env,
            ..DaemonOptions::default()
        }
    }

    /// Everything that runs on it.
    pub fn processes(&self) -> Vec<Found> {
        process::processes_of(&self.state)
    }

    /// Its shims.
    pub fn shims(&self) -> Vec<Found> {
        self.processes().into_iter().filter(Found::is_shim).collect()
    }

    /// Agents that run on it: the scripts themselves, not what they have started.
    pub fn agents(&self) -> Vec<Found> {
        let is_script = |found: &Found| found.arguments.starts_with("sh ") && found.variable(MARKER).is_some();
        let scripts: Vec<Found> = self.processes().into_iter().filter(is_script).collect();
        // A subshell has the arguments of its shell, which says that it failed when the subshell is killed.
        let children: Vec<u32> =
            scripts.iter().flat_map(|script| process::children_of(script.pid)).map(|child| child.pid).collect();
        scripts.into_iter().filter(|script| !children.contains(&script.pid)).collect()
    }

    /// A signal to everything that runs on it.
    pub fn signal(&self, signal: Signal) -> usize {
        self.processes().iter().inspect(|found| found.signal(signal)).count()
    }

    /// `kill -9` until nothing is left. Answers how many there were.
    pub fn kill_all(&self) -> usize {
        let before = self.processes().len();
        let left = process::sweep(&self.state);
        assert!(left.is_empty(), "processes that would not die: {left:?}");
        before
    }

    /// The daemon's journal.
    pub fn journal(&self) -> PathBuf {
        self.state.join("journal.sqlite")
    }
}

/// Marks every process of an attempt.
pub const MARKER: &str = "MAKIMA_ATTEMPT";

/// Sets what is added to a clock.
pub fn set_clock(file: &Path, offset: Option<Duration>, backwards: bool) {
    let micros = offset.map_or(0, |offset| i64::try_from(offset.as_micros()).expect("a small jump"));
    let next = file.with_extension("next");
    fs::write(&next, if backwards { -micros } else { micros }.to_string()).expect("write a clock");
    fs::rename(&next, file).expect("set a clock");
}

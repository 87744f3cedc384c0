//! Agents.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::{AttemptRef, attempt::Failure, daemon, order::Spawn, report::Progress};

use super::attempt_dir::{AgentCommand, ExitRecord, Stdin};

/// How to run an agent: data, in the daemon's configuration as `[profiles.<name>]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Program, looked for in PATH.
    pub command: String,
    /// Arguments; `{plan_file}`, `{plan}`, `{model}`, `{session_id}`, `{task_id}`, `{worktree}` are filled in.
    #[serde(default)]
    pub args: Vec<String>,
    /// Added when the task names a model.
    #[serde(default)]
    pub model_args: Vec<String>,
    /// Added when a new session is started.
    #[serde(default)]
    pub session_args: Vec<String>,
    /// Added instead when a session goes on.
    #[serde(default)]
    pub resume_args: Vec<String>,
    /// Variables, filled in likewise.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Variables added when running as root.
    #[serde(default)]
    pub env_as_root: BTreeMap<String, String>,
    /// Variables taken away.
    #[serde(default)]
    pub env_remove: Vec<String>,
    /// What it reads.
    #[serde(default)]
    pub stdin: Stdin,
    /// How its output is understood.
    #[serde(default)]
    pub parser: ParserKind,
    /// Arguments that make it say its version; empty: it is enough that it is there.
    #[serde(default)]
    pub version_args: Vec<String>,
    /// Other programs it needs.
    #[serde(default)]
    pub needs: Vec<String>,
}

/// How output is understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ParserKind {
    /// Not at all: the exit code says it.
    #[default]
    Raw,
    /// Claude Code's stream-json.
    ClaudeStreamJson,
}

/// What a command needs beside the order.
#[derive(Clone, Debug)]
pub struct Context {
    /// The attempt.
    pub attempt: AttemptRef,
    /// The plan as a file (`dir.plan()`).
    pub plan_file: PathBuf,
    /// The worktree.
    pub worktree: PathBuf,
    /// Where the agent reaches the server; empty if unknown.
    pub server: String,
    /// Session to go on with; `None`: a new one.
    pub resume: Option<String>,
    /// Variables of the place (`place.env`).
    pub env: BTreeMap<String, String>,
}

/// All profiles of this daemon.
#[derive(Clone, Debug)]
pub struct Profiles(BTreeMap<String, Profile>);

/// Why there is no command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such profile.
    #[error("agent profile `{name}` is not known here; there are: {known}")]
    Unknown {
        /// Asked for.
        name: String,
        /// There.
        known: String,
    },
    /// The plan does not fit into an argument.
    #[error(
        "the plan has {bytes} bytes, too many for an argument of `{name}`: use `{{plan_file}}` or stdin = \"plan\" in its profile"
    )]
    PlanTooLong {
        /// The profile.
        name: String,
        /// Of the plan.
        bytes: usize,
    },
}

impl Profiles {
    /// The built-in profiles with those of the configuration over them.
    pub fn load(overrides: BTreeMap<String, Profile>) -> Self {
        Self(overrides)
    }

    /// Those that are really installed, with version.
    pub async fn detect(&self) -> Vec<daemon::Profile> {
        todo!("{:?}", self.0)
    }

    /// The command for an order.
    pub fn command(&self, spawn: &Spawn, context: &Context) -> Result<AgentCommand, Error> {
        todo!("{spawn:?} {context:?}")
    }

    /// A parser for the output of this agent; raw for one that is not known.
    pub fn parser(&self, agent: &str) -> Parser {
        todo!("{agent}")
    }
}

/// Understands an agent's output as it comes.
#[derive(Debug)]
pub struct Parser(ParserKind);

impl Parser {
    /// More output.
    pub fn feed(&mut self, bytes: &[u8]) {
        todo!("{bytes:?} {:?}", self.0)
    }

    /// What it adds up to so far.
    pub fn progress(&self) -> Progress {
        todo!()
    }

    /// The agent has ended: with success, or why not. A `Terminated` end is `Cancelled` here; the caller knows better.
    pub fn finish(&mut self, exit: &ExitRecord) -> Result<(), Failure> {
        todo!("{exit:?}")
    }
}

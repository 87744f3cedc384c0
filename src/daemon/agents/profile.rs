//! Profiles: agents as data.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{Parser, conversation};
use crate::{
    daemon::{
        attempt_dir::{AgentCommand, Stdin},
        process::{Process, is_installed},
    },
    domain::{AttemptRef, daemon, order::Spawn},
};

/// What an agent has to say its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a version.
const MAX_VERSION: usize = 80;
/// Bytes of one argument; Linux takes 128 KiB.
const MAX_ARGUMENT: usize = 120 * 1024;
/// Longest brief that is told as it is; what an argument has besides is short.
const MAX_BRIEF: usize = 110 * 1024;

/// How to run an agent: data, in the daemon's configuration as `[daemon.profiles.<name>]`. What is left out comes from the profile
/// named by `like`, or from the built-in one of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// Profile to take over what is left out here.
    pub like: Option<String>,
    /// Program, looked for in PATH.
    pub command: String,
    /// Arguments. Filled in here and in all that follows: `{plan_file}`, `{plan}` (a brief instead of the plan where there is
    /// one), `{model}`, `{session_id}` (the session that the agent works in), `{session}` (the one that it goes on with),
    /// `{task_id}`, `{task_name}`, `{worktree}`.
    pub args: Vec<String>,
    /// Added when the task names a model.
    pub model_args: Vec<String>,
    /// Added when a new session is started.
    pub session_args: Vec<String>,
    /// Added instead when a session goes on; empty: the agent cannot.
    pub resume_args: Vec<String>,
    /// Added instead when a copy of a session goes on and the session itself stays as it is; empty: the agent cannot.
    pub fork_args: Vec<String>,
    /// The agent's own directory, as `{config_dir}` below; over `{home}` and `{worktree}`.
    pub config_dir: String,
    /// Variable that names it instead, where it is set.
    pub config_dir_env: String,
    /// The file with a session's conversation; over `{home}`, `{config_dir}`, `{worktree}`, `{cwd_encoded}` (the worktree, as
    /// Claude Code writes it in a name) and `{session}`. Empty: nobody knows.
    pub transcript: String,
    /// Files and directories that belong to a session too, over the same words.
    pub beside: Vec<String>,
    /// An agent that goes on with earlier work is told so instead of being given the plan again. Unless said it is not:
    /// nobody knows whether a command of the configuration runs its plan as a script.
    pub brief: Option<bool>,
    /// Variables.
    pub env: BTreeMap<String, String>,
    /// Variables added when running as root.
    pub env_as_root: BTreeMap<String, String>,
    /// Variables taken away.
    pub env_remove: Vec<String>,
    /// What it reads; `none` unless said.
    pub stdin: Option<Stdin>,
    /// How its output is understood; `raw` unless said.
    pub parser: Option<ParserKind>,
    /// Arguments that make it say its version; empty: it is enough that it is there.
    pub version_args: Vec<String>,
    /// Other programs it needs.
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
    /// How it goes on with earlier work; `None`: there is none.
    pub resume: Option<Resume>,
    /// Variables of the place (`place.env`).
    pub env: BTreeMap<String, String>,
}

/// How an agent goes on with the work of an earlier attempt, which is in its worktree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// The agent's own session; `None`: a new one, where the old one is lost or the agent has none.
    pub session: Option<String>,
    /// A copy of that session goes on: another task may need it as it is.
    pub fork: bool,
    /// What the agent is told instead of the plan (`daemon::brief` writes it), unless its profile wants the plan again.
    pub brief: String,
    /// The same as a file (`dir.brief()`).
    pub brief_file: PathBuf,
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
        "an argument of agent profile `{name}` would have {bytes} bytes: use {{plan_file}} or stdin = \"plan\" there"
    )]
    PlanTooLong {
        /// The profile.
        name: String,
        /// Of the argument.
        bytes: usize,
    },
}

/// Why a profile of the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadProfile {
    /// Like one that is not there, or like itself in the end.
    #[error("agent profile `{name}` is like `{like}`, which is not there; there are: {known}")]
    Like {
        /// The profile.
        name: String,
        /// Named by it.
        like: String,
        /// There.
        known: String,
    },
    /// Without a program.
    #[error("agent profile `{name}` has no command: give it one, or say like which profile it is")]
    NoCommand {
        /// The profile.
        name: String,
    },
}

impl Profiles {
    /// The built-in profiles with those of the configuration over them. One that cannot be used is logged and left out; a
    /// configuration should have been through [`Profiles::check`] before.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a configuration is given away, as to whatever else is loaded from it"
    )]
    pub fn load(overrides: BTreeMap<String, Profile>) -> Self {
        let built_in = built_in();
        let mut all = built_in.clone();
        for name in overrides.keys() {
            match resolve(name, &overrides, &built_in) {
                Ok(profile) => drop(all.insert(name.clone(), profile)),
                Err(error) => {
                    tracing::error!(%error, "an agent profile is left out");
                    all.remove(name);
                }
            }
        }
        Self(all)
    }

    /// Every profile of a configuration can be used.
    pub fn check(overrides: &BTreeMap<String, Profile>) -> Result<(), BadProfile> {
        let built_in = built_in();
        overrides.keys().try_for_each(|name| resolve(name, overrides, &built_in).map(drop))
    }

    /// A profile by its name.
    pub fn get(&self, name: &str) -> Option<&Profile> {
        self.0.get(name)
    }

    /// Those that are really installed, with version.
    pub async fn detect(&self) -> Vec<daemon::Profile> {
        let mut asked = JoinSet::new();
        for (name, profile) in self.0.clone() {
            asked.spawn(async move {
                let version = profile.version().await?;
                Some(daemon::Profile { name, version })
            });
        }
        let mut found: Vec<daemon::Profile> = asked.join_all().await.into_iter().flatten().collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// The command for an order.
    pub fn command(&self, spawn: &Spawn, context: &Context) -> Result<AgentCommand, Error> {
        let name = &spawn.agent;
        let profile = self.0.get(name).ok_or_else(|| Error::Unknown { name: name.clone(), known: names(&self.0) })?;
        let (model, way) = (spawn.model.clone().unwrap_or_default(), profile.way(context));
        let (session_id, session) = (way.session_id(context), way.session().unwrap_or_default().to_owned());
        let task_id = context.attempt.task.to_string();
        let brief = context.resume.as_ref().filter(|_| profile.takes_brief());
        let plan_file = brief.map_or(&context.plan_file, |resume| &resume.brief_file).display().to_string();
        // A brief has the plan in it: what was short enough for an argument is to be short enough for the next attempt, too.
        let pointer =
            format!("You were interrupted. Read the file {plan_file}: it says what to do, and what has been done.\n");
        let plan = match brief {
            Some(resume) if resume.brief.len() > MAX_BRIEF => &pointer,
            Some(resume) => &resume.brief,
            None => &spawn.plan,
        };
        let worktree = context.worktree.display().to_string();
        let fill = |text: &String| {
            fill(text, &|word| {
                Some(match word {
                    "plan" => plan,
                    "plan_file" => &plan_file,
                    "model" => &model,
                    "session" => &session,
                    "session_id" => &session_id,
                    "task_id" => &task_id,
                    "task_name" => &spawn.name,
                    "worktree" => &worktree,
                    _ => return None,
                })
            })
        };
        let session_args = match way {
            Way::New => &profile.session_args,
            Way::Resume(_) => &profile.resume_args,
            Way::Fork(_) => &profile.fork_args,
        };
        let model_args: &[String] = if model.is_empty() { &[] } else { &profile.model_args };
        let args: Vec<String> = profile.args.iter().chain(model_args).chain(session_args).map(fill).collect();
        if let Some(bytes) = args.iter().map(String::len).find(|bytes| *bytes > MAX_ARGUMENT) {
            return Err(Error::PlanTooLong { name: name.clone(), bytes });
        }
        let mut env: BTreeMap<String, String> =
            profile.env.iter().map(|(name, value)| (name.clone(), fill(value))).collect();
        if rustix::process::geteuid().is_root() {
            env.extend(profile.env_as_root.iter().map(|(name, value)| (name.clone(), fill(value))));
        }
        env.extend(context.env.clone());
        env.extend(task_env(spawn, context));
        Ok(AgentCommand {
            program: profile.command.clone(),
            args,
            env,
            env_remove: profile.env_remove.clone(),
            stdin: profile.stdin.unwrap_or_default(),
            brief: brief.is_some(),
        })
    }

    /// The agent can go on with a session of its own, or with a copy of one. Where it cannot, a new session is told what was
    /// done: whoever writes the brief asks this first.
    pub fn can_resume(&self, agent: &str, fork: bool) -> bool {
        self.0.get(agent).is_some_and(|profile| profile.can_resume(fork))
    }

    /// An agent that goes on with earlier work is told so by a brief; others get their plan again.
    pub fn takes_brief(&self, agent: &str) -> bool {
        self.0.get(agent).is_some_and(Profile::takes_brief)
    }

    /// The session that an agent with this command works in, if that is known before it says so itself.
    pub fn session(&self, agent: &str, context: &Context) -> Option<String> {
        let profile = self.0.get(agent)?;
        let way = profile.way(context);
        let names = |args: &[String]| args.iter().any(|arg| arg.contains("{session_id}"));
        let known = match way {
            Way::New => names(&profile.session_args),
            Way::Resume(_) => true,
            Way::Fork(_) => names(&profile.fork_args),
        };
        known.then(|| way.session_id(context))
    }

    /// Where the conversation of a session in this worktree is, or where the agent will look for it. `env` is that of the
    /// agent's command; what it does not say is as in this process, from which agents inherit the rest.
    pub fn conversation(
        &self,
        agent: &str,
        worktree: &Path,
        session: &str,
        env: &BTreeMap<String, String>,
    ) -> Option<conversation::Conversation> {
        let profile = self.0.get(agent)?;
        let inherited = |name: &str| std::env::var(name).ok().filter(|_| !profile.env_remove.iter().any(|n| n == name));
        conversation::locate(profile, worktree, session, &|name| env.get(name).cloned().or_else(|| inherited(name)))
    }

    /// The file of that conversation alone.
    pub fn transcript(
        &self,
        agent: &str,
        worktree: &Path,
        session: &str,
        env: &BTreeMap<String, String>,
    ) -> Option<PathBuf> {
        self.conversation(agent, worktree, session, env).map(|conversation| conversation.transcript)
    }

    /// A parser for the output of this agent; raw for one that is not known.
    pub fn parser(&self, agent: &str) -> Parser {
        Parser::new(self.0.get(agent).and_then(|profile| profile.parser).unwrap_or_default())
    }
}

/// How an agent comes to its session.
enum Way<'a> {
    New,
    Resume(&'a str),
    Fork(&'a str),
}

impl Way<'_> {
    /// The session that it goes on with.
    fn session(&self) -> Option<&str> {
        match self {
            Self::New => None,
            Self::Resume(session) | Self::Fork(session) => Some(session),
        }
    }

    /// The session that it works in: the one that it goes on with keeps its name, and a new one gets the attempt's, which is
    /// known before the agent has said a word.
    fn session_id(&self, context: &Context) -> String {
        match self {
            Self::Resume(session) => (*session).to_owned(),
            Self::New | Self::Fork(_) => context.attempt.id.to_string(),
        }
    }
}

/// What every agent is told of its task.
fn task_env(spawn: &Spawn, context: &Context) -> Vec<(String, String)> {
    let AttemptRef { task, number, id } = context.attempt;
    let all = [
        ("MAKIMA_ATTEMPT", id.to_string()),
        ("MAKIMA_ATTEMPT_NUMBER", number.to_string()),
        ("MAKIMA_CONTRACT_ID", spawn.contract.to_string()),
        ("MAKIMA_SERVER", context.server.clone()),
        ("MAKIMA_TASK_ID", task.to_string()),
        ("MAKIMA_TASK_KEY", spawn.task_key.clone()),
        ("MAKIMA_TASK_NAME", spawn.name.clone()),
    ];
    // A script that reads this knows whether an earlier attempt has been at work here. It is always set: a shell that takes what
    // is unset for an error can read it too.
    let resumed = ("MAKIMA_RESUMED", context.resume.iter().map(|_| "1").collect());
    let told = all.into_iter().filter(|(_, value)| !value.is_empty()).chain([resumed]);
    told.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A profile with all that it leaves out from the one it is like; that is the built-in one of its name unless it says.
fn resolve(
    name: &str,
    overrides: &BTreeMap<String, Profile>,
    built_in: &BTreeMap<String, Profile>,
) -> Result<Profile, BadProfile> {
    let (mut profile, mut at) = (Profile::default(), name);
    // A chain longer than there are profiles goes round.
    for _ in 0..=overrides.len() {
        let own = overrides.get(at).cloned().unwrap_or_default();
        let like = own.like.clone().filter(|like| like != at);
        profile = profile.over(&own);
        match (like, built_in.get(at)) {
            (Some(like), _) => match overrides.get_key_value(&like).or(built_in.get_key_value(&like)) {
                Some((next, _)) => at = next,
                None => {
                    let known = names(&overrides.iter().chain(built_in).collect());
                    return Err(BadProfile::Like { name: name.to_owned(), like, known });
                }
            },
            (None, base) => {
                let profile = base.map_or(profile.clone(), |base| profile.over(base));
                let no_command = || BadProfile::NoCommand { name: name.to_owned() };
                return Some(profile).filter(|profile| !profile.command.is_empty()).ok_or_else(no_command);
            }
        }
    }
    Err(BadProfile::Like { name: name.to_owned(), like: at.to_owned(), known: names(built_in) })
}

fn names<K: AsRef<str> + Ord, V>(all: &BTreeMap<K, V>) -> String {
    all.keys().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}

/// Replaces `{word}` where the word is known; what comes in is not looked at again.
pub(super) fn fill<'a>(text: &str, value: &impl Fn(&str) -> Option<&'a String>) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        filled.push_str(&rest[..at]);
        let inner = &rest[at + 1..];
        match inner.find('}').and_then(|end| Some((end, value(&inner[..end])?))) {
            Some((end, value)) => {
                filled.push_str(value);
                rest = &inner[end + 1..];
            }
            None => {
                filled.push('{');
                rest = inner;
            }
        }
    }
    filled + rest
}

// === impl Profile ===

impl Profile {
    /// This one, with what it leaves out from another.
    fn over(self, base: &Self) -> Self {
        let text = |own: String, base: &String| if own.is_empty() { base.clone() } else { own };
        let list = |own: Vec<String>, base: &Vec<String>| if own.is_empty() { base.clone() } else { own };
        let map = |own: BTreeMap<String, String>, base: &BTreeMap<String, String>| {
            let mut all = base.clone();
            all.extend(own);
            all
        };
        Self {
            like: self.like,
            command: text(self.command, &base.command),
            args: list(self.args, &base.args),
            model_args: list(self.model_args, &base.model_args),
            session_args: list(self.session_args, &base.session_args),
            resume_args: list(self.resume_args, &base.resume_args),
            fork_args: list(self.fork_args, &base.fork_args),
            config_dir: text(self.config_dir, &base.config_dir),
            config_dir_env: text(self.config_dir_env, &base.config_dir_env),
            transcript: text(self.transcript, &base.transcript),
            beside: list(self.beside, &base.beside),
            brief: self.brief.or(base.brief),
            env: map(self.env, &base.env),
            env_as_root: map(self.env_as_root, &base.env_as_root),
            env_remove: list(self.env_remove, &base.env_remove),
            stdin: self.stdin.or(base.stdin),
            parser: self.parser.or(base.parser),
            version_args: list(self.version_args, &base.version_args),
            needs: list(self.needs, &base.needs),
        }
    }

    /// How an agent comes to its session, as far as it can do what is wanted.
    fn way<'a>(&self, context: &'a Context) -> Way<'a> {
        let Some(resume) = &context.resume else { return Way::New };
        match &resume.session {
            Some(session) if self.can_resume(resume.fork) && resume.fork => Way::Fork(session),
            Some(session) if self.can_resume(resume.fork) => Way::Resume(session),
            // To go on in a session that others need as it is would be worse than to begin a new one.
            Some(_) | None => Way::New,
        }
    }

    fn can_resume(&self, fork: bool) -> bool {
        !(if fork { &self.fork_args } else { &self.resume_args }).is_empty()
    }

    fn takes_brief(&self) -> bool {
        self.brief.unwrap_or(false)
    }

    /// What it says of its version; `None` if it is not installed, or cannot even say that.
    async fn version(&self) -> Option<String> {
        if !is_installed(&self.command) || !self.needs.iter().all(|needed| is_installed(needed)) {
            return None;
        }
        if self.version_args.is_empty() {
            return Some(String::new());
        }
        let mut process = Process::new(&self.command).args(&self.version_args).dir(home()).without_makima();
        process = process.envs(self.env.iter().filter(|(_, value)| !value.contains('{')));
        match process.run(VERSION_TIMEOUT).await {
            Ok(output) if output.success() => Some(version_in(&output.text())),
            Ok(output) => {
                tracing::warn!(command = %self.command, complaint = %output.complaint(), "an agent does not say its version");
                None
            }
            Err(error) => {
                tracing::warn!(command = %self.command, %error, "an agent does not say its version");
                None
            }
        }
    }
}

/// A directory that is there and says nothing about a project.
fn home() -> PathBuf {
    std::env::home_dir().filter(|home| home.is_dir()).unwrap_or_else(|| Path::new("/").to_owned())
}

/// `2.1.197 (Claude Code)` is 2.1.197, `codex-cli 0.169.0` is 0.169.0.
fn version_in(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let is_version = |word: &&str| word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
    super::clean(line.split_whitespace().find(is_version).unwrap_or(line), MAX_VERSION)
}

fn built_in() -> BTreeMap<String, Profile> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let shell = Profile {
        command: "sh".into(),
        // From a file and not from its input, which the script's own commands would read away.
        args: words(&["-eu", "{plan_file}"]),
        // The plan is a script: it is run again as it is, and MAKIMA_RESUMED tells it that it is not the first time.
        brief: Some(false),
        ..Profile::default()
    };
    // Seen with Claude Code 2.1.197, against a scripted model:
    // * It takes `--session-id` with `-p` and stream-json, any UUID, once: a session whose transcript is there already is
    //   "already in use". A session that is resumed keeps its id; `--session-id` then needs `--fork-session`, and names the copy.
    // * What it needs to resume is the transcript alone, in the directory named after the place where it runs now (links
    //   resolved), under any home. The `cwd` fields in it may say another place. Not needed: `~/.claude.json`, `sessions/`,
    //   `session-env/`, `shell-snapshots/`, file history. A killed agent's leftovers there do not stop it.
    // * A transcript may end anywhere: tool calls without an answer, whether one or some of several, are left out of what the
    //   model sees, and a prompt without an answer stays. But a last line without its end is not cut: the next record is
    //   written behind it and lost with it, so a transcript is mended first (`transcript::mend`). One in which nobody has said
    //   anything yet is "No conversation found".
    // * Beside it, a large answer of a tool is a file in `<session>/tool-results`, which the conversation names with its whole
    //   path; helpers' transcripts are in `<session>/subagents`; the task list is in `tasks/<session>`.
    let claude = Profile {
        command: "claude".into(),
        args: words(&["-p", "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions"]),
        model_args: words(&["--model", "{model}"]),
        session_args: words(&["--session-id", "{session_id}"]),
        resume_args: words(&["--resume", "{session}"]),
        fork_args: words(&["--resume", "{session}", "--fork-session", "--session-id", "{session_id}"]),
        config_dir: "{home}/.claude".into(),
        config_dir_env: "CLAUDE_CONFIG_DIR".into(),
        transcript: "{config_dir}/projects/{cwd_encoded}/{session}.jsonl".into(),
        beside: words(&["{config_dir}/projects/{cwd_encoded}/{session}", "{config_dir}/tasks/{session}"]),
        brief: Some(true),
        // As root it bypasses permissions only where it is told that this is a sandbox.
        env_as_root: BTreeMap::from([("IS_SANDBOX".to_owned(), "1".to_owned())]),
        stdin: Some(Stdin::Plan),
        parser: Some(ParserKind::ClaudeStreamJson),
        version_args: words(&["--version"]),
        ..Profile::default()
    };
    BTreeMap::from([("claude".to_owned(), claude), ("shell".to_owned(), shell)])
}

#[cfg(test)]
mod tests;

//! What a profile makes of an order.

use uuid::Uuid;

use super::*;
use crate::{
    daemon::attempt_dir::tests::spawn_order,
    domain::{AttemptId, TaskId},
};

fn context() -> Context {
    let id = |n| Uuid::from_u128(n);
    Context {
        attempt: AttemptRef { task: TaskId(id(1)), number: 2, id: AttemptId(id(3)) },
        plan_file: "/attempt/plan".into(),
        worktree: "/worktree".into(),
        server: "http://127.0.0.1:7420".into(),
        resume: None,
        env: BTreeMap::new(),
    }
}

fn order(agent: &str, plan: &str) -> Spawn {
    Spawn { agent: agent.into(), ..spawn_order(plan) }
}

fn from_toml(text: &str) -> Result<Profiles, BadProfile> {
    let overrides = toml::from_str(text).unwrap();
    Profiles::check(&overrides)?;
    Ok(Profiles::load(overrides))
}

/// Plans never meet a shell's quoting or an argument's limit in the built-in profiles.
#[test]
fn built_in_profiles_take_any_plan() {
    let profiles = from_toml("").unwrap();
    let plan = "x".repeat(512 * 1024);
    let shell = profiles.command(&order("shell", &plan), &context()).unwrap();
    assert_eq!(
        (shell.program.as_str(), shell.args, shell.stdin),
        ("sh", vec!["-eu".into(), "/attempt/plan".into()], Stdin::None)
    );
    assert_eq!(shell.env["MAKIMA_TASK_ID"], context().attempt.task.to_string());
    assert!(!shell.env.contains_key("MAKIMA_TASK_KEY"));
    let mut asked = order("claude", &plan);
    asked.model = Some("opus".into());
    let claude = profiles.command(&asked, &context()).unwrap();
    let session = context().attempt.id.to_string();
    assert_eq!(claude.args[5..], ["--model", "opus", "--session-id", session.as_str()]);
    assert_eq!(claude.stdin, Stdin::Plan);
    assert_eq!(claude.env.contains_key("IS_SANDBOX"), rustix::process::geteuid().is_root());
}

fn going_on(session: Option<&str>, fork: bool) -> Context {
    let session = session.map(str::to_owned);
    let resume = Resume { session, fork, brief: "go on".into(), brief_file: "/attempt/brief".into() };
    Context { resume: Some(resume), ..context() }
}

/// An agent with a memory goes on with its session, or with a copy of it, and is told why; a script is run again.
#[test]
fn agents_go_on_as_they_can() {
    let profiles = from_toml("[own]\ncommand = \"own\"\nargs = [\"{plan}\"]\nresume_args = [\"-s{session}\"]").unwrap();
    let attempt = context().attempt.id.to_string();
    let with = |agent: &str, context: &Context| {
        let command = profiles.command(&order(agent, "the plan"), context).unwrap();
        let resumed = if context.resume.is_some() { "1" } else { "" };
        assert_eq!(command.env.get("MAKIMA_RESUMED").map(String::as_str), Some(resumed));
        (command.args, command.brief, profiles.session(agent, context))
    };
    let claude = |context: &Context| {
        let (args, brief, session) = with("claude", context);
        (args[5..].join(" "), brief, session.unwrap())
    };
    assert_eq!(claude(&context()), (format!("--session-id {attempt}"), false, attempt.clone()));
    assert_eq!(claude(&going_on(Some("s"), false)), ("--resume s".into(), true, "s".into()));
    let forked = format!("--resume s --fork-session --session-id {attempt}");
    assert_eq!(claude(&going_on(Some("s"), true)), (forked, true, attempt.clone()));
    assert_eq!(claude(&going_on(None, false)), (format!("--session-id {attempt}"), true, attempt));
    let shell = vec!["-eu".to_owned(), "/attempt/plan".to_owned()];
    assert_eq!(with("shell", &going_on(Some("s"), false)), (shell, false, None));
    let own = |context: &Context| with("own", context);
    assert_eq!(own(&going_on(Some("s"), false)), (vec!["the plan".into(), "-ss".into()], false, Some("s".into())));
    assert_eq!(own(&going_on(Some("s"), true)), (vec!["the plan".into()], false, None));
    assert!(profiles.can_resume("claude", true) && profiles.can_resume("own", false));
    assert!(!profiles.can_resume("own", true) && !profiles.can_resume("shell", false));
    assert!(profiles.takes_brief("claude") && !profiles.takes_brief("shell") && !profiles.takes_brief("own"));
    let told = from_toml(
        "[told]\nlike = \"own\"\nbrief = true\n[own]\ncommand = \"own\"\nargs = [\"{plan}\", \"{plan_file}\"]",
    );
    let told = told.unwrap();
    let mut going_on = going_on(None, false);
    assert_eq!(told.command(&order("told", "the plan"), &going_on).unwrap().args, ["go on", "/attempt/brief"]);
    // A brief that has a long plan in it is longer than the plan was.
    going_on.resume.as_mut().unwrap().brief = "x".repeat(MAX_ARGUMENT + 1);
    let args = told.command(&order("told", "the plan"), &going_on).unwrap().args;
    assert!(args[0].contains("/attempt/brief"), "{args:?}");
}

/// A third profile is data; one that is like another changes what it says and nothing else.
#[test]
fn profiles_come_from_configuration() {
    let profiles = from_toml(
        r#"
        [claude]
        env = { ANTHROPIC_BASE_URL = "http://127.0.0.1:1" }
        [cheap]
        like = "claude"
        model_args = ["--model", "small-{model}", "{unknown}{"]
        [echo]
        command = "echo"
        args = ["{plan}", "in {worktree}", "{task_name}"]
        "#,
    )
    .unwrap();
    let mut asked = order("cheap", "{model}");
    asked.model = Some("m".into());
    let cheap = profiles.command(&asked, &context()).unwrap();
    assert_eq!(cheap.args[5..8], ["--model", "small-m", "{unknown}{"]);
    assert_eq!(cheap.env["ANTHROPIC_BASE_URL"], "http://127.0.0.1:1");
    let echo = profiles.command(&order("echo", "{worktree}"), &context()).unwrap();
    assert_eq!(echo.args, ["{worktree}", "in /worktree", "task"]);
    let error = profiles.command(&order("echo", &"x".repeat(200_000)), &context()).unwrap_err();
    assert!(matches!(error, Error::PlanTooLong { .. }), "{error}");
    let error = profiles.command(&order("codex", ""), &context()).unwrap_err();
    assert_eq!(error.to_string(), "agent profile `codex` is not known here; there are: cheap, claude, echo, shell");
    assert!(matches!(from_toml("[x]\n").unwrap_err(), BadProfile::NoCommand { .. }));
    for text in ["[x]\nlike = \"y\"", "[x]\nlike = \"y\"\n[y]\nlike = \"x\""] {
        assert!(matches!(from_toml(text).unwrap_err(), BadProfile::Like { .. }), "{text}");
        assert!(Profiles::load(toml::from_str(text).unwrap()).get("x").is_none());
    }
    assert!(toml::from_str::<BTreeMap<String, Profile>>("[x]\ncomand = \"y\"\n").is_err());
}

/// Only what is really there is reported, with what it says of its version.
#[tokio::test]
async fn what_is_installed_is_found() {
    let profiles = from_toml(
        r#"
        [claude]
        command = "no-such-program"
        [git]
        command = "git"
        version_args = ["--version"]
        [broken]
        command = "false"
        version_args = ["--version"]
        [needy]
        command = "true"
        needs = ["no-such-program"]
        "#,
    )
    .unwrap();
    let found = profiles.detect().await;
    assert_eq!(found.iter().map(|profile| profile.name.as_str()).collect::<Vec<_>>(), ["git", "shell"]);
    assert!(found[0].version.starts_with(|c: char| c.is_ascii_digit()), "{}", found[0].version);
}

#[test]
fn versions_are_found_in_what_is_said() {
    assert_eq!(version_in("2.1.197 (Claude Code)"), "2.1.197");
    assert_eq!(version_in("\ncodex-cli 0.169.0\n"), "0.169.0");
    assert_eq!(version_in("unknown"), "unknown");
}

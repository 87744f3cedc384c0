//! `makima run "PLAN"`: one task, here and now, in a contract of its own.

use std::{io::Read as _, time::Duration};

use clap::Args;

use super::{
    Session,
    client::{request_id, timed},
    config::KeyUse,
    contract,
    contract_file::duration,
    error::{Error, Result},
    follow::Source,
    output::{clean, cut, note},
    repository::{self, Reading},
    view,
};
use crate::wire::pb;

/// The agent that a task has if nobody says otherwise.
const DEFAULT_AGENT: &str = "claude";
/// Characters of a plan's first line that name its task.
const NAME_WIDTH: usize = 60;

/// `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// What the agent is told; for the `shell` agent, the script. `-` reads standard input
    pub plan: String,
    /// Repository to work on: URL or path [default: the one around the current directory]
    #[arg(long, value_name = "URL|PATH")]
    pub repo: Option<String>,
    /// Branch, tag or commit to start from [default: the branch HEAD is on]
    #[arg(long, value_name = "REF")]
    pub base: Option<String>,
    /// Agent profile
    #[arg(long, default_value = DEFAULT_AGENT)]
    pub agent: String,
    /// Model for the agent [default: the agent's own]
    #[arg(long)]
    pub model: Option<String>,
    /// Name of the task [default: the beginning of the plan]
    #[arg(long)]
    pub name: Option<String>,
    /// Higher goes first
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub priority: i32,
    /// Label that the daemon must have; may be repeated
    #[arg(long, value_name = "LABEL")]
    pub label: Vec<String>,
    /// Run by `sh -eu` in the worktree before the agent
    #[arg(long, value_name = "COMMAND")]
    pub setup: Option<String>,
    /// Files to copy from the repository's checkout into the worktree; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub copy_file: Vec<String>,
    /// Wall time of one attempt, such as 30m [default: none]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub wall_time: Option<Duration>,
    /// Retries that count before it fails [default: 3]
    #[arg(long, value_name = "N")]
    pub max_retries: Option<u32>,
    /// Follow it to its end; exit 0 when it is done
    #[arg(long)]
    pub wait: bool,
    /// The same id with the same task answers the task made first (kept 24 h)
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
}

/// Does it.
pub async fn run(session: &mut Session, args: RunArgs) -> Result<()> {
    let plan = if args.plan == "-" {
        let mut plan = String::new();
        std::io::stdin().read_to_string(&mut plan).map_err(Error::io("read the plan from standard input"))?;
        plan
    } else {
        args.plan
    };
    if plan.trim().is_empty() {
        return Err(Error::usage("the plan is empty: say what the agent is to do"));
    }
    let here = session.current_dir()?;
    let base = args.base.unwrap_or_default();
    let place = match &args.repo {
        None => repository::around(&here, &base)?,
        Some(repo) => {
            let home = session.settings.environment.home();
            let must_be_here = session.settings.server_is_local();
            repository::named(repo, &base, Reading { folder: &here, home: home.as_deref(), must_be_here })?
        }
    };
    let client = session.client(KeyUse::Owner).await?;
    if args.agent == DEFAULT_AGENT {
        note("claude runs with its permission prompts bypassed: it can do whatever its daemon's user can");
    }
    let limits = (args.wall_time.is_some() || args.max_retries.is_some()).then(|| pb::TaskLimits {
        wall_time: args.wall_time.map(duration),
        max_retries: args.max_retries,
        ..pb::TaskLimits::default()
    });
    let request = pb::CreateTaskRequest {
        request_id: args.request_id.unwrap_or_else(request_id),
        contract_id: String::new(),
        spec: Some(Box::new(pb::TaskSpec {
            name: args.name.unwrap_or_else(|| name_of(&plan)),
            plan,
            priority: args.priority,
            agent: args.agent,
            model: args.model.unwrap_or_default(),
            labels: args.label,
            repository: place.repository,
            base_branch: place.base,
            copy_files: args.copy_file,
            setup_command: args.setup.unwrap_or_default(),
            limits,
            ..pb::TaskSpec::default()
        })),
    };
    let create = || {
        let (mut tasks, request) = (client.tasks(), timed(request.clone()));
        async move { tasks.create_task(request).await }
    };
    let task = client.patiently("create the task", create).await?.task.unwrap_or_default();
    let short = view::short(&task.task_id);
    if session.out.json {
        if !args.wait {
            session.out.object(&view::Task::from(&*task))?;
        }
    } else {
        let name = task.spec.as_ref().map(|spec| clean(&spec.name)).unwrap_or_default();
        session.out.line(&format!("task {short} created: {name}"))?;
        if !args.wait {
            note(&format!("`makima task watch {short}` follows it, `makima task logs -f {short}` shows its output"));
            contract::nowhere([&*task]).iter().for_each(|text| note(text));
        }
    }
    if args.wait {
        contract::wait(&client, &mut session.out, Source::Task(task.task_id)).await?;
    }
    Ok(())
}

/// The first line of a plan that says something, cut.
fn name_of(plan: &str) -> String {
    let line = plan.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    cut(&clean(line), NAME_WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_named_by_the_beginning_of_its_plan() {
        assert_eq!(name_of("\n  Fix the\ttests\nand more"), "Fix the tests");
        assert_eq!(name_of(&"x".repeat(100)).chars().count(), NAME_WIDTH);
    }
}

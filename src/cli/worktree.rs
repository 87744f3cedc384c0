//! `makima worktree`: the checkouts that attempts of this machine's daemons worked in. They stay until removed here, so
//! this looks at the daemons' state directories, not at the server.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{
    Session,
    error::{Error, Result},
    output::Table,
    view,
};
use crate::daemon::worktree::{self, Listed};

/// What to do with worktrees.
#[derive(Debug, Subcommand)]
pub enum WorktreeCommand {
    /// List the worktrees of this machine's daemons
    List(PlaceArgs),
    /// Remove worktrees; refuses where work would be lost
    Rm(RmArgs),
}

/// Which daemons.
#[derive(Args, Debug)]
pub struct PlaceArgs {
    /// State directory of a daemon [default: those of all daemons of this user]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// `worktree rm`.
#[derive(Args, Debug)]
pub struct RmArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Paths of worktrees, or ids, short ids or names of tasks
    #[arg(required = true, value_name = "PATH|TASK")]
    worktrees: Vec<String>,
    /// Remove even what is in no commit, or in no place that others reach
    #[arg(long)]
    force: bool,
}

/// Does it.
pub async fn run(session: &mut Session, command: WorktreeCommand) -> Result<()> {
    match command {
        WorktreeCommand::List(args) => list(session, &args).await,
        WorktreeCommand::Rm(args) => rm(session, &args).await,
    }
}

async fn list(session: &mut Session, args: &PlaceArgs) -> Result<()> {
    let found = all(session, args).await?;
    if session.out.json {
        return found.iter().try_for_each(|(_, listed)| session.out.object(&view::Worktree::from(listed)));
    }
    let mut table = Table::new(&["TASK", "ATTEMPT", "NAME", "STATE", "BRANCH", "PATH"]);
    for (_, listed) in &found {
        table.row(&[
            listed.attempt.task.short(),
            listed.attempt.number.to_string(),
            listed.name.clone(),
            state(listed).to_owned(),
            listed.branch.clone(),
            listed.path.display().to_string(),
        ]);
    }
    session.out.table(&table, "no worktrees")
}

/// The one word that decides whether to remove it.
fn state(listed: &Listed) -> &'static str {
    match listed {
        Listed { exists: false, .. } => "gone",
        Listed { busy: true, .. } => "in use",
        Listed { dirty: true, .. } => "uncommitted",
        Listed { published: false, .. } => "unpublished",
        _ => "clean",
    }
}

async fn rm(session: &mut Session, args: &RmArgs) -> Result<()> {
    let found = all(session, &args.place).await?;
    let here = session.current_dir()?;
    for wanted in &args.worktrees {
        let path = here.join(wanted);
        let path = path.canonicalize().unwrap_or(path);
        let digits = wanted.to_ascii_lowercase();
        let mut matching = found.iter().filter(|(_, listed)| {
            let task = listed.attempt.task;
            listed.path == path || task.to_string() == digits || task.short() == digits || listed.name == *wanted
        });
        let (state_dir, listed) = matching.next().ok_or_else(|| {
            Error::failed(format!("{wanted} is no worktree here; `makima worktree list` shows those there are"))
        })?;
        if matching.next().is_some() {
            return Err(Error::usage(format!("{wanted} has several worktrees: name one by its path")));
        }
        worktree::remove(state_dir, &listed.path, args.force).await.map_err(|error| {
            Error::failed(format!("cannot remove {}: {}", listed.path.display(), super::client::chain(&error)))
        })?;
        if session.out.json {
            session.out.object(&view::Worktree::from(listed))?;
        } else {
            session.out.line(&format!("removed {}", listed.path.display()))?;
        }
    }
    Ok(())
}

async fn all(session: &Session, args: &PlaceArgs) -> Result<Vec<(PathBuf, Listed)>> {
    let mut found = Vec::new();
    for state_dir in state_dirs(session, args)? {
        let listed = worktree::list(&state_dir).await.map_err(|error| {
            Error::failed(format!("cannot look into {}: {}", state_dir.display(), super::client::chain(&error)))
        })?;
        found.extend(listed.into_iter().map(|listed| (state_dir.clone(), listed)));
    }
    Ok(found)
}

pub(super) fn state_dirs(session: &Session, args: &PlaceArgs) -> Result<Vec<PathBuf>> {
    if let Some(dir) = &args.state_dir {
        return if dir.is_dir() {
            Ok(vec![dir.clone()])
        } else {
            Err(Error::usage(format!("there is no daemon's state at {}", dir.display())))
        };
    }
    let named = session.settings.environment.get("MAKIMA_DAEMON_STATE_DIR").map(PathBuf::from);
    if let Some(dir) = named.or_else(|| session.settings.file.daemon.state_dir.clone()) {
        return Ok(vec![dir]);
    }
    subdirectories(&session.settings.state_home()?.join("daemon"))
}

fn subdirectories(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(format!("read {}", dir.display()))(error)),
    };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    Ok(found)
}

//! `makima salvage`: what lies in this machine's daemons and belongs to nobody. It stays until a person takes it or throws it
//! away, so this looks at the daemons' state directories, not at the server.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Session,
    client::chain,
    error::{Error, Result},
    output::{Table, fields, span},
    worktree::{PlaceArgs, state_dirs},
};
use crate::daemon::salvage::{self, Item};

/// What to do with what belongs to nobody.
#[derive(Debug, Subcommand)]
pub enum SalvageCommand {
    /// List what belongs to nobody: work the server does not know, things moved aside, files it never took
    List(PlaceArgs),
    /// Show one of them
    Get(GetArgs),
    /// Bring the work into a directory of your own; what it is taken from stays
    Restore(RestoreArgs),
    /// Throw it away, for ever
    Rm(RmArgs),
}

/// `salvage get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Id, as listed
    id: String,
}

/// `salvage restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Id, as listed
    id: String,
    /// Directory to make; it must be empty or not there
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
}

/// `salvage rm`.
#[derive(Args, Debug)]
pub struct RmArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Ids, as listed
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Do it, instead of saying what would go
    #[arg(long)]
    yes: bool,
}

/// Does it.
pub async fn run(session: &mut Session, command: SalvageCommand) -> Result<()> {
    match command {
        SalvageCommand::List(args) => list(session, &args).await,
        SalvageCommand::Get(args) => get(session, &args).await,
        SalvageCommand::Restore(args) => restore(session, &args).await,
        SalvageCommand::Rm(args) => rm(session, &args).await,
    }
}

/// What programs read.
#[derive(Serialize)]
struct View<'a> {
    id: &'a str,
    kind: &'static str,
    path: &'a std::path::Path,
    state_dir: &'a std::path::Path,
    task_id: Option<String>,
    attempt: Option<u32>,
    name: &'a str,
    repository: &'a str,
    worktree: Option<&'a std::path::Path>,
    why: &'a str,
    bytes: Option<u64>,
}

fn view<'a>(state_dir: &'a std::path::Path, item: &'a Item, bytes: Option<u64>) -> View<'a> {
    View {
        id: &item.id,
        kind: item.kind.word(),
        path: &item.path,
        state_dir,
        task_id: item.attempt.map(|attempt| attempt.task.to_string()),
        attempt: item.attempt.map(|attempt| attempt.number),
        name: &item.name,
        repository: &item.repository,
        worktree: item.worktree.as_deref(),
        why: &item.why,
        bytes,
    }
}

async fn list(session: &mut Session, args: &PlaceArgs) -> Result<()> {
    let found = all(session, args).await?;
    if session.out.json {
        return found.iter().try_for_each(|(state, item)| session.out.object(&view(state, item, None)));
    }
    let mut table = Table::new(&["ID", "KIND", "TASK", "AGE", "WHY", "PATH"]);
    for (_, item) in &found {
        table.row(&[
            item.id.clone(),
            item.kind.word().to_owned(),
            item.name.clone(),
            span(salvage::age(item)),
            item.why.clone(),
            item.path.display().to_string(),
        ]);
    }
    session.out.table(&table, "nothing to salvage")
}

async fn get(session: &mut Session, args: &GetArgs) -> Result<()> {
    let found = all(session, &args.place).await?;
    let (state, item) = one(&found, &args.id)?;
    let bytes = salvage::size(item).await;
    if session.out.json {
        return session.out.object(&view(state, item, Some(bytes)));
    }
    let worktree = item.worktree.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let task = item.attempt.map(|attempt| attempt.task.to_string()).unwrap_or_default();
    let number = item.attempt.map(|attempt| attempt.number.to_string()).unwrap_or_default();
    let rows = [
        ("id", item.id.clone()),
        ("kind", item.kind.word().to_owned()),
        ("why", item.why.clone()),
        ("path", item.path.display().to_string()),
        ("worktree", worktree),
        ("task", task),
        ("attempt", number),
        ("name", item.name.clone()),
        ("repository", item.repository.clone()),
        ("size", format!("{bytes} bytes")),
        ("changed", format!("{} ago", span(salvage::age(item)))),
    ];
    let rows: Vec<_> = rows.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    session.out.line(fields(&rows).trim_end())
}

async fn restore(session: &mut Session, args: &RestoreArgs) -> Result<()> {
    let found = all(session, &args.place).await?;
    let (_, item) = one(&found, &args.id)?;
    let into = session.current_dir()?.join(&args.into);
    let taken = salvage::restore(item, &into)
        .await
        .map_err(|error| Error::failed(format!("cannot restore {}: {}", item.id, chain(&error))))?;
    if session.out.json {
        return session.out.object(&taken);
    }
    for warning in &taken.warnings {
        super::output::note(warning);
    }
    let what = if taken.checkout { "a checkout with the work as it was" } else { "a copy" };
    session.out.line(&format!("{} is {what}; the original stays until `makima salvage rm {}`", into.display(), item.id))
}

async fn rm(session: &mut Session, args: &RmArgs) -> Result<()> {
    let found = all(session, &args.place).await?;
    let chosen = args.ids.iter().map(|id| one(&found, id)).collect::<Result<Vec<_>>>()?;
    if !args.yes {
        for (_, item) in &chosen {
            let bytes = salvage::size(item).await;
            session.out.line(&format!("{} {}: {} ({bytes} bytes)", item.kind.word(), item.id, item.path.display()))?;
            if let Some(worktree) = &item.worktree {
                session.out.line(&format!("  with its worktree {}", worktree.display()))?;
            }
        }
        return Err(Error::usage("this would be gone for ever: say --yes to do it"));
    }
    for (state, item) in chosen {
        salvage::remove(state, item)
            .await
            .map_err(|error| Error::failed(format!("cannot remove {}: {}", item.id, chain(&error))))?;
        if session.out.json {
            session.out.object(&view(state, item, None))?;
        } else {
            session.out.line(&format!("removed {}", item.path.display()))?;
        }
    }
    Ok(())
}

async fn all(session: &Session, args: &PlaceArgs) -> Result<Vec<(PathBuf, Item)>> {
    let mut found = Vec::new();
    for state_dir in state_dirs(session, args)? {
        let listed = salvage::list(&state_dir)
            .await
            .map_err(|error| Error::failed(format!("cannot look into {}: {}", state_dir.display(), chain(&error))))?;
        found.extend(listed.into_iter().map(|item| (state_dir.clone(), item)));
    }
    Ok(found)
}

/// By id, by path, or by the short id of its task, where that says which.
fn one<'a>(found: &'a [(PathBuf, Item)], wanted: &str) -> Result<(&'a std::path::Path, &'a Item)> {
    let named = |item: &Item| {
        let task = item.attempt.map(|attempt| attempt.task);
        item.id == wanted
            || item.path == std::path::Path::new(wanted)
            || task.is_some_and(|task| task.short() == wanted || task.to_string() == wanted)
    };
    let mut matching = found.iter().filter(|(_, item)| named(item));
    let (state, item) = matching.next().ok_or_else(|| {
        Error::failed(format!("{wanted} is nothing to salvage; `makima salvage list` shows what there is"))
    })?;
    if matching.next().is_some() {
        return Err(Error::usage(format!("{wanted} stands for several things: name one by its path")));
    }
    Ok((state, item))
}

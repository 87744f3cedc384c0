//! What a daemon finds when it starts: the attempts of its journal, and directories that the journal does not know.
//!
//! ```text
//!   journal row, live   ──> a runner, which looks at the shim: alive, ended, or gone (see `runner`)
//!   journal row, at end ──> its output, if the server does not have all of it (forgotten by `retention`)
//!   directory only      ──> listed to the server; its verdict decides
//!   directory, unreadable ─> left alone, and said so: salvage for a person
//! ```
//!
//! Nothing here waits for an agent, for git or for the server, so attaching is not delayed.

use std::{collections::HashSet, io, path::Path, sync::Arc};

use super::{
    Context,
    attempt_dir::{AttemptDir, Listed, Manifest},
    journal::{self, Row, State},
    runner::{
        blocking, chain,
        saving::{self, Saving},
    },
};
use crate::domain::AttemptId;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// In the journal, and not at their end.
    pub live: Vec<Row>,
    /// On the disk only.
    pub only_on_disk: Vec<Row>,
}

/// Looks.
pub(super) async fn look(context: &Arc<Context>) -> Result<Found, journal::Error> {
    let rows = context.journal.attempts().await?;
    let state = context.state.path().to_owned();
    let known: HashSet<AttemptId> = rows.iter().map(|row| row.attempt.id).collect();
    let only_on_disk = blocking(move || on_disk(&state, &known)).await;
    let (live, ended): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.state.is_live());
    upload_again(context, &ended).await;
    let pending = context.journal.uploads_pending().await?.into_iter().map(|upload| upload.attempt.id).collect();
    bring_again(context, &ended, &pending).await;
    if !live.is_empty() || !only_on_disk.is_empty() {
        tracing::info!(
            in_journal = live.len(),
            only_on_disk = only_on_disk.len(),
            "found attempts of an earlier process"
        );
    }
    Ok(Found { live, only_on_disk })
}

fn on_disk(state: &Path, known: &HashSet<AttemptId>) -> Vec<Row> {
    let listed = match AttemptDir::list_all(state) {
        Ok(listed) => listed,
        Err(error) => {
            tracing::error!(error = chain(&error), "the attempts' directories cannot be listed");
            return Vec::new();
        }
    };
    listed.into_iter().filter_map(|listed| row_of(listed, known)).collect()
}

fn row_of(listed: Listed, known: &HashSet<AttemptId>) -> Option<Row> {
    let Listed { dir, manifest } = listed;
    let manifest = match manifest {
        Ok(manifest) => manifest,
        Err(error) => {
            tracing::error!(
                directory = %dir.path().display(),
                error = chain(&error),
                "an attempt's directory cannot be understood; it is left alone, for a person"
            );
            return None;
        }
    };
    if known.contains(&manifest.attempt.id) {
        return None;
    }
    let state = match (dir.exit(), dir.started()) {
        // A record that cannot be read was begun when the agent had ended.
        (Ok(Some(_)) | Err(_), _) => State::Ending,
        (Ok(None), Ok(Some(_)) | Err(_)) => State::Running,
        (Ok(None), Ok(None)) => State::Accepted,
    };
    Some(row(manifest, &dir, state))
}

fn row(manifest: Manifest, dir: &AttemptDir, state: State) -> Row {
    Row {
        attempt: manifest.attempt,
        state,
        worktree: manifest.place.map(|place| place.worktree.display().to_string()).unwrap_or_default(),
        spawn: Some(manifest.spawn),
        directory: dir.path().to_owned(),
        stop: None,
        complete: None,
        uploaded: false,
        created: manifest.created,
        updated: manifest.created,
    }
}

/// Output of attempts that have ended goes on where it was.
async fn upload_again(context: &Arc<Context>, ended: &[Row]) {
    for row in ended.iter().filter(|row| !row.uploaded && row.state != State::Salvage) {
        if announce_output(context, row) == Announced::Nothing
            && let Err(error) = context.journal.uploaded(row.attempt).await
        {
            tracing::warn!(error = chain(&error), "the journal cannot be written");
        }
    }
}

/// What came of announcing the output of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announced {
    /// The server says how much of it is missing there.
    Output,
    /// It never had any.
    Nothing,
    /// It cannot be looked at now, and is announced at the next start.
    Unreadable,
}

/// Announces the output of an attempt that has ended.
pub(super) fn announce_output(context: &Context, row: &Row) -> Announced {
    let path = row.directory.join("output.log");
    let length = match path.metadata() {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Announced::Nothing,
        Err(error) => {
            tracing::error!(attempt = %row.attempt, path = %path.display(), %error, "output cannot be looked at");
            return Announced::Unreadable;
        }
    };
    let secret = row.spawn.as_ref().map(|spawn| spawn.task_key.as_str()).unwrap_or_default();
    context.bulk.open(row.attempt, path, &[secret]).finish(length);
    Announced::Output
}

/// Checkpoints of attempts that have ended go on to the server; a pack that is there has done its work. Those that live are
/// seen to by their runners, packs on their way by the journal.
async fn bring_again(context: &Arc<Context>, ended: &[Row], pending: &HashSet<AttemptId>) {
    for row in ended.iter().filter(|row| row.state != State::Salvage) {
        let Ok(dir) = AttemptDir::open(&row.directory) else { continue };
        if row.state == State::Over && !pending.contains(&row.attempt.id) {
            let _ = std::fs::remove_file(dir.result_pack());
        }
        if saving::is_owed(&dir) {
            Saving::open(context, &dir).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        daemon::{
            attempt_dir::tests as dirs, config::DiskFloor, journal::Change, retention::tests::over,
            supervisor::tests::context,
        },
        runtime::clock,
    };

    /// A result's pack that the server has, or does not want, makes room; that of an attempt which is not over does not.
    #[tokio::test]
    async fn a_pack_that_has_done_its_work_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let context = context(state.path(), DiskFloor::default()).await;
        let ((_, done), (waiting, kept)) = (over(&context, 2).await, over(&context, 3).await);
        let change = Change { state: Some(State::Reported), ..Change::default() };
        context.journal.record(waiting, change, clock::now()).await.unwrap();
        fs::write(done.result_pack(), "pack").unwrap();
        fs::write(kept.result_pack(), "pack").unwrap();
        look(&context).await.unwrap();
        assert!(!done.result_pack().exists() && kept.result_pack().exists());
    }

    /// An attempt of which the journal says nothing is where its directory says, and one that it knows is listed once.
    #[tokio::test]
    async fn a_directory_says_how_far_its_attempt_is() {
        let state = tempfile::tempdir().unwrap();
        let context = context(state.path(), DiskFloor::default()).await;
        let (known, _) = over(&context, 2).await;
        let made = || {
            let manifest = dirs::manifest(dirs::spawn_order("true"));
            (manifest.attempt, AttemptDir::create(state.path(), &manifest).unwrap())
        };
        let ((new, _), (began, running), (ended, over)) = (made(), made(), made());
        // Records that cannot be read were begun.
        fs::write(running.path().join("agent.json"), "{").unwrap();
        fs::write(over.path().join("exit.json"), "{").unwrap();
        let mut found = on_disk(state.path(), &[known.id].into());
        found.sort_by_key(|row| row.state as u8);
        let found: Vec<_> = found.into_iter().map(|row| (row.attempt, row.state)).collect();
        assert_eq!(found, [(new, State::Accepted), (began, State::Running), (ended, State::Ending)]);
    }
}

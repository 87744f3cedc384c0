//! What a daemon finds when it starts: the attempts of its journal, and directories that the journal does not know.
//!
//! ```text
//!   journal row, live   ──> a runner, which looks at the shim: alive, ended, or gone (see `runner`)
//!   journal row, at end ──> its output, if the server does not have all of it; forgotten when old and removed
//!   directory only      ──> listed to the server; its verdict decides
//!   directory, unreadable ─> left alone, and said so: salvage for a person
//! ```
//!
//! Nothing here waits for an agent, for git or for the server, so attaching is not delayed.

use std::{collections::HashSet, io, path::Path, sync::Arc, time::Duration};

use super::{
    Context,
    attempt_dir::{AttemptDir, Listed, Manifest},
    journal::{self, Row, State},
    runner::{
        blocking, chain,
        saving::{self, Saving},
    },
};
use crate::{
    domain::{AttemptId, AttemptRef, Timestamp},
    runtime::clock,
};

/// How long an attempt that is over is remembered, once its worktree has been removed.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

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
    forget_old(context, ended, &pending).await;
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

/// Forgets what is over, uploaded, old, and of which a person has removed the worktree; never what still has a file to bring to
/// the server, however old.
async fn forget_old(context: &Arc<Context>, ended: Vec<Row>, pending: &HashSet<AttemptId>) {
    let before = clock::now().before(REMEMBERED);
    // A checkpoint is in its attempt's book before it is in the journal.
    let is_owed = |row: &Row| {
        pending.contains(&row.attempt.id) || AttemptDir::open(&row.directory).is_ok_and(|dir| saving::is_owed(&dir))
    };
    let old: Vec<Row> = ended.into_iter().filter(|row| is_old(row, before) && !is_owed(row)).collect();
    if old.is_empty() {
        return;
    }
    let attempts: Vec<AttemptRef> = old.iter().map(|row| row.attempt).collect();
    let removed = blocking(move || {
        for row in old {
            if let Ok(dir) = AttemptDir::open(&row.directory)
                && let Err(error) = dir.remove()
            {
                tracing::warn!(error = chain(&error), "the directory of an old attempt cannot be removed");
            }
        }
    });
    removed.await;
    if let Err(error) = context.journal.prune(attempts).await {
        tracing::warn!(error = chain(&error), "the journal cannot be written");
    }
}

fn is_old(row: &Row, before: Timestamp) -> bool {
    row.state == State::Over
        && row.uploaded
        && row.updated < before
        && (row.worktree.is_empty() || !Path::new(&row.worktree).exists())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        daemon::{
            attempt_dir::tests as dirs,
            config::DiskFloor,
            journal::{Change, Upload},
            supervisor::tests::context,
        },
        domain::{CommandId, Epoch, attempt::Pack, order},
    };

    /// An attempt that was over long ago, with everything uploaded and its worktree gone.
    async fn over(context: &Context, sequence: i64) -> (AttemptRef, AttemptDir) {
        let (attempt, dir) = ended(context, sequence).await;
        context.journal.uploaded(attempt).await.unwrap();
        (attempt, dir)
    }

    /// The same, whose output is not with the server yet.
    async fn ended(context: &Context, sequence: i64) -> (AttemptRef, AttemptDir) {
        let manifest = dirs::manifest(dirs::spawn_order("true"));
        let attempt = manifest.attempt;
        let dir = AttemptDir::create(context.state.path(), &manifest).unwrap();
        let command = order::Command {
            sequence,
            id: CommandId(uuid::Uuid::new_v4()),
            epoch: Epoch(1),
            attempt,
            order: order::Order::Spawn(Box::new(manifest.spawn)),
        };
        let long_ago = clock::now().before(2 * REMEMBERED);
        context.journal.accept(vec![command], long_ago).await.unwrap();
        let change = Change { state: Some(State::Over), directory: Some(dir.path().to_owned()), ..Change::default() };
        context.journal.record(attempt, change, long_ago).await.unwrap();
        (attempt, dir)
    }

    /// What has nothing more to bring to the server is forgotten, what has is kept: a pack that the journal knows of, and a
    /// checkpoint that only its book does.
    #[tokio::test]
    async fn what_is_on_its_way_to_the_server_is_not_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let context = context(state.path(), DiskFloor::default()).await;
        let (gone, done) = over(&context, 2).await;
        let (owing, kept) = over(&context, 3).await;
        let (_, noted) = over(&context, 4).await;
        let whole = Pack { bytes: 4, sha256: "ab".repeat(32) };
        let path = kept.result_pack();
        fs::write(&path, "pack").unwrap();
        let created = clock::now();
        let upload =
            Upload { attempt: owing, checkpoint: None, path: path.clone(), whole: whole.clone(), about: None, created };
        context.journal.upload_add(upload).await.unwrap();
        let book = format!(
            "{{\"stored\": null, \"waiting\": [{{\"mark\": {{\"id\": \"{}\", \"commit\": \"c\", \"depth\": 1}}, \
             \"file\": \"x\", \"whole\": {}, \"about\": {}}}]}}",
            uuid::Uuid::now_v7(),
            serde_json::to_string(&whole).unwrap(),
            serde_json::to_string(&crate::domain::checkpoint::About::default()).unwrap(),
        );
        fs::write(noted.path().join("checkpoints.json"), book).unwrap();
        look(&context).await.unwrap();
        assert!(!done.path().exists());
        assert_eq!(fs::read_to_string(path).unwrap(), "pack");
        assert!(noted.path().exists());
        let known = context.journal.attempts().await.unwrap();
        assert!(known.iter().any(|row| row.attempt == owing), "{known:?}");
        assert!(!known.iter().any(|row| row.attempt == gone), "{known:?}");
    }

    /// Only what is old, over, and with the server, and whose worktree a person has removed, is forgotten.
    #[tokio::test]
    async fn only_what_nobody_misses_is_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let context = context(state.path(), DiskFloor::default()).await;
        let (unsent, with_output) = ended(&context, 2).await;
        let (young, just_over) = over(&context, 3).await;
        let (there, with_worktree) = over(&context, 4).await;
        let (unheard, reported) = over(&context, 5).await;
        let long_ago = clock::now().before(2 * REMEMBERED);
        let record = async |attempt, change, at| context.journal.record(attempt, change, at).await.unwrap();
        fs::write(with_output.output(), "output").unwrap();
        record(young, Change::default(), clock::now()).await;
        fs::write(just_over.result_pack(), "its work is done").unwrap();
        let worktree = Some(state.path().display().to_string());
        record(there, Change { worktree, ..Change::default() }, long_ago).await;
        record(unheard, Change { state: Some(State::Reported), ..Change::default() }, long_ago).await;
        look(&context).await.unwrap();
        for (kept, name) in [(with_output, "output"), (with_worktree, "worktree"), (reported, "report")] {
            assert!(kept.path().exists(), "{name}");
        }
        assert!(just_over.path().exists() && !just_over.result_pack().exists());
        let known = context.journal.attempts().await.unwrap();
        for attempt in [unsent, young, there, unheard] {
            assert!(known.iter().any(|row| row.attempt == attempt), "{known:?}");
        }
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

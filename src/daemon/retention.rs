//! What a daemon forgets: attempts that are over and of which nothing is needed any more, with their directories.
//!
//! ```text
//!   over? ── no, or a report, a file or output is still on its way to the server, or its worktree is there ──> stays
//!     └─ yes: among the newest 10,000, and changed within 7 days? ── yes ──> stays: the server may ask for its report again
//!                                                               └── no  ──> forgotten
//! ```
//!
//! By number as well as by age, so that the journal is bounded however many tasks an hour a machine has. Looked at in small
//! portions beside everything else: nobody's order waits for more than one.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Context,
    attempt_dir::AttemptDir,
    journal::{self, Portion, Row},
    runner::{blocking, chain, saving},
};
use crate::{domain::AttemptRef, runtime::clock};

/// How long an attempt that is over is remembered, once its worktree has been removed.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);
/// The newest attempts, which are remembered that long; of those before them only what is needed.
const NEWEST: i64 = 10_000;
/// Between looks at what there is beyond that number, while there is nothing.
const LOOK: Duration = Duration::from_secs(10);
/// The same while there is something: a fast machine has ten thousand attempts in ten seconds, and to forget them all at once
/// would hold up for a quarter of a second what else the machine does.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// Between looks at everything there is: at what is old, and at what was needed when it was looked at before.
const LOOK_AT_ALL: Duration = Duration::from_secs(3600);
/// Attempts of one look: as many as the journal's thread forgets in a few milliseconds.
const PORTION: usize = 100;

/// Runs until the daemon stops.
pub(super) async fn run(context: Arc<Context>) {
    let soft = context.shutdown.soft.clone();
    let work = async {
        let mut after = 0;
        let mut all: Option<Instant> = None;
        loop {
            let is_all = all.is_none_or(|last| last.elapsed() >= LOOK_AT_ALL);
            if is_all {
                (after, all) = (0, Some(Instant::now()));
            }
            let mut pause = LOOK;
            match pass(&context, after, is_all, NEWEST).await {
                Ok((last, forgotten)) => {
                    after = last;
                    if forgotten > 0 {
                        pause = LOOK_SOON;
                    }
                }
                Err(error) => tracing::warn!(error = chain(&error), "cannot forget what is old; trying again later"),
            }
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = soft.cancelled() => {}
        () = work => {}
    }
}

/// Forgets what it may, of those that the journal took in after this place; all of them, or those beyond the `newest`. Answers
/// the place of the last one looked at, and how many were forgotten.
async fn pass(context: &Arc<Context>, mut after: i64, all: bool, newest: i64) -> Result<(i64, usize), journal::Error> {
    let before = all.then(|| clock::now().before(REMEMBERED));
    let mut forgotten = 0;
    loop {
        let Portion { rows, last } = context.journal.not_needed(after, newest, before, PORTION).await?;
        let Some(last) = last else { break };
        after = last;
        let gone = blocking(move || rows.iter().filter_map(remove).collect::<Vec<_>>()).await;
        if !gone.is_empty() {
            forgotten += gone.len();
            context.journal.prune(gone).await?;
        }
    }
    if forgotten > 0 {
        context.journal.prune_commands().await?;
        tracing::debug!(forgotten, "forgot attempts that are over");
    }
    Ok((after, forgotten))
}

/// Removes what there is of an attempt beside the journal, unless it is needed.
fn remove(row: &Row) -> Option<AttemptRef> {
    if !row.worktree.is_empty() && Path::new(&row.worktree).exists() {
        return None;
    }
    if let Ok(dir) = AttemptDir::open(&row.directory) {
        // A checkpoint is in its attempt's book before it is in the journal.
        if saving::is_owed(&dir) {
            return None;
        }
        if let Err(error) = dir.remove() {
            tracing::warn!(error = chain(&error), "the directory of an old attempt cannot be removed");
        }
    }
    Some(row.attempt)
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::*;
    use crate::{
        daemon::{
            attempt_dir::tests as dirs,
            config::DiskFloor,
            journal::{Change, State, Upload},
            supervisor::tests::context,
        },
        domain::{CommandId, Epoch, attempt::Pack, order},
    };

    /// An attempt that was over long ago, with everything uploaded and its worktree gone.
    pub(crate) async fn over(context: &Context, sequence: i64) -> (AttemptRef, AttemptDir) {
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
        pass(&context, 0, true, NEWEST).await.unwrap();
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
        let worktree = Some(state.path().display().to_string());
        record(there, Change { worktree, ..Change::default() }, long_ago).await;
        record(unheard, Change { state: Some(State::Reported), ..Change::default() }, long_ago).await;
        pass(&context, 0, true, NEWEST).await.unwrap();
        for (kept, name) in
            [(with_output, "output"), (with_worktree, "worktree"), (reported, "report"), (just_over, "age")]
        {
            assert!(kept.path().exists(), "{name}");
        }
        let known = context.journal.attempts().await.unwrap();
        for attempt in [unsent, young, there, unheard] {
            assert!(known.iter().any(|row| row.attempt == attempt), "{known:?}");
        }
    }

    /// Beyond the newest, what is over is forgotten however young it is, with its directory and in the order in which it came;
    /// what is needed stays, and does not keep those after it from going.
    #[tokio::test]
    async fn what_is_beyond_the_newest_is_forgotten_at_once() {
        let state = tempfile::tempdir().unwrap();
        let context = context(state.path(), DiskFloor::default()).await;
        let mut made = Vec::new();
        for sequence in 2..8 {
            let (attempt, dir) = over(&context, sequence).await;
            context.journal.record(attempt, Change::default(), clock::now()).await.unwrap();
            made.push((attempt, dir));
        }
        let worktree = Some(state.path().display().to_string());
        let there = Change { worktree, ..Change::default() };
        context.journal.record(made[1].0, there, clock::now()).await.unwrap();
        let known = async || -> Vec<AttemptRef> {
            let rows = context.journal.attempts().await.unwrap();
            made.iter().map(|(attempt, _)| *attempt).filter(|it| rows.iter().any(|row| row.attempt == *it)).collect()
        };
        let expected = |kept: &[usize]| -> Vec<AttemptRef> { kept.iter().map(|n| made[*n].0).collect() };

        let (last, _) = pass(&context, 0, false, 3).await.unwrap();
        assert_eq!(known().await, expected(&[1, 3, 4, 5]));
        assert!(!made[0].1.path().exists() && made[1].1.path().exists() && made[3].1.path().exists());
        // The next look begins where this one ended, and one at all of them finds what was needed then.
        let (more, _) = over(&context, 8).await;
        context
            .journal
            .record(made[1].0, Change { worktree: Some(String::new()), ..Change::default() }, clock::now())
            .await
            .unwrap();
        pass(&context, last, false, 3).await.unwrap();
        assert_eq!(known().await, expected(&[1, 4, 5]));
        pass(&context, 0, true, 3).await.unwrap();
        assert_eq!(known().await, expected(&[4, 5]));
        assert!(!context.journal.attempts().await.unwrap().iter().any(|row| row.attempt == more), "it is old");
    }
}

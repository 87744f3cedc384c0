//! The disk guard: when the disk is short, worktrees that nobody needs any more make room, oldest first.
//!
//! ```text
//!   below the floor? ─> attempts that are over, oldest first ─> is all of it with the server? ─> removed, logged, reported
//!                                                                └ a result that was delivered, or that whoever has the
//!                                                                  repository has, and nothing beside it
//!                                                                └ or a checkpoint that nothing has changed since
//! ```
//!
//! Never one in use, never one that another attempt is to go on in, never work that is only here.

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    Context,
    attempt_dir::{AttemptDir, Place},
    checkpoint,
    git::{LOCAL_TIMEOUT, attempt, git},
    journal::{Change, Row, State},
    runner::{chain, saving::Saving},
    worktree,
};
use crate::{
    domain::{attempt::TaskResult, report::Report},
    runtime::clock,
};

/// Between looks at the disk.
const LOOK: Duration = Duration::from_secs(30);
/// How long room that was made takes to be seen ([`super::health`] looks once a second).
const SEEN: Duration = Duration::from_millis(1_100);

/// Runs until the daemon stops.
pub(super) async fn run(context: Arc<Context>) {
    let soft = context.shutdown.soft.clone();
    let work = async {
        loop {
            tokio::time::sleep(LOOK).await;
            if is_short(&context) {
                make_room(&context).await;
            }
        }
    };
    tokio::select! {
        () = soft.cancelled() => {}
        () = work => {}
    }
}

fn is_short(context: &Context) -> bool {
    let vitals = context.health.vitals();
    vitals.known && !vitals.not_accepting.is_empty()
}

/// Removes worktrees until there is room, or none is left that may go.
async fn make_room(context: &Arc<Context>) {
    let mut rows = match context.journal.attempts().await {
        Ok(rows) => rows,
        Err(error) => return tracing::warn!(error = chain(&error), "the journal cannot be read"),
    };
    rows.retain(is_over);
    rows.sort_by_key(|row| row.updated);
    for row in rows {
        if !is_short(context) {
            return;
        }
        if let Some(place) = removable(context, &row).await {
            remove(context, &row, &place).await;
            tokio::time::sleep(SEEN).await;
        }
    }
}

/// It has ended, the server has heard how, and nothing of it is on its way. One whose agent had vanished has no such end: the
/// next attempt may be about to go on in its worktree.
fn is_over(row: &Row) -> bool {
    row.state == State::Over && row.complete.is_some() && row.uploaded && Path::new(&row.worktree).exists()
}

/// Its place, if all that was made there is with the server.
async fn removable(context: &Arc<Context>, row: &Row) -> Option<Place> {
    let dir = AttemptDir::open(&row.directory).ok()?;
    let place = dir.manifest().ok().filter(|manifest| manifest.superseded.is_none())?.place?;
    if !worktree::is_intact(&place) {
        return None;
    }
    let result = row.complete.as_ref().and_then(|complete| complete.outcome.as_ref().ok());
    let delivered = match result {
        Some(result) if dir.was_delivered() || checkpoint::is_elsewhere(&place, result) => {
            is_only(&place, result).await
        }
        _ => false,
    };
    if delivered {
        return Some(place);
    }
    let saving = Saving::open(context, &dir).await?;
    let session = row.complete.as_ref().map(|complete| complete.progress.agent_session_id.clone());
    saving.is_all_stored(session.unwrap_or_default()).await.then_some(place)
}

/// The worktree holds this result and nothing else.
async fn is_only(place: &Place, result: &TaskResult) -> bool {
    let dir = &place.worktree;
    let head = attempt("read HEAD", LOCAL_TIMEOUT, || git(dir).args(["rev-parse", "HEAD"])).await;
    let head = head.is_ok_and(|head| head.success() && head.text() == result.commit);
    head && !worktree::is_dirty(dir).await.unwrap_or(true)
}

async fn remove(context: &Arc<Context>, row: &Row, place: &Place) {
    let path = place.worktree.display();
    if let Err(error) = worktree::remove(context.state.path(), &place.worktree, true).await {
        return tracing::warn!(worktree = %path, %error, "the disk is short, but a worktree cannot be removed");
    }
    let message =
        format!("the disk was short, so the worktree {path} was removed; the server has all that was made in it");
    tracing::warn!(attempt = %row.attempt, message, "disk guard");
    let change = Change { reports: vec![Report::Warning { message }], ..Change::default() };
    if let Err(error) = context.journal.record(row.attempt, change, clock::now()).await {
        tracing::warn!(error = chain(&error), "the journal cannot be written");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        daemon::{
            attempt_dir::tests as dirs,
            checkpoint::{Outcome, Source, capture, known_elsewhere},
            config::DiskFloor,
            git::testing,
            journal::Journal,
            repository::Repositories,
            supervisor::tests::context,
        },
        domain::{
            CommandId, Epoch,
            attempt::{Failure, FailureClass},
            order::{Command, Order},
            report::{Complete, InventoryState, MessageOutcome, Progress},
        },
    };

    /// An attempt with a worktree of its own that made a file, and how it ended.
    struct Made {
        dir: AttemptDir,
        place: Place,
    }

    struct Bench {
        context: Arc<Context>,
        repository: String,
        sequence: i64,
        /// Whoever ends next leaves no record of it.
        has_vanished: bool,
        /// Whoever comes next makes nothing.
        is_idle: bool,
    }

    impl Bench {
        fn journal(&self) -> &Journal {
            &self.context.journal
        }

        /// A result that origin has, where it is to have one; else a failure.
        async fn made(&mut self, name: &str, has_result: bool) -> Made {
            self.sequence += 1;
            let state = self.context.state.path();
            let mut spawn = dirs::spawn_order("true");
            (spawn.name, spawn.repository) = (name.to_owned(), self.repository.clone());
            spawn.branch = format!("makima/{name}/1");
            let mut manifest = dirs::manifest(spawn);
            manifest.spawn.result_ref = format!("refs/makima/results/{}", manifest.attempt.task);
            let attempt = manifest.attempt;
            let repo = Repositories::new(self.context.state.repositories()).ensure(&self.repository, "", &[]).await;
            let path = self.context.state.worktree(attempt);
            let prepared = worktree::prepare(&repo.unwrap(), &manifest.spawn, attempt, &path).await.unwrap();
            manifest.place = Some(prepared.place.clone());
            let dir = AttemptDir::create(state, &manifest).unwrap();
            dir.save(&manifest).unwrap();
            if !self.is_idle {
                fs::write(path.join(name), "made\n").unwrap();
            }
            let outcome = if has_result {
                Ok(worktree::finish(&manifest).await.unwrap().result)
            } else {
                Err(Failure::new(FailureClass::AgentError, "failed"))
            };
            let complete =
                Complete { outcome, progress: Progress::default(), output_bytes: 0, exit_code: Some(0), signal: 0 };
            let order = Order::Spawn(Box::new(manifest.spawn));
            let (sequence, id) = (self.sequence, CommandId(uuid::Uuid::new_v4()));
            let command = Command { sequence, id, epoch: Epoch(1), attempt, order };
            self.journal().accept(vec![command], clock::now()).await.unwrap();
            let worktree = path.display().to_string();
            let (state, report) = if self.has_vanished {
                let previous = InventoryState::Running;
                let report = Report::RecoveryDetected {
                    previous,
                    worktree_intact: true,
                    worktree: worktree.clone(),
                    needs_patch: false,
                };
                (State::Interrupted, report)
            } else {
                (State::Reported, Report::Complete(complete))
            };
            let change = Change {
                state: Some(state),
                directory: Some(dir.path().to_owned()),
                worktree: Some(worktree),
                reports: vec![report],
                ..Change::default()
            };
            self.journal().record(attempt, change, clock::now()).await.unwrap();
            Made { dir, place: prepared.place }
        }

        /// The same, and the server has heard of it and has its output.
        async fn over(&mut self, name: &str, has_result: bool) -> Made {
            let made = self.made(name, has_result).await;
            self.heard(&made).await;
            self.journal().uploaded(made.dir.manifest().unwrap().attempt).await.unwrap();
            made
        }

        /// The server has heard of its end.
        async fn heard(&self, made: &Made) {
            let last = *self.journal().newest().borrow();
            self.journal().answered(last, MessageOutcome::Applied, clock::now()).await.unwrap();
            let attempt = made.dir.manifest().unwrap().attempt;
            assert_eq!(self.journal().attempt(attempt).await.unwrap().unwrap().state, State::Over);
        }

        /// A failure whose work the server has a checkpoint of.
        async fn stored(&mut self, name: &str) -> Made {
            let made = self.over(name, false).await;
            self.store(&made).await;
            made
        }

        /// The same, and output is on its way.
        async fn stored_unless_uploaded(&mut self, name: &str) -> Made {
            let made = self.made(name, false).await;
            self.heard(&made).await;
            self.store(&made).await;
            made
        }

        /// The agent was gone when the daemon came back: the server has a checkpoint, and wants the next attempt to go on here.
        async fn vanished(&mut self, name: &str) -> Made {
            self.has_vanished = true;
            let made = self.over(name, false).await;
            self.has_vanished = false;
            self.store(&made).await;
            made
        }

        async fn store(&self, made: &Made) {
            let exclude = known_elsewhere(&made.place);
            let source =
                Source { place: made.place.clone(), exclude, transcript: None, previous: None, even_unchanged: false };
            let Outcome::Taken(taken) = capture(&source, &made.dir.path().join("checkpoints")).await.unwrap() else {
                panic!("unchanged")
            };
            let mark = serde_json::json!({ "id": taken.id, "commit": taken.commit, "depth": 1, "complete": true });
            made.dir.write("checkpoints.json", &serde_json::json!({ "stored": mark, "waiting": [] })).unwrap();
        }
    }

    /// What the server has all of makes room, oldest first; what has more than it, what it has not heard of, and what somebody
    /// is to go on in never does, however short the disk is.
    #[tokio::test]
    async fn only_what_the_server_has_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let origin = testing::repository(dir.path()).await;
        // No disk has as much.
        let floor = DiskFloor { bytes: u64::MAX / 2, percent: 0 };
        let context = context(&dir.path().join("state"), floor).await;
        let repository = format!("file://{}", origin.display());
        let mut bench =
            Bench { context: Arc::clone(&context), repository, sequence: 1, has_vanished: false, is_idle: false };
        let gone = [bench.over("first", true).await, bench.stored("second").await, bench.over("third", true).await];
        let dirty = bench.over("dirty", true).await;
        fs::write(dirty.place.worktree.join("later"), "later\n").unwrap();
        let newer = bench.stored("newer").await;
        fs::write(newer.place.worktree.join("later"), "later\n").unwrap();
        let unstored = bench.over("unstored", false).await;
        let unheard = bench.made("unheard", true).await;
        let handed = bench.over("handed", true).await;
        let mut manifest = handed.dir.manifest().unwrap();
        manifest.superseded = Some(unheard.dir.manifest().unwrap().attempt);
        handed.dir.save(&manifest).unwrap();
        // Its output is with the server, and the word of its end is not.
        bench.journal().uploaded(unheard.dir.manifest().unwrap().attempt).await.unwrap();
        let ahead = bench.over("ahead", true).await;
        testing::commit(&ahead.place.worktree, &[("later", "later\n")], "later").await;
        let partly = bench.stored("partly").await;
        let book = fs::read_to_string(partly.dir.path().join("checkpoints.json")).unwrap();
        assert!(book.contains("\"complete\": true") || book.contains("\"complete\":true"), "{book}");
        fs::write(partly.dir.path().join("checkpoints.json"), book.replace("true", "false")).unwrap();
        let unsent = bench.stored_unless_uploaded("unsent").await;
        let vanished = bench.vanished("vanished").await;
        let hook = origin.join(".git/hooks/pre-receive");
        fs::create_dir_all(hook.parent().unwrap()).unwrap();
        fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
        fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let unpublished = bench.over("unpublished", true).await;
        bench.is_idle = true;
        let gone = gone.into_iter().chain([bench.over("idle", true).await]).collect::<Vec<_>>();

        assert!(is_short(&context));
        make_room(&context).await;
        for (made, name) in gone.iter().zip(["first", "second", "third", "idle"]) {
            assert!(!made.place.worktree.exists(), "{name}");
        }
        let other = [&ahead, &partly, &unsent, &vanished, &unpublished];
        for kept in [&dirty, &newer, &unstored, &unheard, &handed].into_iter().chain(other) {
            assert!(kept.place.worktree.join(".git").exists(), "{}", kept.place.branch);
        }
        assert_eq!(fs::read_to_string(dirty.place.worktree.join("later")).unwrap(), "later\n");
        // Each was said of its attempt, in the order of their ends.
        let said = bench.journal().outbox(0, 1_000).await.unwrap();
        let removed =
            |report: &Report| matches!(report, Report::Warning { message } if message.contains("was removed"));
        let said: Vec<_> = said.iter().filter(|it| removed(&it.report)).map(|it| it.attempt).collect();
        assert_eq!(said, gone.iter().map(|made| made.dir.manifest().unwrap().attempt).collect::<Vec<_>>());
    }

    /// With room enough nothing goes.
    #[tokio::test]
    async fn with_room_everything_stays() {
        let dir = tempfile::tempdir().unwrap();
        let origin = testing::repository(dir.path()).await;
        let context = context(&dir.path().join("state"), DiskFloor { bytes: 0, percent: 0 }).await;
        let repository = format!("file://{}", origin.display());
        let mut bench =
            Bench { context: Arc::clone(&context), repository, sequence: 1, has_vanished: false, is_idle: false };
        let made = bench.over("first", true).await;
        make_room(&context).await;
        assert!(made.place.worktree.join(".git").exists());
    }
}

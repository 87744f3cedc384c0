//! What people do with the work of a task: take it into their own hands, have it go on elsewhere, or have more than one go on
//! from it.

use std::{fs, path::Path, time::Duration};

use makima::wire::pb::TaskStatus;

use super::{create, lose_machine, no_agents, options, until, worktree, world};
use crate::harness::{Repo, World, client::shell};

/// Commits, stages and leaves something, then waits; when it is started again on its work, it says what it finds.
const HALF: &str = "if [ \"${MAKIMA_RESUMED:-}\" = 1 ]; then cat own half > whole; exit 0; fi
    echo own > own; git add own; git commit -qm own; echo staged > staged; git add staged; echo half > half
    echo ready > ready; sleep 1000";

/// Runs a command that succeeds; answers what it says.
async fn says(world: &World, args: &[&str]) -> String {
    let output = world.cli(args).await;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "makima {args:?}: {stdout}{stderr}");
    stdout.into_owned()
}

/// Runs a command that fails; answers why.
async fn complains(world: &World, args: &[&str]) -> String {
    let output = world.cli(args).await;
    assert!(!output.status.success(), "makima {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A repository that somebody else made.
fn at(path: &Path) -> Repo {
    Repo { path: path.to_owned() }
}

fn text(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_else(|error| panic!("{}/{name}: {error}", dir.display()))
}

/// Of a task that runs, has failed, or is done: its work comes into a directory and is shown as a difference, also when the
/// machine that has it is gone; of one without work, it is said that there is none.
async fn comes_into_hands(repository: impl Fn(&Repo) -> String, machine_goes: bool) {
    let mut world = world().await;
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    let client = world.client();
    let go = world.dir.join("go");
    let runs = format!(
        "echo own > own; git add own; git commit -qm own; echo staged > staged; git add staged; echo half > half
        echo ready > ready; until test -e {}; do sleep 0.1; done; echo whole > half",
        go.display()
    );
    let mut fails = shell("fails", "echo tried > tried; exit 3", &[]);
    fails.limits.get_or_insert_default().max_retries = Some(0);
    let tasks = vec![shell("runs", &runs, &[]), fails, shell("waits", "true", &["runs"])];
    let tasks = create(&client, &repository(&repo), Duration::ZERO, tasks).await;
    let id = |at: usize| tasks[at].task_id.as_str();
    until(&client, id(0), TaskStatus::Running).await;
    let place = worktree(&client, id(0)).await;
    world.file_appears(&place.join("ready")).await;

    let first = &world.cli_json(&["task", "checkpoint", "now", "runs", "--wait"]).await[0];
    // Whoever asks again gets another, although nothing has changed.
    let taken = &world.cli_json(&["task", "checkpoint", "now", "runs", "--wait"]).await[0];
    assert_eq!((&taken["reason"], &taken["base_checkpoint_id"]), (&"ASKED".into(), &first["checkpoint_id"]));
    let head = taken["head"].as_str().unwrap();
    let checkpoint = taken["checkpoint_id"].as_str().unwrap();
    let names = says(&world, &["task", "diff", "runs", "--stat"]).await;
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["A\thalf", "A\town", "A\tready", "A\tstaged"]);
    assert!(says(&world, &["task", "diff", checkpoint]).await.contains("\n+half\n"));
    for (of, into) in [("runs", "by-task"), (checkpoint, "by-checkpoint")] {
        let dir = world.dir.join(into);
        let made = &world.cli_json(&["task", "restore", of, "--into", into, "--branch", "mine"]).await[0];
        assert_eq!((made["checkpoint_id"].as_str(), made["branch"].as_str()), (Some(checkpoint), Some("mine")));
        let hands = at(&dir);
        assert_eq!(hands.git(&["rev-parse", "mine"]), head);
        assert_eq!(hands.git(&["status", "--porcelain"]), "A  staged\n?? half\n?? ready");
        assert_eq!((text(&dir, "own"), text(&dir, "half")), ("own\n".into(), "half\n".into()));
        let full = complains(&world, &["task", "restore", of, "--into", into]).await;
        assert!(full.contains("exists and is not empty"), "{full}");
        assert_eq!(text(&dir, "half"), "half\n");
    }

    until(&client, id(1), TaskStatus::Failed).await;
    assert_eq!(says(&world, &["task", "diff", "fails", "--stat"]).await, "A\ttried\n");
    says(&world, &["task", "restore", "fails", "--into", "failed"]).await;
    assert_eq!(text(&world.dir.join("failed"), "tried"), "tried\n");
    for command in [&["task", "diff", "waits"][..], &["task", "restore", "waits", "--into", "none"]] {
        let why = complains(&world, command).await;
        assert!(why.contains("there is no checkpoint of the task yet"), "{why}");
    }
    assert!(!world.dir.join("none").exists());

    fs::write(&go, "").unwrap();
    let done = until(&client, id(0), TaskStatus::Done).await;
    until(&client, id(2), TaskStatus::Done).await;
    if machine_goes {
        lose_machine(&mut world, "a").await;
    }
    let made = &world.cli_json(&["task", "restore", "runs", "--into", "done"]).await[0];
    assert_eq!(made["head"].as_str(), Some(done.result_commit.as_str()));
    let dir = world.dir.join("done");
    let hands = at(&dir);
    assert_eq!(hands.git(&["rev-parse", "HEAD"]), done.result_commit);
    assert_eq!(hands.git(&["status", "--porcelain"]), "");
    assert_eq!(text(&dir, "half"), "whole\n");
    let names = says(&world, &["task", "diff", "runs", "--stat"]).await;
    assert_eq!(names, "A\thalf\nA\town\nA\tready\nA\tstaged\n");
    assert!(says(&world, &["task", "diff", "runs"]).await.contains("\n+whole\n"));
    // It made nothing; what it builds on is not its own.
    assert_eq!(says(&world, &["task", "diff", "waits"]).await, "");
    let why = complains(&world, &["task", "restore", "runs", "--into", "more", "--transcript", "said"]).await;
    assert!(why.contains("a result has no conversation"), "{why}");
    assert!(!world.dir.join("more").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_on_a_url_comes_into_a_persons_hands() {
    comes_into_hands(Repo::file_url, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_on_a_path_comes_into_a_persons_hands() {
    comes_into_hands(Repo::url, false).await;
}

/// Whoever asks for a checkpoint that cannot be taken hears why, each time, and does not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_cannot_be_taken_is_not_waited_for() {
    let mut world = world().await;
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    let client = world.client();
    let tasks = create(&client, &repo.file_url(), Duration::ZERO, vec![shell("t", HALF, &[])]).await;
    until(&client, &tasks[0].task_id, TaskStatus::Running).await;
    let place = worktree(&client, &tasks[0].task_id).await;
    world.file_appears(&place.join("ready")).await;
    let attempts: Vec<_> = fs::read_dir(world.daemon_state("a").join("attempts")).unwrap().flatten().collect();
    // Nothing can be written where checkpoints are.
    let in_the_way = attempts[0].path().join("checkpoints");
    fs::write(&in_the_way, "").unwrap();
    for _ in 0..2 {
        let why = complains(&world, &["task", "checkpoint", "now", "t", "--wait"]).await;
        assert!(why.contains("no checkpoint was taken, the task goes on: the work cannot be checkpointed: "), "{why}");
    }
    fs::remove_file(in_the_way).unwrap();
    says(&world, &["task", "checkpoint", "now", "t", "--wait"]).await;
    // The error belongs to the past.
    let attempt = &client.task(&tasks[0].task_id).await.attempts[0];
    assert_eq!((attempt.checkpoint_error.as_str(), attempt.checkpoint_error_time), ("", None));
}

/// Where the repository of a checkpoint is not to be had, the complaint says how to name another, and that one does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_on_a_repository_that_has_moved_comes_into_hands() {
    let mut world = world().await;
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    let client = world.client();
    let tasks = create(&client, &repo.file_url(), Duration::ZERO, vec![shell("t", HALF, &[])]).await;
    until(&client, &tasks[0].task_id, TaskStatus::Running).await;
    let place = worktree(&client, &tasks[0].task_id).await;
    world.file_appears(&place.join("ready")).await;
    says(&world, &["task", "checkpoint", "now", "t", "--wait"]).await;
    let moved = world.dir.join("moved");
    fs::rename(&repo.path, &moved).unwrap();
    for command in [&["task", "restore", "t", "--into", "hands"][..], &["task", "diff", "t"]] {
        let why = complains(&world, command).await;
        assert!(why.contains("cannot clone ") && why.contains("; --repo names another repository"), "{why}");
        let moved = moved.display().to_string();
        says(&world, &[command, &["--repo", &moved]].concat()).await;
    }
    assert_eq!(text(&world.dir.join("hands"), "half"), "half\n");
}

/// A task that is moved goes on from all that it had done, on the other machine, without a checkpoint before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moved_task_takes_its_work_along() {
    let mut world = world().await;
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    let client = world.client();
    let tasks = create(&client, &repo.file_url(), Duration::ZERO, vec![shell("t", HALF, &[])]).await;
    let id = tasks[0].task_id.as_str();
    until(&client, id, TaskStatus::Running).await;
    let place = worktree(&client, id).await;
    world.file_appears(&place.join("ready")).await;
    let own = at(&place).git(&["rev-parse", "HEAD"]);

    world.start_daemon_with("b", options()).await;
    says(&world, &["task", "reassign", "t", "--to", "b"]).await;
    let done = until(&client, id, TaskStatus::Done).await;
    assert_eq!((done.daemon_name.as_str(), done.attempt), ("b", 2));
    let place = worktree(&client, id).await;
    assert!(place.starts_with(world.daemon_state("b")), "{}", place.display());
    assert_eq!((text(&place, "whole"), text(&place, "staged")), ("own\nhalf\n".into(), "staged\n".into()));
    assert!(at(&place).is_ancestor(&own, &done.result_commit));
    no_agents(&world).await;
}

/// New tasks go on from the work of one that still runs, which is not disturbed; so does a second try from a checkpoint, and
/// what is released by force.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_go_on_from_the_work() {
    let mut world = world().await;
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    let client = world.client();
    let tasks = create(&client, &repo.file_url(), Duration::ZERO, vec![shell("t", HALF, &[])]).await;
    let id = tasks[0].task_id.as_str();
    until(&client, id, TaskStatus::Running).await;
    world.file_appears(&worktree(&client, id).await.join("ready")).await;
    let taken = &world.cli_json(&["task", "checkpoint", "now", "t", "--wait"]).await[0];
    let (checkpoint, own) = (taken["checkpoint_id"].as_str().unwrap(), taken["head"].as_str().unwrap());

    for (verb, of, name) in [("fork", "t", "forked"), ("branch", "t", "branched"), ("fork", checkpoint, "again")] {
        let plan = "cat own staged half > all";
        let made = &world.cli_json(&["task", verb, of, "--name", name, "--plan", plan]).await[0];
        let made = made["task_id"].as_str().unwrap();
        let done = until(&client, made, TaskStatus::Done).await;
        let place = worktree(&client, made).await;
        assert_eq!(text(&place, "all"), "own\nstaged\nhalf\n", "{verb} {of}");
        assert!(at(&place).is_ancestor(own, &done.result_commit), "{verb} {of}");
        assert_eq!(done.attempt, 1, "{verb} {of}");
    }
    let first = until(&client, id, TaskStatus::Running).await;
    assert_eq!(first.attempt, 1);

    says(&world, &["task", "force-release", "t", "--reason", "it sleeps"]).await;
    let done = until(&client, id, TaskStatus::Done).await;
    assert_eq!(done.attempt, 2);
    assert_eq!(text(&worktree(&client, id).await, "whole"), "own\nhalf\n");
    // From the checkpoint, not from what was made of it since.
    says(&world, &["task", "resume", "t", "--from", checkpoint, "--wait"]).await;
    let done = until(&client, id, TaskStatus::Done).await;
    assert_eq!(done.attempt, 3);
    let place = worktree(&client, id).await;
    assert_eq!(text(&place, "whole"), "own\nhalf\n");
    assert_eq!(at(&place).git(&["rev-parse", "HEAD~1"]), own);
    no_agents(&world).await;
}

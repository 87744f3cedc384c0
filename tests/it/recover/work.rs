//! Work that is not done yet.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use makima::wire::pb::{self, AttemptStatus, FailureClass, TaskStatus};

use super::{checkpointed, create, lose_machine, no_agents, options, until, worktree, world};
use crate::harness::{DaemonOptions, Repo, client::shell, eventually, eventually::ensure};

fn move_worktree(from: &Path, to: &Path) {
    let [old, new] = [from, to].map(|path| path.to_str().unwrap());
    Repo { path: from.to_owned() }.git(&["worktree", "move", old, new]);
}

/// The daemon and its agent are killed. The next attempt goes on in the same worktree, as it was left, on a branch of its own,
/// and setup is not run again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_goes_on_where_it_was() {
    let mut world = world().await;
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    let setups = world.dir.join("setups");
    let script = "if [ \"${MAKIMA_RESUMED:-}\" = 1 ]; then echo second >> work; exit 0; fi
        echo first > work; git add work; git commit -qm own; echo staged > staged; git add staged; echo more >> work
        echo ready > ready; sleep 1000";
    let mut task = shell("long", script, &[]);
    task.setup_command = format!("echo setup >> {}", setups.display());
    let client = world.client();
    let id = create(&client, &repo.file_url(), Duration::ZERO, vec![task]).await[0].task_id.clone();
    until(&client, &id, TaskStatus::Running).await;
    let place = worktree(&client, &id).await;
    world.file_appears(&place.join("ready")).await;

    world.kill_daemon("a");
    for found in world.shims().iter().chain(&world.agents()) {
        found.kill();
    }
    // As after a reboot.
    let boot = |id: &str| vec![("MAKIMA_TEST_BOOT_ID".to_owned(), id.to_owned())];
    world.start_daemon_with("a", DaemonOptions { env: boot("another"), ..options() }).await;
    let done = until(&client, &id, TaskStatus::Done).await;
    assert_eq!(done.attempt, 2);
    let attempts = client.task(&id).await.attempts;
    assert_eq!(attempts[0].worktree_path, attempts[1].worktree_path);
    assert_ne!(attempts[0].branch, attempts[1].branch);
    assert_eq!(fs::read_to_string(place.join("work")).unwrap(), "first\nmore\nsecond\n");
    assert_eq!(fs::read_to_string(place.join("staged")).unwrap(), "staged\n");
    assert_eq!(fs::read_to_string(setups).unwrap(), "setup\n");
    no_agents(&world).await;
}

/// A machine whose power went comes back, and goes for good before the next attempt could begin on it: what its agent had done is
/// with the server by then, as it is wherever an attempt ends without a result, and so is the conversation that it had, in a session
/// that it has named itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_agent_left_is_not_on_its_machine_alone() {
    let mut world = world().await;
    let talks = world.dir.join("talks");
    fs::create_dir(&talks).unwrap();
    let profile = format!(
        "[daemon.profiles.talker]\ncommand = \"sh\"\nargs = [\"-eu\", \"{{plan_file}}\"]\nparser = \"claude-stream-json\"
        transcript = \"{}/{{session}}\"\n",
        talks.display()
    );
    let options = || DaemonOptions { config: format!("{}\n{profile}", options().config), ..options() };
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    let script = format!(
        "if [ \"${{MAKIMA_RESUMED:-}}\" = 1 ]; then
            cat work > got; echo '{{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":false,\"result\":\"\"}}'; exit 0
        fi
        echo '{{\"type\":\"system\",\"subtype\":\"init\",\"session_id\":\"its-own\"}}'; echo '{{}}' > {}/its-own
        echo first > work; echo ready > ready; sleep 1000",
        talks.display()
    );
    let client = world.client();
    let long = pb::TaskSpec { agent: "talker".to_owned(), ..shell("long", &script, &[]) };
    let task = create(&client, &repo.file_url(), Duration::ZERO, vec![long]).await.remove(0);
    until(&client, &task.task_id, TaskStatus::Running).await;
    let place = worktree(&client, &task.task_id).await;
    world.file_appears(&place.join("ready")).await;

    // What runs goes on; nothing else begins.
    let contract_id = task.contract_id.clone();
    let hold = pb::HoldContractRequest { contract_id: contract_id.clone(), ..pb::HoldContractRequest::default() };
    client.contracts().hold_contract(hold).await.unwrap();
    world.kill_daemon("a");
    for found in world.shims().iter().chain(&world.agents()) {
        found.kill();
    }
    // Somebody puts it elsewhere meanwhile.
    let moved = world.dir.join("moved");
    move_worktree(&place, &moved);
    world.start_daemon_with("a", options()).await;
    eventually("its work is with the server", || async {
        let task = client.task(&task.task_id).await.task.unwrap();
        ensure(task.status() == TaskStatus::Pending && !task.checkpoint_id.is_empty(), || format!("{task:#?}"))
    })
    .await;
    let request = pb::ListCheckpointsRequest { task_id: task.task_id.clone(), ..Default::default() };
    let kept = client.tasks().list_checkpoints(request).await.unwrap().into_inner().checkpoints;
    assert_eq!(kept.iter().map(|it| it.session_id.as_str()).collect::<Vec<_>>(), ["its-own"]);
    lose_machine(&mut world, "a").await;
    let b = world.start_daemon_with("b", options()).await;
    let release = pb::ReleaseContractRequest { contract_id, ..pb::ReleaseContractRequest::default() };
    client.contracts().release_contract(release).await.unwrap();
    let done = until(&client, &task.task_id, TaskStatus::Done).await;
    assert_eq!((done.attempt, &done.daemon_id), (2, &b.daemon_id));
    assert_eq!(fs::read_to_string(worktree(&client, &task.task_id).await.join("got")).unwrap(), "first\n");
    no_agents(&world).await;
}

/// A worktree is deleted under its agent: that is known within a second, nothing is left running, and the next attempt has
/// what the last checkpoint had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_worktree_is_noticed_and_restored() {
    let mut world = world().await;
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    let script = "if [ \"${MAKIMA_RESUMED:-}\" = 1 ]; then cat work; exit 0; fi
        git commit -q --allow-empty -m own; echo made > work; chmod 755 work; ln -s work link; echo ready > ready; trap '' TERM; while :; do sleep 0.1; done";
    let client = world.client();
    let tasks = create(&client, &repo.file_url(), Duration::from_secs(1), vec![shell("long", script, &[])]).await;
    let id = tasks[0].task_id.clone();
    until(&client, &id, TaskStatus::Running).await;
    let place = worktree(&client, &id).await;
    world.file_appears(&place.join("ready")).await;
    checkpointed(&client, &id).await;

    fs::remove_dir_all(&place).unwrap();
    let gone = Instant::now();
    let lost = eventually("the first attempt is over", || async {
        let attempt = client.task(&id).await.attempts[0].clone();
        if attempt.status() == AttemptStatus::Ended { Ok(attempt) } else { Err(format!("{attempt:?}")) }
    })
    .await;
    let took = gone.elapsed();
    assert_eq!(lost.failure_class(), FailureClass::WorktreeLost);
    assert!(lost.error_message.contains("is gone"), "{}", lost.error_message);
    let committed = format!("what it had committed is on branch {}", lost.branch);
    assert!(lost.error_message.contains(&committed), "{}", lost.error_message);
    // A second by design; this machine may be busy with other tests.
    assert!(took < Duration::from_secs(3), "{took:?}");

    let done = until(&client, &id, TaskStatus::Done).await;
    assert_eq!(done.attempt, 2);
    let now = worktree(&client, &id).await;
    assert_ne!(now, place);
    assert_eq!(fs::read_to_string(now.join("work")).unwrap(), "made\n");
    assert_eq!(fs::read_link(now.join("link")).unwrap().to_str(), Some("work"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(now.join("work")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o755);
    no_agents(&world).await;
}

/// Somebody moves the worktree of an agent that works, as git does it, and once more: it works on there, and its result has all of it.
/// The daemon may be away meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moved_worktree_is_followed() {
    for is_away in [false, true] {
        let mut world = world().await;
        world.start_daemon_with("a", options()).await;
        let repo = world.repo("repo");
        let go = world.dir.join("go");
        let script = format!(
            "echo first > work; echo ready > ready; until test -e {}; do sleep 0.1; done; cat work > got",
            go.display()
        );
        let client = world.client();
        let tasks = create(&client, &repo.file_url(), Duration::ZERO, vec![shell("long", &script, &[])]).await;
        let id = tasks[0].task_id.clone();
        until(&client, &id, TaskStatus::Running).await;
        let mut place = worktree(&client, &id).await;
        world.file_appears(&place.join("ready")).await;
        for name in ["one", "two"] {
            if is_away {
                world.kill_daemon("a");
            }
            let to = world.dir.join(name);
            move_worktree(&place, &to);
            if is_away {
                world.start_daemon_with("a", options()).await;
            }
            eventually("it is known where it is", || async {
                let attempt = client.task(&id).await.attempts[0].clone();
                ensure(attempt.worktree_path == to.display().to_string(), || format!("{attempt:?}"))
            })
            .await;
            place = to;
        }
        fs::write(&go, "").unwrap();
        let done = until(&client, &id, TaskStatus::Done).await;
        assert_eq!(done.attempt, 1, "away: {is_away}");
        assert_eq!(fs::read_to_string(place.join("got")).unwrap(), "first\n");
        no_agents(&world).await;
    }
}

/// Agents that notice that their place is gone before the daemon does fail, or end as if all were well. Neither is their doing:
/// the worktree was lost, and the task is tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_notices_first_is_not_to_blame() {
    let mut world = world().await;
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    let client = world.client();
    let script = |end: u32| {
        format!(
            "[ $MAKIMA_ATTEMPT_NUMBER = 1 ] || exit 0; echo half > work; echo ready > ready
            while [ -e .git ]; do :; done; exit {end}"
        )
    };
    let cases = [("fails", 7, true), ("ends", 0, true), ("fails-of-git", 7, false), ("ends-without-git", 0, false)];
    for (name, end, is_directory) in cases {
        let tasks = create(&client, &repo.file_url(), Duration::ZERO, vec![shell(name, &script(end), &[])]).await;
        let id = tasks[0].task_id.clone();
        until(&client, &id, TaskStatus::Running).await;
        let place = worktree(&client, &id).await;
        world.file_appears(&place.join("ready")).await;
        if is_directory {
            // At once, so that nothing but its absence can be noticed.
            fs::rename(&place, world.dir.join(format!("{name}.gone"))).unwrap();
        } else {
            fs::remove_file(place.join(".git")).unwrap();
        }
        let done = until(&client, &id, TaskStatus::Done).await;
        assert_eq!(done.attempt, 2, "{name}");
        let first = &client.task(&id).await.attempts[0];
        assert_eq!(first.failure_class(), FailureClass::WorktreeLost, "{name}: {first:?}");
        assert!(first.error_message.contains("is gone"), "{name}: {}", first.error_message);
    }
    no_agents(&world).await;
}

/// A machine is gone for ever. Another one goes on from the last checkpoint: commits with their ids, index, files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_machine_costs_what_came_after_the_last_checkpoint() {
    let mut world = world().await;
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    let script =
        "if [ \"${MAKIMA_RESUMED:-}\" = 1 ]; then git rev-parse HEAD > head; git ls-files -s > index; exit 0; fi
        echo own > own; git add own; git commit -qm own; echo staged > staged; git add staged; echo later > staged
        git rev-parse HEAD; git ls-files -s; echo ready > ready; sleep 1000";
    let client = world.client();
    let tasks = create(&client, &repo.file_url(), Duration::from_secs(1), vec![shell("long", script, &[])]).await;
    let id = tasks[0].task_id.clone();
    until(&client, &id, TaskStatus::Running).await;
    world.file_appears(&worktree(&client, &id).await.join("ready")).await;
    checkpointed(&client, &id).await;
    let said = eventually("all output is there", || async {
        let text = String::from_utf8(client.output(&id, 1).await.map_err(|status| status.to_string())?).unwrap();
        if text.lines().count() >= 4 { Ok(text) } else { Err(text) }
    })
    .await;

    lose_machine(&mut world, "a").await;
    world.start_daemon_with("b", options()).await;
    let done = until(&client, &id, TaskStatus::Done).await;
    let place = worktree(&client, &id).await;
    assert!(place.starts_with(world.daemon_state("b")), "{}", place.display());
    let read = |name: &str| fs::read_to_string(place.join(name)).unwrap();
    assert_eq!(read("head") + &read("index"), said);
    assert_eq!(read("staged"), "later\n");
    assert!(!done.result_commit.is_empty());
    no_agents(&world).await;
}

/// The newest checkpoint is damaged on the server's disk when the machine is lost: the task goes on from the one before it, and
/// both the person and the agent are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_is_lost_costs_what_came_after_the_one_before() {
    let mut world = world().await;
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    let script = "if [ \"${MAKIMA_RESUMED:-}\" = 1 ]; then exit 0; fi; echo 1 > one; sleep 1000";
    let client = world.client();
    let tasks = create(&client, &repo.file_url(), Duration::from_secs(1), vec![shell("long", script, &[])]).await;
    let id = tasks[0].task_id.clone();
    until(&client, &id, TaskStatus::Running).await;
    let place = worktree(&client, &id).await;
    world.file_appears(&place.join("one")).await;
    checkpointed(&client, &id).await;
    fs::write(place.join("two"), "2").unwrap();
    let newest = eventually("a delta is stored", || async {
        let request = pb::ListCheckpointsRequest { task_id: id.clone(), ..Default::default() };
        let all = client.tasks().list_checkpoints(request).await.unwrap().into_inner().checkpoints;
        let newest = all.first().cloned().unwrap_or_default();
        if newest.base_checkpoint_id.is_empty() { Err(format!("{all:?}")) } else { Ok(newest) }
    })
    .await;
    let request = pb::GetCheckpointRequest { checkpoint_id: newest.checkpoint_id.clone() };
    let chain = client.tasks().get_checkpoint(request).await.unwrap().into_inner().checkpoint.unwrap().chain;
    let blob = world.server_state().join("blobs").join(&chain.last().unwrap().blob_id);
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, bytes).unwrap();

    lose_machine(&mut world, "a").await;
    world.start_daemon_with("b", options()).await;
    until(&client, &id, TaskStatus::Done).await;
    let place = worktree(&client, &id).await;
    assert_eq!(fs::read_to_string(place.join("one")).unwrap(), "1\n");
    assert!(!place.join("two").exists());
    let attempts = client.task(&id).await.attempts;
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    let second = attempts.iter().find(|attempt| attempt.number == 2).unwrap();
    assert_eq!(second.restored_checkpoint_id, newest.base_checkpoint_id);
    let warnings = second.warnings.join("\n");
    let short = |id: &str| id[id.len() - 12..].to_owned();
    let (newest, older) = (short(&newest.checkpoint_id), short(&newest.base_checkpoint_id));
    let told = format!("checkpoint {newest} cannot be restored here, so it goes on from {older}");
    assert!(warnings.contains(&told), "{warnings}");
    let dirs = fs::read_dir(world.daemon_state("b").join("attempts")).unwrap();
    let briefs: String = dirs.filter_map(|dir| fs::read_to_string(dir.unwrap().path().join("brief")).ok()).collect();
    assert!(briefs.contains("the newest copy could not be restored"));
    no_agents(&world).await;
}

/// An attempt that fails is checkpointed before its end is reported, so the next one has all that it did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_attempt_leaves_its_work_to_the_next() {
    let mut world = world().await;
    world.start_daemon_with("a", options()).await;
    let repo = world.repo("repo");
    let script = "if [ \"${MAKIMA_RESUMED:-}\" = 1 ]; then exit 0; fi; echo half > work; kill -9 $$";
    let client = world.client();
    let id =
        create(&client, &repo.file_url(), Duration::ZERO, vec![shell("half", script, &[])]).await[0].task_id.clone();
    let done = until(&client, &id, TaskStatus::Done).await;
    assert_eq!(done.attempt, 2);
    let place = worktree(&client, &id).await;
    assert_eq!(fs::read_to_string(place.join("work")).unwrap(), "half\n");
    let files = eventually("files of checkpoints are removed once the server has them", || async {
        let attempts = fs::read_dir(world.daemon_state("a").join("attempts")).unwrap();
        let count = |dir: fs::DirEntry| fs::read_dir(dir.path().join("checkpoints")).map_or(0, Iterator::count);
        let files: usize = attempts.map(|dir| count(dir.unwrap())).sum();
        ensure(files == 0, || format!("{files} files")).map(|()| files)
    })
    .await;
    assert_eq!(files, 0);
}

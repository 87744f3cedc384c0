//! Real repositories, real git.

use std::{
    fs,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::*;
use crate::{
    daemon::{
        attempt_dir::{AttemptDir, Manifest, tests as dirs},
        git::testing,
        repository::Repositories,
    },
    domain::{
        TaskId,
        attempt::FailureClass,
        order::{DependencyResult, Spawn},
        task::TaskStatus,
    },
};

struct Bench {
    dir: tempfile::TempDir,
    origin: PathBuf,
    repository: String,
    made: u32,
}

impl Bench {
    async fn new(url: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let origin = testing::repository(dir.path()).await;
        let path = origin.display();
        let repository = if url { format!("file://{path}") } else { path.to_string() };
        Self { dir, origin, repository, made: 0 }
    }

    fn order(&self, name: &str, dependencies: &[DependencyResult]) -> Manifest {
        let mut spawn = dirs::spawn_order("");
        spawn.name = name.to_owned();
        spawn.repository = self.repository.clone();
        spawn.dependencies = dependencies.to_vec();
        let mut manifest = dirs::manifest(spawn);
        let short = manifest.attempt.task.short();
        manifest.spawn.branch = format!("makima/{short}-{name}/1");
        manifest.spawn.result_ref = format!("refs/makima/results/{}", manifest.attempt.task);
        manifest
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    async fn prepare_at(&self, manifest: &mut Manifest, path: &Path) -> Result<Vec<String>, Error> {
        let Spawn { repository, base_branch, .. } = &manifest.spawn;
        let repo = Repositories::new(self.dir.path().join("cache")).ensure(repository, base_branch, &[]).await.unwrap();
        let prepared = prepare(&repo, &manifest.spawn, manifest.attempt, path).await?;
        assert!(is_intact(&prepared.place));
        manifest.place = Some(prepared.place);
        Ok(prepared.warnings)
    }

    async fn prepare(&mut self, manifest: &mut Manifest) -> Result<Vec<String>, Error> {
        self.made += 1;
        let path = self.state().join("worktrees").join(self.made.to_string());
        self.prepare_at(manifest, &path).await
    }

    /// A task that writes these files and is done.
    async fn done(
        &mut self,
        name: &str,
        dependencies: &[DependencyResult],
        files: &[(&str, &str)],
    ) -> DependencyResult {
        let mut manifest = self.order(name, dependencies);
        self.prepare(&mut manifest).await.unwrap();
        write(worktree(&manifest), files);
        let finished = finish(&manifest).await.unwrap();
        DependencyResult {
            task: manifest.attempt.task,
            name: name.into(),
            status: TaskStatus::Done,
            commit: finished.result.commit,
            result_ref: finished.result.result_ref,
            daemon: None,
            blob: String::new(),
            blob_sha256: String::new(),
            blob_bytes: 0,
        }
    }
}

fn worktree(manifest: &Manifest) -> &Path {
    &manifest.place.as_ref().unwrap().worktree
}

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

async fn tree(dir: &Path, commit: &str) -> Vec<String> {
    testing::run(dir, &["ls-tree", "-r", "--name-only", commit]).await.lines().map(str::to_owned).collect()
}

/// A machine that dies while an agent commits leaves the repository's lock: the next attempt's agent does not meet it.
#[tokio::test]
async fn a_lock_that_a_dead_commit_left_is_gone_before_an_agent_starts() {
    let bench = Bench::new(false).await;
    let lock = bench.origin.join(".git/packed-refs.lock");
    let file = fs::File::create(&lock).unwrap();
    // Somebody may hold it still.
    bench.prepare_at(&mut bench.order("young", &[]), &bench.state().join("young")).await.unwrap();
    assert!(lock.exists());
    let now = file.metadata().unwrap().modified().unwrap();
    file.set_modified(now - std::time::Duration::from_secs(3_600)).unwrap();
    drop(file);
    bench.prepare_at(&mut bench.order("old", &[]), &bench.state().join("old")).await.unwrap();
    assert!(!lock.exists());
}

/// An attempt starts at the base, its changes become one commit on its branch, named and held by the result ref; the
/// repository's own checkout does not notice. Without changes the start is the result.
#[tokio::test]
async fn work_becomes_a_result() {
    for url in [false, true] {
        let mut bench = Bench::new(url).await;
        let mut manifest = bench.order("types", &[]);
        assert_eq!(bench.prepare(&mut manifest).await.unwrap(), Vec::<String>::new());
        let start = testing::run(&bench.origin, &["rev-parse", "HEAD"]).await;
        assert_eq!(manifest.place.as_ref().unwrap().base_commit, start);
        let nothing = finish(&manifest).await.unwrap();
        assert_eq!(nothing.result.commit, start);
        write(worktree(&manifest), &[("src/a b.rs", "a"), ("*", "glob"), ("ignored.log", "x"), (":x", "y")]);
        fs::remove_file(worktree(&manifest).join("README.md")).unwrap();
        let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xffodd\n");
        fs::write(worktree(&manifest).join(odd), "odd").unwrap();
        let finished = finish(&manifest).await.unwrap();
        assert_eq!(finished.warnings, Vec::<String>::new());
        assert!(finished.result.published);
        assert_eq!(finished.result.branch, manifest.spawn.branch);
        let commit = finished.result.commit.as_str();
        let held = testing::run(&bench.origin, &["rev-parse", &manifest.spawn.result_ref]).await;
        assert_eq!(held, commit);
        assert_eq!(tree(&bench.origin, commit).await, ["*", ".gitignore", ":x", "src/a b.rs", "\"\u{fffd}odd\\n\""]);
        let message = testing::run(&bench.origin, &["log", "-1", "--format=%B", commit]).await;
        let task = manifest.attempt.task;
        assert_eq!(message, format!("types\n\nMakima-Task: {task}\nMakima-Attempt: 1"));
        assert_eq!(testing::run(&bench.origin, &["status", "--porcelain"]).await, "");
        // Again, as after a crash: the same.
        assert_eq!(finish(&manifest).await.unwrap(), finished);
    }
}

/// Dependents start from what was made: one tip, or a merge; a result that contains another is not merged with it.
#[tokio::test]
async fn results_are_merged() {
    for url in [false, true] {
        let mut bench = Bench::new(url).await;
        let schema = bench.done("schema", &[], &[("schema.sql", "s")]).await;
        let users = bench.done("users", std::slice::from_ref(&schema), &[("users.rs", "u")]).await;
        let orders = bench.done("orders", std::slice::from_ref(&schema), &[("orders.rs", "o")]).await;
        let mut one = bench.order("one", &[schema.clone(), users.clone()]);
        bench.prepare(&mut one).await.unwrap();
        assert_eq!(one.place.as_ref().unwrap().base_commit, users.commit);
        let mut ui = bench.order("ui", &[orders, schema, users]);
        bench.prepare(&mut ui).await.unwrap();
        let files = tree(worktree(&ui), "HEAD").await;
        assert_eq!(files, [".gitignore", "README.md", "orders.rs", "schema.sql", "users.rs"]);
        assert_eq!(testing::run(worktree(&ui), &["status", "--porcelain"]).await, "");
    }
}

/// A conflict ends the attempt, naming files and tasks; nothing of it stays.
#[tokio::test]
async fn a_conflict_names_files_and_tasks() {
    let mut bench = Bench::new(false).await;
    let one = bench.done("one", &[], &[("same.txt", "one\n"), ("a.txt", "a")]).await;
    let two = bench.done("two", &[], &[("same.txt", "two\n")]).await;
    let other = bench.done("other", &[], &[("b.txt", "b")]).await;
    let mut manifest = bench.order("three", &[one, other, two]);
    let error = bench.prepare(&mut manifest).await.unwrap_err();
    assert_eq!(error.class, FailureClass::Repository);
    assert!(error.message.contains("conflict in same.txt;"), "{error}");
    assert!(error.message.contains("`one`") && error.message.contains("`two`"), "{error}");
    assert!(!error.message.contains("`other`"), "{error}");
    assert!(!testing::run(&bench.origin, &["branch", "--list"]).await.contains("three"));
    assert!(!testing::run(&bench.origin, &["worktree", "list"]).await.contains("worktrees/4"));
}

/// A result that is nowhere to be had on this machine is for another daemon.
#[tokio::test]
async fn a_result_that_is_not_here_is_refused() {
    let mut bench = Bench::new(true).await;
    let mut there = bench.done("there", &[], &[("a", "a")]).await;
    there.commit = "1234567890123456789012345678901234567890".into();
    let mut manifest = bench.order("here", &[there]);
    assert_eq!(bench.prepare(&mut manifest).await.unwrap_err().class, FailureClass::Refused);
}

/// A clone on another machine brings what was published at origin.
#[tokio::test]
async fn another_machine_has_published_results() {
    let mut bench = Bench::new(true).await;
    let schema = bench.done("schema", &[], &[("schema.sql", "s")]).await;
    fs::rename(bench.dir.path().join("cache"), bench.dir.path().join("cache-of-another")).unwrap();
    let mut manifest = bench.order("types", std::slice::from_ref(&schema));
    bench.prepare(&mut manifest).await.unwrap();
    assert_eq!(manifest.place.unwrap().base_commit, schema.commit);
}

/// An origin that takes nothing costs publication, not the result.
#[tokio::test]
async fn a_refused_push_is_a_warning() {
    let mut bench = Bench::new(true).await;
    let hook = bench.origin.join(".git/hooks/pre-receive");
    write(&bench.origin, &[(".git/hooks/pre-receive", "#!/bin/sh\necho no thanks >&2\nexit 1\n")]);
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut manifest = bench.order("types", &[]);
    bench.prepare(&mut manifest).await.unwrap();
    write(worktree(&manifest), &[("a", "a")]);
    let finished = finish(&manifest).await.unwrap();
    assert!(!finished.result.published);
    assert!(finished.warnings[0].contains("no thanks"), "{:?}", finished.warnings);
    // And so the worktree is not given up without being told to.
    let state = bench.state();
    AttemptDir::create(&state, &manifest).unwrap();
    let error = remove(&state, worktree(&manifest), false).await.unwrap_err();
    assert!(error.message.contains("nowhere else"), "{error}");
}

/// Files that look like secrets, files that were copied in, and repositories inside are left out, staged or not.
#[tokio::test]
async fn secrets_are_left_out() {
    let mut bench = Bench::new(false).await;
    write(&bench.origin, &[("local/settings.json", "{}"), (".env", "SECRET=1")]);
    let mut manifest = bench.order("types", &[]);
    manifest.spawn.copy_files = vec![".env".into(), "local/*.json".into(), "none*".into(), "../x".into()];
    let warnings = bench.prepare(&mut manifest).await.unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let dir = worktree(&manifest).to_owned();
    assert_eq!(fs::read_to_string(dir.join(".env")).unwrap(), "SECRET=1");
    write(&dir, &[("key.pem", "k"), ("deploy/id_rsa", "k"), ("ok.txt", "ok"), (".env.example", "SECRET=")]);
    testing::run(&dir, &["add", "key.pem", ".env"]).await;
    testing::repository(&dir.join("inner")).await;
    let finished = finish(&manifest).await.unwrap();
    let files = tree(&bench.origin, &finished.result.commit).await;
    assert_eq!(files, [".env.example", ".gitignore", "README.md", "ok.txt"]);
    assert_eq!(finished.warnings.len(), 2, "{:?}", finished.warnings);
    assert!(finished.warnings[0].contains("deploy/id_rsa") && finished.warnings[0].contains("key.pem"));
    assert!(finished.warnings[1].contains("inner/repository/"));
    assert!(dir.join("key.pem").exists());
}

/// Whatever is left from before, an attempt gets its worktree; what was there is kept.
#[tokio::test]
async fn leftovers_do_not_block() {
    let bench = Bench::new(false).await;
    let mut manifest = bench.order("types", &[]);
    let path = bench.state().join("worktrees/x");
    // A stray file, then a worktree with work in it, then one whose directory is gone, locked, then a clean one.
    write(&path, &[("stray", "stray")]);
    let warnings = bench.prepare_at(&mut manifest, &path).await.unwrap();
    assert!(warnings[0].contains("was in the way"), "{warnings:?}");
    assert!(path.with_file_name("x.old-1").join("stray").exists());
    write(&path, &[("work", "work")]);
    testing::commit(&path, &[("committed", "c")], "work").await;
    write(&path, &[("more", "more")]);
    let warnings = bench.prepare_at(&mut manifest, &path).await.unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let aside = path.with_file_name("x.old-2");
    assert_eq!(testing::run(&aside, &["status", "--porcelain"]).await, "?? more");
    assert_eq!(manifest.place.as_ref().unwrap().branch, format!("{}-2", manifest.spawn.branch));
    testing::run(&bench.origin, &["worktree", "lock", &path.display().to_string()]).await;
    fs::remove_dir_all(&path).unwrap();
    bench.prepare_at(&mut manifest, &path).await.unwrap();
    bench.prepare_at(&mut manifest, &path).await.unwrap();
    assert!(!path.with_file_name("x.old-3").exists());
    finish(&manifest).await.unwrap();
}

/// A branch that somebody works on stays theirs, also where it has nothing yet: in the repository's own checkout, and in another
/// worktree.
#[tokio::test]
async fn a_branch_that_is_checked_out_is_left_alone() {
    let mut bench = Bench::new(false).await;
    let mut manifest = bench.order("types", &[]);
    let asked = manifest.spawn.branch.clone();
    let elsewhere = bench.dir.path().join("elsewhere").display().to_string();
    testing::run(&bench.origin, &["worktree", "add", "-q", "-b", &asked, &elsewhere]).await;
    testing::run(&bench.origin, &["switch", "-q", "-c", &format!("{asked}-2")]).await;
    // As git writes it where `core.preferSymlinkRefs` is set.
    let head = bench.origin.join(".git/HEAD");
    fs::remove_file(&head).unwrap();
    std::os::unix::fs::symlink(format!("refs/heads/{asked}-2"), &head).unwrap();
    let warnings = bench.prepare(&mut manifest).await.unwrap();
    assert!(warnings[0].contains("is in use"), "{warnings:?}");
    assert_eq!(manifest.place.unwrap().branch, format!("{asked}-3"));
    assert_eq!(testing::run(&bench.origin, &["symbolic-ref", "--short", "HEAD"]).await, format!("{asked}-2"));
}

/// A branch that stands in the way of ours by its name costs the name, not the task.
#[tokio::test]
async fn a_branch_named_like_the_prefix_is_avoided() {
    let mut bench = Bench::new(false).await;
    testing::run(&bench.origin, &["branch", "makima"]).await;
    let mut manifest = bench.order("types", &[]);
    let warnings = bench.prepare(&mut manifest).await.unwrap();
    assert!(warnings[0].contains("`makima` exists"), "{warnings:?}");
    let expected = manifest.spawn.branch.replacen('/', "-", 1);
    assert_eq!(finish(&manifest).await.unwrap().result.branch, expected);
}

/// An agent may leave the branch: what HEAD has is the result, our branch follows where that is a step forward, and a
/// branch that the agent made stays as it left it.
#[tokio::test]
async fn the_result_is_where_head_is() {
    let mut bench = Bench::new(false).await;
    for (detour, forward) in [("feature", true), ("--detach", true), ("--orphan", false)] {
        let mut manifest = bench.order("types", &[]);
        bench.prepare(&mut manifest).await.unwrap();
        let dir = worktree(&manifest).to_owned();
        match detour {
            "feature" => testing::run(&dir, &["checkout", "-q", "-b", "feature"]).await,
            "--orphan" => testing::run(&dir, &["checkout", "-q", "--orphan", "fresh"]).await,
            detour => testing::run(&dir, &["checkout", "-q", detour]).await,
        };
        let own = testing::commit(&dir, &[("own", "own")], "own").await;
        write(&dir, &[("rest", "rest")]);
        let finished = finish(&manifest).await.unwrap();
        let files = tree(&bench.origin, &finished.result.commit).await;
        assert!(files.contains(&"own".to_owned()) && files.contains(&"rest".to_owned()), "{files:?}");
        let branch = manifest.spawn.branch.clone() + if forward { "" } else { "-result" };
        assert_eq!(finished.result.branch, branch);
        assert_eq!(testing::run(&bench.origin, &["rev-parse", &branch]).await, finished.result.commit);
        assert_eq!(testing::run(&dir, &["symbolic-ref", "--short", "HEAD"]).await, branch);
        assert_eq!(finished.warnings.len(), 1, "{:?}", finished.warnings);
        if detour == "feature" {
            assert_eq!(testing::run(&bench.origin, &["rev-parse", "feature"]).await, own);
        }
        assert_eq!(finish(&manifest).await.unwrap().result.commit, finished.result.commit);
    }
}

/// What an agent has only staged is part of its result; what it staged and then took back makes no commit.
#[tokio::test]
async fn what_is_staged_counts() {
    let mut bench = Bench::new(false).await;
    let mut manifest = bench.order("types", &[]);
    bench.prepare(&mut manifest).await.unwrap();
    let (dir, base) = (worktree(&manifest).to_owned(), manifest.place.as_ref().unwrap().base_commit.clone());
    let as_it_was = fs::read_to_string(dir.join("README.md")).unwrap();
    write(&dir, &[("README.md", "other\n")]);
    testing::run(&dir, &["add", "README.md"]).await;
    write(&dir, &[("README.md", &as_it_was)]);
    assert_eq!(finish(&manifest).await.unwrap().result.commit, base);
    write(&dir, &[("staged", "staged\n")]);
    testing::run(&dir, &["add", "staged"]).await;
    let finished = finish(&manifest).await.unwrap();
    assert_eq!(tree(&dir, &finished.result.commit).await, [".gitignore", "README.md", "staged"]);
}

/// Conflicts and rebases left behind are the agent's failure; a merge that only lacks its commit is concluded; a lock left by
/// a killed git is no obstacle.
#[tokio::test]
async fn unfinished_business() {
    let mut bench = Bench::new(false).await;
    let mut manifest = bench.order("types", &[]);
    bench.prepare(&mut manifest).await.unwrap();
    let dir = worktree(&manifest).to_owned();
    testing::commit(&dir, &[("same", "ours\n")], "ours").await;
    testing::run(&dir, &["checkout", "-q", "-b", "theirs", "HEAD~1"]).await;
    testing::commit(&dir, &[("same", "theirs\n")], "theirs").await;
    for merge in [["merge", "-q"], ["rebase", "-q"]] {
        testing::run(&dir, &["checkout", "-q", &manifest.spawn.branch]).await;
        let output = git(&dir)
            .envs([("GIT_COMMITTER_NAME", "x"), ("GIT_COMMITTER_EMAIL", "x"), ("GIT_AUTHOR_NAME", "x")])
            .args(merge)
            .arg("theirs");
        assert!(!output.run(LOCAL_TIMEOUT).await.unwrap().success());
        let error = finish(&manifest).await.unwrap_err();
        assert_eq!(error.class, FailureClass::AgentError);
        assert!(error.message.contains("same"), "{error}");
        testing::run(&dir, &["add", "same"]).await;
        if merge[0] == "merge" {
            fs::write(admin_dir(&dir).unwrap().join("index.lock"), "").unwrap();
            let finished = finish(&manifest).await.unwrap();
            let parents = testing::run(&dir, &["log", "-1", "--format=%P", &finished.result.commit]).await;
            assert_eq!(parents.split(' ').count(), 2);
            testing::run(&dir, &["reset", "-q", "--hard", "HEAD~1"]).await;
        } else {
            let error = finish(&manifest).await.unwrap_err();
            assert!(error.message.contains("a rebase"), "{error}");
        }
    }
}

/// The setup command runs in the worktree with a clean environment; a failure quotes its output; a slow one is ended.
#[tokio::test]
async fn setup_runs_and_fails() {
    let mut bench = Bench::new(false).await;
    let mut manifest = bench.order("types", &[]);
    bench.prepare(&mut manifest).await.unwrap();
    let dir = AttemptDir::create(&bench.state(), &manifest).unwrap();
    manifest.spawn.setup_command = "echo made > made; echo hello".into();
    setup(&dir, &manifest).await.unwrap();
    assert!(worktree(&manifest).join("made").exists());
    assert_eq!(fs::read_to_string(dir.output()).unwrap(), "hello\n");
    manifest.spawn.setup_command = "echo before; echo why >&2; false; echo never".into();
    let error = setup(&dir, &manifest).await.unwrap_err();
    assert_eq!(error.class, FailureClass::SetupFailed);
    assert!(error.message.ends_with("exit code 1; its output ends with:\nbefore\nwhy"), "{error}");
    manifest.spawn.setup_command = "setsid sleep 1000 & sleep 1000".into();
    manifest.spawn.setup_timeout = std::time::Duration::from_millis(300);
    let error = setup(&dir, &manifest).await.unwrap_err();
    assert!(error.message.contains("longer than 300ms"), "{error}");
    let target = crate::daemon::sweep::Target { attempt: manifest.attempt.id, leader: None, ancestor: None };
    assert!(!crate::daemon::sweep::is_anything_alive(&target).await.unwrap());
}

/// A worktree is listed and given up only where nothing is lost; its branch and result stay.
#[tokio::test]
async fn worktrees_are_listed_and_removed() {
    let mut bench = Bench::new(false).await;
    let state = bench.state();
    assert_eq!(list(&state).await.unwrap(), Vec::new());
    let mut manifest = bench.order("types", &[]);
    bench.prepare(&mut manifest).await.unwrap();
    AttemptDir::create(&state, &manifest).unwrap();
    let path = worktree(&manifest).to_owned();
    write(&path, &[("a", "a")]);
    let error = remove(&state, &path, false).await.unwrap_err();
    assert!(error.message.contains("in no commit"), "{error}");
    assert!(list(&state).await.unwrap()[0].dirty);
    finish(&manifest).await.unwrap();
    let listed = list(&state).await.unwrap().remove(0);
    assert_eq!((listed.exists, listed.busy, listed.dirty, listed.published), (true, false, false, true));
    remove(&state, &path, false).await.unwrap();
    assert!(!path.exists() && !list(&state).await.unwrap()[0].exists);
    testing::run(&bench.origin, &["rev-parse", "--verify", &manifest.spawn.result_ref]).await;
    let stranger = remove(&state, &bench.origin, true).await.unwrap_err();
    assert!(stranger.message.contains("no worktree of this daemon"), "{stranger}");
    assert!(bench.origin.exists());
}

/// Many attempts prepare at once in one repository.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_once() {
    let bench = Bench::new(false).await;
    let mut work = tokio::task::JoinSet::new();
    let repo = Repositories::new(bench.dir.path().join("cache")).ensure(&bench.repository, "", &[]).await.unwrap();
    for n in 0..12 {
        let (mut manifest, repo) = (bench.order(&format!("t{n}"), &[]), repo.clone());
        manifest.attempt.task = TaskId(Uuid::new_v4());
        let path = bench.state().join(format!("worktrees/{n}"));
        work.spawn(async move {
            let prepared = prepare(&repo, &manifest.spawn, manifest.attempt, &path).await.unwrap();
            write(&path, &[("a", "a")]);
            manifest.place = Some(prepared.place);
            finish(&manifest).await.unwrap()
        });
    }
    while let Some(done) = work.join_next().await {
        assert_eq!(done.unwrap().warnings, Vec::<String>::new());
    }
}

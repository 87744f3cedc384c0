//! What a worktree of 10,000 files, its checkpoints and their restoring cost, beside the plumbing that a person would type for
//! it, one after the other in turns:
//!
//! ```text
//!   cargo bench --bench checkpoint                      as it is released
//!   cargo bench --bench checkpoint --profile dev        without building everything again
//! ```
//!
//! A worktree is made from a clone that is there, the person's with as many workers as there are processors. `first` begins
//! without anything; `next` has 20 more files changed since the last one. Each figure is the median of
//! [`ROUNDS`] rounds, which alternate between the two ways, so that a busy machine is busy for both.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use makima::{
    daemon::{
        attempt_dir::Place,
        checkpoint::{Captured, ChainFile, Outcome, Previous, Source, capture, known_elsewhere, restore},
        process::Process,
        repository::{RepoRef, Repositories},
        worktree::prepare,
    },
    domain::{AttemptId, AttemptRef, ContractId, TaskId, order::Spawn},
};
use uuid::Uuid;

/// Rounds of each measurement.
const ROUNDS: usize = 5;
/// Files of the repository.
const FILES: usize = 10_000;
/// Files changed before the first checkpoint.
const CHANGED: usize = 200;
/// Files changed before each next one.
const MORE: usize = 20;

#[tokio::main]
async fn main() {
    let dir = std::env::temp_dir().join(format!("makima-bench-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let bed = Bed::new(&dir).await;
    bed.worktrees().await;
    bed.captures().await;
    bed.restores().await;
    fs::remove_dir_all(&dir).unwrap();
}

struct Bed {
    dir: PathBuf,
    repo: RepoRef,
    place: Place,
}

impl Bed {
    async fn new(dir: &Path) -> Self {
        let origin = dir.join("origin");
        fs::create_dir_all(&origin).unwrap();
        run(&origin, &["init", "-q", "-b", "main"]).await;
        for n in 0..FILES {
            write(&origin, n, 0);
        }
        run(&origin, &["add", "-A"]).await;
        run(&origin, &["commit", "-q", "-m", "files"]).await;
        let url = format!("file://{}", origin.display());
        let repo = Repositories::new(dir.join("cache")).ensure(&url, "main", &[]).await.unwrap();
        let worktree = dir.join("work");
        let path = worktree.display().to_string();
        run(&repo.git_dir, &["worktree", "add", "-q", "-b", "work", &path, "origin/main"]).await;
        let base_commit = run(&worktree, &["rev-parse", "HEAD"]).await;
        let (shared, copied, env) = (None, Vec::new(), BTreeMap::new());
        let place = Place { repo: repo.clone(), worktree, branch: "work".into(), base_commit, shared, copied, env };
        Self { dir: dir.to_owned(), repo, place }
    }

    fn admin(&self) -> PathBuf {
        self.repo.git_dir.join("worktrees/work")
    }

    async fn worktrees(&self) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            let path = self.dir.join(format!("made-{round}"));
            let started = Instant::now();
            prepare(&self.repo, &self.spawn(round), attempt(round), &path).await.unwrap();
            ours.push(started.elapsed());
            assert_eq!(run(&path, &["status", "--porcelain"]).await, "", "what is made is whole");
            let path = self.dir.join(format!("added-{round}")).display().to_string();
            let add = ["-c", "checkout.workers=0", "worktree", "add", "-q", "-b", &path[1..], &path, "origin/main"];
            theirs.push(timed(async { drop(run(&self.repo.git_dir, &add).await) }).await);
        }
        report("worktree", ours, theirs);
    }

    fn spawn(&self, round: usize) -> Spawn {
        Spawn {
            contract: ContractId(Uuid::from_u128(1)),
            contract_name: "bench".to_owned(),
            name: format!("task-{round}"),
            plan: String::new(),
            agent: "shell".to_owned(),
            model: None,
            repository: format!("file://{}", self.dir.join("origin").display()),
            base_branch: "main".to_owned(),
            branch: format!("made-{round}"),
            result_ref: String::new(),
            dependencies: Vec::new(),
            setup_command: String::new(),
            setup_timeout: Duration::ZERO,
            copy_files: Vec::new(),
            wall_time: None,
            grace: Duration::ZERO,
            parent: None,
            depth: 0,
            task_key: String::new(),
            contract_tasks: Vec::new(),
            checkpoint_every: Duration::ZERO,
            final_checkpoint: false,
            resume: None,
        }
    }

    async fn captures(&self) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            change(&self.place.worktree, CHANGED, round);
            let _ = fs::remove_dir_all(self.admin().join("makima-checkpoint"));
            ours.push(timed(async { drop(self.capture(None).await) }).await);
            theirs.push(timed(self.plumbing(round)).await);
        }
        report("first checkpoint", ours, theirs);

        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut last = self.capture(None).await;
        for round in 1..=ROUNDS {
            change(&self.place.worktree, MORE, ROUNDS + round);
            let started = Instant::now();
            last = self.capture(Some(&last)).await;
            ours.push(started.elapsed());
            theirs.push(timed(self.plumbing(round)).await);
        }
        report(&format!("next checkpoint, {MORE} files changed"), ours, theirs);

        let mut idle = Vec::new();
        for _ in 0..ROUNDS {
            idle.push(timed(async { assert!(self.try_capture(Some(&last)).await.is_none()) }).await);
        }
        println!("nothing changed: {:?}", median(idle));
    }

    async fn restores(&self) {
        let captured = self.capture(None).await;
        let chain = [ChainFile { path: captured.file.clone(), sha256: captured.sha256.clone() }];
        self.plumbing(0).await;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            let path = self.dir.join(format!("restored-{round}"));
            let started = Instant::now();
            restore(&self.repo, &chain, &path, &format!("restored-{round}"), None, false).await.unwrap();
            ours.push(started.elapsed());
            theirs.push(timed(self.plumbing_back(round)).await);
        }
        report("restore", ours, theirs);
    }

    async fn try_capture(&self, previous: Option<&Captured>) -> Option<Captured> {
        let source = Source {
            place: self.place.clone(),
            exclude: known_elsewhere(&self.place),
            transcript: None,
            previous: previous.map(|c| Previous { id: c.id, commit: c.commit.clone(), depth: c.depth }),
            even_unchanged: false,
        };
        match capture(&source, &self.dir.join("files")).await.unwrap() {
            Outcome::Taken(captured) => Some(*captured),
            Outcome::Unchanged => None,
        }
    }

    async fn capture(&self, previous: Option<&Captured>) -> Captured {
        self.try_capture(previous).await.expect("something changed")
    }

    /// A copy of the index, `add -A`, `write-tree`, `commit-tree`, `pack-objects`.
    async fn plumbing(&self, round: usize) {
        let script = format!(
            "cp {index} tmp.index && export GIT_INDEX_FILE=$PWD/tmp.index && cd {work} && git add -A && \
             commit=$(echo checkpoint | git commit-tree $(git write-tree) -p HEAD) && \
             printf '%s\\n^origin/main\\n' $commit | git pack-objects --revs --stdout -q > {pack} && echo $commit > {pack}.id",
            index = self.admin().join("index").display(),
            work = self.place.worktree.display(),
            pack = self.dir.join(format!("{round}.pack")).display(),
        );
        sh(&self.dir, &script).await;
    }

    /// `worktree add --no-checkout`, `index-pack`, `read-tree`, `checkout-index`.
    async fn plumbing_back(&self, round: usize) {
        let script = format!(
            "git index-pack --stdin --fix-thin < {pack} && \
             git worktree add -q --no-checkout --detach {path} origin/main && cd {path} && \
             git read-tree $(cat {pack}.id) && git checkout-index -q -a -u",
            pack = self.dir.join("0.pack").display(),
            path = self.dir.join(format!("plumbed-{round}")).display(),
        );
        sh(&self.repo.git_dir, &script).await;
    }
}

fn attempt(round: usize) -> AttemptRef {
    let id = Uuid::from_u128(u128::try_from(round).unwrap());
    AttemptRef { task: TaskId(id), number: 1, id: AttemptId(id) }
}

fn write(dir: &Path, n: usize, round: usize) {
    let path = dir.join(format!("src/{}/{}/file-{n}.txt", n / 1000, n / 50));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let lines: String =
        (0..40).map(|line| format!("line {line} of file {n}: {}\n", (n * 7_919 + line * 104_729) % 99_991)).collect();
    fs::write(path, format!("round {round}\n{lines}")).unwrap();
}

fn change(dir: &Path, count: usize, round: usize) {
    (0..count).for_each(|n| write(dir, n * (FILES / count), round));
}

async fn run(dir: &Path, args: &[&str]) -> String {
    let who = ["-c", "user.name=Bench", "-c", "user.email=bench@example.com", "-c", "gc.auto=0"];
    let process = Process::new("git").args(who).args(args.iter().copied()).dir(dir);
    let output = process.run(Duration::from_secs(300)).await.unwrap();
    assert!(output.success(), "{args:?}: {}", output.complaint());
    output.text()
}

async fn sh(dir: &Path, script: &str) {
    let who = [
        ("GIT_AUTHOR_NAME", "b"),
        ("GIT_AUTHOR_EMAIL", "b"),
        ("GIT_COMMITTER_NAME", "b"),
        ("GIT_COMMITTER_EMAIL", "b"),
    ];
    let process = Process::new("sh").args(["-eu", "-c", script]).envs(who).dir(dir);
    let output = process.run(Duration::from_secs(300)).await.unwrap();
    assert!(output.success(), "{script}: {}", output.complaint());
}

async fn timed(work: impl Future<Output = ()>) -> Duration {
    let started = Instant::now();
    work.await;
    started.elapsed()
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

fn report(what: &str, ours: Vec<Duration>, theirs: Vec<Duration>) {
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    println!("{what}: {ours:?}, by plumbing {theirs:?}, ratio {ratio:.2}");
}

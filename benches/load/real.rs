//! Tasks with everything that a task has but work: real daemons, real worktrees of a repository of a thousand files, a shell
//! agent that does nothing under its shim; beside a loop that does, as many at once, what a person's script would.
//!
//! ```text
//!   xargs -P 8: git worktree add, sh -eu -c true, git commit                     half of them
//!   hold ── make 200 tasks ── release ─────────────> the contract is DONE        (the last checkpoint off)
//!   xargs -P 8                                                                   the other half
//! ```
//!
//! Each writes more than a gigabyte, which the system puts on the disk later, and a disk may become slower the more is written: so
//! all that was written is brought there before each part begins, and the loop has its halves on both sides.
//!
//! A file system may remember for a while what was removed: ext4 without a journal takes no inode again for a minute (for six, where
//! it is not on the disk yet), and looks at each of them whenever a file is made, so that a worktree takes ten times as long, ours and
//! the person's (`recently_deleted` in its `ialloc.c`). So a round begins a minute after the one before has taken its own away.

use std::{
    fs,
    ops::Range,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use makima::wire::pb::{ContractLimits, CreateContractRequest, ReleaseContractRequest, TaskSpec};

use crate::{
    bed::{self, Bed},
    figures::{Figures, Goal},
    harness::{Client, Database, process, world::DaemonOptions},
    options::Options,
    proof,
};

/// Files of the repository.
const FILES: usize = 1_000;
/// Daemons, each with as many slots as one has that is not told otherwise.
const DAEMONS: usize = 2;
const SLOTS: u32 = 4;
/// At once in the loop: as many as the daemons have slots.
const AT_ONCE: usize = DAEMONS * SLOTS as usize;
/// One turn of the loop. Git fails where it meets a worktree that another git is adding, so that is done under a lock.
const BY_HAND: &str = "flock \"$TREES.lock\" git -C \"$REPO\" worktree add -q -b \"hand/$1\" \"$TREES/$1\" main && \
                       cd \"$TREES/$1\" && sh -eu -c true && git commit -q --allow-empty -m \"task $1\"";

/// How long what was removed is remembered, and a little.
const REMEMBERED: Duration = Duration::from_secs(65);
/// When the round before was taken away.
static REMOVED: Mutex<Option<Instant>> = Mutex::new(None);

/// One round on one database.
pub async fn measure(options: &Options, database: Database, figures: &mut Figures) {
    let removed = *REMOVED.lock().expect("nobody panics with it");
    if let Some(removed) = removed.filter(|_| !options.quick) {
        tokio::time::sleep(REMEMBERED.saturating_sub(removed.elapsed())).await;
    }
    round(options, database, figures).await;
    settled(&std::env::temp_dir()).await;
    *REMOVED.lock().expect("nobody panics with it") = Some(Instant::now());
}

async fn round(options: &Options, database: Database, figures: &mut Figures) {
    let tasks = options.size(200, 16);
    let mut bed = Bed::start(database).await;
    for n in 0..DAEMONS {
        let options = DaemonOptions { slots: SLOTS, ..DaemonOptions::default() };
        bed.world.start_daemon_with(&format!("real-{n}"), options).await;
    }
    let repo = bed.world.repo("real");
    for n in 0..FILES {
        let folder = Path::new(&repo.url()).join(format!("src/part-{}", n / 50));
        fs::create_dir_all(&folder).expect("make a folder");
        fs::write(folder.join(format!("file-{n}.rs")), format!("// {n}\n").repeat(100)).expect("write a file");
    }
    repo.git(&["add", "-A"]);
    repo.git(&["commit", "-q", "-m", "files"]);
    repo.git(&["branch", "-M", "main"]);

    let before = by_hand(&bed, &repo.url(), 0..tasks / 2).await;
    let client = bed.world.client();
    let contract = held(&client, &repo.url(), tasks).await;
    settled(&bed.world.dir).await;
    let begun = Instant::now();
    let release = ReleaseContractRequest { contract_id: contract.clone(), ..ReleaseContractRequest::default() };
    client.contracts().release_contract(release).await.expect("release the contract");
    bed::until_done(&client, &contract, tasks).await;
    let took = begun.elapsed().as_secs_f64();
    let by_hand = before + by_hand(&bed, &repo.url(), tasks / 2..tasks).await;
    let name = "200 tasks that do nothing, by hand";
    figures.add(name, Some(database), "s", by_hand, Goal::default());
    figures.add("200 tasks that do nothing", Some(database), "s", took, Goal::most(by_hand * 1.3).against(name));
    let done = proof::count(&bed, "SELECT count(*) FROM tasks WHERE status = 'done'").await;
    assert_eq!(done, i64::try_from(tasks).expect("few"), "tasks that are done");
}

/// Everything that was written to this disk is on it.
async fn settled(dir: &Path) {
    let dir = fs::File::open(dir).expect("open the folder");
    let sync = tokio::task::spawn_blocking(move || rustix::fs::syncfs(dir));
    sync.await.expect("waiting does not panic").expect("sync the disk");
}

/// Makes the tasks in a contract that is held.
async fn held(client: &Client, repository: &str, tasks: usize) -> String {
    let task = |n: usize| TaskSpec {
        name: format!("task-{n}"),
        plan: "true".to_owned(),
        agent: "shell".to_owned(),
        ..TaskSpec::default()
    };
    let limits =
        ContractLimits { concurrency: Some(1_000), final_checkpoint: Some(false), ..ContractLimits::default() };
    let request = CreateContractRequest {
        name: "real".to_owned(),
        repository: repository.to_owned(),
        limits: Some(limits),
        tasks: (0..tasks).map(task).collect(),
        hold: true,
        ..CreateContractRequest::default()
    };
    let made = client.contracts().create_contract(request).await.expect("create a contract").into_inner();
    made.contract.expect("a contract in the answer").contract_id
}

/// Seconds that the loop takes for these turns of it.
async fn by_hand(bed: &Bed, repo: &str, turns: Range<usize>) -> f64 {
    let trees = bed.world.dir.join("by-hand");
    fs::create_dir_all(&trees).expect("make a folder");
    settled(&trees).await;
    let mut command = process::command("sh", &bed.world.dir.join("home"));
    command
        .args(["-c", &format!("seq {} {} | xargs -P {AT_ONCE} -I@ sh -c \"$ONE\" - @", turns.start + 1, turns.end)])
        .env("ONE", BY_HAND)
        .env("REPO", repo)
        .env("TREES", &trees);
    for (name, value) in [("NAME", "hand"), ("EMAIL", "hand@localhost")] {
        command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
    }
    let begun = Instant::now();
    let status = tokio::task::spawn_blocking(move || command.status()).await.expect("waiting does not panic");
    assert!(status.expect("start the loop").success(), "the loop has failed");
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(fs::read_dir(&trees).expect("list").count(), turns.end, "worktrees by hand");
    took
}

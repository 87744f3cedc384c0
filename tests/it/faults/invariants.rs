//! What must hold when a run is over, whatever has happened in it: the invariants of the design, as far as they can be seen
//! from outside. The numbers are theirs.
//!
//! ```text
//!   the API         tasks, attempts, daemons, contract, what another owner sees     1 2 4 6 8
//!   the event log   order of starts and ends, every end once                        1 2 4
//!   git             every result is there, with every line once                     1 2 9
//!   journals        nothing is owed, nothing is live                                2 6
//!   the database    nothing live, no command unanswered (SQLite)                    6
//!   processes       nothing carries the mark of an attempt                          7
//!   output          all of it, once                                                 2
//!   checkpoints     the newest of tasks, restored                                   3
//! ```
//!
//! 5 is looked at all through the run: it ends, and no wait is overdue. 10 is what the faults are.

use std::{collections::HashMap, fs, time::Duration};

use makima::{
    domain::AttemptId,
    wire::pb::{self, AttemptStatus, ContractStatus, CreateKeyRequest, GetTaskResponse, KeyKind, TaskStatus},
};
use tonic::Code;

use super::{fault::Kind, machine::MARKER, plan::Job, run::Run};
use crate::harness::Client;

/// For what is confirmed after the contract's end: output on its way, agents of fenced attempts that are being ended.
const SETTLED: Duration = Duration::from_secs(30);
/// Checkpoints that are restored after a run: each takes a clone.
const MAX_RESTORED: usize = 3;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Everything that does not hold.
pub async fn check(run: &Run) -> Result<(), String> {
    check_within(run, SETTLED).await
}

/// [`check`], with another time for what may still be on its way.
async fn check_within(run: &Run, settled: Duration) -> Result<(), String> {
    let mut broken = Vec::new();
    let answers = answers(run).await?;
    broken.extend(attempts(run, &answers));
    broken.extend(results(run, &answers));
    if !run.plan.has(Kind::DatabaseOlder) {
        // A database that fell back in time tells another story from there on.
        broken.extend(event_log(run).await);
    }
    broken.extend(checkpoints(run).await);
    let early = fs::read_to_string(run.world.dir.join("violations")).unwrap_or_default();
    broken.extend(early.lines().map(|line| format!("4: {line}")));
    broken.extend(other_owner(run).await);
    // What has to become true soon: said only if it does not.
    let deadline = tokio::time::Instant::now() + settled;
    loop {
        let unsettled = unsettled(run, &answers).await;
        if unsettled.is_empty() {
            break;
        }
        if tokio::time::Instant::now() > deadline {
            broken.extend(unsettled);
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    if broken.is_empty() { Ok(()) } else { Err(broken.join("\n")) }
}

async fn answers(run: &Run) -> Result<Vec<GetTaskResponse>, String> {
    let mut answers = Vec::new();
    for id in &run.ids {
        let request = pb::GetTaskRequest { task_id: id.clone() };
        let answer = run.client.tasks().get_task(request).await.map_err(|status| status.to_string())?;
        answers.push(answer.into_inner());
    }
    Ok(answers)
}

/// A task that is done was done by one attempt, its newest, and nothing of it lives.
fn attempts(run: &Run, answers: &[GetTaskResponse]) -> Vec<String> {
    let mut broken = Vec::new();
    for (job, answer) in run.plan.jobs.iter().zip(answers) {
        let name = &job.name;
        let task = answer.task.clone().unwrap_or_default();
        if task.status() != TaskStatus::Done {
            broken.push(format!("2: {name} is {} in a contract that is done", task.status().as_str_name()));
        }
        let made: Vec<_> = answer.attempts.iter().filter(|attempt| !attempt.result_commit.is_empty()).collect();
        let is_its =
            |attempt: &&pb::Attempt| attempt.number == task.attempt && attempt.result_commit == task.result_commit;
        if !(made.len() == 1 && made.iter().all(is_its)) {
            broken.push(format!("1: {name} is the work of one attempt, and has {made:#?}"));
        }
        let numbers: Vec<u32> = answer.attempts.iter().map(|attempt| attempt.number).collect();
        if numbers != (1..=u32::try_from(numbers.len()).unwrap_or_default()).collect::<Vec<_>>() {
            broken.push(format!("1: {name} has attempts {numbers:?}"));
        }
    }
    broken
}

/// Every result is there, and holds every line of the task and of what it builds on once.
fn results(run: &Run, answers: &[GetTaskResponse]) -> Vec<String> {
    let mut broken = Vec::new();
    for (at, (job, answer)) in run.plan.jobs.iter().zip(answers).enumerate() {
        let commit = answer.task.as_ref().map(|task| task.result_commit.clone()).unwrap_or_default();
        if commit.is_empty() {
            broken.push(format!("9: {} has no result", job.name));
            continue;
        }
        if !run.repo.try_git(&["cat-file", "-e", &format!("{commit}^{{commit}}")]).status.success() {
            broken.push(format!("9: the result {commit} of {} is not in the repository", job.name));
            continue;
        }
        let mut expected: Vec<&Job> = ancestors(run, at).into_iter().map(|at| &run.plan.jobs[at]).collect();
        expected.sort_by(|a, b| a.name.cmp(&b.name));
        for job in &expected {
            let file = run.repo.file(&commit, &format!("{}.txt", job.name));
            if file.as_deref() != Some(&job.text()) {
                broken.push(format!("1: {}.txt in the result of t{at} is\n{}", job.name, file.unwrap_or_default()));
            }
        }
        let mut names: Vec<String> = expected.iter().map(|job| format!("{}.txt", job.name)).collect();
        names.insert(0, "README.md".to_owned());
        let files = run.repo.files(&commit);
        if files != names {
            broken.push(format!("1: the result of t{at} holds {files:?} instead of {names:?}"));
        }
    }
    broken
}

/// A task and all it builds on.
fn ancestors(run: &Run, at: usize) -> Vec<usize> {
    let mut all = vec![at];
    let mut next = 0;
    while let Some(&job) = all.get(next) {
        next += 1;
        for &before in &run.plan.jobs[job].after {
            if !all.contains(&before) {
                all.push(before);
            }
        }
    }
    all
}

/// Every end once, every start after what it waits for, in an order without gaps in time.
async fn event_log(run: &Run) -> Vec<String> {
    let mut broken = Vec::new();
    let deadline = tokio::time::Instant::now() + SETTLED;
    while !run.watch.has_ended() {
        if tokio::time::Instant::now() > deadline {
            return vec!["5: a watch of a contract that has ended does not end".to_owned()];
        }
        tokio::time::sleep(LOOK).await;
    }
    let changes = run.watch.changes();
    if !changes.is_sorted_by(|a, b| a.sequence < b.sequence) {
        broken.push("2: a watch that was resumed has told a change twice, or not in order".to_owned());
    }
    let mut version: HashMap<&str, i64> = HashMap::new();
    let mut done: Vec<&str> = Vec::new();
    for change in changes.iter().filter(|change| !change.task_id.is_empty()) {
        let task = change.task_id.as_str();
        if version.insert(task, change.version).is_some_and(|before| before > change.version) {
            broken.push(format!("1: the version of {} goes back to {}", change.task_name, change.version));
        }
        match change.status() {
            TaskStatus::Done if change.event == "task.done" => {
                if done.contains(&task) {
                    broken.push(format!("2: {} was done twice", change.task_name));
                }
                done.push(task);
            }
            TaskStatus::Starting | TaskStatus::Running => {
                let Some(at) = run.ids.iter().position(|id| id == task) else { continue };
                let early = run.plan.jobs[at].after.iter().filter(|&&before| !done.contains(&run.ids[before].as_str()));
                broken.extend(early.map(|before| format!("4: {} started before t{before}", change.task_name)));
            }
            _ => {}
        }
    }
    if done.len() != run.ids.len() {
        broken.push(format!("2: {} ends of {} tasks in the event log", done.len(), run.ids.len()));
    }
    broken
}

/// Another owner's key sees nothing of it.
async fn other_owner(run: &Run) -> Vec<String> {
    let admin = run.world.client_as("admin");
    let request = CreateKeyRequest { owner: "other".to_owned(), kind: KeyKind::Owner.into(), ..Default::default() };
    let secret = match admin.keys().create_key(request).await {
        Ok(answer) => answer.into_inner().secret,
        Err(status) => return vec![format!("8: no key for another owner: {status}")],
    };
    let other = Client::new(&run.world.url).with_key(&secret);
    let mut broken = Vec::new();
    let daemons = other.daemon_list().await.map_or(1, |daemons| daemons.len());
    let tasks = other.tasks().list_tasks(pb::ListTasksRequest { include_hidden: true, ..Default::default() }).await;
    let tasks = tasks.map_or(1, |answer| answer.into_inner().tasks.len());
    let task = other.tasks().get_task(pb::GetTaskRequest { task_id: run.ids[0].clone() }).await;
    let cancel = pb::CancelTaskRequest { task_id: run.ids[0].clone(), ..Default::default() };
    let cancel = other.tasks().cancel_task(cancel).await;
    let refused = [task.err().map(|status| status.code()), cancel.err().map(|status| status.code())];
    if daemons + tasks != 0 || refused != [Some(Code::NotFound); 2] {
        broken.push(format!("8: another owner sees {daemons} daemons, {tasks} tasks, and is told {refused:?}"));
    }
    broken
}

/// The newest checkpoints that the server says it has can be restored, and hold the beginning of the task's work.
async fn checkpoints(run: &Run) -> Vec<String> {
    let mut broken = Vec::new();
    let mut restored = 0;
    for (job, id) in run.plan.jobs.iter().zip(&run.ids) {
        let request = pb::ListCheckpointsRequest { task_id: id.clone(), ..Default::default() };
        let listed = match run.client.tasks().list_checkpoints(request).await {
            Ok(answer) => answer.into_inner().checkpoints,
            Err(status) => return vec![format!("3: the checkpoints of {} cannot be listed: {status}", job.name)],
        };
        let Some(newest) = listed.into_iter().find(|checkpoint| !checkpoint.orphan) else { continue };
        if restored == MAX_RESTORED {
            break;
        }
        restored += 1;
        let into = run.world.dir.join("restored").join(&job.name);
        let place = into.display().to_string();
        let made = run.world.cli(&["task", "restore", &newest.checkpoint_id, "--into", &place]).await;
        if !made.status.success() {
            let why = String::from_utf8_lossy(&made.stderr);
            broken.push(format!("3: checkpoint {} of {} cannot be restored: {why}", newest.checkpoint_id, job.name));
            continue;
        }
        let file = fs::read_to_string(into.join(format!("{}.txt", job.name))).unwrap_or_default();
        if !job.text().starts_with(&file) {
            broken.push(format!("3: checkpoint {} of {} holds\n{file}", newest.checkpoint_id, job.name));
        }
        let earlier = job.after.iter().map(|&before| &run.plan.jobs[before]);
        for before in earlier {
            if fs::read_to_string(into.join(format!("{}.txt", before.name))).ok() != Some(before.text()) {
                broken.push(format!("3: the checkpoint of {} lacks what {} made", job.name, before.name));
            }
        }
    }
    run.story.tell(format!("{restored} checkpoints are restored"));
    broken
}

/// What may still be on its way to hold.
async fn unsettled(run: &Run, answers: &[GetTaskResponse]) -> Vec<String> {
    let mut broken = Vec::new();
    broken.extend(counts(run).await);
    broken.extend(journals(run));
    if !run.plan.postgres {
        broken.extend(database(run));
    }
    let alive = run.world.processes().into_iter().filter(|found| found.variable(MARKER).is_some());
    broken.extend(alive.map(|found| format!("7: alive after the end of all attempts: {found:?}")));
    broken.extend(output(run, answers).await);
    broken
}

async fn counts(run: &Run) -> Vec<String> {
    let mut broken = Vec::new();
    match run.client.daemon_list().await {
        Ok(daemons) => {
            let busy = daemons.iter().filter(|daemon| daemon.live_attempts != 0);
            broken.extend(busy.map(|daemon| format!("6: {} has {} live attempts", daemon.name, daemon.live_attempts)));
        }
        Err(status) => broken.push(format!("6: no list of daemons: {status}")),
    }
    let contract = run.client.contract(&run.contract).await;
    let counts = contract.task_counts.unwrap_or_default();
    let all = u32::try_from(run.ids.len()).unwrap_or_default();
    if (contract.live_attempts, counts.done, contract.status()) != (0, all, ContractStatus::Done) {
        broken.push(format!("6: the contract has {} live attempts and {counts:?}", contract.live_attempts));
    }
    for (job, id) in run.plan.jobs.iter().zip(&run.ids) {
        let live = run.client.task(id).await.attempts;
        let live = live.iter().filter(|attempt| attempt.status() != AttemptStatus::Ended);
        broken.extend(live.map(|a| format!("6: attempt {} of {} is {:?}", a.number, job.name, a.status())));
    }
    broken
}

/// Nothing is owed and nothing lives in the journals of the machines there are.
fn journals(run: &Run) -> Vec<String> {
    let mut broken = Vec::new();
    for machine in run.machines.iter().filter(|machine| !machine.gone) {
        let look = || -> rusqlite::Result<(i64, i64)> {
            let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
            let journal = rusqlite::Connection::open_with_flags(machine.journal(), flags)?;
            let owed = journal.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0))?;
            const LIVE: &str = "SELECT count(*) FROM attempts WHERE state NOT IN ('over', 'salvage')";
            Ok((owed, journal.query_row(LIVE, [], |row| row.get(0))?))
        };
        match look() {
            Ok((0, 0)) => {}
            Ok((owed, live)) => {
                broken.push(format!(
                    "2: the journal of {} owes {owed} messages and has {live} live attempts",
                    machine.name
                ));
            }
            Err(error) => broken.push(format!("2: the journal of {}: {error}", machine.name)),
        }
    }
    broken
}

/// Nothing is live and no command is unanswered in the database, but for machines that are gone.
fn database(run: &Run) -> Vec<String> {
    let look = || -> rusqlite::Result<(i64, i64)> {
        let database =
            rusqlite::Connection::open_with_flags(run.database(), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let live = database.query_row("SELECT count(*) FROM attempts WHERE live", [], |row| row.get(0))?;
        const UNANSWERED: &str =
            "SELECT count(*) FROM commands WHERE daemon IN (SELECT id FROM daemons WHERE attached)";
        Ok((live, database.query_row(UNANSWERED, [], |row| row.get(0))?))
    };
    match look() {
        Ok((0, 0)) => Vec::new(),
        Ok((live, commands)) => vec![format!("6: {live} live attempts and {commands} commands in the database")],
        Err(error) => vec![format!("6: the database: {error}")],
    }
}

/// What the attempt said that made the result is all there, once.
async fn output(run: &Run, answers: &[GetTaskResponse]) -> Vec<String> {
    let mut broken = Vec::new();
    let said = run.said();
    for (job, answer) in run.plan.jobs.iter().zip(answers) {
        let task = answer.task.clone().unwrap_or_default();
        let lost = |machine: &&super::machine::Machine| {
            machine.name == task.daemon_name && (machine.gone || machine.lost_something)
        };
        if run.machines.iter().any(|machine| lost(&machine)) {
            continue;
        }
        // What it found when it began.
        let begun = format!("S {} ", task.attempt);
        let first = said[&job.name]
            .lines()
            .filter_map(|line| line.strip_prefix(&begun)?.split(' ').next()?.parse::<u32>().ok())
            .next_back();
        let first = first.unwrap_or_default() + 1;
        let expected: String = (first..=job.lines).map(|n| format!("out {} {n}\n", job.name)).collect();
        let output = run.client.output(&task.task_id, task.attempt).await.unwrap_or_default();
        let output = String::from_utf8_lossy(&output);
        if output != expected {
            broken.push(format!(
                "2: attempt {} of {} said\n{expected}and the server has\n{output}",
                task.attempt, job.name
            ));
        }
    }
    broken
}

/// The mark is what the sweep looks for.
#[test]
fn the_mark_is_an_attempts_id() {
    assert_eq!(MARKER, makima::daemon::sweep::MARKER);
    assert!(AttemptId(uuid::Uuid::nil()).to_string().len() > 30);
}

/// After a run without faults everything holds; then each thing is broken from outside, and each is seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_broken_is_seen() {
    let mut plan = super::plan::Plan::new(5, false);
    plan.faults.clear();
    let mut run = Run::start(plan, super::run::Story::new()).await;
    run.go_on_to_the_end().await.unwrap();
    check(&run).await.unwrap();

    // A task that began too early, and one that is expected to have done more than it has.
    fs::write(run.world.dir.join("violations"), "t1 started before t0\n").unwrap();
    run.plan.jobs[0].lines += 1;
    // A message that is owed, an attempt that holds its slot, a process that has outlived its attempt.
    let journal = rusqlite::Connection::open(run.machines[0].journal()).unwrap();
    const OWED: &str = "INSERT INTO outbox VALUES (999999, '', '', 1, 0, 'progress', '{}')";
    journal.execute(OWED, []).unwrap();
    let database = rusqlite::Connection::open(run.database()).unwrap();
    database.busy_timeout(SETTLED).unwrap();
    database.execute("UPDATE attempts SET live = 1 WHERE number = 1", []).unwrap();
    let mut command = run.world.command();
    command.env(MARKER, AttemptId(uuid::Uuid::nil()).to_string()).args(["server", "--listen", "127.0.0.1:0"]);
    command.arg("--state-dir").arg(run.world.dir.join("stray"));
    let mut stray = crate::harness::process::Program::new("stray", &run.world.dir.join("logs"));
    stray.start(command);

    let broken = check_within(&run, Duration::from_millis(500)).await.unwrap_err();
    for seen in [
        "4: t1 started before t0",
        "1: t0.txt in the result of t0 is",
        "2: attempt 1 of t0 said",
        "2: the journal of m0 owes 1 messages",
        "live attempts and 0 commands in the database",
        "7: alive after the end of all attempts",
    ] {
        assert!(broken.contains(seen), "{seen} is not seen in\n{broken}");
    }
}

//! `makima demo --chaos`: what the product promises, shown by breaking it.
//!
//! ```text
//!   api and audit each write half of their work, then wait at a gate
//!     1. kill -9 of the daemon that runs api; it is started again, and takes its agent over
//!     2. audit's worktree is deleted under its agent; the next attempt goes on from the checkpoint
//!     3. kill -9 of the server; it is started again, and the daemons come back
//!   the gate opens, they write the other half
//! ```
//!
//! Every line of that work says which attempt wrote it, so the last tree tells what survived: the first half of both, by
//! their first attempts, byte for byte. Nothing here waits for luck: each step begins when the one before has shown its
//! effect.

use std::{
    collections::HashMap,
    fs,
    future::Future,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    super::{
        client::{Client, timed},
        error::{Error, Result},
        fleet,
        output::note,
    },
    DAEMONS, attached,
    processes::{LOOK, Processes},
    served,
    shop::{Step, in_tree},
};
use crate::wire::pb::{self, DaemonStatus, TaskStatus};

/// Lines of each half.
const LINES: usize = 40;
/// Far more than any step of recovery takes; waiting ends with a message.
const PATIENCE: Duration = Duration::from_secs(60);
/// The tasks whose work is disturbed.
const DISTURBED: [&str; 2] = ["api", "audit"];

/// The disturbances.
pub struct Chaos {
    gate: PathBuf,
}

/// Where they happen.
pub struct Scene<'a> {
    /// Speaks with the server.
    pub client: &'a Client,
    /// The contract.
    pub contract_id: &'a str,
    /// Where the server listens: `http://127.0.0.1:PORT`.
    pub server: &'a str,
    /// The owner's key.
    pub key: &'a Path,
}

/// One disturbance, and what became of it.
pub struct Broken {
    what: String,
    recovered: String,
    took: Duration,
    /// The task whose work was at stake, and that work as it was before.
    stake: Option<(&'static str, Vec<u8>)>,
}

/// Checkpoints every second: the demo does not take long.
pub fn limits() -> pb::ContractLimits {
    pb::ContractLimits {
        checkpoint_every: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        rerun_after: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
        ..pb::ContractLimits::default()
    }
}

/// The file in which a disturbed task keeps its lines.
fn work(task: &str) -> String {
    format!("work/{task}.txt")
}

impl Chaos {
    /// With a gate below the demo's directory.
    pub fn new(dir: &Path) -> Self {
        Self { gate: dir.join("gate") }
    }

    /// The script of a step; that of a disturbed one writes its lines before and after the gate, going on where an earlier
    /// attempt has stopped.
    pub fn script(&self, step: &Step) -> String {
        if !DISTURBED.contains(&step.name) {
            return step.script.to_owned();
        }
        let (file, gate, all) = (work(step.name), self.gate.display(), 2 * LINES);
        format!(
            "mkdir -p work; touch {file}
write() {{
  n=$(wc -l < {file})
  while [ \"$n\" -lt \"$1\" ]; do
    n=$((n + 1)); echo \"line $n by attempt $MAKIMA_ATTEMPT_NUMBER\" >> {file}
  done
}}
write {LINES}
while [ ! -e '{gate}' ]; do sleep 0.05; done
write {all}
{}",
            step.script
        )
    }

    /// Breaks things, one after the other, while the contract runs.
    pub async fn wreak(&self, processes: &mut Processes, scene: Scene<'_>) -> Result<Vec<Broken>> {
        let api = self.half_done(&scene, "api").await?;
        let audit = self.half_done(&scene, "audit").await?;
        let broken = vec![
            self.kill_daemon(processes, &scene, api).await?,
            self.delete_worktree(&scene, audit).await?,
            self.kill_server(processes, &scene).await?,
        ];
        note(">> the gate opens: the other half of the work");
        fs::write(&self.gate, "").map_err(Error::io("open the gate"))?;
        Ok(broken)
    }

    async fn kill_daemon(&self, processes: &mut Processes, scene: &Scene<'_>, api: Running) -> Result<Broken> {
        let before = fleet::all(scene.client).await?;
        let epoch = |daemons: &[pb::Daemon]| {
            daemons.iter().find(|daemon| daemon.name == api.daemon).map_or(0, |daemon| daemon.session_epoch)
        };
        let old = epoch(&before);
        note(&format!(">> kill -9 {}, on which the agent of api runs", api.daemon));
        processes.kill(&api.daemon)?;
        processes.start_daemon(&api.daemon, scene.server)?;
        let begun = Instant::now();
        until("the daemon to come back", || async {
            let daemons = fleet::all(scene.client).await?;
            let here = daemons.iter().any(|daemon| {
                daemon.name == api.daemon && daemon.session_epoch > old && daemon.status() == DaemonStatus::Attached
            });
            Ok(here.then_some(()))
        })
        .await?;
        let took = begun.elapsed();
        let now = self.half_done(scene, "api").await?;
        if now.attempt != api.attempt {
            return Err(Error::failed("the agent of api was not taken over: it has another attempt"));
        }
        Ok(Broken {
            what: format!("kill -9 of daemon {}", api.daemon),
            recovered: format!("started again; its agent worked on meanwhile, and is attempt {} still", now.attempt),
            took,
            stake: Some(("api", api.written)),
        })
    }

    async fn delete_worktree(&self, scene: &Scene<'_>, audit: Running) -> Result<Broken> {
        until("a checkpoint of all that audit has written", || self.checkpointed(scene, &audit)).await?;
        note(&format!(">> rm -r of audit's worktree, on {}", audit.daemon));
        let begun = Instant::now();
        fs::remove_dir_all(&audit.worktree).map_err(Error::io("delete the worktree"))?;
        let interrupted = until("the attempt to be interrupted", || async {
            let (task, attempt) = self.attempt(scene, "audit").await?.unwrap_or_default();
            let over = attempt.number > audit.attempt || task.status() == TaskStatus::Pending;
            Ok(over.then(|| begun.elapsed()))
        })
        .await?;
        let (_, next) = until("the next attempt", || async {
            let found = self.attempt(scene, "audit").await?;
            Ok(found.filter(|(task, attempt)| task.status() == TaskStatus::Running && attempt.number > audit.attempt))
        })
        .await?;
        let took = begun.elapsed();
        if next.restored_checkpoint_id.is_empty() {
            return Err(Error::failed("the next attempt of audit did not begin from a checkpoint"));
        }
        Ok(Broken {
            what: format!("rm -r of audit's worktree on {}", audit.daemon),
            recovered: format!(
                "noticed after {:.2} s; attempt {} goes on from the checkpoint, on {}",
                interrupted.as_secs_f64(),
                next.number,
                next.daemon_name
            ),
            took,
            stake: Some(("audit", audit.written)),
        })
    }

    async fn kill_server(&self, processes: &mut Processes, scene: &Scene<'_>) -> Result<Broken> {
        note(">> kill -9 of the server");
        processes.kill("server")?;
        let listen = scene.server.trim_start_matches("http://");
        let begun = Instant::now();
        processes.start_server(listen).await?;
        processes.wait_for("the server", || served(scene.server, scene.key)).await?;
        processes.wait_for("the daemons", || attached(scene.client)).await?;
        Ok(Broken {
            what: "kill -9 of the server".to_owned(),
            recovered: format!("started again; {} are attached, and nothing ran twice", DAEMONS.join(" and ")),
            took: begun.elapsed(),
            stake: None,
        })
    }

    /// The task's agent has written the first half and waits.
    async fn half_done(&self, scene: &Scene<'_>, name: &str) -> Result<Running> {
        until("the first half of the work", || async {
            let Some((task, attempt)) = self.attempt(scene, name).await? else { return Ok(None) };
            let file = Path::new(&attempt.worktree_path).join(work(name));
            let written = fs::read(&file).unwrap_or_default();
            let last_write = fs::metadata(&file).map_or((0, 0), |file| (file.mtime(), file.mtime_nsec()));
            let lines = written.iter().filter(|byte| **byte == b'\n').count();
            let half = task.status() == TaskStatus::Running && lines >= LINES;
            Ok(half.then_some(Running {
                attempt: attempt.number,
                daemon: attempt.daemon_name,
                worktree: attempt.worktree_path,
                written,
                last_write,
                task_id: task.task_id,
            }))
        })
        .await
    }

    /// The server has a checkpoint that was taken after the last byte was written.
    async fn checkpointed(&self, scene: &Scene<'_>, running: &Running) -> Result<Option<()>> {
        let request = timed(pb::ListCheckpointsRequest { task_id: running.task_id.clone(), ..Default::default() });
        let listed = scene.client.tasks().list_checkpoints(request).await;
        let listed = listed.map_err(scene.client.refused("list checkpoints"))?.into_inner();
        let taken = |checkpoint: &pb::Checkpoint| {
            let taken = checkpoint.take_time.as_ref().map_or((0, 0), |time| (time.seconds, i64::from(time.nanos)));
            checkpoint.attempt == running.attempt && taken > running.last_write
        };
        Ok(listed.checkpoints.iter().any(taken).then_some(()))
    }

    async fn attempt(&self, scene: &Scene<'_>, name: &str) -> Result<Option<(pb::Task, pb::Attempt)>> {
        let client = scene.client;
        let request = timed(pb::ListTasksRequest { contract_id: scene.contract_id.to_owned(), ..Default::default() });
        let Ok(listed) = client.tasks().list_tasks(request).await else { return Ok(None) };
        let is_it = |task: &pb::Task| task.spec.as_ref().is_some_and(|spec| spec.name == name);
        let Some(task) = listed.into_inner().tasks.into_iter().find(is_it) else { return Ok(None) };
        let request = timed(pb::GetTaskRequest { task_id: task.task_id });
        let Ok(got) = client.tasks().get_task(request).await else { return Ok(None) };
        let got = got.into_inner();
        let newest = got.attempts.into_iter().max_by_key(|attempt| attempt.number);
        Ok(got.task.zip(newest))
    }

    /// What was broken, how it was mended and how fast, and whether what was there before is in the results.
    pub fn account(
        &self,
        repository: &Path,
        results: &HashMap<String, String>,
        broken: &[Broken],
    ) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut kept = 0;
        for Broken { what, recovered, took, stake } in broken {
            lines.push(format!("   {what}"));
            lines.push(format!("     {recovered}"));
            lines.push(format!("     as before after {:.2} s", took.as_secs_f64()));
            let Some((task, before)) = stake else { continue };
            let commit = results.get(*task).cloned().unwrap_or_default();
            let after = in_tree(repository, &commit, &work(task)).map_err(|error| {
                Error::failed(format!("{} is not in the result of {task}: {}", work(task), error.message()))
            })?;
            let all = after.iter().filter(|byte| **byte == b'\n').count();
            if !after.starts_with(before) || all != 2 * LINES {
                return Err(Error::failed(format!(
                    "work of {task} was lost, or done twice: {all} lines in its result"
                )));
            }
            kept += before.len();
            lines.push(format!("     {} bytes had been written; all of them are in the result", before.len()));
        }
        lines.push(format!("\n   No byte was lost: {kept} of {kept}, and none was written twice."));
        Ok(lines)
    }
}

/// An attempt that has done half of its work.
struct Running {
    attempt: u32,
    daemon: String,
    worktree: String,
    written: Vec<u8>,
    /// When it last wrote: seconds and nanoseconds.
    last_write: (i64, i64),
    task_id: String,
}

/// Looks until there is an answer.
async fn until<T, F: Future<Output = Result<Option<T>>>>(what: &str, look: impl Fn() -> F) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(Some(found)) = look().await {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(Error::failed(format!("waited {} s in vain for {what}", PATIENCE.as_secs())));
        }
        tokio::time::sleep(LOOK).await;
    }
}

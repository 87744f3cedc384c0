//! `makima task restore, diff`: a task's work in a person's hands, without the daemon that has it.
//!
//! ```text
//!   server: GetCheckpoint ──> chain of blobs ─┐
//!           GetTask ──> the result's pack ────┴ DownloadChunks ──> files in a directory of ours, beside DIR
//!   here:   a clone of the repository, with all that the checkpoint or the result has ──> DIR, or what it changed as text
//! ```
//!
//! Of a task that is done that is its result, else its newest checkpoint.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Session,
    checkpoint::{Point, point},
    client::{Client, PATIENCE, timed},
    error::{Error, Result, is_transient},
    output::{clean, note, size},
    view,
};
use crate::{
    daemon::{
        checkpoint::{self, ChainFile, FoundResult},
        repository::RepoRef,
    },
    domain::text::hex,
    runtime::backoff::Backoff,
    wire::pb,
};

/// Bytes of a difference that are shown; of a larger one, the beginning.
const MAX_DIFF_BYTES: usize = 64 * 1024 * 1024;

/// `task restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    #[command(flatten)]
    of: OfArgs,
    /// Directory to make; it may be there if it is empty
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// Branch to make there; the attempt's if not given
    #[arg(long)]
    branch: Option<String>,
    /// File to write the agent's conversation to
    #[arg(long, value_name = "FILE")]
    transcript: Option<PathBuf>,
}

/// `task diff`.
#[derive(Args, Debug)]
pub struct DiffArgs {
    #[command(flatten)]
    of: OfArgs,
    /// Only the names of what was changed, and how
    #[arg(long)]
    stat: bool,
}

/// A checkpoint or a result, and the repository it is of.
#[derive(Args, Debug)]
struct OfArgs {
    /// Id or short id of a checkpoint, or a task (id, short id, CONTRACT/NAME, name): its result, else its newest checkpoint
    #[arg(value_name = "CHECKPOINT|TASK")]
    of: String,
    /// Contract that names are looked up in
    #[arg(long, short, value_name = "CONTRACT")]
    contract: Option<String>,
    /// URL or path of the repository, where the task's own cannot be reached from here
    #[arg(long, value_name = "REPOSITORY")]
    repo: Option<String>,
}

/// What was restored, for programs.
#[derive(Serialize)]
struct Made<'a> {
    checkpoint_id: &'a str,
    directory: String,
    branch: &'a str,
    head: &'a str,
    session_id: &'a str,
    transcript: Option<String>,
    omitted: Vec<&'a str>,
    warnings: &'a [String],
}

impl<'a> Made<'a> {
    /// Of a commit that has all of it.
    fn of_result(into: &Path, branch: &'a str, head: &'a str) -> Self {
        Self {
            checkpoint_id: "",
            directory: into.display().to_string(),
            branch,
            head,
            session_id: "",
            transcript: None,
            omitted: Vec::new(),
            warnings: &[],
        }
    }
}

/// The work in a directory.
pub async fn restore(session: &mut Session, client: &Client, args: &RestoreArgs) -> Result<()> {
    let found = Found::load(client, &args.of).await?;
    let into = std::path::absolute(&args.into).map_err(Error::io("find the directory"))?;
    if fs::read_dir(&into).is_ok_and(|mut entries| entries.next().is_some()) || into.is_file() {
        return Err(Error::usage(format!("{} exists and is not empty; name another directory", into.display())));
    }
    let beside = into.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(beside).map_err(Error::io(format!("create {}", beside.display())))?;
    let files = Scratch::new(beside)?;
    let (branch, transcript) = (args.branch.as_deref(), args.transcript.as_deref());
    let checkpoint = match found.work {
        Work::Checkpoint(checkpoint) => checkpoint,
        Work::Result(_) if transcript.is_some() => {
            return Err(Error::usage("a result has no conversation; name a checkpoint (`makima task checkpoints`)"));
        }
        Work::Result(result) => {
            let result = result_files(client, &result, files.path()).await?;
            let made = checkpoint::result_into(&found.repository, &result, &into, branch).await;
            let branch = made.map_err(|error| Error::failed(format!("cannot restore the result: {error}")))?;
            if session.out.json {
                return session.out.object(&Made::of_result(&into, &branch, &result.commit));
            }
            let (into, branch) = (into.display(), clean(&branch));
            return session.out.line(&format!("the task's result is in {into}, on branch {branch}"));
        }
    };
    let chain = download(client, &checkpoint, files.path()).await?;
    let made = checkpoint::restore_into(&found.repository, &chain, &into, branch, transcript).await;
    let made = made.map_err(|error| Error::failed(format!("cannot restore the checkpoint: {error}")))?;
    let id = &checkpoint.checkpoint_id;
    if session.out.json {
        return session.out.object(&Made {
            checkpoint_id: id,
            session_id: made.session_id.as_deref().unwrap_or_default(),
            transcript: made.transcript.as_ref().map(|path| path.display().to_string()),
            omitted: made.omitted.iter().map(|it| it.path.as_str()).collect(),
            warnings: &made.warnings,
            ..Made::of_result(&into, &made.place.branch, &checkpoint.head)
        });
    }
    let (into, branch) = (into.display(), clean(&made.place.branch));
    session.out.line(&format!("checkpoint {} is restored into {into}, on branch {branch}", view::short(id)))?;
    for omitted in &made.omitted {
        note(&format!("left out when it was taken: {}", clean(&omitted.path)));
    }
    for warning in &made.warnings {
        note(&clean(warning));
    }
    Ok(())
}

/// What the work changed, as text.
pub async fn diff(session: &mut Session, client: &Client, args: &DiffArgs) -> Result<()> {
    let found = Found::load(client, &args.of).await?;
    let scratch = Scratch::new(&std::env::temp_dir())?;
    // In a clone of our own: nothing is written to anybody's repository.
    let clone = scratch.path().join("clone");
    let text = match found.work {
        Work::Checkpoint(checkpoint) => {
            let chain = download(client, &checkpoint, scratch.path()).await?;
            let failed = |error| Error::failed(format!("cannot compare the checkpoint: {error}"));
            checkpoint::restore_into(&found.repository, &chain, &clone, None, None).await.map_err(failed)?;
            let repo = RepoRef { repository: found.repository, git_dir: clone.join(".git"), cloned: false };
            checkpoint::diff(&repo, &chain, None, MAX_DIFF_BYTES).await.map_err(failed)?
        }
        Work::Result(result) => {
            let result = result_files(client, &result, scratch.path()).await?;
            let text = checkpoint::diff_result(&found.repository, &result, &clone, MAX_DIFF_BYTES).await;
            text.map_err(|error| Error::failed(format!("cannot compare the result: {error}")))?
        }
    };
    let text = match (args.stat, text.split_once("\n\n")) {
        (true, Some((names, _))) => format!("{names}\n"),
        _ => text,
    };
    session.out.bytes(text.as_bytes())
}

/// What there is of a task.
enum Work {
    /// It is not done.
    Checkpoint(Box<pb::Checkpoint>),
    /// It is.
    Result(Box<pb::TaskResult>),
}

/// Work with what restoring it takes.
struct Found {
    work: Work,
    repository: String,
}

impl Found {
    async fn load(client: &Client, args: &OfArgs) -> Result<Self> {
        let (work, of) = match point(client, &args.of, args.contract.as_deref()).await? {
            Point::Checkpoint(found) => {
                (Work::Checkpoint(Box::new(found.checkpoint.unwrap_or_default())), found.repository)
            }
            Point::Task(task_id) => Self::of_task(client, task_id).await?,
        };
        let repository = args.repo.clone().unwrap_or(of);
        if repository.is_empty() {
            return Err(Error::usage("the checkpoint's task is no longer kept; name its repository with --repo"));
        }
        Ok(Self { work, repository })
    }

    /// The result of a task, or its newest checkpoint; and its repository.
    async fn of_task(client: &Client, task_id: String) -> Result<(Work, String)> {
        let request = timed(pb::GetTaskRequest { task_id: task_id.clone() });
        let details = client.tasks().get_task(request).await.map_err(client.refused("read the task"))?.into_inner();
        let spec = details.task.and_then(|task| task.spec).unwrap_or_default();
        if let Some(result) = details.result {
            if result.commit.is_empty() {
                return Err(Error::failed("the task is done and has made nothing: its agent works on no repository"));
            }
            return Ok((Work::Result(Box::new(result)), spec.repository));
        }
        let request = timed(pb::ListCheckpointsRequest { task_id, page_size: 1, ..Default::default() });
        let newest = client.tasks().list_checkpoints(request).await;
        let newest = newest.map_err(client.refused("list checkpoints"))?.into_inner().checkpoints;
        let newest = newest.into_iter().next().ok_or_else(|| {
            Error::failed("there is no checkpoint of the task yet; `makima task checkpoint now` takes one")
        })?;
        let request = timed(pb::GetCheckpointRequest { checkpoint_id: newest.checkpoint_id });
        let found = client.tasks().get_checkpoint(request).await.map_err(client.refused("read the checkpoint"))?;
        let checkpoint = found.into_inner().checkpoint.unwrap_or_default();
        Ok((Work::Checkpoint(Box::new(checkpoint)), spec.repository))
    }
}

/// Brings the files of a checkpoint's chain into a directory. They are checked where they are used.
async fn download(client: &Client, checkpoint: &pb::Checkpoint, dir: &Path) -> Result<Vec<ChainFile>> {
    let mut files = Vec::new();
    for (index, link) in checkpoint.chain.iter().enumerate() {
        let path = dir.join(format!("{index}.checkpoint"));
        bring(client, &link.blob_id, link.bytes, &path).await?;
        files.push(ChainFile { path, sha256: hex(&link.sha256) });
    }
    Ok(files)
}

/// A result with its pack, if it has one, in a directory.
async fn result_files(client: &Client, result: &pb::TaskResult, dir: &Path) -> Result<FoundResult> {
    let mut pack = None;
    if !result.blob_id.is_empty() {
        let path = dir.join("result.pack");
        bring(client, &result.blob_id, result.bytes, &path).await?;
        pack = Some(ChainFile { path, sha256: hex(&result.sha256) });
    }
    Ok(FoundResult {
        commit: result.commit.clone(),
        base_commit: result.base_commit.clone(),
        branch: result.branch.clone(),
        result_ref: result.result_ref.clone(),
        pack,
    })
}

/// Brings one blob, going on where a broken connection left off.
async fn bring(client: &Client, blob_id: &str, bytes: i64, path: &Path) -> Result<()> {
    let write = |error| Error::io(format!("write {}", path.display()))(error);
    let mut file = fs::File::create(path).map_err(write)?;
    let mut offset = 0;
    let mut backoff = Backoff::new(std::time::Duration::from_millis(500), std::time::Duration::from_secs(10));
    let mut deadline = Instant::now() + PATIENCE;
    while offset < bytes {
        let request = pb::DownloadChunksRequest { blob_id: blob_id.to_owned(), offset };
        let broken = match client.daemons().download_chunks(request).await {
            Err(status) => status,
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(chunk)) => {
                            if chunk.offset != offset || crc32fast::hash(&chunk.data) != chunk.crc32 {
                                return Err(Error::failed("a piece of the work arrived damaged; try again"));
                            }
                            file.write_all(&chunk.data).map_err(write)?;
                            offset += i64::try_from(chunk.data.len()).unwrap_or(i64::MAX);
                            deadline = Instant::now() + PATIENCE;
                        }
                        Ok(None) if offset >= bytes => break tonic::Status::ok(""),
                        Ok(None) => break tonic::Status::unavailable("the download ended early"),
                        Err(status) => break status,
                    }
                }
            }
        };
        if offset < bytes {
            if !is_transient(&broken) || Instant::now() > deadline {
                return Err(client.refused("download the work")(broken));
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
    if offset != bytes {
        let (wanted, came) = (size(bytes), size(offset));
        return Err(Error::failed(format!("the file should be {wanted} long and is {came}; try again")));
    }
    Ok(())
}

/// A directory of ours, gone with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new(within: &Path) -> Result<Self> {
        let path = within.join(format!(".makima-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir(&path).map_err(Error::io(format!("create {}", path.display())))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is a copy of what the server has.
        let _ = fs::remove_dir_all(&self.0);
    }
}

//! `makima task restore, diff`: a checkpoint in a person's hands, without the daemon that took it.
//!
//! ```text
//!   server: GetCheckpoint ──> chain of blobs ── DownloadChunks ──> files in a directory of ours, beside DIR
//!   here:   a clone of the repository, with all that the checkpoint has ──> DIR, or what it changed as text
//! ```

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
        checkpoint::{self, ChainFile},
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

/// A checkpoint, and the repository it is of.
#[derive(Args, Debug)]
struct OfArgs {
    /// Id or short id of a checkpoint, or a task (id, short id, CONTRACT/NAME, name): then its newest
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

/// The work of a checkpoint in a directory.
pub async fn restore(session: &mut Session, client: &Client, args: &RestoreArgs) -> Result<()> {
    let found = Found::load(client, &args.of).await?;
    let into = std::path::absolute(&args.into).map_err(Error::io("find the directory"))?;
    if fs::read_dir(&into).is_ok_and(|mut entries| entries.next().is_some()) || into.is_file() {
        return Err(Error::usage(format!("{} exists and is not empty; name another directory", into.display())));
    }
    let beside = into.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(beside).map_err(Error::io(format!("create {}", beside.display())))?;
    let files = Scratch::new(beside)?;
    let chain = found.download(client, files.path()).await?;
    let (branch, transcript) = (args.branch.as_deref(), args.transcript.as_deref());
    let made = checkpoint::restore_into(&found.repository, &chain, &into, branch, transcript).await;
    let made = made.map_err(|error| Error::failed(format!("cannot restore the checkpoint: {error}")))?;
    let id = &found.checkpoint.checkpoint_id;
    if session.out.json {
        return session.out.object(&Made {
            checkpoint_id: id,
            directory: into.display().to_string(),
            branch: &made.place.branch,
            head: &found.checkpoint.head,
            session_id: made.session_id.as_deref().unwrap_or_default(),
            transcript: made.transcript.as_ref().map(|path| path.display().to_string()),
            omitted: made.omitted.iter().map(|it| it.path.as_str()).collect(),
            warnings: &made.warnings,
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

/// What a checkpoint changed, as text.
pub async fn diff(session: &mut Session, client: &Client, args: &DiffArgs) -> Result<()> {
    let found = Found::load(client, &args.of).await?;
    let scratch = Scratch::new(&std::env::temp_dir())?;
    let chain = found.download(client, scratch.path()).await?;
    // In a clone of our own: nothing is written to anybody's repository.
    let clone = scratch.path().join("clone");
    let failed = |error| Error::failed(format!("cannot compare the checkpoint: {error}"));
    checkpoint::restore_into(&found.repository, &chain, &clone, None, None).await.map_err(failed)?;
    let repo = RepoRef { repository: found.repository.clone(), git_dir: clone.join(".git"), cloned: false };
    let text = checkpoint::diff(&repo, &chain, None, MAX_DIFF_BYTES).await.map_err(failed)?;
    let text = match (args.stat, text.split_once("\n\n")) {
        (true, Some((names, _))) => format!("{names}\n"),
        _ => text,
    };
    session.out.bytes(text.as_bytes())
}

/// A checkpoint with what restoring it takes.
struct Found {
    checkpoint: pb::Checkpoint,
    repository: String,
}

impl Found {
    async fn load(client: &Client, args: &OfArgs) -> Result<Self> {
        let found = match point(client, &args.of, args.contract.as_deref()).await? {
            Point::Checkpoint(found) => *found,
            Point::Task(task_id) => {
                let request = timed(pb::ListCheckpointsRequest { task_id, page_size: 1, ..Default::default() });
                let newest = client.tasks().list_checkpoints(request).await;
                let newest = newest.map_err(client.refused("list checkpoints"))?.into_inner().checkpoints;
                let newest = newest.into_iter().next().ok_or_else(|| {
                    Error::failed("there is no checkpoint of the task yet; `makima task checkpoint now` takes one")
                })?;
                let request = timed(pb::GetCheckpointRequest { checkpoint_id: newest.checkpoint_id });
                let found = client.tasks().get_checkpoint(request).await;
                found.map_err(client.refused("read the checkpoint"))?.into_inner()
            }
        };
        let repository = args.repo.clone().unwrap_or(found.repository);
        if repository.is_empty() {
            return Err(Error::usage("the checkpoint's task is no longer kept; name its repository with --repo"));
        }
        Ok(Self { checkpoint: found.checkpoint.unwrap_or_default(), repository })
    }

    /// Brings the files of the chain into a directory. They are checked where they are used.
    async fn download(&self, client: &Client, dir: &Path) -> Result<Vec<ChainFile>> {
        let mut files = Vec::new();
        for (index, link) in self.checkpoint.chain.iter().enumerate() {
            let path = dir.join(format!("{index}.checkpoint"));
            bring(client, link, &path).await?;
            files.push(ChainFile { path, sha256: hex(&link.sha256) });
        }
        Ok(files)
    }
}

/// Brings one blob, going on where a broken connection left off.
async fn bring(client: &Client, link: &pb::CheckpointLink, path: &Path) -> Result<()> {
    let write = |error| Error::io(format!("write {}", path.display()))(error);
    let mut file = fs::File::create(path).map_err(write)?;
    let mut offset = 0;
    let mut backoff = Backoff::new(std::time::Duration::from_millis(500), std::time::Duration::from_secs(10));
    let mut deadline = Instant::now() + PATIENCE;
    while offset < link.bytes {
        let request = pb::DownloadChunksRequest { blob_id: link.blob_id.clone(), offset };
        let broken = match client.daemons().download_chunks(request).await {
            Err(status) => status,
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(chunk)) => {
                            if chunk.offset != offset || crc32fast::hash(&chunk.data) != chunk.crc32 {
                                return Err(Error::failed("a piece of the checkpoint arrived damaged; try again"));
                            }
                            file.write_all(&chunk.data).map_err(write)?;
                            offset += i64::try_from(chunk.data.len()).unwrap_or(i64::MAX);
                            deadline = Instant::now() + PATIENCE;
                        }
                        Ok(None) if offset >= link.bytes => break tonic::Status::ok(""),
                        Ok(None) => break tonic::Status::unavailable("the download ended early"),
                        Err(status) => break status,
                    }
                }
            }
        };
        if offset < link.bytes {
            if !is_transient(&broken) || Instant::now() > deadline {
                return Err(client.refused("download the checkpoint")(broken));
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
    if offset != link.bytes {
        let (wanted, came) = (size(link.bytes), size(offset));
        return Err(Error::failed(format!("the checkpoint should be {wanted} long and is {came}; try again")));
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

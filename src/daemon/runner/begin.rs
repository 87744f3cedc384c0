//! From the order to the running agent.
//!
//! ```text
//!   sanity ─> directory ─> ground ───────────────────────────────────────────> agent's command ─> shim ─> Started
//!                          ├ new       repository, results, worktree, merges, setup
//!                          ├ here      the earlier attempt's worktree, as it was left
//!                          └ restored  repository, checkpoint, copy_files, setup
//! ```
//!
//! Everything here can be done again from the start, and is, when the daemon died during it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{Halt, LEFTOVER_GRACE, Left, Runner, blocking, chain, saving::Saving};
use crate::{
    daemon::{
        agents::{self, Context as AgentContext, Resume, transcript},
        attempt_dir::{self, AttemptDir, Manifest, Place},
        brief::{self, Story},
        bulk,
        checkpoint::{self, ChainFile},
        journal::{Change, State},
        repository::{RepoRef, has_commit},
        sanity,
        shim::{self, Handle},
        sweep, worktree,
    },
    domain::{
        AttemptRef, CheckpointId,
        attempt::{Failure, FailureClass, Pack},
        checkpoint::Link,
        order::{self, DependencyResult, EarlierWorktree, Spawn},
        report::Report,
    },
    runtime::backoff::Backoff,
};

/// How long the shim of an earlier attempt may take to be gone, once its agent is.
const SHIM_LEAVES: Duration = Duration::from_secs(10);
/// Between looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Times a file is asked for: with the longest waits between them some minutes, in which a server is started again.
const DOWNLOAD_TRIES: u32 = 12;
/// Times of those that what comes may be damaged: once may be the line, more is the server's disk.
const DAMAGED_TRIES: u32 = 3;

/// Where the agent is to work.
pub(super) struct Ground {
    pub(super) place: Place,
    /// What setup does is there already.
    pub(super) set_up: bool,
    /// The agent's conversation so far, and the session it is of; it may be elsewhere than where the agent looks for it.
    pub(super) conversation: Option<(String, Option<PathBuf>)>,
    /// Files of the earlier work that are not there.
    pub(super) omitted: Vec<String>,
    /// The checkpoint that was restored.
    pub(super) restored: Option<CheckpointId>,
    /// It is not the newest of that work, which could not be.
    pub(super) is_older: bool,
    /// Where the earlier work was.
    pub(super) old_worktree: Option<PathBuf>,
}

impl Runner {
    /// Everything up to the running agent.
    pub(super) async fn begin(&mut self, spawn: &Spawn) -> Result<Handle, Halt> {
        let mut warnings = self.sanity(spawn).await;
        let (dir, mut manifest) = self.directory(spawn).await?;
        self.dir = Some(dir.clone());
        self.open_tail(spawn, None);
        let ground = self.ground(spawn, &dir, &mut manifest, &mut warnings).await?;
        manifest.place = Some(ground.place.clone());
        (manifest.restored, manifest.is_older) = (ground.restored, ground.is_older);
        self.save(&dir, &manifest).await?;
        if !ground.set_up {
            self.attend(worktree::setup(&dir, &manifest)).await?.map_err(Failure::from)?;
        }
        manifest.agent = Some(self.agent(spawn, &dir, &ground, manifest.rejected, &mut warnings).await?);
        self.save(&dir, &manifest).await?;
        self.launch(&dir, &manifest, warnings).await
    }

    /// From here on it lives without us, so this is not given up half way.
    async fn launch(&mut self, dir: &AttemptDir, manifest: &Manifest, warnings: Vec<String>) -> Result<Handle, Halt> {
        let handle = Handle::start(dir, self.context.config.executable.clone())
            .await
            // It is this machine that cannot: another one may do better.
            .map_err(|error| Failure::new(FailureClass::Refused, chain(&error)))?;
        self.started(manifest, handle.started().output_start, warnings).await?;
        Ok(handle)
    }

    /// The attempt's directory, and what stands in it from an earlier process of this daemon.
    async fn directory(&self, spawn: &Spawn) -> Result<(AttemptDir, Manifest), Halt> {
        let manifest = Manifest {
            version: attempt_dir::VERSION,
            attempt: self.attempt,
            created: self.row.created,
            spawn: spawn.clone(),
            place: None,
            agent: None,
            superseded: None,
            restored: None,
            is_older: false,
            rejected: false,
            moved_from: None,
        };
        let state = self.context.state.path().to_owned();
        let made = blocking(move || {
            let dir = AttemptDir::create(&state, &manifest)?;
            let found = dir.manifest()?;
            Ok::<_, attempt_dir::Error>((dir, found))
        });
        Ok(made.await.map_err(|error| disk_failure(&error))?)
    }

    async fn ground(
        &mut self,
        spawn: &Spawn,
        dir: &AttemptDir,
        manifest: &mut Manifest,
        warnings: &mut Vec<String>,
    ) -> Result<Ground, Halt> {
        match spawn.resume.as_ref() {
            Some(resume @ order::Resume { here: Some(earlier), .. }) => {
                match self.take_over(spawn, earlier, dir, manifest, warnings).await {
                    Err(Halt::Failed(failure))
                        if failure.class == FailureClass::WorktreeLost && !resume.chain.is_empty() =>
                    {
                        // It was there when this was decided. A checkpoint is the next best.
                        warnings.push(format!("{}; it goes on from the last checkpoint", failure.message));
                        self.restore(spawn, resume, dir, warnings).await
                    }
                    taken => taken,
                }
            }
            Some(resume) if !resume.chain.is_empty() => self.restore(spawn, resume, dir, warnings).await,
            Some(_) | None => self.prepare(spawn, dir, warnings).await,
        }
    }

    /// A new worktree, from the base or from what the dependencies made.
    async fn prepare(&mut self, spawn: &Spawn, dir: &AttemptDir, warnings: &mut Vec<String>) -> Result<Ground, Halt> {
        let context = Arc::clone(&self.context);
        // What the server keeps need not be looked for at origin.
        let elsewhere = spawn.dependencies.iter().filter(|d| d.blob.is_empty() && !d.result_ref.is_empty());
        let wanted: Vec<String> = elsewhere.map(|d| d.result_ref.clone()).collect();
        let repo = self
            .attend(context.repositories.ensure(&spawn.repository, &spawn.base_branch, &wanted))
            .await?
            .map_err(Failure::from)?;
        for dependency in spawn.dependencies.iter().filter(|d| !d.blob.is_empty() && !d.commit.is_empty()) {
            self.import(&repo, dependency, dir, warnings).await?;
        }
        let path = context.state.worktree(self.attempt);
        let prepared =
            self.attend(worktree::prepare(&repo, spawn, self.attempt, &path)).await?.map_err(Failure::from)?;
        warnings.extend(prepared.warnings);
        Ok(Ground {
            place: prepared.place,
            set_up: false,
            conversation: None,
            omitted: Vec::new(),
            restored: None,
            is_older: false,
            old_worktree: None,
        })
    }

    /// Brings the result of a dependency from the server, where the repository does not have it. Where that fails, origin may
    /// have it: `worktree::prepare` looks there, and says so if not.
    async fn import(
        &mut self,
        repo: &RepoRef,
        dependency: &DependencyResult,
        dir: &AttemptDir,
        warnings: &mut Vec<String>,
    ) -> Result<(), Halt> {
        if has_commit(&repo.open().map_err(Failure::from)?, &dependency.commit).is_some() {
            return Ok(());
        }
        let file = dir.path().join(format!("{}.pack", dependency.task.short()));
        let whole = Pack { bytes: dependency.blob_bytes, sha256: dependency.blob_sha256.clone() };
        let brought = match self.download(&dependency.blob, &file, &whole).await {
            Ok(()) => {
                let (commit, name) = (&dependency.commit, &dependency.result_ref);
                let imported = checkpoint::import_result(repo, &file, &whole.sha256, commit, name);
                self.attend(imported).await?.map_err(|error| error.message)
            }
            Err(Halt::Failed(failure)) => Err(failure.message),
            Err(halt) => return Err(halt),
        };
        let _ = blocking(move || std::fs::remove_file(file)).await;
        if let Err(why) = brought {
            warnings.push(format!("the result of `{}` cannot be taken from the server: {why}", dependency.name));
        }
        Ok(())
    }

    /// Takes a file from the server, also over a line that breaks.
    async fn download(&mut self, blob: &str, into: &Path, whole: &Pack) -> Result<(), Halt> {
        let context = Arc::clone(&self.context);
        let times = context.config.times;
        let mut backoff = Backoff::new(times.reconnect_first, times.reconnect_limit);
        let mut damaged = 0;
        for tried in 1.. {
            let problem = match self.attend(bulk::download(&context.config, blob, into, whole)).await? {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !problem.may_pass() {
                return Err(Failure::new(FailureClass::WorktreeLost, chain(&problem)).into());
            }
            damaged += u32::from(matches!(problem, bulk::DownloadError::Damaged { .. }));
            if damaged == DAMAGED_TRIES {
                let text = format!(
                    "{}; what the server keeps is damaged: `makima task checkpoints` lists what else there is",
                    chain(&problem)
                );
                return Err(Failure::new(FailureClass::WorktreeLost, text).into());
            }
            if tried == DOWNLOAD_TRIES {
                return Err(Failure::new(FailureClass::Refused, chain(&problem)).into());
            }
            tracing::warn!(blob, tried, error = chain(&problem), "a file does not come; trying again");
            self.attend(tokio::time::sleep(backoff.next_delay())).await?;
        }
        Ok(())
    }

    // === from a checkpoint ===

    /// From the newest of the chain that can be had, and restored here. What the newer ones have that it lacks is not lost,
    /// the server keeps them; a task that stands still for good because of a file or a commit that is gone would be.
    async fn restore(
        &mut self,
        spawn: &Spawn,
        resume: &order::Resume,
        dir: &AttemptDir,
        warnings: &mut Vec<String>,
    ) -> Result<Ground, Halt> {
        let context = Arc::clone(&self.context);
        let files = dir.path().join("restore");
        let made = files.clone();
        let make = blocking(move || std::fs::create_dir_all(made));
        make.await.map_err(|error| disk_failure(&error))?;
        let mut chain_files = Vec::with_capacity(resume.chain.len());
        let mut not_there = None;
        for link in &resume.chain {
            let path = files.join(format!("{}.checkpoint", link.id));
            let whole = Pack { bytes: link.bytes, sha256: link.sha256.clone() };
            match self.download(&link.blob, &path, &whole).await {
                Ok(()) => chain_files.push(ChainFile { path, sha256: link.sha256.clone() }),
                Err(Halt::Failed(failure))
                    if failure.class == FailureClass::WorktreeLost && !chain_files.is_empty() && !resume.chosen =>
                {
                    not_there = Some(failure.message);
                    break;
                }
                Err(halt) => return Err(halt),
            }
        }
        let repo = self
            .attend(context.repositories.ensure(&spawn.repository, &spawn.base_branch, &[]))
            .await?
            .map_err(Failure::from)?;
        let path = context.state.worktree(self.attempt);
        let transcript = dir.path().join("transcript");
        let restored = checkpoint::restore(&repo, &chain_files, &path, &spawn.branch, Some(&transcript), resume.chosen);
        let restored = self.attend(restored).await?.map_err(Failure::from)?;
        let is_older = restored.passed_over.is_some() || not_there.is_some();
        let older = restored.previous.id.short();
        let instead = |newest: &Link| {
            format!("checkpoint {} cannot be restored here, so it goes on from {older}, before it", newest.id.short())
        };
        if let (Some(why), Some(newest)) = (not_there, resume.chain.last()) {
            warnings.push(format!("{}: {why}", instead(newest)));
        }
        if let (Some(why), Some(newest)) = (restored.passed_over, resume.chain.get(chain_files.len() - 1)) {
            warnings.push(format!(
                "{} ({why}); what came after that stays on the server: `makima task restore {} --into DIR --repo PATH` takes it \
                 out, with a repository that has what it builds on",
                instead(newest),
                newest.id.short()
            ));
        }
        let (place, told) = self.attend(worktree::furnish(restored.place, spawn)).await?.map_err(Failure::from)?;
        warnings.extend(restored.warnings);
        warnings.extend(told);
        Saving::begin_from(dir, &restored.previous).await.map_err(|error| disk_failure(&error))?;
        let _ = blocking(move || std::fs::remove_dir_all(files)).await;
        // Power that goes now would leave files that are empty, in a worktree that looks intact. Nobody need wait for it.
        let written = [place.worktree.clone(), repo.git_dir.clone()];
        self.context.shutdown.spawn(blocking(move || {
            for dir in written {
                let synced = std::fs::File::open(&dir).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
                if let Err(error) = synced {
                    tracing::warn!(dir = %dir.display(), %error, "restored files cannot be synced");
                }
            }
        }));
        tracing::info!(worktree = %place.worktree.display(), checkpoint = %restored.previous.id, "restored from a checkpoint");
        // A branch from a checkpoint may want the work without the conversation.
        let session = restored.session_id.filter(|_| !resume.session_id.is_empty());
        Ok(Ground {
            place,
            set_up: false,
            conversation: session.map(|session| (session, restored.transcript)),
            omitted: restored.omitted.into_iter().map(|omitted| omitted.path).collect(),
            restored: Some(restored.previous.id),
            is_older,
            old_worktree: None,
        })
    }

    // === in the worktree of an earlier attempt ===

    async fn take_over(
        &mut self,
        spawn: &Spawn,
        earlier: &EarlierWorktree,
        dir: &AttemptDir,
        manifest: &mut Manifest,
        warnings: &mut Vec<String>,
    ) -> Result<Ground, Halt> {
        let lost = |why: String| Failure::new(FailureClass::WorktreeLost, why);
        let state = self.context.state.path().to_owned();
        let of = earlier.attempt;
        let gone = || lost(format!("the worktree {} of attempt {} is gone or damaged", earlier.path, of.number));
        let earlier_dir = blocking(move || AttemptDir::find(&state, of)).await.ok_or_else(gone)?;
        let mut theirs = earlier_dir.manifest().map_err(|error| lost(chain(&error)))?;
        if let Some(other) = theirs.superseded.filter(|other| *other != self.attempt) {
            return Err(lost(format!("attempt {} works in the worktree of attempt {}", other.number, of.number)).into());
        }
        let made = theirs.made().ok_or_else(gone)?;
        self.nothing_lives(&earlier_dir).await?;
        let task = of.task;
        let found = {
            let made = made.clone();
            blocking(move || worktree::find(&made, task)).await.ok_or_else(gone)?
        };
        // What was decided before a crash stays decided.
        let place = match manifest.place.clone().filter(|place| place.worktree == found.worktree) {
            Some(place) => place,
            None => {
                let planned = self.attend(worktree::plan(&found, &spawn.branch)).await?;
                let (place, told) = planned.map_err(Failure::from)?;
                warnings.extend(told);
                place
            }
        };
        manifest.place = Some(place.clone());
        self.save(dir, manifest).await?;
        theirs.superseded = Some(self.attempt);
        self.save(&earlier_dir, &theirs).await?;
        self.hand_over(of).await?;
        self.attend(worktree::take_over(&found, &place)).await?.map_err(Failure::from)?;
        tracing::info!(worktree = %place.worktree.display(), of = of.number, "goes on in the worktree of an earlier attempt");
        let session = spawn.resume.as_ref().map(|resume| resume.session_id.clone()).filter(|id| !id.is_empty());
        Ok(Ground {
            place,
            // Its agent's command was decided after setup.
            set_up: theirs.agent.is_some(),
            conversation: session.map(|session| (session, None)),
            omitted: Vec::new(),
            restored: None,
            is_older: false,
            old_worktree: Some(made.worktree),
        })
    }

    /// Ends whatever is left of an earlier attempt: two must not work in one place.
    async fn nothing_lives(&mut self, dir: &AttemptDir) -> Result<(), Halt> {
        let target = dir.target().map_err(|error| disk_failure(&error))?;
        let refuse = |why: String| Failure::new(FailureClass::Refused, why);
        let swept = self.attend(sweep::kill_all(&target, LEFTOVER_GRACE)).await?;
        let left = swept.map_err(|error| refuse(format!("the earlier attempt does not end: {}", chain(&error))))?;
        if left > 0 {
            tracing::warn!(left, "processes of the earlier attempt were alive; they are ended");
        }
        let begun = tokio::time::Instant::now();
        while shim::is_held(dir).unwrap_or(true) {
            if begun.elapsed() > SHIM_LEAVES {
                return Err(refuse("the shim of the earlier attempt does not end".to_owned()).into());
            }
            self.attend(tokio::time::sleep(LOOK_AGAIN)).await?;
        }
        Ok(())
    }

    /// The earlier attempt has no worktree any more.
    async fn hand_over(&self, from: AttemptRef) -> Result<(), Halt> {
        let change = Change { worktree: Some(String::new()), ..Change::default() };
        self.record_of(from, change).await.map_err(|Left| Halt::Shutdown)
    }

    // === the agent ===

    /// The agent's command: with its own session where that is possible, else as a new one that is told what was done.
    async fn agent(
        &mut self,
        spawn: &Spawn,
        dir: &AttemptDir,
        ground: &Ground,
        rejected: bool,
        warnings: &mut Vec<String>,
    ) -> Result<attempt_dir::AgentCommand, Halt> {
        let mut context = AgentContext {
            attempt: self.attempt,
            plan_file: dir.plan(),
            worktree: ground.place.worktree.clone(),
            server: self.context.config.server.to_string(),
            resume: None,
            env: ground.place.env.clone(),
        };
        let Some(resume) = &spawn.resume else { return self.command(spawn, &context) };
        let fork = resume.fork_session;
        let mut session = None;
        if let Some((id, file)) = ground.conversation.clone().filter(|_| !rejected)
            && self.context.profiles.can_resume(&spawn.agent, fork)
        {
            let env = self.command(spawn, &context)?.env;
            let conversation = self.context.profiles.conversation(&spawn.agent, &context.worktree, &id, &env);
            let placed = blocking(move || conversation.is_some_and(|it| place_transcript(&it, file)));
            if placed.await {
                session = Some(id);
            } else {
                warnings.push(
                    "the agent's conversation is not here; it begins a new one, and is told what was done".into(),
                );
            }
        }
        let last_messages: Vec<String> =
            Some(resume.last_message.clone()).filter(|m| !m.is_empty()).into_iter().collect();
        let text = brief::write(&Story {
            plan: &spawn.plan,
            why: &resume.reason,
            last_messages: &last_messages,
            // Of the newest one.
            changes: if ground.is_older { "" } else { &resume.summary },
            omitted: &ground.omitted,
            is_older: ground.is_older,
            resumed: session.is_some(),
            worktree: Some(&ground.place.worktree),
            old_worktree: ground.old_worktree.as_deref(),
            moved: &[],
        });
        let file = dir.clone();
        let written = text.clone();
        blocking(move || file.save_brief(&written)).await.map_err(|error| disk_failure(&error))?;
        context.resume = Some(Resume { session, fork, brief: text, brief_file: dir.brief() });
        self.command(spawn, &context)
    }

    fn command(&self, spawn: &Spawn, context: &AgentContext) -> Result<attempt_dir::AgentCommand, Halt> {
        let command = self.context.profiles.command(spawn, context).map_err(|error| {
            let class = match error {
                // Another daemon may have it.
                agents::Error::Unknown { .. } => FailureClass::Refused,
                agents::Error::PlanTooLong { .. } => FailureClass::AgentError,
            };
            Failure::new(class, error.to_string())
        })?;
        Ok(command)
    }

    /// The session was not accepted, and nothing has been done: the agent is started once more, with a new one.
    pub(super) async fn begin_again(&mut self, spawn: &Spawn, why: &Failure) -> Result<Handle, Halt> {
        let Some(dir) = self.dir.clone() else { return Err(Halt::Failed(why.clone())) };
        let mut manifest = self.manifest()?;
        let place = manifest.place.clone().ok_or_else(|| why.clone())?;
        tracing::warn!(why = why.message, "the agent does not go on with its session; it begins a new one");
        let mut warnings =
            vec![format!("the agent's session could not be resumed, so it began a new one: {}", why.message)];
        let ground = Ground {
            place,
            set_up: true,
            conversation: None,
            omitted: Vec::new(),
            restored: manifest.restored,
            is_older: manifest.is_older,
            old_worktree: None,
        };
        manifest.rejected = true;
        manifest.agent = Some(self.agent(spawn, &dir, &ground, true, &mut warnings).await?);
        self.save(&dir, &manifest).await?;
        let started_over = dir.clone();
        blocking(move || started_over.start_over()).await.map_err(|error| disk_failure(&error))?;
        if let Some(tail) = &mut self.tail {
            tail.begin_again(self.context.profiles.parser(&spawn.agent));
        }
        self.launch(&dir, &manifest, warnings).await
    }

    pub(super) async fn sanity(&self, spawn: &Spawn) -> Vec<String> {
        let settings = self.context.config.dependency_ordering;
        let tasks: Vec<_> = spawn.dependencies.iter().map(|d| d.task).collect();
        let known = match tasks.is_empty() {
            true => Vec::new(),
            false => self.context.journal.attempts_of(tasks).await.unwrap_or_default(),
        };
        let warnings = sanity::check(settings, spawn, &known, sanity::touched);
        for warning in &warnings {
            tracing::warn!(warning, "sanity check");
        }
        self.context.metrics.sanity_warnings(warnings.len());
        if settings.warn_on_violation { warnings } else { Vec::new() }
    }

    pub(super) async fn save(&self, dir: &AttemptDir, manifest: &Manifest) -> Result<(), Halt> {
        let (dir, manifest) = (dir.clone(), manifest.clone());
        Ok(blocking(move || dir.save(&manifest)).await.map_err(|e| disk_failure(&e))?)
    }

    /// Where it runs, said again after it has been said once; nothing before.
    pub(super) fn started_in(&self, manifest: &Manifest) -> Option<Report> {
        (self.row.state == State::Running).then(|| self.started_report(manifest))
    }

    fn started_report(&self, manifest: &Manifest) -> Report {
        let place = manifest.place.as_ref();
        Report::Started {
            worktree: place.map(|p| p.worktree.display().to_string()).unwrap_or_default(),
            branch: place.map(|p| p.branch.clone()).unwrap_or_default(),
            base_commit: place.map(|p| p.base_commit.clone()).unwrap_or_default(),
            agent_version: self.context.installed_version(&manifest.spawn.agent),
            restored: manifest.restored,
        }
    }

    /// The agent runs: that is written down, and said.
    pub(super) async fn started(
        &mut self,
        manifest: &Manifest,
        output_start: u64,
        warnings: Vec<String>,
    ) -> Result<(), Halt> {
        let worktree = manifest.place.as_ref().map(|place| place.worktree.display().to_string()).unwrap_or_default();
        // Once is enough, also where an agent is started a second time.
        let started = (self.row.state == State::Accepted).then(|| self.started_report(manifest));
        let reports =
            started.into_iter().chain(warnings.into_iter().map(|message| Report::Warning { message })).collect();
        let change = Change {
            state: Some(State::Running),
            directory: self.dir.as_ref().map(|dir| dir.path().to_owned()),
            worktree: Some(worktree),
            reports,
            ..Change::default()
        };
        self.record(change).await.map_err(|Left| Halt::Shutdown)?;
        self.row.state = State::Running;
        if let Some(tail) = &mut self.tail {
            tail.understand_from(output_start);
        }
        Ok(())
    }
}

/// Brings a conversation to where the agent will look for it, without a last line that was cut; answers whether there is one
/// that can be gone on with. Blocks.
fn place_transcript(conversation: &agents::Conversation, file: Option<PathBuf>) -> bool {
    let Some(from) = file.or_else(|| conversation.find()) else { return false };
    let Ok(bytes) = std::fs::read(&from) else { return false };
    let mended = transcript::mend(&bytes);
    if !transcript::has_conversation(mended) {
        return false;
    }
    let to = &conversation.transcript;
    if *to == from && mended.len() == bytes.len() {
        return true;
    }
    let made = to.parent().is_some_and(|parent| std::fs::create_dir_all(parent).is_ok());
    made && attempt_dir::write_durably(to, mended)
        .inspect_err(|error| tracing::warn!(error = chain(error), "a conversation cannot be put in its place"))
        .is_ok()
}

/// The state directory cannot be written: another daemon may do better.
pub(super) fn disk_failure(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(FailureClass::Refused, format!("the daemon cannot write its state directory: {}", chain(error)))
}

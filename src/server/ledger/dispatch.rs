//! Giving ready tasks to daemons, in the transaction that made them ready.
//!
//! ```text
//!   fleet: classes with room ──> lanes ──> heads ──────┐
//!   the batch: tasks that are ready now ───────────────┴─> schedule::assign ──> attempts, commands
//! ```
//!
//! What it reads is bounded by the room there is: of each class that some daemon with a free slot can serve no more lanes than
//! there are free slots, and of each lane about as many heads as its contract would be given if all lanes were long
//! ([`schedule::shares`]). Each open lane has a task that may start, so that is enough to fill them. Where the heads that were read
//! of a lane are all given away and it may have more (others are short, or its tasks are urgent), twice as many are read, and all
//! is decided anew: what is decided in the end is what would be with all heads at hand. The backlog, the number of contracts and
//! tasks that cannot run now do not count. What earlier batches have seen of lanes is not read again (`lanes`).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{beside, daemons::ANSWER_WITHIN, fleet::Fleet, lanes::AHEAD, op::Push, rows::Rows, work::Work};
use crate::{
    domain::{
        AttemptId, ClassId, ContractId, DaemonId, Epoch, OwnerId, TaskId,
        analysis::{self, Category},
        attempt::{Attempt, AttemptState, Usage},
        checkpoint::Origin,
        daemon::{Card, Daemon, Requirements, is_path},
        order::{Command, ContractTask, DependencyResult, EarlierWorktree, OutstandingSpawn, Resume},
        schedule::{self, Head, Host, Input, Load},
        task::Task,
        transition::TaskEvent,
    },
    server::task_keys::TaskKeys,
    store::{Edge, LaneHead, Result},
};

/// Lanes of a class that one walk looks at. With more open ones than this, those served longest ago come first, so all get
/// their turn.
const MAX_LANES: u32 = 512;
/// As few as this only where there are no more: with a single free slot there is still a choice, by what is near it. (In tests so
/// few that the histories of the simulation have more.)
pub(super) const MIN_LANES: u32 = if cfg!(test) { 2 } else { 16 };
/// Tasks that one batch assigns; the next takes the rest, so that no batch holds others up for long. (In tests so few that the
/// histories of the simulation have more.)
pub(super) const MAX_ASSIGNMENTS: usize = if cfg!(test) { 4 } else { 256 };
/// Unfinished tasks of the contract that go along with an order, for the daemon's sanity check: those that it could warn of,
/// and it says no more than ten warnings.
const MAX_CONTRACT_TASKS: usize = 16;

/// Tasks whose categories are kept between batches. Beyond this they are found anew: it is a matter of time, not of truth.
const MAX_CATEGORIZED: usize = 50_000;

/// What the dispatcher keeps between batches: the classes there are, and what plans were found to touch. Reading a plan takes
/// longer than all else that is done for a task here, and each is asked about with every other task of its contract that starts.
#[derive(Debug, Default)]
pub(super) struct Classes {
    known: HashMap<ClassId, (OwnerId, Requirements)>,
    categories: HashMap<TaskId, Vec<Category>>,
}

impl Classes {
    pub(super) fn new(classes: Vec<(ClassId, OwnerId, Requirements)>) -> Self {
        let known = classes.into_iter().map(|(id, owner, needs)| (id, (owner, needs))).collect();
        Self { known, categories: HashMap::new() }
    }

    /// Whether a class is in the database.
    pub(super) fn knows(&self, class: ClassId) -> bool {
        self.known.contains_key(&class)
    }

    pub(super) fn learn(&mut self, work: &Work) {
        self.known.extend(work.classes.iter().map(|(id, class)| (*id, class.clone())));
        work.respecs.iter().for_each(|id| _ = self.categories.remove(id));
        if self.categories.len() + work.categories.len() > MAX_CATEGORIZED {
            self.categories.clear();
        }
        self.categories.extend(work.categories.iter().map(|(id, found)| (*id, found.clone())));
        let over = work.tasks.shared_dirty().filter(|(_, task)| task.status().is_final());
        over.for_each(|(id, _)| _ = self.categories.remove(&id));
    }
}

impl Work {
    /// Gives ready tasks to daemons with room. Answers whether there may be more to give.
    pub(super) async fn dispatch(
        &mut self,
        tx: &mut impl Rows,
        room: Room,
        classes: &Classes,
        keys: &TaskKeys,
    ) -> Result<bool> {
        let Room { offers, owners, coming } = room;
        let room: u32 = offers.iter().map(|offer| offer.free).sum();
        if room == 0 {
            return Ok(false);
        }
        let new = self.classes.iter().filter(|(id, _)| !classes.known.contains_key(*id));
        let served: Vec<ClassId> = (classes.known.iter().chain(new))
            .filter(|(_, (owner, needs))| {
                offers
                    .iter()
                    .any(|offer| offer.owner == *owner && offer.free > 0 && needs.lacks(&offer.card).is_empty())
            })
            .map(|(id, _)| *id)
            .collect();
        if served.is_empty() {
            return Ok(false);
        }
        let window = room.clamp(MIN_LANES, MAX_LANES);
        let (known, walked): (Vec<ClassId>, Vec<ClassId>) =
            served.iter().partition(|class| self.kept.lanes.knows(**class));
        let mut lanes = tx.lanes_walk(&walked, i64::from(window)).await?;
        self.kept.lanes.walked(&walked, &lanes);
        lanes.extend(known.into_iter().flat_map(|class| self.kept.lanes.walk(class)));
        let mut seen: HashMap<ClassId, u32> = HashMap::new();
        for lane in &lanes {
            *seen.entry(lane.class).or_default() += 1;
        }
        let more_lanes = seen.values().any(|lanes| *lanes >= window);
        let served: HashSet<ClassId> = served.into_iter().collect();
        // The rows of contracts that this batch opens still say that they are closed.
        let opened: Vec<ContractId> = self
            .contracts
            .changed_rows()
            .filter(|(was, now)| !was.is_open() && now.is_open())
            .map(|(_, now)| now.id)
            .collect();
        lanes.extend(tx.lanes_of(&opened).await?.into_iter().filter(|lane| served.contains(&lane.class)));
        let mut read = self.load_heads(tx, &lanes, room).await?;
        // A lane that this batch has closed took the place of another in the window.
        let closed = self.contracts.changed_rows().any(|(was, now)| was.is_open() && !now.is_open());
        let needs = |id: &ClassId| Some((*id, self.classes.get(id).or_else(|| classes.known.get(id))?.1.clone()));
        let needs: HashMap<ClassId, Requirements> = served.iter().filter_map(needs).collect();
        let hosts: Vec<Host<'_>> = (offers.iter())
            .map(|offer| Host {
                daemon: offer.daemon,
                owner: offer.owner,
                card: &offer.card,
                free: offer.free,
                is_returning: offer.is_returning,
            })
            .collect();
        // What goes on where a daemon is coming in this batch waits for the next one, which can give it to that.
        let waits = |task: &Task| task.here.as_ref().is_some_and(|here| coming.contains(&here.daemon));
        let mut waiting = false;
        let mut asked: HashSet<TaskId> = HashSet::new();
        let assignments = loop {
            let ready: Vec<Arc<Task>> = (self.tasks.shared())
                .filter(|(_, task)| task.is_ready() && served.contains(&task.class))
                .map(|(_, task)| Arc::clone(task))
                .collect();
            let all = ready.len();
            let ready: Vec<Arc<Task>> = ready.into_iter().filter(|task| !waits(task)).collect();
            waiting |= ready.len() < all;
            if ready.is_empty() {
                break Vec::new();
            }
            self.load_contract_rows(tx, ready.iter().map(|task| task.contract)).await?;
            let near = self.load_near(tx, &ready, &mut asked).await?;
            let heads: Vec<Head> = ready.iter().map(|task| head(task, near.get(&task.id))).collect();
            let contracts: HashMap<ContractId, Load> = (heads.iter())
                .filter_map(|head| Some((head.contract, Load::of(self.contracts.get(head.contract)?))))
                .collect();
            let (owners, classes) = (owners.clone(), needs.clone());
            let input = Input { heads: &heads, contracts, owners, classes, hosts: &hosts };
            let assignments = schedule::assign(&input, self.now);
            let dry = schedule::run_dry(read.iter().map(Looked::may_have_more), &assignments);
            if dry.is_empty() {
                break assignments;
            }
            for at in dry {
                read[at].limit *= 2;
            }
            self.look_at(tx, &mut read).await?;
        };
        // A head that this batch has changed took the place of another, or its lane did: after this batch the database knows.
        let hides = |looked: &Looked| (more_lanes || looked.is_cut()) && self.has_gone(looked);
        let stale = !self.is_clean() && read.iter().any(hides);
        // No lane was looked at for more than these: with as many there may be others, and room for them.
        let are_most = assignments.len() >= MAX_ASSIGNMENTS;
        let more = (more_lanes && (closed || !assignments.is_empty())) || stale || are_most || waiting;
        let assignments = &assignments[..assignments.len().min(MAX_ASSIGNMENTS)];
        self.load_daemon_rows(tx, assignments.iter().map(|assignment| assignment.daemon)).await?;
        // What goes into the orders; of what is ready and gets no place now nothing is read.
        let rest = assignments.iter().map(|assignment| assignment.task).filter(|id| !asked.contains(id));
        let rest: Vec<TaskId> = rest.collect();
        self.load_dependencies(tx, &rest).await?;
        self.load_replaced(tx, assignments.iter().map(|assignment| assignment.task)).await?;
        self.load_restored(tx, assignments.iter().map(|assignment| assignment.task)).await?;
        let beside = self.load_beside(tx, assignments.iter().map(|assignment| assignment.task), classes).await?;
        for assignment in assignments {
            let beside = self.contract_tasks(assignment.task, &beside, classes);
            self.assign(assignment.task, assignment.daemon, keys, beside);
        }
        Ok(more)
    }

    /// Daemons with room, counting what this batch has changed.
    pub(super) fn room(&self, fleet: &Fleet) -> Room {
        let mut owners: HashMap<OwnerId, u32> = HashMap::new();
        let mut delta: HashMap<DaemonId, i64> = HashMap::new();
        for (was, attempt) in self.attempts.dirty_pairs() {
            let was = was.is_some_and(Attempt::is_live);
            *delta.entry(attempt.daemon).or_default() += i64::from(attempt.is_live()) - i64::from(was);
        }
        let mut offers = Vec::new();
        for (daemon, member) in fleet.iter() {
            *owners.entry(member.owner).or_default() += u32::try_from(member.live.len()).unwrap_or(u32::MAX);
            let row = self.daemons.get(daemon);
            let accepts = row.is_none_or(|row| !row.draining && row.card.not_accepting.is_empty());
            let changed = row.is_some_and(|row| row.draining != member.draining || row.card != member.card);
            if !(accepts && (member.accepts_work() || changed)) {
                continue;
            }
            // Saturates at zero: a daemon may come back with more attempts than it has slots now.
            let free = i64::from(member.free()) - delta.get(&daemon).copied().unwrap_or(0);
            if free > 0 {
                let card = row.map_or(&member.card, |row| &row.card).clone();
                let free = u32::try_from(free).unwrap_or(u32::MAX).min(card.slots);
                offers.push(Offer { daemon, owner: member.owner, card, free, is_returning: !member.ready });
            }
        }
        let comes =
            |(was, row): (Option<&Daemon>, &Daemon)| was.is_none_or(|was| was.epoch < row.epoch) && row.attached;
        let coming = self.daemons.dirty_pairs().filter(|pair| comes(*pair)).map(|(_, row)| row.id).collect();
        Room { offers, owners, coming }
    }

    /// The most urgent tasks of lanes, of each as many as its contract may be given, and one more.
    async fn load_heads(&mut self, tx: &mut impl Rows, lanes: &[LaneHead], room: u32) -> Result<Vec<Looked>> {
        self.load_contract_rows(tx, lanes.iter().map(|lane| lane.contract)).await?;
        let room = room.min(u32::try_from(MAX_ASSIGNMENTS).unwrap_or(u32::MAX));
        let load = |lane: &LaneHead| Some((lane.contract, Load::of(self.contracts.get(lane.contract)?)));
        let loads: BTreeMap<ContractId, Load> = lanes.iter().filter_map(load).collect();
        let shares = schedule::shares(&loads, room);
        let looked = |lane: &LaneHead| -> Option<Looked> {
            let places = loads.get(&lane.contract).map_or(0, |load| load.room()).min(room);
            let limit = schedule::heads_wanted(shares.get(&lane.contract).copied().unwrap_or(0), lanes.len());
            (places > 0).then_some(Looked { lane: *lane, places, limit, read: 0, heads: Vec::new() })
        };
        let mut read: Vec<Looked> = lanes.iter().filter_map(looked).collect();
        self.look_at(tx, &mut read).await?;
        Ok(read)
    }

    /// Brings here the heads of those that have not been looked at with their limit.
    async fn look_at(&mut self, tx: &mut impl Rows, read: &mut [Looked]) -> Result<()> {
        // One statement takes one limit.
        let mut unknown: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        let mut looked_at = Vec::new();
        for (at, looked) in read.iter_mut().enumerate().filter(|(_, looked)| looked.read < looked.limit) {
            looked.read = looked.limit;
            looked_at.push(at);
            match self.kept.lanes.heads(&looked.lane, looked.limit) {
                Some(known) => looked.heads = known,
                None => unknown.entry(looked.limit).or_default().push(at),
            }
        }
        let each = u32::try_from(unknown.values().map(Vec::len).sum::<usize>()).map_or(0, |all| AHEAD / all.max(1));
        for (limit, places) in unknown {
            let lanes: Vec<LaneHead> = places.iter().map(|at| read[*at].lane).collect();
            let ahead = limit.max(each);
            let tasks = tx.lanes_tasks(&lanes, i64::from(ahead)).await?;
            self.kept.lanes.read(&lanes, &tasks, ahead);
            for at in places {
                read[at].heads = self.kept.lanes.heads(&read[at].lane, limit).unwrap_or_default();
            }
        }
        let heads: Vec<TaskId> = looked_at.into_iter().flat_map(|at| read[at].heads.iter().copied()).collect();
        self.load_task_rows(tx, heads.into_iter()).await
    }

    /// One of the heads that were read is none any more.
    fn has_gone(&self, looked: &Looked) -> bool {
        let is_head =
            |id: &TaskId| self.tasks.get(*id).is_some_and(|task| task.class == looked.lane.class && task.is_ready());
        !looked.heads.iter().all(is_head)
    }

    /// Where the results are that ready tasks depend on. `asked` are those that have been looked up.
    async fn load_near(
        &mut self,
        tx: &mut impl Rows,
        ready: &[Arc<Task>],
        asked: &mut HashSet<TaskId>,
    ) -> Result<HashMap<TaskId, Vec<DaemonId>>> {
        // A repository in place is the same for every daemon that has it: nothing is nearer to one than to another.
        let of: Vec<TaskId> = ready.iter().filter(|task| !is_path(&task.spec.repository)).map(|task| task.id).collect();
        let new: Vec<TaskId> = of.iter().filter(|id| asked.insert(**id)).copied().collect();
        self.load_dependencies(tx, &new).await?;
        let mut near = HashMap::new();
        for id in of {
            let daemons: Vec<DaemonId> = (self.dependencies.get(&id).into_iter().flatten())
                .take(schedule::MAX_NEAR)
                .filter_map(|dependency| self.tasks.get(*dependency)?.daemon)
                .collect();
            near.insert(id, daemons);
        }
        Ok(near)
    }

    /// What these tasks depend on.
    async fn load_dependencies(&mut self, tx: &mut impl Rows, of: &[TaskId]) -> Result<()> {
        let (mut edges, mut unknown) = (Vec::new(), Vec::new());
        // The edges of a new one are here.
        for dependent in of.iter().copied() {
            if self.tasks.is_new(dependent) {
                continue;
            }
            let (Some(task), Some(known)) = (self.tasks.get(dependent), self.kept.dependencies(dependent)) else {
                unknown.push(dependent);
                continue;
            };
            let contract = task.contract;
            // All are complete: it is ready.
            let edge = |dependency: &TaskId| Edge { dependent, dependency: *dependency, contract, satisfied: true };
            edges.extend(known.iter().map(edge));
        }
        edges.extend(tx.edges_from(&unknown).await?);
        edges.into_iter().for_each(|edge| self.edge_loaded(edge));
        let dependencies: HashSet<TaskId> =
            of.iter().flat_map(|id| self.dependencies.get(id).into_iter().flatten()).copied().collect();
        self.load_task_rows(tx, dependencies.into_iter()).await
    }

    /// The attempts that are about to be replaced.
    async fn load_replaced(&mut self, tx: &mut impl Rows, tasks: impl Iterator<Item = TaskId>) -> Result<()> {
        let replaced: Vec<(TaskId, u32)> = tasks
            .filter_map(|id| self.tasks.get(id))
            .filter(|task| task.attempt > 0 && !self.attempt_numbers.contains_key(&(task.id, task.attempt)))
            .map(|task| (task.id, task.attempt))
            .collect();
        for attempt in tx.attempts_numbered(&replaced).await? {
            self.attempt_loaded(attempt);
        }
        Ok(())
    }

    /// The checkpoints that the next attempts go on from.
    async fn load_restored(&mut self, tx: &mut impl Rows, tasks: impl Iterator<Item = TaskId>) -> Result<()> {
        let wanted: Vec<_> = tasks.filter_map(|id| self.tasks.get(id)?.checkpoint).collect();
        self.load_checkpoints(tx, wanted.into_iter()).await
    }

    /// Unfinished tasks of the contracts of those tasks whose plans could violate an order, with the lowest category of each.
    async fn load_beside(
        &mut self,
        tx: &mut impl Rows,
        tasks: impl Iterator<Item = TaskId>,
        classes: &Classes,
    ) -> Result<HashMap<ContractId, BTreeMap<TaskId, Category>>> {
        // Of the tasks that are about to start in a contract, the highest category that one of them begins with: what touches
        // nothing below it is of no interest to any of them.
        let mut contracts: HashMap<ContractId, Category> = HashMap::new();
        for id in tasks {
            let Some(mine) = self.categories(id, classes).first().copied() else { continue };
            let Some(contract) = self.tasks.get(id).map(|task| task.contract) else { continue };
            if mine > Category::Schema {
                let highest = contracts.entry(contract).or_insert(mine);
                *highest = mine.max(*highest);
            }
        }
        contracts.retain(|id, _| self.contracts.get(*id).is_some_and(|contract| contract.counts.unfinished() > 1));
        let mut beside: HashMap<ContractId, BTreeMap<TaskId, Category>> = HashMap::new();
        for (contract, highest) in &contracts {
            if !self.kept.beside.knows(*contract) {
                let most = i64::try_from(beside::READ).unwrap_or(i64::MAX);
                self.kept.beside.read(*contract, &tx.tasks_unfinished(*contract, None, most).await?);
            }
            let others = self.kept.beside.lowest(*contract);
            let lower = others.filter_map(|(id, lowest)| Some((id, lowest.filter(|lowest| lowest < highest)?)));
            beside.insert(*contract, lower.collect());
        }
        // What this batch has made or changed is as it is here.
        let here: Vec<(ContractId, TaskId, bool)> = (self.tasks.values())
            .filter(|task| contracts.contains_key(&task.contract))
            .map(|task| (task.contract, task.id, task.status().is_final()))
            .collect();
        for (contract, id, is_final) in here {
            let lowest = if is_final { None } else { self.categories(id, classes).first().copied() };
            let Some(others) = beside.get_mut(&contract) else { continue };
            match lowest.filter(|lowest| Some(lowest) < contracts.get(&contract)) {
                Some(lowest) => _ = others.insert(id, lowest),
                None => _ = others.remove(&id),
            }
        }
        Ok(beside)
    }

    fn assign(&mut self, id: TaskId, daemon: DaemonId, keys: &TaskKeys, beside: Vec<ContractTask>) {
        let Some(task) = self.tasks.share(id).filter(|task| self.contracts.contains(task.contract)) else { return };
        let Some((sequence, epoch)) = self.next_command(daemon) else { return };
        let number = task.attempt + 1;
        let branch = branch(&task, number);
        let event = TaskEvent::Assigned { attempt: number, daemon, branch: branch.clone() };
        if !matches!(self.task_event(id, &event, "server"), Ok(true)) {
            return;
        }
        if let Some(replaced) = self.attempt_numbers.get(&(id, task.attempt)).copied()
            && let Some(replaced) = self.attempts.get_mut(replaced)
        {
            replaced.fenced = true;
        }
        let Some(contract) = self.contracts.get_mut(task.contract) else { return };
        contract.live += 1;
        let (contract_name, limits) = (contract.name.clone(), contract.limits.clone());
        let (resume, origin) = self.resume(&task, daemon);
        let outstanding = OutstandingSpawn {
            sequence,
            contract_name,
            dependencies: self.dependency_results(id),
            contract_tasks: beside,
            checkpoint_every: limits.checkpoint_every,
            final_checkpoint: limits.final_checkpoint,
            resume,
        };
        let answer_by = self.now.after(ANSWER_WITHIN);
        let attempt = Attempt {
            task: id,
            number,
            // Ordered, so that attempts of one time lie together in the indexes here and in the daemons' journals; the rest of it
            // is random.
            id: AttemptId(self.new_id()),
            contract: task.contract,
            owner: task.owner,
            daemon,
            state: AttemptState::Assigned { answer_by, spawn: Some(Arc::new(outstanding)) },
            fenced: false,
            branch,
            worktree: String::new(),
            base_commit: String::new(),
            agent_version: String::new(),
            agent_session_id: String::new(),
            last_message: String::new(),
            usage: Usage::default(),
            warnings: Vec::new(),
            wall_time: task.spec.limits.wall_time.or(limits.wall_time),
            assigned: self.now,
            started: None,
            output_bytes: 0,
            commands: Vec::new(),
            origin,
            checkpoint: None,
            checkpointed: None,
            checkpoint_failed: None,
        };
        if let Some(command) = self.spawn(&attempt, epoch, keys) {
            self.pushes.push((daemon, Push::Command(Arc::new(command))));
        }
        self.attempt_numbers.insert((id, number), attempt.id);
        self.attempts.insert(attempt.id, attempt);
        self.served.insert((task.contract, task.class));
    }

    /// The command to start an attempt that its daemon has not answered.
    pub(super) fn spawn(&self, attempt: &Attempt, epoch: Epoch, keys: &TaskKeys) -> Option<Command> {
        Command::spawn(attempt, self.tasks.get(attempt.task)?, keys.derive(attempt.reference()), epoch)
    }

    /// What the next attempt of a task on this daemon goes on from: the worktree, if it is there, else the checkpoint.
    fn resume(&self, task: &Task, daemon: DaemonId) -> (Option<Resume>, Origin) {
        let earlier = self.attempt_numbers.get(&(task.id, task.attempt)).and_then(|id| self.attempts.get(*id));
        let checkpoint = task.checkpoint.and_then(|id| self.checkpoints.get(&id));
        let here = task.here.as_ref().filter(|here| here.daemon == daemon);
        let origin = match (here, checkpoint) {
            (Some(here), _) => Origin::Worktree { attempt: here.attempt.number },
            (None, Some(checkpoint)) => Origin::Checkpoint { id: checkpoint.id },
            (None, None) => return (None, Origin::Base),
        };
        let branched = task.spec.branched_from.filter(|from| Some(from.checkpoint) == task.checkpoint);
        let in_checkpoint = || checkpoint.map(|checkpoint| checkpoint.about.session_id.clone()).unwrap_or_default();
        let talked = here.map(|here| here.attempt).or(checkpoint.map(|checkpoint| checkpoint.attempt));
        let may_converse = talked.is_none_or(|of| task.may_converse(of));
        let session_id = match (here, branched) {
            _ if !may_converse => String::new(),
            (Some(_), _) => earlier.map(|earlier| earlier.agent_session_id.clone()).unwrap_or_default(),
            (None, Some(from)) if !from.conversation => String::new(),
            (None, _) => in_checkpoint(),
        };
        let base_commit = match here {
            Some(_) => earlier.map(|earlier| earlier.base_commit.clone()),
            None => checkpoint.map(|checkpoint| checkpoint.about.base_commit.clone()),
        };
        let resume = Resume {
            here: here.map(|here| EarlierWorktree { attempt: here.attempt, path: here.worktree.clone() }),
            chain: checkpoint.map(|checkpoint| checkpoint.chain.clone()).unwrap_or_default(),
            base_commit: base_commit.unwrap_or_default(),
            session_id,
            fork_session: may_converse && branched.is_some_and(|from| from.conversation),
            chosen: checkpoint.is_some_and(|checkpoint| task.chose(checkpoint.attempt)),
            reason: task.tries.last_failure.as_ref().map(|failure| failure.message.clone()).unwrap_or_default(),
            last_message: earlier.map(|earlier| earlier.last_message.clone()).unwrap_or_default(),
            summary: checkpoint.map(|checkpoint| checkpoint.about.summary.clone()).unwrap_or_default(),
        };
        (Some(resume), origin)
    }

    fn dependency_results(&self, id: TaskId) -> Vec<DependencyResult> {
        let mut results: Vec<_> = (self.dependencies.get(&id).into_iter().flatten())
            .filter(|dependency| !self.edges_gone.contains_key(&(id, **dependency)))
            .filter_map(|dependency| self.tasks.get(*dependency))
            .map(|task| DependencyResult {
                task: task.id,
                name: task.spec.name.clone(),
                status: task.status(),
                commit: task.result().map(|result| result.commit.clone()).unwrap_or_default(),
                result_ref: task.result().map(|result| result.result_ref.clone()).unwrap_or_default(),
                daemon: task.daemon,
                blob: task.result().map(|result| result.blob.clone()).unwrap_or_default(),
                blob_sha256: task
                    .result()
                    .and_then(|result| Some(result.pack.as_ref()?.sha256.clone()))
                    .unwrap_or_default(),
                blob_bytes: task.result().and_then(|result| Some(result.pack.as_ref()?.bytes)).unwrap_or_default(),
            })
            .collect();
        results.sort_by_key(|result| result.task);
        results.dedup_by_key(|result| result.task);
        results
    }

    /// Unfinished tasks of its contract that touch what should be there before what this one touches.
    fn contract_tasks(
        &mut self,
        id: TaskId,
        beside: &HashMap<ContractId, BTreeMap<TaskId, Category>>,
        classes: &Classes,
    ) -> Vec<ContractTask> {
        let Some(contract) = self.tasks.get(id).map(|task| task.contract) else { return Vec::new() };
        let Some(mine) = self.categories(id, classes).first().copied() else { return Vec::new() };
        let earlier = beside.get(&contract).into_iter().flatten().filter(|(_, lowest)| **lowest < mine);
        let earlier = earlier.map(|(id, _)| *id).filter(|other| *other != id).take(MAX_CONTRACT_TASKS);
        let earlier: Vec<TaskId> = earlier.collect();
        let told = |id: TaskId| {
            // Plans were read when the lowest categories were asked for.
            let touched = self.tasks.contains(id).then(|| self.categories(id, classes).to_vec());
            let (other, categories) = match touched {
                Some(touched) => (self.tasks.get(id)?, touched),
                None => self.kept.beside.task(contract, id).map(|(other, touched)| (other, touched.to_vec()))?,
            };
            Some(ContractTask { task: id, name: other.spec.name.clone(), status: other.status(), categories })
        };
        earlier.into_iter().filter_map(told).collect()
    }

    /// What a task's plan touches; none for one that is not loaded. Found once, unless what was asked is changed.
    fn categories(&mut self, id: TaskId, classes: &Classes) -> &[Category] {
        if !self.categories.contains_key(&id) {
            let kept = classes.categories.get(&id).filter(|_| !self.respecs.contains(&id)).cloned();
            let Some(found) = kept.or_else(|| self.tasks.get(id).map(categories)) else { return &[] };
            self.categories.insert(id, found);
        }
        self.categories.get(&id).map_or(&[], Vec::as_slice)
    }
}

/// A lane, and the heads of it that were looked at.
#[derive(Debug)]
struct Looked {
    lane: LaneHead,
    /// Tasks that its contract may start, as far as there is room.
    places: u32,
    /// Heads that are to be looked at.
    limit: u32,
    /// With which limit they were read; 0 before.
    read: u32,
    /// Those that were read.
    heads: Vec<TaskId>,
}

impl Looked {
    /// The database may have more.
    fn is_cut(&self) -> bool {
        u32::try_from(self.heads.len()).is_ok_and(|read| read >= self.read)
    }

    /// Its heads, if its contract may start more than these and there may be more.
    fn may_have_more(&self) -> Option<&[TaskId]> {
        (self.read < self.places && self.is_cut()).then_some(&*self.heads)
    }
}

/// Where there is room, and how much each owner runs.
#[derive(Debug)]
pub(super) struct Room {
    offers: Vec<Offer>,
    owners: HashMap<OwnerId, u32>,
    /// Daemons that attach in this batch, and have no session before it is committed.
    coming: HashSet<DaemonId>,
}

/// A daemon with room.
#[derive(Debug)]
struct Offer {
    daemon: DaemonId,
    owner: OwnerId,
    card: Card,
    free: u32,
    /// [`Host::is_returning`].
    is_returning: bool,
}

fn head(task: &Task, near: Option<&Vec<DaemonId>>) -> Head {
    Head {
        task: task.id,
        owner: task.owner,
        contract: task.contract,
        class: task.class,
        priority: task.spec.priority,
        created: task.created,
        repository: task.spec.repository.clone(),
        first: task.prefer.into_iter().chain(task.here.as_ref().map(|here| here.daemon)).collect(),
        here: task.here.as_ref().map(|here| here.daemon),
        near: near.cloned().unwrap_or_default(),
        avoid: task.tries.avoid.clone(),
    }
}

pub(super) fn categories(task: &Task) -> Vec<Category> {
    analysis::categorize_plan(&task.spec.name, &task.spec.plan)
}

/// The branch of an attempt: `makima/<short id>-<slug>/<attempt>`.
fn branch(task: &Task, number: u32) -> String {
    /// Characters of the name that go into the branch.
    const SLUG: usize = 40;
    let mut slug = String::new();
    for c in task.spec.name.chars() {
        let c = if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        if slug.len() < SLUG && !(c == '-' && (slug.is_empty() || slug.ends_with('-'))) {
            slug.push(c);
        }
    }
    let slug = slug.trim_end_matches('-');
    let dash = if slug.is_empty() { "" } else { "-" };
    format!("makima/{}{dash}{slug}/{number}", task.id.short())
}

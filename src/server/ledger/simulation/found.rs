//! What histories have found wrong with the ledger, each told again in a few steps: the ledger's own code on rows in memory,
//! with one daemon and a clock that a test sets.

mod usage;

use std::{collections::VecDeque, sync::RwLock, time::Duration};

use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    super::{
        Error, Fleet, Op, Push, Reply, Request, Writer,
        daemons::ANSWER_WITHIN,
        dice::Dice,
        dispatch::{Classes, MAX_ASSIGNMENTS},
        kept::Kept,
        op::Attach,
        work::Work,
    },
    memory::Memory,
    server::at_once,
};
use crate::{
    domain::{
        AttemptRef, BootId, DaemonId, Epoch, JournalId, KeyId, OwnerId, Timestamp,
        attempt::{Attempt, AttemptState, AttemptStatus, Failure, FailureClass, Pack, TaskResult, Usage},
        contract::ContractLimits,
        daemon::{Card, Hello, Profile},
        draft::{ContractUpdate, NewContract, NewTask, NewTasks, TaskUpdate},
        order::{Answer, Command, Order, OrderKind},
        reconcile::Verdict,
        report::{Complete, InventoryItem, InventoryState, Message, MessageOutcome, Progress, Report},
        task::{Task, TaskSpec, TaskStatus},
        transition::RetryFrom,
    },
    server::{blobs::Blobs, task_keys::TaskKeys},
};

const OWNER: OwnerId = OwnerId(Uuid::from_u128(1));
const DAEMON: DaemonId = DaemonId(Uuid::from_u128(2));
/// How long a lost daemon's tasks wait for it here.
const RERUN_AFTER: Duration = Duration::from_secs(60);

/// A ledger, and a daemon with two slots.
struct Story {
    memory: Memory,
    fleet: RwLock<Fleet>,
    classes: Classes,
    kept: Kept,
    keys: TaskKeys,
    dice: Dice,
    now: Timestamp,
    epoch: Epoch,
    said: i64,
    slots: u32,
    /// The last batch wants another one at once.
    more: bool,
    /// What the daemon was told again when it attached last.
    told_again: Vec<Command>,
    /// Kept, so that nobody thinks the session over.
    pushes: Vec<mpsc::Receiver<Push>>,
}

impl Story {
    /// A contract of these tasks, each with what it waits for, and the daemon attached.
    fn of(tasks: &[(&str, &[&str])]) -> Self {
        let mut story = Self {
            memory: Memory::default(),
            fleet: RwLock::default(),
            classes: Classes::new(Vec::new()),
            kept: Kept::default(),
            keys: TaskKeys::new([7; 32]),
            dice: Dice::Seeded { rng: SmallRng::seed_from_u64(1), ordered: 1 },
            now: Timestamp::from_secs(1_000),
            epoch: Epoch(0),
            said: 0,
            slots: 2,
            more: false,
            told_again: Vec::new(),
            pushes: Vec::new(),
        };
        story.attach(0, &[]).unwrap();
        let tasks = tasks.iter().map(|(name, depends_on)| {
            let spec = TaskSpec { name: (*name).to_owned(), agent: "shell".to_owned(), ..TaskSpec::default() };
            NewTask::new(spec, depends_on.iter().map(|name| (*name).to_owned()).collect())
        });
        story.makes(tasks.collect());
        story
    }

    /// Another contract.
    fn makes(&mut self, tasks: Vec<NewTask>) {
        let contract = NewContract {
            owner: OWNER,
            name: "contract".to_owned(),
            description: String::new(),
            repository: "/r".to_owned(),
            base_branch: String::new(),
            limits: ContractLimits { rerun_after: RERUN_AFTER, ..ContractLimits::default() },
            hold: false,
            tasks,
        };
        self.ask(Op::CreateContract(contract)).unwrap();
    }

    /// One batch of one operation.
    fn ask(&mut self, op: Op) -> Result<Reply, Error> {
        self.ask_all(vec![op]).remove(0)
    }

    /// One batch of these operations, as the writer does it.
    fn ask_all(&mut self, ops: Vec<Op>) -> Vec<Result<Reply, Error>> {
        let request = |op| Request { actor: "key:test".to_owned(), repeat: None, op };
        let requests: Vec<Request> = ops.into_iter().map(request).collect();
        let requests: Vec<&Request> = requests.iter().collect();
        let mut work = Work::new(self.now, std::mem::take(&mut self.kept));
        work.look = true;
        work.dice = std::mem::take(&mut self.dice);
        at_once(work.load(&mut self.memory, &requests)).unwrap();
        let replies: Vec<_> =
            requests.iter().map(|request| Writer::fold(&mut work, request, &self.fleet, &self.keys)).collect();
        let room = work.room(&self.fleet.read().unwrap());
        self.more = at_once(work.dispatch(&mut self.memory, room, &self.classes, &self.keys)).unwrap();
        self.dice = std::mem::take(&mut work.dice);
        at_once(work.flush(&mut self.memory, None)).unwrap();
        self.classes.learn(&work);
        self.kept = work.keep();
        Writer::take_effect(&mut self.fleet.write().unwrap(), &work, &requests, &replies);
        replies
    }

    // === what people do ===

    fn task(&self, name: &str) -> &Task {
        self.memory.tasks.values().find(|task| task.spec.name == name).unwrap()
    }

    /// An attempt ends and tasks are cancelled in one batch: the other task gets the slot, in that batch or in one that follows by
    /// itself.
    fn hides_nobody(&mut self, first: AttemptRef, cancelled: [&str; 2], other: &str) {
        let end = self.message(first, ended(Ok(made(first, false)), 0));
        self.cancel_all(cancelled, Some(end));
        if self.order(other).is_none() {
            assert!(self.more, "a slot is free, a task is ready, and nobody looks");
            self.ask_all(Vec::new());
        }
        assert!(self.order(other).is_some());
    }

    /// Tasks are cancelled in one batch, after what else happens in it.
    fn cancel_all(&mut self, names: [&str; 2], first: Option<Op>) {
        let cancels = names.map(|name| {
            let task = self.task(name).id;
            Op::CancelTask { owner: OWNER, task, reason: String::new(), cascade: false }
        });
        for reply in self.ask_all(first.into_iter().chain(cancels).collect()) {
            reply.unwrap();
        }
    }

    fn retry(&mut self, name: &str) {
        let task = self.task(name).id;
        self.ask(Op::RetryTask { owner: OWNER, task, from: RetryFrom::Work }).unwrap();
    }

    fn attempt(&self, attempt: AttemptRef) -> &Attempt {
        &self.memory.attempts[&attempt.id]
    }

    // === what the daemon does ===

    /// Attaches with what it has. Answers the verdicts.
    fn attach(
        &mut self,
        last_command: i64,
        has: &[(AttemptRef, InventoryState)],
    ) -> Result<Vec<(AttemptRef, Verdict)>, Error> {
        self.attach_as(0, last_command, has)
    }

    /// The same with a number of its Hello.
    fn attach_as(
        &mut self,
        number: i64,
        last_command: i64,
        has: &[(AttemptRef, InventoryState)],
    ) -> Result<Vec<(AttemptRef, Verdict)>, Error> {
        let inventory = has.iter().map(|(attempt, state)| InventoryItem {
            attempt: *attempt,
            state: *state,
            worktree: "/w".to_owned(),
            worktree_intact: true,
        });
        let hello = Hello {
            protocol: (1, 1),
            daemon: DAEMON,
            boot: BootId(Uuid::from_u128(3)),
            journal: JournalId(Uuid::from_u128(4)),
            card: Card {
                name: "d".to_owned(),
                slots: self.slots,
                profiles: ["shell", "claude"]
                    .map(|name| Profile { name: name.to_owned(), version: String::new() })
                    .to_vec(),
                any_path: true,
                ..Card::default()
            },
            attach: number,
            last_command,
            unanswered: (0, 0),
            inventory: inventory.collect(),
            clock: self.now,
        };
        let (outbox, pushes) = mpsc::channel(64);
        self.pushes.push(pushes);
        let attach = Attach { owner: OWNER, key: KeyId(Uuid::from_u128(5)), hello, outbox };
        let Reply::Attached { epoch, verdicts, unanswered } = self.ask(Op::Attach(Box::new(attach)))? else {
            panic!("not attached");
        };
        (self.epoch, self.told_again) = (epoch, unanswered);
        self.ask(Op::Ready { daemon: DAEMON, epoch }).unwrap();
        Ok(verdicts)
    }

    /// The newest order to start a task, if there is one that is not answered.
    fn order(&self, name: &str) -> Option<(i64, AttemptRef)> {
        let task = self.task(name).id;
        let attempts = self.memory.attempts.values().filter(|attempt| attempt.task == task);
        attempts
            .filter_map(|attempt| Some((attempt.outstanding()?.sequence, attempt.reference())))
            .max_by_key(|it| it.0)
    }

    /// Takes the order and starts.
    fn starts(&mut self, name: &str) -> AttemptRef {
        let (sequence, attempt) = self.order(name).unwrap_or_else(|| panic!("{name} was not started"));
        let (daemon, epoch, of) = (DAEMON, self.epoch, OrderKind::Spawn);
        self.ask(Op::Answered { daemon, epoch, attempt, of, sequence, answer: Answer::Persisted }).unwrap();
        let started = Report::Started {
            worktree: "/w".to_owned(),
            branch: "b".to_owned(),
            base_commit: String::new(),
            agent_version: String::new(),
            restored: None,
        };
        assert_eq!(self.says(attempt, started), MessageOutcome::Applied);
        attempt
    }

    fn message(&mut self, attempt: AttemptRef, report: Report) -> Op {
        self.said += 1;
        let journal = JournalId(Uuid::from_u128(4));
        Op::Message { daemon: DAEMON, message: Message { sequence: self.said, journal, attempt, at: self.now, report } }
    }

    fn says(&mut self, attempt: AttemptRef, report: Report) -> MessageOutcome {
        let message = self.message(attempt, report);
        match self.ask(message) {
            Ok(Reply::Message(outcome)) => outcome,
            other => panic!("not judged: {other:?}"),
        }
    }

    /// The end of an attempt, which has used so many tokens in all.
    fn ends(&mut self, attempt: AttemptRef, outcome: Result<TaskResult, Failure>, tokens: i64) -> MessageOutcome {
        self.says(attempt, ended(outcome, tokens))
    }

    /// It is quiet for so long that its tasks are given up.
    fn is_given_up(&mut self) {
        let (daemon, epoch) = (DAEMON, self.epoch);
        self.ask(Op::DaemonLost { daemon, epoch }).unwrap();
        self.fleet.write().unwrap().detach(daemon, epoch);
        self.now = self.now.after(RERUN_AFTER.max(ANSWER_WITHIN));
        self.ask(Op::Sweep).unwrap();
    }
}

fn ended(outcome: Result<TaskResult, Failure>, tokens: i64) -> Report {
    Report::Complete(Complete { outcome, progress: used(tokens), output_bytes: 0, exit_code: Some(0), signal: 0 })
}

fn used(tokens: i64) -> Progress {
    Progress { usage: Usage { input_tokens: tokens, ..Usage::default() }, ..Progress::default() }
}

/// A result that all can reach, or one that travels as a pack.
fn made(attempt: AttemptRef, travels: bool) -> TaskResult {
    let sha256 = attempt.id.0.simple().to_string();
    TaskResult {
        commit: sha256.clone(),
        published: !travels,
        pack: travels.then_some(Pack { bytes: 1, sha256 }),
        ..TaskResult::default()
    }
}

/// A batch gives away as many as one may, all of one lane, of which it looked at no more, and others that it looked at are gone: the
/// slots that are left are filled by one that follows by itself.
#[test]
fn as_many_as_one_batch_gives_away_are_not_all() {
    let mut story = Story::of(&[("first", &[])]);
    let first = story.starts("first");
    story.fleet.write().unwrap().detach(DAEMON, story.epoch);
    let new = |name: String, priority, repository: &str| {
        let (agent, repository) = ("shell".to_owned(), repository.to_owned());
        NewTask::new(TaskSpec { name, agent, priority, repository, ..TaskSpec::default() }, Vec::new())
    };
    story.makes((0..2 * MAX_ASSIGNMENTS).map(|n| new(format!("many-{n}"), 1, "/r")).collect());
    story.makes(vec![new("r".to_owned(), 0, "/r"), new("q".to_owned(), 0, "/q")]);
    story.slots = u32::try_from(MAX_ASSIGNMENTS).unwrap() + 3;
    story.attach(1, &[(first, InventoryState::Running)]).unwrap();
    story.cancel_all(["r", "q"], None);
    while story.more {
        story.ask_all(Vec::new());
    }
    let live = story.memory.attempts.values().filter(|attempt| attempt.is_live()).count();
    assert_eq!(live, MAX_ASSIGNMENTS + 3, "a slot is free, a task is ready, and nobody looks");
}

/// One place becomes free after the other, and there are always more contracts that have never had one than are looked at: one that
/// has had one gets its turn all the same.
#[test]
fn new_contracts_do_not_keep_an_old_one_waiting() {
    let mut story = Story::of(&[("a", &[]), ("b", &[]), ("old", &[])]);
    let mut running = VecDeque::from([story.starts("a"), story.starts("b")]);
    let mut tried = 0;
    while story.task("old").attempt == 0 {
        for n in 0..3 {
            let (name, agent) = (format!("new-{tried}-{n}"), "shell".to_owned());
            story.makes(vec![NewTask::new(TaskSpec { name, agent, ..TaskSpec::default() }, Vec::new())]);
        }
        let first = running.pop_front().unwrap();
        story.ends(first, Ok(made(first, false)), 0);
        let next = story.memory.attempts.values().find(|attempt| attempt.outstanding().is_some()).unwrap();
        let name = story.memory.tasks[&next.task].spec.name.clone();
        running.push_back(story.starts(&name));
        tried += 1;
        assert!(tried < 10, "it waits for ever");
    }
}

/// A task is given to another agent: that one goes on with the work, and not with a conversation of the one before.
#[test]
fn another_agent_does_not_go_on_with_the_conversation() {
    let goes_on_with = |agent: Option<&str>| {
        let mut story = Story::of(&[("a", &[])]);
        let attempt = story.starts("a");
        story.says(attempt, Report::Progress(Progress { agent_session_id: "s".to_owned(), ..Progress::default() }));
        story.slots = 0;
        story.attach(1, &[(attempt, InventoryState::Interrupted)]).unwrap();
        let agent = agent.map(str::to_owned);
        let update = TaskUpdate { agent, ..TaskUpdate::nothing(OWNER, attempt.task, None) };
        story.ask(Op::UpdateTask(Box::new(update))).unwrap();
        story.slots = 1;
        story.attach(1, &[]).unwrap();
        let (_, next) = story.order("a").unwrap();
        let resume = story.attempt(next).outstanding().unwrap().resume.clone().unwrap();
        assert!(resume.here.is_some(), "the work is there");
        resume.session_id
    };
    assert_eq!(goes_on_with(None), "s");
    assert_eq!(goes_on_with(Some("shell")), "s", "it is the same");
    assert_eq!(goes_on_with(Some("claude")), "");
}

/// A daemon was given up for lost, and a person has changed what is asked of its task. When it comes back, its agent works on what
/// was asked before.
#[test]
fn what_was_asked_before_a_change_is_not_gone_on_with() {
    let back = |change: &dyn Fn(crate::domain::TaskId) -> Op| {
        let mut story = Story::of(&[("a", &[]), ("b", &[])]);
        let attempt = story.starts("a");
        story.is_given_up();
        story.ask(change(attempt.task)).unwrap();
        let verdicts = story.attach(1, &[(attempt, InventoryState::Running)]).unwrap();
        assert_eq!((verdicts.len(), verdicts[0].0), (1, attempt));
        verdicts[0].1
    };
    let updated = |change: fn(TaskUpdate) -> TaskUpdate| {
        back(&|task| Op::UpdateTask(Box::new(change(TaskUpdate::nothing(OWNER, task, None)))))
    };
    assert_eq!(updated(|update| TaskUpdate { plan: Some("true".to_owned()), ..update }), Verdict::Fenced);
    assert_eq!(updated(|update| TaskUpdate { priority: Some(7), ..update }), Verdict::Keep);
    assert_eq!(
        updated(|update| TaskUpdate { agent: Some("shell".to_owned()), ..update }),
        Verdict::Keep,
        "it is the same"
    );
    let waits = |add: &[&str]| {
        let add: Vec<String> = add.iter().map(|name| (*name).to_owned()).collect();
        back(&|task| Op::ChangeDependencies { owner: OWNER, task, add: add.clone(), remove: Vec::new() })
    };
    assert_eq!(waits(&["b"]), Verdict::Fenced);
    assert_eq!(waits(&[]), Verdict::Keep);
}

/// A Hello that its daemon gave up on, and that arrives after the daemon has taken a command in a later session, does not list
/// that command's attempt. Believed, it would interrupt an agent that works.
#[test]
fn a_hello_from_before_the_last_command_is_refused() {
    let mut story = Story::of(&[("a", &[])]);
    let attempt = story.starts("a");
    let late = story.attach(0, &[]);
    assert!(matches!(late, Err(Error::StaleSession(_))), "{late:?}");
    assert_eq!(story.attempt(attempt).state.status(), AttemptStatus::Running);
    // What the daemon says now is heard.
    let verdicts = story.attach(1, &[(attempt, InventoryState::Running)]).unwrap();
    assert_eq!(verdicts, [(attempt, Verdict::Keep)]);
    // Where nothing is live a journal that was put back from a copy harms nothing.
    story.ends(attempt, Ok(made(attempt, false)), 0);
    assert_eq!(story.attach(0, &[]).unwrap(), []);
}

/// An order to start that is sent again is the first one to the letter, whatever has been changed meanwhile: the daemon may have
/// that after all, and takes nothing else for it. Once it has answered, nothing is sent again.
#[test]
fn an_order_that_is_sent_again_is_the_same() {
    let mut story = Story::of(&[("schema", &[]), ("types", &["schema"])]);
    let schema = story.starts("schema");
    story.ends(schema, Ok(made(schema, false)), 0);
    let told = std::iter::from_fn(|| story.pushes[0].try_recv().ok());
    let mut spawns = told.filter_map(|push| match push {
        Push::Command(command) => Some((*command).clone()).filter(|command| command.attempt.task != schema.task),
        _ => None,
    });
    let first = spawns.next().unwrap();
    let Order::Spawn(spawn) = &first.order else { panic!("not started: {first:?}") };
    assert_eq!((spawn.dependencies.len(), spawn.contract_name.as_str()), (1, "contract"));
    assert_eq!(spawn.checkpoint_every, ContractLimits::default().checkpoint_every);
    drop(spawns);
    let update = ContractUpdate {
        owner: OWNER,
        contract: spawn.contract,
        etag: None,
        name: Some("renamed".to_owned()),
        description: None,
        concurrency: None,
        max_retries: None,
        wall_time: Some(Some(Duration::from_secs(7))),
        rerun_after: None,
        checkpoint_every: Some(Duration::from_secs(7)),
        final_checkpoint: Some(!spawn.final_checkpoint),
    };
    story.ask(Op::UpdateContract(update)).unwrap();
    // What is asked stays as it is from now on, whatever else is wished with it.
    let task = first.attempt.task;
    let update = TaskUpdate { hidden: Some(true), ..TaskUpdate::nothing(OWNER, task, None) };
    let more = TaskUpdate { setup_command: Some("make".to_owned()), ..update.clone() };
    assert!(matches!(story.ask(Op::UpdateTask(Box::new(more))), Err(Error::Precondition(_))));
    story.ask(Op::UpdateTask(Box::new(update))).unwrap();
    story.attach(1, &[]).unwrap();
    assert_eq!(story.told_again, [Command { epoch: story.epoch, ..first.clone() }]);
    // Its daemon is away for a while.
    let (daemon, epoch) = (DAEMON, story.epoch);
    story.ask(Op::DaemonLost { daemon, epoch }).unwrap();
    story.attach(1, &[]).unwrap();
    assert_eq!(story.told_again, [Command { epoch: story.epoch, ..first }]);
    let types = story.starts("types");
    story.attach(2, &[(types, InventoryState::Running)]).unwrap();
    assert_eq!(story.told_again, []);
}

/// A Hello that its daemon gave up on, and that arrives after a newer one, while no command has come between them. Believed, it
/// would supersede the session that is open, and the daemon would be told to stop.
#[test]
fn a_hello_from_before_the_last_one_is_refused() {
    let mut story = Story::of(&[("a", &[])]);
    let attempt = story.starts("a");
    let running = [(attempt, InventoryState::Running)];
    story.attach_as(5, 1, &running).unwrap();
    let late = story.attach_as(4, 1, &running);
    assert!(matches!(late, Err(Error::StaleSession(_))), "{late:?}");
    // Not by one that is idle either.
    story.ends(attempt, Ok(made(attempt, false)), 0);
    let late = story.attach_as(4, 1, &[]);
    assert!(matches!(late, Err(Error::StaleSession(_))), "{late:?}");
    assert_eq!(story.attach_as(6, 1, &[]).unwrap(), []);
    // A journal that was put back from a copy is taken once its daemon has gone and nothing is live.
    story.is_given_up();
    assert_eq!(story.attach_as(2, 1, &[]).unwrap(), []);
}

/// A dependency that is tried again while its dependent runs: the dependent goes on, and when it is tried again itself it
/// waits for the dependency, whose end is counted once.
#[test]
fn a_reopened_dependency_is_waited_for_by_the_next_attempt() {
    let mut story = Story::of(&[("a", &[]), ("b", &["a"])]);
    let first = story.starts("a");
    story.ends(first, Ok(made(first, false)), 0);
    let running = story.starts("b");
    story.retry("a");
    assert_eq!((story.task("b").status(), story.task("b").unmet), (TaskStatus::Running, 1));
    let again = story.starts("a");
    story.ends(running, Err(Failure::new(FailureClass::AgentCrashed, "it broke")), 0);
    story.retry("b");
    assert_eq!(story.order("b"), None, "it starts before what it waits for");
    story.ends(again, Ok(made(again, false)), 0);
    assert_eq!(story.task("b").unmet, 0);
    let next = story.starts("b");
    assert_eq!(story.ends(next, Ok(made(next, false)), 0), MessageOutcome::Applied);
    assert_eq!(story.task("b").status(), TaskStatus::Done);
}

/// An attempt that was given up and goes on has used its tokens once.
#[test]
fn what_a_revived_attempt_has_used_is_counted_once() {
    let mut story = Story::of(&[("a", &[])]);
    let attempt = story.starts("a");
    story.says(attempt, Report::Progress(used(5)));
    story.is_given_up();
    assert_eq!((story.task("a").status(), story.task("a").usage.input_tokens), (TaskStatus::Pending, 5));
    story.attach(1, &[(attempt, InventoryState::Running)]).unwrap();
    assert_eq!((story.task("a").status(), story.task("a").usage.input_tokens), (TaskStatus::Running, 0));
    story.ends(attempt, Ok(made(attempt, false)), 7);
    assert_eq!((story.task("a").status(), story.task("a").usage.input_tokens), (TaskStatus::Done, 7));
}

/// What an attempt used was counted when it came to its result. It is not counted again when its daemon is lost with the
/// result, nor when the daemon comes back and says it again, nor when the result cannot be brought.
#[test]
fn what_a_result_on_its_way_has_used_is_counted_once() {
    for is_brought in [true, false] {
        let mut story = Story::of(&[("a", &[])]);
        let attempt = story.starts("a");
        story.ends(attempt, Ok(made(attempt, true)), 7);
        assert_eq!((story.task("a").status(), story.task("a").usage.input_tokens), (TaskStatus::Finalizing, 7));
        story.is_given_up();
        assert_eq!((story.task("a").status(), story.task("a").usage.input_tokens), (TaskStatus::Pending, 7));
        let verdicts = story.attach(1, &[(attempt, InventoryState::Reported)]).unwrap();
        assert_eq!(verdicts, [(attempt, Verdict::ReportAgain)]);
        story.ends(attempt, Ok(made(attempt, true)), 7);
        assert_eq!((story.task("a").status(), story.task("a").usage.input_tokens), (TaskStatus::Finalizing, 7));
        if is_brought {
            let blob = Blobs::result_name(OWNER, attempt.id, &made(attempt, true).commit);
            story.ask(Op::ResultStored { attempt, blob }).unwrap();
            assert_eq!(story.task("a").status(), TaskStatus::Done);
        } else {
            story.ends(attempt, Err(Failure::new(FailureClass::WorktreeLost, "unreadable")), 7);
            assert_eq!(story.task("a").status(), TaskStatus::Starting, "the next attempt");
        }
        assert_eq!(story.task("a").usage.input_tokens, 7);
    }
}

/// A result whose daemon was given up while the result was on its way is not taken for delivered: it would be forgotten there,
/// and the server would wait for it for ever.
#[test]
fn a_result_of_a_given_up_attempt_is_asked_for_again() {
    let mut story = Story::of(&[("a", &[])]);
    let attempt = story.starts("a");
    story.ends(attempt, Ok(made(attempt, true)), 0);
    story.is_given_up();
    let blob = Blobs::result_name(OWNER, attempt.id, &made(attempt, true).commit);
    let stored = || Op::ResultStored { attempt, blob: blob.clone() };
    let reply = story.ask(stored());
    assert!(matches!(reply, Err(Error::Precondition(_))), "{reply:?}");
    story.attach(1, &[(attempt, InventoryState::Reported)]).unwrap();
    story.memory.packs.insert(blob.clone());
    story.ends(attempt, Ok(made(attempt, true)), 0);
    story.ask(stored()).unwrap();
    assert_eq!(story.task("a").status(), TaskStatus::Done);
}

/// A daemon says a result, dies before it is heard and loses its journal. It comes back with what its disk says of the
/// attempt, and only then the result is heard: it counts, the daemon is told to end what it has taken up again, and that
/// this was ended changes nothing.
#[test]
fn a_result_that_outlives_the_journal_counts() {
    let mut story = Story::of(&[("a", &[])]);
    let attempt = story.starts("a");
    let verdicts = story.attach(1, &[(attempt, InventoryState::Ending)]).unwrap();
    assert_eq!(verdicts, [(attempt, Verdict::Keep)]);
    assert_eq!(story.ends(attempt, Ok(made(attempt, false)), 7), MessageOutcome::Applied);
    assert_eq!(story.fleet.read().unwrap().unwanted(DAEMON, &[attempt]), [attempt]);
    let cancelled = Err(Failure::new(FailureClass::Cancelled, "cancelled"));
    assert_eq!(story.ends(attempt, cancelled, 7), MessageOutcome::Fenced);
    assert_eq!((story.task("a").status(), story.task("a").usage.input_tokens), (TaskStatus::Done, 7));
    let AttemptState::Ended { outcome: Ok(result), .. } = &story.attempt(attempt).state else {
        panic!("not ended well")
    };
    assert_eq!(result.commit, made(attempt, false).commit);
}

/// Of a lane a few heads are looked at. If they are cancelled in the batch that looks, those behind them are not forgotten: another
/// batch follows by itself.
#[test]
fn heads_that_are_cancelled_as_they_are_looked_at_hide_nobody() {
    let mut story = Story::of(&[("a", &[]), ("b", &[]), ("c", &[]), ("d", &[]), ("e", &[])]);
    let first = story.starts("a");
    story.starts("b");
    assert_eq!((story.order("c"), story.more), (None, false), "there are two slots");
    story.hides_nobody(first, ["c", "d"], "e");
    assert!(!story.more);
}

/// Of many lanes a few are looked at. If all their tasks are cancelled in the batch that looks, those of the others are not forgotten.
#[test]
fn lanes_that_are_emptied_as_they_are_looked_at_hide_nobody() {
    let mut story = Story::of(&[("a", &[]), ("b", &[])]);
    let first = story.starts("a");
    story.starts("b");
    for name in ["c", "d", "e"] {
        let spec = TaskSpec { name: name.to_owned(), ..TaskSpec::clone(&story.task("a").spec) };
        let tasks = vec![NewTask::new(spec, Vec::new())];
        story.ask(Op::CreateTasks(NewTasks { owner: OWNER, contract: None, tasks })).unwrap();
    }
    assert!(!story.more, "there are two slots");
    // Those that the walk finds.
    story.hides_nobody(first, ["c", "d"], "e");
}

/// A name that a task was given later is taken as well; that no task has a name is known without a look at the rows.
#[test]
fn a_name_that_was_given_later_is_taken() {
    let mut story = Story::of(&[("a", &[]), ("b", &[]), ("c", &[])]);
    let (contract, task) = (story.task("c").contract, story.task("c").id);
    let rename = TaskUpdate { name: Some("d".to_owned()), ..TaskUpdate::nothing(OWNER, task, None) };
    story.ask(Op::UpdateTask(Box::new(rename))).unwrap();
    let mut make = |name: &str| {
        let spec = TaskSpec { name: name.to_owned(), agent: "shell".to_owned(), ..TaskSpec::default() };
        let tasks = vec![NewTask::new(spec, Vec::new())];
        story.ask(Op::CreateTasks(NewTasks { owner: OWNER, contract: Some(contract), tasks }))
    };
    assert!(matches!(make("d"), Err(Error::Invalid(_))));
    assert!(matches!(make("a"), Err(Error::Invalid(_))));
    make("e").unwrap();
    assert!(matches!(make("e"), Err(Error::Invalid(_))));
}

/// In one batch a new task waits, by its id, for one that waits for another, and that other is to wait for the new one: that is a
/// cycle, though none of the two calls names all of it.
#[test]
fn a_cycle_that_two_calls_make_is_seen() {
    let mut story = Story::of(&[("a", &[]), ("b", &[]), ("last", &[]), ("next", &["last"])]);
    let (contract, last, next) = (story.task("last").contract, story.task("last").id, story.task("next").id);
    let spec = TaskSpec { name: "new".to_owned(), agent: "shell".to_owned(), ..TaskSpec::default() };
    let tasks = vec![NewTask::new(spec, vec![next.0.to_string()])];
    let make = Op::CreateTasks(NewTasks { owner: OWNER, contract: Some(contract), tasks });
    let add = vec!["new".to_owned()];
    let wait = Op::ChangeDependencies { owner: OWNER, task: last, add, remove: Vec::new() };
    let replies = story.ask_all(vec![make, wait]);
    assert!(replies[0].is_ok() && matches!(replies[1], Err(Error::Invalid(_))), "{replies:?}");
}

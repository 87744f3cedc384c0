//! Whatever batches write and read, what is kept of lanes is what the database has.

use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::{
    super::{
        kept::Kept,
        rows::Rows as _,
        simulation::{Memory, at_once},
    },
    *,
};
use crate::domain::{
    OwnerId, Timestamp,
    contract::ContractLimits,
    task::{New, TaskSpec, TaskState},
};

const OWNER: OwnerId = OwnerId(Uuid::from_u128(1));
const CONTRACTS: u32 = 4;
const CLASSES: u32 = 2;

/// What a batch does.
#[derive(Clone, Debug)]
enum Change {
    /// Makes a ready task.
    Make { contract: u32, class: u32, priority: i32 },
    /// Starts a task, or has it wait again.
    Turn(u32),
    /// Asks for another priority, of another kind of daemon.
    Ask { task: u32, class: u32, priority: i32 },
    /// Lets a contract start tasks, or no longer.
    Open(u32),
    /// Looks at a task and no more.
    Look(u32),
}

/// What happens.
#[derive(Clone, Debug)]
enum Event {
    Batch(Vec<Change>),
    /// Lanes are looked at, and so many heads of each.
    Read(u32),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let any_task = 0_u32..20;
    let change = prop_oneof![
        6 => (0..CONTRACTS, 0..CLASSES, 0_i32..3)
            .prop_map(|(contract, class, priority)| Change::Make { contract, class, priority }),
        6 => any_task.clone().prop_map(Change::Turn),
        2 => (any_task.clone(), 0..CLASSES, 0_i32..3)
            .prop_map(|(task, class, priority)| Change::Ask { task, class, priority }),
        1 => (0..CONTRACTS).prop_map(Change::Open),
        3 => any_task.prop_map(Change::Look),
    ];
    let event = prop_oneof![
        3 => prop::collection::vec(change, 1..6).prop_map(Event::Batch),
        2 => (1_u32..6).prop_map(Event::Read),
    ];
    prop::collection::vec(event, 1..60)
}

/// A database, and what the ledger keeps of it.
#[derive(Default)]
struct World {
    memory: Memory,
    kept: Kept,
    made: Vec<TaskId>,
}

impl World {
    fn batch(&mut self, changes: &[Change]) {
        let mut work = Work::new(Timestamp(i64::try_from(self.made.len()).unwrap()), std::mem::take(&mut self.kept));
        for change in changes {
            match change {
                Change::Make { contract, class, priority } => {
                    self.load_contract(&mut work, *contract);
                    let task = task(self.made.len(), *contract, *class, *priority);
                    self.made.push(task.id);
                    work.tasks.insert(task.id, task);
                }
                Change::Turn(n) => {
                    let Some(id) = self.load(&mut work, *n) else { continue };
                    let task = work.tasks.get_mut(id).unwrap();
                    if task.is_ready() {
                        task.state = TaskState::Running { since: work.now };
                        work.served.insert((task.contract, task.class));
                    } else {
                        task.state = TaskState::Pending { wait: None, held: None };
                    }
                }
                Change::Ask { task, class: of, priority } => {
                    let Some(id) = self.load(&mut work, *task) else { continue };
                    let task = work.tasks.get_mut(id).unwrap();
                    task.class = class(*of);
                    task.spec = Arc::new(TaskSpec { priority: *priority, ..TaskSpec::default() });
                    work.respecs.insert(id);
                }
                Change::Open(n) => {
                    self.load_contract(&mut work, *n);
                    let contract = work.contracts.get_mut(contract(*n).id).unwrap();
                    contract.limits.concurrency = u32::from(contract.limits.concurrency == 0);
                }
                Change::Look(n) => _ = self.load(&mut work, *n),
            }
        }
        at_once(work.flush(&mut self.memory, None)).unwrap();
        // Of a class with more lanes than a walk finds it is written, so that all get their turn.
        for (was, task) in work.tasks.dirty_pairs().filter(|(_, task)| !work.kept.lanes.knows(task.class)) {
            let (lane, is_taken) =
                ((task.contract, task.class), |was: &Task| was.is_ready() && was.class == task.class);
            if was.is_some_and(is_taken) && !task.is_ready() && work.served.contains(&lane) {
                assert_eq!(self.memory.served(&lane), Some(work.now));
            }
        }
        self.kept = work.keep();
    }

    /// One of those that were made.
    fn load(&self, work: &mut Work, n: u32) -> Option<TaskId> {
        let id = *self.made.get(usize::try_from(n).unwrap() % self.made.len().max(1))?;
        if let Some(task) = self.memory.tasks.get(&id) {
            work.tasks.loaded(id, task.clone());
            work.contracts.loaded(task.contract, self.memory.contracts[&task.contract].clone());
        }
        Some(id)
    }

    /// The contract, which is made if there is none.
    fn load_contract(&self, work: &mut Work, n: u32) {
        let id = contract(n).id;
        match self.memory.contracts.get(&id) {
            Some(contract) => work.contracts.loaded(id, contract.clone()),
            None if work.contracts.contains(id) => {}
            None => work.contracts.insert(id, contract(n)),
        }
    }

    /// Looks at lanes as a batch does, and answers what is wrong with what it sees.
    fn read(&mut self, heads: u32) -> Option<String> {
        let kept = &mut self.kept.lanes;
        let mut found = Vec::new();
        for class in (0..CLASSES).map(class) {
            if kept.knows(class) {
                found.extend(kept.walk(class));
                continue;
            }
            let there = at_once(self.memory.lanes_walk(&[class], i64::from(MIN_LANES))).unwrap();
            kept.walked(&[class], &there);
            found.extend(there);
        }
        let unknown: Vec<LaneHead> = found.iter().filter(|lane| kept.heads(lane, heads).is_none()).copied().collect();
        let there = at_once(self.memory.lanes_tasks(&unknown, i64::from(heads))).unwrap();
        kept.read(&unknown, &there, heads);
        unknown.iter().find(|lane| kept.heads(lane, heads).is_none()).map(|lane| format!("{lane:?} was read"))
    }
}

fn class(n: u32) -> ClassId {
    ClassId(Uuid::from_u128(u128::from(n) + 10))
}

fn contract(n: u32) -> Contract {
    let id = ContractId(Uuid::from_u128(u128::from(n) + 100));
    let limits = ContractLimits { concurrency: 1, ..ContractLimits::default() };
    Contract { limits, ..Contract::new(id, OWNER, Timestamp(0)) }
}

fn task(n: usize, of: u32, needs: u32, priority: i32) -> Task {
    let new = New {
        id: TaskId(Uuid::from_u128(u128::try_from(n).unwrap() + 1_000)),
        contract: contract(of).id,
        owner: OWNER,
        depth: 0,
        spec: Arc::new(TaskSpec { priority, ..TaskSpec::default() }),
        class: class(needs),
        unmet: 0,
        checkpoint: None,
        now: Timestamp(0),
    };
    new.task()
}

proptest! {
    /// Whatever batches write and read, what is kept is what the database has, and its rows of lanes say what their tasks do.
    #[test]
    fn what_is_kept_is_what_there_is(events in events()) {
        let mut world = World::default();
        for event in &events {
            let wrong = match event {
                Event::Batch(changes) => {
                    world.batch(changes);
                    None
                }
                Event::Read(heads) => world.read(*heads),
            };
            prop_assert_eq!(wrong.or_else(|| world.memory.lanes_are_not(&world.kept.lanes)), None);
        }
    }
}

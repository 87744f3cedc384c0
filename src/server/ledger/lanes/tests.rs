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
    contract::{ContractLimits, Counts},
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
    /// Asks for another priority.
    Ask { task: u32, priority: i32 },
    /// Lets a contract start tasks, or no longer.
    Open(u32),
    /// Looks at a task.
    Look(u32),
}

/// What happens.
#[derive(Clone, Debug)]
enum Event {
    Batch(Vec<Change>),
    /// Lanes are looked at, so many of each class, and so many heads of each.
    Read {
        lanes: u32,
        heads: u32,
    },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let any_task = 0_u32..20;
    let change = prop_oneof![
        6 => (0..CONTRACTS, 0..CLASSES, 0_i32..3)
            .prop_map(|(contract, class, priority)| Change::Make { contract, class, priority }),
        6 => any_task.clone().prop_map(Change::Turn),
        2 => (any_task.clone(), 0_i32..3).prop_map(|(task, priority)| Change::Ask { task, priority }),
        1 => (0..CONTRACTS).prop_map(Change::Open),
        3 => any_task.prop_map(Change::Look),
    ];
    let event = prop_oneof![
        3 => prop::collection::vec(change, 1..6).prop_map(Event::Batch),
        2 => (1_u32..6, 1_u32..6).prop_map(|(lanes, heads)| Event::Read { lanes, heads }),
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
    fn new() -> Self {
        let mut world = Self::default();
        for n in 0..CONTRACTS {
            let contract = contract(n);
            world.memory.contracts.insert(contract.id, contract);
        }
        world
    }

    fn batch(&mut self, changes: &[Change]) {
        let mut work = Work::new(Timestamp(i64::try_from(self.made.len()).unwrap()), std::mem::take(&mut self.kept));
        for contract in self.memory.contracts.values() {
            work.contracts.loaded(contract.id, contract.clone());
        }
        for change in changes {
            match change {
                Change::Make { contract, class, priority } => {
                    let task = task(self.made.len(), *contract, *class, *priority);
                    self.made.push(task.id);
                    work.tasks.insert(task.id, task);
                }
                Change::Turn(n) => {
                    let Some(id) = self.load(&mut work, *n) else { continue };
                    let task = work.tasks.get_mut(id).unwrap();
                    if task.is_ready() {
                        task.state = TaskState::Running { since: work.now };
                        work.served.insert((task.contract, task.class), OWNER);
                    } else {
                        task.state = TaskState::Pending { wait: None, held: None };
                    }
                }
                Change::Ask { task, priority } => {
                    let Some(id) = self.load(&mut work, *task) else { continue };
                    let task = work.tasks.get_mut(id).unwrap();
                    task.spec = Arc::new(TaskSpec { priority: *priority, ..TaskSpec::default() });
                    work.respecs.insert(id);
                }
                Change::Open(n) => {
                    let contract = work.contracts.get_mut(contract(*n).id).unwrap();
                    contract.limits.concurrency = u32::from(contract.limits.concurrency == 0);
                }
                Change::Look(n) => _ = self.load(&mut work, *n),
            }
        }
        at_once(work.flush(&mut self.memory, None)).unwrap();
        self.kept = work.keep();
    }

    /// One of those that were made.
    fn load(&self, work: &mut Work, n: u32) -> Option<TaskId> {
        let id = *self.made.get(usize::try_from(n).unwrap() % self.made.len().max(1))?;
        if let Some(task) = self.memory.tasks.get(&id) {
            work.tasks.loaded(id, task.clone());
        }
        Some(id)
    }

    /// Looks at lanes as a batch does, and answers what is wrong with what it sees.
    fn read(&mut self, lanes: u32, heads: u32) -> Option<String> {
        let kept = &mut self.kept.lanes;
        let mut found = Vec::new();
        for class in (0..CLASSES).map(class) {
            let there = at_once(self.memory.lanes_walk(&[class], i64::from(lanes))).unwrap();
            let urgent = |lanes: &[LaneHead]| lanes.iter().map(|lane| lane.priority).collect::<Vec<_>>();
            if kept.knows(class) && urgent(&kept.walk(class, lanes)) != urgent(&there) {
                return Some(format!("{:?} for {there:?}", kept.walk(class, lanes)));
            }
            if !kept.knows(class) {
                kept.walked(&[class], &there, lanes);
            }
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
    Contract {
        id: ContractId(Uuid::from_u128(u128::from(n) + 100)),
        owner: OWNER,
        name: String::new(),
        description: String::new(),
        repository: String::new(),
        base_branch: String::new(),
        limits: ContractLimits { concurrency: 1, ..ContractLimits::default() },
        anonymous: false,
        held: None,
        cancelled: None,
        counts: Counts::default(),
        live: 0,
        version: 1,
        created: Timestamp(0),
        updated: Timestamp(0),
        ended: None,
    }
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
        let mut world = World::new();
        for event in &events {
            let wrong = match event {
                Event::Batch(changes) => {
                    world.batch(changes);
                    None
                }
                Event::Read { lanes, heads } => world.read(*lanes, *heads),
            };
            prop_assert_eq!(wrong.or_else(|| world.memory.lanes_are_not(&world.kept.lanes)), None);
        }
    }
}

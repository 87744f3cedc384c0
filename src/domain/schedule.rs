//! Which ready task goes to which daemon.
//!
//! [`assign`] is a pure function of what the store offers (heads of the queues of ready work, attached daemons with free
//! slots, how much each contract and owner already runs) and `now`. The same input gives the same answer, in the same order.
//!
//! ```text
//!   owners, fewest live attempts first
//!     └ priority, highest first
//!         └ contracts, fewest live attempts first (counting what this round gave them)
//!             └ tasks, oldest first, then by id
//!                 └ daemons of that owner that fit and have a free slot:
//!                     chosen, or has its worktree > not avoided > holds results of its dependencies > has the repository > most free slots > id
//! ```
//!
//! Promises:
//!
//! * Never more than a daemon's free slots, never more than a contract's concurrency, a task at most once, and never a
//!   daemon of another owner or one that lacks what the task needs.
//! * Work-conserving: no head is left over while its contract has room and a daemon that fits has a free slot (one that is only
//!   just returning, for what goes on in a worktree that it has). So
//!   avoidance is soft: an avoided daemon comes last among those with a free slot, and is used rather than waiting for a
//!   better one that is full. Hard exclusion has left whole fleets idle; a second failure on the same daemon costs one
//!   bounded attempt.
//! * Any prefix of the answer is itself a valid answer, so a caller with a limit of its own may cut it off.
//! * Cost: one pass over the daemons with free slots, then about `log(daemons)` for each head.
//!
//! Deliberately absent: preemption, and looking ahead (an undemanding task may take the slot a demanding one would need;
//! the order above decides, and the next round starts from what is then free).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, HashSet, VecDeque},
};

use super::{
    contract::Contract,
    daemon::{Card, Requirements},
    id::{ClassId, ContractId, DaemonId, OwnerId, TaskId},
    task::Avoid,
    time::Timestamp,
};

/// Daemons with dependency results that are looked at for one head; a fan-in of thousands does not slow a round down.
pub const MAX_NEAR: usize = 32;

/// A ready task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The task.
    pub task: TaskId,
    /// Whose it is.
    pub owner: OwnerId,
    /// Its contract.
    pub contract: ContractId,
    /// What it needs of a daemon; explained by [`Input::classes`].
    pub class: ClassId,
    /// Higher goes first.
    pub priority: i32,
    /// Older goes first.
    pub created: Timestamp,
    /// URL or path it works on; a daemon that has it at hand is preferred.
    pub repository: String,
    /// Daemons that go before all others, the first of them first: one that a person chose, one that has its worktree.
    pub first: Vec<DaemonId>,
    /// The daemon that has its worktree.
    pub here: Option<DaemonId>,
    /// Daemons that made the results it builds on; the first [`MAX_NEAR`] are looked at.
    pub near: Vec<DaemonId>,
    /// Daemons to try last, those whose time has not run out.
    pub avoid: Vec<Avoid>,
}

/// How much a contract runs and may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Attempts that are not ENDED.
    pub live: u32,
    /// Attempts it may have at once; 0 for one that is held or cancelled.
    pub concurrency: u32,
}

impl Load {
    /// The load of a contract as it stands.
    pub fn of(contract: &Contract) -> Self {
        let open = contract.held.is_none() && contract.cancelled.is_none();
        Self { live: contract.live, concurrency: if open { contract.limits.concurrency } else { 0 } }
    }

    /// Attempts it may still start.
    pub fn room(self) -> u32 {
        self.concurrency.saturating_sub(self.live)
    }
}

/// An attached daemon that takes work. Draining ones are left out by the caller; one whose card says that it is not
/// accepting is left out here.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// The daemon.
    pub daemon: DaemonId,
    /// Whose it is.
    pub owner: OwnerId,
    /// What it offers.
    pub card: &'a Card,
    /// Slots that hold no attempt.
    pub free: u32,
    /// It has come back just now and has not said yet that it takes work: what goes on in a worktree that is there waits for nothing
    /// else, and must not go elsewhere without it meanwhile.
    pub is_returning: bool,
}

/// What [`assign`] decides from.
#[derive(Clone, Debug, Default)]
pub struct Input<'a> {
    /// Ready tasks that the store offered, in any order.
    pub heads: &'a [Head],
    /// Contracts of the heads; the heads of one that is missing wait.
    pub contracts: HashMap<ContractId, Load>,
    /// Live attempts of each owner; a missing one has none.
    pub owners: HashMap<OwnerId, u32>,
    /// Classes of the heads; the heads of one that is missing wait.
    pub classes: HashMap<ClassId, Requirements>,
    /// Daemons, in any order.
    pub hosts: &'a [Host<'a>],
}

/// One decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Index into [`Input::heads`].
    pub head: usize,
    /// The task.
    pub task: TaskId,
    /// Where it goes.
    pub daemon: DaemonId,
}

/// Decides which heads go to which daemons, in the order in which they were decided.
pub fn assign(input: &Input<'_>, now: Timestamp) -> Vec<Assignment> {
    let mut fleet = Fleet::new(input);
    let mut loads = input.contracts.clone();
    let mut turns: BinaryHeap<Reverse<(u32, OwnerId)>> = BinaryHeap::new();
    let mut queues: HashMap<OwnerId, Queue> = HashMap::new();
    for (owner, heads) in by_owner(input.heads) {
        turns.push(Reverse((input.owners.get(&owner).copied().unwrap_or(0), owner)));
        queues.insert(owner, Queue::new(input.heads, heads));
    }

    let mut assignments = Vec::new();
    while let Some(Reverse((live, owner))) = turns.pop() {
        let Some(queue) = queues.get_mut(&owner) else { continue };
        while let Some(head) = queue.next(input.heads, &loads) {
            let Some(daemon) = fleet.take(&input.heads[head], now) else { continue };
            if let Some(load) = loads.get_mut(&input.heads[head].contract) {
                load.live += 1;
            }
            assignments.push(Assignment { head, task: input.heads[head].task, daemon });
            turns.push(Reverse((live.saturating_add(1), owner)));
            break;
        }
    }
    assignments
}

/// How many of `room` places each of these contracts is given if each has more heads than it could use, all of one priority and
/// one owner: as [`assign`] does it, to those that run the fewest.
pub fn shares(contracts: &BTreeMap<ContractId, Load>, room: u32) -> HashMap<ContractId, u32> {
    let mut loads: Vec<Load> = contracts.values().copied().filter(|load| load.room() > 0).collect();
    loads.sort_unstable_by_key(|load| load.live);
    // All that run fewer than `level` are filled up to it. Where it stands is looked for: what fits grows with it.
    let fits = |level: u32| -> u64 {
        loads.iter().map(|load| u64::from(level.saturating_sub(load.live).min(load.room()))).sum()
    };
    let (least, most) = (loads.first().map_or(0, |load| load.live), loads.last().map_or(0, |load| load.live));
    let (mut low, mut high) = (least, most.saturating_add(room));
    while low < high {
        let middle = low + (high - low) / 2;
        if fits(middle) >= u64::from(room) { high = middle } else { low = middle + 1 }
    }
    // Beyond the last contract's limit nobody takes more.
    let share = |load: &Load| high.saturating_sub(load.live).min(load.room()).min(room);
    contracts.iter().map(|(id, load)| (*id, share(load))).collect()
}

/// How many heads of a lane are looked at whose contract may be given so many of its tasks: one more, so that one that is given all
/// of them does not look as if it had no others. With more than a few lanes as a power of two, so that many share a number.
pub fn heads_wanted(share: u32, lanes: usize) -> u32 {
    /// Each number is a statement of its own.
    const FEW: usize = 2;
    let wanted = share.saturating_add(1);
    if lanes <= FEW { wanted } else { wanted.next_power_of_two() }
}

/// Which of these lanes have none of their heads left after these assignments, by place. Each is one that may have more heads than
/// were looked at, or nothing. If there is none, all is decided as it would be if all heads had been looked at; else the heads that
/// were not may have come before some that were.
pub fn run_dry<'a>(lanes: impl Iterator<Item = Option<&'a [TaskId]>>, assignments: &[Assignment]) -> Vec<usize> {
    let assigned: HashSet<TaskId> = assignments.iter().map(|assignment| assignment.task).collect();
    let dry = |(at, heads): (usize, Option<&[TaskId]>)| heads?.iter().all(|head| assigned.contains(head)).then_some(at);
    lanes.enumerate().filter_map(dry).collect()
}

/// The heads of each owner by index, each task once.
fn by_owner(heads: &[Head]) -> BTreeMap<OwnerId, Vec<usize>> {
    let mut owners: BTreeMap<OwnerId, Vec<usize>> = BTreeMap::new();
    let mut seen = HashSet::with_capacity(heads.len());
    for (index, head) in heads.iter().enumerate() {
        if seen.insert(head.task) {
            owners.entry(head.owner).or_default().push(index);
        }
    }
    owners
}

// === Queue: the heads of one owner, in turn ===

/// Heads of one owner: levels of priority, and in the current one the contracts by how much they run.
struct Queue {
    /// Highest priority last.
    levels: Vec<Vec<(ContractId, VecDeque<usize>)>>,
    /// Contracts of the current level: (live, created and task of its next head, place in `waiting`).
    turns: BinaryHeap<Reverse<(u32, Timestamp, TaskId, usize)>>,
    waiting: Vec<(ContractId, VecDeque<usize>)>,
    /// The contract whose head was given out last; it comes back with whatever live count it has then.
    last: Option<usize>,
}

impl Queue {
    fn new(heads: &[Head], mut own: Vec<usize>) -> Self {
        own.sort_by_key(|&i| (heads[i].priority, heads[i].contract, heads[i].created, heads[i].task));
        let mut levels: Vec<Vec<(ContractId, VecDeque<usize>)>> = Vec::new();
        let mut before: Option<&Head> = None;
        for index in own {
            let head = &heads[index];
            if before.is_none_or(|b| b.priority != head.priority) {
                levels.push(Vec::new());
                before = None;
            }
            if let Some(level) = levels.last_mut() {
                match level.last_mut() {
                    Some((_, queue)) if before.is_some_and(|b| b.contract == head.contract) => queue.push_back(index),
                    _ => level.push((head.contract, VecDeque::from([index]))),
                }
            }
            before = Some(head);
        }
        Self { levels, turns: BinaryHeap::new(), waiting: Vec::new(), last: None }
    }

    /// The next head whose contract has room.
    fn next(&mut self, heads: &[Head], loads: &HashMap<ContractId, Load>) -> Option<usize> {
        if let Some(place) = self.last.take() {
            self.offer(place, heads, loads);
        }
        loop {
            if let Some(Reverse((.., place))) = self.turns.pop() {
                self.last = Some(place);
                if let Some(head) = self.waiting[place].1.pop_front() {
                    return Some(head);
                }
            }
            self.waiting = self.levels.pop()?;
            self.last = None;
            for place in 0..self.waiting.len() {
                self.offer(place, heads, loads);
            }
        }
    }

    /// Lets a contract take part with its next head, if it has one and has room.
    fn offer(&mut self, place: usize, heads: &[Head], loads: &HashMap<ContractId, Load>) {
        let (contract, queue) = &self.waiting[place];
        let load = loads.get(contract).copied().unwrap_or_default();
        if let Some(&head) = queue.front()
            && load.room() > 0
        {
            self.turns.push(Reverse((load.live, heads[head].created, heads[head].task, place)));
        }
    }
}

// === Fleet: daemons with free slots, by what is asked of them ===

/// Something a daemon has or has not.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Word<'a> {
    Profile(&'a str),
    Label(&'a str),
    Repository(&'a str),
    AnyPath,
}

/// Candidates by free slots, then by smallest id. Free slots only fall during a round, so an entry that is out of date is
/// too high, and is put right when it comes to the top.
type Candidates = BinaryHeap<(u32, Reverse<DaemonId>, usize)>;

struct Fleet<'a> {
    hosts: &'a [Host<'a>],
    classes: &'a HashMap<ClassId, Requirements>,
    /// Free slots left, by place in `hosts`.
    free: Vec<u32>,
    places: HashMap<DaemonId, usize>,
    /// For each word that some class or head asks for: the places of the daemons that have it.
    having: HashMap<(OwnerId, Word<'a>), Vec<usize>>,
    /// Daemons that fit a class and, if named, have a repository at hand.
    fitting: HashMap<(OwnerId, ClassId, Option<&'a str>), Candidates>,
}

impl<'a> Fleet<'a> {
    fn new(input: &'a Input<'a>) -> Self {
        let hosts = input.hosts;
        let mut having: HashMap<(OwnerId, Word<'a>), Vec<usize>> = HashMap::new();
        for head in input.heads {
            having.entry((head.owner, Word::Repository(&head.repository))).or_default();
            let Some(needs) = input.classes.get(&head.class) else { continue };
            having.entry((head.owner, Word::Profile(&needs.agent))).or_default();
            for label in &needs.labels {
                having.entry((head.owner, Word::Label(label))).or_default();
            }
            if let Some(path) = &needs.path {
                having.entry((head.owner, Word::Repository(path))).or_default();
                having.entry((head.owner, Word::AnyPath)).or_default();
            }
        }
        let mut places = HashMap::with_capacity(hosts.len());
        let mut free = vec![0; hosts.len()];
        for (place, host) in hosts.iter().enumerate() {
            if host.free == 0 || !host.card.not_accepting.is_empty() || places.contains_key(&host.daemon) {
                continue;
            }
            places.insert(host.daemon, place);
            free[place] = host.free;
            let card = host.card;
            let words = card.profiles.iter().map(|p| Word::Profile(&p.name));
            let words = words.chain(card.labels.iter().map(|l| Word::Label(l)));
            let words = words.chain(card.repositories.iter().map(|r| Word::Repository(r)));
            let words = words.chain(card.any_path.then_some(Word::AnyPath));
            for word in words.filter(|_| !host.is_returning) {
                if let Some(list) = having.get_mut(&(host.owner, word)) {
                    list.push(place);
                }
            }
        }
        Self { hosts, classes: &input.classes, free, places, having, fitting: HashMap::new() }
    }

    /// Finds the best daemon for a head and takes one of its slots.
    fn take(&mut self, head: &'a Head, now: Timestamp) -> Option<DaemonId> {
        let avoided: Vec<DaemonId> = head.avoid.iter().filter(|a| a.until > now).map(|a| a.daemon).collect();
        let place = (head.first.iter().find_map(|daemon| self.rank(head, std::iter::once(daemon))))
            .or_else(|| self.best_near(head, &avoided))
            .or_else(|| self.best(head, Some(&head.repository), &avoided))
            .or_else(|| self.best(head, None, &avoided))
            .or_else(|| self.best_of(head, &avoided))?;
        self.free[place] -= 1;
        Some(self.hosts[place].daemon)
    }

    /// Among the daemons that hold results of its dependencies.
    fn best_near(&self, head: &Head, avoided: &[DaemonId]) -> Option<usize> {
        let near = head.near.iter().take(MAX_NEAR).filter(|d| !avoided.contains(d));
        self.rank(head, near)
    }

    /// Among those avoided; nobody else is left.
    fn best_of(&self, head: &Head, avoided: &[DaemonId]) -> Option<usize> {
        self.rank(head, avoided.iter())
    }

    /// The best of a few named daemons.
    fn rank<'d>(&self, head: &Head, daemons: impl Iterator<Item = &'d DaemonId>) -> Option<usize> {
        let needs = self.classes.get(&head.class)?;
        daemons
            .filter_map(|daemon| self.places.get(daemon).copied())
            .filter(|&place| {
                let host = &self.hosts[place];
                let is_there = !host.is_returning || head.here == Some(host.daemon);
                self.free[place] > 0 && host.owner == head.owner && is_there && needs.fits(host.card)
            })
            .max_by_key(|&place| {
                let host = &self.hosts[place];
                let near = head.near.iter().take(MAX_NEAR).any(|d| *d == host.daemon);
                let at_hand = host.card.repositories.contains(&head.repository);
                (near, at_hand, self.free[place], Reverse(host.daemon))
            })
    }

    /// The daemon with most free slots that fits, has the repository (if one is named), and is not avoided.
    fn best(&mut self, head: &'a Head, repository: Option<&'a str>, avoided: &[DaemonId]) -> Option<usize> {
        let key = (head.owner, head.class, repository);
        if !self.fitting.contains_key(&key) {
            let candidates = self.candidates(head, repository)?;
            self.fitting.insert(key, candidates);
        }
        let candidates = self.fitting.get_mut(&key)?;
        let mut aside = Vec::new();
        let mut found = None;
        while let Some(entry @ (free, Reverse(daemon), place)) = candidates.pop() {
            let left = self.free[place];
            if left == 0 {
                continue;
            }
            if left < free {
                candidates.push((left, Reverse(daemon), place));
                continue;
            }
            aside.push(entry);
            if !avoided.contains(&daemon) {
                found = Some(place);
                break;
            }
        }
        candidates.extend(aside);
        found
    }

    /// Everybody who could take heads of this class, found by way of the rarest thing it asks for.
    fn candidates(&self, head: &'a Head, repository: Option<&'a str>) -> Option<Candidates> {
        let needs = self.classes.get(&head.class)?;
        let list = |word: Word<'a>| self.having.get(&(head.owner, word)).map_or(&[][..], Vec::as_slice);
        let mut rarest = [list(Word::Profile(&needs.agent)), &[]];
        for label in &needs.labels {
            let labelled = list(Word::Label(label));
            if labelled.len() < rarest[0].len() {
                rarest = [labelled, &[]];
            }
        }
        if let Some(path) = &needs.path {
            let (at_hand, any) = (list(Word::Repository(path)), list(Word::AnyPath));
            if at_hand.len() + any.len() < rarest[0].len() {
                rarest = [at_hand, any];
            }
        }
        if let Some(repository) = repository {
            let at_hand = list(Word::Repository(repository));
            if at_hand.len() < rarest.iter().map(|r| r.len()).sum() {
                rarest = [at_hand, &[]];
            }
        }
        let mut places: Vec<usize> = rarest.concat();
        places.sort_unstable();
        places.dedup();
        let fits = |place: &usize| {
            let card = self.hosts[*place].card;
            needs.fits(card) && repository.is_none_or(|r| card.repositories.iter().any(|have| have == r))
        };
        let entry = |place: usize| (self.free[place], Reverse(self.hosts[place].daemon), place);
        Some(places.into_iter().filter(fits).map(entry).collect())
    }
}

#[cfg(test)]
mod tests;

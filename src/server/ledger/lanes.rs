//! Where ready tasks wait for a place, as it was last committed.
//!
//! ```text
//!   class ──> every open lane of it that has ready tasks, where these are few; or nothing is known of it
//!   lane  ──> its most urgent ready tasks, by id, without a gap: all of them, or as many as were read; or nothing
//! ```
//!
//! The database has the same in `lanes` and in its index of ready tasks, and only the ledger changes it (retention deletes lanes
//! of contracts that have ended, and have nothing ready): what a batch reads from there is kept, and follows what is written
//! from then on. On a full system with one backlog, or with a graph that has more ready tasks than there are slots, dispatching
//! reads nothing but tasks it has not seen, and of a lane whose most urgent task is as urgent as it was nothing is written. What
//! cannot be followed is forgotten and read again.
//!
//! When a lane was served last is not written then. It decides only between more lanes than a walk looks at, and of so many nothing is
//! known here: a class with [`MIN_LANES`] of them is walked each time, and all that is written of them is.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use super::{dispatch::MIN_LANES, work::Work};
use crate::{
    domain::{ClassId, ContractId, TaskId, contract::Contract, task::Task},
    store::{LaneHead, LaneTask},
};

// In tests so few that the histories of the simulation come to the end of what is kept.

/// Ready tasks that are read at once, over all lanes that are looked at. As many as a few batches give away.
pub(super) const AHEAD: u32 = if cfg!(test) { 3 } else { 1_024 };
/// Ready tasks that are kept of a lane.
const MOST_OF_LANE: usize = if cfg!(test) { 5 } else { 2_048 };
/// Of all. Beyond this all are forgotten.
const MOST: usize = if cfg!(test) { 12 } else { 65_536 };

/// Lanes of classes.
type Classes = HashMap<ClassId, BTreeMap<ContractId, LaneHead>>;
/// A lane.
type Lane = (ContractId, ClassId);
/// A ready task in its lane: the most urgent one first, among those the oldest.
type Place = (Reverse<i32>, TaskId);

/// Lanes and ready tasks that are known.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    classes: Classes,
    heads: HashMap<Lane, Heads>,
    /// Ready tasks in `heads`.
    held: usize,
}

/// The first ready tasks of a lane.
#[derive(Debug)]
struct Heads {
    places: BTreeSet<Place>,
    /// There are no others. If there may be, these are not none.
    all: bool,
}

impl Lanes {
    /// Whether all open lanes of a class that have ready tasks are known.
    pub(super) fn knows(&self, class: ClassId) -> bool {
        self.classes.contains_key(&class)
    }

    /// What a walk over the lanes of a class that is known would find.
    pub(super) fn walk(&self, class: ClassId) -> Vec<LaneHead> {
        self.classes.get(&class).into_iter().flat_map(BTreeMap::values).copied().collect()
    }

    /// What a walk has found of these classes, which finds [`MIN_LANES`] of each if there are as many.
    pub(super) fn walked(&mut self, classes: &[ClassId], found: &[LaneHead]) {
        let mut of = Classes::new();
        for lane in found {
            of.entry(lane.class).or_default().insert(lane.contract, *lane);
        }
        for class in classes {
            let lanes = of.remove(class).unwrap_or_default();
            if are_few(&lanes) {
                self.classes.insert(*class, lanes);
            }
        }
    }

    /// The first ready tasks of a lane, so many if it has as many; nothing if they are not known.
    pub(super) fn heads(&self, lane: &LaneHead, limit: u32) -> Option<Vec<TaskId>> {
        let heads = self.heads.get(&(lane.contract, lane.class))?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let are_known = heads.all || heads.places.len() >= limit;
        are_known.then(|| heads.places.iter().take(limit).map(|(_, id)| *id).collect())
    }

    /// What was read of lanes: their first ready tasks, at most `limit` of each.
    pub(super) fn read(&mut self, lanes: &[LaneHead], tasks: &[LaneTask], limit: u32) {
        lanes.iter().for_each(|lane| self.forget((lane.contract, lane.class)));
        if self.held + tasks.len() > MOST {
            self.forget_heads();
        }
        let mut of: HashMap<Lane, BTreeSet<Place>> = HashMap::new();
        for task in tasks {
            of.entry((task.contract, task.class)).or_default().insert((Reverse(task.priority), task.id));
        }
        for (lane, places) in of {
            let all = u32::try_from(places.len()).is_ok_and(|read| read < limit);
            self.held += places.len();
            self.heads.insert(lane, Heads { places, all });
        }
    }

    /// Whether the row of a lane says after this batch what it says now: what its most urgent task is.
    pub(super) fn stays(&self, lane: Lane, work: &Work, ready: &HashMap<Lane, i32>) -> bool {
        let (contract, class) = lane;
        let was_open = work.contracts.was(contract).is_none_or(Contract::is_open);
        let Some(lanes) = self.classes.get(&class).filter(|_| was_open) else { return false };
        let here = ready.get(&lane).copied();
        let Some(before) = lanes.get(&contract).map(|head| head.priority) else { return here.is_none() };
        let Some(heads) = self.heads.get(&lane) else { return false };
        // Those that are not known are no more urgent than the last that is, which is no more urgent than it was.
        let other =
            heads.places.iter().find(|(_, id)| !work.tasks.contains(*id)).map(|(Reverse(priority), _)| *priority);
        here.max(other) == Some(before)
    }

    /// Takes over what a batch has written, once it is committed.
    pub(super) fn learn(&mut self, work: &Work) {
        let mut touched: BTreeMap<Lane, bool> = BTreeMap::new();
        for (was, task) in work.tasks.dirty_pairs() {
            let (before, after) = (was.and_then(place), place(task));
            if before == after {
                continue;
            }
            if let Some((lane, place)) = before {
                touched.entry(lane).or_insert_with(|| self.has_none(lane, work));
                self.take(lane, place);
            }
            if let Some((lane, place)) = after {
                let has_none = *touched.entry(lane).or_insert_with(|| self.has_none(lane, work));
                self.put(lane, place, has_none);
            }
        }
        // Of the lanes of one that is open again nothing is known.
        if work.contracts.changed_rows().any(|(was, now)| !was.is_open() && now.is_open()) {
            self.classes.clear();
        }
        for (_, closed) in work.contracts.changed_rows().filter(|(was, now)| was.is_open() && !now.is_open()) {
            self.classes.values_mut().for_each(|lanes| _ = lanes.remove(&closed.id));
        }
        for (lane, had_none) in touched {
            self.follow(lane, had_none, work);
        }
        if self.held > MOST {
            self.forget_heads();
        }
    }

    /// Brings what is known of a lane's class up to what is known of its ready tasks.
    fn follow(&mut self, lane: Lane, had_none: bool, work: &Work) {
        let (contract, class) = lane;
        let heads = self.heads.get(&lane);
        let first = heads.and_then(|heads| heads.places.first()).map(|(Reverse(priority), _)| *priority);
        let is_known = first.is_some() || had_none || heads.is_some_and(|heads| heads.all);
        if first.is_none() {
            self.forget(lane);
        }
        if !work.contracts.get(contract).is_some_and(Contract::is_open) {
            return;
        }
        if !is_known {
            self.classes.remove(&class);
        }
        let Some(lanes) = self.classes.get_mut(&class) else { return };
        match first {
            None => _ = lanes.remove(&contract),
            Some(priority) => {
                lanes.insert(contract, LaneHead { contract, class, priority });
                if !are_few(lanes) {
                    self.classes.remove(&class);
                }
            }
        }
    }

    /// Whether a lane had no ready task before this batch.
    fn has_none(&self, (contract, class): Lane, work: &Work) -> bool {
        let was_open = work.contracts.was(contract).is_none_or(Contract::is_open);
        was_open && self.classes.get(&class).is_some_and(|lanes| !lanes.contains_key(&contract))
    }

    fn take(&mut self, lane: Lane, place: Place) {
        let Some(heads) = self.heads.get_mut(&lane) else { return };
        self.held -= usize::from(heads.places.remove(&place));
        if heads.places.is_empty() && !heads.all {
            self.heads.remove(&lane);
        }
    }

    fn put(&mut self, lane: Lane, place: Place, had_none: bool) {
        if had_none {
            self.heads.entry(lane).or_insert_with(|| Heads { places: BTreeSet::new(), all: true });
        }
        let Some(heads) = self.heads.get_mut(&lane) else { return };
        if !heads.all && heads.places.last().is_some_and(|last| place > *last) {
            return;
        }
        self.held += usize::from(heads.places.insert(place));
        if heads.places.len() > MOST_OF_LANE && heads.places.pop_last().is_some() {
            self.held -= 1;
            heads.all = false;
        }
    }

    /// Classes without an open lane that has ready tasks.
    #[cfg(test)]
    pub(super) fn dry(&self) -> Vec<ClassId> {
        self.classes.iter().filter(|(_, lanes)| lanes.is_empty()).map(|(class, _)| *class).collect()
    }

    /// What is known of classes.
    #[cfg(test)]
    pub(super) fn known(&self) -> &Classes {
        &self.classes
    }

    /// What is known of lanes: their first ready tasks, and whether there are no others.
    #[cfg(test)]
    pub(super) fn known_tasks(&self) -> impl Iterator<Item = (Lane, Vec<TaskId>, bool)> {
        let ids = |heads: &Heads| heads.places.iter().map(|(_, id)| *id).collect();
        self.heads.iter().map(move |(lane, heads)| (*lane, ids(heads), heads.all))
    }

    fn forget(&mut self, lane: Lane) {
        self.held -= self.heads.remove(&lane).map_or(0, |heads| heads.places.len());
    }

    fn forget_heads(&mut self) {
        self.heads.clear();
        self.held = 0;
    }
}

/// There are fewer of them than a walk finds at least.
fn are_few(lanes: &BTreeMap<ContractId, LaneHead>) -> bool {
    u32::try_from(lanes.len()).is_ok_and(|lanes| lanes < MIN_LANES)
}

/// Where a task waits, if it is ready.
fn place(task: &Task) -> Option<(Lane, Place)> {
    task.is_ready().then(|| ((task.contract, task.class), (Reverse(task.spec.priority), task.id)))
}

#[cfg(test)]
mod tests;

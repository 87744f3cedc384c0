//! Which tasks wait for which: edges as they are asked for, checked all at once.
//!
//! ```text
//!   words ("types", or an id) ──> wanted() ──> the caller loads ──> Loaded
//!                                                                     │
//!   new tasks ────────> resolve_new()   ──┬── edges                   │
//!   edges to be added ─> resolve_added() ─┘   or every Problem <──────┘
//! ```
//!
//! Promises:
//!
//! * Nothing or everything: either all edges, or every reason why not, each with the place of the word it is about, so that
//!   a person corrects a file once. Only cycles are cut off, at [`MAX_CYCLES`], because a small graph can hold
//!   exponentially many.
//! * A cycle is shown as the shortest one through the edge that closes it: `a -> b -> a` reads "a waits for b waits for a".
//! * A task of another owner reads exactly like one that does not exist.
//! * No recursion, and near-linear: chains of 100,000 and fans of 10,000 are ordinary.
//!
//! Edges stay within a contract, and tasks that exist cannot wait for tasks that do not. So a cycle among new tasks shows in
//! the call itself, and one closed by an added edge shows in what the named tasks lead to, which [`Walk`] collects without
//! reading the rest of the contract.

mod graph;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
};

pub use graph::{components, order};

use graph::cycles;

use super::{
    id::{ContractId, OwnerId, TaskId},
    task::{MAX_DEPENDENCIES, TaskStatus},
};

/// Cycles named in one answer; who has more meets the others after breaking these.
pub const MAX_CYCLES: usize = 20;
/// Steps of a cycle that are shown; the middle of a longer one is left out.
const SHOWN_STEPS: usize = 12;
/// Characters of a word that are shown.
const SHOWN_CHARS: usize = 80;

/// A task that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewTask<'a> {
    /// The id it gets.
    pub id: TaskId,
    /// Its name, by which the others of the call know it; empty for a lone one.
    pub name: &'a str,
    /// What it is to wait for: names of this call or of the contract, or ids.
    pub depends_on: &'a [String],
}

/// A task that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub id: TaskId,
    /// Its contract.
    pub contract: ContractId,
    /// Its owner.
    pub owner: OwnerId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub status: TaskStatus,
}

/// What the caller has loaded: tasks that exist, seen from one contract.
#[derive(Clone, Debug)]
pub struct Loaded {
    owner: OwnerId,
    contract: ContractId,
    by_id: HashMap<TaskId, Known>,
    by_name: HashMap<String, TaskId>,
}

impl Loaded {
    /// Nothing yet, for edges of this contract.
    pub fn new(owner: OwnerId, contract: ContractId) -> Self {
        Self { owner, contract, by_id: HashMap::new(), by_name: HashMap::new() }
    }

    /// Adds a task, of whatever contract and owner.
    pub fn insert(&mut self, task: Known) {
        if task.contract == self.contract && task.owner == self.owner {
            self.by_name.insert(task.name.clone(), task.id);
        }
        self.by_id.insert(task.id, task);
    }

    /// A loaded task.
    pub fn get(&self, id: TaskId) -> Option<&Known> {
        self.by_id.get(&id)
    }

    fn find(&self, word: &str) -> Option<&Known> {
        let by_id = word.parse().ok().and_then(|id: TaskId| self.by_id.get(&id));
        by_id.or_else(|| self.by_name.get(word).and_then(|id| self.by_id.get(id)))
    }

    fn name(&self, id: TaskId) -> String {
        self.by_id.get(&id).map_or_else(|| id.short(), |known| known.name.clone())
    }
}

/// What has to be loaded to resolve words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Tasks by id, of whatever contract.
    pub ids: Vec<TaskId>,
    /// Tasks of the contract by name.
    pub names: Vec<String>,
}

/// What has to be loaded before [`resolve_new`]: what the words may mean, and who else may have the new names.
pub fn wanted(tasks: &[NewTask<'_>]) -> Wanted {
    let local: HashSet<&str> = tasks.iter().map(|task| task.name).filter(|name| !name.is_empty()).collect();
    let words = tasks.iter().flat_map(|task| task.depends_on).map(String::as_str);
    let mut wanted = wanted_words(words.filter(|word| !local.contains(word)));
    wanted.names.extend(local.into_iter().map(str::to_owned));
    wanted.names.sort_unstable();
    wanted.names.dedup();
    wanted
}

/// What has to be loaded before [`resolve_added`]: what the words may mean.
pub fn wanted_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Wanted {
    let mut wanted = Wanted::default();
    for word in words {
        wanted.ids.extend(word.parse::<TaskId>());
        wanted.names.push(word.to_owned());
    }
    wanted.ids.sort_unstable();
    wanted.ids.dedup();
    wanted.names.sort_unstable();
    wanted.names.dedup();
    wanted
}

/// One task waits for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    /// It waits.
    pub dependent: TaskId,
    /// It is waited for.
    pub dependency: TaskId,
    /// What is waited for is complete already.
    pub satisfied: bool,
}

/// Why an edge was refused, and where it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Place of the task in the call; 0 where edges are added to one task.
    pub task: usize,
    /// Place of the word in its `depends_on`; `None`: it is about the task.
    pub dependency: Option<usize>,
    /// What is wrong.
    pub kind: ProblemKind,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

/// Why an edge was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProblemKind {
    /// Tasks wait for each other.
    #[error("dependencies form a cycle: {}", steps(path))]
    Cycle {
        /// Names, the first one again at the end.
        path: Vec<String>,
    },
    /// A task waits for itself.
    #[error("a task cannot depend on itself")]
    SelfEdge,
    /// Nobody is called that.
    #[error("there is no task `{}`: name a task of this call or contract, or give its id", shown(word))]
    Unknown {
        /// The word.
        word: String,
    },
    /// It is the owner's, and of another contract.
    #[error("task `{}` belongs to another contract: dependencies stay within one", shown(word))]
    ForeignContract {
        /// The word.
        word: String,
    },
    /// It is somebody else's, who is told nothing else than for [`Self::Unknown`].
    #[error("there is no task `{}`: name a task of this call or contract, or give its id", shown(word))]
    ForeignOwner {
        /// The word.
        word: String,
    },
    /// Asked for twice.
    #[error("`{}` is named twice among the dependencies", shown(word))]
    Duplicate {
        /// The word.
        word: String,
    },
    /// There already.
    #[error("the task depends on `{}` already", shown(word))]
    Exists {
        /// The word.
        word: String,
    },
    /// More than a task may have.
    #[error("{count} dependencies, at most {MAX_DEPENDENCIES} are allowed: gather some under a task in between")]
    TooMany {
        /// How many it would have.
        count: usize,
    },
    /// Two new tasks have one name.
    #[error("two tasks of this call are named `{}`", shown(name))]
    NameTwice {
        /// The name.
        name: String,
    },
    /// A task of the contract has that name.
    #[error("the contract has a task named `{}` already", shown(name))]
    NameTaken {
        /// The name.
        name: String,
    },
}

/// A word as far as it is shown: one line, not too long.
fn shown(word: &str) -> String {
    let mut text: String = word.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if word.chars().nth(SHOWN_CHARS).is_some() {
        text.push('…');
    }
    text
}

/// A path as far as it is shown.
fn steps(path: &[String]) -> String {
    let names: Vec<String> = if path.len() <= SHOWN_STEPS {
        path.iter().map(|name| shown(name)).collect()
    } else {
        let (head, tail) = (&path[..SHOWN_STEPS / 2], &path[path.len() - SHOWN_STEPS / 2..]);
        let left_out = format!("({} more)", path.len() - head.len() - tail.len());
        let head = head.iter().map(|name| shown(name));
        head.chain([left_out]).chain(tail.iter().map(|name| shown(name))).collect()
    };
    names.join(" -> ")
}

/// Resolves the dependencies of tasks that are to be made together.
pub fn resolve_new(tasks: &[NewTask<'_>], loaded: &Loaded) -> Result<Vec<Edge>, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut local: HashMap<&str, usize> = HashMap::with_capacity(tasks.len());
    for (index, task) in tasks.iter().enumerate().filter(|(_, task)| !task.name.is_empty()) {
        let name = || task.name.to_owned();
        if local.contains_key(task.name) {
            problems.push(Problem { task: index, dependency: None, kind: ProblemKind::NameTwice { name: name() } });
            continue;
        }
        local.insert(task.name, index);
        if loaded.by_name.contains_key(task.name) {
            problems.push(Problem { task: index, dependency: None, kind: ProblemKind::NameTaken { name: name() } });
        }
    }

    let mut edges = Vec::new();
    let mut inner = Vec::new();
    for (index, task) in tasks.iter().enumerate() {
        let problem = |dependency, kind| Problem { task: index, dependency, kind };
        if task.depends_on.len() > MAX_DEPENDENCIES {
            problems.push(problem(None, ProblemKind::TooMany { count: task.depends_on.len() }));
        }
        let mut seen = HashSet::with_capacity(task.depends_on.len());
        for (place, word) in task.depends_on.iter().enumerate() {
            let (dependency, satisfied) = match local.get(word.as_str()) {
                // A second task of the same name means itself, not the first.
                Some(_) if task.name == word => (task.id, false),
                Some(&other) => (tasks[other].id, false),
                None => match existing(word, loaded) {
                    Ok(known) => (known.id, known.status.is_complete()),
                    Err(kind) => {
                        problems.push(problem(Some(place), kind));
                        continue;
                    }
                },
            };
            if dependency == task.id {
                problems.push(problem(Some(place), ProblemKind::SelfEdge));
            } else if !seen.insert(dependency) {
                problems.push(problem(Some(place), ProblemKind::Duplicate { word: word.clone() }));
            } else {
                edges.push(Edge { dependent: task.id, dependency, satisfied });
                if let Some(&other) = local.get(word.as_str()) {
                    inner.push((index, other, place));
                }
            }
        }
    }

    let plain: Vec<(usize, usize)> = inner.iter().map(|&(from, to, _)| (from, to)).collect();
    for cycle in cycles(tasks.len(), &plain) {
        let (first, second) = (cycle[0], cycle[1]);
        let place = inner.iter().find(|&&(from, to, _)| from == first && to == second).map(|&(.., place)| place);
        let path = cycle.iter().map(|&index| tasks[index].name.to_owned()).collect();
        problems.push(Problem { task: first, dependency: place, kind: ProblemKind::Cycle { path } });
    }
    answer(edges, problems)
}

/// Edges that are to be added to one task.
#[derive(Clone, Copy, Debug)]
pub struct Added<'a> {
    /// The task that is to wait; loaded, if cycles are to show its name.
    pub task: TaskId,
    /// What it waits for already.
    pub existing: &'a [TaskId],
    /// What it is to wait for as well: names of the contract, or ids.
    pub depends_on: &'a [String],
}

/// Resolves edges that are to be added. `edges` are (dependent, dependency) pairs of the contract: at least all that lead on
/// from the named tasks, as [`Walk`] collects them; more do no harm.
pub fn resolve_added(
    added: &Added<'_>,
    loaded: &Loaded,
    edges: impl IntoIterator<Item = (TaskId, TaskId)>,
) -> Result<Vec<Edge>, Vec<Problem>> {
    let problem = |dependency, kind| Problem { task: 0, dependency, kind };
    let mut problems = Vec::new();
    let count = added.existing.len().saturating_add(added.depends_on.len());
    if count > MAX_DEPENDENCIES {
        problems.push(problem(None, ProblemKind::TooMany { count }));
    }
    let toward = toward(added.task, edges);
    let have: HashSet<TaskId> = added.existing.iter().copied().collect();
    let mut seen = HashSet::with_capacity(added.depends_on.len());
    let mut resolved = Vec::new();
    let mut cycles = 0;
    for (place, word) in added.depends_on.iter().enumerate() {
        let known = match existing(word, loaded) {
            Ok(known) => known,
            Err(kind) => {
                problems.push(problem(Some(place), kind));
                continue;
            }
        };
        if known.id == added.task {
            problems.push(problem(Some(place), ProblemKind::SelfEdge));
        } else if !seen.insert(known.id) {
            problems.push(problem(Some(place), ProblemKind::Duplicate { word: word.clone() }));
        } else if have.contains(&known.id) {
            problems.push(problem(Some(place), ProblemKind::Exists { word: word.clone() }));
        } else if toward.contains_key(&known.id) {
            cycles += 1;
            if cycles <= MAX_CYCLES {
                let mut path = vec![loaded.name(added.task)];
                let mut at = Some(known.id);
                while let Some(step) = at {
                    path.push(loaded.name(step));
                    at = toward.get(&step).copied();
                }
                problems.push(problem(Some(place), ProblemKind::Cycle { path }));
            }
        } else {
            resolved.push(Edge { dependent: added.task, dependency: known.id, satisfied: known.status.is_complete() });
        }
    }
    answer(resolved, problems)
}

/// Resolves words to tasks of the contract without asking for edges, for dropping them.
pub fn resolve_words(words: &[String], loaded: &Loaded) -> Result<Vec<TaskId>, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut tasks = Vec::with_capacity(words.len());
    for (place, word) in words.iter().enumerate() {
        match existing(word, loaded) {
            Ok(known) => tasks.push(known.id),
            Err(kind) => problems.push(Problem { task: 0, dependency: Some(place), kind }),
        }
    }
    answer(tasks, problems)
}

fn answer<T>(good: Vec<T>, mut problems: Vec<Problem>) -> Result<Vec<T>, Vec<Problem>> {
    if problems.is_empty() {
        return Ok(good);
    }
    problems.sort_by_key(|problem| (problem.task, problem.dependency));
    Err(problems)
}

/// The existing task that a word means.
fn existing<'a>(word: &str, loaded: &'a Loaded) -> Result<&'a Known, ProblemKind> {
    let word = || word.to_owned();
    match loaded.find(&word()) {
        None => Err(ProblemKind::Unknown { word: word() }),
        Some(known) if known.owner != loaded.owner => Err(ProblemKind::ForeignOwner { word: word() }),
        Some(known) if known.contract != loaded.contract => Err(ProblemKind::ForeignContract { word: word() }),
        Some(known) => Ok(known),
    }
}

/// For every task that waits for `goal`, directly or not: the next step on a shortest way there.
fn toward(goal: TaskId, edges: impl IntoIterator<Item = (TaskId, TaskId)>) -> HashMap<TaskId, TaskId> {
    let mut dependents: HashMap<TaskId, Vec<TaskId>> = HashMap::new();
    for (dependent, dependency) in edges {
        dependents.entry(dependency).or_default().push(dependent);
    }
    let mut next = HashMap::new();
    let mut queue = VecDeque::from([goal]);
    while let Some(task) = queue.pop_front() {
        for &dependent in dependents.get(&task).map_or(&[][..], Vec::as_slice) {
            if dependent != goal && !next.contains_key(&dependent) {
                next.insert(dependent, task);
                queue.push_back(dependent);
            }
        }
    }
    next
}

/// Collects the edges that lead on from some tasks, a batch at a time, for a caller that reads them from a store:
///
/// ```text
///   let mut walk = Walk::new(named);
///   while let Some(batch) = walk.batch(1_000) { walk.feed(store.edges_from(&batch)) }
///   resolve_added(&added, &loaded, walk.into_edges())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Walk {
    seen: HashSet<TaskId>,
    waiting: Vec<TaskId>,
    edges: Vec<(TaskId, TaskId)>,
}

impl Walk {
    /// Begins at these tasks.
    pub fn new(from: impl IntoIterator<Item = TaskId>) -> Self {
        let mut walk = Self::default();
        for task in from {
            walk.visit(task);
        }
        walk
    }

    /// Tasks whose dependencies are wanted next; `None` when there is nothing more to read.
    pub fn batch(&mut self, at_most: usize) -> Option<Vec<TaskId>> {
        let rest = self.waiting.len().saturating_sub(at_most.max(1));
        let batch = self.waiting.split_off(rest);
        (!batch.is_empty()).then_some(batch)
    }

    /// What was read: (dependent, dependency).
    pub fn feed(&mut self, edges: impl IntoIterator<Item = (TaskId, TaskId)>) {
        for (dependent, dependency) in edges {
            self.edges.push((dependent, dependency));
            self.visit(dependency);
        }
    }

    /// It was met on the way.
    pub fn has_seen(&self, task: TaskId) -> bool {
        self.seen.contains(&task)
    }

    /// All that was read.
    pub fn into_edges(self) -> Vec<(TaskId, TaskId)> {
        self.edges
    }

    fn visit(&mut self, task: TaskId) {
        if self.seen.insert(task) {
            self.waiting.push(task);
        }
    }
}

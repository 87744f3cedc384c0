//! What plans and paths say about order.
//!
//! Explicit dependencies decide; this only *suggests* edges and *warns* of violations. Work is put into categories in the
//! order in which it should be done: schema, types, backend, UI.
//!
//! ```text
//!   path ──> categorize_path ─┐
//!   SQL  ─────────────────────┼─> categorize_plan ──> what a task touches ──> suggest, violations
//!   prose, by whole words ────┘                                              └─> analyze: all tasks of a contract
//! ```
//!
//! Promises:
//!
//! * A task in which nothing is recognised gives and gets no suggestion and no warning.
//! * Words match as words: "review" is not a view, "platform" and "information" are not forms; and by their neighbours: "user
//!   interface" is UI, "TypeScript interface" is types, a "language model" is neither.
//! * File paths and SQL count more than prose: beside them a category needs two different words of its own. What the task's
//!   name says always counts.
//! * What a plan only reads ("using the types from `src/types/user.ts`") is not what it touches, unless it names nothing
//!   else; what it is told not to do ("without changing the schema") is not touched at all.
//! * Linear in the length of the plan; no regular expressions.
//!
//! It will be wrong at times, which is why nothing is refused because of it.

mod path;
mod plan;
#[cfg(test)]
mod tests;
mod words;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use path::categorize_path;
pub use plan::categorize_plan;

use super::{dependency::components, task::TaskStatus};

/// What a task touches; the order is the order in which the work should be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Schema and migrations.
    Schema,
    /// Types and models.
    Types,
    /// Backend and API.
    Backend,
    /// User interface.
    Ui,
}

impl Category {
    /// All of them, first work first.
    pub const ALL: [Self; 4] = [Self::Schema, Self::Types, Self::Backend, Self::Ui];

    /// The word for it, as in the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Schema => "schema",
            Self::Types => "types",
            Self::Backend => "backend",
            Self::Ui => "ui",
        }
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Where work of this category stands in the order; what is not recognised goes with the backend.
pub fn rank(category: Option<Category>) -> Category {
    category.unwrap_or(Category::Backend)
}

/// An edge that analysis would add: `task` should wait for `on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Suggestion<K> {
    /// It should wait.
    pub task: K,
    /// It should be waited for.
    pub on: K,
    /// Lowest category of the one that should wait.
    pub lowest: Category,
    /// Highest category of the other.
    pub highest: Category,
}

impl<K> Suggestion<K> {
    /// Why, for people.
    pub fn reason(&self, on: &str) -> String {
        format!("`{on}` touches nothing after {}, this task begins with {}", self.highest, self.lowest)
    }
}

/// A task that would start before work it is likely to build on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Violation<K> {
    /// It would start.
    pub task: K,
    /// It is unfinished, and nobody waits for it.
    pub on: K,
    /// Lowest category of the one that would start.
    pub mine: Category,
    /// Lowest category of the other.
    pub theirs: Category,
}

impl<K> Violation<K> {
    /// What is odd, for people.
    pub fn reason(&self, on: &str) -> String {
        format!(
            "this task begins with {} and does not wait for `{on}`, which touches {} and is unfinished",
            self.mine, self.theirs
        )
    }
}

/// Edges that would make `task` wait for those whose highest category is lower than its lowest. `others` are the tasks it
/// does not depend on yet; categories are sorted, as [`categorize_plan`] answers them.
pub fn suggest<'a, K: Copy>(
    task: K,
    mine: &[Category],
    others: impl IntoIterator<Item = (K, &'a [Category])>,
) -> Vec<Suggestion<K>> {
    let Some(&lowest) = mine.first() else { return Vec::new() };
    let suggestion = |(on, theirs): (K, &[Category])| {
        let &highest = theirs.last()?;
        (highest < lowest).then_some(Suggestion { task, on, lowest, highest })
    };
    others.into_iter().filter_map(suggestion).collect()
}

/// What would start too early if `task` started now: `unfinished` are the unfinished tasks of its contract that are not
/// among its dependencies; those whose lowest category is lower than its own are named.
pub fn violations<'a, K: Copy>(
    task: K,
    mine: &[Category],
    unfinished: impl IntoIterator<Item = (K, &'a [Category])>,
) -> Vec<Violation<K>> {
    let Some(&mine) = mine.first() else { return Vec::new() };
    let violation = |(on, theirs): (K, &[Category])| {
        let &theirs = theirs.first()?;
        (theirs < mine).then_some(Violation { task, on, mine, theirs })
    };
    unfinished.into_iter().filter_map(violation).collect()
}

/// A task as [`analyze`] sees it, known by its place in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// What it touches: [`categorize_plan`].
    pub categories: Vec<Category>,
    /// Places of the tasks it waits for.
    pub depends_on: Vec<usize>,
    /// Where it stands; a task that is not made yet is pending.
    pub status: TaskStatus,
}

/// What [`analyze`] finds, by places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Analysis {
    /// Edges it would add: all of them together make no cycle, neither among themselves nor with those that are there.
    pub suggestions: Vec<Suggestion<usize>>,
    /// Tasks that could start before work they are likely to build on.
    pub violations: Vec<Violation<usize>>,
}

/// Looks at all tasks of a contract together: what each could wait for, and what each that has not started could start
/// before. What a task waits for already, directly or not, is neither suggested nor a violation; explicit edges decide, so
/// what would contradict them is not suggested. Quadratic in the number of tasks, which the caller bounds.
pub fn analyze(tasks: &[Subject]) -> Analysis {
    let explicit: Vec<(usize, usize)> =
        tasks.iter().enumerate().flat_map(|(me, task)| task.depends_on.iter().map(move |&on| (me, on))).collect();
    let mut analysis = Analysis::default();
    for (me, task) in tasks.iter().enumerate().filter(|(_, task)| task.status == TaskStatus::Pending) {
        let awaited = awaited(tasks, me);
        let others = || {
            let others = tasks.iter().enumerate().filter(|&(on, other)| !awaited[on] && !other.status.is_final());
            others.map(|(on, other)| (on, other.categories.as_slice()))
        };
        analysis.suggestions.extend(suggest(me, &task.categories, others()));
        analysis.violations.extend(violations(me, &task.categories, others()));
    }
    // An edge within a component is part of a cycle. The explicit edges alone make none, so what is left makes none.
    let suggested = analysis.suggestions.iter().map(|suggestion| (suggestion.task, suggestion.on));
    let together: Vec<(usize, usize)> = explicit.into_iter().chain(suggested).collect();
    let component = components(tasks.len(), &together);
    analysis.suggestions.retain(|suggestion| component[suggestion.task] != component[suggestion.on]);
    analysis
}

/// For each place, whether `me` is it or waits for it, directly or not.
fn awaited(tasks: &[Subject], me: usize) -> Vec<bool> {
    let mut awaited = vec![false; tasks.len()];
    awaited[me] = true;
    let mut stack = vec![me];
    while let Some(place) = stack.pop() {
        for &on in &tasks[place].depends_on {
            if !std::mem::replace(&mut awaited[on], true) {
                stack.push(on);
            }
        }
    }
    awaited
}

/// Whether a task may start, as far as its dependencies go; otherwise those that are not complete, in their order.
pub fn can_start<K>(dependencies: impl IntoIterator<Item = (K, TaskStatus)>) -> Result<(), Vec<K>> {
    let waiting: Vec<K> =
        dependencies.into_iter().filter(|(_, status)| !status.is_complete()).map(|(name, _)| name).collect();
    if waiting.is_empty() { Ok(()) } else { Err(waiting) }
}

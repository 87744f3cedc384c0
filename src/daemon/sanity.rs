//! The sanity check before a task is started: is its order what it should be, as far as this daemon can see? It warns, and
//! never refuses, because the server is the authority on order.
//!
//! 1. A dependency that the order itself says is not complete.
//! 2. A dependency that this daemon's own journal knows better: it is still being worked on here, or it has ended here with
//!    another result than the order names.
//! 3. An unfinished task of the same contract, not among the dependencies, that touches an earlier category than this one
//!    (schema, types, backend, UI), by what plans and paths say.

use super::{
    config::DependencyOrdering,
    journal::{Row, State},
};
use crate::domain::{
    analysis::{Category, categorize_plan},
    order::{DependencyResult, Spawn},
    task::TaskStatus,
};

/// Warnings of one check; more of them say nothing new.
const MAX_WARNINGS: usize = 10;

/// What is odd about starting this now. `known` are the journal's attempts of the dependencies, `mine` finds what the task's own
/// plan touches: it is asked only where there is something to compare with.
pub fn check(
    settings: DependencyOrdering,
    spawn: &Spawn,
    known: &[Row],
    mine: impl FnOnce(&Spawn) -> Vec<Category>,
) -> Vec<String> {
    if !settings.enabled {
        return Vec::new();
    }
    let mut warnings: Vec<String> = spawn
        .dependencies
        .iter()
        .flat_map(|dependency| incomplete(dependency).into_iter().chain(contradicted(dependency, known)))
        .collect();
    if settings.auto_detect && !spawn.contract_tasks.is_empty() {
        warnings.extend(violations(spawn, &mine(spawn)));
    }
    warnings.truncate(MAX_WARNINGS);
    warnings
}

/// What a task touches, by its own plan.
pub fn touched(spawn: &Spawn) -> Vec<Category> {
    categorize_plan(&spawn.name, &spawn.plan)
}

fn incomplete(dependency: &DependencyResult) -> Option<String> {
    (!dependency.status.is_complete()).then(|| {
        format!(
            "started although its dependency `{}` is not complete: it is {}",
            dependency.name,
            dependency.status.word()
        )
    })
}

fn contradicted(dependency: &DependencyResult, known: &[Row]) -> Option<String> {
    let newest = known.iter().filter(|row| row.attempt.task == dependency.task).max_by_key(|row| row.attempt.number)?;
    let name = &dependency.name;
    if newest.state.is_live() && newest.stop.is_none() && dependency.status.is_complete() {
        return Some(format!(
            "the server says that the dependency `{name}` is {}, but attempt {} of it is still being worked on here",
            dependency.status.word(),
            newest.attempt.number
        ));
    }
    let result = newest.complete.as_ref().filter(|_| newest.state != State::Salvage)?.outcome.as_ref().ok()?;
    let differs = !dependency.commit.is_empty() && result.commit != dependency.commit;
    differs.then(|| {
        format!(
            "the result of the dependency `{name}` is said to be {}, but attempt {} of it ended here with {}",
            dependency.commit, newest.attempt.number, result.commit
        )
    })
}

fn violations(spawn: &Spawn, mine: &[Category]) -> Vec<String> {
    let Some(lowest) = mine.iter().min() else { return Vec::new() };
    spawn
        .contract_tasks
        .iter()
        .filter(|task| !finished(task.status) && !spawn.dependencies.iter().any(|d| d.task == task.task))
        .filter_map(|task| {
            let earlier = task.categories.iter().min().filter(|theirs| *theirs < lowest)?;
            Some(format!(
                "touches {}, while `{}`, which touches {} and is not among its dependencies, is {}",
                word(*lowest),
                task.name,
                word(*earlier),
                task.status.word()
            ))
        })
        .collect()
}

/// Nothing more will come of it, so there is nothing to wait for.
fn finished(status: TaskStatus) -> bool {
    status.is_final()
}

fn word(category: Category) -> &'static str {
    match category {
        Category::Schema => "schema",
        Category::Types => "types",
        Category::Backend => "backend",
        Category::Ui => "UI",
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        daemon::journal::tests::{attempt, spawn},
        domain::{
            TaskId, Timestamp,
            attempt::TaskResult,
            order::ContractTask,
            report::{Complete, Progress},
        },
    };

    fn dependency(n: u128, status: TaskStatus) -> DependencyResult {
        DependencyResult {
            task: attempt(n).task,
            name: format!("dep-{n}"),
            status,
            commit: "a".repeat(40),
            result_ref: String::new(),
            daemon: None,
            blob: String::new(),
            blob_sha256: String::new(),
            blob_bytes: 0,
        }
    }

    fn known(n: u128, state: State, commit: &str) -> Row {
        let result = TaskResult {
            commit: commit.to_owned(),
            branch: String::new(),
            result_ref: String::new(),
            published: true,
            ..TaskResult::default()
        };
        Row {
            attempt: attempt(n),
            state,
            spawn: None,
            directory: Default::default(),
            worktree: String::new(),
            stop: None,
            complete: (!commit.is_empty()).then(|| Complete {
                outcome: Ok(result),
                progress: Progress::default(),
                output_bytes: 0,
                exit_code: Some(0),
                signal: 0,
            }),
            uploaded: true,
            created: Timestamp(0),
            updated: Timestamp(0),
        }
    }

    fn other(n: u128, status: TaskStatus, categories: &[Category]) -> ContractTask {
        ContractTask {
            task: TaskId(Uuid::from_u128(n)),
            name: format!("task-{n}"),
            status,
            categories: categories.to_vec(),
        }
    }

    fn nothing(_: &Spawn) -> Vec<Category> {
        Vec::new()
    }

    fn ui(_: &Spawn) -> Vec<Category> {
        vec![Category::Ui]
    }

    const ON: DependencyOrdering = DependencyOrdering { enabled: true, auto_detect: true, warn_on_violation: true };

    #[test]
    fn nothing_is_odd_about_an_order_in_order() {
        let mut order = spawn("ui");
        order.dependencies = vec![dependency(1, TaskStatus::Done), dependency(2, TaskStatus::Merged)];
        order.contract_tasks = vec![
            other(1, TaskStatus::Done, &[Category::Schema]),
            other(8, TaskStatus::Pending, &[Category::Ui]),
            other(9, TaskStatus::Cancelled, &[Category::Schema]),
        ];
        let journal = [known(1, State::Over, &"a".repeat(40))];
        assert_eq!(check(ON, &order, &journal, ui), Vec::<String>::new());
    }

    #[test]
    fn an_incomplete_dependency_is_named() {
        let mut order = spawn("ui");
        order.dependencies = vec![dependency(1, TaskStatus::Running)];
        assert_eq!(
            check(ON, &order, &[], nothing),
            ["started although its dependency `dep-1` is not complete: it is RUNNING"]
        );
        assert!(check(DependencyOrdering { enabled: false, ..ON }, &order, &[], nothing).is_empty());
    }

    #[test]
    fn the_journal_may_know_better() {
        let mut order = spawn("ui");
        order.dependencies = vec![dependency(1, TaskStatus::Done), dependency(2, TaskStatus::Done)];
        let journal = [known(1, State::Running, ""), known(2, State::Over, &"b".repeat(40))];
        let warnings = check(ON, &order, &journal, nothing);
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].contains("`dep-1` is DONE, but attempt 1 of it is still being worked on here"));
        assert!(warnings[1].contains("`dep-2`") && warnings[1].contains("ended here with bbbb"));
    }

    #[test]
    fn an_earlier_category_that_is_not_done_is_warned_of() {
        let mut order = spawn("profile");
        order.contract_tasks = vec![
            other(3, TaskStatus::Pending, &[Category::Schema, Category::Backend]),
            other(4, TaskStatus::Pending, &[]),
        ];
        assert_eq!(
            check(ON, &order, &[], ui),
            ["touches UI, while `task-3`, which touches schema and is not among its dependencies, is PENDING"]
        );
        assert!(check(ON, &order, &[], nothing).is_empty());
        assert!(check(DependencyOrdering { auto_detect: false, ..ON }, &order, &[], ui).is_empty());
        order.dependencies =
            vec![DependencyResult { task: order.contract_tasks[0].task, ..dependency(3, TaskStatus::Done) }];
        assert!(check(ON, &order, &[], ui).is_empty());
    }
}

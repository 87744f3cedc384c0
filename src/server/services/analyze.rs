//! `AnalyzeDependencies`, and the suggestions that a new contract is answered with. Nothing is changed by it.
//!
//! Tasks that already wait for each other, directly or through others, need no suggestion and earn no warning; an edge that
//! would close a cycle is not suggested.

use std::collections::HashMap;

use super::{Api, contract::find_contract, store_error};
use crate::{
    domain::{
        TaskId,
        analysis::{self, Category, categorize_plan},
        draft::NewTask,
        task::{Task, TaskStatus},
    },
    server::auth::Reader,
    store::{TaskFilter, Tx},
    wire::{
        self,
        check::Check,
        pb,
        status::{ApiError, ApiResult, Reason},
    },
};

/// Tasks of a contract that one analysis takes in: it reads all their plans, and compares each with each.
const MAX_EXISTING: usize = 2_000;
/// Tasks read at a time.
const PORTION: i64 = 50;
/// Suggestions of one answer, and warnings: more than anybody will look at.
const MAX_FOUND: usize = 1_000;

/// A task as the analysis sees it.
#[derive(Debug)]
struct Node {
    /// Its id, or its name while it has none.
    word: String,
    name: String,
    categories: Vec<Category>,
    /// What it waits for, as places in the list of nodes.
    depends_on: Vec<usize>,
    /// Where it stands; `None` while it does not exist.
    status: Option<TaskStatus>,
}

impl Node {
    fn of(task: &Task) -> Self {
        Self {
            word: task.id.to_string(),
            name: task.spec.name.clone(),
            categories: categorize_plan(&task.spec.name, &task.spec.plan),
            depends_on: Vec::new(),
            status: Some(task.status()),
        }
    }

    fn of_draft(task: &NewTask) -> Self {
        Self {
            word: task.spec.name.clone(),
            name: task.spec.name.clone(),
            categories: categorize_plan(&task.spec.name, &task.spec.plan),
            depends_on: Vec::new(),
            status: None,
        }
    }
}

impl Api {
    /// What plans and paths say about tasks that exist and tasks that do not.
    pub(super) async fn analyze(
        &self,
        reader: Reader,
        request: pb::AnalyzeDependenciesRequest,
    ) -> ApiResult<pb::AnalyzeDependenciesResponse> {
        let mut check = Check::new();
        if request.tasks.len() > crate::domain::task::MAX_BATCH {
            check.violation("tasks", format!("holds {} tasks; at most 1000 are taken", request.tasks.len()));
        }
        let drafts = wire::task::drafts(&mut check, request.tasks);
        check.finish()?;
        let mut tasks = Vec::new();
        let mut edges = Vec::new();
        if !request.contract_id.is_empty() {
            let mut tx = self.read().await?;
            tasks = existing(&mut tx, reader, &request.contract_id).await?;
            let ids: Vec<TaskId> = tasks.iter().map(|task| task.id).collect();
            edges = tx.edges_from(&ids).await.map_err(store_error)?;
        }
        let work = move || {
            let mut nodes: Vec<Node> = tasks.iter().map(Node::of).collect();
            nodes.extend(drafts.iter().map(Node::of_draft));
            let by_id: HashMap<TaskId, usize> = tasks.iter().enumerate().map(|(at, task)| (task.id, at)).collect();
            // A name of the call comes before one of the contract.
            let by_word: HashMap<String, usize> = nodes
                .iter()
                .enumerate()
                .flat_map(|(at, node)| [(node.word.clone(), at), (node.name.clone(), at)])
                .collect();
            for edge in &edges {
                if let (Some(dependent), Some(dependency)) = (by_id.get(&edge.dependent), by_id.get(&edge.dependency)) {
                    nodes[*dependent].depends_on.push(*dependency);
                }
            }
            for (draft, at) in drafts.iter().zip(tasks.len()..) {
                // What is not known is refused when it is asked for in earnest.
                nodes[at].depends_on = draft.depends_on.iter().filter_map(|word| by_word.get(word).copied()).collect();
            }
            report(&nodes)
        };
        tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)
    }

    /// Edges that the analysis would add between tasks that were made together.
    pub(super) async fn suggestions(
        &self,
        tasks: &[Task],
        depends_on: impl Fn(TaskId) -> Vec<TaskId>,
    ) -> ApiResult<Vec<pb::SuggestedDependency>> {
        let tasks: Vec<(Task, Vec<TaskId>)> = tasks.iter().map(|task| (task.clone(), depends_on(task.id))).collect();
        let work = move || {
            let by_id: HashMap<TaskId, usize> = tasks.iter().enumerate().map(|(at, (task, _))| (task.id, at)).collect();
            let nodes: Vec<Node> = tasks
                .iter()
                .map(|(task, ids)| Node {
                    depends_on: ids.iter().filter_map(|id| by_id.get(id).copied()).collect(),
                    ..Node::of(task)
                })
                .collect();
            report(&nodes).suggestions
        };
        tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)
    }
}

async fn existing(tx: &mut Tx, reader: Reader, contract: &str) -> ApiResult<Vec<Task>> {
    let contract = find_contract(tx, reader, contract).await?;
    let total = contract.counts.total() as usize;
    if total > MAX_EXISTING {
        return Err(ApiError::new(
            Reason::WrongState,
            format!("the contract has {total} tasks; analysis takes in at most {MAX_EXISTING}"),
        ));
    }
    let mut filter =
        TaskFilter { owner: reader.owner, contract: Some(contract.id), statuses: None, after: None, hidden: true };
    let mut tasks: Vec<Task> = Vec::new();
    loop {
        let found = tx.tasks_list(&filter, PORTION).await.map_err(store_error)?;
        let is_last = (found.len() as i64) < PORTION;
        tasks.extend(found);
        filter.after = tasks.last().map(|task| task.id);
        if is_last {
            return Ok(tasks);
        }
    }
}

/// All that can be said of these tasks.
fn report(nodes: &[Node]) -> pb::AnalyzeDependenciesResponse {
    let stands = |node: &Node| node.status.unwrap_or(TaskStatus::Pending);
    let categories = |node: &Node| {
        let dependencies = node.depends_on.iter().map(|it| &nodes[*it]);
        let waiting = analysis::can_start(dependencies.map(|it| (it.name.clone(), stands(it))));
        pb::TaskCategories {
            task: node.word.clone(),
            categories: node.categories.iter().map(|category| category.word().to_owned()).collect(),
            can_start: waiting.is_ok(),
            waiting_for: waiting.err().unwrap_or_default(),
        }
    };
    let subject = |node: &Node| analysis::Subject {
        categories: node.categories.clone(),
        depends_on: node.depends_on.clone(),
        status: stands(node),
    };
    let subjects: Vec<_> = nodes.iter().map(subject).collect();
    let found = analysis::analyze(&subjects);
    let suggestions = found.suggestions.iter().take(MAX_FOUND).map(|it| pb::SuggestedDependency {
        task: nodes[it.task].word.clone(),
        depends_on: nodes[it.on].word.clone(),
        reason: it.reason(&nodes[it.on].name),
    });
    let violations = found.violations.iter().take(MAX_FOUND).map(|it| pb::DependencyViolation {
        task: nodes[it.task].word.clone(),
        on: nodes[it.on].word.clone(),
        reason: it.reason(&nodes[it.on].name),
    });
    pb::AnalyzeDependenciesResponse {
        tasks: nodes.iter().map(categories).collect(),
        suggestions: suggestions.collect(),
        violations: violations.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, plan: &str, depends_on: &[usize], status: Option<TaskStatus>) -> Node {
        Node {
            word: name.to_owned(),
            name: name.to_owned(),
            categories: categorize_plan(name, plan),
            depends_on: depends_on.to_vec(),
            status,
        }
    }

    type Pairs<'a> = Vec<(&'a str, &'a str)>;

    fn pairs(report: &pb::AnalyzeDependenciesResponse) -> (Pairs<'_>, Pairs<'_>) {
        (
            report.suggestions.iter().map(|it| (it.task.as_str(), it.depends_on.as_str())).collect(),
            report.violations.iter().map(|it| (it.task.as_str(), it.on.as_str())).collect(),
        )
    }

    const SCHEMA: &str = "Add migration to create users table";
    const UI: &str = "Implement the UserProfile component with React";

    #[test]
    fn the_example_of_the_design() {
        let report = report(&[node("one", SCHEMA, &[], None), node("two", UI, &[], None)]);
        assert_eq!(pairs(&report), (vec![("two", "one")], vec![("two", "one")]));
        assert!(report.tasks.iter().all(|task| task.can_start));
    }

    #[test]
    fn what_waits_already_is_neither_suggested_nor_warned_of() {
        let report = report(&[
            node("schema", SCHEMA, &[], Some(TaskStatus::Running)),
            node("between", "whatever", &[0], None),
            node("ui", UI, &[1], None),
        ]);
        assert_eq!(pairs(&report), (vec![], vec![]));
        assert_eq!(report.tasks[1].waiting_for, ["schema"]);
    }

    #[test]
    fn no_cycle_is_suggested_and_what_is_over_does_not_count() {
        // The schema waits for the UI: odd, and said so, but its edge would be a cycle.
        let report = report(&[node("schema", SCHEMA, &[1], None), node("ui", UI, &[], None)]);
        assert_eq!(pairs(&report), (vec![], vec![("ui", "schema")]));
        let report = super::report(&[node("schema", SCHEMA, &[], Some(TaskStatus::Done)), node("ui", UI, &[], None)]);
        assert_eq!(pairs(&report), (vec![], vec![]));
        // Each suggestion alone would do; both together would be a cycle through the edges that are there.
        let report = super::report(&[
            node("schema a", SCHEMA, &[1], None),
            node("ui a", UI, &[], None),
            node("schema b", SCHEMA, &[3], None),
            node("ui b", UI, &[], None),
        ]);
        assert_eq!(pairs(&report).0, vec![]);
    }
}

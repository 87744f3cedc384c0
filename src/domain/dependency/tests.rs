//! Every problem with its place and words, then random graphs against a slow and simple rule.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const OWNER: OwnerId = OwnerId(Uuid::from_u128(1));
const OTHER_OWNER: OwnerId = OwnerId(Uuid::from_u128(2));
const CONTRACT: ContractId = ContractId(Uuid::from_u128(3));
const OTHER_CONTRACT: ContractId = ContractId(Uuid::from_u128(4));

fn id(n: usize) -> TaskId {
    TaskId(Uuid::from_u128(0xa000 + u128::try_from(n).unwrap()))
}

fn known(n: usize, name: &str, owner: OwnerId, contract: ContractId, status: TaskStatus) -> Known {
    Known { id: id(n), contract, owner, name: name.to_owned(), status }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// `[("a", &["b"])]` with ids 0, 1, ...
fn new_tasks(tasks: &[(&str, &[&str])], loaded: &Loaded) -> Result<Vec<Edge>, Vec<Problem>> {
    let depends: Vec<Vec<String>> = tasks.iter().map(|(_, depends_on)| words(depends_on)).collect();
    let tasks: Vec<NewTask<'_>> = (tasks.iter().zip(&depends).enumerate())
        .map(|(n, ((name, _), depends_on))| NewTask { id: id(n), name, depends_on })
        .collect();
    resolve_new(&tasks, loaded)
}

fn edge(dependent: usize, dependency: usize, satisfied: bool) -> Edge {
    Edge { dependent: id(dependent), dependency: id(dependency), satisfied }
}

/// The contract that the tests see: `old` is running, `ready` is done; elsewhere `theirs` and `mine-elsewhere`.
fn loaded() -> Loaded {
    let mut loaded = Loaded::new(OWNER, CONTRACT);
    loaded.insert(known(100, "old", OWNER, CONTRACT, TaskStatus::Running));
    loaded.insert(known(101, "ready", OWNER, CONTRACT, TaskStatus::Done));
    loaded.insert(known(102, "mine-elsewhere", OWNER, OTHER_CONTRACT, TaskStatus::Done));
    loaded.insert(known(103, "theirs", OTHER_OWNER, OTHER_CONTRACT, TaskStatus::Done));
    loaded
}

fn lines(problems: &[Problem]) -> Vec<String> {
    let place = |p: &Problem| p.dependency.map_or(format!("{}", p.task), |d| format!("{}.{d}", p.task));
    problems.iter().map(|p| format!("{}: {p}", place(p))).collect()
}

#[test]
fn words_are_names_of_the_call_names_of_the_contract_or_ids() {
    let by_id = id(101).to_string();
    let edges = new_tasks(&[("a", &["b", "old"]), ("b", &[&by_id]), ("", &["a"])], &loaded());
    assert_eq!(edges, Ok(vec![edge(0, 1, false), edge(0, 100, false), edge(1, 101, true), edge(2, 0, false)]));
}

#[test]
fn every_problem_is_named_at_once() {
    let (elsewhere, theirs, nobody) = (id(102).to_string(), id(103).to_string(), id(999).to_string());
    let problems = new_tasks(
        &[
            ("a", &["b", "nobody", "b", "a"]),
            ("b", &["a", &elsewhere, &theirs, &nobody, "mine-elsewhere"]),
            ("c", &["d"]),
            ("d", &["e"]),
            ("e", &["c", "old"]),
            ("e", &["e"]),
            ("old", &[]),
            ("line\nbreak", &["line\nbreak"]),
        ],
        &loaded(),
    );
    let unknown =
        |word: &str| format!("there is no task `{word}`: name a task of this call or contract, or give its id");
    assert_eq!(
        lines(&problems.unwrap_err()),
        [
            "0.0: dependencies form a cycle: a -> b -> a".to_owned(),
            format!("0.1: {}", unknown("nobody")),
            "0.2: `b` is named twice among the dependencies".to_owned(),
            "0.3: a task cannot depend on itself".to_owned(),
            format!("1.1: task `{elsewhere}` belongs to another contract: dependencies stay within one"),
            // A task of another owner reads like one that does not exist.
            format!("1.2: {}", unknown(&theirs)),
            format!("1.3: {}", unknown(&nobody)),
            format!("1.4: {}", unknown("mine-elsewhere")),
            "2.0: dependencies form a cycle: c -> d -> e -> c".to_owned(),
            "5: two tasks of this call are named `e`".to_owned(),
            "5.0: a task cannot depend on itself".to_owned(),
            "6: the contract has a task named `old` already".to_owned(),
            "7.0: a task cannot depend on itself".to_owned(),
        ]
    );
}

#[test]
fn the_caller_is_told_what_to_load() {
    let by_id = id(101).to_string();
    let depends_on = [words(&["b", "old", &by_id]), words(&["old"])];
    let tasks = [
        NewTask { id: id(0), name: "a", depends_on: &depends_on[0] },
        NewTask { id: id(1), name: "b", depends_on: &depends_on[1] },
    ];
    let expected = Wanted { ids: vec![id(101)], names: words(&[&by_id, "a", "b", "old"]) };
    let Wanted { ids, mut names } = wanted(&tasks);
    names.sort();
    assert_eq!(Wanted { ids, names }, expected);
}

#[test]
fn a_long_cycle_and_a_long_word_are_shortened() {
    let names: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
    let depends: Vec<Vec<String>> = (0..100).map(|n| vec![names[(n + 1) % 100].clone()]).collect();
    let tasks: Vec<NewTask<'_>> =
        (0..100).map(|n| NewTask { id: id(n), name: &names[n], depends_on: &depends[n] }).collect();
    let problems = resolve_new(&tasks, &loaded()).unwrap_err();
    assert_eq!(
        lines(&problems),
        [
            "0.0: dependencies form a cycle: t0 -> t1 -> t2 -> t3 -> t4 -> t5 -> (89 more) -> t95 -> t96 -> t97 -> t98 -> \
            t99 -> t0"
        ]
    );
    let long = "ü".repeat(1_000);
    let problems = new_tasks(&[("a", &[&long])], &loaded()).unwrap_err();
    assert!(problems[0].to_string().contains(&format!("`{}…`", "ü".repeat(80))), "{}", problems[0]);
}

#[test]
fn a_task_has_at_most_ten_thousand_dependencies() {
    let mut loaded = Loaded::new(OWNER, CONTRACT);
    let names: Vec<String> = (0..=MAX_DEPENDENCIES).map(|n| format!("d{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        loaded.insert(known(n + 1, name, OWNER, CONTRACT, TaskStatus::Pending));
    }
    let resolve = |count: usize| resolve_new(&[NewTask { id: id(0), name: "a", depends_on: &names[..count] }], &loaded);
    assert_eq!(resolve(MAX_DEPENDENCIES).unwrap().len(), MAX_DEPENDENCIES);
    let too_many = resolve(MAX_DEPENDENCIES + 1).unwrap_err();
    assert_eq!(too_many[0].kind, ProblemKind::TooMany { count: MAX_DEPENDENCIES + 1 });

    let existing: Vec<TaskId> = (10_001..20_001).map(id).collect();
    let added = Added { task: id(30_000), existing: &existing, depends_on: &names[..1] };
    assert_eq!(
        lines(&resolve_added(&added, &loaded, []).unwrap_err()),
        ["0: 10001 dependencies, at most 10000 are allowed: gather some under a task in between"]
    );
}

/// a waits for b waits for c; d stands alone.
fn added(task: usize, depends_on: &[&str]) -> Result<Vec<Edge>, Vec<Problem>> {
    let mut loaded = loaded();
    for (n, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        loaded.insert(known(n, name, OWNER, CONTRACT, TaskStatus::Pending));
    }
    let edges = [(id(0), id(1)), (id(1), id(2))];
    let existing: Vec<TaskId> = edges.iter().filter(|(from, _)| *from == id(task)).map(|(_, to)| *to).collect();
    let mut walk = Walk::new((0..4).map(id));
    while let Some(batch) = walk.batch(1) {
        walk.feed(edges.iter().copied().filter(|(from, _)| batch.contains(from)));
    }
    let added = Added { task: id(task), existing: &existing, depends_on: &words(depends_on) };
    resolve_added(&added, &loaded, walk.into_edges())
}

#[test]
fn an_added_edge_must_not_close_a_cycle() {
    assert_eq!(added(2, &["d", "ready"]), Ok(vec![edge(2, 3, false), edge(2, 101, true)]));
    let problems = added(2, &["a", "c", "d", "d", "b", "nobody"]).unwrap_err();
    assert_eq!(
        lines(&problems),
        [
            "0.0: dependencies form a cycle: c -> a -> b -> c",
            "0.1: a task cannot depend on itself",
            "0.3: `d` is named twice among the dependencies",
            "0.4: dependencies form a cycle: c -> b -> c",
            "0.5: there is no task `nobody`: name a task of this call or contract, or give its id",
        ]
    );
    assert_eq!(lines(&added(0, &["b"]).unwrap_err()), ["0.0: the task depends on `b` already"]);
    // A shortcut is no cycle.
    assert_eq!(added(0, &["c"]), Ok(vec![edge(0, 2, false)]));
}

/// A graph that is already bad, which the ledger never writes, is answered and not followed for ever.
#[test]
fn a_cycle_that_is_there_already_ends_nothing() {
    let mut loaded = loaded();
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        loaded.insert(known(n, name, OWNER, CONTRACT, TaskStatus::Pending));
    }
    let edges = [(id(0), id(1)), (id(1), id(0)), (id(2), id(0))];
    let added = Added { task: id(0), existing: &[id(1)], depends_on: &words(&["c"]) };
    let problems = resolve_added(&added, &loaded, edges).unwrap_err();
    assert_eq!(lines(&problems), ["0.0: dependencies form a cycle: a -> c -> a"]);
}

#[test]
fn words_without_edges() {
    assert_eq!(resolve_words(&words(&["old", "ready"]), &loaded()), Ok(vec![id(100), id(101)]));
    assert_eq!(resolve_words(&words(&["old", "x"]), &loaded()).unwrap_err()[0].dependency, Some(1));
}

/// Deep, wide and dense graphs are ordinary: nothing recurses, nothing is quadratic.
#[test]
fn large_graphs() {
    const LONG: usize = 100_000;
    let chain: Vec<(usize, usize)> = (1..LONG).map(|n| (n, n - 1)).collect();
    assert!(order(LONG, &chain).unwrap().into_iter().eq(0..LONG));
    let mut ring = chain;
    ring.push((0, LONG - 1));
    assert!(components(LONG, &ring).iter().all(|component| *component == 0));
    let found = order(LONG, &ring).unwrap_err();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].len(), LONG + 1);

    // Everybody waits for the last, who waits for everybody.
    let star: Vec<(usize, usize)> = (1..LONG).flat_map(|n| [(0, n), (n, 0)]).collect();
    let found = order(LONG, &star).unwrap_err();
    assert_eq!(found.len(), MAX_CYCLES);
    assert_eq!(found[0], [0, 1, 0]);

    let edges = (1..LONG).map(|n| (id(n), id(n - 1)));
    let mut loaded = Loaded::new(OWNER, CONTRACT);
    loaded.insert(known(LONG - 1, "top", OWNER, CONTRACT, TaskStatus::Pending));
    let depends_on = words(&["top"]);
    let added = Added { task: id(0), existing: &[], depends_on: &depends_on };
    let problems = resolve_added(&added, &loaded, edges).unwrap_err();
    assert!(matches!(&problems[0].kind, ProblemKind::Cycle { path } if path.len() == LONG + 1));
}

#[test]
fn order_keeps_what_stands_where_it_can() {
    assert_eq!(order(4, &[]), Ok(vec![0, 1, 2, 3]));
    assert_eq!(order(4, &[(0, 3), (2, 1)]), Ok(vec![1, 2, 3, 0]));
    assert_eq!(order(3, &[(0, 1), (1, 0), (2, 2)]), Err(vec![vec![0, 1, 0], vec![2, 2]]));
}

fn any_graph() -> impl Strategy<Value = (usize, Vec<(usize, usize)>)> {
    (1_usize..9).prop_flat_map(|count| (Just(count), prop::collection::vec((0..count, 0..count), 0..20)))
}

/// Whether `from` leads to `to` in at least one step, by trying all edges as often as it takes.
fn leads(count: usize, edges: &[(usize, usize)], from: usize, to: usize) -> bool {
    let mut reached = vec![false; count];
    for _ in 0..=count {
        for &(a, b) in edges {
            if a == from || reached[a] {
                reached[b] = true;
            }
        }
    }
    reached[to]
}

proptest! {
    /// Two places share a component exactly if each leads to the other.
    #[test]
    fn components_are_what_leads_both_ways((count, edges) in any_graph()) {
        let component = components(count, &edges);
        for a in 0..count {
            for b in 0..count {
                let both = a == b || leads(count, &edges, a, b) && leads(count, &edges, b, a);
                prop_assert_eq!(component[a] == component[b], both);
            }
        }
    }

    /// Either an order that respects every edge, or cycles that are there, shortest first place first, each once; and
    /// without their closing edges fewer are left.
    #[test]
    fn order_or_cycles((count, edges) in any_graph()) {
        let cyclic = (0..count).any(|n| leads(count, &edges, n, n));
        match order(count, &edges) {
            Ok(ordered) => {
                prop_assert!(!cyclic);
                let mut places = ordered.clone();
                places.sort_unstable();
                prop_assert!(places.into_iter().eq(0..count));
                let at = |n: usize| ordered.iter().position(|m| *m == n);
                for (dependent, dependency) in edges {
                    prop_assert!(at(dependency) < at(dependent));
                }
            }
            Err(found) => {
                prop_assert!(cyclic);
                prop_assert!(!found.is_empty());
                for (index, cycle) in found.iter().enumerate() {
                    prop_assert!(cycle.len() > 1);
                    prop_assert_eq!(cycle.first(), cycle.last());
                    prop_assert!(cycle.windows(2).all(|step| edges.contains(&(step[0], step[1]))));
                    prop_assert!(cycle.iter().all(|place| *place >= cycle[0]));
                    let mut inner = cycle[1..].to_vec();
                    inner.sort_unstable();
                    inner.dedup();
                    prop_assert_eq!(inner.len(), cycle.len() - 1, "a place twice");
                    prop_assert!(!found[..index].contains(cycle));
                }
            }
        }
    }

    /// Tasks made together: accepted exactly if the graph has no cycle and no edge twice; all edges or none.
    #[test]
    fn new_tasks_are_accepted_if_their_graph_is_good((count, edges) in any_graph()) {
        let names: Vec<String> = (0..count).map(|n| format!("n{n}")).collect();
        let depends: Vec<Vec<String>> = (0..count)
            .map(|n| edges.iter().filter(|(from, _)| *from == n).map(|(_, to)| names[*to].clone()).collect())
            .collect();
        let tasks: Vec<NewTask<'_>> =
            (0..count).map(|n| NewTask { id: id(n), name: &names[n], depends_on: &depends[n] }).collect();
        let twice = edges.iter().enumerate().any(|(i, e)| edges[..i].contains(e));
        let good = !twice && !(0..count).any(|n| leads(count, &edges, n, n));
        match resolve_new(&tasks, &loaded()) {
            Ok(resolved) => {
                prop_assert!(good);
                prop_assert_eq!(resolved.len(), edges.len());
            }
            Err(problems) => {
                prop_assert!(!good);
                prop_assert!(problems.is_sorted_by_key(|p| (p.task, p.dependency)));
                for problem in problems {
                    prop_assert!(problem.dependency.is_some_and(|d| d < depends[problem.task].len()));
                }
            }
        }
    }

    /// Edges added one by one to a graph: each is taken exactly if it closes no cycle and is not there.
    #[test]
    fn added_edges_keep_the_graph_good((count, edges) in any_graph()) {
        let mut loaded = Loaded::new(OWNER, CONTRACT);
        for n in 0..count {
            loaded.insert(known(n, &format!("n{n}"), OWNER, CONTRACT, TaskStatus::Pending));
        }
        let mut graph: Vec<(usize, usize)> = Vec::new();
        for (from, to) in edges {
            let existing: Vec<TaskId> = graph.iter().filter(|e| e.0 == from).map(|e| id(e.1)).collect();
            let mut walk = Walk::new([id(to)]);
            while let Some(batch) = walk.batch(2) {
                let leading = graph.iter().filter(|e| batch.contains(&id(e.0)));
                walk.feed(leading.map(|e| (id(e.0), id(e.1))).collect::<Vec<_>>());
            }
            let depends_on = words(&[&format!("n{to}")]);
            let added = Added { task: id(from), existing: &existing, depends_on: &depends_on };
            let good = from != to && !graph.contains(&(from, to)) && !leads(count, &graph, to, from);
            let resolved = resolve_added(&added, &loaded, walk.into_edges());
            prop_assert_eq!(resolved.is_ok(), good);
            if good {
                graph.push((from, to));
                prop_assert!(!(0..count).any(|n| leads(count, &graph, n, n)));
            }
        }
    }
}

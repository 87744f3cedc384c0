//! The YAML file of a contract, as a person writes it:
//!
//! ```yaml
//! name: shop
//! repository: ../shop          # URL or path, relative to this file
//! base: main
//! agent: shell
//! limits: { concurrency: 4, max_retries: 3, wall_time: 30m, rerun_after: 2m, checkpoint_every: 5m, final_checkpoint: true }
//! tasks:
//!   schema: { plan: "mkdir migrations && ..." }
//!   types:  { plan_file: plans/types.md, depends_on: [schema], agent: claude }
//! ```
//!
//! The order of tasks is kept. Unknown keys, a task named twice, and a task with both or neither of `plan` and `plan_file`
//! are refused, saying where. [`batches`] cuts what is too much for one call, parents before children.

use std::{
    collections::{HashMap, HashSet},
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use prost::Message as _;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use super::error::{Error, Result};
use crate::{
    domain::task::{MAX_BATCH, MAX_PLAN_BYTES},
    wire::pb,
};

/// Bytes of tasks in one call: well below the 4 MiB that a gRPC server takes by default.
const MAX_CALL_BYTES: usize = 3 * 1024 * 1024;

/// A contract as its file says it, plans read.
#[derive(Clone, Debug, PartialEq)]
pub struct ContractFile {
    /// For people.
    pub name: String,
    /// As written; `None`: the repository around the current directory.
    pub repository: Option<String>,
    /// As written; empty: HEAD.
    pub base: String,
    /// What bounds it.
    pub limits: pb::ContractLimits,
    /// In the order of the file.
    pub tasks: Vec<pb::TaskSpec>,
    /// Relative paths in it are relative to this.
    pub folder: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    repository: Option<String>,
    #[serde(default)]
    base: String,
    #[serde(default)]
    agent: String,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    tasks: Tasks,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    concurrency: Option<u32>,
    max_retries: Option<u32>,
    wall_time: Option<Span>,
    rerun_after: Option<Span>,
    checkpoint_every: Option<Span>,
    final_checkpoint: Option<bool>,
}

#[derive(Default)]
struct Tasks(Vec<(String, Entry)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    plan: Option<String>,
    plan_file: Option<PathBuf>,
    #[serde(default)]
    depends_on: Words,
    agent: Option<String>,
    #[serde(default)]
    model: String,
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    labels: Words,
    #[serde(default)]
    setup: String,
    #[serde(default)]
    verify: String,
    #[serde(default)]
    copy_files: Words,
}

/// A list, or one word instead of a list of one.
#[derive(Default)]
struct Words(Vec<String>);

/// `30m`, or a number of seconds.
struct Span(Duration);

/// Reads a file, or standard input for `-`.
pub fn load(path: &Path, current_dir: &Path) -> Result<ContractFile> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(Error::io("read the contract from standard input"))?;
        return parse(&text, "standard input", "contract", current_dir);
    }
    let bytes = fs::read(path).map_err(|error| Error::usage(format!("cannot read {}: {error}", path.display())))?;
    let text = String::from_utf8(bytes)
        .map_err(|error| Error::usage(format!("{} is not UTF-8: {}", path.display(), error.utf8_error())))?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("contract");
    let folder = current_dir.join(path);
    parse(&text, &path.display().to_string(), stem, folder.parent().unwrap_or(current_dir))
}

/// Reads the text of a file. `origin` names it in messages, `name` is its contract's where it has none.
pub fn parse(text: &str, origin: &str, name: &str, folder: &Path) -> Result<ContractFile> {
    let bad = |problem: String| Error::usage(format!("{origin}: {problem}"));
    let file: File = serde_norway::from_str(text).map_err(|error| bad(error.to_string()))?;
    if file.tasks.0.is_empty() {
        return Err(bad("no tasks: write `tasks:` with at least one `NAME: { plan: ... }`".to_owned()));
    }
    let tasks = file.tasks.0.into_iter().map(|(name, entry)| {
        let plan = plan(&entry, folder).map_err(|problem| bad(format!("tasks.{name}: {problem}")))?;
        Ok(pb::TaskSpec {
            name,
            plan,
            agent: entry.agent.unwrap_or_else(|| file.agent.clone()),
            model: entry.model,
            priority: entry.priority,
            labels: entry.labels.0,
            depends_on: entry.depends_on.0,
            copy_files: entry.copy_files.0,
            setup_command: entry.setup,
            verify_command: entry.verify,
            ..pb::TaskSpec::default()
        })
    });
    Ok(ContractFile {
        name: file.name.unwrap_or_else(|| name.to_owned()),
        repository: file.repository,
        base: file.base,
        limits: pb::ContractLimits {
            concurrency: file.limits.concurrency,
            max_retries: file.limits.max_retries,
            wall_time: file.limits.wall_time.map(|span| duration(span.0)),
            rerun_after: file.limits.rerun_after.map(|span| duration(span.0)),
            cost_micro_usd: None,
            iterations: None,
            checkpoint_every: file.limits.checkpoint_every.map(|span| duration(span.0)),
            final_checkpoint: file.limits.final_checkpoint,
        },
        tasks: tasks.collect::<Result<_>>()?,
        folder: folder.to_owned(),
    })
}

/// Cuts tasks into calls of at most a thousand and a few MiB. One call keeps the order of the file, and leaves all
/// checking to the server. Several are ordered so that every task comes after those it depends on, since a call may name
/// only what exists by then.
pub fn batches(tasks: Vec<pb::TaskSpec>) -> Result<Vec<Vec<pb::TaskSpec>>> {
    let bytes: usize = tasks.iter().map(pb::TaskSpec::encoded_len).sum();
    if tasks.len() <= MAX_BATCH && bytes <= MAX_CALL_BYTES {
        return Ok(vec![tasks]);
    }
    let mut batches = vec![Vec::new()];
    let mut room = MAX_CALL_BYTES;
    for task in parents_first(tasks)? {
        let size = task.encoded_len();
        let full = batches.last().is_some_and(|batch| batch.len() == MAX_BATCH) || size > room;
        if full {
            batches.push(Vec::new());
            room = MAX_CALL_BYTES;
        }
        room = room.saturating_sub(size);
        if let Some(batch) = batches.last_mut() {
            batch.push(task);
        }
    }
    batches.retain(|batch| !batch.is_empty());
    Ok(batches)
}

/// A length of time as the protocol has it.
pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

fn plan(entry: &Entry, folder: &Path) -> std::result::Result<String, String> {
    let plan = match (&entry.plan, &entry.plan_file) {
        (Some(_), Some(_)) => return Err("has both `plan` and `plan_file`: keep one".to_owned()),
        (None, None) => return Err("has no plan: write `plan` or `plan_file`".to_owned()),
        (Some(plan), None) => plan.clone(),
        (None, Some(file)) => {
            let path = folder.join(file);
            let bytes =
                fs::read(&path).map_err(|error| format!("cannot read plan_file {}: {error}", path.display()))?;
            String::from_utf8(bytes)
                .map_err(|error| format!("plan_file {} is not UTF-8: {}", path.display(), error.utf8_error()))?
        }
    };
    if plan.len() > MAX_PLAN_BYTES {
        return Err(format!("its plan has {} bytes; at most {MAX_PLAN_BYTES} are taken", plan.len()));
    }
    Ok(plan)
}

fn parents_first(tasks: Vec<pb::TaskSpec>) -> Result<Vec<pb::TaskSpec>> {
    let index: HashMap<&str, usize> = tasks.iter().enumerate().map(|(i, task)| (task.name.as_str(), i)).collect();
    let mut waits_for = vec![0_usize; tasks.len()];
    let mut children = vec![Vec::new(); tasks.len()];
    let mut unknown = Vec::new();
    for (i, task) in tasks.iter().enumerate() {
        for name in task.depends_on.iter().collect::<HashSet<_>>() {
            match index.get(name.as_str()) {
                Some(parent) => {
                    waits_for[i] += 1;
                    children[*parent].push(i);
                }
                None => unknown.push(format!("tasks.{}.depends_on: there is no task {name}", task.name)),
            }
        }
    }
    if !unknown.is_empty() {
        unknown.sort();
        return Err(Error::usage(unknown.join("\n")));
    }
    let mut order: Vec<usize> = (0..tasks.len()).filter(|i| waits_for[*i] == 0).collect();
    let mut next = 0;
    while let Some(done) = order.get(next).copied() {
        next += 1;
        for child in &children[done] {
            waits_for[*child] -= 1;
            if waits_for[*child] == 0 {
                order.push(*child);
            }
        }
    }
    if order.len() < tasks.len() {
        return Err(Error::usage(format!("tasks wait for each other: {}", cycle(&tasks, &index, &waits_for))));
    }
    let mut tasks: Vec<Option<pb::TaskSpec>> = tasks.into_iter().map(Some).collect();
    Ok(order.into_iter().filter_map(|i| tasks[i].take()).collect())
}

/// One cycle among the tasks that still wait: every one of them has a parent that waits too, so walking up must repeat.
fn cycle(tasks: &[pb::TaskSpec], index: &HashMap<&str, usize>, waits_for: &[usize]) -> String {
    let mut path: Vec<usize> = waits_for.iter().position(|n| *n > 0).into_iter().collect();
    while let Some(last) = path.last().copied() {
        let parents = tasks[last].depends_on.iter().filter_map(|name| index.get(name.as_str()).copied());
        let Some(parent) = parents.into_iter().find(|parent| waits_for[*parent] > 0) else { break };
        if let Some(start) = path.iter().position(|i| *i == parent) {
            let mut names: Vec<&str> = path[start..].iter().map(|i| tasks[*i].name.as_str()).collect();
            names.push(&tasks[parent].name);
            return names.join(" -> ");
        }
        path.push(parent);
    }
    String::new()
}

// === reading YAML ===

impl<'de> Deserialize<'de> for Tasks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Tasks;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tasks by name: `NAME: { plan: ... }`")
            }

            fn visit_unit<E>(self) -> std::result::Result<Tasks, E> {
                Ok(Tasks::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Tasks, A::Error> {
                let mut tasks = Vec::new();
                let mut names = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format_args!("the task {name} is there twice: rename one")));
                    }
                    tasks.push((name, map.next_value()?));
                }
                Ok(Tasks(tasks))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a word or a list of words")]
        enum Either {
            One(String),
            Many(Vec<String>),
            None(()),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::One(word) => vec![word],
            Either::Many(words) => words,
            Either::None(()) => Vec::new(),
        }))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a time such as 90s, 30m or 2h")]
        enum Either {
            Seconds(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Seconds(seconds) => Ok(Self(Duration::from_secs(seconds))),
            Either::Text(text) => humantime::parse_duration(&text)
                .map(Self)
                .map_err(|_| D::Error::custom(format_args!("{text} is no time: write 90s, 30m or 2h"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ContractFile> {
        parse(text, "shop.yaml", "shop", Path::new("/plans"))
    }

    fn refused(text: &str) -> String {
        let error = read(text).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn everything_a_file_can_say_is_taken_in_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("plans")).unwrap();
        fs::write(dir.path().join("plans/ui.md"), "Build the page.\n").unwrap();
        let text = "
name: web shop
repository: ../shop
base: develop
agent: claude
limits: { concurrency: 4, max_retries: 1, wall_time: 30m, rerun_after: 0, checkpoint_every: 90s, final_checkpoint: false }
tasks:
  zebra: { plan: first in the file }
  alpha:
    plan: |
      mkdir a
      touch a/b
    depends_on: [zebra]
    agent: shell
    model: m1
    priority: 7
    labels: [gpu, linux]
    setup: npm ci
    verify: npm test
    copy_files: .env
  ui: { plan_file: plans/ui.md, depends_on: zebra }
";
        let file = parse(text, "shop.yaml", "shop", dir.path()).unwrap();
        let task = |name: &str, plan: &str| pb::TaskSpec {
            name: name.to_owned(),
            plan: plan.to_owned(),
            agent: "claude".to_owned(),
            ..pb::TaskSpec::default()
        };
        let expected = ContractFile {
            name: "web shop".to_owned(),
            repository: Some("../shop".to_owned()),
            base: "develop".to_owned(),
            limits: pb::ContractLimits {
                concurrency: Some(4),
                max_retries: Some(1),
                wall_time: Some(prost_types::Duration { seconds: 1800, nanos: 0 }),
                rerun_after: Some(prost_types::Duration { seconds: 0, nanos: 0 }),
                checkpoint_every: Some(prost_types::Duration { seconds: 90, nanos: 0 }),
                final_checkpoint: Some(false),
                ..pb::ContractLimits::default()
            },
            tasks: vec![
                task("zebra", "first in the file"),
                pb::TaskSpec {
                    depends_on: vec!["zebra".to_owned()],
                    agent: "shell".to_owned(),
                    model: "m1".to_owned(),
                    priority: 7,
                    labels: vec!["gpu".to_owned(), "linux".to_owned()],
                    setup_command: "npm ci".to_owned(),
                    verify_command: "npm test".to_owned(),
                    copy_files: vec![".env".to_owned()],
                    ..task("alpha", "mkdir a\ntouch a/b\n")
                },
                pb::TaskSpec { depends_on: vec!["zebra".to_owned()], ..task("ui", "Build the page.\n") },
            ],
            folder: dir.path().to_owned(),
        };
        assert_eq!(file, expected);
    }

    #[test]
    fn a_small_file_is_enough() {
        let file = read("tasks: { a: { plan: x } }").unwrap();
        assert_eq!((file.name.as_str(), file.repository, file.tasks.len()), ("shop", None, 1));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        insta::assert_snapshot!(refused("titel: x\ntasks: { a: { plan: x } }"), @"shop.yaml: unknown field `titel`, expected one of `name`, `repository`, `base`, `agent`, `limits`, `tasks`");
        insta::assert_snapshot!(refused("tasks:\n  a: { plan: x, depend_on: [b] }"), @"shop.yaml: tasks.a: unknown field `depend_on`, expected one of `plan`, `plan_file`, `depends_on`, `agent`, `model`, `priority`, `labels`, `setup`, `verify`, `copy_files` at line 2 column 17");
        insta::assert_snapshot!(refused("limits: { concurency: 3 }\ntasks: { a: { plan: x } }"), @"shop.yaml: limits: unknown field `concurency`, expected one of `concurrency`, `max_retries`, `wall_time`, `rerun_after`, `checkpoint_every`, `final_checkpoint` at line 1 column 11");
        insta::assert_snapshot!(refused("tasks:\n  a: { plan: x }\n  a: { plan: y }"), @"shop.yaml: tasks: the task a is there twice: rename one at line 2 column 3");
        insta::assert_snapshot!(refused("tasks: { a: { plan: x, plan_file: y.md } }"), @"shop.yaml: tasks.a: has both `plan` and `plan_file`: keep one");
        insta::assert_snapshot!(refused("tasks: { a: { agent: shell } }"), @"shop.yaml: tasks.a: has no plan: write `plan` or `plan_file`");
        insta::assert_snapshot!(refused("tasks: { a: }"), @"shop.yaml: tasks.a: has no plan: write `plan` or `plan_file`");
        insta::assert_snapshot!(refused("tasks: { a: { plan_file: no.md } }"), @"shop.yaml: tasks.a: cannot read plan_file /plans/no.md: No such file or directory (os error 2)");
        insta::assert_snapshot!(refused("name: x"), @"shop.yaml: no tasks: write `tasks:` with at least one `NAME: { plan: ... }`");
        insta::assert_snapshot!(refused("tasks: []"), @"shop.yaml: tasks: invalid type: sequence, expected tasks by name: `NAME: { plan: ... }` at line 1 column 8");
        insta::assert_snapshot!(refused("limits: { wall_time: soon }\ntasks: { a: { plan: x } }"), @"shop.yaml: limits: soon is no time: write 90s, 30m or 2h at line 1 column 9");
        insta::assert_snapshot!(refused("tasks: {"), @"shop.yaml: did not find expected node content at line 2 column 1, while parsing a flow node");
        insta::assert_snapshot!(refused(&format!("tasks: {{ a: {{ plan: {} }} }}", "x".repeat(MAX_PLAN_BYTES + 1))), @"shop.yaml: tasks.a: its plan has 524289 bytes; at most 524288 are taken");
    }

    fn named(name: &str, depends_on: &[String]) -> pb::TaskSpec {
        pb::TaskSpec { name: name.to_owned(), depends_on: depends_on.to_vec(), ..pb::TaskSpec::default() }
    }

    #[test]
    fn a_few_tasks_go_in_one_call_as_written() {
        let tasks = vec![named("b", &["a".to_owned()]), named("a", &[])];
        assert_eq!(batches(tasks.clone()).unwrap(), [tasks]);
    }

    /// Each task depends on the one after it in the file, so parents-first is the reverse.
    #[test]
    fn many_tasks_go_in_batches_with_parents_first() {
        let count = 2 * MAX_BATCH + 500;
        let tasks = (0..count).map(|i| {
            let parent = (i + 1 < count).then(|| format!("t{}", i + 1));
            named(&format!("t{i}"), parent.as_slice())
        });
        let batches = batches(tasks.collect()).unwrap();
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [MAX_BATCH, MAX_BATCH, 500]);
        let order: Vec<&str> = batches.iter().flatten().map(|task| task.name.as_str()).collect();
        assert_eq!((order[0], order[count - 1]), (format!("t{}", count - 1).as_str(), "t0"));
    }

    #[test]
    fn large_plans_are_cut_by_size() {
        let task = |i: usize| pb::TaskSpec { plan: "x".repeat(MAX_PLAN_BYTES), ..named(&format!("t{i}"), &[]) };
        let batches = batches((0..12).map(task).collect()).unwrap();
        assert!(
            batches.iter().all(|batch| batch.iter().map(pb::TaskSpec::encoded_len).sum::<usize>() <= MAX_CALL_BYTES)
        );
        assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), 12);
    }

    #[test]
    fn in_batches_a_cycle_and_an_unknown_name_are_found_here() {
        let mut tasks: Vec<pb::TaskSpec> = (0..MAX_BATCH).map(|i| named(&format!("t{i}"), &[])).collect();
        tasks.push(named("a", &["c".to_owned()]));
        tasks.push(named("b", &["a".to_owned()]));
        tasks.push(named("c", &["b".to_owned(), "t1".to_owned()]));
        insta::assert_snapshot!(batches(tasks.clone()).unwrap_err(), @"tasks wait for each other: a -> c -> b -> a");
        tasks.push(named("d", &["nowhere".to_owned()]));
        insta::assert_snapshot!(batches(tasks).unwrap_err(), @"tasks.d.depends_on: there is no task nowhere");
    }
}

//! What a person who waits knows of a contract: its tasks, as the watch has told them. Pure: steps go in, what is worth a
//! line comes out, and with it the answer to "is there anything left to wait for?".
//!
//! ```text
//!   snapshot ─┐
//!   changes ──┼─> Board ──> Happening (a line)
//!   re-reads ─┘     └─────> Outcome   (the end: all done, or nothing left that can be)
//! ```
//!
//! A task that waits for a failed one waits for ever; the server keeps it PENDING so that a retry can free it, so the end
//! of waiting is decided here.

use std::{collections::HashMap, time::Duration};

use super::view;
use crate::{
    domain::Timestamp,
    wire::pb::{self, PendingReason, TaskStatus},
};

/// A task as far as waiting for it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// Its name; its short id where it has none.
    pub name: String,
    /// Ids of what it depends on.
    pub depends_on: Vec<String>,
    /// Where it stands.
    pub status: TaskStatus,
    /// Why it is pending, as last read.
    pub pending: PendingReason,
    /// The reason for people, as last read; the failure once it failed.
    pub reason: String,
    /// Newest attempt.
    pub attempt: u32,
    /// Daemon of that attempt.
    pub daemon: String,
    /// Grows with every change.
    pub version: i64,
    /// Since when it stands where it stands; for a live one, since its agent started.
    pub since: Option<Timestamp>,
    /// How long the last attempt took, once it is final.
    pub took: Option<Duration>,
}

/// Something worth a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// When.
    pub at: Option<Timestamp>,
    /// To which task; empty for the contract.
    pub task: String,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// An attempt started its agent.
    Started {
        /// Where.
        daemon: String,
        /// Which.
        attempt: u32,
    },
    /// Complete.
    Done {
        /// From the start of its agent.
        took: Option<Duration>,
    },
    /// Not done.
    Failed {
        /// Why.
        why: String,
    },
    /// Cancelled.
    Cancelled {
        /// Why.
        why: String,
    },
    /// An attempt ended without a result, and there will be another.
    TriedAgain {
        /// Why.
        why: String,
    },
    /// A final task was opened again by a person.
    Reopened,
    /// Stopped on request.
    Paused,
    /// The agent asks a person.
    Asks {
        /// What.
        question: String,
    },
    /// Worth knowing, and no change of where it stands: its daemon has gone quiet, or is back, or warns.
    Note {
        /// What.
        text: String,
    },
    /// Something about the contract itself.
    Contract {
        /// The event's word, and its detail.
        text: String,
    },
}

/// How waiting ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every task is complete.
    Done,
    /// Nothing can go on by itself, and not everything is complete. Indexes of rows.
    Stuck {
        /// Those that failed.
        failed: Vec<usize>,
        /// Those that were cancelled.
        cancelled: Vec<usize>,
        /// Those that wait for one of these, directly or not.
        blocked: Vec<usize>,
    },
}

/// What a change did to the board.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Worth a line.
    pub happening: Option<Happening>,
    /// The task must be read again: it is new, or its dependencies changed.
    pub read_again: bool,
}

/// All tasks that are waited for.
#[derive(Debug, Default)]
pub struct Board {
    rows: Vec<Row>,
    index: HashMap<String, usize>,
    counts: HashMap<TaskStatus, usize>,
}

impl Board {
    /// The tasks, in the order they were first seen.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// How many stand there.
    pub fn count(&self, status: TaskStatus) -> usize {
        self.counts.get(&status).copied().unwrap_or_default()
    }

    /// DONE or MERGED.
    pub fn complete(&self) -> usize {
        self.count(TaskStatus::Done) + self.count(TaskStatus::Merged)
    }

    /// Those that something is being done for now.
    pub fn live(&self) -> usize {
        self.rows.len()
            - self.count(TaskStatus::Pending)
            - self.complete()
            - self.count(TaskStatus::Failed)
            - self.count(TaskStatus::Cancelled)
    }

    /// What a pending task waits for, as a person reads it: `after api, audit`; empty when it waits for no task.
    pub fn waits_for(&self, row: &Row) -> String {
        /// More are counted.
        const NAMED: usize = 3;
        if row.status != TaskStatus::Pending {
            return String::new();
        }
        let parents = row.depends_on.iter().filter_map(|id| self.index.get(id)).map(|i| &self.rows[*i]);
        let mut names: Vec<String> = Vec::new();
        let mut more = 0_usize;
        for parent in parents {
            match parent.status {
                TaskStatus::Done | TaskStatus::Merged => {}
                _ if names.len() == NAMED => more += 1,
                TaskStatus::Failed | TaskStatus::Cancelled => {
                    names.push(format!("{} ({})", parent.name, view::task_status(parent.status)));
                }
                _ => names.push(parent.name.clone()),
            }
        }
        match (names.is_empty(), more) {
            (true, _) => String::new(),
            (false, 0) => format!("after {}", names.join(", ")),
            (false, more) => format!("after {} and {more} more", names.join(", ")),
        }
    }

    /// Takes a task as read from the server.
    pub fn take(&mut self, task: &pb::Task) -> Option<Happening> {
        let spec = task.spec.as_ref();
        let name = spec.map(|spec| spec.name.clone()).filter(|name| !name.is_empty());
        let status = task.status();
        let start = view::time(task.start_time.as_ref());
        let end = view::time(task.end_time.as_ref());
        let row = Row {
            id: task.task_id.clone(),
            name: name.unwrap_or_else(|| view::short(&task.task_id)),
            depends_on: spec.map(|spec| spec.depends_on.clone()).unwrap_or_default(),
            status,
            pending: task.pending_reason(),
            reason: if task.error_message.is_empty() { task.reason.clone() } else { task.error_message.clone() },
            attempt: task.attempt,
            daemon: task.daemon_name.clone(),
            version: task.version,
            since: if is_final(status) { end } else { start.filter(|_| is_live(status)) },
            took: start.zip(end).map(|(start, end)| end.since(start)),
        };
        let Some(i) = self.index.get(&row.id).copied() else {
            let at = row.since;
            let happening = what(TaskStatus::Pending, 0, &row, &row.reason);
            self.insert(row);
            return self.rows.last().zip(happening).map(|(row, what)| Happening { at, task: row.name.clone(), what });
        };
        if row.version < self.rows[i].version {
            return None;
        }
        let happening = what(self.rows[i].status, self.rows[i].attempt, &row, &row.reason).map(|what| Happening {
            at: row.since,
            task: row.name.clone(),
            what,
        });
        self.replace(i, row);
        happening
    }

    /// Takes a change.
    pub fn change(&mut self, change: &pb::Change) -> Applied {
        let at = view::time(change.time.as_ref());
        if change.task_id.is_empty() {
            return Applied { happening: contract_happening(change, at), read_again: false };
        }
        let Some(i) = self.index.get(&change.task_id).copied() else {
            return Applied { happening: None, read_again: true };
        };
        let read_again = change.fields.iter().any(|field| field.ends_with("depends_on"));
        let old = &self.rows[i];
        let noted = note(change).map(|what| Happening { at, task: old.name.clone(), what });
        if change.version <= old.version {
            return Applied { happening: noted, read_again };
        }
        let status = if change.status() == TaskStatus::Unspecified { old.status } else { change.status() };
        let attempt = change.attempt.max(old.attempt);
        let starts = is_live(status) && (!is_live(old.status) || attempt > old.attempt || status != old.status);
        let mut row = Row {
            status,
            attempt,
            daemon: if change.daemon_name.is_empty() { old.daemon.clone() } else { change.daemon_name.clone() },
            version: change.version,
            pending: PendingReason::Unspecified,
            reason: if status == old.status && change.detail.is_empty() {
                old.reason.clone()
            } else {
                change.detail.clone()
            },
            ..old.clone()
        };
        if is_final(status) && !is_final(old.status) {
            row.took = old.since.zip(at).filter(|_| is_live(old.status)).map(|(since, at)| at.since(since));
            row.since = at;
        } else if starts && status == TaskStatus::Running {
            row.since = at;
        } else if status == TaskStatus::Pending || (starts && status == TaskStatus::Starting) {
            row.since = at;
            row.took = None;
        }
        let happening = what(old.status, old.attempt, &row, &change.detail).map(|what| Happening {
            at,
            task: row.name.clone(),
            what,
        });
        self.replace(i, row);
        Applied { happening: happening.or(noted), read_again }
    }

    /// Whether there is anything left to wait for. `None`: there is.
    pub fn outcome(&self) -> Option<Outcome> {
        let pending = self.count(TaskStatus::Pending);
        if self.rows.is_empty() || self.live() > 0 {
            return None;
        }
        if self.complete() == self.rows.len() {
            return Some(Outcome::Done);
        }
        let blocked = self.blocked();
        if blocked.len() < pending {
            return None;
        }
        let standing = |status| (0..self.rows.len()).filter(|i| self.rows[*i].status == status).collect();
        Some(Outcome::Stuck {
            failed: standing(TaskStatus::Failed),
            cancelled: standing(TaskStatus::Cancelled),
            blocked,
        })
    }

    /// Pending tasks that wait, directly or not, for one that failed or was cancelled, or that the server says do.
    fn blocked(&self) -> Vec<usize> {
        let mut children: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, row) in self.rows.iter().enumerate().filter(|(_, row)| row.status == TaskStatus::Pending) {
            for parent in &row.depends_on {
                children.entry(parent).or_default().push(i);
            }
        }
        let mut blocked = vec![false; self.rows.len()];
        let mut reached: Vec<usize> = Vec::new();
        for (i, row) in self.rows.iter().enumerate() {
            match row.status {
                TaskStatus::Failed | TaskStatus::Cancelled => reached.push(i),
                TaskStatus::Pending if row.pending == PendingReason::Blocked => {
                    blocked[i] = true;
                    reached.push(i);
                }
                _ => {}
            }
        }
        while let Some(i) = reached.pop() {
            for child in children.get(self.rows[i].id.as_str()).into_iter().flatten() {
                if !std::mem::replace(&mut blocked[*child], true) {
                    reached.push(*child);
                }
            }
        }
        (0..self.rows.len()).filter(|i| blocked[*i]).collect()
    }

    fn insert(&mut self, row: Row) {
        *self.counts.entry(row.status).or_default() += 1;
        self.index.insert(row.id.clone(), self.rows.len());
        self.rows.push(row);
    }

    fn replace(&mut self, i: usize, row: Row) {
        if let Some(count) = self.counts.get_mut(&self.rows[i].status) {
            *count -= 1;
        }
        *self.counts.entry(row.status).or_default() += 1;
        self.rows[i] = row;
    }
}

/// Something is being done for it.
pub fn is_live(status: TaskStatus) -> bool {
    match status {
        TaskStatus::Starting
        | TaskStatus::Running
        | TaskStatus::Paused
        | TaskStatus::AwaitingInput
        | TaskStatus::Finalizing => true,
        TaskStatus::Unspecified
        | TaskStatus::Pending
        | TaskStatus::Done
        | TaskStatus::Merged
        | TaskStatus::Failed
        | TaskStatus::Cancelled => false,
    }
}

/// Nothing changes it but a person.
pub fn is_final(status: TaskStatus) -> bool {
    matches!(status, TaskStatus::Done | TaskStatus::Merged | TaskStatus::Failed | TaskStatus::Cancelled)
}

/// What the way from one standing to another is worth saying.
fn what(old: TaskStatus, old_attempt: u32, row: &Row, detail: &str) -> Option<What> {
    let why = || detail.to_owned();
    match row.status {
        status if status == old && (status != TaskStatus::Running || row.attempt == old_attempt) => None,
        TaskStatus::Running => Some(What::Started { daemon: row.daemon.clone(), attempt: row.attempt }),
        TaskStatus::Done => Some(What::Done { took: row.took }),
        TaskStatus::Merged if old == TaskStatus::Done => None,
        TaskStatus::Merged => Some(What::Done { took: row.took }),
        TaskStatus::Failed => Some(What::Failed { why: why() }),
        TaskStatus::Cancelled => Some(What::Cancelled { why: why() }),
        TaskStatus::Pending if is_final(old) => Some(What::Reopened),
        TaskStatus::Pending => Some(What::TriedAgain { why: why() }),
        TaskStatus::Paused => Some(What::Paused),
        TaskStatus::AwaitingInput => Some(What::Asks { question: why() }),
        TaskStatus::Unspecified | TaskStatus::Starting | TaskStatus::Finalizing => None,
    }
}

/// What is worth a line although the task stands where it stood.
fn note(change: &pb::Change) -> Option<What> {
    let text = match change.event.as_str() {
        "task.disconnected" => format!("waits for its daemon: {}", change.detail),
        "task.revived" => "goes on: its daemon is back".to_owned(),
        "task.warning" => format!("warns: {}", change.detail),
        _ => return None,
    };
    Some(What::Note { text })
}

/// Creation and counters are no news; holds, releases and cancellations are.
fn contract_happening(change: &pb::Change, at: Option<Timestamp>) -> Option<Happening> {
    let word = change.event.strip_prefix("contract.").unwrap_or(&change.event);
    if !matches!(word, "held" | "released" | "cancelling" | "updated") {
        return None;
    }
    let text = if change.detail.is_empty() {
        format!("contract {word}")
    } else {
        format!("contract {word}: {}", change.detail)
    };
    Some(Happening { at, task: String::new(), what: What::Contract { text } })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A task of a test's contract; ids are the names.
    pub fn task(name: &str, depends_on: &[&str], status: TaskStatus, version: i64) -> pb::Task {
        pb::Task {
            task_id: name.to_owned(),
            spec: Some(pb::TaskSpec {
                name: name.to_owned(),
                depends_on: depends_on.iter().map(|name| (*name).to_owned()).collect(),
                ..pb::TaskSpec::default()
            }),
            status: status.into(),
            version,
            ..pb::Task::default()
        }
    }

    /// A change of such a task.
    pub fn change(secs: i64, task: &str, status: TaskStatus, version: i64, attempt: u32) -> pb::Change {
        pb::Change {
            time: Some(prost_types::Timestamp { seconds: secs, nanos: 0 }),
            task_id: task.to_owned(),
            task_name: task.to_owned(),
            status: status.into(),
            version,
            attempt,
            daemon_name: "d1".to_owned(),
            ..pb::Change::default()
        }
    }

    fn board(tasks: &[pb::Task]) -> Board {
        let mut board = Board::default();
        for task in tasks {
            board.take(task);
        }
        board
    }

    #[test]
    fn a_life_is_told_in_two_lines() {
        let mut board = board(&[task("types", &[], TaskStatus::Pending, 1)]);
        let mut told = |change| board.change(&change).happening.map(|happening| happening.what);
        assert_eq!(told(change(10, "types", TaskStatus::Starting, 2, 1)), None);
        let started = What::Started { daemon: "d1".to_owned(), attempt: 1 };
        assert_eq!(told(change(11, "types", TaskStatus::Running, 3, 1)), Some(started));
        assert_eq!(told(change(11, "types", TaskStatus::Running, 3, 1)), None, "the same change again");
        assert_eq!(told(change(19, "types", TaskStatus::Finalizing, 4, 1)), None);
        let done = What::Done { took: Some(Duration::from_secs(9)) };
        assert_eq!(told(change(20, "types", TaskStatus::Done, 5, 1)), Some(done));
        assert_eq!(board.outcome(), Some(Outcome::Done));
    }

    #[test]
    fn a_second_attempt_is_told_with_its_reason() {
        let mut board = board(&[task("types", &[], TaskStatus::Pending, 1)]);
        board.change(&change(10, "types", TaskStatus::Running, 2, 1));
        let again =
            pb::Change { detail: "the agent died".to_owned(), ..change(11, "types", TaskStatus::Pending, 3, 1) };
        let told = board.change(&again).happening.unwrap();
        assert_eq!(told.what, What::TriedAgain { why: "the agent died".to_owned() });
        assert_eq!(board.outcome(), None);
        let told = board.change(&change(12, "types", TaskStatus::Running, 4, 2)).happening.unwrap();
        assert_eq!(told.what, What::Started { daemon: "d1".to_owned(), attempt: 2 });
    }

    #[test]
    fn a_quiet_daemon_is_told_and_changes_nothing() {
        let mut board = board(&[task("types", &[], TaskStatus::Running, 3)]);
        let quiet = pb::Change {
            event: "task.disconnected".to_owned(),
            detail: "daemon d1 has gone quiet".to_owned(),
            ..change(10, "types", TaskStatus::Running, 3, 1)
        };
        let told = board.change(&quiet).happening.unwrap();
        assert_eq!(told.what, What::Note { text: "waits for its daemon: daemon d1 has gone quiet".to_owned() });
        assert_eq!(board.live(), 1);
    }

    #[test]
    fn waiting_ends_when_all_that_is_left_is_blocked() {
        let tasks = [
            task("a", &[], TaskStatus::Failed, 1),
            task("b", &["a"], TaskStatus::Pending, 1),
            task("c", &["b"], TaskStatus::Pending, 1),
            task("d", &[], TaskStatus::Running, 1),
            task("e", &["d"], TaskStatus::Pending, 1),
        ];
        let mut board = board(&tasks);
        assert_eq!(board.outcome(), None, "d runs");
        board.change(&change(1, "d", TaskStatus::Done, 2, 1));
        assert_eq!(board.outcome(), None, "e can start");
        board.change(&change(2, "e", TaskStatus::Done, 2, 1));
        let stuck = Outcome::Stuck { failed: vec![0], cancelled: vec![], blocked: vec![1, 2] };
        assert_eq!(board.outcome(), Some(stuck));
        board.change(&change(3, "a", TaskStatus::Pending, 2, 1));
        assert_eq!(board.outcome(), None, "somebody retried a");
    }

    #[test]
    fn new_tasks_and_new_edges_are_read_again() {
        let mut board = board(&[task("a", &[], TaskStatus::Pending, 1)]);
        assert!(board.change(&change(1, "b", TaskStatus::Pending, 1, 0)).read_again);
        let edge =
            pb::Change { fields: vec!["spec.depends_on".to_owned()], ..change(2, "a", TaskStatus::Pending, 2, 0) };
        assert!(board.change(&edge).read_again);
        assert_eq!(Board::default().outcome(), None, "a contract without tasks waits for them");
    }

    #[test]
    fn a_snapshot_after_a_break_tells_what_was_missed() {
        let mut board = board(&[task("a", &[], TaskStatus::Running, 3), task("b", &["a"], TaskStatus::Pending, 1)]);
        let told = board.take(&task("a", &[], TaskStatus::Done, 5)).unwrap();
        assert_eq!((told.task.as_str(), told.what), ("a", What::Done { took: None }));
        assert_eq!(board.take(&task("a", &[], TaskStatus::Running, 3)), None, "an older reading changes nothing");
        assert_eq!(board.complete(), 1);
    }
}

//! Why a task stands where it stands: the true reason, for programs and for people, and what somebody can do about it.
//! Computed when somebody asks, from what is known at one instant, so that it can never be out of date.
//!
//! The reasons are looked at in the order in which they would have to go away:
//!
//! ```text
//!   blocked ─> held ─> dependencies ─> previous attempt ─> backoff, usage limit ─> concurrency
//!           ─> no daemon ─> none matches ─> none accepts ─> none has a slot ─> ready
//! ```

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    attempt::{Attempt, AttemptState, Failure},
    checkpoint::Origin,
    contract::{Contract, Hold},
    daemon::{Card, Requirements},
    id::{DaemonId, TaskId},
    task::{Task, TaskState, TaskStatus, WaitReason},
    time::Timestamp,
};

/// Names that a sentence repeats before it counts the rest.
const NAMES_IN_A_SENTENCE: usize = 3;

/// Why a pending task does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PendingReason {
    /// About to be given to a daemon.
    Ready,
    /// Some dependency is not complete yet.
    Dependencies,
    /// A dependency has failed or was cancelled, or is itself blocked: it never starts by itself.
    Blocked,
    /// No attached daemon has the labels, profile and repository at once.
    NoMatchingDaemon,
    /// Daemons match, and all their slots are taken.
    NoFreeSlot,
    /// The contract runs as many attempts as it may.
    ConcurrencyLimit,
    /// Waits before the next attempt.
    Backoff,
    /// The agent's account is at its limit.
    UsageLimit,
    /// Somebody holds the contract or the task.
    Held,
    /// No daemon is attached at all.
    NoDaemon,
    /// Daemons match, and they take no new work.
    DaemonsNotAccepting,
    /// An earlier attempt is still being ended.
    PreviousAttempt,
}

/// A task that another waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// The task depended on.
    pub task: TaskId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub status: TaskStatus,
}

/// A daemon of the owner, with what it has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The daemon.
    pub id: DaemonId,
    /// What it says of itself.
    pub card: Card,
    /// A session of it is open.
    pub attached: bool,
    /// Gets no new work, by a person's wish.
    pub draining: bool,
    /// When it was last heard; coarse while it is attached.
    pub last_seen: Timestamp,
    /// It has executed the verdicts on what it had before, and may be given work.
    pub ready: bool,
    /// Its attempts that are not ENDED.
    pub live: u32,
}

/// What bears on a task at one instant.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// Its contract.
    pub contract: &'a Contract,
    /// Dependencies that are not complete; may be left empty where only the reason matters, not their names.
    pub unmet: &'a [Dependency],
    /// Tasks that have failed or were cancelled, on which it hangs directly or through others.
    pub blockers: &'a [Dependency],
    /// The owner's daemons.
    pub fleet: &'a [Member],
    /// The newest attempt, where it lives.
    pub attempt: Option<&'a Attempt>,
    /// Names of some tasks that hold the contract's places; may be left empty where only the reason matters.
    pub holders: &'a [String],
    /// What to call those who did something, where there is more to say than their word.
    pub actors: &'a HashMap<String, String>,
    /// Names of daemons that have something of the task, where not all of the fleet is at hand.
    pub names: &'a HashMap<DaemonId, String>,
    /// That instant.
    pub now: Timestamp,
}

/// Where a task stands and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explained {
    /// The reason, if it is pending.
    pub pending: Option<PendingReason>,
    /// The same for people: a fragment that reads on from the task's status; empty when there is nothing to add.
    pub text: String,
}

impl Explained {
    fn pending(reason: PendingReason, text: impl Into<String>) -> Self {
        Self { pending: Some(reason), text: text.into() }
    }

    fn standing(text: impl Into<String>) -> Self {
        Self { pending: None, text: text.into() }
    }
}

/// How one daemon fits a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// It could take the task now.
    pub fits: bool,
    /// What is missing, and what speaks against it, for people.
    pub lacks: Vec<String>,
}

/// Where the task stands and why.
pub fn explain(task: &Task, around: &Around<'_>) -> Explained {
    let ago = |since: Timestamp| span(around.now.since(since));
    if !task.status().is_final()
        && task.status() != TaskStatus::Pending
        && let Some(quiet) = quiet(task, around)
    {
        return Explained::standing(quiet);
    }
    match &task.state {
        TaskState::Pending { wait, held } => {
            let mut explained = pending(task, wait.as_ref(), held.as_ref(), around);
            explained.text.push_str(&goes_on(task, around));
            explained
        }
        TaskState::Starting { since } => Explained::standing(format!(
            "given to {} {} ago{}; its agent has not started yet{}",
            daemon_name(task, around),
            ago(*since),
            began(around),
            silent(task, around)
        )),
        TaskState::Running { since } => Explained::standing(format!(
            "its agent has been running on {} for {}{}{}",
            daemon_name(task, around),
            ago(*since),
            began(around),
            silent(task, around)
        )),
        TaskState::Paused { held } => {
            Explained::standing(format!("paused by {}{}", who(held, around), silent_one(task, around)))
        }
        TaskState::AwaitingInput { question, .. } => {
            Explained::standing(format!("its agent asks: {question}{}", silent_one(task, around)))
        }
        TaskState::Finalizing { result, since } => {
            let size = result.pack.as_ref().map_or(String::new(), |pack| format!(" ({} bytes)", pack.bytes));
            Explained::standing(format!(
                "its agent has ended well; its result{size} has been on the way from {} for {}{}",
                daemon_name(task, around),
                ago(*since),
                silent(task, around)
            ))
        }
        TaskState::Done { .. } | TaskState::Merged { .. } => Explained::default(),
        TaskState::Failed { failure, .. } => Explained::standing(failed(failure)),
        TaskState::Cancelled { reason, by, .. } if reason.is_empty() => {
            Explained::standing(format!("cancelled by {}", actor(by, around)))
        }
        TaskState::Cancelled { reason, by, .. } => {
            Explained::standing(format!("cancelled by {}: {reason}", actor(by, around)))
        }
    }
}

/// That nothing is heard of its daemon, and until when that is borne.
fn quiet(task: &Task, around: &Around<'_>) -> Option<String> {
    let AttemptState::Disconnected { since, rerun_at, was } = &around.attempt?.state else { return None };
    let only_copy = match **was {
        AttemptState::Finalizing { .. } => ", with the only copy of its result,",
        _ => "",
    };
    Some(format!(
        "its daemon {}{only_copy} has been quiet for {}; it is given up in {} if it does not come back",
        daemon_name(task, around),
        span(around.now.since(unheard(task, around).map_or(*since, |heard| heard.min(*since)))),
        span(rerun_at.since(around.now))
    ))
}

/// When a daemon that is not attached was last heard.
fn unheard(task: &Task, around: &Around<'_>) -> Option<Timestamp> {
    let member = around.fleet.iter().find(|member| Some(member.id) == task.daemon)?;
    (!member.attached).then_some(member.last_seen)
}

/// That nothing is heard of the daemon that was named, where it is not yet taken for lost.
fn silent(task: &Task, around: &Around<'_>) -> String {
    unheard_for(task, around).map_or_else(String::new, |silence| format!("; that daemon {silence}"))
}

/// The same of a daemon that was not named.
fn silent_one(task: &Task, around: &Around<'_>) -> String {
    let its = |silence| format!("; its daemon {} {silence}", daemon_name(task, around));
    unheard_for(task, around).map_or_else(String::new, its)
}

fn unheard_for(task: &Task, around: &Around<'_>) -> Option<String> {
    let heard = unheard(task, around)?;
    Some(format!("is not attached, and was last heard {} ago", span(around.now.since(heard))))
}

/// What the attempt that lives went on from.
fn began(around: &Around<'_>) -> String {
    match around.attempt.map(|attempt| &attempt.origin) {
        None | Some(Origin::Base) => String::new(),
        Some(Origin::Worktree { attempt }) => format!(", in the worktree of attempt {attempt}"),
        Some(Origin::Checkpoint { id }) => format!(", from checkpoint {}", id.short()),
    }
}

/// What the next attempt goes on from, and where it goes first.
fn goes_on(task: &Task, around: &Around<'_>) -> String {
    let from = match (&task.here, task.checkpoint) {
        (Some(here), _) => format!("; it goes on in its worktree on {}", name_of(here.daemon, around)),
        (None, Some(checkpoint)) => format!("; it goes on from checkpoint {}", checkpoint.short()),
        (None, None) => String::new(),
    };
    match task.prefer {
        Some(daemon) => format!("{from}; on {} first", name_of(daemon, around)),
        None => from,
    }
}

fn pending(task: &Task, wait: Option<&super::task::Wait>, held: Option<&Hold>, around: &Around<'_>) -> Explained {
    use PendingReason as Why;

    let contract = around.contract;
    if !around.blockers.is_empty() {
        let blockers = names(around.blockers.iter().map(|it| format!("{} ({})", it.name, it.status.word())));
        return Explained::pending(Why::Blocked, format!("never starts by itself: it hangs on {blockers}"));
    }
    if let Some(cancelled) = &contract.cancelled {
        return Explained::pending(
            Why::Held,
            format!("its contract was cancelled by {}", actor(&cancelled.by, around)),
        );
    }
    if let Some(hold) = held {
        return Explained::pending(Why::Held, format!("held by {}", who(hold, around)));
    }
    if let Some(hold) = &contract.held {
        return Explained::pending(Why::Held, format!("its contract is held by {}", who(hold, around)));
    }
    if task.unmet > 0 {
        let text = if around.unmet.is_empty() {
            format!("waits for {} {}", task.unmet, if task.unmet == 1 { "dependency" } else { "dependencies" })
        } else {
            format!("waits for {}", names(around.unmet.iter().map(|it| format!("{} ({})", it.name, it.status.word()))))
        };
        return Explained::pending(Why::Dependencies, text);
    }
    if let Some(attempt) = task.ending {
        let since = around.attempt.and_then(|attempt| ending_since(&attempt.state));
        let since = since.map(|since| format!(", for {}", span(around.now.since(since)))).unwrap_or_default();
        return Explained::pending(
            Why::PreviousAttempt,
            format!("attempt {attempt} is still being ended on {}{since}", daemon_name(task, around)),
        );
    }
    if let Some(wait) = wait.filter(|wait| wait.until > around.now) {
        let left = span(wait.until.since(around.now));
        let last = task.tries.last_failure.as_ref().map(|failure| format!(", after: {}", failure.message));
        let last = last.unwrap_or_default();
        return match wait.why {
            WaitReason::Backoff => Explained::pending(Why::Backoff, format!("tried again in {left}{last}")),
            WaitReason::UsageLimit => Explained::pending(
                Why::UsageLimit,
                format!("the agent's account is at its usage limit for another {left}{last}"),
            ),
        };
    }
    if contract.live >= contract.limits.concurrency {
        let (live, limit) = (contract.live, contract.limits.concurrency);
        let named = around.holders.len().min(NAMES_IN_A_SENTENCE);
        let holders = match (named, live as usize - named.min(live as usize)) {
            (0, _) => String::new(),
            (_, 0) => format!(": {}", around.holders[..named].join(", ")),
            (_, more) => format!(": {} and {more} more", around.holders[..named].join(", ")),
        };
        return Explained::pending(
            Why::ConcurrencyLimit,
            format!("its contract runs {live} attempts and may run {limit}{holders}"),
        );
    }
    placement(task, around)
}

/// The reason that lies with the fleet.
fn placement(task: &Task, around: &Around<'_>) -> Explained {
    use PendingReason as Why;

    let needs = requirements(task);
    let attached: Vec<&Member> = around.fleet.iter().filter(|member| member.attached).collect();
    if attached.is_empty() {
        let text = match around.fleet.len() {
            0 => "no daemon has ever attached".to_owned(),
            1 => format!("the only daemon, {}, is not attached", around.fleet[0].card.name),
            count => format!("none of the {count} daemons is attached"),
        };
        return Explained::pending(Why::NoDaemon, text);
    }
    let matching: Vec<&Member> =
        attached.iter().copied().filter(|member| needs.lacks(&member.card).is_empty()).collect();
    if matching.is_empty() {
        // The nearest first: what is least is changed most easily.
        let mut lacks: Vec<_> =
            (attached.iter()).map(|member| (needs.lacks(&member.card), member.card.name.as_str())).collect();
        lacks.sort_by_key(|(lacks, name)| (lacks.len(), *name));
        let lacks = names(lacks.iter().map(|(lacks, name)| format!("{name} lacks {}", lacks.join(", "))));
        return Explained::pending(Why::NoMatchingDaemon, lacks);
    }
    let accepting: Vec<&Member> = matching.iter().copied().filter(|member| refuses(member).is_none()).collect();
    if accepting.is_empty() {
        let why =
            names(matching.iter().map(|member| {
                format!("{} takes no new work: {}", member.card.name, refuses(member).unwrap_or_default())
            }));
        return Explained::pending(Why::DaemonsNotAccepting, why);
    }
    if accepting.iter().all(|member| member.live >= member.card.slots) {
        let taken = names(accepting.iter().map(|m| format!("{} ({} of {})", m.card.name, m.live, m.card.slots)));
        return Explained::pending(Why::NoFreeSlot, format!("all slots are taken on {taken}"));
    }
    Explained::pending(Why::Ready, "about to be given to a daemon")
}

/// How this daemon fits the task.
pub fn fit(task: &Task, member: &Member, now: Timestamp) -> Fit {
    let mut lacks = hindrances(task, member, now);
    let fits = lacks.is_empty();
    // Avoidance only changes the order of candidates, so it is said without being in the way.
    let avoided = task.tries.avoid.iter().filter(|avoid| avoid.daemon == member.id && avoid.until > now);
    lacks.extend(
        avoided.map(|avoid| format!("tried last for another {}, after a failure there", span(avoid.until.since(now)))),
    );
    Fit { fits, lacks }
}

/// Everything that keeps this daemon from taking the task now.
pub fn hindrances(task: &Task, member: &Member, now: Timestamp) -> Vec<String> {
    let card = &member.card;
    let mut lacks = Vec::new();
    if !member.attached {
        lacks.push(format!("not attached, last heard {} ago", span(now.since(member.last_seen))));
    }
    lacks.extend(refuses(member));
    lacks.extend(requirements(task).lacks(card).into_iter().map(|what| format!("lacks {what}")));
    if member.live >= card.slots {
        lacks.push(format!("no free slot ({} of {} taken)", member.live, card.slots));
    }
    lacks
}

/// What somebody can do about it; empty when it needs nothing.
pub fn actions(task: &Task, explained: &Explained, around: &Around<'_>) -> Vec<String> {
    let id = task.id.short();
    match explained.pending {
        Some(PendingReason::Blocked) => around
            .blockers
            .iter()
            .take(NAMES_IN_A_SENTENCE)
            .map(|it| format!("try `{}` again: makima task retry {}", it.name, it.task.short()))
            .chain([
                format!("drop a dependency: makima task deps rm {id} DEPENDENCY"),
                format!("give it up: makima task cancel {id}"),
            ])
            .collect(),
        Some(PendingReason::Held) if around.contract.cancelled.is_some() => Vec::new(),
        Some(PendingReason::Held) if matches!(&task.state, TaskState::Pending { held: Some(_), .. }) => {
            vec![format!("try it again in spite of the hold: makima task retry {id}")]
        }
        Some(PendingReason::Held) => {
            vec![format!("release the contract: makima contract release {}", around.contract.id)]
        }
        Some(PendingReason::NoDaemon) => vec!["start a daemon: makima daemon run".to_owned()],
        Some(PendingReason::NoMatchingDaemon) => {
            let needs = requirements(task);
            let mut wants = vec![format!("agent profile `{}`", needs.agent)];
            wants.extend(needs.labels.iter().map(|label| format!("label `{label}`")));
            wants.extend(needs.path.iter().map(|path| format!("repository `{path}`")));
            let mut ways = vec![format!("start a daemon that has {}", wants.join(", "))];
            ways.extend(
                needs_less(&needs, around)
                    .map(|(change, option)| format!("{change}: makima task update {id} {option}")),
            );
            ways
        }
        Some(PendingReason::DaemonsNotAccepting) => around
            .fleet
            .iter()
            .filter(|member| member.draining && requirements(task).lacks(&member.card).is_empty())
            .take(NAMES_IN_A_SENTENCE)
            .map(|member| format!("let it take work again: makima daemon undrain {}", member.card.name))
            .collect(),
        Some(PendingReason::Backoff | PendingReason::UsageLimit) => {
            vec![format!("try it at once: makima task retry {id}")]
        }
        Some(PendingReason::PreviousAttempt) => {
            vec![format!("do not wait for that daemon: makima task force-release {id} --reason TEXT")]
        }
        Some(
            PendingReason::Ready
            | PendingReason::Dependencies
            | PendingReason::NoFreeSlot
            | PendingReason::ConcurrencyLimit,
        ) => Vec::new(),
        None => match task.status() {
            TaskStatus::Failed | TaskStatus::Cancelled => {
                let mut ways = Vec::new();
                let may_be_tried = around.contract.cancelled.is_none();
                if may_be_tried {
                    ways.push(format!("try it again: makima task retry {id}"));
                    ways.push(format!(
                        "where that would fail as before, ask something else of it first: makima task update {id}"
                    ));
                }
                if task.checkpoint.is_some() {
                    if may_be_tried {
                        ways.push(format!(
                            "from an earlier checkpoint: makima task checkpoints {id}, then makima task resume {id} --from CHECKPOINT"
                        ));
                    }
                    ways.push(format!("have its work in a directory: makima task restore {id} --into DIR"));
                }
                ways
            }
            _ if quiet(task, around).is_some() => {
                let from = match task.checkpoint {
                    Some(_) => "go on elsewhere at once, from its last checkpoint",
                    None => "begin anew elsewhere at once (the server has no checkpoint of it yet)",
                };
                vec![format!("{from}: makima task reassign {id}")]
            }
            _ => Vec::new(),
        },
    }
}

/// Changes of a task after which the daemons that are attached lack less.
fn needs_less(needs: &Requirements, around: &Around<'_>) -> impl Iterator<Item = (String, String)> {
    let cards = || around.fleet.iter().filter(|member| member.attached).map(|member| &member.card);
    let agents: BTreeSet<&str> = cards().flat_map(|card| &card.profiles).map(|profile| profile.name.as_str()).collect();
    let has_agent = agents.contains(needs.agent.as_str()) || agents.is_empty();
    let agent = (!has_agent).then(|| {
        let there: Vec<&str> = agents.into_iter().collect();
        let option = match there[..] {
            [only] => format!("--agent {only}"),
            _ => "--agent AGENT".to_owned(),
        };
        (format!("or ask an agent that is there ({})", there.join(", ")), option)
    });
    let has_labels = cards().any(|card| needs.labels.iter().all(|label| card.labels.contains(label)));
    agent.into_iter().chain((!has_labels).then(|| ("or ask for other labels".to_owned(), "--label LABEL".to_owned())))
}

/// What the task needs of a daemon.
pub fn requirements(task: &Task) -> Requirements {
    Requirements::new(&task.spec.agent, &task.spec.labels, &task.spec.repository)
}

/// Why the daemon takes no new work at all.
fn refuses(member: &Member) -> Option<String> {
    if member.draining {
        Some("draining".to_owned())
    } else if !member.card.not_accepting.is_empty() {
        Some(member.card.not_accepting.clone())
    } else if member.attached && !member.ready {
        Some("settling what it had before it attached".to_owned())
    } else {
        None
    }
}

fn daemon_name(task: &Task, around: &Around<'_>) -> String {
    task.daemon.map_or_else(|| "a daemon".to_owned(), |id| name_of(id, around))
}

fn name_of(daemon: DaemonId, around: &Around<'_>) -> String {
    let member = around.fleet.iter().find(|member| member.id == daemon).map(|member| &member.card.name);
    member.or_else(|| around.names.get(&daemon)).map_or_else(|| "a daemon".to_owned(), String::clone)
}

/// Since when an attempt is being ended.
fn ending_since(state: &AttemptState) -> Option<Timestamp> {
    match state {
        AttemptState::Ending { since, .. } => Some(*since),
        AttemptState::Disconnected { was, .. } => ending_since(was),
        _ => None,
    }
}

fn failed(failure: &Failure) -> String {
    if failure.message.is_empty() { format!("{:?}", failure.class) } else { failure.message.clone() }
}

fn who(hold: &Hold, around: &Around<'_>) -> String {
    let by = actor(&hold.by, around);
    if hold.reason.is_empty() { by.to_owned() } else { format!("{by}: {}", hold.reason) }
}

fn actor<'a>(word: &'a str, around: &Around<'a>) -> &'a str {
    around.actors.get(word).map_or(word, String::as_str)
}

fn names(all: impl ExactSizeIterator<Item = String>) -> String {
    let count = all.len();
    let mut line = all.take(NAMES_IN_A_SENTENCE).collect::<Vec<_>>().join(", ");
    if count > NAMES_IN_A_SENTENCE {
        line.push_str(&format!(" and {} more", count - NAMES_IN_A_SENTENCE));
    }
    line
}

/// A span in the unit that a person would use.
fn span(span: Duration) -> String {
    let secs = span.as_secs();
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7_199 => format!("{} min", secs / 60),
        7_200..=172_799 => format!("{} h", secs / 3_600),
        _ => format!("{} days", secs / 86_400),
    }
}

#[cfg(test)]
mod tests;

//! What a returning daemon is to do with what it has.
//!
//! A daemon that attaches lists every attempt it knows of. [`reconcile`] holds the list against what the server knows and
//! gives a verdict on each, and says what the silence about the others means. Nothing was sent to the daemon in this session
//! before its list was made, so what it does not list is not in its journal, and nothing of it runs there.
//!
//! ```text
//!   server's attempts ─┐                 ┌─> verdicts     in Welcome, one for each listed attempt
//!                      ├─> reconcile() ──┼─> accepted     ASSIGNED and listed: its answer was lost
//!   daemon's inventory ┘                 ├─> revived      DISCONNECTED, or given up and not replaced, and it is back
//!                                        ├─> interrupted  accepted or running here, not listed there: try again
//!                                        ├─> recovered    its agent is gone there: go on from what it has done
//!                                        └─> gone         ENDING here, not listed there: its end is confirmed
//! ```
//!
//! The rules, and why:
//!
//! * An ASSIGNED attempt that is not listed is not interrupted: its command was never persisted, and is sent again.
//! * A fenced attempt is FENCED whatever it is doing: its place is taken, its work is kept. Only when all that is left is an
//!   end which the server has already heard is it FORGET: there is nothing to keep that is not known.
//! * A number with another attempt id, and an attempt of another daemon or owner, are some other server's word (a database
//!   put back from a copy, a state directory that was cloned): SALVAGE, which keeps the work and reveals nothing.
//! * An attempt that was given up because its daemon was lost, and is not fenced, has no successor yet. If it still lives
//!   it goes on, and if it has a report it counts: until a newer attempt exists a quiet daemon is not yet a rerun.
//! * An attempt that is over by its own report but said to be running is FENCED: a journal that fell back in time must not
//!   let an agent work on, and what it did is kept.
//! * INTERRUPTED on the daemon ends the attempt here and now: RESUME_HERE where its worktree is intact, and the next attempt
//!   goes on in it; RESTORE where it is not, and the next one begins from a checkpoint. The `RecoveryDetected` message that
//!   says the same comes to the same, whichever arrives first. One that was given up and has not been replaced is taken
//!   back for that: an intact worktree is more than a checkpoint.
//! * A FINALIZING attempt is listed for as long as its result is on its way: one that is not listed is INTERRUPTED.

use std::collections::{HashMap, HashSet};

use super::{
    attempt::{Attempt, AttemptState, FailureClass},
    id::{AttemptRef, DaemonId, OwnerId},
    report::{InventoryItem, InventoryState},
};

/// What a daemon is to do with an attempt it knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Go on.
    Keep,
    /// End it; report the end.
    Cancel,
    /// A new attempt in the same worktree follows as a command.
    ResumeHere,
    /// A new attempt from a checkpoint follows as a command.
    Restore,
    /// Send the terminal report again.
    ReportAgain,
    /// A newer attempt has its place: end it, keep its work.
    Fenced,
    /// The server does not know it: end it, keep its work for a person.
    Salvage,
    /// The server knows that it is over and needs nothing more: forget it, keep the worktree.
    Forget,
}

/// What comes of an attach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// One for each listed attempt, in the order of the list.
    pub verdicts: Vec<(AttemptRef, Verdict)>,
    /// ASSIGNED and listed: they are in the daemon's journal, although its answer has not come.
    pub accepted: Vec<AttemptRef>,
    /// DISCONNECTED ones whose daemon is back (they are again what they were; an ASSIGNED one gets a new time to be
    /// answered by), and ones ENDED as daemon lost that were not replaced and are still there.
    pub revived: Vec<AttemptRef>,
    /// Accepted or running for the server, unknown to the daemon.
    pub interrupted: Vec<AttemptRef>,
    /// Their agents are gone; whether the worktree is intact, and where it is.
    pub recovered: Vec<(AttemptRef, bool, String)>,
    /// ENDING or fenced for the server, unknown to the daemon: no process is left, their slots are free. Commands for them
    /// that are unanswered are dropped with them.
    pub gone: Vec<AttemptRef>,
}

/// Holds what the daemon lists against what the server knows: `known` are all attempts of this daemon that are not ENDED,
/// and every attempt that the inventory names by task and number, whatever its state, daemon and owner.
pub fn reconcile(daemon: DaemonId, owner: OwnerId, known: &[Attempt], inventory: &[InventoryItem]) -> Reconciled {
    let by_name: HashMap<AttemptRef, &Attempt> = known
        .iter()
        .filter(|attempt| attempt.daemon == daemon && attempt.owner == owner)
        .map(|attempt| (attempt.reference(), attempt))
        .collect();
    let mut reconciled = Reconciled::default();
    let mut listed = HashSet::with_capacity(inventory.len());
    for item in inventory {
        if !listed.insert(item.attempt) {
            continue;
        }
        let word = by_name.get(&item.attempt).map_or(Word::only(Verdict::Salvage), |attempt| verdict(attempt, item));
        reconciled.verdicts.push((item.attempt, word.verdict));
        if word.accepted {
            reconciled.accepted.push(item.attempt);
        }
        if word.revived {
            reconciled.revived.push(item.attempt);
        }
        if matches!(word.verdict, Verdict::ResumeHere | Verdict::Restore) {
            reconciled.recovered.push((item.attempt, item.worktree_intact, item.worktree.clone()));
        }
    }
    for attempt in known {
        let name = attempt.reference();
        // Asking both keeps the order of `known`, and names each attempt once.
        if !by_name.contains_key(&name) || !listed.insert(name) {
            continue;
        }
        match silence(attempt) {
            Silence::Nothing => {}
            Silence::Revived => reconciled.revived.push(name),
            Silence::Interrupted => reconciled.interrupted.push(name),
            Silence::Gone => reconciled.gone.push(name),
        }
    }
    reconciled
}

/// What is said about one listed attempt.
#[derive(Clone, Copy)]
struct Word {
    verdict: Verdict,
    accepted: bool,
    revived: bool,
}

impl Word {
    fn only(verdict: Verdict) -> Self {
        Self { verdict, accepted: false, revived: false }
    }
}

fn verdict(attempt: &Attempt, item: &InventoryItem) -> Word {
    use InventoryState::{Accepted, Ending, Interrupted, Reported, Running};

    let (was, disconnected) = settled(&attempt.state);
    if attempt.fenced {
        let over = matches!(item.state, Ending | Reported | Interrupted);
        let verdict = if over && heard(was) { Verdict::Forget } else { Verdict::Fenced };
        return Word { revived: disconnected, ..Word::only(verdict) };
    }
    let alive = match item.state {
        Accepted | Running | Ending => Verdict::Keep,
        Reported => Verdict::ReportAgain,
        Interrupted if item.worktree_intact => Verdict::ResumeHere,
        Interrupted => Verdict::Restore,
    };
    match was {
        AttemptState::Assigned { .. } => Word { verdict: alive, accepted: true, revived: disconnected },
        AttemptState::Accepted { .. } | AttemptState::Running { .. } => {
            Word { revived: disconnected, ..Word::only(alive) }
        }
        AttemptState::Ending { .. } => {
            let verdict = match item.state {
                Accepted | Running | Ending | Interrupted => Verdict::Cancel,
                Reported => Verdict::ReportAgain,
            };
            Word { revived: disconnected, ..Word::only(verdict) }
        }
        // What has a result and is on its way needs nothing; what has none any more is said so by RESTORE.
        AttemptState::Finalizing { .. } => {
            let verdict = if item.state == Reported { Verdict::Keep } else { alive };
            Word { revived: disconnected, ..Word::only(verdict) }
        }
        AttemptState::Ended { outcome: Err(failure), .. } if failure.class == FailureClass::DaemonLost => {
            match item.state {
                Accepted | Running | Ending | Reported => Word { revived: true, ..Word::only(alive) },
                Interrupted if item.worktree_intact => Word { revived: true, ..Word::only(alive) },
                Interrupted => Word::only(Verdict::Forget),
            }
        }
        AttemptState::Ended { .. } => match item.state {
            Accepted | Running => Word::only(Verdict::Fenced),
            Ending | Reported | Interrupted => Word::only(Verdict::Forget),
        },
        // `settled` answers no DISCONNECTED; KEEP harms nothing.
        AttemptState::Disconnected { .. } => Word::only(Verdict::Keep),
    }
}

/// Its end was told by its own report: nobody else says such things of an attempt.
fn heard(state: &AttemptState) -> bool {
    use FailureClass as F;
    let AttemptState::Ended { outcome, .. } = state else { return false };
    match outcome.as_ref().map_err(|failure| failure.class) {
        Ok(_) => true,
        Err(
            F::AgentCrashed
            | F::VerifyFailed
            | F::SetupFailed
            | F::Authentication
            | F::UsageLimit
            | F::AgentError
            | F::Timeout
            | F::Repository,
        ) => true,
        Err(F::DaemonLost | F::WorktreeLost | F::Recovered | F::Refused | F::Cancelled) => false,
    }
}

/// What it means that an attempt is not listed.
enum Silence {
    Nothing,
    Revived,
    Interrupted,
    Gone,
}

fn silence(attempt: &Attempt) -> Silence {
    let (was, disconnected) = settled(&attempt.state);
    match was {
        AttemptState::Ended { .. } => Silence::Nothing,
        _ if attempt.fenced => Silence::Gone,
        AttemptState::Assigned { .. } if disconnected => Silence::Revived,
        AttemptState::Assigned { .. } => Silence::Nothing,
        AttemptState::Accepted { .. } | AttemptState::Running { .. } | AttemptState::Finalizing { .. } => {
            Silence::Interrupted
        }
        AttemptState::Ending { .. } => Silence::Gone,
        AttemptState::Disconnected { .. } => Silence::Nothing,
    }
}

/// The state without the disconnection, and whether there was one.
fn settled(state: &AttemptState) -> (&AttemptState, bool) {
    let (mut state, mut disconnected) = (state, false);
    while let AttemptState::Disconnected { was, .. } = state {
        (state, disconnected) = (was, true);
    }
    (state, disconnected)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use uuid::Uuid;

    use super::*;
    use crate::domain::{
        Timestamp,
        attempt::{Failure, TaskResult, Usage},
        checkpoint::Origin,
        id::{AttemptId, ContractId, TaskId},
    };

    const HERE: DaemonId = DaemonId(Uuid::from_u128(1));
    const THERE: DaemonId = DaemonId(Uuid::from_u128(2));
    const OWNER: OwnerId = OwnerId(Uuid::from_u128(3));
    const NOW: Timestamp = Timestamp::from_secs(1_000);

    const STATES: [InventoryState; 5] = [
        InventoryState::Accepted,
        InventoryState::Running,
        InventoryState::Ending,
        InventoryState::Reported,
        InventoryState::Interrupted,
    ];

    fn damaged(attempt: &Attempt) -> InventoryItem {
        InventoryItem { worktree_intact: false, ..item(attempt, InventoryState::Interrupted) }
    }

    fn attempt(state: AttemptState, fenced: bool) -> Attempt {
        Attempt {
            task: TaskId(Uuid::from_u128(10)),
            number: 2,
            id: AttemptId(Uuid::from_u128(20)),
            contract: ContractId(Uuid::from_u128(30)),
            owner: OWNER,
            daemon: HERE,
            state,
            fenced,
            branch: String::new(),
            worktree: String::new(),
            base_commit: String::new(),
            agent_version: String::new(),
            agent_session_id: String::new(),
            last_message: String::new(),
            usage: Usage::default(),
            warnings: Vec::new(),
            wall_time: None,
            assigned: NOW,
            started: None,
            output_bytes: 0,
            commands: Vec::new(),
            origin: Origin::Base,
            checkpoint: None,
            checkpointed: None,
            checkpoint_failed: None,
        }
    }

    fn item(attempt: &Attempt, state: InventoryState) -> InventoryItem {
        InventoryItem { attempt: attempt.reference(), state, worktree: String::new(), worktree_intact: true }
    }

    fn assigned() -> AttemptState {
        AttemptState::Assigned { answer_by: NOW, spawn: None }
    }

    fn accepted() -> AttemptState {
        AttemptState::Accepted { since: NOW }
    }

    fn running() -> AttemptState {
        AttemptState::Running { since: NOW }
    }

    fn ending() -> AttemptState {
        AttemptState::Ending { since: NOW, reason: String::new() }
    }

    fn finalizing() -> AttemptState {
        AttemptState::Finalizing { since: NOW, result: TaskResult::default() }
    }

    fn disconnected(was: AttemptState) -> AttemptState {
        AttemptState::Disconnected { since: NOW, rerun_at: NOW, was: Box::new(was) }
    }

    fn ended(class: FailureClass) -> AttemptState {
        AttemptState::Ended { at: NOW, outcome: Err(Failure::new(class, "")) }
    }

    fn done() -> AttemptState {
        let result = TaskResult { published: true, ..TaskResult::default() };
        AttemptState::Ended { at: NOW, outcome: Ok(result) }
    }

    /// What the server may hold, by the name it has in the matrix.
    fn rows() -> Vec<(&'static str, Option<Attempt>)> {
        let other_id = Attempt { id: AttemptId(Uuid::from_u128(21)), ..attempt(done(), false) };
        vec![
            ("unknown", None),
            ("other id", Some(other_id)),
            ("other daemon", Some(Attempt { daemon: THERE, ..attempt(running(), false) })),
            ("other owner", Some(Attempt { owner: OwnerId(Uuid::from_u128(4)), ..attempt(running(), false) })),
            ("assigned", Some(attempt(assigned(), false))),
            ("accepted", Some(attempt(accepted(), false))),
            ("running", Some(attempt(running(), false))),
            ("ending", Some(attempt(ending(), false))),
            ("finalizing", Some(attempt(finalizing(), false))),
            ("ending, fenced", Some(attempt(ending(), true))),
            ("disconnected, assigned", Some(attempt(disconnected(assigned()), false))),
            ("disconnected, accepted", Some(attempt(disconnected(accepted()), false))),
            ("disconnected, running", Some(attempt(disconnected(running()), false))),
            ("disconnected, ending", Some(attempt(disconnected(ending()), false))),
            ("disconnected, finalizing", Some(attempt(disconnected(finalizing()), false))),
            ("disconnected, fenced", Some(attempt(disconnected(ending()), true))),
            ("ended, daemon lost", Some(attempt(ended(FailureClass::DaemonLost), false))),
            ("ended, cancelled", Some(attempt(ended(FailureClass::Cancelled), false))),
            ("ended, done", Some(attempt(done(), false))),
            ("ended lost, fenced", Some(attempt(ended(FailureClass::DaemonLost), true))),
            ("ended crashed, fenced", Some(attempt(ended(FailureClass::AgentCrashed), true))),
        ]
    }

    fn cell(reconciled: &Reconciled) -> String {
        let mut words: Vec<String> = reconciled.verdicts.iter().map(|(_, verdict)| format!("{verdict:?}")).collect();
        let lists = [
            (&reconciled.accepted, "accepted"),
            (&reconciled.revived, "revived"),
            (&reconciled.interrupted, "interrupted"),
            (&reconciled.gone, "gone"),
        ];
        words.extend((!reconciled.recovered.is_empty()).then(|| "recovered".to_owned()));
        words.extend(lists.into_iter().filter(|(list, _)| !list.is_empty()).map(|(_, word)| word.to_owned()));
        if words.is_empty() { "-".to_owned() } else { words.join(" ") }
    }

    /// The whole table, as a person reads it: a change of behaviour is a change of these lines.
    #[test]
    fn the_matrix() {
        let mut matrix = String::new();
        let heads = STATES.map(|state| format!("{state:?}")).into_iter().chain(["and damaged".to_owned()]);
        let line = |matrix: &mut String, name: &str, cells: &[String]| {
            let mut text = format!("{name:26}");
            for cell in cells {
                write!(text, "{cell:38}").unwrap();
            }
            writeln!(matrix, "{}", text.trim_end()).unwrap();
        };
        let mut names = vec!["not listed".to_owned()];
        names.extend(heads);
        line(&mut matrix, "server \\ daemon", &names);
        for (name, held) in rows() {
            let known: Vec<Attempt> = held.clone().into_iter().collect();
            let listed = attempt(running(), false);
            let mut cells = vec![cell(&reconcile(HERE, OWNER, &known, &[]))];
            // "other id": the daemon lists the id of `listed`, the server has another under the same number.
            cells.extend(STATES.map(|state| cell(&reconcile(HERE, OWNER, &known, &[item(&listed, state)]))));
            cells.push(cell(&reconcile(HERE, OWNER, &known, &[damaged(&listed)])));
            line(&mut matrix, name, &cells);
        }
        insta::assert_snapshot!(matrix);
    }

    /// A number that stands for another id here leaves the server's own attempt unlisted.
    #[test]
    fn another_id_under_the_same_number_does_not_stand_for_ours() {
        let ours = attempt(running(), false);
        let theirs = Attempt { id: AttemptId(Uuid::from_u128(99)), ..ours.clone() };
        let reconciled = reconcile(HERE, OWNER, std::slice::from_ref(&ours), &[item(&theirs, InventoryState::Running)]);
        assert_eq!(
            reconciled,
            Reconciled {
                verdicts: vec![(theirs.reference(), Verdict::Salvage)],
                interrupted: vec![ours.reference()],
                ..Reconciled::default()
            }
        );
    }

    /// A list that repeats itself, or knows an attempt twice on the server's side, gets one answer.
    #[test]
    fn each_attempt_is_answered_once() {
        let ours = attempt(disconnected(assigned()), false);
        let item = item(&ours, InventoryState::Running);
        let known = [ours.clone(), ours.clone()];
        let reconciled = reconcile(HERE, OWNER, &known, &[item.clone(), item]);
        assert_eq!(reconciled.verdicts, vec![(ours.reference(), Verdict::Keep)]);
        assert_eq!(reconciled.revived, vec![ours.reference()]);
        let silent = reconcile(HERE, OWNER, &known, &[]);
        assert_eq!(silent.revived, vec![ours.reference()]);
    }

    /// Every attempt that holds a slot is kept track of: a verdict, one of the lists, or an unanswered command.
    #[test]
    fn no_live_attempt_is_left_to_itself() {
        for (name, held) in rows() {
            let Some(held) = held.filter(|held| held.is_live() && held.daemon == HERE && held.owner == OWNER) else {
                continue;
            };
            let silent = reconcile(HERE, OWNER, std::slice::from_ref(&held), &[]);
            let found = [&silent.revived, &silent.interrupted, &silent.gone].iter().filter(|l| !l.is_empty()).count();
            let resent = usize::from(matches!(held.state, AttemptState::Assigned { .. }));
            assert_eq!(found + resent, 1, "{name}");
        }
    }
}

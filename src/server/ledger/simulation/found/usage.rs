//! What agents have used is counted for their task, once, whatever becomes of them.

use super::*;

/// An agent is gone when its daemon comes back: what it had used by its last word counts, once, also where it had been given up
/// meanwhile.
#[test]
fn what_an_agent_had_used_before_it_was_gone_counts() {
    for is_given_up in [false, true] {
        let mut story = Story::of(&[("a", &[])]);
        let attempt = story.starts("a");
        story.says(attempt, Report::Progress(used(7)));
        if is_given_up {
            story.is_given_up();
            assert_eq!(story.task("a").usage.input_tokens, 7);
        }
        story.slots = 0;
        story.attach(1, &[(attempt, InventoryState::Running)]).unwrap();
        let gone = Report::RecoveryDetected {
            previous: InventoryState::Running,
            worktree_intact: true,
            worktree: "/w".to_owned(),
            needs_patch: false,
        };
        for _ in 0..2 {
            story.says(attempt, gone.clone());
            assert_eq!(story.task("a").usage.input_tokens, 7, "given up: {is_given_up}");
        }
    }
}

/// The server hears its last word only after it has heard that it is gone; and what has lost its end says less than was heard.
#[test]
fn a_last_word_that_is_late_counts_too() {
    let mut story = Story::of(&[("a", &[])]);
    let attempt = story.starts("a");
    story.says(attempt, Report::Progress(used(7)));
    story.says(attempt, Report::Progress(used(3)));
    story.slots = 0;
    story.attach(1, &[(attempt, InventoryState::Interrupted)]).unwrap();
    assert_eq!(story.task("a").usage.input_tokens, 7);
    for _ in 0..2 {
        story.says(attempt, Report::Progress(used(9)));
        assert_eq!(story.task("a").usage.input_tokens, 9);
        assert_eq!(story.attempt(attempt).usage.input_tokens, 9);
    }
}

/// Somebody cancels the task, or has it tried elsewhere: what was used until then was used.
#[test]
fn what_was_used_for_nothing_counts() {
    let ways: [fn(crate::domain::TaskId) -> Op; 2] = [
        |task| Op::CancelTask { owner: OWNER, task, reason: String::new(), cascade: false },
        |task| Op::ReassignTask { owner: OWNER, task, to: None },
    ];
    for way in ways {
        for says_so in [true, false] {
            let mut story = Story::of(&[("a", &[])]);
            let attempt = story.starts("a");
            story.says(attempt, Report::Progress(used(7)));
            story.ask(way(attempt.task)).unwrap();
            match says_so {
                true => _ = story.ends(attempt, Err(Failure::new(FailureClass::Cancelled, "as asked")), 8),
                false => story.is_given_up(),
            }
            story.ends(attempt, Err(Failure::new(FailureClass::Cancelled, "as asked")), 8);
            let expected = if says_so { 8 } else { 7 };
            assert_eq!(story.task("a").usage.input_tokens, expected, "it says so: {says_so}");
        }
    }
}

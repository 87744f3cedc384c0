//! Which test is for which failure that others have had: the rows of the first table of the list of failures that this suite
//! was made from, by number. A test says in its own comment which rows it is for; this list is held against the sources, so
//! that a test that is renamed or removed is missed.

use std::{collections::BTreeSet, fs, path::Path};

/// What is done about a row.
enum Cover {
    /// These tests.
    Tests(&'static [&'static str]),
    /// It cannot happen here, and why.
    Cannot(&'static str),
}

use Cover::{Cannot, Tests};

/// Every row.
const ROWS: [(u32, &str, Cover); 42] = [
    (
        1,
        "completion lost after retries, slot leaks",
        Tests(&["everything_is_said_twice_and_out_of_order", "faults_on_sqlite", "faults_on_postgres"]),
    ),
    (
        2,
        "shutdown reports a failure",
        Tests(&[
            "a_server_stops_although_nobody_listens",
            "an_agent_that_ends_while_the_daemon_is_away_is_reported_with_its_result",
        ]),
    ),
    (
        3,
        "start-up work delays the heartbeat",
        Tests(&[
            "a_repository_that_never_answers_delays_nothing",
            "an_agent_that_is_slow_to_say_its_version_delays_nothing_and_is_offered_later",
        ]),
    ),
    (
        4,
        "woken, one claim fails, never claimed again",
        Tests(&["an_unanswered_command_is_sent_again_as_it_was", "faults_on_sqlite"]),
    ),
    (5, "stream dead, heartbeat alive", Tests(&["a_half_open_connection_is_left"])),
    (
        6,
        "lease shorter than the work",
        Tests(&["a_long_cut_with_the_task_tried_elsewhere", "a_laptop_asleep_while_another_works"]),
    ),
    (
        7,
        "a slow worker completes after reassignment",
        Tests(&[
            "a_long_cut_with_the_task_tried_elsewhere",
            "a_long_cut_with_nobody_else",
            "a_crash_is_retried_and_a_late_report_is_fenced",
        ]),
    ),
    (8, "a restart runs the same step twice", Tests(&["a_killed_server_loses_and_repeats_nothing"])),
    (
        9,
        "queue item gone before the assignment is durable",
        Tests(&["a_lost_answer_to_commit_is_found_out", "everything_is_said_twice_and_out_of_order"]),
    ),
    (
        10,
        "text that cannot be stored loops",
        Tests(&["output_that_is_no_text", "text_that_is_no_text", "a_report_of_any_size_fits_and_is_storable"]),
    ),
    (
        11,
        "a message too big is retried for ever",
        Tests(&["a_plan_that_is_too_long", "a_report_of_any_size_fits_and_is_storable"]),
    ),
    (12, "a stale read tells an agent to kill its work", Tests(&["the_matrix", "faults_on_sqlite"])),
    (
        13,
        "corrupt local state stops the daemon",
        Tests(&["a_corrupt_journal", "a_damaged_journal_is_rebuilt_from_the_attempts_directories"]),
    ),
    (
        14,
        "a reconnect starts, then stops a replacement",
        Tests(&["a_cut_that_is_waited_for", "a_long_cut_with_nobody_else"]),
    ),
    (
        15,
        "pending after the node returns",
        Tests(&["a_long_cut_with_nobody_else", "silence_reruns_and_return_revives"]),
    ),
    (
        16,
        "failover reallocates everything",
        Tests(&["a_killed_server_loses_and_repeats_nothing", "a_cut_that_is_waited_for"]),
    ),
    (
        17,
        "a cancel is lost while reconnecting",
        Tests(&["a_cancellation_during_a_cut", "a_lost_cancel_heals_with_a_heartbeat"]),
    ),
    (
        18,
        "LISTEN dead for ever",
        Cannot("there is no LISTEN: one server has the database, and its ledger wakes who waits"),
    ),
    (19, "a crash between two writes", Tests(&["batches_in_doubt_are_answered_truly", "faults_on_postgres"])),
    (
        20,
        "fan-in race, late child, late edge",
        Tests(&[
            "two_parents_end_at_once",
            "an_edge_is_added_while_its_parent_ends",
            "a_child_is_created_as_its_parents_end",
        ]),
    ),
    (
        21,
        "all workers lost, or one task loses them all",
        Tests(&["a_task_that_kills_its_daemons_is_held_and_the_fleet_goes_on"]),
    ),
    (22, "worker missing at dispatch", Tests(&["an_unanswered_attempt_is_fenced_in_time", "a_cut_that_is_waited_for"])),
    (
        23,
        "a disconnect does not count",
        Tests(&["a_task_that_kills_its_daemons_is_held_and_the_fleet_goes_on", "three_dead_daemons_hold_the_task"]),
    ),
    (24, "correlated disconnect, restart storm", Tests(&["a_fleet_that_is_cut_off_at_once_comes_back"])),
    (
        25,
        "the old session blocks the new one",
        Tests(&["a_fleet_that_is_cut_off_at_once_comes_back", "a_newer_session_supersedes"]),
    ),
    (
        26,
        "queued though somebody is idle",
        Tests(&["work_goes_on_through_cuts", "a_full_disk_takes_work_again_when_it_has_room"]),
    ),
    (27, "a stalled worker pins work", Tests(&["a_cancellation_during_a_cut", "a_shim_that_does_not_react_is_killed"])),
    (
        28,
        "log lines dropped although the call was good",
        Tests(&["a_half_open_connection_is_left", "faults_on_sqlite"]),
    ),
    (29, "the retry window counts from the long poll", Tests(&["a_fleet_that_is_cut_off_at_once_comes_back"])),
    (
        30,
        "online and idle after an error of the server",
        Tests(&["an_outage_is_said_and_survived", "faults_on_postgres"]),
    ),
    (
        31,
        "full disk: accepts and fails in turns",
        Tests(&["a_full_disk_takes_work_again_when_it_has_room", "a_disk_that_fills_up"]),
    ),
    (
        32,
        "a lost lock is let go of after hours",
        Tests(&["a_killed_server_loses_and_repeats_nothing", "killed_backends_are_survived"]),
    ),
    (
        33,
        "shutdown hangs with an open stream",
        Tests(&["a_server_stops_although_nobody_listens", "a_drain_ends_everything_in_time"]),
    ),
    (34, "one slow stream starves the connection", Tests(&["a_stream_that_nobody_reads_starves_no_other"])),
    (35, "half-open TCP is never noticed", Tests(&["a_half_open_connection_is_left"])),
    (36, "credential refused while offline", Tests(&["a_daemon_whose_key_is_refused_works_on_and_comes_back"])),
    (
        37,
        "evicted and banned confused",
        Tests(&["a_superseded_daemon_stops_and_leaves_its_agents", "a_banned_daemon_stops_with_its_agents"]),
    ),
    (38, "a cancelled retry still runs", Tests(&["a_task_cancelled_in_its_backoff_does_not_run_again"])),
    (
        39,
        "descendants outlive the task",
        Tests(&["a_script_ends_with_all_it_started", "a_killed_shim_takes_its_agent_with_it"]),
    ),
    (40, "the registry is empty after a boot", Tests(&["a_damaged_journal_is_rebuilt_from_the_attempts_directories"])),
    (41, "two notions of all children done", Tests(&["a_diamond_runs_in_order", "a_parent_is_retried"])),
    (
        42,
        "slot not let go of on kill",
        Tests(&["cancelling_holds_the_slot_until_nothing_is_left", "concurrency_is_kept", "faults_on_sqlite"]),
    ),
];

/// Names of functions in all sources, without what they are for.
fn functions() -> BTreeSet<String> {
    let mut folders = vec!["src".to_owned(), "tests/it".to_owned()];
    let mut names = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&folder);
        for entry in fs::read_dir(path).expect("a folder of sources") {
            let entry = entry.expect("an entry");
            let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                folders.push(name);
            } else if name.ends_with(".rs") {
                let source = fs::read_to_string(entry.path()).expect("a source");
                let declared = source.lines().filter_map(|line| line.trim().split_once("fn "));
                let declared = declared.filter(|(before, _)| matches!(*before, "" | "async " | "pub "));
                names.extend(declared.filter_map(|(_, after)| Some(after.split_once('(')?.0.to_owned())));
            }
        }
    }
    names
}

/// Every row is there once, in order, and every test that it names is there too.
#[test]
fn every_row_has_a_test_or_a_reason() {
    let functions = functions();
    let numbers: Vec<u32> = ROWS.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (1..=42).collect::<Vec<_>>());
    let mut missing = Vec::new();
    for (number, what, cover) in &ROWS {
        match cover {
            Tests(tests) if tests.is_empty() => missing.push(format!("{number} ({what}): no test")),
            Tests(tests) => {
                let gone = tests.iter().filter(|test| !functions.contains(**test));
                missing.extend(gone.map(|test| format!("{number} ({what}): no test {test}")));
            }
            Cannot(why) if why.is_empty() => missing.push(format!("{number} ({what}): no reason")),
            Cannot(_) => {}
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// That a name which is nowhere is missed.
#[test]
fn a_test_that_is_gone_is_missed() {
    let functions = functions();
    assert!(functions.contains("a_test_that_is_gone_is_missed"));
    let gone = ["a_test", "that_was", "never_written"].join("_");
    assert!(!functions.contains(&gone));
}

//! Whatever one side says, the other side understands as it was meant.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::{
    CheckpointId,
    attempt::{FailureClass, Pack},
    checkpoint::{Link, MAX_BYTES, MAX_CHAIN},
    order::{EarlierWorktree, Resume},
    report::{MAX_FAILURE_BYTES, MAX_LINE_BYTES},
    task::TaskStatus,
};

const VERDICTS: [Verdict; 8] = [
    Verdict::Keep,
    Verdict::Cancel,
    Verdict::ResumeHere,
    Verdict::Restore,
    Verdict::ReportAgain,
    Verdict::Fenced,
    Verdict::Salvage,
    Verdict::Forget,
];
const STATES: [InventoryState; 5] = [
    InventoryState::Accepted,
    InventoryState::Running,
    InventoryState::Ending,
    InventoryState::Reported,
    InventoryState::Interrupted,
];

fn ids<T: From<Uuid> + std::fmt::Debug>() -> impl Strategy<Value = T> {
    any::<u128>().prop_map(|n| T::from(Uuid::from_u128(n)))
}

fn attempt_refs() -> impl Strategy<Value = AttemptRef> {
    (ids(), 1..1_u32 << 31, ids()).prop_map(|(task, number, id)| AttemptRef { task, number, id })
}

fn times() -> impl Strategy<Value = Timestamp> {
    (-1_000_000_000_000_000i64..4_000_000_000_000_000).prop_map(Timestamp)
}

fn spans() -> impl Strategy<Value = Duration> {
    (0u64..100_000_000_000).prop_map(Duration::from_micros)
}

fn statuses() -> impl Strategy<Value = TaskStatus> {
    prop::sample::select(&TaskStatus::ALL[..])
}

fn usages() -> impl Strategy<Value = Usage> {
    (0..i64::MAX, 0..i64::MAX, 0..i64::MAX, 0..i64::MAX, 0..i64::MAX, any::<u32>()).prop_map(
        |(input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_micro_usd, turns)| Usage {
            input_tokens,
            output_tokens,
            cache_read_tokens,
            cache_write_tokens,
            cost_micro_usd,
            turns,
        },
    )
}

fn progresses() -> impl Strategy<Value = Progress> {
    ("[a-z0-9-]{0,40}", usages(), ".{0,200}").prop_map(|(agent_session_id, usage, last_message)| {
        let last_message = last_message.replace('\0', "");
        Progress { agent_session_id, usage, last_message }
    })
}

fn outcomes() -> impl Strategy<Value = Result<TaskResult, Failure>> {
    prop_oneof![
        ("[0-9a-f]{40}", "[a-z/-]{1,60}", "[a-z/-]{1,60}", any::<bool>(), prop::option::of(packs())).prop_map(
            |(commit, branch, result_ref, published, pack)| Ok(TaskResult {
                commit,
                branch,
                result_ref,
                published,
                pack,
                blob: String::new()
            })
        ),
        (prop::sample::select(&FailureClass::ALL[..]), "[^\0]{0,300}", prop::option::of(times()))
            .prop_map(|(class, message, reset)| Err(Failure { class, message, reset })),
    ]
}

fn packs() -> impl Strategy<Value = Pack> {
    (1..=MAX_BYTES, "[0-9a-f]{64}").prop_map(|(bytes, sha256)| Pack { bytes, sha256 })
}

fn reports() -> impl Strategy<Value = Report> {
    prop_oneof![
        ("[a-z/]{0,60}", "[a-z/]{0,60}", "[0-9a-f]{40}", "[0-9.]{0,9}", prop::option::of(any::<u128>())).prop_map(
            |(worktree, branch, base_commit, agent_version, restored)| Report::Started {
                worktree,
                branch,
                base_commit,
                agent_version,
                restored: restored.map(|id| CheckpointId(Uuid::from_u128(id))),
            }
        ),
        progresses().prop_map(Report::Progress),
        (outcomes(), progresses(), 0..i64::MAX, prop::option::of(any::<i32>()), any::<u32>()).prop_map(
            |(outcome, progress, output_bytes, exit_code, signal)| Report::Complete(Complete {
                outcome,
                progress,
                output_bytes,
                exit_code,
                signal
            })
        ),
        (prop::sample::select(&STATES[..]), any::<bool>(), "[a-z/]{0,60}", any::<bool>()).prop_map(
            |(previous, worktree_intact, worktree, needs_patch)| Report::RecoveryDetected {
                previous,
                worktree_intact,
                worktree,
                needs_patch
            }
        ),
        "[^\0]{0,300}".prop_map(|message| Report::Warning { message }),
        "[^\0]{0,300}".prop_map(|message| Report::CheckpointFailed { message }),
    ]
}

fn resumes() -> impl Strategy<Value = Resume> {
    let here = (attempt_refs(), "/[a-z]{1,9}").prop_map(|(attempt, path)| EarlierWorktree { attempt, path });
    let link = (ids(), "[a-z/]{1,20}", packs()).prop_map(|(id, blob, Pack { bytes, sha256 })| Link {
        id,
        blob,
        bytes,
        sha256,
    });
    let words = ("[0-9a-f]{0,40}", "[a-z0-9-]{0,36}", ".{0,60}", ".{0,60}", ".{0,60}");
    (prop::option::of(here), prop::collection::vec(link, 0..=MAX_CHAIN), words, any::<bool>()).prop_map(
        |(here, chain, (base_commit, session_id, reason, last_message, summary), fork_session)| Resume {
            chosen: !fork_session,
            here,
            chain,
            base_commit,
            session_id,
            fork_session,
            reason,
            last_message,
            summary,
        },
    )
}

fn spawns() -> impl Strategy<Value = Spawn> {
    let dependency = (ids(), "[a-z]{1,9}", statuses(), "[0-9a-f]{0,40}", "[a-z/]{0,40}", prop::option::of(ids()))
        .prop_flat_map(|dependency| (Just(dependency), "[a-z/]{0,20}", "[0-9a-f]{64}", any::<i64>()))
        .prop_map(|((task, name, status, commit, result_ref, daemon), blob, blob_sha256, blob_bytes)| {
            DependencyResult { task, name, status, commit, result_ref, daemon, blob, blob_sha256, blob_bytes }
        });
    let categories = prop::collection::vec(
        prop::sample::select(vec![Category::Schema, Category::Types, Category::Backend, Category::Ui]),
        0..4,
    );
    let other = (ids(), "[a-z]{1,9}", statuses(), categories)
        .prop_map(|(task, name, status, categories)| ContractTask { task, name, status, categories });
    let words = (".{0,20}", ".{1,20}", ".{0,200}", "[a-z]{1,9}", prop::option::of("[a-z]{1,9}"), "/[a-z]{1,9}");
    let git = ("[a-z]{0,9}", "[a-z/]{1,40}", "[a-z/]{1,40}", ".{0,60}", prop::collection::vec("[a-z*]{1,9}", 0..4));
    let times = (spans(), prop::option::of(spans()), spans());
    let tree = (prop::option::of(ids()), any::<u32>(), "[a-z0-9_]{0,40}");
    let work = (spans(), any::<bool>(), prop::option::of(resumes()));
    let lists = (prop::collection::vec(dependency, 0..4), prop::collection::vec(other, 0..4), work);
    (ids(), words, git, times, tree, lists).prop_map(|(contract, words, git, times, tree, lists)| Spawn {
        contract,
        contract_name: words.0,
        name: words.1,
        plan: words.2,
        agent: words.3,
        model: words.4,
        repository: words.5,
        base_branch: git.0,
        branch: git.1,
        result_ref: git.2,
        setup_command: git.3,
        copy_files: git.4,
        setup_timeout: times.0,
        wall_time: times.1,
        grace: times.2,
        parent: tree.0,
        depth: tree.1,
        task_key: tree.2,
        dependencies: lists.0,
        contract_tasks: lists.1,
        checkpoint_every: lists.2.0,
        final_checkpoint: lists.2.1,
        resume: lists.2.2,
    })
}

fn orders() -> impl Strategy<Value = Order> {
    prop_oneof![
        spawns().prop_map(|spawn| Order::Spawn(Box::new(spawn))),
        (".{0,60}", spans()).prop_map(|(reason, grace)| Order::Cancel { reason, grace }),
        Just(Order::Checkpoint),
    ]
}

fn hellos() -> impl Strategy<Value = Hello> {
    let words = || prop::collection::vec("[a-z]{1,9}", 0..4);
    let card = ("[a-z]{1,9}", any::<u32>(), words(), words(), words(), any::<bool>(), "[a-z ]{0,30}").prop_map(
        |(name, slots, labels, profiles, repositories, any_path, not_accepting)| Card {
            name,
            slots,
            labels,
            profiles: profiles.into_iter().map(|name| Profile { name, version: "1".to_owned() }).collect(),
            repositories,
            any_path,
            not_accepting,
            version: "0.1.0".to_owned(),
            hostname: "host".to_owned(),
        },
    );
    let item = (attempt_refs(), prop::sample::select(&STATES[..]), "[a-z/]{0,40}", any::<bool>()).prop_map(
        |(attempt, state, worktree, worktree_intact)| InventoryItem { attempt, state, worktree, worktree_intact },
    );
    let counts = (0..i64::MAX, 0..i64::MAX);
    (ids(), ids(), ids(), card, counts, (0..i64::MAX, 0..i64::MAX), prop::collection::vec(item, 0..4), times())
        .prop_map(|(daemon, boot, journal, card, (attach, last_command), unanswered, inventory, clock)| Hello {
            protocol: PROTOCOL,
            daemon,
            boot,
            journal,
            card,
            attach,
            last_command,
            unanswered,
            inventory,
            clock,
        })
}

proptest! {
    #[test]
    fn a_hello_arrives_as_it_was_meant(hello in hellos()) {
        prop_assert_eq!(Hello::try_from(&pb::Hello::from(&hello)).unwrap(), hello);
    }

    #[test]
    fn a_command_arrives_as_it_was_meant(
        sequence in 1..i64::MAX, id in ids(), epoch in 1..i64::MAX, attempt in attempt_refs(), order in orders(),
    ) {
        let command = Command { sequence, id, epoch: Epoch(epoch), attempt, order };
        prop_assert_eq!(Command::try_from(&pb::DaemonCommand::from(&command)).unwrap(), command);
    }

    #[test]
    fn a_message_arrives_as_it_was_meant(
        sequence in 1..i64::MAX, journal in ids(), attempt in attempt_refs(), at in times(), report in reports(),
    ) {
        let message = Message { sequence, journal, attempt, at, report };
        prop_assert_eq!(Message::try_from(&pb::DaemonMessage::from(&message)).unwrap(), message);
    }

    #[test]
    fn a_chunk_arrives_as_it_was_meant(
        attempt in attempt_refs(), offset in 0..(i64::MAX as u64), data in prop::collection::vec(any::<u8>(), 0..100),
        last in any::<bool>(), gap in any::<bool>(),
    ) {
        let chunk = Chunk { attempt, offset, data: data.into(), last, gap };
        prop_assert_eq!(Chunk::try_from(pb::UploadChunksRequest::from(chunk.clone())).unwrap(), chunk);
        let receipt = Receipt { attempt, committed: offset / 2, received: offset, complete: last, refused: gap };
        prop_assert_eq!(Receipt::try_from(&pb::UploadChunksResponse::from(receipt)).unwrap(), receipt);
    }
}

fn an_attempt() -> AttemptRef {
    AttemptRef { task: Uuid::from_u128(1).into(), number: 1, id: Uuid::from_u128(2).into() }
}

#[test]
fn a_welcome_with_every_verdict_arrives_as_it_was_meant() {
    let welcome = Welcome {
        protocol: 1,
        epoch: Epoch(7),
        heartbeat_interval: Duration::from_secs(15),
        lost_after: Duration::from_secs(45),
        verdicts: VERDICTS.iter().map(|v| (an_attempt(), *v)).collect(),
        server_version: "0.1.0".to_owned(),
        clock: Timestamp(1_785_000_000_123_456),
    };
    assert_eq!(Welcome::try_from(&pb::Welcome::from(&welcome)).unwrap(), welcome);
}

#[test]
fn heartbeats_and_answers_arrive_as_they_were_meant() {
    let heartbeat = Heartbeat {
        live: vec![an_attempt()],
        free_slots: 3,
        load_percent: 250,
        disk_free_bytes: 1 << 40,
        not_accepting: "short of disk".to_owned(),
    };
    assert_eq!(Heartbeat::try_from(&pb::Heartbeat::from(&heartbeat)).unwrap(), heartbeat);
    assert_eq!(cancelled_by(&heartbeat_answer(&[an_attempt()])).unwrap(), vec![an_attempt()]);

    let command = Uuid::from_u128(3).into();
    for answer in [Answer::Persisted, Answer::Rejected { reason: "no disk".to_owned(), retryable: true, counts: false }]
    {
        assert_eq!(command_answered(&command_answer(5, command, &answer)).unwrap(), (5, command, answer));
    }
    let journal = Uuid::from_u128(4).into();
    for outcome in [
        MessageOutcome::Applied,
        MessageOutcome::AlreadyApplied,
        MessageOutcome::Fenced,
        MessageOutcome::Invalid { detail: "too big".to_owned() },
    ] {
        assert_eq!(message_answered(&message_answer(9, journal, &outcome)).unwrap(), (9, journal, outcome));
    }
}

#[test]
fn a_report_of_any_size_fits_and_is_storable() {
    let huge = "x\0".repeat(4 * 1024 * 1024);
    let complete = Complete {
        outcome: Err(Failure::new(FailureClass::AgentError, huge.clone())),
        progress: Progress { agent_session_id: huge.clone(), usage: Usage::default(), last_message: huge },
        output_bytes: 1,
        exit_code: Some(1),
        signal: 0,
    };
    let message = Message {
        sequence: 1,
        journal: Uuid::from_u128(4).into(),
        attempt: an_attempt(),
        at: Timestamp(1),
        report: Report::Complete(complete),
    };
    let sent = pb::DaemonMessage::from(&message);
    assert!(prost::Message::encoded_len(&sent) < MAX_CONTROL_BYTES);
    let Report::Complete(complete) = Message::try_from(&sent).unwrap().report else { panic!("another report") };
    let failure = complete.outcome.unwrap_err();
    assert!(failure.message.len() <= MAX_FAILURE_BYTES && !failure.message.contains('\0'));
    assert!(complete.progress.last_message.len() <= MAX_LINE_BYTES);
}

#[test]
fn what_is_not_served_or_damaged_is_refused_by_name() {
    let spawn =
        pb::SpawnTask { contract_id: Uuid::from_u128(1).to_string(), is_supervisor: true, ..Default::default() };
    assert_eq!(Spawn::try_from(&spawn).unwrap_err().to_string(), "field `is_supervisor` is not served by this version");

    let chunk = Chunk { attempt: an_attempt(), offset: 0, data: "abc".into(), last: false, gap: false };
    let mut sent = pb::UploadChunksRequest::from(chunk);
    sent.data = "abd".into();
    assert!(Chunk::try_from(sent.clone()).unwrap_err().to_string().contains("crc32"));
    sent.offset = -1;
    sent.crc32 = crc32fast::hash(&sent.data);
    assert!(Chunk::try_from(sent).unwrap_err().to_string().contains("offset"));

    let hello = pb::Hello { name: "a\0".to_owned(), daemon_id: Uuid::nil().to_string(), ..Default::default() };
    assert!(Hello::try_from(&hello).is_err());
}

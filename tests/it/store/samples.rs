//! Whole values with something in every field, so that a field that is lost on the way shows.

use std::{sync::Arc, time::Duration};

use makima::domain::{
    AttemptId, AttemptRef, CheckpointId, ClassId, CommandId, ContractId, DaemonId, Epoch, JournalId, KeyId, OwnerId,
    TaskId, Timestamp,
    analysis::Category,
    attempt::{Attempt, AttemptState, Failure, FailureClass, Pack, TaskResult, Usage},
    checkpoint::{About, Checkpoint, Here, Link, Origin, Reason},
    contract::{Cancelled, Contract, ContractLimits, Counts, Hold},
    daemon::{Card, Daemon, Profile, Requirements},
    event::{Change, What},
    order::{Command, ContractTask, DependencyResult, Order, OutstandingSpawn, Resume, Spawn},
    task::{Avoid, BranchedFrom, Task, TaskLimits, TaskSpec, TaskState, TaskStatus, Tries, Wait, WaitReason},
};
use uuid::Uuid;

/// Text that has broken drivers, JSON paths and collations before.
pub const ODD: &str =
    "naïve \"q\" 'q' \\ / $1 ? {rows} \u{1}\t\r\n \u{7f} \u{2028} 漢字 🦀 e\u{301} \u{202e}rtl null %s \\u0000";

/// A time with microseconds that no coarser type keeps.
pub fn at(micros: i64) -> Timestamp {
    Timestamp(1_764_000_000_123_457 + micros)
}

pub fn owner() -> OwnerId {
    OwnerId(Uuid::now_v7())
}

/// The nth id of its kind, in order.
pub fn id(n: u128) -> Uuid {
    Uuid::from_u128(0x0193_8f3e_0000_7000_8000_0000_0000_0000 + n)
}

pub fn hold() -> Hold {
    Hold { by: "key:1".to_owned(), reason: ODD.to_owned(), since: at(3) }
}

pub fn contract(owner: OwnerId, n: u128) -> Contract {
    let mut counts = Counts::default();
    counts.shift(None, TaskStatus::Pending);
    Contract {
        id: ContractId(id(n)),
        owner,
        name: ODD.to_owned(),
        description: format!("{ODD}{n}"),
        repository: "https://example.com/r.git".to_owned(),
        base_branch: "main".to_owned(),
        limits: ContractLimits {
            concurrency: u32::MAX,
            max_retries: 7,
            wall_time: Some(Duration::from_nanos(1_234_567_891)),
            rerun_after: Duration::from_millis(1),
            checkpoint_every: Duration::from_millis(2),
            final_checkpoint: false,
        },
        anonymous: false,
        held: Some(hold()),
        cancelled: None,
        counts,
        live: 3,
        version: i64::MAX,
        created: at(1),
        updated: at(2),
        ended: None,
    }
}

/// A contract that is cancelled, with a task left.
pub fn cancelling(owner: OwnerId, n: u128) -> Contract {
    let cancelled = Cancelled { by: "key:2".to_owned(), reason: ODD.to_owned(), since: at(5) };
    Contract { cancelled: Some(cancelled), ..contract(owner, n) }
}

pub fn requirements(agent: &str) -> Requirements {
    Requirements::new(agent, &["gpu".to_owned(), "a \"b\"".to_owned()], "/srv/r")
}

pub fn class(owner: OwnerId, agent: &str) -> ClassId {
    requirements(agent).class(owner)
}

pub fn spec(name: &str) -> TaskSpec {
    TaskSpec {
        name: name.to_owned(),
        description: ODD.to_owned(),
        plan: ODD.to_owned(),
        priority: -5,
        agent: "claude".to_owned(),
        model: "m".to_owned(),
        labels: vec!["gpu".to_owned(), ODD.to_owned()],
        repository: "/srv/r".to_owned(),
        base_branch: "b".to_owned(),
        copy_files: vec![".env*".to_owned()],
        setup_command: "make 'x'".to_owned(),
        limits: TaskLimits { wall_time: Some(Duration::from_secs(9)), max_retries: Some(0) },
        hidden: false,
        parent: Some(TaskId(id(999))),
        branched_from: Some(BranchedFrom {
            task: TaskId(id(998)),
            checkpoint: CheckpointId(id(997)),
            conversation: true,
        }),
    }
}

/// A task that is ready.
pub fn task(contract: &Contract, n: u128, name: &str) -> Task {
    Task {
        id: TaskId(id(n)),
        contract: contract.id,
        owner: contract.owner,
        depth: 2,
        spec: Arc::new(spec(name)),
        class: class(contract.owner, "claude"),
        state: TaskState::Pending { wait: None, held: None },
        unmet: 0,
        attempt: 3,
        ending: None,
        daemon: Some(DaemonId(id(7))),
        tries: Tries {
            total: 3,
            counted: 2,
            backoffs: 1,
            lost_daemons: vec![DaemonId(id(8))],
            avoid: vec![Avoid { daemon: DaemonId(id(8)), until: at(60) }],
            last_failure: Some(failure()),
        },
        branch: "makima/x/1".to_owned(),
        usage: usage(),
        version: 42,
        created: at(10),
        updated: at(11),
        started: Some(at(12)),
        interrupted: Some(at(13)),
        checkpoint: Some(CheckpointId(id(14))),
        here: Some(Here {
            attempt: AttemptRef { task: TaskId(id(n)), number: 3, id: AttemptId(id(15)) },
            daemon: DaemonId(id(7)),
            worktree: ODD.to_owned(),
        }),
        chosen: Some(2),
        handed_over: Some(1),
        prefer: Some(DaemonId(id(9))),
    }
}

pub fn with(task: &Task, state: TaskState) -> Task {
    Task { state, ..task.clone() }
}

pub fn waiting(until: Timestamp) -> TaskState {
    TaskState::Pending { wait: Some(Wait { until, why: WaitReason::UsageLimit }), held: Some(hold()) }
}

pub fn result() -> TaskResult {
    TaskResult {
        commit: "c".repeat(40),
        branch: ODD.to_owned(),
        result_ref: "refs/makima/results/x".to_owned(),
        published: true,
        pack: Some(Pack { bytes: 1, sha256: "d".repeat(64) }),
        blob: "o/a/result/x".to_owned(),
    }
}

pub fn failure() -> Failure {
    Failure { class: FailureClass::UsageLimit, message: ODD.to_owned(), reset: Some(at(77)) }
}

/// One state of every kind.
pub fn states() -> Vec<TaskState> {
    vec![
        waiting(at(20)),
        TaskState::Starting { since: at(21) },
        TaskState::Running { since: at(22) },
        TaskState::Paused { held: hold() },
        TaskState::AwaitingInput { question: ODD.to_owned(), since: at(23) },
        TaskState::Finalizing { result: result(), since: at(24) },
        TaskState::Done { result: result(), at: at(25) },
        TaskState::Merged { result: result(), at: at(26) },
        TaskState::Failed { failure: failure(), at: at(27) },
        TaskState::Cancelled { reason: ODD.to_owned(), by: "key:3".to_owned(), at: at(28) },
    ]
}

pub fn usage() -> Usage {
    Usage {
        input_tokens: i64::MAX,
        output_tokens: 1,
        cache_read_tokens: 2,
        cache_write_tokens: 3,
        cost_micro_usd: i64::MIN,
        turns: u32::MAX,
    }
}

pub fn attempt(task: &Task, n: u128, number: u32, daemon: DaemonId, state: AttemptState) -> Attempt {
    Attempt {
        task: task.id,
        number,
        id: AttemptId(id(n)),
        contract: task.contract,
        owner: task.owner,
        daemon,
        state,
        fenced: true,
        branch: "b".to_owned(),
        worktree: ODD.to_owned(),
        base_commit: "c".to_owned(),
        agent_version: "1".to_owned(),
        agent_session_id: "s".to_owned(),
        last_message: ODD.to_owned(),
        usage: usage(),
        warnings: vec![ODD.to_owned(), String::new()],
        wall_time: Some(Duration::from_secs(1)),
        assigned: at(30),
        started: Some(at(31)),
        output_bytes: 1 << 40,
        commands: vec![1, i64::MAX],
        origin: Origin::Worktree { attempt: 1 },
        checkpoint: Some(CheckpointId(id(16))),
        checkpointed: Some(at(32)),
        checkpoint_failed: Some((at(33), "why".to_owned())),
    }
}

/// With an order that says all that an order may.
pub fn assigned(answer_by: i64) -> AttemptState {
    let contract = contract(owner(), 1);
    let Order::Spawn(spawn) = spawn(&task(&contract, 1, "t"), 1, 1).order else { unreachable!("a spawn spawns") };
    let Spawn { dependencies, contract_tasks, checkpoint_every, final_checkpoint, resume, .. } = *spawn;
    let outstanding = OutstandingSpawn {
        sequence: i64::MAX,
        contract_name: ODD.to_owned(),
        dependencies,
        contract_tasks,
        checkpoint_every,
        final_checkpoint,
        resume,
    };
    AttemptState::Assigned { answer_by: at(answer_by), spawn: Some(Arc::new(outstanding)) }
}

pub fn daemon(owner: OwnerId, n: u128, name: &str) -> Daemon {
    Daemon {
        id: DaemonId(id(n)),
        owner,
        key: KeyId(id(5)),
        card: Card {
            name: name.to_owned(),
            slots: 4,
            labels: vec![ODD.to_owned()],
            profiles: vec![Profile { name: "claude".to_owned(), version: "2".to_owned() }],
            repositories: vec!["/srv/r".to_owned()],
            any_path: true,
            not_accepting: ODD.to_owned(),
            version: "0".to_owned(),
            hostname: "h".to_owned(),
        },
        epoch: Epoch(i64::MAX),
        attached: true,
        draining: true,
        last_command: 1 << 50,
        journal: Some(JournalId(id(17))),
        persisted: 1 << 49,
        attach: 0,
        created: at(40),
        last_seen: at(41),
    }
}

/// One file of a checkpoint's chain.
pub fn link(n: u128) -> Link {
    Link { id: CheckpointId(id(n)), blob: format!("o/a/checkpoint/{n}"), bytes: 1 << 20, sha256: "f".repeat(64) }
}

/// A checkpoint of an attempt, with something in every field.
pub fn checkpoint(task: &Task, n: u128, attempt: AttemptRef) -> Checkpoint {
    Checkpoint {
        id: CheckpointId(id(n)),
        attempt,
        contract: task.contract,
        owner: task.owner,
        daemon: DaemonId(id(7)),
        chain: vec![link(1), link(n)],
        about: About {
            base: Some(CheckpointId(id(1))),
            reason: Reason::Asked,
            taken: at(50),
            head: "c".repeat(40),
            branch: ODD.to_owned(),
            base_commit: "b".repeat(40),
            session_id: "s".to_owned(),
            summary: ODD.to_owned(),
            omitted: vec![ODD.to_owned()],
            unsettled: true,
        },
        orphan: true,
        stored: at(51),
    }
}

/// An order with something in every field.
pub fn spawn(task: &Task, sequence: i64, n: u128) -> Command {
    let spec = &task.spec;
    Command {
        sequence,
        id: CommandId(id(n)),
        epoch: Epoch(2),
        attempt: AttemptRef { task: task.id, number: 1, id: AttemptId(id(n)) },
        order: Order::Spawn(Box::new(Spawn {
            contract: task.contract,
            contract_name: ODD.to_owned(),
            name: spec.name.clone(),
            plan: spec.plan.clone(),
            agent: spec.agent.clone(),
            model: Some(spec.model.clone()),
            repository: spec.repository.clone(),
            base_branch: spec.base_branch.clone(),
            branch: "b".to_owned(),
            result_ref: "r".to_owned(),
            dependencies: vec![DependencyResult {
                task: task.id,
                name: ODD.to_owned(),
                status: TaskStatus::Done,
                commit: "c".to_owned(),
                result_ref: "r".to_owned(),
                daemon: Some(DaemonId(id(7))),
                blob: "o/a/result/x".to_owned(),
                blob_sha256: "e".repeat(64),
                blob_bytes: 7,
            }],
            setup_command: spec.setup_command.clone(),
            setup_timeout: Duration::from_secs(600),
            copy_files: spec.copy_files.clone(),
            wall_time: Some(Duration::from_millis(1)),
            grace: Duration::from_secs(10),
            parent: spec.parent,
            depth: 1,
            task_key: "mk_task_x".to_owned(),
            contract_tasks: vec![ContractTask {
                task: task.id,
                name: ODD.to_owned(),
                status: TaskStatus::Pending,
                categories: vec![Category::Schema, Category::Ui],
            }],
            checkpoint_every: Duration::from_secs(300),
            final_checkpoint: true,
            resume: Some(Resume {
                chain: vec![link(1)],
                summary: ODD.to_owned(),
                fork_session: true,
                chosen: true,
                ..Resume::default()
            }),
        })),
    }
}

pub fn change(contract: ContractId, task: Option<TaskId>, when: Timestamp, event: &str) -> Change {
    Change {
        sequence: 0,
        at: when,
        contract,
        task,
        what: What {
            event: event.to_owned().into(),
            task_name: ODD.to_owned(),
            version: 9,
            status: Some(TaskStatus::AwaitingInput),
            attempt: 2,
            daemon: Some(DaemonId(id(7))),
            daemon_name: ODD.to_owned(),
            fields: vec!["status".into()],
            said_by: "server".into(),
            detail: ODD.to_owned(),
        },
    }
}

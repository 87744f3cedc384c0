//! The map of makima: a control plane that runs fleets of AI coding agents. Nothing an agent has done is lost, and nothing is
//! silently stuck.
//!
//! # Rooms
//!
//! ```text
//!            people, programs, agents                         machines with agents
//!                     │                                               │
//!   cli ──> wire (pb, form, status) <── server ──> store        daemon ──> git, shims, agents
//!                     │                   │          │             │
//!                     └──────────────> domain <──────┴─────────────┘        runtime: what all of them run on
//! ```
//!
//! * [`domain`]: what is true. Contracts, tasks, attempts, daemons and every rule; no clock, no dice, no waiting. Start here.
//! * [`store`]: what is remembered. The only room that knows SQL; one text for SQLite and Postgres.
//! * [`wire`]: what is said. The protocol, and the only place where it meets the domain.
//! * [`server`]: who decides when. Services check, the ledger decides and records, sessions tell.
//! * [`daemon`]: who does. Journal, runners, worktrees, shims, agents.
//! * [`runtime`]: clock, backoff, waking up, starting and stopping, logs.
//! * [`cli`]: what a person types.
//!
//! `domain` uses none of the others. `server` and `daemon` do not know each other, nor do `store` and `wire`. Of the daemon only
//! its session and its uploads speak the protocol. `tests/it/tidy.rs` enforces this.
//!
//! # The way of one request
//!
//! ```text
//! client -> service: check -> ledger: fold(op, now) -> one transaction -> commit -> answer, wake dispatcher, feed watchers
//! dispatcher: ready work x free slots -> assign -> attempts + commands in the same transaction -> commit -> stream
//! daemon: session -> journal (durable) -> PERSISTED -> supervisor -> runner -> worktree -> shim -> agent
//! back: runner -> journal (message, durable) -> session -> server session -> ledger -> commit -> answer -> watchers
//! work: runner -> checkpoint or result, a file -> bulk -> uploads -> blob, durable -> row -> ledger -> commit -> complete
//! ```
//!
//! No step back: what is lost on the way is said again from what is durable on either side, by the same code that said it
//! first.
//!
//! # Invariants
//!
//! 1. A task has at most one attempt that can change it; a fenced attempt changes nothing, and its work is kept.
//! 2. Every terminal report a daemon has journalled reaches the task exactly once, or its directory is salvage.
//! 3. Every acknowledged checkpoint can be restored, identical.
//! 4. No task starts before its dependencies are complete.
//! 5. Every status that is not final has a true reason and a deadline or a named cause.
//! 6. Slots and concurrency counts equal the attempts that are not ENDED.
//! 7. From the confirmation that an attempt has ended, no process of it is alive.
//! 8. No key sees or moves what belongs to another owner.
//! 9. A task that is DONE has its result, whichever machine dies.
//! 10. Losing power on any machine at any instant breaks none of these.
//!
//! `tests/it/faults` breaks real processes and checks them; `server::ledger::simulation` does so with a fleet in memory.
//!
//! # Words
//!
//! | word | what it is |
//! |---|---|
//! | owner | a tenant; every contract, task, daemon and key belongs to one |
//! | contract | a goal: repository, base branch, limits, and the tasks that reach it |
//! | task | one piece of work: a plan, an agent profile, dependencies, a priority |
//! | attempt | one try at a task on one daemon; its number, with a random id, is the fence |
//! | daemon | our process on a machine that runs agents: slots, labels, agent profiles |
//! | agent | the coding CLI that a daemon starts for an attempt, under a shim |
//! | session | one life of a daemon's stream; numbered by an epoch that only grows |
//! | command | server to daemon, durable until answered |
//! | message | daemon to server, durable until acknowledged |
//! | checkpoint | a restorable copy of an attempt's work, kept by the server |
//! | result | what a DONE task made: a commit, durable on the server |
//! | worktree | the git checkout an attempt works in |
//! | journal | the daemon's SQLite file: commands, attempts, messages not acknowledged |
//! | ledger | the one writer of contract, task, attempt, daemon and command state |

/// Of every program that is made of this library: what is measured is what is used.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod cli;
pub mod daemon;
pub mod domain;
pub mod runtime;
pub mod server;
pub mod store;
pub mod wire;

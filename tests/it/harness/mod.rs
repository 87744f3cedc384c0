//! What the integration tests stand on: the real binary as server and daemons, real git repositories, a real Postgres,
//! and no state left behind, however a test ends.
//!
//! ```text
//!   World ── temp dir ── server (process) ── SQLite file, or a fresh database of the one Postgres cluster
//!     │           └───── daemons (processes) ── shims ── agents
//!     ├── client: generated clients with the owner's key
//!     └── drop: print logs if the test failed, kill every process that carries the world's directory, remove it
//! ```
//!
//! Rules: wait for a condition with a deadline ([`eventually`]), never for a time; one [`World`] a test, nothing shared but
//! the Postgres cluster, in which each test has a database of its own.

#![allow(dead_code, unused_imports, reason = "a harness offers more than the tests of one moment use")]

pub mod client;
pub mod eventually;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod repo;
pub mod world;

mod selftest;

pub use client::Client;
pub use eventually::{DEADLINE, eventually};
pub use repo::Repo;
pub use world::{DaemonOptions, Database, World};

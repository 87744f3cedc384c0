//! What is said: the generated protocol, and the only place where it meets the domain.
//!
//! ```text
//!   pb (generated) ──contract, task, key, fleet: check form, every violation at once──> domain drafts and ids
//!   domain values  ──contract, task, key, fleet, event──────────────────────────────> pb
//!   errors         ──status: one table───────────────────────────────────────────────> tonic::Status
//!   common: ids, times, words      daemon, checkpoint: the session's messages, uploads      page: page and resume tokens
//!   codec: bytes
//! ```
//!
//! Form is checked here (sizes, characters, ranges, what is not served yet); substance (does the task exist, is there a
//! cycle) by the ledger, in the transaction that would rely on it.

pub mod check;
pub mod checkpoint;
pub mod codec;
pub mod common;
pub mod contract;
pub mod daemon;
pub mod event;
pub mod fleet;
pub mod key;
pub mod page;
pub mod status;
pub mod task;
pub mod verbs;

/// The protocol as generated from `proto/makima/v1`.
pub mod pb {
    #![allow(clippy::all, clippy::pedantic, reason = "generated code")]
    tonic::include_proto!("makima.v1");

    /// The same protocol as descriptors, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/makima.bin"));
}

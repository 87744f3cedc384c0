//! What is true: contracts, tasks, attempts, daemons, and the rules by which they change.
//!
//! Nothing here waits, reads a clock, rolls dice or touches a disk: `now` and new ids are arguments, so every rule can be
//! tested with exact times and replayed from a seed. A reader can learn the product from this folder alone:
//!
//! ```text
//!   contract ──has──> task ──is tried by──> attempt ──on──> daemon
//!                      │ dependency: which tasks wait for which
//!                      │ analysis:   which edges plans and paths suggest
//!                      │ schedule:   which ready task goes to which daemon
//!                      │ reconcile:  what a returning daemon is to do with what it has
//!                      │ retry:      what an ended attempt means for its task
//!                      └ checkpoint: what the next attempt goes on from
//!   order:  what the server tells a daemon        report: what a daemon tells the server
//! ```

pub mod analysis;
pub mod attempt;
pub mod checkpoint;
pub mod contract;
pub mod daemon;
pub mod dependency;
pub mod draft;
pub mod event;
pub mod explain;
pub mod id;
pub mod key;
pub mod order;
pub mod reconcile;
pub mod report;
pub mod retry;
pub mod schedule;
pub mod task;
pub mod text;
pub mod time;
pub mod transition;

pub use id::{
    AttemptId, AttemptRef, BatchId, BootId, CheckpointId, ClassId, CommandId, ContractId, DaemonId, Epoch, JournalId,
    KeyId, OwnerId, TaskId,
};
pub use time::Timestamp;

/// Stored documents leave out what is nothing special: most of a task is empty for most of its life, and every field of it is
/// written with every change.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

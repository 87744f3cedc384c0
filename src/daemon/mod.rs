//! TBD

pub mod agents;
pub mod attempt_dir;
pub mod git;
pub mod process;
pub mod repository;
pub mod shim;
pub mod sweep;
pub mod worktree;
pub mod journal;

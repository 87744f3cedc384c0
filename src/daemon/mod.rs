//! TBD
pub mod agents;
pub mod attempt_dir;
pub mod git;
pub mod config;
pub mod health;
pub mod identity;
pub mod journal;
pub mod process;
pub mod repository;
pub mod sanity;
pub mod shim;
pub mod sweep;
pub mod worktree;

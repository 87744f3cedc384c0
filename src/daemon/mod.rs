//! TBD
pub mod journal;

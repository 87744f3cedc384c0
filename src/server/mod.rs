//! Who decides when.
pub mod ledger;
pub mod task_keys;

//! The one integration-test binary: each module below is a theme, `harness` and `bed` are what they stand on.

mod bed;
mod daemon;
mod explain;
mod faults;
mod follow;
mod harness;
mod in_doubt;
mod ledger;
mod metrics;
mod recover;
mod refusals;
mod shim;
mod standing;
mod store;
mod survive;
mod tidy;
mod verbs;

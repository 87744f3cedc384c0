//! The one integration-test binary: each module below is a theme, `harness` and `bed` are what they stand on.

mod bed;
mod harness;
mod ledger;
mod shim;
mod survive;
mod tidy;

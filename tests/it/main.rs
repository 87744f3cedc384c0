//! The one integration-test binary.

mod shim;

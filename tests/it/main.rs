//! The one integration-test binary: each module below is a theme, `harness` is what they stand on.

mod harness;

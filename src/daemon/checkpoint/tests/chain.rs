//! Chains of deltas, and files that are damaged.

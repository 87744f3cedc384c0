//! What is said: the generated protocol, and the only place where it meets the domain.

pub mod common;
pub mod daemon;

/// The protocol as generated from `proto/makima/v1`.
pub mod pb {
    #![allow(clippy::all, clippy::pedantic, reason = "generated code")]
    tonic::include_proto!("makima.v1");

    /// The same protocol as descriptors, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/makima.bin"));
}

//! The map of makima.

pub mod cli;
pub mod daemon;
pub mod domain;
pub mod runtime;
pub mod server;
pub mod store;
pub mod wire;

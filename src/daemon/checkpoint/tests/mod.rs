//! Real repositories, real git: what is captured on one machine is the same on another.

mod bench;
mod chain;
mod compare;
mod operations;
mod random;
mod results;
mod zoo;

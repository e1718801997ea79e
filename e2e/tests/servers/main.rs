//! Tests that need servers: one program, so that servers are started and code is linked once for many tests.
//!
//! Each module below `mod` is a tier of `cargo xtask test`, and runs in a process of its own there.

#[macro_use]
mod shards;
mod stage;

mod api;
mod fleet;
mod kafka;
mod sql;

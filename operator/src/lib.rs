//! The operator: watches custom resources and brings the world to what they ask.
//!
//! Data flows one way: spec and world → observe → decide → act → status. Decisions are made in
//! `longshore_sharding` and in the pure modules here; SQL stands in `shard` alone, and only `status`
//! writes status.

pub mod controller;
pub mod fleet;
mod kafka;
pub mod leader;
pub mod shard;
pub mod shard_set;
mod status;
pub mod telemetry;
mod topic_set;
mod watched;

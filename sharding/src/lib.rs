//! Where a row belongs and what to do next: buckets, ranges, maps, plans and the operation's state machine.
//!
//! Everything here is a pure function of its arguments. This crate must never know a database, a cluster, a
//! clock or the environment: what it needs of them is observed by the operator and passed in.

mod bucket;
pub mod hash;
mod map;
pub mod operation;
mod order_id;
pub mod planner;
mod shard;

pub use bucket::{BucketCount, BucketId, BucketRange, Key, KeyType, Ranges, ShardingError};
pub use map::{Map, MapError, Segment};
pub use order_id::OrderId;
pub use shard::ShardName;

//! An API server, the operator, and the shards of OrderShardSets.

mod charts;
mod harness;
mod operation;
mod pooler;
mod preflight;
mod proxy;
mod quarantine;
mod rotation;
mod scatter;
mod shard_set;

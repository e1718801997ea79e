//! What the operator saw of the shards: the whole input of a decision.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Course, Epoch, OperationId, Phase, Stream};
use crate::{BucketRange, Ranges, ShardName, planner::Move};

/// A bucket's state on one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ownership {
    /// This shard takes the bucket's writes.
    Owned,
    /// This shard gave the bucket up; its peer has it or will have it.
    Moved,
    /// This shard expects the bucket.
    Incoming,
    Absent,
    /// This shard was given the bucket with rows that differ from the giver's.
    Refused,
}

/// Neighbouring buckets of one shard whose ownership rows are alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub range: BucketRange,
    pub state: Ownership,
    pub epoch: Epoch,
    pub peer: Option<ShardName>,
    pub operation: Option<OperationId>,
}

/// One shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shard {
    /// This plan's course in the shard's journal; `None` when it is not there.
    pub journal: Option<Course>,
    /// Every bucket, in rising order.
    pub ownership: Vec<Run>,
    /// Of the plan's moves from or to this shard, without what it owns or expects: ranges that hold at least one row.
    pub with_rows: Ranges,
    /// A table was filled, and its statistics were never gathered.
    pub unanalyzed: bool,
    /// It runs on another server than before, and may lack what its peers know.
    pub quarantined: bool,
    /// Alike on two shards whose tables are alike.
    pub schema: String,
    /// Routers listening here that do not yet know every shard.
    pub routers_behind: u32,
    /// What other operations left here of their streams.
    pub strays: Vec<Stray>,
}

/// An object of a stream that belongs to no operation that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stray {
    pub kind: StrayKind,
    pub name: String,
}

/// In the order in which they can be dropped: a subscription holds its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StrayKind {
    Subscription,
    Slot,
    Publication,
}

/// How far a stream has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Milliseconds since the newest mark that arrived was sent: at least as much as the stream's lag.
    pub age_ms: u64,
    /// A newer mark is on its way.
    pub in_flight: bool,
}

/// The three objects of a stream, at both its ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamView {
    pub publication: bool,
    pub slot: bool,
    pub subscription: bool,
    /// All tables are copied and follow the stream.
    pub synchronised: bool,
    /// The server gave the slot up: what it held back is gone.
    pub slot_lost: bool,
    /// A table waits for a slot of its own that is gone: it is never copied to its end. (A table's worker drops its slot before it
    /// commits that the table is done: PostgreSQL's `process_syncing_tables_for_sync`. A crash in between leaves this.)
    pub cut_off: bool,
    /// Bytes of WAL that the slot holds back.
    pub retained: u64,
    pub probe: Option<Probe>,
}

impl StreamView {
    pub(super) fn is_whole(&self) -> bool {
        self.publication && self.slot && self.subscription && !self.slot_lost
    }

    pub(super) fn is_gone(&self) -> bool {
        !self.publication && !self.slot && !self.subscription
    }
}

/// Everything a decision depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// A shard that could not be reached is missing.
    pub shards: BTreeMap<ShardName, Shard>,
    pub streams: BTreeMap<Stream, StreamView>,
    /// Nothing new is started; what is on its way arrives.
    pub paused: bool,
    /// The spec was changed to what it was before the operation.
    pub reverted: bool,
    pub limits: Limits,
}

/// How much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most buckets that one action may hand over.
    pub batch: usize,
    /// The most pairs of shards that copy rows at the same time.
    pub copies: usize,
    /// The most bytes of WAL that a slot may hold back.
    pub retained_wal: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { batch: 1, copies: 1, retained_wal: u64::MAX }
    }
}

impl Observed {
    pub(super) fn stream(&self, stream: &Stream) -> StreamView {
        self.streams.get(stream).cloned().unwrap_or_default()
    }

    pub(super) fn shard(&self, name: &ShardName) -> Shard {
        self.shards.get(name).cloned().unwrap_or_default()
    }

    /// The move's buckets cut into parts in which both sides' rows are alike.
    pub(super) fn parts<'a>(&'a self, moving: &Move) -> Vec<Part<'a>> {
        let runs = |name| self.shards.get(name).map_or(&[][..], |shard| shard.ownership.as_slice());
        let (sources, destinations) = (runs(&moving.from), runs(&moving.to));
        let mut parts = Vec::new();
        for wanted in moving.ranges.as_slice() {
            for source in overlapping(sources, *wanted) {
                let Some(here) = source.range.intersection(*wanted) else { continue };
                for destination in overlapping(destinations, here) {
                    if let Some(range) = destination.range.intersection(here) {
                        parts.push(Part { range, source, destination });
                    }
                }
            }
        }
        parts
    }
}

fn overlapping(runs: &[Run], range: BucketRange) -> &[Run] {
    let start = runs.partition_point(|run| run.range.last < range.first);
    let end = runs.partition_point(|run| run.range.first <= range.last);
    runs.get(start..end).unwrap_or(&[])
}

/// Buckets of a move that stand alike at both ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) range: BucketRange,
    pub(super) source: &'a Run,
    pub(super) destination: &'a Run,
}

/// How far an operation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub phase: Phase,
    /// Buckets that are where the operation wants them.
    pub buckets_moved: u32,
    pub buckets_total: u32,
}

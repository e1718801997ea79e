//! The operation: one change of the map, from its plan to its end, as a pure function of what was observed.
//!
//! `next` is the only place that decides. It remembers nothing: after a crash anywhere, the same observation
//! leads to the same action, and every action may be repeated. The commit point is [`Action::HandOver`]; before
//! it a bucket goes home by itself, after it the bucket arrives without anybody's help.

mod back;
#[cfg(test)]
mod model;
mod next;
mod observed;
mod pace;
#[cfg(test)]
mod simulation;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use next::{next, progress};
pub use observed::{Limits, Observed, Ownership, Probe, Progress, Run, Shard, Stray, StrayKind, StreamView};
pub use pace::{Pace, PauseBudget};

use crate::{BucketId, Map, Ranges, ShardName, planner::Move};

/// Counts the operations of a set, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub i64);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the owners that a bucket has had; it only rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);

impl Epoch {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What an operation does. Written to the journal of every shard involved before its first effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub id: OperationId,
    pub kind: Kind,
    /// What was to be moved, as estimated before it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// What lies in buckets: an estimate from the server's statistics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct Cost {
    pub rows: i64,
    /// With their indexes: what the destinations' disks need.
    pub bytes: i64,
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { rows: self.rows.saturating_add(other.rows), bytes: self.bytes.saturating_add(other.bytes) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// A new set: nobody owns anything yet. All of its shards are told before the first of them owns a bucket, those that
    /// get none included.
    FirstOwnership { map: Map, shards: Vec<ShardName> },
    /// Buckets change their owner, with their rows.
    Rebalance { moves: Vec<Move> },
}

impl Plan {
    /// The shards whose journals carry the plan, in order of names.
    #[must_use]
    pub fn shards(&self) -> Vec<&ShardName> {
        let mut shards: Vec<_> = match &self.kind {
            Kind::FirstOwnership { shards, .. } => shards.iter().collect(),
            Kind::Rebalance { moves } => moves.iter().flat_map(|m| [&m.from, &m.to]).collect(),
        };
        shards.sort();
        shards.dedup();
        shards
    }

    /// What moves; nothing for a new set.
    #[must_use]
    pub fn moves(&self) -> &[Move] {
        match &self.kind {
            Kind::FirstOwnership { .. } => &[],
            Kind::Rebalance { moves } => moves,
        }
    }

    /// How many buckets get a new owner.
    #[must_use]
    pub fn buckets(&self) -> u32 {
        match &self.kind {
            Kind::FirstOwnership { map, .. } => map.buckets().get(),
            Kind::Rebalance { moves } => moves.iter().map(|m| m.ranges.size()).sum(),
        }
    }
}

/// Where an operation is heading, as its journal says. Where it stands is observed, never remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "course", rename_all = "camelCase")]
pub enum Course {
    /// Buckets go to their destinations.
    Forward,
    /// Buckets go home, for this reason.
    Back {
        reason: Reason,
    },
    /// All arrived: streams go, then the rows left at the sources. From here there is no way back.
    CleaningUp,
    Completed,
    RolledBack {
        reason: Reason,
    },
}

impl Course {
    /// Of two journals that differ the later one counts: the writer died between them.
    fn rank(&self) -> u8 {
        match self {
            Self::Forward => 0,
            Self::Back { .. } | Self::CleaningUp => 1,
            Self::Completed | Self::RolledBack { .. } => 2,
        }
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.rank() == 2
    }
}

/// One direction of a pair: what `source` commits, `destination` applies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stream {
    pub source: ShardName,
    pub destination: ShardName,
}

impl Stream {
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { source: self.destination.clone(), destination: self.source.clone() }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.source, self.destination)
    }
}

/// One effect on one server, small enough to be repeated or abandoned at any moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Write the plan and its course into a shard's journal.
    Journal {
        shard: ShardName,
        course: Course,
    },
    /// Own buckets that nobody owns: a new set's, or those revoked at the other end.
    Own {
        shard: ShardName,
        ranges: Ranges,
        epoch: Epoch,
    },
    /// Make a shard that does not own these buckets never own them by an earlier handover.
    Revoke {
        shard: ShardName,
        ranges: Ranges,
        epoch: Epoch,
    },
    /// Raise the source's epochs, so that nothing sent earlier can ever act.
    Raise {
        shard: ShardName,
        ranges: Ranges,
        epoch: Epoch,
        peer: ShardName,
    },
    /// Let the destination expect the buckets.
    Expect {
        shard: ShardName,
        ranges: Ranges,
        epoch: Epoch,
        peer: ShardName,
    },
    CreatePublication {
        stream: Stream,
        ranges: Ranges,
    },
    CreateSlot {
        stream: Stream,
    },
    CreateSubscription {
        stream: Stream,
        copy_data: bool,
    },
    DropSubscription {
        stream: Stream,
    },
    DropSlot {
        stream: Stream,
    },
    DropPublication {
        stream: Stream,
    },
    /// Drop what a dead operation left of a stream.
    DropStray {
        shard: ShardName,
        stray: Stray,
    },
    /// Send a mark through each of these streams and its receive path: all at once, so that all are young together.
    Probe {
        streams: Vec<Stream>,
    },
    /// The commit point: the source gives up a batch, and tells the destination in the stream.
    HandOver {
        stream: Stream,
        buckets: Vec<BucketId>,
    },
    /// Gather statistics of tables that were just filled: without them the owner-to-be would plan badly.
    Analyze {
        shard: ShardName,
    },
    /// Delete some of the rows that lie where their bucket is not owned.
    Clear {
        shard: ShardName,
        ranges: Ranges,
    },
}

/// Why an operation waits, or turned back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "reason", rename_all_fields = "camelCase")]
pub enum Reason {
    #[error("shard {shard} cannot be reached")]
    ShardUnreachable { shard: ShardName },
    #[error("spec.paused is set")]
    Paused,
    #[error("{stream}: copying rows")]
    Copying { stream: Stream },
    #[error("{stream}: {buckets} buckets on their way")]
    Arriving { stream: Stream, buckets: u32 },
    #[error("{stream}: the stream is {age_ms} ms behind")]
    Lagging { stream: Stream, age_ms: u64 },
    #[error("{routers} routers have not yet connected to every shard")]
    RoutersBehind { routers: u32 },
    #[error("shard {shard} refused bucket {bucket}: its rows differ from those at the source")]
    DigestMismatch { shard: ShardName, bucket: BucketId },
    #[error("{stream}: its publication, slot or subscription is gone in the middle of the move")]
    StreamLost { stream: Stream },
    #[error(
        "{stream}: its slot holds back {mebibytes} MiB of WAL, more than rebalance.maxRetainedWalMebibytes"
    )]
    WalBudgetExceeded { stream: Stream, mebibytes: u64 },
    #[error("{stream}: the copy of a table was cut off where PostgreSQL cannot go on with it")]
    CopyCutOff { stream: Stream },
    #[error("the spec asks for the shards as they were before")]
    SpecReverted,
    #[error(
        "shard {shard} failed over, was restored or was copied: what its streams carried is not certain any more"
    )]
    ServerChanged { shard: ShardName },
    #[error("shard {shard} is quarantined until it has been compared with its peers")]
    Quarantined { shard: ShardName },
    #[error("the tables of shards {one} and {other} differ; make them alike and it goes on")]
    SchemaDiffers { one: ShardName, other: ShardName },
    #[error("bucket {bucket} is owned by both {one} and {other}")]
    OwnershipConflict { bucket: BucketId, one: ShardName, other: ShardName },
    #[error("bucket {bucket} is neither at {} nor at {}", stream.source, stream.destination)]
    Unexpected { bucket: BucketId, stream: Stream },
}

impl Reason {
    /// Whether waiting alone will not end it.
    #[must_use]
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::SchemaDiffers { .. } | Self::OwnershipConflict { .. } | Self::Unexpected { .. } => true,
            Self::ShardUnreachable { .. }
            | Self::Paused
            | Self::Copying { .. }
            | Self::Arriving { .. }
            | Self::Lagging { .. }
            | Self::RoutersBehind { .. }
            | Self::DigestMismatch { .. }
            | Self::StreamLost { .. }
            | Self::WalBudgetExceeded { .. }
            | Self::CopyCutOff { .. }
            | Self::ServerChanged { .. }
            | Self::Quarantined { .. }
            | Self::SpecReverted => false,
        }
    }

    /// Whether an operation that went back for it is tried again without being asked for.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::ServerChanged { .. } | Self::CopyCutOff { .. })
    }

    /// The CamelCase word for conditions, events and metrics.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::ShardUnreachable { .. } => "ShardUnreachable",
            Self::Paused => "Paused",
            Self::Copying { .. } => "Copying",
            Self::Arriving { .. } => "Arriving",
            Self::Lagging { .. } => "Lagging",
            Self::RoutersBehind { .. } => "RoutersBehind",
            Self::DigestMismatch { .. } => "DigestMismatch",
            Self::StreamLost { .. } => "StreamLost",
            Self::WalBudgetExceeded { .. } => "WalBudgetExceeded",
            Self::SpecReverted => "SpecReverted",
            Self::CopyCutOff { .. } => "CopyCutOff",
            Self::ServerChanged { .. } => "ServerChanged",
            Self::Quarantined { .. } => "Quarantined",
            Self::SchemaDiffers { .. } => "SchemaDiffers",
            Self::OwnershipConflict { .. } => "OwnershipConflict",
            Self::Unexpected { .. } => "Unexpected",
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Act(Action),
    /// Nothing to do until the world has changed.
    Wait(Reason),
    /// The operation is over, completed or rolled back.
    Done,
}

/// The part of an operation that a person sees; derived from what was observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub enum Phase {
    /// What it will cost is known; nothing has begun.
    Planning,
    Preparing,
    Copying,
    HandingOver,
    CleaningUp,
    Completed,
    RollingBack,
    RolledBack,
}

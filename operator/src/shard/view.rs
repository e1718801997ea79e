//! What `longshore.observe` answers: one shard in one snapshot, parsed once.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longshore_sharding::{
    BucketId, BucketRange, Ranges, ShardName,
    operation::{Course, Epoch, OperationId, Ownership, Plan, Run},
};
use serde::Deserialize;

/// First and last bucket, state, epoch, peer, operation.
type RunRow = (BucketId, BucketId, Ownership, Epoch, Option<ShardName>, Option<OperationId>);

/// One shard as it was a moment ago.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    pub shards_version: i64,
    /// Unknown to an older agent.
    #[serde(default)]
    pub armed: Armed,
    ownership: Vec<RunRow>,
    /// The journal, oldest first.
    pub operations: Vec<Journalled>,
    with_rows: Vec<(BucketId, BucketId)>,
    pub publications: Vec<String>,
    /// By name: whether the server gave it up, and the bytes of WAL that it holds back.
    pub slots: BTreeMap<String, (bool, u64)>,
    /// By name: whether every table is copied and follows.
    pub subscriptions: BTreeMap<String, bool>,
    /// Slots of tables that peers are copying from here.
    #[serde(default)]
    pub table_slots: Vec<String>,
    /// Subscriptions with a table that needs such a slot at its source, while nothing here works on it.
    #[serde(default)]
    pub awaited_slots: Vec<(String, String)>,
    /// By name: the revision of the Secret that its connection string was made of.
    #[serde(default)]
    pub subscribed_with: BTreeMap<String, Option<String>>,
    /// Marks of the open operation: who sent them, who they are for, their number, milliseconds since they were sent.
    pub probes: Vec<(ShardName, ShardName, i64, i64)>,
    pub routers_behind: u32,
    /// A table was never analyzed.
    pub unanalyzed: bool,
    /// Alike on two shards whose tables are alike.
    pub schema: String,
    /// What `schema` was when the tables were registered.
    pub registered_schema: String,
    /// The last migration that was applied.
    pub migration: Option<String>,
}

/// Where the shard runs, and where it was last compared with its peers: system identifier and timeline.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Armed {
    server: String,
    pub runs_on: String,
    restarted: bool,
    /// The end of its WAL.
    pub lsn: String,
}

impl Armed {
    /// It runs elsewhere, or missed what its peers know: it refuses writes.
    #[must_use]
    pub fn is_quarantined(&self) -> bool {
        self.server != self.runs_on
    }

    /// It has to be compared with its peers: a copied data folder shows itself by nothing but a restart.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.restarted || self.is_quarantined()
    }
}

/// An operation in the journal.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Journalled {
    pub plan: Plan,
    pub course: Course,
    pub generation: i64,
    pub started_at: Time,
    pub changed_at: Time,
    pub result: Option<Arrivals>,
}

/// What an operation brought to one shard.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrivals {
    pub rows: i64,
    pub first_asked_at: Time,
    pub last_arrived_at: Time,
    pub pause_millis: PauseMillis,
}

/// How long writes to a bucket had to wait.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct PauseMillis {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl View {
    /// Every bucket's row, as runs in rising order.
    #[must_use]
    pub fn runs(&self) -> Vec<Run> {
        let run = |row: &RunRow| {
            let (first, last, state, epoch, peer, operation) = row.clone();
            Run { range: BucketRange { first, last }, state, epoch, peer, operation }
        };
        self.ownership.iter().map(run).collect()
    }

    /// Of the ranges asked about that are neither owned nor expected here, those in which a row lies.
    #[must_use]
    pub fn with_rows(&self) -> Ranges {
        self.with_rows.iter().map(|(first, last)| BucketRange { first: *first, last: *last }).collect()
    }

    /// How many buckets the shard owns.
    #[must_use]
    pub fn owned(&self) -> u32 {
        self.runs().iter().filter(|run| run.state == Ownership::Owned).map(|run| run.range.size()).sum()
    }
}

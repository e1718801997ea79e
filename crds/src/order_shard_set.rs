//! `OrderShardSet`: a set of PostgreSQL shards over which the rows of some tables are spread by a key.
#![expect(unreachable_pub, reason = "the schema's derive repeats each type in a scope of its own")]
#![expect(clippy::duplicated_attributes, reason = "each printer column names its type")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

pub use longshore_sharding::operation::Phase;

/// Declares which shards share the buckets of a set, and by what weights. Change `shards`, and rows move online.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "longshore.dev",
    version = "v1alpha1",
    kind = "OrderShardSet",
    plural = "ordershardsets",
    shortname = "oss",
    category = "shop",
    namespaced,
    status = "OrderShardSetStatus",
    derive = "PartialEq",
    printcolumn(name = "Shards", type_ = "integer", json_path = ".status.shardCount"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.operation.phase"),
    printcolumn(name = "Moved", type_ = "string", json_path = ".status.operation.progress"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = "1"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.buckets == oldSelf.buckets").message("buckets is immutable: every order id carries its bucket"))]
#[x_kube(validation = Rule::new("self.shards.exists(s, oldSelf.shards.exists(o, o.name == s.name && o.connectionSecretName == s.connectionSecretName))").message("keep at least one shard: set the others' weight to 0 or remove them, and swap the last one when it is drained"))]
pub struct OrderShardSetSpec {
    /// How many buckets the keys are hashed to: a power of two up to 65536. Immutable.
    #[serde(default = "default_buckets")]
    #[schemars(range(min = 1, max = 65536))]
    #[x_kube(validation = Rule::new("self in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]").message("buckets must be a power of two from 1 to 65536"))]
    pub buckets: u32,

    /// The tables whose rows move, parents before children.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub tables: Vec<TableSpec>,

    /// The schema that every shard gets.
    pub schema: SchemaSpec,

    /// The shards. Removing one drains it first.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = Rule::new("self.exists(s, s.weight > 0)").message("at least one shard needs a weight above 0"))]
    pub shards: Vec<ShardSpec>,

    /// Starts nothing new while true; buckets on their way still arrive. What would move, and its cost, is in status.
    #[serde(default)]
    pub paused: bool,

    /// How rows move.
    #[serde(default)]
    pub rebalance: RebalanceSpec,
}

/// How much at once, and how long writers may wait.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RebalanceSpec {
    /// What nearly every write waits at most while its bucket is handed over: batches are sized by it. A handover that
    /// writers do not let through in twice this time is put off.
    #[serde(default = "default_write_pause_millis")]
    #[schemars(range(min = 20, max = 10000))]
    pub max_write_pause_millis: u32,
    /// How many pairs of shards copy rows at the same time.
    #[serde(default = "default_parallel_copies")]
    #[schemars(range(min = 1, max = 16))]
    pub max_parallel_copies: u32,
    /// How much WAL a replication slot may hold back before the operation is given up, lest the disk fills.
    #[serde(default = "default_retained_wal_mebibytes")]
    #[schemars(range(min = 16, max = 16777216))]
    pub max_retained_wal_mebibytes: u32,
}

fn default_write_pause_millis() -> u32 {
    100
}

fn default_parallel_copies() -> u32 {
    2
}

fn default_retained_wal_mebibytes() -> u32 {
    16_384
}

impl Default for RebalanceSpec {
    fn default() -> Self {
        Self {
            max_write_pause_millis: default_write_pause_millis(),
            max_parallel_copies: default_parallel_copies(),
            max_retained_wal_mebibytes: default_retained_wal_mebibytes(),
        }
    }
}

fn default_buckets() -> u32 {
    65_536
}

/// A table whose rows are spread over the shards.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TableSpec {
    /// The table's name, with its schema unless that is `public`.
    #[schemars(length(max = 127), regex(pattern = r"^[a-z_][a-z0-9_]{0,62}(\.[a-z_][a-z0-9_]{0,62})?$"))]
    pub name: String,
    /// The column that the rows are spread by: bigint or uuid, first in the primary key.
    #[schemars(length(max = 63), regex(pattern = r"^[a-z_][a-z0-9_]*$"))]
    pub key: String,
}

/// Where the set's schema comes from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SchemaSpec {
    /// A ConfigMap whose keys are SQL migrations, applied to every shard in the order of their names.
    #[schemars(length(min = 1, max = 253))]
    pub config_map_name: String,
}

/// One shard.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShardSpec {
    /// The shard's name: part of the names of its replication slots.
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// A Secret with host, port, dbname, username, password, replicationUsername and replicationPassword; for TLS also ca.crt,
    /// sslmode (verify-full if there is a ca.crt, else prefer) and replicationSslRootCert (a file on the servers of the peers).
    /// Where services go through a PgBouncer, poolerHost and poolerPort (6432 if not given). It may change at any moment.
    #[schemars(length(min = 1, max = 253))]
    pub connection_secret_name: String,
    /// The shard's share of the buckets, relative to the other weights. 0 drains it.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 0, max = 10000))]
    pub weight: u32,
}

fn default_weight() -> u32 {
    100
}

/// What the operator saw and does.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OrderShardSetStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Rebalancing and Degraded.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// How many shards the set has, those being drained included.
    #[serde(default)]
    pub shard_count: i32,
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub shards: Vec<ShardStatus>,
    /// The operation under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationStatus>,
    /// The operations that ended, newest first: at most ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub history: Vec<OperationStatus>,
}

/// One shard as the operator sees it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ShardStatus {
    pub name: String,
    pub connection_secret_name: String,
    /// `Ready`, or the reason why it is not.
    pub state: String,
    /// What is wrong and the statement that mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The last migration that was applied to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<String>,
    /// How many buckets it owns; unknown while it cannot be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buckets: Option<i32>,
}

/// One operation, as its journal on the shards says.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    pub id: i64,
    pub phase: Phase,
    /// Buckets with their new owner, of all that move, as `moved/total`.
    pub progress: String,
    pub buckets_moved: i32,
    pub buckets_total: i32,
    /// What it does now, waits for, or why it went back.
    pub message: String,
    /// What moves from where to where.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<MoveStatus>,
    /// What it was to cost, by what was known before it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<ForecastStatus>,
    /// What it really took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultStatus>,
    /// When its plan was written down; not yet while it is planned only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
}

/// Buckets that go from one shard to another.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MoveStatus {
    pub from: String,
    pub to: String,
    pub buckets: i32,
}

/// An estimate: statistics of the tables, and the pace of the operation before it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ForecastStatus {
    pub rows: i64,
    /// With their indexes: what the destinations' disks need.
    pub bytes: i64,
    /// Seconds until the rows are copied.
    pub copy_seconds: i64,
    /// Seconds to hand the buckets over.
    pub hand_over_seconds: i64,
    /// What nearly every write waits at most, in milliseconds.
    pub pause_millis: i64,
}

/// What was measured, on the shards that took buckets over; of several the worst.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ResultStatus {
    pub rows: i64,
    pub copy_seconds: i64,
    pub hand_over_seconds: i64,
    /// How long writes to a bucket waited, in milliseconds: median, 99th percentile, longest.
    pub pause_millis_p50: i64,
    pub pause_millis_p99: i64,
    pub pause_millis_max: i64,
}

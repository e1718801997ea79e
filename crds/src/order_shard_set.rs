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

    /// Starts nothing new while true; buckets on their way still arrive.
    #[serde(default)]
    pub paused: bool,
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
    /// A Secret with host, port, dbname, username, password, replicationUsername and replicationPassword.
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
    /// The operation that ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_operation: Option<OperationStatus>,
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
    pub started_at: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
}

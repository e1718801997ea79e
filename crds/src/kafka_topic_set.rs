//! `KafkaTopicSet`: topics of a Kafka cluster, with their partitions, replicas and configuration.
#![expect(unreachable_pub, reason = "the schema's derive repeats each type in a scope of its own")]
#![expect(clippy::duplicated_attributes, reason = "each printer column names its type")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Declares topics of a Kafka cluster. What is declared is created and kept so; what is not declared is left alone.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "longshore.dev",
    version = "v1alpha1",
    kind = "KafkaTopicSet",
    plural = "kafkatopicsets",
    shortname = "kts",
    category = "shop",
    namespaced,
    status = "KafkaTopicSetStatus",
    derive = "PartialEq",
    printcolumn(name = "Topics", type_ = "integer", json_path = ".status.counts.desired"),
    printcolumn(name = "Settled", type_ = "integer", json_path = ".status.counts.ready"),
    printcolumn(name = "Drifted", type_ = "integer", json_path = ".status.counts.drifted"),
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
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = "1"
    ),
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".spec.clusterRef.bootstrapServers",
        priority = "1"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.topics) || self.topics.all(t, (has(t.minInsyncReplicas) ? t.minInsyncReplicas : (has(self.defaults) && has(self.defaults.minInsyncReplicas) ? self.defaults.minInsyncReplicas : 1)) <= (has(t.replicas) ? t.replicas : (has(self.defaults) && has(self.defaults.replicas) ? self.defaults.replicas : 32767)))").message("a topic has minInsyncReplicas above its replicas, the defaults included: nobody could write to it"))]
pub struct KafkaTopicSetSpec {
    /// The Kafka cluster.
    pub cluster_ref: ClusterRef,
    /// What topics have that do not say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<TopicSettings>,
    /// The topics. What becomes of one that is removed from here says `deletionPolicy`.
    #[serde(default)]
    #[schemars(length(max = 500))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub topics: Vec<TopicSpec>,
    /// What becomes of topics that are not declared any more, or whose set is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// What is done about topics that differ from what is declared though they were once alike.
    #[serde(default)]
    pub drift_policy: DriftPolicy,
    /// What is done about topics that were there before they were declared.
    #[serde(default)]
    pub adoption_policy: AdoptionPolicy,
    /// Whether topics get more partitions by an edit alone. It changes which partition a key goes to, and so the order of keyed
    /// records: while Manual, annotate `longshore.dev/grow-topics: TOPIC:PARTITIONS`.
    #[serde(default)]
    pub partition_increase_policy: PartitionIncreasePolicy,
    /// How replicas move.
    #[serde(default)]
    pub reassignment: ReassignmentSpec,
    /// Plan changes nothing and says in status what Apply would do.
    #[serde(default)]
    pub mode: Mode,
    /// Changes nothing while true; moves of replicas that were begun still end.
    #[serde(default)]
    pub paused: bool,
}

/// How to reach the cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.sasl) || self.sasl.mechanism != 'PLAIN' || has(self.tls)").message("PLAIN sends the password itself: it needs tls"))]
pub struct ClusterRef {
    /// Some of the brokers, as HOST:PORT, separated by commas.
    #[schemars(
        length(min = 3, max = 2048),
        regex(
            pattern = r"^(\[[0-9a-fA-F:]+\]|[a-zA-Z0-9._-]+):[0-9]{1,5}(,(\[[0-9a-fA-F:]+\]|[a-zA-Z0-9._-]+):[0-9]{1,5})*$"
        )
    )]
    pub bootstrap_servers: String,
    /// Encrypts, and verifies the brokers. Plain text if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// How the operator proves who it is. It does not if not given, unless by a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<SaslSpec>,
}

/// Whom to trust, and by which certificate to be trusted.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsSpec {
    /// A Secret with ca.crt (the system's authorities if not there), and, for a certificate of the operator's, tls.crt and tls.key.
    /// It may change at any moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: Option<String>,
}

/// A user of the cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SaslSpec {
    #[serde(default)]
    pub mechanism: SaslMechanism,
    /// A Secret with username and password. It may change at any moment.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaslMechanism {
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "PLAIN")]
    Plain,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    #[default]
    Retain,
    /// With a guard: a topic that somebody consumes, or that got a record within the hour, needs an annotation.
    Delete,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriftPolicy {
    #[default]
    Enforce,
    /// Topics are created, and no more: what differs stands in status.
    Report,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdoptionPolicy {
    /// They are left as they are, and stand in status.
    #[default]
    Fail,
    /// They become as declared: what their configuration has and the declaration has not goes.
    Adopt,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PartitionIncreasePolicy {
    #[default]
    Manual,
    Automatic,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Apply,
    Plan,
}

/// How much at once when a topic's number of replicas changes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReassignmentSpec {
    /// What replicas that move may take of each broker's network, in bytes a second. Others are not slowed.
    #[serde(default = "default_throttle")]
    #[schemars(range(min = 65536, max = 1099511627776_i64))]
    pub throttle_bytes_per_second: i64,
    /// How many partitions move at the same time.
    #[serde(default = "default_moves")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_concurrent_partitions: u32,
}

fn default_throttle() -> i64 {
    50_000_000
}

fn default_moves() -> u32 {
    20
}

impl Default for ReassignmentSpec {
    fn default() -> Self {
        Self { throttle_bytes_per_second: default_throttle(), max_concurrent_partitions: default_moves() }
    }
}

/// A topic but for its name. What is said neither there nor in the defaults is the cluster's.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.config) || !((has(self.retentionMs) && 'retention.ms' in self.config) || (has(self.retentionBytes) && 'retention.bytes' in self.config) || (has(self.cleanupPolicy) && 'cleanup.policy' in self.config) || (has(self.minInsyncReplicas) && 'min.insync.replicas' in self.config))").message("given twice: as a field and as a key of config"))]
#[x_kube(validation = Rule::new("!has(self.config) || !('leader.replication.throttled.replicas' in self.config || 'follower.replication.throttled.replicas' in self.config)").message("throttled replicas are set and removed by the operator: see reassignment"))]
#[x_kube(validation = Rule::new("!has(self.minInsyncReplicas) || !has(self.replicas) || self.minInsyncReplicas <= self.replicas").message("minInsyncReplicas is above replicas: nobody could write"))]
pub struct TopicSettings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub partitions: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub replicas: Option<i16>,
    /// How many replicas must have a record before it is acknowledged to producers that ask for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub min_insync_replicas: Option<i16>,
    /// How long records are kept, in milliseconds; -1 is for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub retention_ms: Option<i64>,
    /// How many bytes of records a partition keeps; -1 is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub retention_bytes: Option<i64>,
    /// delete, compact, or both with a comma between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 14), regex(pattern = r"^(delete|compact|delete,compact|compact,delete)$"))]
    pub cleanup_policy: Option<String>,
    /// Any other configuration of topics, by Kafka's own keys.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 40))]
    pub config: BTreeMap<String, String>,
}

/// One topic.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(oldSelf.partitions) || (has(self.partitions) && self.partitions >= oldSelf.partitions)").message("Kafka cannot take partitions away: declare another topic"))]
pub struct TopicSpec {
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    #[x_kube(validation = Rule::new("self != '.' && self != '..'").message("a topic cannot be called . or .."))]
    pub name: String,
    #[serde(flatten)]
    pub settings: TopicSettings,
}

/// What the operator saw and does.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KafkaTopicSetStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Progressing, Drifted, ClusterReachable and DeletionBlocked.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// As the cluster calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    #[serde(default)]
    pub counts: TopicCounts,
    /// What is wrong with single topics: at most fifty, the first by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["topic".into()]))]
    pub problems: Vec<TopicProblem>,
    /// What would be done, while nothing is: mode Plan, or paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<TopicPlan>,
    /// The topics that are this set's, written down before they are created: only these are ever deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub topics: Vec<String>,
}

/// How many topics there are of each sort.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TopicCounts {
    /// Declared.
    pub desired: i32,
    /// As declared.
    pub ready: i32,
    /// Not as declared though they are there.
    pub drifted: i32,
    /// With a problem.
    pub failed: i32,
    /// With replicas on the move.
    pub reassigning: i32,
}

/// What is wrong with one topic.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TopicProblem {
    pub topic: String,
    /// A word.
    pub reason: String,
    /// The broker's own words, or what to do.
    pub message: String,
}

/// What would be done.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TopicPlan {
    /// Equal for equal plans.
    pub hash: String,
    pub creates: i32,
    /// More partitions.
    pub grows: i32,
    /// Other configuration.
    pub alters: i32,
    /// Other numbers of replicas.
    pub reassigns: i32,
    pub deletes: i32,
    /// In words: at most a hundred, the first by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub steps: Vec<String>,
}

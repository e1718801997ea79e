//! What is asked, parsed once: nobody behind this module reads the raw spec.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use longshore_crds::{
    KafkaTopicSet,
    kafka_topic_set::{
        AdoptionPolicy, ClusterRef, DeletionPolicy, DriftPolicy, Mode, PartitionIncreasePolicy, TopicSettings,
    },
};

/// Annotation: as `TOPIC:TOKEN`, several separated by commas, where a problem has named the token.
pub(super) const DELETE: &str = "longshore.dev/delete-topics";
/// Annotation: as `TOPIC:PARTITIONS`, several separated by commas.
pub(super) const GROW: &str = "longshore.dev/grow-topics";

pub(super) const MIN_INSYNC: &str = "min.insync.replicas";

/// A valid spec, with what identifies its object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) generation: i64,
    pub(super) created: Option<Timestamp>,
    pub(super) cluster: ClusterRef,
    pub(super) topics: BTreeMap<String, Topic>,
    pub(super) deletes: bool,
    pub(super) repairs: bool,
    pub(super) adopts: bool,
    pub(super) grows: bool,
    /// Mode Plan.
    pub(super) plans: bool,
    pub(super) paused: bool,
    /// Bytes a second.
    pub(super) throttle: i64,
    /// The most partitions on the move.
    pub(super) moves: usize,
    /// The topics that are this set's, as it wrote them down before it touched them. There is no room for an owner's name in
    /// a topic itself.
    pub(super) owned: BTreeSet<String>,
    /// Tokens by topic.
    pub(super) may_delete: BTreeMap<String, String>,
    /// Numbers of partitions by topic.
    pub(super) may_grow: BTreeMap<String, String>,
}

/// One topic as it shall be; what is not given is left to the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Topic {
    pub(crate) partitions: Option<i32>,
    pub(crate) replicas: Option<i16>,
    /// By Kafka's keys.
    pub(crate) config: BTreeMap<String, String>,
}

/// What the API server should not have let through.
#[derive(Debug, thiserror::Error)]
#[error("metadata.{0} is missing")]
pub(crate) struct WantedError(&'static str);

impl Wanted {
    pub(super) fn of(set: &KafkaTopicSet) -> Result<Self, WantedError> {
        let spec = &set.spec;
        let defaults = spec.defaults.clone().unwrap_or_default();
        let topic = |settings: &TopicSettings| Topic {
            partitions: settings.partitions.or(defaults.partitions),
            replicas: settings.replicas.or(defaults.replicas),
            config: config_of(&defaults).into_iter().chain(config_of(settings)).collect(),
        };
        Ok(Self {
            namespace: set.namespace().ok_or(WantedError("namespace"))?,
            name: set.name_any(),
            uid: set.uid().ok_or(WantedError("uid"))?,
            generation: set.metadata.generation.unwrap_or(0),
            created: set.creation_timestamp().map(|time| time.0),
            cluster: spec.cluster_ref.clone(),
            topics: spec.topics.iter().map(|spec| (spec.name.clone(), topic(&spec.settings))).collect(),
            deletes: spec.deletion_policy == DeletionPolicy::Delete,
            repairs: spec.drift_policy == DriftPolicy::Enforce,
            adopts: spec.adoption_policy == AdoptionPolicy::Adopt,
            grows: spec.partition_increase_policy == PartitionIncreasePolicy::Automatic,
            plans: spec.mode == Mode::Plan,
            paused: spec.paused,
            throttle: spec.reassignment.throttle_bytes_per_second,
            moves: usize::try_from(spec.reassignment.max_concurrent_partitions).unwrap_or(1),
            owned: set.status.iter().flat_map(|status| status.topics.iter().cloned()).collect(),
            may_delete: permissions(set, DELETE),
            may_grow: permissions(set, GROW),
        })
    }

    /// Every topic that has to be looked at.
    pub(super) fn concerned(&self) -> BTreeSet<String> {
        self.topics.keys().chain(&self.owned).cloned().collect()
    }

    /// Those that were declared once and are not any more.
    pub(super) fn leaving(&self) -> impl Iterator<Item = &String> {
        self.owned.iter().filter(|topic| !self.topics.contains_key(*topic))
    }
}

/// Fields become keys; a key that is given as well was refused by the API server.
fn config_of(settings: &TopicSettings) -> BTreeMap<String, String> {
    let mut config = settings.config.clone();
    let fields = [
        ("retention.ms", settings.retention_ms.map(|value| value.to_string())),
        ("retention.bytes", settings.retention_bytes.map(|value| value.to_string())),
        ("cleanup.policy", settings.cleanup_policy.clone()),
        (MIN_INSYNC, settings.min_insync_replicas.map(|value| value.to_string())),
    ];
    config.extend(fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    config
}

fn permissions(set: &KafkaTopicSet, annotation: &str) -> BTreeMap<String, String> {
    let given = set.annotations().get(annotation).map_or("", String::as_str);
    let pairs = given.split(',').filter_map(|pair| pair.trim().split_once(':'));
    pairs.map(|(topic, token)| (topic.to_owned(), token.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wanted(spec: &serde_json::Value) -> Wanted {
        let object = json!({
            "apiVersion": "longshore.dev/v1alpha1", "kind": "KafkaTopicSet", "spec": spec,
            "metadata": {"name": "shop", "namespace": "n", "uid": "u",
                "annotations": {GROW: "a:12, b:3", DELETE: "c:1a2b"}},
        });
        Wanted::of(&serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn a_topic_overrides_the_defaults_whether_by_field_or_key() {
        let wanted = wanted(&json!({
            "clusterRef": {"bootstrapServers": "k:9092"},
            "defaults": {"partitions": 12, "replicas": 3, "retentionMs": 5, "config": {"segment.ms": "1"}},
            "topics": [{"name": "a"}, {"name": "b", "partitions": 1, "config": {"retention.ms": "7"}}],
        }));
        let config = |topic: &str| {
            wanted.topics[topic].config.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            (config("a").as_str(), wanted.topics["a"].partitions),
            ("retention.ms=5 segment.ms=1", Some(12))
        );
        assert_eq!(
            (config("b").as_str(), wanted.topics["b"].partitions),
            ("retention.ms=7 segment.ms=1", Some(1))
        );
        assert_eq!(wanted.may_grow.get("b").map(String::as_str), Some("3"));
        assert_eq!(wanted.may_delete.get("c").map(String::as_str), Some("1a2b"));
    }
}

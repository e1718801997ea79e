//! Pure: what is to be done to a cluster, as a batch, and in words.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{wanted, world::BrokerId};
use crate::shard::agent::hex;

/// Keys and their new values; those without one go.
pub(crate) type ConfigChange = BTreeMap<String, Option<String>>;

/// Everything that may be done now, by topic. Each part is one request or a few.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Which replicas are throttled: before moves begin, and after they ended.
    pub(super) throttles: BTreeMap<String, ConfigChange>,
    /// At which rate, in bytes a second.
    pub(super) rate: Option<Option<i64>>,
    /// By partition.
    pub(super) moves: BTreeMap<String, BTreeMap<i32, Vec<BrokerId>>>,
    pub(super) adopts: BTreeSet<String>,
    pub(super) creates: BTreeMap<String, wanted::Topic>,
    /// To how many partitions.
    pub(super) grows: BTreeMap<String, i32>,
    pub(super) configs: BTreeMap<String, ConfigChange>,
    pub(super) deletes: BTreeMap<String, Uuid>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Of it, what only ends what was begun: throttles go.
    pub(super) fn ends(&self) -> Self {
        let mut throttles = self.throttles.clone();
        throttles.retain(|_, change| change.values().all(Option::is_none));
        Self { throttles, rate: self.rate.filter(Option::is_none), ..Self::default() }
    }

    /// Leaves a topic alone for this time.
    pub(super) fn drop_topic(&mut self, topic: &str) {
        self.throttles.remove(topic);
        self.moves.remove(topic);
        self.creates.remove(topic);
        self.grows.remove(topic);
        self.configs.remove(topic);
        self.deletes.remove(topic);
    }

    /// All that concerns a topic, in words: equal for equal changes.
    pub(super) fn of_topic(&self, topic: &str) -> Vec<String> {
        let mut words = Vec::new();
        if self.adopts.contains(topic) {
            words.push(format!("{topic}: adopt"));
        }
        if let Some(wanted) = self.creates.get(topic) {
            words.push(format!("{topic}: create{}", described(wanted)));
        }
        if let Some(partitions) = self.grows.get(topic) {
            words.push(format!("{topic}: grow to {partitions} partitions"));
        }
        let configured = [("configure", &self.configs), ("throttle", &self.throttles)];
        for (verb, change) in configured.into_iter().filter_map(|(verb, all)| Some((verb, all.get(topic)?))) {
            let keys = change.iter().map(|(key, value)| match value {
                Some(value) => format!("{key}={value}"),
                None => format!("no {key}"),
            });
            words.push(format!("{topic}: {verb} {}", keys.collect::<Vec<_>>().join(", ")));
        }
        if let Some(partitions) = self.moves.get(topic) {
            let to = partitions.iter().map(|(partition, replicas)| format!("{partition} to {replicas:?}"));
            words.push(format!("{topic}: move partitions {}", to.collect::<Vec<_>>().join(", ")));
        }
        if self.deletes.contains_key(topic) {
            words.push(format!("{topic}: delete"));
        }
        words
    }

    /// Everything in words, by topic.
    pub(super) fn in_words(&self) -> Vec<String> {
        let topics: BTreeSet<&String> = self
            .adopts
            .iter()
            .chain(self.creates.keys())
            .chain(self.grows.keys())
            .chain(self.configs.keys())
            .chain(self.throttles.keys())
            .chain(self.moves.keys())
            .chain(self.deletes.keys())
            .collect();
        topics.into_iter().flat_map(|topic| self.of_topic(topic)).collect()
    }

    /// Equal for equal changes.
    pub(super) fn hash(&self) -> String {
        hex(&Sha256::digest(self.in_words().join("\n").as_bytes())).chars().take(12).collect()
    }
}

fn described(topic: &wanted::Topic) -> String {
    let mut words = String::new();
    if let Some(partitions) = topic.partitions {
        let _ = write!(words, " {partitions} partitions");
    }
    if let Some(replicas) = topic.replicas {
        let _ = write!(words, " {replicas} replicas");
    }
    for (key, value) in &topic.config {
        let _ = write!(words, " {key}={value}");
    }
    words
}

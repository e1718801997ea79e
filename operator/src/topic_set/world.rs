//! What was observed of a cluster: only what decisions are made of.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

pub(crate) type BrokerId = i32;

/// One look at a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct World {
    pub(crate) cluster_id: String,
    /// Those that live, with their racks.
    pub(crate) brokers: BTreeMap<BrokerId, Option<String>>,
    /// Of the topics that were asked for, those that are there.
    pub(crate) topics: BTreeMap<String, Topic>,
    /// Topics that could not be looked at, and why.
    pub(crate) unreadable: BTreeMap<String, String>,
    /// All in the cluster, whoever began them.
    pub(crate) moves: BTreeMap<String, BTreeMap<i32, Move>>,
    /// What all brokers give to throttled replicas unless told otherwise, as leader and follower: bytes a second.
    pub(crate) rates: [Option<i64>; 2],
    /// Who uses topics: only of those that may have to be deleted.
    pub(crate) uses: BTreeMap<String, Use>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Topic {
    pub(crate) id: Uuid,
    /// The replicas of each partition, the preferred leader first; those being added included.
    pub(crate) partitions: BTreeMap<i32, Vec<BrokerId>>,
    /// What was configured for this topic alone.
    pub(crate) config: BTreeMap<String, String>,
}

/// A partition whose replicas move.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Move {
    /// All that it has now.
    pub(crate) replicas: Vec<BrokerId>,
    pub(crate) adding: BTreeSet<BrokerId>,
    pub(crate) removing: BTreeSet<BrokerId>,
}

impl Move {
    /// What it will have at the end.
    pub(crate) fn target(&self) -> Vec<BrokerId> {
        self.replicas.iter().copied().filter(|broker| !self.removing.contains(broker)).collect()
    }

    /// What it would have had.
    pub(crate) fn origin(&self) -> Vec<BrokerId> {
        self.replicas.iter().copied().filter(|broker| !self.adding.contains(broker)).collect()
    }
}

/// Who uses a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Use {
    /// Consumer groups with members.
    pub(crate) groups: BTreeSet<String>,
    /// A record came within the last hour.
    pub(crate) is_fresh: bool,
    /// Why it is not known for certain.
    pub(crate) doubt: Option<String>,
}

//! Pure: topics that other sets declare in the same cluster. Of two sets the older wins, by their uids if they are of one age.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _};
use longshore_crds::KafkaTopicSet;

use super::wanted::Wanted;

/// What other sets declare.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Claims {
    /// By a set that wins, as namespace/name.
    pub(super) older: BTreeMap<String, String>,
    /// By any.
    pub(super) any: BTreeSet<String>,
}

impl Claims {
    /// `cluster_id` tells clusters with several addresses.
    pub(super) fn of<'a>(
        wanted: &Wanted,
        cluster_id: Option<&str>,
        sets: impl IntoIterator<Item = &'a KafkaTopicSet>,
    ) -> Self {
        let (mut claims, ours) = (Self::default(), wanted.concerned());
        for set in sets {
            if set.meta().deletion_timestamp.is_some()
                || set.uid().as_deref() == Some(&wanted.uid)
                || !is_beside(set, wanted, cluster_id)
            {
                continue;
            }
            let is_older = seniority(set) < (wanted.created, Some(wanted.uid.clone()));
            for topic in set.spec.topics.iter().filter(|topic| ours.contains(&topic.name)) {
                claims.any.insert(topic.name.clone());
                if is_older {
                    let name = format!("{}/{}", set.namespace().unwrap_or_default(), set.name_any());
                    claims.older.entry(topic.name.clone()).or_insert(name);
                }
            }
        }
        claims
    }
}

fn is_beside(set: &KafkaTopicSet, wanted: &Wanted, cluster_id: Option<&str>) -> bool {
    let known = set.status.as_ref().and_then(|status| status.cluster_id.as_deref());
    set.spec.cluster_ref.bootstrap_servers == wanted.cluster.bootstrap_servers
        || (known.is_some() && known == cluster_id)
}

fn seniority(set: &KafkaTopicSet) -> (Option<Timestamp>, Option<String>) {
    (set.creation_timestamp().map(|time| time.0), set.uid())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(name: &str, second: u32, bootstrap: &str, cluster_id: &str) -> KafkaTopicSet {
        let object = json!({
            "apiVersion": "longshore.dev/v1alpha1", "kind": "KafkaTopicSet",
            "metadata": {"name": name, "namespace": "n", "uid": name,
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {"clusterRef": {"bootstrapServers": bootstrap}, "topics": [{"name": "t"}]},
            "status": {"clusterId": cluster_id},
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn the_older_wins_and_a_tie_goes_by_uid() {
        let sets = [set("a", 1, "k:1", "x"), set("b", 1, "other:1", "x"), set("c", 0, "far:1", "y")];
        let wanted = |set| Wanted::of(set).unwrap();
        let of = |at: usize| Claims::of(&wanted(&sets[at]), Some("x"), &sets);
        assert!(of(0).older.is_empty() && of(0).any.contains("t"));
        assert_eq!(of(1).older.get("t").map(String::as_str), Some("n/a"));
        assert_eq!(Claims::of(&wanted(&sets[2]), Some("y"), &sets), Claims::default(), "another cluster");
    }
}

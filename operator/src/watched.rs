//! Whether the watch still brings news: what it has brought is compared with what the API server lists, now and then. A watch may
//! hang with its connection open, and a process that only waits for it would never know.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use kube::{Api, Resource, ResourceExt as _, api::ListParams, runtime::reflector::Store};
use serde::de::DeserializeOwned;

use crate::telemetry::Health;

/// resourceVersions by uid, at one moment.
#[derive(Debug, Default)]
struct Look {
    /// By the API server.
    listed: BTreeMap<String, String>,
    /// By the watch.
    brought: BTreeMap<String, String>,
}

impl Look {
    /// Whether something that was missing in the look before has not come since, and still is.
    fn is_stuck_since(&self, before: &Self) -> bool {
        let lacks = |look: &Self, uid: &String| look.listed.get(uid) != look.brought.get(uid);
        let still = |uid: &&String| self.brought.get(*uid) == before.brought.get(*uid);
        let mut uids = self.listed.keys().chain(self.brought.keys()).filter(still);
        uids.any(|uid| lacks(before, uid) && lacks(self, uid))
    }
}

/// I/O: looks for ever, and says what it sees.
pub(crate) async fn compare<K>(api: Api<K>, store: Store<K>, (interval, health): (Duration, &Health))
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + 'static,
{
    let kind = K::kind(&());
    let mut before = None;
    loop {
        tokio::time::sleep(interval).await;
        let listed = match api.list_metadata(&ListParams::default()).await {
            Ok(listed) => listed.items.iter().map(versions).collect(),
            Err(error) => {
                // An API server that is away says nothing about the watch.
                tracing::warn!(%error, %kind, "failed to list");
                before = None;
                continue;
            }
        };
        let brought = store.state().iter().map(|object| versions(object.as_ref())).collect();
        let now = Look { listed, brought };
        let stuck = before.is_some_and(|before| now.is_stuck_since(&before));
        if stuck {
            tracing::error!(%kind, "the watch brings no news");
        }
        health.set_watch_is_stuck(&kind, stuck);
        before = Some(now);
    }
}

fn versions(object: &impl kube::Resource) -> (String, String) {
    (object.uid().unwrap_or_default(), object.resource_version().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(listed: &[(&str, &str)], brought: &[(&str, &str)]) -> Look {
        let of = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(uid, version)| ((*uid).to_owned(), (*version).to_owned())).collect()
        };
        Look { listed: of(listed), brought: of(brought) }
    }

    #[test]
    fn only_what_stays_away_is_stuck() {
        let fresh = look(&[("a", "1")], &[("a", "1")]);
        let late = look(&[("a", "2")], &[("a", "1")]);
        let later = look(&[("a", "3")], &[("a", "1")]);
        let moving = look(&[("a", "4")], &[("a", "3")]);
        assert!(!late.is_stuck_since(&fresh), "an event may be on its way");
        assert!(later.is_stuck_since(&late));
        assert!(!moving.is_stuck_since(&late), "it is behind, but it moves");
        assert!(!fresh.is_stuck_since(&late));
    }

    #[test]
    fn new_and_deleted_sets_count_as_news() {
        let none = look(&[], &[]);
        let unseen = look(&[("a", "1")], &[]);
        let deleted = look(&[], &[("a", "1")]);
        assert!(!unseen.is_stuck_since(&none) && unseen.is_stuck_since(&unseen));
        assert!(!none.is_stuck_since(&deleted) && deleted.is_stuck_since(&deleted));
    }
}

//! Who has the names that a fleet is about to take: an object of somebody else's is not applied over.

use std::collections::{BTreeMap, BTreeSet};

use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
};

use super::{
    Error,
    decide::{Action, Decision},
    manifest::ChildKind,
    observed::{Claim, Key, is_of},
};

/// I/O: one request for each kind of which new objects are to be made.
pub(super) async fn of(
    client: &Client,
    (namespace, fleet): (&str, &str),
    decision: &Decision,
) -> Result<BTreeMap<Key, Claim>, Error> {
    let new: BTreeSet<Key> = decision.actions.iter().filter_map(new_object).collect();
    let kinds: BTreeSet<ChildKind> = new.iter().map(|(kind, _)| *kind).collect();
    let mut claims = BTreeMap::new();
    for kind in kinds {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind.resource());
        let there = api.list_metadata(&ListParams::default()).await.map_err(|source| Error::Kubernetes {
            operation: "list objects of the same kind",
            source: Box::new(source),
        })?;
        for object in there {
            let key = (kind, object.metadata.name.clone().unwrap_or_default());
            if new.contains(&key) {
                let claim = if is_of(&object.metadata, fleet) { Claim::Ours } else { Claim::Others };
                claims.insert(key, claim);
            }
        }
    }
    Ok(claims)
}

fn new_object(action: &Action) -> Option<Key> {
    match action {
        Action::Apply { manifest, over: None, .. } => Some((manifest.kind, manifest.name.clone())),
        Action::Apply { over: Some(_), .. } | Action::Delete { .. } => None,
    }
}

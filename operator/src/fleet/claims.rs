//! Who has the names that a fleet is about to take: an object of somebody else's is not applied over.

use std::{collections::BTreeSet, sync::Arc};

use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
};

use super::{
    Error, act,
    decide::Action,
    manifest::{ChildKind, Fleet},
    observed::{Child, Claim, Key, World, is_of},
};

/// I/O: one request for each kind of which new objects are to be made; one that is denied is said of its objects alone. An
/// object of the fleet that lost its label is found again.
pub(super) async fn look(
    client: &Client,
    namespace: &str,
    fleet: &Fleet,
    (actions, world): (&[Action], &mut World),
) -> Result<(), Error> {
    let new: BTreeSet<Key> = actions.iter().filter_map(new_object).collect();
    let kinds: BTreeSet<ChildKind> = new.iter().map(|(kind, _)| *kind).collect();
    for kind in kinds {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind.resource());
        let there = match api.list_metadata(&ListParams::default()).await {
            Ok(there) => there,
            Err(kube::Error::Api(status)) => {
                let those = new.iter().filter(|(of, _)| *of == kind);
                let unknown = those.map(|key| (key.clone(), Claim::Unknown(status.message.clone())));
                world.claims.extend(unknown);
                continue;
            }
            Err(source) => return Err(Error::kubernetes("list objects of the same kind", source)),
        };
        for object in there {
            let key = (kind, object.metadata.name.clone().unwrap_or_default());
            if !new.contains(&key) {
                continue;
            }
            if is_of(&object.metadata, &fleet.name) {
                world.claims.insert(key, Claim::Ours);
            } else if !Child::of(&object.metadata).is_of(&fleet.uid) {
                world.claims.insert(key, Claim::Others);
            } else {
                match api.get_opt(&key.1).await {
                    Ok(Some(found)) => drop(world.children.insert(key, Arc::new(act::child(kind, found)))),
                    Ok(None) => {}
                    Err(kube::Error::Api(status)) => {
                        world.claims.insert(key, Claim::Unknown(status.message.clone()));
                    }
                    Err(source) => return Err(Error::kubernetes("read an object", source)),
                }
            }
        }
    }
    Ok(())
}

fn new_object(action: &Action) -> Option<Key> {
    match action {
        Action::Apply { manifest, .. } if action.makes_new() => Some((manifest.kind, manifest.name.clone())),
        Action::Apply { .. } | Action::Scale { .. } | Action::Delete { .. } => None,
    }
}

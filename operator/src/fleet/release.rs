//! What becomes of a fleet's objects when the fleet is deleted.

use std::time::Duration;

use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, ListParams},
    core::PartialObjectMeta,
};
use longshore_crds::{ServiceFleet, service_fleet::DeletionPolicy};

use super::{Context, Error, act, manifest::ChildKind, observed::Child};
use crate::telemetry;

/// Until the next look for objects that still have the fleet as their owner.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// I/O: with `Orphan`, takes the fleet's ownership off what still has it, as the API server lists it: what is missed here, the
/// garbage collector would take. With `Delete`, that is what it is for; what has no owner yet, since the policy has just
/// changed, goes here.
///
/// # Errors
/// When the API server fails; the next try begins anew.
pub async fn release(object: &ServiceFleet, ctx: &Context) -> Result<Option<Duration>, Error> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let uid = object.uid().unwrap_or_default();
    let state = ctx.state(&uid).await;
    let _nobody_acts = state.lock().await;
    let orphans = object.spec.deletion_policy == DeletionPolicy::Orphan;
    let mut found = false;
    for kind in ChildKind::ALL {
        for object in objects(ctx, &namespace, kind).await? {
            let child = Child::of(&object.metadata);
            let is_owned = object.owner_references().iter().any(|owner| owner.uid == uid);
            if orphans && is_owned {
                act::disown(&ctx.client, &namespace, (kind, &object), &uid).await?;
                found = true;
            } else if !orphans && !is_owned && child.is_of(&uid) && !child.is_going {
                let key = (kind, object.name_any());
                let deleted = act::delete(&ctx.client, &namespace, &key, &child.fence).await;
                deleted.map_err(|source| Error::kubernetes("delete an object", source))?;
                found = true;
            }
        }
    }
    if found {
        return Ok(Some(LOOK_PAUSE));
    }
    ctx.forget(&uid).await;
    telemetry::forget_fleet(&namespace, &name);
    Ok(None)
}

/// All of a kind, also those that somebody took the fleet's label from.
async fn objects(
    ctx: &Context,
    namespace: &str,
    kind: ChildKind,
) -> Result<Vec<PartialObjectMeta<DynamicObject>>, Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(ctx.client.clone(), namespace, &kind.resource());
    let listed = api
        .list_metadata(&ListParams::default())
        .await
        .map_err(|source| Error::kubernetes("list the objects", source))?;
    Ok(listed.items)
}

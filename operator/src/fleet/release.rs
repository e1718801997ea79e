//! What becomes of a fleet's objects when the fleet is deleted.

use std::time::Duration;

use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, ListParams},
};
use longshore_crds::{ServiceFleet, service_fleet::DeletionPolicy};

use super::{
    Context, Error, act,
    manifest::{ChildKind, FLEET_LABEL},
};
use crate::telemetry;

/// Until the next look for objects that still have the fleet as their owner.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// I/O: with `Orphan`, takes the fleet's ownership off all that it has, as the API server lists it: what is missed here, the
/// garbage collector would take. With `Delete`, that is what it is for.
///
/// # Errors
/// When the API server fails; the next try begins anew.
pub async fn release(object: &ServiceFleet, ctx: &Context) -> Result<Option<Duration>, Error> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let uid = object.uid().unwrap_or_default();
    let state = ctx.state(&uid).await;
    let _nobody_acts = state.lock().await;
    let mut found = false;
    if object.spec.deletion_policy == DeletionPolicy::Orphan {
        for kind in ChildKind::ALL {
            for owned in owned(ctx, &namespace, (&name, &uid), kind).await? {
                act::disown(&ctx.client, &namespace, (kind, &owned), &uid).await?;
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

async fn owned(
    ctx: &Context,
    namespace: &str,
    (fleet, uid): (&str, &str),
    kind: ChildKind,
) -> Result<Vec<DynamicObject>, Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(ctx.client.clone(), namespace, &kind.resource());
    let params = ListParams::default().labels(&format!("{FLEET_LABEL}={fleet}"));
    let listed = api
        .list(&params)
        .await
        .map_err(|source| Error::Kubernetes { operation: "list the objects", source: Box::new(source) })?;
    let is_owned = |object: &DynamicObject| object.owner_references().iter().any(|owner| owner.uid == uid);
    Ok(listed.items.into_iter().filter(is_owned).collect())
}

//! Does what was decided, and decides nothing.
//!
//! Every change names the very version of the object that the decision was about (`Fence`): whoever acts on an old view, as a
//! former leader that slept, is refused by the API server. If we die here, the next one finds what was done, and does the rest.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::PartialObjectMeta,
};
use serde_json::{Value, json};

use super::{
    Error,
    decide::Action,
    manifest::{ChildKind, Manifest},
    observed::{Child, Fence, Key, Refusal},
    partial::Deployment,
};
use crate::{status::FIELD_MANAGER, telemetry};

/// Objects that are changed at the same time.
const CONCURRENCY: usize = 8;

/// What became of an action.
#[derive(Debug)]
pub(super) enum Done {
    /// As it is now.
    Applied(Key, Arc<Child>),
    /// It goes.
    Deleted,
    /// The object has changed meanwhile: the watch will tell.
    Overtaken,
    /// The API server would not do it; everything else goes on.
    Refused(Key, Refusal),
}

/// I/O: deletes first, since an autoscaler may be among them; then one kind after the other, as `ChildKind` orders them.
pub(super) async fn act(client: &Client, namespace: &str, actions: Vec<Action>) -> Result<Vec<Done>, Error> {
    let mut groups: BTreeMap<Option<ChildKind>, Vec<Action>> = BTreeMap::new();
    for action in actions {
        let kind = match &action {
            Action::Delete { .. } => None,
            Action::Apply { manifest, .. } => Some(manifest.kind),
            Action::Scale { .. } => Some(ChildKind::Deployment),
        };
        groups.entry(kind).or_default().push(action);
    }
    let mut done = Vec::new();
    for group in groups.into_values() {
        let acting = stream::iter(group).map(async |action| one(client, namespace, action).await);
        done.extend(acting.buffer_unordered(CONCURRENCY).try_collect::<Vec<_>>().await?);
    }
    Ok(done)
}

async fn one(client: &Client, namespace: &str, action: Action) -> Result<Done, Error> {
    let (operation, key, of, result) = match action {
        Action::Apply { manifest, over, replicas } => {
            let key = (manifest.kind, manifest.name.clone());
            let applied = apply(client, namespace, &manifest, over.as_ref(), replicas).await;
            ("apply", key, Some(manifest.hash.clone()), applied)
        }
        Action::Scale { name, fence, replicas } => {
            let scaled = scale(client, namespace, &name, &fence, replicas).await;
            ("scale", (ChildKind::Deployment, name), None, scaled)
        }
        Action::Delete { key, fence } => {
            let deleted = delete(client, namespace, &key, &fence).await;
            ("delete", key, None, deleted)
        }
    };
    telemetry::count_fleet_write(&key.0.to_string());
    match result {
        Ok(done) => Ok(done),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Done::Overtaken),
        Err(kube::Error::Api(status)) => {
            tracing::warn!(operation, kind = %key.0, name = key.1, status.message, "refused");
            Ok(Done::Refused(key, Refusal { manifest: of, why: status.message.clone() }))
        }
        // Nobody answers: all else would fail as well.
        Err(source) => Err(Error::Object { operation, kind: key.0, name: key.1, source: Box::new(source) }),
    }
}

fn api(client: &Client, namespace: &str, kind: ChildKind) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &kind.resource())
}

async fn apply(
    client: &Client,
    namespace: &str,
    manifest: &Manifest,
    over: Option<&Fence>,
    replicas: Option<i32>,
) -> Result<Done, kube::Error> {
    let key = (manifest.kind, manifest.name.clone());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(body(manifest, over, replicas));
    let object = api(client, namespace, manifest.kind).patch(&manifest.name, &params, &patch).await?;
    Ok(Done::Applied(key, Arc::new(child(manifest.kind, object))))
}

/// How many pods a Deployment has, and nothing else of it.
async fn scale(
    client: &Client,
    namespace: &str,
    name: &str,
    Fence { uid, version }: &Fence,
    replicas: i32,
) -> Result<Done, kube::Error> {
    let kind = ChildKind::Deployment;
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patch = json!({
        "metadata": {"uid": uid, "resourceVersion": version},
        "spec": {"replicas": replicas},
    });
    let object = api(client, namespace, kind).patch(name, &params, &Patch::Merge(&patch)).await?;
    Ok(Done::Applied((kind, name.to_owned()), Arc::new(child(kind, object))))
}

fn body(manifest: &Manifest, over: Option<&Fence>, replicas: Option<i32>) -> Value {
    let mut body = manifest.body.clone();
    if let Some(Fence { uid, version }) = over {
        body["metadata"]["uid"] = uid.clone().into();
        body["metadata"]["resourceVersion"] = version.clone().into();
    }
    if let Some(replicas) = replicas {
        body["spec"]["replicas"] = replicas.into();
    }
    body
}

/// Pure: what the API server says an object is.
pub(super) fn child(kind: ChildKind, object: DynamicObject) -> Child {
    let metadata = object.metadata.clone();
    match kind {
        ChildKind::Deployment => object
            .try_parse::<Deployment>()
            .map_or_else(|_| Child::of(&metadata), |deployment| Child::of_deployment(&deployment)),
        ChildKind::ServiceAccount
        | ChildKind::NetworkPolicy
        | ChildKind::Service
        | ChildKind::PodDisruptionBudget
        | ChildKind::HorizontalPodAutoscaler => Child::of(&metadata),
    }
}

/// I/O: deletes that very version of an object.
pub(super) async fn delete(
    client: &Client,
    namespace: &str,
    key: &Key,
    fence: &Fence,
) -> Result<Done, kube::Error> {
    let (kind, name) = key;
    let preconditions =
        Preconditions { uid: Some(fence.uid.clone()), resource_version: Some(fence.version.clone()) };
    // A Deployment is seen until its last pod has ended.
    let propagation = match kind {
        ChildKind::Deployment => PropagationPolicy::Foreground,
        ChildKind::ServiceAccount
        | ChildKind::NetworkPolicy
        | ChildKind::Service
        | ChildKind::PodDisruptionBudget
        | ChildKind::HorizontalPodAutoscaler => PropagationPolicy::Background,
    };
    let params = DeleteParams {
        preconditions: Some(preconditions),
        propagation_policy: Some(propagation),
        ..DeleteParams::default()
    };
    match api(client, namespace, *kind).delete(name, &params).await {
        Ok(_) => Ok(Done::Deleted),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Done::Deleted),
        Err(error) => Err(error),
    }
}

/// I/O: takes the fleet's ownership off an object: it lives on when the fleet is gone.
pub(super) async fn disown(
    client: &Client,
    namespace: &str,
    (kind, object): (ChildKind, &PartialObjectMeta<DynamicObject>),
    fleet_uid: &str,
) -> Result<(), Error> {
    let name = object.metadata.name.clone().unwrap_or_default();
    let others: Vec<_> =
        object.metadata.owner_references.iter().flatten().filter(|owner| owner.uid != fleet_uid).collect();
    let patch = json!({"metadata": {
        "uid": object.metadata.uid,
        "resourceVersion": object.metadata.resource_version,
        "ownerReferences": others,
    }});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    telemetry::count_fleet_write(&kind.to_string());
    match api(client, namespace, kind).patch_metadata(&name, &params, &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        // It has changed, or is gone: the next look tells.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(source) => Err(Error::Object { operation: "disown", kind, name, source: Box::new(source) }),
    }
}

//! The cluster's metrics server: what autoscalers ask.

use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};

use super::NAME;

const MANIFESTS: &str = include_str!("metrics.yaml");

/// What to apply, in kube-system.
pub(super) fn manifests(image: &str) -> String {
    MANIFESTS.replace("$IMAGE", image)
}

/// Whether it knows what the node takes.
pub(super) async fn answers(client: &Client) -> bool {
    let kind = GroupVersionKind::gvk("metrics.k8s.io", "v1beta1", "NodeMetrics");
    let resource = ApiResource::from_gvk_with_plural(&kind, "nodes");
    let metrics: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let listed = metrics.list(&ListParams::default()).await;
    listed.is_ok_and(|listed| listed.items.iter().any(|node| node.metadata.name.as_deref() == Some(NAME)))
}

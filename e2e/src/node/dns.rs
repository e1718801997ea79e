//! The cluster's DNS server.

use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;

use super::network::DNS_SERVICE;
use crate::apiserver::ApiServer;

const MANIFESTS: &str = include_str!("dns.yaml");

/// What to apply, in kube-system.
pub(super) fn manifests(image: &str) -> String {
    MANIFESTS.replace("$IMAGE", image).replace("$ADDRESS", DNS_SERVICE)
}

pub(super) async fn is_ready(apiserver: &ApiServer) -> bool {
    let Ok(client) = apiserver.client().await else { return false };
    let deployments: Api<Deployment> = Api::namespaced(client, "kube-system");
    let Ok(Some(deployment)) = deployments.get_opt("coredns").await else { return false };
    deployment.status.and_then(|status| status.ready_replicas).is_some_and(|ready| ready > 0)
}

//! Kubernetes' objects with those fields only that are looked at. All that a pod may hold is much to decode, and to build a decoder of.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment as WholeDeployment, DeploymentStatus},
        core::v1::{Pod as WholePod, PodStatus},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = WholeDeployment)]
pub(super) struct Deployment {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: Option<DeploymentSpec>,
    pub(super) status: Option<DeploymentStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct DeploymentSpec {
    pub(super) replicas: Option<i32>,
    #[serde(default)]
    pub(super) template: Template,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Template {
    pub(super) spec: Option<PodSpec>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct PodSpec {
    #[serde(default)]
    pub(super) containers: Vec<Container>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Container {
    pub(super) image: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = WholePod)]
pub(super) struct Pod {
    pub(super) metadata: ObjectMeta,
    pub(super) status: Option<PodStatus>,
}

//! What a fleet's services are in Kubernetes: pure builders, a module for each kind. `e2e/golden/fleet-example.yaml` shows what they make.
//!
//! Invariant: the same spec makes the same manifests in every version of the operator that does not say otherwise in the
//! changelog: else an upgrade would roll pods.

mod autoscaler;
mod deployment;
mod disruption_budget;
mod network_policy;
mod service;
mod service_account;

use std::fmt;

use kube::core::{ApiResource, GroupVersionKind};
use longshore_crds::service_fleet::{PortsSpec, ServiceSpec};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// Of all objects and pods: the fleet that they are of.
pub const FLEET_LABEL: &str = "longshore.dev/fleet";
/// Of all objects and pods: the service that they are of.
pub const SERVICE_LABEL: &str = "longshore.dev/service";
/// Of an object: a hash of what was applied.
pub(super) const WANTED: &str = "longshore.dev/wanted";
/// Of an object that must outlive its fleet: the fleet's uid, where others have an owner.
pub(super) const KEEPER: &str = "longshore.dev/fleet-uid";
/// Of a Deployment: a hash of its pods' template.
pub(super) const TEMPLATE: &str = "longshore.dev/template";
/// Of a Deployment: the services that its pods depend on, with commas.
pub(super) const DEPENDS_ON: &str = "longshore.dev/depends-on";
/// Of a pod: a hash of its ConfigMaps and Secrets.
const CONFIG: &str = "longshore.dev/config";

/// A kind that a fleet has objects of, in the order in which they are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChildKind {
    ServiceAccount,
    NetworkPolicy,
    Service,
    Deployment,
    /// Where it stands there has been a Deployment.
    PodDisruptionBudget,
    HorizontalPodAutoscaler,
}

impl ChildKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::ServiceAccount,
        Self::NetworkPolicy,
        Self::Service,
        Self::Deployment,
        Self::PodDisruptionBudget,
        Self::HorizontalPodAutoscaler,
    ];

    /// As the API server has it.
    #[must_use]
    pub fn resource(self) -> ApiResource {
        let (group, version, plural) = match self {
            Self::ServiceAccount => ("", "v1", "serviceaccounts"),
            Self::NetworkPolicy => ("networking.k8s.io", "v1", "networkpolicies"),
            Self::Service => ("", "v1", "services"),
            Self::PodDisruptionBudget => ("policy", "v1", "poddisruptionbudgets"),
            Self::Deployment => ("apps", "v1", "deployments"),
            Self::HorizontalPodAutoscaler => ("autoscaling", "v2", "horizontalpodautoscalers"),
        };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, &self.to_string()), plural)
    }
}

impl fmt::Display for ChildKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The fleet, as far as manifests are about it.
#[derive(Clone, Debug)]
pub struct Fleet {
    pub name: String,
    pub uid: String,
    /// Whether its objects must outlive it. They have no owner then: the garbage collector may come before the operator.
    pub orphans: bool,
    pub image_pull_secret_names: Vec<String>,
}

/// What is applied: one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub kind: ChildKind,
    /// The service's, and the object's.
    pub name: String,
    /// Of a Deployment whose replicas are the autoscaler's, without them.
    pub body: Value,
    /// Of the body, whoever owns it: another fleet that takes it over changes nothing of it.
    pub hash: String,
}

impl Manifest {
    /// Pure: `spec` holds whatever the object has beside metadata.
    fn new(kind: ChildKind, fleet: &Fleet, service: &ServiceSpec, spec: Map<String, Value>) -> Self {
        Self::with_annotations(kind, fleet, service, &Map::new(), spec)
    }

    fn with_annotations(
        kind: ChildKind,
        fleet: &Fleet,
        service: &ServiceSpec,
        annotations: &Map<String, Value>,
        spec: Map<String, Value>,
    ) -> Self {
        let resource = kind.resource();
        let mut body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {
                "name": service.name,
                "labels": labels(fleet, service),
                "annotations": annotations,
            },
        });
        body.as_object_mut().expect("it was made as one").extend(spec);
        let hash = hash(&body);
        body["metadata"]["annotations"][WANTED] = hash.clone().into();
        if fleet.orphans {
            body["metadata"]["annotations"][KEEPER] = fleet.uid.clone().into();
        } else {
            body["metadata"]["ownerReferences"] = json!([{
                "apiVersion": "longshore.dev/v1alpha1",
                "kind": "ServiceFleet",
                "name": fleet.name,
                "uid": fleet.uid,
                "controller": true,
            }]);
        }
        Self { kind, name: service.name.clone(), body, hash }
    }

    /// Of a Deployment: the hash of its pods' template.
    pub(super) fn template(&self) -> Option<&str> {
        self.body["metadata"]["annotations"].get(TEMPLATE)?.as_str()
    }
}

/// Pure: everything that a service has, but for its Deployment; in the order in which it is applied.
#[must_use]
pub fn supports(fleet: &Fleet, service: &ServiceSpec, dependents: &[&str]) -> Vec<Manifest> {
    let always = [
        service_account::build(fleet, service),
        network_policy::build(fleet, service, dependents),
        disruption_budget::build(fleet, service),
    ];
    let more = [service::build(fleet, service), autoscaler::build(fleet, service)];
    always.into_iter().chain(more.into_iter().flatten()).collect()
}

/// Pure: a service's Deployment; `config` is the hash of what its pods must be restarted for, `former` what it does not depend on
/// any more but pods of its that still run.
#[must_use]
pub fn deployment(fleet: &Fleet, service: &ServiceSpec, config: Option<&str>, former: &[String]) -> Manifest {
    deployment::build(fleet, service, config, former)
}

/// The first 16 hexadecimal digits of its SHA-256.
#[must_use]
pub(super) fn hash(value: &Value) -> String {
    digits(Sha256::new().chain_update(value.to_string()))
}

pub(super) fn digits(hasher: Sha256) -> String {
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn labels(fleet: &Fleet, service: &ServiceSpec) -> Value {
    json!({
        FLEET_LABEL: fleet.name,
        SERVICE_LABEL: service.name,
        "app.kubernetes.io/name": service.name,
        "app.kubernetes.io/part-of": fleet.name,
        "app.kubernetes.io/managed-by": "longshore",
    })
}

/// What tells a service's pods from all others, in a Deployment for ever.
fn selector(fleet: &Fleet, service: &str) -> Value {
    json!({FLEET_LABEL: fleet.name, SERVICE_LABEL: service})
}

/// Names and numbers of its ports.
fn ports(ports: &PortsSpec) -> impl Iterator<Item = (&'static str, i32)> {
    let all = [("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)];
    all.into_iter().filter_map(|(name, port)| Some((name, port?)))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

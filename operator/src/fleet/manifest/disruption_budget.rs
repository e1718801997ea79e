//! How many of a service's pods may be away because nodes are emptied. It never keeps a node from being emptied.

use longshore_crds::service_fleet::ServiceSpec;
use serde_json::json;

use super::{ChildKind, Fleet, Manifest, object, selector};

pub(super) fn build(fleet: &Fleet, service: &ServiceSpec) -> Manifest {
    let spec = json!({"spec": {
        "maxUnavailable": service.disruption.max_unavailable,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": selector(fleet, &service.name)},
    }});
    Manifest::new(ChildKind::PodDisruptionBudget, fleet, service, object(spec))
}

//! Who may connect to a service's pods, and to which ports alone. Where they may connect to is not limited.
//!
//! Ports are named, not numbered: pods that still run with another number are not cut off while it changes.

use longshore_crds::service_fleet::{Clients, ServiceSpec};
use serde_json::{Value, json};

use super::{ChildKind, FLEET_LABEL, Fleet, Manifest, SERVICE_LABEL, object, selector};

pub(super) fn build(fleet: &Fleet, service: &ServiceSpec, dependents: &[&str]) -> Manifest {
    let mut spec = json!({"spec": {
        "podSelector": {"matchLabels": selector(fleet, &service.name)},
        "policyTypes": ["Ingress"],
    }});
    let rules = rules(fleet, service, dependents);
    if !rules.is_empty() {
        spec["spec"]["ingress"] = rules.into();
    }
    Manifest::new(ChildKind::NetworkPolicy, fleet, service, object(spec))
}

fn rules(fleet: &Fleet, service: &ServiceSpec, dependents: &[&str]) -> Vec<Value> {
    let Some(ports) = &service.ports else { return Vec::new() };
    let (metrics, called): (Vec<_>, Vec<_>) = super::ports(ports).partition(|(name, _)| *name == "metrics");
    let called: Vec<Value> = called.into_iter().map(port).collect();
    let called = (!called.is_empty()).then_some(called).and_then(|ports| match service.clients {
        Clients::Cluster => Some(json!({"ports": ports})),
        Clients::Fleet => {
            let peers = json!({"podSelector": {"matchLabels": {FLEET_LABEL: fleet.name}}});
            Some(json!({"ports": ports, "from": [peers]}))
        }
        // No rule rather than an empty list, which would let everybody in.
        Clients::Dependents if dependents.is_empty() => None,
        Clients::Dependents => {
            let those = json!([{"key": SERVICE_LABEL, "operator": "In", "values": dependents}]);
            let selector = json!({"matchLabels": {FLEET_LABEL: fleet.name}, "matchExpressions": those});
            Some(json!({"ports": ports, "from": [{"podSelector": selector}]}))
        }
    });
    let metrics = metrics.into_iter().map(|metrics| json!({"ports": [port(metrics)]}));
    called.into_iter().chain(metrics).collect()
}

fn port((name, _): (&str, i32)) -> Value {
    json!({"port": name, "protocol": "TCP"})
}

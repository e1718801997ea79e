//! A service's address.

use longshore_crds::service_fleet::ServiceSpec;
use serde_json::{Value, json};

use super::{ChildKind, Fleet, Manifest, object, ports, selector};

pub(super) fn build(fleet: &Fleet, service: &ServiceSpec) -> Option<Manifest> {
    let ports: Vec<Value> = ports(service.ports.as_ref()?).map(port).collect();
    let spec = json!({"spec": {
        "type": "ClusterIP",
        "selector": selector(fleet, &service.name),
        "ports": ports,
    }});
    Some(Manifest::new(ChildKind::Service, fleet, service, object(spec)))
}

fn port((name, port): (&str, i32)) -> Value {
    let mut port = json!({"name": name, "port": port, "targetPort": name, "protocol": "TCP"});
    if name == "grpc" {
        // HTTP/2 without TLS: what a gateway must know.
        port["appProtocol"] = "kubernetes.io/h2c".into();
    }
    port
}

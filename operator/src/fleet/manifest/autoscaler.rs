//! As many pods as keep the processors as busy as asked.

use longshore_crds::service_fleet::ServiceSpec;
use serde_json::json;

use super::{ChildKind, Fleet, Manifest, object};

pub(super) fn build(fleet: &Fleet, service: &ServiceSpec) -> Option<Manifest> {
    let autoscaling = service.autoscaling?;
    let target = json!({"type": "Utilization", "averageUtilization": autoscaling.target_cpu_percent});
    let spec = json!({"spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": service.name},
        "minReplicas": autoscaling.min_replicas,
        "maxReplicas": autoscaling.max_replicas,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
    }});
    Some(Manifest::new(ChildKind::HorizontalPodAutoscaler, fleet, service, object(spec)))
}

//! A fleet that uses every field, and what it is made into: golden manifests, to be looked at in a review.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, Result};
use longshore_crds::ServiceFleet;
use longshore_operator::fleet::{
    decide::{Action, decide},
    manifest::Manifest,
    observed::{Config, Content, World},
    wanted::Wanted,
};
use serde_json::{Value, json};

/// The golden file below `e2e/golden`.
pub const GOLDEN: &str = "fleet-example.yaml";

/// `spec` of it: a gateway to the world, what it calls, and a worker that nobody calls.
pub fn spec() -> Value {
    json!({
        "deletionPolicy": "Orphan",
        "imagePullSecretNames": ["registry"],
        "services": [
            {
                "name": "order",
                "image": "registry.example/order:1.4.2",
                "autoscaling": {"minReplicas": 4, "maxReplicas": 12, "targetCpuPercent": 60},
                "resources": {
                    "requests": {"cpu": "4", "memory": "8Gi"},
                    "limits": {"cpu": "4500m", "memory": "8Gi"},
                },
                "ports": {"http": 3003, "grpc": 4003, "metrics": 9103},
                "env": [{"name": "LISTEN", "value": "0.0.0.0:3003"}, {"name": "RUST_LOG", "value": "info"}],
                "config": [
                    {"configMapName": "order-settings"},
                    {"secretName": "order-keys", "mountPath": "/etc/order/keys"},
                    {"secretName": "order-shards", "mountPath": "/etc/order/shards", "restartOnChange": false},
                ],
                "probes": {
                    "startup": {"port": "grpc", "failureThreshold": 30},
                    "readiness": {"path": "/health", "periodSeconds": 2},
                    "liveness": {"port": "metrics", "periodSeconds": 10, "failureThreshold": 6},
                },
                "dependsOn": ["payment"],
                "disruption": {"maxUnavailable": 2, "drainSeconds": 8, "terminationGraceSeconds": 60},
            },
            {
                "name": "payment",
                "image": "registry.example/payment@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
                "replicas": 2,
                "resources": {"requests": {"cpu": "2", "memory": "4Gi"}},
                "ports": {"grpc": 4005, "metrics": 9105},
                "clients": "Dependents",
            },
            {
                "name": "report",
                "image": "registry.example/report:7",
                "replicas": 1,
                "resources": {"requests": {"cpu": "500m", "memory": "256Mi"}, "limits": {"memory": "256Mi"}},
                "clients": "Fleet",
            },
            {
                "name": "search",
                "image": "registry.example/search:7",
                "replicas": 1,
                "resources": {"requests": {"cpu": "0.5", "memory": "1G"}},
                "ports": {"http": 3009},
                "clients": "Fleet",
            },
        ],
    })
}

/// What is applied for a fleet in an empty namespace when all that it names is there; each service as if it stood alone, so
/// that no order matters.
///
/// # Errors
/// When the spec is none.
pub fn manifests(spec: &Value) -> Result<Vec<Arc<Manifest>>> {
    let object = json!({
        "apiVersion": "longshore.dev/v1alpha1", "kind": "ServiceFleet",
        "metadata": {"name": "shop", "namespace": "shop", "uid": "00000000-0000-0000-0000-000000000000"},
        "spec": spec,
    });
    let fleet: ServiceFleet = serde_json::from_value(object).context("the spec is none of a fleet")?;
    let mut wanted = Wanted::of(&fleet);
    wanted.services.values_mut().for_each(|service| service.before.clear());
    let configs = fleet.spec.services.iter().flat_map(|service| &service.config);
    let name = |config: &longshore_crds::service_fleet::ConfigSpec| {
        let map = config.config_map_name.clone().map(Config::ConfigMap);
        map.or_else(|| config.secret_name.clone().map(Config::Secret))
    };
    let configs: BTreeMap<_, _> = configs
        .filter_map(name)
        .map(|config| (config, Content::Hash("0123456789abcdef".to_owned())))
        .collect();
    let decision = decide(&wanted, &World { configs, ..World::default() });
    let manifest = |action| match action {
        Action::Apply { manifest, .. } => Some(manifest),
        Action::Scale { .. } | Action::Delete { .. } => None,
    };
    Ok(decision.actions.into_iter().filter_map(manifest).collect())
}

/// The golden file's content.
///
/// # Errors
/// When it cannot be made.
pub fn golden() -> Result<String> {
    let one = |manifest: Arc<Manifest>| Ok(format!("---\n{}", serde_saphyr::to_string(&manifest.body)?));
    manifests(&spec())?.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::settings;

    #[test]
    fn manifests_are_as_they_were_reviewed() {
        let file = settings::repository().join("e2e/golden").join(GOLDEN);
        let found = fs::read_to_string(file).unwrap_or_default();
        assert!(
            found == golden().unwrap(),
            "{GOLDEN} is old: if pods shall roll, run `cargo xtask generate`"
        );
    }
}

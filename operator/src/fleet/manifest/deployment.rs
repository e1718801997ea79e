//! A service's pods: restricted, spread, never fewer than declared while they are replaced, and drained before they end.

use longshore_crds::service_fleet::{ConfigSpec, PortName, ProbeSpec, ServiceSpec};
use serde_json::{Map, Value, json};

use super::{
    CONFIG, ChildKind, DEPENDS_ON, Fleet, Manifest, TEMPLATE, hash, labels, object, ports, selector,
};

/// The user of every container, as of distroless images.
const USER: i64 = 65_532;
/// Old ReplicaSets that are kept.
const HISTORY: i32 = 3;
/// A pod that nobody can ask whether it is ready counts when it has run for so long: else one that crashes at once would do.
const UNPROBED_SECONDS: i32 = 10;
/// After which a rollout that does not get on is called stuck.
const PROGRESS_SECONDS: i32 = 600;

pub(super) fn build(
    fleet: &Fleet,
    service: &ServiceSpec,
    config: Option<&str>,
    former: &[String],
) -> Manifest {
    let template = template(fleet, service, config);
    let mut annotations = Map::new();
    annotations.insert(TEMPLATE.to_owned(), hash(&template).into());
    let depends_on = [service.depends_on.as_slice(), former].concat();
    if !depends_on.is_empty() {
        annotations.insert(DEPENDS_ON.to_owned(), depends_on.join(",").into());
    }
    let mut spec = json!({"spec": {
        "selector": {"matchLabels": selector(fleet, &service.name)},
        // A new pod is there before an old one goes.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
        // Somebody's `kubectl rollout pause` would hold what the fleet says is rolled out.
        "paused": false,
        "revisionHistoryLimit": HISTORY,
        "progressDeadlineSeconds": PROGRESS_SECONDS,
        "template": template,
    }});
    if let Some(replicas) = service.replicas {
        spec["spec"]["replicas"] = replicas.into();
    }
    if readiness(service).is_none() {
        spec["spec"]["minReadySeconds"] = UNPROBED_SECONDS.into();
    }
    Manifest::with_annotations(ChildKind::Deployment, fleet, service, &annotations, object(spec))
}

fn template(fleet: &Fleet, service: &ServiceSpec, config: Option<&str>) -> Value {
    let mut metadata = json!({"labels": labels(fleet, service)});
    if let Some(config) = config {
        metadata["annotations"] = json!({CONFIG: config});
    }
    let mut spec = json!({
        "serviceAccountName": service.name,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": service.disruption.termination_grace_seconds,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": spread(fleet, service),
        "containers": [container(service)],
        "volumes": volumes(service),
    });
    let secrets: Vec<Value> =
        fleet.image_pull_secret_names.iter().map(|name| json!({"name": name})).collect();
    if !secrets.is_empty() {
        spec["imagePullSecrets"] = secrets.into();
    }
    json!({"metadata": metadata, "spec": spec})
}

/// Over zones and nodes, where there are several; pods of each version by themselves.
fn spread(fleet: &Fleet, service: &ServiceSpec) -> Vec<Value> {
    let over = |key: &str| {
        json!({
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(fleet, &service.name)},
            "matchLabelKeys": ["pod-template-hash"],
        })
    };
    vec![over("topology.kubernetes.io/zone"), over("kubernetes.io/hostname")]
}

fn container(service: &ServiceSpec) -> Value {
    let mut container = json!({
        "name": service.name,
        "image": service.image,
        "resources": service.resources,
        // Until nobody is sent here any more.
        "lifecycle": {"preStop": {"sleep": {"seconds": service.disruption.drain_seconds}}},
        "volumeMounts": mounts(service),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
    });
    let lists = [("ports", container_ports(service)), ("env", env(service)), ("envFrom", env_from(service))];
    for (name, list) in lists {
        if !list.is_empty() {
            container[name] = list.into();
        }
    }
    for (name, probe) in probes(service) {
        container[name] = probe;
    }
    container
}

fn container_ports(service: &ServiceSpec) -> Vec<Value> {
    let port = |(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"});
    service.ports.iter().flat_map(ports).map(port).collect()
}

fn env(service: &ServiceSpec) -> Vec<Value> {
    service.env.iter().map(|env| json!({"name": env.name, "value": env.value})).collect()
}

fn env_from(service: &ServiceSpec) -> Vec<Value> {
    let source = |config: &ConfigSpec| match (&config.config_map_name, &config.secret_name) {
        (Some(name), _) => Some(json!({"configMapRef": {"name": name}})),
        (None, Some(name)) => Some(json!({"secretRef": {"name": name}})),
        (None, None) => None,
    };
    service.config.iter().filter(|config| config.mount_path.is_none()).filter_map(source).collect()
}

/// Those with a folder, by their place in the list.
fn mounted(service: &ServiceSpec) -> impl Iterator<Item = (String, &ConfigSpec, &str)> {
    let mounted = service.config.iter().enumerate();
    mounted.filter_map(|(at, config)| Some((format!("config-{at}"), config, config.mount_path.as_deref()?)))
}

fn volumes(service: &ServiceSpec) -> Vec<Value> {
    let volume = |(name, config, _): (String, &ConfigSpec, &str)| match &config.config_map_name {
        Some(map) => json!({"name": name, "configMap": {"name": map, "defaultMode": 0o444}}),
        None => json!({"name": name, "secret": {"secretName": config.secret_name, "defaultMode": 0o440}}),
    };
    let scratch = json!({"name": "tmp", "emptyDir": {}});
    std::iter::once(scratch).chain(mounted(service).map(volume)).collect()
}

fn mounts(service: &ServiceSpec) -> Vec<Value> {
    let mount = |(name, _, path): (String, &ConfigSpec, &str)| json!({"name": name, "mountPath": path, "readOnly": true});
    let scratch = json!({"name": "tmp", "mountPath": "/tmp"});
    std::iter::once(scratch).chain(mounted(service).map(mount)).collect()
}

/// A rollout is only as careful as its readiness probe: there is one wherever there is a port.
fn readiness(service: &ServiceSpec) -> Option<Value> {
    let declared = service.probes.as_ref().and_then(|probes| probes.readiness.as_ref());
    declared.map(|spec| probe(service, spec)).or_else(|| {
        let (first, _) = ports(service.ports.as_ref()?).next()?;
        Some(json!({"tcpSocket": {"port": first}, "periodSeconds": 2}))
    })
}

/// Field and probe.
fn probes(service: &ServiceSpec) -> Vec<(&'static str, Value)> {
    let declared = service.probes.clone().unwrap_or_default();
    let probe = |spec| probe(service, spec);
    let all = [
        ("startupProbe", declared.startup.as_ref().map(probe)),
        ("readinessProbe", readiness(service)),
        ("livenessProbe", declared.liveness.as_ref().map(probe)),
    ];
    all.into_iter().filter_map(|(name, probe)| Some((name, probe?))).collect()
}

fn probe(service: &ServiceSpec, spec: &ProbeSpec) -> Value {
    let port = match spec.port {
        PortName::Http => "http",
        PortName::Grpc => "grpc",
        PortName::Metrics => "metrics",
    };
    let grpc = service.ports.and_then(|ports| ports.grpc).filter(|_| spec.port == PortName::Grpc);
    let mut probe = json!({
        "periodSeconds": spec.period_seconds,
        "timeoutSeconds": spec.timeout_seconds,
        "failureThreshold": spec.failure_threshold,
    });
    match (&spec.path, grpc) {
        (Some(path), _) => probe["httpGet"] = json!({"path": path, "port": port}),
        // The kubelet takes no name here, and adds an empty service's name.
        (None, Some(grpc)) => probe["grpc"] = json!({"port": grpc, "service": ""}),
        (None, None) => probe["tcpSocket"] = json!({"port": port}),
    }
    probe
}

//! `ServiceFleet`: all services of a shop, and in which order they start and change.
#![expect(unreachable_pub, reason = "the schema's derive repeats each type in a scope of its own")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Declares many services. Deployments, Services, autoscalers, disruption budgets, service accounts and network policies
/// follow from it, and are put right when others change them.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "longshore.dev",
    version = "v1alpha1",
    kind = "ServiceFleet",
    plural = "servicefleets",
    shortname = "sf",
    category = "shop",
    namespaced,
    status = "ServiceFleetStatus",
    derive = "PartialEq",
    validation = Rule::new("size(self.metadata.name) <= 63").message("the name becomes a label's value: at most 63 characters"),
    printcolumn(name = "Services", type_ = "string", json_path = ".status.summary.services"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Active", type_ = "string", json_path = ".status.summary.active"),
    printcolumn(name = "Paused", type_ = "boolean", json_path = ".spec.paused"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = "1"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceFleetSpec {
    /// Changes nothing while true, not even what others have changed; the status still says what is there.
    #[serde(default)]
    pub paused: bool,

    /// What becomes of the services when the fleet is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// Secrets to pull images with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 253)))]
    pub image_pull_secret_names: Vec<String>,

    // The names are put into a list of one, to be made once: else the rule would cost more than the API server allows.
    /// The services. One that is taken out is drained, after those that depend on it.
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = Rule::new("[self.map(t, t.name)].all(names, self.all(s, !has(s.dependsOn) || s.dependsOn.all(d, d in names)))").message("dependsOn must name services of this fleet"))]
    pub services: Vec<ServiceSpec>,
}

/// What becomes of the services when the fleet is deleted.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// They go with it.
    #[default]
    Delete,
    /// They stay and run on, without an owner; a fleet of the same name takes them over.
    Orphan,
}

/// One service.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.replicas) != has(self.autoscaling)").message("give either replicas or autoscaling"))]
#[x_kube(validation = Rule::new("!has(self.dependsOn) || !(self.name in self.dependsOn)").message("a service cannot depend on itself"))]
#[x_kube(validation = Rule::new("!has(self.probes) || (!has(self.probes.startup) || (has(self.ports) && (self.probes.startup.port == 'http' ? has(self.ports.http) : self.probes.startup.port == 'grpc' ? has(self.ports.grpc) : has(self.ports.metrics)))) && (!has(self.probes.readiness) || (has(self.ports) && (self.probes.readiness.port == 'http' ? has(self.ports.http) : self.probes.readiness.port == 'grpc' ? has(self.ports.grpc) : has(self.ports.metrics)))) && (!has(self.probes.liveness) || (has(self.ports) && (self.probes.liveness.port == 'http' ? has(self.ports.http) : self.probes.liveness.port == 'grpc' ? has(self.ports.grpc) : has(self.ports.metrics))))").message("a probe's port must be one of ports"))]
pub struct ServiceSpec {
    /// What its objects are called, and its name in DNS.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("!(self in ['default', 'kubernetes'])").message("Kubernetes has objects of this name already"))]
    pub name: String,

    /// With a tag or a digest. `:latest` is none of both: nobody knows what it was.
    #[schemars(
        length(max = 512),
        regex(
            pattern = r"^[a-z0-9][a-zA-Z0-9._/:-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|@sha256:[a-f0-9]{64})$"
        )
    )]
    #[x_kube(validation = Rule::new("!self.endsWith(':latest')").message("give the image a tag that stays, or a digest"))]
    pub image: String,

    /// How many pods. Either this or `autoscaling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,

    /// As many pods as the load asks for. Either this or `replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<AutoscalingSpec>,

    /// What each pod gets.
    pub resources: ResourcesSpec,

    /// What it listens on. A service without ports gets no Service, and nobody may connect to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<PortsSpec>,

    /// Who may connect to `http` and `grpc`. Metrics may be asked for by anybody.
    #[serde(default)]
    pub clients: Clients,

    /// Environment variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvSpec>,

    /// ConfigMaps and Secrets that the pods get. They must be there before the pods are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self.all(c, !has(c.mountPath) || self.exists_one(d, has(d.mountPath) && d.mountPath == c.mountPath))").message("each mountPath may be used once"))]
    #[x_kube(validation = Rule::new("!self.exists(c, has(c.mountPath) && c.mountPath == '/tmp')").message("/tmp is every pod's scratch folder"))]
    pub config: Vec<ConfigSpec>,

    /// How it is seen whether a pod is well. Without a readiness probe, its first port must accept connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<ProbesSpec>,

    /// Services of this fleet that must be rolled out and available before this one starts or changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 40)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub depends_on: Vec<String>,

    /// How pods may go.
    #[serde(default)]
    pub disruption: DisruptionSpec,
}

/// As many pods as keep the processors as busy as asked.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas").message("minReplicas must not be above maxReplicas"))]
pub struct AutoscalingSpec {
    /// No rollout goes below.
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: i32,
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// Of the processors that a pod requests, over all pods on average.
    #[serde(default = "default_target_cpu_percent")]
    #[schemars(range(min = 1, max = 1000))]
    pub target_cpu_percent: i32,
}

fn default_target_cpu_percent() -> i32 {
    70
}

/// What a pod is given.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.limits) || !has(self.limits.cpu) || quantity(self.requests.cpu).compareTo(quantity(self.limits.cpu)) <= 0").message("requests.cpu is above limits.cpu"))]
#[x_kube(validation = Rule::new("!has(self.limits) || !has(self.limits.memory) || quantity(self.requests.memory).compareTo(quantity(self.limits.memory)) <= 0").message("requests.memory is above limits.memory"))]
pub struct ResourcesSpec {
    pub requests: RequestsSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,
}

/// What is set aside for a pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestsSpec {
    /// Processors, as `"2"` or `500m`.
    #[schemars(length(max = 16), regex(pattern = r"^([0-9]+m|[0-9]+(\.[0-9]{1,3})?)$"))]
    pub cpu: String,
    /// Bytes, as `512Mi`.
    #[schemars(length(max = 16), regex(pattern = r"^[0-9]+(Ki|Mi|Gi|Ti|k|M|G|T)?$"))]
    pub memory: String,
}

/// What a pod may take at most.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitsSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^([0-9]+m|[0-9]+(\.[0-9]{1,3})?)$"))]
    pub cpu: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^[0-9]+(Ki|Mi|Gi|Ti|k|M|G|T)?$"))]
    pub memory: Option<String>,
}

/// What a pod listens on, by what is spoken there.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.http) || has(self.grpc) || has(self.metrics)").message("name a port, or leave ports out"))]
#[x_kube(validation = Rule::new("!(has(self.http) && has(self.grpc) && self.http == self.grpc) && !(has(self.http) && has(self.metrics) && self.http == self.metrics) && !(has(self.grpc) && has(self.metrics) && self.grpc == self.metrics)").message("ports must differ; metrics that are served on another port need none of their own"))]
pub struct PortsSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub http: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub grpc: Option<i32>,
    /// Where Prometheus asks, if not at `http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub metrics: Option<i32>,
}

/// A port of a service.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum PortName {
    #[default]
    Http,
    Grpc,
    Metrics,
}

/// Who may connect.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clients {
    /// Whoever reaches the cluster's network, a gateway for example.
    #[default]
    Cluster,
    /// Pods of this fleet.
    Fleet,
    /// Pods of the services that depend on this one.
    Dependents,
}

/// An environment variable.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvSpec {
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    #[schemars(length(max = 4096))]
    pub value: String,
}

/// A ConfigMap or a Secret.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.configMapName) != has(self.secretName)").message("give either configMapName or secretName"))]
pub struct ConfigSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub config_map_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: Option<String>,
    /// The folder for its keys, as files. As environment variables if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 253), regex(pattern = r"^/[^:]*[^:/]$"))]
    pub mount_path: Option<String>,
    /// Rolls the pods when its content changes. False for what the service reads again by itself.
    #[serde(default = "default_true")]
    pub restart_on_change: bool,
}

fn default_true() -> bool {
    true
}

/// How it is seen whether a pod is well.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbesSpec {
    /// Until it succeeds, the others do not begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<ProbeSpec>,
    /// While it fails, the pod gets no connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<ProbeSpec>,
    /// When it fails, the pod's container is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<ProbeSpec>,
}

/// One probe: HTTP if there is a path; at `grpc` without one gRPC's own health check; else whether the port accepts connections.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbeSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^/"))]
    pub path: Option<String>,
    #[serde(default)]
    pub port: PortName,
    #[serde(default = "default_period_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub period_seconds: i32,
    #[serde(default = "default_timeout_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: i32,
    #[serde(default = "default_failure_threshold")]
    #[schemars(range(min = 1, max = 1000))]
    pub failure_threshold: i32,
}

fn default_period_seconds() -> i32 {
    5
}

fn default_timeout_seconds() -> i32 {
    2
}

fn default_failure_threshold() -> i32 {
    3
}

/// How pods may go.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.drainSeconds < self.terminationGraceSeconds").message("terminationGraceSeconds counts from the beginning of the drain, and must be longer"))]
pub struct DisruptionSpec {
    /// How many pods may be away because nodes are emptied.
    #[serde(default = "default_max_unavailable")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_unavailable: i32,
    /// For how long a pod that is to end still takes connections: until nobody is sent there any more.
    #[serde(default = "default_drain_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub drain_seconds: i32,
    /// When a pod that was asked to end is killed.
    #[serde(default = "default_termination_grace_seconds")]
    #[schemars(range(min = 2, max = 7200))]
    pub termination_grace_seconds: i32,
}

fn default_max_unavailable() -> i32 {
    1
}

fn default_drain_seconds() -> i32 {
    5
}

fn default_termination_grace_seconds() -> i32 {
    40
}

impl Default for DisruptionSpec {
    fn default() -> Self {
        Self {
            max_unavailable: default_max_unavailable(),
            drain_seconds: default_drain_seconds(),
            termination_grace_seconds: default_termination_grace_seconds(),
        }
    }
}

/// What the operator saw and does.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceFleetStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Progressing and Degraded.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    #[serde(default)]
    pub summary: FleetSummary,
    /// Those of the spec, and those being drained.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub services: Vec<ServiceStatus>,
}

/// All services in a few words.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FleetSummary {
    /// Those that are ready, of all, as `7/8`.
    pub services: String,
    pub ready: i32,
    pub total: i32,
    /// What is being done, as `order RollingOut`; the first one, and how many more.
    #[serde(default)]
    pub active: String,
}

/// Where a service is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceState {
    /// What is asked is there, and available.
    Ready,
    /// Its pods are being replaced or come up.
    RollingOut,
    /// It starts or changes when what it needs is there.
    Waiting,
    /// Something has to be mended by a person.
    Failing,
    /// It is not asked for any more.
    Draining,
}

/// One service as the operator sees it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    pub name: String,
    pub state: ServiceState,
    /// Why, in one word.
    pub reason: String,
    /// Why, for a person.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The image that was last rolled out, or is being rolled out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// How many pods there should be now.
    pub replicas: i32,
    pub ready_replicas: i32,
    /// Pods of the newest version.
    pub updated_replicas: i32,
}

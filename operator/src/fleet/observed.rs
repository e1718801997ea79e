//! What is there of a fleet, reduced to what decisions are made of. Pure.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use longshore_crds::service_fleet::ConfigSpec;

use super::{
    manifest::{
        ChildKind, DEPENDS_ON, FLEET_LABEL, Fleet, KEEPER, Manifest, SERVICE_LABEL, TEMPLATE, WANTED,
    },
    owned,
    partial::{Deployment, Pod},
    pods::{self, Problem},
};
use crate::status::FIELD_MANAGER;

/// An object of the fleet, by its kind and name.
pub type Key = (ChildKind, String);

/// All that is known.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub children: BTreeMap<Key, Arc<Child>>,
    /// By service.
    pub pods: BTreeMap<String, Pods>,
    pub configs: BTreeMap<Config, Content>,
    /// Of names that the fleet wants for itself: who has them. Only of objects that it does not know of.
    pub claims: BTreeMap<Key, Claim>,
    /// What the API server refused a moment ago.
    pub refusals: BTreeMap<Key, Refusal>,
}

/// What the API server would not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The hash of what was applied; none of any other change.
    pub manifest: Option<String>,
    /// In its own words.
    pub why: String,
}

/// What a ConfigMap or a Secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Hash(String),
    Missing,
    /// Why it cannot be read.
    Unreadable(String),
}

/// Who has an object that the watch has not brought as one of the fleet's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The fleet: the watch is late.
    Ours,
    /// Somebody else.
    Others,
    /// Why nobody can tell.
    Unknown(String),
}

/// A ConfigMap or a Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Config {
    ConfigMap(String),
    Secret(String),
}

impl Config {
    pub(super) fn of(spec: &ConfigSpec) -> Option<Self> {
        let map = spec.config_map_name.clone().map(Self::ConfigMap);
        map.or_else(|| spec.secret_name.clone().map(Self::Secret))
    }
}

impl std::fmt::Display for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ConfigMap(name) => write!(f, "ConfigMap {name}"),
            Self::Secret(name) => write!(f, "Secret {name}"),
        }
    }
}

/// The very version of an object that a decision was made about: nothing else may be changed because of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    pub uid: String,
    pub version: String,
}

/// An object of the fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    pub fence: Fence,
    pub is_going: bool,
    /// The uid of who controls it.
    pub controller: Option<String>,
    /// The uid of the fleet that has it without controlling it.
    keeper: Option<String>,
    /// The hash that was applied last.
    wanted: Option<String>,
    /// Every field that the operator has applied, and has still.
    fields: Option<Box<str>>,
    /// Of a Deployment.
    pub rollout: Option<Rollout>,
}

/// How far a Deployment is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// The hash of the template that was applied last.
    pub template: Option<String>,
    pub depends_on: Vec<String>,
    pub image: Option<String>,
    pub is_observed: bool,
    pub replicas: i32,
    /// Whether an autoscaler, or anybody but the operator, has set them.
    pub are_replicas_of_others: bool,
    /// With pods of former templates.
    pub total: i32,
    pub updated: i32,
    pub ready: i32,
    pub available: i32,
    /// Why no pod can be made.
    pub refusal: Option<String>,
    pub is_stuck: bool,
}

/// The pods of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// Those that are about to end included.
    pub count: i32,
    pub ready: i32,
    /// How many have it, and the first of them.
    pub problem: Option<(i32, Problem)>,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSight {
    service: String,
    has_ended: bool,
    is_ready: bool,
    problem: Option<Problem>,
}

impl PodSight {
    pub(super) fn of(pod: &Pod) -> Self {
        let labels = pod.metadata.labels.as_ref();
        Self {
            service: labels.and_then(|labels| labels.get(SERVICE_LABEL)).cloned().unwrap_or_default(),
            has_ended: pods::has_ended(pod),
            is_ready: pods::is_ready(pod),
            problem: pods::problem(pod),
        }
    }
}

impl Child {
    pub(super) fn of(metadata: &ObjectMeta) -> Self {
        let owners = metadata.owner_references.iter().flatten();
        Self {
            fence: Fence {
                uid: metadata.uid.clone().unwrap_or_default(),
                version: metadata.resource_version.clone().unwrap_or_default(),
            },
            is_going: metadata.deletion_timestamp.is_some(),
            keeper: annotation(metadata, KEEPER),
            controller: owners.clone().find(|owner| owner.controller == Some(true)).map(|it| it.uid.clone()),
            wanted: annotation(metadata, WANTED),
            fields: owned::fields(metadata.managed_fields.as_deref().unwrap_or_default(), FIELD_MANAGER),
            rollout: None,
        }
    }

    pub(super) fn of_deployment(deployment: &Deployment) -> Self {
        let mut child = Self::of(&deployment.metadata);
        child.rollout = Some(rollout(deployment));
        child
    }

    /// Versions of one object are numbers that rise.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        let number = |child: &Self| child.fence.version.parse::<u64>().unwrap_or(u64::MAX);
        self.fence.uid == other.fence.uid && number(self) < number(other)
    }

    /// As if somebody else had changed all of it.
    #[cfg(test)]
    pub(super) fn without_writers(mut self) -> Self {
        self.fields = None;
        self
    }

    /// Whether it is the fleet's: controlled by it, or kept without an owner.
    pub(super) fn is_of(&self, fleet_uid: &str) -> bool {
        self.controller.as_ref().or(self.keeper.as_ref()).is_some_and(|uid| uid == fleet_uid)
    }

    /// Whether the fleet has it in the way that its deletion policy asks for.
    pub(super) fn is_had_by(&self, fleet: &Fleet) -> bool {
        self.is_of(&fleet.uid) && self.controller.is_none() == fleet.orphans
    }

    /// Whether it is as this manifest says, and nobody has changed it.
    pub(super) fn is(&self, manifest: &Manifest) -> bool {
        self.wanted.as_ref() == Some(&manifest.hash)
            && self.fields.as_ref().is_some_and(|fields| owned::is_whole(fields, &manifest.body))
    }
}

impl Rollout {
    /// Whether all pods are of the newest template, and at least `declared` of them can be relied on. An autoscaler may ask for
    /// more than there is room for.
    pub(super) fn is_over(&self, declared: i32) -> bool {
        self.is_observed
            && self.updated >= declared.min(self.replicas)
            && self.total == self.updated
            && self.available >= declared.min(self.replicas)
    }
}

fn annotation(metadata: &ObjectMeta, name: &str) -> Option<String> {
    metadata.annotations.as_ref()?.get(name).cloned()
}

fn rollout(deployment: &Deployment) -> Rollout {
    let metadata = &deployment.metadata;
    let spec = deployment.spec.clone().unwrap_or_default();
    let status = deployment.status.clone().unwrap_or_default();
    let condition = |kind: &str| {
        status.conditions.iter().flatten().find(|condition| condition.type_ == kind).map(|condition| {
            let message = condition.message.clone().unwrap_or_default();
            (condition.status.as_str(), condition.reason.as_deref().unwrap_or_default(), message)
        })
    };
    let depends_on = annotation(metadata, DEPENDS_ON).unwrap_or_default();
    Rollout {
        template: annotation(metadata, TEMPLATE),
        depends_on: depends_on.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        image: spec.template.spec.and_then(|pod| pod.containers.first()?.image.clone()),
        is_observed: status.observed_generation >= metadata.generation,
        replicas: spec.replicas.unwrap_or(1),
        are_replicas_of_others: owned::are_replicas_of_others(
            metadata.managed_fields.as_deref().unwrap_or_default(),
            FIELD_MANAGER,
        ),
        total: status.replicas.unwrap_or(0),
        updated: status.updated_replicas.unwrap_or(0),
        ready: status.ready_replicas.unwrap_or(0),
        available: status.available_replicas.unwrap_or(0),
        refusal: condition("ReplicaFailure").filter(|(status, ..)| *status == "True").map(|(.., why)| why),
        is_stuck: condition("Progressing").is_some_and(|(_, reason, _)| reason == "ProgressDeadlineExceeded"),
    }
}

/// The pods of one fleet, by service.
pub(super) fn by_service(pods: Vec<PodSight>) -> BTreeMap<String, Pods> {
    let mut all: BTreeMap<String, Pods> = BTreeMap::new();
    for PodSight { service, has_ended, is_ready, problem } in pods {
        let found = all.entry(service).or_default();
        found.count += i32::from(!has_ended);
        found.ready += i32::from(is_ready);
        if let Some(problem) = problem {
            let (count, first) = found.problem.take().unwrap_or((0, problem.clone()));
            // Of several the same is said each time, whatever order they come in.
            found.problem = Some((count + 1, first.min(problem)));
        }
    }
    all
}

/// Whether an object says that it is of this fleet.
pub(super) fn is_of(metadata: &ObjectMeta, fleet: &str) -> bool {
    metadata.labels.as_ref().and_then(|labels| labels.get(FLEET_LABEL)).is_some_and(|name| name == fleet)
}

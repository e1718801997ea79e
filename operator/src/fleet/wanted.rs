//! What a fleet asks for: the spec, parsed once. Pure.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;
use longshore_crds::{
    ServiceFleet,
    service_fleet::{DeletionPolicy, ServiceSpec},
};

use super::{
    manifest::Fleet,
    observed::Config,
    order::{self, Dependencies},
};

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub fleet: Fleet,
    pub paused: bool,
    pub services: BTreeMap<String, WantedService>,
}

/// One service.
#[derive(Clone, Debug)]
pub struct WantedService {
    pub spec: ServiceSpec,
    /// All services that come first, the nearest first.
    pub before: Vec<String>,
    /// From it round to itself, if it is in a circle: none of those can come first.
    pub cycle: Option<Vec<String>>,
}

impl Wanted {
    #[must_use]
    pub fn of(object: &ServiceFleet) -> Self {
        let spec = &object.spec;
        let fleet = Fleet {
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            orphans: spec.deletion_policy == DeletionPolicy::Orphan,
            image_pull_secret_names: spec.image_pull_secret_names.clone(),
        };
        let dependencies: Dependencies<'_> = spec
            .services
            .iter()
            .map(|service| (service.name.as_str(), service.depends_on.as_slice()))
            .collect();
        let service = |service: &ServiceSpec| WantedService {
            spec: service.clone(),
            before: order::all_of(&dependencies, &service.name).into_iter().map(str::to_owned).collect(),
            cycle: order::cycle(&dependencies, &service.name),
        };
        let services = spec.services.iter().map(|spec| (spec.name.clone(), service(spec))).collect();
        Self { services, paused: spec.paused, fleet }
    }

    /// All that its pods read.
    pub(super) fn configs(&self) -> BTreeSet<Config> {
        self.services.values().flat_map(|service| service.spec.config.iter().filter_map(Config::of)).collect()
    }
}

impl WantedService {
    /// No rollout goes below.
    pub(super) fn declared(&self) -> i32 {
        self.spec.autoscaling.map_or(self.spec.replicas.unwrap_or(0), |autoscaling| autoscaling.min_replicas)
    }
}

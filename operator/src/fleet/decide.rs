//! What is to be done next, and what is to be said of each service. Pure: the same spec and the same world decide the same.
//!
//! One rule makes the order of first starts and of changes: pods are made or replaced only when all services that come before are
//! *settled*. What others have changed is put back at once, since it changes no pod that was not changed already.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use longshore_crds::service_fleet::{ServiceState, ServiceStatus};
use sha2::{Digest as _, Sha256};

use super::{
    drain,
    manifest::{self, ChildKind, Manifest},
    observed::{Claim, Config, Content, Fence, Key, Refusal, Rollout, World},
    status::Said,
    wanted::{Wanted, WantedService},
};

/// One change of one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Apply {
        manifest: Arc<Manifest>,
        /// The version that it is put over; none makes a new object.
        over: Option<Fence>,
        /// Of an autoscaled Deployment: where nobody else has set how many pods there are.
        replicas: Option<i32>,
    },
    /// How many pods a Deployment has whose manifest must wait.
    Scale {
        name: String,
        fence: Fence,
        replicas: i32,
    },
    Delete {
        key: Key,
        fence: Fence,
    },
}

impl Action {
    /// Whether an object is to be made that is not known yet.
    pub(super) fn makes_new(&self) -> bool {
        match self {
            Self::Apply { over, .. } => over.is_none(),
            Self::Scale { .. } | Self::Delete { .. } => false,
        }
    }
}

/// What was decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    pub actions: Vec<Action>,
    pub services: Vec<ServiceStatus>,
}

/// A service's objects as they should be.
pub(super) struct Target<'a> {
    pub(super) service: &'a WantedService,
    /// All but its Deployment.
    supports: Vec<Arc<Manifest>>,
    /// None where it depends on what its pods read, and that is not known.
    deployment: Option<Arc<Manifest>>,
    /// What its pods read and cannot.
    lacks: Option<Said>,
}

impl Target<'_> {
    /// Whether pods of another template run, or are about to end: they do what the service did before.
    pub(super) fn has_former_pods(&self, world: &World) -> bool {
        let wanted = self.deployment.as_ref().and_then(|manifest| manifest.template());
        has_former_pods(world, &self.service.spec.name, wanted)
    }
}

pub(super) type Targets<'a> = BTreeMap<&'a str, Target<'a>>;

/// Decides.
#[must_use]
pub fn decide(wanted: &Wanted, world: &World) -> Decision {
    let targets: Targets<'_> = wanted
        .services
        .iter()
        .map(|(name, service)| (name.as_str(), target(wanted, world, service)))
        .collect();
    let mut decision = Decision::default();
    for (name, target) in &targets {
        let (mut actions, obstacle) = supports(wanted, world, target);
        let (more, own_obstacle) = pods(wanted, world, &targets, name);
        actions.extend(more);
        let is_there = has_deployment(world, name) || actions.iter().any(makes_deployment);
        actions.retain(|action| is_there || !follows_deployment(action));
        let obstacle = obstacle.or(own_obstacle);
        let said = say(wanted, world, target, (obstacle, !actions.is_empty()));
        decision.services.push(said.status(name, rollout(world, name)));
        decision.actions.extend(actions);
    }
    let (actions, services) = drain::decide(wanted, world, &targets);
    decision.actions.extend(actions);
    decision.services.extend(services);
    if wanted.paused {
        decision.actions.clear();
    }
    decision
}

fn target<'a>(wanted: &Wanted, world: &World, service: &'a WantedService) -> Target<'a> {
    let supports = supports_of(wanted, world, service);
    let (deployment, lacks) = deployment(wanted, world, service);
    Target { service, supports, deployment, lacks }
}

fn supports_of(wanted: &Wanted, world: &World, service: &WantedService) -> Vec<Arc<Manifest>> {
    let name = &service.spec.name;
    let asked = wanted.services.values().filter(|other| other.spec.depends_on.contains(name));
    // Those that still run as they were: while they are replaced or drained they must reach it.
    let running = world
        .children
        .iter()
        .filter(|(_, child)| child.rollout.as_ref().is_some_and(|rollout| rollout.depends_on.contains(name)));
    let mut dependents: Vec<&str> = asked.map(|other| other.spec.name.as_str()).collect();
    dependents.extend(running.map(|((_, name), _)| name.as_str()));
    dependents.sort_unstable();
    dependents.dedup();
    manifest::supports(&wanted.fleet, &service.spec, &dependents).into_iter().map(Arc::new).collect()
}

fn deployment(
    wanted: &Wanted,
    world: &World,
    service: &WantedService,
) -> (Option<Arc<Manifest>>, Option<Said>) {
    let (mut hasher, mut any, mut is_known, mut lacks) = (Sha256::new(), false, true, None);
    for spec in &service.spec.config {
        let Some(config) = Config::of(spec) else { continue };
        let lack = match world.configs.get(&config) {
            Some(Content::Hash(hash)) if spec.restart_on_change => {
                hasher.update(format!("{config} {hash}\n"));
                any = true;
                continue;
            }
            Some(Content::Hash(_)) => continue,
            Some(Content::Unreadable(why)) => {
                Said::failing("ConfigUnreadable", format!("{config} cannot be read: {why}"))
            }
            Some(Content::Missing) | None => {
                Said::failing("ConfigNotFound", format!("{config} does not exist; create it"))
            }
        };
        is_known &= !spec.restart_on_change;
        lacks = lacks.or(Some(lack));
    }
    let hash = any.then(|| manifest::digits(hasher));
    let manifest =
        |former: &[String]| manifest::deployment(&wanted.fleet, &service.spec, hash.as_deref(), former);
    let alone = manifest(&[]);
    let former = former_dependencies(world, service, alone.template());
    let manifest = if former.is_empty() { alone } else { manifest(&former) };
    (is_known.then(|| Arc::new(manifest)), lacks)
}

/// What a service does not depend on any more, but pods of its that still run.
fn former_dependencies(world: &World, service: &WantedService, template: Option<&str>) -> Vec<String> {
    let name = &service.spec.name;
    let Some(now) = rollout(world, name).filter(|_| has_former_pods(world, name, template)) else {
        return Vec::new();
    };
    now.depends_on.iter().filter(|on| !service.spec.depends_on.contains(on)).cloned().collect()
}

fn has_former_pods(world: &World, name: &str, template: Option<&str>) -> bool {
    let running = world.pods.get(name).map_or(0, |pods| pods.count);
    rollout(world, name).is_some_and(|now| {
        now.template.as_deref() != template || !now.is_observed || now.total.max(running) > now.updated
    })
}

/// How an object differs from what it should be.
enum Step {
    Whole,
    Apply(Option<Fence>),
    /// It goes, or comes, by itself.
    Await,
    Blocked(Said),
}

fn step(wanted: &Wanted, world: &World, manifest: &Manifest) -> Step {
    let key = (manifest.kind, manifest.name.clone());
    let refusal =
        world.refusals.get(&key).filter(|refusal| refusal.manifest.as_ref() == Some(&manifest.hash));
    if let Some(Refusal { why, .. }) = refusal {
        let message = format!("the API server takes no such {}: {why}", manifest.kind);
        return Step::Blocked(Said::failing("Refused", message));
    }
    let taken = |by: &str| {
        let Manifest { kind, name, .. } = manifest;
        Step::Blocked(Said::failing("NameTaken", format!("{kind} {name} exists, and {by}")))
    };
    match (world.children.get(&key), world.claims.get(&key)) {
        (Some(child), _) if child.is_going => Step::Await,
        (Some(child), _) => match &child.controller {
            Some(uid) if *uid != wanted.fleet.uid => taken("another controller owns it"),
            Some(_) | None if child.is_had_by(&wanted.fleet) && child.is(manifest) => Step::Whole,
            // Also what a fleet left that was deleted with Orphan.
            Some(_) | None => Step::Apply(Some(child.fence.clone())),
        },
        (None, None) => Step::Apply(None),
        (None, Some(Claim::Ours)) => Step::Await,
        (None, Some(Claim::Unknown(why))) => {
            let message =
                format!("nobody can tell whether {} {} exists: {why}", manifest.kind, manifest.name);
            Step::Blocked(Said::failing("Refused", message))
        }
        (None, Some(Claim::Others)) => taken(&format!(
            "is not of this fleet: delete it, or label it {}={} to hand it over",
            manifest::FLEET_LABEL,
            wanted.fleet.name
        )),
    }
}

/// All objects of a service but its Deployment, and those that it has no use for any more.
fn supports(wanted: &Wanted, world: &World, target: &Target<'_>) -> (Vec<Action>, Option<Said>) {
    let (mut actions, mut obstacle) = (Vec::new(), None);
    for manifest in &target.supports {
        match step(wanted, world, manifest) {
            Step::Whole | Step::Await => {}
            Step::Apply(over) => {
                actions.push(Action::Apply { manifest: Arc::clone(manifest), over, replicas: None });
            }
            Step::Blocked(said) => obstacle = obstacle.or(Some(said)),
        }
    }
    let needed: BTreeSet<ChildKind> = target.supports.iter().map(|manifest| manifest.kind).collect();
    for kind in ChildKind::ALL.into_iter().filter(|kind| *kind != ChildKind::Deployment) {
        let key = (kind, target.service.spec.name.clone());
        if !needed.contains(&kind) {
            actions.extend(drain::delete(wanted, world, &key));
            obstacle = obstacle.or_else(|| drain::refused(world, &key));
        }
    }
    (actions, obstacle)
}

/// A service's Deployment: what changes pods waits for those that come before; how many there are waits for nobody.
fn pods(wanted: &Wanted, world: &World, targets: &Targets<'_>, name: &str) -> (Option<Action>, Option<Said>) {
    let Some(target) = targets.get(name) else { return (None, None) };
    let now = rollout(world, name);
    let always = || target.lacks.clone().or_else(|| cycle(target));
    let Some(manifest) = &target.deployment else { return (scale(wanted, world, target), always()) };
    let replicas = replicas(target.service, now);
    let apply = |over| (Some(Action::Apply { manifest: Arc::clone(manifest), over, replicas }), always());
    match step(wanted, world, manifest) {
        Step::Whole if is_below_minimum(target.service, now) => apply(fence(world, name)),
        Step::Whole | Step::Await => (None, always()),
        Step::Blocked(said) => (None, Some(said)),
        Step::Apply(over) => {
            let rolls = now.is_none_or(|now| now.template.as_deref() != manifest.template());
            // Somebody has deleted it: it does not start for the first time.
            let is_lost = over.is_none() && has(world, ChildKind::PodDisruptionBudget, name);
            let unsettled = || unsettled(world, targets, target).filter(|_| !is_lost);
            match always().or_else(unsettled).filter(|_| rolls) {
                Some(said) => (scale(wanted, world, target), Some(said)),
                None => apply(over),
            }
        }
    }
}

/// As many pods as declared, of a Deployment that must wait with all else.
fn scale(wanted: &Wanted, world: &World, target: &Target<'_>) -> Option<Action> {
    let name = target.service.spec.name.clone();
    let key = (ChildKind::Deployment, name.clone());
    let child = world.children.get(&key).filter(|child| child.is_of(&wanted.fleet.uid) && !child.is_going)?;
    let now = child.rollout.as_ref()?;
    let replicas = match target.service.spec.replicas {
        Some(replicas) => Some(replicas),
        None if is_below_minimum(target.service, Some(now)) => replicas(target.service, Some(now)),
        None => None,
    };
    let replicas =
        replicas.filter(|replicas| *replicas != now.replicas && !world.refusals.contains_key(&key))?;
    Some(Action::Scale { name, fence: child.fence.clone(), replicas })
}

fn cycle(target: &Target<'_>) -> Option<Said> {
    let message = |way: &Vec<String>| format!("dependsOn goes round in a circle: {}", way.join(" → "));
    target.service.cycle.as_ref().map(|way| Said::failing("DependencyCycle", message(way)))
}

/// What an autoscaled Deployment is applied with. A field that only we had would go back to 1 when we let it go: so it is
/// kept as it is until the autoscaler has taken it.
fn replicas(service: &WantedService, now: Option<&Rollout>) -> Option<i32> {
    let autoscaling = service.spec.autoscaling?;
    match now {
        None => Some(autoscaling.min_replicas),
        Some(now) if now.are_replicas_of_others && now.replicas >= autoscaling.min_replicas => None,
        Some(now) => Some(now.replicas.clamp(autoscaling.min_replicas, autoscaling.max_replicas)),
    }
}

/// An autoscaler does nothing where somebody has set 0.
fn is_below_minimum(service: &WantedService, now: Option<&Rollout>) -> bool {
    let minimum = service.spec.autoscaling.map(|autoscaling| autoscaling.min_replicas);
    minimum.is_some_and(|minimum| now.is_some_and(|now| now.replicas < minimum))
}

/// Why a service may not make or replace pods yet.
fn unsettled(world: &World, targets: &Targets<'_>, target: &Target<'_>) -> Option<Said> {
    let first = target.service.before.iter().find(|before| !is_settled(world, targets, before))?;
    let why = match (targets.get(first.as_str()), rollout(world, first)) {
        (None, _) => "this fleet has no such service",
        (Some(_), None) => "it is not there yet",
        (Some(_), Some(_)) => "it is not rolled out and available yet",
    };
    Some(Said::waiting("WaitingForDependency", format!("waits for {first}: {why}")))
}

/// Whether a service's pods are the wanted ones, and as many as declared can be relied on.
pub(super) fn is_settled(world: &World, targets: &Targets<'_>, name: &str) -> bool {
    let (Some(target), Some(rollout)) = (targets.get(name), rollout(world, name)) else { return false };
    let Some(manifest) = &target.deployment else { return false };
    rollout.template.as_deref() == manifest.template() && rollout.is_over(target.service.declared())
}

/// What is said of a service: first of what keeps it from being as it should, then of what its pods lack.
fn say(wanted: &Wanted, world: &World, target: &Target<'_>, (obstacle, acts): (Option<Said>, bool)) -> Said {
    let name = target.service.spec.name.as_str();
    let (waits, fails) = match obstacle {
        Some(said) if said.state == ServiceState::Failing => (None, Some(said)),
        waits => (waits, None),
    };
    let now = rollout(world, name);
    let of_pods = || now.and_then(|now| Said::of_pods(now, world.pods.get(name)));
    if let Some(said) = fails.or_else(of_pods) {
        return said;
    }
    if acts && wanted.paused {
        return Said::paused();
    }
    waits.unwrap_or_else(|| match now {
        Some(now) if !acts => Said::of_rollout(now, target.service.declared()),
        Some(_) | None => Said::rolling_out("Applying", String::new()),
    })
}

pub(super) fn rollout<'a>(world: &'a World, name: &str) -> Option<&'a Rollout> {
    world.children.get(&(ChildKind::Deployment, name.to_owned()))?.rollout.as_ref()
}

fn fence(world: &World, name: &str) -> Option<Fence> {
    Some(world.children.get(&(ChildKind::Deployment, name.to_owned()))?.fence.clone())
}

fn has(world: &World, kind: ChildKind, name: &str) -> bool {
    world.children.contains_key(&(kind, name.to_owned()))
}

fn has_deployment(world: &World, name: &str) -> bool {
    has(world, ChildKind::Deployment, name)
}

fn makes(action: &Action, kind: ChildKind) -> bool {
    match action {
        Action::Apply { manifest, .. } => manifest.kind == kind,
        Action::Scale { .. } | Action::Delete { .. } => false,
    }
}

fn makes_deployment(action: &Action) -> bool {
    makes(action, ChildKind::Deployment)
}

/// Without a Deployment an autoscaler would only complain; and a disruption budget says that there was one.
fn follows_deployment(action: &Action) -> bool {
    makes(action, ChildKind::HorizontalPodAutoscaler) || makes(action, ChildKind::PodDisruptionBudget)
}

#[cfg(test)]
mod tests;

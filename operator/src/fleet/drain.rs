//! How a service that is not asked for any more goes: after all that depend on it; its pods first, each of which still takes
//! connections until nobody is sent there any more; then all else. Pure.

use std::collections::{BTreeMap, BTreeSet};

use longshore_crds::service_fleet::ServiceStatus;

use super::{
    decide::{Action, Targets, rollout},
    manifest::ChildKind,
    observed::{Key, Refusal, World},
    status::Said,
    wanted::Wanted,
};

/// Objects of the fleet whose services it does not have any more, by service. What only bears the fleet's label is not its own.
type Gone<'a> = BTreeMap<&'a str, BTreeSet<ChildKind>>;

pub(super) fn decide(
    wanted: &Wanted,
    world: &World,
    targets: &Targets<'_>,
) -> (Vec<Action>, Vec<ServiceStatus>) {
    let mut gone: Gone<'_> = BTreeMap::new();
    for ((kind, name), child) in &world.children {
        if child.is_of(&wanted.fleet.uid) && !targets.contains_key(name.as_str()) {
            gone.entry(name).or_default().insert(*kind);
        }
    }
    let needs = |name: &str, other: &str| {
        rollout(world, other).is_some_and(|it| it.depends_on.iter().any(|on| on == name))
    };
    let needed_by_gone = |name: &str| gone.keys().copied().find(|other| *other != name && needs(name, other));
    // Two that need each other, by an edit that was overtaken: neither can wait.
    let stalemate = gone.keys().all(|name| needed_by_gone(name).is_some());
    let needed_by = |name: &str| {
        let kept = targets.keys().copied().find(|other| needs(name, other));
        kept.or_else(|| needed_by_gone(name).filter(|_| !stalemate))
    };
    // Whoever still runs as it was may call it. A service that is new, or that has new pods alone, does not hold it: it may be
    // waiting for the room.
    let rolling = targets.iter().find(|(_, target)| target.has_former_pods(world)).map(|(name, _)| *name);
    let (mut actions, mut services) = (Vec::new(), Vec::new());
    for (name, kinds) in &gone {
        let said = match (needed_by(name), rolling) {
            (Some(other), _) => {
                Said::draining("NeededByOthers", format!("waits for {other}, which depends on it"))
            }
            (None, Some(other)) => {
                Said::draining("WaitingForRollout", format!("waits for the rollout of {other}"))
            }
            (None, None) => {
                let (kinds, said) = next(world, name, kinds);
                let keys: Vec<Key> = kinds.into_iter().map(|kind| (kind, (*name).to_owned())).collect();
                actions.extend(keys.iter().filter_map(|key| delete(wanted, world, key)));
                let refused = keys.iter().find_map(|key| refused(world, key));
                refused.or_else(|| wanted.paused.then(Said::paused)).unwrap_or(said)
            }
        };
        services.push(said.status(name, rollout(world, name)));
    }
    (actions, services)
}

/// What of a service goes now.
fn next(world: &World, name: &str, kinds: &BTreeSet<ChildKind>) -> (Vec<ChildKind>, Said) {
    let of =
        |those: &[ChildKind]| kinds.iter().copied().filter(|kind| those.contains(kind)).collect::<Vec<_>>();
    let pods = world.pods.get(name).map_or(0, |pods| pods.count);
    let first = of(&[ChildKind::HorizontalPodAutoscaler, ChildKind::Deployment]);
    if first.is_empty() && pods == 0 {
        return (kinds.iter().copied().collect(), Said::draining("Removing", String::new()));
    }
    (first, Said::draining("Draining", "its pods end when their connections have".to_owned()))
}

/// That an object could not be deleted.
pub(super) fn refused(world: &World, key: &Key) -> Option<Said> {
    let Refusal { why, .. } = world.refusals.get(key)?;
    let (kind, name) = key;
    Some(Said::failing("Refused", format!("the API server does not delete {kind} {name}: {why}")))
}

/// Deletes an object of the fleet, once.
pub(super) fn delete(wanted: &Wanted, world: &World, key: &Key) -> Option<Action> {
    let child = world.children.get(key)?;
    let ours = child.is_of(&wanted.fleet.uid) && !child.is_going && !world.refusals.contains_key(key);
    ours.then(|| Action::Delete { key: key.clone(), fence: child.fence.clone() })
}

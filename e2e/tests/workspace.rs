//! Dependencies point one way. What each member may depend on is listed here; all else fails.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Our packages, and which of ours (or of the outside) each may, or may never, depend on. Tests may see more.
const ALLOWED: [(&str, &[&str]); 8] = [
    ("longshore-sharding", &[]),
    ("longshore-crds", &["longshore-sharding"]),
    ("longshore-operator", &["longshore-crds", "longshore-sharding"]),
    ("service-kit", &["longshore-sharding"]),
    ("order", &["longshore-sharding", "service-kit"]),
    ("checker", &[]),
    ("echo", &["service-kit"]),
    ("e2e", &["checker", "longshore-crds", "longshore-operator", "longshore-sharding"]),
];

/// What a package must not reach, not even through others.
const FORBIDDEN: [(&str, &[&str]); 4] = [
    ("longshore-sharding", &["tokio", "kube", "sqlx", "reqwest", "chrono", "jiff", "time"]),
    ("service-kit", &["kube", "longshore-crds"]),
    ("order", &["kube", "longshore-crds"]),
    ("checker", &["kube", "longshore-sharding", "service-kit"]),
];

fn metadata() -> Metadata {
    MetadataCommand::new().exec().expect("cargo metadata answers")
}

/// What each package depends on directly when it is built for users, by name.
fn direct(metadata: &Metadata) -> BTreeMap<&str, BTreeSet<&str>> {
    let names: BTreeMap<_, &str> =
        metadata.packages.iter().map(|package| (&package.id, package.name.as_str())).collect();
    let resolve = metadata.resolve.as_ref().expect("cargo metadata resolves");
    let mut direct: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for node in &resolve.nodes {
        let used = node
            .deps
            .iter()
            .filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal));
        direct.entry(names[&node.id]).or_default().extend(used.map(|dependency| names[&dependency.pkg]));
    }
    direct
}

fn reached<'a>(direct: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &'a str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(package) = open.pop() {
        for dependency in direct.get(package).into_iter().flatten() {
            if reached.insert(*dependency) {
                open.push(dependency);
            }
        }
    }
    reached
}

#[test]
fn every_member_is_listed() {
    let metadata = metadata();
    let members: BTreeSet<&str> =
        metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    let listed: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    assert_eq!(members, listed, "a new member needs a line in ALLOWED that says what it may depend on");
}

#[test]
fn members_depend_only_on_what_is_below_them() {
    let metadata = metadata();
    let direct = direct(&metadata);
    let members: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    for (member, allowed) in ALLOWED {
        let ours = direct[member].intersection(&members);
        let wrong: Vec<_> = ours.filter(|dependency| !allowed.contains(dependency)).collect();
        assert!(wrong.is_empty(), "{member} must not depend on {wrong:?}");
    }
}

#[test]
fn what_must_stay_out_is_not_reached_through_others_either() {
    let metadata = metadata();
    let direct = direct(&metadata);
    for (member, forbidden) in FORBIDDEN {
        let reached = reached(&direct, member);
        let wrong: Vec<_> = forbidden.iter().filter(|package| reached.contains(**package)).collect();
        assert!(wrong.is_empty(), "{member} must not reach {wrong:?}");
    }
}

//! Decisions in a world that obeys: what is applied is there, and comes up when the test says so.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use longshore_crds::ServiceFleet;
use serde_json::{Map, Value, json};

use super::*;
use crate::{
    fleet::{observed::Child, partial::Deployment},
    status::FIELD_MANAGER,
};

fn wanted(services: &Value) -> Wanted {
    let object: ServiceFleet = serde_json::from_value(json!({
        "apiVersion": "longshore.dev/v1alpha1", "kind": "ServiceFleet",
        "metadata": {"name": "shop", "namespace": "shop", "uid": "us"},
        "spec": {"services": services},
    }))
    .unwrap();
    Wanted::of(&object)
}

fn service(name: &str, image: &str, on: &[&str]) -> Value {
    json!({
        "name": name, "image": image, "replicas": 2, "dependsOn": on,
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}, "ports": {"http": 80},
    })
}

/// All of a value, as the API server says that somebody has applied it.
fn fields(value: &Value) -> Value {
    match value {
        Value::Object(object) => object
            .iter()
            .map(|(name, value)| (format!("f:{name}"), fields(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(item).collect::<Map<_, _>>().into(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => json!({}),
    }
}

fn item(item: &Value) -> (String, Value) {
    match item {
        Value::Object(object) => {
            let scalar = |(_, value): &(&String, &Value)| !value.is_object() && !value.is_array();
            let key: Map<_, _> =
                object.iter().filter(scalar).map(|(name, it)| (name.clone(), it.clone())).collect();
            (format!("k:{}", Value::from(key)), fields(item))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            (format!("v:{item}"), json!({}))
        }
    }
}

/// What stands after a manifest was applied, with all its pods up or none of the new ones.
fn applied(manifest: &Manifest, replicas: Option<i32>, is_up: bool) -> Child {
    let mut object = manifest.body.clone();
    let entry = ManagedFieldsEntry {
        manager: Some(FIELD_MANAGER.to_owned()),
        operation: Some("Apply".to_owned()),
        fields_v1: Some(FieldsV1(fields(&object))),
        ..ManagedFieldsEntry::default()
    };
    object["metadata"]["uid"] = manifest.name.clone().into();
    object["metadata"]["resourceVersion"] = "1".into();
    object["metadata"]["managedFields"] = json!([entry]);
    if manifest.kind != ChildKind::Deployment {
        return Child::of(&serde_json::from_value(object["metadata"].clone()).unwrap());
    }
    let replicas = replicas.or(object["spec"]["replicas"].as_i64().map(|it| it as i32)).unwrap_or(1);
    object["spec"]["replicas"] = replicas.into();
    object["metadata"]["generation"] = 1.into();
    let updated = if is_up { replicas } else { 0 };
    object["status"] = json!({
        "observedGeneration": 1, "replicas": replicas, "updatedReplicas": updated,
        "readyReplicas": replicas, "availableReplicas": replicas,
    });
    Child::of_deployment(&serde_json::from_value::<Deployment>(object).unwrap())
}

/// Does what was decided; says which Deployments were applied.
fn obey(world: &mut World, decision: Decision, is_up: bool) -> Vec<String> {
    let mut deployments = Vec::new();
    for action in decision.actions {
        match action {
            Action::Apply { manifest, replicas, .. } => {
                if manifest.kind == ChildKind::Deployment {
                    deployments.push(manifest.name.clone());
                }
                let child = Arc::new(applied(&manifest, replicas, is_up));
                world.children.insert((manifest.kind, manifest.name.clone()), child);
            }
            Action::Scale { name, .. } => deployments.push(format!("{name} scaled")),
            Action::Delete { key, .. } => drop(world.children.remove(&key)),
        }
    }
    deployments
}

/// Until nothing is left to do: the Deployments of each step.
fn waves(world: &mut World, wanted: &Wanted) -> Vec<Vec<String>> {
    let mut waves = Vec::new();
    for _ in 0..20 {
        let decision = decide(wanted, world);
        if decision.actions.is_empty() {
            return waves;
        }
        waves.push(obey(world, decision, true));
    }
    panic!("there is always something left to do");
}

fn reason(decision: &Decision, name: &str) -> String {
    let found = decision.services.iter().find(|service| service.name == name);
    found.map_or("none".to_owned(), |service| service.reason.clone())
}

#[test]
fn services_start_and_change_in_waves_and_then_nothing_is_left_to_do() {
    let mut world = World::default();
    let four = |tag: &str| {
        wanted(&json!([
            service("a", &format!("a:{tag}"), &[]),
            service("b", &format!("b:{tag}"), &["a"]),
            service("c", "c:1", &["b"]),
            service("d", &format!("d:{tag}"), &["c"]),
        ]))
    };
    assert_eq!(waves(&mut world, &four("1")), [vec!["a"], vec!["b"], vec!["c"], vec!["d"]]);
    // c does not change, and d waits for a and b all the same.
    assert_eq!(waves(&mut world, &four("2")), [vec!["a"], vec!["b"], vec!["d"]]);
    assert!(decide(&four("2"), &world).services.iter().all(|service| service.state == ServiceState::Ready));
}

#[test]
fn a_change_waits_for_a_rollout_and_drift_does_not() {
    let mut world = World::default();
    let two = |a: &str, b: &str| wanted(&json!([service("a", a, &[]), service("b", b, &["a"])]));
    waves(&mut world, &two("a:1", "b:1"));
    // a does not come up.
    let decision = decide(&two("a:2", "b:1"), &world);
    assert_eq!(obey(&mut world, decision, false), ["a"]);
    let decision = decide(&two("a:2", "b:2"), &world);
    assert_eq!((reason(&decision, "b").as_str(), decision.actions.len()), ("WaitingForDependency", 0));
    assert_eq!(reason(&decision, "a"), "RollingOut");
    // Somebody takes a field of b: it is put back, a or no a.
    let key = (ChildKind::Deployment, "b".to_owned());
    let mut spoiled = world.clone();
    let child = spoiled.children.get_mut(&key).unwrap();
    *child = Arc::new(Child::clone(child).without_writers());
    assert_eq!(decide(&two("a:2", "b:1"), &spoiled).actions.len(), 1);
    assert_eq!(decide(&two("a:2", "b:2"), &spoiled).actions.len(), 0, "that is more than drift");
}

#[test]
fn more_pods_of_the_same_kind_wait_for_nobody() {
    let mut world = World::default();
    let two = |a: &str, replicas: i32| two_with(a, "b:1", replicas);
    waves(&mut world, &two("a:1", 2));
    let decision = decide(&two("a:2", 2), &world);
    obey(&mut world, decision, false);
    let decision = decide(&two("a:2", 5), &world);
    assert_eq!(obey(&mut world, decision, true), ["b"]);
}

/// `b` depends on `a`.
fn two_with(a: &str, b: &str, replicas: i32) -> Wanted {
    let mut b = service("b", b, &["a"]);
    b["replicas"] = replicas.into();
    wanted(&json!([service("a", a, &[]), b]))
}

#[test]
fn a_service_that_must_wait_still_scales_and_comes_back() {
    let mut world = World::default();
    waves(&mut world, &two_with("a:1", "b:1", 2));
    let decision = decide(&two_with("a:2", "b:1", 2), &world);
    obey(&mut world, decision, false);
    let held = two_with("a:2", "b:2", 5);
    let decision = decide(&held, &world);
    assert_eq!(reason(&decision, "b"), "WaitingForDependency");
    assert_eq!(obey(&mut world.clone(), decision, true), ["b scaled"]);
    // Somebody deletes it, while its change waits.
    world.children.remove(&(ChildKind::Deployment, "b".to_owned()));
    assert_eq!(obey(&mut world.clone(), decide(&held, &world), true), ["b"]);
    // Without any trace of it, it starts for the first time, and that waits.
    world.children.retain(|(_, name), _| name != "b");
    assert_eq!(obey(&mut world.clone(), decide(&held, &world), true), Vec::<String>::new());
}

#[test]
fn what_pods_cannot_read_holds_only_what_makes_pods() {
    let reads = |image: &str, replicas: i32| {
        let mut a = service("a", image, &[]);
        a["config"] = json!([{"configMapName": "settings", "restartOnChange": false}]);
        a["replicas"] = replicas.into();
        wanted(&json!([a]))
    };
    let mut world = World::default();
    let content = Content::Hash("1".to_owned());
    world.configs.insert(Config::ConfigMap("settings".to_owned()), content);
    waves(&mut world, &reads("a:1", 2));
    world.configs.insert(Config::ConfigMap("settings".to_owned()), Content::Missing);
    let decision = decide(&reads("a:1", 3), &world);
    assert_eq!(reason(&decision, "a"), "ConfigNotFound");
    assert_eq!(obey(&mut world.clone(), decision, true), ["a"]);
    assert_eq!(obey(&mut world.clone(), decide(&reads("a:2", 3), &world), true), ["a scaled"]);
}

#[test]
fn a_circle_is_said_of_services_that_run_and_change_nothing() {
    let mut world = World::default();
    waves(&mut world, &two_with("a:1", "b:1", 2));
    let circle = wanted(&json!([service("a", "a:1", &["b"]), service("b", "b:1", &["a"])]));
    let decision = decide(&circle, &world);
    assert_eq!([reason(&decision, "a"), reason(&decision, "b")], ["DependencyCycle", "DependencyCycle"]);
    obey(&mut world, decision, true);
    assert_eq!(reason(&decide(&circle, &world), "a"), "DependencyCycle", "also when nothing is left to do");
}

#[test]
fn what_cannot_be_deleted_is_said_and_all_else_goes_on() {
    let mut world = World::default();
    waves(&mut world, &wanted(&json!([service("a", "a:1", &[]), service("b", "b:1", &[])])));
    let refusal = Refusal { manifest: None, why: "denied".to_owned() };
    world.refusals.insert((ChildKind::Deployment, "a".to_owned()), refusal);
    let decision = decide(&wanted(&json!([service("b", "b:1", &[]), service("c", "c:1", &[])])), &world);
    assert_eq!(reason(&decision, "a"), "Refused");
    assert_eq!(obey(&mut world, decision, true), ["c"]);
    assert!(world.children.contains_key(&(ChildKind::Deployment, "a".to_owned())));
}

#[test]
fn what_must_outlive_its_fleet_has_no_owner() {
    let spec = json!([service("a", "a:1", &[])]);
    let (mut owned, mut kept) = (wanted(&spec), wanted(&spec));
    (owned.fleet.orphans, kept.fleet.orphans) = (false, true);
    let mut world = World::default();
    for (fleet, has_owner) in [(&owned, true), (&kept, false), (&owned, true)] {
        let before = world.children.clone();
        waves(&mut world, fleet);
        assert_ne!(before, world.children);
        assert!(world.children.values().all(|child| child.controller.is_some() == has_owner));
    }
    waves(&mut world, &kept);
    assert!(
        !decide(&Wanted { services: BTreeMap::new(), ..kept }, &world).actions.is_empty(),
        "it is its own"
    );
}

#[test]
fn a_new_service_does_not_hold_the_one_that_it_replaces() {
    let mut world = World::default();
    waves(&mut world, &wanted(&json!([service("old", "a:1", &[])])));
    let renamed = wanted(&json!([service("new", "a:1", &[])]));
    let decision = decide(&renamed, &world);
    obey(&mut world, decision, false);
    let deployment = world.children.get_mut(&(ChildKind::Deployment, "new".to_owned())).unwrap();
    let rollout = Arc::make_mut(deployment).rollout.as_mut().unwrap();
    (rollout.total, rollout.updated, rollout.ready, rollout.available) = (2, 2, 0, 0);
    let decision = decide(&renamed, &world);
    assert_eq!([reason(&decision, "new"), reason(&decision, "old")], ["PodsNotReady", "Removing"]);
}

#[test]
fn an_autoscaled_deployment_keeps_its_replicas_until_somebody_else_has_them() {
    let mut autoscaled = service("a", "a:1", &[]);
    autoscaled.as_object_mut().unwrap().remove("replicas");
    autoscaled["autoscaling"] = json!({"minReplicas": 3, "maxReplicas": 8});
    let wanted = wanted(&json!([autoscaled]));
    let service = &wanted.services["a"];
    let check = |now: Option<(i32, bool)>, expected: Option<i32>, is_below: bool| {
        let now = now.map(|(replicas, of_others)| Rollout {
            replicas,
            are_replicas_of_others: of_others,
            ..Rollout::default()
        });
        assert_eq!(replicas(service, now.as_ref()), expected, "{now:?}");
        assert_eq!(is_below_minimum(service, now.as_ref()), is_below, "{now:?}");
    };
    check(None, Some(3), false);
    check(Some((5, false)), Some(5), false);
    check(Some((5, true)), None, false);
    check(Some((9, false)), Some(8), false);
    check(Some((1, false)), Some(3), true);
    check(Some((0, true)), Some(3), true);
    // An autoscaler is made with the Deployment, not before it.
    let mut before = World::default();
    before.claims.insert((ChildKind::Deployment, "a".to_owned()), Claim::Others);
    let decision = decide(&wanted, &before);
    assert!(!decision.actions.iter().any(follows_deployment) && !decision.actions.is_empty());
}

#[test]
fn what_is_not_wanted_any_more_goes_after_those_that_need_it() {
    let mut world = World::default();
    let all = [service("a", "a:1", &[]), service("b", "b:1", &["a"]), service("keep", "k:1", &[])];
    waves(&mut world, &wanted(&json!(all)));
    let rest = wanted(&json!([all[2]]));
    let decision = decide(&rest, &world);
    assert_eq!(reason(&decision, "a"), "NeededByOthers");
    let keys = |decision: &Decision| -> Vec<Key> {
        let key = |action: &Action| match action {
            Action::Delete { key, .. } => Some(key.clone()),
            Action::Apply { .. } | Action::Scale { .. } => None,
        };
        decision.actions.iter().filter_map(key).collect()
    };
    assert_eq!(keys(&decision), [(ChildKind::Deployment, "b".to_owned())], "pods go first, and of b alone");
    obey(&mut world, decision, true);
    world.pods.insert("b".to_owned(), crate::fleet::observed::Pods { count: 1, ..Default::default() });
    let decision = decide(&rest, &world);
    assert_eq!(
        keys(&decision),
        [(ChildKind::Deployment, "a".to_owned())],
        "b's address stays while a pod ends"
    );
    obey(&mut world, decision, true);
    world.pods.clear();
    waves(&mut world, &rest);
    assert!(world.children.keys().all(|(_, name)| name == "keep"), "{:?}", world.children.keys());
}

#[test]
fn who_still_runs_may_still_connect() {
    let mut world = World::default();
    let mut a = service("a", "a:1", &[]);
    a["clients"] = "Dependents".into();
    waves(&mut world, &wanted(&json!([a, service("b", "b:1", &["a"])])));
    let alone = wanted(&json!([a]));
    let policies = |decision: &Decision| {
        decision.actions.iter().filter(|it| makes(it, ChildKind::NetworkPolicy)).count()
    };
    let decision = decide(&alone, &world);
    assert_eq!(policies(&decision), 0, "b is about to go, and runs");
    obey(&mut world, decision, true);
    assert_eq!(policies(&decide(&alone, &world)), 1);
}

#[test]
fn nothing_is_removed_while_others_roll_out() {
    let mut world = World::default();
    waves(&mut world, &wanted(&json!([service("a", "a:1", &[]), service("b", "b:1", &["a"])])));
    let without_a = wanted(&json!([service("b", "b:2", &[])]));
    let decision = decide(&without_a, &world);
    assert_eq!(reason(&decision, "a"), "NeededByOthers", "b's pods still are those that need it");
    obey(&mut world, decision, false);
    assert_eq!(reason(&decide(&without_a, &world), "a"), "NeededByOthers", "and former pods still run");
    let deployment = world.children.get_mut(&(ChildKind::Deployment, "b".to_owned())).unwrap();
    Arc::make_mut(deployment).rollout.as_mut().unwrap().updated = 2;
    waves(&mut world, &without_a);
    assert!(world.children.keys().all(|(_, name)| name == "b"));
}

#[test]
fn a_rollout_of_whoever_named_no_dependency_is_waited_for_too() {
    let mut world = World::default();
    waves(&mut world, &wanted(&json!([service("a", "a:1", &[]), service("b", "b:1", &[])])));
    let without_a = wanted(&json!([service("b", "b:2", &[])]));
    let decision = decide(&without_a, &world);
    obey(&mut world, decision, false);
    assert_eq!(reason(&decide(&without_a, &world), "a"), "WaitingForRollout");
}

#[test]
fn two_that_need_each_other_go_together() {
    let mut world = World::default();
    let on = |name: &str, other: &str| service(name, "any:1", &[other]);
    // As an edit can leave them that was overtaken by another.
    for (name, other) in [("a", "b"), ("b", "a")] {
        let wanted = wanted(&json!([on(name, other)]));
        let manifest = manifest::deployment(&wanted.fleet, &wanted.services[name].spec, None, &[]);
        let child = Arc::new(applied(&manifest, None, true));
        world.children.insert((ChildKind::Deployment, name.to_owned()), child);
    }
    assert_eq!(decide(&wanted(&json!([])), &world).actions.len(), 2);
}

#[test]
fn what_only_bears_the_label_is_left_alone() {
    let mut world = World::default();
    let others = wanted(&json!([service("a", "a:1", &[])]));
    waves(&mut world, &others);
    for child in world.children.values_mut() {
        Arc::make_mut(child).controller = None;
    }
    assert_eq!(decide(&wanted(&json!([])), &world), Decision::default());
    // With a service of that name it is taken over.
    assert!(!decide(&others, &world).actions.is_empty());
}

#[test]
fn obstacles_are_said_and_nothing_else_stops() {
    let two = wanted(&json!([service("a", "a:1", &[]), service("b", "b:1", &[])]));
    let mut world = World::default();
    world.claims.insert((ChildKind::Service, "a".to_owned()), Claim::Others);
    let decision = decide(&two, &world);
    assert_eq!(reason(&decision, "a"), "NameTaken");
    assert!(decision.actions.iter().any(|action| makes(action, ChildKind::Deployment)));
    let manifest = manifest::deployment(&two.fleet, &two.services["b"].spec, None, &[]);
    let refusal = Refusal { manifest: Some(manifest.hash), why: "why".to_owned() };
    world.refusals.insert((ChildKind::Deployment, "b".to_owned()), refusal);
    let decision = decide(&two, &world);
    assert_eq!(reason(&decision, "b"), "Refused");
    let refused = |action: &Action| matches!(action, Action::Apply { manifest, .. } if manifest.name == "b" && manifest.kind == ChildKind::Deployment);
    assert!(!decision.actions.iter().any(refused), "not at once again");
}

#[test]
fn a_paused_fleet_decides_nothing_and_says_so() {
    let mut wanted = wanted(&json!([service("a", "a:1", &[])]));
    wanted.paused = true;
    let decision = decide(&wanted, &World::default());
    assert_eq!((decision.actions.len(), reason(&decision, "a").as_str()), (0, "Paused"));
}

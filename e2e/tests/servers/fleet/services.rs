//! Fleets against a real API server with its real controllers: what is taken and refused, what becomes of it, and what is said.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{
    apiserver,
    fleet::{FleetGround, Kubelet, cluster, example, service},
};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{ConfigMap, Pod, ResourceQuota, Secret, Service, ServiceAccount},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use longshore_crds::{
    ServiceFleet,
    service_fleet::{ServiceFleetStatus, ServiceState},
};
use longshore_operator::fleet::manifest::{ChildKind, Manifest};
use serde_json::{Value, json};

/// For what was seen to be said of the event.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// Long enough for any watch to bring what would be acted upon.
const QUIET: Duration = Duration::from_secs(4);

fn fleet(services: &[Value]) -> Value {
    json!({"services": services})
}

/// `service` with more fields, or others.
fn with(service: &Value, more: &Value) -> Value {
    let mut service = service.clone();
    for (name, value) in more.as_object().into_iter().flatten() {
        service[name] = value.clone();
    }
    service
}

fn without(service: &Value, field: &str) -> Value {
    let mut service = service.clone();
    service.as_object_mut().expect("a service is an object").remove(field);
    service
}

async fn refused(ground: &FleetGround, spec: &Value, expected: &str) {
    let said = format!("{:#}", ground.apply("refused", spec).await.expect_err("it was taken"));
    assert!(said.contains(expected), "{spec} was refused otherwise: {said}");
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_at_once() -> Result<()> {
    let ground = FleetGround::without_operator(cluster().await?, "spec").await?;
    let plain = service("a", "a:1", 1);
    let scaled = json!({"minReplicas": 3, "maxReplicas": 2});
    let cases = [
        (
            with(&plain, &json!({"autoscaling": {"minReplicas": 1, "maxReplicas": 2}})),
            "either replicas or autoscaling",
        ),
        (without(&plain, "replicas"), "either replicas or autoscaling"),
        (
            with(&without(&plain, "replicas"), &json!({"autoscaling": scaled})),
            "minReplicas must not be above",
        ),
        (with(&plain, &json!({"image": "a:latest"})), "a tag that stays"),
        (with(&plain, &json!({"image": "registry:5000/a"})), "image"),
        (with(&plain, &json!({"name": "default"})), "objects of this name already"),
        (with(&plain, &json!({"dependsOn": ["a"]})), "cannot depend on itself"),
        (with(&plain, &json!({"dependsOn": ["b"]})), "services of this fleet"),
        (with(&plain, &json!({"probes": {"readiness": {"port": "grpc"}}})), "must be one of ports"),
        (with(&plain, &json!({"ports": {"http": 1, "metrics": 1}})), "ports must differ"),
        (with(&plain, &json!({"ports": {}})), "name a port"),
        (with(&plain, &json!({"config": [{"mountPath": "/etc/a"}]})), "either configMapName or secretName"),
        (
            with(
                &plain,
                &json!({"config": [
                    {"secretName": "a", "mountPath": "/etc/a"}, {"secretName": "b", "mountPath": "/etc/a"},
                ]}),
            ),
            "may be used once",
        ),
        (with(&plain, &json!({"config": [{"secretName": "a", "mountPath": "/tmp"}]})), "scratch folder"),
        (
            with(
                &plain,
                &json!({"resources": {
                    "requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "1500m"},
                }}),
            ),
            "requests.cpu is above",
        ),
        (
            with(
                &plain,
                &json!({"resources": {
                    "requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "1000Mi"},
                }}),
            ),
            "requests.memory is above",
        ),
        (
            with(&plain, &json!({"disruption": {"drainSeconds": 40, "terminationGraceSeconds": 40}})),
            "must be longer",
        ),
        (with(&plain, &json!({"canary": {}})), "field not declared"),
    ];
    for (case, expected) in cases {
        refused(&ground, &fleet(&[case]), expected).await;
    }
    let said = ground.apply(&"a".repeat(64), &fleet(&[plain])).await.expect_err("too long a name");
    assert!(format!("{said:#}").contains("at most 63"), "{said:#}");
    Ok(())
}

#[tokio::test]
async fn as_many_services_as_allowed_are_taken() -> Result<()> {
    let ground = FleetGround::without_operator(cluster().await?, "many").await?;
    let name = |at: usize| format!("service-{at:03}-{}", "x".repeat(28));
    let one = |at: usize| {
        let before: Vec<String> = (0..at).rev().take(8).map(name).collect();
        with(&service(&name(at), "registry.example/any:1", 1), &json!({"dependsOn": before}))
    };
    let services: Vec<Value> = (0..256).map(one).collect();
    ground.apply("many", &fleet(&services)).await?;
    let one_more: Vec<Value> = (0..257).map(one).collect();
    refused(&ground, &fleet(&one_more), "must have at most 256 items").await;
    Ok(())
}

#[tokio::test]
async fn every_manifest_is_taken_strictly_and_every_pod_where_pods_are_restricted() -> Result<()> {
    let ground = FleetGround::without_operator(cluster().await?, "strict").await?;
    ground.apply("example", &example::spec()).await?;
    let manifests = example::manifests(&example::spec())?;
    for kind in ChildKind::ALL {
        assert!(manifests.iter().any(|manifest| manifest.kind == kind), "the example has no {kind}");
    }
    for manifest in &manifests {
        let object: DynamicObject = serde_json::from_value(manifest.body.clone())?;
        apiserver::dry_run(&ground.client, &object, &ground.namespace).await?;
        if manifest.kind == ChildKind::Deployment {
            admit(&ground, manifest).await.with_context(|| manifest.name.clone())?;
        }
    }
    Ok(())
}

/// The pod that the Deployment's controller would make, in a namespace that enforces the restricted standard.
async fn admit(ground: &FleetGround, manifest: &Manifest) -> Result<()> {
    let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": manifest.name}}))?;
    ground.api::<ServiceAccount>().create(&PostParams::default(), &account).await?;
    let mut pod = manifest.body["spec"]["template"].clone();
    pod["metadata"]["name"] = manifest.name.clone().into();
    let params = PostParams { dry_run: true, ..PostParams::default() };
    ground.api::<Pod>().create(&params, &serde_json::from_value(pod.clone())?).await?;
    // The same pod as root: the namespace does look.
    pod["spec"]["securityContext"]["runAsNonRoot"] = false.into();
    let refused = ground.api::<Pod>().create(&params, &serde_json::from_value(pod)?).await;
    assert!(refused.expect_err("root was admitted").to_string().contains("violates PodSecurity"));
    Ok(())
}

#[tokio::test]
async fn a_fleet_comes_up_scales_changes_and_rests() -> Result<()> {
    let ground = FleetGround::new("life").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    let (a, b) = (service("a", "a:1", 2), with(&service("b", "b:1", 1), &json!({"dependsOn": ["a"]})));
    ground.apply("shop", &fleet(&[a.clone(), b.clone()])).await?;
    let status = ground.await_ready("shop").await?;
    assert_eq!((status.summary.services.as_str(), status.summary.active.as_str()), ("2/2", ""));
    ground.expect_quiet(QUIET).await?;

    let before = ground.pods("a").await?.iter().map(|pod| pod.name_any()).collect::<Vec<_>>();
    ground.apply("shop", &fleet(&[with(&a, &json!({"replicas": 3})), b.clone()])).await?;
    ground.await_ready("shop").await?;
    let after = ground.pods("a").await?.iter().map(|pod| pod.name_any()).collect::<Vec<_>>();
    assert!(
        after.len() == 3 && before.iter().all(|name| after.contains(name)),
        "{before:?} became {after:?}"
    );

    ground.apply("shop", &fleet(&[with(&a, &json!({"replicas": 3, "image": "a:2"})), b])).await?;
    let status = ground.await_ready("shop").await?;
    let images: Vec<_> =
        status.services.iter().map(|service| service.image.clone().unwrap_or_default()).collect();
    assert_eq!(images, ["a:2", "b:1"]);
    ground.expect_quiet(QUIET).await
}

/// A change by somebody else, and whether it was put back.
async fn is_put_back<K>(ground: &FleetGround, patch: &Value, pointer: &str) -> Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + serde::Serialize,
{
    let api = ground.api::<K>();
    let value = |object: &K| serde_json::to_value(object).ok().and_then(|it| it.pointer(pointer).cloned());
    let before = value(&api.get("a").await?);
    let params = PatchParams { field_manager: Some("somebody".to_owned()), ..PatchParams::default() };
    let changed = value(&api.patch("a", &params, &Patch::Merge(patch)).await?);
    ensure!(changed != before, "{patch} changes nothing at {pointer}");
    ground
        .until(&format!("{pointer} to be {before:?} again"), async || {
            (value(&api.get("a").await.ok()?) == before).then_some(())
        })
        .await
}

#[tokio::test]
async fn what_others_change_is_put_back_and_what_is_theirs_stays() -> Result<()> {
    let ground = FleetGround::new("drift").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    ground.apply("shop", &fleet(&[service("a", "a:1", 2)])).await?;
    ground.await_ready("shop").await?;
    let theirs = json!({"metadata": {"annotations": {"somebody/note": "kept"}}});
    let params = PatchParams::default();
    ground.api::<Deployment>().patch("a", &params, &Patch::Merge(&theirs)).await?;

    is_put_back::<Deployment>(&ground, &json!({"spec": {"replicas": 5}}), "/spec/replicas").await?;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "evil:1"}]}}}});
    is_put_back::<Deployment>(&ground, &image, "/spec/template/spec/containers/0/image").await?;
    let label = json!({"metadata": {"labels": {"longshore.dev/service": "other"}}});
    is_put_back::<Deployment>(&ground, &label, "/metadata/labels/longshore.dev~1service").await?;
    let owners = json!({"metadata": {"ownerReferences": []}});
    is_put_back::<Deployment>(&ground, &owners, "/metadata/ownerReferences/0/uid").await?;
    let note = json!({"metadata": {"annotations": {"longshore.dev/wanted": "none"}}});
    is_put_back::<Service>(&ground, &note, "/metadata/annotations/longshore.dev~1wanted").await?;
    is_put_back::<Service>(&ground, &json!({"spec": {"selector": {"a": "b"}}}), "/spec/selector").await?;
    is_put_back::<Deployment>(&ground, &json!({"spec": {"paused": true}}), "/spec/paused").await?;
    let token = json!({"automountServiceAccountToken": true});
    is_put_back::<ServiceAccount>(&ground, &token, "/automountServiceAccountToken").await?;

    let services = ground.api::<Service>();
    let uid = services.get("a").await?.uid();
    services.delete("a", &DeleteParams::default()).await?;
    ground
        .until("the Service to be there again", async || {
            (services.get_opt("a").await.ok()??.uid() != uid).then_some(())
        })
        .await?;
    // Without the fleet's label the watch loses sight of it.
    let label = json!({"metadata": {"labels": {"longshore.dev/fleet": null}}});
    is_put_back::<Service>(&ground, &label, "/metadata/labels/longshore.dev~1fleet").await?;
    is_put_back::<Deployment>(&ground, &label, "/metadata/labels/longshore.dev~1fleet").await?;
    ground.await_ready("shop").await?;
    let wrong = json!({"status": {"summary": {"services": "7/7"}}});
    ground.api::<ServiceFleet>().patch_status("shop", &params, &Patch::Merge(&wrong)).await?;
    let right = |status: &ServiceFleetStatus| status.summary.services == "1/1";
    ground.await_status("shop", "the status to be right again", right).await?;
    let kept = ground.deployment("a").await?.context("it is there")?;
    assert_eq!(kept.annotations().get("somebody/note").map(String::as_str), Some("kept"));
    ground.expect_quiet(QUIET).await
}

#[tokio::test]
async fn services_start_and_change_after_those_they_depend_on() -> Result<()> {
    let ground = FleetGround::new("order").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    let on = |name: &str, image: &str, on: &[&str]| with(&service(name, image, 1), &json!({"dependsOn": on}));
    let three =
        |a: &str, b: &str, c: &str| fleet(&[on("c", c, &["b"]), on("b", b, &["a"]), service("a", a, 1)]);

    ground.apply("shop", &three("a:slow", "b:1", "c:1")).await?;
    let (told, _) = ground.await_reason("shop", "c", "WaitingForDependency").await?;
    assert_eq!(
        (told.state, told.message.as_str()),
        (ServiceState::Waiting, "waits for b: it is not there yet")
    );
    let (told, _) = ground.await_reason("shop", "b", "WaitingForDependency").await?;
    assert!(told.message.starts_with("waits for a: "), "{}", told.message);
    assert!(ground.deployment("b").await?.is_none() && ground.deployment("c").await?.is_none());
    ground.apply("shop", &three("a:1", "b:1", "c:1")).await?;
    ground.await_ready("shop").await?;

    // All three change at once, and the first does not come up: the others stay as they are.
    ground.apply("shop", &three("a:missing", "b:2", "c:2")).await?;
    let (told, _) = ground.await_reason("shop", "a", "ImagePullFailed").await?;
    assert_eq!(told.ready_replicas, 1, "the old pod serves on");
    let (told, _) = ground.await_reason("shop", "c", "WaitingForDependency").await?;
    assert_eq!(told.image.as_deref(), Some("c:1"));
    ground.apply("shop", &three("a:2", "b:2", "c:2")).await?;
    let status = ground.await_ready("shop").await?;
    let images: Vec<_> = status.services.iter().map(|service| service.image.as_deref()).collect();
    assert_eq!(images, [Some("a:2"), Some("b:2"), Some("c:2")]);
    Ok(())
}

#[tokio::test]
async fn a_cycle_is_named_and_holds_only_what_is_in_it() -> Result<()> {
    let ground = FleetGround::new("cycle").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    let on = |name: &str, on: &[&str]| with(&service(name, "any:1", 1), &json!({"dependsOn": on}));
    ground.apply("shop", &fleet(&[on("a", &["b"]), on("b", &["a"]), on("c", &[])])).await?;
    ground.await_reason("shop", "c", "Available").await?;
    let (told, _) = ground.await_reason("shop", "a", "DependencyCycle").await?;
    assert!(told.message.contains("a → b → a"), "{}", told.message);
    let degraded = |status: &ServiceFleetStatus| {
        let condition = status.conditions.iter().find(|condition| condition.type_ == "Degraded");
        condition.is_some_and(|it| it.status == "True" && it.reason == "DependencyCycle")
    };
    ground.await_status("shop", "the condition to say so", degraded).await?;
    ground.apply("shop", &fleet(&[on("a", &["b"]), on("b", &[]), on("c", &[])])).await?;
    ground.await_ready("shop").await?;
    Ok(())
}

#[tokio::test]
async fn pods_that_do_not_come_up_are_explained_and_old_ones_left_alone() -> Result<()> {
    let ground = FleetGround::new("trouble").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    ground.apply("shop", &fleet(&[service("a", "a:1", 4)])).await?;
    ground.await_ready("shop").await?;
    let old: Vec<String> = ground.pods("a").await?.iter().map(|pod| pod.name_any()).collect();
    let cases = [
        ("a:missing", "ImagePullFailed", "image a:missing cannot be pulled: not found; 4 others serve"),
        ("a:crash", "CrashLoop", "ends again and again: exit code 3; 4 others serve"),
        (
            "a:huge",
            "Unschedulable",
            "no node takes the pod: 0/1 nodes are available: 1 Insufficient cpu.; 4 others serve",
        ),
    ];
    for (image, reason, message) in cases {
        ground.apply("shop", &fleet(&[service("a", image, 4)])).await?;
        let (told, took) = ground.await_reason("shop", "a", reason).await?;
        assert!(told.message.contains(message), "{}", told.message);
        assert_eq!((told.state, told.ready_replicas), (ServiceState::Failing, 4));
        assert!(took < TOLD_WITHIN, "{reason} took {took:?}");
        let now: Vec<String> = ground.pods("a").await?.iter().map(|pod| pod.name_any()).collect();
        assert!(old.iter().all(|name| now.contains(name)), "{old:?} became {now:?}");
    }
    ground.apply("shop", &fleet(&[service("a", "a:1", 4)])).await?;
    ground.await_ready("shop").await?;

    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"},
        "spec": {"hard": {"requests.cpu": "1m"}},
    });
    ground.apply_object::<ResourceQuota>("none", &quota).await?;
    // Nobody counts for a quota here; the API server admits nothing until somebody has.
    let counted = json!({"status": {"hard": {"requests.cpu": "1m"}, "used": {"requests.cpu": "1m"}}});
    let quotas = ground.api::<ResourceQuota>();
    quotas.patch_status("none", &PatchParams::default(), &Patch::Merge(&counted)).await?;
    ground.apply("shop", &fleet(&[service("a", "a:2", 4)])).await?;
    let (told, took) = ground.await_reason("shop", "a", "PodsNotCreated").await?;
    assert!(told.message.contains("exceeded quota"), "{}", told.message);
    assert!(took < TOLD_WITHIN, "it took {took:?}");
    Ok(())
}

#[tokio::test]
async fn pods_follow_their_configuration() -> Result<()> {
    let ground = FleetGround::new("config").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    let config = json!({"config": [
        {"configMapName": "settings"},
        {"secretName": "keys", "mountPath": "/etc/keys"},
        {"secretName": "live", "mountPath": "/etc/live", "restartOnChange": false},
    ]});
    ground.apply("shop", &fleet(&[with(&service("a", "a:1", 1), &config)])).await?;
    let map = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"KEY": value}});
    let secret = |name: &str, value: &str, note: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "annotations": {"note": note}}, "stringData": {"key": value},
        })
    };
    let (told, _) = ground.await_reason("shop", "a", "ConfigNotFound").await?;
    assert_eq!(told.message, "ConfigMap settings does not exist; create it");
    ground.apply_object::<ConfigMap>("settings", &map("1")).await?;
    ground.apply_object::<Secret>("keys", &secret("keys", "1", "")).await?;
    ground.apply_object::<Secret>("live", &secret("live", "1", "")).await?;
    ground.await_ready("shop").await?;

    let generation =
        async || Ok::<_, anyhow::Error>(ground.deployment("a").await?.and_then(|it| it.metadata.generation));
    let mut last = generation().await?;
    // What is no content, or read again by the service itself, changes no pod.
    ground.apply_object::<Secret>("keys", &secret("keys", "1", "noted")).await?;
    ground.apply_object::<Secret>("live", &secret("live", "2", "")).await?;
    ground.expect_quiet(QUIET).await?;
    assert_eq!(generation().await?, last);
    for step in 0..2 {
        match step {
            0 => ground.apply_object::<ConfigMap>("settings", &map("2")).await?,
            _ => ground.apply_object::<Secret>("keys", &secret("keys", "2", "")).await?,
        }
        let rolled = async || generation().await.ok().filter(|now| *now > last);
        last = ground.until("the pods to be rolled", rolled).await?;
        ground.await_ready("shop").await?;
    }
    ground.api::<ConfigMap>().delete("settings", &DeleteParams::default()).await?;
    ground.await_reason("shop", "a", "ConfigNotFound").await?;
    assert_eq!(generation().await?, last, "what runs is left alone");
    Ok(())
}

#[tokio::test]
async fn an_autoscaler_has_the_replicas_and_never_fewer_than_declared() -> Result<()> {
    let ground = FleetGround::new("scale").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    let fixed = service("a", "a:1", 4);
    let scaled = |image: &str| {
        with(
            &without(&fixed, "replicas"),
            &json!({
                "image": image, "autoscaling": {"minReplicas": 2, "maxReplicas": 9},
            }),
        )
    };
    let replicas = async || Some(ground.deployment("a").await.ok()??.spec?.replicas?);
    let seen = async |wanted: i32| {
        ground
            .until(&format!("{wanted} replicas"), async || (replicas().await? == wanted).then_some(()))
            .await
    };
    ground.apply("shop", &fleet(std::slice::from_ref(&fixed))).await?;
    ground.await_ready("shop").await?;
    // A field that only the operator had would go back to 1 when it is let go.
    ground.apply("shop", &fleet(&[scaled("a:1")])).await?;
    ground.await_ready("shop").await?;
    assert_eq!(replicas().await, Some(4));
    assert!(ground.api::<HorizontalPodAutoscaler>().get_opt("a").await?.is_some());

    let scale = async |replicas: i32| {
        let patch = json!({"spec": {"replicas": replicas}});
        let params = PatchParams { field_manager: Some("autoscaler".to_owned()), ..PatchParams::default() };
        ground.api::<Deployment>().patch_scale("a", &params, &Patch::Merge(&patch)).await
    };
    scale(6).await?;
    ground.apply("shop", &fleet(&[scaled("a:2")])).await?;
    ground.await_ready("shop").await?;
    assert_eq!(replicas().await, Some(6), "a rollout leaves them to the autoscaler");
    ground.expect_quiet(QUIET).await?;
    // An autoscaler does nothing where somebody has set 0.
    scale(0).await?;
    seen(2).await?;
    scale(5).await?;
    ground.await_ready("shop").await?;
    assert_eq!(replicas().await, Some(5));

    ground.apply("shop", &fleet(&[fixed])).await?;
    seen(4).await?;
    ground
        .until("the autoscaler to be gone", async || {
            ground.api::<HorizontalPodAutoscaler>().get_opt("a").await.ok()?.is_none().then_some(())
        })
        .await?;
    ground.await_ready("shop").await?;
    Ok(())
}

#[tokio::test]
async fn a_service_taken_out_goes_after_those_that_need_it() -> Result<()> {
    let ground = FleetGround::new("drain").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    let b = |image: &str, on: &[&str]| with(&service("b", image, 1), &json!({"dependsOn": on}));
    let keep = service("keep", "keep:1", 1);
    ground.apply("shop", &fleet(&[service("a", "a:1", 2), b("b:1", &["a"]), keep.clone()])).await?;
    ground.await_ready("shop").await?;
    // b needs a no more, but those of its pods that do run on until others are ready.
    ground.apply("shop", &fleet(&[b("b:slow", &[]), keep.clone()])).await?;
    let (told, _) = ground.await_reason("shop", "a", "NeededByOthers").await?;
    assert_eq!((told.state, told.ready_replicas), (ServiceState::Draining, 2));
    ground.apply("shop", &fleet(&[b("b:2", &[]), keep.clone()])).await?;
    let gone = async |name: &str| {
        ground
            .until(&format!("{name} to be gone"), async || {
                let gone = ground.deployment(name).await.ok()?.is_none()
                    && ground.api::<Service>().get_opt(name).await.ok()?.is_none()
                    && ground.api::<ServiceAccount>().get_opt(name).await.ok()?.is_none()
                    && ground.pods(name).await.ok()?.is_empty();
                gone.then_some(())
            })
            .await
    };
    gone("a").await?;
    ground.await_ready("shop").await?;
    assert!(ground.deployment("b").await?.is_some() && ground.deployment("keep").await?.is_some());
    // Server-side apply of an empty list would take the spec away.
    let nothing = json!({"spec": {"services": []}});
    ground.api::<ServiceFleet>().patch("shop", &PatchParams::default(), &Patch::Merge(&nothing)).await?;
    gone("b").await?;
    gone("keep").await?;
    ground.expect_quiet(QUIET).await
}

#[tokio::test]
async fn a_deleted_fleet_takes_its_services_along_or_leaves_them_running() -> Result<()> {
    let ground = FleetGround::new("delete").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    let fleets = ground.api::<ServiceFleet>();
    let spec = |policy: &str| json!({"deletionPolicy": policy, "services": [service("a", "a:1", 2)]});
    let fleet_gone = async || fleets.get_opt("shop").await.ok()?.is_none().then_some(());
    ground.apply("shop", &spec("Orphan")).await?;
    ground.await_ready("shop").await?;
    let before = ground.deployment("a").await?.context("it is there")?;
    let pods: Vec<_> = ground.pods("a").await?.iter().filter_map(|pod| pod.uid()).collect();
    // As Argo CD does: the garbage collector would take whatever has an owner, before anybody could let go of it.
    fleets.delete("shop", &DeleteParams::foreground()).await?;
    ground.until("the fleet to be gone", fleet_gone).await?;
    let left = ground.deployment("a").await?.context("it was left")?;
    assert!(left.owner_references().is_empty() && left.metadata.deletion_timestamp.is_none());

    // A fleet of the same name takes them over, and changes no pod.
    ground.apply("shop", &spec("Delete")).await?;
    ground.await_ready("shop").await?;
    let after = ground.deployment("a").await?.context("it is there")?;
    assert_eq!((after.uid(), after.spec.clone()), (before.uid(), before.spec));
    assert!(!after.owner_references().is_empty());
    let same: Vec<_> = ground.pods("a").await?.iter().filter_map(|pod| pod.uid()).collect();
    assert_eq!(same, pods);

    fleets.delete("shop", &DeleteParams::default()).await?;
    ground
        .until("all to be gone", async || {
            let gone = ground.deployment("a").await.ok()?.is_none()
                && ground.api::<Service>().get_opt("a").await.ok()?.is_none()
                && ground.pods("a").await.ok()?.is_empty();
            gone.then_some(())
        })
        .await?;
    Ok(())
}

#[tokio::test]
async fn what_may_not_be_deleted_is_said_and_holds_nothing_else() -> Result<()> {
    let ground = FleetGround::new("denied").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    ground.apply("shop", &fleet(&[service("a", "a:1", 1)])).await?;
    ground.await_ready("shop").await?;
    let name = format!("{}-denied", ground.namespace);
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(ground.client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(ground.client.clone());
    let deployments = json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["deployments"]});
    let here = json!({"matchLabels": {"kubernetes.io/metadata.name": ground.namespace}});
    let policy = json!({"metadata": {"name": name}, "spec": {
        "matchConstraints": {"resourceRules": [deployments], "namespaceSelector": here},
        "validations": [{"expression": "false", "message": "not on a Friday"}],
    }});
    let binding =
        json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
    policies.create(&PostParams::default(), &serde_json::from_value(policy)?).await?;
    bindings.create(&PostParams::default(), &serde_json::from_value(binding)?).await?;
    let dry = DeleteParams { dry_run: true, ..DeleteParams::default() };
    let denied = async || ground.api::<Deployment>().delete("a", &dry).await.is_err().then_some(());
    ground.until("the policy to hold", denied).await?;

    ground.apply("shop", &fleet(&[service("b", "b:1", 1)])).await?;
    let (told, _) = ground.await_reason("shop", "a", "Refused").await?;
    assert!(told.message.contains("not on a Friday"), "{}", told.message);
    ground.await_reason("shop", "b", "Available").await?;
    policies.delete(&name, &DeleteParams::default()).await?;
    bindings.delete(&name, &DeleteParams::default()).await?;
    let status = ground.await_ready("shop").await?;
    assert_eq!(status.summary.services, "1/1");
    Ok(())
}

#[tokio::test]
async fn what_is_somebody_elses_is_not_touched() -> Result<()> {
    let ground = FleetGround::new("taken").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    let theirs = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
        "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 80}]},
    });
    ground.apply_object::<Service>("a", &theirs).await?;
    let version = ground.api::<Service>().get("a").await?.resource_version();
    ground.apply("shop", &fleet(&[service("a", "a:1", 1), service("b", "b:1", 1)])).await?;
    let (told, _) = ground.await_reason("shop", "a", "NameTaken").await?;
    assert!(told.message.contains("Service a exists"), "{}", told.message);
    ground.await_reason("shop", "b", "Available").await?;
    assert_eq!(ground.api::<Service>().get("a").await?.resource_version(), version);
    ground.api::<Service>().delete("a", &DeleteParams::default()).await?;
    ground.await_ready("shop").await?;
    Ok(())
}

#[tokio::test]
async fn a_paused_fleet_is_left_alone() -> Result<()> {
    let ground = FleetGround::new("paused").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    ground.apply("shop", &fleet(&[service("a", "a:1", 1)])).await?;
    ground.await_ready("shop").await?;
    let generation = ground.deployment("a").await?.and_then(|it| it.metadata.generation);
    ground.apply("shop", &json!({"paused": true, "services": [service("a", "a:2", 1)]})).await?;
    ground.await_reason("shop", "a", "Paused").await?;
    ground.expect_quiet(QUIET).await?;
    assert_eq!(ground.deployment("a").await?.and_then(|it| it.metadata.generation), generation);
    ground.apply("shop", &fleet(&[service("a", "a:2", 1)])).await?;
    ground.await_ready("shop").await?;
    Ok(())
}

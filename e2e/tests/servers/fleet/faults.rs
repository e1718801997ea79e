//! Fleets while the operator dies at each of its actions, while the API server is away, and while a former leader wakes up.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use e2e::{
    apiserver::ApiServer,
    awaiting::await_condition,
    fleet::{DEADLINE, FleetGround, Kubelet, cluster, is_ready, service},
    operator,
    proxy::{Aim, ApiProxy, Fault, Recorder},
};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{ResourceExt as _, api::ListParams};
use reqwest::StatusCode;
use serde_json::{Value, json};

const QUIET: Duration = Duration::from_secs(4);
/// So long nothing has to happen between two kills at least.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

fn on(service: &Value, on: &[&str]) -> Value {
    let mut service = service.clone();
    service["dependsOn"] = on.into();
    service
}

/// Keeps the operator running, killed whenever an action of its was hit, until the fleet is ready. Returns how often it died.
async fn survive(ground: &mut FleetGround, name: &str) -> Result<u32> {
    let mut kills = 0;
    let recorder = Arc::clone(&ground.recorder);
    let surviving = async {
        loop {
            tokio::select! {
                () = recorder.until_doomed() => {
                    kills += 1;
                    ground.restart_operator().await?;
                }
                () = tokio::time::sleep(LOOK_PAUSE) => {}
            }
            // As when a request about its Lease got no answer: a Deployment would start it again.
            if ground.operator()?.ended()?.is_some() {
                ground.restart_operator().await?;
            }
            let status = ground.status(name).await?;
            if !recorder.is_doomed() && status.as_ref().is_some_and(is_ready) {
                return Ok::<(), anyhow::Error>(());
            }
        }
    };
    tokio::time::timeout(DEADLINE * 4, surviving).await.context("the fleet is not ready in time")??;
    Ok(kills)
}

/// The generation of each Deployment.
async fn generations(ground: &FleetGround) -> Result<BTreeMap<String, Option<i64>>> {
    let all = ground.api::<Deployment>().list(&ListParams::default()).await?;
    Ok(all.items.iter().map(|it| (it.name_any(), it.metadata.generation)).collect())
}

/// Create, change and take out, with each action hit once in each phase.
async fn chain(fault: Fault) -> Result<()> {
    let server = e2e::fleet::cluster().await?;
    let mut ground = FleetGround::without_operator(server, "chain").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    let a = |image: &str| service("a", image, 2);
    let b = on(&service("b", "b:1", 1), &["a"]);
    let phases = [json!([a("a:1"), b]), json!([a("a:2"), b]), json!([a("a:2")])];
    for (at, services) in phases.iter().enumerate() {
        // What was hit once may be hit again in the next phase.
        ground.renew_proxy().await?;
        ground.apply("shop", &json!({"services": services})).await?;
        ground.recorder.aim(Aim::EachOnce(fault));
        ground.restart_operator().await?;
        let kills = survive(&mut ground, "shop").await?;
        let hit = ground.recorder.hit_signatures();
        let acted = hit.iter().any(|signature| signature.contains("deployments/"));
        assert!(acted, "phase {at}: no Deployment was touched: {hit:?}");
        assert_eq!(kills > 0, fault != Fault::Cut, "phase {at}: {hit:?}");
        eprintln!("{fault}, phase {at}: {kills} kills at {} actions", hit.len());
    }
    ground.recorder.aim(Aim::Nothing);
    if ground.recorder.is_doomed() {
        ground.restart_operator().await?;
    }
    ground.await_ready("shop").await?;
    let left: Vec<String> = generations(&ground).await?.into_keys().collect();
    assert_eq!(left, ["a"]);
    ground.expect_quiet(QUIET).await
}

#[tokio::test]
async fn an_operator_that_dies_before_each_action_loses_nothing() -> Result<()> {
    chain(Fault::Before).await
}

#[tokio::test]
async fn an_operator_that_dies_after_each_action_loses_nothing() -> Result<()> {
    chain(Fault::After).await
}

#[tokio::test]
async fn an_operator_that_dies_before_it_hears_of_each_action_loses_nothing() -> Result<()> {
    chain(Fault::Lost).await
}

#[tokio::test]
async fn a_connection_that_is_cut_at_each_action_loses_nothing() -> Result<()> {
    chain(Fault::Cut).await
}

#[tokio::test]
async fn another_operator_changes_no_pod() -> Result<()> {
    let mut ground = FleetGround::new("upgrade").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    let services = json!({"services": [service("a", "a:1", 2), on(&service("b", "b:1", 1), &["a"])]});
    ground.apply("shop", &services).await?;
    ground.await_ready("shop").await?;
    let before = generations(&ground).await?;
    let first = ground.leader().await;
    ground.restart_operator().await?;
    await_condition("another to lead", DEADLINE, async || (ground.leader().await != first).then_some(()))
        .await?;
    ground.expect_quiet(QUIET).await?;
    assert_eq!(generations(&ground).await?, before);
    Ok(())
}

#[tokio::test]
async fn an_api_server_that_was_away_is_no_reason_to_change_anything() -> Result<()> {
    let mut server = ApiServer::start().await?;
    server.start_controllers()?;
    let mut ground = FleetGround::without_operator(&server, "away").await?;
    ground.start_operator()?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    ground.apply("shop", &json!({"services": [service("a", "a:1", 2)]})).await?;
    ground.await_ready("shop").await?;
    let before = generations(&ground).await?;
    server.restart().await?;
    // It may have lost its Lease meanwhile, and then ends.
    if ground.operator()?.ended()?.is_some() {
        ground.restart_operator().await?;
    }
    ground.expect_quiet(QUIET).await?;
    assert_eq!(generations(&ground).await?, before);
    if ground.operator()?.ended()?.is_some() {
        ground.restart_operator().await?;
    }
    ground.apply("shop", &json!({"services": [service("a", "a:2", 2)]})).await?;
    survive(&mut ground, "shop").await?;
    assert!(generations(&ground).await? != before, "it acts again");
    Ok(())
}

#[tokio::test]
async fn a_watch_that_hangs_is_told_to_whoever_asks_for_health() -> Result<()> {
    let mut ground = FleetGround::without_operator(cluster().await?, "hung").await?;
    ground.start_operator_with(&["--watch-look-seconds", "1"])?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    ground.apply("shop", &json!({"services": [service("a", "a:1", 1)]})).await?;
    ground.await_ready("shop").await?;
    let until_health = async |what: &str, status: StatusCode, said: &str| {
        let healthy = async || {
            let answer = operator::ask(ground.operator().ok()?, "/healthz").await.ok()?;
            (answer.0 == status && answer.1.contains(said)).then_some(())
        };
        ground.until(what, healthy).await
    };
    until_health("a healthy watch", StatusCode::OK, "ok").await?;

    ground.proxy.hang_watches(Some("/servicefleets"));
    ground.apply("shop", &json!({"services": [service("a", "a:2", 1)]})).await?;
    until_health("a watch that is stuck", StatusCode::SERVICE_UNAVAILABLE, "ServiceFleet").await?;

    ground.proxy.hang_watches(None);
    until_health("the watch to go on", StatusCode::OK, "ok").await?;
    Ok(())
}

#[tokio::test]
async fn what_a_former_leader_asks_for_is_refused() -> Result<()> {
    let ground = FleetGround::new("stale").await?;
    let _kubelet = Kubelet::start(ground.client.clone(), &ground.namespace);
    let with_image = |image: &str| json!({"services": [service("a", image, 2)]});
    ground.apply("shop", &with_image("a:1")).await?;
    ground.await_ready("shop").await?;

    // The leader is about to roll out a:2 when its requests get stuck, and then hears no more of its Lease.
    let recorder = Arc::clone(&ground.recorder);
    let asked = |actions: &[e2e::proxy::Recorded]| {
        actions.iter().any(|action| action.signature.contains("PATCH deployments/a"))
    };
    recorder.forget();
    ground.proxy.hold(Some("/deployments/a"));
    ground.apply("shop", &with_image("a:2")).await?;
    tokio::time::timeout(DEADLINE, recorder.until(asked)).await.context("nothing was asked for")?;
    ground.proxy.hold_leases();
    let former = ground.leader().await;

    let next_recorder = Arc::new(Recorder::default());
    let proxy =
        ApiProxy::start(&format!("{}-next", ground.namespace), ground.client.clone(), next_recorder).await?;
    let _next = ground.spawn_operator("next", &proxy, &[])?;
    await_condition("the next to lead", DEADLINE, async || {
        ground.leader().await.is_some_and(|now| Some(now) != former).then_some(())
    })
    .await?;
    ground.apply("shop", &with_image("a:3")).await?;
    let rolled = async || {
        let status = ground.status("shop").await.ok()??;
        let newest = status.services.first()?.image.as_deref() == Some("a:3");
        (newest && is_ready(&status)).then_some(())
    };
    ground.until("the next to roll out a:3", rolled).await?;
    let before = generations(&ground).await?;

    // Now what the former leader asked for arrives.
    ground.proxy.hold(None);
    let answered = |actions: &[e2e::proxy::Recorded]| {
        let mut those = actions.iter().filter(|action| action.signature.contains("PATCH deployments/a"));
        those.any(|action| action.committed == Some(false))
    };
    tokio::time::timeout(DEADLINE, recorder.until(answered)).await.context("it was not refused")?;
    let taken = recorder
        .actions()
        .into_iter()
        .filter(|action| action.signature.contains("PATCH deployments/a") && action.committed == Some(true));
    assert_eq!(taken.count(), 0, "the former leader changed a Deployment");
    assert_eq!(generations(&ground).await?, before, "no pod was rolled");
    Ok(())
}

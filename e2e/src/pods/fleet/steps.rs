//! The promises, one by one: each leaves the fleet as it found it, and says what it saw.

use std::{collections::BTreeMap, fmt::Debug, time::Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Pod, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    core::NamespaceResourceScope,
};
use longshore_crds::ServiceFleet;
use longshore_operator::fleet::manifest::FLEET_LABEL;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{FLEET, Load, OPERATOR_NAMESPACE, Show, TOLD_WITHIN};

/// Of each Deployment its generation, and the uids of all pods.
type Standing = (BTreeMap<String, Option<i64>>, Vec<Option<String>>);

impl Show {
    pub(super) async fn create(&self) -> Result<String> {
        self.configure("first").await?;
        self.apply(&self.usual(&json!({}))).await?;
        let status = self.fleets.await_ready(FLEET).await?;
        let times = async |name: &str| {
            let deployment = self.fleets.deployment(name).await?.context("it is there")?;
            let made = deployment.metadata.creation_timestamp.clone().context("it was made")?.0;
            let conditions = deployment.status.and_then(|status| status.conditions).unwrap_or_default();
            let available = conditions.into_iter().find(|it| it.type_ == "Available");
            let available = available.and_then(|it| it.last_transition_time).context("it is available")?.0;
            Ok::<(Timestamp, Timestamp), anyhow::Error>((made, available))
        };
        let (web, store, base) = (times("web").await?, times("store").await?, times("base").await?);
        ensure!(base.1 <= store.0 && store.1 <= web.0, "made and available: {base:?} {store:?} {web:?}");
        Ok(format!("{} ready, each made after what it needs was available", status.summary.services))
    }

    pub(super) async fn scale(&self) -> Result<String> {
        let before = self.pods_of("web").await?;
        self.apply(&self.usual(&json!({"replicas": 4}))).await?;
        self.fleets.await_ready(FLEET).await?;
        let more = self.pods_of("web").await?;
        ensure!(more.len() == 4 && before.iter().all(|pod| more.contains(pod)), "{before:?} became {more:?}");
        self.settle().await?;
        Ok("3 → 4 → 3 pods, those that were there stayed".to_owned())
    }

    pub(super) async fn follow_configuration(&self, url: &str) -> Result<String> {
        self.configure("second").await?;
        let says = async || {
            let answer: Value = reqwest::get(url).await.ok()?.json().await.ok()?;
            (answer["setting"] == "second").then_some(())
        };
        self.fleets.until("a pod to say what the ConfigMap says", says).await?;
        self.fleets.await_ready(FLEET).await?;
        Ok("the ConfigMap changed, and so did all pods".to_owned())
    }

    /// Capacity never goes under what was declared.
    pub(super) async fn roll(&self) -> Result<String> {
        let before = self.pods_of("web").await?;
        self.apply(&self.usual(&json!({"env": [{"name": "DELAY_MS", "value": "51"}]}))).await?;
        let mut fewest = i32::MAX;
        let rolled = async || {
            let deployment = self.fleets.deployment("web").await.ok()??;
            fewest = fewest.min(deployment.status?.available_replicas.unwrap_or(0));
            let pods = self.pods_of("web").await.ok()?;
            (pods.len() == 3 && before.iter().all(|pod| !pods.contains(pod))).then_some(())
        };
        self.fleets.until("all pods to be others", rolled).await?;
        ensure!(fewest >= 3, "only {fewest} of 3 pods were available for a moment");
        self.fleets.await_ready(FLEET).await?;
        Ok(format!("all pods were replaced, at least {fewest} of 3 available at each look"))
    }

    pub(super) async fn bad_image(&self) -> Result<String> {
        let image = format!("{}:no-such-tag", self.echo.repository());
        self.trouble(&json!({"image": image}), "ImagePullFailed", |pod| {
            waits_for(pod, &["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"])
        })
        .await
    }

    pub(super) async fn crash_loop(&self) -> Result<String> {
        let crash = json!({"env": [{"name": "CRASH", "value": "true"}]});
        let ended = |pod: &Pod| {
            let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            statuses.into_iter().any(|container| {
                let states = [&container.state, &container.last_state];
                states.into_iter().flatten().any(|state| state.terminated.is_some())
            })
        };
        self.trouble(&crash, "CrashLoop", ended).await
    }

    pub(super) async fn unschedulable(&self) -> Result<String> {
        let huge = json!({"resources": {"requests": {"cpu": "900", "memory": "16Mi"}}});
        let refused = |pod: &Pod| {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.into_iter().any(|it| it.reason.as_deref() == Some("Unschedulable"))
        };
        self.trouble(&huge, "Unschedulable", refused).await
    }

    /// What comes first does not come up: what needs it stays as it is.
    pub(super) async fn change_in_order(&self) -> Result<String> {
        let env = json!([{"name": "DELAY_MS", "value": "52"}]);
        let mut services = self.usual(&json!({"env": env}));
        let broken = json!({"env": [{"name": "CRASH", "value": "true"}]});
        services[2] = self.service("base", &broken);
        let before = self.pods_of("web").await?;
        self.apply(&services).await?;
        self.fleets.await_reason(FLEET, "base", "CrashLoop").await?;
        let (told, _) = self.fleets.await_reason(FLEET, "web", "WaitingForDependency").await?;
        ensure!(self.pods_of("web").await? == before, "web changed before base was there");
        self.settle().await?;
        Ok(format!("web: {}", told.message))
    }

    pub(super) async fn drift(&self) -> Result<String> {
        let (deployments, services) = (self.fleets.api::<Deployment>(), self.fleets.api::<Service>());
        let started = Instant::now();
        let fewer = json!({"spec": {"replicas": 5}});
        deployments.patch("web", &PatchParams::default(), &Patch::Merge(&fewer)).await?;
        let again = async || {
            let spec = self.fleets.deployment("web").await.ok()??.spec?;
            (spec.replicas == Some(3)).then_some(())
        };
        self.fleets.until("3 replicas again", again).await?;
        let scaled = started.elapsed();
        let (started, uid) = (Instant::now(), services.get("store").await?.uid());
        services.delete("store", &DeleteParams::default()).await?;
        let again = async || (services.get_opt("store").await.ok()??.uid() != uid).then_some(());
        self.fleets.until("the Service to be there again", again).await?;
        let made = started.elapsed();
        self.fleets.await_ready(FLEET).await?;
        self.take_label::<Deployment>("web").await?;
        self.take_label::<Service>("web").await?;
        self.take_label::<ServiceAccount>("web").await?;
        self.take_label::<NetworkPolicy>("web").await?;
        self.take_label::<PodDisruptionBudget>("web").await?;
        Ok(format!(
            "replicas put back after {:.2} s, a deleted Service after {:.2} s, the fleet's label wherever it was taken",
            scaled.as_secs_f64(),
            made.as_secs_f64()
        ))
    }

    pub(super) async fn upgrade_operator(&self) -> Result<String> {
        let before = self.standing().await?;
        let leader = self.leader().await;
        self.releases.install_operator(&self.operator, "info,longshore_operator=debug").await?;
        let other = async || self.leader().await.filter(|now| Some(now) != leader.as_ref());
        self.fleets.until("an operator of the new kind to lead", other).await?;
        // It has looked at the fleet when it puts back what is changed now.
        self.drift().await?;
        let after = self.standing().await?;
        ensure!(before.1 == after.1, "pods changed: {:?} became {:?}", before.1, after.1);
        ensure!(
            before.0.get("base") == after.0.get("base") && before.0.get("store") == after.0.get("store"),
            "Deployments changed: {:?} became {:?}",
            before.0,
            after.0
        );
        Ok("another leads, and no pod and no Deployment changed".to_owned())
    }

    pub(super) async fn autoscale(&mut self) -> Result<String> {
        let mut services = self.usual(&json!({}));
        let mut busy =
            self.service("busy", &json!({"resources": {"requests": {"cpu": "100m", "memory": "16Mi"}}}));
        busy.as_object_mut().context("a service is an object")?.remove("replicas");
        busy["autoscaling"] = json!({"minReplicas": 1, "maxReplicas": 3, "targetCpuPercent": 50});
        services.push(busy);
        self.apply(&services).await?;
        self.fleets.await_ready(FLEET).await?;
        self.take_label::<HorizontalPodAutoscaler>("busy").await?;
        let url = format!("http://{}/burn?ms=50", self.address("busy").await?);
        let (load, started) = (Load::start(&url, 8.0)?, Instant::now());
        let scaled = async || {
            let deployment = self.fleets.deployment("busy").await.ok()??;
            (deployment.status?.ready_replicas? > 1).then_some(())
        };
        let scaled = self.fleets.until_within("more pods", std::time::Duration::from_secs(240), scaled).await;
        let took = started.elapsed();
        let counts = load.end().await?;
        scaled?;
        ensure!(counts.failed == 0, "{} requests failed: {:?}", counts.failed, counts.errors);
        self.settle().await?;
        Ok(format!("more pods {:.0} s after the load began", took.as_secs_f64()))
    }

    pub(super) async fn orphan(&self) -> Result<String> {
        // An annotation names the fleet, and a change of any raises a Deployment's generation: its pods tell.
        let (_, before) = self.standing().await?;
        let fleets = self.fleets.api::<ServiceFleet>();
        let orphan = json!({"spec": {"deletionPolicy": "Orphan"}});
        fleets.patch(FLEET, &PatchParams::default(), &Patch::Merge(&orphan)).await?;
        fleets.delete(FLEET, &DeleteParams::default()).await?;
        let gone = async || fleets.get_opt(FLEET).await.ok()?.is_none().then_some(());
        self.fleets.until("the fleet to be gone", gone).await?;
        let (_, left) = self.standing().await?;
        ensure!(left == before, "{before:?} became {left:?}");
        self.settle().await?;
        let (_, after) = self.standing().await?;
        ensure!(after == before, "{before:?} became {after:?}");
        Ok("neither the end of the fleet nor its return changed a pod".to_owned())
    }

    pub(super) async fn take_out(&self) -> Result<String> {
        self.apply(&[self.service("base", &json!({}))]).await?;
        let mut order = Vec::new();
        let gone = async || {
            for name in ["web", "store"] {
                let is_gone = self.fleets.deployment(name).await.ok()?.is_none();
                if is_gone && !order.contains(&name) {
                    order.push(name);
                }
            }
            (order.len() == 2 && self.pods_of("web").await.ok()?.is_empty()).then_some(())
        };
        self.fleets.until("web and store to be gone", gone).await?;
        ensure!(order == ["web", "store"], "{order:?}");
        self.fleets.await_ready(FLEET).await?;
        self.fleets.api::<ServiceFleet>().delete(FLEET, &DeleteParams::default()).await?;
        let gone = async || self.fleets.deployment("base").await.ok()?.is_none().then_some(());
        self.fleets.until("base to be gone with the fleet", gone).await?;
        Ok("web, then store; base went with the fleet".to_owned())
    }

    /// Something that keeps new pods of `web` from coming up: said in time, with all old pods where they were.
    async fn trouble(&self, web: &Value, reason: &str, happened: impl Fn(&Pod) -> bool) -> Result<String> {
        let before = self.pods_of("web").await?;
        self.apply(&self.usual(web)).await?;
        let seen = async || self.fleets.pods("web").await.ok()?.iter().any(&happened).then_some(());
        self.fleets.until("it to happen", seen).await?;
        let (told, took) = self.fleets.await_reason(FLEET, "web", reason).await?;
        ensure!(took < TOLD_WITHIN, "it was told {:.1} s later", took.as_secs_f64());
        let now = self.pods_of("web").await?;
        ensure!(before.iter().all(|pod| now.contains(pod)), "{before:?} became {now:?}");
        self.settle().await?;
        Ok(format!("told within {:.1} s: {}", took.as_secs_f64(), told.message))
    }

    /// Takes the label that an object is watched by, and sees it come back to the same object.
    async fn take_label<K>(&self, name: &str) -> Result<()>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let api = self.fleets.api::<K>();
        let none = json!({"metadata": {"labels": {FLEET_LABEL: null}}});
        let uid = api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(&none)).await?.uid();
        let again = async || {
            let found = api.get_metadata(name).await.ok()?;
            (found.uid() == uid && found.labels().contains_key(FLEET_LABEL)).then_some(())
        };
        self.fleets.until(&format!("the label of {} {name} to be there again", K::kind(&())), again).await
    }

    async fn configure(&self, setting: &str) -> Result<()> {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "web"}, "data": {"SETTING": setting},
        });
        self.fleets.apply_object::<ConfigMap>("web", &map).await
    }

    /// Pods that are not about to end.
    async fn pods_of(&self, service: &str) -> Result<Vec<Option<String>>> {
        let pods = self.fleets.pods(service).await?;
        let stays = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
        Ok(pods.iter().filter(stays).map(Pod::uid).collect())
    }

    async fn standing(&self) -> Result<Standing> {
        let all = self.fleets.api::<Deployment>().list(&ListParams::default()).await?;
        let generations = all.items.iter().map(|it| (it.name_any(), it.metadata.generation)).collect();
        let mut pods = Vec::new();
        for name in ["web", "store", "base"] {
            pods.extend(self.pods_of(name).await?);
        }
        pods.sort();
        Ok((generations, pods))
    }

    async fn leader(&self) -> Option<String> {
        let leases: Api<Lease> = Api::namespaced(self.client().clone(), OPERATOR_NAMESPACE);
        leases.get("longshore-operator").await.ok()?.spec?.holder_identity.filter(|holder| !holder.is_empty())
    }
}

fn waits_for(pod: &Pod, reasons: &[&str]) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let waiting = statuses
        .into_iter()
        .filter_map(|container| container.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
    waiting.into_iter().any(|reason| reasons.contains(&reason))
}

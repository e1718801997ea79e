//! What the charts render is what a real API server takes: every object strictly as it stands, and every pod where pods are
//! restricted.

use anyhow::{Context as _, Result};
use e2e::{
    apiserver::{self, ApiServer},
    charts::{self, Render, Variant},
};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::{
    Api, Client,
    api::{DynamicObject, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// The shared API server, with the definitions of our own kinds.
async fn cluster() -> Result<&'static ApiServer> {
    let cluster = ApiServer::shared().await?;
    for (_, yaml) in longshore_crds::definitions() {
        cluster.apply_yaml(&yaml, "default").await?;
    }
    Ok(cluster)
}

async fn renders() -> Result<Vec<Render>> {
    let mut renders = Vec::new();
    for variant in Variant::all()? {
        renders.push(variant.render().await?);
    }
    Ok(renders)
}

/// What a render is made of, but for what other operators define.
fn own_documents(render: &Render) -> Result<Vec<Value>> {
    Ok(render.documents()?.into_iter().filter(|document| !charts::is_foreign(document)).collect())
}

#[tokio::test]
async fn every_object_is_taken_as_it_stands() -> Result<()> {
    let cluster = cluster().await?;
    let client = cluster.client().await?;
    let namespace = cluster.namespace("objects").await?;
    let mut taken = 0;
    for render in renders().await? {
        for document in own_documents(&render)? {
            let object: DynamicObject = serde_json::from_value(document)?;
            apiserver::dry_run(&client, &object, &namespace).await.with_context(|| render.name.clone())?;
            taken += 1;
        }
    }
    assert!(taken >= 50, "{taken} objects in all renders");
    Ok(())
}

#[tokio::test]
async fn a_shard_that_is_drained_has_no_weight() -> Result<()> {
    let shop = Variant::all()?.into_iter().find(|variant| variant.name() == "shop-values");
    let settings =
        r#"servers=[{"name":"a"},{"name":"b"}],orders.shards=[{"name":"a","weight":0},{"name":"b"}]"#;
    let render = shop.context("the shop's chart")?.render_with(&["--set-json", settings]).await?;
    let documents = render.documents()?;
    let set = documents.iter().find(|document| document["kind"] == "OrderShardSet").context("a set")?;
    let weights: Vec<&Value> =
        set["spec"]["shards"].as_array().into_iter().flatten().map(|shard| &shard["weight"]).collect();
    assert_eq!(weights, [0, 100]);
    Ok(())
}

/// A namespace that takes no pod that could do more than it needs.
async fn restricted_namespace(cluster: &ApiServer, client: &Client) -> Result<String> {
    let name = cluster.namespace("restricted").await?;
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.patch(&name, &PatchParams::default(), &Patch::Merge(&labels)).await?;
    // There is no controller that would make it.
    add_service_account(client, &name, "default").await?;
    Ok(name)
}

async fn add_service_account(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    if accounts.get_opt(name).await?.is_none() {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let account = ServiceAccount { metadata, ..ServiceAccount::default() };
        accounts.create(&PostParams::default(), &account).await?;
    }
    Ok(())
}

/// The pod that a Deployment's or StatefulSet's controller would make.
fn pod_of(workload: &Value) -> Result<Option<Pod>> {
    if !["Deployment", "StatefulSet"].map(Value::from).contains(&workload["kind"]) {
        return Ok(None);
    }
    let mut pod = workload["spec"]["template"].clone();
    pod["metadata"]["name"] = workload["metadata"]["name"].clone();
    for claim in workload["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten() {
        let name = &claim["metadata"]["name"];
        let volume = json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
        pod["spec"]["volumes"].as_array_mut().context("a pod has volumes")?.push(volume);
    }
    Ok(Some(serde_json::from_value(pod)?))
}

async fn try_pod(client: &Client, namespace: &str, pod: &Pod) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    add_service_account(client, namespace, account.unwrap_or("default")).await?;
    pods.create(&PostParams { dry_run: true, ..PostParams::default() }, pod).await?;
    Ok(())
}

#[tokio::test]
async fn every_pod_is_admitted_where_pods_are_restricted() -> Result<()> {
    let cluster = cluster().await?;
    let client = cluster.client().await?;
    let namespace = restricted_namespace(cluster, &client).await?;
    let mut admitted = 0;
    for render in renders().await? {
        for workload in own_documents(&render)? {
            if let Some(pod) = pod_of(&workload)? {
                let told = || format!("{}: {}", render.name, workload["metadata"]["name"]);
                try_pod(&client, &namespace, &pod).await.with_context(told)?;
                admitted += 1;
            }
        }
    }
    assert!(admitted >= 12, "{admitted} pods in all renders");
    Ok(())
}

#[tokio::test]
async fn a_pod_that_may_do_more_is_not_admitted() -> Result<()> {
    let cluster = cluster().await?;
    let client = cluster.client().await?;
    let namespace = restricted_namespace(cluster, &client).await?;
    // As one is that says nothing: it may run as root.
    let container = json!({"name": "any", "image": "any"});
    let pod = json!({"metadata": {"name": "any"}, "spec": {"containers": [container]}});
    let refused = try_pod(&client, &namespace, &serde_json::from_value(pod)?).await;
    let told = refused.expect_err("an unrestricted pod was admitted").to_string();
    assert!(told.contains("violates PodSecurity"), "{told}");
    Ok(())
}

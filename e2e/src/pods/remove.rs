//! The end of a shop in somebody's cluster, in good order: the set while its shards still answer, then what Helm has installed,
//! then the namespaces with the volume claims.

use std::{fmt::Debug, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt as _, api::DeleteParams};
use serde::de::DeserializeOwned;

use super::{MANAGED_BY, NAMESPACE, OPERATOR_NAMESPACE, SCHEMA_CONFIG_MAP, SET_NAME, releases::Releases};
use crate::{
    apiserver::ApiServer, awaiting::await_condition, progress::Progress, shop::order_shard_set::OrderShardSet,
};

/// Longer than the operator waits for shards that do not answer.
const SET_DEADLINE: Duration = Duration::from_secs(360);
const NAMESPACE_DEADLINE: Duration = Duration::from_secs(180);

/// Removes the shop and the operator from the cluster of KUBECONFIG; false if they were not there. The custom resource
/// definitions stay, for others may use them.
///
/// # Errors
/// When a namespace of that name is not of our making, or something does not go.
pub async fn remove() -> Result<bool> {
    let cluster = ApiServer::of_kubeconfig().await?.context("KUBECONFIG names no cluster")?;
    let client = cluster.client().await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut ours = Vec::new();
    for name in [NAMESPACE, OPERATOR_NAMESPACE] {
        if let Some(namespace) = namespaces.get_opt(name).await? {
            let (label, value) = MANAGED_BY;
            let is_ours = namespace.labels().get(label).is_some_and(|found| found == value);
            ensure!(is_ours, "namespace {name} was not made by this harness (label {label}): left alone");
            ours.push(name);
        }
    }
    if ours.contains(&NAMESPACE) {
        let set = OrderShardSet::new(client.clone(), NAMESPACE, SET_NAME, SCHEMA_CONFIG_MAP);
        delete(set.api(), SET_NAME, SET_DEADLINE).await?;
    }
    let releases = Releases::new(cluster.kubeconfig()).await?;
    releases.uninstall_shop().await?;
    releases.uninstall_operator().await?;
    for name in &ours {
        delete(&Api::<Namespace>::all(client.clone()), name, NAMESPACE_DEADLINE).await?;
    }
    Ok(!ours.is_empty())
}

/// Deletes an object and waits until it is gone. It need not be there, nor need its kind.
async fn delete<K>(api: &Api<K>, name: &str, deadline: Duration) -> Result<()>
where
    K: Clone + Debug + DeserializeOwned,
{
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("failed to delete {name}")),
    }
    let progress = Progress::of_words(format!("waiting for {name} to be gone"));
    let gone = async || api.get_opt(name).await.is_ok_and(|found| found.is_none()).then_some(());
    await_condition(format!("{name} to be gone"), deadline, gone).await?;
    progress.done();
    Ok(())
}

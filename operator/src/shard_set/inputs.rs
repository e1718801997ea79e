//! What a set stands on in Kubernetes: the Secrets of its shards and the ConfigMap of its schema.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use longshore_sharding::ShardName;

use super::{
    fault::{Fault, OpenError},
    wanted::Wanted,
};
use crate::shard::Connection;

/// Compared with the last ones, they tell whether the set has to be opened again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inputs {
    pub(super) connections: BTreeMap<ShardName, Connection>,
    pub(super) migrations: BTreeMap<String, String>,
}

impl Inputs {
    /// I/O: reads all of them, and reports all that are missing at once.
    pub(super) async fn read(client: &Client, wanted: &Wanted) -> Result<Self, OpenError> {
        let mut faults = Vec::new();
        let mut connections = BTreeMap::new();
        for shard in &wanted.shards {
            match connection(client, &wanted.namespace, &shard.name, &shard.secret_name).await {
                Ok(connection) => drop(connections.insert(shard.name.clone(), connection)),
                Err(fault) => faults.push(fault),
            }
        }
        let migrations = migrations(client, wanted).await.unwrap_or_else(|fault| {
            faults.push(fault);
            BTreeMap::new()
        });
        if faults.is_empty() { Ok(Self { connections, migrations }) } else { Err(OpenError::Faults(faults)) }
    }
}

/// I/O: reads one shard's Secret.
pub(super) async fn connection(
    client: &Client,
    namespace: &str,
    shard: &ShardName,
    secret_name: &str,
) -> Result<Connection, Fault> {
    let fault = |reason, message| Fault { shard: Some(shard.clone()), reason, message };
    let secret = Api::<Secret>::namespaced(client.clone(), namespace).get_opt(secret_name).await;
    let secret = secret
        .map_err(|error| {
            fault("SecretUnreadable", format!("Secret {secret_name:?} cannot be read: {error}"))
        })?
        .ok_or_else(|| {
            fault("SecretNotFound", format!("Secret {secret_name:?} does not exist; create it"))
        })?;
    let revision = [secret.metadata.uid, secret.metadata.resource_version].map(Option::unwrap_or_default);
    Connection::from_secret(secret_name, &revision.join("/"), &secret.data.unwrap_or_default())
        .map_err(|error| fault("SecretInvalid", format!("Secret {secret_name:?}: {error}")))
}

async fn migrations(client: &Client, wanted: &Wanted) -> Result<BTreeMap<String, String>, Fault> {
    let name = &wanted.config_map_name;
    let fault = |reason, message| Fault { shard: None, reason, message };
    let found = Api::<ConfigMap>::namespaced(client.clone(), &wanted.namespace).get_opt(name).await;
    let found = found
        .map_err(|error| fault("ConfigMapUnreadable", format!("ConfigMap {name:?} cannot be read: {error}")))?
        .ok_or_else(|| fault("ConfigMapNotFound", format!("ConfigMap {name:?} does not exist; create it")))?;
    Ok(found.data.unwrap_or_default())
}

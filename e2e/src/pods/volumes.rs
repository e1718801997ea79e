//! Volumes for servers on a node of our own, which has nobody who makes any: folders of the node's.

use anyhow::Result;
use kube::{Client, api::DynamicObject};
use serde_json::json;

use crate::{
    apiserver::apply,
    node::{self, Node},
};

const STORAGE_CLASS: &str = "longshore";

/// A storage class, the default one, and a volume of each of these names.
pub(super) async fn create(client: &Client, node: &Node, names: &[String]) -> Result<()> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    apply(client, &serde_json::from_value::<DynamicObject>(class)?, "").await?;
    for name in names {
        let volume = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": "20Gi"},
                "storageClassName": STORAGE_CLASS,
                "local": {"path": node.make_volume(name)?},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node::NAME]},
                ]}]}},
            },
        });
        apply(client, &serde_json::from_value::<DynamicObject>(volume)?, "").await?;
    }
    Ok(())
}

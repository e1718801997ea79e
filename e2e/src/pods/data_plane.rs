//! What serves orders: told apart by what changes whenever something is replaced, restarted or edited.

use std::collections::BTreeSet;

use anyhow::Result;
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::Pod,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};

use super::NAMESPACE;

/// The shop's pods and what they are made from, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataPlane(BTreeSet<String>);

impl DataPlane {
    /// As it is now.
    pub(super) async fn read(client: &Client) -> Result<Self> {
        let all = ListParams::default();
        let mut lines = BTreeSet::new();
        for pod in Api::<Pod>::namespaced(client.clone(), NAMESPACE).list(&all).await? {
            let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            let restarts: i32 = statuses.map(|status| status.restart_count).sum();
            let uid = pod.uid().unwrap_or_default();
            lines.insert(format!("pod {} {uid}, {restarts} restarts", pod.name_any()));
        }
        for set in Api::<StatefulSet>::namespaced(client.clone(), NAMESPACE).list(&all).await? {
            lines.insert(generation("statefulset", &set));
        }
        for deployment in Api::<Deployment>::namespaced(client.clone(), NAMESPACE).list(&all).await? {
            lines.insert(generation("deployment", &deployment));
        }
        Ok(Self(lines))
    }

    /// How many pods, StatefulSets and Deployments there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What is there now and was not `before`.
    pub fn new_since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

fn generation(kind: &str, object: &impl kube::Resource) -> String {
    format!("{kind} {}, generation {}", object.name_any(), object.meta().generation.unwrap_or_default())
}

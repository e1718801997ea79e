//! The cluster that a shop in pods stands on.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;

use super::NAMESPACE;
use crate::{
    apiserver::ApiServer,
    images::Image,
    node::{self, Node},
    progress::Progress,
};

/// A node of our own, or somebody's cluster.
#[derive(Debug)]
pub enum Ground {
    /// Of this machine.
    Node(Node),
    /// Of KUBECONFIG.
    Cluster(ApiServer),
}

impl Ground {
    /// The cluster of KUBECONFIG, or else the node, which is started if it is not up.
    pub async fn find() -> Result<Self> {
        match ApiServer::of_kubeconfig().await? {
            Some(cluster) => Ok(Self::Cluster(cluster)),
            None => Ok(Self::Node(Node::up().await?)),
        }
    }

    /// Ground without a shop, that has these images or is told how to get them.
    pub(super) async fn prepare(images: &[&Image]) -> Result<Self> {
        let mut ground = Self::find().await?;
        let is_free = !ground.has_shop().await?;
        match &ground {
            Self::Cluster(_) => {
                ensure!(is_free, "namespace {NAMESPACE} is there already: `cargo xtask down` removes a shop");
                eprintln!("the cluster's nodes need these images, see `cargo xtask images`:");
                for image in images {
                    eprintln!("  {}", image.reference());
                }
            }
            Self::Node(_) => {
                if !is_free {
                    // A new node takes less time than the removal of a shop in good order.
                    node::down().await?;
                    ground = Self::find().await?;
                }
                ground.import(images).await?;
            }
        }
        Ok(ground)
    }

    async fn import(&self, images: &[&Image]) -> Result<()> {
        let Self::Node(node) = self else { return Ok(()) };
        let progress = Progress::of_words("importing the images");
        for image in images {
            node.import(image).await?;
        }
        progress.done();
        Ok(())
    }

    /// Whether there is a shop, in whatever state.
    pub async fn has_shop(&self) -> Result<bool> {
        let namespaces: Api<Namespace> = Api::all(self.cluster()?.client().await?);
        Ok(namespaces.get_opt(NAMESPACE).await?.is_some())
    }

    /// Its API server.
    pub fn cluster(&self) -> Result<ApiServer> {
        match self {
            Self::Node(node) => node.apiserver(),
            Self::Cluster(cluster) => Ok(ApiServer::at(cluster.kubeconfig().to_owned(), None)),
        }
    }

    /// A kubectl for it.
    pub fn kubectl(&self) -> Result<PathBuf> {
        match self {
            Self::Node(node) => Ok(node.binaries().context("the node has programs")?.join("kubectl")),
            Self::Cluster(_) => Ok(PathBuf::from("kubectl")),
        }
    }
}

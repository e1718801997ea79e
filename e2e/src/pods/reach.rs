//! How the harness gets at Services: on our node their addresses are routed; to a cluster elsewhere kubectl forwards a port of
//! 127.0.0.1 for each.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};
use tokio::net::TcpStream;

use super::{Ground, NAMESPACE};
use crate::{
    awaiting::{What, await_condition},
    free_port::free_port,
    parts,
    process::Process,
};

const FORWARD_DEADLINE: Duration = Duration::from_secs(20);

pub(super) enum Reach {
    Routed,
    Forwarded { kubectl: PathBuf, kubeconfig: PathBuf, forwards: Vec<Process> },
}

impl Reach {
    pub(super) async fn new(ground: &Ground) -> Result<Self> {
        Ok(match ground {
            Ground::Node(_) => Self::Routed,
            Ground::Cluster(cluster) => Self::Forwarded {
                kubectl: parts::kubenode().await?.join("kubectl"),
                kubeconfig: cluster.kubeconfig().to_owned(),
                forwards: Vec::new(),
            },
        })
    }

    /// HOST:PORT of a port of a Service of the shop.
    pub(super) async fn address(&mut self, client: &Client, service: &str, port: u16) -> Result<String> {
        match self {
            Self::Routed => {
                let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
                let found = services
                    .get(service)
                    .await
                    .with_context(|| format!("failed to find Service {service}"))?;
                let address = found.spec.and_then(|spec| spec.cluster_ip);
                Ok(format!(
                    "{}:{port}",
                    address.with_context(|| format!("Service {service} has no address"))?
                ))
            }
            Self::Forwarded { kubectl, kubeconfig, forwards } => {
                let own = free_port()?;
                let mut command = Command::new(kubectl);
                command.arg("--kubeconfig").arg(kubeconfig).args(["--namespace", NAMESPACE, "port-forward"]);
                command.args([format!("service/{service}"), format!("{own}:{port}")]);
                let forward = Process::spawn(&format!("port-forward-{service}"), &mut command)?;
                let what = What::new(format!("kubectl to forward Service {service}")).log(forward.log());
                let open = async || TcpStream::connect(("127.0.0.1", own)).await.ok().map(drop);
                await_condition(what, FORWARD_DEADLINE, open).await?;
                forwards.push(forward);
                Ok(format!("127.0.0.1:{own}"))
            }
        }
    }

    /// Fails if a way there has ended.
    pub(super) fn expect_alive(&self) -> Result<()> {
        match self {
            Self::Routed => Ok(()),
            Self::Forwarded { forwards, .. } => forwards.iter().try_for_each(Process::expect_running),
        }
    }
}

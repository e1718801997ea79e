//! How the harness gets at Services: on our node their addresses are routed; to a cluster elsewhere a port of 127.0.0.1 is
//! forwarded for each, every connection by itself: one that is cut off, or a pod that dies, ends no other.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{Ground, NAMESPACE};

pub(super) enum Reach {
    Routed,
    /// Dropped, nothing is forwarded any more.
    Forwarded(JoinSet<()>),
}

impl Reach {
    pub(super) fn new(ground: &Ground) -> Self {
        match ground {
            Ground::Node(_) => Self::Routed,
            Ground::Cluster(_) => Self::Forwarded(JoinSet::new()),
        }
    }

    /// HOST:PORT of a port of a Service of the shop, whose pods listen at the same port.
    pub(super) async fn address(&mut self, client: &Client, service: &str, port: u16) -> Result<String> {
        let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
        let found =
            services.get(service).await.with_context(|| format!("failed to find Service {service}"))?;
        let spec = found.spec.with_context(|| format!("Service {service} has no spec"))?;
        match self {
            Self::Routed => {
                let address = spec.cluster_ip.with_context(|| format!("Service {service} has no address"))?;
                Ok(format!("{address}:{port}"))
            }
            Self::Forwarded(forwards) => {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let address = listener.local_addr()?.to_string();
                let pods = Pods::new(client, spec.selector.unwrap_or_default(), port);
                forwards.spawn(forward(listener, pods));
                Ok(address)
            }
        }
    }
}

/// The pods of a Service.
#[derive(Clone)]
struct Pods {
    api: Api<Pod>,
    selector: String,
    port: u16,
}

impl Pods {
    fn new(client: &Client, labels: BTreeMap<String, String>, port: u16) -> Self {
        let labels: Vec<_> = labels.into_iter().map(|(label, value)| format!("{label}={value}")).collect();
        Self { api: Api::namespaced(client.clone(), NAMESPACE), selector: labels.join(","), port }
    }

    /// Carries one connection, to the `turn`th of the ready pods in turn.
    async fn carry(&self, mut connection: TcpStream, turn: usize) -> Result<()> {
        let mut pods = self.api.list(&ListParams::default().labels(&self.selector)).await?.items;
        pods.retain(is_ready);
        let pod = pods.get(turn.checked_rem(pods.len()).unwrap_or(0)).context("no pod is ready")?;
        let mut forwarder = self.api.portforward(&pod.name_any(), &[self.port]).await?;
        let mut stream = forwarder.take_stream(self.port).context("a forwarded port has a stream")?;
        copy_bidirectional(&mut connection, &mut stream).await?;
        Ok(())
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    pod.metadata.deletion_timestamp.is_none() && ready.any(|condition| condition.status == "True")
}

/// Accepts for ever. A connection that cannot be carried is closed: whoever made it tries again.
async fn forward(listener: TcpListener, pods: Pods) {
    let mut carried = JoinSet::new();
    let mut turn = 0_usize;
    while let Ok((connection, _)) = listener.accept().await {
        turn = turn.wrapping_add(1);
        let pods = pods.clone();
        carried.spawn(async move { drop(pods.carry(connection, turn).await) });
        while carried.try_join_next().is_some() {}
    }
}

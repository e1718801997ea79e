//! A Kubernetes node of our own on this machine, for whoever has no cluster: the programs of Kubernetes itself, with Debian's
//! containerd and runc. It stays when the harness ends, until [`down`].
//!
//! Everything of it is in one folder or bears its name: `down` needs to remember nothing. Services and pods have addresses
//! that lead nowhere outside the machine.

pub(crate) mod cgroups;
mod components;
mod containers;
mod dns;
mod folder;
mod kernel;
mod metrics;
mod network;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::{Api, Client};
use tokio::time::timeout;

pub use self::folder::describe;
use self::{
    components::{Cluster, KUBELET_FOLDER},
    folder::NodeFolder,
};
use crate::{
    apiserver::{
        self, ApiServer,
        certificates::{ADMINISTRATORS, Certificates},
    },
    awaiting::{What, await_condition},
    images::{self, Image},
    parts::{
        self,
        debian::{self, Needed},
    },
    progress::Progress,
};

/// The node's name in the cluster.
pub const NAME: &str = "longshore";
const START_DEADLINE: Duration = Duration::from_secs(90);
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Debian's programs that a node needs.
const NEEDED: &[Needed] = &[
    Needed { program: "containerd", package: "containerd" },
    Needed { program: "runc", package: "runc" },
    Needed { program: "/usr/lib/cni/bridge", package: "containernetworking-plugins" },
    Needed { program: "conntrack", package: "conntrack" },
    Needed { program: "ip", package: "iproute2" },
    Needed { program: "nft", package: "nftables" },
];

/// A node that is up.
#[derive(Debug)]
pub struct Node {
    folder: NodeFolder,
}

impl Node {
    /// The node that is up, or a new one, ready for pods.
    pub async fn up() -> Result<Self> {
        ensure!(
            rustix::process::getuid().is_root(),
            "a Kubernetes node of our own needs root: run this as root, or set KUBECONFIG to a cluster that there is"
        );
        debian::install(NEEDED).await?;
        let binaries = parts::kubenode().await?;
        let (pause, dns) = (images::pause().await?, images::coredns().await?);
        let _lock = folder::lock().await?;
        if let Some(node) = Self::found().await? {
            return Ok(node);
        }
        down_locked().await?;
        let progress = Progress::of_time("starting a Kubernetes node", Duration::from_secs(15));
        let node = Self { folder: NodeFolder::create()? };
        node.start(&binaries, &pause, &dns, &progress).await?;
        progress.done();
        Ok(node)
    }

    /// The node, if it is up and answers.
    pub async fn found() -> Result<Option<Self>> {
        let Some(folder) = NodeFolder::found()? else { return Ok(None) };
        if !folder.all_run()? {
            return Ok(None);
        }
        let node = Self { folder };
        let answers = async { node.client().await?.apiserver_version().await.context("no answer") };
        Ok(matches!(timeout(ANSWER_DEADLINE, answers).await, Ok(Ok(_))).then_some(node))
    }

    /// The kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path("pki/admin.kubeconfig")
    }

    /// The folder of kubectl and of the node's programs.
    pub fn binaries(&self) -> Result<PathBuf> {
        fs::read_link(self.folder.path("bin")).context("failed to find the node's programs")
    }

    /// The API server.
    pub fn apiserver(&self) -> Result<ApiServer> {
        Ok(ApiServer::at(self.kubeconfig(), Some(self.binaries()?)))
    }

    /// Gives pods an image to start from; one that is there already is left as it is.
    pub async fn import(&self, image: &Image) -> Result<()> {
        containers::import(&self.folder, image).await
    }

    /// Gives autoscalers something to ask; returns when it answers.
    pub async fn add_metrics(&self) -> Result<()> {
        let image = images::metrics_server().await?;
        self.import(&image).await?;
        let apiserver = self.apiserver()?;
        apiserver.apply_yaml(&metrics::manifests(&image.reference()), "kube-system").await?;
        let client = self.client().await?;
        let answers = async || metrics::answers(&client).await.then_some(());
        await_condition("metrics-server to answer", START_DEADLINE, answers).await
    }

    /// A folder on this machine that pods may be given, with the rights of any user.
    pub fn make_volume(&self, name: &str) -> Result<PathBuf> {
        self.folder.make_volume(name)
    }

    /// The API server's record of what service accounts asked of it, a JSON object a line.
    pub fn audit_log(&self) -> PathBuf {
        self.folder.path("logs/audit.jsonl")
    }

    async fn client(&self) -> Result<Client> {
        self.apiserver()?.client().await
    }

    async fn start(&self, binaries: &Path, pause: &Image, dns: &Image, progress: &Progress) -> Result<()> {
        std::os::unix::fs::symlink(binaries, self.folder.path("bin"))?;
        kernel::prepare(&self.folder)?;
        network::create(&self.folder).await?;
        cgroups::create()?;
        let certificates = Certificates::create(&self.folder.path("pki"))?;
        let cluster = Cluster::new(&self.folder, binaries, &certificates)?;
        certificates.write_kubeconfig("admin", ("admin", Some(ADMINISTRATORS)), &cluster.url())?;
        cluster.start_apiserver()?;
        cluster.start_containers(&pause.reference())?;
        self.await_answer("the API server to be ready", progress, async || {
            apiserver::is_ready(&self.client().await.ok()?).await.then_some(())
        })
        .await?;
        cluster.start_controllers()?;
        self.await_answer("containerd to answer", progress, async || containers::answers(&self.folder).await)
            .await?;
        containers::import(&self.folder, pause).await?;
        containers::import(&self.folder, dns).await?;
        self.folder.share(KUBELET_FOLDER).await?;
        cluster.start_node()?;
        let apiserver = self.apiserver()?;
        apiserver.apply_yaml(&dns::manifests(&dns.reference()), "kube-system").await?;
        let nodes: Api<NodeObject> = Api::all(self.client().await?);
        self.await_answer("the node to be ready", progress, async || is_ready(&nodes).await.then_some(()))
            .await?;
        self.await_answer("DNS to answer", progress, async || dns::is_ready(&apiserver).await.then_some(()))
            .await
    }

    async fn await_answer(
        &self,
        what: &str,
        progress: &Progress,
        answer: impl AsyncFn() -> Option<()>,
    ) -> Result<()> {
        let mut described = What::new(what);
        for log in self.folder.logs()? {
            described = described.log(&log);
        }
        let asked = async || {
            progress.tick();
            if let Err(ended) = self.folder.expect_all_run() {
                return Some(Err(ended));
            }
            answer().await.map(Ok)
        };
        await_condition(described, START_DEADLINE, asked).await?
    }
}

async fn is_ready(nodes: &Api<NodeObject>) -> bool {
    let Ok(Some(node)) = nodes.get_opt(NAME).await else { return false };
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Ends the node and removes all that it made on this machine; says whether there was any. Doing it again changes nothing.
pub async fn down() -> Result<bool> {
    if !folder::exists()? && !network::exists() {
        return Ok(false);
    }
    let _lock = folder::lock().await?;
    down_locked().await
}

/// The order: who would start things again ends first, then the pods, then who knows of them.
async fn down_locked() -> Result<bool> {
    let Some(folder) = NodeFolder::found()? else {
        network::remove().await?;
        return Ok(false);
    };
    let (progress, started) = (Progress::of_words("ending the Kubernetes node"), Instant::now());
    folder.end(&["kubelet", "kube-proxy", "kube-controller-manager", "kube-scheduler"]).await?;
    containers::end_all(&folder).await?;
    folder.end_all().await?;
    folder.unmount_all().await?;
    network::remove().await?;
    cgroups::remove().await?;
    kernel::restore(&folder)?;
    if !folder.mounts()?.is_empty() {
        bail!("mounts are left below {} after {:?}", folder.root().display(), started.elapsed());
    }
    folder.remove()?;
    progress.done();
    Ok(true)
}

//! A whole shop in a cluster, as a user would have it: both charts, installed by Helm with their local values. The harness adds
//! only what a user brings along as well: images, Secrets, and on a node of our own the volumes.

mod data_plane;
pub mod fleet;
mod ground;
mod kafka;
mod reach;
mod releases;
mod remove;
pub mod rights;
mod secrets;
mod volumes;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use checker::Store;
use k8s_openapi::api::{
    apps::v1::Deployment,
    coordination::v1::Lease,
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams},
};
use tokio::process::Command;

pub use self::{data_plane::DataPlane, ground::Ground, remove::remove};
use self::{reach::Reach, releases::Releases, secrets::Secrets};
use crate::{
    awaiting::await_condition,
    demo::{Harm, Stage},
    images::{self, Image},
    parts::output,
    progress::Progress,
    shop::{
        binaries::Binaries,
        order_shard_set::{OrderShardSet, SetStatus},
    },
    trial::Venue,
};

/// Where the shop is.
pub const NAMESPACE: &str = "shop";
/// Where the operator is.
pub const OPERATOR_NAMESPACE: &str = "longshore-system";
const SET_NAME: &str = "orders";
const SCHEMA_CONFIG_MAP: &str = "order-schema";
const ORDER_PORT: u16 = 3003;
const READY_DEADLINE: Duration = Duration::from_secs(300);
const OPERATOR_DEADLINE: Duration = Duration::from_secs(60);
/// How long orders flow without an operator.
const UNATTENDED: Duration = Duration::from_secs(10);
/// Marks a namespace that this harness made, and may remove.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "longshore-xtask");

/// What a shop in pods starts with.
#[derive(Clone, Debug)]
pub struct PodShopOptions {
    /// `spec.buckets`.
    pub buckets: u32,
    /// The shards in `spec.shards` at the start.
    pub shards: Vec<String>,
    /// Servers that run, with a Secret each, but are not in `spec.shards` yet.
    pub spare: Vec<String>,
    /// Kafka brokers, and the chart's topics.
    pub kafka: bool,
}

impl PodShopOptions {
    fn servers(&self) -> Vec<String> {
        self.shards.iter().chain(&self.spare).cloned().collect()
    }
}

/// The images of one shop.
struct Images {
    operator: Image,
    order: Image,
    postgres: Image,
    pgbouncer: Image,
    kafka: Option<Image>,
}

impl Images {
    async fn build(kafka: bool) -> Result<Self> {
        let binaries = Binaries::build().await?;
        Ok(Self {
            operator: images::of_binary("operator", "operator/Dockerfile", binaries.operator()).await?,
            order: images::of_binary("order", "services/order/Dockerfile", binaries.order()).await?,
            postgres: images::postgres().await?,
            pgbouncer: images::pgbouncer().await?,
            kafka: if kafka { Some(images::kafka().await?) } else { None },
        })
    }

    fn all(&self) -> Vec<&Image> {
        [&self.operator, &self.order, &self.postgres, &self.pgbouncer]
            .into_iter()
            .chain(&self.kafka)
            .collect()
    }
}

/// Builds the images of a shop that are not built yet.
pub async fn images() -> Result<Vec<Image>> {
    let Images { operator, order, postgres, pgbouncer, kafka } = Images::build(true).await?;
    Ok([operator, order, postgres, pgbouncer].into_iter().chain(kafka).collect())
}

/// A shop that runs in pods. It stays when this is dropped.
pub struct PodShop {
    ground: Ground,
    _reach: Reach,
    releases: Releases,
    images: Images,
    upgrades: u32,
    client: Client,
    set: OrderShardSet,
    url: String,
    stores: Vec<Store>,
}

impl PodShop {
    /// A new shop: in the cluster of KUBECONFIG, where none may be, or on our node, where one that was there is removed with
    /// its data.
    pub async fn start(options: &PodShopOptions) -> Result<Self> {
        let images = Images::build(options.kafka).await?;
        let ground = Ground::prepare(&images.all()).await?;
        let client = ground.cluster()?.client().await?;
        for namespace in [NAMESPACE, OPERATOR_NAMESPACE] {
            create_namespace(&client, namespace).await?;
        }
        let servers = options.servers();
        if let Ground::Node(node) = &ground {
            let mut names: Vec<String> = servers.iter().map(|server| format!("shop-{server}")).collect();
            names.extend(kafka::volumes(options.kafka));
            volumes::create(&client, node, &names).await?;
        }
        let secrets = Secrets::new()?;
        secrets.apply(&client, NAMESPACE, &servers).await?;
        if options.kafka {
            secrets.apply_kafka(&client, NAMESPACE).await?;
        }
        let releases = Releases::new(ground.cluster()?.kubeconfig()).await?;
        releases.install_operator(&images.operator, "info").await?;
        releases.install_shop(&images, options).await?;
        let set = OrderShardSet::new(client.clone(), NAMESPACE, SET_NAME, SCHEMA_CONFIG_MAP);
        await_ready(&client, &set).await?;
        if options.kafka {
            kafka::await_topics(&client).await?;
        }
        let mut reach = Reach::new(&ground);
        let url = format!("http://{}", reach.address(&client, "order", ORDER_PORT).await?);
        let mut stores = Vec::new();
        for server in &servers {
            let address = reach.address(&client, &format!("shard-{server}"), secrets::PORT).await?;
            stores.push(Store::new(server, secrets.admin_url(&address)));
        }
        Ok(Self { ground, _reach: reach, releases, images, upgrades: 0, client, set, url, stores })
    }

    /// Where it runs.
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// A client of the API server.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What serves orders now.
    pub async fn data_plane(&self) -> Result<DataPlane> {
        DataPlane::read(&self.client).await
    }

    /// Upgrades the operator: new pods, from another template.
    async fn upgrade_operator(&mut self) -> Result<()> {
        self.upgrades += 1;
        let log_filter = format!("info,upgrade_{}=info", self.upgrades);
        self.releases.install_operator(&self.images.operator, &log_filter).await
    }

    /// Uninstalls the operator and, when orders have flowed without one for a while, installs it again.
    async fn reinstall_operator(&mut self) -> Result<()> {
        self.releases.uninstall_operator().await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), OPERATOR_NAMESPACE);
        let gone = async || pods.list(&ListParams::default()).await.ok()?.items.is_empty().then_some(());
        await_condition("the operator's pods to be gone", OPERATOR_DEADLINE, gone).await?;
        let (set, since) =
            (self.set.status().await.context("the set went with the operator")?, Instant::now());
        eprintln!("no operator: {}", set.describe());
        let passed = async || (since.elapsed() >= UNATTENDED).then_some(());
        await_condition("orders to flow without an operator", OPERATOR_DEADLINE, passed).await?;
        self.releases.install_operator(&self.images.operator, "info").await
    }

    /// The pod of the first shard's server.
    fn first_server(&self) -> Result<String> {
        let first = self.stores.first().context("a shop has a shard")?;
        Ok(format!("shard-{}-0", first.name))
    }

    /// Kills the server in this pod, which stays; its container is started again.
    async fn crash(&self, pod: &str) -> Result<()> {
        let mut kubectl = Command::new(self.ground.kubectl()?);
        kubectl.arg("--kubeconfig").arg(self.ground.cluster()?.kubeconfig());
        kubectl.args(["--namespace", NAMESPACE, "exec", pod, "--container", "postgres", "--"]);
        kubectl.args(["/bin/sh", "-c", "kill -KILL $(head -n 1 /var/lib/postgresql/data/postmaster.pid)"]);
        output(&mut kubectl).await.with_context(|| format!("failed to kill the server in pod {pod}"))?;
        Ok(())
    }

    /// The pod of the operator that leads.
    async fn leader(&self) -> Result<String> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), OPERATOR_NAMESPACE);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), OPERATOR_NAMESPACE);
        let holder = async || {
            let lease = leases.get("longshore-operator").await.ok()?;
            let holder = lease.spec?.holder_identity.filter(|holder| !holder.is_empty())?;
            let pods = pods.list(&ListParams::default()).await.ok()?;
            pods.items.into_iter().filter_map(|pod| pod.metadata.name).find(|name| holder.starts_with(name))
        };
        await_condition("an operator that leads", OPERATOR_DEADLINE, holder).await
    }
}

impl Venue for PodShop {
    fn name(&self) -> &str {
        NAMESPACE
    }

    fn url(&self) -> String {
        self.url.clone()
    }

    fn stores(&self) -> Vec<Store> {
        self.stores.clone()
    }
}

impl Stage for PodShop {
    fn set(&self) -> &OrderShardSet {
        &self.set
    }

    fn operator_log(&self) -> Option<PathBuf> {
        None
    }

    /// Kubernetes starts it again.
    fn expect_operator(&self) -> Result<()> {
        Ok(())
    }

    async fn harm(&mut self, harm: Harm) -> Result<()> {
        match harm {
            Harm::KillOperator => {
                delete_at_once(&self.client, OPERATOR_NAMESPACE, &self.leader().await?).await
            }
            Harm::KillServer => delete_at_once(&self.client, NAMESPACE, &self.first_server()?).await,
            Harm::CrashServer => self.crash(&self.first_server()?).await,
            Harm::RollService => {
                let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), NAMESPACE);
                deployments.restart("order").await.context("failed to roll the order service")?;
                Ok(())
            }
            Harm::UpgradeOperator => self.upgrade_operator().await,
            Harm::ReinstallOperator => self.reinstall_operator().await,
        }
    }
}

/// The end of a pod by force: Kubernetes forgets it at once and starts another, whatever of it still runs for a moment.
pub async fn delete_at_once(client: &Client, namespace: &str, pod: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let deleted = pods.delete(pod, &DeleteParams::default().grace_period(0)).await;
    deleted.with_context(|| format!("failed to delete pod {pod}"))?;
    Ok(())
}

/// One that admits no pod with more rights than it needs.
async fn create_namespace(client: &Client, name: &str) -> Result<()> {
    let labels = [("pod-security.kubernetes.io/enforce", "restricted"), MANAGED_BY];
    let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned())).into();
    let metadata = ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() };
    let namespace = Namespace { metadata, ..Namespace::default() };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let params = PatchParams::apply("longshore-e2e").force();
    let applied = namespaces.patch(name, &params, &Patch::Apply(&namespace)).await;
    applied.with_context(|| format!("failed to create namespace {name}"))?;
    Ok(())
}

/// Waits until the set is converged and every Deployment has its pods.
async fn await_ready(client: &Client, set: &OrderShardSet) -> Result<()> {
    let (progress, started) = (Progress::of_words("waiting for the shop to be ready"), Instant::now());
    let ready = async || {
        let waits = match (set.status().await, unready(client).await) {
            (Ok(status), Ok(unready)) if status.is_converged() && unready.is_empty() => return Some(()),
            (Ok(status), Ok(unready)) => words(&status, &unready),
            (Err(error), _) | (_, Err(error)) => format!("{error:#}"),
        };
        progress.say(&format!("{} s: {waits}", started.elapsed().as_secs()));
        None
    };
    if let Err(late) = await_condition("the shop to be ready", READY_DEADLINE, ready).await {
        let status = set.status().await.map_or_else(|error| format!("{error:#}"), |status| status.describe());
        bail!("{late:#}\npods that are not ready: {}\nthe set: {status}", unready(client).await?.join("; "));
    }
    progress.done();
    Ok(())
}

fn words(status: &SetStatus, unready: &[String]) -> String {
    let ready = status.condition("Ready").map_or("no status yet", |ready| ready.reason);
    format!("the set says {ready}; not ready: {}", unready.join("; "))
}

/// Each pod of the shop and the operator that is not ready, with the reason; and Deployments that lack pods.
async fn unready(client: &Client) -> Result<Vec<String>> {
    let mut unready = Vec::new();
    for namespace in [OPERATOR_NAMESPACE, NAMESPACE] {
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        for deployment in deployments.list(&ListParams::default()).await? {
            let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
            let ready = deployment.status.and_then(|status| status.ready_replicas).unwrap_or(0);
            if ready < wanted {
                let name = deployment.metadata.name.unwrap_or_default();
                unready.push(format!("{name} has {ready} of {wanted}"));
            }
        }
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        for pod in pods.list(&ListParams::default()).await? {
            unready.extend(
                reason(&pod).map(|reason| format!("pod {}: {reason}", pod.metadata.name.unwrap_or_default())),
            );
        }
    }
    Ok(unready)
}

/// Why a pod is not ready; none if it is.
fn reason(pod: &Pod) -> Option<String> {
    let Some(status) = &pod.status else { return Some("not seen yet".to_owned()) };
    let statuses = || status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    if statuses().count() > 0 && status.container_statuses.iter().flatten().all(|status| status.ready) {
        return None;
    }
    let waiting = statuses().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let (reason, message) = (waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or_default());
        Some(format!("{} {reason} {message}", container.name))
    });
    let condition = || {
        let conditions = status.conditions.iter().flatten();
        conditions
            .filter(|condition| condition.status == "False")
            .find_map(|condition| condition.message.clone())
    };
    Some(waiting.or_else(condition).unwrap_or_else(|| status.phase.clone().unwrap_or_default()))
}

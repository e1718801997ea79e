//! A whole shop on this machine: shards, an OrderShardSet, the operator and the order service.
//!
//! All of it is real: the operator and the service are the built binaries, started with the arguments a
//! deployment would give them, and they log in with the roles of a deployment. Only the harness itself is
//! an administrator.

pub mod binaries;
pub mod order_shard_set;
pub mod rotation;
mod shard;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use checker::Store;
use futures::future::{try_join, try_join_all};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use serde_json::{Value, json};

use self::{binaries::Binaries, order_shard_set::OrderShardSet, rotation::Trust, shard::Shard};
use crate::{
    apiserver::ApiServer,
    awaiting::{What, await_condition},
    free_port::free_port,
    parts,
    postgres::{Database, Pooler, Role, Server, Version},
    process::Process,
    proxy::{ApiProxy, Line, Recorder},
    settings,
    trial::Venue,
};

const CONVERGED_DEADLINE: Duration = Duration::from_secs(120);
const HEALTHY_DEADLINE: Duration = Duration::from_secs(60);
/// As long as the service may take for the requests in flight, and some.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);
const SCHEMA_CONFIG_MAP: &str = "order-schema";
const SET_NAME: &str = "orders";
const DBNAME: &str = "orders";

/// What a shop starts with.
#[derive(Clone, Debug)]
pub struct ShopOptions {
    /// The PostgreSQL version of all shards.
    pub version: Version,
    /// `spec.buckets`.
    pub buckets: u32,
    /// The shards in `spec.shards` at the start.
    pub shards: Vec<String>,
    /// Servers that run, with a Secret each, but are not in `spec.shards` yet.
    pub spare: Vec<String>,
    /// How long a dead operator's Lease holds; the operator's own default if none.
    pub lease_seconds: Option<u32>,
    /// `spec.rebalance`.
    pub rebalance: Value,
    /// Who is told of all that the operator does, by proxies before every server and the API server.
    pub recorder: Option<Arc<Recorder>>,
    /// Servers that run already, one for each shard and spare one, maybe the same one; each gets a new database. New ones
    /// if there are none.
    pub servers: Vec<Arc<Server>>,
    /// Everybody but the harness encrypts and verifies; on servers of the shop's own, and without a recorder.
    pub tls: bool,
    /// A PgBouncer before every shard, where the service sends its transactions; without TLS and without a recorder.
    pub pooler: bool,
}

impl Default for ShopOptions {
    fn default() -> Self {
        Self {
            version: Version::V17,
            buckets: 4096,
            shards: shard_names(1),
            spare: Vec::new(),
            lease_seconds: None,
            rebalance: json!({}),
            recorder: None,
            servers: Vec::new(),
            tls: false,
            pooler: false,
        }
    }
}

/// The names of the first `count` shards: a, b, c, …, z, aa, ab, …
pub fn shard_names(count: usize) -> Vec<String> {
    let letters = || ('a'..='z').map(String::from);
    let pairs = letters().flat_map(|first| letters().map(move |second| format!("{first}{second}")));
    letters().chain(pairs).take(count).collect()
}

/// A running shop. Dropped, all of it is killed.
pub struct Shop {
    operator: Option<Process>,
    api_proxy: Option<ApiProxy>,
    service: Option<Process>,
    service_port: u16,
    set: OrderShardSet,
    shards: BTreeMap<String, Shard>,
    trust: Option<Trust>,
    binaries: Binaries,
    client: Client,
    cluster: &'static ApiServer,
    namespace: String,
    options: ShopOptions,
}

impl Shop {
    /// Builds and starts everything; returns when the set is converged and the order service healthy.
    pub async fn start(options: ShopOptions) -> Result<Self> {
        let mut shop = Self::without_set(options).await?;
        shop.start_operator()?;
        let shards = shop.options.shards.clone();
        shop.set.apply(shop.options.buckets, &shards, &shop.options.rebalance).await?;
        shop.await_converged(CONVERGED_DEADLINE).await?;
        shop.start_service().await?;
        Ok(shop)
    }

    /// Servers, Secrets, the schema's ConfigMap and the CRDs; no operator, no set, no service yet.
    pub async fn without_set(options: ShopOptions) -> Result<Self> {
        let binaries = Binaries::build().await?;
        parts::postgres(options.version).await?; // once, before several servers ask for it
        ensure!(!options.tls || options.recorder.is_none(), "a recorder reads what passes");
        ensure!(
            !options.pooler || !options.tls && options.recorder.is_none(),
            "poolers have no certificates, and pass no recorder"
        );
        let trust = if options.tls { Some(Trust::new()?) } else { None };
        let (cluster, mut shards) =
            try_join(ApiServer::shared(), start_shards(&options, trust.as_ref())).await?;
        if options.pooler {
            parts::pgbouncer().await?;
            try_join_all(shards.iter_mut().map(Shard::start_pooler)).await?;
        }
        let namespace = cluster.namespace("shop").await?;
        let client = cluster.client().await?;
        cluster.apply_yaml(&binaries.crds().await?, &namespace).await?;
        let api_proxy = match &options.recorder {
            Some(recorder) => Some(ApiProxy::start(&namespace, client.clone(), Arc::clone(recorder)).await?),
            None => None,
        };
        for shard in &shards {
            shard.apply_secret(&client, &namespace, &shard.passwords(), trust.as_ref()).await?;
        }
        create_schema(&client, &namespace).await?;
        Ok(Self {
            operator: None,
            api_proxy,
            service: None,
            service_port: free_port()?,
            set: OrderShardSet::new(client.clone(), &namespace, SET_NAME, SCHEMA_CONFIG_MAP),
            shards: shards.into_iter().map(|shard| (shard.name().to_owned(), shard)).collect(),
            trust,
            binaries,
            client,
            cluster,
            namespace,
            options,
        })
    }

    /// The set's object in the API server.
    pub fn set(&self) -> &OrderShardSet {
        &self.set
    }

    /// A client of the API server.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The API server.
    pub fn cluster(&self) -> &'static ApiServer {
        self.cluster
    }

    /// Where the shop's objects are.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether everybody encrypts and verifies.
    pub fn encrypts(&self) -> bool {
        self.options.tls
    }

    /// The server of a shard.
    pub fn server(&self, shard: &str) -> Result<&Server> {
        Ok(self.shard(shard)?.server())
    }

    /// The database of a shard.
    pub fn database(&self, shard: &str) -> Result<&Database> {
        Ok(self.shard(shard)?.database())
    }

    /// What the network between a shard's server and all but the harness is like; it needs a recorder's proxies.
    pub fn set_line(&self, shard: &str, line: Line) -> Result<()> {
        self.shard(shard)?.proxy().context("the shop has no proxies")?.set_line(line);
        Ok(())
    }

    /// Gives a shard's server another address, of which its Secret alone tells; nobody answers at the old one. It needs a
    /// recorder's proxies.
    pub async fn move_shard(&mut self, shard: &str) -> Result<()> {
        let recorder = self.options.recorder.as_ref().context("the shop has no proxies")?;
        let shard = self.shards.get_mut(shard).with_context(|| format!("no shard {shard}"))?;
        shard.move_proxy(recorder).await?;
        shard.apply_secret(&self.client, &self.namespace, &shard.passwords(), self.trust.as_ref()).await
    }

    /// Puts another pooler before a shard, of which its Secret alone tells. Returns the one so far, which still works. The shop
    /// must have poolers.
    pub async fn move_pooler(&mut self, shard: &str) -> Result<Pooler> {
        let shard = self.shards.get_mut(shard).with_context(|| format!("no shard {shard}"))?;
        let former = shard.start_pooler().await?;
        shard.apply_secret(&self.client, &self.namespace, &shard.passwords(), self.trust.as_ref()).await?;
        former.context("the shop has no poolers")
    }

    /// What stands before a shard.
    pub fn pooler(&self, shard: &str) -> Result<&Pooler> {
        self.shard(shard)?.pooler().context("the shop has no poolers")
    }

    /// All shards that have a server, in `spec.shards` or not, by name.
    pub fn databases(&self) -> BTreeMap<String, Database> {
        self.shards.iter().map(|(name, shard)| (name.clone(), shard.database().clone())).collect()
    }

    /// Starts the operator.
    pub fn start_operator(&mut self) -> Result<()> {
        let kubeconfig = self.api_proxy.as_ref().map_or(self.cluster.kubeconfig(), ApiProxy::kubeconfig);
        self.operator = Some(self.spawn_operator(&format!("operator-{}", self.namespace), kubeconfig)?);
        Ok(())
    }

    /// Starts one more operator, beside the one that runs; `name` is that of its log.
    pub fn spawn_operator(&self, name: &str, kubeconfig: &Path) -> Result<Process> {
        let mut command = Command::new(self.binaries.operator());
        command.args(["run", "--namespace", &self.namespace, "--lease-namespace", &self.namespace]);
        command.args(["--listen", "127.0.0.1:0"]);
        if let Some(seconds) = self.options.lease_seconds {
            command.args(["--lease-seconds", &seconds.to_string()]);
        }
        command.args(["--log-format", "text"]).env("KUBECONFIG", kubeconfig);
        Process::spawn(name, &mut command)
    }

    /// Puts a proxy between the API server and operators started from now on; returns the one so far, which stays
    /// between those that run.
    pub fn replace_api_proxy(&mut self, proxy: ApiProxy) -> Option<ApiProxy> {
        self.api_proxy.replace(proxy)
    }

    /// Takes the operator's process out of the shop, and lets another one take its place.
    pub fn replace_operator(&mut self, operator: Option<Process>) -> Option<Process> {
        std::mem::replace(&mut self.operator, operator)
    }

    /// The operator's process, if it was started.
    pub fn operator(&self) -> Option<&Process> {
        self.operator.as_ref()
    }

    /// kill -9 of the operator: it gets no chance to finish or to hand over its Lease.
    pub async fn kill_operator(&mut self) -> Result<()> {
        self.operator.take().context("the operator does not run")?.kill9().await
    }

    /// Starts the order service and waits until it is healthy.
    pub async fn start_service(&mut self) -> Result<()> {
        let password =
            self.shards.values().next().context("a shop has a shard")?.database().password(Role::Service);
        let credentials = self.mount_service_credentials(password)?;
        let seeds: Vec<String> =
            self.options.shards.iter().filter_map(|name| self.shards.get(name)).map(Shard::seed).collect();
        let mut command = Command::new(self.binaries.order());
        command.args(["--listen", &format!("127.0.0.1:{}", self.service_port)]);
        command.args(["--shard-seeds", &seeds.join(","), "--log-format", "text"]);
        command.arg("--credentials-dir").arg(credentials);
        let service = Process::spawn(&format!("order-{}", self.namespace), &mut command)?;
        let what = What::new("the order service to be healthy").log(service.log());
        let health = format!("{}/health", self.url());
        let healthy = async || match service.expect_running() {
            Err(ended) => Some(Err(ended)),
            Ok(()) => {
                reqwest::get(&health).await.ok().filter(|answer| answer.status().is_success()).map(|_| Ok(()))
            }
        };
        await_condition(what, HEALTHY_DEADLINE, healthy).await??;
        self.service = Some(service);
        Ok(())
    }

    /// The order service's process, if it was started.
    pub fn service(&self) -> Option<&Process> {
        self.service.as_ref()
    }

    /// kill -9 of the order service.
    pub async fn kill_service(&mut self) -> Result<()> {
        self.service.take().context("the order service does not run")?.kill9().await
    }

    /// Asks the order service to end, as a rolling update would.
    pub async fn terminate_service(&mut self) -> Result<ExitStatus> {
        self.service.take().context("the order service does not run")?.terminate(DRAIN_DEADLINE).await
    }

    /// Waits until the set is what its spec asks.
    pub async fn await_converged(&self, deadline: Duration) -> Result<()> {
        let mut last = "no status was seen".to_owned();
        let converged = async || {
            if let Some(Err(ended)) = self.operator.as_ref().map(Process::expect_running) {
                return Some(Err(ended));
            }
            let status = self.set.status().await.ok()?;
            last = status.describe();
            status.is_converged().then_some(Ok(()))
        };
        let mut what = What::new("the OrderShardSet to be converged");
        if let Some(operator) = &self.operator {
            what = what.log(operator.log());
        }
        let awaited = await_condition(what, deadline, converged).await;
        awaited.and_then(|inner| inner).with_context(|| format!("last status: {last}"))
    }

    fn shard(&self, name: &str) -> Result<&Shard> {
        self.shards.get(name).with_context(|| format!("the shop has no shard {name}"))
    }
}

impl Venue for Shop {
    fn name(&self) -> &str {
        &self.namespace
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.service_port)
    }

    fn stores(&self) -> Vec<Store> {
        self.databases().iter().map(|(name, database)| Store::new(name, database.admin_url())).collect()
    }
}

/// A database for each shard: on the servers given, or on one of its own.
async fn start_shards(options: &ShopOptions, trust: Option<&Trust>) -> Result<Vec<Shard>> {
    let names: Vec<&String> = options.shards.iter().chain(&options.spare).collect();
    let recorder = options.recorder.as_ref();
    if options.servers.is_empty() {
        let own = names.iter().map(async |name| {
            let server = match trust {
                Some(trust) => Server::start_encrypted(options.version, trust.authority()).await,
                None => Server::start(options.version).await,
            };
            let server = server.with_context(|| format!("failed to start the server of shard {name}"))?;
            Shard::start(name, Arc::new(server), DBNAME, recorder).await
        });
        return try_join_all(own).await;
    }
    ensure!(trust.is_none(), "servers that run already have no certificates of this shop");
    ensure!(options.servers.len() == names.len(), "as many servers as shards");
    let run = &uuid::Uuid::new_v4().simple().to_string()[..8];
    let given = names.iter().zip(&options.servers).map(async |(name, server)| {
        Shard::start(name, Arc::clone(server), &format!("{DBNAME}_{run}_{name}"), recorder).await
    });
    try_join_all(given).await
}

/// The order service's migrations, as an administrator would put them into the cluster.
pub async fn create_schema(client: &Client, namespace: &str) -> Result<()> {
    let folder = settings::repository().join("services/order/migrations");
    let mut data = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("failed to read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sql")
            && let Some(name) = path.file_name()
        {
            data.insert(name.to_string_lossy().into_owned(), fs::read_to_string(&path)?);
        }
    }
    let metadata = ObjectMeta { name: Some(SCHEMA_CONFIG_MAP.to_owned()), ..ObjectMeta::default() };
    let schema = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    maps.create(&PostParams::default(), &schema).await.context("failed to create the schema's ConfigMap")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_named_by_letters() {
        let names = shard_names(28);
        assert_eq!(names.first().map(String::as_str), Some("a"));
        assert_eq!(names[25..], ["z", "aa", "ab"]);
    }
}

//! Fleets of services, without a node: a real API server and the controllers that make pods of Deployments; what a kubelet would
//! say of pods the harness says.

pub mod example;
mod kubelet;

use std::{
    ops::Deref,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use longshore_crds::{
    ServiceFleet,
    service_fleet::{ServiceFleetStatus, ServiceStatus},
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

pub use self::kubelet::Kubelet;
use crate::{
    apiserver::ApiServer,
    awaiting::{What, await_condition},
    process::Process,
    proxy::{ApiProxy, Recorder},
    shop::binaries::Binaries,
};

/// For what has to happen, however slow the machine.
pub const DEADLINE: Duration = Duration::from_secs(90);
/// The shortest that an operator takes.
const LEASE_SECONDS: &str = "2";
/// So long after the last thing that was said, all is said.
const SETTLED: Duration = Duration::from_secs(1);
/// Of whoever edits fleets here.
const FIELD_MANAGER: &str = "longshore-e2e";

/// The fleets of a namespace, as a user sees them: by the API server alone.
#[derive(Clone)]
pub struct Fleets {
    pub namespace: String,
    pub client: Client,
    /// Of the operator, if that is a process of the harness.
    log: Option<PathBuf>,
}

/// A namespace for fleets, on an API server with controllers.
pub struct FleetGround {
    fleets: Fleets,
    pub recorder: Arc<Recorder>,
    pub proxy: ApiProxy,
    proxies: u32,
    binaries: Binaries,
    operator: Option<Process>,
}

/// An API server with controllers that all tests of a process share.
pub async fn cluster() -> Result<&'static ApiServer> {
    static SHARED: OnceCell<ApiServer> = OnceCell::const_new();
    SHARED
        .get_or_try_init(|| async {
            let mut server = ApiServer::start().await?;
            server.start_controllers()?;
            Ok(server)
        })
        .await
}

impl FleetGround {
    /// With the operator running, where pods are restricted.
    pub async fn new(prefix: &str) -> Result<Self> {
        let mut ground = Self::without_operator(cluster().await?, prefix).await?;
        ground.start_operator()?;
        Ok(ground)
    }

    /// As [`Self::new`], on this server, and nobody acts on fleets.
    pub async fn without_operator(server: &ApiServer, prefix: &str) -> Result<Self> {
        let binaries = Binaries::build().await?;
        let (namespace, client) = (server.namespace(prefix).await?, server.client().await?);
        server.apply_yaml(&binaries.crds().await?, &namespace).await?;
        let restricted = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        });
        server.apply_yaml(&restricted.to_string(), &namespace).await?;
        let recorder = Arc::new(Recorder::default());
        let proxy = ApiProxy::start(&namespace, client.clone(), Arc::clone(&recorder)).await?;
        let fleets = Fleets::new(client, &namespace);
        Ok(Self { fleets, recorder, proxy, proxies: 0, binaries, operator: None })
    }

    /// A proxy that has seen nothing yet, for operators started from now on.
    pub async fn renew_proxy(&mut self) -> Result<()> {
        self.recorder = Arc::new(Recorder::default());
        self.proxies += 1;
        let name = format!("{}-{}", self.namespace, self.proxies);
        self.proxy = ApiProxy::start(&name, self.client.clone(), Arc::clone(&self.recorder)).await?;
        Ok(())
    }

    /// Starts the operator, behind the proxy.
    pub fn start_operator(&mut self) -> Result<()> {
        self.start_operator_with(&[])
    }

    /// As [`Self::start_operator`], with more arguments.
    pub fn start_operator_with(&mut self, arguments: &[&str]) -> Result<()> {
        let operator = self.spawn_operator("operator", &self.proxy, arguments)?;
        self.fleets.log = Some(operator.log().to_owned());
        self.operator = Some(operator);
        Ok(())
    }

    /// One more operator, behind a proxy of its own.
    pub fn spawn_operator(&self, name: &str, proxy: &ApiProxy, arguments: &[&str]) -> Result<Process> {
        let mut command = Command::new(self.binaries.operator());
        command.args(["run", "--namespace", &self.namespace, "--lease-namespace", &self.namespace]);
        command.args(["--listen", "127.0.0.1:0", "--log-format", "text", "--lease-seconds", LEASE_SECONDS]);
        command.args(arguments).env("KUBECONFIG", proxy.kubeconfig());
        Process::spawn(&format!("{name}-{}", self.namespace), &mut command)
    }

    /// The running operator.
    pub fn operator(&self) -> Result<&Process> {
        self.operator.as_ref().context("no operator was started")
    }

    /// kill -9 of the operator, and another one at once.
    pub async fn restart_operator(&mut self) -> Result<()> {
        if let Some(operator) = self.operator.take() {
            operator.kill9().await?;
        }
        self.recorder.buried();
        self.start_operator()
    }

    /// Fails if the operator changes anything but its Lease for so long, once it has said what there was to say.
    pub async fn expect_quiet(&self, time: Duration) -> Result<()> {
        while self.acts_within(SETTLED).await {}
        anyhow::ensure!(
            !self.acts_within(time).await,
            "a converged fleet was written to: {:?}",
            self.recorder.actions()
        );
        Ok(())
    }

    async fn acts_within(&self, time: Duration) -> bool {
        self.recorder.forget();
        let acts = |actions: &[crate::proxy::Recorded]| actions.iter().any(|action| action.kind != "lease");
        tokio::time::timeout(time, self.recorder.until(acts)).await.is_ok()
    }
}

impl Deref for FleetGround {
    type Target = Fleets;

    fn deref(&self) -> &Fleets {
        &self.fleets
    }
}

impl Fleets {
    /// Those of this namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), client, log: None }
    }

    /// Objects of a kind in the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates or changes a fleet.
    ///
    /// # Errors
    /// When the API server does not take it.
    pub async fn apply(&self, name: &str, spec: &Value) -> Result<()> {
        let object = json!({
            "apiVersion": "longshore.dev/v1alpha1",
            "kind": "ServiceFleet",
            "metadata": {"name": name},
            "spec": spec,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.api::<ServiceFleet>().patch(name, &params, &Patch::Apply(&object)).await?;
        Ok(())
    }

    /// Creates or changes any object.
    pub async fn apply_object<K>(&self, name: &str, object: &Value) -> Result<()>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.api::<K>().patch(name, &params, &Patch::Apply(object)).await?;
        Ok(())
    }

    /// The operator process that leads, where its Lease is in the fleets' namespace.
    pub async fn leader(&self) -> Option<String> {
        let lease = self.api::<Lease>().get_opt("longshore-operator").await.ok()??;
        lease.spec?.holder_identity.filter(|holder| !holder.is_empty())
    }

    /// A Deployment as it is now.
    pub async fn deployment(&self, name: &str) -> Result<Option<Deployment>> {
        Ok(self.api::<Deployment>().get_opt(name).await?)
    }

    /// The names of a service's pods.
    pub async fn pods(&self, service: &str) -> Result<Vec<Pod>> {
        let params = ListParams::default().labels(&format!("longshore.dev/service={service}"));
        Ok(self.api::<Pod>().list(&params).await?.items)
    }

    /// The status of a fleet, of its newest generation.
    pub async fn status(&self, name: &str) -> Result<Option<ServiceFleetStatus>> {
        let fleet = self.api::<ServiceFleet>().get(name).await?;
        let current = |status: &ServiceFleetStatus| status.observed_generation == fleet.metadata.generation;
        Ok(fleet.status.filter(current))
    }

    /// Returns when `condition` holds for the status of the fleet's newest generation.
    pub async fn await_status(
        &self,
        name: &str,
        what: &str,
        condition: impl Fn(&ServiceFleetStatus) -> bool,
    ) -> Result<ServiceFleetStatus> {
        let mut last = "no status was seen".to_owned();
        let asked = async || {
            let status = self.status(name).await.ok()??;
            last = serde_json::to_string(&status).unwrap_or_default();
            condition(&status).then_some(status)
        };
        self.until(what, asked).await.with_context(|| format!("last status: {last}"))
    }

    /// Returns when all services are ready.
    pub async fn await_ready(&self, name: &str) -> Result<ServiceFleetStatus> {
        self.await_status(name, "the fleet to be ready", is_ready).await
    }

    /// Returns what is said of a service, once it has this reason, and how long it took.
    pub async fn await_reason(
        &self,
        name: &str,
        service: &str,
        reason: &str,
    ) -> Result<(ServiceStatus, Duration)> {
        let started = Instant::now();
        let has = |status: &ServiceFleetStatus| {
            status.services.iter().any(|found| found.name == service && found.reason == reason)
        };
        let status = self.await_status(name, &format!("{service} to be {reason}"), has).await?;
        let found = status.services.into_iter().find(|found| found.name == service);
        Ok((found.context("it was there")?, started.elapsed()))
    }

    /// Returns when `condition` answers for what is in the namespace.
    pub async fn until<T>(&self, what: &str, condition: impl AsyncFnMut() -> Option<T>) -> Result<T> {
        self.until_within(what, DEADLINE, condition).await
    }

    /// As [`Self::until`], for what takes longer.
    pub async fn until_within<T>(
        &self,
        what: &str,
        deadline: Duration,
        condition: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T> {
        let mut what = What::new(what);
        if let Some(log) = &self.log {
            what = what.log(log);
        }
        await_condition(what, deadline, condition).await
    }
}

/// Whether all services are ready.
pub fn is_ready(status: &ServiceFleetStatus) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// `spec` of a small service.
pub fn service(name: &str, image: &str, replicas: i32) -> Value {
    json!({
        "name": name,
        "image": image,
        "replicas": replicas,
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        "ports": {"http": 8080},
    })
}

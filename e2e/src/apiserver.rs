//! A real Kubernetes API server: etcd and kube-apiserver as processes of this host, or the cluster of KUBECONFIG.
//!
//! There are no scheduler and no nodes, and controllers only where they are asked for: objects are stored, validated, watched, and
//! that is all.

pub(crate) mod certificates;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config,
    api::{
        ApiResource, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams,
        ValidationDirective,
    },
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
    discovery::{Scope, pinned_kind},
};
use tokio::sync::OnceCell;
use uuid::Uuid;

use self::certificates::{ADMINISTRATORS, Certificates};
use crate::{
    awaiting::{What, await_condition},
    free_port::free_port,
    parts,
    process::Process,
    run_folder::RunFolder,
    settings,
};

const READY_DEADLINE: Duration = Duration::from_secs(90);
const DISCOVERY_DEADLINE: Duration = Duration::from_secs(30);
const FIELD_MANAGER: &str = "longshore-e2e";

/// An API server to talk to. Dropped, its processes (if they are ours) are killed.
#[derive(Debug)]
pub struct ApiServer {
    kubeconfig: PathBuf,
    /// In the order in which they must end: the API server before etcd.
    processes: Vec<Process>,
    binaries: Option<PathBuf>,
    own: Option<Own>,
}

/// What an API server of our own is started with again.
#[derive(Debug)]
struct Own {
    name: String,
    folder: PathBuf,
    arguments: Vec<OsString>,
}

/// Whether an API server says that it is: before, it answers some requests, and kube-controller-manager ends by itself if that
/// lasts longer than ten seconds.
pub(crate) async fn is_ready(client: &Client) -> bool {
    let asked = hyper::Request::get("/readyz").body(Vec::new());
    let Ok(asked) = asked else { return false };
    client.request_text(asked).await.is_ok()
}

impl ApiServer {
    /// Connects to the cluster of KUBECONFIG, if that is set.
    pub(crate) async fn of_kubeconfig() -> Result<Option<Self>> {
        let Some(kubeconfig) = settings::kubeconfig() else { return Ok(None) };
        let server = Self::at(kubeconfig, None);
        server.await_ready().await.context("the cluster of KUBECONFIG is not ready")?;
        Ok(Some(server))
    }

    /// The one that all tests of a process share: each takes a namespace of its own.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<ApiServer> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// One that runs already, whoever started it.
    pub(crate) fn at(kubeconfig: PathBuf, binaries: Option<PathBuf>) -> Self {
        Self { kubeconfig, processes: Vec::new(), binaries, own: None }
    }

    /// Starts a new API server: whatever cluster somebody works on is no place for tests.
    pub async fn start() -> Result<Self> {
        let binaries = parts::kubenode().await?;
        let [client_port, peer_port, secure_port] = [free_port()?, free_port()?, free_port()?];
        let name = format!("kube-apiserver-{secure_port}");
        let folder = RunFolder::current()?.folder(&name, 0o700)?;
        let certificates = Certificates::create(&folder)?;
        let url = format!("https://127.0.0.1:{secure_port}");
        let kubeconfig = certificates.write_kubeconfig("admin", ("admin", Some(ADMINISTRATORS)), &url)?;

        let etcd = Process::spawn(
            &format!("etcd-{client_port}"),
            &mut etcd_command(&binaries, &folder, client_port, peer_port),
        )?;
        let mut command = Command::new(binaries.join("kube-apiserver"));
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{client_port}"))
            .arg(format!("--secure-port={secure_port}"))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            // A loopback address cannot be published as the endpoint of Service kubernetes; nobody asks for it.
            .arg("--endpoint-reconciler-type=none")
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC"])
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .args(certificates.apiserver_flags(&["127.0.0.1", "localhost"])?);
        let apiserver = Process::spawn(&name, command.current_dir(&folder))?;
        let arguments = command.get_args().map(OsString::from).collect();
        let own = Some(Own { name, folder, arguments });
        let server = Self { kubeconfig, processes: vec![apiserver, etcd], binaries: Some(binaries), own };
        server.await_ready().await?;
        Ok(server)
    }

    /// Starts the controllers that make pods of Deployments, and remove what has lost its owner. Only of a server of our own.
    pub fn start_controllers(&mut self) -> Result<()> {
        let binaries = self.binaries.as_ref().context("the controllers of another's cluster run already")?;
        let mut command = Command::new(binaries.join("kube-controller-manager"));
        command.arg(format!("--kubeconfig={}", self.kubeconfig.display()));
        command.args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
        command.arg(format!("--secure-port={}", free_port()?));
        command.arg("--controllers=deployment-controller,replicaset-controller,garbage-collector-controller");
        // It asks for no more often than this, by itself.
        command.args(["--kube-api-qps=200", "--kube-api-burst=400"]);
        let folder = &self.own.as_ref().context("the cluster is not ours")?.folder;
        let name = format!("kube-controller-manager-{}", free_port()?);
        self.processes.insert(0, Process::spawn(&name, command.current_dir(folder))?);
        Ok(())
    }

    /// kill -9 of the API server, and a new one on the same data.
    pub async fn restart(&mut self) -> Result<()> {
        let own = self.own.as_ref().context("the API server is not ours")?;
        let binaries = self.binaries.as_ref().context("the API server is not ours")?;
        let mut command = Command::new(binaries.join("kube-apiserver"));
        command.args(&own.arguments).current_dir(&own.folder);
        let at = self.processes.iter().position(|process| process.name() == own.name);
        let old = self.processes.remove(at.context("it runs")?);
        old.kill9().await?;
        drop(old);
        self.processes.insert(0, Process::spawn(&own.name, &mut command)?);
        self.await_ready().await
    }

    async fn await_ready(&self) -> Result<()> {
        let mut what = What::new("the Kubernetes API server to be ready");
        for process in &self.processes {
            what = what.log(process.log());
        }
        let client = self.client().await?;
        // It makes this namespace itself when it has started; leases and the like go there.
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let ready = async || {
            if let Some(ended) = self.processes.iter().find_map(|process| process.expect_running().err()) {
                return Some(Err(ended));
            }
            (is_ready(&client).await && namespaces.get("default").await.is_ok()).then_some(Ok(()))
        };
        await_condition(what, READY_DEADLINE, ready).await?
    }

    /// The kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The folder with kubectl, if the API server is ours.
    pub fn binaries(&self) -> Option<&Path> {
        self.binaries.as_deref()
    }

    /// A new client. Tests run on runtimes of their own, so that a client cannot be shared by them.
    pub async fn client(&self) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)
            .with_context(|| format!("failed to read {}", self.kubeconfig.display()))?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// Makes a namespace with a name of its own.
    pub async fn namespace(&self, prefix: &str) -> Result<String> {
        let name = format!("{prefix}-{}", &Uuid::new_v4().simple().to_string()[..8]);
        let namespace = Namespace {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        let namespaces: Api<Namespace> = Api::all(self.client().await?);
        let created = namespaces.create(&PostParams::default(), &namespace).await;
        created.with_context(|| format!("failed to create namespace {name}"))?;
        Ok(name)
    }

    /// Applies every document of a YAML text (server-side); those without a namespace go to this one.
    pub async fn apply_yaml(&self, yaml: &str, namespace: &str) -> Result<()> {
        let documents: Vec<DynamicObject> =
            serde_saphyr::from_multiple(yaml).context("failed to parse YAML")?;
        ensure!(!documents.is_empty(), "no document in the YAML");
        let client = self.client().await?;
        for document in &documents {
            apply(&client, document, namespace).await?;
            if document.types.as_ref().is_some_and(|types| types.kind == "CustomResourceDefinition") {
                await_served(&client, document).await?;
            }
        }
        Ok(())
    }
}

/// A kind is known some moments before its objects can be stored: until then the API server answers 404.
async fn await_served(client: &Client, definition: &DynamicObject) -> Result<()> {
    let text = |pointer: &str| {
        let found = definition.data.pointer(pointer).and_then(serde_json::Value::as_str);
        found.map(str::to_owned).with_context(|| format!("a definition needs {pointer}"))
    };
    let (group, version) = (text("/spec/group")?, text("/spec/versions/0/name")?);
    let gvk = GroupVersionKind::gvk(&group, &version, &text("/spec/names/kind")?);
    let resource = ApiResource::from_gvk_with_plural(&gvk, &text("/spec/names/plural")?);
    let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let served = async || objects.list(&ListParams::default().limit(1)).await.ok().map(drop);
    await_condition(format!("{} to be served", resource.plural), DISCOVERY_DEADLINE, served).await
}

/// Applies one object (server-side), in its own namespace or else this one.
pub async fn apply(client: &Client, object: &DynamicObject, namespace: &str) -> Result<()> {
    apply_with(client, object, namespace, &PatchParams::apply(FIELD_MANAGER).force()).await
}

/// As [`apply`], to see whether it would be taken: nothing is stored, and unknown fields are errors.
pub async fn dry_run(client: &Client, object: &DynamicObject, namespace: &str) -> Result<()> {
    let mut params = PatchParams::apply(FIELD_MANAGER).force().dry_run();
    params.field_validation = Some(ValidationDirective::Strict);
    apply_with(client, object, namespace, &params).await
}

async fn apply_with(
    client: &Client,
    object: &DynamicObject,
    namespace: &str,
    params: &PatchParams,
) -> Result<()> {
    let types = object.types.as_ref().context("an object needs apiVersion and kind")?;
    let name = object.metadata.name.as_deref().context("an object needs metadata.name")?;
    let gvk = GroupVersionKind::try_from(types)?;
    // A kind is served a moment after its CustomResourceDefinition was applied.
    let known = async || pinned_kind(client, &gvk).await.ok();
    let (resource, capabilities) =
        await_condition(format!("the API server to know kind {}", gvk.kind), DISCOVERY_DEADLINE, known)
            .await?;
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => {
            let namespace = object.metadata.namespace.as_deref().unwrap_or(namespace);
            Api::namespaced_with(client.clone(), namespace, &resource)
        }
    };
    let applied = api.patch(name, params, &Patch::Apply(object)).await;
    applied.with_context(|| format!("failed to apply {} {name}", gvk.kind))?;
    Ok(())
}

fn etcd_command(binaries: &Path, folder: &Path, client_port: u16, peer_port: u16) -> Command {
    let client = format!("http://127.0.0.1:{client_port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    let mut command = Command::new(binaries.join("etcd"));
    command
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        // What a test's cluster knows dies with the test: no need to wait for the disk.
        .arg("--unsafe-no-fsync")
        .current_dir(folder);
    command
}

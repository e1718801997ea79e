//! The node's programs: what each is told. All their files are below the node's folder, all their ports on its own address or
//! on loopback.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    NAME, cgroups, containers,
    folder::NodeFolder,
    network::{DNS_SERVICE, KUBERNETES_SERVICE, NODE_ADDRESS, PODS, SERVICES},
};
use crate::{
    apiserver::certificates::{ADMINISTRATORS, Certificates},
    free_port::free_port,
};

const APISERVER_PORT: u16 = 6443;
/// Of the API server, where it asks servers that extend it.
const EXTENSIONS_USER: &str = "front-proxy-client";
const PODS_MAX: u32 = 250;
/// Where the kubelet keeps its pods' files.
pub(super) const KUBELET_FOLDER: &str = "kubelet";

/// The programs of one node.
pub(super) struct Cluster<'a> {
    folder: &'a NodeFolder,
    binaries: &'a Path,
    certificates: &'a Certificates,
    etcd_port: u16,
    peer_port: u16,
}

impl<'a> Cluster<'a> {
    pub(super) fn new(
        folder: &'a NodeFolder,
        binaries: &'a Path,
        certificates: &'a Certificates,
    ) -> Result<Self> {
        Ok(Self { folder, binaries, certificates, etcd_port: free_port()?, peer_port: free_port()? })
    }

    /// The API server's URL.
    pub(super) fn url(&self) -> String {
        format!("https://{NODE_ADDRESS}:{APISERVER_PORT}")
    }

    /// etcd and the API server, which waits for it by itself.
    pub(super) fn start_apiserver(&self) -> Result<()> {
        self.folder.start("etcd", &mut self.etcd())?;
        self.folder.start("kube-apiserver", &mut self.apiserver()?)
    }

    /// The controllers and the scheduler, for an API server that is ready.
    pub(super) fn start_controllers(&self) -> Result<()> {
        let mut controllers =
            self.with_kubeconfig("kube-controller-manager", "system:kube-controller-manager")?;
        controllers
            .args(["--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials"])
            .arg(format!("--root-ca-file={}", self.certificates.authority().display()))
            .arg(format!("--service-account-private-key-file={}", self.certificates.tokens_key().display()));
        // Autoscalers look more often than they would elsewhere, and believe new pods sooner: nobody waits minutes for a test.
        controllers.args([
            "--horizontal-pod-autoscaler-sync-period=5s",
            "--horizontal-pod-autoscaler-initial-readiness-delay=10s",
            "--horizontal-pod-autoscaler-cpu-initialization-period=20s",
        ]);
        self.folder.start("kube-controller-manager", &mut controllers)?;
        let mut scheduler = self.with_kubeconfig("kube-scheduler", "system:kube-scheduler")?;
        scheduler.args(["--bind-address=127.0.0.1", "--leader-elect=false"]);
        self.folder.start("kube-scheduler", &mut scheduler)
    }

    /// containerd, whose pods start from this image.
    pub(super) fn start_containers(&self, sandbox_image: &str) -> Result<()> {
        let file = self.folder.path("containerd/config.toml");
        fs::write(&file, containers::configuration(self.folder, sandbox_image))?;
        self.folder.start("containerd", Command::new("containerd").arg("--config").arg(file))
    }

    /// The kubelet and kube-proxy.
    pub(super) fn start_node(&self) -> Result<()> {
        let user = self.certificates.write_kubeconfig(
            "kubelet",
            (&format!("system:node:{NAME}"), Some("system:nodes")),
            &self.url(),
        )?;
        let mut kubelet = self.command("kubelet");
        kubelet
            .arg(format!("--kubeconfig={}", user.display()))
            .arg(format!("--config={}", self.write("kubelet", &self.kubelet_configuration()?)?.display()))
            .arg(format!("--root-dir={}", self.folder.path(KUBELET_FOLDER).display()))
            .args([format!("--hostname-override={NAME}"), format!("--node-ip={NODE_ADDRESS}")]);
        self.folder.start("kubelet", &mut kubelet)?;

        let user =
            self.certificates.write_kubeconfig("kube-proxy", ("system:kube-proxy", None), &self.url())?;
        let file = self.write("kube-proxy", &proxy_configuration(&user))?;
        let mut proxy = self.command("kube-proxy");
        proxy.arg(format!("--config={}", file.display()));
        self.folder.start("kube-proxy", &mut proxy)
    }

    fn command(&self, name: &str) -> Command {
        Command::new(self.binaries.join(name))
    }

    fn with_kubeconfig(&self, name: &str, user: &str) -> Result<Command> {
        let kubeconfig = self.certificates.write_kubeconfig(name, (user, None), &self.url())?;
        let mut command = self.command(name);
        command.arg(format!("--kubeconfig={}", kubeconfig.display()));
        Ok(command)
    }

    /// Writes a configuration file; JSON is YAML.
    fn write(&self, name: &str, configuration: &Value) -> Result<PathBuf> {
        let file = self.folder.path(&format!("{name}.yaml"));
        fs::write(&file, serde_json::to_string_pretty(configuration)?)?;
        Ok(file)
    }

    fn etcd(&self) -> Command {
        let (client, peer) =
            (format!("http://127.0.0.1:{}", self.etcd_port), format!("http://127.0.0.1:{}", self.peer_port));
        let mut command = self.command("etcd");
        command
            .arg("--data-dir")
            .arg(self.folder.path("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            // What this cluster knows ends with it: no need to wait for the disk.
            .arg("--unsafe-no-fsync");
        command
    }

    fn apiserver(&self) -> Result<Command> {
        let names =
            [NODE_ADDRESS, KUBERNETES_SERVICE, "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let to_kubelet =
            self.certificates.sign_user("apiserver-kubelet", "apiserver", Some(ADMINISTRATORS))?;
        // Who asks a metrics server in the name of others.
        let to_extensions = self.certificates.sign_user("apiserver-extensions", EXTENSIONS_USER, None)?;
        let mut command = self.command("kube-apiserver");
        command
            .arg(format!("--requestheader-client-ca-file={}", self.certificates.authority().display()))
            .arg(format!("--requestheader-allowed-names={EXTENSIONS_USER}"))
            .args([
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
            ])
            .arg("--requestheader-extra-headers-prefix=X-Remote-Extra-")
            .arg(format!("--proxy-client-cert-file={}", to_extensions.certificate.display()))
            .arg(format!("--proxy-client-key-file={}", to_extensions.key.display()))
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port))
            .args([format!("--bind-address={NODE_ADDRESS}"), format!("--secure-port={APISERVER_PORT}")])
            .args([
                format!("--advertise-address={NODE_ADDRESS}"),
                format!("--service-cluster-ip-range={SERVICES}"),
            ])
            .args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"])
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg(format!("--kubelet-certificate-authority={}", self.certificates.authority().display()))
            .arg(format!("--kubelet-client-certificate={}", to_kubelet.certificate.display()))
            .arg(format!("--kubelet-client-key={}", to_kubelet.key.display()))
            .arg(format!("--audit-policy-file={}", self.write("audit", &audit_policy())?.display()))
            .arg(format!("--audit-log-path={}", self.folder.path("logs/audit.jsonl").display()))
            .args(self.certificates.apiserver_flags(&names)?);
        Ok(command)
    }

    fn kubelet_configuration(&self) -> Result<Value> {
        let serving = self.certificates.sign_server("kubelet-serving", &[NODE_ADDRESS])?;
        let names = self.folder.path("resolv.conf");
        fs::write(&names, "")?; // pods of the host's own kind are told of no server outside
        Ok(json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_ADDRESS,
            "readOnlyPort": 0,
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.certificates.authority()},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": serving.certificate,
            "tlsPrivateKeyFile": serving.key,
            "containerRuntimeEndpoint": format!("unix://{}", containers::socket(self.folder).display()),
            "podLogsDir": self.folder.path("logs/pods"),
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": "cluster.local",
            "resolvConf": names,
            "maxPods": PODS_MAX,
            // Control groups of either version, with the processors and memory of each pod below one of our own.
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": true,
            "cgroupRoot": format!("/{}", cgroups::PODS.name),
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            "makeIPTablesUtilChains": false,
            "evictionHard": {"memory.available": "100Mi"},
            "imageGCHighThresholdPercent": 100,
        }))
    }
}

fn proxy_configuration(kubeconfig: &Path) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": kubeconfig},
        "mode": "nftables",
        "hostnameOverride": NAME,
        "clusterCIDR": PODS,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        // The machine's own limits stay as they are.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}

/// Who asked for what, of all service accounts but those of Kubernetes itself: what shows which rights are used.
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
            {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
            {"level": "None"},
        ],
    })
}

//! Programs from Go modules: a folder of the repository each, built without C.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::process::Command;

use super::{Recipe, output, run_with_progress};
use crate::settings;

/// Etcd, the Kubernetes programs and kubectl, each by its own name.
pub async fn kubenode() -> Result<PathBuf> {
    let program = Program {
        name: "kubenode",
        package: ".",
        what: "building Kubernetes",
        expected: Duration::from_secs(720),
        other_names: &[
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        ],
    };
    program.provide().await
}

/// The DNS server of a cluster.
pub(crate) async fn coredns() -> Result<PathBuf> {
    let (name, what) = ("coredns", "building CoreDNS");
    Program { name, package: ".", what, expected: Duration::from_secs(120), other_names: &[] }.provide().await
}

/// Which processors and memory pods take: what autoscalers ask.
pub(crate) async fn metrics_server() -> Result<PathBuf> {
    let (name, what) = ("metricsserver", "building metrics-server");
    let package = "sigs.k8s.io/metrics-server/cmd/metrics-server";
    Program { name, package, what, expected: Duration::from_secs(180), other_names: &[] }.provide().await
}

/// What holds a pod's namespaces.
pub(crate) async fn pause() -> Result<PathBuf> {
    let (name, what) = ("pause", "building the pause program");
    Program { name, package: ".", what, expected: Duration::from_secs(10), other_names: &[] }.provide().await
}

/// Helm: `helm` in its folder.
pub async fn helm() -> Result<PathBuf> {
    let (name, what) = ("helm", "building Helm");
    let package = "helm.sh/helm/v3/cmd/helm";
    Program { name, package, what, expected: Duration::from_secs(200), other_names: &[] }.provide().await
}

/// Kubeconform, which compares manifests with JSON schemas: `kubeconform` in its folder.
pub(crate) async fn kubeconform() -> Result<PathBuf> {
    let (name, what) = ("kubeconform", "building kubeconform");
    let package = "github.com/yannh/kubeconform/cmd/kubeconform";
    Program { name, package, what, expected: Duration::from_secs(20), other_names: &[] }.provide().await
}

/// Where Go keeps the source of Kubernetes, of the version that `kubenode` is built of.
pub(crate) async fn kubernetes_source() -> Result<PathBuf> {
    let mut go = Command::new("go");
    go.args(["mod", "download", "-json", "k8s.io/kubernetes"]);
    let found = output(go.current_dir(settings::repository().join("e2e/kubenode"))).await?;
    let found: serde_json::Value = serde_json::from_str(&found)?;
    found["Dir"].as_str().map(PathBuf::from).context("go does not say where k8s.io/kubernetes is")
}

/// Kubernetes says which version it is only if the linker was told; Helm wants to know.
fn stamp(go_mod: &str) -> String {
    let version = go_mod.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    let Some(version) = version.map(str::trim) else { return String::new() };
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let package = "k8s.io/component-base/version";
    let values =
        [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor), ("gitTreeState", "clean")];
    values.map(|(name, value)| format!("-X {package}.{name}={value}")).join(" ")
}

struct Program {
    /// Of the folder below `e2e/`, of the part and of the binary.
    name: &'static str,
    /// Its own (`.`), or one that its modules have.
    package: &'static str,
    what: &'static str,
    /// How long a first build takes on two cores.
    expected: Duration,
    /// It runs as what it is called by.
    other_names: &'static [&'static str],
}

impl Program {
    /// The folder that holds it.
    async fn provide(&self) -> Result<PathBuf> {
        let source = settings::repository().join("e2e").join(self.name);
        let go_version = output(Command::new("go").arg("version").current_dir(&source)).await?;
        let mut ingredients =
            vec![go_version.into_bytes(), stamp(&fs::read_to_string(source.join("go.mod"))?).into_bytes()];
        for file in ["go.mod", "go.sum", "main.go"] {
            ingredients.push(fs::read(source.join(file)).unwrap_or_default()); // not all have all of them
        }
        let ingredients: Vec<&[u8]> = ingredients.iter().map(Vec::as_slice).collect();
        Recipe::new(self.name, &ingredients)
            .provide(async |folder: &Path| self.build(&source, folder).await)
            .await
    }

    async fn build(&self, source: &Path, folder: &Path) -> Result<()> {
        let mut go = Command::new("go");
        let flags = format!("-s -w {}", stamp(&fs::read_to_string(source.join("go.mod"))?));
        // What a debugger would need is thrown away by the linker: not to make it in the first place, and to let the compiler take
        // memory instead of collecting it, saves a twelfth of a build from nothing.
        go.args(["build", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", &flags, "-o"])
            .arg(folder.join(self.name))
            .arg(self.package);
        go.current_dir(source).env("CGO_ENABLED", "0").env("GOGC", "400");
        run_with_progress(self.what, self.expected, &mut go).await?;
        for name in self.other_names {
            std::os::unix::fs::symlink(self.name, folder.join(name))?;
        }
        Ok(())
    }
}

//! A Kubernetes control plane from the public Go modules: etcd, kube-apiserver and kubectl in one program.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use tokio::process::Command;

use super::{Recipe, output, run_with_progress};
use crate::settings;

/// The names the program answers to.
const COMPONENTS: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];
const BUILD_EXPECTED: Duration = Duration::from_secs(340);

/// The folder that holds etcd, kube-apiserver and kubectl.
pub async fn kubenode() -> Result<PathBuf> {
    let source = settings::repository().join("e2e/kubenode");
    let go_version = output(Command::new("go").arg("version").current_dir(&source)).await?;
    let mut ingredients = vec![go_version.into_bytes()];
    for file in ["go.mod", "go.sum", "main.go"] {
        ingredients.push(fs::read(source.join(file))?);
    }
    let ingredients: Vec<&[u8]> = ingredients.iter().map(Vec::as_slice).collect();
    Recipe::new("kubenode", &ingredients).provide(async |folder: &Path| build(&source, folder).await).await
}

async fn build(source: &Path, folder: &Path) -> Result<()> {
    let mut go = Command::new("go");
    go.args(["build", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(folder.join("kubenode")).arg(".");
    go.current_dir(source).env("CGO_ENABLED", "0");
    run_with_progress("building the Kubernetes API server", BUILD_EXPECTED, &mut go).await?;
    for component in COMPONENTS {
        std::os::unix::fs::symlink("kubenode", folder.join(component))?;
    }
    Ok(())
}

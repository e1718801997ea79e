//! The product's binaries, built by cargo and found where cargo says it put them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::{process::Command, sync::OnceCell};

use crate::settings;

/// Where the binaries are.
#[derive(Clone, Debug)]
pub struct Binaries {
    operator: PathBuf,
    order: PathBuf,
    echo: PathBuf,
}

impl Binaries {
    /// Builds them, once in this process.
    pub async fn build() -> Result<Self> {
        static BUILT: OnceCell<Binaries> = OnceCell::const_new();
        BUILT.get_or_try_init(build).await.cloned()
    }

    /// `longshore-operator`.
    pub fn operator(&self) -> &Path {
        &self.operator
    }

    /// The order service.
    pub fn order(&self) -> &Path {
        &self.order
    }

    /// The service that fleets are tried with.
    pub fn echo(&self) -> &Path {
        &self.echo
    }

    /// The CustomResourceDefinitions that this operator wants, as YAML.
    pub async fn crds(&self) -> Result<String> {
        let output = Command::new(&self.operator).arg("crds").output().await?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "longshore-operator crds ended with {}: {complaint}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// Builds all members at once: dependencies then have the same features as in `cargo test`, and are built once.
async fn build() -> Result<Binaries> {
    let output = Command::from(settings::cargo())
        .args(["build", "--workspace", "--bins", "--message-format", "json-render-diagnostics"])
        .current_dir(settings::repository())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await
        .context("failed to run cargo")?;
    ensure!(output.status.success(), "cargo build ended with {}", output.status);
    let messages = String::from_utf8(output.stdout)?;
    let find =
        |name: &str| executable(&messages, name).with_context(|| format!("cargo built no binary {name}"));
    Ok(Binaries { operator: find("longshore-operator")?, order: find("order")?, echo: find("echo")? })
}

/// The path of the executable of this name in cargo's messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter(|message| message.pointer("/target/name").and_then(Value::as_str) == Some(name))
        .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_by_their_name() {
        let messages = r#"
            {"reason":"compiler-artifact","target":{"name":"order"},"executable":null}
            {"reason":"compiler-artifact","target":{"name":"other"},"executable":"/t/other"}
            {"reason":"compiler-artifact","target":{"name":"order"},"executable":"/t/order"}
            not JSON"#;
        assert_eq!(executable(messages, "order"), Some(PathBuf::from("/t/order")));
        assert_eq!(executable(messages, "absent"), None);
    }
}

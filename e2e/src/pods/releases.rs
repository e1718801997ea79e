//! What Helm has installed.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{Images, NAMESPACE, OPERATOR_NAMESPACE, PodShopOptions};
use crate::{
    images::Image,
    parts::{self, output},
    progress::Progress,
    settings,
};

const HELM_EXPECTED: Duration = Duration::from_secs(10);
const OPERATOR: &str = "longshore";
const SHOP: &str = "shop";

/// The releases of one cluster.
pub(super) struct Releases {
    helm: PathBuf,
    kubeconfig: PathBuf,
}

impl Releases {
    pub(super) async fn new(kubeconfig: &Path) -> Result<Self> {
        let helm = parts::helm().await?.join("helm");
        Ok(Self { helm, kubeconfig: kubeconfig.to_owned() })
    }

    /// Installs or upgrades the operator. Another `log_filter` gives it new pods.
    pub(super) async fn install_operator(&self, image: &Image, log_filter: &str) -> Result<()> {
        let values = json!({"image": image_values(image), "log.filter": log_filter});
        self.install(OPERATOR, OPERATOR_NAMESPACE, &values).await
    }

    pub(super) async fn install_shop(&self, images: &Images, options: &PodShopOptions) -> Result<()> {
        let named = |names: &[String]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        let mut values = json!({
            "orders.buckets": options.buckets,
            "orders.shards": named(&options.shards),
            "servers": named(&options.servers()),
            "order.image": image_values(&images.order),
            "postgres.image": image_values(&images.postgres),
            "pooler.image": image_values(&images.pgbouncer),
        });
        if let Some(image) = &images.kafka {
            values["kafka.enabled"] = json!(true);
            values["kafka.image"] = image_values(image);
        }
        self.install(SHOP, NAMESPACE, &values).await
    }

    /// Returns when all that belongs to the operator is gone, but its custom resource definitions. It need not be there.
    pub(super) async fn uninstall_operator(&self) -> Result<()> {
        self.uninstall(OPERATOR, OPERATOR_NAMESPACE).await
    }

    /// As above; volume claims and Secrets stay.
    pub(super) async fn uninstall_shop(&self) -> Result<()> {
        self.uninstall(SHOP, NAMESPACE).await
    }

    async fn install(&self, chart: &str, namespace: &str, values: &Value) -> Result<()> {
        let folder = settings::repository().join("charts").join(chart);
        let mut helm = self.helm();
        helm.args(["upgrade", "--install", chart, "--namespace", namespace]).arg(&folder);
        helm.arg("--values").arg(folder.join("values-local.yaml"));
        for (name, value) in values.as_object().into_iter().flatten() {
            helm.args(["--set-json", &format!("{name}={value}")]);
        }
        let progress = Progress::of_time(format!("installing charts/{chart}"), HELM_EXPECTED);
        output(&mut helm).await.with_context(|| format!("failed to install charts/{chart}"))?;
        progress.done();
        Ok(())
    }

    async fn uninstall(&self, release: &str, namespace: &str) -> Result<()> {
        let mut helm = self.helm();
        helm.args(["uninstall", release, "--namespace", namespace, "--ignore-not-found"]);
        helm.args(["--wait", "--cascade", "foreground"]);
        let progress = Progress::of_time(format!("uninstalling charts/{release}"), HELM_EXPECTED);
        output(&mut helm).await.with_context(|| format!("failed to uninstall charts/{release}"))?;
        progress.done();
        Ok(())
    }

    fn helm(&self) -> Command {
        let mut helm = Command::new(&self.helm);
        helm.arg("--kubeconfig").arg(&self.kubeconfig);
        helm
    }
}

fn image_values(image: &Image) -> Value {
    json!({"repository": image.repository(), "tag": image.tag(), "pullPolicy": "Never"})
}

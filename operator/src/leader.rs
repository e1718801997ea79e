//! Leadership: one operator process acts, by a Lease. The Lease only keeps others quiet; what keeps a former leader from
//! acting is its term on every shard.

use std::time::Duration;

use kube::Client;
use kube_lease_manager::{LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;

/// Where the Lease is and how long it lasts.
#[derive(Debug, Clone, clap::Args)]
pub struct LeaseSettings {
    /// Name of the Lease that the leader holds
    #[arg(long, env = "LEASE_NAME", default_value = "longshore-operator")]
    pub lease_name: String,
    /// Namespace of the Lease
    #[arg(long, env = "LEASE_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,
    /// Seconds after which a Lease that was not renewed is free
    #[arg(long, env = "LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub lease_seconds: u64,
}

/// Waits until this process leads, or is asked to stop; runs `work` until it ends, or until the lead is lost. Gives the
/// Lease back.
///
/// # Errors
/// When the Lease cannot be had for reasons other than another leader.
pub async fn lead<F: Future<Output = ()>>(
    client: Client,
    settings: &LeaseSettings,
    holder: &str,
    mut stop: watch::Receiver<bool>,
    work: impl FnOnce() -> F,
) -> Result<(), LeaseManagerError> {
    let manager = LeaseManagerBuilder::new(client, &settings.lease_name)
        .with_namespace(&settings.lease_namespace)
        .with_identity(holder)
        .with_duration(settings.lease_seconds)
        .with_grace((settings.lease_seconds / 3).max(1))
        .build()
        .await?;
    let (mut leading, task) = manager.watch().await;
    tracing::info!(holder, "waiting to lead");
    let leads = tokio::select! {
        leads = until(&mut leading, true) => leads,
        _ = until(&mut stop, true) => false,
    };
    if leads {
        tracing::info!(holder, "leading");
        metrics::gauge!("longshore_leads").set(1.0);
        tokio::select! {
            () = work() => tracing::info!(holder, "done, giving the lead back"),
            _ = until(&mut leading, false) => tracing::warn!(holder, "lost the lead"),
        }
    }
    drop(leading);
    match tokio::time::timeout(Duration::from_secs(5), task).await {
        Ok(Ok(ended)) => ended.map(drop),
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

/// Waits for a state; false when nobody is left to tell.
async fn until(state: &mut watch::Receiver<bool>, wanted: bool) -> bool {
    state.wait_for(|state| *state == wanted).await.is_ok()
}

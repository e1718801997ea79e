//! What Prometheus and the kubelet are told: metrics, and whether this process should be ended.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use kube::ResourceExt as _;
use longshore_crds::{
    KafkaTopicSet, OrderShardSet, kafka_topic_set::KafkaTopicSetStatus, order_shard_set::OrderShardSetStatus,
    service_fleet::ServiceFleetStatus,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

/// Upper bounds, in seconds, of every histogram: from a batch's pause to a reconcile that waits for writers.
const SECONDS_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The process's metrics and health; to be set up once.
#[derive(Clone)]
pub struct Telemetry {
    prometheus: PrometheusHandle,
    health: Health,
}

/// Whether this process should be ended, since it cannot mend itself.
#[derive(Clone, Default)]
pub struct Health {
    stuck: Arc<Mutex<BTreeSet<String>>>,
}

impl Health {
    /// Whether the API server has news of a kind that its watch does not bring.
    pub fn set_watch_is_stuck(&self, kind: &str, is_stuck: bool) {
        let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        if is_stuck {
            stuck.insert(kind.to_owned());
        } else {
            stuck.remove(kind);
        }
    }

    /// As the kubelet reads it.
    fn answer(&self) -> (StatusCode, String) {
        let stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        match stuck.first() {
            Some(kind) => (StatusCode::SERVICE_UNAVAILABLE, format!("the watch of {kind}s stands still\n")),
            None => (StatusCode::OK, "ok\n".to_owned()),
        }
    }
}

impl Telemetry {
    /// Installs the process-wide metrics recorder.
    ///
    /// # Errors
    /// When one was installed before.
    pub fn init() -> Result<Self, BuildError> {
        let prometheus = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
            .install_recorder()?;
        metrics::gauge!("longshore_leads").set(0.0);
        Ok(Self { prometheus, health: Health::default() })
    }

    /// What `/healthz` answers from.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// I/O: serves `/healthz` and `/metrics`. Ends only when it fails.
    ///
    /// # Errors
    /// When the address cannot be bound or serving fails.
    pub async fn serve(self, listen: SocketAddr) -> io::Result<()> {
        let listener = TcpListener::bind(listen).await?;
        tracing::info!(address = %listener.local_addr()?, "serving /healthz and /metrics");
        let prometheus = self.prometheus.clone();
        let app = Router::new()
            .route("/healthz", get(async |State(health): State<Health>| health.answer()))
            .with_state(self.health)
            .route("/metrics", get(async move || prometheus.render()));
        let upkeep = async {
            let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
            loop {
                ticks.tick().await;
                // What was recorded piles up otherwise.
                self.prometheus.run_upkeep();
            }
        };
        tokio::select! {
            served = axum::serve(listener, app) => served,
            () = upkeep => Ok(()),
        }
    }
}

/// How long a reconcile took.
pub(crate) fn record_reconcile(kind: &str, succeeded: bool, took: Duration) {
    let labels = [("kind", kind.to_owned()), ("result", if succeeded { "ok" } else { "failed" }.to_owned())];
    metrics::histogram!("longshore_reconcile_seconds", &labels).record(took);
}

/// Shows a set as its status says it is.
pub(crate) fn show_set(set: &OrderShardSet, status: &OrderShardSetStatus) {
    let (namespace, name) = (set.namespace().unwrap_or_default(), set.name_any());
    for condition in &status.conditions {
        let labels = [
            ("namespace", namespace.clone()),
            ("name", name.clone()),
            ("condition", condition.type_.clone()),
        ];
        let value = if condition.status == "True" { 1.0 } else { 0.0 };
        metrics::gauge!("longshore_set_condition", &labels).set(value);
    }
    let (moved, total) = status
        .operation
        .as_ref()
        .map_or((0, 0), |operation| (operation.buckets_moved, operation.buckets_total));
    let labels = [("namespace", namespace), ("name", name)];
    metrics::gauge!("longshore_operation_buckets_moved", &labels).set(f64::from(moved));
    metrics::gauge!("longshore_operation_buckets", &labels).set(f64::from(total));
}

/// A change of a fleet's object was asked for.
pub(crate) fn count_fleet_write(kind: &str) {
    metrics::counter!("longshore_fleet_writes_total", "kind" => kind.to_owned()).increment(1);
}

/// Shows a fleet as its status says it is.
pub(crate) fn show_fleet(namespace: &str, name: &str, status: &ServiceFleetStatus) {
    let labels = [("namespace", namespace.to_owned()), ("name", name.to_owned())];
    metrics::gauge!("longshore_fleet_services", &labels).set(f64::from(status.summary.total));
    metrics::gauge!("longshore_fleet_services_ready", &labels).set(f64::from(status.summary.ready));
}

/// A fleet that is gone has no services.
pub(crate) fn forget_fleet(namespace: &str, name: &str) {
    show_fleet(namespace, name, &ServiceFleetStatus::default());
}

/// Shows how a set's topics are.
pub(crate) fn show_topics(set: &KafkaTopicSet, status: &KafkaTopicSetStatus) {
    let counts = &status.counts;
    let states = [
        ("desired", counts.desired),
        ("ready", counts.ready),
        ("drifted", counts.drifted),
        ("failed", counts.failed),
        ("reassigning", counts.reassigning),
    ];
    for (state, count) in states {
        let labels = [
            ("namespace", set.namespace().unwrap_or_default()),
            ("name", set.name_any()),
            ("state", state.to_owned()),
        ];
        metrics::gauge!("longshore_topics", &labels).set(f64::from(count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_watch_is_a_reason_to_be_ended() {
        let health = Health::default();
        assert_eq!(health.answer().0, StatusCode::OK);
        health.set_watch_is_stuck("OrderShardSet", true);
        health.set_watch_is_stuck("ServiceFleet", false);
        assert_eq!(health.answer().0, StatusCode::SERVICE_UNAVAILABLE);
        health.set_watch_is_stuck("OrderShardSet", false);
        assert_eq!(health.answer().0, StatusCode::OK);
    }
}

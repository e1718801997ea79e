//! Logs by tracing, metrics by Prometheus. Set up once, by a service's `main`.

use std::io::IsTerminal;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, filter::ParseError};

use crate::settings::{LogFormat, TelemetrySettings};

/// Upper bounds, in seconds, of every histogram whose name ends in `_seconds`.
const SECONDS_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log filter is not a list of directives
    #[error("log filter {filter:?} is not valid")]
    Filter {
        /// What was given
        filter: String,
        /// What is wrong with it
        #[source]
        source: ParseError,
    },
    /// Another subscriber stands already
    #[error("failed to install the log subscriber")]
    Subscriber(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another recorder stands already
    #[error("failed to install the metrics recorder")]
    Recorder(#[source] BuildError),
}

/// The process's telemetry: keep it for [`run`](crate::run), which serves the metrics.
#[derive(Clone)]
pub struct Telemetry {
    prometheus: PrometheusHandle,
}

impl Telemetry {
    /// Installs the process-wide log subscriber and metrics recorder.
    ///
    /// # Errors
    /// When the filter is not valid, or telemetry was set up before.
    pub fn init(settings: &TelemetrySettings) -> Result<Self, TelemetryError> {
        let filter = EnvFilter::try_new(&settings.log_filter)
            .map_err(|source| TelemetryError::Filter { filter: settings.log_filter.clone(), source })?;
        let lines = tracing_subscriber::fmt().with_env_filter(filter);
        match settings.log_format {
            LogFormat::Json => lines.json().flatten_event(true).try_init(),
            LogFormat::Text => lines.with_ansi(std::io::stdout().is_terminal()).try_init(),
        }
        .map_err(TelemetryError::Subscriber)?;

        let prometheus = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)
            .and_then(PrometheusBuilder::install_recorder)
            .map_err(TelemetryError::Recorder)?;
        Ok(Self { prometheus })
    }

    /// The metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.prometheus.render()
    }

    /// Folds recorded samples into the histograms; unless it runs now and then, they pile up in memory.
    pub fn upkeep(&self) {
        self.prometheus.run_upkeep();
    }
}

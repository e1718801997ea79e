//! The echo service: what a fleet's pods are when fleets are tried. It is told by its environment what to say and how to behave.

use std::time::{Duration, Instant};

use anyhow::bail;
use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use clap::Parser;
use serde::{Deserialize, Serialize};
use service_kit::{
    settings::{ServerSettings, TelemetrySettings},
    telemetry::Telemetry,
};

/// The longest that a request may burn processors.
const BURN_MAX: Duration = Duration::from_secs(2);

/// Says its settings.
#[derive(Debug, Parser)]
#[command(name = "echo", version)]
struct Settings {
    #[command(flatten)]
    server: ServerSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
    /// Said in every answer
    #[arg(long, env = "SETTING", default_value = "")]
    setting: String,
    /// How long every answer takes, in milliseconds
    #[arg(long, env = "DELAY_MS", default_value_t = 0)]
    delay_ms: u64,
    /// Ends at once, with an error
    #[arg(long, env = "CRASH", default_value_t = false)]
    crash: bool,
}

#[derive(Clone)]
struct Behaviour {
    setting: String,
    delay: Duration,
}

#[derive(Serialize)]
struct Answer {
    setting: String,
}

#[derive(Deserialize)]
struct Burn {
    ms: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    if settings.crash {
        bail!("asked to end at once");
    }
    let telemetry = Telemetry::init(&settings.telemetry)?;
    let delay = Duration::from_millis(settings.delay_ms);
    let app = Router::new()
        .route("/", get(say))
        .route("/burn", get(burn))
        .route("/health", get(|| async { "ok" }))
        .with_state(Behaviour { setting: settings.setting, delay });
    service_kit::run(&settings.server, &telemetry, app).await?;
    Ok(())
}

async fn say(State(Behaviour { setting, delay }): State<Behaviour>) -> Json<Answer> {
    tokio::time::sleep(delay).await;
    Json(Answer { setting })
}

/// Keeps one processor busy.
async fn burn(Query(Burn { ms }): Query<Burn>) -> String {
    let time = Duration::from_millis(ms).min(BURN_MAX);
    let burnt = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        let mut turns = 0_u64;
        while started.elapsed() < time {
            turns = std::hint::black_box(turns + 1);
        }
        turns
    });
    burnt.await.unwrap_or_default().to_string()
}

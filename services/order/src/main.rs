//! The order service: places, shows, lists and cancels orders, each on the shard that owns its user's bucket.

mod api;
mod cursor;
mod model;
mod store;

use clap::Parser;
use service_kit::{
    settings::{ServerSettings, ShardSettings, TelemetrySettings},
    shards::ShardRouter,
    telemetry::Telemetry,
};

/// Serves the orders API.
#[derive(Debug, Parser)]
#[command(name = "order", version)]
struct Settings {
    #[command(flatten)]
    server: ServerSettings,
    #[command(flatten)]
    shards: ShardSettings,
    #[command(flatten)]
    telemetry: TelemetrySettings,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let telemetry = Telemetry::init(&settings.telemetry)?;
    let shards = ShardRouter::start("order", &settings.shards)?;
    service_kit::run(&settings.server, &telemetry, api::routes(shards)).await?;
    Ok(())
}

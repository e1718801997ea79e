//! `cargo xtask demo`: the main job, shown and judged.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use e2e::demo::{self, DemoOptions};

use super::{conclude, keep_logs_of};

/// How the demo runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// On servers that are started on this machine for the demo (so far the only way).
    #[arg(long)]
    local: bool,
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Orders placed a second; reads and cancels come on top.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Shards at first.
    #[arg(long, default_value_t = 1, value_name = "N")]
    from: usize,
    /// Shards that the edit asks for.
    #[arg(long, default_value_t = 2, value_name = "M")]
    to: usize,
    /// Orders in the store before the load starts.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    preload: u64,
    /// Buckets of the set: a power of two.
    #[arg(long, default_value_t = 4096, value_name = "N")]
    buckets: u32,
    /// Users who order.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    users: u64,
    /// kill -9 the operator twice: while rows are copied and while buckets are handed over.
    #[arg(long)]
    kill_operator: bool,
    /// The same seed gives the same orders.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(arguments.local, "say --local: the demo starts its servers on this machine");
    let options = DemoOptions {
        from: arguments.from,
        to: arguments.to,
        rate: arguments.rate,
        preload: arguments.preload,
        buckets: arguments.buckets,
        users: arguments.users,
        kill_operator: arguments.kill_operator,
        seed: arguments.seed,
    };
    let report = keep_logs_of(demo::run(&options).await)?;
    conclude(&report, &report.faults(), arguments.json.as_deref())
}

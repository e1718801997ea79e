//! `cargo xtask chain`: the operator hit at each of its actions.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use e2e::{
    chain::{self, ChainOptions},
    proxy::Fault,
    trial::TrialOptions,
};

use super::{conclude, keep_logs_of};

/// Which operation, and what happens to each action.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Shards at first.
    #[arg(long, default_value_t = 3, value_name = "N")]
    from: usize,
    /// Shards that the edit asks for.
    #[arg(long, default_value_t = 5, value_name = "M")]
    to: usize,
    /// What happens to each action, and then to the operator.
    #[arg(long, value_enum)]
    mode: Fault,
    /// Edit spec.shards back once the first buckets were handed over.
    #[arg(long)]
    abort: bool,
    /// Hit probes, status writes and events again only when the number of hand_overs has doubled: far fewer kills.
    #[arg(long)]
    sparse: bool,
    /// Buckets of the set: a power of two.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    buckets: u32,
    /// Orders placed a second; reads and cancels come on top.
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// Orders in the store before the load starts.
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    preload: u64,
    /// Users who order.
    #[arg(long, default_value_t = 5_000, value_name = "N")]
    users: u64,
    /// The same seed gives the same orders.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let options = ChainOptions {
        from: arguments.from,
        to: arguments.to,
        fault: arguments.mode,
        abort: arguments.abort,
        sparse: arguments.sparse,
        trial: TrialOptions {
            rate: arguments.rate,
            preload: arguments.preload,
            buckets: arguments.buckets,
            users: arguments.users,
            seed: arguments.seed,
        },
    };
    let report = keep_logs_of(chain::run(&options).await)?;
    conclude(&report, &report.faults(), arguments.json.as_deref())
}

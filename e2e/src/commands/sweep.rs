//! `cargo xtask sweep`: each action and each fault in a run of its own.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use e2e::{
    proxy::Fault,
    sweep::{self, Case, SweepOptions},
};

use super::{conclude, keep_logs_of};

/// How much of the matrix.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Draws the order of the runs, and the orders placed in them.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The most runs.
    #[arg(long, default_value_t = 12, value_name = "N")]
    runs: usize,
    /// All of them.
    #[arg(long, conflicts_with = "runs")]
    all: bool,
    /// Begin no run after so many minutes.
    #[arg(long, value_name = "M")]
    minutes: Option<u64>,
    /// Only the run that hits this action.
    #[arg(long, value_name = "SIGNATURE", requires = "mode")]
    only: Option<String>,
    /// With --only: what happens to the action.
    #[arg(long, value_enum, requires = "only")]
    mode: Option<Fault>,
    /// With --only: the operation is turned back on its way.
    #[arg(long, requires = "only")]
    abort: bool,
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let only = arguments.only.clone().zip(arguments.mode);
    let options = SweepOptions {
        seed: arguments.seed,
        runs: (!arguments.all).then_some(arguments.runs),
        time: arguments.minutes.map(|minutes| Duration::from_secs(60 * minutes)),
        only: only.map(|(signature, fault)| Case { signature, fault, abort: arguments.abort }),
    };
    let report = keep_logs_of(sweep::run(&options).await)?;
    conclude(&report, &report.faults(), arguments.json.as_deref())
}

//! `cargo xtask fleet`: what fleets of services promise, shown on a Kubernetes node.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use e2e::pods::fleet::{self, ShowOptions};

use super::{conclude, keep_logs_of};

/// How it is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Requests a second while pods roll.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Without autoscaling, for which metrics-server is built.
    #[arg(long)]
    no_autoscaling: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let options = ShowOptions { rate: arguments.rate, autoscaling: !arguments.no_autoscaling };
    let report = keep_logs_of(fleet::run(&options).await)?;
    eprintln!("the node is still up: `cargo xtask down` removes it");
    conclude(&report, &report.faults(), arguments.json.as_deref())
}

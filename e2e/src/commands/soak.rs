//! `cargo xtask soak`: hours of edits, kills and load, judged.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use e2e::{
    soak::{self, SoakOptions},
    trial::TrialOptions,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use super::{conclude, keep_logs_of};

/// How long, and how much.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Draws the plan, the orders, and the writes of those that know no router.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Begin no step after so many minutes.
    #[arg(long, default_value_t = 60, value_name = "M", value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Print the first steps of the seed's plan, and do nothing.
    #[arg(long, value_name = "STEPS")]
    plan: Option<usize>,
    /// Buckets of the set: a power of two.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    buckets: u32,
    /// Orders placed a second; reads, lists and cancels come on top.
    #[arg(long, default_value_t = 40.0)]
    rate: f64,
    /// Transactions a second of writers that know no router.
    #[arg(long, default_value_t = 10.0)]
    bypass_rate: f64,
    /// Orders in the store before the load starts.
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    preload: u64,
    /// Users who order.
    #[arg(long, default_value_t = 5_000, value_name = "N")]
    users: u64,
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(steps) = arguments.plan {
        soak::plan(arguments.seed).take(steps).for_each(|step| println!("{step}"));
        return Ok(ExitCode::SUCCESS);
    }
    let options = SoakOptions {
        time: Duration::from_secs(60 * arguments.minutes),
        trial: TrialOptions {
            rate: arguments.rate,
            preload: arguments.preload,
            buckets: arguments.buckets,
            users: arguments.users,
            seed: arguments.seed,
        },
        bypass_rate: arguments.bypass_rate,
    };
    let (stop, stopped) = watch::channel(false);
    let mut signals = JoinSet::new();
    signals.spawn(await_signals(stop));
    let report = keep_logs_of(soak::run(&options, stopped).await)?;
    conclude(&report, &report.faults(), arguments.json.as_deref())
}

/// The first signal ends the soak after its step; the second one at once.
async fn await_signals(stop: watch::Sender<bool>) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if stop.send_replace(true) {
            std::process::exit(130);
        }
        eprintln!("this step is finished, then all so far is judged; another signal ends it at once");
    }
}

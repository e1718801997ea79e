//! `cargo xtask bench`: figures, each against the plainest thing that does the same work.

use std::{
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use e2e::bench::{
    copy::{self, CopyOptions},
    fence::{self, FenceOptions},
    fleet::{self, FleetOptions},
    operator::{self, OperatorOptions},
    pause::{self, PauseOptions},
    topics::{self, TopicsOptions},
};
use serde::Serialize;

/// What is measured.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Arguments {
    /// The initial copy of half of all buckets, against a binary COPY from server to server.
    Copy(CopyArguments),
    /// An order's transaction under the fence, against the same without it.
    Fence(FenceArguments),
    /// How soon many services stand, and what that takes of the API server and of memory; fails if it is too much.
    Fleet(FleetArguments),
    /// The operator's memory, and what it writes while there is nothing to do; fails if it is too much.
    Operator(OperatorArguments),
    /// Writers' pauses by the rows of a batch, and how many buckets are handed over in a second.
    Pause(PauseArguments),
    /// Topics made, looked at and changed by the operator, against one batched request and a plain loop.
    Topics(TopicsArguments),
}

/// How the copy is measured.
#[derive(Debug, clap::Args)]
pub(crate) struct CopyArguments {
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Orders at the source, with items, events and keys; half of them move.
    #[arg(long, default_value_t = 300_000, value_name = "N")]
    orders: u64,
    /// How often each way is measured; the median counts.
    #[arg(long, default_value_t = 3, value_name = "R", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Tables that the plain COPY has under way at a time; a subscription has two, as PostgreSQL's default is.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pipes: u16,
    /// A setting of both servers, to try what it changes.
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    setting: Vec<(String, String)>,
}

/// How the fence is measured.
#[derive(Debug, clap::Args)]
pub(crate) struct FenceArguments {
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each side is measured; the median counts.
    #[arg(long, default_value_t = 9, value_name = "R", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Orders that each client places in a round.
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    transactions: u32,
    /// Connections that place orders at the same time.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
}

/// How a fleet is measured.
#[derive(Debug, clap::Args)]
pub(crate) struct FleetArguments {
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many services the fleet has.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    services: u16,
    /// How long the operator is watched when nothing is left to do.
    #[arg(long, default_value_t = 5, value_name = "M", value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
}

/// How the operator is measured.
#[derive(Debug, clap::Args)]
pub(crate) struct OperatorArguments {
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How long it is watched while the set is converged, before a move and after it.
    #[arg(long, default_value_t = 60, value_name = "S")]
    seconds: u64,
    /// Buckets of the set: a power of two.
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    buckets: u32,
    /// Orders in the shards.
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    orders: u64,
}

/// How pauses are measured.
#[derive(Debug, clap::Args)]
pub(crate) struct PauseArguments {
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Buckets of the set, a power of two; a quarter of them moves.
    #[arg(long, default_value_t = 16_384, value_name = "N")]
    buckets: u32,
    /// Orders in the shards: a move for each.
    #[arg(long, value_delimiter = ',', default_value = "20000,200000,1000000", value_name = "N,…")]
    orders: Vec<u64>,
}

/// How topics are measured.
#[derive(Debug, clap::Args)]
pub(crate) struct TopicsArguments {
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Topics of one partition and three replicas, half of them in each of two sets.
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=1000))]
    topics: u16,
    /// How often each way is measured; the median counts.
    #[arg(long, default_value_t = 3, value_name = "R", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    match arguments {
        Arguments::Copy(arguments) => {
            arguments.json.as_deref().map_or(Ok(()), expect_writable)?;
            let options = CopyOptions {
                orders: arguments.orders,
                rounds: usize::from(arguments.rounds),
                pipes: usize::from(arguments.pipes),
                settings: arguments.setting.clone(),
            };
            show(&copy::run(&options).await?, arguments.json.as_ref())
        }
        Arguments::Fence(arguments) => {
            arguments.json.as_deref().map_or(Ok(()), expect_writable)?;
            let options = FenceOptions {
                rounds: usize::from(arguments.rounds),
                transactions: arguments.transactions,
                clients: usize::from(arguments.clients),
            };
            show(&fence::run(&options).await?, arguments.json.as_ref())
        }
        Arguments::Fleet(arguments) => {
            arguments.json.as_deref().map_or(Ok(()), expect_writable)?;
            let rest = Duration::from_secs(arguments.minutes * 60);
            let report =
                fleet::run(&FleetOptions { services: usize::from(arguments.services), rest }).await?;
            conclude(&report, &report.faults(), arguments.json.as_ref())
        }
        Arguments::Operator(arguments) => {
            arguments.json.as_deref().map_or(Ok(()), expect_writable)?;
            let options = OperatorOptions {
                rest: Duration::from_secs(arguments.seconds),
                buckets: arguments.buckets,
                orders: arguments.orders,
            };
            let report = operator::run(&options).await?;
            conclude(&report, &report.faults(), arguments.json.as_ref())
        }
        Arguments::Pause(arguments) => {
            arguments.json.as_deref().map_or(Ok(()), expect_writable)?;
            let options = PauseOptions { buckets: arguments.buckets, orders: arguments.orders.clone() };
            show(&pause::run(&options).await?, arguments.json.as_ref())
        }
        Arguments::Topics(arguments) => {
            arguments.json.as_deref().map_or(Ok(()), expect_writable)?;
            let options = TopicsOptions {
                topics: usize::from(arguments.topics),
                rounds: usize::from(arguments.rounds),
            };
            show(&topics::run(&options).await?, arguments.json.as_ref())
        }
    }
}

/// Better known before minutes of measuring than after.
fn expect_writable(file: &Path) -> Result<()> {
    let opened = fs::OpenOptions::new().create(true).append(true).open(file);
    opened.map(drop).with_context(|| format!("cannot write {}", file.display()))
}

/// Shows a report; it fails if anything was more than it may be.
fn conclude<Report: Display + Serialize>(
    report: &Report,
    faults: &[String],
    json: Option<&PathBuf>,
) -> Result<ExitCode> {
    let shown = show(report, json)?;
    faults.iter().for_each(|fault| println!("FAULT: {fault}"));
    Ok(if faults.is_empty() { shown } else { ExitCode::FAILURE })
}

fn show<Report: Display + Serialize>(report: &Report, json: Option<&PathBuf>) -> Result<ExitCode> {
    println!("{report}");
    if let Some(file) = json {
        fs::write(file, serde_json::to_string_pretty(report)? + "\n")
            .with_context(|| format!("failed to write {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

//! `cargo xtask faults`: servers that die, streams that err, a leader that sleeps.

use std::{fmt, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use e2e::{
    faults::{self, FaultOptions, Report},
    trial::TrialOptions,
};
use serde::Serialize;

use super::{conclude, say_where_logs_are};

/// Which scenarios.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only this scenario; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Print the names of the scenarios, and do nothing.
    #[arg(long)]
    list: bool,
    /// How long a stream errs or a shard is unreachable.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    lasting: u64,
    /// Buckets of the set: a power of two.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    buckets: u32,
    /// Orders placed a second; reads and cancels come on top.
    #[arg(long, default_value_t = 40.0)]
    rate: f64,
    /// Orders in the store before the load starts.
    #[arg(long, default_value_t = 50_000, value_name = "N")]
    preload: u64,
    /// Users who order.
    #[arg(long, default_value_t = 5_000, value_name = "N")]
    users: u64,
    /// The same seed gives the same orders.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the results to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Of all scenarios that were run.
#[derive(Serialize)]
#[serde(transparent)]
struct Reports(Vec<Report>);

impl fmt::Display for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for report in &self.0 {
            let verdict = if report.faults().is_empty() { "passed" } else { "FAILED" };
            writeln!(f, "{verdict} {}", report.name())?;
        }
        Ok(())
    }
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let chosen = faults::chosen(&arguments.only)?;
    if arguments.list {
        chosen.iter().for_each(|scenario| println!("{}", scenario.name));
        return Ok(ExitCode::SUCCESS);
    }
    let options = FaultOptions {
        trial: TrialOptions {
            rate: arguments.rate,
            preload: arguments.preload,
            buckets: arguments.buckets,
            users: arguments.users,
            seed: arguments.seed,
        },
        lasting: Duration::from_secs(arguments.lasting),
    };
    let (mut reports, mut wrong) = (Vec::new(), Vec::new());
    for scenario in &chosen {
        match faults::run(scenario, &options).await {
            Ok(report) => {
                println!("{report}");
                wrong.extend(report.faults().into_iter().map(|fault| format!("{}: {fault}", scenario.name)));
                reports.push(report);
            }
            // The others tell something as well.
            Err(error) => {
                say_where_logs_are()?;
                eprintln!("{}: {error:#}", scenario.name);
                wrong.push(format!("{}: {error:#}", scenario.name));
            }
        }
    }
    conclude(&Reports(reports), &wrong, arguments.json.as_deref())
}

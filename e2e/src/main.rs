//! `cargo xtask`: everything a developer or CI runs, by one command line.

mod commands;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use self::commands::{
    bench, chain, check, demo, faults, fleet, generate, images, kafka, local, mutants, rights, soak, sweep,
    test,
};

/// Build, test and show Longshore.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the tests: all of them, or only some tiers.
    Test(test::Arguments),
    /// What CI demands of the sources: formatting, lints, licences, generated files, charts.
    Check(check::Arguments),
    /// Write again what is made from code or other files: definitions, what charts have of them, what charts render to.
    Generate,
    /// Split (or merge) an order shard while orders flow, and judge what came of it.
    Demo(demo::Arguments),
    /// Hit the operator at each of its actions while buckets move and orders flow, and judge what came of it.
    Chain(chain::Arguments),
    /// Measure a part of Longshore against the same without it.
    #[command(subcommand)]
    Bench(bench::Arguments),
    /// Let servers die, streams err and the leader sleep while buckets move and orders flow, and judge what came of it.
    Faults(faults::Arguments),
    /// Show what a fleet of services promises, on a Kubernetes node: order, rollouts, troubles, drift, scaling, removal.
    Fleet(fleet::Arguments),
    /// Edit the shards, kill servers and operators for an hour while orders flow, and judge what came of it.
    Soak(soak::Arguments),
    /// Run one small operation for each action of the operator and each fault, hit at that action alone.
    Sweep(sweep::Arguments),
    /// Break one rule of the protocol after the other, and see whether a test notices.
    Mutants(mutants::Arguments),
    /// Build the images of a shop, for a cluster elsewhere.
    Images,
    /// Show which rights the operator's and the shop's pods have, and which they have used since the node is up.
    Rights,
    /// Start a shop in the cluster of KUBECONFIG, or else on a Kubernetes node of our own.
    Up(local::UpArguments),
    /// Start a Kafka cluster of three brokers on 127.0.0.1 that ends with this command.
    Kafka,
    /// Show what the harness has running on this machine.
    Status,
    /// Remove the shop, the node of our own and what a killed harness left behind. Running it again changes nothing.
    Down(local::DownArguments),
    /// Print a completion script for a shell.
    Completions {
        /// The shell to complete in.
        shell: clap_complete::Shell,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    // While a server starts, asking it fails again and again, as expected: that is no error worth a line.
    // What takes long in a benchmark is its result, not a warning.
    let quiet = "warn,kube_client::client::builder=off,sqlx::query=error";
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| quiet.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Arguments::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Test(arguments) => test::run(&arguments).await,
        Command::Check(arguments) => check::run(&arguments).await,
        Command::Generate => generate::run().await,
        Command::Demo(arguments) => demo::run(&arguments).await,
        Command::Chain(arguments) => chain::run(&arguments).await,
        Command::Bench(arguments) => bench::run(&arguments).await,
        Command::Faults(arguments) => faults::run(&arguments).await,
        Command::Fleet(arguments) => fleet::run(&arguments).await,
        Command::Soak(arguments) => soak::run(&arguments).await,
        Command::Sweep(arguments) => sweep::run(&arguments).await,
        Command::Mutants(arguments) => mutants::run(&arguments).await,
        Command::Images => images::run().await,
        Command::Rights => rights::run().await,
        Command::Up(arguments) => local::up(&arguments).await,
        Command::Kafka => kafka::run().await,
        Command::Status => local::status(),
        Command::Down(arguments) => local::down(&arguments).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "xtask", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}

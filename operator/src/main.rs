//! The operator's process: its arguments, its log, its life as a leader.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use longshore_operator::{
    controller,
    leader::{self, LeaseSettings},
    telemetry::Telemetry,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

/// Moves buckets between PostgreSQL shards while their rows are written.
#[derive(Parser)]
#[command(name = "longshore-operator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch custom resources and reconcile them
    Run(RunArguments),
    /// Print the custom resource definitions as YAML, or write them into a folder
    Crds {
        /// Write one file per definition here instead of printing
        #[arg(long)]
        folder: Option<PathBuf>,
    },
}

#[derive(clap::Args)]
struct RunArguments {
    /// Namespace to watch; all of them if not given
    #[arg(long, env = "WATCH_NAMESPACE")]
    namespace: Option<String>,
    /// What this process is called in the Lease and in Events: its pod's name
    #[arg(long, env = "POD_NAME", default_value = "longshore-operator")]
    name: String,
    #[command(flatten)]
    lease: LeaseSettings,
    /// Seconds that a deleted OrderShardSet waits for shards that cannot be reached, before it leaves its streams there
    #[arg(long, env = "RELEASE_PATIENCE_SECONDS", default_value_t = 300)]
    release_patience_seconds: u64,
    /// Seconds between two comparisons of what a watch has brought with what the API server has
    #[arg(long, env = "WATCH_LOOK_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    watch_look_seconds: u64,
    /// Address of /healthz and /metrics
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// How log lines look
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
    /// Which log lines are written: as `info`, or `longshore_operator=debug,info`
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Json,
    Text,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Run(arguments) => run(arguments).await,
        Command::Crds { folder } => write_definitions(folder.as_deref()).map(|()| ExitCode::SUCCESS),
    }
}

fn write_definitions(folder: Option<&Path>) -> anyhow::Result<()> {
    for (file, yaml) in longshore_crds::definitions() {
        match folder {
            Some(folder) => {
                fs::write(folder.join(file), yaml).with_context(|| format!("failed to write {file}"))?
            }
            None => write!(std::io::stdout().lock(), "---\n{yaml}")?,
        }
    }
    Ok(())
}

/// Leads once. A process that lost the lead ends, so that nothing of it lives on; whoever runs it starts it again.
async fn run(arguments: RunArguments) -> anyhow::Result<ExitCode> {
    start_log(&arguments)?;
    let client = kube::Client::try_default().await.context("failed to find a Kubernetes cluster")?;
    // In a pod every process has the same id: what was started before, under the same name, is still another holder.
    let holder = format!("{}-{}-{:08x}", arguments.name, std::process::id(), unpredictable());
    let stop = stop_on_signals()?;
    let telemetry = Telemetry::init().context("failed to set up the metrics")?;
    let settings = controller::Settings {
        namespace: arguments.namespace,
        holder: holder.clone(),
        release_patience: Duration::from_secs(arguments.release_patience_seconds),
        watch_look_interval: Duration::from_secs(arguments.watch_look_seconds),
        health: telemetry.health(),
    };
    let led = leader::lead(client.clone(), &arguments.lease, &holder, stop.clone(), || {
        let mut asked = stop.clone();
        let asked = async move { drop(asked.wait_for(|asked| *asked).await) };
        controller::run(client, settings, asked)
    });
    tokio::select! {
        led = led => led.context("failed to hold the Lease")?,
        served = telemetry.serve(arguments.listen) => {
            served.with_context(|| format!("failed to serve on {}", arguments.listen))?;
        }
    }
    Ok(if *stop.borrow() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Turns true at the first SIGTERM or SIGINT.
fn stop_on_signals() -> anyhow::Result<watch::Receiver<bool>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (asked, stop) = watch::channel(false);
    let waiting = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("asked to stop, finishing the action at hand");
        asked.send_replace(true);
        // Ends with the process: a channel without its sender would look like a stop as well.
        std::future::pending::<()>().await;
    };
    #[expect(clippy::disallowed_methods, reason = "it lives as long as the process and cannot fail")]
    drop(tokio::spawn(waiting));
    Ok(stop)
}

/// A few unpredictable bits, so that a process that got another's id is still another holder.
fn unpredictable() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    let hash = std::hash::RandomState::new().build_hasher().finish();
    u32::try_from(hash & u64::from(u32::MAX)).unwrap_or(0)
}

fn start_log(arguments: &RunArguments) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&arguments.log).context("--log is not a filter")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => log.init(),
    }
    Ok(())
}

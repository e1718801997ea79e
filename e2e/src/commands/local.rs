//! `cargo xtask up`, `status` and `down`: what runs on this machine and outlives a command.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use e2e::{
    awaiting::await_condition,
    node,
    pods::{self, Ground, NAMESPACE, PodShop, PodShopOptions},
    process::Signal,
    run_folder::{self, FoundRun},
    settings,
    shop::{Shop, ShopOptions, shard_names},
    trial::Venue as _,
};

/// How long a living harness may take to end when told to.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// What shop to start.
#[derive(Debug, clap::Args)]
pub(crate) struct UpArguments {
    /// As processes on 127.0.0.1 that end with this command, without a Kubernetes node.
    #[arg(long)]
    local: bool,
    /// A Kubernetes node without a shop.
    #[arg(long, conflicts_with = "local")]
    bare: bool,
    /// Kafka brokers too, and the chart's topics.
    #[arg(long, conflicts_with_all = ["local", "bare"])]
    kafka: bool,
    /// Shards in the set.
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// Further shards that have a server and a Secret: name them in `spec.shards` to move rows there.
    #[arg(long, default_value_t = 1)]
    spare: usize,
    /// Buckets of the set: a power of two.
    #[arg(long, default_value_t = 4096)]
    buckets: u32,
}

/// What to end.
#[derive(Debug, clap::Args)]
pub(crate) struct DownArguments {
    /// End living ones too: a shop that is up, tests or a demo that run.
    #[arg(long)]
    all: bool,
}

pub(crate) async fn up(arguments: &UpArguments) -> Result<ExitCode> {
    if arguments.local {
        return up_local(arguments).await;
    }
    let ground = Ground::find().await?;
    if arguments.bare {
        say_how_to_look(&ground)?;
    } else if ground.has_shop().await? {
        eprintln!(
            "a shop is up in namespace {NAMESPACE}: left as it is (`cargo xtask down` first, to have another)"
        );
        say_how_to_look(&ground)?;
    } else {
        up_in_pods(arguments).await?;
    }
    println!("`cargo xtask down` removes it");
    Ok(ExitCode::SUCCESS)
}

async fn up_in_pods(arguments: &UpArguments) -> Result<()> {
    let names = shard_names(arguments.shards + arguments.spare);
    let (shards, spare) = names.split_at(arguments.shards);
    let UpArguments { buckets, kafka, .. } = *arguments;
    let options = PodShopOptions { buckets, shards: shards.to_vec(), spare: spare.to_vec(), kafka };
    let shop = PodShop::start(&options).await?;
    println!("order service:  {}", shop.url());
    say_how_to_look(shop.ground())
}

/// The command that shows what there is.
pub(crate) fn say_how_to_look(ground: &Ground) -> Result<()> {
    let (kubectl, cluster) = (ground.kubectl()?, ground.cluster()?);
    let kubeconfig = cluster.kubeconfig().display();
    println!("look at it:     {} --kubeconfig {kubeconfig} -n {NAMESPACE} get shop,pods", kubectl.display());
    Ok(())
}

async fn up_local(arguments: &UpArguments) -> Result<ExitCode> {
    let names = shard_names(arguments.shards + arguments.spare);
    let (shards, spare) = names.split_at(arguments.shards);
    let options = ShopOptions {
        buckets: arguments.buckets,
        shards: shards.to_vec(),
        spare: spare.to_vec(),
        ..ShopOptions::default()
    };
    let shop = Shop::start(options).await?;
    println!("order service:  {}", shop.url());
    println!("KUBECONFIG:     {}", shop.cluster().kubeconfig().display());
    println!("namespace:      {}", shop.namespace());
    if let Some(binaries) = shop.cluster().binaries() {
        println!("kubectl:        {}", binaries.join("kubectl").display());
    }
    for (name, database) in shop.databases() {
        println!("shard {name}:        {}", database.admin_url());
    }
    println!("press Ctrl-C to end it");
    tokio::signal::ctrl_c().await?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn status() -> Result<ExitCode> {
    for run in run_folder::found_runs()? {
        let state = match run.owner {
            Some(owner) => format!("harness {} runs", owner.pid()),
            None if run.processes.is_empty() => "ended, logs kept".to_owned(),
            None => "left behind".to_owned(),
        };
        println!("{}: {state}; {}", run.path.display(), run.processes.join(", "));
    }
    if let Some(node) = node::describe()? {
        println!("{node}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn down(arguments: &DownArguments) -> Result<ExitCode> {
    if let Some(kubeconfig) = settings::kubeconfig() {
        if pods::remove().await? {
            println!("removed the shop from the cluster of {}", kubeconfig.display());
        }
    } else if node::down().await? {
        println!("removed the Kubernetes node");
    }
    for run in run_folder::found_runs()? {
        match run.owner {
            Some(owner) if arguments.all => {
                owner.signal(Signal::TERM)?;
                let ended = async || (!owner.is_running()).then_some(());
                await_condition(format!("harness {} to end", owner.pid()), END_DEADLINE, ended).await?;
                end(&run)?;
            }
            Some(owner) => println!("harness {} still runs: left alone (--all ends it)", owner.pid()),
            None => end(&run)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn end(run: &FoundRun) -> Result<()> {
    run_folder::end(&run.path).with_context(|| format!("failed to end {}", run.path.display()))?;
    println!("removed {}", run.path.display());
    Ok(())
}

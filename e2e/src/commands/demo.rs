//! `cargo xtask demo`: the main job, shown and judged.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Result, ensure};
use e2e::{
    demo::{self, DemoOptions, Harm, Report},
    pods::{PodShop, PodShopOptions},
};

use super::{conclude, keep_logs_of, local::say_how_to_look};

/// How the demo runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// With servers as processes on 127.0.0.1 that end with the demo, without a Kubernetes node.
    #[arg(long)]
    local: bool,
    /// Write the result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Orders placed a second; reads and cancels come on top.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Shards at first; 3, or 1 with --local, if not given.
    #[arg(long, value_name = "N")]
    from: Option<usize>,
    /// Shards that the edit asks for; 5, or 2 with --local, if not given.
    #[arg(long, value_name = "M")]
    to: Option<usize>,
    /// Whether a second edit takes the first one back; so it is, but not with --local, if not given.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    back: Option<bool>,
    /// Orders in the store before the load starts.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    preload: u64,
    /// Buckets of the set: a power of two.
    #[arg(long, default_value_t = 4096, value_name = "N")]
    buckets: u32,
    /// Users who order.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    users: u64,
    /// Kill the operator twice in each move: while rows are copied and while buckets are handed over.
    #[arg(long, group = "harms")]
    kill_operator: bool,
    /// Do this twice in each move, as above.
    #[arg(long, group = "harms", conflicts_with = "local")]
    harm: Option<Harm>,
    /// Put a PgBouncer before every shard, where the service sends its transactions; without --local there always is one.
    #[arg(long, requires = "local")]
    pooler: bool,
    /// Kafka brokers and the chart's topics beside it: more to start, nothing more that is judged.
    #[arg(long, conflicts_with = "local")]
    kafka: bool,
    /// The same seed gives the same orders.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let options = options(arguments);
    let played = if arguments.local {
        demo::run_local(&options).await
    } else {
        run_in_pods(&options, arguments.kafka).await
    };
    let report = keep_logs_of(played)?;
    conclude(&report, &report.faults(), arguments.json.as_deref())
}

fn options(arguments: &Arguments) -> DemoOptions {
    let (from, to, back) = if arguments.local { (1, 2, false) } else { (3, 5, true) };
    let (from, to) = (arguments.from.unwrap_or(from), arguments.to.unwrap_or(to));
    let mut path = vec![from, to];
    if arguments.back.unwrap_or(back) {
        path.push(from);
    }
    let harm = if arguments.kill_operator { Some(Harm::KillOperator) } else { arguments.harm };
    DemoOptions {
        path,
        rate: arguments.rate,
        preload: arguments.preload,
        buckets: arguments.buckets,
        users: arguments.users,
        harm,
        pooler: arguments.pooler,
        seed: arguments.seed,
    }
}

/// The node stays up: there is much to look at.
async fn run_in_pods(options: &DemoOptions, kafka: bool) -> Result<Report> {
    let started = Instant::now();
    let (shards, spare) = options.names();
    let mut shop = PodShop::start(&PodShopOptions { buckets: options.buckets, shards, spare, kafka }).await?;
    say_how_to_look(shop.ground())?;
    let before = shop.data_plane().await?;
    let report = demo::play(&mut shop, options, started.elapsed()).await;
    eprintln!("the shop is still up: `cargo xtask down` removes it");
    if options.harm.is_none_or(Harm::spares_data_plane) {
        let changes = shop.data_plane().await?.new_since(&before);
        ensure!(changes.is_empty(), "what serves orders changed: {}", changes.join("; "));
        eprintln!("none of the {} pods, StatefulSets and Deployments of the shop changed", before.count());
    }
    report
}

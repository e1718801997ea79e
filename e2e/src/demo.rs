//! The demo: a shop under load, an edit of `spec.shards`, and the checker's verdict on what came of it.
//!
//! The load is open-loop and comes from the checker, which shares nothing with what it judges. The demo
//! itself only starts things, makes the edit, kills the operator when told to, and reports.

mod buckets;
mod pauses;
mod report;
mod reshard;

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use checker::{Load, Phase};

pub use self::report::Report;
use self::{buckets::Ownership, report::Measured, reshard::Reshard};
use crate::{
    awaiting::await_condition,
    progress::Progress,
    shop::{Shop, ShopOptions, shard_names},
    trial::{Score, Trial, TrialOptions},
};

/// Each phase without an operation lasts so long.
const QUIET_PHASE: Duration = Duration::from_secs(12);

/// What the demo is to show.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// How many shards there are at first.
    pub from: usize,
    /// How many `spec.shards` then asks for.
    pub to: usize,
    /// Orders placed a second.
    pub rate: f64,
    /// Orders in the store before the load starts.
    pub preload: u64,
    /// `spec.buckets`.
    pub buckets: u32,
    /// How many users order.
    pub users: u64,
    /// kill -9 the operator twice: while rows are copied, and while buckets are handed over.
    pub kill_operator: bool,
    /// The same seed gives the same arrivals and the same preloaded orders.
    pub seed: u64,
}

impl DemoOptions {
    fn trial(&self) -> TrialOptions {
        let Self { rate, preload, buckets, users, seed, .. } = *self;
        TrialOptions { rate, preload, buckets, users, seed }
    }
}

/// Runs the demo from nothing to the verdict.
pub async fn run(options: &DemoOptions) -> Result<Report> {
    ensure!(options.from > 0 && options.to > 0, "a shop needs at least one shard");
    ensure!(options.from != options.to, "--from and --to are the same: nothing would move");
    let started = Instant::now();
    let mut shop = start_shop(options).await?;
    let cold_setup = started.elapsed();

    let trial = Trial::start(&shop, options.from, &options.trial()).await?;
    let load = trial.load();
    hold(load, "before the edit").await?;

    let before = Ownership::read(&shop).await?;
    load.set_phase(Phase::During);
    let reshard = Reshard::run(&mut shop, load, &shard_names(options.to), options.kill_operator).await?;
    let after = Ownership::read(&shop).await?;
    let moved = after.moved_since(&before);
    let copied = moved.measure(&shop, options.buckets).await?;
    let pauses = pauses::read(&shop).await?;

    load.set_phase(Phase::After);
    hold(load, "after the move").await?;
    let (summary, verdict) = trial.end().await?;
    let measured = Measured {
        buckets: options.buckets,
        floor: before.floor(&shard_names(options.to)),
        moved,
        copied,
        copying: reshard.copying(),
        pauses,
        cold_setup,
        reshard: reshard.took,
        operator_kills: reshard.kills,
    };
    Ok(Report::new(&measured, &summary, Score::new(&summary, verdict)))
}

async fn start_shop(options: &DemoOptions) -> Result<Shop> {
    let progress = Progress::of_words(format!("starting a shop with {} shard(s)", options.from));
    let names = shard_names(options.from.max(options.to));
    let (shards, spare) = names.split_at(options.from);
    let shop = Shop::start(ShopOptions {
        buckets: options.buckets,
        shards: shards.to_vec(),
        spare: spare.to_vec(),
        ..ShopOptions::default()
    });
    let shop = shop.await?;
    progress.done();
    eprintln!("order service: {}", shop.url());
    eprintln!(
        "look at it:    KUBECONFIG={} kubectl -n {} get oss",
        shop.cluster().kubeconfig().display(),
        shop.namespace()
    );
    Ok(shop)
}

/// Lets the load run for a while with nothing else going on.
async fn hold(load: &Load, phase: &str) -> Result<()> {
    let progress = Progress::of_time(format!("orders flow, {phase}"), QUIET_PHASE);
    let started = Instant::now();
    let over = async || {
        progress.tick();
        (load.has_ended() || started.elapsed() >= QUIET_PHASE).then_some(())
    };
    await_condition(format!("the phase {phase} to be over"), QUIET_PHASE * 2, over).await?;
    if load.has_ended() {
        bail!("the load ended by itself {phase}");
    }
    progress.done();
    Ok(())
}

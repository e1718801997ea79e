//! The demo: a shop under load, an edit of `spec.shards`, and the checker's verdict on what came of it.
//!
//! The load is open-loop and comes from the checker, which shares nothing with what it judges. The demo
//! itself only starts things, makes the edit, kills the operator when told to, and reports.

mod buckets;
mod pauses;
mod report;
mod reshard;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use checker::{Case, History, Load, LoadOptions, OwnershipSampler, Phase, Preload, Store, Verdict, judge};

pub use self::report::Report;
use self::{buckets::Ownership, report::Measured, reshard::Reshard};
use crate::{
    awaiting::await_condition,
    progress::Progress,
    run_folder::RunFolder,
    shop::{Shop, ShopOptions, shard_names},
};

/// Each phase without an operation lasts so long.
const QUIET_PHASE: Duration = Duration::from_secs(12);
const OWNERSHIP_SAMPLE_PAUSE: Duration = Duration::from_millis(250);
/// Enough preloaded orders to read now and then.
const PRELOADED_SAMPLE: u64 = 5_000;

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

/// Runs the demo from nothing to the verdict.
pub async fn run(options: &DemoOptions) -> Result<Report> {
    ensure!(options.from > 0 && options.to > 0, "a shop needs at least one shard");
    ensure!(options.from != options.to, "--from and --to are the same: nothing would move");
    let started = Instant::now();
    let mut shop = start_shop(options).await?;
    let cold_setup = started.elapsed();

    let stores = stores(&shop);
    let preload = fill(options, &stores).await?;
    let history_path = RunFolder::current()?.log("history").with_extension("jsonl");
    let history = History::create(&history_path)?;
    let sampler = OwnershipSampler::start(stores.clone(), OWNERSHIP_SAMPLE_PAUSE);
    let load = start_load(options, &shop, &stores, &preload, history.clone()).await?;
    hold(&load, "before the edit").await?;

    let before = Ownership::read(&shop).await?;
    load.set_phase(Phase::During);
    let reshard = Reshard::run(&mut shop, &load, &shard_names(options.to), options.kill_operator).await?;
    let after = Ownership::read(&shop).await?;
    let moved = after.moved_since(&before);
    let copied = moved.measure(&shop, options.buckets).await?;
    let pauses = pauses::read(&shop).await?;

    load.set_phase(Phase::After);
    hold(&load, "after the move").await?;
    let progress = Progress::of_words("waiting for the last answers");
    let summary = load.stop().await?;
    progress.done();
    let ownership = sampler.stop().await;
    history.close().await?;
    let case = Case {
        history: history_path,
        stores,
        buckets: options.buckets,
        preload: Some(preload),
        ownership: Some(ownership),
        complete: true,
    };
    let verdict = judged(&case).await?;
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
    Ok(Report::new(&measured, &summary, verdict))
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

fn stores(shop: &Shop) -> Vec<Store> {
    let databases: BTreeMap<_, _> = shop.databases();
    databases.iter().map(|(name, database)| Store::new(name, database.admin_url())).collect()
}

async fn fill(options: &DemoOptions, stores: &[Store]) -> Result<Preload> {
    let preload = Preload {
        orders: options.preload,
        users: options.users,
        buckets: options.buckets,
        seed: u32::try_from(options.seed).context("--seed is at most 4294967295")?,
    };
    let progress = Progress::of_words(format!("preloading {} orders", options.preload));
    let filled = preload.fill(&stores[..options.from]).await?;
    progress.done();
    let rows_per_second = filled.rows as f64 / filled.took.as_secs_f64().max(0.001);
    eprintln!("{} rows in all four tables, {rows_per_second:.0} a second", filled.rows);
    Ok(preload)
}

async fn start_load(
    options: &DemoOptions,
    shop: &Shop,
    stores: &[Store],
    preload: &Preload,
    history: History,
) -> Result<Load> {
    let store = stores.first().context("a shop has a shard")?;
    let load = LoadOptions {
        targets: vec![shop.url()],
        orders_per_second: options.rate,
        users: options.users,
        seed: options.seed,
        preloaded: preload.sample(store, PRELOADED_SAMPLE).await?,
        ..LoadOptions::default()
    };
    Ok(Load::start(load, history)?)
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

async fn judged(case: &Case) -> Result<Verdict> {
    let progress = Progress::of_words("judging: every answer against what the shards hold");
    let verdict = judge(case).await?;
    progress.done();
    Ok(verdict)
}

//! The demo: a shop under load, edits of `spec.shards`, and the checker's verdict on what came of it.
//!
//! The load is open-loop and comes from the checker, which shares nothing with what it judges. The demo
//! itself only starts things, makes the edits, kills the operator when told to, and reports.

mod buckets;
mod pauses;
mod report;
mod reshard;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use checker::{Load, Phase};
use serde::Serialize;

pub use self::report::Report;
use self::{
    buckets::Ownership,
    report::{Leg, Measured},
    reshard::Reshard,
};
use crate::{
    awaiting::await_condition,
    process::Process,
    progress::Progress,
    shop::{Shop, ShopOptions, order_shard_set::OrderShardSet, shard_names},
    trial::{Score, Trial, TrialOptions, Venue},
};

/// A service that has just started makes its connections in this time.
const WARM_UP: Duration = Duration::from_secs(3);
/// Each phase without an operation lasts so long.
const QUIET_PHASE: Duration = Duration::from_secs(12);

/// What the demo is to show.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// How many shards there are at first, and how many `spec.shards` asks for after each edit.
    pub path: Vec<usize>,
    /// Orders placed a second.
    pub rate: f64,
    /// Orders in the store before the load starts.
    pub preload: u64,
    /// `spec.buckets`.
    pub buckets: u32,
    /// How many users order.
    pub users: u64,
    /// What is done to the shop twice in each move: while rows are copied, and while buckets are handed over.
    pub harm: Option<Harm>,
    /// Put a PgBouncer before every shard; in pods there always is one.
    pub pooler: bool,
    /// The same seed gives the same arrivals and the same preloaded orders.
    pub seed: u64,
}

impl DemoOptions {
    fn trial(&self) -> TrialOptions {
        let Self { rate, preload, buckets, users, seed, .. } = *self;
        TrialOptions { rate, preload, buckets, users, seed }
    }

    /// How many shards there are at first.
    pub fn first(&self) -> usize {
        self.path.first().copied().unwrap_or(0)
    }

    /// The shards there are at first, and those that are spare then.
    pub fn names(&self) -> (Vec<String>, Vec<String>) {
        let mut names = shard_names(self.path.iter().copied().max().unwrap_or(0));
        let spare = names.split_off(self.first());
        (names, spare)
    }

    fn ensure_sane(&self) -> Result<()> {
        ensure!(self.path.iter().all(|shards| *shards > 0), "a shop needs at least one shard");
        let moves = self.path.windows(2).all(|pair| pair.first() != pair.last());
        ensure!(
            self.path.len() > 1 && moves,
            "the same number of shards before and after: nothing would move"
        );
        Ok(())
    }
}

/// What a demo may do to its shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Harm {
    /// Kill the operator that leads, without giving it a chance to finish anything; another one takes its place.
    KillOperator,
    /// Upgrade the operator's release by Helm, to new pods.
    UpgradeOperator,
    /// Uninstall the operator's release by Helm, and install it again after a while.
    ReinstallOperator,
    /// Delete the pod of the first shard's server by force; another one takes its place.
    KillServer,
    /// Kill the first shard's server inside its pod, without a chance to finish anything; it recovers.
    CrashServer,
    /// Replace every process of the order service by a new one, as a rolling update does.
    RollService,
}

impl Harm {
    /// Whether what serves orders is to stay as it is.
    pub fn spares_data_plane(self) -> bool {
        match self {
            Self::KillOperator | Self::UpgradeOperator | Self::ReinstallOperator => true,
            Self::KillServer | Self::CrashServer | Self::RollService => false,
        }
    }
}

/// Where a demo plays: a shop that may be harmed.
pub trait Stage: Venue {
    /// The set's object in the API server.
    fn set(&self) -> &OrderShardSet;

    /// The operator's log, if there is a file.
    fn operator_log(&self) -> Option<PathBuf>;

    /// Fails if the operator has ended by itself.
    fn expect_operator(&self) -> Result<()>;

    /// Does it harm; what was harmed recovers by itself.
    fn harm(&mut self, harm: Harm) -> impl Future<Output = Result<()>>;
}

/// Runs the demo from nothing to the verdict, with all servers on this machine.
pub async fn run_local(options: &DemoOptions) -> Result<Report> {
    options.ensure_sane()?;
    let started = Instant::now();
    let mut shop = start_shop(options).await?;
    play(&mut shop, options, started.elapsed()).await
}

/// Runs the demo in a shop that is up.
pub async fn play(stage: &mut impl Stage, options: &DemoOptions, cold_setup: Duration) -> Result<Report> {
    options.ensure_sane()?;
    let trial = Trial::start(stage, options.first(), &options.trial()).await?;
    hold(trial.load(), "to warm up", WARM_UP).await?;
    trial.load().set_phase(Phase::Before);
    hold(trial.load(), "before the edit", QUIET_PHASE).await?;
    let mut legs = Vec::new();
    for shards in options.path.iter().skip(1) {
        trial.load().set_phase(Phase::During);
        legs.push(travel(stage, &trial, &shard_names(*shards), options).await?);
        trial.load().set_phase(Phase::After);
        hold(trial.load(), "after the move", QUIET_PHASE).await?;
    }
    let (summary, verdict) = trial.end().await?;
    let measured = Measured { buckets: options.buckets, harm: options.harm, legs, cold_setup };
    Ok(Report::new(&measured, &summary, Score::new(&summary, verdict)))
}

/// One edit, until the set is converged.
async fn travel(
    stage: &mut impl Stage,
    trial: &Trial,
    shards: &[String],
    options: &DemoOptions,
) -> Result<Leg> {
    let before = Ownership::read(trial.stores()).await?;
    let reshard = Reshard::run(stage, trial.load(), shards, options.harm).await?;
    let moved = Ownership::read(trial.stores()).await?.moved_since(&before);
    Ok(Leg {
        shards: shards.len(),
        floor: before.floor(shards),
        copied: moved.measure(trial.stores(), options.buckets).await?,
        moved,
        copying: reshard.copying(),
        pauses: pauses::read(trial.stores()).await?,
        reshard: reshard.took,
        harms: reshard.harms,
    })
}

impl Stage for Shop {
    fn set(&self) -> &OrderShardSet {
        self.set()
    }

    fn operator_log(&self) -> Option<PathBuf> {
        self.operator().map(|operator| operator.log().to_owned())
    }

    fn expect_operator(&self) -> Result<()> {
        self.operator().map_or(Ok(()), Process::expect_running)
    }

    async fn harm(&mut self, harm: Harm) -> Result<()> {
        match harm {
            Harm::KillOperator => {
                self.kill_operator().await?;
                self.start_operator()
            }
            Harm::UpgradeOperator
            | Harm::ReinstallOperator
            | Harm::KillServer
            | Harm::CrashServer
            | Harm::RollService => {
                bail!("{harm:?} needs a cluster; see `cargo xtask faults`")
            }
        }
    }
}

async fn start_shop(options: &DemoOptions) -> Result<Shop> {
    let progress = Progress::of_words(format!("starting a shop with {} shard(s)", options.first()));
    let (shards, spare) = options.names();
    let DemoOptions { buckets, pooler, .. } = *options;
    let shop = Shop::start(ShopOptions { buckets, shards, spare, pooler, ..ShopOptions::default() });
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
async fn hold(load: &Load, phase: &str, time: Duration) -> Result<()> {
    let progress = Progress::of_time(format!("orders flow, {phase}"), time);
    let started = Instant::now();
    let over = async || {
        progress.tick();
        (load.has_ended() || started.elapsed() >= time).then_some(())
    };
    await_condition(format!("the phase {phase} to be over"), time * 2, over).await?;
    if load.has_ended() {
        bail!("the load ended by itself {phase}");
    }
    progress.done();
    Ok(())
}

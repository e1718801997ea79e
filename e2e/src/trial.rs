//! A shop on trial: preloaded orders, open-loop load, the ownership watched; and in the end the checker's verdict.
//!
//! Shared by everything that does something to a shop and wants to know what it did to the orders.

mod precedence;
mod score;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use checker::{Case, History, Load, LoadOptions, OwnershipSampler, Preload, Store, Summary, Verdict, judge};

use self::precedence::Precedence;
pub use self::score::Score;
use crate::{progress::Progress, run_folder::RunFolder};

const OWNERSHIP_SAMPLE_PAUSE: Duration = Duration::from_millis(250);
/// Enough preloaded orders to read now and then.
const PRELOADED_SAMPLE: u64 = 5_000;

/// A shop that may be put on trial, wherever it runs.
pub trait Venue {
    /// Tells its files from those of others.
    fn name(&self) -> &str;

    /// The order service, as the load reaches it.
    fn url(&self) -> String;

    /// Every shard, as its administrator; those included that are not in `spec.shards` yet.
    fn stores(&self) -> Vec<Store>;
}

/// What the shop has to bear.
#[derive(Clone, Copy, Debug)]
pub struct TrialOptions {
    /// Orders placed a second.
    pub rate: f64,
    /// Orders in the store before the load starts.
    pub preload: u64,
    /// `spec.buckets`.
    pub buckets: u32,
    /// How many users order.
    pub users: u64,
    /// The same seed gives the same arrivals and the same preloaded orders.
    pub seed: u64,
}

/// A trial under way. Dropped, the load stops.
pub struct Trial {
    load: Load,
    precedence: Precedence,
    sampler: OwnershipSampler,
    history: History,
    history_path: PathBuf,
    stores: Vec<Store>,
    preload: Preload,
}

impl Trial {
    /// Fills the first `owners` shards and starts the load.
    pub async fn start(venue: &impl Venue, owners: usize, options: &TrialOptions) -> Result<Self> {
        let stores = venue.stores();
        let preload = fill(options, stores.get(..owners).context("more owners than shards")?).await?;
        let history_path =
            RunFolder::current()?.log(&format!("history-{}", venue.name())).with_extension("jsonl");
        let history = History::create(&history_path)?;
        let sampler = OwnershipSampler::start(stores.clone(), OWNERSHIP_SAMPLE_PAUSE);
        let store = stores.first().context("a shop has a shard")?;
        let load = LoadOptions {
            targets: vec![venue.url()],
            orders_per_second: options.rate,
            users: options.users,
            seed: options.seed,
            preloaded: preload.sample(store, PRELOADED_SAMPLE).await?,
            ..LoadOptions::default()
        };
        let load = Load::start(load, history.clone())?;
        let precedence = Precedence::take();
        Ok(Self { load, precedence, sampler, history, history_path, stores, preload })
    }

    /// The load.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Where others write down what they ask of the shop; they must have stopped when the trial ends.
    pub fn history(&self) -> History {
        self.history.clone()
    }

    /// Every shard, as its administrator.
    pub fn stores(&self) -> &[Store] {
        &self.stores
    }

    /// Waits for the last answers, and judges all of them. The set must be converged.
    pub async fn end(self) -> Result<(Summary, Verdict)> {
        self.end_as(true).await
    }

    /// As [`Self::end`], in the middle of an operation that nobody carries on.
    pub async fn end_halfway(self) -> Result<(Summary, Verdict)> {
        self.end_as(false).await
    }

    async fn end_as(self, complete: bool) -> Result<(Summary, Verdict)> {
        let progress = Progress::of_words("waiting for the last answers");
        let summary = self.load.stop().await?;
        drop(self.precedence);
        progress.done();
        let ownership = self.sampler.stop().await;
        self.history.close().await?;
        let case = Case {
            history: self.history_path,
            stores: self.stores,
            buckets: self.preload.buckets,
            preload: Some(self.preload),
            ownership: Some(ownership),
            complete,
        };
        let progress = Progress::of_words("judging: every answer against what the shards hold");
        let verdict = judge(&case).await?;
        progress.done();
        Ok((summary, verdict))
    }
}

async fn fill(options: &TrialOptions, stores: &[Store]) -> Result<Preload> {
    let preload = Preload {
        orders: options.preload,
        users: options.users,
        buckets: options.buckets,
        seed: u32::try_from(options.seed).context("--seed is at most 4294967295")?,
    };
    let progress = Progress::of_words(format!("preloading {} orders", options.preload));
    let filled = preload.fill(stores).await?;
    progress.done();
    let rows_per_second = filled.rows as f64 / filled.took.as_secs_f64().max(0.001);
    eprintln!("{} rows in all four tables, {rows_per_second:.0} a second", filled.rows);
    Ok(preload)
}

//! The chain: one operation under load whose operator is hit at each distinct action in turn, until the set is
//! converged nevertheless; then the checker judges.

use std::{collections::BTreeMap, fmt, sync::Arc};

use anyhow::{Result, ensure};
use checker::Phase;
use serde::Serialize;
use serde_json::json;

use crate::{
    keeper::Keeper,
    proxy::{Aim, Fault, Recorder},
    shop::{Shop, ShopOptions, order_shard_set::SetStatus, shard_names},
    trial::{Score, Trial, TrialOptions},
};

/// The shortest that an operator takes: what a restart costs.
pub const LEASE_SECONDS: u32 = 2;

/// An operator begins with batches that fit the pause: a long one, or a restart for each few buckets would take hours.
const PAUSE_MILLIS: u32 = 1_000;

/// What is done to which operation.
#[derive(Clone, Debug)]
pub struct ChainOptions {
    /// How many shards there are at first.
    pub from: usize,
    /// How many `spec.shards` then asks for.
    pub to: usize,
    /// What happens to each action.
    pub fault: Fault,
    /// Once the first buckets were handed over, `spec.shards` is edited back.
    pub abort: bool,
    /// Probes, status writes and events are hit again only when the number of hand_overs has doubled: far fewer kills.
    pub sparse: bool,
    /// The load.
    pub trial: TrialOptions,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    fault: Fault,
    abort: bool,
    #[serde(flatten)]
    score: Score,
    /// How many actions were hit, by kind.
    hit: BTreeMap<String, u64>,
    /// How many actions there were in all.
    actions: usize,
    hand_overs: u64,
    kills: u64,
    ended_by_itself: u64,
    seconds: f64,
    last_phase: String,
    /// Everything that was hit, in order.
    signatures: Vec<String>,
}

/// Runs one chain from nothing to the verdict.
pub async fn run(options: &ChainOptions) -> Result<Report> {
    ensure!(options.from > 0 && options.to > 0, "a shop needs at least one shard");
    ensure!(options.from != options.to, "--from and --to are the same: nothing would move");
    let recorder = Arc::new(Recorder::default());
    if options.sparse {
        recorder.count_sparsely();
    }
    let names = shard_names(options.from.max(options.to));
    let (before, spare) = names.split_at(options.from);
    let mut shop = Shop::start(ShopOptions {
        buckets: options.trial.buckets,
        shards: before.to_vec(),
        spare: spare.to_vec(),
        lease_seconds: Some(LEASE_SECONDS),
        rebalance: json!({"maxWritePauseMillis": PAUSE_MILLIS}),
        recorder: Some(Arc::clone(&recorder)),
        ..ShopOptions::default()
    })
    .await?;
    eprintln!(
        "the operator's log: {}",
        shop.operator().map_or("none".into(), |it| it.log().display().to_string())
    );
    let trial = Trial::start(&shop, options.from, &options.trial).await?;
    trial.load().set_phase(Phase::During);

    let title = format!("{} → {} shards, each action hit: {}", options.from, options.to, options.fault);
    let mut keeper = Keeper::new(&title);
    recorder.aim(Aim::EachOnce(options.fault));
    let after = shard_names(options.to);
    let status = operate(&mut shop, &recorder, &trial, &mut keeper, (before, &after), options.abort).await?;
    let seconds = keeper.elapsed().as_secs_f64();
    let (summary, verdict) = trial.end().await?;
    Ok(Report {
        fault: options.fault,
        abort: options.abort,
        score: Score::new(&summary, verdict),
        hit: recorder.hits(),
        actions: recorder.count(),
        hand_overs: *recorder.hand_overs().borrow(),
        kills: keeper.kills,
        ended_by_itself: keeper.ended_by_itself,
        seconds,
        signatures: recorder.hit_signatures(),
        last_phase: status.last_phase().unwrap_or("none").to_owned(),
    })
}

/// The edit from one list of shards to another, and back again if it is to be aborted, until the set is converged and
/// its operator lives.
pub async fn operate(
    shop: &mut Shop,
    recorder: &Recorder,
    trial: &Trial,
    keeper: &mut Keeper,
    (before, after): (&[String], &[String]),
    abort: bool,
) -> Result<SetStatus> {
    shop.set().set_shards(after).await?;
    if abort {
        let first = recorder.hand_overs();
        keeper.until(shop, recorder, trial.load(), |_| *first.borrow() > 0).await?;
        eprintln!("{:>6.1} s  the edit is taken back", keeper.elapsed().as_secs_f32());
        shop.set().set_shards(before).await?;
    }
    keeper.until(shop, recorder, trial.load(), SetStatus::is_converged).await?;
    // Whatever dies now, dies by itself.
    recorder.aim(Aim::Nothing);
    keeper.until(shop, recorder, trial.load(), SetStatus::is_converged).await
}

impl Report {
    /// What must not have happened, in words; empty if all is well.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.score.faults(false);
        if self.hand_overs == 0 {
            faults.push("no bucket was handed over".to_owned());
        }
        if self.hit.is_empty() {
            faults.push("no action was hit".to_owned());
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.score)?;
        let hits: u64 = self.hit.values().sum();
        let kinds: Vec<String> = self.hit.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        writeln!(
            f,
            "actions     {} in all, {hits} hit ({}): {}",
            self.actions,
            self.fault,
            kinds.join(", ")
        )?;
        writeln!(
            f,
            "operator    {} kills, ended by itself {} times; {} hand_overs; {:.0} s; the last operation: {}",
            self.kills, self.ended_by_itself, self.hand_overs, self.seconds, self.last_phase
        )?;
        self.score.write_invariants(f)
    }
}

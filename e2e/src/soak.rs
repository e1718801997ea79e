//! The soak: one shop for an hour or more. Edits of `spec.shards` follow each other as a plan says that is drawn from a seed;
//! servers and operators are killed while rows move; orders flow all along, and so do writers that know no router. In the
//! end the checker judges, and so does a look at the processes' memory.

mod memory;
mod plan;
mod report;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use checker::{Bypass, BypassOptions, Phase, Store, inspect};
use serde_json::json;
use tokio::sync::watch;

pub use self::report::Report;
use self::{
    memory::Watch,
    plan::{Act, FIRST, Plan, SERVERS, Step},
    report::StepReport,
};
use crate::{
    ordeal::Ordeal,
    postgres::{Role, Server, Version},
    proxy::Recorder,
    shop::{Shop, ShopOptions, order_shard_set::SetStatus, shard_names},
    trial::{Score, Trial, TrialOptions},
};

/// Longer than in a trial of minutes: an operator that ends because this machine is busy would spoil the memory's figures.
const LEASE_SECONDS: u32 = 5;
/// Six servers are on one disk.
const SETTINGS: [(&str, &str); 1] = [("max_wal_size", "512MB")];

/// What a soak is.
#[derive(Clone, Copy, Debug)]
pub struct SoakOptions {
    /// No step begins after so long.
    pub time: Duration,
    /// The load; its seed is the plan's too.
    pub trial: TrialOptions,
    /// Transactions that writers without a router try a second.
    pub bypass_rate: f64,
}

/// The steps of a seed, one line each, without end.
pub fn plan(seed: u64) -> impl Iterator<Item = String> {
    Plan::new(seed).map(move |step| format!("step {} of seed {seed}: {step}", step.number))
}

/// Soaks until the time is over or `stopped` says so; what was done until then is judged.
pub async fn run(options: &SoakOptions, stopped: watch::Receiver<bool>) -> Result<Report> {
    let mut soak = Soak::start(options, stopped).await?;
    let mut plan = Plan::new(options.trial.seed);
    while soak.watched.elapsed() < options.time && !*soak.stopped.borrow() && !soak.broken {
        let step = plan.next().context("a plan has no end")?;
        soak.step(&step).await;
    }
    soak.end().await
}

/// A soak under way.
struct Soak {
    options: SoakOptions,
    ordeal: Ordeal,
    bypass: Bypass,
    memory: Watch,
    watched: Instant,
    stopped: watch::Receiver<bool>,
    steps: Vec<StepReport>,
    wrong: Vec<String>,
    /// A step could not be finished: the set is somewhere in the middle.
    broken: bool,
}

impl Soak {
    async fn start(options: &SoakOptions, stopped: watch::Receiver<bool>) -> Result<Self> {
        let recorder = Arc::new(Recorder::default());
        let names = shard_names(SERVERS);
        let (shards, spare) = names.split_at(FIRST);
        let mut servers = Vec::new();
        for _ in &names {
            servers.push(Arc::new(Server::start_with(Version::V17, &SETTINGS).await?));
        }
        let shop = Shop::start(ShopOptions {
            buckets: options.trial.buckets,
            shards: shards.to_vec(),
            spare: spare.to_vec(),
            lease_seconds: Some(LEASE_SECONDS),
            rebalance: json!({}),
            recorder: Some(Arc::clone(&recorder)),
            servers,
            ..ShopOptions::default()
        });
        let shop = shop.await?;
        let trial = Trial::start(&shop, FIRST, &options.trial).await?;
        trial.load().set_phase(Phase::During);
        let service = |(name, database): (String, crate::postgres::Database)| {
            Store::new(name, database.url(Role::Service))
        };
        let bypass = BypassOptions {
            stores: shop.databases().into_iter().map(service).collect(),
            per_second: options.bypass_rate,
            users: options.trial.users,
            buckets: options.trial.buckets,
            seed: options.trial.seed,
        };
        let bypass = Bypass::start(bypass, trial.history());
        Ok(Self {
            options: *options,
            ordeal: Ordeal::new(shop, trial, recorder, "soak"),
            bypass,
            memory: Watch::start(),
            watched: Instant::now(),
            stopped,
            steps: Vec::new(),
            wrong: Vec::new(),
            broken: false,
        })
    }

    async fn step(&mut self, step: &Step) {
        let (now, whole) = (self.watched.elapsed().as_secs(), self.options.time.as_secs());
        let left = whole.saturating_sub(now);
        let seed = self.options.trial.seed;
        eprintln!("==> {now} of {whole} s, {left} s left: step {} of seed {seed}: {step}", step.number);
        let started = Instant::now();
        let failed_before = self.failed_requests();
        let mut report = StepReport::new(step);
        let done = self.perform(step, &mut report).await;
        report.seconds = started.elapsed().as_secs_f64();
        report.failed_requests = self.failed_requests() - failed_before;
        if let Err(error) = done {
            self.wrong.push(format!("step {}: {error:#}", step.number));
            self.broken = true;
        }
        self.steps.push(report);
    }

    fn failed_requests(&self) -> u64 {
        self.ordeal.trial.load().snapshot().all.failed
    }

    /// The edit, all that happens meanwhile, and a look at the shards when the set is converged.
    async fn perform(&mut self, step: &Step, report: &mut StepReport) -> Result<()> {
        self.ordeal.hold(Duration::from_millis(step.quiet_millis)).await?;
        self.ordeal.recorder.forget();
        self.ordeal.shop.set().set_weights(&step.after).await?;
        for (moment, act) in &step.acts {
            let came = self.ordeal.moment_or_converged(*moment).await?;
            if act.ends_operator() && self.operator_rests() {
                report.left_out(act);
            } else if came || *act == Act::EditBack {
                report.done(act);
                self.act(act, step).await?;
            } else {
                report.missed(act);
            }
        }
        self.ordeal.until(SetStatus::is_converged).await?;
        let found = inspect(self.ordeal.trial.stores(), self.options.trial.buckets).await?;
        self.wrong.extend(found.into_iter().map(|found| format!("after step {}: {found}", step.number)));
        Ok(())
    }

    /// From the second quarter on the operator is let live, so that its memory can be compared; only the first half of the
    /// third quarter is for kills again.
    fn operator_rests(&self) -> bool {
        let part = self.watched.elapsed().as_secs_f64() / self.options.time.as_secs_f64();
        (0.25..0.5).contains(&part) || part >= 0.625
    }

    async fn act(&mut self, act: &Act, step: &Step) -> Result<()> {
        match act {
            Act::KillOperator => self.ordeal.kill_operator().await,
            Act::KillServers(names) => self.ordeal.kill_servers(names).await,
            Act::FreezeLeader => {
                let mut shards: Vec<String> = step.before.keys().chain(step.after.keys()).cloned().collect();
                shards.sort_unstable();
                shards.dedup();
                let wrong = self.ordeal.freeze_leader(&shards).await?;
                self.wrong.extend(wrong.into_iter().map(|wrong| format!("step {}: {wrong}", step.number)));
                Ok(())
            }
            Act::EditBack => {
                self.ordeal.say("the edit is taken back");
                self.ordeal.shop.set().set_weights(&step.before).await
            }
        }
    }

    async fn end(self) -> Result<Report> {
        let Self { options, ordeal, bypass, memory, watched, stopped, steps, wrong, broken } = self;
        let seconds = watched.elapsed().as_secs_f64();
        let memory = memory.report();
        let Ordeal { mut shop, trial, keeper, recorder, .. } = ordeal;
        let bypass = bypass.stop().await?;
        let (summary, verdict) = if broken {
            // Nobody may go on with it while it is judged.
            drop(shop.replace_operator(None));
            trial.end_halfway().await?
        } else {
            trial.end().await?
        };
        let mut kills: BTreeMap<&'static str, u64> = BTreeMap::new();
        for kind in steps.iter().flat_map(StepReport::kinds_done) {
            *kills.entry(kind).or_default() += 1;
        }
        Ok(Report {
            command: command(&options),
            seed: options.trial.seed,
            minutes_asked: options.time.as_secs_f64() / 60.0,
            minutes: seconds / 60.0,
            interrupted: *stopped.borrow(),
            steps_done: steps.len() - usize::from(broken),
            kills,
            ended_by_itself: keeper.ended_by_itself,
            hand_overs: *recorder.hand_overs().borrow(),
            score: Score::new(&summary, verdict),
            bypass,
            memory,
            steps,
            wrong,
        })
    }
}

/// How to soak again.
fn command(SoakOptions { time, trial, bypass_rate }: &SoakOptions) -> String {
    let TrialOptions { rate, preload, buckets, users, seed } = trial;
    let minutes = time.as_secs() / 60;
    format!(
        "cargo xtask soak --seed {seed} --minutes {minutes} --buckets {buckets} --rate {rate} \
         --bypass-rate {bypass_rate} --preload {preload} --users {users}"
    )
}

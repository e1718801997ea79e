//! The sweep: one small operation, once for each action and each fault, hit at that action alone.

use std::{
    collections::BTreeSet,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use serde::Serialize;

use crate::{
    chain::{LEASE_SECONDS, operate},
    keeper::Keeper,
    postgres::{Server, Version},
    proxy::{Aim, Fault, Recorder},
    shop::{Shop, ShopOptions, shard_names},
    trial::{Score, Trial, TrialOptions},
};

const FROM: usize = 2;
const TO: usize = 3;
const BUCKETS: u32 = 64;
const ORDERS_PER_SECOND: f64 = 20.0;
const PRELOADED: u64 = 1_000;
const USERS: u64 = 1_000;
/// The signature of no action: with it a run meets no fault.
const NO_ACTION: &str = "none";

/// How much of the matrix is run.
#[derive(Clone, Debug)]
pub struct SweepOptions {
    /// Draws the order of the runs, and the orders placed in them.
    pub seed: u64,
    /// The most runs.
    pub runs: Option<usize>,
    /// None begins after so long.
    pub time: Option<Duration>,
    /// Just this run.
    pub only: Option<Case>,
}

/// One run: one action of one operation, and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Case {
    /// As the recorder calls it.
    pub signature: String,
    /// What happens to it.
    pub fault: Fault,
    /// The operation is turned back by an edit once the first buckets were handed over.
    pub abort: bool,
}

/// What came of all runs.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    seed: u64,
    /// Actions times faults.
    cases: usize,
    run: usize,
    /// Runs in which the action did not come: batches have their own size in each.
    unmet: Vec<Case>,
    failed: Vec<Failure>,
    seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Failure {
    #[serde(flatten)]
    case: Case,
    wrong: Vec<String>,
}

/// Records the operation and its abort, then runs the cases in the order that the seed draws.
pub async fn run(options: &SweepOptions) -> Result<Report> {
    let started = Instant::now();
    let servers =
        try_join_all((0..TO).map(async |_| Server::start(Version::V17).await.map(Arc::new))).await?;
    let mut report =
        Report { seed: options.seed, cases: 0, run: 0, unmet: Vec::new(), failed: Vec::new(), seconds: 0.0 };
    let mut cases: Vec<Case> = options.only.iter().cloned().collect();
    for abort in [false, true].into_iter().filter(|_| options.only.is_none()) {
        match recorded(&servers, abort, options.seed).await {
            Ok(found) => cases.extend(found),
            // The other operation has actions as well.
            Err(error) => {
                let case = Case { signature: NO_ACTION.to_owned(), fault: Fault::Cut, abort };
                report.failed.push(Failure { case, wrong: vec![format!("{error:#}")] });
            }
        }
    }
    cases.shuffle(&mut StdRng::seed_from_u64(options.seed));
    report.cases = cases.len();
    for case in cases.into_iter().take(options.runs.unwrap_or(usize::MAX)) {
        if options.time.is_some_and(|time| started.elapsed() > time) {
            break;
        }
        report.run += 1;
        eprintln!("==> run {} of {}: {case}", report.run, report.cases);
        match one(&servers, Some(&case), case.abort, options.seed).await {
            Ok((recorder, score)) => {
                let wrong = score.faults(false);
                if !wrong.is_empty() {
                    report.failed.push(Failure { case, wrong });
                } else if recorder.hits().is_empty() {
                    report.unmet.push(case);
                }
            }
            Err(error) => report.failed.push(Failure { case, wrong: vec![format!("{error:#}")] }),
        }
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Every action of the operation or of its abort, with every fault.
async fn recorded(servers: &[Arc<Server>], abort: bool, seed: u64) -> Result<Vec<Case>> {
    let (recorder, score) = one(servers, None, abort, seed).await?;
    let wrong = score.faults(false);
    ensure!(wrong.is_empty(), "the operation fails without any fault: {}", wrong.join("; "));
    let actions = recorder.actions();
    let done = actions.into_iter().filter(|action| action.committed == Some(true));
    let signatures: BTreeSet<String> = done.map(|action| action.signature).collect();
    eprintln!("{} actions (abort: {abort})", signatures.len());
    let all = |signature: String| Fault::ALL.map(|fault| Case { signature: signature.clone(), fault, abort });
    Ok(signatures.into_iter().flat_map(all).collect())
}

/// One operation on fresh databases in a fresh namespace. The recorder knows of nothing before the edit.
async fn one(
    servers: &[Arc<Server>],
    case: Option<&Case>,
    abort: bool,
    seed: u64,
) -> Result<(Arc<Recorder>, Score)> {
    let recorder = Arc::new(Recorder::default());
    let names = shard_names(TO);
    let (before, spare) = names.split_at(FROM);
    let mut shop = Shop::start(ShopOptions {
        buckets: BUCKETS,
        shards: before.to_vec(),
        spare: spare.to_vec(),
        lease_seconds: Some(LEASE_SECONDS),
        recorder: Some(Arc::clone(&recorder)),
        servers: servers.to_vec(),
        ..ShopOptions::default()
    })
    .await?;
    let options =
        TrialOptions { rate: ORDERS_PER_SECOND, preload: PRELOADED, buckets: BUCKETS, users: USERS, seed };
    let trial = Trial::start(&shop, FROM, &options).await?;
    let mut keeper = Keeper::new("one operation");
    recorder.forget();
    if let Some(Case { signature, fault, .. }) = case {
        recorder.aim(Aim::Only { signature: signature.clone(), fault: *fault });
    }
    operate(&mut shop, &recorder, &trial, &mut keeper, (before, &names), abort).await?;
    let (summary, verdict) = trial.end().await?;
    let score = Score::new(&summary, verdict);
    if score.faults(false).is_empty() {
        let databases = shop.databases();
        drop(shop);
        for (server, database) in servers.iter().zip(databases.values()) {
            server.drop_database(database).await.context("failed to clean up")?;
        }
    }
    Ok((recorder, score))
}

impl Report {
    /// What must not have happened, in words; empty if all is well.
    pub fn faults(&self) -> Vec<String> {
        let failed =
            self.failed.iter().map(|Failure { case, wrong }| format!("{case}: {}", wrong.join("; ")));
        let met = self.run > self.unmet.len();
        failed.chain((!met).then(|| "no action was hit".to_owned())).collect()
    }
}

/// The arguments that run it again.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let abort = if self.abort { " --abort" } else { "" };
        write!(f, "--only '{}' --mode {}{abort}", self.signature, self.fault)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} of {} cases run in {:.0} s; {} failed, {} did not meet their action",
            self.seed,
            self.run,
            self.cases,
            self.seconds,
            self.failed.len(),
            self.unmet.len()
        )?;
        self.unmet.iter().try_for_each(|case| writeln!(f, "unmet: {case}"))
    }
}

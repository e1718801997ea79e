//! Watches who owns what while a run goes on: each shard's `longshore.ownership` is read again and again, and
//! compared with everything seen before. A shard that does not answer is asked again later; nothing is
//! concluded from its silence.

use crate::store::{Run, Store, StoreError};
use sqlx::PgConnection;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet, time::sleep};

const EXAMPLES_MAX: usize = 5;
/// Sampling may take up to one part in so many of a shard's time; with very many buckets it slows down.
const IDLE_SHARE: u32 = 20;
/// A shard that does not answer within this is taken as down for now.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnershipReport {
    /// A (bucket, epoch) owned by two shards, or an epoch that fell.
    pub violations: u64,
    /// The first few of them.
    pub examples: Vec<String>,
    /// Successful readings of a shard.
    pub samples: u64,
    /// Readings that failed, as when a shard was down.
    pub missed: u64,
    /// Of each shard: its successful readings.
    pub samples_by_shard: BTreeMap<String, u64>,
}

/// A sampler at work. Dropping it ends it.
#[derive(Debug)]
pub struct OwnershipSampler {
    witness: Arc<Mutex<Witness>>,
    stop: watch::Sender<bool>,
    samplers: JoinSet<()>,
}

impl OwnershipSampler {
    /// Reads each shard every `interval` or so. Must be called inside a tokio runtime.
    pub fn start(stores: Vec<Store>, interval: Duration) -> Self {
        let witness = Arc::new(Mutex::new(Witness::new(&stores)));
        let (stop, stopped) = watch::channel(false);
        let mut samplers = JoinSet::new();
        for (shard, store) in stores.into_iter().enumerate() {
            samplers.spawn(sample(shard, store, interval, witness.clone(), stopped.clone()));
        }
        Self { witness, stop, samplers }
    }

    /// What was seen so far.
    pub fn report(&self) -> OwnershipReport {
        lock(&self.witness).report.clone()
    }

    /// Reads each shard that answers once more, and ends.
    pub async fn stop(mut self) -> OwnershipReport {
        let _ended = self.stop.send(true);
        while self.samplers.join_next().await.is_some() {}
        self.report()
    }
}

async fn sample(
    shard: usize,
    store: Store,
    interval: Duration,
    witness: Arc<Mutex<Witness>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connection = None;
    loop {
        let last = *stopped.borrow();
        let began = Instant::now();
        let read = tokio::time::timeout(ANSWER_WITHIN, read(&store, &mut connection)).await;
        let pause = match read {
            Ok(Ok(runs)) => {
                lock(&witness).observe(shard, &runs);
                interval.max(began.elapsed() * IDLE_SHARE)
            }
            Ok(Err(_)) | Err(_) => {
                lock(&witness).report.missed += 1;
                connection = None;
                interval
            }
        };
        if last {
            return;
        }
        tokio::select! {
            () = sleep(pause) => {}
            // A dropped sender means that nobody wants to know any more.
            changed = stopped.changed() => if changed.is_err() { return },
        }
    }
}

async fn read(store: &Store, connection: &mut Option<PgConnection>) -> Result<Vec<Run>, StoreError> {
    let mut open = match connection.take() {
        Some(open) => open,
        None => store.connect().await?,
    };
    let runs = store.ownership(&mut open).await?;
    *connection = Some(open);
    Ok(runs)
}

fn lock(witness: &Mutex<Witness>) -> std::sync::MutexGuard<'_, Witness> {
    witness.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything seen so far. Pure.
#[derive(Debug)]
struct Witness {
    names: Vec<String>,
    /// Each shard's last reading; most readings are the same again.
    last: Vec<Vec<Run>>,
    /// By shard: the highest epoch seen of each bucket.
    epochs: Vec<HashMap<u32, i64>>,
    owners: HashMap<(u32, i64), usize>,
    report: OwnershipReport,
}

impl Witness {
    fn new(stores: &[Store]) -> Self {
        Self {
            names: stores.iter().map(|store| store.name.clone()).collect(),
            last: vec![Vec::new(); stores.len()],
            epochs: vec![HashMap::new(); stores.len()],
            owners: HashMap::new(),
            report: OwnershipReport {
                samples_by_shard: stores.iter().map(|store| (store.name.clone(), 0)).collect(),
                ..OwnershipReport::default()
            },
        }
    }

    fn observe(&mut self, shard: usize, runs: &[Run]) {
        self.report.samples += 1;
        *self.report.samples_by_shard.entry(self.names[shard].clone()).or_default() += 1;
        if self.last[shard] == runs {
            return;
        }
        for run in runs {
            for bucket in run.first..=run.last {
                self.observe_bucket(shard, bucket, run);
            }
        }
        self.last[shard] = runs.to_vec();
    }

    fn observe_bucket(&mut self, shard: usize, bucket: u32, run: &Run) {
        let name = self.names[shard].clone();
        let before = self.epochs[shard].insert(bucket, run.epoch);
        if let Some(before) = before.filter(|before| *before > run.epoch) {
            self.violated(format!(
                "bucket {bucket}: the epoch fell from {before} to {} at {name}",
                run.epoch
            ));
        }
        if !run.owned {
            return;
        }
        let owner = *self.owners.entry((bucket, run.epoch)).or_insert(shard);
        if owner != shard {
            let other = self.names[owner].clone();
            self.violated(format!("bucket {bucket}, epoch {}: owned by {other} and by {name}", run.epoch));
        }
    }

    fn violated(&mut self, example: String) {
        self.report.violations += 1;
        if self.report.examples.len() < EXAMPLES_MAX {
            self.report.examples.push(example);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u32, last: u32, owned: bool, epoch: i64) -> Run {
        Run { first, last, owned, moved: !owned, epoch }
    }

    /// Observes readings in order and expects so many violations.
    fn check(readings: &[(usize, Run)], expected: u64) {
        let stores = [Store::new("a", ""), Store::new("b", "")];
        let mut witness = Witness::new(&stores);
        for (shard, reading) in readings {
            witness.observe(*shard, std::slice::from_ref(reading));
        }
        assert_eq!(witness.report.violations, expected, "{readings:?}: {:?}", witness.report.examples);
    }

    #[test]
    fn a_handover_is_no_violation() {
        check(&[(0, run(0, 3, true, 1)), (0, run(0, 3, false, 2)), (1, run(0, 3, true, 2))], 0);
        // The destination may be read before the source's loss of it is.
        check(&[(0, run(0, 3, true, 1)), (1, run(0, 3, true, 2)), (0, run(0, 3, false, 2))], 0);
    }

    #[test]
    fn two_owners_of_one_epoch_and_falling_epochs_are_violations() {
        check(&[(0, run(0, 3, true, 1)), (1, run(2, 5, true, 1))], 2);
        check(&[(0, run(7, 7, true, 4)), (0, run(7, 7, false, 3))], 1);
        check(&[(0, run(7, 7, true, 4)), (1, run(7, 7, false, 3))], 0);
    }
}

//! What the operator takes: its memory at rest and while buckets move, and what it writes while there is nothing to do.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use sqlx::Row as _;

use super::still;
use crate::{awaiting::await_condition, progress::Progress, proxy::Recorder, shop::Shop};

const MEMORY_MIB_MAX: f64 = 64.0;
/// What ends an operation may still be said.
const SETTLED: Duration = Duration::from_secs(5);

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct OperatorOptions {
    /// How long the operator is watched while there is nothing to do, before the move and after it.
    pub rest: Duration,
    /// `spec.buckets`.
    pub buckets: u32,
    /// Orders in the shards.
    pub orders: u64,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct OperatorReport {
    /// The largest resident memory (VmHWM) so far: after the first rest, and after the move.
    pub peak_mib: Peaks,
    /// Before the move.
    pub rest_before: Rest,
    /// After the move, if that ended.
    pub rest_after: Option<Rest>,
    /// From the edit until the set was converged; none if it was not in time.
    pub move_seconds: Option<f64>,
    pub buckets: u32,
    pub shards: [usize; 2],
    pub orders: u64,
    /// How to measure again.
    pub command: String,
}

/// In MiB.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peaks {
    pub at_rest: f64,
    pub moving: f64,
}

/// What the operator wrote while the set was converged.
#[derive(Clone, Debug, Serialize)]
pub struct Rest {
    pub seconds: f64,
    /// Requests to the API server that change an object, and statements to shards that act, Lease renewals aside.
    pub writes: u64,
    /// The same, by what they were.
    pub writes_by_kind: BTreeMap<String, u64>,
    pub lease_renewals: u64,
    /// Transactions that wrote something, of all shards, whoever made them.
    pub shard_transactions: u64,
    /// WAL of all shards; what the servers write for themselves is in it.
    pub wal_bytes: u64,
}

/// How far a shard's server has written.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    transactions: u64,
    bytes: u64,
}

/// Measures.
pub async fn run(options: &OperatorOptions) -> Result<OperatorReport> {
    let OperatorOptions { rest: time, buckets, orders } = *options;
    let recorder = Arc::new(Recorder::default());
    let shop = still::start(buckets, orders, Some(Arc::clone(&recorder))).await?;
    let rest_before = rest(&shop, &recorder, time, "at rest, before the move").await?;
    let at_rest = peak_mib(&shop)?;
    let moved = still::add_shard(&shop).await;
    let moving = peak_mib(&shop)?;
    let move_seconds = moved.as_ref().ok().map(Duration::as_secs_f64);
    let rest_after = match moved {
        Ok(_) => Some(rest(&shop, &recorder, time, "at rest, after the move").await?),
        // What was seen until then counts all the same.
        Err(error) => {
            eprintln!("{error:#}");
            None
        }
    };
    Ok(OperatorReport {
        peak_mib: Peaks { at_rest, moving },
        rest_before,
        rest_after,
        move_seconds,
        buckets,
        shards: [still::FROM, still::TO],
        orders,
        command: format!(
            "cargo xtask bench operator --seconds {} --buckets {buckets} --orders {orders}",
            time.as_secs()
        ),
    })
}

/// Watches a converged set.
async fn rest(shop: &Shop, recorder: &Recorder, time: Duration, title: &str) -> Result<Rest> {
    await_time(shop, SETTLED, "what ends an operation is said").await?;
    recorder.forget();
    let before = written(shop).await?;
    await_time(shop, time, title).await?;
    let (after, actions) = (written(shop).await?, recorder.actions());
    let mut writes_by_kind: BTreeMap<String, u64> = BTreeMap::new();
    for action in &actions {
        *writes_by_kind.entry(action.signature.clone()).or_default() += 1;
    }
    let is_lease = |action: &&crate::proxy::Recorded| action.kind == "lease";
    let lease_renewals = actions.iter().filter(is_lease).count() as u64;
    Ok(Rest {
        seconds: time.as_secs_f64(),
        writes: actions.len() as u64 - lease_renewals,
        writes_by_kind,
        lease_renewals,
        shard_transactions: after.transactions - before.transactions,
        wal_bytes: after.bytes - before.bytes,
    })
}

/// Fails unless the set stays converged, and the operator alive.
async fn await_time(shop: &Shop, time: Duration, title: &str) -> Result<()> {
    let progress = Progress::of_time(title, time);
    let started = Instant::now();
    await_condition(title, time * 2 + SETTLED, async || {
        progress.tick();
        (started.elapsed() >= time).then_some(())
    })
    .await?;
    shop.operator().context("the operator was started")?.expect_running()?;
    shop.await_converged(SETTLED).await
}

/// Of all servers. To ask takes no transaction that counts.
async fn written(shop: &Shop) -> Result<Written> {
    let mut sum = Written::default();
    for database in shop.databases().values() {
        let mut admin = database.connect_admin().await?;
        let sql = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as transactions,
                          pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint as bytes";
        let row = sqlx::query(sql).fetch_one(&mut admin).await?;
        sum.transactions += row.try_get::<i64, _>("transactions")?.unsigned_abs();
        sum.bytes += row.try_get::<i64, _>("bytes")?.unsigned_abs();
    }
    Ok(sum)
}

fn peak_mib(shop: &Shop) -> Result<f64> {
    let operator = shop.operator().context("the operator was started")?;
    let kib = operator.id().memory_kib("VmHWM").context("failed to read the operator's memory")?;
    Ok(kib as f64 / 1024.0)
}

impl OperatorReport {
    /// What is more than it may be, in words.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.peak_mib.moving > MEMORY_MIB_MAX {
            faults.push(format!("the operator took {:.1} MiB", self.peak_mib.moving));
        }
        if self.move_seconds.is_none() {
            faults.push(format!("the move did not end within {} s", still::DEADLINE.as_secs()));
        }
        for rest in [Some(&self.rest_before), self.rest_after.as_ref()].into_iter().flatten() {
            if rest.writes > 0 {
                faults.push(format!(
                    "{} writes while there was nothing to do: {:?}",
                    rest.writes, rest.writes_by_kind
                ));
            }
            if rest.shard_transactions > 0 {
                faults.push(format!("{} transactions wrote to shards meanwhile", rest.shard_transactions));
            }
        }
        faults
    }
}

impl fmt::Display for OperatorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peak_mib, buckets, orders, shards: [from, to], move_seconds, .. } = self;
        let took = move_seconds.map_or("not in time".to_owned(), |seconds| format!("in {seconds:.1} s"));
        writeln!(f, "{buckets} buckets, {orders} orders, {from} → {to} shards {took}")?;
        writeln!(
            f,
            "peak memory  {:.1} MiB at rest, {:.1} MiB after the move (at most {MEMORY_MIB_MAX})",
            peak_mib.at_rest, peak_mib.moving
        )?;
        let rests = [("before", Some(&self.rest_before)), ("after", self.rest_after.as_ref())];
        for (when, rest) in rests.into_iter().filter_map(|(when, rest)| Some((when, rest?))) {
            writeln!(
                f,
                "converged, {when:6} the move, {:.0} s: {} Lease renewals, {} other writes, {} transactions at shards, {} bytes of WAL",
                rest.seconds, rest.lease_renewals, rest.writes, rest.shard_transactions, rest.wal_bytes
            )?;
        }
        Ok(())
    }
}

//! What the operator takes: its memory at rest and while buckets move, and what it writes while there is nothing to do.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use checker::{Preload, Store};
use serde::Serialize;
use serde_json::json;
use sqlx::Row as _;

use crate::{
    awaiting::await_condition,
    postgres::{Server, Version},
    progress::Progress,
    proxy::Recorder,
    shop::{Shop, ShopOptions, shard_names},
};

const FROM: usize = 3;
const TO: usize = 4;
const MEMORY_MIB_MAX: f64 = 64.0;
const MOVE_DEADLINE: Duration = Duration::from_secs(600);
/// What ends an operation may still be said.
const SETTLED: Duration = Duration::from_secs(5);
/// The server itself must write nothing either.
const SETTINGS: [(&str, &str); 1] = [("autovacuum", "off")];

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
    let recorder = Arc::new(Recorder::default());
    let shop = start(options, &recorder).await?;
    let rest_before = rest(&shop, &recorder, options.rest, "at rest, before the move").await?;
    let at_rest = peak_mib(&shop)?;
    let started = Instant::now();
    let progress = Progress::of_words(format!("{FROM} → {TO} shards"));
    shop.set().set_shards(&shard_names(TO)).await?;
    let moved = shop.await_converged(MOVE_DEADLINE).await;
    progress.done();
    let move_seconds = moved.is_ok().then(|| started.elapsed().as_secs_f64());
    let moving = peak_mib(&shop)?;
    let rest_after = match moved {
        Ok(()) => Some(rest(&shop, &recorder, options.rest, "at rest, after the move").await?),
        // What was seen until then counts all the same.
        Err(error) => {
            eprintln!("{error:#}");
            None
        }
    };
    let OperatorOptions { rest, buckets, orders } = *options;
    Ok(OperatorReport {
        peak_mib: Peaks { at_rest, moving },
        rest_before,
        rest_after,
        move_seconds,
        buckets,
        shards: [FROM, TO],
        orders,
        command: format!(
            "cargo xtask bench operator --seconds {} --buckets {buckets} --orders {orders}",
            rest.as_secs()
        ),
    })
}

async fn start(options: &OperatorOptions, recorder: &Arc<Recorder>) -> Result<Shop> {
    let progress = Progress::of_words(format!("starting a shop with {FROM} shards"));
    let names = shard_names(TO);
    let mut servers = Vec::new();
    for _ in &names {
        servers.push(Arc::new(Server::start_with(Version::V17, &SETTINGS).await?));
    }
    let (shards, spare) = names.split_at(FROM);
    let shop = Shop::start(ShopOptions {
        buckets: options.buckets,
        shards: shards.to_vec(),
        spare: spare.to_vec(),
        rebalance: json!({}),
        recorder: Some(Arc::clone(recorder)),
        servers,
        ..ShopOptions::default()
    })
    .await?;
    let preload = Preload { orders: options.orders, buckets: options.buckets, ..Preload::default() };
    let stores = shop.databases().into_iter().take(FROM);
    let stores: Vec<Store> = stores.map(|(name, database)| Store::new(name, database.admin_url())).collect();
    preload.fill(&stores).await?;
    progress.done();
    Ok(shop)
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
            faults.push(format!("the move did not end within {} s", MOVE_DEADLINE.as_secs()));
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

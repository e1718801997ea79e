//! How long the writers of a bucket wait while it is handed over, by how many rows its batch holds; and how many buckets are
//! handed over in a second. What is measured is the operator, with the batches that it chose: 3 → 4 shards.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use sqlx::Row as _;

use super::still;
use crate::{
    pauses::Pauses,
    shop::{Shop, shard_names},
};

/// `spec.rebalance.maxWritePauseMillis`, where it says nothing.
const BUDGET_MS: f64 = 100.0;

/// What is measured.
#[derive(Clone, Debug)]
pub struct PauseOptions {
    /// `spec.buckets`.
    pub buckets: u32,
    /// Orders in the shards: one move for each figure.
    pub orders: Vec<u64>,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct PauseReport {
    /// What nearly all pauses are to stay under.
    pub budget_ms: f64,
    pub moves: Vec<Moved>,
    /// Of all moves, by the rows of a batch: up to so many.
    pub batches_by_rows: BTreeMap<u64, Batches>,
    /// How to measure again.
    pub command: String,
}

/// One move.
#[derive(Clone, Debug, Serialize)]
pub struct Moved {
    pub orders: u64,
    pub buckets: usize,
    pub rows: u64,
    pub batches: usize,
    /// From when the first batch was asked for until the last one was there.
    pub hand_over_seconds: f64,
    pub buckets_per_second: f64,
    /// Of buckets: from when its batch was asked for until the bucket was writable again.
    pub pause_ms: Pauses,
    /// From the edit until the set was converged.
    pub seconds: f64,
}

/// Batches alike.
#[derive(Clone, Debug, Serialize)]
pub struct Batches {
    pub batches: usize,
    pub buckets: usize,
    /// Of batches: until the last of its buckets was writable again.
    pub pause_ms: Pauses,
}

/// As the receiving shard tells it.
#[derive(Clone, Copy, Debug)]
struct Batch {
    asked_ms: f64,
    arrived_ms: f64,
    buckets: usize,
    rows: u64,
}

/// Measures.
pub async fn run(options: &PauseOptions) -> Result<PauseReport> {
    let (mut moves, mut all) = (Vec::new(), Vec::new());
    for orders in &options.orders {
        let shop = still::start(options.buckets, *orders, None).await?;
        let seconds = still::add_shard(&shop).await?.as_secs_f64();
        let (batches, pauses) = arrived(&shop).await?;
        moves.push(Moved::new(*orders, seconds, &batches, &pauses)?);
        all.extend(batches);
    }
    let orders: Vec<_> = options.orders.iter().map(ToString::to_string).collect();
    let command =
        format!("cargo xtask bench pause --buckets {} --orders {}", options.buckets, orders.join(","));
    Ok(PauseReport { budget_ms: BUDGET_MS, moves, batches_by_rows: by_rows(&all), command })
}

/// Batches and the pause of each bucket. The shards share this machine's clock.
async fn arrived(shop: &Shop) -> Result<(Vec<Batch>, Vec<f64>)> {
    let databases = shop.databases();
    let newest = shard_names(still::TO).pop().context("there are shards")?;
    let mut admin = databases.get(&newest).context("the new shard has a database")?.connect_admin().await?;
    let sql = "select (extract(epoch from h.asked_at) * 1000)::float8 as asked_ms,
                      array_agg((extract(epoch from o.since) * 1000)::float8) as arrived_ms, sum(h.rows)::bigint as rows
               from longshore.handover h join longshore.ownership o on o.bucket = h.bucket and o.epoch = h.epoch and o.state = 'owned'
               group by h.giver, h.asked_at";
    let (mut batches, mut pauses) = (Vec::new(), Vec::new());
    for row in sqlx::query(sql).fetch_all(&mut admin).await? {
        let (asked_ms, arrived): (f64, Vec<f64>) = (row.try_get("asked_ms")?, row.try_get("arrived_ms")?);
        pauses.extend(arrived.iter().map(|at| at - asked_ms));
        let arrived_ms = arrived.iter().copied().fold(asked_ms, f64::max);
        let rows = row.try_get::<i64, _>("rows")?.unsigned_abs();
        batches.push(Batch { asked_ms, arrived_ms, buckets: arrived.len(), rows });
    }
    Ok((batches, pauses))
}

/// By powers of four: 0, 1, up to 4, 16, 64, …
fn by_rows(all: &[Batch]) -> BTreeMap<u64, Batches> {
    let mut groups: BTreeMap<u64, Vec<Batch>> = BTreeMap::new();
    for batch in all {
        let up_to =
            (0..).map(|power| 4_u64.pow(power)).find(|up_to| batch.rows <= *up_to).unwrap_or(u64::MAX);
        groups.entry(if batch.rows == 0 { 0 } else { up_to }).or_default().push(*batch);
    }
    let summed = |group: &Vec<Batch>| {
        let pauses: Vec<f64> = group.iter().map(|batch| batch.arrived_ms - batch.asked_ms).collect();
        let buckets = group.iter().map(|batch| batch.buckets).sum();
        Batches { batches: group.len(), buckets, pause_ms: Pauses::of(&pauses) }
    };
    groups.iter().map(|(up_to, group)| (*up_to, summed(group))).collect()
}

impl Moved {
    fn new(orders: u64, seconds: f64, batches: &[Batch], pauses: &[f64]) -> Result<Self> {
        ensure!(!batches.is_empty(), "no bucket moved");
        let first = batches.iter().map(|batch| batch.asked_ms).fold(f64::INFINITY, f64::min);
        let last = batches.iter().map(|batch| batch.arrived_ms).fold(0.0, f64::max);
        let hand_over_seconds = (last - first) / 1000.0;
        Ok(Self {
            orders,
            buckets: pauses.len(),
            rows: batches.iter().map(|batch| batch.rows).sum(),
            batches: batches.len(),
            hand_over_seconds,
            buckets_per_second: pauses.len() as f64 / hand_over_seconds,
            pause_ms: Pauses::of(pauses),
            seconds,
        })
    }
}

impl fmt::Display for PauseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for moved in &self.moves {
            let Moved { orders, buckets, rows, batches, buckets_per_second, pause_ms, .. } = moved;
            writeln!(
                f,
                "{orders:8} orders: {buckets} buckets with {rows} rows in {batches} batches, {buckets_per_second:.0} buckets/s; \
                 a bucket's pause p50 {:.1}, p99 {:.1}, longest {:.1} ms",
                pause_ms.p50, pause_ms.p99, pause_ms.max
            )?;
        }
        for (up_to, Batches { batches, buckets, pause_ms }) in &self.batches_by_rows {
            writeln!(
                f,
                "up to {up_to:7} rows: {batches:4} batches, {:5.1} buckets each; a batch's pause p50 {:.1}, p99 {:.1}, longest {:.1} ms",
                *buckets as f64 / *batches as f64,
                pause_ms.p50,
                pause_ms.p99,
                pause_ms.max
            )?;
        }
        write!(f, "the budget is {} ms", self.budget_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_grouped_by_powers_of_four() {
        let batch = |rows| Batch { asked_ms: 10.0, arrived_ms: 10.0 + rows as f64, buckets: 2, rows };
        let groups = by_rows(&[batch(0), batch(1), batch(3), batch(4), batch(5)]);
        let summed: Vec<_> =
            groups.iter().map(|(up_to, group)| (*up_to, group.batches, group.buckets)).collect();
        assert_eq!(summed, [(0, 1, 2), (1, 1, 2), (4, 2, 4), (16, 1, 2)]);
        assert_eq!(groups[&4].pause_ms, Pauses { p50: 3.0, p99: 4.0, max: 4.0 });
    }
}

//! The initial copy of a moving range: by the agent's own stream, and by a plain binary COPY from server to server.
//!
//! Half of all buckets go from one PostgreSQL server to another, which both run on this machine with fsync on. Both ways
//! fill the same empty tables with the same indexes and guards, fire no guard, and mark their rows with an origin.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use checker::{Preload, Store};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use longshore_sharding::{
    BucketCount, BucketRange, Ranges,
    operation::{Epoch, OperationId, StrayKind},
};
use serde::Serialize;
use sqlx::{AssertSqlSafe, Row as _};

use super::{
    Timing,
    shard::{BenchShard, TABLES, run as run_sql},
};
use crate::{
    awaiting::await_condition,
    postgres::{Server, Version},
    progress::Progress,
};

const BUCKETS: u32 = 4_096;
const COPY_DEADLINE: Duration = Duration::from_secs(1_800);
/// Rows come one by one, and would each cost a system call to pass on.
const PIPE_BUFFER_BYTES: usize = 64 * 1024;
const ORIGIN: &str = "bench_pipe";
const FORWARD: &str = "ls_bench_a_b";
const REVERSE: &str = "ls_bench_b_a";

/// What is measured.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// Orders at the source, each with items, an event and an idempotency key; half of them move.
    pub orders: u64,
    /// How often each way is measured.
    pub rounds: usize,
    /// Tables that the plain COPY has under way at a time.
    pub pipes: usize,
    /// Further settings of both servers.
    pub settings: Vec<(String, String)>,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct CopyReport {
    /// Throughput of the subscription relative to the pipe's.
    pub ratio: f64,
    /// From CREATE SUBSCRIPTION, the way back included, until every table follows.
    pub subscription: Timing,
    /// From the first COPY to the last commit.
    pub pipe: Timing,
    /// Rows that moved in one round.
    pub rows: u64,
    /// Bytes that they take in COPY's binary format.
    pub bytes: u64,
    /// How often each way was measured.
    pub rounds: usize,
    /// How to measure again.
    pub command: String,
}

/// Measures.
pub async fn run(options: &CopyOptions) -> Result<CopyReport> {
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    ensure!(options.pipes > 0, "--pipes must be at least 1");
    let bench = Bench::start(options).await?;
    let (mut subscription, mut pipe) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for round in 0..options.rounds {
        // Who comes first takes turns.
        for by_stream in if round % 2 == 0 { [true, false] } else { [false, true] } {
            bench.b.empty().await?;
            run_sql(&mut bench.a.database.connect_admin().await?, "checkpoint").await?;
            let way = if by_stream { "subscription" } else { "pipe" };
            let progress = Progress::of_words(format!("round {} of {}, {way}", round + 1, options.rounds));
            if by_stream {
                subscription.push(bench.subscribe(round).await?);
            } else {
                let (took, piped) = bench.pipe(options.pipes).await?;
                pipe.push(took);
                bytes = piped;
            }
            progress.done();
            let rows = bench.b.rows().await?;
            ensure!(rows == bench.rows, "the {way} brought {rows} of {} rows", bench.rows);
        }
    }
    let (subscription, pipe) = (Timing::new(&subscription), Timing::new(&pipe));
    Ok(CopyReport {
        ratio: pipe.seconds / subscription.seconds,
        subscription,
        pipe,
        rows: bench.rows,
        bytes,
        rounds: options.rounds,
        command: command(options),
    })
}

fn command(options: &CopyOptions) -> String {
    let CopyOptions { orders, rounds, pipes, settings } = options;
    let settings: String =
        settings.iter().map(|(name, value)| format!(" --setting {name}={value}")).collect();
    format!("cargo xtask bench copy --orders {orders} --rounds {rounds} --pipes {pipes}{settings}")
}

/// Two servers, of which the second is to get half of what the first has.
struct Bench {
    a: BenchShard,
    b: BenchShard,
    moving: Ranges,
    /// Rows of the moving buckets.
    rows: u64,
    _servers: [Server; 2],
}

impl Bench {
    async fn start(options: &CopyOptions) -> Result<Self> {
        let progress = Progress::of_words("starting two PostgreSQL servers");
        let settings: Vec<_> = options.settings.iter().map(|(name, value)| (&**name, &**value)).collect();
        let start = || Server::start_with(Version::V17, &settings);
        let servers = [start().await?, start().await?];
        let buckets = BucketCount::new(BUCKETS)?;
        let a = BenchShard::new(&servers[0], "a", buckets).await?;
        let b = BenchShard::new(&servers[1], "b", buckets).await?;
        progress.done();

        let all = [buckets.all()].into_iter().collect();
        a.shard.own(&all, Epoch(1)).await?;
        let progress = Progress::of_words(format!("writing {} orders", options.orders));
        let preload = Preload { orders: options.orders, buckets: BUCKETS, ..Preload::default() };
        preload.fill(&[Store::new("a", a.database.admin_url())]).await?;
        run_sql(&mut a.database.connect_admin().await?, "vacuum analyze").await?;
        progress.done();
        let last = u16::try_from(BUCKETS / 2 - 1).context("at most 65536 buckets")?;
        let moving = BucketRange::new(0, last).into_iter().collect();
        let mut bench = Self { a, b, moving, rows: 0, _servers: servers };
        bench.rows = bench.moving_rows().await?;
        ensure!(bench.rows > 0, "no rows to move: --orders is too small");
        Ok(bench)
    }

    fn filter(&self) -> String {
        let last = self.moving.as_slice().last().map_or(0, |range| range.last.get());
        format!("(hashint8extended(user_id, 0) & {}) between 0 and {last}", BUCKETS - 1)
    }

    async fn moving_rows(&self) -> Result<u64> {
        let filter = self.filter();
        let counts = TABLES.map(|table| format!("(select count(*) from {table} where {filter})")).join(" + ");
        let mut admin = self.a.database.connect_admin().await?;
        let row = sqlx::query(AssertSqlSafe(format!("select {counts}"))).fetch_one(&mut admin).await?;
        Ok(row.try_get::<i64, _>(0)?.unsigned_abs())
    }

    /// As an operation does it: the way back is there from the start, and decodes all that is copied.
    async fn subscribe(&self, round: usize) -> Result<Duration> {
        let operation = OperationId(i64::try_from(round)? + 1);
        let (a, b) = (&self.a.shard, &self.b.shard);
        let ways = [(FORWARD, a, b), (REVERSE, b, a)];
        for (name, source, destination) in ways {
            source.publish(name, operation, &destination.name, &self.moving).await?;
        }
        for (name, source, _) in ways {
            source.create_slot(name).await?;
        }
        let started = Instant::now();
        for (name, source, destination) in ways {
            destination.subscribe(name, &source.connection, name == FORWARD).await?;
        }
        let took = await_condition("every table to follow", COPY_DEADLINE, async || {
            let view = b.observe(None, &Ranges::default()).await.ok()?;
            (view.subscriptions.get(FORWARD) == Some(&true)).then(|| started.elapsed())
        })
        .await?;
        for (name, source, destination) in ways {
            destination.drop_stream_object(StrayKind::Subscription, name).await?;
            source.drop_stream_object(StrayKind::Slot, name).await?;
            source.drop_stream_object(StrayKind::Publication, name).await?;
        }
        Ok(took)
    }

    /// Returns how long it took, and how many bytes went through.
    async fn pipe(&self, pipes: usize) -> Result<(Duration, u64)> {
        let started = Instant::now();
        let tables = stream::iter(TABLES).enumerate().map(|(at, table)| self.pipe_table(at, table));
        let bytes = tables.buffer_unordered(pipes).try_fold(0, async |sum, bytes| Ok(sum + bytes)).await?;
        Ok((started.elapsed(), bytes))
    }

    async fn pipe_table(&self, at: usize, table: &str) -> Result<u64> {
        let mut source = self.a.database.connect_admin().await?;
        let mut destination = self.b.database.connect_admin().await?;
        let origin = format!("{ORIGIN}_{at}");
        let prepare = format!(
            "set session_replication_role = replica;
             select pg_replication_origin_create('{origin}') where pg_replication_origin_oid('{origin}') is null;
             select pg_replication_origin_session_setup('{origin}')"
        );
        run_sql(&mut destination, &prepare).await?;
        let select =
            format!("copy (select * from {table} where {}) to stdout (format binary)", self.filter());
        let mut rows = source.copy_out_raw(&select).await?;
        let insert = format!("copy {table} from stdin (format binary)");
        let mut copy = destination.copy_in_raw(&insert).await?;
        let (mut bytes, mut buffer) = (0, Vec::new());
        while let Some(row) = rows.try_next().await? {
            bytes += row.len() as u64;
            buffer.extend_from_slice(&row);
            if buffer.len() >= PIPE_BUFFER_BYTES {
                copy.send(buffer.as_slice()).await?;
                buffer.clear();
            }
        }
        copy.send(buffer.as_slice()).await?;
        copy.finish().await?;
        Ok(bytes)
    }
}

impl fmt::Display for CopyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.bytes as f64 / 1e6;
        writeln!(f, "{} rows, {megabytes:.1} MB, {} rounds (medians)", self.rows, self.rounds)?;
        for (way, timing) in [("subscription", &self.subscription), ("pipe", &self.pipe)] {
            let speed = self.rows as f64 / timing.seconds;
            let each: Vec<_> = timing.each.iter().map(|seconds| format!("{seconds:.2}")).collect();
            writeln!(f, "{way:13} {:6.2} s  {speed:8.0} rows/s  ({})", timing.seconds, each.join(" "))?;
        }
        write!(f, "ratio         {:6.2}", self.ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_says_how_to_measure_again() {
        let setting = ("shared_buffers".to_owned(), "1GB".to_owned());
        let options = CopyOptions { orders: 7, rounds: 5, pipes: 2, settings: vec![setting] };
        let expected = "cargo xtask bench copy --orders 7 --rounds 5 --pipes 2 --setting shared_buffers=1GB";
        assert_eq!(command(&options), expected);
    }
}

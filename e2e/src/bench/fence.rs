//! What the fence costs a shard's server: the order service's own transaction, with and without `enter` and the guards.
//!
//! Databases on one server, fsync on, take turns. Without the fence a database has the same tables and indexes, no triggers,
//! and its transactions enter nothing; a third one lacks the bucket indexes too, which the fence does not read but the moving
//! of buckets needs. What counts is the processor time of all the server's processes for a transaction.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use checker::{Preload, Store};
use longshore_sharding::{BucketCount, operation::Epoch};
use serde::Serialize;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, types::Json};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{
    median,
    shard::{BenchShard, TABLES, run as run_sql},
};
use crate::{
    postgres::{Role, Server, Version},
    progress::Progress,
};

const BUCKETS: u32 = 4_096;
/// Enough that each is in a bucket of its own, or nearly; and as many in one bucket.
const USERS: i64 = 2_000;
/// Nothing but the transactions may use the processor.
const SETTINGS: [(&str, &str); 3] =
    [("autovacuum", "off"), ("checkpoint_timeout", "1h"), ("max_wal_size", "8GB")];
/// There from the start: of empty tables the server would remember plans that read all of them.
const PRELOADED: u64 = 20_000;
const PLACE: &str = include_str!("fence/place.sql");

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct FenceOptions {
    /// How often each is measured.
    pub rounds: usize,
    /// Transactions of each client in one round.
    pub transactions: u32,
    /// Connections that write at the same time.
    pub clients: usize,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct FenceReport {
    /// Processor time for a transaction with the fence, above that without: the median of all rounds' ratios.
    pub overhead_percent: ByUsers<f64>,
    /// As above, but against tables without the bucket indexes.
    pub overhead_with_indexes_percent: ByUsers<f64>,
    /// Processor time of the server for a transaction: medians.
    pub cpu_micros: ByUsers<BTreeMap<Side, f64>>,
    /// Medians.
    pub transactions_per_second: ByUsers<BTreeMap<Side, f64>>,
    /// Each round's processor time, in their order.
    pub each_cpu_micros: ByUsers<BTreeMap<Side, Vec<f64>>>,
    pub rounds: usize,
    pub transactions: u32,
    pub clients: usize,
    /// How to measure again.
    pub command: String,
}

/// Whose orders are placed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ByUsers<T> {
    /// Of users of all buckets alike.
    pub uniform: T,
    /// Of users of one bucket.
    pub one_bucket: T,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// As a shard is.
    Fenced,
    /// No guards; nothing is entered.
    Unfenced,
    /// Neither guards nor bucket indexes.
    Bare,
}

impl Side {
    const ALL: [Self; 3] = [Self::Fenced, Self::Unfenced, Self::Bare];
}

/// One round of one side.
#[derive(Clone, Copy, Debug)]
struct Sample {
    cpu_micros: f64,
    per_second: f64,
}

/// A user and its bucket.
type User = (i64, i32);

/// Measures.
pub async fn run(options: &FenceOptions) -> Result<FenceReport> {
    ensure!(options.rounds > 0 && options.transactions > 0 && options.clients > 0, "nothing to measure");
    let bench = Bench::start(options).await?;
    let uniform = bench.measure("uniform", &bench.users(None).await?).await?;
    let one_bucket = bench.measure("one bucket", &bench.users(Some(0)).await?).await?;
    let both = |of: &dyn Fn(&Measured) -> f64| ByUsers { uniform: of(&uniform), one_bucket: of(&one_bucket) };
    let by_side = |of: &dyn Fn(&Sample) -> f64| ByUsers {
        uniform: uniform.medians(of),
        one_bucket: one_bucket.medians(of),
    };
    Ok(FenceReport {
        overhead_percent: both(&|measured| measured.overhead_percent(Side::Unfenced)),
        overhead_with_indexes_percent: both(&|measured| measured.overhead_percent(Side::Bare)),
        cpu_micros: by_side(&|sample| sample.cpu_micros),
        transactions_per_second: by_side(&|sample| sample.per_second),
        each_cpu_micros: ByUsers { uniform: uniform.each(), one_bucket: one_bucket.each() },
        rounds: options.rounds,
        transactions: options.transactions,
        clients: options.clients,
        command: command(options),
    })
}

fn command(FenceOptions { rounds, transactions, clients }: &FenceOptions) -> String {
    format!("cargo xtask bench fence --rounds {rounds} --transactions {transactions} --clients {clients}")
}

/// All rounds, by side.
#[derive(Debug, Default)]
struct Measured(BTreeMap<Side, Vec<Sample>>);

impl Measured {
    fn of(&self, side: Side) -> &[Sample] {
        self.0.get(&side).map_or(&[], Vec::as_slice)
    }

    /// Of each round the ratio, since a busy machine is busy for both.
    fn overhead_percent(&self, against: Side) -> f64 {
        let pairs = self.of(Side::Fenced).iter().zip(self.of(against));
        let each: Vec<f64> =
            pairs.map(|(fenced, other)| 100.0 * (fenced.cpu_micros / other.cpu_micros - 1.0)).collect();
        median(&each)
    }

    fn medians(&self, of: &dyn Fn(&Sample) -> f64) -> BTreeMap<Side, f64> {
        let each = |(side, samples): (&Side, &Vec<Sample>)| {
            (*side, median(&samples.iter().map(of).collect::<Vec<_>>()))
        };
        self.0.iter().map(each).collect()
    }

    fn each(&self) -> BTreeMap<Side, Vec<f64>> {
        let micros = |samples: &Vec<Sample>| samples.iter().map(|sample| sample.cpu_micros).collect();
        self.0.iter().map(|(side, samples)| (*side, micros(samples))).collect()
    }
}

struct Bench {
    options: FenceOptions,
    server: Server,
    sides: BTreeMap<Side, BenchShard>,
}

impl Bench {
    async fn start(options: &FenceOptions) -> Result<Self> {
        let progress = Progress::of_words("starting a PostgreSQL server with three databases");
        let server = Server::start_with(Version::V17, &SETTINGS).await?;
        let buckets = BucketCount::new(BUCKETS)?;
        let mut sides = BTreeMap::new();
        for side in Side::ALL {
            let shard = BenchShard::new(&server, "a", buckets).await?;
            shard.shard.own(&[buckets.all()].into_iter().collect(), Epoch(1)).await?;
            let preload = Preload { orders: PRELOADED, buckets: BUCKETS, ..Preload::default() };
            preload.fill(&[Store::new("a", shard.database.admin_url())]).await?;
            let mut admin = shard.database.connect_admin().await?;
            run_sql(&mut admin, "vacuum analyze").await?;
            if side != Side::Fenced {
                drop_all(&mut admin, "trigger", TRIGGERS).await?;
            }
            if side == Side::Bare {
                drop_all(&mut admin, "index", INDEXES).await?;
            }
            sides.insert(side, shard);
        }
        progress.done();
        Ok(Self { options: *options, server, sides })
    }

    /// Users with their buckets: of this bucket, or of all.
    async fn users(&self, bucket: Option<i32>) -> Result<Vec<User>> {
        let shard = self.sides.values().next().context("there are databases")?;
        let sql = "select user_id, (hashint8extended(user_id, 0) & $1)::integer as bucket
                   from generate_series(1, case when $2::integer is null then $3 else 2 * $3 * $1 end) as user_id
                   where $2 is null or (hashint8extended(user_id, 0) & $1)::integer = $2
                   limit $3";
        let mut admin = shard.database.connect_admin().await?;
        let mask = i64::from(BUCKETS - 1);
        let rows = sqlx::query(sql).bind(mask).bind(bucket).bind(USERS).fetch_all(&mut admin).await?;
        rows.iter().map(|row| Ok((row.try_get("user_id")?, row.try_get("bucket")?))).collect()
    }

    /// One round more than asked for: the first fills caches.
    async fn measure(&self, title: &str, users: &[User]) -> Result<Measured> {
        let mut clients = BTreeMap::new();
        for (side, shard) in &self.sides {
            let mut sessions = Vec::new();
            for _ in 0..self.options.clients {
                sessions.push(shard.database.connect(Role::Service).await?);
            }
            clients.insert(*side, sessions);
        }
        let mut measured = Measured::default();
        for round in 0..=self.options.rounds {
            let progress = Progress::of_words(format!("{title}, round {round} of {}", self.options.rounds));
            // Who comes first takes turns.
            let mut order = Side::ALL;
            order.rotate_left(round % Side::ALL.len());
            for side in order {
                let sessions = clients.remove(&side).context("each side has sessions")?;
                let (sample, sessions) = self.round(side, sessions, users).await?;
                clients.insert(side, sessions);
                if round > 0 {
                    measured.0.entry(side).or_default().push(sample);
                }
            }
            progress.done();
        }
        Ok(measured)
    }

    async fn round(
        &self,
        side: Side,
        sessions: Vec<PgConnection>,
        users: &[User],
    ) -> Result<(Sample, Vec<PgConnection>)> {
        let shard = self.sides.get(&side).context("each side has a database")?;
        run_sql(&mut shard.database.connect_admin().await?, "checkpoint").await?;
        let (cpu, started) = (self.server.cpu()?, Instant::now());
        let mut clients = JoinSet::new();
        let transactions = self.options.transactions;
        for (number, session) in sessions.into_iter().enumerate() {
            let mut own = users.to_vec();
            let start = number * own.len() / self.options.clients;
            own.rotate_left(start);
            clients.spawn(place_all(session, own, transactions, side == Side::Fenced));
        }
        let mut sessions = Vec::new();
        while let Some(client) = clients.join_next().await {
            sessions.push(client??);
        }
        let (cpu, took) = (self.server.cpu()? - cpu, started.elapsed());
        let count = f64::from(transactions) * self.options.clients as f64;
        let per = |time: Duration| time.as_secs_f64() / count;
        Ok((Sample { cpu_micros: 1e6 * per(cpu), per_second: 1.0 / per(took) }, sessions))
    }
}

const TRIGGERS: &str =
    "select format('%I on %s', tgname, tgrelid::regclass) from pg_trigger where tgname like 'longshore\\_%'";
const INDEXES: &str = "select indexrelid::regclass::text from pg_index where indexprs is not null";

async fn drop_all(admin: &mut PgConnection, kind: &str, names: &'static str) -> Result<()> {
    let rows = sqlx::query(names).fetch_all(&mut *admin).await?;
    ensure!(rows.len() >= TABLES.len(), "each table should have a {kind} to drop");
    for row in rows {
        run_sql(admin, &format!("drop {kind} {}", row.try_get::<String, _>(0)?)).await?;
    }
    Ok(())
}

/// So many orders, one after the other.
async fn place_all(
    mut session: PgConnection,
    users: Vec<User>,
    transactions: u32,
    fenced: bool,
) -> Result<PgConnection> {
    for (_, user) in (0..transactions).zip(users.iter().cycle()) {
        place(&mut session, *user, fenced).await?;
    }
    Ok(session)
}

/// The round trips of the order service.
async fn place(session: &mut PgConnection, (user_id, bucket): User, fenced: bool) -> Result<()> {
    let mut begin = "begin isolation level read committed; set local statement_timeout = 5000".to_owned();
    if fenced {
        begin += &format!("; select longshore.enter({bucket})");
    }
    let items = json!([{"sku": "A-1", "quantity": 2, "price_cents": 300}, {"sku": "A-2", "quantity": 1, "price_cents": 50}]);
    let mut tx = session.begin_with(AssertSqlSafe(begin)).await?;
    sqlx::query(PLACE)
        .bind(user_id)
        .bind(Uuid::new_v4().simple().to_string())
        .bind([7_u8; 32].as_slice())
        .bind(Uuid::new_v4())
        .bind(650_i64)
        .bind(["A-1", "A-2"].as_slice())
        .bind([2_i32, 1].as_slice())
        .bind([300_i64, 50].as_slice())
        .bind(Json(json!({"total_cents": 650, "items": items})))
        .fetch_one(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

impl fmt::Display for FenceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} rounds (medians), {} clients, {} transactions each",
            self.rounds, self.clients, self.transactions
        )?;
        let users = [
            ("uniform", &self.cpu_micros.uniform, &self.transactions_per_second.uniform),
            ("one bucket", &self.cpu_micros.one_bucket, &self.transactions_per_second.one_bucket),
        ];
        for (users, cpu, per_second) in users {
            for (side, micros) in cpu {
                let per_second = per_second.get(side).copied().unwrap_or(f64::NAN);
                let side = format!("{side:?}");
                writeln!(
                    f,
                    "{users:11} {side:9} {micros:7.1} µs of processor a transaction, {per_second:6.0} a second"
                )?;
            }
        }
        let (fence, indexes) = (&self.overhead_percent, &self.overhead_with_indexes_percent);
        writeln!(
            f,
            "the fence           uniform {:+.1} %, one bucket {:+.1} %",
            fence.uniform, fence.one_bucket
        )?;
        write!(
            f,
            "and bucket indexes  uniform {:+.1} %, one bucket {:+.1} %",
            indexes.uniform, indexes.one_bucket
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings;

    /// What is measured must be what the service does.
    #[test]
    fn the_transaction_is_that_of_the_order_service() {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let store = settings::repository().join("services/order/src/store.rs");
        let store = words(&std::fs::read_to_string(store).unwrap().replace("\\\"", "\""));
        assert!(store.contains(&words(PLACE)), "{PLACE}");
    }

    #[test]
    fn overhead_is_the_median_of_the_rounds_ratios() {
        let samples = |each: [f64; 3]| each.map(|cpu_micros| Sample { cpu_micros, per_second: 1.0 }).to_vec();
        let sides =
            [(Side::Fenced, samples([110.0, 240.0, 90.0])), (Side::Unfenced, samples([100.0, 200.0, 90.0]))];
        let measured = Measured(sides.into_iter().collect());
        assert!((measured.overhead_percent(Side::Unfenced) - 10.0).abs() < 1e-9);
    }
}

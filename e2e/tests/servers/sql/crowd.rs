//! A crowd on one bucket, and transactions that last: nobody waits longer than a handover is given.
//!
//! `cargo test -p e2e --test servers sql::crowd -- --nocapture` prints what was measured.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use e2e::{awaiting::await_condition, postgres::Version};
use futures::future::try_join_all;
use longshore_operator::shard::StoreError;
use longshore_sharding::{BucketId, operation::OperationId};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::shards::{
    DEADLINE, Pair, buckets, insert_order, ranges, run, sqlstate, store_sqlstate, user_in, value,
};

on_each_version!(
    a_crowd_lets_a_handover_through_or_sends_it_away_in_time,
    a_long_transaction_delays_its_own_handover_alone,
);

const OPERATION: OperationId = OperationId(1);
/// What the operator gives a handover (HAND_OVER_TIMEOUT_MS there).
const TIMEOUT: Duration = Duration::from_millis(200);
/// What a busy machine may add to any wait. Whoever is not let go at all waits far longer, or for ever.
const NOISE: Duration = Duration::from_secs(5);
/// A handover that has not had its turn in so many tries never will.
const TRIES_MAX: usize = 100;

/// Writers that come back at once, each with a session of its own, and what they met.
#[derive(Default)]
struct Crowd {
    /// How long each of them waited at the gate, each time.
    waits: Mutex<Vec<Duration>>,
    written: Vec<AtomicUsize>,
    over: AtomicBool,
}

impl Crowd {
    fn of(writers: usize) -> Self {
        Self { written: (0..writers).map(|_| AtomicUsize::new(0)).collect(), ..Self::default() }
    }

    /// Writes to the bucket, `hold` at a time, until told to end or the bucket moves.
    async fn write(&self, pair: &Pair, number: usize, bucket: u16, hold: Duration) -> Result<()> {
        let mut session = pair.a.service().await?;
        // A little more or less than the others: they must not march in step.
        let work = format!("select pg_sleep({})", hold.as_secs_f64() * (0.8 + 0.03 * number as f64));
        for at in 0_u128.. {
            let asked = Instant::now();
            let begun = run(&mut session, &format!("begin; select longshore.enter({bucket})")).await;
            self.waits.lock().expect("no writer panicked").push(asked.elapsed());
            if begun.is_err() {
                assert_eq!(sqlstate(&begun), "LS001", "nothing but the move ends a writer");
                return Ok(());
            }
            run(&mut session, &work).await?;
            let order = Uuid::from_u128(u128::try_from(number)? << 64 | at);
            run(&mut session, &format!("{}; commit", insert_order(user_in(bucket), order))).await?;
            self.written[number].fetch_add(1, Ordering::Relaxed);
            if self.over.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn counts(&self) -> Vec<usize> {
        self.written.iter().map(|written| written.load(Ordering::Relaxed)).collect()
    }

    /// Returns when each writer has written once more.
    async fn await_writes(&self) -> Result<()> {
        let before = self.counts();
        await_condition("every writer to get on", DEADLINE, async || {
            self.counts().iter().zip(&before).all(|(now, before)| now > before).then_some(())
        })
        .await
    }

    fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// All waits, the shortest first.
    fn waits(&self) -> Vec<Duration> {
        let mut waits = self.waits.lock().expect("no writer panicked").clone();
        waits.sort_unstable();
        waits
    }
}

/// One try, as the operator makes it; says whether the buckets went, and how long it took.
async fn try_once(pair: &Pair, batch: &[BucketId]) -> Result<(bool, Duration)> {
    let timeout_ms = u64::try_from(TIMEOUT.as_millis())?;
    let started = Instant::now();
    let giving = pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, batch, timeout_ms);
    let given = tokio::time::timeout(TIMEOUT + NOISE, giving).await.context("a handover took too long")?;
    Ok((went(given)?, started.elapsed()))
}

fn went(given: Result<(), StoreError>) -> Result<bool> {
    match store_sqlstate(&given).as_str() {
        "57014" => Ok(false),
        _ => Ok(given.map(|()| true)?),
    }
}

fn median(sorted: &[Duration]) -> Result<Duration> {
    sorted.get(sorted.len() / 2).copied().context("nothing was measured")
}

async fn a_crowd_lets_a_handover_through_or_sends_it_away_in_time(version: Version) -> Result<()> {
    const BUCKETS_EACH: u16 = 5;
    let pair = Pair::new(version).await?;
    pair.announce(OPERATION, &ranges(0, 2 * BUCKETS_EACH - 1)).await?;
    for (at, (writers, hold_ms)) in [(16, 30), (8, 90)].into_iter().enumerate() {
        let hold = Duration::from_millis(hold_ms);
        let (mut handovers, mut waits, mut tried) = (Vec::new(), Vec::new(), 0);
        for bucket in (0..BUCKETS_EACH).map(|bucket| bucket + BUCKETS_EACH * u16::from(at > 0)) {
            let crowd = Crowd::of(writers);
            let tries = hand_crowded_bucket_over(&pair, &crowd, bucket, hold).await?;
            tried += tries.len();
            handovers.extend(tries.last());
            waits.extend(crowd.waits());
        }
        handovers.sort_unstable();
        waits.sort_unstable();
        let longest = waits.last().copied().unwrap_or_default();
        println!(
            "PostgreSQL {version:?}, {writers} writers of {hold_ms} ms: {BUCKETS_EACH} handovers in {tried} tries, \
             median {:.1?}; {} entries, median {:.1?}, longest {longest:.1?}",
            median(&handovers)?,
            waits.len(),
            median(&waits)?,
        );
        assert!(longest < TIMEOUT + NOISE, "a writer waited {longest:?}");
    }
    Ok(())
}

/// How long each try took; the last one succeeded.
async fn hand_crowded_bucket_over(
    pair: &Pair,
    crowd: &Crowd,
    bucket: u16,
    hold: Duration,
) -> Result<Vec<Duration>> {
    let trying = async {
        let mut tries = Vec::new();
        crowd.await_writes().await?;
        while tries.len() < TRIES_MAX {
            // Tries must not keep the writers out, however many they are.
            crowd.await_writes().await?;
            let (went, took) = try_once(pair, &buckets(bucket, bucket)).await?;
            tries.push(took);
            if went {
                break;
            }
        }
        crowd.end();
        anyhow::Ok(tries)
    };
    let writers = 0..crowd.written.len();
    let writing = try_join_all(writers.map(|number| crowd.write(pair, number, bucket, hold)));
    let (tries, _) = tokio::try_join!(trying, writing)?;
    assert_eq!(pair.a.ownership(bucket).await?.0, "moved", "after {} tries", tries.len());
    let mut admin = pair.a.database.connect_admin().await?;
    let text = format!("select rows from longshore.handover where bucket = {bucket}");
    let rows: i64 = value(&mut admin, &text).await?;
    assert_eq!(usize::try_from(rows)?, crowd.counts().iter().sum::<usize>(), "every commit is in the digest");
    Ok(tries)
}

/// Returns when a handover stands at a gate.
async fn await_handover_waiting(admin: &mut PgConnection) -> Result<()> {
    let text =
        "select exists (select from pg_locks where locktype = 'advisory' and classid = 19539 and not granted
                        and database = (select oid from pg_database where datname = current_database()))";
    await_condition("the handover to wait", DEADLINE, async || {
        value(admin, text).await.ok().filter(|waits: &bool| *waits)
    })
    .await
    .map(drop)
}

async fn a_long_transaction_delays_its_own_handover_alone(version: Version) -> Result<()> {
    /// Of a batch, and of no batch. The gate of the first is held while the second's is awaited.
    const FIRST: u16 = 2;
    const LONG: u16 = 3;
    const OTHER: u16 = 40;
    const TRIES: usize = 5;
    let pair = Pair::new(version).await?;
    pair.announce(OPERATION, &ranges(FIRST, LONG)).await?;
    let batch = buckets(FIRST, LONG);
    let mut admin = pair.a.database.connect_admin().await?;
    let mut long = pair.a.service().await?;
    let begin =
        format!("begin; select longshore.enter({LONG}); {}", insert_order(user_in(LONG), Uuid::nil()));
    run(&mut long, &begin).await?;
    let before = pair.a.memory().await?;

    // However long a handover waits, a bucket of no batch is not concerned, nor is the one who keeps it waiting.
    let waiting = async { Ok(pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &batch, 600_000).await) };
    let meanwhile = async {
        await_handover_waiting(&mut admin).await?;
        let mut other = pair.a.service().await?;
        for number in 0..3 {
            run(&mut other, &insert_order(user_in(OTHER), Uuid::from_u128(1 << 100 | number))).await?;
        }
        run(&mut long, &format!("select longshore.enter({LONG})")).await?;
        await_handover_waiting(&mut admin).await?;
        let cancel = "select pg_cancel_backend(pid) from pg_locks where locktype = 'advisory' and classid = 19539 and not granted
                      and database = (select oid from pg_database where datname = current_database())";
        run(&mut admin, cancel).await?;
        anyhow::Ok(())
    };
    let (given, ()) = tokio::try_join!(waiting, meanwhile)?;
    assert!(!went(given)?);

    let crowd = Crowd::of(3);
    let writers = [FIRST, LONG, OTHER].into_iter().enumerate();
    let hold = Duration::from_millis(5);
    let writing = try_join_all(writers.map(|(number, bucket)| crowd.write(&pair, number, bucket, hold)));
    let trying = async {
        crowd.await_writes().await?;
        let mut tries = Vec::new();
        for _ in 0..TRIES {
            let (went, took) = try_once(&pair, &batch).await?;
            assert!(!went, "the transaction is open");
            assert_eq!(pair.a.memory().await?, before, "nothing of the batch went");
            tries.push(took);
            // All writers get on while the long transaction stays.
            crowd.await_writes().await?;
        }
        tries.sort_unstable();
        let waits = crowd.waits();
        run(&mut long, "commit").await?;
        for tried in 1..=TRIES_MAX {
            if try_once(&pair, &batch).await?.0 {
                crowd.end();
                return anyhow::Ok((tries, waits, tried));
            }
        }
        anyhow::bail!("the handover never came back")
    };
    let ((tries, waits, tried), _) = tokio::try_join!(trying, writing)?;
    let longest = waits.last().copied().unwrap_or_default();
    println!(
        "PostgreSQL {version:?}, beside a long transaction: gave up {TRIES} times, median {:.1?}; \
         {} entries, median {:.1?}, longest {longest:.1?}; handed over at try {tried} after its end",
        median(&tries)?,
        waits.len(),
        median(&waits)?,
    );
    assert!(longest < TIMEOUT + NOISE, "a writer waited {longest:?}");
    for bucket in [FIRST, LONG] {
        assert_eq!(pair.a.ownership(bucket).await?.0, "moved");
    }
    let rows: Vec<i64> =
        value(&mut admin, "select array_agg(rows order by bucket) from longshore.handover").await?;
    let counts = crowd.counts();
    assert_eq!(rows, [counts[0], counts[1] + 1].map(|rows| i64::try_from(rows).expect("few")));
    assert_eq!(pair.a.ownership(OTHER).await?.0, "owned");
    Ok(())
}

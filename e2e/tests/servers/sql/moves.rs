//! A whole move by the store's methods: there and back under writers that never stop, and the clean-up after one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use e2e::{
    awaiting::await_condition,
    postgres::{Role, Version},
};
use futures::future::try_join_all;
use longshore_operator::shard::Arrival;
use longshore_sharding::{
    BucketId, Ranges,
    operation::{Epoch, OperationId},
};
use sqlx::{PgConnection, Row as _, postgres::PgListener};
use uuid::Uuid;

use crate::shards::{
    DEADLINE, Pair, Side, bucket_of, buckets, insert_order, ranges, run, sqlstate, store_sqlstate, user_in,
    users_in, value,
};

on_each_version!(
    there_and_back_under_writers,
    clearing_takes_leftovers_alone_and_in_portions,
    deletes_at_the_old_owner_stay_there,
);

const OPERATION: OperationId = OperationId(1);
const LAST_MOVING: u16 = 31;
/// Buckets of one handover.
const BATCH: usize = 4;
/// Writes that are made, at least, between two batches.
const WRITES: usize = 24;

/// What writers and mover tell each other.
#[derive(Default)]
struct Course {
    written: AtomicUsize,
    over: AtomicBool,
}

/// A client with a small router of its own, and what the shards must hold of its users.
struct Writer {
    sessions: [PgConnection; 2],
    /// Where a bucket was last found: 0 is a, 1 is b.
    at: HashMap<u16, usize>,
    redirected: usize,
    number: u64,
    versions: BTreeMap<(i64, Uuid), i32>,
    keys: BTreeSet<(i64, Uuid)>,
}

impl Writer {
    async fn new(pair: &Pair, number: u64) -> Result<Self> {
        Ok(Self {
            sessions: [pair.a.service().await?, pair.b.service().await?],
            at: HashMap::new(),
            redirected: 0,
            number,
            versions: BTreeMap::new(),
            keys: BTreeSet::new(),
        })
    }

    async fn work(mut self, users: Vec<i64>, course: &Course) -> Result<Self> {
        for at in 0_u64.. {
            if course.over.load(Ordering::Relaxed) {
                break;
            }
            let user = users[usize::try_from(at)? % users.len()];
            let order = Uuid::from_u64_pair(self.number << 32 | at, 0x8000_0000_0000_0000);
            self.place(user, order).await?;
            if at % 3 == 1 {
                self.bump(user).await?;
            }
            if at % 5 == 2 {
                self.forget_key(user).await?;
            }
            course.written.fetch_add(1, Ordering::Relaxed);
        }
        Ok(self)
    }

    async fn place(&mut self, user: i64, order: Uuid) -> Result<()> {
        let statements = format!(
            "{}; insert into order_items values ({user}, '{order}', 1, 'A-1', 1, 0), ({user}, '{order}', 2, 'A-2', 2, 5);
             insert into order_events values ({user}, '{order}', 1, 'created', '{{\"a\": 1.50}}', now());
             insert into idempotency_keys values ({user}, '{order}', '\\xff00', '{order}', now())",
            insert_order(user, order)
        );
        self.write(user, &statements).await?;
        self.versions.insert((user, order), 1);
        self.keys.insert((user, order));
        self.expect_read(user, order, 1).await
    }

    /// A new version of the user's oldest order: a row that has most likely been copied.
    async fn bump(&mut self, user: i64) -> Result<()> {
        let oldest = self.versions.range_mut((user, Uuid::nil())..=(user, Uuid::max())).next();
        let Some(((_, order), version)) = oldest else { return Ok(()) };
        *version += 1;
        let (order, version) = (*order, *version);
        let statements = format!(
            "update orders set version = {version} where user_id = {user} and order_id = '{order}';
             insert into order_events values ({user}, '{order}', {version}, 'cancelled', '{{}}', now())"
        );
        self.write(user, &statements).await?;
        self.expect_read(user, order, version).await
    }

    async fn forget_key(&mut self, user: i64) -> Result<()> {
        let Some(key) = self.keys.range((user, Uuid::nil())..=(user, Uuid::max())).next().copied() else {
            return Ok(());
        };
        self.keys.remove(&key);
        let text = format!("delete from idempotency_keys where user_id = {user} and key = '{}'", key.1);
        self.write(user, &text).await
    }

    async fn write(&mut self, user: i64, statements: &str) -> Result<()> {
        let text = format!("begin; select longshore.enter({}); {statements}; commit", bucket_of(user));
        self.routed(user, async |session| Ok(run(session, &text).await.map(drop))).await
    }

    /// What was acknowledged is read, wherever it is.
    async fn expect_read(&mut self, user: i64, order: Uuid, version: i32) -> Result<()> {
        let bucket = bucket_of(user);
        let text = format!(
            "with guard as materialized (select longshore.owned({bucket}, longshore.seen({bucket})) as ok)
             select o.version from guard left join orders o on o.user_id = {user} and o.order_id = '{order}'"
        );
        let found = self.routed(user, async |session| Ok(value::<Option<i32>>(session, &text).await)).await?;
        ensure!(found == Some(version), "read {found:?} of {order}, which is in version {version}");
        Ok(())
    }

    /// Does it at the bucket's owner, wherever that is.
    async fn routed<T>(
        &mut self,
        user: i64,
        attempt: impl AsyncFn(&mut PgConnection) -> Result<Result<T, sqlx::Error>>,
    ) -> Result<T> {
        let (bucket, started) = (bucket_of(user), Instant::now());
        while started.elapsed() < Duration::from_secs(20) {
            let side = *self.at.entry(bucket).or_insert(0);
            let session = &mut self.sessions[side];
            let done = attempt(session).await?;
            match sqlstate(&done).as_str() {
                "ok" => return Ok(done?),
                "LS001" => {
                    self.at.insert(bucket, 1 - side);
                    self.redirected += 1;
                }
                "LS002" => {}
                other => bail!("bucket {bucket} at {}: {other}", ["a", "b"][side]),
            }
            run(session, "rollback").await?;
        }
        bail!("bucket {bucket} has had no owner for 20 s")
    }

    /// Compares every row of the writer's users at `side` with what was acknowledged.
    async fn verify(&self, side: &Side) -> Result<()> {
        let mut admin = side.database.connect_admin().await?;
        let users: BTreeSet<i64> = self.versions.keys().map(|(user, _)| *user).collect();
        let users: Vec<i64> = users.into_iter().collect();
        let rows = sqlx::query(
            "select o.user_id, o.order_id, o.version,
                    (select count(*) from order_items i where i.user_id = o.user_id and i.order_id = o.order_id),
                    (select count(*) from order_events e where e.user_id = o.user_id and e.order_id = o.order_id)
             from orders o where user_id = any ($1)",
        )
        .bind(&users)
        .fetch_all(&mut admin)
        .await?;
        let mut found = BTreeMap::new();
        for row in rows {
            let (user, order): (i64, Uuid) = (row.try_get(0)?, row.try_get(1)?);
            let version: i32 = row.try_get(2)?;
            assert_eq!(row.try_get::<i64, _>(3)?, 2, "items of {order}");
            assert_eq!(row.try_get::<i64, _>(4)?, i64::from(version), "events of {order}");
            found.insert((user, order), version);
        }
        assert!(
            found == self.versions,
            "orders differ: {} stored, {} acknowledged",
            found.len(),
            self.versions.len()
        );
        let rows = sqlx::query("select user_id, order_id from idempotency_keys where user_id = any ($1)")
            .bind(&users)
            .fetch_all(&mut admin)
            .await?;
        let found: BTreeSet<(i64, Uuid)> = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<_, sqlx::Error>>()?;
        assert!(found == self.keys, "keys differ: {} stored, {} expected", found.len(), self.keys.len());
        Ok(())
    }
}

/// Hands all moving buckets over, batch by batch, and awaits each.
async fn hand_all_over(from: &Side, to: &Side, course: &Course) -> Result<()> {
    let moving: Vec<BucketId> = buckets(0, LAST_MOVING);
    for batch in moving.chunks(BATCH) {
        let before = course.written.load(Ordering::Relaxed);
        await_condition("some writes", DEADLINE, async || {
            (course.written.load(Ordering::Relaxed) >= before + WRITES).then_some(())
        })
        .await?;
        await_condition("writers to let a batch through", DEADLINE, async || {
            let given = from.shard.hand_over(OPERATION, &to.shard.name, batch, 1_000).await;
            (store_sqlstate(&given) != "57014").then_some(given)
        })
        .await??;
        await_condition("a batch to arrive", DEADLINE, async || {
            to.shard.arrival(batch).await.ok().filter(|arrival| *arrival == Arrival::Owned)
        })
        .await?;
    }
    let view = to.shard.observe(None, &Ranges::default()).await?;
    assert!(view.owned() > u32::from(LAST_MOVING), "some were refused: {:?}", view.runs());
    Ok(())
}

/// Hears until each bucket has been announced in all of these ways.
async fn expect_notifications(
    listener: &mut PgListener,
    expected: impl Fn(u16) -> Vec<String>,
) -> Result<()> {
    let mut missing: BTreeSet<String> = (0..=LAST_MOVING).flat_map(expected).collect();
    let hearing = async {
        while !missing.is_empty() {
            missing.remove(listener.recv().await?.payload());
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(Duration::from_secs(10), hearing).await {
        Ok(heard) => heard,
        Err(_) => bail!("never heard {missing:?}"),
    }
}

async fn listener(side: &Side) -> Result<PgListener> {
    let mut listener = PgListener::connect(&side.database.url(Role::Service)).await?;
    listener.listen("longshore").await?;
    Ok(listener)
}

async fn there_and_back_under_writers(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    let moving = ranges(0, LAST_MOVING);
    let (mut at_a, mut at_b) = (listener(&pair.a).await?, listener(&pair.b).await?);
    let course = Course::default();
    // Users of moving buckets and of some that stay, each of one writer alone.
    let users = |writer: usize| (0..36).map(|bucket| users_in(bucket, 4)[writer]).collect::<Vec<_>>();
    let writers = (0..4_u8).map(async |number| {
        Writer::new(&pair, u64::from(number)).await?.work(users(number.into()), &course).await
    });
    let moves = async {
        let moved = async {
            pair.announce(OPERATION, &moving).await?;
            pair.connect(OPERATION, &moving).await?;
            hand_all_over(&pair.a, &pair.b, &course).await?;
            hand_all_over(&pair.b, &pair.a, &course).await
        };
        let moved = moved.await;
        course.over.store(true, Ordering::Relaxed);
        moved
    };
    let (moved, writers) = tokio::join!(moves, try_join_all(writers));
    let writers = writers?;
    moved?;

    for writer in &writers {
        writer.verify(&pair.a).await?;
    }
    let redirected: usize = writers.iter().map(|writer| writer.redirected).sum();
    assert!(redirected > 20, "only {redirected} redirections: the writers met no move");
    for bucket in 0..=LAST_MOVING {
        assert_eq!(pair.a.ownership(bucket).await?, ("owned".to_owned(), 4));
    }
    let here = pair.a.digests(0, LAST_MOVING).await?;
    await_condition("b to have what a has", DEADLINE, async || {
        (pair.b.digests(0, LAST_MOVING).await.ok()? == here).then_some(())
    })
    .await?;
    expect_notifications(&mut at_a, |b| vec![format!("moved {b} 3 b"), format!("owned {b} 4")]).await?;
    expect_notifications(&mut at_b, |b| vec![format!("owned {b} 3"), format!("moved {b} 4 a")]).await?;

    // Rolled back, and cleared where the rows are left over.
    pair.drop_forward(OPERATION).await?;
    pair.drop_reverse(OPERATION).await?;
    let all = pair.a.digests(0, 63).await?;
    await_condition("b to be cleared", DEADLINE, async || {
        pair.b.shard.clear(&moving).await.ok()?;
        let view = pair.b.shard.observe(None, &moving).await.ok()?;
        view.with_rows().is_empty().then_some(())
    })
    .await?;
    assert_eq!(pair.a.digests(0, 63).await?, all);
    for writer in &writers {
        writer.verify(&pair.a).await?;
    }
    Ok(())
}

/// Buckets 0 to 7 have moved from a to b, with two orders of two items each; 8 to 9 stay. The streams still stand.
async fn moved_pair(version: Version) -> Result<Pair> {
    let pair = Pair::new(version).await?;
    let mut a = pair.a.service().await?;
    for bucket in 0..10 {
        let user = user_in(bucket);
        for order in [1, 2].map(Uuid::from_u128) {
            let items = format!(
                "insert into order_items select {user}, '{order}', line, 'A-1', 1, 0 from generate_series(1, 2) line"
            );
            run(&mut a, &format!("{}; {items}", insert_order(user, order))).await?;
        }
    }
    let moving = ranges(0, 7);
    pair.announce(OPERATION, &moving).await?;
    pair.connect(OPERATION, &moving).await?;
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(0, 7), 5_000).await?;
    for bucket in 0..8 {
        pair.b.await_state(bucket, "owned").await?;
    }
    Ok(pair)
}

async fn clearing_takes_leftovers_alone_and_in_portions(version: Version) -> Result<()> {
    let pair = moved_pair(version).await?;
    let (a, b, moved) = (&pair.a.shard, &pair.b.shard, ranges(0, 7));
    let (at_a, at_b) = (pair.a.digests(0, 63).await?, pair.b.digests(0, 63).await?);
    assert_eq!(store_sqlstate(&a.clear(&moved).await), "LS006", "the slot at a would carry the deletes to b");
    pair.drop_forward(OPERATION).await?;
    assert_eq!(store_sqlstate(&b.clear(&ranges(40, 41)).await), "LS006", "the slot at b stands");
    pair.drop_reverse(OPERATION).await?;
    assert_eq!(store_sqlstate(&a.clear(&ranges(7, 8)).await), "LS006", "8 is owned here");
    assert_eq!(store_sqlstate(&b.clear(&moved).await), "LS006", "all are owned there");
    b.expect(OperationId(2), &ranges(9, 9), Epoch(5), &a.name).await?;
    assert_eq!(store_sqlstate(&b.clear(&ranges(9, 10)).await), "LS006", "9 is expected there");
    assert_eq!((pair.a.digests(0, 63).await?, pair.b.digests(0, 63).await?), (at_a, at_b.clone()));

    let asked: Ranges =
        [ranges(0, 3), ranges(6, 6), ranges(20, 30)].iter().flat_map(|r| r.as_slice().to_vec()).collect();
    let view = a.observe(None, &asked).await?;
    assert_eq!(view.with_rows().to_string(), "0-3,6-6", "where there are rows");

    // Portions: never more than asked for, and items before their orders (else the foreign key would refuse).
    let mut session = a.session().await?;
    let clear = "select longshore.clear(1, '{[0,8)}', 3)";
    let mut portions = Vec::new();
    loop {
        let deleted: i64 = value(&mut session, clear).await?;
        portions.push(deleted);
        if deleted == 0 {
            break;
        }
    }
    assert!(portions.iter().all(|deleted| *deleted <= 3), "{portions:?}");
    assert_eq!(portions.iter().sum::<i64>(), 8 * 2 * (1 + 2), "{portions:?}");
    drop(session);
    assert!(a.observe(None, &moved).await?.with_rows().is_empty());
    let staying = pair.a.digests(8, 9).await?;
    assert!(staying.iter().all(|digest| digest.contains(",6,")), "rows of owned buckets stay: {staying:?}");
    assert_eq!(pair.b.digests(0, 63).await?, at_b);
    Ok(())
}

async fn deletes_at_the_old_owner_stay_there(version: Version) -> Result<()> {
    let pair = moved_pair(version).await?;
    let at_b = pair.b.digests(0, 63).await?;
    // The new owner's rows live on meanwhile: the reverse stream takes them to a, until it goes too.
    let mut b = pair.b.service().await?;
    pair.drop_forward(OPERATION).await?;
    run(&mut b, &insert_order(user_in(0), Uuid::from_u128(3))).await?;
    await_condition("the new order at a", DEADLINE, async || {
        let found = pair.a.digests(0, 0).await.ok()?;
        (found != at_b[..1]).then_some(())
    })
    .await?;
    pair.a.shard.clear(&ranges(0, 7)).await?;
    pair.drop_reverse(OPERATION).await?;
    await_condition("a to be cleared", DEADLINE, async || {
        pair.a.shard.clear(&ranges(0, 7)).await.ok()?;
        let view = pair.a.shard.observe(None, &ranges(0, 7)).await.ok()?;
        view.with_rows().is_empty().then_some(())
    })
    .await?;
    let after = pair.b.digests(0, 63).await?;
    assert_eq!(after[1..], at_b[1..], "b has all it had");
    assert!(after[0].contains(",7,"), "two orders, four items and the new one: {}", after[0]);
    Ok(())
}

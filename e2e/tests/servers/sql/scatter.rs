//! Reads over every bucket: each from exactly one owner, however buckets move meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    awaiting::await_condition,
    postgres::{Server, Version},
};
use futures::future::try_join_all;
use longshore_operator::shard::Arrival;
use longshore_sharding::{
    BucketId, Key, Ranges,
    operation::{Epoch, OperationId},
};
use service_kit::{
    guarded_among,
    shards::{Part, RouteError, ShardRouter, Share},
};
use sqlx::{AssertSqlSafe, Row as _};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use uuid::Uuid;

use crate::shards::{
    BUCKETS, DEADLINE, Pair, Side, attempt, await_version, bucket_of, buckets, insert_order, ranges, router,
    router_at, run, sqlstate, store_sqlstate, user_in, users_in, value,
};

on_each_version!(
    a_shard_vouches_for_what_it_owns,
    a_shard_does_not_vouch_while_a_handover_holds_the_gate,
    a_shard_does_not_vouch_for_what_changed_since_the_snapshot,
    a_commit_that_waits_for_a_standby_is_noticed,
    every_row_is_read_once_while_buckets_move,
    what_nobody_owns_is_waited_for,
    a_new_shard_is_heard_of_at_once,
    a_login_that_nobody_waits_for_is_made_all_the_same,
);

const OPERATION: OperationId = OperationId(1);
const LAST_MOVING: u16 = 31;
/// Buckets of one handover.
const BATCH: usize = 4;
/// How often all of them go there and back.
const JOURNEYS: usize = 2;
/// Scatters that end, at least, between two batches.
const SCATTERS: usize = 2;
const ORDERS_PER_BUCKET: usize = 3;
/// More than the two seconds that a request waits for a connection.
const LOGIN: Duration = Duration::from_secs(3);

const ALL_ORDERS: &str = guarded_among!(
    ", page as (
        select user_id, order_id from orders
        where (hashint8extended(user_id, 0) & $2)::int <@ (select vouched from guard)
    ) select guard.vouched::text, page.user_id, page.order_id from guard full join page on false"
);

type Orders = Vec<(i64, Uuid)>;

async fn all_orders(router: &ShardRouter) -> Result<Vec<Part<Orders>>, RouteError> {
    router
        .scatter(async |connection, share: Share| {
            let statement = sqlx::query(ALL_ORDERS).bind(share.asked()).bind(share.mask_bigint());
            let rows = statement.fetch_all(connection).await?;
            let mut orders = Vec::new();
            for row in &rows {
                if let Some(order) = row.try_get("order_id")? {
                    orders.push((row.try_get("user_id")?, order));
                }
            }
            Ok((Share::vouched(&rows)?, orders))
        })
        .await
}

/// Every bucket once, every row in the part of its bucket, and no row twice; returns the rows.
fn judge(parts: &[Part<Orders>]) -> Result<BTreeSet<(i64, Uuid)>> {
    let answered: Ranges = parts.iter().flat_map(|part| part.buckets.as_slice().to_vec()).collect();
    let sizes: u32 = parts.iter().map(|part| part.buckets.size()).sum();
    ensure!(answered == ranges(0, 63) && sizes == BUCKETS, "answered for {answered}, {sizes} in all");
    let mut found = BTreeSet::new();
    for part in parts {
        for (user, order) in &part.value {
            let bucket = BucketId::new(bucket_of(*user));
            ensure!(part.buckets.contains(bucket), "{} told of bucket {bucket}, not its own", part.shard);
            ensure!(found.insert((*user, *order)), "order {order} of bucket {bucket} is there twice");
        }
    }
    Ok(found)
}

/// What a service is vouched for of these buckets, `from` being whatever shall happen between snapshot and guard.
fn guard(asked: &str, from: &str) -> String {
    format!(
        "with guard as materialized (
           select longshore.owned_among('{asked}', longshore.seen_among('{asked}')) as vouched {from})
         select vouched::text from guard"
    )
}

async fn vouched(side: &Side, asked: &str) -> Result<String> {
    Ok(value(&mut side.service().await?, &guard(asked, "")).await?)
}

/// Buckets 0 to 9 are meant for b; 2 to 3 were given up, and 3 was refused there.
async fn pair_under_way(version: Version) -> Result<Pair> {
    let pair = Pair::new(version).await?;
    pair.announce(OPERATION, &ranges(0, 9)).await?;
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(2, 3), 5_000).await?;
    pair.b.receive("1, 'a', 'b', 3, 3, 99, 99, now(), now()").await?;
    assert_eq!(pair.b.ownership(3).await?, ("refused".to_owned(), 3));
    Ok(pair)
}

async fn a_shard_vouches_for_what_it_owns(version: Version) -> Result<()> {
    let pair = pair_under_way(version).await?;
    assert_eq!(vouched(&pair.a, "{[0,64)}").await?, "{[0,2),[4,64)}");
    assert_eq!(vouched(&pair.a, "{[1,3),[60,61)}").await?, "{[1,2),[60,61)}", "no more than asked");
    assert_eq!(vouched(&pair.a, "{[2,4)}").await?, "{}");
    assert_eq!(vouched(&pair.a, "{}").await?, "{}");
    assert_eq!(vouched(&pair.b, "{[0,64)}").await?, "{}", "incoming, refused and absent");
    pair.deliver(2).await?;
    assert_eq!(vouched(&pair.b, "{[0,64)}").await?, "{[2,3)}");
    let mut a = pair.a.service().await?;
    for level in ["repeatable read", "serializable"] {
        let begin = format!("begin isolation level {level}");
        assert_eq!(attempt(&mut a, &begin, &guard("{[0,64)}", "")).await?, "LS006", "{level}");
    }
    Ok(())
}

async fn a_shard_does_not_vouch_while_a_handover_holds_the_gate(version: Version) -> Result<()> {
    let pair = pair_under_way(version).await?;
    let mut giving = pair.a.shard.session().await?;
    let give = "begin; select longshore.hand_over(1, 1, 'b', array[5, 6])";
    run(&mut giving, give).await?;
    assert_eq!(vouched(&pair.a, "{[4,64)}").await?, "{[4,5),[7,64)}");
    run(&mut giving, "rollback").await?;
    assert_eq!(vouched(&pair.a, "{[4,64)}").await?, "{[4,64)}", "they stayed");
    // Gates that are shared, of another database, or other locks are nobody's business.
    let (mut writer, mut other) = (pair.a.service().await?, pair.b.service().await?);
    run(&mut writer, "begin; select longshore.enter(5), pg_advisory_xact_lock(19541, 7)").await?;
    run(&mut other, "begin; select pg_advisory_xact_lock(19539, 8)").await?;
    assert_eq!(vouched(&pair.a, "{[4,64)}").await?, "{[4,64)}");
    run(&mut writer, "rollback").await?;
    run(&mut giving, give).await?;
    run(&mut giving, "commit").await?;
    assert_eq!(vouched(&pair.a, "{[4,64)}").await?, "{[4,5),[7,64)}");
    Ok(())
}

/// Lets a guarded statement take its snapshot, then does `meanwhile`, then lets the guard look.
async fn vouched_after(side: &Side, meanwhile: impl AsyncFnOnce() -> Result<()>) -> Result<String> {
    let (mut reader, mut holder) = (side.service().await?, side.service().await?);
    let statement = guard("{[0,64)}", "from (select pg_advisory_lock_shared(4711) offset 0) held");
    run(&mut holder, "select pg_advisory_lock(4711)").await?;
    let release = async {
        let waiting =
            "select exists(select from pg_locks where locktype = 'advisory' and objid = 4711 and not granted
                       and database = (select oid from pg_database where datname = current_database()))";
        await_condition("the read to have its snapshot", DEADLINE, async || {
            value(&mut holder, waiting).await.ok().filter(|waits: &bool| *waits)
        })
        .await?;
        let done = meanwhile().await;
        run(&mut holder, "select pg_advisory_unlock(4711)").await?;
        done
    };
    let (answer, released) = tokio::join!(value::<String>(&mut reader, &statement), release);
    released?;
    Ok(answer?)
}

async fn a_shard_does_not_vouch_for_what_changed_since_the_snapshot(version: Version) -> Result<()> {
    let pair = pair_under_way(version).await?;
    let (a, b) = (&pair.a.shard, &pair.b.shard);
    assert_eq!(vouched_after(&pair.a, async || Ok(())).await?, "{[0,2),[4,64)}");
    let moved =
        vouched_after(&pair.a, async || Ok(a.hand_over(OPERATION, &b.name, &buckets(5, 5), 5_000).await?));
    let moved = moved.await?;
    assert!(!includes(&moved, 5), "moved since: {moved}");
    let arrived = vouched_after(&pair.b, async || pair.deliver(5).await).await?;
    assert!(!includes(&arrived, 5), "its snapshot is older than the arrival: {arrived}");
    assert_eq!(vouched(&pair.b, "{[0,64)}").await?, "{[5,6)}", "another statement sees it all");
    // Gone and back again: what happened in between is not in the snapshot. Only the epoch tells.
    let back = vouched_after(&pair.a, async || {
        a.hand_over(OPERATION, &b.name, &buckets(6, 6), 5_000).await?;
        b.revoke(&ranges(6, 6), Epoch(4)).await?;
        Ok(a.own(&ranges(6, 6), Epoch(4)).await?)
    });
    let back = back.await?;
    assert!(!includes(&back, 6), "it was away: {back}");
    assert_eq!(vouched(&pair.a, "{[6,7)}").await?, "{[6,7)}");
    Ok(())
}

/// Whether a multirange, as PostgreSQL writes it, holds the bucket.
fn includes(multirange: &str, bucket: u16) -> bool {
    let numbers: Vec<u16> =
        multirange.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    numbers.chunks(2).any(|range| range[0] <= bucket && bucket < range[1])
}

/// The commit that gives a bucket up is written and sent, but not visible yet where it was made: there the bucket still
/// looks owned, while it is written at its new owner.
async fn a_commit_that_waits_for_a_standby_is_noticed(version: Version) -> Result<()> {
    let settings = [("synchronous_standby_names", "nobody"), ("synchronous_commit", "local")];
    let server = Server::start_with(version, &settings).await?;
    // Of two servers: commits that notify wait for each other in all databases of one.
    let pair = Pair::between(&server, Server::shared(version).await?).await?;
    pair.announce(OPERATION, &ranges(0, 3)).await?;
    pair.connect(OPERATION, &ranges(0, 3)).await?;
    let router = router(&pair.a, DEADLINE)?;
    judge(&all_orders(&router).await?)?;

    let mut giving = pair.a.shard.session().await?;
    let pid: i32 = value(&mut giving, "select pg_backend_pid()").await?;
    let give =
        "begin; set local synchronous_commit = on; select longshore.hand_over(1, 1, 'b', array[1]); commit";
    let look = async {
        pair.b.await_state(1, "owned").await?;
        assert_eq!(pair.a.ownership(1).await?, ("owned".to_owned(), 2), "the commit waits");
        let (user, order) = (user_in(1), Uuid::from_u128(1));
        run(&mut pair.b.service().await?, &insert_order(user, order)).await?;
        assert_eq!(vouched(&pair.a, "{[0,64)}").await?, "{[0,1),[2,64)}");
        let found = judge(&all_orders(&router).await?)?;
        assert!(found.contains(&(user, order)), "the order was acknowledged");
        anyhow::Ok(())
    };
    let meanwhile = async {
        let looked = look.await;
        let mut admin = pair.a.database.connect_admin().await?;
        run(&mut admin, &format!("select pg_cancel_backend({pid})")).await?;
        looked
    };
    let (given, done) = tokio::join!(run(&mut giving, give), meanwhile);
    done?;
    // A wait that is cancelled leaves the commit as it is.
    assert_eq!(sqlstate(&given), "ok");
    assert_eq!(vouched(&pair.a, "{[0,64)}").await?, "{[0,1),[2,64)}");
    Ok(())
}

/// What the tasks of a run tell each other.
#[derive(Default)]
struct Course {
    scattered: AtomicUsize,
    over: AtomicBool,
    acknowledged: Mutex<Orders>,
}

impl Course {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn acknowledged(&self) -> Orders {
        self.acknowledged.lock().expect("nobody panics with it").clone()
    }
}

/// Places an order of the user; returns once it is acknowledged.
async fn place(router: &ShardRouter, user: i64, order: Uuid, course: &Course) -> Result<()> {
    let insert = format!("{} on conflict do nothing", insert_order(user, order));
    let placed = router.write(Key::Bigint(user), async |tx, _| run(tx, &insert).await);
    placed.await.with_context(|| format!("order {order}"))?;
    course.acknowledged.lock().expect("nobody panics with it").push((user, order));
    Ok(())
}

/// Places orders, one after the other, until the course is over.
async fn write(router: &ShardRouter, course: &Course) -> Result<()> {
    let users: Vec<i64> = (0..40).map(user_in).collect();
    for at in 0_u64.. {
        if course.is_over() {
            break;
        }
        let user = users[usize::try_from(at)? % users.len()];
        place(router, user, Uuid::from_u64_pair(1 << 32 | at, 0x8000_0000_0000_0000), course).await?;
    }
    Ok(())
}

/// Reads all orders again and again until the course is over; returns how many parts the answers had, and how often.
async fn scatter(router: &ShardRouter, fixed: &Orders, course: &Course) -> Result<BTreeMap<usize, usize>> {
    let mut by_parts = BTreeMap::new();
    while !course.is_over() {
        let expected = course.acknowledged();
        let parts = all_orders(router).await?;
        let found = judge(&parts)?;
        let lost = fixed.iter().chain(&expected).find(|order| !found.contains(order));
        ensure!(lost.is_none(), "order {lost:?} is in no part");
        *by_parts.entry(parts.len()).or_default() += 1;
        course.scattered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(by_parts)
}

/// Hands all moving buckets over, batch by batch, each when some reads have ended since the last. Now and then routers
/// are deaf meanwhile.
async fn hand_all_over(from: &Side, to: &Side, router: &ShardRouter, course: &Course) -> Result<()> {
    for (at, batch) in buckets(0, LAST_MOVING).chunks(BATCH).enumerate() {
        let before = course.scattered.load(Ordering::Relaxed);
        await_condition("some reads", DEADLINE, async || {
            (course.scattered.load(Ordering::Relaxed) >= before + SCATTERS).then_some(())
        })
        .await?;
        if at % 4 == 2 {
            end_listeners(from).await?;
            end_listeners(to).await?;
        }
        await_condition("writers to let a batch through", DEADLINE, async || {
            let given = from.shard.hand_over(OPERATION, &to.shard.name, batch, 1_000).await;
            (store_sqlstate(&given) != "57014").then_some(given)
        })
        .await??;
        await_condition("a batch to arrive", DEADLINE, async || {
            to.shard.arrival(batch).await.ok().filter(|arrival| *arrival == Arrival::Owned)
        })
        .await?;
        // What only the new owner has, before anybody deaf hears of it.
        place(router, user_in(batch[0].get()), Uuid::new_v4(), course).await?;
    }
    Ok(())
}

/// Makes routers deaf until they connect again: their maps are stale meanwhile.
async fn end_listeners(side: &Side) -> Result<()> {
    let text = "select pg_terminate_backend(pid) from pg_stat_activity
                where datname = current_database() and application_name like 'longshore-router v=%'";
    run(&mut side.database.connect_admin().await?, text).await?;
    Ok(())
}

async fn every_row_is_read_once_while_buckets_move(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    let users = (0..64).flat_map(|bucket| users_in(bucket, ORDERS_PER_BUCKET));
    let fixed: Orders = users.zip(1..).map(|(user, number)| (user, Uuid::from_u128(number))).collect();
    let inserts: Vec<String> = fixed.iter().map(|(user, order)| insert_order(*user, *order)).collect();
    run(&mut pair.a.service().await?, &inserts.join(";")).await?;
    let moving = ranges(0, LAST_MOVING);
    pair.announce(OPERATION, &moving).await?;
    pair.connect(OPERATION, &moving).await?;

    // What the writer's router learns must not help the readers'.
    let (reader, writer) = (router(&pair.a, DEADLINE)?, router(&pair.a, DEADLINE)?);
    let course = Course::default();
    let reading = try_join_all((0..3).map(|_| scatter(&reader, &fixed, &course)));
    let moves = async {
        for _ in 0..JOURNEYS {
            hand_all_over(&pair.a, &pair.b, &writer, &course).await?;
            hand_all_over(&pair.b, &pair.a, &writer, &course).await?;
        }
        course.over.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (read, (), ()) = tokio::try_join!(reading, moves, write(&writer, &course))?;

    let (fewest, most) = (
        JOURNEYS * 2 * (usize::from(LAST_MOVING) + 1) / BATCH * SCATTERS,
        read.iter().flat_map(BTreeMap::keys).max().copied(),
    );
    let scattered: usize = read.iter().flat_map(BTreeMap::values).sum();
    println!(
        "{scattered} reads by the number of their parts: {read:?}; {} orders",
        course.acknowledged().len()
    );
    assert!(scattered >= fewest && course.acknowledged().len() > 100, "too little was tried: {read:?}");
    assert!(most.is_some_and(|parts| parts > 2), "no read met a move: {read:?}");
    Ok(())
}

async fn what_nobody_owns_is_waited_for(version: Version) -> Result<()> {
    let pair = pair_under_way(version).await?;
    // 2 is on its way, 3 was refused: neither has an owner.
    let impatient = router(&pair.a, Duration::from_millis(1_500))?;
    let error = all_orders(&impatient).await.expect_err("bucket 2 has no owner");
    let RouteError::Deadline { bucket, .. } = error else { return Err(error.into()) };
    assert_eq!(bucket.get(), 2);
    let patient = router(&pair.a, DEADLINE)?;
    let arriving = async {
        pair.deliver(2).await?;
        pair.b.shard.revoke(&ranges(3, 3), Epoch(4)).await?;
        anyhow::Ok(pair.a.shard.own(&ranges(3, 3), Epoch(4)).await?)
    };
    let (parts, arrived) = tokio::join!(all_orders(&patient), arriving);
    arrived?;
    let parts = parts?;
    judge(&parts)?;
    let of = |name: &str| -> u32 {
        parts.iter().filter(|part| part.shard.as_str() == name).map(|part| part.buckets.size()).sum()
    };
    assert_eq!((of("a"), of("b")), (63, 1));
    // A statement that no shard can run is no reason to wait.
    let failed = patient
        .scatter(async |connection, _| {
            sqlx::raw_sql(AssertSqlSafe("select 1 / 0".to_owned())).execute(connection).await?;
            Ok((Ranges::default(), ()))
        })
        .await;
    assert!(matches!(failed, Err(RouteError::Statement { .. })), "{failed:?}");
    Ok(())
}

async fn a_new_shard_is_heard_of_at_once(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    let router = router(&pair.a, DEADLINE)?;
    for side in [&pair.a, &pair.b] {
        await_version(side, 1, DEADLINE).await?;
    }
    let c = Side::new(Server::shared(version).await?, "c").await?;
    let known = [pair.a.shard.clone(), pair.b.shard.clone(), c.shard.clone()];
    c.shard.set_shards(2, &known).await?;
    pair.a.shard.set_shards(2, &known).await?;
    // Far less than a silent connection is left alone: it was told.
    for side in [&pair.a, &pair.b, &c] {
        await_version(side, 2, Duration::from_secs(5)).await?;
    }
    drop(router);
    Ok(())
}

/// A server on which to log in takes longer than a request waits for a connection, as on a machine with too much to do.
async fn a_login_that_nobody_waits_for_is_made_all_the_same(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (slow, port) = (listener.local_addr()?.port(), pair.a.database.port());
    let mut connections = JoinSet::new();
    connections.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            connections.spawn(async move {
                tokio::time::sleep(LOGIN).await;
                let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    let mut admin = pair.a.database.connect_admin().await?;
    let moved = format!(
        "update longshore.shard set port = {slow} where name = 'a'; delete from longshore.shard where name = 'b';
         update longshore.meta set shards_version = 2"
    );
    run(&mut admin, &moved).await?;
    let router = router_at(&pair.a, slow, DEADLINE)?;
    let asked = (0..20).map(|_| all_orders(&router));
    try_join_all(asked).await?;
    Ok(())
}

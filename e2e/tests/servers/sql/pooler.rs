//! Services behind a real PgBouncer in transaction mode: few server connections for many of theirs, while buckets move, and
//! notifications from the server itself.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Result, ensure};
use e2e::{
    awaiting::await_condition,
    postgres::{Pooler, Role, Version},
};
use futures::future::try_join_all;
use longshore_operator::shard::{self, Arrival};
use longshore_sharding::{Key, operation::OperationId};
use service_kit::{
    guarded, guarded_among,
    shards::{Placement, RetryReason, RouteError, ShardRouter, Share},
};
use sqlx::{PgConnection, Row as _};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::shards::{
    DEADLINE, Pair, Side, await_version, bucket_of, buckets, credentials, detail, insert_order, ranges,
    router, router_of, run, store_sqlstate, user_in, users_in, value,
};

on_each_version!(
    many_clients_share_few_connections_while_buckets_move,
    a_pooler_that_comes_back_is_waited_for,
    another_pooler_is_followed,
    a_password_that_a_pooler_refuses_is_read_again,
    routers_that_know_of_no_poolers_are_told_of_servers,
);

const OPERATION: OperationId = OperationId(1);
const LAST_MOVING: u16 = 31;
/// Buckets of one handover.
const BATCH: usize = 4;
/// Who write at the same time: far more than the pooler has connections for.
const CLIENTS: usize = 40;
/// Orders that are placed, at least, between two batches.
const ORDERS: usize = 100;

/// More than one try waits for a connection.
const IMPATIENCE: Duration = Duration::from_secs(3);

/// Two shards, a pooler before each.
struct Pooled {
    pair: Pair,
    of_a: Pooler,
    of_b: Pooler,
}

impl Pooled {
    /// Routers hear of it in version 2 of the list.
    async fn new(version: Version) -> Result<Self> {
        let pair = Pair::new(version).await?;
        let (of_a, of_b) =
            tokio::try_join!(Pooler::start(&pair.a.database), Pooler::start(&pair.b.database))?;
        let pooled = Self { pair, of_a, of_b };
        pooled.tell(2, Some(&pooled.of_a)).await?;
        Ok(pooled)
    }

    /// Tells routers, as the operator does, which pooler is before a.
    async fn tell(&self, version: i64, of_a: Option<&Pooler>) -> Result<()> {
        let known = [(&self.pair.a, of_a), (&self.pair.b, Some(&self.of_b))].map(|(side, pooler)| {
            let mut shard = side.shard.clone();
            let host = shard.connection.endpoint.host.clone();
            shard.connection.endpoint.pooler =
                pooler.map(|pooler| shard::Pooler { host, port: pooler.port() });
            shard
        });
        for side in [&self.pair.a, &self.pair.b] {
            side.shard.set_shards(version, &known).await?;
        }
        Ok(())
    }

    /// A router that has heard of the poolers.
    async fn router(&self, deadline: Duration) -> Result<ShardRouter> {
        let router = router(&self.pair.a, deadline)?;
        await_condition("the router to serve", DEADLINE, async || place(&router, 0).await.ok()).await?;
        Ok(router)
    }
}

/// Places an order of a bucket's first user.
async fn place(router: &ShardRouter, bucket: u16) -> Result<(), RouteError> {
    place_for(router, user_in(bucket), Uuid::new_v4()).await
}

async fn place_for(router: &ShardRouter, user: i64, order: Uuid) -> Result<(), RouteError> {
    let insert = async move |tx: &mut PgConnection, _| insert(tx, user, order).await;
    router.write(Key::Bigint(user), insert).await
}

/// With parameters: a prepared statement, as services have.
async fn insert(tx: &mut PgConnection, user: i64, order: Uuid) -> Result<(), sqlx::Error> {
    let text =
        "insert into orders values ($1, $2, 'created', 0, '2026-01-01T00:00:00Z', 1) on conflict do nothing";
    sqlx::query(text).bind(user).bind(order).execute(tx).await.map(drop)
}

/// How often an order is there, where its bucket is owned.
async fn count(router: &ShardRouter, user: i64, order: Uuid) -> Result<i64, RouteError> {
    let text = guarded!(
        "select count(orders.*) from guard left join orders on user_id = $2 and order_id = $3 group by ok"
    );
    let count = async move |session: &mut PgConnection, placement: Placement| {
        let query = sqlx::query(text).bind(placement.bucket_int()).bind(user).bind(order);
        query.fetch_one(session).await?.try_get::<i64, _>(0)
    };
    router.read(Key::Bigint(user), count).await
}

/// How many orders all owners have, together; and how many parts answered.
async fn count_all(router: &ShardRouter) -> Result<(usize, usize), RouteError> {
    let text = guarded_among!(
        ", page as (select order_id from orders where (hashint8extended(user_id, 0) & $2)::int <@ (select vouched from guard))
         select guard.vouched::text, page.order_id from guard full join page on false"
    );
    let parts = router
        .scatter(async |connection, share: Share| {
            let statement = sqlx::query(text).bind(share.asked()).bind(share.mask_bigint());
            let rows = statement.fetch_all(connection).await?;
            Ok((Share::vouched(&rows)?, rows.len() - 1))
        })
        .await?;
    Ok((parts.iter().map(|part| part.value).sum(), parts.len()))
}

/// What the tasks of a run tell each other.
#[derive(Default)]
struct Course {
    placed: AtomicUsize,
    over: AtomicBool,
}

impl Course {
    fn placed(&self) -> usize {
        self.placed.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// Places orders of users of all buckets, one after the other, and reads each; returns them.
async fn write(router: &ShardRouter, client: usize, course: &Course) -> Result<Vec<(i64, Uuid)>> {
    let users: Vec<i64> = (0..64).map(|bucket| users_in(bucket, CLIENTS)[client]).collect();
    let mut orders = Vec::new();
    for user in users.iter().cycle().skip(client) {
        if course.is_over() {
            break;
        }
        let order = Uuid::new_v4();
        place_for(router, *user, order).await?;
        orders.push((*user, order));
        course.placed.fetch_add(1, Ordering::Relaxed);
        ensure!(count(router, *user, order).await? == 1, "order {order} of user {user} is not read back");
    }
    Ok(orders)
}

/// Reads all of them again and again; returns the most parts that an answer had.
async fn scatter(router: &ShardRouter, course: &Course) -> Result<usize> {
    let mut most_parts = 0;
    while !course.is_over() {
        let acknowledged = course.placed();
        let (found, parts) = count_all(router).await?;
        ensure!(found >= acknowledged, "{acknowledged} orders were acknowledged, {found} are read");
        most_parts = most_parts.max(parts);
    }
    Ok(most_parts)
}

/// All clients place an order at once, and who has a connection of the server keeps it until all stand before the pooler.
async fn crowd(router: &ShardRouter, pooler: &Pooler) -> Result<()> {
    let (seen, crowded) = watch::channel(false);
    let clients = users_in(LAST_MOVING + 1, CLIENTS).into_iter().map(|user| {
        let (order, crowded) = (Uuid::new_v4(), crowded.clone());
        let keep = async move |tx: &mut PgConnection, _| {
            insert(tx, user, order).await?;
            // Its sender is there for as long as anybody waits.
            let _ = crowded.clone().wait_for(|crowded| *crowded).await;
            Ok(())
        };
        router.write(Key::Bigint(user), keep)
    });
    let look = async {
        let what = "all clients to stand before a pooler that has no more connections";
        await_condition(what, DEADLINE, async || {
            let found = tokio::try_join!(pooler.client_ports(), pooler.server_ports()).ok()?;
            let lent = usize::try_from(Pooler::SERVER_CONNECTIONS).ok()?;
            (found.0.len() >= CLIENTS && found.1.len() == lent).then_some(())
        })
        .await?;
        seen.send_replace(true);
        Ok(())
    };
    let clients = async { Ok::<_, anyhow::Error>(try_join_all(clients).await?) };
    tokio::try_join!(clients, look).map(drop)
}

/// Fails where services have more connections to the server than the pooler may make, those for notifications apart.
async fn bounded(side: &Side, admin: &mut PgConnection) -> Result<()> {
    let text = "select count(*) from pg_stat_activity where datname = current_database()
                and usename = 'longshore_service' and application_name not like 'longshore-router%'";
    let found: i64 = value(admin, text).await?;
    ensure!(found <= i64::from(Pooler::SERVER_CONNECTIONS), "{found} connections to {}", side.shard.name);
    Ok(())
}

/// Hands all moving buckets over while orders flow.
async fn hand_all_over(pair: &Pair, course: &Course) -> Result<()> {
    let mut admins = [pair.a.database.connect_admin().await?, pair.b.database.connect_admin().await?];
    for batch in buckets(0, LAST_MOVING).chunks(BATCH) {
        let before = course.placed();
        await_condition("more orders", DEADLINE, async || {
            for (side, admin) in [&pair.a, &pair.b].into_iter().zip(&mut admins) {
                if let Err(error) = bounded(side, admin).await {
                    return Some(Err(error));
                }
            }
            (course.placed() >= before + ORDERS).then_some(Ok(()))
        })
        .await??;
        await_condition("writers to let a batch through", DEADLINE, async || {
            let given = pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, batch, 1_000).await;
            (store_sqlstate(&given) != "57014").then_some(given)
        })
        .await??;
        await_condition("a batch to arrive", DEADLINE, async || {
            pair.b.shard.arrival(batch).await.ok().filter(|arrival| *arrival == Arrival::Owned)
        })
        .await?;
    }
    course.over.store(true, Ordering::Relaxed);
    Ok(())
}

/// From which ports services are connected to the server: those that listen, and all others.
async fn client_ports(side: &Side) -> Result<[BTreeSet<u16>; 2]> {
    let mut admin = side.database.connect_admin().await?;
    let mut ports = [BTreeSet::new(), BTreeSet::new()];
    for (ports, listens) in ports.iter_mut().zip(["", "not "]) {
        let text = format!(
            "select coalesce(array_agg(client_port), '{{}}') from pg_stat_activity
             where datname = current_database() and usename = 'longshore_service'
               and application_name {listens}like 'longshore-router v=%'"
        );
        for port in value::<Vec<i32>>(&mut admin, &text).await? {
            ports.insert(u16::try_from(port)?);
        }
    }
    Ok(ports)
}

async fn many_clients_share_few_connections_while_buckets_move(version: Version) -> Result<()> {
    let pooled = Pooled::new(version).await?;
    let Pooled { pair, of_a, of_b } = &pooled;
    let moving = ranges(0, LAST_MOVING);
    pair.announce(OPERATION, &moving).await?;
    pair.connect(OPERATION, &moving).await?;
    let router = router_of(&pair.a, pair.a.database.port(), u32::try_from(CLIENTS)?, DEADLINE)?;
    crowd(&router, of_a).await?;
    let course = Course::default();
    let writers = try_join_all((0..CLIENTS).map(|client| write(&router, client, &course)));
    let ((), parts, orders) =
        tokio::try_join!(hand_all_over(pair, &course), scatter(&router, &course), writers)?;

    println!("{} orders; {parts} parts", course.placed());
    assert!(parts >= 2, "no answer came from both");
    for (side, pooler) in [(&pair.a, of_a), (&pair.b, of_b)] {
        let [listening, transacting] = client_ports(side).await?;
        let lent = pooler.server_ports().await?;
        assert_eq!(listening.len(), 1, "{} is listened to", side.shard.name);
        assert!(listening.is_disjoint(&lent), "notifications came through the pooler of {}", side.shard.name);
        assert!(!transacting.is_empty() && transacting.is_subset(&lent), "{transacting:?} but {lent:?}");
    }
    // At the shards themselves, once.
    let orders: Vec<(i64, Uuid)> = orders.into_iter().flatten().collect();
    for (side, at_b) in [(&pair.a, false), (&pair.b, true)] {
        let expected: Vec<Uuid> = orders
            .iter()
            .filter(|(user, _)| (bucket_of(*user) <= LAST_MOVING) == at_b)
            .map(|(_, order)| *order)
            .collect();
        let text = "select count(*) from orders where order_id = any($1)";
        let mut admin = side.database.connect_admin().await?;
        let found: i64 = sqlx::query(text).bind(&expected).fetch_one(&mut admin).await?.try_get(0)?;
        assert_eq!(usize::try_from(found)?, expected.len(), "orders at {}", side.shard.name);
    }
    pair.drop_forward(OPERATION).await?;
    pair.drop_reverse(OPERATION).await
}

async fn a_pooler_that_comes_back_is_waited_for(version: Version) -> Result<()> {
    let pooled = Pooled::new(version).await?;
    let (patient, impatient) = (pooled.router(DEADLINE).await?, pooled.router(IMPATIENCE).await?);
    pooled.of_a.kill9().await?;
    let waiting = async {
        let placing = (0..u16::try_from(CLIENTS)?).map(|bucket| place(&patient, bucket));
        Ok(try_join_all(placing).await?)
    };
    let coming_back = async {
        // Nobody goes round it. Meanwhile the patient have begun to wait.
        let refused = place(&impatient, 0).await;
        let missed = matches!(refused, Err(RouteError::Deadline { reason: RetryReason::Connection, .. }));
        ensure!(missed, "without a pooler: {refused:?}");
        // What is heard does not depend on it.
        let moved = ranges(60, 60);
        pooled.pair.announce(OPERATION, &moved).await?;
        pooled.pair.a.shard.hand_over(OPERATION, &pooled.pair.b.shard.name, &buckets(60, 60), 5_000).await?;
        pooled.pair.deliver(60).await?;
        place(&impatient, 60).await?;
        pooled.of_a.start_again().await
    };
    tokio::try_join!(waiting, coming_back)?;
    let text = "select count(*) from orders where user_id = any($1)";
    let users: Vec<i64> = (1..u16::try_from(CLIENTS)?).map(user_in).collect();
    let mut admin = pooled.pair.a.database.connect_admin().await?;
    let found: i64 = sqlx::query(text).bind(&users).fetch_one(&mut admin).await?.try_get(0)?;
    assert_eq!(usize::try_from(found)?, CLIENTS - 1);
    Ok(())
}

async fn another_pooler_is_followed(version: Version) -> Result<()> {
    let pooled = Pooled::new(version).await?;
    let a = &pooled.pair.a;
    let other = Pooler::start(&a.database).await?;
    let router = pooled.router(Duration::from_secs(10)).await?;
    await_version(a, 2, DEADLINE).await?;
    let unused = async || other.client_ports().await.ok().filter(BTreeSet::is_empty).map(drop);
    await_condition("the new pooler to have no clients", DEADLINE, unused).await?;

    let (begun, finish, tries) = (Notify::new(), Notify::new(), AtomicUsize::new(0));
    let (user, order) = (user_in(1), Uuid::new_v4());
    let in_flight = router.write(Key::Bigint(user), async |tx, _| {
        tries.fetch_add(1, Ordering::Relaxed);
        insert(tx, user, order).await?;
        begun.notify_one();
        finish.notified().await;
        Ok(())
    });
    let moved = async {
        begun.notified().await;
        pooled.tell(3, Some(&other)).await?;
        await_version(a, 3, DEADLINE).await?;
        place(&router, 2).await?;
        ensure!(!other.client_ports().await?.is_empty(), "the new pooler is not used");
        finish.notify_one();
        anyhow::Ok(())
    };
    tokio::try_join!(async { Ok(in_flight.await?) }, moved)?;
    assert_eq!(tries.load(Ordering::Relaxed), 1, "what was in flight kept its connection");
    pooled.of_a.kill9().await?;
    for bucket in 0..8 {
        place(&router, bucket).await?;
    }
    assert_eq!(count(&router, user, order).await?, 1);

    pooled.tell(4, None).await?;
    await_version(a, 4, DEADLINE).await?;
    other.kill9().await?;
    for bucket in 0..8 {
        place(&router, bucket).await?;
    }
    Ok(())
}

async fn a_password_that_a_pooler_refuses_is_read_again(version: Version) -> Result<()> {
    let pooled = Pooled::new(version).await?;
    let router = pooled.router(IMPATIENCE).await?;
    let database = &pooled.pair.a.database;
    let password = credentials(database)?.join("password");
    std::fs::write(&password, "another")?;
    await_condition("the pooler to refuse the service", DEADLINE, async || {
        if let Err(error) = async {
            pooled.of_a.kill9().await?;
            pooled.of_a.start_again().await
        }
        .await
        {
            return Some(Err(error));
        }
        let refused = place(&router, 0).await;
        let refused = matches!(refused, Err(RouteError::Deadline { reason: RetryReason::Credentials, .. }));
        refused.then_some(Ok(()))
    })
    .await??;
    std::fs::write(&password, database.password(Role::Service))?;
    Ok(place(&router, 0).await?)
}

/// The statement and the DETAIL by which routers learned of shards before there were poolers.
async fn routers_that_know_of_no_poolers_are_told_of_servers(version: Version) -> Result<()> {
    let pooled = Pooled::new(version).await?;
    let Pair { a, b, .. } = &pooled.pair;
    let mut service = a.service().await?;
    let report = "select m.shard, m.set_uid, m.buckets, m.shards_version, s.name, s.host, s.port, s.dbname
                  from longshore.meta m left join longshore.shard s on true order by s.name";
    let rows = sqlx::query(report).fetch_all(&mut service).await?;
    let ports = rows.iter().map(|row| row.try_get("port")).collect::<Result<Vec<i32>, _>>()?;
    assert_eq!(ports, [a, b].map(|side| i32::from(side.database.port())));
    pooled.pair.announce(OPERATION, &ranges(5, 5)).await?;
    a.shard.hand_over(OPERATION, &b.shard.name, &buckets(5, 5), 5_000).await?;
    let told = detail(run(&mut service, &insert_order(user_in(5), Uuid::from_u128(1))).await)?;
    assert_eq!((&told["port"], &told["dbname"]), (&b.database.port().into(), &b.database.dbname().into()));
    Ok(())
}

//! The agent of the version before: routers of today work with it, and it is replaced while they write and buckets move.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use e2e::{
    awaiting::await_condition,
    postgres::{Server, Version},
};
use futures::future::try_join_all;
use longshore_operator::shard::{Shard, agent};
use longshore_sharding::{Key, Ranges, operation::OperationId};
use service_kit::{guarded, shards::ShardRouter};
use sqlx::{Connection as _, PgConnection, Row as _};
use uuid::Uuid;

use crate::shards::{
    BUCKETS, DEADLINE, Pair, SET_UID, Side, bucket_of, buckets, connection, membership, ranges, router, run,
    users_in, value,
};

on_each_version!(it_is_replaced_while_writers_write_and_buckets_move);

const PREVIOUS: &str = include_str!("agents/previous.sql");
/// Orders that are placed, at least, before and after each step.
const ORDERS: usize = 50;
const WRITERS: usize = 4;

/// As the operator of that version did.
async fn install_previous(session: &mut PgConnection, name: &str) -> Result<()> {
    let mut tx = session.begin().await?;
    run(&mut tx, "set local role longshore_owner; set local check_function_bodies = off").await?;
    run(&mut tx, PREVIOUS).await?;
    let rows = format!(
        "insert into longshore.meta (shard, set_uid, buckets) values ('{name}', '{SET_UID}', {BUCKETS});
         insert into longshore.ownership (bucket) select generate_series(0, {BUCKETS} - 1)"
    );
    run(&mut tx, &rows).await?;
    Ok(tx.commit().await?)
}

/// Both streams, as the operator of that version made them.
async fn connect_previous(pair: &Pair, operation: OperationId, moving: &Ranges) -> Result<()> {
    for (source, destination, name, copy) in [
        (&pair.a, &pair.b, pair.forward(operation), true),
        (&pair.b, &pair.a, pair.reverse(operation), false),
    ] {
        source.shard.publish(&name, operation, &destination.shard.name, moving).await?;
        source.shard.create_slot(&name).await?;
        let mut session = destination.shard.session().await?;
        sqlx::query("select longshore.subscribe(1, $1, $2, $3)")
            .bind(&name)
            .bind(source.shard.connection.subscription_conninfo())
            .bind(copy)
            .execute(&mut *session)
            .await?;
    }
    pair.await_followed(operation).await
}

/// Places orders of users of all buckets, one after the other, until told to stop; returns them.
async fn write(
    router: &ShardRouter,
    writer: usize,
    placed: &AtomicUsize,
    stop: &AtomicBool,
) -> Result<Vec<(i64, Uuid)>> {
    let mut orders = Vec::new();
    let users: Vec<i64> = (0..64).map(|bucket| users_in(bucket, WRITERS)[writer]).collect();
    for user in users.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (user, order) = (*user, Uuid::new_v4());
        let insert = async move |tx: &mut PgConnection, _| {
            let text = "insert into orders values ($1, $2, 'created', 0, '2026-01-01T00:00:00Z', 1) on conflict do nothing";
            sqlx::query(text).bind(user).bind(order).execute(tx).await.map(drop)
        };
        router.write(Key::Bigint(user), insert).await?;
        orders.push((user, order));
        placed.fetch_add(1, Ordering::Relaxed);
        let text = guarded!(
            "select count(orders.*) from guard left join orders on user_id = $2 and order_id = $3 group by ok"
        );
        let count = async move |session: &mut PgConnection, placement: service_kit::shards::Placement| {
            let query = sqlx::query(text).bind(placement.bucket_int()).bind(user).bind(order);
            query.fetch_one(session).await?.try_get::<i64, _>(0)
        };
        ensure!(
            router.read(Key::Bigint(user), count).await? == 1,
            "order {order} of user {user} is not read back"
        );
    }
    Ok(orders)
}

async fn it_is_replaced_while_writers_write_and_buckets_move(version: Version) -> Result<()> {
    let server = Server::shared(version).await?;
    let side = async |name: &'static str| {
        Side::with_agent(server, name, async move |session| install_previous(session, name).await).await
    };
    let pair = Pair::of(side("a").await?, side("b").await?).await?;
    let (operation, moving) = (OperationId(1), ranges(0, 31));
    pair.announce(operation, &moving).await?;

    let router = router(&pair.a, DEADLINE)?;
    let (placed, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let more = async || {
        let before = placed.load(Ordering::Relaxed);
        let grown = async || (placed.load(Ordering::Relaxed) >= before + ORDERS).then_some(());
        await_condition("more orders", DEADLINE, grown).await
    };
    let operate = async {
        more().await?;
        connect_previous(&pair, operation, &moving).await?;
        hand_over(&pair, operation, 0, 15).await?;
        more().await?;
        for side in [&pair.a, &pair.b] {
            let mut session = Shard::connect(&connection(&side.database)).await?;
            agent::install(&mut session, &membership(side.shard.name.as_str())).await?;
            more().await?;
        }
        hand_over(&pair, operation, 16, 31).await?;
        more().await?;
        stop.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let writers = try_join_all((0..WRITERS).map(|writer| write(&router, writer, &placed, &stop)));
    let ((), orders) = tokio::try_join!(operate, writers)?;
    assert!(!pair.a.shard.observe(None, &Ranges::default()).await?.armed.is_suspect());
    let (mut at_a, mut at_b) =
        (pair.a.database.connect_admin().await?, pair.b.database.connect_admin().await?);
    for (user, order) in orders.into_iter().flatten() {
        let owner = if bucket_of(user) <= 31 { &mut at_b } else { &mut at_a };
        let found: i64 =
            value(owner, &format!("select count(*) from orders where order_id = '{order}'")).await?;
        assert_eq!(found, 1, "order {order} of user {user}");
    }
    pair.drop_forward(operation).await?;
    pair.drop_reverse(operation).await
}

async fn hand_over(pair: &Pair, operation: OperationId, first: u16, last: u16) -> Result<()> {
    for bucket in first..=last {
        pair.a.shard.hand_over(operation, &pair.b.shard.name, &buckets(bucket, bucket), 5_000).await?;
        pair.b.await_state(bucket, "owned").await?;
    }
    Ok(())
}

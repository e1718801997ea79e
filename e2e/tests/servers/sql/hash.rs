//! A key's bucket is the same in Rust and on every PostgreSQL; an order's id tells its bucket in SQL too.

use anyhow::Result;
use e2e::postgres::{Role, Server, Version};
use longshore_crds::order_shard_set::TableSpec;
use longshore_operator::shard::{
    Shard, Term,
    agent::{self, Membership},
};
use longshore_sharding::{BucketCount, BucketId, Key, KeyType, OrderId, hash};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use crate::shards::{SET_UID, connection, run, shard_name};

on_each_version!(hashes_are_the_servers, buckets_are_the_servers, an_order_id_tells_its_bucket_in_sql);

const RANDOM_VALUES: usize = 2_000;

fn bigints() -> Vec<i64> {
    let u32_borders = [31, 32, 33].map(|bits| 1_i64 << bits);
    let edges = [0, 1, 42, i64::MAX, 0xffff, 0x1_0000, 0x7fff_ffff, 0xffff_ffff, 4_294_967_297];
    let near = edges.into_iter().chain(u32_borders).flat_map(|edge| [edge - 1, edge, -edge]);
    let mut random = StdRng::seed_from_u64(16);
    let random = (0..RANDOM_VALUES).map(|at| random.random::<i64>() >> (at % 64));
    near.chain([i64::MIN, i64::MIN + 1]).chain(random).collect()
}

fn uuids() -> Vec<Uuid> {
    let mut random = StdRng::seed_from_u64(17);
    let random = (0..RANDOM_VALUES).map(|at| random.random::<u128>() >> (at % 128));
    [0, 1, u128::MAX].into_iter().chain(random).map(Uuid::from_u128).collect()
}

async fn hashes_are_the_servers(version: Version) -> Result<()> {
    let database = Server::shared(version).await?.scratch_database().await?;
    let mut session = database.connect(Role::Service).await?;
    for seed in [0, 1, -1, i64::MIN, i64::MAX, 0xffff_ffff, 0x1_0000_0000, 0x0123_4567_89ab_cdef] {
        let rows = sqlx::query("select v, hashint8extended(v, $2) from unnest($1::bigint[]) v")
            .bind(bigints())
            .bind(seed)
            .fetch_all(&mut session)
            .await?;
        assert_eq!(rows.len(), bigints().len());
        for row in rows {
            let (value, expected): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            assert_eq!(hash::hash_bigint(value, seed.cast_unsigned()), expected, "{value}, seed {seed}");
        }
        let rows = sqlx::query("select v, uuid_hash_extended(v, $2) from unnest($1::uuid[]) v")
            .bind(uuids())
            .bind(seed)
            .fetch_all(&mut session)
            .await?;
        assert_eq!(rows.len(), uuids().len());
        for row in rows {
            let (value, expected): (Uuid, i64) = (row.try_get(0)?, row.try_get(1)?);
            assert_eq!(hash::hash_uuid(value, seed.cast_unsigned()), expected, "{value}, seed {seed}");
        }
    }
    Ok(())
}

/// A database of its own with so many buckets and one table with such a key.
async fn registered(version: Version, buckets: BucketCount, key_type: KeyType) -> Result<PgConnection> {
    let database = Server::shared(version).await?.scratch_database().await?;
    let connection = connection(&database);
    let mut session = Shard::connect(&connection).await?;
    let membership = Membership::new(shard_name("a"), SET_UID, buckets);
    agent::install(&mut session, &membership).await?;
    let term = Term { number: 1, holder: "the test".to_owned() };
    Shard::claim(&mut session, &term).await?;
    let sql_type = match key_type {
        KeyType::Bigint => "bigint",
        KeyType::Uuid => "uuid",
    };
    run(&mut session, "set role longshore_owner").await?;
    run(&mut session, &format!("create table things (owner_id {sql_type} primary key)")).await?;
    let tables = [TableSpec { name: "things".to_owned(), key: "owner_id".to_owned() }];
    let shard = Shard::new(shard_name("a"), connection, &term);
    shard.register(&tables, key_type).await?;
    database.connect(Role::Service).await
}

async fn buckets_are_the_servers(version: Version) -> Result<()> {
    for count in [1, 64, 65_536] {
        let count = BucketCount::new(count)?;
        let mut session = registered(version, count, KeyType::Bigint).await?;
        let rows = sqlx::query("select v, longshore.bucket_of(v::text) from unnest($1::bigint[]) v")
            .bind(bigints())
            .fetch_all(&mut session)
            .await?;
        for row in rows {
            let (value, expected): (i64, i32) = (row.try_get(0)?, row.try_get(1)?);
            assert_eq!(count.bucket_of(Key::Bigint(value)).as_i32(), expected, "{value} of {count:?}");
        }
    }
    let count = BucketCount::new(4_096)?;
    let mut session = registered(version, count, KeyType::Uuid).await?;
    let rows = sqlx::query("select v, longshore.bucket_of(v::text) from unnest($1::uuid[]) v")
        .bind(uuids())
        .fetch_all(&mut session)
        .await?;
    for row in rows {
        let (value, expected): (Uuid, i32) = (row.try_get(0)?, row.try_get(1)?);
        assert_eq!(count.bucket_of(Key::Uuid(value)).as_i32(), expected, "{value} of {count:?}");
    }
    Ok(())
}

async fn an_order_id_tells_its_bucket_in_sql(version: Version) -> Result<()> {
    let database = Server::shared(version).await?.scratch_database().await?;
    let mut session = database.connect(Role::Service).await?;
    let mut random = StdRng::seed_from_u64(18);
    let made: Vec<(i64, u16, OrderId)> = [0, 1, 0xf, 0x10, 0xfff, 0x1000, u16::MAX]
        .into_iter()
        .chain((0..500).map(|_| random.random()))
        .map(|bucket| {
            let unix_ms = 1_760_000_000_000 + u64::from(bucket);
            let id = OrderId::new(unix_ms, BucketId::new(bucket), u64::from(bucket) << 42 | 0x2a);
            (i64::try_from(unix_ms).expect("small"), bucket, id)
        })
        .collect();
    let ids: Vec<Uuid> = made.iter().map(|(_, _, id)| id.as_uuid()).collect();
    let rows = sqlx::query(
        "select ((get_byte(b, 6) & 15) << 12) | (get_byte(b, 7) << 4) | ((get_byte(b, 8) >> 2) & 15),
                ('x0000' || left(encode(b, 'hex'), 12))::bit(64)::bigint, get_byte(b, 6) >> 4, get_byte(b, 8) >> 6
         from unnest($1::uuid[]) with ordinality as given(id, at), uuid_send(id) b order by at",
    )
    .bind(ids)
    .fetch_all(&mut session)
    .await?;
    assert_eq!(rows.len(), made.len());
    for (row, (unix_ms, bucket, id)) in rows.iter().zip(made) {
        assert_eq!(row.try_get::<i32, _>(0)?, i32::from(bucket), "{id}");
        assert_eq!(row.try_get::<i64, _>(1)?, unix_ms, "{id}");
        assert_eq!((row.try_get::<i32, _>(2)?, row.try_get::<i32, _>(3)?), (7, 2), "{id}");
    }
    Ok(())
}

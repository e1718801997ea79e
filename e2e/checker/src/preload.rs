//! A store full of orders to begin with. Every field of order number `i` follows from the seed and `i`, by
//! SQL functions that the judge makes again: no log is needed to verify them. Owns those functions.

use crate::store::{Store, StoreError};
use futures::future::try_join_all;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// 2020-01-01 00:00 UTC: well before any live order, so that an id alone tells a preloaded order.
const FIRST_MS: u64 = 1_577_836_800_000;
/// Orders written by one transaction; few buckets each, since guards take one lock for each bucket.
const BATCH: u64 = 2_000;

/// Which orders: the same values always mean the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preload {
    /// How many.
    pub orders: u64,
    /// Over users 1 to this, evenly.
    pub users: u64,
    /// How many buckets the order-shard set has.
    pub buckets: u32,
    /// Another seed, other orders.
    pub seed: u32,
}

impl Default for Preload {
    fn default() -> Self {
        Self { orders: 100_000, users: 10_000, buckets: 65_536, seed: 1 }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreloadReport {
    /// Orders.
    pub orders: u64,
    /// Rows of all four tables.
    pub rows: u64,
    /// How long it took.
    pub took: Duration,
}

/// One of the preloaded orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreloadedOrder {
    /// Its number, from 0.
    pub index: u64,
    /// Whose.
    pub user_id: i64,
    /// Its id.
    pub order_id: Uuid,
}

/// What makes preloading fail.
#[derive(Debug, thiserror::Error)]
pub enum PreloadError {
    /// A shard could not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The shards given do not own all buckets (or some twice).
    #[error("wrote {written} of {orders} orders: the shards given do not own each bucket once")]
    Incomplete {
        /// What was written.
        written: u64,
        /// What should have been.
        orders: u64,
    },
}

impl Preload {
    /// Writes each order, with its items, event and idempotency key, to the one of these shards that owns its
    /// bucket. Plain SQL past the router, under the shards' own guards. I/O.
    pub async fn fill(&self, stores: &[Store]) -> Result<PreloadReport, PreloadError> {
        let started = Instant::now();
        let filled = try_join_all(stores.iter().map(|store| self.fill_one(store))).await?;
        let (orders, rows) = filled.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        if orders != self.orders {
            return Err(PreloadError::Incomplete { written: orders, orders: self.orders });
        }
        Ok(PreloadReport { orders, rows, took: started.elapsed() })
    }

    /// So many preloaded orders, evenly spread, computed by `store` without looking at its tables. I/O.
    pub async fn sample(&self, store: &Store, count: u64) -> Result<Vec<PreloadedOrder>, PreloadError> {
        if count == 0 || self.orders == 0 {
            return Ok(Vec::new());
        }
        let step = (self.orders / count).max(1);
        let mut connection = store.connect().await?;
        self.install(store, &mut connection).await?;
        let rows = sqlx::query(
            "select i, pg_temp.preload_user(i) as user_id, pg_temp.preload_id(i) as order_id
             from generate_series(0, $1::bigint - 1, $2::bigint) as i",
        )
        .bind(self.orders.cast_signed())
        .bind(step.cast_signed())
        .fetch_all(&mut connection)
        .await
        .map_err(|source| store.failed("compute preloaded orders", source))?;
        let order = |row: &sqlx::postgres::PgRow| {
            Ok(PreloadedOrder {
                index: row.try_get::<i64, _>("i")?.unsigned_abs(),
                user_id: row.try_get("user_id")?,
                order_id: row.try_get("order_id")?,
            })
        };
        let orders = rows.iter().map(order).collect::<Result<_, _>>();
        let orders = orders.map_err(|source| store.failed("decode preloaded orders", source))?;
        close(connection).await;
        Ok(orders)
    }

    /// Makes the session's functions that know what order `i` looks like. I/O.
    pub(crate) async fn install(
        &self,
        store: &Store,
        connection: &mut PgConnection,
    ) -> Result<(), StoreError> {
        let functions = self.render(include_str!("../sql/preload_functions.sql"));
        connection
            .execute(sqlx::raw_sql(AssertSqlSafe(functions)))
            .await
            .map_err(|source| store.failed("make the preload functions", source))?;
        Ok(())
    }

    /// The number of the preloaded order with this id, if it lies where they lie.
    pub(crate) fn index_of(&self, order_id: Uuid) -> Option<u64> {
        let milliseconds = milliseconds_of(order_id);
        milliseconds.checked_sub(FIRST_MS).filter(|index| *index < self.orders)
    }

    /// Only numbers go in, so the result is as safe as the template.
    fn render(&self, template: &str) -> String {
        template
            .replace("{seed}", &self.seed.to_string())
            .replace("{users}", &self.users.to_string())
            .replace("{buckets}", &self.buckets.to_string())
            .replace("{orders}", &self.orders.to_string())
            .replace("{batch}", &BATCH.to_string())
            .replace("{first_ms}", &FIRST_MS.to_string())
            .replace("{first_id}", &smallest_id_at(FIRST_MS).to_string())
            .replace("{end_id}", &smallest_id_at(FIRST_MS + self.orders).to_string())
    }

    async fn fill_one(&self, store: &Store) -> Result<(u64, u64), StoreError> {
        let mut connection = store.connect().await?;
        self.install(store, &mut connection).await?;
        connection
            .execute(sqlx::raw_sql(AssertSqlSafe(self.render(include_str!("../sql/preload_plan.sql")))))
            .await
            .map_err(|source| store.failed("plan the preload", source))?;
        let (orders, batches): (i64, i32) =
            sqlx::query_as("select count(*), coalesce(max(batch) + 1, 0) from preload_plan")
                .fetch_one(&mut connection)
                .await
                .map_err(|source| store.failed("plan the preload", source))?;
        let mut rows = 0;
        for batch in 0..batches {
            let written = write_batch(&mut connection, batch).await;
            rows += written.map_err(|source| store.failed("write preloaded orders", source))?;
        }
        connection
            .execute("analyze orders, order_items, order_events, idempotency_keys")
            .await
            .map_err(|source| store.failed("analyze the tables", source))?;
        close(connection).await;
        Ok((orders.unsigned_abs(), rows))
    }
}

/// One transaction; parents first.
async fn write_batch(connection: &mut PgConnection, batch: i32) -> Result<u64, sqlx::Error> {
    let mut tx = connection.begin().await?;
    let mut rows = 0;
    for statement in [
        include_str!("../sql/preload_orders.sql"),
        include_str!("../sql/preload_items.sql"),
        include_str!("../sql/preload_events.sql"),
        include_str!("../sql/preload_keys.sql"),
    ] {
        rows += sqlx::query(statement).bind(batch).execute(&mut *tx).await?.rows_affected();
    }
    tx.commit().await?;
    Ok(rows)
}

async fn close(connection: PgConnection) {
    // Everything asked of this connection has been answered; how it ends does not matter.
    let _ended = connection.close().await;
}

/// The first 48 bits of a UUID of version 7.
pub(crate) fn milliseconds_of(id: Uuid) -> u64 {
    u64::try_from(id.as_u128() >> 80).unwrap_or(0)
}

fn smallest_id_at(milliseconds: u64) -> Uuid {
    Uuid::from_u128(u128::from(milliseconds) << 80)
}

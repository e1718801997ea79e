//! Orders in the shards: every statement of the service, each for one bucket but the listing of all. Writes run again after a lost
//! connection, so each finds out what an earlier try has done.

use std::cmp::Reverse;

use longshore_sharding::{Key, OrderId};
use service_kit::{
    guarded, guarded_among,
    shards::{Placement, RouteError, ShardRouter, Share},
};
use sqlx::{PgConnection, Row, postgres::PgRow, types::Json};
use uuid::Uuid;

use crate::model::{IdempotencyKey, NewOrder, Order, OrderItem, OrderStatus};

/// What became of a request for an order.
#[derive(Debug)]
pub(crate) enum Placed {
    /// It made this order.
    Created(Order),
    /// An earlier one of the same key and content made this order.
    Repeated(Order),
    /// The key stands for a request with other content.
    KeyReused,
}

/// The orders of all users.
#[derive(Clone)]
pub(crate) struct OrderStore {
    shards: ShardRouter,
}

impl OrderStore {
    pub(crate) fn new(shards: ShardRouter) -> Self {
        Self { shards }
    }

    pub(crate) async fn placement(&self, user_id: i64) -> Result<Placement, RouteError> {
        self.shards.place(Key::Bigint(user_id)).await
    }

    /// Stores `new` as `order_id`, unless `key` was used before. Three round trips, four where it was.
    pub(crate) async fn place(
        &self,
        placement: Placement,
        key: IdempotencyKey,
        order_id: OrderId,
        new: NewOrder,
    ) -> Result<Placed, RouteError> {
        let body_hash = new.body_hash();
        self.shards
            .write_bucket(placement, async move |tx, _| {
                match insert(tx, &key, &body_hash, order_id, &new).await? {
                    Some(created_at) => Ok(Placed::Created(created(order_id, &new, created_at))),
                    None => repeated(tx, &key, &body_hash, order_id, new.user_id()).await,
                }
            })
            .await
    }

    /// The order, if there is one. One round trip.
    pub(crate) async fn get(&self, order_id: OrderId) -> Result<Option<Order>, RouteError> {
        let Some(placement) = self.shards.place_bucket(order_id.bucket()).await? else { return Ok(None) };
        self.shards
            .read_bucket(placement, async move |connection, placement| {
                let row = sqlx::query(GET)
                    .bind(placement.bucket_int())
                    .bind(placement.mask_bigint())
                    .bind(order_id.as_uuid())
                    .fetch_one(connection)
                    .await?;
                order_of(&row)
            })
            .await
    }

    /// Up to `limit` orders of the user, newest first, from the one after `after`. One round trip.
    pub(crate) async fn list(
        &self,
        placement: Placement,
        user_id: i64,
        after: Option<OrderId>,
        limit: u32,
    ) -> Result<Vec<Order>, RouteError> {
        let before = after.map_or(Uuid::max(), OrderId::as_uuid);
        self.shards
            .read_bucket(placement, async move |connection, placement| {
                let rows = sqlx::query(LIST)
                    .bind(placement.bucket_int())
                    .bind(user_id)
                    .bind(before)
                    .bind(i64::from(limit))
                    .fetch_all(connection)
                    .await?;
                rows.iter().filter_map(|row| order_of(row).transpose()).collect()
            })
            .await
    }

    /// Up to `limit` orders of all users, newest first, from the one after `after`; of `status` alone where it is given.
    /// Three round trips to every shard, the shards side by side. Each order stands as it was at some moment within the
    /// call; of what is stored meanwhile any part may be there.
    pub(crate) async fn list_all(
        &self,
        status: Option<OrderStatus>,
        after: Option<OrderId>,
        limit: u32,
    ) -> Result<Vec<Order>, RouteError> {
        let before = after.map_or(Uuid::max(), OrderId::as_uuid);
        let parts = self
            .shards
            .scatter(async move |connection, share: Share| {
                let rows = sqlx::query(LIST_ALL)
                    .bind(share.asked())
                    .bind(share.mask_bigint())
                    .bind(before)
                    .bind(status.map(OrderStatus::as_str))
                    .bind(i64::from(limit))
                    .fetch_all(connection)
                    .await?;
                let orders = rows.iter().filter_map(|row| order_of(row).transpose());
                Ok((Share::vouched(&rows)?, orders.collect::<Result<Vec<_>, _>>()?))
            })
            .await?;
        let mut orders: Vec<Order> = parts.into_iter().flat_map(|part| part.value).collect();
        orders.sort_unstable_by_key(|order| Reverse(order.order_id));
        orders.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(orders)
    }

    /// Cancels the order, if there is one, and writes the event of it once. Three round trips.
    pub(crate) async fn cancel(&self, order_id: OrderId) -> Result<Option<Order>, RouteError> {
        let Some(placement) = self.shards.place_bucket(order_id.bucket()).await? else { return Ok(None) };
        self.shards
            .write_bucket(placement, async move |tx, placement| {
                let row = sqlx::query(CANCEL)
                    .bind(placement.bucket_int())
                    .bind(placement.mask_bigint())
                    .bind(order_id.as_uuid())
                    .fetch_optional(tx)
                    .await?;
                Ok(row.map(|row| order_of(&row)).transpose()?.flatten())
            })
            .await
    }
}

/// An order's columns but `status` and `version`, from a relation `o`.
macro_rules! order_columns {
    () => {
        "o.user_id, o.order_id, o.total_cents,
         to_char(o.created_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') as created_at,
         (select coalesce(json_agg(json_build_object('line', i.line, 'sku', i.sku, 'quantity', i.quantity,
                                                     'price_cents', i.price_cents) order by i.line), '[]')
          from order_items i where i.user_id = o.user_id and i.order_id = o.order_id) as items"
    };
}

/// All rows of an order, or none where the key is taken. If its taker is still under way, this waits for it.
const INSERT: &str = "
    with claimed as (
        insert into idempotency_keys (user_id, key, body_hash, order_id, created_at)
        values ($1, $2, $3, $4, now())
        on conflict (user_id, key) do nothing
        returning user_id, order_id, created_at
    ), placed as (
        insert into orders (user_id, order_id, status, total_cents, created_at, version)
        select user_id, order_id, 'created', $5, created_at, 1 from claimed
    ), listed as (
        insert into order_items (user_id, order_id, line, sku, quantity, price_cents)
        select c.user_id, c.order_id, i.line, i.sku, i.quantity, i.price_cents
        from claimed c,
             unnest($6::text[], $7::int[], $8::bigint[]) with ordinality as i (sku, quantity, price_cents, line)
    ), told as (
        insert into order_events (user_id, order_id, version, type, payload, created_at)
        select user_id, order_id, 1, 'created', $9, created_at from claimed
    )
    select to_char(created_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') as created_at from claimed";

/// Stores the order; says when, or nothing where the key is taken.
async fn insert(
    tx: &mut PgConnection,
    key: &IdempotencyKey,
    body_hash: &[u8],
    order_id: OrderId,
    new: &NewOrder,
) -> Result<Option<String>, sqlx::Error> {
    let items = new.items();
    let row = sqlx::query(INSERT)
        .bind(new.user_id())
        .bind(key.as_str())
        .bind(body_hash)
        .bind(order_id.as_uuid())
        .bind(new.total_cents())
        .bind(items.iter().map(|item| item.sku.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|item| item.quantity).collect::<Vec<_>>())
        .bind(items.iter().map(|item| item.price_cents).collect::<Vec<_>>())
        .bind(Json(serde_json::json!({ "total_cents": new.total_cents(), "items": items })))
        .fetch_optional(tx)
        .await?;
    row.map(|row| row.try_get("created_at")).transpose()
}

/// A statement of its own: at READ COMMITTED it sees the row that the insert ran into.
const REPEATED: &str = concat!(
    "select k.body_hash, o.status, o.version, ",
    order_columns!(),
    " from idempotency_keys k join orders o on o.user_id = k.user_id and o.order_id = k.order_id
      where k.user_id = $1 and k.key = $2"
);

async fn repeated(
    tx: &mut PgConnection,
    key: &IdempotencyKey,
    body_hash: &[u8],
    order_id: OrderId,
    user_id: i64,
) -> Result<Placed, sqlx::Error> {
    let row = sqlx::query(REPEATED).bind(user_id).bind(key.as_str()).fetch_one(tx).await?;
    if row.try_get::<Vec<u8>, _>("body_hash")? != body_hash {
        return Ok(Placed::KeyReused);
    }
    let order = order_of(&row)?.ok_or(sqlx::Error::RowNotFound)?;
    // With this request's own id, it is this request that made it, in a try whose commit was not confirmed.
    Ok(if order.order_id == order_id { Placed::Created(order) } else { Placed::Repeated(order) })
}

/// The id's bucket chose the shard; a row whose user has another bucket is not this order.
const GET: &str = guarded!(
    "select o.status, o.version, ",
    order_columns!(),
    " from guard left join orders o on o.order_id = $3 and (hashint8extended(o.user_id, 0) & $2)::int = $1"
);

const LIST: &str = guarded!(
    ", page as (
        select * from orders where user_id = $2 and order_id < $3 order by order_id desc limit $4
    ) select o.status, o.version, ",
    order_columns!(),
    " from guard left join page o on true order by o.order_id desc"
);

/// From the index on order_id, newest first, until `limit` rows are found that this shard answers for. `case` makes the
/// planner take half of all rows for such; of a bare `<@` it would expect so few that it read and sorted the table. The
/// guard's own row comes first (nulls do) and says which buckets those are.
const LIST_ALL: &str = guarded_among!(
    ", page as (
        select * from orders
        where order_id < $3 and ($4::text is null or status = $4)
              and case when (hashint8extended(user_id, 0) & $2)::int <@ (select vouched from guard) then true end
        order by order_id desc limit $5
    ) select guard.vouched::text as vouched, o.status, o.version, ",
    order_columns!(),
    " from guard full join page o on false order by o.order_id desc"
);

/// The row is locked first and judged as it is then: of two at once, the second sees the first one's change and
/// makes none. What is not updated cannot be told from what was not found, hence the outer join.
const CANCEL: &str = concat!(
    "with o as materialized (
        select * from orders
        where order_id = $3 and (hashint8extended(user_id, 0) & $2)::int = $1
        for update
    ), changed as (
        update orders set status = 'cancelled', version = orders.version + 1
        from o where orders.user_id = o.user_id and orders.order_id = o.order_id and o.status = 'created'
        returning orders.user_id, orders.order_id, orders.status, orders.version, orders.total_cents
    ), told as (
        insert into order_events (user_id, order_id, version, type, payload, created_at)
        select user_id, order_id, version, 'cancelled', jsonb_build_object('total_cents', total_cents), now()
        from changed
    )
    select coalesce(c.status, o.status) as status, coalesce(c.version, o.version) as version, ",
    order_columns!(),
    " from o left join changed c on c.user_id = o.user_id and c.order_id = o.order_id"
);

/// The order of a row; nothing where an outer join found none.
fn order_of(row: &PgRow) -> Result<Option<Order>, sqlx::Error> {
    let Some(order_id) = row.try_get::<Option<Uuid>, _>("order_id")? else { return Ok(None) };
    let status: String = row.try_get("status")?;
    let Json(items) = row.try_get::<Json<Vec<OrderItem>>, _>("items")?;
    Ok(Some(Order {
        order_id: OrderId::try_from(order_id).map_err(decode)?,
        user_id: row.try_get("user_id")?,
        status: OrderStatus::parse(&status).ok_or_else(|| decode(UnknownStatus(status)))?,
        total_cents: row.try_get("total_cents")?,
        version: row.try_get("version")?,
        created_at: row.try_get("created_at")?,
        items,
    }))
}

/// The order that was just stored, without reading it back.
fn created(order_id: OrderId, new: &NewOrder, created_at: String) -> Order {
    let items = new.items().iter().zip(1..).map(|(item, line)| OrderItem {
        line,
        sku: item.sku.clone(),
        quantity: item.quantity,
        price_cents: item.price_cents,
    });
    Order {
        order_id,
        user_id: new.user_id(),
        status: OrderStatus::Created,
        total_cents: new.total_cents(),
        version: 1,
        created_at,
        items: items.collect(),
    }
}

/// The table holds a word that its check constraint does not allow.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an order's status")]
struct UnknownStatus(String);

fn decode(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

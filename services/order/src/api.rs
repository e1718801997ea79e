//! The HTTP API: reads requests, asks the store, writes answers.

use std::time::{Duration, SystemTime};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use longshore_sharding::OrderId;
use serde::{Deserialize, Serialize};
use service_kit::{
    Problem,
    extract::{JsonBody, PathOf, QueryOf},
    shards::{ShardRouter, Status},
};

use crate::{
    cursor,
    model::{IdempotencyKey, Invalid, NewOrder, Order, OrderRequest, OrderStatus},
    store::{OrderStore, Placed},
};

const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 100;

/// Everything the service answers, but for what every service does.
pub(crate) fn routes(shards: ShardRouter) -> Router {
    let orders = Router::new()
        .route("/api/orders", post(place).get(list))
        .route("/api/orders/{id}", get(show))
        .route("/api/orders/{id}/cancel", post(cancel))
        .route("/api/staff/orders", get(list_all))
        .with_state(OrderStore::new(shards.clone()));
    Router::new().route("/health", get(health)).with_state(shards).merge(orders)
}

async fn place(
    State(store): State<OrderStore>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<OrderRequest>,
) -> Result<Response, Problem> {
    let key =
        IdempotencyKey::from_values(headers.get_all("idempotency-key").iter().map(|value| value.as_bytes()))
            .map_err(invalid)?;
    let new = NewOrder::try_from(request).map_err(invalid)?;
    let placement = store.placement(new.user_id()).await?;
    let order_id = OrderId::new(unix_ms(), placement.bucket, rand::random());
    match store.place(placement, key, order_id, new).await? {
        Placed::Created(order) => {
            let location = format!("/api/orders/{}", order.order_id);
            Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(order)).into_response())
        }
        Placed::Repeated(order) => Ok(Json(order).into_response()),
        Placed::KeyReused => {
            let detail = "this Idempotency-Key was used for an order with other content";
            Err(Problem::new(StatusCode::CONFLICT, detail)
                .of_kind("urn:longshore:problem:idempotency-key-reused", "Idempotency key reused"))
        }
    }
}

async fn show(State(store): State<OrderStore>, PathOf(id): PathOf<String>) -> Result<Json<Order>, Problem> {
    store.get(order_id(&id)?).await?.map(Json).ok_or_else(no_such_order)
}

async fn cancel(State(store): State<OrderStore>, PathOf(id): PathOf<String>) -> Result<Json<Order>, Problem> {
    store.cancel(order_id(&id)?).await?.map(Json).ok_or_else(no_such_order)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    user_id: i64,
    limit: Option<u32>,
    cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct Page {
    orders: Vec<Order>,
    next_cursor: Option<String>,
}

async fn list(
    State(store): State<OrderStore>,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<Page>, Problem> {
    let limit = bounded(query.limit)?;
    let placement = store.placement(query.user_id).await?;
    let read = |text: &str| cursor::read(text, placement.bucket).ok_or_else(foreign_cursor);
    let after = query.cursor.as_deref().map(read).transpose()?;
    // One more than asked for tells whether there is another page.
    let orders = store.list(placement, query.user_id, after, limit + 1).await?;
    Ok(Json(page(orders, limit, cursor::after)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListAllQuery {
    status: Option<OrderStatus>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// The orders of all users, newest first: for those who run the shop, hence under a path of its own, which a gateway
/// can keep from customers.
async fn list_all(
    State(store): State<OrderStore>,
    QueryOf(query): QueryOf<ListAllQuery>,
) -> Result<Json<Page>, Problem> {
    let limit = bounded(query.limit)?;
    let read = |text: &str| cursor::read_of_all(text).ok_or_else(foreign_cursor);
    let after = query.cursor.as_deref().map(read).transpose()?;
    let orders = store.list_all(query.status, after, limit + 1).await?;
    Ok(Json(page(orders, limit, cursor::after_of_all)))
}

fn bounded(limit: Option<u32>) -> Result<u32, Problem> {
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    let allowed = (1..=LIMIT_MAX).contains(&limit);
    allowed.then_some(limit).ok_or_else(|| Problem::bad_request(format!("limit must be 1 to {LIMIT_MAX}")))
}

fn foreign_cursor() -> Problem {
    Problem::bad_request("cursor is not one that this listing has given")
}

fn page(mut orders: Vec<Order>, limit: u32, cursor_after: impl Fn(OrderId) -> String) -> Page {
    let more = u32::try_from(orders.len()).is_ok_and(|found| found > limit);
    if more {
        orders.pop();
    }
    let next_cursor = orders.last().filter(|_| more).map(|order| cursor_after(order.order_id));
    Page { orders, next_cursor }
}

async fn health(State(shards): State<ShardRouter>) -> Response {
    let report = shards.health().await;
    // A shard out of reach is no reason to take the service away from the users of the others.
    let status = match report.status {
        Status::Ok | Status::Degraded => StatusCode::OK,
        Status::Down => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(report)).into_response()
}

/// What is no order id names no order.
fn order_id(text: &str) -> Result<OrderId, Problem> {
    text.parse().map_err(|_| no_such_order())
}

fn no_such_order() -> Problem {
    Problem::not_found("there is no such order")
}

#[expect(clippy::needless_pass_by_value, reason = "taken as map_err gives it")]
fn invalid(error: Invalid) -> Problem {
    Problem::bad_request(error.to_string())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where the service reads the clock: ids carry the time"
)]
fn unix_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use longshore_sharding::BucketId;

    use super::*;
    use crate::model::OrderStatus;

    fn order(number: u64) -> Order {
        Order {
            order_id: OrderId::new(1_700_000_000_000, BucketId::new(1), number),
            user_id: 7,
            status: OrderStatus::Created,
            total_cents: 0,
            version: 1,
            created_at: String::new(),
            items: Vec::new(),
        }
    }

    #[test]
    fn a_page_says_whether_there_is_another() {
        let cases = [(0, 2, 0, false), (2, 2, 2, false), (3, 2, 2, true), (1, 1, 1, false), (2, 1, 1, true)];
        for (found, limit, shown, more) in cases {
            let page = page((0..found).map(order).collect(), limit, cursor::after);
            assert_eq!(page.orders.len(), shown, "{found} of {limit}");
            let last = page.orders.last().map(|order| order.order_id);
            let next = page.next_cursor.and_then(|text| cursor::read(&text, BucketId::new(1)));
            assert_eq!(next, last.filter(|_| more), "{found} of {limit}");
        }
    }

    #[test]
    fn what_is_no_id_is_not_found() {
        for text in ["", "7", "00000000-0000-0000-0000-000000000000", "../x"] {
            assert_eq!(order_id(text).unwrap_err().status(), StatusCode::NOT_FOUND, "{text}");
        }
    }
}

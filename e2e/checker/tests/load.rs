//! The load against an order service made of a map, which fails in the ways a client has to bear.

#![expect(clippy::unwrap_used, reason = "whatever is unexpected in here ends the test")]

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use checker::{
    Counts, History, Kind, Load, LoadOptions, Phase,
    history::{self, Operation, Outcome, Record},
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinSet};
use uuid::Uuid;

#[derive(Default)]
struct Service {
    orders: HashMap<String, Value>,
    by_key: HashMap<String, String>,
    tries: HashMap<String, u32>,
    places: u32,
}

type Shared = Arc<Mutex<Service>>;

/// Every tenth place is answered 503 first, and every tenth is done but answered 500 first.
async fn place(State(service): State<Shared>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let mut service = service.lock().unwrap();
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    if let Some(order_id) = service.by_key.get(&key) {
        return (StatusCode::OK, Json(service.orders[order_id].clone())).into_response();
    }
    let tries = service.tries.entry(key.clone()).or_default();
    *tries += 1;
    let first = *tries == 1;
    service.places += u32::from(first);
    if first && service.places.is_multiple_of(10) {
        return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")]).into_response();
    }
    let items = body["items"].as_array().unwrap().clone();
    let total: i64 = items
        .iter()
        .map(|one| one["quantity"].as_i64().unwrap() * one["price_cents"].as_i64().unwrap())
        .sum();
    let lines = (1..).zip(items).map(|(line, mut item): (i64, Value)| {
        item["line"] = line.into();
        item
    });
    let order_id = Uuid::new_v4().to_string();
    let order = json!({
        "order_id": order_id, "user_id": body["user_id"], "status": "created", "total_cents": total,
        "version": 1, "created_at": "2026-01-01T00:00:00Z", "items": lines.collect::<Vec<_>>(),
    });
    service.by_key.insert(key, order_id.clone());
    service.orders.insert(order_id, order.clone());
    if first && service.places % 10 == 5 {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    (StatusCode::CREATED, Json(order)).into_response()
}

async fn cancel(State(service): State<Shared>, Path(order_id): Path<String>) -> Json<Value> {
    let mut service = service.lock().unwrap();
    let order = service.orders.get_mut(&order_id).unwrap();
    order["status"] = "cancelled".into();
    order["version"] = 2.into();
    Json(order.clone())
}

async fn read(State(service): State<Shared>, Path(order_id): Path<String>) -> Json<Value> {
    Json(service.lock().unwrap().orders[&order_id].clone())
}

async fn list(State(service): State<Shared>, Query(query): Query<HashMap<String, String>>) -> Json<Value> {
    let user_id: i64 = query["user_id"].parse().unwrap();
    let service = service.lock().unwrap();
    let orders: Vec<_> = service.orders.values().filter(|order| order["user_id"] == user_id).collect();
    Json(json!({ "orders": orders, "next_cursor": null }))
}

fn honest(service: Shared) -> Router {
    Router::new()
        .route("/api/orders", post(place).get(list))
        .route("/api/orders/{id}", get(read))
        .route("/api/orders/{id}/cancel", post(cancel))
        .with_state(service)
}

/// Serves on a port of its own until the set is dropped.
async fn serve(router: Router) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (base, server)
}

fn new_history() -> (PathBuf, History) {
    let path = std::env::temp_dir().join(format!("checker-load-{}.jsonl", Uuid::new_v4()));
    let history = History::create(&path).unwrap();
    (path, history)
}

async fn until(load: &Load, reached: impl Fn(Counts) -> bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    while !reached(load.snapshot().all) {
        assert!(!load.has_ended());
        tick.tick().await;
    }
}

#[tokio::test]
async fn retries_bring_every_order_in_once() {
    let service = Shared::default();
    let (base, _server) = serve(honest(service.clone())).await;
    let (path, history) = new_history();
    let options =
        LoadOptions { targets: vec![base], orders_per_second: 400.0, users: 50, ..LoadOptions::default() };
    let load = Load::start(options, history.clone()).unwrap();
    until(&load, |counts| counts.acknowledged >= 300).await;
    load.set_phase(Phase::During);
    until(&load, |counts| counts.acknowledged >= 600).await;
    let summary = load.stop().await.unwrap();
    history.close().await.unwrap();

    let all = summary.all();
    assert_eq!((all.failed, all.dropped, all.acknowledged), (0, 0, all.attempted));
    let places = summary.of(Kind::Place);
    assert!(places.retried >= places.attempted / 6, "{places:?}");
    assert_eq!(service.lock().unwrap().orders.len() as u64, places.acknowledged);
    for kind in Kind::ALL {
        assert!(summary.of(kind).attempted > 0, "{kind:?}");
        let counted: u64 = Phase::ALL.iter().map(|phase| summary.latency_of(*phase, kind).count).sum();
        assert_eq!(counted, summary.of(kind).attempted);
    }
    assert!(summary.latency_of(Phase::During, Kind::Place).p50_ms > 0.0);

    let records: Vec<Record> = history::read(&path).unwrap().map(Result::unwrap).collect();
    let intents = records.iter().filter(|record| matches!(record, Record::Intent { .. })).count();
    assert_eq!((intents as u64, records.len() as u64), (all.attempted, 2 * all.attempted));
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn what_is_never_answered_is_indeterminate_and_the_bound_is_counted() {
    let hang = || async { std::future::pending::<StatusCode>().await };
    let (base, _server) = serve(Router::new().fallback(hang)).await;
    let (path, history) = new_history();
    let options = LoadOptions {
        targets: vec![base],
        orders_per_second: 200.0,
        try_timeout: Duration::from_millis(300),
        retry_for: Duration::from_millis(500),
        in_flight_max: 10,
        ..LoadOptions::default()
    };
    let load = Load::start(options, history.clone()).unwrap();
    until(&load, |counts| counts.attempted >= 60).await;
    let summary = load.stop().await.unwrap();
    history.close().await.unwrap();

    let all = summary.all();
    assert_eq!((all.acknowledged, all.failed), (0, all.attempted));
    assert!(all.dropped > 0 && all.dropped < all.failed, "{all:?}");
    let records: Vec<Record> = history::read(&path).unwrap().map(Result::unwrap).collect();
    let unsure =
        |record: &&Record| matches!(record, Record::Outcome { outcome: Outcome::Indeterminate { .. }, .. });
    assert_eq!(records.iter().filter(unsure).count() as u64, all.failed - all.dropped);
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn a_history_is_read_up_to_where_its_writer_died() {
    let (path, history) = new_history();
    let operation = Operation::Get { order_id: Uuid::nil() };
    let id = history.intent(5, &operation).await.unwrap();
    // Durable when the call returns, before the history is closed.
    let written = std::fs::read_to_string(&path).unwrap();
    let intent = Record::Intent { id, due_us: 5, operation: operation.clone() };
    assert_eq!(written, format!("{}\n", serde_json::to_string(&intent).unwrap()));
    history.close().await.unwrap();
    assert!(history.intent(6, &operation).await.is_err());
    assert!(History::create(&path).is_err(), "a history is never continued");

    std::fs::write(&path, format!("{written}{{\"intent\":{{\"id\":2,\"du")).unwrap();
    let records: Vec<_> = history::read(&path).unwrap().map(Result::unwrap).collect();
    assert_eq!(records, [intent]);
    std::fs::write(&path, format!("nonsense\n{written}")).unwrap();
    assert!(history::read(&path).unwrap().any(|record| record.is_err()));
    std::fs::remove_file(path).unwrap();
}

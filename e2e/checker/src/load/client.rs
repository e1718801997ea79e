//! The HTTP client: what an honest user of the order service would do. Retries with the same idempotency key,
//! backs off with jitter, and never calls a try "not applied" that may have been.

use super::LoadOptions;
use crate::history::{Answer, Item, Operation, OrderFacts, Outcome};
use rand::RngExt;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// As a proxy before the service would keep: what a burst opened beyond these is closed again, or it would cost the service memory
/// for as long as bursts follow each other.
const IDLE_CONNECTIONS: usize = 32;

#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    targets: Vec<String>,
    next_target: AtomicUsize,
    retry_for: Duration,
}

/// What came of one try.
enum Try {
    Success(u16, Answer),
    /// A 4xx that no retry will change.
    Refused(u16),
    /// Worth another try.
    Again {
        /// The request may have been applied.
        unsure: bool,
        reason: String,
        /// The server said so.
        retry_after: Option<Duration>,
    },
}

#[derive(Serialize)]
struct PlaceBody<'a> {
    user_id: i64,
    items: &'a [Item],
}

#[derive(Deserialize)]
struct OrderBody {
    order_id: Uuid,
    user_id: i64,
    status: String,
    version: i64,
    total_cents: i64,
    #[serde(default)]
    items: Vec<LineBody>,
}

#[derive(Deserialize)]
struct LineBody {
    line: i64,
    #[serde(flatten)]
    item: Item,
}

#[derive(Deserialize)]
struct PageBody {
    orders: Vec<OrderBody>,
    next_cursor: Option<String>,
}

impl Client {
    pub(super) fn new(options: &LoadOptions) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .timeout(options.try_timeout)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .no_proxy()
            .build()?;
        let targets = options.targets.iter().map(|base| base.trim_end_matches('/').to_owned()).collect();
        Ok(Self { http, targets, next_target: AtomicUsize::new(0), retry_for: options.retry_for })
    }

    /// Tries until there is a final answer or patience ends. `on_first_retry` is called once if one try was
    /// not enough. I/O.
    pub(super) async fn perform(&self, operation: &Operation, on_first_retry: impl Fn()) -> Outcome {
        let give_up = Instant::now() + self.retry_for;
        let mut backoff = BACKOFF_FIRST;
        let mut earlier_unsure = false;
        let mut first = true;
        loop {
            let (reason, retry_after) = match self.attempt(operation).await {
                Try::Success(http_status, answer) => return Outcome::Acknowledged { http_status, answer },
                Try::Refused(http_status) => return Outcome::Refused { http_status, earlier_unsure },
                Try::Again { unsure, reason, retry_after } => {
                    earlier_unsure |= unsure;
                    (reason, retry_after)
                }
            };
            // Half to one and a half times, so that those who failed together do not come back together.
            let pause =
                retry_after.unwrap_or(backoff).max(backoff).mul_f64(rand::rng().random_range(0.5..1.5));
            if Instant::now() + pause >= give_up {
                return Outcome::Indeterminate { reason };
            }
            if std::mem::take(&mut first) {
                on_first_retry();
            }
            sleep(pause).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn attempt(&self, operation: &Operation) -> Try {
        let turn = self.next_target.fetch_add(1, Ordering::Relaxed);
        let base = &self.targets[turn % self.targets.len()];
        let response = match self.request(base, operation).send().await {
            Ok(response) => response,
            // A connection that was never made cannot have carried the request.
            Err(error) => return again(!error.is_connect(), &error),
        };
        let status = response.status();
        let retry_after = retry_after(&response);
        // A success whose body is lost on the way is unsure: the caller never heard the order's id.
        match response.bytes().await {
            Ok(bytes) => classify(operation, status, retry_after, &bytes),
            Err(error) => again(true, &error),
        }
    }

    fn request(&self, base: &str, operation: &Operation) -> reqwest::RequestBuilder {
        match operation {
            Operation::Place { user_id, key, items } => self
                .http
                .post(format!("{base}/api/orders"))
                .header("Idempotency-Key", key)
                .json(&PlaceBody { user_id: *user_id, items }),
            Operation::Get { order_id } => self.http.get(format!("{base}/api/orders/{order_id}")),
            Operation::List { user_id, limit } => {
                self.http.get(format!("{base}/api/orders?user_id={user_id}&limit={limit}"))
            }
            Operation::Cancel { order_id } => self.http.post(format!("{base}/api/orders/{order_id}/cancel")),
        }
    }
}

fn again(unsure: bool, error: &reqwest::Error) -> Try {
    let mut reason = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        reason = format!("{reason}: {inner}");
        cause = inner.source();
    }
    Try::Again { unsure, reason, retry_after: None }
}

fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response.headers().get("Retry-After")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(Duration::from_secs(5)))
}

fn classify(operation: &Operation, status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Try {
    let http_status = status.as_u16();
    if status.is_success() {
        return Try::Success(http_status, answer(operation, body));
    }
    // Too many requests and a request time-out come before any work; a 5xx may come after it.
    let worth_a_retry = status.is_server_error() || matches!(http_status, 408 | 429);
    if worth_a_retry {
        let text: String = String::from_utf8_lossy(body).chars().take(300).collect();
        let reason = format!("HTTP {http_status}: {text}");
        return Try::Again { unsure: status.is_server_error(), reason, retry_after };
    }
    Try::Refused(http_status)
}

fn answer(operation: &Operation, body: &[u8]) -> Answer {
    let read = match operation {
        Operation::List { .. } => serde_json::from_slice(body).map(|page: PageBody| Answer::Page {
            orders: page.orders.into_iter().map(facts).collect(),
            more: page.next_cursor.is_some(),
        }),
        Operation::Place { .. } | Operation::Get { .. } | Operation::Cancel { .. } => {
            serde_json::from_slice(body).map(|order| Answer::Order(facts(order)))
        }
    };
    read.unwrap_or_else(|error| Answer::Unreadable(error.to_string()))
}

fn facts(mut body: OrderBody) -> OrderFacts {
    body.items.sort_by_key(|line| line.line);
    OrderFacts {
        order_id: body.order_id,
        user_id: body.user_id,
        status: body.status,
        version: body.version,
        total_cents: body.total_cents,
        items: body.items.into_iter().map(|line| line.item).collect(),
    }
}

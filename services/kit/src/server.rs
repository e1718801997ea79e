//! The HTTP server around a service's routes: metrics, limits, problem details for what no route answers, and a
//! drain on SIGTERM.

use std::{io, net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{Method, StatusCode},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
    serve::ListenerExt,
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{Problem, settings::ServerSettings, telemetry::Telemetry};

/// The largest request body.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// How long requests in flight may take once the server is told to stop. A request takes no longer than this
/// either, so that none is cut off by the drain.
const DRAIN: Duration = Duration::from_secs(20);

const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Why the server ended otherwise than asked.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address could not be bound
    #[error("failed to listen on {address}")]
    Listen {
        /// Where
        address: SocketAddr,
        /// Why not
        #[source]
        source: io::Error,
    },
    /// Signals could not be caught
    #[error("failed to install the signal handlers")]
    Signals(#[source] io::Error),
    /// Serving failed
    #[error("failed to serve HTTP")]
    Serve(#[source] io::Error),
}

/// Serves `app` until SIGTERM or SIGINT, then stops accepting and lets requests in flight finish.
///
/// # Errors
/// When the address cannot be bound or serving fails. A drain that runs out of time is logged, not an error.
pub async fn run(settings: &ServerSettings, telemetry: &Telemetry, app: Router) -> Result<(), ServerError> {
    let terminate = signal(SignalKind::terminate()).map_err(ServerError::Signals)?;
    let interrupt = signal(SignalKind::interrupt()).map_err(ServerError::Signals)?;
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|source| ServerError::Listen { address: settings.listen, source })?;
    let address = listener.local_addr().map_err(ServerError::Serve)?;
    tracing::info!(%address, "serving HTTP on {address}");

    let listener = listener.tap_io(|stream| {
        // Small answers must not wait for the acknowledgement of the one before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "failed to set TCP_NODELAY");
        }
    });
    let (asked_to_stop, stopping) = oneshot::channel();
    let serving = axum::serve(listener, dress(app, telemetry.clone())).with_graceful_shutdown(async move {
        asked_to_end(terminate, interrupt).await;
        tracing::info!("asked to stop: finishing the requests in flight");
        let _ = asked_to_stop.send(());
    });
    tokio::select! {
        result = serving.into_future() => result.map_err(ServerError::Serve),
        () = drain_over(stopping) => {
            tracing::warn!("requests were still in flight {} s after the signal", DRAIN.as_secs());
            Ok(())
        }
        () = keep_up(telemetry) => Ok(()),
    }
}

/// Adds what every service answers and measures.
fn dress(app: Router, telemetry: Telemetry) -> Router {
    app.route(
        "/metrics",
        get(|State(telemetry): State<Telemetry>| async move { telemetry.render() }).with_state(telemetry),
    )
    .fallback(|| async { Problem::not_found("there is nothing at this path") })
    .method_not_allowed_fallback(|| async {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not know the method")
    })
    .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
    .layer(from_fn(measure))
}

/// Counts and times a request, and bounds it: a client that never ends its body must not hold it for ever.
async fn measure(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let method = method_label(request.method());
    let started = Instant::now();
    let response = timeout(DRAIN, next.run(request))
        .await
        .unwrap_or_else(|_| Problem::unavailable("the request took too long").into_response());
    let status = response.status().as_str().to_owned();
    metrics::histogram!("http_request_duration_seconds", "method" => method, "route" => route.clone())
        .record(started.elapsed());
    metrics::counter!("http_requests_total", "method" => method, "route" => route, "status" => status)
        .increment(1);
    response
}

/// Clients may send any word as the method: only known ones become a label.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

async fn asked_to_end(mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Ends when a drain has begun and its time is over.
async fn drain_over(stopping: oneshot::Receiver<()>) {
    if stopping.await.is_err() {
        // The server has ended by itself; its own result is about to be taken.
        std::future::pending::<()>().await;
    }
    sleep(DRAIN).await;
}

async fn keep_up(telemetry: &Telemetry) {
    let mut ticks = interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        telemetry.upkeep();
    }
}

//! Open-loop load: arrivals come when they are due, whether or not earlier ones have been answered, and
//! latency counts from the moment an operation was due. Owns arrivals and the client's patience; must not look
//! into the stores.

mod client;
mod plan;
mod stats;
mod zipf;

use crate::{
    history::{History, HistoryError, Outcome},
    preload::PreloadedOrder,
};
use client::Client;
use plan::{Planned, Planner, Targets};
pub use stats::{Counts, Latency, Snapshot, Summary};
use stats::{Finished, Stats};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};

/// Intents are written so long before they are due, so that the log's own `fdatasync` is not measured.
const LOOKAHEAD: Duration = Duration::from_millis(250);

/// What kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// POST /api/orders.
    Place,
    /// GET /api/orders/{id}.
    Get,
    /// GET /api/orders?user_id=.
    List,
    /// POST /api/orders/{id}/cancel.
    Cancel,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Place, Self::Get, Self::List, Self::Cancel];

    /// As in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Place => "place",
            Self::Get => "get",
            Self::List => "list",
            Self::Cancel => "cancel",
        }
    }
}

/// A label for latencies: before, during or after what is being tried. An operation bears the label of the
/// moment it was due; a load begins with the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// While connections are made and caches fill: as the measure of what comes, it would excuse too much.
    WarmUp,
    /// Until it starts.
    Before,
    /// While it runs.
    During,
    /// When it is done.
    After,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::WarmUp, Self::Before, Self::During, Self::After];

    /// As in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WarmUp => "warmUp",
            Self::Before => "before",
            Self::During => "during",
            Self::After => "after",
        }
    }
}

/// Shares of the kinds, in any unit.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Places.
    pub place: u32,
    /// Gets.
    pub get: u32,
    /// Lists.
    pub list: u32,
    /// Cancels.
    pub cancel: u32,
}

impl Default for Mix {
    fn default() -> Self {
        Self { place: 60, get: 25, list: 5, cancel: 10 }
    }
}

/// What to ask, how often, and how patiently.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Base URLs of the order service's replicas, e.g. `http://127.0.0.1:3003`; taken in turn, and a retry
    /// takes the next.
    pub targets: Vec<String>,
    /// *Places* a second, on average; the other kinds come on top, in the shares of `mix`.
    pub orders_per_second: f64,
    /// Shares of the kinds.
    pub mix: Mix,
    /// Users are numbered from 1 to this.
    pub users: u64,
    /// Exponent of the users' Zipf distribution; 0 is uniform.
    pub zipf_exponent: f64,
    /// The same seed gives the same arrivals, kinds, users and items.
    pub seed: u64,
    /// Preloaded orders to read now and then.
    pub preloaded: Vec<PreloadedOrder>,
    /// A try without an answer for so long is given up.
    pub try_timeout: Duration,
    /// An operation is retried for so long, counted from its first try.
    pub retry_for: Duration,
    /// More than so many in flight: the arrival is dropped and counted as failed.
    pub in_flight_max: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            orders_per_second: 100.0,
            mix: Mix::default(),
            users: 10_000,
            zipf_exponent: 1.0,
            seed: 1,
            preloaded: Vec::new(),
            try_timeout: Duration::from_secs(5),
            retry_for: Duration::from_secs(30),
            in_flight_max: 2_000,
        }
    }
}

/// What ends a load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Nothing to send to, no users, no rate, or nothing in the mix.
    #[error("the load needs targets, users, a positive rate and a mix with places")]
    Options,
    /// The HTTP client could not be made.
    #[error("failed to make the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The intent could not be made durable, so nothing may be sent.
    #[error("failed to write down an operation")]
    History(#[source] HistoryError),
    /// A task of the load panicked.
    #[error("a task of the load ended early")]
    Task(#[source] JoinError),
}

/// A running load. Dropping it stops it at once, without waiting for answers: their operations are then
/// indeterminate.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    driver: JoinSet<Result<(), LoadError>>,
}

/// What the driver, its operations and the handle share.
#[derive(Debug)]
struct Shared {
    history: History,
    client: Client,
    targets: Targets,
    stats: Stats,
    phase: AtomicU8,
    in_flight: AtomicUsize,
    in_flight_max: usize,
}

impl Load {
    /// Starts sending, in a quarter of a second. Must be called inside a tokio runtime.
    pub fn start(options: LoadOptions, history: History) -> Result<Self, LoadError> {
        let planner = Planner::new(&options).ok_or(LoadError::Options)?;
        let shared = Arc::new(Shared {
            client: Client::new(&options).map_err(LoadError::Client)?,
            targets: Targets::new(options.preloaded),
            stats: Stats::new(),
            phase: AtomicU8::new(0),
            in_flight: AtomicUsize::new(0),
            in_flight_max: options.in_flight_max,
            history,
        });
        let (stop, stopped) = watch::channel(false);
        let mut driver = JoinSet::new();
        driver.spawn(drive(planner, shared.clone(), stopped));
        Ok(Self { shared, stop, driver })
    }

    /// Operations due from now on are counted under this label.
    pub fn set_phase(&self, phase: Phase) {
        let index = Phase::ALL.iter().position(|one| *one == phase).unwrap_or(0);
        self.shared.phase.store(u8::try_from(index).unwrap_or(0), Ordering::Relaxed);
    }

    /// How it goes, right now.
    pub fn snapshot(&self) -> Snapshot {
        let in_flight = self.shared.in_flight.load(Ordering::Relaxed);
        self.shared.stats.snapshot(self.shared.history.now(), in_flight)
    }

    /// Whether the load has ended by itself, which it does only on an error that [`Load::stop`] returns.
    pub fn has_ended(&self) -> bool {
        self.driver.is_empty() || self.stop.is_closed()
    }

    /// No new arrivals; waits until everything in flight has its final answer (at most `retry_for` and one
    /// `try_timeout`), then sums up.
    pub async fn stop(mut self) -> Result<Summary, LoadError> {
        // A driver that already failed has no receiver; its error comes out of the join.
        let _ended = self.stop.send(true);
        while let Some(ended) = self.driver.join_next().await {
            ended.map_err(LoadError::Task)??;
        }
        Ok(self.shared.stats.summary())
    }
}

impl Shared {
    fn current_phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Relaxed)).min(Phase::ALL.len() - 1)]
    }
}

/// Lets each operation go when it is due, until told to stop; then waits for those that are under way.
async fn drive(
    mut planner: Planner,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), LoadError> {
    let start = Instant::now() + LOOKAHEAD;
    let mut operations = JoinSet::new();
    loop {
        let offset = planner.next_due();
        tokio::select! {
            () = sleep_until(start + offset - LOOKAHEAD) => {}
            _ = stopped.changed() => break,
        }
        let planned = planner.plan(&shared.targets);
        operations.spawn(run(planned, start + offset, shared.clone()));
        while let Some(done) = operations.try_join_next() {
            done.map_err(LoadError::Task)??;
        }
    }
    while let Some(done) = operations.join_next().await {
        done.map_err(LoadError::Task)??;
    }
    Ok(())
}

/// One operation: write it down, wait until it is due, send it, write down what came of it.
async fn run(planned: Planned, due: Instant, shared: Arc<Shared>) -> Result<(), LoadError> {
    let due_us = shared.history.at(due.into_std());
    let Planned { kind, operation } = planned;
    let id = shared.history.intent(due_us, &operation).await.map_err(LoadError::History)?;
    sleep_until(due).await;

    let phase = shared.current_phase();
    let began_us = shared.history.now();
    let full = shared.in_flight.fetch_add(1, Ordering::Relaxed) >= shared.in_flight_max;
    shared.stats.attempted(kind);
    let outcome = if full {
        Outcome::NotSent
    } else {
        shared.client.perform(&operation, || shared.stats.retried(kind)).await
    };
    shared.in_flight.fetch_sub(1, Ordering::Relaxed);

    let ended_us = shared.history.now();
    shared.targets.learn(&operation, &outcome);
    let finished = Finished { kind, phase, ended_us, latency_us: ended_us.saturating_sub(due_us) };
    shared.stats.finished(finished, &outcome);
    if !matches!(outcome, Outcome::Acknowledged { .. }) {
        tracing::warn!(operation.id = id, operation.kind = kind.as_str(), ?outcome, "an operation failed");
    }
    shared.history.outcome(id, began_us, ended_us, outcome).map_err(LoadError::History)
}

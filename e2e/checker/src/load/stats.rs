//! Counts and latencies of a load, whole and right now. Owns no policy.

use super::{Kind, Phase};
use crate::history::{Micros, Outcome};
use hdrhistogram::Histogram;
use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Snapshots show the percentiles of so many last seconds.
const WINDOW_US: Micros = 5_000_000;

/// How operations ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Due, whether sent or dropped.
    pub attempted: u64,
    /// Answered 2xx in the end.
    pub acknowledged: u64,
    /// Final non-2xx after the retries, or dropped.
    pub failed: u64,
    /// Needed more than one try.
    pub retried: u64,
    /// Of the failed ones: never sent, since too much was in flight.
    pub dropped: u64,
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            attempted: self.attempted + other.attempted,
            acknowledged: self.acknowledged + other.acknowledged,
            failed: self.failed + other.failed,
            retried: self.retried + other.retried,
            dropped: self.dropped + other.dropped,
        }
    }
}

/// How long operations took, from when they were due until their final answer, failed ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    /// So many.
    pub count: u64,
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

/// How a load goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Snapshot {
    /// All kinds together.
    pub all: Counts,
    /// Places alone.
    pub places: Counts,
    /// Sent and not answered yet.
    pub in_flight: usize,
    /// Of all that ended within the last five seconds; zeros if none.
    pub recent: Latency,
}

/// How a load went.
#[derive(Clone, Debug)]
pub struct Summary {
    /// By kind; every kind is there.
    pub counts: BTreeMap<Kind, Counts>,
    /// By label and kind; only those that occurred.
    pub latency: BTreeMap<(Phase, Kind), Latency>,
    /// From start to the last answer.
    pub seconds: f64,
}

impl Summary {
    /// All kinds together.
    pub fn all(&self) -> Counts {
        self.counts.values().fold(Counts::default(), |sum, one| sum.plus(*one))
    }

    /// One kind.
    pub fn of(&self, kind: Kind) -> Counts {
        self.counts.get(&kind).copied().unwrap_or_default()
    }

    /// Latency of a kind under a label; zeros if there was none.
    pub fn latency_of(&self, phase: Phase, kind: Kind) -> Latency {
        self.latency.get(&(phase, kind)).copied().unwrap_or_default()
    }
}

/// One operation, ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finished {
    pub(super) kind: Kind,
    pub(super) phase: Phase,
    pub(super) ended_us: Micros,
    pub(super) latency_us: u64,
}

#[derive(Debug)]
pub(super) struct Stats {
    started: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    counts: BTreeMap<Kind, Counts>,
    histograms: BTreeMap<(Phase, Kind), Histogram<u64>>,
    /// (ended, latency) of the last seconds.
    recent: VecDeque<(Micros, u64)>,
}

impl Stats {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), inner: Mutex::default() }
    }

    pub(super) fn attempted(&self, kind: Kind) {
        self.lock().counts.entry(kind).or_default().attempted += 1;
    }

    /// Counted while it is still being retried, so that trouble shows at once.
    pub(super) fn retried(&self, kind: Kind) {
        self.lock().counts.entry(kind).or_default().retried += 1;
    }

    pub(super) fn finished(&self, finished: Finished, outcome: &Outcome) {
        let mut inner = self.lock();
        let counts = inner.counts.entry(finished.kind).or_default();
        match outcome {
            Outcome::Acknowledged { .. } => counts.acknowledged += 1,
            Outcome::Refused { .. } | Outcome::Indeterminate { .. } => counts.failed += 1,
            Outcome::NotSent => {
                counts.failed += 1;
                counts.dropped += 1;
                // It took no time because nothing was done; counting it would flatter the latency.
                return;
            }
        }
        let key = (finished.phase, finished.kind);
        if let Some(histogram) = inner.histogram(key) {
            histogram.saturating_record(finished.latency_us);
        }
        inner.recent.push_back((finished.ended_us, finished.latency_us));
        let oldest = finished.ended_us.saturating_sub(WINDOW_US);
        while inner.recent.front().is_some_and(|(ended_us, _)| *ended_us < oldest) {
            inner.recent.pop_front();
        }
    }

    pub(super) fn snapshot(&self, now_us: Micros, in_flight: usize) -> Snapshot {
        let inner = self.lock();
        let oldest = now_us.saturating_sub(WINDOW_US);
        let window = inner.recent.iter().filter(|(ended_us, _)| *ended_us >= oldest);
        let mut latencies: Vec<u64> = window.map(|(_, latency_us)| *latency_us).collect();
        let sum = inner.counts.values().fold(Counts::default(), |sum, one| sum.plus(*one));
        let places = inner.counts.get(&Kind::Place).copied().unwrap_or_default();
        drop(inner);
        latencies.sort_unstable();
        Snapshot { all: sum, places, in_flight, recent: of_sorted(&latencies) }
    }

    pub(super) fn summary(&self) -> Summary {
        let inner = self.lock();
        let of = |kind: &Kind| (*kind, inner.counts.get(kind).copied().unwrap_or_default());
        Summary {
            counts: Kind::ALL.iter().map(of).collect(),
            latency: inner.histograms.iter().map(|(key, one)| (*key, of_histogram(one))).collect(),
            seconds: self.started.elapsed().as_secs_f64(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn histogram(&mut self, key: (Phase, Kind)) -> Option<&mut Histogram<u64>> {
        match self.histograms.entry(key) {
            Entry::Occupied(occupied) => Some(occupied.into_mut()),
            // Up to ten minutes in microseconds, three digits: constants that are accepted.
            Entry::Vacant(vacant) => {
                Histogram::new_with_bounds(1, 600_000_000, 3).ok().map(|made| vacant.insert(made))
            }
        }
    }
}

fn of_histogram(histogram: &Histogram<u64>) -> Latency {
    Latency {
        count: histogram.len(),
        p50_ms: milliseconds(histogram.value_at_quantile(0.50)),
        p99_ms: milliseconds(histogram.value_at_quantile(0.99)),
        max_ms: milliseconds(histogram.max()),
    }
}

fn of_sorted(latencies_us: &[u64]) -> Latency {
    let at = |percent: usize| {
        let rank = (latencies_us.len() * percent).div_ceil(100).max(1) - 1;
        milliseconds(latencies_us.get(rank).copied().unwrap_or(0))
    };
    Latency { count: latencies_us.len() as u64, p50_ms: at(50), p99_ms: at(99), max_ms: at(100) }
}

fn milliseconds(microseconds: u64) -> f64 {
    // Exact up to 2^53 microseconds.
    microseconds as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_window() {
        let latencies: Vec<u64> = (1..=1_000).map(|one| one * 1_000).collect();
        let latency = of_sorted(&latencies);
        assert_eq!((latency.p50_ms, latency.p99_ms, latency.max_ms), (500.0, 990.0, 1_000.0));
        assert_eq!(of_sorted(&[]), Latency::default());
    }

    #[test]
    fn a_dropped_arrival_is_a_failure_without_latency() {
        let stats = Stats::new();
        stats.attempted(Kind::Place);
        let finished = Finished { kind: Kind::Place, phase: Phase::During, ended_us: 5, latency_us: 1 };
        stats.finished(finished, &Outcome::NotSent);
        let summary = stats.summary();
        let expected = Counts { attempted: 1, failed: 1, dropped: 1, ..Counts::default() };
        assert_eq!((summary.all(), summary.of(Kind::Place)), (expected, expected));
        assert_eq!(summary.latency_of(Phase::During, Kind::Place).count, 0);
    }
}

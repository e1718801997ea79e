//! What the demo says at the end: a table for people, JSON for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use checker::{Kind, Phase, Summary};
use serde::Serialize;

use super::buckets::{Copied, Moved};
use crate::{pauses::Pauses, trial::Score};

/// The result of one demo.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    score: Score,
    pause_ms: Pauses,
    latency_ms: BTreeMap<&'static str, Latency>,
    buckets: Buckets,
    copy: Copy,
    seconds: Seconds,
    operator_kills: u32,
    /// Of how many buckets the pause is known.
    #[serde(skip)]
    pauses_known: usize,
}

/// Latency of placing an order, from the moment it was due.
#[derive(Clone, Copy, Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Buckets {
    total: u32,
    moved: usize,
    moved_percent: f64,
    floor_percent: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Copy {
    rows: i64,
    bytes: i64,
    seconds: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Seconds {
    cold_setup: f64,
    reshard: f64,
}

/// What the demo measured by itself, beside what the load and the judge say.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) buckets: u32,
    pub(super) moved: Moved,
    /// The fewest buckets that had to move.
    pub(super) floor: usize,
    pub(super) copied: Copied,
    pub(super) copying: Duration,
    /// In milliseconds.
    pub(super) pauses: Vec<f64>,
    pub(super) cold_setup: Duration,
    pub(super) reshard: Duration,
    pub(super) operator_kills: u32,
}

impl Report {
    pub(super) fn new(measured: &Measured, summary: &Summary, score: Score) -> Self {
        let percent = |count: usize| 100.0 * count as f64 / f64::from(measured.buckets);
        let moved = measured.moved.count();
        Self {
            score,
            pause_ms: Pauses::of(&measured.pauses),
            latency_ms: Phase::ALL
                .iter()
                .map(|phase| (phase.as_str(), Latency::of(summary, *phase)))
                .collect(),
            buckets: Buckets {
                total: measured.buckets,
                moved,
                moved_percent: percent(moved),
                floor_percent: percent(measured.floor),
            },
            copy: Copy {
                rows: measured.copied.rows,
                bytes: measured.copied.bytes,
                seconds: measured.copying.as_secs_f64(),
            },
            seconds: Seconds {
                cold_setup: measured.cold_setup.as_secs_f64(),
                reshard: measured.reshard.as_secs_f64(),
            },
            operator_kills: measured.operator_kills,
            pauses_known: measured.pauses.len(),
        }
    }

    /// What must not have happened, in words; empty if all is well.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.score.faults(false);
        if self.buckets.moved == 0 {
            faults.push("no bucket moved".to_owned());
        }
        if self.pauses_known < self.buckets.moved {
            faults.push(format!(
                "the write pause of {} moved buckets is unknown",
                self.buckets.moved - self.pauses_known
            ));
        }
        faults
    }
}

impl Latency {
    fn of(summary: &Summary, phase: Phase) -> Self {
        let latency = summary.latency_of(phase, Kind::Place);
        Self { p50: latency.p50_ms, p99: latency.p99_ms }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { score, pause_ms, buckets, copy, seconds, .. } = self;
        let megabytes = copy.bytes as f64 / 1e6;
        let copy_seconds = copy.seconds.max(0.001);
        write!(f, "{score}")?;
        writeln!(
            f,
            "buckets     {} of {} moved: {:.1} %, the floor is {:.1} %",
            buckets.moved, buckets.total, buckets.moved_percent, buckets.floor_percent
        )?;
        writeln!(
            f,
            "write pause p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms (per bucket)",
            pause_ms.p50, pause_ms.p99, pause_ms.max
        )?;
        for phase in Phase::ALL {
            if let Some(latency) = self.latency_ms.get(phase.as_str()) {
                writeln!(
                    f,
                    "latency     {:<6} p50 {:.1} ms, p99 {:.1} ms (placing an order)",
                    phase.as_str(),
                    latency.p50,
                    latency.p99
                )?;
            }
        }
        writeln!(
            f,
            "copy        {} rows, {megabytes:.1} MB in {:.1} s: {:.0} rows/s, {:.2} MB/s",
            copy.rows,
            copy.seconds,
            copy.rows as f64 / copy_seconds,
            megabytes / copy_seconds
        )?;
        writeln!(
            f,
            "time        {:.1} s to set up, {:.1} s from the edit to converged; operator killed {} times",
            seconds.cold_setup, seconds.reshard, self.operator_kills
        )?;
        score.write_invariants(f)
    }
}

//! What the demo says at the end: a table for people, JSON for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use checker::{Kind, Phase, Summary};
use serde::Serialize;

use super::{
    Harm,
    buckets::{Copied, Moved},
};
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
    harm: Option<Harm>,
    harms: u32,
    /// Each edit, in order; what stands above is of all of them.
    legs: Vec<LegReport>,
    /// Of how many buckets the pause is known.
    #[serde(skip)]
    pauses_known: usize,
}

/// One edit.
#[derive(Clone, Debug, Serialize)]
struct LegReport {
    /// How many shards it asked for.
    shards: usize,
    pause_ms: Pauses,
    buckets: Buckets,
    copy: Copy,
    reshard_seconds: f64,
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
    pub(super) harm: Option<Harm>,
    pub(super) legs: Vec<Leg>,
    pub(super) cold_setup: Duration,
}

/// One edit, from when it was made until the set was converged.
#[derive(Clone, Debug)]
pub(super) struct Leg {
    /// How many shards it asked for.
    pub(super) shards: usize,
    pub(super) moved: Moved,
    /// The fewest buckets that had to move.
    pub(super) floor: usize,
    pub(super) copied: Copied,
    pub(super) copying: Duration,
    /// In milliseconds.
    pub(super) pauses: Vec<f64>,
    pub(super) reshard: Duration,
    pub(super) harms: u32,
}

impl Leg {
    fn report(&self, buckets: u32) -> LegReport {
        LegReport {
            shards: self.shards,
            pause_ms: Pauses::of(&self.pauses),
            buckets: Buckets::of(buckets, self.moved.count(), self.floor),
            copy: Copy {
                rows: self.copied.rows,
                bytes: self.copied.bytes,
                seconds: self.copying.as_secs_f64(),
            },
            reshard_seconds: self.reshard.as_secs_f64(),
        }
    }
}

impl Buckets {
    fn of(total: u32, moved: usize, floor: usize) -> Self {
        let percent = |count: usize| 100.0 * count as f64 / f64::from(total);
        Self { total, moved, moved_percent: percent(moved), floor_percent: percent(floor) }
    }
}

impl Report {
    pub(super) fn new(measured: &Measured, summary: &Summary, score: Score) -> Self {
        let Measured { buckets, harm, legs, cold_setup } = measured;
        let reports: Vec<LegReport> = legs.iter().map(|leg| leg.report(*buckets)).collect();
        let pauses: Vec<f64> = legs.iter().flat_map(|leg| leg.pauses.iter().copied()).collect();
        let harms = legs.iter().map(|leg| leg.harms).sum();
        let moved = legs.iter().map(|leg| leg.moved.count()).sum();
        Self {
            score,
            pause_ms: Pauses::of(&pauses),
            latency_ms: Phase::ALL
                .iter()
                .map(|phase| (phase.as_str(), Latency::of(summary, *phase)))
                .collect(),
            buckets: Buckets::of(*buckets, moved, legs.iter().map(|leg| leg.floor).sum()),
            copy: Copy {
                rows: reports.iter().map(|leg| leg.copy.rows).sum(),
                bytes: reports.iter().map(|leg| leg.copy.bytes).sum(),
                seconds: reports.iter().map(|leg| leg.copy.seconds).sum(),
            },
            seconds: Seconds {
                cold_setup: cold_setup.as_secs_f64(),
                reshard: reports.iter().map(|leg| leg.reshard_seconds).sum(),
            },
            operator_kills: if *harm == Some(Harm::KillOperator) { harms } else { 0 },
            harm: *harm,
            harms,
            legs: reports,
            pauses_known: pauses.len(),
        }
    }

    /// What must not have happened, in words; empty if all is well.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.score.faults(false);
        if self.legs.iter().any(|leg| leg.buckets.moved == 0) {
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
            "time        {:.1} s to set up, {:.1} s from the edit to converged",
            seconds.cold_setup, seconds.reshard
        )?;
        if let Some(harm) = self.harm {
            writeln!(f, "harm        {harm:?}, {} times", self.harms)?;
        }
        for LegReport { shards, pause_ms, buckets, reshard_seconds, .. } in
            self.legs.iter().filter(|_| self.legs.len() > 1)
        {
            writeln!(
                f,
                "  to {shards} shards: {} buckets ({:.1} %), pause p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms, {reshard_seconds:.1} s",
                buckets.moved, buckets.moved_percent, pause_ms.p50, pause_ms.p99, pause_ms.max
            )?;
        }
        score.write_invariants(f)
    }
}

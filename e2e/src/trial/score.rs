//! What became of the orders and requests of a trial, in numbers.

use std::{collections::BTreeMap, fmt};

use checker::{Counts, Kind, Summary, Verdict};
use serde::Serialize;

/// The load's counts and the judge's verdict.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    orders: Orders,
    requests: Requests,
    invariants: BTreeMap<String, u64>,
    /// The first few of what is wrong.
    #[serde(skip)]
    examples: Vec<String>,
}

/// Orders placed.
#[derive(Clone, Copy, Debug, Serialize)]
struct Orders {
    attempted: u64,
    acknowledged: u64,
    failed: u64,
    retried: u64,
    lost: u64,
    duplicated: u64,
}

/// Everything asked: places, reads, lists and cancels.
#[derive(Clone, Copy, Debug, Serialize)]
struct Requests {
    attempted: u64,
    acknowledged: u64,
    failed: u64,
    retried: u64,
}

impl Score {
    /// Of a trial's end.
    pub fn new(summary: &Summary, verdict: Verdict) -> Self {
        let mut examples = verdict.invalid.clone();
        for (name, invariant) in &verdict.invariants {
            examples.extend(invariant.examples.iter().map(|example| format!("{name}: {example}")));
        }
        Self {
            orders: Orders::new(summary.of(Kind::Place), &verdict),
            requests: Requests::new(summary.all()),
            invariants: verdict.invariants.into_iter().map(|(name, one)| (name, one.violations)).collect(),
            examples,
        }
    }

    /// What must not have happened, in words: failed requests included, unless a server was down.
    pub fn faults(&self, failing_is_fine: bool) -> Vec<String> {
        let counted = [
            ("requests failed", if failing_is_fine { 0 } else { self.requests.failed }),
            ("orders lost", self.orders.lost),
            ("orders doubled", self.orders.duplicated),
            ("invariants violated", self.invariants.values().sum()),
        ];
        let counted = counted.iter().filter(|(_, count)| *count > 0);
        counted.map(|(what, count)| format!("{count} {what}")).chain(self.examples.iter().cloned()).collect()
    }

    /// As [`Self::faults`], where a server has lost what it had acknowledged: then what is there must still be there once, with
    /// one owner, and have been asked for.
    pub fn faults_but_losses(&self) -> Vec<String> {
        let of = |name: &str| self.invariants.get(name).copied().unwrap_or(0);
        let kept = ["one_owner", "one_row_per_key", "nothing_unasked", "events_exactly_once", "no_leftovers"];
        let broken = kept
            .into_iter()
            .filter(|name| of(name) > 0)
            .map(|name| format!("{} violations of {name}", of(name)));
        broken.collect()
    }

    /// Acknowledged orders that are nowhere.
    pub fn lost(&self) -> u64 {
        self.orders.lost
    }

    /// The invariants, one a line.
    pub fn write_invariants(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "invariants  violations")?;
        for (name, violations) in &self.invariants {
            writeln!(f, "  {name:<40} {violations}")?;
        }
        Ok(())
    }
}

/// The orders and the requests, a line each.
impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { orders, requests, .. } = self;
        writeln!(
            f,
            "orders      attempted {}, acknowledged {}, failed {}, retried {}, lost {}, doubled {}",
            orders.attempted,
            orders.acknowledged,
            orders.failed,
            orders.retried,
            orders.lost,
            orders.duplicated
        )?;
        writeln!(
            f,
            "requests    attempted {}, answered {}, failed {}, retried {} (orders, reads, lists, cancels)",
            requests.attempted, requests.acknowledged, requests.failed, requests.retried
        )
    }
}

impl Orders {
    fn new(counts: Counts, verdict: &Verdict) -> Self {
        Self {
            attempted: counts.attempted,
            acknowledged: counts.acknowledged,
            failed: counts.failed,
            retried: counts.retried,
            lost: verdict.orders.lost,
            duplicated: verdict.orders.duplicated,
        }
    }
}

impl Requests {
    fn new(counts: Counts) -> Self {
        Self {
            attempted: counts.attempted,
            acknowledged: counts.acknowledged,
            failed: counts.failed,
            retried: counts.retried,
        }
    }
}

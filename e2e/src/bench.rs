//! Benchmarks: a part of Longshore against the plainest thing that does the same work, on the same servers.
//!
//! Rounds of both are interleaved, so that a busy machine is as busy for one as for the other; medians count.

pub mod copy;
pub mod fence;
pub mod fleet;
pub mod operator;
pub mod pause;
mod shard;
mod still;
pub mod topics;

use std::time::Duration;

use serde::Serialize;

/// How long something took.
#[derive(Clone, Debug, Serialize)]
pub struct Timing {
    /// The median of all rounds.
    pub seconds: f64,
    /// Each round, in their order.
    pub each: Vec<f64>,
}

impl Timing {
    fn new(rounds: &[Duration]) -> Self {
        let each: Vec<f64> = rounds.iter().map(Duration::as_secs_f64).collect();
        Self { seconds: median(&each), each }
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), middle.checked_sub(1).and_then(|below| sorted.get(below))) {
        (Some(above), Some(below)) if sorted.len().is_multiple_of(2) => f64::midpoint(*above, *below),
        (Some(middle), _) => *middle,
        (None, _) => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert!(median(&[]).is_nan());
        for (values, expected) in
            [(&[1.0][..], 1.0), (&[3.0, 1.0], 2.0), (&[9.0, 1.0, 2.0], 2.0), (&[4.0, 1.0, 2.0, 9.0], 3.0)]
        {
            assert!((median(values) - expected).abs() < f64::EPSILON, "{values:?}");
        }
    }
}

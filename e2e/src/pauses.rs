//! How long writers waited for the buckets that moved.

use serde::Serialize;

/// Of many pauses, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pauses {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Pauses {
    /// Of pauses in any order; 0 of none.
    pub fn of(pauses: &[f64]) -> Self {
        let mut sorted = pauses.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        Self { p50: quantile(&sorted, 50), p99: quantile(&sorted, 99), max: quantile(&sorted, 100) }
    }
}

/// The smallest value that so many percent do not exceed.
fn quantile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(Pauses::of(&sorted), Pauses { p50: 100.0, p99: 198.0, max: 200.0 });
        assert_eq!(Pauses::of(&[7.0]), Pauses { p50: 7.0, p99: 7.0, max: 7.0 });
        assert_eq!(Pauses::of(&[]), Pauses { p50: 0.0, p99: 0.0, max: 0.0 });
    }
}

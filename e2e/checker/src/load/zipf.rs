//! Draws ranks by Zipf's law from a table of cumulated weights: exact, and quick for any number of users that
//! fits in memory.

use rand::{Rng, RngExt};

/// Rank `k` of `1..=n` comes with probability proportional to `1 / k^exponent`.
#[derive(Clone, Debug)]
pub(super) struct Zipf {
    cumulated: Vec<f64>,
}

impl Zipf {
    /// `None` without ranks, or with an exponent that makes no sense.
    pub(super) fn new(ranks: u64, exponent: f64) -> Option<Self> {
        if ranks == 0 || !exponent.is_finite() || exponent < 0.0 {
            return None;
        }
        let mut sum = 0.0;
        let mut rank = 0.0_f64;
        let mut cumulated = Vec::new();
        for _ in 0..ranks {
            rank += 1.0;
            sum += rank.powf(-exponent);
            cumulated.push(sum);
        }
        Some(Self { cumulated })
    }

    /// A rank, counted from 1.
    pub(super) fn draw(&self, rng: &mut impl Rng) -> i64 {
        let whole = self.cumulated.last().copied().unwrap_or(0.0);
        let point = rng.random::<f64>() * whole;
        let index = self.cumulated.partition_point(|upto| *upto <= point).min(self.cumulated.len() - 1);
        i64::try_from(index + 1).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    #[test]
    fn frequencies_follow_the_law() {
        let zipf = Zipf::new(1_000, 1.0).unwrap();
        let mut rng = StdRng::seed_from_u64(3);
        let mut seen = vec![0_u32; 1_001];
        for _ in 0..200_000 {
            seen[usize::try_from(zipf.draw(&mut rng)).unwrap()] += 1;
        }
        let harmonic: f64 = (1..=1_000).map(|rank| 1.0 / f64::from(rank)).sum();
        for rank in [1_u32, 2, 10, 100] {
            let expected = 200_000.0 / (f64::from(rank) * harmonic);
            let got = f64::from(seen[rank as usize]);
            assert!((got - expected).abs() < 6.0 * expected.sqrt(), "rank {rank}: {got} for {expected}");
        }
        assert_eq!(seen[0], 0);
    }

    #[test]
    fn exponent_zero_is_uniform_and_one_rank_is_enough() {
        let zipf = Zipf::new(4, 0.0).unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        let ones = (0..40_000).filter(|_| zipf.draw(&mut rng) == 1).count();
        assert!((9_300..10_700).contains(&ones), "{ones}");
        assert_eq!(Zipf::new(1, 1.0).unwrap().draw(&mut rng), 1);
        assert!(Zipf::new(0, 1.0).is_none());
    }
}

//! How many buckets a batch may hold, learnt from how long the last ones paused their writers.

/// What writers may wait, in milliseconds, derived from the one number of the spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PauseBudget {
    /// What nearly every writer's pause stays under.
    pub most_ms: u64,
}

impl PauseBudget {
    /// What a batch aims at: pauses spread, and nearly all of them are to stay under the most.
    #[must_use]
    pub fn aim_ms(self) -> u64 {
        (self.most_ms / 4).max(1)
    }

    /// When a handover that writers do not let through gives up: none of them waits behind it longer.
    #[must_use]
    pub fn give_up_ms(self) -> u64 {
        self.most_ms * 2
    }
}

/// The batch size: it grows while pauses stay well under the budget and halves when one exceeds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    batch: usize,
}

impl Pace {
    /// Of an unknown pair of shards it is taken that this many milliseconds of pause are aimed at for each bucket of a batch.
    const FIRST_MS: u64 = 6;
    /// The most buckets of a batch, which holds one advisory lock for each: far below what any server's lock table holds.
    pub const MOST: usize = 256;

    /// What an unknown pair of shards begins with.
    #[must_use]
    pub fn first(budget: PauseBudget) -> Self {
        let batch = usize::try_from(budget.aim_ms() / Self::FIRST_MS).unwrap_or(Self::MOST);
        Self { batch: batch.clamp(1, Self::MOST) }
    }

    /// As after a batch that writers did not let through.
    #[must_use]
    pub fn after_giving_up(self, buckets: usize) -> Self {
        Self { batch: (buckets / 2).max(1) }
    }

    /// The most buckets for the next batch.
    #[must_use]
    pub fn batch(self) -> usize {
        self.batch
    }

    /// The pace after a batch of `buckets` whose writers paused `pause_ms`.
    #[must_use]
    pub fn after(self, buckets: usize, pause_ms: u64, budget: PauseBudget) -> Self {
        let batch = if pause_ms > budget.aim_ms() {
            buckets / 2
        } else if pause_ms * 2 < budget.aim_ms() && buckets >= self.batch {
            self.batch * 2
        } else {
            self.batch
        };
        Self { batch: batch.clamp(1, Self::MOST) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_under_the_budget_and_halves_above_it() {
        let check = |batch, buckets, pause_ms, expected| {
            let after = Pace { batch }.after(buckets, pause_ms, PauseBudget { most_ms: 400 });
            assert_eq!(after.batch(), expected, "batch {batch}, {buckets} buckets in {pause_ms} ms");
        };
        check(4, 4, 10, 8);
        check(4, 4, 60, 4);
        check(4, 2, 10, 4);
        check(64, 64, 101, 32);
        check(64, 1, 500, 1);
        check(256, 256, 1, 256);
    }
}

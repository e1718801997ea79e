//! One order's version as a register in real time: 0 is "not found", 1 created, 2 cancelled. Pure.

use crate::history::Micros;

/// A version seen in an answer. It was the order's version at some moment between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Observation {
    pub(super) began_us: Micros,
    pub(super) ended_us: Micros,
    pub(super) version: i64,
}

/// When a version can first have existed: when the request that makes it was first sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Requested {
    pub(super) placed_us: Micros,
    pub(super) cancelled_us: Option<Micros>,
}

impl Requested {
    /// The highest version whose request had begun by then.
    fn highest_at(self, moment_us: Micros) -> i64 {
        if self.cancelled_us.is_some_and(|began_us| began_us <= moment_us) {
            2
        } else {
            i64::from(self.placed_us <= moment_us)
        }
    }
}

/// All that contradicts: versions lower than one already seen by a request that ended before this one began,
/// and versions that nobody had asked for yet. An acknowledged write is an observation like any other, so
/// "at least what was acknowledged before" and "reads never go backwards" are one rule.
pub(super) fn violations(requested: Requested, observations: &mut [Observation]) -> Vec<String> {
    observations.sort_unstable_by_key(|one| one.ended_us);
    let mut highest = 0;
    let highest_by_end: Vec<(Micros, i64)> = observations
        .iter()
        .map(|one| {
            highest = highest.max(one.version);
            (one.ended_us, highest)
        })
        .collect();
    let mut found = Vec::new();
    for one in observations.iter() {
        let earlier = highest_by_end.partition_point(|(ended_us, _)| *ended_us < one.began_us);
        let floor = earlier.checked_sub(1).map_or(0, |index| highest_by_end[index].1);
        let ceiling = requested.highest_at(one.ended_us);
        if one.version < floor {
            found.push(format!("version {} was read after version {floor} had been seen", one.version));
        } else if one.version > ceiling {
            found.push(format!("version {} was read before anyone had asked for it", one.version));
        }
    }
    found
}

/// When the order was first known to exist.
pub(super) fn first_seen_us(observations: &[Observation]) -> Option<Micros> {
    observations.iter().filter(|one| one.version >= 1).map(|one| one.ended_us).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Observations as (began, ended, version).
    fn check(cancelled_us: Option<Micros>, observations: &[(Micros, Micros, i64)], expected: usize) {
        let requested = Requested { placed_us: 10, cancelled_us };
        let made = |&(began_us, ended_us, version)| Observation { began_us, ended_us, version };
        let mut made: Vec<_> = observations.iter().map(made).collect();
        let found = violations(requested, &mut made);
        assert_eq!(found.len(), expected, "{observations:?}: {found:?}");
    }

    #[test]
    fn what_may_be() {
        check(None, &[(10, 20, 1), (21, 22, 1)], 0);
        check(Some(30), &[(10, 20, 1), (30, 40, 2), (41, 42, 2)], 0);
        // Concurrent with the place, or with the cancel: either.
        check(None, &[(10, 20, 1), (12, 18, 0), (13, 19, 1)], 0);
        check(Some(30), &[(10, 20, 1), (30, 40, 2), (31, 39, 1), (32, 38, 2)], 0);
        // Overlapping reads may seem to go backwards.
        check(Some(30), &[(10, 20, 1), (31, 36, 2), (35, 37, 1)], 0);
        // Cancelled, as its indeterminate cancel allows.
        check(Some(30), &[(10, 20, 1), (50, 51, 2)], 0);
    }

    #[test]
    fn what_may_not_be() {
        // Not found after it was acknowledged.
        check(None, &[(10, 20, 1), (21, 22, 0)], 1);
        // Stale after an acknowledged cancel.
        check(Some(30), &[(10, 20, 1), (30, 40, 2), (41, 42, 1)], 1);
        // Two reads that do not overlap, backwards, the cancel still without an answer.
        check(Some(30), &[(10, 20, 1), (31, 35, 2), (36, 37, 1)], 1);
        // Cancelled before anyone asked, and there before it was placed.
        check(Some(30), &[(10, 20, 1), (25, 29, 2)], 1);
        check(None, &[(3, 8, 1)], 1);
    }
}

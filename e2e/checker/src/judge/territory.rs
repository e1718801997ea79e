//! Whose rows count: for each bucket the shard that owns it at the end. Where nobody does, because a handover
//! is under way, the shard that gave it up last has all its rows. Pure.

use super::findings::{Findings, Rule};
use crate::store::Run;
use std::fmt::Write;

pub(super) struct Territory {
    /// By shard: consecutive buckets, both ends included.
    ranges: Vec<Vec<(u32, u32)>>,
}

#[derive(Clone, Default)]
struct Claims {
    owners: Vec<usize>,
    /// (epoch, shard) of the last that gave the bucket up.
    gave_up: Option<(i64, usize)>,
}

impl Territory {
    /// Works out the territory and reports buckets with two owners, or with none where each must have one.
    pub(super) fn of(
        names: &[&str],
        readings: &[Vec<Run>],
        buckets: u32,
        complete: bool,
        findings: &mut Findings,
    ) -> Self {
        let mut ranges = vec![Vec::new(); names.len()];
        for (bucket, claims) in (0..buckets).zip(gather(readings, buckets)) {
            if claims.owners.len() > 1 {
                let owners: Vec<&str> = claims.owners.iter().map(|shard| names[*shard]).collect();
                findings
                    .add(Rule::OneOwner, format!("bucket {bucket} is owned by {}", owners.join(" and by ")));
            }
            if claims.owners.is_empty() && complete {
                findings.add(Rule::OneOwner, format!("bucket {bucket} is owned by nobody"));
            }
            let fallback = claims.gave_up.filter(|_| claims.owners.is_empty()).map(|(_, shard)| shard);
            for shard in claims.owners.into_iter().chain(fallback) {
                extend(&mut ranges[shard], bucket);
            }
        }
        Self { ranges }
    }

    /// A shard's buckets as text of PostgreSQL's `int4multirange`.
    pub(super) fn multirange(&self, shard: usize) -> String {
        let mut text = String::from("{");
        for (index, (first, last)) in self.ranges[shard].iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            // Writing to a string cannot fail.
            let _infallible = write!(text, "{comma}[{first},{last}]");
        }
        text.push('}');
        text
    }
}

fn gather(readings: &[Vec<Run>], buckets: u32) -> Vec<Claims> {
    let mut claims = vec![Claims::default(); buckets as usize];
    for (shard, runs) in readings.iter().enumerate() {
        for run in runs {
            for bucket in run.first..=run.last.min(buckets - 1) {
                let claim = &mut claims[bucket as usize];
                if run.owned {
                    claim.owners.push(shard);
                } else if run.moved {
                    claim.gave_up = claim.gave_up.max(Some((run.epoch, shard)));
                }
            }
        }
    }
    claims
}

fn extend(ranges: &mut Vec<(u32, u32)>, bucket: u32) {
    match ranges.last_mut() {
        Some((_, last)) if *last + 1 == bucket => *last = bucket,
        Some(_) | None => ranges.push((bucket, bucket)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u32, last: u32, state: &str, epoch: i64) -> Run {
        Run { first, last, owned: state == "owned", moved: state == "moved", epoch }
    }

    fn check(readings: &[Vec<Run>], complete: bool, expected: [&str; 2], violations: u64) {
        let mut findings = Findings::new(complete);
        let territory = Territory::of(&["a", "b"], readings, 8, complete, &mut findings);
        assert_eq!([0, 1].map(|shard| territory.multirange(shard)), expected);
        let verdict = findings.into_verdict(Vec::new());
        assert_eq!(verdict.invariants["one_owner"].violations, violations);
    }

    #[test]
    fn rows_count_at_the_owner() {
        let a = vec![run(0, 1, "owned", 1), run(2, 5, "moved", 2), run(6, 7, "owned", 1)];
        let b = vec![run(0, 1, "absent", 0), run(2, 5, "owned", 2), run(6, 7, "absent", 0)];
        check(&[a, b], true, ["{[0,1],[6,7]}", "{[2,5]}"], 0);
    }

    #[test]
    fn a_bucket_on_its_way_counts_at_the_source() {
        let a = vec![run(0, 6, "owned", 1), run(7, 7, "moved", 2)];
        let b = vec![run(0, 7, "incoming", 1)];
        check(&[a.clone(), b.clone()], false, ["{[0,7]}", "{}"], 0);
        check(&[a, b], true, ["{[0,7]}", "{}"], 1);
    }

    #[test]
    fn two_owners_are_a_violation_and_both_count() {
        let a = vec![run(0, 7, "owned", 1)];
        let b = vec![run(3, 4, "owned", 2)];
        check(&[a, b], false, ["{[0,7]}", "{[3,4]}"], 2);
    }
}

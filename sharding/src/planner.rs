//! Who should own what: from today's map and the wanted weights to the nearest balanced map.
//!
//! Two wishes, in this order: move as few buckets as balance allows (the *floor*), and leave few ranges, since
//! each range is a term in every row filter. They can contradict each other: from 10 to 11 equal shards each of
//! the ten gives a little, so the new one starts with several ranges whatever the planner does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{BucketCount, BucketId, BucketRange, Map, Ranges, ShardName, map::Segment};

/// A shard and its share of the buckets, relative to the other weights. 0: it is drained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    pub shard: ShardName,
    pub weight: u32,
}

/// Buckets that change their owner, from one shard to one other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub from: ShardName,
    pub to: ShardName,
    pub ranges: Ranges,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("no shard has a weight above 0: somebody must own the buckets")]
    NoOwner,
    #[error("{shards} shards with a weight above 0 cannot share {buckets} buckets")]
    TooManyShards { shards: usize, buckets: u32 },
}

/// The map of a set that has none yet: one range a shard, in the order given, sized by weight.
///
/// # Errors
/// When no shard may own anything, or there are more owners than buckets.
pub fn first_map(buckets: BucketCount, weights: &[Weight]) -> Result<Map, PlanError> {
    let quotas = quotas(buckets, weights, &BTreeMap::new())?;
    let mut segments = Vec::new();
    let mut next = 0;
    for Weight { shard, .. } in weights {
        let size = quotas.get(shard).copied().unwrap_or(0);
        if size > 0 {
            segments.push(Segment { range: span(next, size), owner: shard.clone() });
            next += size;
        }
    }
    Ok(Map::new(buckets, segments).expect("quotas add up to all buckets"))
}

/// The balanced map nearest to `current`. A map that is balanced already comes back unchanged.
///
/// Shards of `current` that `weights` does not name lose everything.
///
/// # Errors
/// When no shard may own anything, or there are more owners than buckets.
pub fn next_map(current: &Map, weights: &[Weight]) -> Result<Map, PlanError> {
    let sizes = current.sizes();
    let quotas = quotas(current.buckets(), weights, &sizes)?;
    let mut draft = Draft::new(current, &sizes, &quotas);
    while draft.improve() {}
    Ok(Map::new(current.buckets(), draft.segments).expect("moving a range leaves every bucket one owner"))
}

/// The fewest buckets that any balanced map moves: what its givers own beyond their quota.
///
/// # Errors
/// As [`next_map`].
pub fn floor(current: &Map, weights: &[Weight]) -> Result<u32, PlanError> {
    let sizes = current.sizes();
    let quotas = quotas(current.buckets(), weights, &sizes)?;
    let quota = |shard| quotas.get(shard).copied().unwrap_or(0);
    Ok(sizes.iter().map(|(shard, size)| size.saturating_sub(quota(shard))).sum())
}

/// What must move to get from one map to the other, a `Move` for each pair of shards, in order of names.
///
/// # Panics
/// When the two maps are of different bucket counts: they are of different sets.
#[must_use]
pub fn moves(from: &Map, to: &Map) -> Vec<Move> {
    assert_eq!(from.buckets(), to.buckets(), "maps of different sets");
    let mut pairs: BTreeMap<(ShardName, ShardName), Vec<BucketRange>> = BTreeMap::new();
    for old in from.segments() {
        for new in to.segments().iter().filter(|new| new.owner != old.owner) {
            if let Some(range) = old.range.intersection(new.range) {
                pairs.entry((old.owner.clone(), new.owner.clone())).or_default().push(range);
            }
        }
    }
    pairs
        .into_iter()
        .map(|((from, to), ranges)| Move { from, to, ranges: ranges.into_iter().collect() })
        .collect()
}

/// How many buckets each shard should own: its share rounded down, and the rest by one each to those who own
/// more than that already (so that nothing moves for a rounding), then to the largest fractions.
fn quotas(
    buckets: BucketCount,
    weights: &[Weight],
    sizes: &BTreeMap<ShardName, u32>,
) -> Result<BTreeMap<ShardName, u32>, PlanError> {
    let owners: Vec<_> = weights.iter().filter(|weight| weight.weight > 0).collect();
    let sum: u64 = owners.iter().map(|owner| u64::from(owner.weight)).sum();
    if owners.is_empty() {
        return Err(PlanError::NoOwner);
    }
    if owners.len() > buckets.get() as usize {
        return Err(PlanError::TooManyShards { shards: owners.len(), buckets: buckets.get() });
    }
    let share = |owner: &Weight| u64::from(buckets.get()) * u64::from(owner.weight);
    let mut quotas = BTreeMap::new();
    let mut claims = Vec::new();
    let mut rest = buckets.get();
    for owner in owners {
        let (down, fraction) = (share(owner) / sum, share(owner) % sum);
        let down = u32::try_from(down).expect("a share is at most all buckets");
        let has_more = sizes.get(&owner.shard).is_some_and(|size| *size > down);
        rest -= down;
        quotas.insert(owner.shard.clone(), down);
        if fraction > 0 {
            claims.push((std::cmp::Reverse((has_more, fraction)), owner.shard.clone()));
        }
    }
    claims.sort();
    for (_, shard) in claims.into_iter().take(rest as usize) {
        *quotas.entry(shard).or_default() += 1;
    }
    Ok(quotas)
}

/// A map being changed, and what each shard still has to give (above 0) or to take (below 0).
struct Draft {
    segments: Vec<Segment>,
    surplus: BTreeMap<ShardName, i64>,
}

/// One range to give away, and what it does to the number of ranges.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    /// Ranges afterwards minus ranges before: -2 to 1.
    added_ranges: i32,
    /// Of equal steps the largest, so that few are needed.
    size: std::cmp::Reverse<u32>,
    segment: usize,
    from_end: bool,
    taker: ShardName,
}

impl Draft {
    fn new(current: &Map, sizes: &BTreeMap<ShardName, u32>, quotas: &BTreeMap<ShardName, u32>) -> Self {
        let mut surplus: BTreeMap<ShardName, i64> =
            sizes.iter().map(|(shard, size)| (shard.clone(), i64::from(*size))).collect();
        for (shard, quota) in quotas {
            *surplus.entry(shard.clone()).or_default() -= i64::from(*quota);
        }
        Self { segments: current.segments().to_vec(), surplus }
    }

    /// Takes the best step there is; false when all is balanced.
    fn improve(&mut self) -> bool {
        let best = (0..self.segments.len()).flat_map(|index| self.steps(index)).min();
        best.map(|step| self.take(&step)).is_some()
    }

    /// Every way to give from one segment: to each taker, from either end, as much as both sides allow.
    fn steps(&self, index: usize) -> Vec<Step> {
        let Some(segment) = self.segments.get(index) else { return Vec::new() };
        let giving = self.surplus.get(&segment.owner).copied().unwrap_or(0);
        if giving <= 0 {
            return Vec::new();
        }
        let takers = self.surplus.iter().filter(|(_, surplus)| **surplus < 0);
        takers
            .flat_map(|(taker, surplus)| {
                let size = giving.min(-surplus).min(i64::from(segment.range.size()));
                let size = u32::try_from(size).expect("bounded by the segment's size");
                [false, true].map(|from_end| self.step(index, taker, size, from_end))
            })
            .collect()
    }

    fn step(&self, index: usize, taker: &ShardName, size: u32, from_end: bool) -> Step {
        let owner_of = |at: Option<usize>| at.and_then(|at| self.segments.get(at)).map(|s| &s.owner);
        let (before, after) = (owner_of(index.checked_sub(1)), owner_of(index.checked_add(1)));
        let joins = |neighbour: Option<&ShardName>| i32::from(neighbour == Some(taker));
        let whole = self.segments.get(index).is_some_and(|segment| segment.range.size() == size);
        let added_ranges = match (whole, from_end) {
            (true, _) => -joins(before) - joins(after),
            (false, true) => 1 - joins(after),
            (false, false) => 1 - joins(before),
        };
        Step { added_ranges, size: std::cmp::Reverse(size), segment: index, from_end, taker: taker.clone() }
    }

    fn take(&mut self, step: &Step) {
        let given = self.segments.remove(step.segment);
        let size = step.size.0;
        let (first, whole_size) = (u32::from(given.range.first.get()), given.range.size());
        let taken_first = if step.from_end { first + whole_size - size } else { first };
        *self.surplus.entry(given.owner.clone()).or_default() -= i64::from(size);
        *self.surplus.entry(step.taker.clone()).or_default() += i64::from(size);

        let taken = Segment { range: span(taken_first, size), owner: step.taker.clone() };
        let mut parts = vec![taken];
        if size < whole_size {
            let kept_first = if step.from_end { first } else { first + size };
            let kept = Segment { range: span(kept_first, whole_size - size), owner: given.owner };
            parts.insert(if step.from_end { 0 } else { 1 }, kept);
        }
        self.segments.splice(step.segment..step.segment, parts);
        self.join_neighbours();
    }

    fn join_neighbours(&mut self) {
        self.segments.dedup_by(|next, before| {
            let same = next.owner == before.owner;
            if same {
                before.range.last = next.range.last;
            }
            same
        });
    }
}

fn span(first: u32, size: u32) -> BucketRange {
    let bucket = |number: u32| BucketId::new(u16::try_from(number).expect("a bucket fits 16 bits"));
    BucketRange { first: bucket(first), last: bucket(first + size - 1) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUCKETS: u32 = 1024;

    fn count() -> BucketCount {
        BucketCount::new(BUCKETS).expect("a power of two")
    }

    fn weights(given: &[(&str, u32)]) -> Vec<Weight> {
        given
            .iter()
            .map(|(name, weight)| Weight {
                shard: (*name).try_into().expect("a valid name"),
                weight: *weight,
            })
            .collect()
    }

    fn shown(map: &Map) -> String {
        map.segments().iter().map(|s| format!("{}={}", s.range, s.owner)).collect::<Vec<_>>().join(" ")
    }

    fn moved(from: &Map, to: &Map) -> u32 {
        moves(from, to).iter().map(|m| m.ranges.size()).sum()
    }

    #[test]
    fn one_becomes_two_and_back() {
        let one = first_map(count(), &weights(&[("a", 1)])).expect("a map");
        let two = next_map(&one, &weights(&[("a", 1), ("b", 1)])).expect("a map");
        assert_eq!(shown(&two), "0-511=b 512-1023=a");
        let back = next_map(&two, &weights(&[("a", 1)])).expect("a map");
        assert_eq!(shown(&back), "0-1023=a");
    }

    #[test]
    fn three_to_five_moves_forty_percent_each_way() {
        let three = first_map(count(), &weights(&[("a", 1), ("b", 1), ("c", 1)])).expect("a map");
        let five_weights = weights(&[("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1)]);
        let five = next_map(&three, &five_weights).expect("a map");
        assert_eq!(moved(&three, &five), 409);
        assert!(five.segments().len() <= 8, "{}", shown(&five));
        let back = next_map(&five, &weights(&[("a", 1), ("b", 1), ("c", 1)])).expect("a map");
        assert_eq!(moved(&five, &back), 409);
        assert!(back.segments().len() <= 6, "{}", shown(&back));
    }

    #[test]
    fn a_weight_of_zero_drains() {
        let monolith = first_map(count(), &weights(&[("mono", 1)])).expect("a map");
        let drained = next_map(&monolith, &weights(&[("mono", 0), ("a", 1), ("b", 3)])).expect("a map");
        assert_eq!(shown(&drained), "0-767=b 768-1023=a");
    }

    #[test]
    fn nobody_to_own_is_an_error() {
        assert_eq!(first_map(count(), &[]), Err(PlanError::NoOwner));
        assert_eq!(first_map(count(), &weights(&[("a", 0)])), Err(PlanError::NoOwner));
        let two = BucketCount::new(2).expect("valid");
        let three = weights(&[("a", 1), ("b", 1), ("c", 1)]);
        assert_eq!(first_map(two, &three), Err(PlanError::TooManyShards { shards: 3, buckets: 2 }));
    }

    fn any_weights() -> impl Strategy<Value = Vec<Weight>> {
        proptest::collection::btree_map(0_u8..12, 0_u32..=4, 1..=12)
            .prop_filter("somebody must own", |chosen| chosen.values().any(|weight| *weight > 0))
            .prop_map(|chosen| {
                let name = |n: u8| ShardName::try_from(format!("s{n}")).expect("a valid name");
                chosen.into_iter().map(|(n, weight)| Weight { shard: name(n), weight }).collect()
            })
    }

    fn assert_balanced(map: &Map, weights: &[Weight]) {
        let sizes = map.sizes();
        let sum: f64 = weights.iter().map(|w| f64::from(w.weight)).sum();
        for Weight { shard, weight } in weights {
            let ideal = f64::from(BUCKETS) * f64::from(*weight) / sum;
            let size = f64::from(sizes.get(shard).copied().unwrap_or(0));
            assert!((size - ideal).abs() < 1.0, "{shard} owns {size}, its share is {ideal}");
        }
        assert!(sizes.keys().all(|owner| weights.iter().any(|w| &w.shard == owner && w.weight > 0)));
    }

    #[test]
    fn zz_stats() {
        use proptest::{strategy::ValueTree, test_runner::TestRunner};
        let mut runner = TestRunner::deterministic();
        let (mut worst, mut worst_max, mut bad, mut sum) = (0.0_f64, 0, 0, 0.0);
        for _ in 0..2000 {
            let mut map: Option<Map> = None;
            let mut w = 0.0_f64;
            let mut mx = 0;
            let mut cur: Vec<u8> = vec![0, 1, 2];
            for i in 0..20 {
                let op: u8 = (0_u8..3).new_tree(&mut runner).unwrap().current();
                let pick: u8 = (0_u8..12).new_tree(&mut runner).unwrap().current();
                let weights = if std::env::args().any(|a| a == "zz_stats") && i >= 0 {
                    if op == 0 && cur.len() > 1 {
                        let at = usize::from(pick) % cur.len();
                        cur.remove(at);
                    } else {
                        if !cur.contains(&pick) {
                            cur.push(pick);
                        }
                    }
                    cur.iter()
                        .map(|n| Weight { shard: format!("s{n}").as_str().try_into().unwrap(), weight: 1 })
                        .collect::<Vec<_>>()
                } else {
                    any_weights().new_tree(&mut runner).unwrap().current()
                };
                let next = match &map {
                    None => first_map(count(), &weights).unwrap(),
                    Some(c) => next_map(c, &weights).unwrap(),
                };
                let avg = next.segments().len() as f64 / next.sizes().len() as f64;
                w = w.max(avg);
                mx = mx.max(next.sizes().keys().map(|k| next.owned_by(k).as_slice().len()).max().unwrap());
                map = Some(next);
            }
            worst = worst.max(w);
            worst_max = worst_max.max(mx);
            sum += w;
            if w > 3.0 {
                bad += 1;
            }
        }
        panic!("worst avg {worst} worst max {worst_max} bad {bad} mean {}", sum / 2000.0);
    }

    proptest! {
        #[test]
        fn plans_are_balanced_minimal_and_stable(changes in proptest::collection::vec(any_weights(), 1..=20)) {
            let mut map: Option<Map> = None;
            for weights in &changes {
                let next = match &map {
                    None => first_map(count(), weights).expect("somebody owns"),
                    Some(current) => {
                        let next = next_map(current, weights).expect("somebody owns");
                        prop_assert_eq!(moved(current, &next), floor(current, weights).expect("as above"));
                        next
                    }
                };
                assert_balanced(&next, weights);
                prop_assert_eq!(&next_map(&next, weights).expect("somebody owns"), &next);
                prop_assert!(moves(&next, &next).is_empty());
                let owners = next.sizes().len();
                prop_assert!(
                    next.segments().len() <= 3 * owners,
                    "{} ranges on {} shards: {}", next.segments().len(), owners, shown(&next)
                );
                map = Some(next);
            }
        }
    }
}

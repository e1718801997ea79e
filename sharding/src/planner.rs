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
    let drafts = TASTES.map(|taste| {
        let mut draft = Draft::new(current, &sizes, &quotas, taste);
        while draft.improve() {}
        draft
    });
    let best = drafts.into_iter().min_by_key(Draft::fragments).expect("there are tastes");
    Ok(Map::new(current.buckets(), best.segments).expect("moving a range leaves every bucket one owner"))
}

/// How equal steps are told apart. All drafts move the same number of buckets; the one with the fewest ranges is taken.
#[derive(Debug, Clone, Copy)]
struct Taste {
    /// Prefer cuts beside a shard that has to give as well: its part joins for free.
    looks_ahead: bool,
    /// Shuffles what is still equal.
    seed: u32,
}

/// One taste alone leaves some shard more than 3 ranges on many walks of 20 changes among up to 5 shards; the best of
/// these on few.
const TASTES: [Taste; 34] = {
    let mut tastes = [Taste { looks_ahead: false, seed: 0 }; 34];
    let mut index = 0;
    while index < tastes.len() {
        tastes[index] = Taste { looks_ahead: index % 2 == 1, seed: index as u32 / 2 };
        index += 1;
    }
    tastes
};

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
    taste: Taste,
}

/// One range to give away, and what it does to the number of ranges. The smallest is the best.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    /// Ranges afterwards minus ranges before: -2 to 1.
    added_ranges: i32,
    /// Minus one where the next step may join this one for free, and for each side that it settles.
    promise: i32,
    /// Of equal steps the largest, so that few are needed.
    size: std::cmp::Reverse<u32>,
    shuffled: u32,
    segment: usize,
    from_end: bool,
    taker: ShardName,
}

impl Draft {
    fn new(
        current: &Map,
        sizes: &BTreeMap<ShardName, u32>,
        quotas: &BTreeMap<ShardName, u32>,
        taste: Taste,
    ) -> Self {
        let mut surplus: BTreeMap<ShardName, i64> =
            sizes.iter().map(|(shard, size)| (shard.clone(), i64::from(*size))).collect();
        for (shard, quota) in quotas {
            *surplus.entry(shard.clone()).or_default() -= i64::from(*quota);
        }
        Self { segments: current.segments().to_vec(), surplus, taste }
    }

    /// How many ranges there are in all, and on the shard that has the most.
    fn fragments(&self) -> (usize, usize) {
        let mut counts: BTreeMap<&ShardName, usize> = BTreeMap::new();
        for segment in &self.segments {
            *counts.entry(&segment.owner).or_default() += 1;
        }
        (self.segments.len(), counts.into_values().max().unwrap_or(0))
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
        let beside = if from_end { after } else { before };
        let joins = |neighbour: Option<&ShardName>| i32::from(neighbour == Some(taker));
        let whole = self.segments.get(index).is_some_and(|segment| segment.range.size() == size);
        let added_ranges = if whole { -joins(before) - joins(after) } else { 1 - joins(beside) };
        let surplus =
            |shard: Option<&ShardName>| shard.and_then(|shard| self.surplus.get(shard)).copied().unwrap_or(0);
        let settles = |shard| i32::from(surplus(shard).unsigned_abs() == u64::from(size));
        let goes_on = i32::from(added_ranges == 1 && surplus(beside) > 0);
        let promise = -3 * goes_on - settles(owner_of(Some(index))) - settles(Some(taker));
        Step {
            added_ranges,
            promise: if self.taste.looks_ahead { promise } else { 0 },
            size: std::cmp::Reverse(size),
            shuffled: shuffle(self.taste.seed, index, size, from_end, taker),
            segment: index,
            from_end,
            taker: taker.clone(),
        }
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

/// A fixed scramble (FNV-1a) of what a step looks like; seed 0 leaves all equal.
fn shuffle(seed: u32, index: usize, size: u32, from_end: bool, taker: &ShardName) -> u32 {
    if seed == 0 {
        return 0;
    }
    let numbers = [seed, size, u32::from(from_end), u32::try_from(index).unwrap_or(u32::MAX)];
    let bytes = numbers.into_iter().flat_map(u32::to_le_bytes).chain(taker.as_str().bytes());
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
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

    /// Adds or takes away one of up to five shards, by a random number.
    fn change(shards: &mut Vec<u8>, pick: u8) {
        match shards.iter().position(|shard| *shard == pick % 5) {
            Some(at) if shards.len() > 1 => drop(shards.remove(at)),
            Some(_) => {}
            None => shards.push(pick % 5),
        }
    }

    fn equal_weights(shards: &[u8]) -> Vec<Weight> {
        let name = |n: &u8| ShardName::try_from(format!("s{n}")).expect("a valid name");
        shards.iter().map(|n| Weight { shard: name(n), weight: 1 }).collect()
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
                map = Some(next);
            }
        }
    }

    /// Ranges are few, but no bound on them holds in every case beside the floor of movement: two shards that came out
    /// of five by several changes keep their parts, since joining them would move buckets that balance leaves alone.
    #[test]
    fn twenty_changes_leave_three_ranges_a_shard() {
        use proptest::{
            strategy::ValueTree,
            test_runner::{Config, RngSeed, TestRunner},
        };
        let mut runner = TestRunner::new(Config { rng_seed: RngSeed::Fixed(1), ..Config::default() });
        let picks = proptest::collection::vec(any::<u8>(), 20);
        let walks: Vec<_> =
            (0..500).map(|_| picks.new_tree(&mut runner).expect("a walk").current()).collect();
        let (mut above_three_a_shard, mut most_on_a_shard) = (0, 0);
        for walk in walks {
            let (above, most) = ranges_on_a_walk(&walk);
            above_three_a_shard += usize::from(above);
            most_on_a_shard = most_on_a_shard.max(most);
        }
        assert!(most_on_a_shard <= 4, "a shard had {most_on_a_shard} ranges");
        assert!(
            above_three_a_shard <= 40,
            "{above_three_a_shard} of 500 walks left more than 3 ranges a shard"
        );
    }

    /// Whether there ever were more than three ranges for each shard, and the most that one shard ever had.
    fn ranges_on_a_walk(picks: &[u8]) -> (bool, usize) {
        let mut shards = vec![0, 1, 2];
        let mut map = first_map(count(), &equal_weights(&shards)).expect("somebody owns");
        let (mut above, mut most) = (false, 0);
        for pick in picks {
            change(&mut shards, *pick);
            map = next_map(&map, &equal_weights(&shards)).expect("somebody owns");
            above |= map.segments().len() > 3 * map.sizes().len();
            most =
                map.sizes().keys().map(|shard| map.owned_by(shard).as_slice().len()).fold(most, usize::max);
        }
        (above, most)
    }
}

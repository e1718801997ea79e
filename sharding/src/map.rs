//! The map: which shard owns which buckets. Each bucket has exactly one owner.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{BucketCount, BucketId, BucketRange, Ranges, ShardName};

/// Why some ranges are not a map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    #[error("bucket {bucket} has no owner")]
    Unowned { bucket: BucketId },
    #[error("bucket {bucket} is owned by both {one} and {other}")]
    OwnedTwice { bucket: BucketId, one: ShardName, other: ShardName },
    #[error("bucket {bucket} does not exist: the set has {buckets} buckets")]
    OutOfBounds { bucket: BucketId, buckets: u32 },
}

/// Who owns what: ranges in rising order that cover every bucket once, neighbours of one owner joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    buckets: BucketCount,
    segments: Vec<Segment>,
}

/// A range and its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub range: BucketRange,
    pub owner: ShardName,
}

impl Map {
    /// A map of `segments`, which may come in any order.
    ///
    /// # Errors
    /// When a bucket has no owner, two owners, or does not exist.
    pub fn new(buckets: BucketCount, mut segments: Vec<Segment>) -> Result<Self, MapError> {
        segments.sort_by_key(|segment| segment.range);
        let mut joined: Vec<Segment> = Vec::with_capacity(segments.len());
        let mut next = 0_u32;
        for segment in segments {
            let first = u32::from(segment.range.first.get());
            if segment.range.last > buckets.last() {
                return Err(MapError::OutOfBounds { bucket: segment.range.last, buckets: buckets.get() });
            }
            match joined.last_mut() {
                Some(before) if first < next => {
                    let (one, other) = (before.owner.clone(), segment.owner);
                    return Err(MapError::OwnedTwice { bucket: segment.range.first, one, other });
                }
                _ if first > next => return Err(unowned(next)),
                Some(before) if before.owner == segment.owner => before.range.last = segment.range.last,
                Some(_) | None => joined.push(segment.clone()),
            }
            next = u32::from(segment.range.last.get()) + 1;
        }
        if next < buckets.get() { Err(unowned(next)) } else { Ok(Self { buckets, segments: joined }) }
    }

    #[must_use]
    pub fn buckets(&self) -> BucketCount {
        self.buckets
    }

    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    #[must_use]
    pub fn owner(&self, bucket: BucketId) -> Option<&ShardName> {
        let after = self.segments.partition_point(|segment| segment.range.last < bucket);
        self.segments.get(after).map(|segment| &segment.owner)
    }

    /// What `shard` owns; empty when it owns nothing.
    #[must_use]
    pub fn owned_by(&self, shard: &ShardName) -> Ranges {
        self.segments.iter().filter(|segment| &segment.owner == shard).map(|segment| segment.range).collect()
    }

    /// How many buckets each shard owns; shards that own none are not in it.
    #[must_use]
    pub fn sizes(&self) -> BTreeMap<ShardName, u32> {
        let mut sizes = BTreeMap::new();
        for segment in &self.segments {
            *sizes.entry(segment.owner.clone()).or_default() += segment.range.size();
        }
        sizes
    }
}

fn unowned(next: u32) -> MapError {
    MapError::Unowned { bucket: BucketId::new(u16::try_from(next).unwrap_or(u16::MAX)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(first: u16, last: u16, owner: &str) -> Segment {
        Segment {
            range: BucketRange::new(first, last).expect("not empty"),
            owner: owner.try_into().expect("a valid name"),
        }
    }

    fn check(segments: Vec<Segment>, expected: &str) {
        let map = Map::new(BucketCount::new(8).expect("valid"), segments);
        let shown = map.map_or_else(
            |error| error.to_string(),
            |map| map.segments.iter().map(|s| format!("{}={} ", s.range, s.owner)).collect(),
        );
        assert_eq!(shown, expected);
    }

    #[test]
    fn every_bucket_has_one_owner() {
        check(vec![segment(4, 7, "b"), segment(2, 3, "a"), segment(0, 1, "a")], "0-3=a 4-7=b ");
        check(vec![segment(0, 3, "a")], "bucket 4 has no owner");
        check(vec![segment(1, 7, "a")], "bucket 0 has no owner");
        check(vec![segment(0, 2, "a"), segment(4, 7, "b")], "bucket 3 has no owner");
        check(vec![segment(0, 4, "a"), segment(4, 7, "b")], "bucket 4 is owned by both a and b");
        check(vec![segment(0, 8, "a")], "bucket 8 does not exist: the set has 8 buckets");
        check(vec![], "bucket 0 has no owner");
    }

    #[test]
    fn owners_are_found_by_bucket() {
        let map = Map::new(
            BucketCount::new(8).expect("valid"),
            vec![segment(0, 0, "a"), segment(1, 6, "b"), segment(7, 7, "a")],
        )
        .expect("a map");
        let owners: String =
            (0..8).filter_map(|b| map.owner(BucketId::new(b))).map(ShardName::as_str).collect();
        assert_eq!(owners, "abbbbbba");
        assert_eq!(map.owned_by(&"a".try_into().expect("valid")).to_string(), "0-0,7-7");
    }
}

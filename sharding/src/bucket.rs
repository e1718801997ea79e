//! Buckets: the unit of ownership. A key hashes to one bucket; a shard owns ranges of them.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::hash;

/// Why a value is not a valid bucket count, shard name or order id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardingError {
    #[error("buckets must be a power of two from 1 to 65536, not {0}")]
    BucketCount(u32),
    #[error(
        "shard name {0:?} must be 1 to 20 characters of a-z, 0-9 and '-', begin with a letter and not end with '-'"
    )]
    ShardName(String),
    #[error("{0} is not an order id: expected a UUID of version 7")]
    OrderId(String),
}

/// How many buckets a set has: a power of two up to 65,536, fixed for the set's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct BucketCount(u32);

impl BucketCount {
    /// The largest count, and the default: bucket numbers fill 16 bits.
    pub const MAX: Self = Self(65_536);

    /// # Errors
    /// `ShardingError::BucketCount` unless `count` is a power of two from 1 to 65,536.
    pub fn new(count: u32) -> Result<Self, ShardingError> {
        if count.is_power_of_two() && count <= Self::MAX.0 {
            Ok(Self(count))
        } else {
            Err(ShardingError::BucketCount(count))
        }
    }

    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    /// The bits of the hash that name the bucket: `hash & mask`.
    #[must_use]
    pub fn mask(self) -> u32 {
        self.0 - 1
    }

    #[must_use]
    pub fn last(self) -> BucketId {
        BucketId(u16::try_from(self.mask()).expect("a count is at most 65,536"))
    }

    /// Every bucket, as one range.
    #[must_use]
    pub fn all(self) -> BucketRange {
        BucketRange { first: BucketId(0), last: self.last() }
    }

    #[must_use]
    pub fn bucket_of(self, key: Key) -> BucketId {
        let hash = match key {
            Key::Bigint(value) => hash::hash_bigint(value, 0),
            Key::Uuid(value) => hash::hash_uuid(value, 0),
        };
        let masked = hash & i64::from(self.mask());
        BucketId(u16::try_from(masked).expect("the mask keeps 16 bits"))
    }
}

impl TryFrom<u32> for BucketCount {
    type Error = ShardingError;
    fn try_from(count: u32) -> Result<Self, ShardingError> {
        Self::new(count)
    }
}

impl From<BucketCount> for u32 {
    fn from(count: BucketCount) -> Self {
        count.0
    }
}

/// One bucket's number, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BucketId(u16);

impl BucketId {
    #[must_use]
    pub fn new(number: u16) -> Self {
        Self(number)
    }

    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }

    /// As PostgreSQL's `int`, the type of a bucket in SQL.
    #[must_use]
    pub fn as_i32(self) -> i32 {
        i32::from(self.0)
    }
}

impl fmt::Display for BucketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The value that a row is sharded by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    Bigint(i64),
    Uuid(Uuid),
}

/// The type of a set's shard key column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyType {
    Bigint,
    Uuid,
}

impl KeyType {
    /// The built-in function that hashes it; a publication's row filter accepts no other kind.
    #[must_use]
    pub fn hash_function(self) -> &'static str {
        match self {
            Self::Bigint => "hashint8extended",
            Self::Uuid => "uuid_hash_extended",
        }
    }
}

/// Neighbouring buckets, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BucketRange {
    pub first: BucketId,
    pub last: BucketId,
}

impl BucketRange {
    /// The range from `first` to `last`; `None` when it would be empty.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first: BucketId(first), last: BucketId(last) })
    }

    /// How many buckets it holds: at least 1.
    #[must_use]
    pub fn size(self) -> u32 {
        u32::from(self.last.0) - u32::from(self.first.0) + 1
    }

    #[must_use]
    pub fn contains(self, bucket: BucketId) -> bool {
        self.first <= bucket && bucket <= self.last
    }

    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let (first, last) = (self.first.max(other.first), self.last.min(other.last));
        (first <= last).then_some(Self { first, last })
    }

    pub fn buckets(self) -> impl Iterator<Item = BucketId> {
        (self.first.0..=self.last.0).map(BucketId)
    }
}

impl fmt::Display for BucketRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A set of buckets as disjoint ranges in rising order, neighbours joined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ranges(Vec<BucketRange>);

impl Ranges {
    #[must_use]
    pub fn as_slice(&self) -> &[BucketRange] {
        &self.0
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many buckets, over all ranges.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.0.iter().map(|range| range.size()).sum()
    }

    #[must_use]
    pub fn contains(&self, bucket: BucketId) -> bool {
        let after = self.0.partition_point(|range| range.last < bucket);
        self.0.get(after).is_some_and(|range| range.contains(bucket))
    }

    pub fn buckets(&self) -> impl Iterator<Item = BucketId> {
        self.0.iter().flat_map(|range| range.buckets())
    }

    #[must_use]
    pub fn intersection(&self, other: BucketRange) -> Self {
        self.0.iter().filter_map(|range| range.intersection(other)).collect()
    }
}

impl FromIterator<BucketRange> for Ranges {
    fn from_iter<I: IntoIterator<Item = BucketRange>>(ranges: I) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().collect();
        sorted.sort();
        let mut joined: Vec<BucketRange> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match joined.last_mut() {
                Some(before) if u32::from(range.first.0) <= u32::from(before.last.0) + 1 => {
                    before.last = before.last.max(range.last);
                }
                Some(_) | None => joined.push(range),
            }
        }
        Self(joined)
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> BucketRange {
        BucketRange::new(first, last).expect("not empty")
    }

    #[test]
    fn counts_are_powers_of_two_up_to_65536() {
        for good in [1, 2, 1024, 65_536] {
            assert_eq!(BucketCount::new(good).map(BucketCount::get), Ok(good));
        }
        for bad in [0, 3, 1000, 65_537, 131_072] {
            assert_eq!(BucketCount::new(bad), Err(ShardingError::BucketCount(bad)));
        }
        assert_eq!(BucketCount::MAX.all().size(), 65_536);
    }

    #[test]
    fn ranges_are_sorted_joined_and_searched() {
        let ranges: Ranges =
            [range(8, 9), range(0, 3), range(4, 5), range(65_535, 65_535)].into_iter().collect();
        assert_eq!(ranges.to_string(), "0-5,8-9,65535-65535");
        assert_eq!(ranges.size(), 9);
        for (bucket, held) in [(0, true), (5, true), (6, false), (9, true), (10, false), (65_535, true)] {
            assert_eq!(ranges.contains(BucketId(bucket)), held, "bucket {bucket}");
        }
        assert_eq!(ranges.intersection(range(3, 8)).to_string(), "3-5,8-8");
    }
}

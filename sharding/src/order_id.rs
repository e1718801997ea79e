//! Order ids that say where they live: a UUIDv7 whose first 16 random bits are the order's bucket.

use std::{fmt, str::FromStr};

use uuid::Uuid;

use crate::{BucketId, ShardingError};

/// An order's id: a UUID of version 7 (RFC 9562) with the bucket in `rand_a` (its high 12 bits) and in the first
/// 4 bits of `rand_b` after the variant (its low 4 bits), so that an id alone can be routed. 58 random bits remain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(Uuid);

impl OrderId {
    /// An id made at `unix_ms` (milliseconds since 1970, 48 bits count) in `bucket`; of `random` the low 58 bits count.
    #[must_use]
    pub fn new(unix_ms: u64, bucket: BucketId, random: u64) -> Self {
        let (time, bucket) = (u128::from(unix_ms & 0xffff_ffff_ffff), u128::from(bucket.get()));
        let random = u128::from(random & 0x03ff_ffff_ffff_ffff);
        let (version, variant) = (0x7, 0b10);
        Self(Uuid::from_u128(
            time << 80 | version << 76 | (bucket >> 4) << 64 | variant << 62 | (bucket & 0xf) << 58 | random,
        ))
    }

    #[must_use]
    pub fn bucket(self) -> BucketId {
        let [_, _, _, _, _, _, b6, b7, b8, ..] = *self.0.as_bytes();
        BucketId::new(u16::from(b6 & 0x0f) << 12 | u16::from(b7) << 4 | u16::from(b8 >> 2 & 0x0f))
    }

    #[must_use]
    pub fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl TryFrom<Uuid> for OrderId {
    type Error = ShardingError;
    fn try_from(id: Uuid) -> Result<Self, ShardingError> {
        let version_7 = id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122;
        if version_7 { Ok(Self(id)) } else { Err(ShardingError::OrderId(id.to_string())) }
    }
}

impl FromStr for OrderId {
    type Err = ShardingError;
    fn from_str(text: &str) -> Result<Self, ShardingError> {
        let id =
            Uuid::parse_str(text).map_err(|_| ShardingError::OrderId(text.chars().take(64).collect()))?;
        Self::try_from(id)
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bits_stand_where_the_layout_says() {
        let id = OrderId::new(0x0123_4567_89ab, BucketId::new(0xfed1), 0x03ff_ffff_ffff_ffff);
        assert_eq!(id.to_string(), "01234567-89ab-7fed-87ff-ffffffffffff");
    }

    #[test]
    fn other_uuids_are_refused() {
        for text in ["", "x", "00000000-0000-0000-0000-000000000000", "01234567-89ab-4fed-87ff-ffffffffffff"]
        {
            assert!(text.parse::<OrderId>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_bucket_comes_back(ms: u64, bucket: u16, random: u64) {
            let id = OrderId::new(ms, BucketId::new(bucket), random);
            prop_assert_eq!(id.bucket(), BucketId::new(bucket));
            prop_assert_eq!(OrderId::try_from(id.as_uuid()), Ok(id));
        }

        #[test]
        fn later_ids_sort_later(ms in 0_u64..1 << 47, one: u16, other: u16, random: u64) {
            let (earlier, later) = (OrderId::new(ms, BucketId::new(one), random), OrderId::new(ms + 1, BucketId::new(other), random));
            prop_assert!(earlier < later);
        }
    }
}

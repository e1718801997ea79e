//! What is believed of each bucket's owner. Pure: facts come in, the better one stays.

use std::sync::Arc;

use longshore_sharding::{BucketCount, BucketId, ShardName};

/// A bucket's owner, as far as known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) shard: Arc<ShardName>,
    pub(crate) epoch: i64,
    pub(crate) standing: Standing,
}

/// Who said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The former owner, of its successor: it may not have taken over yet.
    Told,
    /// The owner itself.
    Claimed,
}

impl Claim {
    /// Epochs only rise, so the higher one is the newer; of one epoch, the owner's own word is the better.
    pub(crate) fn supersedes(&self, known: &Self) -> bool {
        let confirms = known.standing == Standing::Told && self.standing == Standing::Claimed;
        self.epoch > known.epoch || self.epoch == known.epoch && confirms
    }
}

/// The believed owner of every bucket.
#[derive(Debug, Default)]
pub(crate) struct ShardMap {
    claims: Vec<Option<Claim>>,
}

impl ShardMap {
    /// Makes room for `buckets`; what is known stays.
    pub(crate) fn size(&mut self, buckets: BucketCount) {
        self.claims.resize(usize::from(buckets.last().get()) + 1, None);
    }

    pub(crate) fn claim(&self, bucket: BucketId) -> Option<&Claim> {
        self.claims.get(usize::from(bucket.get()))?.as_ref()
    }

    /// Takes `claim` where it is better than what is known. Says whether anything changed.
    pub(crate) fn learn(&mut self, bucket: BucketId, claim: Claim) -> bool {
        let better = self.claim(bucket).is_none_or(|known| claim.supersedes(known));
        better && self.set(bucket, claim)
    }

    /// Takes `claim` whatever is known: for what was seen just now. Says whether anything changed.
    pub(crate) fn set(&mut self, bucket: BucketId, claim: Claim) -> bool {
        let Some(entry) = self.claims.get_mut(usize::from(bucket.get())) else { return false };
        let changed = entry.as_ref() != Some(&claim);
        *entry = Some(claim);
        changed
    }

    /// Forgets every owner for which `stays` is false: nothing can be asked of a shard that left the set.
    pub(crate) fn retain(&mut self, stays: impl Fn(&ShardName) -> bool) {
        for entry in &mut self.claims {
            if entry.as_ref().is_some_and(|claim| !stays(&claim.shard)) {
                *entry = None;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn claim(shard: &str, epoch: i64, standing: Standing) -> Claim {
        Claim { shard: Arc::new(ShardName::try_from(shard.to_owned()).unwrap()), epoch, standing }
    }

    fn map_of_eight() -> ShardMap {
        let mut map = ShardMap::default();
        map.size(BucketCount::new(8).unwrap());
        map
    }

    #[test]
    fn the_better_claim_stays() {
        use Standing::{Claimed, Told};
        let cases = [
            (claim("a", 3, Claimed), claim("b", 4, Claimed), "b", "two claims: the higher epoch"),
            (claim("b", 4, Claimed), claim("a", 3, Claimed), "b", "a stale claim that comes late"),
            (claim("a", 3, Claimed), claim("b", 3, Claimed), "a", "two claims of one epoch: the first"),
            (claim("a", 3, Claimed), claim("b", 4, Told), "b", "the successor is named"),
            (claim("b", 4, Told), claim("a", 4, Claimed), "a", "handed back at the epoch of the revocation"),
            (claim("a", 4, Claimed), claim("b", 4, Told), "a", "the owner's word is better"),
            (claim("b", 5, Told), claim("a", 4, Claimed), "b", "an old list that comes late"),
        ];
        for (known, new, owner, why) in cases {
            let mut map = map_of_eight();
            let bucket = BucketId::new(1);
            assert!(map.learn(bucket, known));
            map.learn(bucket, new);
            assert_eq!(map.claim(bucket).unwrap().shard.as_str(), owner, "{why}");
        }
    }

    #[test]
    fn a_confirmation_is_a_change() {
        let mut map = map_of_eight();
        assert!(map.learn(BucketId::new(1), claim("b", 4, Standing::Told)));
        assert!(map.learn(BucketId::new(1), claim("b", 4, Standing::Claimed)), "waiters must wake");
        assert!(!map.learn(BucketId::new(1), claim("b", 4, Standing::Claimed)));
    }

    #[test]
    fn what_was_seen_just_now_wins() {
        let mut map = map_of_eight();
        map.learn(BucketId::new(1), claim("b", 9, Standing::Claimed));
        assert!(map.set(BucketId::new(1), claim("a", 8, Standing::Claimed)));
        assert_eq!(map.claim(BucketId::new(1)).unwrap().shard.as_str(), "a");
    }

    #[test]
    fn buckets_that_do_not_exist_are_not_kept() {
        let mut map = map_of_eight();
        assert!(!map.learn(BucketId::new(8), claim("a", 1, Standing::Claimed)));
        assert_eq!(map.claim(BucketId::new(8)), None);
    }

    #[test]
    fn a_shard_that_left_is_forgotten() {
        let mut map = map_of_eight();
        map.learn(BucketId::new(1), claim("a", 1, Standing::Claimed));
        map.learn(BucketId::new(2), claim("b", 1, Standing::Claimed));
        map.retain(|shard| shard.as_str() == "b");
        assert_eq!(map.claim(BucketId::new(1)), None);
        assert!(map.claim(BucketId::new(2)).is_some());
    }
}

//! What is asked, parsed once: nobody behind this module reads the raw spec.

use kube::ResourceExt;
use longshore_crds::{OrderShardSet, order_shard_set::TableSpec};
use longshore_sharding::{
    BucketCount, ShardName, ShardingError,
    operation::{Limits, Pace, PauseBudget},
    planner::Weight,
};

/// Annotation: the uid of the OrderShardSet whose shards this one takes over.
const ADOPT: &str = "longshore.dev/adopt";
/// Annotation: as `SHARD:TOKEN`, where a condition has named the token.
const ACCEPT: &str = "longshore.dev/accept-rows-of";

/// A valid spec, with what identifies its object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) generation: i64,
    pub(super) buckets: BucketCount,
    pub(super) tables: Vec<TableSpec>,
    pub(super) config_map_name: String,
    pub(super) shards: Vec<WantedShard>,
    pub(super) paused: bool,
    pub(super) pause: PauseBudget,
    /// The most pairs of shards that copy at once.
    pub(super) copies: usize,
    /// The most bytes of WAL that a slot may hold back.
    pub(super) retained_wal: u64,
    /// The OrderShardSet whose shards may be taken over.
    pub(super) adopts: Option<String>,
    /// A shard whose rows are to count for buckets that were lost, and which loss is meant.
    pub(super) accepts: Option<(String, String)>,
    /// Shards that the last status saw owning buckets. Never a reason to act, only one not to begin anew.
    pub(super) owners_seen: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WantedShard {
    pub(super) name: ShardName,
    pub(super) secret_name: String,
    pub(super) weight: u32,
}

/// What the API server should have refused: its schema and CEL rules say the same.
#[derive(Debug, thiserror::Error)]
pub enum WantedError {
    #[error("metadata.{0} is missing")]
    Metadata(&'static str),
    #[error(transparent)]
    Sharding(#[from] ShardingError),
}

impl Wanted {
    /// # Errors
    /// When the spec breaks a rule that its schema states.
    pub(super) fn of(set: &OrderShardSet) -> Result<Self, WantedError> {
        let shards = set.spec.shards.iter().map(|shard| {
            let name = ShardName::try_from(shard.name.as_str())?;
            Ok(WantedShard { name, secret_name: shard.connection_secret_name.clone(), weight: shard.weight })
        });
        let rebalance = &set.spec.rebalance;
        Ok(Self {
            namespace: set.namespace().ok_or(WantedError::Metadata("namespace"))?,
            name: set.name_any(),
            uid: set.uid().ok_or(WantedError::Metadata("uid"))?,
            generation: set.metadata.generation.unwrap_or(0),
            buckets: BucketCount::new(set.spec.buckets)?,
            tables: set.spec.tables.clone(),
            config_map_name: set.spec.schema.config_map_name.clone(),
            shards: shards.collect::<Result<_, ShardingError>>()?,
            paused: set.spec.paused,
            pause: PauseBudget { most_ms: rebalance.max_write_pause_millis.into() },
            copies: usize::try_from(rebalance.max_parallel_copies).unwrap_or(1),
            retained_wal: u64::from(rebalance.max_retained_wal_mebibytes) * 1024 * 1024,
            adopts: set.annotations().get(ADOPT).cloned(),
            accepts: set
                .annotations()
                .get(ACCEPT)
                .and_then(|given| given.split_once(':'))
                .map(|(shard, token)| (shard.to_owned(), token.to_owned())),
            owners_seen: owners_seen(set),
        })
    }

    /// How much at once. An action hands over several batches, as large as the pace of the moment.
    #[must_use]
    pub(super) fn limits(&self) -> Limits {
        Limits { batch: Pace::MOST, copies: self.copies, retained_wal: self.retained_wal }
    }

    /// The wanted shares, in the order of the spec.
    #[must_use]
    pub(super) fn weights(&self) -> Vec<Weight> {
        let weight = |shard: &WantedShard| Weight { shard: shard.name.clone(), weight: shard.weight };
        self.shards.iter().map(weight).collect()
    }
}

fn owners_seen(set: &OrderShardSet) -> Vec<String> {
    let shards = set.status.iter().flat_map(|status| &status.shards);
    shards.filter(|shard| shard.buckets > Some(0)).map(|shard| shard.name.clone()).collect()
}

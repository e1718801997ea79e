//! What requests and listeners share: the directory, the map, the pools, and the news of their changes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use futures::future::join_all;
use longshore_sharding::{BucketCount, BucketId, BucketRange, Ranges, ShardName};
use tokio::{sync::watch, time::timeout};

use super::{
    CredentialsError, Endpoint,
    connections::{Connections, Pool},
    decision::{Decision, decide},
    directory::{Directory, ForeignShard, Report},
    errors::Fault,
    map::{Claim, ShardMap, Standing},
    store::{self, OwnedRun},
    survey::Sought,
};
use crate::{problem::chain, settings::ShardSettings};

/// What one shard may take to say what it owns.
const SURVEY_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct Core {
    pub(crate) connections: Connections,
    pub(crate) sought: Sought,
    directory: Mutex<Directory>,
    map: RwLock<ShardMap>,
    /// Changes with the map or the number of buckets: requests that wait look again.
    map_news: watch::Sender<()>,
    /// Changes with the directory.
    directory_news: watch::Sender<()>,
    caught_up: watch::Sender<i64>,
}

impl Core {
    pub(crate) fn new(service: &'static str, settings: &ShardSettings) -> Result<Self, CredentialsError> {
        Ok(Self {
            connections: Connections::new(service, settings)?,
            sought: Sought::default(),
            directory: Mutex::default(),
            map: RwLock::default(),
            map_news: watch::Sender::new(()),
            directory_news: watch::Sender::new(()),
            caught_up: watch::Sender::new(0),
        })
    }

    pub(crate) fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn buckets(&self) -> Option<BucketCount> {
        self.directory().buckets()
    }

    pub(crate) fn map_news(&self) -> watch::Receiver<()> {
        self.map_news.subscribe()
    }

    pub(crate) fn directory_news(&self) -> watch::Receiver<()> {
        self.directory_news.subscribe()
    }

    pub(crate) fn caught_up(&self) -> watch::Receiver<i64> {
        self.caught_up.subscribe()
    }

    pub(crate) fn claim(&self, bucket: BucketId) -> Option<Claim> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).claim(bucket).cloned()
    }

    /// As [`Self::claim`], for each of these buckets in turn.
    pub(crate) fn claims(&self, buckets: &Ranges) -> Vec<(BucketId, Option<Claim>)> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        buckets.buckets().map(|bucket| (bucket, map.claim(bucket).cloned())).collect()
    }

    /// The owner of `bucket` to ask, where one is known that can be asked.
    pub(crate) fn target(&self, bucket: BucketId) -> Option<(Claim, Pool)> {
        let claim = self.claim(bucket)?;
        let pool = self.connections.pool(&claim.shard)?;
        Some((claim, pool))
    }

    /// Takes a shard's report.
    pub(crate) fn offer(&self, report: &Report) -> Result<(), ForeignShard> {
        let changed = {
            let mut directory = self.directory();
            let changed = directory.offer(report)?;
            self.update_map(|map| {
                map.size(report.buckets);
                false
            });
            changed
        };
        if changed {
            tracing::info!(
                version = report.version,
                shards = report.shards.len(),
                "the set's shards have changed"
            );
            self.endpoints_changed();
        }
        self.tell_caught_up();
        Ok(())
    }

    /// Notes that `shard` is listened to at `endpoint`, its map read.
    pub(crate) fn connected(&self, shard: &ShardName, endpoint: &Endpoint) {
        self.directory().connected(shard, endpoint);
        self.tell_caught_up();
    }

    pub(crate) fn disconnected(&self, shard: &ShardName) {
        self.directory().disconnected(shard);
    }

    /// Takes a shard's list of what it owns.
    pub(crate) fn learn_runs(&self, shard: &ShardName, runs: &[OwnedRun]) {
        let shard = Arc::new(shard.clone());
        self.update_map(|map| {
            let mut changed = false;
            for OwnedRun { range: BucketRange { first, last }, epoch } in runs {
                for bucket in first.get()..=last.get() {
                    let claim =
                        Claim { shard: Arc::clone(&shard), epoch: *epoch, standing: Standing::Claimed };
                    changed |= map.learn(BucketId::new(bucket), claim);
                }
            }
            changed
        });
    }

    /// Takes news of single buckets.
    pub(crate) fn learn(&self, claims: impl IntoIterator<Item = (BucketId, Claim)>) {
        self.update_map(|map| {
            claims.into_iter().fold(false, |changed, (bucket, claim)| map.learn(bucket, claim) || changed)
        });
    }

    /// Decides what to do after `asked` failed with `fault`, and remembers what that taught.
    pub(crate) fn decide(&self, bucket: BucketId, asked: &ShardName, fault: &Fault) -> Decision {
        if let Fault::Moved(successor) = fault
            && let Some(endpoint) = &successor.endpoint
            && self.directory().hear_of(&successor.shard, endpoint)
        {
            tracing::info!(shard.id = %successor.shard, %endpoint, "shard {asked} named a new shard");
            self.endpoints_changed();
        }
        let mut decision = None;
        self.update_map(|map| {
            let decided = decide(map.claim(bucket), asked, fault);
            let changed = decided.learn.as_ref().is_some_and(|claim| map.set(bucket, claim.clone()));
            decision = Some(decided);
            changed
        });
        decision.expect("the closure runs once")
    }

    /// I/O: asks every shard for `buckets`. Of those that claim one now, the one with the highest epoch is right, whatever was
    /// believed before; but news that come meanwhile are better than both.
    pub(crate) async fn survey(&self, buckets: &Ranges) {
        let known = self.claims(buckets);
        let asking = self.connections.pools().into_iter().map(|(shard, pool)| async move {
            let ask = pool.lend(async |connection| store::owned_runs(connection, buckets).await);
            let runs = timeout(SURVEY_TIMEOUT, ask).await.ok()?.ok()?;
            // Whoever waits for this need not wait for the shards that say nothing.
            self.learn_runs(&shard, &runs);
            Some((Arc::new(shard), runs))
        });
        let answers = join_all(asking).await;
        let mut owners: BTreeMap<BucketId, Claim> = BTreeMap::new();
        for (shard, runs) in answers.into_iter().flatten() {
            for OwnedRun { range, epoch } in runs {
                for bucket in range.buckets() {
                    if owners.get(&bucket).is_none_or(|best| best.epoch < epoch) {
                        let claim = Claim { shard: Arc::clone(&shard), epoch, standing: Standing::Claimed };
                        owners.insert(bucket, claim);
                    }
                }
            }
        }
        self.update_map(|map| {
            let mut changed = false;
            for (bucket, known) in known {
                if let Some(owner) = owners.remove(&bucket)
                    && map.claim(bucket) == known.as_ref()
                {
                    changed |= map.set(bucket, owner);
                }
            }
            changed
        });
    }

    /// Reads the credentials again; on failure the old ones stay.
    pub(crate) fn reload_credentials(&self) {
        if let Err(error) = self.connections.reload_credentials() {
            tracing::warn!(error = chain(&error), "failed to read the credentials again: the old ones stay");
        }
    }

    fn endpoints_changed(&self) {
        let endpoints = self.directory().endpoints();
        self.connections.reconcile(&endpoints);
        self.update_map(|map| {
            map.retain(|shard| endpoints.contains_key(shard));
            true
        });
        self.directory_news.send_replace(());
    }

    fn tell_caught_up(&self) {
        let version = self.directory().caught_up();
        self.caught_up.send_if_modified(|shown| {
            let newer = *shown < version;
            *shown = version.max(*shown);
            newer
        });
    }

    fn update_map(&self, update: impl FnOnce(&mut ShardMap) -> bool) {
        let changed = update(&mut self.map.write().unwrap_or_else(PoisonError::into_inner));
        if changed {
            self.map_news.send_replace(());
        }
    }
}

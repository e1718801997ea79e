//! One notification connection per shard, to the server itself, kept for as long as the shard is in the set. On each new
//! connection everything is read again after LISTEN, so that no change falls between.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use longshore_sharding::{BucketCount, BucketId, ShardName};
use sqlx::{
    Connection, PgConnection,
    postgres::{PgListener, PgNotification, PgPoolOptions},
};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, error::Elapsed, interval, interval_at, sleep, timeout},
};

use super::{
    Addresses, Endpoint,
    core::Core,
    directory::{ForeignShard, Report},
    errors::Fault,
    map::{Claim, Standing},
    store,
};
use crate::{problem::chain, shards::RetryReason};

/// What connecting and one statement may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a silent connection is tried: a peer that vanished without a word sends no notifications either.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// How often the seeds are asked while a shard is out of reach.
const SEED_INTERVAL: Duration = Duration::from_secs(1);

const RECONNECT_MS_MIN: u64 = 50;
const RECONNECT_MS_MAX: u64 = 2_000;

/// Why a notification connection ended.
#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error("failed to talk to the shard")]
    Database(#[from] sqlx::Error),
    #[error("the shard did not answer in {} s", ANSWER_TIMEOUT.as_secs())]
    Silent(#[from] Elapsed),
    #[error("the connection was lost")]
    Lost,
    #[error("the server is shard {found}, not {expected}")]
    OtherShard { found: ShardName, expected: ShardName },
    #[error("the shard is not of this set")]
    Foreign(#[from] ForeignShard),
}

/// What a notification says.
#[derive(Debug, PartialEq, Eq)]
enum Notice {
    /// The sender owns the bucket now.
    Owned { bucket: BucketId, epoch: i64 },
    /// The sender gave the bucket up to `peer`.
    Moved { bucket: BucketId, epoch: i64, peer: ShardName },
    /// The sender refused what it received of the bucket: it stays where it was.
    Refused,
    /// The list of shards has changed, or more buckets than are told one by one.
    Shards,
}

impl Notice {
    fn parse(payload: &str) -> Option<Self> {
        let words: Vec<&str> = payload.split(' ').collect();
        match words[..] {
            ["owned", bucket, epoch] => {
                Some(Self::Owned { bucket: BucketId::new(bucket.parse().ok()?), epoch: epoch.parse().ok()? })
            }
            ["moved", bucket, epoch, peer] => Some(Self::Moved {
                bucket: BucketId::new(bucket.parse().ok()?),
                epoch: epoch.parse().ok()?,
                peer: ShardName::try_from(peer.to_owned()).ok()?,
            }),
            ["refused", _bucket, _epoch] => Some(Self::Refused),
            ["shards", _version] => Some(Self::Shards),
            _ => None,
        }
    }
}

/// Keeps one listener per shard known, and asks the seeds while that is not enough. Never ends.
pub(crate) async fn keep(core: Arc<Core>, seeds: Vec<Endpoint>) {
    let mut news = core.directory_news();
    let mut listeners = Listeners::default();
    let mut seed_ticks = interval(SEED_INTERVAL);
    seed_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        listeners.reconcile(&core);
        tokio::select! {
            _ = news.changed() => {}
            Some(_) = listeners.tasks.join_next() => {}
            _ = seed_ticks.tick() => ask_seeds(&core, &seeds).await,
        }
    }
}

/// Asks the seeds in turn until one answers, unless every shard is listened to.
async fn ask_seeds(core: &Core, seeds: &[Endpoint]) {
    if core.directory().settled() {
        return;
    }
    for seed in seeds {
        match timeout(ANSWER_TIMEOUT, seed_report(core, seed)).await.map_err(ListenError::from).flatten() {
            Ok(()) => return,
            Err(error) => {
                react(core, &error);
                tracing::warn!(%seed, error = chain(&error), "failed to learn the shards from seed {seed}");
            }
        }
    }
}

/// The listening tasks, by shard.
#[derive(Default)]
struct Listeners {
    tasks: JoinSet<()>,
    running: BTreeMap<ShardName, (Endpoint, AbortHandle)>,
}

impl Listeners {
    /// Starts what is missing and ends what is not wanted; a task that died is started again.
    fn reconcile(&mut self, core: &Arc<Core>) {
        let wanted = core.directory().endpoints();
        self.running.retain(|shard, (endpoint, task)| {
            let stays =
                !task.is_finished() && wanted.get(shard).is_some_and(|wanted| wanted.direct == *endpoint);
            if !stays {
                task.abort();
                core.disconnected(shard);
            }
            stays
        });
        for (shard, Addresses { direct: endpoint, .. }) in wanted {
            if !self.running.contains_key(&shard) {
                let task = self.tasks.spawn(listen(Arc::clone(core), shard.clone(), endpoint.clone()));
                self.running.insert(shard, (endpoint, task));
            }
        }
    }
}

async fn seed_report(core: &Core, seed: &Endpoint) -> Result<(), ListenError> {
    let options = core.connections.options(seed, "longshore-router seed");
    let mut connection = PgConnection::connect_with(&options).await?;
    let report = store::report(&mut connection).await?;
    connection.close().await?;
    core.offer(&report)?;
    Ok(())
}

/// Listens to one shard, connecting again whenever the connection ends. Never ends.
async fn listen(core: Arc<Core>, shard: ShardName, endpoint: Endpoint) {
    let mut failures: u32 = 0;
    loop {
        let before = Instant::now();
        if let Err(error) = session(&core, &shard, &endpoint).await {
            core.disconnected(&shard);
            react(&core, &error);
            tracing::warn!(shard.id = %shard, %endpoint, error = chain(&error), "no notifications from shard {shard}");
        }
        // What stood for a while, or took as long to fail, needs no pause on top.
        let lasted = before.elapsed() > Duration::from_millis(RECONNECT_MS_MAX);
        failures = if lasted { 0 } else { failures.saturating_add(1) };
        sleep(reconnect_pause(failures)).await;
    }
}

fn reconnect_pause(failures: u32) -> Duration {
    let longest = RECONNECT_MS_MIN.saturating_mul(1 << failures.min(10)).min(RECONNECT_MS_MAX);
    Duration::from_millis(rand::random_range(longest / 2..=longest))
}

/// Credentials that were refused may have been rotated.
fn react(core: &Core, error: &ListenError) {
    if let ListenError::Database(error) = error
        && Fault::of(error) == Fault::Passing(RetryReason::Credentials)
    {
        core.reload_credentials();
    }
}

/// One connection's life.
async fn session(core: &Core, shard: &ShardName, endpoint: &Endpoint) -> Result<(), ListenError> {
    let mut listener = timeout(ANSWER_TIMEOUT, connect(core, endpoint)).await??;
    // LISTEN stands: what changes from here on is heard, what changed before is read.
    timeout(ANSWER_TIMEOUT, read_all(core, shard, &mut listener)).await??;
    core.connected(shard, endpoint);
    tracing::info!(shard.id = %shard, %endpoint, "listening to shard {shard}");

    let mut caught_up = core.caught_up();
    caught_up.mark_changed();
    let mut checks = interval_at(Instant::now() + CHECK_INTERVAL, CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            received = listener.try_recv() => {
                let first = received?.ok_or(ListenError::Lost)?;
                if take_notices(core, shard, first, &mut listener) {
                    timeout(ANSWER_TIMEOUT, read_all(core, shard, &mut listener)).await??;
                }
            }
            _ = caught_up.changed() => {
                let version = *caught_up.borrow_and_update();
                timeout(ANSWER_TIMEOUT, store::show_version(&mut listener, version)).await??;
            }
            _ = checks.tick() => timeout(ANSWER_TIMEOUT, read_report(core, shard, &mut listener)).await??,
        }
    }
}

async fn connect(core: &Core, endpoint: &Endpoint) -> Result<PgListener, sqlx::Error> {
    let version = *core.caught_up().borrow();
    let options = core.connections.options(endpoint, &store::listener_name(version));
    // sqlx makes listeners from pools alone: this one holds the one connection and lives as long.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ANSWER_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_lazy_with(options);
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen(store::CHANNEL).await?;
    Ok(listener)
}

async fn read_all(core: &Core, shard: &ShardName, listener: &mut PgListener) -> Result<(), ListenError> {
    read_report(core, shard, listener).await?;
    let all = core.buckets().map(BucketCount::all).into_iter().collect();
    let runs = store::owned_runs(&mut *listener, &all).await?;
    core.learn_runs(shard, &runs);
    Ok(())
}

async fn read_report(core: &Core, shard: &ShardName, listener: &mut PgListener) -> Result<(), ListenError> {
    let report: Report = store::report(&mut *listener).await?;
    if report.shard != *shard {
        return Err(ListenError::OtherShard { found: report.shard, expected: shard.clone() });
    }
    core.offer(&report)?;
    Ok(())
}

/// Takes `first` and all that came with it, as one change of the map. Says whether all must be read again.
fn take_notices(core: &Core, shard: &ShardName, first: PgNotification, listener: &mut PgListener) -> bool {
    let sender = Arc::new(shard.clone());
    let mut claims = Vec::new();
    let mut much_changed = false;
    let mut next = Some(first);
    while let Some(notification) = next {
        match Notice::parse(notification.payload()) {
            Some(Notice::Owned { bucket, epoch }) => {
                claims
                    .push((bucket, Claim { shard: Arc::clone(&sender), epoch, standing: Standing::Claimed }));
            }
            Some(Notice::Moved { bucket, epoch, peer }) => {
                claims.push((bucket, Claim { shard: Arc::new(peer), epoch, standing: Standing::Told }));
            }
            Some(Notice::Refused) => {}
            Some(Notice::Shards) => much_changed = true,
            None => tracing::warn!(
                payload = notification.payload(),
                "shard {shard} sent a notification of no known kind"
            ),
        }
        next = listener.next_buffered();
    }
    core.learn(claims);
    much_changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_read() {
        let b = ShardName::try_from("b".to_owned()).unwrap();
        let bucket = BucketId::new(17);
        let cases = [
            ("owned 17 5", Some(Notice::Owned { bucket, epoch: 5 })),
            ("moved 17 6 b", Some(Notice::Moved { bucket, epoch: 6, peer: b })),
            ("shards 3", Some(Notice::Shards)),
            ("refused 17 6", Some(Notice::Refused)),
            ("", None),
            ("owned", None),
            ("owned 65536 1", None),
            ("owned 1 x", None),
            ("moved 17 6", None),
            ("moved 17 6 Not_A_Name", None),
            ("shards", None),
        ];
        for (payload, notice) in cases {
            assert_eq!(Notice::parse(payload), notice, "{payload:?}");
        }
    }

    #[test]
    fn reconnecting_slows_down_and_stays_bounded() {
        for failures in [1, 2, 10, u32::MAX] {
            let pause = reconnect_pause(failures);
            assert!(pause >= Duration::from_millis(RECONNECT_MS_MIN / 2), "{failures}");
            assert!(pause <= Duration::from_millis(RECONNECT_MS_MAX), "{failures}");
        }
    }
}

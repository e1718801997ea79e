//! I/O: carries out one action. Decides nothing but how long to wait for it.

use std::time::{Duration, Instant};

use longshore_sharding::{
    BucketId,
    operation::{Action, Cost, Pace, PauseBudget, Plan, StrayKind, Stream},
};

use super::{Error, open::OpenSet, refused};
use crate::shard::{Shard, StoreError};

/// How long a batch is watched to learn its pause; it arrives without us as well.
const ARRIVAL_WATCH: Duration = Duration::from_secs(1);
const ARRIVAL_POLL: Duration = Duration::from_millis(3);

/// What actions belong to.
pub(super) struct Work<'a> {
    pub(super) plan: &'a Plan,
    pub(super) generation: i64,
    pub(super) set: &'a OpenSet,
    pub(super) pause: PauseBudget,
}

/// Does it; says in a few words what was done.
pub(super) async fn execute(action: &Action, work: &Work<'_>, pace: &mut Pace) -> Result<String, Error> {
    let Work { plan, set, .. } = work;
    tracing::debug!(operation.id = %plan.id, ?action, "acting");
    if let Action::HandOver { stream, buckets } = action {
        return hand_over(work, stream, buckets, pace).await;
    }
    let (name, deed) = described(action);
    let shard = find(set, name)?;
    act(action, work, shard).await.map_err(|source| refused(shard.name.to_string(), source))?;
    tracing::info!(operation.id = %plan.id, shard.id = %shard.name, "{deed}");
    Ok(deed)
}

/// What a plan's buckets hold, on the shards that have them.
pub(super) async fn estimate(plan: &Plan, set: &OpenSet) -> Result<Cost, Error> {
    let mut cost = Cost::default();
    for moving in plan.moves() {
        let source = find(set, &moving.from)?;
        let part = source.estimate(&moving.ranges).await;
        cost = cost + part.map_err(|error| refused(source.name.to_string(), error))?;
    }
    Ok(cost)
}

async fn act(action: &Action, work: &Work<'_>, shard: &Shard) -> Result<(), StoreError> {
    let Work { plan, generation, set, pause } = work;
    let name = |stream: &Stream| set.names.stream(plan.id, stream);
    match action {
        Action::Journal { course, .. } => shard.journal(plan, course, *generation).await,
        Action::Own { ranges, epoch, .. } => shard.own(ranges, *epoch).await,
        Action::Revoke { ranges, epoch, .. } => shard.revoke(ranges, *epoch).await,
        Action::Raise { ranges, epoch, peer, .. } => shard.raise(plan.id, ranges, *epoch, peer).await,
        Action::Expect { ranges, epoch, peer, .. } => shard.expect(plan.id, ranges, *epoch, peer).await,
        Action::CreatePublication { stream, ranges } => {
            shard.publish(&name(stream), plan.id, &stream.destination, ranges).await
        }
        Action::CreateSlot { stream } => shard.create_slot(&name(stream)).await,
        Action::CreateSubscription { stream, copy_data } => match set.shards.get(&stream.source) {
            Some(source) => shard.subscribe(&name(stream), &source.connection, *copy_data).await,
            None => Ok(()),
        },
        Action::DropSubscription { stream } => {
            shard.drop_stream_object(StrayKind::Subscription, &name(stream)).await
        }
        Action::DropSlot { stream } => shard.drop_stream_object(StrayKind::Slot, &name(stream)).await,
        Action::DropPublication { stream } => {
            shard.drop_stream_object(StrayKind::Publication, &name(stream)).await
        }
        Action::DropStray { stray, .. } => shard.drop_stream_object(stray.kind, &stray.name).await,
        Action::Probe { stream } => shard.probe(plan.id, &stream.destination).await,
        Action::Analyze { .. } => shard.analyze().await,
        Action::Clear { ranges, .. } => shard.clear(ranges).await,
        Action::HandOver { stream, buckets } => {
            shard.hand_over(plan.id, &stream.destination, buckets, pause.give_up_ms()).await
        }
    }
}

/// One batch; and how long its writers paused, for the size of the next.
async fn hand_over(
    work: &Work<'_>,
    stream: &Stream,
    buckets: &[BucketId],
    pace: &mut Pace,
) -> Result<String, Error> {
    let Work { plan, set, pause, .. } = work;
    let (source, destination) = (find(set, &stream.source)?, find(set, &stream.destination)?);
    let started = Instant::now();
    let handed = source.hand_over(plan.id, &stream.destination, buckets, pause.give_up_ms()).await;
    match handed {
        Ok(()) => {}
        // Writers were faster, or the two waited for each other: not yet, and with fewer buckets.
        Err(error) if matches!(error.sqlstate().as_deref(), Some("57014" | "55P03" | "40P01" | "40001")) => {
            *pace = pace.after_giving_up(buckets.len());
            tracing::info!(operation.id = %plan.id, "writers did not let a batch of {} buckets through yet", buckets.len());
            return Ok(format!("{stream}: waiting for writers"));
        }
        Err(error) => return Err(refused(source.name.to_string(), error)),
    }
    while started.elapsed() < ARRIVAL_WATCH {
        match destination.has_arrived(buckets).await {
            Ok(false) => tokio::time::sleep(ARRIVAL_POLL).await,
            Ok(true) | Err(_) => break,
        }
    }
    let pause_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    *pace = pace.after(buckets.len(), pause_ms, *pause);
    tracing::debug!(operation.id = %plan.id, buckets = buckets.len(), pause_ms, next = pace.batch(), "batch handed over");
    Ok(format!("{stream}: handing buckets over"))
}

/// The shard that an action happens on, and what it is in words.
fn described(action: &Action) -> (&longshore_sharding::ShardName, String) {
    match action {
        Action::Journal { shard, course } => (shard, format!("{shard}: journal says {course:?}")),
        Action::Own { shard, ranges, .. } => (shard, format!("{shard}: owning {} buckets", ranges.size())),
        Action::Revoke { shard, ranges, .. } => {
            (shard, format!("{shard}: revoking {} buckets", ranges.size()))
        }
        Action::Raise { shard, ranges, .. } => (shard, format!("{shard}: raising {} epochs", ranges.size())),
        Action::Expect { shard, ranges, .. } => {
            (shard, format!("{shard}: expecting {} buckets", ranges.size()))
        }
        Action::CreatePublication { stream, .. } => {
            (&stream.source, format!("{stream}: creating the publication"))
        }
        Action::CreateSlot { stream } => (&stream.source, format!("{stream}: creating the slot")),
        Action::CreateSubscription { stream, .. } => {
            (&stream.destination, format!("{stream}: creating the subscription"))
        }
        Action::DropSubscription { stream } => {
            (&stream.destination, format!("{stream}: dropping the subscription"))
        }
        Action::DropSlot { stream } => (&stream.source, format!("{stream}: dropping the slot")),
        Action::DropPublication { stream } => (&stream.source, format!("{stream}: dropping the publication")),
        Action::DropStray { shard, stray } => {
            (shard, format!("{shard}: dropping {}, left by an old operation", stray.name))
        }
        Action::Probe { stream } => (&stream.source, format!("{stream}: sending a probe")),
        Action::HandOver { stream, .. } => (&stream.source, format!("{stream}: handing buckets over")),
        Action::Analyze { shard } => (shard, format!("{shard}: analyzing the tables")),
        Action::Clear { shard, ranges } => {
            (shard, format!("{shard}: clearing rows of {} buckets", ranges.size()))
        }
    }
}

fn find<'a>(set: &'a OpenSet, name: &longshore_sharding::ShardName) -> Result<&'a Shard, Error> {
    set.shards.get(name).ok_or_else(|| Error::UnknownShard { shard: name.to_string() })
}

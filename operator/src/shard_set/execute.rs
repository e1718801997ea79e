//! I/O: carries out one action. Decides nothing but how long to wait for it.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use longshore_sharding::{
    BucketId, ShardName,
    operation::{Action, Cost, Pace, PauseBudget, Plan, StrayKind, Stream},
};

use super::{Error, open::OpenSet, refused};
use crate::shard::{Arrival, Shard, StoreError};

/// How long a batch is watched to learn its pause; it arrives without us as well.
const ARRIVAL_WATCH: Duration = Duration::from_secs(1);
const ARRIVAL_POLL: Duration = Duration::from_millis(3);
/// For how long batches follow each other before the world is looked at again: half as long as a probe counts.
const RUN: Duration = Duration::from_millis(500);

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
    if let Action::Probe { streams } = action {
        return probe(work, streams).await;
    }
    let (Some(name), deed) = described(action) else { return Ok(String::new()) };
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
    let Work { plan, generation, set, .. } = work;
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
        Action::Analyze { .. } => shard.analyze().await,
        Action::Clear { ranges, .. } => shard.clear(ranges).await,
        // Not on one shard alone: they are carried out elsewhere.
        Action::HandOver { .. } | Action::Probe { .. } => Ok(()),
    }
}

/// A mark through each stream, at the same time.
async fn probe(work: &Work<'_>, streams: &[Stream]) -> Result<String, Error> {
    try_join_all(streams.iter().map(async |stream| {
        let source = find(work.set, &stream.source)?;
        let sent = source.probe(work.plan.id, &stream.destination).await;
        sent.map_err(|error| refused(source.name.to_string(), error))
    }))
    .await?;
    let streams: Vec<_> = streams.iter().map(ToString::to_string).collect();
    Ok(format!("{}: sending probes", streams.join(", ")))
}

/// Batch after batch, each when the one before it has arrived, for as long as what was observed may count as new. Whether more
/// follow is decided after the next look.
async fn hand_over(
    work: &Work<'_>,
    stream: &Stream,
    buckets: &[BucketId],
    pace: &mut Pace,
) -> Result<String, Error> {
    let (source, destination) = (find(work.set, &stream.source)?, find(work.set, &stream.destination)?);
    let (started, mut left) = (Instant::now(), buckets);
    while !left.is_empty() && started.elapsed() < RUN {
        let (batch, rest) = left.split_at(pace.batch().min(left.len()));
        match hand_over_batch(work, source, destination, batch, pace).await {
            Ok(Arrival::Owned) => left = rest,
            Ok(Arrival::Pending | Arrival::Refused) => break,
            // Writers were faster, or the two waited for each other: not yet, and with fewer buckets.
            Err(error)
                if matches!(error.sqlstate().as_deref(), Some("57014" | "55P03" | "40P01" | "40001")) =>
            {
                *pace = pace.after_giving_up(batch.len());
                tracing::info!(operation.id = %work.plan.id, "writers did not let a batch of {} buckets through yet", batch.len());
                return Ok(format!("{stream}: waiting for writers"));
            }
            Err(error) => return Err(refused(source.name.to_string(), error)),
        }
    }
    Ok(format!("{stream}: handing buckets over"))
}

/// One batch; and how long its writers paused, for the size of the next.
async fn hand_over_batch(
    work: &Work<'_>,
    source: &Shard,
    destination: &Shard,
    batch: &[BucketId],
    pace: &mut Pace,
) -> Result<Arrival, StoreError> {
    let Work { plan, pause, .. } = work;
    let started = Instant::now();
    source.hand_over(plan.id, &destination.name, batch, pause.give_up_ms()).await?;
    let mut arrival = Arrival::Pending;
    while arrival == Arrival::Pending && started.elapsed() < ARRIVAL_WATCH {
        arrival = match destination.arrival(batch).await {
            Ok(Arrival::Pending) => {
                tokio::time::sleep(ARRIVAL_POLL).await;
                Arrival::Pending
            }
            Ok(arrived) => arrived,
            Err(_) => break,
        };
    }
    let paused = started.elapsed();
    metrics::counter!("longshore_buckets_handed_over_total").increment(batch.len() as u64);
    metrics::histogram!("longshore_write_pause_seconds").record(paused);
    let pause_ms = u64::try_from(paused.as_millis()).unwrap_or(u64::MAX);
    *pace = pace.after(batch.len(), pause_ms, *pause);
    tracing::debug!(operation.id = %plan.id, buckets = batch.len(), pause_ms, next = pace.batch(), "batch handed over");
    Ok(arrival)
}

/// The one shard that an action happens on, if it is one, and what it is in words.
fn described(action: &Action) -> (Option<&ShardName>, String) {
    let (shard, deed) = match action {
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
        Action::HandOver { .. } | Action::Probe { .. } => return (None, String::new()),
        Action::Analyze { shard } => (shard, format!("{shard}: analyzing the tables")),
        Action::Clear { shard, ranges } => {
            (shard, format!("{shard}: clearing rows of {} buckets", ranges.size()))
        }
    };
    (Some(shard), deed)
}

fn find<'a>(set: &'a OpenSet, name: &ShardName) -> Result<&'a Shard, Error> {
    set.shards.get(name).ok_or_else(|| Error::UnknownShard { shard: name.to_string() })
}

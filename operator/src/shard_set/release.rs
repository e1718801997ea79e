//! A set that is deleted: its streams go, ownership and data stay, and services go on.

use std::time::Duration;

use kube::runtime::events::{Event, EventType};
use longshore_crds::OrderShardSet;
use longshore_sharding::{
    MapError,
    operation::{Kind, OperationId, Plan},
};

use super::{Context, Error, Fault, Wanted, ensure_open, events, fault::OpenError, observe};
use crate::shard::StoreError;

/// How long a set that cannot be let go properly holds its finalizer.
const PATIENCE: Duration = Duration::from_mins(5);

/// One step of letting go: when to come back, or `None` when nothing of ours is left and the finalizer may go.
///
/// # Errors
/// When a shard fails; the next try looks again.
pub async fn release(set: &OrderShardSet, ctx: &Context) -> Result<Option<Duration>, Error> {
    let wanted = Wanted::of(set)?;
    let state = ctx.state(&wanted.uid).await;
    let mut state = state.lock().await;
    match ensure_open(&wanted, ctx, &mut state).await {
        Ok(()) => {}
        Err(OpenError::Faults(faults)) => return Ok(without_shards(set, ctx, &faults).await),
        Err(OpenError::Store { shard, source }) => return Err(super::refused(shard, source)),
    }
    let Some((open, ..)) = &state.open else { return Ok(Some(Duration::from_secs(1))) };
    let world = observe::look(open, None).await;
    if let Some(stale) = world.stale_term() {
        return Err(stale);
    }
    if let Err(MapError::Unowned { bucket }) = world.map(&wanted)
        && world.newest().is_some()
    {
        tracing::info!(bucket.id = %bucket, "waiting for buckets on their way before the set is let go");
        return Ok(Some(Duration::from_millis(200)));
    }
    // No operation has this number: every object of the set is a stray.
    let nobody = Plan { id: OperationId(0), kind: Kind::Rebalance { moves: Vec::new() } };
    let observed = observe::observed(&nobody, &world, &open.names, false, 1);
    let strays = observed
        .shards
        .into_iter()
        .flat_map(|(name, shard)| shard.strays.into_iter().map(move |s| (name.clone(), s)));
    if let Some((name, stray)) = strays.min_by_key(|(_, stray)| stray.kind)
        && let Some(shard) = open.shards.get(&name)
    {
        let dropped = shard.drop_stream_object(stray.kind, &stray.name).await;
        dropped.map_err(|source: StoreError| super::refused(name.to_string(), source))?;
        return Ok(Some(Duration::ZERO));
    }
    open.close().await;
    drop(state);
    ctx.forget(&wanted.uid).await;
    Ok(None)
}

/// A set whose shards cannot be asked: at once if nothing of it can be on them, else after some patience, saying what
/// may be left.
async fn without_shards(set: &OrderShardSet, ctx: &Context, faults: &[Fault]) -> Option<Duration> {
    let has_streams = set.status.as_ref().is_some_and(|status| status.operation.is_some());
    let deleted_at = set.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    let waited = deleted_at.map(|at| k8s_openapi::jiff::Timestamp::now().duration_since(at));
    let patient = waited.is_some_and(|waited| waited.unsigned_abs() < PATIENCE);
    if has_streams && patient {
        return Some(Duration::from_secs(3));
    }
    if has_streams {
        let left = faults.iter().map(|fault| fault.message.as_str()).collect::<Vec<_>>().join("; ");
        let note = format!(
            "let go with replication slots, publications or subscriptions named ls_* left on shards: {left}"
        );
        let event = Event {
            type_: EventType::Warning,
            reason: "StreamsLeft".into(),
            note: Some(note.chars().take(1_000).collect()),
            action: "Release".into(),
            secondary: None,
        };
        events::record(ctx, set, &event).await;
    }
    None
}

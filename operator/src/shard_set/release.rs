//! A set that is deleted: its streams go, ownership and data stay, and services go on.

use std::time::Duration;

use kube::runtime::events::{Event, EventType};
use longshore_crds::OrderShardSet;
use longshore_sharding::MapError;

use super::{Context, Error, Wanted, ensure_open, events, fault::OpenError, observe, refused};

/// One step of letting go: when to come back, or `None` when nothing of ours is left and the finalizer may go.
///
/// # Errors
/// When a shard fails; the next try looks again.
pub async fn release(set: &OrderShardSet, ctx: &Context) -> Result<Option<Duration>, Error> {
    let wanted = Wanted::of(set)?;
    let state = ctx.state(&wanted.uid).await;
    let mut state = state.lock().await;
    let patient = is_patient(set, ctx.release_patience);
    match ensure_open(&wanted, ctx, &mut state).await {
        Ok(()) => {}
        Err(OpenError::Faults(_)) if patient && had_streams(set) => return Ok(Some(Duration::from_secs(3))),
        Err(OpenError::Faults(faults)) => {
            let left = faults.iter().map(ToString::to_string).collect();
            return Ok(let_go(set, ctx, left).await);
        }
        Err(OpenError::Store { shard, source }) => return Err(refused(shard, source)),
        Err(OpenError::Superseded { shard }) => return Err(Error::StaleTerm { shard, source: None }),
    }
    let Some((open, ..)) = &state.open else { return Ok(Some(Duration::from_secs(1))) };
    let world = observe::look(open, None).await;
    if let Some(stale) = world.stale_term() {
        return Err(stale);
    }
    if patient && !world.unreachable.is_empty() {
        return Ok(Some(Duration::from_secs(3)));
    }
    if patient
        && world.newest().is_some()
        && let Err(MapError::Unowned { bucket }) = world.map(&wanted)
    {
        tracing::info!(bucket.id = %bucket, "waiting for buckets on their way before the set is let go");
        return Ok(Some(Duration::from_millis(200)));
    }
    if open.drop_stray(&world).await.map_err(|(shard, source)| refused(shard, source))?.is_some() {
        return Ok(Some(Duration::ZERO));
    }
    for shard in open.shards.values() {
        // Where it fails the shard only asks to be adopted by name.
        if let Err(error) = shard.release().await {
            tracing::warn!(shard.id = %shard.name, error = error.chain(), "shard was not released");
        }
    }
    open.close().await;
    let left = world.unreachable.iter().map(|(shard, why)| format!("shard {shard}: {why}"));
    let left = left.collect();
    drop(state);
    ctx.forget(&wanted.uid).await;
    Ok(let_go(set, ctx, left).await)
}

/// Whether it is too early to give up on shards that cannot be reached.
fn is_patient(set: &OrderShardSet, patience: Duration) -> bool {
    let deleted_at = set.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    let waited = deleted_at.map(|at| k8s_openapi::jiff::Timestamp::now().duration_since(at));
    waited.is_some_and(|waited| waited.unsigned_abs() < patience)
}

/// Only an operation makes objects on shards: a set that never had one leaves nothing.
fn had_streams(set: &OrderShardSet) -> bool {
    set.status.as_ref().is_some_and(|status| status.operation.is_some())
}

/// Lets the finalizer go, saying what may be left on shards that could not be asked.
async fn let_go(set: &OrderShardSet, ctx: &Context, left: Vec<String>) -> Option<Duration> {
    if had_streams(set) && !left.is_empty() {
        let note = format!(
            "let go; replication slots, publications and subscriptions named ls_* may be left there: {}",
            left.join("; ")
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

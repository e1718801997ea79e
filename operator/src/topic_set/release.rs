//! A set that is deleted: its topics stay, or go by the rules that hold for single ones. Nobody is held up for long by a cluster
//! that cannot be reached.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt as _, runtime::events::EventType};
use longshore_crds::KafkaTopicSet;

use super::{Context, Error, Outcome, SetState, claims::Claims, events, status, wanted::Wanted};
use crate::status::chain;

const RETRY: Duration = Duration::from_secs(3);

/// One step of letting go: when to come back, or `None` when the finalizer may go.
///
/// # Errors
/// When the API server fails; the next try looks again.
pub(crate) async fn release(set: &KafkaTopicSet, ctx: &Context) -> Result<Option<Duration>, Error> {
    // The object as it is by now: a consent may have come since it was deleted.
    let set = &*ctx.current(set);
    let state = ctx.state(&set.uid().unwrap_or_default()).await;
    let mut state = state.lock().await;
    let mut wanted = super::wanted(set, &state)?;
    wanted.topics.clear();
    // Whoever said that nothing shall change meant deletions above all.
    wanted.deletes &= !wanted.plans && !wanted.paused;
    (wanted.plans, wanted.paused) = (false, false);
    let left = if wanted.owned.is_empty() {
        None
    } else if wanted.deletes {
        delete(set, &wanted, ctx, &mut state).await?
    } else {
        retain(&wanted, ctx, &mut state).await
    };
    if let Some(why) = &left {
        if wanted.deletes && is_patient(set, ctx.release_patience) {
            return Ok(Some(RETRY));
        }
        events::record(ctx, set, EventType::Warning, "TopicsLeft", &format!("let go: {why}")).await;
    }
    drop(state);
    ctx.forget(&wanted.uid).await;
    Ok(None)
}

/// I/O: deletes what may be deleted; says what is left, if anything is.
async fn delete(
    set: &KafkaTopicSet,
    wanted: &Wanted,
    ctx: &Context,
    state: &mut SetState,
) -> Result<Option<String>, Error> {
    let outcome = super::step(set, wanted, ctx, state).await?;
    let left = match &outcome {
        Outcome::Unreachable { message, .. } => {
            let topics: Vec<_> = wanted.owned.iter().map(String::as_str).collect();
            Some(format!("topics may be left: {}: {message}", topics.join(", ")))
        }
        Outcome::Looked(look) if look.decision.owned.is_empty() => None,
        Outcome::Looked(look) => {
            let objections = look.decision.problems.iter();
            let objections: Vec<_> =
                objections.map(|(topic, it)| format!("{topic}: {}", it.message)).collect();
            let topics: Vec<_> = look.decision.owned.iter().map(String::as_str).collect();
            Some(format!("topics are left: {}; {}", topics.join(", "), objections.join("; ")))
        }
    };
    if left.is_some() {
        let status = status::compute(set, wanted, &outcome);
        state.write(ctx, set, &status).await?;
    }
    Ok(left)
}

/// I/O: topics stay as they are; only throttles do not. Tried once: nobody waits for it.
async fn retain(wanted: &Wanted, ctx: &Context, state: &mut SetState) -> Option<String> {
    let ended = async {
        let admin = ctx.admin(wanted, state).await.map_err(|error| error.message)?;
        let mut admin = admin.lock().await;
        let mut world = admin.look(&wanted.owned).await.map_err(|error| chain(&error))?;
        // As if no replica of these topics moved: those that do go on without a throttle.
        world.moves.retain(|topic, _| !wanted.owned.contains(topic));
        let changes = super::decide::decide(wanted, &world, &Claims::default()).changes;
        let throttled = admin.configure(&changes.throttles, changes.rate).await;
        throttled.map(drop).map_err(|error| chain(&error))
    };
    let why = ended.await.err()?;
    let moved = state.written.last().is_some_and(|status| status.counts.reassigning > 0);
    moved.then(|| format!("throttles of replicas may be left: {why}"))
}

/// Whether it is too early to give up.
fn is_patient(set: &KafkaTopicSet, patience: Duration) -> bool {
    let deleted_at = set.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    deleted_at.is_some_and(|at| Timestamp::now().duration_since(at).unsigned_abs() < patience)
}

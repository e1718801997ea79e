//! Events: one for each change of what people should know.

use kube::{
    Resource,
    runtime::events::{Event, EventType},
};
use longshore_crds::{OrderShardSet, order_shard_set::OrderShardSetStatus};

use super::Context;

/// I/O: tells what changed between the set's last status and this one. Losing an event loses nothing: the status has it.
pub(super) async fn publish(ctx: &Context, set: &OrderShardSet, status: &OrderShardSetStatus) {
    for event in changes(set.status.as_ref(), status) {
        record(ctx, set, &event).await;
    }
}

/// I/O: records one event.
pub(super) async fn record(ctx: &Context, set: &OrderShardSet, event: &Event) {
    if let Err(error) = ctx.recorder.publish(event, &set.object_ref(&())).await {
        tracing::warn!(%error, reason = event.reason, "event was not recorded");
    }
}

fn changes(previous: Option<&OrderShardSetStatus>, status: &OrderShardSetStatus) -> Vec<Event> {
    let reason_of = |status: &OrderShardSetStatus, type_: &str| {
        let found = status.conditions.iter().find(|condition| condition.type_ == type_)?;
        Some((found.status.clone(), found.reason.clone(), found.message.clone()))
    };
    let changed = |type_: &str| {
        let now = reason_of(status, type_)?;
        let before = previous.and_then(|previous| reason_of(previous, type_));
        let same = before.is_some_and(|(before, reason, _)| (&before, &reason) == (&now.0, &now.1));
        (!same).then_some(now)
    };
    let mut events = Vec::new();
    if let Some((state, reason, message)) = changed("Degraded")
        && state == "True"
    {
        events.push(event(EventType::Warning, &reason, &message, "Reconcile"));
    }
    if let Some((state, reason, message)) = changed("Rebalancing")
        && state == "True"
    {
        events.push(event(EventType::Normal, &reason, &message, "Rebalance"));
    }
    if let Some((state, reason, message)) = changed("Ready")
        && state == "True"
    {
        events.push(event(EventType::Normal, &reason, &message, "Reconcile"));
    }
    events
}

fn event(type_: EventType, reason: &str, message: &str, action: &str) -> Event {
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(message.chars().take(1_000).collect()),
        action: action.to_owned(),
        secondary: None,
    }
}

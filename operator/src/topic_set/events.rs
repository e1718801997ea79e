//! Events: one for each change of what people should know.

use kube::{
    Resource as _,
    runtime::events::{Event, EventType},
};
use longshore_crds::{KafkaTopicSet, kafka_topic_set::KafkaTopicSetStatus};

use super::Context;

/// I/O: tells what changed between the last status and this one. Losing an event loses nothing: the status has it.
pub(super) async fn publish(
    ctx: &Context,
    set: &KafkaTopicSet,
    previous: Option<&KafkaTopicSetStatus>,
    status: &KafkaTopicSetStatus,
) {
    for condition in &status.conditions {
        let of_before = previous.and_then(|it| it.conditions.iter().find(|it| it.type_ == condition.type_));
        let is_news = of_before
            .is_none_or(|before| (&before.status, &before.reason) != (&condition.status, &condition.reason));
        let is_progress =
            ["Applying", "Reassigning", "Planned", "Paused"].contains(&condition.reason.as_str());
        let type_ = match (condition.type_.as_str(), condition.status.as_str()) {
            ("Ready", "True") => EventType::Normal,
            ("Ready", "False") if !is_progress => EventType::Warning,
            _ => continue,
        };
        if is_news {
            record(ctx, set, type_, &condition.reason, &condition.message).await;
        }
    }
}

/// I/O: records one event.
pub(super) async fn record(ctx: &Context, set: &KafkaTopicSet, type_: EventType, reason: &str, note: &str) {
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note.chars().take(1_000).collect()),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    if let Err(error) = ctx.recorder.publish(&event, &set.object_ref(&())).await {
        tracing::warn!(%error, reason, "event was not recorded");
    }
}

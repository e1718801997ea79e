//! Events: one for each change of what people should know.

use kube::{
    Resource as _,
    runtime::events::{Event, EventType},
};
use longshore_crds::{ServiceFleet, service_fleet::ServiceFleetStatus};

use super::Context;

/// I/O: tells what changed between two statuses. Losing an event loses nothing: the status has it.
pub(super) async fn publish(
    ctx: &Context,
    fleet: &ServiceFleet,
    previous: Option<&ServiceFleetStatus>,
    status: &ServiceFleetStatus,
) {
    for event in changes(previous, status) {
        if let Err(error) = ctx.recorder.publish(&event, &fleet.object_ref(&())).await {
            tracing::warn!(%error, reason = event.reason, "event was not recorded");
        }
    }
}

/// Troubles that came, and that all is well again.
fn changes(previous: Option<&ServiceFleetStatus>, status: &ServiceFleetStatus) -> Vec<Event> {
    let now = |status: &ServiceFleetStatus, kind: &str| {
        let condition = status.conditions.iter().find(|condition| condition.type_ == kind)?;
        let holds = condition.status == "True";
        holds.then(|| (condition.reason.clone(), condition.message.clone()))
    };
    let begun = |kind: &str| {
        let (reason, message) = now(status, kind)?;
        let before = previous.and_then(|previous| now(previous, kind)).map(|(reason, _)| reason);
        (before.as_ref() != Some(&reason)).then_some((reason, message))
    };
    let event = |type_, (reason, message): (String, String)| Event {
        type_,
        reason,
        note: Some(message.chars().take(1_000).collect()),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    let warning = begun("Degraded").map(|told| event(EventType::Warning, told));
    let normal = begun("Ready").map(|told| event(EventType::Normal, told));
    warning.into_iter().chain(normal).collect()
}

//! What is wrong with a pod, in plain words. Pure.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus};

use super::partial::Pod;

/// Why a service's pods do not come up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// In one word, the same for the same cause.
    pub reason: &'static str,
    /// For a person.
    pub message: String,
}

const IMAGE_REASONS: [&str; 6] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
];
const START_REASONS: [&str; 4] =
    ["CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreStartHookError"];
/// What is said of a cause, at most.
const CAUSE_CHARS_MAX: usize = 300;

/// Whether it only waits to be collected, as one that was evicted.
pub(super) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// What keeps a pod from being ready, if that will not pass by itself.
pub(super) fn problem(pod: &Pod) -> Option<Problem> {
    if pod.metadata.deletion_timestamp.is_some() || has_ended(pod) {
        return None;
    }
    let status = pod.status.as_ref()?;
    let unschedulable = || {
        let conditions = status.conditions.iter().flatten();
        let condition = conditions
            .filter(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
            .find(|condition| condition.reason.as_deref() == Some("Unschedulable"))?;
        let message = format!("no node takes the pod: {}", cause(condition.message.as_deref()));
        Some(Problem { reason: "Unschedulable", message })
    };
    status.container_statuses.iter().flatten().find_map(of_container).or_else(unschedulable)
}

fn of_container(container: &ContainerStatus) -> Option<Problem> {
    if container.ready {
        return None;
    }
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
    let message = cause(waiting.and_then(|waiting| waiting.message.as_deref()));
    if IMAGE_REASONS.contains(&reason) {
        let message = format!("image {} cannot be pulled: {message}", container.image);
        return Some(Problem { reason: "ImagePullFailed", message });
    }
    if START_REASONS.contains(&reason) {
        return Some(Problem { reason: "StartFailed", message: format!("cannot be started: {message}") });
    }
    let failed = |state: &Option<ContainerState>| {
        let terminated = state.as_ref()?.terminated.clone()?;
        (terminated.exit_code != 0 || reason == "CrashLoopBackOff").then_some(terminated)
    };
    let end = failed(&container.state).or_else(|| failed(&container.last_state))?;
    // How often stands in the pod: a status that counts along would be written each time.
    Some(Problem { reason: "CrashLoop", message: format!("ends again and again: {}", how_it_ended(&end)) })
}

fn how_it_ended(end: &ContainerStateTerminated) -> String {
    match (end.reason.as_deref(), end.exit_code) {
        (Some("OOMKilled"), _) => "it took more memory than limits.memory".to_owned(),
        (_, 137) => "it was killed (exit code 137): see its liveness probe and its memory".to_owned(),
        (_, code) => match cause(end.message.as_deref()) {
            said if said.is_empty() => format!("exit code {code}"),
            said => format!("exit code {code}: {said}"),
        },
    }
}

fn cause(text: Option<&str>) -> String {
    text.unwrap_or_default().trim().chars().take(CAUSE_CHARS_MAX).collect()
}

/// Whether it serves.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(status: &Value, expected: Option<(&str, &str)>) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a"}, "status": status})).unwrap();
        let found = problem(&pod).map(|problem| (problem.reason, problem.message));
        assert_eq!(found, expected.map(|(reason, message)| (reason, message.to_owned())), "{status}");
    }

    fn container(ready: bool, state: &Value, last: &Value) -> Value {
        json!({"containerStatuses": [{
            "name": "a", "image": "a:1", "imageID": "", "ready": ready, "restartCount": 1,
            "state": state, "lastState": last,
        }]})
    }

    #[test]
    fn what_does_not_pass_by_itself_is_named() {
        let none = || json!({});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason, "message": "why"}});
        let ended = |code: i32, reason: &str| json!({"terminated": {"exitCode": code, "reason": reason}});
        check(
            &container(false, &waiting("ImagePullBackOff"), &none()),
            Some(("ImagePullFailed", "image a:1 cannot be pulled: why")),
        );
        check(
            &container(false, &waiting("CreateContainerError"), &none()),
            Some(("StartFailed", "cannot be started: why")),
        );
        let crash = |message: &'static str| Some(("CrashLoop", message));
        check(&container(false, &ended(3, "Error"), &none()), crash("ends again and again: exit code 3"));
        check(
            &container(false, &waiting("CrashLoopBackOff"), &ended(0, "Completed")),
            crash("ends again and again: exit code 0"),
        );
        check(
            &container(false, &json!({"running": {}}), &ended(137, "OOMKilled")),
            crash("ends again and again: it took more memory than limits.memory"),
        );
        check(&container(false, &waiting("ContainerCreating"), &none()), None);
        check(&container(false, &json!({"running": {}}), &none()), None);
        check(&container(true, &json!({"running": {}}), &ended(3, "Error")), None);
        let unschedulable = json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"},
        ]});
        check(&unschedulable, Some(("Unschedulable", "no node takes the pod: 0/1 nodes")));
        let mut evicted = container(false, &ended(137, "Error"), &none());
        evicted["phase"] = "Failed".into();
        check(&evicted, None);
    }
}

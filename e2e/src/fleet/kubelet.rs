//! A kubelet's part where there is no node: says of each pod what one would say, by its image.

use anyhow::Result;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Says what pods of a namespace are like until it is dropped. By their images: `…:missing` cannot be pulled, `…:crash` ends at
/// once, `…:huge` fits on no node, `…:slow` never becomes ready; all others are ready.
#[derive(Debug)]
pub struct Kubelet(#[expect(dead_code, reason = "it ends when dropped")] JoinSet<()>);

impl Kubelet {
    /// Starts.
    pub fn start(client: Client, namespace: &str) -> Self {
        let pods: Api<Pod> = Api::namespaced(client, namespace);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let events = watcher::watcher(pods.clone(), watcher::Config::default());
            let mut touched = events.default_backoff().applied_objects().boxed();
            while let Some(event) = touched.next().await {
                let Ok(pod) = event else { continue };
                if is_new(&pod) {
                    // It may be gone already.
                    drop(say(&pods, &pod).await);
                }
            }
        });
        Self(tasks)
    }
}

fn is_new(pod: &Pod) -> bool {
    let said = pod.status.as_ref().and_then(|status| status.conditions.as_ref()).map_or(0, Vec::len);
    said == 0 && pod.metadata.deletion_timestamp.is_none()
}

async fn say(pods: &Api<Pod>, pod: &Pod) -> Result<()> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let image = containers.into_iter().find_map(|container| container.image.clone()).unwrap_or_default();
    set_status(pods, &pod.name_any(), &status_of(&image)).await
}

/// Writes a pod's status, as a kubelet does.
pub(super) async fn set_status(pods: &Api<Pod>, name: &str, status: &Value) -> Result<()> {
    let patch = json!({"status": status});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

fn status_of(image: &str) -> Value {
    let scheduled = json!({"type": "PodScheduled", "status": "True"});
    let not_ready = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady"});
    let container = |ready: bool, state: Value, last: Value| {
        json!([{
            "name": "any", "image": image, "imageID": "", "ready": ready, "restartCount": 0,
            "state": state, "lastState": last,
        }])
    };
    match image.rsplit(':').next().unwrap_or_default() {
        "missing" => json!({
            "phase": "Pending", "conditions": [scheduled, not_ready],
            "containerStatuses": container(
                false,
                json!({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}),
                json!({}),
            ),
        }),
        "crash" => json!({
            "phase": "Running", "conditions": [scheduled, not_ready],
            "containerStatuses": container(
                false,
                json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}),
                json!({"terminated": {"exitCode": 3, "reason": "Error"}}),
            ),
        }),
        "huge" => json!({
            "phase": "Pending",
            "conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/1 nodes are available: 1 Insufficient cpu.",
            }],
        }),
        "slow" => json!({
            "phase": "Running", "conditions": [scheduled, not_ready],
            "containerStatuses": container(false, json!({"running": {}}), json!({})),
        }),
        _ => json!({
            "phase": "Running", "conditions": [scheduled, {"type": "Ready", "status": "True"}],
            "containerStatuses": container(true, json!({"running": {}}), json!({})),
        }),
    }
}

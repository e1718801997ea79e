//! What the status of every kind has in common: conditions, how errors stand in it, and when it is written.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

use k8s_openapi::{
    NamespaceResourceScope,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
    core::object::HasStatus,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

/// Of all fields that the operator applies, in every version and in every process.
pub(crate) const FIELD_MANAGER: &str = "longshore-operator";
/// For so long, what was written is believed to be there although the watch has not brought it.
pub(crate) const WATCH_PATIENCE: Duration = Duration::from_secs(10);
/// Progress alone is written no more often than this.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
const MESSAGE_CHARS_MAX: usize = 2_048;

/// A condition's type, whether it holds, reason and message.
pub(crate) type Said<'a> = (&'a str, bool, &'a str, &'a str);

/// A condition of an object of this generation, whose transition time moves only when its status does.
pub(crate) fn condition(
    previous: &[Condition],
    generation: Option<i64>,
    (type_, holds, reason, message): Said<'_>,
) -> Condition {
    let status = if holds { "True" } else { "False" };
    let before = previous.iter().find(|before| before.type_ == type_ && before.status == status);
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.chars().take(MESSAGE_CHARS_MAX).collect(),
        observed_generation: generation,
        last_transition_time: before.map_or_else(this_second, |before| before.last_transition_time.clone()),
    }
}

/// The API server keeps whole seconds: what was written must equal what is read back, or it is written again.
fn this_second() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default())
}

/// Of each condition all but its words and times.
pub(crate) fn outline(conditions: &[Condition]) -> Vec<(String, String, String)> {
    let one = |it: &Condition| (it.type_.clone(), it.status.clone(), it.reason.clone());
    conditions.iter().map(one).collect()
}

/// The status that was written last, and when: the watch may bring it later.
pub(crate) struct Written<S>(Option<(S, Instant)>);

impl<S> Default for Written<S> {
    fn default() -> Self {
        Self(None)
    }
}

impl<S: Clone + PartialEq + Serialize> Written<S> {
    pub(crate) fn last(&self) -> Option<&S> {
        self.0.as_ref().map(|(status, _)| status)
    }

    /// I/O: the one place that writes status. Nothing is written when nothing changed, and what leaves the outline as it was
    /// only once a second. Returns when to come back, for what was held back or is not seen yet.
    pub(crate) async fn write<K, O>(
        &mut self,
        client: &Client,
        object: &K,
        status: &S,
        outline: impl Fn(&S) -> O,
    ) -> Result<Option<Duration>, kube::Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + HasStatus<Status = S>
            + Clone
            + Debug
            + DeserializeOwned,
        O: PartialEq,
    {
        let age = self.0.as_ref().map(|(_, at)| at.elapsed());
        let current = self.last().or(object.status());
        if current == Some(status) {
            let is_there = object.status() == Some(status);
            let left = age.map_or(WATCH_PATIENCE, |age| WATCH_PATIENCE.saturating_sub(age));
            if is_there || !left.is_zero() {
                return Ok((!is_there).then_some(left));
            }
            // Somebody, a former leader for one, has written another one over it.
        } else if current.is_some_and(|current| outline(current) == outline(status))
            && let Some(left) = age.and_then(|age| PROGRESS_INTERVAL.checked_sub(age))
        {
            return Ok(Some(left));
        }
        let api: Api<K> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
        let patch = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "status": status});
        let params = PatchParams::apply(FIELD_MANAGER).force();
        api.patch_status(&object.name_any(), &params, &Patch::Apply(&patch)).await?;
        self.0 = Some((status.clone(), Instant::now()));
        Ok(None)
    }
}

/// An error and all its causes in one line; what one of them has said already is not repeated.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    text
}

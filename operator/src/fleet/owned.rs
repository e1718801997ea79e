//! Whether an object still is as it was applied, by what the API server keeps of who wrote which field. Pure.
//!
//! A field that anybody else gives another value is not ours any more: so an object whose hash is the wanted one, and of which
//! every field that we applied still is ours, holds the wanted values. Its own values need not be compared, and need not even be
//! known.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Map, Value};

/// Of the metadata that is applied, what has owners.
const METADATA: [&str; 3] = ["labels", "annotations", "ownerReferences"];

/// What `manager` has applied, and has still: as text, which takes a tenth of the memory.
pub(super) fn fields(entries: &[ManagedFieldsEntry], manager: &str) -> Option<Box<str>> {
    let ours = |entry: &&ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(manager)
            && entry.operation.as_deref() == Some("Apply")
            && entry.subresource.as_deref().unwrap_or_default().is_empty()
    };
    Some(entries.iter().find(ours)?.fields_v1.as_ref()?.0.to_string().into())
}

/// Whether every field of `body` is among them.
pub(super) fn is_whole(fields: &str, body: &Value) -> bool {
    let (Ok(fields), Value::Object(body)) = (serde_json::from_str::<Value>(fields), body) else {
        return false;
    };
    let of_metadata = |metadata: &Value| {
        METADATA.iter().all(|name| match metadata.get(name) {
            Some(wanted) => below(&fields, "f:metadata")
                .and_then(|fields| below(fields, &format!("f:{name}")))
                .is_some_and(|fields| covers(fields, wanted)),
            None => true,
        })
    };
    body.iter().all(|(name, wanted)| match name.as_str() {
        "apiVersion" | "kind" => true,
        "metadata" => of_metadata(wanted),
        _ => below(&fields, &format!("f:{name}")).is_some_and(|fields| covers(fields, wanted)),
    })
}

/// Whether anybody but `manager` has set `spec.replicas`.
pub(super) fn are_replicas_of_others(entries: &[ManagedFieldsEntry], manager: &str) -> bool {
    entries.iter().filter(|entry| entry.manager.as_deref() != Some(manager)).any(|entry| {
        let fields = entry.fields_v1.as_ref();
        fields.and_then(|fields| fields.0.pointer("/f:spec/f:replicas")).is_some()
    })
}

fn below<'a>(fields: &'a Value, key: &str) -> Option<&'a Value> {
    fields.as_object()?.get(key)
}

/// Whether a field with all that is below it is among `fields`, which are as `FieldsV1` has them.
fn covers(fields: &Value, wanted: &Value) -> bool {
    let Value::Object(fields) = fields else { return false };
    if fields.is_empty() {
        return true; // a leaf, or what is only owned as a whole
    }
    match wanted {
        Value::Object(wanted) => wanted.iter().all(|(name, wanted)| {
            fields.get(&format!("f:{name}")).is_some_and(|fields| covers(fields, wanted))
        }),
        Value::Array(items) => items.iter().all(|item| has_item(fields, item)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Items of a list are found by the fields that are their key, or by their value.
fn has_item(fields: &Map<String, Value>, item: &Value) -> bool {
    fields.iter().any(|(key, fields)| {
        if let Some(value) = key.strip_prefix("v:") {
            return serde_json::from_str::<Value>(value).is_ok_and(|value| value == *item);
        }
        let Some(Ok(Value::Object(key))) = key.strip_prefix("k:").map(serde_json::from_str) else {
            return false;
        };
        key.iter().all(|(name, value)| item.get(name) == Some(value)) && covers(fields, item)
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::FieldsV1;
    use serde_json::json;

    use super::*;

    const US: &str = "us";

    fn entry(manager: &str, operation: &str, fields: Value) -> ManagedFieldsEntry {
        ManagedFieldsEntry {
            manager: Some(manager.to_owned()),
            operation: Some(operation.to_owned()),
            fields_v1: Some(FieldsV1(fields)),
            ..ManagedFieldsEntry::default()
        }
    }

    fn body() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Any",
            "metadata": {"name": "any", "labels": {"a": "1"}},
            "spec": {
                "selector": {"a": "1"},
                "ports": [{"port": 80, "protocol": "TCP", "name": "http"}],
                "limits": {"cpu": "1000m"},
                "finalizers": ["x"],
            },
        })
    }

    fn owned() -> Value {
        json!({
            "f:metadata": {"f:labels": {"f:a": {}}},
            "f:spec": {
                "f:selector": {},
                "f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}, "f:protocol": {}, "f:name": {}}},
                "f:limits": {"f:cpu": {}},
                "f:finalizers": {"v:\"x\"": {}},
            },
        })
    }

    #[test]
    fn whatever_is_not_ours_any_more_is_noticed() {
        let whole = |fields: Value| is_whole(&fields.to_string(), &body());
        assert!(whole(owned()));
        let paths = [
            "/f:metadata/f:labels/f:a",
            "/f:spec/f:selector",
            "/f:spec/f:ports/k:{\"port\":80,\"protocol\":\"TCP\"}",
            "/f:spec/f:ports/k:{\"port\":80,\"protocol\":\"TCP\"}/f:name",
            "/f:spec/f:limits/f:cpu",
            "/f:spec/f:finalizers/v:\"x\"",
        ];
        for path in paths {
            let (parent, name) = path.rsplit_once('/').unwrap();
            let mut fields = owned();
            let parent = fields.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            parent.remove(name).unwrap();
            // The API server leaves no parent without children.
            parent.insert("f:other".to_owned(), json!({}));
            assert!(!whole(fields), "{path}");
        }
    }

    #[test]
    fn only_what_this_manager_applied_is_its_own() {
        assert_eq!(fields(&[entry("kubectl", "Apply", owned())], US), None);
        assert_eq!(fields(&[entry(US, "Update", owned())], US), None);
        assert_eq!(fields(&[entry(US, "Apply", owned())], US), Some(owned().to_string().into()));
    }

    #[test]
    fn replicas_are_of_others_when_one_of_them_has_set_them() {
        let replicas = || json!({"f:spec": {"f:replicas": {}}});
        assert!(are_replicas_of_others(&[entry("autoscaler", "Update", replicas())], US));
        assert!(!are_replicas_of_others(&[entry(US, "Apply", replicas())], US));
        assert!(!are_replicas_of_others(&[entry("kubectl", "Update", owned())], US));
    }
}

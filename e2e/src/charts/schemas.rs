//! JSON schemas of kinds, from where they are defined: the Kubernetes API's own description, and custom resource definitions. They
//! allow no field that is not there.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::Kind;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// In definitions of the Kubernetes API and in what refers to them.
const REFERENCE: &str = "#/definitions/";

/// All that is known of kinds.
pub(super) struct Schemas {
    /// By their names.
    definitions: Map<String, Value>,
    custom: Vec<Value>,
}

impl Schemas {
    /// I/O: reads Kubernetes' description of its API, our definitions, and those in the folder `more`.
    pub(super) fn read(kubernetes: &Path, more: Option<&Path>) -> Result<Self> {
        let swagger = kubernetes.join("api/openapi-spec/swagger.json");
        let text =
            fs::read_to_string(&swagger).with_context(|| format!("failed to read {}", swagger.display()))?;
        let mut swagger: Value = serde_json::from_str(&text)?;
        let Value::Object(mut definitions) = swagger["definitions"].take() else {
            anyhow::bail!("Kubernetes describes no API");
        };
        definitions.iter_mut().for_each(|(name, schema)| mend(name, schema));
        let mut custom = Vec::new();
        for (_, yaml) in longshore_crds::definitions() {
            custom.extend(definitions_in(&yaml)?);
        }
        let mut files = more.map(super::entries).transpose()?.unwrap_or_default();
        files.retain(|file| file.extension().is_some_and(|ending| ending == "yaml"));
        for file in files {
            let text = fs::read_to_string(&file)?;
            custom.extend(definitions_in(&text).with_context(|| format!("in {}", file.display()))?);
        }
        Ok(Self { definitions, custom })
    }

    /// Pure: one that stands alone.
    pub(super) fn of(&self, kind: &Kind) -> Option<Value> {
        let own = || self.definitions.iter().find(|(_, schema)| is_of(schema, kind));
        let mut schema = match custom(&self.custom, kind) {
            Some(schema) => schema,
            None => json!({"$ref": format!("{REFERENCE}{}", own()?.0)}),
        };
        let mut needed = Map::new();
        self.collect(&schema, &mut needed);
        schema["definitions"] = Value::Object(needed);
        Some(schema)
    }

    /// What a schema refers to, and what that refers to.
    fn collect(&self, schema: &Value, into: &mut Map<String, Value>) {
        let mut names = BTreeSet::new();
        references(schema, &mut names);
        for name in names {
            if let Some(definition) = self.definitions.get(name)
                && !into.contains_key(name)
            {
                into.insert(name.to_owned(), definition.clone());
                self.collect(definition, into);
            }
        }
    }
}

fn definitions_in(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Option<Value>> = serde_saphyr::from_multiple(yaml)?;
    let is_definition = |document: &Value| document["kind"] == "CustomResourceDefinition";
    Ok(documents.into_iter().flatten().filter(is_definition).collect())
}

fn is_of(schema: &Value, kind: &Kind) -> bool {
    let kinds = schema["x-kubernetes-group-version-kind"].as_array();
    let wanted = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    kinds.is_some_and(|kinds| kinds.as_slice() == [wanted])
}

/// The schema in the definition of this kind.
fn custom(definitions: &[Value], kind: &Kind) -> Option<Value> {
    let named = |definition: &&Value| {
        let spec = &definition["spec"];
        spec["group"] == kind.group.as_str() && spec["names"]["kind"] == kind.kind.as_str()
    };
    let versions = definitions.iter().find(named)?["spec"]["versions"].as_array()?;
    let version = versions.iter().find(|version| version["name"] == kind.version.as_str())?;
    let mut schema = version["schema"]["openAPIV3Schema"].clone();
    close(&mut schema);
    for (name, known) in [
        ("apiVersion", json!({"type": "string"})),
        ("kind", json!({"type": "string"})),
        ("metadata", json!({"$ref": format!("{REFERENCE}{META}")})),
    ] {
        schema["properties"][name] = known;
    }
    Some(schema)
}

/// What the description says of these two is not all that the API takes.
fn mend(name: &str, schema: &mut Value) {
    match name {
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => *schema = json!({"type": ["integer", "string"]}),
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => *schema = json!({"type": ["number", "string"]}),
        _ => close(schema),
    }
}

/// Allows no other fields than those that a schema names, wherever it names any.
fn close(schema: &mut Value) {
    let Value::Object(schema) = schema else { return };
    schema.remove("description");
    let open = schema.contains_key("additionalProperties")
        || schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if schema.contains_key("properties") && !open {
        schema.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(close);
    }
    for part in ["items", "additionalProperties"] {
        if let Some(part) = schema.get_mut(part) {
            close(part);
        }
    }
}

fn references<'a>(schema: &'a Value, names: &mut BTreeSet<&'a str>) {
    match schema {
        Value::Object(parts) => {
            let name = parts.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix(REFERENCE));
            names.extend(name);
            parts.values().for_each(|part| references(part, names));
        }
        Value::Array(parts) => parts.iter().for_each(|part| references(part, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_nowhere_is_not_allowed() {
        let mut schema = json!({"type": "object", "properties": {
            "properties": {"type": "object", "properties": {"description": {"type": "string"}}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "any": {"type": "object", "properties": {"known": {}}, "x-kubernetes-preserve-unknown-fields": true},
            "list": {"type": "array", "items": {"type": "object", "properties": {}}},
        }});
        close(&mut schema);
        assert_eq!(schema["additionalProperties"], false);
        let properties = &schema["properties"];
        assert_eq!(properties["properties"]["additionalProperties"], false);
        assert_eq!(properties["properties"]["properties"]["description"], json!({"type": "string"}));
        assert_eq!(properties["labels"]["additionalProperties"], json!({"type": "string"}));
        assert_eq!(properties["any"].get("additionalProperties"), None);
        assert_eq!(properties["list"]["items"]["additionalProperties"], false);
    }

    #[test]
    fn a_schema_has_all_that_it_refers_to() {
        let definitions = json!({
            "Pod": {"properties": {"spec": {"$ref": "#/definitions/PodSpec"}},
                    "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "Pod"}]},
            "PodSpec": {"properties": {"next": {"items": {"$ref": "#/definitions/PodSpec"}}}},
            "Other": {},
        });
        let Value::Object(definitions) = definitions else { unreachable!("it was written as one") };
        let schemas = Schemas { definitions, custom: Vec::new() };
        let pod = Kind { group: String::new(), version: "v1".into(), kind: "Pod".into() };
        let schema = schemas.of(&pod).unwrap();
        assert_eq!(schema["$ref"], "#/definitions/Pod");
        let names: Vec<_> = schema["definitions"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["Pod", "PodSpec"]);
        assert!(schemas.of(&Kind { kind: "Pot".into(), ..pod }).is_none());
    }
}

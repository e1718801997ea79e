//! The OrderShardSet of a shop, as a user sees it: JSON in, JSON out, by the API server alone.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

use super::shard::secret_name;

const TABLES: [&str; 4] = ["orders", "order_items", "order_events", "idempotency_keys"];
const FIELD_MANAGER: &str = "longshore-e2e";

/// One OrderShardSet.
#[derive(Clone, Debug)]
pub struct OrderShardSet {
    api: Api<DynamicObject>,
    name: String,
    schema: String,
}

impl OrderShardSet {
    /// The set of this name, there or not; `schema` is the ConfigMap of its migrations.
    pub fn new(client: Client, namespace: &str, name: &str, schema: &str) -> Self {
        let kind = GroupVersionKind::gvk("longshore.dev", "v1alpha1", "OrderShardSet");
        let resource = ApiResource::from_gvk_with_plural(&kind, "ordershardsets");
        let api = Api::namespaced_with(client, namespace, &resource);
        Self { api, name: name.to_owned(), schema: schema.to_owned() }
    }

    /// `spec` for these shards, all of the usual weight.
    pub fn spec(&self, buckets: u32, shards: &[String], rebalance: &Value) -> Value {
        let tables: Vec<Value> =
            TABLES.iter().map(|table| json!({"name": table, "key": "user_id"})).collect();
        json!({
            "buckets": buckets,
            "schema": {"configMapName": self.schema},
            "tables": tables,
            "shards": shards_json(shards),
            "rebalance": rebalance,
        })
    }

    /// Creates or changes the set, for these shards.
    pub async fn apply(&self, buckets: u32, shards: &[String], rebalance: &Value) -> Result<()> {
        self.apply_spec(&self.spec(buckets, shards, rebalance)).await
    }

    /// Creates or changes the set, with any `spec`.
    pub async fn apply_spec(&self, spec: &Value) -> Result<()> {
        let object = json!({
            "apiVersion": "longshore.dev/v1alpha1",
            "kind": "OrderShardSet",
            "metadata": {"name": self.name},
            "spec": spec,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.api
            .patch(&self.name, &params, &Patch::Apply(&object))
            .await
            .context("failed to apply the set")?;
        Ok(())
    }

    /// The edit that moves the rows: `spec.shards`, all of the usual weight.
    pub async fn set_shards(&self, shards: &[String]) -> Result<()> {
        self.patch_shards(shards_json(shards)).await
    }

    /// As [`Self::set_shards`], with weights.
    pub async fn set_weights(&self, weights: &BTreeMap<String, u32>) -> Result<()> {
        let shard = |(name, weight): (&String, &u32)| json!({"name": name, "connectionSecretName": secret_name(name), "weight": weight});
        self.patch_shards(weights.iter().map(shard).collect()).await
    }

    async fn patch_shards(&self, shards: Vec<Value>) -> Result<()> {
        let patch = json!({"spec": {"shards": shards}});
        let edited = self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        edited.context("failed to edit spec.shards")?;
        Ok(())
    }

    /// What the set says of itself now.
    pub async fn status(&self) -> Result<SetStatus> {
        let object = self.api.get(&self.name).await.context("failed to read the set")?;
        let status = object.data.get("status").cloned().unwrap_or(Value::Null);
        Ok(SetStatus { generation: object.metadata.generation.unwrap_or(0), status })
    }

    /// Direct access, for anything else.
    pub fn api(&self) -> &Api<DynamicObject> {
        &self.api
    }
}

fn shards_json(shards: &[String]) -> Vec<Value> {
    shards.iter().map(|name| json!({"name": name, "connectionSecretName": secret_name(name)})).collect()
}

/// `.status` of an OrderShardSet, with what generation it should speak of.
#[derive(Clone, Debug)]
pub struct SetStatus {
    generation: i64,
    status: Value,
}

/// A condition of the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition<'a> {
    /// `True`, `False` or `Unknown`.
    pub status: &'a str,
    /// The typed reason.
    pub reason: &'a str,
    /// For a person.
    pub message: &'a str,
}

/// How far an operation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationProgress {
    /// For example `Copying`.
    pub phase: String,
    /// Buckets that have arrived.
    pub moved: u64,
    /// Buckets to move.
    pub total: u64,
    /// For a person.
    pub message: String,
}

impl SetStatus {
    /// The whole of it.
    pub fn json(&self) -> &Value {
        &self.status
    }

    /// The condition of this type.
    pub fn condition(&self, kind: &str) -> Option<Condition<'_>> {
        let conditions = self.status.get("conditions")?.as_array()?;
        let condition = conditions.iter().find(|condition| text(condition, "type") == kind)?;
        Some(Condition {
            status: text(condition, "status"),
            reason: text(condition, "reason"),
            message: text(condition, "message"),
        })
    }

    /// Whether it speaks of the spec as it is now, and says that the ownership is what it asks.
    pub fn is_converged(&self) -> bool {
        let observed = self.status.get("observedGeneration").and_then(Value::as_i64);
        let ready = self.condition("Ready");
        observed == Some(self.generation)
            && self.operation().is_none()
            && ready.is_some_and(|ready| ready.status == "True" && ready.reason == "Converged")
    }

    /// The operation under way.
    pub fn operation(&self) -> Option<OperationProgress> {
        let operation = self.status.get("operation").filter(|operation| !operation.is_null())?;
        let number = |name: &str| operation.get(name).and_then(Value::as_u64).unwrap_or(0);
        Some(OperationProgress {
            phase: text(operation, "phase").to_owned(),
            moved: number("bucketsMoved"),
            total: number("bucketsTotal"),
            message: text(operation, "message").to_owned(),
        })
    }

    /// The phase in which the last operation ended.
    pub fn last_phase(&self) -> Option<&str> {
        self.status.get("history")?.get(0)?.get("phase")?.as_str()
    }

    /// In one line, for error messages.
    pub fn describe(&self) -> String {
        format!("generation {}: {}", self.generation, self.status)
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(observed: i64, reason: &str, operation: &Value) -> SetStatus {
        let status = json!({
            "observedGeneration": observed,
            "conditions": [{"type": "Ready", "status": "True", "reason": reason, "message": ""}],
            "operation": operation,
        });
        SetStatus { generation: 2, status }
    }

    #[test]
    fn converged_needs_the_newest_generation_and_no_operation() {
        let moving = json!({"phase": "Copying", "bucketsMoved": 1, "bucketsTotal": 8});
        assert!(status(2, "Converged", &Value::Null).is_converged());
        assert!(!status(1, "Converged", &Value::Null).is_converged());
        assert!(!status(2, "Rebalancing", &Value::Null).is_converged());
        assert!(!status(2, "Converged", &moving).is_converged());
        let none_yet = SetStatus { generation: 1, status: Value::Null };
        assert!(!none_yet.is_converged());
    }

    #[test]
    fn progress_is_read_from_the_operation() {
        let moving = json!({"phase": "Copying", "bucketsMoved": 1, "bucketsTotal": 8});
        let progress = status(2, "Rebalancing", &moving).operation().unwrap();
        assert_eq!((progress.phase.as_str(), progress.moved, progress.total), ("Copying", 1, 8));
    }
}

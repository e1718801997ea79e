//! The harness's own promise: an API server that is ready in seconds and keeps what is applied to it.

use anyhow::Result;
use e2e::apiserver::ApiServer;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;

const TWO_OBJECTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: one}
data: {key: value}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crates.e2e.longshore.dev}
spec:
  group: e2e.longshore.dev
  names: {kind: Crate, plural: crates, singular: crate}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
apiVersion: e2e.longshore.dev/v1
kind: Crate
metadata: {name: first}
spec: {bananas: 12}
";

#[tokio::test]
async fn what_is_applied_is_there() -> Result<()> {
    let server = ApiServer::shared().await?;
    let namespace = server.namespace("apply").await?;
    server.apply_yaml(TWO_OBJECTS, &namespace).await?;
    server.apply_yaml(TWO_OBJECTS, &namespace).await?;
    let maps: Api<ConfigMap> = Api::namespaced(server.client().await?, &namespace);
    let data = maps.get("one").await?.data.unwrap_or_default();
    assert_eq!(data.get("key").map(String::as_str), Some("value"));
    Ok(())
}

#[tokio::test]
async fn namespaces_are_unique() -> Result<()> {
    let server = ApiServer::shared().await?;
    assert_ne!(server.namespace("same").await?, server.namespace("same").await?);
    Ok(())
}

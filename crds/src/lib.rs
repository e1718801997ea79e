//! The custom resources of Longshore, as types: what users declare and what the operator reports.
//!
//! Everything a cluster can check by itself stands here as schema or CEL; what needs a database to know is the
//! operator's. `crds/generated` holds the YAML made from these types.

pub mod kafka_topic_set;
pub mod order_shard_set;
pub mod service_fleet;

use kube::CustomResourceExt;

pub use kafka_topic_set::KafkaTopicSet;
pub use order_shard_set::OrderShardSet;
pub use service_fleet::ServiceFleet;

/// The generated definitions by file name, as YAML.
///
/// # Panics
/// Never: the types serialise.
#[must_use]
pub fn definitions() -> Vec<(&'static str, String)> {
    let kinds = [
        ("kafkatopicsets.longshore.dev.yaml", KafkaTopicSet::crd()),
        ("ordershardsets.longshore.dev.yaml", OrderShardSet::crd()),
        ("servicefleets.longshore.dev.yaml", ServiceFleet::crd()),
    ];
    let yaml = |crd| serde_saphyr::to_string(&crd).expect("a definition serialises");
    kinds.map(|(file, crd)| (file, yaml(crd))).into()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// What a client-side apply may still store beside the object itself.
    const DEFINITION_BYTES_MAX: usize = 200_000;

    #[test]
    fn generated_files_are_current() {
        for (file, expected) in super::definitions() {
            // Cargo runs tests in their package's folder; where this was compiled may be another checkout.
            let found = fs::read_to_string(Path::new("generated").join(file)).unwrap_or_default();
            assert!(found == expected, "crds/generated/{file} is old: run `cargo xtask generate`");
        }
    }

    #[test]
    fn definitions_are_small() {
        for (file, yaml) in super::definitions() {
            assert!(yaml.len() < DEFINITION_BYTES_MAX, "{file} takes {} bytes", yaml.len());
        }
    }
}

//! The custom resources of Longshore, as types: what users declare and what the operator reports.
//!
//! Everything a cluster can check by itself stands here as schema or CEL; what needs a database to know is the
//! operator's. `crds/generated` holds the YAML made from these types.

pub mod order_shard_set;

use kube::CustomResourceExt;

pub use order_shard_set::OrderShardSet;

/// The generated definitions by file name, as YAML.
///
/// # Panics
/// Never: the types serialise.
#[must_use]
pub fn definitions() -> Vec<(&'static str, String)> {
    let yaml = serde_saphyr::to_string(&OrderShardSet::crd()).expect("a definition serialises");
    vec![("ordershardsets.longshore.dev.yaml", yaml)]
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn generated_files_are_current() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("generated");
        for (file, expected) in super::definitions() {
            let found = fs::read_to_string(folder.join(file)).unwrap_or_default();
            assert!(found == expected, "crds/generated/{file} is old: run `cargo xtask generate`");
        }
    }
}

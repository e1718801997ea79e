//! Names of the objects that the operator makes on shards. They say whose they are: an object that no open operation
//! names is a leftover.

use std::fmt;

use longshore_sharding::operation::{OperationId, Plan, Stream};
use sha2::{Digest, Sha256};

use crate::shard::agent::hex;

/// Begins the name of every slot, publication and subscription of a set; slots are shared by all databases of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    #[must_use]
    pub(super) fn of_set(uid: &str) -> Self {
        let tag: String = hex(&Sha256::digest(uid.as_bytes())).chars().take(6).collect();
        Self { prefix: format!("ls_{tag}_") }
    }

    /// The one name of a stream's publication, slot and subscription: at most 59 bytes, of 63.
    #[must_use]
    pub(super) fn stream(&self, operation: OperationId, stream: &Stream) -> String {
        let (source, destination) = (stream.source.as_identifier(), stream.destination.as_identifier());
        format!("{}{operation}_{source}_{destination}", self.prefix)
    }

    #[must_use]
    pub(super) fn is_ours(&self, name: &str) -> bool {
        name.starts_with(&self.prefix)
    }

    /// Whether the object belongs to a stream of this operation.
    #[must_use]
    pub(super) fn belongs_to(&self, name: &str, plan: &Plan) -> bool {
        name.starts_with(&format!("{}{}_", self.prefix, plan.id))
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.prefix.fmt(f)
    }
}

/// The publication that carries handovers stands beside the one that carries rows.
#[must_use]
pub(super) fn is_control(publication: &str) -> bool {
    publication.ends_with("_c")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_fits() {
        let longest = |c: char| c.to_string().repeat(20).as_str().try_into().expect("a valid name");
        let stream = Stream { source: longest('a'), destination: longest('b') };
        let name = Names::of_set("uid").stream(OperationId(99_999), &stream) + "_c";
        assert!(name.len() <= 63, "{name}");
    }
}

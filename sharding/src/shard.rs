//! A shard's name.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ShardingError;

/// The name of a shard: 1 to 20 characters of `a-z`, `0-9` and `-`, since it is part of the names of slots,
/// publications and subscriptions, which PostgreSQL bounds at 63.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShardName(String);

impl ShardName {
    pub const MAX_LENGTH: usize = 20;

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As part of a replication slot's name, where `-` is not allowed.
    #[must_use]
    pub fn as_identifier(&self) -> String {
        self.0.replace('-', "_")
    }
}

impl TryFrom<String> for ShardName {
    type Error = ShardingError;
    fn try_from(name: String) -> Result<Self, ShardingError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let valid = name.len() <= Self::MAX_LENGTH
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && !name.ends_with('-')
            && name.chars().all(allowed);
        if valid { Ok(Self(name)) } else { Err(ShardingError::ShardName(name)) }
    }
}

impl TryFrom<&str> for ShardName {
    type Error = ShardingError;
    fn try_from(name: &str) -> Result<Self, ShardingError> {
        Self::try_from(name.to_owned())
    }
}

impl From<ShardName> for String {
    fn from(name: ShardName) -> Self {
        name.0
    }
}

impl fmt::Display for ShardName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_labels() {
        for good in ["a", "shard-a", "a1", "abcdefghijklmnopqrst"] {
            assert!(ShardName::try_from(good).is_ok(), "{good}");
        }
        for bad in ["", "1a", "-a", "a-", "A", "a_b", "a b", "abcdefghijklmnopqrstu"] {
            assert!(ShardName::try_from(bad).is_err(), "{bad}");
        }
    }
}

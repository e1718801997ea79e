//! What a person has to mend, in the words of conditions and events, from whatever went wrong below.

use std::fmt;

use longshore_sharding::ShardName;

use crate::shard::{StoreError, agent::AgentError, migrations::MigrationError, preflight::Finding};

/// The reason for a shard that does not answer.
pub(super) const UNREACHABLE: &str = "ShardUnreachable";

/// The reasons for buckets that nobody owns: while no operation is open, and while one is.
pub(super) const UNOWNED: [&str; 2] = ["OwnershipUnknown", "Unexpected"];

/// Something that a person has to mend, in the words of conditions and events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The shard concerned; `None` when it is all of them.
    pub shard: Option<ShardName>,
    pub reason: &'static str,
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shard {
            Some(shard) => write!(f, "shard {shard}: {}", self.message),
            None => self.message.fmt(f),
        }
    }
}

/// Why a set could not be opened.
#[derive(Debug)]
pub(super) enum OpenError {
    Faults(Vec<Fault>),
    Store {
        shard: String,
        source: StoreError,
    },
    /// Another process has claimed this shard since this one began to lead.
    Superseded {
        shard: String,
    },
}

impl From<Vec<Fault>> for OpenError {
    fn from(faults: Vec<Fault>) -> Self {
        Self::Faults(faults)
    }
}

pub(super) fn finding_fault(shard: &ShardName, finding: &Finding) -> Fault {
    Fault { shard: Some(shard.clone()), reason: finding.reason.word(), message: finding.to_string() }
}

pub(super) fn agent_fault(shard: &ShardName, error: &AgentError) -> Fault {
    let (reason, message) = match error {
        AgentError::OtherOwner { .. } | AgentError::OtherSet { .. } => ("OwnedByOtherSet", error.to_string()),
        AgentError::Headless => ("ShardError", error.to_string()),
        AgentError::OtherShard { .. } => ("OwnedByOtherShard", error.to_string()),
        AgentError::OtherBuckets { .. } => ("OtherBucketCount", error.to_string()),
        AgentError::Store(error) => return store_fault(shard, error),
    };
    Fault { shard: Some(shard.clone()), reason, message }
}

pub(super) fn migration_fault(shard: &ShardName, error: &MigrationError) -> Fault {
    let (reason, message) = match error {
        MigrationError::Changed { .. } => ("MigrationChanged", error.to_string()),
        MigrationError::Failed { source, .. } => {
            ("MigrationFailed", format!("{error}: {source}{}", migration_help(source)))
        }
        MigrationError::Store(error) => return store_fault(shard, error),
    };
    Fault { shard: Some(shard.clone()), reason, message }
}

/// What PostgreSQL does not say of its own refusal.
fn migration_help(source: &sqlx::Error) -> &'static str {
    match source.as_database_error().and_then(|error| error.code()).as_deref() {
        Some("25001") => {
            "; each migration runs in a transaction: build such an index by hand on every shard, with CREATE INDEX CONCURRENTLY, and \
             let the migration say CREATE INDEX IF NOT EXISTS"
        }
        Some("55P03") => "; a table was in use for 5 s: it is tried again",
        Some("42501") => {
            "; migrations run as longshore_owner: what that role may not do, an administrator does by hand"
        }
        Some(_) | None => "",
    }
}

pub(super) fn store_fault(shard: &ShardName, error: &StoreError) -> Fault {
    let reason = error.distrust().unwrap_or(match error.sqlstate().as_deref() {
        Some("3D000") => "DatabaseNotFound",
        Some("42501") => "PrivilegeMissing",
        Some("57P03" | "53300") | None => UNREACHABLE,
        Some(_) => "ShardError",
    });
    Fault { shard: Some(shard.clone()), reason, message: error.chain() }
}

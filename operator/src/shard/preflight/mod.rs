//! What a server, its tables and a pair of shards must be like before buckets can move.
//!
//! A finding is a refusal only where the move would fail, lose or stop: what merely looks odd is none. All findings are told
//! at once, each with the statement that mends it, if there is one. Free disk space is not among them: without being a
//! superuser SQL cannot ask for it; sizes are the plan's business.

mod pair;
mod server;
mod tables;

use std::fmt;

pub use pair::{Facts, compare, extensions_missing, facts};
pub use server::{Limits, limits, server};
pub use tables::{Tables, bucket_indexes, tables};

/// Something that has to be mended by a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub reason: Reason,
    pub message: String,
    /// SQL that mends it on the shard that it is about; some of it only an administrator may run.
    pub mend: Option<String>,
    /// Whether it keeps the set from being operated; else it is only told.
    pub refuses: bool,
}

impl Finding {
    fn new(reason: Reason, message: impl Into<String>, mend: Option<String>) -> Self {
        Self { reason, message: message.into(), mend, refuses: true }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mend {
            Some(mend) => write!(f, "{}; mend: {mend}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Declares the reasons once: the variant's name is the CamelCase word in conditions and events.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What is wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $name),* }

        impl Reason {
            /// The CamelCase reason for conditions and events.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

reasons! {
    VersionTooOld,
    WalLevelNotLogical,
    PrivilegeMissing,
    /// A setting of the server leaves too little for the streams to every other shard of the set.
    ServerLimitTooLow,
    TableNotFound,
    /// Partitioned, inherited, unlogged, or no table at all.
    TableKindUnsupported,
    /// The agent's owner must own it: to publish it, to guard it, and since changes are applied as the table's owner.
    TableOwnedByOther,
    KeyNotFound,
    KeyTypeUnsupported,
    KeyTypesDiffer,
    /// A foreign key to or from a table that does not move: its rows would be elsewhere.
    ForeignKeyLeavesTables,
    ForeignKeyLacksShardKey,
    /// Clean-up deletes children before parents, some thousand rows at a time: this key would refuse it.
    ForeignKeyOrder,
    PrimaryKeyLacksShardKey,
    /// Unique on each shard only: a row that moves could meet its double, and stop the stream.
    UniqueKeyLacksShardKey,
    /// Updates and deletes of a published row need the shard key in its identity, else the server refuses them.
    ReplicaIdentityUnusable,
    /// Generated columns are not sent, so that they cannot say which row is meant. Elsewhere they do no harm.
    GeneratedColumnInIdentity,
    /// Of a type without a binary form, or one whose values mean something else on another server.
    ColumnTypeUnsupported,
    /// The constraint holds for new rows, and every row is new at the destination.
    ConstraintNotValidated,
    RowSecurityUnsupported,
    RuleUnsupported,
    TriggerFiresInApply,
    TriggerFiresInCleanUp,
    BucketIndexUnusable,
    /// The tables are not alike on two shards.
    SchemaDiffers,
    /// The text of a row, and with it its digest, depends on the database's encoding.
    EncodingDiffers,
    /// Two shards give out the same numbers.
    SequenceOnTable,
    ExtensionMissing,
}

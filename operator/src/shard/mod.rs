//! One shard: how to reach it, the agent in it, and everything that is ever asked of it. The only module with SQL.

pub mod agent;
pub mod connection;
pub mod migrations;
pub mod preflight;
mod store;
pub mod view;

pub use connection::{Connection, Endpoint, Pooler};
pub use store::{Arrival, Identity, Shard, Term};

/// An SQL statement that failed on a shard.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation}")]
pub struct StoreError {
    /// What was tried, for the message: "claim the term".
    pub operation: &'static str,
    #[source]
    pub source: sqlx::Error,
}

impl StoreError {
    /// The server's SQLSTATE, if it was the server that refused.
    #[must_use]
    pub fn sqlstate(&self) -> Option<String> {
        self.source.as_database_error()?.code().map(|code| code.into_owned())
    }

    /// Another operator process leads: whoever sees this must stop acting.
    #[must_use]
    pub fn is_stale_term(&self) -> bool {
        self.sqlstate().as_deref() == Some("LS004")
    }

    /// The shard does not remember that we claimed it: it was restored to before that, or to before it was a shard.
    #[must_use]
    pub fn is_restored(&self) -> bool {
        self.operation == ATTACH && matches!(self.sqlstate().as_deref(), Some("LS005" | "3F000"))
    }

    /// The server never said what came of it: what was asked may still be done, after anything that is asked next. Only a new term
    /// ends the session that does it.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        self.sqlstate().is_none()
    }

    /// A slot was not made in time: its start waits for every transaction that runs.
    #[must_use]
    pub fn waits_for_transactions(&self) -> bool {
        self.operation == "create a slot" && self.sqlstate().as_deref() == Some("57014")
    }

    /// The shard refuses our credentials, or we its certificate: another state of its Secret may mend it.
    #[must_use]
    pub fn distrust(&self) -> Option<&'static str> {
        let refused = matches!(self.sqlstate().as_deref(), Some("28P01" | "28000"));
        // What a handshake finds wrong comes as malformed data.
        let malformed =
            matches!(&self.source, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData);
        let handshake_failed = malformed || matches!(&self.source, sqlx::Error::Tls(_));
        if refused { Some("AuthenticationFailed") } else { handshake_failed.then_some("TlsFailed") }
    }

    /// The error and its causes in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        format!("{self}: {}", self.source)
    }
}

/// The operation of binding a session to the term.
pub(crate) const ATTACH: &str = "attach to the shard";

/// Names the operation in an error: `query.await.map_err(failed("claim the term"))`.
pub(crate) fn failed(operation: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError { operation, source }
}

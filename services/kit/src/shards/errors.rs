//! What a failed statement means for routing, and how routing itself fails.

use std::io::ErrorKind;

use longshore_sharding::{BucketId, ShardName};
use serde::Deserialize;

use super::Endpoint;

/// Why a request could not be served by its bucket's owner.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Nobody served the bucket in time
    #[error("bucket {bucket} was not served before the deadline ({reason})", reason = reason.as_str())]
    Deadline {
        /// The bucket
        bucket: BucketId,
        /// What was in the way last
        reason: RetryReason,
        /// The last answer, where there was one
        #[source]
        source: Option<sqlx::Error>,
    },
    /// The owner ran the statement, and it failed
    #[error("a statement for bucket {bucket} failed")]
    Statement {
        /// The bucket
        bucket: BucketId,
        /// How
        #[source]
        source: sqlx::Error,
    },
}

/// Why a statement was tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryReason {
    /// The bucket belongs to another shard
    Moved,
    /// The bucket is between two shards
    HandingOver,
    /// The bucket never was on the shard asked
    Absent,
    /// The shard refused what it received and is about to give it back
    Refused,
    /// The shard takes no writes until it has been compared with its peers
    Quarantined,
    /// PostgreSQL ended the transaction for the sake of another
    Conflict,
    /// The shard could not be reached, or no connection to it was free
    Connection,
    /// The shard does not accept the credentials, or its certificate is not to be trusted
    Credentials,
    /// No owner of the bucket is known
    Unknown,
    /// The statement did not end in time
    Timeout,
}

impl RetryReason {
    /// As a metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::HandingOver => "handing_over",
            Self::Absent => "absent",
            Self::Refused => "refused",
            Self::Quarantined => "quarantined",
            Self::Conflict => "conflict",
            Self::Connection => "connection",
            Self::Credentials => "credentials",
            Self::Unknown => "unknown",
            Self::Timeout => "timeout",
        }
    }
}

/// A failed statement, as routing sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The shard says who owns the bucket since which epoch.
    Moved(Successor),
    /// Another try may succeed.
    Passing(RetryReason),
    /// Another try fails alike.
    Lasting,
}

/// Where a bucket went, as its former owner tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Successor {
    pub(crate) shard: ShardName,
    pub(crate) epoch: i64,
    /// For a shard that was not heard of before.
    pub(crate) endpoint: Option<Endpoint>,
}

impl Fault {
    /// I/O: none. Reads the error alone.
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        if let sqlx::Error::Database(answer) = error {
            let detail =
                answer.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().and_then(|e| e.detail());
            let state = answer.code();
            let state = state.as_deref().unwrap_or_default();
            // A PgBouncer has one SQLSTATE for all that it says itself.
            if state == "08P01" && answer.message().contains("authentication failed") {
                return Self::Passing(RetryReason::Credentials);
            }
            return Self::of_state(state, detail);
        }
        // What a handshake finds wrong comes as malformed data.
        let malformed = matches!(error, sqlx::Error::Io(error) if error.kind() == ErrorKind::InvalidData);
        if malformed || matches!(error, sqlx::Error::Tls(_)) {
            return Self::Passing(RetryReason::Credentials);
        }
        let lost = matches!(
            error,
            sqlx::Error::Io(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::BeginFailed
        );
        if lost { Self::Passing(RetryReason::Connection) } else { Self::Lasting }
    }

    fn of_state(state: &str, detail: Option<&str>) -> Self {
        let reason = match state {
            "LS001" => {
                let successor = detail.and_then(Successor::parse);
                return successor.map_or(Self::Passing(RetryReason::Absent), Self::Moved);
            }
            "LS002" => RetryReason::HandingOver,
            "LS003" => RetryReason::Refused,
            "LS005" => RetryReason::Quarantined,
            "LS007" => RetryReason::Absent,
            "40001" | "40P01" => RetryReason::Conflict,
            "28P01" | "28000" => RetryReason::Credentials,
            // The deadline goes with the transaction as its statement_timeout.
            "57014" => RetryReason::Timeout,
            // Shutting down, starting, out of connections, or a primary no longer.
            "57P01" | "57P02" | "57P03" | "53300" | "25006" => RetryReason::Connection,
            connection if connection.starts_with("08") => RetryReason::Connection,
            _ => return Self::Lasting,
        };
        Self::Passing(reason)
    }

    /// Whether the connection it came over is of no more use.
    pub(crate) fn loses_connection(&self) -> bool {
        matches!(self, Self::Passing(RetryReason::Connection | RetryReason::Credentials))
    }
}

impl Successor {
    /// The DETAIL of LS001.
    fn parse(detail: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Detail {
            epoch: i64,
            peer: ShardName,
            host: Option<String>,
            port: Option<u16>,
            dbname: Option<String>,
        }
        let Detail { epoch, peer, host, port, dbname } = serde_json::from_str(detail).ok()?;
        let endpoint = match (host, port, dbname) {
            (Some(host), Some(port), Some(dbname)) => Some(Endpoint { host, port, dbname }),
            _ => None,
        };
        Some(Self { shard: peer, epoch, endpoint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_told_apart() {
        use RetryReason::{
            Absent, Conflict, Connection, Credentials, HandingOver, Quarantined, Refused, Timeout,
        };
        let cases = [
            ("LS001", Fault::Passing(Absent)),
            ("LS002", Fault::Passing(HandingOver)),
            ("LS003", Fault::Passing(Refused)),
            ("LS004", Fault::Lasting),
            ("LS005", Fault::Passing(Quarantined)),
            ("LS006", Fault::Lasting),
            ("LS007", Fault::Passing(Absent)),
            ("40001", Fault::Passing(Conflict)),
            ("40P01", Fault::Passing(Conflict)),
            ("28P01", Fault::Passing(Credentials)),
            ("57014", Fault::Passing(Timeout)),
            ("57P01", Fault::Passing(Connection)),
            ("08006", Fault::Passing(Connection)),
            ("25006", Fault::Passing(Connection)),
            ("23505", Fault::Lasting),
            ("", Fault::Lasting),
        ];
        for (state, fault) in cases {
            assert_eq!(Fault::of_state(state, None), fault, "{state}");
        }
    }

    #[test]
    fn the_successor_is_read_from_the_detail() {
        let detail = r#"{"bucket":1,"epoch":3,"peer":"b","host":"127.0.0.1","port":5432,"dbname":"orders"}"#;
        let endpoint = Some("127.0.0.1:5432/orders".parse().unwrap());
        let b = ShardName::try_from("b".to_owned()).unwrap();
        let successor = Successor { shard: b.clone(), epoch: 3, endpoint };
        assert_eq!(Fault::of_state("LS001", Some(detail)), Fault::Moved(successor));

        let unknown = r#"{"bucket":1,"epoch":3,"peer":"b","host":null,"port":null,"dbname":null}"#;
        let successor = Successor { shard: b, epoch: 3, endpoint: None };
        assert_eq!(Fault::of_state("LS001", Some(unknown)), Fault::Moved(successor));

        for bad in ["", "{}", r#"{"epoch":3,"peer":"Not A Name"}"#, r#"{"epoch":3,"peer":null}"#] {
            assert_eq!(Fault::of_state("LS001", Some(bad)), Fault::Passing(RetryReason::Absent), "{bad}");
        }
    }

    #[test]
    fn errors_of_the_client_side() {
        assert_eq!(Fault::of(&sqlx::Error::PoolTimedOut), Fault::Passing(RetryReason::Connection));
        assert_eq!(
            Fault::of(&std::io::Error::other("reset").into()),
            Fault::Passing(RetryReason::Connection)
        );
        let distrusted =
            std::io::Error::new(ErrorKind::InvalidData, "invalid peer certificate: UnknownIssuer");
        for error in [distrusted.into(), sqlx::Error::Tls("server does not support TLS".into())] {
            assert_eq!(Fault::of(&error), Fault::Passing(RetryReason::Credentials), "{error}");
        }
        assert_eq!(Fault::of(&sqlx::Error::RowNotFound), Fault::Lasting);
    }
}

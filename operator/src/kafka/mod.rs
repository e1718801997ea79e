//! A Kafka cluster as the operator reaches it: what is asked of it and done to it. Decides nothing.

pub(crate) mod access;
mod admin;
mod connection;
mod sasl;
mod usage;

use std::io;

use kafka_protocol::error::ParseResponseErrorCode as _;

pub(crate) use admin::{Admin, Refusals};

/// Why a cluster did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KafkaError {
    #[error("no broker is reached at {endpoint}")]
    Connect {
        endpoint: String,
        #[source]
        source: io::Error,
    },
    #[error("{endpoint} is not trusted, or does not trust")]
    Tls {
        endpoint: String,
        #[source]
        source: io::Error,
    },
    #[error("{endpoint} refused the credentials: {words}")]
    Authentication { endpoint: String, words: String },
    #[error("{endpoint} did not answer {request}")]
    Exchange {
        request: &'static str,
        endpoint: String,
        #[source]
        source: io::Error,
    },
    #[error("{endpoint} does not know {request}, or no version of it that this operator knows")]
    Version { request: &'static str, endpoint: String },
    #[error("{request} was refused: {words}")]
    Refused { request: &'static str, words: String },
    #[error("{request} failed in librdkafka")]
    Rdkafka {
        request: &'static str,
        #[source]
        source: rdkafka::error::KafkaError,
    },
}

impl KafkaError {
    /// What has to be mended, in a word.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Authentication { .. } => "AuthenticationFailed",
            Self::Tls { .. } => "TlsFailed",
            Self::Version { .. } => "ClusterTooOld",
            Self::Refused { .. } => "ClusterRefused",
            Self::Connect { .. } | Self::Exchange { .. } | Self::Rdkafka { .. } => "ClusterUnreachable",
        }
    }
}

/// A broker's own words for an error code; none for no error.
fn complaint(code: i16, message: Option<&str>) -> Option<String> {
    let error = code.err()?;
    Some(message.filter(|said| !said.is_empty()).map_or_else(|| error.to_string(), str::to_owned))
}

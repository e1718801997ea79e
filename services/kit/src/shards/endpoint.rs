//! Where a shard's database is. No credentials: those come from the mounted directory alone.

use std::{fmt, str::FromStr};

/// A database on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Name or address of the server
    pub host: String,
    /// Its port
    pub port: u16,
    /// The database
    pub dbname: String,
}

/// How to reach a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// The server itself: sessions last there, which LISTEN needs.
    pub(crate) direct: Endpoint,
    /// A pooler that lends server connections for a transaction, where there is one.
    pub(crate) pooler: Option<Endpoint>,
}

impl Addresses {
    /// Where transactions go.
    pub(crate) fn pooled(&self) -> &Endpoint {
        self.pooler.as_ref().unwrap_or(&self.direct)
    }
}

impl From<Endpoint> for Addresses {
    fn from(direct: Endpoint) -> Self {
        Self { direct, pooler: None }
    }
}

/// Why a text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not HOST:PORT/DBNAME")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let refuse = || EndpointError(text.to_owned());
        let (server, dbname) = text.split_once('/').ok_or_else(refuse)?;
        let (host, port) = server.rsplit_once(':').ok_or_else(refuse)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        // An IPv6 address without brackets cannot be told from its port.
        let host = bare.or((!host.contains(':')).then_some(host)).ok_or_else(refuse)?;
        let port: u16 = port.parse().map_err(|_| refuse())?;
        if host.is_empty() || port == 0 || dbname.is_empty() || dbname.contains('/') {
            return Err(refuse());
        }
        Ok(Self { host: host.to_owned(), port, dbname: dbname.to_owned() })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, dbname } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}/{dbname}")
        } else {
            write!(f, "{host}:{port}/{dbname}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in ["127.0.0.1:5432/orders", "db.example:1/a", "[::1]:5432/orders"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_what_is_not_an_endpoint() {
        for text in [
            "",
            "host",
            "host:1",
            "host/db",
            ":1/db",
            "host:/db",
            "host:0/db",
            "host:65536/db",
            "host:1/",
            "::1:5432/db",
            "host:1/a/b",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}

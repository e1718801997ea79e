//! From a connection Secret to a way in.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::ByteString;
use sqlx::{
    ConnectOptions,
    postgres::{PgConnectOptions, PgSslMode},
};

/// As many bytes as a value may have; a bundle of authorities may have more.
const VALUE_BYTES_MAX: usize = 1024;
const AUTHORITIES_BYTES_MAX: usize = 256 * 1024;

/// PgBouncer's own.
const POOLER_PORT: u16 = 6432;

/// How soon a subscription takes its source for gone and asks for it anew: after 10 s without an answer. PostgreSQL bounds
/// neither its wait for a connection nor an initial copy that fell silent, and TCP gives up an address behind which a pod
/// died only after minutes. Linux ends a connecting and a connected socket alike by `tcp_user_timeout`.
const SUBSCRIPTION_LINK: [(&str, &str); 3] =
    [("tcp_user_timeout", "10000"), ("keepalives_idle", "5"), ("keepalives_interval", "5")];

/// Where a shard is. No credentials: shards tell each other's endpoints to routers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    pub dbname: String,
    /// Where services send their transactions, if not to the server itself.
    pub pooler: Option<Pooler>,
}

/// A PgBouncer before a shard's database, which it knows by the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pooler {
    pub host: String,
    pub port: u16,
}

/// A user and a password that never shows itself.
#[derive(Clone, PartialEq, Eq)]
struct Credentials {
    username: String,
    password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:***", self.username)
    }
}

/// Whether sessions are encrypted, and what a server has to prove; libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    const ALL: [Self; 5] = [Self::Disable, Self::Prefer, Self::Require, Self::VerifyCa, Self::VerifyFull];

    fn word(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    fn of_sqlx(self) -> PgSslMode {
        match self {
            Self::Disable => PgSslMode::Disable,
            Self::Prefer => PgSslMode::Prefer,
            Self::Require => PgSslMode::Require,
            Self::VerifyCa => PgSslMode::VerifyCa,
            Self::VerifyFull => PgSslMode::VerifyFull,
        }
    }

    /// libpq finds authorities in a file alone: without one it can encrypt, and verify nothing.
    fn without_authorities(self) -> Self {
        match self {
            Self::Disable | Self::Prefer | Self::Require => self,
            Self::VerifyCa | Self::VerifyFull => Self::Require,
        }
    }
}

/// How to reach a shard: as the operator, and as a peer's subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub secret_name: String,
    /// Tells one state of the Secret from another. Not secret itself, and not made of what is.
    pub revision: String,
    pub endpoint: Endpoint,
    ssl_mode: SslMode,
    /// Whom the operator's own sessions trust: certificates in PEM.
    authorities: Option<String>,
    /// Whom subscriptions trust: a file on the servers of the peers.
    replication_authorities: Option<String>,
    operator: Credentials,
    replication: Credentials,
}

/// What is wrong with a connection Secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("key {key:?} is missing")]
    Missing { key: &'static str },
    #[error("key {key:?} is not valid")]
    Invalid { key: &'static str },
}

impl Connection {
    /// Reads the keys host, port, dbname, username, password, replicationUsername and replicationPassword; and, where they are
    /// there, poolerHost, poolerPort, sslmode, ca.crt and replicationSslRootCert. `revision` tells this state of the Secret from
    /// others.
    ///
    /// # Errors
    /// Names the key that is missing or malformed; never its value.
    pub fn from_secret(
        secret_name: &str,
        revision: &str,
        data: &BTreeMap<String, ByteString>,
    ) -> Result<Self, SecretError> {
        let optional = |key: &'static str| data.get(key).map(|value| line(key, &value.0)).transpose();
        let text = |key: &'static str| optional(key)?.ok_or(SecretError::Missing { key });
        let port_in = |key: &'static str, text: String| {
            text.parse().ok().filter(|port: &u16| *port > 0).ok_or(SecretError::Invalid { key })
        };
        let pooler = match (optional("poolerHost")?, optional("poolerPort")?) {
            (None, None) => None,
            (None, Some(_)) => return Err(SecretError::Missing { key: "poolerHost" }),
            (Some(host), None) => Some(Pooler { host, port: POOLER_PORT }),
            (Some(host), Some(port)) => Some(Pooler { host, port: port_in("poolerPort", port)? }),
        };
        let authorities = data.get("ca.crt").map(|value| certificates("ca.crt", &value.0)).transpose()?;
        let ssl_mode = match optional("sslmode")? {
            Some(word) => SslMode::ALL.into_iter().find(|mode| mode.word() == word),
            None => Some(if authorities.is_some() { SslMode::VerifyFull } else { SslMode::Prefer }),
        };
        let replication_authorities = optional("replicationSslRootCert")?;
        if replication_authorities.as_ref().is_some_and(|path| !path.starts_with('/')) {
            return Err(SecretError::Invalid { key: "replicationSslRootCert" });
        }
        Ok(Self {
            secret_name: secret_name.to_owned(),
            revision: revision.to_owned(),
            ssl_mode: ssl_mode.ok_or(SecretError::Invalid { key: "sslmode" })?,
            authorities,
            replication_authorities,
            endpoint: Endpoint {
                host: text("host")?,
                port: port_in("port", text("port")?)?,
                dbname: text("dbname")?,
                pooler,
            },
            operator: Credentials { username: text("username")?, password: text("password")? },
            replication: Credentials {
                username: text("replicationUsername")?,
                password: text("replicationPassword")?,
            },
        })
    }

    /// Options for the operator's own sessions. Statements are not logged: some carry passwords.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        self.options_of(&self.operator)
    }

    /// Options for trying the credentials that peers' subscriptions use.
    #[must_use]
    pub fn replication_options(&self) -> PgConnectOptions {
        self.options_of(&self.replication)
    }

    fn options_of(&self, credentials: &Credentials) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass()
            .host(&self.endpoint.host)
            .port(self.endpoint.port)
            .database(&self.endpoint.dbname)
            .username(&credentials.username)
            .password(&credentials.password)
            .ssl_mode(self.ssl_mode.of_sqlx())
            .application_name("longshore-operator")
            .disable_statement_logging();
        match &self.authorities {
            Some(pem) => options.ssl_root_cert_from_pem(pem.clone().into_bytes()),
            None => options,
        }
    }

    /// The connection string of a peer's subscription to this shard. It verifies the server only where the peers have a file
    /// of authorities.
    #[must_use]
    pub fn subscription_conninfo(&self) -> String {
        let authorities = self.replication_authorities.as_deref();
        let ssl_mode = authorities.map_or(self.ssl_mode.without_authorities(), |_| self.ssl_mode);
        let pairs = [
            ("host", self.endpoint.host.as_str()),
            ("port", &self.endpoint.port.to_string()),
            ("dbname", &self.endpoint.dbname),
            ("user", &self.replication.username),
            ("password", &self.replication.password),
            ("sslmode", ssl_mode.word()),
            ("application_name", "longshore-subscription"),
        ];
        let authorities = authorities.map(|path| ("sslrootcert", path));
        let pairs = pairs.into_iter().chain(SUBSCRIPTION_LINK).chain(authorities);
        pairs
            .map(|(key, value)| format!("{key}='{}'", value.replace('\\', r"\\").replace('\'', r"\'")))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// One line of text.
fn line(key: &'static str, value: &[u8]) -> Result<String, SecretError> {
    let value = std::str::from_utf8(value).map_err(|_| SecretError::Invalid { key })?.trim();
    let valid = !value.is_empty() && value.len() <= VALUE_BYTES_MAX && !value.contains(['\0', '\n']);
    if valid { Ok(value.to_owned()) } else { Err(SecretError::Invalid { key }) }
}

/// One certificate or more, in PEM, and no private key beside them.
fn certificates(key: &'static str, value: &[u8]) -> Result<String, SecretError> {
    let text = std::str::from_utf8(value).map_err(|_| SecretError::Invalid { key })?;
    let (begun, ended) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    let whole = text.contains(begun) && text.matches(begun).count() == text.matches(ended).count();
    let valid = whole && value.len() <= AUTHORITIES_BYTES_MAX && !text.contains("PRIVATE KEY");
    if valid { Ok(text.to_owned()) } else { Err(SecretError::Invalid { key }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(pairs: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
        let complete = [
            ("host", "db"),
            ("port", "5432"),
            ("dbname", "orders"),
            ("username", "op"),
            ("password", "it's \\ secret"),
            ("replicationUsername", "repl"),
            ("replicationPassword", "it's \\ secret"),
        ];
        let given = complete.iter().chain(pairs).filter(|(_, value)| *value != "absent");
        let mut data: BTreeMap<_, _> =
            given.map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()))).collect();
        for (key, _) in pairs.iter().filter(|(_, value)| *value == "absent") {
            data.remove(*key);
        }
        data
    }

    #[test]
    fn faults_are_named_by_key() {
        let check = |pairs: &[(&str, &str)], expected: &str| {
            let error = Connection::from_secret("s", "1", &secret(pairs)).expect_err("a fault");
            assert_eq!(error.to_string(), expected);
        };
        check(&[("host", "absent")], "key \"host\" is missing");
        check(&[("port", "seven")], "key \"port\" is not valid");
        check(&[("port", "0")], "key \"port\" is not valid");
        check(&[("poolerPort", "6432")], "key \"poolerHost\" is missing");
        check(&[("poolerHost", "p"), ("poolerPort", "0")], "key \"poolerPort\" is not valid");
        check(&[("poolerHost", "")], "key \"poolerHost\" is not valid");
        check(&[("password", "")], "key \"password\" is not valid");
        check(&[("sslmode", "allow")], "key \"sslmode\" is not valid");
        check(&[("ca.crt", "none")], "key \"ca.crt\" is not valid");
        check(&[("ca.crt", "-----BEGIN CERTIFICATE-----\nMII")], "key \"ca.crt\" is not valid");
        check(&[("replicationSslRootCert", "ca.crt")], "key \"replicationSslRootCert\" is not valid");
    }

    #[test]
    fn a_pooler_is_for_services_alone() {
        let of =
            |pairs: &[(&str, &str)]| Connection::from_secret("s", "1", &secret(pairs)).expect("complete");
        let pooler = |host: &str, port| Some(Pooler { host: host.to_owned(), port });
        assert_eq!(of(&[]).endpoint.pooler, None);
        assert_eq!(of(&[("poolerHost", "p")]).endpoint.pooler, pooler("p", 6432));
        let pooled = of(&[("poolerHost", "p"), ("poolerPort", "7")]);
        assert_eq!(pooled.endpoint.pooler, pooler("p", 7));
        assert_eq!(pooled.subscription_conninfo(), of(&[]).subscription_conninfo());
        assert_eq!((pooled.options().get_host(), pooled.options().get_port()), ("db", 5432));
    }

    #[test]
    fn passwords_are_quoted_and_never_shown() {
        let connection = Connection::from_secret("s", "1", &secret(&[])).expect("complete");
        assert!(connection.subscription_conninfo().contains(r"password='it\'s \\ secret'"));
        assert!(!format!("{connection:?}").contains("secret'"));
        assert!(!format!("{connection:?}").contains("it's"));
    }

    #[test]
    fn encryption_is_what_the_secret_asks() {
        let authority = ("ca.crt", "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n");
        let file = ("replicationSslRootCert", "/etc/ca.crt");
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        let cases: [(Pairs<'_>, &str, &str); 6] = [
            (&[], "Prefer", "sslmode='prefer'"),
            (&[("sslmode", "disable")], "Disable", "sslmode='disable'"),
            (&[authority], "VerifyFull", "sslmode='require'"),
            (&[authority, file], "VerifyFull", "sslmode='verify-full'"),
            (&[authority, file, ("sslmode", "verify-ca")], "VerifyCa", "sslmode='verify-ca'"),
            (&[("sslmode", "require")], "Require", "sslmode='require'"),
        ];
        for (pairs, own, subscription) in cases {
            let connection = Connection::from_secret("s", "1", &secret(pairs)).expect("complete");
            assert_eq!(format!("{:?}", connection.options().get_ssl_mode()), own, "{pairs:?}");
            let conninfo = connection.subscription_conninfo();
            assert!(conninfo.contains(subscription), "{pairs:?}");
            assert_eq!(conninfo.contains("sslrootcert='/etc/ca.crt'"), pairs.contains(&file), "{pairs:?}");
        }
    }
}

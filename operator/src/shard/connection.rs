//! From a connection Secret to a way in.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use sqlx::{ConnectOptions, postgres::PgConnectOptions};

/// Where a shard is. No credentials: shards tell each other's endpoints to routers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    pub dbname: String,
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

/// How to reach a shard: as the operator, and as a peer's subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub secret_name: String,
    pub endpoint: Endpoint,
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
    /// Reads the keys host, port, dbname, username, password, replicationUsername and replicationPassword.
    ///
    /// # Errors
    /// Names the key that is missing or malformed; never its value.
    pub fn from_secret(secret_name: &str, data: &BTreeMap<String, ByteString>) -> Result<Self, SecretError> {
        let text = |key: &'static str| {
            let value = data.get(key).ok_or(SecretError::Missing { key })?;
            let value = std::str::from_utf8(&value.0).map_err(|_| SecretError::Invalid { key })?.trim();
            let valid = !value.is_empty() && value.len() <= 1024 && !value.contains(['\0', '\n']);
            if valid { Ok(value.to_owned()) } else { Err(SecretError::Invalid { key }) }
        };
        let port = text("port")?.parse().ok().filter(|port| *port > 0);
        Ok(Self {
            secret_name: secret_name.to_owned(),
            endpoint: Endpoint {
                host: text("host")?,
                port: port.ok_or(SecretError::Invalid { key: "port" })?,
                dbname: text("dbname")?,
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
        PgConnectOptions::new_without_pgpass()
            .host(&self.endpoint.host)
            .port(self.endpoint.port)
            .database(&self.endpoint.dbname)
            .username(&self.operator.username)
            .password(&self.operator.password)
            .application_name("longshore-operator")
            .disable_statement_logging()
    }

    /// The connection string of a peer's subscription to this shard.
    #[must_use]
    pub fn subscription_conninfo(&self) -> String {
        let pairs = [
            ("host", self.endpoint.host.as_str()),
            ("port", &self.endpoint.port.to_string()),
            ("dbname", &self.endpoint.dbname),
            ("user", &self.replication.username),
            ("password", &self.replication.password),
            ("application_name", "longshore-subscription"),
        ];
        pairs
            .map(|(key, value)| format!("{key}='{}'", value.replace('\\', r"\\").replace('\'', r"\'")))
            .join(" ")
    }
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
            let error = Connection::from_secret("s", &secret(pairs)).expect_err("a fault");
            assert_eq!(error.to_string(), expected);
        };
        check(&[("host", "absent")], "key \"host\" is missing");
        check(&[("port", "seven")], "key \"port\" is not valid");
        check(&[("port", "0")], "key \"port\" is not valid");
        check(&[("password", "")], "key \"password\" is not valid");
    }

    #[test]
    fn passwords_are_quoted_and_never_shown() {
        let connection = Connection::from_secret("s", &secret(&[])).expect("complete");
        assert!(connection.subscription_conninfo().contains(r"password='it\'s \\ secret'"));
        assert!(!format!("{connection:?}").contains("secret'"));
        assert!(!format!("{connection:?}").contains("it's"));
    }
}

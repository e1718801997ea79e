//! How to reach a cluster and as whom, from a spec and its Secrets.

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client};
use longshore_crds::kafka_topic_set::{ClusterRef, SaslMechanism};
use rdkafka::ClientConfig;
use tokio_rustls::rustls::{
    self, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// Two of the same lead to the same cluster as the same user. Shows nothing that is secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) bootstrap: String,
    pub(crate) tls: Option<Tls>,
    pub(crate) sasl: Option<Sasl>,
}

/// In PEM.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    authorities: Option<String>,
    /// The operator's own certificate and its key.
    identity: Option<(String, String)>,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Sasl {
    pub(crate) mechanism: SaslMechanism,
    pub(crate) username: String,
    pub(crate) password: String,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("bootstrap", &self.bootstrap).finish_non_exhaustive()
    }
}

/// Why a Secret is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct AccessError {
    pub(crate) reason: &'static str,
    message: String,
}

impl Access {
    /// I/O: reads the Secrets that a set names.
    pub(crate) async fn read(
        client: &Client,
        namespace: &str,
        cluster: &ClusterRef,
    ) -> Result<Self, AccessError> {
        let tls = match &cluster.tls {
            None => None,
            Some(tls) => match &tls.secret_name {
                None => Some(Tls::default()),
                Some(name) => Some(Tls::of(name, &secret(client, namespace, name).await?)?),
            },
        };
        let sasl = match &cluster.sasl {
            None => None,
            Some(sasl) => {
                let data = secret(client, namespace, &sasl.secret_name).await?;
                let required = |key| {
                    text(&sasl.secret_name, &data, key)?
                        .ok_or_else(|| invalid(&sasl.secret_name, &format!("key {key:?} is missing")))
                };
                let (username, password) = (required("username")?, required("password")?);
                Some(Sasl { mechanism: sasl.mechanism, username, password })
            }
        };
        Ok(Self { bootstrap: cluster.bootstrap_servers.clone(), tls, sasl })
    }

    /// The brokers to ask first, as host and port.
    pub(crate) fn endpoints(&self) -> Vec<(String, u16)> {
        let parts = self.bootstrap.split(',').filter_map(|endpoint| endpoint.rsplit_once(':'));
        let plain = |host: &str| host.trim_matches(['[', ']']).to_owned();
        parts.filter_map(|(host, port)| Some((plain(host), port.parse().ok()?))).collect()
    }

    /// For librdkafka.
    pub(crate) fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "PLAINTEXT",
            (Some(_), None) => "SSL",
            (None, Some(_)) => "SASL_PLAINTEXT",
            (Some(_), Some(_)) => "SASL_SSL",
        };
        config.set("bootstrap.servers", &self.bootstrap).set("security.protocol", protocol);
        config.set("client.id", super::connection::CLIENT_ID);
        if let Some(tls) = &self.tls {
            if let Some(authorities) = &tls.authorities {
                config.set("ssl.ca.pem", authorities);
            }
            if let Some((certificate, key)) = &tls.identity {
                config.set("ssl.certificate.pem", certificate).set("ssl.key.pem", key);
            }
        }
        if let Some(sasl) = &self.sasl {
            config.set("sasl.mechanism", word(sasl.mechanism));
            config.set("sasl.username", &sasl.username).set("sasl.password", &sasl.password);
        }
        config
    }
}

impl Tls {
    fn of(name: &str, data: &BTreeMap<String, ByteString>) -> Result<Self, AccessError> {
        let identity = match (text(name, data, "tls.crt")?, text(name, data, "tls.key")?) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (Some(_), None) | (None, Some(_)) => {
                return Err(invalid(name, "tls.crt and tls.key come together"));
            }
        };
        let tls = Self { authorities: text(name, data, "ca.crt")?, identity };
        // What is malformed is said now, by the name of its Secret.
        tls.config().map_err(|message| invalid(name, &message))?;
        Ok(tls)
    }

    /// For our own connections.
    pub(crate) fn config(&self) -> Result<Arc<rustls::ClientConfig>, String> {
        let mut roots = RootCertStore::empty();
        match &self.authorities {
            Some(pem) => {
                for certificate in certificates("ca.crt", pem)? {
                    roots.add(certificate).map_err(|error| format!("ca.crt: {error}"))?;
                }
            }
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let config = match &self.identity {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                    .map_err(|_| "tls.key is not a private key in PEM".to_owned())?;
                config
                    .with_client_auth_cert(certificates("tls.crt", chain)?, key)
                    .map_err(|error| format!("tls.crt, tls.key: {error}"))?
            }
        };
        Ok(Arc::new(config))
    }
}

fn certificates(key: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    read.ok().filter(|read| !read.is_empty()).ok_or_else(|| format!("{key} is no certificate in PEM"))
}

/// As Kafka spells it.
pub(crate) fn word(mechanism: SaslMechanism) -> &'static str {
    match mechanism {
        SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
        SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
        SaslMechanism::Plain => "PLAIN",
    }
}

async fn secret(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<BTreeMap<String, ByteString>, AccessError> {
    let error = |reason, what: String| AccessError { reason, message: format!("Secret {name:?} {what}") };
    let found = Api::<Secret>::namespaced(client.clone(), namespace).get_opt(name).await;
    let found = found.map_err(|why| error("SecretUnreadable", format!("cannot be read: {why}")))?;
    let found = found.ok_or_else(|| error("SecretNotFound", "does not exist; create it".to_owned()))?;
    Ok(found.data.unwrap_or_default())
}

fn text(
    name: &str,
    data: &BTreeMap<String, ByteString>,
    key: &'static str,
) -> Result<Option<String>, AccessError> {
    let text = |value: &ByteString| {
        String::from_utf8(value.0.clone()).map_err(|_| invalid(name, &format!("key {key:?} is not text")))
    };
    let found = data.get(key).map(text).transpose()?;
    Ok(found
        .map(|text| if text.contains("-----BEGIN") { text } else { text.trim_end_matches('\n').to_owned() }))
}

fn invalid(name: &str, what: &str) -> AccessError {
    AccessError { reason: "SecretInvalid", message: format!("Secret {name:?}: {what}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_nothing_secret_is_shown() {
        let sasl =
            Sasl { mechanism: SaslMechanism::ScramSha512, username: "u".into(), password: "hush".into() };
        let access = Access { bootstrap: "a:9092,[::1]:9093".into(), tls: None, sasl: Some(sasl) };
        assert_eq!(access.endpoints(), [("a".to_owned(), 9092), ("::1".to_owned(), 9093)]);
        assert!(!format!("{access:?}").contains("hush"));
    }

    #[test]
    fn a_malformed_secret_is_named_without_its_value() {
        let data = BTreeMap::from([("ca.crt".to_owned(), ByteString(b"hush".to_vec()))]);
        let error = Tls::of("ca", &data).err().unwrap().to_string();
        assert_eq!(error, "Secret \"ca\": ca.crt is no certificate in PEM");
    }
}

//! What a user brings along: passwords, and certificates of an authority. Made anew for each shop.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose};
use uuid::Uuid;

use crate::{authority::Authority, postgres::Role};

const DBNAME: &str = "orders";
const ADMINISTRATOR: &str = "postgres";
/// Of every server.
pub(super) const PORT: u16 = 5432;
const POOLER_PORT: u16 = 6432;
const KAFKA_USER: &str = "longshore-operator";
/// Where a server finds the authority that signed for its peers.
const AUTHORITY_FILE: &str = "/etc/longshore/tls/ca.crt";

pub(super) struct Secrets {
    authority: Authority,
    administrator: String,
    operator: String,
    replication: String,
    service: String,
    kafka: String,
}

impl Secrets {
    pub(super) fn new() -> Result<Self> {
        let password = || Uuid::new_v4().simple().to_string();
        Ok(Self {
            authority: Authority::new()?,
            administrator: password(),
            operator: password(),
            replication: password(),
            service: password(),
            kafka: password(),
        })
    }

    /// Where the harness looks at a shard as its administrator, by HOST:PORT, which no certificate is for.
    pub(super) fn admin_url(&self, address: &str) -> String {
        format!("postgres://{ADMINISTRATOR}:{}@{address}/{DBNAME}?sslmode=require", self.administrator)
    }

    pub(super) async fn apply(&self, client: &Client, namespace: &str, servers: &[String]) -> Result<()> {
        let authority = self.authority.certificate();
        for server in servers {
            let name = format!("shard-{server}");
            let (host, pooler) =
                (format!("{name}.{namespace}.svc"), format!("{name}-pooler.{namespace}.svc"));
            let port = PORT.to_string();
            let pooler_port = POOLER_PORT.to_string();
            let connection = [
                ("host", host.as_str()),
                ("port", &port),
                ("dbname", DBNAME),
                ("username", Role::Operator.name()),
                ("password", &self.operator),
                ("replicationUsername", Role::Replication.name()),
                ("replicationPassword", &self.replication),
                ("ca.crt", &authority),
                ("sslmode", "verify-full"),
                ("replicationSslRootCert", AUTHORITY_FILE),
                ("poolerHost", &pooler),
                ("poolerPort", &pooler_port),
            ];
            apply(client, namespace, &name, &connection).await?;
            let signed =
                self.authority.sign_server(&name, &[&name, &host, &format!("{name}-pooler"), &pooler])?;
            let tls =
                [("tls.crt", signed.certificate.as_str()), ("tls.key", &signed.key), ("ca.crt", &authority)];
            apply(client, namespace, &format!("{name}-tls"), &tls).await?;
            let administrator = [("username", ADMINISTRATOR), ("password", self.administrator.as_str())];
            apply(client, namespace, &format!("{name}-admin"), &administrator).await?;
        }
        let service =
            [("username", Role::Service.name()), ("password", &self.service), ("ca.crt", &authority)];
        apply(client, namespace, "order-shards", &service).await
    }

    /// Of the brokers, and of the operator as their user.
    pub(super) async fn apply_kafka(&self, client: &Client, namespace: &str) -> Result<()> {
        let authority = self.authority.certificate();
        let host = format!("kafka.{namespace}.svc");
        let mut params = CertificateParams::new([host, format!("*.kafka-brokers.{namespace}.svc")])?;
        params.distinguished_name.push(DnType::CommonName, "kafka");
        // Brokers know each other by it.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let signed = self.authority.sign(&params)?;
        let tls =
            [("tls.crt", signed.certificate.as_str()), ("tls.key", &signed.key), ("ca.crt", &authority)];
        apply(client, namespace, "kafka-tls", &tls).await?;
        let user = [("username", KAFKA_USER), ("password", &self.kafka), ("ca.crt", &authority)];
        apply(client, namespace, "kafka-operator", &user).await
    }
}

async fn apply(client: &Client, namespace: &str, name: &str, data: &[(&str, &str)]) -> Result<()> {
    let data: BTreeMap<String, String> =
        data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    let secret = Secret { metadata, string_data: Some(data), ..Secret::default() };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let applied =
        secrets.patch(name, &PatchParams::apply("longshore-e2e").force(), &Patch::Apply(&secret)).await;
    applied.with_context(|| format!("failed to apply Secret {name}"))?;
    Ok(())
}

//! One shard: a server of its own, the database `orders`, and the Secret that tells the operator of it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use crate::postgres::{Database, Role, Server, Version};

const DBNAME: &str = "orders";

#[derive(Debug)]
pub(super) struct Shard {
    name: String,
    server: Server,
    database: Database,
}

impl Shard {
    pub(super) async fn start(name: &str, version: Version) -> Result<Self> {
        let server = Server::start(version).await.with_context(|| format!("failed to start shard {name}"))?;
        let database = server.database(DBNAME).await?;
        Ok(Self { name: name.to_owned(), server, database })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    pub(super) fn database(&self) -> &Database {
        &self.database
    }

    pub(super) async fn apply_secret(&self, client: &Client, namespace: &str) -> Result<()> {
        let name = secret_name(&self.name);
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let secret = Secret { metadata, string_data: Some(self.connection()), ..Secret::default() };
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let created = secrets.create(&PostParams::default(), &secret).await;
        created.with_context(|| format!("failed to create Secret {name}"))?;
        Ok(())
    }

    fn connection(&self) -> BTreeMap<String, String> {
        let database = &self.database;
        [
            ("host", database.host().to_owned()),
            ("port", database.port().to_string()),
            ("dbname", database.dbname().to_owned()),
            ("username", Role::Operator.name().to_owned()),
            ("password", database.password(Role::Operator).to_owned()),
            ("replicationUsername", Role::Replication.name().to_owned()),
            ("replicationPassword", database.password(Role::Replication).to_owned()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }
}

/// `spec.shards[].connectionSecretName` of a shard.
pub(super) fn secret_name(shard: &str) -> String {
    format!("shard-{shard}")
}

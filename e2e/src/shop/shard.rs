//! One shard: a server, a database on it, maybe a proxy before it, and the Secret that tells the operator of it.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use crate::{
    postgres::{Database, Role, Server},
    proxy::{PostgresProxy, Recorder},
};

#[derive(Debug)]
pub(super) struct Shard {
    name: String,
    server: Arc<Server>,
    database: Database,
    proxy: Option<PostgresProxy>,
}

impl Shard {
    /// A new database on the server; with a recorder, all but the harness reach it through a proxy.
    pub(super) async fn start(
        name: &str,
        server: Arc<Server>,
        dbname: &str,
        recorder: Option<&Arc<Recorder>>,
    ) -> Result<Self> {
        let database = server.database(dbname).await?;
        let proxy = match recorder {
            Some(recorder) => Some(PostgresProxy::start(name, database.port(), Arc::clone(recorder)).await?),
            None => None,
        };
        Ok(Self { name: name.to_owned(), server, database, proxy })
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

    pub(super) fn proxy(&self) -> Option<&PostgresProxy> {
        self.proxy.as_ref()
    }

    /// The port that the operator, peers and services are told.
    fn port(&self) -> u16 {
        self.proxy.as_ref().map_or(self.database.port(), PostgresProxy::port)
    }

    /// As the order service is told of it.
    pub(super) fn seed(&self) -> String {
        format!("{}:{}/{}", self.database.host(), self.port(), self.database.dbname())
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
            ("port", self.port().to_string()),
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

//! One shard: a server, a database on it, maybe a proxy or a pooler before it, and the Secret that tells the operator of it.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
};

use super::rotation::Trust;
use crate::{
    postgres::{Database, Pooler, Role, Server},
    proxy::{PostgresProxy, Recorder},
};

/// Passwords by the names of roles.
pub(super) type RolePasswords = BTreeMap<&'static str, String>;

#[derive(Debug)]
pub(super) struct Shard {
    name: String,
    server: Arc<Server>,
    database: Database,
    proxy: Option<PostgresProxy>,
    pooler: Option<Pooler>,
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
        Ok(Self { name: name.to_owned(), server, database, proxy, pooler: None })
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

    pub(super) fn database_mut(&mut self) -> &mut Database {
        &mut self.database
    }

    pub(super) fn proxy(&self) -> Option<&PostgresProxy> {
        self.proxy.as_ref()
    }

    /// The port that the operator, peers and services are told.
    fn port(&self) -> u16 {
        self.proxy.as_ref().map_or(self.database.port(), PostgresProxy::port)
    }

    /// Puts a new proxy in the old one's place: another address, of which nobody knows before [`Self::apply_secret`].
    pub(super) async fn move_proxy(&mut self, recorder: &Arc<Recorder>) -> Result<()> {
        let proxy = PostgresProxy::start(&self.name, self.database.port(), Arc::clone(recorder)).await?;
        self.proxy = Some(proxy);
        Ok(())
    }

    /// Puts a pooler before the database: nobody knows of it before [`Self::apply_secret`]. Returns the one so far.
    pub(super) async fn start_pooler(&mut self) -> Result<Option<Pooler>> {
        Ok(self.pooler.replace(Pooler::start(&self.database).await?))
    }

    pub(super) fn pooler(&self) -> Option<&Pooler> {
        self.pooler.as_ref()
    }

    /// As the order service is told of it.
    pub(super) fn seed(&self) -> String {
        format!("{}:{}/{}", self.database.host(), self.port(), self.database.dbname())
    }

    /// Creates or changes the Secret: the server and its roles' passwords, and whom to trust.
    pub(super) async fn apply_secret(
        &self,
        client: &Client,
        namespace: &str,
        passwords: &RolePasswords,
        trust: Option<&Trust>,
    ) -> Result<()> {
        let name = secret_name(&self.name);
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let mut data = self.connection(passwords);
        data.extend(trust.into_iter().flat_map(Trust::secret_data));
        data.extend(self.pooler.iter().flat_map(|pooler| {
            let (host, port) = (self.database.host().to_owned(), pooler.port().to_string());
            [("poolerHost".to_owned(), host), ("poolerPort".to_owned(), port)]
        }));
        let secret = Secret { metadata, string_data: Some(data), ..Secret::default() };
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let applied =
            secrets.patch(&name, &PatchParams::apply("longshore-e2e").force(), &Patch::Apply(&secret)).await;
        applied.with_context(|| format!("failed to apply Secret {name}"))?;
        Ok(())
    }

    /// As they are now.
    pub(super) fn passwords(&self) -> RolePasswords {
        Role::ALL.map(|role| (role.name(), self.database.password(role).to_owned())).into()
    }

    fn connection(&self, passwords: &RolePasswords) -> BTreeMap<String, String> {
        let database = &self.database;
        let password = |role: Role| passwords.get(role.name()).cloned().unwrap_or_default();
        [
            ("host", database.host().to_owned()),
            ("port", self.port().to_string()),
            ("dbname", database.dbname().to_owned()),
            ("username", Role::Operator.name().to_owned()),
            ("password", password(Role::Operator)),
            ("replicationUsername", Role::Replication.name().to_owned()),
            ("replicationPassword", password(Role::Replication)),
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

//! A bounded pool of connections to each shard, and the credentials for them.

use std::{
    collections::BTreeMap,
    fs, io,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
    time::Duration,
};

use longshore_sharding::ShardName;
use sqlx::{
    PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{Endpoint, directory::Endpoints, errors::Fault};
use crate::settings::ShardSettings;

/// How long to wait for a free connection before looking at the map again: the bucket may have left meanwhile.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the credentials could not be read.
#[derive(Debug, thiserror::Error)]
#[error("failed to read credentials from {path}")]
pub struct CredentialsError {
    path: PathBuf,
    source: io::Error,
}

#[derive(Clone, PartialEq, Eq)]
struct Credentials {
    username: String,
    password: String,
}

impl Credentials {
    fn read(dir: &Path) -> Result<Self, CredentialsError> {
        let read = |name| {
            let path = dir.join(name);
            match fs::read_to_string(&path) {
                // People write these files with editors, which end them with a line break.
                Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
                Err(source) => Err(CredentialsError { path, source }),
            }
        };
        Ok(Self { username: read("username")?, password: read("password")? })
    }
}

/// The pools, one for each shard that may be asked.
pub(crate) struct Connections {
    service: &'static str,
    dir: PathBuf,
    pool_size: u32,
    credentials: Mutex<Credentials>,
    pools: RwLock<BTreeMap<ShardName, (Endpoint, PgPool)>>,
}

impl Connections {
    pub(crate) fn new(service: &'static str, settings: &ShardSettings) -> Result<Self, CredentialsError> {
        Ok(Self {
            service,
            dir: settings.credentials_dir.clone(),
            pool_size: settings.pool_size,
            credentials: Mutex::new(Credentials::read(&settings.credentials_dir)?),
            pools: RwLock::default(),
        })
    }

    /// Makes pools for new shards and endpoints and drops those no longer wanted; requests in flight keep the
    /// connections they hold. Nothing is connected yet.
    pub(crate) fn reconcile(&self, wanted: &Endpoints) {
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|shard, (endpoint, _)| wanted.get(shard) == Some(endpoint));
        for (shard, endpoint) in wanted {
            if !pools.contains_key(shard) {
                pools.insert(shard.clone(), (endpoint.clone(), self.pool_to(endpoint)));
            }
        }
    }

    pub(crate) fn pool(&self, shard: &ShardName) -> Option<PgPool> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools.get(shard).map(|(_, pool)| pool.clone())
    }

    pub(crate) fn pools(&self) -> Vec<(ShardName, PgPool)> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools.iter().map(|(shard, (_, pool))| (shard.clone(), pool.clone())).collect()
    }

    /// How to connect to `endpoint` under the name `application`.
    pub(crate) fn options(&self, endpoint: &Endpoint, application: &str) -> PgConnectOptions {
        let credentials = self.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        PgConnectOptions::new_without_pgpass()
            .host(&endpoint.host)
            .port(endpoint.port)
            .database(&endpoint.dbname)
            .username(&credentials.username)
            .password(&credentials.password)
            .application_name(application)
    }

    /// Reads the credentials again, since a shard refused them: they may have been rotated. Connections that stand
    /// stay; new ones use what was read.
    pub(crate) fn reload_credentials(&self) -> Result<(), CredentialsError> {
        let read = Credentials::read(&self.dir)?;
        {
            let mut credentials = self.credentials.lock().unwrap_or_else(PoisonError::into_inner);
            if *credentials == read {
                return Ok(());
            }
            *credentials = read;
        }
        tracing::info!("the credentials for the shards have changed");
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        for (endpoint, pool) in pools.values() {
            pool.set_connect_options(self.options(endpoint, self.service));
        }
        Ok(())
    }

    fn pool_to(&self, endpoint: &Endpoint) -> PgPool {
        PgPoolOptions::new()
            .max_connections(self.pool_size)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A lost connection costs a retry; a test before each use would cost each request a round trip.
            .test_before_acquire(false)
            .connect_lazy_with(self.options(endpoint, self.service))
    }
}

/// A connection taken from a pool, given back only once it is known to be idle and outside a transaction. A
/// request that is dropped half-way closes it: what the server is doing then is anyone's guess.
pub(crate) struct Lease {
    connection: PoolConnection<Postgres>,
    idle: bool,
}

impl Lease {
    pub(crate) async fn take(pool: &PgPool) -> Result<Self, sqlx::Error> {
        Ok(Self { connection: pool.acquire().await?, idle: false })
    }

    /// Keeps the connection unless the failure is its own. To be called when no transaction is open.
    pub(crate) fn settle<T>(mut self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        self.idle = !result.as_ref().is_err_and(|error| Fault::of(error).loses_connection());
        result
    }
}

impl Deref for Lease {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.idle {
            self.connection.close_on_drop();
        }
    }
}

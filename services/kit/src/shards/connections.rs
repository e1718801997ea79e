//! A bounded pool of connections to each shard, made with the credentials as they are now: to its pooler where it has one.
//!
//! Behind a PgBouncer in transaction mode no session outlasts a transaction. So nothing here sets anything for a session, every
//! lock and setting is a transaction's, and statements are prepared by name, which PgBouncer follows from 1.21 on.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use futures::future::join_all;
use longshore_sharding::ShardName;
use sqlx::{
    PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

use super::{
    Endpoint,
    credentials::{Credentials, CredentialsError},
    directory::Endpoints,
    errors::Fault,
};
use crate::settings::{ShardSettings, SslMode};

/// How long to wait for a connection before looking at the map again: the bucket may have left meanwhile.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long connecting may take, whoever waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How many connections stand to a shard before anybody asks for one: as many as requests use that come one after the other. If
/// there were none, the first moments of a load would be spent on everybody making their own.
const FIRST_CONNECTIONS: usize = 2;

/// How often the credentials are read at most.
const REREAD_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection given back may take for the pool's sign of life: without a bound, one whose server is out of reach
/// would keep its place in the pool until TCP gives up, a quarter of an hour later.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(2);

/// The pools, one for each shard that may be asked.
pub(crate) struct Connections {
    service: &'static str,
    dir: PathBuf,
    ssl_mode: Option<SslMode>,
    pool_size: u32,
    /// And when they were read last.
    credentials: Mutex<(Credentials, Instant)>,
    /// And where each connects to.
    pools: RwLock<BTreeMap<ShardName, (Endpoint, Pool)>>,
}

impl Connections {
    pub(crate) fn new(service: &'static str, settings: &ShardSettings) -> Result<Self, CredentialsError> {
        Ok(Self {
            service,
            dir: settings.credentials_dir.clone(),
            ssl_mode: settings.shard_sslmode,
            pool_size: settings.pool_size,
            credentials: Mutex::new((Credentials::read(&settings.credentials_dir)?, Instant::now())),
            pools: RwLock::default(),
        })
    }

    /// Makes pools for new shards and endpoints and drops those no longer wanted; requests in flight keep the
    /// connections they hold. Must be called in the context of a runtime, which makes the first connections meanwhile.
    pub(crate) fn reconcile(&self, wanted: &Endpoints) {
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|shard, (endpoint, _)| wanted.get(shard).is_some_and(|at| at.pooled() == endpoint));
        for (shard, at) in wanted {
            if !pools.contains_key(shard) {
                let pool = self.pool_to(at.pooled());
                #[expect(clippy::disallowed_methods, reason = "it ends soon, and nothing depends on it")]
                tokio::spawn(pool.clone().warm());
                pools.insert(shard.clone(), (at.pooled().clone(), pool));
            }
        }
    }

    pub(crate) fn pool(&self, shard: &ShardName) -> Option<Pool> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools.get(shard).map(|(_, pool)| pool.clone())
    }

    pub(crate) fn pools(&self) -> Vec<(ShardName, Pool)> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools.iter().map(|(shard, (_, pool))| (shard.clone(), pool.clone())).collect()
    }

    /// How to connect to `endpoint` under the name `application`.
    pub(crate) fn options(&self, endpoint: &Endpoint, application: &str) -> PgConnectOptions {
        let credentials = self.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        let options = PgConnectOptions::new_without_pgpass()
            .host(&endpoint.host)
            .port(endpoint.port)
            .database(&endpoint.dbname)
            // A PgBouncer refuses what it does not know; the server's own setting is exact.
            .extra_float_digits(None)
            .application_name(application);
        credentials.0.apply(options, self.ssl_mode)
    }

    /// Reads the credentials again: they may have been rotated. Connections that stand stay; new ones use what was read.
    pub(crate) fn reload_credentials(&self) -> Result<(), CredentialsError> {
        {
            let mut credentials = self.credentials.lock().unwrap_or_else(PoisonError::into_inner);
            let (known, read_at) = &mut *credentials;
            // Every request that waits for new ones asks for this.
            if read_at.elapsed() < REREAD_PAUSE {
                return Ok(());
            }
            *read_at = Instant::now();
            let read = Credentials::read(&self.dir)?;
            if *known == read {
                return Ok(());
            }
            *known = read;
        }
        tracing::info!("the credentials for the shards have changed");
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        for (endpoint, pool) in pools.values() {
            pool.connections.set_connect_options(self.options(endpoint, self.service));
        }
        Ok(())
    }

    fn pool_to(&self, endpoint: &Endpoint) -> Pool {
        Pool::new(self.pool_size, self.options(endpoint, self.service))
    }
}

/// A bounded pool of connections to one shard. To wait for a turn, and to connect, are two things: whoever has waited for long
/// would have no time left to connect, and of many who wait none ever would.
#[derive(Clone)]
pub(crate) struct Pool {
    connections: PgPool,
    /// One for each connection that there may be.
    turns: Arc<Semaphore>,
    /// Connections are made one at a time. Else a moment's delay makes everybody who waits begin one, and what that costs makes
    /// the delay longer.
    making: Arc<Semaphore>,
    /// Told of each connection that is given back.
    returned: Arc<Notify>,
}

impl Pool {
    fn new(size: u32, options: PgConnectOptions) -> Self {
        let connections = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(CONNECT_TIMEOUT)
            // A lost connection costs a retry; a test before each use would cost each request a round trip.
            .test_before_acquire(false)
            .connect_lazy_with(options);
        let turns = Arc::new(Semaphore::new(usize::try_from(size).unwrap_or(usize::MAX)));
        Self { connections, turns, making: Arc::new(Semaphore::new(1)), returned: Arc::default() }
    }

    /// I/O: makes the first connections. A shard that is out of reach has none: whoever needs one will be told.
    async fn warm(self) {
        let count = FIRST_CONNECTIONS.min(self.turns.available_permits());
        let first = join_all((0..count).map(|_| self.take())).await;
        let used = first.into_iter().flatten().map(async |mut lease| {
            // A PgBouncer connects to its server only now.
            let answer = sqlx::raw_sql("select 1").execute(&mut *lease).await;
            lease.settle(answer)
        });
        join_all(used).await;
    }

    /// I/O: a connection that stands, or a new one. One that takes too long is made all the same, for the next who asks.
    pub(crate) async fn take(&self) -> Result<Lease, sqlx::Error> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let turn = timeout_at(deadline, Arc::clone(&self.turns).acquire_owned()).await;
        // The semaphore is never closed.
        let Ok(Ok(turn)) = turn else { return Err(sqlx::Error::PoolTimedOut) };
        match timeout_at(deadline, self.idle_or_making()).await {
            Ok(Found::Idle(connection)) => Ok(self.lease(connection, turn)),
            Ok(Found::Making(making)) => {
                let connections = self.connections.clone();
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the handle is held for as long as anybody waits"
                )]
                let connecting = tokio::spawn(async move {
                    let connected = connections.acquire().await;
                    drop(making);
                    Ok((connected?, turn))
                });
                match timeout_at(deadline, connecting).await {
                    Ok(Ok(connected)) => connected.map(|(connection, turn)| self.lease(connection, turn)),
                    Ok(Err(_)) => Err(sqlx::Error::WorkerCrashed),
                    Err(_) => Err(sqlx::Error::PoolTimedOut),
                }
            }
            Err(_) => Err(sqlx::Error::PoolTimedOut),
        }
    }

    fn lease(&self, connection: PoolConnection<Postgres>, turn: OwnedSemaphorePermit) -> Lease {
        Lease { connection, idle: false, turn: Some(turn), returned: Arc::clone(&self.returned) }
    }

    /// Waits for a connection that is given back, or for the right to make one, whichever comes first.
    async fn idle_or_making(&self) -> Found {
        loop {
            if let Some(connection) = self.connections.try_acquire() {
                return Found::Idle(connection);
            }
            tokio::select! {
                () = self.returned.notified() => {}
                // The semaphore is never closed.
                Ok(making) = Arc::clone(&self.making).acquire_owned() => {
                    return self.connections.try_acquire().map_or(Found::Making(making), Found::Idle);
                }
            }
        }
    }

    /// I/O: runs one read. Dropped half-way it closes the connection.
    pub(crate) async fn lend<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let mut lease = self.take().await?;
        let result = work(&mut lease).await;
        lease.settle(result)
    }
}

/// What somebody with a turn got.
enum Found {
    Idle(PoolConnection<Postgres>),
    Making(OwnedSemaphorePermit),
}

/// A connection taken from a pool, given back only once it is known to be idle and outside a transaction. A
/// request that is dropped half-way closes it: what the server is doing then is anyone's guess.
pub(crate) struct Lease {
    connection: PoolConnection<Postgres>,
    idle: bool,
    turn: Option<OwnedSemaphorePermit>,
    returned: Arc<Notify>,
}

impl Lease {
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
            return;
        }
        let (giving_back, turn) = (self.connection.return_to_pool(), self.turn.take());
        let returned = Arc::clone(&self.returned);
        #[expect(clippy::disallowed_methods, reason = "the pool would spawn the same, without a bound")]
        tokio::spawn(async move {
            // Over time or not, the next has the turn.
            let _ = timeout(GIVE_BACK_TIMEOUT, giving_back).await;
            drop(turn);
            returned.notify_one();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{net::TcpListener, task::JoinSet};

    use super::*;

    const CONNECTIONS: u32 = 8;

    #[tokio::test]
    async fn whoever_waits_does_not_connect_as_well() -> std::io::Result<()> {
        // A server that says nothing.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let options = PgConnectOptions::new_without_pgpass()
            .host(&Ipv4Addr::LOCALHOST.to_string())
            .port(listener.local_addr()?.port());
        let pool = Pool::new(CONNECTIONS, options);
        let mut asking = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let pool = pool.clone();
            asking.spawn(async move { pool.take().await.err() });
        }
        let mut accepted = Vec::new();
        while !asking.is_empty() {
            tokio::select! {
                connection = listener.accept() => accepted.push(connection?),
                Some(asked) = asking.join_next() => {
                    assert!(matches!(asked, Ok(Some(sqlx::Error::PoolTimedOut))), "{asked:?}");
                }
            }
        }
        assert_eq!(accepted.len(), 1);
        Ok(())
    }
}

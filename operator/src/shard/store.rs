//! Everything the operator asks of a shard: one method, one statement or transaction.

use std::{collections::BTreeMap, time::Duration};

use longshore_crds::order_shard_set::TableSpec;
use longshore_sharding::{
    BucketId, KeyType, Ranges, ShardName,
    operation::{Cost, Course, Epoch, OperationId, Plan, StrayKind},
};
use serde_json::json;
use sqlx::{
    AssertSqlSafe, Connection as _, Executor, PgConnection, PgPool, Postgres, Row,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions, types::Oid},
};

use super::{ATTACH, Connection, Endpoint, Pooler, StoreError, agent, failed, view::View};

/// Rows that one clean-up transaction deletes: short enough to disturb nobody.
const CLEAR_ROWS: i64 = 5_000;
/// Sessions to one shard, of the 50 that the shop allows it in all.
const SESSIONS: u32 = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Which operator process acts: a number that rises, and a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    pub number: i64,
    pub holder: String,
}

/// What has become of a batch at its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Some of it is still on its way.
    Pending,
    /// All of it arrived.
    Owned,
    /// Some of it arrived with rows that differ.
    Refused,
}

/// Which database this is: two shards must not be one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    system_identifier: i64,
    database: u32,
}

/// A shard, through sessions that end with the operator's term.
#[derive(Debug, Clone)]
pub struct Shard {
    pub name: ShardName,
    pub connection: Connection,
    pool: PgPool,
    term: Term,
}

impl Shard {
    /// Opens one session that is bound to no term yet.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn connect(connection: &Connection) -> Result<PgConnection, StoreError> {
        Self::connect_with(&connection.options()).await
    }

    async fn connect_with(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
        let timed_out =
            |_| sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in 5 s"));
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(options)).await;
        opened.map_err(timed_out).flatten().map_err(failed("connect"))
    }

    /// Whether peers' subscriptions can log in to a shard.
    ///
    /// # Errors
    /// When they cannot, or the server cannot be reached.
    pub async fn try_replication(connection: &Connection) -> Result<(), StoreError> {
        let session = Self::connect_with(&connection.replication_options()).await?;
        session.close().await.map_err(failed("log in for replication"))
    }

    /// Reads which database this is.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn identity(connection: &mut PgConnection) -> Result<Identity, StoreError> {
        let failed = failed("identify the database");
        let row = sqlx::query(
            "select (select system_identifier from pg_control_system()) as system, oid from pg_database where datname = current_database()",
        )
        .fetch_one(connection)
        .await
        .map_err(&failed)?;
        let read = || {
            Ok(Identity {
                system_identifier: row.try_get("system")?,
                database: row.try_get::<Oid, _>("oid")?.0,
            })
        };
        read().map_err(failed)
    }

    /// Ends every older term on this shard; its sessions end with it.
    ///
    /// # Errors
    /// LS004 when a later term has begun.
    pub async fn claim(connection: &mut PgConnection, term: &Term) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.claim($1, $2)").bind(term.number).bind(&term.holder);
        query.execute(connection).await.map_err(failed("claim the term")).map(drop)
    }

    /// A shard whose sessions hold `term`. Connects when first used.
    #[must_use]
    pub fn new(name: ShardName, connection: Connection, term: &Term) -> Self {
        let held = term.clone();
        let options = PgPoolOptions::new()
            .max_connections(SESSIONS)
            .min_connections(0)
            .acquire_timeout(CONNECT_TIMEOUT)
            .after_connect(move |session, _| {
                let term = held.clone();
                Box::pin(async move {
                    let attach =
                        sqlx::query("select longshore.attach($1, $2)").bind(term.number).bind(term.holder);
                    session.execute(attach).await.map(drop)
                })
            });
        let pool = options.connect_lazy_with(connection.options());
        Self { name, connection, pool, term: term.clone() }
    }

    /// Takes another way in to the same shard: sessions that stand stay, new ones take it.
    pub fn set_connection(&mut self, connection: Connection) {
        self.pool.set_connect_options(connection.options());
        self.connection = connection;
    }

    /// Ends the sessions.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A session for several statements.
    ///
    /// # Errors
    /// When none can be had; LS004 when the term is over.
    pub async fn session(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        match self.pool.acquire().await {
            // The pool keeps to itself why it could not connect.
            Err(sqlx::Error::PoolTimedOut) => Err(self.why_not().await),
            session => session.map_err(failed("connect")),
        }
    }

    /// Why no session can be had: tries one outside the pool.
    async fn why_not(&self) -> StoreError {
        let mut session = match Self::connect(&self.connection).await {
            Ok(session) => session,
            Err(error) => return error,
        };
        let attach =
            sqlx::query("select longshore.attach($1, $2)").bind(self.term.number).bind(&self.term.holder);
        let attached = session.execute(attach).await;
        attached.err().map_or_else(|| failed("connect")(sqlx::Error::PoolTimedOut), failed(ATTACH))
    }

    /// The shard in one snapshot, with an operation's marks, and where in the ranges rows lie.
    ///
    /// # Errors
    /// When the shard cannot be asked, or answers what cannot be read.
    pub async fn observe(&self, operation: Option<OperationId>, ranges: &Ranges) -> Result<View, StoreError> {
        let failed = failed("observe the shard");
        let mut session = self.session().await?;
        let row = sqlx::query("select longshore.observe($1, $2::int4multirange)::text as view")
            .bind(operation.map(|operation| operation.0))
            .bind(multirange(ranges))
            .fetch_one(&mut *session)
            .await
            .map_err(&failed)?;
        let text: String = row.try_get("view").map_err(&failed)?;
        serde_json::from_str(&text).map_err(|error| failed(sqlx::Error::Decode(error.into())))
    }

    /// Where the shard believes its peers to be, and the names of their Secrets.
    ///
    /// # Errors
    /// When the shard cannot be asked.
    pub async fn known_shards(
        session: &mut PgConnection,
    ) -> Result<BTreeMap<String, (Endpoint, String)>, StoreError> {
        let failed = failed("read longshore.shard");
        // Through JSON, since an older agent knows of no poolers.
        let rows = sqlx::query(
            "select name, host, port, dbname, connection_secret,
                    to_jsonb(s) ->> 'pooler_host' as pooler_host, (to_jsonb(s) ->> 'pooler_port')::integer as pooler_port
             from longshore.shard s",
        )
        .fetch_all(session)
        .await
        .map_err(&failed)?;
        let port = |port: i32| u16::try_from(port).unwrap_or(0);
        let read = |row: &sqlx::postgres::PgRow| -> Result<_, sqlx::Error> {
            let pooler: (Option<String>, Option<i32>) =
                (row.try_get("pooler_host")?, row.try_get("pooler_port")?);
            let endpoint = Endpoint {
                host: row.try_get("host")?,
                port: port(row.try_get("port")?),
                dbname: row.try_get("dbname")?,
                pooler: pooler.0.zip(pooler.1).map(|(host, number)| Pooler { host, port: port(number) }),
            };
            Ok((row.try_get("name")?, (endpoint, row.try_get("connection_secret")?)))
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)
    }

    /// Tells the shard where all shards are.
    ///
    /// # Errors
    /// When the shard refuses; LS004 when the term is over.
    pub async fn set_shards(&self, version: i64, shards: &[Shard]) -> Result<(), StoreError> {
        let list: Vec<_> = shards
            .iter()
            .map(|shard| {
                let Endpoint { host, port, dbname, pooler } = &shard.connection.endpoint;
                json!({"name": shard.name, "host": host, "port": port, "dbname": dbname,
                       "poolerHost": pooler.as_ref().map(|pooler| &pooler.host),
                       "poolerPort": pooler.as_ref().map(|pooler| pooler.port),
                       "connectionSecret": shard.connection.secret_name})
            })
            .collect();
        let query = sqlx::query("select longshore.set_shards($1, $2, $3)");
        self.run("write longshore.shard", query.bind(self.term.number).bind(version).bind(json!(list))).await
    }

    /// Builds the index that finds a bucket's rows, without blocking writers. An invalid one, left by a build that died,
    /// is built anew.
    ///
    /// # Errors
    /// When the shard refuses.
    pub async fn index_buckets(
        &self,
        tables: &[TableSpec],
        key_type: KeyType,
        mask: u32,
    ) -> Result<(), StoreError> {
        let failed = failed("build a bucket index");
        let mut session = self.session().await?;
        for table in tables {
            let row = sqlx::query(
                "select longshore.qualified($1) as table_name, quote_ident($2) as key,
                        (select i.indisvalid from pg_index i join pg_class c on c.oid = i.indexrelid
                         where i.indrelid = longshore.qualified($1)::regclass and c.relname = $3) as valid",
            )
            .bind(&table.name)
            .bind(&table.key)
            .bind(index_name(table))
            .fetch_one(&mut *session)
            .await
            .map_err(&failed)?;
            let valid: Option<bool> = row.try_get("valid").map_err(&failed)?;
            if valid == Some(true) {
                continue;
            }
            let (name, key): (String, String) =
                (row.try_get("table_name").map_err(&failed)?, row.try_get("key").map_err(&failed)?);
            let (index, hash) = (quoted(&index_name(table)), key_type.hash_function());
            let schema = name.split_once('.').map_or("public", |(schema, _)| schema);
            for statement in [
                format!("drop index concurrently if exists {schema}.{index}"),
                format!("create index concurrently {index} on {name} (({hash}({key}, 0) & {mask}))"),
            ] {
                session.execute(AssertSqlSafe(statement)).await.map_err(&failed)?;
            }
        }
        Ok(())
    }

    /// Guards the tables and builds what depends on their columns, unless that was done for just these.
    ///
    /// # Errors
    /// When the shard refuses.
    pub async fn register(&self, tables: &[TableSpec], key_type: KeyType) -> Result<(), StoreError> {
        let failed = failed("register the tables");
        let key_type = match key_type {
            KeyType::Bigint => "bigint",
            KeyType::Uuid => "uuid",
        };
        let wanted = json!(tables);
        let mut session = self.session().await?;
        let mut tx = session.begin().await.map_err(&failed)?;
        sqlx::raw_sql("set local role longshore_owner; set local lock_timeout = '5s'")
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        // What the generated functions depend on: if any of it changes, they are made anew.
        let row = sqlx::query(
            "select registered, md5($1::text || $2 || (select string_agg(longshore.digest_columns(longshore.qualified(t ->> 'name')::regclass), ';')
                                   from jsonb_array_elements($1) t)) as current from longshore.meta",
        )
        .bind(&wanted)
        .bind(key_type)
        .fetch_one(&mut *tx)
        .await
        .map_err(&failed)?;
        let (registered, current): (String, String) =
            (row.try_get("registered").map_err(&failed)?, row.try_get("current").map_err(&failed)?);
        if registered != current {
            let query = sqlx::query("select longshore.register($1, $2, $3)")
                .bind(&wanted)
                .bind(key_type)
                .bind(&current);
            query.execute(&mut *tx).await.map_err(&failed)?;
        }
        let shape = "update longshore.meta set shape = longshore.schema_fingerprint() where shape <> longshore.schema_fingerprint()";
        sqlx::raw_sql(shape).execute(&mut *tx).await.map_err(&failed)?;
        tx.commit().await.map_err(failed)
    }

    /// Writes the plan and its course.
    ///
    /// # Errors
    /// As all of these: when the shard cannot be reached or refuses; LS004 when the term is over.
    pub async fn journal(&self, plan: &Plan, course: &Course, generation: i64) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.journal($1, $2, $3, $4, $5)");
        let query = query
            .bind(self.term.number)
            .bind(plan.id.0)
            .bind(json!(plan))
            .bind(json!(course))
            .bind(generation);
        self.run("write the journal", query).await
    }

    /// Owns buckets that nobody owns, or claims its own ones anew.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn own(&self, ranges: &Ranges, epoch: Epoch) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.own($1, $2::int4multirange, $3)");
        self.run("own buckets", query.bind(self.term.number).bind(multirange(ranges)).bind(epoch.0)).await
    }

    /// Never owns these buckets by an earlier handover.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn revoke(&self, ranges: &Ranges, epoch: Epoch) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.revoke($1, $2::int4multirange, $3)");
        self.run("revoke buckets", query.bind(self.term.number).bind(multirange(ranges)).bind(epoch.0)).await
    }

    /// Gives up buckets that `peer` owns under this higher epoch; the shard is quarantined with it.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn renounce(&self, ranges: &Ranges, epoch: Epoch, peer: &ShardName) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.renounce($1, $2::int4multirange, $3, $4)");
        let query = query.bind(self.term.number).bind(multirange(ranges)).bind(epoch.0);
        self.run("renounce buckets", query.bind(peer.as_str())).await
    }

    /// Lets the shard work on the server where it is now.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn rearm(&self) -> Result<(), StoreError> {
        self.run("re-arm the shard", sqlx::query("select longshore.rearm($1)").bind(self.term.number)).await
    }

    /// Leaves the shard to itself: its OrderShardSet was deleted.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn release(&self) -> Result<(), StoreError> {
        self.run("release the shard", sqlx::query("select longshore.release($1)").bind(self.term.number))
            .await
    }

    /// Whether the shard answers and runs where it was last compared with its peers.
    pub async fn is_calm(&self) -> bool {
        let Ok(mut session) = self.session().await else { return false };
        matches!(agent::is_suspect(&mut session).await, Ok(false))
    }

    /// Raises the epochs of owned buckets that shall go to `peer`.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn raise(
        &self,
        operation: OperationId,
        ranges: &Ranges,
        epoch: Epoch,
        peer: &ShardName,
    ) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.raise_epoch($1, $2, $3::int4multirange, $4, $5)");
        self.mark("raise epochs", query, operation, ranges, epoch, peer).await
    }

    /// Expects buckets from `peer`.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn expect(
        &self,
        operation: OperationId,
        ranges: &Ranges,
        epoch: Epoch,
        peer: &ShardName,
    ) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.expect($1, $2, $3::int4multirange, $4, $5)");
        self.mark("expect buckets", query, operation, ranges, epoch, peer).await
    }

    async fn mark(
        &self,
        what: &'static str,
        query: Statement<'_>,
        operation: OperationId,
        ranges: &Ranges,
        epoch: Epoch,
        peer: &ShardName,
    ) -> Result<(), StoreError> {
        let query = query.bind(self.term.number).bind(operation.0).bind(multirange(ranges)).bind(epoch.0);
        self.run(what, query.bind(peer.as_str().to_owned())).await
    }

    /// Publishes the rows of the ranges, and what is handed over to `peer`.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn publish(
        &self,
        name: &str,
        operation: OperationId,
        peer: &ShardName,
        ranges: &Ranges,
    ) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.publish($1, $2, $3, $4, $5::int4multirange)");
        let query = query
            .bind(self.term.number)
            .bind(name)
            .bind(operation.0)
            .bind(peer.as_str())
            .bind(multirange(ranges));
        self.run("create a publication", query).await
    }

    /// Makes the slot that a peer will follow. Waits until every transaction that runs now has ended, up to 10 s.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn create_slot(&self, name: &str) -> Result<(), StoreError> {
        let query = sqlx::query("select pg_create_logical_replication_slot($1, 'pgoutput')").bind(name);
        self.run_within("create a slot", 10_000, query).await
    }

    /// Follows `source`.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn subscribe(
        &self,
        name: &str,
        source: &Connection,
        copy_data: bool,
    ) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.subscribe($1, $2, $3, $4, $5)");
        let query =
            query.bind(self.term.number).bind(name).bind(source.subscription_conninfo()).bind(copy_data);
        self.run_within("create a subscription", 30_000, query.bind(&source.revision)).await
    }

    /// Lets a subscription follow `source` by another way in.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn resubscribe(&self, name: &str, source: &Connection) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.resubscribe($1, $2, $3, $4)");
        let query = query.bind(self.term.number).bind(name).bind(source.subscription_conninfo());
        self.run_within("alter a subscription", 30_000, query.bind(&source.revision)).await
    }

    /// Drops an object of a stream that is known to be there.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn drop_stream_object(&self, kind: StrayKind, name: &str) -> Result<(), StoreError> {
        match kind {
            StrayKind::Subscription => self.drop_subscription(name).await,
            StrayKind::Slot => {
                let query = sqlx::query(
                    "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1",
                );
                self.run("drop a slot", query.bind(name)).await
            }
            StrayKind::Publication => {
                let control = format!("{name}_c");
                let statement = format!("drop publication if exists {}, {}", quoted(name), quoted(&control));
                self.run("drop a publication", sqlx::query(AssertSqlSafe(statement))).await
            }
        }
    }

    /// With its slots at the source, those of tables still being copied included; without them where the source is gone.
    async fn drop_subscription(&self, name: &str) -> Result<(), StoreError> {
        let failed = failed("drop a subscription");
        let name = quoted(name);
        let mut session = self.session().await?;
        session.execute("set statement_timeout = '30s'").await.map_err(&failed)?;
        let dropped = session.execute(AssertSqlSafe(format!("drop subscription if exists {name}"))).await;
        if dropped.is_err() {
            for statement in [
                format!("alter subscription {name} disable"),
                format!("alter subscription {name} set (slot_name = none)"),
                format!("drop subscription {name}"),
            ] {
                session.execute(AssertSqlSafe(statement)).await.map_err(&failed)?;
            }
        }
        session.execute("reset statement_timeout").await.map_err(failed).map(drop)
    }

    /// Sends a mark to `peer`.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn probe(&self, operation: OperationId, peer: &ShardName) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.probe($1, $2, $3)");
        self.run("send a probe", query.bind(self.term.number).bind(operation.0).bind(peer.as_str())).await
    }

    /// The commit point: gives the buckets to `peer`, or gives up after `timeout_ms`.
    ///
    /// # Errors
    /// As [`Shard::journal`]; 57014 when writers did not let it through in time.
    pub async fn hand_over(
        &self,
        operation: OperationId,
        peer: &ShardName,
        buckets: &[BucketId],
        timeout_ms: u64,
    ) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.hand_over($1, $2, $3, $4)");
        let query = query.bind(self.term.number).bind(operation.0).bind(peer.as_str()).bind(numbers(buckets));
        self.run_within("hand buckets over", timeout_ms, query).await
    }

    /// What has become of buckets that were handed over to this shard.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn arrival(&self, buckets: &[BucketId]) -> Result<Arrival, StoreError> {
        let failed = failed("look for buckets");
        let mut session = self.session().await?;
        let row = sqlx::query(
            "select bool_and(state = 'owned') as owned, bool_or(state = 'refused') as refused from longshore.ownership where bucket = any ($1)",
        )
        .bind(numbers(buckets))
        .fetch_one(&mut *session)
        .await
        .map_err(&failed)?;
        let read = || Ok((row.try_get("owned")?, row.try_get("refused")?));
        Ok(match read().map_err(failed)? {
            (_, true) => Arrival::Refused,
            (true, false) => Arrival::Owned,
            (false, false) => Arrival::Pending,
        })
    }

    /// What lies in these buckets, after a look at the tables.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn estimate(&self, ranges: &Ranges) -> Result<Cost, StoreError> {
        self.analyze().await?;
        let failed = failed("estimate the cost");
        let mut session = self.session().await?;
        let row = sqlx::query("select longshore.estimate($1::int4multirange)::text as cost")
            .bind(multirange(ranges))
            .fetch_one(&mut *session)
            .await;
        let text: String = row.and_then(|row| row.try_get("cost")).map_err(&failed)?;
        serde_json::from_str(&text).map_err(|error| failed(sqlx::Error::Decode(error.into())))
    }

    /// Gathers the tables' statistics.
    ///
    /// # Errors
    /// As [`Shard::journal`].
    pub async fn analyze(&self) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.analyze_tables($1)").bind(self.term.number);
        self.run_within("analyze the tables", 60_000, query).await
    }

    /// Deletes some of the rows of buckets that are elsewhere.
    ///
    /// # Errors
    /// As [`Shard::journal`]; LS006 while a stream could carry the deletes.
    pub async fn clear(&self, ranges: &Ranges) -> Result<(), StoreError> {
        let query = sqlx::query("select longshore.clear($1, $2::int4multirange, $3)");
        self.run_within(
            "clear rows",
            30_000,
            query.bind(self.term.number).bind(multirange(ranges)).bind(CLEAR_ROWS),
        )
        .await
    }

    async fn run(&self, operation: &'static str, query: Statement<'_>) -> Result<(), StoreError> {
        self.run_within(operation, 10_000, query).await
    }

    async fn run_within(
        &self,
        operation: &'static str,
        timeout_ms: u64,
        query: Statement<'_>,
    ) -> Result<(), StoreError> {
        let failed = failed(operation);
        let mut session = self.session().await?;
        let mut tx = session.begin().await.map_err(&failed)?;
        let limit = AssertSqlSafe(format!("set local statement_timeout = {timeout_ms}"));
        sqlx::raw_sql(limit).execute(&mut *tx).await.map_err(&failed)?;
        query.execute(&mut *tx).await.map_err(&failed)?;
        tx.commit().await.map_err(failed)
    }
}

type Statement<'q> = sqlx::query::Query<'q, Postgres, sqlx::postgres::PgArguments>;

fn numbers(buckets: &[BucketId]) -> Vec<i32> {
    buckets.iter().map(|bucket| bucket.as_i32()).collect()
}

fn multirange(ranges: &Ranges) -> String {
    let parts: Vec<_> =
        ranges.as_slice().iter().map(|range| format!("[{},{}]", range.first, range.last)).collect();
    format!("{{{}}}", parts.join(","))
}

fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

fn index_name(table: &TableSpec) -> String {
    let name: String = table.name.rsplit('.').next().unwrap_or(&table.name).chars().take(48).collect();
    format!("longshore_{name}_b")
}

//! Two shards, a and b, set up as the operator does it: what the SQL tests stand on.
//!
//! They are two databases, of one server or of two. The agent is installed, the term claimed, the order tables are there and
//! registered, and a owns all of 64 buckets.

use std::{collections::BTreeMap, fmt::Debug, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use e2e::{
    awaiting::await_condition,
    postgres::{Database, Role, Server, Version},
    run_folder::RunFolder,
    settings,
};
use k8s_openapi::ByteString;
use longshore_crds::order_shard_set::TableSpec;
use longshore_operator::shard::{
    Connection, Shard, StoreError, Term,
    agent::{self, Membership},
    migrations, preflight,
};
use longshore_sharding::{
    BucketCount, BucketId, BucketRange, Key, KeyType, Ranges, ShardName,
    operation::{Epoch, OperationId, StrayKind},
};
use service_kit::{settings::ShardSettings, shards::ShardRouter};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row as _};
use tokio::sync::Mutex;
use uuid::Uuid;

/// Makes of each `async fn test(version: Version) -> Result<()>` a test on each PostgreSQL, named after it.
macro_rules! on_each_version {
    (@ $module:ident $version:ident: $($test:ident),*) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $test() -> anyhow::Result<()> {
                    super::$test(e2e::postgres::Version::$version).await
                }
            )*
        }
    };
    ($($test:ident),* $(,)?) => {
        on_each_version!(@ postgres_16 V16: $($test),*);
        on_each_version!(@ postgres_17 V17: $($test),*);
        on_each_version!(@ postgres_18 V18: $($test),*);
    };
}

pub(crate) const BUCKETS: u32 = 64;
pub(crate) const SET_UID: &str = "0f0e7d3c-0000-4000-8000-000000000001";
/// For what has to happen, however slow the machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// One shard.
pub(crate) struct Side {
    pub(crate) database: Database,
    pub(crate) shard: Shard,
}

/// Both shards, under one term.
pub(crate) struct Pair {
    pub(crate) a: Side,
    pub(crate) b: Side,
    shared: Option<Arc<Shared>>,
}

/// A server for the pairs of several tests, and the shards that they are copies of: half of what a test takes goes into making
/// those.
struct Shared {
    server: Server,
    a: Database,
    b: Database,
}

impl Shared {
    /// For one more pair. What tests leave behind, streams above all, goes when a server has served enough of them.
    async fn of(version: Version) -> Result<Arc<Self>> {
        const PAIRS: usize = 16;
        type Newest = Mutex<Option<(Arc<Shared>, usize)>>;
        static NEWEST: [Newest; 3] = [const { Newest::const_new(None) }; 3];
        let mut newest = NEWEST[version as usize].lock().await;
        let (shared, pairs) = match newest.take() {
            Some((shared, pairs)) if pairs < PAIRS => (shared, pairs),
            _ => (Arc::new(Self::start(version).await?), 0),
        };
        *newest = Some((Arc::clone(&shared), pairs + 1));
        Ok(shared)
    }

    async fn start(version: Version) -> Result<Self> {
        let server = Server::start(version).await?;
        let (a, b) = tokio::try_join!(Side::new(&server, "a"), Side::new(&server, "b"))?;
        Ok(Self { server, a: a.database, b: b.database })
    }

    async fn copy(&self, name: &str, template: &Database) -> Result<Side> {
        let database = self.server.scratch_copy(template).await?;
        let shard = Shard::new(shard_name(name), connection(&database), &term());
        Ok(Side { database, shard })
    }
}

impl Pair {
    /// On a server that other tests use too.
    pub(crate) async fn new(version: Version) -> Result<Self> {
        let shared = Shared::of(version).await?;
        let (a, b) = tokio::try_join!(shared.copy("a", &shared.a), shared.copy("b", &shared.b))?;
        Ok(Self { shared: Some(shared), ..Self::of(a, b).await? })
    }

    pub(crate) async fn on(server: &Server) -> Result<Self> {
        Self::between(server, server).await
    }

    /// Two servers, where what is done to one must not concern the other.
    pub(crate) async fn between(of_a: &Server, of_b: &Server) -> Result<Self> {
        let (a, b) = tokio::try_join!(Side::new(of_a, "a"), Side::new(of_b, "b"))?;
        Self::of(a, b).await
    }

    /// Two shards that nobody has told of each other yet.
    pub(crate) async fn of(a: Side, b: Side) -> Result<Self> {
        let known = [a.shard.clone(), b.shard.clone()];
        for side in [&a, &b] {
            side.shard.set_shards(1, &known).await?;
        }
        a.shard.own(&ranges(0, 63), Epoch(1)).await?;
        Ok(Self { a, b, shared: None })
    }

    /// Means the buckets, which a owns in epoch 1, for b: in epoch 2, in this operation.
    pub(crate) async fn announce(&self, operation: OperationId, moving: &Ranges) -> Result<()> {
        self.a.shard.raise(operation, moving, Epoch(2), &self.b.shard.name).await?;
        self.b.shard.expect(operation, moving, Epoch(2), &self.a.shard.name).await?;
        Ok(())
    }

    /// Both streams, in the operator's order; returns when every table follows.
    pub(crate) async fn connect(&self, operation: OperationId, moving: &Ranges) -> Result<()> {
        let (forward, reverse) = (self.forward(operation), self.reverse(operation));
        let (a, b) = (&self.a.shard, &self.b.shard);
        a.publish(&forward, operation, &b.name, moving).await?;
        b.publish(&reverse, operation, &a.name, moving).await?;
        a.create_slot(&forward).await?;
        b.create_slot(&reverse).await?;
        b.subscribe(&forward, &a.connection, true).await?;
        a.subscribe(&reverse, &b.connection, false).await?;
        self.await_followed(operation).await
    }

    /// Returns when every table of both streams follows.
    pub(crate) async fn await_followed(&self, operation: OperationId) -> Result<()> {
        for (side, name) in [(&self.b, &self.forward(operation)), (&self.a, &self.reverse(operation))] {
            await_condition(format!("{name} to follow"), DEADLINE, async || {
                let view = side.shard.observe(None, &Ranges::default()).await.ok()?;
                (view.subscriptions.get(name) == Some(&true)).then_some(())
            })
            .await?;
        }
        Ok(())
    }

    /// What the shared server wrote into its log.
    pub(crate) fn log(&self) -> Result<String> {
        let shared = self.shared.as_ref().context("the servers are the test's")?;
        Ok(std::fs::read_to_string(shared.server.log()?)?)
    }

    /// Drops the stream from a to b.
    pub(crate) async fn drop_forward(&self, operation: OperationId) -> Result<()> {
        drop_stream(&self.a.shard, &self.b.shard, &self.forward(operation)).await
    }

    /// Drops the stream from b to a.
    pub(crate) async fn drop_reverse(&self, operation: OperationId) -> Result<()> {
        drop_stream(&self.b.shard, &self.a.shard, &self.reverse(operation)).await
    }

    pub(crate) fn forward(&self, operation: OperationId) -> String {
        format!("ls_{}_{operation}_a_b", self.tag())
    }

    pub(crate) fn reverse(&self, operation: OperationId) -> String {
        format!("ls_{}_{operation}_b_a", self.tag())
    }

    /// Slots are shared by all databases of a server.
    fn tag(&self) -> &str {
        let name = self.a.database.dbname();
        &name[name.len() - 12..]
    }

    /// Plays the stream for one bucket: brings the newest handover of it from a to b.
    pub(crate) async fn deliver(&self, bucket: u16) -> Result<()> {
        let mut a = self.a.database.connect_admin().await?;
        let text = format!(
            "select format('%s, %L, %L, %s, %s, %s, %s, now(), now()', operation, giver, peer, bucket, epoch, rows, digest)
             from longshore.handover where bucket = {bucket} order by epoch desc limit 1"
        );
        let row: String = value(&mut a, &text).await?;
        self.b.receive(&row).await
    }
}

async fn drop_stream(source: &Shard, destination: &Shard, name: &str) -> Result<()> {
    destination.drop_stream_object(StrayKind::Subscription, name).await?;
    source.drop_stream_object(StrayKind::Slot, name).await?;
    source.drop_stream_object(StrayKind::Publication, name).await?;
    Ok(())
}

impl Side {
    pub(crate) async fn new(server: &Server, name: &str) -> Result<Self> {
        Self::with_agent(server, name, async |session| {
            agent::install(session, &membership(name)).await?;
            Ok(())
        })
        .await
    }

    /// A shard whose agent is installed like this.
    pub(crate) async fn with_agent(
        server: &Server,
        name: &str,
        install: impl AsyncFnOnce(&mut PgConnection) -> Result<()>,
    ) -> Result<Self> {
        let database = server.scratch_database().await?;
        let connection = connection(&database);
        let mut session = Shard::connect(&connection).await?;
        assert_eq!(preflight::server(&mut session).await?, [], "a server of the tests is as it should be");
        install(&mut session).await?;
        let term = term();
        Shard::claim(&mut session, &term).await?;
        let shard = Shard::new(shard_name(name), connection, &term);
        let mut session = shard.session().await?;
        migrations::migrate(&mut session, &order_migrations()?).await?;
        let preflight::Tables { key_type, findings } = preflight::tables(&mut session, &tables()).await?;
        drop(session);
        assert_eq!((key_type, findings), (Some(KeyType::Bigint), Vec::new()));
        let key_type = KeyType::Bigint;
        shard.index_buckets(&tables(), key_type, BUCKETS - 1).await?;
        shard.register(&tables(), key_type).await?;
        Ok(Self { database, shard })
    }

    /// A session as a service has it.
    pub(crate) async fn service(&self) -> Result<PgConnection> {
        self.database.connect(Role::Service).await
    }

    /// A superuser's session whose writes pass no trigger, as those of a stream do: for corruption and old copies.
    pub(crate) async fn unguarded(&self) -> Result<PgConnection> {
        let mut admin = self.database.connect_admin().await?;
        run(&mut admin, "set session_replication_role = replica").await?;
        Ok(admin)
    }

    /// A handover row as if a stream brought it; columns in the table's order.
    pub(crate) async fn receive(&self, row: &str) -> Result<()> {
        let mut stream = self.unguarded().await?;
        run(&mut stream, &format!("insert into longshore.handover values ({row})")).await?;
        Ok(())
    }

    /// State and epoch of a bucket.
    pub(crate) async fn ownership(&self, bucket: u16) -> Result<(String, i64)> {
        let mut admin = self.database.connect_admin().await?;
        let row = sqlx::query("select state, epoch from longshore.ownership where bucket = $1")
            .bind(i32::from(bucket))
            .fetch_one(&mut admin)
            .await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    }

    /// Returns when the bucket is in this state here.
    pub(crate) async fn await_state(&self, bucket: u16, state: &str) -> Result<()> {
        let what = format!("bucket {bucket} to be {state} at {}", self.shard.name);
        let mut admin = self.database.connect_admin().await?;
        await_condition(what, DEADLINE, async || {
            let text = format!("select state from longshore.ownership where bucket = {bucket}");
            let found: String = value(&mut admin, &text).await.ok()?;
            (found == state).then_some(())
        })
        .await
    }

    /// Everything that the agent remembers, as text: to see that nothing changed.
    pub(crate) async fn memory(&self) -> Result<String> {
        let mut admin = self.database.connect_admin().await?;
        let text = "select concat_ws(E'\\n',
            (select string_agg(m::text, ';') from longshore.meta m),
            (select string_agg(o::text, ';' order by bucket) from longshore.ownership o),
            (select string_agg(h::text, ';' order by h::text) from longshore.handover h),
            (select string_agg(j::text, ';' order by id) from longshore.operation j),
            (select string_agg(s::text, ';' order by name) from longshore.shard s),
            (select string_agg(t::text, ';' order by position) from longshore.sharded_table t),
            (select string_agg(pubname, ';' order by pubname) from pg_publication),
            (select string_agg(subname, ';' order by subname) from pg_subscription
             where subdbid = (select oid from pg_database where datname = current_database())),
            (select string_agg(slot_name, ';' order by slot_name) from pg_replication_slots
             where database = current_database()))";
        Ok(value(&mut admin, text).await?)
    }

    /// The digests of these buckets.
    pub(crate) async fn digests(&self, first: u16, last: u16) -> Result<Vec<String>> {
        let mut admin = self.database.connect_admin().await?;
        let text = format!(
            "select array_agg(d::text order by bucket)
             from longshore.digest(array(select generate_series({first}, {last}))) d"
        );
        Ok(value(&mut admin, &text).await?)
    }
}

/// A service's router that knows of this shard at first.
pub(crate) fn router(side: &Side, deadline: Duration) -> Result<ShardRouter> {
    router_at(side, side.database.port(), deadline)
}

/// As [`router`], where something else listens for the shard.
pub(crate) fn router_at(side: &Side, port: u16, deadline: Duration) -> Result<ShardRouter> {
    router_of(side, port, 4, deadline)
}

/// As [`router_at`], with pools of this size.
pub(crate) fn router_of(side: &Side, port: u16, pool_size: u32, deadline: Duration) -> Result<ShardRouter> {
    let database = &side.database;
    let folder = mount_credentials(database)?;
    let seed = format!("{}:{port}/{}", database.host(), database.dbname());
    let settings = ShardSettings {
        shard_seeds: vec![seed.parse()?],
        credentials_dir: folder,
        shard_sslmode: None,
        pool_size,
        shard_deadline_ms: u64::try_from(deadline.as_millis())?,
    };
    Ok(ShardRouter::start("tests", &settings)?)
}

/// Where routers of this database read their credentials.
pub(crate) fn credentials(database: &Database) -> Result<PathBuf> {
    RunFolder::current()?.folder(&format!("credentials-{}", database.dbname()), 0o700)
}

/// Lets them read the service's; returns where.
pub(crate) fn mount_credentials(database: &Database) -> Result<PathBuf> {
    let folder = credentials(database)?;
    std::fs::write(folder.join("username"), Role::Service.name())?;
    std::fs::write(folder.join("password"), database.password(Role::Service))?;
    Ok(folder)
}

/// Returns when a router shows here that it knows this version of the list.
pub(crate) async fn await_version(side: &Side, version: i64, deadline: Duration) -> Result<()> {
    let mut admin = side.database.connect_admin().await?;
    let text = format!(
        "select exists(select from pg_stat_activity where datname = current_database()
                       and application_name = 'longshore-router v={version}')"
    );
    await_condition(
        format!("a router at {} to know version {version}", side.shard.name),
        deadline,
        async || value(&mut admin, &text).await.ok().filter(|shown: &bool| *shown),
    )
    .await
    .map(drop)
}

pub(crate) fn connection(database: &Database) -> Connection {
    connection_as(database, Role::Operator.name(), database.password(Role::Operator))
}

/// The way in of another user than the operator's usual one.
pub(crate) fn connection_as(database: &Database, username: &str, password: &str) -> Connection {
    let replication = (Role::Replication.name(), database.password(Role::Replication));
    connection_of(database, (username, password), replication, "first")
}

/// The usual way in, but with another user for subscriptions: a Secret of this revision.
pub(crate) fn replication_as(
    database: &Database,
    username: &str,
    password: &str,
    revision: &str,
) -> Connection {
    let operator = (Role::Operator.name(), database.password(Role::Operator));
    connection_of(database, operator, (username, password), revision)
}

fn connection_of(
    database: &Database,
    operator: (&str, &str),
    replication: (&str, &str),
    revision: &str,
) -> Connection {
    let port = database.port().to_string();
    let data = [
        ("host", database.host()),
        ("port", &port),
        ("dbname", database.dbname()),
        ("username", operator.0),
        ("password", operator.1),
        ("replicationUsername", replication.0),
        ("replicationPassword", replication.1),
    ];
    let data = data.map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec())));
    Connection::from_secret("shard", revision, &BTreeMap::from(data)).expect("the Secret is complete")
}

pub(crate) fn membership(name: &str) -> Membership {
    Membership::new(shard_name(name), SET_UID, BucketCount::new(BUCKETS).expect("a power of two"))
}

fn term() -> Term {
    Term { number: 1, holder: "the tests".to_owned() }
}

pub(crate) fn order_migrations() -> Result<BTreeMap<String, String>> {
    let folder = settings::repository().join("services/order/migrations");
    let files = std::fs::read_dir(&folder).with_context(|| format!("no folder {}", folder.display()))?;
    let read = |file: std::io::Result<std::fs::DirEntry>| {
        let file = file?;
        Ok((file.file_name().to_string_lossy().into_owned(), std::fs::read_to_string(file.path())?))
    };
    files.map(read).collect()
}

pub(crate) fn tables() -> Vec<TableSpec> {
    let table = |name: &str| TableSpec { name: name.to_owned(), key: "user_id".to_owned() };
    ["orders", "order_items", "order_events", "idempotency_keys"].map(table).to_vec()
}

pub(crate) fn shard_name(name: &str) -> ShardName {
    name.try_into().expect("a valid name")
}

pub(crate) fn ranges(first: u16, last: u16) -> Ranges {
    BucketRange::new(first, last).into_iter().collect()
}

pub(crate) fn buckets(first: u16, last: u16) -> Vec<BucketId> {
    (first..=last).map(BucketId::new).collect()
}

pub(crate) fn bucket_of(user: i64) -> u16 {
    BucketCount::new(BUCKETS).expect("a power of two").bucket_of(Key::Bigint(user)).get()
}

/// The first user of a bucket.
pub(crate) fn user_in(bucket: u16) -> i64 {
    users_in(bucket, 1)[0]
}

pub(crate) fn users_in(bucket: u16, count: usize) -> Vec<i64> {
    (1..).filter(|user| bucket_of(*user) == bucket).take(count).collect()
}

/// An order without items, as SQL.
pub(crate) fn insert_order(user: i64, order: Uuid) -> String {
    format!("insert into orders values ({user}, '{order}', 'created', 0, '2026-01-01T00:00:00Z', 1)")
}

/// Runs statements without parameters; returns how many rows they touched.
pub(crate) async fn run(connection: &mut PgConnection, sql: &str) -> Result<u64, sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(|done| done.rows_affected())
}

/// The one value that a query answers.
pub(crate) async fn value<T>(connection: &mut PgConnection, sql: &str) -> Result<T, sqlx::Error>
where
    T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
{
    sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await?.try_get(0)
}

/// The server's SQLSTATE, "ok", or what else went wrong.
pub(crate) fn sqlstate<T>(result: &Result<T, sqlx::Error>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => code(error),
    }
}

/// As [`sqlstate`], for the store's methods.
pub(crate) fn store_sqlstate<T: Debug>(result: &Result<T, StoreError>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => code(&error.source),
    }
}

fn code(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    code.map_or_else(|| error.to_string(), std::borrow::Cow::into_owned)
}

/// The error's DETAIL as JSON.
pub(crate) fn detail<T: Debug>(result: Result<T, sqlx::Error>) -> Result<serde_json::Value> {
    let error = result.expect_err("an error with a DETAIL");
    let error = error.as_database_error().context("not the server's error")?;
    let detail = error.downcast_ref::<sqlx::postgres::PgDatabaseError>().detail().context("no DETAIL")?;
    Ok(serde_json::from_str(detail)?)
}

/// What an attempt answered; the session is out of its transaction after it.
pub(crate) async fn attempt(connection: &mut PgConnection, begin: &str, sql: &str) -> Result<String> {
    run(connection, begin).await?;
    let answer = sqlstate(&run(connection, sql).await);
    run(connection, "rollback").await?;
    Ok(answer)
}

//! A shard for a benchmark: a database as the operator makes it, without a cluster around it.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};
use k8s_openapi::ByteString;
use longshore_crds::order_shard_set::TableSpec;
use longshore_operator::shard::{
    Connection, Shard, Term,
    agent::{self, Membership},
    migrations,
};
use longshore_sharding::{BucketCount, KeyType};
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::{
    postgres::{Database, Role, Server},
    settings,
};

const SET_UID: &str = "the benchmark";
/// As order-shard-set.yaml of the shop has them: parents before children.
pub(super) const TABLES: [&str; 4] = ["orders", "order_items", "order_events", "idempotency_keys"];

/// One shard of a benchmark.
pub(super) struct BenchShard {
    pub(super) database: Database,
    pub(super) shard: Shard,
}

impl BenchShard {
    /// An empty shard in a new database: agent, tables, bucket indexes and guards are there; it owns nothing.
    pub(super) async fn new(server: &Server, name: &str, buckets: BucketCount) -> Result<Self> {
        let database = server.scratch_database().await?;
        let connection = connection(&database)?;
        let shard = name.try_into().context("a shard's name")?;
        let mut session = Shard::connect(&connection).await?;
        let membership = Membership::new(shard, SET_UID, buckets);
        agent::install(&mut session, &membership).await?;
        let term = Term { number: 1, holder: "the benchmark".to_owned() };
        Shard::claim(&mut session, &term).await?;
        migrations::migrate(&mut session, &order_migrations()?).await?;
        let shard = Shard::new(membership.shard, connection, &term);
        shard.index_buckets(&tables(), KeyType::Bigint, buckets.get() - 1).await?;
        shard.register(&tables(), KeyType::Bigint).await?;
        Ok(Self { database, shard })
    }

    /// Empties the tables, as no operator may, and has the server write out what it owes to its disk.
    pub(super) async fn empty(&self) -> Result<()> {
        let mut admin = self.database.connect_admin().await?;
        run(&mut admin, "set session_replication_role = replica").await?;
        run(&mut admin, &format!("truncate {}", TABLES.join(", "))).await?;
        run(&mut admin, "checkpoint").await
    }

    /// Rows of all tables.
    pub(super) async fn rows(&self) -> Result<u64> {
        let counts = TABLES.map(|table| format!("(select count(*) from {table})")).join(" + ");
        let mut admin = self.database.connect_admin().await?;
        let row = sqlx::query(AssertSqlSafe(format!("select {counts}"))).fetch_one(&mut admin).await?;
        Ok(row.try_get::<i64, _>(0)?.unsigned_abs())
    }
}

/// Runs statements without parameters.
pub(super) async fn run(session: &mut PgConnection, statements: &str) -> Result<()> {
    let done = sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(session).await;
    done.map(drop).with_context(|| format!("failed to run {statements:?}"))
}

fn connection(database: &Database) -> Result<Connection> {
    let port = database.port().to_string();
    let data = [
        ("host", database.host()),
        ("port", &port),
        ("dbname", database.dbname()),
        ("username", Role::Operator.name()),
        ("password", database.password(Role::Operator)),
        ("replicationUsername", Role::Replication.name()),
        ("replicationPassword", database.password(Role::Replication)),
    ];
    let data = data.map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec())));
    Ok(Connection::from_secret("bench", "", &BTreeMap::from(data))?)
}

fn order_migrations() -> Result<BTreeMap<String, String>> {
    let folder = settings::repository().join("services/order/migrations");
    let files = fs::read_dir(&folder).with_context(|| format!("no folder {}", folder.display()))?;
    let read = |file: std::io::Result<fs::DirEntry>| {
        let file = file?;
        Ok((file.file_name().to_string_lossy().into_owned(), fs::read_to_string(file.path())?))
    };
    files.map(read).collect()
}

fn tables() -> Vec<TableSpec> {
    TABLES.map(|name| TableSpec { name: name.to_owned(), key: "user_id".to_owned() }).to_vec()
}

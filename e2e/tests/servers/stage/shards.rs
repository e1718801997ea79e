//! The databases of a stage's shards, and what is asked of them.

use anyhow::Result;
use e2e::{
    postgres::{Database, Role, Server, Version},
    shop::order_shard_set::OrderShardSet,
};
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::Value;
use sqlx::PgConnection;

use super::{ORDER_TABLES, Stage, run, value};

pub(crate) const VERSION: Version = Version::V17;

/// A database of the server that most tests share.
pub(crate) async fn database() -> Result<Database> {
    Server::shared(VERSION).await?.scratch_database().await
}

impl Stage {
    /// As [`Self::with_arguments`], with Secrets that lead to these databases, and a converged set like this.
    pub(crate) async fn with_set(
        prefix: &str,
        arguments: &[&str],
        [a, b]: [&Database; 2],
        spec: &Value,
    ) -> Result<(Self, OrderShardSet)> {
        let stage = Self::with_arguments(prefix, arguments).await?;
        stage.secret("shard-a", a).await?;
        stage.secret("shard-b", b).await?;
        let set = stage.set("orders");
        set.apply_spec(spec).await?;
        stage.await_converged(&set).await?;
        Ok((stage, set))
    }
}

pub(crate) async fn edit(set: &OrderShardSet, name: &str, patch: &Value) -> Result<DynamicObject> {
    Ok(set.api().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?)
}

/// The first user of a bucket, of 64.
pub(crate) async fn user_in(connection: &mut PgConnection, bucket: i32) -> Result<i64> {
    let text = format!(
        "select user_id from generate_series(1::bigint, 100000) user_id
         where (hashint8extended(user_id, 0) & 63) = {bucket} order by user_id limit 1"
    );
    value(connection, &text).await
}

pub(crate) async fn owned_by(connection: &mut PgConnection) -> Result<i64> {
    value(connection, "select count(*) from longshore.ownership where state = 'owned'").await
}

pub(crate) async fn rows_of(connection: &mut PgConnection) -> Result<i64> {
    let counts = ORDER_TABLES.map(|table| format!("(select count(*) from {table})"));
    value(connection, &format!("select {}", counts.join(" + "))).await
}

/// Slots, publications and subscriptions that an operation would have left.
pub(crate) async fn stream_objects(connection: &mut PgConnection) -> Result<i64> {
    let text = "select (select count(*) from pg_replication_slots where database = current_database())
                     + (select count(*) from pg_publication)
                     + (select count(*) from pg_subscription s join pg_database d on d.oid = s.subdbid
                        where d.datname = current_database())";
    value(connection, text).await
}

/// Holds the gate of a bucket until COMMIT, as a writer does but without a transaction id of its own: one that had an
/// id would keep the server from making a slot.
pub(crate) async fn hold_gate(shard: &Database, bucket: u16) -> Result<PgConnection> {
    let mut gate = shard.connect(Role::Service).await?;
    run(&mut gate, &format!("begin; select pg_advisory_xact_lock_shared(19539, {bucket})")).await?;
    Ok(gate)
}

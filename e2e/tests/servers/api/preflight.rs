//! What the operator says of shards that cannot be operated, and when it changes their schema.

use anyhow::{Context as _, Result};
use e2e::{
    awaiting::await_condition,
    postgres::{Database, Role, Server, Version},
    shop::order_shard_set::SetStatus,
};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::stage::{DEADLINE, ORDER_SCHEMA, Stage, order_spec, run, shards_json, value};

const VERSION: Version = Version::V17;

async fn database() -> Result<Database> {
    Server::shared(VERSION).await?.scratch_database().await
}

fn parcel_spec(schema: &str, shards: &[(&str, &str, u32)]) -> Value {
    json!({
        "buckets": 64,
        "schema": {"configMapName": schema},
        "tables": [{"name": "parcels", "key": "user_id"}, {"name": "stamps", "key": "user_id"}],
        "shards": shards_json(shards),
    })
}

#[tokio::test]
async fn all_faults_of_all_shards_are_told_at_once() -> Result<()> {
    const TABLES: &str = "create table parcels (user_id bigint, id int primary key, code text unique);
                          create unlogged table stamps (user_id bigint primary key)";
    const MEND: &str = "alter table parcels drop constraint parcels_pkey, add primary key (user_id, id),
                          drop constraint parcels_code_key, add unique (user_id, code);
                        alter table stamps set logged";
    let stage = Stage::new("faults").await?;
    for (name, database) in [("secret-a", database().await?), ("secret-b", database().await?)] {
        stage.secret(name, &database).await?;
    }
    let set = stage.set("parcels");
    stage.migrations("parcels", &[("0001.sql", TABLES)]).await?;
    set.apply_spec(&parcel_spec("parcels", &[("a", "secret-a", 100), ("b", "secret-b", 100)])).await?;
    let message = stage.await_degraded(&set, "parcels", "TableKindUnsupported").await?;
    for shard in ["a", "b"] {
        for what in [
            "ALTER TABLE stamps SET LOGGED",
            "ALTER TABLE parcels DROP CONSTRAINT parcels_pkey",
            "UNIQUE (user_id, code)",
        ] {
            let told = message
                .split("; shard ")
                .any(|told| told.contains(what) && told.trim_start_matches("shard ").starts_with(shard));
            assert!(told, "{shard}: {what}: {message}");
        }
    }
    stage.migrations("parcels", &[("0001.sql", TABLES), ("0002.sql", MEND)]).await?;
    stage.await_converged(&set).await?;
    Ok(())
}

#[tokio::test]
async fn shards_that_are_not_alike_are_told_apart() -> Result<()> {
    let stage = Stage::new("unlike").await?;
    let (a, b) = (database().await?, database().await?);
    stage.secret("secret-a", &a).await?;
    stage.secret("secret-b", &b).await?;
    let set = stage.set("orders");
    set.apply_spec(&order_spec(&[("a", "secret-a", 100)])).await?;
    stage.await_converged(&set).await?;
    // Behind the operator's back.
    run(&mut a.connect_admin().await?, "alter table orders add note text").await?;
    set.apply_spec(&order_spec(&[("a", "secret-a", 100), ("b", "secret-b", 100)])).await?;
    let message = stage.await_degraded(&set, "orders", "SchemaDiffers").await?;
    let mend = "ALTER TABLE orders ADD COLUMN note text";
    assert_eq!(
        message,
        format!("shard b: shard a has what is not here: orders: column note text; mend: {mend}")
    );
    run(&mut b.connect_admin().await?, mend).await?;
    stage.await_converged(&set).await?;
    Ok(())
}

#[tokio::test]
async fn a_migration_that_cannot_run_says_why() -> Result<()> {
    const CONCURRENTLY: &str = "create index concurrently orders_created_at on orders (created_at)";
    let stage = Stage::new("failing").await?;
    stage.secret("secret-a", &database().await?).await?;
    let set = stage.set("orders");
    stage.migrations(ORDER_SCHEMA, &[("0002.sql", CONCURRENTLY)]).await?;
    set.apply_spec(&order_spec(&[("a", "secret-a", 100)])).await?;
    let message = stage.await_degraded(&set, "orders", "MigrationFailed").await?;
    for what in ["0002.sql", "cannot run inside a transaction block", "CREATE INDEX IF NOT EXISTS"] {
        assert!(message.contains(what), "{message}");
    }
    let mended = CONCURRENTLY.replace("concurrently ", "");
    stage.migrations(ORDER_SCHEMA, &[("0002.sql", &mended)]).await?;
    stage.await_converged(&set).await?;
    Ok(())
}

#[tokio::test]
async fn a_migration_that_failed_on_one_shard_goes_on_there() -> Result<()> {
    let stage = Stage::new("halfway").await?;
    let (a, b) = (database().await?, database().await?);
    stage.secret("secret-a", &a).await?;
    stage.secret("secret-b", &b).await?;
    let mut at_b = b.connect_admin().await?;
    run(&mut at_b, "create table notes (id int)").await?;
    let notes = "create table notes (id int); create table more_notes (id int)";
    stage.migrations(ORDER_SCHEMA, &[("0002.sql", notes), ("0003.sql", "drop table more_notes")]).await?;
    let set = stage.set("orders");
    set.apply_spec(&order_spec(&[("a", "secret-a", 100), ("b", "secret-b", 100)])).await?;
    let message = stage.await_degraded(&set, "orders", "MigrationFailed").await?;
    assert!(message.starts_with("shard b: migration \"0002.sql\" failed"), "{message}");
    assert_eq!(applied(&mut a.connect_admin().await?).await?, "0001_orders.sql 0002.sql 0003.sql");
    assert_eq!(applied(&mut at_b).await?, "0001_orders.sql");
    run(&mut at_b, "drop table notes").await?;
    stage.await_converged(&set).await?;
    assert_eq!(applied(&mut at_b).await?, "0001_orders.sql 0002.sql 0003.sql");
    Ok(())
}

async fn applied(connection: &mut PgConnection) -> Result<String> {
    value(connection, "select coalesce(string_agg(name, ' ' order by name), '') from longshore.migration")
        .await
}

#[tokio::test]
async fn a_migration_waits_for_the_operation_to_end() -> Result<()> {
    let stage = Stage::new("frozen").await?;
    let shards = [database().await?, database().await?, database().await?];
    let names = ["secret-a", "secret-b", "secret-c"];
    for (name, database) in names.iter().zip(&shards) {
        stage.secret(name, database).await?;
    }
    let [mut at_a, mut at_b, mut at_c] = [
        shards[0].connect_admin().await?,
        shards[1].connect_admin().await?,
        shards[2].connect_admin().await?,
    ];
    for shard in [&mut at_a, &mut at_b, &mut at_c] {
        run(shard, "set statement_timeout = '60s'").await?;
    }
    let set = stage.set("orders");
    set.apply_spec(&order_spec(&[("a", names[0], 100)])).await?;
    stage.await_converged(&set).await?;
    let before = applied(&mut at_a).await?;

    // A writer that does not end keeps the operation open.
    let mut gate = shards[0].connect(Role::Service).await?;
    run(&mut gate, "begin; select pg_advisory_xact_lock_shared(19539, 0)").await?;
    set.apply_spec(&order_spec(&[("a", names[0], 100), ("b", names[1], 100)])).await?;
    let handing_over =
        |status: &SetStatus| status.operation().is_some_and(|operation| operation.phase == "HandingOver");
    stage.await_status(&set, "the handovers to begin", handing_over).await?;

    // A table that is still being copied would hold the next statement up, and it the slots of a server of both shards.
    let follows = "select exists (select from pg_subscription_rel) and not exists (select from pg_subscription_rel where srsubstate <> 'r')";
    let copied = async || value::<bool>(&mut at_b, follows).await.ok()?.then_some(());
    await_condition("shard b to follow shard a", DEADLINE, copied).await?;
    // What would keep a set from being opened does not keep an operation from going on.
    let unvalidated = "alter table orders add constraint later check (total_cents > -1) not valid";
    for shard in [&mut at_a, &mut at_b] {
        run(shard, unvalidated).await?;
    }
    // The new spec has the operator read the ConfigMap, and open the set anew, with a third shard.
    stage.migrations(ORDER_SCHEMA, &[("0002_note.sql", "alter table orders add note text")]).await?;
    set.apply_spec(&order_spec(&[("a", names[0], 100), ("b", names[1], 100), ("c", names[2], 100)])).await?;
    let generation = set.api().get("orders").await?.metadata.generation.context("it has one")?;
    let seen = |status: &SetStatus| {
        status.json().get("observedGeneration").and_then(Value::as_i64) == Some(generation)
            && status.condition("Degraded").is_some_and(|degraded| degraded.status == "False")
            && status.operation().is_some()
    };
    stage.await_status(&set, "the third shard to be seen", seen).await?;
    for shard in [&mut at_a, &mut at_b, &mut at_c] {
        assert_eq!(applied(shard).await?, before);
    }

    run(&mut gate, "commit").await?;
    let message = stage.await_degraded(&set, "orders", "ConstraintNotValidated").await?;
    assert_eq!(message.matches("VALIDATE CONSTRAINT later").count(), 2, "{message}");
    for shard in [&mut at_a, &mut at_b] {
        run(shard, "alter table orders drop constraint later").await?;
    }
    stage.await_converged(&set).await?;
    let after = format!("{before} 0002_note.sql");
    for shard in [&mut at_a, &mut at_b, &mut at_c] {
        let everywhere = async || (applied(shard).await.ok()? == after).then_some(());
        await_condition("the migration to be applied", DEADLINE, everywhere).await?;
    }
    Ok(())
}

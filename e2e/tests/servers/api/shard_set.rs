//! The operator's process against a real API server and real shards: what it says, refuses, mends and leaves alone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    awaiting::await_condition,
    postgres::{Role, Server},
    shop::order_shard_set::SetStatus,
};
use kube::api::{DeleteParams, DynamicObject, PostParams};
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio::process::Command;

use crate::stage::{
    DEADLINE, Stage, order_id, order_spec, run,
    shards::{VERSION, database, edit, hold_gate, owned_by, rows_of, stream_objects, user_in},
    shards_json, value,
};

/// Every row of an order, as text: what must not change, wherever it is.
async fn order_rows(connection: &mut PgConnection, id: &str) -> Result<String> {
    let text = format!(
        "select coalesce(string_agg(row, ' ' order by row), '') from (
           select row_to_json(o)::text as row from orders o where order_id = '{id}'
           union all select row_to_json(i)::text from order_items i where order_id = '{id}'
           union all select row_to_json(e)::text from order_events e where order_id = '{id}'
           union all select row_to_json(k)::text from idempotency_keys k where order_id = '{id}') rows"
    );
    value(connection, &text).await
}

#[tokio::test]
async fn a_long_transaction_is_named() -> Result<()> {
    let stage = Stage::new("long").await?;
    // A server of its own: the slot waits for transactions in all databases.
    let server = Server::start(VERSION).await?;
    let (a, b) = (server.database("orders").await?, database().await?);
    stage.secret("secret-a", &a).await?;
    stage.secret("secret-b", &b).await?;
    let set = stage.set("long");
    set.apply_spec(&order_spec(&[("a", "secret-a", 100)])).await?;
    stage.await_converged(&set).await?;
    let mut open = a.connect(Role::Service).await?;
    run(&mut open, "begin; select pg_current_xact_id()").await?;
    set.apply_spec(&order_spec(&[("a", "secret-a", 100), ("b", "secret-b", 100)])).await?;
    let message = stage.await_degraded(&set, "long", "LongTransactionBlocksSlot").await?;
    assert!(message.contains("pg_stat_activity"), "{message}");
    run(&mut open, "commit").await?;
    stage.await_converged(&set).await?;
    Ok(())
}

#[tokio::test]
async fn wrong_input_is_named_and_mended() -> Result<()> {
    let stage = Stage::new("input").await?;
    tokio::try_join!(
        a_missing_secret_and_a_wrong_password(&stage),
        a_server_without_logical_wal(&stage),
        a_primary_key_without_the_shard_key(&stage),
        two_shards_in_one_database(&stage),
    )?;
    Ok(())
}

async fn a_missing_secret_and_a_wrong_password(stage: &Stage) -> Result<()> {
    let (a, b) = (database().await?, database().await?);
    let set = stage.set("secret");
    stage.secret("secret-a", &a).await?;
    set.apply_spec(&order_spec(&[("a", "secret-a", 100), ("b", "secret-b", 100)])).await?;
    let message = stage.await_degraded(&set, "secret", "SecretNotFound").await?;
    assert!(message.contains("shard b") && message.contains("secret-b"), "{message}");
    stage.secret_with("secret-b", &b, "not the password").await?;
    let message = stage.await_degraded(&set, "secret", "AuthenticationFailed").await?;
    assert!(message.contains("shard b"), "{message}");
    assert!(!message.contains("not the password"), "{message}");
    stage.secret("secret-b", &b).await?;
    let status = stage.await_converged(&set).await?;
    let degraded = status.condition("Degraded").context("it is always there")?;
    assert_eq!((degraded.status, degraded.reason, degraded.message), ("False", "AsExpected", ""));
    Ok(())
}

async fn a_server_without_logical_wal(stage: &Stage) -> Result<()> {
    let server = Server::start_with(VERSION, &[("wal_level", "replica")]).await?;
    let (wrong, right) = (server.database("orders").await?, database().await?);
    let set = stage.set("wal");
    stage.secret("wal-a", &wrong).await?;
    set.apply_spec(&order_spec(&[("a", "wal-a", 100)])).await?;
    let message = stage.await_degraded(&set, "wal", "WalLevelNotLogical").await?;
    assert!(message.contains("ALTER SYSTEM SET wal_level = 'logical'"), "{message}");
    stage.secret("wal-a", &right).await?;
    stage.await_converged(&set).await?;
    let text = "select count(*) from pg_namespace where nspname = 'longshore'";
    let installed: i64 = value(&mut wrong.connect_admin().await?, text).await?;
    assert_eq!(installed, 0, "a server that cannot be a shard is left as it was");
    Ok(())
}

async fn a_primary_key_without_the_shard_key(stage: &Stage) -> Result<()> {
    const FIRST: &str = "create table parcels (id bigint primary key, user_id bigint not null)";
    const SECOND: &str = "alter table parcels drop constraint parcels_pkey, add primary key (user_id, id)";
    let set = stage.set("parcels");
    stage.secret("parcels-a", &database().await?).await?;
    stage.migrations("parcels", &[("0001.sql", FIRST)]).await?;
    let spec = json!({
        "buckets": 64,
        "schema": {"configMapName": "parcels"},
        "tables": [{"name": "parcels", "key": "user_id"}],
        "shards": shards_json(&[("a", "parcels-a", 100)]),
    });
    set.apply_spec(&spec).await?;
    let message = stage.await_degraded(&set, "parcels", "PrimaryKeyLacksShardKey").await?;
    assert!(message.contains("ALTER TABLE parcels DROP CONSTRAINT"), "{message}");
    stage.migrations("parcels", &[("0001.sql", FIRST), ("0002.sql", SECOND)]).await?;
    stage.await_converged(&set).await?;
    Ok(())
}

async fn two_shards_in_one_database(stage: &Stage) -> Result<()> {
    let (one, other) = (database().await?, database().await?);
    let set = stage.set("twins");
    stage.secret("twins-a", &one).await?;
    stage.secret("twins-b", &one).await?;
    set.apply_spec(&order_spec(&[("a", "twins-a", 100), ("b", "twins-b", 100)])).await?;
    let message = stage.await_degraded(&set, "twins", "SharedDatabase").await?;
    assert!(message.contains("shards a and b"), "{message}");
    stage.secret("twins-b", &other).await?;
    stage.await_converged(&set).await?;
    for shard in [&one, &other] {
        assert_eq!(owned_by(&mut shard.connect_admin().await?).await?, 32);
    }
    Ok(())
}

#[tokio::test]
async fn a_corrupted_row_is_refused_handed_back_and_reported() -> Result<()> {
    let (a, b) = (database().await?, database().await?);
    let spec = order_spec(&[("a", "shard-a", 100)]);
    let (stage, set) = Stage::with_set("spoiled", &[], [&a, &b], &spec).await?;
    let service = stage.start_service(&a).await?;
    let (mut at_a, mut at_b) = (a.connect_admin().await?, b.connect_admin().await?);

    // The last of the buckets that move: others are at b already when it is refused.
    let spoiled = user_in(&mut at_a, 31).await?;
    let order = service.place(spoiled, "first").await?;
    for bucket in [0, 1, 8, 20, 40, 63] {
        service.place(user_in(&mut at_a, bucket).await?, "first").await?;
    }
    let (shown, id) = (service.show(&order).await?, order_id(&order)?);
    let (rows, all_rows) = (order_rows(&mut at_a, id).await?, rows_of(&mut at_a).await?);

    let mut gate = hold_gate(&a, 0).await?;
    set.apply_spec(&order_spec(&[("a", "shard-a", 100), ("b", "shard-b", 100)])).await?;
    spoil(&mut at_b, b.dbname(), id).await?;
    run(&mut gate, "commit").await?;

    stage.await_degraded(&set, "orders", "DigestMismatch").await?;
    let back = |status: &SetStatus| status.last_phase() == Some("RolledBack") && status.operation().is_none();
    stage.await_status(&set, "the operation to be rolled back", back).await?;
    assert_eq!((owned_by(&mut at_a).await?, owned_by(&mut at_b).await?), (64, 0));
    let returned = "select count(*) from longshore.handover where peer = 'a' and bucket >= 0";
    assert!(value::<i64>(&mut at_b, returned).await? > 0, "what had arrived was handed back");
    assert_eq!((rows_of(&mut at_a).await?, rows_of(&mut at_b).await?), (all_rows, 0));
    for shard in [&mut at_a, &mut at_b] {
        assert_eq!(stream_objects(shard).await?, 0);
    }
    assert_eq!(order_rows(&mut at_a, id).await?, rows, "the spoiled row did not travel back");
    assert_eq!(service.show(&order).await?, shown);
    let second = service.place(spoiled, "second").await?;
    assert_eq!(service.show(&second).await?, second);

    // Nothing is tried again by itself; an edit of the spec does it, and takes the bucket along.
    set.apply_spec(&order_spec(&[("a", "shard-a", 100), ("b", "shard-b", 200)])).await?;
    let status = stage.await_converged(&set).await?;
    assert_eq!(status.last_phase(), Some("Completed"));
    assert_eq!(owned_by(&mut at_a).await? + owned_by(&mut at_b).await?, 64);
    assert_eq!(order_rows(&mut at_b, id).await?, rows, "the order moved as it was");
    assert_eq!(order_rows(&mut at_a, id).await?, "");
    assert_eq!((service.show(&order).await?, service.show(&second).await?), (shown, second));
    Ok(())
}

/// Changes an order at its future shard, once it was copied there and while it still may be refused.
async fn spoil(connection: &mut PgConnection, dbname: &str, id: &str) -> Result<()> {
    let follows = "select (select state from longshore.ownership where bucket = 31) = 'incoming'
                      and exists (select from pg_subscription_rel)
                      and not exists (select from pg_subscription_rel where srsubstate <> 'r')";
    let ready = async || value::<bool>(connection, follows).await.ok()?.then_some(());
    await_condition("shard b to follow shard a", DEADLINE, ready).await?;
    // As if a stream had written it: else the reverse stream would spoil the order at a alike.
    let origin = format!("spoiler_{dbname}");
    run(connection, "set session_replication_role = replica").await?;
    run(connection, &format!("select pg_replication_origin_create('{origin}')")).await?;
    run(connection, &format!("select pg_replication_origin_session_setup('{origin}')")).await?;
    let changed =
        run(connection, &format!("update orders set total_cents = 1 where order_id = '{id}'")).await?;
    ensure!(changed == 1, "{changed} orders were spoiled");
    run(connection, "select pg_replication_origin_session_reset()").await?;
    run(connection, &format!("select pg_replication_origin_drop('{origin}')")).await?;
    run(connection, "reset session_replication_role").await?;
    Ok(())
}

#[tokio::test]
async fn kubectl_shows_what_is_going_on() -> Result<()> {
    let (a, b) = (database().await?, database().await?);
    let spec = order_spec(&[("a", "shard-a", 100)]);
    let (stage, set) = Stage::with_set("shown", &[], [&a, &b], &spec).await?;
    let shown = kubectl_get(&stage).await?;
    let words: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words.len(), 2, "{shown}");
    assert_eq!(words[0], ["NAME", "SHARDS", "READY", "REASON", "PHASE", "MOVED", "AGE"], "{shown}");
    assert_eq!(words[1][..4], ["orders", "1", "True", "Converged"], "{shown}");

    let mut gate = hold_gate(&a, 0).await?;
    set.apply_spec(&order_spec(&[("a", "shard-a", 100), ("b", "shard-b", 100)])).await?;
    let handing_over =
        |status: &SetStatus| status.operation().is_some_and(|operation| operation.phase == "HandingOver");
    stage.await_status(&set, "the handovers to begin", handing_over).await?;
    let shown = kubectl_get(&stage).await?;
    let words: Vec<&str> = shown.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(words[..6], ["orders", "2", "False", "Rebalancing", "HandingOver", "0/32"], "{shown}");
    assert_eq!(stage.ask_operator("/healthz").await?, "ok\n");
    let metrics = stage.ask_operator("/metrics").await?;
    let of_set = format!("namespace=\"{}\",name=\"orders\"", stage.namespace);
    for line in [
        "longshore_leads 1".to_owned(),
        format!("longshore_operation_buckets{{{of_set}}} 32"),
        format!("longshore_operation_buckets_moved{{{of_set}}} 0"),
        format!("longshore_set_condition{{{of_set},condition=\"Ready\"}} 0"),
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line} in {metrics}");
    }
    run(&mut gate, "commit").await?;
    stage.await_converged(&set).await?;
    let shown = kubectl_get(&stage).await?;
    let words: Vec<&str> = shown.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(words[..4], ["orders", "2", "True", "Converged"], "{shown}");
    let metrics = stage.ask_operator("/metrics").await?;
    assert!(metrics.contains("\nlongshore_buckets_handed_over_total 32\n"), "{metrics}");
    Ok(())
}

async fn kubectl_get(stage: &Stage) -> Result<String> {
    let kubectl = stage.cluster.binaries().map_or("kubectl".into(), |folder| folder.join("kubectl"));
    let mut command = Command::new(kubectl);
    command.arg("--kubeconfig").arg(stage.cluster.kubeconfig()).args(["--namespace", &stage.namespace]);
    let output = command.args(["get", "oss"]).kill_on_drop(true).output().await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl ended with {}: {complaint}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn the_api_server_refuses_what_cel_can_say() -> Result<()> {
    let stage = Stage::without_operator("cel").await?;
    let set = stage.set("kept");
    set.apply_spec(&order_spec(&[("a", "shard-a", 100)])).await?;
    let with = |field: &str, value: Value| {
        let mut spec = order_spec(&[("a", "shard-a", 100)]);
        spec[field] = value;
        spec
    };
    let twins = shards_json(&[("a", "shard-a", 100), ("a", "shard-b", 100)]);
    let new = [
        (with("buckets", json!(1000)), "buckets must be a power of two from 1 to 65536"),
        (with("buckets", json!(131_072)), "should be less than or equal to 65536"),
        (with("shards", shards_json(&[("a", "shard-a", 0)])), "at least one shard needs a weight above 0"),
        (with("shards", twins), "Duplicate value"),
        (
            with("shards", shards_json(&[("Shard_A", "shard-a", 100)])),
            "spec.shards[0].name in body should match",
        ),
        (with("shards", json!([])), "should have at least 1 items"),
    ];
    for (spec, expected) in new {
        let object = json!({
            "apiVersion": "longshore.dev/v1alpha1", "kind": "OrderShardSet", "metadata": {"name": "new"}, "spec": spec,
        });
        let object: DynamicObject = serde_json::from_value(object)?;
        let refusal = set.api().create(&PostParams::default(), &object).await;
        let refusal = refusal.err().with_context(|| format!("not refused: {spec}"))?.to_string();
        assert!(refusal.contains(expected), "{refusal}");
    }
    let changed = [
        (json!({"buckets": 128}), "buckets is immutable"),
        (json!({"shards": shards_json(&[("b", "shard-b", 100)])}), "keep at least one shard"),
        (json!({"shards": shards_json(&[("a", "shard-b", 100)])}), "keep at least one shard"),
    ];
    for (spec, expected) in changed {
        let refusal = edit(&set, "kept", &json!({"spec": spec})).await;
        let refusal = refusal.err().with_context(|| format!("not refused: {spec}"))?.to_string();
        assert!(refusal.contains(expected), "{refusal}");
    }
    Ok(())
}

#[tokio::test]
async fn a_deleted_set_leaves_data_and_ownership() -> Result<()> {
    let (a, b) = (database().await?, database().await?);
    let spec = order_spec(&[("a", "shard-a", 100), ("b", "shard-b", 100)]);
    let (stage, set) = Stage::with_set("deleted", &[], [&a, &b], &spec).await?;
    let service = stage.start_service(&a).await?;
    let (mut at_a, mut at_b) = (a.connect_admin().await?, b.connect_admin().await?);
    let (low, high) = (user_in(&mut at_a, 0).await?, user_in(&mut at_a, 63).await?);
    let orders = [service.place(low, "before").await?, service.place(high, "before").await?];
    let owned = (owned_by(&mut at_a).await?, owned_by(&mut at_b).await?);
    let rows = (rows_of(&mut at_a).await?, rows_of(&mut at_b).await?);
    assert_eq!(owned, (32, 32));

    set.api().delete("orders", &DeleteParams::default()).await?;
    let gone = async || set.api().get_opt("orders").await.ok()?.is_none().then_some(());
    await_condition("the set to be gone", DEADLINE, gone).await?;
    assert_eq!((owned_by(&mut at_a).await?, owned_by(&mut at_b).await?), owned);
    assert_eq!((rows_of(&mut at_a).await?, rows_of(&mut at_b).await?), rows);
    for shard in [&mut at_a, &mut at_b] {
        assert_eq!(stream_objects(shard).await?, 0);
    }
    for order in &orders {
        assert_eq!(service.show(order).await?, *order);
    }
    for user in [low, high] {
        service.place(user, "after").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_leader_that_was_replaced_while_it_was_paused_ends() -> Result<()> {
    let mut stage = Stage::new("paused").await?;
    let a = database().await?;
    stage.secret("secret-a", &a).await?;
    let set = stage.set("paused");
    set.apply_spec(&order_spec(&[("a", "secret-a", 100)])).await?;
    stage.await_converged(&set).await?;
    stage.operator()?.pause()?;
    let mut another = a.connect(Role::Operator).await?;
    run(&mut another, "select longshore.claim(term + 1, 'another') from longshore.meta").await?;
    // What it finds first is a reason to open the shards anew.
    set.apply_spec(&order_spec(&[("a", "secret-a", 50)])).await?;
    stage.operator()?.resume()?;
    stage.restart_operator().await?;
    stage.await_converged(&set).await.map(drop)
}

#[tokio::test]
async fn converged_writes_nothing() -> Result<()> {
    // A server of its own, since transaction ids are counted for all of its databases; and they are not to be used
    // by autovacuum.
    let server = Server::start_with(VERSION, &[("autovacuum", "off")]).await?;
    let (a, b) = (server.database("a").await?, server.database("b").await?);
    let spec = order_spec(&[("a", "shard-a", 100), ("b", "shard-b", 100)]);
    let (_stage, set) = Stage::with_set("quiet", &[], [&a, &b], &spec).await?;

    let mut connection = a.connect_admin().await?;
    let assigned = "select pg_snapshot_xmax(pg_current_snapshot())::text";
    let before: String = value(&mut connection, assigned).await?;
    let read = async || set.api().get("orders").await.map(|object| object.metadata.resource_version);
    let mut written = read().await?;
    // Longer than Secrets and ConfigMaps are trusted: they are read again, and found to be the same.
    for poke in 0..8 {
        assert_eq!(read().await?, written, "the operator wrote to a converged set, before poke {poke}");
        let patch = json!({"metadata": {"labels": {"poke": poke.to_string()}}});
        written = edit(&set, "orders", &patch).await?.metadata.resource_version;
        let poked = Instant::now();
        let passed = async || (poked.elapsed() > Duration::from_secs(1)).then_some(());
        await_condition("a second to pass", DEADLINE, passed).await?;
    }
    assert_eq!(read().await?, written, "the operator wrote to a converged set");
    assert!(set.status().await?.is_converged());
    assert_eq!(
        value::<String>(&mut connection, assigned).await?,
        before,
        "something was written to the shards"
    );
    Ok(())
}

//! Operations that do not simply go through: held, given up, undone, deleted or disturbed in the middle.

use anyhow::{Context as _, Result};
use e2e::{
    awaiting::await_condition,
    postgres::{Database, Role, Server},
    shop::order_shard_set::{OrderShardSet, SetStatus},
};
use kube::api::DeleteParams;
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::stage::{
    DEADLINE, OrderService, Stage, order_spec, run,
    shards::{VERSION, database, edit, hold_gate, owned_by, rows_of, stream_objects, user_in},
    value,
};

/// The first of the buckets that stay where they are while its gate is held: some of the 32 move before it.
const HELD: u16 = 20;

/// A set of one shard with some orders, about to get a second one.
struct Pair {
    stage: Stage,
    set: OrderShardSet,
    service: OrderService,
    at_a: PgConnection,
    at_b: PgConnection,
    a: Database,
    orders: Vec<Value>,
}

impl Pair {
    async fn new(prefix: &str, arguments: &[&str]) -> Result<Self> {
        Self::with(prefix, arguments, database().await?, database().await?).await
    }

    async fn with(prefix: &str, arguments: &[&str], a: Database, b: Database) -> Result<Self> {
        let (stage, set) = Stage::with_set(prefix, arguments, [&a, &b], &one()).await?;
        let service = stage.start_service(&a).await?;
        let (mut at_a, at_b) = (a.connect_admin().await?, b.connect_admin().await?);
        let mut orders = Vec::new();
        for bucket in [0, 1, 19, 21, 31, 40, 63] {
            orders.push(service.place(user_in(&mut at_a, bucket).await?, "first").await?);
        }
        Ok(Self { stage, set, service, at_a, at_b, a, orders })
    }

    /// Begins to move half of the buckets, and holds one of them so that only those before it arrive.
    async fn half_way(&self) -> Result<PgConnection> {
        self.half_way_to(&two()).await
    }

    async fn half_way_to(&self, spec: &Value) -> Result<PgConnection> {
        let gate = hold_gate(&self.a, HELD).await?;
        self.set.apply_spec(spec).await?;
        let begun = |status: &SetStatus| status.operation().is_some_and(|operation| operation.moved >= 4);
        self.stage.await_status(&self.set, "some buckets to have arrived", begun).await?;
        Ok(gate)
    }

    async fn owned(&mut self) -> Result<(i64, i64)> {
        Ok((owned_by(&mut self.at_a).await?, owned_by(&mut self.at_b).await?))
    }

    /// Every order is where the service finds it, and its user may order again.
    async fn assert_service_goes_on(&self, key: &str) -> Result<()> {
        for order in &self.orders {
            assert_eq!(self.service.show(order).await?, *order);
            let user = order.get("user_id").and_then(Value::as_i64).context("an order has a user")?;
            self.service.place(user, key).await?;
        }
        Ok(())
    }
}

fn one() -> Value {
    order_spec(&[("a", "shard-a", 100)])
}

fn two() -> Value {
    order_spec(&[("a", "shard-a", 100), ("b", "shard-b", 100)])
}

fn limited(spec: Value) -> Value {
    with(spec, "rebalance", json!({"maxRetainedWalMebibytes": 16}))
}

fn with(mut spec: Value, field: &str, value: Value) -> Value {
    if let Some(spec) = spec.as_object_mut() {
        spec.insert(field.to_owned(), value);
    }
    spec
}

fn at(status: &SetStatus, pointer: &str) -> Value {
    status.json().pointer(pointer).cloned().unwrap_or(Value::Null)
}

fn ended(phase: &'static str) -> impl Fn(&SetStatus) -> bool {
    move |status| status.last_phase() == Some(phase) && status.operation().is_none()
}

#[tokio::test]
async fn a_plan_and_its_cost_are_told_before_it_begins_and_after() -> Result<()> {
    let mut pair = Pair::new("planned", &[]).await?;
    let stage = &pair.stage;
    let paused = with(two(), "paused", json!(true));
    pair.set.apply_spec(&paused).await?;
    let planned =
        |status: &SetStatus| status.operation().is_some_and(|operation| operation.phase == "Planning");
    let status = stage.await_status(&pair.set, "the plan", planned).await?;
    assert_eq!(at(&status, "/operation/moves"), json!([{"from": "a", "to": "b", "buckets": 32}]));
    // Half of what seven orders are: two lines, an event and a key each.
    assert_eq!(at(&status, "/operation/forecast/rows"), json!(18));
    assert!(at(&status, "/operation/forecast/bytes").as_i64() > Some(0), "{}", status.describe());
    assert!(at(&status, "/operation/forecast/handOverSeconds").as_i64() > Some(0), "{}", status.describe());
    let ready = status.condition("Ready").context("it is always there")?;
    assert_eq!((ready.status, ready.reason), ("False", "Paused"));
    assert_eq!(stream_objects(&mut pair.at_a).await? + stream_objects(&mut pair.at_b).await?, 0);

    pair.set.apply_spec(&with(one(), "paused", json!(true))).await?;
    stage.await_converged(&pair.set).await?;

    pair.set.apply_spec(&two()).await?;
    let status = stage.await_converged(&pair.set).await?;
    assert_eq!(at(&status, "/history/0/phase"), json!("Completed"));
    assert_eq!(at(&status, "/history/0/bucketsMoved"), json!(32));
    let moved: i64 = value(&mut pair.at_b, "select sum(rows)::bigint from longshore.handover").await?;
    assert_eq!(rows_of(&mut pair.at_b).await?, moved);
    assert_eq!(at(&status, "/history/0/result/rows"), json!(moved));
    let pause = |which: &str| at(&status, &format!("/history/0/result/pauseMillis{which}")).as_i64();
    assert!(pause("P50") > Some(0) && pause("P50") <= pause("P99") && pause("P99") <= pause("Max"));
    assert_eq!(at(&status, "/shards/1/schemaVersion"), json!("0001_orders.sql"));
    assert_eq!(pair.owned().await?, (32, 32));
    Ok(())
}

#[tokio::test]
async fn an_edit_back_brings_everything_home() -> Result<()> {
    let mut pair = Pair::new("back", &[]).await?;
    let mut gate = pair.half_way().await?;
    let rows = rows_of(&mut pair.at_a).await?;
    pair.set.apply_spec(&one()).await?;
    let status =
        pair.stage.await_status(&pair.set, "the operation to be rolled back", ended("RolledBack")).await?;
    assert!(at(&status, "/history/0/message").to_string().contains("as they were before"));
    assert_eq!(pair.owned().await?, (64, 0));
    let returned = "select count(*) from longshore.handover where peer = 'a' and bucket >= 0";
    assert!(value::<i64>(&mut pair.at_b, returned).await? > 0, "what had arrived was handed back");
    let status = pair.stage.await_converged(&pair.set).await?;
    assert_eq!(at(&status, "/shardCount"), json!(1), "shard b is forgotten");
    assert_eq!((rows_of(&mut pair.at_a).await?, rows_of(&mut pair.at_b).await?), (rows, 0));
    assert_eq!(stream_objects(&mut pair.at_a).await? + stream_objects(&mut pair.at_b).await?, 0);
    run(&mut gate, "commit").await?;
    pair.assert_service_goes_on("second").await
}

#[tokio::test]
async fn a_pause_in_the_middle_holds_what_has_not_gone() -> Result<()> {
    let mut pair = Pair::new("held", &[]).await?;
    let mut gate = pair.half_way().await?;
    pair.set.apply_spec(&with(two(), "paused", json!(true))).await?;
    let paused = |status: &SetStatus| at(status, "/operation/message") == json!("spec.paused is set");
    pair.stage.await_status(&pair.set, "the pause", paused).await?;
    run(&mut gate, "commit").await?;
    let owned = pair.owned().await?;
    assert!(owned.0 + owned.1 == 64 && owned.1 < 32, "{owned:?}");
    pair.assert_service_goes_on("while-held").await?;
    assert_eq!(pair.owned().await?, owned);
    pair.set.apply_spec(&two()).await?;
    pair.stage.await_converged(&pair.set).await?;
    assert_eq!(pair.owned().await?, (32, 32));
    pair.assert_service_goes_on("after").await
}

#[tokio::test]
async fn a_set_deleted_in_the_middle_keeps_every_bucket_where_it_is() -> Result<()> {
    let mut pair = Pair::new("deleted", &[]).await?;
    let mut gate = pair.half_way().await?;
    pair.set.api().delete("orders", &DeleteParams::default()).await?;
    await_gone(&pair.set).await?;
    let (at_a, at_b) = pair.owned().await?;
    assert!(at_a + at_b == 64 && at_b >= 4, "{at_a} and {at_b}");
    assert_eq!(stream_objects(&mut pair.at_a).await? + stream_objects(&mut pair.at_b).await?, 0);
    run(&mut gate, "commit").await?;
    pair.assert_service_goes_on("after").await
}

async fn await_gone(set: &OrderShardSet) -> Result<()> {
    let gone = async || set.api().get_opt("orders").await.ok()?.is_none().then_some(());
    await_condition("the set to be gone", DEADLINE, gone).await
}

#[tokio::test]
async fn an_unreachable_shard_does_not_hold_a_deleted_set_for_ever() -> Result<()> {
    let server = Server::start(VERSION).await?;
    let patience = ["--release-patience-seconds", "5"];
    let mut pair =
        Pair::with("stranded", &patience, database().await?, server.database("orders").await?).await?;
    let mut gate = pair.half_way().await?;
    server.kill9().await?;
    pair.set.api().delete("orders", &DeleteParams::default()).await?;
    await_gone(&pair.set).await?;
    let note = pair.stage.await_warning("orders", "StreamsLeft").await?;
    assert!(note.contains("shard b") && note.contains("named ls_"), "{note}");
    assert_eq!(stream_objects(&mut pair.at_a).await?, 0, "no slot is left where one can be dropped");
    run(&mut gate, "commit").await?;
    Ok(())
}

#[tokio::test]
async fn a_slot_that_holds_back_too_much_ends_the_operation() -> Result<()> {
    // Of two servers, or the reverse stream's slot would hold back as much; and of its own, since a slot holds back what
    // anybody writes on its server.
    let (for_a, for_b) = (Server::start(VERSION).await?, Server::start(VERSION).await?);
    let mut pair =
        Pair::with("flood", &[], for_a.database("orders").await?, for_b.database("orders").await?).await?;
    let gate = pair.half_way_to(&limited(two())).await?;
    // Reads go on, so that what has arrived can be compared; nothing can be applied.
    run(&mut pair.at_b, "begin; lock table orders in share mode").await?;
    let late = pair.service.place(user_in(&mut pair.at_a, 25).await?, "late").await?;
    let flood =
        "select pg_logical_emit_message(true, 'noise', repeat('x', 1000000)) from generate_series(1, 40)";
    run(&mut pair.at_a, flood).await?;
    let back =
        |status: &SetStatus| status.operation().is_some_and(|operation| operation.phase == "RollingBack");
    pair.stage.await_status(&pair.set, "the operation to turn back", back).await?;
    run(&mut pair.at_b, "commit").await?;
    pair.stage.await_degraded(&pair.set, "orders", "WalBudgetExceeded").await?;
    assert_eq!(pair.owned().await?, (64, 0));
    assert_eq!(stream_objects(&mut pair.at_a).await? + stream_objects(&mut pair.at_b).await?, 0);
    assert_eq!(rows_of(&mut pair.at_b).await?, 0);
    drop(gate);
    pair.orders.push(late);
    pair.assert_service_goes_on("after").await
}

#[tokio::test]
async fn a_slot_that_fills_the_disk_goes_though_its_reader_is_unreachable() -> Result<()> {
    // `a` has a server of its own: a slot holds back whatever is written there.
    let (for_a, server) = (Server::start(VERSION).await?, Server::start(VERSION).await?);
    let database = server.database("orders").await?;
    let mut pair = Pair::with("dark", &[], for_a.database("orders").await?, database.clone()).await?;
    let mut gate = pair.half_way_to(&limited(two())).await?;
    server.kill9().await?;
    pair.stage.await_degraded(&pair.set, "orders", "ShardUnreachable").await?;
    let flood =
        "select pg_logical_emit_message(true, 'noise', repeat('x', 1000000)) from generate_series(1, 40)";
    run(&mut pair.at_a, flood).await?;
    let slots = "select count(*) from pg_replication_slots where database = current_database()";
    let mut asking = pair.a.connect_admin().await?;
    let mut none_left = async || (value::<i64>(&mut asking, slots).await.ok()? == 0).then_some(());
    await_condition("the slot at a to be gone", DEADLINE, &mut none_left).await?;
    server.start_again().await?;
    pair.at_b = database.connect_admin().await?;
    run(&mut gate, "commit").await?;
    pair.stage.await_status(&pair.set, "the operation to be over", ended("RolledBack")).await?;
    assert_eq!(pair.owned().await?, (64, 0));
    pair.assert_service_goes_on("after").await
}

#[tokio::test]
async fn what_dead_operations_left_is_removed() -> Result<()> {
    let mut pair = Pair::new("orphans", &[]).await?;
    let gate = pair.half_way().await?;
    let name: String =
        value(&mut pair.at_a, "select min(pubname) from pg_publication where pubname not like '%\\_c'")
            .await?;
    drop(gate);
    pair.stage.await_converged(&pair.set).await?;
    let orphan = name.replace("_1_", "_99_").replace("_2_", "_99_");
    assert_ne!(orphan, name, "it names its operation");
    let mut operator = pair.a.connect(Role::Operator).await?;
    for statement in [
        format!("create publication {orphan} for table orders"),
        format!("create publication {orphan}_c for table longshore.handover"),
        format!("select pg_create_logical_replication_slot('{orphan}', 'pgoutput')"),
    ] {
        run(&mut operator, &statement).await?;
    }
    edit(&pair.set, "orders", &json!({"metadata": {"labels": {"look": "again"}}})).await?;
    let mut asking = pair.a.connect_admin().await?;
    let mut none_left = async || (stream_objects(&mut asking).await.ok()? == 0).then_some(());
    await_condition("the orphans to be gone", DEADLINE, &mut none_left).await
}

#[tokio::test]
async fn a_table_altered_behind_its_back_holds_the_operation() -> Result<()> {
    let mut pair = Pair::new("altered", &[]).await?;
    let gate = pair.half_way().await?;
    let alter = "alter table orders add column note text";
    run(&mut pair.at_b, alter).await?;
    let message = pair.stage.await_degraded(&pair.set, "orders", "SchemaDiffers").await?;
    assert!(message.contains("make them alike"), "{message}");
    // Batches follow each other between two looks: what nobody held might all be gone before the next one.
    drop(gate);
    let owned = pair.owned().await?;
    assert!(owned.1 < 32, "{owned:?}");
    pair.assert_service_goes_on("while-held").await?;
    run(&mut pair.at_a, alter).await?;
    pair.stage.await_converged(&pair.set).await?;
    assert_eq!(pair.owned().await?, (32, 32));
    pair.assert_service_goes_on("after").await
}

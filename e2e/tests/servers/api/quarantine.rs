//! Servers that are not what they were: restored, copied, or given to another OrderShardSet. No bucket ever gets a second
//! owner, the status says what happened, and it mends by itself where nothing is lost.

use anyhow::{Context as _, Result};
use e2e::{
    awaiting::await_condition,
    postgres::{Database, Server},
    shop::order_shard_set::{OrderShardSet, SetStatus},
};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::stage::{
    DEADLINE, OrderService, Stage, order_spec,
    shards::{VERSION, database, edit, owned_by, user_in},
    value,
};

/// A set with orders in its first shard, which has a server of its own.
struct One {
    stage: Stage,
    set: OrderShardSet,
    service: OrderService,
    server: Server,
    a: Database,
    orders: Vec<Value>,
}

impl One {
    async fn new(prefix: &str, server: Server) -> Result<Self> {
        let stage = Stage::new(prefix).await?;
        let a = server.scratch_database().await?;
        stage.secret("shard-a", &a).await?;
        let set = stage.set("orders");
        set.apply_spec(&one()).await?;
        stage.await_converged(&set).await?;
        let service = stage.start_service(&a).await?;
        let mut at_a = a.connect_admin().await?;
        let mut orders = Vec::new();
        for bucket in [0, 17, 31, 32, 50, 63] {
            orders.push(service.place(user_in(&mut at_a, bucket).await?, "first").await?);
        }
        Ok(Self { stage, set, service, server, a, orders })
    }

    /// Moves half of the buckets to `b`.
    async fn spread_to(&self, b: &Database) -> Result<()> {
        self.stage.secret("shard-b", b).await?;
        self.set.apply_spec(&two()).await?;
        self.stage
            .await_status(&self.set, "the move to be over", |status| {
                status.last_phase() == Some("Completed") && status.is_converged()
            })
            .await?;
        Ok(())
    }

    /// Every order is where the service finds it, and its user may order again.
    async fn assert_service_goes_on(&self, key: &str) -> Result<()> {
        for order in &self.orders {
            let found = async || self.service.show(order).await.ok();
            assert_eq!(await_condition("an order to be shown", DEADLINE, found).await?, *order);
            let user = order.get("user_id").and_then(Value::as_i64).context("an order has a user")?;
            let placed = async || self.service.place(user, key).await.ok();
            await_condition("an order to be placed", DEADLINE, placed).await?;
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

async fn owned(a: &Database, b: &Database) -> Result<(i64, i64)> {
    Ok((owned_by(&mut a.connect_admin().await?).await?, owned_by(&mut b.connect_admin().await?).await?))
}

/// Whether the shard works on the server where it runs.
async fn is_armed(connection: &mut PgConnection) -> Option<()> {
    let text = "select server = longshore.this_server() and started_at = pg_postmaster_start_time() from longshore.armed";
    value::<bool>(connection, text).await.ok()?.then_some(())
}

async fn await_armed(database: &Database) -> Result<()> {
    let mut connection = database.connect_admin().await?;
    await_condition("the shard to be re-armed", DEADLINE, async || is_armed(&mut connection).await).await
}

#[tokio::test]
async fn a_restored_backup_gives_up_what_it_had_given_away() -> Result<()> {
    let one = One::new("restored", Server::start_with(VERSION, &Server::archiving()).await?).await?;
    let backup = one.server.base_backup().await?;
    let b = database().await?;
    one.spread_to(&b).await?;
    one.server.restore(backup).await?;
    let said = one.stage.await_warning("orders", "OwnershipConflict").await?;
    assert!(said.contains("shards a and b both claim buckets"), "{said}");
    let said = one.stage.await_warning("orders", "ServerChanged").await?;
    assert!(said.contains("shard a works again") && said.contains("it was last seen on"), "{said}");
    await_armed(&one.a).await?;
    one.stage.await_converged(&one.set).await?;
    assert_eq!(owned(&one.a, &b).await?, (32, 32));
    one.assert_service_goes_on("second").await
}

#[tokio::test]
async fn a_cold_copy_gives_up_what_it_had_given_away() -> Result<()> {
    let one = One::new("cold", Server::start(VERSION).await?).await?;
    let copy = one.server.copy_cold().await?;
    let b = database().await?;
    one.spread_to(&b).await?;
    one.server.replace_by(copy).await?;
    one.stage.await_warning("orders", "OwnershipConflict").await?;
    await_armed(&one.a).await?;
    one.stage.await_converged(&one.set).await?;
    assert_eq!(owned(&one.a, &b).await?, (32, 32));
    one.assert_service_goes_on("second").await
}

/// Restored to before it got them: nobody owns them, and rows may be missing. That is nothing to guess about.
#[tokio::test]
async fn what_a_restore_lost_goes_on_where_a_person_says() -> Result<()> {
    let server = Server::start_with(VERSION, &Server::archiving()).await?;
    let one = One::new("lost", Server::start(VERSION).await?).await?;
    let b = server.scratch_database().await?;
    let backup = server.base_backup().await?;
    one.spread_to(&b).await?;
    server.restore(backup).await?;
    // The backup is from before the agent: an empty database, which is no shard of anything yet.
    let message = one.stage.await_degraded(&one.set, "orders", "OwnershipLost").await?;
    let (_, token) = message.split_once("accept-rows-of=SHARD:").context("the message says how to go on")?;
    assert_eq!(owned(&one.a, &b).await?, (32, 0));
    let accept = json!({"metadata": {"annotations": {"longshore.dev/accept-rows-of": format!("b:{token}")}}});
    edit(&one.set, "orders", &accept).await?;
    one.stage.await_converged(&one.set).await?;
    assert_eq!(owned(&one.a, &b).await?, (32, 32));
    Ok(())
}

#[tokio::test]
async fn another_set_is_refused_until_it_is_told_to_adopt() -> Result<()> {
    let mut one = One::new("adopted", Server::start(VERSION).await?).await?;
    let b = database().await?;
    one.spread_to(&b).await?;

    let other = Stage::new("adopting").await?;
    other.secret("shard-a", &one.a).await?;
    other.secret("shard-b", &b).await?;
    let set = other.set("orders");
    set.apply_spec(&two()).await?;
    let message = other.await_degraded(&set, "orders", "OwnedByOtherSet").await?;
    let (_, uid) = message.split_once("longshore.dev/adopt=").context("the message says how to adopt")?;
    let uid = uid.split([';', ' ']).next().context("there is a word")?;
    one.assert_service_goes_on("before").await?;

    edit(&set, "orders", &json!({"metadata": {"annotations": {"longshore.dev/adopt": uid}}})).await?;
    other.await_converged(&set).await?;
    assert_eq!(owned(&one.a, &b).await?, (32, 32));
    one.assert_service_goes_on("after").await?;
    // The first one's operator ends when it finds another's term, and its next one refuses.
    one.stage.restart_operator().await?;
    one.stage.await_degraded(&one.set, "orders", "OwnedByOtherSet").await?;
    // What the new one moves has the names of the old one: nothing is left behind.
    set.apply_spec(&one_of_two()).await?;
    let drained = |status: &SetStatus| status.last_phase() == Some("Completed") && status.is_converged();
    other.await_status(&set, "b to be drained", drained).await?;
    one.assert_service_goes_on("drained").await
}

fn one_of_two() -> Value {
    order_spec(&[("a", "shard-a", 100), ("b", "shard-b", 0)])
}

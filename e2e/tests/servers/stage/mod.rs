//! A namespace with the operator in it, for tests that say themselves what the operator finds there.
//!
//! Unlike a shop, its shards are databases of a shared server, and what stands in its Secrets and specs may be wrong.

pub(crate) mod shards;
pub(crate) mod topics;

use std::{collections::BTreeMap, fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    apiserver::ApiServer,
    awaiting::{What, await_condition},
    free_port::free_port,
    operator,
    postgres::{Database, Role},
    process::Process,
    run_folder::RunFolder,
    shop::{
        binaries::Binaries,
        create_schema,
        order_shard_set::{OrderShardSet, SetStatus},
    },
};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Secret},
    events::v1::Event,
};
use kube::{
    Api, Client,
    api::{ListParams, ObjectMeta, Patch, PatchParams},
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row as _};

/// For what has to happen, however slow the machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);
pub(crate) const ORDER_SCHEMA: &str = "order-schema";
pub(crate) const ORDER_TABLES: [&str; 4] = ["orders", "order_items", "order_events", "idempotency_keys"];

/// Dropped, the operator and the order service are killed.
pub(crate) struct Stage {
    pub(crate) cluster: &'static ApiServer,
    pub(crate) namespace: String,
    client: Client,
    binaries: Binaries,
    operator: Option<Process>,
}

/// A running order service.
pub(crate) struct OrderService {
    url: String,
    _process: Process,
}

impl Stage {
    /// With the order tables' schema, and the operator running.
    pub(crate) async fn new(prefix: &str) -> Result<Self> {
        Self::with_arguments(prefix, &[]).await
    }

    /// As [`Self::new`], with more arguments for the operator.
    pub(crate) async fn with_arguments(prefix: &str, arguments: &[&str]) -> Result<Self> {
        let mut stage = Self::without_operator(prefix).await?;
        stage.operator = Some(stage.spawn_operator(arguments)?);
        create_schema(&stage.client, &stage.namespace).await?;
        Ok(stage)
    }

    fn spawn_operator(&self, arguments: &[&str]) -> Result<Process> {
        let mut command = Command::new(self.binaries.operator());
        command.args(["run", "--namespace", &self.namespace, "--lease-namespace", &self.namespace]);
        command.args(["--listen", "127.0.0.1:0"]);
        command.args(["--log-format", "text"]).args(arguments).env("KUBECONFIG", self.cluster.kubeconfig());
        Process::spawn(&format!("operator-{}", self.namespace), &mut command)
    }

    /// As a Deployment would once the operator has ended by itself.
    pub(crate) async fn restart_operator(&mut self) -> Result<()> {
        let operator = self.operator.take().context("no operator was started")?;
        let what = What::new("the operator to end by itself").log(operator.log());
        await_condition(what, DEADLINE, async || operator.ended().transpose()).await??;
        self.operator = Some(self.spawn_operator(&[])?);
        Ok(())
    }

    /// The running operator.
    pub(crate) fn operator(&self) -> Result<&Process> {
        self.operator.as_ref().context("no operator was started")
    }

    /// What the operator answers at this path.
    pub(crate) async fn ask_operator(&self, path: &str) -> Result<String> {
        let (status, answer) = operator::ask(self.operator()?, path).await?;
        ensure!(status.is_success(), "{path}: {status}: {answer}");
        Ok(answer)
    }

    /// A namespace where OrderShardSets can be stored, and nobody acts on them.
    pub(crate) async fn without_operator(prefix: &str) -> Result<Self> {
        let binaries = Binaries::build().await?;
        let cluster = ApiServer::shared().await?;
        let (namespace, client) = (cluster.namespace(prefix).await?, cluster.client().await?);
        cluster.apply_yaml(&binaries.crds().await?, &namespace).await?;
        Ok(Self { cluster, namespace, client, binaries, operator: None })
    }

    pub(crate) fn set(&self, name: &str) -> OrderShardSet {
        OrderShardSet::new(self.client.clone(), &self.namespace, name, ORDER_SCHEMA)
    }

    /// A Secret that leads to this database.
    pub(crate) async fn secret(&self, name: &str, database: &Database) -> Result<()> {
        self.secret_with(name, database, database.password(Role::Operator)).await
    }

    /// As [`Self::secret`], with any password of the operator.
    pub(crate) async fn secret_with(&self, name: &str, database: &Database, password: &str) -> Result<()> {
        let data = [
            ("host", database.host().to_owned()),
            ("port", database.port().to_string()),
            ("dbname", database.dbname().to_owned()),
            ("username", Role::Operator.name().to_owned()),
            ("password", password.to_owned()),
            ("replicationUsername", Role::Replication.name().to_owned()),
            ("replicationPassword", database.password(Role::Replication).to_owned()),
        ];
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let string_data = data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let secret = Secret { metadata, string_data: Some(string_data), ..Secret::default() };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        secrets.patch(name, &apply(), &Patch::Apply(&secret)).await.context("failed to apply a Secret")?;
        Ok(())
    }

    /// A ConfigMap of migrations.
    pub(crate) async fn migrations(&self, name: &str, migrations: &[(&str, &str)]) -> Result<()> {
        let data: BTreeMap<String, String> =
            migrations.iter().map(|(key, sql)| ((*key).to_owned(), (*sql).to_owned())).collect();
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        maps.patch(name, &apply(), &Patch::Apply(&map)).await.context("failed to apply a ConfigMap")?;
        Ok(())
    }

    /// Returns when the operator lives and `condition` holds for the set's status.
    pub(crate) async fn await_status(
        &self,
        set: &OrderShardSet,
        what: &str,
        condition: impl Fn(&SetStatus) -> bool,
    ) -> Result<SetStatus> {
        let operator = self.operator()?;
        let mut last = "no status was seen".to_owned();
        let asked = async || {
            if let Err(ended) = operator.expect_running() {
                return Some(Err(ended));
            }
            let status = set.status().await.ok()?;
            last = status.describe();
            condition(&status).then_some(Ok(status))
        };
        let what = What::new(what).log(operator.log());
        let awaited = await_condition(what, DEADLINE, asked).await;
        awaited.flatten().with_context(|| format!("last status: {last}"))
    }

    pub(crate) async fn await_converged(&self, set: &OrderShardSet) -> Result<SetStatus> {
        self.await_status(set, "the set to be converged", SetStatus::is_converged).await
    }

    /// Returns the message with which the set is degraded for this reason, once it is and an Event says so too.
    pub(crate) async fn await_degraded(
        &self,
        set: &OrderShardSet,
        name: &str,
        reason: &str,
    ) -> Result<String> {
        let is = |status: &SetStatus, kind: &str, value: &str| {
            status.condition(kind).is_some_and(|found| found.status == value && found.reason == reason)
        };
        let degraded = |status: &SetStatus| is(status, "Degraded", "True") && is(status, "Ready", "False");
        let status = self.await_status(set, &format!("{name} to be degraded: {reason}"), degraded).await?;
        self.await_warning(name, reason).await?;
        Ok(status.condition("Degraded").context("it was there")?.message.to_owned())
    }

    /// Returns what a Warning with this reason says of a set, once there is one.
    pub(crate) async fn await_warning(&self, name: &str, reason: &str) -> Result<String> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let told = async || {
            let events = events.list(&ListParams::default()).await.ok()?;
            let about =
                |event: &Event| event.regarding.as_ref().and_then(|it| it.name.as_deref()) == Some(name);
            let said = |event: &&Event| about(event) && event.reason.as_deref() == Some(reason);
            events.items.iter().find(said).map(|event| (event.type_.clone(), event.note.clone()))
        };
        let (kind, note) = await_condition(format!("an Event {reason} about {name}"), DEADLINE, told).await?;
        ensure!(kind.as_deref() == Some("Warning"), "an event of type {kind:?}");
        Ok(note.unwrap_or_default())
    }

    /// An order service that knows of this shard at first; returns when it is healthy.
    pub(crate) async fn start_service(&self, seed: &Database) -> Result<OrderService> {
        let folder = RunFolder::current()?.folder(&format!("credentials-{}", self.namespace), 0o700)?;
        fs::write(folder.join("username"), Role::Service.name())?;
        fs::write(folder.join("password"), seed.password(Role::Service))?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let seed = format!("{}:{}/{}", seed.host(), seed.port(), seed.dbname());
        let mut command = Command::new(self.binaries.order());
        command.args(["--listen", &listen, "--shard-seeds", &seed, "--pool-size", "2"]);
        command.args(["--log-format", "text"]).arg("--credentials-dir").arg(folder);
        let process = Process::spawn(&format!("order-{}", self.namespace), &mut command)?;
        let url = format!("http://{listen}");
        let health = format!("{url}/health");
        let what = What::new("the order service to be healthy").log(process.log());
        let healthy = async || {
            let answer = reqwest::get(&health).await.ok()?;
            answer.status().is_success().then_some(())
        };
        await_condition(what, DEADLINE, healthy).await?;
        Ok(OrderService { url, _process: process })
    }
}

impl OrderService {
    /// Places an order of two lines; returns what the service says of it.
    pub(crate) async fn place(&self, user: i64, key: &str) -> Result<Value> {
        let body = json!({"user_id": user, "items": [
            {"sku": "A-1", "quantity": 2, "price_cents": 150}, {"sku": "B-2", "quantity": 1, "price_cents": 700},
        ]});
        let request = reqwest::Client::new().post(format!("{}/api/orders", self.url));
        let answer = request.header("Idempotency-Key", key).json(&body).send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        ensure!(status == 201, "placing an order was answered with {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// The order, asked for by its id alone.
    pub(crate) async fn show(&self, order: &Value) -> Result<Value> {
        let id = order_id(order)?;
        let answer = reqwest::get(format!("{}/api/orders/{id}", self.url)).await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        ensure!(status == 200, "order {id} was answered with {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }
}

pub(crate) fn order_id(order: &Value) -> Result<&str> {
    order.get("order_id").and_then(Value::as_str).context("an order has an id")
}

/// `spec` of a set of the order tables: each shard with its Secret and weight.
pub(crate) fn order_spec(shards: &[(&str, &str, u32)]) -> Value {
    let tables: Vec<Value> =
        ORDER_TABLES.iter().map(|table| json!({"name": table, "key": "user_id"})).collect();
    json!({"buckets": 64, "schema": {"configMapName": ORDER_SCHEMA}, "tables": tables, "shards": shards_json(shards)})
}

pub(crate) fn shards_json(shards: &[(&str, &str, u32)]) -> Value {
    let shard = |(name, secret, weight): &(&str, &str, u32)| json!({"name": name, "connectionSecretName": secret, "weight": weight});
    shards.iter().map(shard).collect()
}

/// Runs statements without parameters; returns how many rows they touched.
pub(crate) async fn run(connection: &mut PgConnection, sql: &str) -> Result<u64> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await;
    Ok(done.with_context(|| format!("failed: {sql}"))?.rows_affected())
}

/// The only value that a query returns.
pub(crate) async fn value<T>(connection: &mut PgConnection, sql: &str) -> Result<T>
where
    T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
{
    let row = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await;
    Ok(row.with_context(|| format!("failed: {sql}"))?.try_get(0)?)
}

fn apply() -> PatchParams {
    PatchParams::apply("longshore-e2e").force()
}

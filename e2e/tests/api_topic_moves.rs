//! Replicas that move: under load, slowed, and whoever dies meanwhile.

mod stage;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{awaiting::await_condition, kafka::Cluster};
use futures::future::try_join_all;
use rdkafka::{
    ClientConfig,
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use stage::{
    DEADLINE, Stage,
    topics::{Found, Witness, condition, is_converged},
};

const SEND_DEADLINE: Duration = Duration::from_secs(60);
/// Of each record that is there before replicas move.
const RECORD_BYTES: usize = 10_000;

fn spec(cluster: &Cluster, topic: &Value, throttle: u64) -> Value {
    json!({
        "clusterRef": {"bootstrapServers": cluster.bootstrap()}, "topics": [topic],
        "reassignment": {"throttleBytesPerSecond": throttle},
    })
}

fn is_throttled(found: &Found) -> bool {
    found.config.keys().any(|key| key.ends_with("throttled.replicas"))
}

/// As the cluster's default, which holds for all brokers.
async fn has_rate(cluster: &Cluster) -> Result<bool> {
    let described =
        cluster.configs_tool(&["--describe", "--entity-type", "brokers", "--entity-default"]).await?;
    Ok(described.contains("replication.throttled.rate"))
}

fn producer(cluster: &Cluster) -> Result<FutureProducer> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.direct_bootstrap()).set("acks", "all");
    Ok(config.set("message.timeout.ms", "60000").create()?)
}

/// Fills a topic with so many records.
async fn fill(cluster: &Cluster, topic: &str, records: usize) -> Result<()> {
    let (producer, payload) = (producer(cluster)?, "x".repeat(RECORD_BYTES));
    let sent = (0..records).map(async |key| {
        let key = key.to_string();
        let record = FutureRecord::to(topic).key(&key).payload(&payload);
        producer.send(record, SEND_DEADLINE).await.map_err(|(error, _)| error)
    });
    try_join_all(sent).await?;
    Ok(())
}

/// Sends one record after the other until it is told to end; how many were acknowledged, or what failed.
fn produce(cluster: &Cluster, topic: &str) -> Result<(watch::Sender<bool>, JoinHandle<Result<u64>>)> {
    let (producer, topic) = (producer(cluster)?, topic.to_owned());
    let (end, ended) = watch::channel(false);
    let sending = async move {
        let mut acknowledged = 0;
        while !*ended.borrow() {
            let key = acknowledged.to_string();
            let record = FutureRecord::to(&topic).key(&key).payload("order");
            producer.send(record, SEND_DEADLINE).await.map_err(|(error, _)| error)?;
            acknowledged += 1;
        }
        Ok(acknowledged)
    };
    #[expect(clippy::disallowed_methods, reason = "its handle is awaited")]
    Ok((end, tokio::spawn(sending)))
}

#[tokio::test]
async fn replicas_are_added_and_removed_under_load() -> Result<()> {
    let (stage, cluster) = (Stage::for_topics("moves", &[]).await?, Cluster::shared().await?);
    let (witness, set) = (Witness::new(&cluster.direct_bootstrap())?, stage.topic_set("moves"));
    let name = format!("{}-orders", stage.namespace);
    let topic = |replicas: u32, min: u32| json!({"name": name, "partitions": 6, "replicas": replicas, "minInsyncReplicas": min});
    set.apply(&spec(cluster, &topic(1, 1), 4_000_000)).await?;
    set.await_converged().await?;
    fill(cluster, &name, 1_500).await?;
    let (end, sending) = produce(cluster, &name)?;

    set.apply(&spec(cluster, &topic(3, 2), 4_000_000)).await?;
    witness.await_topic(&name, "to be throttled", is_throttled).await?;
    assert!(has_rate(cluster).await?, "no rate is set");
    let status = set.await_status("replicas to move", |it| it.counts.reassigning == 1).await?;
    assert_eq!(condition(&status, "Progressing").1, "Reassigning");
    set.await_converged().await?;
    let found = witness.topic(&name).await?.context("it is there")?;
    assert!(found.replication() == Some(3) && found.is_whole, "{found:?}");
    assert_eq!(
        found.config,
        [("min.insync.replicas".to_owned(), "2".to_owned())].into(),
        "no throttle is left"
    );
    assert!(!has_rate(cluster).await?, "a rate is left");

    // And back: the configuration has to go first.
    set.apply(&spec(cluster, &topic(1, 1), 4_000_000)).await?;
    set.await_converged().await?;
    let found = witness.topic(&name).await?.context("it is there")?;
    assert!(found.replication() == Some(1) && !is_throttled(&found), "{found:?}");
    end.send_replace(true);
    let acknowledged = sending.await?.context("a produce failed")?;
    println!("{acknowledged} records were acknowledged meanwhile, none failed");
    ensure!(acknowledged > 100, "hardly a load: {acknowledged} records");
    Ok(())
}

#[tokio::test]
async fn a_move_ends_whoever_dies_meanwhile() -> Result<()> {
    let (mut stage, cluster) =
        (Stage::for_topics("dying", &["--lease-seconds", "2"]).await?, Cluster::start().await?);
    let witness = Witness::new(&cluster.direct_bootstrap())?;
    let name = format!("{}-orders", stage.namespace);
    let topic = |replicas: u32| json!({"name": name, "partitions": 1, "replicas": replicas});
    let set = stage.topic_set("dying");
    set.apply(&spec(&cluster, &topic(1), 65_536)).await?;
    set.await_converged().await?;
    fill(&cluster, &name, 1_000).await?;
    // At this pace it would take minutes.
    set.apply(&spec(&cluster, &topic(3), 65_536)).await?;
    let found = witness.await_topic(&name, "to move", |found| found.replication() == Some(3)).await?;
    assert!(is_throttled(&found) && !found.is_whole, "{found:?}");
    let leader = witness.leader(&name)?;
    let victim = cluster.ids().into_iter().find(|id| *id != leader).context("there are three")?;
    cluster.kill(victim).await?;
    stage.kill_operator(&["--lease-seconds", "2"]).await?;
    let set = stage.topic_set("dying");
    set.await_status("the move to be seen by another operator", |it| it.counts.reassigning == 1).await?;
    cluster.start_broker(victim).await?;
    set.apply(&spec(&cluster, &topic(3), 100_000_000)).await?;
    set.await_status("the move to end", is_converged).await?;
    let found = witness.topic(&name).await?.context("it is there")?;
    assert!(found.replication() == Some(3) && found.is_whole && !is_throttled(&found), "{found:?}");
    let gone = async || (!has_rate(&cluster).await.ok()?).then_some(());
    await_condition("the rate to be gone", DEADLINE, gone).await
}

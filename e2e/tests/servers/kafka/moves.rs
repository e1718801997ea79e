//! Replicas that move: under load, slowed, and whoever dies meanwhile.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    awaiting::await_condition,
    kafka::Cluster,
    proxy::{Aim, Fault, Recorder},
};
use futures::future::try_join_all;
use longshore_crds::kafka_topic_set::KafkaTopicSetStatus;
use rdkafka::{
    ClientConfig,
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use crate::stage::{
    DEADLINE, Stage,
    topics::{Found, Witness, condition, is_converged},
};

const SHORT_LEASE: [&str; 2] = ["--lease-seconds", "2"];
/// Each kill takes a Lease's time.
const CHAIN_DEADLINE: Duration = Duration::from_secs(240);
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

    // At this pace it would take minutes.
    set.apply(&spec(cluster, &topic(3, 2), 65_536)).await?;
    witness.await_topic(&name, "to be throttled", is_throttled).await?;
    assert!(has_rate(cluster).await?, "no rate is set");
    let status = set.await_status("replicas to move", |it| it.counts.reassigning == 1).await?;
    assert_eq!(condition(&status, "Progressing").1, "Reassigning");
    set.apply(&spec(cluster, &topic(3, 2), 4_000_000)).await?;
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
    let (mut stage, cluster) = (Stage::for_topics("dying", &SHORT_LEASE).await?, Cluster::start().await?);
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
    stage.kill_operator(&SHORT_LEASE).await?;
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

/// The operator dies at each of its actions once, before it is done or before it hears that it is; the cluster ends the same.
async fn survive(fault: Fault) -> Result<()> {
    let recorder = Arc::new(Recorder::default());
    let cluster = Cluster::start_recorded(&recorder).await?;
    let witness = Witness::new(&cluster.direct_bootstrap())?;
    let mut stage = Stage::for_topics("chain", &SHORT_LEASE).await?;
    recorder.aim(Aim::EachOnce(fault));
    let spec = |topics: &Value| {
        json!({
            "clusterRef": {"bootstrapServers": cluster.bootstrap()}, "topics": topics,
            "deletionPolicy": "Delete", "partitionIncreasePolicy": "Automatic",
        })
    };
    let first = json!([{"name": "a", "partitions": 2, "retentionMs": 60000}, {"name": "b"}]);
    stage.topic_set("chain").apply(&spec(&first)).await?;
    keep(&mut stage, &recorder, "two topics", async |stage| is_settled(stage).await).await?;

    let topic = json!({"name": "a", "partitions": 4, "replicas": 3, "minInsyncReplicas": 2, "config": {"segment.ms": "9000"}});
    stage.topic_set("chain").apply(&spec(&json!([topic]))).await?;
    keep(&mut stage, &recorder, "one topic, grown and moved", async |stage| is_settled(stage).await).await?;
    let found = witness.topic("a").await?.context("it is there")?;
    assert_eq!((found.partitions(), found.replication()), (4, Some(3)));
    let config = [("min.insync.replicas", "2"), ("segment.ms", "9000")];
    assert_eq!(found.config, config.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    assert!(witness.topic("b").await?.is_none() && !has_rate(&cluster).await?);

    stage.topic_set("chain").delete().await?;
    let is_gone =
        async |stage: &Stage| stage.topic_set("chain").object().await.is_ok_and(|found| found.is_none());
    keep(&mut stage, &recorder, "the set to be gone", is_gone).await?;
    assert!(witness.topic("a").await?.is_none());
    let hits = recorder.hits();
    println!("{fault}: {hits:?}");
    let kinds = [
        "create_topics",
        "incremental_alter_configs",
        "create_partitions",
        "alter_partition_reassignments",
        "delete_topics",
    ];
    assert!(kinds.iter().all(|kind| hits.contains_key(*kind)), "{hits:?}");
    Ok(())
}

async fn is_settled(stage: &Stage) -> bool {
    let Ok(Some(set)) = stage.topic_set("chain").object().await else { return false };
    let current = |status: &KafkaTopicSetStatus| status.observed_generation == set.metadata.generation;
    set.status.as_ref().is_some_and(|status| current(status) && is_converged(status))
}

/// Kills the operator whenever it was hit, and starts another one, until it is done nevertheless.
async fn keep(
    stage: &mut Stage,
    recorder: &Recorder,
    what: &str,
    done: impl AsyncFn(&Stage) -> bool,
) -> Result<()> {
    let kept = async || {
        if recorder.is_doomed() {
            let killed = stage.kill_operator(&SHORT_LEASE).await;
            recorder.buried();
            return killed.err().map(Err);
        }
        done(stage).await.then_some(Ok(()))
    };
    await_condition(what, CHAIN_DEADLINE, kept).await?
}

#[tokio::test]
async fn an_operator_may_die_before_each_of_its_requests() -> Result<()> {
    survive(Fault::Before).await
}

#[tokio::test]
async fn an_operator_may_die_after_each_of_its_requests() -> Result<()> {
    survive(Fault::Lost).await
}

#[tokio::test]
async fn each_answer_may_be_lost() -> Result<()> {
    survive(Fault::Cut).await
}

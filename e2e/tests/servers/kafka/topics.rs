//! KafkaTopicSets: the operator's process between a real API server and real brokers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use e2e::{awaiting::await_condition, kafka::Cluster};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};

use crate::stage::{
    DEADLINE, Stage,
    topics::{TopicSet, Witness, condition, is_converged},
};

const DELETE: &str = "longshore.dev/delete-topics";
const GROW: &str = "longshore.dev/grow-topics";

fn spec(cluster: &Cluster, topics: &Value) -> Value {
    json!({"clusterRef": {"bootstrapServers": cluster.bootstrap()}, "topics": topics})
}

fn with(mut spec: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    spec
}

#[tokio::test]
async fn topics_are_created_grown_and_configured() -> Result<()> {
    let (stage, cluster) = (Stage::for_topics("topics", &[]).await?, Cluster::shared().await?);
    let (witness, set) = (Witness::new(&cluster.direct_bootstrap())?, stage.topic_set("shop"));
    let name = format!("{}-orders", stage.namespace);
    let other = format!("{}-payments", stage.namespace);
    let topics = |partitions: i32, config: &Value| json!([{"name": name, "partitions": partitions, "replicas": 3, "retentionMs": 60000, "config": config}, {"name": other}]);
    set.apply(&spec(cluster, &topics(3, &json!({"segment.ms": "50000"})))).await?;
    let status = set.await_converged().await?;
    assert_eq!((status.counts.desired, status.counts.ready, status.problems.len()), (2, 2, 0));
    let found = witness.topic(&name).await?.context("it was created")?;
    assert_eq!((found.partitions(), found.replication()), (3, Some(3)));
    let config = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    assert_eq!(found.config, config(&[("retention.ms", "60000"), ("segment.ms", "50000")]));

    // One key goes, one comes, one stays.
    set.apply(&spec(cluster, &topics(3, &json!({"max.message.bytes": "2000000"})))).await?;
    set.await_converged().await?;
    let found = witness.topic(&name).await?.context("it is there")?;
    assert_eq!(found.config, config(&[("max.message.bytes", "2000000"), ("retention.ms", "60000")]));

    // More partitions change which one a key goes to: only with consent.
    set.apply(&spec(cluster, &topics(6, &json!({})))).await?;
    let problem = set.await_problem(&name, "MorePartitionsNeedConsent").await?;
    assert!(problem.message.contains(&format!("{GROW}={name}:6")), "{}", problem.message);
    set.annotate(GROW, &format!("{name}:6")).await?;
    set.await_converged().await?;
    let found = witness.topic(&name).await?.context("it is there")?;
    assert_eq!((found.partitions(), found.config), (6, config(&[("retention.ms", "60000")])));
    set.apply(&with(spec(cluster, &topics(7, &json!({}))), &json!({"partitionIncreasePolicy": "Automatic"})))
        .await?;
    set.await_converged().await?;
    assert_eq!(witness.topic(&name).await?.map(|found| found.partitions()), Some(7));

    nothing_is_written_when_converged(&stage, &set).await
}

/// Over two looks at the cluster.
async fn nothing_is_written_when_converged(stage: &Stage, set: &TopicSet<'_>) -> Result<()> {
    let counted = async |request: &str| -> Result<u64> {
        let metrics = stage.ask_operator("/metrics").await?;
        let of = |line: &&str| line.contains("longshore_kafka_requests_total{") && line.contains(request);
        Ok(metrics.lines().filter(of).filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
    };
    let changing =
        ["CreateTopics", "IncrementalAlterConfigs", "CreatePartitions", "AlterPartition", "DeleteTopics"];
    let all = async || -> Result<Vec<u64>> {
        let mut counts = Vec::new();
        for request in changing {
            counts.push(counted(request).await?);
        }
        Ok(counts)
    };
    let version =
        async || Ok::<_, anyhow::Error>(set.object().await?.and_then(|it| it.metadata.resource_version));
    let (before, looks, changes) = (version().await?, counted("\"Metadata\"").await?, all().await?);
    let looked = async || (counted("\"Metadata\"").await.ok()? >= looks + 2).then_some(());
    await_condition("two looks", DEADLINE, looked).await?;
    assert_eq!(version().await?, before);
    assert_eq!(all().await?, changes);
    Ok(())
}

#[tokio::test]
async fn drift_is_repaired_or_reported() -> Result<()> {
    let (stage, cluster) = (Stage::for_topics("drift", &[]).await?, Cluster::shared().await?);
    let (witness, set) = (Witness::new(&cluster.direct_bootstrap())?, stage.topic_set("drift"));
    let name = format!("{}-a", stage.namespace);
    let topics = json!([{"name": name, "retentionMs": 60000}]);
    set.apply(&spec(cluster, &topics)).await?;
    set.await_converged().await?;
    witness.configure(&name, &[("retention.ms", "1000"), ("segment.ms", "1000")]).await?;
    let is_repaired = |config: &std::collections::BTreeMap<String, String>| {
        config.len() == 1 && config.get("retention.ms").map(String::as_str) == Some("60000")
    };
    witness.await_topic(&name, "to be repaired", |found| is_repaired(&found.config)).await?;
    set.await_converged().await?;

    set.apply(&with(spec(cluster, &topics), &json!({"driftPolicy": "Report"}))).await?;
    set.await_converged().await?;
    witness.configure(&name, &[("retention.ms", "1000")]).await?;
    let problem = set.await_problem(&name, "Drifted").await?;
    assert_eq!(problem.message, "retention.ms is 1000, not 60000");
    let status =
        set.await_status("the drift to be a condition", |it| condition(it, "Drifted").0 == "True").await?;
    assert_eq!((status.counts.drifted, status.counts.ready), (1, 0));
    let found = witness.topic(&name).await?.context("it is there")?;
    assert_eq!(found.config.get("retention.ms").map(String::as_str), Some("1000"), "reported, not repaired");
    Ok(())
}

#[tokio::test]
async fn a_topic_that_was_there_is_adopted_only_if_asked() -> Result<()> {
    let (stage, cluster) = (Stage::for_topics("adopt", &[]).await?, Cluster::shared().await?);
    let (witness, set) = (Witness::new(&cluster.direct_bootstrap())?, stage.topic_set("adopt"));
    let name = format!("{}-a", stage.namespace);
    witness.create(&name, 2, &[("retention.ms", "-1")]).await?;
    let topics = json!([{"name": name, "partitions": 2, "config": {"segment.ms": "9000"}}]);
    set.apply(&spec(cluster, &topics)).await?;
    set.await_problem(&name, "AlreadyExists").await?;
    let found = witness.topic(&name).await?.context("it is there")?;
    assert_eq!(found.config.get("retention.ms").map(String::as_str), Some("-1"), "untouched");
    set.apply(&with(spec(cluster, &topics), &json!({"adoptionPolicy": "Adopt"}))).await?;
    let status = set.await_converged().await?;
    assert_eq!(status.topics, std::slice::from_ref(&name));
    let found = witness.topic(&name).await?.context("it is there")?;
    assert_eq!(found.config, [("segment.ms".to_owned(), "9000".to_owned())].into());
    Ok(())
}

#[tokio::test]
async fn topics_stay_unless_deletion_is_asked_for_and_nobody_uses_them() -> Result<()> {
    let (stage, cluster) = (Stage::for_topics("delete", &[]).await?, Cluster::shared().await?);
    let (witness, set) = (Witness::new(&cluster.direct_bootstrap())?, stage.topic_set("delete"));
    let name = |suffix: &str| format!("{}-{suffix}", stage.namespace);
    let topics = |names: &[&str]| -> Value { names.iter().map(|it| json!({"name": name(it)})).collect() };
    set.apply(&spec(cluster, &topics(&["kept", "idle", "fresh", "read", "last"]))).await?;
    set.await_converged().await?;
    // Retain is the default.
    set.apply(&spec(cluster, &topics(&["idle", "fresh", "read", "last"]))).await?;
    let status =
        set.await_status("a topic to be let go", |it| it.topics.len() == 4 && is_converged(it)).await?;
    assert!(!status.topics.contains(&name("kept")));

    let two_hours_ago = now_ms()? - 7_200_000;
    produce(cluster, &name("idle"), two_hours_ago).await?;
    produce(cluster, &name("fresh"), now_ms()?).await?;
    produce(cluster, &name("read"), two_hours_ago).await?;
    let reader = read(cluster, &name("read"), &name("group")).await?;
    let deletes = json!({"deletionPolicy": "Delete"});
    set.apply(&with(spec(cluster, &topics(&["last"])), &deletes)).await?;
    let fresh = set.await_problem(&name("fresh"), "InUse").await?;
    assert!(fresh.message.contains("within the last hour"), "{}", fresh.message);
    let read = set.await_problem(&name("read"), "InUse").await?;
    assert!(read.message.contains(&name("group")), "{}", read.message);
    let status = set
        .await_status("the deletion to be blocked", |it| condition(it, "DeletionBlocked").0 == "True")
        .await?;
    assert_eq!(condition(&status, "Ready").1, "InUse");
    witness.await_no_topic(&name("idle")).await?;

    // Consent is to one topic, by its token; a group that has gone needs none.
    let token =
        |message: &str| message.rsplit_once(':').map(|(_, token)| token.to_owned()).context("no token");
    set.annotate(DELETE, &format!("{}:{}", name("fresh"), token(&read.message)?)).await?;
    drop(reader);
    witness.await_no_topic(&name("read")).await?;
    assert!(witness.topic(&name("fresh")).await?.is_some(), "another topic's token is no consent");
    set.annotate(DELETE, &format!("{}:{}", name("fresh"), token(&fresh.message)?)).await?;
    witness.await_no_topic(&name("fresh")).await?;
    let status = set.await_converged().await?;
    assert_eq!(status.topics, [name("last")]);
    set.delete().await?;
    set.await_gone(DEADLINE).await?;
    witness.await_no_topic(&name("last")).await?;
    assert!(witness.topic(&name("kept")).await?.is_some(), "retained once, never deleted");
    Ok(())
}

fn now_ms() -> Result<i64> {
    #[expect(clippy::disallowed_methods, reason = "a record's timestamp is the wall clock's")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(i64::try_from(now.as_millis())?)
}

async fn produce(cluster: &Cluster, topic: &str, timestamp_ms: i64) -> Result<()> {
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", cluster.direct_bootstrap()).create()?;
    let record = FutureRecord::<str, str>::to(topic).payload("x").timestamp(timestamp_ms);
    producer.send(record, Duration::from_secs(30)).await.map_err(|(error, _)| error)?;
    Ok(())
}

/// A member of a group that reads a topic; dropped, it leaves.
async fn read(cluster: &Cluster, topic: &str, group: &str) -> Result<BaseConsumer> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.direct_bootstrap()).set("group.id", group);
    let consumer: BaseConsumer = config.set("auto.offset.reset", "earliest").create()?;
    consumer.subscribe(&[topic])?;
    let joined = async || {
        let _ = consumer.poll(Duration::from_millis(50));
        (consumer.assignment().ok()?.count() > 0).then_some(())
    };
    await_condition("a member to be assigned partitions", DEADLINE, joined).await?;
    Ok(consumer)
}

#[tokio::test]
async fn a_plan_changes_nothing() -> Result<()> {
    let (stage, cluster) = (Stage::for_topics("plan", &[]).await?, Cluster::shared().await?);
    let (witness, set) = (Witness::new(&cluster.direct_bootstrap())?, stage.topic_set("plan"));
    let name = format!("{}-a", stage.namespace);
    let topics = |retention: u32| json!([{"name": name, "partitions": 2, "retentionMs": retention}]);
    let planned = |retention| with(spec(cluster, &topics(retention)), &json!({"mode": "Plan"}));
    set.apply(&planned(60000)).await?;
    let status = set.await_status("a plan", |it| condition(it, "Ready").1 == "Planned").await?;
    let plan = status.plan.context("there is a plan")?;
    assert_eq!((plan.creates, plan.alters, status.topics.len()), (1, 0, 0));
    assert_eq!(plan.steps, [format!("{name}: create 2 partitions retention.ms=60000")]);
    assert!(witness.topic(&name).await?.is_none(), "nothing was created");
    set.apply(&spec(cluster, &topics(60000))).await?;
    set.await_converged().await?;
    set.apply(&planned(60000)).await?;
    let status = set.await_converged().await?;
    assert_eq!(status.plan.map(|plan| plan.steps.len()), Some(0));
    set.apply(&planned(70000)).await?;
    let status = set.await_status("another plan", |it| condition(it, "Ready").1 == "Planned").await?;
    let other = status.plan.context("there is a plan")?;
    assert!(other.alters == 1 && other.hash != plan.hash);
    assert_eq!(witness.topic(&name).await?.context("it is there")?.config["retention.ms"], "60000");
    // Paused is the same but for what was begun.
    set.apply(&with(spec(cluster, &topics(70000)), &json!({"paused": true}))).await?;
    let status = set.await_status("a pause", |it| condition(it, "Ready").1 == "Paused").await?;
    assert_eq!(status.plan.map(|plan| plan.hash), Some(other.hash));
    assert_eq!(witness.topic(&name).await?.context("it is there")?.config["retention.ms"], "60000");
    Ok(())
}

#[tokio::test]
async fn bad_input_is_refused_or_named_and_stands_alone() -> Result<()> {
    let (stage, cluster) = (Stage::for_topics("bad", &[]).await?, Cluster::shared().await?);
    let (witness, set) = (Witness::new(&cluster.direct_bootstrap())?, stage.topic_set("bad"));
    let refused = async |topic: Value, why: &str| -> Result<()> {
        let error =
            set.apply(&spec(cluster, &json!([topic]))).await.err().context("it was taken")?.to_string();
        ensure!(error.contains(why), "{topic}: {error}");
        Ok(())
    };
    refused(json!({"name": "a b"}), "should match").await?;
    refused(json!({"name": ".."}), "cannot be called").await?;
    refused(json!({"name": "x".repeat(250)}), "may not be").await?;
    refused(json!({"name": "a", "replicas": 1, "minInsyncReplicas": 2}), "nobody could write").await?;
    refused(json!({"name": "a", "retentionMs": 1, "config": {"retention.ms": "1"}}), "given twice").await?;
    refused(json!({"name": "a", "config": {"leader.replication.throttled.replicas": "*"}}), "throttled")
        .await?;
    let defaults = json!({"defaults": {"replicas": 1}});
    let error =
        set.apply(&with(spec(cluster, &json!([{"name": "a", "minInsyncReplicas": 2}])), &defaults)).await;
    assert!(error.err().context("it was taken")?.to_string().contains("the defaults included"));
    let plain =
        json!({"clusterRef": {"bootstrapServers": "k:1", "sasl": {"mechanism": "PLAIN", "secretName": "s"}}});
    assert!(set.apply(&plain).await.err().context("it was taken")?.to_string().contains("needs tls"));

    let name = |suffix: &str| format!("{}-{suffix}", stage.namespace);
    let topics = json!([
        {"name": name("good"), "partitions": 2},
        {"name": name("key"), "config": {"retention.msec": "1"}},
        {"name": name("value"), "config": {"retention.ms": "soon"}},
        {"name": name("many"), "replicas": 9},
        {"name": name("min"), "replicas": 2, "config": {"min.insync.replicas": "3"}},
    ]);
    set.apply(&spec(cluster, &topics)).await?;
    let words = set.await_problem(&name("key"), "CreateFailed").await?.message;
    assert!(words.contains("retention.msec"), "the broker's own words: {words}");
    let words = set.await_problem(&name("value"), "CreateFailed").await?.message;
    assert!(words.contains("soon"), "the broker's own words: {words}");
    let words = set.await_problem(&name("many"), "CreateFailed").await?.message;
    assert!(words.contains('9') && words.contains("broker"), "the broker's own words: {words}");
    set.await_problem(&name("min"), "MinInsyncAboveReplicas").await?;
    let status = set.await_status("the good one to be ready", |it| it.counts.ready == 1).await?;
    assert_eq!((status.counts.failed, condition(&status, "Ready").1), (4, "TopicProblems"));
    assert!(witness.topic(&name("good")).await?.is_some());
    let fewer = spec(cluster, &json!([{"name": name("good"), "partitions": 1}]));
    let error = set.apply(&fewer).await.err().context("it was taken")?.to_string();
    assert!(error.contains("cannot take partitions away"), "{error}");
    // By the defaults the API server cannot see it.
    let fewer =
        with(spec(cluster, &json!([{"name": name("other")}])), &json!({"defaults": {"partitions": 2}}));
    set.apply(&fewer).await?;
    set.await_converged().await?;
    let fewer = with(fewer, &json!({"defaults": {"partitions": 1}}));
    set.apply(&fewer).await?;
    set.await_problem(&name("other"), "TooManyPartitions").await?;
    Ok(())
}

#[tokio::test]
async fn of_two_sets_the_older_wins() -> Result<()> {
    let (stage, cluster) = (Stage::for_topics("two", &[]).await?, Cluster::shared().await?);
    let witness = Witness::new(&cluster.direct_bootstrap())?;
    let (older, younger) = (stage.topic_set("older"), stage.topic_set("younger"));
    let name = format!("{}-a", stage.namespace);
    let topics = |retention: u32| json!([{"name": name, "retentionMs": retention}]);
    older.apply(&spec(cluster, &topics(60000))).await?;
    older.await_converged().await?;
    // By another address of the same cluster.
    let secure = cluster.direct_bootstrap();
    let elsewhere = json!({"clusterRef": {"bootstrapServers": secure}, "adoptionPolicy": "Adopt", "deletionPolicy": "Delete"});
    let spec_of_younger = with(elsewhere, &json!({"topics": topics(70000)}));
    // Made when the clock has gone on: creation is known to the second.
    let born = older.object().await?.and_then(|it| it.metadata.creation_timestamp);
    let later = async || {
        (Some(k8s_openapi::jiff::Timestamp::now().as_second()) > born.as_ref().map(|it| it.0.as_second()))
            .then_some(())
    };
    await_condition("the next second", DEADLINE, later).await?;
    younger.apply(&spec_of_younger).await?;
    let problem = younger.await_problem(&name, "ClaimedByOlderSet").await?;
    assert!(problem.message.contains(&format!("{}/older", stage.namespace)), "{}", problem.message);
    assert_eq!(witness.topic(&name).await?.context("it is there")?.config["retention.ms"], "60000");
    younger.delete().await?;
    younger.await_gone(DEADLINE).await?;
    assert!(witness.topic(&name).await?.is_some(), "it was never the younger's to delete");
    older.await_converged().await?;
    Ok(())
}

#[tokio::test]
async fn a_cluster_that_cannot_be_reached_strands_nothing() -> Result<()> {
    let stage = Stage::for_topics("away", &["--release-patience-seconds", "5"]).await?;
    let cluster = Cluster::shared().await?;
    let nowhere = |topic: &str, policy: &str| json!({"clusterRef": {"bootstrapServers": "127.0.0.1:1"}, "topics": [{"name": topic}], "deletionPolicy": policy});
    let set = stage.topic_set("retained");
    set.apply(&nowhere("a", "Retain")).await?;
    let status =
        set.await_status("it to be said", |it| condition(it, "Ready").1 == "ClusterUnreachable").await?;
    assert_eq!(condition(&status, "ClusterReachable").0, "False");
    set.delete().await?;
    set.await_gone(Duration::from_secs(20)).await?;

    // One that has topics waits for its patience, and says what is left.
    let (set, name) = (stage.topic_set("deleted"), format!("{}-a", stage.namespace));
    let there = with(spec(cluster, &json!([{"name": name}])), &json!({"deletionPolicy": "Delete"}));
    set.apply(&there).await?;
    set.await_converged().await?;
    set.apply(&nowhere(&name, "Delete")).await?;
    set.await_status("it to be said", |it| condition(it, "Ready").1 == "ClusterUnreachable").await?;
    set.delete().await?;
    set.await_gone(DEADLINE).await?;
    let note = stage.await_warning("deleted", "TopicsLeft").await?;
    assert!(note.contains(&name), "{note}");
    Ok(())
}

#[tokio::test]
async fn secrets_open_the_cluster_and_may_change() -> Result<()> {
    let (stage, cluster) = (Stage::for_topics("secure", &[]).await?, Cluster::shared().await?);
    let (witness, set) = (Witness::new(&cluster.direct_bootstrap())?, stage.topic_set("secure"));
    let name = format!("{}-a", stage.namespace);
    let secure = |topics: Value| {
        json!({"topics": topics, "deletionPolicy": "Delete", "clusterRef": {
            "bootstrapServers": cluster.secure_bootstrap(),
            "tls": {"secretName": "ca"}, "sasl": {"secretName": "user"},
        }})
    };
    let user = cluster.user();
    set.apply(&secure(json!([{"name": name, "partitions": 2}]))).await?;
    set.await_status("a missing Secret", |it| condition(it, "Ready").1 == "SecretNotFound").await?;
    stage.secret_of("ca", &[("ca.crt", &cluster.authority().certificate())]).await?;
    stage.secret_of("user", &[("username", &user.name), ("password", "hush-wrong")]).await?;
    let status =
        set.await_status("a refusal", |it| condition(it, "Ready").1 == "AuthenticationFailed").await?;
    assert!(!condition(&status, "Ready").2.contains("hush"), "{}", condition(&status, "Ready").2);
    stage.secret_of("user", &[("username", &user.name), ("password", &user.password)]).await?;
    set.await_converged().await?;
    assert_eq!(witness.topic(&name).await?.map(|found| found.partitions()), Some(2));
    set.apply(&with(
        secure(json!([{"name": name, "partitions": 3}])),
        &json!({"partitionIncreasePolicy": "Automatic"}),
    ))
    .await?;
    set.await_converged().await?;
    assert_eq!(witness.topic(&name).await?.map(|found| found.partitions()), Some(3));
    // Who is no authority of the brokers' is not trusted.
    let stranger = e2e::authority::Authority::new()?;
    stage.secret_of("ca", &[("ca.crt", &stranger.certificate())]).await?;
    set.await_status("distrust", |it| condition(it, "Ready").1 == "TlsFailed").await?;
    stage.secret_of("ca", &[("ca.crt", &cluster.authority().certificate())]).await?;
    set.await_converged().await?;
    set.delete().await?;
    set.await_gone(DEADLINE).await?;
    witness.await_no_topic(&name).await
}

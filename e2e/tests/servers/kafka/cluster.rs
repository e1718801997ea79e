//! The harness's own promise: a Kafka cluster that is there in seconds, and takes the death of a broker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use e2e::{
    awaiting::await_condition,
    kafka::Cluster,
    proxy::{Aim, Fault, Recorder},
};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    consumer::{BaseConsumer, Consumer as _},
};

const DEADLINE: Duration = Duration::from_secs(60);
const REFUSED_WITHIN: Duration = Duration::from_secs(2);

/// On threads: asking for metadata blocks, and proxies must run meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_survives_a_broker_and_is_there_for_who_may_see_it() -> Result<()> {
    let started = Instant::now();
    let recorder = Arc::new(Recorder::default());
    let cluster = Cluster::start_recorded(&recorder).await?;
    println!("three brokers in {:.1} s", started.elapsed().as_secs_f32());

    // By the secure listener, as the user: TLS verified, SCRAM.
    let secure = |password: &str| {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.secure_bootstrap()).set("security.protocol", "sasl_ssl");
        config.set("sasl.mechanism", "SCRAM-SHA-512").set("sasl.username", &cluster.user().name);
        config.set("sasl.password", password).set("ssl.ca.pem", cluster.authority().certificate());
        config
    };
    let stranger: BaseConsumer = secure("wrong").set("log_level", "0").create()?;
    assert!(stranger.fetch_metadata(None, REFUSED_WITHIN).is_err());
    let admin: AdminClient<_> = secure(&cluster.user().password).create()?;
    let topic = NewTopic::new("orders", 3, TopicReplication::Fixed(3)).set("retention.ms", "60000");
    for result in admin.create_topics([&topic], &AdminOptions::new()).await? {
        assert_eq!(result, Ok("orders".to_owned()));
    }

    let described = cluster.topics_tool(&["--describe", "--topic", "orders"]).await?;
    assert!(
        described.contains("ReplicationFactor: 3") && described.contains("retention.ms=60000"),
        "{described}"
    );

    cluster.kill(2).await?;
    let plain: BaseConsumer = ClientConfig::new().set("bootstrap.servers", cluster.bootstrap()).create()?;
    let in_sync = |wanted: usize| {
        let plain = &plain;
        await_condition(format!("{wanted} replicas to be in sync"), DEADLINE, async move || {
            let metadata = plain.fetch_metadata(Some("orders"), Duration::from_secs(5)).ok()?;
            let partitions = metadata.topics().first()?.partitions();
            (partitions.len() == 3 && partitions.iter().all(|partition| partition.isr().len() == wanted))
                .then_some(())
        })
    };
    in_sync(2).await?;
    cluster.start_broker(2).await?;
    in_sync(3).await?;

    // The plain listener is the recorder's: who acts there is recorded, and may be hit.
    recorder.aim(Aim::EachOnce(Fault::Lost));
    let mut plain = ClientConfig::new();
    let admin: AdminClient<_> = plain.set("bootstrap.servers", cluster.bootstrap()).create()?;
    let topic = NewTopic::new("payments", 1, TopicReplication::Fixed(3));
    let (topics, options) = ([&topic], AdminOptions::new());
    tokio::select! {
        created = admin.create_topics(topics, &options) => panic!("the answer was heard: {created:?}"),
        () = recorder.until_doomed() => {}
    }
    assert_eq!(recorder.hits().into_iter().collect::<Vec<_>>(), [("create_topics".to_owned(), 1)]);
    let there = cluster.topics_tool(&["--describe", "--topic", "payments"]).await?;
    assert!(there.contains("ReplicationFactor: 3"), "{there}");
    Ok(())
}

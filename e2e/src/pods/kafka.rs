//! Kafka in pods: what the node needs for its brokers, and the topics that the chart declares.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kube::{Api, Client};
use longshore_crds::KafkaTopicSet;

use super::NAMESPACE;
use crate::{awaiting::await_condition, progress::Progress};

/// As the chart has them.
const BROKERS: usize = 3;
const TOPIC_SET: &str = "events";
const TOPICS_DEADLINE: Duration = Duration::from_secs(180);

/// The names of the brokers' volumes; none without Kafka.
pub(super) fn volumes(kafka: bool) -> impl Iterator<Item = String> {
    (0..BROKERS).filter(move |_| kafka).map(|number| format!("shop-kafka-{number}"))
}

/// Returns when the topics are as declared, and says which these are.
pub(super) async fn await_topics(client: &Client) -> Result<()> {
    let (progress, started) = (Progress::of_words("waiting for Kafka's topics"), Instant::now());
    let sets: Api<KafkaTopicSet> = Api::namespaced(client.clone(), NAMESPACE);
    let ready = async || {
        let words = match sets.get(TOPIC_SET).await {
            Ok(set) if is_ready(&set) => return Some(set),
            Ok(set) => describe(&set),
            Err(error) => error.to_string(),
        };
        progress.say(&format!("{} s: {words}", started.elapsed().as_secs()));
        None
    };
    let Ok(set) = await_condition("Kafka's topics", TOPICS_DEADLINE, ready).await else {
        bail!("Kafka's topics are not ready: {}", describe(&sets.get(TOPIC_SET).await?));
    };
    progress.done();
    let names: Vec<&str> = set.spec.topics.iter().map(|topic| topic.name.as_str()).collect();
    let counts = set.status.context("a set that is ready has a status")?.counts;
    eprintln!("{} of {} topics are ready: {}", counts.ready, counts.desired, names.join(", "));
    Ok(())
}

fn is_ready(set: &KafkaTopicSet) -> bool {
    let Some(status) = &set.status else { return false };
    let ready =
        status.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready
        && status.observed_generation == set.metadata.generation
        && status.counts.ready == status.counts.desired
}

fn describe(set: &KafkaTopicSet) -> String {
    let Some(status) = &set.status else { return "no status yet".to_owned() };
    let conditions =
        status.conditions.iter().map(|condition| format!("{} {}", condition.reason, condition.message));
    let problems = status.problems.iter().map(|problem| format!("{}: {}", problem.topic, problem.message));
    conditions.chain(problems).collect::<Vec<_>>().join("; ")
}

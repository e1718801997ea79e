//! Kafka's own client library as somebody would use it without an operator: so many topics a request.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rdkafka::{
    ClientConfig,
    admin::{
        AdminClient, AdminOptions, AlterConfig, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    types::RDKafkaErrorCode,
};

use super::sets::{REPLICAS, RETENTIONS};
use crate::{awaiting::await_condition, kafka::Cluster};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
const METADATA_TIMEOUT: Duration = Duration::from_secs(30);
/// So many topics stand for all: brokers do one change after the other.
const SAMPLE: usize = 20;
const DEADLINE: Duration = Duration::from_secs(300);

pub(super) struct Plain<'a> {
    cluster: &'a Cluster,
    admin: AdminClient<DefaultClientContext>,
    consumer: BaseConsumer,
}

impl<'a> Plain<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Result<Self> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap()).set("log_level", "0");
        Ok(Self { cluster, admin: config.create()?, consumer: config.create()? })
    }

    /// What it takes to create, look at and alter these topics, so many at once.
    pub(super) async fn run(&self, names: &[String], at_once: usize) -> Result<[Duration; 3]> {
        let started = Instant::now();
        for names in names.chunks(at_once) {
            self.create(names).await?;
        }
        self.await_placed(names.len()).await?;
        let create = started.elapsed();

        let started = Instant::now();
        for names in names.chunks(at_once) {
            self.describe(names).await?;
        }
        let resync = started.elapsed();

        let started = Instant::now();
        for names in names.chunks(at_once) {
            self.alter(names).await?;
        }
        self.await_altered(names).await?;
        Ok([create, resync, started.elapsed()])
    }

    async fn create(&self, names: &[String]) -> Result<()> {
        let topic = |name| {
            let topic = NewTopic::new(name, 1, TopicReplication::Fixed(REPLICAS));
            topic.set("retention.ms", RETENTIONS[0])
        };
        let topics: Vec<_> = names.iter().map(|name| topic(name)).collect();
        settle(self.admin.create_topics(&topics, &options()).await?)
    }

    /// Where its replicas are, and how it is configured: without both nobody can tell whether a topic is as declared.
    async fn describe(&self, names: &[String]) -> Result<()> {
        if let [name] = names {
            self.consumer.fetch_metadata(Some(name), METADATA_TIMEOUT)?;
        } else {
            self.consumer.fetch_metadata(None, METADATA_TIMEOUT)?;
        }
        let resources: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let described = self.admin.describe_configs(&resources, &options()).await?;
        ensure!(described.iter().all(Result::is_ok), "not all topics were described");
        Ok(())
    }

    async fn alter(&self, names: &[String]) -> Result<()> {
        let change =
            |name| AlterConfig::new(ResourceSpecifier::Topic(name)).set("retention.ms", RETENTIONS[1]);
        let changes: Vec<_> = names.iter().map(|name| change(name)).collect();
        let altered = self.admin.alter_configs(&changes, &options()).await?;
        ensure!(altered.iter().all(Result::is_ok), "not all topics were altered");
        Ok(())
    }

    /// Returns when every replica of so many topics has its place.
    pub(super) async fn await_placed(&self, topics: usize) -> Result<()> {
        let replicas = topics * usize::try_from(REPLICAS)?;
        let placed = async || (self.cluster.replicas_on_disk().ok()? >= replicas).then_some(());
        await_condition("all replicas to be placed", DEADLINE, placed).await
    }

    /// Returns when a broker tells of some of these topics, from the first to the last, that they are altered.
    pub(super) async fn await_altered(&self, names: &[String]) -> Result<()> {
        let sample: Vec<_> =
            names.iter().step_by((names.len() / SAMPLE).max(1)).chain(names.last()).collect();
        let resources: Vec<_> = sample.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let altered = async || {
            let described = self.admin.describe_configs(&resources, &options()).await.ok()?;
            let is_altered = |config: &ConfigResource| {
                config.get("retention.ms").and_then(|entry| entry.value.as_deref()) == Some(RETENTIONS[1])
            };
            described.iter().all(|config| config.as_ref().is_ok_and(is_altered)).then_some(())
        };
        await_condition("all topics to be altered", DEADLINE, altered).await
    }

    /// Returns when nothing of them is left on any broker's disk: what follows is not to wait for it.
    pub(super) async fn delete(&self, names: &[String]) -> Result<()> {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        settle(self.admin.delete_topics(&names, &options()).await?)?;
        let gone = async || (self.cluster.replicas_on_disk().ok()? == 0).then_some(());
        await_condition("the brokers' folders to be empty", DEADLINE, gone).await
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).operation_timeout(Some(REQUEST_TIMEOUT))
}

fn settle(results: Vec<Result<String, (String, RDKafkaErrorCode)>>) -> Result<()> {
    for result in results {
        if let Err((topic, code)) = result {
            bail!("{topic}: {code}");
        }
    }
    Ok(())
}

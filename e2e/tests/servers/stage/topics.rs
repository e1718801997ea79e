//! KafkaTopicSets on a stage, and a witness of what a cluster really has: Kafka's own client library, not the operator.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use e2e::{
    awaiting::{What, await_condition},
    process::Process,
};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams},
};
use longshore_crds::{
    KafkaTopicSet,
    kafka_topic_set::{KafkaTopicSetStatus, TopicProblem},
};
use rdkafka::{
    ClientConfig,
    admin::{
        AdminClient, AdminOptions, AlterConfig, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
};
use serde_json::{Value, json};

use super::{DEADLINE, Stage, apply};

const METADATA_DEADLINE: Duration = Duration::from_secs(10);

/// One KafkaTopicSet.
pub(crate) struct TopicSet<'a> {
    stage: &'a Stage,
    api: Api<KafkaTopicSet>,
    pub(crate) name: String,
}

impl Stage {
    /// A namespace with the operator in it, for topics.
    pub(crate) async fn for_topics(prefix: &str, arguments: &[&str]) -> Result<Self> {
        let mut stage = Self::without_operator(prefix).await?;
        stage.operator = Some(stage.spawn_operator(arguments)?);
        Ok(stage)
    }

    pub(crate) fn topic_set(&self, name: &str) -> TopicSet<'_> {
        let api = Api::namespaced(self.client.clone(), &self.namespace);
        TopicSet { stage: self, api, name: name.to_owned() }
    }

    /// kill -9, and another one at once, as a Deployment would.
    pub(crate) async fn kill_operator(&mut self, arguments: &[&str]) -> Result<()> {
        self.operator.take().context("no operator was started")?.kill9().await?;
        self.operator = Some(self.spawn_operator(arguments)?);
        Ok(())
    }

    /// A Secret with these keys.
    pub(crate) async fn secret_of(&self, name: &str, data: &[(&str, &str)]) -> Result<()> {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let string_data = data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let secret = Secret { metadata, string_data: Some(string_data), ..Secret::default() };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        secrets.patch(name, &apply(), &Patch::Apply(&secret)).await.context("failed to apply a Secret")?;
        Ok(())
    }
}

impl TopicSet<'_> {
    /// Creates or changes the set; what the API server refuses is an error.
    pub(crate) async fn apply(&self, spec: &Value) -> kube::Result<()> {
        let object = json!({
            "apiVersion": "longshore.dev/v1alpha1", "kind": "KafkaTopicSet",
            "metadata": {"name": self.name}, "spec": spec,
        });
        self.api.patch(&self.name, &apply(), &Patch::Apply(&object)).await.map(drop)
    }

    pub(crate) async fn annotate(&self, key: &str, value: &str) -> Result<()> {
        let patch = json!({"metadata": {"annotations": {key: value}}});
        self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    pub(crate) async fn delete(&self) -> Result<()> {
        self.api.delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }

    pub(crate) async fn object(&self) -> Result<Option<KafkaTopicSet>> {
        Ok(self.api.get_opt(&self.name).await?)
    }

    pub(crate) async fn await_gone(&self, deadline: Duration) -> Result<()> {
        let gone = async || self.api.get_opt(&self.name).await.ok()?.is_none().then_some(());
        await_condition(self.what("the set to be gone")?, deadline, gone).await
    }

    /// Returns when `condition` holds for a status that speaks of the spec as it is.
    pub(crate) async fn await_status(
        &self,
        what: &str,
        condition: impl Fn(&KafkaTopicSetStatus) -> bool,
    ) -> Result<KafkaTopicSetStatus> {
        let mut last = None;
        let asked = async || {
            if let Err(ended) = self.stage.operator().and_then(Process::expect_running) {
                return Some(Err(ended));
            }
            let object = self.api.get(&self.name).await.ok()?;
            let status = object.status?;
            let is_current = status.observed_generation == object.metadata.generation;
            last = Some(status.clone());
            (is_current && condition(&status)).then_some(Ok(status))
        };
        let awaited = await_condition(self.what(what)?, DEADLINE, asked).await;
        awaited.flatten().with_context(|| format!("last status: {last:#?}"))
    }

    pub(crate) async fn await_converged(&self) -> Result<KafkaTopicSetStatus> {
        self.await_status("the set to be converged", is_converged).await
    }

    pub(crate) async fn await_problem(&self, topic: &str, reason: &str) -> Result<TopicProblem> {
        let found = |status: &KafkaTopicSetStatus| {
            status.problems.iter().find(|it| it.topic == topic && it.reason == reason).cloned()
        };
        let what = format!("{topic} to have the problem {reason}");
        let status = self.await_status(&what, |status| found(status).is_some()).await?;
        found(&status).context("it was there")
    }

    fn what(&self, what: &str) -> Result<What> {
        Ok(What::new(what).log(self.stage.operator()?.log()))
    }
}

pub(crate) fn condition<'a>(status: &'a KafkaTopicSetStatus, type_: &str) -> (&'a str, &'a str, &'a str) {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_);
    found.map_or(("", "", ""), |it| (it.status.as_str(), it.reason.as_str(), it.message.as_str()))
}

pub(crate) fn is_converged(status: &KafkaTopicSetStatus) -> bool {
    let (status, reason, _) = condition(status, "Ready");
    (status, reason) == ("True", "Converged")
}

/// What a topic really is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) replicas: BTreeMap<i32, BTreeSet<i32>>,
    /// All replicas are in sync.
    pub(crate) is_whole: bool,
    /// Of this topic alone.
    pub(crate) config: BTreeMap<String, String>,
}

impl Found {
    pub(crate) fn partitions(&self) -> usize {
        self.replicas.len()
    }

    /// The number that all partitions have.
    pub(crate) fn replication(&self) -> Option<usize> {
        let counts: BTreeSet<usize> = self.replicas.values().map(BTreeSet::len).collect();
        counts.first().copied().filter(|_| counts.len() == 1)
    }
}

/// Looks at a cluster, and does what people do by hand.
pub(crate) struct Witness {
    admin: AdminClient<DefaultClientContext>,
    consumer: BaseConsumer,
}

impl Witness {
    pub(crate) fn new(bootstrap: &str) -> Result<Self> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("log_level", "0");
        Ok(Self { admin: config.create()?, consumer: config.create()? })
    }

    pub(crate) async fn topic(&self, name: &str) -> Result<Option<Found>> {
        let metadata = self.consumer.fetch_metadata(None, METADATA_DEADLINE)?;
        let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
            return Ok(None);
        };
        let resources = [ResourceSpecifier::Topic(name)];
        let described = self.admin.describe_configs(&resources, &AdminOptions::new()).await?;
        let Some(Ok(described)) = described.into_iter().next() else { return Ok(None) };
        let own = described.entries.into_iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
        let partitions = topic.partitions();
        Ok(Some(Found {
            replicas: partitions
                .iter()
                .map(|it| (it.id(), it.replicas().iter().copied().collect()))
                .collect(),
            is_whole: partitions.iter().all(|it| it.isr().len() == it.replicas().len()),
            config: own.filter_map(|entry| Some((entry.name, entry.value?))).collect(),
        }))
    }

    /// Of the first partition.
    pub(crate) fn leader(&self, name: &str) -> Result<i32> {
        let metadata = self.consumer.fetch_metadata(Some(name), METADATA_DEADLINE)?;
        let partition = metadata.topics().first().and_then(|topic| topic.partitions().first());
        Ok(partition.context("it has no partition")?.leader())
    }

    pub(crate) async fn await_topic(
        &self,
        name: &str,
        what: &str,
        is: impl Fn(&Found) -> bool,
    ) -> Result<Found> {
        let mut last = None;
        let asked = async || {
            last = self.topic(name).await.ok()?;
            last.clone().filter(&is)
        };
        let awaited = await_condition(format!("{name} {what}"), DEADLINE, asked).await;
        awaited.with_context(|| format!("last seen: {last:?}"))
    }

    pub(crate) async fn await_no_topic(&self, name: &str) -> Result<()> {
        let gone = async || self.topic(name).await.ok()?.is_none().then_some(());
        await_condition(format!("{name} to be gone"), DEADLINE, gone).await
    }

    pub(crate) async fn create(&self, name: &str, partitions: i32, config: &[(&str, &str)]) -> Result<()> {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        for done in self.admin.create_topics([&topic], &AdminOptions::new()).await? {
            if let Err((topic, code)) = done {
                bail!("{topic} was not created: {code}");
            }
        }
        self.await_topic(name, "to be there", |_| true).await?;
        Ok(())
    }

    /// As somebody does it by hand: all else is reset.
    pub(crate) async fn configure(&self, name: &str, config: &[(&str, &str)]) -> Result<()> {
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(name));
        for (key, value) in config {
            change = change.set(key, value);
        }
        for done in self.admin.alter_configs([&change], &AdminOptions::new()).await? {
            done.map_err(|(resource, code)| anyhow::anyhow!("{resource:?} was not changed: {code}"))?;
        }
        Ok(())
    }
}

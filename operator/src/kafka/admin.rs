//! Everything asked of a cluster and done to it: the one client. What rdkafka's AdminClient can do it does; for the rest there are
//! connections of our own (docs/adr/0009). One request at a time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use kafka_protocol::{
    messages::{
        AlterPartitionReassignmentsRequest, BrokerId, CreateTopicsRequest, DescribeConfigsRequest,
        IncrementalAlterConfigsRequest, ListPartitionReassignmentsRequest, MetadataRequest, MetadataResponse,
        TopicName,
        alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic},
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        describe_configs_request::DescribeConfigsResource,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
        metadata_request::MetadataRequestTopic,
    },
    protocol::{Request, StrBytes},
};
use rdkafka::{
    admin::{
        AdminClient, AdminOptions, ConfigSource, NewPartitions, OwnedResourceSpecifier, ResourceSpecifier,
    },
    client::DefaultClientContext,
    types::RDKafkaErrorCode,
};

use super::{KafkaError, access::Access, complaint, connection::Connection};
use crate::topic_set::{
    changes::ConfigChange,
    moves::RATES,
    wanted,
    world::{self, Move, World},
};

/// What a request may take at the brokers.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// KRaft refuses requests that would make more than 10,000 records.
const PARTITIONS_PER_REQUEST_MAX: i32 = 5_000;
const TOPICS_PER_REQUEST_MAX: usize = 500;
/// As KIP-339 numbers them.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const SET: i8 = 0;
const UNSET: i8 = 1;
const UNKNOWN_TOPIC: i16 = 3;
const TOPIC_ALREADY_EXISTS: i16 = 36;

/// What a broker said of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: &'static str,
    pub(crate) words: String,
}

/// By topic; none where it was done.
pub(crate) type Refusals = BTreeMap<String, Refusal>;

/// A client of one cluster.
pub(crate) struct Admin {
    pub(super) access: Access,
    rdkafka: AdminClient<DefaultClientContext>,
    /// By the broker's id; the one that was asked first has none.
    connections: HashMap<Option<i32>, Connection>,
    /// Where brokers listen.
    brokers: HashMap<i32, (String, u16)>,
}

impl Admin {
    /// Connects to nothing yet.
    pub(crate) fn new(access: Access) -> Result<Self, KafkaError> {
        let rdkafka = access
            .client_config()
            .create()
            .map_err(|source| KafkaError::Rdkafka { request: "client", source })?;
        Ok(Self { access, rdkafka, connections: HashMap::new(), brokers: HashMap::new() })
    }

    /// I/O: looks at these topics, at all moves and at all brokers. Four requests.
    pub(crate) async fn look(&mut self, topics: &BTreeSet<String>) -> Result<World, KafkaError> {
        let metadata = self.metadata(topics).await?;
        let mut world = World {
            cluster_id: metadata.cluster_id.as_ref().map_or_else(String::new, ToString::to_string),
            moves: self.moves().await?,
            rates: self.rates().await?,
            ..World::default()
        };
        for broker in &metadata.brokers {
            world.brokers.insert(broker.node_id.0, broker.rack.as_ref().map(ToString::to_string));
        }
        for found in metadata.topics {
            let Some(name) = found.name.map(|name| name.to_string()) else { continue };
            if let Some(words) = complaint(found.error_code, None) {
                if found.error_code != UNKNOWN_TOPIC {
                    world.unreadable.insert(name, words);
                }
                continue;
            }
            let replicas = |replicas: Vec<BrokerId>| replicas.into_iter().map(|broker| broker.0).collect();
            let partitions =
                found.partitions.into_iter().map(|it| (it.partition_index, replicas(it.replica_nodes)));
            let topic =
                world::Topic { id: found.topic_id, partitions: partitions.collect(), ..Default::default() };
            world.topics.insert(name, topic);
        }
        self.read_configs(&mut world).await?;
        Ok(world)
    }

    pub(super) async fn metadata(
        &mut self,
        topics: &BTreeSet<String>,
    ) -> Result<MetadataResponse, KafkaError> {
        let topic = |name: &String| MetadataRequestTopic::default().with_name(Some(topic_name(name)));
        let request = MetadataRequest::default()
            .with_topics(Some(topics.iter().map(topic).collect()))
            .with_allow_auto_topic_creation(false);
        let metadata = self.ask(&request).await?;
        let place = |host: &StrBytes, port: i32| Some((host.to_string(), u16::try_from(port).ok()?));
        let brokers = metadata.brokers.iter();
        self.brokers = brokers.filter_map(|it| Some((it.node_id.0, place(&it.host, it.port)?))).collect();
        self.connections.retain(|broker, _| broker.is_none_or(|broker| self.brokers.contains_key(&broker)));
        Ok(metadata)
    }

    async fn moves(&mut self) -> Result<BTreeMap<String, BTreeMap<i32, Move>>, KafkaError> {
        let request =
            ListPartitionReassignmentsRequest::default().with_timeout_ms(timeout_ms()).with_topics(None);
        let answer = self.ask(&request).await?;
        refuse("ListPartitionReassignments", answer.error_code, answer.error_message.as_deref())?;
        let brokers = |brokers: Vec<BrokerId>| brokers.into_iter().map(|broker| broker.0);
        let moves = answer.topics.into_iter().map(|topic| {
            let partitions = topic.partitions.into_iter().map(|it| {
                let (adding, removing) = (brokers(it.adding_replicas), brokers(it.removing_replicas));
                let replicas = brokers(it.replicas).collect();
                (
                    it.partition_index,
                    Move { replicas, adding: adding.collect(), removing: removing.collect() },
                )
            });
            (topic.name.to_string(), partitions.collect())
        });
        Ok(moves.collect())
    }

    /// The cluster-wide default, which rdkafka cannot name.
    async fn rates(&mut self) -> Result<[Option<i64>; 2], KafkaError> {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(BROKER)
            .with_configuration_keys(Some(RATES.map(StrBytes::from_static_str).to_vec()));
        let answer = self.ask(&DescribeConfigsRequest::default().with_resources(vec![resource])).await?;
        let Some(found) = answer.results.into_iter().next() else { return Ok([None; 2]) };
        refuse("DescribeConfigs", found.error_code, found.error_message.as_deref())?;
        let rate =
            |key: &str| found.configs.iter().find(|it| it.name.as_str() == key)?.value.as_ref()?.parse().ok();
        Ok(RATES.map(rate))
    }

    async fn read_configs(&mut self, world: &mut World) -> Result<(), KafkaError> {
        const REQUEST: &str = "DescribeConfigs";
        let names: Vec<String> = world.topics.keys().cloned().collect();
        if names.is_empty() {
            return Ok(());
        }
        let resources: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let mut missing: BTreeSet<String> = names.iter().cloned().collect();
        for found in counted(REQUEST, self.rdkafka.describe_configs(&resources, &options()).await)? {
            // Without a name: whichever it is, it stays among the missing.
            let Ok(found) = found else { continue };
            let OwnedResourceSpecifier::Topic(name) = &found.specifier else { continue };
            missing.remove(name);
            let own = found.entries.into_iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
            let config = own.filter_map(|entry| Some((entry.name, entry.value?))).collect();
            world.topics.entry(name.clone()).and_modify(|topic| topic.config = config);
        }
        for name in missing {
            world.topics.remove(&name);
            world.unreadable.insert(name, "its configuration cannot be read".to_owned());
        }
        Ok(())
    }

    /// I/O: creates topics, placed by the cluster.
    pub(crate) async fn create(
        &mut self,
        topics: &BTreeMap<String, wanted::Topic>,
    ) -> Result<Refusals, KafkaError> {
        let mut refusals = Refusals::new();
        for batch in batches(topics) {
            let request = CreateTopicsRequest::default().with_topics(batch).with_timeout_ms(timeout_ms());
            let answer = self.ask(&request).await?;
            // One that is there already was created by a request whose answer we did not hear.
            for found in answer.topics.iter().filter(|found| found.error_code != TOPIC_ALREADY_EXISTS) {
                note(
                    &mut refusals,
                    &found.name,
                    "CreateFailed",
                    complaint(found.error_code, found.error_message.as_deref()),
                );
            }
        }
        Ok(refusals)
    }

    /// I/O: changes what is named and nothing else, for topics and, as a rate, for all brokers.
    pub(crate) async fn configure(
        &mut self,
        topics: &BTreeMap<String, ConfigChange>,
        rate: Option<Option<i64>>,
    ) -> Result<Refusals, KafkaError> {
        let changed = |kind, name: StrBytes, change: &ConfigChange| {
            let entry = |(key, value): (&String, &Option<String>)| {
                let operation = if value.is_some() { SET } else { UNSET };
                AlterableConfig::default()
                    .with_name(key.clone().into())
                    .with_config_operation(operation)
                    .with_value(value.clone().map(Into::into))
            };
            AlterConfigsResource::default()
                .with_resource_type(kind)
                .with_resource_name(name)
                .with_configs(change.iter().map(entry).collect())
        };
        let mut resources: Vec<_> =
            topics.iter().map(|(name, change)| changed(TOPIC, name.clone().into(), change)).collect();
        if let Some(rate) = rate {
            let value = rate.map(|rate| rate.to_string());
            let change = RATES.map(|key| (key.to_owned(), value.clone())).into();
            resources.push(changed(BROKER, StrBytes::default(), &change));
        }
        let mut refusals = Refusals::new();
        if resources.is_empty() {
            return Ok(refusals);
        }
        let request = IncrementalAlterConfigsRequest::default().with_resources(resources);
        for found in self.ask(&request).await?.responses {
            if found.resource_type == BROKER {
                refuse("IncrementalAlterConfigs", found.error_code, found.error_message.as_deref())?;
            }
            let words = complaint(found.error_code, found.error_message.as_deref());
            note(&mut refusals, &found.resource_name, "ConfigRefused", words);
        }
        Ok(refusals)
    }

    /// I/O: gives partitions other replicas; it is begun when this returns.
    pub(crate) async fn reassign(
        &mut self,
        moves: &BTreeMap<String, BTreeMap<i32, Vec<i32>>>,
    ) -> Result<Refusals, KafkaError> {
        let mut refusals = Refusals::new();
        if moves.is_empty() {
            return Ok(refusals);
        }
        let partition = |(partition, replicas): (&i32, &Vec<i32>)| {
            let replicas = replicas.iter().copied().map(BrokerId).collect();
            ReassignablePartition::default().with_partition_index(*partition).with_replicas(Some(replicas))
        };
        let topics = moves.iter().map(|(name, partitions)| {
            ReassignableTopic::default()
                .with_name(topic_name(name))
                .with_partitions(partitions.iter().map(partition).collect())
        });
        let request = AlterPartitionReassignmentsRequest::default()
            .with_timeout_ms(timeout_ms())
            .with_topics(topics.collect());
        let answer = self.ask(&request).await?;
        refuse("AlterPartitionReassignments", answer.error_code, answer.error_message.as_deref())?;
        for topic in answer.responses {
            for it in topic.partitions {
                let words = complaint(it.error_code, it.error_message.as_deref());
                note(&mut refusals, &topic.name, "ReassignmentRefused", words);
            }
        }
        Ok(refusals)
    }

    /// I/O: gives topics so many partitions.
    pub(crate) async fn grow(&mut self, topics: &BTreeMap<String, i32>) -> Result<Refusals, KafkaError> {
        let count = |count: i32| usize::try_from(count).unwrap_or(0);
        let grown: Vec<_> = topics.iter().map(|(name, to)| NewPartitions::new(name, count(*to))).collect();
        if grown.is_empty() {
            return Ok(Refusals::new());
        }
        let done = counted("CreatePartitions", self.rdkafka.create_partitions(&grown, &options()).await)?;
        Ok(refused("GrowFailed", done))
    }

    /// I/O: deletes topics.
    pub(crate) async fn delete(
        &mut self,
        topics: impl Iterator<Item = &String>,
    ) -> Result<Refusals, KafkaError> {
        let names: Vec<&str> = topics.map(String::as_str).collect();
        if names.is_empty() {
            return Ok(Refusals::new());
        }
        let mut done = counted("DeleteTopics", self.rdkafka.delete_topics(&names, &options()).await)?;
        done.retain(|result| !matches!(result, Err((_, RDKafkaErrorCode::UnknownTopicOrPartition))));
        Ok(refused("DeleteFailed", done))
    }

    /// I/O: any broker may answer; it forwards to the controller what only that may do.
    async fn ask<R: Request>(&mut self, request: &R) -> Result<R::Response, KafkaError> {
        self.ask_broker(None, request).await
    }

    /// I/O: asks one broker, or any.
    pub(super) async fn ask_broker<R: Request>(
        &mut self,
        broker: Option<i32>,
        request: &R,
    ) -> Result<R::Response, KafkaError> {
        // Taken out: one whose request fails, or is given up, is not used again.
        let (is_fresh, mut connection) = match self.connections.remove(&broker) {
            Some(connection) => (false, connection),
            None => (true, self.connect(broker).await?),
        };
        let mut answer = connection.ask(request).await;
        // Brokers close what was idle for long.
        if !is_fresh && matches!(answer, Err(KafkaError::Exchange { .. })) {
            connection = self.connect(broker).await?;
            answer = connection.ask(request).await;
        }
        if !matches!(answer, Err(KafkaError::Exchange { .. })) {
            self.connections.insert(broker, connection);
        }
        answer
    }

    async fn connect(&self, broker: Option<i32>) -> Result<Connection, KafkaError> {
        let endpoints = match broker {
            None => self.access.endpoints(),
            Some(broker) => self.brokers.get(&broker).cloned().into_iter().collect(),
        };
        let mut last = KafkaError::Connect {
            endpoint: broker.map_or_else(|| self.access.bootstrap.clone(), |it| format!("broker {it}")),
            source: std::io::ErrorKind::AddrNotAvailable.into(),
        };
        for (host, port) in endpoints {
            match Connection::open(&self.access, &host, port).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Requests that are neither too many nor too large.
fn batches(topics: &BTreeMap<String, wanted::Topic>) -> Vec<Vec<CreatableTopic>> {
    let mut batches: Vec<(i32, Vec<CreatableTopic>)> = Vec::new();
    for (name, topic) in topics {
        let partitions = topic.partitions.unwrap_or(1);
        let config = topic.config.iter().map(|(key, value)| {
            CreatableTopicConfig::default()
                .with_name(key.clone().into())
                .with_value(Some(value.clone().into()))
        });
        let topic = CreatableTopic::default()
            .with_name(topic_name(name))
            .with_num_partitions(topic.partitions.unwrap_or(-1))
            .with_replication_factor(topic.replicas.unwrap_or(-1))
            .with_configs(config.collect());
        match batches.last_mut() {
            Some((sum, batch))
                if *sum + partitions <= PARTITIONS_PER_REQUEST_MAX
                    && batch.len() < TOPICS_PER_REQUEST_MAX =>
            {
                *sum += partitions;
                batch.push(topic);
            }
            Some(_) | None => batches.push((partitions, vec![topic])),
        }
    }
    batches.into_iter().map(|(_, batch)| batch).collect()
}

pub(super) fn topic_name(name: &str) -> TopicName {
    TopicName(name.to_owned().into())
}

fn timeout_ms() -> i32 {
    i32::try_from(OPERATION_TIMEOUT.as_millis()).unwrap_or(i32::MAX)
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(OPERATION_TIMEOUT)).operation_timeout(Some(OPERATION_TIMEOUT))
}

/// The first complaint about a topic counts.
fn note(refusals: &mut Refusals, topic: &str, reason: &'static str, words: Option<String>) {
    if let Some(words) = words {
        refusals.entry(topic.to_owned()).or_insert(Refusal { reason, words });
    }
}

fn refused(reason: &'static str, done: Vec<rdkafka::admin::TopicResult>) -> Refusals {
    let failed = done.into_iter().filter_map(Result::err);
    failed.map(|(topic, code)| (topic, Refusal { reason, words: code.to_string() })).collect()
}

fn refuse(request: &'static str, code: i16, message: Option<&str>) -> Result<(), KafkaError> {
    complaint(code, message).map_or(Ok(()), |words| Err(KafkaError::Refused { request, words }))
}

fn counted<T>(request: &'static str, answer: rdkafka::error::KafkaResult<T>) -> Result<T, KafkaError> {
    count(request, if answer.is_ok() { "answered" } else { "failed" });
    answer.map_err(|source| KafkaError::Rdkafka { request, source })
}

/// Every request of this process, by what became of it.
pub(super) fn count(request: &'static str, result: &'static str) {
    let labels = [("request", request), ("result", result)];
    metrics::counter!("longshore_kafka_requests_total", &labels).increment(1);
}

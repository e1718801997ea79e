//! Everything asked of a cluster and done to it: the one client. Where rdkafka's AdminClient serves it is used; for the rest there are
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
    admin::{AdminClient, AdminOptions, NewPartitions, TopicResult},
    client::DefaultClientContext,
    error::KafkaResult,
    types::RDKafkaErrorCode,
};
use tokio::{runtime::Handle, time::timeout};

use super::{
    KafkaError,
    access::Access,
    complaint,
    connection::{ANSWER_TIMEOUT, Connection},
};
use crate::topic_set::{
    changes::ConfigChange,
    moves::RATES,
    wanted,
    world::{self, Move, World},
};

/// What a request may take at the brokers.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// KRaft refuses requests that would make more than 10,000 records: one for each topic, partition and key.
const RECORDS_PER_REQUEST_MAX: usize = 5_000;
/// As KIP-339 numbers them.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
/// A value of this topic alone.
const OF_TOPIC: i8 = 1;
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

type Rdkafka = AdminClient<DefaultClientContext>;

/// A client of one cluster.
pub(crate) struct Admin {
    pub(super) access: Access,
    /// By the broker's id; the one that was asked first has none.
    connections: HashMap<Option<i32>, Connection>,
    /// Where brokers listen.
    brokers: HashMap<i32, (String, u16)>,
}

impl Admin {
    /// Connects to nothing yet.
    pub(crate) fn new(access: Access) -> Self {
        Self { access, connections: HashMap::new(), brokers: HashMap::new() }
    }

    /// I/O: looks at these topics, at all moves and at all brokers. Three requests.
    pub(crate) async fn look(&mut self, topics: &BTreeSet<String>) -> Result<World, KafkaError> {
        // Moves first: one that ends meanwhile is still seen as one, and not as a partition with too many replicas.
        let moves = self.moves().await?;
        let metadata = self.metadata(topics).await?;
        let mut world = World {
            cluster_id: metadata.cluster_id.as_ref().map_or_else(String::new, ToString::to_string),
            moves,
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

    /// What is configured for each topic alone, and the cluster-wide default of the rates.
    async fn read_configs(&mut self, world: &mut World) -> Result<(), KafkaError> {
        let rates = DescribeConfigsResource::default()
            .with_resource_type(BROKER)
            .with_configuration_keys(Some(RATES.map(StrBytes::from_static_str).to_vec()));
        let topic = |name: &String| {
            let name = name.clone().into();
            DescribeConfigsResource::default().with_resource_type(TOPIC).with_resource_name(name)
        };
        let resources = std::iter::once(rates).chain(world.topics.keys().map(topic)).collect();
        let request = DescribeConfigsRequest::default().with_resources(resources);
        for found in self.ask(&request).await?.results {
            let complaint = complaint(found.error_code, found.error_message.as_deref());
            let read = found.configs.into_iter().filter_map(|entry| {
                Some((entry.name.to_string(), entry.value?.to_string(), entry.config_source))
            });
            let name = found.resource_name.to_string();
            match complaint {
                Some(words) if found.resource_type == BROKER => {
                    return Err(KafkaError::Refused { request: "DescribeConfigs", words });
                }
                Some(words) => {
                    world.topics.remove(&name);
                    world.unreadable.insert(name, words);
                }
                None if found.resource_type == BROKER => {
                    let found: Vec<_> = read.collect();
                    let rate = |key| found.iter().find(|(name, ..)| name == key)?.1.parse().ok();
                    world.rates = RATES.map(rate);
                }
                None => {
                    let own = read.filter(|(_, _, source)| *source == OF_TOPIC);
                    let config = own.map(|(key, value, _)| (key, value)).collect();
                    world.topics.entry(name).and_modify(|topic| topic.config = config);
                }
            }
        }
        Ok(())
    }

    /// I/O: creates topics, placed by the cluster.
    pub(crate) async fn create(
        &mut self,
        topics: &BTreeMap<String, wanted::Topic>,
    ) -> Result<Refusals, KafkaError> {
        let mut refusals = Refusals::new();
        for batch in batches(topics.iter().map(creatable)) {
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
        let topics =
            topics.iter().map(|(name, change)| (change.len(), changed(TOPIC, name.clone().into(), change)));
        let rate = rate.map(|rate| {
            let value = rate.map(|rate| rate.to_string());
            let change = RATES.map(|key| (key.to_owned(), value.clone())).into();
            (RATES.len(), changed(BROKER, StrBytes::default(), &change))
        });
        let mut refusals = Refusals::new();
        for batch in batches(rate.into_iter().chain(topics)) {
            let request = IncrementalAlterConfigsRequest::default().with_resources(batch);
            for found in self.ask(&request).await?.responses {
                if found.resource_type == BROKER {
                    refuse("IncrementalAlterConfigs", found.error_code, found.error_message.as_deref())?;
                }
                let words = complaint(found.error_code, found.error_message.as_deref());
                note(&mut refusals, &found.resource_name, "ConfigRefused", words);
            }
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
        let mut refusals = Refusals::new();
        let grown = topics.iter().map(|(name, to)| {
            let to = usize::try_from(*to).unwrap_or(0);
            (to, (name.clone(), to))
        });
        for batch in batches(grown) {
            let work = async move |admin: Rdkafka, options: AdminOptions| {
                let grown: Vec<_> = batch.iter().map(|(name, to)| NewPartitions::new(name, *to)).collect();
                admin.create_partitions(&grown, &options).await
            };
            let mut done = self.by_rdkafka("CreatePartitions", work).await?;
            // It has as many already: the broker that was looked at did not know yet.
            done.retain(|result| !matches!(result, Err((_, RDKafkaErrorCode::InvalidPartitions))));
            refusals.extend(refused("GrowFailed", done));
        }
        Ok(refusals)
    }

    /// I/O: deletes topics.
    pub(crate) async fn delete(
        &mut self,
        topics: impl Iterator<Item = &String>,
    ) -> Result<Refusals, KafkaError> {
        let names: Vec<String> = topics.cloned().collect();
        if names.is_empty() {
            return Ok(Refusals::new());
        }
        let work = async move |admin: Rdkafka, options: AdminOptions| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            admin.delete_topics(&names, &options).await
        };
        let mut done = self.by_rdkafka("DeleteTopics", work).await?;
        done.retain(|result| !matches!(result, Err((_, RDKafkaErrorCode::UnknownTopicOrPartition))));
        Ok(refused("DeleteFailed", done))
    }

    /// I/O: with a client for this one time, on a thread of its own. librdkafka waits for the broker that it heard last to be the
    /// controller, and while that one is away it neither gives up nor sleeps: a client that lives long would stand still with it.
    async fn by_rdkafka<F: Future<Output = KafkaResult<Vec<TopicResult>>>>(
        &self,
        request: &'static str,
        work: impl FnOnce(Rdkafka, AdminOptions) -> F + Send + 'static,
    ) -> Result<Vec<TopicResult>, KafkaError> {
        let (config, runtime) = (self.access.client_config(), Handle::current());
        let options = AdminOptions::new()
            .request_timeout(Some(OPERATION_TIMEOUT))
            .operation_timeout(Some(OPERATION_TIMEOUT));
        let working = tokio::task::spawn_blocking(move || runtime.block_on(work(config.create()?, options)));
        let worked = match timeout(ANSWER_TIMEOUT, working).await {
            Ok(Ok(worked)) => worked.map_err(|source| KafkaError::Rdkafka { request, source }),
            Ok(Err(died)) => Err(self.unanswered(request, died.into())),
            Err(late) => Err(self.unanswered(request, late.into())),
        };
        count(request, if worked.is_ok() { "answered" } else { "failed" });
        worked
    }

    fn unanswered(&self, request: &'static str, source: std::io::Error) -> KafkaError {
        KafkaError::Exchange { request, endpoint: self.access.bootstrap.clone(), source }
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

/// Requests that are neither too many nor too large, of parts with the records that each makes.
fn batches<T>(parts: impl Iterator<Item = (usize, T)>) -> Vec<Vec<T>> {
    let mut batches: Vec<(usize, Vec<T>)> = Vec::new();
    for (records, part) in parts {
        match batches.last_mut() {
            Some((sum, batch)) if *sum + records <= RECORDS_PER_REQUEST_MAX => {
                *sum += records;
                batch.push(part);
            }
            Some(_) | None => batches.push((records, vec![part])),
        }
    }
    batches.into_iter().map(|(_, batch)| batch).collect()
}

fn creatable((name, topic): (&String, &wanted::Topic)) -> (usize, CreatableTopic) {
    let config = topic.config.iter().map(|(key, value)| {
        CreatableTopicConfig::default().with_name(key.clone().into()).with_value(Some(value.clone().into()))
    });
    let partitions = topic.partitions.and_then(|count| usize::try_from(count).ok()).unwrap_or(1);
    let asked = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(topic.partitions.unwrap_or(-1))
        .with_replication_factor(topic.replicas.unwrap_or(-1))
        .with_configs(config.collect());
    (1 + partitions + topic.config.len(), asked)
}

pub(super) fn topic_name(name: &str) -> TopicName {
    TopicName(name.to_owned().into())
}

fn timeout_ms() -> i32 {
    i32::try_from(OPERATION_TIMEOUT.as_millis()).unwrap_or(i32::MAX)
}

/// The first complaint about a topic counts.
fn note(refusals: &mut Refusals, topic: &str, reason: &'static str, words: Option<String>) {
    if let Some(words) = words {
        refusals.entry(topic.to_owned()).or_insert(Refusal { reason, words });
    }
}

fn refused(reason: &'static str, done: Vec<TopicResult>) -> Refusals {
    let failed = done.into_iter().filter_map(Result::err);
    failed.map(|(topic, code)| (topic, Refusal { reason, words: code.to_string() })).collect()
}

fn refuse(request: &'static str, code: i16, message: Option<&str>) -> Result<(), KafkaError> {
    complaint(code, message).map_or(Ok(()), |words| Err(KafkaError::Refused { request, words }))
}

/// Every request of this process, by what became of it.
pub(super) fn count(request: &'static str, result: &'static str) {
    let labels = [("request", request), ("result", result)];
    metrics::counter!("longshore_kafka_requests_total", &labels).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_request_makes_too_many_records_and_nothing_is_lost() {
        let all = batches((0..500).map(|topic| (13, topic)));
        assert!(all.len() == 2 && all.iter().all(|batch| batch.len() * 13 <= RECORDS_PER_REQUEST_MAX));
        assert_eq!(all.into_iter().flatten().collect::<Vec<_>>(), (0..500).collect::<Vec<_>>());
        assert_eq!(batches([(9_000, 'a'), (1, 'b')].into_iter()), [['a'], ['b']]);
    }
}

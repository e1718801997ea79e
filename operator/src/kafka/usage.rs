//! Who uses topics: members of consumer groups, and producers of late. What cannot be told counts as a doubt, never as no.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use k8s_openapi::jiff::Timestamp;
use kafka_protocol::{
    messages::{
        BrokerId, ConsumerGroupDescribeRequest, ConsumerProtocolAssignment, ConsumerProtocolSubscription,
        DescribeGroupsRequest, GroupId, ListGroupsRequest, ListOffsetsRequest, ShareGroupDescribeRequest,
        TopicName,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    },
    protocol::Decodable as _,
};

use super::{Admin, KafkaError, complaint};
use crate::topic_set::world::Use;

/// Records younger than this say that a topic is in use.
const FRESH: Duration = Duration::from_secs(3600);
/// States of groups without members.
const EMPTY: [&str; 2] = ["Empty", "Dead"];
/// As in a request by somebody who is no replica.
const NO_REPLICA: BrokerId = BrokerId(-1);

/// A group with members and the topics they read; none if that cannot be told.
type Readers = BTreeMap<String, Option<BTreeSet<String>>>;

impl Admin {
    /// I/O: who uses these topics.
    pub(crate) async fn uses(
        &mut self,
        topics: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Use>, KafkaError> {
        let mut uses: BTreeMap<String, Use> =
            topics.iter().map(|topic| (topic.clone(), Use::default())).collect();
        if uses.is_empty() {
            return Ok(uses);
        }
        let metadata = self.metadata(topics).await?;
        let brokers: Vec<i32> = metadata.brokers.iter().map(|broker| broker.node_id.0).collect();
        for broker in brokers {
            let readers = self.readers(broker).await?;
            for (topic, uses) in &mut uses {
                for (group, read) in &readers {
                    match read {
                        Some(read) if read.contains(topic) => drop(uses.groups.insert(group.clone())),
                        Some(_) => {}
                        None => uses.doubt = Some(format!("group {group} does not tell what it reads")),
                    }
                }
            }
        }
        let since = Timestamp::now().as_millisecond() - i64::try_from(FRESH.as_millis()).unwrap_or(0);
        let mut by_leader: BTreeMap<i32, Vec<ListOffsetsTopic>> = BTreeMap::new();
        for topic in &metadata.topics {
            let Some(name) = &topic.name else { continue };
            let mut partitions: BTreeMap<i32, Vec<ListOffsetsPartition>> = BTreeMap::new();
            for partition in &topic.partitions {
                let asked = ListOffsetsPartition::default()
                    .with_partition_index(partition.partition_index)
                    .with_current_leader_epoch(-1)
                    .with_timestamp(since);
                partitions.entry(partition.leader_id.0).or_default().push(asked);
            }
            for (leader, partitions) in partitions {
                let asked = ListOffsetsTopic::default().with_name(name.clone()).with_partitions(partitions);
                by_leader.entry(leader).or_default().push(asked);
            }
        }
        for (leader, asked) in by_leader {
            self.look_for_fresh(leader, asked, &mut uses).await?;
        }
        Ok(uses)
    }

    async fn look_for_fresh(
        &mut self,
        leader: i32,
        asked: Vec<ListOffsetsTopic>,
        uses: &mut BTreeMap<String, Use>,
    ) -> Result<(), KafkaError> {
        if leader < 0 {
            for topic in asked {
                let doubt = Some("a partition has no leader".to_owned());
                uses.entry(topic.name.to_string()).and_modify(|uses| uses.doubt = doubt);
            }
            return Ok(());
        }
        let request = ListOffsetsRequest::default().with_replica_id(NO_REPLICA).with_topics(asked);
        for topic in self.ask_broker(Some(leader), &request).await?.topics {
            let Some(uses) = uses.get_mut(topic.name.as_str()) else { continue };
            for partition in topic.partitions {
                match complaint(partition.error_code, None) {
                    Some(words) => uses.doubt = Some(words),
                    None => uses.is_fresh |= partition.offset >= 0,
                }
            }
        }
        Ok(())
    }

    /// The groups with members that one broker coordinates.
    async fn readers(&mut self, broker: i32) -> Result<Readers, KafkaError> {
        let listed = self.ask_broker(Some(broker), &ListGroupsRequest::default()).await?;
        if let Some(words) = complaint(listed.error_code, None) {
            return Err(KafkaError::Refused { request: "ListGroups", words });
        }
        let mut by_kind: BTreeMap<String, Vec<GroupId>> = BTreeMap::new();
        for group in listed.groups {
            // Others coordinate by groups as well: workers of Connect and schema registries read nothing by them.
            let is_reader = !["connect", "sr"].contains(&group.protocol_type.as_str());
            if is_reader && !EMPTY.contains(&group.group_state.as_str()) {
                by_kind.entry(group.group_type.to_lowercase()).or_default().push(group.group_id);
            }
        }
        let mut readers = Readers::new();
        for (kind, groups) in by_kind {
            match kind.as_str() {
                "classic" | "" => self.classic(broker, groups, &mut readers).await?,
                "consumer" => {
                    let request = ConsumerGroupDescribeRequest::default().with_group_ids(groups);
                    for group in self.ask_broker(Some(broker), &request).await?.groups {
                        let members = group.members.iter();
                        let by_pattern = members.clone().any(|it| it.subscribed_topic_regex.is_some());
                        let assigned = members.clone().flat_map(|it| {
                            let both = it.assignment.topic_partitions.iter();
                            both.chain(&it.target_assignment.topic_partitions).map(|it| &it.topic_name)
                        });
                        let read = names(members.flat_map(|it| &it.subscribed_topic_names).chain(assigned));
                        let told = group.error_code == 0 && !(by_pattern && read.is_empty());
                        readers.insert(group.group_id.to_string(), told.then_some(read));
                    }
                }
                "share" => {
                    let request = ShareGroupDescribeRequest::default().with_group_ids(groups);
                    for group in self.ask_broker(Some(broker), &request).await?.groups {
                        let read = names(group.members.iter().flat_map(|it| &it.subscribed_topic_names));
                        readers.insert(group.group_id.to_string(), (group.error_code == 0).then_some(read));
                    }
                }
                _ => readers.extend(groups.into_iter().map(|group| (group.to_string(), None))),
            }
        }
        Ok(readers)
    }

    async fn classic(
        &mut self,
        broker: i32,
        groups: Vec<GroupId>,
        readers: &mut Readers,
    ) -> Result<(), KafkaError> {
        let request = DescribeGroupsRequest::default().with_groups(groups);
        for group in self.ask_broker(Some(broker), &request).await?.groups {
            if EMPTY.contains(&group.group_state.as_str()) && group.error_code == 0 {
                continue;
            }
            let mut read = Some(BTreeSet::new());
            for member in group.members {
                // While a group rebalances, members have no assignment yet, but a subscription.
                let told = [subscribed(member.member_metadata), assigned(member.member_assignment)];
                for told in told {
                    read = read.zip(told).map(|(read, told)| &read | &told);
                }
            }
            let read = read.filter(|_| group.error_code == 0);
            readers.insert(group.group_id.to_string(), read);
        }
        Ok(())
    }
}

fn names<'a>(topics: impl Iterator<Item = &'a TopicName>) -> BTreeSet<String> {
    topics.map(|topic| topic.to_string()).collect()
}

/// A version before the rest; nothing at all where there is nothing yet.
fn versioned<T>(
    mut bytes: Bytes,
    newest: i16,
    read: impl Fn(&mut Bytes, i16) -> Option<T>,
) -> Option<Option<T>> {
    if bytes.is_empty() {
        return Some(None);
    }
    if bytes.len() < 2 {
        return None;
    }
    let version = bytes.get_i16().clamp(0, newest);
    read(&mut bytes, version).map(Some)
}

fn subscribed(bytes: Bytes) -> Option<BTreeSet<String>> {
    let read = |bytes: &mut Bytes, version| ConsumerProtocolSubscription::decode(bytes, version).ok();
    let found = versioned(bytes, 3, read)?;
    Some(found.into_iter().flat_map(|it| it.topics).map(|topic| topic.to_string()).collect())
}

fn assigned(bytes: Bytes) -> Option<BTreeSet<String>> {
    let read = |bytes: &mut Bytes, version| ConsumerProtocolAssignment::decode(bytes, version).ok();
    let found = versioned(bytes, 3, read)?;
    Some(found.into_iter().flat_map(|it| it.assigned_partitions).map(|it| it.topic.to_string()).collect())
}

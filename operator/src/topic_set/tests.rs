//! The pure core against a cluster that obeys: whatever is asked, it ends as asked, and nothing is left over.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::{
    changes::Changes,
    claims::Claims,
    decide::{decide, doomed},
    moves::THROTTLED,
    wanted::{self, Wanted},
    world::{Move, Topic, Use, World},
};

/// Nothing is declared.
pub(super) fn wanted() -> Wanted {
    let object = serde_json::json!({
        "apiVersion": "longshore.dev/v1alpha1", "kind": "KafkaTopicSet",
        "metadata": {"name": "shop", "namespace": "n", "uid": "u"},
        "spec": {"clusterRef": {"bootstrapServers": "k:9092"}},
    });
    Wanted::of(&serde_json::from_value(object).unwrap()).unwrap()
}

fn brokers() -> BTreeMap<i32, Option<String>> {
    (1..).zip(["a", "b", "c", "a"]).map(|(broker, rack)| (broker, Some(rack.to_owned()))).collect()
}

fn topic(partitions: i32, replicas: i16, config: &[(&str, &str)]) -> wanted::Topic {
    let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    wanted::Topic { partitions: Some(partitions), replicas: Some(replicas), config }
}

/// A cluster that does what it is told; moves take until `finish`.
#[derive(Clone)]
struct Cluster(World);

impl Cluster {
    fn new() -> Self {
        Self(World { brokers: brokers(), ..World::default() })
    }

    fn put(&mut self, name: &str, asked: &wanted::Topic) {
        let on = |replicas: i16| (1..=i32::from(replicas)).collect::<Vec<_>>();
        let replicas = on(asked.replicas.unwrap_or(1));
        let partitions = (0..asked.partitions.unwrap_or(1)).map(|it| (it, replicas.clone())).collect();
        let id = Uuid::from_u128(u128::from(name.as_bytes()[0]));
        self.0.topics.insert(name.to_owned(), Topic { id, partitions, config: asked.config.clone() });
    }

    fn look(&self, wanted: &Wanted, claims: &Claims) -> World {
        let mut world = self.0.clone();
        let concerned = wanted.concerned();
        world.topics.retain(|name, _| concerned.contains(name));
        for name in doomed(wanted, &world, claims) {
            world.uses.insert(name, Use::default());
        }
        world
    }

    /// Each effect in the order of the executor, up to as many as `most`.
    fn obey(&mut self, changes: &Changes, most: usize) {
        let mut left = most;
        let mut may = || {
            left = left.saturating_sub(1);
            left > 0
        };
        for (name, asked) in changes.creates.iter().filter(|_| may()) {
            self.put(name, asked);
        }
        for (name, change) in changes.configs.iter().filter(|_| may()) {
            self.configure(name, change);
        }
        for (name, count) in changes.grows.iter().filter(|_| may()) {
            let partitions = &mut self.0.topics.get_mut(name).unwrap().partitions;
            let had = i32::try_from(partitions.len()).unwrap();
            assert!(*count > had, "partitions are never taken away");
            let replicas = partitions[&0].clone();
            partitions.extend((had..*count).map(|it| (it, replicas.clone())));
        }
        if !may() {
            return;
        }
        for (name, change) in &changes.throttles {
            self.configure(name, change);
        }
        if let Some(rate) = changes.rate {
            self.0.rates = [rate; 2];
        }
        if !may() {
            return;
        }
        for (name, moves) in &changes.moves {
            for (partition, target) in moves {
                self.begin(name, *partition, target);
            }
        }
        for name in changes.deletes.keys().filter(|_| may()) {
            // As Kafka does: with a topic its moves end.
            self.0.topics.remove(name);
            self.0.moves.remove(name);
        }
    }

    fn configure(&mut self, name: &str, change: &super::changes::ConfigChange) {
        let config = &mut self.0.topics.get_mut(name).unwrap().config;
        for (key, value) in change {
            match value {
                Some(value) => drop(config.insert(key.clone(), value.clone())),
                None => drop(config.remove(key)),
            }
        }
    }

    fn begin(&mut self, name: &str, partition: i32, target: &[i32]) {
        let held = self.0.topics.get_mut(name).unwrap().partitions.get_mut(&partition).unwrap();
        let under_way = self.0.moves.get(name).and_then(|moves| moves.get(&partition));
        let origin = under_way.map_or_else(|| held.clone(), Move::origin);
        let adding: BTreeSet<i32> = target.iter().copied().filter(|it| !origin.contains(it)).collect();
        let removing = origin.iter().copied().filter(|it| !target.contains(it)).collect();
        let throttles = &self.0.topics[name].config;
        let listed = |key: &str, broker: i32| {
            throttles
                .get(key)
                .is_some_and(|all| all.split(',').any(|it| it == format!("{partition}:{broker}")))
        };
        assert!(adding.iter().all(|broker| listed(THROTTLED[1], *broker)), "copied without a throttle");
        assert!(adding.is_empty() || self.0.rates.iter().all(Option::is_some), "copied without a rate");
        let replicas: Vec<i32> = origin.iter().copied().chain(adding.iter().copied()).collect();
        self.0.topics.get_mut(name).unwrap().partitions.insert(partition, replicas.clone());
        let moves = self.0.moves.entry(name.to_owned()).or_default();
        moves.insert(partition, Move { replicas, adding, removing });
    }

    /// Up to as many moves as `most` end.
    fn finish(&mut self, most: usize) {
        let all: Vec<(String, i32)> = self
            .0
            .moves
            .iter()
            .flat_map(|(name, moves)| moves.keys().map(|partition| (name.clone(), *partition)))
            .take(most)
            .collect();
        for (name, partition) in all {
            let moves = self.0.moves.get_mut(&name).unwrap();
            let target = moves.remove(&partition).unwrap().target();
            if moves.is_empty() {
                self.0.moves.remove(&name);
            }
            self.0.topics.get_mut(&name).unwrap().partitions.insert(partition, target);
        }
    }
}

/// Until nothing is to be done, or for so many rounds; each time the operator gets as far as `far` says, then starts anew. Says
/// whether nothing is left to do.
fn converge(wanted: &mut Wanted, cluster: &mut Cluster, far: &[usize], rounds: usize) -> bool {
    let claims = Claims::default();
    for round in 0..rounds {
        let decision = decide(wanted, &cluster.look(wanted, &claims), &claims);
        assert!(cluster.0.moves.values().map(BTreeMap::len).sum::<usize>() <= wanted.moves, "too many moves");
        if decision.changes.is_empty() && decision.reassigning.is_empty() {
            wanted.owned = decision.owned;
            return true;
        }
        // Written down first; what has left goes only afterwards.
        wanted.owned.extend(decision.owned.iter().cloned());
        cluster.obey(&decision.changes, far.get(round).copied().unwrap_or(usize::MAX));
        if decision.changes.is_empty() {
            wanted.owned = decision.owned;
        }
        cluster.finish(2);
    }
    false
}

fn any_topics() -> impl Strategy<Value = BTreeMap<String, wanted::Topic>> {
    let config = prop::sample::subsequence(
        vec![("retention.ms", "5"), ("segment.ms", "7"), ("min.insync.replicas", "1")],
        0..=3,
    );
    let any = (1..4, 1_i16..4, config)
        .prop_map(|(partitions, replicas, config)| topic(partitions, replicas, &config));
    prop::collection::btree_map("[a-d]", any, 0..4)
}

proptest! {
    #[test]
    fn whatever_is_asked_comes_about_and_nothing_is_left_over(
        edits in prop::collection::vec(any_topics(), 1..4),
        foreign in any_topics(),
        deletes: bool,
        moves in 1_usize..4,
        far in prop::collection::vec(1_usize..6, 0..8),
        rounds in prop::sample::select(vec![3, 5, 8, 400]),
    ) {
        let mut cluster = Cluster::new();
        for (name, asked) in &foreign {
            cluster.put(&format!("x-{name}"), asked);
        }
        let before = cluster.0.topics.clone();
        let mut wanted = Wanted { deletes, moves, grows: true, ..wanted() };
        let mut created = BTreeSet::new();
        for topics in edits {
            // The edit before may still be under way.
            converge(&mut wanted, &mut cluster, &far, rounds);
            created.extend(wanted.owned.iter().filter(|it| cluster.0.topics.contains_key(*it)).cloned());
            wanted.topics = topics;
            // Kafka takes no partitions away: nobody asks for fewer here.
            for (name, asked) in &mut wanted.topics {
                if let Some(found) = cluster.0.topics.get(name) {
                    asked.partitions = asked.partitions.max(i32::try_from(found.partitions.len()).ok());
                }
            }
            // What was let go can only come back by adoption.
            wanted.adopts = true;
        }
        prop_assert!(converge(&mut wanted, &mut cluster, &far, 400), "it comes to no end: {:?}", cluster.0);

        for (name, asked) in &wanted.topics {
            let found = &cluster.0.topics[name];
            prop_assert_eq!(found.partitions.len(), usize::try_from(asked.partitions.unwrap()).unwrap());
            prop_assert!(found.partitions.values().all(|it| it.len() == usize::try_from(asked.replicas.unwrap()).unwrap()));
            prop_assert_eq!(&found.config, &asked.config);
        }
        let declared: BTreeSet<_> = wanted.topics.keys().cloned().collect();
        prop_assert_eq!(&wanted.owned, &declared);
        for left in created.difference(&declared) {
            prop_assert_eq!(cluster.0.topics.contains_key(left), !deletes);
        }
        for (name, topic) in before {
            prop_assert_eq!(&cluster.0.topics[&name], &topic, "a topic that nobody declared was touched");
        }
        let throttled = |topic: &Topic| THROTTLED.iter().any(|key| topic.config.contains_key(*key));
        prop_assert!(!cluster.0.topics.values().any(throttled) && cluster.0.rates == [None; 2]);
    }
}

/// One topic, as declared and as found, after one decision.
fn check(
    asked: wanted::Topic,
    found: &wanted::Topic,
    with: impl FnOnce(&mut Wanted),
) -> super::decide::Decision {
    let mut cluster = Cluster::new();
    cluster.put("a", found);
    let mut wanted =
        Wanted { topics: [("a".to_owned(), asked)].into(), owned: ["a".to_owned()].into(), ..wanted() };
    with(&mut wanted);
    decide(&wanted, &cluster.look(&wanted, &Claims::default()), &Claims::default())
}

fn reason(decision: &super::decide::Decision) -> &'static str {
    decision.problems.get("a").map_or("", |problem| problem.reason)
}

#[test]
fn growing_takes_consent() {
    let (six, three) = (topic(6, 1, &[]), topic(3, 1, &[]));
    let refused = check(six.clone(), &three, |_| {});
    assert_eq!((reason(&refused), refused.changes.is_empty()), ("MorePartitionsNeedConsent", true));
    let consent = |count: &str| [("a".to_owned(), count.to_owned())].into();
    assert_eq!(
        reason(&check(six.clone(), &three, |it| it.may_grow = consent("7"))),
        "MorePartitionsNeedConsent"
    );
    let grown = check(six.clone(), &three, |it| it.may_grow = consent("6"));
    assert_eq!(grown.changes.grows, [("a".to_owned(), 6)].into());
    assert_eq!(reason(&check(three, &six, |it| it.grows = true)), "TooManyPartitions");
}

#[test]
fn drift_is_reported_or_repaired() {
    let (asked, found) =
        (topic(1, 1, &[("retention.ms", "5")]), topic(1, 1, &[("retention.ms", "6"), ("segment.ms", "1")]));
    let repaired = check(asked.clone(), &found, |_| {});
    let change = [("retention.ms".to_owned(), Some("5".to_owned())), ("segment.ms".to_owned(), None)];
    assert_eq!(repaired.changes.configs["a"], change.into());
    let reported = check(asked, &found, |it| it.repairs = false);
    assert_eq!((reason(&reported), reported.changes.is_empty()), ("Drifted", true));
    assert_eq!(reported.problems["a"].message, "retention.ms is 6, not 5; segment.ms is 1, and not declared");
}

#[test]
fn what_brokers_write_their_own_way_is_no_drift() {
    let asked = topic(1, 1, &[("a", "True"), ("b", "0.50"), ("c", "compact, delete"), ("d", " 7")]);
    let found = topic(1, 1, &[("a", "true"), ("b", "0.5"), ("c", "compact,delete"), ("d", "7")]);
    assert!(check(asked, &found, |_| {}).ready.contains("a"));
}

#[test]
fn producers_are_never_left_without_enough_replicas() {
    let (one, three) =
        (topic(1, 1, &[("min.insync.replicas", "1")]), topic(1, 3, &[("min.insync.replicas", "2")]));
    let up = check(three.clone(), &one, |_| {});
    assert!(up.changes.configs.is_empty() && !up.changes.moves.is_empty(), "replicas first");
    let down = check(one, &three, |_| {});
    assert!(!down.changes.configs.is_empty() && down.changes.moves.is_empty(), "configuration first");
}

#[test]
fn what_was_there_before_is_adopted_only_if_asked() {
    let found = topic(1, 1, &[("retention.ms", "6")]);
    let left = check(topic(1, 1, &[]), &found, |it| it.owned.clear());
    assert_eq!((reason(&left), left.changes.is_empty(), left.owned.len()), ("AlreadyExists", true, 0));
    let taken = check(topic(1, 1, &[]), &found, |it| {
        it.owned.clear();
        it.adopts = true;
    });
    assert_eq!((taken.changes.adopts.len(), taken.changes.configs.len(), taken.owned.len()), (1, 1, 1));
}

#[test]
fn bad_input_is_named() {
    assert_eq!(reason(&check(topic(1, 9, &[]), &topic(1, 1, &[]), |_| {})), "NotEnoughBrokers");
    assert_eq!(
        reason(&check(topic(1, 1, &[("min.insync.replicas", "2")]), &topic(1, 1, &[]), |_| {})),
        "MinInsyncAboveReplicas"
    );
}

#[test]
fn a_topic_of_an_older_set_is_let_go() {
    let mut cluster = Cluster::new();
    cluster.put("a", &topic(1, 1, &[]));
    let name = || "a".to_owned();
    let wanted = Wanted { topics: [(name(), topic(2, 1, &[]))].into(), owned: [name()].into(), ..wanted() };
    let claims = Claims { older: [(name(), "n/older".to_owned())].into(), any: [name()].into() };
    let decision = decide(&wanted, &cluster.look(&wanted, &claims), &claims);
    assert_eq!((reason(&decision), decision.owned.len()), ("ClaimedByOlderSet", 0));
    assert!(decision.changes.is_empty());
    // One that is not declared here any more, but elsewhere, is not deleted.
    let leaving = Wanted { topics: BTreeMap::new(), deletes: true, ..wanted };
    let claims = Claims { any: [name()].into(), ..Claims::default() };
    let decision = decide(&leaving, &cluster.look(&leaving, &claims), &claims);
    assert!(decision.changes.is_empty() && decision.owned.is_empty());
}

#[test]
fn what_does_not_stay_done_is_done_ever_less_often() {
    let mut state = super::SetState::default();
    let mut pause = |hash: Option<&str>| {
        let (cluster_id, decision) = (String::new(), super::decide::Decision::default());
        let look = super::Look { cluster_id, decision, acted: hash.map(str::to_owned) };
        super::pause_after(&super::Outcome::Looked(Box::new(look)), &mut state)
    };
    let first = pause(Some("a"));
    assert_eq!((pause(Some("a")), pause(Some("a"))), (first * 2, first * 4));
    assert_eq!(pause(Some("b")), first, "another change is another matter");
    assert_eq!((0..20).map(|_| pause(Some("b"))).last(), Some(super::LOOK_INTERVAL));
    assert_eq!(pause(None), super::LOOK_INTERVAL);
}

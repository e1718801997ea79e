//! Pure: what is asked, what is there and who else claims it → what to do, and what only a person can mend.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    changes::{Changes, ConfigChange},
    claims::Claims,
    guard, moves,
    wanted::{self, GROW, MIN_INSYNC, Wanted},
    world::{Topic, World},
};

/// What is to be done about a set's topics, and how they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// The set's topics, those that it is about to create or adopt included. Written down before anything is done: what is not
    /// there is never deleted.
    pub(super) owned: BTreeSet<String>,
    pub(super) changes: Changes,
    pub(super) problems: BTreeMap<String, Problem>,
    /// As declared.
    pub(super) ready: BTreeSet<String>,
    /// There, but otherwise.
    pub(super) drifted: BTreeSet<String>,
    /// With replicas on the move.
    pub(super) reassigning: BTreeSet<String>,
}

/// What is wrong with one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Decision {
    pub(super) fn problem(&mut self, topic: &str, reason: &'static str, message: String) {
        self.problems.insert(topic.to_owned(), Problem { reason, message });
    }
}

pub(super) fn decide(wanted: &Wanted, world: &World, claims: &Claims) -> Decision {
    let mut decision = Decision { owned: wanted.owned.clone(), ..Decision::default() };
    for (name, topic) in &wanted.topics {
        judge(&mut decision, (wanted, world, claims), name, topic);
    }
    for name in wanted.leaving() {
        leave(&mut decision, (wanted, world, claims), name);
    }
    moves::decide(&mut decision, wanted, world);
    decision
}

/// A declared topic.
fn judge(
    decision: &mut Decision,
    (wanted, world, claims): (&Wanted, &World, &Claims),
    name: &str,
    topic: &wanted::Topic,
) {
    if let Some(older) = claims.older.get(name) {
        decision.owned.remove(name);
        let message = format!("KafkaTopicSet {older}, which is older, declares it as well");
        return decision.problem(name, "ClaimedByOlderSet", message);
    }
    if let Some(why) = world.unreadable.get(name) {
        return decision.problem(name, "Unreadable", why.clone());
    }
    let min_insync = topic.config.get(MIN_INSYNC).and_then(|value| value.trim().parse::<i16>().ok());
    if let (Some(min_insync), Some(replicas)) = (min_insync, topic.replicas)
        && min_insync > replicas
    {
        let message =
            format!("{MIN_INSYNC} is {min_insync}, and replicas {replicas}: nobody could write to it");
        return decision.problem(name, "MinInsyncAboveReplicas", message);
    }
    let Some(found) = world.topics.get(name) else {
        decision.owned.insert(name.to_owned());
        decision.changes.creates.insert(name.to_owned(), topic.clone());
        return;
    };
    if !wanted.owned.contains(name) {
        if !wanted.adopts {
            let message = "the topic was there before it was declared here: adoptionPolicy Adopt makes it this set's, and as declared";
            return decision.problem(name, "AlreadyExists", message.to_owned());
        }
        decision.owned.insert(name.to_owned());
        decision.changes.adopts.insert(name.to_owned());
    }
    compare(decision, (wanted, world), name, topic, found);
}

/// A topic that is this set's.
fn compare(
    decision: &mut Decision,
    (wanted, world): (&Wanted, &World),
    name: &str,
    topic: &wanted::Topic,
    found: &Topic,
) {
    let change = config_change(&topic.config, &found.config);
    let mut differences: Vec<String> =
        change.iter().map(|(key, value)| difference(found, key, value)).collect();
    let count = i32::try_from(found.partitions.len()).unwrap_or(i32::MAX);
    if let Some(asked) = topic.partitions.filter(|asked| *asked != count) {
        differences.push(format!("it has {count} partitions, not {asked}"));
    }
    let asked = topic.replicas.and_then(|asked| usize::try_from(asked).ok());
    if let Some(asked) =
        asked.filter(|asked| moves::origins(world, name).iter().any(|held| held.len() != *asked))
    {
        differences.push(format!("not all partitions have {asked} replicas"));
    }
    if !differences.is_empty() {
        decision.drifted.insert(name.to_owned());
        if !wanted.repairs {
            return decision.problem(name, "Drifted", differences.join("; "));
        }
    } else if !world.moves.contains_key(name) {
        decision.ready.insert(name.to_owned());
    }
    let change = postponed(change, moves::origins(world, name).iter().map(Vec::len).min());
    if !change.is_empty() {
        decision.changes.configs.insert(name.to_owned(), change);
    }
    if let Some(asked) = topic.partitions {
        grow(decision, wanted, name, (count, asked));
    }
}

fn difference(found: &Topic, key: &str, asked: &Option<String>) -> String {
    match (found.config.get(key), asked) {
        (Some(is), Some(asked)) => format!("{key} is {is}, not {asked}"),
        (None, Some(asked)) => format!("{key} is not {asked}"),
        (is, None) => format!("{key} is {}, and not declared", is.map_or("", String::as_str)),
    }
}

fn grow(decision: &mut Decision, wanted: &Wanted, name: &str, (count, asked): (i32, i32)) {
    if count > asked {
        let message = format!(
            "the topic has {count} partitions and {asked} are declared: Kafka cannot take partitions away"
        );
        return decision.problem(name, "TooManyPartitions", message);
    }
    if count < asked {
        if wanted.grows || wanted.may_grow.get(name) == Some(&asked.to_string()) {
            decision.changes.grows.insert(name.to_owned(), asked);
        } else {
            let message = format!(
                "the topic has {count} partitions and {asked} are declared: more of them send keys to other partitions; annotate \
                 {GROW}={name}:{asked}, or let partitionIncreasePolicy be Automatic"
            );
            decision.problem(name, "MorePartitionsNeedConsent", message);
        }
    }
}

/// What makes one configuration the other. Which replicas are throttled is a matter of their moves.
fn config_change(wanted: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> ConfigChange {
    let set = wanted.iter().filter(|(key, value)| found.get(*key).is_none_or(|is| !is_same(is, value)));
    let unset =
        found.keys().filter(|key| !wanted.contains_key(*key) && !moves::THROTTLED.contains(&key.as_str()));
    let set = set.map(|(key, value)| (key.clone(), Some(value.clone())));
    set.chain(unset.map(|key| (key.clone(), None))).collect()
}

/// Without what would stop producers until there are more replicas.
fn postponed(mut change: ConfigChange, replicas: Option<usize>) -> ConfigChange {
    let min_insync = change.get(MIN_INSYNC).cloned().flatten().and_then(|value| value.trim().parse().ok());
    if min_insync.zip(replicas).is_some_and(|(min_insync, replicas): (usize, _)| min_insync > replicas) {
        change.remove(MIN_INSYNC);
    }
    change
}

/// Whether a value reads back as the other: brokers write numbers, booleans and lists their own way.
fn is_same(one: &str, other: &str) -> bool {
    let plain = |value: &str| {
        let item = |item: &str| {
            let item = item.trim();
            match (item.parse::<i128>(), item.parse::<f64>()) {
                (Ok(number), _) => number.to_string(),
                (_, Ok(number)) => number.to_string(),
                _ if ["true", "false"].contains(&item.to_lowercase().as_str()) => item.to_lowercase(),
                _ => item.to_owned(),
            }
        };
        value.split(',').map(item).collect::<Vec<_>>()
    };
    one == other || plain(one) == plain(other)
}

/// A topic that is not declared any more.
fn leave(decision: &mut Decision, (wanted, world, claims): (&Wanted, &World, &Claims), name: &str) {
    if let Some(why) = world.unreadable.get(name) {
        return decision.problem(name, "Unreadable", why.clone());
    }
    let Some(topic) = world.topics.get(name) else {
        decision.owned.remove(name);
        return;
    };
    if !wanted.deletes || claims.any.contains(name) {
        // Throttles would stay for ever: nobody looks at it again.
        if !moves::are_open(world, name) {
            decision.owned.remove(name);
        }
        return;
    }
    match guard::objection(wanted, name, topic, world.uses.get(name)) {
        None => drop(decision.changes.deletes.insert(name.to_owned(), topic.id)),
        Some(objection) => decision.problem(name, guard::IN_USE, objection),
    }
}

/// What has to be known of who uses which topics before anything is decided.
pub(super) fn doomed(wanted: &Wanted, world: &World, claims: &Claims) -> BTreeSet<String> {
    let doomed = |name: &&String| world.topics.contains_key(*name) && !claims.any.contains(*name);
    wanted.leaving().filter(|_| wanted.deletes).filter(doomed).cloned().collect()
}

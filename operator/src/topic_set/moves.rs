//! Pure: replicas that move. Before a move begins its replicas are throttled, and when no move is left, none is: both are read
//! off the cluster, so that whoever comes next ends what another began.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    changes::ConfigChange,
    decide::Decision,
    placement::Ground,
    wanted::{MIN_INSYNC, Wanted},
    world::{BrokerId, Move, World},
};

/// The keys of a topic that say which of its replicas are slowed: as leaders, and as followers.
pub(crate) const THROTTLED: [&str; 2] =
    ["leader.replication.throttled.replicas", "follower.replication.throttled.replicas"];
/// The keys of brokers that say by how much. The operator writes them for all brokers at once, as the cluster's default: a
/// broker that is away needs not be asked, and what others set for single brokers stays.
pub(crate) const RATES: [&str; 2] =
    ["leader.replication.throttled.rate", "follower.replication.throttled.rate"];

/// A partition, where it comes from, and what is copied.
type Copies = BTreeMap<i32, (Vec<BrokerId>, BTreeSet<BrokerId>)>;

pub(super) fn decide(decision: &mut Decision, wanted: &Wanted, world: &World) {
    let ours = wanted.concerned();
    decision.reassigning = world.moves.keys().filter(|topic| ours.contains(*topic)).cloned().collect();
    begin(decision, wanted, world);
    let mut copies = false;
    for name in decision.owned.clone() {
        let Some(topic) = world.topics.get(&name) else { continue };
        let moving = moving(decision, world, &name);
        copies |= moving.values().any(|(_, adding)| !adding.is_empty());
        let change = throttle(&moving, &topic.config);
        if !change.is_empty() {
            decision.changes.throttles.insert(name, change);
        }
    }
    decision.changes.rate =
        rate(wanted, world, copies, world.moves.keys().any(|topic| !ours.contains(topic)));
}

/// What each partition of a topic has, or had before it began to move.
pub(super) fn origins(world: &World, name: &str) -> Vec<Vec<BrokerId>> {
    let Some(topic) = world.topics.get(name) else { return Vec::new() };
    let on = |partition| world.moves.get(name).and_then(|moves| moves.get(partition)).map(Move::origin);
    topic.partitions.iter().map(|(partition, held)| on(partition).unwrap_or_else(|| held.clone())).collect()
}

/// Whether something of a move is left: the move itself, or its throttle.
pub(super) fn are_open(world: &World, name: &str) -> bool {
    let throttled = |config: &BTreeMap<String, String>| THROTTLED.iter().any(|key| config.contains_key(*key));
    world.moves.contains_key(name) || world.topics.get(name).is_some_and(|topic| throttled(&topic.config))
}

/// Chooses places for partitions with another number of replicas than asked; as many at once as the spec allows.
fn begin(decision: &mut Decision, wanted: &Wanted, world: &World) {
    let under_way: usize =
        decision.reassigning.iter().filter_map(|topic| world.moves.get(topic)).map(BTreeMap::len).sum();
    let mut room = if wanted.plans { usize::MAX } else { wanted.moves.saturating_sub(under_way) };
    let held = world.topics.values().flat_map(|topic| topic.partitions.values().flatten());
    let mut ground = Ground::new(&world.brokers, held);
    if !wanted.repairs {
        return;
    }
    for (name, topic) in &wanted.topics {
        let (Some(found), true) = (world.topics.get(name), decision.owned.contains(name)) else { continue };
        let Some(count) = topic.replicas.and_then(|count| usize::try_from(count).ok()) else { continue };
        if found.config.get(MIN_INSYNC).and_then(|is| is.parse().ok()).is_some_and(|is: usize| is > count) {
            continue; // With fewer replicas than that nobody could write: its configuration changes first.
        }
        for (partition, held) in &found.partitions {
            let under_way = world.moves.get(name).and_then(|moves| moves.get(partition));
            if under_way.map_or(held.len(), |it| it.target().len()) == count {
                continue;
            }
            if room == 0 && under_way.is_none() {
                return;
            }
            let origin = under_way.map_or_else(|| held.clone(), Move::origin);
            let Some(replicas) = ground.place(&origin, count) else {
                let message =
                    format!("{count} replicas are declared, and {} brokers live", world.brokers.len());
                decision.problem(name, "NotEnoughBrokers", message);
                break;
            };
            room = room.saturating_sub(usize::from(under_way.is_none()));
            decision.changes.moves.entry(name.clone()).or_default().insert(*partition, replicas);
        }
    }
}

/// Moves under way, and those about to begin.
fn moving(decision: &Decision, world: &World, name: &str) -> Copies {
    let under_way = world.moves.get(name).into_iter().flatten();
    let mut copies: Copies =
        under_way.map(|(partition, it)| (*partition, (it.origin(), it.adding.clone()))).collect();
    let begun = decision.changes.moves.get(name).into_iter().flatten();
    for (partition, replicas) in begun {
        let under_way = copies.get(partition).map(|(origin, _)| origin.clone());
        let held = || world.topics.get(name).and_then(|topic| topic.partitions.get(partition)).cloned();
        let origin = under_way.or_else(held).unwrap_or_default();
        let adding = replicas.iter().copied().filter(|broker| !origin.contains(broker)).collect();
        copies.insert(*partition, (origin, adding));
    }
    copies
}

/// Throttles what moves. What is throttled beyond that stays so until the topic's last move has ended: it is not worth a request.
fn throttle(moving: &Copies, config: &BTreeMap<String, String>) -> ConfigChange {
    let copied = || moving.iter().filter(|(_, (_, adding))| !adding.is_empty());
    let pairs = |partition: &i32, brokers: Vec<BrokerId>| {
        brokers.into_iter().map(|broker| format!("{partition}:{broker}")).collect::<Vec<_>>()
    };
    let leaders: Vec<String> = copied().flat_map(|(it, (origin, _))| pairs(it, origin.clone())).collect();
    let followers: Vec<String> =
        copied().flat_map(|(it, (_, adding))| pairs(it, adding.iter().copied().collect())).collect();
    let mut change = ConfigChange::new();
    for (key, replicas) in THROTTLED.into_iter().zip([leaders, followers]) {
        let found: Option<BTreeSet<&str>> = config.get(key).map(|value| value.split(',').collect());
        let is_throttled =
            |replica: &String| found.as_ref().is_some_and(|found| found.contains(replica.as_str()));
        match replicas.as_slice() {
            [] if found.is_none() => {}
            [] => drop(change.insert(key.to_owned(), None)),
            [..] if replicas.iter().all(is_throttled) => {}
            [..] => drop(change.insert(key.to_owned(), Some(replicas.join(",")))),
        }
    }
    change
}

/// The rate is set while something of ours is copied, and unset when nothing moves in the whole cluster. While others move, a
/// rate that is there is good enough.
fn rate(wanted: &Wanted, world: &World, copies: bool, others_move: bool) -> Option<Option<i64>> {
    let [leader, follower] = world.rates;
    if copies {
        let is_set = world.rates == [Some(wanted.throttle); 2];
        let is_good_enough = others_move && leader.is_some() && follower.is_some();
        return (!is_set && !is_good_enough).then_some(Some(wanted.throttle));
    }
    (world.moves.is_empty() && (leader.is_some() || follower.is_some())).then_some(None)
}

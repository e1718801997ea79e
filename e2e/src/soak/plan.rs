//! What a soak does, step by step, drawn from its seed alone. Pure.

use std::{collections::BTreeMap, fmt};

use rand::{
    RngExt as _, SeedableRng as _,
    rngs::StdRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};

use crate::{ordeal::Moment, shop::shard_names};

/// Servers that a soak has.
pub(super) const SERVERS: usize = 6;
/// Shards in the spec at the start, all of the usual weight.
pub(super) const FIRST: usize = 3;
const USUAL_WEIGHT: u32 = 100;
const WEIGHTS: [u32; 5] = [25, 50, 100, 200, 400];
/// So many actions are in every operation.
const ACTIONS: usize = 40;
const QUIET_MILLIS_MAX: u64 = 4_000;

/// `spec.shards`, by name.
pub(super) type Weights = BTreeMap<String, u32>;

/// One edit of `spec.shards`, and what happens while rows move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Counted from 1.
    pub number: u64,
    /// `spec.shards` before.
    pub before: Weights,
    /// What it is edited to.
    pub after: Weights,
    /// In this order, each as soon as its moment has come.
    pub acts: Vec<(Moment, Act)>,
    /// How long nothing is done before the edit.
    pub quiet_millis: u64,
}

/// What happens while rows move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// kill -9; another one starts at once.
    KillOperator,
    /// kill -9; they start again.
    KillServers(Vec<String>),
    /// SIGSTOP past its Lease.
    FreezeLeader,
    /// `spec.shards` is edited to what it was before.
    EditBack,
}

/// How `spec.shards` changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Card {
    Count(usize),
    AnyCount,
    Swap,
    Reweigh,
    Drain,
    Back,
}

/// An endless plan.
#[derive(Debug)]
pub(super) struct Plan {
    seed: u64,
    number: u64,
    now: Weights,
    deck: Vec<Card>,
}

impl Plan {
    /// The plan of this seed.
    pub(super) fn new(seed: u64) -> Self {
        let now = shard_names(FIRST).into_iter().map(|name| (name, USUAL_WEIGHT)).collect();
        Self { seed, number: 0, now, deck: Vec::new() }
    }

    /// 3 → 5 → 3 comes first; then all kinds of edits, in an order that is drawn anew whenever all have been.
    fn draw_card(&mut self, rng: &mut StdRng) -> Card {
        if self.deck.is_empty() {
            let mut rest = vec![Card::AnyCount, Card::Swap, Card::Reweigh, Card::Drain, Card::Back];
            let counts = [Card::Count(3), Card::Count(5)];
            if self.number == 1 {
                rest.shuffle(rng);
                rest.extend(counts);
            } else {
                rest.extend(counts);
                rest.shuffle(rng);
            }
            self.deck = rest;
        }
        self.deck.pop().unwrap_or(Card::AnyCount)
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        self.number += 1;
        // Each step has its own source of randomness.
        let mut rng = StdRng::seed_from_u64(self.seed ^ self.number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let card = self.draw_card(&mut rng);
        let after = edited(card, &self.now, &mut rng);
        let acts = acts(card, &self.now, &after, &mut rng);
        let back = acts.iter().any(|(_, act)| *act == Act::EditBack);
        let before = self.now.clone();
        if !back {
            self.now.clone_from(&after);
        }
        let quiet_millis = rng.random_range(0..=QUIET_MILLIS_MAX);
        Some(Step { number: self.number, before, after, acts, quiet_millis })
    }
}

/// Other weights, such that some bucket moves. At least one shard stays.
fn edited(card: Card, now: &Weights, rng: &mut StdRng) -> Weights {
    let used = used(now);
    let wanted = match card {
        Card::Count(count) => counted(now, count, rng),
        Card::AnyCount | Card::Back => counted(now, another_count(used.len(), rng), rng),
        Card::Swap => swapped(now, rng),
        Card::Reweigh => used.iter().map(|name| (name.clone(), drawn_weight(rng))).collect(),
        Card::Drain if used.len() > 1 => {
            let drained = used.choose(rng);
            now.iter()
                .map(|(name, weight)| (name.clone(), if Some(name) == drained { 0 } else { *weight }))
                .collect()
        }
        Card::Drain => now.clone(),
    };
    if losers(now, &wanted).is_empty() {
        return counted(now, another_count(used.len(), rng), rng);
    }
    wanted
}

fn drawn_weight(rng: &mut StdRng) -> u32 {
    WEIGHTS.choose(rng).copied().unwrap_or(USUAL_WEIGHT)
}

fn another_count(count: usize, rng: &mut StdRng) -> usize {
    let other = rng.random_range(1..SERVERS);
    if other >= count { other + 1 } else { other }
}

/// Shards that have buckets.
fn used(now: &Weights) -> Vec<String> {
    now.iter().filter(|(_, weight)| **weight > 0).map(|(name, _)| name.clone()).collect()
}

fn spare(now: &Weights, rng: &mut StdRng) -> Vec<String> {
    let used = used(now);
    let mut spare: Vec<String> =
        shard_names(SERVERS).into_iter().filter(|name| !used.contains(name)).collect();
    spare.shuffle(rng);
    spare
}

/// So many shards: drawn ones go, or drawn ones come. What was drained goes.
fn counted(now: &Weights, count: usize, rng: &mut StdRng) -> Weights {
    let mut names = used(now);
    names.shuffle(rng);
    names.extend(spare(now, rng));
    names.truncate(count);
    with_weights(names, now)
}

/// Others take the place of some.
fn swapped(now: &Weights, rng: &mut StdRng) -> Weights {
    let mut names = used(now);
    let spare = spare(now, rng);
    let most = (names.len() - 1).min(spare.len());
    if most == 0 {
        return now.clone();
    }
    let swapped = rng.random_range(1..=most);
    names.shuffle(rng);
    names.truncate(names.len() - swapped);
    names.extend(spare.into_iter().take(swapped));
    with_weights(names, now)
}

fn with_weights(names: Vec<String>, now: &Weights) -> Weights {
    let weight = |name: &String| now.get(name).copied().filter(|weight| *weight > 0).unwrap_or(USUAL_WEIGHT);
    names.into_iter().map(|name| (name.clone(), weight(&name))).collect()
}

/// Shards whose share falls.
fn losers(before: &Weights, after: &Weights) -> Vec<String> {
    let share = |weights: &Weights, name: &str| {
        let sum: u32 = weights.values().sum();
        (u64::from(weights.get(name).copied().unwrap_or(0)), u64::from(sum))
    };
    let falls = |name: &&String| {
        let ((was, of), (is, of_now)) = (share(before, name), share(after, name));
        is * of < was * of_now
    };
    before.keys().filter(falls).cloned().collect()
}

fn acts(card: Card, before: &Weights, after: &Weights, rng: &mut StdRng) -> Vec<(Moment, Act)> {
    let mut acts: Vec<(Moment, Act)> =
        (0..rng.random_range(0..=2)).map(|_| (drawn_moment(rng), drawn_act(before, after, rng))).collect();
    if card == Card::Back {
        acts.push((drawn_moment(rng), Act::EditBack));
        acts.shuffle(rng);
    }
    acts
}

fn drawn_moment(rng: &mut StdRng) -> Moment {
    match rng.random_range(0..5) {
        0 => Moment::Copying,
        1 => Moment::HandingOver,
        2 => Moment::HandedOver,
        _ => Moment::Actions(rng.random_range(1..=ACTIONS)),
    }
}

fn drawn_act(before: &Weights, after: &Weights, rng: &mut StdRng) -> Act {
    let giver = |rng: &mut _| losers(before, after).choose(rng).cloned();
    let taker = |rng: &mut _| losers(after, before).choose(rng).cloned();
    match rng.random_range(0..20) {
        0..8 => Act::KillOperator,
        8..11 => Act::FreezeLeader,
        11..15 => Act::KillServers(giver(rng).into_iter().collect()),
        15..19 => Act::KillServers(taker(rng).into_iter().collect()),
        _ => Act::KillServers(giver(rng).into_iter().chain(taker(rng)).collect()),
    }
}

impl Act {
    /// Whether the operator's process does not outlive it.
    pub(super) fn ends_operator(&self) -> bool {
        match self {
            Self::KillOperator | Self::FreezeLeader => true,
            Self::KillServers(_) | Self::EditBack => false,
        }
    }

    /// Its kind, as in reports.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::KillOperator => "operator",
            Self::KillServers(_) => "server",
            Self::FreezeLeader => "leader_frozen",
            Self::EditBack => "edited_back",
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillOperator => f.write_str("kill -9 the operator"),
            Self::KillServers(names) => write!(f, "kill -9 the servers of {}", names.join(" and ")),
            Self::FreezeLeader => f.write_str("freeze the leader"),
            Self::EditBack => f.write_str("edit back"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |weights: &Weights| {
            let each: Vec<String> = weights.iter().map(|(name, weight)| format!("{name}:{weight}")).collect();
            each.join(" ")
        };
        write!(f, "{} → {}", shown(&self.before), shown(&self.after))?;
        self.acts.iter().try_for_each(|(moment, act)| write!(f, "; {act} when {moment}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: usize = 300;

    fn steps(seed: u64) -> Vec<Step> {
        Plan::new(seed).take(STEPS).collect()
    }

    #[test]
    fn a_seed_replays_and_another_differs() {
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }

    #[test]
    fn every_step_is_valid() {
        let known = shard_names(SERVERS);
        for seed in 0..50 {
            let mut now: Weights = shard_names(FIRST).into_iter().map(|name| (name, USUAL_WEIGHT)).collect();
            for step in steps(seed) {
                assert_eq!(step.before, now, "seed {seed}, {step}");
                let Step { before, after, acts, .. } = &step;
                assert!(after.values().any(|weight| *weight > 0), "seed {seed}, {step}");
                assert!(after.keys().all(|name| known.contains(name)), "seed {seed}, {step}");
                // The API server refuses an edit that keeps no shard.
                assert!(after.keys().any(|name| before.contains_key(name)), "seed {seed}, {step}");
                assert!(!losers(before, after).is_empty(), "nothing moves: seed {seed}, {step}");
                for (_, act) in acts {
                    if let Act::KillServers(names) = act {
                        let involved = |name| before.contains_key(name) || after.contains_key(name);
                        assert!(!names.is_empty() && names.iter().all(involved), "seed {seed}, {step}");
                    }
                }
                if !acts.iter().any(|(_, act)| *act == Act::EditBack) {
                    now.clone_from(after);
                }
            }
        }
    }

    #[test]
    fn every_kind_of_step_comes() {
        let counts = |step: &Step| (used(&step.before).len(), used(&step.after).len());
        for seed in 0..50 {
            let steps = steps(seed);
            assert_eq!((counts(&steps[0]), counts(&steps[1])), ((3, 5), (5, 3)), "seed {seed}");
            let some = |is: &dyn Fn(&Step) -> bool| steps.iter().any(is);
            assert!(some(&|step| step.after.values().any(|weight| *weight == 0)), "a drain");
            assert!(some(&|step| step.before.keys().eq(step.after.keys())), "a re-weight");
            assert!(some(
                &|step| counts(step).0 == counts(step).1 && !step.before.keys().eq(step.after.keys())
            ));
            for kind in ["operator", "server", "leader_frozen", "edited_back"] {
                assert!(some(&|step| step.acts.iter().any(|(_, act)| act.kind() == kind)), "{kind}");
            }
        }
    }
}

//! Pure: which brokers hold a partition when its number of replicas changes. Racks come first, then the load.

use std::collections::BTreeMap;

use super::world::BrokerId;

/// Brokers, and how many replicas each holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Ground {
    brokers: BTreeMap<BrokerId, Option<String>>,
    load: BTreeMap<BrokerId, usize>,
}

impl Ground {
    pub(super) fn new<'a>(
        brokers: &BTreeMap<BrokerId, Option<String>>,
        held: impl Iterator<Item = &'a BrokerId>,
    ) -> Self {
        let mut load = BTreeMap::new();
        for broker in held {
            *load.entry(*broker).or_default() += 1;
        }
        Self { brokers: brokers.clone(), load }
    }

    /// `count` brokers for a partition that is on `origin`. What can stay stays, the preferred leader above all; none if too few
    /// brokers live. It counts for the next one.
    pub(super) fn place(&mut self, origin: &[BrokerId], count: usize) -> Option<Vec<BrokerId>> {
        let mut replicas = origin.to_vec();
        while replicas.len() > count {
            let worst = (0..replicas.len()).max_by_key(|place| self.burden(&replicas, *place))?;
            let broker = replicas.remove(worst);
            self.load.entry(broker).and_modify(|load| *load = load.saturating_sub(1));
        }
        while replicas.len() < count {
            let free = self.brokers.keys().filter(|broker| !replicas.contains(broker));
            let best =
                *free.min_by_key(|broker| (self.neighbours(&replicas, **broker), self.load(**broker)))?;
            *self.load.entry(best).or_default() += 1;
            replicas.push(best);
        }
        Some(replicas)
    }

    /// How well a replica can be spared: dead ones first, the preferred leader last.
    fn burden(&self, replicas: &[BrokerId], place: usize) -> (bool, bool, usize, usize) {
        let broker = replicas.get(place).copied().unwrap_or_default();
        let is_dead = !self.brokers.contains_key(&broker);
        (is_dead, place > 0, self.neighbours(replicas, broker), self.load(broker))
    }

    /// How many of the others share a broker's rack. A broker without one has it for itself.
    fn neighbours(&self, replicas: &[BrokerId], broker: BrokerId) -> usize {
        let rack = |broker: &BrokerId| self.brokers.get(broker).and_then(Option::as_ref);
        let Some(own) = rack(&broker) else { return 0 };
        replicas.iter().filter(|other| **other != broker && rack(other) == Some(own)).count()
    }

    fn load(&self, broker: BrokerId) -> usize {
        self.load.get(&broker).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn racks(racks: &[&str]) -> BTreeMap<BrokerId, Option<String>> {
        let rack = |rack: &str| (!rack.is_empty()).then(|| rack.to_owned());
        (1..).zip(racks).map(|(broker, name)| (broker, rack(name))).collect()
    }

    fn place(names: &[&str], origin: &[BrokerId], count: usize) -> Option<Vec<BrokerId>> {
        Ground::new(&racks(names), origin.iter()).place(origin, count)
    }

    #[test]
    fn racks_come_first() {
        assert_eq!(place(&["a", "a", "b", "c"], &[1], 3), Some(vec![1, 3, 4]));
        assert_eq!(place(&["a", "a", "b"], &[1, 2, 3], 2), Some(vec![1, 3]));
        assert_eq!(place(&["", "", ""], &[2], 3), Some(vec![2, 1, 3]));
    }

    #[test]
    fn the_dead_go_first_and_too_few_are_not_enough() {
        assert_eq!(place(&["a", "b"], &[9, 1], 1), Some(vec![1]));
        assert_eq!(place(&["a", "b"], &[1], 3), None);
    }

    proptest! {
        #[test]
        fn what_can_stay_stays_and_racks_are_used_evenly(
            names in prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..9),
            first in 0_usize..9,
            count in 1_usize..6,
        ) {
            let brokers = racks(&names);
            let count = count.min(brokers.len());
            let leader = i32::try_from(first % names.len()).unwrap() + 1;
            let mut ground = Ground::new(&brokers, [leader].iter());
            let replicas = ground.place(&[leader], count).unwrap();
            prop_assert_eq!(replicas.first(), Some(&leader));
            prop_assert_eq!(replicas.iter().collect::<BTreeSet<_>>().len(), count);
            let used: BTreeSet<_> = replicas.iter().map(|broker| &brokers[broker]).collect();
            let there: BTreeSet<_> = brokers.values().collect();
            prop_assert_eq!(used.len(), count.min(there.len()));
            let fewer = ground.place(&replicas, 1).unwrap();
            prop_assert_eq!(fewer, vec![leader]);
        }
    }
}

//! What is asked, and when. Everything but the choice of *which* order to read or cancel comes from the seed
//! alone, so that a run can be replayed; that choice needs answers of this very run.

use super::{Kind, LoadOptions, Mix, zipf::Zipf};
use crate::{
    history::{Answer, Item, Operation, Outcome},
    preload::PreloadedOrder,
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use uuid::Uuid;

/// So many of this run's own orders are remembered for reading; older ones are read less and less.
const RECENT_MAX: usize = 20_000;
/// Orders asked for by a list.
const LIST_LIMIT: u32 = 50;

/// An operation to send.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) kind: Kind,
    pub(super) operation: Operation,
}

/// Draws arrivals and operations.
#[derive(Debug)]
pub(super) struct Planner {
    arrivals: StdRng,
    seed: u64,
    /// Keys must differ between runs on one store, so they bear this and not the seed.
    run: String,
    operations_per_second: f64,
    mix: Mix,
    users: Zipf,
    due: Duration,
    count: u64,
}

impl Planner {
    /// `None` if the options leave nothing to do.
    pub(super) fn new(options: &LoadOptions) -> Option<Self> {
        let Mix { place, get, list, cancel } = options.mix;
        let whole = f64::from(place) + f64::from(get) + f64::from(list) + f64::from(cancel);
        let operations_per_second = options.orders_per_second * whole / f64::from(place);
        let usable = place > 0 && operations_per_second > 0.0 && operations_per_second.is_finite();
        if !usable || options.targets.is_empty() {
            return None;
        }
        Some(Self {
            arrivals: StdRng::seed_from_u64(options.seed),
            seed: options.seed,
            run: Uuid::new_v4().simple().to_string(),
            operations_per_second,
            mix: options.mix,
            users: Zipf::new(options.users, options.zipf_exponent)?,
            due: Duration::ZERO,
            count: 0,
        })
    }

    /// When the next operation is due, from the start: gaps are exponential, so arrivals are Poisson.
    pub(super) fn next_due(&mut self) -> Duration {
        let uniform: f64 = self.arrivals.random();
        self.due += Duration::from_secs_f64(-(1.0 - uniform).ln() / self.operations_per_second);
        self.due
    }

    /// The next operation. One that needs an earlier order, when there is none yet, becomes a place.
    pub(super) fn plan(&mut self, targets: &Targets) -> Planned {
        self.count += 1;
        // Each operation has its own source of randomness: what one draws never shifts the next.
        let mut rng = StdRng::seed_from_u64(self.seed ^ self.count.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let drawn = self.kind(&mut rng);
        let user_id = self.users.draw(&mut rng);
        let target = match drawn {
            Kind::Place => None,
            Kind::List => Some(Operation::List { user_id, limit: LIST_LIMIT }),
            Kind::Get => targets.to_read(&mut rng).map(|order_id| Operation::Get { order_id }),
            Kind::Cancel => targets.to_cancel(&mut rng).map(|order_id| Operation::Cancel { order_id }),
        };
        match target {
            Some(operation) => Planned { kind: drawn, operation },
            None => {
                let key = format!("{}-{}", self.run, self.count);
                Planned {
                    kind: Kind::Place,
                    operation: Operation::Place { user_id, key, items: items(&mut rng) },
                }
            }
        }
    }

    fn kind(&self, rng: &mut impl Rng) -> Kind {
        let Mix { place, get, list, cancel } = self.mix;
        let mut point = rng.random_range(0..place + get + list + cancel);
        for (kind, share) in [(Kind::Place, place), (Kind::Get, get), (Kind::List, list)] {
            if point < share {
                return kind;
            }
            point -= share;
        }
        Kind::Cancel
    }
}

fn items(rng: &mut impl Rng) -> Vec<Item> {
    let lines = rng.random_range(1..=4);
    let item = |rng: &mut _| Item {
        sku: format!("A-{}", RngExt::random_range(rng, 1..=5_000)),
        quantity: RngExt::random_range(rng, 1..=5),
        price_cents: RngExt::random_range(rng, 0..=20_000),
    };
    (0..lines).map(|_| item(rng)).collect()
}

/// Orders that can be read or cancelled.
#[derive(Debug)]
pub(super) struct Targets {
    preloaded: Vec<PreloadedOrder>,
    own: Mutex<Own>,
}

#[derive(Debug, Default)]
struct Own {
    recent: Vec<Uuid>,
    oldest: usize,
    uncancelled: Vec<Uuid>,
}

impl Targets {
    pub(super) fn new(preloaded: Vec<PreloadedOrder>) -> Self {
        Self { preloaded, own: Mutex::default() }
    }

    /// Remembers an acknowledged place.
    pub(super) fn learn(&self, operation: &Operation, outcome: &Outcome) {
        let Operation::Place { .. } = operation else { return };
        let Outcome::Acknowledged { answer: Answer::Order(facts), .. } = outcome else { return };
        let mut own = self.lock();
        own.uncancelled.push(facts.order_id);
        if own.recent.len() < RECENT_MAX {
            own.recent.push(facts.order_id);
        } else {
            let oldest = own.oldest;
            own.recent[oldest] = facts.order_id;
            own.oldest = (oldest + 1) % RECENT_MAX;
        }
    }

    /// One of this run's own orders or a preloaded one, as likely if there are both.
    fn to_read(&self, rng: &mut impl Rng) -> Option<Uuid> {
        let own = self.lock();
        let from_own = !own.recent.is_empty() && (self.preloaded.is_empty() || rng.random_bool(0.5));
        if from_own {
            return Some(own.recent[rng.random_range(0..own.recent.len())]);
        }
        (!self.preloaded.is_empty())
            .then(|| self.preloaded[rng.random_range(0..self.preloaded.len())].order_id)
    }

    /// One of this run's own orders, each once.
    fn to_cancel(&self, rng: &mut impl Rng) -> Option<Uuid> {
        let mut own = self.lock();
        let count = own.uncancelled.len();
        (count > 0).then(|| own.uncancelled.swap_remove(rng.random_range(0..count)))
    }

    fn lock(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(seed: u64) -> LoadOptions {
        let targets = vec!["http://127.0.0.1:1".to_owned()];
        LoadOptions { targets, seed, orders_per_second: 60.0, users: 100, ..LoadOptions::default() }
    }

    fn draw(seed: u64, count: usize) -> (Duration, Vec<Operation>) {
        let mut planner = Planner::new(&options(seed)).unwrap();
        let targets = Targets::new(vec![PreloadedOrder { index: 0, user_id: 1, order_id: Uuid::nil() }]);
        let operations = (0..count).map(|_| {
            planner.next_due();
            planner.plan(&targets).operation
        });
        let operations = operations.collect();
        (planner.due, operations)
    }

    fn without_key(operation: Operation) -> Operation {
        match operation {
            Operation::Place { user_id, items, key: _ } => {
                Operation::Place { user_id, key: String::new(), items }
            }
            other @ (Operation::Get { .. } | Operation::List { .. } | Operation::Cancel { .. }) => other,
        }
    }

    #[test]
    fn a_seed_replays_and_another_differs() {
        let (due, first) = draw(7, 500);
        let (due_again, second) = draw(7, 500);
        let (_, other) = draw(8, 500);
        let strip = |operations: Vec<_>| operations.into_iter().map(without_key).collect::<Vec<_>>();
        let first = strip(first);
        assert_eq!((due, &first), (due_again, &strip(second)));
        assert_ne!(first, strip(other));
    }

    #[test]
    fn rate_and_mix_are_as_asked() {
        let (due, operations) = draw(1, 10_000);
        assert!((95.0..105.0).contains(&due.as_secs_f64()), "10,000 operations at 100/s took {due:?}");
        let gets = operations.iter().filter(|one| matches!(one, Operation::Get { .. })).count();
        assert!((2_300..2_700).contains(&gets), "{gets}");
    }
}

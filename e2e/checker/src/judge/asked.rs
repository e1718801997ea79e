//! The history's places and cancels: what was asked for, and what was promised.

use crate::history::{self, Answer, HistoryError, Item, Micros, Operation, Outcome, Record};
use std::{collections::HashMap, path::Path};
use uuid::Uuid;

/// What is known of an effect that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// The service said that it happened.
    Acknowledged,
    /// It may or may not have happened.
    Unsure,
    /// It surely did not happen.
    Refused,
}

/// An order that was asked for.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) user_id: i64,
    pub(super) key: String,
    pub(super) items: Vec<Item>,
    pub(super) began_us: Micros,
    pub(super) effect: Effect,
    /// From the answer.
    pub(super) acknowledged_as: Option<Uuid>,
}

/// All cancels of one order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cancel {
    /// When the first that may have been applied was sent.
    pub(super) began_us: Micros,
    pub(super) acknowledged: bool,
}

/// Everything that was asked and can change something.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) places: Vec<Place>,
    pub(super) by_key: HashMap<String, usize>,
    /// Places by order: acknowledged ones, and (added later) those whose key leads there in the stores.
    pub(super) by_order: HashMap<Uuid, usize>,
    pub(super) cancels: HashMap<Uuid, Cancel>,
}

impl Asked {
    /// Reads the file once; gets and lists are passed over. I/O.
    pub(super) fn read(path: &Path) -> Result<Self, HistoryError> {
        let mut asked = Self::default();
        let mut open = HashMap::new();
        for record in history::read(path)? {
            match record? {
                Record::Intent { id, due_us, operation } => {
                    open.insert(id, (due_us, operation));
                }
                Record::Outcome { id, began_us, outcome, ended_us: _ } => {
                    if let Some((_, operation)) = open.remove(&id) {
                        asked.add(began_us, operation, &outcome);
                    }
                }
            }
        }
        // An intent without an outcome: whoever ran the load stopped or died.
        let unknown = Outcome::Indeterminate { reason: String::new() };
        for (due_us, operation) in open.into_values() {
            asked.add(due_us, operation, &unknown);
        }
        Ok(asked)
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.count(Effect::Acknowledged)
    }

    pub(super) fn indeterminate(&self) -> u64 {
        self.count(Effect::Unsure)
    }

    /// The place that an order came from.
    pub(super) fn place_of(&self, order_id: Uuid) -> Option<&Place> {
        self.by_order.get(&order_id).map(|index| &self.places[*index])
    }

    fn count(&self, effect: Effect) -> u64 {
        self.places.iter().filter(|place| place.effect == effect).count() as u64
    }

    fn add(&mut self, began_us: Micros, operation: Operation, outcome: &Outcome) {
        let effect = effect_of(outcome);
        match operation {
            Operation::Place { user_id, key, items } => {
                let acknowledged_as = order_of(outcome);
                let index = self.places.len();
                self.by_order.extend(acknowledged_as.map(|order_id| (order_id, index)));
                self.by_key.insert(key.clone(), index);
                self.places.push(Place { user_id, key, items, began_us, effect, acknowledged_as });
            }
            Operation::Cancel { order_id } if effect != Effect::Refused => {
                let acknowledged = effect == Effect::Acknowledged;
                let cancel = self.cancels.entry(order_id).or_insert(Cancel { began_us, acknowledged });
                cancel.began_us = cancel.began_us.min(began_us);
                cancel.acknowledged |= acknowledged;
            }
            Operation::Cancel { .. } | Operation::Get { .. } | Operation::List { .. } => {}
        }
    }
}

fn effect_of(outcome: &Outcome) -> Effect {
    match outcome {
        Outcome::Acknowledged { .. } => Effect::Acknowledged,
        Outcome::Refused { earlier_unsure: false, .. } | Outcome::NotSent => Effect::Refused,
        Outcome::Refused { earlier_unsure: true, .. } | Outcome::Indeterminate { .. } => Effect::Unsure,
    }
}

fn order_of(outcome: &Outcome) -> Option<Uuid> {
    match outcome {
        Outcome::Acknowledged { answer: Answer::Order(facts), .. } => Some(facts.order_id),
        Outcome::Acknowledged { answer: Answer::Page { .. } | Answer::Unreadable(_), .. }
        | Outcome::Refused { .. }
        | Outcome::Indeterminate { .. }
        | Outcome::NotSent => None,
    }
}

//! Gathers violations by invariant. Owns the invariants' names.

use super::{Checked, Invariant, JudgeError, OrderFaults, Verdict};
use crate::store::Store;
use sqlx::{PgConnection, Row};
use std::collections::BTreeMap;

const EXAMPLES_MAX: usize = 5;

/// The invariants judged here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    /// What was acknowledged is stored: orders, and cancellations.
    AcknowledgedStored,
    /// Nothing is stored, or shown, that was not asked for.
    NothingUnasked,
    /// One idempotency row for a (user, key) and one order for it, over all shards.
    OneRowPerKey,
    /// Stored and shown content is what the client sent.
    ContentEqual,
    /// One owner for a (bucket, epoch), and epochs never fall.
    OneOwner,
    /// Each order's version behaves like a register in real time.
    LinearizablePerUser,
    /// One event for each version, none without its order.
    EventsExactlyOnce,
    /// Totals are the sums of lines.
    MoneyConserved,
    /// Nothing remains of an operation that is over.
    NoLeftovers,
}

impl Rule {
    const ALL: [Self; 9] = [
        Self::AcknowledgedStored,
        Self::NothingUnasked,
        Self::OneRowPerKey,
        Self::ContentEqual,
        Self::OneOwner,
        Self::LinearizablePerUser,
        Self::EventsExactlyOnce,
        Self::MoneyConserved,
        Self::NoLeftovers,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::AcknowledgedStored => "acknowledged_stored",
            Self::NothingUnasked => "nothing_unasked",
            Self::OneRowPerKey => "one_row_per_key",
            Self::ContentEqual => "content_equal",
            Self::OneOwner => "one_owner",
            Self::LinearizablePerUser => "linearizable_per_user",
            Self::EventsExactlyOnce => "events_exactly_once",
            Self::MoneyConserved => "money_conserved",
            Self::NoLeftovers => "no_leftovers",
        }
    }
}

/// Violations so far.
#[derive(Debug)]
pub(super) struct Findings {
    invariants: BTreeMap<Rule, Invariant>,
    pub(super) orders: OrderFaults,
    pub(super) checked: Checked,
}

impl Findings {
    /// All invariants without violations; leftovers only where they are to be checked.
    pub(super) fn new(complete: bool) -> Self {
        let rules = Rule::ALL.iter().filter(|rule| complete || **rule != Rule::NoLeftovers);
        Self {
            invariants: rules.map(|rule| (*rule, Invariant::default())).collect(),
            orders: OrderFaults::default(),
            checked: Checked::default(),
        }
    }

    /// One violation.
    pub(super) fn add(&mut self, rule: Rule, example: String) {
        self.add_many(rule, 1, &[example]);
    }

    /// So many violations, some of them as examples.
    pub(super) fn add_many(&mut self, rule: Rule, violations: u64, examples: &[String]) {
        let invariant = self.invariants.entry(rule).or_default();
        invariant.violations += violations;
        let room = EXAMPLES_MAX.saturating_sub(invariant.examples.len());
        invariant.examples.extend(examples.iter().take(room).cloned());
    }

    /// Asks a shard a question that answers with rows (rule, violations, examples). I/O.
    pub(super) async fn ask(
        &mut self,
        connection: &mut PgConnection,
        store: &Store,
        sql: &'static str,
        about: &'static str,
    ) -> Result<(), JudgeError> {
        let failed = |source| JudgeError::Query { shard: store.name.clone(), about, source };
        let rows = sqlx::query(sql).fetch_all(connection).await.map_err(failed)?;
        for row in rows {
            let name: String = row.try_get("rule").map_err(failed)?;
            let violations: i64 = row.try_get("violations").map_err(failed)?;
            let examples: Vec<String> = row.try_get("examples").map_err(failed)?;
            let examples: Vec<_> = examples.iter().map(|one| format!("{}: {one}", store.name)).collect();
            let rule = Rule::ALL.into_iter().find(|rule| rule.as_str() == name);
            let unknown = || failed(sqlx::Error::ColumnNotFound(name.clone()));
            self.add_many(rule.ok_or_else(unknown)?, violations.unsigned_abs(), &examples);
        }
        Ok(())
    }

    pub(super) fn into_verdict(self, invalid: Vec<String>) -> Verdict {
        let named = |(rule, invariant): (Rule, _)| (rule.as_str().to_owned(), invariant);
        Verdict {
            invalid,
            invariants: self.invariants.into_iter().map(named).collect(),
            orders: self.orders,
            checked: self.checked,
        }
    }
}

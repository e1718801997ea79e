//! What clients were shown: each answer's content, and each order's version in real time. Reads the history a
//! second time, now that the order of every place is known.

use super::{
    JudgeError, Shard,
    asked::{Asked, Place},
    findings::{Findings, Rule},
    register::{self, Observation, Requested},
};
use crate::{
    history::{self, Answer, Micros, Operation, OrderFacts, Outcome, Record, total_cents},
    preload::{Preload, milliseconds_of},
};
use sqlx::Row;
use std::{
    collections::{HashMap, HashSet},
    path::Path,
};
use uuid::Uuid;

/// The service's clock and the database's may differ by so much when orders are sorted by age.
const CLOCK_SKEW_MS: u64 = 2_000;

/// A page that was shown.
struct Page {
    began_us: Micros,
    user_id: i64,
    order_ids: HashSet<Uuid>,
    /// Age of the last order on a page that did not hold all.
    until_ms: Option<u64>,
}

/// What answers said.
struct Shown<'a> {
    asked: &'a Asked,
    preload: &'a Preload,
    observations: HashMap<Uuid, Vec<Observation>>,
    /// The first facts shown of each preloaded order.
    preloaded: HashMap<u64, OrderFacts>,
    pages: Vec<Page>,
}

/// Checks all answers. I/O.
pub(super) async fn check(
    path: &Path,
    asked: &Asked,
    preload: &Preload,
    shards: &mut [Shard],
    findings: &mut Findings,
) -> Result<(), JudgeError> {
    let mut shown =
        Shown { asked, preload, observations: HashMap::new(), preloaded: HashMap::new(), pages: Vec::new() };
    let mut open = HashMap::new();
    for record in history::read(path)? {
        match record? {
            Record::Intent { id, operation, due_us: _ } => {
                open.insert(id, operation);
            }
            Record::Outcome { id, began_us, ended_us, outcome } => {
                if let Some(operation) = open.remove(&id) {
                    shown.take(&operation, outcome, (began_us, ended_us), findings);
                }
            }
        }
    }
    shown.check_versions(findings);
    let of_users = match shards.first_mut() {
        Some(shard) if preload.orders > 0 => {
            shown.check_preloaded(shard, findings).await?;
            shown.preloaded_of_users(shard).await?
        }
        Some(_) | None => HashMap::new(),
    };
    shown.check_pages(&of_users, findings);
    Ok(())
}

impl Shown<'_> {
    fn take(
        &mut self,
        operation: &Operation,
        outcome: Outcome,
        span: (Micros, Micros),
        findings: &mut Findings,
    ) {
        match outcome {
            Outcome::Acknowledged { answer, .. } => self.take_answer(operation, answer, span, findings),
            Outcome::Refused { http_status: 404, .. } => match operation {
                Operation::Get { order_id } | Operation::Cancel { order_id } => {
                    self.observe(*order_id, span, 0, findings)
                }
                Operation::Place { .. } | Operation::List { .. } => {}
            },
            Outcome::Refused { .. } | Outcome::Indeterminate { .. } | Outcome::NotSent => {}
        }
    }

    fn take_answer(
        &mut self,
        operation: &Operation,
        answer: Answer,
        span: (Micros, Micros),
        findings: &mut Findings,
    ) {
        match (operation, answer) {
            (Operation::List { user_id, .. }, Answer::Page { orders, more }) => {
                self.take_page(*user_id, orders, more, span, findings);
            }
            (Operation::Place { .. }, Answer::Order(facts)) => self.take_order(&facts, span, findings),
            (Operation::Get { order_id }, Answer::Order(facts)) => {
                check_target(*order_id, &facts, findings);
                self.take_order(&facts, span, findings);
            }
            (Operation::Cancel { order_id }, Answer::Order(facts)) => {
                check_target(*order_id, &facts, findings);
                if facts.version < 2 {
                    findings.add(
                        Rule::ContentEqual,
                        format!("the answer to a cancel shows order {order_id} uncancelled"),
                    );
                }
                self.take_order(&facts, span, findings);
            }
            (_, Answer::Unreadable(error)) => {
                findings.add(Rule::ContentEqual, format!("an answer made no sense: {error}"));
            }
            (Operation::List { .. }, Answer::Order(_))
            | (
                Operation::Place { .. } | Operation::Get { .. } | Operation::Cancel { .. },
                Answer::Page { .. },
            ) => {
                findings.add(Rule::ContentEqual, "an answer of the wrong kind".to_owned());
            }
        }
    }

    fn take_order(&mut self, facts: &OrderFacts, span: (Micros, Micros), findings: &mut Findings) {
        if total_cents(&facts.items) != facts.total_cents {
            findings.add(
                Rule::ContentEqual,
                format!("order {}: the total shown is not that of its items", facts.order_id),
            );
        }
        let place = self.asked.place_of(facts.order_id);
        if place.is_some_and(|place| facts.items != place.items) {
            findings.add(Rule::ContentEqual, format!("order {} is shown with other items", facts.order_id));
        }
        self.take_facts(facts, span, findings);
    }

    /// What whole orders and list entries have in common.
    fn take_facts(&mut self, facts: &OrderFacts, span: (Micros, Micros), findings: &mut Findings) {
        let OrderFacts { order_id, user_id, version, total_cents: total, .. } = *facts;
        if !matches!((facts.status.as_str(), version), ("created", 1) | ("cancelled", 2)) {
            findings.add(
                Rule::ContentEqual,
                format!("order {order_id} is shown {} at version {version}", facts.status),
            );
        }
        let differs = |place: &Place| user_id != place.user_id || total != total_cents(&place.items);
        if self.asked.place_of(order_id).is_some_and(differs) {
            findings.add(Rule::ContentEqual, format!("order {order_id} is shown with another user or total"));
        }
        self.observe(order_id, span, version, findings);
        if let Some(index) = self.preload.index_of(order_id) {
            let first = self.preloaded.entry(index).or_insert_with(|| facts.clone());
            if (first.user_id, first.total_cents, first.order_id) != (user_id, total, order_id) {
                findings.add(Rule::ContentEqual, format!("preloaded order {order_id} was shown in two ways"));
            }
        }
    }

    fn take_page(
        &mut self,
        user_id: i64,
        orders: Vec<OrderFacts>,
        more: bool,
        span: (Micros, Micros),
        findings: &mut Findings,
    ) {
        let until_ms = orders.last().filter(|_| more).map(|last| milliseconds_of(last.order_id));
        let mut order_ids = HashSet::new();
        for facts in orders {
            if facts.user_id != user_id {
                findings.add(
                    Rule::ContentEqual,
                    format!("user {user_id} was shown an order of user {}", facts.user_id),
                );
            }
            if !order_ids.insert(facts.order_id) {
                findings
                    .add(Rule::LinearizablePerUser, format!("a list showed order {} twice", facts.order_id));
            }
            self.take_facts(&facts, span, findings);
        }
        self.pages.push(Page { began_us: span.0, user_id, order_ids, until_ms });
    }

    fn observe(&mut self, order_id: Uuid, span: (Micros, Micros), version: i64, findings: &mut Findings) {
        let known = self.asked.by_order.contains_key(&order_id) || self.preload.index_of(order_id).is_some();
        if !known {
            findings.add(
                Rule::NothingUnasked,
                format!("order {order_id} was shown, and is neither asked for nor stored"),
            );
            return;
        }
        findings.checked.observations += 1;
        let (began_us, ended_us) = span;
        self.observations.entry(order_id).or_default().push(Observation { began_us, ended_us, version });
    }

    fn check_versions(&mut self, findings: &mut Findings) {
        for (order_id, observations) in &mut self.observations {
            let place = self.asked.place_of(*order_id);
            if place.is_none() {
                // A preloaded order was there before the clock started.
                observations.push(Observation { began_us: 0, ended_us: 0, version: 1 });
            }
            let requested = Requested {
                placed_us: place.map_or(0, |place| place.began_us),
                cancelled_us: self.asked.cancels.get(order_id).map(|cancel| cancel.began_us),
            };
            for violation in register::violations(requested, observations) {
                findings.add(Rule::LinearizablePerUser, format!("order {order_id}: {violation}"));
            }
        }
    }

    /// Compares what was shown of preloaded orders with what they are. I/O.
    async fn check_preloaded(&self, shard: &mut Shard, findings: &mut Findings) -> Result<(), JudgeError> {
        let shown: Vec<i64> = self.preloaded.keys().map(|index| index.cast_signed()).collect();
        let sql = "select i, pg_temp.preload_user(i) as user_id, pg_temp.preload_id(i) as order_id,
                       pg_temp.preload_total(i) as total_cents
                   from unnest($1::bigint[]) as i";
        let rows = sqlx::query(sql).bind(shown).fetch_all(&mut shard.connection).await;
        for row in rows.map_err(|source| shard.failed("preloaded orders", source))? {
            let expected = (|| {
                let index = row.try_get::<i64, _>("i")?.unsigned_abs();
                Ok((index, (row.try_get("order_id")?, row.try_get("user_id")?, row.try_get("total_cents")?)))
            })();
            let (index, expected) = expected.map_err(|source| shard.failed("preloaded orders", source))?;
            let Some(facts) = self.preloaded.get(&index) else { continue };
            if (facts.order_id, facts.user_id, facts.total_cents) != expected {
                findings.add(
                    Rule::ContentEqual,
                    format!("preloaded order {} was shown otherwise", facts.order_id),
                );
            }
        }
        Ok(())
    }

    /// The preloaded orders of all users whose lists were read. I/O.
    async fn preloaded_of_users(&self, shard: &mut Shard) -> Result<HashMap<i64, Vec<Uuid>>, JudgeError> {
        let users: HashSet<i64> = self.pages.iter().map(|page| page.user_id).collect();
        let users: Vec<i64> = users.into_iter().collect();
        let sql = "select users.user_id, pg_temp.preload_id(i) as order_id
                   from (select i, pg_temp.preload_user(i) as user_id from generate_series(0, $1::bigint - 1) as i offset 0) as preloaded
                   join unnest($2::bigint[]) as users (user_id) using (user_id)";
        let query = sqlx::query(sql).bind(self.preload.orders.cast_signed()).bind(users);
        let rows = query.fetch_all(&mut shard.connection).await;
        let mut of_users: HashMap<i64, Vec<Uuid>> = HashMap::new();
        for row in rows.map_err(|source| shard.failed("preloaded orders", source))? {
            let read = (|| Ok((row.try_get("user_id")?, row.try_get("order_id")?)))();
            let (user_id, order_id) = read.map_err(|source| shard.failed("preloaded orders", source))?;
            of_users.entry(user_id).or_default().push(order_id);
        }
        Ok(of_users)
    }

    /// Each list shows all orders known to exist before it was asked for, as far as its page reaches.
    fn check_pages(&self, preloaded: &HashMap<i64, Vec<Uuid>>, findings: &mut Findings) {
        let mut live: HashMap<i64, Vec<(Micros, Uuid)>> = HashMap::new();
        for (order_id, observations) in &self.observations {
            let place = self.asked.place_of(*order_id);
            if let (Some(place), Some(seen_us)) = (place, register::first_seen_us(observations)) {
                live.entry(place.user_id).or_default().push((seen_us, *order_id));
            }
        }
        for page in &self.pages {
            let old = preloaded.get(&page.user_id).into_iter().flatten();
            let old = old.filter(|order_id| page.reaches(**order_id, 0));
            let new = live.get(&page.user_id).into_iter().flatten();
            let new = new.filter(|(seen_us, order_id)| {
                *seen_us < page.began_us && page.reaches(*order_id, CLOCK_SKEW_MS)
            });
            for order_id in old.chain(new.map(|(_, order_id)| order_id)) {
                if !page.order_ids.contains(order_id) {
                    let example = format!("a list of user {} left out order {order_id}", page.user_id);
                    findings.add(Rule::LinearizablePerUser, example);
                }
            }
        }
    }
}

impl Page {
    /// Whether an order, if there was one, must be on this page.
    fn reaches(&self, order_id: Uuid, skew_ms: u64) -> bool {
        self.until_ms.is_none_or(|until_ms| milliseconds_of(order_id) > until_ms + skew_ms)
    }
}

fn check_target(order_id: Uuid, facts: &OrderFacts, findings: &mut Findings) {
    if facts.order_id != order_id {
        findings.add(Rule::ContentEqual, format!("order {} was shown for {order_id}", facts.order_id));
    }
}

//! The orders of the run itself: what the shards hold against what was asked and promised.

use super::{
    JudgeError, Shard,
    asked::{Asked, Effect, Place},
    findings::{Findings, Rule},
};
use crate::history::Item;
use futures::TryStreamExt;
use sqlx::Row;
use std::collections::{HashMap, hash_map::Entry};
use uuid::Uuid;

/// An order as stored, with all that belongs to it.
struct Stored {
    shard: usize,
    user_id: i64,
    status: String,
    version: i64,
    items: Vec<Item>,
    events: Vec<(i64, String)>,
    key: Option<String>,
}

/// An idempotency row, wherever it lies.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct KeyRow {
    user_id: i64,
    key: String,
    order_id: Uuid,
    shard: usize,
    mine: bool,
}

#[derive(Default)]
struct Rows {
    orders: HashMap<Uuid, Stored>,
    keys: Vec<KeyRow>,
    /// Events whose order is nowhere.
    orphans: Vec<(Uuid, String)>,
}

/// Reads all rows of the run and compares them. Learns on the way which orders indeterminate places became.
/// I/O.
pub(super) async fn check(
    shards: &mut [Shard],
    asked: &mut Asked,
    findings: &mut Findings,
) -> Result<(), JudgeError> {
    let mut rows = Rows::default();
    for (index, shard) in shards.iter_mut().enumerate().filter(|(_, shard)| shard.has_tables) {
        let read = read(index, shard, &mut rows, findings).await;
        read.map_err(|source| shard.failed("orders", source))?;
    }
    findings.checked.stored = rows.orders.len() as u64;
    check_keys(&mut rows, asked, findings);
    for place in &asked.places {
        check_promise(place, &rows, findings);
    }
    for (order_id, stored) in &rows.orders {
        check_stored(*order_id, stored, asked, findings);
    }
    for (order_id, event) in &rows.orphans {
        // The events of a lost order are what is left of it; the loss is reported already.
        if !asked.by_order.contains_key(order_id) {
            findings.add(
                Rule::EventsExactlyOnce,
                format!("event {event} of order {order_id}, which is not stored"),
            );
        }
    }
    Ok(())
}

async fn read(
    index: usize,
    shard: &mut Shard,
    rows: &mut Rows,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    read_orders(index, shard, rows, findings).await?;
    read_items(index, shard, rows).await?;
    read_events(index, shard, rows).await?;
    let mut keys = sqlx::query(include_str!("../../sql/judge_live_keys.sql")).fetch(&mut shard.connection);
    while let Some(row) = keys.try_next().await? {
        rows.keys.push(KeyRow {
            user_id: row.try_get("user_id")?,
            key: row.try_get("key")?,
            order_id: row.try_get("order_id")?,
            shard: index,
            mine: row.try_get("mine")?,
        });
    }
    Ok(())
}

async fn read_orders(
    index: usize,
    shard: &mut Shard,
    rows: &mut Rows,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let mut orders =
        sqlx::query(include_str!("../../sql/judge_live_orders.sql")).fetch(&mut shard.connection);
    while let Some(row) = orders.try_next().await? {
        let order_id: Uuid = row.try_get("order_id")?;
        let stored = Stored {
            shard: index,
            user_id: row.try_get("user_id")?,
            status: row.try_get("status")?,
            version: row.try_get::<i32, _>("version")?.into(),
            items: Vec::new(),
            events: Vec::new(),
            key: None,
        };
        match rows.orders.entry(order_id) {
            Entry::Vacant(vacant) => {
                vacant.insert(stored);
            }
            Entry::Occupied(_) => {
                findings.orders.duplicated += 1;
                findings.add(Rule::OneRowPerKey, format!("order {order_id} is stored more than once"));
            }
        }
    }
    Ok(())
}

async fn read_items(index: usize, shard: &mut Shard, rows: &mut Rows) -> Result<(), sqlx::Error> {
    let mut items = sqlx::query(include_str!("../../sql/judge_live_items.sql")).fetch(&mut shard.connection);
    while let Some(row) = items.try_next().await? {
        let order_id: Uuid = row.try_get("order_id")?;
        let item = Item {
            sku: row.try_get("sku")?,
            quantity: row.try_get("quantity")?,
            price_cents: row.try_get("price_cents")?,
        };
        // A second copy of an order is reported as such, not as an order with twice its lines.
        if let Some(stored) = rows.orders.get_mut(&order_id).filter(|stored| stored.shard == index) {
            stored.items.push(item);
        }
    }
    Ok(())
}

async fn read_events(index: usize, shard: &mut Shard, rows: &mut Rows) -> Result<(), sqlx::Error> {
    let mut events =
        sqlx::query(include_str!("../../sql/judge_live_events.sql")).fetch(&mut shard.connection);
    while let Some(row) = events.try_next().await? {
        let order_id: Uuid = row.try_get("order_id")?;
        let version = row.try_get::<i32, _>("version")?.into();
        let kind: String = row.try_get("type")?;
        match rows.orders.get_mut(&order_id) {
            Some(stored) if stored.shard == index => stored.events.push((version, kind)),
            Some(_) => {}
            None => rows.orphans.push((order_id, format!("{version} {kind}"))),
        }
    }
    Ok(())
}

/// One row for a key and one order for a row; leads from keys to places.
fn check_keys(rows: &mut Rows, asked: &mut Asked, findings: &mut Findings) {
    rows.keys.sort_unstable();
    for group in rows.keys.chunk_by(|one, next| (one.user_id, &one.key) == (next.user_id, &next.key)) {
        check_group(group, findings);
    }
    for row in rows.keys.iter().filter(|row| row.mine) {
        let KeyRow { user_id, key, order_id, .. } = row;
        let place = asked.by_key.get(key).filter(|index| asked.places[**index].user_id == *user_id);
        match place {
            Some(index) => {
                asked.by_order.entry(*order_id).or_insert(*index);
            }
            None if key.starts_with("preload-") => {
                findings.add(
                    Rule::OneRowPerKey,
                    format!("key {key} leads to order {order_id}, which was not preloaded"),
                );
            }
            None => {
                findings.add(Rule::NothingUnasked, format!("key {key} of user {user_id} was never sent"));
            }
        }
        let promised =
            asked.place_of(*order_id).is_some_and(|place| place.acknowledged_as == Some(*order_id));
        match rows.orders.get_mut(order_id) {
            Some(stored) => match stored.key.replace(key.clone()) {
                Some(other) if other != *key => {
                    findings
                        .add(Rule::OneRowPerKey, format!("keys {other} and {key} lead to order {order_id}"));
                }
                Some(_) | None => {}
            },
            None if promised => {}
            None => {
                findings.add(
                    Rule::OneRowPerKey,
                    format!("key {key} leads to order {order_id}, which is not stored"),
                );
            }
        }
    }
}

fn check_group(group: &[KeyRow], findings: &mut Findings) {
    let KeyRow { user_id, key, order_id, .. } = &group[0];
    if group.iter().any(|row| row.order_id != *order_id) {
        findings.orders.duplicated += 1;
        findings.add(Rule::OneRowPerKey, format!("key {key} of user {user_id} leads to more than one order"));
    } else if group.iter().filter(|row| row.mine).count() > 1 {
        findings.add(Rule::OneRowPerKey, format!("key {key} of user {user_id} is stored more than once"));
    }
}

/// An acknowledged place is stored, under its key; a refused one is not.
fn check_promise(place: &Place, rows: &Rows, findings: &mut Findings) {
    let Place { user_id, key, effect, acknowledged_as, .. } = place;
    let lead = (*user_id, key.as_str());
    let found = rows.keys.binary_search_by(|row| (row.user_id, row.key.as_str()).cmp(&lead));
    let by_key = found.ok().map(|index| rows.keys[index].order_id);
    let stored = acknowledged_as.or(by_key).filter(|order_id| rows.orders.contains_key(order_id));
    match (effect, stored) {
        (Effect::Acknowledged, None) => {
            findings.orders.lost += 1;
            let named = acknowledged_as.map_or_else(|| "unnamed".to_owned(), |order_id| order_id.to_string());
            let example =
                format!("order {named} of user {user_id}, key {key}, was acknowledged and is not stored");
            findings.add(Rule::AcknowledgedStored, example);
        }
        (Effect::Acknowledged, Some(order_id)) if by_key != Some(order_id) => {
            findings.add(
                Rule::OneRowPerKey,
                format!("key {key} of user {user_id} does not lead to order {order_id}"),
            );
        }
        (Effect::Refused, Some(order_id)) => {
            findings.add(Rule::NothingUnasked, format!("order {order_id} was refused and is stored"));
        }
        (Effect::Acknowledged | Effect::Unsure, Some(_)) | (Effect::Unsure | Effect::Refused, None) => {}
    }
}

/// A stored order was asked for, is as it was asked for, and has its events.
fn check_stored(order_id: Uuid, stored: &Stored, asked: &Asked, findings: &mut Findings) {
    check_events(order_id, stored, findings);
    let Some(place) = asked.place_of(order_id) else {
        // A key that was never sent is reported with the key.
        if stored.key.is_none() {
            findings.add(
                Rule::NothingUnasked,
                format!("nobody asked for order {order_id} of user {}", stored.user_id),
            );
        }
        return;
    };
    if stored.user_id != place.user_id || stored.items != place.items {
        findings
            .add(Rule::ContentEqual, format!("order {order_id} is not what user {} ordered", place.user_id));
    }
    let cancel = asked.cancels.get(&order_id);
    match (stored.status.as_str(), stored.version) {
        ("created", 1) if cancel.is_some_and(|cancel| cancel.acknowledged) => {
            findings
                .add(Rule::AcknowledgedStored, format!("order {order_id} was cancelled and is not any more"));
        }
        ("cancelled", 2) if cancel.is_none() => {
            findings.add(Rule::NothingUnasked, format!("nobody cancelled order {order_id}"));
        }
        ("created", 1) | ("cancelled", 2) => {}
        (status, version) => {
            findings.add(Rule::ContentEqual, format!("order {order_id} is {status} at version {version}"));
        }
    }
}

fn check_events(order_id: Uuid, stored: &Stored, findings: &mut Findings) {
    let names = ["created", "cancelled"];
    let expected = (1_i64..).zip(names).take_while(|(version, _)| *version <= stored.version);
    let events = stored.events.iter().map(|(version, kind)| (*version, kind.as_str()));
    if !events.clone().eq(expected) {
        let seen: Vec<String> = events.map(|(version, kind)| format!("{version} {kind}")).collect();
        let example =
            format!("order {order_id} at version {} has events [{}]", stored.version, seen.join(", "));
        findings.add(Rule::EventsExactlyOnce, example);
    }
}

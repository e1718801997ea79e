//! An order, and the request for one. Pure: what is valid is decided here.

use longshore_sharding::OrderId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const ITEMS_MAX: usize = 100;
const QUANTITY_MAX: i32 = 1_000;
const PRICE_CENTS_MAX: i64 = 100_000_000;
const SKU_CHARS_MAX: usize = 64;
const KEY_BYTES_MAX: usize = 255;

/// Why a request for an order is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Invalid {
    #[error("items must hold 1 to {ITEMS_MAX} entries, not {0}")]
    Items(usize),
    #[error("items[{0}].sku must be 1 to {SKU_CHARS_MAX} characters, none of them a control character")]
    Sku(usize),
    #[error("items[{0}].quantity must be 1 to {QUANTITY_MAX}")]
    Quantity(usize),
    #[error("items[{0}].price_cents must be 0 to {PRICE_CENTS_MAX}")]
    PriceCents(usize),
    #[error(
        "the header Idempotency-Key must be given once, as 1 to {KEY_BYTES_MAX} visible ASCII characters"
    )]
    IdempotencyKey,
}

/// The body of a request for an order, as sent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OrderRequest {
    user_id: i64,
    items: Vec<ItemRequest>,
}

/// One item asked for. Its JSON is hashed into `idempotency_keys.body_hash`: a field added later must be left out
/// where it is absent, or repeated requests of before would count as different ones.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ItemRequest {
    pub(crate) sku: String,
    pub(crate) quantity: i32,
    pub(crate) price_cents: i64,
}

/// A valid request for an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NewOrder {
    user_id: i64,
    items: Vec<ItemRequest>,
}

impl TryFrom<OrderRequest> for NewOrder {
    type Error = Invalid;
    fn try_from(OrderRequest { user_id, items }: OrderRequest) -> Result<Self, Invalid> {
        if !(1..=ITEMS_MAX).contains(&items.len()) {
            return Err(Invalid::Items(items.len()));
        }
        for (at, item) in items.iter().enumerate() {
            let sku_chars = item.sku.chars().count();
            if !(1..=SKU_CHARS_MAX).contains(&sku_chars) || item.sku.chars().any(char::is_control) {
                return Err(Invalid::Sku(at));
            }
            if !(1..=QUANTITY_MAX).contains(&item.quantity) {
                return Err(Invalid::Quantity(at));
            }
            if !(0..=PRICE_CENTS_MAX).contains(&item.price_cents) {
                return Err(Invalid::PriceCents(at));
            }
        }
        Ok(Self { user_id, items })
    }
}

impl NewOrder {
    pub(crate) fn user_id(&self) -> i64 {
        self.user_id
    }

    pub(crate) fn items(&self) -> &[ItemRequest] {
        &self.items
    }

    /// At most 10^13: no overflow within the limits.
    pub(crate) fn total_cents(&self) -> i64 {
        self.items.iter().map(|item| i64::from(item.quantity) * item.price_cents).sum()
    }

    /// Equal for equal requests, however they were written.
    pub(crate) fn body_hash(&self) -> Vec<u8> {
        let canonical = serde_json::to_vec(self).expect("plain structs of numbers and strings are JSON");
        Sha256::digest(canonical).to_vec()
    }
}

/// The client's name for one request, by which a repetition is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdempotencyKey(String);

impl IdempotencyKey {
    /// From every value of the header that was sent.
    pub(crate) fn from_values<'v>(mut values: impl Iterator<Item = &'v [u8]>) -> Result<Self, Invalid> {
        let (Some(value), None) = (values.next(), values.next()) else { return Err(Invalid::IdempotencyKey) };
        let visible = value.iter().all(u8::is_ascii_graphic);
        if !visible || !(1..=KEY_BYTES_MAX).contains(&value.len()) {
            return Err(Invalid::IdempotencyKey);
        }
        String::from_utf8(value.to_vec()).map(Self).map_err(|_| Invalid::IdempotencyKey)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OrderStatus {
    Created,
    Cancelled,
}

impl OrderStatus {
    /// As the table spells it; nothing for another word.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        match word {
            "created" => Some(Self::Created),
            "cancelled" => Some(Self::Cancelled),
            _ => None,
        }
    }

    /// As the table spells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Cancelled => "cancelled",
        }
    }
}

/// An order as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Order {
    #[serde(serialize_with = "as_text")]
    pub(crate) order_id: OrderId,
    pub(crate) user_id: i64,
    pub(crate) status: OrderStatus,
    pub(crate) total_cents: i64,
    pub(crate) version: i32,
    /// RFC 3339, in UTC, with microseconds
    pub(crate) created_at: String,
    pub(crate) items: Vec<OrderItem>,
}

/// A line of an order.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct OrderItem {
    pub(crate) line: i32,
    pub(crate) sku: String,
    pub(crate) quantity: i32,
    pub(crate) price_cents: i64,
}

fn as_text<S: serde::Serializer>(id: &OrderId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

#[cfg(test)]
mod tests {
    use longshore_sharding::BucketId;

    use super::*;

    fn parse(json: &str) -> Result<NewOrder, String> {
        let request: OrderRequest = serde_json::from_str(json).map_err(|error| error.to_string())?;
        NewOrder::try_from(request).map_err(|error| error.to_string())
    }

    fn with_item(sku: &str, quantity: i64, price_cents: i64) -> String {
        serde_json::json!({"user_id": 7, "items": [{"sku": sku, "quantity": quantity, "price_cents": price_cents}]})
            .to_string()
    }

    #[test]
    fn the_limits_hold() {
        for good in [with_item("A", 1, 0), with_item(&"é".repeat(64), 1_000, 100_000_000)] {
            assert!(parse(&good).is_ok(), "{good}");
        }
        let bad = [
            with_item("", 1, 0),
            with_item(&"x".repeat(65), 1, 0),
            with_item("a\u{0}b", 1, 0),
            with_item("A", 0, 0),
            with_item("A", 1_001, 0),
            with_item("A", 1, -1),
            with_item("A", 1, 100_000_001),
            with_item("A", 1 << 40, 1),
            r#"{"user_id":7,"items":[]}"#.to_owned(),
            r#"{"user_id":7}"#.to_owned(),
            r#"{"user_id":"7","items":[{"sku":"A","quantity":1,"price_cents":1}]}"#.to_owned(),
            r#"{"user_id":7.5,"items":[{"sku":"A","quantity":1,"price_cents":1}]}"#.to_owned(),
            r#"{"user_id":9223372036854775808,"items":[{"sku":"A","quantity":1,"price_cents":1}]}"#
                .to_owned(),
            r#"{"user_id":7,"total":1,"items":[{"sku":"A","quantity":1,"price_cents":1}]}"#.to_owned(),
            r#"{"user_id":7,"items":[{"sku":"A","quantity":1,"price_cents":1,"line":1}]}"#.to_owned(),
        ];
        for bad in bad {
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hundred_items_are_the_most() {
        let item = serde_json::json!({"sku": "A", "quantity": 1_000, "price_cents": 100_000_000});
        let with = |count| serde_json::json!({"user_id": 1, "items": vec![item.clone(); count]}).to_string();
        assert_eq!(parse(&with(100)).unwrap().total_cents(), 10_000_000_000_000);
        assert!(parse(&with(101)).is_err());
    }

    #[test]
    fn the_hash_is_of_the_content_not_of_its_spelling() {
        let one = parse(r#"{"user_id":7,"items":[{"sku":"A","quantity":1,"price_cents":1}]}"#).unwrap();
        let same =
            parse(r#"{ "items":[{"price_cents":1,"sku":"\u0041","quantity":1}], "user_id":7}"#).unwrap();
        let other = parse(r#"{"user_id":7,"items":[{"sku":"A","quantity":2,"price_cents":1}]}"#).unwrap();
        assert_eq!(one.body_hash(), same.body_hash());
        assert_ne!(one.body_hash(), other.body_hash());
        assert_eq!(one.body_hash().len(), 32);
    }

    #[test]
    fn one_visible_key_is_needed() {
        let key = |values: &[&[u8]]| IdempotencyKey::from_values(values.iter().copied());
        assert_eq!(key(&[b"k-1"]).unwrap().as_str(), "k-1");
        assert!(key(&[&[b'x'; 255]]).is_ok());
        assert_eq!(key(&[]), Err(Invalid::IdempotencyKey), "none");
        assert_eq!(key(&[b"a", b"b"]), Err(Invalid::IdempotencyKey), "two");
        let too_long = "x".repeat(256);
        for bad in ["", "a b", "\u{7f}", "é", &too_long] {
            assert_eq!(key(&[bad.as_bytes()]), Err(Invalid::IdempotencyKey), "{bad:?}");
        }
    }

    #[test]
    fn an_order_reads_as_agreed() {
        let order = Order {
            order_id: OrderId::new(0x0123_4567_89ab, BucketId::new(0xfed1), 1),
            user_id: 7,
            status: OrderStatus::Created,
            total_cents: 300,
            version: 1,
            created_at: "2026-01-01T00:00:00.000000Z".to_owned(),
            items: vec![OrderItem { line: 1, sku: "A-1".to_owned(), quantity: 2, price_cents: 150 }],
        };
        let expected = serde_json::json!({
            "order_id": "01234567-89ab-7fed-8400-000000000001", "user_id": 7, "status": "created",
            "total_cents": 300, "version": 1, "created_at": "2026-01-01T00:00:00.000000Z",
            "items": [{"line": 1, "sku": "A-1", "quantity": 2, "price_cents": 150}],
        });
        assert_eq!(serde_json::to_value(order).unwrap(), expected);
    }
}

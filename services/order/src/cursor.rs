//! Where a listing goes on. Opaque to clients: the id of the last order they saw, written so that nobody takes
//! it for one.

use longshore_sharding::{BucketId, OrderId};
use uuid::Uuid;

/// The first character of every cursor: its format.
const FORMAT: char = '1';

/// Writes the cursor that stands after `last`.
pub(crate) fn after(last: OrderId) -> String {
    format!("{FORMAT}{}", last.as_uuid().simple())
}

/// Reads a cursor of a listing in `bucket`; nothing if it is not one.
pub(crate) fn read(cursor: &str, bucket: BucketId) -> Option<OrderId> {
    let hex = cursor.strip_prefix(FORMAT)?;
    // Uuid reads other forms as well; a cursor has this one alone.
    if hex.len() != 32 {
        return None;
    }
    let id = OrderId::try_from(Uuid::try_parse(hex).ok()?).ok()?;
    (id.bucket() == bucket && after(id) == cursor).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_in_its_own_bucket_alone() {
        let bucket = BucketId::new(77);
        let id = OrderId::new(1_700_000_000_000, bucket, 99);
        let cursor = after(id);
        assert_eq!(read(&cursor, bucket), Some(id));
        assert_eq!(read(&cursor, BucketId::new(78)), None);
    }

    #[test]
    fn anything_else_is_refused() {
        let bucket = BucketId::new(77);
        let id = OrderId::new(1_700_000_000_000, bucket, 99);
        let upper = after(id).to_uppercase();
        let random = format!("1{}", Uuid::from_u128(4 << 76 | 2 << 62).simple());
        let plain = id.to_string();
        for text in
            ["", "1", "2", "1zz", &upper, &random, &plain, &format!("1{plain}"), &format!("{}0", after(id))]
        {
            assert_eq!(read(text, bucket), None, "{text}");
        }
    }
}

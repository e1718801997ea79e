//! Where a listing goes on. Opaque to clients: the id of the last order they saw, written so that nobody takes
//! it for one, nor that of one listing for that of the other.

use longshore_sharding::{BucketId, OrderId};
use uuid::Uuid;

/// The first character of the cursors of one user's orders: their format.
const ONE_USER: char = '1';
/// The same of the orders of all users.
const ALL_USERS: char = '2';

/// Writes the cursor that stands after `last` among the orders of its user.
pub(crate) fn after(last: OrderId) -> String {
    write(ONE_USER, last)
}

/// Writes the cursor that stands after `last` among all orders.
pub(crate) fn after_of_all(last: OrderId) -> String {
    write(ALL_USERS, last)
}

/// Reads a cursor of a user's listing in `bucket`; nothing if it is not one.
pub(crate) fn read(cursor: &str, bucket: BucketId) -> Option<OrderId> {
    parse(ONE_USER, cursor).filter(|id| id.bucket() == bucket)
}

/// Reads a cursor of the listing of all orders; nothing if it is not one.
pub(crate) fn read_of_all(cursor: &str) -> Option<OrderId> {
    parse(ALL_USERS, cursor)
}

fn write(format: char, last: OrderId) -> String {
    format!("{format}{}", last.as_uuid().simple())
}

fn parse(format: char, cursor: &str) -> Option<OrderId> {
    let hex = cursor.strip_prefix(format)?;
    // Uuid reads other forms as well; a cursor has this one alone.
    if hex.len() != 32 {
        return None;
    }
    let id = OrderId::try_from(Uuid::try_parse(hex).ok()?).ok()?;
    (write(format, id) == cursor).then_some(id)
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
    fn a_cursor_of_one_listing_is_none_of_the_other() {
        let id = OrderId::new(1_700_000_000_000, BucketId::new(77), 99);
        assert_eq!(read_of_all(&after_of_all(id)), Some(id));
        assert_eq!(read_of_all(&after(id)), None);
        assert_eq!(read(&after_of_all(id), id.bucket()), None);
    }

    #[test]
    fn anything_else_is_refused() {
        let bucket = BucketId::new(77);
        let id = OrderId::new(1_700_000_000_000, bucket, 99);
        let upper = after(id).to_uppercase();
        let random = format!("1{}", Uuid::from_u128(4 << 76 | 2 << 62).simple());
        let plain = id.to_string();
        for text in
            ["", "1", "3", "1zz", &upper, &random, &plain, &format!("1{plain}"), &format!("{}0", after(id))]
        {
            assert_eq!(read(text, bucket), None, "{text}");
            assert_eq!(read_of_all(&text.replacen('1', "2", 1)), None, "{text}");
        }
    }
}

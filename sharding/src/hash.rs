//! PostgreSQL's extended hash for bigint and uuid keys, bit for bit.
//!
//! Row filters of a publication accept only built-in functions, so buckets are counted with the server's own
//! hash; this is the same function on the client's side. The algorithm is Bob Jenkins' lookup3 (2006, public
//! domain) with the seeding that PostgreSQL adds. A test proves it equal to real servers.

use uuid::Uuid;

/// What lookup3 starts from: the golden ratio's bits, chosen by its author as an arbitrary value.
const START: u32 = 0x9e37_79b9;
/// Added by PostgreSQL to the length, so that its hashes differ from other users of lookup3.
const LENGTH_SALT: u32 = 3_923_095;

/// `hashint8extended(value, seed)`.
///
/// The two halves are folded so that a bigint hashes like the equal int4; then it is `hash_uint32_extended`.
#[must_use]
pub fn hash_bigint(value: i64, seed: u64) -> i64 {
    let [b0, b1, b2, b3, b4, b5, b6, b7] = value.to_le_bytes();
    let low = u32::from_le_bytes([b0, b1, b2, b3]);
    let high = u32::from_le_bytes([b4, b5, b6, b7]);
    let folded = low ^ if value >= 0 { high } else { !high };

    let [mut a, mut b, mut c] = seeded(4, seed);
    a = a.wrapping_add(folded);
    finish(&mut a, &mut b, &mut c);
    join(b, c)
}

/// `uuid_hash_extended(value, seed)`: `hash_bytes_extended` over the 16 bytes, little-endian words.
#[must_use]
pub fn hash_uuid(value: Uuid, seed: u64) -> i64 {
    let [w0, w1, w2, w3] = words(value.as_bytes());
    let [mut a, mut b, mut c] = seeded(16, seed);
    a = a.wrapping_add(w0);
    b = b.wrapping_add(w1);
    c = c.wrapping_add(w2);
    mix(&mut a, &mut b, &mut c);
    a = a.wrapping_add(w3);
    finish(&mut a, &mut b, &mut c);
    join(b, c)
}

fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let value = u128::from_le_bytes(*bytes);
    [0, 32, 64, 96].map(|shift| low_word(value >> shift))
}

fn low_word(value: u128) -> u32 {
    let [b0, b1, b2, b3, ..] = value.to_le_bytes();
    u32::from_le_bytes([b0, b1, b2, b3])
}

fn seeded(length: u32, seed: u64) -> [u32; 3] {
    let start = START.wrapping_add(length).wrapping_add(LENGTH_SALT);
    let (mut a, mut b, mut c) = (start, start, start);
    if seed != 0 {
        a = a.wrapping_add(low_word(u128::from(seed >> 32)));
        b = b.wrapping_add(low_word(u128::from(seed)));
        mix(&mut a, &mut b, &mut c);
    }
    [a, b, c]
}

fn join(high: u32, low: u32) -> i64 {
    ((u64::from(high) << 32) | u64::from(low)).cast_signed()
}

fn mix(a: &mut u32, b: &mut u32, c: &mut u32) {
    step(a, c, b, 4);
    step(b, a, c, 6);
    step(c, b, a, 8);
    step(a, c, b, 16);
    step(b, a, c, 19);
    step(c, b, a, 4);
}

/// One line of lookup3's `mix`: `x -= y; x ^= rot(y, k); y += z`.
fn step(x: &mut u32, y: &mut u32, z: &mut u32, rotation: u32) {
    *x = x.wrapping_sub(*y) ^ y.rotate_left(rotation);
    *y = y.wrapping_add(*z);
}

fn finish(a: &mut u32, b: &mut u32, c: &mut u32) {
    stir(c, *b, 14);
    stir(a, *c, 11);
    stir(b, *a, 25);
    stir(c, *b, 16);
    stir(a, *c, 4);
    stir(b, *a, 14);
    stir(c, *b, 24);
}

/// One line of lookup3's `final`: `x ^= y; x -= rot(y, k)`.
fn stir(x: &mut u32, y: u32, rotation: u32) {
    *x = (*x ^ y).wrapping_sub(y.rotate_left(rotation));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_vectors_of_the_server() {
        assert_eq!(hash_bigint(1, 0), -3_670_598_878_359_251_130);
        assert_eq!(hash_bigint(42, 0), 8_010_225_493_015_854_792);
    }
}

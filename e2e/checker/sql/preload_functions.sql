-- What the preloaded order number i looks like: every field is drawn from the hash of (i, seed and field).
-- The judge makes the same functions and compares row by row inside the server. All of them are plain
-- expressions in i, so PostgreSQL inlines them (as long as i itself is a plain column where they are used, and
-- they are declared no better than what they call: hence stable). What is in braces the caller fills in.

create or replace function pg_temp.preload_draw(i bigint, field bigint, below bigint) returns bigint
    stable language sql as
$$ select (hashint8extended(i, {seed}::bigint * 256 + field) & 9223372036854775807) % below $$;

create or replace function pg_temp.preload_user(i bigint) returns bigint stable language sql as
$$ select 1 + pg_temp.preload_draw(i, 0, {users}::bigint) $$;

create or replace function pg_temp.preload_lines(i bigint) returns bigint stable language sql as
$$ select 1 + pg_temp.preload_draw(i, 1, 3) $$;

create or replace function pg_temp.preload_sku(i bigint, line bigint) returns text stable language sql as
$$ select 'P-' || pg_temp.preload_draw(i, 16 + line, 10000)::text $$;

create or replace function pg_temp.preload_quantity(i bigint, line bigint) returns bigint stable language sql as
$$ select 1 + pg_temp.preload_draw(i, 32 + line, 5) $$;

create or replace function pg_temp.preload_price(i bigint, line bigint) returns bigint stable language sql as
$$ select pg_temp.preload_draw(i, 48 + line, 50000) $$;

create or replace function pg_temp.preload_total(i bigint) returns bigint stable language sql as
$$ select pg_temp.preload_quantity(i, 1) * pg_temp.preload_price(i, 1)
        + case when pg_temp.preload_lines(i) >= 2 then pg_temp.preload_quantity(i, 2) * pg_temp.preload_price(i, 2) else 0 end
        + case when pg_temp.preload_lines(i) >= 3 then pg_temp.preload_quantity(i, 3) * pg_temp.preload_price(i, 3) else 0 end $$;

-- Order i was made i milliseconds after the first one.
create or replace function pg_temp.preload_created(i bigint) returns timestamptz stable language sql as
$$ select timestamptz '1970-01-01 00:00:00+00' + ({first_ms}::bigint + i) * interval '1 millisecond' $$;

create or replace function pg_temp.preload_key(i bigint) returns text stable language sql as
$$ select 'preload-{seed}-' || i::text $$;

create or replace function pg_temp.preload_body_hash(i bigint) returns bytea stable language sql as
$$ select decode(md5('a' || i::text) || md5('b' || i::text), 'hex') $$;

create or replace function pg_temp.preload_payload(i bigint) returns jsonb stable language sql as
$$ select jsonb_build_object('total_cents', pg_temp.preload_total(i), 'preloaded', i) $$;

create or replace function pg_temp.bucket(user_id bigint) returns integer stable language sql as
$$ select (hashint8extended(user_id, 0) & ({buckets} - 1))::integer $$;

-- A UUID of version 7: 48 bits of milliseconds, the high 12 bits of the 16-bit bucket number after the
-- version, its low 4 bits after the variant, then 58 drawn bits.
create or replace function pg_temp.preload_id(i bigint) returns uuid stable language sql as
$$ select (lpad(to_hex({first_ms}::bigint + i), 12, '0')
        || '7' || lpad(to_hex(pg_temp.bucket(pg_temp.preload_user(i)) >> 4), 3, '0')
        || to_hex(32768 | ((pg_temp.bucket(pg_temp.preload_user(i)) & 15) << 10)
                  | pg_temp.preload_draw(i, 2, 1024)::integer)
        || lpad(to_hex(pg_temp.preload_draw(i, 3, 281474976710656)), 12, '0'))::uuid $$;

-- The number of a preloaded order, from its id; nonsense for other ids.
create or replace function pg_temp.preload_index(order_id uuid) returns bigint stable language sql as
$$ select ('x' || substr(replace(order_id::text, '-', ''), 1, 12))::bit(48)::bigint - {first_ms}::bigint $$;

-- Whether an id lies where preloaded orders lie; a comparison with two constants.
create or replace function pg_temp.is_preloaded(order_id uuid) returns boolean stable language sql as
$$ select order_id >= '{first_id}'::uuid and order_id < '{end_id}'::uuid $$;

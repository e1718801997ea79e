-- Rows and their bytes in the buckets $1, of a set whose bucket count less one is $2.
select count(*)::bigint as rows, coalesce(sum(bytes), 0)::bigint as bytes
from (
  select user_id, pg_column_size(o) as bytes from orders o
  union all
  select user_id, pg_column_size(i) from order_items i
  union all
  select user_id, pg_column_size(e) from order_events e
  union all
  select user_id, pg_column_size(k) from idempotency_keys k
) as moved
where (hashint8extended(user_id, 0) & $2)::int = any ($1)

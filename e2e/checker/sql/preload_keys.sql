insert into idempotency_keys (user_id, key, body_hash, order_id, created_at)
select user_id, pg_temp.preload_key(i), pg_temp.preload_body_hash(i), order_id, pg_temp.preload_created(i)
from preload_plan where batch = $1
